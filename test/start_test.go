package test

import (
	"database/sql"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"smtpbridge/internal/pgtest"
)

// A SIGTERM ends a bridge with success also while it starts: before it has joined the nodes, and while it reads how the accounts stand.
func TestEndWhileStarting(t *testing.T) {
	if testing.Short() {
		t.Skip("runs PostgreSQL")
	}
	t.Parallel()
	f := newFarm(t, "", pgtest.Options{})
	b := f.add("")
	b.stop()
	db, err := sql.Open("pgx", f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for _, table := range []string{"nodes", "accounts"} {
		t.Run(table, func(t *testing.T) {
			tx, err := db.BeginTx(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback() //nolint:errcheck // a lock is all it has
			if _, err := tx.ExecContext(t.Context(), "LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(binary, "serve", "-c", b.config)
			cmd.Stderr, cmd.Env = b.log, append(os.Environ(), "NOTIFY_SOCKET=")
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			exited := make(chan error, 1)
			go func() { exited <- cmd.Wait() }()
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			until(t, 30*time.Second, "the start waits for the table", func() bool {
				n := 0
				err := db.QueryRowContext(t.Context(), "SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE NOT l.granted AND c.relname = $1", table).Scan(&n)
				if err != nil {
					t.Fatal(err)
				}
				return n > 0
			})
			if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-exited:
				if err != nil {
					t.Errorf("exit after SIGTERM: %v\n%s", err, tail(b.log.String(), 2000))
				}
			case <-time.After(60 * time.Second):
				t.Error("still running 60 s after SIGTERM")
			}
		})
	}
}
