package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"smtpbridge/config"
	"smtpbridge/envelope"
	"smtpbridge/smtp"
	"smtpbridge/store"
)

const (
	pingWait  = 2 * time.Second
	pingAgain = 5 * time.Second // how long a store that works is believed
	pingSoon  = time.Second     // and one that does not
)

var (
	refuseSpace = &smtp.Refusal{Code: 452, Enhanced: [3]int{4, 3, 1}, Text: "No space for mail at the moment, try again later", Reason: "no_space"}
	refuseStore = &smtp.Refusal{Code: 421, Enhanced: [3]int{4, 3, 0}, Text: "Mail cannot be stored at the moment, try again later", Reason: "store_down"}
)

// pulse remembers for a moment whether the store takes writes.
type pulse struct {
	mu   sync.Mutex
	next time.Time
	err  error
}

func (p *pulse) check(ping func(context.Context) error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if now.Before(p.next) && p.next.Sub(now) <= pingAgain {
		return p.err
	}
	ctx, cancel := context.WithTimeout(context.Background(), pingWait)
	defer cancel()
	p.err = ping(ctx)
	p.next = time.Now().Add(pingAgain)
	if p.err != nil {
		p.next = time.Now().Add(pingSoon)
	}
	return p.err
}

// checkSender refuses at MAIL what is better not begun: no room for it, a store that takes no
// writes, a sender who has used his hour up. Cases 58 and 59.
func (in *intake) checkSender(listener, user, _ string) *smtp.Refusal {
	p := in.now.Load()
	free, total, err := in.disk()
	if low(p.cfg, free, total) || errors.Is(in.store.Space(), store.ErrNoSpace) {
		in.say("queue.nospace", "free", free)
		return refuseSpace
	}
	if err == nil {
		err = in.pulse.check(in.store.Ping)
	}
	switch {
	case errors.Is(err, store.ErrNoSpace):
		in.say("queue.nospace", "free", free)
		return refuseSpace
	case err != nil:
		in.say("queue.unwritable", "err", err)
		return refuseStore
	}
	q, wait, first := in.rates.full(time.Now(), quotas(p.cfg, listener, user))
	if wait > 0 {
		if first {
			in.log.Warn("rate limit reached", "event", "smtp.rate_limit", "who", q.key, "limit", q.limit, "again_in", wait.Round(time.Second).String())
		}
		return refuseRate(q, wait)
	}
	return nil
}

// say logs a fault that every session meets, once a minute.
func (in *intake) say(what string, attrs ...any) {
	in.sayMu.Lock()
	defer in.sayMu.Unlock()
	if now := time.Now(); in.said[what].IsZero() || now.Sub(in.said[what]) >= time.Minute {
		if in.said == nil {
			in.said = map[string]time.Time{}
		}
		in.said[what] = now
		in.log.Log(context.Background(), slog.LevelError, "mail is refused for now", append([]any{"event", what}, attrs...)...)
	}
}

// quotas are the limits a mail counts against: its listener's, and its user's.
func quotas(cfg *config.Config, listener, user string) []quota {
	var qs []quota
	if l := findConfigListener(cfg, listener); l != nil && l.MaxMessagesPerHour > 0 {
		qs = append(qs, quota{key: "listener " + listener, who: fmt.Sprintf("listener %q", listener), limit: l.MaxMessagesPerHour})
	}
	for _, u := range cfg.Users {
		if u.Name == user && u.MaxMessagesPerHour > 0 {
			qs = append(qs, quota{key: "user " + user, who: fmt.Sprintf("user %q", user), limit: u.MaxMessagesPerHour})
		}
	}
	return qs
}

func refuseRate(q quota, wait time.Duration) *smtp.Refusal {
	return &smtp.Refusal{
		Code: 450, Enhanced: [3]int{4, 7, 1}, Reason: "rate_limit",
		Text: fmt.Sprintf("%s has sent %s within an hour, all it may (max_messages_per_hour): try again in %s",
			q.who, plural(q.limit, "mail"), plural(int((wait+time.Minute-1)/time.Minute), "minute")),
	}
}

func findConfigListener(cfg *config.Config, name string) *config.Listener {
	i := slices.IndexFunc(cfg.Listeners, func(l config.Listener) bool { return l.Name == name })
	if i < 0 {
		return nil
	}
	return &cfg.Listeners[i]
}

// checkRcpt asks what is known of a recipient before the mail is there.
func (in *intake) checkRcpt(listener, user, _, rcpt string) *smtp.Refusal {
	if r := in.suppressed(rcpt); r != nil {
		return r
	}
	return in.checkEightBit(listener, user, rcpt)
}

// checkEightBit refuses an 8-bit local part that no account can serve (RFC 6531 3.5), as far as that
// is known before the header: every route that could still take the recipient is asked.
func (in *intake) checkEightBit(listener, user, rcpt string) *smtp.Refusal {
	local, _ := envelope.Split(rcpt)
	p := in.now.Load()
	if envelope.IsASCII(local) || p.cfg.Delivery.SoftBounce {
		return nil
	}
	asked := false
	for _, r := range p.cfg.Routes {
		switch {
		case len(r.Listeners) > 0 && !slices.Contains(r.Listeners, listener),
			len(r.Users) > 0 && !slices.Contains(r.Users, user) && (user == "" || !slices.Contains(r.Users, "*")),
			len(r.Recipients) > 0 && !envelope.MatchAny(r.Recipients, rcpt):
			continue
		case len(r.RedirectAllTo) > 0:
			return nil // somebody else receives the mail
		}
		for _, name := range r.Accounts {
			if a := p.accounts[name]; a != nil {
				asked = true
				if a.Provider.Capabilities().UTF8Local {
					return nil
				}
			}
		}
	}
	if !asked {
		return nil // no route at all: the preflight says which is missing
	}
	return &smtp.Refusal{
		Code: 553, Enhanced: [3]int{5, 6, 7}, Reason: "eai",
		Text: "The address has characters other than ASCII before the @, and no account of this bridge can send to such addresses",
	}
}
