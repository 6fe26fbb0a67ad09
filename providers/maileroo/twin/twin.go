// Package twin is Maileroo's Email API v2 as its documentation describes it, with the part of the Account API that
// the bridge uses, for tests and demonstrations: same paths, authentication, checks and form of answers, signed webhooks and
// faults on request. It shares no code with the provider.
//
// Sources: https://maileroo.com/docs/email-api/{introduction,send-basic-email,send-templated-email,send-bulk-emails,get-scheduled-emails,appendix},
// https://maileroo.com/docs/api-reference/account/introduction, https://maileroo.com/help/use-webhooks, and the limits that Maileroo's own Node
// library (maileroo-sdk 1.0.1) checks. Where they give no text, the text is ours.
package twin

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/mail"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Limits; see the sources.
const (
	maxSubject  = 255
	maxKey      = 128
	maxValue    = 768
	maxMessages = 500
	maxRcpts    = 500
	maxBody     = 40 << 20 // not documented
	schedule    = 21 * 24 * time.Hour
)

// Options describe the account.
type Options struct {
	Key         string   // the sending key; required
	Application bool     // the key is one of several domains: some calls need "domain"
	AccountKey  string   // of the Account API; "" = that API is closed
	Domains     []string // that From may have; none: any
	Secret      string   // signs webhooks
	Suppressed  []string // addresses that are rejected after acceptance
	Now         func() time.Time
	Client      *http.Client // posts webhooks
	Keep        int          // accepted mails kept in memory, 0 = 10,000; the counter goes on
}

// Mail is an accepted message.
type Mail struct {
	ReferenceID string
	MessageID   string // Maileroo's own
	At          time.Time
	Scheduled   time.Time
	Cancelled   bool
	From        Address
	To, Cc, Bcc []Address
	ReplyTo     []Address
	Subject     string
	HTML, Plain *string // nil: not given, which has Maileroo make the text part
	Tracking    *bool
	Tags        map[string]any
	Headers     map[string]any
	Attachments []Attachment
	TemplateID  int64
	Data        map[string]any // of placeholders
	Bulk        bool
}

// Visible are those whom every receiver can see.
func (m Mail) Visible() []string { return bare(slices.Concat(m.To, m.Cc)) }

// Rcpts are all who receive the mail.
func (m Mail) Rcpts() []string { return bare(slices.Concat(m.To, m.Cc, m.Bcc)) }

func bare(list []Address) []string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = a.Address
	}
	return out
}

// Address is an EmailObject.
type Address struct {
	Address     string  `json:"address"`
	DisplayName *string `json:"display_name"`
}

// Attachment is a decoded attachment. An inline one has its name for a Content-ID.
type Attachment struct {
	Name, Type string
	Inline     bool
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

	mu        sync.Mutex
	delivered map[string]bool // by reference and recipient
	mails     []Mail
	total     int
	faults    []Fault
}

// New makes an API.
func New(o Options) *Twin {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	if o.Keep <= 0 {
		o.Keep = 10_000
	}
	return &Twin{o: o}
}

// Handler serves the API.
func (t *Twin) Handler() http.Handler { return t }

// Mails are the accepted mails, oldest first.
func (t *Twin) Mails() []Mail {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.mails)
}

// Count says how many mails were accepted.
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

// ServeHTTP serves the API.
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
	if f.Drop {
		hangUp(w)
		return
	}
	if f.Status != 0 {
		for k, v := range f.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(f.Status)
		io.WriteString(w, f.Body)
		return
	}
	var (
		tooLarge *http.MaxBytesError
		status   int
		out      any
	)
	switch {
	case errors.As(err, &tooLarge):
		status, out = refuse(http.StatusRequestEntityTooLarge, "The message is too large.")
	case err != nil:
		return
	case strings.HasPrefix(r.URL.Path, "/v1/"):
		status, out = t.account(r, body)
	default:
		status, out = t.email(r, body)
	}
	if f.Lose {
		hangUp(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(encode(out))
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them
	}
	return b
}

func refuse(status int, text string) (int, any) {
	return status, map[string]any{"success": false, "message": text, "data": nil}
}

func accept(text string, data any) (int, any) {
	return http.StatusOK, map[string]any{"success": true, "message": text, "data": data}
}

// email serves the Email API.
func (t *Twin) email(r *http.Request, body []byte) (int, any) {
	path, ok := strings.CutPrefix(r.URL.Path, "/api/v2/")
	if !ok {
		return refuse(http.StatusNotFound, "Not found.")
	}
	key := r.Header.Get("X-Api-Key")
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); ok && key == "" {
		key = token
	}
	if key == "" || key != t.o.Key {
		return refuse(http.StatusUnauthorized, "A valid sending key must be provided in the X-API-KEY header.")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	id, cancel := strings.CutPrefix(path, "emails/scheduled/")
	switch {
	case r.Method == http.MethodGet && path == "emails/scheduled":
		return t.list(r)
	case r.Method == http.MethodDelete && cancel:
		return t.cancel(id)
	case r.Method != http.MethodPost:
		return refuse(http.StatusNotFound, "Not found.")
	case path == "emails" || path == "emails/template":
		return t.send(body, path == "emails/template")
	case path == "emails/bulk":
		return t.bulk(body)
	}
	return refuse(http.StatusNotFound, "Not found.")
}

// fields are those of all sending calls. An unknown one is refused here, so that a test finds it; what Maileroo does is not documented.
type fields struct {
	From         *Address         `json:"from"`
	To           people           `json:"to"`
	Cc           people           `json:"cc"`
	Bcc          people           `json:"bcc"`
	ReplyTo      people           `json:"reply_to"`
	Subject      string           `json:"subject"`
	HTML         *string          `json:"html"`
	Plain        *string          `json:"plain"`
	Tracking     *bool            `json:"tracking"`
	Tags         map[string]any   `json:"tags"`
	Headers      map[string]any   `json:"headers"`
	Attachments  []attachment     `json:"attachments"`
	ScheduledAt  *string          `json:"scheduled_at"`
	ReferenceID  *string          `json:"reference_id"`
	TemplateID   *int64           `json:"template_id"`
	TemplateData map[string]any   `json:"template_data"`
	Messages     *json.RawMessage `json:"messages"`
}

type attachment struct {
	FileName    string  `json:"file_name"`
	ContentType *string `json:"content_type"`
	Content     string  `json:"content"`
	Inline      bool    `json:"inline"`
}

// people is an EmailObject or a list of them.
type people []Address

func (p *people) UnmarshalJSON(b []byte) error {
	if string(b) == "null" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if b[0] == '[' {
		return d.Decode((*[]Address)(p))
	}
	var one Address
	if err := d.Decode(&one); err != nil {
		return err
	}
	*p = people{one}
	return nil
}

func decode(body []byte, v any) error {
	if !utf8.Valid(body) {
		return errors.New("not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("more than one value")
	}
	return nil
}

func (t *Twin) send(body []byte, template bool) (int, any) {
	var q fields
	if err := decode(body, &q); err != nil {
		return refuse(http.StatusBadRequest, "The request body is invalid: "+err.Error())
	}
	if template != (q.TemplateID != nil) || q.Messages != nil || template && (q.HTML != nil || q.Plain != nil) || !template && q.TemplateData != nil {
		return refuse(http.StatusBadRequest, "The body does not fit the call.")
	}
	m, status, text := t.check(&q, template)
	if text != "" {
		return refuse(status, text)
	}
	t.keep(m)
	return accept("The email has been accepted for delivery.", map[string]any{"reference_id": m.ReferenceID})
}

func (t *Twin) bulk(body []byte) (int, any) {
	var q fields
	if err := decode(body, &q); err != nil {
		return refuse(http.StatusBadRequest, "The request body is invalid: "+err.Error())
	}
	var list []fields
	if q.Messages == nil || decode(*q.Messages, &list) != nil || len(list) == 0 || len(list) > maxMessages {
		return refuse(http.StatusBadRequest, "messages must be a list of 1 to 500 messages.")
	}
	if q.ScheduledAt != nil || q.From != nil || q.To != nil || (q.TemplateID != nil) == (q.HTML != nil || q.Plain != nil) {
		return refuse(http.StatusBadRequest, "The body does not fit the call.")
	}
	var mails []Mail
	for _, one := range list {
		all := q
		all.From, all.To, all.Cc, all.Bcc, all.ReplyTo, all.ReferenceID, all.TemplateData = one.From, one.To, one.Cc, one.Bcc, one.ReplyTo, one.ReferenceID, one.TemplateData
		m, status, text := t.check(&all, q.TemplateID != nil)
		if text != "" {
			return refuse(status, text)
		}
		m.Bulk = true
		mails = append(mails, m)
	}
	ids := []string{}
	for _, m := range mails {
		t.keep(m)
		ids = append(ids, m.ReferenceID)
	}
	return accept("The emails have been accepted for delivery.", map[string]any{"reference_ids": ids})
}

func (t *Twin) keep(m Mail) {
	t.total++
	t.mails = append(t.mails, m)
	if n := len(t.mails) - t.o.Keep; n > 0 {
		t.mails = slices.Delete(t.mails, 0, n)
	}
}

var reference = regexp.MustCompile(`^[0-9A-Fa-f]{24}$`)

// notHeaders are the names that Maileroo's own Laravel transport keeps out of the header map.
var notHeaders = regexp.MustCompile(`(?i)^(mime-version|content-.*|message-id|date|from|to|cc|bcc|subject|reply-to|return-path|received|delivered-to|authentication-results|dkim-signature|x-maileroo-ref-id|x-maileroo-track)$`)

// check gives the message, or the status and text of a refusal.
func (t *Twin) check(q *fields, template bool) (m Mail, status int, text string) {
	bad := func(format string, args ...any) (Mail, int, string) {
		return Mail{}, http.StatusBadRequest, fmt.Sprintf(format, args...)
	}
	if q.From == nil {
		return bad("The from field is required.")
	}
	if len(q.To) == 0 {
		return bad("The to field is required.")
	}
	for _, f := range []struct {
		name string
		list []Address
	}{{"from", []Address{*q.From}}, {"to", q.To}, {"cc", q.Cc}, {"bcc", q.Bcc}, {"reply_to", q.ReplyTo}} {
		for _, a := range f.list {
			if parsed, err := mail.ParseAddress(a.Address); err != nil || parsed.Name != "" || strings.ContainsAny(a.Address, "<>") {
				return bad("The email address %q in '%s' is invalid.", a.Address, f.name)
			}
			if a.DisplayName != nil && strings.TrimSpace(*a.DisplayName) == "" {
				return bad("The display_name in '%s' must not be empty.", f.name)
			}
		}
	}
	if n := len(q.To) + len(q.Cc) + len(q.Bcc); n > maxRcpts {
		return bad("The message has more than %d recipients.", maxRcpts)
	}
	if _, domain, _ := strings.Cut(q.From.Address, "@"); len(t.o.Domains) > 0 && !slices.Contains(t.o.Domains, strings.ToLower(domain)) {
		return bad("You must provide a linked domain.")
	}
	if strings.TrimSpace(q.Subject) == "" || utf8.RuneCountInString(q.Subject) > maxSubject {
		return bad("The subject is required and must not exceed %d characters.", maxSubject)
	}
	if !template && (q.HTML == nil || *q.HTML == "") && (q.Plain == nil || *q.Plain == "") {
		return bad("Either html or plain is required.")
	}
	for label, tags := range map[string]map[string]any{"tags": q.Tags, "headers": q.Headers} {
		for k, v := range tags {
			switch v.(type) {
			case string, float64, bool:
			default:
				return bad("The %s must be scalars.", label)
			}
			if label == "headers" && notHeaders.MatchString(k) {
				return bad("The header %q is not for the header map.", k) // not documented: what Maileroo's own library never sends there
			}
			if utf8.RuneCountInString(k) > maxKey || utf8.RuneCountInString(fmt.Sprint(v)) > maxValue {
				return bad("A key of %s must not exceed %d characters, a value %d.", label, maxKey, maxValue)
			}
		}
	}
	for _, a := range q.Attachments {
		content, err := base64.StdEncoding.Strict().DecodeString(a.Content)
		if err != nil || strings.TrimSpace(a.FileName) == "" || a.Content == "" {
			return bad("An attachment needs file_name and content in base64.")
		}
		typ := "application/octet-stream"
		if a.ContentType != nil && *a.ContentType != "" {
			typ = *a.ContentType
		}
		m.Attachments = append(m.Attachments, Attachment{Name: a.FileName, Type: typ, Inline: a.Inline, Content: content})
	}
	now := t.o.Now()
	if q.ScheduledAt != nil {
		at, err := time.Parse(time.RFC3339, *q.ScheduledAt)
		if err != nil || !at.After(now) || at.After(now.Add(schedule)) {
			return bad("scheduled_at must be a time within the next 21 days.")
		}
		m.Scheduled = at
	}
	switch {
	case q.ReferenceID == nil:
		m.ReferenceID = fmt.Sprintf("%08x%016x", rand.Uint32(), rand.Uint64())
	case !reference.MatchString(*q.ReferenceID):
		return bad("The reference_id must be a 24-character hexadecimal string.")
	default:
		// It has to be unique, but nothing says that a second one is refused: a repeated call is a second mail.
		m.ReferenceID = strings.ToLower(*q.ReferenceID)
	}
	m.MessageID = fmt.Sprintf("<%s.%d@mail.example>", m.ReferenceID, t.total)
	m.At, m.From, m.To, m.Cc, m.Bcc, m.ReplyTo = now, *q.From, q.To, q.Cc, q.Bcc, q.ReplyTo
	m.Subject, m.HTML, m.Plain, m.Tracking, m.Tags, m.Headers = q.Subject, q.HTML, q.Plain, q.Tracking, q.Tags, q.Headers
	if q.TemplateID != nil {
		m.TemplateID = *q.TemplateID
	}
	m.Data = q.TemplateData
	return m, 0, ""
}

// list serves the scheduled mails.
func (t *Twin) list(r *http.Request) (int, any) {
	q := r.URL.Query()
	if t.o.Application && q.Get("domain") == "" {
		return refuse(http.StatusBadRequest, "You must provide a linked domain.")
	}
	number := func(name string, fallback, most int) (int, bool) {
		v := q.Get(name)
		if v == "" {
			return fallback, true
		}
		n, err := strconv.Atoi(v)
		return n, err == nil && n >= 1 && n <= most
	}
	page, ok1 := number("page", 1, 1<<30)
	per, ok2 := number("per_page", 10, 100)
	if !ok1 || !ok2 {
		return refuse(http.StatusBadRequest, "page or per_page is invalid.")
	}
	results := []map[string]any{}
	skip := (page - 1) * per
	for _, m := range t.mails {
		_, domain, _ := strings.Cut(m.From.Address, "@")
		if m.Cancelled || !m.Scheduled.After(t.o.Now()) || q.Get("domain") != "" && !strings.EqualFold(domain, q.Get("domain")) {
			continue
		}
		if skip--; skip < 0 && len(results) < per {
			results = append(results, map[string]any{"reference_id": m.ReferenceID, "subject": m.Subject, "from": m.From.Address, "scheduled_at": m.Scheduled.Format(time.RFC3339)})
		}
	}
	return accept("OK", map[string]any{"page": page, "per_page": per, "results": results})
}

func (t *Twin) cancel(id string) (int, any) {
	for i := range t.mails {
		if m := &t.mails[i]; strings.EqualFold(m.ReferenceID, id) && !m.Cancelled && m.Scheduled.After(t.o.Now()) {
			m.Cancelled = true
			return accept("The scheduled email has been deleted.", nil)
		}
	}
	return refuse(http.StatusNotFound, "The scheduled email was not found.")
}

// Deliver notes in the log that a recipient has the mail.
func (t *Twin) Deliver(m Mail, rcpt string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.delivered == nil {
		t.delivered = map[string]bool{}
	}
	t.delivered[m.ReferenceID+" "+rcpt] = true
}

// account serves the log search of the Account API. What an entry holds is not documented: here it is little, so that nobody relies on more.
func (t *Twin) account(r *http.Request, body []byte) (int, any) {
	fail := func(status int, text string) (int, any) {
		return status, map[string]any{"error": map[string]any{"message": text}}
	}
	if token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "); t.o.AccountKey == "" || token != t.o.AccountKey {
		return fail(http.StatusUnauthorized, "The key is missing or invalid.")
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/logs/search" {
		return fail(http.StatusNotFound, "Not found.")
	}
	var q struct {
		Filters struct {
			Recipient string `json:"recipient"`
			LogType   string `json:"log_type"`
			Tags      []struct {
				Name  string `json:"name"`
				Value string `json:"value"`
			} `json:"tags"`
			Operator string `json:"tags_operator"`
			From     int64  `json:"datetime_from"`
			Order    string `json:"sort_dir"`
		} `json:"filters"`
		Page int `json:"page"`
	}
	if err := decode(body, &q); err != nil || q.Page < 1 || !slices.Contains([]string{"", "AND", "OR"}, q.Filters.Operator) {
		return fail(http.StatusBadRequest, "The request is invalid.")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	items := []map[string]any{}
	for _, m := range t.mails {
		if m.Cancelled || m.Scheduled.After(t.o.Now()) || m.At.Unix() < q.Filters.From {
			continue
		}
		typ := "Accepted"
		if t.delivered[m.ReferenceID+" "+q.Filters.Recipient] {
			typ = "Delivered"
		}
		if q.Filters.LogType != "" && q.Filters.LogType != typ {
			continue
		}
		hits := 0
		for _, want := range q.Filters.Tags {
			if v, ok := m.Tags[want.Name]; ok && fmt.Sprint(v) == want.Value {
				hits++
			}
		}
		if len(q.Filters.Tags) > 0 && (hits == 0 || hits < len(q.Filters.Tags) && cmp.Or(q.Filters.Operator, "AND") == "AND") {
			continue
		}
		if q.Filters.Recipient == "" || slices.Contains(m.Rcpts(), q.Filters.Recipient) {
			items = append(items, map[string]any{"message_id": m.MessageID, "log_type": typ})
		}
	}
	return http.StatusOK, map[string]any{"data": map[string]any{"items": items, "page": q.Page, "has_more": false}}
}
