package webhookd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"smtpbridge/providers"
	"smtpbridge/store"
)

// States of a mail that the ESP keeps. Each is durable before what comes next is begun.
const (
	statePosted = "posted" // nothing is proven
	stateAsked  = "asked"  // the ESP was asked whether the post is genuine; it says so only once, and the answer may have been lost
	stateValid  = "valid"  // it is
	stateDoubt  = "doubt"  // the answer was lost, and later ones say no
	stateTaken  = "taken"  // the mail is stored: the ESP may forget it
)

const (
	fetchRetry = time.Minute        // doubled each time
	fetchMost  = 6 * time.Hour      // and at most this
	fetchLife  = 7 * 24 * time.Hour // then the entry is given up
	fetchLease = inboundTime + time.Minute
	fetchEvery = 15 * time.Second
	answerMax  = 64 << 10 // bytes of an answer that is no mail
)

// fetch takes a mail whose post is proved by a call back: the post is stored as pending, validated, the mail fetched and
// stored; what is left, having the ESP forget it, is done after the answer.
func (h *Handler) fetch(ctx context.Context, s *state, a *account, in *providers.Inbound) error {
	if s.Inbox.Posts == nil || s.Inbox.Client == nil || s.Inbox.Known == nil {
		return errors.New("there is no place for pending mail")
	}
	m := a.received(in, s.Now())
	if known, err := s.Inbox.Known(ctx, m.ID); err != nil || known {
		return err // posted again, because our answer was lost: the ESP would not prove it a second time
	}
	p, err := s.Inbox.Posts.InboundPost(ctx, m.ID)
	if errors.Is(err, store.ErrNotFound) {
		data, jerr := json.Marshal(pending{Mail: m, Fetch: in.FetchURL, Validate: in.ValidateURL, Delete: in.DeleteURL})
		if jerr != nil {
			return jerr
		}
		p = store.InboundPost{ID: m.ID, Account: a.Name, State: statePosted, Data: string(data), Received: m.Received, NextAt: s.Now().Add(fetchLease)}
		err = s.Inbox.Posts.SaveInbound(ctx, p)
	}
	if err != nil {
		return err
	}
	return h.advance(ctx, s, &p)
}

// pending is what has to be known of a mail to fetch it.
type pending struct {
	Mail     Received `json:"mail"`
	Fetch    string   `json:"fetch"`
	Validate string   `json:"validate"`
	Delete   string   `json:"delete"`
}

// advance brings an entry as far as the mail being stored.
func (h *Handler) advance(ctx context.Context, s *state, p *store.InboundPost) error {
	if !h.begin(p.ID) {
		return errors.New("the mail is being fetched just now")
	}
	defer h.end(p.ID)
	var d pending
	if err := json.Unmarshal([]byte(p.Data), &d); err != nil {
		return err
	}
	save := func(state string) error {
		p.State = state
		return s.Inbox.Posts.SaveInbound(ctx, *p)
	}
	if p.State == statePosted || p.State == stateAsked {
		before := p.State
		if err := save(stateAsked); err != nil {
			return err
		}
		genuine, err := validate(ctx, s.Inbox.Client, d.Validate)
		switch {
		case err != nil:
			return err
		case genuine:
			err = save(stateValid)
		case before == stateAsked:
			err = save(stateDoubt)
		default:
			if err := s.Inbox.Posts.DropInbound(ctx, p.ID); err != nil {
				return err
			}
			return fmt.Errorf("%w: the ESP does not know the post", providers.ErrSignature)
		}
		if err != nil {
			return err
		}
	}
	if p.State != stateTaken {
		m := d.Mail
		if p.State == stateDoubt {
			m.Doubt = "it may be forged: the ESP's word on it was lost, and it gives it only once"
		}
		if err := h.fetchMail(ctx, s, d.Fetch, m); err != nil {
			return err
		}
		s.Log.Info(logInbound, "account", m.Account, "event", m.ID, "recipients", len(m.Rcpts))
		p.NextAt, p.Attempts = s.Now(), 0
		if err := save(stateTaken); err != nil {
			return err
		}
	}
	return nil
}

// begin takes an entry in hand, if nobody else has it: the ESP's word is given once.
func (h *Handler) begin(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fetching[id] {
		return false
	}
	h.fetching[id] = true
	return true
}

func (h *Handler) end(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.fetching, id)
}

// validate asks the ESP whether it made the post.
func validate(ctx context.Context, c *http.Client, u string) (bool, error) {
	resp, err := call(ctx, c, http.MethodGet, u)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	var v struct {
		Success *bool `json:"success"`
	}
	err = json.NewDecoder(io.LimitReader(resp.Body, answerMax)).Decode(&v)
	switch {
	case err == nil && v.Success != nil && (resp.StatusCode/100 == 2 || !*v.Success):
		return *v.Success, nil
	case resp.StatusCode == http.StatusNotFound || resp.StatusCode == http.StatusGone:
		return false, nil
	}
	return false, fmt.Errorf("validate a post: HTTP %d", resp.StatusCode)
}

func (h *Handler) fetchMail(ctx context.Context, s *state, u string, m Received) error {
	resp, err := call(ctx, s.Inbox.Client, http.MethodGet, u)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("fetch a mail: HTTP %d", resp.StatusCode)
	}
	return s.Inbox.Take(ctx, m, http.MaxBytesReader(nil, resp.Body, s.MaxInboundBody))
}

// forget has the ESP delete a mail. The method is not documented: DELETE, or GET where that is not allowed.
func forget(ctx context.Context, c *http.Client, u string) error {
	status := 0
	for _, method := range []string{http.MethodDelete, http.MethodGet} {
		resp, err := call(ctx, c, method, u)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if status = resp.StatusCode; status != http.StatusMethodNotAllowed {
			break
		}
	}
	if status/100 == 2 || status == http.StatusNotFound || status == http.StatusGone {
		return nil
	}
	return fmt.Errorf("delete a mail: HTTP %d", status)
}

// call makes a request to an ESP. Errors hold no URL: it is a capability.
func call(ctx context.Context, c *http.Client, method, u string) (*http.Response, error) {
	r, err := http.NewRequestWithContext(ctx, method, u, nil)
	if err != nil {
		return nil, errors.New("a URL of the post cannot be used")
	}
	resp, err := c.Do(r)
	var ue *url.Error
	if errors.As(err, &ue) {
		err = fmt.Errorf("call %s: %w", r.URL.Host, ue.Err)
	}
	return resp, err
}

// Work fetches what was left over (the bridge stopped, or the ESP did not answer) and has ESPs forget what was taken,
// until ctx ends.
func (h *Handler) Work(ctx context.Context) error {
	tick := time.NewTicker(fetchEvery)
	defer tick.Stop()
	for {
		h.workOnce(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (h *Handler) workOnce(ctx context.Context) {
	s := h.state.Load()
	if s.Inbox.Posts == nil || s.Inbox.Client == nil || s.Inbox.Take == nil {
		return
	}
	due, err := s.Inbox.Posts.ClaimInbound(ctx, 20, fetchLease)
	if err != nil {
		s.Log.Error(logStoreFailed, "kind", kindInbound, "err", err)
		return
	}
	for i := range due {
		if ctx.Err() != nil {
			return
		}
		if err := h.work(ctx, s, &due[i]); err != nil && ctx.Err() == nil {
			s.Log.Warn(logInboundLeft, "account", due[i].Account, "event", due[i].ID, "state", due[i].State, "err", clean(err, s.accountOf(due[i].Account)))
		}
	}
}

func (s *state) accountOf(name string) *account {
	if a := s.byName[name]; a != nil {
		return a
	}
	return &account{Account: Account{Name: name}}
}

// work brings one entry to its end, or puts it off.
func (h *Handler) work(ctx context.Context, s *state, p *store.InboundPost) error {
	ctx, cancel := context.WithTimeout(ctx, inboundTime)
	defer cancel()
	err := h.advance(ctx, s, p)
	if err == nil {
		var d pending
		if err = json.Unmarshal([]byte(p.Data), &d); err == nil && d.Delete != "" {
			err = forget(ctx, s.Inbox.Client, d.Delete)
		}
	}
	if err == nil || s.Now().Sub(p.Received) > fetchLife {
		return errors.Join(err, s.Inbox.Posts.DropInbound(ctx, p.ID))
	}
	if errors.Is(err, providers.ErrSignature) {
		return err // dropped already
	}
	wait := fetchMost
	if p.Attempts < 9 {
		wait = min(fetchRetry<<p.Attempts, fetchMost)
	}
	p.Attempts++
	p.NextAt = s.Now().Add(wait)
	keep, stop := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer stop()
	return errors.Join(err, s.Inbox.Posts.SaveInbound(keep, *p))
}
