package mandrill

import (
	"bytes"
	"cmp"
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/bigpost"
)

const (
	eventsField = "mandrill_events"
	// testKey signs the empty batch that Mandrill posts before a webhook has its own key. It is public (Symfony's
	// and Djrill's webhook parsers name it), so it opens the door to nothing else.
	testKey = "test-webhook"
)

// VerifyWebhook checks the signature.
func (p *provider) VerifyWebhook(r *http.Request, body []byte) error {
	return verify(r, body, p.opts.WebhookURL, p.opts.WebhookSecrets)
}

// ParseWebhook reads a batch of events: https://mailchimp.com/developer/transactional/docs/webhooks/
func (p *provider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	items, _, err := batch(body)
	if err != nil {
		return nil, err
	}
	var out []event.Event
	seen := map[string]int{}
	for _, raw := range items {
		e, facts, ok := p.event(raw)
		if !ok {
			continue
		}
		id := event.FactID(p.opts.Account, facts...)
		seen[id]++
		e.ID = id
		if n := seen[id]; n > 1 {
			// QUIRK: a batch captured from Mandrill has two clicks that are equal in every field. Reading twice is
			// two facts; a bounce said twice is one.
			if e.Kind != event.Opened && e.Kind != event.Clicked {
				continue
			}
			e.ID = event.FactID(p.opts.Account, append(facts, fmt.Sprint(n))...)
		}
		out = append(out, e)
	}
	return out, nil
}

// VerifyInbound checks the signature.
func (p *provider) VerifyInbound(r *http.Request, body []byte) error {
	keys := p.opts.InboundSecrets
	if len(keys) == 0 {
		keys = p.opts.WebhookSecrets
	}
	return verify(r, body, p.opts.InboundURL, keys)
}

// ParseInbound reads received mails, one for each event of a batch:
// https://mailchimp.com/developer/transactional/docs/webhooks/#inbound-messages
func (p *provider) ParseInbound(_ *http.Request, body []byte) ([]providers.Inbound, error) {
	items, mails, err := batch(body)
	if err != nil {
		return nil, err
	}
	var out []providers.Inbound
	for _, raw := range items {
		var n native
		if json.Unmarshal(raw, &n) != nil || n.Event != "inbound" {
			continue // other events of the batch
		}
		mail, ok := bigpost.At(mails, string(n.Msg.V.RawMsg))
		if !ok {
			continue // events without a mail have been seen
		}
		in := providers.Inbound{Time: n.TS.Time, Open: mail.Open}
		if addr := string(n.Msg.V.Email); envelope.ValidateAddr(addr) == nil {
			in.Rcpts = []string{addr}
		}
		// The vendor gives no id. The same mail for a second recipient is another one.
		if in.ID, err = bigpost.Digest(mail, string(n.Msg.V.Email)); err != nil {
			return nil, fmt.Errorf("%w: %w", providers.ErrMalformed, err)
		}
		out = append(out, in)
	}
	return out, nil
}

// WebhookGet answers the HEAD by which Mandrill checks a URL before it takes it.
func (p *provider) WebhookGet(path string) (contentType string, content []byte, ok bool) {
	if path != "" {
		return "", nil, false
	}
	return "text/plain; charset=utf-8", []byte("ok\n"), true
}

// batch gives the items of a post, and the mails in them: raw_msg holds the number of its mail.
func batch(body []byte) (items []json.RawMessage, mails []bigpost.Text, err error) {
	form, err := bigpost.Form(body)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the body is not a form", providers.ErrMalformed)
	}
	events, n := eventsOf(form)
	if n != 1 {
		return nil, nil, fmt.Errorf("%w: the form has %d fields %s", providers.ErrMalformed, n, eventsField)
	}
	doc, mails, err := bigpost.Skim(events, "*", "msg", "raw_msg")
	if err != nil || json.Unmarshal(doc, &items) != nil {
		return nil, nil, fmt.Errorf("%w: %s is not a list", providers.ErrMalformed, eventsField)
	}
	return items, mails, nil
}

// eventsOf is the value of the field with the events, and how many of that name there are.
func eventsOf(form []bigpost.Field) (events bigpost.Text, n int) {
	for _, f := range form {
		if f.Name == eventsField {
			events = f.Value
			n++
		}
	}
	return events, n
}

// emptyBatch reports whether the events are an empty list.
func emptyBatch(events bigpost.Text) bool {
	b, err := io.ReadAll(io.LimitReader(events.Open(), 64))
	return err == nil && strings.TrimSpace(string(b)) == "[]"
}

// verify checks the signature: HMAC-SHA1 over the URL as it is registered, and name and value of each form field, by name.
// The scheme has no time stamp, so a replayed request verifies; its events have the same ids and drop out. The public test key
// signs an empty batch.
func verify(r *http.Request, body []byte, registered string, keys []secret.String) error {
	form, err := bigpost.Form(body)
	if err != nil {
		return fmt.Errorf("%w: the body is not a form", providers.ErrSignature)
	}
	sig, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(r.Header.Get("X-Mandrill-Signature")))
	if err != nil || len(sig) != sha1.Size {
		return fmt.Errorf("%w: X-Mandrill-Signature is missing or not 20 bytes in base64", providers.ErrSignature)
	}
	if registered == "" {
		return fmt.Errorf("%w: the signature covers the registered URL; set webhook_url or public_url", providers.ErrSignature)
	}
	events, n := eventsOf(form)
	slices.SortStableFunc(form, func(a, b bigpost.Field) int { return cmp.Compare(a.Name, b.Name) })
	fits := func(key string) bool {
		h := hmac.New(sha1.New, []byte(key))
		h.Write([]byte(registered))
		for _, f := range form {
			h.Write([]byte(f.Name))
			io.Copy(h, f.Value.Open()) // bigpost.Form has seen to it that this cannot fail
		}
		return hmac.Equal(sig, h.Sum(nil))
	}
	for _, k := range keys {
		if !k.Empty() && k.Reveal() != testKey && fits(k.Reveal()) {
			return nil
		}
	}
	if fits(testKey) {
		if n == 1 && emptyBatch(events) {
			return nil
		}
		return fmt.Errorf("%w: the public test key signs an empty batch only", providers.ErrSignature)
	}
	if len(keys) == 0 {
		return fmt.Errorf("%w: no webhook key is configured", providers.ErrSignature)
	}
	return fmt.Errorf("%w: no configured key fits; it covers the URL exactly as registered at Mandrill (webhook_url)", providers.ErrSignature)
}

// fact is what a native event means.
type fact struct {
	kind   event.Kind
	action string
	status string // when the payload says nothing better
	reason string
}

var facts = map[string]fact{
	"send":        {kind: event.Sent, action: event.ActionRelayed, status: "2.0.0"},
	"delivered":   {kind: event.Delivered, action: event.ActionDelivered, status: "2.0.0"},
	"deferral":    {kind: event.Deferred, action: event.ActionDelayed, status: "4.0.0"},
	"hard_bounce": {kind: event.Bounced, action: event.ActionFailed, status: "5.0.0", reason: event.ReasonBounced},
	// Mandrill stops trying.
	"soft_bounce": {kind: event.Bounced, action: event.ActionFailed, status: "4.0.0", reason: event.ReasonBounced},
	"reject":      {kind: event.Rejected, action: event.ActionFailed, status: "5.7.1"},
	"spam":        {kind: event.Complained, reason: event.ReasonSpam},
	"unsub":       {kind: event.Unsubscribed, reason: event.ReasonUnsubscribed},
	"open":        {kind: event.Opened},
	"click":       {kind: event.Clicked},
	"inbound":     {kind: event.Inbound},
}

// event reads one item. facts are those of its id; ok is false for what is no business of ours.
func (p *provider) event(raw json.RawMessage) (e event.Event, id []string, ok bool) {
	var n native
	e = event.Event{V: event.Version, Kind: event.Unknown, Account: p.opts.Account, Provider: name}
	if json.Unmarshal(raw, &n) != nil {
		sum := sha256.Sum256(bytes.TrimSpace(raw))
		return e, []string{"unreadable", hex.EncodeToString(sum[:])}, true
	}
	m := &n.Msg.V
	if n.Channel == "sms" || m.Channel == "sms" {
		return e, nil, false // since version 1.4 of the specification; not mail
	}
	e.Time = n.TS.Time
	at := ""
	if !n.TS.IsZero() {
		at = fmt.Sprint(n.TS.UnixMicro())
	}
	if n.Event == "" {
		p.sync(&n, &e)
		sum := sha256.Sum256(bytes.TrimSpace(raw))
		return e, []string{"sync", string(n.Type), string(n.Action), at, hex.EncodeToString(sum[:])}, true
	}
	f, ok := facts[string(n.Event)]
	if !ok {
		f = fact{kind: event.Unknown}
	}
	native := cmp.Or(n.ID, m.ID)
	e.Kind, e.Action, e.Status, e.RejectReason = f.kind, f.action, f.status, f.reason
	e.ProviderEvent = event.Clean(string(n.Event), 64)
	e.ProviderMessageID = p.id(native)
	if addr := string(m.Email); envelope.ValidateAddr(addr) == nil {
		e.Recipient = addr
	}
	for _, tag := range m.Tags {
		e.Tags = append(e.Tags, event.Clean(tag, 256))
	}
	p.metadata(m, &e)
	p.diagnostic(m, &e)
	p.rejection(m, &e)
	if f.kind == event.Opened || f.kind == event.Clicked {
		e.IP, e.UserAgent = event.Clean(string(n.IP), 64), event.Clean(string(n.UserAgent), event.MaxText)
	}
	id = []string{string(n.Event), string(native), at}
	if f.kind == event.Clicked {
		e.URL = event.Clean(string(n.URL), 2048)
		id = append(id, string(n.URL))
	}
	if native == "" {
		// Inbound mails have no id, nor have events without "msg".
		sum := sha256.Sum256(bytes.TrimSpace(raw))
		id = append(id, hex.EncodeToString(sum[:]))
	}
	return e, id, true
}

// sync reads a change of a deny or allow list. It concerns no mail.
func (p *provider) sync(n *native, e *event.Event) {
	entry := n.Reject.V
	if !n.Reject.OK {
		entry = n.Entry.V
	}
	e.ProviderEvent = event.Clean(strings.Trim(string(n.Type)+" "+string(n.Action), " "), 64)
	if addr := string(entry.Email); envelope.ValidateAddr(addr) == nil {
		e.Recipient = addr
	}
	e.Diagnostic = event.Clean(strings.TrimSpace(string(entry.Reason)+" "+string(entry.Detail)), event.MaxText)
}

// maxMetadata bounds the entries taken from one event.
const maxMetadata = 100

// metadata takes what the mail was sent with; our own two entries are not part of it.
func (p *provider) metadata(m *nativeMsg, e *event.Event) {
	for _, k := range slices.Sorted(maps.Keys(m.Metadata.V)) {
		raw := m.Metadata.V[k]
		var v text
		if json.Unmarshal(raw, &v) == nil && v == "" && len(raw) > 0 && raw[0] != '"' && string(raw) != "null" {
			v = text(raw) // true, false, or a nested value
		}
		switch {
		case k == refKey && isRef(string(v)):
			e.Ref = string(v)
		case k == messageIDKey:
			e.MessageID = event.Clean(strings.Trim(string(v), "<> "), 998)
		case k != refKey && len(e.Metadata) < maxMetadata:
			if e.Metadata == nil {
				e.Metadata = map[string]string{}
			}
			e.Metadata[event.Clean(k, 128)] = event.Clean(string(v), event.MaxText)
		}
	}
}

// isRef tells a reference of ours from anything else under its key.
func isRef(s string) bool {
	return len(s) >= 16 && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

var (
	// RFC 3463 2; not within an IP address.
	enhanced = regexp.MustCompile(`(?:^|[^0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:$|[^0-9.]|\.(?:$|[^0-9]))`)
	reply    = regexp.MustCompile(`^\s*([245])[0-9][0-9](?:$|[ -])`)
	diagType = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9-]*$`)
)

// descriptions are those seen of bounce_description; the full list is not documented.
var descriptions = map[text]string{"bad_mailbox": "1.1", "invalid_domain": "1.2", "mailbox_full": "2.2"}

// diagnostic takes the server's reply and the status in it. A deferral has it in the last SMTP event only.
func (p *provider) diagnostic(m *nativeMsg, e *event.Event) {
	if e.Action == "" || e.Kind == event.Rejected || e.Kind == event.Sent {
		return
	}
	diag := string(m.Diag)
	if list := m.SMTPEvents.V; len(list) > 0 {
		last := list[len(list)-1].V
		diag = cmp.Or(diag, string(last.Diag))
		e.RemoteMTA = event.Clean(string(last.DestinationIP), 255)
	}
	if typ, rest, ok := strings.Cut(diag, ";"); ok && diagType.MatchString(strings.TrimSpace(typ)) {
		diag = strings.TrimSpace(rest)
	}
	e.Diagnostic = event.Clean(p.client.Redact(diag), event.MaxText)
	class := map[event.Kind]string{event.Delivered: "2", event.Deferred: "4", event.Bounced: "45"}[e.Kind]
	if s := enhanced.FindStringSubmatch(diag); s != nil && strings.Contains(class, s[1][:1]) {
		e.Status = s[1]
	} else if detail, ok := descriptions[m.BounceDescription]; ok && e.Kind == event.Bounced {
		e.Status = e.Status[:1] + "." + detail
	} else if s := reply.FindStringSubmatch(diag); s != nil && strings.Contains(class, s[1]) {
		e.Status = s[1] + ".0.0"
	}
}

// rejection takes the reason of a reject, which samples do not have.
func (p *provider) rejection(m *nativeMsg, e *event.Event) {
	if e.Kind != event.Rejected {
		return
	}
	reason := text(cmp.Or(m.Reject.Reason, string(m.RejectReason)))
	r, ok := refusalOf(reason)
	if ok {
		e.Status, e.RejectReason = r.code, r.reason
	}
	e.Diagnostic = event.Clean(string(reason), event.MaxText)
	if (!ok || r.operator) && e.ProviderMessageID != "" {
		// Our reference in an event says that the call was taken. A mail rejected for its sender was answered
		// as the operator's fault and waits for him; only its id, if the answer named one, may settle it.
		e.Ref = ""
	}
}
