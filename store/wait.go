package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"smtpbridge/event"
)

// A mail taken by a listener that answers after the first attempt (accept = "wait") is durable
// before its client knows. Until the client is answered, its HoldReason carries a mark, which
// Answer takes off before the reply leaves. A mail found with the mark after its time is one whose
// client heard nothing and will send it again: Abandon drops what was not started. A mail that finishes
// with refused recipients keeps the mark until then: what the reply tells, no DSN needs to.
const (
	waitMark = "unanswered until "
	goneMark = "the client left without an answer"
	goneText = "dropped before it was sent: the client left without an answer"
)

// Unanswered is the HoldReason to Commit a mail with whose client waits for the first attempt. The
// mail is queued, not held. until is when AbandonOverdue may give the client up.
func Unanswered(until time.Time) string { return waitMark + until.UTC().Format(time.RFC3339) }

// unanswered reads the mark; one that cannot be read is overdue.
func unanswered(reason string) (until time.Time, ok bool) {
	mark, ok := strings.CutPrefix(reason, waitMark)
	if !ok {
		return time.Time{}, false
	}
	until, err := time.Parse(time.RFC3339, mark)
	if err != nil {
		return time.Time{}, true
	}
	return until, true
}

// Answer notes that the client is answered: from now on the mail is an ordinary one. told are the
// recipients whose refusal the reply itself tells, so that no DSN does.
// ErrStale: it was abandoned meanwhile, and the client must hear a temporary refusal.
func (s *Store) Answer(ctx context.Context, id string, told ...int) error {
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		_, reason, err := t.waitState(ctx, id)
		switch {
		case err != nil:
			return err
		case reason == goneMark:
			return fmt.Errorf("%w: %s", ErrStale, goneMark)
		case strings.HasPrefix(reason, waitMark):
			_, err = t.exec(ctx, "UPDATE mails SET hold_reason = '' WHERE id = ?", id)
		}
		for _, n := range told {
			if err != nil {
				break
			}
			_, err = t.putNotice(ctx, Notice{MailID: id, N: n, Action: event.ActionFailed, Reason: "told in the reply"})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("answer %s: %w", id, err)
	}
	return nil
}

// Abandon gives up on the client of an unanswered mail: recipients that no call was started for
// are dropped, each with its final event. Those in a started call stay with it, whatever it comes
// to, but what turns out not to be accepted is dropped too instead of tried again. A mail that
// is answered, held or finished is left alone.
func (s *Store) Abandon(ctx context.Context, id string) error {
	err := s.do(ctx, 1024, func(ctx context.Context, t *tx) error { return t.abandon(ctx, id) })
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("abandon %s: %w", id, err)
	}
	return nil
}

// AbandonOverdue abandons the unanswered mails whose time was over before the time given, or all
// of them when it is zero: right after the start of the only process on a store. It returns how many.
func (s *Store) AbandonOverdue(ctx context.Context, before time.Time) (int, error) {
	var ids []string
	// The conditions are those of the index, which holds nothing but unanswered mails.
	err := s.read().each(ctx, "SELECT id, hold_reason FROM mails WHERE state = 'queued' AND hold_reason <> ''", nil, func(scan func(...any) error) error {
		var id, reason string
		if err := scan(&id, &reason); err != nil {
			return err
		}
		until, ok := unanswered(reason)
		if !ok || !before.IsZero() && !until.Before(before) {
			return nil
		}
		ids = append(ids, id)
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("unanswered mails: %w", err)
	}
	for n, id := range ids {
		if err := s.Abandon(ctx, id); err != nil {
			return n, err
		}
		s.log(slog.LevelInfo, logAbandoned, "id", id)
	}
	return len(ids), nil
}

// PurgeBody removes the body of a finished mail before its retention is over.
func (s *Store) PurgeBody(ctx context.Context, id string) error {
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		var body, blob string
		err := t.get(ctx, []any{&body, &blob}, "SELECT body, blob FROM mails WHERE id = ? AND finished > 0"+t.s.d.forUpdate, id)
		if err != nil || body == bodyPurged {
			return err
		}
		return t.purgeBody(ctx, id, body, blob, t.s.now())
	})
	if err != nil {
		return fmt.Errorf("purge body of %s: %w", id, err)
	}
	return nil
}

func (t *tx) waitState(ctx context.Context, id string) (state MailState, reason string, err error) {
	var s string
	err = t.get(ctx, []any{&s, &reason}, "SELECT state, hold_reason FROM mails WHERE id = ?"+t.s.d.forUpdate, id)
	return MailState(s), reason, err
}

// gone reports whether nothing of the mail is to be tried again.
func (m *Mail) gone() bool { return m.State == MailQueued && m.HoldReason == goneMark }

func (t *tx) abandon(ctx context.Context, id string) error {
	state, reason, err := t.waitState(ctx, id)
	if err != nil || state != MailQueued || !strings.HasPrefix(reason, waitMark) {
		return err
	}
	now := t.s.now()
	m, err := t.mailAnyway(ctx, id)
	if err != nil {
		return err
	}
	rcpts, err := t.rcpts(ctx, &m.Envelope, "mail_id = ?", id)
	if err != nil {
		return err
	}
	calls, err := t.calls(ctx, "mail_id = ? AND state IN ('open', 'ambiguous', 'retry')", id)
	if err != nil {
		return err
	}
	started := map[int]bool{}
	for _, c := range calls {
		if c.State == CallRetry && !c.proven { // surely not accepted
			if _, err := t.exec(ctx, "UPDATE calls SET state = ? WHERE id = ?", string(CallRefused), c.ID); err != nil {
				return err
			}
			continue
		}
		for _, n := range c.Rcpts {
			started[n] = true
		}
	}
	open := false
	for i := range rcpts {
		r := &rcpts[i]
		switch {
		case r.State.Final():
		case started[r.N]:
			open = true
		default:
			r.State, r.Status, r.Detail = RcptDeleted, "4.4.2", goneText
			if err := t.setRcpt(ctx, id, RcptResult{N: r.N, State: r.State, Status: r.Status, Detail: r.Detail}, now); err != nil {
				return err
			}
			if err := t.finalEvent(ctx, &m, r, "", now); err != nil {
				return err
			}
		}
	}
	jobs, err := t.jobs(ctx, "mail_id = ?", id)
	if err != nil {
		return err
	}
	for _, j := range jobs {
		if _, err := t.dropEmptyJob(ctx, j.ID, false); err != nil {
			return err
		}
	}
	t.changed(id)
	if !open {
		if _, err := t.exec(ctx, "UPDATE mails SET state = ? WHERE id = ?", string(MailDeleted), id); err != nil {
			return err
		}
		if err := t.finish(ctx, id, now); err != nil {
			return err
		}
	}
	_, err = t.exec(ctx, "UPDATE mails SET hold_reason = ? WHERE id = ?", goneMark, id)
	return err
}

// dropGone makes a recipient of an abandoned mail final that would be tried again. Its call was
// surely not accepted; one whose answer was lost stays in flight.
func dropGone(r *RcptResult) {
	if r.State == RcptQueued {
		r.State, r.Status, r.Detail = RcptDeleted, "4.4.2", goneText
	}
}
