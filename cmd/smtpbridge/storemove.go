package main

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/providers/all"
	"smtpbridge/sink"
	"smtpbridge/store"
)

func storeMigrate() *cobra.Command {
	c := &cobra.Command{
		Use: "migrate", Short: "bring the database to this version's schema, or move it from SQLite to PostgreSQL", Args: usageArgs(cobra.NoArgs),
		Long: `Without options: does what every start of the bridge does first, brings the database of an earlier version to
this one's schema. There is no way back: "smtpbridge store backup" before it.

With --from, --to or both: moves queue, history, suppressions and the places of event followers from SQLite to an empty PostgreSQL
database. What is not given is what the configuration names. Everything is one transaction there, and read again and compared before
it is committed; then the old store is marked, and no bridge starts on it any more, so that nothing is sent twice. If the command is
cut off, run it again. The bridge has to be stopped. Set [store] url before the move (then --to, which shows a password to other users
of the machine, is not needed) or after it, and keep data_dir as it is.`,
		Example: "  smtpbridge store migrate\n  smtpbridge store migrate --from sqlite:/var/lib/smtpbridge",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	from := c.Flags().String("from", "", "sqlite:DIR, the data directory to move from (default: data_dir)")
	to := c.Flags().String("to", "", "postgres://USER@HOST/DB to move to (default: [store] url)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		cfg, err := config.Load(*file, all.Registry().Names())
		if err != nil {
			return err
		}
		if *from == "" && *to == "" {
			return upgradeStore(c, cfg)
		}
		dir, ok := strings.CutPrefix(*from, "sqlite:")
		switch {
		case *from == "":
			dir = cfg.DataDir
		case !ok || dir == "":
			return usageError(c, "--from %q is not sqlite:DIR: only a SQLite store can be moved", *from)
		}
		if *to == "" {
			*to = cfg.Store.URL
		}
		if !strings.HasPrefix(*to, "postgres://") && !strings.HasPrefix(*to, "postgresql://") {
			return usageError(c, "give --to postgres://USER@HOST/DB, or set [store] url")
		}
		return moveStore(c, cfg, dir, *to, *asJSON)
	}
	return c
}

// upgradeStore brings the schema up.
func upgradeStore(c *cobra.Command, cfg *config.Config) error {
	st, err := store.Open(c.Context(), store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL})
	if err != nil {
		return err
	}
	if err := st.Close(); err != nil {
		return err
	}
	_, err = fmt.Fprintln(c.OutOrStdout(), "the database has the schema of this version")
	return err
}

func moveStore(c *cobra.Command, cfg *config.Config, dir, to string, asJSON bool) error {
	if _, err := admin.Dial(c.Context(), cfg.Admin.Socket); err == nil {
		return errors.New("the bridge runs: stop it first")
	}
	bar := newProgress(c.ErrOrStderr(), "move", 0)
	r, err := store.Transfer(c.Context(), store.TransferOptions{
		Dir: dir, URL: to, Cursor: moveCursor,
		Progress: func(table string, rows, total int) {
			bar.what, bar.done, bar.total = table, rows, total
			bar.step(0)
		},
	})
	bar.end()
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(c.OutOrStdout(), r)
	}
	return printMoved(c.OutOrStdout(), r, dir, cfg.Store.URL == "")
}

// moveCursor gives the place of a follower in the new store, where each node has a file of its own.
func moveCursor(name, value, node string, place func(string) string) (string, string) {
	switch {
	case name == sink.DSNName, name == "suppression", strings.HasPrefix(name, "forward:"):
		return name, place(value)
	case name == "stdout":
		return sink.NodeStdout(nil, node).Name(), place(value)
	case strings.HasPrefix(name, "file:"):
		return "file@" + node + strings.TrimPrefix(name, "file"), sink.MoveFileCursor(value, place)
	}
	return name, value
}

func printMoved(w io.Writer, r *store.Transferred, dir string, urlMissing bool) error {
	if r.Before {
		_, err := fmt.Fprintln(w, "everything was moved before: nothing was done")
		return err
	}
	t := newTable(w, "TABLE", "ROWS", "SAME IN BOTH")
	for _, s := range r.Tables {
		t.row(s.Name, s.Rows, cell{s.Digest, good})
	}
	if err := t.flush(); err != nil {
		return err
	}
	if r.Large > 0 {
		fmt.Fprintf(w, "moved from files into the database: %s\n", plural(r.Large, "large mail"))
	}
	for _, id := range r.Damaged {
		fmt.Fprintf(w, "the body of mail %s is damaged: it will be held when it is its turn\n", id)
	}
	if urlMissing {
		fmt.Fprintln(w, "now set in bridge.toml, section [store]: url = \"postgres://...\" (what --to said), and start the bridge")
	} else {
		fmt.Fprintln(w, "now start the bridge")
	}
	_, err := fmt.Fprintf(w, "no bridge starts on the old store any more; when all is well, delete smtpbridge.db* and blobs/ in %s\n", dir)
	return err
}
