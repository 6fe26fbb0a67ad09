package admin

import (
	"context"
	"errors"
	"log/slog"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"smtpbridge/event"
	"smtpbridge/store"
)

type fakeAlarmStore struct {
	stats    store.Stats
	accounts []store.AccountState
	events   []event.Event
	cursors  map[string]string
	down     bool // takes no writes
}

func (f *fakeAlarmStore) Stats(context.Context) (store.Stats, error) { return f.stats, nil }

func (f *fakeAlarmStore) Accounts(context.Context) ([]store.AccountState, error) {
	return f.accounts, nil
}

func (f *fakeAlarmStore) Record(_ context.Context, _ *store.RawRequest, evs ...event.Event) (int, error) {
	if f.down {
		return 0, errors.New("down")
	}
	f.events = append(f.events, evs...)
	return len(evs), nil
}

func (f *fakeAlarmStore) Cursor(_ context.Context, name string) (string, error) {
	return f.cursors[name], nil
}

func (f *fakeAlarmStore) SetCursor(_ context.Context, name, value string) error {
	if f.down {
		return errors.New("down")
	}
	if f.cursors == nil {
		f.cursors = map[string]string{}
	}
	f.cursors[name] = value
	return nil
}

// Each alarm is raised once and cleared once, whatever is looked at in between: as an event, a log line, a metric and a
// detail of /readyz, and a restart changes nothing about it.
func TestAlarms(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	st := &fakeAlarmStore{}
	low := false
	cert := ""
	failing := map[string]string{}
	var log strings.Builder
	var m *Metrics
	var a *Alarms
	start := func() {
		m = NewMetrics("test", nil)
		a = &Alarms{
			Store: st, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: func() time.Time { return now }, Metrics: m,
			Disk: func() (bool, string) { return low, "1 MiB" }, Signatures: func() map[string]string { return failing },
			Certificates: func() string { return cert },
		}
	}
	start()
	metric := func(name, account string) float64 {
		reg := prometheus.NewRegistry()
		reg.MustRegister(m.alarms)
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if l := m.GetLabel(); l[0].GetValue() == account && l[1].GetValue() == name {
					return m.GetGauge().GetValue()
				}
			}
		}
		return 0
	}
	look := func(d time.Duration) {
		now = now.Add(d)
		a.Look(t.Context())
		start() // all that is known survives a restart
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
		{"probe", func() { st.accounts[0].State = "probing" }, time.Minute, []string{"account_paused"}, nil},
		{"active", func() { st.accounts = nil }, time.Minute, nil, nil},
		{"certificate", func() { cert = "expires" }, time.Minute, []string{"certificate"}, []string{"alarm.raised.certificate"}},
		{"renewed", func() { cert = "" }, time.Minute, nil, []string{"alarm.cleared.certificate"}},
		{"signatures", func() { failing["x"] = "why" }, time.Minute, []string{"webhook_signatures"}, []string{"alarm.raised.webhook_signatures"}},
		{"more disks", func() { low = true; delete(failing, "x") }, time.Minute, []string{"disk_low"}, []string{"alarm.raised.disk_low", "alarm.cleared.webhook_signatures"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			st.events = nil
			log.Reset()
			step.change()
			look(step.after)
			var raised, events []string
			for _, al := range a.Raised() {
				raised = append(raised, al.Name)
				if metric(al.Name, al.Account) != 1 {
					t.Errorf("the metric of %s is not set", al.Name)
				}
			}
			for _, e := range st.events {
				events = append(events, e.ProviderEvent)
				word, name, _ := strings.Cut(strings.TrimPrefix(e.ProviderEvent, "alarm."), ".")
				if n := strings.Count(log.String(), "msg=alarm."+word+" alarm="+name); n != 1 {
					t.Errorf("%d log lines say %s", n, e.ProviderEvent)
				}
				if word == "cleared" && metric(name, e.Account) != 0 {
					t.Errorf("the metric of %s is still set", name)
				}
			}
			if !slices.Equal(raised, step.raised) || !slices.Equal(events, step.events) {
				t.Errorf("raised %v, told %v; want %v, %v", raised, events, step.raised, step.events)
			}
			if n := strings.Count(log.String(), "\n"); n != len(step.events) {
				t.Errorf("%d log lines: %s", n, log.String())
			}
			w := httptest.NewRecorder()
			Health(func(context.Context) error { return nil }, a.Raised, m).ServeHTTP(w, httptest.NewRequest("GET", "/readyz", nil))
			for _, name := range step.raised {
				if w.Code != 200 || !strings.Contains(w.Body.String(), `"alarm":"`+name+`"`) {
					t.Errorf("/readyz: %d %s", w.Code, w.Body)
				}
			}
		})
	}
}

// TestAlarmWhileTheStoreIsDown: an event that could not be stored is stored later, once.
func TestAlarmWhileTheStoreIsDown(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	st := &fakeAlarmStore{down: true}
	a := &Alarms{Store: st, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { return now }, Disk: func() (bool, string) { return true, "0 MiB" }}
	for range 3 {
		a.Look(t.Context())
	}
	if len(a.Raised()) != 1 || len(st.events) != 0 {
		t.Fatalf("raised %v, stored %v", a.Raised(), st.events)
	}
	st.down = false
	for range 3 {
		a.Look(t.Context())
	}
	if len(st.events) != 1 || st.events[0].ProviderEvent != "alarm.raised.disk_low" || !st.events[0].Time.Equal(now) {
		t.Errorf("stored %+v", st.events)
	}
}

// TestAlarmLeaderDies: whoever goes on where a process died, after any step of telling an alarm, tells it under the same id; one that
// leads no more tells nothing.
func TestAlarmLeaderDies(t *testing.T) {
	now := time.Date(2026, 11, 2, 10, 0, 0, 0, time.UTC)
	st := &fakeAlarmStore{}
	st.stats.Oldest = now.Add(-2 * time.Hour)
	leader := func(s AlarmStore) *Alarms {
		return &Alarms{Store: s, Log: slog.New(slog.DiscardHandler), Now: func() time.Time { now = now.Add(time.Second); return now }, Lead: func(context.Context) bool { return true }}
	}
	for i, writes := range []int{0, 1, 1} { // that one process after the other can still do
		leader(&dyingStore{st, writes}).Look(t.Context())
		if told := len(st.events) > 0; told != (i == 2) {
			t.Errorf("process %d: told %v", i, st.events)
		}
	}
	last := leader(st)
	last.Look(t.Context())
	last.Look(t.Context())
	ids := map[string]bool{}
	for _, e := range st.events {
		ids[e.ProviderEvent+e.ID] = true
	}
	if len(ids) != 1 || len(st.events) != 2 {
		t.Errorf("one alarm has the events %v", st.events)
	}
	if strings.Contains(st.cursors["alarms"], "unsaid") {
		t.Errorf("what was told is kept: %s", st.cursors["alarms"])
	}
}

// dyingStore takes so many writes, then no more.
type dyingStore struct {
	*fakeAlarmStore
	writes int
}

func (d *dyingStore) write() error {
	if d.writes--; d.writes < 0 {
		return store.ErrStale
	}
	return nil
}

func (d *dyingStore) Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (int, error) {
	if err := d.write(); err != nil {
		return 0, err
	}
	return d.fakeAlarmStore.Record(ctx, raw, evs...)
}

func (d *dyingStore) SetCursor(ctx context.Context, name, value string) error {
	if err := d.write(); err != nil {
		return err
	}
	return d.fakeAlarmStore.SetCursor(ctx, name, value)
}
