package mailpace

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/mail"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/bigpost"
)

// maxCandidates bounds the addresses taken from one event.
const maxCandidates = 200

// VerifyWebhook checks the signature.
func (p *provider) VerifyWebhook(r *http.Request, body []byte) error { return verify(p.keys, r, body) }

// VerifyInbound checks the signature.
func (p *provider) VerifyInbound(r *http.Request, body []byte) error {
	return verify(p.inbound, r, body)
}

// ParseInbound reads a received mail: https://docs.mailpace.com/guide/inbound. The post has no envelope: the
// recipients are those of the forwarding headers if there are any, else those of To, Cc and Bcc.
func (p *provider) ParseInbound(_ *http.Request, body []byte) ([]providers.Inbound, error) {
	doc, mails, err := bigpost.Skim(bigpost.Plain(body), "raw")
	var w inboundPost
	if err != nil || json.Unmarshal(doc, &w) != nil {
		return nil, fmt.Errorf("%w: not an inbound post", providers.ErrMalformed)
	}
	raw, ok := bigpost.At(mails, string(w.Raw))
	if !ok {
		return nil, fmt.Errorf("%w: an inbound post without the raw message", providers.ErrMalformed)
	}
	in := providers.Inbound{Rcpts: inboundRcpts(&w), Open: raw.Open}
	// There is no id of the post, and a Message-ID is the sender's to choose: mail and recipients tell repeats.
	if in.ID, err = bigpost.Digest(raw, in.Rcpts...); err != nil {
		return nil, fmt.Errorf("%w: %w", providers.ErrMalformed, err)
	}
	return []providers.Inbound{in}, nil
}

func inboundRcpts(w *inboundPost) (rcpts []string) {
	for _, name := range []string{"delivered-to", "x-original-to", "x-forwarded-to"} {
		for _, h := range w.Headers {
			if n, v, ok := strings.Cut(h, ":"); ok && strings.EqualFold(strings.TrimSpace(n), name) {
				rcpts = appendAddresses(rcpts, v)
			}
		}
		if rcpts != nil {
			return rcpts
		}
	}
	for _, list := range []text{w.To, w.Cc, w.Bcc} {
		rcpts = appendAddresses(rcpts, string(list))
	}
	return rcpts
}

// verify checks the Ed25519 signature over the exact body with each of the configured keys. The scheme has no
// time stamp, so a replayed request verifies; its event has the same id and drops out.
func verify(keys []ed25519.PublicKey, r *http.Request, body []byte) error {
	sig, err := base64.StdEncoding.Strict().DecodeString(r.Header.Get("X-MailPace-Signature"))
	if err != nil || len(sig) != ed25519.SignatureSize {
		return fmt.Errorf("%w: X-MailPace-Signature is missing or not 64 bytes in base64", providers.ErrSignature)
	}
	for _, k := range keys {
		if ed25519.Verify(k, body, sig) {
			return nil
		}
	}
	if len(keys) == 0 {
		return fmt.Errorf("%w: no public key is configured", providers.ErrSignature)
	}
	return fmt.Errorf("%w: no configured public key fits", providers.ErrSignature)
}

// ParseWebhook reads one event: https://docs.mailpace.com/guide/webhooks
func (p *provider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	var w webhook
	if err := json.Unmarshal(body, &w); err != nil || w.Event == "" && w.Payload.ID == "" {
		return nil, fmt.Errorf("%w: not an event", providers.ErrMalformed)
	}
	n, ok := natives[w.Event]
	if !ok {
		n = native{kind: event.Unknown}
	}
	l := &w.Payload
	e := event.Event{
		V: event.Version, Kind: n.kind, Account: p.opts.Account, Provider: name,
		ID:                event.FactID(p.opts.Account, string(l.ID), w.Event, string(l.UpdatedAt)),
		ProviderMessageID: event.Clean(string(l.ID), 64), ProviderEvent: event.Clean(w.Event, 64),
		MessageID: event.Clean(strings.Trim(string(l.MessageID), "<> "), 998),
		Action:    n.action, Status: n.status, RejectReason: n.reason,
	}
	created := parseTime(string(l.CreatedAt))
	// updated_at is when the status changed; created_at when the API took the mail.
	if e.Time = parseTime(string(l.UpdatedAt)); e.Time.IsZero() {
		e.Time = created
	}
	if e.Kind == event.Deferred && !created.IsZero() {
		until := created.Add(retryWindow)
		e.WillRetryAt = &until
	}
	for _, tag := range l.Tags {
		if ref, ok := strings.CutPrefix(tag, refPrefix); ok && e.Ref == "" && isRef(ref) {
			e.Ref = ref
			continue
		}
		e.Tags = append(e.Tags, event.Clean(tag, 256))
	}
	var rcpts []string
	for _, list := range []text{l.To, l.Cc, l.Bcc} {
		rcpts = appendAddresses(rcpts, string(list))
	}
	// One stream of events per call: who it was is certain only when there is one.
	if len(rcpts) == 1 {
		e.Recipient = rcpts[0]
	} else {
		e.Candidates = rcpts
	}
	return []event.Event{e}, nil
}

// isRef tells a reference of ours from somebody's tag with the same beginning.
func isRef(s string) bool {
	return len(s) >= 16 && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

func parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// appendAddresses adds the addresses of a comma-separated list, each once; what is no address is left out.
func appendAddresses(dst []string, list string) []string {
	if strings.TrimSpace(list) == "" || len(list) > 1<<20 {
		return dst
	}
	var found []string
	if parsed, err := mail.ParseAddressList(list); err == nil {
		for _, a := range parsed {
			found = append(found, a.Address)
		}
	} else {
		for _, s := range strings.Split(list, ",") {
			if i := strings.LastIndexByte(s, '<'); i >= 0 {
				s, _, _ = strings.Cut(s[i+1:], ">")
			}
			found = append(found, strings.TrimSpace(s))
		}
	}
next:
	for _, a := range found {
		if envelope.ValidateAddr(a) != nil || len(dst) >= maxCandidates {
			continue
		}
		for _, have := range dst {
			if envelope.Equal(have, a) {
				continue next
			}
		}
		dst = append(dst, a)
	}
	return dst
}

// native is what an event means. MailPace gives no SMTP code: the statuses are our defaults.
type native struct {
	kind   event.Kind
	action string
	status string
	reason string
}

var natives = map[string]native{
	"email.queued":    {kind: event.Queued},
	"email.delivered": {kind: event.Delivered, action: event.ActionDelivered, status: "2.0.0"},
	"email.deferred":  {kind: event.Deferred, action: event.ActionDelayed, status: "4.0.0"},
	"email.bounced":   {kind: event.Bounced, action: event.ActionFailed, status: "5.0.0", reason: event.ReasonBounced},
	// MailPace's own outgoing filter refused it; the recipient never saw it.
	"email.spam": {kind: event.Rejected, action: event.ActionFailed, status: "5.7.1", reason: event.ReasonSpam},
}
