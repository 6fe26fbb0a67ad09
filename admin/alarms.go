package admin

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// What the alarms watch for.
const (
	// BacklogAge is the age of the oldest waiting mail from which on the backlog is an alarm.
	BacklogAge = time.Hour
	// SilenceAfter is how long an account that had webhooks before may send mail without getting one.
	SilenceAfter = 24 * time.Hour
	alarmEvery   = 30 * time.Second
)

// Alarm is a condition a person should look at.
type Alarm struct {
	Name    string    `json:"alarm"` // backlog, disk_low, webhook_silence, silent_mails, account_paused
	Account string    `json:"account,omitempty"`
	Text    string    `json:"text"`
	Since   time.Time `json:"since"`
}

// AlarmStore is what Alarms read and write; *store.Store is one.
type AlarmStore interface {
	Stats(ctx context.Context) (store.Stats, error)
	Accounts(ctx context.Context) ([]store.AccountState, error)
	Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (int, error)
}

// Alarms raise each condition once and clear it once: as an event, a log line, a metric and a
// detail of /readyz. Pauses of accounts are told by the workers' own events and log lines; here they are only shown.
type Alarms struct {
	Store   AlarmStore
	Metrics *Metrics
	Log     *slog.Logger
	Now     func() time.Time
	// Disk tells whether free space is below the watermark, with a text; nil = not watched.
	Disk func() (low bool, text string)
	// More gives conditions that are watched elsewhere; nil = none.
	More func() []Alarm

	mu     sync.Mutex
	raised map[string]Alarm
	hooks  map[string]*traffic
}

// traffic is what an account sent and what came back.
type traffic struct {
	webhook   time.Time // last request that was answered 200
	firstSent time.Time // first accepted call after it
}

// Sent notes an accepted call of an account.
func (a *Alarms) Sent(account string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t := a.traffic(account); t.firstSent.IsZero() {
		t.firstSent = a.Now()
	}
}

// Heard notes a webhook of an account.
func (a *Alarms) Heard(account string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := a.traffic(account)
	t.webhook, t.firstSent = a.Now(), time.Time{}
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
	for _, al := range a.raised {
		out = append(out, al)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name+out[i].Account < out[j].Name+out[j].Account })
	return out
}

// Run looks at the conditions until ctx ends.
func (a *Alarms) Run(ctx context.Context) error {
	t := time.NewTicker(alarmEvery)
	defer t.Stop()
	for {
		a.Look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// Look checks every condition once.
func (a *Alarms) Look(ctx context.Context) {
	now := a.Now()
	found := map[string]Alarm{}
	add := func(name, account, text string) {
		found[name+" "+account] = Alarm{Name: name, Account: account, Text: text, Since: now}
	}
	if st, err := a.Store.Stats(ctx); err == nil {
		if !st.Oldest.IsZero() && now.Sub(st.Oldest) > BacklogAge {
			add("backlog", "", fmt.Sprintf("the oldest of %d waiting mails came %s ago", st.Queued, now.Sub(st.Oldest).Round(time.Minute)))
		}
	}
	if states, err := a.Store.Accounts(ctx); err == nil {
		for _, s := range states {
			if s.State == "paused" || s.State == "stopped" {
				add("account_paused", s.Account, s.Reason)
			}
		}
	}
	if a.Disk != nil {
		if low, text := a.Disk(); low {
			add("disk_low", "", text)
		}
	}
	if a.More != nil {
		for _, al := range a.More() {
			add(al.Name, al.Account, al.Text)
		}
	}
	a.mu.Lock()
	for name, t := range a.hooks {
		if !t.webhook.IsZero() && !t.firstSent.IsZero() && now.Sub(t.firstSent) > SilenceAfter {
			add("webhook_silence", name, fmt.Sprintf("mail is sent, but no webhook came since %s", t.webhook.UTC().Format(time.RFC3339)))
		}
	}
	var changed []Alarm
	var states []bool
	for k, al := range found {
		if old, ok := a.raised[k]; ok {
			al.Since = old.Since
		} else {
			changed, states = append(changed, al), append(states, true)
		}
		found[k] = al
	}
	for k, al := range a.raised {
		if _, ok := found[k]; !ok {
			changed, states = append(changed, al), append(states, false)
		}
	}
	a.raised = found
	a.mu.Unlock()
	for i, al := range changed {
		a.tell(ctx, al, states[i], now)
	}
}

func (a *Alarms) tell(ctx context.Context, al Alarm, raised bool, now time.Time) {
	if a.Metrics != nil {
		a.Metrics.alarm(al.Name, al.Account, raised)
	}
	if al.Name == "account_paused" {
		return // said by the workers
	}
	word := "alarm.raised"
	if raised {
		a.Log.Error(word, "alarm", al.Name, "account", al.Account, "text", al.Text)
	} else {
		word = "alarm.cleared"
		a.Log.Info(word, "alarm", al.Name, "account", al.Account)
	}
	ev := event.Event{
		V: event.Version, ID: event.FactID(al.Account, word, al.Name, now.UTC().Format(time.RFC3339Nano)), Time: now.UTC(), Seen: now.UTC(),
		Kind: event.Unknown, Account: al.Account, ProviderEvent: word + "." + al.Name, Diagnostic: al.Text,
	}
	if _, err := a.Store.Record(ctx, nil, ev); err != nil && ctx.Err() == nil {
		a.Log.Error("the alarm's event was not stored", "alarm", al.Name, "err", err)
	}
}
