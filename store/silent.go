package store

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// silentWhere are recipients whom an ESP took, and of whom nothing final is known.
const silentWhere = "account = ? AND state = 'sent' AND last IN ('sent', 'queued', 'deferred') AND updated <= ?"

// Silent is a recipient whom an ESP took, and of whom it has told nothing final.
type Silent struct {
	MailID            string
	N                 int
	Addr              string
	From              string // header From of the mail
	Account           string
	ProviderMessageID string
	Ref               string    // of the call that was taken
	Since             time.Time // of the last news
	Looks             int       // how often the ESP was asked
}

// Silent returns up to n recipients of an account without news since before, whose next look is due, oldest first.
func (s *Store) Silent(ctx context.Context, account string, before time.Time, n int) ([]Silent, error) {
	var out []Silent
	t := s.read()
	err := t.each(ctx, "SELECT mail_id, n, address, provider_message_id, updated, looks FROM recipients WHERE "+silentWhere+" AND look_at <= ? ORDER BY updated LIMIT ?",
		[]any{account, us(before), us(s.now()), n}, func(scan func(...any) error) error {
			e := Silent{Account: account}
			var updated int64
			err := scan(&e.MailID, &e.N, &e.Addr, &e.ProviderMessageID, &updated, &e.Looks)
			e.Since = at(updated)
			out = append(out, e)
			return err
		})
	for i := range out {
		if err != nil {
			break
		}
		e := &out[i]
		if err = t.get(ctx, []any{&e.From}, "SELECT from_header FROM mails WHERE id = ?", e.MailID); err != nil {
			break
		}
		var calls []callRow
		calls, err = t.calls(ctx, "mail_id = ? AND account = ? AND state = 'accepted' ORDER BY id", e.MailID, account)
		for _, c := range calls {
			if slices.Contains(c.Rcpts, e.N) {
				e.Ref = c.Ref
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("silent recipients of %s: %w", account, err)
	}
	return out, nil
}

// Looked notes that the ESP was asked about a recipient, and when to ask again.
func (s *Store) Looked(ctx context.Context, e Silent, again time.Time) error {
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "UPDATE recipients SET looks = looks + 1, look_at = ? WHERE mail_id = ? AND n = ?", us(again), e.MailID, e.N)
		return err
	})
	if err != nil {
		return fmt.Errorf("note a look-up: %w", err)
	}
	return nil
}

// SilentCount is how many recipients of an account are without news since before although the ESP was asked.
func (s *Store) SilentCount(ctx context.Context, account string, before time.Time) (int, error) {
	var n int64
	err := s.read().get(ctx, []any{&n}, "SELECT count(*) FROM recipients WHERE "+silentWhere+" AND looks > 0", account, us(before))
	return int(n), err
}
