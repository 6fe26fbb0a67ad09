package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/storetest"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// fake is a provider made of functions.
type fake struct {
	mu    sync.Mutex
	caps  translate.Capabilities
	send  func(m *translate.Mail) (*providers.Outcome, error)
	calls []call
}

// call is one Send as the provider saw it.
type call struct {
	rcpts    []string
	ref, key string
	subject  string
	at       time.Time
}

func (f *fake) Capabilities() translate.Capabilities { return f.caps }

func (f *fake) Send(_ context.Context, m *translate.Mail) (*providers.Outcome, error) {
	c := call{ref: m.Ref, key: m.IdempotencyKey, subject: m.Subject, at: time.Now()}
	for _, r := range m.Rcpts {
		c.rcpts = append(c.rcpts, r.Addr)
	}
	f.mu.Lock()
	f.calls = append(f.calls, c)
	send := f.send
	f.mu.Unlock()
	if send == nil {
		return providers.AllAccepted(m, "id-"+m.Ref), nil
	}
	return send(m)
}

func (f *fake) set(send func(m *translate.Mail) (*providers.Outcome, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.send = send
}

func (f *fake) seen() []call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fake) Prepare(m *translate.Mail) (*http.Request, error) {
	r, err := http.NewRequest("POST", "https://api.esp.example/v1/send", strings.NewReader(fmt.Sprintf(`{"to":%q,"ref":%q}`, m.Rcpts[0].Addr, m.Ref)))
	if err == nil {
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", "Bearer canary-key")
	}
	return r, err
}

type checker struct {
	*fake
	check func() error
}

func (c checker) Check(context.Context) error { return c.check() }

type finder struct {
	*fake
	find func(m *translate.Mail) (*providers.Outcome, providers.Found, error)
}

func (f finder) Find(_ context.Context, m *translate.Mail, _ time.Time) (*providers.Outcome, providers.Found, error) {
	return f.find(m)
}

// jsonCaps is an ESP that can do the usual.
func jsonCaps() translate.Capabilities {
	return translate.Capabilities{
		JSON: true, Cc: true, Bcc: true, ReplyTo: 1, Headers: translate.HeadersAny, Threading: true, ListUnsub: true, ListUnsubPost: true,
		Tags: -1, Inline: true, AttachName: true, AttachType: true, EnvelopeFrom: true, NullSender: true, RcptStatus: true, UTF8Local: true,
	}
}

func fail(k providers.Kind, with ...func(*providers.Error)) func(*translate.Mail) (*providers.Outcome, error) {
	return func(*translate.Mail) (*providers.Outcome, error) {
		e := &providers.Error{Provider: "fake", Op: "send", Kind: k, HTTPStatus: 500, Msg: "because " + k.String()}
		for _, f := range with {
			f(e)
		}
		return nil, e
	}
}

// bench is a store, a runner and what they need, in a bubble of synthetic time.
type bench struct {
	inbound string // account of the ESP that hands over what is submitted
	t       *testing.T
	st      *store.Store
	dir     string
	cfg     PlannerConfig
	run     *Runner
	stop    func()
	log     *syncBuffer
	queue   func(Queue) Queue // wraps the store, to make it fail
	clock   Clock
	config  func(*RunnerConfig)
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// newBench makes accounts a, b, ... of the providers and one route over all of them.
func newBench(t *testing.T, ps ...providers.Provider) *bench {
	t.Helper()
	b := &bench{t: t, dir: storetest.Dir(t), log: &syncBuffer{}}
	b.cfg = PlannerConfig{Accounts: map[string]*Account{}, Generation: 1, Expire: 2 * time.Hour, Retry: mustSchedule(t, "1m, 5m*2, 15m*")}
	var names []string
	for i, p := range ps {
		name := string(rune('a' + i))
		names = append(names, name)
		b.cfg.Accounts[name] = &Account{Name: name, Info: providers.Info{Name: "fake"}, Provider: p}
	}
	b.cfg.Routes = table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: names})
	b.open()
	return b
}

func table(t *testing.T, routes ...route.Route) *route.Table {
	t.Helper()
	tab, err := route.New(routes)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func mustSchedule(t *testing.T, s string) Schedule {
	t.Helper()
	out, err := ParseSchedule(s)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (b *bench) open() {
	b.t.Helper()
	now := time.Now
	if b.clock != nil {
		now = b.clock.Now
	}
	st, err := store.Open(context.Background(), store.Options{Dir: b.dir, Now: now, KeepBodies: time.Hour, MinFree: -1})
	if err != nil {
		b.t.Fatal(err)
	}
	b.st = st
}

// start runs a Runner until halt, or the end of the test.
func (b *bench) start() {
	b.t.Helper()
	var q Queue = b.st
	if b.queue != nil {
		q = b.queue(q)
	}
	c := RunnerConfig{
		Queue: q, Planner: NewPlanner(b.cfg), Clock: b.clock, LogAddresses: true, Refresh: 5 * time.Minute,
		Log: slog.New(slog.NewTextHandler(b.log, nil)),
	}
	if b.config != nil {
		b.config(&c)
	}
	b.run = NewRunner(c)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.run.Run(ctx) }()
	b.stop = func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("Run: %v", err)
		}
		b.stop = nil
	}
}

func (b *bench) close() {
	if b.stop != nil {
		b.stop()
	}
	if err := b.st.Close(); err != nil {
		b.t.Errorf("close store: %v", err)
	}
	if b.t.Failed() {
		b.t.Log(b.log.String())
	}
}

// after lets synthetic time pass, and everything come to rest.
func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// submit accepts a mail the way the SMTP side does.
func (b *bench) submit(rcpts ...string) string {
	b.t.Helper()
	return b.submitMail("From: App <app@example.com>\r\nTo: "+strings.Join(rcpts, ", ")+"\r\nSubject: hello\r\nMessage-ID: <m@example.com>\r\n\r\nbody\r\n", rcpts...)
}

func (b *bench) submitMail(mail string, rcpts ...string) string {
	b.t.Helper()
	env := envelope.Envelope{ID: envelope.NewID(b.now()), From: "app@example.com", Received: b.now(), Inbound: b.inbound}
	for _, r := range rcpts {
		env.Rcpts = append(env.Rcpts, envelope.Rcpt{Addr: r})
	}
	plan, err := NewPlanner(b.cfg).Plan(PlanRequest{Envelope: env, Body: strings.NewReader(mail), Size: int64(len(mail))})
	if err != nil {
		b.t.Fatalf("plan: %v", err)
	}
	ctx := context.Background()
	rc, err := b.st.Begin(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := rc.Write([]byte(mail)); err != nil {
		b.t.Fatal(err)
	}
	if err := rc.Commit(ctx, plan.Mail, plan.Jobs, plan.Events...); err != nil {
		b.t.Fatal(err)
	}
	return env.ID
}

func (b *bench) now() time.Time {
	if b.clock != nil {
		return b.clock.Now()
	}
	return time.Now()
}

func (b *bench) detail(id string) *store.Detail {
	b.t.Helper()
	d, err := b.st.Detail(context.Background(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	return d
}

// states gives "addr=state ..." of a mail.
func (b *bench) states(id string) string {
	b.t.Helper()
	var out []string
	for _, r := range b.detail(id).Rcpts {
		local, _ := envelope.Split(r.Addr)
		out = append(out, local+"="+string(r.State))
	}
	return strings.Join(out, " ")
}

func (b *bench) wantStates(id, want string) {
	b.t.Helper()
	if got := b.states(id); got != want {
		b.t.Errorf("recipients are %q, want %q", got, want)
	}
}

// events gives all events of a kind, of one mail or (id "") of accounts.
func (b *bench) events(id string, kind event.Kind) []event.Event {
	b.t.Helper()
	evs, err := b.st.Events(context.Background(), store.Filter{ID: id, Kind: kind, Limit: 1000})
	if err != nil {
		b.t.Fatal(err)
	}
	return slices.DeleteFunc(evs, func(e event.Event) bool { return e.QueueID != id })
}

// finals checks that each recipient has exactly one queue-final event.
func (b *bench) finals(id string) map[string]event.Event {
	b.t.Helper()
	out := map[string]event.Event{}
	for _, k := range []event.Kind{event.Sent, event.Rejected, event.Failed} {
		for _, e := range b.events(id, k) {
			if _, twice := out[e.Recipient]; twice {
				b.t.Errorf("%s has two final events", e.Recipient)
			}
			out[e.Recipient] = e
		}
	}
	for _, r := range b.detail(id).Rcpts {
		if _, ok := out[r.Addr]; ok != r.State.Final() {
			b.t.Errorf("%s is %s, final event: %v", r.Addr, r.State, ok)
		}
	}
	return out
}

func (b *bench) account(name string) store.AccountState {
	b.t.Helper()
	for _, s := range b.run.lane(name).gate.snapshot() {
		if s.Domain == "" {
			return s
		}
	}
	return store.AccountState{}
}

// notices counts the account events of one name.
func (b *bench) notices(name string) int {
	b.t.Helper()
	n := 0
	evs, err := b.st.Events(context.Background(), store.Filter{Kind: event.Unknown, Limit: 1000})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range evs {
		if e.ProviderEvent == name {
			n++
		}
	}
	return n
}

// bubble runs a test in synthetic time.
func bubble(t *testing.T, f func(t *testing.T)) { synctest.Test(t, f) }

// faultyQueue fails what its functions say.
type faultyQueue struct {
	Queue
	mu     sync.Mutex
	settle func(st store.Settlement) error
	start  func() error
}

func (q *faultyQueue) Settle(ctx context.Context, st store.Settlement) error {
	q.mu.Lock()
	f := q.settle
	q.mu.Unlock()
	if f != nil {
		if err := f(st); err != nil {
			return err
		}
	}
	return q.Queue.Settle(ctx, st)
}

func (q *faultyQueue) Start(ctx context.Context, c *store.Claim, calls []store.Call) ([]store.Call, error) {
	q.mu.Lock()
	f := q.start
	q.mu.Unlock()
	if f != nil {
		if err := f(); err != nil {
			return nil, err
		}
	}
	return q.Queue.Start(ctx, c, calls)
}

func (q *faultyQueue) set(f func(st store.Settlement) error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settle = f
}

var errDisk = errors.New("disk full")
