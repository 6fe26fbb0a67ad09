package smtpeter

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	stdmime "mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
)

// ParseWebhook reads one call: https://www.smtpeter.com/en/documentation/webhooks
func (p *provider) ParseWebhook(r *http.Request, body []byte) ([]event.Event, error) {
	sent, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		sent = time.Time{}
	}
	return p.parseBody(r.Header.Get("Content-Type"), body, sent)
}

var verificationFile = regexp.MustCompile(`^smtpeter-[A-Za-z0-9_-]{1,100}\.txt$`)

// maxVerificationFile bounds such a file: it holds one line.
const maxVerificationFile = 64 << 10

// WebhookGet serves the text file by which SMTPeter makes sure that the URL is ours, for as long as it is there:
// https://www.smtpeter.com/en/documentation/webhooks
func (p *provider) WebhookGet(path string) (contentType string, content []byte, ok bool) {
	const plain = "text/plain; charset=utf-8"
	// The file lies in the folder of the webhook's URL, which may go on below the account's path.
	file := path[strings.LastIndexByte(path, '/')+1:]
	if !verificationFile.MatchString(file) {
		return "", nil, false
	}
	if text, ok := p.set.VerificationFiles[file]; ok {
		return plain, []byte(text), true
	}
	if p.set.VerificationFolder == "" {
		return "", nil, false
	}
	f, err := os.OpenInRoot(p.set.VerificationFolder, file)
	if err != nil {
		return "", nil, false
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
		return "", nil, false
	}
	content, err = io.ReadAll(io.LimitReader(f, maxVerificationFile))
	return plain, content, err == nil
}

// fields are the variables of a call. Lists keep their entries.
type fields map[string][]string

func (f fields) get(name string) string {
	if v := f[name]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// text is a variable fit for an event.
func (f fields) text(name string) string { return event.Clean(f.get(name), event.MaxText) }

// maxFields bounds the variables of a call; fifteen are documented.
const maxFields = 200

// parseBody reads the variables. The pages speak of POST variables, the signed example of JSON: the
// content decides where the type does not.
func (p *provider) parseBody(contentType string, body []byte, sent time.Time) ([]event.Event, error) {
	mediaType, params, _ := stdmime.ParseMediaType(contentType)
	trimmed := bytes.TrimSpace(body)
	var items []fields
	switch {
	case mediaType == "multipart/form-data":
		items = parseMultipart(body, params["boundary"])
	case len(trimmed) > 0 && (trimmed[0] == '{' || trimmed[0] == '['):
		items = parseJSON(trimmed)
	default:
		items = parseForm(body)
	}
	var out []event.Event
	for _, f := range items {
		if f.get("type") == "" && f.get("id") == "" {
			continue
		}
		out = append(out, p.parseEvent(f, sent))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: neither id nor type is in it", providers.ErrMalformed)
	}
	return out, nil
}

func parseForm(body []byte) []fields {
	v, err := url.ParseQuery(string(body))
	if err != nil && len(v) == 0 || len(v) > maxFields {
		return nil
	}
	f := fields{}
	for k, list := range v {
		f[strings.TrimSuffix(k, "[]")] = list // PHP's spelling of a list
	}
	return []fields{f}
}

func parseMultipart(body []byte, boundary string) []fields {
	if boundary == "" {
		return nil
	}
	f := fields{}
	r := multipart.NewReader(bytes.NewReader(body), boundary)
	for range maxFields {
		part, err := r.NextPart()
		if err != nil {
			break // what came before it counts
		}
		value, err := io.ReadAll(part)
		if err != nil {
			break
		}
		k := strings.TrimSuffix(part.FormName(), "[]")
		f[k] = append(f[k], string(value))
	}
	return []fields{f}
}

// maxItems bounds a list of events; one per call is documented.
const maxItems = 1000

func parseJSON(body []byte) []fields {
	var list []map[string]json.RawMessage
	if body[0] == '{' {
		list = make([]map[string]json.RawMessage, 1)
		if json.Unmarshal(body, &list[0]) != nil {
			return nil
		}
	} else {
		var items []json.RawMessage
		if json.Unmarshal(body, &items) != nil || len(items) > maxItems {
			return nil
		}
		for _, item := range items {
			var m map[string]json.RawMessage
			if json.Unmarshal(item, &m) == nil {
				list = append(list, m)
			}
		}
	}
	var out []fields
	for _, m := range list {
		if len(m) > maxFields {
			continue
		}
		f := fields{}
		for k, v := range m {
			var items []json.RawMessage
			if json.Unmarshal(v, &items) != nil {
				items = []json.RawMessage{v}
			}
			for _, item := range items {
				if s := scalar(item); s != "" {
					f[k] = append(f[k], s)
				}
			}
		}
		out = append(out, f)
	}
	return out
}

// parseEvent makes the event of one call. sent stands in for its time where none is given.
func (p *provider) parseEvent(f fields, sent time.Time) event.Event {
	typ := strings.ToLower(strings.TrimSpace(f.get("type")))
	e := event.Event{
		V: event.Version, Kind: event.Unknown, Account: p.opts.Account, Provider: name,
		ProviderMessageID: event.Clean(f.get("id"), 256), ProviderEvent: event.Clean(typ, 64),
		ID: p.factID(typ, f), Recipient: address(f.get("recipient")),
	}
	e.Time = parseTime(f)
	if e.Time.IsZero() {
		e.Time = sent.UTC()
	}
	for _, tag := range splitTags(f["tags"]) {
		if ref, ok := strings.CutPrefix(tag, refPrefix); ok && e.Ref == "" && isRef(ref) {
			e.Ref = ref
			continue
		}
		e.Tags = append(e.Tags, event.Clean(tag, 256))
	}
	if apply, ok := types[typ]; ok {
		apply(f, &e)
	}
	return e
}

// factID: there is no event id, so the facts are one, with the returned message among them where there is one.
func (p *provider) factID(typ string, f fields) string {
	facts := []string{typ}
	for _, k := range []string{"id", "recipient", "time", "state", "code", "original", "ip"} {
		facts = append(facts, f.get(k))
	}
	if m := f.get("mime"); m != "" {
		sum := sha256.Sum256([]byte(m))
		facts = append(facts, hex.EncodeToString(sum[:]))
	}
	return event.FactID(p.opts.Account, facts...)
}

// parseTime reads "time" in Unix seconds, else a date. QUIRK: the zone of "timestamp" is not stated; it is
// read as UTC, as the log files' times are.
func parseTime(f fields) time.Time {
	for _, s := range []string{f.get("time"), f.get("timestamp")} {
		if n, err := strconv.ParseFloat(s, 64); err == nil && n > 0 && n < 1e11 {
			return time.UnixMilli(int64(n * 1000)).UTC()
		}
		for _, layout := range []string{time.DateTime, time.RFC3339Nano} {
			if t, err := time.Parse(layout, s); err == nil {
				return t.UTC()
			}
		}
	}
	return time.Time{}
}

// splitTags: whether tags come as a list or joined is not stated; the log files join them with semicolons.
func splitTags(list []string) []string {
	var out []string
	for _, s := range list {
		var inner []string
		if strings.HasPrefix(s, "[") && json.Unmarshal([]byte(s), &inner) == nil {
			out = append(out, inner...)
			continue
		}
		out = append(out, strings.FieldsFunc(s, func(r rune) bool { return r == ';' || r == ',' })...)
	}
	out = slices.DeleteFunc(out, func(s string) bool { return strings.TrimSpace(s) == "" })
	return out[:min(len(out), maxFields)]
}

// isRef tells a reference of ours from somebody's tag with the same beginning.
func isRef(s string) bool {
	return len(s) >= 16 && len(s) <= 128 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-_.") == ""
}

func address(s string) string {
	if s = strings.Trim(strings.TrimSpace(s), "<>"); !isAddress(s) {
		return ""
	}
	return s
}

// types are the documented kinds of call, with the names the dashboard gives them.
var types = map[string]func(fields, *event.Event){
	"failure": failure, "failures": failure, "failed": failure,
	"bounce": bounce, "bounces": bounce,
	"delivery": delivery, "deliveries": delivery, "delivered": delivery,
	"open": engagement(event.Opened), "opens": engagement(event.Opened),
	"click": engagement(event.Clicked), "clicks": engagement(event.Clicked),
	"abuse": abuse, "abuses": abuse,
}

// state is what the phase says in which a delivery failed, where the call brings no extended code.
type state struct {
	kind   event.Kind
	status string
	reason string
}

// states are MailerQ's names, which SMTPeter uses without a list of its own; they are compared in lower
// case and without separators. The others mean a refusal by the remote server.
var states = map[string]state{
	"bounce":      {event.Bounced, "5.0.0", event.ReasonBounced}, // an asynchronous report
	"suppression": {event.Rejected, "5.7.1", event.ReasonBlocked},
	"process":     {event.Bounced, "4.4.7", event.ReasonTimedOut}, // the maximum delivery time passed
	"dns":         {event.Bounced, "5.1.2", event.ReasonBounced},
	"connect":     {event.Bounced, "4.4.1", event.ReasonBounced},
}

var (
	extendedCode = regexp.MustCompile(`^[245]\.[0-9]{1,3}\.[0-9]{1,3}$`)
	leadingCode  = regexp.MustCompile(`^(?:[0-9]{3}[ -])?([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[^0-9.]|$)`)
)

// extended is the call's enhanced status code, from the field or the beginning of the text, if it is of that class.
func extended(f fields, classes string) string {
	code := strings.TrimSpace(f.get("extended"))
	if !extendedCode.MatchString(code) {
		m := leadingCode.FindStringSubmatch(strings.TrimSpace(f.get("description")))
		if m == nil {
			return ""
		}
		code = m[1]
	}
	if !strings.Contains(classes, code[:1]) {
		return ""
	}
	return code
}

func reply(f fields, e *event.Event) {
	e.Diagnostic = f.text("description")
	if code := f.text("code"); code != "" && code != "0" {
		e.SMTPReply = event.Clean(strings.TrimSpace(code+" "+f.get("description")), event.MaxText)
	}
}

// failure is final: https://www.smtpeter.com/en/documentation/webhook-failures
func failure(f fields, e *event.Event) {
	reply(f, e)
	s, known := states[strings.NewReplacer(" ", "", "_", "", "-", "").Replace(strings.ToLower(f.get("state")))]
	if !known {
		s = state{event.Bounced, "5.0.0", event.ReasonBounced}
	}
	if strings.HasPrefix(f.get("code"), "4") {
		s.reason = event.ReasonTimedOut
		if !known || s.status[0] == '5' {
			s.status = "4.4.7"
		}
	}
	if code := extended(f, "45"); code != "" {
		s.status = code
	}
	if s.reason == event.ReasonBounced {
		s.reason = reasonOf(f.get("description"))
	}
	e.Kind, e.Action, e.Status, e.RejectReason = s.kind, event.ActionFailed, s.status, s.reason
}

// reasonOf reads the remote server's words, where they are plain.
func reasonOf(text string) string {
	text = strings.ToLower(text)
	for _, x := range []struct{ word, reason string }{
		{"spam", event.ReasonSpam}, {"blocklist", event.ReasonBlocked}, {"blacklist", event.ReasonBlocked}, {"block list", event.ReasonBlocked}, {"denylist", event.ReasonBlocked},
	} {
		if strings.Contains(text, x.word) {
			return x.reason
		}
	}
	return event.ReasonBounced
}

// delivery: https://www.smtpeter.com/en/documentation/webhook-deliveries
func delivery(f fields, e *event.Event) {
	reply(f, e)
	e.Kind, e.Action, e.Status = event.Delivered, event.ActionDelivered, "2.0.0"
	if code := extended(f, "2"); code != "" {
		e.Status = code
	}
}

func engagement(k event.Kind) func(fields, *event.Event) {
	return func(f fields, e *event.Event) {
		e.Kind = k
		e.IP, e.UserAgent = event.Clean(f.get("ip"), 64), f.text("useragent")
		if k == event.Clicked {
			e.URL = event.Clean(f.get("original"), 2048)
		}
	}
}
