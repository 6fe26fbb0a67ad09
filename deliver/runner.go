package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// ErrNoAccount says that no such account is configured.
var ErrNoAccount = errors.New("no such account")

const (
	// defaultGrace is how long Run waits for calls in flight after its context has ended: one full
	// answer time of a call, and a little.
	defaultGrace = 65 * time.Second
	// sweepEvery is how often mail under a pause is checked for its expiry, and pauses for what
	// another node or an operator did.
	sweepEvery = 5 * time.Minute
	// defaultRefresh is how often account states are read again, as other nodes may have changed them.
	defaultRefresh = 10 * time.Second
	// clockEvery is how often the wall clock is compared with the steady one.
	clockEvery = 10 * time.Second
	// clockJump is how far the wall clock may stray from the steady one between two looks.
	clockJump = time.Minute
	// suspectJump is a jump after which nothing expires before one more attempt.
	suspectJump = 24 * time.Hour
)

// RunnerConfig is what a Runner is made from.
type RunnerConfig struct {
	Queue        Queue
	Planner      *Planner
	Clock        Clock        // nil = SystemClock
	Log          *slog.Logger // nil = silent
	LogAddresses bool
	Grace        time.Duration // for calls in flight at the end; 0 = 65 s
	// Nodes is how many bridges share the queue now: each takes its part of an account's rate. nil = one.
	Nodes func() int
	// Probes tells whether this bridge probes paused accounts: of those that share the queue one does. nil = it does.
	Probes  func() bool
	Refresh time.Duration // how often account states that other nodes write are read; 0 = 10 s
	// Waited is told how long a mail waited for its first call, from its acceptance or the time it was asked for; nil = nobody.
	Waited func(account string, wait time.Duration)
	// Observe is told of every finished call, for metrics; outcome is "accepted", "refused" or a kind of failure. nil = nobody.
	Observe func(account, outcome string, elapsed time.Duration)
}

// Runner delivers what is in the queue. It has one dispatcher per account, so that accounts do not hold up
// one another, and one goroutine per mail at work.
type Runner struct {
	q       Queue
	clock   Clock
	log     journal
	grace   time.Duration
	refresh time.Duration
	nodes   func() int
	probes  func() bool
	observe func(account, outcome string, elapsed time.Duration)
	waited  func(account string, wait time.Duration)

	planner atomic.Pointer[Planner]
	parsed  parsedMails
	unsaved atomic.Int64 // results that could not be saved yet: no new call starts
	jumped  atomic.Int64 // unix nanoseconds of the last large clock jump, in the new time; 0 = never

	clockMu sync.Mutex
	wall    time.Time     // at the last look
	mono    time.Duration // at the last look

	mu     sync.Mutex
	lanes  map[string]*lane
	expect map[string][]*Expectation
	start  func(*lane) // set while Run runs
	reload chan struct{}

	work     sync.WaitGroup
	workCtx  context.Context // of calls in flight: outlasts that of Run by the grace time
	stopping atomic.Bool
}

// NewRunner makes a Runner. Nothing happens before Run.
func NewRunner(c RunnerConfig) *Runner {
	r := &Runner{
		q: c.Queue, clock: c.Clock, grace: c.Grace, refresh: c.Refresh, nodes: c.Nodes, probes: c.Probes, observe: c.Observe, waited: c.Waited,
		lanes: map[string]*lane{}, expect: map[string][]*Expectation{}, reload: make(chan struct{}, 1),
		workCtx: context.Background(),
	}
	if r.clock == nil {
		r.clock = SystemClock()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	r.log = journal{l: c.Log, addresses: c.LogAddresses}
	if r.grace <= 0 {
		r.grace = defaultGrace
	}
	if r.refresh <= 0 {
		r.refresh = defaultRefresh
	}
	if r.nodes == nil {
		r.nodes = func() int { return 1 }
	}
	if r.probes == nil {
		r.probes = func() bool { return true }
	}
	if r.observe == nil {
		r.observe = func(string, string, time.Duration) {}
	}
	if r.waited == nil {
		r.waited = func(string, time.Duration) {}
	}
	r.setPlanner(c.Planner)
	return r
}

// Taken tells of a mail that is about to be committed: its first delivery uses what plan has read of it. The plan's
// message must not be used any more.
func (r *Runner) Taken(plan *Plan) {
	r.parsed.put(plan.Mail.Envelope.ID, plan.Message, r.clock.Mono())
}

// Dropped tells that a mail of which Taken was told was not committed.
func (r *Runner) Dropped(plan *Plan) { r.parsed.take(plan.Mail.Envelope.ID, nil) }

// Reload goes on with a new configuration: new accounts get a dispatcher, removed ones lose theirs, and mail
// planned under the old one is planned again.
func (r *Runner) Reload(p *Planner) {
	r.setPlanner(p)
	select {
	case r.reload <- struct{}{}:
	default:
	}
}

func (r *Runner) setPlanner(p *Planner) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.planner.Store(p)
	for name, a := range p.c.Accounts {
		l := r.lanes[name]
		if l == nil {
			l = newLane(r, name)
			r.lanes[name] = l
		}
		l.configure(a)
		l.gate.hurry(r.clock.Now())
		if l.quit == nil && r.start != nil {
			r.start(l)
		}
		l.wake()
	}
	for name, l := range r.lanes {
		if _, ok := p.c.Accounts[name]; !ok {
			if l.quit != nil {
				l.quit()
			}
			delete(r.lanes, name)
		}
	}
}

func (r *Runner) lane(name string) *lane {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.lanes[name]
}

func (r *Runner) allLanes() []*lane {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]*lane, 0, len(r.lanes))
	for _, l := range r.lanes {
		out = append(out, l)
	}
	slices.SortFunc(out, func(a, b *lane) int {
		if a.name < b.name {
			return -1
		}
		return 1
	})
	return out
}

// Run delivers until ctx ends. Then no further mail is claimed, calls in flight get the grace time to end, what was
// claimed and not started is given back, and Run returns. The error is that of reading the account states at start.
func (r *Runner) Run(ctx context.Context) error {
	if err := r.loadAccounts(ctx); err != nil {
		return err
	}
	if r.planner.Load().c.SoftBounce {
		r.log.softBounce()
	}
	workCtx, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var loops sync.WaitGroup
	r.mu.Lock()
	r.workCtx = workCtx
	r.start = func(l *lane) {
		laneCtx, quit := context.WithCancel(ctx)
		l.quit = quit
		loops.Go(func() { defer quit(); l.run(laneCtx) })
	}
	for _, l := range r.lanes {
		r.start(l)
	}
	r.mu.Unlock()
	loops.Go(func() { r.replanLoop(ctx) })
	loops.Go(func() { r.tend(ctx) })
	loops.Go(func() { r.watchAccounts(ctx) })
	loops.Go(func() { r.resolveLoop(ctx) })

	<-ctx.Done()
	r.stopping.Store(true)
	r.mu.Lock()
	r.start = nil
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		loops.Wait() // they may wait for a result of theirs to be saved
		r.work.Wait()
		close(done)
	}()
	grace, stop := r.clock.Timer(r.grace)
	defer stop()
	select {
	case <-done:
	case <-grace:
		r.log.drained(int(r.inFlight()))
		cut()
		<-done
	}
	return nil
}

// Watch is Run for a process that delivers nothing: it knows how the accounts stand, so that an operator can act on them.
func (r *Runner) Watch(ctx context.Context) error {
	if err := r.loadAccounts(ctx); err != nil {
		return err
	}
	var loops sync.WaitGroup
	loops.Go(func() { r.watchAccounts(ctx) })
	defer loops.Wait()
	for r.pause(ctx, r.refresh) {
		for _, l := range r.allLanes() {
			_ = l.flush(ctx) // said by the flush itself
		}
		r.refreshAccounts(ctx)
	}
	return nil
}

func (r *Runner) inFlight() int64 {
	var n int64
	for _, l := range r.allLanes() {
		n += l.calls.Load()
	}
	return n
}

// pause waits, unless ctx ends first.
func (r *Runner) pause(ctx context.Context, d time.Duration) bool {
	t, stop := r.clock.Timer(d)
	defer stop()
	select {
	case <-t:
		return true
	case <-ctx.Done():
		return false
	}
}

// loadAccounts takes up how the accounts stood when the last process ended. A ctx that ends meanwhile is no failure.
func (r *Runner) loadAccounts(ctx context.Context) error {
	states, err := r.q.Accounts(ctx)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return nil
	default:
		return fmt.Errorf("read account states: %w", err)
	}
	now := r.clock.Now()
	for _, s := range states {
		if l := r.lane(s.Account); l != nil {
			l.gate.load(s, now)
			l.noteSaved(s)
		}
	}
	return nil
}

// refreshAccounts takes over what an operator or another node has stored since.
func (r *Runner) refreshAccounts(ctx context.Context) {
	lanes := r.allLanes()
	writes := make([]int, len(lanes))
	for i, l := range lanes {
		writes[i] = l.written()
	}
	states, err := r.q.Accounts(ctx)
	if err != nil {
		r.log.storeFailed("accounts", "", err)
		return
	}
	now := r.clock.Now()
	for i, l := range lanes {
		l.refresh(states, writes[i], now)
	}
}

// watchAccounts takes a pause over as soon as an operator or another node has stored it.
func (r *Runner) watchAccounts(ctx context.Context) {
	signal, end := r.q.Subscribe(store.TopicAccounts)
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-signal:
			r.refreshAccounts(ctx)
		}
	}
}

// tend does what is not tied to one mail: account states of other nodes, expiry under a pause, the clock.
func (r *Runner) tend(ctx context.Context) {
	r.checkClock()
	r.adoptFuture(ctx)
	r.hasten(ctx)
	swept := r.clock.Mono()
	refreshed := swept
	for r.pause(ctx, min(r.refresh, clockEvery)) {
		if delta := r.checkClock(); delta != 0 {
			if delta < 0 {
				r.adoptFuture(ctx)
				r.hasten(ctx)
			}
			for _, l := range r.allLanes() {
				l.wake()
			}
		}
		now := r.clock.Mono()
		if now-refreshed >= r.refresh {
			refreshed = now
			r.refreshAccounts(ctx)
		}
		if now-swept >= sweepEvery {
			swept = now
			r.sweep(ctx)
		}
	}
}

// checkClock compares the wall clock with the steady one and gives the jump since the last look, 0 when there is none.
func (r *Runner) checkClock() time.Duration {
	r.clockMu.Lock()
	defer r.clockMu.Unlock()
	now, steady := r.clock.Now(), r.clock.Mono()
	wall, mono := r.wall, r.mono
	r.wall, r.mono = now, steady
	if wall.IsZero() {
		return 0
	}
	delta := now.Round(0).Sub(wall.Round(0)) - (steady - mono)
	if delta <= clockJump && delta >= -clockJump {
		return 0
	}
	r.log.clockJump(delta)
	if delta > suspectJump || delta < -suspectJump {
		r.jumped.Store(now.UnixNano())
	}
	return delta
}

// adoptFuture makes mail due that was accepted in the future: the clock was wrong then, or is now (case 112).
func (r *Runner) adoptFuture(ctx context.Context) {
	f := store.Filter{State: store.MailQueued, Since: r.clock.Now().Add(10 * time.Minute)}
	for ctx.Err() == nil {
		mails, err := r.q.Mails(ctx, f)
		if err != nil {
			r.log.storeFailed("mails", "", err)
			return
		}
		for _, m := range mails {
			if err := r.q.Retry(ctx, m.Envelope.ID); err != nil && !errors.Is(err, store.ErrNotFound) {
				r.log.storeFailed("retry", "", err)
				return
			}
			r.log.clockFuture(m.Envelope.ID, m.Envelope.Received)
			f.After = m.Envelope.ID
		}
		if len(mails) == 0 {
			return
		}
	}
}

// hasten makes mail due that was put off further than anything is put off: by a clock that ran ahead.
func (r *Runner) hasten(ctx context.Context) {
	most := max(r.planner.Load().c.Retry.longest(), maxThrottle, lookFor)
	tried := map[string]bool{} // one may have been put off again, as a part of it is to be sent later
	for ctx.Err() == nil {
		ids, err := r.q.Ahead(ctx, r.clock.Now().Add(most+clockJump), replanBatch)
		if err != nil {
			r.log.storeFailed("ahead", "", err)
			return
		}
		fresh := 0
		for _, id := range ids {
			if tried[id] {
				continue
			}
			tried[id] = true
			fresh++
			switch err := r.q.Retry(ctx, id); {
			case err == nil:
				r.log.clockAhead(id)
			case !errors.Is(err, store.ErrNotFound):
				r.log.storeFailed("retry", "", err)
				return
			}
		}
		if fresh == 0 {
			return
		}
	}
}

// sweep holds mail whose life ended while its account was paused, or while it had no route: it is neither failed nor
// sent late without an operator's word.
func (r *Runner) sweep(ctx context.Context) {
	now := r.clock.Now()
	closed := map[string]string{NoRoute: "no route"}
	for _, l := range r.allLanes() {
		if s, _ := l.gate.open(now); s == Paused || s == Stopped || s == Probing {
			closed[l.name] = "its account was paused"
		}
	}
	// Accounts that were removed from the configuration count as closed too.
	stats, err := r.q.Stats(ctx)
	if err != nil {
		r.log.storeFailed("stats", "", err)
		return
	}
	for name := range stats.ByAccount {
		if r.lane(name) == nil && closed[name] == "" {
			closed[name] = "its account is not configured"
		}
	}
	for name, why := range closed {
		if stats.ByAccount[name] == 0 {
			continue
		}
		f := store.Filter{State: store.MailQueued, Account: name, Until: now.Add(-r.shortestLife())}
		mails, err := r.q.Mails(ctx, f)
		if err != nil {
			r.log.storeFailed("mails", name, err)
			return
		}
		for _, m := range mails {
			r.holdExpired(ctx, m.Envelope.ID, name, why, now)
		}
	}
}

func (r *Runner) shortestLife() time.Duration {
	p := r.planner.Load()
	d := p.c.Expire
	for _, rt := range p.c.Routes.Routes() {
		if rt.Expire > 0 {
			d = min(d, rt.Expire)
		}
	}
	return d
}

func (r *Runner) holdExpired(ctx context.Context, id, account, why string, now time.Time) {
	d, err := r.q.Detail(ctx, id)
	if err != nil {
		if !errors.Is(err, store.ErrNotFound) {
			r.log.storeFailed("detail", account, err)
		}
		return
	}
	for _, j := range d.Jobs {
		if j.Account != account || j.Expires.After(now) || r.suspect(j.Created) {
			continue
		}
		reason := "its time ran out while " + why
		if why == "no route" {
			reason = "its time ran out without a route"
		}
		if err := r.q.Hold(ctx, id, reason); err != nil {
			r.log.storeFailed("hold", account, err)
			return
		}
		r.log.held(id, account, reason)
		ev := r.notice(noticeHeld, account, now, reason)
		ev.QueueID = id
		ev.ID = event.FactID(account, noticeHeld, id, j.Expires.UTC().Format(time.RFC3339))
		if _, err := r.q.Record(ctx, nil, ev); err != nil {
			r.log.storeFailed("record", account, err)
		}
		return
	}
}

// suspect reports whether the clock made a large jump after t, so that an age since t proves nothing.
func (r *Runner) suspect(t time.Time) bool {
	j := r.jumped.Load()
	return j != 0 && t.UnixNano() < j && r.clock.Now().UnixNano()-j < int64(suspectJump)
}

// notice is an event about an account or a held mail, in the bridge's own words.
func (r *Runner) notice(name, account string, now time.Time, text string) event.Event {
	ev := event.Event{
		V: event.Version, ID: event.FactID(account, name, now.UTC().Format(time.RFC3339Nano)), Time: now, Seen: now,
		Kind: event.Unknown, Account: account, ProviderEvent: name, Diagnostic: event.Clean(text, event.MaxText),
	}
	if a, ok := r.planner.Load().Account(account); ok {
		ev.Provider = a.Info.Name
	}
	return ev
}

// AccountStatus is one account as an operator sees it.
type AccountStatus struct {
	Name     string    `json:"name"`
	Provider string    `json:"provider"`
	State    string    `json:"state"`
	Until    time.Time `json:"until,omitzero"` // end of throttling, or next probe
	Reason   string    `json:"reason,omitempty"`
	Since    time.Time `json:"since,omitzero"`
	InFlight int       `json:"in_flight"` // calls being made
	Claimed  int       `json:"claimed"`   // mails at work
	Queued   int       `json:"queued"`
	Domains  []struct {
		Domain string    `json:"domain"`
		Until  time.Time `json:"until"`
		Reason string    `json:"reason"`
	} `json:"domains,omitempty"` // paused From domains
	LostFeatures []string `json:"lost_features,omitempty"` // not in the account's plan
}

// Status is the Runner as an operator sees it.
type Status struct {
	Generation int64           `json:"generation"`
	Unsaved    int             `json:"unsaved"` // results that wait to be saved; nothing new starts meanwhile
	Accounts   []AccountStatus `json:"accounts"`
}

// Status reports all accounts, by name. Queued is left at zero when the store cannot tell.
func (r *Runner) Status(ctx context.Context) Status {
	s := Status{Generation: r.planner.Load().Generation(), Unsaved: int(r.unsaved.Load())}
	stats, err := r.q.Stats(ctx)
	if err != nil {
		r.log.storeFailed("stats", "", err)
	}
	now := r.clock.Now()
	for _, l := range r.allLanes() {
		a := AccountStatus{
			Name: l.name, Provider: l.account().Info.Name, InFlight: int(l.calls.Load()), Claimed: int(l.inHand.Load()),
			Queued: stats.ByAccount[l.name], LostFeatures: l.gate.lost(),
		}
		for _, g := range l.gate.snapshot() {
			if g.Domain == "" {
				a.State, a.Until, a.Reason, a.Since = g.State, g.Until, g.Reason, g.Since
				if g.State == Throttled && !now.Before(g.Until) {
					a.State, a.Until, a.Reason = Active, time.Time{}, ""
				}
				continue
			}
			a.Domains = append(a.Domains, struct {
				Domain string    `json:"domain"`
				Until  time.Time `json:"until"`
				Reason string    `json:"reason"`
			}{g.Domain, g.Until, g.Reason})
		}
		s.Accounts = append(s.Accounts, a)
	}
	return s
}

// Pause stops an account until Resume. Calls in flight end; its mail waits, or goes to another account of its route.
func (r *Runner) Pause(ctx context.Context, account, reason string) error {
	l := r.lane(account)
	if l == nil {
		return fmt.Errorf("%w: %q", ErrNoAccount, account)
	}
	if reason == "" {
		reason = "by an operator"
	}
	return l.save(ctx, l.gate.stop(r.clock.Now(), reason))
}

// Resume ends any pause of an account, and of its From domains, at once.
func (r *Runner) Resume(ctx context.Context, account string) error {
	l := r.lane(account)
	if l == nil {
		return fmt.Errorf("%w: %q", ErrNoAccount, account)
	}
	var errs []error
	for _, ch := range l.gate.start(r.clock.Now()) {
		errs = append(errs, l.save(ctx, ch))
	}
	l.wake()
	return errors.Join(errs...)
}

// RetryNow makes a mail due at once.
func (r *Runner) RetryNow(ctx context.Context, id string) error { return r.q.Retry(ctx, id) }

// Expectation waits for the first attempt at every recipient of one mail (accept = "wait").
type Expectation struct {
	r    *Runner
	id   string
	mu   sync.Mutex
	left int
	sum  FirstResult
	done chan struct{}
}

// FirstResult is what the first attempts came to.
type FirstResult struct {
	Sent    int
	Refused int
	Waiting int // will be tried again
	Unknown int // may have been accepted
	Reply   string
}

// Expect must be called before the mail is committed. rcpts is how many recipients its jobs have.
func (r *Runner) Expect(id string, rcpts int) *Expectation {
	e := &Expectation{r: r, id: id, left: rcpts, done: make(chan struct{})}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.expect[id] = append(r.expect[id], e)
	return e
}

// Wait returns when every recipient was tried, or ctx has ended; then complete is false.
func (e *Expectation) Wait(ctx context.Context) (res FirstResult, complete bool) {
	select {
	case <-e.done:
		complete = true
	case <-ctx.Done():
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sum, complete
}

// Close gives up waiting.
func (e *Expectation) Close() {
	e.r.mu.Lock()
	defer e.r.mu.Unlock()
	es := slices.DeleteFunc(e.r.expect[e.id], func(x *Expectation) bool { return x == e })
	if len(es) == 0 {
		delete(e.r.expect, e.id)
	} else {
		e.r.expect[e.id] = es
	}
}

func (r *Runner) tell(id string, res FirstResult) {
	r.mu.Lock()
	es := slices.Clone(r.expect[id])
	r.mu.Unlock()
	for _, e := range es {
		e.add(res)
	}
}

func (e *Expectation) add(res FirstResult) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.left <= 0 {
		return
	}
	e.sum.Sent += res.Sent
	e.sum.Refused += res.Refused
	e.sum.Waiting += res.Waiting
	e.sum.Unknown += res.Unknown
	if res.Reply != "" {
		e.sum.Reply = res.Reply
	}
	if e.left -= res.Sent + res.Refused + res.Waiting + res.Unknown; e.left <= 0 {
		close(e.done)
	}
}
