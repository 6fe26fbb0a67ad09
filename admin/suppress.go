package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

// Suppression is one entry of the suppression list.
type Suppression struct {
	Address string     `json:"address"`          // "" when it was erased
	Key     string     `json:"key"`              // SHA-256 of the address, by which an erased one still works
	Domain  string     `json:"domain,omitempty"` // From domain it holds for, "" = any
	Stream  string     `json:"stream,omitempty"` // "" = any
	Reason  string     `json:"reason"`
	Source  string     `json:"source,omitempty"` // the event it came from, or who added it
	Created time.Time  `json:"created"`
	Expires *time.Time `json:"expires,omitempty"` // nil: never
}

// SuppressionAPI is what an operator can do with the suppression list.
type SuppressionAPI interface {
	// Suppressions lists the entries of an address, or with "" up to limit entries after the one given (nil: from the start).
	Suppressions(ctx context.Context, address string, after *Suppression, limit int) ([]Suppression, error)
	// Suppress adds or replaces entries.
	Suppress(ctx context.Context, list []Suppression) error
	// Unsuppress removes one entry.
	Unsuppress(ctx context.Context, s Suppression) error
}

// Suppressions is the SuppressionAPI on a store of this process.
type Suppressions struct{ Store *store.Store }

var _ SuppressionAPI = Suppressions{}

// Suppressions implements SuppressionAPI.
func (l Suppressions) Suppressions(ctx context.Context, address string, after *Suppression, limit int) ([]Suppression, error) {
	var list []store.Suppression
	var err error
	if address != "" {
		list, err = l.Store.SuppressionsOf(ctx, address)
	} else {
		var from *store.Suppression
		if after != nil {
			e := stored(*after)
			from = &e
		}
		list, err = l.Store.Suppressions(ctx, from, max(1, min(limit, maxSuppressions)))
	}
	out := make([]Suppression, len(list))
	for i, e := range list {
		out[i] = Suppression{
			Address: e.Address, Key: e.Key(), Domain: e.Domain, Stream: e.Stream, Reason: e.Reason, Source: e.Source,
			Created: e.Created.UTC(), Expires: timePtr(e.Expires),
		}
	}
	return out, err
}

// maxSuppressions bounds one answer and one addition.
const maxSuppressions = 1000

// Suppress implements SuppressionAPI.
func (l Suppressions) Suppress(ctx context.Context, list []Suppression) error {
	if len(list) > maxSuppressions {
		return fmt.Errorf("at most %d entries at once", maxSuppressions)
	}
	out := make([]store.Suppression, len(list))
	for i, s := range list {
		if err := envelope.ValidateAddr(s.Address); err != nil && !isKey(s) {
			return fmt.Errorf("%w: %q is no address: %v", errBadRequest, event.Clean(s.Address, 100), err)
		}
		out[i] = stored(s)
	}
	return l.Store.Suppress(ctx, out...)
}

// isKey tells an entry that has nothing of its address but the hash.
func isKey(s Suppression) bool { return s.Address == "" && len(s.Key) == 64 }

func stored(s Suppression) store.Suppression {
	e := store.Suppression{
		Address: s.Address, Domain: s.Domain, Stream: s.Stream, Reason: event.Clean(s.Reason, 80), Source: event.Clean(s.Source, 200), Created: s.Created,
	}
	if s.Expires != nil {
		e.Expires = *s.Expires
	}
	if isKey(s) {
		e = e.Keyed(s.Key)
	}
	return e
}

// Unsuppress implements SuppressionAPI.
func (l Suppressions) Unsuppress(ctx context.Context, s Suppression) error {
	return notFound(l.Store.Unsuppress(ctx, stored(s)), "suppression", s.Address)
}

// Suppressions implements SuppressionAPI.
func (s *Service) Suppressions(ctx context.Context, address string, after *Suppression, limit int) ([]Suppression, error) {
	return Suppressions{s.Store}.Suppressions(ctx, address, after, limit)
}

// Suppress implements SuppressionAPI.
func (s *Service) Suppress(ctx context.Context, list []Suppression) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	if err := s.audit(ctx, change{what: "suppress", reason: entries(list)}); err != nil {
		return err
	}
	return Suppressions{s.Store}.Suppress(ctx, list)
}

// Unsuppress implements SuppressionAPI.
func (s *Service) Unsuppress(ctx context.Context, e Suppression) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	if err := s.audit(ctx, change{what: "unsuppress", reason: entries([]Suppression{e})}); err != nil {
		return err
	}
	return Suppressions{s.Store}.Unsuppress(ctx, e)
}

// entries names entries for the audit: by their keys, which erasing an address does not have to find.
func entries(list []Suppression) string {
	var keys []string
	for _, e := range list {
		if len(keys) == 3 {
			return fmt.Sprintf("%s and %d more", strings.Join(keys, ", "), len(list)-len(keys))
		}
		es := stored(e)
		keys = append(keys, es.Key()[:16])
	}
	return strings.Join(keys, ", ")
}

// entriesParam is a list of Suppression.
var entriesParam = []param{{"entries", "a JSON list of entries as GET gives them; address is enough, or key for an erased one"}}

var suppressionRoutes = []route{
	{"GET", "suppressions", "The entries of the suppression list in the order of their keys.", []param{
		{"address", "the entries of this address"},
		{"limit", "at most so many, at most 1000"},
		{"key", "after the entry with this key, domain and stream"},
		{"domain", "see key"},
		{"stream", "see key"},
	}, []Suppression{}, func(api API, r *http.Request) (any, error) {
		q := r.URL.Query()
		var after *Suppression
		if q.Has("key") {
			after = &Suppression{Key: q.Get("key"), Domain: q.Get("domain"), Stream: q.Get("stream")}
		}
		return api.Suppressions(r.Context(), q.Get("address"), after, number(q.Get("limit")))
	}},
	{"POST", "suppressions", "Adds or replaces entries.", entriesParam, nil, func(api API, r *http.Request) (any, error) {
		return changeSuppressions(r, func(list []Suppression) error { return api.Suppress(r.Context(), list) })
	}},
	{"POST", "suppressions/remove", "Removes entries; one that is not there is no error.", entriesParam, nil, func(api API, r *http.Request) (any, error) {
		return changeSuppressions(r, func(list []Suppression) error {
			for _, e := range list {
				if err := api.Unsuppress(r.Context(), e); err != nil && !errors.Is(err, ErrNotFound) {
					return err
				}
			}
			return nil
		})
	}},
}

func changeSuppressions(r *http.Request, do func([]Suppression) error) (any, error) {
	var list []Suppression
	if err := json.Unmarshal([]byte(r.FormValue("entries")), &list); err != nil {
		return nil, fmt.Errorf("entries: %v: %w", err, errBadRequest)
	}
	return nil, do(list)
}

// Suppressions implements SuppressionAPI.
func (c *Client) Suppressions(ctx context.Context, address string, after *Suppression, limit int) ([]Suppression, error) {
	v := url.Values{"address": {address}, "limit": {strconv.Itoa(limit)}}
	if after != nil {
		v.Set("key", after.Key)
		v.Set("domain", after.Domain)
		v.Set("stream", after.Stream)
	}
	var out []Suppression
	return out, c.do(ctx, http.MethodGet, "suppressions", v, &out)
}

// Suppress implements SuppressionAPI.
func (c *Client) Suppress(ctx context.Context, list []Suppression) error {
	return c.postSuppressions(ctx, "suppressions", list)
}

// Unsuppress implements SuppressionAPI.
func (c *Client) Unsuppress(ctx context.Context, s Suppression) error {
	return c.postSuppressions(ctx, "suppressions/remove", []Suppression{s})
}

func (c *Client) postSuppressions(ctx context.Context, path string, list []Suppression) error {
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return c.do(ctx, http.MethodPost, path, url.Values{"entries": {string(b)}}, new(struct{}))
}
