package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/dsn"
	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/sink"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// dsnSettings are what this configuration says about DSN mail, nil when there is none. The error is config.Problems.
func (p *parts) dsnSettings() (*sink.DSNSettings, error) {
	c := &p.cfg.DSN
	if c.Account == "" {
		return nil, nil
	}
	served := map[string]bool{}
	if p.cfg.Webhook.Address != "" {
		hooks, _ := hookAccounts(p)
		for _, a := range hooks.Accounts {
			served[a.Name] = true
		}
	}
	s := &sink.DSNSettings{
		On: c.On, DelayAfter: c.DelayAfter.D(), MaxPerHour: c.MaxPerHour, Hostname: p.cfg.Hostname, Addresses: p.cfg.Log.Addresses,
		Permit: func(e *envelope.Envelope) bool { return mayBeTold(p.cfg, e) }, Delivers: func(account string) bool { return served[account] },
		Plan: p.planDSN,
	}
	if err := p.checkDSN(s); err != nil {
		return nil, config.Problems{p.cfg.Problem("dsn.account", err)}
	}
	return s, nil
}

// planDSN makes a mail for the account of [dsn], whatever the routes say.
func (p *parts) planDSN(e envelope.Envelope, body store.Body) (store.Mail, []store.NewJob, error) {
	plan, err := p.planner.Plan(deliver.PlanRequest{Envelope: e, Body: body, Size: body.Size(), Accounts: []string{p.cfg.DSN.Account}})
	var refusal *deliver.Refusal
	if errors.As(err, &refusal) {
		return store.Mail{}, nil, &sink.Refused{Text: refusal.Text}
	}
	if err != nil {
		return store.Mail{}, nil, err
	}
	return plan.Mail, plan.Jobs, nil
}

// checkDSN finds out whether the account can carry a DSN, by planning one.
func (p *parts) checkDSN(s *sink.DSNSettings) error {
	a := p.accounts[p.cfg.DSN.Account]
	if a.Provider.Capabilities().Raw == translate.RawNone {
		return fmt.Errorf("account %q (%s) takes no complete MIME message, as a DSN must stay one: name an account of provider smtp, lmtp or maildir, or of an ESP that takes raw MIME",
			a.Name, a.Info.Name)
	}
	now := time.Now()
	r := dsn.Report{
		Hostname: s.Hostname, ID: envelope.NewID(now), Date: now, To: "sender@example.com", Action: event.ActionFailed, Arrival: now,
		Header:     []byte("Subject: check\r\n"),
		Recipients: []dsn.Recipient{{Event: event.Event{Kind: event.Failed, Recipient: "recipient@example.com", Status: "5.1.1", Time: now}}},
	}
	var b bytes.Buffer
	if _, err := r.Write(&b); err != nil {
		return err
	}
	body := memBody{bytes.NewReader(b.Bytes())}
	if _, _, err := p.planDSN(envelope.Envelope{ID: r.ID, Rcpts: []envelope.Rcpt{{Addr: r.To}}, Received: now}, body); err != nil {
		return fmt.Errorf("account %q (%s) cannot send DSN mail: %w", a.Name, a.Info.Name, err)
	}
	return nil
}

type memBody struct{ *bytes.Reader }

func (memBody) Close() error { return nil }

// mayBeTold reports whether DSN mail may go to the sender of a mail: to domains that the user, or without
// AUTH the listener, may send from. Mail that did not come by a listener never causes any.
func mayBeTold(cfg *config.Config, e *envelope.Envelope) bool {
	if findConfigListener(cfg, e.Listener) == nil {
		return false
	}
	for _, u := range cfg.Users {
		if u.Name == e.AuthUser {
			return ofDomains(u.Senders, e.From)
		}
	}
	return slices.ContainsFunc(cfg.Routes, func(r config.Route) bool {
		return ofDomains(r.Senders, e.From) &&
			(len(r.Listeners) == 0 || slices.Contains(r.Listeners, e.Listener)) &&
			(len(r.Users) == 0 || slices.Contains(r.Users, e.AuthUser) || e.AuthUser != "" && slices.Contains(r.Users, "*"))
	})
}

// ofDomains reports whether an address is at a domain of the sender patterns; one that names an address counts for its domain.
func ofDomains(patterns []string, addr string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		return envelope.MatchPattern(p[strings.LastIndexByte(p, '@')+1:], addr)
	})
}

// noticeLine says what a sender was told of one recipient.
func noticeLine(sender string, n admin.Notice) string {
	text := stamp(n.At) + "  " + n.Action + "  " + n.Rcpt + "  "
	switch {
	case n.DSN != "":
		return text + "told " + sender + " by mail " + n.DSN
	case n.Due != nil:
		return text + "looked at again at " + stamp(*n.Due)
	}
	return text + "no mail: " + n.Reason
}
