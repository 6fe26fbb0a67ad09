package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"syscall"

	"modernc.org/sqlite"
)

// Backup writes a copy of a running SQLite store to dir, which must be empty or not exist: the
// database first, in steps between which others write, then the blobs it names. A blob purged meanwhile
// stays for blobGrace. In the copy every waiting mail is held, so that a bridge started on it
// sends nothing a second time by surprise: release what should go.
func (s *Store) Backup(ctx context.Context, dir string) error {
	if s.d.shared {
		return errors.New("store: back up a PostgreSQL store with pg_dump")
	}
	if s.o.ReadOnly {
		return errReadOnly
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := s.mkdir(dir); err != nil {
		return fmt.Errorf("backup: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err == nil && len(entries) > 0 {
		err = fmt.Errorf("%s is not empty", dir)
	}
	if err == nil {
		err = s.backup(ctx, dir)
	}
	if err != nil {
		return fmt.Errorf("backup: %w", mapError(err))
	}
	return nil
}

func (s *Store) backup(ctx context.Context, dir string) error {
	path := filepath.Join(dir, fileName)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	var b *sqlite.Backup
	raw := func(f func(dc any) error) error {
		return s.submit(s.ops, &op{ctx: ctx, done: make(chan error, 1), raw: func(_ context.Context, conn *sql.Conn) error { return conn.Raw(f) }})
	}
	err = raw(func(dc any) error {
		src, ok := dc.(interface {
			NewBackup(string) (*sqlite.Backup, error)
		})
		if !ok {
			return errors.New("the driver has no backup")
		}
		var err error
		b, err = src.NewBackup(path)
		return err
	})
	if err != nil {
		return err
	}
	// Steps go through the writer's own connection: what it writes between two steps goes into the copy too.
	for more := true; more && err == nil; {
		err = raw(func(any) error {
			var err error
			more, err = b.Step(1000)
			return err
		})
	}
	ferr := s.submit(s.ops, &op{ctx: context.WithoutCancel(ctx), done: make(chan error, 1), raw: func(context.Context, *sql.Conn) error { return b.Finish() }})
	if err = errors.Join(err, ferr); err != nil {
		return err
	}
	blobs, err := holdAll(ctx, path)
	if err != nil {
		return err
	}
	for _, blob := range blobs {
		to := filepath.Join(dir, blobsName, blob)
		if err := s.mkdir(filepath.Dir(to)); err != nil {
			return err
		}
		if err := copyDurable(s.blobPath(blob), to); err != nil {
			return err
		}
		if err := s.syncDir(filepath.Dir(to)); err != nil {
			return err
		}
	}
	return s.syncDir(dir)
}

// holdAll holds the waiting mails of a copy and returns the blobs it names.
func holdAll(ctx context.Context, path string) (blobs []string, err error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: "_synchronous=FULL&_foreign_keys=1"}).String())
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	for _, q := range []string{
		"UPDATE jobs SET held = 1",
		"UPDATE mails SET state = 'held', hold_reason = 'restored from a backup' WHERE finished = 0 AND state = 'queued'",
	} {
		if _, err := db.ExecContext(ctx, q); err != nil {
			return nil, err
		}
	}
	rows, err := db.QueryContext(ctx, "SELECT blob FROM mails WHERE blob <> ''")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var b string
		if err := rows.Scan(&b); err != nil {
			return nil, err
		}
		blobs = append(blobs, b)
	}
	return blobs, rows.Err()
}

func copyDurable(from, to string) error {
	in, err := os.OpenFile(from, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err = io.Copy(out, in); err == nil {
		err = out.Sync()
	}
	return errors.Join(err, out.Close())
}
