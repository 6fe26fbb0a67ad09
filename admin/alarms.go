package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// What the alarms watch for.
const (
	// BacklogAge is how long a mail may wait, once it is due, before the backlog is an alarm.
	BacklogAge = time.Hour
	// SilenceAfter is how long an account that had webhooks before may send mail without getting one.
	SilenceAfter = 24 * time.Hour
	alarmEvery   = 30 * time.Second
	followEvery  = 2 * time.Second // how soon the work of a process that died is taken over
)

// Names of alarms.
const (
	AlarmBacklog    = "backlog"
	AlarmDisk       = "disk_low"
	AlarmSilence    = "webhook_silence"
	AlarmSignatures = "webhook_signatures"
	AlarmPaused     = "account_paused"
	AlarmCert       = "certificate"
)

// Alarm is a condition a person should look at.
type Alarm struct {
	Name    string    `json:"alarm"`
	Account string    `json:"account,omitempty"`
	Text    string    `json:"text"`
	Since   time.Time `json:"since"`
}

func (a Alarm) key() string { return a.Name + " " + a.Account }

// AlarmStore is what Alarms read and write; *store.Store is one.
type AlarmStore interface {
	Stats(ctx context.Context) (store.Stats, error)
	Accounts(ctx context.Context) ([]store.AccountState, error)
	Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (int, error)
	Cursor(ctx context.Context, name string) (string, error)
	SetCursor(ctx context.Context, name, value string) error
}

// Alarms raise each condition once and clear it once: as an event, a log line, a metric and a detail of /readyz. A restart
// neither raises nor clears one again. Pauses of accounts are told by the workers' own events and log lines; here they are only shown.
type Alarms struct {
	Store   AlarmStore
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time
	// Node tells bridges that share a store apart; "" for one alone.
	Node string
	// Local: only conditions of this process (Disk, Certificates, Signatures, More).
	Local bool
	// Lead tells whether this process tells the alarms now; the others show what that one raised. nil = it does.
	Lead func(ctx context.Context) bool
	// Webhooks gives the last webhook of each account at any node; nil = this process hears them all.
	Webhooks func(ctx context.Context) (map[string]time.Time, error)
	// Disk tells whether free space is below the watermark, with a text; nil = not watched.
	Disk func() (low bool, text string)
	// Certificates tells what is wrong with the certificates of this process, "" = nothing; nil = not watched.
	Certificates func() string
	// More gives conditions that are watched elsewhere; nil = none.
	More func() []Alarm
	// Signatures gives the accounts whose webhooks keep failing to verify, with a text; nil = not watched.
	Signatures func() map[string]string

	mu     sync.Mutex
	raised map[string]Alarm
	hooks  map[string]*traffic

	looking sync.Mutex // one Look at a time; what follows is its own
	loaded  bool
	saved   string
	unsaid  []event.Event // events that follow from raised and are not stored for certain
}

// traffic is what an account sent and what came back.
type traffic struct {
	Webhook   time.Time `json:"webhook"`    // last request that was answered 200
	FirstSent time.Time `json:"first_sent"` // first accepted call after it
}

// memory is what outlives a restart, and goes on to the next process that leads.
type memory struct {
	Raised []Alarm             `json:"raised"`
	Hooks  map[string]*traffic `json:"hooks"`
	Unsaid []event.Event       `json:"unsaid,omitempty"`
}

// Sent notes an accepted call of an account.
func (a *Alarms) Sent(account string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traffic(account); t.FirstSent.IsZero() {
		t.FirstSent = a.Now()
	}
}

// Heard notes a webhook of an account.
func (a *Alarms) Heard(account string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traffic(account)
	t.Webhook, t.FirstSent = a.Now(), time.Time{}
}

func (a *Alarms) traffic(account string) *traffic {
	if a.hooks == nil {
		a.hooks = map[string]*traffic{}
	}
	t := a.hooks[account]
	if t == nil {
		t = &traffic{}
		a.hooks[account] = t
	}
	return t
}

// Raised lists what is raised now.
func (a *Alarms) Raised() []Alarm {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]Alarm, 0, len(a.raised))
	for _, k := range slices.Sorted(maps.Keys(a.raised)) {
		out = append(out, a.raised[k])
	}
	return out
}

// Run looks at the conditions until ctx ends.
func (a *Alarms) Run(ctx context.Context) error {
	for {
		a.Look(ctx)
		every := alarmEvery
		if a.Lead != nil && !a.Lead(ctx) {
			every = followEvery
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(every):
		}
	}
}

// Look checks every condition once.
func (a *Alarms) Look(ctx context.Context) {
	a.looking.Lock()
	defer a.looking.Unlock()
	if a.Lead != nil && !a.Lead(ctx) {
		a.follow(ctx)
		return
	}
	now := a.Now()
	a.load(ctx)
	found, ok := a.look(ctx, now)
	if !ok {
		return // the store does not answer: nothing is known, so nothing is raised or cleared
	}
	a.mu.Lock()
	before := a.raised
	for k, al := range found {
		if old, ok := before[k]; ok {
			al.Since = old.Since
			found[k] = al
		}
	}
	a.raised = found
	a.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(found)) {
		if _, ok := before[k]; !ok {
			a.tell(found[k], true, now)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(before)) {
		if _, ok := found[k]; !ok {
			a.tell(before[k], false, now)
		}
	}
	a.save(ctx)
}

// follow shows what the process that leads has raised. What that one says last counts when this one begins to lead.
func (a *Alarms) follow(ctx context.Context) {
	before := a.Raised()
	a.loaded = false
	a.load(ctx)
	if !a.loaded {
		return
	}
	a.loaded = false
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, al := range before {
		if _, ok := a.raised[al.key()]; !ok && a.Metrics != nil {
			a.Metrics.alarm(al.Name, al.Account, false)
		}
	}
}

// conditions are alarms that should be raised, by key.
type conditions map[string]Alarm

// look gives every alarm that should be raised now.
func (a *Alarms) look(ctx context.Context, now time.Time) (found conditions, ok bool) {
	found = conditions{}
	if !a.Local {
		if ok = a.sharedConditions(ctx, now, found); !ok {
			return nil, false
		}
	}
	a.ownConditions(now, found)
	return found, true
}

func (f conditions) add(now time.Time, name, account, text string) {
	al := Alarm{Name: name, Account: account, Text: text, Since: now}
	if old, ok := f[al.key()]; ok {
		al.Text = old.Text + "; " + text
	}
	f[al.key()] = al
}

// sharedConditions are those that every process with the same store sees alike. False: the store does not answer.
func (a *Alarms) sharedConditions(ctx context.Context, now time.Time, found conditions) bool {
	st, err := a.Store.Stats(ctx)
	if err != nil {
		return false
	}
	if !st.Oldest.IsZero() && now.Sub(st.Oldest) > BacklogAge {
		found.add(now, AlarmBacklog, "", fmt.Sprintf("the first of %d queued mails has been waiting for %s", st.Queued, now.Sub(st.Oldest).Round(time.Minute)))
	}
	states, err := a.Store.Accounts(ctx)
	if err != nil {
		return false
	}
	for _, s := range states {
		switch s.State {
		case "paused", "probing", "stopped":
			text := s.Reason
			if s.Domain != "" {
				text = "mail from " + s.Domain + ": " + text
			}
			found.add(now, AlarmPaused, s.Account, text)
		}
	}
	if a.Webhooks != nil {
		last, err := a.Webhooks(ctx)
		if err != nil {
			return false
		}
		a.mu.Lock()
		for account, at := range last {
			if t := a.traffic(account); at.After(t.Webhook) {
				t.Webhook, t.FirstSent = at, time.Time{}
			}
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for name, t := range a.hooks {
		if !t.Webhook.IsZero() && !t.FirstSent.IsZero() && now.Sub(t.FirstSent) > SilenceAfter {
			found.add(now, AlarmSilence, name, fmt.Sprintf("mail is sent, but no webhook came since %s", t.Webhook.UTC().Format(time.RFC3339)))
		}
	}
	return true
}

// ownConditions are those of this process.
func (a *Alarms) ownConditions(now time.Time, found conditions) {
	if a.Disk != nil {
		if low, text := a.Disk(); low {
			found.add(now, AlarmDisk, "", text)
		}
	}
	if a.Certificates != nil {
		if text := a.Certificates(); text != "" {
			found.add(now, AlarmCert, "", text)
		}
	}
	if a.More != nil {
		for _, al := range a.More() {
			found.add(now, al.Name, al.Account, al.Text)
		}
	}
	if a.Signatures != nil {
		for account, text := range a.Signatures() {
			found.add(now, AlarmSignatures, account, text)
		}
	}
}

// tell says once that an alarm was raised or cleared.
func (a *Alarms) tell(al Alarm, raised bool, now time.Time) {
	if a.Metrics != nil {
		a.Metrics.alarm(al.Name, al.Account, raised)
	}
	if al.Name == AlarmPaused {
		return // said by the workers
	}
	word := "alarm.cleared"
	if raised {
		word = "alarm.raised"
		a.Log.Error(word, "alarm", al.Name, "account", al.Account, "text", al.Text)
	} else {
		a.Log.Info(word, "alarm", al.Name, "account", al.Account)
	}
	a.unsaid = append(a.unsaid, event.Event{
		V: event.Version, ID: event.FactID(al.Account, word, al.Name, a.Node, now.UTC().Format(time.RFC3339Nano)), Time: now.UTC(), Seen: now.UTC(),
		Kind: event.Unknown, Account: al.Account, ProviderEvent: word + "." + al.Name, Diagnostic: event.Clean(al.Text, event.MaxText),
	})
}

func (a *Alarms) cursor() string {
	if a.Node == "" {
		return "alarms"
	}
	return "alarms " + a.Node
}

// load takes up what was raised, and heard, before a restart.
func (a *Alarms) load(ctx context.Context) {
	if a.loaded {
		return
	}
	text, err := a.Store.Cursor(ctx, a.cursor())
	if err != nil {
		return // the next look tries again
	}
	a.loaded, a.saved = true, text
	var m memory
	if a.Lead != nil {
		a.unsaid = nil
		a.mu.Lock()
		a.raised = nil
		a.mu.Unlock()
	}
	if text == "" || json.Unmarshal([]byte(text), &m) != nil {
		return // none, or written by a version that kept something else
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.raised, a.unsaid = map[string]Alarm{}, append(m.Unsaid, a.unsaid...)
	for _, al := range m.Raised {
		a.raised[al.key()] = al
		if a.Metrics != nil {
			a.Metrics.alarm(al.Name, al.Account, true)
		}
	}
	for name, t := range m.Hooks {
		if now := a.traffic(name); t != nil && now.Webhook.IsZero() {
			now.Webhook = t.Webhook
			if !t.FirstSent.IsZero() {
				now.FirstSent = t.FirstSent
			}
		}
	}
}

// save stores what shall outlive this process, then the events that follow from it, then that they are stored. Whoever goes on after any of
// these steps stores the same events again, and an event stored twice is one: what a process that leads no more would say is refused
// with the first step. What fails is tried again at the next look.
func (a *Alarms) save(ctx context.Context) {
	if !a.loaded || !a.keep(ctx) || len(a.unsaid) == 0 {
		return
	}
	if _, err := a.Store.Record(ctx, nil, a.unsaid...); err != nil {
		if ctx.Err() == nil {
			a.Log.Error("alarm.not_stored", "events", len(a.unsaid), "err", err)
		}
		return
	}
	a.unsaid = nil
	a.keep(ctx)
}

// keep stores the memory, if it is another one than that which is stored.
func (a *Alarms) keep(ctx context.Context) bool {
	m := memory{Raised: a.Raised(), Unsaid: a.unsaid}
	a.mu.Lock()
	m.Hooks = a.hooks
	text, err := json.Marshal(m)
	a.mu.Unlock()
	if err != nil {
		return false
	}
	if string(text) == a.saved {
		return true
	}
	if a.Store.SetCursor(ctx, a.cursor(), string(text)) != nil {
		return false
	}
	a.saved = string(text)
	return true
}
