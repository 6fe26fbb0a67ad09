package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"smtpbridge/envelope"
)

// Suppression keeps mail from an address. Domain is the From domain it holds for, Stream the
// ESP's stream or list; "" means any.
type Suppression struct {
	Address string // "" when it was erased: the entry goes on working by its hash
	Domain  string
	Stream  string
	Reason  string // ReasonBounced ...
	Source  string // event id, or who added it
	Created time.Time
	Expires time.Time // zero: never

	key string
}

// Reasons of entries that come from events. An operator may give others.
const (
	ReasonBounced      = "bounced"
	ReasonComplained   = "complained"
	ReasonUnsubscribed = "unsubscribed"
	ReasonManual       = "manual"
)

// Key names the entry's address without telling it.
func (s Suppression) Key() string {
	if s.key != "" {
		return s.key
	}
	return addressKey(s.Address)
}

// Keyed gives the entry of an address of which only the Key is known.
func (s Suppression) Keyed(key string) Suppression {
	s.Address, s.key = "", key
	return s
}

// addressKey is the hash under which an address is suppressed. Case does not count anywhere in it: some ESPs report
// addresses in lower case, and no two mailboxes that differ in case alone are known.
func addressKey(addr string) string {
	sum := sha256.Sum256([]byte(strings.ToLower(envelope.Fold(addr))))
	return hex.EncodeToString(sum[:])
}

// Suppress adds or replaces entries.
func (s *Store) Suppress(ctx context.Context, list ...Suppression) error {
	err := s.do(ctx, 128*len(list), func(ctx context.Context, t *tx) error {
		for _, e := range list {
			if e.Created.IsZero() {
				e.Created = s.now()
			}
			_, err := t.exec(ctx, `INSERT INTO suppressions (address_key, domain, stream, address, reason, source, created, expires) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
				ON CONFLICT (address_key, domain, stream) DO UPDATE SET address = excluded.address, reason = excluded.reason, source = excluded.source, created = excluded.created, expires = excluded.expires`,
				e.Key(), envelope.FoldDomain(e.Domain), text(e.Stream), text(e.Address), text(e.Reason), text(e.Source), us(e.Created), us(e.Expires))
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("suppress: %w", err)
	}
	return nil
}

// Unsuppress removes an entry, ErrNotFound when there is none.
func (s *Store) Unsuppress(ctx context.Context, e Suppression) error {
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		n, err := t.exec(ctx, "DELETE FROM suppressions WHERE address_key = ? AND domain = ? AND stream = ?", e.Key(), envelope.FoldDomain(e.Domain), e.Stream)
		if err == nil && n == 0 {
			err = ErrNotFound
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("unsuppress: %w", err)
	}
	return nil
}

const suppressionColumns = "address_key, address, domain, stream, reason, source, created, expires"

func scanSuppression(scan func(...any) error) (Suppression, error) {
	var e Suppression
	var created, expires int64
	err := scan(&e.key, &e.Address, &e.Domain, &e.Stream, &e.Reason, &e.Source, &created, &expires)
	e.Created, e.Expires = at(created), at(expires)
	return e, err
}

// Suppressed returns the entry that keeps mail of a From domain and stream from an address, nil if there is none.
func (s *Store) Suppressed(ctx context.Context, address, domain, stream string) (*Suppression, error) {
	var found *Suppression
	err := s.read().each(ctx, "SELECT "+suppressionColumns+` FROM suppressions WHERE address_key = ? AND (domain = '' OR domain = ?) AND (stream = '' OR stream = ?)
		AND (expires = 0 OR expires > ?) ORDER BY domain, stream`, []any{addressKey(address), envelope.FoldDomain(domain), text(stream), us(s.now())},
		func(scan func(...any) error) error {
			e, err := scanSuppression(scan)
			found = &e
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("suppressed: %w", err)
	}
	return found, nil
}

// Suppressions returns up to n entries after the one given (nil: from the start), expired ones included.
func (s *Store) Suppressions(ctx context.Context, after *Suppression, n int) ([]Suppression, error) {
	if after == nil {
		return s.suppressions(ctx, "1 = 1", n)
	}
	return s.suppressions(ctx, "(address_key, domain, stream) > (?, ?, ?)", n, after.Key(), after.Domain, after.Stream)
}

// SuppressionsOf returns the entries of one address, expired ones included.
func (s *Store) SuppressionsOf(ctx context.Context, address string) ([]Suppression, error) {
	return s.suppressions(ctx, "address_key = ?", 1000, addressKey(address))
}

func (s *Store) suppressions(ctx context.Context, where string, n int, args ...any) ([]Suppression, error) {
	var out []Suppression
	err := s.read().each(ctx, "SELECT "+suppressionColumns+" FROM suppressions WHERE "+where+" ORDER BY address_key, domain, stream LIMIT ?", append(args, n),
		func(scan func(...any) error) error {
			e, err := scanSuppression(scan)
			out = append(out, e)
			return err
		})
	if err != nil && !errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("suppressions: %w", err)
	}
	return out, nil
}
