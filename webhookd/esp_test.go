package webhookd_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/internal/storetest"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo"
	"smtpbridge/providers/mailersend"
	"smtpbridge/providers/mailpace"
	"smtpbridge/providers/mandrill"
	"smtpbridge/providers/providertest"
	"smtpbridge/providers/smtpeter"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

// records is DNS with one name.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, error) {
	if v, ok := r[name]; ok {
		return []string{v}, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

// downDNS answers nothing.
type downDNS struct{}

func (downDNS) LookupTXT(_ context.Context, name string) ([]string, error) {
	return nil, &net.DNSError{Err: "timeout", Name: name, IsTimeout: true, IsTemporary: true}
}

// What the ESPs post, over real HTTP and onto the real store: status, events, and no second event when
// the same request comes again.
func TestESPFixturesOverHTTP(t *testing.T) {
	for _, c := range []struct {
		info      providers.Info
		configure func(o *providers.Options, f providertest.Fixture)
	}{
		{mailpace.Info, fixtureSecret},
		{mandrill.Info, fixtureSecret},
		{mailersend.Info, fixtureSecret},
		{maileroo.Info, fixtureSecret},
		{smtpeter.Info, func(o *providers.Options, f providertest.Fixture) {
			o.Decode = providertest.Decode(`environment = "1234"`)
			o.Resolver = records{f.Secret.KeyID: "v=DKIM1; k=rsa; p=" + f.Secret.Value}
		}},
	} {
		for _, f := range providertest.Fixtures(t, "../providers/"+c.info.Name+"/testdata/webhook") {
			if c.info.Name == "mailersend" && isInbound(f) {
				continue // goes to /inbound/ACCOUNT with a secret of its own; the provider's tests read it
			}
			t.Run(c.info.Name+"/"+f.Name, func(t *testing.T) {
				_, acc := espAccount(t, c.info, f, c.configure)
				st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t)})
				if err != nil {
					t.Fatal(err)
				}
				defer st.Close()
				g := newRig(t, func(g *rig) {
					g.cfg.Accounts = []webhookd.Account{acc}
					g.cfg.Recorder = st
					g.clock = time.Now()
				})
				want := 200
				if f.ExpectHTTP >= 400 || f.Signature == "invalid" || f.Signature == "missing" {
					want = 400
				}
				for range 2 {
					status := g.send(f)
					if status/100 != want/100 || want == 200 && status != 200 {
						t.Errorf("status %d, want %d", status, want)
					}
				}
				evs, _, err := st.Follow(t.Context(), "", 100)
				if err != nil {
					t.Fatal(err)
				}
				if want != 200 {
					if len(evs) > 0 {
						t.Errorf("a refused request left events: %+v", evs)
					}
					return
				}
				compare(t, f, evs)
				for _, e := range evs {
					if e.Revision != 0 || e.Account != "acc" || e.Provider != c.info.Name || e.RawID == "" || e.V != event.Version {
						t.Errorf("incomplete: %+v", e)
					}
				}
				// What was stored, without signature and mail text, says the same.
				sum, err := webhookd.Replay(t.Context(), g.cfg, st, time.Time{}, func(store.Replayed) error { return nil })
				again, _, ferr := st.Follow(t.Context(), "", 100)
				if err != nil || ferr != nil || len(again) != len(evs) || sum.Same != len(evs) || sum.Unread+sum.Revised+sum.Added > 0 || sum.Requests != sum.Total {
					t.Errorf("replay: %+v, %v, %v; %d events became %d: %+v", sum, err, ferr, len(evs), len(again), again)
				}
			})
		}
	}
}

// fixtureSecret configures the secret a fixture was signed with; some ESPs ping before there is one.
func fixtureSecret(o *providers.Options, f providertest.Fixture) {
	if f.Secret != nil {
		o.WebhookSecrets = []secret.String{secret.New(f.Secret.Value)}
	}
}

// A key server that is down decides nothing: the ESP is asked to send again.
func TestSMTPeterWithoutDNS(t *testing.T) {
	i := slices.IndexFunc(providertest.Fixtures(t, "../providers/smtpeter/testdata/webhook"), func(f providertest.Fixture) bool { return f.Name == "delivery-form" })
	f := providertest.Fixtures(t, "../providers/smtpeter/testdata/webhook")[i]
	_, acc := espAccount(t, smtpeter.Info, f, func(o *providers.Options, _ providertest.Fixture) {
		o.Decode, o.Resolver = providertest.Decode(`environment = "1234"`), downDNS{}
	})
	g := newRig(t, func(g *rig) { g.cfg.Accounts = []webhookd.Account{acc} })
	g.want("no DNS", g.send(f), http.StatusServiceUnavailable)
	if n := len(g.mem.events()); n != 0 {
		t.Errorf("%d events", n)
	}
}

func espAccount(t *testing.T, info providers.Info, f providertest.Fixture, configure func(*providers.Options, providertest.Fixture)) (providers.Provider, webhookd.Account) {
	t.Helper()
	o := providers.Options{
		Account: "acc", APIKey: secret.New("0123456789abcdef"), WebhookURL: f.URL, Tolerance: 5 * time.Minute, Now: time.Now,
		Client: &http.Client{Transport: noNetwork{}},
	}
	if f.Now.IsZero() {
		o.Tolerance = 100 * 365 * 24 * time.Hour
	} else {
		o.Now = func() time.Time { return f.Now }
	}
	configure(&o, f)
	p, err := info.New(o)
	if err != nil {
		t.Fatal(err)
	}
	acc := webhookd.Account{Name: "acc", Info: info, Provider: p, Secrets: o.WebhookSecrets}
	if f.URL != "" {
		u, err := url.Parse(f.URL)
		if err != nil {
			t.Fatal(err)
		}
		acc.URLPath = u.Path
	}
	return p, acc
}

type noNetwork struct{}

func (noNetwork) RoundTrip(*http.Request) (*http.Response, error) {
	return nil, errors.New("no network in this test")
}

// send posts the fixture as it came: to the path of its URL, with its Host.
func (g *rig) send(f providertest.Fixture) int {
	g.t.Helper()
	target := "/webhook/acc"
	if f.URL != "" {
		_, rest, _ := strings.Cut(f.URL, "://")
		target = rest[strings.IndexByte(rest, '/'):]
	}
	r, err := http.NewRequestWithContext(g.t.Context(), cmp.Or(f.Method, http.MethodPost), g.url+target, bytes.NewReader(f.Body))
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Content-Type", f.ContentType)
	for k, v := range f.Headers {
		if strings.EqualFold(k, "Host") {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

// compare looks at what a reader of the log sees first. The providers' own tests compare every field.
func compare(t *testing.T, f providertest.Fixture, evs []event.Event) {
	t.Helper()
	if len(evs) == 1 && evs[0].Recipient == "" && len(f.Expect) > 1 {
		// MailPace reports on the mail, not on its recipients: one event that may be about each of them.
		for i, want := range f.Expect {
			if want["event_type"] != string(evs[0].Kind) || !slices.Contains(evs[0].Candidates, want["recipient"].(string)) {
				t.Errorf("expected event %d: %v, got %+v", i, want, evs[0])
			}
		}
		return
	}
	if len(f.Expect) == 0 {
		// No event of a mail; what the ESP says of something else may be kept as unknown.
		evs = slices.DeleteFunc(slices.Clone(evs), func(e event.Event) bool { return e.Kind == event.Unknown && e.Recipient == "" })
	}
	if len(evs) != len(f.Expect) {
		t.Fatalf("%d events, want %d: %+v", len(evs), len(f.Expect), evs)
	}
	for i, want := range f.Expect {
		e := evs[i]
		if kind, ok := want["event_type"].(string); ok && string(e.Kind) != kind {
			t.Errorf("event %d: %s, want %s", i, e.Kind, kind)
		}
		if rcpt, ok := want["recipient"].(string); ok && e.Recipient != rcpt {
			t.Errorf("event %d: recipient %q, want %q", i, e.Recipient, rcpt)
		}
		if id, ok := want["message_id"].(string); ok && e.ProviderMessageID != id {
			t.Errorf("event %d: message id %q, want %q", i, e.ProviderMessageID, id)
		}
		if d, ok := want["dsn"].(map[string]any); ok {
			if s, ok := d["status"].(string); ok && e.Status != s {
				t.Errorf("event %d: status %q, want %q", i, e.Status, s)
			}
		}
	}
}
