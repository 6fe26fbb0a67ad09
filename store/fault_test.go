package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpbridge/event"
)

var errInjected = errors.New("injected fault")

// failNth fails the n-th call of the seam, and with it the whole transaction if fatal.
type failNth struct {
	n, at int64
	err   error
	off   atomic.Bool
	point string
}

func (f *failNth) hook(point string) error {
	if f.off.Load() || f.point != "" && f.point != point {
		return nil
	}
	if atomic.AddInt64(&f.n, 1) == f.at {
		return f.err
	}
	return nil
}

func openDir(t *testing.T, dir string, fault func(string) error, change ...func(*Options)) (*Store, error) {
	t.Helper()
	o := Options{Dir: dir, InlineBody: 1024, KeepBodies: time.Hour}
	for _, f := range change {
		f(&o)
	}
	return open(t.Context(), o, fault)
}

// TestCase054_everyCallFails runs one story again and again, failing its first, second, third ...
// call of the engine or file system, until it runs clean. After each failure the store is opened
// anew: what was acknowledged must be there, what was not must be there wholly or not at all, and
// each recipient must have exactly one final event.
func TestCase054_everyCallFails(t *testing.T) {
	t.Parallel()
	template := t.TempDir() // creation has its own loop, TestCase109
	s, err := openDir(t, template, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	for name, err := range map[string]error{"operation": errInjected, "transaction": errInjectedFatal} {
		t.Run(name, func(t *testing.T) {
			step := int64(1)
			if name == "transaction" {
				step = 3 // the same calls, ended more harshly: a sample will do
			}
			if raceEnabled {
				step *= 7 // the engine is ten times slower then
			}
			for n := int64(1); ; n += step {
				f := &failNth{at: n, err: err}
				dir := filepath.Join(t.TempDir(), "d")
				if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
					t.Fatal(err)
				}
				story(t, dir, f)
				if f.n < n {
					if n < 60 {
						t.Fatalf("the story has only %d calls: the seam is not where it should be", n)
					}
					t.Logf("%d calls", f.n)
					return
				}
			}
		})
	}
}

func story(t *testing.T, dir string, f *failNth) {
	t.Helper()
	ctx := t.Context()
	bodies := map[string][]byte{}
	acked, started, settled, recorded := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	s, err := openDir(t, dir, f.hook)
	if err == nil {
		for i, size := range []int{100, 5000} {
			m := testMail(time.Now(), fmt.Sprintf("u%d@example.org", i), "second@example.org")
			id := m.Envelope.ID
			body := random(t, size)
			bodies[id] = body
			r, err := s.Begin(ctx)
			if err != nil {
				continue
			}
			if _, err := r.Write(body); err == nil {
				err = r.Commit(ctx, m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0, 1}}}, event.Event{ID: "q" + id, Kind: event.Queued})
				acked[id] = err == nil
			}
			r.Abort()
		}
		cs, err := s.Claim(ctx, "a", 10)
		if err == nil {
			for _, c := range cs {
				id := c.Job.MailID
				calls, err := s.Start(ctx, c, []Call{{Rcpts: []int{0}, Ref: "ref" + id}, {Rcpts: []int{1}}})
				if err != nil {
					continue
				}
				started[id] = true
				if _, err := s.Record(ctx, &RawRequest{Body: []byte("x")}, event.Event{ID: "w" + id, Account: "a", Kind: event.Delivered, Ref: "ref" + id}); err == nil {
					recorded[id] = true
				}
				r, ev := sent(c, 0, "pm"+id)
				settled[id] = s.Settle(ctx, Settlement{Claim: c, Calls: []CallResult{accepted(calls[0], "pm"+id), result(calls[1], CallAmbiguous)}, Rcpts: []RcptResult{r}, Events: []event.Event{ev}, NextAt: time.Now()}) == nil
			}
		}
		s.Close()
	}
	f.off.Store(true)
	s, err = openDir(t, dir, nil)
	if err != nil {
		t.Fatalf("call %d: reopen: %v", f.at, err)
	}
	defer s.Close()
	evs, _, err := s.Follow(ctx, "", 1000)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for _, e := range evs {
		count[string(e.Kind)+e.QueueID+e.Recipient]++
	}
	for id, body := range bodies {
		d, err := s.Detail(ctx, id)
		if errors.Is(err, ErrNotFound) && !acked[id] {
			continue
		}
		if err != nil {
			t.Fatalf("call %d: mail %s, acknowledged %v: %v", f.at, id, acked[id], err)
		}
		if !acked[id] {
			t.Fatalf("call %d: a mail that was refused is there", f.at)
		}
		b, err := s.Body(ctx, id)
		if err != nil {
			t.Fatalf("call %d: %v", f.at, err)
		}
		readBody(t, b, body)
		if len(d.Rcpts) != 2 || len(d.Jobs) != 1 || count["queued"+id] != 1 {
			t.Fatalf("call %d: half a mail: %+v", f.at, d)
		}
		if started[id] != (len(d.Calls) == 2) || len(d.Calls) != len(d.Attempts) {
			t.Fatalf("call %d: started %v, but %d calls, %d attempts", f.at, started[id], len(d.Calls), len(d.Attempts))
		}
		addr := d.Rcpts[0].Addr
		switch n := count["sent"+id+addr]; {
		case settled[id] && (n != 1 || d.Rcpts[0].State != RcptSent):
			t.Fatalf("call %d: settled, but %s with %d events", f.at, d.Rcpts[0].State, n)
		case n > 1 || (n == 1) != d.Rcpts[0].State.Final():
			t.Fatalf("call %d: %s with %d events", f.at, d.Rcpts[0].State, n)
		}
		if settled[id] && recorded[id] && count["delivered"+id+addr] != 1 {
			t.Fatalf("call %d: a recorded event was not adopted", f.at)
		}
	}
	blobs := 0
	for id, body := range bodies {
		if acked[id] && len(body) > 1024 {
			blobs++
		}
	}
	waitFor(t, func() bool { // orphans are swept in the background
		left, err := s.listBlobs()
		return err == nil && len(left) == blobs
	})
}

// TestCase054_powerCut copies the files of a busy store again and again, as a power cut would
// freeze them, and opens the copies. The database is copied before the blobs and the log last to first,
// so that what was acknowledged before the copy began must be in it.
func TestCase054_powerCut(t *testing.T) {
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var mu sync.Mutex
	acked := map[string][]byte{}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				m := testMail(time.Now(), "u@example.org")
				body := bytes.Repeat([]byte{byte(w), byte(i)}, 100+2000*(i%2))
				r, err := s.Begin(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = r.Write(body)
				if err := r.Commit(context.Background(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}); err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				acked[m.Envelope.ID] = body
				mu.Unlock()
			}
		})
	}
	for range 5 {
		var want map[string][]byte
		waitFor(t, func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) > 20 })
		mu.Lock()
		want, acked = acked, map[string][]byte{}
		mu.Unlock()
		snap := t.TempDir()
		// A checkpoint between the two copies would tear them apart, as no power cut can: hold it off with the writer.
		err := s.submit(s.ops, &op{ctx: t.Context(), done: make(chan error, 1), raw: func(context.Context, *sql.Conn) error {
			for _, name := range []string{fileName, fileName + "-wal"} {
				if err := copyFile(filepath.Join(dir, name), filepath.Join(snap, name)); err != nil {
					return err
				}
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.CopyFS(filepath.Join(snap, blobsName), os.DirFS(filepath.Join(dir, blobsName))); err != nil {
			t.Fatal(err)
		}
		// The power may fail in the middle of writing the next transaction.
		wal, err := os.OpenFile(filepath.Join(snap, fileName+"-wal"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = wal.Write(random(t, 3000))
		wal.Close()
		copied, err := openDir(t, snap, nil)
		if err != nil {
			t.Fatal(err)
		}
		for id, body := range want {
			b, err := copied.Body(t.Context(), id)
			if err != nil {
				t.Fatalf("acknowledged, and lost: %v", err)
			}
			readBody(t, b, body)
		}
		if err := copied.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	wg.Wait()
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// acceptOne commits one mail of the given size to a plain store.
func acceptOne(t *testing.T, s *Store, body []byte) (string, error) {
	t.Helper()
	m := testMail(time.Now(), "u@example.org")
	r, err := s.Begin(t.Context())
	if err != nil {
		return m.Envelope.ID, err
	}
	defer r.Abort()
	if _, err := r.Write(body); err != nil {
		return m.Envelope.ID, err
	}
	return m.Envelope.ID, r.Commit(t.Context(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}})
}

func TestCase056_corruptBody(t *testing.T) {
	damage := func(s *Store, sql string, args ...any) error {
		return s.do(context.Background(), 0, func(ctx context.Context, t *tx) error {
			_, err := t.exec(ctx, sql, args...)
			return err
		})
	}
	blobOf := func(s *Store, id string) string {
		var blob string
		if err := s.read().get(context.Background(), []any{&blob}, "SELECT blob FROM mails WHERE id = ?", id); err != nil {
			t.Fatal(err)
		}
		return s.blobPath(blob)
	}
	for name, c := range map[string]struct {
		size  int
		spoil func(s *Store, id string) error
	}{
		"row, one bit": {500, func(s *Store, id string) error {
			return damage(s, "UPDATE bodies SET data = zeroblob(1) || substr(data, 2) WHERE mail_id = ?", id)
		}},
		"row cut":     {500, func(s *Store, id string) error { return damage(s, "UPDATE bodies SET data = substr(data, 2)") }},
		"row missing": {500, func(s *Store, id string) error { return damage(s, "DELETE FROM bodies") }},
		"file, one bit": {9000, func(s *Store, id string) error {
			f, err := os.OpenFile(blobOf(s, id), os.O_RDWR, 0)
			if err != nil {
				return err
			}
			b := make([]byte, 1)
			_, _ = f.ReadAt(b, 4000)
			b[0] ^= 1
			_, err = f.WriteAt(b, 4000)
			return errors.Join(err, f.Close())
		}},
		"file cut":     {9000, func(s *Store, id string) error { return os.Truncate(blobOf(s, id), 8999) }},
		"file longer":  {9000, func(s *Store, id string) error { return os.Truncate(blobOf(s, id), 9001) }},
		"file missing": {9000, func(s *Store, id string) error { return os.Remove(blobOf(s, id)) }},
		"file is a link": {9000, func(s *Store, id string) error {
			p := blobOf(s, id)
			return errors.Join(os.Rename(p, p+"x"), os.Symlink(p+"x", p))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := openDir(t, emptyStore(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			id, err := acceptOne(t, s, random(t, c.size))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(s, id); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := s.Body(t.Context(), id); !errors.Is(err, ErrCorrupt) {
					t.Fatalf("got %v", err)
				}
			}
			wantQuarantined(t, s, id)
		})
	}
	t.Run("envelope", func(t *testing.T) {
		s, err := openDir(t, emptyStore(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		id, err := acceptOne(t, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		other, err := acceptOne(t, s, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(s, "UPDATE mails SET envelope = replace(envelope, 'u@example', 'v@example') WHERE id = ?", id); err != nil {
			t.Fatal(err)
		}
		cs, err := s.Claim(t.Context(), "a", 5)
		if err != nil || len(cs) != 1 || cs[0].Job.MailID != other {
			t.Fatalf("got %v %v", cs, err)
		}
		wantQuarantined(t, s, id)
		if err := s.Delete(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		// Damage while a call is in flight: what the ESP did is recorded all the same.
		calls, err := s.Start(t.Context(), cs[0], []Call{{Rcpts: []int{0}}})
		if err != nil {
			t.Fatal(err)
		}
		if err := damage(s, "UPDATE mails SET envelope = '{' WHERE id = ?", other); err != nil {
			t.Fatal(err)
		}
		if err := s.Settle(t.Context(), Settlement{Claim: cs[0], Calls: []CallResult{result(calls[0], CallAmbiguous)}, NextAt: time.Now().Add(time.Hour)}); err != nil {
			t.Fatal(err)
		}
		if n, err := s.Record(t.Context(), nil, event.Event{ID: "e", Account: "a", Kind: event.Delivered, Ref: calls[0].Ref}); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		if d, err := s.Detail(t.Context(), other); err != nil || d.Rcpts[0].State != RcptSent || d.Rcpts[0].Last != event.Delivered {
			t.Fatalf("got %+v %v", d, err)
		}
	})
}

func wantQuarantined(t *testing.T, s *Store, id string) {
	t.Helper()
	d, err := s.Detail(t.Context(), id)
	if err != nil || d.Mail.State != MailHeld || d.Mail.HoldReason != "corrupt" || len(d.Events) != 1 || d.Events[0].Kind != event.Deferred || !strings.Contains(d.Events[0].Diagnostic, "checksum") {
		t.Fatalf("got %+v %v", d, err)
	}
	if cs, err := s.Claim(t.Context(), "a", 1); len(cs) != 0 && cs[0].Job.MailID == id || err != nil {
		t.Fatalf("got %v %v", cs, err)
	}
}

func TestCase057_noSpace(t *testing.T) {
	for _, point := range []string{"create", "write", "mkdir", "fsync", "syncdir", "exec", "commit"} {
		t.Run(point, func(t *testing.T) {
			f := &failNth{at: 1, err: fmt.Errorf("write: %w", syscall.ENOSPC), point: point}
			f.off.Store(true)
			s, err := openDir(t, emptyStore(t), f.hook)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			f.off.Store(false)
			if _, err := acceptOne(t, s, random(t, 5000)); !errors.Is(err, ErrNoSpace) {
				t.Fatalf("got %v", err)
			}
			if left, err := s.listBlobs(); err != nil || len(left) != 0 {
				t.Fatalf("left over: %v %v", left, err)
			}
			if _, err := acceptOne(t, s, random(t, 5000)); err != nil {
				t.Fatalf("with space again: %v", err)
			}
		})
	}
	t.Run("known before", func(t *testing.T) {
		s, err := openDir(t, emptyStore(t), nil, func(o *Options) { o.MinFree = 1 << 60 })
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Begin(t.Context()); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("got %v", err)
		}
		if err := s.Ping(t.Context()); !errors.Is(err, ErrNoSpace) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("the engine's own", func(t *testing.T) {
		s, err := openDir(t, emptyStore(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		err = s.submit(s.ops, &op{ctx: t.Context(), done: make(chan error, 1), raw: func(ctx context.Context, c *sql.Conn) error {
			var n int
			return c.QueryRowContext(ctx, "PRAGMA max_page_count = 100").Scan(&n)
		}})
		if err != nil {
			t.Fatal(err)
		}
		var got error
		var acked []string
		for range 2000 {
			id, err := acceptOne(t, s, random(t, 1000))
			if got = err; err != nil {
				break
			}
			acked = append(acked, id)
		}
		if !errors.Is(got, ErrNoSpace) {
			t.Fatalf("got %v", got)
		}
		for _, id := range acked {
			if _, err := s.Detail(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestBatch: one caller's failure is his alone, a failed COMMIT is everybody's.
func TestBatch(t *testing.T) {
	run := func(t *testing.T, f *failNth, spoil error) (errs []error, there int) {
		s, err := openDir(t, emptyStore(t), f.hook)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		hold, entered := make(chan struct{}), make(chan struct{})
		go func() {
			_ = s.submit(s.ops, &op{ctx: context.Background(), done: make(chan error, 1), raw: func(context.Context, *sql.Conn) error {
				close(entered)
				<-hold
				return nil
			}})
		}()
		<-entered
		const n = 10
		errs = make([]error, n)
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() {
				errs[i] = s.do(context.Background(), 0, func(ctx context.Context, t *tx) error {
					if err := t.setCursor(ctx, fmt.Sprint("c", i), "x"); err != nil {
						return err
					}
					if i == 3 {
						if spoil == nil {
							panic("boom")
						}
						return spoil
					}
					return nil
				})
			})
		}
		waitFor(t, func() bool { return len(s.ops) == n })
		f.off.Store(false)
		close(hold)
		wg.Wait()
		if err := s.read().get(t.Context(), []any{&there}, "SELECT count(*) FROM cursors"); err != nil {
			t.Fatal(err)
		}
		return errs, there
	}
	newFault := func(at int64) *failNth {
		f := &failNth{at: at, err: errInjected, point: "commit"}
		f.off.Store(true)
		return f
	}
	for name, spoil := range map[string]error{"error": errInjected, "panic": nil} {
		t.Run(name, func(t *testing.T) {
			errs, there := run(t, newFault(-1), spoil)
			for i, err := range errs {
				if (err != nil) != (i == 3) {
					t.Errorf("operation %d: %v", i, err)
				}
			}
			if there != 9 {
				t.Errorf("got %d rows", there)
			}
		})
	}
	for name, f := range map[string]*failNth{"commit": newFault(1), "transaction": newFault(-1)} {
		t.Run(name, func(t *testing.T) {
			spoil := errInjected
			if name == "transaction" {
				spoil = errInjectedFatal
			}
			errs, there := run(t, f, spoil)
			for i, err := range errs {
				if err == nil {
					t.Errorf("operation %d was acknowledged", i)
				}
			}
			if there != 0 {
				t.Errorf("got %d rows", there)
			}
		})
	}
}

func TestCase062_locked(t *testing.T) {
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = openDir(t, dir, nil)
	if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Fatalf("got %v", err)
	}
	id, err := acceptOne(t, s, random(t, 5000))
	if err != nil {
		t.Fatal(err)
	}
	ro, err := openDir(t, dir, nil, func(o *Options) { o.ReadOnly = true })
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if _, err := ro.Detail(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	b, err := ro.Body(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	if err := ro.Hold(t.Context(), id, "x"); err == nil {
		t.Fatal("written to a store opened for reading")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Ping(t.Context()); err == nil {
		t.Fatal("ping of a closed store")
	}
	if s, err = openDir(t, dir, nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := openDir(t, t.TempDir(), nil, func(o *Options) { o.ReadOnly = true }); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}

func TestCase064_foreignFiles(t *testing.T) {
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	id, err := acceptOne(t, s, random(t, 5000))
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	outside := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(outside, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	name := "0123456789abcdefghjkmnpqzz"
	for _, d := range []string{"blobs/zz", "blobs/odd-dir"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range []string{"blobs/zz/readme", "blobs/zz/" + name, "blobs/odd-dir/x", "spool/other", "spool/spool-123"} {
		if err := os.WriteFile(filepath.Join(dir, p), []byte("y"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(dir, "blobs/zz/0123456789abcdefghjkmnqqzz")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	var log lines
	s, err = openDir(t, dir, nil, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	gone := func(p string) bool {
		_, err := os.Lstat(filepath.Join(dir, p))
		return errors.Is(err, fs.ErrNotExist)
	}
	waitFor(t, func() bool { return gone("blobs/zz/" + name) })
	if !gone("spool/spool-123") || gone("spool/other") || gone("blobs/zz/readme") || gone("blobs/odd-dir/x") {
		t.Error("the wrong files were swept")
	}
	if _, err := os.Stat(outside); err != nil {
		t.Error("a link was followed")
	}
	if n := log.count("level=WARN msg=queue.foreign "); n != 4 {
		t.Errorf("got %d foreign files reported, want 4", n)
	}
	b, err := s.Body(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
}

func TestFilesAndPragmas(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "not", "there", "yet")
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := acceptOne(t, s, random(t, 5000)); err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", path, fi.Mode().Perm(), want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	err = s.submit(s.ops, &op{ctx: t.Context(), done: make(chan error, 1), raw: func(ctx context.Context, c *sql.Conn) error {
		for pragma, want := range map[string]string{"journal_mode": "wal", "synchronous": "2", "auto_vacuum": "2", "foreign_keys": "1", "secure_delete": "1", "journal_size_limit": "67108864"} {
			var got string
			if err := c.QueryRowContext(ctx, "PRAGMA "+pragma).Scan(&got); err != nil || got != want {
				t.Errorf("%s: got %s, want %s (%v)", pragma, got, want, err)
			}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
}

func TestCase108_newerSchema(t *testing.T) {
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = s.do(t.Context(), 0, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "INSERT INTO schema_version (version_id, is_applied) VALUES (99, 1)")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	before, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil {
		t.Fatal(err)
	}
	for _, ro := range []bool{false, true} {
		if _, err = openDir(t, dir, nil, func(o *Options) { o.ReadOnly = ro }); err == nil || !strings.Contains(err.Error(), "version 99") {
			t.Fatalf("got %v", err)
		}
	}
	after, err := os.ReadFile(filepath.Join(dir, fileName))
	if err != nil || !bytes.Equal(before, after) {
		t.Fatalf("the database was touched (%v)", err)
	}
}

// TestCase109_interruptedMigration fails each call of the creation in turn: the next start goes on.
func TestCase109_interruptedMigration(t *testing.T) {
	for n := int64(1); ; n++ {
		dir := filepath.Join(t.TempDir(), "new")
		f := &failNth{at: n, err: errInjected}
		s, err := openDir(t, dir, f.hook)
		if err == nil {
			s.Close()
			if f.n < n {
				return
			}
		} else if !errors.Is(err, errInjected) {
			t.Fatalf("call %d: %v", n, err)
		}
		if s, err = openDir(t, dir, nil); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		if _, err := acceptOne(t, s, random(t, 2000)); err != nil {
			t.Fatalf("call %d: %v", n, err)
		}
		s.Close()
	}
}

func TestMalformedDatabase(t *testing.T) {
	for name, spoil := range map[string]func(b []byte) []byte{
		"no database": func([]byte) []byte { return bytes.Repeat([]byte("junk"), 4096) },
		"zeroed page": func(b []byte) []byte { copy(b[4096:8192], make([]byte, 4096)); return b },
		"cut":         func(b []byte) []byte { return b[:len(b)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, err := openDir(t, dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
			path := filepath.Join(dir, fileName)
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := openDir(t, dir, nil); err == nil || !strings.Contains(err.Error(), "A damaged database") {
				t.Fatalf("got %v", err)
			}
		})
	}
}

// TestSchemaIsDocumented: operators read the database with the sqlite3 shell.
func TestSchemaIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/schema.md")
	if err != nil {
		t.Fatal(err)
	}
	s, err := openDir(t, emptyStore(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	err = s.read().each(t.Context(), "SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' AND m.name <> 'schema_version'", nil,
		func(scan func(...any) error) error {
			var table, column string
			if err := scan(&table, &column); err != nil {
				return err
			}
			_, section, ok := strings.Cut(string(page), "\n## "+table)
			section, _, _ = strings.Cut(section, "\n## ")
			if !ok {
				t.Errorf("docs/schema.md does not tell of table %s", table)
			}
			if !strings.Contains(section, "`"+column+"`") {
				t.Errorf("docs/schema.md does not tell of %s, column %s", table, column)
			}
			return nil
		})
	if err != nil {
		t.Fatal(err)
	}
}

// TestNoScans asks SQLite how it runs the statements that must stay quick however much is queued:
// none may read a whole table, and what is due comes out of its index already sorted.
func TestNoScans(t *testing.T) {
	f := newFixture(t, sqliteEngine)
	for name, query := range map[string]string{
		"claim":       "SELECT id FROM jobs WHERE account = ? AND held = 0 AND next_at <= ? ORDER BY next_at, id LIMIT ?",
		"next due":    "SELECT id, next_at FROM jobs WHERE account = ? AND held = 0 ORDER BY next_at, id LIMIT ?",
		"recipients":  "SELECT n FROM recipients WHERE job_id <> 0 AND job_id = ? ORDER BY n",
		"calls":       "SELECT id FROM calls WHERE mail_id = ? AND job_id = ? AND state IN ('open', 'ambiguous', 'retry') ORDER BY id",
		"stale":       "SELECT id, mail_id FROM jobs WHERE generation < ? ORDER BY generation, id LIMIT ?",
		"stats":       "SELECT state, count(*), min(received) FROM mails WHERE finished = 0 AND state IN ('queued', 'held') GROUP BY state",
		"flying":      "SELECT 1 FROM calls WHERE account = ? AND state IN ('open', 'ambiguous') LIMIT 1",
		"provider":    "SELECT mail_id, n, account FROM recipients WHERE provider_message_id <> '' AND provider_message_id = ? ORDER BY mail_id, n",
		"provider 2":  "SELECT id FROM calls WHERE provider_message_id <> '' AND provider_message_id = ? ORDER BY id",
		"ref":         "SELECT " + callColumns + " FROM calls WHERE " + byRef,
		"event id":    "SELECT count(*) FROM events WHERE id = ? AND revision >= ?",
		"follow":      fmt.Sprintf(sqliteDialect.follow, "data"),
		"mail events": "SELECT data FROM events WHERE mail_id <> '' AND mail_id = ? ORDER BY seq",
		"bodies":      "SELECT id FROM mails WHERE finished > 0 AND body <> 'purged' AND failed = ? AND finished <= ? ORDER BY finished LIMIT ?",
		"ledger":      "SELECT id FROM mails WHERE finished > 0 AND finished <= ? ORDER BY finished LIMIT ?",
		"deleted":     "SELECT id FROM mails WHERE finished = 0 AND state = 'deleted' LIMIT 100",
		"message id":  "SELECT id FROM mails WHERE message_id <> '' AND message_id = ?",
		"wire id":     "SELECT mail_id FROM recipients WHERE wire_message_id <> '' AND wire_message_id = ?",
		"sender":      "SELECT id FROM mails WHERE sender_key <> '' AND sender_key = ?",
		"attempts":    "SELECT call_id FROM attempts WHERE call_id IN (SELECT id FROM calls WHERE mail_id = ?)",
		"blob":        "SELECT count(*) FROM mails WHERE blob <> '' AND blob = ?",
		"finish":      "SELECT count(*) FROM (SELECT 1 FROM recipients WHERE mail_id = ? AND state IN ('queued', 'in_flight') LIMIT 1) AS r",
		"recover":     "UPDATE calls SET state = 'ambiguous' WHERE state IN ('open', 'ambiguous') AND state = 'open'",
		"withheld":    "SELECT data FROM withheld WHERE provider_message_id = ? AND account = ? ORDER BY received",
	} {
		var args []any
		for range strings.Count(query, "?") {
			args = append(args, 1)
		}
		err := f.read().each(t.Context(), "EXPLAIN QUERY PLAN "+query, args, func(scan func(...any) error) error {
			var id, parent, x int
			var detail string
			if err := scan(&id, &parent, &x, &detail); err != nil {
				return err
			}
			indexScan := strings.Contains(detail, "USING COVERING INDEX") || strings.Contains(detail, "USING INDEX calls_flying")
			if strings.HasPrefix(detail, "SCAN") && !strings.Contains(detail, "SCAN (subquery") && !strings.HasPrefix(detail, "SCAN r") && !indexScan || strings.Contains(detail, "USE TEMP B-TREE FOR ORDER BY") && (name == "claim" || name == "next due" || name == "stale" || name == "follow") {
				t.Errorf("%s: %s", name, detail)
			}
			return nil
		})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// lines is a log that tests look into.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), text)
}

// TestLog: a new store is created, not migrated, and a damaged mail is an error line.
func TestLog(t *testing.T) {
	var log lines
	dir := t.TempDir()
	open := func() *Store {
		s, err := openDir(t, dir, nil, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := open()
	s.Close()
	s = open()
	defer s.Close()
	if c, m := log.count("level=INFO msg=queue.created"), log.count("queue.migrated"); c != 1 || m != 0 {
		t.Errorf("a store opened twice was created %d times, migrated %d times", c, m)
	}
	if err := s.quarantine(t.Context(), "nobody", "a test"); !errors.Is(err, ErrNotFound) {
		t.Errorf("quarantine of nothing: %v", err)
	}
	if n := log.count(`level=ERROR msg=queue.corrupt id=nobody reason="a test"`); n != 1 {
		t.Errorf("%d error lines", n)
	}
}
