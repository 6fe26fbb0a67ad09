package smtpeter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// refPrefix marks the tag, and the envelope id, that carry our reference.
const refPrefix = "sb-"

// Send makes one call: https://www.smtpeter.com/en/documentation/rest-send
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	r, lost, err := p.build(m)
	if err != nil {
		return nil, &providers.Error{Provider: name, Op: "send", Kind: providers.Transient, Err: err}
	}
	out, err := p.do(ctx, m, r)
	if err != nil {
		return nil, err
	}
	out.Lost = lost
	return out, nil
}

// Prepare builds the call of Send without sending it.
func (p *provider) Prepare(m *translate.Mail) (*http.Request, error) {
	r, _, err := p.build(m)
	if err != nil {
		return nil, err
	}
	return p.client.Prepare(r)
}

func (p *provider) build(m *translate.Mail) (httpapi.Request, []translate.Loss, error) {
	j := httpapi.NewJSON()
	j.Extra = m.Options.Extra
	w := message{
		Recipients:   distinct(m.Rcpts),
		TrackBounces: p.set.Bounces != bouncesSender,
		DSN:          p.dsn(m),
		TrackClicks:  m.Options.TrackClicks == translate.On,
		TrackOpens:   m.Options.TrackOpens == translate.On,
		PreventScam:  said(m.Options.Raw[name][preventScam], p.set.PreventScam),
		InlineCSS:    m.Options.InlineCSS == translate.On || m.Options.InlineCSS == translate.Default && p.set.InlineCSS,
		Images:       "default",
	}
	if at := m.Options.ExpiresAt; !at.IsZero() {
		w.MaxDelivery = at.UTC().Format(time.DateTime)
	}
	if p.set.Bounces != bouncesReport {
		w.Envelope = m.Options.EnvelopeFrom
	}
	if p.set.HostImages || strings.EqualFold(m.Options.Raw[name][images], "hosted") {
		w.Images = "hosted"
	}
	var lost []translate.Loss
	if m.UseRaw {
		raw, err := m.Raw()
		if err != nil {
			return httpapi.Request{}, nil, err
		}
		w.MIME = j.Text(raw.Open)
	} else {
		w.content, lost = structured(m, j)
	}
	for _, tag := range m.Options.Tags {
		fit := fitTag(tag)
		if fit != tag {
			lost = append(lost, translate.Loss{Field: "tag", Had: event.Clean(tag, 100), Sent: fit, Severity: translate.Minor})
		}
		if fit != "" && !slices.Contains(w.Tags, fit) {
			w.Tags = append(w.Tags, fit)
		}
	}
	if p.set.ReferenceTag && m.Ref != "" {
		w.Tags = append(w.Tags, refPrefix+m.Ref)
	}
	body, err := j.Body(w)
	if err != nil {
		return httpapi.Request{}, nil, err
	}
	return httpapi.Request{
		Op: "send", Method: http.MethodPost, URL: p.url("send", nil), Header: http.Header{"Accept": {"application/json"}}, Body: body,
	}, lost, nil
}

// url is an API method with the token: SMTPeter takes it in the query only. A base_url may have the API's path or not.
func (p *provider) url(path string, query url.Values) string {
	q := url.Values{"access_token": {p.opts.APIKey.Reveal()}}
	for k, v := range query {
		q[k] = v
	}
	return httpapi.JoinURL(strings.TrimSuffix(strings.TrimRight(p.base, "/"), "/v1"), "v1/"+path) + "?" + q.Encode()
}

// dsn gives the parameters of RFC 3461. As long as SMTPeter collects the bounces nobody gets a mail by
// them: they are what its failure and bounce events are made of, so a client's NOTIFY=NEVER, which governs
// mail only, must not silence them. Where bounces go to the sender himself, his wishes are passed on; recipients
// of one call share them, so the widest wish counts.
func (p *provider) dsn(m *translate.Mail) dsn {
	d := dsn{Notify: "FAILURE", Ret: "HDRS"}
	if p.set.Bounces != bouncesSender {
		if m.Ref != "" {
			d.EnvID = refPrefix + m.Ref
		}
		return d
	}
	wish := map[string]bool{}
	for _, r := range m.Rcpts {
		if len(r.Notify) == 0 {
			wish["FAILURE"] = true // RFC 3461 4.1: FAILURE is what most servers do when nothing is said
		}
		for _, n := range r.Notify {
			wish[strings.ToUpper(n)] = true
		}
	}
	var list []string
	for _, n := range []string{"SUCCESS", "FAILURE", "DELAY"} {
		if wish[n] {
			list = append(list, n)
		}
	}
	if d.Notify = strings.Join(list, ","); list == nil {
		d.Notify = "NEVER"
	}
	if m.Env.Ret != "" {
		d.Ret = m.Env.Ret
	}
	d.EnvID = m.Env.EnvID
	if len(m.Rcpts) == 1 {
		d.ORCPT = m.Rcpts[0].ORCPT
	}
	return d
}

// distinct lists each mailbox once: the call may hold two spellings of one.
func distinct(list []envelope.Rcpt) []string {
	seen := make(map[string]bool, len(list))
	out := make([]string, 0, len(list))
	for _, r := range list {
		if k := envelope.Fold(r.Addr); !seen[k] {
			seen[k] = true
			out = append(out, r.Addr)
		}
	}
	return out
}

// fitTag makes a tag without white space and semicolons, which SMTPeter refuses.
func fitTag(tag string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r == ';' || unicode.IsSpace(r) || unicode.IsControl(r) {
			return '_'
		}
		return r
	}, tag), "_")
}

func (p *provider) do(ctx context.Context, m *translate.Mail, r httpapi.Request) (*providers.Outcome, error) {
	resp, err := p.client.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	return p.parse(m, resp)
}

// unreadableWarning is for the operator: events still find the mail by its tag.
const unreadableWarning = "SMTPeter accepted a call, but its answer could not be read: the message ids are unknown; the mail is not sent again"

func (p *provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	if !resp.OK() {
		return nil, p.classify(resp)
	}
	var ids []idPair
	if !resp.Truncated {
		ids = readIDs(resp.Body)
	}
	if len(ids) == 0 {
		var w struct {
			Error json.RawMessage `json:"error"`
		}
		if resp.JSON(&w) == nil && len(w.Error) > 0 && string(w.Error) != "null" {
			// An error in a 2xx is documented nowhere: neither a yes nor a no.
			return nil, p.client.Unreadable("send", resp, errors.New("the answer has an error text"))
		}
		o := providers.AllAccepted(m, "")
		o.Warning = unreadableWarning
		return o, nil
	}
	return p.outcome(m, ids), nil
}

// idPair is one entry of the answer.
type idPair struct{ id, addr string }

// outcome gives each recipient the id of its address. With fewer ids than recipients those without one were not
// accepted; otherwise an address we do not find again was only spelt in another way.
func (p *provider) outcome(m *translate.Mail, ids []idPair) *providers.Outcome {
	byAddr := make(map[string]string, len(ids))
	for _, x := range ids {
		byAddr[loose(x.addr)] = event.Clean(p.client.Redact(x.id), 256)
	}
	all := len(ids) >= len(distinct(m.Rcpts))
	o := &providers.Outcome{Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
	for i, r := range m.Rcpts {
		id, ok := byAddr[loose(r.Addr)]
		switch {
		case ok:
			o.Rcpts[i] = providers.RcptOutcome{Addr: r.Addr, Verdict: providers.Accepted, MessageID: id}
		case all:
			o.Rcpts[i] = providers.RcptOutcome{Addr: r.Addr, Verdict: providers.Accepted}
			if len(ids) == 1 {
				o.Rcpts[i].MessageID = byAddr[loose(ids[0].addr)]
			} else {
				o.Warning = "SMTPeter's answer names other addresses than the call: some message ids are unknown"
			}
		default:
			o.Rcpts[i] = providers.RcptOutcome{
				Addr: r.Addr, Verdict: providers.Deferred, Kind: providers.Transient, Detail: "SMTPeter's answer does not name the recipient",
			}
		}
	}
	if len(ids) == 1 {
		o.MessageID = byAddr[loose(ids[0].addr)]
	}
	return o
}

// loose is how an answer's address is compared: SMTPeter may fold the local part too.
func loose(addr string) string { return strings.ToLower(envelope.Fold(strings.TrimSpace(addr))) }

// readIDs reads {"id": "address", ...}, as documented, and its likely relatives: the address in an object or a
// list, the map the other way round, a list of objects. nil: nothing of the kind.
func readIDs(body []byte) []idPair {
	var m map[string]json.RawMessage
	if json.Unmarshal(body, &m) == nil {
		var out []idPair
		for k, v := range m {
			if x, ok := readPair(k, v); ok {
				out = append(out, x)
			}
		}
		slices.SortFunc(out, func(a, b idPair) int { return strings.Compare(a.id, b.id) })
		return out
	}
	var list []map[string]json.RawMessage
	if json.Unmarshal(body, &list) != nil {
		return nil
	}
	var out []idPair
	for _, o := range list {
		if id, addr := scalar(o["id"]), addressIn(o); id != "" && addr != "" {
			out = append(out, idPair{id, addr})
			continue
		}
		for k, v := range o {
			if x, ok := readPair(k, v); ok {
				out = append(out, x)
			}
		}
	}
	return out
}

func readPair(k string, v json.RawMessage) (idPair, bool) {
	s := scalar(v)
	if isAddress(k) && s != "" && !isAddress(s) {
		return idPair{s, k}, true
	}
	if s == "" {
		var list []string
		var o map[string]json.RawMessage
		switch {
		case json.Unmarshal(v, &list) == nil && len(list) == 1:
			s = list[0]
		case json.Unmarshal(v, &o) == nil:
			s = addressIn(o)
		}
	}
	return idPair{k, s}, k != "" && !isAddress(k) && isAddress(s) && k != "error" && k != "message"
}

func isAddress(s string) bool { return envelope.ValidateAddr(s) == nil }

func addressIn(o map[string]json.RawMessage) string {
	for _, k := range []string{"recipient", "email", "address"} {
		if s := scalar(o[k]); isAddress(s) {
			return s
		}
	}
	return ""
}

// scalar is a string or a number as text, else "".
func scalar(v json.RawMessage) string {
	var s string
	if json.Unmarshal(v, &s) == nil {
		return s
	}
	var n json.Number
	if json.Unmarshal(v, &n) == nil {
		return n.String()
	}
	return ""
}

// rule says what an error text means; SMTPeter has no codes. All words must be in it, in lower case.
type rule struct {
	status int // 0 = any
	words  []string
	kind   providers.Kind
	scope  providers.Scope
}

// rules: the first that fits counts. Only the text on sender domains is known word for word (a public wrapper's
// test); the others follow https://www.smtpeter.com/en/documentation/rest-api-response and the licence page.
var rules = []rule{
	{words: []string{"sender domain"}, kind: providers.Operator, scope: providers.ScopeDomain},
	{words: []string{"cannot send mailings from"}, kind: providers.Operator, scope: providers.ScopeDomain},
	{words: []string{"access token"}, kind: providers.Operator},
	{words: []string{"access_token"}, kind: providers.Operator},
	{words: []string{"invalid token"}, kind: providers.Operator},
	{words: []string{"licence"}, kind: providers.Operator},
	{words: []string{"license"}, kind: providers.Operator},
	{words: []string{"balance"}, kind: providers.Operator},
	{words: []string{"credits"}, kind: providers.Operator},
	{status: 400, words: []string{"https"}, kind: providers.Operator}, // plain HTTP is refused so
}

// classify reads a refusal. A 400 is about the mail only when a text says something.
func (p *provider) classify(resp *httpapi.Response) *providers.Error {
	text := errorText(resp)
	e := p.client.Classify("send", resp, "", text)
	if resp.Status < 400 || resp.Status >= 500 || e.Kind == providers.RateLimited {
		return e
	}
	lower := strings.ToLower(text)
	for _, r := range rules {
		if (r.status == 0 || r.status == resp.Status) && !slices.ContainsFunc(r.words, func(w string) bool { return !strings.Contains(lower, w) }) {
			e.Kind, e.Scope, e.Unlisted = r.kind, r.scope, false
			return e
		}
	}
	if e.Kind == providers.Permanent && text == "" {
		// Nothing that SMTPeter says: a proxy, or a fault of ours.
		e.Kind, e.Unlisted = providers.Transient, true
	}
	return e
}

// errorText is the JSON member "error", else the body as it is: clients of SMTPeter disagree. A web
// page, or JSON without an error, says nothing.
func errorText(resp *httpapi.Response) string {
	body := bytes.TrimSpace(resp.Body)
	if len(body) == 0 || body[0] == '<' || resp.Truncated {
		return ""
	}
	if !json.Valid(body) {
		if body[0] == '{' || body[0] == '[' {
			return ""
		}
		return string(body)
	}
	var s string
	if json.Unmarshal(body, &s) == nil {
		return s
	}
	var w struct {
		Error   json.RawMessage `json:"error"`
		Message json.RawMessage `json:"message"`
	}
	if json.Unmarshal(body, &w) != nil {
		return ""
	}
	if json.Unmarshal(w.Error, &s) == nil && s != "" {
		return s
	}
	var inner struct {
		Message string `json:"message"`
	}
	if json.Unmarshal(w.Error, &inner) == nil && inner.Message != "" {
		return inner.Message
	}
	if w.Error == nil && json.Unmarshal(w.Message, &s) == nil {
		return s
	}
	return ""
}
