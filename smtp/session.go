package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"

	"smtpbridge/envelope"
)

// session is the policy of one SMTP session: who may send what to whom. go-smtp calls it from
// the gate's goroutine.
//
// Every method returns nil or a bare *gosmtp.SMTPError: go-smtp answers any other error, even
// one that wraps a 451, with 554 and the error's text.
type session struct {
	g *gate

	env   envelope.Envelope // of the running mail
	given int               // RCPT commands taken
	first string            // what the first one said, for Received
	seen  map[string]bool   // recipients by envelope.Fold
	lmtp  []lmtpRcpt        // one for each RCPT command taken, over LMTP only
}

// lmtpRcpt is what one RCPT command of LMTP named; it gets one reply.
type lmtpRcpt struct {
	path  string   // as spelt and qualified
	addrs []string // in the envelope: more than one, or none of its own spelling, by an alias
}

var (
	_ gosmtp.Session     = (*session)(nil)
	_ gosmtp.AuthSession = (*session)(nil)
)

var (
	errPanicked = &gosmtp.SMTPError{Code: 421, EnhancedCode: gosmtp.EnhancedCode{4, 3, 0}, Message: "Internal error, closing connection"}
	errLost     = &gosmtp.SMTPError{Code: 421, EnhancedCode: gosmtp.EnhancedCode{4, 4, 2}, Message: "Message not received whole"}
	errOurs     = &Refusal{Code: 451, Enhanced: [3]int{4, 3, 0}, Text: "Cannot take the mail at the moment, try again later", Reason: reasonIntake}
	errNoSpace  = &Refusal{Code: 452, Enhanced: [3]int{4, 3, 1}, Text: "No space for the mail at the moment, try again later", Reason: reasonNoSpace}
)

func newSession(g *gate) *session { return &session{g: g, seen: map[string]bool{}} }

// guard turns a panic of anything behind the session into 421 for this session alone.
func (s *session) guard(f func() error) (err error) {
	defer func() {
		if v := recover(); v != nil {
			s.g.log.Error(logPanic, "err", clip(fmt.Sprint(v)), "stack", string(debug.Stack()))
			s.g.refused(reasonPanic)
			err = errPanicked
		}
	}()
	return f()
}

// reject logs and counts a refusal and returns what go-smtp shall answer.
func (s *session) reject(r *Refusal, attrs ...slog.Attr) *gosmtp.SMTPError {
	reason := r.Reason
	if reason == "" {
		reason = reasonRefused
	}
	e := r.smtpError()
	reply := fmt.Sprintf("%d %s", e.Code, e.Message)
	if s.g.gen.cfg.HideAddresses { // a refusal's text may name one
		reply = fmt.Sprint(e.Code)
	}
	attrs = append([]slog.Attr{slog.String("reason", reason), slog.String("reply", reply)}, attrs...)
	if s.g.user != "" {
		attrs = append(attrs, s.g.gen.cfg.userAttr(s.g.user))
	}
	s.g.log.LogAttrs(context.Background(), slog.LevelInfo, logReject, attrs...)
	s.g.refused(reason)
	return e
}

// Reset forgets the running mail.
func (s *session) Reset() {
	s.env, s.given, s.first, s.seen, s.lmtp = envelope.Envelope{}, 0, "", map[string]bool{}, nil
}

// Logout is the end of the session.
func (s *session) Logout() error { return nil }

// Mail starts a mail. The address is the gate's: go-smtp's has lost its quotes.
func (s *session) Mail(_ string, o *gosmtp.MailOptions) error {
	return s.guard(func() error {
		g, from := s.g, s.g.path
		cfg := g.gen.cfg
		if r := s.mayRelay(); r != nil {
			return s.reject(r, cfg.addrAttr("from", from))
		}
		if len(o.EnvelopeID) > 100 { // RFC 3461 5.4
			return s.reject(&Refusal{Code: 501, Enhanced: [3]int{5, 5, 4}, Text: "ENVID is longer than 100 characters"})
		}
		if cfg.CheckSender != nil {
			if r := cfg.CheckSender(g.l.Name, g.user, from); r != nil {
				return s.reject(r, cfg.addrAttr("from", from))
			}
		}
		s.Reset()
		s.env = envelope.Envelope{
			From: from, EnvID: o.EnvelopeID, Ret: string(o.Return), UTF8: o.UTF8, EightBit: o.Body == gosmtp.Body8BitMIME,
			Listener: g.l.Name, Peer: g.peer.String(), Helo: strings.ToValidUTF8(g.helo, "?"), AuthUser: g.user,
		}
		return nil
	})
}

// mayRelay refuses whom neither AUTH nor a network lets send.
func (s *session) mayRelay() *Refusal {
	g := s.g
	switch {
	case g.user != "" || g.l.Auth != AuthRequired && g.peer.in(g.l.Allow):
		return nil
	case g.authOffered():
		return &Refusal{Code: 530, Enhanced: [3]int{5, 7, 0}, Text: "Authentication required", Reason: reasonRelay}
	case g.authPossible() && g.l.TLS == TLSStartTLS:
		return &Refusal{Code: 530, Enhanced: [3]int{5, 7, 0}, Text: "Must issue a STARTTLS command and authenticate first", Reason: reasonRelay}
	default:
		return &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: "This host may not send through this server", Reason: reasonRelay}
	}
}

// Rcpt adds a recipient, or what its alias stands for.
func (s *session) Rcpt(_ string, o *gosmtp.RcptOptions) error {
	return s.guard(func() error {
		g, to := s.g, s.g.path
		cfg := g.gen.cfg
		orcpt, r := originalRecipient(o)
		if r != nil {
			return s.reject(r)
		}
		addrs, aliased := g.l.expand(cfg.Hostname, to)
		if aliased && orcpt == "" {
			orcpt = "rfc822;" + to // RFC 3461 5.2.7.3 keeps the first address through an alias
			if !envelope.IsASCII(to) {
				orcpt = "utf-8;" + to
			}
		}
		var notify []string
		for _, n := range o.Notify {
			notify = append(notify, string(n))
		}
		var fresh []envelope.Rcpt
		for _, a := range addrs {
			if s.seen[envelope.Fold(a)] {
				continue
			}
			if cfg.CheckRcpt != nil {
				if r := cfg.CheckRcpt(g.l.Name, g.user, s.env.From, a); r != nil {
					return s.reject(r, cfg.addrAttr("to", a))
				}
			}
			fresh = append(fresh, envelope.Rcpt{Addr: a, Notify: notify, ORCPT: orcpt})
		}
		if len(s.env.Rcpts)+len(fresh) > g.l.MaxRecipients {
			return &gosmtp.SMTPError{Code: 452, EnhancedCode: gosmtp.EnhancedCode{4, 5, 3}, Message: "Too many recipients"} // the gate logs it
		}
		for _, r := range fresh {
			s.seen[envelope.Fold(r.Addr)] = true
		}
		s.env.Rcpts = append(s.env.Rcpts, fresh...)
		if s.given++; s.given == 1 {
			s.first = to
		}
		if g.l.LMTP {
			s.lmtp = append(s.lmtp, lmtpRcpt{path: to, addrs: addrs})
		}
		return nil
	})
}

// originalRecipient is ORCPT as "addr-type;address".
func originalRecipient(o *gosmtp.RcptOptions) (string, *Refusal) {
	if o.OriginalRecipient == "" {
		return "", nil
	}
	if hasControl(o.OriginalRecipient) || !utf8.ValidString(o.OriginalRecipient) || strings.Contains(o.OriginalRecipient, "\t") || len(o.OriginalRecipient) > 500 {
		return "", &Refusal{Code: 501, Enhanced: [3]int{5, 5, 4}, Text: "Malformed ORCPT", Reason: reasonAddress}
	}
	return strings.ToLower(string(o.OriginalRecipientType)) + ";" + o.OriginalRecipient, nil
}

// alias looks addr up: as a whole, and by its local part when the domain is one that bare
// addresses get.
func (l *Listener) alias(hostname, addr string) ([]string, bool) {
	local, domain := envelope.Split(addr)
	keys := []string{addr, envelope.Fold(addr)}
	if d := envelope.FoldDomain(domain); d == envelope.FoldDomain(l.AppendDomain) || d == envelope.FoldDomain(hostname) {
		keys = append(keys, local, strings.ToLower(local))
	}
	for _, k := range keys {
		if to, ok := l.Aliases[k]; ok {
			return to, true
		}
	}
	return nil, false
}

const maxAliasDepth = 10

// expand replaces addr by what its alias stands for, and that again. An alias that comes back
// to itself stays as an address.
func (l *Listener) expand(hostname, addr string) (addrs []string, aliased bool) {
	visited := map[string]bool{}
	var walk func(a string, depth int)
	walk = func(a string, depth int) {
		if isBare(a) {
			domain := l.AppendDomain
			if domain == "" {
				domain = hostname
			}
			a += "@" + domain
		}
		to, ok := l.alias(hostname, a)
		if !ok || depth == maxAliasDepth || visited[envelope.Fold(a)] {
			if !slices.Contains(addrs, a) {
				addrs = append(addrs, a)
			}
			return
		}
		visited[envelope.Fold(a)] = true
		aliased = true
		for _, t := range to {
			walk(t, depth+1)
		}
	}
	walk(addr, 0)
	return addrs, aliased
}

// AuthMechanisms is not asked: the gate writes the EHLO reply.
func (s *session) AuthMechanisms() []string { return nil }

// Auth starts a login; the gate has checked that one is allowed.
func (s *session) Auth(mech string) (sasl.Server, error) {
	var srv sasl.Server
	if mech == sasl.Login {
		srv = &loginServer{authenticate: s.login}
	} else {
		srv = sasl.NewPlainServer(func(identity, name, pw string) error {
			if identity != "" && identity != name {
				return s.loginFailed(time.Now(), name, "identity")
			}
			return s.login(name, pw)
		})
	}
	return &saslSession{s: s, srv: srv}, nil
}

// saslSession keeps go-sasl's own errors from becoming 454.
type saslSession struct {
	s   *session
	srv sasl.Server
}

func (x *saslSession) Next(response []byte) (challenge []byte, done bool, err error) {
	err = x.s.guard(func() error {
		var e error
		challenge, done, e = x.srv.Next(response)
		var known *gosmtp.SMTPError
		if e != nil && !errors.As(e, &known) {
			return errAuthSyntax
		}
		return e
	})
	return challenge, done, err
}

func (s *session) login(name, pw string) error {
	g := s.g
	start := time.Now()
	ok, err := g.gen.users.verify(g.srv.ctx, name, pw, start)
	switch {
	case err != nil:
		g.log.Warn(logAuthFail, g.gen.cfg.userAttr(name), "reason", "busy")
		return errAuthBusy
	case !ok:
		return s.loginFailed(start, name, "credentials")
	}
	g.user = name
	g.log.Info(logAuthOK, g.gen.cfg.userAttr(name), "tls", g.secure)
	return nil
}

// loginFailed answers every failure alike and after the same time.
func (s *session) loginFailed(start time.Time, name, reason string) error {
	g := s.g
	g.authFails++
	g.srv.throttle.Fail(g.peer.key, time.Now())
	g.log.Warn(logAuthFail, g.gen.cfg.userAttr(name), "reason", reason)
	if f := g.gen.cfg.Metrics.AuthFail; f != nil {
		f(g.l.Name)
	}
	t := time.NewTimer(g.srv.authDelay - time.Since(start))
	defer t.Stop()
	select {
	case <-t.C:
	case <-g.srv.ctx.Done():
	}
	return errAuthFailed
}

// Data takes the message from the gate; r, go-smtp's view of it, is not used.
func (s *session) Data(io.Reader) error {
	in := &incoming{s: s, env: s.env, given: s.given, first: s.first, lmtp: s.lmtp}
	in.env.ID = envelope.NewID(s.g.gen.cfg.Now())
	in.dec.out, in.head.buf = s.g.decoded[:0], s.g.headers[:0]
	err := s.guard(func() error {
		defer in.drop()
		if s.g.inBDAT {
			return in.chunks()
		}
		return in.message()
	})
	if errors.Is(err, errPanicked) {
		s.g.die(421, "4.3.0", errPanicked.Message) // what is left of the message must not run
	}
	return err
}

// incoming is one message on its way to the Intake.
type incoming struct {
	s     *session
	env   envelope.Envelope
	given int
	first string
	lmtp  []lmtpRcpt

	dec    decoder
	head   header
	tx     Transaction
	opened bool
	size   int64 // of the message, without what we add
	stored int64

	refusal *Refusal            // why it will be refused; the rest is read and thrown away
	each    map[string]*Refusal // of single recipients, by envelope.Fold; LMTP
	cause   error               // of an own fault, for the log
}

// message reads up to the end mark.
func (in *incoming) message() error {
	g := in.s.g
	in.dec.dots = true
	for !in.dec.done {
		b, err := g.peekMessage()
		if err != nil {
			return in.lost(g.messageFailed(err, in.dec.tail))
		}
		_, _ = g.br.Discard(in.dec.feed(b))
		in.take()
		if in.endless() {
			return in.result()
		}
	}
	g.endMessage()
	return in.end()
}

// chunks reads a message of BDAT chunks. A refusal is the answer to the chunk it is found in,
// after that chunk was consumed.
func (in *incoming) chunks() error {
	g := in.s.g
	for {
		if in.size+g.chunkLeft > g.l.MaxMessageSize {
			in.refuse(in.s.tooLarge())
		}
		for g.chunkLeft > 0 {
			b, err := g.peekMessage()
			if err != nil {
				return in.lost(g.messageFailed(err, [3]byte{}))
			}
			in.dec.feed(b)
			g.discardChunk(len(b))
			in.take()
			if in.endless() {
				return in.result()
			}
		}
		if g.bdatLast {
			in.dec.finish()
			in.take()
		}
		switch {
		case in.refusal != nil || g.bdatLast:
			g.endMessage()
			return in.end()
		case !g.nextChunk():
			g.endMessage()
			return in.lost(reasonGone)
		}
	}
}

// endless ends the session of a client that goes on and on.
func (in *incoming) endless() bool {
	if in.size <= (1+discardTimes)*in.s.g.l.MaxMessageSize {
		return false
	}
	in.s.g.die(552, "5.3.4", "Message is larger than the limit")
	return true
}

func (s *session) tooLarge() *Refusal {
	return &Refusal{Code: 552, Enhanced: [3]int{5, 3, 4}, Text: fmt.Sprintf("Message is larger than the limit of %d bytes", s.g.l.MaxMessageSize), Reason: reasonSize}
}

// lost ends a message that did not come whole.
func (in *incoming) lost(reason string) error {
	in.s.g.refused(reason)
	return errLost
}

// drop makes sure that a transaction that was not committed is aborted, after a panic too.
func (in *incoming) drop() {
	if in.tx != nil {
		in.tx.Abort()
		in.tx = nil
	}
}

func (in *incoming) refuse(r *Refusal) {
	if in.refusal == nil {
		in.refusal = r
	}
	in.drop()
}

// broken notes a fault on our side.
func (in *incoming) broken(err error) {
	r := errOurs
	var full NoSpace
	var refusal *Refusal
	switch {
	case errors.As(err, &refusal) && refusal != nil:
		r = refusal
	case errors.As(err, &full) && full.NoSpace():
		r, in.cause = errNoSpace, err
	default:
		in.cause = err
	}
	if in.refusal == nil {
		in.refusal = r
	}
}

// take moves what the decoder has made towards the Intake.
func (in *incoming) take() {
	l, p := in.s.g.l, in.dec.out
	in.dec.out = in.dec.out[:0]
	in.size += int64(len(p))
	switch {
	case in.refusal != nil:
		return
	case in.size > l.MaxMessageSize:
		in.refuse(in.s.tooLarge())
		return
	case in.dec.longest > l.MaxLine:
		in.refuse(&Refusal{Code: 554, Enhanced: [3]int{5, 6, 0}, Text: fmt.Sprintf("A line is longer than %d bytes", l.MaxLine), Reason: reasonLine})
		return
	case in.dec.repaired() && l.BareNewlines == Reject:
		in.refuse(&Refusal{Code: 550, Enhanced: [3]int{5, 5, 2}, Text: "Message has a bare CR, bare LF or NUL; lines must end with CRLF", Reason: reasonNewline})
		return
	case in.opened:
		in.write(p)
		return
	}
	if ended := in.head.feed(p); ended || in.dec.done {
		in.head.finish()
	}
	switch h := &in.head; {
	case !h.ended && len(h.buf) > maxHeader, h.ended && h.line > maxHeader, h.fields > maxFields:
		in.refuse(&Refusal{Code: 552, Enhanced: [3]int{5, 3, 4}, Text: "Header is too large", Reason: reasonHeader})
	case h.received >= maxReceived:
		in.refuse(&Refusal{Code: 554, Enhanced: [3]int{5, 4, 6}, Text: "Too many Received fields: the mail runs in a loop", Reason: reasonLoop})
	case h.ended:
		in.open()
	}
}

// open begins the transaction with the fields we add and the header as it came.
func (in *incoming) open() {
	tx, err := in.s.g.srv.begin(in.s.g)
	if err != nil {
		in.broken(err)
		return
	}
	in.tx, in.opened = tx, true
	in.write([]byte(in.fields()))
	in.write(in.head.buf)
	in.s.g.reuse(in.dec.out, in.head.buf)
	in.head.buf = nil
}

func (in *incoming) write(p []byte) {
	if in.tx == nil || len(p) == 0 {
		return
	}
	n, err := in.tx.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	in.stored += int64(n)
	if err != nil {
		in.broken(err)
		in.drop()
	}
}

// end is the message's last byte: commit, and the reply.
func (in *incoming) end() error {
	g := in.s.g
	if in.refusal == nil && !in.opened {
		in.head.finish()
		in.open()
	}
	d := &in.dec
	if d.lf+d.cr > 0 {
		action := "normalized"
		if g.l.BareNewlines == Reject {
			action = "rejected"
		}
		g.log.Info(logBareNewline, "id", in.env.ID, "action", action, "count", d.lf+d.cr)
	}
	if d.nul > 0 {
		g.log.Info(logNUL, "id", in.env.ID, "count", d.nul)
	}
	if in.refusal == nil {
		in.commit()
	}
	return in.result()
}

func (in *incoming) commit() {
	g := in.s.g
	in.env.Size = in.stored
	in.env.Received = g.gen.cfg.Now().UTC()
	tx := in.tx
	in.tx = nil // Commit ends it, whatever happens
	gone, stop := g.watch()
	defer stop()
	if err := tx.Commit(context.WithValue(g.srv.ctx, clientGoneKey{}, gone), in.env); err != nil {
		in.broken(err)
	}
	if rr, ok := tx.(RcptRefuser); ok && g.l.LMTP {
		in.each = map[string]*Refusal{}
		for addr, r := range rr.RcptRefusals() {
			in.each[envelope.Fold(addr)] = r
		}
	}
}

// result is the reply, said once.
func (in *incoming) result() error {
	if in.cause != nil {
		in.s.g.log.Error(logIntake, "id", in.env.ID, "err", clip(in.cause.Error()))
	}
	switch {
	case len(in.each) > 0:
		return in.results()
	case in.refusal != nil:
		e := in.s.reject(in.refusal, slog.String("id", in.env.ID), in.s.g.gen.cfg.addrAttr("from", in.env.From))
		if lines := replyLines(in.refusal.Lines); len(lines) > 1 && !in.s.g.l.LMTP {
			e.Message, in.s.g.more = lines[0], lines[1:]
		}
		return e
	}
	return in.accepted()
}

// results is result for LMTP, where recipients fare differently: one reply for each RCPT command
// that was taken, in their order (RFC 2033 4.2). The gate says them.
func (in *incoming) results() error {
	g, cfg := in.s.g, in.s.g.gen.cfg
	taken := false
	var replies []*gosmtp.SMTPError
	for _, rc := range in.lmtp {
		r := in.refusalOf(rc)
		if r == nil {
			taken = true
			replies = append(replies, in.queued())
			continue
		}
		replies = append(replies, in.s.reject(r, slog.String("id", in.env.ID), cfg.addrAttr("to", rc.path)))
	}
	for i, rc := range in.lmtp {
		g.lmtp = append(g.lmtp, lmtpLine(rc.path, replies[i]))
	}
	if taken {
		return in.accepted()
	}
	return replies[0]
}

// refusalOf is nil for a RCPT command that is answered with success. One whose alias named several
// addresses is refused only if all of them are.
func (in *incoming) refusalOf(rc lmtpRcpt) *Refusal {
	var first *Refusal
	for _, a := range rc.addrs {
		r := in.each[envelope.Fold(a)]
		if r == nil {
			r = in.refusal
		}
		if r == nil {
			return nil
		}
		if first == nil {
			first = r
		}
	}
	return first
}

func (in *incoming) accepted() error {
	g, cfg := in.s.g, in.s.g.gen.cfg
	g.junk = 0
	g.log.Info(logAccepted, "id", in.env.ID, cfg.addrAttr("from", in.env.From), "rcpts", len(in.env.Rcpts), "size", in.stored, cfg.userAttr(in.env.AuthUser), "tls", g.secure)
	if f := cfg.Metrics.Accepted; f != nil {
		f(g.l.Name, in.stored)
	}
	return in.queued()
}

func (in *incoming) queued() *gosmtp.SMTPError {
	return &gosmtp.SMTPError{Code: 250, EnhancedCode: gosmtp.EnhancedCode{2, 0, 0}, Message: "Ok: queued as " + in.env.ID}
}

// fields are what we put in front: Received (RFC 5321 4.4), and Date and Message-ID where the
// client left them out (RFC 6409 8).
func (in *incoming) fields() string {
	g := in.s.g
	now := g.gen.cfg.Now().Format("Mon, 02 Jan 2006 15:04:05 -0700")
	host := g.gen.cfg.Hostname
	var b strings.Builder
	fmt.Fprintf(&b, "Received: from %s", traceName(in.env.Helo))
	if in.env.Peer != "" {
		literal := in.env.Peer
		if strings.Contains(literal, ":") {
			literal = "IPv6:" + literal // RFC 5321 4.1.3
		}
		fmt.Fprintf(&b, " ([%s])", literal)
	}
	fmt.Fprintf(&b, "\r\n\tby %s with %s id %s", host, in.protocol(), in.env.ID)
	// More than one would show a blind recipient to the others (RFC 5321 7.2).
	if in.given == 1 && len(in.first) < 200 {
		fmt.Fprintf(&b, "\r\n\tfor <%s>", in.first)
	}
	fmt.Fprintf(&b, ";\r\n\t%s\r\n", now)
	if !in.head.date {
		fmt.Fprintf(&b, "Date: %s\r\n", now)
	}
	if !in.head.msgID {
		fmt.Fprintf(&b, "Message-ID: <%s@%s>\r\n", in.env.ID, host)
	}
	if in.head.missingBorder {
		b.WriteString("\r\n")
	}
	return b.String()
}

// protocol is the "with" keyword (RFC 3848, RFC 6531 4.3).
func (in *incoming) protocol() string {
	g := in.s.g
	p := "SMTP"
	if g.l.LMTP {
		p = "LMTP"
	}
	switch {
	case in.env.UTF8:
		p = "UTF8" + p
	case g.l.LMTP:
	case g.esmtp || g.secure:
		p = "E" + p
	}
	if g.secure {
		p += "S"
	}
	if in.env.AuthUser != "" {
		p += "A"
	}
	return p
}

// traceName makes the client's name fit for a header field.
func traceName(s string) string {
	if s == "" {
		return "unknown"
	}
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', strings.ContainsRune("-._:[]", r):
			return r
		}
		return '?'
	}, s)
}
