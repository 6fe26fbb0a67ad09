// Package smtp hands mail to a smarthost by SMTP (RFC 5321), as it is: the raw message with its envelope.
//
// Each call is one connection and one transaction. Replies are classified per recipient; only a missing
// answer to the final dot is Ambiguous.
package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"

	"smtpbridge/providers"
	"smtpbridge/providers/internal/smtpcall"
	"smtpbridge/translate"
)

const name = "smtp"

// Info describes the provider.
var Info = providers.Info{
	Name: name, Title: "SMTP smarthost", DocURL: "https://www.rfc-editor.org/rfc/rfc5321", Local: true, Concurrent: 5,
	New: func(o providers.Options) (providers.Provider, error) { return New(o) },
}

// settings is [account.options].
type settings struct {
	TLS    string `toml:"tls"`  // off | starttls | if-offered | implicit
	User   string `toml:"user"` // AUTH; the password is the account's api_key
	CAFile string `toml:"ca_file"`
}

type provider struct{ server *smtpcall.Server }

var (
	_ providers.Provider = (*provider)(nil)
	_ providers.Checker  = (*provider)(nil)
)

// New makes the provider of an account with a base_url of the form smtp://[user@]host[:port][?tls=MODE] or smtps://host.
func New(o providers.Options) (providers.Provider, error) {
	var s settings
	if err := o.DecodeOptions(&s); err != nil {
		return nil, err
	}
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Hostname() == "" || u.Scheme != "smtp" && u.Scheme != "smtps" || u.Path != "" && u.Path != "/" {
		return nil, errors.New("base_url must be of the form smtp://host:25 or smtps://host:465")
	}
	if _, ok := u.User.Password(); ok {
		return nil, errors.New("base_url holds a password: use api_key_file, and option user for the name")
	}
	for k, v := range u.Query() {
		switch k {
		case "tls":
			s.TLS = v[0]
		case "user":
			s.User = v[0]
		default:
			return nil, fmt.Errorf("base_url has the unknown parameter %q: tls and user are known", k)
		}
	}
	if s.User == "" && u.User != nil {
		s.User = u.User.Username()
	}
	srv := &smtpcall.Server{
		Provider: name, Network: "tcp", Host: u.Hostname(), Hello: hello(o.Hostname), User: s.User, Password: o.APIKey,
		Local: loopback(u.Hostname()), Config: &tls.Config{MinVersion: tls.VersionTLS12},
	}
	port := "25"
	switch {
	case u.Scheme == "smtps" && s.TLS == "":
		s.TLS = "implicit"
	case u.Scheme == "smtps" && s.TLS != "implicit":
		return nil, errors.New("smtps:// is implicit TLS: leave tls out")
	case s.TLS == "" && srv.Local:
		s.TLS = "if-offered"
	case s.TLS == "":
		s.TLS = "starttls"
	}
	switch s.TLS {
	case "off":
		srv.TLS = smtpcall.Off
	case "starttls":
		srv.TLS = smtpcall.StartTLS
	case "if-offered":
		srv.TLS = smtpcall.IfOffered
	case "implicit":
		srv.TLS, port = smtpcall.Implicit, "465"
	default:
		return nil, fmt.Errorf("tls is %q: use off, starttls, if-offered or implicit", s.TLS)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	srv.Addr = net.JoinHostPort(u.Hostname(), port)
	switch {
	case s.User != "" && o.APIKey.Empty():
		return nil, errors.New("user is set, but there is no password: set api_key_file, api_key or api_key_env")
	case s.User != "" && srv.TLS == smtpcall.Off && !srv.Local:
		return nil, errors.New("user is set with tls = \"off\": the password would travel in clear")
	}
	if s.CAFile != "" {
		if srv.Config.RootCAs, err = smtpcall.Roots(s.CAFile); err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
	}
	return &provider{srv}, nil
}

func hello(hostname string) string {
	if hostname == "" {
		return "localhost"
	}
	return hostname
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

// Capabilities: everything is kept.
func (p *provider) Capabilities() translate.Capabilities { return smtpcall.Capabilities() }

// Send makes one transaction.
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	return p.server.Deliver(ctx, m)
}

// Check connects and logs in.
func (p *provider) Check(ctx context.Context) error { return p.server.Check(ctx) }
