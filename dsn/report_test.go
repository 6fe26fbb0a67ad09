package dsn_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"smtpbridge/dsn"
	"smtpbridge/event"
	"smtpbridge/mime"
)

const originalHeader = "Received: from app\r\n\tby bridge.example.com\r\nFrom: App <app@example.com>\r\nTo: bob@example.net\r\nSubject: =?utf-8?Q?Rechnung_f=C3=BCr?=\r\n =?utf-8?Q?_M=C3=A4rz?=\r\nMessage-ID: <m1@example.com>\r\n"

// sample is a report on one bounce.
func sample(change ...func(*dsn.Report)) *dsn.Report {
	r := &dsn.Report{
		Hostname: "bridge.example.com", ID: "01dsn", Date: time.Date(2026, 3, 4, 5, 6, 9, 0, time.UTC), To: "app@example.com",
		Action: event.ActionFailed, EnvID: "QQ314159", QueueID: "01hx5", MessageID: "m1@example.com",
		Arrival: time.Date(2026, 3, 4, 3, 0, 0, 0, time.UTC), Recipients: []dsn.Recipient{{Event: bounced()}}, Header: []byte(originalHeader),
	}
	for _, f := range change {
		f(r)
	}
	return r
}

func full(body string) func(*dsn.Report) {
	return func(r *dsn.Report) {
		whole := string(r.Header) + "\r\n" + body
		r.Original, r.Size = strings.NewReader(whole), int64(len(whole))
	}
}

func compose(t testing.TB, r *dsn.Report) (string, dsn.Transport) {
	t.Helper()
	var b bytes.Buffer
	tr, err := r.Write(&b)
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), tr
}

// TestReportText: the whole of one mail, as its reader sees it. Read it as he would.
func TestReportText(t *testing.T) {
	got, tr := compose(t, sample())
	if tr != (dsn.Transport{}) {
		t.Errorf("transport %+v for plain ASCII", tr)
	}
	want := `Date: Wed, 04 Mar 2026 05:06:09 +0000
From: Mail Delivery System <MAILER-DAEMON@bridge.example.com>
To: <app@example.com>
Subject: =?utf-8?q?Undeliverable:_Rechnung_f=C3=BCr_M=C3=A4rz?=
Message-ID: <01dsn@bridge.example.com>
In-Reply-To: <m1@example.com>
References: <m1@example.com>
Auto-Submitted: auto-replied
X-Loop: MAILER-DAEMON@bridge.example.com
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
	boundary="report-01dsn"

This is a delivery report in MIME format.

--report-01dsn
Content-Type: text/plain; charset=utf-8
Content-Description: Notification
Content-Transfer-Encoding: quoted-printable

This is an automatic message from the mail system bridge.example.com.

Your message could not be delivered to the recipient below. Nothing more
will be tried.

    bob@example.net
        This address does not exist. Please check how it is spelt.
        Details: 550 5.1.1 <bob@example.net>: no such user

If it is important, check the address, or reach the person in another
way.

Your message:
    Subject:  Rechnung f=C3=BCr M=C3=A4rz
    Received: Wednesday, 4 March 2026, 03:00 UTC
    Your id:  QQ314159
    Queue id: 01hx5 (please name it when you ask for help)

The header of the message is attached.

--report-01dsn
Content-Type: message/delivery-status
Content-Description: Delivery report
Content-Transfer-Encoding: 7bit

Reporting-MTA: dns; bridge.example.com
Original-Envelope-Id: QQ314159
Arrival-Date: Wed, 04 Mar 2026 03:00:00 +0000

Original-Recipient: rfc822;robert@example.net
Final-Recipient: rfc822; bob@example.net
Action: failed
Status: 5.1.1
Remote-MTA: dns; mx.example.net
Diagnostic-Code: smtp; 550 5.1.1 <bob@example.net>: no such user
Last-Attempt-Date: Wed, 04 Mar 2026 03:06:07 +0000
Final-Log-Id: 01hx5
X-Smtpbridge-Event: bounced
X-Smtpbridge-Event-Id: ev1
X-Smtpbridge-Account: mp

--report-01dsn
Content-Type: text/rfc822-headers
Content-Description: Header of your message
Content-Transfer-Encoding: 7bit

` + strings.ReplaceAll(originalHeader, "\r\n", "\n") + `
--report-01dsn--
`
	if got := strings.ReplaceAll(got, "\r\n", "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if strings.Contains(strings.ReplaceAll(got, "\r\n", ""), "\n") {
		t.Error("a bare line end")
	}
}

// cases are reports of every shape, with what must hold of each.
var cases = []struct {
	name     string
	change   []func(*dsn.Report)
	types    string // of the parts
	subject  string
	contains []string // in the text for people
	eight    bool
	utf8     bool
}{
	{"failed", nil, "text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Rechnung für März", []string{"This address does not exist"}, false, false},
	{"failed, whole", []func(*dsn.Report){full("hello\r\n")}, "text/plain message/delivery-status message/rfc822", "Undeliverable: Rechnung für März", []string{"The message itself is attached"}, false, false},
	{"failed, whole, 8-bit body", []func(*dsn.Report){full("h\xe4llo\r\n")}, "text/plain message/delivery-status message/rfc822", "Undeliverable: Rechnung für März", nil, true, false},
	{
		"failed, whole is gone",
		[]func(*dsn.Report){func(r *dsn.Report) { r.Withheld = "this system does not keep messages that it has sent" }},
		"text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Rechnung für März",
		[]string{"does not keep messages that it has sent. Only the header"},
		false, false,
	},
	{
		"delayed",
		[]func(*dsn.Report){func(r *dsn.Report) {
			r.Action, r.Recipients = event.ActionDelayed, []dsn.Recipient{{Event: deferred(), Until: time.Date(2026, 3, 9, 3, 0, 0, 0, time.UTC)}}
		}},
		"text/plain message/delivery-status text/rfc822-headers", "Delayed: Rechnung für März",
		[]string{"do not send the message again", "Monday, 9 March 2026"},
		false, false,
	},
	{"relayed", []func(*dsn.Report){func(r *dsn.Report) { r.Action, r.Recipients[0].Event = event.ActionRelayed, sent() }}, "text/plain message/global-delivery-status text/rfc822-headers", "Relayed: Rechnung für März", []string{"handed to the mail service"}, true, false},
	{"delivered", []func(*dsn.Report){func(r *dsn.Report) { r.Action, r.Recipients[0].Event.Status = event.ActionDelivered, "2.0.0" }}, "text/plain message/delivery-status text/rfc822-headers", "Delivered: Rechnung für März", []string{"does not say that anybody has read it"}, false, false},
	{"no header is left", []func(*dsn.Report){func(r *dsn.Report) { r.Header = nil }}, "text/plain message/delivery-status", "Your message was not delivered", nil, false, false},
	{
		"three recipients",
		[]func(*dsn.Report){func(r *dsn.Report) {
			for _, a := range []string{"eve@example.net", "joe@example.net"} {
				e := bounced()
				e.Recipient, e.Status, e.Diagnostic = a, "5.2.2", ""
				r.Recipients = append(r.Recipients, dsn.Recipient{Event: e})
			}
		}},
		"text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Rechnung für März",
		[]string{"the 3 recipients below", "eve@example.net", "The mailbox is full"},
		false, false,
	},
	{
		"internationalised",
		[]func(*dsn.Report){func(r *dsn.Report) {
			r.To, r.Header = "jürgen@bücher.example", []byte("Subject: Grüße\r\nFrom: jürgen@bücher.example\r\n")
			r.Recipients[0].Event.Recipient, r.Recipients[0].Event.ORCPT = "пример@пример.example", "utf-8;пример@пример.example"
		}},
		"text/plain message/global-delivery-status message/global-headers", "Undeliverable: Grüße",
		[]string{"пример@пример.example"},
		true, true,
	},
	{
		"internationalised, whole",
		[]func(*dsn.Report){func(r *dsn.Report) { r.Header = []byte("Subject: Grüße\r\n") }, full("x\r\n")},
		"text/plain message/delivery-status message/global", "Undeliverable: Grüße", nil, true, false,
	},
	{"broken header", []func(*dsn.Report){func(r *dsn.Report) { r.Header = []byte("Subject: Gr\xfc\xdfe\nX: y") }}, "text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Gr��e", nil, false, false},
	{
		"endless header",
		[]func(*dsn.Report){func(r *dsn.Report) {
			r.Header = []byte("Subject: " + strings.Repeat("ä", 1000) + "\r\nX: " + strings.Repeat("y", 2000) + "\r\n")
		}},
		"text/plain message/delivery-status message/global-headers", "Undeliverable: " + strings.Repeat("ä", 98) + "…", nil, true, false,
	},
	{
		"words of the ESP in its own language",
		[]func(*dsn.Report){func(r *dsn.Report) {
			r.Recipients[0].Event.Diagnostic, r.Recipients[0].Event.RejectReason = "Empfänger unbekannt", event.ReasonSpam
		}},
		"text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Rechnung für März",
		[]string{"taken for spam", "Empfänger unbekannt"},
		false, false,
	},
	{
		"given up",
		[]func(*dsn.Report){func(r *dsn.Report) {
			r.Recipients[0].Event = event.Event{Kind: event.Failed, Recipient: "bob@example.net", RejectReason: event.ReasonTimedOut, Status: "4.4.7", Diagnostic: "not delivered in time; last: HTTP 503", Time: time.Unix(0, 0)}
			r.MessageID = "two words"
		}},
		"text/plain message/delivery-status text/rfc822-headers", "Undeliverable: Rechnung für März",
		[]string{"it was given up", "HTTP 503"},
		false, false,
	},
}

// TestReports reads reports with our own reader.
func TestReports(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			raw, tr := compose(t, sample(tt.change...))
			if tr.EightBit != tt.eight || tr.UTF8 != tt.utf8 {
				t.Errorf("transport %+v", tr)
			}
			for line := range strings.Lines(raw) {
				if len(line) > 1000 && tt.name != "endless header" {
					t.Errorf("a line of %d bytes", len(line))
				}
			}
			m, err := mime.Parse(strings.NewReader(raw), int64(len(raw)), mime.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			if m.Subject != tt.subject {
				t.Errorf("subject %q, want %q", m.Subject, tt.subject)
			}
			types := []string{"text/plain"}
			for _, a := range m.Attachments {
				types = append(types, a.Type)
			}
			if got := strings.Join(types, " "); got != tt.types {
				t.Errorf("parts %s, want %s", got, tt.types)
			}
			text := read(t, m.Text)
			for _, s := range tt.contains {
				if !strings.Contains(strings.Join(strings.Fields(text), " "), s) {
					t.Errorf("the text lacks %q:\n%s", s, text)
				}
			}
			if !strings.Contains(raw, "Auto-Submitted: auto-replied\r\n") || !strings.Contains(raw, "X-Loop: MAILER-DAEMON@bridge.example.com\r\n") {
				t.Error("it does not say that it is automatic")
			}
		})
	}
}

func read(t *testing.T, p *mime.Part) string {
	t.Helper()
	if p == nil {
		t.Fatal("no text for people")
	}
	b, err := io.ReadAll(p.Open())
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// python prints what its e-mail package finds in each of the files named.
const python = `
import email, email.policy, json, sys
out = []
for name in sys.argv[1:]:
    m = email.message_from_binary_file(open(name, 'rb'), policy=email.policy.SMTPUTF8)
    parts = list(m.iter_parts())
    if parts[1].get_content_type() == 'message/delivery-status':
        blocks = [b for b in parts[1].get_payload() if b.keys()]
    else: # unknown to Python, which takes the first block for a message and the others for its body
        first = parts[1].get_payload()[0]
        rest = first.get_payload(decode=True).decode('utf-8').replace('\r\n', '\n')
        blocks = [first] + [email.message_from_string(b) for b in rest.strip().split('\n\n')]
    defects = [type(d).__name__ for p in m.walk() for d in p.defects]
    out.append({
        'type': m.get_content_type() + ' ' + str(m.get_param('report-type')), 'subject': str(m['Subject']), 'to': str(m['To']), 'from': str(m['From']), 'date': str(m['Date'].datetime),
        'parts': ' '.join(p.get_content_type() for p in parts), 'text': parts[0].get_content(), 'defects': defects,
        'blocks': [{k.lower(): str(v) for k, v in b.items()} for b in blocks],
        'inner': str(parts[2].get_payload()[0]['Subject']) if len(parts) > 2 and parts[2].get_content_type() in ('message/rfc822', 'message/global') and parts[2].is_multipart() else '',
    })
json.dump(out, sys.stdout)
`

// TestPythonReads has an independent reader, Python's e-mail package, find in each report what it should.
func TestPythonReads(t *testing.T) {
	py, err := exec.LookPath("python3")
	if err != nil {
		if os.Getenv("SMTPBRIDGE_REQUIRE_CLIENTS") != "" {
			t.Fatal("python3 is not installed")
		}
		t.Skip("python3 is not installed")
	}
	dir := t.TempDir()
	args := []string{"-c", python}
	for i, tt := range cases {
		raw, _ := compose(t, sample(tt.change...))
		name := fmt.Sprintf("%s/%02d.eml", dir, i)
		if err := os.WriteFile(name, []byte(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, name)
	}
	cmd := exec.Command(py, args...)
	cmd.Stderr = os.Stderr
	b, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var got []struct {
		Type, Subject, To, From, Date, Parts, Text, Inner string
		Defects                                           []string
		Blocks                                            []map[string]string
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	for i, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			r, g := sample(tt.change...), got[i]
			if g.Type != "multipart/report delivery-status" || g.Parts != tt.types || g.To != r.To || g.From != "Mail Delivery System <MAILER-DAEMON@bridge.example.com>" || g.Date != "2026-03-04 05:06:09+00:00" {
				t.Errorf("got %+v", g)
			}
			if g.Subject != tt.subject {
				t.Errorf("subject %q, want %q", g.Subject, tt.subject)
			}
			if len(g.Defects) > 0 {
				t.Errorf("defects %v", g.Defects)
			}
			if len(g.Blocks) != 1+len(r.Recipients) {
				t.Fatalf("%d blocks of fields for %d recipients: %v", len(g.Blocks), len(r.Recipients), g.Blocks)
			}
			if b := g.Blocks[0]; b["reporting-mta"] != "dns; bridge.example.com" || b["original-envelope-id"] != "QQ314159" || b["arrival-date"] == "" {
				t.Errorf("fields of the mail: %v", b)
			}
			for j, rc := range r.Recipients {
				b := g.Blocks[1+j]
				if !strings.HasSuffix(b["final-recipient"], "; "+rc.Event.Recipient) || b["action"] != r.Action || b["status"] != rc.Event.Status || (b["will-retry-until"] != "") != !rc.Until.IsZero() {
					t.Errorf("fields of %s: %v", rc.Event.Recipient, b)
				}
			}
			if r.Original != nil && tt.name != "internationalised, whole" && g.Inner == "" {
				t.Error("the original cannot be opened")
			}
		})
	}
}

// TestReportStreams: an original of 25 MiB is copied through, never held.
func TestReportStreams(t *testing.T) {
	r := sample()
	r.Original, r.Size = zeros{}, 25<<20
	w := &counter{}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := r.Write(w); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	allocs := after.TotalAlloc - before.TotalAlloc
	if w.n < 25<<20 || w.max > 64<<10 || allocs > 1<<20 {
		t.Errorf("%d bytes written, %d at once at most, %d allocated", w.n, w.max, allocs)
	}
	r.Original = broken{}
	if _, err := r.Write(w); err == nil || !strings.Contains(err.Error(), "read the original") {
		t.Errorf("got %v", err)
	}
}

type zeros struct{}

func (zeros) ReadAt(p []byte, _ int64) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	return len(p), nil
}

type broken struct{}

func (broken) ReadAt([]byte, int64) (int, error) { return 0, errors.New("no") }

type counter struct{ n, max int }

func (c *counter) Write(p []byte) (int, error) {
	c.n += len(p)
	c.max = max(c.max, len(p))
	return len(p), nil
}

// Case 92: nothing of an event or of the original forges a field, a part or a line.
func TestCase092_NoForgedReport(t *testing.T) {
	nasty := "x\r\nAction: delivered\r\n\r\n--report-01dsn--\r\n\x00"
	r := sample(func(r *dsn.Report) {
		r.EnvID, r.MessageID, r.QueueID, r.Header = nasty, nasty, nasty, []byte("Subject: "+nasty)
		e := bounced()
		e.Recipient, e.Diagnostic, e.ORCPT, e.RemoteMTA = nasty, nasty, nasty, nasty
		r.Recipients = []dsn.Recipient{{Event: e}}
	})
	raw, _ := compose(t, r)
	raw, _, _ = strings.Cut(raw, "Content-Type: text/rfc822-headers") // what follows is the original's own
	if strings.Contains(raw, "\nAction: delivered") || strings.Contains(raw, "\n--report-01dsn--") || strings.Contains(raw, "\x00") {
		t.Errorf("forged:\n%s", raw)
	}
}
