// Package dsn renders events for people and for programs that know delivery status
// notifications: as RFC 3464 fields, as aligned text, and as the mail that tells a sender (Report).
//
// Contract: rendering is pure and never fails. Whatever an event holds, each field and each text is
// one line, free of control characters.
package dsn

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"smtpbridge/event"
)

// Formats are the names that Formatter knows.
var Formats = []string{"json", "dsn", "text"}

// Formatter returns the function that appends one event in the named format, with its line end.
// reportingMTA is the bridge's host name, for the format dsn.
func Formatter(format, reportingMTA string) (func(b []byte, e event.Event) []byte, error) {
	switch format {
	case "", "json":
		return appendJSON, nil
	case "dsn":
		return func(b []byte, e event.Event) []byte { return AppendFields(b, e, reportingMTA) }, nil
	case "text":
		return AppendText, nil
	}
	return nil, fmt.Errorf("unknown format %q; known: %s", format, strings.Join(Formats, ", "))
}

func appendJSON(b []byte, e event.Event) []byte {
	e.Sanitize() // leaves nothing that JSON cannot write
	b, _ = e.AppendJSON(b)
	return append(b, '\n')
}

// AppendFields appends the event as the content of a message/delivery-status part (RFC 3464 2.1): the
// fields of the mail, a blank line, the fields of the recipient, a blank line. Each event thus begins
// with Reporting-MTA. What RFC 3464 has no field for is in extension fields (RFC 3464 2.4).
// Engagement events have neither Action nor Status; X-Smtpbridge-Event tells what they are.
func AppendFields(b []byte, e event.Event, reportingMTA string) []byte {
	b = appendField(b, "Reporting-MTA", typed("dns", cmp.Or(reportingMTA, "localhost")))
	b = appendField(b, "Original-Envelope-Id", e.EnvID)
	b = append(b, '\n')
	return append(AppendRecipient(b, e), '\n')
}

// AppendRecipient appends the recipient's fields alone, for a report on several recipients.
func AppendRecipient(b []byte, e event.Event) []byte {
	b = appendField(b, "Original-Recipient", e.ORCPT)
	b = appendField(b, "Final-Recipient", address(e.Recipient))
	for _, c := range e.Candidates {
		b = appendField(b, "X-Smtpbridge-Candidate", address(c))
	}
	b = appendField(b, "Action", e.Action)
	b = appendField(b, "Status", e.Status)
	b = appendField(b, "Remote-MTA", typed("dns", e.RemoteMTA))
	b = appendField(b, "Diagnostic-Code", diagnosticCode(e))
	if !e.Time.IsZero() {
		b = appendField(b, "Last-Attempt-Date", date(e.Time))
	}
	if e.WillRetryAt != nil && e.Action == event.ActionDelayed {
		b = appendField(b, "Will-Retry-Until", date(*e.WillRetryAt))
	}
	b = appendField(b, "Final-Log-Id", e.QueueID)
	b = appendField(b, "X-Smtpbridge-Event", string(e.Kind))
	b = appendField(b, "X-Smtpbridge-Event-Id", e.ID)
	b = appendField(b, "X-Smtpbridge-Account", e.Account)
	return b
}

func appendField(b []byte, name, value string) []byte {
	value = oneLine(value)
	if value == "" {
		return b
	}
	return fmt.Appendf(b, "%s: %s\n", name, value)
}

func typed(typ, value string) string {
	if value == "" {
		return ""
	}
	return typ + "; " + value
}

// address gives an address its type: utf-8 when it needs more than ASCII (RFC 6533 3).
func address(a string) string {
	if !ascii(a) {
		return typed("utf-8", a)
	}
	return typed("rfc822", a)
}

// diagnosticCode is of type smtp only where the text is an SMTP reply (RFC 3464 2.3.6, 9.2);
// other words of an ESP get a type of their own.
func diagnosticCode(e event.Event) string {
	switch {
	case smtpReply(e.Diagnostic):
		return typed("smtp", e.Diagnostic)
	case e.SMTPReply != "":
		return typed("smtp", e.SMTPReply)
	case e.Diagnostic == "":
		return ""
	case atom(e.Provider):
		return typed("x-"+e.Provider, e.Diagnostic)
	}
	return typed("x-smtpbridge", e.Diagnostic)
}

// smtpReply tells whether s begins like an SMTP reply (RFC 5321 4.2).
func smtpReply(s string) bool {
	return len(s) >= 3 && '2' <= s[0] && s[0] <= '5' && digit(s[1]) && digit(s[2]) && (len(s) == 3 || s[3] == ' ' || s[3] == '-')
}

func digit(c byte) bool { return '0' <= c && c <= '9' }

func atom(s string) bool {
	for i := range len(s) {
		if c := s[i]; !digit(c) && (c < 'a' || 'z' < c) {
			return false
		}
	}
	return s != ""
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// date is RFC 5322's form, in UTC.
func date(t time.Time) string { return t.UTC().Format("Mon, 02 Jan 2006 15:04:05 -0700") }

// maxValue keeps a rendered line under the 998 bytes of RFC 5322 2.1.1.
const maxValue = 900

func oneLine(s string) string { return event.Clean(s, maxValue) }

// AppendText appends one aligned line: time, event, recipient, account, status, what was said, queue
// id. What is not known is a dash. Columns are wide enough for most values; a longer one moves
// the rest of its line. It holds no colours or other control characters.
func AppendText(b []byte, e event.Event) []byte {
	rcpt := e.Recipient
	if rcpt == "" && len(e.Candidates) > 0 {
		rcpt = "one of " + strings.Join(e.Candidates, ",")
	}
	return fmt.Appendf(b, "%s  %-14s  %-32s  %-12s  %-7s  %s  %s\n",
		e.Time.UTC().Format("2006-01-02T15:04:05Z"), column(string(e.Kind)), column(rcpt), column(e.Account), column(e.Status), column(Said(e)), column(e.QueueID))
}

// Said is the most telling text of the event.
func Said(e event.Event) string {
	text := cmp.Or(e.Diagnostic, e.SMTPReply, e.URL)
	switch {
	case text == "" && len(e.Losses) > 0:
		fields := make([]string, len(e.Losses))
		for i, l := range e.Losses {
			fields[i] = l.Field
		}
		text = "lost: " + strings.Join(fields, ", ")
	case text == "":
		text = cmp.Or(e.RejectReason, e.ProviderEvent)
	}
	if e.Outcome != "" {
		text = strings.TrimSpace("outcome=" + e.Outcome + " " + text)
	}
	return text
}

func column(s string) string { return cmp.Or(event.Clean(s, maxValue), "-") }
