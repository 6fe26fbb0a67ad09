package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"
)

// ActivityStep is the width of one count of Activity.
const ActivityStep = 5 * time.Minute

const (
	activityCursor = "activity"
	activityBatch  = 2000
	activityKeep   = 31 * 24 * time.Hour
	activitySilent = 7 * 24 * time.Hour // how far back LastWebhooks looks
)

// Kinds that Activity counts beside the kinds of events.
const (
	Accepted = "accepted" // mails taken by SMTP; counted by the caller, with account ""
	Webhook  = "webhook"  // events that came by a webhook or a poll
)

// Activity is how often something happened within one step of time.
type Activity struct {
	At      time.Time // start of the step
	Account string
	Kind    string // an event's kind, Accepted or Webhook
	N       int64
}

// Count adds to the counts.
func (s *Store) Count(ctx context.Context, list ...Activity) error {
	err := s.do(ctx, 64*len(list), func(ctx context.Context, t *tx) error { return t.count(ctx, list) })
	if err != nil {
		return fmt.Errorf("count: %w", err)
	}
	return nil
}

func (t *tx) count(ctx context.Context, list []Activity) error {
	for _, a := range list {
		_, err := t.exec(ctx, "INSERT INTO activity (at, account, kind, n) VALUES (?, ?, ?, ?) ON CONFLICT (at, account, kind) DO UPDATE SET n = activity.n + excluded.n",
			us(a.At.Truncate(ActivityStep)), text(a.Account), a.Kind, a.N)
		if err != nil {
			return err
		}
	}
	return nil
}

// Tally counts the next events of the outbox and returns how many there were; 0: all are counted.
// Several nodes may call it: each event is counted once.
func (s *Store) Tally(ctx context.Context) (int, error) {
	cursor, err := s.Cursor(ctx, activityCursor)
	if err != nil {
		return 0, err
	}
	var xid, seq int64
	if cursor != "" {
		if xid, seq, err = parseCursor(cursor); err != nil {
			return 0, err
		}
	}
	args := []any{seq, activityBatch}
	if s.d.shared {
		args = []any{xid, seq, activityBatch}
	}
	n, sum := 0, map[Activity]int64{}
	err = s.read().each(ctx, fmt.Sprintf(s.d.follow, "seen, account, kind, raw_id"), args, func(scan func(...any) error) error {
		var seen int64
		var account, kind, raw string
		if err := scan(&xid, &seq, &seen, &account, &kind, &raw); err != nil {
			return err
		}
		step := at(seen).Truncate(ActivityStep)
		sum[Activity{At: step, Account: account, Kind: kind}]++
		if raw != "" {
			sum[Activity{At: step, Account: account, Kind: Webhook}]++
		}
		n++
		return nil
	})
	if err != nil || n == 0 {
		return 0, err
	}
	list := make([]Activity, 0, len(sum))
	for a, n := range sum {
		a.N = n
		list = append(list, a)
	}
	err = s.do(ctx, 64*len(list), func(ctx context.Context, t *tx) error {
		if _, err := t.exec(ctx, "INSERT INTO cursors (name, value, updated) VALUES (?, '', 0) ON CONFLICT (name) DO NOTHING", activityCursor); err != nil {
			return err
		}
		moved, err := t.exec(ctx, "UPDATE cursors SET value = ?, updated = ? WHERE name = ? AND value = ?", s.cursorText(xid, seq), us(s.now()), activityCursor, cursor)
		if err != nil {
			return err
		}
		if moved == 0 {
			return ErrStale // another node has counted them
		}
		return t.count(ctx, list)
	})
	if err != nil && !errors.Is(err, ErrStale) {
		return 0, fmt.Errorf("count events: %w", err)
	}
	return n, nil
}

// cursorText is a position of the outbox as Follow gives it out.
func (s *Store) cursorText(xid, seq int64) string {
	if s.d.shared {
		return postgresCursor(xid, seq)
	}
	return strconv.FormatInt(seq, 10)
}

func postgresCursor(xid, seq int64) string {
	return strconv.FormatInt(xid, 10) + "." + strconv.FormatInt(seq, 10)
}

// Activity returns the counts since a time, oldest first.
func (s *Store) Activity(ctx context.Context, since time.Time) ([]Activity, error) {
	var out []Activity
	err := s.read().each(ctx, "SELECT at, account, kind, n FROM activity WHERE at >= ? ORDER BY at, account, kind", []any{us(since)}, func(scan func(...any) error) error {
		var a Activity
		var start int64
		if err := scan(&start, &a.Account, &a.Kind, &a.N); err != nil {
			return err
		}
		a.At = at(start)
		out = append(out, a)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("activity: %w", err)
	}
	return out, nil
}

// LastWebhooks tells for each account the step of time in which the last event came by webhook; accounts
// without one within a week are missing.
func (s *Store) LastWebhooks(ctx context.Context) (map[string]time.Time, error) {
	out := map[string]time.Time{}
	err := s.read().each(ctx, "SELECT account, max(at) FROM activity WHERE at >= ? AND kind = ? GROUP BY account", []any{us(s.now().Add(-activitySilent)), Webhook},
		func(scan func(...any) error) error {
			var account string
			var last int64
			err := scan(&account, &last)
			out[account] = at(last)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("last webhooks: %w", err)
	}
	return out, nil
}

func (s *Store) purgeActivity(ctx context.Context, now time.Time, _ Retention) (int, error) {
	return s.purgeSome(ctx, "DELETE FROM activity WHERE (at, account, kind) IN (SELECT at, account, kind FROM activity WHERE at < ? ORDER BY at LIMIT ?)", us(now.Add(-activityKeep)))
}
