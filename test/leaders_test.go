package test

import (
	"database/sql"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/pgtest"
	smtpetertwin "smtpbridge/providers/smtpeter/twin"
	"smtpbridge/store"
)

// The node that leads DSN mail, questions to the ESPs and shared alarms is killed in the middle of each, three times; the other one takes over. For
// each mail that fails the sender gets one DSN, no event that was fetched is there twice, and an alarm is raised once and cleared once.
func TestLeaders(t *testing.T) {
	if testing.Short() {
		t.Skip("runs two nodes")
	}
	t.Parallel() // it mostly waits
	f := newFarm(t, "", pgtest.Options{})
	f.referenceTag = true
	// While the gate is shut the second of the ESP's log files does not come: whoever asks has stored the events of the first.
	var shut atomic.Bool
	var blocked, polls atomic.Int64
	sp := f.slow(f.sp)
	f.esp["sp"] = f.serve(f.listen, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, "/v1/logfiles/deliveries") {
			polls.Add(1)
			if shut.Load() {
				blocked.Add(1)
				<-r.Context().Done()
				return
			}
		}
		sp.ServeHTTP(w, r)
	}))
	db, err := sql.Open("pgx", f.url)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	st, err := store.Open(t.Context(), store.Options{Dir: t.TempDir(), URL: f.url})
	if err == nil { // only accounts whose webhooks have come are asked
		err = st.SetCursor(t.Context(), "webhooks:sp", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339))
	}
	if err == nil {
		err = st.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	mail := filepath.Join(shortDir(t), "mail")
	more := fmt.Sprintf(`[[account]]
name = "box"
provider = "sandbox"
[[account]]
name = "local"
provider = "maildir"
base_url = "maildir://%s"
[[route]]
senders = ["box.example.com"]
accounts = ["box"]
[dsn]
account = "local"
max_per_hour = 100000
`, mail)
	led := []string{"dsn", "catch-up", "alarms"}
	leads := func(at int) {
		t.Helper()
		until(t, 45*time.Second, fmt.Sprintf("node %d leads %s", at, led), func() bool {
			return slices.ContainsFunc(f.living(), func(n store.Node) bool {
				return n.Name == f.nodes[at].node() && !slices.ContainsFunc(led, func(what string) bool { return !slices.Contains(n.Leads, what) })
			})
		})
	}
	f.add(more)
	leads(0)
	f.add(more)

	// Mails that the ESP takes and whose events come by no webhook, half of them bounces; one mail that waits for too long.
	send := func(clients int, want, first int64, from, to string, addrs ...string) *load {
		l := &load{t: t, want: want, first: first, from: []string{from}, to: to}
		l.start(clients, addrs...)
		return l
	}
	taken := send(2, 10, 800_000, "sp.example.com", "", f.smtp...)
	taken.wait()
	until(t, 30*time.Second, "the ESP has the mails", func() bool { return f.sp.Count() == len(taken.acked) })
	for i, m := range f.sp.Mails() {
		f.sp.Log(smtpetertwin.Record{Type: []string{"failure", "delivery"}[i%2], At: time.Now(), ID: m.IDs[0], Recipient: m.Recipients[0], Tags: m.Tags})
	}
	f.nodes[0].run("account", "pause", "mp")
	send(1, 1, 900_000, "mp.example.com", "", f.smtp[0]).wait()
	if _, err := db.ExecContext(t.Context(), "UPDATE jobs SET created = created - 7200000000 WHERE account = 'mp'"); err != nil {
		t.Fatal(err)
	}

	shut.Store(true)
	var failing []*load
	told := func() int { files, _ := filepath.Glob(mail + "/new/*"); return len(files) }
	// die kills the node that leads everything while mails fail and DSN mail is written, and starts it again once the other one leads.
	die := func(at int) {
		t.Helper()
		n := told()
		failing = append(failing, send(2, int64(*nodeMails)/6, int64(len(failing)*100_000), "box.example.com", "550@example.net", f.smtp...))
		until(t, 30*time.Second, "DSN mail is written", func() bool { return told() > n+2 })
		f.nodes[at].kill()
		leads(1 - at)
		f.nodes[at].start()
	}
	alarm := func(b *bridge, word string) func() bool {
		return func() bool {
			return slices.ContainsFunc(b.events(), func(e event.Event) bool { return e.ProviderEvent == "alarm."+word+".backlog" })
		}
	}
	die(0)
	until(t, 30*time.Second, "the alarm is raised", alarm(f.nodes[1], "raised"))
	until(t, 30*time.Second, "the new leader is in the middle of its question", func() bool { return blocked.Load() > 0 })
	shut.Store(false)
	die(1)
	f.nodes[0].run("account", "resume", "mp")
	until(t, 30*time.Second, "the mail that waited is sent", func() bool { return len(f.mp.Mails()) > 0 })
	die(0)
	until(t, 45*time.Second, "the alarm is cleared", alarm(f.nodes[0], "cleared"))

	var failed []string
	for _, l := range failing {
		l.wait()
		failed = append(failed, l.accepted()...)
	}
	f.check(taken, f.nodes[0], 0)
	for i, m := range f.sp.Mails() {
		if i%2 == 0 {
			failed = append(failed, subjectOf(string(m.MIME)))
		}
	}
	dsns := func() map[string]int {
		got := map[string]int{}
		for _, raw := range maildir(t, mail) {
			got[strings.TrimPrefix(field(raw, "Subject"), "Undeliverable: ")]++
		}
		return got
	}
	until(t, 60*time.Second, "every sender is told", func() bool {
		got := dsns()
		for _, key := range failed {
			if got[key] == 0 {
				return false
			}
		}
		return f.nodes[0].run("queue", "list", "--json") == "[]\n"
	})
	for key, n := range dsns() {
		if n != 1 {
			t.Errorf("the sender of %s was told %d times", key, n)
		}
	}
	for i, b := range f.nodes {
		ids, finals, alarms := map[string]int{}, map[string]int{}, map[string]int{}
		until(t, 30*time.Second, "the event file has the end of every mail that was taken", func() bool {
			evs := b.events()
			return count(evs, event.Delivered)+count(evs, event.Bounced) >= len(taken.acked)
		})
		for _, e := range b.events() {
			if ids[e.ID]++; ids[e.ID] > 1 {
				t.Errorf("node %d: event %s (%s) is there %d times", i, e.ID, e.Kind, ids[e.ID])
			}
			if e.Kind == event.Delivered || e.Kind == event.Bounced {
				finals[e.QueueID]++
			}
			if strings.HasSuffix(e.ProviderEvent, ".backlog") {
				alarms[e.ProviderEvent]++
			}
		}
		for id, n := range finals {
			if n != 1 {
				t.Errorf("node %d: mail %s has %d fetched events", i, id, n)
			}
		}
		if alarms["alarm.raised.backlog"] != 1 || alarms["alarm.cleared.backlog"] != 1 {
			t.Errorf("node %d: alarms %v, want each once", i, alarms)
		}
	}
	if polls.Load() < 3 {
		t.Errorf("the ESP was asked %d times, want before, in the middle and after", polls.Load())
	}
	t.Logf("%d mails failed, %d DSN mails, %d questions to the ESP, %d of them cut off", len(failed), told(), polls.Load(), blocked.Load())
}
