package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// newMail is a mail on its way into the database.
type newMail struct {
	mail  Mail
	jobs  []NewJob
	evs   []event.Event
	body  string // where the body is
	blob  string
	now   time.Time
	jobOf []int  // index in jobs per recipient, -1 = none
	mem   []byte // the body, if it may be kept in memory
}

// text makes a string fit for a text column of either engine.
func text(s string) string {
	if !utf8.ValidString(s) {
		s = strings.ToValidUTF8(s, "\uFFFD")
	}
	if strings.IndexByte(s, 0) >= 0 {
		s = strings.ReplaceAll(s, "\x00", "")
	}
	return s
}

// checkText refuses what could not be stored without changing it.
func checkText(what, s string) error {
	if !utf8.ValidString(s) || strings.IndexByte(s, 0) >= 0 {
		return fmt.Errorf("store: %s is not valid UTF-8", what)
	}
	return nil
}

func (s *Store) newMail(m Mail, jobs []NewJob, evs []event.Event) (*newMail, error) {
	env := m.Envelope
	if env.ID == "" || len(env.ID) > 64 || checkText("queue id", env.ID) != nil {
		return nil, errors.New("store: the mail has no usable queue id")
	}
	if err := checkText("envelope sender", env.From); err != nil {
		return nil, err
	}
	for _, r := range env.Rcpts {
		if err := checkText("recipient", r.Addr); err != nil {
			return nil, err
		}
	}
	n := &newMail{mail: m, jobs: jobs, evs: evs, now: s.now(), jobOf: make([]int, len(env.Rcpts))}
	for i := range n.jobOf {
		n.jobOf[i] = -1
	}
	for j, job := range jobs {
		if len(job.Accounts) == 0 || len(job.Rcpts) == 0 {
			return nil, errors.New("store: a job needs accounts and recipients")
		}
		for _, r := range job.Rcpts {
			if r < 0 || r >= len(env.Rcpts) || n.jobOf[r] >= 0 {
				return nil, fmt.Errorf("store: recipient %d is not in the envelope, or in two jobs", r)
			}
			n.jobOf[r] = j
		}
	}
	if n.mail.State == "" {
		n.mail.State = MailQueued
	}
	return n, nil
}

// seal is the checksum of what must never change: the envelope and the checksum of the body.
func seal(envelopeJSON []byte, bodySHA256 string) string {
	h := sha256.New()
	h.Write(envelopeJSON)
	h.Write([]byte("\n" + bodySHA256))
	return hex.EncodeToString(h.Sum(nil))
}

func (t *tx) insertMail(ctx context.Context, n *newMail) error {
	m, env := &n.mail, &n.mail.Envelope
	js, err := json.Marshal(env)
	if err != nil {
		return err
	}
	key := ""
	if env.From != "" {
		key = envelope.Fold(env.From)
	}
	_, err = t.exec(ctx, `INSERT INTO mails (id, state, hold_reason, sender, sender_key, envelope, checksum, generation,
		from_header, message_id, subject, header, sha256, size, body, blob, received)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		env.ID, string(m.State), text(m.HoldReason), env.From, key, string(js), seal(js, m.SHA256), m.Generation,
		text(m.FromHeader), text(m.MessageID), text(m.Subject), m.Header, m.SHA256, env.Size, n.body, n.blob, us(env.Received))
	return err
}

// insertJobs writes the jobs, the recipients and the first events. A recipient in no job is
// final at once: refused by the preflight, as one of the events says.
func (t *tx) insertJobs(ctx context.Context, n *newMail) error {
	id, now := n.mail.Envelope.ID, us(n.now)
	claims := make([]*Claim, len(n.jobs))
	for j, job := range n.jobs {
		written, err := t.insertJob(ctx, id, job, jobRow{generation: n.mail.Generation, created: us(n.now), held: n.mail.State == MailHeld})
		if err != nil {
			return err
		}
		claims[j] = &Claim{Job: written, Mail: n.mail}
	}
	final := map[string]event.Event{}
	for _, e := range n.evs {
		if e.Kind == event.Rejected || e.Kind == event.Failed {
			final[envelope.Fold(e.Recipient)] = e
		}
	}
	evs := n.evs
	open := false
	rows := make([][]any, 0, len(n.jobOf))
	for i, r := range n.mail.Envelope.Rcpts {
		state, status, detail, last, lastTime, jobID := RcptQueued, "", "", "", int64(0), int64(0)
		key := envelope.Fold(r.Addr)
		if j := n.jobOf[i]; j >= 0 {
			c := claims[j]
			jobID, open = c.Job.ID, true
			c.Job.Rcpts = append(c.Job.Rcpts, i)
			c.Rcpts = append(c.Rcpts, Rcpt{N: i, Rcpt: r, State: RcptQueued, Updated: at(now), Job: jobID})
		} else {
			e, ok := final[key]
			if !ok {
				e = t.s.ownEvent(event.Failed, &n.mail, i, "", n.now)
				e.Diagnostic = "no route for this recipient"
				e.Status, e.Action = "5.4.4", event.ActionFailed
				evs = append(evs[:len(evs):len(evs)], e)
			}
			state = RcptFailed
			if e.Kind == event.Rejected {
				state = RcptRejected
			}
			status, detail, last, lastTime = e.Status, e.Diagnostic, string(e.Kind), us(e.Time)
		}
		rows = append(rows, []any{id, i, r.Addr, key, string(state), text(status), text(detail), last, lastTime, now, jobID})
	}
	if err := t.bulk(ctx, "INSERT INTO recipients (mail_id, n, address, address_key, state, status, detail, last, last_time, updated, job_id) VALUES ", rows); err != nil {
		return err
	}
	for i := range evs {
		if err := t.insertOwn(ctx, &n.mail, &evs[i], n.now); err != nil {
			return err
		}
	}
	if !open {
		return t.finish(ctx, id, n.now)
	}
	t.queue = true
	if n.mail.State == MailQueued && t.s.o.Fresh > 0 && !t.s.d.shared {
		t.onCommit(func() { t.s.fresh.put(n.mail, n.mem, claims, n.now) })
	}
	return nil
}

// bulk inserts rows, many per statement where there are many.
func (t *tx) bulk(ctx context.Context, insert string, rows [][]any) error {
	const many = 40
	for len(rows) > 0 {
		k := 1
		if len(rows) >= many {
			k = many
		}
		marks := "(?" + strings.Repeat(", ?", len(rows[0])-1) + ")"
		args := make([]any, 0, k*len(rows[0]))
		for _, r := range rows[:k] {
			args = append(args, r...)
		}
		if _, err := t.exec(ctx, insert+marks+strings.Repeat(", "+marks, k-1), args...); err != nil {
			return err
		}
		rows = rows[k:]
	}
	return nil
}

// jobRow is what a job has beside NewJob.
type jobRow struct {
	generation, created, trouble int64
	attempts                     int
	split, held                  bool
	lastError                    string
}

// insertJob writes a job and returns it as it would be read, without its recipients.
func (t *tx) insertJob(ctx context.Context, mailID string, j NewJob, r jobRow) (Job, error) {
	accounts, err := json.Marshal(j.Accounts)
	if err != nil {
		return Job{}, err
	}
	next := us(j.NextAt)
	if next == 0 {
		next = us(t.s.now())
	}
	created := r.created
	if r.attempts == 0 && next > us(t.s.now()) { // the life of a mail that is to be sent later begins then
		created = maxOf(created, next)
	}
	out := Job{
		MailID: mailID, Route: text(j.Route), Account: j.Accounts[0], Accounts: j.Accounts, NextAt: at(next), Attempts: r.attempts,
		Created: at(created), Expires: at(us(j.Expires)), Trouble: at(r.trouble), Split: r.split, Generation: r.generation, LastError: r.lastError,
	}
	out.ID, err = t.insertID(ctx, `INSERT INTO jobs (mail_id, route, account, accounts, next_at, attempts, created, expires, trouble, split, generation, last_error, held)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
		mailID, out.Route, out.Account, string(accounts), next, r.attempts, created, us(j.Expires), r.trouble, num(r.split), r.generation, r.lastError, num(r.held))
	return out, err
}

func num(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

const mailColumns = `id, state, hold_reason, envelope, checksum, generation, from_header, message_id, subject, header, sha256, body, finished`

// scanMail reads one row of mailColumns. ErrCorrupt comes with the queue id set, as far as it is known.
func scanMail(scan func(...any) error, m *Mail) error {
	var id, state, js, sum, body string
	var finished int64
	if err := scan(&id, &state, &m.HoldReason, &js, &sum, &m.Generation, &m.FromHeader, &m.MessageID, &m.Subject, &m.Header, &m.SHA256, &body, &finished); err != nil {
		return err
	}
	m.State, m.Finished, m.BodyPurged = MailState(state), at(finished), body == bodyPurged
	if seal([]byte(js), m.SHA256) != sum {
		m.Envelope = envelope.Envelope{ID: id}
		return fmt.Errorf("envelope of %s: %w", id, ErrCorrupt)
	}
	if err := json.Unmarshal([]byte(js), &m.Envelope); err != nil {
		m.Envelope = envelope.Envelope{ID: id}
		return fmt.Errorf("envelope of %s: %w", id, ErrCorrupt)
	}
	return nil
}

func (t *tx) mail(ctx context.Context, id string) (Mail, error) {
	var m Mail
	found := false
	var bad error
	err := t.each(ctx, "SELECT "+mailColumns+" FROM mails WHERE id = ?", []any{id}, func(scan func(...any) error) error {
		found = true
		err := scanMail(scan, &m)
		if errors.Is(err, ErrCorrupt) {
			bad, err = err, nil
		}
		return err
	})
	if err == nil && !found {
		err = fmt.Errorf("mail %s: %w", id, ErrNotFound)
	}
	if err == nil {
		err = bad
	}
	return m, err
}

// mailAnyway is mail for what must go on even if the envelope is damaged: recording what the ESP
// did, ending what an operator deleted. The ledger's addresses stand in; nothing is sent from them.
func (t *tx) mailAnyway(ctx context.Context, id string) (Mail, error) {
	m, err := t.mail(ctx, id)
	if !errors.Is(err, ErrCorrupt) {
		return m, err
	}
	m.Envelope = envelope.Envelope{ID: id}
	rcpts, err := t.rcpts(ctx, nil, "mail_id = ?", id)
	for _, r := range rcpts {
		m.Envelope.Rcpts = append(m.Envelope.Rcpts, r.Rcpt)
	}
	return m, err
}

const rcptColumns = `r.n, r.address, r.state, r.account, r.provider_message_id, r.wire_message_id, r.status, r.detail, r.attempts, r.last, r.last_time, r.updated, r.job_id`

// rcpts reads recipients; env gives what is kept only there.
func (t *tx) rcpts(ctx context.Context, env *envelope.Envelope, where string, args ...any) ([]Rcpt, error) {
	var out []Rcpt
	err := t.each(ctx, "SELECT "+rcptColumns+" FROM recipients r WHERE "+where+" ORDER BY n", args, func(scan func(...any) error) error {
		r, err := scanRcpt(scan, env)
		out = append(out, r)
		return err
	})
	return out, err
}

const jobColumns = `id, mail_id, route, account, accounts, next_at, attempts, created, expires, trouble, split, generation, last_error`

func (t *tx) jobs(ctx context.Context, where string, args ...any) ([]Job, error) {
	var out []Job
	err := t.each(ctx, "SELECT "+jobColumns+" FROM jobs WHERE "+where, args, func(scan func(...any) error) error {
		var j Job
		var accounts string
		var next, created, expires, trouble, split int64
		if err := scan(&j.ID, &j.MailID, &j.Route, &j.Account, &accounts, &next, &j.Attempts, &created, &expires, &trouble, &split, &j.Generation, &j.LastError); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(accounts), &j.Accounts); err != nil {
			return fmt.Errorf("job %d: %w", j.ID, err)
		}
		j.NextAt, j.Created, j.Expires, j.Trouble, j.Split = at(next), at(created), at(expires), at(trouble), split != 0
		out = append(out, j)
		return nil
	})
	return out, err
}

const callColumns = `id, mail_id, job_id, account, recipients, ref, idempotency_key, key_expires, state, proven, attempt, started, looked, provider_message_id, http_status, detail`

// callRow is a call with what is not part of the contract.
type callRow struct {
	Call
	proven bool // an event proved that the ESP took it
}

func (t *tx) calls(ctx context.Context, where string, args ...any) ([]callRow, error) {
	var out []callRow
	err := t.each(ctx, "SELECT "+callColumns+" FROM calls WHERE "+where, args, func(scan func(...any) error) error {
		var c callRow
		var rcpts, state, looked string
		var expires, started, proven int64
		if err := scan(&c.ID, &c.MailID, &c.JobID, &c.Account, &rcpts, &c.Ref, &c.IdempotencyKey, &expires, &state, &proven, &c.Attempt, &started, &looked, &c.ProviderMessageID, &c.HTTPStatus, &c.Detail); err != nil {
			return err
		}
		if err := errors.Join(json.Unmarshal([]byte(rcpts), &c.Rcpts), json.Unmarshal([]byte(looked), &c.Looked)); err != nil {
			return fmt.Errorf("call %s: %w", c.ID, err)
		}
		c.KeyExpires, c.State, c.Started, c.proven = at(expires), CallState(state), at(started), proven != 0
		out = append(out, c)
		return nil
	})
	return out, err
}

func mustJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // ints, times and strings always marshal
	}
	return string(b)
}

// purgeBody removes a body.
func (t *tx) purgeBody(ctx context.Context, id, body, blob string, now time.Time) error {
	if err := t.dropBody(ctx, id, body, blob, now); err != nil {
		return err
	}
	_, err := t.exec(ctx, "UPDATE mails SET body = ?, blob = '' WHERE id = ?", bodyPurged, id)
	return err
}

// dropBody is purgeBody without its row in mails. A file goes later, see blobGrace.
func (t *tx) dropBody(ctx context.Context, id, body, blob string, now time.Time) error {
	if body == bodyFile {
		_, err := t.exec(ctx, "INSERT INTO dead_blobs (blob, since) VALUES (?, ?) ON CONFLICT DO NOTHING", blob, us(now))
		return err
	}
	_, err := t.exec(ctx, "DELETE FROM bodies WHERE mail_id = ?", id)
	return err
}

// hold holds a mail and its jobs.
func (t *tx) hold(ctx context.Context, id, reason string) error {
	n, err := t.exec(ctx, "UPDATE mails SET state = ?, hold_reason = ? WHERE id = ? AND state IN ('queued', 'held')", string(MailHeld), text(reason), id)
	if err != nil || n == 0 {
		return err
	}
	t.changed(id)
	_, err = t.exec(ctx, "UPDATE jobs SET held = 1 WHERE mail_id = ?", id)
	return err
}

// quarantine holds a mail whose stored data is damaged, and says so in an event.
func (s *Store) quarantine(ctx context.Context, id, what string) error {
	s.log(slog.LevelError, logCorrupt, "id", id, "reason", what)
	return s.do(ctx, 0, func(ctx context.Context, t *tx) error {
		if err := t.hold(ctx, id, "corrupt"); err != nil {
			return err
		}
		now := s.now()
		m, err := t.mailAnyway(ctx, id)
		if err != nil {
			return err
		}
		if m.State != MailHeld {
			return nil // finished: nothing is waiting to be sent from it
		}
		e := s.ownEvent(event.Deferred, &m, -1, "", now)
		e.ID = event.FactID("", "corrupt", id)
		e.Diagnostic = "mail held: " + what
		e.Status, e.Action = "4.3.0", event.ActionDelayed
		for _, r := range m.Envelope.Rcpts {
			e.Candidates = append(e.Candidates, r.Addr)
		}
		return t.insertOwn(ctx, &m, &e, now)
	})
}
