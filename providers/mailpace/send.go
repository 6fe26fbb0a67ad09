package mailpace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// refPrefix marks the tag that carries our reference.
const refPrefix = "sb-"

// Send makes one call. The same Idempotency-Key gives the stored answer of a success for 24 hours:
// https://docs.mailpace.com/guide/idempotent-requests
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	r, err := p.build(m)
	if err != nil {
		return nil, &providers.Error{Provider: name, Op: "send", Kind: providers.Transient, Err: err}
	}
	return p.do(ctx, m, r)
}

// Prepare builds the call of Send without sending it.
func (p *provider) Prepare(m *translate.Mail) (*http.Request, error) {
	r, err := p.build(m)
	if err != nil {
		return nil, err
	}
	return p.client.Prepare(r)
}

func (p *provider) build(m *translate.Mail) (httpapi.Request, error) {
	j := httpapi.NewJSON()
	j.Extra = m.Options.Extra
	w := message{
		From:            address(m.From),
		To:              addresses(m.To),
		Cc:              addresses(m.Cc),
		Bcc:             addresses(m.Bcc),
		ReplyTo:         addresses(m.ReplyTo),
		Subject:         m.Subject,
		ListUnsubscribe: m.ListUnsubscribe,
		Tags:            slices.Clone(m.Options.Tags),
	}
	if list := m.Msg.InReplyTo; len(list) > 0 {
		w.InReplyTo = messageIDs(list[:1])
	}
	w.References = messageIDs(m.Msg.References)
	if m.Msg.HTML != nil {
		w.HTMLBody = j.Text(m.Msg.HTML.Open)
	}
	if m.Msg.Text != nil {
		w.TextBody = j.Text(m.Msg.Text.Open)
	}
	for _, a := range m.Attach {
		out := attachment{Name: a.Name, ContentType: a.Type, Content: j.Base64(a.Size, a.Open)}
		if a.Inline {
			out.Cid = "<" + a.ContentID + ">"
		}
		w.Attachments = append(w.Attachments, out)
	}
	if p.set.ReferenceTag && m.Ref != "" {
		w.Tags = append(w.Tags, refPrefix+m.Ref)
	}
	body, err := j.Body(w)
	if err != nil {
		return httpapi.Request{}, err
	}
	return httpapi.Request{
		Op: "send", Method: http.MethodPost, URL: p.url(), Header: p.header(m.IdempotencyKey), Body: body,
	}, nil
}

// url accepts a base_url with or without the API's path.
func (p *provider) url() string {
	return httpapi.JoinURL(strings.TrimSuffix(strings.TrimRight(p.base, "/"), "/api/v1"), "api/v1/send")
}

func (p *provider) header(key string) http.Header {
	h := http.Header{
		"Accept":                {"application/json"},
		"Mailpace-Server-Token": {p.apiToken.Reveal()},
	}
	if len(key) > maxKey {
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	}
	if key != "" {
		h.Set("Idempotency-Key", key)
	}
	return h
}

// messageIDs writes ids with brackets, separated by spaces.
func messageIDs(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = "<" + strings.Trim(s, "<>") + ">"
	}
	return strings.Join(out, " ")
}

func addresses(list []mime.Address) string {
	out := make([]string, len(list))
	for i, a := range list {
		out[i] = address(a)
	}
	return strings.Join(out, ", ")
}

// address is a mailbox as RFC 5322 text: MailPace parses it so. The name is always quoted, for
// its commas and brackets, and stays raw UTF-8.
func address(a mime.Address) string {
	if a.Name == "" {
		return a.Addr
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(a.Name) + `" <` + a.Addr + ">"
}

func (p *provider) do(ctx context.Context, m *translate.Mail, r httpapi.Request) (*providers.Outcome, error) {
	resp, err := p.client.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	return p.parse(m, resp)
}

func (p *provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	if !resp.OK() {
		return p.classify(m, resp)
	}
	var a accepted
	if err := resp.JSON(&a); err != nil {
		return nil, p.client.Unreadable("send", resp, err)
	}
	if a.ID == "" {
		return nil, p.client.Unreadable("send", resp, errors.New("the answer has no id"))
	}
	return providers.AllAccepted(m, event.Clean(p.client.Redact(string(a.ID)), 64)), nil
}

// rule says what one documented error means. field is the key of "errors", "" for a plain "error",
// "rcpt" for to, cc and bcc. text is a part of the message in lower case.
type rule struct {
	status int // 0 = any
	field  string
	text   string
	kind   providers.Kind
	scope  providers.Scope
	// culprit: one recipient of several may be the cause, so each is tried in a call of his own; a
	// call with one recipient is refused for reason and code.
	culprit      bool
	reason, code string
}

// rules are https://docs.mailpace.com/reference/responses; the first that fits counts.
var rules = []rule{
	{status: 400, text: "invalid api token", kind: providers.Operator},
	{text: "idempot", kind: providers.Transient}, // the same key is in use by a call under way; its status is not documented
	{status: 400, field: "rcpt", text: "blocked address", kind: providers.Permanent, culprit: true, reason: event.ReasonBlocked, code: "5.7.1"},
	{status: 400, field: "rcpt", text: "exceeds maximum volume", kind: providers.Permanent, culprit: true},
	{status: 400, field: "rcpt", text: "invalid", kind: providers.Permanent, culprit: true, reason: event.ReasonInvalid, code: "5.1.3"},
	{status: 400, field: "rcpt", text: "undefined field", kind: providers.Permanent},
	{status: 400, field: "attachments.name", kind: providers.Permanent, code: "5.6.1"},
	{status: 401, kind: providers.Operator},
	{status: 403, text: "plan", kind: providers.Operator},
	{status: 403, text: "disabled", kind: providers.Operator},
	{status: 403, text: "domain", kind: providers.Operator, scope: providers.ScopeDomain},
	{status: 403, text: "dkim", kind: providers.Operator, scope: providers.ScopeDomain},
	// The request's form is ours, not the mail's: keep mail and tell the operator.
	{status: 406, kind: providers.Operator},
	// Nothing about a conflict is documented; a repeat with the same key is safe.
	{status: 409, kind: providers.Transient},
}

func (p *provider) classify(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	texts := readRefusal(resp)
	var words []string
	for _, t := range texts {
		if t.field == "" {
			words = append(words, t.text)
		} else {
			words = append(words, t.field+" "+t.text)
		}
	}
	msg := strings.Join(words, "; ")
	e := p.client.Classify("send", resp, "", msg)
	found := false
	for _, r := range rules {
		if r.fits(resp.Status, texts) {
			found = true
			e.Kind, e.Scope, e.Unlisted, e.Status = r.kind, r.scope, false, r.code
			if !r.culprit {
				break
			}
			if folded(m.Rcpts) > 1 {
				e.Split, e.Status = true, ""
				break
			}
			if r.reason != "" {
				o := &providers.Outcome{Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
				for i, rc := range m.Rcpts {
					o.Rcpts[i] = providers.RcptOutcome{Addr: rc.Addr, Verdict: providers.Rejected, Status: r.code, Reason: r.reason, Detail: e.Msg}
				}
				return o, nil
			}
			break
		}
	}
	if !found && e.Kind == providers.Permanent && len(texts) == 0 {
		// Without an error body nobody says that it is about this mail: a proxy, or a fault of ours.
		e.Kind, e.Unlisted = providers.Transient, true
	}
	return nil, e
}

// fits reports whether the rule is about one of the texts.
func (r *rule) fits(status int, texts []said) bool {
	if r.status != 0 && r.status != status || r.status == 0 && (status < 400 || status >= 500) {
		return false
	}
	if r.field == "" && r.text == "" {
		return true
	}
	return slices.ContainsFunc(texts, func(t said) bool {
		field := t.field
		if field == "to" || field == "cc" || field == "bcc" {
			field = "rcpt"
		}
		return (r.field == "" || r.field == field) && strings.Contains(strings.ToLower(t.text), r.text)
	})
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
const maxSaid = 20

// readRefusal reads {"error":"text"} and {"errors":{"field":["text", ...]}}, and what is like them.
func readRefusal(resp *httpapi.Response) []said {
	var w refusal
	if resp.JSON(&w) != nil {
		return nil
	}
	var out []said
	add := func(field string, raw json.RawMessage) {
		var one string
		if json.Unmarshal(raw, &one) == nil {
			if one != "" && len(out) < maxSaid {
				out = append(out, said{field, one})
			}
			return
		}
		var list []text
		if json.Unmarshal(raw, &list) == nil {
			for _, s := range list {
				if s != "" && len(out) < maxSaid {
					out = append(out, said{field, string(s)})
				}
			}
		}
	}
	add("", w.Error)
	var fields map[string]json.RawMessage
	if json.Unmarshal(w.Errors, &fields) == nil {
		names := make([]string, 0, len(fields))
		for name := range fields {
			names = append(names, name)
		}
		slices.Sort(names)
		for _, name := range names {
			add(name, fields[name])
		}
	} else {
		add("", w.Errors)
	}
	return out
}

// Check posts an empty mail: with a bad token MailPace names the token, with a good one the missing fields. Nothing
// can be sent by it.
func (c checked) Check(ctx context.Context) error {
	p := c.provider
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "check", Method: http.MethodPost, URL: p.url(), Header: p.header(""), Body: httpapi.Bytes("application/json", []byte("{}")),
	})
	if err != nil {
		return err
	}
	texts := readRefusal(resp)
	if resp.Status == http.StatusBadRequest && slices.ContainsFunc(texts, func(t said) bool { return t.field != "" }) {
		return nil
	}
	e := p.client.Classify("check", resp, "", "")
	if len(texts) > 0 {
		e.Msg = p.client.Clean(texts[0].text)
	}
	for _, r := range rules {
		if r.fits(resp.Status, texts) {
			e.Kind, e.Scope, e.Unlisted = r.kind, r.scope, false
			return e
		}
	}
	if e.Kind == providers.Permanent || e.Kind == providers.Ambiguous {
		e.Kind = providers.Transient
	}
	return e
}
