package maileroo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// Bounds of a look-up.
const (
	scheduledPage  = 100 // the most a page can have: https://maileroo.com/docs/email-api/get-scheduled-emails
	scheduledPages = 50
)

// Find searches the account's log for our reference tag:
// https://maileroo.com/docs/api-reference/account/introduction. A scheduled mail is looked for among the
// scheduled ones first, as the log does not know it before it leaves.
//
// What an entry of the log looks like is not documented. An entry that holds our reference is proof. Entries that do not are
// proof only when the same search for a reference that cannot exist finds nothing: then the filter works.
func (f finding) Find(ctx context.Context, m *translate.Mail, since time.Time) (*providers.Outcome, providers.Found, error) {
	if m.Ref == "" {
		return nil, providers.CannotTell, nil
	}
	if m.Options.SendAt.After(since) {
		switch found, err := f.scheduled(ctx, m); {
		case err != nil:
			return nil, providers.CannotTell, err
		case found == providers.Present:
			return f.taken(m, nil), providers.Present, nil
		case found == providers.CannotTell:
			return nil, providers.CannotTell, nil
		}
	}
	// An hour of margin: the clocks are two.
	from := since.Add(-time.Hour)
	items, err := f.search(ctx, m.Ref, from, "", "")
	switch {
	case errors.Is(err, errForm):
		return nil, providers.CannotTell, nil // asking again gives the same
	case err != nil:
		return nil, providers.CannotTell, err
	case len(items) == 0:
		return nil, providers.Absent, nil
	}
	for _, item := range items {
		if bytes.Contains(item, []byte(m.Ref)) || bytes.Contains(bytes.ToLower(item), []byte(referenceID(m.Ref))) {
			return f.taken(m, nil), providers.Present, nil
		}
	}
	control, err := f.search(ctx, "no-"+m.Ref, from, "", "")
	switch {
	case errors.Is(err, errForm), err == nil && len(control) > 0:
		return nil, providers.CannotTell, nil
	case err != nil:
		return nil, providers.CannotTell, err
	}
	return f.taken(m, nil), providers.Present, nil
}

// errForm says that an answer is a success and not of the documented form.
var errForm = errors.New("the answer has no list")

type filterTag struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type filters struct {
	Recipient string      `json:"recipient,omitempty"`
	LogType   string      `json:"log_type,omitempty"`
	Tags      []filterTag `json:"tags"`
	Operator  string      `json:"tags_operator"`
	From      int64       `json:"datetime_from"`
	Order     string      `json:"sort_dir"`
}

// search gives the first page of the log's entries with this reference.
func (f finding) search(ctx context.Context, ref string, from time.Time, rcpt, typ string) ([]json.RawMessage, error) {
	body, err := httpapi.Marshal(struct {
		Filters filters `json:"filters"`
		Page    int     `json:"page"`
	}{filters{Recipient: rcpt, LogType: typ, Tags: []filterTag{{refTag, ref}}, Operator: "AND", From: from.Unix(), Order: "desc"}, 1})
	if err != nil {
		return nil, err
	}
	resp, err := f.client.Do(ctx, httpapi.Request{
		Op: "find", Method: http.MethodPost, URL: httpapi.JoinURL(f.api, "logs/search"),
		Header: http.Header{"Accept": {"application/json"}, "Authorization": {"Bearer " + f.key.Reveal()}},
		Body:   httpapi.Bytes("application/json", body),
	})
	if err != nil {
		return nil, asOtherKey(err)
	}
	if !resp.OK() {
		var w struct {
			Error struct {
				Message text `json:"message"`
			} `json:"error"`
		}
		if resp.JSON(&w) != nil {
			w.Error.Message = ""
		}
		return nil, asOtherKey(f.client.Classify("find", resp, "", string(w.Error.Message)))
	}
	type list struct {
		Items *[]json.RawMessage `json:"items"`
	}
	var w struct {
		list
		Data list `json:"data"`
	}
	if err := resp.JSON(&w); err != nil {
		return nil, errForm
	}
	// Replies are documented as {"data": ...}, the search's own page shows what is inside.
	if w.Data.Items == nil {
		w.Data = w.list
	}
	if w.Data.Items == nil {
		return nil, errForm
	}
	return *w.Data.Items, nil
}

// scheduled goes through the scheduled mails of the From domain.
func (f finding) scheduled(ctx context.Context, m *translate.Mail) (providers.Found, error) {
	_, domain := envelope.Split(m.From.Addr)
	id := []byte(referenceID(m.Ref))
	for page := 1; page <= scheduledPages; page++ {
		resp, err := f.client.Do(ctx, httpapi.Request{
			Op: "find", Method: http.MethodGet, Header: f.header(),
			URL: f.provider.url("emails/scheduled", url.Values{"domain": {domain}, "page": {strconv.Itoa(page)}, "per_page": {strconv.Itoa(scheduledPage)}}),
		})
		if err != nil {
			return providers.CannotTell, asOtherKey(err)
		}
		var a answer
		if err := resp.JSON(&a); !resp.OK() || err != nil || !a.Success.yes {
			return providers.CannotTell, asOtherKey(f.client.Classify("find", resp, "", string(a.Message)))
		}
		if bytes.Contains(bytes.ToLower(a.Data), id) {
			return providers.Present, nil
		}
		var list struct {
			Results *[]json.RawMessage `json:"results"`
		}
		if json.Unmarshal(a.Data, &list) != nil || list.Results == nil {
			return providers.CannotTell, nil
		}
		if len(*list.Results) < scheduledPage {
			return providers.Absent, nil
		}
	}
	return providers.CannotTell, nil
}

// asOtherKey fits an error to a look-up: neither a fault of the log's key nor its rate limit, which are not those of
// sending, may pause the account.
func asOtherKey(err error) error {
	var e *providers.Error
	if errors.As(err, &e) {
		e.Kind, e.Unlisted = providers.Transient, false
	}
	return err
}
