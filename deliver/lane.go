package deliver

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

const (
	// maxAhead is how many mails beyond the running calls are read and planned ahead.
	maxAhead = 32
	// evacuateBatch is how many mails of a paused account are looked at in one go.
	evacuateBatch = 64
	// checkTimeout bounds a provider's Check and Find.
	checkTimeout = time.Minute
	// leastWait is the least time between two questions to the store that found nothing to do.
	leastWait = 3 * time.Millisecond
	// forever is a wait that only a signal ends; it is looked up again then as a safety net.
	forever = 10 * time.Minute
)

// limits are an account's speed; a reload with other numbers makes a new one.
type limits struct {
	slots   chan struct{} // one token per running call
	rate    *rate.Limiter // nil = no limit
	perSec  float64
	running int
}

// lane is the dispatcher of one account.
type lane struct {
	r    *Runner
	name string
	gate *gate
	kick chan struct{}
	quit func() // ends run; set when it was started

	acct   atomic.Pointer[Account]
	limits atomic.Pointer[limits]
	inHand atomic.Int64 // mails claimed and not settled
	calls  atomic.Int64 // calls being made

	mu      sync.Mutex
	stored  map[string]store.AccountState // as last written to or read from the store, by domain
	dirty   []change                      // not written yet
	checked bool                          // the running probe has passed Check
	writes  int                           // how often stored changed by our own hand
	flushes sync.Mutex                    // keeps changes in order
}

func newLane(r *Runner, name string) *lane {
	return &lane{r: r, name: name, gate: newGate(name), kick: make(chan struct{}, 1), stored: map[string]store.AccountState{}}
}

func (l *lane) account() *Account { return l.acct.Load() }

func (l *lane) configure(a *Account) {
	l.acct.Store(a)
	n := a.MaxConcurrent
	if n <= 0 {
		n = a.Info.Concurrent
	}
	if n <= 0 {
		n = DefaultConcurrent
	}
	per := a.MaxPerSecond
	if per <= 0 {
		per = a.Info.Rate
	}
	if old := l.limits.Load(); old != nil && old.running == n && old.perSec == per {
		return
	}
	lim := &limits{slots: make(chan struct{}, n), running: n, perSec: per}
	if per > 0 {
		lim.rate = rate.NewLimiter(rate.Limit(per), burst(per))
	}
	l.limits.Store(lim)
}

func (l *lane) wake() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

func (l *lane) run(ctx context.Context) {
	signal, unsubscribe := l.r.q.Subscribe(store.TopicQueue)
	defer unsubscribe()
	for ctx.Err() == nil {
		wait := l.step(ctx)
		if wait <= 0 {
			continue
		}
		// Every commit signals every account: an idle one asks the store so often and no more.
		if !l.r.pause(ctx, min(wait, leastWait)) {
			return
		}
		if wait -= leastWait; wait <= 0 {
			continue
		}
		t, stop := l.r.clock.Timer(wait)
		select {
		case <-ctx.Done():
		case <-signal:
		case <-l.kick:
		case <-t:
		}
		stop()
	}
}

// step does what can be done now and says how long nothing is expected to change by itself.
func (l *lane) step(ctx context.Context) time.Duration {
	if l.r.unsaved.Load() > 0 {
		return forever
	}
	l.flush(ctx)
	now := l.r.clock.Now()
	if ch, ok := l.gate.startProbe(now, l.r.probes); ok {
		l.mu.Lock()
		l.checked = false
		l.mu.Unlock()
		_ = l.save(ctx, ch)
	}
	state, until := l.gate.open(now)
	switch state {
	case Probing:
		return l.probe(ctx)
	case Paused, Stopped, Throttled:
		if state == Paused && !until.After(now) {
			return time.Second // another node probes
		}
		if l.gate.leaving(now, l.r.planner.Load().c.FailoverAfter) {
			l.evacuate(ctx, until)
		}
		if state == Stopped {
			return forever
		}
		return max(until.Sub(l.r.clock.Now()), time.Millisecond)
	}
	n, wait := l.room(now)
	if n <= 0 {
		return wait
	}
	claims, err := l.r.q.Claim(ctx, l.name, n)
	if err != nil {
		return l.storeTrouble(ctx, "claim", err)
	}
	for _, c := range claims {
		l.begin(c, false)
	}
	if len(claims) == n {
		return 0
	}
	return l.untilDue(ctx)
}

func (l *lane) untilDue(ctx context.Context) time.Duration {
	due, ok, err := l.r.q.NextDue(ctx, l.name)
	switch {
	case err != nil:
		return l.storeTrouble(ctx, "next due", err)
	case !ok:
		return forever
	}
	// What is due already was committed after the claim; the least wait keeps a
	// disagreement between the two questions from becoming a busy loop.
	return min(max(due.Sub(l.r.clock.Now()), 10*time.Millisecond), forever)
}

func (l *lane) storeTrouble(ctx context.Context, op string, err error) time.Duration {
	if ctx.Err() == nil {
		l.r.log.storeFailed(op, l.name, err)
	}
	return 2 * time.Second
}

// room says how many mails to claim, or how long to wait. Claims come in batches: a new one is asked for
// when a good part of the last is done, while calls are still enough to keep the account busy.
func (l *lane) room(now time.Time) (int, time.Duration) {
	lim := l.limits.Load()
	ahead := min(lim.running, maxAhead)
	n := lim.running + ahead - int(l.inHand.Load())
	if lim.rate != nil {
		l.share(now, lim)
		// Mail waits in the store for its turn, where a pause or an operator can still reach it.
		tokens := lim.rate.TokensAt(now) - float64(l.inHand.Load()-l.calls.Load())
		if tokens < 1 {
			wait := time.Duration((1 - tokens) / float64(lim.rate.Limit()) * float64(time.Second))
			return 0, min(max(wait, time.Millisecond), forever)
		}
		return min(n, int(tokens)), forever
	}
	if n < max(1, (lim.running+ahead)/4) {
		return 0, forever // a finished mail kicks
	}
	return n, 0
}

// share takes this node's part of the account's rate.
func (l *lane) share(now time.Time, lim *limits) {
	part := lim.perSec / float64(max(1, l.r.nodes()))
	if lim.rate.Limit() != rate.Limit(part) {
		lim.rate.SetLimitAt(now, rate.Limit(part))
		lim.rate.SetBurstAt(now, burst(part))
	}
}

// burst is how many calls may start at once after a rest.
func burst(perSec float64) int { return max(1, int(perSec/10)) }

func (l *lane) begin(c *store.Claim, probe bool) {
	l.inHand.Add(1)
	l.r.work.Add(1)
	go func() {
		defer func() {
			l.inHand.Add(-1)
			l.wake()
			l.r.work.Done()
		}()
		deliverClaim(l, c, probe)
	}()
}

// acquire waits for a free call and the account's rate. ok is false when ctx ended or the account closed first.
func (l *lane) acquire(probe bool) (release func(), ok bool) {
	lim := l.limits.Load()
	ctx := l.r.workCtx
	select {
	case lim.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, false
	}
	free := func() { <-lim.slots }
	if lim.rate != nil {
		now := l.r.clock.Now()
		res := lim.rate.ReserveN(now, 1)
		if d := res.DelayFrom(now); d > 0 && !l.r.pause(ctx, d) {
			res.CancelAt(l.r.clock.Now())
			free()
			return nil, false
		}
	}
	if !l.takes(probe) {
		free()
		return nil, false
	}
	l.calls.Add(1)
	return func() { l.calls.Add(-1); free() }, true
}

// takes reports whether a new call may start now.
func (l *lane) takes(probe bool) bool {
	if l.r.stopping.Load() || l.r.unsaved.Load() > 0 {
		return false
	}
	state, _ := l.gate.open(l.r.clock.Now())
	return state == Active || state == Probing && probe
}

// probe asks the provider, then lets one mail through.
func (l *lane) probe(ctx context.Context) time.Duration {
	if l.inHand.Load() > 0 {
		return forever
	}
	checker, ok := l.account().Provider.(providers.Checker)
	l.mu.Lock()
	checked := l.checked
	l.mu.Unlock()
	if ok && !checked {
		checkCtx, cancel := context.WithTimeout(ctx, checkTimeout)
		err := checker.Check(checkCtx)
		cancel()
		if ctx.Err() != nil {
			return forever
		}
		if err != nil {
			text := err.Error()
			var pe *providers.Error
			if errors.As(err, &pe) {
				text = faultText(pe)
			}
			if ch, ok := l.gate.probeFailed(l.r.clock.Now(), text); ok {
				_ = l.save(ctx, ch)
			}
			return time.Millisecond
		}
		l.mu.Lock()
		l.checked = true
		l.mu.Unlock()
	}
	claims, err := l.r.q.Claim(ctx, l.name, 1)
	if err != nil {
		return l.storeTrouble(ctx, "claim", err)
	}
	if len(claims) == 0 {
		if !ok {
			return l.untilDue(ctx) // nothing to probe with
		}
		for _, ch := range l.gate.works(l.r.clock.Now(), "", true) {
			_ = l.save(ctx, ch)
		}
		return time.Millisecond
	}
	l.begin(claims[0], true)
	return forever
}

// evacuate moves mail that has another account away from a closed one. What cannot move is put off until the
// account is looked at again, so that it is not claimed twice in vain.
func (l *lane) evacuate(ctx context.Context, until time.Time) {
	if !l.hasAlternative() {
		return
	}
	if until.IsZero() {
		until = l.r.clock.Now().Add(lastProbe)
	}
	// After that what was put off is due again: without an end this would go round in circles.
	for ctx.Err() == nil && l.r.unsaved.Load() == 0 && l.r.clock.Now().Before(until) {
		claims, err := l.r.q.Claim(ctx, l.name, evacuateBatch)
		if err != nil {
			l.storeTrouble(ctx, "claim", err)
			return
		}
		var wg sync.WaitGroup
		for _, c := range claims {
			wg.Go(func() { leaveAccount(l, c, until) })
		}
		wg.Wait()
		if len(claims) < evacuateBatch {
			return
		}
	}
}

// hasAlternative reports whether some route names a usable account beside this one.
func (l *lane) hasAlternative() bool {
	now := l.r.clock.Now()
	for _, rt := range l.r.planner.Load().c.Routes.Routes() {
		here, other := false, false
		for _, name := range rt.Accounts {
			if name == l.name {
				here = true
			} else if o := l.r.lane(name); o != nil && o.gate.usable(now, "") {
				other = true
			}
		}
		if here && other {
			return true
		}
	}
	return false
}

// save writes a change of state with its event, and tells the log. A change that cannot be written is
// kept and tried again by flush.
func (l *lane) save(ctx context.Context, ch change) error {
	s := ch.save
	switch {
	case ch.notice == noticePaused && ch.bad:
		l.r.log.accountPaused(s, s.Domain)
	case ch.notice == noticePaused:
		l.r.log.accountStopped(s)
	case ch.notice == noticeResumed:
		l.r.log.accountResumed(s, s.Domain)
	case s.State == Throttled:
		l.r.log.accountThrottled(s)
	case s.State == Paused:
		l.r.log.probeFailed(s)
	}
	l.mu.Lock()
	l.dirty = append(l.dirty, ch)
	l.mu.Unlock()
	err := l.flush(ctx)
	l.wake()
	return err
}

func (l *lane) flush(ctx context.Context) error {
	l.flushes.Lock()
	defer l.flushes.Unlock()
	for {
		l.mu.Lock()
		if len(l.dirty) == 0 {
			l.mu.Unlock()
			return nil
		}
		ch := l.dirty[0]
		l.mu.Unlock()
		var evs []event.Event
		if ch.notice != "" {
			at := ch.save.Since
			if at.IsZero() {
				at = l.r.clock.Now()
			}
			ev := l.r.notice(ch.notice, l.name, at, ch.save.Reason)
			if ch.save.Domain != "" {
				ev.ID = event.FactID(l.name, ch.notice, ch.save.Domain, at.UTC().Format(time.RFC3339Nano))
				ev.Metadata = map[string]string{"domain": ch.save.Domain}
			}
			evs = append(evs, ev)
		}
		if err := l.r.q.SetAccount(context.WithoutCancel(ctx), ch.save, evs...); err != nil {
			l.r.log.stateNotSaved(l.name, err)
			return err
		}
		l.noteSaved(ch.save)
		l.mu.Lock()
		l.dirty = l.dirty[1:]
		l.mu.Unlock()
	}
}

func (l *lane) noteSaved(s store.AccountState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.writes++
	if s.State == Active {
		delete(l.stored, s.Domain)
	} else {
		l.stored[s.Domain] = s
	}
}

func (l *lane) written() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writes
}

// sameTime compares what the store may have rounded.
func sameTime(a, b time.Time) bool { return a.Sub(b).Abs() < 10*time.Millisecond }

// refresh compares the store's rows with what this node wrote or read last: a difference is somebody else's act.
// writes is what written gave before they were read: rows read before our own write say nothing new.
func (l *lane) refresh(states []store.AccountState, writes int, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.dirty) > 0 || l.writes != writes {
		return
	}
	seen := map[string]bool{}
	changed := false
	for _, s := range states {
		if s.Account != l.name {
			continue
		}
		seen[s.Domain] = true
		if old, ok := l.stored[s.Domain]; ok && old.State == s.State && sameTime(old.Until, s.Until) && sameTime(old.Since, s.Since) {
			continue
		}
		l.stored[s.Domain] = s
		if s.State == Probing { // by another node, which may die of it
			s.State, s.Until = Paused, now.Add(probeElsewhere)
		}
		l.gate.load(s, now)
		changed = true
	}
	for d := range l.stored {
		if !seen[d] {
			delete(l.stored, d)
			l.gate.clear(d, now)
			changed = true
		}
	}
	if changed {
		l.wake()
	}
}
