package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// Notice is what the sender of a mail was told, or is to be told, of one recipient by DSN mail. There is at
// most one for each recipient and action, whatever events come in whatever order.
type Notice struct {
	MailID  string
	N       int       // index of the recipient in the envelope
	Action  string    // RFC 3464 2.3.3
	EventID string    // the event that gave rise to it
	Due     time.Time // when it is to be looked at again; zero: it is settled
	DSN     string    // queue id of the mail that told it
	Reason  string    // why none will be written, where that is so
	Updated time.Time // when it became so
}

// ErrTold says that a notice was settled before, or that its mail is gone: there is nothing to tell.
var ErrTold = errors.New("the sender was told before")

// Ledger is what has to be known of a mail to tell its sender about it.
type Ledger struct {
	Mail    Mail
	Rcpts   []Rcpt
	Expires time.Time // when the last of its jobs is given up, zero when none is left
	Notices []Notice
}

// Notice gives that of a recipient and action, nil when there is none.
func (l *Ledger) Notice(n int, action string) *Notice {
	for i := range l.Notices {
		if l.Notices[i].N == n && l.Notices[i].Action == action {
			return &l.Notices[i]
		}
	}
	return nil
}

// Unheard reports whether the client of the mail has heard no answer yet (accept = "wait"), and whether it
// never will: such a client sends the mail again and is owed no notice.
func (m *Mail) Unheard(now time.Time) (waiting, never bool) {
	if m.HoldReason == goneMark {
		return false, true
	}
	until, marked := unanswered(m.HoldReason)
	return marked && !until.Before(now), marked && until.Before(now)
}

// Mail reads one mail. With ErrCorrupt only its id is known.
func (s *Store) Mail(ctx context.Context, id string) (Mail, error) { return s.read().mail(ctx, id) }

// Ledger reads the state of a mail and its notices.
func (s *Store) Ledger(ctx context.Context, id string) (*Ledger, error) {
	l := &Ledger{}
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		var err error
		if l.Mail, err = t.mail(ctx, id); err != nil {
			return err
		}
		if l.Rcpts, err = t.rcpts(ctx, &l.Mail.Envelope, "mail_id = ?", id); err != nil {
			return err
		}
		var expires int64
		if err := t.get(ctx, []any{&expires}, "SELECT coalesce(max(expires), 0) FROM jobs WHERE mail_id = ?", id); err != nil {
			return err
		}
		l.Expires = at(expires)
		l.Notices, err = t.notices(ctx, "mail_id = ?", id)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("ledger of %s: %w", id, err)
	}
	return l, nil
}

const noticeColumns = "mail_id, n, action, event_id, due, dsn, reason, updated"

func (t *tx) notices(ctx context.Context, where string, args ...any) ([]Notice, error) {
	var out []Notice
	err := t.each(ctx, "SELECT "+noticeColumns+" FROM notices WHERE "+where, args, func(scan func(...any) error) error {
		var n Notice
		var due, updated int64
		err := scan(&n.MailID, &n.N, &n.Action, &n.EventID, &due, &n.DSN, &n.Reason, &updated)
		n.Due, n.Updated = at(due), at(updated)
		out = append(out, n)
		return err
	})
	return out, err
}

// DueNotices returns up to n notices whose time has come, oldest first.
func (s *Store) DueNotices(ctx context.Context, n int) ([]Notice, error) {
	out, err := s.read().notices(ctx, "due > 0 AND due <= ? ORDER BY due, mail_id, n LIMIT ?", us(s.now()), n)
	if err != nil {
		return nil, fmt.Errorf("due notices: %w", err)
	}
	return out, nil
}

// PutNotices notes what is to be told later, or settles what will never be told. What is settled already stays.
func (s *Store) PutNotices(ctx context.Context, ns ...Notice) error {
	err := s.do(ctx, 256*len(ns), func(ctx context.Context, t *tx) error {
		for _, n := range ns {
			if _, err := t.putNotice(ctx, n); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("notices: %w", err)
	}
	return nil
}

// putNotice reports false when the notice was settled before, or its mail is gone.
func (t *tx) putNotice(ctx context.Context, n Notice) (bool, error) {
	rows, err := t.exec(ctx, `INSERT INTO notices (mail_id, n, action, event_id, sender_key, due, dsn, reason, updated)
		SELECT id, CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT), sender_key, CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT) FROM mails WHERE id = ?
		ON CONFLICT (mail_id, n, action) DO UPDATE SET event_id = excluded.event_id, due = excluded.due, dsn = excluded.dsn, reason = excluded.reason, updated = excluded.updated
		WHERE notices.due > 0`,
		n.N, n.Action, text(n.EventID), us(n.Due), n.DSN, text(n.Reason), us(t.s.now()), n.MailID)
	return rows > 0, err
}

// NoticesSince counts the DSN mails written to a sender since a time.
func (s *Store) NoticesSince(ctx context.Context, sender string, since time.Time) (int, error) {
	var n int
	err := s.read().get(ctx, []any{&n}, "SELECT count(DISTINCT dsn) FROM notices WHERE dsn <> '' AND sender_key = ? AND updated >= ?", envelope.Fold(sender), us(since))
	if err != nil {
		return 0, fmt.Errorf("count notices: %w", err)
	}
	return n, nil
}

// Event returns an event by its id, as it was first recorded.
func (s *Store) Event(ctx context.Context, id string) (event.Event, error) {
	var e event.Event
	found := false
	err := s.read().each(ctx, "SELECT data, ref, raw_id FROM events WHERE id = ? ORDER BY revision LIMIT 1", []any{id}, func(scan func(...any) error) error {
		var err error
		found = true
		e, err = scanEvent(scan)
		return err
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	if err != nil {
		return e, fmt.Errorf("event %s: %w", id, err)
	}
	return e, nil
}

// Enqueue commits a receipt of this store as Receipt.Commit does and, in the same transaction, notes the
// notices that the mail tells and moves a cursor (name "": none). A follower that writes a mail about
// an event thus does so exactly once. ErrTold: one of the notices was settled before; nothing is done.
func (s *Store) Enqueue(ctx context.Context, r Receipt, m Mail, jobs []NewJob, told []Notice, name, cursor string) error {
	rc, ok := r.(*receipt)
	if !ok || rc.s != s {
		return errors.New("store: the receipt is of another store")
	}
	return rc.commit(ctx, m, jobs, nil, func(ctx context.Context, t *tx) error {
		for _, n := range told {
			n.DSN, n.Due, n.Reason = m.Envelope.ID, time.Time{}, ""
			if fresh, err := t.putNotice(ctx, n); err != nil {
				return err
			} else if !fresh {
				return ErrTold
			}
		}
		if name == "" {
			return nil
		}
		return t.setCursor(ctx, name, cursor)
	})
}
