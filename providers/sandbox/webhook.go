package sandbox

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
)

// VerifyWebhook checks Sandbox-Signature: v1=HEX of HMAC-SHA256 over "TIMESTAMP.BODY", several separated by commas.
func (p *Provider) VerifyWebhook(r *http.Request, body []byte) error {
	h := r.Header
	stamp := h.Get("Sandbox-Timestamp")
	seconds, err := strconv.ParseInt(stamp, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: no readable timestamp", providers.ErrSignature)
	}
	var given [][]byte
	for part := range strings.SplitSeq(h.Get("Sandbox-Signature"), ",") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(part), "v1="); ok && len(given) < 8 {
			if b, err := hex.DecodeString(v); err == nil {
				given = append(given, b)
			}
		}
	}
	for _, s := range p.secrets {
		if s.Empty() {
			continue
		}
		want := mac(s, stamp, body)
		for _, g := range given {
			if hmac.Equal(g, want) {
				return providers.CheckAge(p.now(), time.Unix(seconds, 0), p.tolerance)
			}
		}
	}
	return providers.ErrSignature
}

func mac(s secret.String, stamp string, body []byte) []byte {
	h := hmac.New(sha256.New, []byte(s.Reveal()))
	h.Write([]byte(stamp))
	h.Write([]byte{'.'})
	h.Write(body)
	return h.Sum(nil)
}

// wireEvent is one event of a webhook.
type wireEvent struct {
	ID         string            `json:"id"`
	Time       time.Time         `json:"time"`
	Event      string            `json:"event"`
	MessageID  string            `json:"message_id"`
	Recipient  string            `json:"recipient"`
	RcptID     string            `json:"recipient_id"`
	Ref        string            `json:"ref"`
	Action     string            `json:"action"`
	Status     string            `json:"status"`
	Diagnostic string            `json:"diagnostic"`
	Reason     string            `json:"reason"`
	RemoteMTA  string            `json:"remote_mta"`
	Tags       []string          `json:"tags"`
	Metadata   map[string]string `json:"metadata"`
	URL        string            `json:"url"`
	UserAgent  string            `json:"user_agent"`
}

// kinds maps native names; the sandbox speaks our vocabulary.
var kinds = map[string]event.Kind{
	"delivered": event.Delivered, "bounced": event.Bounced, "deferred": event.Deferred, "complained": event.Complained,
	"opened": event.Opened, "clicked": event.Clicked, "unsubscribed": event.Unsubscribed, "autoresponded": event.Autoresponded,
}

// ParseWebhook reads the events.
func (p *Provider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	var v struct {
		Events []json.RawMessage `json:"events"`
	}
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, fmt.Errorf("%w: not the expected JSON", providers.ErrMalformed)
	}
	var out []event.Event
	for _, raw := range v.Events {
		var w wireEvent
		// One bad item never drops the others: it becomes an event of kind unknown.
		if err := json.Unmarshal(raw, &w); err != nil {
			w = wireEvent{}
		}
		out = append(out, p.event(w, raw))
	}
	return out, nil
}

func (p *Provider) event(w wireEvent, raw []byte) event.Event {
	e := event.Event{
		V: event.Version, ID: event.FactID(p.account, name, w.ID), Kind: kinds[w.Event], Time: w.Time.UTC(),
		Account: p.account, Provider: name, Recipient: event.Clean(w.Recipient, 320),
		ProviderMessageID: event.Clean(w.MessageID, 256), ProviderEventID: event.Clean(w.ID, 256), ProviderEvent: event.Clean(w.Event, 64),
		Diagnostic: event.Clean(w.Diagnostic, event.MaxText), RemoteMTA: event.Clean(w.RemoteMTA, 255),
		Metadata: w.Metadata, URL: event.Clean(w.URL, 2048), UserAgent: event.Clean(w.UserAgent, event.MaxText), Ref: w.Ref,
	}
	if w.ID == "" {
		e.ID = event.FactID(p.account, name, string(raw))
	}
	for _, t := range w.Tags {
		e.Tags = append(e.Tags, event.Clean(t, 256))
	}
	if e.Kind == "" {
		e.Kind = event.Unknown
	}
	if !e.Kind.Engagement() {
		e.Action, e.Status = event.Clean(w.Action, 16), event.Clean(w.Status, 16)
	}
	if e.Kind == event.Bounced {
		e.RejectReason = event.ReasonBounced
	}
	return e
}
