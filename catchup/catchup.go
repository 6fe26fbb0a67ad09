// Package catchup asks the ESPs for what their webhooks did not bring: after a start, after webhooks have gone
// silent, and for each mail of which nothing final is known after a while.
//
// Contract:
//   - Only accounts that have shown webhooks are asked: of others no mail has a final event, and that is no news.
//   - What is fetched goes the way of a webhook's events: an event, or another copy of one fact, that is known drops out.
//   - A place in an ESP's log is durable and moves only after its events are.
//   - No more calls are made than Info.LookUps allows.
//   - What stays without a final event is reported once, as an event, and counted for an alarm.
package catchup

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// Defaults of Config.
const (
	DefaultAfter   = 24 * time.Hour
	DefaultSilence = time.Hour
)

const (
	lookEvery   = time.Minute
	followEvery = 2 * time.Second  // how soon the work of a process that died is taken over
	notedEvery  = 10 * time.Minute // how often a webhook is noted durably
	callTimeout = time.Minute
	// maxLooks is how often an ESP is asked about one recipient, at ever longer intervals.
	maxLooks = 4
	// defaultLookUps is for an API whose limits are not documented.
	defaultLookUps = 6
	lastWords      = 5 * time.Second
)

// EventSilent is the native name of the event that reports a mail without a final event.
const EventSilent = "catchup.silent"

// Store is what the Runner needs of it; *store.Store is one.
type Store interface {
	Silent(ctx context.Context, account string, before time.Time, n int) ([]store.Silent, error)
	SilentCount(ctx context.Context, account string, before time.Time) (int, error)
	Looked(ctx context.Context, e store.Silent, again time.Time) error
	Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (int, error)
	Cursor(ctx context.Context, name string) (string, error)
	SetCursor(ctx context.Context, name, cursor string) error
}

// Account is one that may be asked.
type Account struct {
	Name     string
	Info     providers.Info
	Provider providers.Provider
}

// Config is what a Runner is made from.
type Config struct {
	Store    Store
	Accounts func() []Account // those of now
	After    time.Duration    // how long a mail may be without a final event, 0 = DefaultAfter
	Silence  time.Duration    // of the webhooks of an account that sends, 0 = DefaultSilence
	Now      func() time.Time // nil = time.Now
	Log      *slog.Logger     // nil = silent
	// Lead tells whether this process asks now: of bridges that share a store one does. nil = it does.
	Lead func(ctx context.Context) bool
	// KeepReaders keeps the address and browser of who opened or clicked.
	KeepReaders bool
}

// Runner asks.
type Runner struct {
	Config

	mu    sync.Mutex
	state map[string]*state
}

// state is what is known of an account since the start.
type state struct {
	read   bool      // shown was read from the store
	shown  time.Time // last webhook ever
	noted  time.Time // shown as it is in the store
	sent   time.Time // first acceptance after the last webhook
	polled time.Time
	next   time.Time // nothing is asked before
	logged time.Time
	silent int
}

// New makes a Runner.
func New(c Config) *Runner {
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{{&c.After, DefaultAfter}, {&c.Silence, DefaultSilence}} {
		if *d.p <= 0 {
			*d.p = d.v
		}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{Config: c, state: map[string]*state{}}
}

func (r *Runner) of(account string) *state {
	s := r.state[account]
	if s == nil {
		s = &state{}
		r.state[account] = s
	}
	return s
}

// Heard notes a webhook of an account.
func (r *Runner) Heard(account string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.of(account)
	s.shown, s.sent = r.Now(), time.Time{}
}

// Sent notes that an account took a mail.
func (r *Runner) Sent(account string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.of(account); s.sent.IsZero() {
		s.sent = r.Now()
	}
}

// Missing is how many recipients of each account have no final event although the ESP was asked.
func (r *Runner) Missing() map[string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]int{}
	for name, s := range r.state {
		if s.silent > 0 {
			out[name] = s.silent
		}
	}
	return out
}

// Run looks at every account until ctx ends.
func (r *Runner) Run(ctx context.Context) error {
	look, follow := time.NewTicker(lookEvery), time.NewTicker(followEvery)
	defer look.Stop()
	defer follow.Stop()
	r.Look(ctx)
	for r.rest(ctx, look.C, follow.C) {
		r.Look(ctx)
	}
	r.noteAll(ctx)
	return nil
}

// rest waits for the time of the next look, or until the work of a process that died is ours. False: ctx ended.
func (r *Runner) rest(ctx context.Context, look, follow <-chan time.Time) bool {
	led := r.leads(ctx)
	for {
		select {
		case <-ctx.Done():
			return false
		case <-look:
			return true
		case <-follow:
			if !led && r.leads(ctx) {
				return true
			}
		}
	}
}

func (r *Runner) leads(ctx context.Context) bool { return r.Lead == nil || r.Lead(ctx) }

// Look asks what is to be asked now, account by account: none waits long for another.
func (r *Runner) Look(ctx context.Context) {
	var wg sync.WaitGroup
	for _, a := range r.Accounts() {
		wg.Go(func() {
			if err := r.look(ctx, a); err != nil && ctx.Err() == nil {
				r.failed(a, err)
			}
		})
	}
	wg.Wait()
}

func (r *Runner) look(ctx context.Context, a Account) error {
	if err := r.note(ctx, a.Name, notedEvery); err != nil {
		return err
	}
	if !r.leads(ctx) {
		r.mu.Lock()
		s := r.of(a.Name)
		s.silent = 0   // the one that asks tells
		s.read = false // webhooks may come to another one alone
		r.mu.Unlock()
		return nil
	}
	now := r.Now()
	r.mu.Lock()
	s := *r.of(a.Name)
	r.mu.Unlock()
	if s.shown.IsZero() || now.Before(s.next) {
		return nil
	}
	budget := a.Info.LookUps
	if budget <= 0 {
		budget = defaultLookUps
	}
	poller, polls := a.Provider.(providers.Poller)
	quiet := !s.sent.IsZero() && now.Sub(later(s.sent, s.shown)) > r.Silence
	if polls && (s.polled.IsZero() || quiet && now.Sub(s.polled) > r.Silence) {
		if err := r.poll(ctx, a, poller); err != nil {
			return err
		}
		s.polled = now
		budget--
	}
	before := now.Add(-r.After)
	list, err := r.Store.Silent(ctx, a.Name, before, budget)
	if err != nil {
		return err
	}
	tracker, tracks := a.Provider.(providers.Tracker)
	if len(list) > 0 && !tracks && polls && s.polled.Before(now) && now.Sub(s.polled) > r.Silence {
		if err := r.poll(ctx, a, poller); err != nil {
			return err
		}
		if list, err = r.Store.Silent(ctx, a.Name, before, budget); err != nil {
			return err
		}
	}
	for _, e := range list {
		if !tracks {
			tracker = nil
		}
		if err := r.ask(ctx, a, tracker, e, polls); err != nil {
			return err
		}
	}
	n, err := r.Store.SilentCount(ctx, a.Name, before)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.of(a.Name).silent = n
	r.mu.Unlock()
	return nil
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

func cursorName(account string) string { return "poll:" + account }
func shownName(account string) string  { return "webhooks:" + account }

// poll fetches what an ESP's log has, from the place of the last poll.
func (r *Runner) poll(ctx context.Context, a Account, p providers.Poller) error {
	name := cursorName(a.Name)
	cursor, err := r.Store.Cursor(ctx, name)
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	seen, fresh := 0, 0
	next, perr := p.Poll(call, []byte(cursor), func(evs []event.Event) error {
		n, err := r.record(ctx, a, evs)
		seen, fresh = seen+len(evs), fresh+n
		return err
	})
	if len(next) > 0 && string(next) != cursor {
		if err := r.Store.SetCursor(ctx, name, string(next)); err != nil {
			return errors.Join(perr, err)
		}
	}
	if perr != nil {
		return perr
	}
	r.mu.Lock()
	r.of(a.Name).polled = r.Now()
	r.mu.Unlock()
	if seen > 0 {
		r.Log.Info("events fetched", "event", "catchup.polled", "account", a.Name, "events", seen, "missed", fresh)
	}
	return nil
}

// record stores events as webhooks' are stored.
func (r *Runner) record(ctx context.Context, a Account, evs []event.Event) (int, error) {
	now := r.Now().UTC()
	for i := range evs {
		e := &evs[i]
		e.V, e.Account, e.Provider, e.Seen = event.Version, a.Name, a.Info.Name, now
		if e.Time.IsZero() {
			e.Time = now
		}
		if e.Kind.Engagement() && !r.KeepReaders {
			e.IP, e.UserAgent = "", ""
		}
		e.Sanitize()
	}
	return r.Store.Record(ctx, nil, evs...)
}

// ask looks one recipient up, and reports him when nothing final is known then.
func (r *Runner) ask(ctx context.Context, a Account, t providers.Tracker, e store.Silent, polled bool) error {
	what := "its API has no call to ask by"
	final := false
	if polled {
		what = "its log says nothing"
	}
	if t != nil {
		call, cancel := context.WithTimeout(ctx, callTimeout)
		evs, err := t.Track(call, providers.Tracked{Ref: e.Ref, MessageID: e.ProviderMessageID, Rcpt: e.Addr, From: e.From, Sent: e.Since})
		cancel()
		if err != nil {
			return err
		}
		fresh, err := r.record(ctx, a, evs)
		if err != nil {
			return err
		}
		if fresh > 0 {
			r.Log.Info("missed events fetched", "event", "catchup.tracked", "account", a.Name, "id", e.MailID, "events", fresh)
		}
		what = "asked, it says nothing final either"
		for _, ev := range evs {
			final = final || isFinal(ev.Kind)
		}
	}
	if !final && e.Looks == 0 {
		if err := r.report(ctx, a, e, what); err != nil {
			return err
		}
	}
	again := r.Now().Add(r.After << e.Looks)
	if final || e.Looks+1 >= maxLooks {
		again = r.Now().AddDate(100, 0, 0)
	}
	return r.Store.Looked(ctx, e, again)
}

func isFinal(k event.Kind) bool {
	switch k {
	case event.Delivered, event.Bounced, event.Rejected, event.Failed, event.Complained:
		return true
	}
	return false
}

func (r *Runner) report(ctx context.Context, a Account, e store.Silent, what string) error {
	now := r.Now().UTC()
	text := fmt.Sprintf("no final event of %s for %s: %s", a.Info.Title, now.Sub(e.Since).Round(time.Minute), what)
	r.Log.Warn("mail without a final event", "event", EventSilent, "account", a.Name, "id", e.MailID, "since", e.Since.UTC().Format(time.RFC3339), "why", what)
	_, err := r.Store.Record(ctx, nil, event.Event{
		V: event.Version, ID: event.FactID(a.Name, EventSilent, e.MailID, fmt.Sprint(e.N)), Time: now, Seen: now, Kind: event.Unknown,
		QueueID: e.MailID, Recipient: e.Addr, Account: a.Name, Provider: a.Info.Name, ProviderEvent: EventSilent, Diagnostic: text,
	})
	return err
}

// failed waits before an account is asked again.
func (r *Runner) failed(a Account, err error) {
	wait := 10 * time.Minute
	var pe *providers.Error
	if errors.As(err, &pe) {
		switch {
		case pe.RetryAfter > 0:
			wait = pe.RetryAfter
		case pe.Kind == providers.Operator || pe.Kind == providers.Permanent:
			wait = time.Hour
		}
	}
	now := r.Now()
	r.mu.Lock()
	s := r.of(a.Name)
	s.next = now.Add(wait)
	say := now.Sub(s.logged) > time.Hour
	if say {
		s.logged = now
	}
	r.mu.Unlock()
	if say {
		r.Log.Warn("the ESP could not be asked for missed events", "event", "catchup.failed", "account", a.Name, "err", err, "again_in", wait.String())
	}
}

// note keeps in the store that an account has shown webhooks, at most so often, and reads it first.
func (r *Runner) note(ctx context.Context, account string, every time.Duration) error {
	r.mu.Lock()
	s := *r.of(account)
	r.mu.Unlock()
	if !s.read {
		text, err := r.Store.Cursor(ctx, shownName(account))
		if err != nil {
			return err
		}
		t, _ := time.Parse(time.RFC3339, text) // "" is no time
		r.mu.Lock()
		st := r.of(account)
		st.read, st.noted, st.shown = true, t, later(st.shown, t)
		s = *st
		r.mu.Unlock()
	}
	if !s.shown.After(s.noted) || s.shown.Sub(s.noted) < every && !s.noted.IsZero() {
		return nil
	}
	if err := r.Store.SetCursor(ctx, shownName(account), s.shown.UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	r.mu.Lock()
	r.of(account).noted = s.shown
	r.mu.Unlock()
	return nil
}

// noteAll keeps what was not worth a write before the end.
func (r *Runner) noteAll(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
	defer cancel()
	for _, a := range r.Accounts() {
		if err := r.note(ctx, a.Name, 0); err != nil {
			r.Log.Warn("the time of the last webhook was not stored", "account", a.Name, "err", err)
		}
	}
}
