package store

import (
	"context"
	"fmt"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// A bulk interface answers with an id of the batch, kept as "bulk:ID"; what became of each mail in it is told later. Until then
// the batch's id stands for the recipients' own.
const bulkFirst, bulkEnd = "bulk:", "bulk;" // the range of such ids

// BulkCall is an accepted call of which nothing but the batch's id is known.
type BulkCall struct {
	Call  Call
	Rcpts []envelope.Rcpt // of the call, in its order
}

// Unresolved gives an account's bulk calls of since or later with a recipient of whom nothing is known but that he
// was handed over, oldest first.
func (s *Store) Unresolved(ctx context.Context, account string, since time.Time, n int) ([]BulkCall, error) {
	var out []BulkCall
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		out = nil
		calls, err := t.calls(ctx, `provider_message_id <> '' AND provider_message_id >= ? AND provider_message_id < ? AND account = ? AND state = ? AND started >= ?
			AND EXISTS (SELECT 1 FROM recipients r WHERE r.mail_id = calls.mail_id AND r.provider_message_id = calls.provider_message_id AND r.last = ?)
			ORDER BY started, id LIMIT ?`, bulkFirst, bulkEnd, account, string(CallAccepted), us(since), string(event.Sent), n)
		if err != nil {
			return err
		}
		for _, c := range calls {
			m, err := t.mailAnyway(ctx, c.MailID)
			if err != nil {
				return err
			}
			b := BulkCall{Call: c.Call}
			for _, n := range c.Rcpts {
				if n < 0 || n >= len(m.Envelope.Rcpts) {
					return fmt.Errorf("call %s: recipient %d of %d", c.ID, n, len(m.Envelope.Rcpts))
				}
				b.Rcpts = append(b.Rcpts, m.Envelope.Rcpts[n])
			}
			out = append(out, b)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("unresolved bulk calls of %s: %w", account, err)
	}
	return out, nil
}

// Resolve gives the recipients of a bulk call (by their place in it) their own ids and records what the ESP said of the others, in
// one transaction. An id that an event has brought meanwhile stays.
func (s *Store) Resolve(ctx context.Context, c Call, ids map[int]string, evs ...event.Event) error {
	err := s.do(ctx, 1024*len(evs), func(ctx context.Context, t *tx) error {
		now := s.now()
		for i, id := range ids {
			if i < 0 || i >= len(c.Rcpts) {
				return fmt.Errorf("call %s has no recipient %d", c.ID, i)
			}
			if _, err := t.exec(ctx, "UPDATE recipients SET provider_message_id = ?, updated = ? WHERE mail_id = ? AND n = ? AND provider_message_id = ?",
				text(id), us(now), c.MailID, c.Rcpts[i], text(c.ProviderMessageID)); err != nil {
				return err
			}
		}
		for i := range evs {
			e := evs[i]
			if _, err := t.record(ctx, &e, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("resolve bulk call %s: %w", c.ID, err)
	}
	return nil
}
