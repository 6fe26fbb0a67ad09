package store

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// damagedStore makes a store with mails of several sizes and returns its directory and the bodies.
func damagedStore(t *testing.T) (string, map[string][]byte) {
	t.Helper()
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	bodies := map[string][]byte{}
	for i := range 120 {
		body := random(t, 300+40*i)
		if i%40 == 0 {
			body = random(t, 200_000) // a file
		}
		id, err := acceptOne(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		bodies[id] = body
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, bodies
}

func copyOf(t *testing.T, src string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(src)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Whatever is damaged: what can be read is in the new database, whole and held, the rest is named, and the old one is kept.
func TestSalvage(t *testing.T) {
	src, bodies := damagedStore(t)
	t.Run("refuses", func(t *testing.T) { testSalvageRefuses(t, copyOf(t, src)) })
	t.Run("recipients and jobs", func(t *testing.T) { testSalvagedMailIsSent(t, copyOf(t, src)) })
	original, err := os.ReadFile(filepath.Join(src, fileName))
	if err != nil {
		t.Fatal(err)
	}
	pages := len(original) / 4096
	zero := func(b []byte, page int) { clear(b[(page-1)*4096 : page*4096]) }
	garbage := func(b []byte, page int) { copy(b[(page-1)*4096:page*4096], bytes.Repeat([]byte{0xa5, 0x0d, 7}, 1365)) }
	for _, tt := range []struct {
		name   string
		damage func([]byte) []byte
		keep   int // at least so many mails of the 120 come back
	}{
		{"the first page", func(b []byte) []byte { zero(b, 1); return b }, 120},
		{"a foreign first page", func(b []byte) []byte { garbage(b, 1); return b }, 120},
		// The file's first pages are the roots of tables and indexes, the mails are in the last thirty.
		{"the end is missing", func(b []byte) []byte { return b[:(pages-12)*4096] }, 40},
		{"every fifth page", func(b []byte) []byte {
			for p := pages - 2; p > pages-25; p -= 5 {
				zero(b, p)
			}
			return b
		}, 60},
		{"five pages in a row", func(b []byte) []byte {
			for p := pages - 15; p < pages-10; p++ {
				garbage(b, p)
			}
			return b
		}, 60},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := copyOf(t, src)
			path := filepath.Join(dir, fileName)
			broken := tt.damage(bytes.Clone(original))
			if err := os.WriteFile(path, broken, 0o600); err != nil {
				t.Fatal(err)
			}
			if s, err := openDir(t, dir, nil); !errors.Is(err, errMalformed) {
				if err == nil {
					s.Close()
				}
				t.Fatalf("the bridge would start on it: %v", err)
			}
			r, err := Salvage(t.Context(), Options{Dir: dir, MinFree: -1}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if kept, err := os.ReadFile(filepath.Join(r.Damaged, fileName)); err != nil || !bytes.Equal(kept, broken) {
				t.Errorf("the old database was not kept as it was: %v", err)
			}
			s, err := openDir(t, dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			whole := checkSalvaged(t, s, r, bodies)
			if whole < tt.keep {
				t.Errorf("%d of %d mails came back whole, want at least %d: %+v", whole, len(bodies), tt.keep, r)
			}
			t.Logf("%d of %d mails whole, %d named as lost, %d held", whole, len(bodies), len(r.Lost), r.Held)
		})
	}
}

// checkSalvaged looks at every mail there was and counts those that came back whole.
func checkSalvaged(t *testing.T, s *Store, r *Salvaged, bodies map[string][]byte) (whole int) {
	t.Helper()
	claimed, err := s.Claim(t.Context(), "a", 10)
	if err != nil || !r.Complete() && len(claimed) > 0 {
		t.Errorf("a store with losses sends at once: %v %v", claimed, err)
	}
	for id, want := range bodies {
		d, err := s.Detail(t.Context(), id)
		if errors.Is(err, ErrNotFound) || errors.Is(err, ErrCorrupt) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Body(t.Context(), id)
		if errors.Is(err, ErrCorrupt) {
			continue // held, never sent half
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
		if err := errors.Join(err, b.Close()); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: a body that is not the one received", id)
		}
		whole++
		if len(d.Rcpts) != len(d.Mail.Envelope.Rcpts) || len(d.Jobs) == 0 {
			t.Errorf("%s waits without recipients or job: %+v", id, d)
		}
		if slices.ContainsFunc(r.Lost, func(m LostMail) bool { return m.ID == id }) {
			t.Errorf("%s is said to be lost, but is there", id)
		}
	}
	return whole
}

// Mails that come back without their recipients' records are delivered once released.
func testSalvagedMailIsSent(t *testing.T, src string) {
	s, err := openDir(t, src, nil)
	if err != nil {
		t.Fatal(err)
	}
	var roots []int
	err = s.read().each(t.Context(), "SELECT rootpage FROM sqlite_master WHERE name IN ('jobs', 'recipients')", nil, func(scan func(...any) error) error {
		var page int
		err := scan(&page)
		roots = append(roots, page)
		return err
	})
	if err != nil || len(roots) != 2 {
		t.Fatal(roots, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(src, fileName)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range roots {
		clear(b[(page-1)*4096 : page*4096])
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := Salvage(t.Context(), Options{Dir: src, MinFree: -1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s, err = openDir(t, src, nil); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ids, err := s.Stale(t.Context(), 1, 1000)
	if err != nil || len(ids) == 0 || len(ids) != r.Held {
		t.Fatalf("%d mails to plan, %d held: %v", len(ids), r.Held, err)
	}
	for _, id := range ids {
		if err := s.Replan(t.Context(), id, 1, []NewJob{{Route: "r", Accounts: []string{"a"}, Rcpts: []int{0}, NextAt: time.Unix(1, 0), Expires: time.Now().Add(time.Hour)}}); err != nil {
			t.Fatal(err)
		}
		if err := s.ReleaseHold(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if calls, err := s.Claim(t.Context(), "a", 1000); err != nil || len(calls) != len(ids) {
		t.Errorf("%d calls for %d mails: %v", len(calls), len(ids), err)
	}
}

func testSalvageRefuses(t *testing.T, dir string) {
	if _, err := Salvage(t.Context(), Options{Dir: dir, MinFree: -1}, nil); !errors.Is(err, ErrSound) {
		t.Errorf("a sound store: %v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "salvage")); err == nil {
		t.Error("the working directory was left behind")
	}
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Salvage(t.Context(), Options{Dir: dir, MinFree: -1}, nil); !errors.Is(err, ErrLocked) {
		t.Errorf("a store in use: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Salvage(t.Context(), Options{Dir: t.TempDir(), MinFree: -1}, nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no store: %v", err)
	}
	if _, err := Salvage(t.Context(), Options{Dir: dir, URL: "postgres://x"}, nil); err == nil {
		t.Error("a PostgreSQL store is salvaged")
	}
}
