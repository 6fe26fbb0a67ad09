package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"smtpbridge/event"
)

// InboundPost is a received mail that the ESP keeps until it was fetched.
type InboundPost struct {
	ID       string // that of its inbound event
	Account  string
	State    string // the caller's
	Data     string // the caller's
	Received time.Time
	NextAt   time.Time // when it is to be worked on again
	Attempts int
}

const inboundColumns = "id, account, state, data, received, next_at, attempts"

func scanInbound(scan func(...any) error) (p InboundPost, err error) {
	var received, next int64
	err = scan(&p.ID, &p.Account, &p.State, &p.Data, &received, &next, &p.Attempts)
	p.Received, p.NextAt = at(received), at(next)
	return p, err
}

// InboundPost returns an entry, ErrNotFound when there is none.
func (s *Store) InboundPost(ctx context.Context, id string) (p InboundPost, err error) {
	found := false
	err = s.read().each(ctx, "SELECT "+inboundColumns+" FROM inbound_posts WHERE id = ?", []any{text(id)}, func(scan func(...any) error) (err error) {
		found = true
		p, err = scanInbound(scan)
		return err
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	return p, err
}

// SaveInbound writes an entry, or writes it anew. It is durable when the error is nil.
func (s *Store) SaveInbound(ctx context.Context, p InboundPost) error {
	return s.do(ctx, len(p.Data), func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, `INSERT INTO inbound_posts (`+inboundColumns+`) VALUES (?, ?, ?, ?, ?, ?, ?)
			ON CONFLICT (id) DO UPDATE SET state = excluded.state, data = excluded.data, next_at = excluded.next_at, attempts = excluded.attempts`,
			text(p.ID), text(p.Account), p.State, text(p.Data), us(p.Received), us(p.NextAt), p.Attempts)
		return err
	})
}

// DropInbound removes an entry.
func (s *Store) DropInbound(ctx context.Context, id string) error {
	return s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "DELETE FROM inbound_posts WHERE id = ?", text(id))
		return err
	})
}

// ClaimInbound gives up to n entries that are due and puts them off by lease, so that nobody else works on them meanwhile.
func (s *Store) ClaimInbound(ctx context.Context, n int, lease time.Duration) (out []InboundPost, err error) {
	now := s.now()
	var due []InboundPost
	err = s.read().each(ctx, "SELECT "+inboundColumns+" FROM inbound_posts WHERE next_at <= ? ORDER BY next_at LIMIT ?", []any{us(now), n}, func(scan func(...any) error) error {
		p, err := scanInbound(scan)
		due = append(due, p)
		return err
	})
	if err != nil || len(due) == 0 {
		return nil, err
	}
	err = s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		out = out[:0]
		for _, p := range due {
			k, err := t.exec(ctx, "UPDATE inbound_posts SET next_at = ? WHERE id = ? AND next_at = ?", us(now.Add(lease)), p.ID, us(p.NextAt))
			if err != nil {
				return err
			}
			if k > 0 {
				out = append(out, p)
			}
		}
		return nil
	})
	return out, err
}

// errTaken says that a received mail is in the store already.
var errTaken = errors.New("taken before")

// TakeInbound commits a received mail as Receipt.Commit does, unless the first of its events, which says that it came in, is
// known: then it returns false, and nothing of the mail is kept. So a mail that an ESP posts twice is one.
func (s *Store) TakeInbound(ctx context.Context, r Receipt, m Mail, jobs []NewJob, evs ...event.Event) (fresh bool, err error) {
	rc, ok := r.(*receipt)
	if !ok || rc.s != s || len(evs) == 0 {
		return false, errors.New("store: not a received mail of this store")
	}
	err = rc.commit(ctx, m, jobs, nil, func(ctx context.Context, t *tx) error {
		now := s.now()
		for i := range evs {
			e := &evs[i]
			defaults(e, now)
			fill(e, &m, -1)
			fresh, err := t.insertEvent(ctx, e, "")
			switch {
			case err != nil:
				return err
			case !fresh && i == 0:
				return errTaken
			}
		}
		return nil
	})
	switch {
	case errors.Is(err, errTaken):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("take a received mail: %w", err)
	}
	return true, nil
}

// HasEvent reports whether there is an event with this id.
func (s *Store) HasEvent(ctx context.Context, id string) (bool, error) {
	var n int64
	err := s.read().get(ctx, []any{&n}, "SELECT count(*) FROM events WHERE id = ?", text(id))
	return n > 0, err
}
