package mandrill

import (
	"context"

	"smtpbridge/providers"
)

// hook is a webhook: https://mailchimp.com/developer/transactional/api/webhooks/
type hook struct {
	URL       text   `json:"url"`
	AuthKey   text   `json:"auth_key"`
	Events    labels `json:"events"`
	LastError text   `json:"last_error"`
}

// Webhooks lists the account's webhooks. Mandrill has no switch for them.
func (p *provider) Webhooks(ctx context.Context) ([]providers.Registration, error) {
	var list []lenient[hook]
	if err := p.post(ctx, "webhooks", "webhooks/list", map[string]any{}, &list); err != nil {
		return nil, err
	}
	var out []providers.Registration
	for _, h := range list {
		out = append(out, providers.Registration{URL: string(h.V.URL), Events: h.V.Events, Enabled: true, Trouble: p.client.Clean(string(h.V.LastError))})
	}
	return out, nil
}

// AddWebhook creates one. Mandrill calls the URL before it answers, so the bridge has to be running and reachable.
func (p *provider) AddWebhook(ctx context.Context, url string, events []string) (string, error) {
	var h hook
	err := p.post(ctx, "webhooks", "webhooks/add", map[string]any{"url": url, "description": "smtpbridge", "events": events}, &h)
	return string(h.AuthKey), err
}
