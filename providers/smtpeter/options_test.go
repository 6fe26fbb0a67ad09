package smtpeter

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/providers/providertest"
	"smtpbridge/providers/smtpeter/twin"
	"smtpbridge/translate"
)

const optionsMail = "From: Shop <sender@example.com>\r\nTo: One <one@example.org>, other@example.org\r\nCc: two@example.org\r\nReply-To: r@example.com\r\n" +
	"List-Unsubscribe: <mailto:u@example.com>, <https://example.com/u>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nX-Shop: 7\r\nIn-Reply-To: <a@example.com>\r\n" +
	"Subject: Hello {$name}\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=m\r\n\r\n--m\r\nContent-Type: multipart/alternative; boundary=a\r\n\r\n" +
	"--a\r\nContent-Type: text/plain\r\n\r\nDear {$name}\r\n--a\r\nContent-Type: text/html\r\n\r\n<p>Dear {$name}</p>\r\n--a--\r\n" +
	"--m\r\nContent-Type: text/plain; name=f.txt\r\nContent-Disposition: attachment; filename=f.txt\r\n\r\nfile\r\n--m--\r\n"

// sendWith plans and sends a mail to one, two and a blind recipient.
func sendWith(t *testing.T, p *provider, tw *twin.Twin, header string) (mails []*translate.Mail, lost []translate.Loss, got []twin.Mail) {
	t.Helper()
	e := envelope.Envelope{ID: "q", From: "sender@example.com", Received: clock}
	for _, r := range []string{"one@example.org", "two@example.org", "blind@example.org"} {
		e.Rcpts = append(e.Rcpts, envelope.Rcpt{Addr: r})
	}
	before := len(tw.Mails())
	mails, lost, err := translate.Apply(translate.Request{
		Envelope: e, Rcpts: e.Rcpts, Message: providertest.Parse(t, header+optionsMail), Caps: p.Capabilities(),
		Settings: translate.Settings{Permissions: []string{"all"}, Provider: name},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range mails {
		m.Ref = fmt.Sprint("r", i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		providertest.CheckOutcome(t, m, out)
		lost = append(lost, out.Lost...)
	}
	return mails, lost, tw.Mails()[before:]
}

func lostFields(list []translate.Loss) string {
	var out []string
	for _, l := range list {
		if l.Severity > translate.Info {
			out = append(out, l.Field)
		}
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), ", ")
}

func TestMergeData(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	mails, lost, got := sendWith(t, p, tw, "X-Smtpbridge-Merge: {\"name\":\"all\",\"shop\":{\"n\":1},\"recipient\":\"x\",\"2nd\":1}\r\nX-Smtpbridge-Merge-Recipients: {\"one@example.org\":{\"name\":\"One\"}}\r\n")
	if len(mails) != 3 || mails[0].UseRaw {
		t.Fatalf("%d calls, raw %v", len(mails), mails[0].UseRaw)
	}
	for i, want := range []string{"one One", "two all", "blind all"} {
		m := got[i]
		who, _, _ := strings.Cut(m.Recipients[0], "@")
		if s := who + " " + fmt.Sprint(m.Data["name"]); s != want || len(m.Recipients) != 1 || len(m.Data) != 2 {
			t.Errorf("call %d: %s, %v", i, s, m.Data)
		}
		if len(m.To) != 1 || !strings.Contains(m.To[0], m.Recipients[0]) || len(m.Cc) != 0 {
			t.Errorf("call %d shows %v %v", i, m.To, m.Cc)
		}
		if m.Subject != "Hello {$name}" || m.Text != "Dear {$name}" || m.HTML != "<p>Dear {$name}</p>" || m.From != `"Shop" <sender@example.com>` || len(m.MIME) > 0 {
			t.Errorf("call %d: %+v", i, m)
		}
		if m.Unsubscribe != "u@example.com https://example.com/u true" || m.Extra["X-Shop"] != "7" || len(m.Extra) != 1 || !slices.Equal(m.ReplyTo, []string{"r@example.com"}) || !slices.Equal(m.Attachments, []string{"f.txt text/plain file"}) {
			t.Errorf("call %d: %+v", i, m)
		}
	}
	if s := lostFields(lost); s != "header in-reply-to, merge variable" {
		t.Errorf("losses: %s", s)
	}
}

func TestTemplate(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	for _, tt := range []struct {
		header string
		want   any
	}{{"X-MC-Template: welcome\r\n", "welcome"}, {"X-Smtpbridge-Template: 23\r\n", 23.0}} {
		mails, lost, got := sendWith(t, p, tw, tt.header)
		m := got[0]
		if len(mails) != 1 || m.Template != tt.want || m.Text+m.HTML != "" || m.Subject != "Hello {$name}" || m.Personalised || len(m.Attachments) != 1 || !slices.Equal(m.ReplyTo, []string{"r@example.com"}) {
			t.Errorf("%d calls, %+v", len(mails), m)
		}
		// To and Cc are shown, the recipients receive.
		if len(m.To) != 2 || len(m.Cc) != 1 || len(m.Recipients) != 3 || slices.ContainsFunc(slices.Concat(m.To, m.Cc), func(s string) bool { return strings.Contains(s, "blind") }) {
			t.Errorf("shows %v %v to %v", m.To, m.Cc, m.Recipients)
		}
		want := "header in-reply-to, header list-unsubscribe, header x-shop"
		if strings.Contains(tt.header, "MC") {
			want += ", template block"
		}
		if s := lostFields(lost); s != want {
			t.Errorf("losses: %s", s)
		}
	}
}

// TestSignedIsNotTakenApart: merge data in a signed mail is a refusal.
func TestSignedIsNotTakenApart(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	m := providertest.Parse(t, "X-Smtpbridge-Merge: {\"a\":1}\r\nFrom: a@example.com\r\nTo: b@example.org\r\nMIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b; protocol=\"application/pgp-signature\"; micalg=pgp-sha256\r\n\r\n"+
		"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b\r\nContent-Type: application/pgp-signature\r\n\r\nsig\r\n--b--\r\n")
	e := envelope.Envelope{Rcpts: []envelope.Rcpt{{Addr: "b@example.org"}}}
	_, _, err := translate.Apply(translate.Request{Envelope: e, Rcpts: e.Rcpts, Message: m, Caps: p.Capabilities()})
	var refused *translate.RefusalError
	if !errors.As(err, &refused) || refused.Status != "5.6.3" {
		t.Errorf("got %v", err)
	}
}

func TestSwitchesOfTheMail(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	for _, tt := range []struct {
		name, settings, header string
		scam, css              bool
		images, until          string
	}{
		{"settings", "inline_css = true\nhost_images = true\nprevent_scam = false", "", false, true, "hosted", ""},
		{"the mail goes before", "inline_css = true\nprevent_scam = false", "x-smtpeter-preventscam: true\r\nx-smtpeter-inlinecss: false\r\nX-SMTPeter-Images: hosted\r\n", true, false, "hosted", ""},
		{"defaults", "", "", true, false, "default", ""},
		{"another vendor's words", "", "X-MC-InlineCSS: yes\r\nX-Mailgun-Deliver-Within: 2h\r\n", true, true, "default", "2026-11-23 14:00:00"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := account(t, tw, base, tt.settings)
			_, lost, got := sendWith(t, p, tw, tt.header)
			m := got[0]
			if *m.PreventScam != tt.scam || *m.InlineCSS != tt.css || m.Images != tt.images || m.MaxDeliverTime != tt.until || len(m.MIME) == 0 {
				t.Errorf("scam %v, css %v, images %s, until %s", *m.PreventScam, *m.InlineCSS, m.Images, m.MaxDeliverTime)
			}
			if strings.Contains(strings.ToLower(string(m.MIME)), "smtpeter") || lostFields(lost) != "" {
				t.Errorf("losses %s\n%s", lostFields(lost), m.MIME)
			}
		})
	}
}
