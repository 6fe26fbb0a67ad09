package sandbox

import (
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/providertest"
	"smtpbridge/providers/sandbox/twin"
)

// accepted answers a call as the sandbox does.
func accepted(c *providertest.Call) string {
	var ids []string
	for _, part := range strings.Split(recipientsOf(string(c.Body)), ",") {
		ids = append(ids, fmt.Sprintf(`{"email":%s,"result":"accepted","id":"x"}`, part))
	}
	return `{"id":"sb-1","recipients":[` + strings.Join(ids, ",") + `]}`
}

// recipientsOf cuts the list out of the body's beginning.
func recipientsOf(body string) string {
	_, rest, _ := strings.Cut(body, `"recipients":[`)
	list, _, _ := strings.Cut(rest, "]")
	return list
}

func suite() providertest.Suite {
	return providertest.Suite{
		Info:    Info,
		Success: []providertest.Answer{{Name: "accepted", Reply: accepted, MessageID: "sb-1"}},
		Errors: []providertest.Answer{
			{
				Name: "one rejected", Body: `{"id":"a","recipients":[{"email":"r1@example.org","result":"rejected","reason":"invalid"},{"email":"r0@example.org","result":"accepted"},{"email":"r2@example.org","result":"deferred","message":"450 later"}]}`,
				Verdicts: []providers.Verdict{providers.Accepted, providers.Rejected, providers.Deferred}, Reasons: []string{"", event.ReasonInvalid, ""},
			},
			{Name: "bad key", Status: 401, Body: `{"error":{"code":"bad_key","message":"no"}}`, Kind: providers.Operator, Code: "bad_key"},
			{Name: "sender domain", Status: 403, Body: `{"error":{"code":"sender_not_verified"}}`, Kind: providers.Operator, Scope: providers.ScopeDomain},
			{Name: "rate", Status: 429, Header: map[string]string{"Retry-After": "5"}, Kind: providers.RateLimited, RetryAfter: 5 * time.Second},
			{Name: "invalid", Status: 422, Body: `{"error":{"code":"invalid"}}`, Kind: providers.Permanent},
			{Name: "no body", Status: 500, Kind: providers.Transient},
			{Name: "unlisted", Status: 418, Kind: providers.Transient, Unlisted: true},
		},
		Read: read,
		Twin: func(t testing.TB) http.Handler {
			s := twin.New(twin.Config{APIKey: providertest.Key})
			t.Cleanup(func() { s.Close() })
			return s
		},
		Webhooks: "testdata/webhook",
		Sign: func(_ testing.TB, r *http.Request, body []byte, s providertest.FixtureSecret, now time.Time) {
			r.Header.Set(twin.TimestampHeader, strconv.FormatInt(now.Unix(), 10))
			r.Header.Set(twin.SignatureHeader, twin.Sign(s.Value, now.Unix(), body))
		},
	}
}

func TestConformance(t *testing.T) { providertest.Run(t, suite()) }

func TestConformanceRaw(t *testing.T) {
	s := suite()
	s.Webhooks, s.Errors = "testdata/webhook", nil
	s.Options = func(_ testing.TB, o *providers.Options) {
		if o.Decode == nil {
			o.Decode = providertest.Decode("raw = true")
		}
	}
	providertest.Run(t, s)
}

func emails(list []twin.Address) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Email)
	}
	return out
}

func read(t testing.TB, c *providertest.Call) providertest.Sent {
	t.Helper()
	if c.Method != "POST" || c.URL.Path != "/v1/send" || c.Header.Get("Authorization") != "Bearer "+providertest.Key {
		t.Errorf("got %s %s, %q", c.Method, c.URL.Path, c.Header.Get("Authorization"))
	}
	var m twin.Message
	c.JSON(t, &m)
	s := providertest.Sent{
		Rcpts: m.Recipients, From: m.From.Email, FromName: m.From.Name, To: emails(m.To), Cc: emails(m.Cc), ReplyTo: emails(m.ReplyTo),
		Subject: m.Subject, Tags: m.Tags, Metadata: m.Metadata, IdempotencyKey: c.Header.Get("Idempotency-Key"), Headers: map[string][]string{},
	}
	if m.EnvelopeFrom != nil {
		s.EnvelopeFrom = *m.EnvelopeFrom
	}
	if m.Text != nil {
		s.Text = *m.Text
	}
	if m.HTML != nil {
		s.HTML = *m.HTML
	}
	if m.SendAt != nil {
		s.SendAt = *m.SendAt
	}
	for _, h := range m.Headers {
		s.Headers[h.Name] = append(s.Headers[h.Name], h.Value)
	}
	for _, a := range m.Attachments {
		b, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			t.Errorf("attachment %s: %v", a.Name, err)
		}
		s.Attachments = append(s.Attachments, providertest.SentAttachment{Name: a.Name, Type: a.Type, ContentID: a.ContentID, Content: b})
	}
	if m.MIME != "" {
		s.Raw, _ = base64.StdEncoding.DecodeString(m.MIME)
	}
	return s
}

// hook receives webhooks and keeps the events that verify.
type hook struct {
	p    *Provider
	mu   sync.Mutex
	evs  []event.Event
	bad  []error
	more chan struct{}
	fail int // answer so many posts with 503
}

func (h *hook) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail > 0 {
		h.fail--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	evs, err := providertest.Receive(h.p, r, body)
	if err != nil {
		h.bad = append(h.bad, err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	h.evs = append(h.evs, evs...)
	h.more <- struct{}{}
}

// account makes a sandbox inside the process that posts to a hook.
func account(t *testing.T) (*Provider, *hook) {
	t.Helper()
	h := &hook{more: make(chan struct{}, 100)}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	p, err := New(providers.Options{
		Account: "staging", WebhookURL: srv.URL + "/webhook/staging", WebhookSecrets: []secret.String{secret.New("first-secret"), secret.New("old-secret")},
		Decode: providertest.Decode(`delay = "1ms"`),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	h.mu.Lock()
	h.p = p
	h.mu.Unlock()
	return p, h
}

func (h *hook) wait(t *testing.T, n int) []event.Event {
	t.Helper()
	for range n {
		select {
		case <-h.more:
		case <-time.After(5 * time.Second):
			t.Fatal("an event is missing")
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.bad) > 0 {
		t.Errorf("webhooks did not verify: %v", h.bad)
	}
	return h.evs
}

func call(t *testing.T, p *Provider, rcpts ...string) (*providers.Outcome, error) {
	t.Helper()
	m := providertest.Message{Name: "x", From: "a@example.com", Rcpts: rcpts, EML: "From: a@example.com\r\nTo: " + strings.Join(rcpts, ", ") + "\r\nSubject: s\r\n\r\nb\r\n"}.Plan(t, p.Capabilities())[0]
	return p.Send(t.Context(), m)
}

func TestLifeByName(t *testing.T) {
	for name, want := range map[string][]event.Kind{
		"someone":    {event.Delivered},
		"bounce+tag": {event.Bounced},
		"softbounce": {event.Deferred, event.Bounced},
		"defer":      {event.Deferred, event.Delivered},
		"Complaint":  {event.Delivered, event.Complained},
		"click":      {event.Delivered, event.Opened, event.Clicked},
	} {
		t.Run(name, func(t *testing.T) {
			p, h := account(t)
			out, err := call(t, p, name+"@example.org")
			if err != nil || out.Rcpts[0].Verdict != providers.Accepted {
				t.Fatalf("got %+v, %v", out, err)
			}
			var got []event.Kind
			for _, e := range h.wait(t, len(want)) {
				got = append(got, e.Kind)
				if e.ProviderMessageID != out.MessageID || e.Recipient != name+"@example.org" || !strings.HasPrefix(e.Ref, providertest.Ref) || e.Account != "staging" {
					t.Errorf("got %+v", e)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %v, want %v", got, want)
			}
		})
	}
}

func TestFailuresByName(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rcpts []string
		kind  providers.Kind
		split bool
	}{
		{"400", []string{"400@x.org"}, providers.Permanent, false},
		{"401", []string{"401@x.org"}, providers.Operator, false},
		{"429", []string{"a@x.org", "429@x.org"}, providers.RateLimited, false},
		{"503", []string{"temperror@x.org"}, providers.RateLimited, false},
		{"500", []string{"500@x.org"}, providers.Transient, false},
		{"split with others", []string{"split@x.org", "a@x.org"}, providers.Permanent, true},
		{"split alone", []string{"split@x.org"}, providers.Permanent, false},
		{"garbage", []string{"garbage@x.org"}, providers.Ambiguous, false},
		{"ambiguous", []string{"ambiguous@x.org"}, providers.Ambiguous, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := account(t)
			_, err := call(t, p, tt.rcpts...)
			e, ok := err.(*providers.Error)
			if !ok || e.Kind != tt.kind || e.Split != tt.split {
				t.Errorf("got %v, want %v, split %v", err, tt.kind, tt.split)
			}
		})
	}
	p, _ := account(t)
	out, err := call(t, p, "reject@x.org", "451@x.org", "550@x.org", "ok@x.org")
	if err != nil {
		t.Fatal(err)
	}
	want := []providers.Verdict{providers.Rejected, providers.Deferred, providers.Rejected, providers.Accepted}
	for i, r := range out.Rcpts {
		if r.Verdict != want[i] {
			t.Errorf("%s: got %d, want %d", r.Addr, r.Verdict, want[i])
		}
	}
}

// TestTimeout ends with the caller's patience, and the mail may have been taken.
func TestTimeout(t *testing.T) {
	p, _ := account(t)
	p.api.StallTimeout, p.api.AnswerTimeout = 50*time.Millisecond, 50*time.Millisecond
	_, err := call(t, p, "timeout@x.org")
	if providers.KindOf(err) != providers.Ambiguous {
		t.Errorf("got %v", err)
	}
	if n := len(p.ESP().Inbox()); n != 0 {
		t.Errorf("%d mails were taken", n)
	}
}

// TestCase066_Repeat: a lost answer is found by look-up, and a repeat with the same key is the same mail.
func TestCase066_Repeat(t *testing.T) {
	p, _ := account(t)
	m := providertest.Message{Name: "x", From: "a@example.com", Rcpts: []string{"ambiguous@x.org"}, EML: "From: a@example.com\r\n\r\nb\r\n"}.Plan(t, p.Capabilities())[0]
	if _, found, err := p.Find(t.Context(), m, time.Time{}); found != providers.Absent || err != nil {
		t.Errorf("before: got %v, %v", found, err)
	}
	if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
		t.Fatalf("got %v", err)
	}
	first, found, err := p.Find(t.Context(), m, time.Time{})
	if found != providers.Present || err != nil || first.Rcpts[0].Verdict != providers.Accepted {
		t.Fatalf("got %+v, %v, %v", first, found, err)
	}
	again, err := p.Send(t.Context(), m)
	if err != nil || again.MessageID != first.MessageID || len(p.ESP().Inbox()) != 1 {
		t.Errorf("got %+v, %v, %d mails", again, err, len(p.ESP().Inbox()))
	}
}

// TestWebhookRetry: an event that was not stored comes again with the same id.
func TestWebhookRetry(t *testing.T) {
	p, h := account(t)
	h.mu.Lock()
	h.fail = 2
	h.mu.Unlock()
	if _, err := call(t, p, "someone@x.org"); err != nil {
		t.Fatal(err)
	}
	if evs := h.wait(t, 1); evs[0].Kind != event.Delivered {
		t.Errorf("got %+v", evs)
	}
}

// TestInboxIsBounded keeps the newest mails.
func TestInboxIsBounded(t *testing.T) {
	s := twin.New(twin.Config{MaxMails: 3})
	defer s.Close()
	srv := httptest.NewServer(s)
	defer srv.Close()
	p, err := New(providers.Options{Account: "a", BaseURL: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, err := call(t, p, fmt.Sprintf("r%d@x.org", i)); err != nil && i == 0 {
			t.Fatal(err)
		}
		// The key is the same for all calls of the suite; the sandbox would answer from memory.
		s.Forget()
	}
	in := s.Inbox()
	if len(in) != 3 || in[2].Results[0].Email != "r4@x.org" {
		t.Errorf("got %+v", in)
	}
}
