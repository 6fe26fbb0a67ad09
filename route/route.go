// Package route decides which accounts may deliver a mail, from who sends it and to whom.
//
// Contract: routes are tried in their order and the first that matches wins, for each
// recipient on its own. A Table is immutable: a reload makes a new one. No match is an
// answer, not a fault; the caller refuses or keeps the mail.
package route

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
)

// Values of Route.OnLoss.
const (
	LossSend   = "send"   // deliver, and say what was lost in the event
	LossRefuse = "refuse" // refuse a mail that would lose something
)

// Query is what a route is looked up by: one recipient of one mail.
type Query struct {
	From         string // address of the header From (the first), "" when there is none
	EnvelopeFrom string // reverse path, "" for the null sender
	Rcpt         string
	Listener     string
	User         string                   // "" without AUTH
	Header       func(name string) string // decoded value of a header field, "" when absent; nil: none is known
}

// Sender is the address that sender patterns are matched with: the header From, or the
// envelope's when there is none (a null sender with no From gives "", which only "*" matches).
func (q Query) Sender() string {
	if q.From != "" {
		return q.From
	}
	return q.EnvelopeFrom
}

// Route is one line of the routing table. All conditions that are given must hold; within one
// list any entry is enough. Patterns are those of envelope.MatchPattern.
type Route struct {
	Name            string
	Senders         []string          // sender domain or address patterns, at least one
	Recipients      []string          // recipient patterns; empty: any
	Listeners       []string          // listener names; empty: any
	Users           []string          // user names; empty: any, with or without AUTH. "*" is any user, but one
	Headers         map[string]string // header name -> glob (* and ?, case-insensitive); all must match
	Accounts        []string          // ordered failover, at least one
	OnLoss          string            // LossSend ("" too) or LossRefuse
	ForceFrom       string            // address that replaces the header From
	RedirectAllTo   []string          // staging: every recipient is replaced by these
	AllowRecipients []string          // staging: other recipients are dropped with an event; empty: all are allowed
	Permissions     []string          // classes of option headers that count on this route
	Expire          time.Duration     // 0: the delivery default
}

// Table is the routing table.
type Table struct{ routes []Route }

// New checks the routes and makes a table of them. The error holds all faults found.
func New(routes []Route) (*Table, error) {
	t := &Table{routes: make([]Route, 0, len(routes))}
	var errs []error
	for i, r := range routes {
		r = r.clone()
		if r.Name == "" {
			r.Name = fmt.Sprintf("%d", i+1)
		}
		if err := r.check(); err != nil {
			errs = append(errs, fmt.Errorf("route %s: %w", r.Name, err))
		}
		t.routes = append(t.routes, r)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return t, nil
}

// clone copies what a caller could still change.
func (r Route) clone() Route {
	r.Senders = slices.Clone(r.Senders)
	r.Recipients = slices.Clone(r.Recipients)
	r.Listeners = slices.Clone(r.Listeners)
	r.Users = slices.Clone(r.Users)
	r.Accounts = slices.Clone(r.Accounts)
	r.RedirectAllTo = slices.Clone(r.RedirectAllTo)
	r.AllowRecipients = slices.Clone(r.AllowRecipients)
	r.Permissions = slices.Clone(r.Permissions)
	if r.Headers != nil {
		h := make(map[string]string, len(r.Headers))
		for k, v := range r.Headers {
			h[k] = v
		}
		r.Headers = h
	}
	if r.OnLoss == "" {
		r.OnLoss = LossSend
	}
	return r
}

func (r *Route) check() error {
	var errs []error
	if len(r.Senders) == 0 {
		errs = append(errs, errors.New(`senders is empty: name a domain, an address or "*"`))
	}
	if len(r.Accounts) == 0 {
		errs = append(errs, errors.New("accounts is empty: name at least one account"))
	}
	for _, l := range []struct {
		key      string
		patterns []string
	}{{"senders", r.Senders}, {"recipients", r.Recipients}, {"allow_recipients", r.AllowRecipients}} {
		for _, p := range l.patterns {
			if !validPattern(p) {
				errs = append(errs, fmt.Errorf(`%s: %q is not "*", a domain, "*.domain" or an address`, l.key, p))
			}
		}
	}
	for i, a := range r.Accounts {
		if a == "" {
			errs = append(errs, errors.New("accounts: an empty name"))
		} else if slices.Contains(r.Accounts[:i], a) {
			errs = append(errs, fmt.Errorf("accounts: %q is named twice", a))
		}
	}
	if r.OnLoss != LossSend && r.OnLoss != LossRefuse {
		errs = append(errs, fmt.Errorf(`on_loss: %q is not "send" or "refuse"`, r.OnLoss))
	}
	if r.ForceFrom != "" {
		if err := envelope.ValidateAddr(r.ForceFrom); err != nil {
			errs = append(errs, fmt.Errorf("force_from: %q: %w", r.ForceFrom, err))
		}
	}
	for _, a := range r.RedirectAllTo {
		if err := envelope.ValidateAddr(a); err != nil {
			errs = append(errs, fmt.Errorf("redirect_all_to: %q: %w", a, err))
		}
	}
	for name := range r.Headers {
		if name == "" || strings.ContainsAny(name, ": \t\r\n") {
			errs = append(errs, fmt.Errorf("headers: %q is not a header name", name))
		}
	}
	if r.Expire < 0 {
		errs = append(errs, errors.New("expire is negative"))
	}
	return errors.Join(errs...)
}

func validPattern(p string) bool {
	if p == "*" {
		return true
	}
	if local, domain := envelope.Split(p); domain != "" {
		return local != "" && !strings.ContainsAny(domain, "* \t") && !strings.ContainsAny(p, "\r\n")
	}
	p = strings.TrimPrefix(p, "*.")
	return p != "" && !strings.ContainsAny(p, "*@ \t\r\n") && p[0] != '.'
}

// Lookup gives the first route that matches. It belongs to the table and is not to be changed.
func (t *Table) Lookup(q Query) (*Route, bool) {
	for i := range t.routes {
		if t.routes[i].match(q) {
			return &t.routes[i], true
		}
	}
	return nil, false
}

// CouldSend reports whether some route has a sender pattern that fits addr: without one,
// nothing from there will ever be delivered.
func (t *Table) CouldSend(addr string) bool {
	for i := range t.routes {
		if envelope.MatchAny(t.routes[i].Senders, addr) {
			return true
		}
	}
	return false
}

// Routes gives the routes in their order, for display. They are not to be changed.
func (t *Table) Routes() []Route { return t.routes }

func (r *Route) match(q Query) bool {
	switch {
	case !envelope.MatchAny(r.Senders, q.Sender()),
		len(r.Recipients) > 0 && !envelope.MatchAny(r.Recipients, q.Rcpt),
		len(r.Listeners) > 0 && !slices.Contains(r.Listeners, q.Listener),
		len(r.Users) > 0 && !r.matchUser(q.User):
		return false
	}
	for name, glob := range r.Headers {
		var value string
		if q.Header != nil {
			value = q.Header(name)
		}
		if !Glob(glob, value) {
			return false
		}
	}
	return true
}

func (r *Route) matchUser(user string) bool {
	return user != "" && (slices.Contains(r.Users, user) || slices.Contains(r.Users, "*"))
}

// Glob reports whether value fits the glob: * is any run of characters, ? is one; the case of
// letters does not matter. It takes time linear in each of them times the other at worst.
func Glob(glob, value string) bool {
	g, v := []rune(strings.ToLower(glob)), []rune(strings.ToLower(value))
	star, mark := -1, 0
	i := 0
	for j := 0; j < len(v); {
		switch {
		case i < len(g) && g[i] == '*':
			star, mark = i, j
			i++
		case i < len(g) && (g[i] == '?' || g[i] == v[j]):
			i++
			j++
		case star >= 0:
			// Let the last star take one character more.
			mark++
			i, j = star+1, mark
		default:
			return false
		}
	}
	for i < len(g) && g[i] == '*' {
		i++
	}
	return i == len(g)
}
