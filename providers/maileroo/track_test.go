package maileroo

import (
	"testing"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo/twin"
	"smtpbridge/providers/providertest"
)

// The log tells a delivery, and only when its filter filters.
func TestTrack(t *testing.T) {
	t.Setenv("MAILEROO_TEST_ACCOUNT_KEY", accountTestKey)
	tw, url := serve(t, twin.Options{AccountKey: accountTestKey})
	p := with(t, url, "account_key_env = \"MAILEROO_TEST_ACCOUNT_KEY\"\naccount_url = \""+url+"/v1\"")
	m := plan(t, p, "", "", "one@example.org", "two@example.org")
	m.Ref = providertest.Ref + "-0"
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	tw.Deliver(tw.Mails()[0], "one@example.org")
	track := func(rcpt string) []event.Event {
		t.Helper()
		evs, err := p.(providers.Tracker).Track(t.Context(), providers.Tracked{Ref: m.Ref, MessageID: "id", Rcpt: rcpt, Sent: clock()})
		if err != nil {
			t.Fatal(err)
		}
		return evs
	}
	evs := track("one@example.org")
	if len(evs) != 1 || evs[0].Kind != event.Delivered || evs[0].Recipient != "one@example.org" || evs[0].Ref != m.Ref || evs[0].Status != "2.0.0" || evs[0].ID == "" {
		t.Errorf("got %+v", evs)
	}
	if again := track("one@example.org"); len(again) != 1 || again[0].ID != evs[0].ID {
		t.Errorf("the second time: %+v", again)
	}
	if evs := track("two@example.org"); len(evs) != 0 {
		t.Errorf("not delivered: %+v", evs)
	}
	for range 2 {
		tw.Inject(twin.Fault{Status: 200, Body: `{"data":{"items":[{"id":1}],"page":1,"has_more":false}}`})
	}
	if evs := track("two@example.org"); len(evs) != 0 {
		t.Errorf("a filter that does not filter: %+v", evs)
	}
	tw.Inject(twin.Fault{Status: 200, Body: `{"data":7}`})
	if evs := track("one@example.org"); len(evs) != 0 {
		t.Errorf("another form: %+v", evs)
	}
}
