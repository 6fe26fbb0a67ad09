package store

import (
	"context"
	"database/sql"
	"testing"
)

func sqliteEngine(t *testing.T) (Options, opener) {
	return Options{Dir: t.TempDir()}, func(t *testing.T, o Options) *Store {
		t.Helper()
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestSQLite(t *testing.T) { runSuite(t, sqliteEngine) }

// TestNextDueWaitsWithoutLeases: whoever waits for a reader must not have the leases locked, for the readers may all be with
// claims that wait for the leases. With more accounts than readers all of them stood still.
func TestNextDueWaitsWithoutLeases(t *testing.T) {
	f := newFixture(t, sqliteEngine)
	f.accept("a", "u@example.org")
	var readers []*sql.Conn
	for range f.db.Stats().MaxOpenConnections {
		c, err := f.db.Conn(t.Context())
		f.must(err)
		readers = append(readers, c)
	}
	done := make(chan error)
	go func() {
		_, ok, err := f.NextDue(context.WithoutCancel(t.Context()), "a")
		if err == nil && !ok {
			err = ErrNotFound
		}
		done <- err
	}()
	waitFor(t, func() bool { return f.db.Stats().WaitCount > 0 })
	if !f.leases.mu.TryLock() {
		t.Error("the leases are locked while a reader is waited for")
	} else {
		f.leases.mu.Unlock()
	}
	for _, c := range readers {
		f.must(c.Close())
	}
	f.must(<-done)
}
