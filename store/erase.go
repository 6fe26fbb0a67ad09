package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// erasedAddress stands where an erased address was (RFC 2606: .invalid never resolves).
const erasedAddress = "erased@erased.invalid"

// Erased says what Erase did.
type Erased struct {
	Mails   int // finished mails the address was taken out of
	Events  int // events deleted
	Waiting int // mails still in the queue, left alone: deliver or delete them and erase again
}

// Erase removes an address from everything that is finished: envelopes, ledger, header blocks,
// bodies, events and the requests they came in. Suppression entries stay, by their hash alone.
func (s *Store) Erase(ctx context.Context, addr string) (Erased, error) {
	var sum Erased
	key := envelope.Fold(addr)
	for after := ""; ; {
		var ids []string
		err := s.read().each(ctx, `SELECT id FROM (SELECT mail_id AS id FROM recipients WHERE address_key = ? UNION SELECT id FROM mails WHERE sender_key <> '' AND sender_key = ?
			UNION SELECT mail_id FROM events WHERE recipient <> '' AND recipient = ? AND mail_id <> '') AS found WHERE id > ? ORDER BY id LIMIT 50`, []any{key, key, key, after},
			func(scan func(...any) error) error {
				var id string
				err := scan(&id)
				ids = append(ids, id)
				return err
			})
		if err != nil {
			return sum, fmt.Errorf("erase: %w", err)
		}
		if len(ids) == 0 {
			break
		}
		after = ids[len(ids)-1]
		var part Erased
		err = s.do(ctx, 0, func(ctx context.Context, t *tx) error {
			part = Erased{}
			for _, id := range ids {
				if err := t.eraseMail(ctx, id, key, &part); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return sum, fmt.Errorf("erase: %w", err)
		}
		sum.Mails += part.Mails
		sum.Events += part.Events
		sum.Waiting += part.Waiting
	}
	stray := 0
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) (err error) {
		stray, err = t.eraseEvents(ctx, "recipient <> '' AND recipient = ? AND mail_id = ''", key)
		if err != nil {
			return err
		}
		_, err = t.exec(ctx, "UPDATE suppressions SET address = '' WHERE address_key = ?", addressKey(addr))
		return err
	})
	if err != nil {
		return sum, fmt.Errorf("erase: %w", err)
	}
	sum.Events += stray
	return sum, nil
}

// eraseEvents deletes events and the requests they were read from.
func (t *tx) eraseEvents(ctx context.Context, where string, args ...any) (int, error) {
	if _, err := t.exec(ctx, "DELETE FROM requests WHERE id IN (SELECT raw_id FROM events WHERE raw_id <> '' AND "+where+")", args...); err != nil {
		return 0, err
	}
	n, err := t.exec(ctx, "DELETE FROM events WHERE "+where, args...)
	return int(n), err
}

func (t *tx) eraseMail(ctx context.Context, id, key string, sum *Erased) error {
	if err := t.lockMail(ctx, id); err != nil {
		return err
	}
	m, err := t.mail(ctx, id)
	if errors.Is(err, ErrNotFound) { // the ledger is purged, events of it are left
		n, err := t.eraseEvents(ctx, "mail_id <> '' AND mail_id = ? AND recipient = ?", id, key)
		sum.Events += n
		return err
	}
	if err != nil && !errors.Is(err, ErrCorrupt) {
		return err
	}
	if m.Finished.IsZero() {
		sum.Waiting++
		return nil
	}
	sum.Mails++
	env := &m.Envelope
	env.ID = id
	sender := env.From != "" && envelope.Fold(env.From) == key
	if sender {
		env.From = erasedAddress
	}
	only := true
	for i := range env.Rcpts {
		if envelope.Fold(env.Rcpts[i].Addr) == key {
			env.Rcpts[i].Addr, env.Rcpts[i].ORCPT = erasedAddress, ""
		} else {
			only = false
		}
	}
	js, err := json.Marshal(env)
	if err != nil {
		return err
	}
	var body, blob string
	if err := t.get(ctx, []any{&body, &blob}, "SELECT body, blob FROM mails WHERE id = ?", id); err != nil {
		return err
	}
	if body != bodyPurged {
		if err := t.purgeBody(ctx, id, body, blob, t.s.now()); err != nil {
			return err
		}
	}
	senderKey := envelope.Fold(env.From)
	if env.From == "" {
		senderKey = ""
	}
	if _, err := t.exec(ctx, "UPDATE mails SET envelope = ?, checksum = ?, sender = ?, sender_key = ?, header = NULL, from_header = CASE WHEN ? = 1 THEN '' ELSE from_header END, subject = '' WHERE id = ?",
		string(js), seal(js, m.SHA256), env.From, senderKey, num(sender), id); err != nil {
		return err
	}
	if _, err := t.exec(ctx, "UPDATE recipients SET address = ?, address_key = ?, detail = '' WHERE mail_id = ? AND address_key = ?", erasedAddress, erasedAddress, id, key); err != nil {
		return err
	}
	if sender {
		if _, err := t.exec(ctx, "UPDATE notices SET sender_key = '', due = 0 WHERE mail_id = ?", id); err != nil {
			return err
		}
	}
	if only || sender {
		n, err := t.eraseEvents(ctx, "mail_id <> '' AND mail_id = ?", id)
		sum.Events += n
		return err
	}
	n, err := t.eraseEvents(ctx, "mail_id <> '' AND mail_id = ? AND recipient = ?", id, key)
	sum.Events += n
	if err != nil {
		return err
	}
	// Events about several recipients name the others too: only the address goes.
	type row struct {
		seq  int64
		data string
	}
	var rows []row
	err = t.each(ctx, "SELECT seq, data FROM events WHERE mail_id <> '' AND mail_id = ? AND recipient = ''", []any{id}, func(scan func(...any) error) error {
		var r row
		err := scan(&r.seq, &r.data)
		rows = append(rows, r)
		return err
	})
	if err != nil {
		return err
	}
	for _, r := range rows {
		var e event.Event
		if err := json.Unmarshal([]byte(r.data), &e); err != nil {
			return err
		}
		e.Candidates = slices.DeleteFunc(e.Candidates, func(a string) bool { return envelope.Fold(a) == key })
		if _, err := t.exec(ctx, "UPDATE events SET data = ? WHERE seq = ?", mustJSON(e), r.seq); err != nil {
			return err
		}
	}
	return nil
}
