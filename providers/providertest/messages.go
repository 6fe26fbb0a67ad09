package providertest

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"hash/fnv"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/translate"
)

// Message is one mail of the suite: its bytes and its envelope.
type Message struct {
	Name  string
	EML   string
	From  string
	Rcpts []string
}

// fold gives a mail CRLF line ends.
func fold(s string) string { return strings.ReplaceAll(strings.TrimPrefix(s, "\n"), "\n", "\r\n") }

// PNG is a complete image of one pixel.
var PNG, _ = base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")

const head = `
From: Sender Name <sender@example.com>
To: First One <one@example.org>
Subject: %s
Date: Mon, 23 Nov 2026 10:00:00 +0000
Message-ID: <abc.123@example.com>
MIME-Version: 1.0
`

// Messages are the mails that every provider has to send.
func Messages() []Message {
	one := []string{"one@example.org"}
	png := base64.StdEncoding.EncodeToString(PNG)
	return []Message{
		{Name: "plain", From: "sender@example.com", Rcpts: one, EML: fold(fmt.Sprintf(head, "Plain") + `Content-Type: text/plain; charset=us-ascii

Hello, {{name}} {$x} *|MERGE|* %name% "quoted" \backslash <b>&amp;

.leading dot
`)},
		{Name: "alternative", From: "bounces@example.com", Rcpts: one, EML: fold(fmt.Sprintf(head, "=?utf-8?q?Gr=C3=BC=C3=9Fe_=F0=9F=98=80?=") + `Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: quoted-printable

Gr=C3=BC=C3=9Fe =E2=80=A8 ende
--b
Content-Type: text/html; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

<p style=3D"a{b:c}">Gr=FC=DFe &amp; <a href=3D"https://example.com/?a=3D1&b=3D2">link</a></p>
--b--
`)},
		{Name: "inline and attachments", From: "sender@example.com", Rcpts: one, EML: fold(fmt.Sprintf(head, "Files") + `Content-Type: multipart/mixed; boundary=m

--m
Content-Type: multipart/related; boundary=r

--r
Content-Type: text/html; charset=utf-8

<p><img src="cid:logo@example.com"></p>
--r
Content-Type: image/png; name=logo.png
Content-Disposition: inline; filename=logo.png
Content-ID: <logo@example.com>
Content-Transfer-Encoding: base64

` + png + `
--r--
--m
Content-Type: application/pdf
Content-Disposition: attachment; filename="report.pdf"
Content-Transfer-Encoding: base64

` + base64.StdEncoding.EncodeToString([]byte("%PDF-1.4 not really\n\x00\xff")) + `
--m
Content-Type: text/csv; charset=utf-8
Content-Disposition: attachment; filename*=utf-8''%C3%BCbersicht.csv
Content-Transfer-Encoding: base64

` + base64.StdEncoding.EncodeToString([]byte("a;b\n1;2\n")) + `
--m--
`)},
		{
			Name: "many recipients", From: "sender@example.com",
			Rcpts: []string{"one@example.org", "two@example.org", "cc@example.net", "hidden@example.net", "hidden2@example.net"},
			EML: fold(`
From: "Name, with comma" <sender@example.com>
To: First One <one@example.org>, two@example.org, not-in-envelope@example.org
Cc: =?utf-8?q?J=C3=BCrgen?= <cc@example.net>
Reply-To: Help <help@example.com>
Subject: Many
Date: Mon, 23 Nov 2026 10:00:00 +0000
Message-ID: <many.123@example.com>
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

Many.
`),
		},
		{Name: "headers", From: "sender@example.com", Rcpts: one, EML: fold(`
From: sender@example.com
To: one@example.org
Reply-To: a@example.com, "B" <b@example.com>
Subject: Headers
Date: Mon, 23 Nov 2026 10:00:00 +0000
Message-ID: <h.123@example.com>
In-Reply-To: <parent@example.com>
References: <root@example.com> <parent@example.com>
List-Unsubscribe: <https://example.com/u?x=1>, <mailto:u@example.com>
List-Unsubscribe-Post: List-Unsubscribe=One-Click
List-Id: News <news.example.com>
Auto-Submitted: auto-generated
X-Campaign: first
X-Unicode: =?utf-8?q?=C3=BC?=
MIME-Version: 1.0
Content-Type: text/plain; charset=utf-8

Headers.
`)},
		{Name: "hidden only", From: "sender@example.com", Rcpts: []string{"hidden@example.net"}, EML: fold(`
From: sender@example.com
To: undisclosed-recipients:;
Subject: Hidden
Date: Mon, 23 Nov 2026 10:00:00 +0000
Message-ID: <hid.123@example.com>

Hidden.
`)},
		{Name: "null sender", From: "", Rcpts: one, EML: fold(fmt.Sprintf(head, "Null") + `Auto-Submitted: auto-replied
Content-Type: text/plain

Away.
`)},
	}
}

// Ref is how the references and idempotency keys of the suite's calls begin; the name of the message and the
// number of the call follow.
const Ref = "01kq0000000000000000000000"

// Parse reads a mail.
func Parse(t testing.TB, eml string) *mime.Message {
	t.Helper()
	m, err := mime.Parse(bytes.NewReader([]byte(eml)), int64(len(eml)), mime.Limits{})
	if err != nil {
		t.Fatalf("mime.Parse: %v", err)
	}
	return m
}

// Plan parses the message and plans its calls for an API with these capabilities, as the bridge does.
func (m Message) Plan(t testing.TB, caps translate.Capabilities) []*translate.Mail {
	t.Helper()
	e := envelope.Envelope{
		ID: envelope.NewID(now), From: m.From, Size: int64(len(m.EML)), Listener: "test", Peer: "127.0.0.1", Helo: "localhost", Received: now,
	}
	for _, r := range m.Rcpts {
		e.Rcpts = append(e.Rcpts, envelope.Rcpt{Addr: r})
	}
	mails, _, err := translate.Apply(translate.Request{
		Envelope: e, Rcpts: e.Rcpts, Message: Parse(t, m.EML), Caps: caps, Settings: translate.Settings{ReturnPath: "return@example.com"},
	})
	if err != nil {
		t.Fatalf("%s: translate.Apply: %v", m.Name, err)
	}
	h := fnv.New32a()
	h.Write([]byte(m.Name))
	for i, c := range mails {
		c.Ref = fmt.Sprintf("%s-%08x-%d", Ref, h.Sum32(), i)
		c.IdempotencyKey = c.Ref
	}
	return mails
}

// Plain is a call of a short text mail to n recipients, all in To, or as many as one call can have.
func Plain(t testing.TB, caps translate.Capabilities, n int) *translate.Mail {
	t.Helper()
	var to []string
	for i := range n {
		to = append(to, fmt.Sprintf("r%d@example.org", i))
	}
	return Message{Name: "plain", From: "sender@example.com", Rcpts: to, EML: "From: sender@example.com\r\nTo: " + strings.Join(to, ", ") +
		"\r\nSubject: Hello\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\nMessage-ID: <p@example.com>\r\n\r\nHello.\r\n"}.Plan(t, caps)[0]
}

// Large is a call of a mail with an attachment of 12 MiB, more than socket buffers hold.
func Large(t testing.TB, caps translate.Capabilities) *translate.Mail {
	t.Helper()
	line := strings.Repeat("QUJD", 19) + "\r\n"
	return Message{Name: "large", From: "sender@example.com", Rcpts: []string{"one@example.org"}, EML: fold(fmt.Sprintf(head, "Large")+`Content-Type: multipart/mixed; boundary=m

--m
Content-Type: text/plain

Large.
--m
Content-Type: application/pdf
Content-Disposition: attachment; filename="large.pdf"
Content-Transfer-Encoding: base64

`) + strings.Repeat(line, 12<<20/len(line)) + "--m--\r\n"}.Plan(t, caps)[0]
}
