package translate

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	stdqp "mime/quotedprintable"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"golang.org/x/text/transform"

	"smtpbridge/mime"
)

// corpus lists real mails, with those of the mime package where they are there.
func corpus(t testing.TB) []string {
	t.Helper()
	var files []string
	for _, g := range []string{"testdata/cases/*/in.eml", "../mime/testdata/corpus/*.eml", "../mime/testdata/corpus/*/*.eml", "../mime/testdata/*.eml"} {
		f, err := filepath.Glob(g)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f...)
	}
	return files
}

// minus takes fields out of a mail in another way than the package does: by whole lines, from the top.
func minus(src []byte, bodyStart int64, gone func(name string) bool) []byte {
	head, body := src[:bodyStart], src[bodyStart:]
	var out []byte
	skip := false
	for _, line := range bytes.SplitAfter(head, []byte("\n")) {
		if len(line) == 0 {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			name, _, _ := strings.Cut(string(line), ":")
			skip = strings.Contains(string(line), ":") && gone(strings.ToLower(strings.TrimRight(name, " \t"))) ||
				len(out) == 0 && !skip && strings.HasPrefix(strings.TrimPrefix(string(line), ">"), "From ") && !strings.HasPrefix(strings.TrimLeft(string(line[5:]), " "), ":")
		}
		if !skip {
			out = append(out, line...)
		}
	}
	if !bytes.HasSuffix(head, []byte("\n\r\n")) && !bytes.HasSuffix(head, []byte("\n\n")) &&
		string(head) != "\r\n" && string(head) != "\n" && len(body) > 0 {
		// No empty line: one keeps the body a body.
		if first, _, _ := bytes.Cut(head, []byte("\n")); len(head) > 0 && !bytes.HasSuffix(first, []byte("\r")) {
			out = append(out, '\n')
		} else {
			out = append(out, "\r\n"...)
		}
	}
	return append(out, body...)
}

func goneByRule(name string) bool {
	switch name {
	case "bcc", "resent-bcc", "return-path", "received":
		return true
	}
	return IsOptionHeader(name)
}

// TestRawIsTheSourceMinusFields also is case 53: no Bcc leaves, and nothing else is touched.
func TestRawIsTheSourceMinusFields(t *testing.T) {
	n := 0
	for _, f := range corpus(t) {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(bytes.ReplaceAll(src, []byte("\r\n"), nil), []byte("\r")) {
			continue // bare CR never passes the SMTP side; the line rule of the check is another one
		}
		m, err := mime.Parse(bytes.NewReader(src), int64(len(src)), mime.Limits{})
		if err != nil {
			continue
		}
		if m.Header.Has("X-List-Unsubscribe") {
			continue // becomes List-Unsubscribe: see the case of that name
		}
		n++
		r := request(m, Capabilities{Raw: RawEnvelope, AnyFrom: true}, "a@example.com")
		mail := one(t, r)
		body, err := mail.Raw()
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		got, want := readBody(t, body), minus(src, m.Root.BodyStart, goneByRule)
		if !bytes.Equal(got, want) {
			t.Errorf("%s: raw differs at byte %d of %d (got %d)", f, differs(got, want), len(want), len(got))
		}
		if again := readBody(t, body); !bytes.Equal(again, got) {
			t.Errorf("%s: a second reading differs", f)
		}
	}
	if n == 0 {
		t.Error("no mail was checked")
	}
	t.Logf("%d mails", n)
}

func differs(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestRawInJSONString reads what was re-encoded again: the texts and the attachments are the same, and all
// of it is valid UTF-8.
func TestRawInJSONString(t *testing.T) {
	for _, f := range corpus(t) {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m, err := mime.Parse(bytes.NewReader(src), int64(len(src)), mime.Limits{})
		if err != nil {
			continue
		}
		mail := one(t, request(m, Capabilities{Raw: RawEnvelope, RawString: true, AnyFrom: true}, "a@example.com"))
		body, err := mail.Raw()
		if err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		got := readBody(t, body)
		if !utf8.Valid(got) {
			t.Errorf("%s: not valid UTF-8", f)
			continue
		}
		if utf8.Valid(src[m.Root.BodyStart:]) {
			again := parse(t, got)
			if !bytes.Equal(got[again.Root.BodyStart:], src[m.Root.BodyStart:]) {
				t.Errorf("%s: the body of a valid mail changed", f)
			}
			continue
		}
		again := parse(t, got)
		if a, b := content(t, m), content(t, again); a != b {
			t.Errorf("%s: content changed:\n%s\n%s", f, a, b)
		}
	}
}

// content sums up what a reader sees.
func content(t *testing.T, m *mime.Message) string {
	t.Helper()
	var b strings.Builder
	sum := func(what string, open func() io.ReadCloser) {
		r := open()
		defer r.Close()
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s %x\n", what, sha256.Sum256(bytes.TrimRight(bytes.ReplaceAll(data, []byte("\r\n"), []byte("\n")), "\n")))
	}
	if m.Text != nil {
		sum("text", m.Text.Open)
	}
	if m.HTML != nil {
		sum("html", m.HTML.Open)
	}
	for i := range m.Attachments {
		sum(m.Attachments[i].Type, m.Attachments[i].Open)
	}
	return b.String()
}

func raw(t *testing.T, r Request, add ...HeaderField) string {
	t.Helper()
	body, err := one(t, r).RawWith(add...)
	if err != nil {
		t.Fatal(err)
	}
	return string(readBody(t, body))
}

func TestRawHeaderEdges(t *testing.T) {
	for _, c := range []struct {
		name, in string
		edit     func(*Request)
		add      []HeaderField
		want     string
	}{
		{name: "LF only", in: "Bcc: x@example.com,\n y@example.com\nSubject: s\n\nb\n", want: "Subject: s\n\nb\n"},
		{name: "space before the colon", in: "Bcc : x@example.com\r\nBCC\t:\r\n y\r\nSubject: s\r\n\r\nb", want: "Subject: s\r\n\r\nb"},
		{name: "bcc in a bare CR line", in: "Subject: s\rBcc: x@example.com\r\n\r\nb", want: "Subject: s\r\r\nb"},
		{name: "bcc only", in: "Bcc: x@example.com\r\n\r\nb", want: "\r\nb"},
		{name: "mbox line", in: "From a@example.com Mon Jan  1 00:00:00 2026\r\nSubject: s\r\n\r\nb", want: "Subject: s\r\n\r\nb"},
		{name: "trace kept", in: "Received: x\r\nReturn-Path: <a@b>\r\n\r\nb", edit: func(r *Request) { r.Settings.KeepReceived = true }, want: "Received: x\r\n\r\nb"},
		{name: "Bcc in the body stays", in: "Subject: s\r\n\r\nBcc: x\r\n", want: "Subject: s\r\n\r\nBcc: x\r\n"},
		{name: "header ended by a line that is no field", in: "Subject: s\r\njunk\r\nBcc: x@example.com\r\n\r\nb", want: "Subject: s\r\n\r\njunk\r\nBcc: x@example.com\r\n\r\nb"},
		{name: "no header", in: "junk\r\nTo: x@example.com\r\n", want: "\r\njunk\r\nTo: x@example.com\r\n"},
		{name: "quoted mbox line", in: ">From a@example.com Mon Jan\r\nSubject: s\r\n\r\nb", want: "Subject: s\r\n\r\nb"},
		{name: "empty mail", in: "", want: ""},
		{name: "added to an empty mail", in: "", add: []HeaderField{{"X-MC-Tags", "a"}}, want: "X-MC-Tags: a\r\n\r\n"},
		{name: "added", in: "Subject: s\r\n\r\nb", add: []HeaderField{{"X-A", "1\r\nBcc: e@e"}, {"X-B", "ä"}}, want: "Subject: s\r\nX-A: 1  Bcc: e@e\r\nX-B: =?utf-8?b?w6Q=?=\r\n\r\nb"},
		{name: "added without an empty line", in: "Subject: s", add: []HeaderField{{"X-A", "1"}}, want: "Subject: s\r\nX-A: 1\r\n\r\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(parse(t, []byte(c.in)), Capabilities{Raw: RawEnvelope, AnyFrom: true})
			if c.edit != nil {
				c.edit(&r)
			}
			if got := raw(t, r, c.add...); got != c.want {
				t.Errorf("got  %q\nwant %q", got, c.want)
			}
		})
	}
	m := one(t, request(parse(t, []byte("Subject: s\r\n\r\n")), Capabilities{Raw: RawEnvelope, AnyFrom: true}))
	if _, err := m.RawWith(HeaderField{"X A", "1"}); err == nil {
		t.Error("a bad field name is written")
	}
}

// TestEncoders compares with the standard library's decoders, through small buffers.
func TestEncoders(t *testing.T) {
	all := make([]byte, 0, 4000)
	for i := range 3000 {
		all = append(all, byte(i*7), byte(i>>3))
	}
	for _, in := range [][]byte{nil, {0xff}, []byte("a \t"), []byte("a \r\n\tb\t\r\n=\xe9\r\n"), bytes.Repeat([]byte("\xe9 "), 100), bytes.Repeat([]byte("x"), 57), all} {
		for _, small := range []bool{false, true} {
			var r io.Reader = bytes.NewReader(in)
			if small {
				r = iotest.OneByteReader(r)
			}
			enc, err := io.ReadAll(transform.NewReader(r, &base64Encoder{final: true}))
			if err != nil {
				t.Fatal(err)
			}
			dec, err := io.ReadAll(base64.NewDecoder(base64.StdEncoding, bytes.NewReader(enc)))
			if err != nil || !bytes.Equal(dec, in) {
				t.Errorf("base64 of %.20q does not decode: %v", in, err)
			}
			checkLines(t, enc)
		}
		text := bytes.ReplaceAll(bytes.ReplaceAll(in, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
		enc, err := io.ReadAll(transform.NewReader(iotest.OneByteReader(bytes.NewReader(in)), &qpEncoder{}))
		if err != nil {
			t.Fatal(err)
		}
		dec, err := io.ReadAll(stdqp.NewReader(bytes.NewReader(enc)))
		if err != nil || !bytes.Equal(dec, text) {
			t.Errorf("quoted-printable of %.20q does not decode: %v", in, err)
		}
		checkLines(t, enc)
	}
}

func checkLines(t *testing.T, enc []byte) {
	t.Helper()
	for _, l := range bytes.Split(enc, []byte("\r\n")) {
		if len(l) > 76 || bytes.ContainsAny(l, "\r\n") {
			t.Errorf("bad line %.90q", l)
		}
	}
}

func TestFieldWriting(t *testing.T) {
	long := strings.TrimSpace(strings.Repeat("wörter ", 60))
	for _, f := range []string{
		string(textField("Subject", long, "\r\n")),
		string(addressField("To", []mime.Address{{Name: long, Addr: "a@bücher.example"}, {Name: `Doe, "J"`, Addr: "j@example.com"}, {Addr: "x@example.com"}}, "\r\n")),
	} {
		for _, l := range strings.Split(strings.TrimSuffix(f, "\r\n"), "\r\n") {
			if len(l) > 78 || strings.TrimSpace(l) == "" || !isASCII([]byte(l)) {
				t.Errorf("bad line %q", l)
			}
		}
	}
	m := parse(t, append(textField("Subject", long, "\r\n"), append(addressField("To", []mime.Address{{Name: long, Addr: "a@bücher.example"}, {Name: `Doe, "J" \`, Addr: "j@example.com"}}, "\r\n"), "\r\n"...)...))
	if m.Subject != long {
		t.Errorf("subject %q", m.Subject)
	}
	if len(m.To) != 2 || m.To[0].Name != long || m.To[0].Addr != "a@xn--bcher-kva.example" || m.To[1].Name != `Doe, "J" \` {
		t.Errorf("to %+v", m.To)
	}
}

func FuzzRaw(f *testing.F) {
	for _, name := range corpus(f) {
		if src, err := os.ReadFile(name); err == nil && len(src) < 8<<10 {
			f.Add(src)
		}
	}
	f.Add([]byte("To: a@b\r\njunk\r\nBcc: x@y\r\n\r\n\xff"))
	f.Fuzz(func(t *testing.T, src []byte) {
		m, err := mime.Parse(bytes.NewReader(src), int64(len(src)), mime.Limits{})
		if err != nil {
			return
		}
		for _, c := range []Capabilities{
			{Raw: RawEnvelope, AnyFrom: true},
			{Raw: RawEnvelope, AnyFrom: true, RawString: true},
			{Raw: RawBccHeader, AnyFrom: true, RawString: true, UTF8Local: true},
		} {
			r := request(m, c, "a@example.com", "b@example.com")
			mails, _, err := Apply(r)
			if err != nil {
				continue // refused, with a reason
			}
			for _, mail := range mails {
				body, err := mail.RawWith(HeaderField{"X-Added", "ä"})
				if err != nil {
					t.Fatal(err)
				}
				out := readBody(t, body)
				if c.RawString && !utf8.Valid(out) {
					t.Fatalf("not valid UTF-8: %q", out)
				}
				head := out
				if i := bytes.Index(out, []byte("X-Added: ")); i >= 0 {
					head = out[:i]
				} else {
					t.Fatalf("added field missing: %q", out)
				}
				for _, line := range bytes.FieldsFunc(head, func(r rune) bool { return r == '\n' || r == '\r' }) {
					name, _, ok := bytes.Cut(line, []byte(":"))
					s := strings.ToLower(strings.TrimRight(string(name), " \t"))
					if ok && goneByRule(s) && (s != "bcc" || c.Raw != RawBccHeader) {
						t.Fatalf("field %q left the bridge: %q", s, out)
					}
				}
			}
		}
	})
}
