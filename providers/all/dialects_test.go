package all

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	"smtpbridge/providers/providertest"
	smtpeter "smtpbridge/providers/smtpeter/twin"
	"smtpbridge/translate"
)

// dialectRow is one line of testdata/dialects.tsv.
type dialectRow struct{ vendor, confidence, header, value, concept string }

func dialectRows(t *testing.T) []dialectRow {
	t.Helper()
	b, err := os.ReadFile("testdata/dialects.tsv")
	if err != nil {
		t.Fatal(err)
	}
	var out []dialectRow
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 5 {
			t.Fatalf("%d fields: %s", len(f), line)
		}
		out = append(out, dialectRow{f[0], f[1], f[2], f[3], f[4]})
	}
	return out
}

var dialectNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// dialectEnd is an account at its ESP's twin.
type dialectEnd struct {
	title, provider, options string
	twin                     http.Handler
	p                        providers.Provider
	bodies                   [][]byte
}

func dialectEnds(t *testing.T) []*dialectEnd {
	t.Helper()
	now := func() time.Time { return dialectNow }
	const key = providertest.Key
	ms := func(plan string) http.Handler {
		return mailersend.New(mailersend.Options{Token: key, Plan: plan, PerMinute: 1 << 30, PerDay: 1 << 30, Now: now, Keep: 1})
	}
	md := func() http.Handler {
		return mandrill.New(mandrill.Options{Key: key, Templates: []string{"welcome"}, Subaccounts: []string{"crm", "123"}, Now: now, Keep: 1})
	}
	ends := []*dialectEnd{
		{title: "mailersend", provider: "mailersend", options: "plan = \"starter\"", twin: ms("starter")},
		{title: "mailersend, professional", provider: "mailersend", options: "plan = \"professional\"", twin: ms("professional")},
		{title: "mailpace", provider: "mailpace", twin: mailpace.New(mailpace.Options{Token: key, Now: now, Keep: 1})},
		{title: "mandrill", provider: "mandrill", twin: md()},
		{title: "mandrill, json", provider: "mandrill", options: "form = \"json\"", twin: md()},
		{title: "maileroo", provider: "maileroo", twin: maileroo.New(maileroo.Options{Key: key, Now: now, Keep: 1})},
		{title: "smtpeter", provider: "smtpeter", twin: smtpeter.New(smtpeter.Options{Token: key, Now: now, Keep: 1})},
	}
	for _, e := range ends {
		info, ok := Registry().Lookup(e.provider)
		if !ok {
			t.Fatal(e.provider)
		}
		p, err := info.New(providers.Options{
			Account: "x", APIKey: secret.New(key), BaseURL: "http://api.invalid", Client: &http.Client{Transport: e},
			Now: now, Decode: providertest.Decode(e.options),
		})
		if err != nil {
			t.Fatal(err)
		}
		e.p = p
	}
	return ends
}

// RoundTrip has the twin answer, and keeps the request.
func (e *dialectEnd) RoundTrip(r *http.Request) (*http.Response, error) {
	body, err := io.ReadAll(r.Body)
	r.Body.Close()
	if err != nil {
		return nil, err
	}
	e.bodies = append(e.bodies, body)
	r.Body = io.NopCloser(bytes.NewReader(body))
	rec := httptest.NewRecorder()
	e.twin.ServeHTTP(rec, r)
	return rec.Result(), nil
}

// sent is what became of one mail.
type sent struct {
	request string // all calls
	losses  []translate.Loss
	held    bool
	refused *translate.RefusalError
	rcpts   []string
}

// send plans and sends a mail for two recipients with these header fields.
func (e *dialectEnd) send(t *testing.T, fields string, tracking translate.Switch) sent {
	t.Helper()
	set := translate.Settings{Permissions: []string{"all"}, Provider: e.provider, TrackOpens: tracking, TrackClicks: tracking}
	m := providertest.Parse(t, fields+"From: Sender <sender@example.com>\r\nTo: one@example.org, two@example.org\r\nSubject: Hello -name- *|NAME|*\r\nMessage-ID: <m1@example.com>\r\n"+
		"MIME-Version: 1.0\r\nContent-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nDear -name- *|NAME|* %recipient.name%\r\n--b\r\n"+
		"Content-Type: text/html\r\n\r\n<p>Dear -name- *|NAME|* %recipient.name%</p>\r\n--b--\r\n")
	env := envelope.Envelope{ID: "q", From: "sender@example.com", Received: dialectNow, Rcpts: []envelope.Rcpt{{Addr: "one@example.org"}, {Addr: "two@example.org"}}}
	extra, _ := translate.ExtraRcpts(m, set)
	for _, x := range extra {
		if !slices.ContainsFunc(env.Rcpts, func(r envelope.Rcpt) bool { return envelope.Equal(r.Addr, x.Addr) }) {
			env.Rcpts = append(env.Rcpts, x)
		}
	}
	mails, losses, err := translate.Apply(translate.Request{Envelope: env, Rcpts: env.Rcpts, Message: m, Caps: e.p.Capabilities(), Settings: set})
	out := sent{losses: losses}
	if errors.As(err, &out.refused) {
		return out
	}
	if err != nil {
		t.Fatal(err)
	}
	e.bodies = nil
	for i, c := range mails {
		c.Ref = fmt.Sprint("ref-", i)
		out.held = out.held || c.HoldUntil().After(dialectNow)
		o, err := e.p.Send(t.Context(), c)
		if err != nil {
			t.Errorf("%s: %q: the twin refuses: %v", e.title, fields, err)
			return out
		}
		providertest.CheckOutcome(t, c, o)
		out.losses = append(out.losses, o.Lost...)
		for _, r := range c.Rcpts {
			out.rcpts = append(out.rcpts, r.Addr)
		}
		// P9: whoever is visible to somebody else stands in To of the mail.
		for _, a := range slices.Concat(c.To, c.Cc) {
			if len(c.Rcpts) > 1 && a.Addr == "audit@example.net" && c.Options.ExposeRcpts != translate.Off {
				t.Errorf("%s: %q: an added recipient is visible", e.title, fields)
			}
		}
	}
	out.request = string(bytes.Join(e.bodies, []byte("\n")))
	return out
}

// verdict compares a mail with the same one without the header.
func verdict(with, without sent) string {
	if with.refused != nil {
		return "refused"
	}
	var words []string
	if with.request != without.request {
		words = append(words, "sent")
	}
	if with.held {
		words = append(words, "held")
	}
	if slices.ContainsFunc(with.losses, func(l translate.Loss) bool { return l.Severity > translate.Info && !slices.Contains(without.losses, l) }) {
		words = append(words, "loss")
	}
	return strings.Join(words, ", ")
}

// TestDialectMatrix sends every header of every dialect to every ESP: what it asks for is in the request, held here, recorded
// as a loss, or the mail is refused with a text that says why; it is never dropped in silence, and the header itself
// never leaves. docs/dialect-matrix.md is what came of each.
func TestDialectMatrix(t *testing.T) {
	rows, ends := dialectRows(t), dialectEnds(t)
	if len(rows) < 200 {
		t.Fatalf("%d rows", len(rows))
	}
	var doc bytes.Buffer
	doc.WriteString("# What becomes of each option header at each ESP\n\n" +
		"Generated: `go test ./providers/all -run DialectMatrix -update` sends a mail with each header, everything permitted, to the ESPs' API twins.\n" +
		"*sent*: in the request (or done by the bridge: placeholders replaced, a call for each recipient). *loss*: said in the `sent` event\n" +
		"and in `smtpbridge explain`. *held*: the bridge keeps the mail until its time. *refused*: 554, as the mail would not be the one that was\n" +
		"meant. -: a mark that asks for nothing. Meanings and permissions: [dialects.md](dialects.md).\n\n| Dialect | Header | Value | Means |")
	for _, e := range ends {
		doc.WriteString(" " + e.title + " |")
	}
	doc.WriteString("\n|" + strings.Repeat("---|", 4+len(ends)) + "\n")
	plain := map[string]sent{}
	base := func(e *dialectEnd, tracking translate.Switch) sent {
		k := e.title + tracking.String()
		if _, ok := plain[k]; !ok {
			plain[k] = e.send(t, "", tracking)
		}
		return plain[k]
	}
	for _, r := range rows {
		fmt.Fprintf(&doc, "| %s | `%s` | `%s` | %s |", r.vendor, r.header, strings.ReplaceAll(r.value, "|", "\\|"), r.concept)
		for _, e := range ends {
			where := fmt.Sprintf("%s: %s: %s", e.title, r.header, r.value)
			with := e.send(t, r.header+": "+r.value+"\r\n", translate.Default)
			got := verdict(with, base(e, translate.Default))
			if got == "" && r.concept == "track" {
				// Asked to be what it is anyway: seen where the account's setting is the other one.
				got = verdict(e.send(t, r.header+": "+r.value+"\r\n", translate.On), base(e, translate.On))
			}
			switch {
			case got == "refused" && (len(with.refused.Text) < 40 || with.refused.Status == ""):
				t.Errorf("%s: refused without a reason: %+v", where, with.refused)
			case got == "" && r.concept != "strip" && r.concept != "ordinary":
				t.Errorf("%s: gone in silence", where)
			case r.concept == "ordinary" && translate.IsOptionHeader(r.header):
				t.Errorf("%s is an ordinary header", r.header)
			case r.concept != "ordinary" && !translate.IsOptionHeader(r.header):
				t.Errorf("%s is not stripped", r.header)
			}
			own := e.provider == "mandrill" && strings.HasPrefix(strings.ToLower(r.header), "x-mc-")
			if leaves := strings.Contains(strings.ToLower(with.request), strings.ToLower(r.header)); r.concept != "ordinary" && len(r.header) > 8 && strings.Contains(r.header, "-") && leaves && !own {
				t.Errorf("%s: leaves", where)
			}
			if got == "" {
				got = "-"
			}
			doc.WriteString(" " + got + " |")
		}
		doc.WriteString("\n")
	}
	const file = "../../docs/dialect-matrix.md"
	if *update {
		if err := os.WriteFile(file, doc.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, doc.Bytes()) {
		t.Errorf("%s is not what becomes of the headers: run go test ./providers/all -run DialectMatrix -update (%v)", file, err)
	}
}
