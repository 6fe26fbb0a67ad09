package smtpeter

import (
	"net/http"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/smtpeter/twin"
)

// The log files of the days since, and the events of one message.
func TestPollAndTrack(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	m := plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}, envelope.Rcpt{Addr: "two@example.org"})
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	mail := tw.Mails()[0]
	yesterday := clock.Add(-24 * time.Hour)
	tw.Log(twin.Record{Type: "failure", At: yesterday, ID: mail.IDs[0], Recipient: "one@example.org", Tags: mail.Tags, More: map[string]any{
		"type": "error", "code": 550, "status": "5.1.1", "description": "no such user", "state": "rcptto",
	}})
	tw.Log(twin.Record{Type: "delivery", At: clock.Add(-time.Minute), ID: mail.IDs[1], Recipient: "two@example.org", Tags: mail.Tags})
	tw.Log(twin.Record{Type: "delivery", At: clock.Add(-time.Minute), ID: "theirs", Recipient: "x@example.org", Tags: []string{"theirs"}})
	var got []event.Event
	record := func(evs []event.Event) error { got = append(got, evs...); return nil }
	next, err := p.Poll(t.Context(), []byte(`{"day":"`+yesterday.UTC().Format(time.DateOnly)+`"}`), record)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	if e := got[0]; e.Kind != event.Bounced || e.Status != "5.1.1" || e.Diagnostic != "no such user" || e.Ref != m.Ref || e.Recipient != "one@example.org" || !e.Time.Equal(yesterday.Truncate(time.Second)) || e.ProviderMessageID != mail.IDs[0] {
		t.Errorf("failure: %+v", e)
	}
	if e := got[1]; e.Kind != event.Delivered || e.Status != "2.0.0" || e.Ref != m.Ref || e.Recipient != "two@example.org" {
		t.Errorf("delivery: %+v", e)
	}
	if want := `{"day":"` + clock.UTC().Format(time.DateOnly) + `"}`; string(next) != want {
		t.Errorf("next %s, want %s", next, want)
	}
	got = nil
	if _, err := p.Poll(t.Context(), next, record); err != nil || len(got) != 1 {
		t.Errorf("the same day again: %+v, %v", got, err)
	}
	for i, kind := range []event.Kind{event.Bounced, event.Delivered} {
		evs, err := p.Track(t.Context(), providers.Tracked{MessageID: mail.IDs[i], Rcpt: mail.Recipients[i], Sent: mail.At})
		if err != nil || len(evs) != 1 || evs[0].Kind != kind {
			t.Errorf("track %s: %+v, %v", mail.Recipients[i], evs, err)
		}
	}
	if evs, err := p.Track(t.Context(), providers.Tracked{MessageID: "unknown", Rcpt: "x@example.org", Sent: mail.At}); err != nil || len(evs) != 0 {
		t.Errorf("nothing known: %+v, %v", evs, err)
	}
	tw.Inject(twin.Fault{Status: http.StatusInternalServerError})
	if again, err := p.Poll(t.Context(), next, record); err == nil || string(again) != string(next) {
		t.Errorf("a failure: %s, %v", again, err)
	}
}
