package providertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
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
)

// FixtureSecret is what a fixture's receiver is configured with.
type FixtureSecret struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
	KeyID string `json:"keyid"`
}

// Fixture is one case of a folder of webhook payloads: NAME.body has the exact bytes, NAME.json the rest.
type Fixture struct {
	Name             string
	Body             []byte
	Method           string            `json:"method"`
	ContentType      string            `json:"content_type"`
	Headers          map[string]string `json:"headers"`
	URL              string            `json:"url"`
	Secret           *FixtureSecret    `json:"secret"`
	Signature        string            `json:"signature"` // valid, invalid, missing, unsigned, placeholder
	Now              time.Time         `json:"now"`
	PublicTestSecret string            `json:"public_test_secret"`
	Expect           []map[string]any  `json:"expect"`
	ExpectHTTP       int               `json:"expect_http"`
}

// Fixtures reads a folder.
func Fixtures(t testing.TB, dir string) []Fixture {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*.body"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no fixtures in %s (%v)", dir, err)
	}
	var out []Fixture
	for _, name := range names {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		meta, err := os.ReadFile(strings.TrimSuffix(name, ".body") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		f := Fixture{Name: strings.TrimSuffix(filepath.Base(name), ".body"), Body: body}
		if err := json.Unmarshal(meta, &f); err != nil {
			t.Fatalf("%s: %v", f.Name, err)
		}
		out = append(out, f)
	}
	return out
}

// Request is the fixture's request with a body of one's choice.
func (f Fixture) Request(body []byte) *http.Request {
	target := f.URL
	if target == "" {
		target = "https://hooks.example.com/webhook/" + Account
	}
	method := f.Method
	if method == "" {
		method = http.MethodPost
	}
	r := httptest.NewRequest(method, target, bytes.NewReader(body))
	if f.ContentType != "" {
		r.Header.Set("Content-Type", f.ContentType)
	}
	for k, v := range f.Headers {
		if strings.EqualFold(k, "Host") {
			r.Host = v
			continue
		}
		r.Header.Set(k, v)
	}
	return r
}

// Receive verifies a request and reads it.
func Receive(p providers.WebhookParser, r *http.Request, body []byte) ([]event.Event, error) {
	if err := p.VerifyWebhook(r, body); err != nil {
		return nil, err
	}
	return p.ParseWebhook(r, body)
}

// parser makes the provider of a fixture. secrets nil: as the fixture says.
func (s Suite) parser(t testing.TB, f Fixture, secrets []secret.String) providers.WebhookParser {
	t.Helper()
	o := s.options(t, "http://127.0.0.1:1", nil)
	o.WebhookURL = f.URL
	switch {
	case f.Now.IsZero():
		o.Tolerance = 100 * 365 * 24 * time.Hour
	default:
		o.Now = func() time.Time { return f.Now }
	}
	fs := FixtureSecret{}
	if f.Secret != nil {
		fs = *f.Secret
	}
	switch {
	case secrets != nil:
		o.WebhookSecrets = secrets
	case s.Configure != nil:
		s.Configure(t, &o, fs)
	case fs.Value != "" && fs.Kind != "basic":
		o.WebhookSecrets = []secret.String{secret.New(fs.Value)}
	}
	p, err := s.Info.New(o)
	if err != nil {
		if secrets != nil {
			return nil // refusing to start without a usable secret is the best answer
		}
		t.Fatalf("New: %v", err)
	}
	return p.(providers.WebhookParser)
}

func (s Suite) ignored(name, key string) bool {
	_, a := s.Ignore[key]
	_, b := s.Ignore[name+"/"+key]
	return a || b
}

func (s Suite) webhooks(t *testing.T) {
	for _, f := range Fixtures(t, s.Webhooks) {
		t.Run(f.Name, func(t *testing.T) {
			if why, ok := s.Ignore[f.Name+"/"]; ok {
				t.Skip(why)
			}
			s.fixture(t, f)
		})
	}
}

func (s Suite) fixture(t *testing.T, f Fixture) {
	p := s.parser(t, f, nil)
	resign := f.Signature == "placeholder"
	if resign && s.Sign == nil {
		t.Skip("the signature is a placeholder, and the suite cannot sign")
	}
	request := func(body []byte) *http.Request {
		r := f.Request(body)
		if resign {
			s.Sign(t, r, body, *f.Secret, f.clock())
		}
		return r
	}
	evs, err := Receive(p, request(f.Body), f.Body)
	switch {
	case f.Signature == "invalid" || f.Signature == "missing":
		if !errors.Is(err, providers.ErrSignature) || len(evs) > 0 {
			t.Fatalf("signature %s: got %d events, %v, want ErrSignature", f.Signature, len(evs), err)
		}
		return
	case f.ExpectHTTP >= 400:
		if err == nil || len(evs) > 0 {
			t.Fatalf("got %d events, %v, want a refusal", len(evs), err)
		}
		return
	case err != nil:
		t.Fatalf("ParseWebhook: %v", err)
	}
	s.invariants(t, evs)
	s.expect(t, f, evs)

	again, err := Receive(p, request(f.Body), f.Body)
	if err != nil || !slices.Equal(ids(evs), ids(again)) {
		t.Errorf("the same request twice: ids %q and %q, %v", ids(evs), ids(again), err)
	}
	// Years later, without the credentials: a stored request has nothing that still verifies.
	stored := f.Request(nil)
	for _, h := range []string{"Authorization", "Signature", "Digest", "X-Mandrill-Signature", "X-MailPace-Signature", "X-Maileroo-Signature", "Sandbox-Signature"} {
		stored.Header.Del(h)
	}
	later, err := p.ParseWebhook(stored, f.Body)
	if err != nil || !reflect.DeepEqual(evs, later) {
		t.Errorf("read again without a signature: %+v, %v, want %+v", later, err, evs)
	}
	if f.Signature == "unsigned" || !s.Info.Webhook.Signed {
		return
	}
	s.hostile(t, f, p)
}

func (f Fixture) clock() time.Time {
	if f.Now.IsZero() {
		return now
	}
	return f.Now
}

// hostile changes a request that verifies.
func (s Suite) hostile(t *testing.T, f Fixture, p providers.WebhookParser) {
	base := f.Request(f.Body)
	if f.Signature == "placeholder" {
		s.Sign(t, base, f.Body, *f.Secret, f.clock())
	}
	refused := func(name string, p providers.WebhookParser, r *http.Request, body []byte) {
		t.Helper()
		if evs, err := Receive(p, r, body); !errors.Is(err, providers.ErrSignature) || len(evs) > 0 {
			t.Errorf("%s: got %d events, %v, want ErrSignature", name, len(evs), err)
		}
	}
	clone := func(body []byte) *http.Request {
		r := base.Clone(base.Context())
		r.Body = http.NoBody
		r.ContentLength = int64(len(body))
		return r
	}
	for _, at := range []int{0, len(f.Body) / 2, len(f.Body) - 1} {
		if at < 0 || at >= len(f.Body) {
			continue
		}
		changed := bytes.Clone(f.Body)
		changed[at] ^= 1
		refused(fmt.Sprintf("byte %d changed", at), p, clone(changed), changed)
	}
	for name, body := range map[string][]byte{"cut body": f.Body[:len(f.Body)/2], "empty body": nil, "appended": append(bytes.Clone(f.Body), ' ')} {
		if len(f.Body) > 0 {
			refused(name, p, clone(body), body)
		}
	}
	if f.Secret == nil || s.Info.Webhook.OwnKeys || f.PublicTestSecret != "" {
		return
	}
	right := secret.New(f.Secret.Value)
	for name, secrets := range map[string][]secret.String{"no secret": {}, "empty secret": {secret.New("")}} {
		if none := s.parser(t, f, secrets); none != nil {
			refused(name, none, clone(f.Body), f.Body)
		}
	}
	if s.Sign != nil {
		// Signed with an empty key: an account without a secret must not compute the same.
		forged := f.Request(f.Body)
		s.Sign(t, forged, f.Body, FixtureSecret{Kind: f.Secret.Kind, KeyID: f.Secret.KeyID}, f.clock())
		for name, secrets := range map[string][]secret.String{"no secret, empty key": {}, "empty secret, empty key": {secret.New("")}} {
			if none := s.parser(t, f, secrets); none != nil {
				refused(name, none, forged.Clone(forged.Context()), f.Body)
			}
		}
	}
	if s.Configure != nil {
		return
	}
	if f.Secret.Kind == "hmac-sha256-hex" || strings.Contains(f.Secret.Kind, "hmac") {
		other := secret.New("another-secret-of-the-account")
		if wrong := s.parser(t, f, []secret.String{other}); wrong != nil {
			refused("another secret", wrong, clone(f.Body), f.Body)
		}
		if both := s.parser(t, f, []secret.String{other, right}); both != nil {
			if err := both.VerifyWebhook(clone(f.Body), f.Body); err != nil {
				t.Errorf("rotation, the right secret second: %v", err)
			}
		}
	}
}

func ids(evs []event.Event) []string {
	out := make([]string, len(evs))
	for i, e := range evs {
		out[i] = e.ID
	}
	return out
}

var kinds = []event.Kind{
	event.Queued, event.Sent, event.Rejected, event.Failed, event.Bounced, event.Deferred, event.Delivered, event.Autoresponded, event.Opened,
	event.Clicked, event.Complained, event.Unsubscribed, event.Subscribed, event.Inbound, event.InboundFailed, event.Unknown,
}

// invariants hold for every event of every provider.
func (s Suite) invariants(t *testing.T, evs []event.Event) {
	t.Helper()
	seen := map[string]bool{}
	for i, e := range evs {
		switch {
		case e.ID == "":
			t.Errorf("event %d has no id", i)
		case seen[e.ID]:
			t.Errorf("event %d has the id of another one", i)
		case e.Account != Account || e.Provider != s.Info.Name:
			t.Errorf("event %d: account %q, provider %q", i, e.Account, e.Provider)
		case !slices.Contains(kinds, e.Kind):
			t.Errorf("event %d: kind %q", i, e.Kind)
		case e.Kind.Engagement() && (e.Action != "" || e.Status != ""):
			t.Errorf("event %d: %s has action %q and status %q", i, e.Kind, e.Action, e.Status)
		case len(e.Diagnostic) > event.MaxText || strings.ContainsAny(e.Diagnostic, "\r\n\x00\x1b"):
			t.Errorf("event %d: diagnostic is not clean: %q", i, e.Diagnostic)
		case strings.ContainsAny(e.MessageID, "<>"):
			t.Errorf("event %d: message_id %q has angle brackets", i, e.MessageID)
		}
		seen[e.ID] = true
		b, err := json.Marshal(e)
		if err != nil {
			t.Errorf("event %d: %v", i, err)
		}
		noSecret(t, "an event", string(b))
	}
}

// expect compares events with those of a fixture, in order.
func (s Suite) expect(t *testing.T, f Fixture, evs []event.Event) {
	t.Helper()
	left := evs
	for i, want := range f.Expect {
		if optional, _ := want["optional"].(bool); optional {
			if len(left) == 0 || len(s.differences(f.Name, want, left[0])) > 0 {
				continue
			}
		}
		if len(left) == 0 {
			t.Errorf("event %d is missing: want %v", i, want)
			return
		}
		for _, d := range s.differences(f.Name, want, left[0]) {
			t.Errorf("event %d: %s", i, d)
		}
		left = left[1:]
	}
	for _, e := range left {
		t.Errorf("unexpected event %s for %q", e.Kind, e.Recipient)
	}
}

func (s Suite) differences(name string, want map[string]any, e event.Event) []string {
	var out []string
	differ := func(key string, got, want any) {
		out = append(out, fmt.Sprintf("%s: got %q, want %q", key, fmt.Sprint(got), fmt.Sprint(want)))
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		v := want[key]
		if s.ignored(name, key) {
			continue
		}
		text, _ := v.(string) // "" for null: no value
		switch key {
		case "event_type":
			if string(e.Kind) != text {
				differ(key, e.Kind, v)
			}
		case "event_type_any":
			if !slices.Contains(stringList(v), string(e.Kind)) {
				differ(key, e.Kind, v)
			}
		case "recipient":
			if e.Recipient != text {
				differ(key, e.Recipient, v)
			}
		case "message_id":
			if strings.Trim(e.ProviderMessageID, "<>") != strings.Trim(text, "<>") {
				differ(key, e.ProviderMessageID, v)
			}
		case "esp_ids":
			if !slices.Contains(stringList(v), e.ProviderMessageID) {
				differ(key, e.ProviderMessageID, v)
			}
		case "event_id":
			if e.ProviderEventID != text {
				differ(key, e.ProviderEventID, v)
			}
		case "reject_reason":
			if e.RejectReason != text {
				differ(key, e.RejectReason, v)
			}
		case "timestamp", "timestamp_any":
			list := stringList(v)
			if text != "" {
				list = []string{text}
			}
			if len(list) > 0 && !slices.ContainsFunc(list, func(s string) bool {
				at, err := time.Parse(time.RFC3339Nano, s)
				return err == nil && at.Truncate(time.Second).Equal(e.Time.Truncate(time.Second))
			}) {
				differ(key, e.Time.UTC().Format(time.RFC3339Nano), v)
			}
		case "mta_response":
			if clean := event.Clean(text, event.MaxText); clean != "" && !strings.Contains(e.Diagnostic, clean) && (e.Diagnostic == "" || !strings.Contains(clean, e.Diagnostic)) {
				differ(key, e.Diagnostic, v)
			}
		case "tags":
			if !slices.Equal(e.Tags, stringList(v)) && len(e.Tags)+len(stringList(v)) > 0 {
				differ(key, e.Tags, v)
			}
		case "metadata", "metadata_contains":
			m, _ := v.(map[string]any)
			for k, x := range m {
				if e.Metadata[k] != fmt.Sprint(x) {
					differ(key, e.Metadata, v)
				}
			}
			if key == "metadata" && len(m) != len(e.Metadata) {
				differ(key, e.Metadata, v)
			}
		case "click_url":
			if e.URL != text {
				differ(key, e.URL, v)
			}
		case "user_agent":
			if e.UserAgent != text {
				differ(key, e.UserAgent, v)
			}
		case "dsn", "dsn_text":
			m, _ := v.(map[string]any)
			if a, ok := m["action"].(string); ok && e.Action != a {
				differ("dsn action", e.Action, a)
			}
			if st, ok := m["status"].(string); ok && e.Status != st {
				differ("dsn status", e.Status, st)
			}
		case "optional", "description": // a description is free text of the payload's maker
		}
	}
	return out
}

func stringList(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, x := range list {
		out = append(out, fmt.Sprint(x))
	}
	return out
}

// ReceiveInbound verifies an inbound post and reads it.
func ReceiveInbound(p providers.InboundParser, r *http.Request, body []byte) ([]providers.Inbound, error) {
	if err := p.VerifyInbound(r, body); err != nil {
		return nil, err
	}
	return p.ParseInbound(r, body)
}

// Raw is the message of a received mail.
func Raw(t testing.TB, in providers.Inbound) string {
	t.Helper()
	if in.Open == nil {
		return ""
	}
	b, err := io.ReadAll(in.Open())
	if err != nil {
		t.Errorf("read the message: %v", err)
	}
	return string(b)
}
