// Package sandbox delivers to the sandbox ESP: it takes every mail, delivers it to nobody, reports
// events by signed webhooks and fails when a recipient's name asks for it (bounce@, 429@, timeout@ ...).
//
// Without a base_url the ESP runs inside the process, so that provider = "sandbox" alone makes a
// staging bridge; its calls take the same path as any other ESP's.
package sandbox

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/providers/sandbox/twin"
	"smtpbridge/translate"
)

const name = "sandbox"

// Info describes the provider.
var Info = providers.Info{
	Name: name, Title: "Sandbox (built in)", Local: true,
	Concurrent: 20,
	Webhook:    providers.Webhook{Signed: true, OwnKeys: true}, // the ESP inside the process makes its own
	New:        func(o providers.Options) (providers.Provider, error) { return New(o) },
}

// settings is [account.options].
type settings struct {
	Delay time.Duration `toml:"delay"` // of the ESP inside the process: before each event
	Raw   bool          `toml:"raw"`   // send the MIME message instead of the structured form
}

// Provider is one account.
type Provider struct {
	account   string
	base      string
	api       *httpapi.Client
	key       secret.String
	secrets   []secret.String
	tolerance time.Duration
	now       func() time.Time
	raw       bool
	esp       *twin.Server // nil with a base_url
}

var (
	_ providers.Provider      = (*Provider)(nil)
	_ providers.Preparer      = (*Provider)(nil)
	_ providers.WebhookParser = (*Provider)(nil)
	_ providers.Checker       = (*Provider)(nil)
	_ providers.Finder        = (*Provider)(nil)
	_ io.Closer               = (*Provider)(nil)
)

// New makes the provider of an account. The caller closes it, which stops the webhooks of an ESP inside the process.
func New(o providers.Options) (*Provider, error) {
	s := settings{Delay: 200 * time.Millisecond}
	if err := o.DecodeOptions(&s); err != nil {
		return nil, err
	}
	if s.Delay < 0 {
		return nil, errors.New("delay is negative")
	}
	p := &Provider{
		account: o.Account, base: o.BaseURL, key: o.APIKey, secrets: o.WebhookSecrets, raw: s.Raw,
		tolerance: o.Tolerance, now: o.Now,
	}
	if p.tolerance <= 0 {
		p.tolerance = 5 * time.Minute
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.base == "" {
		if len(p.secrets) == 0 {
			// Both sides are this process: a secret of its own is as good as a configured one.
			p.secrets = []secret.String{secret.New(rand.Text())}
		}
		c := twin.Config{APIKey: p.key.Reveal(), WebhookURL: o.WebhookURL, Delay: s.Delay, Client: o.Client}
		for _, w := range p.secrets {
			if !w.Empty() {
				c.WebhookSecret = w.Reveal()
				break
			}
		}
		p.base, p.esp = "http://sandbox.invalid", twin.New(c)
		o.Client = &http.Client{Transport: inProcess{p.esp}}
	}
	p.api = httpapi.New(name, o)
	return p, nil
}

// ESP is the sandbox inside the process, nil when the account has a base_url.
func (p *Provider) ESP() *twin.Server { return p.esp }

// Close stops the ESP inside the process.
func (p *Provider) Close() error {
	if p.esp == nil {
		return nil
	}
	return p.esp.Close()
}

// Capabilities: the sandbox can express nearly everything.
func (p *Provider) Capabilities() translate.Capabilities {
	c := translate.Capabilities{
		JSON: true, HeaderTo: true, Cc: true, ReplyTo: -1, MaxRcpts: twin.MaxRecipients, MaxBytes: twin.MaxRequest,
		Headers: translate.HeadersAny, Threading: true, ListUnsub: true, ListUnsubPost: true,
		Tags: -1, Metadata: true, SendAt: 30 * 24 * time.Hour, Inline: true, AttachName: true, AttachType: true,
		EnvelopeFrom: true, NullSender: true, RcptStatus: true, AMP: true, Calendar: true, UTF8Local: true, MessageID: true,
		IdempotencyTTL: twin.KeyWindow, TrackOpens: true, TrackClicks: true,
	}
	if p.raw {
		c.Raw, c.RawFeatures = translate.RawEnvelope, true
	}
	return c
}

// inProcess makes the twin's handler a transport. What a server does to the connection, it does to the call:
// an aborted handler is a connection that broke before the answer.
type inProcess struct{ esp http.Handler }

func (t inProcess) RoundTrip(r *http.Request) (resp *http.Response, err error) {
	if r.Body == nil {
		r = r.Clone(r.Context())
		r.Body = http.NoBody
	}
	defer r.Body.Close()
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	body := &readErr{ReadCloser: r.Body}
	in := r.Clone(r.Context())
	in.Body, in.RequestURI = body, r.URL.RequestURI()
	in.Header = make(http.Header, len(r.Header))
	for k, v := range r.Header { // a server sees names in their canonical form
		in.Header[http.CanonicalHeaderKey(k)] = v
	}
	w := &answer{header: http.Header{}, status: http.StatusOK}
	defer func() {
		if v := recover(); v != nil {
			if v != http.ErrAbortHandler { // as net/http compares it
				panic(v)
			}
			resp, err = nil, io.ErrUnexpectedEOF
			if cause := r.Context().Err(); cause != nil {
				err = cause
			}
		}
	}()
	t.esp.ServeHTTP(w, in)
	if body.err != nil {
		return nil, body.err
	}
	// The transport of net/http reads to the end too, which is how the caller knows that all was written.
	_, _ = io.Copy(io.Discard, body)
	return &http.Response{
		Status: fmt.Sprintf("%d %s", w.status, http.StatusText(w.status)), StatusCode: w.status,
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: w.header,
		Body: io.NopCloser(&w.body), ContentLength: int64(w.body.Len()), Request: r,
	}, nil
}

// readErr remembers why reading a body failed: then the request was not written.
type readErr struct {
	io.ReadCloser
	err error
}

func (b *readErr) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// answer is a ResponseWriter in memory.
type answer struct {
	header http.Header
	status int
	wrote  bool
	body   bytes.Buffer
}

func (w *answer) Header() http.Header { return w.header }

func (w *answer) WriteHeader(status int) {
	if !w.wrote {
		w.status, w.wrote = status, true
	}
}

func (w *answer) Write(b []byte) (int, error) {
	w.wrote = true
	return w.body.Write(b)
}
