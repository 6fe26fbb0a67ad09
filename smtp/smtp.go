// Package smtp is the bridge's SMTP edge: listeners, sessions, STARTTLS, AUTH and limits,
// built on go-smtp, of whose server it is the only user.
//
// Contract:
//   - A 250 after the message means Transaction.Commit returned nil. Without it nothing is kept:
//     every other way out of a transaction ends in Abort.
//   - Exactly one reply per command. Only this package maps errors to replies: a *Refusal is
//     answered as it says, every other error is 451 4.3.0 (or 452 4.3.1, see NoSpace) with a
//     fixed text; its details go to the log with the envelope's id.
//   - Only CRLF.CRLF ends a message, and after a fault while a message is read the connection
//     is closed: no byte of a message ever runs as a command.
//   - Memory and time per session are bounded whatever the client sends.
//
// How it is put together: every connection has a gate (gate.go), a net.Conn that stands between
// the socket and go-smtp. It hands go-smtp one well-formed command at a time, answers what is
// wrong itself, frames messages, keeps all time limits and owns TLS. The session (session.go)
// holds the policy and reads the message from the gate.
package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
)

// Intake takes mails over from the server.
type Intake interface {
	// Begin starts the taking of one mail. It is called when the first bytes of a message
	// with an acceptable header have arrived.
	Begin(ctx context.Context) (Transaction, error)
}

// Transaction receives one mail. Exactly one of Commit and Abort ends it; after a failed
// Commit nothing may be left of the mail.
type Transaction interface {
	// Write takes the bytes as they will be stored: our Received field, then the message
	// with CRLF line ends.
	io.Writer
	// Commit checks the mail and makes it durable; nil is answered with 250. Its context is
	// not cancelled when the client goes away (RFC 1047), only when a shutdown runs out of
	// time; ClientGone tells the former. A shutdown waits for Commit to return.
	Commit(ctx context.Context, e envelope.Envelope) error
	Abort()
}

// RcptRefuser is a Transaction that can refuse some recipients of a mail and take the others.
// It is asked after Commit, and only over LMTP, where each recipient gets a reply of its own
// (RFC 2033 4.2). Over SMTP, where there is one reply for all, the Intake itself must see to it
// that the sender hears of such recipients.
type RcptRefuser interface {
	Transaction
	// RcptRefusals gives refusals by recipient, spelt as in the envelope. A recipient without
	// one is taken, or gets the *Refusal that Commit returned.
	RcptRefusals() map[string]*Refusal
}

// Refusal is an error with the reply the client shall get. Text is cut and escaped on its way out.
type Refusal struct {
	Code     int    // 400-599
	Enhanced [3]int // RFC 3463; zero: Code's class with 0.0
	Text     string
	Lines    []string // Text in several lines, for a reply to DATA or the last BDAT of SMTP; nil: Text is one line
	Reason   string   // short word for log and metrics; default "refused"
}

func (r *Refusal) Error() string {
	return fmt.Sprintf("%d %d.%d.%d %s", r.Code, r.Enhanced[0], r.Enhanced[1], r.Enhanced[2], r.Text)
}

// NoSpace is implemented by errors of an Intake that mean a full disk: they are answered
// 452 4.3.1 instead of 451 4.3.0.
type NoSpace interface{ NoSpace() bool }

// TLSMode says when a listener speaks TLS.
type TLSMode string

// The TLS modes. The zero value is TLSOff.
const (
	TLSOff      TLSMode = "off"
	TLSStartTLS TLSMode = "starttls"
	TLSImplicit TLSMode = "implicit"
)

// AuthMode says whether a listener offers or demands AUTH.
type AuthMode string

// The AUTH modes. The zero value is AuthOff.
const (
	AuthOff      AuthMode = "off"
	AuthOptional AuthMode = "optional"
	AuthRequired AuthMode = "required"
)

// What BareNewlines can be.
const (
	Normalize = "normalize" // a bare LF or CR is taken as CRLF, NUL as a space; default
	Reject    = "reject"    // 550 5.5.2
)

// Listener is one socket and the rules of its sessions. Zero limits take the defaults.
type Listener struct {
	Name    string // unique; in the envelope, logs and metrics
	Address string // "host:port", "unix:/path" or "systemd:NAME"

	TLS       TLSMode
	TLSConfig *tls.Config // needed unless TLS is off
	MinTLS    uint16      // default: TLSConfig's, else TLS 1.2

	Auth         AuthMode
	InsecureAuth bool           // offer AUTH without TLS to every peer; else only where TLS is off and the peer is local or in Allow
	Allow        []netip.Prefix // networks that may send without AUTH; a unix socket's peers always may

	MaxMessageSize      int64 // default 25 MiB, at most 2 GiB
	MaxRecipients       int   // default 1000
	MaxConnections      int   // default 500
	MaxConnectionsPerIP int   // default 50; an IPv6 peer counts by its /64
	MaxLine             int64 // of the body, default: MaxMessageSize
	MaxCommand          int   // a command line, default 4096, at most 12288 (always allowed for AUTH, RFC 4954 4)
	MaxErrors           int   // wrong commands per session, default 10
	MinRate             int64 // bytes per second of a message, averaged over 60 s of reading; default 500, negative: no limit

	IdleTimeout  time.Duration // for a whole command, default 5m
	DataTimeout  time.Duration // without a byte of a message, default 5m
	DataTotal    time.Duration // for a whole message, default 30m
	WriteTimeout time.Duration // for a reply, default 1m
	GreetWait    time.Duration // wait so long before the greeting and refuse who talks first; default 0: off

	BareNewlines string              // Normalize or Reject
	AppendDomain string              // qualifies bare addresses; "": they need an alias
	Aliases      map[string][]string // by local part (for bare addresses, ours and AppendDomain's) or by whole address
	DSN          bool                // offer DSN (RFC 3461)
	LMTP         bool                // speak LMTP (RFC 2033); see RcptRefuser
	SocketMode   os.FileMode         // of a unix socket, 0: by umask
}

// User may log in. Hash or Password is set.
type User struct {
	Name     string
	Hash     string // argon2id in PHC form, see HashPassword
	Password secret.String
	Senders  []string // for the Intake's check of the header From; not used here
}

// Metrics are called when something is counted. Any may be nil; they must not block.
type Metrics struct {
	Accepted func(listener string, size int64)
	Refused  func(listener, reason string)
	Sessions func(listener string, open int) // after each change
	AuthFail func(listener string)
}

// Config is what a Server needs.
type Config struct {
	Hostname  string // greeting, Received, Message-ID
	Listeners []Listener
	Users     []User
	Intake    Intake

	// CheckSender and CheckRcpt, when set, are asked after syntax, relay and AUTH rules.
	// user is "" without AUTH. A nil *Refusal lets the address pass.
	CheckSender func(listener, user, from string) *Refusal
	CheckRcpt   func(listener, user, from, rcpt string) *Refusal

	Log           *slog.Logger
	HideAddresses bool // no mail addresses in log lines above debug
	Now           func() time.Time
	Metrics       Metrics

	// Listen opens a socket, default net.Listen. Activated holds the sockets that systemd
	// passed, by their FileDescriptorName.
	Listen    func(network, address string) (net.Listener, error)
	Activated map[string][]net.Listener
}

const maxMessage = 2 << 30 // go-smtp reads SIZE and BDAT lengths as 32 bits

func orDefault[T comparable](p *T, def T) {
	var zero T
	if *p == zero {
		*p = def
	}
}

// normalise fills defaults and reports everything that is wrong.
func (c *Config) normalise() error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Hostname == "" || strings.ContainsAny(c.Hostname, " \t\r\n<>") {
		fail("hostname %q cannot be used in a greeting", c.Hostname)
	}
	if c.Intake == nil {
		fail("no intake")
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Listen == nil {
		c.Listen = net.Listen
	}
	seen := map[string]bool{}
	c.Listeners = append([]Listener(nil), c.Listeners...)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		if l.Name == "" || seen[l.Name] {
			fail("listener %d: the name %q is empty or used twice", i, l.Name)
		}
		seen[l.Name] = true
		if err := l.normalise(len(c.Users)); err != nil {
			errs = append(errs, fmt.Errorf("listener %s: %w", l.Name, err))
		}
	}
	names := map[string]bool{}
	for _, u := range c.Users {
		switch {
		case u.Name == "" || names[u.Name]:
			fail("user %q: the name is empty or used twice", u.Name)
		case (u.Hash == "") == u.Password.Empty():
			fail("user %s: exactly one of password and password hash is needed", u.Name)
		case u.Hash != "":
			if _, err := parseHash(u.Hash); err != nil {
				fail("user %s: %w", u.Name, err)
			}
		}
		names[u.Name] = true
	}
	return errors.Join(errs...)
}

func (l *Listener) normalise(users int) error {
	orDefault(&l.TLS, TLSOff)
	orDefault(&l.Auth, AuthOff)
	orDefault(&l.MaxMessageSize, 25<<20)
	orDefault(&l.MaxRecipients, 1000)
	orDefault(&l.MaxConnections, 500)
	orDefault(&l.MaxConnectionsPerIP, 50)
	orDefault(&l.MaxLine, l.MaxMessageSize)
	orDefault(&l.MaxCommand, 4096)
	orDefault(&l.MaxErrors, 10)
	orDefault(&l.MinRate, 500)
	orDefault(&l.IdleTimeout, 5*time.Minute)
	orDefault(&l.DataTimeout, 5*time.Minute)
	orDefault(&l.DataTotal, 30*time.Minute)
	orDefault(&l.WriteTimeout, time.Minute)
	orDefault(&l.BareNewlines, Normalize)
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch l.TLS {
	case TLSOff:
	case TLSStartTLS, TLSImplicit:
		if l.TLSConfig == nil {
			fail("tls %s needs a certificate", l.TLS)
			break
		}
		l.TLSConfig = l.TLSConfig.Clone()
		orDefault(&l.MinTLS, l.TLSConfig.MinVersion)
		orDefault(&l.MinTLS, tls.VersionTLS12)
		l.TLSConfig.MinVersion = l.MinTLS
	default:
		fail("unknown tls mode %q", l.TLS)
	}
	switch l.Auth {
	case AuthOff, AuthOptional:
	case AuthRequired:
		if users == 0 {
			fail("auth is required, but there is no user")
		}
	default:
		fail("unknown auth mode %q", l.Auth)
	}
	if l.BareNewlines != Normalize && l.BareNewlines != Reject {
		fail("unknown bare_newlines %q", l.BareNewlines)
	}
	// RFC 5321 4.5.3.1.4: a command line has 512 octets; parameters of extensions add to it.
	if l.MaxCommand < 512 || l.MaxCommand > maxAuthLine {
		fail("a command line needs between 512 and %d bytes", maxAuthLine)
	}
	// RFC 5321 4.5.3.1.6: a text line has up to 1000 octets.
	if l.MaxLine < 1000 {
		fail("a body line needs at least 1000 bytes")
	}
	if l.MaxMessageSize < 0 || l.MaxMessageSize > maxMessage {
		fail("the message size limit must be between 1 byte and 2 GiB")
	}
	if min(l.MaxRecipients, l.MaxConnections, l.MaxConnectionsPerIP, l.MaxErrors) < 0 ||
		min(l.IdleTimeout, l.DataTimeout, l.DataTotal, l.WriteTimeout, l.GreetWait) < 0 {
		fail("a limit is negative")
	}
	if l.AppendDomain != "" {
		if err := envelope.ValidateAddr("x@" + l.AppendDomain); err != nil {
			fail("append_domain %q: %w", l.AppendDomain, err)
		}
	}
	for name, to := range l.Aliases {
		if len(to) == 0 {
			fail("alias %q leads nowhere", name)
		}
		for _, a := range to {
			if isBare(a) {
				if _, ok := l.Aliases[a]; ok || l.AppendDomain != "" {
					continue
				}
			}
			if err := envelope.ValidateAddr(a); err != nil {
				fail("alias %q: %q: %w", name, a, err)
			}
		}
	}
	return errors.Join(errs...)
}
