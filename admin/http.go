package admin

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// route is one path of the JSON API. docs/openapi.json is made of this table.
type route struct {
	method, path string // below /api/v1/
	doc          string
	params       []param // of the query, or of the form that a POST carries
	result       any     // a value of the type answered; nil: {}
	call         func(api API, r *http.Request) (any, error)
}

type param struct{ name, doc string }

// reasonParam goes into the log and the event log.
var reasonParam = param{"reason", "kept in the log and the event log"}

var mailParams = []param{
	{"state", "queued, held, finished, deleted, failed (a recipient was not reached) or all; without it: queued and held"},
	{"q", "a queue id, Message-ID, ESP id, event id or our reference, else an address, else a part of the subject (if subjects are kept)"},
	{"address", "only mails from or to this address"},
	{"account", "only mails of this account"},
	{"limit", "at most so many, default 100, at most 500 a page"},
	{"after", "only mails older than this queue id: the next of the page before"},
}

func mailQuery(r *http.Request) Query {
	q := r.URL.Query()
	return Query{State: q.Get("state"), Text: q.Get("q"), Address: q.Get("address"), Account: q.Get("account"), Limit: number(q.Get("limit")), After: q.Get("after")}
}

func number(s string) int {
	n, _ := strconv.Atoi(s) // 0 is the default
	return n
}

var routes = []route{
	{"GET", "status", "The bridge at a glance.", nil, Status{}, func(api API, r *http.Request) (any, error) { return api.Status(r.Context()) }},
	{"GET", "activity", "What happened, counted in steps of time.", []param{{"span", "how far back: 24h, 168h; default 24h, at most 744h"}}, Activity{}, func(api API, r *http.Request) (any, error) {
		return api.Activity(r.Context(), span(r))
	}},
	{"GET", "mails", "One page of mails, newest first, at a bounded cost.", mailParams, Page{}, func(api API, r *http.Request) (any, error) { return api.Mails(r.Context(), mailQuery(r)) }},
	{"GET", "queue", "All mails a query finds, newest first, up to limit.", mailParams, []Mail{}, func(api API, r *http.Request) (any, error) { return api.Queue(r.Context(), mailQuery(r)) }},
	{"GET", "queue/{id}", "The whole life of one mail.", nil, Detail{}, func(api API, r *http.Request) (any, error) { return api.Mail(r.Context(), r.PathValue("id")) }},
	{"GET", "queue/{id}/content", "What a mail says, while its body is kept and [admin] preview is true.", nil, Content{}, func(api API, r *http.Request) (any, error) {
		return api.Content(r.Context(), r.PathValue("id"))
	}},
	{"POST", "queue/{id}/{action}", "Does something with a queued mail: retry (due now), hold, release (ends a hold), delete (remaining recipients do not receive it).", []param{reasonParam}, nil, func(api API, r *http.Request) (any, error) {
		return nil, api.Act(r.Context(), r.PathValue("id"), Action(r.PathValue("action")), r.FormValue("reason"))
	}},
	{"GET", "trace", "The whole life of mails, newest first.", []param{{"key", "a queue id, Message-ID, ESP id, our reference or an address"}}, []*Detail{}, func(api API, r *http.Request) (any, error) {
		return api.Trace(r.Context(), r.URL.Query().Get("key"))
	}},
	{"GET", "accounts", "The configured accounts with state, queue and webhook.", nil, []Account{}, func(api API, r *http.Request) (any, error) { return api.Accounts(r.Context()) }},
	{"POST", "accounts/{name}/{action}", "pause: mail of the account waits; resume: it is sent again.", []param{reasonParam}, nil, func(api API, r *http.Request) (any, error) {
		a := r.PathValue("action")
		if a != "pause" && a != "resume" {
			return nil, fmt.Errorf("action %q: %w", event.Clean(a, 40), ErrNotFound)
		}
		return nil, api.SetAccount(r.Context(), r.PathValue("name"), a == "pause", r.FormValue("reason"))
	}},
	{"GET", "nodes", "The living bridges that share a PostgreSQL store, and what each leads; with SQLite none.", nil, []store.Node{}, func(api API, r *http.Request) (any, error) { return api.Nodes(r.Context()) }},
	{"GET", "inbox", "The newest mails that accounts of provider sandbox have taken.", nil, []InboxMail{}, func(api API, r *http.Request) (any, error) { return api.Inbox(r.Context()) }},
	{"GET", "inbox/{account}/{id}", "One of them, with its content if [admin] preview is true.", nil, InboxMail{}, func(api API, r *http.Request) (any, error) {
		return api.InboxMail(r.Context(), r.PathValue("account"), r.PathValue("id"))
	}},
	{"POST", "erase", "Takes an address out of everything that is finished.", []param{{"address", "the address"}}, Erased{}, func(api API, r *http.Request) (any, error) {
		return api.Erase(r.Context(), r.FormValue("address"))
	}},
	{"POST", "backup", "Copies the store.", []param{{"dir", "an empty or new directory, an absolute path on the bridge's machine"}}, nil, func(api API, r *http.Request) (any, error) {
		return nil, api.Backup(r.Context(), r.FormValue("dir"))
	}},
	{"GET", "recent", "The newest events, newest first.", append(eventParams[:2:2], param{"limit", "at most so many, default 100, at most 500"}), []event.Event{}, func(api API, r *http.Request) (any, error) {
		q := r.URL.Query()
		return api.Recent(r.Context(), EventQuery{Recipient: q.Get("recipient"), Kind: event.Kind(q.Get("event"))}, cmp.Or(number(q.Get("limit")), 100))
	}},
}

// jsonRoutes are all that answer with one JSON value.
func jsonRoutes() []route { return slices.Concat(routes, suppressionRoutes) }

// bodyRoute is served by serveBody.
var bodyRoute = route{method: "GET", path: "queue/{id}/body", doc: "The bytes of a mail as they were received, while they are kept (message/rfc822); at [admin] address only if preview is true."}

// replayRoute tells how far it is, one object a line.
var replayRoute = route{method: "POST", path: "replay", doc: "Reads stored webhook requests anew; answers with the sums so far, one JSON object a line (application/x-ndjson), the last is the result.", params: []param{
	{"since", "requests received since (RFC 3339)"},
}, result: store.Replayed{}}

// eventsRoute is served by streamEvents, one object a line.
var eventsRoute = route{method: "GET", path: "events", doc: "Events in the order they became known, one JSON object a line (application/x-ndjson).", params: append(eventParams[:2:2],
	param{"since", "only events that became known since (RFC 3339)"}, param{"follow", "true: go on as new events come"}), result: event.Event{}}

var eventParams = []param{{"recipient", "only events of this recipient"}, {"event", "only events of this kind"}}

func span(r *http.Request) time.Duration {
	d, err := time.ParseDuration(r.URL.Query().Get("span"))
	if err != nil {
		return 24 * time.Hour
	}
	return d
}

// Handler serves an API as JSON below /api/v1/.
func Handler(api API) http.Handler {
	mux := http.NewServeMux()
	for _, rt := range jsonRoutes() {
		mux.HandleFunc(rt.method+" /api/v1/"+rt.path, func(w http.ResponseWriter, r *http.Request) {
			v, err := rt.call(api, r)
			if v == nil {
				v = struct{}{}
			}
			answer(w, v, err)
		})
	}
	mux.HandleFunc("GET /api/v1/"+eventsRoute.path, func(w http.ResponseWriter, r *http.Request) { streamEvents(api, w, r) })
	mux.HandleFunc("POST /api/v1/"+replayRoute.path, func(w http.ResponseWriter, r *http.Request) {
		since, err := time.Parse(time.RFC3339Nano, r.FormValue("since"))
		if err != nil {
			answer(w, nil, fmt.Errorf("since: %v: %w", err, errBadRequest))
			return
		}
		s := newStream(w)
		s.end(api.Replay(r.Context(), since, func(sum store.Replayed) error { return s.send(sum, true) }))
	})
	mux.HandleFunc("GET /api/v1/"+bodyRoute.path, func(w http.ResponseWriter, r *http.Request) { serveBody(api, w, r) })
	mux.HandleFunc("GET /api/v1/openapi.json", func(w http.ResponseWriter, r *http.Request) { answer(w, OpenAPI(), nil) })
	mux.HandleFunc("/api/", func(w http.ResponseWriter, r *http.Request) {
		answerError(w, http.StatusNotFound, "no such path; see /api/v1/openapi.json")
	})
	return mux
}

func answerError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": text}) // a client that went away is not our error
}

var errBadRequest = errors.New("the request cannot be understood")

// statusOf is the HTTP status of an error.
func statusOf(err error) int {
	switch {
	case errors.Is(err, ErrNotFound):
		return http.StatusNotFound
	case errors.Is(err, ErrReadOnly), errors.Is(err, ErrDone):
		return http.StatusConflict
	case errors.Is(err, ErrPreview):
		return http.StatusForbidden
	case errors.Is(err, errBadRequest):
		return http.StatusBadRequest
	}
	return http.StatusInternalServerError
}

func answer(w http.ResponseWriter, v any, err error) {
	if err != nil {
		answerError(w, statusOf(err), err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // a client that went away is not our error
}

func streamEvents(api API, w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	query := EventQuery{Recipient: q.Get("recipient"), Kind: event.Kind(q.Get("event")), Follow: q.Get("follow") == "true"}
	if s := q.Get("since"); s != "" {
		t, err := time.Parse(time.RFC3339Nano, s)
		if err != nil {
			answer(w, nil, fmt.Errorf("since: %v: %w", err, errBadRequest))
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

func (q Query) values() url.Values {
	return url.Values{"state": {q.State}, "q": {q.Text}, "address": {q.Address}, "account": {q.Account}, "limit": {strconv.Itoa(q.Limit)}, "after": {q.After}}
}

// Queue implements API.
func (c *Client) Queue(ctx context.Context, q Query) ([]Mail, error) {
	var out []Mail
	return out, c.do(ctx, http.MethodGet, "queue", q.values(), &out)
}

// Mails implements API.
func (c *Client) Mails(ctx context.Context, q Query) (*Page, error) {
	var p Page
	return &p, c.do(ctx, http.MethodGet, "mails", q.values(), &p)
}

// Content implements API.
func (c *Client) Content(ctx context.Context, id string) (*Content, error) {
	var out Content
	return &out, c.do(ctx, http.MethodGet, "queue/"+url.PathEscape(id)+"/content", nil, &out)
}

// Activity implements API.
func (c *Client) Activity(ctx context.Context, span time.Duration) (*Activity, error) {
	var a Activity
	return &a, c.do(ctx, http.MethodGet, "activity", url.Values{"span": {span.String()}}, &a)
}

// Inbox implements API.
func (c *Client) Inbox(ctx context.Context) ([]InboxMail, error) {
	var out []InboxMail
	return out, c.do(ctx, http.MethodGet, "inbox", nil, &out)
}

// InboxMail implements API.
func (c *Client) InboxMail(ctx context.Context, account, id string) (*InboxMail, error) {
	var m InboxMail
	return &m, c.do(ctx, http.MethodGet, "inbox/"+url.PathEscape(account)+"/"+url.PathEscape(id), nil, &m)
}

// Recent implements API.
func (c *Client) Recent(ctx context.Context, q EventQuery, limit int) ([]event.Event, error) {
	var out []event.Event
	return out, c.do(ctx, http.MethodGet, "recent", url.Values{"recipient": {q.Recipient}, "event": {string(q.Kind)}, "limit": {strconv.Itoa(limit)}}, &out)
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

// Nodes implements API.
func (c *Client) Nodes(ctx context.Context) ([]store.Node, error) {
	var out []store.Node
	return out, c.do(ctx, http.MethodGet, "nodes", nil, &out)
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
