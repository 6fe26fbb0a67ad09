package deliver

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// States of an account.
const (
	Active    = "active"
	Throttled = "throttled" // the ESP asked for a pause; ends by itself
	Paused    = "paused"    // the ESP does not take our mail (key, quota, plan): probed until it does
	Probing   = "probing"   // a check, then one real mail, decide whether the pause ends
	Stopped   = "stopped"   // by an operator; ends by an operator
)

const (
	firstProbe     = time.Minute
	lastProbe      = 15 * time.Minute
	probeSoon      = 5 * time.Second // after one that told nothing
	probeElsewhere = 2 * time.Minute // how long another node's probe is waited for
	firstThrottle  = 5 * time.Second // without a Retry-After
	maxThrottle    = time.Hour
	// unlistedMails is how many different mails in a row with one answer nobody has
	// documented make it the account's fault and not the mails'.
	unlistedMails = 3
)

// change is what a transition asks the runner to do: save the new state, and tell people.
type change struct {
	save   store.AccountState
	notice string // name of the event, "" = quiet
	bad    bool   // an alarm, not a relief
}

// pause is one closed gate: of the whole account, or of one From domain.
type pause struct {
	state   string
	until   time.Time // end of throttling, or next probe
	reason  string
	since   time.Time
	alarmed bool
	wait    time.Duration // to the next probe
}

// gate is the state machine of one account. Its methods are pure but for the lock: they take the time
// and return what is to be done.
type gate struct {
	account string

	mu       sync.Mutex
	all      pause
	domains  map[string]*pause
	features map[string]bool // that the ESP's plan does not include
	step     time.Duration   // last throttle without a Retry-After
	trouble  time.Time       // since when it is throttled without a success between
	resumed  time.Time       // end of the last pause
	unlisted string          // the unlisted answer seen last
	mails    []string        // different mails that got it in a row
}

func newGate(account string) *gate {
	return &gate{account: account, all: pause{state: Active}, domains: map[string]*pause{}, features: map[string]bool{}}
}

// load takes over what the store knows, at start or after another node changed it.
func (g *gate) load(s store.AccountState, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := &g.all
	if s.Domain != "" {
		p = &pause{}
		g.domains[s.Domain] = p
	}
	*p = pause{state: s.State, until: s.Until, reason: s.Reason, since: s.Since, alarmed: s.Alarmed, wait: firstProbe}
	if p.state == Probing {
		p.state, p.until = Paused, now
	}
	if most := now.Add(maxThrottle); p.until.After(most) { // it comes from a clock that was wrong
		p.until = most
	}
}

// clear forgets a stored pause that another node has ended.
func (g *gate) clear(domain string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if domain != "" {
		delete(g.domains, domain)
		return
	}
	if g.all.state != Active {
		g.resumed = now
	}
	g.all = pause{state: Active}
}

// snapshot gives the state as it would be stored.
func (g *gate) snapshot() []store.AccountState {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := []store.AccountState{g.stateOf("", &g.all)}
	for d, p := range g.domains {
		out = append(out, g.stateOf(d, p))
	}
	slices.SortFunc(out, func(a, b store.AccountState) int {
		if a.Domain < b.Domain {
			return -1
		}
		return 1
	})
	return out
}

func (g *gate) stateOf(domain string, p *pause) store.AccountState {
	return store.AccountState{
		Account: g.account, Domain: domain, State: p.state, Until: p.until, Reason: p.reason, Since: p.since, Alarmed: p.alarmed,
	}
}

// open says how the account stands now: the state, and when to look again (zero: only after a change).
// A throttle that is over is active.
func (g *gate) open(now time.Time) (state string, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all.state == Throttled && !now.Before(g.all.until) {
		return Active, time.Time{}
	}
	return g.all.state, g.all.until
}

// usable reports whether mail may be moved to the account.
func (g *gate) usable(now time.Time, domain string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.domains[domain] != nil {
		return false
	}
	return g.all.state == Active || g.all.state == Throttled
}

// leaving reports whether mail that has another account should go there: at once when the
// account is paused, after long trouble when it is throttled.
func (g *gate) leaving(now time.Time, after time.Duration) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch g.all.state {
	case Paused, Stopped:
		return true
	case Throttled:
		return now.Before(g.all.until) && !g.trouble.IsZero() && now.Sub(g.trouble) >= after
	}
	return false
}

// pausedAt reports whether the account was, or is, paused at a time in the past.
func (g *gate) pausedAt(t time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.all.state; s == Paused || s == Stopped || s == Probing {
		return !g.all.since.After(t)
	}
	return !g.resumed.IsZero() && !t.After(g.resumed)
}

// closedUntil says, without using up a probe, whether mail from a From domain may go (ok), else from when on it is due: a paused account
// claims nothing, so its mail stays due and goes in the moment the pause ends.
func (g *gate) closedUntil(now time.Time, from string) (ok bool, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if p := g.domains[envelope.Domain(from)]; p != nil {
		return false, later(p.until, now)
	}
	switch {
	case g.all.state == Paused, g.all.state == Probing, g.all.state == Stopped:
		return false, now
	case g.all.state == Throttled && now.Before(g.all.until):
		return false, g.all.until
	}
	return true, now
}

// domain says whether mail from a From domain may go: a closed one opens for one probe when its
// time has come.
func (g *gate) domain(now time.Time, from string) (ok bool, until time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.domains[envelope.Domain(from)]
	if p == nil {
		return true, time.Time{}
	}
	if now.Before(p.until) {
		return false, p.until
	}
	p.wait = min(p.wait*2, lastProbe)
	p.until = now.Add(p.wait) // the others wait for this one
	return true, time.Time{}
}

// lost lists the features the account has shown not to have.
func (g *gate) lost() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	out := make([]string, 0, len(g.features))
	for f := range g.features {
		out = append(out, f)
	}
	slices.Sort(out)
	return out
}

// lose notes a feature the plan does not include. It reports whether that is news.
func (g *gate) lose(feature string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.features[feature] {
		return false
	}
	g.features[feature] = true
	return true
}

// hurry makes the next probe due now: the operator may have mended what was wrong.
func (g *gate) hurry(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all.state == Paused {
		g.all.until = now
	}
}

// startProbe begins a probe when its time has come and this bridge is the one to do so.
func (g *gate) startProbe(now time.Time, mine func() bool) (change, bool) {
	if state, until := g.open(now); state != Paused || now.Before(until) || !mine() {
		return change{}, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all.state != Paused {
		return change{}, false
	}
	g.all.state = Probing
	return change{save: g.stateOf("", &g.all)}, true
}

// probeInconclusive closes the gate again for a moment: the one mail of a probe came to no call, so nothing was learnt.
func (g *gate) probeInconclusive(now time.Time) (change, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all.state != Probing {
		return change{}, false
	}
	g.all.state, g.all.until = Paused, now.Add(probeSoon)
	return change{save: g.stateOf("", &g.all)}, true
}

// probeFailed closes the gate again, for longer.
func (g *gate) probeFailed(now time.Time, reason string) (change, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.again(now, reason)
}

func (g *gate) again(now time.Time, reason string) (change, bool) {
	if g.all.state != Probing {
		return change{}, false
	}
	g.all.state = Paused
	if reason != "" {
		g.all.reason = reason
	}
	g.all.wait = min(max(g.all.wait, firstProbe)*2, lastProbe)
	g.all.until = now.Add(g.all.wait)
	return change{save: g.stateOf("", &g.all)}, true
}

// works notes that the account took, or judged, a mail. Only a probe ends a pause: a call that was under way
// when the pause began proves nothing about now.
func (g *gate) works(now time.Time, from string, probe bool) []change {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unlisted, g.mails = "", g.mails[:0]
	var out []change
	if g.all.state == Probing && probe {
		out = append(out, g.resume(now))
	}
	if g.all.state == Active || g.all.state == Throttled && !now.Before(g.all.until) {
		g.trouble, g.step = time.Time{}, 0
		if g.all.state == Throttled {
			g.all = pause{state: Active}
			out = append(out, change{save: g.stateOf("", &g.all)})
		}
	}
	if d := envelope.Domain(from); g.domains[d] != nil && g.domains[d].since.Before(now) {
		delete(g.domains, d)
		out = append(out, change{save: store.AccountState{Account: g.account, Domain: d, State: Active, Since: now}, notice: noticeResumed})
	}
	return out
}

func (g *gate) resume(now time.Time) change {
	g.all = pause{state: Active, since: now}
	g.resumed, g.trouble, g.step = now, time.Time{}, 0
	return change{save: g.stateOf("", &g.all), notice: noticeResumed}
}

// throttle closes the gate for the time the ESP asked for, or for a growing one of our own.
func (g *gate) throttle(now time.Time, wait time.Duration, reason string) (change, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if wait <= 0 {
		g.step = min(max(g.step*2, firstThrottle), lastProbe)
		wait = g.step
	}
	until := now.Add(min(max(wait, time.Second), maxThrottle))
	if g.trouble.IsZero() {
		g.trouble = now
	}
	switch g.all.state {
	case Probing:
		ch, ok := g.again(now, reason)
		if g.all.until.Before(until) {
			g.all.until = until
			ch.save = g.stateOf("", &g.all)
		}
		return ch, ok
	case Paused, Stopped:
		return change{}, false
	case Throttled:
		if !until.After(g.all.until) {
			return change{}, false
		}
		g.all.until = until
	default:
		g.all = pause{state: Throttled, until: until, reason: reason, since: now}
	}
	return change{save: g.stateOf("", &g.all)}, true
}

// operatorFault pauses the account, or one From domain of it. There is one alarm per pause.
func (g *gate) operatorFault(now time.Time, e *providers.Error, from string) (change, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	reason := faultText(e)
	if d := envelope.Domain(from); e.Scope == providers.ScopeDomain && d != "" {
		if p := g.domains[d]; p != nil {
			p.reason = reason
			return change{save: g.stateOf(d, p)}, true
		}
		p := &pause{state: Paused, until: now.Add(firstProbe), reason: reason, since: now, alarmed: true, wait: firstProbe}
		g.domains[d] = p
		return change{save: g.stateOf(d, p), notice: noticePaused, bad: true}, true
	}
	return g.shut(now, reason)
}

func (g *gate) shut(now time.Time, reason string) (change, bool) {
	switch g.all.state {
	case Probing:
		return g.again(now, reason)
	case Paused, Stopped:
		return change{}, false
	}
	g.all = pause{state: Paused, until: now.Add(firstProbe), reason: reason, since: now, alarmed: true, wait: firstProbe}
	return change{save: g.stateOf("", &g.all), notice: noticePaused, bad: true}, true
}

// unlistedFault counts an answer nobody has documented. The third different mail in a row with the same
// one pauses the account.
func (g *gate) unlistedFault(now time.Time, e *providers.Error, mail string) (change, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := fmt.Sprintf("%d %s", e.HTTPStatus, e.Code)
	if key != g.unlisted {
		g.unlisted, g.mails = key, g.mails[:0]
	}
	if !slices.Contains(g.mails, mail) {
		g.mails = append(g.mails, mail)
	}
	if g.all.state == Probing {
		return g.again(now, faultText(e))
	}
	if len(g.mails) < unlistedMails {
		return change{}, false
	}
	g.unlisted, g.mails = "", g.mails[:0]
	return g.shut(now, fmt.Sprintf("%d mails in a row were refused with an answer we do not know: %s", unlistedMails, faultText(e)))
}

// stop and start are the operator's.
func (g *gate) stop(now time.Time, reason string) change {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all = pause{state: Stopped, reason: reason, since: now, alarmed: true}
	return change{save: g.stateOf("", &g.all), notice: noticePaused}
}

func (g *gate) start(now time.Time) []change {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []change
	if g.all.state != Active {
		out = append(out, g.resume(now))
	}
	for d := range g.domains {
		delete(g.domains, d)
		out = append(out, change{save: store.AccountState{Account: g.account, Domain: d, State: Active, Since: now}, notice: noticeResumed})
	}
	return out
}

func faultText(e *providers.Error) string {
	s := e.Msg
	if s == "" && e.Err != nil {
		s = e.Err.Error()
	}
	if e.Code != "" {
		s = e.Code + ": " + s
	}
	if e.HTTPStatus != 0 {
		s = fmt.Sprintf("HTTP %d: %s", e.HTTPStatus, s)
	}
	return s
}
