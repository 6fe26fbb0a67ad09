package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"smtpbridge/config"
	"smtpbridge/providers/all"
	"smtpbridge/store"
)

func storeCommand() *cobra.Command {
	c := &cobra.Command{Use: "store", Short: "look after the durable store"}
	verify := &cobra.Command{Use: "verify", Short: "read every queued body and compare its checksum", Args: usageArgs(cobra.NoArgs)}
	file := configFlag(verify)
	verify.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file, all.Registry().Names())
		if err != nil {
			return err
		}
		st, err := store.Open(c.Context(), store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL, ReadOnly: true})
		if err != nil {
			return err
		}
		defer st.Close()
		good, bad := 0, 0
		for _, state := range []store.MailState{store.MailQueued, store.MailHeld} {
			f := store.Filter{State: state, Limit: 1000}
			for {
				mails, err := st.Mails(c.Context(), f)
				if err != nil {
					return err
				}
				for i := range mails {
					id := mails[i].Envelope.ID
					body, err := st.Body(c.Context(), id)
					if err != nil {
						bad++
						fmt.Fprintf(c.OutOrStdout(), "%s: %v\n", id, err)
						continue
					}
					good++
					if err := body.Close(); err != nil {
						return err
					}
				}
				if len(mails) < f.Limit {
					break
				}
				f.After = mails[len(mails)-1].Envelope.ID
			}
		}
		fmt.Fprintf(c.OutOrStdout(), "%d bodies are good, %d are not\n", good, bad)
		if bad > 0 {
			return fmt.Errorf("%d queued mails cannot be read whole: they will not be sent", bad)
		}
		return nil
	}
	c.AddCommand(verify)
	return c
}
