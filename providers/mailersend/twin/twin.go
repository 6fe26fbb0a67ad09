// Package twin is MailerSend's API as its documentation describes it, for tests and demonstrations: the same paths,
// authentication, checks, limits and error codes, suppressions, quota headers, the list of e-mails, signed webhooks of both
// versions, inbound posts, and faults on request. It shares no code with the provider.
//
// Sources: https://developers.mailersend.com/api/v1/email, /account/webhooks and /general, and the README of the vendor's Node SDK
// 3.4.0. MailerSend gives codes, seldom the words: the words are ours. Where a limit is ours too, a comment says so.
package twin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/mail"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// PingSecret signs the ping of a new webhook.
const PingSecret = "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G"

// DomainID is the id of the account's one domain.
const DomainID = "7z3m5jgrogdpyo6n"

// Options describe the account.
type Options struct {
	Token      string            // the API token; required
	Domain     string            // the verified domain, for itself and its subdomains; "" = any From is taken
	Plan       string            // trial, hobby, starter, professional, enterprise; "" = professional
	Review     bool              // not approved yet: 10 to, 1 cc, 1 bcc
	Duplicates bool              // the domain's setting "ignore duplicated recipients"
	Paused     bool              // sending is paused for the domain
	NoScopes   bool              // the token may send and nothing else
	Suppressed map[string]string // address to reason: hard_bounced, spam_complaint, unsubscribed, blocklisted, on_hold
	PerMinute  int               // requests to /email, 0 = 120
	PerDay     int               // requests of all, 0 = 500,000
	BulkPolls  int               // how often the status of a batch is "processing" before it is "completed"
	Secret     string            // signs webhooks
	Now        func() time.Time
	Client     *http.Client // posts webhooks
	Keep       int          // accepted mails kept in memory, 0 = 10,000; the counter goes on
}

// Person is an address as a call gave it.
type Person struct {
	Email string `json:"email"`
	Name  string `json:"name"`
}

// Mail is an accepted call.
type Mail struct {
	ID              string
	At              time.Time
	From            Person
	To, Cc, Bcc     []Person // To and Cc are visible to every recipient
	ReplyTo         *Person
	Subject         string
	Text, HTML      string
	Tags            []string
	SendAt          time.Time
	InReplyTo       string
	References      []string
	ListUnsubscribe string
	PrecedenceBulk  *bool
	Headers         map[string][]string
	Settings        map[string]bool
	Attachments     []Attachment
	Suppressed      []string // recipients that were left out
	Template        string
	Data            map[string]map[string]any // personalization, by address
	Bulk            string                    // id of the batch it came in, "" = a call of its own
}

// Rcpts are all who receive the mail.
func (m Mail) Rcpts() []string {
	var out []string
	for _, p := range slices.Concat(m.To, m.Cc, m.Bcc) {
		if !slices.Contains(m.Suppressed, p.Email) {
			out = append(out, p.Email)
		}
	}
	return out
}

// Attachment is a decoded attachment.
type Attachment struct {
	Name, Disposition, ID string
	Content               []byte
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

	mu         sync.Mutex
	activities []Activity
	hooks      []map[string]any
	mails      []Mail
	nextID     int
	total      int // accepted mails
	calls      int // requests of the day
	minute     int64
	burst      int // requests to /email in the minute
	faults     []Fault
	bulks      map[string]*bulk
}

// New makes an API.
func New(o Options) *Twin {
	def := func(v *int, n int) {
		if *v <= 0 {
			*v = n
		}
	}
	def(&o.PerMinute, 120)
	def(&o.PerDay, 500_000)
	def(&o.Keep, 10_000)
	if o.Plan == "" {
		o.Plan = "professional"
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Client == nil {
		o.Client = http.DefaultClient
	}
	low := map[string]string{}
	for a, reason := range o.Suppressed {
		low[strings.ToLower(a)] = reason
	}
	o.Suppressed = low
	return &Twin{o: o, bulks: map[string]*bulk{}}
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

const (
	maxBody       = 96 << 20 // ours: the size of one request is not documented
	maxPart       = 2 << 20
	maxAttachment = 25 << 20
	maxSubject    = 998
	maxTags       = 5
	maxAhead      = 72 * time.Hour
)

// ServeHTTP serves POST /v1/email, /v1/bulk-email and /v1/webhooks, and GET /v1/bulk-email/ID, /v1/emails, /v1/domains and /v1/api-quota.
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
	w.Header().Set("Date", t.o.Now().UTC().Format(http.TimeFormat))
	switch {
	case f.Drop:
		hangUp(w)
		return
	case f.Status != 0:
		for k, v := range f.Header {
			w.Header()[http.CanonicalHeaderKey(k)] = v
		}
		w.WriteHeader(f.Status)
		io.WriteString(w, f.Body)
		return
	case err != nil:
		refuse(w, http.StatusRequestEntityTooLarge, "The request is too large.")
		return
	}
	if token, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer "); !ok || token != t.o.Token {
		refuse(w, http.StatusUnauthorized, "Unauthenticated.")
		return
	}
	route := r.Method + " " + strings.TrimSuffix(r.URL.Path, "/")
	if route != "GET /v1/api-quota" && !t.admit(w, route == "POST /v1/email") {
		return
	}
	switch route {
	case "POST /v1/email":
		t.email(w, body, f.Lose)
	case "POST /v1/bulk-email":
		t.bulkEmail(w, body, f.Lose)
	case "GET /v1/api-quota":
		t.mu.Lock()
		left := max(t.o.PerDay-t.calls, 0)
		t.mu.Unlock()
		answer(w, http.StatusOK, map[string]any{"quota": t.o.PerDay, "remaining": left, "reset": t.tomorrow().Format(time.RFC3339)})
	case "GET /v1/domains":
		if t.scoped(w) {
			answer(w, http.StatusOK, map[string]any{"data": []any{map[string]any{
				"id": DomainID, "name": t.domain(), "is_verified": true, "domain_settings": map[string]any{"send_paused": t.o.Paused},
			}}})
		}
	case "GET /v1/emails":
		if t.scoped(w) {
			t.emails(w, r)
		}
	case "GET /v1/webhooks":
		if t.scoped(w) {
			t.mu.Lock()
			list := slices.Clone(t.hooks)
			t.mu.Unlock()
			answer(w, http.StatusOK, map[string]any{"data": list})
		}
	case "POST /v1/webhooks":
		if t.scoped(w) {
			t.addWebhook(w, r, body)
		}
	default:
		if route == "GET /v1/activity/"+DomainID {
			if t.scoped(w) {
				t.activity(w, r)
			}
			return
		}
		if list, ok := strings.CutPrefix(route, "GET /v1/suppressions/"); ok {
			if t.scoped(w) {
				t.suppressions(w, r, list)
			}
			return
		}
		if id, ok := strings.CutPrefix(route, "GET /v1/bulk-email/"); ok {
			t.bulkStatus(w, id)
			return
		}
		switch strings.TrimSuffix(r.URL.Path, "/") {
		case "/v1/email", "/v1/bulk-email", "/v1/api-quota", "/v1/domains", "/v1/emails", "/v1/webhooks":
			refuse(w, http.StatusMethodNotAllowed, "The "+r.Method+" method is not supported for this route.")
		default:
			refuse(w, http.StatusNotFound, "The route could not be found.")
		}
	}
}

func (t *Twin) domain() string {
	if t.o.Domain == "" {
		return "example.com"
	}
	return t.o.Domain
}

func (t *Twin) tomorrow() time.Time {
	return t.o.Now().UTC().Truncate(24 * time.Hour).Add(24 * time.Hour)
}

func (t *Twin) scoped(w http.ResponseWriter) bool {
	if t.o.NoScopes {
		refuse(w, http.StatusForbidden, "This action is unauthorized: the token has not the scope. #MS40301")
	}
	return !t.o.NoScopes
}

// admit counts a request and writes the headers that every answer has.
func (t *Twin) admit(w http.ResponseWriter, send bool) bool {
	now := t.o.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	limit := 60
	minute := now.Unix() / 60
	if t.minute != minute {
		t.minute, t.burst = minute, 0
	}
	h := w.Header()
	if send {
		limit = t.o.PerMinute
		if t.burst >= limit {
			h.Set("X-Ratelimit-Limit", strconv.Itoa(limit))
			h.Set("X-Ratelimit-Remaining", "0")
			h.Set("X-Ratelimit-Reset", strconv.FormatInt((minute+1)*60, 10))
			h.Set("Retry-After", strconv.FormatInt((minute+1)*60-now.Unix(), 10))
			refuse(w, http.StatusTooManyRequests, "Too Many Attempts. #MS42903")
			return false
		}
		t.burst++
	}
	h.Set("X-Apiquota-Reset", t.tomorrow().Format(time.RFC3339))
	if t.calls >= t.o.PerDay {
		h.Set("X-Apiquota-Remaining", "0")
		refuse(w, http.StatusTooManyRequests, "The daily API quota is used up. #MS42901")
		return false
	}
	t.calls++
	h.Set("X-Apiquota-Remaining", strconv.Itoa(t.o.PerDay-t.calls))
	left := limit
	if send {
		left = limit - t.burst
	}
	h.Set("X-Ratelimit-Limit", strconv.Itoa(limit))
	h.Set("X-Ratelimit-Remaining", strconv.Itoa(left))
	h.Set("X-Ratelimit-Reset", strconv.FormatInt((minute+1)*60, 10))
	return true
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(encode(v))
}

func refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]any{"message": text})
}

// encode writes JSON as PHP does, with its slashes escaped.
func encode(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		panic(err) // only strings, numbers, and maps and lists of them
	}
	return bytes.ReplaceAll(bytes.TrimSuffix(b.Bytes(), []byte("\n")), []byte("/"), []byte(`\/`))
}

// request is the documented body. Unknown fields are refused here, so that a test finds them; what MailerSend does with
// them is not documented.
type request struct {
	From            *Person         `json:"from"`
	To              []Person        `json:"to"`
	Cc              []Person        `json:"cc"`
	Bcc             []Person        `json:"bcc"`
	RcptTo          []Person        `json:"rcpt_to"`
	ReplyTo         *Person         `json:"reply_to"`
	Subject         string          `json:"subject"`
	Text            string          `json:"text"`
	HTML            string          `json:"html"`
	TemplateID      string          `json:"template_id"`
	Language        string          `json:"language"`
	Tags            []string        `json:"tags"`
	SendAt          *int64          `json:"send_at"`
	InReplyTo       string          `json:"in_reply_to"`
	References      []string        `json:"references"`
	ListUnsubscribe string          `json:"list_unsubscribe"`
	PrecedenceBulk  *bool           `json:"precedence_bulk"`
	Settings        map[string]bool `json:"settings"`
	Headers         []struct {
		Name  string `json:"name"`
		Value string `json:"value"`
	} `json:"headers"`
	Personalization []struct {
		Email string         `json:"email"`
		Data  map[string]any `json:"data"`
	} `json:"personalization"`
	Attachments []struct {
		Content     string  `json:"content"`
		Filename    string  `json:"filename"`
		Disposition string  `json:"disposition"`
		ID          *string `json:"id"`
	} `json:"attachments"`
}

func (t *Twin) email(w http.ResponseWriter, body []byte, lose bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var q request
	if err := d.Decode(&q); err != nil || d.More() || !utf8.Valid(body) {
		refuse(w, http.StatusBadRequest, fmt.Sprintf("The request is not one JSON object of the documented form: %v", err))
		return
	}
	m, errs := t.check(&q)
	if len(errs) > 0 {
		names := make([]string, 0, len(errs))
		for f := range errs {
			names = append(names, f)
		}
		slices.Sort(names)
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": errs[names[0]][0], "errors": errs})
		return
	}
	all := len(m.Rcpts())
	warnings := t.suppress(&m)
	if len(m.Rcpts()) == 0 && all > 0 {
		answer(w, http.StatusAccepted, map[string]any{"message": "All recipients are suppressed.", "warnings": []any{map[string]any{
			"type": "ALL_SUPPRESSED", "message": "There are no recipients left to send to.", "recipients": warnings,
		}}})
		return
	}
	t.mu.Lock()
	t.keep(&m)
	t.mu.Unlock()
	if lose {
		hangUp(w)
		return
	}
	w.Header().Set("X-Message-Id", m.ID)
	if t.o.Paused {
		w.Header().Set("X-Send-Paused", "true")
	}
	if len(warnings) > 0 {
		answer(w, http.StatusAccepted, map[string]any{"message": "Some recipients are suppressed.", "warnings": []any{map[string]any{
			"type": "SOME_SUPPRESSED", "warning": "Some of the recipients have been suppressed.", "recipients": warnings,
		}}})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	w.WriteHeader(http.StatusAccepted)
}

// keep takes a mail in; the lock is held.
func (t *Twin) keep(m *Mail) {
	t.nextID++
	t.total++
	m.ID, m.At = fmt.Sprintf("%024x", t.nextID), t.o.Now()
	t.mails = append(t.mails, *m)
	if n := len(t.mails) - t.o.Keep; n > 0 {
		t.mails = slices.Delete(t.mails, 0, n)
	}
}

func (t *Twin) suppress(m *Mail) []any {
	var out []any
	for _, p := range slices.Concat(m.To, m.Cc, m.Bcc) {
		if reason := t.o.Suppressed[strings.ToLower(p.Email)]; reason != "" {
			m.Suppressed = append(m.Suppressed, p.Email)
			out = append(out, map[string]any{"email": p.Email, "name": p.Name, "reasons": []string{reason}})
		}
	}
	return out
}

// extensions are those of https://developers.mailersend.com/api/v1/email (2025-12).
var extensions = strings.Fields(`txt csv log css ics xml jpg jpe jpeg gif png bmp psd tif tiff svg indd ai eps doc docx rtf odt ott pdf
	pub pages mobi epub mp3 m4a m4v wma ogg flac wav aif aifc aiff mp4 mov avi mkv mpeg mpg wmv xls xlsx ods numbers odp ppt pptx pps key
	zip vcf eml p7c p7m p7s pgp asc sig`)

var (
	headerName  = regexp.MustCompile(`^[A-Za-z0-9-]+$`)
	messageID   = regexp.MustCompile(`^[^\s<>@]+@[^\s<>@]+\.[^\s<>@]+$`)
	unsubscribe = regexp.MustCompile(`^<?https://[^\s<>,]+>?$`)
)

// check is the documented validation.
func (t *Twin) check(q *request) (m Mail, errs map[string][]string) {
	errs = map[string][]string{}
	add := func(field, text string) { errs[field] = append(errs[field], text) }
	gated := func(field string, used bool, plans ...string) {
		if used && !slices.Contains(plans, t.o.Plan) {
			add(field, "The "+field+" feature is not available on your plan. #MS42216")
		}
	}
	high := []string{"professional", "enterprise"}
	t.checkFrom(q, add)
	t.checkPeople(q, add)
	if q.ReplyTo != nil && !valid(q.ReplyTo.Email) {
		add("reply_to.email", "The reply_to.email must be a valid email address.")
	}
	switch {
	case strings.TrimSpace(q.Subject) == "" && q.TemplateID == "":
		add("subject", "The subject field is required when template_id is not present.")
	case len([]rune(q.Subject)) > maxSubject:
		add("subject", "The subject may not be greater than 998 characters.")
	}
	// Whether white space counts as a text is not documented; here it does not.
	if strings.TrimSpace(q.Text) == "" && strings.TrimSpace(q.HTML) == "" && q.TemplateID == "" {
		add("text", "The text field is required when neither html nor template_id is present.")
	}
	for field, s := range map[string]string{"text": q.Text, "html": q.HTML} {
		if len(s) > maxPart {
			add(field, "The "+field+" may not be greater than 2 MB.")
		}
	}
	if len(q.Tags) > maxTags {
		add("tags", "The tags may not have more than 5 items.")
	}
	now := t.o.Now()
	if q.SendAt != nil {
		at := time.Unix(*q.SendAt, 0)
		m.SendAt = at
		switch {
		case at.Before(now.Truncate(time.Second)):
			add("send_at", "The send_at must not be in the past. #MS42218")
		case at.After(now.Add(maxAhead)):
			add("send_at", "The send_at must be within 72 hours. #MS42219")
		}
	}
	if q.InReplyTo != "" && !messageID.MatchString(strings.Trim(q.InReplyTo, "<>")) {
		add("in_reply_to", "The in_reply_to must be a valid email address.")
	}
	gated("references", len(q.References) > 0, "hobby", "starter", "professional", "enterprise")
	gated("list_unsubscribe", q.ListUnsubscribe != "", high...)
	if q.ListUnsubscribe != "" && !unsubscribe.MatchString(q.ListUnsubscribe) {
		add("list_unsubscribe", "The list_unsubscribe must comply with RFC 8058.")
	}
	gated("headers", len(q.Headers) > 0, high...)
	m.Headers = map[string][]string{}
	for i, h := range q.Headers {
		if !headerName.MatchString(h.Name) {
			add(fmt.Sprintf("headers.%d.name", i), "The header name may only contain letters, numbers and dashes.")
		}
		m.Headers[h.Name] = append(m.Headers[h.Name], h.Value)
	}
	for k := range q.Settings {
		if k != "track_clicks" && k != "track_opens" && k != "track_content" {
			add("settings."+k, "This setting does not exist.")
		}
	}
	for i, v := range q.Personalization {
		if !slices.ContainsFunc(slices.Concat(q.To, q.Cc, q.Bcc, q.RcptTo), func(p Person) bool { return strings.EqualFold(p.Email, v.Email) }) {
			add(fmt.Sprintf("personalization.%d.email", i), "The personalization email must be among the recipients. #MS42217")
		}
	}
	m.Attachments = checkAttachments(q, add)
	m.Template, m.Data = q.TemplateID, map[string]map[string]any{}
	for i, v := range q.Personalization {
		if _, twice := m.Data[v.Email]; twice || v.Data == nil {
			add(fmt.Sprintf("personalization.%d", i), "The personalization needs one data object for each email.")
		}
		m.Data[v.Email] = v.Data
	}
	if q.From != nil {
		m.From = *q.From
	}
	m.To, m.Cc, m.Bcc, m.ReplyTo, m.Subject, m.Text, m.HTML, m.Tags = q.To, q.Cc, q.Bcc, q.ReplyTo, q.Subject, q.Text, q.HTML, q.Tags
	m.InReplyTo, m.References, m.ListUnsubscribe = q.InReplyTo, q.References, q.ListUnsubscribe
	m.PrecedenceBulk, m.Settings = q.PrecedenceBulk, q.Settings
	if len(q.To) == 0 {
		m.Bcc = slices.Concat(q.Bcc, q.RcptTo)
	}
	return m, errs
}

func (t *Twin) checkFrom(q *request, add func(field, text string)) {
	switch {
	case q.From == nil && q.TemplateID != "":
	case q.From == nil || q.From.Email == "":
		add("from.email", "The from.email field is required when template_id is not present.")
	case !valid(q.From.Email):
		add("from.email", "The from.email must be a valid email address.")
	case t.o.Domain != "":
		_, d, _ := strings.Cut(strings.ToLower(q.From.Email), "@")
		if own := strings.ToLower(t.o.Domain); d != own && !strings.HasSuffix(d, "."+own) {
			add("from.email", "The from.email domain must be verified in your account to send emails. #MS42207")
		}
	}
}

func (t *Twin) checkPeople(q *request, add func(field, text string)) {
	limits := map[string]int{"to": 50, "cc": 10, "bcc": 10, "rcpt_to": 50} // that of rcpt_to is ours
	if t.o.Review {
		limits = map[string]int{"to": 10, "cc": 1, "bcc": 1, "rcpt_to": 10}
	}
	if len(q.To) == 0 && len(q.RcptTo) == 0 {
		add("to", "The to field is required.")
	}
	if len(q.To) > 0 && len(q.RcptTo) > 0 {
		add("rcpt_to", "What to and rcpt_to together mean is not documented.")
	}
	seen := map[string]bool{}
	for _, l := range []struct {
		field string
		list  []Person
	}{{"to", q.To}, {"cc", q.Cc}, {"bcc", q.Bcc}, {"rcpt_to", q.RcptTo}} {
		if n := limits[l.field]; len(l.list) > n {
			add(l.field, fmt.Sprintf("The %s may not have more than %d items. #MS42205", l.field, n))
		}
		for i, p := range l.list {
			if !valid(p.Email) {
				add(fmt.Sprintf("%s.%d.email", l.field, i), fmt.Sprintf("The %s.%d.email must be a valid email address.", l.field, i))
			}
			if strings.ContainsAny(p.Name, ",;") {
				add(fmt.Sprintf("%s.%d.name", l.field, i), "The name must not contain a comma or a semicolon.")
			}
			k := strings.ToLower(p.Email)
			if seen[k] && !t.o.Duplicates {
				add(l.field, "There are duplicated recipients. #MS42201")
			}
			seen[k] = true
		}
	}
}

func valid(addr string) bool {
	a, err := mail.ParseAddress(addr)
	if err != nil || a.Name != "" || strings.ContainsAny(addr, "<>") {
		return false
	}
	_, domain, _ := strings.Cut(addr, "@")
	return strings.Contains(domain, ".")
}

func checkAttachments(q *request, add func(field, text string)) (out []Attachment) {
	for i, a := range q.Attachments {
		field := func(name string) string { return fmt.Sprintf("attachments.%d.%s", i, name) }
		ext := strings.ToLower(strings.TrimPrefix(path.Ext(a.Filename), "."))
		switch {
		case a.Filename == "":
			add(field("filename"), "The filename field is required.")
		case !slices.Contains(extensions, ext):
			add(field("filename"), "The attachment has an unsupported file type. #MS42210")
		}
		content, err := base64.StdEncoding.Strict().DecodeString(a.Content)
		switch {
		case err != nil:
			add(field("content"), "The content must be base64 encoded. #MS42215")
		case len(content) > maxAttachment:
			add(field("content"), "The attachment may not be greater than 25 MB. #MS42206")
		case ext == "png" && len(content) > 0 && !bytes.HasPrefix(content, []byte("\x89PNG")), ext == "pdf" && len(content) > 0 && !bytes.HasPrefix(content, []byte("%PDF")):
			add(field("content"), "The content does not match the file name's extension. #MS42202")
		}
		id := ""
		if a.ID != nil {
			id = *a.ID
		}
		switch a.Disposition {
		case "attachment":
		case "inline":
			if id == "" || strings.ContainsAny(id, "<>") {
				add(field("id"), "An inline attachment needs an id without brackets.")
			}
		default:
			add(field("disposition"), "The disposition must be inline or attachment.")
		}
		out = append(out, Attachment{Name: a.Filename, Disposition: a.Disposition, ID: id, Content: content})
	}
	return out
}

// Activity is what became of a mail for one recipient, in the words of the activity's filter (delivered, hard_bounced, spam_complaints ...).
type Activity struct {
	ID   string
	Type string
	At   time.Time
	Mail Mail
	Rcpt string
}

// Happen adds an activity, for GET /v1/activity.
func (t *Twin) Happen(a Activity) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.activities = append(t.activities, a)
}

// activity serves GET /v1/activity/DOMAIN, in the form the vendor's Go SDK reads: no row names a message.
func (t *Twin) activity(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	from, err1 := strconv.ParseInt(q.Get("date_from"), 10, 64)
	to, err2 := strconv.ParseInt(q.Get("date_to"), 10, 64)
	limit, _ := strconv.Atoi(q.Get("limit"))
	page, _ := strconv.Atoi(q.Get("page"))
	if err1 != nil || err2 != nil || from >= to || to-from > 7*24*3600 || to > t.o.Now().Unix() || limit < 10 || limit > 100 {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "The given data was invalid.", "errors": map[string][]string{"date_from": {"The dates or the limit are invalid."}}})
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	rows := []any{}
	for _, a := range t.activities {
		if at := a.At.Unix(); at < from || at > to || q.Has("event[]") && !slices.Contains(q["event[]"], a.Type) {
			continue
		}
		rows = append(rows, map[string]any{
			"id": a.ID, "type": a.Type, "created_at": a.At.UTC().Format("2006-01-02T15:04:05.000000Z"), "email": map[string]any{
				"id": "e" + a.ID, "from": a.Mail.From.Email, "subject": a.Mail.Subject, "status": "rejected", "tags": a.Mail.Tags,
				"recipient": map[string]any{"id": "r" + a.ID, "email": a.Rcpt},
			},
		})
	}
	start := min((max(page, 1)-1)*limit, len(rows))
	answer(w, http.StatusOK, map[string]any{"data": rows[start:min(start+limit, len(rows))], "links": map[string]any{"next": nil}})
}

// lists names the suppression lists by the reasons that put an address on them.
var lists = map[string]string{"hard-bounces": "hard_bounced", "spam-complaints": "spam_complaint", "unsubscribes": "unsubscribed", "blocklist": "blocklisted", "on-hold-list": "on_hold"}

// suppressions serves GET /v1/suppressions/LIST, in the form the vendor's Go SDK reads.
func (t *Twin) suppressions(w http.ResponseWriter, r *http.Request, list string) {
	reason, ok := lists[list]
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
	if !ok || r.URL.Query().Has("domain_id") && r.URL.Query().Get("domain_id") != DomainID {
		refuse(w, http.StatusNotFound, "Resource not found.")
		return
	}
	page, limit = max(page, 1), min(max(limit, 10), 100)
	rows := []any{}
	for _, addr := range slices.Sorted(maps.Keys(t.o.Suppressed)) {
		if t.o.Suppressed[addr] != reason {
			continue
		}
		domain := map[string]any{"id": DomainID, "name": t.domain()}
		row := map[string]any{"id": "s" + addr, "created_at": "2026-01-02T03:04:05.000000Z"}
		if list == "blocklist" {
			row["type"], row["pattern"], row["domain"] = "exact", addr, domain
		} else {
			row["recipient"] = map[string]any{"id": "r" + addr, "email": addr, "domain": domain}
		}
		rows = append(rows, row)
	}
	from := min((page-1)*limit, len(rows))
	answer(w, http.StatusOK, map[string]any{"data": rows[from:min(from+limit, len(rows))], "links": map[string]any{"next": nil}, "meta": map[string]any{"current_page": page}})
}

// emails serves GET /v1/emails: one row per recipient, newest first.
func (t *Twin) emails(w http.ResponseWriter, r *http.Request) {
	v := r.URL.Query()
	from, err1 := strconv.ParseInt(v.Get("date_from"), 10, 64)
	to, err2 := strconv.ParseInt(v.Get("date_to"), 10, 64)
	limit, _ := strconv.Atoi(v.Get("limit"))
	if limit == 0 {
		limit = 25
	}
	now := t.o.Now().Unix()
	switch {
	case v.Get("domain_id") != DomainID:
		refuse(w, http.StatusNotFound, "Resource not found.")
		return
	case err1 != nil || err2 != nil || from >= to || to > now || now-from > 30*24*3600 || limit < 10 || limit > 1000:
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": "The given data was invalid.", "errors": map[string][]string{"date_to": {"The dates or the limit are invalid."}}})
		return
	}
	rows := []any{}
	mails := t.Mails()
	slices.Reverse(mails)
	for _, m := range mails {
		if at := m.At.Unix(); at < from || at > to || v.Has("tag") && !slices.Contains(m.Tags, v.Get("tag")) || v.Has("message_id") && m.ID != v.Get("message_id") {
			continue
		}
		for i := range m.Rcpts() {
			if len(rows) < limit {
				rows = append(rows, map[string]any{
					"id": fmt.Sprintf("%s%02x", m.ID[2:], i), "from": m.From.Email, "subject": m.Subject, "text": nil, "html": nil,
					"domain_id": DomainID, "message_id": m.ID, "status": "queued", "tags": m.Tags, "interaction": []string{},
				})
			}
		}
	}
	answer(w, http.StatusOK, map[string]any{"data": rows, "links": map[string]any{"next": nil, "prev": nil, "last": nil}})
}
