// Package twin is Mandrill's API as its documentation describes it, for tests and demonstrations: same paths,
// key in the body, checks, limits and errors, an answer per recipient, signed webhooks and faults on request. It shares no
// code with the provider.
//
// Sources: https://mailchimp.com/developer/transactional/api/ (messages, users, webhooks), .../docs/smtp-integration/ and
// .../docs/webhooks/. Where they give no text or limit, a comment says so.
package twin

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options describe the account.
type Options struct {
	Key         string            // the API key; required
	Domains     []string          // verified sending domains; nil: any
	Rejects     map[string]string // deny list: address -> reason (hard-bounce, spam, unsub, custom ...)
	Subaccounts []string          // those that exist
	Templates   []string          // those that exist
	Unpaid      bool              // no balance: scheduling is refused
	QueuedFor   string            // queued_reason of every accepted mail, "" = none
	// The account's defaults, which a call can overrule.
	TrackOpens, TrackClicks bool
	OneByOne                bool // preserve_recipients is off
	Rewrites                bool // auto text, auto HTML, inlined CSS, stripped queries, merge tags

	WebhookKey string // signs webhooks; "" = a new one
	Now        func() time.Time
	Client     *http.Client // posts webhooks
	Keep       int          // accepted calls kept in memory, 0 = 10,000; the counter goes on
}

// Mail is an accepted call.
type Mail struct {
	At          time.Time
	Call        string // messages/send or messages/send-raw
	Raw         []byte // of a raw call, without its options
	From        string // bare address
	FromName    string
	Subject     string
	Text, HTML  string
	Headers     map[string][]string
	Attachments []File
	Images      []File
	Rcpts       []Rcpt
	Preserve    bool // everybody sees To and Cc
	Opens       bool // tracked
	Clicks      bool
	Rewritten   bool // Mandrill makes text, HTML or style sheets of its own
	Merged      bool
	Tags        []string
	Metadata    map[string]string
	SendAt      time.Time
	Template    string            // of messages/send-template
	Blocks      map[string]string // its content
	Language    string            // merge_language
	Vars        map[string]any    // global_merge_vars
	RcptVars    map[string]map[string]any
	Important   bool
	ViewLink    bool
	Domains     []string // of link analytics
	Campaign    string
	Links       string // the value of X-MC-Track, as sent
	Subaccount  string
	IPPool      string
	ReturnPath  string // its domain
	Async       bool   // asked for, or because of more than 10 recipients
}

// Rcpt is one recipient of a call.
type Rcpt struct {
	Email, Type string
	ID          string
	Status      string // what becomes of it: sent, queued, scheduled, rejected, invalid
	Answered    string // what the answer said
	Reason      string // of a rejection
	Visible     []string
}

// File is a decoded attachment, or an image, whose name is its Content-ID.
type File struct {
	Type, Name string
	Content    []byte
}

// Fault is what happens to one request instead of, or after, being served.
type Fault struct {
	Status int           // answer with it and Body, taking nothing
	Header http.Header   // of that answer
	Body   string        // of that answer
	Delay  time.Duration // before anything else
	Drop   bool          // read the request, then close the connection; nothing is taken
	Lose   bool          // take the mail, then close the connection without an answer
}

// Twin is the API. It is safe for concurrent use.
type Twin struct {
	o Options

	mu     sync.Mutex
	mails  []Mail
	total  int
	faults []Fault
	hooks  []hook

	happened map[string][]Happening // by message id
}

// New makes an API.
func New(o Options) *Twin {
	if o.WebhookKey == "" {
		o.WebhookKey = token()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	if o.Keep <= 0 {
		o.Keep = 10_000
	}
	rejects := map[string]string{}
	for a, why := range o.Rejects {
		rejects[strings.ToLower(a)] = why
	}
	o.Rejects = rejects
	return &Twin{o: o}
}

// token is 32 hex characters.
func token() string {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	return hex.EncodeToString(b[:])
}

// Handler serves the API.
func (t *Twin) Handler() http.Handler { return t }

// WebhookKey is the key that signs webhooks.
func (t *Twin) WebhookKey() string { return t.o.WebhookKey }

// Mails are the accepted calls, oldest first.
func (t *Twin) Mails() []Mail {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mails)
}

// Count is the number of accepted calls.
func (t *Twin) Count() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// Inject queues faults; each hits one request, in order.
func (t *Twin) Inject(f ...Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, f...)
}

func (t *Twin) fault() (f Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.faults) > 0 {
		f, t.faults = t.faults[0], t.faults[1:]
	}
	return f
}

// refusal is an error body with its status.
type refusal struct {
	http    int
	code    int
	name    string
	message string
}

func (r *refusal) Error() string { return r.name + ": " + r.message }

// invalid is a ValidationError. For sends the specification declares no 422, and older versions answer 500.
func invalid(message string) *refusal { return &refusal{500, -2, "ValidationError", message} }

// invalidField names the field, in an object with the structure of the call.
func invalidField(text string, path ...string) *refusal {
	var v any = text
	for _, p := range slices.Backward(path) {
		v = map[string]any{p: v}
	}
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings and maps of them
	}
	return invalid("Validation error: " + string(b))
}

var (
	errKey        = &refusal{401, 401, "Invalid_Key", "Invalid API key"}
	errNoKey      = invalid("You must specify a key value")
	errPayment    = &refusal{402, 10, "PaymentRequired", "Email scheduling is only available for accounts with a positive balance."}
	errTemplate   = &refusal{404, 5, "Unknown_Template", "No such template"} // wording not documented
	errSubaccount = &refusal{404, 12, "Unknown_Subaccount", "No subaccount exists with the given id"}
	errMessage    = &refusal{404, 11, "Unknown_Message", "No message exists with the given id"}
	errMethod     = &refusal{404, -1, "GeneralError", "No such method"} // wording not documented
)

// maxBody is 25 MB of message and what JSON makes of it; which error follows is not documented.
const (
	maxMessage = 25 << 20
	maxBody    = 2*maxMessage + 1<<20
	maxSync    = 10 // recipients of a call that is answered at once
)

// ServeHTTP serves POST /api/VERSION/CALL and the same with .json.
func (t *Twin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := t.fault()
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	switch {
	case f.Drop:
		hangUp(w)
		return
	case f.Status != 0:
		for k, v := range f.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.Status)
		io.WriteString(w, f.Body)
		return
	case err != nil:
		fail(w, invalid("The message is too large"))
		return
	}
	out, ref := t.serve(r, body)
	if f.Lose {
		hangUp(w)
		return
	}
	if ref != nil {
		fail(w, ref)
		return
	}
	answer(w, http.StatusOK, out)
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

func fail(w http.ResponseWriter, r *refusal) {
	answer(w, r.http, map[string]any{"status": "error", "code": r.code, "name": r.name, "message": r.message})
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(b)
}

var versions = []string{"1.0", "1.3", "1.4"}

func (t *Twin) serve(r *http.Request, body []byte) (any, *refusal) {
	path, ok := strings.CutPrefix(r.URL.Path, "/api/")
	version, call, found := strings.Cut(path, "/")
	if !ok || !found || !slices.Contains(versions, version) || r.Method != http.MethodPost {
		return nil, errMethod
	}
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return nil, invalid("The body is not JSON") // not documented
	}
	var auth struct {
		Key *string `json:"key"`
	}
	switch err := json.Unmarshal(body, &auth); {
	case err != nil:
		return nil, invalid("The body is not JSON: " + err.Error()) // wording not documented
	case auth.Key == nil || *auth.Key == "":
		return nil, errNoKey
	case *auth.Key != t.o.Key:
		return nil, errKey
	}
	switch call = strings.TrimSuffix(call, ".json"); call {
	case "users/ping":
		return "PONG!", nil
	case "users/ping2":
		return map[string]string{"PING": "PONG!"}, nil
	case "users/info":
		return map[string]any{"username": "twin", "reputation": 90, "hourly_quota": 100, "backlog": 0, "stats": map[string]any{}}, nil
	case "messages/send":
		return t.send(body, false)
	case "messages/send-template":
		return t.send(body, true)
	case "messages/send-raw":
		return t.sendRaw(body)
	case "messages/info":
		return t.info(body)
	case "messages/search":
		return t.search(body)
	case "rejects/list":
		return t.listRejects(body)
	case "webhooks/add":
		return t.addWebhook(r.Context(), body)
	case "webhooks/list":
		return t.listWebhooks(), nil
	}
	return nil, errMethod
}
