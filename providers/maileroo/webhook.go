package maileroo

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/mail"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/bigpost"
)

// maxPeople bounds the addresses taken from one event, maxEvents the events of one request.
const (
	maxPeople = 500
	maxEvents = 1000
)

// VerifyWebhook checks the signature.
func (p *provider) VerifyWebhook(r *http.Request, body []byte) error {
	return verify(p.opts.WebhookSecrets, r, body)
}

// verify checks the HMAC-SHA256 of the exact body with each of the configured secrets. The scheme has no time
// stamp, so a replayed request verifies; its events have the same ids and drop out.
func verify(secrets []secret.String, r *http.Request, body []byte) error {
	given := strings.TrimSpace(r.Header.Get("X-Maileroo-Signature"))
	// QUIRK: the documentation does not say how the digest is written. It is seen in lower-case hex; one integration expects a prefix.
	if len(given) > 7 && strings.EqualFold(given[:7], "sha256=") {
		given = given[7:]
	}
	sig, err := hex.DecodeString(given)
	if err != nil || len(sig) != sha256.Size {
		return fmt.Errorf("%w: X-Maileroo-Signature is missing or not 64 hexadecimal digits", providers.ErrSignature)
	}
	ok := false
	for _, s := range secrets {
		if s.Empty() {
			continue
		}
		h := hmac.New(sha256.New, []byte(s.Reveal()))
		h.Write(body)
		if hmac.Equal(h.Sum(nil), sig) {
			ok = true
		}
	}
	if !ok {
		return fmt.Errorf("%w: no configured secret fits", providers.ErrSignature)
	}
	return nil
}

// ParseWebhook reads one event, as documented (https://maileroo.com/help/use-webhooks), or several in an array or
// under "events", for which integrators are prepared.
func (p *provider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	items := []json.RawMessage{body}
	var w struct {
		Events []json.RawMessage `json:"events"`
	}
	switch b := bytes.TrimSpace(body); {
	case !json.Valid(b):
		return nil, fmt.Errorf("%w: not JSON", providers.ErrMalformed)
	case b[0] == '[':
		if err := json.Unmarshal(b, &items); err != nil {
			return nil, fmt.Errorf("%w: not a list of events", providers.ErrMalformed)
		}
	case json.Unmarshal(b, &w) == nil && w.Events != nil:
		items = w.Events
	}
	if len(items) > maxEvents {
		return nil, fmt.Errorf("%w: more than %d events", providers.ErrMalformed, maxEvents)
	}
	var out []event.Event
	seen := map[string]bool{}
	for _, raw := range items {
		var w webhook
		if json.Unmarshal(raw, &w) != nil || w.EventType == "" && w.EventID == "" {
			continue
		}
		for _, e := range p.events(&w) {
			if !seen[e.ID] {
				seen[e.ID] = true
				out = append(out, e)
			}
		}
	}
	if len(items) > 0 && out == nil {
		return nil, fmt.Errorf("%w: not an event", providers.ErrMalformed)
	}
	return out, nil
}

// events gives one event for each recipient named, one without a recipient when nobody is.
func (p *provider) events(w *webhook) []event.Event {
	n, ok := natives[string(w.EventType)]
	if !ok {
		n = native{kind: event.Unknown}
	}
	base := event.Event{
		V: event.Version, Kind: n.kind, Account: p.opts.Account, Provider: name,
		ProviderMessageID: foldReference(string(w.Reference)), ProviderEventID: event.Clean(string(w.EventID), 128),
		ProviderEvent: event.Clean(string(w.EventType), 64), MessageID: event.Clean(strings.Trim(string(w.MessageID), "<> "), 998),
		URL: event.Clean(string(w.Data.URL), 2048), UserAgent: event.Clean(string(w.Data.UserAgent), event.MaxText), IP: event.Clean(string(w.Data.IP), 64),
	}
	if base.Time = parseTime(string(w.EventTime)); base.Time.IsZero() {
		base.Time = parseTime(string(w.InsertedAt))
	}
	readTags(&base, w.Tags)
	said := string(w.Data.Reason)
	if w.Data.RejectReason != "" {
		said = string(w.Data.RejectReason)
	}
	base.Diagnostic = event.Clean(p.client.Redact(said), event.MaxText)

	people := addresses(w.Data.To)
	if len(people) == 0 {
		people = []string{""}
	}
	out := make([]event.Event, len(people))
	for i, to := range people {
		e := base
		e.Recipient = to
		// An event id is one request, which may be about several recipients. Without one the facts have to do.
		facts := []string{string(w.EventID), envelope.Fold(to)}
		if w.EventID == "" {
			facts = append(facts, string(w.EventType), string(w.EventTime), string(w.InsertedAt), string(w.Reference), string(w.MessageID), string(w.Data.URL), string(w.Data.IP))
		}
		e.ID = event.FactID(p.opts.Account, facts...)
		n.judge(&e, said)
		e.Tags, e.Metadata, e.Candidates = slices.Clone(base.Tags), maps.Clone(base.Metadata), nil
		out[i] = e
	}
	return out
}

// readTags takes our reference and the tags out of the map; the rest is metadata. Tags are numbered without a gap: see tagKey.
func readTags(e *event.Event, m tagMap) {
	if ref := m[refTag]; isRef(ref) {
		e.Ref = ref
	}
	tags := map[string]bool{refTag: true}
	for n := 0; ; n++ {
		v, ok := m[tagKey(n)]
		if !ok {
			break
		}
		tags[tagKey(n)] = true
		e.Tags = append(e.Tags, event.Clean(v, maxMapValue))
	}
	for k, v := range m {
		if tags[k] {
			continue
		}
		if e.Metadata == nil {
			e.Metadata = map[string]string{}
		}
		e.Metadata[event.Clean(k, maxMapKey)] = event.Clean(v, maxMapValue)
	}
}

// isRef tells a reference of ours from somebody's tag of the same name.
func isRef(s string) bool {
	return len(s) >= 16 && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

// parseTime reads Unix seconds or RFC 3339.
func parseTime(s string) time.Time {
	if n, err := strconv.ParseFloat(s, 64); err == nil {
		if n < 1 || n > 253402300799 { // year 9999
			return time.Time{}
		}
		return time.Unix(int64(n), 0).UTC()
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() < 1970 {
		return time.Time{}
	}
	return t.UTC()
}

// addresses gives the mailboxes, each once; what is no address is left out.
func addresses(list []string) []string {
	var out []string
	seen := map[string]bool{}
	for _, s := range list {
		found := []string{strings.TrimSpace(s)}
		if envelope.ValidateAddr(found[0]) != nil {
			found = nil
			if parsed, err := mail.ParseAddressList(s); err == nil {
				for _, a := range parsed {
					found = append(found, a.Address)
				}
			}
		}
		for _, a := range found {
			if key := envelope.Fold(a); len(out) < maxPeople && envelope.ValidateAddr(a) == nil && !seen[key] {
				seen[key] = true
				out = append(out, a)
			}
		}
	}
	return out
}

// native is what an event means when its text says no more.
type native struct {
	kind   event.Kind
	action string
	status string
	reason string
}

var natives = map[string]native{
	"accepted":   {kind: event.Queued},
	"delivered":  {kind: event.Delivered, action: event.ActionDelivered, status: "2.0.0"},
	"deferred":   {kind: event.Deferred, action: event.ActionDelayed, status: "4.0.0"},
	"failed":     {kind: event.Bounced, action: event.ActionFailed, status: "5.0.0", reason: event.ReasonBounced},
	"rejected":   {kind: event.Rejected, action: event.ActionFailed, status: "5.6.0", reason: event.ReasonOther},
	"opened":     {kind: event.Opened},
	"clicked":    {kind: event.Clicked},
	"complained": {kind: event.Complained, reason: event.ReasonSpam},
}

var (
	codes = regexp.MustCompile(`^\s*([245]\d\d)[ -]([245]\.\d{1,3}\.\d{1,3})\b`)
	code  = regexp.MustCompile(`^\s*([245])\d\d(?:[ -]|$)`)
)

// replyStatus is the RFC 3463 status at the beginning of a server's reply, "" when there is none. enhanced tells
// that the server gave it itself.
func replyStatus(text string) (status string, enhanced bool) {
	if m := codes.FindStringSubmatch(text); m != nil {
		return m[2], true
	}
	if m := code.FindStringSubmatch(text); m != nil {
		return m[1] + ".0.0", false
	}
	return "", false
}

// judge sets action, status and reason by the type and the server's text.
func (n native) judge(e *event.Event, text string) {
	e.Action, e.Status, e.RejectReason = n.action, n.status, n.reason
	status, enhanced := replyStatus(text)
	lower := strings.ToLower(text)
	has := func(words ...string) bool {
		return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(lower, w) })
	}
	switch n.kind {
	case event.Delivered, event.Deferred:
		if status != "" && status[0] == n.status[0] {
			e.Status = status
		}
	case event.Bounced:
		switch {
		case strings.HasPrefix(status, "4"):
			// A temporary failure that was given up: RFC 3463 has 4.4.7 for that.
			e.Status, e.RejectReason = "4.4.7", event.ReasonTimedOut
			if enhanced {
				e.Status = status
			}
			return
		case strings.HasPrefix(status, "5"):
			e.Status = status
		}
		switch {
		case has("spam"):
			e.RejectReason = event.ReasonSpam
		case strings.HasPrefix(e.Status, "5.7.") || has("blocked", "blocklist", "block list", "blacklist", "denylist"):
			e.RejectReason = event.ReasonBlocked
		}
	case event.Rejected:
		switch {
		case has("suppress", "previously bounced", "unsubscri", "complain"):
			e.Status = "5.7.1"
			switch {
			case has("complain"):
				e.RejectReason = event.ReasonSpam
			case has("unsubscri"):
				e.RejectReason = event.ReasonUnsubscribed
			default:
				e.RejectReason = event.ReasonBounced
			}
		case e.Recipient != "" && strings.Contains(lower, strings.ToLower(e.Recipient)):
			e.Status, e.RejectReason = "5.1.3", event.ReasonInvalid
		}
	}
}

// VerifyInbound finds nothing to verify: the post is not signed.
func (p *provider) VerifyInbound(*http.Request, []byte) error { return nil }

// ParseInbound reads a received mail: https://maileroo.com/docs/inbound-routing/webhooks. The post is not signed: it proves
// nothing until ValidateURL has said yes. All its URLs are to be https at a host of inbound_hosts, so that a forged post cannot have
// the bridge call whom it likes.
func (p *provider) ParseInbound(_ *http.Request, body []byte) ([]providers.Inbound, error) {
	doc, _, err := bigpost.Skim(bigpost.Plain(body), "body", "plaintext")
	var w inboundPost
	if err != nil || json.Unmarshal(doc, &w) != nil || w.Body.Raw.URL == "" {
		return nil, fmt.Errorf("%w: not an inbound post with the URL of the raw message", providers.ErrMalformed)
	}
	if w.ValidationURL == "" || !p.allowed(string(w.ValidationURL)) {
		return nil, fmt.Errorf("%w: validation_url is missing or not https at a host of inbound_hosts", providers.ErrSignature)
	}
	for field, u := range map[string]text{"raw_mime.url": w.Body.Raw.URL, "deletion_url": w.DeletionURL} {
		if u != "" && !p.allowed(string(u)) {
			// The mail stays at Maileroo and comes again; meanwhile the operator can add the host.
			return nil, fmt.Errorf("%w: %s is not https at a host of inbound_hosts: %s", providers.ErrUnavailable, field, hostOf(string(u)))
		}
	}
	in := providers.Inbound{
		ID: event.Clean(string(w.ID), 128), Rcpts: addresses(w.Recipients), Time: parseTime(string(w.ProcessedAt)),
		FetchURL: string(w.Body.Raw.URL), ValidateURL: string(w.ValidationURL), DeleteURL: string(w.DeletionURL),
	}
	if from := addresses([]string{string(w.EnvelopeSender)}); len(from) == 1 {
		in.From = from[0]
	}
	if in.ID == "" {
		sum := sha256.Sum256([]byte(strings.Join(append([]string{string(w.MessageID), string(w.Body.Raw.URL)}, in.Rcpts...), "\n")))
		in.ID = hex.EncodeToString(sum[:16])
	}
	if len(in.Rcpts) == 0 {
		return nil, fmt.Errorf("%w: an inbound post without recipients", providers.ErrMalformed)
	}
	return []providers.Inbound{in}, nil
}

// allowed reports whether a URL of an unproven post may be called.
func (p *provider) allowed(s string) bool {
	u, err := url.Parse(s)
	if err != nil || len(s) > 8192 || u.Scheme != "https" || u.User != nil || u.Opaque != "" || u.Port() != "" && u.Port() != "443" {
		return false
	}
	host := strings.ToLower(u.Hostname())
	return slices.ContainsFunc(p.set.InboundHosts, func(h string) bool {
		h = strings.ToLower(h)
		if suffix, ok := strings.CutPrefix(h, "*"); ok {
			return strings.HasSuffix(host, suffix) && len(host) > len(suffix)
		}
		return host == h
	})
}

func hostOf(s string) string {
	u, err := url.Parse(s)
	if err != nil {
		return "not a URL"
	}
	return event.Clean(u.Scheme+"://"+u.Host, 128)
}

// hostPattern checks an entry of inbound_hosts: a name, or all names below one.
func hostPattern(s string) bool {
	s = strings.ToLower(strings.TrimPrefix(s, "*."))
	return strings.Contains(s, ".") && !strings.HasPrefix(s, ".") && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}
