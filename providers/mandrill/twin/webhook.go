package twin

import (
	"bytes"
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

type hook struct {
	ID     int      `json:"id"`
	URL    string   `json:"url"`
	Desc   string   `json:"description"`
	Key    string   `json:"auth_key"`
	Events []string `json:"events"`
	At     string   `json:"created_at"`
	Error  *string  `json:"last_error"`
}

// testKey signs the empty batch of a webhook that has no key yet.
const testKey = "test-webhook"

// Event is a message event about one recipient of m: send, delivered, deferral, hard_bounce, soft_bounce, reject, spam,
// unsub, open or click. bare leaves out what samples leave out: the top-level id, and the reason of a reject.
func Event(native string, m Mail, r Rcpt, at time.Time, bare bool) map[string]any {
	msg := map[string]any{
		"ts": m.At.Unix(), "_id": r.ID, "_version": "exampleaaaaaaaaaaaaaaa", "subject": m.Subject, "email": r.Email, "sender": m.From,
		"tags": m.Tags, "state": "sent", "metadata": m.Metadata, "opens": []any{}, "clicks": []any{}, "resends": []any{},
		"template": nil, "subaccount": nil, "smtp_events": []any{},
	}
	if len(m.Metadata) == 0 {
		msg["metadata"] = []any{} // an empty PHP array
	}
	if m.Tags == nil {
		msg["tags"] = nil
	}
	e := map[string]any{"event": native, "ts": at.Unix(), "msg": msg}
	if !bare {
		e["_id"] = r.ID
	}
	smtp := func(kind, diag string) {
		msg["smtp_events"] = []any{map[string]any{"ts": at.Unix(), "type": kind, "diag": diag, "source_ip": "198.51.100.7", "destination_ip": "192.0.2.25", "size": 0}}
	}
	switch native {
	case "delivered":
		smtp("delivered", "250 2.0.0 OK 1365109999 queued")
	case "deferral":
		msg["state"] = "deferred"
		smtp("deferred", "451 4.3.5 Temporarily unavailable, try again later.")
	case "hard_bounce":
		msg["state"], msg["bounce_description"], msg["bgtools_code"] = "bounced", "bad_mailbox", 10
		msg["diag"] = "smtp;550 5.1.1 The email account that you tried to reach does not exist."
	case "soft_bounce":
		msg["state"], msg["bounce_description"], msg["bgtools_code"] = "soft-bounced", "mailbox_full", 22
		msg["diag"] = "smtp;552 The mailbox is full"
	case "reject":
		msg["state"] = "rejected"
		if !bare {
			msg["reject"] = map[string]any{"reason": r.Reason, "last_event_at": nil}
		}
	case "spam", "unsub":
		msg["state"] = native
	case "open", "click":
		e["ip"], e["user_agent"] = "203.0.113.9", "Mozilla/5.0"
		e["location"], e["user_agent_parsed"] = nil, nil
		if native == "click" {
			e["url"] = "https://www.example.com/a?b=c"
		}
	}
	return e
}

// Sync is a change of the deny list ("blacklist") or the allow list ("whitelist").
func Sync(list, action, addr string, at time.Time) map[string]any {
	e := map[string]any{"type": list, "action": action, "ts": at.Unix()}
	if list == "whitelist" {
		e["entry"] = map[string]any{"email": addr, "detail": "example details", "created_at": at.UTC().Format(time.DateTime)}
	} else {
		e["reject"] = map[string]any{"reason": "hard-bounce", "detail": "Example detail", "email": addr, "created_at": at.UTC().Format(time.DateTime), "expired": false, "subaccount": nil}
	}
	return e
}

// Received is an inbound event.
func Received(rcpt, raw string, at time.Time) map[string]any {
	return map[string]any{"event": "inbound", "ts": at.Unix(), "msg": map[string]any{
		"raw_msg": raw, "email": rcpt, "sender": nil, "template": nil, "tags": []any{}, "subject": "Inbound",
		"spf": map[string]any{"result": "pass"}, "dkim": map[string]any{"signed": true, "valid": true},
	}}
}

// Batch is the form body of a post. As PHP does it, slashes are escaped.
func Batch(events ...map[string]any) []byte {
	if events == nil {
		events = []map[string]any{}
	}
	b, err := json.Marshal(events)
	if err != nil {
		panic(err) // only strings, numbers and maps of them
	}
	return []byte(url.Values{"mandrill_events": {strings.ReplaceAll(string(b), "/", `\/`)}}.Encode())
}

// Signature signs a form body for the URL as it was registered.
func Signature(key, registered string, body []byte) string {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return ""
	}
	names := make([]string, 0, len(form))
	for k := range form {
		names = append(names, k)
	}
	slices.SortFunc(names, cmp.Compare[string])
	h := hmac.New(sha1.New, []byte(key))
	io.WriteString(h, registered)
	for _, k := range names {
		for _, v := range form[k] {
			io.WriteString(h, k+v)
		}
	}
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

func request(ctx context.Context, key, target string, body []byte) (*http.Request, error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("User-Agent", "Mandrill-Webhook/1.0")
	r.Header.Set("X-Mandrill-Signature", Signature(key, target, body))
	return r, nil
}

// Webhook is a signed post of events to the URL, as it is registered.
func (t *Twin) Webhook(ctx context.Context, target string, events ...map[string]any) (*http.Request, error) {
	return request(ctx, t.o.WebhookKey, target, Batch(events...))
}

// Post sends events and gives the status of the answer.
func (t *Twin) Post(ctx context.Context, target string, events ...map[string]any) (int, error) {
	r, err := t.Webhook(ctx, target, events...)
	if err != nil {
		return 0, err
	}
	return t.do(r)
}

func (t *Twin) do(r *http.Request) (int, error) {
	resp, err := t.o.Client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}

// Test does what Mandrill does before it takes a URL: an unsigned HEAD, then an empty batch under the public key.
func (t *Twin) Test(ctx context.Context, target string) (head, post int, err error) {
	r, err := http.NewRequestWithContext(ctx, http.MethodHead, target, nil)
	if err != nil {
		return 0, 0, err
	}
	r.Header.Set("User-Agent", "Mandrill-Webhook/1.0")
	if head, err = t.do(r); err != nil {
		return head, 0, err
	}
	if r, err = request(ctx, testKey, target, Batch()); err != nil {
		return head, 0, err
	}
	post, err = t.do(r)
	return head, post, err
}

// addWebhook is /webhooks/add. How a URL that fails its check is refused is not documented in detail.
func (t *Twin) addWebhook(ctx context.Context, body []byte) (any, *refusal) {
	var q struct {
		Key         string   `json:"key"`
		URL         string   `json:"url"`
		Description string   `json:"description"`
		Events      []string `json:"events"`
	}
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	known := []string{"send", "deferral", "hard_bounce", "soft_bounce", "delivered", "open", "click", "spam", "unsub", "reject", "blacklist", "whitelist"}
	for _, e := range q.Events {
		if !slices.Contains(known, e) {
			return nil, invalidField("Please choose a known event", "events")
		}
	}
	if head, post, err := t.Test(ctx, q.URL); err != nil || head != http.StatusOK || post != http.StatusOK {
		return nil, invalidField("The URL does not answer with 200", "url")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h := hook{ID: len(t.hooks) + 1, URL: q.URL, Desc: q.Description, Key: t.o.WebhookKey, Events: q.Events, At: t.o.Now().UTC().Format(time.DateTime)}
	t.hooks = append(t.hooks, h)
	return h, nil
}

func (t *Twin) listWebhooks() any {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]hook{}, t.hooks...)
}
