package mailpace

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/mailpace/twin"
	"smtpbridge/providers/providertest"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// fixture reads one answer of the vendor.
func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "errors", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func suite(t testing.TB) providertest.Suite {
	e := func(file string, a providertest.Answer) providertest.Answer {
		a.Name, a.Body = file, fixture(t, file)
		return a
	}
	one := []providers.Verdict{providers.Rejected}
	return providertest.Suite{
		Info: Info,
		Success: []providertest.Answer{
			{Name: "pending", Body: `{"id": 4711, "status": "pending"}`, MessageID: "4711"},
			{Name: "queued", Body: `{"id": 4711, "status": "queued"}`, MessageID: "4711"},
			{Name: "id as text", Body: `{"id": "4711"}`, MessageID: "4711"},
			{Name: "greater than a float keeps", Body: `{"id": 9007199254740993}`, MessageID: "9007199254740993"},
			// Refusals of the one recipient.
			e("400-blocked.json", providertest.Answer{Status: 400, Verdicts: one, Reasons: []string{event.ReasonBlocked}}),
			e("400-invalid-recipient.json", providertest.Answer{Status: 400, Verdicts: one, Reasons: []string{event.ReasonInvalid}}),
		},
		Errors: []providertest.Answer{
			e("400-token.json", providertest.Answer{Status: 400, Kind: providers.Operator}),
			e("400-from.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-undefined.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-volume.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-attachment.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("401-missing-token.json", providertest.Answer{Status: 401, Kind: providers.Operator}),
			e("403-dkim.json", providertest.Answer{Status: 403, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("403-domain.json", providertest.Answer{Status: 403, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("403-plan.json", providertest.Answer{Status: 403, Kind: providers.Operator}),
			e("403-disabled.json", providertest.Answer{Status: 403, Kind: providers.Operator}),
			e("406-format.json", providertest.Answer{Status: 406, Kind: providers.Operator}),
			e("429-too-quickly.json", providertest.Answer{Status: 429, Kind: providers.RateLimited}),
			{Name: "400 of a proxy", Status: 400, Body: "<html>Bad Request</html>", Kind: providers.Transient, Unlisted: true},
			{Name: "409 key in use", Status: 409, Body: `{"error":"Idempotency key in use"}`, Kind: providers.Transient},
			{Name: "500 empty", Status: 500, Kind: providers.Transient},
			{Name: "200 without id", Body: `{"status":"pending"}`, Kind: providers.Ambiguous},
			{Name: "200 with a null id", Body: `{"id":null}`, Kind: providers.Ambiguous},
		},
		Read:     read,
		Twin:     func(testing.TB) http.Handler { return twin.New(twin.Options{Token: providertest.Key}).Handler() },
		Webhooks: "testdata/webhook",
		Ignore: map[string]string{
			"esp_ids":                            "an object here; TestEventIDs compares it",
			"mailixir-delivered-two-recipients/": "one event stream per call: TestTwoRecipients",
			"mailixir-hardbounced/":              "one event stream per call: TestTwoRecipients",
		},
	}
}

// read decodes a request with the twin's eyes: the documented JSON.
func read(t testing.TB, c *providertest.Call) providertest.Sent {
	var q struct {
		From, To, Cc, Bcc, ReplyTo, Subject, HTMLBody, TextBody, InReplyTo, References string
		ListUnsubscribe                                                                string `json:"list_unsubscribe"`
		Tags                                                                           []string
		Attachments                                                                    []struct {
			Name, Content, Cid string
			ContentType        string `json:"content_type"`
		}
	}
	c.JSON(t, &q)
	if c.URL.Path != "/api/v1/send" || c.Header.Get("MailPace-Server-Token") == "" || c.Header.Get("Accept") != "application/json" || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("path or headers of the request: %s %v", c.URL.Path, c.Header)
	}
	list := func(s string) (out []string) {
		if s == "" {
			return nil
		}
		parsed, err := mail.ParseAddressList(s)
		if err != nil {
			t.Errorf("address list %q: %v", s, err)
		}
		for _, a := range parsed {
			out = append(out, a.Address)
		}
		return out
	}
	from, err := mail.ParseAddress(q.From)
	if err != nil {
		t.Fatalf("from %q: %v", q.From, err)
	}
	out := providertest.Sent{
		From: from.Address, FromName: from.Name, To: list(q.To), Cc: list(q.Cc), Bcc: list(q.Bcc), ReplyTo: list(q.ReplyTo),
		Subject: q.Subject, Text: q.TextBody, HTML: q.HTMLBody, Tags: q.Tags, Headers: map[string][]string{},
		IdempotencyKey: c.Header.Get("Idempotency-Key"),
	}
	for name, v := range map[string]string{"In-Reply-To": q.InReplyTo, "References": q.References, "List-Unsubscribe": q.ListUnsubscribe} {
		if v != "" {
			out.Headers[name] = []string{v}
		}
	}
	for _, a := range q.Attachments {
		content, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			t.Errorf("attachment %q: %v", a.Name, err)
		}
		out.Attachments = append(out.Attachments, providertest.SentAttachment{Name: a.Name, Type: a.ContentType, ContentID: a.Cid, Content: content})
	}
	return out
}

func TestProvider(t *testing.T) { providertest.Run(t, suite(t)) }

// TestSplit: with several recipients a refusal that one of them caused plans each again.
func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		file  string
		split bool
	}{{"400-blocked.json", true}, {"400-invalid-recipient.json", true}, {"400-volume.json", true}, {"400-undefined.json", false}, {"400-from.json", false}, {"400-attachment.json", false}} {
		t.Run(tt.file, func(t *testing.T) {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(400)
				w.Write([]byte(fixture(t, tt.file)))
			}))
			defer srv.Close()
			p := suite(t).New(t, srv.URL, nil)
			_, err := p.Send(t.Context(), providertest.Plain(t, p.Capabilities(), 3))
			var e *providers.Error
			if !errors.As(err, &e) || e.Kind != providers.Permanent || e.Split != tt.split {
				t.Errorf("got %v, split %v", err, e != nil && e.Split)
			}
		})
	}
}

// TestCase066_SameKey: a repeat after a lost answer does not make a second mail.
func TestCase066_SameKey(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key})
	srv := httptest.NewServer(tw.Handler())
	defer srv.Close()
	p := suite(t).New(t, srv.URL, nil)
	m := providertest.Plain(t, p.Capabilities(), 1)
	tw.Inject(twin.Fault{Lose: true})
	if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
		t.Fatalf("got %v, want Ambiguous", err)
	}
	out, err := p.Send(t.Context(), m)
	if err != nil || out.MessageID != "1" {
		t.Fatalf("got %+v, %v", out, err)
	}
	if accepted, repeats := tw.Count(); accepted != 1 || repeats != 1 {
		t.Errorf("%d mails, %d repeats", accepted, repeats)
	}
}

func TestCheck(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key})
	srv := httptest.NewServer(tw.Handler())
	defer srv.Close()
	s := suite(t)
	if _, ok := s.New(t, srv.URL, nil).(providers.Checker); ok {
		t.Error("the undocumented check is on by default")
	}
	for _, tt := range []struct {
		name, key string
		ok        bool
	}{{"good", providertest.Key, true}, {"bad", "another-token", false}} {
		t.Run(tt.name, func(t *testing.T) {
			s.Options = func(_ testing.TB, o *providers.Options) {
				o.Decode, o.APIKey = providertest.Decode("check_by_empty_request = true"), secret.New(tt.key)
			}
			err := s.New(t, srv.URL, nil).(providers.Checker).Check(t.Context())
			if tt.ok && err != nil || !tt.ok && providers.KindOf(err) != providers.Operator {
				t.Errorf("got %v", err)
			}
		})
	}
	if accepted, _ := tw.Count(); accepted != 0 {
		t.Errorf("a check sent %d mails", accepted)
	}
}

// TestTwinRefuses provokes each documented error.
func TestTwinRefuses(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok", Domain: "example.com", Blocked: []string{"blocked@example.net"}})
	many := strings.TrimSuffix(strings.Repeat("a@example.org,", 51), ",")
	for _, tt := range []struct {
		name, token, accept, body string
		status                    int
		want                      string
	}{
		{"taken", "tok", "application/json", `{"from":"A <a@example.com>","to":"b@example.org","textbody":"x","tags":"one"}`, 200, `"id":1`},
		{"no token", "", "application/json", `{}`, 401, "Missing API Token"},
		{"bad token", "x", "application/json", `{}`, 400, "Invalid API Token"},
		{"accept", "tok", "text/html", `{}`, 406, "error"},
		{"empty", "tok", "application/json", `{}`, 400, `"to":["undefined field"]`},
		{"from", "tok", "application/json", `{"from":"nobody","to":"b@example.org","textbody":"x"}`, 400, "not parseable"},
		{"domain", "tok", "application/json", `{"from":"a@sub.example.com","to":"b@example.org","textbody":"x"}`, 403, "Domain"},
		{"to", "tok", "application/json", `{"from":"a@example.com","to":"b@","textbody":"x"}`, 400, `"to":["is invalid"]`},
		{"blocked", "tok", "application/json", `{"from":"a@example.com","to":"b@example.org","bcc":"blocked@example.net","textbody":"x"}`, 400, `"bcc":["contains a blocked address"]`},
		{"volume", "tok", "application/json", `{"from":"a@example.com","to":"` + many + `","textbody":"x"}`, 400, "exceeds maximum volume"},
		{"extension", "tok", "application/json", `{"from":"a@example.com","to":"b@example.org","textbody":"x","attachments":[{"name":"a.exe","content":"QQ==","content_type":"x/y"}]}`, 400, "attachments.name"},
		{"two dots", "tok", "application/json", `{"from":"a@example.com","to":"b@example.org","textbody":"x","attachments":[{"name":"a.b.pdf","content":"QQ==","content_type":"x/y"}]}`, 400, "attachments.name"},
		{"unknown field", "tok", "application/json", `{"from":"a@example.com","to":"b@example.org","textbody":"x","headers":[]}`, 400, "headers"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/api/v1/send", strings.NewReader(tt.body))
			r.Header.Set("Accept", tt.accept)
			r.Header.Set("Content-Type", "application/json")
			if tt.token != "" {
				r.Header.Set("MailPace-Server-Token", tt.token)
			}
			w := httptest.NewRecorder()
			tw.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
}

func parser(t *testing.T, keys ...string) providers.WebhookParser {
	t.Helper()
	o := providers.Options{Account: "acct", APIKey: secret.New("tok"), Now: func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }}
	for _, k := range keys {
		o.WebhookSecrets = append(o.WebhookSecrets, secret.New(k))
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.(providers.WebhookParser)
}

// TestVector is the vector of the fact sheet: seed 00..1f.
func TestVector(t *testing.T) {
	body := []byte(`{"event":"email.delivered","payload":{"id":1}}`)
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("X-MailPace-Signature", "fIo7JqpZYw9l7YuHjy7mBaYXO1oPEWv8oKSGKtZGMcZBqmRf1CoJHaWsijV7tX2hUH0f7nmyMniGPP0cRFcfBA==")
	evs, err := providertest.Receive(parser(t, "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="), r, body)
	if err != nil || len(evs) != 1 || evs[0].Kind != event.Delivered || evs[0].ProviderMessageID != "1" || evs[0].Recipient != "" || evs[0].Candidates != nil {
		t.Errorf("got %+v, %v", evs, err)
	}
}

// TestTwinWebhooks carries our reference and posts each event, under two keys.
func TestTwinWebhooks(t *testing.T) {
	old, tw := twin.New(twin.Options{Token: "tok"}), twin.New(twin.Options{Token: "tok"})
	p := parser(t, old.PublicKey(), tw.PublicKey())
	m := twin.Mail{ID: 7, At: time.Date(2026, 1, 1, 10, 0, 0, 0, time.UTC), To: []string{"one@example.org"}, Text: "canary body", Tags: []string{"welcome", refPrefix + providertest.Ref}}
	for _, tt := range []struct {
		event          string
		kind           event.Kind
		action, status string
	}{
		{"queued", event.Queued, "", ""},
		{"delivered", event.Delivered, "delivered", "2.0.0"},
		{"deferred", event.Deferred, "delayed", "4.0.0"},
		{"bounced", event.Bounced, "failed", "5.0.0"},
		{"spam", event.Rejected, "failed", "5.7.1"},
		{"novel", event.Unknown, "", ""},
	} {
		t.Run(tt.event, func(t *testing.T) {
			for _, signer := range []*twin.Twin{old, tw} {
				r, err := signer.Webhook(t.Context(), "http://127.0.0.1/webhook/acct", tt.event, m, m.At.Add(time.Minute))
				if err != nil {
					t.Fatal(err)
				}
				body := make([]byte, r.ContentLength)
				if _, err := r.Body.Read(body); err != nil {
					t.Fatal(err)
				}
				evs, err := providertest.Receive(p, r, body)
				if err != nil || len(evs) != 1 {
					t.Fatalf("got %v, %v", evs, err)
				}
				e := evs[0]
				if e.Kind != tt.kind || e.Action != tt.action || e.Status != tt.status || e.Ref != providertest.Ref || !slices.Equal(e.Tags, []string{"welcome"}) ||
					e.Recipient != "one@example.org" || !e.Time.Equal(m.At.Add(time.Minute)) || e.ProviderEvent != "email."+tt.event {
					t.Errorf("got %+v", e)
				}
				if (e.WillRetryAt != nil) != (tt.event == "deferred") || e.WillRetryAt != nil && !e.WillRetryAt.Equal(m.At.Add(48*time.Hour)) {
					t.Errorf("got WillRetryAt %v", e.WillRetryAt)
				}
				if b, err := json.Marshal(e); err != nil || strings.Contains(string(b), "canary") {
					t.Errorf("the event holds mail text: %s, %v", b, err)
				}
			}
		})
	}
}

func TestEventIDs(t *testing.T) {
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if !strings.HasPrefix(f.Name, "composed-") {
			continue
		}
		evs, err := providertest.Receive(parser(t, f.Secret.Value), f.Request(f.Body), f.Body)
		if err != nil || len(evs) != 1 || evs[0].ProviderMessageID != "4711" || evs[0].MessageID != "3baf4caf-948a-41e6-bc5c-2e99058e6461@mailer.mailpace.com" {
			t.Errorf("%s: got %+v, %v", f.Name, evs, err)
		}
	}
}

// TestTwoRecipients: MailPace does not say which of them, so neither is named for certain.
func TestTwoRecipients(t *testing.T) {
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if f.Name != "mailixir-delivered-two-recipients" && f.Name != "mailixir-hardbounced" {
			continue
		}
		evs, err := providertest.Receive(parser(t, f.Secret.Value), f.Request(f.Body), f.Body)
		if err != nil || len(evs) != 1 || evs[0].Recipient != "" || !slices.Equal(evs[0].Candidates, []string{"jane@example.com", "john@example.com"}) {
			t.Errorf("%s: got %+v, %v", f.Name, evs, err)
		}
	}
}

func TestHostileBodies(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok"})
	p := parser(t, tw.PublicKey())
	for _, tt := range []struct {
		name, body string
		ok         bool
	}{
		{"empty", "", false},
		{"null", "null", false},
		{"array", "[]", false},
		{"deep", strings.Repeat(`{"payload":`, 20000), false},
		{"wrong types", `{"event":"email.bounced","payload":{"id":7,"to":["a"],"tags":7,"updated_at":1,"created_at":{},"message_id":[1]}}`, true},
		{"huge id", `{"event":"email.bounced","payload":{"id":` + strings.Repeat("9", 5000) + `,"updated_at":"2025-01-01T00:00:00Z"}}`, true},
		{"controls", `{"event":"email.\u0000\u001b[2J","payload":{"id":"1\r\n","tags":["a\u0000b"],"message_id":"<a\r\nb>"}}`, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/", nil)
			tw.Sign(r, []byte(tt.body))
			evs, err := providertest.Receive(p, r, []byte(tt.body))
			if tt.ok != (err == nil && len(evs) == 1) || !tt.ok && !errors.Is(err, providers.ErrMalformed) {
				t.Errorf("got %d events, %v", len(evs), err)
			}
			for _, e := range evs {
				if strings.ContainsAny(e.ProviderEvent+e.ProviderMessageID+e.MessageID+strings.Join(e.Tags, ""), "\r\n\x00\x1b") {
					t.Errorf("not clean: %+v", e)
				}
			}
		})
	}
}

func TestParseInbound(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok"})
	p := parser(t, tw.PublicKey()).(providers.InboundParser)
	raw := "From: a@example.org\r\nTo: help@in.example.com\r\n\r\nHello\r\n"
	for _, tt := range []struct {
		name  string
		more  map[string]any
		rcpts []string
	}{
		{"to and cc", map[string]any{"to": "Help <help@in.example.com>, x@example.org", "cc": "c@in.example.com"}, []string{"help@in.example.com", "x@example.org", "c@in.example.com"}},
		{"delivered-to", map[string]any{"to": "list@example.org", "headers": []string{"Received: x", "Delivered-To: hidden@in.example.com"}}, []string{"hidden@in.example.com"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.more["raw"], tt.more["from"], tt.more["messageId"] = raw, "a@example.org", "m@example.org"
			body, err := json.Marshal(tt.more)
			if err != nil {
				t.Fatal(err)
			}
			r := httptest.NewRequest("POST", "/inbound/acct", nil)
			if _, err := providertest.ReceiveInbound(p, r, body); !errors.Is(err, providers.ErrSignature) {
				t.Errorf("unsigned: got %v", err)
			}
			tw.Sign(r, body)
			in, err := providertest.ReceiveInbound(p, r, body)
			if err != nil || len(in) != 1 || providertest.Raw(t, in[0]) != raw || in[0].ID == "" || !slices.Equal(in[0].Rcpts, tt.rcpts) {
				t.Errorf("got %+v, %v", in, err)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	good := "A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg="
	for _, tt := range []struct {
		name, toml, key, want string
	}{
		{"none", "", "", ""},
		{"key", "", good, ""},
		{"all", "max_recipients = 10\nattachment_extensions = [\".XML\"]\nreference_tag = false\ncheck_by_empty_request = true", good, ""},
		{"not base64", "", "canary-of-a-key", "public key of 32 bytes"},
		{"short", "", "AAAA", "public key of 32 bytes"},
		{"recipients", "max_recipients = 0", "", "max_recipients"},
		{"extension", `attachment_extensions = ["a.b"]`, "", "attachment_extensions"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := providers.Options{Account: "a", APIKey: secret.New("tok"), Decode: providertest.Decode(tt.toml)}
			if tt.key != "" {
				o.WebhookSecrets = []secret.String{secret.New(tt.key)}
			}
			p, err := New(o)
			switch {
			case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary")):
				t.Errorf("got %v", err)
			case tt.name == "all":
				c := p.Capabilities()
				if c.MaxRcpts != 10 || c.MaxTo != 10 || !slices.Contains(c.AttachExts, "xml") || slices.Contains(attachExts, "xml") {
					t.Errorf("got %+v", c)
				}
			}
		})
	}
}

// TestGolden sends each testdata/send/CASE/in.eml and compares the request with want.json and the outcome with outcome.json.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/send/*/in.eml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) { golden(t, dir) })
	}
}

func golden(t *testing.T, dir string) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !*update {
			t.Fatal(err)
		}
		return b
	}
	var env struct {
		From  string
		Rcpts []string
	}
	if err := json.Unmarshal(read("envelope.json"), &env); err != nil {
		t.Fatal(err)
	}
	resp := read("resp.json")
	var requests []any
	var outcomes []any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v any
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		requests = append(requests, v)
		w.Write(resp)
	}))
	defer srv.Close()
	p := suite(t).New(t, srv.URL, nil)
	msg := providertest.Message{EML: string(read("in.eml")), From: env.From, Rcpts: env.Rcpts}
	for i, m := range msg.Plan(t, p.Capabilities()) {
		m.Ref = fmt.Sprintf("%s-%d", providertest.Ref, i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, map[string]any{"id": out.MessageID, "rcpts": len(out.Rcpts), "losses": m.Losses})
	}
	for name, got := range map[string]any{"want.json": requests, "outcome.json": outcomes} {
		b, err := json.MarshalIndent(got, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(filepath.Join(dir, name), append(b, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var a, w any
		if err := errors.Join(json.Unmarshal(b, &a), json.Unmarshal(read(name), &w)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, w) {
			t.Errorf("%s: got\n%s", name, b)
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
		if err == nil && len(evs) != 1 {
			t.Errorf("%d events", len(evs))
		}
		for _, e := range evs {
			if e.ID == "" {
				t.Errorf("got %+v", e)
			}
		}
	})
}
