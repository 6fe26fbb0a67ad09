package mime

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func crlf(s string) string { return strings.ReplaceAll(s, "\n", "\r\n") }

func parse(t testing.TB, s string) *Message {
	t.Helper()
	m := parseBytes(t, []byte(s))
	checkInvariants(t, m)
	return m
}

func textOf(t testing.TB, p *Part) string {
	t.Helper()
	if p == nil {
		return "<nil>"
	}
	return string(read(t, p.Open(), p.Size))
}

// describe gives the outcome of a mail in one string: text|html|attachments as name:type:content, + for inline.
func describe(t testing.TB, m *Message) string {
	t.Helper()
	s := fmt.Sprintf("%q|%q", textOf(t, m.Text), textOf(t, m.HTML))
	for i := range m.Attachments {
		a := &m.Attachments[i]
		s += fmt.Sprintf("|%s:%s:%q", a.Filename, a.Type, read(t, a.Open(), a.Size))
		if a.Inline {
			s += "+"
		}
	}
	return s
}

func kinds(m *Message) string {
	var k []string
	for _, d := range m.Defects {
		k = append(k, d.Kind)
	}
	return strings.Join(k, " ")
}

func TestCase044_045_049_050_051_052_Structure(t *testing.T) {
	const mixed = "Content-Type: multipart/mixed; boundary=b\n\n"
	tests := []struct {
		name, mail, want, defects string
	}{
		{"plain", "Subject: x\n\nhello\n", `"hello\n"|"<nil>"`, ""},
		{"html alone", "Content-Type: text/html\n\n<p>\n", `"<nil>"|"<p>\n"`, ""},
		{"case 52 empty", "", `""|"<nil>"`, ""},
		{"case 52 only a line end", "\n", `""|"<nil>"`, ""},
		{"case 52 no header", "\nbody\n", `"body\n"|"<nil>"`, ""},
		{"case 52 no body", "Subject: x\n", `""|"<nil>"`, ""},
		{"case 52 no body, no line end", "Subject: x", `""|"<nil>"`, ""},
		{"case 52 text without a header", "just words\nand more\n", `"just words\nand more\n"|"<nil>"`, ""},
		{"case 52 text that starts with a blank", " just words\n", `" just words\n"|"<nil>"`, ""},
		{"case 52 line without a colon ends the header", "Subject: x\nno colon here\nTo: a@b\n\nbody\n", `"no colon here\nTo: a@b\n\nbody\n"|"<nil>"`, "header"},
		{"case 52 mbox line", "From a@b Mon Jan  1 00:00:00 2026\nSubject: x\n\nbody\n", `"body\n"|"<nil>"`, ""},
		{"case 52 body that starts with From", "Subject: x\nFrom here on text\nmore\n", `"From here on text\nmore\n"|"<nil>"`, "header"},
		{"blank line of spaces is a fold", "Subject: x\n \n\nbody\n", `"body\n"|"<nil>"`, ""},
		{"lone CR ends lines", "Subject: x\r\rbody\r", `"body\n"|"<nil>"`, ""},
		{"parts, preamble and epilogue", mixed + "preamble\n--b\n\none\n--b\nContent-Type: text/html\n\ntwo\n--b--\nepilogue\n", `"one"|"two"`, ""},
		{"leaves joined by a newline", mixed + "--b\n\none\n\n--b\n\ntwo\n--b--\n", `"one\n\ntwo"|"<nil>"`, ""},
		{"case 44 no final boundary", mixed + "--b\n\none\n--b\n\ntwo\n", `"one\ntwo"|"<nil>"`, "boundary"},
		{"case 44 no boundary parameter", "Content-Type: multipart/mixed\n\n--b\n\none\n--b--\n", `"--b\n\none\n--b--\n"|"<nil>"`, "boundary"},
		{"case 44 empty boundary", "Content-Type: multipart/mixed; boundary=\"\"\n\n--\n\none\n", `"--\n\none\n"|"<nil>"`, "boundary"},
		{"case 44 boundary never seen", "Content-Type: multipart/mixed; boundary=q\n\ntext\n", `"text\n"|"<nil>"`, "boundary"},
		{"case 44 closing delimiter only", mixed + "text\n--b--\nmore\n", `"text\n--b--\nmore\n"|"<nil>"`, "boundary"},
		{"case 44 boundary of 3000 characters", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("x", 3000) + "\n\n--" + strings.Repeat("x", 3000) + "\n\none\n", `"one"|"<nil>"`, "boundary"},
		{"case 44 absurd boundary", "Content-Type: multipart/mixed; boundary=" + strings.Repeat("x", 20000) + "\n\none\n", `"one\n"|"<nil>"`, "boundary"},
		{
			"case 44 boundary that is a prefix of the inner one", mixed + "--b\nContent-Type: multipart/alternative; boundary=bb\n\n--bb\n\none\n--bb--\n--b\n\ntwo\n--b--\n",
			`"one\ntwo"|"<nil>"`, "",
		},
		{
			"case 44 inner boundary is a prefix of the outer one", "Content-Type: multipart/mixed; boundary=bb\n\n--bb\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b--\n--bb\n\ntwo\n--bb--\n",
			`"one\ntwo"|"<nil>"`, "",
		},
		{"inner multipart not closed", mixed + "--b\nContent-Type: multipart/alternative; boundary=i\n\n--i\n\none\n--b\n\ntwo\n--b--\n", `"one\ntwo"|"<nil>"`, "boundary"},
		{"same boundary inside", mixed + "--b\nContent-Type: multipart/alternative; boundary=b\n\n--b\n\none\n--b--\n", `"\none"|"<nil>"`, "boundary"},
		{"white space after a delimiter", mixed + "--b \t\n\none\n--b--  \n", `"one"|"<nil>"`, ""},
		{"text after a delimiter", mixed + "--b\n\none\n--bx\n--b--x\n--b--\n", `"one\n--bx\n--b--x"|"<nil>"`, ""},
		{"run of delimiters", mixed + "--b\n--b\n--b\n\none\n--b--\n", `"one"|"<nil>"`, ""},
		{"empty part", mixed + "--b\n--b--\n", `""|"<nil>"`, ""},
		{"part header cut off by a delimiter", mixed + "--b\nContent-Type: text/html\n--b\n\none\n--b--\n", `"one"|""`, ""},
		{"no empty line before the first delimiter", "Content-Type: multipart/mixed; boundary=b\n--b\n\none\n--b--\n", `"one"|"<nil>"`, "header"},
		{"boundary at the start of a line", "Content-Type: multipart/mixed;\nboundary=\"b\"\n\n--b\n\none\n--b--\n", `"one"|"<nil>"`, "header"},
		{"boundary without a semicolon before it", "Content-Type: multipart/mixed boundary=b\n\n--b\n\none\n--b--\n", `"one"|"<nil>"`, ""},
		{"boundary with a comment", "Content-Type: multipart/mixed (x); boundary=b (y)\n\n--b\n\none\n--b--\n", `"one"|"<nil>"`, ""},
		{"attached text", mixed + "--b\n\none\n--b\nContent-Disposition: attachment; filename=a.txt\n\ntwo\n--b--\n", `"one"|"<nil>"|a.txt:text/plain:"two"`, ""},
		{"named text later is an attachment", mixed + "--b\n\none\n--b\nContent-Type: text/plain; name=a.txt\n\ntwo\n--b--\n", `"one"|"<nil>"|a.txt:text/plain:"two"`, ""},
		{"named text first is body", mixed + "--b\nContent-Type: text/plain; name=a.txt\n\none\n--b--\n", `"one"|"<nil>"`, ""},
		{"text attachments have CRLF", mixed + "--b\n\n\n--b\nContent-Type: text/csv\n\n1\n2\n--b--\n", `""|"<nil>"|:text/csv:"1\r\n2"`, ""},
		{
			"related: only the root is body",
			"Content-Type: multipart/related; boundary=b\n\n--b\nContent-Type: text/html\n\n<p>\n--b\nContent-ID: <i>\nContent-Type: image/png\nContent-Transfer-Encoding: base64\n\nQUJD\n--b\n\naside\n--b--\n",
			`"<nil>"|"<p>"|:image/png:"ABC"+|:text/plain:"aside"`, "",
		},
		{
			"related: start names the root",
			"Content-Type: multipart/related; start=\"<r>\"; boundary=b\n\n--b\n\naside\n--b\nContent-ID: <r>\nContent-Type: text/html\n\n<p>\n--b--\n",
			`"<nil>"|"<p>"|:text/plain:"aside"`, "",
		},
		{"inline disposition", mixed + "--b\nContent-Type: image/png\nContent-Disposition: inline\n\nX\n--b--\n", `"<nil>"|"<nil>"|:image/png:"X"+`, ""},
		{"Content-ID with disposition attachment", mixed + "--b\nContent-Type: image/png\nContent-ID: <x>\nContent-Disposition: attachment\n\nX\n--b--\n", `"<nil>"|"<nil>"|:image/png:"X"`, ""},
		{"case 51 message/rfc822 stays closed", mixed + "--b\nContent-Type: message/rfc822\n\nSubject: in\n\nbody\n--b--\n", `"<nil>"|"<nil>"|:message/rfc822:"Subject: in\r\n\r\nbody"`, ""},
		{"case 51 digest", "Content-Type: multipart/digest; boundary=b\n\n--b\n\nSubject: in\n\nbody\n--b--\n", `"<nil>"|"<nil>"|:message/rfc822:"Subject: in\r\n\r\nbody"`, ""},
		{"case 51 TNEF", mixed + "--b\n\none\n--b\nContent-Type: application/ms-tnef; name=winmail.dat\nContent-Transfer-Encoding: base64\n\neJ8+Ig==\n--b--\n", `"one"|"<nil>"|winmail.dat:application/ms-tnef:"x\x9f>\""`, ""},
		{"case 51 external body and partial", "Content-Type: message/partial; id=x\n\nq\n", `"<nil>"|"<nil>"|:message/partial:"q\r\n"`, ""},
		{"case 45 first Content-Type wins", "Content-Type: text/html\nContent-Type: text/plain\n\nx\n", `"<nil>"|"x\n"`, "dup_header"},
		{"case 45 first encoding wins", "Content-Transfer-Encoding: base64\nContent-Transfer-Encoding: 7bit\n\nQUJD\n", `"ABC"|"<nil>"`, "dup_header"},
		{"case 49 base64 with junk", "Content-Transfer-Encoding: base64\n\nQU*JD\n", `"ABC"|"<nil>"`, "cte"},
		{"case 49 base64 without padding", "Content-Transfer-Encoding: base64\n\nQUJDRA\n", `"ABCD"|"<nil>"`, "cte"},
		{"case 49 base64 one left", "Content-Transfer-Encoding: base64\n\nQUJDR\n", `"ABC"|"<nil>"`, "cte"},
		{"case 49 base64 in padded blocks", "Content-Transfer-Encoding: base64\n\nQUI=\nQ0Q=\n", `"ABCD"|"<nil>"`, ""},
		{"case 49 text after base64", "Content-Transfer-Encoding: base64\n\nQUI=\n\n-- \nlist footer\n", `"AB"|"<nil>"`, "cte"},
		{"case 49 base64 that is text", "Content-Transfer-Encoding: base64\n\n" + strings.Repeat("these are words ", 10) + "\n", `"` + strings.Repeat("these are words ", 10) + `\n"|"<nil>"`, "cte"},
		{"case 49 quoted-printable", "Content-Transfer-Encoding: quoted-printable\n\na=ZZ=3d=\nb=  \nc=", `"a=ZZ=bc"|"<nil>"`, "cte"},
		{"case 49 uuencode", "Content-Type: image/x\nContent-Transfer-Encoding: x-uuencode\n\nbegin 644 a\n#0V%T\n`\nend\n", `"<nil>"|"<nil>"|:image/x:"Cat"`, ""},
		{"case 49 no uuencoded data", "Content-Type: image/x\nContent-Transfer-Encoding: x-uuencode\n\nq\n", `"<nil>"|"<nil>"|:image/x:"q\r\n"`, "cte"},
		{"case 49 unknown encoding", "Content-Transfer-Encoding: x-zip\n\nq\n", `"q\n"|"<nil>"`, "cte"},
		{"encoding with a comment", "Content-Transfer-Encoding: BASE64 (yes)\n\nQUJD\n", `"ABC"|"<nil>"`, ""},
		{"case 50 Latin-1", "Content-Type: text/plain; charset=iso-8859-1\n\n\xe9\n", `"é\n"|"<nil>"`, ""},
		{"case 50 no charset, UTF-8", "Subject: x\n\né\n", `"é\n"|"<nil>"`, "charset"},
		{"case 50 no charset, not UTF-8", "Subject: x\n\n\xe9\x80\n", `"é€\n"|"<nil>"`, "charset"},
		{"case 50 unknown charset", "Content-Type: text/plain; charset=x-klingon\n\na\xe9b\n", `"a` + "\uFFFD" + `b\n"|"<nil>"`, "charset"},
		{"case 50 invalid UTF-8", "Content-Type: text/plain; charset=utf-8\n\na\xe2\x82b\xffc\n", `"a` + "\uFFFDb\uFFFDc" + `\n"|"<nil>"`, "charset"},
		{"case 50 UTF-7", "Content-Type: text/plain; charset=utf-7\n\n1 +- 1 +2D3cqQ-! +AOk\n", `"1 + 1 💩! é\n"|"<nil>"`, ""},
		{"case 50 UTF-16 without a mark", "Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64\n\nAGEA6Q==\n", `"aé"|"<nil>"`, ""},
		{"case 50 UTF-16 little-endian without a mark", "Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64\n\nYQDpAA==\n", `"aé"|"<nil>"`, ""},
		{"case 50 UTF-16 with a mark", "Content-Type: text/plain; charset=utf-16\nContent-Transfer-Encoding: base64\n\n//5hAOkA\n", `"aé"|"<nil>"`, ""},
		{"case 50 ISO-2022-KR", "Content-Type: text/plain; charset=iso-2022-kr\n\n\x1b$)C\x0e0!\x0f.\n", `"가.\n"|"<nil>"`, ""},
		{"case 50 ISO-2022-CN is not lost", "Content-Type: text/plain; charset=iso-2022-cn\n\nabc\n", `"abc\n"|"<nil>"`, "charset"},
		{"format=flowed is left as it is", "Content-Type: text/plain; format=flowed\n\na \nb\n", `"a \nb\n"|"<nil>"`, ""},
		{"type without a subtype", "Content-Type: text\n\nx\n", `"x\n"|"<nil>"`, "header"},
		{"base64 bodies keep their LF as attachments", mixed + "--b\nContent-Type: text/csv\nContent-Transfer-Encoding: base64\n\nMQoy\n--b--\n", `"<nil>"|"<nil>"|:text/csv:"1\n2"`, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, form := range []string{tt.mail, crlf(tt.mail)} {
				m := parse(t, form)
				if got := describe(t, m); got != tt.want {
					t.Errorf("got  %s\nwant %s", got, tt.want)
				}
				if got := kinds(m); got != tt.defects {
					t.Errorf("defects %v, want %q", m.Defects, tt.defects)
				}
			}
		})
	}
}

func TestAlternatives(t *testing.T) {
	m := parse(t, crlf(`Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=UTF-8

text
--b
Content-Type: text/x-amp-html

<amp>
--b
Content-Type: text/html

<p>
--b
Content-Type: text/calendar; method=REQUEST; charset=utf-8

BEGIN:VCALENDAR
--b--
`))
	if got, want := describe(t, m), `"text"|"<p>"|:text/calendar:"BEGIN:VCALENDAR"`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	if got := textOf(t, m.AMP); got != "<amp>" {
		t.Errorf("AMP %q", got)
	}
	if got := textOf(t, m.Calendar); got != "BEGIN:VCALENDAR" {
		t.Errorf("calendar %q", got)
	}
	if got := m.Attachments[0].Params; !cmp.Equal(got, map[string]string{"method": "REQUEST", "charset": "utf-8"}) {
		t.Errorf("params %v", got)
	}
	if m.Text.Charset != "utf-8" {
		t.Errorf("charset %q", m.Text.Charset)
	}
	if got := len(view(t, m)["attachments"].([]any)); got != 2 {
		t.Errorf("%d attachments in the JSON, want AMP and calendar", got)
	}
}

func TestCase051_SignedAndEncrypted(t *testing.T) {
	tests := []struct {
		name, mail        string
		signed, encrypted bool
	}{
		{"PGP signed", "Content-Type: multipart/signed; boundary=b\n\n--b\n\nx\n--b\nContent-Type: application/pgp-signature\n\ns\n--b--\n", true, false},
		{"signed inside a list's mixed", "Content-Type: multipart/mixed; boundary=a\n\n--a\nContent-Type: multipart/signed; boundary=b\n\n--b\n\nx\n--b--\n--a--\n", true, false},
		{"PGP encrypted", "Content-Type: multipart/encrypted; boundary=b\n\n--b\nContent-Type: application/pgp-encrypted\n\nVersion: 1\n--b--\n", false, true},
		{"S/MIME signed", "Content-Type: application/pkcs7-mime; smime-type=signed-data\n\nx\n", true, false},
		{"S/MIME enveloped", "Content-Type: application/x-pkcs7-mime; name=smime.p7m\n\nx\n", false, true},
		{"attached signed mail", "Content-Type: message/rfc822\n\nContent-Type: multipart/signed; boundary=b\n\n--b\n\nx\n--b--\n", false, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := parse(t, tt.mail)
			if m.Signed != tt.signed || m.Encrypted != tt.encrypted {
				t.Errorf("signed %v encrypted %v, want %v %v", m.Signed, m.Encrypted, tt.signed, tt.encrypted)
			}
		})
	}
}

func TestCase047_Subject(t *testing.T) {
	tests := []struct{ name, raw, want, defects string }{
		{"plain", "hello", "hello", ""},
		{"folded", "a\n\tb\n  c", "a b  c", ""},
		{"Q", "=?utf-8?Q?caf=C3=A9_x?=", "café x", ""},
		{"B", "=?UTF-8?B?Y2Fmw6k=?=", "café", ""},
		{"B without padding", "=?UTF-8?B?Y2Fmw6k?=", "café", ""},
		{"adjacent words", "=?utf-8?q?a?= \n =?utf-8?q?b?= c", "ab c", ""},
		{"character cut in two", "=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é", ""},
		{"two charsets", "=?utf-8?q?=C3=A9?= =?iso-8859-1?q?=E9?=", "éé", ""},
		{"language", "=?utf-8*en?q?hi?=", "hi", ""},
		{"inside other text", "a=?utf-8?q?b?=c", "abc", ""},
		{"spaces inside", "=?utf-8?q?a b?=", "a b", ""},
		{"unknown charset", "=?x-klingon?q?a=E9?=", "aé", "charset"},
		{"raw UTF-8", "café", "café", ""},
		{"raw Latin-1", "caf\xe9", "café", "charset"},
		{"not a word", "=?utf-8?x?a?= 1=?2", "=?utf-8?x?a?= 1=?2", ""},
		{"word without its end", "=?utf-8?q?a", "=?utf-8?q?a", ""},
		{"case 47 injection", "=?utf-8?q?x=0D=0ABcc:_e@e?=", "x  Bcc: e@e", "control"},
		{"case 47 NUL", "a\x00b", "a b", "control"},
		{"Japanese", "=?ISO-2022-JP?B?GyRCRnxLXBsoQg==?=", "日本", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := parse(t, crlf("Subject: "+tt.raw+"\nX: y\n\n"))
			if m.Subject != tt.want {
				t.Errorf("got %q, want %q", m.Subject, tt.want)
			}
			if got := kinds(m); got != tt.defects {
				t.Errorf("defects %v, want %q", m.Defects, tt.defects)
			}
		})
	}
	if m := parse(t, "Subject:\n\n"); m.Subject != "" || !m.HasSubject {
		t.Error("an empty subject is taken for none")
	}
	if m := parse(t, "To: a@b\n\n"); m.HasSubject || view(t, m)["subject"] != nil {
		t.Error("no subject is taken for an empty one")
	}
	if m := parse(t, "Subject: one\nSubject: two\n\n"); m.Subject != "one" || kinds(m) != "dup_header" {
		t.Errorf("case 45: got %q, %v", m.Subject, m.Defects)
	}
}

func TestCase043_047_048_FileName(t *testing.T) {
	tests := []struct{ name, header, want string }{
		{"plain", `attachment; filename=a.txt`, "a.txt"},
		{"quoted", `attachment; filename="a b;c.txt"`, "a b;c.txt"},
		{"unquoted with spaces", `attachment; filename=a (1).txt; size=3`, "a (1).txt"},
		{"escaped quote", `attachment; filename="a\"b.txt"`, `a"b.txt`},
		{"quotes inside", `attachment; filename="a"b".txt"`, `a"b".txt`},
		{"no closing quote", `attachment; filename="a.txt; size=3`, "a.txt"},
		{"no semicolon", `attachment filename="a.txt"`, "a.txt"},
		{"two semicolons", `attachment;; filename=a.txt`, "a.txt"},
		{"spaces around the equals sign", `attachment; filename = "a.txt"`, "a.txt"},
		{"first wins", `attachment; filename=a.txt; filename=b.txt`, "a.txt"},
		{"encoded word", `attachment; filename="=?utf-8?B?w6kudHh0?="`, "é.txt"},
		{"encoded words folded", "attachment; filename=\"=?utf-8?Q?=C3=A9?=\r\n =?utf-8?Q?=C3=A9.txt?=\"", "éé.txt"},
		{"encoded word unquoted", `attachment; filename==?koi8-r?B?89DJ08/LLmRvYw==?=`, "Список.doc"},
		{"raw UTF-8", `attachment; filename="é.txt"`, "é.txt"},
		{"raw Latin-1", "attachment; filename=\"\xe9.txt\"", "é.txt"},
		{"RFC 2231", `attachment; filename*=utf-8''%c3%a9.txt`, "é.txt"},
		{"RFC 2231 in another charset, with language", `attachment; filename*=iso-8859-1'en'%e9.txt`, "é.txt"},
		{"RFC 2231 quoted", `attachment; filename*="utf-8''%c3%a9.txt"`, "é.txt"},
		{"RFC 2231 beside plain", `attachment; filename=e.txt; filename*=utf-8''%c3%a9.txt`, "é.txt"},
		{"continuations", `attachment; filename*0="a"; filename*1="b.txt"`, "ab.txt"},
		{"continuations out of order", `attachment; filename*1="b.txt"; filename*0="a"`, "ab.txt"},
		{"extended and plain continuations", `attachment; filename*0*=utf-8''%c3; filename*1*=%a9; filename*2="%41.txt"`, "é%41.txt"},
		{"case 43 gap", `attachment; filename*0="a"; filename*2="c"`, "a"},
		{"case 43 double number", `attachment; filename*0="a"; filename*0="x"; filename*1="b"`, "ab"},
		{"case 43 no first section, plain form", `attachment; filename*1="b"; filename=p.txt`, "p.txt"},
		{"case 43 percent garbage", `attachment; filename*=utf-8''a%ZZ%4`, "a%ZZ%4"},
		{"case 43 unknown charset falls back", `attachment; filename*=x-klingon''%e9; filename=p.txt`, "p.txt"},
		{"case 48 Unix path", `attachment; filename="../../etc/x"`, "x"},
		{"case 48 Windows path", `attachment; filename="C:\temp\x.txt"`, "x.txt"},
		{"case 48 only dots", `attachment; filename=".."`, ""},
		{"case 48 NUL", "attachment; filename=\"a\x00b.txt\"", "a b.txt"},
		{"case 48 right-to-left", `attachment; filename*=utf-8''a%E2%80%AEtxt.exe`, "atxt.exe"},
		{"case 48 long", `attachment; filename="` + strings.Repeat("é", 2500) + `.pdf"`, strings.Repeat("é", 125) + ".pdf"},
		{"case 47 injection", `attachment; filename*=utf-8''a%0D%0AX:%20y.txt`, "a  X: y.txt"},
		{"parameters only", `filename=a.txt`, "a.txt"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := parse(t, "Content-Type: image/png\r\nContent-Disposition: "+tt.header+"\r\n\r\nx")
			if got := m.Attachments[0].Filename; got != tt.want {
				t.Errorf("got %q, want %q (%v)", got, tt.want, m.Defects)
			}
		})
	}
	m := parse(t, "Content-Type: image/png; name=n.png\n\nx")
	if got := m.Attachments[0].Filename; got != "n.png" {
		t.Errorf("name of Content-Type: got %q", got)
	}
}

func TestCase046_047_Addresses(t *testing.T) {
	tests := []struct {
		name, raw string
		want      []Address
	}{
		{"bare", "a@b.c", []Address{{"", "a@b.c"}}},
		{"name", "A B <a@b.c>", []Address{{"A B", "a@b.c"}}},
		{"quoted name", `"B, A" <a@b.c>, d@e`, []Address{{"B, A", "a@b.c"}, {"", "d@e"}}},
		{"escaped quote", `"A \"x\" B" <a@b.c>`, []Address{{`A "x" B`, "a@b.c"}}},
		{"several fields are joined", "a@b\r\nTo: c@d", []Address{{"", "a@b"}, {"", "c@d"}}},
		{"group", "Team: A <a@b>, c@d;, e@f", []Address{{"A", "a@b"}, {"", "c@d"}, {"", "e@f"}}},
		{"empty group", "undisclosed-recipients:;", nil},
		{"group without its end", "Team: a@b", []Address{{"", "a@b"}}},
		{"empty", "", nil},
		{"commas only", " , ,", nil},
		{"empty brackets", "A <>", nil},
		{"comment as name", "a@b (A (the) B)", []Address{{"A (the) B", "a@b"}}},
		{"comments everywhere", "(x) A (y) <a@b> (z)", []Address{{"A", "a@b"}}},
		{"comment without an end", "A (x <a@b>", []Address{{"A (x", "a@b"}}},
		{"white space in the address", "a . b @ c . d", []Address{{"", "a.b@c.d"}}},
		{"white space in brackets", "A < a@b >", []Address{{"A", "a@b"}}},
		{"route", "A <@x,@y:a@b>", []Address{{"A", "a@b"}}},
		{"quoted local part", `"a b"@c, A <"x,y"@d>`, []Address{{"", `"a b"@c`}, {"A", `"x,y"@d`}}},
		{"domain literal", "a@[IPv6:::1], b@c", []Address{{"", "a@[IPv6:::1]"}, {"", "b@c"}}},
		{"local address", "root, a@b", []Address{{"", "root"}, {"", "a@b"}}},
		{"semicolons", "a@b; c@d", []Address{{"", "a@b"}, {"", "c@d"}}},
		{"case 46 address as a name", "a@good.com <b@evil.com>", []Address{{"a@good.com", "b@evil.com"}}},
		{"case 46 quoted address as a name", `"a@good.com" <b@evil.com>`, []Address{{"a@good.com", "b@evil.com"}}},
		{"case 46 encoded word with an address", "=?utf-8?q?x_=3Cb=40evil.com=3E=2C?= <a@b>", []Address{{"x <b@evil.com>,", "a@b"}}},
		{"case 46 encoded word alone", "=?utf-8?q?b=40evil.com?=", nil},
		{"case 46 encoded word with an at sign alone", "=?utf-8?q?b@evil.com?=", nil},
		{"case 46 comment with an address", "a@b (<b@evil.com>)", []Address{{"<b@evil.com>", "a@b"}}},
		{"case 46 nested brackets", "x <a@good.com <b@evil.com>", []Address{{"x", "b@evil.com"}}},
		{"case 47 injection in a name", "=?utf-8?q?x=0D=0ABcc:_e@e?= <a@b>", []Address{{"x  Bcc: e@e", "a@b"}}},
		{"encoded name in quotes", `"=?utf-8?q?caf=C3=A9?=" <a@b>`, []Address{{"café", "a@b"}}},
		{"adjacent encoded words", "=?utf-8?q?a?= =?utf-8?q?b?= <a@b>", []Address{{"ab", "a@b"}}},
		{"raw UTF-8", "Jürgen <jürgen@bücher.example>", []Address{{"Jürgen", "jürgen@bücher.example"}}},
		{"raw Latin-1", "J\xfcrgen <j@b>", []Address{{"Jürgen", "j@b"}}},
		{"unquoted comma in a name", "Doe, John <j@d>", []Address{{"Doe, John", "j@d"}}},
		{"quote without an end", `"John <j@d>`, []Address{{"John", "j@d"}}},
		{"quotes in the middle", `John "Jo" Doe <j@d>`, []Address{{"John Jo Doe", "j@d"}}},
		{"full stop in a name", "J. R. Doe <j@d>", []Address{{"J. R. Doe", "j@d"}}},
		{"name without brackets", "John Doe j@d", []Address{{"John Doe", "j@d"}}},
		{"missing comma", "A <a@b> B <c@d>", []Address{{"A", "a@b"}, {"B", "c@d"}}},
		{"no closing bracket", "A <a@b", []Address{{"A", "a@b"}}},
		{"name only", "John Doe", nil},
		{"folded", "A\r\n <a@b>,\r\n\tc@d", []Address{{"A", "a@b"}, {"", "c@d"}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := parse(t, "To: "+tt.raw+"\r\n\r\n")
			if diff := cmp.Diff(tt.want, m.To); diff != "" {
				t.Error(diff)
			}
		})
	}
	if got := ParseAddressList("A <a@b>, c@d"); len(got) != 2 {
		t.Errorf("ParseAddressList: %v", got)
	}
	if got := fmt.Sprint(view(t, parse(t, "From: root@h (Cron Daemon)\n\n"))["from"]); got != "[map[address:root@h name:]]" {
		t.Errorf("the strict view shows a comment as a name: %s", got)
	}
}

func TestDate(t *testing.T) {
	tests := []struct{ raw, want string }{
		{"Mon, 23 Nov 2026 10:11:12 +0100", "2026-11-23T09:11:12Z"},
		{"23 Nov 2026 10:11 GMT", "2026-11-23T10:11:00Z"},
		{"Mon, 23 Nov 26 10:11:12 EST", "2026-11-23T15:11:12Z"},
		{"Mon, 23 Nov 2026 10:11:12 +0100 (CET)", "2026-11-23T09:11:12Z"},
		{"Mon Nov 23 10:11:12 2026", "2026-11-23T10:11:12Z"},
		{"Mon, 23 Nov 2026 10:11:12 -0000", "2026-11-23T10:11:12Z"},
		{"Mon, 23 Nov 2026 10:11:12+05:30", "2026-11-23T04:41:12Z"},
		{"23-Nov-2026 10:11:12", "2026-11-23T10:11:12Z"},
		{"2026-11-23T10:11:12Z", "2026-11-23T10:11:12Z"},
		{"2026-11-23 10:11:12 +0000", "2026-11-23T10:11:12Z"},
		{"Tue, 30 Feb 2026 10:11:12 +0000", ""},
		{"yesterday", ""},
		{"", ""},
	}
	for _, tt := range tests {
		m := parse(t, "Date: "+tt.raw+"\n\n")
		got := ""
		if !m.Date.IsZero() {
			got = m.Date.Format(time.RFC3339)
		}
		if got != tt.want {
			t.Errorf("%q: got %q, want %q", tt.raw, got, tt.want)
		}
	}
}

func TestThreading(t *testing.T) {
	m := parse(t, crlf("Message-ID: <a@b>\nIn-Reply-To: <c@d>\nReferences: <1@x>\n <2@x>\n\n"))
	if m.MessageID != "a@b" || !cmp.Equal(m.InReplyTo, []string{"c@d"}) || !cmp.Equal(m.References, []string{"1@x", "2@x"}) {
		t.Errorf("got %q %q %q", m.MessageID, m.InReplyTo, m.References)
	}
	if m := parse(t, "Message-ID: bare@id\n\n"); m.MessageID != "bare@id" {
		t.Errorf("got %q", m.MessageID)
	}
}

func TestHeader(t *testing.T) {
	src := "Subject: a\r\n b\r\nX-One: 1\r\nx-one: 2\r\n\r\n"
	h := parse(t, src).Header
	if h.Get("x-ONE") != "1" || !cmp.Equal(h.Values("X-One"), []string{"1", "2"}) || !h.Has("SUBJECT") || h.Has("To") || h.Get("To") != "" {
		t.Error("look-up by name is wrong")
	}
	var all bytes.Buffer
	for _, f := range h {
		all.Write(f.Raw)
	}
	if got := all.String() + "\r\n"; got != src {
		t.Errorf("raw fields give %q", got)
	}
}

func TestFormat(t *testing.T) {
	addresses := []struct {
		in   Address
		want string
	}{
		{Address{"", "a@b"}, "a@b"},
		{Address{"A B", "a@b"}, "A B <a@b>"},
		{Address{"B, A", "a@b"}, `"B, A" <a@b>`},
		{Address{`A "x" B`, "a@b"}, `"A \"x\" B" <a@b>`},
		{Address{"Jürgen", "a@b"}, "Jürgen <a@b>"},
		{Address{"x\r\nBcc: e@e", "a@b"}, `"x  Bcc: e@e" <a@b>`},
	}
	for _, tt := range addresses {
		if got := FormatAddress(tt.in); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	list := []Address{{"Jürgen, the \"first\" of a very long line of people who all have the same name as he has", "j@b"}, {"", "c@d"}, {"B, A", "a@b"}, {"=?utf-8?q?x?=", "x@y"}}
	checkFolded(t, "To", FormatAddressHeader(list))
	if diff := cmp.Diff(list, parse(t, "To: "+FormatAddressHeader(list)+"\r\n\r\n").To); diff != "" {
		t.Errorf("read again:\n%s", diff)
	}
	for _, s := range []string{
		"", "hello", "two  spaces", strings.Repeat("word ", 60) + "end", strings.Repeat("é", 200), "日本語の件名" + strings.Repeat("長い", 50),
		"=?utf-8?q?not_a_word?=", strings.Repeat("x", 1200), "a\r\nBcc: e@e",
	} {
		v := EncodeHeaderValue(s)
		checkFolded(t, "Subject", v)
		if got, want := parse(t, "Subject: "+v+"\r\n\r\n").Subject, cleanString(s); got != want {
			t.Errorf("got %q, want %q from %q", got, want, v)
		}
	}
}

func checkFolded(t *testing.T, name, v string) {
	t.Helper()
	for _, line := range strings.Split(name+": "+v, "\r\n") {
		if len(line) > 78 {
			t.Errorf("a line of %d characters: %q", len(line), line)
		}
	}
	for _, line := range strings.Split(v, "\r\n")[1:] {
		if !strings.HasPrefix(line, " ") {
			t.Errorf("a fold without white space: %q", v)
		}
	}
}
