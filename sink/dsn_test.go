package sink_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/dsn"
	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/storetest"
	"smtpbridge/sink"
	"smtpbridge/store"
)

// dsnFixture is a DSN sink on a real store, driven event by event.
type dsnFixture struct {
	t      *testing.T
	st     *store.Store
	d      *sink.DSN
	set    *sink.DSNSettings
	log    *bytes.Buffer
	mu     sync.Mutex
	clock  time.Time
	events int // recorded so far
	// fail, if set, may fail an operation of the store, before or after it was done.
	fail func(op string) error
}

// flaky is the store with the fixture's faults.
type flaky struct {
	*store.Store
	f *dsnFixture
}

func (s flaky) Enqueue(ctx context.Context, r store.Receipt, m store.Mail, jobs []store.NewJob, told []store.Notice, name, cursor string) error {
	if err := s.f.failing("enqueue"); err != nil {
		return err
	}
	err := s.Store.Enqueue(ctx, r, m, jobs, told, name, cursor)
	return errors.Join(err, s.f.failing("enqueued"))
}

func (s flaky) Ledger(ctx context.Context, id string) (*store.Ledger, error) {
	if err := s.f.failing("ledger"); err != nil {
		return nil, err
	}
	return s.Store.Ledger(ctx, id)
}

func (s flaky) PutNotices(ctx context.Context, ns ...store.Notice) error {
	if err := s.f.failing("put"); err != nil {
		return err
	}
	return errors.Join(s.Store.PutNotices(ctx, ns...), s.f.failing("done"))
}

func (f *dsnFixture) failing(op string) error {
	if f.fail == nil {
		return nil
	}
	return f.fail(op)
}

func (f *dsnFixture) now() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.clock
}

func (f *dsnFixture) sleep(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

func newDSN(t *testing.T) *dsnFixture {
	t.Helper()
	f := &dsnFixture{t: t, log: &bytes.Buffer{}, clock: time.Date(2026, 3, 4, 5, 0, 0, 0, time.UTC)}
	st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t), Now: f.now, KeepBodies: time.Hour, MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	f.st = st
	f.set = &sink.DSNSettings{
		On: []string{"failed"}, DelayAfter: time.Hour, Hostname: "bridge.example.com", Addresses: true,
		Permit:   func(e *envelope.Envelope) bool { return envelope.Domain(e.From) == "example.com" },
		Delivers: func(account string) bool { return account == "reports" },
		Plan: func(e envelope.Envelope, body store.Body) (store.Mail, []store.NewJob, error) {
			f.sleep(time.Millisecond) // the next one's id is later
			return store.Mail{Envelope: e}, []store.NewJob{{Accounts: []string{"local"}, Rcpts: []int{0}, NextAt: f.now(), Expires: f.now().Add(time.Hour)}}, nil
		},
	}
	f.restart()
	if err := f.d.Arm(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	return f
}

// restart makes the sink anew, as a new process would.
func (f *dsnFixture) restart() {
	f.d = sink.NewDSN(sink.DSNConfig{
		Store: flaky{f.st, f}, Settings: func() *sink.DSNSettings { return f.set }, Now: f.now, Log: slog.New(slog.NewTextHandler(f.log, nil)),
	})
}

// accept commits a mail whose recipients are given as "address NOTIFY,NOTIFY".
func (f *dsnFixture) accept(change func(m *store.Mail), rcpts ...string) string {
	f.t.Helper()
	m := store.Mail{
		Envelope:  envelope.Envelope{ID: envelope.NewID(f.now()), From: "app@example.com", Received: f.now(), Listener: "apps"},
		MessageID: "m1@example.com", Header: []byte("Subject: Invoice\r\nFrom: app@example.com\r\n"),
	}
	for _, r := range rcpts {
		addr, notify, _ := strings.Cut(r, " ")
		rc := envelope.Rcpt{Addr: addr}
		if notify != "" {
			rc.Notify = strings.Split(notify, ",")
		}
		m.Envelope.Rcpts = append(m.Envelope.Rcpts, rc)
	}
	job := store.NewJob{Accounts: []string{"esp"}, NextAt: f.now(), Expires: f.now().Add(120 * time.Hour)}
	for i := range rcpts {
		job.Rcpts = append(job.Rcpts, i)
	}
	if change != nil {
		change(&m)
	}
	r, err := f.st.Begin(f.t.Context())
	if err == nil {
		_, err = io.WriteString(r, string(m.Header)+"\r\nthe body of the mail\r\n")
	}
	if err == nil {
		err = r.Commit(f.t.Context(), m, []store.NewJob{job})
	}
	if err != nil {
		f.t.Fatal(err)
	}
	f.sleep(time.Millisecond)
	return m.Envelope.ID
}

// happen records events of the given kinds, "bounced ADDR".
func (f *dsnFixture) happen(id string, what ...string) {
	f.t.Helper()
	for _, w := range what {
		kind, addr, _ := strings.Cut(w, " ")
		f.record(event.Event{Kind: event.Kind(kind), QueueID: id, Recipient: addr, Account: "esp", Status: map[string]string{"bounced": "5.1.1", "deferred": "4.2.2"}[kind]})
	}
}

func (f *dsnFixture) record(e event.Event) {
	f.t.Helper()
	f.events++
	if e.ID == "" {
		e.ID = fmt.Sprint("e", f.events)
	}
	if e.Time.IsZero() {
		e.Time = f.now()
	}
	if _, err := f.st.Record(f.t.Context(), nil, e); err != nil {
		f.t.Fatal(err)
	}
}

// follow does what the Runner does, once. An error leaves the place as the store has it.
func (f *dsnFixture) follow() error {
	ctx := f.t.Context()
	noted, err := f.st.Cursor(ctx, sink.DSNName)
	if err != nil {
		return err
	}
	from, err := f.d.Open(ctx, noted)
	if err != nil {
		return err
	}
	if err := f.d.Tick(ctx); err != nil {
		return err
	}
	for {
		evs, next, err := f.st.Follow(ctx, from, 7)
		if err != nil || len(evs) == 0 {
			return err
		}
		if from, err = f.d.Write(ctx, evs, next); err != nil {
			return err
		}
		if err := f.st.SetCursor(ctx, sink.DSNName, from); err != nil {
			return err
		}
	}
}

func (f *dsnFixture) mustFollow() {
	f.t.Helper()
	if err := f.follow(); err != nil {
		f.t.Fatal(err)
	}
}

// told is one DSN in the queue.
type told struct{ to, raw string }

// reports are the DSN mails of the queue, oldest first.
func (f *dsnFixture) reports() []told {
	f.t.Helper()
	ms, err := f.st.Mails(f.t.Context(), store.Filter{Account: "local", Limit: 10000, Oldest: true})
	if err != nil {
		f.t.Fatal(err)
	}
	var out []told
	for _, m := range ms {
		b, err := f.st.Body(f.t.Context(), m.Envelope.ID)
		if err != nil {
			f.t.Fatal(err)
		}
		raw, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size()))
		b.Close()
		if err != nil {
			f.t.Fatal(err)
		}
		if m.Envelope.From != "" || len(m.Envelope.Rcpts) != 1 {
			f.t.Errorf("a DSN from %q to %v", m.Envelope.From, m.Envelope.Rcpts)
		}
		out = append(out, told{m.Envelope.Rcpts[0].Addr, string(raw)})
	}
	return out
}

var rcptFields = regexp.MustCompile(`Final-Recipient: [a-z0-9-]+; (\S+)\r\nAction: (\S+)`)

// says lists what the DSN mails say: "failed a@x b@x; delayed c@x".
func (f *dsnFixture) says() string {
	var out []string
	for _, r := range f.reports() {
		s := ""
		for _, m := range rcptFields.FindAllStringSubmatch(r.raw, -1) {
			if s == "" {
				s = m[2]
			}
			s += " " + m[1]
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func (f *dsnFixture) wantSays(want string) {
	f.t.Helper()
	if got := f.says(); got != want {
		f.t.Errorf("told: %q, want %q\n%s", got, want, f.log)
	}
}

func header(lines string) func(m *store.Mail) {
	return func(m *store.Mail) { m.Header = []byte(lines) }
}

// TestCase026_070_078_DSNTriggers: which events a sender hears of: a refusal and the end of a mail's life once, the null
// sender nothing.
func TestCase026_070_078_DSNTriggers(t *testing.T) {
	const a, b = "a@example.net", "b@example.net"
	for _, tt := range []struct {
		name   string
		change func(m *store.Mail)
		rcpts  []string
		evs    []string
		set    func(s *sink.DSNSettings)
		want   string
	}{
		{"bounced", nil, []string{a}, []string{"sent " + a, "bounced " + a}, nil, "failed " + a},
		{"two together are one mail", nil, []string{a, b}, []string{"rejected " + a, "failed " + b}, nil, "failed " + a + " " + b},
		{"one of two", nil, []string{a, b}, []string{"delivered " + a, "bounced " + b}, nil, "failed " + b},
		{"bounced twice, failed before", nil, []string{a}, []string{"failed " + a, "bounced " + a, "rejected " + a}, nil, "failed " + a},
		{"the ESP spells it in lower case", nil, []string{"Bob.Smith@Example.NET"}, []string{"bounced bob.smith@example.net"}, nil, "failed Bob.Smith@Example.NET"},
		{"two of that spelling", nil, []string{"BOB@example.net", "Bob@example.net"}, []string{"bounced bob@example.net"}, nil, ""},
		{"delivered is not asked for", nil, []string{a}, []string{"delivered " + a}, nil, ""},
		{"opened, complained", nil, []string{a}, []string{"opened " + a, "clicked " + a, "complained " + a, "unsubscribed " + a, "autoresponded " + a, "unknown " + a, "queued " + a}, func(s *sink.DSNSettings) { s.On = []string{"failed", "delayed", "delivered"} }, ""},
		{"nobody in particular", nil, []string{a, b}, []string{"bounced ", "bounced c@example.net"}, nil, ""},
		{"NOTIFY=NEVER", nil, []string{a + " NEVER", b}, []string{"bounced " + a, "bounced " + b}, nil, "failed " + b},
		{"NOTIFY=SUCCESS alone", nil, []string{a + " SUCCESS"}, []string{"bounced " + a}, nil, ""},
		{"NOTIFY=FAILURE although it is off", nil, []string{a + " FAILURE"}, []string{"bounced " + a}, func(s *sink.DSNSettings) { s.On = nil }, "failed " + a},
		{"off", nil, []string{a}, []string{"bounced " + a}, func(s *sink.DSNSettings) { s.On = nil }, ""},
		{"NOTIFY=SUCCESS: relayed on acceptance", nil, []string{a + " SUCCESS,FAILURE"}, []string{"sent " + a}, nil, "relayed " + a},
		{"NOTIFY=SUCCESS: the ESP reports deliveries", nil, []string{a + " SUCCESS"}, []string{"sent " + a, "delivered " + a}, func(s *sink.DSNSettings) { s.Delivers = func(string) bool { return true } }, "delivered " + a},
		{"delivered in the settings", nil, []string{a}, []string{"delivered " + a, "delivered " + a}, func(s *sink.DSNSettings) { s.On = []string{"delivered"} }, "delivered " + a},
		{"delivered, then bounced", nil, []string{a + " SUCCESS,FAILURE"}, []string{"delivered " + a, "bounced " + a}, func(s *sink.DSNSettings) { s.Delivers = func(string) bool { return true } }, "failed " + a},
		{"null sender", func(m *store.Mail) { m.Envelope.From = "" }, []string{a}, []string{"bounced " + a}, nil, ""},
		{"sender elsewhere", func(m *store.Mail) { m.Envelope.From = "www-data@host.invalid.example" }, []string{a}, []string{"bounced " + a}, nil, ""},
		{"erased sender", func(m *store.Mail) { m.Envelope.From = "erased@erased.invalid" }, []string{a}, []string{"bounced " + a}, func(s *sink.DSNSettings) { s.Permit = func(*envelope.Envelope) bool { return true } }, ""},
		{"automatic reply", header("Auto-Submitted: auto-replied (vacation)\r\n"), []string{a}, []string{"bounced " + a}, nil, ""},
		{"automatic reply, with parameters", header("X: y\r\nAUTO-Submitted:\r\n\tAuto-Replied; x=y\r\n"), []string{a}, []string{"bounced " + a}, nil, ""},
		{"written by a program", header("Auto-Submitted: auto-generated\r\n"), []string{a}, []string{"bounced " + a}, nil, "failed " + a},
		{"our own come back", header(dsn.LoopHeader + ": mailer-daemon@bridge.example.com\r\n"), []string{a}, []string{"bounced " + a}, nil, ""},
		{"somebody else's loop header", header(dsn.LoopHeader + ": list@example.org\r\n"), []string{a}, []string{"bounced " + a}, nil, "failed " + a},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newDSN(t)
			if tt.set != nil {
				tt.set(f.set)
			}
			id := f.accept(tt.change, tt.rcpts...)
			f.happen(id, tt.evs...)
			f.mustFollow()
			f.wantSays(tt.want)
			f.restart()
			f.mustFollow()
			f.wantSays(tt.want)
		})
	}
}

// TestDSNReplay: a replay tells nobody anything, and events of other people's mail do not.
func TestDSNReplay(t *testing.T) {
	f := newDSN(t)
	id := f.accept(nil, "a@example.net")
	f.record(event.Event{Kind: event.Bounced, QueueID: id, Recipient: "a@example.net", Account: "esp", Revision: 1})
	f.record(event.Event{Kind: event.Bounced, Recipient: "a@example.net", Account: "esp", ProviderMessageID: "not ours"})
	f.record(event.Event{Kind: event.Unknown, Account: "esp", Diagnostic: "account paused"})
	f.mustFollow()
	f.wantSays("")
}

// TestDSNDelay: a delay is told once, when the mail is old enough and still waits.
func TestDSNDelay(t *testing.T) {
	f := newDSN(t)
	id := f.accept(nil, "slow@example.net DELAY,FAILURE", "quick@example.net DELAY", "plain@example.net", "asked@example.net DELAY")
	f.happen(id, "deferred slow@example.net", "deferred quick@example.net", "deferred plain@example.net", "deferred asked@example.net")
	f.mustFollow()
	f.wantSays("")
	f.sleep(30 * time.Minute)
	f.happen(id, "delivered quick@example.net", "deferred slow@example.net")
	f.mustFollow()
	f.restart()
	f.sleep(31 * time.Minute)
	f.mustFollow()
	f.wantSays("delayed slow@example.net asked@example.net")
	if r := f.reports()[0].raw; !strings.Contains(r, "Will-Retry-Until: Mon, 09 Mar 2026 05:00:00 +0000\r\n") || !strings.Contains(r, "Status: 4.2.2") {
		t.Errorf("the report lacks until when, or why:\n%s", r)
	}
	f.sleep(10 * time.Hour)
	f.happen(id, "deferred slow@example.net", "bounced slow@example.net")
	f.mustFollow()
	f.mustFollow()
	f.wantSays("delayed slow@example.net asked@example.net; failed slow@example.net")
	if due, err := f.st.DueNotices(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("still due: %v %v", due, err)
	}
}

// TestDSNUnreadable: a mail whose ledger is damaged holds nobody up.
func TestDSNUnreadable(t *testing.T) {
	f := newDSN(t)
	bad := f.accept(nil, "a@example.net DELAY", "b@example.net")
	f.happen(bad, "deferred a@example.net")
	f.mustFollow()
	f.happen(bad, "bounced b@example.net")
	f.sleep(2 * time.Hour)
	f.fail = func(op string) error {
		if op == "ledger" {
			return fmt.Errorf("envelope: %w", store.ErrCorrupt)
		}
		return nil
	}
	f.mustFollow()
	f.fail = nil
	f.happen(f.accept(nil, "c@example.net"), "bounced c@example.net")
	f.mustFollow()
	f.wantSays("failed c@example.net")
	if due, err := f.st.DueNotices(t.Context(), 10); err != nil || len(due) != 0 {
		t.Errorf("still due: %v %v", due, err)
	}
}

// TestDSNReturnsOriginal: RET=FULL gives the whole mail back as long as it is there, and says so when it is not.
func TestDSNReturnsOriginal(t *testing.T) {
	ret := func(m *store.Mail) { m.Envelope.Ret, m.Envelope.EnvID = "FULL", "env-7" }
	f := newDSN(t)
	kept := f.accept(ret, "a@example.net", "d@example.net DELAY")
	gone := f.accept(ret, "b@example.net")
	plan := f.set.Plan
	c, err := f.st.Claim(t.Context(), "esp", 2)
	if err != nil || len(c) != 2 {
		t.Fatal(c, err)
	}
	calls, err := f.st.Start(t.Context(), c[1], []store.Call{{Rcpts: []int{0}}})
	if err != nil {
		t.Fatal(err)
	}
	calls[0].State = store.CallAccepted
	if err := f.st.Settle(t.Context(), store.Settlement{Claim: c[1], Calls: []store.CallResult{{Call: calls[0]}}}); err != nil {
		t.Fatal(err)
	}
	if err := f.st.PurgeBody(t.Context(), gone); err != nil {
		t.Fatal(err)
	}
	f.happen(kept, "bounced a@example.net")
	f.happen(gone, "bounced b@example.net")
	f.sleep(2 * time.Hour)
	f.happen(kept, "deferred d@example.net")
	f.mustFollow()
	f.wantSays("failed a@example.net; failed b@example.net; delayed d@example.net")
	rs := f.reports()
	if len(rs) != 3 {
		t.FailNow()
	}
	if r := rs[0].raw; !strings.Contains(r, "message/rfc822") || !strings.Contains(r, "the body of the mail") || !strings.Contains(r, "Original-Envelope-Id: env-7\r\n") {
		t.Errorf("not the whole mail:\n%s", r)
	}
	if r := rs[1].raw; !strings.Contains(r, "text/rfc822-headers") || strings.Contains(r, "the body of the mail") || !strings.Contains(r, "does not keep\r\nmessages") {
		t.Errorf("it does not say that the body is gone:\n%s", r)
	}
	if r := rs[2].raw; strings.Contains(r, "the body of the mail") { // RFC 3461 6.2
		t.Errorf("a delay returns the whole mail:\n%s", r)
	}

	// An account that does not take so much gets the header alone, and one that takes nothing nothing.
	small := f.accept(ret, "c@example.net")
	none := f.accept(ret, "e@example.net")
	f.set.Plan = func(e envelope.Envelope, body store.Body) (store.Mail, []store.NewJob, error) {
		raw, _ := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
		if bytes.Contains(raw, []byte("the body of the mail")) || bytes.Contains(raw, []byte("e@example.net")) {
			return store.Mail{}, nil, &sink.Refused{Text: "552 too large"}
		}
		return plan(e, body)
	}
	f.happen(small, "bounced c@example.net")
	f.happen(none, "bounced e@example.net")
	f.mustFollow()
	f.wantSays("failed a@example.net; failed b@example.net; delayed d@example.net; failed c@example.net")
	if r := f.reports()[3].raw; !strings.Contains(r, "cannot be sent on the way") {
		t.Errorf("it does not say why the body is not there:\n%s", r)
	}
	if !strings.Contains(f.log.String(), "dsn.dropped") || !strings.Contains(f.log.String(), "552 too large") {
		t.Errorf("the log does not say what was dropped:\n%s", f.log)
	}
}

// TestDSNCap: a sender hears so much in an hour, and the log says what he does not hear.
func TestDSNCap(t *testing.T) {
	f := newDSN(t)
	f.set.MaxPerHour = 2
	for range 3 {
		f.happen(f.accept(nil, "a@example.net"), "bounced a@example.net")
	}
	f.happen(f.accept(func(m *store.Mail) { m.Envelope.From = "other@example.com" }, "b@example.net"), "bounced b@example.net")
	f.mustFollow()
	f.wantSays("failed a@example.net; failed a@example.net; failed b@example.net")
	if n := strings.Count(f.log.String(), "dsn.dropped"); n != 1 || !strings.Contains(f.log.String(), "too many DSN mails") {
		t.Errorf("%d lines about what was dropped:\n%s", n, f.log)
	}
	f.sleep(61 * time.Minute)
	f.happen(f.accept(nil, "c@example.net"), "bounced c@example.net")
	f.mustFollow()
	f.wantSays("failed a@example.net; failed a@example.net; failed b@example.net; failed c@example.net")
}

// TestDSNWaits: while the client of accept = "wait" has no answer, nobody knows whether a DSN is owed.
func TestDSNWaits(t *testing.T) {
	waits := func(m *store.Mail) { m.HoldReason = store.Unanswered(m.Envelope.Received.Add(time.Minute)) }
	for _, tt := range []struct {
		name string
		then func(f *dsnFixture, id string) error
		want string
	}{
		{"answered with success", func(f *dsnFixture, id string) error { return f.st.Answer(f.t.Context(), id) }, "failed a@example.net"},
		{"told in the reply", func(f *dsnFixture, id string) error { return f.st.Answer(f.t.Context(), id, 0) }, ""},
		{"the client left", func(f *dsnFixture, id string) error { return f.st.Abandon(f.t.Context(), id) }, ""},
		{"the bridge died", func(f *dsnFixture, _ string) error { f.sleep(time.Hour); return nil }, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := newDSN(t)
			id := f.accept(waits, "a@example.net", "b@example.net")
			f.happen(id, "failed a@example.net")
			f.mustFollow()
			f.wantSays("")
			f.sleep(10 * time.Second)
			f.mustFollow()
			f.wantSays("")
			if err := tt.then(f, id); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				f.sleep(5 * time.Second)
				f.mustFollow()
			}
			f.wantSays(tt.want)
			if due, err := f.st.DueNotices(t.Context(), 10); err != nil || len(due) != 0 {
				t.Errorf("still due: %v %v", due, err)
			}
		})
	}
}

// TestDSNDeleted: what an operator deletes is no failure to tell.
func TestDSNDeleted(t *testing.T) {
	f := newDSN(t)
	id := f.accept(nil, "a@example.net")
	if err := f.st.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	f.mustFollow()
	f.wantSays("")
}

// TestDSNArm: only what happens while DSN mail is on is told, from the first moment on.
func TestDSNArm(t *testing.T) {
	f := newDSN(t)
	ctx := t.Context()
	f.happen(f.accept(nil, "first@example.net"), "bounced first@example.net") // before anything was followed
	if err := f.d.Arm(ctx, true); err != nil {
		t.Fatal(err)
	}
	f.mustFollow()
	if err := f.d.Arm(ctx, false); err != nil {
		t.Fatal(err)
	}
	f.happen(f.accept(nil, "off@example.net"), "bounced off@example.net")
	if err := f.d.Arm(ctx, true); err != nil {
		t.Fatal(err)
	}
	f.happen(f.accept(nil, "on@example.net"), "bounced on@example.net")
	f.mustFollow()
	f.wantSays("failed first@example.net; failed on@example.net")
}

// TestDSNNeverTwice: whatever events come, in whatever order and batches, and wherever the process dies or the store
// fails, each failure is told once if it is to be told and nothing says that the mail was delivered after all, and never twice.
func TestDSNNeverTwice(t *testing.T) {
	kinds := []event.Kind{event.Queued, event.Sent, event.Deferred, event.Delivered, event.Bounced, event.Rejected, event.Failed, event.Opened}
	notify := map[string]bool{"": true, "NEVER": false, "FAILURE": true, "SUCCESS": false, "SUCCESS,FAILURE,DELAY": true}
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			t.Parallel()
			rnd := rand.New(rand.NewPCG(seed, 1))
			f := newDSN(t)
			f.set.DelayAfter = 0
			crash := errors.New("crash")
			want := map[string]bool{} // recipients that failed
			delivered := map[string]bool{}
			var ids []string
			rcpts := map[string][]string{}
			for i := range 3 {
				var list []string
				for j, n := range slices.Sorted(maps.Keys(notify)) {
					list = append(list, strings.TrimSpace(fmt.Sprintf("m%dr%d@example.net %s", i, j, n)))
				}
				id := f.accept(nil, list...)
				ids, rcpts[id] = append(ids, id), list
			}
			for range 60 {
				id := ids[rnd.IntN(len(ids))]
				addr, wish, _ := strings.Cut(rcpts[id][rnd.IntN(len(rcpts[id]))], " ")
				k := kinds[rnd.IntN(len(kinds))]
				e := event.Event{Kind: k, QueueID: id, Recipient: addr, Account: "esp"}
				switch rnd.IntN(8) {
				case 0:
					e.Revision = 1
				case 1:
					e.Recipient = ""
				default:
					if k == event.Rejected || k == event.Failed {
						want[addr] = notify[wish]
					}
					delivered[addr] = delivered[addr] || k == event.Delivered
				}
				f.record(e)
				f.sleep(time.Second)
				if rnd.IntN(4) == 0 {
					f.fail = func(string) error {
						if rnd.IntN(3) == 0 {
							return crash
						}
						return nil
					}
					if err := f.follow(); err != nil && !errors.Is(err, crash) {
						t.Fatal(err)
					}
					f.fail = nil
					f.restart()
				}
			}
			f.sleep(time.Minute)
			f.mustFollow()
			failed := map[string]int{}
			for _, r := range f.reports() {
				for _, m := range rcptFields.FindAllStringSubmatch(r.raw, -1) {
					failed[m[2]+" "+m[1]]++
				}
			}
			for what, n := range failed {
				if n > 1 {
					t.Errorf("%s: told %d times", what, n)
				}
			}
			for _, id := range ids {
				for _, r := range rcpts[id] {
					addr, wish, _ := strings.Cut(r, " ")
					n := failed["failed "+addr]
					if want[addr] && !delivered[addr] && n != 1 || !notify[wish] && n != 0 {
						t.Errorf("%s: %d failures told, failed for the sender %v", r, n, want[addr])
					}
				}
			}
		})
	}
}
