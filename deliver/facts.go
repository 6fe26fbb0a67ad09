package deliver

import (
	"fmt"
	"strconv"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// fact is what happened to one recipient by our own doing, to become an event.
type fact struct {
	kind       event.Kind
	n          int
	call       *store.Call     // nil: no call was made
	mail       *translate.Mail // nil: not rendered
	account    string
	attempt    int
	providerID string
	status     string
	text       string
	reason     string
	retryAt    time.Time
	unknown    bool
	lost       []translate.Loss // found out by the call
	step       string           // tells repeated facts of one call and recipient apart
}

// event makes the public form of a fact.
func (w *work) event(f fact) event.Event {
	env := &w.c.Mail.Envelope
	rcpt := env.Rcpts[f.n]
	ref := ""
	if f.call != nil {
		ref = f.call.Ref
	}
	ev := event.Event{
		V: event.Version, ID: event.FactID(f.account, env.ID, rcpt.Addr, string(f.kind), ref, f.step),
		Time: w.now, Seen: w.now, Kind: f.kind, Recipient: rcpt.Addr, QueueID: env.ID, Account: f.account,
		Sender: env.From, MessageID: w.c.Mail.MessageID, Subject: w.c.Mail.Subject, ProviderMessageID: f.providerID,
		Status: f.status, Diagnostic: event.Clean(f.text, event.MaxText), Attempt: f.attempt, EnvID: env.EnvID, ORCPT: rcpt.ORCPT,
		Ref: ref,
	}
	if a, ok := w.p.Account(f.account); ok {
		ev.Provider = a.Info.Name
	}
	if f.unknown {
		ev.Outcome = event.OutcomeUnknown
	}
	if !f.retryAt.IsZero() {
		at := f.retryAt.UTC()
		ev.WillRetryAt = &at
	}
	if f.mail != nil {
		ev.Losses = losses(f.mail.Losses, f.lost)
		ev.Tags, ev.Metadata = f.mail.Options.Tags, f.mail.Options.Metadata
	}
	switch f.kind {
	case event.Sent:
		ev.Action = event.ActionRelayed
		if ev.Status == "" {
			ev.Status = "2.0.0"
		}
		by := f.account
		if f.providerID != "" {
			by += " as " + f.providerID
		}
		ev.SMTPReply = reply(250, ev.Status, "accepted by "+by)
	case event.Rejected, event.Failed:
		ev.Action, ev.RejectReason = event.ActionFailed, f.reason
		if ev.RejectReason == "" {
			ev.RejectReason = event.ReasonOther
		}
		if ev.Status == "" {
			ev.Status = "5.0.0"
		}
		ev.SMTPReply = reply(550, ev.Status, f.text)
	case event.Deferred:
		ev.Action = event.ActionDelayed
		if ev.Status == "" {
			ev.Status = "4.0.0"
		}
		ev.SMTPReply = reply(450, ev.Status, f.text)
	}
	return ev
}

func reply(code int, status, text string) string {
	return event.Clean(strconv.Itoa(code)+" "+status+" "+text, event.MaxText)
}

// losses joins what was known before the call with what it turned out to lose.
func losses(known, found []translate.Loss) []event.Loss {
	var out []event.Loss
	for _, list := range [][]translate.Loss{known, found} {
		for _, l := range list {
			out = append(out, event.Loss{Field: l.Field, Had: l.Had, Sent: l.Sent, Severity: l.Severity.String()})
		}
	}
	return out
}

// classStatus gives a code of the class wanted: the ESP's own when it fits, else a general one.
func classStatus(given string, class int, fallback string) string {
	if c, ok := parseStatus(given); ok && c[0] == class {
		return given
	}
	return fallback
}

// kindStatus is the general RFC 3463 code of a kind of failure.
func kindStatus(k providers.Kind) string {
	switch k {
	case providers.RateLimited:
		return "4.3.2"
	case providers.Operator:
		return "4.3.5"
	case providers.Ambiguous:
		return "4.4.2"
	case providers.Permanent:
		return "5.0.0"
	}
	return "4.4.0"
}

// callText is the ESP's words on a failed call.
func callText(e *providers.Error) string {
	text := faultText(e)
	if text == "" {
		text = fmt.Sprintf("%s: %s", e.Provider, e.Kind)
	}
	return event.Clean(text, event.MaxText)
}
