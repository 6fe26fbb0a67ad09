package sandbox

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

type wireAddress struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

type wireHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type wireFile struct {
	Name      string        `json:"name"`
	Type      string        `json:"type"`
	ContentID string        `json:"content_id,omitempty"`
	Inline    bool          `json:"inline,omitempty"`
	Content   httpapi.Value `json:"content"`
}

type wireMessage struct {
	Recipients   []string          `json:"recipients"`
	EnvelopeFrom string            `json:"envelope_from"`
	From         *wireAddress      `json:"from,omitempty"`
	To           []wireAddress     `json:"to,omitempty"`
	Cc           []wireAddress     `json:"cc,omitempty"`
	ReplyTo      []wireAddress     `json:"reply_to,omitempty"`
	Subject      string            `json:"subject,omitempty"`
	MessageID    string            `json:"message_id,omitempty"`
	Text         httpapi.Value     `json:"text,omitzero"`
	HTML         httpapi.Value     `json:"html,omitzero"`
	AMP          httpapi.Value     `json:"amp,omitzero"`
	Calendar     httpapi.Value     `json:"calendar,omitzero"`
	Headers      []wireHeader      `json:"headers,omitempty"`
	Attachments  []wireFile        `json:"attachments,omitempty"`
	MIME         httpapi.Value     `json:"mime,omitzero"`
	Tags         []string          `json:"tags,omitempty"`
	Metadata     map[string]string `json:"metadata,omitempty"`
	TrackOpens   *bool             `json:"track_opens,omitempty"`
	TrackClicks  *bool             `json:"track_clicks,omitempty"`
	SendAt       *time.Time        `json:"send_at,omitempty"`
	Ref          string            `json:"ref,omitempty"`
}

type wireResult struct {
	Email   string `json:"email"`
	Result  string `json:"result"`
	ID      string `json:"id"`
	Status  string `json:"status"`
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

// Send makes the call of m.
func (p *Provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	r, err := p.build(m)
	if err != nil {
		return nil, &providers.Error{Provider: name, Op: "send", Kind: providers.Transient, Err: err}
	}
	resp, err := p.api.Do(ctx, r)
	if err != nil {
		return nil, err
	}
	if resp.OK() {
		return p.parse(m, resp)
	}
	return nil, p.classify(m, resp)
}

// Prepare shows the call of m.
func (p *Provider) Prepare(m *translate.Mail) (*http.Request, error) {
	r, err := p.build(m)
	if err != nil {
		return nil, err
	}
	return p.api.Prepare(r)
}

func addresses(list []mime.Address) []wireAddress {
	var out []wireAddress
	for _, a := range list {
		out = append(out, wireAddress{a.Addr, a.Name})
	}
	return out
}

func toggle(s translate.Switch) *bool {
	switch s {
	case translate.On:
		v := true
		return &v
	case translate.Off:
		v := false
		return &v
	}
	return nil
}

func (p *Provider) header() http.Header {
	h := http.Header{"Accept": {"application/json"}}
	if !p.key.Empty() {
		h.Set("Authorization", "Bearer "+p.key.Reveal())
	}
	return h
}

func (p *Provider) build(m *translate.Mail) (httpapi.Request, error) {
	r := httpapi.Request{Op: "send", Method: http.MethodPost, URL: httpapi.JoinURL(p.base, "/v1/send"), Header: p.header()}
	if m.IdempotencyKey != "" {
		r.Header.Set("Idempotency-Key", m.IdempotencyKey)
	}
	j := httpapi.NewJSON()
	w := wireMessage{
		EnvelopeFrom: m.Options.EnvelopeFrom, Tags: m.Options.Tags, Metadata: m.Options.Metadata, Ref: m.Ref,
		TrackOpens: toggle(m.Options.TrackOpens), TrackClicks: toggle(m.Options.TrackClicks),
	}
	for _, rcpt := range m.Rcpts {
		w.Recipients = append(w.Recipients, rcpt.Addr)
	}
	if !m.Options.SendAt.IsZero() {
		at := m.Options.SendAt.UTC()
		w.SendAt = &at
	}
	if m.UseRaw {
		raw, err := m.Raw()
		if err != nil {
			return r, err
		}
		w.MIME = j.Base64(raw.Size, raw.Open)
	} else {
		p.structured(m, j, &w)
	}
	body, err := j.Body(w)
	r.Body = body
	return r, err
}

func (p *Provider) structured(m *translate.Mail, j *httpapi.JSON, w *wireMessage) {
	w.From = &wireAddress{m.From.Addr, m.From.Name}
	w.To, w.Cc, w.ReplyTo = addresses(m.To), addresses(m.Cc), addresses(m.ReplyTo)
	w.Subject, w.MessageID = m.Subject, m.Msg.MessageID
	for _, t := range []struct {
		part *mime.Part
		to   *httpapi.Value
	}{{m.Msg.Text, &w.Text}, {m.Msg.HTML, &w.HTML}, {m.Msg.AMP, &w.AMP}, {m.Msg.Calendar, &w.Calendar}} {
		if t.part != nil {
			*t.to = j.Text(t.part.Open)
		}
	}
	for _, h := range m.Headers {
		w.Headers = append(w.Headers, wireHeader(h))
	}
	for _, a := range m.Attach {
		f := wireFile{Name: a.Name, Type: a.Type, Content: j.Base64(a.Size, a.Open)}
		if a.Inline {
			f.Inline, f.ContentID = true, a.ContentID
		}
		w.Attachments = append(w.Attachments, f)
	}
}

func (p *Provider) parse(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	var v struct {
		ID         string       `json:"id"`
		Recipients []wireResult `json:"recipients"`
	}
	if err := resp.JSON(&v); err != nil {
		return nil, p.api.Unreadable("send", resp, err)
	}
	if v.ID == "" {
		return nil, p.api.Unreadable("send", resp, errors.New("the answer has no id"))
	}
	return p.outcome(m, v.ID, v.Recipients), nil
}

// outcome gives each recipient the answer with his address; without one he is not known to be taken.
func (p *Provider) outcome(m *translate.Mail, id string, results []wireResult) *providers.Outcome {
	byAddr := make(map[string]wireResult, len(results))
	for _, r := range results {
		byAddr[r.Email] = r
	}
	o := &providers.Outcome{MessageID: p.api.Clean(id), Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
	for i, rcpt := range m.Rcpts {
		r := byAddr[rcpt.Addr]
		out := providers.RcptOutcome{
			Addr: rcpt.Addr, MessageID: p.api.Clean(r.ID), Status: event.Clean(r.Status, 16), Detail: p.api.Clean(r.Message),
			Verdict: providers.Deferred, Kind: providers.Transient,
		}
		switch r.Result {
		case "accepted":
			out.Verdict, out.Kind = providers.Accepted, providers.Unknown
		case "rejected":
			out.Verdict, out.Kind = providers.Rejected, providers.Unknown
			out.Reason = event.ReasonOther
			switch r.Reason {
			case event.ReasonInvalid, event.ReasonBlocked:
				out.Reason = r.Reason
			}
		case "deferred":
		default:
			out.Kind = providers.Ambiguous
		}
		o.Rcpts[i] = out
	}
	return o
}

func (p *Provider) classify(m *translate.Mail, resp *httpapi.Response) *providers.Error {
	var v struct {
		Error struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"error"`
	}
	_ = resp.JSON(&v) // the status alone decides when the body says nothing
	e := p.api.Classify("send", resp, v.Error.Code, v.Error.Message)
	switch v.Error.Code {
	case "bad_recipient_in_call":
		e.Split = len(m.Rcpts) > 1
	case "sender_not_verified":
		e.Scope = providers.ScopeDomain
	}
	return e
}

// Check asks for the account.
func (p *Provider) Check(ctx context.Context) error {
	resp, err := p.api.Do(ctx, httpapi.Request{Op: "check", Method: http.MethodGet, URL: httpapi.JoinURL(p.base, "/v1/account"), Header: p.header()})
	if err != nil {
		return err
	}
	if !resp.OK() {
		return p.api.Classify("check", resp, "", "")
	}
	return nil
}

// Find looks a call up by our reference.
func (p *Provider) Find(ctx context.Context, m *translate.Mail, _ time.Time) (*providers.Outcome, providers.Found, error) {
	if m.Ref == "" {
		return nil, providers.CannotTell, nil
	}
	resp, err := p.api.Do(ctx, httpapi.Request{
		Op: "find", Method: http.MethodGet, URL: httpapi.JoinURL(p.base, "/v1/messages?ref="+url.QueryEscape(m.Ref)), Header: p.header(),
	})
	if err != nil {
		return nil, providers.CannotTell, err
	}
	if !resp.OK() {
		return nil, providers.CannotTell, p.api.Classify("find", resp, "", "")
	}
	var v struct {
		Messages []struct {
			ID      string       `json:"id"`
			Ref     string       `json:"ref"`
			Results []wireResult `json:"results"`
		} `json:"messages"`
	}
	if err := resp.JSON(&v); err != nil || v.Messages == nil {
		return nil, providers.CannotTell, nil
	}
	for _, found := range v.Messages {
		if strings.EqualFold(found.Ref, m.Ref) {
			return p.outcome(m, found.ID, found.Results), providers.Present, nil
		}
	}
	return nil, providers.Absent, nil
}
