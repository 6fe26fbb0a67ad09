package store

import (
	"context"
	"fmt"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// ledger is a mail with its recipients, read once by the transaction that has locked the mail, changed in
// memory and saved at the end.
type ledger struct {
	mail       Mail
	body, blob string
	rcpts      []Rcpt
	changed    map[int]bool // places in rcpts
	withheld   bool         // some event, of whatever mail, waits for an answer
}

// ledger reads the ledger of a mail, ErrNotFound when it was purged. What never changes is taken from known.
func (t *tx) ledger(ctx context.Context, known *Mail) (*ledger, error) {
	l := &ledger{mail: *known, changed: map[int]bool{}}
	err := t.each(ctx, "SELECT "+rcptColumns+`, m.state, hold_reason, body, blob, EXISTS (SELECT 1 FROM withheld)
		FROM mails m JOIN recipients r ON r.mail_id = m.id WHERE m.id = ? ORDER BY n`, []any{known.Envelope.ID}, func(scan func(...any) error) error {
		r, err := scanRcpt(scan, &l.mail.Envelope, &l.mail.State, &l.mail.HoldReason, &l.body, &l.blob, &l.withheld)
		l.rcpts = append(l.rcpts, r)
		return err
	})
	if err == nil && len(l.rcpts) == 0 {
		err = ErrNotFound
	}
	return l, err
}

// set gives a recipient a new state.
func (l *ledger) set(i int, r RcptResult) {
	cur := &l.rcpts[i]
	cur.State, cur.Status, cur.Detail = r.State, r.Status, r.Detail
	if r.Account != "" {
		cur.Account = r.Account
	}
	if r.State.Final() {
		cur.Job = 0
		if r.ProviderMessageID != "" {
			cur.ProviderMessageID = r.ProviderMessageID
		}
	}
	l.changed[i] = true
}

// tell writes an event of ours and applies it to the recipient it is about.
func (t *tx) tell(ctx context.Context, l *ledger, e *event.Event, now time.Time) error {
	n, fresh, err := t.insertAbout(ctx, &l.mail, e, now)
	if err != nil || !fresh {
		return err
	}
	for i := range l.rcpts {
		r := &l.rcpts[i]
		if r.N != n || !newer(r.Last, us(r.LastTime), e.Kind, us(e.Time)) {
			continue
		}
		r.Last, r.LastTime = e.Kind, e.Time
		if e.Status != "" {
			r.Status = e.Status
		}
		if e.Diagnostic != "" {
			r.Detail = e.Diagnostic
		}
		l.changed[i] = true
	}
	return nil
}

// save writes the changed recipients.
func (t *tx) save(ctx context.Context, l *ledger, now time.Time) error {
	for i, r := range l.rcpts {
		if !l.changed[i] {
			continue
		}
		_, err := t.exec(ctx, `UPDATE recipients SET state = ?, account = ?, provider_message_id = ?, status = ?, detail = ?, last = ?, last_time = ?, updated = ?, job_id = ?
			WHERE mail_id = ? AND n = ?`,
			string(r.State), r.Account, text(r.ProviderMessageID), text(r.Status), text(r.Detail), string(r.Last), us(r.LastTime), us(now), r.Job,
			l.mail.Envelope.ID, r.N)
		if err != nil {
			return err
		}
	}
	return nil
}

// finish ends the mail if no recipient is left, and purges its body if it may go at once.
func (t *tx) finish(ctx context.Context, id string, now time.Time) error {
	var open, bad int64
	f := ending{id: id}
	const some = "(SELECT count(*) FROM (SELECT 1 FROM recipients WHERE mail_id = mails.id AND state "
	err := t.get(ctx, []any{&open, &bad, &f.body, &f.blob, &f.state}, "SELECT "+some+"IN ('queued', 'in_flight') LIMIT 1) AS r), "+
		some+"<> 'sent' LIMIT 1) AS r), body, blob, state FROM mails WHERE id = ?"+t.s.d.forUpdate, id)
	if err != nil || open > 0 {
		return err
	}
	f.bad = bad > 0
	return t.end(ctx, f, now)
}

// finishLedger is finish for a mail whose recipients are known.
func (t *tx) finishLedger(ctx context.Context, l *ledger, now time.Time) error {
	f := ending{id: l.mail.Envelope.ID, state: l.mail.State, body: l.body, blob: l.blob}
	for _, r := range l.rcpts {
		if !r.State.Final() {
			return nil
		}
		f.bad = f.bad || r.State != RcptSent
	}
	return t.end(ctx, f, now)
}

// ending is a mail that ends now.
type ending struct {
	id         string
	state      MailState
	body, blob string
	bad        bool // a recipient was not sent
}

func (t *tx) end(ctx context.Context, f ending, now time.Time) error {
	if f.state != MailDeleted {
		f.state = MailFinished
	}
	t.s.keepMu.Lock()
	keep := t.s.keepBodies
	t.s.keepMu.Unlock()
	if f.body != bodyPurged && (!f.bad && keep <= 0 || f.state == MailDeleted) {
		if err := t.dropBody(ctx, f.id, f.body, f.blob, now); err != nil {
			return err
		}
		f.body, f.blob = bodyPurged, ""
	}
	_, err := t.exec(ctx, `UPDATE mails SET state = ?, hold_reason = CASE WHEN ? > 0 AND (hold_reason LIKE ? OR hold_reason = ?) THEN hold_reason ELSE '' END,
		finished = ?, failed = ?, body = ?, blob = ? WHERE id = ?`,
		string(f.state), num(f.bad), waitMark+"%", goneMark, us(now), num(f.bad), f.body, f.blob, f.id)
	return err
}

// scanRcpt reads one row of rcptColumns and what the query has beside them; env gives what is kept only there.
func scanRcpt(scan func(...any) error, env *envelope.Envelope, more ...any) (Rcpt, error) {
	var r Rcpt
	var lastTime, updated int64
	if err := scan(append([]any{&r.N, &r.Addr, &r.State, &r.Account, &r.ProviderMessageID, &r.WireMessageID, &r.Status, &r.Detail, &r.Attempts, &r.Last, &lastTime, &updated, &r.Job}, more...)...); err != nil {
		return r, err
	}
	r.LastTime, r.Updated = at(lastTime), at(updated)
	if env != nil {
		if r.N >= len(env.Rcpts) {
			return r, fmt.Errorf("recipient %d of %s: %w", r.N, env.ID, ErrCorrupt)
		}
		r.Rcpt = env.Rcpts[r.N] // sealed by the checksum
	}
	return r, nil
}
