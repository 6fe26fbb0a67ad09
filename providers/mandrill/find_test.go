package mandrill

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/mandrill/twin"
	"smtpbridge/providers/providertest"
)

var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func TestFind(t *testing.T) {
	tw, url := serve(t, twin.Options{Now: func() time.Time { return now }})
	p := account(t, url, "")
	find := p.(providers.Finder)
	m := plan(t, p, "", "one@example.org", "two@example.org")
	m.Ref = providertest.Ref + "-0"
	if _, found, err := find.Find(t.Context(), m, now.Add(-indexLag)); found != providers.Absent || err != nil {
		t.Errorf("before: %v, %v", found, err)
	}
	if _, found, err := find.Find(t.Context(), m, now); found != providers.CannotTell || err == nil {
		t.Errorf("before it could be indexed: %v, %v", found, err)
	}
	tw.Inject(twin.Fault{Lose: true})
	if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
		t.Fatal(err)
	}
	out, found, err := find.Find(t.Context(), m, now)
	if found != providers.Present || err != nil || out.Rcpts[0].MessageID != tw.Mails()[0].Rcpts[0].ID || out.Rcpts[1].MessageID != tw.Mails()[0].Rcpts[1].ID {
		t.Errorf("after: %+v, %v, %v", out, found, err)
	}
	other := *m
	other.Ref += "other"
	if _, found, err := find.Find(t.Context(), &other, now.Add(-indexLag)); found != providers.Absent || err != nil {
		t.Errorf("another call: %v, %v", found, err)
	}
	for name, f := range map[string]twin.Fault{
		"a row without metadata":    {Status: 200, Body: `[{"_id":"x","email":"one@example.org","state":"sent"}]`},
		"a search that is down":     {Status: 503, Body: `{"status":"error","code":-2,"name":"ServiceUnavailable","message":"no"}`},
		"an answer that is no list": {Status: 200, Body: `{}`},
	} {
		tw.Inject(f)
		if _, found, err := find.Find(t.Context(), &other, now.Add(-indexLag)); found != providers.CannotTell || (err != nil) != (f.Status != 200 || f.Body == "{}") {
			t.Errorf("%s: %v, %v", name, found, err)
		}
	}
}

// What messages/info says, under the id that the webhook of the same fact has.
func TestTrackAndPoll(t *testing.T) {
	at := now.Add(-time.Hour)
	tw, url := serve(t, twin.Options{Now: func() time.Time { return now }})
	p := account(t, url, "").(*provider)
	m := plan(t, p, "", "one@example.org", "two@example.org", "three@example.org")
	m.Ref = providertest.Ref + "-0"
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	mail := tw.Mails()[0]
	tw.Happen(mail.Rcpts[0].ID, twin.Happening{Type: "deferred", Diag: "451 4.3.5 later", At: at.Add(-time.Minute)})
	tw.Happen(mail.Rcpts[0].ID, twin.Happening{Type: "sent", Diag: "250 2.0.0 OK", At: at})
	tw.Happen(mail.Rcpts[1].ID, twin.Happening{Type: "bounced", Diag: "smtp;550 5.1.1 no such user", At: at})
	hooked := func(native string, r twin.Rcpt) string {
		t.Helper()
		raw, err := json.Marshal(twin.Event(native, mail, r, at, false))
		if err != nil {
			t.Fatal(err)
		}
		_, facts, _ := p.event(raw)
		return event.FactID(providertest.Account, facts...)
	}
	for i, tt := range []struct {
		kind   event.Kind
		native string
		status string
	}{{event.Delivered, "delivered", "2.0.0"}, {event.Bounced, "hard_bounce", "5.1.1"}, {"", "", ""}} {
		r := mail.Rcpts[i]
		evs, err := p.Track(t.Context(), providers.Tracked{MessageID: r.ID, Rcpt: r.Email})
		if err != nil || tt.kind == "" && len(evs) != 0 {
			t.Errorf("%s: %+v, %v", r.Email, evs, err)
		}
		if tt.kind == "" {
			continue
		}
		if len(evs) != 1 || evs[0].Kind != tt.kind || evs[0].Status != tt.status || !evs[0].Time.Equal(at) || evs[0].Ref != m.Ref || evs[0].Recipient != r.Email || evs[0].ID != hooked(tt.native, r) {
			t.Errorf("%s: got %+v", r.Email, evs)
		}
	}
	if evs, err := p.Track(t.Context(), providers.Tracked{MessageID: "0123456789abcdef0123456789abcdef"}); len(evs) != 0 || err != nil {
		t.Errorf("a message that is not indexed: %v, %v", evs, err)
	}
	if evs, err := p.Track(t.Context(), providers.Tracked{Ref: m.Ref}); len(evs) != 0 || err != nil {
		t.Errorf("no id: %v, %v", evs, err)
	}
	var got []event.Event
	record := func(evs []event.Event) error { got = append(got, evs...); return nil }
	next, err := p.Poll(t.Context(), nil, record)
	if err != nil || string(next) != `{"day":"2026-11-21"}` || len(got) != 1 || got[0].Kind != event.Bounced {
		t.Errorf("poll: %s %+v, %v", next, got, err)
	}
	if next, err = p.Poll(t.Context(), next, record); err != nil || len(got) != 2 || got[0].ID != got[1].ID {
		t.Errorf("poll again: %s %+v, %v", next, got, err)
	}
	tw.Inject(twin.Fault{Status: http.StatusTooManyRequests})
	if _, err := p.Poll(t.Context(), next, record); providers.KindOf(err) != providers.RateLimited {
		t.Errorf("too fast: %v", err)
	}
}
