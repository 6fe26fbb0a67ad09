package mailersend

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
)

// Bounds of https://developers.mailersend.com/api/v1/activity: a window of 7 days, 100 rows a page, 10 requests a minute.
const (
	activityWindow  = 7*24*time.Hour - time.Hour
	activityPage    = 100
	activityPages   = 6 // of one poll; the next one goes on there
	activityOverlap = 10 * time.Minute
	activityFirst   = 24 * time.Hour
)

// activityEvents are those that say what became of a mail, as the filter spells them. Opens and clicks are left to the webhooks.
var activityEvents = []string{"delivered", "soft_bounced", "hard_bounced", "deferred", "unsubscribed", "spam_complaints"}

// place is the cursor of Poll: the window that is being read, and its next page.
type place struct {
	From int64 `json:"from"`
	To   int64 `json:"to,omitempty"` // 0: up to now
	Page int   `json:"page,omitempty"`
}

// activityRows is GET /v1/activity/DOMAIN, as the vendor's Go SDK reads it. A row names no message, but our tag does.
type activityRows struct {
	Data *list[activity] `json:"data"`
}

// Poll reads the domain's activity since the last poll. The token needs the scope activity_read, and domains_read where
// domain_id is not set and the token has one domain only.
func (p *provider) Poll(ctx context.Context, cursor []byte, record func([]event.Event) error) ([]byte, error) {
	now := p.now()
	if !p.set.ReferenceTag {
		return nil, fault("reference_tag is off: the activity says nothing else by which a mail is known")
	}
	var at place
	if json.Unmarshal(cursor, &at) != nil || at.From <= 0 {
		at = place{From: now.Add(-activityFirst).Unix()}
	}
	if oldest := now.Add(-activityWindow).Unix(); at.From < oldest {
		at.From, at.Page = oldest, 0
	}
	if at.To == 0 {
		at.To = now.Add(-time.Minute).Unix() // an end in the future is refused, and the clocks are two
	}
	domains, err := p.ownDomains(ctx)
	if err != nil {
		return nil, err
	}
	// Pages are counted over all domains, one after the other.
	done := 0
	for i := range domains {
		for page := 1; ; page++ {
			if done++; done <= at.Page {
				continue
			}
			if done > at.Page+activityPages {
				at.Page += activityPages
				return mustMarshal(at), &providers.Error{Provider: name, Op: "poll", Kind: providers.RateLimited, RetryAfter: time.Minute, Msg: "there is more activity than may be read in a minute"}
			}
			n, err := p.activityOf(ctx, domains[i], at, page, record)
			if err != nil {
				at.Page = done - 1
				return mustMarshal(at), err
			}
			if n < activityPage {
				break
			}
		}
	}
	return mustMarshal(place{From: at.To - int64(activityOverlap.Seconds())}), nil
}

func mustMarshal(at place) []byte {
	b, err := json.Marshal(at)
	if err != nil {
		panic(err) // integers always marshal
	}
	return b
}

func fault(text string) error {
	return &providers.Error{Provider: name, Op: "poll", Kind: providers.Operator, Msg: text}
}

// activityOf reads one page and says how many rows it had.
func (p *provider) activityOf(ctx context.Context, domain string, at place, page int, record func([]event.Event) error) (int, error) {
	resp, err := p.get(ctx, "poll", "activity/"+domain, url.Values{
		"page": {strconv.Itoa(page)}, "limit": {strconv.Itoa(activityPage)}, "event[]": activityEvents,
		"date_from": {strconv.FormatInt(at.From, 10)}, "date_to": {strconv.FormatInt(at.To, 10)},
	})
	if err != nil {
		return 0, err
	}
	if resp == nil {
		return 0, fault("the token may not read the activity: it needs the scope activity_read")
	}
	var rows activityRows
	if err := resp.JSON(&rows); err != nil || rows.Data == nil {
		return 0, &providers.Error{Provider: name, Op: "poll", Kind: providers.Transient, HTTPStatus: http.StatusOK, Msg: "the answer has no list of activities", Err: err}
	}
	var evs []event.Event
	for _, row := range *rows.Data {
		native := activityDot + strings.TrimSuffix(string(row.Type), "s")
		if _, ok := natives[native]; !ok {
			native = activityDot + string(row.Type)
		}
		if e := p.event(native, hook{}, row); e.Ref != "" {
			evs = append(evs, e)
		}
	}
	if len(evs) == 0 {
		return len(*rows.Data), nil
	}
	return len(*rows.Data), record(evs)
}

// ownDomains are the ids of the domains the token can see.
func (p *provider) ownDomains(ctx context.Context) ([]string, error) {
	if p.set.DomainID != "" {
		return []string{p.set.DomainID}, nil
	}
	resp, err := p.get(ctx, "poll", "domains", url.Values{"limit": {"100"}})
	if err != nil {
		return nil, err
	}
	if resp == nil {
		return nil, fault("the token may not list domains: set domain_id, or give it the scope domains_read")
	}
	var l domainList
	if err := resp.JSON(&l); err != nil {
		return nil, &providers.Error{Provider: name, Op: "poll", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	var out []string
	for _, d := range l.Data {
		if isToken(string(d.ID)) && d.ID != "" {
			out = append(out, string(d.ID))
		}
	}
	return out, nil
}
