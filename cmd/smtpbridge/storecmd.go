package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/providers/all"
	"smtpbridge/store"
)

func storeCommand() *cobra.Command {
	return family("store", groupStore, "look after the durable store", storeVerify(), storeBackup(), storeSalvage(), storeMigrate())
}

func storeVerify() *cobra.Command {
	c := &cobra.Command{
		Use: "verify", Short: "read every queued body and compare its checksum", Args: usageArgs(cobra.NoArgs),
		Example:     "  smtpbridge store verify",
		Annotations: map[string]string{annotationExit: "0 every body is good, 1 some are not, 2 the command line cannot be understood"},
	}
	file := configFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
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
		bodies := fmt.Sprintf("%d bodies are", good)
		if good == 1 {
			bodies = "1 body is"
		}
		fmt.Fprintf(c.OutOrStdout(), "%s good, %d not\n", bodies, bad)
		if bad > 0 {
			return fmt.Errorf("%d queued mails cannot be read whole: they will not be sent", bad)
		}
		return nil
	}
	return c
}

func storeBackup() *cobra.Command {
	c := &cobra.Command{
		Use: "backup DIR", Short: "copy the store to an empty directory, also while the bridge runs", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Copies database and bodies to a directory that is empty or does not exist. In the copy every
waiting mail is held, so that a bridge started on it sends nothing a second time by surprise:
"smtpbridge queue release --all" lets it go. SQLite only; PostgreSQL has its own tools.`,
		Example: "  smtpbridge store backup /var/backups/smtpbridge-today",
	}
	file := configFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		cfg, err := config.Load(*file, all.Registry().Names())
		if err != nil {
			return err
		}
		dir, err := filepath.Abs(args[0])
		if err != nil {
			return err
		}
		if err := backup(c.Context(), cfg, dir); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "copied to %s; waiting mails are held in the copy\n", dir)
		return err
	}
	return c
}

// backup has the running bridge copy its store; when none runs, it does so itself.
func backup(ctx context.Context, cfg *config.Config, dir string) error {
	if client, err := admin.Dial(ctx, cfg.Admin.Socket); err == nil {
		return client.Backup(ctx, dir)
	}
	st, err := store.Open(ctx, store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL})
	if err != nil {
		return err
	}
	return errors.Join(st.Backup(ctx, dir), st.Close())
}

func eraseCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "erase ADDRESS", GroupID: groupStore, Short: "forget an address: envelopes, ledger, headers, bodies, events", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Removes an address from everything that is finished. Mails still in the queue are left alone and
counted: deliver or delete them and erase again. Log files and the event file are not touched.`,
		Example: "  smtpbridge erase ada@example.net",
	}
	file := configFlag(c)
	asJSON := jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		e, err := api.Erase(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), e)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "taken out of %s, %s deleted; %s still in the queue\n", plural(e.Mails, "mail"), plural(e.Events, "event"), plural(e.Waiting, "mail"))
		return err
	}
	return c
}
