// Package smtpcall makes one SMTP or LMTP transaction of a provider's call and classifies the replies.
//
// Contract: a recipient is Accepted only by a 2xx reply that stands for him, Rejected only by a 5xx reply
// to him or to the message. Whatever breaks before the final dot was sent is Transient; only a
// missing answer to that dot is Ambiguous (RFC 5321 4.5.3.2.6, RFC 1047). Replies are bounded in size, the upload
// is limited by progress, not in all.
package smtpcall

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
	"golang.org/x/net/idna"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

// TLS is the policy of a connection.
type TLS uint8

// Policies. Certificates are checked in each.
const (
	Off      TLS = iota
	StartTLS     // required
	IfOffered
	Implicit
)

// Server is where transactions go to.
type Server struct {
	Provider string // error prefix
	Network  string // tcp or unix
	Addr     string // host:port, or a path
	Host     string // name in the certificate
	LMTP     bool
	TLS      TLS
	Config   *tls.Config // nil = defaults
	Hello    string      // our name
	User     string      // "" = no AUTH
	Password secret.String
	// Local: the other end is on this machine, a password may go there in clear.
	Local         bool
	DialTimeout   time.Duration // default 15 s
	Timeout       time.Duration // of each command, and of upload progress; default 60 s
	AnswerTimeout time.Duration // after the final dot; default 60 s
}

// maxReplies bounds what a server may say in one session.
const maxReplies = 1 << 20

// conn bounds replies, gives each write a deadline and remembers whether one failed.
type conn struct {
	net.Conn
	stall time.Duration
	mu    sync.Mutex
	read  int
	werr  error
}

var errTooMuch = errors.New("the server talks without end")

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.read += n; c.read > maxReplies {
		return 0, errTooMuch
	}
	return n, err
}

func (c *conn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.stall)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if err != nil {
		c.mu.Lock()
		c.werr = err
		c.mu.Unlock()
	}
	return n, err
}

func (c *conn) writeFailed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.werr != nil
}

// session is one connection that said hello.
type session struct {
	*gosmtp.Client
	conn *conn
	stop func() bool
}

func (s *session) close() {
	s.stop()
	s.Close()
}

func orElse(d, fallback time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return fallback
}

// Roots gives the system's certificate authorities and those of a PEM file.
func Roots(caFile string) (*x509.CertPool, error) { return safehttp.LoadRoots(caFile) }

// dial connects.
func (s *Server) dial(ctx context.Context) (*conn, error) {
	d := net.Dialer{Timeout: orElse(s.DialTimeout, 15*time.Second)}
	c, err := d.DialContext(ctx, s.Network, s.Addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, stall: orElse(s.Timeout, time.Minute)}, nil
}

// open connects, greets, starts TLS and logs in. Errors are *providers.Error.
func (s *Server) open(ctx context.Context, op string) (*session, error) {
	mode := s.TLS
	if mode == IfOffered {
		// go-smtp starts TLS only in a constructor, so what is offered has to be asked on a connection of its own.
		offered, err := s.offersTLS(ctx, op)
		if err != nil {
			return nil, err
		}
		mode = Off
		if offered {
			mode = StartTLS
		}
	}
	return s.connect(ctx, op, mode)
}

func (s *Server) offersTLS(ctx context.Context, op string) (bool, error) {
	probe, err := (&Server{
		Provider: s.Provider, Network: s.Network, Addr: s.Addr, Hello: s.Hello, DialTimeout: s.DialTimeout, Timeout: s.Timeout,
	}).connect(ctx, op, Off)
	if err != nil {
		return false, err
	}
	defer probe.close()
	offered, _ := probe.Extension("STARTTLS")
	_ = probe.Quit() // only politeness
	return offered, nil
}

func (s *Server) connect(ctx context.Context, op string, mode TLS) (*session, error) {
	c, err := s.dial(ctx)
	if err != nil {
		return nil, s.fail(op, providers.Transient, err)
	}
	sess := &session{conn: c, stop: context.AfterFunc(ctx, func() { c.Close() })}
	ok := false
	defer func() {
		if !ok {
			sess.stop()
			c.Close()
		}
	}()
	conf := &tls.Config{}
	if s.Config != nil {
		conf = s.Config.Clone()
	}
	conf.ServerName, conf.MinVersion = s.Host, max(conf.MinVersion, tls.VersionTLS12)
	switch {
	case mode == Implicit:
		tc := tls.Client(c, conf)
		hctx, cancel := context.WithTimeout(ctx, c.stall)
		err := tc.HandshakeContext(hctx)
		cancel()
		if err != nil {
			return nil, s.fail(op, providers.Transient, fmt.Errorf("TLS: %w", err))
		}
		sess.Client = gosmtp.NewClient(tc)
	case mode == StartTLS:
		// QUIRK: the constructor says EHLO localhost before TLS; our name follows inside it.
		if sess.Client, err = gosmtp.NewClientStartTLS(c, conf); err != nil {
			return nil, s.refused(ctx, op, "STARTTLS", err)
		}
	case s.LMTP:
		sess.Client = gosmtp.NewClientLMTP(c)
	default:
		sess.Client = gosmtp.NewClient(c)
	}
	sess.CommandTimeout = orElse(s.Timeout, time.Minute)
	sess.SubmissionTimeout = orElse(s.AnswerTimeout, time.Minute)
	if err := sess.Hello(s.Hello); err != nil {
		return nil, s.refused(ctx, op, "EHLO", err)
	}
	if s.User != "" {
		if mode == Off && !s.Local {
			return nil, s.fail(op, providers.Operator, errors.New("no TLS: the password is not sent in clear"))
		}
		var auth sasl.Client = sasl.NewPlainClient("", s.User, s.Password.Reveal())
		if !sess.SupportsAuth(sasl.Plain) && sess.SupportsAuth(sasl.Login) {
			auth = sasl.NewLoginClient(s.User, s.Password.Reveal())
		}
		if err := sess.Auth(auth); err != nil {
			return nil, s.refused(ctx, op, "AUTH", err)
		}
	}
	ok = true
	return sess, nil
}

// Check connects and logs in.
func (s *Server) Check(ctx context.Context) error {
	sess, err := s.open(ctx, "check")
	if err != nil {
		return err
	}
	defer sess.close()
	_ = sess.Quit() // only politeness
	return nil
}

func (s *Server) clean(text string) string {
	return event.Clean(secret.Redact(text, s.Password), event.MaxText)
}

// fail is an error of the whole call.
func (s *Server) fail(op string, kind providers.Kind, err error) *providers.Error {
	return &providers.Error{Provider: s.Provider, Op: op, Kind: kind, Msg: s.clean(err.Error()), Err: cause(err)}
}

// cause keeps only what errors.Is is asked for: texts stand in Msg, cleaned.
func cause(err error) error {
	for _, e := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return e
		}
	}
	return nil
}

// refused classifies an error before the first recipient: replies to the greeting, EHLO, STARTTLS and AUTH
// are about the account, never about the mail.
func (s *Server) refused(ctx context.Context, op, phase string, err error) *providers.Error {
	var reply *gosmtp.SMTPError
	if !errors.As(err, &reply) {
		return s.broken(ctx, op, phase, err)
	}
	e := s.fromReply(op, phase, reply)
	e.Kind = providers.Operator
	if reply.Code/100 == 4 {
		e.Kind = providers.Transient
	}
	return e
}

// broken is a connection that failed before the final dot.
func (s *Server) broken(ctx context.Context, op, phase string, err error) *providers.Error {
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	return s.fail(op, providers.Transient, fmt.Errorf("%s: %w", phase, err))
}

func (s *Server) fromReply(op, phase string, r *gosmtp.SMTPError) *providers.Error {
	return &providers.Error{Provider: s.Provider, Op: op, Code: fmt.Sprint(r.Code), Msg: s.clean(phase + ": " + replyText(r)), Status: status(r)}
}

func replyText(r *gosmtp.SMTPError) string {
	if st := status(r); st != "" {
		return fmt.Sprintf("%d %s %s", r.Code, st, r.Message)
	}
	return fmt.Sprintf("%d %s", r.Code, r.Message)
}

// status is the enhanced status of a reply (RFC 2034), "" without one or when its class contradicts the code.
func status(r *gosmtp.SMTPError) string {
	c := r.EnhancedCode
	if c[0] != r.Code/100 || c[1] < 0 || c[1] > 999 || c[2] < 0 || c[2] > 999 {
		return ""
	}
	return fmt.Sprintf("%d.%d.%d", c[0], c[1], c[2])
}

// reason reads a reject reason off a status: RFC 3463 3.2 for 5.1.x, 3.8 for 5.7.x.
func reason(st string) string {
	switch {
	case strings.HasPrefix(st, "5.1."):
		return event.ReasonInvalid
	case strings.HasPrefix(st, "5.7."):
		return event.ReasonBlocked
	}
	return event.ReasonOther
}

// queuedAs finds the queue id in the answer to the final dot of the usual servers.
var queuedAs = regexp.MustCompile(`(?i)\b(?:queued as|queued mail for delivery as|id=|saved as)\s*<?([A-Za-z0-9._-]{4,64})`)

// call is one transaction.
type call struct {
	s    *Server
	m    *translate.Mail
	sess *session
	out  []providers.RcptOutcome
	open []int // recipients that were taken at RCPT
}

// Deliver makes one transaction for m.
func (s *Server) Deliver(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	raw, err := m.Raw()
	if err != nil {
		return nil, s.fail("send", providers.Transient, err)
	}
	sess, err := s.open(ctx, "send")
	if err != nil {
		return nil, err
	}
	defer sess.close()
	c := &call{s: s, m: m, sess: sess, out: make([]providers.RcptOutcome, len(m.Rcpts))}
	if err := c.mail(ctx, raw.Size); err != nil {
		return nil, err
	}
	if err := c.rcpts(ctx); err != nil {
		return nil, err
	}
	if len(c.open) == 0 {
		_ = sess.Quit() // nothing was sent
		return &providers.Outcome{Rcpts: c.out}, nil
	}
	return c.data(ctx, raw)
}

func (c *call) has(ext string) bool {
	ok, _ := c.sess.Extension(ext)
	return ok
}

func (c *call) mail(ctx context.Context, size int64) error {
	from := c.m.Options.EnvelopeFrom
	opts := &gosmtp.MailOptions{Size: size, EnvelopeID: c.m.Env.EnvID}
	switch c.m.Env.Ret {
	case "FULL":
		opts.Return = gosmtp.DSNReturnFull
	case "HDRS":
		opts.Return = gosmtp.DSNReturnHeaders
	}
	utf8 := c.has("SMTPUTF8")
	if !utf8 {
		ascii, ok := toASCII(from)
		if !ok {
			e := c.s.fail("send", providers.Permanent, errors.New("the server does not take an internationalized sender address (no SMTPUTF8)"))
			e.Status = "5.6.7"
			return e
		}
		from = ascii
	}
	opts.UTF8 = utf8 && (c.m.Env.UTF8 || !envelope.IsASCII(from) || anyUTF8(c.m.Rcpts))
	err := c.sess.Mail(from, opts)
	if err == nil {
		return nil
	}
	var reply *gosmtp.SMTPError
	if !errors.As(err, &reply) {
		return c.s.broken(ctx, "send", "MAIL FROM", err)
	}
	e := c.s.fromReply("send", "MAIL FROM", reply)
	switch {
	case reply.Code == 530 || reply.Code == 534 || reply.Code == 535 || reply.Code == 538:
		e.Kind = providers.Operator // RFC 4954: log in first, or otherwise
	case reply.Code/100 == 5 && strings.HasPrefix(e.Status, "5.7."):
		e.Kind, e.Scope = providers.Operator, providers.ScopeDomain // the server does not let us send for this domain
	case reply.Code == 500 || reply.Code == 502 || reply.Code == 503 || reply.Code == 504:
		e.Kind = providers.Transient // about the dialogue, not about the mail
	case reply.Code/100 == 5:
		e.Kind = providers.Permanent
	default:
		e.Kind = providers.Transient
	}
	return e
}

func anyUTF8(list []envelope.Rcpt) bool {
	for _, r := range list {
		if !envelope.IsASCII(r.Addr) {
			return true
		}
	}
	return false
}

// toASCII writes the domain of an address in A-labels; false when that is not enough.
func toASCII(addr string) (string, bool) {
	if envelope.IsASCII(addr) {
		return addr, true
	}
	local, domain := envelope.Split(addr)
	a, err := idna.Lookup.ToASCII(domain)
	if err != nil || !envelope.IsASCII(local) {
		return "", false
	}
	return local + "@" + a, true
}

func (c *call) rcpts(ctx context.Context) error {
	utf8 := c.has("SMTPUTF8")
	for i, r := range c.m.Rcpts {
		c.out[i] = providers.RcptOutcome{Addr: r.Addr}
		addr := r.Addr
		if !utf8 {
			ascii, ok := toASCII(addr)
			if !ok {
				c.out[i].Verdict, c.out[i].Status, c.out[i].Reason = providers.Rejected, "5.6.7", event.ReasonOther
				c.out[i].Detail = "the server does not take an internationalized address (no SMTPUTF8)"
				continue
			}
			addr = ascii
		}
		opts := &gosmtp.RcptOptions{}
		for _, n := range r.Notify {
			opts.Notify = append(opts.Notify, gosmtp.DSNNotify(n))
		}
		if kind, orig, ok := strings.Cut(r.ORCPT, ";"); ok {
			switch t := gosmtp.DSNAddressType(strings.ToUpper(kind)); t {
			case gosmtp.DSNAddressTypeRFC822, gosmtp.DSNAddressTypeUTF8:
				opts.OriginalRecipientType, opts.OriginalRecipient = t, orig
			}
		}
		err := c.sess.Rcpt(addr, opts)
		if err == nil {
			c.open = append(c.open, i)
			continue
		}
		var reply *gosmtp.SMTPError
		if !errors.As(err, &reply) {
			return c.s.broken(ctx, "send", "RCPT TO", err)
		}
		switch reply.Code {
		case 421:
			e := c.s.fromReply("send", "RCPT TO", reply)
			e.Kind = providers.Transient
			return e
		case 530, 534, 535, 538:
			e := c.s.fromReply("send", "RCPT TO", reply)
			e.Kind = providers.Operator
			return e
		}
		c.reply(i, reply)
	}
	return nil
}

// reply settles a recipient by a refusal.
func (c *call) reply(i int, r *gosmtp.SMTPError) {
	o := &c.out[i]
	o.Status, o.Detail = status(r), c.s.clean(replyText(r))
	if r.Code/100 == 5 {
		o.Verdict, o.Reason = providers.Rejected, reason(o.Status)
		return
	}
	o.Verdict, o.Kind = providers.Deferred, providers.Transient
}

// unanswered is a failure that leaves the open recipients without an answer. Without other news it is an error of the whole call.
func (c *call) unanswered(e *providers.Error) (*providers.Outcome, error) {
	if len(c.open) == len(c.out) {
		return nil, e
	}
	for _, i := range c.open {
		c.out[i].Verdict, c.out[i].Kind, c.out[i].Detail = providers.Deferred, e.Kind, e.Msg
	}
	return &providers.Outcome{Rcpts: c.out}, nil
}

func (c *call) data(ctx context.Context, raw *translate.Body) (*providers.Outcome, error) {
	w, err := c.sess.Data()
	if err != nil {
		var reply *gosmtp.SMTPError
		if !errors.As(err, &reply) {
			return c.unanswered(c.s.broken(ctx, "send", "DATA", err))
		}
		for _, i := range c.open {
			c.reply(i, reply)
		}
		return &providers.Outcome{Rcpts: c.out}, nil
	}
	body := raw.Open()
	n, err := io.Copy(w, body)
	body.Close()
	if err == nil && n != raw.Size {
		err = fmt.Errorf("stored content has %d bytes instead of %d", n, raw.Size)
	}
	if err != nil {
		// The connection is dropped without the final dot, so the server throws away what it has.
		return c.unanswered(c.s.broken(ctx, "send", "message", err))
	}
	if c.s.LMTP {
		return c.lmtp(ctx, w)
	}
	resp, err := w.CloseWithResponse()
	var reply *gosmtp.SMTPError
	switch {
	case err == nil:
		out := &providers.Outcome{Rcpts: c.out}
		if m := queuedAs.FindStringSubmatch(resp.StatusText); m != nil {
			out.MessageID = c.s.clean(m[1])
		}
		for _, i := range c.open {
			c.out[i].Verdict, c.out[i].Detail = providers.Accepted, c.s.clean("250 "+resp.StatusText)
		}
		_ = c.sess.Quit() // the mail is taken whatever comes now
		return out, nil
	case errors.As(err, &reply):
		for _, i := range c.open {
			c.reply(i, reply)
		}
		_ = c.sess.Quit()
		return &providers.Outcome{Rcpts: c.out}, nil
	}
	return c.unanswered(c.lost(ctx, err))
}

// lost is a failure at the final dot: Ambiguous, unless it could not even be written.
func (c *call) lost(ctx context.Context, err error) *providers.Error {
	e := c.s.broken(ctx, "send", "answer to the message", err)
	if !c.sess.conn.writeFailed() {
		e.Kind = providers.Ambiguous
	}
	return e
}

// lmtp reads one answer per recipient (RFC 2033 4.2).
func (c *call) lmtp(ctx context.Context, w *gosmtp.DataCommand) (*providers.Outcome, error) {
	answers, err := w.CloseWithLMTPResponse()
	var refusals gosmtp.LMTPDataError
	errors.As(err, &refusals)
	missing := c.open[:0:0]
	for _, i := range c.open {
		addr := c.m.Rcpts[i].Addr
		if !c.has("SMTPUTF8") {
			addr, _ = toASCII(addr)
		}
		switch {
		case answers[addr] != nil:
			c.out[i].Verdict, c.out[i].Detail = providers.Accepted, c.s.clean("250 "+answers[addr].StatusText)
		case refusals[addr] != nil:
			c.reply(i, refusals[addr])
		default:
			missing = append(missing, i)
		}
	}
	if c.open = missing; len(missing) > 0 {
		return c.unanswered(c.lost(ctx, err))
	}
	_ = c.sess.Quit()
	return &providers.Outcome{Rcpts: c.out}, nil
}
