package test

import (
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"smtpbridge/admin"
	"smtpbridge/event"
	mailpacetwin "smtpbridge/providers/mailpace/twin"
	smtpetertwin "smtpbridge/providers/smtpeter/twin"
)

var (
	kills     = flag.Int("kills", 20, "how often TestKill ends the bridge with kill -9")
	killMails = flag.Int("kill-mails", 1000, "how many mails TestKill gets accepted")
)

// TestKill ends the bridge with kill -9 at random moments under load and counts: every mail that got
// its 250 arrives, none arrives twice at an ESP with idempotency keys, and a mail that arrives
// twice elsewhere was in a call whose answer the kill cut off. (Cases 54 and 66.)
func TestKill(t *testing.T) {
	if testing.Short() {
		t.Skip("kills a process many times")
	}
	mp := mailpacetwin.New(mailpacetwin.Options{Token: "mp-token-0123456789", Keep: 1 << 20})
	sp := smtpetertwin.New(smtpetertwin.Options{Token: "sp-token-0123456789", Keep: 1 << 20})
	mpServer, spServer := httptest.NewServer(mp), httptest.NewServer(sp)
	defer mpServer.Close()
	defer spServer.Close()
	dir, port := t.TempDir(), freePort(t)
	b := newBridge(t, dir, twoESPs(dir, port, mpServer.URL, spServer.URL, "")+fmt.Sprintf(`[delivery]
retry = "1s*"
[webhook]
address = ""
[events]
file = %q
[log]
level = "warn"
`, dir+"/events.jsonl"))
	b.start()

	l := &load{t: t, want: int64(*killMails), from: []string{"mp.example.com", "sp.example.com"}}
	l.start(8, fmt.Sprintf("127.0.0.1:%d", port))
	for k := range *kills {
		at := int64((k + 1) * *killMails / (*kills + 1))
		until(t, 2*time.Minute, fmt.Sprintf("%d mails accepted", at), func() bool { return l.count.Load() >= at })
		time.Sleep(rand.N(20 * time.Millisecond)) // a random moment is the point
		b.kill()
		b.start()
	}
	l.wait()

	arrived := func() (map[string]int, map[string]int) {
		m, s := map[string]int{}, map[string]int{}
		for _, x := range mp.Mails() {
			m[x.Subject]++
		}
		for _, x := range sp.Mails() {
			s[subjectOf(string(x.MIME))]++
		}
		return m, s
	}
	var missing []string
	defer func() {
		if len(missing) > 0 {
			t.Errorf("%d mails got a 250 and did not arrive: %.10v", len(missing), missing)
			for _, key := range missing[:min(len(missing), 3)] {
				out, err := b.try("trace", key+"@load")
				t.Logf("%s\n%v", out, err)
			}
		}
	}()
	until(t, 2*time.Minute, "every accepted mail arrived", func() bool {
		m, s := arrived()
		missing = missing[:0]
		for key := range l.acked {
			if m[key]+s[key] == 0 {
				missing = append(missing, key)
			}
		}
		return len(missing) == 0
	})
	m, s := arrived()
	for key, n := range m {
		if n > 1 {
			t.Errorf("mail %s arrived %d times at MailPace, which has idempotency keys", key, n)
		}
	}
	twice := 0
	for key, n := range s {
		if n < 2 {
			continue
		}
		twice++
		var found []admin.Detail
		if err := json.Unmarshal([]byte(b.run("trace", "--json", key+"@load")), &found); err != nil || len(found) != 1 {
			t.Fatalf("trace %s: %d mails, %v", key, len(found), err)
		}
		if !explained(found[0].Events) {
			t.Errorf("mail %s arrived %d times without a lost answer: %+v", key, n, found[0].Attempts)
		}
	}
	t.Logf("%d mails accepted, %d kills, %d at MailPace, %d at SMTPeter, %d of them twice by a call in flight at a kill", len(l.acked), *kills, len(m), len(s), twice)
	b.stop()
}

func explained(evs []event.Event) bool {
	for _, e := range evs {
		if e.Outcome == event.OutcomeUnknown {
			return true
		}
	}
	return false
}

func subjectOf(mail string) string {
	_, rest, _ := strings.Cut(mail, "\r\nSubject: ")
	subject, _, _ := strings.Cut(rest, "\r\n")
	return subject
}

// twoESPs is a configuration with the accounts mp and sp for mail from their domains; more lines for mp.
func twoESPs(dir string, port int, mp, sp, more string) string {
	return fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
address = "127.0.0.1:%d"
[[account]]
name = "mp"
provider = "mailpace"
api_key = "mp-token-0123456789"
base_url = %q
%s
[[account]]
name = "sp"
provider = "smtpeter"
api_key = "sp-token-0123456789"
base_url = %q
[account.options]
reference_tag = false # no look-ups: they would settle a lost answer only after ten minutes
[[route]]
senders = ["mp.example.com"]
accounts = ["mp"]
[[route]]
senders = ["sp.example.com"]
accounts = ["sp"]
`, dir, port, mp, more, sp)
}
