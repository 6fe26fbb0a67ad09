// Package twin is the sandbox ESP: an HTTP API that takes every mail, keeps it in a bounded inbox
// in memory, delivers it to nobody and posts signed webhooks about it. What happens to a recipient is
// decided by the local part of the address; see rules.go.
//
// It imports nothing of the bridge: it stands on the other side of the wire.
package twin

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Limits of the twin.
const (
	MaxRequest    = 64 << 20
	MaxRecipients = 100
	KeyWindow     = 24 * time.Hour // how long an idempotency key is remembered
	maxKeys       = 10_000
)

// Config describes a twin. The zero value takes every call and posts nothing.
type Config struct {
	APIKey        string // required as Bearer token when set
	WebhookURL    string // "" = no webhooks
	WebhookSecret string // webhooks are always signed: without a secret none are posted
	Client        *http.Client
	Delay         time.Duration // before the first event of a mail, and between events
	MaxMails      int           // of the inbox, default 1000; the oldest goes first
	MaxBytes      int64         // of the inbox, default 64 MiB
	Now           func() time.Time
	// Failed is told of a webhook that was given up, for tests and the demo; may be nil.
	Failed func(err error)
}

// Address is a mailbox of the API.
type Address struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

// Header is a header field of the API.
type Header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Attachment is a file of the API; Content is base64.
type Attachment struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	ContentID string `json:"content_id,omitempty"`
	Inline    bool   `json:"inline,omitempty"`
	Content   string `json:"content"`
}

// Message is the body of a send call.
type Message struct {
	Recipients   []string          `json:"recipients"`
	EnvelopeFrom *string           `json:"envelope_from"`
	From         Address           `json:"from"`
	To           []Address         `json:"to"`
	Cc           []Address         `json:"cc"`
	ReplyTo      []Address         `json:"reply_to"`
	Subject      string            `json:"subject"`
	MessageID    string            `json:"message_id"`
	Text         *string           `json:"text"`
	HTML         *string           `json:"html"`
	AMP          *string           `json:"amp"`
	Calendar     *string           `json:"calendar"`
	Headers      []Header          `json:"headers"`
	Attachments  []Attachment      `json:"attachments"`
	MIME         string            `json:"mime"` // base64; instead of the fields from From to Attachments
	Tags         []string          `json:"tags"`
	Metadata     map[string]string `json:"metadata"`
	TrackOpens   *bool             `json:"track_opens"`
	TrackClicks  *bool             `json:"track_clicks"`
	SendAt       *time.Time        `json:"send_at"`
	Ref          string            `json:"ref"`
}

// Result is the answer for one recipient.
type Result struct {
	Email   string `json:"email"`
	Result  string `json:"result"` // accepted, rejected, deferred
	ID      string `json:"id,omitempty"`
	Status  string `json:"status,omitempty"` // RFC 3463
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// Mail is one mail of the inbox.
type Mail struct {
	ID      string    `json:"id"`
	Time    time.Time `json:"time"`
	Size    int64     `json:"size"`
	Results []Result  `json:"results"`
	Message *Message  `json:"message,omitempty"`
	Subject string    `json:"subject"`
	Ref     string    `json:"ref,omitempty"`
}

// Server is a twin. It is an http.Handler; Close stops its webhooks.
type Server struct {
	conf Config
	mux  *http.ServeMux

	mu      sync.Mutex
	n       int
	inbox   []*Mail
	bytes   int64
	keys    map[string]remembered
	order   []string // of keys, oldest first
	closed  chan struct{}
	pending int
	posting sync.WaitGroup
}

// remembered is the answer given for an idempotency key.
type remembered struct {
	at     time.Time
	answer []byte
}

// New makes a twin.
func New(c Config) *Server {
	if c.MaxMails <= 0 {
		c.MaxMails = 1000
	}
	if c.MaxBytes <= 0 {
		c.MaxBytes = 64 << 20
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Client == nil {
		c.Client = &http.Client{Timeout: 30 * time.Second}
	}
	s := &Server{conf: c, mux: http.NewServeMux(), keys: map[string]remembered{}, closed: make(chan struct{})}
	s.mux.HandleFunc("POST /v1/send", s.send)
	s.mux.HandleFunc("GET /v1/account", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]any{"account": "sandbox", "webhook": c.WebhookURL != ""})
	})
	s.mux.HandleFunc("GET /v1/messages", s.list)
	s.mux.HandleFunc("GET /v1/messages/{id}", s.show)
	s.mux.HandleFunc("DELETE /v1/messages", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		s.inbox, s.bytes = nil, 0
		s.mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	})
	return s
}

// SetWebhook changes where webhooks go, for a receiver that starts after the twin.
func (s *Server) SetWebhook(url, secret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conf.WebhookURL, s.conf.WebhookSecret = url, secret
}

// Close stops the webhooks that are still to come and waits for those under way.
func (s *Server) Close() error {
	s.mu.Lock()
	select {
	case <-s.closed:
	default:
		close(s.closed)
	}
	s.mu.Unlock()
	s.posting.Wait()
	return nil
}

// ServeHTTP checks the key, then dispatches.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if s.conf.APIKey != "" {
		given, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || subtle.ConstantTimeCompare([]byte(given), []byte(s.conf.APIKey)) != 1 {
			fail(w, http.StatusUnauthorized, "bad_key", "the API key is not valid")
			return
		}
	}
	s.mux.ServeHTTP(w, r)
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client is gone: nothing to do about it
}

func fail(w http.ResponseWriter, status int, code, message string) {
	answer(w, status, map[string]any{"error": map[string]string{"code": code, "message": message}})
}

func (s *Server) send(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength < 0 {
		fail(w, http.StatusLengthRequired, "length_required", "Content-Length is required")
		return
	}
	if t := r.Header.Get("Content-Type"); t != "application/json" {
		fail(w, http.StatusUnsupportedMediaType, "content_type", "Content-Type must be application/json")
		return
	}
	var m Message
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxRequest))
	d.DisallowUnknownFields()
	err := d.Decode(&m)
	if err == nil {
		_, err = d.Token()
		if err == io.EOF {
			err = nil
		} else if err == nil {
			err = fmt.Errorf("more than one JSON value")
		}
	}
	if err != nil {
		fail(w, http.StatusBadRequest, "bad_request", err.Error())
		return
	}
	if code, text := m.invalid(); code != "" {
		fail(w, http.StatusUnprocessableEntity, code, text)
		return
	}
	key := r.Header.Get("Idempotency-Key")
	if old, ok := s.recall(key); ok {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Idempotent-Replay", "true")
		_, _ = w.Write(old)
		return
	}
	for _, rcpt := range m.Recipients {
		if s.wholeCall(w, r, &m, rcpt) {
			return
		}
	}
	mail := s.accept(&m, r.ContentLength)
	reply, err := json.Marshal(map[string]any{"id": mail.ID, "recipients": mail.Results})
	if err != nil {
		fail(w, http.StatusInternalServerError, "internal", "the answer cannot be made")
		return
	}
	s.remember(key, reply)
	s.schedule(mail, &m)
	for _, rcpt := range m.Recipients {
		if name(rcpt) == "ambiguous" {
			panic(http.ErrAbortHandler) // taken, but the connection breaks before the answer
		}
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(reply)
}

// invalid checks a message as a strict API does.
func (m *Message) invalid() (code, text string) {
	switch {
	case len(m.Recipients) == 0:
		return "no_recipients", "recipients is empty"
	case len(m.Recipients) > MaxRecipients:
		return "too_many_recipients", "more than " + strconv.Itoa(MaxRecipients) + " recipients"
	}
	seen := map[string]bool{}
	for _, r := range m.Recipients {
		if at := strings.LastIndexByte(r, '@'); at <= 0 || at == len(r)-1 || seen[r] {
			return "bad_recipient", "a recipient is no address or is there twice"
		}
		seen[r] = true
	}
	if m.MIME != "" {
		if _, err := base64.StdEncoding.DecodeString(m.MIME); err != nil {
			return "bad_mime", "mime is not base64"
		}
		return "", ""
	}
	if m.From.Email == "" {
		return "no_from", "from.email is empty"
	}
	for _, a := range m.Attachments {
		if _, err := base64.StdEncoding.DecodeString(a.Content); err != nil {
			return "bad_attachment", "the content of an attachment is not base64"
		}
	}
	return "", ""
}

func (s *Server) recall(key string) ([]byte, bool) {
	if key == "" {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.keys[key]
	return r.answer, ok && s.conf.Now().Sub(r.at) < KeyWindow
}

func (s *Server) remember(key string, reply []byte) {
	if key == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.keys[key]; !ok {
		s.order = append(s.order, key)
	}
	s.keys[key] = remembered{s.conf.Now(), reply}
	for len(s.order) > maxKeys {
		delete(s.keys, s.order[0])
		s.order = s.order[1:]
	}
}

// accept puts a mail into the inbox.
func (s *Server) accept(m *Message, size int64) *Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
	mail := &Mail{
		ID: fmt.Sprintf("sb-%d-%06d", s.conf.Now().UnixMilli(), s.n), Time: s.conf.Now().UTC(), Size: size,
		Message: m, Subject: m.Subject, Ref: m.Ref,
	}
	for i, r := range m.Recipients {
		res := verdict(r)
		res.Email = r
		if res.Result != "rejected" {
			res.ID = mail.ID + "." + strconv.Itoa(i)
		}
		mail.Results = append(mail.Results, res)
	}
	s.inbox = append(s.inbox, mail)
	s.bytes += size
	for len(s.inbox) > s.conf.MaxMails || s.bytes > s.conf.MaxBytes && len(s.inbox) > 1 {
		s.bytes -= s.inbox[0].Size
		s.inbox[0] = nil
		s.inbox = s.inbox[1:]
	}
	return mail
}

// Inbox lists the mails, oldest first.
func (s *Server) Inbox() []Mail {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Mail, len(s.inbox))
	for i, m := range s.inbox {
		out[i] = *m
	}
	return out
}

// list answers without contents; ?ref=R and ?recipient=A filter.
func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	ref, rcpt := r.URL.Query().Get("ref"), r.URL.Query().Get("recipient")
	mails := []Mail{}
	for _, m := range s.Inbox() {
		m.Message = nil
		hit := rcpt == ""
		for _, res := range m.Results {
			hit = hit || strings.EqualFold(res.Email, rcpt)
		}
		if hit && (ref == "" || m.Ref == ref) {
			mails = append(mails, m)
		}
	}
	if len(mails) > 100 {
		mails = mails[len(mails)-100:]
	}
	answer(w, http.StatusOK, map[string]any{"messages": mails})
}

func (s *Server) show(w http.ResponseWriter, r *http.Request) {
	for _, m := range s.Inbox() {
		if m.ID == r.PathValue("id") {
			answer(w, http.StatusOK, m)
			return
		}
	}
	fail(w, http.StatusNotFound, "not_found", "no such message")
}

// Forget drops the remembered idempotency keys.
func (s *Server) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.keys, s.order = map[string]remembered{}, nil
}
