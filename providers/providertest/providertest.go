// Package providertest is the conformance suite of all providers that speak HTTP. A provider's test
// is one call of Run with what only the vendor knows: answers, errors, how to read a request back, webhook fixtures.
//
// The suite proves what package deliver relies on: one request per Send with an exact length, the recipients of
// the call and nobody else, capability flags that tell the truth, outcomes in the order of the recipients, every status
// classified and none Permanent by accident, redirects not followed, secrets nowhere, lost answers
// Ambiguous, webhook signatures checked and event ids stable.
package providertest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

// Key is the API key of the suite's accounts. It must never be seen outside a request.
const Key = "canary-key-7f3e9b21c4d5"

// Account is the name of the suite's accounts.
const Account = "acct"

// Suite is what the suite needs to know about a provider.
type Suite struct {
	Info providers.Info
	// Options adapts the account: settings, secrets. It is called for every provider made. BaseURL, APIKey,
	// Client, Now and Account are set already; BaseURL may get a path. nil: nothing to adapt.
	Options func(t testing.TB, o *providers.Options)
	// Success are answers to a call that was taken; the first one is the usual.
	Success []Answer
	// Errors are the documented refusals. A status that stands here may be Permanent.
	Errors []Answer
	// Read says what a captured request asks the ESP to do. It decodes the body on its own, with none
	// of the provider's code. nil: requests are not looked into (say why beside the call).
	Read func(t testing.TB, c *Call) Sent
	// UnreadableAccepted: the vendor's table says that a 2xx with an unreadable body was taken.
	UnreadableAccepted bool
	// Twin, if set, is the ESP's API twin: it has to take every mail of the suite.
	Twin func(t testing.TB) http.Handler

	// Webhooks is a folder of fixtures, NAME.body and NAME.json. "" = no webhooks.
	Webhooks string
	// Configure sets the account up for a fixture's secret; nil: a secret becomes the only WebhookSecrets entry.
	Configure func(t testing.TB, o *providers.Options, s FixtureSecret)
	// Sign signs a request as the vendor does, for fixtures whose signature is a placeholder and for
	// hostile bodies; nil: those are left out.
	Sign func(t testing.TB, r *http.Request, body []byte, s FixtureSecret, now time.Time)
	// Ignore lists keys of expected events that say something else for this provider, with the reason;
	// the key is "key" or "case/key", or "case/" for a whole case.
	Ignore map[string]string
}

// Answer is a canned answer with what Send is to make of it.
type Answer struct {
	Name   string
	Status int // 0 = 200
	Header map[string]string
	Body   string
	Reply  func(c *Call) string // instead of Body, when the answer depends on the request

	// A refusal of the whole call:
	Kind       providers.Kind
	Scope      providers.Scope
	Feature    string
	Split      bool
	Unlisted   bool
	Code       string // compared when not ""
	RetryAfter time.Duration
	// An outcome:
	MessageID string              // compared when not ""
	Verdicts  []providers.Verdict // per recipient, when not all Accepted; the mail has as many recipients
	Reasons   []string            // likewise, compared when not nil
}

func (a Answer) outcome() bool { return a.Kind == providers.Unknown }

func (a Answer) status() int {
	if a.Status == 0 {
		return http.StatusOK
	}
	return a.Status
}

// Call is a captured request.
type Call struct {
	Method string
	URL    *url.URL
	Header http.Header
	Body   []byte
	Length int64 // Content-Length as sent, -1 when it was not
}

// JSON decodes the body strictly as one value.
func (c *Call) JSON(t testing.TB, v any) {
	t.Helper()
	if err := json.Unmarshal(c.Body, v); err != nil {
		t.Fatalf("request body is not the expected JSON: %v in %.200q", err, c.Body)
	}
}

// Form decodes a form body.
func (c *Call) Form(t testing.TB) url.Values {
	t.Helper()
	v, err := url.ParseQuery(string(c.Body))
	if err != nil {
		t.Fatalf("request body is not a form: %v", err)
	}
	return v
}

// Sent is what a request asks the ESP to do, in neutral terms. What the API cannot say stays empty.
type Sent struct {
	Rcpts          []string // who receives; nil = To, Cc and Bcc together
	From, FromName string
	EnvelopeFrom   string
	To, Cc, Bcc    []string // bare addresses
	ReplyTo        []string
	Subject        string
	Text, HTML     string
	Headers        map[string][]string
	Attachments    []SentAttachment
	Tags           []string
	Metadata       map[string]string
	SendAt         time.Time
	IdempotencyKey string
	Raw            []byte // the MIME message of a raw call; then only the envelope is compared beside it
}

// SentAttachment is one attachment of a request, decoded.
type SentAttachment struct {
	Name, Type, ContentID string
	Content               []byte
}

// Decode gives an Options.Decode for a piece of TOML, as strict as the bridge's.
func Decode(text string) func(any) error {
	return func(v any) error {
		md, err := toml.Decode(text, v)
		if err != nil {
			return err
		}
		if u := md.Undecoded(); len(u) > 0 {
			return fmt.Errorf("unknown key %s", u[0])
		}
		return nil
	}
}

// now is the suite's clock.
var now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Run runs the suite.
func Run(t *testing.T, s Suite) {
	t.Run("info", s.info)
	t.Run("capabilities", s.capabilities)
	if len(s.Success) > 0 {
		t.Run("send", s.send)
		t.Run("features", s.features)
		t.Run("answers", s.answers)
		t.Run("statuses", s.statuses)
		t.Run("unreadable", s.unreadable)
		t.Run("redirects", s.redirects)
		t.Run("secrets", s.secrets)
		t.Run("connections", s.connections)
		t.Run("tls", s.tls)
	}
	if s.Twin != nil {
		t.Run("twin", s.twin)
	}
	if s.Webhooks != "" {
		t.Run("webhooks", s.webhooks)
	}
}

// New makes the provider for an API at baseURL reached through rt (nil = the network).
func (s Suite) New(t testing.TB, baseURL string, rt http.RoundTripper) providers.Provider {
	t.Helper()
	o := s.options(t, baseURL, rt)
	p, err := s.Info.New(o)
	if err != nil {
		t.Fatalf("New: %v", err)
	}
	return p
}

func (s Suite) options(t testing.TB, baseURL string, rt http.RoundTripper) providers.Options {
	o := providers.Options{
		Account: Account, Hostname: "bridge.example.com", APIKey: secret.New(Key), BaseURL: baseURL,
		Tolerance: 5 * time.Minute, Now: func() time.Time { return now },
	}
	if rt != nil {
		o.Client = &http.Client{Transport: rt}
	} else {
		c, err := safehttp.New(safehttp.Config{Proxy: "none"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.CloseIdleConnections)
		o.Client = c
	}
	if s.Options != nil {
		s.Options(t, &o)
	}
	return o
}

func (s Suite) info(t *testing.T) {
	i := s.Info
	if i.Name == "" || strings.Trim(i.Name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		t.Errorf("Name %q is not lower case without dashes", i.Name)
	}
	if i.Title == "" || i.New == nil {
		t.Error("Title or New is missing")
	}
	if !i.Local {
		for what, u := range map[string]string{"DocURL": i.DocURL, "BaseURL": i.BaseURL} {
			if !strings.HasPrefix(u, "https://") {
				t.Errorf("%s %q is not https", what, u)
			}
		}
		o := s.options(t, "", nil)
		o.APIKey = secret.String{}
		if _, err := i.New(o); err == nil {
			t.Error("an account without a key was taken")
		}
	}
	o := s.options(t, "http://127.0.0.1:1", nil)
	o.Decode = Decode("no_such_setting_of_any_provider = 1")
	if _, err := i.New(o); err == nil {
		t.Error("an unknown setting was taken: DecodeOptions is not called, or its error is lost")
	}
	o.Decode = nil
	if p, err := i.New(o); err == nil {
		if _, ok := p.(providers.WebhookParser); ok != (s.Webhooks != "") {
			t.Errorf("ParseWebhook exists: %v, but the suite has fixtures: %v", ok, s.Webhooks != "")
		}
	}
}

// capabilities checks that the flags do not contradict each other.
func (s Suite) capabilities(t *testing.T) {
	c := s.New(t, "http://127.0.0.1:1", nil).Capabilities()
	for _, tt := range []struct {
		bad  bool
		text string
	}{
		{!c.JSON && c.Raw == translate.RawNone, "nothing can be sent: neither JSON nor Raw"},
		{c.Raw == translate.RawNone && (c.RawString || c.RawFeatures || len(c.RawOptions) > 0), "raw details without Raw"},
		{c.MaxRcpts > 0 && max(c.MaxTo, c.MaxCc, c.MaxBcc) > c.MaxRcpts, "a part limit is above MaxRcpts"},
		{c.Headers == translate.HeadersListed && len(c.HeaderList) == 0, "HeadersListed without a list"},
		{c.Headers != translate.HeadersListed && len(c.HeaderList) > 0, "HeaderList without HeadersListed"},
		{c.Headers == translate.HeadersNone && c.HeaderOnce, "HeaderOnce without headers"},
		{c.InlineImages && !c.Inline, "InlineImages without Inline"},
		{c.NullSender && !c.EnvelopeFrom, "NullSender without EnvelopeFrom"},
		{c.ReplyTo < -1 || c.Tags < -1 || c.MaxRcpts < 0 || c.MaxBytes < 0 || c.SendAt < 0 || c.IdempotencyTTL < 0, "a negative limit"},
		{c.MetadataTags && !c.Metadata, "MetadataTags without Metadata"},
		{slices.ContainsFunc(slices.Concat(c.HeaderList, c.RawOptions, c.AttachExts), func(s string) bool { return s != strings.ToLower(s) }), "a list is not lower case"},
		{c.TrackTogether && (!c.TrackOpens || !c.TrackClicks), "TrackTogether without both switches"},
		{!c.JSON && (c.HeaderTo || c.Cc || c.Bcc) && c.Raw != translate.RawNone, "to, cc and bcc of a structured form that does not exist"},
	} {
		if tt.bad {
			t.Error(tt.text)
		}
	}
}

// recorder answers by reply and keeps every request.
type recorder struct {
	mu    sync.Mutex
	calls []*Call
	reply func(c *Call) Answer
}

func (r *recorder) take(req *http.Request, body []byte) Answer {
	c := &Call{Method: req.Method, URL: req.URL, Header: http.Header{}, Body: body, Length: req.ContentLength}
	for k, v := range req.Header {
		c.Header[http.CanonicalHeaderKey(k)] = slices.Clone(v)
	}
	if len(req.TransferEncoding) > 0 {
		c.Length = -1
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
	return r.reply(c)
}

func (r *recorder) taken() []*Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

func (a Answer) text(c *Call) string {
	if a.Reply != nil {
		return a.Reply(c)
	}
	return a.Body
}

// ServeHTTP is the recorder as a server.
func (r *recorder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	a := r.take(req, body)
	text := a.text(&Call{Method: req.Method, URL: req.URL, Header: req.Header, Body: body})
	w.Header().Set("Content-Type", contentType(text))
	for k, v := range a.Header {
		w.Header().Set(k, v)
	}
	w.WriteHeader(a.status())
	io.WriteString(w, text)
}

func contentType(body string) string {
	if strings.HasPrefix(strings.TrimSpace(body), "<") {
		return "text/html"
	}
	return "application/json"
}

// RoundTrip is the recorder without a network, for statuses a server cannot send.
func (r *recorder) RoundTrip(req *http.Request) (*http.Response, error) {
	var body []byte
	if req.Body != nil {
		var err error
		body, err = io.ReadAll(req.Body)
		req.Body.Close()
		if err != nil {
			return nil, err
		}
	}
	a := r.take(req, body)
	text := a.text(&Call{Method: req.Method, URL: req.URL, Header: req.Header, Body: body})
	resp := &http.Response{
		StatusCode: a.status(), Status: fmt.Sprint(a.status()), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: http.Header{"Content-Type": {contentType(text)}}, Body: io.NopCloser(strings.NewReader(text)), ContentLength: int64(len(text)), Request: req,
	}
	for k, v := range a.Header {
		resp.Header.Set(k, v)
	}
	return resp, nil
}

// send sends every message of the suite and looks at the requests.
func (s Suite) send(t *testing.T) {
	rec := &recorder{reply: func(*Call) Answer { return s.Success[0] }}
	srv := httptest.NewServer(rec)
	defer srv.Close()
	p := s.New(t, srv.URL, nil)
	caps := p.Capabilities()
	for _, msg := range Messages() {
		t.Run(msg.Name, func(t *testing.T) {
			mails := msg.Plan(t, caps)
			seen := map[string]int{}
			for _, m := range mails {
				for _, r := range m.Rcpts {
					seen[r.Addr]++
				}
				c := s.one(t, p, rec, m)
				s.compare(t, caps, m, c)
			}
			for _, r := range msg.Rcpts {
				if seen[r] != 1 {
					t.Errorf("%s is in %d calls", r, seen[r])
				}
			}
		})
	}
}

// one sends m twice and checks what holds for each call of each provider.
func (s Suite) one(t *testing.T, p providers.Provider, rec *recorder, m *translate.Mail) *Call {
	t.Helper()
	rec.taken()
	var first *Call
	for range 2 {
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatalf("Send: %v", err)
		}
		CheckOutcome(t, m, out)
		calls := rec.taken()
		if len(calls) != 1 {
			t.Fatalf("%d requests for one Send", len(calls))
		}
		c := calls[0]
		if c.Length != int64(len(c.Body)) {
			t.Errorf("Content-Length is %d, the body has %d bytes", c.Length, len(c.Body))
		}
		if first == nil {
			first = c
			continue
		}
		if c.URL.String() != first.URL.String() || !bytes.Equal(withoutBoundary(c), withoutBoundary(first)) {
			t.Error("a repeated Send makes another request: rendering is not deterministic")
		}
	}
	if pr, ok := p.(providers.Preparer); ok {
		r, err := pr.Prepare(m)
		if err != nil {
			t.Fatalf("Prepare: %v", err)
		}
		var body []byte
		if r.Body != nil {
			if body, err = io.ReadAll(r.Body); err != nil {
				t.Fatal(err)
			}
		}
		noSecret(t, "Prepare", fmt.Sprint(r.URL, r.URL.RawQuery, r.Header, string(body)))
		prepared := &Call{Header: r.Header, Body: body}
		if want := bytes.ReplaceAll(withoutBoundary(first), []byte(Key), []byte("<secret>")); !bytes.Equal(withoutBoundary(prepared), want) {
			t.Error("Prepare shows another body than Send sends")
		}
		if r.Method != first.Method || r.URL.Path != first.URL.Path {
			t.Errorf("Prepare shows %s %s, Send made %s %s", r.Method, r.URL.Path, first.Method, first.URL.Path)
		}
		if r.ContentLength != int64(len(body)) {
			t.Errorf("Prepare has Content-Length %d for %d bytes", r.ContentLength, len(body))
		}
	} else {
		t.Error("Prepare is missing: explain cannot show this provider's requests")
	}
	return first
}

// withoutBoundary is the body with a multipart boundary, which is random, replaced.
func withoutBoundary(c *Call) []byte {
	if _, b, ok := strings.Cut(c.Header.Get("Content-Type"), "boundary="); ok {
		return bytes.ReplaceAll(c.Body, []byte(strings.Trim(b, `"`)), []byte("boundary"))
	}
	return c.Body
}

// CheckOutcome checks that an outcome fits its mail.
func CheckOutcome(t testing.TB, m *translate.Mail, o *providers.Outcome) {
	t.Helper()
	if o == nil {
		t.Fatal("neither an outcome nor an error")
	}
	if len(o.Rcpts) != len(m.Rcpts) {
		t.Fatalf("%d recipients, %d outcomes", len(m.Rcpts), len(o.Rcpts))
	}
	for i, r := range m.Rcpts {
		if o.Rcpts[i].Addr != r.Addr {
			t.Errorf("outcome %d is for %s, the recipient is %s", i, o.Rcpts[i].Addr, r.Addr)
		}
	}
	noSecret(t, "the outcome", fmt.Sprintf("%+v", *o))
}

func noSecret(t testing.TB, where, text string) {
	t.Helper()
	for _, form := range []string{Key, url.QueryEscape(Key)} {
		if strings.Contains(text, form) {
			t.Errorf("the key is in %s: %.300s", where, text)
			return
		}
	}
}

func asError(t testing.TB, name string, err error) *providers.Error {
	t.Helper()
	var e *providers.Error
	if !errors.As(err, &e) {
		t.Fatalf("%s: got %v, want a *providers.Error", name, err)
	}
	if e.Provider == "" || e.Op == "" {
		t.Errorf("%s: provider or operation is missing in %v", name, err)
	}
	noSecret(t, "an error", err.Error()+e.Msg+e.Code)
	return e
}

// answers plays the documented answers.
func (s Suite) answers(t *testing.T) {
	for _, a := range append(slices.Clone(s.Success), s.Errors...) {
		t.Run(a.Name, func(t *testing.T) {
			rec := &recorder{reply: func(*Call) Answer { return a }}
			p := s.New(t, "http://api.invalid", rec)
			n := max(len(a.Verdicts), 1)
			m := Plain(t, p.Capabilities(), n)
			out, err := p.Send(t.Context(), m)
			if !a.outcome() {
				if err == nil {
					t.Fatalf("got %+v, want an error of kind %v", *out, a.Kind)
				}
				e := asError(t, a.Name, err)
				if e.Kind != a.Kind || e.Scope != a.Scope || e.Split != a.Split || e.Feature != a.Feature || e.Unlisted != a.Unlisted || e.HTTPStatus != a.status() {
					t.Errorf("got %v: kind %v, scope %v, feature %q, split %v, unlisted %v, status %d\nwant kind %v, scope %v, feature %q, split %v, unlisted %v, status %d",
						e, e.Kind, e.Scope, e.Feature, e.Split, e.Unlisted, e.HTTPStatus, a.Kind, a.Scope, a.Feature, a.Split, a.Unlisted, a.status())
				}
				if a.Code != "" && e.Code != a.Code {
					t.Errorf("got code %q, want %q", e.Code, a.Code)
				}
				if a.RetryAfter != 0 && e.RetryAfter != a.RetryAfter {
					t.Errorf("got RetryAfter %v, want %v", e.RetryAfter, a.RetryAfter)
				}
				return
			}
			if err != nil {
				t.Fatalf("Send: %v", err)
			}
			CheckOutcome(t, m, out)
			if a.MessageID != "" && out.MessageID != a.MessageID {
				t.Errorf("got MessageID %q, want %q", out.MessageID, a.MessageID)
			}
			for i, r := range out.Rcpts {
				want := providers.Accepted
				if a.Verdicts != nil {
					want = a.Verdicts[i]
				}
				if r.Verdict != want {
					t.Errorf("%s: got verdict %d, want %d", r.Addr, r.Verdict, want)
				}
				if a.Reasons != nil && r.Reason != a.Reasons[i] {
					t.Errorf("%s: got reason %q, want %q", r.Addr, r.Reason, a.Reasons[i])
				}
			}
		})
	}
}

// permanent lists the statuses of the common table that mean Permanent.
var permanent = []int{400, 406, 409, 410, 411, 413, 414, 415, 422, 451}

// statuses plays every status with bodies that say nothing.
func (s Suite) statuses(t *testing.T) {
	var a Answer
	rec := &recorder{reply: func(*Call) Answer { return a }}
	p := s.New(t, "http://api.invalid", rec)
	m := Plain(t, p.Capabilities(), 2)
	may := slices.Clone(permanent)
	for _, e := range s.Errors {
		if e.Kind == providers.Permanent {
			may = append(may, e.status())
		}
	}
	for status := 100; status < 600; status++ {
		for _, body := range []string{"", "<html><body>Bad gateway</body></html>", `{"error":{"x":[1]},"errors":"y","message":7,"status":null}`, "[]", "null"} {
			a = Answer{Status: status, Body: body}
			out, err := p.Send(t.Context(), m)
			ok := status >= 200 && status < 300
			switch {
			case err == nil && !ok:
				t.Fatalf("%d with %q: taken as success: %+v", status, body, *out)
			case err == nil:
				CheckOutcome(t, m, out)
				for _, r := range out.Rcpts {
					if r.Verdict == providers.Rejected {
						t.Errorf("%d with %q: %s was rejected", status, body, r.Addr)
					}
				}
			default:
				e := asError(t, fmt.Sprint(status), err)
				switch {
				case ok && e.Kind == providers.Permanent:
					t.Errorf("%d with %q: Permanent", status, body)
				case e.Kind == providers.Permanent && !slices.Contains(may, status):
					t.Errorf("%d with %q: Permanent outside the table", status, body)
				case e.Kind == providers.Unknown:
					t.Errorf("%d with %q: not classified", status, body)
				case !ok && e.Kind == providers.Ambiguous:
					t.Errorf("%d with %q: Ambiguous although the ESP said no", status, body)
				case e.HTTPStatus != status:
					t.Errorf("%d: HTTPStatus is %d", status, e.HTTPStatus)
				}
			}
		}
	}
	for _, status := range []int{429, 503} {
		a = Answer{Status: status, Header: map[string]string{"Retry-After": "17"}}
		_, err := p.Send(t.Context(), m)
		if e := asError(t, fmt.Sprint(status), err); e.Kind != providers.RateLimited || e.RetryAfter != 17*time.Second {
			t.Errorf("%d with Retry-After: got %v, %v", status, e, e.RetryAfter)
		}
	}
}

// unreadable plays a 200 whose body cannot be understood.
func (s Suite) unreadable(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "html": "<html><h1>Welcome</h1></html>", "cut": `{"id":"abc`, "text": "OK", "number": "7", "array of nulls": "[null,null]",
		"deep": strings.Repeat(`{"a":`, 20000), "endless": strings.Repeat("garbage ", 1<<18), "nul": "\x00\x00\xff",
	} {
		t.Run(name, func(t *testing.T) {
			rec := &recorder{reply: func(*Call) Answer { return Answer{Body: body} }}
			p := s.New(t, "http://api.invalid", rec)
			m := Plain(t, p.Capabilities(), 2)
			out, err := p.Send(t.Context(), m)
			if s.UnreadableAccepted {
				if err != nil {
					t.Fatalf("got %v, the suite says accepted", err)
				}
				CheckOutcome(t, m, out)
				return
			}
			if err == nil {
				t.Fatalf("taken as success: %+v", *out)
			}
			if e := asError(t, name, err); e.Kind != providers.Ambiguous {
				t.Errorf("got %v, want Ambiguous", e)
			}
		})
	}
}

// redirects are never followed.
func (s Suite) redirects(t *testing.T) {
	var hits atomic.Int32
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer other.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		rec := &recorder{reply: func(*Call) Answer {
			return Answer{Status: status, Header: map[string]string{"Location": other.URL + "/v1"}}
		}}
		srv := httptest.NewServer(rec)
		p := s.New(t, srv.URL, nil)
		_, err := p.Send(t.Context(), Plain(t, p.Capabilities(), 1))
		srv.Close()
		if e := asError(t, fmt.Sprint(status), err); e.Kind != providers.Transient && e.Kind != providers.Operator {
			t.Errorf("%d: got %v", status, e)
		}
		if n := len(rec.taken()); n != 1 || hits.Load() != 0 {
			t.Errorf("%d: %d requests, %d to the other host", status, n, hits.Load())
		}
	}
}

// secrets has the ESP echo the key in every place.
func (s Suite) secrets(t *testing.T) {
	for _, status := range []int{200, 202, 400, 401, 403, 404, 409, 418, 422, 429, 500, 503} {
		for _, body := range []string{
			"invalid key " + Key,
			fmt.Sprintf(`{"error":%[1]q,"message":%[1]q,"errors":{"from":[%[1]q]},"code":%[1]q,"name":%[1]q,"status":"error"}`, "bad "+Key),
			fmt.Sprintf(`{"error":{"message":%[1]q,"code":%[1]q},"success":false}`, Key),
			fmt.Sprintf(`{"errors":[{"message":%[1]q,"field":%[1]q}],"messages":[%[1]q]}`, Key),
		} {
			rec := &recorder{reply: func(*Call) Answer {
				return Answer{Status: status, Body: body, Header: map[string]string{"X-Message-Id": "id", "Location": "/" + Key}}
			}}
			p := s.New(t, "http://api.invalid", rec)
			m := Plain(t, p.Capabilities(), 1)
			if out, err := p.Send(t.Context(), m); err != nil {
				asError(t, fmt.Sprint(status), err)
			} else {
				CheckOutcome(t, m, out)
			}
		}
	}
	// As the id of a call that was taken.
	if id := s.Success[0].MessageID; id != "" {
		rec := &recorder{reply: func(c *Call) Answer {
			a := s.Success[0]
			a.Body, a.Reply = strings.ReplaceAll(a.text(c), id, Key), nil
			return a
		}}
		p := s.New(t, "http://api.invalid", rec)
		m := Plain(t, p.Capabilities(), 1)
		if out, err := p.Send(t.Context(), m); err != nil {
			asError(t, "key as id", err)
		} else {
			CheckOutcome(t, m, out)
		}
	}
	// A failed connection: net/http puts the URL into its errors.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	base := "http://" + l.Addr().String()
	l.Close()
	p := s.New(t, base, nil)
	_, err = p.Send(t.Context(), Plain(t, p.Capabilities(), 1))
	if e := asError(t, "refused", err); e.Kind != providers.Transient {
		t.Errorf("connection refused: got %v, want Transient", e)
	}
}

// connections ends calls before and after the request was written.
func (s Suite) connections(t *testing.T) {
	t.Run("answer lost", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				c.Close()
			}
		}))
		defer srv.Close()
		p := s.New(t, srv.URL, nil)
		_, err := p.Send(t.Context(), Plain(t, p.Capabilities(), 1))
		if e := asError(t, "answer lost", err); e.Kind != providers.Ambiguous {
			t.Errorf("got %v, want Ambiguous", e)
		}
	})
	t.Run("reset within the answer", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			w.Header().Set("Content-Length", "1000")
			io.WriteString(w, `{"`)
		}))
		defer srv.Close()
		p := s.New(t, srv.URL, nil)
		m := Plain(t, p.Capabilities(), 1)
		out, err := p.Send(t.Context(), m)
		if s.UnreadableAccepted {
			if err != nil {
				t.Fatalf("got %v, the suite says accepted", err)
			}
			CheckOutcome(t, m, out)
		} else if e := asError(t, "reset within the answer", err); e.Kind != providers.Ambiguous {
			t.Errorf("got %v, want Ambiguous", e)
		}
	})
	t.Run("ended before", func(t *testing.T) {
		rec := &recorder{reply: func(*Call) Answer { return s.Success[0] }}
		srv := httptest.NewServer(rec)
		defer srv.Close()
		p := s.New(t, srv.URL, nil)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.Send(ctx, Plain(t, p.Capabilities(), 1))
		if e := asError(t, "ended before", err); e.Kind != providers.Transient {
			t.Errorf("got %v, want Transient", e)
		}
		if n := len(rec.taken()); n != 0 {
			t.Errorf("%d requests", n)
		}
	})
	t.Run("ended after", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			cancel()
			<-r.Context().Done()
		}))
		defer srv.Close()
		p := s.New(t, srv.URL, nil)
		_, err := p.Send(ctx, Plain(t, p.Capabilities(), 1))
		if e := asError(t, "ended after", err); e.Kind != providers.Ambiguous {
			t.Errorf("got %v, want Ambiguous", e)
		}
	})
	t.Run("reset within the upload", func(t *testing.T) {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.CopyN(io.Discard, r.Body, 1000)
			if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}))
		defer srv.Close()
		p := s.New(t, srv.URL, nil)
		_, err := p.Send(t.Context(), Large(t, p.Capabilities()))
		if e := asError(t, "reset", err); e.Kind != providers.Transient {
			t.Errorf("got %v, want Transient", e)
		}
	})
}

// twin sends every message to the ESP's twin.
func (s Suite) twin(t *testing.T) {
	srv := httptest.NewServer(s.Twin(t))
	defer srv.Close()
	p := s.New(t, srv.URL, nil)
	for _, msg := range Messages() {
		for _, m := range msg.Plan(t, p.Capabilities()) {
			out, err := p.Send(t.Context(), m)
			if err != nil {
				t.Errorf("%s: the twin refuses: %v", msg.Name, err)
				continue
			}
			CheckOutcome(t, m, out)
			for _, r := range out.Rcpts {
				if r.Verdict != providers.Accepted {
					t.Errorf("%s: %s: verdict %d: %s", msg.Name, r.Addr, r.Verdict, r.Detail)
				}
			}
		}
	}
	if c, ok := p.(providers.Checker); ok {
		if err := c.Check(t.Context()); err != nil {
			t.Errorf("Check: %v", err)
		}
	}
	if s.Info.Local {
		return
	}
	o := s.options(t, srv.URL, nil)
	o.APIKey = secret.New("some-other-key-000")
	wrong, err := s.Info.New(o)
	if err != nil {
		t.Fatal(err)
	}
	_, err = wrong.Send(t.Context(), Plain(t, p.Capabilities(), 1))
	if e := asError(t, "wrong key", err); e.Kind != providers.Operator {
		t.Errorf("wrong key: got %v, want Operator", e)
	}
}

// Canned is a transport that answers every request so.
func Canned(status int, body string) http.RoundTripper {
	return &recorder{reply: func(*Call) Answer { return Answer{Status: status, Body: body} }}
}
