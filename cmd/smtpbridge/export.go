package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
)

func queueExport() *cobra.Command {
	var dir string
	var everything bool
	c := &cobra.Command{
		Use: "export ID... | --all", Short: "write mails as they were received to files",
		Long: `Writes each mail to ID.eml, byte for byte as it was received, and what is known of it to
ID.json (envelope, recipients, attempts, events), in the directory named by --to. One mail without
--to goes to standard output. Nothing is changed in the queue and no file is overwritten.

"smtpbridge send --from A --to B ID.eml" hands such a mail in again.`,
		Example: "  smtpbridge queue export 01HF3Q2M7T9V5Z8K1XW4RB6C0D > mail.eml\n  smtpbridge queue export --all --to waiting",
	}
	file := configFlag(c)
	c.Flags().StringVar(&dir, "to", "", "directory, made when it does not exist")
	c.Flags().BoolVar(&everything, "all", false, "every mail that waits or is held")
	_ = c.MarkFlagDirname("to") // for completion only; fails for an unknown flag alone
	c.RunE = func(c *cobra.Command, ids []string) error {
		switch {
		case (len(ids) == 0) != everything:
			return usageError(c, "give the ids of mails, or --all")
		case dir == "" && len(ids) != 1:
			return usageError(c, "give a directory with --to: only a single mail goes to standard output")
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		if dir == "" {
			return exportBody(c.Context(), api, ids[0], c.OutOrStdout())
		}
		if everything {
			if ids, err = list(c.Context(), api, admin.Query{}); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		bar := newProgress(c.ErrOrStderr(), "export", len(ids))
		defer bar.end()
		var failed error
		n := 0
		for _, id := range ids {
			if c.Context().Err() != nil {
				return fmt.Errorf("stopped after %d of %s", n, plural(len(ids), "mail"))
			}
			if err := exportMail(c.Context(), api, id, dir); err != nil {
				failed = errors.Join(failed, err)
			} else {
				n++
			}
			bar.step(1)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s written to %s\n", plural(n, "mail"), dir)
		return errors.Join(failed, err)
	}
	return c
}

// exportMail writes a mail and what is known of it: both files or, after an error, neither.
func exportMail(ctx context.Context, api admin.API, id, dir string) error {
	d, err := api.Mail(ctx, id)
	if err != nil {
		return err
	}
	mail, about := filepath.Join(dir, d.ID+".eml"), filepath.Join(dir, d.ID+".json")
	if err := newFile(mail, func(w io.Writer) error { return exportBody(ctx, api, d.ID, w) }); err != nil {
		return err
	}
	err = newFile(about, func(w io.Writer) error { return printJSON(w, d) })
	if err != nil {
		err = errors.Join(err, os.Remove(mail))
	}
	return err
}

func exportBody(ctx context.Context, api admin.API, id string, w io.Writer) error {
	b, err := api.Body(ctx, id)
	if err != nil {
		return err
	}
	defer b.Close()
	_, err = io.Copy(w, b)
	return err
}

// newFile writes a file that does not exist yet; after an error it does not exist either.
func newFile(name string, write func(io.Writer) error) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = errors.Join(write(f), f.Close()); err != nil {
		err = errors.Join(err, os.Remove(name))
	}
	return err
}
