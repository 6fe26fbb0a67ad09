// Package twin is MailPace's API as its documentation describes it, for tests and demonstrations:
// same path, authentication, checks, limits and error texts, an honest Idempotency-Key, signed webhooks and faults on
// request. It shares no code with the provider.
//
// Sources: https://docs.mailpace.com/reference/{send,responses,authentication} and
// https://docs.mailpace.com/guide/{webhooks,idempotent-requests}. Where they give no text or limit, a
// comment says so.
package twin

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/mail"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Options describe the account.
type Options struct {
	Token   string             // the server token; required
	Domain  string             // the token's domain, which From must equal; "" = any
	Key     ed25519.PrivateKey // signs webhooks; nil: a new one
	Blocked []string           // addresses on the block list
	Now     func() time.Time
	Client  *http.Client // posts webhooks
	Keep    int          // accepted mails kept in memory, 0 = 10,000; the counters go on
}

// Mail is an accepted call.
type Mail struct {
	ID              int64
	At              time.Time
	Key             string // Idempotency-Key
	From            string
	To, Cc, Bcc     []string // bare addresses
	ReplyTo         string
	Subject         string
	HTML, Text      string
	InReplyTo       string
	References      string
	ListUnsubscribe string
	Tags            []string
	Attachments     []Attachment
	Bytes           int64 // of the request body
}

// Rcpts are all who receive the mail.
func (m Mail) Rcpts() []string { return slices.Concat(m.To, m.Cc, m.Bcc) }

// Attachment is a decoded attachment.
type Attachment struct {
	Name, Type, Cid string
	Content         []byte
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

	mu      sync.Mutex
	mails   []Mail
	nextID  int64
	total   int // accepted mails
	repeats int
	faults  []Fault
	stored  map[string]stored // by Idempotency-Key
	blocked map[string]bool
}

type stored struct {
	answer []byte
	at     time.Time
}

// New makes an API.
func New(o Options) *Twin {
	if o.Key == nil {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			panic(err) // crypto/rand never fails on a supported system
		}
		o.Key = key
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
	t := &Twin{o: o, stored: map[string]stored{}, blocked: map[string]bool{}}
	for _, a := range o.Blocked {
		t.blocked[strings.ToLower(a)] = true
	}
	return t
}

// Handler serves the API.
func (t *Twin) Handler() http.Handler { return t }

// PublicKey is the domain's webhook key, as the dashboard shows it.
func (t *Twin) PublicKey() string {
	return base64.StdEncoding.EncodeToString(t.o.Key.Public().(ed25519.PublicKey))
}

// Mails are the accepted mails, oldest first.
func (t *Twin) Mails() []Mail {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mails)
}

// Count says how many mails were accepted, and how many repeats were answered from memory without a second mail.
func (t *Twin) Count() (accepted, repeats int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total, t.repeats
}

// Inject queues faults; each hits one request, in order.
func (t *Twin) Inject(f ...Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.faults = append(t.faults, f...)
}

// Block puts an address on the block list.
func (t *Twin) Block(addr string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.blocked[strings.ToLower(addr)] = true
}

func (t *Twin) fault() (f Fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.faults) > 0 {
		f, t.faults = t.faults[0], t.faults[1:]
	}
	return f
}

const (
	maxBody = 50 << 20 // "50 MB in total"; how it is counted is not said
	maxTo   = 50
	maxKey  = 255
	keyTTL  = 24 * time.Hour
)

// ServeHTTP serves POST /api/v1/send.
func (t *Twin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := t.fault()
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	if strings.TrimSuffix(r.URL.Path, "/") != "/api/v1/send" {
		answer(w, http.StatusNotFound, map[string]any{"error": "Not found"})
		return
	}
	if r.Method != http.MethodPost {
		answer(w, http.StatusMethodNotAllowed, map[string]any{"error": "Method not allowed"})
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody*4/3+1<<20))
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
		answer(w, http.StatusRequestEntityTooLarge, map[string]any{"error": "message too large"}) // not documented
		return
	}
	status, out := t.take(r, body)
	if f.Lose {
		hangUp(w)
		return
	}
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(out)
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	w.Write(encode(v))
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them
	}
	return b
}

// request is the documented body. Bodies of unknown fields are refused here, so that a test finds them; what
// MailPace does with them is not documented.
type request struct {
	From            *string         `json:"from"`
	To              *string         `json:"to"`
	Cc              string          `json:"cc"`
	Bcc             string          `json:"bcc"`
	Subject         string          `json:"subject"`
	HTMLBody        string          `json:"htmlbody"`
	TextBody        string          `json:"textbody"`
	ReplyTo         string          `json:"replyto"`
	InReplyTo       string          `json:"inreplyto"`
	References      string          `json:"references"`
	ListUnsubscribe string          `json:"list_unsubscribe"`
	Tags            json.RawMessage `json:"tags"`
	Attachments     []struct {
		Name        string `json:"name"`
		Content     string `json:"content"`
		ContentType string `json:"content_type"`
		Cid         string `json:"cid"`
	} `json:"attachments"`
}

var extensions = []string{
	"jpeg", "jpg", "png", "gif", "txt", "pdf", "docx", "xlsx", "pptx", "csv", "att", "ics", "ical", "html", "zip", "auf",
}

func plain(status int, text string) (int, []byte) {
	return status, encode(map[string]any{"error": text})
}

// take checks a call in the order authentication, form, fields, and takes it.
func (t *Twin) take(r *http.Request, body []byte) (int, []byte) {
	if r.Header.Get("Accept") != "application/json" || !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		return plain(http.StatusNotAcceptable, "Accept and Content-Type must be application/json")
	}
	token := r.Header.Get("MailPace-Server-Token")
	if token == "" {
		token = r.Header.Get("OhMySMTP-Server-Token") // still accepted
	}
	switch {
	case token == "":
		return plain(http.StatusUnauthorized, "Missing API Token")
	case token != t.o.Token:
		return plain(http.StatusBadRequest, "Invalid API Token")
	}
	key := r.Header.Get("Idempotency-Key")
	if len(key) > maxKey {
		return plain(http.StatusBadRequest, "Idempotency-Key is longer than 255 characters") // text not documented
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.o.Now()
	// A repeat gives the stored answer whatever the body.
	if s, ok := t.stored[key]; key != "" && ok && now.Sub(s.at) < keyTTL {
		t.repeats++
		return http.StatusOK, s.answer
	}
	m, errs, text := t.check(body)
	switch {
	case text != "":
		status := http.StatusBadRequest
		if strings.HasPrefix(text, "Domain") {
			status = http.StatusForbidden
		}
		return plain(status, text)
	case len(errs) > 0:
		return http.StatusBadRequest, encode(map[string]any{"errors": errs})
	}
	t.nextID++
	t.total++
	m.ID, m.At, m.Key, m.Bytes = t.nextID, now, key, int64(len(body))
	t.mails = append(t.mails, m)
	if n := len(t.mails) - t.o.Keep; n > 0 {
		t.mails = slices.Delete(t.mails, 0, n)
	}
	out := encode(map[string]any{"id": m.ID, "status": "pending"})
	if key != "" {
		t.stored[key] = stored{out, now}
	}
	return http.StatusOK, out
}

func (t *Twin) check(body []byte) (m Mail, errs map[string][]string, text string) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var q request
	if err := d.Decode(&q); err != nil {
		return m, nil, "Invalid request body: " + err.Error() // text not documented
	}
	if d.More() || !utf8.Valid(body) {
		return m, nil, "Invalid request body: more than one value, or not UTF-8"
	}
	errs = map[string][]string{}
	add := func(field, text string) { errs[field] = append(errs[field], text) }
	if q.From == nil || *q.From == "" {
		add("from", "undefined field")
	} else {
		from, err := mail.ParseAddress(*q.From)
		if err != nil {
			return m, nil, "Email from address not parseable"
		}
		if _, domain, _ := strings.Cut(from.Address, "@"); t.o.Domain != "" && !strings.EqualFold(domain, t.o.Domain) {
			return m, nil, "Domain in From address does not match the domain of the API token"
		}
		m.From = *q.From
	}
	if q.To == nil || *q.To == "" {
		add("to", "undefined field")
	}
	list := func(field, value string) (out []string) {
		if value == "" {
			return nil
		}
		parsed, err := mail.ParseAddressList(value)
		if err != nil {
			add(field, "is invalid")
			return nil
		}
		for _, a := range parsed {
			bare := mail.Address{Address: a.Address} // a quoted local part keeps its quotes
			out = append(out, strings.Trim(bare.String(), "<>"))
			if t.blocked[strings.ToLower(a.Address)] && !slices.Contains(errs[field], "contains a blocked address") {
				add(field, "contains a blocked address")
			}
		}
		if field == "to" && len(out) > maxTo {
			add(field, "number of email addresses exceeds maximum volume")
		}
		return out
	}
	if q.To != nil {
		m.To = list("to", *q.To)
	}
	m.Cc, m.Bcc = list("cc", q.Cc), list("bcc", q.Bcc)
	list("replyto", q.ReplyTo)
	if q.HTMLBody == "" && q.TextBody == "" {
		add("htmlbody", "undefined field")
		add("textbody", "undefined field")
	}
	for _, id := range strings.Fields(q.InReplyTo + " " + q.References) {
		if !strings.HasPrefix(id, "<") || !strings.HasSuffix(id, ">") {
			add("references", "is invalid") // not documented as an error
		}
	}
	total := len(q.HTMLBody) + len(q.TextBody)
	for _, a := range q.Attachments {
		ext := strings.ToLower(strings.TrimPrefix(path.Ext(a.Name), "."))
		if !slices.Contains(extensions, ext) || strings.Count(a.Name, ".") != 1 {
			add("attachments.name", "Extension file type blocked, see Docs for full list of allowed file types")
		}
		content, err := base64.StdEncoding.Strict().DecodeString(a.Content)
		if err != nil {
			add("attachments.content", "is invalid") // not documented
		}
		if a.ContentType == "" {
			add("attachments.content_type", "undefined field")
		}
		if a.Cid != "" && !(strings.HasPrefix(a.Cid, "<") && strings.HasSuffix(a.Cid, ">")) {
			add("attachments.cid", "is invalid") // the documented form has brackets
		}
		total += len(a.Content)
		m.Attachments = append(m.Attachments, Attachment{Name: a.Name, Type: a.ContentType, Cid: a.Cid, Content: content})
	}
	if total > maxBody {
		return m, nil, "Message is larger than 50 MB" // text not documented
	}
	if len(q.Tags) > 0 && json.Unmarshal(q.Tags, &m.Tags) != nil {
		var one string
		if json.Unmarshal(q.Tags, &one) != nil {
			add("tags", "is invalid")
		}
		m.Tags = []string{one}
	}
	m.ReplyTo, m.Subject, m.HTML, m.Text = q.ReplyTo, q.Subject, q.HTMLBody, q.TextBody
	m.InReplyTo, m.References, m.ListUnsubscribe = q.InReplyTo, q.References, q.ListUnsubscribe
	return m, errs, ""
}

// Webhook is a signed event about m: event is queued, delivered, deferred, bounced or spam.
func (t *Twin) Webhook(ctx context.Context, url, event string, m Mail, at time.Time) (*http.Request, error) {
	nullable := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	const stamp = "2006-01-02T15:04:05.000Z"
	body := encode(map[string]any{"event": "email." + event, "payload": map[string]any{
		"status": event, "id": m.ID, "domain_id": 12, "created_at": m.At.UTC().Format(stamp), "updated_at": at.UTC().Format(stamp),
		"from": m.From, "to": nullable(strings.Join(m.To, ",")), "cc": nullable(strings.Join(m.Cc, ",")), "bcc": nullable(strings.Join(m.Bcc, ",")),
		"htmlbody": nullable(m.HTML), "textbody": nullable(m.Text), "subject": nullable(m.Subject), "replyto": nullable(m.ReplyTo),
		"message_id": fmt.Sprintf("<%08x-0000-4000-8000-000000000000@mailer.mailpace.com>", m.ID), "list_unsubscribe": nullable(m.ListUnsubscribe), "tags": m.Tags,
	}})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	t.Sign(r, body)
	return r, nil
}

// Sign signs a body as MailPace does.
func (t *Twin) Sign(r *http.Request, body []byte) {
	r.Header.Set("X-MailPace-Signature", base64.StdEncoding.EncodeToString(ed25519.Sign(t.o.Key, body)))
}

// Post sends a webhook and gives the status of its answer.
func (t *Twin) Post(ctx context.Context, url, event string, m Mail) (int, error) {
	r, err := t.Webhook(ctx, url, event, m, t.o.Now())
	if err != nil {
		return 0, err
	}
	resp, err := t.o.Client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}
