package mailersend

import (
	"context"
	"net/http"
	"net/url"

	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
)

// hookList is GET /v1/webhooks, as the vendor's Go SDK reads it.
type hookList struct {
	Data list[struct {
		URL     text   `json:"url"`
		Events  labels `json:"events"`
		Enabled *bool  `json:"enabled"`
	}] `json:"data"`
}

// Webhooks lists the webhooks of the account's domains, if the token may.
func (p *provider) Webhooks(ctx context.Context) ([]providers.Registration, error) {
	domains, err := p.ownDomains(ctx)
	if err != nil {
		return nil, err
	}
	var out []providers.Registration
	for _, d := range domains {
		resp, err := p.get(ctx, "webhooks", "webhooks", url.Values{"domain_id": {d}, "limit": {"100"}})
		if err != nil {
			return nil, err
		}
		if resp == nil {
			return nil, fault("the token may not list webhooks: give it the permission for them in the dashboard")
		}
		var l hookList
		if err := resp.JSON(&l); err != nil {
			return nil, &providers.Error{Provider: name, Op: "webhooks", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
		}
		for _, h := range l.Data {
			out = append(out, providers.Registration{URL: string(h.URL), Events: h.Events, Enabled: h.Enabled == nil || *h.Enabled})
		}
	}
	return out, nil
}

// AddWebhook creates one, of version 2, for the account's one domain. MailerSend calls the URL before it answers, so the bridge has
// to be running and reachable. The signing secret is shown in the dashboard.
func (p *provider) AddWebhook(ctx context.Context, url string, events []string) (string, error) {
	domains, err := p.ownDomains(ctx)
	if err != nil {
		return "", err
	}
	if len(domains) != 1 {
		return "", &providers.Error{Provider: name, Op: "webhooks", Kind: providers.Operator, Msg: "the token sees several domains and webhooks belong to one: set domain_id"}
	}
	body, err := httpapi.Marshal(map[string]any{"url": url, "name": "smtpbridge", "events": events, "enabled": true, "version": 2, "domain_id": domains[0]})
	if err != nil {
		return "", err
	}
	resp, err := p.client.Do(ctx, httpapi.Request{Op: "webhooks", Method: http.MethodPost, URL: p.url("webhooks"), Header: p.header(), Body: httpapi.Bytes("application/json", body)})
	if err != nil {
		return "", err
	}
	if !resp.OK() {
		words, code, _ := read(readRefusal(resp))
		return "", p.client.Classify("webhooks", resp, code, words)
	}
	return "", nil
}
