package twin

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"
)

// Outcome is the event that follows the acceptance of a mail for one recipient: rejected for a suppressed one, else delivered.
func (t *Twin) Outcome(to string) string {
	if slices.Contains(t.o.Suppressed, to) {
		return "rejected"
	}
	return "delivered"
}

// Webhook is a signed event about m and one of its recipients, in the form of https://maileroo.com/help/use-webhooks: to is a list in
// some types and a string in others, and opened and clicked have none.
func (t *Twin) Webhook(ctx context.Context, url, event string, m Mail, to string, at time.Time) (*http.Request, error) {
	data := map[string]any{}
	switch event {
	case "accepted", "delivered":
		data["from"], data["to"] = []string{m.From.Address}, []string{to}
	case "deferred":
		data["to"], data["reason"] = to, "452-4.2.2 The recipient's inbox is out of storage space."
	case "failed":
		data["to"], data["reason"] = to, "550 5.1.1 <"+to+">: no such user"
	case "rejected":
		data["from"], data["to"] = []string{m.From.Address}, []string{to}
		data["reject_reason"] = "One or more of the recipients are on the suppression list."
	case "opened":
		data["ip"], data["user_agent"] = "192.0.2.7", "Twin/1.0"
	case "clicked":
		data["ip"], data["user_agent"], data["original_url"] = "192.0.2.7", "Twin/1.0", "https://example.com/"
	default: // complained is not documented
		data["to"] = to
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s %s %d", event, m.MessageID, to, at.UnixNano()))
	var tags any
	if len(m.Tags) > 0 {
		tags = m.Tags
	}
	body := encode(map[string]any{
		"event_id": hex.EncodeToString(sum[:24]), "event_type": event, "event_time": at.Unix(), "inserted_at": at.UTC().Format("2006-01-02T15:04:05.000Z"),
		"message_id": m.MessageID, "message_reference_id": m.ReferenceID, "tags": tags, "domain_id": 1, "user_id": 1, "event_data": data,
	})
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	t.Sign(r, body)
	return r, nil
}

// Sign signs a body as Maileroo does.
func (t *Twin) Sign(r *http.Request, body []byte) {
	h := hmac.New(sha256.New, []byte(t.o.Secret))
	h.Write(body)
	r.Header.Set("X-Maileroo-Signature", hex.EncodeToString(h.Sum(nil)))
}

// Post sends a webhook and gives the status of its answer. Only 200 would end Maileroo's attempts.
func (t *Twin) Post(ctx context.Context, url, event string, m Mail, to string) (int, error) {
	r, err := t.Webhook(ctx, url, event, m, to, t.o.Now())
	if err != nil {
		return 0, err
	}
	resp, err := t.o.Client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}
