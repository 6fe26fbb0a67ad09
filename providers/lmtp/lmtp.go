// Package lmtp delivers mail to a local mail store by LMTP (RFC 2033): Dovecot, Cyrus, Postfix's lmtp side. The
// server answers for each recipient, and so does the outcome.
package lmtp

import (
	"context"
	"errors"
	"net"
	"net/url"

	"smtpbridge/providers"
	"smtpbridge/providers/internal/smtpcall"
	"smtpbridge/translate"
)

const name = "lmtp"

// Info describes the provider.
var Info = providers.Info{
	Name: name, Title: "LMTP mail store", DocURL: "https://www.rfc-editor.org/rfc/rfc2033", Local: true, Concurrent: 5,
	New: func(o providers.Options) (providers.Provider, error) { return New(o) },
}

type provider struct{ server *smtpcall.Server }

var (
	_ providers.Provider = (*provider)(nil)
	_ providers.Checker  = (*provider)(nil)
)

// New makes the provider of an account with a base_url of the form lmtp:///path/to/socket or lmtp://host:port.
func New(o providers.Options) (providers.Provider, error) {
	var none struct{}
	if err := o.DecodeOptions(&none); err != nil {
		return nil, err
	}
	bad := errors.New("base_url must be of the form lmtp:///run/dovecot/lmtp or lmtp://host:24")
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Scheme != "lmtp" || u.RawQuery != "" || u.User != nil {
		return nil, bad
	}
	s := &smtpcall.Server{Provider: name, LMTP: true, Hello: o.Hostname, Local: true}
	if s.Hello == "" {
		s.Hello = "localhost"
	}
	switch {
	case u.Host == "" && len(u.Path) > 1:
		s.Network, s.Addr = "unix", u.Path
	case u.Hostname() != "" && (u.Path == "" || u.Path == "/"):
		port := u.Port()
		if port == "" {
			port = "24" // RFC 2033 5: never 25
		}
		s.Network, s.Addr = "tcp", net.JoinHostPort(u.Hostname(), port)
	default:
		return nil, bad
	}
	return &provider{s}, nil
}

// Capabilities: everything is kept.
func (p *provider) Capabilities() translate.Capabilities { return smtpcall.Capabilities() }

// Send makes one transaction.
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	return p.server.Deliver(ctx, m)
}

// Check connects and says LHLO.
func (p *provider) Check(ctx context.Context) error { return p.server.Check(ctx) }
