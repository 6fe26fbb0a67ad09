package mandrill

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

const (
	maxSearch = 1000 // rows of an answer, newest first: https://mailchimp.com/developer/transactional/api/messages/search-messages-by-date/
	// indexLag is how long a message may be missing from a search; how long it really takes is not documented.
	indexLag = 30 * time.Minute
	// maxInfos is how many messages one poll asks the details of.
	maxInfos = 50
)

// found is a row of messages/search, and the whole of messages/info.
type found struct {
	nativeMsg
	TS    stamp `json:"ts"`
	State text  `json:"state"`
	// What the call answers beside the message, with its SMTP events in their order.
	Events lenient[[]lenient[struct {
		TS   stamp `json:"ts"`
		Type text  `json:"type"`
		Diag text  `json:"diag"`
	}]] `json:"smtp_events"`
}

func (f *found) ref() string {
	var ref text
	if json.Unmarshal(f.Metadata.V[refKey], &ref) != nil || !isRef(string(ref)) {
		return ""
	}
	return string(ref)
}

// search lists what was sent since a day (UTC), newest first.
func (p *provider) search(ctx context.Context, op string, since time.Time, q map[string]any) ([]lenient[found], error) {
	q["date_from"], q["limit"] = since.UTC().Format(time.DateOnly), maxSearch
	var rows []lenient[found]
	err := p.post(ctx, op, "messages/search", q, &rows)
	return rows, err
}

// Find looks for the call's reference among what was sent from the same address. A message without metadata, or more
// of them than an answer holds, leaves it open: then "not found" would prove nothing.
func (p *provider) Find(ctx context.Context, m *translate.Mail, since time.Time) (*providers.Outcome, providers.Found, error) {
	if m.Ref == "" {
		return nil, providers.CannotTell, nil
	}
	rows, err := p.search(ctx, "find", since.Add(-time.Hour), map[string]any{"senders": []string{m.From.Addr}})
	if err != nil {
		return nil, providers.CannotTell, asLookup(err)
	}
	out, any, whole := providers.AllAccepted(m, ""), false, len(rows) < maxSearch
	for _, row := range rows {
		if len(row.V.Metadata.V) == 0 {
			whole = false
		}
		if row.V.ref() != m.Ref {
			continue
		}
		any = true
		for i := range out.Rcpts {
			if strings.EqualFold(envelope.Fold(out.Rcpts[i].Addr), envelope.Fold(string(row.V.Email))) {
				out.Rcpts[i].MessageID = p.id(row.V.ID)
			}
		}
	}
	switch {
	case any:
		if len(m.Rcpts) == 1 {
			out.MessageID = out.Rcpts[0].MessageID
		}
		return out, providers.Present, nil
	case !whole || !m.Options.SendAt.IsZero():
		return nil, providers.CannotTell, nil
	case p.now().Sub(since) < indexLag:
		return nil, providers.CannotTell, &providers.Error{Provider: name, Op: "find", Kind: providers.Transient, Msg: "not found, but a fresh message may not be indexed yet"}
	}
	return nil, providers.Absent, nil
}

// Track asks for one message: https://mailchimp.com/developer/transactional/api/messages/get-message-info/
func (p *provider) Track(ctx context.Context, t providers.Tracked) ([]event.Event, error) {
	if t.MessageID == "" {
		return nil, nil
	}
	return p.info(ctx, "track", t.MessageID)
}

// info makes events of what is known of a message. A message that is not indexed yet, or not any more, has none.
func (p *provider) info(ctx context.Context, op, id string) ([]event.Event, error) {
	var f found
	var raw json.RawMessage
	err := p.post(ctx, op, "messages/info", map[string]any{"id": id}, &raw)
	var pe *providers.Error
	if errors.As(err, &pe) && pe.Code == "Unknown_Message" {
		return nil, nil
	}
	if err != nil {
		return nil, asLookup(err)
	}
	if json.Unmarshal(raw, &f) != nil || string(f.ID) != id {
		return nil, &providers.Error{Provider: name, Op: op, Kind: providers.Transient, Msg: "the answer is about another message"}
	}
	var out []event.Event
	add := func(native string, at stamp) {
		w, err := json.Marshal(map[string]any{"event": native, "_id": id, "ts": at.Unix(), "msg": raw})
		if err != nil {
			return // a number, strings and JSON that was read
		}
		if e, facts, ok := p.event(w); ok {
			e.ID = event.FactID(p.opts.Account, facts...)
			out = append(out, e)
		}
	}
	last := f.TS
	for _, s := range f.Events.V {
		if !s.V.TS.IsZero() {
			last = s.V.TS
		}
		// QUIRK: an attempt that the other server took is of type "sent" or "delivered".
		if s.V.Type == "delivered" || s.V.Type == "sent" && strings.HasPrefix(strings.TrimSpace(string(s.V.Diag)), "250") {
			add("delivered", s.V.TS)
		}
	}
	if native, ok := states[f.State]; ok {
		add(native, last)
	}
	return out, nil
}

// states are those of a message that stand for an event.
var states = map[text]string{
	"bounced": "hard_bounce", "soft-bounced": "soft_bounce", "rejected": "reject", "spam": "spam", "unsub": "unsub", "deferred": "deferral",
}

// place is the cursor of Poll: the day to read again.
type place struct {
	Day string `json:"day"`
}

// Poll searches the messages since the day of the last poll, and asks for those that did not go well. That a mail was
// delivered is asked for one by one (Track).
func (p *provider) Poll(ctx context.Context, cursor []byte, record func([]event.Event) error) ([]byte, error) {
	now := p.now().UTC()
	since := now.AddDate(0, 0, -1)
	var at place
	if json.Unmarshal(cursor, &at) == nil {
		// Default and, as far as is known, greatest window of a search: 7 days.
		if day, err := time.Parse(time.DateOnly, at.Day); err == nil && day.After(now.AddDate(0, 0, -7)) {
			since = day
		}
	}
	rows, err := p.search(ctx, "poll", since, map[string]any{})
	if err != nil {
		return nil, asLookup(err)
	}
	asked := 0
	for _, row := range rows {
		f := &row.V
		if _, ok := states[f.State]; !ok || f.State == "deferred" || f.ref() == "" || f.ID == "" {
			continue
		}
		if asked++; asked > maxInfos {
			break
		}
		evs, err := p.info(ctx, "poll", string(f.ID))
		if err != nil {
			return nil, err
		}
		if err := record(evs); err != nil {
			return nil, err
		}
	}
	// A message bounces days after it was sent: the window reaches back.
	return fmt.Appendf(nil, `{"day":%q}`, now.AddDate(0, 0, -2).Format(time.DateOnly)), nil
}

// asLookup fits an error to a call that has no mail: the account is not at fault, and nothing is Ambiguous.
func asLookup(err error) error {
	var e *providers.Error
	if errors.As(err, &e) && e.Kind != providers.RateLimited && e.Kind != providers.Operator {
		e.Kind, e.Unlisted = providers.Transient, false
	}
	return err
}
