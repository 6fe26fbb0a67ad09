// Package httpapi makes the one HTTP request of a provider's call and classifies what came back.
//
// It knows when a request surely did not arrive (Transient), when it may have arrived (Ambiguous)
// and what a status means where the vendor's own table says nothing. Request bodies are segments
// with an exact length, streamed and reopenable; answers are read to a limit. The key never appears in an error.
package httpapi

import (
	"context"
	"io"
	"net/http"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
)

// MaxResponse bounds how much of an answer is read, after decompression.
const MaxResponse = 1 << 20

// Body is a request body: segments with a known length that can be opened again.
type Body struct {
	ContentType string
	segs        []segment
}

type segment struct {
	size int64
	open func() io.ReadCloser
}

// Size is the exact number of bytes, for Content-Length.
func (b *Body) Size() int64 { panic("not built yet") }

// Open streams the whole body; it can be called again for a redirect-free retry or a signature.
func (b *Body) Open() io.ReadCloser { panic("not built yet") }

// Client talks to one account's API.
type Client struct {
	Provider string // error prefix
	HTTP     *http.Client
	Secrets  []secret.String // redacted from every error and answer text
	Now      func() time.Time
	// AnswerTimeout is the time from the last byte written to the end of the answer; default 60 s.
	AnswerTimeout time.Duration
}

// Response is an answer that arrived.
type Response struct {
	Status    int
	Header    http.Header
	Body      []byte // at most MaxResponse
	Truncated bool   // the answer was longer, or broke off: Body is what came
	Err       error  // why reading the body ended early, nil usually
}

// Request is one call.
type Request struct {
	Op     string // "send"
	Method string
	URL    string
	Header http.Header
	Body   *Body // nil = none
}

// Do makes the request, once, following no redirect. The error, if there is no answer at all, is a *providers.Error of kind
// Transient (the request was not fully written) or Ambiguous (it was).
func (c *Client) Do(ctx context.Context, r Request) (*Response, error) { panic("not built yet") }

// Classify gives the *providers.Error for an answer that is not a success, by the common table of statuses:
// 401, 402, 403, 404, 407 Operator; 408, 421, 425, 5xx Transient; 429 RateLimited; 503 with Retry-After RateLimited;
// 400, 406, 409, 410, 411, 413, 414, 415, 422, 451 Permanent; other 4xx Transient and Unlisted; 3xx Transient; a 2xx that could not be read Ambiguous.
// msg is the vendor's text, cleaned and redacted here. Retry-After is parsed and capped.
func (c *Client) Classify(op string, resp *Response, code, msg string) *providers.Error {
	panic("not built yet")
}

// RetryAfter parses a Retry-After header (RFC 9110 10.2.3): seconds or a date. Below a second, in the past or
// unreadable: fallback. Above an hour: an hour.
func RetryAfter(h http.Header, now time.Time, fallback time.Duration) time.Duration {
	panic("not built yet")
}
