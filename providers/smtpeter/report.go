package smtpeter

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/textproto"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
)

// maxReport bounds the machine-readable part of a report, and maxGroups its recipients.
const (
	maxReport = 256 << 10
	maxGroups = 200
)

// parseMail reads a returned message, nil when that is impossible.
func parseMail(text string) *mime.Message {
	if text == "" {
		return nil
	}
	m, err := mime.Parse(strings.NewReader(text), int64(len(text)), mime.Limits{Depth: 20, Parts: 100})
	if err != nil {
		return nil
	}
	return m
}

// Types of machine-readable parts.
var (
	statusTypes   = []string{"message/delivery-status", "message/global-delivery-status"}
	feedbackTypes = []string{"message/feedback-report"}
)

// autoFields show an automatic reply (RFC 3834 5, and what came before it).
var autoFields = []string{"Auto-Submitted", "X-Autoreply", "X-Autorespond", "X-Vacation", "Precedence"}

// essence is what is kept of a returned message: the machine-readable parts, the fields that show an automatic reply, and
// a digest, which tells two of them apart. What people wrote is left out.
func essence(_, text string) string {
	sum := sha256.Sum256([]byte(text))
	digest := hex.EncodeToString(sum[:])
	var b strings.Builder
	b.WriteString("X-Digest: " + digest + "\n")
	m := parseMail(text)
	if m == nil {
		return b.String() + "\n"
	}
	for _, name := range autoFields {
		if m.Header.Has(name) {
			b.WriteString(name + ": " + event.Clean(m.Header.Get(name), 200) + "\n")
		}
	}
	b.WriteString("MIME-Version: 1.0\nContent-Type: multipart/report; boundary=\"" + digest + "\"\n\n")
	for i := range m.Attachments {
		a := &m.Attachments[i]
		if !slices.Contains(statusTypes, a.Type) && !slices.Contains(feedbackTypes, a.Type) {
			continue
		}
		b.WriteString("--" + digest + "\nContent-Type: " + a.Type + "\nContent-Transfer-Encoding: 8bit\n\n")
		r := a.Open()
		io.Copy(&b, io.LimitReader(r, maxReport)) // of a part that cannot be read to its end, what came before counts
		r.Close()
		b.WriteString("\n")
	}
	b.WriteString("--" + digest + "--\n")
	return b.String()
}

// part reads the first part of one of the types as groups of fields, separated by empty lines.
func part(m *mime.Message, types []string) []textproto.MIMEHeader {
	for i := range m.Attachments {
		a := &m.Attachments[i]
		for _, t := range types {
			if a.Type != t {
				continue
			}
			r := a.Open()
			b, err := io.ReadAll(io.LimitReader(r, maxReport))
			r.Close()
			if err != nil && len(b) == 0 {
				return nil
			}
			return groups(b)
		}
	}
	return nil
}

// groups is tolerant: a line that is no field is left out, a missing end does not matter.
func groups(b []byte) []textproto.MIMEHeader {
	var out []textproto.MIMEHeader
	var cur textproto.MIMEHeader
	last := ""
	s := bufio.NewScanner(bytes.NewReader(b))
	s.Buffer(nil, maxReport+1)
	for s.Scan() {
		line := strings.TrimRight(s.Text(), "\r")
		switch {
		case strings.TrimSpace(line) == "":
			cur, last = nil, ""
			continue
		case (line[0] == ' ' || line[0] == '\t') && last != "":
			v := cur[last]
			v[len(v)-1] += " " + strings.TrimSpace(line)
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok {
			last = ""
			continue
		}
		if cur == nil {
			if len(out) == maxGroups {
				break
			}
			cur = textproto.MIMEHeader{}
			out = append(out, cur)
		}
		last = textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(k))
		cur[last] = append(cur[last], strings.TrimSpace(v))
	}
	return out
}

// untyped drops the type before the semicolon of a DSN field (RFC 3464 2.1.2) and a trailing comment.
func untyped(s string) string {
	if _, after, ok := strings.Cut(s, ";"); ok {
		s = after
	}
	return strings.TrimSpace(s)
}

// bounce is whatever came back: https://www.smtpeter.com/en/documentation/webhook-bounces. Reports that SMTPeter
// understands come as a failure too; both are one fact for the ledger.
func bounce(f fields, e *event.Event) {
	m := parseMail(f.get("mime"))
	if m == nil {
		e.RejectReason = event.ReasonOther
		return
	}
	if list := part(m, statusTypes); len(list) > 0 {
		if id := untypedRef(list[0].Get("Original-Envelope-Id")); id != "" && e.Ref == "" {
			e.Ref = id
		}
		if g := groupFor(list, e.Recipient); g != nil && statusReport(g, e) {
			return
		}
	}
	if autoReply(m) {
		e.Kind = event.Autoresponded
		return
	}
	e.RejectReason = event.ReasonOther
}

// untypedRef reads our envelope id back.
func untypedRef(s string) string {
	if ref, ok := strings.CutPrefix(strings.TrimSpace(s), refPrefix); ok && isRef(ref) {
		return ref
	}
	return ""
}

// groupFor picks the recipient's group; one that stands alone is his.
func groupFor(list []textproto.MIMEHeader, rcpt string) textproto.MIMEHeader {
	var only textproto.MIMEHeader
	n := 0
	for _, g := range list {
		if g.Get("Action") == "" && g.Get("Final-Recipient") == "" {
			continue // the fields on the message
		}
		for _, k := range []string{"Original-Recipient", "Final-Recipient"} {
			if a := address(untyped(g.Get(k))); a != "" && rcpt != "" && envelope.Equal(a, rcpt) {
				return g
			}
		}
		only = g
		n++
	}
	if n == 1 {
		return only
	}
	return nil
}

// statusReport takes the fields of RFC 3464 2.3 into e.
func statusReport(g textproto.MIMEHeader, e *event.Event) bool {
	action, _, _ := strings.Cut(strings.ToLower(g.Get("Action")), " ")
	kind, ok := actions[action]
	if !ok {
		return false
	}
	status, _, _ := strings.Cut(g.Get("Status"), " ")
	class := map[event.Kind]string{event.Bounced: "5.0.0", event.Deferred: "4.0.0", event.Delivered: "2.0.0"}[kind]
	if !extendedCode.MatchString(status) || kind != event.Bounced && status[0] != class[0] || kind == event.Bounced && status[0] == '2' {
		status = class
	}
	e.Kind, e.Action, e.Status = kind, action, status
	e.Diagnostic = event.Clean(untyped(g.Get("Diagnostic-Code")), event.MaxText)
	e.RemoteMTA = event.Clean(untyped(g.Get("Remote-Mta")), 255)
	if e.Recipient == "" {
		if e.Recipient = address(untyped(g.Get("Original-Recipient"))); e.Recipient == "" {
			e.Recipient = address(untyped(g.Get("Final-Recipient")))
		}
	}
	switch kind {
	case event.Bounced:
		e.RejectReason = reasonOf(e.Diagnostic)
	case event.Deferred:
		if t, err := time.Parse(time.RFC1123Z, g.Get("Will-Retry-Until")); err == nil {
			t = t.UTC()
			e.WillRetryAt = &t
		}
	}
	return true
}

// actions are RFC 3464 2.3.3.
var actions = map[string]event.Kind{
	event.ActionFailed: event.Bounced, event.ActionDelayed: event.Deferred,
	event.ActionDelivered: event.Delivered, event.ActionRelayed: event.Delivered, event.ActionExpanded: event.Delivered,
}

// autoReply knows RFC 3834 5 and what came before it.
func autoReply(m *mime.Message) bool {
	for _, name := range autoFields {
		v := strings.ToLower(m.Header.Get(name))
		switch name {
		case "Auto-Submitted":
			if strings.HasPrefix(v, "auto-replied") {
				return true
			}
		case "Precedence":
			if v == "auto_reply" {
				return true
			}
		default:
			if m.Header.Has(name) {
				return true
			}
		}
	}
	return false
}

// abuse is a feedback report (RFC 5965): https://www.smtpeter.com/en/documentation/webhook-abuses. QUIRK: the menu no
// longer shows the page; what does come is read.
func abuse(f fields, e *event.Event) {
	e.Kind, e.RejectReason = event.Complained, event.ReasonSpam
	m := parseMail(f.get("mime"))
	if m == nil {
		return
	}
	list := part(m, feedbackTypes)
	if len(list) == 0 {
		return
	}
	switch strings.ToLower(list[0].Get("Feedback-Type")) {
	case "not-spam": // RFC 6430
		e.Kind, e.RejectReason = event.Unknown, ""
	case "opt-out":
		e.Kind, e.RejectReason = event.Unsubscribed, ""
	}
	if rcpts := list[0]["Original-Rcpt-To"]; e.Recipient == "" && len(rcpts) == 1 {
		e.Recipient = address(untyped(rcpts[0]))
	}
}
