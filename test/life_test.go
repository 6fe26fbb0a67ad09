package test

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/mime"
	mailersend "smtpbridge/providers/mailersend/twin"
)

// TestLifeOfAMail follows one mail as an operator would: SMTP, queue, a call that is refused for its speed, the
// next one that is taken, the ESP's word that it waits, and two hours later that the mailbox does not exist. Then the sender has a
// DSN in a Maildir, the address is suppressed, the next mail to it is rejected, and trace shows all of it.
func TestLifeOfAMail(t *testing.T) {
	hookPort, port := freePort(t), freePort(t)
	ms := mailersend.New(mailersend.Options{Token: "token-mailersend-1", Secret: "secret-mailersend-1", PerMinute: 1e6})
	api := httptest.NewServer(ms)
	defer api.Close()
	dir := shortDir(t)
	mails := filepath.Join(dir, "bounces")
	config := func(atRcpt bool) string {
		return fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "apps"
address = "127.0.0.1:%d"
[[account]]
name = "ms"
provider = "mailersend"
api_key = "token-mailersend-1"
base_url = %q
webhook_secret = "secret-mailersend-1"
[[account]]
name = "local"
provider = "maildir"
base_url = "maildir://%s"
[[route]]
senders = ["example.com"]
accounts = ["ms"]
[webhook]
address = "127.0.0.1:%d"
[dsn]
account = "local"
[suppression]
enabled = true
at_rcpt = %v
[events]
file = "events.jsonl"
`, dir, port, api.URL, mails, hookPort, atRcpt)
	}
	b := newBridge(t, dir, config(false))
	b.start()
	send := func(subject string) error {
		c, err := dialSMTP(fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_, err = c.send("app@example.com", []string{"gone@example.net"}, "From: App <app@example.com>\r\nTo: gone@example.net\r\nSubject: "+subject+"\r\nMessage-ID: <"+subject+"@example.com>\r\n\r\nhello\r\n")
		return err
	}
	of := func(evs []event.Event, queueID string) (kinds []event.Kind) {
		for _, e := range evs {
			if e.QueueID == queueID && e.Kind != event.Unknown {
				kinds = append(kinds, e.Kind)
			}
		}
		return kinds
	}

	// Too fast, then taken.
	ms.Inject(mailersend.Fault{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"1"}}, Body: `{"message":"Too Many Attempts. #MS42903"}`})
	if err := send("first"); err != nil {
		t.Fatal(err)
	}
	has := func(k event.Kind) func([]event.Event) bool {
		return func(evs []event.Event) bool {
			return slices.ContainsFunc(evs, func(e event.Event) bool { return e.Kind == k })
		}
	}
	sent := b.waitEvents("the mail was sent", has(event.Sent))
	sent = slices.DeleteFunc(sent, func(e event.Event) bool { return e.Kind != event.Sent })
	id, espID := sent[0].QueueID, sent[0].ProviderMessageID
	mail := ms.Mails()[0]

	// What the ESP says, the bounce two hours after the mail, and everything twice.
	hook := fmt.Sprintf("http://127.0.0.1:%d/webhook/ms", hookPort)
	tell := func(kind string, meta map[string]any, at time.Time) {
		t.Helper()
		for range 2 {
			r, err := ms.Webhook(t.Context(), hook, kind, mail, "gone@example.net", meta, at)
			if err != nil {
				t.Fatal(err)
			}
			if code, err := ms.Post(r); err != nil || code != http.StatusOK {
				t.Fatalf("webhook %s: %d %v", kind, code, err)
			}
		}
	}
	tell("deferred", nil, mail.At.Add(5*time.Minute))
	tell("hard_bounced", map[string]any{"bounce_reason": "550 5.1.1 <gone@example.net>: no such user here", "bounce_code": 550, "bounce_type": "hard"}, mail.At.Add(2*time.Hour))
	evs := b.waitEvents("the bounce", has(event.Bounced))
	if got := of(evs, id); !slices.Equal(got, []event.Kind{event.Sent, event.Deferred, event.Bounced}) && !slices.Equal(got, []event.Kind{event.Deferred, event.Sent, event.Deferred, event.Bounced}) {
		t.Errorf("the mail's events are %v", got)
	}

	// The sender is told by mail.
	var dsn []byte
	until(t, 30*time.Second, "a DSN in the Maildir", func() bool {
		files, _ := filepath.Glob(filepath.Join(mails, "new", "*"))
		if len(files) == 0 {
			return false
		}
		var err error
		if dsn, err = os.ReadFile(files[0]); err != nil {
			t.Fatal(err)
		}
		return true
	})
	m, err := mime.Parse(bytes.NewReader(dsn), int64(len(dsn)), mime.Limits{})
	if err != nil || !strings.HasPrefix(m.Header.Get("Content-Type"), "multipart/report") {
		t.Errorf("the DSN is a %q, %v", m.Header.Get("Content-Type"), err)
	}
	for _, part := range []string{"Final-Recipient: rfc822; gone@example.net", "Action: failed", "Status: 5.1.1", "no such user here"} {
		if !bytes.Contains(dsn, []byte(part)) {
			t.Errorf("the DSN lacks %q:\n%s", part, dsn)
		}
	}

	// The address is on the list, and the next mail to it is rejected.
	until(t, 30*time.Second, "the suppression entry", func() bool {
		return strings.Contains(b.run("suppression", "list"), "gone@example.net  example.com  any     bounced")
	})
	if err := send("second"); err != nil {
		t.Fatal(err)
	}
	evs = b.waitEvents("the rejection", has(event.Rejected))
	i := slices.IndexFunc(evs, func(e event.Event) bool { return e.Kind == event.Rejected })
	if e := evs[i]; e.QueueID == id || e.RejectReason != event.ReasonBounced || e.Status != "5.7.1" || e.MessageID != "second@example.com" {
		t.Errorf("the rejection: %+v", e)
	}
	if n := ms.Count(); n != 1 {
		t.Errorf("the ESP took %d mails", n)
	}

	// By whatever the operator has in hand, the whole life is on one screen.
	for _, key := range []string{id, "first@example.com", "<first@example.com>", espID, "gone@example.net", strings.ToLower(id)} {
		out := b.run("trace", key)
		for _, part := range []string{"Mail", id, "app@example.com", "<first@example.com>", "429", "attempt 2: accepted, ", espID, "deferred", "bounced", "5.1.1", "no such user here"} {
			if !strings.Contains(out, part) {
				t.Errorf("trace %s lacks %q:\n%s", key, part, out)
			}
		}
	}
	if out := b.run("trace", id); strings.Contains(out, "accepted, HTTP 429") || strings.Count(out, "\n") > 24 {
		t.Errorf("the trace of one mail is wrong, or longer than a screen:\n%s", out)
	}
	ref := ""
	for _, tag := range mail.Tags {
		ref = strings.TrimPrefix(tag, "sb-")
	}
	if out := b.run("trace", ref); !strings.Contains(out, id) {
		t.Errorf("trace by our reference %q: %s", ref, out)
	}

	// Asked for at RCPT: an entry for every From domain.
	b.stop()
	if err := os.WriteFile(b.config, []byte(config(true)), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start()
	b.run("suppression", "add", "gone@example.net")
	if err := send("third"); err == nil || !strings.Contains(err.Error(), "550 5.7.1") {
		t.Errorf("RCPT of a suppressed address: %v", err)
	}
	b.run("suppression", "remove", "gone@example.net")
	if err := send("fourth"); err != nil {
		t.Errorf("after the removal: %v", err)
	}
	until(t, 30*time.Second, "the fourth mail at the ESP", func() bool { return ms.Count() == 2 })
	b.stop()
}
