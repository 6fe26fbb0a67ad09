package store

import (
	"slices"
	"testing"

	"smtpbridge/event"
)

// An ESP that sets its own Message-ID tells it in its events; replies and other servers' logs name that one, so it finds the mail.
func testWireMessageID(t *testing.T, e engine) {
	f := newFixture(t, e)
	wires := func(id string) (out []string) {
		t.Helper()
		d, err := f.Detail(t.Context(), id)
		f.must(err)
		for _, r := range d.Rcpts {
			out = append(out, r.WireMessageID)
		}
		return out
	}
	want := func(id string, ids ...string) {
		t.Helper()
		if got := wires(id); !slices.Equal(got, ids) {
			t.Errorf("Message-IDs on the wire: %q, want %q", got, ids)
		}
	}
	id := f.deliver("pm-1", "one@example.org")
	// The sender's own Message-ID is kept once, with the mail.
	f.record(1, event.Event{ID: "e1", Kind: event.Opened, ProviderMessageID: "pm-1", MessageID: "m1@example.com"})
	want(id, "")
	f.record(1, event.Event{ID: "e2", Kind: event.Delivered, ProviderMessageID: "pm-1", MessageID: "Wire-1@esp.example"})
	want(id, "Wire-1@esp.example")
	// One call, one mail, an event that does not say which recipient: it is the id of both.
	both := f.deliver("pm-2", "x@example.org", "y@example.org")
	f.record(1, event.Event{ID: "e3", Kind: event.Delivered, ProviderMessageID: "pm-2", MessageID: "wire-2@esp.example"})
	want(both, "wire-2@esp.example", "wire-2@esp.example")
	// A mail of its own for each recipient; what the event shows as message_id stays the sender's.
	f.record(1, event.Event{ID: "e4", Kind: event.Opened, ProviderMessageID: "pm-2", Recipient: "y@example.org", Wire: "wire-y@esp.example"})
	want(both, "wire-2@esp.example", "wire-y@esp.example")
	evs := f.follow()
	if last := evs[len(evs)-1]; last.ID != "e4" || last.MessageID != "m1@example.com" {
		t.Errorf("the event has message_id %q, want the sender's", last.MessageID)
	}
	// A received mail's Message-ID is the mail's own, not one on our wire.
	f.record(1, event.Event{ID: "e5", Kind: event.Inbound, ProviderMessageID: "pm-1", MessageID: "reply@elsewhere.example"})
	want(id, "Wire-1@esp.example")

	for key, mail := range map[string]string{
		"Wire-1@esp.example": id, "<Wire-1@esp.example>": id, " <Wire-1@esp.example> ": id,
		"wire-2@esp.example": both, "<wire-y@esp.example>": both,
	} {
		if got, err := f.FindExact(t.Context(), key); err != nil || !slices.Equal(got, []string{mail}) {
			t.Errorf("%q finds %q, %v; want %s", key, got, err, mail)
		}
	}
	for _, key := range []string{"wire-1@esp.example", "reply@elsewhere.example", "<>"} {
		if got, err := f.FindExact(t.Context(), key); err != nil || len(got) > 0 {
			t.Errorf("%q finds %q, %v", key, got, err)
		}
	}
	// An event that comes before the answer waits with what it knows.
	early := f.accept("a", "z@example.org")
	c := f.claim("a")
	call := f.start(c, c.Job.Rcpts...)
	f.record(1, event.Event{ID: "e6", Kind: event.Delivered, ProviderMessageID: "pm-3", Wire: "wire-3@esp.example"})
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{accepted(call, "pm-3")}}))
	want(early, "wire-3@esp.example")
}
