package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
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
			return fmt.Errorf("%q is no address: %w", event.Clean(s.Address, 100), err)
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
	s.Log.Info("operator action", "event", "admin.action", "action", "suppress", "entries", len(list))
	return Suppressions{s.Store}.Suppress(ctx, list)
}

// Unsuppress implements SuppressionAPI.
func (s *Service) Unsuppress(ctx context.Context, e Suppression) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	s.Log.Info("operator action", "event", "admin.action", "action", "unsuppress")
	return Suppressions{s.Store}.Unsuppress(ctx, e)
}

// serveSuppressions adds the list to the API's paths.
func serveSuppressions(mux *http.ServeMux, api SuppressionAPI) {
	mux.HandleFunc("GET /api/v1/suppressions", func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		limit, _ := strconv.Atoi(q.Get("limit"))
		var after *Suppression
		if q.Has("key") {
			after = &Suppression{Key: q.Get("key"), Domain: q.Get("domain"), Stream: q.Get("stream")}
		}
		v, err := api.Suppressions(r.Context(), q.Get("address"), after, limit)
		answer(w, v, err)
	})
	change := func(do func(ctx context.Context, list []Suppression) error) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var list []Suppression
			err := json.Unmarshal([]byte(r.FormValue("entries")), &list)
			if err == nil {
				err = do(r.Context(), list)
			}
			answer(w, struct{}{}, err)
		}
	}
	mux.HandleFunc("POST /api/v1/suppressions", change(api.Suppress))
	mux.HandleFunc("POST /api/v1/suppressions/remove", change(func(ctx context.Context, list []Suppression) error {
		for _, e := range list {
			if err := api.Unsuppress(ctx, e); err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
		}
		return nil
	}))
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
