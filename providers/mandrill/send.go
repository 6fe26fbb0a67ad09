package mandrill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/mail"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf16"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// Keys of our own in the metadata, which come back with every event.
const (
	refKey       = "smtpbridge_ref"
	messageIDKey = "smtpbridge_message_id"
)

// maxMessageID bounds the Message-ID that is put into the metadata; how large a value may be is not documented.
const maxMessageID = 255

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
	if !resp.OK() {
		return nil, p.classify("send", m, resp)
	}
	out, err := p.parse(m, resp)
	if err != nil {
		return nil, err
	}
	out.Lost = lost
	return out, nil
}

// Prepare builds the call of Send without sending it. The key, which is part of the body, is masked.
func (p *provider) Prepare(m *translate.Mail) (*http.Request, error) {
	r, _, err := p.build(m)
	if err != nil {
		return nil, err
	}
	return p.client.Prepare(r)
}

func (p *provider) request(op, call string, body *httpapi.Body) httpapi.Request {
	return httpapi.Request{Op: op, Method: http.MethodPost, URL: p.url(call), Header: http.Header{"Accept": {"application/json"}}, Body: body}
}

// build makes the request of a call, and says what of the options does not fit Mandrill.
func (p *provider) build(m *translate.Mail) (httpapi.Request, []translate.Loss, error) {
	o := p.options(m)
	j := httpapi.NewJSON()
	j.Extra = m.Options.Extra
	var w any
	call := "messages/send"
	if m.UseRaw {
		call = "messages/send-raw"
		raw, err := m.RawWith(p.headers(o)...)
		if err != nil {
			return httpapi.Request{}, nil, err
		}
		w = rawCall{
			Key: p.opts.APIKey.Reveal(), To: recipients(m.Rcpts), Async: p.set.Async, IPPool: o.ipPool, SendAt: o.sendAt,
			ReturnPathDomain: o.returnPath, RawMessage: j.Text(raw.Open),
		}
	} else {
		c := p.structured(m, o, j)
		if c.TemplateName != "" {
			call = "messages/send-template"
		}
		w = c
	}
	body, err := j.Body(w)
	if err != nil {
		return httpapi.Request{}, nil, err
	}
	return p.request("send", call, body), o.lost, nil
}

// options are those of a call in Mandrill's terms.
type options struct {
	tags          []string
	metadata      map[string]string
	opens, clicks translate.Switch
	sendAt        string
	lost          []translate.Loss

	ipPool, subaccount, returnPath    string // the mail's, else the account's
	trackingDomain, signingDomain     string
	autoText, autoHTML, inlineCSS, qs translate.Switch
	view                              translate.Switch
	important                         bool
	domains, campaign                 string // link analytics
	clicksIn                          translate.BodyKind
}

func (o *options) lose(field, had, sent string) {
	o.lost = append(o.lost, translate.Loss{Field: field, Had: event.Clean(had, 100), Sent: sent, Severity: translate.Minor})
}

func (p *provider) options(m *translate.Mail) *options {
	o := &options{opens: m.Options.TrackOpens, clicks: m.Options.TrackClicks, metadata: maps.Clone(m.Options.Metadata)}
	if !m.Options.SendAt.IsZero() {
		o.sendAt = m.Options.SendAt.UTC().Format(time.DateTime)
	}
	for _, tag := range m.Options.Tags {
		fit := tag
		if m.UseRaw {
			fit = strings.ReplaceAll(fit, ",", " ") // the header is a list
		}
		fit = strings.TrimSpace(strings.TrimLeft(fit, "_ ")) // a tag with a leading _ fails the call
		if r := []rune(fit); len(r) > maxTag {
			fit = strings.TrimSpace(string(r[:maxTag]))
		}
		if fit != tag {
			o.lose("tag", tag, fit)
		}
		if fit != "" && !slices.Contains(o.tags, fit) {
			o.tags = append(o.tags, fit)
		}
	}
	if o.metadata == nil {
		o.metadata = map[string]string{}
	}
	if m.Ref != "" {
		o.metadata[refKey] = m.Ref
	}
	if id := m.Msg.MessageID; id != "" && len(id) <= maxMessageID {
		o.metadata[messageIDKey] = id
	}
	p.tracking(m, o)
	p.special(m, o)
	return o
}

// special are the options that few mails have, with the account's settings for the others.
func (p *provider) special(m *translate.Mail, o *options) {
	w := &m.Options
	first := func(a, b string) string {
		if a != "" {
			return a
		}
		return b
	}
	o.ipPool, o.subaccount, o.returnPath = first(w.IPPool, p.set.IPPool), first(w.Subaccount, p.set.Subaccount), first(w.ReturnPathDomain, p.set.ReturnPathDomain)
	o.trackingDomain, o.signingDomain = first(w.TrackingDomain, p.set.TrackingDomain), first(w.DKIMDomain, p.set.SigningDomain)
	rewrite := func(s translate.Switch) translate.Switch {
		if s == translate.Default && p.set.Rewriting == "off" {
			return translate.Off
		}
		return s
	}
	qs := translate.Default
	switch strings.ToLower(w.Raw[name][stripQS]) {
	case "true", "on", "yes", "y":
		qs = translate.On
	case "false", "off", "no", "n":
		qs = translate.Off
	}
	o.autoText, o.autoHTML, o.inlineCSS, o.qs, o.view = rewrite(w.AutoText), rewrite(w.AutoHTML), rewrite(w.InlineCSS), rewrite(qs), w.ViewLink
	switch o.important = w.Priority == translate.High; w.Priority {
	case translate.Low, translate.Normal:
		o.lose("priority", w.Priority.String(), "")
	}
	for _, k := range slices.Sorted(maps.Keys(w.Analytics)) {
		switch k {
		case "domains":
			o.domains = w.Analytics[k]
		case "campaign", "utm_campaign":
			o.campaign = w.Analytics[k]
		default:
			o.lose("link analytics", event.Clean(k, 40), "")
		}
	}
	if m.UseRaw {
		o.clicksIn = w.ClicksIn
		return
	}
	if w.ClicksIn != translate.AnyBody {
		o.lose("tracking of clicks", w.ClicksIn.String(), "all")
	}
	if p.set.Form == "raw" {
		// The capabilities are those of the raw form.
		if m.Msg.AMP != nil {
			o.lose("amp alternative", "text/x-amp-html", "")
		}
		if m.Msg.Calendar != nil {
			o.lose("calendar alternative", "text/calendar", "as attachment")
		}
	}
}

// tracking settles what cannot be said as it was wished.
func (p *provider) tracking(m *translate.Mail, o *options) {
	if m.Msg.Signed || m.Msg.Encrypted {
		// A rewritten link would break the signature, whatever the account's setting.
		if o.opens == translate.On || o.clicks == translate.On {
			o.lose("tracking", "on", "off, the mail is signed or encrypted")
		}
		o.opens, o.clicks = translate.Off, translate.Off
		return
	}
	if !m.UseRaw || (o.opens == translate.Default) == (o.clicks == translate.Default) {
		return
	}
	// X-MC-Track names what is on: said for one kind only, it switches the other one off.
	if o.opens == translate.Default {
		o.opens = translate.Off
		o.lose("tracking of opens", "default", "off")
	} else {
		o.clicks = translate.Off
		o.lose("tracking of clicks", "default", "off")
	}
}

// headers are the options of a raw call: https://mailchimp.com/developer/transactional/docs/smtp-integration/
func (p *provider) headers(o *options) []translate.HeaderField {
	var out []translate.HeaderField
	add := func(name, value string) {
		if value != "" {
			out = append(out, translate.HeaderField{Name: name, Value: value})
		}
	}
	add("X-MC-PreserveRecipients", "true")
	for _, x := range []struct {
		name string
		s    translate.Switch
	}{
		{"X-MC-Autotext", o.autoText},
		{"X-MC-AutoHtml", o.autoHTML},
		{"X-MC-InlineCSS", o.inlineCSS},
		{"X-MC-URLStripQS", o.qs},
		{"X-MC-ViewContentLink", o.view},
	} {
		if x.s != translate.Default {
			add(x.name, strconv.FormatBool(x.s == translate.On))
		}
	}
	if o.important {
		add("X-MC-Important", "true")
	}
	if o.opens != translate.Default {
		var on []string
		if o.opens == translate.On {
			on = append(on, "opens")
		}
		if o.clicks == translate.On {
			on = append(on, [...]string{translate.AnyBody: "clicks_all", translate.HTMLBody: "clicks_htmlonly", translate.TextBody: "clicks_textonly"}[o.clicksIn])
		}
		if on == nil {
			// QUIRK: "none" is not on the vendor's page; Symfony's Mandrill transport writes it for both off.
			on = []string{"none"}
		}
		add("X-MC-Track", strings.Join(on, ","))
	}
	add("X-MC-Tags", strings.Join(o.tags, ","))
	if len(o.metadata) > 0 {
		add("X-MC-Metadata", headerJSON(o.metadata))
	}
	add("X-MC-Subaccount", o.subaccount)
	add("X-MC-TrackingDomain", o.trackingDomain)
	add("X-MC-SigningDomain", o.signingDomain)
	add("X-MC-GoogleAnalytics", o.domains)
	add("X-MC-GoogleAnalyticsCampaign", o.campaign)
	return out
}

// headerJSON writes an object in ASCII alone, as an encoded word would not be JSON, with spaces
// between its members, where the field can be folded.
func headerJSON(m map[string]string) string {
	var b strings.Builder
	quote := func(s string) {
		q, err := httpapi.Marshal(s)
		if err != nil {
			return // a string always marshals
		}
		for _, r := range string(q) {
			switch {
			case r < 0x7f:
				b.WriteRune(r)
			case r > 0xffff:
				hi, lo := utf16.EncodeRune(r)
				fmt.Fprintf(&b, `\u%04x\u%04x`, hi, lo)
			default:
				fmt.Fprintf(&b, `\u%04x`, r)
			}
		}
	}
	b.WriteByte('{')
	for i, k := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b.WriteString(", ")
		}
		quote(k)
		b.WriteString(": ")
		quote(m[k])
	}
	b.WriteByte('}')
	return b.String()
}

// recipients are the envelope's, domains as A-labels.
func recipients(list []envelope.Rcpt) []string {
	out := make([]string, len(list))
	for i, r := range list {
		out[i] = wireAddr(r.Addr)
	}
	return out
}

func wireAddr(addr string) string {
	local, domain := envelope.Split(addr)
	if domain == "" || envelope.IsASCII(domain) {
		return addr
	}
	return local + "@" + envelope.FoldDomain(domain)
}

func (p *provider) structured(m *translate.Mail, o *options, j *httpapi.JSON) sendCall {
	w := message{
		FromEmail: wireAddr(m.From.Addr), FromName: m.From.Name, Subject: m.Subject, Tags: o.tags, Metadata: o.metadata,
		// Off, everybody, cc and bcc too, gets a copy that shows him alone in To.
		PreserveRecipients: m.Options.ExposeRcpts != translate.Off,
		TrackOpens:         toggle(o.opens), TrackClicks: toggle(o.clicks),
		TrackingDomain: o.trackingDomain, SigningDomain: o.signingDomain, ReturnPathDomain: o.returnPath, Subaccount: o.subaccount,
		AutoText: toggle(o.autoText), AutoHTML: toggle(o.autoHTML), InlineCSS: toggle(o.inlineCSS), URLStripQS: toggle(o.qs), ViewContentLink: toggle(o.view),
		GoogleCampaign: o.campaign, MergeLanguage: m.Options.Template.Language,
	}
	if o.important {
		w.Important = toggle(translate.On)
	}
	for _, d := range strings.Split(o.domains, ",") {
		if d = strings.TrimSpace(d); d != "" {
			w.GoogleDomains = append(w.GoogleDomains, d)
		}
	}
	for _, l := range []struct {
		kind string
		list []mime.Address
	}{{"to", m.To}, {"cc", m.Cc}, {"bcc", m.Bcc}} {
		for _, a := range l.list {
			w.To = append(w.To, recipient{Email: wireAddr(a.Addr), Name: a.Name, Type: l.kind})
		}
	}
	p.mergeVars(m, o, &w)
	t := m.Options.Template
	if m.Msg.Text != nil {
		w.Text = j.Text(m.Msg.Text.Open)
	}
	if m.Msg.HTML != nil {
		w.HTML = j.Text(m.Msg.HTML.Open)
	}
	if m.Msg.Text == nil && m.Msg.HTML == nil {
		w.Text = j.Text(func() io.ReadCloser { return io.NopCloser(strings.NewReader("")) })
	}
	w.Headers = headerMap(m)
	for _, a := range m.Attach {
		f := file{Type: a.Type, Name: a.Name, Content: j.Base64(a.Size, a.Open)}
		if a.Inline {
			f.Name = a.ContentID // QUIRK: the name of an image is its Content-ID; it has no file name
			w.Images = append(w.Images, f)
			continue
		}
		w.Attachments = append(w.Attachments, f)
	}
	c := sendCall{Key: p.opts.APIKey.Reveal(), Async: p.set.Async, IPPool: o.ipPool, SendAt: o.sendAt, Message: w}
	if t.ID != "" {
		// The template is the mail; its body goes into the block that was named, if one was.
		c.TemplateName, c.TemplateContent = t.ID, []variable{}
		if t.Block != "" {
			content := w.HTML
			if m.Msg.HTML == nil {
				content = w.Text
			}
			c.TemplateContent = append(c.TemplateContent, variable{t.Block, content})
		}
		c.Message.Text, c.Message.HTML = httpapi.Value{}, httpapi.Value{}
	}
	return c
}

// mergeVars gives the merge data. Where there is none, merging is off: *|X|* in a text is a text.
func (p *provider) mergeVars(m *translate.Mail, o *options, w *message) {
	data := &m.Options.Merge
	w.GlobalMergeVars = o.variables(data.Global)
	for _, r := range m.Rcpts {
		if vars := o.variables(data.Rcpt[envelope.Fold(r.Addr)]); len(vars) > 0 {
			w.MergeVars = append(w.MergeVars, rcptVariables{wireAddr(r.Addr), vars})
		}
	}
	switch {
	case len(w.GlobalMergeVars)+len(w.MergeVars) > 0:
		w.Merge = toggle(translate.On)
	case p.set.Rewriting == "off" && m.Options.Template.ID == "":
		w.Merge = toggle(translate.Off)
	}
}

// variables are sorted by name. A name cannot start with an underscore.
func (o *options) variables(data map[string]any) []variable {
	var out []variable
	for _, k := range slices.Sorted(maps.Keys(data)) {
		if k == "" || k[0] == '_' {
			o.lose("merge variable", k, "")
			continue
		}
		out = append(out, variable{k, data[k]})
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

// headerMap holds the further fields; Reply-To, which may be a list, is one of them.
func headerMap(m *translate.Mail) map[string]string {
	out := map[string]string{}
	for _, h := range m.Headers {
		out[h.Name] = h.Value
	}
	has := func(name string) bool {
		for k := range out {
			if strings.EqualFold(k, name) {
				return true
			}
		}
		return false
	}
	if m.ListUnsubscribe != "" && !has("List-Unsubscribe") {
		out["List-Unsubscribe"] = m.ListUnsubscribe
	}
	if m.ListUnsubPost != "" && !has("List-Unsubscribe-Post") {
		out["List-Unsubscribe-Post"] = m.ListUnsubPost
	}
	if len(m.ReplyTo) > 0 {
		list := make([]string, len(m.ReplyTo))
		for i, a := range m.ReplyTo {
			list[i] = (&mail.Address{Name: a.Name, Address: wireAddr(a.Addr)}).String()
		}
		out["Reply-To"] = strings.Join(list, ", ")
	}
	return out
}

// refusal says what a reject_reason means at the moment of sending.
type refusal struct {
	reason, code string
	operator     bool // the sender's domain or the account, not the recipient
}

// refusals are https://mailchimp.com/developer/transactional/api/messages/send-new-message/; the codes are ours.
var refusals = map[string]refusal{
	"hard-bounce":     {reason: event.ReasonBounced, code: "5.1.1"},
	"soft-bounce":     {reason: event.ReasonBounced, code: "5.7.1"},
	"spam":            {reason: event.ReasonSpam, code: "5.7.1"},
	"unsub":           {reason: event.ReasonUnsubscribed, code: "5.7.1"},
	"custom":          {reason: event.ReasonBlocked, code: "5.7.1"},
	"rule":            {reason: event.ReasonBlocked, code: "5.7.1"},
	"invalid":         {reason: event.ReasonInvalid, code: "5.1.3"},
	"unsigned":        {reason: event.ReasonBlocked, code: "5.7.0", operator: true},
	"invalid-sender":  {reason: event.ReasonBlocked, code: "5.7.0", operator: true},
	"test-mode-limit": {reason: event.ReasonBlocked, code: "5.7.0", operator: true},
}

// refusalOf accepts both spellings: the specification changed from underscores to hyphens.
func refusalOf(reason text) (refusal, bool) {
	r, ok := refusals[strings.ReplaceAll(strings.ToLower(string(reason)), "_", "-")]
	return r, ok
}

// parse reads the answer: one entry for each recipient, in an order that is not promised.
func (p *provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	var list []result
	if err := resp.JSON(&list); err != nil {
		return nil, p.client.Unreadable("send", resp, err)
	}
	list = slices.DeleteFunc(list, func(r result) bool { return r.Status == "" })
	if len(list) == 0 {
		return nil, p.client.Unreadable("send", resp, errors.New("the answer names no recipient"))
	}
	o := &providers.Outcome{Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
	var warnings []string
	operator, reason := 0, text("")
	for i, at := range assign(m.Rcpts, list) {
		out := providers.RcptOutcome{Addr: m.Rcpts[i].Addr, Verdict: providers.Deferred, Kind: providers.Ambiguous}
		if at < 0 {
			out.Detail = "the answer does not name this recipient"
			o.Rcpts[i] = out
			continue
		}
		r := list[at]
		out.MessageID = p.id(r.ID)
		switch r.Status {
		case "sent", "queued", "scheduled":
			out.Verdict, out.Kind = providers.Accepted, providers.Unknown
			if w := warning(r.QueuedReason); w != "" && !slices.Contains(warnings, w) {
				warnings = append(warnings, w)
			}
		case "rejected", "invalid":
			ref, ok := refusalOf(r.RejectReason)
			switch {
			case !ok && r.Status == "invalid":
				ref = refusals["invalid"]
			case !ok:
				ref = refusal{reason: event.ReasonOther, code: "5.7.1"}
			}
			out.Verdict, out.Kind = providers.Rejected, providers.Unknown
			out.Status, out.Reason = ref.code, ref.reason
			out.Detail = "Mandrill: " + string(r.Status)
			if r.RejectReason != "" && r.RejectReason != r.Status {
				out.Detail = p.client.Clean(out.Detail + ", " + string(r.RejectReason))
			}
			if ref.operator {
				out.Verdict, out.Kind, out.Reason = providers.Deferred, providers.Operator, ""
				operator++
				reason = r.RejectReason
			}
		default:
			// A status of times to come: with an id Mandrill has taken the mail.
			if out.MessageID != "" {
				out.Verdict, out.Kind = providers.Accepted, providers.Unknown
				warnings = append(warnings, "unknown status "+event.Clean(string(r.Status), 64))
			}
			out.Detail = p.client.Clean("Mandrill: " + string(r.Status))
		}
		o.Rcpts[i] = out
	}
	if operator == len(m.Rcpts) {
		// Nobody's mail was taken, and nobody's address is the cause.
		e := &providers.Error{
			Provider: name, Op: "send", Kind: providers.Operator, HTTPStatus: resp.Status, Status: "5.7.0",
			Code: event.Clean(p.client.Redact(string(reason)), 64), Msg: "Mandrill rejects every recipient of this sender",
		}
		if reason != "test-mode-limit" {
			e.Scope = providers.ScopeDomain
			e.Msg = "the From domain is not verified at Mandrill with SPF and DKIM: every recipient is rejected"
		}
		return nil, e
	}
	if len(o.Rcpts) == 1 {
		o.MessageID = o.Rcpts[0].MessageID
	}
	if len(warnings) > 0 {
		o.Warning = p.client.Clean("Mandrill accepted the mail and holds it: " + strings.Join(warnings, ", "))
	}
	return o, nil
}

func (p *provider) id(id text) string { return event.Clean(p.client.Redact(string(id)), 128) }

// warning tells the operator about a reason to wait that is about the account. Attachments and several recipients
// alone make Mandrill queue a mail.
func warning(reason text) string {
	switch reason {
	case "", "attachments", "multiple-recipients":
		return ""
	}
	return event.Clean(string(reason), 64)
}

// assign finds the entry of each recipient, -1 for none: by the exact address, then by the folded one, then
// without regard to case, and the last one left over is for the last recipient left over. Recipients
// that are one mailbox share an entry when there is no second one.
func assign(rcpts []envelope.Rcpt, list []result) []int {
	out := make([]int, len(rcpts))
	used := make([]bool, len(list))
	for i := range out {
		out[i] = -1
	}
	match := func(again bool, same func(a, b string) bool) {
		byAddr := map[string][]int{}
		key := func(s string) string { return strings.ToLower(envelope.Fold(s)) }
		for k, r := range list {
			byAddr[key(string(r.Email))] = append(byAddr[key(string(r.Email))], k)
		}
		for i, r := range rcpts {
			if out[i] >= 0 {
				continue
			}
			for _, k := range byAddr[key(r.Addr)] {
				if (again || !used[k]) && same(r.Addr, string(list[k].Email)) {
					out[i], used[k] = k, true
					break
				}
			}
		}
	}
	any := func(string, string) bool { return true }
	match(false, func(a, b string) bool { return a == b })
	match(false, envelope.Equal)
	match(false, any)
	match(true, any)
	if left := slices.Index(out, -1); left >= 0 && !slices.Contains(out[left+1:], -1) {
		if k := slices.Index(used, false); k >= 0 && !slices.Contains(used[k+1:], false) {
			out[left] = k
		}
	}
	return out
}

// names of errors and what is to be done about them. HTTP statuses decide second: old versions of the API answer every
// error with 500, and for sends the specification declares 200, 401, 402, 404 and 500 only.
var names = map[string]providers.Kind{
	"Invalid_Key":          providers.Operator,
	"PaymentRequired":      providers.Operator,
	"Unknown_Subaccount":   providers.Operator,
	"Unknown_Template":     providers.Operator,
	"PoorReputation":       providers.Operator, // in older client libraries only
	"ValidationError":      providers.Permanent,
	"RequestLimitExceeded": providers.RateLimited,
	"ServiceUnavailable":   providers.Transient,
	"GeneralError":         providers.Transient,
}

// ourFields are those of a call that come from the account's settings, not from the mail.
var ourFields = []string{"key", "async", "ip_pool", "subaccount", "return_path_domain", "tracking_domain", "signing_domain"}

func (p *provider) classify(op string, m *translate.Mail, resp *httpapi.Response) *providers.Error {
	var a apiError
	if resp.JSON(&a) != nil {
		a = apiError{}
	}
	e := p.client.Classify(op, resp, string(a.Name), string(a.Message))
	kind, known := names[string(a.Name)]
	switch {
	case !known:
		if e.Kind == providers.Permanent {
			// Without an error that the vendor's list has, nobody says that it is about this mail.
			e.Kind, e.Unlisted = providers.Transient, true
		}
		return e
	case kind == providers.Transient && e.Kind == providers.RateLimited: // it says when to come back
		return e
	}
	e.Kind, e.Unlisted = kind, false
	switch a.Name {
	case "RequestLimitExceeded":
		now := p.now()
		e.RetryAfter = httpapi.RetryAfter(resp.Header, now, 0)
	case "PaymentRequired":
		if m != nil && !m.Options.SendAt.IsZero() {
			// Scheduling needs a paid balance; the bridge can hold the mail by itself.
			e.Scope, e.Feature = providers.ScopeFeature, "send-at"
		}
	case "Unknown_Subaccount":
		if m != nil && m.Options.Subaccount != "" {
			e.Kind = providers.Permanent // the mail's own word
		}
	case "Unknown_Template":
		if m != nil && m.Options.Template.ID != "" {
			e.Kind = providers.Permanent
		}
	case "ValidationError":
		fields := fieldsOf(string(a.Message))
		switch {
		case strings.Contains(strings.ToLower(string(a.Message)), "specify a key") || slices.ContainsFunc(ourFields, func(f string) bool { return fields[f] }):
			e.Kind = providers.Operator
		case m == nil:
			e.Kind = providers.Transient
		case fields["to"] && folded(m.Rcpts) > 1:
			e.Split = true
		}
	}
	return e
}

// folded counts mailboxes: two spellings of one share a call for good.
func folded(list []envelope.Rcpt) int {
	seen := map[string]bool{}
	for _, r := range list {
		seen[envelope.Fold(r.Addr)] = true
	}
	return len(seen)
}

// fieldsOf gives the names of the fields that a ValidationError complains of: its message ends in an object
// that has the structure of the call.
func fieldsOf(msg string) map[string]bool {
	out := map[string]bool{}
	i := strings.IndexByte(msg, '{')
	if i < 0 {
		return out
	}
	var v any
	if json.NewDecoder(strings.NewReader(msg[i:])).Decode(&v) != nil {
		return out
	}
	top, _ := v.(map[string]any)
	for k, x := range top {
		out[k] = true
		if in, ok := x.(map[string]any); ok && k == "message" {
			for k := range in {
				out[k] = true
			}
		}
	}
	return out
}

// Check asks for an answer to the key, which changes nothing.
func (p *provider) Check(ctx context.Context) error {
	var pong struct{ PING text }
	err := p.post(ctx, "check", "users/ping2", map[string]any{}, &pong)
	var e *providers.Error
	if err == nil && pong.PING != "PONG!" || errors.As(err, &e) && e.HTTPStatus == http.StatusOK {
		return &providers.Error{Provider: name, Op: "check", Kind: providers.Operator, HTTPStatus: http.StatusOK, Msg: "the answer to a ping is not Mandrill's; check base_url and api_version"}
	}
	return err
}
