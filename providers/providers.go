// Package providers is the contract between the bridge and everything that can take a mail:
// ESP APIs, and the local targets smtp, lmtp and maildir. It holds no vendor code.
//
// A provider is one folder, providers/NAME: settings, one call, one answer classified. It
// never retries, sleeps, logs or decides what happens to a mail; package deliver does. What an
// API can express is data (translate.Capabilities), read by package translate, so that a
// provider is only ever handed calls it can make.
package providers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/translate"
)

// Provider makes delivery calls for one account.
type Provider interface {
	Capabilities() translate.Capabilities
	// Send makes one delivery call (for an ESP: one HTTP request) for m. It returns an Outcome
	// with one entry per m.Rcpts, in order, or an error of type *Error that holds for all of
	// them. It never retries, sleeps or logs. It is safe for concurrent use. When ctx ends
	// before the request was fully written the error is Transient, after it Ambiguous.
	Send(ctx context.Context, m *translate.Mail) (*Outcome, error)
}

// Preparer is optional: it builds the call of Send without sending it, for `explain`.
// Credentials in it are masked.
type Preparer interface {
	Prepare(m *translate.Mail) (*http.Request, error)
}

// WebhookParser is optional: verifies a request, and reads it. The two are apart because they see different bytes:
// the signature covers the body as it came, while the events are read from the request as it is stored, without
// credentials and mail text. So a stored request can be read again at any time, by a later version too, and gives the
// same ids. r.Body is not to be read. Nothing is logged or stored here.
type WebhookParser interface {
	// VerifyWebhook checks that the ESP made the request. body is the exact body received. The error is
	// ErrSignature when it does not verify, ErrUnavailable when that cannot be told now (a key server is down).
	VerifyWebhook(r *http.Request, body []byte) error
	// ParseWebhook reads a request that has verified. Of r only the headers are to be used. An event's id comes from
	// the vendor's facts; "" = from the item's place in the request. A time that the vendor does not give stays zero: it is
	// that of the receipt. The error is ErrMalformed when nothing can be read at all. One bad item never drops the others.
	ParseWebhook(r *http.Request, body []byte) ([]event.Event, error)
}

// WebhookGetter is optional: answers GET and HEAD below the webhook path (verification files,
// URL checks). path is what follows /webhook/ACCOUNT, without its first slash. ok=false: 405 or 404.
type WebhookGetter interface {
	WebhookGet(path string) (contentType string, content []byte, ok bool)
}

// Inbound is one received mail, from an ESP's inbound post.
type Inbound struct {
	ID       string    // the vendor's id, for de-duplication
	Time     time.Time // when the ESP received it, zero when it does not say
	From     string    // envelope sender, "" when null or not given
	Rcpts    []string
	Open     func() io.Reader // streams the MIME message out of the post; only while the post is being handled
	FetchURL string           // where the message is to be fetched instead (SSRF-safe, host checked by the provider)
	// ValidateURL, where it is set, is the only proof of the post: until a GET of it has answered a JSON object with
	// "success": true, nothing of the post may be believed or fetched. It may work only once, so the post is to be
	// stored as pending before. DeleteURL has the vendor forget the mail; it is called after the mail is stored
	// durably. Hosts are checked by the provider, as that of FetchURL.
	ValidateURL string
	DeleteURL   string
}

// InboundParser is optional: verifies an inbound post, and reads it. Errors as in WebhookParser. body is the exact body
// received; it may have 100 MiB and lie in a file, so it is not to be copied as a whole.
type InboundParser interface {
	VerifyInbound(r *http.Request, body []byte) error
	ParseInbound(r *http.Request, body []byte) ([]Inbound, error)
}

// Checker is optional: checks credentials and sender domains without side effects
// (smtpbridge check --online, and the probe of a paused account).
type Checker interface {
	Check(ctx context.Context) error
}

// Poller is optional: fetches events the webhooks missed. record stores them durably; only
// then is next valid. cursor is empty at first. next may come with an error: the place to go on from later. Only facts of mail that
// carries our reference are fetched, under the ids that webhooks give them where the vendor's facts allow that.
type Poller interface {
	Poll(ctx context.Context, cursor []byte, record func([]event.Event) error) (next []byte, err error)
}

// Tracked is a recipient of a call that was taken, of whom nothing final is known.
type Tracked struct {
	Ref       string
	MessageID string // the ESP's id, "" when it gave none
	Rcpt      string
	From      string // header From
	Sent      time.Time
}

// Tracker is optional: asks, with one call or two, what became of one recipient. No event is no error: the ESP knows no more either.
type Tracker interface {
	Track(ctx context.Context, t Tracked) ([]event.Event, error)
}

// Found is the answer of a Finder.
type Found uint8

// Answers of a Finder. The zero value decides nothing.
const (
	CannotTell Found = iota
	Present
	Absent
)

// Finder is optional: looks up whether an ambiguous call was taken. CannotTell with an error
// means that a later look-up may tell; without one that none ever will.
type Finder interface {
	Find(ctx context.Context, m *translate.Mail, since time.Time) (*Outcome, Found, error)
}

// BulkResolver is optional, for bulk interfaces: they take a call under an id of the batch, Outcome.MessageID "bulk:ID", and
// tell later what became of each mail in it. rcpts are those of the call, in its order. The outcome is nil as long as
// the ESP is not done; afterwards a recipient is Accepted with an id of his own, Rejected, or Deferred when
// nothing is known of him.
type BulkResolver interface {
	ResolveBulk(ctx context.Context, id string, rcpts []envelope.Rcpt) (*Outcome, error)
}

// BulkID marks the id of a batch.
const BulkID = "bulk:"

// Verdict is the ESP's word on one recipient at submission. The zero value keeps the mail.
type Verdict uint8

// Verdicts.
const (
	Deferred Verdict = iota // not taken now: try again, by RcptOutcome.Kind
	Accepted
	Rejected // refused for good
)

// Outcome is the answer to one call.
type Outcome struct {
	MessageID string // the ESP's id of the call, "" when it gives none
	Rcpts     []RcptOutcome
	Warning   string           // something the operator should know (paused domain, low quota), "" usually
	Throttle  time.Duration    // the ESP asks for a pause before the next call of this account
	Lost      []translate.Loss // what the call turned out to lose (a feature dropped by plan)
}

// RcptOutcome is the answer for one recipient.
type RcptOutcome struct {
	Addr      string
	Verdict   Verdict
	Kind      Kind   // with Deferred: why
	MessageID string // the ESP's id for this recipient, "" = that of the call
	Status    string // RFC 3463, "" = by verdict
	Reason    string // reject reason of package event, "" = other
	Detail    string // the ESP's words, cleaned
}

// AllAccepted is the outcome of a call with one id and no news per recipient.
func AllAccepted(m *translate.Mail, id string) *Outcome {
	o := &Outcome{MessageID: id, Rcpts: make([]RcptOutcome, len(m.Rcpts))}
	for i, r := range m.Rcpts {
		o.Rcpts[i] = RcptOutcome{Addr: r.Addr, Verdict: Accepted}
	}
	return o
}

// Kind classifies a failure by what is to be done about it. The zero value keeps the mail.
type Kind uint8

// Kinds of failure.
const (
	Unknown     Kind = iota // not classified: treated as Transient
	Transient               // surely not accepted, worth another try
	RateLimited             // too fast: pause the account, count no attempt
	Operator                // key, domain, quota, plan: hold mail, tell the operator, probe
	Ambiguous               // the request may have arrived
	Permanent               // this mail will never be taken
)

func (k Kind) String() string {
	return [...]string{"unknown", "transient", "rate_limited", "operator", "ambiguous", "permanent"}[k]
}

// Scope says how far an Operator fault reaches.
type Scope uint8

// Scopes.
const (
	ScopeAccount Scope = iota // every mail of the account
	ScopeDomain               // mail from this From domain
	ScopeFeature              // mail that uses this feature; Error.Feature names it
)

// Error is a failure of a whole call.
type Error struct {
	Provider   string
	Op         string // "send", "check" ...
	Kind       Kind
	Scope      Scope
	Feature    string // with ScopeFeature
	Split      bool   // one bad recipient failed the call: plan again, one call per recipient
	HTTPStatus int    // 0 when there was no answer
	Code       string // the vendor's code
	Msg        string // the vendor's words, cleaned and redacted
	Status     string // RFC 3463, "" = by kind
	Unlisted   bool   // a 4xx the provider's table does not know: three different mails in a row pause the account
	RetryAfter time.Duration
	Err        error
}

func (e *Error) Error() string {
	s := e.Provider + ": " + e.Op + ": " + e.Kind.String()
	if e.HTTPStatus != 0 {
		s += fmt.Sprintf(": HTTP %d", e.HTTPStatus)
	}
	if e.Code != "" {
		s += ": " + e.Code
	}
	if e.Msg != "" {
		s += ": " + e.Msg
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf classifies any error: that of an *Error, else Transient.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) && e.Kind != Unknown {
		return e.Kind
	}
	return Transient
}

// Errors of webhook and inbound parsers.
var (
	ErrSignature   = errors.New("signature does not verify")
	ErrUnavailable = errors.New("signature cannot be checked now")
	ErrMalformed   = errors.New("request cannot be read")
)

// StaleError is an ErrSignature for a request whose only fault is its time: signed further from now than the tolerance.
type StaleError struct {
	Age time.Duration // our clock minus the sender's; negative: signed in the future
}

func (e *StaleError) Error() string {
	return fmt.Sprintf("%v: signed at a time that is %v off", ErrSignature, e.Age.Round(time.Second))
}

// Is makes it an ErrSignature.
func (e *StaleError) Is(target error) bool { return target == ErrSignature }

// CheckAge compares the time a request was signed at with ours.
func CheckAge(now, signed time.Time, tolerance time.Duration) error {
	if age := now.Sub(signed); age > tolerance || age < -tolerance {
		return &StaleError{Age: age}
	}
	return nil
}

// Resolver looks up DNS TXT records; *net.Resolver is one.
type Resolver interface {
	LookupTXT(ctx context.Context, name string) ([]string, error)
}

// Info describes a provider to the registry, the documentation and the bridge.
type Info struct {
	Name   string // folder, config value and error prefix
	Title  string
	DocURL string
	// BaseURL is the vendor's API base; an account's base_url replaces it.
	BaseURL string
	Local   bool // smtp, lmtp, maildir, sandbox: needs no API key
	// Rate and Concurrent are the vendor's published limits (calls per second, calls at once); 0 = none known.
	Rate       float64
	Concurrent int
	// LookUps is how many calls a minute catching up may make, well within the vendor's limit; 0 = 6.
	LookUps int
	Webhook Webhook
	New     func(Options) (Provider, error)
}

// Webhook says how an ESP's webhooks behave, as data for webhookd.
type Webhook struct {
	Signed       bool  // requests are signed: the account needs a webhook secret or the provider's own key source
	OwnKeys      bool  // signed, but the keys come from elsewhere (DNS): no webhook_secret needed
	FirstPing    bool  // a ping signed with a public test secret must be answered before a secret is configured
	MaxBody      int64 // bytes, 0 = 1 MiB
	StoreFailed  int   // status when the event could not be stored; 0 = 503
	BadSignature int   // status for a bad signature; 0 = 401
	// InboundCallback says that inbound posts are not signed but proved by a call back (Inbound.ValidateURL). An inbound
	// secret is then the last segment of the path.
	InboundCallback bool
	Events          []string // native event names to register
	Private         []string // names of JSON, form or multipart fields, at any depth, that hold mail text: cut from stored requests
	// Keep, if set, gives what is to stay of such a field because ParseWebhook needs it (the machine-readable part of a
	// bounce); "" = nothing. The field's name comes in lower case.
	Keep func(field, text string) string
}

// Tracking is the account's setting of the same name.
type Tracking struct{ Opens, Clicks translate.Switch }

// Options is what a provider is made from: one account of the configuration.
type Options struct {
	Account        string
	Hostname       string // the bridge's own name, for EHLO and Message-ID
	APIKey         secret.String
	BaseURL        string          // "" = the vendor's
	WebhookSecrets []secret.String // several for rotation
	InboundSecrets []secret.String
	WebhookURL     string // the exact URL registered at the ESP
	InboundURL     string
	Tolerance      time.Duration // greatest age of a signed timestamp
	Tracking       Tracking
	ReturnPath     string
	Decode         func(any) error // decodes [account.options] strictly into a settings struct; nil-safe through DecodeOptions
	Client         *http.Client
	Resolver       Resolver
	Now            func() time.Time
	Log            *slog.Logger
}

// DecodeOptions decodes the provider's own settings, if there are any.
func (o Options) DecodeOptions(v any) error {
	if o.Decode == nil {
		return nil
	}
	return o.Decode(v)
}

// Registry is the list of providers; see package all.
type Registry []Info

// Lookup finds a provider by name.
func (r Registry) Lookup(name string) (Info, bool) {
	for _, i := range r {
		if i.Name == name {
			return i, true
		}
	}
	return Info{}, false
}

// Names lists the names, in the registry's order.
func (r Registry) Names() []string {
	out := make([]string, len(r))
	for i := range r {
		out[i] = r[i].Name
	}
	return out
}

// Suppressed is an address on the ESP's own suppression list.
type Suppressed struct {
	Address string
	Domain  string // the From domain the entry holds for, "" = any of the account
	Reason  string // bounced, complained, unsubscribed, manual
	Created time.Time
	Expires time.Time // zero: never
}

// SuppressionLister is optional: reads the ESP's own suppression list to its end.
type SuppressionLister interface {
	Suppressions(ctx context.Context, each func(Suppressed) error) error
}

// Registration is a webhook as the ESP has it.
type Registration struct {
	URL     string
	Events  []string
	Enabled bool
	Trouble string // what the ESP says of its last calls, "" usually
}

// Registrar is optional: lists the account's webhooks and creates one. secret is what the ESP signs its calls with, "" when the answer does not hold it.
type Registrar interface {
	Webhooks(ctx context.Context) ([]Registration, error)
	AddWebhook(ctx context.Context, url string, events []string) (secret string, err error)
}
