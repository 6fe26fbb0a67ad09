package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// tell enqueues a DSN about recipients of a mail.
func (f *fixture) tell(cursor string, told ...Notice) (dsn string, err error) {
	f.t.Helper()
	r, err := f.Begin(f.t.Context())
	f.must(err)
	defer r.Abort()
	_, err = r.Write([]byte("Subject: not delivered\r\n\r\n" + strings.Repeat("x\r\n", 300)))
	f.must(err)
	m := testMail(f.clock.now(), "app@example.com")
	m.Envelope.From = ""
	return m.Envelope.ID, f.Enqueue(f.t.Context(), r, m, []NewJob{{Accounts: []string{"local"}, Rcpts: []int{0}}}, told, "dsn", cursor)
}

func (f *fixture) ledger(id string) *Ledger {
	f.t.Helper()
	l, err := f.Ledger(f.t.Context(), id)
	f.must(err)
	return l
}

// queued counts the mails that wait for an account.
func (f *fixture) waitingFor(account string) int {
	f.t.Helper()
	ms, err := f.Mails(f.t.Context(), Filter{Account: account})
	f.must(err)
	return len(ms)
}

func testNotices(t *testing.T, e engine) {
	f := newFixture(t, e)
	ctx := t.Context()
	id := f.accept("a", "u1@example.org", "u2@example.org")
	failed := func(n int) Notice { return Notice{MailID: id, N: n, Action: event.ActionFailed, EventID: "e1"} }

	dsn, err := f.tell("5", failed(0))
	f.must(err)
	l := f.ledger(id)
	if n := l.Notice(0, event.ActionFailed); n == nil || n.DSN != dsn || n.EventID != "e1" || !n.Due.IsZero() || len(l.Notices) != 1 {
		t.Fatalf("got %+v", l.Notices)
	}
	if len(l.Rcpts) != 2 || l.Expires.IsZero() || l.Mail.Envelope.From != "app@example.com" {
		t.Errorf("got %+v", l)
	}

	// A notice that was given is not given again, and takes the whole mail with it.
	if _, err := f.tell("9", failed(1), failed(0)); !errors.Is(err, ErrTold) {
		t.Fatalf("told twice: %v", err)
	}
	if c, err := f.Cursor(ctx, "dsn"); c != "5" || err != nil {
		t.Errorf("cursor %q %v after a mail that was not written", c, err)
	}
	if l := f.ledger(id); l.Notice(1, event.ActionFailed) != nil || f.waitingFor("local") != 1 {
		t.Errorf("half a DSN: %+v, %d mails", l.Notices, f.waitingFor("local"))
	}
	// Nor is a mail that is gone told of.
	if _, err := f.tell("9", Notice{MailID: "nobody", Action: event.ActionFailed}); !errors.Is(err, ErrTold) {
		t.Errorf("of a mail that is gone: %v", err)
	}

	// Later: comes up when due, may be put off, is settled by the mail or for a reason.
	due := f.clock.now().Add(time.Hour)
	late := Notice{MailID: id, N: 1, Action: event.ActionDelayed, EventID: "e2", Due: due}
	f.must(f.PutNotices(ctx, late, Notice{MailID: id, N: 0, Action: event.ActionFailed, Due: due}))
	for step, want := range []int{0, 1, 0} {
		ns, err := f.DueNotices(ctx, 10)
		if err != nil || len(ns) != want {
			t.Fatalf("step %d: got %+v %v", step, ns, err)
		}
		if step == 1 {
			if late.Updated = ns[0].Updated; ns[0] != late || late.Updated.IsZero() {
				t.Errorf("got %+v, want %+v", ns[0], late)
			}
			late.Due = late.Due.Add(2 * time.Hour)
			f.must(f.PutNotices(ctx, late))
			break
		}
		f.clock.add(61 * time.Minute)
	}
	f.clock.add(5 * time.Hour)
	if _, err := f.tell("10", late); err != nil {
		t.Fatal(err)
	}
	f.must(f.PutNotices(ctx, failed(1), late))
	if ns, err := f.DueNotices(ctx, 10); len(ns) != 0 || err != nil {
		t.Errorf("still due: %+v %v", ns, err)
	}
	settled := failed(1)
	settled.Reason = "overtaken"
	f.must(f.PutNotices(ctx, settled)) // the first word counts
	if n := f.ledger(id).Notice(1, event.ActionFailed); n.Reason != "" || n.DSN != "" {
		t.Errorf("got %+v", n)
	}
	if _, err := f.tell("11", failed(1)); !errors.Is(err, ErrTold) {
		t.Errorf("a settled notice was told: %v", err)
	}

	// The cap counts mails, of one sender, however spelt.
	for sender, want := range map[string]int{"app@EXAMPLE.com": 2, "other@example.com": 0} {
		if n, err := f.NoticesSince(ctx, sender, f.clock.now().Add(-24*time.Hour)); n != want || err != nil {
			t.Errorf("%s: got %d %v, want %d", sender, n, err, want)
		}
	}
	if n, err := f.NoticesSince(ctx, "app@example.com", f.clock.now()); n != 1 || err != nil {
		t.Errorf("since now: %d %v", n, err)
	}
	f.reopen()
	if l := f.ledger(id); len(l.Notices) != 3 {
		t.Errorf("after a restart: %+v", l.Notices)
	}
	if _, err := f.Ledger(ctx, "nobody"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, err := f.Event(ctx, "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	_, err = f.Record(ctx, nil, event.Event{ID: "e7", Kind: event.Bounced, Account: "a", Recipient: "u1@example.org"})
	f.must(err)
	if e, err := f.Event(ctx, "e7"); err != nil || e.Kind != event.Bounced {
		t.Errorf("got %+v %v", e, err)
	}
}

// testEnqueueIsWhole fails the first, second, third ... call of the transaction that writes a DSN, as a crash there
// would: then neither the mail, nor its notices, nor the place of the follower are there; else all three.
func testEnqueueIsWhole(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.accept("a", "u1@example.org")
	for n := int64(1); ; n++ {
		fault := &failNth{at: n, err: errInjected}
		f.fault = fault.hook
		_, err := f.tell("7", Notice{MailID: id, Action: event.ActionFailed})
		f.fault = nil
		f.reopen()
		c, cerr := f.Cursor(t.Context(), "dsn")
		f.must(cerr)
		got := fmt.Sprintf("%d mails, cursor %q, %d notices", f.waitingFor("local"), c, len(f.ledger(id).Notices))
		want := `0 mails, cursor "", 0 notices`
		if err == nil {
			want = `1 mails, cursor "7", 1 notices`
		}
		if got != want {
			t.Fatalf("call %d (%v): %s, want %s", n, err, got, want)
		}
		if err == nil {
			if n < 6 {
				t.Fatalf("the transaction has only %d calls: the seam is not where it should be", n)
			}
			return
		}
		if !errors.Is(err, errInjected) {
			t.Fatalf("call %d: %v", n, err)
		}
	}
}

// testToldInReply: what the reply of accept = "wait" says needs no DSN, what it does not say does.
func testToldInReply(t *testing.T, e engine) {
	f := newFixture(t, e)
	ctx := t.Context()
	soon := f.clock.now().Add(time.Minute)
	refuse := func(account string) {
		c := f.claim(account)
		call := f.start(c, c.Rcpts[0].N)
		call.State = CallRefused
		f.must(f.Settle(ctx, Settlement{Claim: c, Calls: []CallResult{{Call: call}}, Rcpts: []RcptResult{{N: c.Rcpts[0].N, State: RcptFailed, Status: "5.1.1"}}}))
	}
	unheard := func(id string) string {
		l := f.ledger(id)
		waiting, never := l.Mail.Unheard(f.clock.now())
		return fmt.Sprint(waiting, never)
	}

	all := f.waits(soon, "u1@example.org")
	refuse("a")
	if got := unheard(all); got != "true false" {
		t.Errorf("finished, but its client is not answered: %s", got)
	}
	f.must(f.Answer(ctx, all, 0))
	if n := f.ledger(all).Notice(0, event.ActionFailed); n == nil || n.Reason == "" || unheard(all) != "false false" {
		t.Errorf("told in the reply: %+v, %s", n, unheard(all))
	}

	some := f.waits(soon, "u2@example.org", "u3@example.org")
	refuse("a")
	if got := unheard(some); got != "true false" {
		t.Errorf("its client is not answered yet: %s", got)
	}
	f.must(f.Answer(ctx, some))
	if l := f.ledger(some); unheard(some) != "false false" || len(l.Notices) != 0 {
		t.Errorf("answered with success: %s, %+v", unheard(some), l.Notices)
	}

	lost := f.waits(soon, "u4@example.org")
	refuse("a")
	f.clock.add(2 * time.Minute)
	if got := unheard(lost); got != "false true" {
		t.Errorf("finished, and the bridge stopped before the answer: %s", got)
	}
	left := f.waits(f.clock.now().Add(time.Minute), "u5@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	f.must(f.Abandon(ctx, left))
	call.State = CallRefused
	f.must(f.Settle(ctx, Settlement{Claim: c, Calls: []CallResult{{Call: call}}, Rcpts: []RcptResult{{N: 0, State: RcptFailed, Status: "5.1.1"}}}))
	if got := unheard(left); got != "false true" {
		t.Errorf("refused after its client left: %s", got)
	}
}
