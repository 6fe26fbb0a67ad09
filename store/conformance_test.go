package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// clock is a clock tests set. It starts at real time: PostgreSQL's leases use the server's.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func newClock() *clock { return &clock{t: time.Now().UTC().Truncate(time.Microsecond)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// opener opens the same store again each time it is called with the same options.
type opener func(t *testing.T, o Options) *Store

// engine makes a fresh empty store's options and says how to open it.
type engine func(t *testing.T) (Options, opener)

// fixture is one store under test.
type fixture struct {
	*Store
	t     *testing.T
	clock *clock
	open  func() *Store
}

func newFixture(t *testing.T, e engine, change ...func(*Options)) *fixture {
	t.Helper()
	c := newClock()
	o, open := e(t)
	o.Now = c.now
	o.KeepBodies = time.Hour
	o.Provider = func(account string) string { return "prov-" + account }
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	for _, f := range change {
		f(&o)
	}
	f := &fixture{t: t, clock: c}
	f.open = func() *Store { return open(t, o) }
	f.Store = f.open()
	t.Cleanup(func() { f.Store.Close() })
	return f
}

// reopen is what a restart does.
func (f *fixture) reopen() {
	f.t.Helper()
	if err := f.Store.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.Store = f.open()
}

func (f *fixture) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func testMail(now time.Time, rcpts ...string) Mail {
	m := Mail{
		Envelope:   envelope.Envelope{ID: envelope.NewID(now), From: "app@example.com", EnvID: "env-1", Received: now, Listener: "apps"},
		FromHeader: "app@example.com", MessageID: "m1@example.com", Header: []byte("Subject: x\r\n\r\n"), Generation: 1,
	}
	for _, r := range rcpts {
		m.Envelope.Rcpts = append(m.Envelope.Rcpts, envelope.Rcpt{Addr: r, ORCPT: "rfc822;" + r})
	}
	return m
}

func all(m Mail) []int {
	var out []int
	for i := range m.Envelope.Rcpts {
		out = append(out, i)
	}
	return out
}

func (f *fixture) commit(m Mail, body []byte, jobs []NewJob, evs ...event.Event) error {
	f.t.Helper()
	r, err := f.Begin(f.t.Context())
	f.must(err)
	defer r.Abort()
	if _, err := io.Copy(r, bytes.NewReader(body)); err != nil {
		return err
	}
	return r.Commit(f.t.Context(), m, jobs, evs...)
}

// accept commits a mail with one job for account a and returns its id.
func (f *fixture) accept(account string, rcpts ...string) string {
	f.t.Helper()
	m := testMail(f.clock.now(), rcpts...)
	f.must(f.commit(m, []byte("Subject: x\r\n\r\nhello\r\n"), []NewJob{{Route: "r", Accounts: []string{account, "backup"}, Rcpts: all(m), NextAt: f.clock.now(), Expires: f.clock.now().Add(120 * time.Hour)}}))
	return m.Envelope.ID
}

func (f *fixture) claim(account string) *Claim {
	f.t.Helper()
	cs, err := f.Claim(f.t.Context(), account, 1)
	f.must(err)
	if len(cs) != 1 {
		f.t.Fatalf("got %d claims of %s, want 1", len(cs), account)
	}
	return cs[0]
}

func (f *fixture) noClaim(account string) {
	f.t.Helper()
	cs, err := f.Claim(f.t.Context(), account, 10)
	f.must(err)
	if len(cs) != 0 {
		f.t.Fatalf("got %d claims of %s, want none", len(cs), account)
	}
}

func (f *fixture) start(c *Claim, rcpts ...int) Call {
	f.t.Helper()
	out, err := f.Start(f.t.Context(), c, []Call{{Account: c.Job.Account, Rcpts: rcpts, IdempotencyKey: "key"}})
	f.must(err)
	if len(out) != 1 {
		f.t.Fatalf("got %d calls, want 1", len(out))
	}
	return out[0]
}

func (f *fixture) detail(id string) *Detail {
	f.t.Helper()
	d, err := f.Detail(f.t.Context(), id)
	f.must(err)
	return d
}

func (f *fixture) follow() []event.Event {
	f.t.Helper()
	var out []event.Event
	for cursor := ""; ; {
		evs, next, err := f.Follow(f.t.Context(), cursor, 3)
		f.must(err)
		if len(evs) == 0 {
			return out
		}
		out, cursor = append(out, evs...), next
	}
}

func kinds(evs []event.Event) string {
	var s string
	for _, e := range evs {
		s += fmt.Sprintf("%s(%s) ", e.Kind, e.Recipient)
	}
	return s
}

func (f *fixture) wantEvents(want string) {
	f.t.Helper()
	if got := kinds(f.follow()); got != want {
		f.t.Fatalf("events:\n got %s\nwant %s", got, want)
	}
}

func (f *fixture) wantRcpt(id string, n int, want RcptState, last event.Kind) {
	f.t.Helper()
	r := f.detail(id).Rcpts[n]
	if r.State != want || r.Last != last {
		f.t.Fatalf("recipient %d: got %s, last %q; want %s, %q", n, r.State, r.Last, want, last)
	}
}

func accepted(c Call, pmid string) CallResult {
	c.State, c.ProviderMessageID, c.HTTPStatus = CallAccepted, pmid, 202
	return CallResult{Call: c, Elapsed: 5 * time.Millisecond}
}

func result(c Call, s CallState) CallResult {
	c.State = s
	return CallResult{Call: c, Kind: "ambiguous"}
}

func sent(c *Claim, n int, pmid string) (RcptResult, event.Event) {
	return RcptResult{N: n, State: RcptSent, Account: c.Job.Account, ProviderMessageID: pmid, Status: "2.0.0"},
		event.Event{Kind: event.Sent, Recipient: c.Mail.Envelope.Rcpts[n].Addr, Account: c.Job.Account, Provider: "p", ProviderMessageID: pmid, Losses: []event.Loss{{Field: "x", Severity: "info"}}}
}

func random(t *testing.T, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return b
}

// runSuite is what every engine must pass.
func runSuite(t *testing.T, e engine) {
	tests := []struct {
		name string
		run  func(t *testing.T, e engine)
	}{
		{"bodies", testBodies},
		{"life of a mail", testLife},
		{"commit refuses", testCommitRefuses},
		{"preflight refusals", testPreflight},
		{"claim", testClaim},
		{"oldest", testOldest},
		{"start", testStart},
		{"settled twice", testSettledTwice},
		{"ambiguous after restart", testAmbiguousAfterRestart},
		{"settle keeps the ledger", testSettleKeepsLedger},
		{"record", testRecord},
		{"replay", testReplay},
		{"received mail", testInbound},
		{"ids per recipient", testPerRecipientIDs},
		{"withheld events", testWithheld},
		{"Message-ID on the wire", testWireMessageID},
		{"an event proves acceptance", testProof},
		{"operator", testOperator},
		{"look-ups", testLookups},
		{"pages", testPages},
		{"activity", testActivity},
		{"replan", testReplan},
		{"purge", testPurge},
		{"accounts and cursors", testAccountsAndCursors},
		{"suppressions", testSuppressions},
		{"silent recipients", testSilent},
		{"erase", testErase},
		{"unanswered", testUnanswered},
		{"notices", testNotices},
		{"a DSN is enqueued whole", testEnqueueIsWhole},
		{"told in the reply", testToldInReply},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, e) })
	}
}

func testBodies(t *testing.T, e engine) {
	f := newFixture(t, e, func(o *Options) { o.InlineBody = 4096 })
	for _, size := range []int{0, 1, 4095, 4096, 4097, 300_000, 1 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			want := random(t, size)
			m := testMail(f.clock.now(), "a@example.org")
			r, err := f.Begin(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for rest := want; len(rest) > 0; {
				n := min(len(rest), 1000)
				if _, err := r.Write(rest[:n]); err != nil {
					t.Fatal(err)
				}
				rest = rest[n:]
			}
			early, err := r.Body()
			if err != nil {
				t.Fatal(err)
			}
			readBody(t, early, want)
			if _, err := f.Detail(t.Context(), m.Envelope.ID); !errors.Is(err, ErrNotFound) {
				t.Fatalf("before Commit: %v", err)
			}
			if err := r.Commit(t.Context(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}); err != nil {
				t.Fatal(err)
			}
			r.Abort()
			got, err := f.Body(t.Context(), m.Envelope.ID)
			if err != nil {
				t.Fatal(err)
			}
			readBody(t, got, want)
			d := f.detail(m.Envelope.ID)
			if d.Mail.Envelope.Size != int64(size) || len(d.Mail.SHA256) != 64 || string(d.Mail.Header) != string(m.Header) {
				t.Fatalf("got size %d, sha256 %q", d.Mail.Envelope.Size, d.Mail.SHA256)
			}
		})
	}
	t.Run("abort", func(t *testing.T) {
		r, err := f.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.Write(random(t, 10_000)); err != nil {
			t.Fatal(err)
		}
		r.Abort()
		if err := r.Commit(t.Context(), testMail(f.clock.now(), "a@example.org"), nil); err == nil {
			t.Fatal("commit after abort")
		}
	})
	f.reopen()
	if _, err := f.Body(t.Context(), "nosuchmail"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}

func readBody(t *testing.T, b Body, want []byte) {
	t.Helper()
	defer b.Close()
	got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %d bytes, want %d (%v)", len(got), len(want), err)
	}
}

func testLife(t *testing.T, e engine) {
	f := newFixture(t, e)
	wake, stop := f.Subscribe(TopicQueue)
	defer stop()
	evWake, stopEv := f.Subscribe(TopicEvents)
	defer stopEv()
	id := f.accept("a", "one@example.org", "two@Example.ORG")
	<-wake
	if d := f.detail(id); d.Mail.State != MailQueued || len(d.Jobs) != 1 || len(d.Jobs[0].Rcpts) != 2 || d.Jobs[0].MailID != id {
		t.Fatalf("got %+v", d)
	}
	c := f.claim("a")
	if c.Job.MailID != id || len(c.Rcpts) != 2 || len(c.Open) != 0 || c.Rcpts[1].Addr != "two@Example.ORG" || c.Rcpts[1].ORCPT == "" || len(c.Job.Accounts) != 2 {
		t.Fatalf("got %+v", c)
	}
	f.noClaim("a")
	call := f.start(c, 0, 1)
	if call.ID == "" || call.Ref == "" || call.State != CallOpen || call.Attempt != 1 || call.IdempotencyKey != "key" {
		t.Fatalf("got %+v", call)
	}
	f.wantRcpt(id, 0, RcptInFlight, "")
	r, ev := sent(c, 0, "pm-1")
	f.must(f.Settle(t.Context(), Settlement{
		Claim: c, Calls: []CallResult{accepted(call, "pm")}, Events: []event.Event{ev},
		Rcpts:  []RcptResult{r, {N: 1, State: RcptQueued, Detail: "greylisted"}},
		NextAt: f.clock.now().Add(time.Minute), Counted: true, Trouble: f.clock.now(), LastError: "try later", Account: "backup",
	}))
	<-evWake
	f.wantRcpt(id, 0, RcptSent, event.Sent)
	f.wantRcpt(id, 1, RcptQueued, "")
	f.noClaim("a")
	f.noClaim("backup")
	if next, ok, err := f.NextDue(t.Context(), "backup"); err != nil || !ok || !next.Equal(f.clock.now().Add(time.Minute)) {
		t.Fatalf("got %v %v %v", next, ok, err)
	}
	f.clock.add(time.Minute)
	f.reopen()
	c = f.claim("backup")
	if c.Job.Attempts != 1 || c.Job.LastError != "try later" || c.Job.Trouble.IsZero() || len(c.Rcpts) != 1 || c.Rcpts[0].N != 1 || len(c.Open) != 0 {
		t.Fatalf("got %+v", c)
	}
	call = f.start(c, 1)
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, CallRefused)}, Rcpts: []RcptResult{{N: 1, State: RcptFailed, Status: "5.1.1", Detail: "no such user"}}}))
	d := f.detail(id)
	if d.Mail.State != MailFinished || d.Mail.Finished.IsZero() || len(d.Jobs) != 0 || len(d.Attempts) != 2 || len(d.Calls) != 2 {
		t.Fatalf("got %+v", d)
	}
	if a := d.Attempts[0]; a.State != CallAccepted || a.Elapsed != 5*time.Millisecond || a.HTTPStatus != 202 || len(a.Rcpts) != 2 {
		t.Fatalf("got %+v", a)
	}
	f.wantEvents("sent(one@example.org) failed(two@Example.ORG) ")
	evs := f.follow()
	if x := evs[0]; x.QueueID != id || x.EnvID != "env-1" || x.ORCPT != "rfc822;one@example.org" || x.Sender != "app@example.com" || x.MessageID != "m1@example.com" || x.V != 1 || x.ID == "" || len(x.Losses) != 1 {
		t.Fatalf("got %+v", x)
	}
	if x := evs[1]; x.Status != "5.1.1" || x.Diagnostic != "no such user" || x.Action != event.ActionFailed {
		t.Fatalf("got %+v", x)
	}
	f.noClaim("backup")
	if err := f.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func testCommitRefuses(t *testing.T, e engine) {
	f := newFixture(t, e)
	m := testMail(f.clock.now(), "a@example.org")
	job := NewJob{Accounts: []string{"a"}, Rcpts: []int{0}}
	for name, c := range map[string]struct {
		m    Mail
		jobs []NewJob
	}{
		"no id":           {Mail{}, nil},
		"rcpt in two":     {m, []NewJob{job, job}},
		"rcpt out of":     {m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{1}}}},
		"no account":      {m, []NewJob{{Rcpts: []int{0}}}},
		"address not utf": {testMail(f.clock.now(), "a\xff@example.org"), []NewJob{job}},
	} {
		if err := f.commit(c.m, nil, c.jobs); err == nil {
			t.Errorf("%s: committed", name)
		}
	}
	f.must(f.commit(m, nil, []NewJob{job}))
	if err := f.commit(m, nil, []NewJob{job}); err == nil {
		t.Error("the same id twice")
	}
	if got := len(f.detail(m.Envelope.ID).Jobs); got != 1 {
		t.Errorf("got %d jobs", got)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Begin(ctx); err == nil {
		t.Error("began with a dead context")
	}
}

func testPreflight(t *testing.T, e engine) {
	f := newFixture(t, e)
	m := testMail(f.clock.now(), "good@example.org", "bad@example.org", "odd@example.org")
	ev := event.Event{Kind: event.Rejected, Recipient: "bad@example.org", Status: "5.7.1", Diagnostic: "suppressed"}
	f.must(f.commit(m, []byte("x"), []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}, ev))
	id := m.Envelope.ID
	f.wantRcpt(id, 0, RcptQueued, "")
	f.wantRcpt(id, 1, RcptRejected, event.Rejected)
	f.wantRcpt(id, 2, RcptFailed, event.Failed)
	f.wantEvents("rejected(bad@example.org) failed(odd@example.org) ")
	none := testMail(f.clock.now(), "bad@example.org")
	f.must(f.commit(none, []byte("x"), nil, ev))
	if d := f.detail(none.Envelope.ID); d.Mail.State != MailFinished {
		t.Fatalf("got %s", d.Mail.State)
	}
}

func testClaim(t *testing.T, e engine) {
	f := newFixture(t, e)
	var ids []string
	for i := range 5 {
		ids = append(ids, f.accept("a", fmt.Sprintf("u%d@example.org", i)))
		f.clock.add(time.Second)
	}
	f.accept("b", "other@example.org")
	cs, err := f.Claim(t.Context(), "a", 3)
	f.must(err)
	more, err := f.Claim(t.Context(), "a", 10)
	f.must(err)
	cs = append(cs, more...)
	if len(cs) != 5 {
		t.Fatalf("got %d claims", len(cs))
	}
	for i, c := range cs {
		if c.Job.MailID != ids[i] {
			t.Fatalf("claim %d: not the oldest first", i)
		}
	}
	if _, ok, err := f.NextDue(t.Context(), "a"); ok || err != nil {
		t.Fatalf("a claimed job counts as due: %v", err)
	}
	f.must(f.Release(t.Context(), cs[2]))
	if c := f.claim("a"); c.Job.MailID != ids[2] {
		t.Fatal("the released job did not come back")
	}
	if _, err := f.Start(t.Context(), cs[2], []Call{{Rcpts: []int{0}}}); !errors.Is(err, ErrStale) {
		t.Fatalf("start under a released claim: %v", err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[int64]int{}
	for i := range 40 {
		f.accept("c", fmt.Sprintf("u%d@example.org", i))
	}
	for range 8 {
		wg.Go(func() {
			for {
				cs, err := f.Claim(t.Context(), "c", 3)
				if err != nil {
					t.Error(err)
					return
				}
				if len(cs) == 0 {
					return
				}
				mu.Lock()
				for _, c := range cs {
					seen[c.Job.ID]++
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 40 {
		t.Fatalf("got %d jobs", len(seen))
	}
	for id, n := range seen {
		if n != 1 {
			t.Fatalf("job %d was claimed %d times", id, n)
		}
	}
}

// testSettledTwice: a settlement whose answer was lost is made again, and must not revive a call that was voided in between:
// its recipient would be in two calls that may be repeated.
func testSettledTwice(t *testing.T, e engine) {
	f := newFixture(t, e)
	f.accept("a", "one@example.org")
	c := f.claim("a")
	st := Settlement{Claim: c, Calls: []CallResult{result(f.start(c, 0), CallRetry)}}
	f.must(f.Settle(t.Context(), st))
	c = f.claim("a")
	second := f.start(c, 0) // voids the first
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(second, CallRetry)}}))
	if err := f.Settle(t.Context(), st); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	if c = f.claim("a"); len(c.Open) != 1 || c.Open[0].ID != second.ID {
		t.Fatalf("calls that may be repeated: %+v", c.Open)
	}
}

func testStart(t *testing.T, e engine) {
	f := newFixture(t, e)
	f.accept("a", "one@example.org", "two@example.org", "three@example.org")
	c := f.claim("a")
	first := f.start(c, 0, 1)
	if _, err := f.Start(t.Context(), c, []Call{{Rcpts: []int{1, 2}}}); err == nil {
		t.Fatal("a recipient in two open calls")
	}
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(first, CallRetry)}}))
	c = f.claim("a")
	if len(c.Open) != 1 || c.Open[0].State != CallRetry || len(c.Rcpts) != 1 || c.Rcpts[0].N != 2 {
		t.Fatalf("got %+v", c)
	}
	again, err := f.Start(t.Context(), c, []Call{c.Open[0]})
	f.must(err)
	if again[0].Attempt != 2 || again[0].ID != first.ID || again[0].IdempotencyKey != "key" || again[0].Ref != first.Ref {
		t.Fatalf("got %+v", again)
	}
	if _, err := f.Start(t.Context(), c, []Call{{Rcpts: []int{0}}}); err == nil {
		t.Fatal("a recipient of a call that was started again")
	}
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(again[0], CallRetry)}}))
	c = f.claim("a")
	split := f.start(c, 0) // voids the call in retry
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(split, CallAmbiguous)}}))
	c = f.claim("a")
	if len(c.Open) != 1 || c.Open[0].ID != split.ID || c.Open[0].State != CallAmbiguous || len(c.Rcpts) != 2 {
		t.Fatalf("got %+v", c)
	}
	void := c.Open[0]
	void.State = CallRefused
	if _, err := f.Start(t.Context(), c, []Call{void}); err == nil {
		t.Fatal("an ambiguous call was voided")
	}
}

func testAmbiguousAfterRestart(t *testing.T, e engine) {
	f := newFixture(t, e, func(o *Options) { o.Lease = 500 * time.Millisecond })
	id := f.accept("a", "one@example.org", "two@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	f.reopen()
	if f.Store.d.shared {
		waitFor(t, func() bool { n, ok, err := f.NextDue(t.Context(), "a"); return err == nil && ok && !n.IsZero() })
	}
	c = f.claim("a")
	if len(c.Open) != 1 || c.Open[0].ID != call.ID || c.Open[0].State != CallAmbiguous || len(c.Rcpts) != 1 || c.Rcpts[0].N != 1 {
		t.Fatalf("got %+v", c)
	}
	f.wantRcpt(id, 0, RcptInFlight, "")
	again, err := f.Start(t.Context(), c, []Call{c.Open[0]})
	f.must(err)
	if again[0].Attempt != 2 {
		t.Fatalf("got attempt %d", again[0].Attempt)
	}
}

// waitFor polls a condition that only real time can bring about.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatal("the condition did not come true")
		}
		time.Sleep(5 * time.Millisecond)
	}
}
