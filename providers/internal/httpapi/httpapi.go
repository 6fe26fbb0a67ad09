// Package httpapi makes the one HTTP request of a provider's call and classifies what came back.
//
// It knows when a request surely did not arrive (Transient), when it may have arrived (Ambiguous)
// and what a status means where the vendor's own table says nothing. Request bodies are segments
// with an exact length, streamed and reopenable; answers are read to a limit. The key never appears in an error.
package httpapi

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
)

// MaxResponse bounds how much of an answer is read, after decompression.
const MaxResponse = 1 << 20

// Default time limits.
const (
	DefaultAnswerTimeout = 60 * time.Second
	DefaultStallTimeout  = 60 * time.Second
)

// MaxRetryAfter caps what an ESP may ask for.
const MaxRetryAfter = time.Hour

// Client talks to one account's API. It is safe for concurrent use.
type Client struct {
	Provider string // error prefix
	HTTP     *http.Client
	Secrets  []secret.String // redacted from every error and answer text
	Now      func() time.Time
	// AnswerTimeout is the time from the last byte written to the end of the answer; default 60 s.
	AnswerTimeout time.Duration
	// StallTimeout is how long the upload may stand still, and how long a connection may take; default 60 s.
	StallTimeout time.Duration
}

// New makes the client of one account. The API key, webhook and inbound secrets of o are redacted, and
// so are those in more (a second key, a password of the options).
func New(provider string, o providers.Options, more ...secret.String) *Client {
	c := &Client{Provider: provider, HTTP: o.Client, Now: o.Now}
	c.Secrets = append(c.Secrets, o.APIKey)
	c.Secrets = append(c.Secrets, o.WebhookSecrets...)
	c.Secrets = append(c.Secrets, o.InboundSecrets...)
	c.Secrets = append(c.Secrets, more...)
	if c.HTTP == nil {
		h, err := safehttp.New(safehttp.Config{})
		if err != nil {
			panic(err) // only a proxy setting can be wrong, and there is none
		}
		c.HTTP = h
	}
	return c
}

// Response is an answer that arrived.
type Response struct {
	Status    int
	Header    http.Header
	Body      []byte // at most MaxResponse
	Truncated bool   // the answer was longer, or broke off: Body is what came
	Err       error  // why reading the body ended early, nil usually
}

// OK reports a 2xx status.
func (r *Response) OK() bool { return r.Status >= 200 && r.Status < 300 }

// JSON reads the body as one complete JSON value. Unknown fields are ignored: vendors add them.
func (r *Response) JSON(v any) error {
	if r.Truncated {
		return errors.New("the answer is incomplete")
	}
	if len(bytes.TrimSpace(r.Body)) == 0 {
		return errors.New("the answer is empty")
	}
	if err := json.Unmarshal(r.Body, v); err != nil {
		var typ *json.UnmarshalTypeError
		if errors.As(err, &typ) {
			return fmt.Errorf("the answer has a %s where a %s is expected", typ.Value, typ.Type.Kind())
		}
		return errors.New("the answer is not JSON")
	}
	return nil
}

// Request is one call.
type Request struct {
	Op     string // "send"
	Method string
	URL    string
	Header http.Header
	Body   *Body // nil = none
	// MaxResponse bounds the answer; 0 = the package's MaxResponse.
	MaxResponse int64
}

// Errors that end a call by time.
var (
	errStalled  = errors.New("no byte was accepted for too long")
	errNoAnswer = errors.New("no answer in time")
)

// chunk bounds what one Read hands to the transport, so that progress is seen on slow links.
const chunk = 16 << 10

// call follows one request: what was written, and whether time is up.
type call struct {
	mu      sync.Mutex
	cancel  context.CancelCauseFunc
	timer   *time.Timer
	stall   time.Duration
	answer  time.Duration
	eof     bool // the whole body was handed to the transport
	wrote   bool // the transport says that it was written
	failed  bool // the transport says that it was not
	waiting bool // for the answer
}

func (w *call) expire() {
	w.mu.Lock()
	err := errStalled
	if w.waiting {
		err = errNoAnswer
	}
	w.mu.Unlock()
	w.cancel(err)
}

func (w *call) progress() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.waiting {
		w.timer.Reset(w.stall)
	}
}

// awaitAnswer starts the time limit of the answer, once.
func (w *call) awaitAnswer() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.waiting {
		w.waiting = true
		w.timer.Reset(w.answer)
	}
}

func (w *call) bodyDone() {
	w.mu.Lock()
	w.eof = true
	w.mu.Unlock()
	w.progress()
}

func (w *call) wroteRequest(i httptrace.WroteRequestInfo) {
	w.mu.Lock()
	w.wrote, w.failed = i.Err == nil, i.Err != nil
	w.mu.Unlock()
	if i.Err == nil {
		w.awaitAnswer()
	}
}

// restart is a new attempt of the transport on another connection, after one on which surely nothing was written.
func (w *call) restart() {
	w.mu.Lock()
	w.eof, w.wrote, w.failed, w.waiting = false, false, false, false
	w.mu.Unlock()
	w.progress()
}

// written reports whether the ESP may have the whole request.
func (w *call) written() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wrote || w.eof && !w.failed
}

// trackedBody tells the call how far the transport has read.
type trackedBody struct {
	io.ReadCloser
	call *call
}

func (b *trackedBody) Read(p []byte) (int, error) {
	b.call.progress()
	if len(p) > chunk {
		p = p[:chunk]
	}
	n, err := b.ReadCloser.Read(p)
	if err == io.EOF {
		b.call.bodyDone()
	}
	return n, err
}

// Do makes the request, once, following no redirect. The error, if there is no answer at all, is a *providers.Error of kind
// Transient (the request was not fully written) or Ambiguous (it was).
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) {
	fail := func(kind providers.Kind, err error) error {
		return &providers.Error{Provider: c.Provider, Op: r.Op, Kind: kind, Err: c.redactError(err)}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &call{cancel: cancel, stall: c.StallTimeout, answer: c.AnswerTimeout}
	if w.stall <= 0 {
		w.stall = DefaultStallTimeout
	}
	if w.answer <= 0 {
		w.answer = DefaultAnswerTimeout
	}
	w.timer = time.AfterFunc(w.stall, w.expire)
	defer w.timer.Stop()

	req, err := newRequest(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:      func(httptrace.GotConnInfo) { w.progress() },
		WroteRequest: w.wroteRequest,
	}), r)
	if err != nil {
		return nil, fail(providers.Transient, err)
	}
	if r.Body != nil {
		open := func() io.ReadCloser { return &trackedBody{r.Body.Open(), w} }
		req.Body = open()
		req.GetBody = func() (io.ReadCloser, error) {
			w.restart()
			return open(), nil
		}
		if req.ContentLength == 0 {
			req.Body, req.GetBody = http.NoBody, nil
		}
	}
	// The transport alone: no redirect, cookie or total time limit of http.Client has a say here.
	transport := c.HTTP.Transport
	if transport == nil {
		transport = http.DefaultTransport
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		if w.written() {
			return nil, fail(providers.Ambiguous, err)
		}
		return nil, fail(providers.Transient, err)
	}
	defer resp.Body.Close()
	w.awaitAnswer()
	out := &Response{Status: resp.StatusCode, Header: resp.Header}
	limit := r.MaxResponse
	if limit <= 0 {
		limit = MaxResponse
	}
	out.Body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		out.Truncated, out.Err = true, c.redactError(err)
	}
	if int64(len(out.Body)) > limit {
		out.Body, out.Truncated = out.Body[:limit], true
		out.Err = fmt.Errorf("the answer is longer than %d bytes", limit)
	}
	return out, nil
}

// newRequest builds the request without its body's stream.
func newRequest(ctx context.Context, r Request) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, nil)
	if err != nil {
		return nil, errors.New("the account's base_url does not make a valid URL")
	}
	if req.URL.Scheme != "https" && req.URL.Scheme != "http" || req.URL.Host == "" {
		return nil, errors.New("the account's base_url is not of the form https://host")
	}
	maps.Copy(req.Header, r.Header)
	for _, name := range []string{"Idempotency-Key", "X-Idempotency-Key"} {
		if v, ok := req.Header[name]; ok {
			// QUIRK: net/http sends a request with this header again by itself when a reused connection
			// breaks, even after it was written (Request.isReplayable, golang.org/issue/19943). It looks for
			// the canonical spelling only; names are case-insensitive on the wire (RFC 9110 5.1).
			delete(req.Header, name)
			req.Header[strings.ToLower(name)] = v
		}
	}
	if r.Body != nil {
		req.ContentLength = r.Body.Size()
		if r.Body.ContentType != "" && req.Header.Get("Content-Type") == "" {
			req.Header.Set("Content-Type", r.Body.ContentType)
		}
	}
	return req, nil
}

// Prepare builds the request of a call without sending it, with every secret shown as <secret>, for
// providers.Preparer. Its Content-Length is that of the masked body.
func (c *Client) Prepare(r Request) (*http.Request, error) {
	body := r.Body
	if body != nil {
		masked := &Body{ContentType: body.ContentType, segs: make([]segment, len(body.segs))}
		for i, s := range body.segs {
			if s.open == nil {
				s.mem = []byte(c.Redact(string(s.mem)))
			}
			masked.segs[i] = s
		}
		body, r.Body = masked, masked
	}
	req, err := newRequest(context.Background(), r)
	if err != nil {
		return nil, err
	}
	req.URL.RawQuery = c.Redact(req.URL.RawQuery)
	if p := c.Redact(req.URL.Path); p != req.URL.Path {
		req.URL.Path, req.URL.RawPath = p, ""
	}
	if req.URL.User != nil {
		req.URL.User = url.User("secret")
	}
	header := make(http.Header, len(req.Header))
	for name, values := range req.Header {
		for _, v := range values {
			if credentialHeader(name) {
				v = Mask
			}
			header[http.CanonicalHeaderKey(name)] = append(header[http.CanonicalHeaderKey(name)], c.Redact(v))
		}
	}
	req.Header = header
	if body != nil {
		req.Body = body.Open()
		req.GetBody = func() (io.ReadCloser, error) { return body.Open(), nil }
	}
	return req, nil
}

// Mask stands for a secret.
const Mask = "<secret>"

// credentialHeader reports a header whose whole value is a credential by its name.
func credentialHeader(name string) bool {
	name = strings.ToLower(name)
	switch name {
	case "authorization", "proxy-authorization", "cookie":
		return true
	}
	return strings.HasSuffix(name, "-token") || strings.HasSuffix(name, "api-key") || strings.HasSuffix(name, "apikey") || strings.HasSuffix(name, "-secret")
}

// Redact replaces the client's secrets in text, in each form in which a URL, a JSON string or a
// vendor's echo may hold them.
func (c *Client) Redact(text string) string {
	for _, s := range c.Secrets {
		plain := s.Reveal()
		if len(plain) < 4 {
			continue
		}
		text = secret.Redact(text, s)
		quoted, _ := Marshal(plain)
		for _, form := range []string{
			url.QueryEscape(plain), url.PathEscape(plain), strings.Trim(string(quoted), `"`),
			base64.StdEncoding.EncodeToString([]byte(plain)), base64.URLEncoding.EncodeToString([]byte(plain)),
			base64.StdEncoding.EncodeToString([]byte("api:" + plain)),
		} {
			if form != plain {
				text = strings.ReplaceAll(text, form, Mask)
			}
		}
	}
	return text
}

// Clean makes an ESP's text fit for an error, an event or a reply: redacted, one line, cut.
func (c *Client) Clean(text string) string {
	if len(text) > MaxResponse {
		text = text[:MaxResponse]
	}
	return event.Clean(c.Redact(text), event.MaxText)
}

// redacted is an error without secrets that still answers errors.Is.
type redacted struct {
	msg string
	err error
}

func (e *redacted) Error() string        { return e.msg }
func (e *redacted) Is(target error) bool { return errors.Is(e.err, target) }

// redactError drops the URL that net/http puts before its errors, as tokens stand in queries, and
// redacts the rest.
func (c *Client) redactError(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	return &redacted{c.Clean(err.Error()), err}
}

// Classify gives the *providers.Error for an answer that is not a success, by the common table of statuses:
// 401, 402, 403, 404, 407 Operator; 408, 421, 425, 5xx Transient; 429 RateLimited; 503 with Retry-After RateLimited;
// 400, 406, 409, 410, 411, 413, 414, 415, 422, 451 Permanent; other 4xx Transient and Unlisted; 3xx Transient; a 2xx that could not be read Ambiguous.
// msg is the vendor's text, cleaned and redacted here. Retry-After is parsed and capped.
func (c *Client) Classify(op string, resp *Response, code, msg string) *providers.Error {
	e := &providers.Error{
		Provider: c.Provider, Op: op, HTTPStatus: resp.Status,
		Code: event.Clean(c.Redact(code), 64), Msg: c.Clean(msg), Err: resp.Err,
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	e.Kind, e.Unlisted = statusKind(resp.Status)
	switch resp.Status {
	case http.StatusTooManyRequests:
		e.RetryAfter = RetryAfter(resp.Header, now(), 0)
	case http.StatusServiceUnavailable:
		if resp.Header.Get("Retry-After") != "" {
			e.Kind, e.RetryAfter = providers.RateLimited, RetryAfter(resp.Header, now(), 0)
		}
	}
	if resp.Status >= 300 && resp.Status < 400 && e.Msg == "" {
		e.Msg = "the API answers with a redirect, which is not followed; check base_url"
	}
	return e
}

// statusKind is the common table.
func statusKind(status int) (k providers.Kind, unlisted bool) {
	switch status {
	case 401, 402, 403, 404, 407:
		return providers.Operator, false
	case 408, 421, 425:
		return providers.Transient, false
	case 429:
		return providers.RateLimited, false
	case 400, 406, 409, 410, 411, 413, 414, 415, 422, 451:
		return providers.Permanent, false
	}
	switch {
	case status >= 200 && status < 300:
		return providers.Ambiguous, false
	case status >= 400 && status < 500:
		return providers.Transient, true
	}
	return providers.Transient, false
}

// Unreadable is the error for a 2xx whose body does not say what it should: the mail may have been taken.
func (c *Client) Unreadable(op string, resp *Response, err error) *providers.Error {
	e := c.Classify(op, resp, "", "")
	e.Kind, e.Unlisted = providers.Ambiguous, false
	if err != nil {
		e.Err = c.redactError(err)
	}
	return e
}

// RetryAfter parses a Retry-After header (RFC 9110 10.2.3): seconds or a date, which is compared with the answer's own
// Date, so that a wrong clock here does not matter. Below a second, in the past or unreadable: fallback. Above an hour: an hour.
func RetryAfter(h http.Header, now time.Time, fallback time.Duration) time.Duration {
	v := strings.TrimSpace(h.Get("Retry-After"))
	if v == "" {
		return fallback
	}
	var d time.Duration
	if n, err := strconv.ParseFloat(v, 64); err == nil {
		switch {
		case n != n: // not a number
			return fallback
		case n > MaxRetryAfter.Seconds():
			return MaxRetryAfter
		case n < 1:
			return fallback
		}
		d = time.Duration(n * float64(time.Second))
	} else if t, err := http.ParseTime(v); err == nil {
		if date, err := http.ParseTime(h.Get("Date")); err == nil {
			now = date
		}
		d = t.Sub(now)
	}
	switch {
	case d < time.Second:
		return fallback
	case d > MaxRetryAfter:
		return MaxRetryAfter
	}
	return d
}

// JoinURL puts a path behind a base URL, whether or not the base ends with a slash.
func JoinURL(base, path string) string {
	return strings.TrimRight(base, "/") + "/" + strings.TrimLeft(path, "/")
}
