package test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"smtpbridge/internal/pgtest"
)

// nextVersion builds the program that comes after this one: it knows one schema version more, which adds something to the busiest tables, as
// migrations do. It gives that version too.
func nextVersion(t *testing.T) (program string, schema int) {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	replace := map[string]string{}
	for engine, added := range map[string]string{
		"postgres": "ALTER TABLE mails ADD COLUMN next_version TEXT NOT NULL DEFAULT '';\nALTER TABLE jobs ADD COLUMN next_version BIGINT;\nCREATE TABLE next_version (id BIGINT PRIMARY KEY);\n",
		"sqlite":   "CREATE TABLE next_version (id INTEGER PRIMARY KEY);\n",
	} {
		steps, err := filepath.Glob(filepath.Join(root, "store", "migrations", engine, "*.sql"))
		if err != nil || len(steps) == 0 {
			t.Fatalf("no migrations: %v", err)
		}
		if _, err := fmt.Sscanf(filepath.Base(steps[len(steps)-1]), "%d_", &schema); err != nil {
			t.Fatal(err)
		}
		schema++
		file := filepath.Join(dir, engine+".sql")
		if err := os.WriteFile(file, []byte("-- +goose Up\n"+added), 0o600); err != nil {
			t.Fatal(err)
		}
		replace[filepath.Join(root, "store", "migrations", engine, fmt.Sprintf("%05d_next.sql", schema))] = file
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program = filepath.Join(dir, "smtpbridge-next")
	cmd := exec.Command("go", "build", "-overlay", filepath.Join(dir, "overlay.json"), "-ldflags", "-X main.version=next", "-o", program, "smtpbridge/cmd/smtpbridge")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the next version: %v\n%s", err, out)
	}
	return program, schema
}

// calls reads how many API calls a node has seen accepted.
func (b *bridge) calls() (n int) {
	b.t.Helper()
	for line := range strings.Lines(b.metrics()) {
		if rest, ok := strings.CutPrefix(line, "smtpbridge_api_call_seconds_count{"); ok && strings.Contains(rest, `result="accepted"`) {
			_, value, _ := strings.Cut(strings.TrimSpace(rest), "} ")
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				b.t.Fatal(err)
			}
			n += int(v)
		}
	}
	return n
}

// Under load one node after the other is ended with SIGTERM and started as the next version, which brings the schema up. The older nodes that run
// take and send mail beside it; an older one that starts is refused. No mail is lost, none arrives twice, at no ESP, and no client is refused for good.
func TestRollingUpgrade(t *testing.T) {
	if testing.Short() {
		t.Skip("runs three nodes")
	}
	t.Parallel()
	next, schema := nextVersion(t)
	f := newFarm(t, "", pgtest.Options{})
	for range min(2+*nodeMails/1000, 3) {
		f.add("")
	}
	last := len(f.nodes) - 1
	send := func(want, first int64, addrs ...string) *load {
		l := &load{t: t, want: want, first: first, from: []string{"mp.example.com", "sp.example.com"}, pause: 50 * time.Millisecond}
		l.start(2, addrs...)
		return l
	}
	// The load stops when the last node is the next version, so that each restart is under load however long it takes.
	l := send(1<<40, 0, f.smtp...)
	loads := []*load{l}
	under := func(what string) {
		t.Helper()
		n := l.count.Load() + int64(*nodeMails)/int64(4*len(f.nodes))
		until(t, time.Minute, what, func() bool { return l.count.Load() >= n })
	}
	for i, b := range f.nodes {
		under("mail flows")
		b.stop()
		b.other = next
		b.start()
		if i == last {
			break
		}
		// Both versions take mail and send it.
		old, oldCalls, newCalls := f.nodes[last], f.nodes[last].calls(), b.calls()
		loads = append(loads, send(10, int64(100_000*(i+1)), f.smtp[last]), send(10, int64(100_000*(i+1)+50_000), f.smtp[i]))
		until(t, time.Minute, "the old and the next version send", func() bool { return old.calls() > oldCalls+3 && b.calls() > newCalls+3 })
	}
	under("mail flows")
	l.ended.Store(true)
	for _, l := range loads {
		l.wait()
		f.check(l, f.nodes[0], 0)
	}
	for _, n := range f.living() {
		if n.Version != "next" {
			t.Errorf("node %s is of version %s", n.Name, n.Version)
		}
	}
	f.nodes[last].stop()
	f.nodes[last].other = ""
	want := fmt.Sprintf("the database has schema version %d, this program knows %d: use the newer program; nothing was changed", schema, schema-1)
	if out, err := f.nodes[last].try("serve"); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("the older program on the newer schema: %v, want %q\n%s", err, want, out)
	}
}
