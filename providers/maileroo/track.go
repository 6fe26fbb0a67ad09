package maileroo

import (
	"bytes"
	"context"
	"errors"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
)

// logDelivered is the one log_type that the documentation names.
const logDelivered = "Delivered"

// Track searches the log for a delivery of our reference to the recipient. What an entry holds is not documented, so its
// being there is all that is read, when the same search for a reference that cannot exist finds nothing; that a mail
// failed cannot be told. The time of the delivery is not known: it is that of the look-up.
func (f finding) Track(ctx context.Context, t providers.Tracked) ([]event.Event, error) {
	if t.Ref == "" {
		return nil, nil
	}
	from := t.Sent.Add(-time.Hour)
	items, err := f.search(ctx, t.Ref, from, t.Rcpt, logDelivered)
	if errors.Is(err, errForm) {
		return nil, nil
	}
	if err != nil || len(items) == 0 {
		return nil, err
	}
	sure := false
	for _, item := range items {
		sure = sure || bytes.Contains(item, []byte(t.Ref)) || bytes.Contains(bytes.ToLower(item), []byte(referenceID(t.Ref)))
	}
	if !sure {
		control, err := f.search(ctx, "no-"+t.Ref, from, t.Rcpt, logDelivered)
		if err != nil || len(control) > 0 {
			return nil, err
		}
	}
	now := f.now().UTC()
	n := natives["delivered"]
	return []event.Event{{
		V: event.Version, ID: event.FactID(f.opts.Account, "log", logDelivered, t.Ref, envelope.Fold(t.Rcpt)), Time: now, Seen: now,
		Kind: n.kind, Account: f.opts.Account, Provider: name, ProviderEvent: "log." + logDelivered, ProviderMessageID: t.MessageID,
		Recipient: t.Rcpt, Action: n.action, Status: n.status, Ref: t.Ref,
	}}, nil
}
