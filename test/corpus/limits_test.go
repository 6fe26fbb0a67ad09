package corpus

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

// draft is a mail to be written: fields, a text and files. What is not set is ordinary.
type draft struct {
	to, cc, bcc int    // recipients
	from        string // header From
	name        string // display name of the first recipient
	subject     string
	fields      []string // further header lines
	text, html  string
	files       []file
}

type file struct{ name, ctype, cid, content string }

var png = "\x89PNG\r\n\x1a\n"

func (d draft) write() ([]byte, envelope.Envelope) {
	env := envelope.Envelope{ID: "id", From: "app@example.com"}
	list := func(kind string, n int) (out []string) {
		for i := range n {
			a := fmt.Sprintf("%s%d@example.net", kind, i)
			env.Rcpts = append(env.Rcpts, envelope.Rcpt{Addr: a})
			if i == 0 && d.name != "" {
				a = fmt.Sprintf("%q <%s>", d.name, a)
			}
			out = append(out, a)
		}
		return out
	}
	if d.from == "" {
		d.from = "App <app@example.com>"
	}
	if d.subject == "" {
		d.subject = "Limits"
	}
	if d.text == "" && d.html == "" {
		d.text = "hello"
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "From: %s\r\nTo: %s\r\n", d.from, strings.Join(list("to", max(d.to, 1)), ",\r\n "))
	if cc := list("cc", d.cc); cc != nil {
		fmt.Fprintf(&b, "Cc: %s\r\n", strings.Join(cc, ",\r\n "))
	}
	list("bcc", d.bcc)
	fmt.Fprintf(&b, "Subject: %s\r\nMIME-Version: 1.0\r\n", d.subject)
	for _, f := range d.fields {
		b.WriteString(f + "\r\n")
	}
	b.WriteString("Content-Type: multipart/mixed; boundary=limit\r\n\r\n")
	part := func(head, content string) {
		fmt.Fprintf(&b, "--limit\r\n%s\r\n\r\n%s\r\n", head, content)
	}
	if d.text != "" {
		part("Content-Type: text/plain", d.text)
	}
	if d.html != "" {
		part("Content-Type: text/html", d.html)
	}
	for _, f := range d.files {
		head := "Content-Type: " + f.ctype + "\r\nContent-Transfer-Encoding: base64\r\n"
		if f.cid != "" {
			head += "Content-ID: <" + f.cid + ">\r\nContent-Disposition: inline"
		} else {
			head += "Content-Disposition: attachment"
		}
		if f.name != "" {
			head += "; filename*=utf-8''" + percent(f.name)
		}
		part(head, base64.StdEncoding.EncodeToString([]byte(f.content)))
	}
	b.WriteString("--limit--\r\n")
	return b.Bytes(), env
}

func percent(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		fmt.Fprintf(&b, "%%%02X", c)
	}
	return b.String()
}

// limit is one line of a vendor's documentation.
type limit struct {
	forms string // titles, separated by "; "
	what  string
	mail  draft
	// Either a refusal, by its status, or accepted calls with a loss of a field that begins with this; "" is no loss beyond Info.
	refused string
	calls   int // 0 = one
	loss    string
	names   []string // of the files as they arrive
	ok      func(m taken) bool
}

const (
	ms    = "mailersend, starter; mailersend, professional"
	mspro = "mailersend, professional"
	mslow = "mailersend, starter"
	mjson = "mandrill, json"
	whole = "mandrill, raw; smtpeter"
	every = ms + "; mailpace; maileroo; " + mjson
)

var limits = []limit{
	// https://developers.mailersend.com/api/v1/email
	{forms: ms, what: "50 to, 10 cc, 10 bcc", mail: draft{to: 50, cc: 10, bcc: 10}},
	{forms: ms, what: "51 to", mail: draft{to: 51}, calls: 2, loss: "to"},
	{forms: ms, what: "11 cc", mail: draft{cc: 11}, calls: 2, loss: "cc"},
	{forms: ms, what: "11 blind", mail: draft{bcc: 11}, calls: 2, loss: "to"},
	{forms: ms, what: "a name with a comma and a semicolon", mail: draft{name: "Doe, J; Dr"}, loss: "to name"},
	{forms: ms, what: "two Reply-To addresses", mail: draft{fields: []string{"Reply-To: a@example.com, b@example.com"}}, loss: "reply-to"},
	{forms: ms, what: "a subject of 998 characters", mail: draft{subject: strings.Repeat("s", 998)}},
	{forms: ms, what: "a longer one", mail: draft{subject: strings.Repeat("s", 999)}, loss: "subject", ok: func(m taken) bool { return len(m.subject) == 998 }},
	{forms: ms + "; maileroo", what: "no subject", mail: draft{subject: " "}, loss: "subject"},
	{forms: mspro, what: "a text of 2 MB", mail: draft{text: strings.Repeat("0123456\r\n", 2<<20/8-1)}},
	{forms: mspro, what: "a longer text", mail: draft{text: strings.Repeat("0123456\r\n", 2<<20/8+1)}, refused: "5.3.4"},
	{forms: mspro, what: "a longer HTML text", mail: draft{html: strings.Repeat("0123456\r\n", 2<<20/8+1)}, refused: "5.3.4"},
	{forms: ms, what: "allowed names", mail: draft{files: []file{{"a.pages", "application/x-iwork", "", "x"}, {"B.EML", "message/rfc822", "", "x"}, {"c.p7m", "application/pkcs7-mime", "", "x"}}}, loss: "attachment a.pages", names: []string{"B.EML", "a.pages", "c.p7m"}},
	{forms: ms, what: "an extension that is not allowed, of a type that has one that is", mail: draft{files: []file{{"a.jfif", "image/jpeg", "", "x"}}}, loss: "attachment a.jfif", names: []string{"a.jpg"}},
	{forms: ms, what: "an unfit extension stays readable", mail: draft{files: []file{{"a.exe", "application/pdf", "", "%PDF"}}}, loss: "attachment a.exe", names: []string{"a_exe.pdf"}},
	{forms: ms, what: "html, json, gz, 7z, webp", mail: draft{files: []file{{"a.json", "application/json", "", "{}"}}}, refused: "5.6.1"},
	{forms: ms, what: "no name", mail: draft{files: []file{{"", "image/png", "", png}, {"", "message/rfc822", "", "Subject: s"}}}, names: []string{"attachment.png", "message.eml"}},
	{forms: ms + "; mailpace", what: "neither name nor known type", mail: draft{files: []file{{"", "application/octet-stream", "", "x"}}}, refused: "5.6.1"},
	{forms: ms + "; mailpace", what: "a name without extension", mail: draft{files: []file{{"README", "text/plain", "", "x"}}}, loss: "attachment README", names: []string{"README.txt"}},
	{forms: ms, what: "an inline part of any type", mail: draft{html: "<p>", files: []file{{"a.pdf", "application/pdf", "p@x", "%PDF"}}}, names: []string{"a.pdf"}},
	{forms: ms, what: "more than 5 tags, one of them the bridge's", mail: draft{fields: []string{"X-Smtpbridge-Tag: a, b, c, d, e"}}, loss: "tag"},
	{forms: mslow, what: "custom headers by plan", mail: draft{fields: []string{"X-Foo: 1"}}, loss: "header x-foo"},
	{forms: mslow, what: "List-Unsubscribe by plan", mail: draft{fields: []string{"List-Unsubscribe: <https://example.com/u>"}}, loss: "header list-unsubscribe"},
	{forms: mspro, what: "both with the plan", mail: draft{fields: []string{"X-Foo: 1", "List-Unsubscribe: <https://example.com/u>"}}},
	{forms: mspro, what: "a header name with other characters", mail: draft{fields: []string{"X_Foo: 1"}}, loss: "header x_foo"},
	{forms: ms, what: "an In-Reply-To that is no address", mail: draft{fields: []string{"In-Reply-To: <id>"}}, loss: "header in-reply-to"},

	// https://docs.mailpace.com/reference/send
	{forms: "mailpace", what: "50 addresses", mail: draft{to: 50}},
	{forms: "mailpace", what: "51", mail: draft{to: 51}, calls: 2, loss: "to"},
	{forms: "mailpace", what: "one full stop in a name", mail: draft{files: []file{{"report.2024.pdf", "application/pdf", "", "%PDF"}}}, loss: "attachment report.2024.pdf", names: []string{"report_2024.pdf"}},
	{forms: "mailpace", what: "two names that become one", mail: draft{files: []file{{"a.b.pdf", "application/pdf", "", "1"}, {"a_b.pdf", "application/pdf", "", "2"}}}, loss: "attachment a.b.pdf", names: []string{"a_b-2.pdf", "a_b.pdf"}},
	{forms: "mailpace", what: "allowed names", mail: draft{files: []file{{"a.ics", "text/calendar", "", "x"}, {"b.HTML", "text/html", "", "x"}, {"c.auf", "application/octet-stream", "", "x"}}}, names: []string{"a.ics", "b.HTML", "c.auf"}},
	{forms: "mailpace", what: "doc, xls, eml, xml, json, webp, svg, mp3, p7m, vcf", mail: draft{files: []file{{"a.doc", "application/msword", "", "x"}}}, refused: "5.6.1"},
	{forms: "mailpace", what: "custom headers", mail: draft{fields: []string{"X-Foo: 1"}}, loss: "header x-foo"},

	// https://maileroo.com/docs/email-api/send-basic-email
	{forms: "maileroo", what: "a subject of 255 characters", mail: draft{subject: strings.Repeat("ü", 255)}},
	{forms: "maileroo", what: "a longer one", mail: draft{subject: strings.Repeat("s", 256)}, loss: "subject", ok: func(m taken) bool { return len(m.subject) == 255 }},
	{forms: "maileroo", what: "a header of 768 characters", mail: draft{fields: []string{"X-Foo: " + strings.Repeat("v", 768)}}},
	{forms: "maileroo", what: "a longer one", mail: draft{fields: []string{"X-Foo: " + strings.Repeat("v", 769)}}, loss: "header x-foo"},
	{forms: "maileroo", what: "a header name of 129 characters", mail: draft{fields: []string{"X-" + strings.Repeat("n", 127) + ": 1"}}, loss: "header x-n"},
	{forms: "maileroo; " + mjson, what: "a repeated header", mail: draft{fields: []string{"X-Foo: 1", "X-Foo: 2"}}, loss: "header x-foo"},
	{forms: "maileroo", what: "an empty attachment", mail: draft{files: []file{{"a.txt", "text/plain", "", ""}}}, loss: "attachment a.txt"},
	{forms: "maileroo", what: "no name", mail: draft{files: []file{{"", "application/octet-stream", "", "x"}}}, names: []string{"attachment.bin"}},
	{forms: "maileroo", what: "500 recipients", mail: draft{to: 400, bcc: 100}},
	{forms: "maileroo", what: "501", mail: draft{to: 501}, calls: 2, loss: "to"},

	// https://mailchimp.com/developer/transactional/api/messages/send-new-message/
	{forms: mjson, what: "inline parts that are no images", mail: draft{html: "<p>", files: []file{{"a.pdf", "application/pdf", "p@x", "%PDF"}}}, loss: "attachment a.pdf", names: []string{"a.pdf"}},
	{forms: mjson, what: "an inline image is known by its Content-ID", mail: draft{html: "<p>", files: []file{{"a.png", "image/png", "p@x", png}}}, names: []string{"p@x"}},
	{forms: mjson, what: "a file name that is not ASCII", mail: draft{files: []file{{"ü.pdf", "application/pdf", "", "%PDF"}}}, loss: "attachment ü.pdf"},
	{forms: mjson, what: "a subject above 998 characters", mail: draft{subject: strings.Repeat("s", 999)}, loss: "subject"},
	{forms: mjson + "; mandrill, raw", what: "a tag above 50 characters", mail: draft{fields: []string{"X-Smtpbridge-Tag: " + strings.Repeat("t", 51)}}, loss: "tag"},
	{forms: mjson + "; mandrill, raw", what: "a tag that begins with an underscore", mail: draft{fields: []string{"X-Smtpbridge-Tag: _t"}}, loss: "tag"},

	// https://www.smtpeter.com/en/documentation/rest-mime
	{forms: "smtpeter", what: "a tag with white space or a semicolon", mail: draft{fields: []string{"X-Smtpbridge-Tag: two words"}}, loss: "tag"},
	{forms: whole, what: "whatever else is in a mail", mail: draft{
		name: "Doe, J; Dr", fields: []string{"Reply-To: a@example.com, b@example.com", "X_Foo: 1", "X-Foo: 1", "X-Foo: 2", "In-Reply-To: <id>"},
		files: []file{{"ü.exe", "application/x-dosexec", "", "MZ"}, {"", "application/octet-stream", "p@x", ""}},
	}},

	// All that take a mail apart.
	{forms: every, what: "an address with characters above ASCII before the @", mail: draft{from: "dürst@example.com"}, refused: "5.6.7"},
	{forms: every, what: "names that break careless code", mail: draft{name: `O'Brien "Bob" <x@evil.example> =?utf-8?q?x?=`}},
	{forms: every, what: "control characters", mail: draft{subject: "a\x00\x1b[31mb", fields: []string{"Reply-To: \"x\x07y\" <r@example.com>"}}, ok: func(m taken) bool { return strings.IndexFunc(m.subject, func(r rune) bool { return r < ' ' }) < 0 }},
}

// sizes are the greatest ones in bytes; 0 is not documented. That what is larger is refused beforehand is proved in package translate.
type sizes struct{ message, text, attachment int64 }

var documented = map[string]sizes{
	"mailersend": {0, 2 << 20, 25 << 20}, "mailpace": {50_000_000, 0, 0}, "maileroo": {24_000_000, 0, 0}, "mandrill": {25 << 20, 0, 0}, "smtpeter": {},
}

// TestLimits holds what the vendors document against their twins and against what is sent to them: what fits goes
// through, what does not is changed with a loss that says so, or refused with a reason before the 250.
func TestLimits(t *testing.T) {
	for _, f := range forms() {
		t.Run(f.title, func(t *testing.T) {
			t.Parallel()
			p, a := planner(t, f.provider, f.options, "https://esp.example.com", &http.Client{Transport: inProcess{f.esp}})
			n := 0
			c := a.Provider.Capabilities()
			if got := (sizes{c.MaxBytes, c.MaxText, c.MaxAttachment}); got != documented[f.provider] {
				t.Errorf("sizes %+v, documented are %+v", got, documented[f.provider])
			}
			for _, l := range limits {
				if !slices.Contains(strings.Split(l.forms, "; "), f.title) {
					continue
				}
				n++
				t.Run(l.what, func(t *testing.T) { l.run(t, f, p, a) })
			}
			if n == 0 {
				t.Error("no limits")
			}
		})
	}
}

func (l limit) run(t *testing.T, f form, p *deliver.Planner, a *deliver.Account) {
	src, env := l.mail.write()
	plan, err := p.Plan(deliver.PlanRequest{Envelope: env, Body: bytes.NewReader(src), Size: int64(len(src))})
	var r *deliver.Refusal
	if errors.As(err, &r) {
		checkReason(t, l.what, r)
		if r.Status() != l.refused {
			t.Errorf("refused with %s, want %q", r, l.refused)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	if l.refused != "" {
		t.Fatalf("not refused, want %s", l.refused)
	}
	calls := plan.Groups[0].Verdicts[0].Calls
	if len(calls) != max(l.calls, 1) {
		t.Errorf("%d calls, want %d", len(calls), max(l.calls, 1))
	}
	var losses []translate.Loss
	for i, m := range calls {
		m.Ref, m.IdempotencyKey = fmt.Sprint("ref", i), fmt.Sprint(t.Name(), i)
		out, err := a.Provider.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range out.Rcpts {
			if o.Verdict != providers.Accepted {
				t.Errorf("%+v", o)
			}
		}
		losses = append(append(losses, m.Losses...), out.Lost...)
	}
	have := f.take()
	if len(have) != len(calls) {
		t.Fatalf("the ESP has %d mails of %d calls", len(have), len(calls))
	}
	said := false
	for _, x := range losses {
		switch {
		case l.loss != "" && strings.HasPrefix(x.Field, l.loss):
			said = said || x.Severity > translate.Info
		case x.Severity > translate.Info && l.calls < 2:
			t.Errorf("unexpected loss %+v", x)
		}
	}
	if l.loss != "" && !said {
		t.Errorf("no loss of %s in %+v", l.loss, losses)
	}
	if l.names != nil {
		var names []string
		for _, x := range have[0].files {
			names = append(names, x.name)
		}
		slices.Sort(names)
		if !slices.Equal(names, l.names) {
			t.Errorf("files %q, want %q", names, l.names)
		}
	}
	if l.ok != nil && !l.ok(have[0]) {
		t.Errorf("arrived as %+v", have[0])
	}
}
