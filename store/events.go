package store

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// withholdFor is how long an event that matches no call waits for the answer of one in flight.
const withholdFor = 2 * time.Minute

// ownEvent is an event the store writes itself; n < 0: not about one recipient.
func (s *Store) ownEvent(k event.Kind, m *Mail, n int, account string, now time.Time) event.Event {
	e := event.Event{V: event.Version, ID: envelope.NewID(now), Time: now, Seen: now, Kind: k, QueueID: m.Envelope.ID, Account: account}
	if n >= 0 {
		e.Recipient = m.Envelope.Rcpts[n].Addr
	}
	if account != "" && s.o.Provider != nil {
		e.Provider = s.o.Provider(account)
	}
	return e
}

// finalEvent writes the final event of a recipient for which the caller gave none.
func (t *tx) finalEvent(ctx context.Context, m *Mail, r *Rcpt, provider string, now time.Time) error {
	e := t.s.finalOf(m, r, provider, now)
	return t.insertOwn(ctx, m, &e, now)
}

// finalOf is the final event of a recipient in its present state.
func (s *Store) finalOf(m *Mail, r *Rcpt, provider string, now time.Time) event.Event {
	kind, action, status := event.Failed, event.ActionFailed, "5.0.0"
	switch r.State {
	case RcptSent:
		kind, action, status = event.Sent, event.ActionRelayed, "2.0.0"
	case RcptRejected:
		kind = event.Rejected
	case RcptDeleted:
		status = "5.7.0"
	}
	e := s.ownEvent(kind, m, r.N, r.Account, now)
	if e.Provider == "" {
		e.Provider = provider
	}
	e.Action, e.Status, e.Diagnostic, e.ProviderMessageID, e.Attempt = action, status, r.Detail, r.ProviderMessageID, r.Attempts
	if r.Status != "" {
		e.Status = r.Status
	}
	if r.State == RcptDeleted && e.Diagnostic == "" {
		e.Diagnostic = "deleted by an operator"
	}
	return e
}

// fill completes an event with what the mail knows.
func fill(e *event.Event, m *Mail, n int) {
	env := &m.Envelope
	e.QueueID = env.ID
	if e.Sender == "" {
		e.Sender = env.From
	}
	if e.MessageID == "" {
		e.MessageID = m.MessageID
	}
	if e.Subject == "" {
		e.Subject = m.Subject
	}
	if e.EnvID == "" {
		e.EnvID = env.EnvID
	}
	if n >= 0 && n < len(env.Rcpts) && e.ORCPT == "" {
		e.ORCPT = env.Rcpts[n].ORCPT
	}
}

func defaults(e *event.Event, now time.Time) {
	if e.V == 0 {
		e.V = event.Version
	}
	if e.Seen.IsZero() {
		e.Seen = now
	}
	if e.Time.IsZero() {
		e.Time = e.Seen
	}
	e.Time, e.Seen = e.Time.UTC(), e.Seen.UTC()
}

// insertOwn writes an event of ours about a mail of ours.
func (t *tx) insertOwn(ctx context.Context, m *Mail, e *event.Event, now time.Time) error {
	n, fresh, err := t.insertAbout(ctx, m, e, now)
	if err != nil || !fresh || n < 0 {
		return err
	}
	return t.applyFact(ctx, e.QueueID, n, e)
}

// insertAbout writes an event of ours about a mail of ours. n is the recipient it is about, -1: none;
// fresh: it was not known.
func (t *tx) insertAbout(ctx context.Context, m *Mail, e *event.Event, now time.Time) (n int, fresh bool, err error) {
	defaults(e, now)
	if e.ID == "" {
		e.ID = envelope.NewID(now)
	}
	n = -1
	if e.Recipient != "" {
		n = recipientIn(&m.Envelope, e.Recipient)
	}
	fill(e, m, n)
	fact := ""
	if n >= 0 && queueFinal(e.Kind) {
		fact = "final|" + e.QueueID + "|" + strconv.Itoa(n)
	}
	fresh, err = t.insertEvent(ctx, e, fact)
	return n, fresh, err
}

// insertEvent appends to the outbox. False: the event, or another copy of its fact, is there already.
func (t *tx) insertEvent(ctx context.Context, e *event.Event, fact string) (bool, error) {
	data, err := e.AppendJSON(nil)
	if err != nil {
		return false, fmt.Errorf("event %s: %w", e.ID, err)
	}
	var f any
	if fact != "" && e.Revision > 0 { // a revision tells no fact anew
		var n int64
		if err := t.get(ctx, []any{&n}, "SELECT count(*) FROM events WHERE id = ?", text(e.ID)); err != nil {
			return false, err
		} else if n > 0 {
			fact = ""
		}
	}
	if fact != "" {
		f = text(fact)
	}
	rcpt := ""
	if e.Recipient != "" {
		rcpt = text(envelope.Fold(e.Recipient))
	}
	n, err := t.exec(ctx, `INSERT INTO events (id, revision, fact, kind, time, seen, account, mail_id, recipient, provider_message_id, ref, raw_id, data)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING`,
		text(e.ID), e.Revision, f, string(e.Kind), us(e.Time), us(e.Seen), e.Account, text(e.QueueID), rcpt, text(e.ProviderMessageID), text(e.Ref), text(e.RawID), string(data))
	if n > 0 {
		t.events = true
	}
	return n > 0, err
}

// weight orders facts for newer; 0: says nothing about the delivery.
func weight(k event.Kind) int {
	switch k {
	case event.Queued, event.Sent:
		return 1
	case event.Deferred:
		return 2
	case event.Delivered, event.Rejected, event.Failed:
		return 3
	case event.Bounced:
		return 4
	case event.Complained, event.Unsubscribed:
		return 5
	}
	return 0
}

// newer reports whether fact b replaces fact a as the newest known of a recipient. Event time
// decides, but two clocks are compared: whatever the ESP says came after our hand-over.
func newer(a event.Kind, at int64, b event.Kind, bt int64) bool {
	wa, wb := weight(a), weight(b)
	switch {
	case wb == 0:
		return false
	case wa <= 1 && wb > 1, wa == 0:
		return true
	case wb == 1:
		return wa <= 2 && bt >= at
	case at == bt:
		return wb >= wa
	}
	return bt > at
}

func (t *tx) applyFact(ctx context.Context, mailID string, n int, e *event.Event) error {
	if weight(e.Kind) == 0 {
		return nil
	}
	var last string
	var lastTime int64
	err := t.get(ctx, []any{&last, &lastTime}, "SELECT last, last_time FROM recipients WHERE mail_id = ? AND n = ?"+t.s.d.forUpdate, mailID, n)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil || !newer(event.Kind(last), lastTime, e.Kind, us(e.Time)) {
		return err
	}
	_, err = t.exec(ctx, `UPDATE recipients SET last = ?, last_time = ?, updated = ?, status = CASE WHEN ? = '' THEN status ELSE ? END,
		detail = CASE WHEN ? = '' THEN detail ELSE ? END WHERE mail_id = ? AND n = ?`,
		string(e.Kind), us(e.Time), us(t.s.now()), text(e.Status), text(e.Status), text(e.Diagnostic), text(e.Diagnostic), mailID, n)
	return err
}

// byRef is the condition for the calls of a reference, given twice: mostly it is the id of its call.
const byRef = "id = ? AND ref = id UNION ALL SELECT " + callColumns + " FROM calls WHERE ref <> id AND ref = ? ORDER BY id"

// match is what an event belongs to.
type match struct {
	mail  Mail
	call  *callRow // nil when only the mail is known
	cands []int    // recipients it may be about
	n     int      // the one it is about, -1 when not certain
	byRef bool
}

// correlate finds the mail, call and recipient of an event, nil when there is none.
func (t *tx) correlate(ctx context.Context, e *event.Event) (*match, error) {
	m := &match{n: -1}
	sameAccount := func(a string) bool { return e.Account == "" || a == e.Account }
	id := ""
	if e.Ref != "" {
		calls, err := t.calls(ctx, byRef, e.Ref, e.Ref)
		if err != nil {
			return nil, err
		}
		for i := range calls {
			if sameAccount(calls[i].Account) {
				m.call, m.byRef, id = &calls[i], true, calls[i].MailID
				m.cands = calls[i].Rcpts
			}
		}
	}
	if id == "" && e.ProviderMessageID != "" {
		// An id of one recipient is more precise than one of the whole call.
		err := t.each(ctx, "SELECT mail_id, n, account FROM recipients WHERE provider_message_id <> '' AND provider_message_id = ? ORDER BY mail_id, n LIMIT 2000", []any{e.ProviderMessageID},
			func(scan func(...any) error) error {
				var mailID, account string
				var n int
				if err := scan(&mailID, &n, &account); err != nil {
					return err
				}
				if sameAccount(account) && (id == "" || id == mailID) {
					id = mailID
					m.cands = append(m.cands, n)
				}
				return nil
			})
		if err != nil {
			return nil, err
		}
		calls, err := t.calls(ctx, "provider_message_id <> '' AND provider_message_id = ? ORDER BY id", e.ProviderMessageID)
		if err != nil {
			return nil, err
		}
		for i := range calls {
			if sameAccount(calls[i].Account) && (id == "" || id == calls[i].MailID) {
				m.call, id = &calls[i], calls[i].MailID
				if len(m.cands) == 0 {
					m.cands = calls[i].Rcpts
				}
			}
		}
	}
	all := false
	if id == "" && e.QueueID != "" {
		id, all = e.QueueID, true
	}
	if id == "" {
		return nil, nil
	}
	var err error
	if m.mail, err = t.mailAnyway(ctx, id); errors.Is(err, ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	env := &m.mail.Envelope
	if all {
		for i := range env.Rcpts {
			m.cands = append(m.cands, i)
		}
	}
	m.cands = slices.DeleteFunc(slices.Clone(m.cands), func(n int) bool { return n < 0 || n >= len(env.Rcpts) })
	switch {
	case e.Recipient != "":
		m.n = pick(env, m.cands, e.Recipient)
	case len(m.cands) == 1 && !all:
		m.n = m.cands[0]
	}
	if m.call == nil && m.n >= 0 {
		calls, err := t.calls(ctx, "mail_id = ? ORDER BY id", id)
		if err != nil {
			return nil, err
		}
		for i := range calls {
			if slices.Contains(calls[i].Rcpts, m.n) && sameAccount(calls[i].Account) && calls[i].State != CallRefused {
				m.call = &calls[i]
			}
		}
	}
	return m, nil
}

// pick finds addr among the candidates. Some ESPs report addresses in lower case, so a
// spelling that differs in case alone is taken if only one candidate has it.
func pick(env *envelope.Envelope, cands []int, addr string) int {
	found := -1
	for _, n := range cands {
		if envelope.Equal(env.Rcpts[n].Addr, addr) {
			return n
		}
	}
	for _, n := range cands {
		if strings.EqualFold(envelope.Fold(env.Rcpts[n].Addr), envelope.Fold(addr)) {
			if found >= 0 {
				return -1
			}
			found = n
		}
	}
	return found
}

// placed says what became of an event.
type placed int

const (
	unmatched placed = iota // nothing of ours, as far as is known
	waiting                 // it proves a call that is on the wire: the answer's transaction adopts it
	known                   // it, or its fact, was there
	stored
)

// place finds an event's mail and writes it. last: it has waited long enough.
func (t *tx) place(ctx context.Context, e *event.Event, now time.Time, last bool) (placed, error) {
	m, err := t.correlate(ctx, e)
	if err != nil || m == nil {
		return unmatched, err
	}
	if t.s.d.shared { // look again, now that no other node changes it
		if err := t.lockMail(ctx, m.mail.Envelope.ID); err != nil {
			return unmatched, err
		}
		if m, err = t.correlate(ctx, e); err != nil || m == nil {
			return unmatched, err
		}
	}
	env := &m.mail.Envelope
	// Our reference in an event says that the ESP has the call, whatever we know of its answer.
	if m.byRef && (m.call.State == CallOpen || m.call.State == CallAmbiguous || m.call.State == CallRetry) {
		if m.call.State == CallOpen && !last {
			busy, err := t.busy(ctx, m.call.JobID)
			if err != nil {
				return unmatched, err
			}
			if busy { // the answer is about to come, and says more
				_, err := t.exec(ctx, "UPDATE calls SET proven = 1 WHERE id = ?", m.call.ID)
				return waiting, err
			}
		}
		if e.ProviderMessageID != "" && m.call.ProviderMessageID == "" && (len(m.call.Rcpts) == 1 || m.n < 0) {
			m.call.ProviderMessageID = e.ProviderMessageID
		}
		if m.call.State == CallOpen && last {
			if _, err := t.exec(ctx, "UPDATE calls SET proven = 1 WHERE id = ?", m.call.ID); err != nil {
				return unmatched, err
			}
		} else if err := t.acceptProven(ctx, m.call, e.Provider, now); err != nil {
			return unmatched, err
		}
	}
	if err := t.noteWire(ctx, m, e); err != nil {
		return unmatched, err
	}
	fill(e, &m.mail, m.n)
	if e.Account == "" && m.call != nil {
		e.Account = m.call.Account
	}
	if e.Recipient == "" {
		if m.n >= 0 {
			e.Recipient = env.Rcpts[m.n].Addr
		} else if len(e.Candidates) == 0 {
			for _, n := range m.cands {
				e.Candidates = append(e.Candidates, env.Rcpts[n].Addr)
			}
		}
	}
	fact := ""
	if m.n >= 0 {
		call := ""
		if m.call != nil {
			call = m.call.ID
		}
		fact = factKey(e.Kind, env.ID, strconv.Itoa(m.n), call)
	}
	fresh, err := t.insertEvent(ctx, e, fact)
	if err != nil {
		return unmatched, err
	}
	if !fresh {
		return known, nil
	}
	if m.n >= 0 {
		if e.ProviderMessageID != "" {
			// QUIRK: bulk interfaces answer with an id of the batch ("bulk:ID"); the mail's own id comes with the events.
			if _, err := t.exec(ctx, `UPDATE recipients SET provider_message_id = ? WHERE mail_id = ? AND n = ? AND state = 'sent'
				AND (provider_message_id = '' OR provider_message_id LIKE 'bulk:%')`, text(e.ProviderMessageID), env.ID, m.n); err != nil {
				return unmatched, err
			}
		}
		if err := t.applyFact(ctx, env.ID, m.n, e); err != nil {
			return unmatched, err
		}
	}
	return stored, nil
}

// noteWire keeps the Message-ID that an ESP gave a mail in place of the sender's: replies and other servers' logs name it.
func (t *tx) noteWire(ctx context.Context, m *match, e *event.Event) error {
	wire := cmp.Or(e.Wire, e.MessageID)
	if wire == "" || wire == m.mail.MessageID || m.call == nil || e.Kind == event.Inbound || e.Kind == event.InboundFailed {
		return nil
	}
	about := m.cands // of one call: they share the mail
	if m.n >= 0 {
		about = []int{m.n}
	}
	for _, n := range about {
		if _, err := t.exec(ctx, "UPDATE recipients SET wire_message_id = ? WHERE mail_id = ? AND n = ? AND wire_message_id <> ?", text(wire), m.mail.Envelope.ID, n, text(wire)); err != nil {
			return err
		}
	}
	return nil
}

// factKey names facts that are true at most once, whichever way the news comes.
func factKey(k event.Kind, of ...string) string {
	if k != event.Delivered && k != event.Bounced && k != event.Complained {
		return ""
	}
	return string(k) + "|" + strings.Join(of, "|")
}

// acceptProven settles a call whose own answer is missing but which the ESP has, as an event showed.
func (t *tx) acceptProven(ctx context.Context, call *callRow, provider string, now time.Time) error {
	if call.State == CallAccepted {
		return nil
	}
	call.State = CallAccepted
	if _, err := t.exec(ctx, "UPDATE calls SET state = ?, proven = 1, provider_message_id = ?, detail = ? WHERE id = ?",
		string(CallAccepted), text(call.ProviderMessageID), "an event with our reference proves that it was accepted", call.ID); err != nil {
		return err
	}
	if err := t.noteLost(ctx, "", "id = ?", call.ID); err != nil {
		return err
	}
	if _, err := t.exec(ctx, "UPDATE attempts SET state = ? WHERE call_id = ? AND attempt = ?", string(CallAccepted), call.ID, call.Attempt); err != nil {
		return err
	}
	m, err := t.mailAnyway(ctx, call.MailID)
	if err != nil {
		return err
	}
	rcpts, err := t.rcpts(ctx, &m.Envelope, "mail_id = ? AND job_id <> 0", call.MailID)
	if err != nil {
		return err
	}
	jobs := map[int64]bool{call.JobID: true}
	for i := range rcpts {
		r := &rcpts[i]
		if !slices.Contains(call.Rcpts, r.N) || r.State.Final() {
			continue
		}
		jobs[r.Job] = true
		r.State, r.Account, r.Status, r.Detail = RcptSent, call.Account, "2.0.0", ""
		if call.ProviderMessageID != "" {
			r.ProviderMessageID = call.ProviderMessageID
		}
		if err := t.setRcpt(ctx, call.MailID, RcptResult{N: r.N, State: RcptSent, Account: r.Account, ProviderMessageID: r.ProviderMessageID, Status: r.Status}, now); err != nil {
			return err
		}
		if err := t.finalEvent(ctx, &m, r, provider, now); err != nil {
			return err
		}
	}
	for job := range jobs {
		if _, err := t.dropEmptyJob(ctx, job, false); err != nil {
			return err
		}
	}
	if err := t.finish(ctx, call.MailID, now); err != nil {
		return err
	}
	t.queue = true
	return t.adopt(ctx, call, nil, now)
}

// adopt takes in the withheld events that belong to a call.
func (t *tx) adopt(ctx context.Context, call *callRow, rcpts []RcptResult, now time.Time) error {
	evs, err := t.withheldEvents(ctx, "ref = ? ORDER BY received", call.Ref)
	if err != nil {
		return err
	}
	ids := []string{}
	if call.ProviderMessageID != "" {
		ids = append(ids, call.ProviderMessageID)
	}
	for _, r := range rcpts {
		if r.ProviderMessageID != "" && !slices.Contains(ids, r.ProviderMessageID) {
			ids = append(ids, r.ProviderMessageID)
		}
	}
	for _, id := range ids {
		more, err := t.withheldEvents(ctx, "provider_message_id = ? AND account = ? ORDER BY received", id, call.Account)
		if err != nil {
			return err
		}
		for _, e := range more {
			if e.Ref != call.Ref {
				evs = append(evs, e)
			}
		}
	}
	for i := range evs {
		if err := t.release(ctx, &evs[i], now, false); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) withheldEvents(ctx context.Context, where string, args ...any) ([]event.Event, error) {
	var out []event.Event
	err := t.each(ctx, "SELECT data, ref, raw_id, wire_message_id FROM withheld WHERE "+where, args, func(scan func(...any) error) error {
		var data string
		var e event.Event
		if err := scan(&data, &e.Ref, &e.RawID, &e.Wire); err != nil {
			return err
		}
		ref, raw, wire := e.Ref, e.RawID, e.Wire
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("withheld event: %w", err)
		}
		e.Ref, e.RawID, e.Wire = ref, raw, wire
		out = append(out, e)
		return nil
	})
	return out, err
}

// release moves a withheld event to the outbox, matched or, if it has waited long enough, not.
func (t *tx) release(ctx context.Context, e *event.Event, now time.Time, last bool) error {
	if _, err := t.exec(ctx, "DELETE FROM withheld WHERE id = ? AND revision = ?", text(e.ID), e.Revision); err != nil {
		return err
	}
	p, err := t.place(ctx, e, now, last)
	if err != nil || p == stored || p == known {
		return err
	}
	if !last {
		return t.withhold(ctx, e, now)
	}
	_, err = t.insertEvent(ctx, e, unmatchedFact(e))
	return err
}

func unmatchedFact(e *event.Event) string {
	if e.Recipient == "" || e.ProviderMessageID == "" {
		return ""
	}
	return factKey(e.Kind, "", e.Account, e.ProviderMessageID, envelope.Fold(e.Recipient))
}

func (t *tx) withhold(ctx context.Context, e *event.Event, now time.Time) error {
	data, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = t.exec(ctx, "INSERT INTO withheld (id, revision, account, provider_message_id, wire_message_id, ref, raw_id, received, data) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		text(e.ID), e.Revision, e.Account, text(e.ProviderMessageID), text(e.Wire), text(e.Ref), text(e.RawID), us(now), string(data))
	return err
}

// Record stores events from outside, with the request they came in (nil: none), and returns how
// many of them were new; when it returns nil all of them are durable. An event finds its mail by our
// reference, or account and provider message id, and is completed from it. An event already
// known, by id or as another copy of one fact, is dropped. One that matches nothing while its
// account has calls in flight is withheld from the followers until the answer is stored, or
// ReleaseWithheld lets it go.
func (s *Store) Record(ctx context.Context, raw *RawRequest, evs ...event.Event) (fresh int, err error) {
	var req *storedRequest
	if raw != nil {
		if req, err = packRequest(raw, s.now()); err != nil {
			return 0, fmt.Errorf("record: %w", err)
		}
	}
	if len(evs) == 0 && req != nil {
		err := s.do(ctx, len(req.body), req.insert)
		if err != nil {
			return 0, fmt.Errorf("record: %w", err)
		}
		return 0, nil
	}
	// A batch of thousands goes in several transactions: recording is idempotent, and nobody else should wait so long.
	for chunk := range slices.Chunk(evs, 200) {
		var n int
		size := 1024 * len(chunk)
		if req != nil {
			size += len(req.body)
		}
		err := s.do(ctx, size, func(ctx context.Context, t *tx) error {
			n = 0
			now := s.now()
			for _, e := range chunk {
				if req != nil && e.RawID == "" {
					e.RawID = req.id
				}
				ok, err := t.record(ctx, &e, now)
				if err != nil {
					return err
				}
				if ok {
					n++
				}
			}
			if n > 0 && req != nil {
				return req.insert(ctx, t)
			}
			return nil
		})
		if err != nil {
			return fresh, fmt.Errorf("record: %w", err)
		}
		fresh += n
	}
	return fresh, nil
}

func (t *tx) record(ctx context.Context, e *event.Event, now time.Time) (bool, error) {
	defaults(e, now)
	if e.ID == "" {
		e.ID = event.FactID(e.Account, string(e.Kind), e.ProviderMessageID, e.ProviderEventID, e.ProviderEvent, e.Recipient, e.Ref, e.Time.Format(time.RFC3339Nano))
	}
	var dup int64
	err := t.get(ctx, []any{&dup}, `SELECT (SELECT count(*) FROM events WHERE id = ? AND revision >= ?) + (SELECT count(*) FROM withheld WHERE id = ? AND revision >= ?)`,
		text(e.ID), e.Revision, text(e.ID), e.Revision)
	if err != nil || dup > 0 {
		return false, err
	}
	p, err := t.place(ctx, e, now, false)
	switch {
	case err != nil:
		return false, err
	case p == known:
		return false, nil
	case p == stored:
		return true, nil
	case p == waiting:
		return true, t.withhold(ctx, e, now)
	}
	if (e.ProviderMessageID != "" || e.Ref != "") && e.Kind != event.Inbound && e.Kind != event.InboundFailed {
		var flying int64
		err := t.get(ctx, []any{&flying}, "SELECT count(*) FROM (SELECT 1 FROM calls WHERE account = ? AND state IN ('open', 'ambiguous') LIMIT 1) AS c", e.Account)
		if err != nil {
			return false, err
		}
		if flying > 0 {
			return true, t.withhold(ctx, e, now)
		}
		if t.s.d.shared { // the last call's answer may have been stored between the two looks
			if p, err := t.place(ctx, e, now, false); err != nil || p != unmatched {
				if p == waiting && err == nil {
					err = t.withhold(ctx, e, now)
				}
				return p != known, err
			}
		}
	}
	return t.insertEvent(ctx, e, unmatchedFact(e))
}

// ReleaseWithheld gives out the events that have waited long enough for an answer, or whose
// account has nothing in flight any more. It returns how many; the bridge calls it every few seconds.
func (s *Store) ReleaseWithheld(ctx context.Context) (int, error) {
	total := 0
	for {
		now := s.now()
		var evs []event.Event
		pick := func(t *tx) error {
			var err error
			evs, err = t.withheldEvents(ctx, `received <= ? OR NOT EXISTS (SELECT 1 FROM calls WHERE calls.account = withheld.account AND calls.state IN ('open', 'ambiguous'))
				ORDER BY received LIMIT 200`, us(now.Add(-withholdFor)))
			return err
		}
		if err := pick(s.read()); err != nil || len(evs) == 0 {
			return total, err
		}
		err := s.do(ctx, 1024*len(evs), func(ctx context.Context, t *tx) error {
			if err := pick(t); err != nil { // as they are now
				return err
			}
			for i := range evs {
				if err := t.release(ctx, &evs[i], now, true); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return total, fmt.Errorf("release withheld events: %w", err)
		}
		total += len(evs)
	}
}

// Follow returns up to n events after cursor in the order of the outbox, and the cursor after
// them; "" begins with the oldest that is kept. A cursor stays good over restarts.
func (s *Store) Follow(ctx context.Context, cursor string, n int) (evs []event.Event, next string, err error) {
	var xid, seq int64
	if cursor != "" {
		if xid, seq, err = parseCursor(cursor); err != nil {
			return nil, cursor, err
		}
	}
	if n <= 0 {
		n = 100
	}
	args := []any{seq, n}
	if s.d.shared {
		args = []any{xid, seq, n}
	}
	next = cursor
	err = s.read().each(ctx, fmt.Sprintf(s.d.follow, "data, ref, raw_id"), args, func(scan func(...any) error) error {
		var data, ref, raw string
		var e event.Event
		if err := scan(&xid, &seq, &data, &ref, &raw); err != nil {
			return err
		}
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return fmt.Errorf("event %d: %w", seq, err)
		}
		e.Ref, e.RawID = ref, raw
		evs = append(evs, e)
		return nil
	})
	if err != nil {
		return nil, cursor, fmt.Errorf("follow events: %w", err)
	}
	if len(evs) > 0 {
		next = s.cursorText(xid, seq)
	}
	return evs, next, nil
}

// LastCursor is the cursor after all events there are: following from it gives only new ones.
func (s *Store) LastCursor(ctx context.Context) (string, error) {
	var xid, seq int64
	query := "SELECT 0, seq FROM events ORDER BY seq DESC LIMIT 1"
	if s.d.shared {
		query = "SELECT xid, seq FROM events WHERE xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint ORDER BY xid DESC, seq DESC LIMIT 1"
	}
	err := s.read().get(ctx, []any{&xid, &seq}, query)
	switch {
	case errors.Is(err, ErrNotFound):
		return "", nil
	case err != nil:
		return "", err
	}
	return s.cursorText(xid, seq), nil
}

// seenSlack is how far the order of the outbox may differ from that of seen.
const seenSlack = time.Minute

// CursorBefore is a cursor from which following gives every event that became known since a time, and few others.
func (s *Store) CursorBefore(ctx context.Context, since time.Time) (string, error) {
	var lo, hi int64
	err := s.read().get(ctx, []any{&lo, &hi}, "SELECT COALESCE((SELECT seq FROM events ORDER BY seq LIMIT 1), 0), COALESCE((SELECT seq FROM events ORDER BY seq DESC LIMIT 1), 0)")
	if err != nil {
		return "", err
	}
	cutoff := us(since.Add(-seenSlack))
	for lo < hi {
		mid := lo + (hi-lo)/2
		var seq, seen int64
		if err := s.read().get(ctx, []any{&seq, &seen}, "SELECT seq, seen FROM events WHERE seq >= ? ORDER BY seq LIMIT 1", mid); err != nil {
			return "", err
		}
		if seen < cutoff {
			lo = seq + 1
		} else {
			hi = mid
		}
	}
	if !s.d.shared {
		return s.cursorText(0, lo-1), nil
	}
	// Transactions write out of order: begin at the oldest among those near.
	var xid int64
	err = s.read().get(ctx, []any{&xid}, "SELECT COALESCE(min(xid), 1) FROM (SELECT xid FROM events WHERE seq >= ? ORDER BY seq LIMIT 1000) AS near", lo)
	return s.cursorText(xid, 0), err
}

func parseCursor(c string) (xid, seq int64, err error) {
	x, q, ok := strings.Cut(c, ".")
	if !ok {
		x, q = "0", c
	}
	xid, err1 := strconv.ParseInt(x, 10, 64)
	seq, err2 := strconv.ParseInt(q, 10, 64)
	if err1 != nil || err2 != nil {
		return 0, 0, fmt.Errorf("store: %q is no cursor", event.Clean(c, 40))
	}
	return xid, seq, nil
}

// Cursor returns a stored cursor, "" when there is none.
func (s *Store) Cursor(ctx context.Context, name string) (string, error) {
	var v string
	err := s.read().get(ctx, []any{&v}, "SELECT value FROM cursors WHERE name = ?", name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return v, err
}

// SetCursor stores a cursor. The value is the caller's own; it may hold more than Follow's. ErrStale: another node
// leads the follower of this name (Lead), nothing was stored.
func (s *Store) SetCursor(ctx context.Context, name, cursor string) error {
	return s.do(ctx, 0, func(ctx context.Context, t *tx) error { return t.setCursor(ctx, name, cursor) })
}

func (t *tx) setCursor(ctx context.Context, name, cursor string) error {
	if err := t.fenced(ctx, name); err != nil {
		return err
	}
	_, err := t.exec(ctx, "INSERT INTO cursors (name, value, updated) VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value, updated = excluded.updated",
		name, cursor, us(t.s.now()))
	return err
}

// Events returns events as the filter says: ID is a queue id, Address and Recipient name the
// recipient, After is an event id.
func (s *Store) Events(ctx context.Context, f Filter) ([]event.Event, error) {
	var where []string
	var args []any
	add := func(cond string, arg any) {
		where, args = append(where, cond), append(args, arg)
	}
	if f.ID != "" {
		add("mail_id <> '' AND mail_id = ?", f.ID)
	}
	for _, a := range []string{f.Recipient, f.Address} {
		if a != "" {
			add("recipient <> '' AND recipient = ?", envelope.Fold(a))
		}
	}
	if f.Account != "" {
		add("account = ?", f.Account)
	}
	if f.Kind != "" {
		add("kind = ?", string(f.Kind))
	}
	if !f.Since.IsZero() {
		add("seen >= ?", us(f.Since))
	}
	if !f.Until.IsZero() {
		add("seen < ?", us(f.Until))
	}
	order, cmp := "DESC", "<"
	if f.Oldest {
		order, cmp = "ASC", ">"
	}
	if f.After != "" {
		add("seq "+cmp+" (SELECT max(seq) FROM events WHERE id = ?)", f.After)
	}
	query := "SELECT data, ref, raw_id FROM events"
	if f.Window > 0 {
		add("seq > (SELECT max(seq) FROM events) - ?", f.Window)
	}
	if len(where) > 0 {
		query += " WHERE " + strings.Join(where, " AND ")
	}
	var out []event.Event
	err := s.read().each(ctx, query+" ORDER BY seq "+order+" LIMIT ?", append(args, limit(f)), func(scan func(...any) error) error {
		e, err := scanEvent(scan)
		out = append(out, e)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return out, nil
}

func scanEvent(scan func(...any) error) (event.Event, error) {
	var data, ref, raw string
	var e event.Event
	if err := scan(&data, &ref, &raw); err != nil {
		return e, err
	}
	err := json.Unmarshal([]byte(data), &e)
	e.Ref, e.RawID = ref, raw
	return e, err
}

func limit(f Filter) int {
	if f.Limit <= 0 {
		return 100
	}
	return f.Limit
}

// storedRequest is a request ready to be written.
type storedRequest struct {
	id, account, kind, method, url, header string
	body                                   []byte
	received                               int64
}

// packers are used again: each has close to a megabyte of tables, far more than a request.
var packers = sync.Pool{New: func() any { return gzip.NewWriter(io.Discard) }}

func packRequest(r *RawRequest, now time.Time) (*storedRequest, error) {
	var b bytes.Buffer
	z := packers.Get().(*gzip.Writer)
	defer packers.Put(z)
	z.Reset(&b)
	if _, err := z.Write(r.Body); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	h, err := json.Marshal(r.Header)
	if err != nil {
		return nil, err
	}
	id, received := r.ID, r.Received
	if id == "" {
		id = envelope.NewID(now)
	}
	if received.IsZero() {
		received = now
	}
	return &storedRequest{text(id), text(r.Account), r.Kind, text(r.Method), text(r.URL), string(h), b.Bytes(), us(received)}, nil
}

func (r *storedRequest) insert(ctx context.Context, t *tx) error {
	_, err := t.exec(ctx, "INSERT INTO requests (id, account, kind, method, url, header, body, received) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
		r.id, r.account, r.kind, r.method, r.url, r.header, r.body, r.received)
	return err
}

const requestColumns = "id, account, kind, method, url, header, body, received"

func scanRequest(scan func(...any) error) (RawRequest, error) {
	var r RawRequest
	var header string
	var body []byte
	var received int64
	if err := scan(&r.ID, &r.Account, &r.Kind, &r.Method, &r.URL, &header, &body, &received); err != nil {
		return r, err
	}
	r.Received = at(received)
	if err := json.Unmarshal([]byte(header), &r.Header); err != nil {
		return r, err
	}
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err == nil {
		r.Body, err = io.ReadAll(z)
	}
	if err != nil {
		return r, fmt.Errorf("request %s: %w: %w", r.ID, ErrCorrupt, err)
	}
	return r, nil
}

// Request returns a stored request, ErrNotFound when it is purged or unknown.
func (s *Store) Request(ctx context.Context, id string) (*RawRequest, error) {
	var r *RawRequest
	err := s.read().each(ctx, "SELECT "+requestColumns+" FROM requests WHERE id = ?", []any{id}, func(scan func(...any) error) error {
		got, err := scanRequest(scan)
		r = &got
		return err
	})
	if err == nil && r == nil {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("request %s: %w", id, err)
	}
	return r, nil
}

// Requests returns up to n stored requests received at or after since, oldest first; after is
// the id of the last one seen, "" at first.
func (s *Store) Requests(ctx context.Context, since time.Time, after string, n int) ([]RawRequest, error) {
	where, args := "received >= ?", []any{us(since)}
	if after != "" {
		where = "(received, id) > (SELECT received, id FROM requests WHERE id = ?) AND received >= ?"
		args = []any{after, us(since)}
	}
	var out []RawRequest
	err := s.read().each(ctx, "SELECT "+requestColumns+" FROM requests WHERE "+where+" ORDER BY received, id LIMIT ?", append(args, n), func(scan func(...any) error) error {
		r, err := scanRequest(scan)
		out = append(out, r)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("stored requests: %w", err)
	}
	return out, nil
}
