package translate

import (
	"strings"
	"testing"
)

// TestBareAddresses: cron writes "From: root (Cron Daemon)" and "To: root".
func TestBareAddresses(t *testing.T) {
	const mail = "From: root (Cron Daemon)\r\nTo: root, ops\r\nReply-To: admin\r\nSubject: cron\r\n\r\nx\r\n"
	for name, caps := range map[string]Capabilities{"fields": {JSON: true, Cc: true, Bcc: true, ReplyTo: -1}, "raw": {Raw: RawEnvelope}} {
		r := request(parse(t, []byte(mail)), caps, "root@host.example.com", "ops@host.example.com")
		if e := refusal(t, r); e.Status != "5.6.0" || !strings.Contains(e.Text, "no domain") {
			t.Errorf("%s, without append_domain: %+v", name, e)
		}
		r.Settings.AppendDomain = "host.example.com"
		m := one(t, r)
		if m.From.Addr != "root@host.example.com" || m.From.Name != "Cron Daemon" || len(m.To) != 2 || len(m.Bcc) != 0 || !has(m.Losses, Info, "from") || has(m.Losses, Major, "to") {
			t.Errorf("%s: from %v to %v bcc %v, losses %v", name, m.From, m.To, m.Bcc, m.Losses)
		}
		if !m.UseRaw && (len(m.ReplyTo) != 1 || m.ReplyTo[0].Addr != "admin@host.example.com") {
			t.Errorf("reply-to %v", m.ReplyTo)
		}
		if m.UseRaw {
			b, err := m.Raw()
			if err != nil {
				t.Fatal(err)
			}
			if head := string(readBody(t, b)); !strings.Contains(head, "<root@host.example.com>") || strings.Count(head, "From:") != 1 {
				t.Errorf("raw:\n%s", head)
			}
		}
		if r.Message.From[0].Addr != "root" {
			t.Error("the message was changed")
		}
	}
}
