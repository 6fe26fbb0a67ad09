package mandrill

import (
	"context"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
)

// maxRejects is how many entries one answer has at most, newest first; there are no pages.
const maxRejects = 1000

// rejects are the reasons of the deny list that last. A soft bounce is taken off it by Mandrill after a short time.
var rejects = map[text]string{"hard-bounce": "bounced", "spam": "complained", "unsub": "unsubscribed", "custom": "manual"}

// post makes a call that has no mail in it and reads its answer into v.
func (p *provider) post(ctx context.Context, op, call string, q map[string]any, v any) error {
	q["key"] = p.opts.APIKey.Reveal()
	body, err := httpapi.Marshal(q)
	if err != nil {
		return err
	}
	resp, err := p.client.Do(ctx, p.request(op, call, httpapi.Bytes("application/json", body)))
	if err != nil {
		return err
	}
	if !resp.OK() {
		return p.classify(op, nil, resp)
	}
	if err := resp.JSON(v); err != nil {
		return &providers.Error{Provider: name, Op: op, Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	return nil
}

// Suppressions reads the account's deny list: https://mailchimp.com/developer/transactional/api/rejects/list-rejects/
func (p *provider) Suppressions(ctx context.Context, each func(providers.Suppressed) error) error {
	q := map[string]any{"include_expired": false}
	if p.set.Subaccount != "" {
		q["subaccount"] = p.set.Subaccount
	}
	var rows []lenient[struct {
		Email     text `json:"email"`
		Reason    text `json:"reason"`
		CreatedAt text `json:"created_at"`
		ExpiresAt text `json:"expires_at"`
		Expired   bool `json:"expired"`
	}]
	if err := p.post(ctx, "suppressions", "rejects/list", q, &rows); err != nil {
		return err
	}
	for _, row := range rows {
		reason, ok := rejects[row.V.Reason]
		if !ok || row.V.Expired || envelope.ValidateAddr(string(row.V.Email)) != nil {
			continue
		}
		s := providers.Suppressed{Address: string(row.V.Email), Reason: reason, Created: parseDate(string(row.V.CreatedAt)), Expires: parseDate(string(row.V.ExpiresAt))}
		if err := each(s); err != nil {
			return err
		}
	}
	if len(rows) >= maxRejects {
		return &providers.Error{Provider: name, Op: "suppressions", Kind: providers.Permanent, Msg: "Mandrill lists the newest 1000 entries only: export the whole list from its dashboard and import the CSV file for the rest"}
	}
	return nil
}

// parseDate reads Mandrill's dates, which are UTC and have at times a fraction.
func parseDate(s string) time.Time {
	for _, layout := range []string{time.DateTime, time.RFC3339Nano} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}
