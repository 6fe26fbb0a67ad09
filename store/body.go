package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// Where a body is (column mails.body).
const (
	bodyRows   = "rows"   // in table bodies
	bodyFile   = "file"   // in the file named by mails.blob, below blobs/
	bodyPurged = "purged" // gone
)

// memBody is a body in memory, fileBody one in a file.
type (
	memBody  struct{ *bytes.Reader }
	fileBody struct {
		*os.File
		size int64
	}
)

func (memBody) Close() error      { return nil }
func (b fileBody) Size() int64    { return b.size }
func newMemBody(b []byte) memBody { return memBody{bytes.NewReader(b)} }

// receipt collects a mail in memory up to the limit of inline bodies, then in a file: with
// SQLite the file is the blob itself, with PostgreSQL a spool file without a name.
type receipt struct {
	s    *Store
	buf  []byte
	sum  hash.Hash
	size int64
	f    *os.File
	blob string // name below blobs/ of f, "" for a spool file
	err  error  // of an earlier write: the mail cannot be committed any more
	done bool
}

// Begin starts to receive a mail. It returns ErrNoSpace when the disk is known to be full.
func (s *Store) Begin(ctx context.Context) (Receipt, error) {
	if s.o.ReadOnly {
		return nil, errReadOnly
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := s.Space(); err != nil {
		return nil, err
	}
	return &receipt{s: s, sum: sha256.New()}, nil
}

func (r *receipt) Write(p []byte) (int, error) {
	if r.done {
		return 0, errors.New("store: write after the end of the mail")
	}
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.write(p)
	if err != nil {
		r.err = mapError(err)
	}
	r.sum.Write(p[:n])
	r.size += int64(n)
	return n, r.err
}

func (r *receipt) write(p []byte) (int, error) {
	if r.f == nil {
		if r.size+int64(len(p)) <= r.s.o.InlineBody {
			r.buf = append(r.buf, p...)
			return len(p), nil
		}
		if err := r.spill(); err != nil {
			return 0, err
		}
	}
	if err := r.s.inject("write"); err != nil {
		return 0, err
	}
	return r.f.Write(p)
}

// spill moves what is there from memory to a file.
func (r *receipt) spill() error {
	if err := r.s.inject("create"); err != nil {
		return err
	}
	if r.s.d.shared {
		f, err := r.s.spoolFile()
		if err != nil {
			return err
		}
		r.f = f
	} else {
		name := envelope.NewID(r.s.now())
		blob := filepath.Join(name[len(name)-2:], name)
		path := r.s.blobPath(blob)
		if err := r.s.mkdir(filepath.Dir(path)); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		r.f, r.blob = f, blob
	}
	if err := r.s.inject("write"); err != nil {
		return err
	}
	_, err := r.f.Write(r.buf)
	r.buf = nil
	return err
}

// SpoolFile returns a file without a name below the data directory, ErrNoSpace when the disk is known to be full.
func (s *Store) SpoolFile() (*os.File, error) {
	if err := s.Space(); err != nil {
		return nil, err
	}
	return s.spoolFile()
}

// spoolFile returns a file without a name: whatever happens, nothing is left of it.
func (s *Store) spoolFile() (*os.File, error) {
	f, err := os.CreateTemp(filepath.Join(s.o.Dir, spoolName), "spool-*")
	if err != nil && s.o.ReadOnly {
		f, err = os.CreateTemp("", "smtpbridge-*")
	}
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Store) blobPath(blob string) string { return filepath.Join(s.o.Dir, blobsName, blob) }

// bodyView shares the receipt's file: closing it does not end the receipt.
type bodyView struct{ *io.SectionReader }

func (bodyView) Close() error { return nil }

func (r *receipt) Body() (Body, error) {
	if r.err != nil {
		return nil, r.err
	}
	if r.done {
		return nil, errors.New("store: the mail is no longer being received")
	}
	if r.f == nil {
		return newMemBody(r.buf), nil
	}
	return bodyView{io.NewSectionReader(r.f, 0, r.size)}, nil
}

func (r *receipt) Abort() {
	if r.done {
		return
	}
	r.done = true
	r.drop()
}

func (r *receipt) drop() {
	r.buf = nil
	if r.f == nil {
		return
	}
	_ = r.f.Close()
	if r.blob != "" {
		_ = os.Remove(r.s.blobPath(r.blob)) // else the sweep at the next start finds it
	}
	r.f = nil
}

// Commit is described at Receipt.
func (r *receipt) Commit(ctx context.Context, m Mail, jobs []NewJob, evs ...event.Event) error {
	return r.commit(ctx, m, jobs, evs, nil)
}

func (r *receipt) commit(ctx context.Context, m Mail, jobs []NewJob, evs []event.Event, more func(context.Context, *tx) error) error {
	if r.done {
		return errors.New("store: the mail was committed or aborted before")
	}
	if r.err != nil {
		return r.err
	}
	n, err := r.s.newMail(m, jobs, evs)
	if err != nil {
		return err
	}
	n.mail.SHA256 = hex.EncodeToString(r.sum.Sum(nil))
	n.mail.Envelope.Size = r.size
	n.body, n.blob, n.mem = bodyRows, r.blob, r.buf
	size := int(r.size)
	if r.blob != "" {
		n.body, size = bodyFile, 0
		if err := r.flush(); err != nil {
			r.err = mapError(err) // a file whose fsync failed is never trusted again
			return r.err
		}
	}
	err = r.s.accept(ctx, size+len(n.mail.Header), func(ctx context.Context, t *tx) error {
		if err := t.insertMail(ctx, n); err != nil {
			return err
		}
		if n.body == bodyRows {
			if err := r.insertRows(ctx, t, m.Envelope.ID); err != nil {
				return err
			}
		}
		if err := t.insertJobs(ctx, n); err != nil {
			return err
		}
		if more != nil {
			return more(ctx, t)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.done = true
	r.buf = nil
	if r.f != nil {
		_ = r.f.Close()
	}
	return nil
}

// flush makes the blob durable: content first, then its name.
func (r *receipt) flush() error {
	if err := r.s.inject("fsync"); err != nil {
		return err
	}
	if err := r.f.Sync(); err != nil {
		return err
	}
	return r.s.syncDir(filepath.Dir(r.s.blobPath(r.blob)))
}

func (r *receipt) insertRows(ctx context.Context, t *tx, id string) error {
	const insert = "INSERT INTO bodies (mail_id, n, data) VALUES (?, ?, ?)"
	if r.f == nil {
		body := r.buf
		if body == nil {
			body = []byte{}
		}
		_, err := t.exec(ctx, insert, id, 0, body)
		return err
	}
	chunk := make([]byte, r.s.d.chunk)
	for n, off := 0, int64(0); off < r.size; n++ {
		k, err := r.f.ReadAt(chunk[:min(int64(len(chunk)), r.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) || k == 0 {
			return fmt.Errorf("read spool: %w", err)
		}
		if _, err := t.exec(ctx, insert, id, n, chunk[:k]); err != nil {
			return err
		}
		off += int64(k)
	}
	return nil
}

// Body opens the body of a mail. The whole of it is read and its checksum compared before a
// byte is given out; a mail that fails is held with reason "corrupt", an event tells, and the
// answer is ErrCorrupt. A purged body, or an unknown mail, is ErrNotFound.
func (s *Store) Body(ctx context.Context, id string) (Body, error) {
	var where, blob, sum string
	var size int64
	var first []byte // chunk, mostly the whole body
	err := s.read().get(ctx, []any{&where, &blob, &sum, &size, &first},
		"SELECT m.body, m.blob, m.sha256, m.size, b.data FROM mails m LEFT JOIN bodies b ON b.mail_id = m.id AND b.n = 0 WHERE m.id = ?", id)
	if err != nil {
		return nil, fmt.Errorf("body of %s: %w", id, err)
	}
	var b Body
	switch where {
	case bodyFile:
		b, err = s.openBlob(blob, sum, size)
	case bodyRows:
		b, err = s.openRows(ctx, id, sum, size, first)
	default:
		return nil, fmt.Errorf("body of %s: %w", id, ErrNotFound)
	}
	if err == nil {
		return b, nil
	}
	err = fmt.Errorf("body of %s: %w", id, err)
	if errors.Is(err, ErrCorrupt) || errors.Is(err, errMalformed) {
		// Purged between the two statements is not damage.
		var now string
		if gerr := s.read().get(ctx, []any{&now}, "SELECT body FROM mails WHERE id = ?", id); errors.Is(gerr, ErrNotFound) || now == bodyPurged {
			return nil, fmt.Errorf("body of %s: %w", id, ErrNotFound)
		}
		if !errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("%w: %w", ErrCorrupt, err)
		}
		if !s.o.ReadOnly {
			if qerr := s.quarantine(ctx, id, "the stored body fails its checksum"); qerr != nil {
				return nil, errors.Join(err, qerr)
			}
		}
	}
	return nil, err
}

func (s *Store) openBlob(blob, sum string, size int64) (Body, error) {
	if strings.Contains(blob, "..") {
		return nil, ErrCorrupt
	}
	f, err := os.OpenFile(s.blobPath(blob), os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ELOOP):
		return nil, fmt.Errorf("%w: its file is missing", ErrCorrupt)
	case err != nil:
		return nil, err
	}
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil && !errors.Is(err, syscall.EIO) {
		f.Close()
		return nil, err
	}
	if err != nil || n != size || hex.EncodeToString(h.Sum(nil)) != sum {
		f.Close()
		return nil, ErrCorrupt
	}
	return fileBody{f, size}, nil
}

func (s *Store) openRows(ctx context.Context, id, sum string, size int64, first []byte) (Body, error) {
	if int64(len(first)) == size && size <= s.o.InlineBody {
		if got := sha256.Sum256(first); hex.EncodeToString(got[:]) != sum {
			return nil, ErrCorrupt
		}
		return newMemBody(first), nil
	}
	h := sha256.New()
	var mem []byte
	var f *os.File
	got := int64(0)
	for n := 0; got < size || n == 0; n++ {
		var chunk []byte
		err := s.read().get(ctx, []any{&chunk}, "SELECT data FROM bodies WHERE mail_id = ? AND n = ?", id, n)
		if errors.Is(err, ErrNotFound) {
			break
		}
		if err == nil && f == nil && size > int64(len(chunk)) && size > s.o.InlineBody {
			f, err = s.spoolFile()
		}
		if err == nil {
			if f != nil {
				_, err = f.Write(chunk)
			} else {
				mem = append(mem, chunk...)
			}
		}
		if err != nil {
			if f != nil {
				f.Close()
			}
			return nil, mapError(err)
		}
		h.Write(chunk)
		got += int64(len(chunk))
	}
	if got != size || hex.EncodeToString(h.Sum(nil)) != sum {
		if f != nil {
			f.Close()
		}
		return nil, ErrCorrupt
	}
	if f != nil {
		return fileBody{f, size}, nil
	}
	return newMemBody(mem), nil
}
