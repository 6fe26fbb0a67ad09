package mailersend

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// refPrefix marks the tag that carries our reference.
const refPrefix = "sb-"

// Send makes one call of https://developers.mailersend.com/api/v1/email
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	w, r, err := p.build(m)
	if err != nil {
		return nil, &providers.Error{Provider: name, Op: "send", Kind: providers.Transient, Err: err}
	}
	return p.do(ctx, m, w, r)
}

// Prepare builds the call of Send without sending it.
func (p *provider) Prepare(m *translate.Mail) (*http.Request, error) {
	_, r, err := p.build(m)
	if err != nil {
		return nil, err
	}
	return p.client.Prepare(r)
}

// wire is a request with what it could not carry.
type wire struct {
	message
	lost []translate.Loss
}

func (p *provider) build(m *translate.Mail) (*wire, httpapi.Request, error) {
	j := httpapi.NewJSON()
	j.Extra = m.Options.Extra
	w := p.message(m, j)
	var content any = w.message
	path := "email"
	if p.bulk(m) {
		content, path = w.each(), "bulk-email"
	}
	body, err := j.Body(content)
	if err != nil {
		return nil, httpapi.Request{}, err
	}
	return w, httpapi.Request{Op: "send", Method: http.MethodPost, URL: p.url(path), Header: p.header(), Body: body}, nil
}

// bulk reports whether the call is one of the bulk interface. For one recipient the other one says more, at once.
func (p *provider) bulk(m *translate.Mail) bool {
	return p.set.BatchSendMode == batchBulk && m.Options.ExposeRcpts == translate.Off && folded(m.Rcpts) > 1
}

func (p *provider) message(m *translate.Mail, j *httpapi.JSON) *wire {
	w := &wire{message: message{
		From: box(m.From), To: boxes(m.To), Cc: boxes(m.Cc), Bcc: boxes(m.Bcc),
		Subject: m.Subject, Tags: slices.Clone(m.Options.Tags),
		ListUnsubscribe: strings.Trim(m.ListUnsubscribe, "<>"),
		TemplateID:      m.Options.Template.ID,
	}}
	switch {
	case len(w.To) > 0:
	case len(w.Cc) > 0:
		// What is left of a long Cc after the To of an earlier call: a call needs a to.
		w.To, w.Cc = w.Cc, nil
		w.lost = append(w.lost, translate.Loss{Field: "cc", Had: count(len(w.To), "address", "addresses"), Sent: "as to", Severity: translate.Minor})
	default:
		// QUIRK: with an empty to, the addresses of rcpt_to receive as Bcc (README of the vendor's Node SDK 3.4.0).
		w.RcptTo, w.Bcc = w.Bcc, nil
	}
	w.personalize(m)
	if len(m.ReplyTo) > 0 {
		b := box(m.ReplyTo[0])
		w.ReplyTo = &b
	}
	if w.TemplateID == "" {
		w.bodies(m.Msg, j)
	}
	for _, a := range m.Attach {
		out := attachment{Filename: a.Name, Disposition: "attachment", Content: j.Base64(a.Size, a.Open)}
		if a.Inline {
			out.Disposition, out.ID = "inline", a.ContentID
		}
		w.Attachments = append(w.Attachments, out)
	}
	if p.set.ReferenceTag && m.Ref != "" {
		w.Tags = append(w.Tags, refPrefix+m.Ref)
	}
	if at := m.Options.SendAt; at.After(p.now()) {
		w.SendAt = at.Unix()
	}
	w.thread(m.Msg)
	p.headers(m, w)
	s := tracking{TrackClicks: toggle(m.Options.TrackClicks), TrackOpens: toggle(m.Options.TrackOpens), TrackContent: p.set.TrackContent}
	if s != (tracking{}) {
		w.Settings = &s
	}
	return w
}

func (w *wire) bodies(m *mime.Message, j *httpapi.JSON) {
	if m.Text != nil {
		w.Text = j.Text(m.Text.Open)
	}
	if m.HTML != nil {
		w.HTML = j.Text(m.HTML.Open)
	}
}

// personalize gives each recipient the common data with his own, by address: there is no place for common data.
func (w *wire) personalize(m *translate.Mail) {
	data := &m.Options.Merge
	if len(data.Global)+len(data.Rcpt) == 0 {
		return
	}
	for _, b := range slices.Concat(w.To, w.Cc, w.Bcc, w.RcptTo) {
		all := maps.Clone(data.Global)
		if all == nil {
			all = map[string]any{}
		}
		maps.Copy(all, data.Rcpt[envelope.Fold(b.Email)])
		w.Personalization = append(w.Personalization, personal{b.Email, all})
	}
}

// each makes one mail for each recipient, who sees himself alone.
func (w *wire) each() []message {
	out := make([]message, len(w.To))
	for i, b := range w.To {
		out[i] = w.message
		out[i].To, out[i].Personalization = []mailbox{b}, nil
		if len(w.Personalization) > 0 {
			out[i].Personalization = w.Personalization[i : i+1]
		}
	}
	return out
}

// url accepts a base_url with or without the API's version.
func (p *provider) url(path string) string {
	return httpapi.JoinURL(strings.TrimSuffix(strings.TrimRight(p.base, "/"), "/v1"), "v1/"+path)
}

func (p *provider) header() http.Header {
	return http.Header{"Accept": {"application/json"}, "Authorization": {"Bearer " + p.apiToken.Reveal()}}
}

func box(a mime.Address) mailbox { return mailbox{Email: a.Addr, Name: a.Name} }

func boxes(list []mime.Address) []mailbox {
	var out []mailbox
	for _, a := range list {
		out = append(out, box(a))
	}
	return out
}

func toggle(s translate.Switch) *bool {
	if s == translate.Default {
		return nil
	}
	on := s == translate.On
	return &on
}

// likeAddress is what in_reply_to has to look like: QUIRK: the field is documented as an e-mail address, and the vendor's
// Python SDK refuses anything else.
var likeAddress = regexp.MustCompile(`^[A-Za-z0-9!#$%&'*+/=?^_{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_{|}~-]+)*@[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)+$`)

// thread puts one id into in_reply_to, without brackets, and the others where readers find them too: into references.
func (w *wire) thread(m *mime.Message) {
	refs := slices.Clone(m.References)
	for _, id := range m.InReplyTo {
		if w.InReplyTo == "" && likeAddress.MatchString(id) {
			w.InReplyTo = id
		} else if !slices.Contains(refs, id) {
			refs = append(refs, id)
		}
	}
	if n := len(m.InReplyTo); n > 0 && (n > 1 || w.InReplyTo == "") {
		sent := "in references"
		if w.InReplyTo != "" {
			sent = "first only, others in references"
		}
		w.lost = append(w.lost, translate.Loss{Field: "header in-reply-to", Had: count(n, "id", "ids"), Sent: sent, Severity: translate.Minor})
	}
	for _, id := range refs {
		w.References = append(w.References, "<"+id+">")
	}
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

// headers writes what has no field of its own. precedence_bulk is said either way, as the domain may be set to add the
// header to every mail.
func (p *provider) headers(m *translate.Mail, w *wire) {
	custom := plans[p.set.Plan]
	bulk := false
	for _, h := range m.Headers {
		switch strings.ToLower(h.Name) {
		case "in-reply-to", "references":
			continue
		case "precedence":
			switch {
			case p.set.Precedence == precedenceMail && strings.EqualFold(strings.TrimSpace(h.Value), "bulk"):
				bulk = true
				continue
			case !custom:
				w.lost = append(w.lost, translate.Loss{Field: "header precedence", Had: event.Clean(h.Value, 80), Severity: translate.Minor})
				continue
			}
		}
		w.Headers = append(w.Headers, header(h))
	}
	if p.set.Precedence == precedenceMail {
		w.PrecedenceBulk = &bulk
	}
}

func (p *provider) do(ctx context.Context, m *translate.Mail, w *wire, r httpapi.Request) (*providers.Outcome, error) {
	resp, err := p.client.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	if !resp.OK() {
		return p.classify(m, w, resp)
	}
	parse := p.parse
	if p.bulk(m) {
		parse = p.parseBulk
	}
	o, err := parse(m, resp)
	if o != nil {
		o.Lost = w.lost
	}
	return o, err
}

// Warnings of a 202: https://developers.mailersend.com/api/v1/email
const (
	allSuppressed  = "ALL_SUPPRESSED"
	someSuppressed = "SOME_SUPPRESSED"
)

// suppressions are the reasons of a suppression, at submission and in events.
var suppressions = map[string]string{
	"hard_bounced":    event.ReasonBounced,
	"spam_complaint":  event.ReasonSpam,
	"spam_complained": event.ReasonSpam,
	"unsubscribed":    event.ReasonUnsubscribed,
	"blocklisted":     event.ReasonBlocked,
	"on_hold":         event.ReasonBlocked,
}

func suppression(reason string) string {
	if r, ok := suppressions[reason]; ok {
		return r
	}
	return event.ReasonBlocked
}

// parse reads a 202. QUIRK: the proof of acceptance is x-message-id; a call whose recipients are all suppressed is answered
// with 202 too, without it. The body is empty, or JSON under whatever content type.
func (p *provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	id := event.Clean(p.client.Redact(resp.Header.Get("X-Message-Id")), 128)
	var body accepted
	var unread error
	if len(bytes.TrimSpace(resp.Body)) > 0 {
		unread = resp.JSON(&body)
	}
	all := slices.ContainsFunc(body.Warnings, func(s suppressed) bool { return s.Type == allSuppressed })
	switch {
	case id == "" && unread != nil:
		return nil, p.client.Unreadable("send", resp, unread)
	case id == "" && !all:
		return nil, p.client.Unreadable("send", resp, errors.New("the answer has no x-message-id"))
	}
	o := providers.AllAccepted(m, id)
	var warn []string
	for _, s := range body.Warnings {
		said := s.Warning
		if said == "" {
			said = s.Message
		}
		switch s.Type {
		case allSuppressed, someSuppressed:
			named := false
			for i := range o.Rcpts {
				reasons, found := reasonsOf(s, o.Rcpts[i].Addr)
				if !found && s.Type != allSuppressed {
					continue
				}
				named = true
				p.reject(&o.Rcpts[i], reasons)
			}
			if !named {
				warn = append(warn, "some recipients are suppressed, and the answer does not say which: "+string(said))
			}
		default:
			warn = append(warn, string(s.Type+": "+said))
		}
	}
	if strings.EqualFold(resp.Header.Get("X-Send-Paused"), "true") {
		warn = append(warn, "sending is paused for this domain at MailerSend, which has taken the mail nevertheless")
	}
	p.quota(o, resp.Header, warn)
	return o, nil
}

// quota notes what the answer's headers say of the calls that are left, with the warnings so far.
func (p *provider) quota(o *providers.Outcome, h http.Header, warn []string) {
	if pause, used := p.pause(h); pause > 0 {
		o.Throttle = pause
		if used {
			warn = append(warn, "the daily API quota is used up")
		}
	}
	o.Warning = p.client.Clean(strings.Join(warn, "; "))
}

// reasonsOf finds a recipient in a warning. Addresses may come back in another case.
func reasonsOf(s suppressed, addr string) ([]string, bool) {
	for _, r := range s.Recipients {
		if strings.EqualFold(envelope.Fold(string(r.Email)), envelope.Fold(addr)) {
			return r.Reasons, true
		}
	}
	return nil, false
}

func (p *provider) reject(o *providers.RcptOutcome, reasons []string) {
	o.Verdict, o.Status, o.Reason = providers.Rejected, "5.7.1", event.ReasonBlocked
	if len(reasons) > 0 {
		o.Reason = suppression(reasons[0])
	}
	o.Detail = p.client.Clean(strings.TrimSuffix("suppressed by MailerSend: "+strings.Join(reasons, ", "), ": "))
}

// pause says how long to wait when the answer's headers tell that nothing is left of the minute's or the day's requests. Both
// times are the vendor's, so they are measured by its clock.
func (p *provider) pause(h http.Header) (wait time.Duration, day bool) {
	now := p.now()
	if t, err := http.ParseTime(h.Get("Date")); err == nil {
		now = t
	}
	if h.Get("X-Apiquota-Remaining") == "0" {
		if t := parseTime(h.Get("X-Apiquota-Reset")); t.After(now) {
			return t.Sub(now), true
		}
	}
	if h.Get("X-Ratelimit-Remaining") == "0" {
		if n, err := strconv.ParseInt(h.Get("X-Ratelimit-Reset"), 10, 64); err == nil {
			// An hour is already beyond what a limit by the minute can ask for.
			if d := time.Unix(n, 0).Sub(now); d > 0 && d <= time.Hour {
				return d, false
			}
		}
	}
	return 0, false
}

// meaning says what one documented error code stands for.
type meaning struct {
	kind   providers.Kind
	scope  providers.Scope
	plan   bool // the plan lacks a feature, which featureOf finds
	split  bool // the recipients together are the trouble: each is tried in a call of his own
	status string
}

// codes are https://developers.mailersend.com/general (error codes). Of several in one answer the one that keeps the mail counts.
var codes = map[string]meaning{
	"MS5001":  {kind: providers.Transient},
	"MS40001": {kind: providers.Operator}, // the form of the request is ours, not the mail's; MS42229 to MS42231 likewise
	"MS40301": {kind: providers.Operator},
	"MS40302": {kind: providers.Operator},
	"MS40303": {kind: providers.Operator},
	"MS40304": {kind: providers.Operator},
	"MS40305": {kind: providers.Operator}, // our address is not on the token's allow-list
	"MS42201": {kind: providers.Permanent, split: true},
	"MS42202": {kind: providers.Permanent, status: "5.6.1"},
	"MS42204": {kind: providers.Operator},
	"MS42205": {kind: providers.Permanent, split: true},
	"MS42206": {kind: providers.Permanent, status: "5.3.4"},
	"MS42207": {kind: providers.Operator, scope: providers.ScopeDomain},
	"MS42208": {kind: providers.Permanent},
	"MS42209": {kind: providers.Permanent},
	"MS42210": {kind: providers.Permanent, status: "5.6.1"},
	"MS42211": {kind: providers.Permanent},
	"MS42213": {kind: providers.Permanent},
	"MS42214": {kind: providers.Permanent},
	"MS42215": {kind: providers.Permanent, status: "5.6.1"},
	"MS42216": {kind: providers.Operator, plan: true},
	"MS42217": {kind: providers.Permanent},
	// A time in the past or beyond 72 hours is a matter of two clocks: the next attempt asks for another time, or none.
	"MS42218": {kind: providers.Transient},
	"MS42219": {kind: providers.Transient},
	"MS42220": {kind: providers.Permanent},
	"MS42221": {kind: providers.Permanent},
	"MS42222": {kind: providers.Operator},
	"MS42225": {kind: providers.Operator},
	"MS42226": {kind: providers.Operator, scope: providers.ScopeDomain},
	"MS42227": {kind: providers.Permanent},
	"MS42228": {kind: providers.Permanent},
	"MS42229": {kind: providers.Operator},
	"MS42230": {kind: providers.Operator},
	"MS42231": {kind: providers.Operator},
	"MS42901": {kind: providers.RateLimited},
	"MS42903": {kind: providers.RateLimited},
}

// keeps orders kinds by how surely they keep the mail.
var keeps = map[providers.Kind]int{providers.Operator: 3, providers.RateLimited: 2, providers.Transient: 1}

var (
	codePattern = regexp.MustCompile(`#(MS[0-9]{4,6})\b`)
	// rcptField is a field of "errors" that is about a recipient's address, as in "to.0.email".
	rcptField = regexp.MustCompile(`^(to|cc|bcc|rcpt_to)(\.[0-9]+)?(\.email)?$`)
)

func (p *provider) classify(m *translate.Mail, w *wire, resp *httpapi.Response) (*providers.Outcome, error) {
	texts := readRefusal(resp)
	words, code, found := read(texts)
	e := p.client.Classify("send", resp, code, words)
	if resp.Status < 400 || resp.Status >= 500 {
		return nil, e
	}
	rcpts := slices.DeleteFunc(slices.Clone(texts), func(s said) bool { return s.field == "" })
	aboutRcpts := len(rcpts) > 0 && !slices.ContainsFunc(rcpts, func(s said) bool { return !rcptField.MatchString(s.field) })
	several := folded(m.Rcpts) > 1
	switch {
	case found != nil:
		e.Kind, e.Scope, e.Status, e.Unlisted = found.kind, found.scope, found.status, false
		switch {
		case found.plan:
			if f := featureOf(w, texts); f != "" {
				e.Scope, e.Feature = providers.ScopeFeature, f
			}
		case found.split && several:
			e.Split = true
		case found.split:
			e.Kind = providers.Transient // a call with one recipient cannot have that trouble
		case found.kind == providers.Permanent && aboutRcpts && several:
			e.Split = true
		}
	case e.Kind != providers.Permanent:
	case len(texts) == 0 && resp.Status != http.StatusRequestEntityTooLarge:
		// Without an error body nobody says that it is about this mail: a proxy, or a fault of ours.
		e.Kind, e.Unlisted = providers.Transient, true
	case aboutRcpts && several:
		e.Split = true
	case aboutRcpts:
		o := &providers.Outcome{Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
		for i, r := range m.Rcpts {
			o.Rcpts[i] = providers.RcptOutcome{Addr: r.Addr, Verdict: providers.Rejected, Status: "5.1.3", Reason: event.ReasonInvalid, Detail: e.Msg}
		}
		return o, nil
	}
	if resp.Status == http.StatusRequestEntityTooLarge && e.Status == "" {
		e.Status = "5.3.4"
	}
	p.retryAfter(e, resp)
	return nil, e
}

// retryAfter fits the pause: the daily quota names its own end, the limit by the minute has Retry-After.
func (p *provider) retryAfter(e *providers.Error, resp *httpapi.Response) {
	if e.Kind != providers.RateLimited {
		return
	}
	if e.RetryAfter == 0 {
		e.RetryAfter = httpapi.RetryAfter(resp.Header, p.now(), 0)
	}
	pause, day := p.pause(resp.Header)
	switch {
	case e.Code == "MS42901" && !day:
		if t := parseTime(resp.Header.Get("X-Apiquota-Reset")); t.After(p.now()) {
			e.RetryAfter = t.Sub(p.now())
		}
	case day, e.RetryAfter == 0:
		e.RetryAfter = pause
	}
}

// read gives the words of a refusal, and of its codes the one that counts.
func read(texts []said) (words, code string, found *meaning) {
	var parts []string
	for _, t := range texts {
		if t.field == "" && slices.ContainsFunc(texts, func(s said) bool { return s.field != "" && s.text == t.text }) {
			continue // the message repeats the first field's
		}
		part := t.text
		if t.field != "" {
			part = t.field + ": " + part
		}
		if !slices.Contains(parts, part) {
			parts = append(parts, part)
		}
		for _, c := range codePattern.FindAllStringSubmatch(t.text, -1) {
			if code == "" {
				code = c[1]
			}
			if mean, ok := codes[c[1]]; ok && (found == nil || keeps[mean.kind] > keeps[found.kind]) {
				found, code = &mean, c[1]
			}
		}
	}
	return strings.Join(parts, "; "), code, found
}

// featureOf finds what of the mail the plan excludes: what the answer names, else what the call has of that kind. references
// is for paid plans by the README of the vendor's Node SDK 3.4.0.
func featureOf(w *wire, texts []said) string {
	has := []struct {
		feature, word string
		used          bool
	}{
		{"list-unsubscribe", "unsubscribe", w.ListUnsubscribe != ""},
		{"headers", "header", len(w.Headers) > 0},
		{"threading", "references", len(w.References) > 0},
		{"send-at", "send_at", w.SendAt != 0},
		{"tracking", "track_", w.Settings != nil && (w.Settings.TrackClicks != nil || w.Settings.TrackOpens != nil)},
	}
	for _, h := range has {
		if h.used && slices.ContainsFunc(texts, func(s said) bool { return strings.Contains(strings.ToLower(s.field+" "+s.text), h.word) }) {
			return h.feature
		}
	}
	for _, h := range has[:3] {
		if h.used {
			return h.feature
		}
	}
	return ""
}

// folded counts mailboxes: two spellings of one share a call for good.
func folded(list []envelope.Rcpt) int {
	seen := map[string]bool{}
	for _, r := range list {
		seen[envelope.Fold(r.Addr)] = true
	}
	return len(seen)
}

// said is one text of a refusal and the field it is about.
type said struct{ field, text string }

// maxSaid bounds the texts read from one answer.
const maxSaid = 40

// readRefusal reads {"message":"text","errors":{"field":["text", ...]}}.
func readRefusal(resp *httpapi.Response) []said {
	var w refusal
	if resp.JSON(&w) != nil {
		return nil
	}
	var out []said
	if w.Message != "" {
		out = append(out, said{text: string(w.Message)})
	}
	var fields map[string]labels
	if json.Unmarshal(w.Errors, &fields) != nil {
		return out
	}
	names := make([]string, 0, len(fields))
	for f := range fields {
		names = append(names, f)
	}
	slices.Sort(names)
	for _, f := range names {
		for _, s := range fields[f] {
			if len(out) < maxSaid {
				out = append(out, said{f, s})
			}
		}
	}
	return out
}
