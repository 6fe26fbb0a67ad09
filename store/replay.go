package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"smtpbridge/event"
)

// Replayed counts what became of replayed requests and their events.
type Replayed struct {
	Total    int `json:"total"`    // requests to be read
	Requests int `json:"requests"` // read
	Unread   int `json:"unread"`   // left as they are: of an account that is gone, or not readable
	Same     int `json:"same"`     // as they are known
	Revised  int `json:"revised"`  // with another result than before
	Added    int `json:"added"`    // not read from the request before
}

// Replay records what a stored request says when it is read anew. An event whose result differs from the newest one
// known under its id is written with the next revision, one that was not known with revision 1, so that a revision above 0
// always means: from a replay. An event of another request, or another copy of a known fact, stays as it is. The
// ledger follows. Replaying again changes nothing.
func (s *Store) Replay(ctx context.Context, request string, evs ...event.Event) (r Replayed, err error) {
	err = s.do(ctx, 1024*len(evs), func(ctx context.Context, t *tx) error {
		r = Replayed{}
		for i := range evs {
			e := evs[i]
			e.RawID = request
			if err := t.replay(ctx, &e, &r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return Replayed{}, fmt.Errorf("replay request %s: %w", request, err)
	}
	return r, nil
}

func (t *tx) replay(ctx context.Context, e *event.Event, r *Replayed) error {
	now := t.s.now()
	defaults(e, now)
	known, err := t.newest(ctx, e.ID)
	switch {
	case errors.Is(err, ErrNotFound):
		e.Revision = 1
	case err != nil:
		return err
	case known == nil || known.RawID != e.RawID: // it still waits for its mail, or came in another request first
		r.Same++
		return nil
	default:
		takeOver(e, known)
		if sameResult(e, known) {
			r.Same++
			return nil
		}
		e.Revision = known.Revision + 1
		if err := t.forget(ctx, known); err != nil {
			return err
		}
	}
	p, err := t.place(ctx, e, now, true)
	fresh := p == stored
	if err == nil && p == unmatched {
		fresh, err = t.insertEvent(ctx, e, unmatchedFact(e))
	}
	switch {
	case err != nil:
		return err
	case !fresh:
		r.Same++
	case known == nil:
		r.Added++
	default:
		r.Revised++
	}
	return nil
}

// Add adds the counts of b.
func (r *Replayed) Add(b Replayed) {
	r.Same += b.Same
	r.Revised += b.Revised
	r.Added += b.Added
}

// CountRequests is how many requests Requests would give.
func (s *Store) CountRequests(ctx context.Context, since time.Time) (int, error) {
	var n int64
	err := s.read().get(ctx, []any{&n}, "SELECT count(*) FROM requests WHERE received >= ?", us(since))
	return int(n), err
}

// newest is the event with an id in its last revision; nil when it is withheld.
func (t *tx) newest(ctx context.Context, id string) (*event.Event, error) {
	var e *event.Event
	err := t.each(ctx, "SELECT data, ref, raw_id FROM events WHERE id = ? ORDER BY revision DESC LIMIT 1", []any{text(id)}, func(scan func(...any) error) error {
		got, err := scanEvent(scan)
		e = &got
		return err
	})
	if err != nil || e != nil {
		return e, err
	}
	var n int64
	if err := t.get(ctx, []any{&n}, "SELECT count(*) FROM withheld WHERE id = ?", text(id)); err != nil || n > 0 {
		return nil, err
	}
	return nil, ErrNotFound
}

// takeOver completes an event that was read anew with what its mail gave it at first: the mail may be purged by now.
func takeOver(e, known *event.Event) {
	for _, f := range []struct{ to, from *string }{
		{&e.QueueID, &known.QueueID},
		{&e.Recipient, &known.Recipient},
		{&e.Sender, &known.Sender},
		{&e.MessageID, &known.MessageID},
		{&e.Subject, &known.Subject},
		{&e.EnvID, &known.EnvID},
		{&e.ORCPT, &known.ORCPT},
		{&e.Account, &known.Account},
	} {
		if *f.to == "" {
			*f.to = *f.from
		}
	}
	if len(e.Candidates) == 0 && e.Recipient == "" {
		e.Candidates = known.Candidates
	}
}

// sameResult compares in the public form, without what tells of the reading alone.
func sameResult(a, b *event.Event) bool {
	x, y := *a, *b
	x.Seen, x.Revision, x.V = y.Seen, y.Revision, y.V
	return public(x) == public(y)
}

func public(e event.Event) string {
	b, err := e.AppendJSON(nil)
	if err != nil {
		panic(err) // it came from JSON, or was cleaned for it
	}
	return string(b)
}

// forget takes a result that was read wrongly back from the ledger, if it is the newest fact there.
func (t *tx) forget(ctx context.Context, e *event.Event) error {
	if e.QueueID == "" || weight(e.Kind) == 0 {
		return nil
	}
	_, err := t.exec(ctx, "UPDATE recipients SET last = '', last_time = 0 WHERE mail_id = ? AND last = ? AND last_time = ?", text(e.QueueID), string(e.Kind), us(e.Time))
	return err
}
