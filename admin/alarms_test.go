package admin

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

type fakeAlarmStore struct {
	stats    store.Stats
	accounts []store.AccountState
	events   []event.Event
}

func (f *fakeAlarmStore) Stats(context.Context) (store.Stats, error) { return f.stats, nil }

func (f *fakeAlarmStore) Accounts(context.Context) ([]store.AccountState, error) {
	return f.accounts, nil
}

func (f *fakeAlarmStore) Record(_ context.Context, _ *store.RawRequest, evs ...event.Event) (int, error) {
	f.events = append(f.events, evs...)
	return len(evs), nil
}

// Each alarm is raised once and cleared once, whatever is looked at in between.
func TestAlarms(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	st := &fakeAlarmStore{}
	low := false
	a := &Alarms{
		Store: st, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now },
		Disk: func() (bool, string) { return low, "1 MiB" },
	}
	look := func(d time.Duration) {
		now = now.Add(d)
		a.Look(t.Context())
		a.Look(t.Context())
	}
	for _, step := range []struct {
		name   string
		change func()
		after  time.Duration
		raised []string
		events []string // told by this step
	}{
		{"quiet", func() {}, 0, nil, nil},
		{"a mail waits", func() { st.stats.Oldest = now }, 30 * time.Minute, nil, nil},
		{"too long", func() {}, 31 * time.Minute, []string{"backlog"}, []string{"alarm.raised.backlog"}},
		{"disk", func() { low = true }, time.Minute, []string{"backlog", "disk_low"}, []string{"alarm.raised.disk_low"}},
		{"sent at last", func() { st.stats.Oldest = time.Time{} }, time.Minute, []string{"disk_low"}, []string{"alarm.cleared.backlog"}},
		{"space again", func() { low = false }, time.Minute, nil, []string{"alarm.cleared.disk_low"}},
		{"an account that never had webhooks", func() { a.Sent("x") }, 48 * time.Hour, nil, nil},
		{"one that had", func() { a.Heard("x"); a.Sent("x") }, 23 * time.Hour, nil, nil},
		{"silence", func() {}, 2 * time.Hour, []string{"webhook_silence"}, []string{"alarm.raised.webhook_silence"}},
		{"heard again", func() { a.Heard("x") }, 48 * time.Hour, nil, []string{"alarm.cleared.webhook_silence"}},
		{"pause", func() { st.accounts = []store.AccountState{{Account: "x", State: "paused", Reason: "key"}} }, time.Minute, []string{"account_paused"}, nil},
		{"active", func() { st.accounts = nil }, time.Minute, nil, nil},
	} {
		t.Run(step.name, func(t *testing.T) {
			st.events = nil
			step.change()
			look(step.after)
			var raised, events []string
			for _, al := range a.Raised() {
				raised = append(raised, al.Name)
			}
			for _, e := range st.events {
				events = append(events, e.ProviderEvent)
			}
			if !slices.Equal(raised, step.raised) || !slices.Equal(events, step.events) {
				t.Errorf("raised %v, told %v; want %v, %v", raised, events, step.raised, step.events)
			}
		})
	}
}
