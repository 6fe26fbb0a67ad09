package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/route"
	"smtpbridge/store"
)

// NoRoute is the account name of jobs that no route and no configured account takes any more. They are kept, nobody
// claims them, and the next reload plans them again (case 104). No account may have this name.
const NoRoute = "no_route"

const (
	replanBatch = 50
	replanRetry = time.Minute
)

// replanLoop plans mail again that was planned under an older configuration, in the background.
func (r *Runner) replanLoop(ctx context.Context) {
	for ctx.Err() == nil {
		failed := r.replanStale(ctx)
		var again <-chan time.Time
		stop := func() {}
		if failed {
			again, stop = r.clock.Timer(replanRetry)
		}
		select {
		case <-ctx.Done():
		case <-r.reload:
		case <-again:
		}
		stop()
	}
}

func (r *Runner) replanStale(ctx context.Context) (failed bool) {
	done := 0
	generation := r.planner.Load().Generation()
	tried := map[string]bool{}
	for ctx.Err() == nil {
		ids, err := r.q.Stale(ctx, generation, replanBatch)
		if err != nil {
			r.log.storeFailed("stale", "", err)
			return true
		}
		fresh := 0
		for _, id := range ids {
			if tried[id] || ctx.Err() != nil {
				continue
			}
			tried[id] = true
			fresh++
			if err := r.replanMail(ctx, id); err != nil {
				if !errors.Is(err, store.ErrStale) { // else it is at work, and planned again by its next claim
					r.log.ownFault("replan", id, err)
				}
				failed = true
				continue
			}
			done++
		}
		if fresh == 0 {
			break // only mails that cannot be planned again now: at work, or with calls open
		}
	}
	if done > 0 {
		r.log.replanned(done, generation)
	}
	return failed
}

// replanMail plans the open recipients of a mail anew under the present configuration. Nobody is refused here: the mail was
// accepted. Recipients without a route are kept under NoRoute. store.ErrStale: it is at work just now.
func (r *Runner) replanMail(ctx context.Context, id string) error {
	p := r.planner.Load()
	d, err := r.q.Detail(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read mail: %w", err)
	}
	body, err := r.q.Body(ctx, id)
	if errors.Is(err, store.ErrCorrupt) || errors.Is(err, store.ErrNotFound) {
		return nil // quarantined, or finished meanwhile
	}
	if err != nil {
		return fmt.Errorf("open body: %w", err)
	}
	defer body.Close()
	msg, err := mime.Parse(body, body.Size(), p.c.Limits)
	if err != nil {
		return fmt.Errorf("parse: %w", err)
	}
	jobs, lost := p.planAgain(d, msg, r.clock.Now())
	if lost > 0 {
		r.log.noRoute(id, lost)
	}
	if err := r.q.Replan(ctx, id, p.Generation(), jobs); err != nil {
		if errors.Is(err, store.ErrNotFound) {
			return nil
		}
		return fmt.Errorf("save the new plan: %w", err)
	}
	for _, j := range jobs {
		if l := r.lane(j.Accounts[0]); l != nil {
			l.wake()
		}
	}
	return nil
}

// planAgain makes new jobs for the recipients of d that are in no open call. lost counts those without a route.
func (p *Planner) planAgain(d *store.Detail, msg *mime.Message, now time.Time) (jobs []store.NewJob, lost int) {
	env := d.Mail.Envelope
	busy := map[int]bool{}
	for _, c := range d.Calls {
		if c.State == store.CallOpen || c.State == store.CallAmbiguous { // the store voids what was surely not accepted
			for _, n := range c.Rcpts {
				busy[n] = true
			}
		}
	}
	type old struct{ job *store.Job }
	jobOf := map[int]old{}
	for i := range d.Jobs {
		for _, n := range d.Jobs[i].Rcpts {
			jobOf[n] = old{&d.Jobs[i]}
		}
	}
	groups := map[string]*Group{}
	var order []string
	var homeless []int
	put := func(key string, rt *route.Route, n int) {
		g := groups[key]
		if g == nil {
			g = &Group{Route: rt}
			groups[key] = g
			order = append(order, key)
		}
		g.Rcpts = append(g.Rcpts, n)
	}
	direct := map[string][]string{}
	q := query(&d.Mail, msg.Header)
	for _, rc := range d.Rcpts {
		if rc.State.Final() || busy[rc.N] {
			continue
		}
		j := jobOf[rc.N].job
		if env.Inbound != "" {
			account := p.InboundAccount(rc.Addr)
			if account == "" {
				homeless = append(homeless, rc.N)
				continue
			}
			key := "inbound " + account
			direct[key] = []string{account}
			put(key, nil, rc.N)
			continue
		}
		if j != nil && j.Route == "" && !slices.Contains(j.Accounts, NoRoute) {
			var have []string
			for _, a := range j.Accounts {
				if _, ok := p.c.Accounts[a]; ok {
					have = append(have, a)
				}
			}
			if len(have) == 0 {
				homeless = append(homeless, rc.N)
				continue
			}
			key := fmt.Sprintf("direct %q", have)
			direct[key] = have
			put(key, nil, rc.N)
			continue
		}
		q.Rcpt = rc.Addr
		rt, ok := p.routeNow(q)
		if !ok {
			homeless = append(homeless, rc.N)
			continue
		}
		put("route "+rt.Name, rt, rc.N)
	}
	for _, key := range order {
		g := groups[key]
		accounts := direct[key]
		if g.Route != nil {
			accounts = g.Route.Accounts
		}
		for _, part := range p.judge(env, msg, *g, accounts) {
			if len(part.Accounts) == 0 {
				homeless = append(homeless, part.Rcpts...)
				continue
			}
			jobs = append(jobs, p.again(&part, jobOf[part.Rcpts[0]].job, env, now))
		}
	}
	if len(homeless) > 0 {
		jobs = append(jobs, p.again(&Group{Rcpts: homeless, Accounts: []string{NoRoute}}, jobOf[homeless[0]].job, env, now))
		lost = len(homeless)
	}
	return jobs, lost
}

// query asks for the route of a mail that was accepted; its recipient is to be added.
func query(m *store.Mail, h mime.Header) route.Query {
	env := &m.Envelope
	return route.Query{From: m.FromHeader, EnvelopeFrom: env.From, Listener: env.Listener, User: env.AuthUser, Header: h.Get}
}

// routeNow finds the route that takes a mail under the present configuration. A staging route that came later must not let
// a real recipient through; only its own may go.
func (p *Planner) routeNow(q route.Query) (*route.Route, bool) {
	rt, ok := p.c.Routes.Lookup(q)
	if !ok || len(rt.RedirectAllTo) > 0 && !containsAddr(rt.RedirectAllTo, q.Rcpt) ||
		len(rt.AllowRecipients) > 0 && !envelope.MatchAny(rt.AllowRecipients, q.Rcpt) {
		return nil, false
	}
	return rt, true
}

// again makes the job of a group that had one before: its life goes on, and where its account stays so does
// its place in the schedule.
func (p *Planner) again(g *Group, before *store.Job, env envelope.Envelope, now time.Time) store.NewJob {
	j := p.newJob(g, later(env.Received, time.Time{}))
	if before == nil {
		j.NextAt = later(j.NextAt, now)
		return j
	}
	j.Expires = later(j.Expires, before.Expires)
	if g.hold.IsZero() {
		j.NextAt = now
	}
	if slices.Contains(g.Accounts, before.Account) && before.Attempts > 0 {
		j.NextAt = before.NextAt
	}
	return j
}

func containsAddr(list []string, addr string) bool {
	return slices.ContainsFunc(list, func(a string) bool { return envelope.Equal(a, addr) })
}

func envelopeDomain(addr string) string { return envelope.Domain(addr) }
