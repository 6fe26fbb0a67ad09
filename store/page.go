package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

const (
	pageMax = 500
	// pageWindow is how many mails one page looks through for what no index knows (subject, account).
	pageWindow = 5_000
)

// Search selects mails for a page of them. Zero fields select everything.
type Search struct {
	IDs     []string    // queue ids
	States  []MailState // some of them
	Failed  bool        // finished with a recipient that was rejected, failed or deleted
	Address string      // sender or recipient
	Account string      // has or had a recipient of the mail
	Subject string      // part of it, case does not matter
	After   string      // queue id: only older ones
	Limit   int         // default 100
}

// Line is a mail with what became of its recipients: how many are in which state, told by the
// newest fact known ("delivered") or else the queue's own word ("queued").
type Line struct {
	Mail
	Outcome map[string]int
}

// branch is one index to read ids from, newest first.
type branch struct {
	from  string // tables; mails is called m
	id    string // the column of ids in the index that gives the order
	where string
	args  []any
}

// Page returns the mails a search finds, newest first. next is the After of the following page, ""
// when nothing follows. A page may hold fewer than Limit mails, or none, though more follow: it looks
// through a bounded number of mails, so that no question costs more than a few dozen milliseconds.
func (s *Store) Page(ctx context.Context, f Search) (lines []Line, next string, err error) {
	limit := min(f.Limit, pageMax)
	if limit <= 0 {
		limit = 100
	}
	ids := []string{}
	for _, b := range f.branches() {
		found, horizon, err := s.look(ctx, f, b, limit)
		if err != nil {
			return nil, "", fmt.Errorf("page of mails: %w", err)
		}
		ids, next = append(ids, found...), max(next, horizon)
	}
	slices.Sort(ids)
	slices.Reverse(ids)
	ids = slices.Compact(ids)
	// Below the nearest horizon not every branch has been read.
	ids = slices.DeleteFunc(ids, func(id string) bool { return id < next })
	if len(ids) > limit {
		ids = ids[:limit]
		next = ids[limit-1]
	}
	if len(ids) == 0 {
		return nil, next, nil
	}
	lines, err = s.lines(ctx, ids)
	return lines, next, err
}

// branches chooses the indexes that know most of what is asked.
func (f *Search) branches() []branch {
	if len(f.IDs) > 0 {
		args := make([]any, len(f.IDs))
		for i, id := range f.IDs {
			args[i] = id
		}
		return []branch{{"mails m", "m.id", "m.id IN (" + strings.TrimSuffix(strings.Repeat("?,", len(args)), ",") + ")", args}}
	}
	if f.Address != "" {
		key := envelope.Fold(f.Address)
		return []branch{
			{"recipients r JOIN mails m ON m.id = r.mail_id", "r.mail_id", "r.address_key = ?", []any{key}},
			{"mails m", "m.id", "m.sender_key <> '' AND m.sender_key = ?", []any{key}},
		}
	}
	waiting := len(f.States) > 0 && !slices.ContainsFunc(f.States, func(st MailState) bool { return st != MailQueued && st != MailHeld })
	switch {
	case waiting:
		var out []branch
		for _, st := range f.States {
			out = append(out, branch{"mails m", "m.id", "m.finished = 0 AND m.state = ?", []any{string(st)}})
		}
		return out
	case f.Failed || slices.Equal(f.States, []MailState{MailDeleted}):
		return []branch{{"mails m", "m.id", "m.failed > 0", nil}}
	}
	return []branch{{"mails m", "m.id", "1 = 1", nil}}
}

// hit is what is looked at row by row.
func (f *Search) hit() (string, []any) {
	conds, args := []string{"1 = 1"}, []any{}
	if len(f.States) > 0 {
		conds = append(conds, "m.state IN ("+strings.TrimSuffix(strings.Repeat("?,", len(f.States)), ",")+")")
		for _, st := range f.States {
			args = append(args, string(st))
		}
	}
	if f.Failed {
		conds = append(conds, "m.failed > 0")
	}
	if f.Account != "" {
		conds = append(conds, "(EXISTS (SELECT 1 FROM jobs WHERE jobs.mail_id = m.id AND jobs.account = ?) OR EXISTS (SELECT 1 FROM recipients a WHERE a.mail_id = m.id AND a.account = ?))")
		args = append(args, f.Account, f.Account)
	}
	return "CASE WHEN " + strings.Join(conds, " AND ") + " THEN 1 ELSE 0 END", args
}

// look reads one branch until it has limit hits, the window is over or nothing is left. horizon is
// the last id it looked at, "" when nothing is left.
func (s *Store) look(ctx context.Context, f Search, b branch, limit int) (ids []string, horizon string, err error) {
	hit, args := f.hit()
	where, args := b.where, append(args, b.args...)
	if f.After != "" {
		where, args = where+" AND "+b.id+" < ?", append(args, f.After)
	}
	looked, enough := 0, errors.New("enough")
	subject := strings.ToLower(f.Subject)
	err = s.read().each(ctx, "SELECT "+b.id+", m.subject, "+hit+" FROM "+b.from+" WHERE "+where+" ORDER BY "+b.id+" DESC LIMIT ?", append(args, pageWindow),
		func(scan func(...any) error) error {
			var id, subj string
			var hit int64
			if len(ids) >= limit {
				return enough // one more is there
			}
			if err := scan(&id, &subj, &hit); err != nil {
				return err
			}
			looked++
			horizon = id
			if hit == 1 && (subject == "" || strings.Contains(strings.ToLower(subj), subject)) {
				ids = append(ids, id)
			}
			return nil
		})
	if errors.Is(err, enough) || err == nil && looked == pageWindow {
		return ids, horizon, nil
	}
	return ids, "", err
}

// lines reads mails and what became of them, in the order of ids.
func (s *Store) lines(ctx context.Context, ids []string) ([]Line, error) {
	args, place := make([]any, len(ids)), map[string]int{}
	for i, id := range ids {
		args[i], place[id] = id, i
	}
	in := " IN (" + strings.TrimSuffix(strings.Repeat("?,", len(ids)), ",") + ")"
	out := make([]Line, len(ids))
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		err := t.each(ctx, "SELECT "+mailColumns+" FROM mails WHERE id"+in, args, func(scan func(...any) error) error {
			var m Mail
			if err := scanMail(scan, &m); err != nil && !errors.Is(err, ErrCorrupt) {
				return err
			}
			if i, ok := place[m.Envelope.ID]; ok {
				out[i] = Line{m, map[string]int{}}
			}
			return nil
		})
		if err != nil {
			return err
		}
		return t.each(ctx, "SELECT mail_id, state, last, count(*) FROM recipients WHERE mail_id"+in+" GROUP BY mail_id, state, last", args, func(scan func(...any) error) error {
			var id, state, last string
			var n int
			if err := scan(&id, &state, &last, &n); err != nil {
				return err
			}
			if i, ok := place[id]; ok && out[i].Outcome != nil {
				out[i].Outcome[outcome(RcptState(state), event.Kind(last))] += n
			}
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("mails: %w", err)
	}
	return slices.DeleteFunc(out, func(l Line) bool { return l.Outcome == nil }), nil // purged between the two looks
}

// outcome is the one word for a recipient.
func outcome(state RcptState, last event.Kind) string {
	if state.Final() && last != "" && state != RcptDeleted {
		return string(last)
	}
	return string(state)
}

// Note writes events that are about the bridge or its operator, not about what an ESP says: they go into
// the event log as they are and change no recipient.
func (s *Store) Note(ctx context.Context, evs ...event.Event) error {
	err := s.do(ctx, 512*len(evs), func(ctx context.Context, t *tx) error {
		for _, e := range evs {
			defaults(&e, s.now())
			if e.ID == "" {
				e.ID = envelope.NewID(s.now())
			}
			if _, err := t.insertEvent(ctx, &e, ""); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note: %w", err)
	}
	return nil
}
