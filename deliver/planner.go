package deliver

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// Account is one configured instance of a provider.
type Account struct {
	Name          string
	Info          providers.Info
	Provider      providers.Provider
	Settings      translate.Settings // return path, tracking, keep_received; a route's force_from is added
	MaxConcurrent int                // calls at once; 0 = the provider's, else DefaultConcurrent
	MaxPerSecond  float64            // calls per second; 0 = the provider's, else no limit
	SplitAlways   bool               // split_recipients = "always"
}

// DefaultConcurrent is how many calls an account makes at once when neither its
// configuration nor its provider says.
const DefaultConcurrent = 20

// Values of PlannerConfig.OnUnknown.
const (
	UnknownRetry = "retry"
	UnknownHold  = "hold"
)

// DefaultExpire is how long a mail is tried.
const DefaultExpire = 5 * 24 * time.Hour

// DefaultFailoverAfter is how old transient trouble must be before the next account is tried.
const DefaultFailoverAfter = 10 * time.Minute

// PlannerConfig is what a Planner is made from: one generation of the configuration.
type PlannerConfig struct {
	Routes        *route.Table
	Accounts      map[string]*Account
	Limits        mime.Limits
	Generation    int64
	Retry         Schedule
	Expire        time.Duration // 0 = DefaultExpire
	FailoverAfter time.Duration // 0 = DefaultFailoverAfter
	OnUnknown     string        // UnknownRetry ("" too) or UnknownHold
	SoftBounce    bool          // nothing is refused or failed for good
	KeepSubject   bool
	Suppression   bool // recipients on the suppression list are rejected
	// Inbound says where mail goes that an ESP handed over; the first rule that fits a recipient counts.
	Inbound []InboundRule
	// Listeners and Users say by name which option headers count. Who is not named: all dialects, no permissions.
	Listeners map[string]HeaderRules
	Users     map[string]HeaderRules
}

// InboundRule names the account that delivers received mail for some recipients.
type InboundRule struct {
	Recipients []string // patterns, see envelope.MatchPattern
	Account    string
}

// Planner decides who receives a mail by which account, and says beforehand what would be lost. It is
// immutable and pure: a reload makes a new one. It is used before the 250 (Plan), by the
// workers, and by `smtpbridge explain`.
type Planner struct {
	c PlannerConfig
}

// NewPlanner makes a planner of one generation of the configuration.
func NewPlanner(c PlannerConfig) *Planner {
	if c.Expire <= 0 {
		c.Expire = DefaultExpire
	}
	if c.FailoverAfter <= 0 {
		c.FailoverAfter = DefaultFailoverAfter
	}
	if c.OnUnknown == "" {
		c.OnUnknown = UnknownRetry
	}
	if c.Routes == nil {
		c.Routes = &route.Table{}
	}
	return &Planner{c: c}
}

// Generation is that of the configuration the planner was made from.
func (p *Planner) Generation() int64 { return p.c.Generation }

// Account gives a configured account.
func (p *Planner) Account(name string) (*Account, bool) {
	a, ok := p.c.Accounts[name]
	return a, ok
}

// Refusal says that no recipient of a mail can ever be delivered: the SMTP reply to give.
// Its text tells the application's owner what to do.
type Refusal struct {
	Code     int
	Enhanced [3]int
	Text     string
	Lines    []string      // where accounts refuse for different reasons: one line for each, Text has them all
	Each     []RcptRefusal // where it stands for several: the one of each recipient
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%d %s %s", r.Code, r.Status(), r.Text)
}

// Status is the enhanced status code as text (RFC 3463).
func (r *Refusal) Status() string {
	return fmt.Sprintf("%d.%d.%d", r.Enhanced[0], r.Enhanced[1], r.Enhanced[2])
}

// soft gives the refusal as a temporary one (soft_bounce).
func (r *Refusal) soft() *Refusal {
	s := *r
	switch {
	case r.Code == 552:
		s.Code = 452
	case r.Code == 550 || r.Code == 553:
		s.Code = 450
	case r.Code >= 500:
		s.Code = 451
	}
	s.Enhanced[0] = 4
	s.Each = nil
	for _, e := range r.Each {
		e.Refusal = e.Refusal.soft()
		s.Each = append(s.Each, e)
	}
	return &s
}

func refuse(code, class, subject, detail int, format string, args ...any) *Refusal {
	return &Refusal{Code: code, Enhanced: [3]int{class, subject, detail}, Text: event.Clean(fmt.Sprintf(format, args...), event.MaxText)}
}

// PlanRequest is a mail as received.
type PlanRequest struct {
	Envelope    envelope.Envelope
	Body        io.ReaderAt
	Size        int64
	AllowedFrom []string // patterns the header From must fit; nil = any
	MaxRcpts    int      // the listener's limit, for recipients that headers add; 0 = none
	// Accounts, when not empty, are used in this order instead of the routes: for mail the
	// bridge makes itself (DSN) or takes from an ESP (inbound).
	Accounts []string
}

// Plan is what becomes of a mail.
type Plan struct {
	Message *mime.Message
	From    string         // address the mail is routed by
	Mail    store.Mail     // to be committed; its envelope has the recipients after redirect_all_to
	Jobs    []store.NewJob // to be committed with it
	Groups  []Group
	Refused []RcptRefusal // recipients that cannot be served although others can
	Events  []event.Event // that say so and who was redirected, to be committed with the mail

	redirected []redirected
}

// Group is recipients that share a route and the accounts fit for them.
type Group struct {
	Route    *route.Route // nil when PlanRequest.Accounts was used
	Rcpts    []int        // indexes into Plan.Mail.Envelope.Rcpts
	Accounts []string     // that keep what must be kept, in failover order; empty: refused
	Verdicts []Verdict    // of all accounts of the route, in its order
	SendAt   time.Time    // asked for by the mail, zero if not
	Refusal  *Refusal     // when Accounts is empty
	hold     time.Time    // until when the mail waits here, as the first account does not schedule so far ahead
}

// Name is the route's name, "" without one.
func (g *Group) Name() string {
	if g.Route == nil {
		return ""
	}
	return g.Route.Name
}

// Verdict is what one account would do with the recipients of a group.
type Verdict struct {
	Account string
	Calls   []*translate.Mail
	Losses  []translate.Loss
	Refusal *Refusal        // why it is not used, nil when it is
	cannot  []envelope.Rcpt // whom the refusal is about, nil = all
}

// RcptRefusal is one recipient that is not served.
type RcptRefusal struct {
	N       int // index into Plan.Mail.Envelope.Rcpts
	Rcpt    envelope.Rcpt
	Kind    event.Kind // rejected (by policy) or failed (cannot be expressed)
	Refusal *Refusal
	Wanted  bool // the mail itself leaves the recipient out
}

// redirected is a recipient in whose place redirect_all_to of a route puts others.
type redirected struct {
	rcpt  envelope.Rcpt
	route *route.Route
}

// Plan reads the mail and decides. The error is a *Refusal when no recipient can ever be delivered;
// any other error is our own fault, to be answered with 4xx.
func (p *Planner) Plan(req PlanRequest) (*Plan, error) {
	plan, err := p.plan(req)
	var r *Refusal
	switch {
	case p.c.SoftBounce && errors.As(err, &r):
		return nil, r.soft()
	case err != nil:
		return nil, err
	}
	return plan, nil
}

// plan is Plan without soft_bounce; with an error it gives what is known of the mail, for Explain.
func (p *Planner) plan(req PlanRequest) (*Plan, error) {
	msg, err := mime.Parse(req.Body, req.Size, p.c.Limits)
	var le *mime.LimitError
	switch {
	case errors.As(err, &le) && le.Kind == "header":
		return nil, refuse(552, 5, 3, 4, "the header of the mail is too large: %s", le)
	case errors.As(err, &le):
		return nil, refuse(554, 5, 6, 0, "%s", le)
	case err != nil:
		return nil, fmt.Errorf("read mail: %w", err)
	}
	plan := &Plan{Message: msg}
	if len(msg.From) > 0 {
		plan.From = translate.Qualify(msg.From[0].Addr, p.c.Listeners[req.Envelope.Listener].AppendDomain)
	}
	env := req.Envelope
	env.Rcpts = slices.Clone(env.Rcpts)
	env.Size = req.Size

	direct := len(req.Accounts) > 0 || env.Inbound != ""
	if !direct {
		if err := checkFrom(msg); err != nil {
			return plan, err
		}
	}
	sender := plan.From
	if sender == "" {
		sender = env.From
	}
	if req.AllowedFrom != nil && !envelope.MatchAny(req.AllowedFrom, sender) {
		who := "this listener"
		if env.AuthUser != "" {
			who = fmt.Sprintf("user %q", env.AuthUser)
		}
		return plan, refuse(550, 5, 7, 1, "%s may not send as %s: send with another From address, or allow %s for it",
			who, quoteAddr(sender), quoteDomain(sender))
	}

	if env.Inbound != "" {
		p.sortInbound(plan, env, msg)
	} else if direct {
		g := Group{}
		for i := range env.Rcpts {
			g.Rcpts = append(g.Rcpts, i)
		}
		plan.Groups = p.judge(env, msg, g, req.Accounts)
	} else if err := p.routeAll(plan, &env, msg, req.MaxRcpts); err != nil {
		return plan, err
	}

	plan.Mail = store.Mail{
		Envelope: env, Generation: p.c.Generation, FromHeader: plan.From, MessageID: msg.MessageID,
		Header: headerBlock(msg), State: store.MailQueued,
	}
	if p.c.KeepSubject {
		plan.Mail.Subject = event.Clean(msg.Subject, event.MaxText)
	}
	for i := range plan.Groups {
		g := &plan.Groups[i]
		if len(g.Accounts) == 0 {
			for _, n := range g.Rcpts {
				plan.Refused = append(plan.Refused, RcptRefusal{N: n, Rcpt: env.Rcpts[n], Kind: event.Failed, Refusal: g.Refusal})
			}
			continue
		}
		plan.Jobs = append(plan.Jobs, p.newJob(g, env.Received))
	}
	if len(plan.Jobs) == 0 {
		return plan, firstRefusal(plan.Refused)
	}
	if p.c.SoftBounce && slices.ContainsFunc(plan.Refused, unwanted) {
		return plan, firstRefusal(plan.Refused) // made temporary: nobody is dropped for good
	}
	slices.SortFunc(plan.Refused, func(a, b RcptRefusal) int { return a.N - b.N })
	for _, r := range plan.Refused {
		plan.Events = append(plan.Events, p.refusedEvent(plan, r))
	}
	for _, r := range plan.redirected {
		plan.Events = append(plan.Events, redirectedEvent(&plan.Mail, r))
	}
	return plan, nil
}

// checkFrom wants one sender: with several, each part of the chain would choose its own.
func checkFrom(msg *mime.Message) error {
	if n := len(msg.Header.Values("From")); n > 1 {
		return refuse(554, 5, 6, 0, "the mail has %d From header fields; send it with exactly one (RFC 5322 3.6)", n)
	}
	if n := len(msg.From); n > 1 {
		return refuse(554, 5, 6, 0, "the From header names %d addresses; send the mail with exactly one", n)
	}
	return nil
}

// routeAll finds the route of each recipient, applies redirect_all_to and allow_recipients, and
// judges the accounts of each group.
func (p *Planner) routeAll(plan *Plan, env *envelope.Envelope, msg *mime.Message, maxRcpts int) error {
	q := route.Query{From: plan.From, EnvelopeFrom: env.From, Listener: env.Listener, User: env.AuthUser, Header: msg.Header.Get}
	leftOut, err := p.addRcpts(env, msg, q, maxRcpts)
	if err != nil {
		return err
	}
	type target struct {
		rcpt    envelope.Rcpt
		route   *route.Route
		block   *Refusal
		leftOut bool // as the mail wants it
	}
	var targets []target
	seen := map[string]bool{}
	add := func(t target) {
		if k := envelope.Fold(t.rcpt.Addr); !seen[k] {
			seen[k] = true
			targets = append(targets, t)
		}
	}
	for _, rc := range env.Rcpts {
		q.Rcpt = rc.Addr
		rt, ok := p.c.Routes.Lookup(q)
		switch {
		case leftOut[envelope.Fold(rc.Addr)]:
			add(target{rcpt: rc, leftOut: true, block: refuse(550, 5, 7, 1, "%s is not among the recipients that the X-SMTPAPI header names in place of those of RCPT TO", quoteAddr(rc.Addr))})
		case !ok:
			add(target{rcpt: rc, block: p.noRoute(q)})
		case len(rt.RedirectAllTo) > 0:
			plan.redirected = append(plan.redirected, redirected{rc, rt})
			for _, to := range rt.RedirectAllTo {
				add(target{rcpt: envelope.Rcpt{Addr: to, Notify: rc.Notify}, route: rt})
			}
		case len(rt.AllowRecipients) > 0 && !envelope.MatchAny(rt.AllowRecipients, rc.Addr):
			add(target{rcpt: rc, block: refuse(550, 5, 7, 1, "%s is not among allow_recipients of route %q", quoteAddr(rc.Addr), rt.Name)})
		default:
			add(target{rcpt: rc, route: rt})
		}
	}
	env.Rcpts = env.Rcpts[:0]
	var groups []Group
	for i, t := range targets {
		env.Rcpts = append(env.Rcpts, t.rcpt)
		if t.block != nil {
			plan.Refused = append(plan.Refused, RcptRefusal{N: i, Rcpt: t.rcpt, Kind: event.Rejected, Refusal: t.block, Wanted: t.leftOut})
			continue
		}
		j := slices.IndexFunc(groups, func(g Group) bool { return g.Route == t.route })
		if j < 0 {
			j = len(groups)
			groups = append(groups, Group{Route: t.route})
		}
		groups[j].Rcpts = append(groups[j].Rcpts, i)
	}
	for _, g := range groups {
		plan.Groups = append(plan.Groups, p.judge(*env, msg, g, g.Route.Accounts)...)
	}
	return nil
}

// sortInbound groups the recipients of received mail by the account of their rule.
func (p *Planner) sortInbound(plan *Plan, env envelope.Envelope, msg *mime.Message) {
	groups := map[string]*Group{}
	var order []string
	for i, rc := range env.Rcpts {
		account := p.InboundAccount(rc.Addr)
		if groups[account] == nil {
			groups[account] = &Group{}
			order = append(order, account)
		}
		groups[account].Rcpts = append(groups[account].Rcpts, i)
	}
	for _, account := range order {
		plan.Groups = append(plan.Groups, p.judge(env, msg, *groups[account], []string{account})...)
	}
}

// InboundAccount is the account that delivers received mail for a recipient, "" when no rule names one.
func (p *Planner) InboundAccount(rcpt string) string {
	for _, r := range p.c.Inbound {
		if envelope.MatchAny(r.Recipients, rcpt) {
			return r.Account
		}
	}
	return ""
}

// judge asks every account of the group. Recipients that an account cannot serve (8-bit local parts, say) become a
// group of their own where they would take that account from the others.
func (p *Planner) judge(env envelope.Envelope, msg *mime.Message, g Group, accounts []string) []Group {
	p.judgeOne(env, msg, &g, accounts)
	if len(accounts) == 0 || len(g.Accounts) > 0 && g.Accounts[0] == accounts[0] {
		return []Group{g}
	}
	for _, v := range g.Verdicts {
		if v.Refusal == nil {
			break
		}
		if len(v.cannot) == 0 || len(v.cannot) >= len(g.Rcpts) {
			continue
		}
		with, without := Group{Route: g.Route}, Group{Route: g.Route}
		for _, n := range g.Rcpts {
			if slices.ContainsFunc(v.cannot, func(r envelope.Rcpt) bool { return r.Addr == env.Rcpts[n].Addr }) {
				without.Rcpts = append(without.Rcpts, n)
			} else {
				with.Rcpts = append(with.Rcpts, n)
			}
		}
		if len(with.Rcpts) > 0 && len(without.Rcpts) > 0 {
			return append(p.judge(env, msg, with, accounts), p.judge(env, msg, without, accounts)...)
		}
	}
	return []Group{g}
}

func (p *Planner) judgeOne(env envelope.Envelope, msg *mime.Message, g *Group, accounts []string) {
	rcpts := make([]envelope.Rcpt, len(g.Rcpts))
	for i, n := range g.Rcpts {
		rcpts[i] = env.Rcpts[n]
	}
	g.Accounts, g.Verdicts, g.Refusal = nil, nil, nil
	for _, name := range accounts {
		v := p.verdict(env, msg, g.Route, rcpts, name)
		g.Verdicts = append(g.Verdicts, v)
		if v.Refusal != nil {
			continue
		}
		g.Accounts = append(g.Accounts, name)
		for _, m := range v.Calls {
			if m.Options.SendAt.After(g.SendAt) {
				g.SendAt = m.Options.SendAt
			}
			if hold := m.HoldUntil(); len(g.Accounts) == 1 && hold.After(g.hold) {
				g.hold = hold
			}
		}
	}
	if len(g.Accounts) == 0 {
		g.Refusal = refusedByAll(g)
	}
}

// refusedByAll says why no account takes the mail: where they have different reasons, that of each. The code is the first one's.
func refusedByAll(g *Group) *Refusal {
	if len(g.Verdicts) == 0 {
		return refuse(550, 5, 7, 1, "route %q has no usable account", g.Name())
	}
	first := g.Verdicts[0].Refusal
	if !slices.ContainsFunc(g.Verdicts, func(v Verdict) bool { return v.Refusal.Text != first.Text }) {
		return first
	}
	var reasons []string
	accounts := map[string][]string{}
	for _, v := range g.Verdicts {
		why := v.Refusal.reason(v.Account)
		if accounts[why] == nil {
			reasons = append(reasons, why)
		}
		accounts[why] = append(accounts[why], v.Account)
	}
	r := *first
	r.Lines = nil
	for _, why := range reasons {
		who := "account "
		if len(accounts[why]) > 1 {
			who = "accounts "
		}
		r.Lines = append(r.Lines, event.Clean(who+strings.Join(accounts[why], ", ")+": "+why, event.MaxText))
	}
	r.Text = event.Clean(strings.Join(r.Lines, " | "), event.MaxText)
	return &r
}

// reason is the text of an account's refusal without its name in front.
func (r *Refusal) reason(account string) string {
	return strings.TrimLeft(strings.TrimPrefix(r.Text, "account "+account), ": ")
}

func (p *Planner) verdict(env envelope.Envelope, msg *mime.Message, rt *route.Route, rcpts []envelope.Rcpt, name string) Verdict {
	v := Verdict{Account: name}
	a, ok := p.c.Accounts[name]
	if !ok {
		v.Refusal = refuse(550, 5, 7, 1, "account %s is not configured", name)
		return v
	}
	var err error
	v.Calls, v.Losses, err = translate.Apply(translate.Request{
		Envelope: env, Rcpts: rcpts, Message: msg, Caps: a.Provider.Capabilities(), Settings: p.settings(env, rt, a, false),
	})
	if err != nil {
		v.Refusal = refusalOf(name, err)
		var te *translate.RefusalError
		if errors.As(err, &te) {
			v.cannot = te.Rcpts
		}
		return v
	}
	onLoss := route.LossSend
	if rt != nil {
		onLoss = rt.OnLoss
	}
	var lost []string
	for _, l := range v.Losses {
		if l.Severity == translate.Fatal || onLoss == route.LossRefuse && l.Severity > translate.Info {
			lost = append(lost, lossText(l))
		}
	}
	if len(lost) > 0 {
		v.Refusal = refuse(554, 5, 6, 3, "account %s cannot send this mail unchanged: %s; %s", name, strings.Join(lost, "; "), advice(v))
	}
	return v
}

// advice says what to do about losses that are not allowed.
func advice(v Verdict) string {
	switch {
	case !slices.ContainsFunc(v.Losses, func(l translate.Loss) bool { return l.Severity == translate.Fatal }):
		return "send it without that, add an account that keeps it to the route, or set on_loss = \"send\" there"
	case len(v.Calls) > 0 && v.Calls[0].UseRaw:
		return "send signed parts as quoted-printable or base64"
	}
	return "send it without signature and encryption, or add an account that sends messages whole to the route"
}

// settings are the account's, with what the route and the job add.
func (p *Planner) settings(env envelope.Envelope, rt *route.Route, a *Account, split bool) translate.Settings {
	s := a.Settings
	if s.Provider == "" {
		s.Provider = a.Info.Name
	}
	rules := p.headerRules(env, rt)
	s.Dialects, s.Permissions, s.BadOptions, s.AppendDomain = rules.Dialects, rules.Permissions, rules.BadOptions, rules.AppendDomain
	if env.Inbound != "" { // what strangers write are no options, and the way a mail took shows loops
		s.Foreign = true
	}
	s.Split = s.Split || split || a.SplitAlways
	if rt != nil && rt.ForceFrom != "" {
		s.ForceFrom = rt.ForceFrom
	}
	return s
}

// route finds a route by the name a job carries.
func (p *Planner) route(name string) (*route.Route, bool) {
	if name == "" {
		return nil, true
	}
	for i, routes := 0, p.c.Routes.Routes(); i < len(routes); i++ {
		if routes[i].Name == name {
			return &routes[i], true
		}
	}
	return nil, false
}

func (p *Planner) newJob(g *Group, now time.Time) store.NewJob {
	expire := p.c.Expire
	if g.Route != nil && g.Route.Expire > 0 {
		expire = g.Route.Expire
	}
	j := store.NewJob{Route: g.Name(), Accounts: g.Accounts, Rcpts: g.Rcpts, NextAt: now, Expires: now.Add(expire)}
	if g.SendAt.After(now) {
		if g.hold.After(now) {
			j.NextAt = g.hold
		}
		j.Expires = g.SendAt.Add(expire)
	}
	return j
}

func (p *Planner) noRoute(q route.Query) *Refusal {
	from := q.Sender()
	domain := envelope.Domain(from)
	switch {
	case from == "":
		return refuse(550, 5, 7, 1, "the mail has no From address and no route takes senders without one: set From, or add a route with senders = [\"*\"]")
	case domain == "":
		return refuse(550, 5, 7, 1, "the From address %q has no domain to find a route by: use a full address", from)
	case !p.c.Routes.CouldSend(from):
		return refuse(550, 5, 7, 1, "no route for mail from %s: add a [[route]] with senders = [%q], or send from a configured domain", domain, domain)
	}
	return refuse(550, 5, 7, 1, "no route for mail from %s to %s: a route has that sender, but its other conditions (recipients, listeners, users, headers) do not match", domain, quoteAddr(q.Rcpt))
}

// refusalOf maps what translate said to a reply. A status of class 5 chooses the code.
func refusalOf(account string, err error) *Refusal {
	var te *translate.RefusalError
	if !errors.As(err, &te) {
		return refuse(554, 5, 6, 0, "account %s: %s", account, err)
	}
	r := refuse(554, 5, 6, 3, "%s", te.Text)
	if e, ok := parseStatus(te.Status); ok {
		r.Enhanced = e
	}
	switch r.Status() {
	case "5.3.4", "5.2.3":
		r.Code = 552
	case "5.6.7", "5.1.1", "5.1.3":
		r.Code = 553
	case "5.7.1":
		r.Code = 550
	}
	return r
}

func firstRefusal(rs []RcptRefusal) error {
	if len(rs) == 0 {
		return refuse(554, 5, 5, 1, "the mail has no recipients")
	}
	r := *rs[max(slices.IndexFunc(rs, unwanted), 0)].Refusal
	r.Each = rs
	return &r
}

func unwanted(r RcptRefusal) bool { return !r.Wanted }

func (p *Planner) refusedEvent(plan *Plan, r RcptRefusal) event.Event {
	m := &plan.Mail
	reason := event.ReasonOther
	if r.Kind == event.Rejected {
		reason = event.ReasonBlocked
	}
	return event.Event{
		V: event.Version, ID: event.FactID("", m.Envelope.ID, string(r.Kind), r.Rcpt.Addr),
		Time: m.Envelope.Received, Seen: m.Envelope.Received, Kind: r.Kind, Recipient: r.Rcpt.Addr, QueueID: m.Envelope.ID,
		Sender: m.Envelope.From, MessageID: m.MessageID, Subject: m.Subject, Action: event.ActionFailed,
		Status: r.Refusal.Status(), Diagnostic: r.Refusal.Text, RejectReason: reason, SMTPReply: r.Refusal.Error(),
		EnvID: m.Envelope.EnvID, ORCPT: r.Rcpt.ORCPT,
	}
}

// redirectedEvent says for whom a mail of a staging system was meant, and who gets it.
func redirectedEvent(m *store.Mail, r redirected) event.Event {
	return event.Event{
		V: event.Version, ID: event.FactID("", m.Envelope.ID, "redirected", r.rcpt.Addr),
		Time: m.Envelope.Received, Seen: m.Envelope.Received, Kind: event.Unknown, ProviderEvent: "redirected",
		Recipient: r.rcpt.Addr, QueueID: m.Envelope.ID, Sender: m.Envelope.From, MessageID: m.MessageID, Subject: m.Subject,
		Diagnostic: event.Clean(fmt.Sprintf("redirect_all_to of route %q: the mail goes to %s instead", r.route.Name, strings.Join(r.route.RedirectAllTo, ", ")), event.MaxText),
		EnvID:      m.Envelope.EnvID, ORCPT: r.rcpt.ORCPT,
	}
}

func lossText(l translate.Loss) string {
	s := l.Field
	if l.Had != "" {
		s += " (" + l.Had + ")"
	}
	if l.Sent != "" {
		return s + " becomes " + l.Sent
	}
	return s + " is lost"
}

func quoteAddr(a string) string {
	if a == "" {
		return "<>"
	}
	return "<" + a + ">"
}

func quoteDomain(addr string) string {
	if d := envelope.Domain(addr); d != "" {
		return d
	}
	return "it"
}

// headerBlock is the top header block as received, kept with the ledger.
func headerBlock(m *mime.Message) []byte {
	var b []byte
	for _, f := range m.Header {
		b = append(b, f.Raw...)
	}
	return b
}

// parseStatus reads an RFC 3463 code.
func parseStatus(s string) ([3]int, bool) {
	var c [3]int
	if n, err := fmt.Sscanf(s, "%d.%d.%d", &c[0], &c[1], &c[2]); n != 3 || err != nil {
		return c, false
	}
	return c, c[0] == 2 || c[0] == 4 || c[0] == 5
}
