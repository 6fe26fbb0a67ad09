package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/safehttp"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

const (
	maxInboundHops = 50                        // Received fields of a mail that does not go round in circles (RFC 5321 6.3)
	maxInboundRuns = 3                         // times a mail may have come in through this bridge before
	nobody         = "unknown@inbound.invalid" // recipient of a mail whose post names none (RFC 2606)
)

// localProviders are those that can deliver received mail.
var localProviders = []string{"smtp", "lmtp", "maildir"}

// inboundRules are the [[inbound]] blocks. The error is config.Problems.
func (p *parts) inboundRules() ([]deliver.InboundRule, error) {
	var rules []deliver.InboundRule
	var problems config.Problems
	for i, in := range p.cfg.Inbound {
		if a, ok := p.accounts[in.Account]; ok && !slices.Contains(localProviders, a.Info.Name) {
			problems = append(problems, p.cfg.Problem(fmt.Sprintf("inbound[%d].account", i),
				fmt.Errorf("%q is an account of %s: received mail is delivered by an account of provider smtp, lmtp or maildir", in.Account, a.Info.Title)))
		}
		rules = append(rules, deliver.InboundRule{Recipients: in.Recipients, Account: in.Account})
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return rules, nil
}

// fetchClient fetches received mail from ESPs, and nothing inside our network.
func fetchClient(cfg *config.Config) (*http.Client, error) {
	hc, err := httpConfig(cfg, 4)
	if err != nil {
		return nil, err
	}
	hc.Public = true
	return safehttp.New(hc)
}

// inbox is where the webhook listener brings received mail; nowhere without [[inbound]].
func (in *intake) inbox(p *parts) webhookd.Inbox {
	if len(p.cfg.Inbound) == 0 {
		return webhookd.Inbox{}
	}
	return webhookd.Inbox{Take: in.takeReceived, Known: in.store.HasEvent, Posts: in.store, Spool: in.spool, Client: p.fetch}
}

// spool makes a file without a name in the data directory.
func (in *intake) spool() (*os.File, error) { return in.store.SpoolFile() }

// takeReceived makes a received mail durable: with the jobs that deliver it, or held where that cannot be.
func (in *intake) takeReceived(ctx context.Context, m webhookd.Received, raw io.Reader) error {
	if known, err := in.store.HasEvent(ctx, m.ID); err != nil || known {
		return err
	}
	p := in.now.Load()
	r, err := in.store.Begin(ctx)
	if err != nil {
		return err
	}
	defer r.Abort()
	env := inboundEnvelope(p, m)
	w := &crlfWriter{w: r}
	fmt.Fprintf(w, "Received: from %s (account %s)\r\n\tby %s with HTTP id %s;\r\n\t%s\r\n", m.Provider, m.Account, p.cfg.Hostname, env.ID, env.Received.Format(time.RFC1123Z))
	if _, err := io.Copy(w, raw); err != nil {
		return err
	}
	if err := w.end(); err != nil {
		return err
	}
	body, err := r.Body()
	if err != nil {
		return err
	}
	defer body.Close()
	env.Size = body.Size()
	plan, why, err := planReceived(p, env, body, m.Doubt)
	if err != nil {
		return err
	}
	evs := inboundEvents(m, &plan.Mail.Envelope)
	if why != "" {
		plan.Mail.State, plan.Mail.HoldReason = store.MailHeld, "received mail: "+why
		evs = append(evs, inboundFailed(m, &plan.Mail.Envelope, why))
	}
	fresh, err := in.store.TakeInbound(ctx, r, plan.Mail, plan.Jobs, evs...)
	if err == nil && fresh && why != "" {
		in.log.Warn("received mail is held", "event", "inbound.held", "id", env.ID, "account", m.Account, "reason", why)
	}
	return err
}

// inboundEnvelope gives a received mail its recipients: those that an [[inbound]] rule knows, else all, and the mail waits.
// A post without an envelope names the addresses of To and Cc, among them foreign ones.
func inboundEnvelope(p *parts, m webhookd.Received) envelope.Envelope {
	env := envelope.Envelope{ID: envelope.NewID(m.Received), From: m.From, Inbound: m.Account, EightBit: true, Received: m.Received}
	var known, all []envelope.Rcpt
	for _, a := range m.Rcpts {
		rc := envelope.Rcpt{Addr: a, Notify: []string{"NEVER"}} // its sender is a stranger, and hears nothing from us
		all = append(all, rc)
		if p.planner.InboundAccount(a) != "" {
			known = append(known, rc)
		}
	}
	switch {
	case len(known) > 0:
		env.Rcpts = known
	case len(all) > 0:
		env.Rcpts = all
	default:
		env.Rcpts = []envelope.Rcpt{{Addr: nobody, Notify: []string{"NEVER"}}}
	}
	env.UTF8 = !envelope.IsASCII(env.From) || slices.ContainsFunc(env.Rcpts, func(r envelope.Rcpt) bool { return !envelope.IsASCII(r.Addr) })
	return env
}

// planReceived plans the delivery of a received mail. why tells why it has to wait for an operator, "" when it has not to.
func planReceived(p *parts, env envelope.Envelope, body store.Body, doubt string) (plan *deliver.Plan, why string, err error) {
	plan, err = p.planner.Plan(deliver.PlanRequest{Envelope: env, Body: body, Size: body.Size()})
	var refusal *deliver.Refusal
	switch {
	case errors.As(err, &refusal):
		why = refusal.Text
	case err != nil:
		return nil, "", err
	case len(plan.Refused) > 0:
		why = plan.Refused[0].Refusal.Text
	default:
		why = loops(plan, p.cfg.Hostname)
	}
	switch {
	case doubt != "":
		why = doubt
	case env.Rcpts[0].Addr == nobody:
		why = "the post names no recipient"
	case p.planner.InboundAccount(env.Rcpts[0].Addr) == "":
		why = fmt.Sprintf("no [[inbound]] has recipients that fit %s", env.Rcpts[0].Addr)
	}
	if refusal == nil && plan != nil && len(plan.Refused) == 0 {
		return plan, why, nil
	}
	// Planned again when it is released, or at a reload.
	job := store.NewJob{Accounts: []string{deliver.NoRoute}, NextAt: env.Received, Expires: env.Received.Add(p.cfg.Delivery.Expire.D())}
	for n := range env.Rcpts {
		job.Rcpts = append(job.Rcpts, n)
	}
	mail := store.Mail{Envelope: env, Generation: p.planner.Generation()}
	if plan != nil {
		mail = plan.Mail
	}
	return &deliver.Plan{Mail: mail, Jobs: []store.NewJob{job}}, why, nil
}

// loops tells by its way whether a mail goes round in circles.
func loops(plan *deliver.Plan, hostname string) string {
	hops := plan.Message.Header.Values("Received")
	runs := -1 // this time
	for _, h := range hops {
		if strings.Contains(strings.Join(strings.Fields(h), " "), " by "+hostname+" with HTTP id ") {
			runs++
		}
	}
	switch {
	case len(hops) > maxInboundHops:
		return fmt.Sprintf("it loops: %d Received fields", len(hops))
	case runs >= maxInboundRuns:
		return fmt.Sprintf("it loops: it came in here %d times before", runs)
	}
	return ""
}

// inboundEvents tell that a mail came in, one for each recipient. The first has the id by which a repeat is known.
func inboundEvents(m webhookd.Received, env *envelope.Envelope) []event.Event {
	var out []event.Event
	for i, rc := range env.Rcpts {
		id := m.ID
		if i > 0 {
			id = event.FactID(m.ID, envelope.Fold(rc.Addr))
		}
		rcpt := rc.Addr
		if rcpt == nobody {
			rcpt = ""
		}
		out = append(out, event.Event{
			V: event.Version, ID: id, Kind: event.Inbound, Time: m.Time, Seen: m.Received, Account: m.Account, Provider: m.Provider,
			QueueID: env.ID, Sender: env.From, Recipient: rcpt, ProviderEventID: event.Clean(m.ProviderID, event.MaxID),
		})
	}
	return out
}

// inboundFailed tells that a mail waits for an operator.
func inboundFailed(m webhookd.Received, env *envelope.Envelope, why string) event.Event {
	e := event.Event{
		V: event.Version, ID: event.FactID(m.ID, string(event.InboundFailed)), Kind: event.InboundFailed, Time: m.Received, Seen: m.Received,
		Account: m.Account, Provider: m.Provider, QueueID: env.ID, Sender: env.From, Diagnostic: event.Clean(why, event.MaxText),
	}
	for _, rc := range env.Rcpts {
		e.Candidates = append(e.Candidates, rc.Addr)
	}
	if len(e.Candidates) == 1 {
		e.Recipient, e.Candidates = e.Candidates[0], nil
	}
	return e
}

// crlfWriter gives each line the ending of RFC 5322, whatever the ESP gave it, as is done for mail that comes by SMTP.
type crlfWriter struct {
	w    io.Writer
	buf  []byte
	last byte // '\r': its line end is not written yet
	any  byte // last octet of the mail
}

func (c *crlfWriter) Write(p []byte) (int, error) {
	c.buf = c.buf[:0]
	for _, b := range p {
		if c.last == '\r' {
			c.buf = append(c.buf, '\r', '\n')
			c.last = 0
			if b == '\n' {
				c.any = '\n'
				continue
			}
		}
		switch b {
		case '\r':
			c.last = b
		case '\n':
			c.buf = append(c.buf, '\r', '\n')
		case 0:
			c.buf = append(c.buf, ' ')
		default:
			c.buf = append(c.buf, b)
		}
		c.any = b
	}
	if _, err := c.w.Write(c.buf); err != nil {
		return 0, err
	}
	return len(p), nil
}

// end ends the last line.
func (c *crlfWriter) end() error {
	if c.last == '\r' || c.any != '\n' {
		_, err := io.WriteString(c.w, "\r\n")
		return err
	}
	return nil
}
