package dsn_test

import (
	"bufio"
	"encoding/json"
	"io"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"smtpbridge/dsn"
	"smtpbridge/event"
)

func bounced() event.Event {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.FixedZone("", 7200))
	return event.Event{
		V: 1, ID: "ev1", Time: at, Seen: at, Kind: event.Bounced, Recipient: "bob@example.net", QueueID: "01hx5", Account: "mp", Provider: "mailpace",
		Action: event.ActionFailed, Status: "5.1.1", Diagnostic: "550 5.1.1 <bob@example.net>: no such user", RemoteMTA: "mx.example.net",
		EnvID: "QQ314159", ORCPT: "rfc822;robert@example.net",
	}
}

func deferred() event.Event {
	e := bounced()
	until := e.Time.Add(48 * time.Hour)
	e.Kind, e.Action, e.Status, e.Diagnostic, e.WillRetryAt, e.RemoteMTA = event.Deferred, event.ActionDelayed, "4.0.0", "will be tried again", &until, ""
	return e
}

func opened() event.Event {
	e := bounced()
	return event.Event{V: 1, ID: "ev3", Time: e.Time, Seen: e.Seen, Kind: event.Opened, Account: "mp", Provider: "mailpace", Candidates: []string{"a@example.net", "b@example.net"}}
}

func sent() event.Event {
	e := bounced()
	return event.Event{
		V: 1, ID: "ev4", Time: e.Time, Seen: e.Seen, Kind: event.Sent, Account: "mp", Provider: "mailpace", QueueID: "01hx5", Recipient: "jürgen@bücher.example",
		Action: event.ActionRelayed, Status: "2.0.0", Losses: []event.Loss{{Field: "reply-to", Severity: "major"}, {Field: "x-loop", Severity: "minor"}},
	}
}

func TestFields(t *testing.T) {
	for _, c := range []struct {
		name string
		e    event.Event
		want string
	}{
		{"bounced", bounced(), `Reporting-MTA: dns; bridge.example.com
Original-Envelope-Id: QQ314159

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

`},
		{"deferred, the ESP's own words", deferred(), `Reporting-MTA: dns; bridge.example.com
Original-Envelope-Id: QQ314159

Original-Recipient: rfc822;robert@example.net
Final-Recipient: rfc822; bob@example.net
Action: delayed
Status: 4.0.0
Diagnostic-Code: x-mailpace; will be tried again
Last-Attempt-Date: Wed, 04 Mar 2026 03:06:07 +0000
Will-Retry-Until: Fri, 06 Mar 2026 03:06:07 +0000
Final-Log-Id: 01hx5
X-Smtpbridge-Event: deferred
X-Smtpbridge-Event-Id: ev1
X-Smtpbridge-Account: mp

`},
		{"opened by one of two", opened(), `Reporting-MTA: dns; bridge.example.com

X-Smtpbridge-Candidate: rfc822; a@example.net
X-Smtpbridge-Candidate: rfc822; b@example.net
Last-Attempt-Date: Wed, 04 Mar 2026 03:06:07 +0000
X-Smtpbridge-Event: opened
X-Smtpbridge-Event-Id: ev3
X-Smtpbridge-Account: mp

`},
		{"sent to an internationalised address", sent(), `Reporting-MTA: dns; bridge.example.com

Final-Recipient: utf-8; jürgen@bücher.example
Action: relayed
Status: 2.0.0
Last-Attempt-Date: Wed, 04 Mar 2026 03:06:07 +0000
Final-Log-Id: 01hx5
X-Smtpbridge-Event: sent
X-Smtpbridge-Event-Id: ev4
X-Smtpbridge-Account: mp

`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(dsn.AppendFields(nil, c.e, "bridge.example.com")); got != c.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, c.want)
			}
		})
	}
}

func TestText(t *testing.T) {
	lost := bounced()
	lost.Kind, lost.Diagnostic, lost.Outcome, lost.Status = event.Failed, "no answer for 5 days", event.OutcomeUnknown, "4.4.7"
	var b []byte
	for _, e := range []event.Event{bounced(), deferred(), opened(), sent(), lost} {
		b = dsn.AppendText(b, e)
	}
	want := `2026-03-04T03:06:07Z  bounced         bob@example.net                   mp            5.1.1    550 5.1.1 <bob@example.net>: no such user  01hx5
2026-03-04T03:06:07Z  deferred        bob@example.net                   mp            4.0.0    will be tried again  01hx5
2026-03-04T03:06:07Z  opened          one of a@example.net,b@example.net  mp            -        -  -
2026-03-04T03:06:07Z  sent            jürgen@bücher.example             mp            2.0.0    lost: reply-to, x-loop  01hx5
2026-03-04T03:06:07Z  failed          bob@example.net                   mp            4.4.7    outcome=unknown no answer for 5 days  01hx5
`
	if string(b) != want {
		t.Errorf("got:\n%s\nwant:\n%s", b, want)
	}
}

func TestFormatter(t *testing.T) {
	if _, err := dsn.Formatter("xml", ""); err == nil || !strings.Contains(err.Error(), "json, dsn, text") {
		t.Errorf("got %v, want an error that lists the formats", err)
	}
	for _, name := range append(dsn.Formats, "") {
		f, err := dsn.Formatter(name, "h.example")
		if err != nil {
			t.Fatal(err)
		}
		if b := f(nil, bounced()); len(b) == 0 || b[len(b)-1] != '\n' {
			t.Errorf("%q: got %q", name, b)
		}
	}
}

// Case 92: whatever an event holds, no field and no line can be forged by it.
func TestCase092_NoForgedFields(t *testing.T) {
	nasty := "x\r\nAction: delivered\n\nStatus: 2.0.0\x1b[2J\x00\"" + strings.Repeat("y", 1<<20)
	e := event.Event{
		Kind: event.Kind(nasty), ID: nasty, Recipient: nasty, QueueID: nasty, Account: nasty, Provider: nasty, Action: "failed", Status: "5.0.0",
		Diagnostic: nasty, RemoteMTA: nasty, EnvID: nasty, ORCPT: nasty, SMTPReply: nasty, Candidates: []string{nasty}, URL: nasty, Outcome: nasty,
	}
	r := textproto.NewReader(bufio.NewReader(strings.NewReader(string(dsn.AppendFields(nil, e, nasty)))))
	if h, err := r.ReadMIMEHeader(); err != nil || len(h) != 2 {
		t.Errorf("fields of the mail: %d, %v", len(h), err)
	}
	h, err := r.ReadMIMEHeader()
	if err != nil {
		t.Fatal(err)
	}
	if got := h.Values("Action"); len(got) != 1 || got[0] != "failed" {
		t.Errorf("Action: %q", got)
	}
	if got := h.Values("Status"); len(got) != 1 || got[0] != "5.0.0" {
		t.Errorf("Status: %q", got)
	}
	if _, err := r.ReadLine(); err != io.EOF {
		t.Errorf("there is more: %v", err)
	}
	for _, name := range dsn.Formats {
		f, _ := dsn.Formatter(name, "h")
		for line := range strings.Lines(string(f(nil, e))) {
			if name != "json" && len(line) > 16<<10 || strings.ContainsAny(strings.TrimSuffix(line, "\n"), "\r\n\x1b\x00") {
				t.Errorf("%s: line of %d bytes with control characters or too long", name, len(line))
			}
			if name == "json" && !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %.100q", line)
			}
		}
	}
}
