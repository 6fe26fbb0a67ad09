package catchup

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/storetest"
	"smtpbridge/providers"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// esp answers as told.
type esp struct {
	mu    sync.Mutex
	polls []string // cursors
	asked []providers.Tracked
	poll  func(record func([]event.Event) error) ([]byte, error)
	track func(providers.Tracked) ([]event.Event, error)
}

func (e *esp) Capabilities() translate.Capabilities { return translate.Capabilities{} }
func (e *esp) Send(context.Context, *translate.Mail) (*providers.Outcome, error) {
	return nil, errors.New("not sent")
}

type polling struct{ *esp }

func (p polling) Poll(_ context.Context, cursor []byte, record func([]event.Event) error) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.polls = append(p.polls, string(cursor))
	return p.poll(record)
}

type tracking struct{ *esp }

func (p tracking) Track(_ context.Context, t providers.Tracked) ([]event.Event, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, t)
	return p.track(t)
}

type bench struct {
	t   *testing.T
	st  *store.Store
	now time.Time
	log bytes.Buffer
	r   *Runner
	p   providers.Provider
}

func newBench(t *testing.T, p providers.Provider) *bench {
	t.Helper()
	b := &bench{t: t, now: time.Date(2026, 11, 28, 9, 0, 0, 0, time.UTC), p: p}
	var err error
	b.st, err = store.Open(t.Context(), store.Options{Dir: storetest.Dir(t), MinFree: -1, Now: func() time.Time { return b.now }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.st.Close() })
	b.restart()
	return b
}

func (b *bench) restart() {
	b.r = New(Config{
		Store: b.st, Now: func() time.Time { return b.now }, Log: slog.New(slog.NewTextHandler(&b.log, nil)), After: 10 * time.Hour, Silence: time.Hour,
		Accounts: func() []Account {
			return []Account{{"a", providers.Info{Name: "esp", Title: "ESP", LookUps: 2}, b.p}}
		},
	})
}

// sent puts a mail into the ledger that the ESP took.
func (b *bench) sent(rcpt string) string {
	b.t.Helper()
	ctx := b.t.Context()
	fatal := func(err error) {
		b.t.Helper()
		if err != nil {
			b.t.Fatal(err)
		}
	}
	env := envelope.Envelope{ID: envelope.NewID(b.now), From: "app@example.com", Rcpts: []envelope.Rcpt{{Addr: rcpt}}, Received: b.now}
	rc, err := b.st.Begin(ctx)
	fatal(err)
	_, err = rc.Write([]byte("Subject: x\r\n\r\nx\r\n"))
	fatal(err)
	fatal(rc.Commit(ctx, store.Mail{Envelope: env, FromHeader: "app@example.com", State: store.MailQueued}, []store.NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}, NextAt: b.now, Expires: b.now.Add(time.Hour)}}))
	claims, err := b.st.Claim(ctx, "a", 1)
	fatal(err)
	ref := "ref-" + env.ID
	calls, err := b.st.Start(ctx, claims[0], []store.Call{{ID: ref, MailID: env.ID, JobID: claims[0].Job.ID, Account: "a", Rcpts: []int{0}, Ref: ref}})
	fatal(err)
	calls[0].State, calls[0].ProviderMessageID = store.CallAccepted, "id-"+env.ID
	fatal(b.st.Settle(ctx, store.Settlement{
		Claim: claims[0], Calls: []store.CallResult{{Call: calls[0]}},
		Rcpts: []store.RcptResult{{N: 0, State: store.RcptSent, Account: "a", ProviderMessageID: "id-" + env.ID, Status: "2.0.0"}},
	}))
	b.r.Sent("a")
	return env.ID
}

func (b *bench) events(id string) (kinds []string) {
	b.t.Helper()
	d, err := b.st.Detail(b.t.Context(), id)
	if err != nil {
		b.t.Fatal(err)
	}
	for _, e := range d.Events {
		k := string(e.Kind)
		if e.ProviderEvent == EventSilent {
			k = "silent"
		}
		kinds = append(kinds, k)
	}
	return kinds
}

func want(t *testing.T, what string, got []string, list ...string) {
	t.Helper()
	if len(got) != len(list) {
		t.Errorf("%s: got %v, want %v", what, got, list)
		return
	}
	for i := range got {
		if got[i] != list[i] {
			t.Errorf("%s: got %v, want %v", what, got, list)
		}
	}
}

// An account whose webhooks were never seen is left alone, whatever its age.
func TestOnlyAccountsThatShowedWebhooks(t *testing.T) {
	e := &esp{poll: func(func([]event.Event) error) ([]byte, error) { return []byte("1"), nil }}
	b := newBench(t, polling{e})
	id := b.sent("x@example.net")
	b.now = b.now.Add(100 * time.Hour)
	b.r.Look(t.Context())
	if len(e.polls) != 0 || len(b.r.Missing()) != 0 {
		t.Errorf("polls %v, missing %v", e.polls, b.r.Missing())
	}
	want(t, "events", b.events(id), "sent")
}

// The log is read after the start and when webhooks go silent, from where it was left, also after a restart.
func TestPolls(t *testing.T) {
	e := &esp{}
	n := 0
	e.poll = func(func([]event.Event) error) ([]byte, error) { n++; return []byte{byte('0' + n)}, nil }
	b := newBench(t, polling{e})
	b.r.Heard("a")
	b.r.Look(t.Context()) // the first look
	b.r.Look(t.Context())
	want(t, "after the start", e.polls, "")
	b.sent("x@example.net")
	b.now = b.now.Add(30 * time.Minute)
	b.r.Look(t.Context())
	want(t, "no silence yet", e.polls, "")
	b.now = b.now.Add(31 * time.Minute)
	b.r.Look(t.Context())
	b.r.Look(t.Context())
	want(t, "webhooks are silent", e.polls, "", "1")
	b.r.Heard("a")
	b.now = b.now.Add(5 * time.Hour)
	b.r.Look(t.Context())
	want(t, "nothing was sent since the last webhook", e.polls, "", "1")
	b.r.noteAll(t.Context())
	b.restart()
	b.r.Look(t.Context())
	want(t, "after a restart", e.polls, "", "1", "2")

	// A failure keeps the progress that was made, waits, and is logged once.
	e.poll = func(func([]event.Event) error) ([]byte, error) {
		return []byte("7"), &providers.Error{Kind: providers.RateLimited, RetryAfter: time.Minute}
	}
	b.restart()
	b.r.Look(t.Context())
	b.r.Look(t.Context())
	b.now = b.now.Add(2 * time.Minute)
	b.r.Look(t.Context())
	want(t, "after a failure", e.polls, "", "1", "2", "3", "7")
	if n := bytes.Count(b.log.Bytes(), []byte("catchup.failed")); n != 1 {
		t.Errorf("logged %d times:\n%s", n, b.log.String())
	}
}

// A mail without a final event is looked up; what the ESP says is recorded once, what it does not say is reported once.
func TestTracks(t *testing.T) {
	e := &esp{}
	b := newBench(t, tracking{e})
	b.r.Heard("a")
	var ids []string
	for _, r := range []string{"delivered@example.net", "lost@example.net", "third@example.net"} {
		ids = append(ids, b.sent(r))
		b.now = b.now.Add(time.Second)
	}
	e.track = func(t providers.Tracked) ([]event.Event, error) {
		if t.Rcpt != "delivered@example.net" {
			return nil, nil
		}
		return []event.Event{{ID: "log1", Kind: event.Delivered, Action: event.ActionDelivered, Status: "2.0.0", ProviderMessageID: t.MessageID, Recipient: t.Rcpt, Time: b.now}}, nil
	}
	b.now = b.now.Add(9 * time.Hour)
	b.r.Look(t.Context())
	if len(e.asked) != 0 {
		t.Fatalf("asked too early: %+v", e.asked)
	}
	b.now = b.now.Add(time.Hour)
	b.r.Look(t.Context())
	if len(e.asked) != 2 { // the budget
		t.Fatalf("asked %+v", e.asked)
	}
	if a := e.asked[0]; a.Ref != "ref-"+ids[0] || a.MessageID != "id-"+ids[0] || a.From != "app@example.com" {
		t.Errorf("asked with %+v", a)
	}
	b.r.Look(t.Context())
	b.r.Look(t.Context())
	if len(e.asked) != 3 {
		t.Fatalf("asked again: %+v", e.asked)
	}
	want(t, "found", b.events(ids[0]), "sent", "delivered")
	want(t, "lost", b.events(ids[1]), "sent", "silent")
	if b.r.Missing()["a"] != 2 {
		t.Errorf("missing %v", b.r.Missing())
	}
	// The webhook comes after all: the same fact is one event.
	if n, err := b.st.Record(t.Context(), nil, event.Event{ID: "hook1", Kind: event.Delivered, Account: "a", ProviderMessageID: "id-" + ids[0], Recipient: "delivered@example.net", Time: b.now}); n != 0 || err != nil {
		t.Errorf("the webhook's copy: %d %v", n, err)
	}
	if n, err := b.st.Record(t.Context(), nil, event.Event{ID: "hook2", Kind: event.Bounced, Account: "a", ProviderMessageID: "id-" + ids[1], Recipient: "lost@example.net", Time: b.now}); n != 1 || err != nil {
		t.Errorf("a late webhook: %d %v", n, err)
	}
	b.r.Look(t.Context())
	if b.r.Missing()["a"] != 1 {
		t.Errorf("missing %v", b.r.Missing())
	}
	for range 10 { // the third is asked about ever more seldom, and then no more
		b.now = b.now.Add(100 * time.Hour)
		b.r.Look(t.Context())
	}
	if n := len(e.asked); n != 3+maxLooks-1 {
		t.Errorf("asked %d times", n)
	}
	want(t, "reported once", b.events(ids[2]), "sent", "silent")
}

// An ESP without such an API: the mail is reported all the same.
func TestReportsWithoutAnAPI(t *testing.T) {
	b := newBench(t, &esp{})
	b.r.Heard("a")
	id := b.sent("x@example.net")
	b.now = b.now.Add(11 * time.Hour)
	b.r.Look(t.Context())
	want(t, "events", b.events(id), "sent", "silent")
	evs, err := b.st.Events(t.Context(), store.Filter{ID: id})
	if err != nil || evs[0].Diagnostic != "no final event of ESP for 11h0m0s: its API has no call to ask by" {
		t.Errorf("got %+v, %v", evs, err)
	}
}

func TestRunEnds(t *testing.T) {
	b := newBench(t, &esp{})
	b.r.Heard("a")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.r.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if v, err := b.st.Cursor(t.Context(), shownName("a")); v != "2026-11-28T09:00:00Z" || err != nil {
		t.Errorf("noted %q, %v", v, err)
	}
}

// TestNewLeader: a process that begins to lead asks about an account whose webhooks came to another process alone.
func TestNewLeader(t *testing.T) {
	e := &esp{poll: func(func([]event.Event) error) ([]byte, error) { return []byte("1"), nil }}
	b := newBench(t, polling{e})
	leads := false
	b.r.Lead = func(context.Context) bool { return leads }
	b.r.Look(t.Context())
	if err := b.st.SetCursor(t.Context(), shownName("a"), b.now.Format(time.RFC3339)); err != nil { // as the other one does
		t.Fatal(err)
	}
	b.r.Look(t.Context())
	if len(e.polls) != 0 {
		t.Error("a process that does not lead asks")
	}
	leads = true
	b.r.Look(t.Context())
	if len(e.polls) != 1 {
		t.Errorf("the new leader asked %d times", len(e.polls))
	}
}
