package store

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// waits commits a mail whose client waits, with one job per recipient, for accounts a, b, c ...
func (f *fixture) waits(until time.Time, rcpts ...string) string {
	f.t.Helper()
	m := testMail(f.clock.now(), rcpts...)
	m.HoldReason = Unanswered(until)
	var jobs []NewJob
	for i := range rcpts {
		jobs = append(jobs, NewJob{Route: "r", Accounts: []string{string(rune('a' + i))}, Rcpts: []int{i}, NextAt: f.clock.now(), Expires: f.clock.now().Add(time.Hour)})
	}
	f.must(f.commit(m, []byte("Subject: x\r\n\r\nhello\r\n"), jobs))
	f.clock.add(time.Millisecond) // the next one's id is later
	return m.Envelope.ID
}

func testUnanswered(t *testing.T, e engine) {
	f := newFixture(t, e)
	ctx := t.Context()
	soon, now := f.clock.now().Add(time.Minute), f.clock.now()

	// Answered: an ordinary mail.
	answered := f.waits(soon, "u1@example.org")
	f.must(f.Answer(ctx, answered))
	f.must(f.Answer(ctx, answered))
	f.must(f.Abandon(ctx, answered))
	if d := f.detail(answered); d.Mail.State != MailQueued || d.Mail.HoldReason != "" || len(d.Jobs) != 1 {
		t.Errorf("answered: %+v", d.Mail)
	}
	f.must(f.Delete(ctx, answered))

	// Nothing was started.
	idle := f.waits(soon, "u1@example.org", "u2@example.org")
	f.must(f.Abandon(ctx, idle))
	f.must(f.Abandon(ctx, idle))
	d := f.detail(idle)
	if d.Mail.State != MailDeleted || !d.Mail.BodyPurged || len(d.Jobs) != 0 || len(d.Events) != 2 {
		t.Errorf("nothing started: %+v, %d jobs, %d events", d.Mail, len(d.Jobs), len(d.Events))
	}
	f.wantRcpt(idle, 1, RcptDeleted, event.Failed)
	if ev := d.Events[0]; ev.Status != "4.4.2" || !strings.Contains(ev.Diagnostic, "the client left") {
		t.Errorf("event %+v", ev)
	}
	if err := f.Answer(ctx, idle); !errors.Is(err, ErrStale) {
		t.Errorf("answer of an abandoned mail: %v", err)
	}
	if err := f.Answer(ctx, "nope"); !errors.Is(err, ErrNotFound) {
		t.Errorf("answer of no mail: %v", err)
	}
	f.must(f.Abandon(ctx, "nope"))

	// a is on the wire, b's call was surely not accepted, c's answer was lost, d was claimed but not started.
	id := f.waits(soon, "u1@example.org", "u2@example.org", "u3@example.org", "u4@example.org")
	ca, cb, cc, cd := f.claim("a"), f.claim("b"), f.claim("c"), f.claim("d")
	callA, callB, callC := f.start(ca, 0), f.start(cb, 1), f.start(cc, 2)
	callB.State = CallRetry
	f.must(f.Settle(ctx, Settlement{Claim: cb, Calls: []CallResult{{Call: callB}}, NextAt: now.Add(time.Hour)}))
	callC.State = CallAmbiguous
	f.must(f.Settle(ctx, Settlement{Claim: cc, Calls: []CallResult{{Call: callC}}, NextAt: now}))
	f.must(f.Abandon(ctx, id))
	states := func() (out []RcptState) {
		for _, r := range f.detail(id).Rcpts {
			out = append(out, r.State)
		}
		return out
	}
	if got, want := states(), []RcptState{RcptInFlight, RcptDeleted, RcptInFlight, RcptDeleted}; !slices.Equal(got, want) {
		t.Fatalf("abandoned: %v, want %v", got, want)
	}
	if err := f.Answer(ctx, id); !errors.Is(err, ErrStale) {
		t.Errorf("answer of an abandoned mail: %v", err)
	}
	if _, err := f.Start(ctx, cd, []Call{{Rcpts: []int{3}}}); !errors.Is(err, ErrStale) {
		t.Errorf("a dropped recipient was started: %v", err)
	}
	f.must(f.Release(ctx, cd))
	// What comes back as not accepted is not tried again.
	callA.State = CallRetry
	f.must(f.Settle(ctx, Settlement{Claim: ca, Calls: []CallResult{{Call: callA}}, NextAt: now}))
	f.wantRcpt(id, 0, RcptDeleted, event.Failed)
	// A lost answer is followed up, as ever.
	cc = f.claim("c")
	if len(cc.Open) != 1 {
		t.Fatalf("%d open calls, want the ambiguous one", len(cc.Open))
	}
	again, err := f.Start(ctx, cc, cc.Open)
	f.must(err)
	f.must(f.Settle(ctx, Settlement{Claim: cc, Calls: []CallResult{accepted(again[0], "p1")}}))
	if d := f.detail(id); d.Mail.State != MailFinished || len(d.Jobs) != 0 || d.Rcpts[2].State != RcptSent {
		t.Errorf("%s, %d jobs, %v", d.Mail.State, len(d.Jobs), states())
	}
	finals := map[string]int{}
	for _, ev := range f.detail(id).Events {
		if queueFinal(ev.Kind) {
			finals[ev.Recipient]++
		}
	}
	if len(finals) != 4 || finals["u1@example.org"] != 1 || finals["u4@example.org"] != 1 {
		t.Errorf("final events %v", finals)
	}

	// Overdue ones are found; one that is held, or finished by its calls, is nobody's business.
	late, open, held := f.waits(now.Add(-time.Minute), "u5@example.org"), f.waits(soon, "u6@example.org"), f.waits(now.Add(-time.Minute), "u7@example.org")
	f.must(f.Hold(ctx, held, "test"))
	if n, err := f.AbandonOverdue(ctx, now); n != 1 || err != nil {
		t.Errorf("abandoned %d, %v", n, err)
	}
	if got := []MailState{f.detail(late).Mail.State, f.detail(open).Mail.State, f.detail(held).Mail.State}; !slices.Equal(got, []MailState{MailDeleted, MailQueued, MailHeld}) {
		t.Errorf("states %v", got)
	}
	f.reopen()
	if n, err := f.AbandonOverdue(ctx, time.Time{}); n != 1 || err != nil || f.detail(open).Mail.State != MailDeleted {
		t.Errorf("abandoned %d, %v, %s", n, err, f.detail(open).Mail.State)
	}

	// Refused by the ESP: the body goes before its time, the ledger stays.
	refused := f.waits(soon, "u8@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	if err := f.PurgeBody(ctx, refused); !errors.Is(err, ErrNotFound) {
		t.Errorf("the body of a mail on its way was purged: %v", err)
	}
	call.State = CallRefused
	f.must(f.Settle(ctx, Settlement{Claim: c, Calls: []CallResult{{Call: call}}, Rcpts: []RcptResult{{N: 0, State: RcptRejected, Status: "5.1.1"}}}))
	if d := f.detail(refused); d.Mail.State != MailFinished || !strings.HasPrefix(d.Mail.HoldReason, waitMark) || d.Mail.BodyPurged {
		t.Errorf("refused: %+v", d.Mail)
	}
	f.must(f.PurgeBody(ctx, refused))
	f.must(f.PurgeBody(ctx, refused))
	if d := f.detail(refused); !d.Mail.BodyPurged || len(d.Rcpts) != 1 {
		t.Errorf("purged: %+v", d.Mail)
	}
}
