package mailersend

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/mailersend/twin"
	"smtpbridge/providers/providertest"
)

const hookSecret = "canary-signing-secret"

func parser(t testing.TB, secrets ...string) providers.WebhookParser {
	t.Helper()
	o := providers.Options{Account: "acct", APIKey: secret.New("tok"), Now: func() time.Time { return suiteNow }}
	for _, s := range secrets {
		o.WebhookSecrets = append(o.WebhookSecrets, secret.New(s))
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.(providers.WebhookParser)
}

func parseSigned(t testing.TB, p providers.WebhookParser, body string) ([]event.Event, error) {
	t.Helper()
	r := httptest.NewRequest("POST", "/webhook/acct", nil)
	twin.Sign(r, hookSecret, []byte(body))
	return providertest.Receive(p, r, []byte(body))
}

// TestPing: the public secret opens the door for a ping, with and without a secret of our own, and for nothing else.
func TestPing(t *testing.T) {
	const ping = `{"type":"webhook.test","message":"This is a ping test message","created_at":"2026-03-27T07:24:20.577080Z"}`
	const vector = "a05470dca8b12a876fd6917935083275be2b5fc87433d6b82bbca07a6b82d74e"
	for name, p := range map[string]providers.WebhookParser{"none configured": parser(t), "configured": parser(t, hookSecret)} {
		r := httptest.NewRequest("POST", "/", nil)
		r.Header.Set("Signature", vector)
		if evs, err := providertest.Receive(p, r, []byte(ping)); err != nil || len(evs) != 0 {
			t.Errorf("%s: got %v, %v", name, evs, err)
		}
		for _, body := range []string{
			`{"type":"activity.delivered","data":{"id":"1","message_id":"2","recipient":"a@example.org"}}`,
			`{"data":{"type":"sent"}}`, `{"type":"inbound.message","data":{"raw":"x"}}`, `webhook.test`, ``,
		} {
			r := httptest.NewRequest("POST", "/", nil)
			twin.Sign(r, twin.PingSecret, []byte(body))
			if evs, err := providertest.Receive(p, r, []byte(body)); !errors.Is(err, providers.ErrSignature) || len(evs) != 0 {
				t.Errorf("%s: %q under the public secret: got %v, %v", name, body, evs, err)
			}
		}
	}
	if evs, err := parseSigned(t, parser(t, hookSecret), ping); err != nil || len(evs) != 0 {
		t.Errorf("under our own secret: got %v, %v", evs, err)
	}
	if !Info.Webhook.FirstPing {
		t.Error("FirstPing is off: the ping could not arrive")
	}
}

// TestTwinWebhooks: both versions of one fact give one event, with our reference taken out of the tags.
func TestTwinWebhooks(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok", Secret: hookSecret})
	p := parser(t, "an old secret", hookSecret)
	m := twin.Mail{ID: id, Subject: "canary subject", Tags: []string{"welcome", "sb-short", refPrefix + providertest.Ref}}
	at := time.Date(2026, 11, 23, 10, 0, 0, 123456000, time.UTC)
	for _, tt := range []struct {
		kind                       string
		meta, morph                map[string]any
		want                       event.Kind
		action, status, reason     string
		diagnostic, url, ip, agent string
	}{
		{kind: "sent", want: event.Sent, action: "relayed", status: "2.0.0"},
		{kind: "delivered", want: event.Delivered, action: "delivered", status: "2.0.0"},
		{kind: "deferred", want: event.Deferred, action: "delayed", status: "4.0.0"},
		{
			kind: "hard_bounced", want: event.Bounced, action: "failed", status: "5.1.1", reason: event.ReasonBounced, diagnostic: "550 User unknown",
			meta:  map[string]any{"bounce_reason": "User unknown", "bounce_code": 550, "bounce_type": "hard"},
			morph: map[string]any{"object": "recipient_bounce", "reason": "550 User unknown"},
		},
		{
			kind: "soft_bounced", want: event.Bounced, action: "failed", status: "4.2.2", reason: event.ReasonBounced, diagnostic: "452 try again",
			meta:  map[string]any{"bounce_reason": "452 try again", "bounce_code": "452"},
			morph: map[string]any{"object": "recipient_bounce", "reason": "452 try again"},
		},
		{
			kind: "suppressed", want: event.Rejected, action: "failed", status: "5.7.1", reason: event.ReasonSpam, diagnostic: "suppressed by MailerSend: spam_complained",
			meta: map[string]any{"suppression_reason": "spam_complained"}, morph: map[string]any{"reason": "spam_complained"},
		},
		{kind: "spam_complaint", want: event.Complained, reason: event.ReasonSpam, morph: map[string]any{"object": "spam_complaint", "reason": nil}},
		{
			kind: "unsubscribed", want: event.Unsubscribed, reason: event.ReasonUnsubscribed, diagnostic: "too many",
			meta: map[string]any{"unsubscribe_reason": "too many"}, morph: map[string]any{"reason": "option_3", "readable_reason": "too many"},
		},
		{kind: "opened", want: event.Opened, ip: "192.0.2.1", meta: map[string]any{"ip": "192.0.2.1"}, morph: map[string]any{"ip": "192.0.2.1"}},
		{
			kind: "clicked_unique", want: event.Clicked, url: "https://example.com/a?b=1", ip: "2001:db8::1",
			meta: map[string]any{"ip": "2001:db8::1", "url": "https://example.com/a?b=1"}, morph: map[string]any{"ip": "2001:db8::1", "url": "https://example.com/a?b=1"},
		},
		{kind: "survey_opened", want: event.Unknown},
		{kind: "novel", want: event.Unknown},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			v2, err := tw.Webhook(t.Context(), "http://127.0.0.1/webhook/acct", tt.kind, m, "one@example.org", tt.meta, at)
			if err != nil {
				t.Fatal(err)
			}
			v1, err := tw.WebhookV1(t.Context(), "http://127.0.0.1/webhook/acct", tt.kind, m, "one@example.org", tt.morph, at)
			if err != nil {
				t.Fatal(err)
			}
			var seen string
			for _, r := range []*http.Request{v2, v1} {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					t.Fatal(err)
				}
				evs, err := providertest.Receive(p, r, body)
				if err != nil || len(evs) != 1 {
					t.Fatalf("got %v, %v", evs, err)
				}
				e := evs[0]
				if e.Kind != tt.want || e.Action != tt.action || e.Status != tt.status || e.RejectReason != tt.reason || e.Diagnostic != tt.diagnostic ||
					e.URL != tt.url || e.IP != tt.ip || e.ProviderEvent != "activity."+tt.kind || e.ProviderMessageID != id || e.Recipient != "one@example.org" || !e.Time.Equal(at) {
					t.Errorf("got %+v", e)
				}
				if e.Ref != providertest.Ref || !slices.Equal(e.Tags, []string{"welcome", "sb-short"}) {
					t.Errorf("reference %q, tags %q", e.Ref, e.Tags)
				}
				if seen != "" && seen != e.ID {
					t.Error("the two versions of one fact are two events")
				}
				seen = e.ID
			}
		})
	}
	unique, err := tw.Webhook(t.Context(), "http://127.0.0.1/", "opened_unique", m, "one@example.org", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	plain, err := tw.Webhook(t.Context(), "http://127.0.0.1/", "opened", m, "one@example.org", nil, at)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range []*http.Request{unique, plain} {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		evs, err := providertest.Receive(p, r, body)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, evs[0].ID)
	}
	if got[0] != got[1] {
		t.Error("opened and opened_unique of one fact are two events")
	}
}

// TestNotAboutAMail: what concerns the account is kept as unknown, with no recipient made up.
func TestNotAboutAMail(t *testing.T) {
	p := parser(t, hookSecret)
	for _, tt := range []struct {
		body string
		kind event.Kind
		at   time.Time
		diag string
	}{
		{`{"type":"sender_identity.verified","created_at":"2025-08-05 22:27:14","data":{"id":"si_1","email":"sender@example.com"}}`, event.Unknown, time.Date(2025, 8, 5, 22, 27, 14, 0, time.UTC), ""},
		{`{"type":"maintenance.start","created_at":"2025-08-05 22:27:14","data":[]}`, event.Unknown, time.Date(2025, 8, 5, 22, 27, 14, 0, time.UTC), ""},
		{`{"type":"bulk_email.completed"}`, event.Unknown, time.Time{}, ""},
		{`{"type":"inbound_message.rejected","data":{"reason":"attachment_size_exceeded"}}`, event.InboundFailed, time.Time{}, "attachment_size_exceeded"},
	} {
		evs, err := parseSigned(t, p, tt.body)
		if err != nil || len(evs) != 1 {
			t.Fatalf("%s: got %v, %v", tt.body, evs, err)
		}
		if e := evs[0]; e.Kind != tt.kind || e.Recipient != "" || !e.Time.Equal(tt.at) || e.Diagnostic != tt.diag || e.Action != "" || e.ID == "" {
			t.Errorf("%s: got %+v", tt.body, e)
		}
	}
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if f.Name == "hookdeck-v2-sender-identity-verified" {
			evs, err := providertest.Receive(parser(t, f.Secret.Value), f.Request(f.Body), f.Body)
			if err != nil || len(evs) != 1 || evs[0].Kind != event.Unknown || evs[0].Recipient != "" {
				t.Errorf("fixture: got %v, %v", evs, err)
			}
		}
	}
}

func TestHostileBodies(t *testing.T) {
	p := parser(t, hookSecret)
	for _, tt := range []struct {
		name, body string
		ok         bool
	}{
		{"empty", "", false},
		{"null", "null", false},
		{"array", "[]", false},
		{"no type", "{}", false},
		{"deep", strings.Repeat(`{"data":`, 20000), false},
		{"inbound", `{"type":"inbound.message","data":{"raw":"x"}}`, false},
		{"data is a list", `{"type":"activity.sent","data":[]}`, true},
		{"wrong types", `{"type":"activity.hard_bounced","created_at":7,"data":{"id":1,"recipient":[],"email":7,"tags":{},"meta":"x","morph":3,"message_id":{}}}`, true},
		{"odd parts", `{"type":"activity.hard_bounced","data":{"id":"1","recipient":"not an address","email":{"tags":[1,null,"a"],"message":[],"recipient":"x"},"meta":{"bounce_code":{"x":1},"bounce_reason":5}}}`, true},
		{"controls", `{"type":"activity.\u0000\u001b[2J","data":{"id":"1\r\n","message_id":"a\u0000","tags":["a\u0000b"],"meta":{"bounce_reason":"x\r\ny"}}}`, true},
		{"huge", `{"type":"activity.soft_bounced","data":{"id":"1","meta":{"bounce_reason":"` + strings.Repeat("x", 100000) + `"}}}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			evs, err := parseSigned(t, p, tt.body)
			if tt.ok != (err == nil && len(evs) == 1) || !tt.ok && !errors.Is(err, providers.ErrMalformed) {
				t.Errorf("got %d events, %v", len(evs), err)
			}
			for _, e := range evs {
				if strings.ContainsAny(e.ProviderEvent+e.ProviderEventID+e.ProviderMessageID+e.Diagnostic+strings.Join(e.Tags, ""), "\r\n\x00\x1b") || len(e.Diagnostic) > event.MaxText {
					t.Errorf("not clean: %+v", e)
				}
			}
		})
	}
}

func TestRefine(t *testing.T) {
	for _, tt := range []struct {
		status, code, reason string
		final                bool
		want                 string
	}{
		{"5.0.0", "550", "Host or domain name not found", true, "5.1.2"},
		{"5.0.0", "550", "550 5.1.10 RESOLVER.ADR.RecipientNotFound", true, "5.1.10"},
		{"5.0.0", "", "550-5.7.26 This mail is unauthenticated", true, "5.7.26"},
		{"5.0.0", "550", "blocked, see 2.0.0 at 192.0.2.15", true, "5.0.0"},
		{"5.0.0", "", "The domain does not exist", true, "5.1.2"},
		{"5.0.0", "", "552 too much", true, "5.2.2"},
		{"4.0.0", "452", "", true, "4.2.2"},
		{"4.0.0", "", "mailbox is full", true, "4.2.2"},
		{"4.0.0", "", "552 5.2.2 over quota", true, "5.2.2"},
		{"4.0.0", "", "552 5.2.2 over quota", false, "4.2.2"},
		{"4.0.0", "", "451 4.7.1 Greylisted.", false, "4.7.1"},
		{"4.0.0", "", "", false, "4.0.0"},
		{"4.0.0", "", "45", false, "4.0.0"},
		{"4.0.0", "", "version 4.5.6.7", false, "4.0.0"},
	} {
		if got := refine(tt.status, tt.code, tt.reason, tt.final); got != tt.want {
			t.Errorf("%s %q %q: got %s, want %s", tt.status, tt.code, tt.reason, got, tt.want)
		}
	}
}

func inboundParser(t testing.TB, key string) providers.InboundParser {
	t.Helper()
	p, err := New(providers.Options{
		Account: "acct", APIKey: secret.New("tok"), InboundSecrets: []secret.String{secret.New("another"), secret.New(key)},
		WebhookSecrets: []secret.String{secret.New("webhook-secret")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.(providers.InboundParser)
}

// TestInboundFixtures takes the fixtures of received mail, each twice.
func TestInboundFixtures(t *testing.T) {
	n := 0
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if !strings.HasPrefix(f.Name, "anymail-inbound-") {
			continue
		}
		n++
		t.Run(f.Name, func(t *testing.T) {
			p := inboundParser(t, f.Secret.Value)
			in, err := providertest.ReceiveInbound(p, f.Request(f.Body), f.Body)
			if f.Signature != "valid" {
				if !errors.Is(err, providers.ErrSignature) || in != nil {
					t.Fatalf("got %v, %v", in, err)
				}
				return
			}
			if err != nil || len(in) != 1 || in[0].ID == "" {
				t.Fatalf("got %v, %v", in, err)
			}
			again, err := providertest.ReceiveInbound(p, f.Request(f.Body), f.Body)
			if err != nil || again[0].ID != in[0].ID {
				t.Errorf("the same post twice: %v, %v", again, err)
			}
			if f.Name == "anymail-inbound-inbound" && (in[0].ID != f.Expect[0]["event_id"] || in[0].From != "envelope-sender@example.org" ||
				!slices.Equal(in[0].Rcpts, []string{"envelope-recipient@example.com"}) || !strings.HasPrefix(providertest.Raw(t, in[0]), "X-Envelope-From: <envelope-sender@example.org>\r\n")) {
				t.Errorf("got %+v", in[0])
			}
			// At the webhook's address it would be lost: refused, although it verifies.
			if evs, err := providertest.Receive(parser(t, f.Secret.Value), f.Request(f.Body), f.Body); !errors.Is(err, providers.ErrMalformed) || evs != nil {
				t.Errorf("at the webhook: got %v, %v", evs, err)
			}
		})
	}
	if n != 4 {
		t.Errorf("%d fixtures", n)
	}
}

func TestInbound(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok"})
	p := inboundParser(t, "route-secret")
	const raw = "From: a@example.org\r\nTo: list@example.com\r\n\r\nHello /\r\n"
	post := func(key string) (*http.Request, []byte) {
		r, err := tw.Inbound(t.Context(), "http://127.0.0.1/inbound/acct", key, "inb1", "a@example.org", []string{"x@in.example.com", "X@IN.example.com", "x@IN.example.com", "nonsense"}, raw)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r, body
	}
	r, body := post("route-secret")
	in, err := providertest.ReceiveInbound(p, r, body)
	if err != nil || len(in) != 1 || providertest.Raw(t, in[0]) != raw || in[0].ID != "inb1" || in[0].From != "a@example.org" || !slices.Equal(in[0].Rcpts, []string{"x@in.example.com", "X@IN.example.com"}) {
		t.Errorf("got %+v, %v", in, err)
	}
	for _, key := range []string{"webhook-secret", twin.PingSecret} {
		r, body := post(key)
		if in, err := providertest.ReceiveInbound(p, r, body); !errors.Is(err, providers.ErrSignature) || in != nil {
			t.Errorf("under another secret: got %v, %v", in, err)
		}
	}
	for _, body := range []string{"", "{}", `{"type":"inbound.message"}`, `{"type":"inbound.message","data":{"raw":""}}`, `{"type":"activity.sent","data":{"raw":"x"}}`, `{"type":"inbound.message","data":[]}`} {
		r := httptest.NewRequest("POST", "/", nil)
		twin.Sign(r, "route-secret", []byte(body))
		if in, err := providertest.ReceiveInbound(p, r, []byte(body)); !errors.Is(err, providers.ErrMalformed) || in != nil {
			t.Errorf("%q: got %v, %v", body, in, err)
		}
	}
}

func FuzzParseWebhook(f *testing.F) {
	for _, fx := range providertest.Fixtures(f, "testdata/webhook") {
		f.Add(fx.Body)
	}
	p := &provider{now: time.Now}
	f.Fuzz(func(t *testing.T, body []byte) {
		evs, err := p.ParseWebhook(nil, body)
		if err == nil && len(evs) > 1 {
			t.Errorf("%d events", len(evs))
		}
		for _, e := range evs {
			if e.ID == "" || e.Kind == "" {
				t.Errorf("got %+v", e)
			}
			if _, err := json.Marshal(e); err != nil {
				t.Error(err)
			}
		}
	})
}
