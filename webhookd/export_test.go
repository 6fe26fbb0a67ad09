package webhookd

import (
	"context"

	"smtpbridge/providers"
)

// CutBody is what is stored of a body, for an account with these private fields.
func CutBody(contentType string, body []byte, private ...string) []byte {
	return newCutter(providers.Webhook{Private: private}).body(contentType, body)
}

// WorkOnce does what Work does at a time.
func (h *Handler) WorkOnce(ctx context.Context) { h.workOnce(ctx) }
