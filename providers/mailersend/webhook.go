package mailersend

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/bigpost"
)

// pingSecret is public and fixed. It signs the ping of a webhook that is being created, and nothing else:
// https://developers.mailersend.com/account/webhooks
const pingSecret = "test_Am3L1GuOIc4blLUuHqAPxxwkZaJyEk8G"

const (
	typePing    = "webhook.test"
	typeInbound = "inbound.message"
	activityDot = "activity."
)

// VerifyWebhook checks the signature of an event, or of a ping.
func (p *provider) VerifyWebhook(r *http.Request, body []byte) error {
	sig := signature(r)
	err := verify(p.keys, sig, body)
	if err == nil || verify([][]byte{[]byte(pingSecret)}, sig, body) != nil {
		return err
	}
	var w hook
	if json.Unmarshal(body, &w) != nil || w.Type != typePing {
		return fmt.Errorf("%w: the public secret signs pings only", providers.ErrSignature)
	}
	return nil
}

// VerifyInbound checks the signature. Each inbound route has a secret of its own.
func (p *provider) VerifyInbound(r *http.Request, body []byte) error {
	return verify(p.inbound, signature(r), body)
}

// ParseInbound reads a received mail.
func (p *provider) ParseInbound(_ *http.Request, body []byte) ([]providers.Inbound, error) {
	doc, mails, err := bigpost.Skim(bigpost.Plain(body), "data", "raw")
	var w hook
	if err != nil || json.Unmarshal(doc, &w) != nil || w.Type != typeInbound {
		return nil, fmt.Errorf("%w: not an inbound.message", providers.ErrMalformed)
	}
	var d inboundPost
	if json.Unmarshal(w.Data, &d) != nil {
		d = inboundPost{}
	}
	raw, ok := bigpost.At(mails, string(d.Raw))
	if !ok {
		return nil, fmt.Errorf("%w: an inbound.message without the raw message", providers.ErrMalformed)
	}
	in := providers.Inbound{ID: event.Clean(string(d.ID), 128), Time: parseTime(first(d.CreatedAt, w.CreatedAt)), From: address(string(d.Sender.Email)), Open: raw.Open}
	if in.ID == "" {
		if in.ID, err = bigpost.Digest(raw); err != nil {
			return nil, fmt.Errorf("%w: %w", providers.ErrMalformed, err)
		}
	}
	for _, to := range d.Recipients.RcptTo {
		a := address(string(to.Email))
		if a != "" && len(in.Rcpts) < 1000 && !slices.ContainsFunc(in.Rcpts, func(have string) bool { return envelope.Equal(have, a) }) {
			in.Rcpts = append(in.Rcpts, a)
		}
	}
	return []providers.Inbound{in}, nil
}

// signature is the header's HMAC, nil when it is none. Upper case hex is the same signature.
func signature(r *http.Request) []byte {
	sig, err := hex.DecodeString(r.Header.Get("Signature"))
	if err != nil || len(sig) != sha256.Size {
		return nil
	}
	return sig
}

// verify compares the HMAC-SHA256 of the exact body under each secret. The scheme has no time stamp, so a replayed request
// verifies; its event has the same id and drops out.
func verify(keys [][]byte, sig, body []byte) error {
	if sig == nil {
		return fmt.Errorf("%w: Signature is missing or not 32 bytes in hex", providers.ErrSignature)
	}
	if len(keys) == 0 {
		return fmt.Errorf("%w: no signing secret is configured", providers.ErrSignature)
	}
	for _, k := range keys {
		h := hmac.New(sha256.New, k)
		h.Write(body)
		if hmac.Equal(h.Sum(nil), sig) {
			return nil
		}
	}
	return fmt.Errorf("%w: no configured signing secret fits", providers.ErrSignature)
}

// ParseWebhook reads one event, of webhooks version 1 or 2: https://developers.mailersend.com/account/webhooks
func (p *provider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	var w hook
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, fmt.Errorf("%w: not an event", providers.ErrMalformed)
	}
	var d activity
	if len(w.Data) > 0 && json.Unmarshal(w.Data, &d) != nil {
		d = activity{} // data is no object: the type still counts
	}
	native := string(w.Type)
	if native == "" && d.Type != "" {
		native = activityDot + string(d.Type)
	}
	switch native {
	case "":
		return nil, fmt.Errorf("%w: not an event", providers.ErrMalformed)
	case typePing:
		return nil, nil
	case typeInbound:
		// Taking it here would lose the mail in silence.
		return nil, fmt.Errorf("%w: a received mail was posted to the webhook URL; its route has to post to /inbound/%s", providers.ErrMalformed, p.opts.Account)
	}
	return []event.Event{p.event(native, w, d)}, nil
}

func (p *provider) event(native string, w hook, d activity) event.Event {
	n, ok := natives[native]
	if !ok {
		n = meaningOf{kind: event.Unknown}
	}
	e := event.Event{
		V: event.Version, Kind: n.kind, Account: p.opts.Account, Provider: name,
		ProviderEvent: event.Clean(native, 64), ProviderEventID: event.Clean(string(d.ID), 128),
		ProviderMessageID: event.Clean(first(d.MessageID, d.Email.Message.ID), 128),
		Action:            n.action, Status: n.status, RejectReason: n.reason,
	}
	mail := strings.HasPrefix(native, activityDot)
	// What is not about a mail of ours may hold an address of ours.
	if rcpt := first(d.Recipient, d.Email.Recipient.Email); rcpt != "" {
		e.Recipient = address(rcpt)
	} else if mail {
		e.Recipient = address(d.Email.Address)
	}
	if id := first(d.EmailID, d.Email.ID); mail && isEmailID(id) {
		e.Wire = id + "@" + wireDomain
	}
	created := first(d.CreatedAt, w.CreatedAt)
	e.Time = parseTime(created)
	// An opened_unique repeats an opened, and version 1 repeats version 2, under one id.
	base := strings.TrimSuffix(native, "_unique")
	if d.ID != "" {
		e.ID = event.FactID(p.opts.Account, base, string(d.ID))
	} else {
		e.ID = event.FactID(p.opts.Account, base, e.ProviderMessageID, first(d.EmailID, d.Email.ID), e.Recipient, created)
	}
	for _, tag := range append(d.Tags, d.Email.Tags...) {
		if ref, ok := strings.CutPrefix(tag, refPrefix); ok && e.Ref == "" && isRef(ref) {
			e.Ref = ref
			continue
		}
		e.Tags = append(e.Tags, event.Clean(tag, 256))
	}
	if mail {
		describe(&e, n, d)
	} else {
		e.Diagnostic = event.Clean(first(d.Reason, d.Meta.Reason), event.MaxText)
	}
	return e
}

// describe reads the detail of an activity: meta of version 2, morph of version 1.
func describe(e *event.Event, n meaningOf, d activity) {
	m, v1 := d.Meta, d.Morph
	switch e.Kind {
	case event.Bounced, event.Deferred:
		reason, code := first(m.BounceReason, m.DeferredReason, m.Reason, v1.Reason), string(m.BounceCode)
		if len(code) != 3 || strings.Trim(code, "0123456789") != "" {
			code = ""
		}
		if e.Status = refine(n.status, code, reason, e.Kind == event.Bounced); code != "" && !strings.HasPrefix(reason, code) {
			reason = code + " " + reason
		}
		e.Diagnostic = event.Clean(reason, event.MaxText)
	case event.Rejected:
		reason := first(m.SuppressionReason, m.Reason, v1.Reason)
		if reason != "" {
			e.RejectReason = suppression(reason)
			e.Diagnostic = event.Clean("suppressed by MailerSend: "+reason, event.MaxText)
		}
	case event.Unsubscribed:
		e.Diagnostic = event.Clean(first(m.UnsubscribeReason, v1.ReadableReason, v1.Reason), event.MaxText)
	case event.Opened, event.Clicked:
		if ip, err := netip.ParseAddr(first(m.IP, v1.IP)); err == nil {
			e.IP = ip.String()
		}
		e.UserAgent = event.Clean(string(m.UserAgent), event.MaxText)
		e.URL = event.Clean(first(m.URL, v1.URL), 2048)
	}
}

// first is the first that is not empty.
func first(list ...text) string {
	for _, s := range list {
		if s != "" {
			return string(s)
		}
	}
	return ""
}

func address(s string) string {
	if s = strings.TrimSpace(s); envelope.ValidateAddr(s) != nil {
		return ""
	}
	return s
}

// isRef tells a reference of ours from somebody's tag with the same beginning.
func isRef(s string) bool {
	return len(s) >= 16 && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// wireDomain ends the Message-ID that MailerSend gives each recipient's mail: <{email_id}@mailersend.net>.
const wireDomain = "mailersend.net"

func isEmailID(s string) bool {
	return s != "" && len(s) <= 64 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
}

// parseTime reads the forms of MailerSend. QUIRK: events about domains and accounts have times without a zone; they are taken for
// UTC, which is not documented.
func parseTime(s string) time.Time {
	for _, layout := range []string{time.RFC3339Nano, time.DateTime, "2006-01-02T15:04:05.999999999"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC()
		}
	}
	return time.Time{}
}

// meaningOf is what a native event stands for. MailerSend gives no enhanced status code: those here are our defaults.
type meaningOf struct {
	kind   event.Kind
	action string
	status string
	reason string
}

var natives = map[string]meaningOf{
	"activity.sent":           {kind: event.Sent, action: event.ActionRelayed, status: "2.0.0"},
	"activity.delivered":      {kind: event.Delivered, action: event.ActionDelivered, status: "2.0.0"},
	"activity.deferred":       {kind: event.Deferred, action: event.ActionDelayed, status: "4.0.0"},
	"activity.soft_bounced":   {kind: event.Bounced, action: event.ActionFailed, status: "4.0.0", reason: event.ReasonBounced},
	"activity.hard_bounced":   {kind: event.Bounced, action: event.ActionFailed, status: "5.0.0", reason: event.ReasonBounced},
	"activity.suppressed":     {kind: event.Rejected, action: event.ActionFailed, status: "5.7.1", reason: event.ReasonBlocked},
	"activity.spam_complaint": {kind: event.Complained, reason: event.ReasonSpam},
	// Without a top-level type data.type counts, which has the plural.
	"activity.spam_complaints": {kind: event.Complained, reason: event.ReasonSpam},
	"activity.unsubscribed":    {kind: event.Unsubscribed, reason: event.ReasonUnsubscribed},
	"activity.opened":          {kind: event.Opened},
	"activity.opened_unique":   {kind: event.Opened},
	"activity.clicked":         {kind: event.Clicked},
	"activity.clicked_unique":  {kind: event.Clicked},
	"inbound_forward.failed":   {kind: event.InboundFailed},
	"inbound_message.rejected": {kind: event.InboundFailed},
}

// enhanced is a status code (RFC 3463) in a server's reply.
var enhanced = regexp.MustCompile(`(?:^|[^0-9.])([45]\.[0-9]{1,3}\.[0-9]{1,3})(?:[^0-9.]|$|\.(?:[^0-9]|$))`)

// details gives subject and detail (RFC 3463 2) by what servers usually say. The class is the event's.
var details = []struct {
	words  []string
	detail string
}{
	{[]string{"host or domain name not found", "domain not found", "no such domain", "domain does not exist"}, "1.2"},
	{[]string{"user unknown", "unknown user", "no such user", "does not exist", "mailbox not found", "no mailbox here", "invalid recipient", "unknown recipient"}, "1.1"},
	{[]string{"mailbox full", "mailbox is full", "over quota", "quota exceeded", "out of storage"}, "2.2"},
}

// replies gives subject and detail by an SMTP reply code alone (RFC 5321 4.2.3). 550 and 554 say too many things.
var replies = map[string]string{"450": "2.0", "451": "3.0", "452": "2.2", "552": "2.2"}

// refine makes a default status more exact: by a code in the text, by its words, by the reply code. What is final may quote a
// code of either class of failure, what will be tried again only a temporary one.
func refine(status, code, reason string, final bool) string {
	class := status[:2]
	for _, m := range enhanced.FindAllStringSubmatch(reason, -1) {
		if m[1][0] == '4' || m[1][0] == '5' && final {
			return m[1]
		}
	}
	lower := strings.ToLower(reason)
	for _, d := range details {
		if slices.ContainsFunc(d.words, func(w string) bool { return strings.Contains(lower, w) }) {
			return class + d.detail
		}
	}
	if code == "" && len(reason) >= 3 && strings.Trim(reason[:3], "0123456789") == "" && (len(reason) == 3 || reason[3] == ' ' || reason[3] == '-') {
		code = reason[:3]
	}
	if d, ok := replies[code]; ok {
		return class + d
	}
	return status
}
