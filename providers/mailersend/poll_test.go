package mailersend

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/mailersend/twin"
	"smtpbridge/providers/providertest"
)

// What the activity says is read page by page, from where the last poll was, and only about our mail.
func TestPoll(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }})
	srv := httptest.NewServer(tw.Handler())
	defer srv.Close()
	p := suite(t, "").New(t, srv.URL, nil).(*provider)
	m := providertest.Plain(t, p.Capabilities(), 1)
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	mail := tw.Mails()[0]
	rcpt, at := mail.Rcpts()[0], suiteNow.Add(-time.Hour)
	tw.Happen(twin.Activity{ID: "a1", Type: "hard_bounced", At: at, Mail: mail, Rcpt: rcpt})
	tw.Happen(twin.Activity{ID: "a2", Type: "spam_complaints", At: at, Mail: mail, Rcpt: rcpt})
	tw.Happen(twin.Activity{ID: "a3", Type: "opened", At: at, Mail: mail, Rcpt: rcpt})
	tw.Happen(twin.Activity{ID: "a4", Type: "delivered", At: at, Mail: twin.Mail{Tags: []string{"theirs"}}, Rcpt: rcpt})
	tw.Happen(twin.Activity{ID: "a5", Type: "delivered", At: suiteNow.Add(-48 * time.Hour), Mail: mail, Rcpt: rcpt})
	var got []event.Event
	record := func(evs []event.Event) error { got = append(got, evs...); return nil }
	next, err := p.Poll(t.Context(), nil, record)
	if err != nil || len(got) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	for i, want := range []event.Event{{Kind: event.Bounced, Status: "5.0.0", ID: event.FactID(providertest.Account, "activity.hard_bounced", "a1")}, {Kind: event.Complained, ID: event.FactID(providertest.Account, "activity.spam_complaint", "a2")}} {
		if e := got[i]; e.Kind != want.Kind || e.Status != want.Status || e.ID != want.ID || e.Ref != m.Ref || e.Recipient != rcpt || !e.Time.Equal(at) || e.ProviderMessageID != "" {
			t.Errorf("got %+v", e)
		}
	}
	if want := fmt.Sprintf(`{"from":%d}`, suiteNow.Add(-11*time.Minute).Unix()); string(next) != want {
		t.Errorf("next %s, want %s", next, want)
	}
	got = nil
	if _, err := p.Poll(t.Context(), next, record); err != nil || len(got) != 0 {
		t.Errorf("the next poll: %+v, %v", got, err)
	}
	// More than one poll may read: it goes on at its page.
	for i := range 100*activityPages + 5 {
		tw.Happen(twin.Activity{ID: fmt.Sprint("b", i), Type: "delivered", At: suiteNow.Add(-5 * time.Minute), Mail: mail, Rcpt: rcpt})
	}
	next, err = p.Poll(t.Context(), next, record)
	if providers.KindOf(err) != providers.RateLimited || len(got) != 100*activityPages {
		t.Errorf("many: %d events, %v", len(got), err)
	}
	if next, err = p.Poll(t.Context(), next, record); err != nil || len(got) != 100*activityPages+5 {
		t.Errorf("the rest: %d events, %s, %v", len(got), next, err)
	}
	// A place that is too old is cut to what the API takes.
	if _, err := p.Poll(t.Context(), []byte(`{"from":1}`), record); providers.KindOf(err) != providers.RateLimited {
		t.Errorf("after a month: %v", err)
	}
	if _, err := p.Poll(t.Context(), next, func([]event.Event) error { return errors.New("full") }); err == nil {
		t.Error("events that were not recorded are passed over")
	}
}

func TestPollWithoutScope(t *testing.T) {
	srv := httptest.NewServer(twin.New(twin.Options{Token: providertest.Key, NoScopes: true, Now: func() time.Time { return suiteNow }}).Handler())
	defer srv.Close()
	for _, options := range []string{"", `domain_id = "` + twin.DomainID + `"`, "reference_tag = false"} {
		p := suite(t, options).New(t, srv.URL, nil).(*provider)
		if _, err := p.Poll(t.Context(), nil, nil); providers.KindOf(err) != providers.Operator {
			t.Errorf("%s: %v", options, err)
		}
	}
}
