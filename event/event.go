// Package event defines the normalised delivery event: what happened to one mail
// for one recipient, in the words of RFC 3464 (DSN) and RFC 3463 (status codes).
// It holds types and vocabulary only. The JSON form is the public event log; see
// docs/event.schema.json.
package event

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Version is the value of the field "v" of every event.
const Version = 1

// Kind says what happened.
type Kind string

// The vocabulary of event kinds.
const (
	Queued        Kind = "queued"         // the ESP has it and has not tried yet
	Sent          Kind = "sent"           // the ESP accepted it from us (queue-final)
	Rejected      Kind = "rejected"       // the ESP, or our suppression, refused the recipient (queue-final)
	Failed        Kind = "failed"         // could not be handed to any ESP: refused for good or expired (queue-final)
	Bounced       Kind = "bounced"        // the recipient's server refused it for good
	Deferred      Kind = "deferred"       // a temporary failure; somebody will try again
	Delivered     Kind = "delivered"      // the recipient's server accepted it
	Autoresponded Kind = "autoresponded"  // an automatic reply came back
	Opened        Kind = "opened"         // tracking pixel fetched
	Clicked       Kind = "clicked"        // tracked link followed
	Complained    Kind = "complained"     // the recipient reported it as spam
	Unsubscribed  Kind = "unsubscribed"   // the recipient unsubscribed
	Subscribed    Kind = "subscribed"     // the recipient subscribed
	Inbound       Kind = "inbound"        // the ESP handed us a received mail
	InboundFailed Kind = "inbound_failed" // the ESP could not hand us a received mail
	Unknown       Kind = "unknown"        // a native event we have no word for; the raw request is kept
)

// Kinds lists the vocabulary.
var Kinds = []Kind{
	Queued, Sent, Rejected, Failed, Bounced, Deferred, Delivered, Autoresponded, Opened, Clicked,
	Complained, Unsubscribed, Subscribed, Inbound, InboundFailed, Unknown,
}

// Known reports whether k is a word of the vocabulary.
func (k Kind) Known() bool { return slices.Contains(Kinds, k) }

// Engagement reports whether the kind is about a reader's act, not about delivery.
// Such events carry no action and no status.
func (k Kind) Engagement() bool {
	switch k {
	case Opened, Clicked, Complained, Unsubscribed, Subscribed:
		return true
	}
	return false
}

// Reject reasons.
const (
	ReasonInvalid      = "invalid"
	ReasonBounced      = "bounced"
	ReasonTimedOut     = "timed_out"
	ReasonBlocked      = "blocked"
	ReasonSpam         = "spam"
	ReasonUnsubscribed = "unsubscribed"
	ReasonOther        = "other"
)

// Actions of RFC 3464 2.3.3.
const (
	ActionDelivered = "delivered"
	ActionRelayed   = "relayed"
	ActionDelayed   = "delayed"
	ActionFailed    = "failed"
	ActionExpanded  = "expanded"
)

// Outcome values of the field "outcome".
const (
	OutcomeUnknown = "unknown" // the ESP's answer was lost: it may have been sent
)

// Loss is one thing the ESP's API could not express; see package translate.
type Loss struct {
	Field    string `json:"field"`
	Had      string `json:"had,omitempty"`
	Sent     string `json:"sent,omitempty"`
	Severity string `json:"severity"` // info, minor, major, fatal
}

// Event is one normalised event. Text from outside is cut and stripped of control
// characters before it enters an Event (see Clean).
type Event struct {
	V                 int               `json:"v"`
	ID                string            `json:"id"`
	Revision          int               `json:"revision,omitempty"` // raised when a replay normalises the same fact anew
	Time              time.Time         `json:"time"`               // when it happened
	Seen              time.Time         `json:"seen"`               // when we learnt of it
	Kind              Kind              `json:"event"`
	Recipient         string            `json:"-"` // JSON "recipient": null when the ESP does not say which
	Candidates        []string          `json:"candidates,omitempty"`
	QueueID           string            `json:"-"` // JSON "queue_id": null when the mail is not ours
	Account           string            `json:"account"`
	Provider          string            `json:"provider"`
	Sender            string            `json:"sender,omitempty"`
	MessageID         string            `json:"message_id,omitempty"` // Message-ID header, no angle brackets
	Subject           string            `json:"subject,omitempty"`
	ProviderMessageID string            `json:"provider_message_id,omitempty"`
	ProviderEventID   string            `json:"provider_event_id,omitempty"`
	ProviderEvent     string            `json:"provider_event,omitempty"` // the ESP's own name
	Action            string            `json:"action,omitempty"`         // RFC 3464 2.3.3
	Status            string            `json:"status,omitempty"`         // RFC 3463, "5.1.1"
	Diagnostic        string            `json:"diagnostic,omitempty"`     // RFC 3464 2.3.6 text, without the type
	RemoteMTA         string            `json:"remote_mta,omitempty"`
	RejectReason      string            `json:"reject_reason,omitempty"`
	Attempt           int               `json:"attempt,omitempty"` // 1 = first API call for this recipient
	WillRetryAt       *time.Time        `json:"will_retry_at,omitempty"`
	SMTPReply         string            `json:"smtp_reply,omitempty"`
	Losses            []Loss            `json:"losses,omitempty"`
	Tags              []string          `json:"tags,omitempty"`
	Metadata          map[string]string `json:"metadata,omitempty"`
	URL               string            `json:"url,omitempty"`
	UserAgent         string            `json:"user_agent,omitempty"`
	IP                string            `json:"ip,omitempty"`
	EnvID             string            `json:"envid,omitempty"`
	ORCPT             string            `json:"orcpt,omitempty"`
	Outcome           string            `json:"outcome,omitempty"`

	// Not part of the public log.
	Ref   string `json:"-"` // our reference as the ESP echoed it (a tag, metadata); finds the call when the id is not known yet
	RawID string `json:"-"` // the stored request it was read from
	Wire  string `json:"-"` // Message-ID the recipient sees, where MessageID does not hold it; no angle brackets
}

type eventAlias Event // without methods

type eventJSON struct {
	eventAlias
	Recipient *string `json:"recipient"`
	QueueID   *string `json:"queue_id"`
}

// MarshalJSON writes the public form: recipient and queue_id are always there, null when not known.
func (e Event) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil) }

// AppendJSON appends the public form as one line of the event log, without the line end.
func (e Event) AppendJSON(b []byte) ([]byte, error) {
	j := eventJSON{eventAlias: eventAlias(e)}
	if e.Recipient != "" {
		j.Recipient = &e.Recipient
	}
	if e.QueueID != "" {
		j.QueueID = &e.QueueID
	}
	// < > & stay as they are: the log is read by people, and never put into a page unescaped.
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(j); err != nil {
		return b, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte{'\n'}), nil
}

// UnmarshalJSON reads the public form.
func (e *Event) UnmarshalJSON(b []byte) error {
	var j eventJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	*e = Event(j.eventAlias)
	if j.Recipient != nil {
		e.Recipient = *j.Recipient
	}
	if j.QueueID != nil {
		e.QueueID = *j.QueueID
	}
	return nil
}

// FactID returns a stable event id derived from the facts the vendor gave (its event id,
// or message id, native event name, time, recipient ...). The same facts give the same id,
// so that a repeated webhook, a poll and a replay are one event. Nothing of our own mapping
// may be among the facts.
func FactID(account string, facts ...string) string {
	h := sha256.New()
	for _, f := range append([]string{account}, facts...) {
		fmt.Fprintf(h, "%d:%s", len(f), f)
	}
	sum := h.Sum(nil)
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:16]))
}

// Clean makes text from outside fit for a log line, an event or an SMTP reply: control
// characters and line ends become spaces, invalid UTF-8 becomes U+FFFD, and the result is
// cut to at most max bytes at a rune boundary (an ellipsis marks the cut).
func Clean(s string, max int) string {
	if max <= 0 {
		return ""
	}
	var b strings.Builder
	for _, r := range s {
		if r < 0x20 || r == 0x7f || 0x80 <= r && r < 0xa0 || r == 0x2028 || r == 0x2029 {
			r = ' '
		}
		if b.Len()+4 > max {
			if b.Len()+3 <= max {
				b.WriteString("…")
			}
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// MaxText is the length in bytes to which texts from an ESP are cut (diagnostics, reasons).
const MaxText = 512
