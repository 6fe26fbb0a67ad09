package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// Mails returns mails as the filter says, newest first: Address is the sender or a recipient,
// Recipient only a recipient, Account one that has or had a recipient of it, After a queue id.
func (s *Store) Mails(ctx context.Context, f Filter) ([]Mail, error) {
	var where []string
	var args []any
	add := func(cond string, a ...any) {
		where, args = append(where, cond), append(args, a...)
	}
	if f.ID != "" {
		add("id = ?", f.ID)
	}
	if f.State != "" {
		if f.State == MailQueued || f.State == MailHeld {
			add("finished = 0 AND state = ?", string(f.State))
		} else {
			add("state = ?", string(f.State))
		}
	}
	if f.Address != "" {
		key := envelope.Fold(f.Address)
		add("id IN (SELECT mail_id FROM recipients WHERE address_key = ? UNION SELECT id FROM mails WHERE sender_key <> '' AND sender_key = ?)", key, key)
	}
	if f.Recipient != "" {
		add("id IN (SELECT mail_id FROM recipients WHERE address_key = ?)", envelope.Fold(f.Recipient))
	}
	if f.Account != "" {
		add("(EXISTS (SELECT 1 FROM jobs WHERE jobs.mail_id = mails.id AND jobs.account = ?) OR EXISTS (SELECT 1 FROM recipients WHERE recipients.mail_id = mails.id AND recipients.account = ?))", f.Account, f.Account)
	}
	if f.Kind != "" {
		add("EXISTS (SELECT 1 FROM recipients WHERE recipients.mail_id = mails.id AND recipients.last = ?)", string(f.Kind))
	}
	if !f.Since.IsZero() {
		add("received >= ?", us(f.Since))
	}
	if !f.Until.IsZero() {
		add("received < ?", us(f.Until))
	}
	order, cmp := "DESC", "<"
	if f.Oldest {
		order, cmp = "ASC", ">"
	}
	if f.After != "" {
		add("id "+cmp+" ?", f.After)
	}
	query := "SELECT " + mailColumns + " FROM mails"
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	var out []Mail
	err := s.read().each(ctx, query+" ORDER BY id "+order+" LIMIT ?", append(args, limit(f)), func(scan func(...any) error) error {
		var m Mail
		if err := scanMail(scan, &m); err != nil && !errors.Is(err, ErrCorrupt) {
			return err
		}
		out = append(out, m)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("mails: %w", err)
	}
	return out, nil
}

// Detail returns everything known of one mail, events oldest first.
func (s *Store) Detail(ctx context.Context, id string) (*Detail, error) {
	var d Detail
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		var err error
		env := &d.Mail.Envelope
		if d.Mail, err = t.mail(ctx, id); errors.Is(err, ErrCorrupt) {
			env = nil
		} else if err != nil {
			return err
		}
		if d.Rcpts, err = t.rcpts(ctx, env, "mail_id = ?", id); err != nil {
			return err
		}
		if d.Jobs, err = t.jobs(ctx, "mail_id = ? ORDER BY id", id); err != nil {
			return err
		}
		for i := range d.Jobs {
			for _, r := range d.Rcpts {
				if r.Job == d.Jobs[i].ID {
					d.Jobs[i].Rcpts = append(d.Jobs[i].Rcpts, r.N)
				}
			}
		}
		calls, err := t.calls(ctx, "mail_id = ? ORDER BY started, id", id)
		if err != nil {
			return err
		}
		for _, c := range calls {
			d.Calls = append(d.Calls, c.Call)
		}
		if d.Attempts, err = t.attempts(ctx, id); err != nil {
			return err
		}
		if d.Notices, err = t.notices(ctx, "mail_id = ? ORDER BY updated, n", id); err != nil {
			return err
		}
		return t.each(ctx, "SELECT data, ref, raw_id FROM events WHERE mail_id <> '' AND mail_id = ? ORDER BY seq", []any{id}, func(scan func(...any) error) error {
			e, err := scanEvent(scan)
			d.Events = append(d.Events, e)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("detail of %s: %w", id, err)
	}
	return &d, nil
}

func (t *tx) attempts(ctx context.Context, id string) ([]Attempt, error) {
	var out []Attempt
	// An attempt that has not ended has no line yet: its call tells of it.
	err := t.each(ctx, `SELECT call_id, account, attempt, started, elapsed, state, kind, http_status, detail, recipients FROM attempts WHERE call_id IN (SELECT id FROM calls WHERE mail_id = ?)
		UNION ALL SELECT id, account, attempt, started, 0, state, '', 0, '', recipients FROM calls WHERE mail_id = ? AND state IN ('open', 'ambiguous')
		AND NOT EXISTS (SELECT 1 FROM attempts a WHERE a.call_id = calls.id AND a.attempt = calls.attempt) ORDER BY started, call_id, attempt`,
		[]any{id, id}, func(scan func(...any) error) error {
			var a Attempt
			var started, elapsed int64
			var state, rcpts string
			if err := scan(&a.CallID, &a.Account, &a.Attempt, &started, &elapsed, &state, &a.Kind, &a.HTTPStatus, &a.Detail, &rcpts); err != nil {
				return err
			}
			a.Started, a.Elapsed, a.State = at(started), time.Duration(elapsed)*time.Microsecond, CallState(state)
			err := json.Unmarshal([]byte(rcpts), &a.Rcpts)
			out = append(out, a)
			return err
		})
	return out, err
}

// Find returns the queue ids of the mails a key names: what FindExact knows, or an address. Newest
// first, at most 100.
func (s *Store) Find(ctx context.Context, key string) ([]string, error) {
	return s.find(ctx, key, true)
}

// FindExact returns the queue ids of the mails a key names: a queue id or a prefix of one (at least
// 4 characters), a Message-ID (the sender's, or the one on the wire), a provider's message id, our reference, an event id. Newest first, at most 100.
func (s *Store) FindExact(ctx context.Context, key string) ([]string, error) {
	return s.find(ctx, key, false)
}

func (s *Store) find(ctx context.Context, key string, addresses bool) ([]string, error) {
	key = text(strings.TrimSpace(key))
	if key == "" {
		return nil, nil
	}
	bare := strings.TrimSuffix(strings.TrimPrefix(key, "<"), ">")
	queries := []string{
		"SELECT id FROM mails WHERE id = ?",
		"SELECT id FROM mails WHERE message_id <> '' AND message_id = ?",
		"SELECT mail_id FROM calls WHERE provider_message_id <> '' AND provider_message_id = ?",
		"SELECT mail_id FROM recipients WHERE provider_message_id <> '' AND provider_message_id = ?",
		"SELECT mail_id FROM recipients WHERE wire_message_id <> '' AND wire_message_id = ?",
		"SELECT mail_id FROM calls WHERE ref <> id AND ref = ?",
		"SELECT mail_id FROM calls WHERE id = ?",
		"SELECT mail_id FROM events WHERE id = ? AND mail_id <> ''",
	}
	args := []any{strings.ToLower(key), bare, key, key, bare, key, key, key}
	if prefix := strings.ToLower(key); len(prefix) >= 4 && len(prefix) < 26 && !strings.Contains(prefix, "@") {
		queries = append(queries, "SELECT id FROM mails WHERE id >= ? AND id < ?")
		args = append(args, prefix, prefix+"\U0010FFFF")
	}
	if addresses && strings.Contains(bare, "@") {
		fold := envelope.Fold(bare)
		queries = append(queries,
			"SELECT mail_id FROM (SELECT mail_id FROM recipients WHERE address_key = ? ORDER BY mail_id DESC LIMIT 100) AS r",
			"SELECT id FROM (SELECT id FROM mails WHERE sender_key <> '' AND sender_key = ? ORDER BY id DESC LIMIT 100) AS s",
			// Whose mail was redirected is in its events only.
			"SELECT mail_id FROM (SELECT mail_id FROM events WHERE recipient <> '' AND recipient = ? AND mail_id <> '' ORDER BY seq DESC LIMIT 100) AS e")
		args = append(args, fold, fold, bare)
	}
	var out []string
	err := s.read().each(ctx, "SELECT id FROM ("+strings.Join(queries, " UNION ")+") AS found ORDER BY id DESC LIMIT 100", args, func(scan func(...any) error) error {
		var id string
		if err := scan(&id); err != nil {
			return err
		}
		out = append(out, id)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find: %w", err)
	}
	return out, nil
}

// Hold keeps a queued mail from being delivered. A call that is on the wire ends as it ends.
func (s *Store) Hold(ctx context.Context, id, reason string) error {
	return s.change(ctx, "hold", id, func(ctx context.Context, t *tx, state MailState) error {
		if reason == "" {
			reason = "held by an operator"
		}
		return t.hold(ctx, id, reason)
	})
}

// ReleaseHold lets a held mail go on at once, for a day at least: its time may be over.
func (s *Store) ReleaseHold(ctx context.Context, id string) error {
	return s.change(ctx, "release", id, func(ctx context.Context, t *tx, state MailState) error {
		if state != MailHeld {
			return nil
		}
		if _, err := t.exec(ctx, "UPDATE mails SET state = ?, hold_reason = '' WHERE id = ?", string(MailQueued), id); err != nil {
			return err
		}
		now, day := us(s.now()), us(s.now().Add(24*time.Hour))
		_, err := t.exec(ctx, "UPDATE jobs SET held = 0, next_at = CASE WHEN next_at > ? THEN next_at ELSE ? END, expires = CASE WHEN expires > ? THEN expires ELSE ? END WHERE mail_id = ?",
			now, now, day, day, id)
		return err
	})
}

// Retry makes the jobs of a mail due now. A held mail stays held.
func (s *Store) Retry(ctx context.Context, id string) error {
	return s.change(ctx, "retry", id, func(ctx context.Context, t *tx, state MailState) error {
		_, err := t.exec(ctx, "UPDATE jobs SET next_at = ? WHERE mail_id = ?", us(s.now()), id)
		return err
	})
}

// change runs f for a mail that is queued or held, else ErrNotFound.
func (s *Store) change(ctx context.Context, what, id string, f func(ctx context.Context, t *tx, state MailState) error) error {
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		var state string
		if err := t.get(ctx, []any{&state}, "SELECT state FROM mails WHERE id = ?"+s.d.forUpdate, id); err != nil {
			return err
		}
		if st := MailState(state); st != MailQueued && st != MailHeld {
			return fmt.Errorf("%w in the queue: it is %s", ErrNotFound, state)
		}
		t.changed(id)
		return f(ctx, t, MailState(state))
	})
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, id, err)
	}
	return nil
}

// Delete takes a mail out of the queue: its remaining recipients become deleted, evs tell of
// them (a failed event is written for a recipient they leave out), the body goes. Recipients of a
// call that is on the wire right now are decided by its result: sent if it was accepted.
func (s *Store) Delete(ctx context.Context, id string, evs ...event.Event) error {
	err := s.do(ctx, 512*(1+len(evs)), func(ctx context.Context, t *tx) error { return t.delete(ctx, id, evs) })
	if err != nil {
		return fmt.Errorf("delete %s: %w", id, err)
	}
	return nil
}

func (t *tx) delete(ctx context.Context, id string, evs []event.Event) error {
	now := t.s.now()
	var state, body, blob string
	if err := t.get(ctx, []any{&state, &body, &blob}, "SELECT state, body, blob FROM mails WHERE id = ?"+t.s.d.forUpdate, id); err != nil {
		return err
	}
	if state != string(MailQueued) && state != string(MailHeld) {
		return fmt.Errorf("%w in the queue: it is %s", ErrNotFound, state)
	}
	m, err := t.mailAnyway(ctx, id) // a quarantined mail must be deletable too
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
	onWire := map[int]bool{}
	for _, c := range calls {
		if c.State != CallOpen {
			continue
		}
		busy, err := t.busy(ctx, c.JobID)
		if err != nil {
			return err
		}
		if busy {
			for _, n := range c.Rcpts {
				onWire[n] = true
			}
		}
	}
	if _, err := t.exec(ctx, "UPDATE mails SET state = ?, hold_reason = '' WHERE id = ?", string(MailDeleted), id); err != nil {
		return err
	}
	gone := map[int]bool{}
	for _, r := range rcpts {
		if r.State.Final() || onWire[r.N] {
			continue
		}
		gone[r.N] = true
		if err := t.setRcpt(ctx, id, RcptResult{N: r.N, State: RcptDeleted, Status: r.Status, Detail: r.Detail}, now); err != nil {
			return err
		}
	}
	have := map[int]bool{}
	for _, e := range evs {
		n := -1
		if e.Recipient != "" {
			n = recipientIn(&m.Envelope, e.Recipient)
		}
		if n >= 0 && queueFinal(e.Kind) {
			if !gone[n] || have[n] {
				continue
			}
			have[n] = true
		}
		if err := t.insertOwn(ctx, &m, &e, now); err != nil {
			return err
		}
	}
	for i := range rcpts {
		if r := &rcpts[i]; gone[r.N] && !have[r.N] {
			r.State, r.Status, r.Detail = RcptDeleted, "", ""
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
	// What is left runs under a lease; it must not become due again should that lease be lost.
	if _, err := t.exec(ctx, "UPDATE jobs SET held = 1 WHERE mail_id = ?", id); err != nil {
		return err
	}
	t.changed(id)
	if body != bodyPurged {
		if err := t.purgeBody(ctx, id, body, blob, now); err != nil {
			return err
		}
	}
	return t.finish(ctx, id, now)
}

// Stats counts what is in the queue. It reads indexes only.
func (s *Store) Stats(ctx context.Context) (Stats, error) {
	st := Stats{ByAccount: map[string]int{}}
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		err := t.each(ctx, "SELECT state, count(*) FROM mails WHERE finished = 0 AND state IN ('queued', 'held') GROUP BY state", nil, func(scan func(...any) error) error {
			var state string
			var n int
			if err := scan(&state, &n); err != nil {
				return err
			}
			if state == string(MailHeld) {
				st.Held = n
			} else {
				st.Queued = n
			}
			return nil
		})
		if err != nil {
			return err
		}
		if st.Oldest, err = t.oldest(ctx); err != nil {
			return err
		}
		if err := t.get(ctx, []any{&st.InFlight}, "SELECT count(*) FROM calls WHERE state IN ('open', 'ambiguous') AND state = 'open'"); err != nil {
			return err
		}
		return t.each(ctx, "SELECT account, count(*) FROM jobs WHERE held = 0 GROUP BY account", nil, func(scan func(...any) error) error {
			var account string
			var n int
			if err := scan(&account, &n); err != nil {
				return err
			}
			st.ByAccount[account] = n
			return nil
		})
	})
	if err != nil {
		return Stats{}, fmt.Errorf("stats: %w", err)
	}
	return st, nil
}

// oldest tells since when the first of the queued mails waits. No mail waits before it was received: whoever waits, only
// mails received before that can have been waiting longer.
func (t *tx) oldest(ctx context.Context) (time.Time, error) {
	const waiting = "FROM mails m JOIN jobs j ON j.mail_id = m.id WHERE m.state = 'queued' AND m.finished = 0 AND j.held = 0 AND j.created <= ?"
	now := us(t.s.now())
	var first int64
	err := t.get(ctx, []any{&first}, "SELECT j.created "+waiting+" ORDER BY m.id LIMIT 1", now)
	if errors.Is(err, ErrNotFound) {
		return time.Time{}, nil
	}
	if err == nil {
		err = t.get(ctx, []any{&first}, "SELECT coalesce(min(j.created), ?) "+waiting+" AND m.received <= ?", first, now, first)
	}
	return at(first), err
}

// Accounts returns the accounts that are not simply active.
func (s *Store) Accounts(ctx context.Context) ([]AccountState, error) {
	var out []AccountState
	err := s.read().each(ctx, "SELECT account, domain, state, until, reason, since, alarmed FROM accounts ORDER BY account, domain", nil, func(scan func(...any) error) error {
		var a AccountState
		var until, since, alarmed int64
		if err := scan(&a.Account, &a.Domain, &a.State, &until, &a.Reason, &since, &alarmed); err != nil {
			return err
		}
		a.Until, a.Since, a.Alarmed = at(until), at(since), alarmed != 0
		out = append(out, a)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("account states: %w", err)
	}
	return out, nil
}

// SetAccount stores the state of an account, or of an account and From domain, with the events
// that tell of it. State "active" removes it.
func (s *Store) SetAccount(ctx context.Context, a AccountState, evs ...event.Event) error {
	err := s.do(ctx, 512*(1+len(evs)), func(ctx context.Context, t *tx) error {
		var err error
		if a.State == "active" || a.State == "" {
			_, err = t.exec(ctx, "DELETE FROM accounts WHERE account = ? AND domain = ?", a.Account, a.Domain)
		} else {
			_, err = t.exec(ctx, `INSERT INTO accounts (account, domain, state, until, reason, since, alarmed) VALUES (?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (account, domain) DO UPDATE SET state = excluded.state, until = excluded.until, reason = excluded.reason, since = excluded.since, alarmed = excluded.alarmed`,
				a.Account, a.Domain, a.State, us(a.Until), text(a.Reason), us(a.Since), num(a.Alarmed))
		}
		if err != nil {
			return err
		}
		now := s.now()
		for _, e := range evs {
			defaults(&e, now)
			if e.ID == "" {
				e.ID = envelope.NewID(now)
			}
			if _, err := t.insertEvent(ctx, &e, ""); err != nil {
				return err
			}
		}
		t.queue, t.accounts = true, true
		return nil
	})
	if err != nil {
		return fmt.Errorf("state of account %s: %w", a.Account, err)
	}
	return nil
}
