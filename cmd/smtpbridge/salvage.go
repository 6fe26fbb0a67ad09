package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"smtpbridge/config"
	"smtpbridge/providers/all"
	"smtpbridge/store"
)

func storeSalvage() *cobra.Command {
	c := &cobra.Command{
		Use: "salvage", Short: "read what can be read of a damaged database into a new one", Args: usageArgs(cobra.NoArgs),
		Long: `For a bridge that does not start because its SQLite database is malformed. Reads every row that can
be read into a new database, says what could not, and puts the new one in place of the old one, which is
kept in a directory beside it. When anything was lost all waiting mails are held, since some of them may
have been sent already: look at them with "queue list", then "queue release". The bridge has to be stopped.
Run it as the user the bridge runs as, so that the new files belong to that user.`,
		Example:     "  smtpbridge store salvage",
		Annotations: map[string]string{annotationExit: "0 everything was read, or nothing is damaged; 1 failure, or something was lost; 2 the command line cannot be understood"},
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file, all.Registry().Names())
		if err != nil {
			return err
		}
		bar := newProgress(c.ErrOrStderr(), "salvage", 0)
		r, err := store.Salvage(c.Context(), store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL}, func(table string, rows int) {
			bar.what, bar.done = table, rows
			bar.step(0)
		})
		bar.end()
		if errors.Is(err, store.ErrSound) {
			_, err = fmt.Fprintln(c.OutOrStdout(), err)
			return err
		}
		if err != nil {
			return err
		}
		if *asJSON {
			err = printJSON(c.OutOrStdout(), r)
		} else {
			err = printSalvaged(c.OutOrStdout(), r)
		}
		if err == nil && !r.Complete() {
			err = errors.New("not everything could be read")
		}
		return err
	}
	return c
}

func printSalvaged(w io.Writer, r *store.Salvaged) error {
	t := newTable(w, "TABLE", "ROWS", "RESULT")
	for _, s := range r.Tables {
		result := cell{"whole", good}
		switch {
		case s.Damaged:
			result = cell{"parts could not be read", bad}
		case s.Orphans > 0:
			result = cell{plural(s.Orphans, "row") + " of lost mails left out", warn}
		}
		t.row(s.Name, s.Rows, result)
	}
	if err := t.flush(); err != nil {
		return err
	}
	for _, m := range r.Lost {
		fmt.Fprintf(w, "lost: mail %s to %s\n", m.ID, strings.Join(m.Rcpts, ", "))
	}
	if r.Blobs > 0 {
		fmt.Fprintf(w, "%s of large mails that no record names any more: moved to the old database\n", plural(r.Blobs, "file"))
	}
	if r.Held > 0 {
		fmt.Fprintf(w, "%s held: see `smtpbridge queue list --state held`, then `smtpbridge queue release ID` or --all\n", plural(r.Held, "mail"))
	}
	_, err := fmt.Fprintf(w, "the old database is in %s\n", r.Damaged)
	return err
}
