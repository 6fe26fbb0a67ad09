package deliver

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"sync"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

const (
	// maxCalls is how many calls one claim makes: results are saved after so many, and the job
	// comes back for the rest.
	maxCalls = 16
	// ownFaultWait is how long a mail waits after a fault of ours (its body cannot be read now).
	ownFaultWait = time.Minute
	// storeDownWait is how long it waits when the whole store does not answer: what is wrong is not the mail.
	storeDownWait = 2 * time.Second
	// lookAgain is the least time between two look-ups that count as "not found".
	lookAgain = 10 * time.Minute
	// lookFor is how long a Finder that cannot tell is asked before on_unknown decides.
	lookFor = time.Hour
	// keyMargin is left of an idempotency key's window for the call itself.
	keyMargin = 2 * time.Minute
	// refDigits is how much of a reference is random: 40 bits, behind the queue id.
	refDigits = 8
)

// heldUnknown marks a call whose mail was held because its answer was lost. When the mail comes back, an operator
// has released it: the call is repeated.
const heldUnknown = "held: the answer was lost"

// notFindable marks a call whose answer was lost and which the provider says it can never look up.
const notFindable = "the answer was lost and cannot be looked up"

// act is what is to be done with a call.
type act uint8

const (
	actSend act = iota // make the call: a new one, or unchanged
	actLook            // ask the Finder
	actWait            // nothing now; due again at item.due
	actVoid            // surely not accepted: give its recipients back to be planned anew
	actHold            // an operator must decide
	actDone            // nobody in it is left
)

// item is one call of a claim.
type item struct {
	call    store.Call
	mail    *translate.Mail
	left    []int // recipients without a final state
	act     act
	due     time.Time
	repeat  bool   // its answer was lost before
	recover bool   // found started and without a result
	keyed   bool   // the ESP would know the call again
	mark    string // heldUnknown or notFindable, when the call has it
	why     string

	started  bool
	out      *providers.Outcome
	err      *providers.Error
	found    providers.Found
	looked   bool
	hopeless bool // the look-up will never tell
	elapsed  time.Duration
}

// work is one claim being worked on.
type work struct {
	l     *lane
	r     *Runner
	p     *Planner
	a     *Account
	c     *store.Claim
	now   time.Time
	rt    *route.Route
	body  store.Body
	msg   *mime.Message
	probe bool
	caps  translate.Capabilities

	items  []*item
	again  bool // more is to be done at once
	starts sync.Mutex
	halt   error // why no further call is started
	held   string
	first  FirstResult

	st   store.Settlement
	done map[int]bool // recipients with a final state in st
}

// deliverClaim works on one claimed job and ends the claim, whatever happens.
func deliverClaim(l *lane, c *store.Claim, probe bool) {
	w := newWork(l, c, probe)
	defer func() {
		if w.body != nil {
			w.body.Close()
		}
	}()
	defer w.caught()
	w.run()
}

func newWork(l *lane, c *store.Claim, probe bool) *work {
	return &work{
		l: l, r: l.r, p: l.r.planner.Load(), a: l.account(), c: c, now: l.r.clock.Now(), probe: probe,
		st: store.Settlement{Claim: c, NextAt: c.Job.NextAt, Trouble: c.Job.Trouble, Split: c.Job.Split}, done: map[int]bool{},
	}
}

// caught keeps a panic on one mail from ending the process: the mail is held for an operator.
func (w *work) caught() {
	v := recover()
	if v == nil {
		return
	}
	w.r.log.panicked(w.id(), v, debug.Stack())
	st := store.Settlement{Claim: w.c, NextAt: w.now, Trouble: w.c.Job.Trouble, Split: w.c.Job.Split, Hold: "an internal error stopped its delivery"}
	for _, it := range w.items {
		if it.started {
			it.call.State, it.call.Detail = store.CallAmbiguous, heldUnknown
			st.Calls = append(st.Calls, store.CallResult{Call: it.call, Kind: providers.Ambiguous.String()})
		}
	}
	w.st = st
	w.save()
	w.probeInconclusive()
}

func (w *work) id() string { return w.c.Mail.Envelope.ID }

// ctx is that of store operations and calls in flight.
func (w *work) ctx() context.Context { return w.r.workCtx }

func (w *work) run() {
	if !w.mayStart() {
		return
	}
	if !w.open() {
		return
	}
	for _, c := range w.c.Open {
		w.items = append(w.items, w.judgeOpen(c))
	}
	if !w.planNew() {
		return
	}
	w.choose()
	w.makeCalls()
	w.now = w.r.clock.Now()
	w.decide()
	w.finish()
}

// release gives the claim back untouched.
func (w *work) release() {
	if err := w.r.q.Release(w.ctx(), w.c); err != nil && !errors.Is(err, store.ErrStale) {
		w.r.log.storeFailed("release", w.l.name, err)
	}
	w.probeInconclusive()
}

// putOff ends the claim without an attempt.
func (w *work) putOff(at time.Time, why string) {
	w.st.NextAt = at
	if why != "" {
		w.st.LastError = why
	}
	w.save()
	w.probeInconclusive()
}

// hold ends the claim with the mail held for an operator.
func (w *work) hold(reason string) {
	w.st.Hold = reason
	w.finish()
}

// probeInconclusive closes the gate again when the one mail of a probe came to no call.
func (w *work) probeInconclusive() {
	if !w.probe {
		return
	}
	if ch, ok := w.l.gate.probeInconclusive(w.r.clock.Now()); ok {
		_ = w.l.save(w.ctx(), ch)
	}
}

// mayStart asks everything that can end the claim before its body is read.
func (w *work) mayStart() bool {
	job := &w.c.Job
	if !w.l.takes(w.probe) {
		w.release()
		return false
	}
	if w.now.After(job.Expires) && w.l.gate.pausedAt(job.Expires) && !w.r.suspect(job.Created) {
		w.probe = false // nothing was learnt of the account: the next mail is the probe
		w.hold("its time ran out while its account was paused")
		return false
	}
	rt, ok := w.p.route(job.Route)
	if !ok && w.frozen() { // to plan it anew would leave it as it is
		q := query(&w.c.Mail, w.p.header(&w.c.Mail))
		q.Rcpt = w.c.Mail.Envelope.Rcpts[w.c.Open[0].Rcpts[0]].Addr
		if rt, ok = w.p.routeNow(q); !ok {
			w.hold("the answer to a call was lost, and no route takes the mail any more")
			return false
		}
	}
	if !ok || job.Generation != w.p.Generation() && !w.frozen() { // a fingerprint: an older one may be the greater number
		w.replan()
		return false
	}
	w.rt = rt
	if ok, until := w.l.gate.domain(w.now, w.fromAddr()); !ok {
		if to := w.alternative(true); to != "" {
			w.moveTo(to, "From domain paused at "+w.l.name)
			w.save()
			w.probeInconclusive()
		} else {
			w.putOff(until, "")
		}
		return false
	}
	return true
}

// frozen reports whether a call may have been accepted: then nothing is planned anew around it.
func (w *work) frozen() bool {
	return slices.ContainsFunc(w.c.Open, func(c store.Call) bool { return c.State != store.CallRetry })
}

// fromAddr is the address the ESP judges the sender by.
func (w *work) fromAddr() string {
	switch {
	case w.rt != nil && w.rt.ForceFrom != "":
		return w.rt.ForceFrom
	case w.c.Mail.FromHeader != "":
		return w.c.Mail.FromHeader
	}
	return w.c.Mail.Envelope.From
}

// replan plans the mail anew under the present configuration. If it was to be the probe of a paused account, nothing was
// learnt of that: the next mail is the probe.
func (w *work) replan() {
	// The claim is given back first: the store replaces jobs nobody is at work on.
	if err := w.r.q.Release(w.ctx(), w.c); err != nil {
		if !errors.Is(err, store.ErrStale) {
			w.r.log.storeFailed("release", w.l.name, err)
		}
	} else if err := w.r.replanMail(w.ctx(), w.id()); err != nil {
		if !errors.Is(err, store.ErrStale) { // else another of its jobs is at work
			w.r.log.ownFault("replan", w.id(), err)
		}
		w.r.pause(w.ctx(), time.Second) // not to be claimed again at once
	}
}

// open reads the mail.
func (w *work) open() bool {
	body, err := w.r.q.ClaimBody(w.ctx(), w.c)
	switch {
	case errors.Is(err, store.ErrCorrupt):
		w.release() // the store has quarantined it
		return false
	case errors.Is(err, store.ErrNotFound):
		w.hold("its content is not stored any more")
		return false
	case err != nil:
		w.r.log.ownFault("open body", w.id(), err)
		wait := ownFaultWait
		if w.r.q.Ping(w.ctx()) != nil {
			wait = storeDownWait
		}
		w.putOff(w.now.Add(wait), "the body could not be read")
		return false
	}
	w.body = body
	msg := w.r.parsed.take(w.id(), body)
	if msg == nil {
		msg, err = mime.Parse(body, body.Size(), w.p.c.Limits)
	}
	if err != nil {
		var le *mime.LimitError
		if errors.As(err, &le) {
			w.hold("it cannot be read any more: " + le.Error())
			return false
		}
		w.r.log.ownFault("parse", w.id(), err)
		w.putOff(w.now.Add(ownFaultWait), "the body could not be read")
		return false
	}
	w.msg = msg
	w.caps = without(w.a.Provider.Capabilities(), w.l.gate.lost())
	return true
}

// rcpts gives the envelope recipients with these indexes.
func (w *work) rcpts(ns []int) []envelope.Rcpt {
	out := make([]envelope.Rcpt, len(ns))
	for i, n := range ns {
		out[i] = w.c.Mail.Envelope.Rcpts[n]
	}
	return out
}

func (w *work) apply(rcpts []envelope.Rcpt) ([]*translate.Mail, error) {
	mails, _, err := translate.Apply(translate.Request{
		Envelope: w.c.Mail.Envelope, Rcpts: rcpts, Message: w.msg, Caps: w.caps,
		Settings: w.p.settings(w.c.Mail.Envelope, w.rt, w.a, w.c.Job.Split),
	})
	return mails, err
}

// render builds the call for exactly these recipients, the same each time.
func (w *work) render(ns []int) (*translate.Mail, error) {
	mails, err := w.apply(w.rcpts(ns))
	if err != nil {
		return nil, err
	}
	if len(mails) != 1 {
		return nil, fmt.Errorf("the call of %d recipients would now be %d calls", len(ns), len(mails))
	}
	return mails[0], nil
}

// judgeOpen decides what to do with an unsettled call.
func (w *work) judgeOpen(c store.Call) *item {
	it := &item{call: c}
	for _, n := range c.Rcpts {
		if slices.Contains(w.c.Job.Rcpts, n) {
			it.left = append(it.left, n)
		}
	}
	partial := len(it.left) < len(c.Rcpts)
	keyed := !c.KeyExpires.IsZero() && w.now.Add(keyMargin).Before(c.KeyExpires)
	mail, err := w.render(c.Rcpts)
	if err == nil {
		mail.Ref, mail.IdempotencyKey = c.Ref, c.IdempotencyKey
		it.mail = mail
		if !mail.Options.SendAt.After(w.now) {
			mail.Options.SendAt = time.Time{}
		}
	}
	switch {
	case len(it.left) == 0:
		it.act = actDone
	case c.State == store.CallRetry:
		if err != nil || partial || c.Account != w.l.name || !c.KeyExpires.IsZero() && !keyed {
			it.act = actVoid
		}
	default:
		// A call whose answer was lost has a detail; one that was started and never settled has none.
		it.repeat, it.recover = true, c.State == store.CallOpen || c.Detail == ""
		if c.Detail == heldUnknown || c.Detail == notFindable {
			it.mark = c.Detail
		}
		if it.recover {
			w.r.log.callUnknown(c.Account, w.id(), c.Ref, errors.New("started before a restart, without a result"))
		}
		switch {
		case c.Account != w.l.name: // only its own account can be asked
			it.act, it.due = actWait, w.now.Add(lastProbe)
		case err != nil:
			it.act, it.why = actHold, "the answer to a call was lost and it cannot be repeated unchanged: "+err.Error()
		case keyed && !partial:
			it.act, it.keyed = actSend, true
		default:
			w.judgeLost(it, partial)
		}
	}
	return it
}

// judgeLost decides on a call whose answer was lost and that no key protects.
func (w *work) judgeLost(it *item, partial bool) {
	c := &it.call
	_, finds := w.a.Provider.(providers.Finder)
	switch {
	case finds && len(c.Looked) > 0 && w.now.Before(c.Looked[len(c.Looked)-1].Add(lookAgain)):
		it.act, it.due = actWait, c.Looked[len(c.Looked)-1].Add(lookAgain)
	case finds && c.Detail != notFindable && (len(c.Looked) > 0 || w.now.Before(c.Started.Add(lookFor))):
		it.act = actLook
	case c.Detail != heldUnknown && w.p.c.OnUnknown == UnknownHold:
		it.act, it.why = actHold, "the answer of "+w.l.name+" was lost: it may have been sent (on_unknown = \"hold\")"
	case partial:
		it.act = actVoid
	default:
		it.act = actSend
	}
}

// planNew makes calls for the recipients that are in none.
func (w *work) planNew() bool {
	if !w.suppress() {
		return false
	}
	if len(w.c.Rcpts) == 0 {
		return true
	}
	ns := make([]int, len(w.c.Rcpts))
	byAddr := make(map[string]int, len(w.c.Rcpts))
	for i, r := range w.c.Rcpts {
		ns[i] = r.N
		byAddr[w.c.Mail.Envelope.Rcpts[r.N].Addr] = r.N
	}
	mails, err := w.apply(w.rcpts(ns))
	if err != nil {
		return w.cannotExpress(ns, byAddr, err)
	}
	for _, m := range mails {
		var left []int
		for _, r := range m.Rcpts {
			left = append(left, byAddr[r.Addr])
		}
		if len(mails) > 1 {
			// A later attempt renders this call from its recipients alone; so does the first.
			if alone, err := w.render(left); err == nil {
				alone.Losses = m.Losses
				m = alone
				left = left[:0]
				for _, r := range m.Rcpts {
					left = append(left, byAddr[r.Addr])
				}
			}
		}
		it := &item{mail: m, left: left}
		if hold := m.HoldUntil(); hold.After(w.now) {
			it.act, it.due = actWait, hold
			w.items = append(w.items, it)
			continue
		}
		if !m.Options.SendAt.After(w.now) {
			m.Options.SendAt = time.Time{}
		}
		ref := newRef(w.id())
		it.call = store.Call{
			ID: ref, MailID: w.id(), JobID: w.c.Job.ID, Account: w.l.name, Rcpts: left, Ref: ref, IdempotencyKey: ref,
		}
		if ttl := w.caps.IdempotencyTTL; ttl > 0 {
			it.call.KeyExpires = w.now.Add(ttl)
		}
		m.Ref, m.IdempotencyKey = ref, ref
		w.items = append(w.items, it)
	}
	return true
}

// newRef is a reference for a call: the queue id, so that a person finds the mail from it, and random
// digits. It is fit for a tag: a-z, 0-9 and a dash.
func newRef(id string) string {
	const digits = "0123456789abcdefghjkmnpqrstvwxyz"
	var b [refDigits]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	for i := range b {
		b[i] = digits[b[i]&31]
	}
	return strings.ToLower(id) + "-" + string(b[:])
}

// cannotExpress handles recipients this account can never serve: another account of the job, else they fail.
func (w *work) cannotExpress(ns []int, byAddr map[string]int, err error) bool {
	if to := w.alternative(false); to != "" {
		w.moveTo(to, "cannot be expressed for "+w.l.name)
		w.save()
		w.probeInconclusive()
		return false
	}
	r := refusalOf(w.l.name, err)
	var te *translate.RefusalError
	if errors.As(err, &te) && len(te.Rcpts) > 0 {
		ns = ns[:0]
		for _, rc := range te.Rcpts {
			if n, ok := byAddr[rc.Addr]; ok {
				ns = append(ns, n)
			}
		}
		w.again = true
	}
	if w.p.c.SoftBounce {
		w.hold(r.Text + " (soft_bounce)")
		return false
	}
	for _, n := range ns {
		w.final(n, store.RcptFailed, fact{kind: event.Failed, n: n, account: w.l.name, attempt: w.attempt(n), status: r.Status(), text: r.Text})
	}
	if w.st.Hold != "" { // received mail is kept
		w.hold(w.st.Hold)
		return false
	}
	return true
}

// attempt is the number of the call that is made for a recipient now.
func (w *work) attempt(n int) int {
	for _, r := range w.c.Rcpts {
		if r.N == n {
			return r.Attempts + 1
		}
	}
	return w.c.Job.Attempts + 1
}

// choose limits the claim to so many calls, those made least often first, so that one that always fails does not keep
// the others waiting.
func (w *work) choose() {
	sort.SliceStable(w.items, func(i, j int) bool { return w.items[i].call.Attempt < w.items[j].call.Attempt })
	fresh := slices.ContainsFunc(w.items, func(it *item) bool { return it.act == actSend && it.call.Attempt == 0 })
	n := 0
	kept := w.items[:0]
	for _, it := range w.items {
		if fresh && it.act == actSend && it.call.State == store.CallRetry && w.now.Sub(it.call.Started) < roundTime {
			// It failed just now, in the same round; the others were only too many for one claim.
			it.act, it.due = actWait, it.call.Started.Add(w.p.c.Retry.Wait(w.c.Job.Attempts+1, w.id()))
		}
		if it.act == actSend || it.act == actLook {
			if n++; n > maxCalls {
				w.again = true
				if it.call.Attempt > 0 {
					it.act, it.due = actWait, w.now
				} else {
					continue // never started: its recipients stay free
				}
			}
		}
		kept = append(kept, it)
	}
	w.items = kept
}

func (w *work) makeCalls() {
	var busy []*item
	for _, it := range w.items {
		if it.act == actSend || it.act == actLook {
			busy = append(busy, it)
		}
	}
	if len(busy) == 1 {
		w.make(busy[0])
		return
	}
	var wg sync.WaitGroup
	for _, it := range busy {
		wg.Go(func() { w.make(it) })
	}
	wg.Wait()
}

// make takes a call slot and makes one call, or one look-up.
func (w *work) make(it *item) {
	defer func() {
		if v := recover(); v != nil {
			w.r.log.panicked(w.id(), v, debug.Stack())
			it.err = &providers.Error{Provider: w.a.Info.Name, Op: "send", Kind: providers.Ambiguous, Msg: "internal error"}
			w.stop(nil, "an internal error stopped its delivery")
		}
	}()
	release, ok := w.l.acquire(w.probe)
	if !ok {
		return
	}
	defer release()
	if w.halted() {
		return
	}
	if it.act == actLook {
		w.look(it)
		return
	}
	w.starts.Lock()
	started, err := w.r.q.Start(w.ctx(), w.c, []store.Call{it.call})
	w.starts.Unlock()
	if err == nil && len(started) != 1 {
		err = fmt.Errorf("store started %d calls instead of one", len(started))
	}
	if err != nil {
		w.stop(err, "")
		return
	}
	it.call, it.started = started[0], true
	if it.call.Attempt == 1 && w.c.Job.Attempts == 0 {
		w.r.waited(w.l.name, max(0, w.r.clock.Now().Sub(w.c.Job.Created)))
	}
	begin := w.r.clock.Mono()
	out, err := w.a.Provider.Send(w.ctx(), it.mail)
	it.elapsed = w.r.clock.Mono() - begin
	w.take(it, out, err)
	w.observe(it)
}

// take reads the answer of Send, and what it says of the account at once, so that other mail does not run into the same wall.
func (w *work) take(it *item, out *providers.Outcome, err error) {
	now := w.r.clock.Now()
	if err == nil && out == nil {
		err = &providers.Error{Provider: w.a.Info.Name, Op: "send", Kind: providers.Ambiguous, Msg: "the provider gave no outcome"}
	}
	if err == nil {
		it.out = out
		w.judgeOutcome(it, now)
		return
	}
	var e *providers.Error
	if !errors.As(err, &e) {
		e = &providers.Error{Provider: w.a.Info.Name, Op: "send", Kind: providers.Transient, Err: err}
	}
	if e.Kind == providers.Unknown || e.Unlisted && e.Kind == providers.Permanent {
		c := *e
		c.Kind = providers.Transient
		e = &c
	}
	it.err = e
	w.judgeError(e, now)
}

func (w *work) judgeOutcome(it *item, now time.Time) {
	from := w.fromAddr()
	kinds := map[providers.Kind]string{}
	judged := false
	for _, ro := range it.out.Rcpts {
		if ro.Verdict == providers.Deferred {
			kinds[ro.Kind] = ro.Detail
		} else {
			judged = true
		}
	}
	switch {
	case judged || len(kinds) == 0:
		for _, ch := range w.l.gate.works(now, from, w.probe) {
			_ = w.l.save(w.ctx(), ch)
		}
	}
	if text, ok := kinds[providers.Operator]; ok && !judged {
		w.judgeError(&providers.Error{Provider: w.a.Info.Name, Op: "send", Kind: providers.Operator, Msg: text}, now)
	}
	if text, ok := kinds[providers.RateLimited]; ok {
		w.judgeError(&providers.Error{Provider: w.a.Info.Name, Op: "send", Kind: providers.RateLimited, Msg: text, RetryAfter: it.out.Throttle}, now)
	} else if it.out.Throttle > 0 {
		w.change(w.l.gate.throttle(now, it.out.Throttle, "asked for by the provider"))
	}
	if it.out.Warning != "" {
		w.r.log.warning(w.l.name, w.id(), event.Clean(it.out.Warning, event.MaxText))
	}
}

func (w *work) judgeError(e *providers.Error, now time.Time) {
	if e.Unlisted {
		w.change(w.l.gate.unlistedFault(now, e, w.id()))
		if w.probe {
			return
		}
	}
	switch e.Kind {
	case providers.RateLimited:
		w.change(w.l.gate.throttle(now, e.RetryAfter, callText(e)))
	case providers.Operator:
		if e.Scope == providers.ScopeFeature && canDrop(e.Feature) {
			if w.l.gate.lose(e.Feature) {
				w.r.log.featureLost(w.l.name, e.Feature, callText(e))
			}
			return
		}
		w.change(w.l.gate.operatorFault(now, e, w.fromAddr()))
	case providers.Permanent:
		for _, ch := range w.l.gate.works(now, w.fromAddr(), w.probe) {
			_ = w.l.save(w.ctx(), ch)
		}
	default:
		if w.probe {
			w.change(w.l.gate.probeFailed(now, callText(e)))
		}
	}
}

func (w *work) change(ch change, ok bool) {
	if ok {
		_ = w.l.save(w.ctx(), ch)
	}
}

// stop keeps the claim from starting further calls.
func (w *work) stop(err error, hold string) {
	w.starts.Lock()
	defer w.starts.Unlock()
	if err == nil {
		err = errors.New(hold)
	}
	if w.halt == nil {
		w.halt = err
	}
	if hold != "" {
		w.held = hold
	}
}

func (w *work) halted() bool {
	w.starts.Lock()
	defer w.starts.Unlock()
	return w.halt != nil
}

func (w *work) observe(it *item) {
	outcome := "accepted"
	switch {
	case it.err != nil:
		outcome = it.err.Kind.String()
	case !slices.ContainsFunc(it.out.Rcpts, func(o providers.RcptOutcome) bool { return o.Verdict == providers.Accepted }):
		outcome = "refused"
	}
	w.r.observe(w.l.name, outcome, it.elapsed)
}

// look asks the provider whether it has taken a call whose answer was lost.
func (w *work) look(it *item) {
	ctx, cancel := context.WithTimeout(w.ctx(), checkTimeout)
	defer cancel()
	out, found, err := w.a.Provider.(providers.Finder).Find(ctx, it.mail, it.call.Started)
	it.looked = true
	it.hopeless = err == nil && found == providers.CannotTell
	if err != nil {
		found = providers.CannotTell
		var e *providers.Error
		if errors.As(err, &e) && (e.Kind == providers.RateLimited || e.Kind == providers.Operator) {
			w.judgeError(e, w.r.clock.Now())
		}
	}
	it.found = found
	if found == providers.Present {
		if out == nil {
			out = providers.AllAccepted(it.mail, it.call.ProviderMessageID)
		}
		it.out = out
	}
}
