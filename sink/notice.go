package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"smtpbridge/dsn"
	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

// dsnBatch is what some events come to.
type dsnBatch struct {
	d       *DSN
	set     *DSNSettings
	ledgers map[string]*store.Ledger
	reports []*report
	put     []store.Notice // put off, or settled without a mail
}

func newDSNBatch(d *DSN, set *DSNSettings) *dsnBatch {
	return &dsnBatch{d: d, set: set, ledgers: map[string]*store.Ledger{}}
}

// report is one DSN to be written: recipients of one mail, and what became of them.
type report struct {
	ledger  *store.Ledger
	action  string
	notices []store.Notice
	events  []event.Event
}

// actions says what an event may be told as.
var actions = map[event.Kind]string{
	event.Failed: event.ActionFailed, event.Rejected: event.ActionFailed, event.Bounced: event.ActionFailed,
	event.Deferred: event.ActionDelayed, event.Sent: event.ActionRelayed, event.Delivered: event.ActionDelivered,
}

// wishes are the words for an action in NOTIFY (RFC 3461 4.1) and in the settings.
var wishes = map[string]struct{ notify, on string }{
	event.ActionFailed: {"FAILURE", "failed"}, event.ActionDelayed: {"DELAY", "delayed"},
	event.ActionRelayed: {"SUCCESS", "delivered"}, event.ActionDelivered: {"SUCCESS", "delivered"},
}

// wanted reports whether the sender wants to hear of an action: as NOTIFY says, else as the settings do.
func wanted(notify, on []string, action string) bool {
	w := wishes[action]
	if len(notify) > 0 {
		return slices.Contains(notify, w.notify)
	}
	return slices.Contains(on, w.on)
}

// add weighs one event. due is the notice that was put off for it, nil when the event has just come.
func (b *dsnBatch) add(ctx context.Context, e event.Event, due *store.Notice) error {
	action := actions[e.Kind]
	if action == "" || e.Revision > 0 || e.Recipient == "" || e.QueueID == "" || e.Sender == "" {
		return nil
	}
	l, err := b.ledger(ctx, e.QueueID, action, due != nil)
	if err == nil && l == nil && due != nil {
		b.settle(*due, "its mail can no longer be read")
	}
	if err != nil || l == nil {
		return err
	}
	n := recipient(&l.Mail.Envelope, e.Recipient)
	if n < 0 {
		return nil
	}
	note := store.Notice{MailID: e.QueueID, N: n, Action: action, EventID: e.ID}
	if due == nil && (!wanted(l.Mail.Envelope.Rcpts[n].Notify, b.set.On, action) || l.Notice(n, action) != nil || b.has(note)) {
		return nil
	}
	v := b.weigh(l, n, action, &e)
	switch {
	case v.why != "" && (v.final || due != nil):
		b.settle(note, v.why)
	case v.why != "":
	case v.at.After(b.d.Now()):
		note.Due = v.at
		b.put = append(b.put, note)
	default:
		b.join(l, note, e)
	}
	return nil
}

// verdict is when to tell of an event, or why not; final: nor later.
type verdict struct {
	at    time.Time
	why   string
	final bool
}

func (b *dsnBatch) weigh(l *store.Ledger, n int, action string, e *event.Event) verdict {
	env, rcpt := &l.Mail.Envelope, &l.Rcpts[n]
	never := func(why string) verdict { return verdict{why: why, final: action == event.ActionFailed} }
	waiting, gone := l.Mail.Unheard(b.d.Now())
	switch {
	case env.From == "":
		return never("the mail has the null sender")
	case strings.HasSuffix(envelope.Domain(env.From), ".invalid"):
		return never("the sender's domain does not exist (RFC 2606)") // an erased one among them
	case automatic(l.Mail.Header, b.set.Hostname):
		return never("the mail is an automatic reply")
	case !b.set.Permit(env):
		return never("the user or listener may not send from the sender's domain")
	case gone:
		return never("the client never heard that the mail was taken")
	case waiting:
		return verdict{at: b.d.Now().Add(unheardAgain)}
	}
	over := rcpt.Last == event.Failed || rcpt.Last == event.Rejected || rcpt.Last == event.Bounced
	switch action {
	case event.ActionFailed:
		switch {
		case rcpt.State == store.RcptDeleted:
			return never("deleted by an operator")
		case rcpt.Last == event.Delivered && rcpt.LastTime.After(e.Time):
			return verdict{why: "it was delivered after all"}
		}
	case event.ActionDelayed:
		if rcpt.Last != event.Deferred {
			return verdict{why: "the delay is over"}
		}
		return verdict{at: env.Received.Add(b.set.DelayAfter)}
	case event.ActionRelayed:
		if over || b.set.Delivers(e.Account) {
			return verdict{why: "another report follows"}
		}
	case event.ActionDelivered:
		if over {
			return verdict{why: "it failed after all"}
		}
	}
	return verdict{}
}

// automatic reports whether a mail is a reply that a program wrote, or one of our own reports come back
// (RFC 3834 2). What a program sends of its own accord (auto-generated) is ordinary mail: its bounces matter.
func automatic(header []byte, hostname string) bool {
	for name, value := range fields(header) {
		switch strings.ToLower(name) {
		case "auto-submitted":
			word := strings.FieldsFunc(value, func(r rune) bool { return strings.ContainsRune(" \t;(", r) })
			if len(word) > 0 && strings.EqualFold(word[0], "auto-replied") {
				return true
			}
		case strings.ToLower(dsn.LoopHeader):
			if strings.EqualFold(strings.TrimSpace(value), dsn.Daemon(hostname)) {
				return true
			}
		}
	}
	return false
}

// fields gives the fields of a header block, unfolded.
func fields(header []byte) func(yield func(name, value string) bool) {
	return func(yield func(name, value string) bool) {
		var field []byte
		flush := func() bool {
			name, value, ok := strings.Cut(string(field), ":")
			field = nil
			return !ok || yield(strings.TrimSpace(name), value)
		}
		for line := range bytes.Lines(header) {
			line = bytes.TrimRight(line, "\r\n")
			if len(line) > 0 && line[0] != ' ' && line[0] != '\t' && !flush() {
				return
			}
			field = append(field, line...)
		}
		flush()
	}
}

// ledger reads that of a mail once; nil: there is nothing (any more) to tell of. Most mail is sent and delivered and nobody
// wants to hear of it: that takes one look at its envelope.
func (b *dsnBatch) ledger(ctx context.Context, id, action string, always bool) (*store.Ledger, error) {
	if l, ok := b.ledgers[id]; ok {
		return l, nil
	}
	gone := func(err error) bool { return errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) }
	if action != event.ActionFailed && !always && !slices.Contains(b.set.On, wishes[action].on) {
		m, err := b.d.Store.Mail(ctx, id)
		if err != nil && !gone(err) {
			return nil, err
		}
		if !slices.ContainsFunc(m.Envelope.Rcpts, func(r envelope.Rcpt) bool { return wanted(r.Notify, nil, action) }) {
			return nil, nil
		}
	}
	if len(b.ledgers) >= ledgersHeld {
		if err := b.send(ctx, ""); err != nil {
			return nil, err
		}
		*b = *newDSNBatch(b.d, b.set)
	}
	l, err := b.d.Store.Ledger(ctx, id)
	if gone(err) {
		l, err = nil, nil // purged, or quarantined
	}
	if err == nil {
		b.ledgers[id] = l
	}
	return l, err
}

// recipient finds the one an event is about, -1 when that is not certain. Some ESPs report addresses in lower case.
func recipient(env *envelope.Envelope, addr string) int {
	found := -1
	for i := range env.Rcpts {
		switch a := env.Rcpts[i].Addr; {
		case a == addr:
			return i
		case strings.EqualFold(envelope.Fold(a), envelope.Fold(addr)):
			if found >= 0 {
				found = len(env.Rcpts)
			} else {
				found = i
			}
		}
	}
	if found == len(env.Rcpts) {
		return -1
	}
	return found
}

func (b *dsnBatch) has(n store.Notice) bool {
	same := func(o store.Notice) bool { return o.MailID == n.MailID && o.N == n.N && o.Action == n.Action }
	return slices.ContainsFunc(b.put, same) || slices.ContainsFunc(b.reports, func(r *report) bool { return slices.ContainsFunc(r.notices, same) })
}

// settle notes that a notice will not be given.
func (b *dsnBatch) settle(n store.Notice, why string) {
	n.Due, n.Reason = time.Time{}, why
	b.put = append(b.put, n)
	if n.Action == event.ActionFailed {
		b.d.Log.Info("no DSN is written", "event", "dsn.none", "id", n.MailID, "n", n.N, "reason", why)
	}
}

// join puts an event into the report on its mail.
func (b *dsnBatch) join(l *store.Ledger, n store.Notice, e event.Event) {
	i := slices.IndexFunc(b.reports, func(r *report) bool { return r.ledger == l && r.action == n.Action })
	if i < 0 {
		i = len(b.reports)
		b.reports = append(b.reports, &report{ledger: l, action: n.Action})
	}
	r := b.reports[i]
	r.notices, r.events = append(r.notices, n), append(r.events, e)
}

// send notes what was put off and writes the reports. The last one takes the cursor along, where there is one.
func (b *dsnBatch) send(ctx context.Context, cursor string) error {
	if len(b.put) > 0 {
		if err := b.d.Store.PutNotices(ctx, b.put...); err != nil {
			return err
		}
	}
	for i, r := range b.reports {
		name := ""
		if cursor != "" && i == len(b.reports)-1 {
			name = DSNName
		}
		if err := b.write(ctx, r, name, cursor); err != nil {
			return err
		}
	}
	return nil
}

// write makes one DSN and enqueues it.
func (b *dsnBatch) write(ctx context.Context, r *report, name, cursor string) error {
	full, err := b.capped(ctx, r)
	if err != nil {
		return err
	}
	if full {
		b.drop(r, "too many DSN mails to this sender")
		return b.d.Store.PutNotices(ctx, r.notices...)
	}
	out := b.compose(r)
	if r.action == event.ActionFailed && r.ledger.Mail.Envelope.Ret == "FULL" { // RFC 3461 6.2: of failures only
		body, err := b.d.Store.Body(ctx, out.QueueID)
		switch {
		case err == nil:
			defer body.Close()
			out.Original, out.Size = body, body.Size()
		case errors.Is(err, store.ErrNotFound), errors.Is(err, store.ErrCorrupt):
			out.Withheld = "this system does not keep messages that it has sent"
		default:
			return err
		}
	}
	var refused *Refused
	err = b.enqueue(ctx, r, out, name, cursor)
	if errors.As(err, &refused) && out.Original != nil {
		out.Original, out.Withheld = nil, "it cannot be sent on the way this report takes"
		err = b.enqueue(ctx, r, out, name, cursor)
	}
	switch {
	case errors.As(err, &refused):
		b.drop(r, "the account for DSN mail cannot take it: "+refused.Text)
		return b.d.Store.PutNotices(ctx, r.notices...)
	case errors.Is(err, store.ErrTold):
		return b.again(ctx, r, name, cursor)
	}
	return err
}

// again is for a report part of which was told meanwhile, by another bridge on the same store.
func (b *dsnBatch) again(ctx context.Context, r *report, name, cursor string) error {
	l, err := b.d.Store.Ledger(ctx, r.ledger.Mail.Envelope.ID)
	if errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCorrupt) {
		return nil
	}
	if err != nil {
		return err
	}
	rest := &report{ledger: l, action: r.action}
	for i, n := range r.notices {
		if have := l.Notice(n.N, n.Action); have == nil || !have.Due.IsZero() {
			rest.notices, rest.events = append(rest.notices, n), append(rest.events, r.events[i])
		}
	}
	if len(rest.notices) == 0 || len(rest.notices) == len(r.notices) {
		return nil
	}
	return b.write(ctx, rest, name, cursor)
}

// capped reports whether the sender has had all the DSN mail he may have.
func (b *dsnBatch) capped(ctx context.Context, r *report) (bool, error) {
	if b.set.MaxPerHour <= 0 {
		return false, nil
	}
	n, err := b.d.Store.NoticesSince(ctx, r.ledger.Mail.Envelope.From, b.d.Now().Add(-time.Hour))
	return n >= b.set.MaxPerHour, err
}

// drop settles the notices of a report that is not written.
func (b *dsnBatch) drop(r *report, why string) {
	attrs := []any{"event", "dsn.dropped", "id", r.ledger.Mail.Envelope.ID, "recipients", len(r.notices), "action", r.action, "reason", why}
	if b.set.Addresses {
		attrs = append(attrs, "sender", r.ledger.Mail.Envelope.From)
	}
	b.d.Log.Warn("a DSN is not written: the events have what it would say", attrs...)
	for i := range r.notices {
		r.notices[i].Due, r.notices[i].Reason = time.Time{}, event.Clean(why, event.MaxText)
	}
}

func (b *dsnBatch) compose(r *report) *dsn.Report {
	m, now := &r.ledger.Mail, b.d.Now()
	out := &dsn.Report{
		Hostname: b.set.Hostname, ID: envelope.NewID(now), Date: now, To: m.Envelope.From, Action: r.action, EnvID: m.Envelope.EnvID,
		QueueID: m.Envelope.ID, MessageID: m.MessageID, Arrival: m.Envelope.Received, Header: m.Header,
	}
	for i, e := range r.events {
		rc := dsn.Recipient{Event: e}
		rc.Event.Recipient, rc.Event.ORCPT = m.Envelope.Rcpts[r.notices[i].N].Addr, m.Envelope.Rcpts[r.notices[i].N].ORCPT
		if r.action == event.ActionDelayed && !r.ledger.Rcpts[r.notices[i].N].State.Final() {
			rc.Until = r.ledger.Expires
		}
		out.Recipients = append(out.Recipients, rc)
	}
	return out
}

func (b *dsnBatch) enqueue(ctx context.Context, r *report, out *dsn.Report, name, cursor string) error {
	rec, err := b.d.Store.Begin(ctx)
	if err != nil {
		return err
	}
	defer rec.Abort()
	tr, err := out.Write(rec)
	if err != nil {
		return err
	}
	body, err := rec.Body()
	if err != nil {
		return err
	}
	mail, jobs, err := b.set.Plan(envelope.Envelope{
		ID: out.ID, Rcpts: []envelope.Rcpt{{Addr: out.To}}, EightBit: tr.EightBit, UTF8: tr.UTF8, Size: body.Size(), Received: out.Date.UTC(),
	}, body)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("plan the DSN of %s: %w", out.QueueID, err)
	}
	if err := b.d.Store.Enqueue(ctx, rec, mail, jobs, r.notices, name, cursor); err != nil {
		return err
	}
	attrs := []any{"event", "dsn.queued", "id", out.QueueID, "dsn", out.ID, "action", r.action, "recipients", len(r.notices)}
	if b.set.Addresses {
		attrs = append(attrs, "sender", out.To)
	}
	b.d.Log.Info("DSN queued", attrs...)
	return nil
}
