package deliver

import (
	"slices"

	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/route"
	"smtpbridge/translate"
)

// HeaderRules say which option headers of a mail count, by who handed it in. Header fields can come from form input or
// with forwarded mail, so the sensitive ones count only where a listener, a user or a route permits them.
type HeaderRules struct {
	Dialects    []string // header dialects that are understood; nil: of a listener all, of a user those of his listener
	Permissions []string // classes of translate.Permissions, or "all"
	BadOptions  string   // of a listener: translate.BadOptionsWarn ("" too) or translate.BadOptionsReject
	// AppendDomain, of a listener, completes addresses of the header that have no domain.
	AppendDomain string
}

// headerRules are those of a mail on one route: permissions add up, a user's dialects go before his listener's. In mail without
// a route (the bridge's own, or taken from an ESP) no header counts: it is a stranger's.
func (p *Planner) headerRules(env envelope.Envelope, rt *route.Route) HeaderRules {
	if rt == nil {
		return HeaderRules{Dialects: []string{}}
	}
	r := p.c.Listeners[env.Listener]
	u := p.c.Users[env.AuthUser]
	if u.Dialects != nil {
		r.Dialects = u.Dialects
	}
	r.Permissions = slices.Concat(r.Permissions, u.Permissions, rt.Permissions)
	return r
}

// addRcpts makes the recipients that headers ask for part of the envelope, where the route that would carry them permits it. They
// are subject to routes and staging rules like those of RCPT TO. It returns the recipients of RCPT TO (folded) that a header
// leaves out, which no header does without a permission of its own.
func (p *Planner) addRcpts(env *envelope.Envelope, msg *mime.Message, q route.Query, limit int) (out map[string]bool, err error) {
	asked, inPlace := translate.ExtraRcpts(msg, translate.Settings{
		Dialects: p.headerRules(*env, &route.Route{}).Dialects, Permissions: []string{translate.PermitRecipients},
	})
	// permits looks at the route that would carry a recipient.
	permits := func(addr string, classes ...string) bool {
		q.Rcpt = addr
		rt, ok := p.c.Routes.Lookup(q)
		return ok && !slices.ContainsFunc(classes, func(c string) bool {
			return !(translate.Settings{Permissions: p.headerRules(*env, rt).Permissions}).Permits(c)
		})
	}
	has := func(list []envelope.Rcpt, addr string) bool {
		return slices.ContainsFunc(list, func(r envelope.Rcpt) bool { return envelope.Equal(r.Addr, addr) })
	}
	if inPlace {
		out = map[string]bool{}
		for i, rc := range env.Rcpts {
			if !has(asked, rc.Addr) && permits(rc.Addr, translate.PermitRecipients, translate.PermitReplace) {
				out[envelope.Fold(rc.Addr)] = true
				env.Rcpts[i].Notify = []string{"NEVER"} // he who wrote the header knows
			}
		}
	}
	for _, x := range asked {
		if has(env.Rcpts, x.Addr) || !permits(x.Addr, translate.PermitRecipients) {
			continue // not permitted: said as a loss of the plan
		}
		if limit > 0 && len(env.Rcpts) >= limit {
			return nil, refuse(552, 5, 5, 3, "the mail has more than %d recipients with those that its headers add", limit)
		}
		env.Rcpts = append(env.Rcpts, x)
	}
	return out, nil
}
