package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"smtpbridge/event"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	smtpeter "smtpbridge/providers/smtpeter/twin"
)

// demoESP is what stands for the ESP in a demo: the built-in sandbox, which reports by itself, or the twin of an ESP's API
// with its own form of requests, keys and signed webhooks.
type demoESP struct {
	words   string                // for people
	account string                // the lines of [[account]] but its name, and further tables
	handler http.Handler          // the API; nil: the sandbox's own
	native  map[event.Kind]string // how the ESP calls what it reports
	mails   func() []demoReport   // what was accepted so far, in order
	dns     func(net.PacketConn) error
}

// demoReport lets an ESP report about one recipient of a mail it accepted.
type demoReport struct {
	rcpt string
	post func(ctx context.Context, hook, native string) (status int, err error)
}

// demoKey and demoSecret are made up: nothing but the twin in this process knows them.
const (
	demoKey    = "demo-key-of-this-process"
	demoSecret = "demo-secret-of-this-process"
)

// demoProviders are the values of --provider.
var demoProviders = []string{"sandbox", "maileroo", "mailersend", "mailpace", "mandrill", "smtpeter"}

func newDemoESP(provider string) (*demoESP, error) {
	words := "a twin of the API of " + provider + " is its ESP"
	block := func(more string) string {
		return fmt.Sprintf("provider = %q\napi_key = %q\n%s\n", provider, demoKey, more)
	}
	secret := func(s string) string { return block(fmt.Sprintf("webhook_secret = %q", s)) }
	switch provider {
	case "sandbox":
		return &demoESP{
			words:   "the built-in sandbox is its ESP",
			account: fmt.Sprintf("provider = \"sandbox\"\nwebhook_secret = %q\n", demoSecret),
			native:  map[event.Kind]string{event.Delivered: "", event.Bounced: "", event.Deferred: "", event.Complained: ""},
		}, nil
	case "maileroo":
		tw := maileroo.New(maileroo.Options{Key: demoKey, Secret: demoSecret})
		return &demoESP{
			words: words, account: secret(demoSecret), handler: tw,
			native: map[event.Kind]string{event.Delivered: "delivered", event.Deferred: "deferred", event.Bounced: "failed", event.Complained: "complained"},
			mails: func() (out []demoReport) {
				for _, m := range tw.Mails() {
					for _, rcpt := range m.Rcpts() {
						out = append(out, demoReport{rcpt, func(ctx context.Context, hook, native string) (int, error) {
							return tw.Post(ctx, hook, native, m, rcpt)
						}})
					}
				}
				return out
			},
		}, nil
	case "mailersend":
		tw := mailersend.New(mailersend.Options{Token: demoKey, Secret: demoSecret})
		return &demoESP{
			words: words, account: secret(demoSecret), handler: tw,
			native: map[event.Kind]string{event.Delivered: "delivered", event.Deferred: "deferred", event.Bounced: "hard_bounced", event.Complained: "spam_complaint"},
			mails: func() (out []demoReport) {
				for _, m := range tw.Mails() {
					for _, rcpt := range m.Rcpts() {
						out = append(out, demoReport{rcpt, func(ctx context.Context, hook, native string) (int, error) {
							r, err := tw.Webhook(ctx, hook, native, m, rcpt, nil, time.Now())
							if err != nil {
								return 0, err
							}
							return tw.Post(r)
						}})
					}
				}
				return out
			},
		}, nil
	case "mailpace":
		tw := mailpace.New(mailpace.Options{Token: demoKey})
		return &demoESP{
			words: words, account: secret(tw.PublicKey()), handler: tw,
			native: map[event.Kind]string{event.Delivered: "delivered", event.Deferred: "deferred", event.Bounced: "bounced"},
			mails: func() (out []demoReport) {
				for _, m := range tw.Mails() {
					// One stream of events for a call, whatever its number of recipients.
					out = append(out, demoReport{slices.Concat(m.To, m.Cc, m.Bcc)[0], func(ctx context.Context, hook, native string) (int, error) {
						return tw.Post(ctx, hook, native, m)
					}})
				}
				return out
			},
		}, nil
	case "mandrill":
		tw := mandrill.New(mandrill.Options{Key: demoKey})
		return &demoESP{
			words: words, account: secret(tw.WebhookKey()), handler: tw,
			native: map[event.Kind]string{event.Delivered: "delivered", event.Deferred: "deferral", event.Bounced: "hard_bounce", event.Complained: "spam"},
			mails: func() (out []demoReport) {
				for _, m := range tw.Mails() {
					for _, r := range m.Rcpts {
						out = append(out, demoReport{r.Email, func(ctx context.Context, hook, native string) (int, error) {
							return tw.Post(ctx, hook, mandrill.Event(native, m, r, time.Now(), false))
						}})
					}
				}
				return out
			},
		}, nil
	case "smtpeter":
		tw := smtpeter.New(smtpeter.Options{Token: demoKey})
		return &demoESP{
			words: words, account: block("[account.options]\nenvironment = \"1234\""), handler: tw, dns: tw.ServeDNS,
			native: map[event.Kind]string{event.Delivered: "delivery", event.Bounced: "failure"},
			mails: func() (out []demoReport) {
				for _, m := range tw.Mails() {
					for i, rcpt := range m.Recipients {
						out = append(out, demoReport{rcpt, func(ctx context.Context, hook, native string) (int, error) {
							var more map[string]string
							if native == "failure" {
								more = map[string]string{"code": "550", "extended": "5.1.1", "state": "rcptto", "description": "no such user"}
							}
							return tw.Post(ctx, hook, smtpeter.JSON, native, m, i, more)
						}})
					}
				}
				return out
			},
		}, nil
	}
	return nil, fmt.Errorf("--provider %q is not one of %s", provider, strings.Join(demoProviders, ", "))
}

// demoLife is what becomes of mail to an address, by its local part.
func demoLife(rcpt string) []event.Kind {
	local, _, _ := strings.Cut(rcpt, "@")
	switch local {
	case "bounce":
		return []event.Kind{event.Bounced}
	case "defer":
		return []event.Kind{event.Deferred, event.Delivered}
	case "complaint":
		return []event.Kind{event.Delivered, event.Complained}
	}
	return []event.Kind{event.Delivered}
}

// demoPause is the time between two things an ESP does, so that a person can follow.
const demoPause = 200 * time.Millisecond

// report posts webhooks about whatever the twin accepts, until ctx ends.
func (e *demoESP) report(ctx context.Context, hook string) error {
	for done := 0; ; {
		reports := e.mails()
		for _, r := range reports[done:] {
			for _, kind := range demoLife(r.rcpt) {
				native, ok := e.native[kind]
				if !ok {
					continue
				}
				if err := pause(ctx, demoPause); err != nil {
					return nil
				}
				status, err := r.post(ctx, hook, native)
				if err == nil && status != http.StatusOK {
					err = fmt.Errorf("the bridge answered %d to the webhook %s", status, native)
				}
				if err != nil && ctx.Err() == nil {
					return err
				}
			}
		}
		done = len(reports)
		if pause(ctx, demoPause) != nil {
			return nil
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// serve runs the twin's API and, for an ESP whose keys are in DNS, its name server. It returns the lines of the
// configuration that lead there, and what ends it.
func (e *demoESP) serve() (lines string, tables string, stop func() error, err error) {
	if e.handler == nil {
		return "", "", func() error { return nil }, nil
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", "", nil, err
	}
	srv := &http.Server{Handler: e.handler, ReadHeaderTimeout: 10 * time.Second}
	go srv.Serve(ln) // ends with the listener
	lines = fmt.Sprintf("base_url = \"http://%s\"\n", ln.Addr())
	stop = srv.Close
	if e.dns != nil {
		conn, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			return "", "", nil, errors.Join(err, srv.Close())
		}
		go e.dns(conn) // ends with the socket
		tables = fmt.Sprintf("[dns]\nserver = %q\n", conn.LocalAddr())
		stop = func() error { return errors.Join(srv.Close(), conn.Close()) }
	}
	return lines, tables, stop, nil
}
