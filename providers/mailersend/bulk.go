package mailersend

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// parseBulk reads the 202 of POST /v1/bulk-email: an id for the batch. The mails in it are checked afterwards.
func (p *provider) parseBulk(m *translate.Mail, resp *httpapi.Response) (*providers.Outcome, error) {
	var a bulkTaken
	if err := resp.JSON(&a); err != nil {
		return nil, p.client.Unreadable("send", resp, err)
	}
	id := event.Clean(p.client.Redact(string(a.ID)), 128)
	if id == "" || !isToken(id) {
		return nil, p.client.Unreadable("send", resp, errors.New("the answer has no bulk_email_id"))
	}
	o := providers.AllAccepted(m, providers.BulkID+id)
	p.quota(o, resp.Header, nil)
	return o, nil
}

// bulkDone are the states after which nothing of a batch changes any more. Only "completed" is in the documentation's sample.
var bulkDone = []string{"completed", "failed"}

// ResolveBulk asks for a batch: GET /v1/bulk-email/{id}. QUIRK: that messages_id is in the order of the mails that were taken is
// said nowhere; the ids are given out only when there are exactly as many as mails without an error.
func (p *provider) ResolveBulk(ctx context.Context, id string, rcpts []envelope.Rcpt) (*providers.Outcome, error) {
	resp, err := p.get(ctx, "bulk status", "bulk-email/"+strings.TrimPrefix(id, providers.BulkID), nil)
	if err != nil || resp == nil {
		return nil, err
	}
	var s bulkStatus
	if err := resp.JSON(&s); err != nil || s.Data == nil {
		return nil, &providers.Error{Provider: name, Op: "bulk status", Kind: providers.Transient, HTTPStatus: resp.Status, Msg: "the answer cannot be read", Err: err}
	}
	if !slices.Contains(bulkDone, strings.ToLower(string(s.Data.State))) {
		return nil, nil
	}
	o := &providers.Outcome{MessageID: id, Rcpts: make([]providers.RcptOutcome, len(rcpts))}
	// The mails of the batch are the recipients, each mailbox once.
	place, n := map[string]int{}, 0
	for i, r := range rcpts {
		o.Rcpts[i] = providers.RcptOutcome{Addr: r.Addr}
		if k := envelope.Fold(r.Addr); !has(place, k) {
			place[k] = n
			n++
		}
	}
	bad := bulkErrors(s.Data.ValidationErrors)
	ids, suppressed := s.Data.MessagesID, bulkSuppressed(s.Data.Suppressed)
	if len(ids) != n-len(bad) {
		ids = nil
	}
	byMail := make([]string, n)
	for i, k := 0, 0; ids != nil && i < n; i++ {
		if _, failed := bad[i]; !failed {
			byMail[i] = event.Clean(p.client.Redact(ids[k]), 128)
			k++
		}
	}
	for i := range o.Rcpts {
		r := &o.Rcpts[i]
		mail := place[envelope.Fold(r.Addr)]
		reasons, held := suppressed[strings.ToLower(envelope.Fold(r.Addr))]
		switch text, failed := bad[mail]; {
		case failed:
			r.Verdict, r.Status, r.Reason, r.Detail = providers.Rejected, "5.6.0", event.ReasonOther, p.client.Clean("MailerSend: "+text)
		case held:
			p.reject(r, reasons)
		case byMail[mail] != "":
			r.Verdict, r.MessageID = providers.Accepted, byMail[mail]
		}
	}
	return o, nil
}

func has(m map[string]int, k string) bool {
	_, ok := m[k]
	return ok
}

// bulkErrors reads {"message.3": text or list or {field: [text]}} into the texts by mail.
func bulkErrors(raw json.RawMessage) map[int]string {
	out := map[int]string{}
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return out
	}
	for k, v := range m {
		index, _, _ := strings.Cut(strings.TrimPrefix(k, "message."), ".")
		i, err := strconv.Atoi(index)
		if err != nil || i < 0 || !strings.HasPrefix(k, "message.") {
			continue
		}
		if said := strings.Join(texts(v), "; "); out[i] == "" {
			out[i] = said
		} else {
			out[i] += "; " + said
		}
		if out[i] == "" {
			out[i] = "refused without a reason"
		}
	}
	return out
}

// texts collects all texts in a JSON value, in order.
func texts(raw json.RawMessage) []string {
	var v any
	if json.Unmarshal(raw, &v) != nil {
		return nil
	}
	var out []string
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			if len(out) < maxSaid {
				out = append(out, v)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case map[string]any:
			names := make([]string, 0, len(v))
			for k := range v {
				names = append(names, k)
			}
			slices.Sort(names)
			for _, k := range names {
				walk(v[k])
			}
		case float64, bool:
			out = append(out, fmt.Sprint(v))
		}
	}
	walk(v)
	return out
}

// bulkSuppressed reads {messageID: [{email, reasons}]} into the reasons by address; of another form nothing is known.
func bulkSuppressed(raw json.RawMessage) map[string][]string {
	out := map[string][]string{}
	var m map[string]json.RawMessage
	if json.Unmarshal(raw, &m) != nil {
		return out
	}
	for _, v := range m {
		var s suppressed
		if json.Unmarshal(v, &s.Recipients) != nil {
			continue
		}
		for _, r := range s.Recipients {
			out[strings.ToLower(envelope.Fold(string(r.Email)))] = r.Reasons
		}
	}
	return out
}
