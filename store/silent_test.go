package store

import (
	"testing"
	"time"

	"smtpbridge/event"
)

// Recipients without a final event are found when they are due to be asked about, and until something final is known.
func testSilent(t *testing.T, e engine) {
	f := newFixture(t, e)
	one := f.deliver("id1", "a@example.org")
	f.clock.add(time.Minute)
	two := f.deliver("id2", "b@example.org")
	silent := func(before time.Time, want ...string) []Silent {
		t.Helper()
		list, err := f.Silent(t.Context(), "a", before, 10)
		f.must(err)
		var got []string
		for _, s := range list {
			got = append(got, s.MailID)
		}
		if len(got) != len(want) {
			t.Fatalf("got %v, want %v", got, want)
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("got %v, want %v", got, want)
			}
		}
		return list
	}
	count := func(want int) {
		t.Helper()
		if n, err := f.SilentCount(t.Context(), "a", f.clock.now()); n != want || err != nil {
			t.Fatalf("count %d %v, want %d", n, err, want)
		}
	}
	silent(f.clock.now().Add(-30*time.Second), one)
	list := silent(f.clock.now(), one, two)
	if s := list[0]; s.Addr != "a@example.org" || s.ProviderMessageID != "id1" || s.Ref == "" || s.Looks != 0 || s.Since.IsZero() {
		t.Errorf("got %+v", s)
	}
	count(0)
	f.must(f.Looked(t.Context(), list[0], f.clock.now().Add(time.Hour)))
	count(1)
	silent(f.clock.now(), two)
	f.clock.add(2 * time.Hour)
	if list := silent(f.clock.now(), one, two); list[0].Looks != 1 {
		t.Errorf("got %+v", list[0])
	}
	f.record(1, event.Event{ID: "d", Kind: event.Deferred, Account: "a", ProviderMessageID: "id1", Recipient: "a@example.org", Time: f.clock.now()})
	silent(f.clock.now().Add(-time.Minute), two) // that is news
	f.record(1, event.Event{ID: "b", Kind: event.Bounced, Account: "a", ProviderMessageID: "id1", Recipient: "a@example.org", Time: f.clock.now()})
	silent(f.clock.now(), two)
	count(0)
	if other, err := f.Silent(t.Context(), "other", f.clock.now(), 10); len(other) != 0 || err != nil {
		t.Errorf("another account: %v %v", other, err)
	}
}
