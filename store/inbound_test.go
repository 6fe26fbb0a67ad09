package store

import (
	"errors"
	"testing"
	"time"

	"smtpbridge/event"
)

// testInbound: a received mail is taken once, and what the ESP keeps is noted until it is done.
func testInbound(t *testing.T, e engine) {
	f := newFixture(t, e)
	take := func(id string) (string, bool) {
		t.Helper()
		r, err := f.Begin(t.Context())
		f.must(err)
		defer r.Abort()
		_, err = r.Write([]byte("Subject: x\r\n\r\nbody\r\n"))
		f.must(err)
		m := testMail(f.clock.now(), "help@in.example.com")
		m.Envelope.Inbound = "esp"
		in := event.Event{ID: id, Kind: event.Inbound, Account: "esp", Recipient: "help@in.example.com", QueueID: m.Envelope.ID, Time: f.clock.now()}
		fresh, err := f.TakeInbound(t.Context(), r, m, []NewJob{{Accounts: []string{"local"}, Rcpts: []int{0}, NextAt: f.clock.now(), Expires: f.clock.now().Add(time.Hour)}}, in)
		f.must(err)
		return m.Envelope.ID, fresh
	}
	id, fresh := take("in-1")
	if !fresh {
		t.Fatal("not taken")
	}
	if known, err := f.HasEvent(t.Context(), "in-1"); !known || err != nil {
		t.Fatal(known, err)
	}
	again, fresh := take("in-1")
	if fresh {
		t.Fatal("taken twice")
	}
	if _, err := f.Detail(t.Context(), again); !errors.Is(err, ErrNotFound) {
		t.Fatalf("the repeat left a mail: %v", err)
	}
	if d := f.detail(id); d.Mail.Envelope.Inbound != "esp" || len(d.Events) != 1 || d.Events[0].Kind != event.Inbound || len(d.Jobs) != 1 {
		t.Fatalf("got %+v", d)
	}

	p := InboundPost{ID: "p-1", Account: "esp", State: "posted", Data: "{}", Received: f.clock.now(), NextAt: f.clock.now().Add(time.Minute)}
	f.must(f.SaveInbound(t.Context(), p))
	claim := func(want int) {
		t.Helper()
		got, err := f.ClaimInbound(t.Context(), 10, time.Minute)
		if err != nil || len(got) != want {
			t.Fatalf("claimed %d, %v, want %d", len(got), err, want)
		}
	}
	claim(0)
	f.clock.add(2 * time.Minute)
	claim(1)
	claim(0) // somebody works on it
	p.State, p.Attempts, p.NextAt = "taken", 2, f.clock.now()
	f.must(f.SaveInbound(t.Context(), p))
	if got, err := f.InboundPost(t.Context(), "p-1"); err != nil || got.State != "taken" || got.Attempts != 2 || !got.Received.Equal(p.Received) {
		t.Fatalf("got %+v, %v", got, err)
	}
	claim(1)
	f.must(f.DropInbound(t.Context(), "p-1"))
	if _, err := f.InboundPost(t.Context(), "p-1"); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
}
