package mailersend

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// findWindow is how old a call may be to be looked up: the shortest retention of a plan.
const findWindow = 24 * time.Hour

// Find asks for the e-mails with the call's reference tag: GET /v1/emails, as the README of the vendor's Node SDK 3.4.0
// describes it. An e-mail is listed from status "queued" on. The token needs the scope activity_read, and domains_read
// where domain_id is not set: without them nothing can ever be told. A scheduled mail is only ever found, never absent.
func (p *provider) Find(ctx context.Context, m *translate.Mail, since time.Time) (*providers.Outcome, providers.Found, error) {
	now := p.now()
	if !p.set.ReferenceTag || m.Ref == "" || now.Sub(since) > findWindow {
		return nil, providers.CannotTell, nil
	}
	domain, err := p.domainID(ctx, envelope.Domain(m.From.Addr))
	if err != nil || domain == "" {
		return nil, providers.CannotTell, err
	}
	resp, err := p.get(ctx, "find", "emails", url.Values{
		"domain_id": {domain}, "tag": {refPrefix + m.Ref}, "limit": {"100"},
		// Margins for two clocks: an end in the future is refused.
		"date_from": {strconv.FormatInt(since.Add(-10*time.Minute).Unix(), 10)},
		"date_to":   {strconv.FormatInt(now.Add(-time.Minute).Unix(), 10)},
	})
	if err != nil || resp == nil {
		return nil, providers.CannotTell, err
	}
	var l emailList
	if err := resp.JSON(&l); err != nil {
		return nil, providers.CannotTell, &providers.Error{Provider: name, Op: "find", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	switch {
	case l.Data == nil:
		return nil, providers.CannotTell, nil
	case len(*l.Data) == 0 && !m.Options.SendAt.IsZero():
		return nil, providers.CannotTell, nil
	case len(*l.Data) == 0:
		return nil, providers.Absent, nil
	}
	for _, row := range *l.Data {
		for _, tag := range row.Tags {
			if tag == refPrefix+m.Ref {
				id := event.Clean(p.client.Redact(string(row.MessageID)), 128)
				if p.bulk(m) {
					id = "" // the row is of one mail of the batch; events bring the ids of all
				}
				return providers.AllAccepted(m, id), providers.Present, nil
			}
		}
	}
	return nil, providers.CannotTell, nil // the filter did not hold: no proof either way
}

// domainID is the id of the domain that a From domain sends by: itself, or the one it is a subdomain of. "" when it cannot be known.
func (p *provider) domainID(ctx context.Context, from string) (string, error) {
	if p.set.DomainID != "" {
		return p.set.DomainID, nil
	}
	p.mu.Lock()
	id, ok := p.domains[from]
	p.mu.Unlock()
	if ok {
		return id, nil
	}
	resp, err := p.get(ctx, "find", "domains", url.Values{"limit": {"100"}})
	if err != nil || resp == nil {
		return "", err
	}
	var l domainList
	if err := resp.JSON(&l); err != nil {
		return "", &providers.Error{Provider: name, Op: "find", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	longest := ""
	for _, d := range l.Data {
		n := envelope.FoldDomain(string(d.Name))
		if d.ID != "" && isToken(string(d.ID)) && n != "" && len(n) > len(longest) && (n == from || strings.HasSuffix(from, "."+n)) {
			longest, id = n, string(d.ID)
		}
	}
	if id != "" {
		p.mu.Lock()
		if len(p.domains) < 1000 {
			p.domains[from] = id
		}
		p.mu.Unlock()
	}
	return id, nil
}

// get makes a look-up. A refusal that will not change by itself (no scope, nothing of that kind in the plan) gives neither an answer nor
// an error; a look-up never says that the account is at fault, as its limits and scopes are not those of sending.
func (p *provider) get(ctx context.Context, op, path string, query url.Values) (*httpapi.Response, error) {
	resp, err := p.client.Do(ctx, httpapi.Request{Op: op, Method: http.MethodGet, URL: strings.TrimSuffix(p.url(path)+"?"+query.Encode(), "?"), Header: p.header()})
	if err != nil {
		return nil, asTransient(err)
	}
	if resp.OK() {
		return resp, nil
	}
	words, code, _ := read(readRefusal(resp))
	e := p.client.Classify(op, resp, code, words)
	if e.HTTPStatus != http.StatusUnauthorized && (e.Kind == providers.Operator || e.Kind == providers.Permanent) {
		return nil, nil
	}
	return nil, asTransient(e)
}

func asTransient(err error) error {
	var e *providers.Error
	if errors.As(err, &e) {
		e.Kind, e.Scope, e.RetryAfter, e.Unlisted = providers.Transient, providers.ScopeAccount, 0, false
	}
	return err
}

// Check reads the quota, which costs none of it, and then the domains, if the token may.
func (p *provider) Check(ctx context.Context) error {
	resp, err := p.client.Do(ctx, httpapi.Request{Op: "check", Method: http.MethodGet, URL: p.url("api-quota"), Header: p.header()})
	if err != nil {
		return asTransient(err)
	}
	if !resp.OK() {
		words, code, found := read(readRefusal(resp))
		e := p.client.Classify("check", resp, code, words)
		if found != nil {
			e.Kind = found.kind
		}
		if e.Kind == providers.Permanent || e.Kind == providers.Ambiguous {
			e.Kind = providers.Transient
		}
		p.retryAfter(e, resp)
		return e
	}
	var q quota
	if err := resp.JSON(&q); err != nil {
		return &providers.Error{Provider: name, Op: "check", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	if q.Remaining != nil && *q.Remaining <= 0 {
		e := &providers.Error{
			Provider: name, Op: "check", Kind: providers.RateLimited, HTTPStatus: resp.Status,
			Msg: p.client.Clean("the daily API quota is used up until " + string(q.Reset)),
		}
		if t := parseTime(string(q.Reset)); t.After(p.now()) {
			e.RetryAfter = t.Sub(p.now())
		}
		return e
	}
	return p.checkDomains(ctx)
}

// checkDomains finds a domain that cannot send. A token without the scope domains_read proves nothing against it.
func (p *provider) checkDomains(ctx context.Context) error {
	resp, err := p.get(ctx, "check", "domains", url.Values{"limit": {"100"}})
	if err != nil || resp == nil {
		return err
	}
	var l domainList
	if err := resp.JSON(&l); err != nil {
		return &providers.Error{Provider: name, Op: "check", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	fault := func(format string, args ...any) error {
		return &providers.Error{Provider: name, Op: "check", Kind: providers.Operator, HTTPStatus: resp.Status, Msg: p.client.Clean(fmt.Sprintf(format, args...))}
	}
	seen, verified, paused := 0, 0, ""
	for _, d := range l.Data {
		if p.set.DomainID != "" && string(d.ID) != p.set.DomainID {
			continue
		}
		seen++
		if d.IsVerified != nil && !*d.IsVerified {
			continue
		}
		if d.Settings.SendPaused {
			paused = string(d.Name)
			continue
		}
		verified++
	}
	switch {
	case seen == 0 && p.set.DomainID != "":
		return fault("domain_id %s is none of the account's domains", p.set.DomainID)
	case verified > 0, seen == 0:
		return nil
	case paused != "":
		return fault("sending is paused at MailerSend for %s", paused)
	}
	return fault("no domain of the account is verified at MailerSend")
}
