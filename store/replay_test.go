package store

import (
	"testing"
	"time"

	"smtpbridge/event"
)

// testReplay: what a later parser says of a stored request is a revision, and only where it differs.
func testReplay(t *testing.T, e engine) {
	f := newFixture(t, e)
	id := f.deliver("pm-1", "one@example.org")
	at := f.clock.now()
	request := func(id string) *RawRequest {
		return &RawRequest{ID: id, Account: "a", Kind: "webhook", Method: "POST", URL: "/webhook/a", Body: []byte(id), Received: at}
	}
	first := event.Event{ID: "e1", Kind: event.Unknown, Account: "a", ProviderMessageID: "pm-1", Time: at, ProviderEvent: "blocked"}
	other := event.Event{ID: "e2", Kind: event.Opened, Account: "a", ProviderMessageID: "pm-1", Time: at}
	if n, err := f.Record(t.Context(), request("req-1"), first, other); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	f.record(1, event.Event{ID: "poll", Kind: event.Delivered, ProviderMessageID: "pm-1"})
	base := len(f.follow())
	replay := func(want Replayed, raw string, evs ...event.Event) {
		t.Helper()
		f.clock.add(time.Hour)
		got, err := f.Replay(t.Context(), raw, evs...)
		if err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	}
	replay(Replayed{Same: 2}, "req-1", first, other)
	if n := len(f.follow()); n != base {
		t.Fatalf("%d events, want %d", n, base)
	}
	better := first
	better.Kind, better.Status, better.Action = event.Bounced, "5.7.1", event.ActionFailed
	replay(Replayed{Revised: 1, Same: 1}, "req-1", better, other)
	replay(Replayed{Same: 2}, "req-1", better, other)
	got := f.follow()[base:]
	if len(got) != 1 || got[0].ID != "e1" || got[0].Revision != 1 || got[0].Kind != event.Bounced || got[0].QueueID != id || got[0].Recipient != "one@example.org" || got[0].EnvID != "env-1" {
		t.Fatalf("got %+v", got)
	}
	f.wantRcpt(id, 0, RcptSent, event.Bounced)
	// A wrong result leaves the ledger with its revision.
	better.Kind, better.Status, better.Action = event.Deferred, "4.7.1", event.ActionDelayed
	replay(Replayed{Revised: 1}, "req-1", better)
	if e := f.follow()[base+1]; e.Revision != 2 || e.Kind != event.Deferred {
		t.Fatalf("got %+v", e)
	}
	f.wantRcpt(id, 0, RcptSent, event.Deferred)
	// The same event of another request is a copy, as it was at first; so is another copy of a fact.
	copied := better
	copied.ProviderEvent = "blocked_unique"
	replay(Replayed{Same: 1}, "req-2", copied)
	replay(Replayed{Same: 1}, "req-1", event.Event{ID: "e3", Kind: event.Delivered, Account: "a", ProviderMessageID: "pm-1", Time: at})
	// An item that could not be read before is new, and marked as coming from a replay.
	added := event.Event{ID: "e4", Kind: event.Complained, Account: "a", ProviderMessageID: "pm-1", Time: at}
	replay(Replayed{Added: 1}, "req-1", added)
	replay(Replayed{Same: 1}, "req-1", added)
	if e := f.follow()[base+2]; e.ID != "e4" || e.Revision != 1 {
		t.Fatalf("got %+v", e)
	}
	// What is not about a mail of ours has revisions too, and one fact stays one.
	stray := event.Event{ID: "s1", Kind: event.Delivered, Account: "b", ProviderMessageID: "foreign", Recipient: "x@example.org", Time: at}
	if n, err := f.Record(t.Context(), request("req-3"), stray); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	stray.Status = "2.1.5"
	replay(Replayed{Revised: 1}, "req-3", stray)
	stray.ID = "s2"
	replay(Replayed{Same: 1}, "req-3", stray)
}
