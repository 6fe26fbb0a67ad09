package store

import (
	"context"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"smtpbridge/internal/dirtest"
)

// emptyStore gives a directory with a store; other packages have internal/storetest.
var emptyStore = dirtest.Copies(func(dir string) error {
	s, err := Open(context.Background(), Options{Dir: dir, MinFree: -1})
	if err != nil {
		return err
	}
	return s.Close()
})

func sqliteEngine(t *testing.T) (Options, opener) {
	t.Helper()
	return Options{Dir: emptyStore(t)}, func(t *testing.T, o Options) *Store {
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

// TestPurgeGoesOn: what cannot be removed keeps nothing else from being purged.
func TestPurgeGoesOn(t *testing.T) {
	f := newFixture(t, sqliteEngine)
	id := f.accept("a", "u@example.org")
	f.must(f.Delete(t.Context(), id))
	f.must(os.MkdirAll(filepath.Join(f.o.Dir, blobsName, "aa", "stuck", "full"), 0o700)) // a folder in the place of a file, and not empty
	f.must(f.do(t.Context(), 0, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "INSERT INTO dead_blobs (blob, since) VALUES ('aa/stuck', 1), ('zz/gone', 2)")
		return err
	}))
	f.clock.add(time.Hour)
	if _, err := f.Purge(t.Context(), Retention{Ledger: time.Minute}); err == nil {
		t.Error("no error tells of the file")
	}
	if _, err := f.Detail(t.Context(), id); !errors.Is(err, ErrNotFound) {
		t.Errorf("the ledger is not purged: %v", err)
	}
	var left []string
	f.must(f.read().each(t.Context(), "SELECT blob FROM dead_blobs", nil, func(scan func(...any) error) error {
		var b string
		err := scan(&b)
		left = append(left, b)
		return err
	}))
	if !slices.Equal(left, []string{"aa/stuck"}) {
		t.Errorf("files left to be removed: %q", left)
	}
}
