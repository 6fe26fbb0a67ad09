package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	smtpeter "smtpbridge/providers/smtpeter/twin"
)

// TestNullSender: bounces and replies of machines come with MAIL FROM:<>. None of the five ESPs keeps it; they are delivered all the
// same, with the account's return_path where the API has a place for it, the loss is said, and a mail that cannot be sent is
// refused with what to do.
func TestNullSender(t *testing.T) {
	const key = "key-0123456789"
	mp, sp := mailpace.New(mailpace.Options{Token: key}), smtpeter.New(smtpeter.Options{Token: key})
	md := mandrill.New(mandrill.Options{Key: key})
	ms := mailersend.New(mailersend.Options{Token: key, PerMinute: 1e6})
	mr := maileroo.New(maileroo.Options{Key: key})
	const mime = "MIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nnobody here\r\n--b\r\n" +
		"Content-Type: message/delivery-status\r\n\r\nReporting-MTA: dns; mail.example.com\r\n\r\nFinal-Recipient: rfc822; x@example.org\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\n--b--\r\n"
	const bounce = "From: Mail Delivery System <MAILER-DAEMON@example.com>\r\nTo: %s\r\nSubject: Undelivered\r\nAuto-Submitted: auto-replied\r\n" + mime
	options := map[string]string{"smtpeter": "[account.options]\nbounces = \"sender\"\n"}
	for _, e := range []struct {
		provider string
		handler  http.Handler
		taken    func() []string // From, and the envelope sender where the API has one
		want     string
		sent     string // in place of the null sender
	}{
		{"mailpace", mp, tell(mp.Mails, func(m mailpace.Mail) []string { return []string{m.From} }), `"Mail Delivery System" <MAILER-DAEMON@example.com>`, "the provider's own return path"},
		{"smtpeter", sp, tell(sp.Mails, func(m smtpeter.Mail) []string { return []string{m.Envelope} }), "returns@example.com", "returns@example.com"}, // its options say that bounces are ours
		{"mandrill", md, tell(md.Mails, func(m mandrill.Mail) []string { return []string{m.From} }), "MAILER-DAEMON@example.com", "the provider's own return path"},
		{"mailersend", ms, tell(ms.Mails, func(m mailersend.Mail) []string { return []string{m.From.Email} }), "MAILER-DAEMON@example.com", "the provider's own return path"},
		{"maileroo", mr, tell(mr.Mails, func(m maileroo.Mail) []string { return []string{m.From.Address} }), "MAILER-DAEMON@example.com", "the provider's own return path"},
	} {
		t.Run(e.provider, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewServer(e.handler)
			t.Cleanup(server.Close)
			dir, port := shortDir(t), freePort(t)
			b := newBridge(t, dir, fmt.Sprintf(`data_dir = %q
[[listener]]
address = "127.0.0.1:%d"
[webhook]
address = ""
[events]
file = "events.jsonl"
[[route]]
senders = ["*"]
recipients = ["strict.example"]
accounts = ["esp"]
on_loss = "refuse"
[[route]]
senders = ["*"]
recipients = ["forced.example"]
accounts = ["esp"]
force_from = "daemon@example.com"
[[route]]
senders = ["*"]
accounts = ["esp"]
[[account]]
name = "esp"
provider = %q
api_key = %q
base_url = %q
return_path = "returns@example.com"
%s`, dir, port, e.provider, key, server.URL, options[e.provider]))
			b.start()
			addr := fmt.Sprintf("127.0.0.1:%d", port)
			give := func(to, mail string) error {
				c, err := dialSMTP(addr, 10*time.Second)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				_, err = c.send("", []string{to}, mail)
				return err
			}
			if err := give("ada@example.net", fmt.Sprintf(bounce, "ada@example.net")); err != nil {
				t.Fatal(err)
			}
			evs := b.waitEvents("the bounce is sent", func(evs []event.Event) bool { return count(evs, event.Sent) == 1 })
			said := ""
			for _, l := range evs[0].Losses {
				if l.Field == "null sender" {
					said = l.Severity + ": " + l.Sent
				}
			}
			if said != "major: "+e.sent {
				t.Errorf("of the null sender the event says %q, want %q", said, "major: "+e.sent)
			}
			if got := e.taken(); len(got) != 1 || got[0] != e.want {
				t.Errorf("the ESP took %q, want %q", got, e.want)
			}
			// A strict route refuses it, and says what it is about; so does one without any From.
			if err := give("ada@strict.example", fmt.Sprintf(bounce, "ada@strict.example")); err == nil || !strings.Contains(err.Error(), "554 5.6.3") || !strings.Contains(err.Error(), "null sender (<>) becomes") {
				t.Errorf("strict route: %v", err)
			}
			const nobody = "To: ada@example.net\r\nSubject: Undelivered\r\n" + mime
			if err := give("ada@example.net", nobody); err == nil || !strings.Contains(err.Error(), "554 5.6.0") || !strings.Contains(err.Error(), "force_from") {
				t.Errorf("no From: %v", err)
			}
			// force_from gives such a mail its sender.
			if err := give("ada@forced.example", nobody); err != nil {
				t.Errorf("force_from: %v", err)
			}
			b.waitEvents("the mail without From is sent", func(evs []event.Event) bool { return count(evs, event.Sent) == 2 })
			b.stop()
			if n := count(b.events(), event.Failed); n > 0 {
				t.Errorf("%d failed", n)
			}
		})
	}
}
