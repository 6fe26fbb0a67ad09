// Package twin is SMTPeter's API as its documentation describes it, for tests and demonstrations:
// same paths, token in the query, checks, answers keyed by message id, webhooks signed as Copernica
// signs them with the key in DNS, and faults on request. It shares no code with the provider.
//
// Sources: the pages rest-send, rest-mime, rest-dsn, rest-api-response, rest-events and webhook-security of
// https://www.smtpeter.com/en/documentation. Texts and limits they do not give are marked.
package twin

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Options describe the account.
type Options struct {
	Token       string          // access_token; required
	Environment string          // account id, default "1234"
	Domains     []string        // sender domains that are set up; nil = any
	Key         *rsa.PrivateKey // signs webhooks; nil: a new one
	KeyID       string          // its name in DNS, default "one._domainkey.copernica.com"
	Status      int             // of a success, 200 to 202; default 200
	MaxBody     int64           // of a request, default 100 MiB; the real limit is not documented
	Now         func() time.Time
	Client      *http.Client // posts webhooks
	Keep        int          // accepted mails kept in memory, 0 = 10,000; the counter goes on
}

// Mail is an accepted call.
type Mail struct {
	At                        time.Time
	Recipients                []string
	IDs                       []string // one for each recipient
	Envelope                  string
	TrackBounces              bool
	Notify, Ret, EnvID, ORCPT string
	TrackClicks, TrackOpens   bool
	PreventScam, InlineCSS    *bool // nil: the account's setting
	Images                    string
	Tags                      []string
	MIME                      []byte
	Personalised              bool // "data" was given: the template language would have run
	MaxDeliverTime            string

	// Of a mail that is no MIME message.
	From, Subject, Text, HTML string
	To, Cc, ReplyTo           []string
	Extra                     map[string]string
	Unsubscribe               string
	Template                  any // a number or a name
	Data                      map[string]any
	Attachments               []string // name, type and content
}

// Fault is what happens to one request instead of, or after, being served.
type Fault struct {
	Status int           // answer with it and Body, taking nothing
	Header http.Header   // of that answer
	Body   string        // of that answer
	Delay  time.Duration // before anything else
	Drop   bool          // read the request, then close the connection; nothing is taken
	Lose   bool          // take the mail, then close the connection without an answer
	Answer string        // take the mail, then answer 200 with this body
	Omit   int           // take the mail without its last so many recipients
}

// Twin is the API. It is safe for concurrent use. It is a resolver of TXT records too, for its own key.
type Twin struct {
	o Options

	mu      sync.Mutex
	records []Record
	mails   []Mail
	total   int
	faults  []Fault
	nonce   int
	noDNS   bool
}

// New makes an API.
func New(o Options) *Twin {
	if o.Key == nil {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			panic(err) // crypto/rand never fails on a supported system
		}
		o.Key = key
	}
	if o.KeyID == "" {
		o.KeyID = "one._domainkey.copernica.com"
	}
	if o.Environment == "" {
		o.Environment = "1234"
	}
	if o.Status == 0 {
		o.Status = http.StatusOK
	}
	if o.MaxBody <= 0 {
		o.MaxBody = 100 << 20
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

// Count says how many calls were accepted. There is no idempotency: each repeat counts.
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

// ServeHTTP serves send, events/tags and domains.
func (t *Twin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f := t.fault()
	if f.Delay > 0 {
		select {
		case <-time.After(f.Delay):
		case <-r.Context().Done():
			return
		}
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, t.o.MaxBody))
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
		refuse(w, http.StatusRequestEntityTooLarge, "message too large") // not documented
		return
	case r.URL.Query().Get("access_token") != t.o.Token:
		refuse(w, http.StatusUnauthorized, "Invalid access token") // status and text not documented
		return
	}
	tag, isEvents := strings.CutPrefix(r.URL.Path, "/v1/events/tags/")
	id, isMessage := strings.CutPrefix(r.URL.Path, "/v1/events/messageid/")
	file, isLog := strings.CutPrefix(r.URL.Path, "/v1/logfiles/")
	switch {
	case r.URL.Path == "/v1/send" && r.Method == http.MethodPost:
		t.send(w, r, body, f)
	case r.URL.Path == "/v1/domains" && r.Method == http.MethodGet:
		answer(w, http.StatusOK, t.domains())
	case isEvents && r.Method == http.MethodGet:
		t.events(w, r, tag)
	case isMessage && r.Method == http.MethodGet:
		t.message(w, id)
	case isLog && r.Method == http.MethodGet:
		t.logfile(w, file)
	default:
		refuse(w, http.StatusNotFound, "Unknown method")
	}
}

func hangUp(w http.ResponseWriter) {
	if c, _, err := http.NewResponseController(w).Hijack(); err == nil {
		c.Close()
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err) // only strings, numbers and maps of them
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b)
}

// refuse answers as the official PHP client reads it.
func refuse(w http.ResponseWriter, status int, text string) {
	answer(w, status, map[string]string{"error": text})
}

// request is the documented body of the raw variant. Other fields are refused, so that a test finds them.
type request struct {
	Recipient      string         `json:"recipient"`
	Recipients     []string       `json:"recipients"`
	Envelope       string         `json:"envelope"`
	TrackBounces   *bool          `json:"trackbounces"`
	DSN            *dsn           `json:"dsn"`
	MIME           string         `json:"mime"`
	TrackClicks    *bool          `json:"trackclicks"`
	TrackOpens     *bool          `json:"trackopens"`
	PreventScam    *bool          `json:"preventscam"`
	InlineCSS      *bool          `json:"inlinecss"`
	Images         string         `json:"images"`
	Tags           []string       `json:"tags"`
	MaxDeliverTime string         `json:"maxdelivertime"`
	Data           map[string]any `json:"data"`
	// In place of mime: https://www.smtpeter.com/en/documentation/rest-send-json and rest-send-personalize.
	From        string            `json:"from"`
	To          []string          `json:"to"`
	Cc          []string          `json:"cc"`
	ReplyTo     []string          `json:"replyto"`
	TemplateTo  []string          `json:"replyTo"`
	Subject     *string           `json:"subject"`
	Text        *string           `json:"text"`
	HTML        *string           `json:"html"`
	Template    any               `json:"template"`
	Extra       map[string]string `json:"extra"`
	Unsubscribe *struct {
		Email    string `json:"email"`
		URL      string `json:"url"`
		OneClick bool   `json:"oneclick"`
	} `json:"unsubscribe"`
	Attachments []struct {
		Data string `json:"data"`
		Name string `json:"name"`
		Type string `json:"type"`
	} `json:"attachments"`
}

type dsn struct {
	Notify string `json:"notify"`
	Ret    string `json:"ret"`
	EnvID  string `json:"envid"`
	ORCPT  string `json:"orcpt"`
}

func or(b *bool, def bool) bool {
	if b == nil {
		return def
	}
	return *b
}

func (t *Twin) send(w http.ResponseWriter, r *http.Request, body []byte, f Fault) {
	if !strings.HasPrefix(r.Header.Get("Content-Type"), "application/json") {
		refuse(w, http.StatusBadRequest, "Content-Type must be application/json") // forms are documented too; the bridge sends none
		return
	}
	m, text := t.check(body)
	if text != "" {
		refuse(w, http.StatusBadRequest, text)
		return
	}
	if f.Omit > 0 {
		m.Recipients = m.Recipients[:max(len(m.Recipients)-f.Omit, 0)]
	}
	out := map[string]string{}
	for _, a := range m.Recipients {
		id := newID()
		m.IDs = append(m.IDs, id)
		out[id] = a
	}
	t.mu.Lock()
	m.At = t.o.Now()
	t.total++
	t.mails = append(t.mails, m)
	if n := len(t.mails) - t.o.Keep; n > 0 {
		t.mails = slices.Delete(t.mails, 0, n)
	}
	t.mu.Unlock()
	switch {
	case f.Lose:
		hangUp(w)
	case f.Answer != "":
		io.WriteString(w, f.Answer)
	default:
		answer(w, t.o.Status, out)
	}
}

func newID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, as documented
	return hex.EncodeToString(b[:])
}

// check reads a call; the texts are ours but for that on the sender domain.
func (t *Twin) check(body []byte) (m Mail, text string) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	var q request
	if !utf8.Valid(body) {
		return m, "Invalid JSON: not UTF-8"
	}
	if err := d.Decode(&q); err != nil {
		return m, "Invalid JSON: " + err.Error()
	}
	if d.More() {
		return m, "Invalid JSON: more than one value"
	}
	m = Mail{
		Recipients: q.Recipients, Envelope: q.Envelope, TrackBounces: or(q.TrackBounces, true), TrackClicks: or(q.TrackClicks, true), TrackOpens: or(q.TrackOpens, true),
		PreventScam: q.PreventScam, InlineCSS: q.InlineCSS, Images: q.Images, Tags: q.Tags, MIME: []byte(q.MIME), MaxDeliverTime: q.MaxDeliverTime,
		Personalised: q.Data != nil, Data: q.Data, Notify: "FAILURE", Ret: "HDRS",
	}
	if q.Recipient != "" {
		m.Recipients = append(m.Recipients, q.Recipient)
	}
	if len(m.Recipients) == 0 {
		return m, "No recipient"
	}
	for _, a := range append(slices.Clone(m.Recipients), q.Envelope) {
		if p, err := mail.ParseAddress(a); a != "" && (err != nil || p.Name != "" || strings.ContainsAny(a, "<>")) {
			return m, "Invalid address " + a
		}
	}
	for _, tag := range m.Tags {
		if tag == "" || strings.ContainsAny(tag, " \t\r\n;") {
			return m, "Invalid tag: no white space and no semicolon"
		}
	}
	if q.Images != "" && q.Images != "default" && q.Images != "hosted" {
		return m, "Invalid value for images"
	}
	if q.DSN != nil {
		if text := q.DSN.check(); text != "" {
			return m, text
		}
		m.EnvID, m.ORCPT = q.DSN.EnvID, q.DSN.ORCPT
		if q.DSN.Notify != "" {
			m.Notify = q.DSN.Notify
		}
		if q.DSN.Ret != "" {
			m.Ret = q.DSN.Ret
		}
	}
	if q.MaxDeliverTime != "" {
		if _, err := time.Parse(time.DateTime, q.MaxDeliverTime); err != nil {
			return m, "Invalid maxdelivertime"
		}
	}
	if q.MIME == "" && (q.From != "" || q.Template != nil) {
		return t.checkFields(m, &q)
	}
	return m, t.checkMIME(q.MIME)
}

var variable = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)

// checkFields is about a mail that is no MIME message.
func (t *Twin) checkFields(m Mail, q *request) (Mail, string) {
	m.From, m.To, m.Cc, m.ReplyTo, m.Extra, m.Template = q.From, q.To, q.Cc, q.ReplyTo, q.Extra, q.Template
	if q.Template != nil {
		m.ReplyTo = q.TemplateTo
	}
	set := func(into *string, s *string) {
		if s != nil {
			*into = *s
		}
	}
	set(&m.Subject, q.Subject)
	set(&m.Text, q.Text)
	set(&m.HTML, q.HTML)
	if u := q.Unsubscribe; u != nil {
		m.Unsubscribe = fmt.Sprint(u.Email, " ", u.URL, " ", u.OneClick)
	}
	for k := range q.Data {
		if !variable.MatchString(k) || k == "envelope" || k == "recipient" {
			return m, "Invalid variable " + k
		}
	}
	for k := range q.Extra {
		if !strings.HasPrefix(strings.ToLower(k), "x-") {
			return m, "Extra headers must start with x-"
		}
	}
	for _, list := range [][]string{{q.From}, q.To, q.Cc, m.ReplyTo} {
		for _, a := range list {
			if _, err := mail.ParseAddress(a); err != nil && (a != "" || q.Template == nil) {
				return m, "Invalid address " + a
			}
		}
	}
	for _, a := range q.Attachments {
		content, err := base64.StdEncoding.DecodeString(a.Data)
		if err != nil || a.Name == "" {
			return m, "Invalid attachment"
		}
		m.Attachments = append(m.Attachments, a.Name+" "+a.Type+" "+string(content))
	}
	switch q.Template.(type) {
	case nil:
		if q.Text == nil && q.HTML == nil {
			return m, "No content"
		}
		return m, t.checkDomain(q.From)
	case string, float64:
		if q.Text != nil || q.HTML != nil {
			return m, "A template and a text"
		}
		return m, ""
	}
	return m, "Invalid template"
}

func (d *dsn) check() string {
	if d.Notify != "" && d.Notify != "NEVER" {
		for _, n := range strings.Split(d.Notify, ",") {
			if n != "SUCCESS" && n != "FAILURE" && n != "DELAY" {
				return "Invalid dsn notify"
			}
		}
	}
	if d.Ret != "" && d.Ret != "FULL" && d.Ret != "HDRS" {
		return "Invalid dsn ret"
	}
	return ""
}

func (t *Twin) checkMIME(text string) string {
	if text == "" {
		return "No mime, no from and no template"
	}
	msg, err := mail.ReadMessage(strings.NewReader(text))
	if err != nil {
		return "Invalid mime"
	}
	for k := range msg.Header {
		switch k := strings.ToLower(k); {
		case strings.HasPrefix(k, "x-smtpeter-"):
			return "The mime has " + k // would override the options; not refused in earnest
		case k == "bcc":
			return "The mime has a Bcc header" // likewise
		}
	}
	if head, _, _ := strings.Cut(text, "\r\n\r\n"); strings.Count(head, "\n") != strings.Count(head, "\r\n") {
		return "The mime has bare line ends"
	}
	return t.checkDomain(msg.Header.Get("From"))
}

func (t *Twin) checkDomain(text string) string {
	// Names in charsets that Go does not know are of no interest here.
	names := &mime.WordDecoder{CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }}
	from, err := (&mail.AddressParser{WordDecoder: names}).Parse(text)
	if err != nil {
		return "Invalid from address"
	}
	domain := from.Address[strings.LastIndexByte(from.Address, '@')+1:]
	if t.o.Domains != nil && !slices.ContainsFunc(t.o.Domains, func(d string) bool { return strings.EqualFold(d, domain) }) {
		return fmt.Sprintf("You cannot send mailings from %s without configuring it as sender domain", domain)
	}
	return ""
}

func (t *Twin) domains() []map[string]any {
	out := []map[string]any{}
	for _, d := range t.o.Domains {
		out = append(out, map[string]any{"name": d, "approved": true})
	}
	return out
}

// events lists an attempt for each recipient of the mails with the tag, within the days asked for.
func (t *Twin) events(w http.ResponseWriter, r *http.Request, tags string) {
	q := r.URL.Query()
	start, err1 := time.Parse(time.DateOnly, q.Get("start"))
	end, err2 := time.Parse(time.DateOnly, q.Get("end"))
	if err1 != nil || err2 != nil || end.Sub(start) > 31*24*time.Hour {
		refuse(w, http.StatusBadRequest, "start and end must be dates at most a month apart")
		return
	}
	want, err := url.PathUnescape(tags)
	if err != nil {
		refuse(w, http.StatusBadRequest, "bad tags")
		return
	}
	out := []map[string]any{}
	for _, m := range t.Mails() {
		if m.At.Before(start) || !m.At.Before(end) || slices.ContainsFunc(strings.Split(want, ";"), func(s string) bool { return !slices.Contains(m.Tags, s) }) {
			continue
		}
		for i, a := range m.Recipients {
			out = append(out, map[string]any{"event": "attempt", "data": map[string]any{
				"id": m.IDs[i], "time": m.At.UTC().Format(time.DateTime), "recipient": a, "tags": strings.Join(m.Tags, ";"),
			}})
		}
	}
	answer(w, http.StatusOK, out)
}

// Record is a line of a log file: failure, delivery or bounce, about a recipient of a mail.
type Record struct {
	Type      string
	At        time.Time
	ID        string
	Recipient string
	Tags      []string
	More      map[string]any // code, status, description, state ...
}

// Log adds a record.
func (t *Twin) Log(r Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.records = append(t.records, r)
}

func (r Record) data() map[string]any {
	d := map[string]any{"id": r.ID, "time": r.At.UTC().Format(time.DateTime), "recipient": r.Recipient, "tags": strings.Join(r.Tags, ";")}
	for k, v := range r.More {
		d[k] = v
	}
	return d
}

func (t *Twin) recorded(fits func(Record) bool) []Record {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []Record
	for _, r := range t.records {
		if fits(r) {
			out = append(out, r)
		}
	}
	return out
}

// message lists the records of a message.
func (t *Twin) message(w http.ResponseWriter, id string) {
	out := []map[string]any{}
	for _, r := range t.recorded(func(r Record) bool { return r.ID == id }) {
		out = append(out, map[string]any{"event": r.Type, "data": r.data()})
	}
	answer(w, http.StatusOK, out)
}

// logfile serves PREFIX.DATE.log/json. A day without records has no file.
func (t *Twin) logfile(w http.ResponseWriter, name string) {
	prefix, rest, _ := strings.Cut(name, ".")
	day, ok := strings.CutSuffix(rest, ".log/json")
	typ := map[string]string{"failures": "failure", "deliveries": "delivery", "bounces": "bounce"}[prefix]
	list := t.recorded(func(r Record) bool { return r.Type == typ && r.At.UTC().Format(time.DateOnly) == day })
	if !ok || len(list) == 0 {
		refuse(w, http.StatusNotFound, "No such file")
		return
	}
	out := []map[string]any{}
	for _, r := range list {
		out = append(out, r.data())
	}
	answer(w, http.StatusOK, out)
}
