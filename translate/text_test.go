package translate

import (
	"errors"
	"strings"
	"testing"

	"smtpbridge/mime"
)

// TestTextLosses: what a structured call cannot say of texts, or has to add to them, is a loss.
func TestTextLosses(t *testing.T) {
	const head = "From: a@example.com\r\nTo: b@example.com\r\nMIME-Version: 1.0\r\n"
	mixed := head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b\r\n"
	for _, tt := range []struct {
		name, mail string
		caps       Capabilities
		text, html string
		loss       Loss // zero: none of texts
	}{
		{"nothing is needed", head + "\r\n", Capabilities{}, "", "", Loss{}},
		{"absent", mixed + "Content-Type: image/gif\r\n\r\ny\r\n--b--\r\n", Capabilities{FillText: "\n"}, "\n", "", Loss{"text", "none", "an empty line", Info}},
		{"empty", head + "\r\n", Capabilities{FillText: "\n"}, "\n", "", Loss{"text", "none", "an empty line", Info}},
		{"white space", head + "Content-Type: text/html\r\n\r\n \t\r\n", Capabilities{FillHTML: "<br>"}, "", "<br>", Loss{"text", "none", "an empty line", Info}},
		{"there is one", head + "\r\nx\r\n", Capabilities{FillText: "\n"}, "x\n", "", Loss{}},
		{"much white space is left alone", head + "\r\n" + strings.Repeat(" ", 2000), Capabilities{FillText: "\n"}, strings.Repeat(" ", 2000), "", Loss{}},
		{"flowed", head + "Content-Type: text/plain; format=Flowed\r\n\r\na \r\nb\r\n", Capabilities{}, "a \nb\n", "", Loss{"text", "format=flowed", "with its line ends as they are", Info}},
		{"a text file in another charset", mixed + "Content-Type: text/csv; charset=ISO-8859-1; name=a.csv\r\n\r\nx\r\n--b--\r\n", Capabilities{AttachName: true, AttachType: true}, "", "", Loss{"attachment a.csv", "charset iso-8859-1", "", Minor}},
		{"in UTF-8", mixed + "Content-Type: text/csv; charset=UTF-8; name=a.csv\r\n\r\nx\r\n--b--\r\n", Capabilities{AttachName: true, AttachType: true}, "", "", Loss{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.caps.JSON, tt.caps.AttachType, tt.caps.AttachName = true, true, true
			m := one(t, request(parse(t, []byte(tt.mail)), tt.caps, "b@example.com"))
			for what, x := range map[string]struct{ got, want string }{"text": {partText(t, m, false), tt.text}, "html": {partText(t, m, true), tt.html}} {
				if x.got != x.want {
					t.Errorf("%s %q, want %q", what, x.got, x.want)
				}
			}
			var got Loss
			for _, l := range m.Losses {
				if l.Field == "text" || strings.HasPrefix(l.Field, "attachment a") {
					got = l
				}
			}
			if got != tt.loss {
				t.Errorf("loss %+v, want %+v", got, tt.loss)
			}
		})
	}
}

func partText(t *testing.T, m *Mail, html bool) string {
	t.Helper()
	p := m.Msg.Text
	if html {
		p = m.Msg.HTML
	}
	if p == nil {
		return ""
	}
	s, err := readAll(p)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestSizes: a limit of a text and of an attachment is known before the mail is taken; the whole message's comes last.
func TestSizes(t *testing.T) {
	mail := func(text, html, file int) string {
		return "From: a@example.com\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n" + strings.Repeat("t", text) + "\r\n--b\r\nContent-Type: text/html\r\n\r\n" + strings.Repeat("h", html) +
			"\r\n--b\r\nContent-Type: application/pdf; name=a.pdf\r\n\r\n" + strings.Repeat("f", file) + "\r\n--b--\r\n"
	}
	caps := Capabilities{JSON: true, MaxText: 10, MaxAttachment: 20, MaxBytes: 45}
	for _, tt := range []struct {
		name             string
		text, html, file int
		refused          string
	}{
		{"all fit", 10, 10, 18, ""},
		{"text", 11, 10, 18, "the text has 11 bytes, the provider takes 10"},
		{"HTML", 10, 11, 18, "the HTML text has 11 bytes, the provider takes 10"},
		{"attachment", 10, 10, 21, `attachment 1 ("a.pdf") has 21 bytes, the provider takes 20`},
		{"all together, the attachment in base64", 10, 10, 20, "the message has 48 bytes, the provider takes 45"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := request(parse(t, []byte(mail(tt.text, tt.html, tt.file))), caps, "b@example.com")
			if tt.refused == "" {
				one(t, r)
				return
			}
			if e := refusal(t, r); e.Status != "5.3.4" || !strings.HasPrefix(e.Text, tt.refused) {
				t.Errorf("refused with %s %s, want %s", e.Status, e.Text, tt.refused)
			}
		})
	}
}

// Whoever lacks a value of his own has the common one; without that the mail is refused for him, if its placeholder stands in it.
func TestSubstitutionsOfSomeRecipients(t *testing.T) {
	const a, b = "a@example.com", "b@example.com"
	for _, tt := range []struct {
		name, text string
		fields     []string
		want       map[string]string // text by recipient
		refused    string
	}{
		{"common and own", "*|NAME|* *|CITY|*", []string{"X-MC-MergeVars", `{"name": "all", "city": "Bonn"}`, "X-MC-MergeVars", `{"_rcpt": "` + b + `", "name": "B"}`}, map[string]string{a: "all Bonn", b: "B Bonn"}, ""},
		{"own alone", "*|NAME|*", []string{"X-MC-MergeVars", `{"_rcpt": "` + b + `", "name": "B"}`}, nil, a},
		{"own in part", "*|NAME|* *|CITY|*", []string{"X-MC-MergeVars", `{"_rcpt": "` + a + `", "name": "A"}`, "X-MC-MergeVars", `{"_rcpt": "` + b + `", "name": "B", "city": "Bonn"}`}, nil, a},
		{"not in the text", "hello", []string{"X-MC-MergeVars", `{"_rcpt": "` + b + `", "name": "B"}`}, map[string]string{a: "hello", b: "hello"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := message(tt.fields...)
			m.To, m.Text = addrs(a, b), mime.NewPart(tt.text)
			mails, _, err := Apply(request(m, Capabilities{JSON: true, Cc: true, Bcc: true}, a, b))
			var refused *RefusalError
			if errors.As(err, &refused) != (tt.refused != "") || refused != nil && (len(refused.Rcpts) != 1 || refused.Rcpts[0].Addr != tt.refused) {
				t.Fatalf("got %v, want a refusal for %q", err, tt.refused)
			}
			for _, x := range mails {
				text, err := readAll(x.Msg.Text)
				if err != nil || len(x.Rcpts) != 1 || text != tt.want[x.Rcpts[0].Addr] {
					t.Errorf("%v gets %q, %v; want %q", x.Rcpts, text, err, tt.want[x.Rcpts[0].Addr])
				}
			}
			if len(mails) != len(tt.want) {
				t.Errorf("%d mails, want %d", len(mails), len(tt.want))
			}
		})
	}
}
