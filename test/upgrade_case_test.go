package test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	_ "modernc.org/sqlite"

	"smtpbridge/event"
)

var writeStore = flag.String("write-store", "", "TestCase107: write data/stores/NAME.tar.gz, a store as this version leaves it")

// TestCase107_OldStores opens the stores that earlier versions left behind, one file each below data/stores, and
// delivers all that waits in them. Each release adds one: go test ./test -run TestCase107 -write-store NAME.
func TestCase107_OldStores(t *testing.T) {
	if *writeStore != "" {
		fillStore(t, filepath.Join("data", "stores", *writeStore+".tar.gz"))
	}
	files, err := filepath.Glob("data/stores/*.tar.gz")
	if err != nil || len(files) == 0 {
		t.Fatalf("no stores: %v", err)
	}
	note, wanted := schemaCoverage(t)
	t.Cleanup(wanted)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".tar.gz"), func(t *testing.T) {
			t.Parallel()
			dir := shortDir(t)
			unpack(t, file, dir)
			note(schemaVersion(t, dir))
			b, esp, addr := caseBridge(t, dir, "[retention]\nledger = \"36500d\"\n")
			until(t, 30*time.Second, "the queued mails are sent", func() bool { return esp.subjects()["small"] > 0 && esp.subjects()["large"] > 0 })
			held := b.run("queue", "list", "--state", "held")
			id, _, _ := strings.Cut(lastLine(held), " ")
			if id == "" {
				t.Fatalf("no held mail:\n%s", held)
			}
			if esp.subjects()["held"] != 0 {
				t.Error("the held mail was sent")
			}
			b.run("queue", "release", id)
			until(t, 30*time.Second, "the released mail is sent", func() bool { return esp.subjects()["held"] > 0 })
			dialCase(t, addr).accept(t, "new", "x\r\n")
			until(t, 30*time.Second, "new mail is sent", func() bool { return esp.subjects()["new"] > 0 })
			if out := b.run("trace", "done@example.net"); !strings.Contains(out, "sent") {
				t.Errorf("the ledger of a finished mail is gone:\n%s", out)
			}
			b.run("store", "verify")
			b.stop()
			if got := esp.subjects(); len(got) != 4 {
				t.Errorf("arrived: %v", got)
			}
			for subject, n := range esp.subjects() {
				if n != 1 {
					t.Errorf("%q arrived %d times", subject, n)
				}
			}
		})
	}
}

// neverNewest are versions that no program left behind: the one after them was there before they were.
var neverNewest = map[int]bool{4: true, 5: true, 8: true}

// schemaCoverage gathers the schema versions of the stores; wanted fails the test when a version that this program has left
// behind is not among them.
func schemaCoverage(t *testing.T) (note func(int), wanted func()) {
	var mu sync.Mutex
	seen := map[int]bool{}
	steps, err := filepath.Glob("../store/migrations/sqlite/*.sql")
	if err != nil || len(steps) == 0 {
		t.Fatalf("no migrations: %v", err)
	}
	note = func(v int) {
		mu.Lock()
		defer mu.Unlock()
		seen[v] = true
	}
	return note, func() {
		for _, step := range steps[:len(steps)-1] {
			var v int
			if _, err := fmt.Sscanf(filepath.Base(step), "%d_", &v); err != nil {
				t.Fatal(err)
			}
			if !seen[v] && !neverNewest[v] {
				t.Errorf("no store of schema version %d: write one with the program before the migration, -write-store schema-%d", v, v)
			}
		}
	}
}

func schemaVersion(t *testing.T, dir string) (v int) {
	t.Helper()
	db, err := sql.Open("sqlite", filepath.Join(dir, "smtpbridge.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRowContext(t.Context(), "SELECT max(version_id) FROM schema_version").Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// fillStore makes a store with a finished, a small, a large and a held mail.
func fillStore(t *testing.T, file string) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "")
	text, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	b.stop()
	// The mails last long: they are delivered years after they were written.
	text = bytes.Replace(text, []byte(`retry = "1s*"`), []byte("retry = \"1s*\"\nexpire = \"36500d\""), 1)
	if err := os.WriteFile(b.config, text, 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	c := dialCase(t, addr)
	if _, err := c.send("app@example.com", []string{"done@example.net"}, "From: app@example.com\r\nSubject: done\r\n\r\nx\r\n"); err != nil {
		t.Fatal(err)
	}
	b.waitEvents("a finished mail", func(evs []event.Event) bool { return count(evs, event.Sent) == 1 })
	esp.fail(503)
	c.accept(t, "small", "x\r\n")
	c.accept(t, "large", strings.Repeat("A line of a large mail.\r\n", 10_000))
	c.accept(t, "held", "x\r\n")
	until(t, 10*time.Second, "the mail is held", func() bool {
		id, _, _ := strings.Cut(strings.TrimSpace(lastLine(b.run("queue", "list", "--limit", "1"))), " ")
		_, err := b.try("queue", "hold", id)
		return err == nil
	})
	b.stop()
	for _, name := range []string{"events.jsonl", "bridge.toml", "lock", "admin.sock"} {
		_ = os.Remove(filepath.Join(dir, name))
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	w := tar.NewWriter(z)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), z.Close(), os.WriteFile(file, out.Bytes(), 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: %d bytes", file, out.Len())
}

func unpack(t *testing.T, file, dir string) {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, filepath.FromSlash(h.Name))
		if !h.FileInfo().Mode().IsRegular() {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err == nil {
			err = os.WriteFile(path, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
