package smtpeter

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// Find looks for the call's reference tag among the events of the time since:
// https://www.smtpeter.com/en/documentation/rest-events. Dates are UTC days, the end is exclusive, a query spans
// a month at most. An event of any kind proves that the call was taken; without one it is Absent as far as the log goes.
func (p *provider) Find(ctx context.Context, m *translate.Mail, since time.Time) (*providers.Outcome, providers.Found, error) {
	if !p.set.ReferenceTag || m.Ref == "" {
		return nil, providers.CannotTell, nil
	}
	now := p.now().UTC()
	// A day of margin on both sides: the clocks are two.
	start, end := since.UTC().AddDate(0, 0, -1), now.AddDate(0, 0, 2)
	whole := true
	if oldest := end.AddDate(0, 0, -28); start.Before(oldest) {
		start, whole = oldest, false
	}
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "find", Method: http.MethodGet, Header: http.Header{"Accept": {"application/json"}},
		URL: p.url("events/tags/"+url.PathEscape(refPrefix+m.Ref), url.Values{"start": {start.Format(time.DateOnly)}, "end": {end.Format(time.DateOnly)}}),
	})
	if err != nil {
		return nil, providers.CannotTell, asLookup(err)
	}
	if !resp.OK() {
		e := p.classify(resp)
		e.Op = "find"
		return nil, providers.CannotTell, asLookup(e)
	}
	var list []tracked
	if err := resp.JSON(&list); err != nil {
		return nil, providers.CannotTell, nil // not the log's documented form: asking again gives the same
	}
	if len(list) == 0 {
		if !whole {
			return nil, providers.CannotTell, nil
		}
		return nil, providers.Absent, nil
	}
	ids := map[string]string{}
	for _, t := range list {
		if id, addr := scalar(t.Data["id"]), scalar(t.Data["recipient"]); id != "" && addr != "" {
			ids[loose(addr)] = event.Clean(p.client.Redact(id), 256)
		}
	}
	o := providers.AllAccepted(m, "")
	for i, r := range m.Rcpts {
		o.Rcpts[i].MessageID = ids[loose(r.Addr)]
	}
	if len(m.Rcpts) == 1 {
		o.MessageID = o.Rcpts[0].MessageID
	}
	return o, providers.Present, nil
}

// Check lists the sender domains, which needs the token and changes nothing:
// https://www.smtpeter.com/en/documentation/rest-sender-domains
func (p *provider) Check(ctx context.Context) error {
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "check", Method: http.MethodGet, URL: p.url("domains", nil), Header: http.Header{"Accept": {"application/json"}},
	})
	switch {
	case err != nil:
		return asLookup(err)
	case resp.OK():
		return nil
	}
	e := p.classify(resp)
	e.Op = "check"
	return asLookup(e)
}

// asLookup fits an error to a call that has no mail: nothing of it is Permanent or Ambiguous.
func asLookup(err error) error {
	var e *providers.Error
	if errors.As(err, &e) {
		switch {
		case e.Kind == providers.Permanent && strings.Contains(e.Msg, "token"), e.HTTPStatus == http.StatusUnauthorized:
			e.Kind = providers.Operator
		case e.Kind == providers.Permanent, e.Kind == providers.Ambiguous:
			e.Kind = providers.Transient
		}
	}
	return err
}
