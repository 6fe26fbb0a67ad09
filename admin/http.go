package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// Handler serves an API as JSON below /api/v1/.
func Handler(api API) http.Handler {
	mux := http.NewServeMux()
	get := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc("GET /api/v1/"+pattern, func(w http.ResponseWriter, r *http.Request) {
			v, err := f(r)
			answer(w, v, err)
		})
	}
	get("status", func(r *http.Request) (any, error) { return api.Status(r.Context()) })
	get("queue", func(r *http.Request) (any, error) {
		q := r.URL.Query()
		limit, _ := strconv.Atoi(q.Get("limit"))
		return api.Queue(r.Context(), Query{State: q.Get("state"), Address: q.Get("address"), Account: q.Get("account"), Limit: limit, After: q.Get("after")})
	})
	get("queue/{id}", func(r *http.Request) (any, error) { return api.Mail(r.Context(), r.PathValue("id")) })
	mux.HandleFunc("GET /api/v1/queue/{id}/body", func(w http.ResponseWriter, r *http.Request) { serveBody(api, w, r) })
	get("trace", func(r *http.Request) (any, error) { return api.Trace(r.Context(), r.URL.Query().Get("key")) })
	get("accounts", func(r *http.Request) (any, error) { return api.Accounts(r.Context()) })
	mux.HandleFunc("POST /api/v1/queue/{id}/{action}", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, api.Act(r.Context(), r.PathValue("id"), Action(r.PathValue("action")), r.FormValue("reason")))
	})
	mux.HandleFunc("POST /api/v1/accounts/{name}/{action}", func(w http.ResponseWriter, r *http.Request) {
		a := r.PathValue("action")
		if a != "pause" && a != "resume" {
			answer(w, nil, fmt.Errorf("action %q: %w", event.Clean(a, 40), ErrNotFound))
			return
		}
		answer(w, struct{}{}, api.SetAccount(r.Context(), r.PathValue("name"), a == "pause", r.FormValue("reason")))
	})
	mux.HandleFunc("POST /api/v1/replay", func(w http.ResponseWriter, r *http.Request) {
		since, err := time.Parse(time.RFC3339Nano, r.FormValue("since"))
		if err != nil {
			answer(w, nil, fmt.Errorf("since: %w", err))
			return
		}
		s := newStream(w)
		s.end(api.Replay(r.Context(), since, func(sum store.Replayed) error { return s.send(sum, true) }))
	})
	mux.HandleFunc("POST /api/v1/erase", func(w http.ResponseWriter, r *http.Request) {
		e, err := api.Erase(r.Context(), r.FormValue("address"))
		answer(w, e, err)
	})
	mux.HandleFunc("POST /api/v1/backup", func(w http.ResponseWriter, r *http.Request) {
		answer(w, struct{}{}, api.Backup(r.Context(), r.FormValue("dir")))
	})
	serveSuppressions(mux, api)
	mux.HandleFunc("GET /api/v1/events", func(w http.ResponseWriter, r *http.Request) { streamEvents(api, w, r) })
	return mux
}

func answer(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if err != nil {
		status := http.StatusInternalServerError
		switch {
		case errors.Is(err, ErrNotFound):
			status = http.StatusNotFound
		case errors.Is(err, ErrReadOnly):
			status = http.StatusConflict
		}
		w.WriteHeader(status)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // a client that went away is not our error
}

func streamEvents(api API, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	query := EventQuery{Recipient: q.Get("recipient"), Kind: event.Kind(q.Get("event")), Follow: q.Get("follow") == "true"}
	if s := q.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			answer(w, nil, fmt.Errorf("since: %w", err))
			return
		}
		query.Since = t
	}
	s := newStream(w)
	s.end(api.Events(r.Context(), query, func(e event.Event) error { return s.send(e, query.Follow) }))
}

// stream answers with one JSON value a line, as they come.
type stream struct {
	rc  *http.ResponseController
	enc *json.Encoder
}

func newStream(w http.ResponseWriter) *stream {
	s := &stream{http.NewResponseController(w), json.NewEncoder(w)}
	w.Header().Set("Content-Type", "application/x-ndjson")
	_ = s.rc.Flush()
	return s
}

func (s *stream) send(v any, now bool) error {
	if err := s.enc.Encode(v); err != nil || !now {
		return err
	}
	return s.rc.Flush()
}

// end tells what went wrong in a last line. A client that went away does not read it.
func (s *stream) end(err error) {
	if err != nil {
		_ = s.enc.Encode(map[string]string{"error": err.Error()})
	}
}

// Client speaks to the Handler of a running bridge.
type Client struct {
	http *http.Client
}

// Dial makes a client for an admin socket and checks that a bridge answers there.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c := &Client{http: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}}}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := c.Status(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Client) do(ctx context.Context, method, path string, form url.Values, into any) error {
	body := bytes.NewReader(nil)
	if method == http.MethodPost {
		body = bytes.NewReader([]byte(form.Encode()))
	} else if len(form) > 0 {
		path += "?" + form.Encode()
	}
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	return json.NewDecoder(resp.Body).Decode(into)
}

func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://bridge/api/v1/"+path, body)
	if err != nil {
		return nil, err
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e struct {
		Error string `json:"error"`
	}
	if json.NewDecoder(io.LimitReader(resp.Body, 1<<16)).Decode(&e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, &remoteError{e.Error, ErrNotFound}
	}
	return nil, &remoteError{e.Error, nil}
}

// remoteError is an error of the running bridge, in its own words.
type remoteError struct {
	text string
	is   error
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// Status implements API.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	var s Status
	return &s, c.do(ctx, http.MethodGet, "status", nil, &s)
}

// Queue implements API.
func (c *Client) Queue(ctx context.Context, q Query) ([]Mail, error) {
	var out []Mail
	v := url.Values{"state": {q.State}, "address": {q.Address}, "account": {q.Account}, "limit": {strconv.Itoa(q.Limit)}, "after": {q.After}}
	return out, c.do(ctx, http.MethodGet, "queue", v, &out)
}

// Mail implements API.
func (c *Client) Mail(ctx context.Context, id string) (*Detail, error) {
	var d Detail
	return &d, c.do(ctx, http.MethodGet, "queue/"+url.PathEscape(id), nil, &d)
}

// Trace implements API.
func (c *Client) Trace(ctx context.Context, key string) ([]*Detail, error) {
	var out []*Detail
	return out, c.do(ctx, http.MethodGet, "trace", url.Values{"key": {key}}, &out)
}

// Act implements API.
func (c *Client) Act(ctx context.Context, id string, a Action, reason string) error {
	return c.do(ctx, http.MethodPost, "queue/"+url.PathEscape(id)+"/"+url.PathEscape(string(a)), url.Values{"reason": {reason}}, new(struct{}))
}

// Accounts implements API.
func (c *Client) Accounts(ctx context.Context) ([]Account, error) {
	var out []Account
	return out, c.do(ctx, http.MethodGet, "accounts", nil, &out)
}

// SetAccount implements API.
func (c *Client) SetAccount(ctx context.Context, name string, pause bool, reason string) error {
	action := "resume"
	if pause {
		action = "pause"
	}
	return c.do(ctx, http.MethodPost, "accounts/"+url.PathEscape(name)+"/"+action, url.Values{"reason": {reason}}, new(struct{}))
}

// Erase implements API.
func (c *Client) Erase(ctx context.Context, addr string) (*Erased, error) {
	var e Erased
	return &e, c.do(ctx, http.MethodPost, "erase", url.Values{"address": {addr}}, &e)
}

// Backup implements API.
func (c *Client) Backup(ctx context.Context, dir string) error {
	return c.do(ctx, http.MethodPost, "backup", url.Values{"dir": {dir}}, new(struct{}))
}

// Events implements API.
func (c *Client) Events(ctx context.Context, q EventQuery, each func(event.Event) error) error {
	v := url.Values{"recipient": {q.Recipient}, "event": {string(q.Kind)}, "follow": {strconv.FormatBool(q.Follow)}}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.Format(time.RFC3339Nano))
	}
	return readStream(ctx, c, http.MethodGet, "events?"+v.Encode(), nil, each)
}

// Replay implements API.
func (c *Client) Replay(ctx context.Context, since time.Time, each func(store.Replayed) error) error {
	form := url.Values{"since": {since.Format(time.RFC3339Nano)}}
	return readStream(ctx, c, http.MethodPost, "replay", strings.NewReader(form.Encode()), each)
}

// readStream reads an answer of one JSON value a line.
func readStream[T any](ctx context.Context, c *Client, method, path string, body io.Reader, each func(T) error) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	for {
		line, err := r.ReadBytes('\n')
		if len(line) > 1 {
			var failure struct {
				Error string `json:"error"`
			}
			if json.Unmarshal(line, &failure) == nil && failure.Error != "" {
				return errors.New(failure.Error)
			}
			var v T
			if err := json.Unmarshal(line, &v); err != nil {
				return fmt.Errorf("read the answer: %w", err)
			}
			if err := each(v); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

var _ API = (*Client)(nil)
