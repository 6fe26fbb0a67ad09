package translate

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	stdmime "mime"
	"net/mail"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

func TestASCIIDomain(t *testing.T) {
	for in, want := range map[string]string{
		"a@example.com":           "a@example.com",
		"a@Example.COM":           "a@Example.COM",
		"a@bücher.example":        "a@xn--bcher-kva.example",
		"a@BÜCHER.example":        "a@xn--bcher-kva.example",
		"a@bu\u0308cher.example":  "a@xn--bcher-kva.example", // not normalised
		"a@straße.example":        "a@xn--strae-oqa.example", // IDNA 2008, not 2003
		"a@例え。テスト":                "a@xn--r8jz45g.xn--zckzah",
		"dürst@bücher.example":    "dürst@xn--bcher-kva.example",
		"a@xn--bcher-kva.example": "a@xn--bcher-kva.example",
		"bare":                    "bare",
		"":                        "",
	} {
		if got := ASCIIDomain(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
		if !envelope.Equal(in, want) {
			t.Errorf("%q and %q are not the same mailbox", in, want)
		}
	}
}

func TestASCIIAddresses(t *testing.T) {
	m := message()
	m.From = addrs("from@bücher.example")
	m.To, m.Cc = addrs("a@bücher.example"), addrs("c@bücher.example")
	m.ReplyTo = addrs("r@bücher.example", "dürst@example.org")
	r := request(m, Capabilities{JSON: true, Cc: true, Bcc: true, ReplyTo: -1, EnvelopeFrom: true, ASCIIAddrs: true}, "a@xn--bcher-kva.example", "c@BÜCHER.example", "b@bücher.example")
	r.Envelope.From = "e@bücher.example"
	x := one(t, r)
	got := fmt.Sprint(x.From.Addr, x.To, x.Cc, x.Bcc, x.ReplyTo, x.Options.EnvelopeFrom)
	d := "@xn--bcher-kva.example"
	if want := fmt.Sprint("from"+d, addrs("a"+d), addrs("c"+d), addrs("b"+d), addrs("r"+d), "e"+d); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if x.Rcpts[1].Addr != "c@BÜCHER.example" {
		t.Errorf("outcomes are by RCPT's spelling: %v", x.Rcpts)
	}
	if !has(x.Losses, Major, "reply-to") {
		t.Errorf("losses %v", x.Losses)
	}
	r.Rcpts = rcpts("a@example.com", "x@-\u200d-ü.example")
	if e := refusal(t, r); e.Status != "5.6.7" || len(e.Rcpts) != 1 {
		t.Errorf("a domain without ASCII form: %+v", e)
	}
	r.Rcpts, m.From = rcpts("a@example.com"), addrs("dürst@example.org")
	if e := refusal(t, r); e.Status != "5.6.7" || !strings.Contains(e.Text, "before the @") {
		t.Errorf("From: %+v", e)
	}
}

// awkward are names that break careless code.
var awkward = []string{
	`O'Brien, "Bob" \ <x@evil.example>`, `a@b.example`, `(comment)`, `semi;colon`, `=?utf-8?q?x?=`, `=?`, `Jürgen Groß`, `日本語 太郎`, `👩‍👩‍👧‍👦 family`,
	"\u202eevil\u202c", strings.Repeat("ü", 200), ` lead and trail `, `"quoted"`, `a.b.c`, `<>`, `\`, `Zoë "Z" Q. Ünal, PhD`, `%s%n{{x}}`, `$(id)`,
}

// TestAwkwardNames reads what formatAddress writes with a parser of another make.
func TestAwkwardNames(t *testing.T) {
	for _, name := range awkward {
		s := formatAddress(mime.Address{Name: name, Addr: "a@example.com"})
		if !envelope.IsASCII(s) || strings.ContainsAny(s, "\r\n") {
			t.Errorf("%q: not ASCII, or several lines: %q", name, s)
		}
		a, err := (&mail.AddressParser{WordDecoder: &stdmime.WordDecoder{}}).Parse(s)
		if err != nil || a.Address != "a@example.com" || strings.TrimSpace(a.Name) != strings.TrimSpace(clean(name)) {
			t.Errorf("%q: %q is read as %+v, %v", name, s, a, err)
		}
		m := message()
		m.To = []mime.Address{{Name: name, Addr: "a@example.com"}}
		if x := one(t, request(m, Capabilities{JSON: true})); x.To[0].Name != clean(name) {
			t.Errorf("%q: sent as %q", name, x.To[0].Name)
		}
	}
}

// nasty makes texts with control characters, line ends and broken UTF-8.
func nasty(r *rand.Rand) string {
	parts := []string{"a", "\r\nBcc: x@evil.example", "\x00", "\x7f", "\u0085", "\u2028", "\xff", "\t", "\x1b[31m", "ü", "\n", "=?utf-8?q?=0D=0ABcc:_x?=", "%0D%0A", `"`, " ", ";", "x=1"}
	var b strings.Builder
	for range 1 + r.IntN(8) {
		b.WriteString(parts[r.IntN(len(parts))])
	}
	return b.String()
}

func encoded(s string) string {
	return "=?utf-8?b?" + base64.StdEncoding.EncodeToString([]byte(s)) + "?="
}

// TestControlCharacters: whatever a mail has in it, no text of a structured call has a control character or broken UTF-8.
func TestControlCharacters(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	line := func(s string) string { return strings.NewReplacer("\r", "", "\n", "", "\x00", "").Replace(s) }
	for seed := range 400 {
		var b strings.Builder
		field := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
		value := func() string {
			if s := nasty(r); r.IntN(2) == 0 {
				return encoded(s)
			} else {
				return line(s)
			}
		}
		field("From", encoded(nasty(r))+" <from@example.org>")
		field("To", encoded(nasty(r))+" <a@example.com>")
		field("Reply-To", encoded(nasty(r))+" <r@example.com>")
		for _, name := range []string{
			"Subject", "X-Foo", "X-MC-Tags", "X-PM-Metadata-" + strings.Trim(line(strings.Map(func(c rune) rune {
				if c <= ' ' || c > '~' || c == ':' {
					return -1
				}
				return c
			}, nasty(r))), " "), "X-MJ-CustomID", "X-Mailjet-Campaign", "X-MC-IpPool", "X-Mailgun-Sending-Ip", "X-SES-CONFIGURATION-SET",
			"X-SES-LIST-MANAGEMENT-OPTIONS", "X-Smtpbridge-Subaccount", "X-Smtpbridge-Stream", "X-Smtpbridge-Tenant", "X-MC-Template", "X-MC-MergeLanguage",
			"X-Smtpbridge-Template-Version", "X-Smtpbridge-Idempotency-Key", "X-MC-SigningDomain", "X-MC-GoogleAnalytics", "X-MC-URLStripQS", "X-MC-" + "Odd",
			"X-Smtpbridge-Envelope-Sender", "X-Smtpbridge-Bcc", "List-Unsubscribe", "References", "X-Mailgun-Delivery-Time-Optimize-Period",
		} {
			field(name, value())
		}
		json := `{"k` + strings.ReplaceAll(strings.ReplaceAll(fmt.Sprintf("%+q", strings.ToValidUTF8(nasty(r), "")), `\x`, `\u00`), `\a`, "")[1:]
		field("X-Smtpbridge-Metadata-j", json)
		b.WriteString("MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b\r\n")
		field("Content-Type", "application/octet-stream")
		field("Content-ID", "<"+line(nasty(r))+">")
		field("Content-Disposition", "attachment; filename=\""+encoded(nasty(r))+"\"")
		b.WriteString("\r\nx\r\n--b--\r\n")
		m := parse(t, []byte(b.String()))
		caps := able()
		caps.OptionHeaders, caps.Inline, caps.AttachName, caps.AttachType, caps.ListUnsub, caps.Threading = []string{"x-mc-urlstripqs", "x-mc-odd"}, true, true, true, true, true
		q := request(m, caps)
		q.Settings = Settings{Permissions: []string{"all"}, Provider: "mandrill"}
		mails, _, err := Apply(q)
		if err != nil {
			t.Fatalf("seed %d: %v\n%q", seed, err, b.String())
		}
		for _, x := range mails {
			for what, v := range map[string]any{
				"from": x.From, "to": x.To, "reply-to": x.ReplyTo, "subject": x.Subject, "headers": x.Headers, "list": x.ListUnsubscribe, "options": x.Options, "losses": x.Losses,
			} {
				noControls(t, what, reflect.ValueOf(v))
			}
			for _, a := range x.Attach {
				noControls(t, "attachment", reflect.ValueOf([]string{a.Name, a.Type, a.ContentID}))
			}
		}
		if t.Failed() {
			t.Fatalf("seed %d: %q", seed, b.String())
		}
	}
}

func noControls(t *testing.T, what string, v reflect.Value) {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); !utf8.ValidString(s) || strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }) >= 0 {
			t.Errorf("%s: %q", what, s)
		}
	case reflect.Struct:
		if v.Type().PkgPath() == "time" {
			return
		}
		for i := range v.NumField() {
			noControls(t, what+"."+v.Type().Field(i).Name, v.Field(i))
		}
	case reflect.Slice:
		for i := range v.Len() {
			noControls(t, what, v.Index(i))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			noControls(t, what, k)
			noControls(t, what, v.MapIndex(k))
		}
	case reflect.Interface, reflect.Pointer:
		if !v.IsNil() {
			noControls(t, what, v.Elem())
		}
	}
}

// TestRawWithKeepsTheRest adds option headers to every mail of the corpus: they stand at the end of the header,
// say what they were given, and no other byte differs.
func TestRawWithKeepsTheRest(t *testing.T) {
	add := []HeaderField{
		{"X-MC-Tags", "a,b"},
		{"X-MC-Metadata", `{"k": "` + strings.Repeat("long value ", 40) + `"}`},
		{"X-PM-Tag", "Größe und mehr"},
		{"X-MC-Track", "opens\r\nBcc: x@evil.example"},
		{"X-Empty", ""},
	}
	n := 0
	for _, f := range corpus(t) {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mime.Parse(bytes.NewReader(src), int64(len(src)), mime.Limits{})
		if err != nil {
			continue
		}
		for _, asString := range []bool{false, true} {
			x := one(t, request(m, Capabilities{Raw: RawEnvelope, RawString: asString, AnyFrom: true}, "a@example.com"))
			plain, err := x.Raw()
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			with, err := x.RawWith(add...)
			if err != nil {
				t.Fatalf("%s: %v", f, err)
			}
			before, after := readBody(t, plain), readBody(t, with)
			if int64(len(after)) != with.Size {
				t.Errorf("%s: size %d, read %d", f, with.Size, len(after))
			}
			at := differs(before, after)
			start := bytes.Index(after, []byte("X-MC-Tags: a,b"))
			if start < 0 || at < start && at < len(before) {
				t.Fatalf("%s: differs at %d, the fields start at %d", f, at, start)
			}
			tail := before[min(start, len(before)):]
			if !bytes.HasSuffix(after, tail) {
				t.Fatalf("%s: what follows the fields differs", f)
			}
			block := after[start : len(after)-len(tail)]
			if len(tail) > 0 && m.Root != nil {
				// The part tree is where it was.
				if a, b := content(t, parse(t, before)), content(t, parse(t, after)); a != b && m.Root.BodyStart < m.Size {
					t.Errorf("%s: the parts differ:\n%s\n%s", f, a, b)
				}
			}
			fields := parse(t, append(slices.Clone(block), "\r\n\r\nx"...)).Header
			if len(fields) != len(add) {
				t.Errorf("%s: %d fields: %q", f, len(fields), block)
				continue
			}
			for i := range add {
				if want := strings.Join(strings.Fields(clean(add[i].Value)), " "); fields[i].Name != add[i].Name || strings.Join(strings.Fields(fields[i].Value), " ") != want {
					t.Errorf("%s: %s is %q, want %q", f, add[i].Name, fields[i].Value, want)
				}
			}
			n++
		}
	}
	if n == 0 {
		t.Error("no mail was checked")
	}
}
