package twin

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

const stamp = "2006-01-02T15:04:05.000000Z"

// Webhook is a signed event of version 2 about one recipient of m. kind is what follows "activity."; meta may be nil.
func (t *Twin) Webhook(ctx context.Context, url, kind string, m Mail, rcpt string, meta map[string]any, at time.Time) (*http.Request, error) {
	var detail any = []any{} // QUIRK: an empty meta is a list
	if len(meta) > 0 {
		detail = meta
	}
	return t.request(ctx, url, t.o.Secret, map[string]any{
		"type": "activity." + kind, "created_at": at.UTC().Format(stamp), "webhook_id": "webhook",
		"data": map[string]any{
			"id": activityID(kind, m, rcpt, at), "domain_id": DomainID, "message_id": m.ID, "email_id": "e" + m.ID[1:],
			"type": plainKind(kind), "subject": m.Subject, "recipient": rcpt, "tags": m.Tags, "meta": detail,
		},
	})
}

// WebhookV1 is the same event in the form that ends on 2026-12-01.
func (t *Twin) WebhookV1(ctx context.Context, url, kind string, m Mail, rcpt string, morph map[string]any, at time.Time) (*http.Request, error) {
	var detail any
	if len(morph) > 0 {
		detail = morph
	}
	return t.request(ctx, url, t.o.Secret, map[string]any{
		"type": "activity." + kind, "domain_id": DomainID, "created_at": at.UTC().Format(stamp), "webhook_id": "webhook", "url": url,
		"data": map[string]any{
			"object": "activity", "id": activityID(kind, m, rcpt, at), "type": kind, "created_at": at.UTC().Format(stamp),
			"email": map[string]any{
				"object": "email", "id": "e" + m.ID[1:], "from": m.From.Email, "subject": m.Subject, "status": "sent", "tags": m.Tags,
				"message": map[string]any{"object": "message", "id": m.ID}, "recipient": map[string]any{"object": "recipient", "email": rcpt},
			},
			"morph": detail, "template_id": "",
		},
	})
}

// Ping is what MailerSend posts before it saves a webhook.
func (t *Twin) Ping(ctx context.Context, url string) (*http.Request, error) {
	return t.request(ctx, url, PingSecret, map[string]any{"type": "webhook.test", "message": "This is a ping test message", "created_at": t.o.Now().UTC().Format(stamp)})
}

// addWebhook saves a webhook if its URL answers the ping.
func (t *Twin) addWebhook(w http.ResponseWriter, r *http.Request, body []byte) {
	var q struct {
		URL      string   `json:"url"`
		Name     string   `json:"name"`
		Events   []string `json:"events"`
		DomainID string   `json:"domain_id"`
		Enabled  *bool    `json:"enabled"`
		Version  int      `json:"version"`
	}
	invalid := func(field, text string) {
		answer(w, http.StatusUnprocessableEntity, map[string]any{"message": text, "errors": map[string][]string{field: {text}}})
	}
	switch err := json.Unmarshal(body, &q); {
	case err != nil || q.Name == "" || len(q.Events) == 0:
		invalid("name", "The name and the events are required.")
		return
	case q.URL == "" || len(q.URL) > 191:
		invalid("url", "The url is required and may not be greater than 191 characters.")
		return
	case q.DomainID != DomainID:
		invalid("domain_id", "The selected domain_id is invalid.")
		return
	case q.Version == 1:
		invalid("version", "New webhooks are of version 2.")
		return
	}
	ping, err := t.Ping(r.Context(), q.URL)
	status := 0
	if err == nil {
		status, err = t.Post(ping)
	}
	if err != nil || status < 200 || status > 299 {
		invalid("url", "The URL does not answer the ping.")
		return
	}
	hook := map[string]any{"id": "webhook", "url": q.URL, "name": q.Name, "events": q.Events, "version": 2, "enabled": q.Enabled == nil || *q.Enabled}
	t.mu.Lock()
	t.hooks = append(t.hooks, hook)
	t.mu.Unlock()
	answer(w, http.StatusCreated, map[string]any{"data": hook})
}

// Inbound is a received mail, signed with the secret of its route.
func (t *Twin) Inbound(ctx context.Context, url, secret, id, from string, rcpts []string, raw string) (*http.Request, error) {
	var to []any
	for _, r := range rcpts {
		to = append(to, map[string]any{"email": r})
	}
	return t.request(ctx, url, secret, map[string]any{
		"type": "inbound.message", "inbound_id": "route", "url": url, "created_at": t.o.Now().UTC().Format(stamp),
		"data": map[string]any{"object": "message", "id": id, "recipients": map[string]any{"rcptTo": to}, "sender": map[string]any{"email": from}, "raw": raw},
	})
}

// plainKind is data.type, which at times differs from the type.
func plainKind(kind string) string {
	if kind == "spam_complaint" {
		return "spam_complaints"
	}
	return strings.TrimSuffix(kind, "_unique")
}

// activityID is the same for the same fact.
func activityID(kind string, m Mail, rcpt string, at time.Time) string {
	sum := sha256.Sum256([]byte(fmt.Sprint(plainKind(kind), m.ID, rcpt, at.UnixNano())))
	return hex.EncodeToString(sum[:12])
}

func (t *Twin) request(ctx context.Context, url, secret string, v any) (*http.Request, error) {
	body := encode(v)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	Sign(r, secret, body)
	return r, nil
}

// Sign signs a body as MailerSend does.
func Sign(r *http.Request, secret string, body []byte) {
	h := hmac.New(sha256.New, []byte(secret))
	h.Write(body)
	r.Header.Set("Signature", hex.EncodeToString(h.Sum(nil)))
}

// Post sends a webhook and gives the status of its answer.
func (t *Twin) Post(r *http.Request) (int, error) {
	resp, err := t.o.Client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}
