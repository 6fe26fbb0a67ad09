package maileroo

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
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

// refTag is the key of the tag that carries our reference.
const refTag = "smtpbridge_ref"

// Send makes one call.
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	r, lost, err := p.build(m)
	if err != nil {
		return nil, &providers.Error{Provider: name, Op: "send", Kind: providers.Transient, Err: err}
	}
	resp, err := p.client.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	out, err := p.parse(m, resp)
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

// build makes the request. The losses are those that the plan could not know.
func (p *provider) build(m *translate.Mail) (httpapi.Request, []translate.Loss, error) {
	j := httpapi.NewJSON()
	j.Extra = m.Options.Extra
	w := message{Subject: m.Subject, Tracking: tracking(m.Options), TemplateID: json.Number(m.Options.Template.ID)}
	path := "emails"
	switch {
	case bulk(m):
		path, w.Messages = "emails/bulk", singles(m)
	case w.TemplateID != "":
		path = "emails/template"
		fallthrough
	default:
		from := recipient(m.From)
		w.single = single{
			From: &from, To: recipients(m.To), Cc: recipients(m.Cc), Bcc: recipients(m.Bcc), ReplyTo: recipients(m.ReplyTo),
			ReferenceID: referenceID(m.Ref), TemplateData: data(m, m.To),
		}
	}
	var lost []translate.Loss
	w.Tags, lost = tags(m)
	var l []translate.Loss
	w.Headers, l = headers(m.Headers)
	lost = append(lost, l...)
	// An instant that has passed means now.
	if at := m.Options.SendAt; at.After(p.now()) {
		w.ScheduledAt = at.UTC().Format(time.RFC3339)
	}

	files, l := p.files(m.Attach)
	lost = append(lost, l...)
	names := map[string]string{} // Content-ID -> the name that stands for it
	for _, f := range files {
		w.Attachments = append(w.Attachments, attachment{
			FileName: f.name, ContentType: f.Type, Content: j.Base64(f.Size, f.Open), Inline: f.Inline,
		})
		if _, ok := names[f.ContentID]; f.Inline && !ok {
			names[f.ContentID] = f.name
		}
	}
	if w.TemplateID == "" {
		p.bodies(&w, m.Msg, j, names)
	}
	body, err := j.Body(w)
	if err != nil {
		return httpapi.Request{}, nil, err
	}
	return httpapi.Request{Op: "send", Method: http.MethodPost, URL: p.url(path, nil), Header: p.header(), Body: body}, lost, nil
}

// bulk reports whether the call is one of the bulk interface: only there are several recipients served with data of their own, and
// placeholders of the text filled in.
func bulk(m *translate.Mail) bool {
	data := &m.Options.Merge
	return len(data.Global)+len(data.Rcpt) > 0 && (m.Options.Template.ID == "" || len(m.To)+len(m.Cc)+len(m.Bcc) > 1 && m.Options.ExposeRcpts == translate.Off)
}

// singles are the messages of a bulk call: one for each recipient, or one for all where they are to see each other.
func singles(m *translate.Mail) []*single {
	from := recipient(m.From)
	one := func(i int, to, cc, bcc []mime.Address) *single {
		return &single{
			From: &from, To: recipients(to), Cc: recipients(cc), Bcc: recipients(bcc), ReplyTo: recipients(m.ReplyTo),
			ReferenceID: memberID(m.Ref, i), TemplateData: data(m, to),
		}
	}
	if m.Options.ExposeRcpts != translate.Off {
		return []*single{one(0, m.To, m.Cc, m.Bcc)}
	}
	var out []*single
	for i := range m.To {
		out = append(out, one(i, m.To[i:i+1], nil, nil))
	}
	return out
}

// data is that of a mail to these people: the common one, and that of a single recipient.
func data(m *translate.Mail, to []mime.Address) map[string]any {
	d := &m.Options.Merge
	if len(d.Global)+len(d.Rcpt) == 0 {
		return nil
	}
	out := map[string]any{}
	maps.Copy(out, d.Global)
	if len(to) == 1 && m.Options.ExposeRcpts == translate.Off {
		maps.Copy(out, d.Rcpt[envelope.Fold(to[0].Addr)])
	}
	return out
}

// memberID is the reference id of the i-th message of a bulk call.
func memberID(ref string, i int) string {
	if ref == "" {
		return ""
	}
	return referenceID(ref + "/" + strconv.Itoa(i))
}

func (p *provider) bodies(w *message, m *mime.Message, j *httpapi.JSON, names map[string]string) {
	text, html := m.Text, m.HTML
	switch {
	case empty(text):
		// "" keeps Maileroo from making a text part of its own: https://maileroo.com/docs/email-api/send-basic-email
		w.Plain = constant(j, "")
	default:
		w.Plain = j.Text(text.Open)
	}
	if !empty(html) {
		open := html.Open
		if p.set.InlineImages == inlineRewrite && len(names) > 0 {
			open = func() io.ReadCloser { return newCIDReader(html.Open(), names) }
		}
		w.HTML = j.Text(open)
	}
}

func constant(j *httpapi.JSON, s string) httpapi.Value {
	return j.Text(func() io.ReadCloser { return io.NopCloser(strings.NewReader(s)) })
}

func empty(part *mime.Part) bool { return part == nil || part.Size == 0 }

// url accepts a base_url with or without the API's path.
func (p *provider) url(path string, query url.Values) string {
	u := httpapi.JoinURL(strings.TrimSuffix(strings.TrimRight(p.base, "/"), "/api/v2"), "api/v2/"+path)
	if len(query) > 0 {
		u += "?" + query.Encode()
	}
	return u
}

func (p *provider) header() http.Header {
	return http.Header{"Accept": {"application/json"}, "X-Api-Key": {p.opts.APIKey.Reveal()}}
}

// referenceID is the call's reference as Maileroo takes it: 24 hexadecimal characters, unique for each message. The same
// call always has the same one.
func referenceID(ref string) string {
	if ref == "" {
		return ""
	}
	sum := sha256.Sum256([]byte("maileroo:" + ref))
	return hex.EncodeToString(sum[:12])
}

var hexReference = regexp.MustCompile(`^[0-9A-Fa-f]{24}$`)

// foldReference gives the one spelling of a reference id of ours; another's is opaque and stays.
func foldReference(id string) string {
	if id = strings.TrimSpace(id); hexReference.MatchString(id) {
		return strings.ToLower(id)
	}
	return event.Clean(id, 128)
}

func recipient(a mime.Address) address {
	out := address{Address: a.Addr, DisplayName: a.Name}
	if strings.TrimSpace(a.Name) == "" {
		out.DisplayName = ""
	}
	return out
}

func recipients(list []mime.Address) []address {
	out := make([]address, len(list))
	for i, a := range list {
		out[i] = recipient(a)
	}
	return out
}

// tracking is one switch for both; nil leaves it to the account's setting.
func tracking(o translate.Options) *bool {
	on := o.TrackOpens == translate.On || o.TrackClicks == translate.On
	if !on && o.TrackOpens != translate.Off && o.TrackClicks != translate.Off {
		return nil
	}
	return &on
}

// tagKey names the n-th tag, from 0: tags are a map at Maileroo, a list everywhere else.
func tagKey(n int) string {
	if n == 0 {
		return "tag"
	}
	return "tag" + strconv.Itoa(n+1)
}

// tags writes tags and metadata as one map. Metadata keys stay, but for the one that is ours; a tag takes the next free name.
func tags(m *translate.Mail) (map[string]string, []translate.Loss) {
	out := map[string]string{}
	maps.Copy(out, m.Options.Metadata)
	var lost []translate.Loss
	if v, ok := out[refTag]; ok {
		lost = []translate.Loss{{Field: "metadata " + refTag, Had: cut(v, 80), Severity: translate.Minor}}
		delete(out, refTag)
	}
	n := 0
	for _, tag := range m.Options.Tags {
		for {
			if _, taken := out[tagKey(n)]; !taken {
				break
			}
			n++
		}
		out[tagKey(n)] = tag
	}
	if m.Ref != "" {
		out[refTag] = m.Ref
	}
	return out, lost
}

// headers writes the further fields. What the API cannot take is left out here only when the plan could not know.
func headers(list []translate.HeaderField) (map[string]string, []translate.Loss) {
	if len(list) == 0 {
		return nil, nil
	}
	out := map[string]string{}
	var lost []translate.Loss
	for _, h := range list {
		if len(h.Name) <= maxMapKey && len(h.Value) <= maxMapValue {
			out[h.Name] = h.Value
			continue
		}
		sev := translate.Minor
		if strings.EqualFold(h.Name, "List-Unsubscribe") {
			sev = translate.Major
		}
		lost = append(lost, translate.Loss{
			Field: "header " + cut(strings.ToLower(h.Name), 80), Had: fmt.Sprintf("%d bytes", max(len(h.Name), len(h.Value))), Severity: sev,
		})
	}
	return out, lost
}

// cut shortens at a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}

// parse reads an answer. What counts is "success": Maileroo's own libraries look at nothing else.
func (p *provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	var a answer
	err := resp.JSON(&a)
	said := err == nil && a.Success.said
	switch {
	case said && a.Success.yes && resp.OK():
		return p.taken(m, a.Data), nil
	case said && a.Success.yes:
		// The status says no and the body yes. Neither can be believed over the other.
		return nil, p.client.Unreadable("send", resp, errors.New("the answer says success, its status does not"))
	case !said && resp.OK():
		if err == nil {
			err = errors.New("the answer does not say whether it was a success")
		}
		return nil, p.client.Unreadable("send", resp, err)
	}
	return p.classify(m, resp, said, string(a.Message))
}

// taken is the outcome of a call that was accepted, under the id of the answer, else under the one we gave it.
func (p *provider) taken(m *translate.Mail, data json.RawMessage) *providers.Outcome {
	var d struct {
		ReferenceID  text   `json:"reference_id"`
		ReferenceIDs labels `json:"reference_ids"`
	}
	if json.Unmarshal(data, &d) != nil {
		d.ReferenceID, d.ReferenceIDs = "", nil
	}
	if bulk(m) {
		return p.bulkTaken(m, d.ReferenceIDs)
	}
	id := foldReference(p.client.Redact(string(d.ReferenceID)))
	if id == "" {
		id = referenceID(m.Ref)
	}
	return providers.AllAccepted(m, id)
}

// bulkTaken is the outcome of a bulk call: ids are answered in the order of the messages.
func (p *provider) bulkTaken(m *translate.Mail, ids []string) *providers.Outcome {
	messages := singles(m)
	id := func(i int) string {
		if len(ids) == len(messages) {
			return foldReference(p.client.Redact(ids[i]))
		}
		return messages[i].ReferenceID
	}
	if len(messages) == 1 {
		return providers.AllAccepted(m, id(0))
	}
	own := map[string]string{}
	for i, a := range m.To {
		own[envelope.Fold(a.Addr)] = id(i)
	}
	o := providers.AllAccepted(m, "")
	for i := range o.Rcpts {
		o.Rcpts[i].MessageID = own[envelope.Fold(o.Rcpts[i].Addr)]
	}
	return o
}

// rule says what a refusal's text means. Maileroo has no error codes; of the texts only the first is documented, the others are
// words that a refusal of that kind can hardly do without. Each of them keeps the mail, so a wrong guess costs an
// alarm and no mail.
type rule struct {
	words     []string // all of them, in lower case
	scheduled bool     // only for a call with scheduled_at
	kind      providers.Kind
	scope     providers.Scope
	feature   string
}

var rules = []rule{
	{words: []string{"linked domain"}, kind: providers.Operator, scope: providers.ScopeDomain},
	// At most a quarter of the month's mail may be scheduled: the bridge then keeps such mail itself.
	{words: []string{"schedul"}, scheduled: true, kind: providers.Operator, scope: providers.ScopeFeature, feature: "send-at"},
	{words: []string{"api key"}, kind: providers.Operator},
	{words: []string{"api-key"}, kind: providers.Operator},
	{words: []string{"sending key"}, kind: providers.Operator},
	{words: []string{"quota"}, kind: providers.Operator},
	{words: []string{"domain", "verif"}, kind: providers.Operator, scope: providers.ScopeDomain},
	// The reference is ours, not the mail's.
	{words: []string{"reference_id"}, kind: providers.Operator},
}

func (p *provider) classify(m *translate.Mail, resp *httpapi.Response, said bool, msg string) (*providers.Outcome, error) {
	e := p.client.Classify("send", resp, "", msg)
	refused := resp.OK() // and "success" is false
	switch resp.Status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		refused = said
	}
	if !refused {
		if e.Kind == providers.Permanent {
			// Not documented for a mail, or not in Maileroo's words: a proxy, or a fault of ours.
			e.Kind, e.Unlisted = providers.Transient, true
		}
		return nil, e
	}
	e.Kind = providers.Permanent
	text := strings.ToLower(msg)
	if strings.Contains(text, "reference") && (strings.Contains(text, "already") || strings.Contains(text, "duplicate")) {
		// A reference id must be unique, and nobody but this call has this one: an earlier attempt was taken.
		return p.taken(m, nil), nil
	}
	for _, r := range rules {
		if r.scheduled && !m.Options.SendAt.After(p.now()) {
			continue
		}
		if !slices.ContainsFunc(r.words, func(w string) bool { return !strings.Contains(text, w) }) {
			e.Kind, e.Scope, e.Feature = r.kind, r.scope, r.feature
			return nil, e
		}
	}
	e.Split = folded(m.Rcpts) > 1 && aboutRecipient(text, m.Rcpts)
	return nil, e
}

var recipientWords = regexp.MustCompile("recipient|email address|[`'\"](to|cc|bcc)[`'\"\\[.]|\\bb?cc\\b")

// aboutRecipient tells whether one recipient of several may be the cause of a refusal.
func aboutRecipient(text string, rcpts []envelope.Rcpt) bool {
	return recipientWords.MatchString(text) ||
		slices.ContainsFunc(rcpts, func(r envelope.Rcpt) bool { return strings.Contains(text, strings.ToLower(r.Addr)) })
}

// folded counts mailboxes: two spellings of one share a call for good.
func folded(list []envelope.Rcpt) int {
	seen := map[string]bool{}
	for _, r := range list {
		seen[envelope.Fold(r.Addr)] = true
	}
	return len(seen)
}

// Check lists one scheduled mail, which needs the sending key and sends nothing: https://maileroo.com/docs/email-api/get-scheduled-emails.
// A key of several domains is told to name one, which proves it good.
func (p *provider) Check(ctx context.Context) error {
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "check", Method: http.MethodGet, URL: p.url("emails/scheduled", url.Values{"page": {"1"}, "per_page": {"1"}}), Header: p.header(),
	})
	if err != nil {
		return asLookup(err)
	}
	var a answer
	err = resp.JSON(&a)
	switch {
	case err == nil && resp.OK() && a.Success.yes:
		return nil
	case err == nil && resp.Status == http.StatusBadRequest && strings.Contains(strings.ToLower(string(a.Message)), "linked domain"):
		return nil
	}
	e := p.client.Classify("check", resp, "", string(a.Message))
	if e.Err == nil && err != nil {
		e.Err = err
	}
	if text := strings.ToLower(e.Msg); strings.Contains(text, "api key") || strings.Contains(text, "api-key") {
		e.Kind = providers.Operator
	}
	return asLookup(e)
}

// asLookup fits an error to a call that has no mail: nothing of it is Permanent or Ambiguous.
func asLookup(err error) error {
	var e *providers.Error
	if errors.As(err, &e) && (e.Kind == providers.Permanent || e.Kind == providers.Ambiguous) {
		e.Kind = providers.Transient
	}
	return err
}
