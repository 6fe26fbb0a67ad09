package sink

import (
	"context"
	"fmt"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// SuppressionList is where entries go; *store.Store is one.
type SuppressionList interface {
	Suppress(ctx context.Context, list ...store.Suppression) error
	SuppressionsOf(ctx context.Context, address string) ([]store.Suppression, error)
}

// SuppressConfig is what a Suppress is made from.
type SuppressConfig struct {
	List SuppressionList
	// Audience tells of a mail of ours, by its queue id, the From domain and the stream its recipients have had enough of. ok is
	// false when the mail is not in the ledger any more.
	Audience func(ctx context.Context, queueID, account string) (domain, stream string, ok bool, err error)
	// Keep is how long an entry of a reason lasts; 0 = until it is removed.
	Keep map[string]time.Duration
}

// Suppress is the sink that keeps the suppression list: addresses that do not exist, and people who complained or
// unsubscribed. It knows only what is certain: an event with a recipient, of a mail of ours, as it came the first time.
type Suppress struct {
	c SuppressConfig
}

// NewSuppress makes the sink.
func NewSuppress(c SuppressConfig) *Suppress { return &Suppress{c} }

// Name is the key of its cursor.
func (s *Suppress) Name() string { return "suppression" }

// Open returns the stored cursor, which is the store's own.
func (s *Suppress) Open(_ context.Context, cursor string) (string, error) { return cursor, nil }

// Close has nothing to close.
func (s *Suppress) Close() error { return nil }

// Write adds the entries that events ask for.
func (s *Suppress) Write(ctx context.Context, evs []event.Event, next string) (string, error) {
	for i := range evs {
		if err := s.add(ctx, &evs[i]); err != nil {
			return "", fmt.Errorf("suppression list: %w", err)
		}
	}
	return next, nil
}

func (s *Suppress) add(ctx context.Context, e *event.Event) error {
	reason := suppressReason(e)
	if reason == "" {
		return nil
	}
	domain, stream, ok, err := s.c.Audience(ctx, e.QueueID, e.Account)
	if err != nil || !ok {
		return err
	}
	if reason != store.ReasonUnsubscribed {
		stream = "" // the address is bad, or the person angry, whatever the stream
	} else if stream == "" {
		return nil // who unsubscribes from a mail without a stream does not refuse the next invoice
	}
	entry := store.Suppression{Address: e.Recipient, Domain: domain, Stream: stream, Reason: reason, Source: e.ID, Created: e.Time}
	if keep := s.c.Keep[reason]; keep > 0 {
		entry.Expires = e.Time.Add(keep)
	}
	have, err := s.c.List.SuppressionsOf(ctx, e.Recipient)
	if err != nil {
		return err
	}
	for _, h := range have {
		if h.Domain == entry.Domain && h.Stream == entry.Stream && (h.Expires.IsZero() || !entry.Expires.IsZero() && !h.Expires.Before(entry.Expires)) {
			return nil // it lasts as long already: an operator's, or a complaint
		}
	}
	return s.c.List.Suppress(ctx, entry)
}

// badAddress are the statuses (RFC 3463 3.2) that say of an address that no mail will ever get there: bad mailbox, bad
// system, bad syntax, moved without a new address, a domain that takes no mail (RFC 7505).
var badAddress = map[string]bool{"5.1.1": true, "5.1.2": true, "5.1.3": true, "5.1.6": true, "5.1.10": true}

// suppressReason is why an event puts its recipient on the list, "" when it does not. A replay (a revision) never does, nor a refusal
// that is ours, nor a bounce that only says that it is one: 5.0.0 is what we write when nothing better is known,
// and 5.7.x is about the mail.
func suppressReason(e *event.Event) string {
	if e.Revision > 0 || e.Recipient == "" || e.QueueID == "" {
		return ""
	}
	switch e.Kind {
	case event.Complained:
		return store.ReasonComplained
	case event.Unsubscribed:
		return store.ReasonUnsubscribed
	case event.Bounced, event.Rejected:
		said := e.ProviderEvent != "" || e.Ref != "" // by the ESP: in an event, or in the answer to a call
		if said && (badAddress[e.Status] || e.RejectReason == event.ReasonInvalid) {
			return store.ReasonBounced
		}
	}
	return ""
}
