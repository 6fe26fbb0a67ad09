package maileroo

import (
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo/twin"
	"smtpbridge/providers/providertest"
)

func parser(t testing.TB, secrets ...string) *provider {
	t.Helper()
	o := providers.Options{Account: "acct", APIKey: secret.New("sending-key"), Now: clock}
	for _, s := range secrets {
		o.WebhookSecrets = append(o.WebhookSecrets, secret.New(s))
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider)
}

// TestEventIDs: the reference is the id of the call, the vendor's Message-ID stands beside it, and a request that comes again is the same event.
func TestEventIDs(t *testing.T) {
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if len(f.Expect) == 0 {
			continue
		}
		var want struct {
			MessageID string `json:"message_id"`
			Reference string `json:"message_reference_id"`
		}
		b, err := json.Marshal(f.Expect[0]["esp_ids"])
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, &want); err != nil {
			t.Fatal(err)
		}
		p := parser(t, f.Secret.Value)
		evs, err := providertest.Receive(p, f.Request(f.Body), f.Body)
		if err != nil || len(evs) != 1 || evs[0].ProviderMessageID != want.Reference || evs[0].MessageID != strings.Trim(want.MessageID, "<>") {
			t.Errorf("%s: got %+v, %v", f.Name, evs, err)
			continue
		}
		again, err := providertest.Receive(p, f.Request(f.Body), f.Body)
		if err != nil || len(again) != 1 || again[0].ID != evs[0].ID {
			t.Errorf("%s: again: %+v, %v", f.Name, again, err)
		}
	}
}

// TestSignature: the forms in which a digest may come, under each of two secrets.
func TestSignature(t *testing.T) {
	body := []byte(`{"event_id":"e1","event_type":"delivered"}`)
	signed := func(key string) string {
		r := httptest.NewRequest("POST", "/", nil)
		twin.New(twin.Options{Secret: key}).Sign(r, body)
		return r.Header.Get("X-Maileroo-Signature")
	}
	for _, tt := range []struct {
		name, signature string
		ok              bool
	}{
		{"first secret", signed("one"), true},
		{"second secret", signed("two"), true},
		{"upper case", strings.ToUpper(signed("one")), true},
		{"prefix", "sha256=" + signed("two"), true},
		{"other prefix", "sha512=" + signed("two"), false},
		{"another secret", signed("three"), false},
		{"empty key", signed(""), false},
		{"none", "", false},
		{"only the prefix", "sha256=", false},
		{"cut", signed("one")[:62], false},
		{"longer", signed("one") + "00", false},
		{"base64", "b0a/Iw==", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", nil)
			r.Header.Set("X-Maileroo-Signature", tt.signature)
			evs, err := providertest.Receive(parser(t, "one", "two"), r, body)
			if tt.ok != (err == nil && len(evs) == 1) || !tt.ok && !errors.Is(err, providers.ErrSignature) {
				t.Errorf("got %d events, %v", len(evs), err)
			}
		})
	}
}

// TestTwinWebhooks sends a mail and posts each event about it: our reference comes back and stays out of the tags.
func TestTwinWebhooks(t *testing.T) {
	tw, url := serve(t, twin.Options{Secret: "hook", Suppressed: []string{"bad@example.org"}})
	s := suite(t)
	s.Options = func(_ testing.TB, o *providers.Options) { o.WebhookSecrets = []secret.String{secret.New("hook")} }
	p := s.New(t, url, nil)
	m := plan(t, p, "X-Smtpbridge-Tag: welcome\r\nX-Smtpbridge-Tag: spring\r\nX-Smtpbridge-Metadata-order: 4711\r\n", "")
	sent, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if tw.Outcome("bad@example.org") != "rejected" || tw.Outcome("one@example.org") != "delivered" {
		t.Error("outcomes of the twin")
	}
	for _, tt := range []struct {
		event                  string
		kind                   event.Kind
		action, status, reason string
		nobody                 bool
	}{
		{event: "accepted", kind: event.Queued},
		{event: "delivered", kind: event.Delivered, action: "delivered", status: "2.0.0"},
		{event: "deferred", kind: event.Deferred, action: "delayed", status: "4.2.2"},
		{event: "failed", kind: event.Bounced, action: "failed", status: "5.1.1", reason: event.ReasonBounced},
		{event: "rejected", kind: event.Rejected, action: "failed", status: "5.7.1", reason: event.ReasonBounced},
		{event: "opened", kind: event.Opened, nobody: true},
		{event: "clicked", kind: event.Clicked, nobody: true},
		{event: "complained", kind: event.Complained, reason: event.ReasonSpam},
		{event: "novel", kind: event.Unknown},
	} {
		t.Run(tt.event, func(t *testing.T) {
			at := clock().Add(time.Minute)
			r, err := tw.Webhook(t.Context(), "http://127.0.0.1/webhook/acct", tt.event, tw.Mails()[0], "one@example.org", at)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				t.Fatal(err)
			}
			evs, err := providertest.Receive(p.(providers.WebhookParser), r, body)
			if err != nil || len(evs) != 1 {
				t.Fatalf("got %v, %v", evs, err)
			}
			e := evs[0]
			want := "one@example.org"
			if tt.nobody {
				want = "" // the store finds the candidates by the reference
			}
			if e.Kind != tt.kind || e.Action != tt.action || e.Status != tt.status || e.RejectReason != tt.reason || e.Recipient != want || e.Candidates != nil ||
				!e.Time.Equal(at) || e.ProviderEvent != tt.event {
				t.Errorf("got %+v", e)
			}
			if e.Ref != m.Ref || e.ProviderMessageID != sent.MessageID || !slices.Equal(e.Tags, []string{"welcome", "spring"}) || !maps.Equal(e.Metadata, map[string]string{"order": "4711"}) {
				t.Errorf("got reference %q, id %q, tags %q, metadata %q", e.Ref, e.ProviderMessageID, e.Tags, e.Metadata)
			}
			if tt.event == "clicked" && (e.URL != "https://example.com/" || e.IP == "" || e.UserAgent == "") {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// TestTwinPosts posts over HTTP, as Maileroo does.
func TestTwinPosts(t *testing.T) {
	tw := twin.New(twin.Options{Secret: "hook", Now: clock})
	p := parser(t, "hook")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		if evs, err := providertest.Receive(p, r, body); err != nil || len(evs) != 1 {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	if status, err := tw.Post(t.Context(), srv.URL, "delivered", twin.Mail{ReferenceID: "r"}, "a@example.org"); err != nil || status != 200 {
		t.Errorf("got %d, %v", status, err)
	}
}

// TestJudge reads what the texts say.
func TestJudge(t *testing.T) {
	const to = "Ann@example.org"
	for _, tt := range []struct{ name, event, text, status, reason string }{
		{"enhanced", "failed", "550 5.1.1 no such user", "5.1.1", "bounced"},
		{"with a hyphen", "failed", "550-5.2.1 disabled", "5.2.1", "bounced"},
		{"leading space", "failed", "  554 5.4.14 hop count", "5.4.14", "bounced"},
		{"reply code only", "failed", "550 no such user", "5.0.0", "bounced"},
		{"no code", "failed", "mailbox gone", "5.0.0", "bounced"},
		{"empty", "failed", "", "5.0.0", "bounced"},
		{"code in the middle", "failed", "remote said 421 4.7.0", "5.0.0", "bounced"},
		{"not a code", "failed", "5501.1 items", "5.0.0", "bounced"},
		{"given up", "failed", "421 4.7.0 try later", "4.7.0", "timed_out"},
		{"given up, no enhanced code", "failed", "451 try later", "4.4.7", "timed_out"},
		{"policy", "failed", "550 5.7.1 not allowed", "5.7.1", "blocked"},
		{"block list", "failed", "550 your IP is on our blocklist", "5.0.0", "blocked"},
		{"spam", "failed", "550 5.7.1 message looks like SPAM", "5.7.1", "spam"},
		{"deferred", "deferred", "452 4.2.2 full", "4.2.2", ""},
		{"deferred without a code", "deferred", "connection refused", "4.0.0", ""},
		{"deferred by a 5xx", "deferred", "550 5.7.1 later", "4.0.0", ""},
		{"suppressed", "rejected", "One or more of the recipients are on the suppression list.", "5.7.1", "bounced"},
		{"bounced before", "rejected", "Recipient previously bounced", "5.7.1", "bounced"},
		{"complained before", "rejected", "On the suppression list: complaint", "5.7.1", "spam"},
		{"unsubscribed", "rejected", "The recipient has unsubscribed", "5.7.1", "unsubscribed"},
		{"malformed", "rejected", "Malformed email: the From header is missing", "5.6.0", "other"},
		{"address", "rejected", "ann@EXAMPLE.org is not a valid address", "5.1.3", "invalid"},
		{"no text", "rejected", "", "5.6.0", "other"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			body, err := json.Marshal(map[string]any{"event_id": "e", "event_type": tt.event, "event_time": 1790000000, "event_data": map[string]any{"to": to, "reason": tt.text}})
			if err != nil {
				t.Fatal(err)
			}
			evs, err := parser(t).ParseWebhook(nil, body)
			if err != nil || len(evs) != 1 {
				t.Fatalf("got %v, %v", evs, err)
			}
			if e := evs[0]; e.Status != tt.status || e.RejectReason != tt.reason || e.Diagnostic != strings.TrimSpace(tt.text) || e.Recipient != to {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// TestForms: what integrators are prepared for beside the documented form.
func TestForms(t *testing.T) {
	const one, two = `{"event_id":"1","event_type":"delivered","event_time":1790000000,"event_data":{"to":["a@example.org","b@Example.org","b@example.org"]}}`, `{"event_id":"2","event_type":"opened"}`
	for _, tt := range []struct {
		name, body string
		kinds      []event.Kind
		bad        bool
	}{
		{"several recipients", one, []event.Kind{event.Delivered, event.Delivered}, false},
		{"array", "[" + one + "," + two + "]", []event.Kind{event.Delivered, event.Delivered, event.Opened}, false},
		{"events", `{"events":[` + two + `]}`, []event.Kind{event.Opened}, false},
		{"doubled", "[" + two + "," + two + "]", []event.Kind{event.Opened}, false},
		{"one bad item", `[7,null,"x",[],{},` + two + "]", []event.Kind{event.Opened}, false},
		{"only bad items", `[7,null]`, nil, true},
		{"empty array", `[]`, nil, false},
		{"no events", `{"events":[]}`, nil, false},
		{"empty object", `{}`, nil, true},
		{"null", `null`, nil, true},
		{"empty", ``, nil, true},
		{"OTP product", `{"id":"x","type":"otp.sent","created_at":1,"data":{}}`, nil, true},
		{"deep", strings.Repeat("[", 20000), nil, true},
		{"too many", "[" + strings.Repeat("1,", maxEvents) + "1]", nil, true},
		{"wrong types", `{"event_type":"failed","event_id":7,"event_time":{},"inserted_at":[],"message_id":1,"message_reference_id":null,"tags":[],"event_data":"x"}`, []event.Kind{event.Bounced}, false},
		{"wrong types in data", `{"event_type":"failed","event_data":{"to":{"a":1},"reason":7}}`, []event.Kind{event.Bounced}, false},
		{"empty list of tags", `{"event_type":"failed","tags":[],"event_data":null}`, []event.Kind{event.Bounced}, false},
		{"far away", `{"event_type":"opened","event_time":1e300}`, []event.Kind{event.Opened}, false},
		{"controls", `{"event_type":"op\u0000\u001b[2J","event_id":"1\r\n","message_id":"<a\r\nb>","tags":{"tag":"a\u0000b","k\u0000":"v\n"},"event_data":{"to":"a\r\n@b","reason":"x\r\ny"}}`, []event.Kind{event.Unknown}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			evs, err := parser(t).ParseWebhook(nil, []byte(tt.body))
			if tt.bad != errors.Is(err, providers.ErrMalformed) || !tt.bad && err != nil {
				t.Fatalf("got %v", err)
			}
			var kinds []event.Kind
			ids := map[string]bool{}
			for _, e := range evs {
				kinds = append(kinds, e.Kind)
				ids[e.ID] = true
				b, err := json.Marshal(e)
				if err != nil || strings.Contains(string(b), `\u00`) || strings.Contains(string(b), `\r`) || strings.Contains(string(b), `\n`) {
					t.Errorf("got %s, %v", b, err)
				}
			}
			if !slices.Equal(kinds, tt.kinds) || len(ids) != len(evs) {
				t.Errorf("got %v, %d ids", kinds, len(ids))
			}
		})
	}
}

// TestTagsBack: numbering ends at a gap; scalars become text.
func TestTagsBack(t *testing.T) {
	evs, err := parser(t).ParseWebhook(nil, []byte(`{"event_type":"opened","tags":{"tag":"a","tag2":"b","tag4":"d","n":7,"t":true,"x":null,"o":{"a":1},"`+refTag+`":"not a ref"}}`))
	if err != nil || len(evs) != 1 {
		t.Fatal(evs, err)
	}
	if e := evs[0]; !slices.Equal(e.Tags, []string{"a", "b"}) || !maps.Equal(e.Metadata, map[string]string{"tag4": "d", "n": "7", "t": "true"}) || e.Ref != "" {
		t.Errorf("got %+v", e)
	}
}

func FuzzParseWebhook(f *testing.F) {
	for _, fx := range providertest.Fixtures(f, "testdata/webhook") {
		f.Add(fx.Body)
	}
	p := parser(f)
	f.Fuzz(func(t *testing.T, body []byte) {
		evs, err := p.ParseWebhook(nil, body)
		if err != nil && len(evs) > 0 {
			t.Errorf("%d events and %v", len(evs), err)
		}
		for _, e := range evs {
			if _, err := json.Marshal(e); e.ID == "" || err != nil {
				t.Errorf("got %+v, %v", e, err)
			}
		}
	})
}

func inboundBody(t testing.TB, edit func(m map[string]any)) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "inbound", "post.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(b, &m); err != nil {
		t.Fatal(err)
	}
	if edit != nil {
		edit(m)
	}
	if b, err = json.Marshal(m); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseInbound(t *testing.T) {
	s := suite(t)
	s.Options = func(_ testing.TB, o *providers.Options) {
		o.Decode = providertest.Decode(`inbound_hosts = ["inbound-api.maileroo.net", "*.Example.net"]`)
	}
	p := s.New(t, "http://127.0.0.1:1", nil).(providers.InboundParser)
	parse := func(edit func(m map[string]any)) ([]providers.Inbound, error) {
		return providertest.ReceiveInbound(p, httptest.NewRequest("POST", "/inbound/acct", nil), inboundBody(t, edit))
	}
	in, err := parse(nil)
	if err != nil || len(in) != 1 {
		t.Fatalf("got %+v, %v", in, err)
	}
	want := providers.Inbound{
		ID: "67f0c0ffee0123456789abcd", From: "writer@example.net", Rcpts: []string{"help@in.example.com", "sales@in.example.com"},
		FetchURL: "https://storage.example.net/bucket/67f0?sig=1", ValidateURL: "https://inbound-api.maileroo.net/validate/67f0", DeleteURL: "https://inbound-api.maileroo.net/delete/67f0",
	}
	if got := in[0]; got.ID != want.ID || got.From != want.From || !slices.Equal(got.Rcpts, want.Rcpts) || got.Open != nil || got.FetchURL != want.FetchURL || got.ValidateURL != want.ValidateURL || got.DeleteURL != want.DeleteURL {
		t.Errorf("got %+v", got)
	}
	raw := func(u string) func(map[string]any) {
		return func(m map[string]any) {
			m["body"].(map[string]any)["raw_mime"] = map[string]any{"url": u}
		}
	}
	field := func(name string, v any) func(map[string]any) {
		return func(m map[string]any) { m[name] = v }
	}
	for _, tt := range []struct {
		name string
		edit func(map[string]any)
		want error
	}{
		{"null sender", field("envelope_sender", nil), nil},
		{"no id", field("_id", nil), nil},
		{"nothing to delete", field("deletion_url", nil), nil},
		{"port of https", field("validation_url", "https://inbound-api.maileroo.net:443/v"), nil},
		{"no validation", field("validation_url", nil), providers.ErrSignature},
		{"validation elsewhere", field("validation_url", "https://evil.example.com/yes"), providers.ErrSignature},
		{"validation without TLS", field("validation_url", "http://inbound-api.maileroo.net/v"), providers.ErrSignature},
		{"another port", field("validation_url", "https://inbound-api.maileroo.net:8443/v"), providers.ErrSignature},
		{"user", field("validation_url", "https://inbound-api.maileroo.net@evil.example.com/v"), providers.ErrSignature},
		{"user at the right host", field("validation_url", "https://u:p@inbound-api.maileroo.net/v"), providers.ErrSignature},
		{"longer name", field("validation_url", "https://inbound-api.maileroo.net.evil.example.com/v"), providers.ErrSignature},
		{"no URL", field("validation_url", "://"), providers.ErrSignature},
		{"raw elsewhere", raw("https://169.254.169.254/latest"), providers.ErrUnavailable},
		{"raw at the suffix itself", raw("https://example.net/x"), providers.ErrUnavailable},
		{"raw like the suffix", raw("https://badexample.net/x"), providers.ErrUnavailable},
		{"file", raw("file:///etc/passwd"), providers.ErrUnavailable},
		{"deletion elsewhere", field("deletion_url", "https://10.0.0.1/"), providers.ErrUnavailable},
		{"no raw", raw(""), providers.ErrMalformed},
		{"no recipients", field("recipients", []string{"nobody"}), providers.ErrMalformed},
		{"body of another form", field("body", "x"), providers.ErrMalformed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			in, err := parse(tt.edit)
			if !errors.Is(err, tt.want) || (err == nil) != (len(in) == 1) || err == nil && in[0].ID == "" {
				t.Errorf("got %+v, %v", in, err)
			}
		})
	}
}
