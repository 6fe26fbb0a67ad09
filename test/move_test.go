package test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/internal/pgtest"
)

// Mail that waits in SQLite is moved to PostgreSQL and sent from there, once; the old store starts no more.
func TestMoveToPostgres(t *testing.T) {
	if testing.Short() {
		t.Skip("runs PostgreSQL")
	}
	f := newFarm(t, "", pgtest.Options{})
	url := f.url
	f.url = ""
	b := f.add("")
	b.run("account", "pause", "mp")
	l := &load{t: t, want: 60, from: []string{"mp.example.com", "sp.example.com"}}
	l.start(4, f.smtp...)
	l.wait()
	until(t, 30*time.Second, "what may go is sent", func() bool {
		_, sp := f.arrived()
		return len(sp) > 0 && !strings.Contains(b.run("queue", "list", "--json"), "sp.example.com")
	})
	one := l.accepted()[0]
	waiting, trace := b.run("queue", "list", "--json"), b.run("trace", "--json", one+"@load")
	events := len(b.events())
	b.stop()

	if out := b.run("store", "migrate", "--to", url); !strings.Contains(out, "now set in bridge.toml") {
		t.Errorf("got %s", out)
	}
	if out, err := b.try("serve"); err == nil || !strings.Contains(err.Error(), "was moved to postgres://") {
		t.Fatalf("the old store was started: %s %v", out, err)
	}
	b.edit(t, `url = ""`, `url = "`+url+`"`)
	b.start()
	sameText(t, "the queue", b.run("queue", "list", "--json"), waiting)
	sameText(t, "a trace", b.run("trace", "--json", one+"@load"), trace)
	b.run("account", "resume", "mp")
	f.check(l, b, 0)
	until(t, 30*time.Second, "the event file goes on", func() bool { return len(b.events()) > events })
	seen := map[string]bool{}
	for _, e := range b.events() {
		if seen[e.ID] {
			t.Errorf("event %s is in the file twice", e.ID)
		}
		seen[e.ID] = true
	}
	b.stop()
}

// The work is split over three processes: one takes mail, one sends it, one tells of it. A pause made at one counts for all.
func TestRoles(t *testing.T) {
	if testing.Short() {
		t.Skip("runs three nodes")
	}
	f := newFarm(t, "", pgtest.Options{})
	edge := f.add(f.forward(), "--roles", "smtp")
	sender := f.add(f.forward(), "--roles", "deliver")
	teller := f.add(f.forward(), "--roles", "webhook,sink")
	holds := func(what string, text func() string, want ...string) {
		t.Helper()
		until(t, 20*time.Second, fmt.Sprintf("%s has %q", what, want), func() bool {
			got := text()
			return !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(got, w) })
		})
	}
	holds("node list", func() string { return edge.run("node", "list") }, " (this one)  ", "  smtp\n", "  deliver  ", "  webhook,sink  ", "catch-up, forward:", "alarms")
	holds("the metrics", teller.metrics, "\nsmtpbridge_nodes_living 3\n", "\nsmtpbridge_nodes_delivering 1\n", "\nsmtpbridge_node_leads{work=\"forward:")
	edge.run("account", "pause", "mp")
	until(t, 30*time.Second, "the pause counts for the node that sends", func() bool { return strings.Contains(sender.run("account", "list"), "stopped") })
	l := &load{t: t, want: 40, from: []string{"mp.example.com", "sp.example.com"}}
	l.start(4, f.smtp[0])
	l.wait()
	until(t, 30*time.Second, "the other account's mail is sent", func() bool {
		_, sp := f.arrived()
		return len(sp) > 0 && !strings.Contains(edge.run("queue", "list", "--json"), "sp.example.com")
	})
	if mp, _ := f.arrived(); len(mp) > 0 {
		t.Errorf("%d mails went through a paused account", len(mp))
	}
	teller.run("account", "resume", "mp")
	f.check(l, edge, 0)
	until(t, 30*time.Second, "the teller's event file is whole", func() bool { return len(teller.events()) >= len(l.acked) })
	f.allTold(teller)
	if n := len(edge.events()) + len(sender.events()); n > 0 {
		t.Errorf("nodes without the role sink wrote %d events", n)
	}
	if _, err := dialSMTP(f.smtp[1], 0); err == nil {
		t.Error("a node without the role smtp takes mail")
	}
}

// An account's rate holds for all nodes together.
func TestSharedRate(t *testing.T) {
	if testing.Short() {
		t.Skip("runs three nodes")
	}
	const perSecond, mails = 30, 90
	f := newFarm(t, "", pgtest.Options{})
	f.mpMore = fmt.Sprintf("max_per_second = %d\n", perSecond)
	for range 3 {
		f.add("")
	}
	l := &load{t: t, want: mails, from: []string{"mp.example.com"}}
	l.start(6, f.smtp...)
	l.wait()
	f.check(l, f.nodes[0], 0)
	sent := f.mp.Mails()
	took := sent[len(sent)-1].At.Sub(sent[0].At)
	// Each node may make one call more at once than its part of the rate.
	if least := time.Duration(mails-3) * time.Second / perSecond; took < least*9/10 {
		t.Errorf("%d mails in %v: more than %d a second", len(sent), took, perSecond)
	}
}

// sameText names the first line that differs.
func sameText(t *testing.T, what, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			t.Errorf("%s, line %d: %q, before %q", what, i+1, g[i], w[i])
			return
		}
	}
	if len(g) != len(w) {
		t.Errorf("%s: %d lines, before %d", what, len(g), len(w))
	}
}
