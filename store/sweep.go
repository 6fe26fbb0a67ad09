package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"smtpbridge/event"
)

// recover puts in order what a process that died left behind.
func (s *Store) recover(ctx context.Context) error {
	var open int64
	if !s.d.shared {
		err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
			err := t.noteLost(ctx, "the bridge stopped before the answer", "state IN ('open', 'ambiguous') AND state = 'open'")
			if err != nil {
				return err
			}
			open, err = t.exec(ctx, "UPDATE calls SET state = 'ambiguous' WHERE state IN ('open', 'ambiguous') AND state = 'open'")
			return err
		})
		if err != nil {
			return err
		}
	}
	if _, err := s.sweepDeleted(ctx); err != nil {
		return err
	}
	if err := s.sweepSpool(); err != nil {
		return err
	}
	if s.d.shared {
		return nil
	}
	// What is listed now was there before anything could be received: no new file can be taken for an orphan.
	found, err := s.listBlobs()
	if err != nil {
		return err
	}
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopBack = stop
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		orphans := 0
		for _, blob := range found {
			if back.Err() != nil {
				return
			}
			gone, err := s.sweepBlob(back, blob)
			if err != nil {
				if back.Err() == nil {
					s.log(slog.LevelWarn, logSweep, "blob", blob, "err", err)
				}
				return
			}
			if gone {
				orphans++
			}
		}
		if open > 0 || orphans > 0 {
			s.log(slog.LevelInfo, logRecovered, "n", open, "orphans", orphans)
		}
	}()
	return nil
}

// sweepDeleted ends the mails that were deleted while a call of theirs was on the wire whose
// result will not come any more.
func (s *Store) sweepDeleted(ctx context.Context) (int, error) {
	var ids []string
	err := s.read().each(ctx, "SELECT id FROM mails WHERE finished = 0 AND state = 'deleted' LIMIT 100", nil, func(scan func(...any) error) error {
		var id string
		err := scan(&id)
		ids = append(ids, id)
		return err
	})
	n := 0
	for _, id := range ids {
		var done bool
		if err = s.do(ctx, 0, func(ctx context.Context, t *tx) (err error) {
			done, err = t.endDeleted(ctx, id)
			return err
		}); err != nil {
			return n, err
		}
		if done {
			n++
		}
	}
	return n, err
}

func (t *tx) endDeleted(ctx context.Context, id string) (bool, error) {
	now := t.s.now()
	m, err := t.mailAnyway(ctx, id)
	if err != nil {
		return false, err
	}
	jobs, err := t.jobs(ctx, "mail_id = ?"+t.s.d.forUpdate, id)
	if err != nil {
		return false, err
	}
	for _, j := range jobs {
		if busy, err := t.busy(ctx, j.ID); err != nil || busy {
			return false, err
		}
	}
	rcpts, err := t.rcpts(ctx, &m.Envelope, "mail_id = ?", id)
	if err != nil {
		return false, err
	}
	for i := range rcpts {
		r := &rcpts[i]
		if r.State.Final() {
			continue
		}
		r.State, r.Status, r.Detail = RcptDeleted, "", ""
		if err := t.setRcpt(ctx, id, RcptResult{N: r.N, State: RcptDeleted}, now); err != nil {
			return false, err
		}
		e := t.s.ownEvent(event.Failed, &m, r.N, r.Account, now)
		e.Action, e.Status, e.Diagnostic, e.Outcome = event.ActionFailed, "5.7.0", "deleted by an operator while a call was in flight", event.OutcomeUnknown
		if err := t.insertOwn(ctx, &m, &e, now); err != nil {
			return false, err
		}
	}
	if _, err := t.exec(ctx, "DELETE FROM jobs WHERE mail_id = ?", id); err != nil {
		return false, err
	}
	return true, t.finish(ctx, id, now)
}

// sweepSpool removes spool files a crash left with a name.
func (s *Store) sweepSpool() error {
	dir := filepath.Join(s.o.Dir, spoolName)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasPrefix(e.Name(), "spool-") {
			s.log(slog.LevelWarn, logForeign, "path", filepath.Join(dir, e.Name()))
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// listBlobs names the files below blobs/ that can be ours, and reports the others.
func (s *Store) listBlobs() ([]string, error) {
	root := filepath.Join(s.o.Dir, blobsName)
	dirs, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range dirs {
		if !d.IsDir() || len(d.Name()) != 2 {
			s.log(slog.LevelWarn, logForeign, "path", filepath.Join(root, d.Name()))
			continue
		}
		files, err := os.ReadDir(filepath.Join(root, d.Name()))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if !f.Type().IsRegular() || len(f.Name()) != 26 || !strings.HasSuffix(f.Name(), d.Name()) {
				s.log(slog.LevelWarn, logForeign, "path", filepath.Join(root, d.Name(), f.Name()))
				continue
			}
			out = append(out, filepath.Join(d.Name(), f.Name()))
		}
	}
	return out, nil
}

// sweepBlob removes a blob no mail has and no purge waits for.
func (s *Store) sweepBlob(ctx context.Context, blob string) (bool, error) {
	var used int64
	err := s.read().get(ctx, []any{&used}, "SELECT (SELECT count(*) FROM mails WHERE blob <> '' AND blob = ?) + (SELECT count(*) FROM dead_blobs WHERE blob = ?)", blob, blob)
	if err != nil || used > 0 {
		return false, err
	}
	err = os.Remove(s.blobPath(blob))
	return err == nil, err
}

// Purge removes one small batch of what the retention no longer wants, and returns how much; 0
// means that nothing is left to do. It also sets how long Settle lets bodies live from now on.
func (s *Store) Purge(ctx context.Context, r Retention) (int, error) {
	s.keepMu.Lock()
	s.keepBodies = r.Bodies
	s.keepMu.Unlock()
	total := 0
	now := s.now()
	var errs []error // one step that fails keeps no other from its turn
	for _, step := range []func(context.Context, time.Time, Retention) (int, error){
		s.purgeBodies, s.purgeBlobs, s.purgeLedger, s.purgeEvents, s.purgeRequests, s.purgeSuppressions, s.purgeActivity,
		func(ctx context.Context, _ time.Time, _ Retention) (int, error) { return s.sweepDeleted(ctx) },
	} {
		n, err := step(ctx, now, r)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		total += n
	}
	if err := errors.Join(errs...); err != nil {
		return total, fmt.Errorf("purge: %w", err)
	}
	if total == 0 {
		n, err := s.vacuum(ctx)
		if err != nil {
			return 0, fmt.Errorf("purge: %w", err)
		}
		total = n
	}
	return total, nil
}

const purgeBatch = 100

func (s *Store) purgeBodies(ctx context.Context, now time.Time, r Retention) (int, error) {
	n := 0
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		n = 0
		type victim struct{ id, body, blob string }
		var victims []victim
		for failed, keep := range []time.Duration{r.Bodies, r.Failed} {
			err := t.each(ctx, "SELECT id, body, blob FROM mails WHERE finished > 0 AND body <> 'purged' AND failed = ? AND finished <= ? ORDER BY finished LIMIT ?"+t.s.d.skipLocked,
				[]any{failed, us(now.Add(-keep)), purgeBatch}, func(scan func(...any) error) error {
					var v victim
					err := scan(&v.id, &v.body, &v.blob)
					victims = append(victims, v)
					return err
				})
			if err != nil {
				return err
			}
		}
		for _, v := range victims {
			if err := t.purgeBody(ctx, v.id, v.body, v.blob, now); err != nil {
				return err
			}
		}
		n = len(victims)
		return nil
	})
	return n, err
}

// purgeBlobs removes files whose grace is over: the file first, then its row, so that a crash
// between the two leaves nothing behind.
func (s *Store) purgeBlobs(ctx context.Context, now time.Time, _ Retention) (int, error) {
	var blobs []string
	err := s.read().each(ctx, "SELECT blob FROM dead_blobs WHERE since <= ? LIMIT ?", []any{us(now.Add(-blobGrace)), purgeBatch}, func(scan func(...any) error) error {
		var b string
		err := scan(&b)
		blobs = append(blobs, b)
		return err
	})
	if err != nil || len(blobs) == 0 {
		return 0, err
	}
	var gone []string
	var errs []error
	for _, b := range blobs {
		if !strings.Contains(b, "..") {
			if err := os.Remove(s.blobPath(b)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
				continue
			}
		}
		gone = append(gone, b)
	}
	errs = append(errs, s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		for _, b := range gone {
			if _, err := t.exec(ctx, "DELETE FROM dead_blobs WHERE blob = ?", b); err != nil {
				return err
			}
		}
		return nil
	}))
	return len(gone), errors.Join(errs...)
}

func (s *Store) purgeLedger(ctx context.Context, now time.Time, r Retention) (int, error) {
	if r.Ledger <= 0 {
		return 0, nil
	}
	n := 0
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		n = 0
		type victim struct{ id, body, blob string }
		var victims []victim
		err := t.each(ctx, "SELECT id, body, blob FROM mails WHERE finished > 0 AND finished <= ? ORDER BY finished LIMIT ?"+t.s.d.skipLocked,
			[]any{us(now.Add(-max(r.Ledger, r.Bodies))), purgeBatch / 2}, func(scan func(...any) error) error {
				var v victim
				err := scan(&v.id, &v.body, &v.blob)
				victims = append(victims, v)
				return err
			})
		if err != nil {
			return err
		}
		for _, v := range victims {
			if v.body != bodyPurged {
				if err := t.purgeBody(ctx, v.id, v.body, v.blob, now); err != nil {
					return err
				}
			}
			if _, err := t.exec(ctx, "DELETE FROM mails WHERE id = ?", v.id); err != nil {
				return err
			}
		}
		n = len(victims)
		return nil
	})
	return n, err
}

func (s *Store) purgeEvents(ctx context.Context, now time.Time, r Retention) (int, error) {
	if r.Events <= 0 {
		return 0, nil
	}
	var last, n int64
	cutoff := us(now.Add(-r.Events))
	// The outbox is nearly in the order of seen: stop at the first that is young enough.
	young := false
	err := s.read().each(ctx, "SELECT seq, seen FROM events ORDER BY seq LIMIT 200", nil, func(scan func(...any) error) error {
		var seq, seen int64
		if err := scan(&seq, &seen); err != nil {
			return err
		}
		if young = young || seen > cutoff; !young {
			last = seq
		}
		return nil
	})
	if err != nil || last == 0 {
		return 0, err
	}
	err = s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		n, err = t.exec(ctx, "DELETE FROM events WHERE seq <= ? AND seen <= ?", last, cutoff)
		return err
	})
	return int(n), err
}

func (s *Store) purgeRequests(ctx context.Context, now time.Time, r Retention) (int, error) {
	if r.Webhooks <= 0 {
		return 0, nil
	}
	return s.purgeSome(ctx, "DELETE FROM requests WHERE id IN (SELECT id FROM requests WHERE received <= ? ORDER BY received LIMIT ?)", us(now.Add(-r.Webhooks)))
}

func (s *Store) purgeSuppressions(ctx context.Context, now time.Time, _ Retention) (int, error) {
	return s.purgeSome(ctx, `DELETE FROM suppressions WHERE (address_key, domain, stream) IN
		(SELECT address_key, domain, stream FROM suppressions WHERE expires > 0 AND expires <= ? LIMIT ?)`, us(now))
}

func (s *Store) purgeSome(ctx context.Context, query string, cutoff int64) (int, error) {
	var n int64
	err := s.do(ctx, 0, func(ctx context.Context, t *tx) (err error) {
		n, err = t.exec(ctx, query, cutoff, purgeBatch)
		return err
	})
	return int(n), err
}

// vacuum gives free pages back to the file system, a few at a time.
func (s *Store) vacuum(ctx context.Context) (int, error) {
	if s.d.shared {
		return 0, nil // autovacuum is the server's business
	}
	const pages, worth = 256, 2048
	var free int64
	if err := s.read().get(ctx, []any{&free}, "PRAGMA freelist_count"); err != nil || free < worth {
		return 0, err
	}
	err := s.submit(s.ops, &op{ctx: ctx, done: make(chan error, 1), raw: func(ctx context.Context, conn *sql.Conn) error {
		rows, err := conn.QueryContext(ctx, fmt.Sprintf("PRAGMA incremental_vacuum(%d)", pages))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() { // one page per step
			continue
		}
		return rows.Err()
	}})
	return pages, err
}
