package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

const (
	// lookFirst is when a lost answer is first looked up: search indexes lag behind.
	lookFirst = time.Minute
	// lookRetry is when a look-up that could not tell is repeated.
	lookRetry = 5 * time.Minute
	// roundTime tells calls that failed just now from those of an earlier round.
	roundTime = 30 * time.Second
	// startAgain is how long a mail waits whose call could not be noted in the store.
	startAgain = 10 * time.Second
	// saveFirst and saveLast bound the wait between two tries to save a result.
	saveFirst = time.Second
	saveLast  = 30 * time.Second
	// saveBlocks is how many failed tries keep new calls from starting although the store works otherwise.
	saveBlocks = 10
)

// tally is what decide gathers over all calls of a claim.
type tally struct {
	next     time.Time // earliest time the job is due again
	counted  bool      // an attempt for the retry schedule
	operator bool      // an operator fault: another account may be tried at once
	limited  bool      // rate limited
	trouble  bool      // transient failure or rate limit
	unknown  map[int]bool
	tried    map[int]bool
	last     string
	status   string
}

func (t *tally) due(at time.Time) {
	if t.next.IsZero() || at.Before(t.next) {
		t.next = at
	}
}

// untried takes the recipients of a call back that says nothing about them: they are in a new one at once.
func (t *tally) untried(it *item) {
	for _, n := range it.left {
		delete(t.tried, n)
	}
}

// decide turns what the calls came to into one settlement.
func (w *work) decide() {
	t := &tally{unknown: map[int]bool{}, tried: map[int]bool{}}
	for _, it := range w.items {
		w.decideItem(t, it)
	}
	if w.held != "" {
		w.st.Hold = w.held
	}
	left := w.left()
	if len(left) == 0 {
		w.st.Hold = ""
		return
	}
	defer func() { w.count(t, left) }()
	w.st.LastError = event.Clean(t.last, event.MaxText)
	w.st.Counted = t.counted && !w.again
	switch {
	case t.trouble && w.st.Trouble.IsZero():
		w.st.Trouble = w.now
	case !t.trouble:
		w.st.Trouble = time.Time{}
	}
	switch {
	case w.st.Hold != "":
		w.st.NextAt = w.now
	case w.expired(t):
		w.expire(t, left)
	case w.failover(t):
	case w.again:
		w.st.NextAt = w.now
	case !t.next.IsZero():
		w.st.NextAt = t.next
	default:
		w.st.NextAt = w.now
	}
}

func (w *work) left() []int {
	var out []int
	for _, n := range w.c.Job.Rcpts {
		if !w.done[n] {
			out = append(out, n)
		}
	}
	return out
}

func (w *work) decideItem(t *tally, it *item) {
	if it.recover {
		w.decideFound(it)
	}
	switch {
	case it.err != nil:
		w.decideError(t, it)
	case it.out != nil:
		w.decideOutcome(t, it)
	case it.looked:
		w.decideLook(t, it)
	case it.act == actDone:
		w.settleCall(it, store.CallAccepted, "")
	case it.act == actVoid:
		w.void(it, "planned anew")
		w.again = true
	case it.act == actHold:
		it.call.Detail = heldUnknown
		w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
		w.st.Hold = it.why
	case it.act == actWait:
		if it.recover {
			w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
		}
		t.due(it.due)
	default: // the account closed before its turn
		if it.recover {
			w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
		}
		_, due := w.l.gate.closedUntil(w.now, "")
		if w.halt != nil {
			due = w.now.Add(startAgain)
			w.r.log.ownFault("start", w.id(), w.halt)
		}
		t.due(due)
	}
}

// decideFound handles a call that was started and never settled, before what is made of it now. From here on it has a
// detail, so that it is found once only.
func (w *work) decideFound(it *item) {
	it.call.Detail = "the bridge stopped before the answer to this call came"
	if it.keyed {
		return
	}
	// A second copy is possible from here on.
	for _, n := range it.left {
		w.st.Events = append(w.st.Events, w.event(fact{
			kind: event.Deferred, n: n, call: &it.call, mail: it.mail, account: w.l.name, attempt: w.attempt(n),
			status: kindStatus(providers.Ambiguous), text: it.call.Detail, retryAt: w.now, unknown: true,
			step: "found without a result", // a repeat that fails is another fact
		}))
	}
}

// settleCall records the state of a call.
func (w *work) settleCall(it *item, s store.CallState, kind string) {
	it.call.State = s
	w.st.Calls = append(w.st.Calls, store.CallResult{Call: it.call, Elapsed: it.elapsed, Kind: kind})
}

// void closes a call that was surely not accepted and frees its recipients.
func (w *work) void(it *item, why string) {
	if it.call.Detail == "" {
		it.call.Detail = why
	}
	w.settleCall(it, store.CallRefused, "")
	for _, n := range it.left {
		w.requeue(n)
	}
}

func (w *work) requeue(n int) {
	if !w.done[n] {
		w.st.Rcpts = append(w.st.Rcpts, store.RcptResult{N: n, State: store.RcptQueued, Account: w.l.name})
	}
}

// final gives a recipient its last state in the queue, and the one event that says so.
func (w *work) final(n int, s store.RcptState, f fact) {
	if w.done[n] {
		return
	}
	if w.c.Mail.Envelope.Inbound != "" && s != store.RcptSent {
		w.keepInbound(n, f)
		return
	}
	w.done[n] = true
	ev := w.event(f)
	w.st.Rcpts = append(w.st.Rcpts, store.RcptResult{
		N: n, State: s, Account: f.account, ProviderMessageID: f.providerID, Status: ev.Status, Detail: ev.Diagnostic,
	})
	w.st.Events = append(w.st.Events, ev)
	rcpt := ev.Recipient
	if s == store.RcptSent {
		w.first.Sent++
		w.r.log.sent(f.account, w.id(), rcpt, f.providerID, f.attempt)
		return
	}
	w.first.Refused++
	w.first.Reply = ev.SMTPReply
	w.r.log.refused(string(f.kind), f.account, w.id(), rcpt, ev.Status, ev.Diagnostic, f.attempt)
}

// keepInbound holds received mail that its target refuses, or does not take in time: nobody would want a bounce of it
// but its sender, a stranger. An operator decides.
func (w *work) keepInbound(n int, f fact) {
	f.kind, f.step = event.InboundFailed, "attempt "+strconv.Itoa(f.attempt)
	ev := w.event(f)
	ev.RejectReason = ""
	w.st.Events = append(w.st.Events, ev)
	w.requeue(n)
	w.st.Hold = "received mail could not be delivered: " + ev.Diagnostic
	w.r.log.refused(string(f.kind), f.account, w.id(), ev.Recipient, ev.Status, ev.Diagnostic, f.attempt)
}

// deferred tells that a recipient will be tried again.
func (w *work) deferred(it *item, n int, k providers.Kind, status, text string, at time.Time) {
	unknown := k == providers.Ambiguous
	w.st.Events = append(w.st.Events, w.event(fact{
		kind: event.Deferred, n: n, call: &it.call, mail: it.mail, account: w.l.name, attempt: w.attempt(n),
		status: classStatus(status, 4, kindStatus(k)), text: text, retryAt: at, unknown: unknown,
		step: fmt.Sprintf("start %d", it.call.Attempt),
	}))
}

// retryAt is when the next attempt of the schedule is due. The last one comes when the mail's time is over.
func (w *work) retryAt() time.Time {
	at := w.now.Add(w.p.c.Retry.Wait(w.c.Job.Attempts+1, w.id()))
	if e := w.c.Job.Expires; e.After(w.now) && at.After(e) {
		at = e
	}
	return at
}

func (w *work) decideError(t *tally, it *item) {
	e := it.err
	it.call.HTTPStatus, it.call.Detail = e.HTTPStatus, callText(e)
	t.last, t.status = it.call.Detail, e.Status
	kind := e.Kind.String()
	for _, n := range it.left {
		t.tried[n] = true
	}
	if e.Kind == providers.Ambiguous {
		w.r.log.callUnknown(w.l.name, w.id(), it.call.Ref, e)
	} else {
		w.r.log.callFailed(w.l.name, w.id(), kind, e.HTTPStatus, it.call.Attempt, e)
	}
	switch e.Kind {
	case providers.RateLimited:
		t.limited, t.trouble = true, true
		_, until := w.l.gate.closedUntil(w.now, w.fromAddr())
		w.settleCall(it, w.notTaken(it), kind)
		t.due(later(until, w.now.Add(time.Second)))
	case providers.Operator:
		if e.Scope == providers.ScopeFeature && canDrop(e.Feature) {
			w.void(it, "planned anew without "+e.Feature)
			w.again = true
			t.untried(it)
			return
		}
		t.operator = true
		w.settleCall(it, w.notTaken(it), kind)
		ok, until := w.l.gate.closedUntil(w.now, w.fromAddr())
		if ok {
			until = w.retryAt() // the fault was of one recipient only
			t.counted = true
		}
		t.due(until)
	case providers.Ambiguous:
		w.decideUnknown(t, it)
	case providers.Permanent:
		w.decidePermanent(t, it)
	default:
		t.counted, t.trouble = true, true
		at := w.retryAt()
		w.settleCall(it, w.notTaken(it), kind)
		t.due(at)
		for _, n := range it.left {
			w.deferred(it, n, e.Kind, e.Status, t.last, at)
		}
	}
}

// notTaken is the state of a call whose last attempt was surely not accepted. Of an earlier attempt without an answer that
// says nothing: the call stays ambiguous, and what was decided about it stays with it.
func (w *work) notTaken(it *item) store.CallState {
	if !it.repeat {
		return store.CallRetry
	}
	if it.mark != "" {
		it.call.Detail = it.mark
	}
	return store.CallAmbiguous
}

// decideUnknown keeps a call whose answer was lost.
func (w *work) decideUnknown(t *tally, it *item) {
	t.counted = true
	at := w.retryAt()
	_, finds := w.a.Provider.(providers.Finder)
	keyed := !it.call.KeyExpires.IsZero() && at.Add(keyMargin).Before(it.call.KeyExpires)
	if !keyed && finds {
		at = w.now.Add(lookFirst)
	}
	for _, n := range it.left {
		t.unknown[n] = true
		w.deferred(it, n, providers.Ambiguous, "", it.call.Detail, at)
	}
	if !keyed && !finds && w.p.c.OnUnknown == UnknownHold {
		it.call.Detail = heldUnknown
		w.st.Hold = "the answer of " + w.l.name + " was lost: it may have been sent (on_unknown = \"hold\")"
	}
	w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
	t.due(at)
}

func (w *work) decidePermanent(t *tally, it *item) {
	e := it.err
	kind := e.Kind.String()
	switch {
	case e.Split && len(it.left) > 1:
		// One bad address failed them all: nobody fails before his own call is refused.
		w.st.Split = true
		w.void(it, "")
		w.again = true
		t.untried(it)
	case w.p.c.SoftBounce:
		at := w.retryAt()
		t.counted = true
		t.due(at)
		w.void(it, "")
		for _, n := range it.left {
			w.deferred(it, n, providers.Transient, "", it.call.Detail+" (soft_bounce)", at)
		}
	default:
		w.settleCall(it, store.CallRefused, kind)
		for _, n := range it.left {
			w.final(n, store.RcptFailed, fact{
				kind: event.Failed, n: n, call: &it.call, mail: it.mail, account: w.l.name, attempt: w.attempt(n),
				status: classStatus(e.Status, 5, kindStatus(providers.Permanent)), text: it.call.Detail,
			})
		}
	}
}

// decideOutcome reads an answer recipient by recipient.
func (w *work) decideOutcome(t *tally, it *item) {
	out := it.out
	if it.call.ProviderMessageID = out.MessageID; out.MessageID == "" && len(out.Rcpts) == 1 {
		it.call.ProviderMessageID = out.Rcpts[0].MessageID
	}
	it.call.HTTPStatus, it.call.Detail = 0, "" // those of an earlier attempt
	byAddr := map[string]int{}
	for _, n := range it.left {
		byAddr[w.c.Mail.Envelope.Rcpts[n].Addr] = n
	}
	var unknown []int
	accepted, judged := false, false
	var later []func() // what depends on the state of the call as a whole
	for i, rc := range it.mail.Rcpts {
		n, ok := byAddr[rc.Addr]
		if !ok {
			continue // final since an earlier answer
		}
		t.tried[n] = true
		ro := providers.RcptOutcome{Kind: providers.Ambiguous, Detail: "the answer does not name the recipient"}
		if i < len(out.Rcpts) {
			ro = out.Rcpts[i]
		}
		f := fact{
			n: n, call: &it.call, mail: it.mail, account: w.l.name, attempt: w.attempt(n), providerID: ro.MessageID,
			text: ro.Detail, reason: ro.Reason, lost: out.Lost,
		}
		if f.providerID == "" {
			f.providerID = out.MessageID
		}
		soft := w.p.c.SoftBounce
		switch {
		case ro.Verdict == providers.Accepted:
			accepted, judged = true, true
			f.kind, f.status = event.Sent, classStatus(ro.Status, 2, "2.0.0")
			w.final(n, store.RcptSent, f)
		case ro.Verdict == providers.Rejected && !soft:
			judged = true
			f.kind, f.status = event.Rejected, classStatus(ro.Status, 5, "5.0.0")
			w.final(n, store.RcptRejected, f)
		case ro.Verdict == providers.Deferred && ro.Kind == providers.Permanent && !soft:
			judged = true
			f.kind, f.status = event.Failed, classStatus(ro.Status, 5, "5.0.0")
			w.final(n, store.RcptFailed, f)
		case ro.Verdict == providers.Deferred && ro.Kind == providers.Ambiguous:
			unknown = append(unknown, n)
			t.last = ro.Detail
		default:
			judged = true
			t.last = ro.Detail
			later = append(later, func() { w.decideDeferred(t, it, n, ro) })
		}
	}
	if len(unknown) > 0 {
		w.decidePartUnknown(t, it, unknown, judged)
	} else if accepted {
		w.settleCall(it, store.CallAccepted, "")
	} else {
		w.settleCall(it, store.CallRefused, "")
	}
	for _, f := range later {
		f()
	}
}

// decideDeferred frees a recipient that was not taken now.
func (w *work) decideDeferred(t *tally, it *item, n int, ro providers.RcptOutcome) {
	k := ro.Kind
	if k == providers.Unknown || k == providers.Permanent || ro.Verdict == providers.Rejected {
		k = providers.Transient
	}
	w.requeue(n)
	open, until := w.l.gate.closedUntil(w.now, w.fromAddr())
	switch {
	case k == providers.RateLimited:
		t.limited, t.trouble = true, true
		t.due(later(until, w.now.Add(time.Second)))
	case k == providers.Operator && !open:
		t.operator = true
		t.due(until)
	default:
		at := w.retryAt()
		t.counted, t.trouble = true, true
		t.due(at)
		w.deferred(it, n, k, ro.Status, ro.Detail, at)
	}
}

// decidePartUnknown handles recipients the answer leaves open. When others of the call are decided it can never be repeated.
func (w *work) decidePartUnknown(t *tally, it *item, unknown []int, judged bool) {
	if !judged && len(unknown) == len(it.call.Rcpts) {
		it.call.Detail = event.Clean(t.last, event.MaxText)
		it.left = unknown
		w.decideUnknown(t, it)
		return
	}
	_, finds := w.a.Provider.(providers.Finder)
	t.counted = true
	at := w.retryAt()
	if finds {
		at = w.now.Add(lookFirst)
	}
	for _, n := range unknown {
		t.unknown[n] = true
		w.deferred(it, n, providers.Ambiguous, "", t.last, at)
	}
	switch {
	case finds:
		w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
	case w.p.c.OnUnknown == UnknownHold:
		it.call.Detail = heldUnknown
		w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
		w.st.Hold = "the answer of " + w.l.name + " does not name all recipients: it may have been sent to them (on_unknown = \"hold\")"
	default:
		w.settleCall(it, store.CallAccepted, "")
		for _, n := range unknown {
			w.requeue(n)
			delete(t.unknown, n)
		}
	}
	t.due(at)
}

// decideLook reads a look-up that did not find the call.
func (w *work) decideLook(t *tally, it *item) {
	if it.found == providers.Absent {
		it.call.Looked = append(slices.Clone(it.call.Looked), w.now)
		if n := len(it.call.Looked); n >= 2 && w.now.Sub(it.call.Looked[0]) >= lookAgain {
			// Proven: it was never taken. What may be repeated may also be planned anew.
			w.void(it, "looked up twice and not found")
			w.again = true
			return
		}
		w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
		t.due(w.now.Add(lookAgain))
		return
	}
	if it.hopeless {
		// No later look-up will tell more: on_unknown decides.
		it.call.Detail = notFindable
	}
	if it.recover || it.hopeless {
		w.settleCall(it, store.CallAmbiguous, providers.Ambiguous.String())
	}
	for _, n := range it.left {
		t.unknown[n] = true
	}
	if it.hopeless {
		t.counted = true
		t.due(w.retryAt())
		return
	}
	t.due(w.now.Add(lookRetry))
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// count adds what is not final to the result of the first attempt. Whose mail goes to another account, or is planned
// anew, at once, is still being tried.
func (w *work) count(t *tally, left []int) {
	for _, n := range left {
		switch {
		case w.done[n]: // expired just now
		case t.unknown[n]:
			w.first.Unknown++
		case t.tried[n] && w.st.Account == "":
			w.first.Waiting++
		}
	}
}

// expired reports whether the mail's time is over. That is only decided after an attempt has failed, so
// that a jump of the clock, or a long stop, costs nobody his mail.
func (w *work) expired(t *tally) bool {
	if w.now.Before(w.c.Job.Expires) || w.again {
		return false
	}
	if !t.counted && !t.limited && !t.operator {
		return false
	}
	w.r.checkClock()
	return !w.r.suspect(w.lastAttempt())
}

// lastAttempt is when the mail was tried before this claim, or accepted.
func (w *work) lastAttempt() time.Time {
	at := w.c.Job.Created
	for _, c := range w.c.Open {
		at = later(at, c.Started)
	}
	for _, r := range w.c.Rcpts {
		at = later(at, r.Updated)
	}
	return at
}

// expire ends the mail: with a failed event for each recipient, or held where the time ran out under a pause.
func (w *work) expire(t *tally, left []int) {
	w.r.log.expired(w.id(), w.l.name, w.c.Job.Attempts+1)
	switch {
	case w.p.c.SoftBounce:
		w.st.Hold = "its time ran out (soft_bounce)"
	case !t.counted:
		w.st.Hold = "its time ran out while its account was paused"
	}
	if w.st.Hold != "" {
		w.st.NextAt = w.now
		return
	}
	text := "not delivered in time"
	if t.last != "" {
		text += "; last: " + t.last
	}
	// Nothing stays open: every call that is not settled is closed with its recipients.
	for i := range w.st.Calls {
		if s := w.st.Calls[i].Call.State; s == store.CallRetry || s == store.CallAmbiguous {
			w.st.Calls[i].Call.State = store.CallRefused
		}
	}
	for _, it := range w.items {
		if it.call.ID != "" && it.call.Attempt > 0 && !slices.ContainsFunc(w.st.Calls, func(r store.CallResult) bool { return r.Call.ID == it.call.ID }) {
			w.settleCall(it, store.CallRefused, "")
		}
	}
	w.dropRequeued()
	for _, n := range left {
		f := fact{
			kind: event.Failed, n: n, account: w.l.name, attempt: w.attempt(n), status: "4.4.7", text: text,
			reason: event.ReasonTimedOut, unknown: t.unknown[n],
		}
		for _, it := range w.items {
			if slices.Contains(it.left, n) && it.call.ID != "" {
				f.call, f.mail = &it.call, it.mail
				f.unknown = f.unknown || it.repeat
			}
		}
		w.final(n, store.RcptFailed, f)
	}
}

// dropRequeued forgets results that another one of the same recipient follows.
func (w *work) dropRequeued() {
	w.st.Rcpts = slices.DeleteFunc(w.st.Rcpts, func(r store.RcptResult) bool { return r.State == store.RcptQueued })
}

// failover moves the job to the route's next account when this one surely has not taken it and will not soon.
func (w *work) failover(t *tally) bool {
	from := w.fromAddr()
	why := ""
	switch {
	case t.operator && !w.l.gate.usable(w.now, envelopeDomain(from)):
		why = t.last
	case t.trouble && !w.st.Trouble.IsZero() && w.now.Sub(w.st.Trouble) >= w.p.c.FailoverAfter:
		why = "trouble since " + w.st.Trouble.UTC().Format(time.RFC3339) + ": " + t.last
	default:
		return false
	}
	for _, c := range w.st.Calls {
		if c.Call.State == store.CallAmbiguous || c.Call.State == store.CallOpen {
			return false
		}
	}
	to := w.alternative(true)
	if to == "" {
		return false
	}
	w.moveTo(to, why)
	return true
}

// alternative is the next account of the job that can be used now, "" when there is none or a call may have been
// accepted. With around, the search starts again at the first account.
func (w *work) alternative(around bool) string {
	job := &w.c.Job
	settled := map[string]bool{}
	for _, c := range w.st.Calls {
		settled[c.Call.ID] = c.Call.State == store.CallAccepted || c.Call.State == store.CallRefused || c.Call.State == store.CallRetry
	}
	for _, c := range w.c.Open {
		if c.State != store.CallRetry && !settled[c.ID] {
			return ""
		}
	}
	at := slices.Index(job.Accounts, w.l.name)
	order := slices.Clone(job.Accounts[at+1:])
	if around && at > 0 {
		order = append(order, job.Accounts[:at]...)
	}
	domain := envelopeDomain(w.fromAddr())
	for _, name := range order {
		if l := w.r.lane(name); name != w.l.name && l != nil && l.gate.usable(w.now, domain) {
			return name
		}
	}
	return ""
}

// moveTo hands the job to another account. Calls that were surely not accepted are closed: the other account plans its own.
func (w *work) moveTo(to, why string) {
	w.r.log.movedOn(w.id(), w.l.name, to, why)
	have := map[string]bool{}
	free := func(ns []int) {
		for _, n := range ns {
			if slices.Contains(w.c.Job.Rcpts, n) {
				w.requeue(n)
			}
		}
	}
	w.dropRequeued()
	for i := range w.st.Calls {
		c := &w.st.Calls[i].Call
		have[c.ID] = true
		if c.State == store.CallRetry {
			c.State = store.CallRefused
		}
		if c.State == store.CallRefused || c.State == store.CallAccepted {
			free(c.Rcpts)
		}
	}
	for _, c := range w.c.Open {
		if !have[c.ID] {
			c.State, c.Detail = store.CallRefused, "moved to account "+to
			w.st.Calls = append(w.st.Calls, store.CallResult{Call: c})
			free(c.Rcpts)
		}
	}
	w.st.Account, w.st.NextAt, w.st.Trouble, w.st.Counted = to, w.now, time.Time{}, false
	if w.st.LastError == "" {
		w.st.LastError = event.Clean(why, event.MaxText)
	}
}

// leaveAccount ends a claim of a closed account: the mail goes to another one, or waits.
func leaveAccount(l *lane, c *store.Claim, until time.Time) {
	l.r.work.Add(1)
	defer l.r.work.Done()
	w := newWork(l, c, false)
	defer w.caught()
	if rt, ok := w.p.route(c.Job.Route); ok {
		w.rt = rt
	}
	if to := w.alternative(true); to != "" {
		state, _ := l.gate.open(w.now)
		w.moveTo(to, "account "+l.name+" is "+state)
		w.save()
		return
	}
	w.putOff(until, "")
}

// finish saves the settlement and tells who waits for it.
func (w *work) finish() {
	if w.st.Hold != "" {
		w.r.log.held(w.id(), w.l.name, w.st.Hold)
		ev := w.r.notice(noticeHeld, w.l.name, w.now, w.st.Hold)
		ev.QueueID = w.id()
		ev.ID = event.FactID(w.l.name, noticeHeld, w.id(), w.now.UTC().Format(time.RFC3339Nano))
		w.st.Events = append(w.st.Events, ev)
		if w.first == (FirstResult{}) {
			w.first.Waiting = len(w.left())
		}
	}
	w.save()
	w.probeInconclusive()
	if w.first != (FirstResult{}) {
		w.r.tell(w.id(), w.first)
	}
}

// save makes the settlement durable. A result that cannot be saved is kept and saved again, and no new
// call starts meanwhile: what the ESP accepted must not be sent twice because we forgot it (case 61).
func (w *work) save() {
	ctx := context.WithoutCancel(w.ctx())
	err := w.r.q.Settle(ctx, w.st)
	if err == nil {
		return
	}
	if errors.Is(err, store.ErrStale) {
		w.r.log.claimLost(w.id()) // the results are recorded; the schedule is another's
		return
	}
	blocks := len(w.st.Calls) > 0
	if blocks {
		w.r.unsaved.Add(1)
	}
	unblock := func() {
		if blocks {
			blocks = false
			w.r.unsaved.Add(-1)
			for _, l := range w.r.allLanes() {
				l.wake()
			}
		}
	}
	defer unblock()
	wait := saveFirst
	for tries := 1; ; tries++ {
		w.r.log.stateKept(w.id(), tries, err)
		on := w.r.pause(w.ctx(), wait)
		if err = w.r.q.Settle(ctx, w.st); err == nil {
			w.r.log.stateSaved(w.id(), tries)
			return
		}
		if errors.Is(err, store.ErrStale) {
			w.r.log.claimLost(w.id())
			return
		}
		if !on {
			for _, c := range w.st.Calls {
				w.r.log.stateLost(w.id(), c.Call.Ref, err)
			}
			return
		}
		wait = min(wait*2, saveLast)
		// A result that alone cannot be saved while the store works is a fault of ours in this one
		// mail: the others go on.
		if blocks && tries >= saveBlocks && w.r.q.Ping(ctx) == nil {
			unblock()
		}
	}
}
