package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// leases are the claims of this process. With SQLite they are all there is; with PostgreSQL the
// truth is in the rows and these are what the node renews.
type leases struct {
	mu    sync.Mutex
	next  int64
	byJob map[int64]lease
	count map[string]int // by account
}

type lease struct {
	token   int64
	account string
}

func (l *leases) init() {
	l.byJob, l.count = map[int64]lease{}, map[string]int{}
}

// put notes a claim; the caller holds mu.
func (l *leases) put(job int64, token int64, account string) {
	l.byJob[job] = lease{token, account}
	l.count[account]++
}

func (l *leases) drop(job, token int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e, ok := l.byJob[job]; ok && e.token == token {
		delete(l.byJob, job)
		if l.count[e.account]--; l.count[e.account] == 0 {
			delete(l.count, e.account)
		}
	}
}

func (l *leases) held(job int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.byJob[job]
	return ok
}

// Claim leases up to n due jobs of an account, oldest first. Fewer, or none, is no error. An
// account's backlog costs nothing: the due jobs are read from an index.
func (s *Store) Claim(ctx context.Context, account string, n int) ([]*Claim, error) {
	if s.o.ReadOnly {
		return nil, errReadOnly
	}
	if n <= 0 {
		return nil, nil
	}
	var out []*Claim
	var bad []string
	var gone []int64
	load := func(ctx context.Context, t *tx, ids map[int64]int64, order []int64) error {
		out, bad, gone = nil, nil, nil
		for _, id := range order {
			if c := s.fresh.take(id, ids[id]); c != nil {
				out = append(out, c)
				continue
			}
			c, mailID, err := t.claim(ctx, id, ids[id])
			switch {
			case errors.Is(err, ErrCorrupt):
				bad, gone = append(bad, mailID), append(gone, id)
			case errors.Is(err, ErrNotFound): // deleted in the same moment
				gone = append(gone, id)
			case err != nil:
				return err
			default:
				out = append(out, c)
			}
		}
		return nil
	}
	ids := map[int64]int64{}
	var order []int64
	var err error
	if s.d.shared {
		err = s.claimShared(ctx, account, n, ids, &order, load)
	} else {
		err = s.view(ctx, func(ctx context.Context, t *tx) error {
			if err := s.claimLocal(ctx, t, account, n, ids, &order); err != nil {
				return err
			}
			return load(ctx, t, ids, order)
		})
	}
	if err != nil {
		for id, token := range ids {
			s.leases.drop(id, token)
		}
		return nil, fmt.Errorf("claim for %s: %w", account, mapError(err))
	}
	for _, id := range gone {
		s.leases.drop(id, ids[id])
	}
	for _, id := range bad {
		if err := s.quarantine(ctx, id, "the stored envelope fails its checksum"); err != nil {
			s.log(slog.LevelError, logCorrupt, "id", id, "err", err)
		}
	}
	return s.resolve(ctx, out)
}

// claimLocal picks jobs and notes their leases. The snapshot t reads begins while the leases
// are locked: a job whose lease ended before has its new next_at in it.
func (s *Store) claimLocal(ctx context.Context, t *tx, account string, n int, ids map[int64]int64, order *[]int64) error {
	s.leases.mu.Lock()
	defer s.leases.mu.Unlock()
	limit := n + s.leases.count[account]
	err := t.each(ctx, "SELECT id FROM jobs WHERE account = ? AND held = 0 AND next_at <= ? ORDER BY next_at, id LIMIT ?",
		[]any{account, us(s.now()), limit}, func(scan func(...any) error) error {
			var id int64
			if err := scan(&id); err != nil {
				return err
			}
			if _, ok := s.leases.byJob[id]; !ok && len(*order) < n {
				*order = append(*order, id)
			}
			return nil
		})
	if err != nil {
		return err
	}
	for _, id := range *order {
		s.leases.next++
		ids[id] = s.leases.next
		s.leases.put(id, s.leases.next, account)
	}
	return nil
}

// claimShared leases rows with database time and a new token each.
func (s *Store) claimShared(ctx context.Context, account string, n int, ids map[int64]int64, order *[]int64, load func(context.Context, *tx, map[int64]int64, []int64) error) error {
	return s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		clear(ids)
		*order = (*order)[:0]
		err := t.each(ctx, `SELECT id FROM jobs WHERE account = ? AND held = 0 AND next_at <= ? AND `+s.unleased()+`
			ORDER BY next_at, id LIMIT ? FOR UPDATE SKIP LOCKED`,
			[]any{account, us(s.now()), n}, func(scan func(...any) error) error {
				var id int64
				if err := scan(&id); err != nil {
					return err
				}
				*order = append(*order, id)
				return nil
			})
		if err != nil {
			return err
		}
		for _, id := range *order {
			var token int64
			err := t.get(ctx, []any{&token}, `UPDATE jobs SET lease = nextval('leases'), lease_until = `+pgNow+` + ? WHERE id = ? RETURNING lease`,
				s.o.Lease.Microseconds(), id)
			if err != nil {
				return err
			}
			ids[id] = token
		}
		t.onCommit(func() {
			s.leases.mu.Lock()
			defer s.leases.mu.Unlock()
			for id, token := range ids {
				s.leases.put(id, token, account)
			}
		})
		return load(ctx, t, ids, *order)
	})
}

// claim loads a leased job.
func (t *tx) claim(ctx context.Context, job, token int64) (*Claim, string, error) {
	jobs, err := t.jobs(ctx, "id = ?", job)
	if err != nil {
		return nil, "", err
	}
	if len(jobs) == 0 {
		return nil, "", ErrNotFound
	}
	c := &Claim{Job: jobs[0], token: token}
	if t.s.d.shared {
		c.leased = time.Now()
	}
	id := c.Job.MailID
	if c.Mail, err = t.mail(ctx, id); err != nil {
		return nil, id, err
	}
	rcpts, err := t.rcpts(ctx, &c.Mail.Envelope, "job_id <> 0 AND job_id = ?", job)
	if err != nil {
		return nil, id, err
	}
	calls, err := t.calls(ctx, "mail_id = ? AND job_id = ? AND state IN ('open', 'ambiguous', 'retry') ORDER BY id", id, job)
	if err != nil {
		return nil, id, err
	}
	busy := map[int]bool{}
	for _, call := range calls {
		if call.State == CallOpen {
			call.State = CallAmbiguous // it was started under a lease that is gone
		}
		if call.proven {
			c.proven = append(c.proven, call.ID)
		}
		for _, n := range call.Rcpts {
			busy[n] = true
		}
		c.Open = append(c.Open, call.Call)
	}
	for _, r := range rcpts {
		c.Job.Rcpts = append(c.Job.Rcpts, r.N)
		if !busy[r.N] {
			c.Rcpts = append(c.Rcpts, r)
		}
	}
	return c, id, nil
}

// resolve settles, before the claims are given out, calls of which an event has proved that the
// ESP took them but whose own answer never came.
func (s *Store) resolve(ctx context.Context, claims []*Claim) ([]*Claim, error) {
	out := claims[:0]
	for _, c := range claims {
		if len(c.proven) == 0 {
			out = append(out, c)
			continue
		}
		var again *Claim
		err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
			again = nil
			for _, id := range c.proven {
				calls, err := t.calls(ctx, "id = ?", id)
				if err != nil {
					return err
				}
				if len(calls) == 1 {
					if err := t.lockMail(ctx, calls[0].MailID); err != nil {
						return err
					}
					if err := t.acceptProven(ctx, &calls[0], "", s.now()); err != nil {
						return err
					}
				}
			}
			var err error
			again, _, err = t.claim(ctx, c.Job.ID, c.token)
			if errors.Is(err, ErrNotFound) {
				return nil // nothing is left of the job
			}
			return err
		})
		if err != nil {
			for _, c := range claims {
				_ = s.Release(ctx, c)
			}
			return nil, err
		}
		if again == nil {
			s.leases.drop(c.Job.ID, c.token)
			continue
		}
		out = append(out, again)
	}
	return out, nil
}

// NextDue returns when the next unclaimed job of the account is due, false if it has none.
func (s *Store) NextDue(ctx context.Context, account string) (time.Time, bool, error) {
	var next int64
	found := false
	pick := func(t *tx, limit int, skip func(int64) bool) error {
		query := "SELECT id, next_at FROM jobs WHERE account = ? AND held = 0 ORDER BY next_at, id LIMIT ?"
		if s.d.shared {
			query = "SELECT id, next_at FROM jobs WHERE account = ? AND held = 0 AND " + s.unleased() + " ORDER BY next_at, id LIMIT ?"
		}
		return t.each(ctx, query, []any{account, limit}, func(scan func(...any) error) error {
			var id, nextAt int64
			if err := scan(&id, &nextAt); err != nil {
				return err
			}
			if !found && !skip(id) {
				found, next = true, nextAt
			}
			return nil
		})
	}
	var err error
	if s.d.shared {
		err = pick(s.read(), 1, func(int64) bool { return false })
	} else { // the connection comes before the leases, as in Claim: who has one waits for the other
		err = s.view(ctx, func(ctx context.Context, t *tx) error {
			s.leases.mu.Lock()
			defer s.leases.mu.Unlock()
			return pick(t, 1+s.leases.count[account], func(id int64) bool { _, ok := s.leases.byJob[id]; return ok })
		})
	}
	if err != nil {
		return time.Time{}, false, fmt.Errorf("next due of %s: %w", account, err)
	}
	return at(next), found, nil
}

// owns returns ErrStale unless the claim still holds its job.
func (t *tx) owns(ctx context.Context, c *Claim) error {
	if !t.s.d.shared {
		t.s.leases.mu.Lock()
		defer t.s.leases.mu.Unlock()
		if e, ok := t.s.leases.byJob[c.Job.ID]; !ok || e.token != c.token {
			return ErrStale
		}
		return nil
	}
	var token int64
	err := t.get(ctx, []any{&token}, "SELECT lease FROM jobs WHERE id = ? FOR UPDATE", c.Job.ID)
	if errors.Is(err, ErrNotFound) || err == nil && token != c.token {
		return ErrStale
	}
	return err
}

// Start makes calls durable before their first byte. A call with the ID of an unsettled call of
// the job is started again, unchanged; with State CallRefused it is voided instead (only from
// CallRetry). Any other is new and may cover only recipients of the job that are in no open
// call; a call in CallRetry that covers one of them is voided. The calls come back as they are
// stored, the voided ones left out. ErrStale: start nothing, the claim is over; Release it.
func (s *Store) Start(ctx context.Context, c *Claim, calls []Call) ([]Call, error) {
	var out []Call
	err := s.do(ctx, 512*len(calls), func(ctx context.Context, t *tx) error {
		var err error
		out, err = t.start(ctx, c, calls)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("start calls of %s: %w", c.Job.MailID, err)
	}
	return out, nil
}

func (t *tx) start(ctx context.Context, c *Claim, calls []Call) ([]Call, error) {
	now := t.s.now()
	if err := t.lockMail(ctx, c.Job.MailID); err != nil { // before the job, here as everywhere
		return nil, err
	}
	if err := t.owns(ctx, c); err != nil {
		return nil, err
	}
	if err := t.prolong(ctx, c); err != nil {
		return nil, err
	}
	state, unsettled := "", 0
	free := map[int]bool{}
	err := t.each(ctx, `SELECT m.state, r.n, (SELECT count(*) FROM calls c WHERE c.mail_id = m.id AND c.job_id = r.job_id AND c.state IN ('open', 'ambiguous', 'retry'))
		FROM mails m JOIN recipients r ON r.mail_id = m.id WHERE m.id = ? AND r.job_id = ?`, []any{c.Job.MailID, c.Job.ID},
		func(scan func(...any) error) error {
			var n int
			err := scan(&state, &n, &unsettled)
			free[n] = true
			return err
		})
	switch {
	case err != nil:
		return nil, err
	case state == "":
		return nil, fmt.Errorf("%w: nothing is left to send", ErrStale)
	case state != string(MailQueued):
		return nil, fmt.Errorf("%w: the mail is %s", ErrStale, state)
	}
	var rows []callRow
	if unsettled > 0 {
		if rows, err = t.calls(ctx, "mail_id = ? AND job_id = ? AND state IN ('open', 'ambiguous', 'retry')", c.Job.MailID, c.Job.ID); err != nil {
			return nil, err
		}
	}
	known := map[string]*callRow{}
	for i := range rows {
		known[rows[i].ID] = &rows[i]
		if rows[i].State != CallRetry {
			for _, n := range rows[i].Rcpts {
				free[n] = false
			}
		}
	}
	again := map[string]bool{}
	for _, call := range calls {
		if k := known[call.ID]; k != nil && call.State != CallRefused {
			again[k.ID] = true
			for _, n := range k.Rcpts {
				free[n] = false
			}
		}
	}
	void := func(k *callRow) error {
		if k.State != CallRetry {
			return fmt.Errorf("call %s is %s and cannot be voided", k.ID, k.State)
		}
		_, err := t.exec(ctx, "UPDATE calls SET state = ? WHERE id = ?", string(CallRefused), k.ID)
		delete(known, k.ID)
		return err
	}
	var out []Call
	for _, call := range calls {
		if k := known[call.ID]; k != nil {
			if !again[k.ID] {
				if err := void(k); err != nil {
					return nil, err
				}
				continue
			}
			if err := t.noteLost(ctx, "", "id = ?", k.ID); err != nil {
				return nil, err
			}
			k.State, k.Started = CallOpen, now
			k.Attempt++
			if len(call.Looked) > len(k.Looked) {
				k.Looked = call.Looked
			}
			if _, err := t.exec(ctx, "UPDATE calls SET state = ?, attempt = ?, started = ?, looked = ?, detail = '' WHERE id = ?",
				string(CallOpen), k.Attempt, us(now), mustJSON(k.Looked), k.ID); err != nil {
				return nil, err
			}
			k.Detail = ""
			out = append(out, k.Call)
			continue
		}
		if len(call.Rcpts) == 0 {
			return nil, errors.New("a call without recipients")
		}
		for _, n := range call.Rcpts {
			if !free[n] {
				return nil, fmt.Errorf("%w: recipient %d is final or in an open call", ErrStale, n)
			}
			free[n] = false
		}
		for _, k := range known {
			if k.State == CallRetry && !again[k.ID] && slices.ContainsFunc(k.Rcpts, func(n int) bool { return slices.Contains(call.Rcpts, n) }) {
				if err := void(k); err != nil {
					return nil, err
				}
			}
		}
		if call.ID == "" {
			call.ID = envelope.NewID(now)
		}
		if call.Ref == "" {
			call.Ref = call.ID
		}
		if call.Account == "" {
			call.Account = c.Job.Account
		}
		call.MailID, call.JobID, call.State, call.Attempt, call.Started = c.Job.MailID, c.Job.ID, CallOpen, 1, now
		call.ProviderMessageID, call.HTTPStatus, call.Detail, call.Looked = "", 0, "", nil
		if _, err := t.exec(ctx, `INSERT INTO calls (id, mail_id, job_id, account, recipients, ref, idempotency_key, key_expires, state, attempt, started)
			VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 1, ?)`,
			call.ID, call.MailID, call.JobID, call.Account, mustJSON(call.Rcpts), call.Ref, call.IdempotencyKey, us(call.KeyExpires), string(CallOpen), us(now)); err != nil {
			return nil, err
		}
		out = append(out, call)
	}
	for _, call := range out {
		for _, n := range call.Rcpts {
			if _, err := t.exec(ctx, "UPDATE recipients SET state = ?, attempts = attempts + 1, updated = ? WHERE mail_id = ? AND n = ? AND job_id <> 0",
				string(RcptInFlight), us(now), call.MailID, n); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

// noteLost notes, for the calls of a condition, that the answer to their last attempt never came: an
// attempt gets its line once it has ended.
func (t *tx) noteLost(ctx context.Context, detail, where string, args ...any) error {
	_, err := t.exec(ctx, `INSERT INTO attempts (call_id, attempt, mail_id, account, started, state, detail, recipients)
		SELECT id, attempt, mail_id, account, started, 'ambiguous', ?, recipients FROM calls WHERE `+where+`
		ON CONFLICT (call_id, attempt) DO UPDATE SET state = excluded.state, detail = excluded.detail WHERE attempts.state = 'open'`,
		append([]any{detail}, args...)...)
	return err
}

// Release gives a claim back untouched. Calls that were started under it are Ambiguous. After an error the
// job is due again once its lease has run out: nobody renews it any more.
func (s *Store) Release(ctx context.Context, c *Claim) error {
	s.leases.drop(c.Job.ID, c.token)
	if s.d.shared {
		err := s.do(ctx, 0, func(ctx context.Context, t *tx) error {
			t.queue = true
			_, err := t.exec(ctx, "UPDATE jobs SET lease = 0, lease_until = 0 WHERE id = ? AND lease = ?", c.Job.ID, c.token)
			return err
		})
		if err != nil {
			return fmt.Errorf("release %s: %w", c.Job.MailID, err)
		}
	}
	s.wake(TopicQueue)
	return nil
}

// Settle ends a claim: results, recipients, events, the job's future and what became of the
// mail, in one transaction. After an error the claim is still held and Settle may be repeated.
//
// ErrStale is the exception: the claim was lost, or the mail deleted, while the calls ran. What
// the calls came to is recorded all the same, only the job's schedule is left to whoever has it
// now; there is nothing to repeat.
//
// The store keeps the ledger whole whatever the settlement leaves out: each recipient that
// becomes final gets exactly one final event (one is written if Events has none, and one too
// many is dropped), recipients of an accepted call count as sent unless Rcpts says otherwise, and
// an acceptance that an event has proved stands against any later doubt.
func (s *Store) Settle(ctx context.Context, st Settlement) error {
	var stale bool
	size := 512 * (1 + len(st.Calls) + len(st.Rcpts) + 2*len(st.Events))
	err := s.do(ctx, size, func(ctx context.Context, t *tx) error {
		var err error
		stale, err = t.settle(ctx, &st)
		if err == nil {
			t.onCommit(func() {
				s.fresh.take(st.Claim.Job.ID, 0) // where the claim was faster than the commit that put it there
				s.leases.drop(st.Claim.Job.ID, st.Claim.token)
			})
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("settle %s: %w", st.Claim.Job.MailID, err)
	}
	if stale {
		return fmt.Errorf("settle %s: %w", st.Claim.Job.MailID, ErrStale)
	}
	return nil
}

func (t *tx) settle(ctx context.Context, st *Settlement) (stale bool, err error) {
	now := t.s.now()
	id, jobID := st.Claim.Job.MailID, st.Claim.Job.ID
	// One settlement of a mail at a time: the last one sees that it is finished.
	if err := t.lockMail(ctx, id); err != nil {
		return false, err
	}
	switch err := t.owns(ctx, st.Claim); {
	case errors.Is(err, ErrStale):
		stale = true
	case err != nil:
		return false, err
	}
	l, err := t.ledger(ctx, &st.Claim.Mail)
	if errors.Is(err, ErrNotFound) {
		return true, nil // purged: it was final long ago
	}
	if err != nil {
		return false, err
	}
	told := map[int]RcptResult{}
	for _, r := range st.Rcpts {
		told[r.N] = r
	}
	var stored []callRow
	for i := range st.Calls {
		call, covered, err := t.settleCall(ctx, &st.Calls[i], now)
		if err != nil {
			return false, err
		}
		if call == nil {
			continue
		}
		stored = append(stored, *call)
		for _, n := range call.Rcpts {
			r, ok := told[n]
			switch {
			case call.State == CallAccepted && (!ok || !r.State.Final()) && (covered || !ok):
				told[n] = RcptResult{N: n, State: RcptSent, Account: call.Account, ProviderMessageID: call.ProviderMessageID, Status: "2.0.0"}
			case call.State == CallAmbiguous:
				if !ok || !r.State.Final() {
					r.N, r.State = n, RcptInFlight
					told[n] = r
				}
			case !ok:
				told[n] = RcptResult{N: n, State: RcptQueued}
			}
		}
	}
	deleted := l.mail.State == MailDeleted
	finals := map[int]bool{} // became final now
	for i, cur := range l.rcpts {
		r, ok := told[cur.N]
		if !ok || cur.State.Final() {
			continue
		}
		if stale && !r.State.Final() {
			continue // whoever has the job now knows better
		}
		if deleted && !r.State.Final() {
			r.State = RcptDeleted
		}
		if l.mail.gone() {
			dropGone(&r)
		}
		finals[cur.N] = r.State.Final()
		l.set(i, r)
	}
	// Events: at most one final one per recipient, and not for one that was final before.
	have := map[int]bool{}
	for _, e := range st.Events {
		n := -1
		if e.Recipient != "" {
			n = recipientIn(&l.mail.Envelope, e.Recipient)
		}
		if n >= 0 && queueFinal(e.Kind) {
			if have[n] || !finals[n] {
				continue
			}
			have[n] = true
		}
		if err := t.tell(ctx, l, &e, now); err != nil {
			return false, err
		}
	}
	for i := range l.rcpts {
		if r := &l.rcpts[i]; finals[r.N] && !have[r.N] {
			e := t.s.finalOf(&l.mail, r, providerOf(st.Events), now)
			if err := t.tell(ctx, l, &e, now); err != nil {
				return false, err
			}
		}
	}
	if err := t.save(ctx, l, now); err != nil {
		return false, err
	}
	if deleted {
		stale = true
	}
	if err := t.settleJob(ctx, st, jobID, deleted, stale, now); err != nil {
		return false, err
	}
	if err := t.finishLedger(ctx, l, now); err != nil {
		return false, err
	}
	if l.withheld {
		for i := range stored {
			if err := t.adopt(ctx, &stored[i], st.Rcpts, now); err != nil {
				return false, err
			}
		}
	}
	t.queue = true
	return stale, nil
}

// settleCall stores the result of one call. covered says that the call counts as accepted
// because an event proved it, whatever the result says. nil: the result is of an older attempt,
// or of a call that is over, and says nothing about what is now.
func (t *tx) settleCall(ctx context.Context, res *CallResult, now time.Time) (call *callRow, covered bool, err error) {
	rows, err := t.calls(ctx, "id = ?"+t.s.d.forUpdate, res.Call.ID)
	if err != nil {
		return nil, false, err
	}
	if len(rows) == 0 {
		return nil, false, fmt.Errorf("call %s was never started", res.Call.ID)
	}
	row := rows[0]
	state := res.Call.State
	if state == CallOpen || state == "" {
		state = CallAmbiguous
	}
	if _, err := t.exec(ctx, `INSERT INTO attempts (call_id, attempt, mail_id, account, started, elapsed, state, kind, http_status, detail, recipients)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (call_id, attempt) DO UPDATE SET
		elapsed = excluded.elapsed, state = excluded.state, kind = excluded.kind, http_status = excluded.http_status, detail = excluded.detail`,
		row.ID, res.Call.Attempt, row.MailID, row.Account, us(res.Call.Started), res.Elapsed.Microseconds(), string(state), res.Kind, res.Call.HTTPStatus,
		text(res.Call.Detail), mustJSON(row.Rcpts)); err != nil {
		return nil, false, err
	}
	if res.Call.Attempt < row.Attempt && state != CallAccepted {
		return nil, false, nil
	}
	if state != CallAccepted && (row.proven || row.State == CallAccepted) {
		state, covered = CallAccepted, true
	}
	if row.State == CallRefused && state != CallAccepted {
		return nil, false, nil // voided meanwhile, and its recipients planned anew: it must not come back beside their new call
	}
	row.State = state
	if res.Call.ProviderMessageID != "" {
		row.ProviderMessageID = res.Call.ProviderMessageID
	}
	if len(res.Call.Looked) > len(row.Looked) {
		row.Looked = res.Call.Looked
	}
	row.HTTPStatus, row.Detail = res.Call.HTTPStatus, text(res.Call.Detail)
	_, err = t.exec(ctx, "UPDATE calls SET state = ?, provider_message_id = ?, http_status = ?, detail = ?, looked = ? WHERE id = ?",
		string(row.State), text(row.ProviderMessageID), row.HTTPStatus, row.Detail, mustJSON(row.Looked), row.ID)
	return &row, covered, err
}

// lockMail keeps other nodes from changing a mail until this transaction ends.
func (t *tx) lockMail(ctx context.Context, id string) error {
	if !t.s.d.shared {
		return nil
	}
	var one int64
	err := t.get(ctx, []any{&one}, "SELECT 1 FROM mails WHERE id = ? FOR UPDATE", id)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}

func (t *tx) setRcpt(ctx context.Context, id string, r RcptResult, now time.Time) error {
	if r.State.Final() {
		_, err := t.exec(ctx, `UPDATE recipients SET state = ?, account = CASE WHEN ? = '' THEN account ELSE ? END,
			provider_message_id = CASE WHEN ? = '' THEN provider_message_id ELSE ? END, status = ?, detail = ?, updated = ?, job_id = 0 WHERE mail_id = ? AND n = ?`,
			string(r.State), r.Account, r.Account, text(r.ProviderMessageID), text(r.ProviderMessageID), text(r.Status), text(r.Detail), us(now), id, r.N)
		return err
	}
	_, err := t.exec(ctx, `UPDATE recipients SET state = ?, account = CASE WHEN ? = '' THEN account ELSE ? END, status = ?, detail = ?, updated = ? WHERE mail_id = ? AND n = ?`,
		string(r.State), r.Account, r.Account, text(r.Status), text(r.Detail), us(now), id, r.N)
	return err
}

// settleJob moves the job on, or removes it when it has no recipient left.
func (t *tx) settleJob(ctx context.Context, st *Settlement, jobID int64, deleted, stale bool, now time.Time) error {
	if st.Hold != "" && !deleted {
		if err := t.hold(ctx, st.Claim.Job.MailID, st.Hold); err != nil {
			return err
		}
	}
	if gone, err := t.dropEmptyJob(ctx, jobID, deleted); err != nil || gone || stale {
		return err
	}
	next := us(st.NextAt)
	if next == 0 {
		next = us(now)
	}
	_, err := t.exec(ctx, `UPDATE jobs SET next_at = ?, account = CASE WHEN ? = '' THEN account ELSE ? END, attempts = attempts + ?, trouble = ?,
		split = CASE WHEN ? = 1 THEN 1 ELSE split END, last_error = ?, lease = 0, lease_until = 0 WHERE id = ?`,
		next, st.Account, st.Account, num(st.Counted), us(st.Trouble), num(st.Split), text(st.LastError), jobID)
	return err
}

// dropEmptyJob removes a job without recipients, or any job if force is set.
func (t *tx) dropEmptyJob(ctx context.Context, jobID int64, force bool) (bool, error) {
	n, err := t.exec(ctx, "DELETE FROM jobs WHERE id = ? AND (? = 1 OR NOT EXISTS (SELECT 1 FROM recipients WHERE job_id <> 0 AND job_id = ?))",
		jobID, num(force), jobID)
	return n > 0, err
}

// queueFinal reports whether a kind ends a recipient for the queue.
func queueFinal(k event.Kind) bool {
	return k == event.Sent || k == event.Rejected || k == event.Failed
}

func recipientIn(env *envelope.Envelope, addr string) int {
	for i := range env.Rcpts {
		if env.Rcpts[i].Addr == addr {
			return i
		}
	}
	for i := range env.Rcpts {
		if envelope.Equal(env.Rcpts[i].Addr, addr) {
			return i
		}
	}
	return -1
}

func providerOf(evs []event.Event) string {
	for _, e := range evs {
		if e.Provider != "" {
			return e.Provider
		}
	}
	return ""
}

// Replan replaces the jobs of a mail by those of a newer configuration. Recipients that are
// final, or in an open or ambiguous call, keep what they have; a call in CallRetry is voided.
// Recipients that no new job covers stay in their old one. ErrStale: the mail is being worked
// on, try again later.
func (s *Store) Replan(ctx context.Context, mailID string, generation int64, jobs []NewJob) error {
	err := s.do(ctx, 1024, func(ctx context.Context, t *tx) error { return t.replan(ctx, mailID, generation, jobs) })
	if err != nil {
		return fmt.Errorf("replan %s: %w", mailID, err)
	}
	return nil
}

func (t *tx) replan(ctx context.Context, mailID string, generation int64, jobs []NewJob) error {
	var state string
	if err := t.get(ctx, []any{&state}, "SELECT state FROM mails WHERE id = ?"+t.s.d.forUpdate, mailID); err != nil {
		return err
	}
	old, err := t.jobs(ctx, "mail_id = ?"+t.s.d.forUpdate, mailID)
	if err != nil {
		return err
	}
	byID := map[int64]Job{}
	for _, j := range old {
		if busy, err := t.busy(ctx, j.ID); err != nil {
			return err
		} else if busy {
			return fmt.Errorf("%w: it is being delivered", ErrStale)
		}
		byID[j.ID] = j
	}
	calls, err := t.calls(ctx, "mail_id = ? AND state IN ('open', 'ambiguous', 'retry')", mailID)
	if err != nil {
		return err
	}
	frozen := map[int]bool{}
	for _, c := range calls {
		if c.State == CallRetry {
			if _, err := t.exec(ctx, "UPDATE calls SET state = ? WHERE id = ?", string(CallRefused), c.ID); err != nil {
				return err
			}
			continue
		}
		for _, n := range c.Rcpts {
			frozen[n] = true
		}
	}
	rcpts, err := t.rcpts(ctx, nil, "mail_id = ? AND job_id <> 0", mailID)
	if err != nil {
		return err
	}
	jobOf := map[int]int64{}
	for _, r := range rcpts {
		if !frozen[r.N] {
			jobOf[r.N] = r.Job
		}
	}
	for _, nj := range jobs {
		if len(nj.Accounts) == 0 {
			return errors.New("a job needs accounts")
		}
		var mine []int
		row := jobRow{generation: generation, held: state == string(MailHeld)}
		for _, n := range nj.Rcpts {
			from, ok := jobOf[n]
			if !ok {
				continue
			}
			delete(jobOf, n)
			o := byID[from]
			if len(mine) == 0 || us(o.Created) < row.created {
				row.created = us(o.Created)
			}
			if len(mine) == 0 || o.Attempts < row.attempts {
				row.attempts = o.Attempts
			}
			if o.Account == nj.Accounts[0] {
				row.trouble, row.lastError = us(o.Trouble), o.LastError
				row.split = row.split || o.Split
			}
			mine = append(mine, n)
		}
		if len(mine) == 0 {
			continue
		}
		job, err := t.insertJob(ctx, mailID, nj, row)
		if err != nil {
			return err
		}
		for _, n := range mine {
			if _, err := t.exec(ctx, "UPDATE recipients SET job_id = ?, state = ? WHERE mail_id = ? AND n = ?", job.ID, string(RcptQueued), mailID, n); err != nil {
				return err
			}
		}
	}
	for _, j := range old {
		gone, err := t.dropEmptyJob(ctx, j.ID, false)
		if err != nil {
			return err
		}
		if !gone {
			if _, err := t.exec(ctx, "UPDATE jobs SET generation = ? WHERE id = ?", generation, j.ID); err != nil {
				return err
			}
		}
	}
	if _, err := t.exec(ctx, "UPDATE mails SET generation = ? WHERE id = ?", generation, mailID); err != nil {
		return err
	}
	t.changed(mailID)
	return nil
}

// changed notes that a waiting mail is not what it was.
func (t *tx) changed(id string) {
	t.queue = true
	t.onCommit(func() { t.s.fresh.drop(id) })
}

// busy reports whether a job is under a lease of anybody.
func (t *tx) busy(ctx context.Context, job int64) (bool, error) {
	if !t.s.d.shared {
		return t.s.leases.held(job), nil
	}
	var n int64
	err := t.get(ctx, []any{&n}, "SELECT count(*) FROM jobs WHERE id = ? AND lease_until > "+pgNow, job)
	return n > 0, err
}

// Ahead returns up to n mails whose turn has come once, and comes again only after next.
func (s *Store) Ahead(ctx context.Context, next time.Time, n int) ([]string, error) {
	var out []string
	err := s.read().each(ctx, "SELECT DISTINCT mail_id FROM jobs WHERE held = 0 AND next_at > ? AND created <= ? LIMIT ?", []any{us(next), us(s.now()), n},
		func(scan func(...any) error) error {
			var id string
			err := scan(&id)
			out = append(out, id)
			return err
		})
	if err != nil {
		return nil, fmt.Errorf("mails put off: %w", err)
	}
	return out, nil
}

// Stale returns up to n mails with jobs planned under another configuration than generation (it is a
// fingerprint: an older one may be the greater number) and not being delivered at the moment.
func (s *Store) Stale(ctx context.Context, generation int64, n int) ([]string, error) {
	var out []string
	s.leases.mu.Lock()
	limit := n + len(s.leases.byJob)
	s.leases.mu.Unlock()
	seen := map[string]bool{}
	query := "SELECT id, mail_id FROM jobs WHERE generation <> ? ORDER BY generation, id LIMIT ?"
	if s.d.shared {
		query = "SELECT id, mail_id FROM jobs WHERE generation <> ? AND lease_until <= " + pgNow + " ORDER BY generation, id LIMIT ?"
	}
	err := s.read().each(ctx, query, []any{generation, limit},
		func(scan func(...any) error) error {
			var id int64
			var mail string
			if err := scan(&id, &mail); err != nil {
				return err
			}
			if len(out) < n && !seen[mail] && !s.leases.held(id) {
				seen[mail] = true
				out = append(out, mail)
			}
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("stale jobs: %w", err)
	}
	return out, nil
}
