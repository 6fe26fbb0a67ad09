package store

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

func (f *fixture) record(want int, evs ...event.Event) {
	f.t.Helper()
	for i := range evs {
		if evs[i].Account == "" {
			evs[i].Account = "a"
		}
		if evs[i].Time.IsZero() {
			evs[i].Time = f.clock.now()
		}
	}
	n, err := f.Record(f.t.Context(), nil, evs...)
	f.must(err)
	if n != want {
		f.t.Fatalf("got %d fresh events, want %d", n, want)
	}
}

// deliver takes a mail through to accepted with one provider id for the call.
func (f *fixture) deliver(pmid string, rcpts ...string) string {
	f.t.Helper()
	id := f.accept("a", rcpts...)
	c := f.claim("a")
	call := f.start(c, c.Job.Rcpts...)
	st := Settlement{Claim: c, Calls: []CallResult{accepted(call, pmid)}}
	for n := range rcpts {
		r, e := sent(c, n, pmid)
		st.Rcpts, st.Events = append(st.Rcpts, r), append(st.Events, e)
	}
	f.must(f.Settle(f.t.Context(), st))
	return id
}

func testRecord(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.deliver("pm-1", "one@example.org")
	two := f.deliver("pm-2", "x@example.org", "y@example.org")
	base := len(f.follow())
	raw := &RawRequest{ID: "req-1", Account: "a", Kind: "webhook", Method: "POST", URL: "/webhook/a", Header: map[string][]string{"X": {"1"}}, Body: []byte(strings.Repeat("body ", 500)), Received: f.clock.now()}
	ev := event.Event{ID: "e1", Kind: event.Delivered, Account: "a", ProviderMessageID: "pm-1", Time: f.clock.now().Add(-time.Second), Status: "2.0.0"}
	if n, err := f.Record(t.Context(), raw, ev); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	got := f.follow()[base]
	if got.QueueID != id || got.Recipient != "one@example.org" || got.Sender != "app@example.com" || got.EnvID != "env-1" || got.ORCPT != "rfc822;one@example.org" || got.MessageID != "m1@example.com" || got.RawID != "req-1" {
		t.Fatalf("got %+v", got)
	}
	f.wantRcpt(id, 0, RcptSent, event.Delivered) // though the ESP's clock is behind ours
	// The same request again, and another copy of the fact.
	raw2 := *raw
	raw2.ID = "req-2"
	if n, err := f.Record(t.Context(), &raw2, ev); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if _, err := f.Request(t.Context(), "req-2"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the request of a repeat was kept: %v", err)
	}
	req, err := f.Request(t.Context(), "req-1")
	if err != nil || string(req.Body) != string(raw.Body) || req.Header["X"][0] != "1" || !req.Received.Equal(raw.Received) {
		t.Fatalf("got %+v %v", req, err)
	}
	f.record(0, event.Event{ID: "poll-1", Kind: event.Delivered, ProviderMessageID: "pm-1", Recipient: "one@EXAMPLE.org"})
	f.record(1, event.Event{ID: "e1", Revision: 1, Kind: event.Delivered, ProviderMessageID: "pm-1"})
	f.record(0, event.Event{ID: "e1", Revision: 1, Kind: event.Delivered, ProviderMessageID: "pm-1"})
	// Opens are no facts of delivery and may be many.
	f.record(2, event.Event{ID: "o1", Kind: event.Opened, ProviderMessageID: "pm-1"}, event.Event{ID: "o2", Kind: event.Opened, ProviderMessageID: "pm-1"})
	f.wantRcpt(id, 0, RcptSent, event.Delivered)
	// A bounce from before does not undo the delivery, a later one does, a complaint comes on top.
	f.record(1, event.Event{ID: "b0", Kind: event.Deferred, ProviderMessageID: "pm-1", Time: f.clock.now().Add(-time.Hour)})
	f.wantRcpt(id, 0, RcptSent, event.Delivered)
	f.record(1, event.Event{ID: "b1", Kind: event.Bounced, ProviderMessageID: "pm-1", Time: f.clock.now().Add(time.Second), Status: "5.1.1", Diagnostic: "no such user"})
	f.wantRcpt(id, 0, RcptSent, event.Bounced)
	if r := f.detail(id).Rcpts[0]; r.Status != "5.1.1" || r.Detail != "no such user" {
		t.Fatalf("got %+v", r)
	}
	f.record(0, event.Event{ID: "b2", Kind: event.Bounced, ProviderMessageID: "pm-1", Recipient: "one@example.org"})
	// Two recipients, one id: an event without recipient is about neither.
	base = len(f.follow())
	f.record(1, event.Event{ID: "c1", Kind: event.Bounced, ProviderMessageID: "pm-2"})
	got = f.follow()[base]
	if got.QueueID != two || got.Recipient != "" || fmt.Sprint(got.Candidates) != "[x@example.org y@example.org]" {
		t.Fatalf("got %+v", got)
	}
	f.wantRcpt(two, 0, RcptSent, event.Sent)
	f.record(1, event.Event{ID: "c2", Kind: event.Delivered, ProviderMessageID: "pm-2", Recipient: "Y@example.org"})
	f.wantRcpt(two, 0, RcptSent, event.Sent)
	f.wantRcpt(two, 1, RcptSent, event.Delivered)
	// Another account's id, and nothing in flight: not ours, out at once.
	base = len(f.follow())
	f.record(1, event.Event{ID: "d1", Account: "b", Kind: event.Delivered, ProviderMessageID: "pm-1", Recipient: "one@example.org"})
	f.record(0, event.Event{ID: "d2", Account: "b", Kind: event.Delivered, ProviderMessageID: "pm-1", Recipient: "one@example.org"})
	if got = f.follow()[base]; got.QueueID != "" {
		t.Fatalf("got %+v", got)
	}
	var many []event.Event
	for i := range 450 {
		many = append(many, event.Event{ID: fmt.Sprint("many", i), Kind: event.Opened, ProviderMessageID: "pm-1"})
	}
	f.record(450, many...)
	f.reopen()
	f.record(0, many...)
}

func testPerRecipientIDs(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.accept("a", "x@example.org", "y@example.org")
	c := f.claim("a")
	call := f.start(c, 0, 1)
	r0, e0 := sent(c, 0, "id-x")
	r1, e1 := sent(c, 1, "id-y")
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "id-x")}, Rcpts: []RcptResult{r0, r1}, Events: []event.Event{e0, e1}}))
	// The call's own id is the first recipient's: the more precise meaning counts.
	f.record(2, event.Event{ID: "1", Kind: event.Delivered, ProviderMessageID: "id-x"}, event.Event{ID: "2", Kind: event.Bounced, ProviderMessageID: "id-y", Time: f.clock.now().Add(time.Second)})
	f.wantRcpt(id, 0, RcptSent, event.Delivered)
	f.wantRcpt(id, 1, RcptSent, event.Bounced)
	// A batch id is replaced by the mail's own.
	id = f.deliver("bulk:77", "z@example.org", "w@example.org")
	f.record(1, event.Event{ID: "3", Kind: event.Delivered, ProviderMessageID: "own", Ref: f.detail(id).Calls[0].Ref, Recipient: "w@example.org"})
	if r := f.detail(id).Rcpts; r[1].ProviderMessageID != "own" || r[0].ProviderMessageID != "bulk:77" {
		t.Fatalf("got %+v", r)
	}
	f.record(1, event.Event{ID: "4", Kind: event.Complained, ProviderMessageID: "own"})
	f.wantRcpt(id, 1, RcptSent, event.Complained)
	testBulk(t, f, id)
}

// testBulk resolves the batch of mail one, of whose second recipient an event has told already.
func testBulk(t *testing.T, f *fixture, one string) {
	f.clock.add(time.Second)
	two := f.deliver("bulk:78", "a@example.org", "b@example.org", "c@example.org")
	f.deliver("plain", "n@example.org")
	since := f.clock.now().Add(-time.Hour)
	open := func() string {
		t.Helper()
		calls, err := f.Unresolved(t.Context(), "a", since, 10)
		f.must(err)
		var out []string
		for _, c := range calls {
			out = append(out, fmt.Sprintf("%s/%d/%s", c.Call.ProviderMessageID, len(c.Rcpts), c.Rcpts[0].Addr))
		}
		return strings.Join(out, " ")
	}
	if got := open(); got != "bulk:77/2/z@example.org bulk:78/3/a@example.org" {
		t.Fatalf("got %s", got)
	}
	if calls, err := f.Unresolved(t.Context(), "b", since, 10); err != nil || len(calls) != 0 {
		t.Fatalf("another account's: %+v, %v", calls, err)
	}
	if calls, err := f.Unresolved(t.Context(), "a", f.clock.now().Add(time.Hour), 10); err != nil || len(calls) != 0 {
		t.Fatalf("too old ones: %+v, %v", calls, err)
	}
	calls, err := f.Unresolved(t.Context(), "a", since, 10)
	f.must(err)
	f.must(f.Resolve(t.Context(), calls[0].Call, map[int]string{0: "id-z", 1: "not this one"}))
	if r := f.detail(one).Rcpts; r[0].ProviderMessageID != "id-z" || r[1].ProviderMessageID != "own" {
		t.Fatalf("got %+v", r)
	}
	refused := event.Event{ID: "bulk-c", Kind: event.Rejected, Account: "a", ProviderMessageID: "bulk:78", Ref: calls[1].Call.Ref, Recipient: "c@example.org", Action: event.ActionFailed, Status: "5.6.0", Diagnostic: "no"}
	for range 2 { // again after a restart: the same event
		f.must(f.Resolve(t.Context(), calls[1].Call, map[int]string{0: "id-a", 1: "id-b"}, refused))
	}
	f.wantRcpt(two, 0, RcptSent, event.Sent)
	f.wantRcpt(two, 2, RcptSent, event.Rejected)
	d := f.detail(two)
	if n := len(d.Events); d.Rcpts[0].ProviderMessageID != "id-a" || d.Events[n-1].ID != "bulk-c" || d.Events[n-2].ID == "bulk-c" || d.Events[n-1].QueueID != two {
		t.Fatalf("got %+v %+v", d.Rcpts, d.Events)
	}
	if got := open(); got != "" {
		t.Fatalf("still open: %s", got)
	}
	if err := f.Resolve(t.Context(), calls[0].Call, map[int]string{2: "x"}); err == nil {
		t.Fatal("an id for nobody was taken")
	}
	// The own ids find their mail.
	f.record(1, event.Event{ID: "5", Kind: event.Delivered, ProviderMessageID: "id-b"})
	f.wantRcpt(two, 1, RcptSent, event.Delivered)
}

func testWithheld(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.accept("a", "one@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	// The event overtakes the answer.
	ev := event.Event{ID: "fast", Kind: event.Delivered, ProviderMessageID: "pm", Recipient: "one@example.org"}
	f.record(1, ev)
	f.record(0, ev)
	f.record(1, event.Event{ID: "foreign", Kind: event.Delivered, ProviderMessageID: "who?", Recipient: "z@example.org"})
	f.wantEvents("")
	if n, err := f.ReleaseWithheld(t.Context()); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	r, sentEv := sent(c, 0, "pm")
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm")}, Rcpts: []RcptResult{r}, Events: []event.Event{sentEv}}))
	f.wantEvents("sent(one@example.org) delivered(one@example.org) ")
	if got := f.follow()[1]; got.QueueID != id {
		t.Fatalf("got %+v", got)
	}
	f.wantRcpt(id, 0, RcptSent, event.Delivered)
	// Nothing is in flight any more: the other one goes out, with no queue id.
	if n, err := f.ReleaseWithheld(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if evs := f.follow(); len(evs) != 3 || evs[2].ID != "foreign" || evs[2].QueueID != "" {
		t.Fatalf("got %+v", evs)
	}
	f.record(0, ev)
	// With a call in flight two minutes are the limit.
	f.accept("a", "two@example.org")
	f.start(f.claim("a"), 0)
	f.record(1, event.Event{ID: "late", Kind: event.Delivered, ProviderMessageID: "who else?"})
	f.clock.add(withholdFor + time.Second)
	if n, err := f.ReleaseWithheld(t.Context()); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	if evs := f.follow(); evs[len(evs)-1].ID != "late" {
		t.Fatalf("got %+v", evs)
	}
}

func testProof(t *testing.T, e engine) {
	t.Run("ambiguous call", func(t *testing.T) {
		f := newFixture(t, e)
		id := f.accept("a", "one@example.org", "two@example.org", "three@example.org")
		c := f.claim("a")
		call := f.start(c, 0, 1)
		f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, CallAmbiguous)}, NextAt: f.clock.now().Add(time.Hour)}))
		f.wantRcpt(id, 0, RcptInFlight, "")
		f.record(1, event.Event{ID: "e", Kind: event.Delivered, Provider: "esp", Ref: call.Ref, ProviderMessageID: "pm", Recipient: "two@example.org"})
		f.wantEvents("sent(one@example.org) sent(two@example.org) delivered(two@example.org) ")
		f.wantRcpt(id, 0, RcptSent, event.Sent)
		f.wantRcpt(id, 1, RcptSent, event.Delivered)
		f.wantRcpt(id, 2, RcptQueued, "")
		d := f.detail(id)
		if d.Calls[0].State != CallAccepted || d.Attempts[0].State != CallAccepted || len(d.Jobs) != 1 || len(d.Jobs[0].Rcpts) != 1 {
			t.Fatalf("got %+v", d)
		}
		f.clock.add(time.Hour)
		c = f.claim("a")
		if len(c.Open) != 0 || len(c.Rcpts) != 1 || c.Rcpts[0].N != 2 {
			t.Fatalf("got %+v", c)
		}
	})
	t.Run("last recipient", func(t *testing.T) {
		f := newFixture(t, e)
		id := f.accept("a", "one@example.org")
		c := f.claim("a")
		call := f.start(c, 0)
		f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, CallRetry)}}))
		f.record(1, event.Event{ID: "e", Kind: event.Opened, Ref: call.Ref})
		f.wantEvents("sent(one@example.org) opened(one@example.org) ")
		if d := f.detail(id); d.Mail.State != MailFinished || len(d.Jobs) != 0 {
			t.Fatalf("got %+v", d)
		}
		f.noClaim("a")
	})
	for _, answer := range []CallState{CallAccepted, CallAmbiguous, CallRetry, CallRefused} {
		t.Run("on the wire, then "+string(answer), func(t *testing.T) {
			f := newFixture(t, e)
			id := f.accept("a", "one@example.org", "two@example.org")
			c := f.claim("a")
			call := f.start(c, 0, 1)
			f.record(1, event.Event{ID: "e", Kind: event.Delivered, Ref: call.Ref, ProviderMessageID: "pm", Recipient: "one@example.org"})
			f.wantEvents("")
			st := Settlement{Claim: c, Calls: []CallResult{result(call, answer)}}
			if answer == CallAccepted {
				r, ev := sent(c, 0, "pm")
				st.Rcpts, st.Events = []RcptResult{r}, []event.Event{ev}
			}
			f.must(f.Settle(t.Context(), st))
			want := "sent(one@example.org) sent(two@example.org) delivered(one@example.org) "
			f.wantEvents(want)
			if d := f.detail(id); d.Mail.State != MailFinished || d.Calls[0].State != CallAccepted {
				t.Fatalf("got %+v", d)
			}
			f.wantRcpt(id, 0, RcptSent, event.Delivered)
		})
	}
	t.Run("on the wire, then a crash", func(t *testing.T) {
		f := newFixture(t, e, func(o *Options) { o.Lease = 500 * time.Millisecond })
		f.accept("a", "one@example.org")
		c := f.claim("a")
		call := f.start(c, 0)
		f.record(1, event.Event{ID: "e", Kind: event.Delivered, Ref: call.Ref, ProviderMessageID: "pm", Recipient: "one@example.org"})
		f.reopen()
		if f.Store.d.shared {
			waitFor(t, func() bool { _, ok, err := f.NextDue(t.Context(), "a"); return err == nil && ok })
		}
		f.noClaim("a")
		f.wantEvents("sent(one@example.org) delivered(one@example.org) ")
	})
}

func testSettleKeepsLedger(t *testing.T, e engine) {
	f := newFixture(t, e)
	// Accepted, and nothing else said: sent, with an event.
	id := f.accept("a", "one@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm")}}))
	f.wantRcpt(id, 0, RcptSent, event.Sent)
	f.wantEvents("sent(one@example.org) ")
	if ev := f.follow()[0]; ev.Provider != "prov-a" || ev.ProviderMessageID != "pm" {
		t.Fatalf("got %+v", ev)
	}
	// Settled again under a claim that is over: nothing happens twice.
	if err := f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm")}}); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	f.wantEvents("sent(one@example.org) ")
	// Two final events for one recipient: the first counts.
	f.accept("a", "two@example.org")
	c = f.claim("a")
	call = f.start(c, 0)
	r, ev := sent(c, 0, "pm2")
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm2")}, Rcpts: []RcptResult{r}, Events: []event.Event{ev, ev, {Kind: event.Failed, Recipient: "two@example.org"}}}))
	f.wantEvents("sent(one@example.org) sent(two@example.org) ")
	// A final event without a final state is not one yet.
	f.accept("a", "three@example.org")
	c = f.claim("a")
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Events: []event.Event{{Kind: event.Deferred, Recipient: "three@example.org"}, {Kind: event.Failed, Recipient: "three@example.org"}}, Hold: "expired under a pause"}))
	f.wantEvents("sent(one@example.org) sent(two@example.org) deferred(three@example.org) ")
	f.noClaim("a")
	if d := f.detail(c.Job.MailID); d.Mail.State != MailHeld || d.Mail.HoldReason != "expired under a pause" {
		t.Fatalf("got %+v", d.Mail)
	}
	if err := f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{{Call: Call{ID: "never"}}}}); err == nil || errors.Is(err, ErrStale) {
		t.Fatalf("a call that was never started: %v", err)
	}
}

func testOperator(t *testing.T, e engine) {
	t.Run("hold release retry", func(t *testing.T) {
		f := newFixture(t, e)
		id := f.accept("a", "one@example.org")
		f.must(f.Hold(t.Context(), id, "look at it"))
		f.noClaim("a")
		if _, ok, err := f.NextDue(t.Context(), "a"); ok || err != nil {
			t.Fatal(ok, err)
		}
		f.must(f.ReleaseHold(t.Context(), id))
		c := f.claim("a")
		f.must(f.Settle(t.Context(), Settlement{Claim: c, NextAt: f.clock.now().Add(time.Hour)}))
		f.noClaim("a")
		f.must(f.Retry(t.Context(), id))
		c = f.claim("a")
		f.must(f.Hold(t.Context(), id, "now"))
		if _, err := f.Start(t.Context(), c, []Call{{Rcpts: []int{0}}}); !errors.Is(err, ErrStale) {
			t.Fatalf("a call of a held mail: %v", err)
		}
		f.must(f.Release(t.Context(), c))
		if err := f.Hold(t.Context(), "nosuch", ""); !errors.Is(err, ErrNotFound) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("delete", func(t *testing.T) {
		f := newFixture(t, e)
		id := f.accept("a", "one@example.org", "two@example.org")
		f.must(f.Delete(t.Context(), id, event.Event{Kind: event.Failed, Recipient: "two@example.org", Diagnostic: "operator"}))
		f.wantEvents("failed(two@example.org) failed(one@example.org) ")
		f.wantRcpt(id, 0, RcptDeleted, event.Failed)
		if d := f.detail(id); d.Mail.State != MailDeleted || !d.Mail.BodyPurged || len(d.Jobs) != 0 || d.Mail.Finished.IsZero() {
			t.Fatalf("got %+v", d.Mail)
		}
		if _, err := f.Body(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Fatalf("got %v", err)
		}
		if err := f.Delete(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Fatalf("got %v", err)
		}
		f.noClaim("a")
	})
	for _, taken := range []bool{true, false} {
		t.Run(fmt.Sprint("delete while a call runs, accepted ", taken), func(t *testing.T) {
			f := newFixture(t, e)
			id := f.accept("a", "one@example.org", "two@example.org")
			c := f.claim("a")
			call := f.start(c, 0)
			f.must(f.Delete(t.Context(), id))
			f.wantEvents("failed(two@example.org) ")
			st := Settlement{Claim: c, Calls: []CallResult{result(call, CallRetry)}}
			want, state := "failed(two@example.org) failed(one@example.org) ", RcptDeleted
			if taken {
				r, ev := sent(c, 0, "pm")
				st = Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm")}, Rcpts: []RcptResult{r}, Events: []event.Event{ev}}
				want, state = "failed(two@example.org) sent(one@example.org) ", RcptSent
			}
			if err := f.Settle(t.Context(), st); !errors.Is(err, ErrStale) {
				t.Fatalf("got %v", err)
			}
			f.wantEvents(want)
			if d := f.detail(id); d.Rcpts[0].State != state || d.Mail.State != MailDeleted || d.Mail.Finished.IsZero() || len(d.Jobs) != 0 {
				t.Fatalf("got %+v", d)
			}
		})
	}
	t.Run("delete while a call runs, then a crash", func(t *testing.T) {
		f := newFixture(t, e, func(o *Options) { o.Lease = 500 * time.Millisecond })
		id := f.accept("a", "one@example.org")
		f.start(f.claim("a"), 0)
		f.must(f.Delete(t.Context(), id))
		f.wantEvents("")
		f.reopen()
		waitFor(t, func() bool { _, err := f.Purge(t.Context(), Retention{}); return err == nil && len(f.follow()) == 1 })
		if ev := f.follow()[0]; ev.Kind != event.Failed || ev.Outcome != event.OutcomeUnknown {
			t.Fatalf("got %+v", ev)
		}
		f.noClaim("a")
	})
}

func testLookups(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.deliver("pm-9", "One@example.org", "two@example.org")
	f.clock.add(time.Second)
	id2 := f.accept("b", "One@EXAMPLE.org")
	ref := f.detail(id).Calls[0].Ref
	for key, want := range map[string]string{
		id: id, strings.ToUpper(id): id, id[:20]: id, "<m1@example.com>": id2 + " " + id, "pm-9": id, ref: id, "One@Example.ORG": id2 + " " + id,
		"two@example.org": id, "app@example.com": id2 + " " + id, "nothing": "", "": "",
	} {
		got, err := f.Find(t.Context(), key)
		if err != nil || strings.Join(got, " ") != want {
			t.Errorf("Find(%q): got %v, want %s (%v)", key, got, want, err)
		}
	}
	for name, c := range map[string]struct {
		filter Filter
		want   string
	}{
		"all":       {Filter{}, id2 + " " + id},
		"oldest":    {Filter{Oldest: true}, id + " " + id2},
		"limit":     {Filter{Limit: 1}, id2},
		"after":     {Filter{After: id2}, id},
		"state":     {Filter{State: MailFinished}, id},
		"queued":    {Filter{State: MailQueued}, id2},
		"account":   {Filter{Account: "a"}, id},
		"job":       {Filter{Account: "b"}, id2},
		"recipient": {Filter{Recipient: "two@example.org"}, id},
		"address":   {Filter{Address: "app@EXAMPLE.com"}, id2 + " " + id},
		"since":     {Filter{Since: f.clock.now()}, id2},
		"until":     {Filter{Until: f.clock.now()}, id},
		"kind":      {Filter{Kind: event.Sent}, id},
		"id":        {Filter{ID: id}, id},
	} {
		ms, err := f.Mails(t.Context(), c.filter)
		var got []string
		for _, m := range ms {
			got = append(got, m.Envelope.ID)
		}
		if err != nil || strings.Join(got, " ") != c.want {
			t.Errorf("Mails %s: got %v, want %s (%v)", name, got, c.want, err)
		}
	}
	evs, err := f.Events(t.Context(), Filter{Recipient: "One@example.org", Kind: event.Sent, Account: "a", ID: id})
	if err != nil || len(evs) != 1 {
		t.Errorf("got %v %v", evs, err)
	}
	newest, err := f.Events(t.Context(), Filter{Limit: 1})
	f.must(err)
	older, err := f.Events(t.Context(), Filter{After: newest[0].ID})
	if err != nil || len(older) != 1 || older[0].ID == newest[0].ID {
		t.Errorf("got %v %v", older, err)
	}
	f.accept("b", "three@example.org")
	held := f.accept("b", "four@example.org")
	f.must(f.Hold(t.Context(), held, "x"))
	f.start(f.claim("b"), 0)
	st, err := f.Stats(t.Context())
	if err != nil || st.Queued != 2 || st.Held != 1 || st.InFlight != 1 || st.ByAccount["b"] != 2 || !st.Oldest.Equal(f.clock.now()) {
		t.Errorf("got %+v %v", st, err)
	}
}

// testOldest: a mail that is to be sent later waits from then on, whoever else came meanwhile.
func testOldest(t *testing.T, e engine) {
	f := newFixture(t, e)
	want := func(what string, want time.Time) {
		t.Helper()
		if st, err := f.Stats(t.Context()); err != nil || !st.Oldest.Equal(want) {
			t.Errorf("%s: the first waits since %v, %v, want %v", what, st.Oldest, err, want)
		}
	}
	want("empty", time.Time{})
	due := f.clock.now().Add(24 * time.Hour)
	m := testMail(f.clock.now(), "later@example.org")
	f.must(f.commit(m, []byte("Subject: x\r\n\r\nhello\r\n"), []NewJob{{Accounts: []string{"a"}, Rcpts: all(m), NextAt: due, Expires: due.Add(time.Hour)}}))
	f.clock.add(23 * time.Hour)
	want("not due", time.Time{})
	since := f.clock.now()
	id := f.accept("b", "one@example.org")
	f.accept("b", "two@example.org")
	want("another waits", since)
	f.clock.add(2 * time.Hour)
	want("due for an hour, another waits for two", since)
	d := f.detail(id)
	f.must(f.Replan(t.Context(), id, 2, []NewJob{{Accounts: []string{"b"}, Rcpts: d.Jobs[0].Rcpts, NextAt: f.clock.now(), Expires: due}}))
	want("planned anew", since)
	f.must(f.Hold(t.Context(), id, "x"))
	want("held", since)
	f.must(f.Delete(t.Context(), id))
	f.clock.add(time.Hour)
	f.accept("b", "three@example.org")
	want("the second of two", since)
}

func testReplan(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.accept("a", "one@example.org", "two@example.org", "three@example.org")
	c := f.claim("a")
	call := f.start(c, 0)
	if err := f.Replan(t.Context(), id, 2, nil); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	if ids, err := f.Stale(t.Context(), 2, 10); len(ids) != 0 || err != nil {
		t.Fatal(ids, err)
	}
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, CallAmbiguous)}, NextAt: f.clock.now().Add(time.Hour), Counted: true}))
	if ids, err := f.Stale(t.Context(), 2, 10); len(ids) != 1 || ids[0] != id || err != nil {
		t.Fatal(ids, err)
	}
	f.must(f.Replan(t.Context(), id, 2, []NewJob{{Route: "r2", Accounts: []string{"b"}, Rcpts: []int{0, 1}, NextAt: f.clock.now()}, {Route: "r3", Accounts: []string{"c"}, Rcpts: []int{2}, NextAt: f.clock.now()}}))
	// The next configuration's fingerprint may be the smaller one.
	if ids, err := f.Stale(t.Context(), 1, 10); len(ids) != 1 || ids[0] != id || err != nil {
		t.Fatal(ids, err)
	}
	if ids, err := f.Stale(t.Context(), 2, 10); len(ids) != 0 || err != nil {
		t.Fatal(ids, err)
	}
	b := f.claim("b")
	if len(b.Rcpts) != 1 || b.Rcpts[0].N != 1 || b.Job.Attempts != 1 || len(b.Open) != 0 || b.Job.Generation != 2 {
		t.Fatalf("got %+v", b)
	}
	if x := f.claim("c"); x.Rcpts[0].N != 2 {
		t.Fatalf("got %+v", x)
	}
	f.clock.add(time.Hour)
	a := f.claim("a") // the frozen call stays with its account
	if len(a.Rcpts) != 0 || len(a.Open) != 1 || a.Open[0].ID != call.ID {
		t.Fatalf("got %+v", a)
	}
}

func testPurge(t *testing.T, e engine) {
	f := newFixture(t, e, func(o *Options) { o.InlineBody = 64 })
	keep := Retention{Bodies: 48 * time.Hour, Failed: 7 * 24 * time.Hour, Ledger: 30 * 24 * time.Hour, Events: 30 * 24 * time.Hour, Webhooks: 30 * 24 * time.Hour}
	purge := func() {
		for {
			n, err := f.Purge(t.Context(), keep)
			f.must(err)
			if n == 0 {
				return
			}
		}
	}
	purge()
	big := func(last RcptState) string {
		m := testMail(f.clock.now(), "one@example.org")
		f.must(f.commit(m, random(t, 5000), []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}))
		c := f.claim("a")
		call := f.start(c, 0)
		st := CallRefused
		if last == RcptSent {
			st = CallAccepted
		}
		f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, st)}, Rcpts: []RcptResult{{N: 0, State: last}}}))
		return m.Envelope.ID
	}
	good, bad := big(RcptSent), big(RcptFailed)
	queued := f.accept("q", "one@example.org")
	has := func(id string, want bool) {
		t.Helper()
		b, err := f.Body(t.Context(), id)
		if err == nil {
			b.Close()
		}
		if (err == nil) != want {
			t.Fatalf("body of %s: %v, want %v", id, err, want)
		}
	}
	if n, err := f.Record(t.Context(), &RawRequest{ID: "r", Received: f.clock.now()}, event.Event{ID: "x", Account: "a", Kind: event.Unknown}); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	purge()
	has(good, true)
	has(bad, true)
	f.clock.add(49 * time.Hour)
	purge()
	has(good, false)
	has(bad, true)
	f.clock.add(6 * 24 * time.Hour)
	purge()
	has(bad, false)
	if d := f.detail(good); !d.Mail.BodyPurged || len(d.Mail.Header) == 0 {
		t.Fatalf("got %+v", d.Mail)
	}
	f.clock.add(31 * 24 * time.Hour)
	purge()
	for _, id := range []string{good, bad} {
		if _, err := f.Detail(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Fatalf("got %v", err)
		}
	}
	if evs := f.follow(); len(evs) != 0 {
		t.Fatalf("got %s", kinds(evs))
	}
	if _, err := f.Request(t.Context(), "r"); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
	has(queued, true)
	f.claim("q")
	// Bodies = 0: gone with the settlement.
	keep.Bodies = 0
	purge()
	has(big(RcptSent), false)
	if !f.Store.d.shared {
		f.clock.add(blobGrace)
		purge()
		if left, err := f.listBlobs(); err != nil || len(left) != 0 {
			t.Fatal(left, err)
		}
	}
}

func testAccountsAndCursors(t *testing.T, e engine) {
	f := newFixture(t, e)
	a := AccountState{Account: "a", State: "paused", Reason: "401", Until: f.clock.now(), Since: f.clock.now(), Alarmed: true}
	f.must(f.SetAccount(t.Context(), a, event.Event{Kind: event.Unknown, Account: "a", Diagnostic: "paused"}))
	b := a
	b.Domain, b.State = "example.com", "throttled"
	f.must(f.SetAccount(t.Context(), b))
	f.reopen()
	got, err := f.Accounts(t.Context())
	if err != nil || len(got) != 2 || got[0] != a || got[1] != b {
		t.Fatalf("got %+v %v", got, err)
	}
	f.wantEvents("unknown() ")
	a.State = "active"
	f.must(f.SetAccount(t.Context(), a))
	if got, err = f.Accounts(t.Context()); err != nil || len(got) != 1 {
		t.Fatalf("got %+v %v", got, err)
	}
	if c, err := f.Cursor(t.Context(), "file"); c != "" || err != nil {
		t.Fatal(c, err)
	}
	f.must(f.SetCursor(t.Context(), "file", "1:ino:2"))
	f.must(f.SetCursor(t.Context(), "file", "2:ino:3"))
	if c, err := f.Cursor(t.Context(), "file"); c != "2:ino:3" || err != nil {
		t.Fatal(c, err)
	}
	r, err := f.Begin(t.Context())
	f.must(err)
	m := testMail(f.clock.now(), "one@example.org")
	f.must(f.Enqueue(t.Context(), r, m, []NewJob{{Accounts: []string{"local"}, Rcpts: []int{0}}}, nil, "dsn", "7"))
	if c, _ := f.Cursor(t.Context(), "dsn"); c != "7" {
		t.Fatal(c)
	}
	f.claim("local")
	if _, _, err := f.Follow(t.Context(), "junk", 1); err == nil {
		t.Fatal("a cursor that is none")
	}
	last, err := f.LastCursor(t.Context())
	f.must(err)
	if evs, next, err := f.Follow(t.Context(), last, 10); len(evs) != 0 || next != last || err != nil {
		t.Fatal(evs, next, err)
	}
}

func testSuppressions(t *testing.T, e engine) {
	f := newFixture(t, e)
	f.must(f.Suppress(t.Context(), Suppression{Address: "X@Example.org", Reason: "bounced", Domain: "shop.example"},
		Suppression{Address: "y@example.org", Reason: "manual"}, Suppression{Address: "z@example.org", Reason: "unsubscribed", Stream: "news", Expires: f.clock.now().Add(time.Hour)}))
	for name, c := range map[string]struct {
		addr, domain, stream string
		want                 bool
	}{
		"other case":   {"x@EXAMPLE.org", "shop.example", "", true},
		"domain":       {"X@example.ORG", "Shop.Example", "", true},
		"other domain": {"X@example.org", "other.example", "", false},
		"global":       {"y@example.org", "any.example", "s", true},
		"stream":       {"z@example.org", "any.example", "news", true},
		"other stream": {"z@example.org", "any.example", "", false},
		"unknown":      {"q@example.org", "any.example", "", false},
	} {
		got, err := f.Suppressed(t.Context(), c.addr, c.domain, c.stream)
		if err != nil || (got != nil) != c.want {
			t.Errorf("%s: got %v %v", name, got, err)
		}
	}
	var got []Suppression
	for after := (*Suppression)(nil); ; {
		list, err := f.Suppressions(t.Context(), after, 2)
		f.must(err)
		if len(list) == 0 {
			break
		}
		got = append(got, list...)
		after = &list[len(list)-1]
	}
	if len(got) != 3 {
		t.Fatalf("got %v", got)
	}
	if of, err := f.SuppressionsOf(t.Context(), "x@example.org"); len(of) != 1 || of[0].Address != "X@Example.org" || err != nil {
		t.Fatalf("entries of one address: %v %v", of, err)
	}
	f.must(f.Suppress(t.Context(), Suppression{Reason: "manual"}.Keyed(got[0].Key())))
	if s, err := f.Suppressed(t.Context(), got[0].Address, "any.example", ""); s == nil || s.Address != "" || err != nil {
		t.Fatalf("an entry by its key alone: %v %v", s, err)
	}
	f.clock.add(2 * time.Hour)
	if s, err := f.Suppressed(t.Context(), "z@example.org", "", "news"); s != nil || err != nil {
		t.Fatal(s, err)
	}
	f.must(f.Unsuppress(t.Context(), Suppression{Address: "y@example.org"}))
	if err := f.Unsuppress(t.Context(), Suppression{Address: "y@example.org"}); !errors.Is(err, ErrNotFound) {
		t.Fatalf("got %v", err)
	}
}
