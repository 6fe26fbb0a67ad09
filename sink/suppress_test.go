package sink_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/storetest"
	"smtpbridge/sink"
	"smtpbridge/store"
)

// What an event does to the list.
func TestSuppress(t *testing.T) {
	at := time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC)
	keep := map[string]time.Duration{store.ReasonBounced: 24 * time.Hour}
	base := event.Event{ID: "e1", Recipient: "x@example.net", QueueID: "q", Account: "a", ProviderEvent: "bounce", Time: at}
	with := func(f func(*event.Event)) event.Event {
		e := base
		f(&e)
		return e
	}
	bounce := func(status string) event.Event {
		return with(func(e *event.Event) { e.Kind, e.Status, e.RejectReason = event.Bounced, status, event.ReasonBounced })
	}
	for _, tt := range []struct {
		name   string
		ev     event.Event
		stream string
		want   string
	}{
		{"no such mailbox", bounce("5.1.1"), "", store.ReasonBounced},
		{"no such domain", bounce("5.1.2"), "", store.ReasonBounced},
		{"bad syntax", bounce("5.1.3"), "", store.ReasonBounced},
		{"moved away", bounce("5.1.6"), "", store.ReasonBounced},
		{"null MX", bounce("5.1.10"), "", store.ReasonBounced},
		{"the stream does not matter", bounce("5.1.1"), "news", store.ReasonBounced},
		{"a bounce that says no more", bounce("5.0.0"), "", ""},
		{"policy", bounce("5.7.1"), "", ""},
		{"mailbox full", bounce("4.2.2"), "", ""},
		{"mailbox disabled", bounce("5.2.1"), "", ""},
		{"given up", bounce("4.4.7"), "", ""},
		{"not this recipient's server", bounce("5.1.8"), "", ""},
		{"the ESP's class of invalid addresses", with(func(e *event.Event) { e.Kind, e.Status, e.RejectReason = event.Rejected, "5.7.1", event.ReasonInvalid }), "", store.ReasonBounced},
		{"refused by the answer to a call", with(func(e *event.Event) { e.Kind, e.Status, e.ProviderEvent, e.Ref = event.Rejected, "5.1.1", "", "r" }), "", store.ReasonBounced},
		{"our own refusal", with(func(e *event.Event) { e.Kind, e.Status, e.ProviderEvent = event.Rejected, "5.1.1", "" }), "", ""},
		{"failed here", with(func(e *event.Event) { e.Kind, e.Status = event.Failed, "5.1.3" }), "", ""},
		{"complaint", with(func(e *event.Event) { e.Kind = event.Complained }), "news", store.ReasonComplained},
		{"unsubscribed from a stream", with(func(e *event.Event) { e.Kind = event.Unsubscribed }), "news", store.ReasonUnsubscribed},
		{"unsubscribed from no stream", with(func(e *event.Event) { e.Kind = event.Unsubscribed }), "", ""},
		{"a replay", with(func(e *event.Event) { e.Kind, e.Revision = event.Complained, 1 }), "", ""},
		{"no certain recipient", with(func(e *event.Event) {
			e.Kind, e.Recipient, e.Candidates = event.Complained, "", []string{"x@example.net"}
		}), "", ""},
		{"no mail of ours", with(func(e *event.Event) { e.Kind, e.QueueID = event.Complained, "" }), "", ""},
		{"delivered", with(func(e *event.Event) { e.Kind, e.Status = event.Delivered, "2.0.0" }), "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := openStore(t)
			s := sink.NewSuppress(sink.SuppressConfig{List: st, Keep: keep, Audience: func(context.Context, string, string) (string, string, bool, error) {
				return "example.com", tt.stream, true, nil
			}})
			if next, err := s.Write(t.Context(), []event.Event{tt.ev}, "7"); next != "7" || err != nil {
				t.Fatal(next, err)
			}
			list, err := st.Suppressions(t.Context(), nil, 10)
			if err != nil {
				t.Fatal(err)
			}
			if tt.want == "" {
				if len(list) != 0 {
					t.Errorf("got %+v", list)
				}
				return
			}
			if len(list) != 1 || list[0].Reason != tt.want || list[0].Address != "x@example.net" || list[0].Domain != "example.com" || list[0].Source != "e1" || !list[0].Created.Equal(at) {
				t.Fatalf("got %+v, want %s", list, tt.want)
			}
			if wantStream := map[bool]string{true: tt.stream}[tt.want == store.ReasonUnsubscribed]; list[0].Stream != wantStream {
				t.Errorf("stream %q, want %q", list[0].Stream, wantStream)
			}
			if expires := list[0].Expires; tt.want == store.ReasonBounced && !expires.Equal(at.Add(24*time.Hour)) || tt.want != store.ReasonBounced && !expires.IsZero() {
				t.Errorf("expires %v", expires)
			}
		})
	}
}

// An entry that lasts longer is not replaced, a purged mail adds none, and trouble keeps the place.
func TestSuppressKeepsStrongerEntries(t *testing.T) {
	st := openStore(t)
	if err := st.Suppress(t.Context(), store.Suppression{Address: "x@example.net", Domain: "example.com", Reason: store.ReasonManual}); err != nil {
		t.Fatal(err)
	}
	ok, fail := true, error(nil)
	s := sink.NewSuppress(sink.SuppressConfig{List: st, Keep: map[string]time.Duration{store.ReasonBounced: time.Hour}, Audience: func(context.Context, string, string) (string, string, bool, error) {
		return "example.com", "", ok, fail
	}})
	bounce := event.Event{ID: "e", Recipient: "x@example.net", QueueID: "q", ProviderEvent: "b", Kind: event.Bounced, Status: "5.1.1", Time: time.Now()}
	if _, err := s.Write(t.Context(), []event.Event{bounce}, "1"); err != nil {
		t.Fatal(err)
	}
	if list, err := st.SuppressionsOf(t.Context(), "x@example.net"); err != nil || len(list) != 1 || list[0].Reason != store.ReasonManual {
		t.Errorf("got %+v, %v", list, err)
	}
	bounce.Recipient, ok = "y@example.net", false
	if _, err := s.Write(t.Context(), []event.Event{bounce}, "2"); err != nil {
		t.Fatal(err)
	}
	if list, err := st.SuppressionsOf(t.Context(), "y@example.net"); err != nil || len(list) != 0 {
		t.Errorf("of a purged mail: %+v, %v", list, err)
	}
	fail = errors.New("down")
	if next, err := s.Write(t.Context(), []event.Event{bounce}, "3"); err == nil || next != "" {
		t.Errorf("got %q, %v", next, err)
	}
}

func openStore(t *testing.T) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t), MinFree: -1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	return st
}
