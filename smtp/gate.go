package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

const (
	gateBuffer   = 16 << 10         // must hold the longest line, maxAuthLine
	tlsTimeout   = 30 * time.Second // of a handshake
	maxJunk      = 100              // commands that lead to no mail, before 421 (Postfix: smtpd_junk_command_limit)
	rateWindow   = 60 * time.Second
	rateReadCap  = 10 * time.Second // one read counts at most so long in the rate: a pause is DataTimeout's business
	lingerTime   = time.Second
	lingerBytes  = 256 << 10
	discardTimes = 4 // a message over the limit is read to its end, but at most so many limits long
)

// mode is what the next bytes from the client are.
type mode uint8

const (
	modeCommand mode = iota
	modeSASL         // an answer within AUTH
	modeMessage      // a message; the session reads it
)

// gate is the layer between one client's socket and go-smtp. go-smtp is given one valid command
// at a time and, after DATA, only the end mark, because Session.Data reads the message from the
// gate. So nothing a client pipelines lies in go-smtp's buffers, and go-smtp's own reading,
// time limits, TLS and error counting (whose gaps are in the tests named after cases 3, 4, 10,
// 17, 18, 23 and 36) are never used. Nor is its BDAT, which takes a connection that breaks in
// the last chunk for the end of the mail, and can answer one mail with the result of the mail
// before RSET: go-smtp is told DATA instead, and the gate answers the chunks.
//
// Everything but the fields under mu belongs to the goroutine that runs the session.
type gate struct {
	srv  *Server
	gen  *generation
	l    *Listener
	log  *slog.Logger
	peer peer

	conn   net.Conn // the socket, or TLS over it
	br     *bufio.Reader
	bw     *bufio.Writer
	secure bool

	deadline func() time.Time // of the next read from the socket
	bytesIn  func(n int)      // told of every read while a message is read

	mode      mode
	chunkLeft int64
	msgEnd    time.Time // DataTotal of the running message, over all its chunks
	pending   []byte    // for go-smtp to read
	out       []byte    // an unfinished reply line of go-smtp

	decoded []byte // buffers of the last message, for the next one; an Intake keeps nothing of them
	headers []byte

	cur       command
	greeted   bool // HELO or EHLO was taken
	esmtp     bool
	helo      string
	quiet     bool // swallow go-smtp's greeting, after STARTTLS
	inMail    bool
	utf8      bool // SMTPUTF8 was given in the running MAIL
	rcpts     int  // taken by go-smtp
	rcptsBad  int
	inBDAT    bool // the session is in a message of chunks
	bdatLast  bool
	again     bool     // cur ended such a message and is still to be run
	swallow   bool     // go-smtp's replies to a message that was abandoned
	path      string   // address of the running MAIL or RCPT, as spelt and qualified
	lmtp      []string // replies to a message where recipients fare differently; they replace go-smtp's
	more      []string // further lines of the reply that go-smtp is about to give
	saslBad   bool
	user      string // logged in as
	authFails int
	errs      int
	junk      int
	bareSaid  bool
	started   bool // a first line was seen

	upgrade bool // STARTTLS was answered 220
	dead    bool // nothing is read or written any more
	linger  bool // the client may still be sending: let it read our last reply

	mu       sync.Mutex
	busy     bool // in a message: a drain waits
	draining bool
	cut      bool // a shutdown ran out of time
	closed   bool
	unwatch  bool // see watch
}

// reuse keeps the buffers of a message, unless they have grown large: a session may last long.
func (g *gate) reuse(decoded, headers []byte) {
	if cap(decoded) <= 2*gateBuffer {
		g.decoded = decoded
	}
	if cap(headers) <= 2*gateBuffer {
		g.headers = headers
	}
}

// peer is who is connected.
type peer struct {
	addr  netip.Addr // invalid for a unix socket
	local bool       // loopback or unix socket
	key   string     // for limits
}

func peerOf(c net.Conn) peer {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return peer{local: true, key: "unix"}
	}
	a := ap.Addr().Unmap().WithZone("")
	p := peer{addr: a, local: a.IsLoopback(), key: a.String()}
	if a.Is6() {
		if net64, err := a.Prefix(64); err == nil {
			p.key = net64.String()
		}
	}
	return p
}

func (p peer) String() string {
	if !p.addr.IsValid() {
		return ""
	}
	return p.addr.String()
}

func (p peer) in(nets []netip.Prefix) bool {
	if !p.addr.IsValid() {
		return true // who may open the socket may send
	}
	for _, n := range nets {
		if n.Contains(p.addr) {
			return true
		}
	}
	return false
}

func newGate(s *Server, gen *generation, l *Listener, c net.Conn, sid string) *gate {
	g := &gate{srv: s, gen: gen, l: l, conn: c, peer: peerOf(c)}
	g.log = gen.cfg.Log.With("sid", sid, "listener", l.Name, "peer", g.peer.String())
	g.br = bufio.NewReaderSize(wire{g}, gateBuffer)
	g.bw = bufio.NewWriterSize(wire{g}, 1024)
	g.waitCommand()
	return g
}

// wire is the socket with its time limits. Replies are held back while the client's commands
// are still in the buffer (RFC 2920 3.2) and leave before anything waits for the client.
type wire struct{ g *gate }

func (w wire) Read(p []byte) (int, error) {
	g := w.g
	if err := g.bw.Flush(); err != nil {
		return 0, err
	}
	g.setReadDeadline(g.deadline())
	n, err := g.conn.Read(p)
	if g.bytesIn != nil {
		g.bytesIn(n)
	}
	return n, err
}

func (w wire) Write(p []byte) (int, error) {
	if err := w.g.conn.SetWriteDeadline(time.Now().Add(w.g.l.WriteTimeout)); err != nil {
		return 0, err
	}
	return w.g.conn.Write(p)
}

var longAgo = time.Unix(1, 0)

// setReadDeadline keeps a shutdown's wake-up from being overwritten.
func (g *gate) setReadDeadline(t time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cut || g.unwatch || g.draining && !g.busy {
		t = longAgo
	}
	_ = g.conn.SetReadDeadline(t) // fails only on a closed connection; the read says so
}

// drain asks the session to end with 421 as soon as it is in no message.
func (g *gate) drain() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining = true
	if !g.busy {
		_ = g.conn.SetReadDeadline(longAgo)
	}
}

// cutOff ends the session now, in a message too. It reports whether there was one.
func (g *gate) cutOff() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.draining, g.cut = true, true
	_ = g.conn.SetReadDeadline(longAgo)
	return g.busy
}

// kill closes the socket under the session.
func (g *gate) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		_ = g.conn.Close()
	}
}

func (g *gate) setBusy(busy bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.busy = busy
}

func (g *gate) stopping() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.cut || g.draining && !g.busy
}

// handshake makes the connection TLS. False: the connection is of no use any more. RFC 3207 4.1
// lets a server go on in clear text after a failure; we never do.
func (g *gate) handshake() bool {
	raw := g.conn
	ctx, cancel := context.WithTimeout(g.srv.ctx, min(tlsTimeout, g.l.IdleTimeout))
	defer cancel()
	g.setReadDeadline(time.Now().Add(min(tlsTimeout, g.l.IdleTimeout)))
	_ = raw.SetWriteDeadline(time.Now().Add(g.l.WriteTimeout))
	tc := tls.Server(raw, g.l.TLSConfig)
	if err := tc.HandshakeContext(ctx); err != nil {
		level := slog.LevelWarn
		if errors.Is(err, io.EOF) { // a port check
			level = slog.LevelDebug
		}
		g.log.Log(ctx, level, logTLSFailed, "err", clip(err.Error()))
		g.dead = true
		return false
	}
	g.mu.Lock()
	g.conn = tc
	g.mu.Unlock()
	g.secure = true
	g.br.Reset(wire{g})
	g.bw.Reset(wire{g})
	return true
}

// restart forgets everything the client said in clear text (RFC 3207 4.2).
func (g *gate) restart() {
	g.upgrade, g.quiet = false, true
	g.greeted, g.esmtp, g.helo, g.user = false, false, "", ""
	g.pending, g.out, g.cur, g.mode = nil, nil, command{}, modeCommand
	g.again, g.swallow = false, false
	g.clearMail()
	g.waitCommand()
}

func (g *gate) clearMail() {
	g.inMail, g.utf8, g.rcpts, g.rcptsBad, g.inBDAT, g.path = false, false, 0, 0, false, ""
	g.chunkLeft = 0
}

// close is the end of the connection, after the session.
func (g *gate) close() {
	_ = g.bw.Flush()
	if g.linger {
		g.lingerOut()
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	_ = g.conn.Close()
}

// lingerOut half-closes and throws away what the client still sends for a moment: a close with
// unread bytes is a reset, which takes our last reply out of the client's hands.
func (g *gate) lingerOut() {
	if cw, ok := g.conn.(interface{ CloseWrite() error }); ok {
		_ = cw.CloseWrite()
	}
	_ = g.conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, g.conn, lingerBytes)
}

// reply queues one reply of our own.
func (g *gate) reply(code int, enh, text string) {
	if g.dead {
		return
	}
	if enh != "" {
		enh += " "
	}
	fmt.Fprintf(g.bw, "%d %s%s\r\n", code, enh, text)
}

// fail is reply for a client's mistake: too many of them end the session.
func (g *gate) fail(code int, enh, text string) {
	g.reply(code, enh, text)
	if g.errs++; g.errs > g.l.MaxErrors {
		g.log.Warn(logTooMany, "errors", g.errs)
		g.die(421, "4.7.0", "Too many errors")
	}
}

func (g *gate) refuse(r *Refusal) {
	e := r.smtpError()
	g.fail(e.Code, fmt.Sprintf("%d.%d.%d", e.EnhancedCode[0], e.EnhancedCode[1], e.EnhancedCode[2]), e.Message)
}

// die sends a last reply and ends the session.
func (g *gate) die(code int, enh, text string) {
	g.reply(code, enh, text)
	g.dead, g.linger = true, true
	_ = g.bw.Flush()
}

// gone ends the session without a word.
func (g *gate) gone(phase string, err error) {
	g.dead = true
	if g.started || phase != "command" {
		g.log.Info(logClientGone, "phase", phase, "err", clip(err.Error()))
	}
}

// timedOut says whether err is a time limit, ours or a shutdown's.
func timedOut(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// readFailed ends the session after a failed read of a command.
func (g *gate) readFailed(phase string, err error) {
	switch {
	case g.stopping():
		g.die(421, "4.3.2", "Service shutting down")
	case timedOut(err):
		g.log.Info(logTimeout, "phase", phase)
		g.die(421, "4.4.2", "Idle for too long, closing connection")
	default:
		g.gone(phase, err)
	}
}

func (g *gate) waitCommand() {
	end := time.Now().Add(g.l.IdleTimeout) // for the whole line: a byte a second does not help
	g.deadline = func() time.Time { return end }
	g.bytesIn = nil
}

// read is go-smtp's view of the client.
func (g *gate) read(p []byte) (n int, err error) {
	defer func() {
		if v := recover(); v != nil {
			g.panicked(v)
			n, err = 0, io.EOF
		}
	}()
	for len(g.pending) == 0 {
		if g.dead || g.upgrade {
			return 0, io.EOF
		}
		switch g.mode {
		case modeSASL:
			g.nextSASL()
		case modeMessage: // a message that the session did not read to its end must not run
			g.dead = true
		default:
			g.nextCommand()
		}
	}
	n = copy(p, g.pending)
	g.pending = g.pending[n:]
	return n, nil
}

func (g *gate) panicked(v any) {
	g.log.Error(logPanic, "err", clip(fmt.Sprint(v)), "stack", string(debug.Stack()))
	g.die(421, "4.3.0", "Internal error, closing connection")
}

// readLine returns the next line without its end.
func (g *gate) readLine(phase string) (line string, ok bool) {
	b, err := g.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(b) > maxAuthLine+2 {
		g.tooLong()
		return "", false
	}
	if err != nil {
		g.readFailed(phase, err)
		return "", false
	}
	b = b[:len(b)-1]
	if len(b) > 0 && b[len(b)-1] == '\r' {
		return string(b[:len(b)-1]), true
	}
	if g.l.BareNewlines == Reject {
		g.sayBare("rejected")
		g.fail(500, "5.5.2", "Lines must end with CRLF")
		return "", false
	}
	g.sayBare("normalized")
	return string(b), true
}

func (g *gate) sayBare(action string) {
	if !g.bareSaid {
		g.bareSaid = true
		g.log.Info(logBareNewline, "action", action, "phase", "command")
	}
}

func (g *gate) tooLong() {
	g.log.Warn(logLineTooLong, "limit", g.l.MaxCommand)
	g.die(500, "5.5.2", "Line too long, closing connection")
}

// nextSASL hands on one answer of AUTH. What is not base64 becomes a cancellation, which
// go-smtp can end cleanly; written replaces the reply.
func (g *gate) nextSASL() {
	g.waitCommand()
	line, ok := g.readLine("auth")
	if !ok {
		if !g.dead { // a refused bare newline: the exchange is over
			g.dead, g.linger = true, true
		}
		return
	}
	g.mode = modeCommand
	if line != "*" && line != "=" {
		if _, err := base64.StdEncoding.DecodeString(line); err != nil || hasControl(line) {
			g.saslBad = true
			line = "*"
		}
	}
	g.pending = []byte(line + "\r\n")
}

// nextCommand reads commands until one is for go-smtp, or the session is over.
func (g *gate) nextCommand() {
	g.setBusy(false)
	g.swallow, g.lmtp, g.more = false, nil, nil
	if g.again {
		g.again = false
		g.dispatch()
		return
	}
	if g.readCommand() {
		g.dispatch()
	}
}

// readCommand reads one line into cur. False: it was answered, or the session is over.
func (g *gate) readCommand() bool {
	g.waitCommand()
	if g.stopping() {
		g.die(421, "4.3.2", "Service shutting down")
		return false
	}
	if !g.started {
		if b, err := g.br.Peek(1); err == nil && b[0] == 0x16 { // a TLS record
			g.log.Warn(logAbuse, "kind", "tls")
			g.dead = true
			return false
		}
	}
	line, ok := g.readLine("command")
	if !ok {
		return false
	}
	first := !g.started
	g.started = true
	g.cur = parseCommand(line)
	switch {
	case isHTTP(line):
		g.log.Warn(logAbuse, "kind", "http")
		g.die(554, "5.5.0", "This is an SMTP server")
	case first && g.cur.verb == "PROXY":
		g.log.Warn(logProxyDenied, "verb", g.cur.verb)
		g.die(550, "5.7.0", "PROXY is not accepted from this address")
	case len(line) > g.l.MaxCommand && g.cur.verb != "AUTH":
		g.tooLong()
	case hasControl(line) && g.cur.verb != "MAIL" && g.cur.verb != "RCPT":
		g.fail(500, "5.5.2", "Control characters in a command")
	default:
		return true
	}
	return false
}

func (g *gate) pass(line string) { g.pending = []byte(line + "\r\n") }

// idle counts a command that leads to no mail.
func (g *gate) idle() bool {
	if g.junk++; g.junk > maxJunk {
		g.log.Warn(logTooMany, "junk", g.junk)
		g.die(421, "4.7.0", "Too many commands without a mail")
		return false
	}
	return true
}

func (g *gate) dispatch() {
	arg := g.cur.arg
	switch g.cur.verb {
	case "HELO", "EHLO", "LHLO":
		if !g.idle() {
			return
		}
		name, _, _ := strings.Cut(arg, " ")
		if name == "" || len(name) > 255 {
			g.fail(501, "5.5.4", g.cur.verb+" needs a host name")
			return
		}
		g.cur.arg = name
		g.pass(g.cur.verb + " " + name)
	case "MAIL":
		g.mail()
	case "RCPT":
		g.rcpt()
	case "DATA":
		switch {
		case arg != "":
			g.fail(501, "5.5.4", "DATA takes no parameter")
		case g.inBDAT:
			g.fail(503, "5.5.1", "DATA cannot follow BDAT")
		case g.hasRcpts():
			g.setBusy(true)
			g.pass("DATA")
		}
	case "BDAT":
		g.bdat()
	case "AUTH":
		g.auth()
	case "STARTTLS":
		g.startTLS()
	case "RSET":
		if g.idle() {
			g.pass("RSET")
		}
	case "QUIT":
		g.pass("QUIT")
	case "NOOP":
		if g.idle() {
			g.reply(250, "2.0.0", "Ok")
		}
	case "VRFY":
		if g.idle() {
			g.reply(252, "2.1.5", "Cannot verify, but will take the mail and try") // RFC 5321 3.5.3
		}
	case "EXPN", "HELP", "TURN", "ETRN", "ATRN", "SEND", "SOML", "SAML":
		if g.idle() {
			g.fail(502, "5.5.1", "Command not implemented")
		}
	case "XCLIENT", "XFORWARD", "PROXY":
		g.log.Warn(logProxyDenied, "verb", g.cur.verb)
		g.fail(550, "5.7.0", "Not accepted from this address")
	case "":
		g.fail(500, "5.5.2", "Empty command")
	default:
		g.fail(500, "5.5.2", "Command not recognized")
	}
}

// hasRcpts answers DATA and BDAT that come too early.
func (g *gate) hasRcpts() bool {
	switch {
	case !g.inMail:
		g.fail(503, "5.5.1", "MAIL first")
	case g.rcpts == 0 && g.rcptsBad > 0:
		g.fail(554, "5.5.1", "No valid recipients") // RFC 5321 4.2.5
	case g.rcpts == 0:
		g.fail(503, "5.5.1", "RCPT first")
	default:
		return true
	}
	return false
}

var (
	badSender = [3]int{5, 1, 7}
	badRcpt   = [3]int{5, 1, 3}
)

// afterColon cuts "FROM:" or "TO:" off, with a blank before the colon as some clients write it.
func afterColon(arg, word string) (string, bool) {
	if len(arg) < len(word) || !strings.EqualFold(arg[:len(word)], word) {
		return "", false
	}
	return strings.CutPrefix(strings.TrimLeft(arg[len(word):], " "), ":")
}

var mailParams = map[string]bool{"SIZE": true, "BODY": true, "SMTPUTF8": true, "AUTH": true}

func (g *gate) mail() {
	switch {
	case !g.greeted:
		g.fail(503, "5.5.1", "EHLO or HELO first")
		return
	case g.inMail:
		g.fail(503, "5.5.1", "There is a MAIL already") // RFC 5321 4.1.4
		return
	}
	arg, ok := afterColon(g.cur.arg, "FROM")
	if !ok {
		g.fail(501, "5.5.2", "Syntax: MAIL FROM:<address>")
		return
	}
	addr, rest, null, err := cutPath(arg)
	if err != nil {
		g.refuseAddr("from", arg, &Refusal{Code: 501, Enhanced: badSender, Text: "Syntax: MAIL FROM:<address>"})
		return
	}
	params, ok := g.params(rest, func(k string) bool {
		return mailParams[k] || g.l.DSN && (k == "RET" || k == "ENVID")
	})
	if !ok {
		return
	}
	_, utf8 := params["SMTPUTF8"]
	if !null {
		if isBare(addr) && g.l.AppendDomain != "" {
			addr += "@" + g.l.AppendDomain
		}
		if r := checkPath(addr, utf8, badSender); r != nil {
			g.refuseAddr("from", addr, r)
			return
		}
	}
	if v, ok := params["SIZE"]; ok && g.tooLarge(v) {
		g.log.Info(logReject, "reason", reasonSize, "size", clip(v), g.gen.cfg.addrAttr("from", addr))
		g.refused(reasonSize)
		g.reply(552, "5.3.4", fmt.Sprintf("Message is larger than the limit of %d bytes", g.l.MaxMessageSize))
		return
	}
	g.path, g.utf8 = addr, utf8
	g.pass("MAIL FROM:<" + addr + "> " + rest)
}

// tooLarge judges a SIZE of any length; go-smtp judges its syntax.
func (g *gate) tooLarge(v string) bool {
	if v == "" || strings.Trim(v, "0123456789") != "" {
		return false
	}
	v = strings.TrimLeft(v, "0")
	limit := fmt.Sprint(g.l.MaxMessageSize)
	return len(v) > len(limit) || len(v) == len(limit) && v > limit
}

func (g *gate) rcpt() {
	switch {
	case g.inBDAT:
		g.fail(503, "5.5.1", "RCPT cannot follow BDAT")
		return
	case !g.inMail:
		g.fail(503, "5.5.1", "MAIL first")
		return
	}
	arg, ok := afterColon(g.cur.arg, "TO")
	if !ok {
		g.fail(501, "5.5.2", "Syntax: RCPT TO:<address>")
		return
	}
	addr, rest, null, err := cutPath(arg)
	if err != nil || null {
		g.refuseAddr("to", arg, &Refusal{Code: 501, Enhanced: badRcpt, Text: "Syntax: RCPT TO:<address>"})
		g.rcptsBad++
		return
	}
	if _, ok := g.params(rest, func(k string) bool { return g.l.DSN && (k == "NOTIFY" || k == "ORCPT") }); !ok {
		g.rcptsBad++
		return
	}
	full := addr
	if isBare(addr) {
		domain := g.l.AppendDomain
		if domain == "" {
			domain = g.gen.cfg.Hostname
			if _, ok := g.l.alias(g.gen.cfg.Hostname, addr+"@"+domain); !ok {
				g.refuseAddr("to", addr, &Refusal{Code: 501, Enhanced: badRcpt, Text: "The address needs a domain"})
				g.rcptsBad++
				return
			}
		}
		full = addr + "@" + domain
	}
	if r := checkPath(full, g.utf8, badRcpt); r != nil {
		g.refuseAddr("to", full, r)
		g.rcptsBad++
		return
	}
	g.path = full
	g.pass("RCPT TO:<" + full + "> " + rest)
}

// params checks the names of ESMTP parameters; their values are go-smtp's to judge.
func (g *gate) params(rest string, known func(string) bool) (map[string]string, bool) {
	params, err := esmtpParams(rest)
	if err != nil || hasControl(rest) {
		g.fail(501, "5.5.4", "A parameter is given twice or malformed")
		return nil, false
	}
	for k := range params {
		if !known(k) {
			g.fail(555, "5.5.4", "Parameter not recognized or not implemented") // RFC 5321 4.1.1.11
			return nil, false
		}
	}
	return params, true
}

func (g *gate) refuseAddr(key, addr string, r *Refusal) {
	g.log.Info(logReject, "reason", reasonAddress, g.gen.cfg.addrAttr(key, addr))
	g.refused(reasonAddress)
	g.refuse(r)
}

func (g *gate) refused(reason string) {
	if f := g.gen.cfg.Metrics.Refused; f != nil {
		f(g.l.Name, reason)
	}
}

// bdat begins a message of chunks: go-smtp is told DATA.
func (g *gate) bdat() {
	if !g.chunk() {
		return
	}
	if !g.hasRcpts() {
		// The chunk follows all the same (RFC 3030 2).
		g.startMessage(false)
		for g.chunkLeft > 0 {
			b, err := g.peekMessage()
			if err != nil {
				g.messageFailed(err, [3]byte{})
				return
			}
			g.discardChunk(len(b))
		}
		return
	}
	g.setBusy(true)
	g.inBDAT = true
	g.pass("DATA")
}

// chunk reads the length of a chunk. One that cannot be read leaves no way to tell message
// from commands.
func (g *gate) chunk() bool {
	size, last, err := parseBDAT(g.cur.arg)
	if err != nil {
		g.die(501, "5.5.4", "Syntax: BDAT size [LAST]; closing connection")
		return false
	}
	g.chunkLeft, g.bdatLast = size, last
	return true
}

// nextChunk answers a chunk that was taken and waits for the next one. False: the client gave
// the message up, or is gone.
func (g *gate) nextChunk() bool {
	g.reply(250, "2.0.0", "Chunk taken")
	for !g.dead {
		if !g.readCommand() {
			continue
		}
		switch g.cur.verb {
		case "BDAT":
			if !g.chunk() {
				return false
			}
			g.startMessage(true)
			return true
		case "RSET", "HELO", "EHLO", "LHLO", "QUIT", "STARTTLS":
			g.again, g.swallow = true, true
			return false
		default: // answered without go-smtp: nothing else is allowed here
			g.dispatch()
		}
	}
	return false
}

// peekMessage returns what is there of a message, at least one byte, and no more than the chunk.
func (g *gate) peekMessage() ([]byte, error) {
	if g.br.Buffered() == 0 {
		if _, err := g.br.Peek(1); err != nil {
			return nil, err
		}
	}
	n := g.br.Buffered()
	if g.inBDAT || g.chunkLeft > 0 {
		n = int(min(int64(n), g.chunkLeft))
	}
	return g.br.Peek(n)
}

func (g *gate) discardChunk(n int) {
	_, _ = g.br.Discard(n)
	g.chunkLeft -= int64(n)
}

// endMessage leaves go-smtp the end mark it waits for.
func (g *gate) endMessage() {
	g.mode, g.pending = modeCommand, []byte(".\r\n")
	g.bytesIn = nil
}

// authOffered says whether the client may log in here and now. Passwords in clear text are
// taken only on a listener without TLS, from this machine or a network that could send anyway.
func (g *gate) authOffered() bool {
	return g.authPossible() && (g.secure || g.l.InsecureAuth || g.l.TLS == TLSOff && (g.peer.local || g.peer.in(g.l.Allow)))
}

func (g *gate) authPossible() bool { return g.l.Auth != AuthOff && len(g.gen.users.byName) > 0 }

func (g *gate) auth() {
	mech, rest, hasIR := strings.Cut(g.cur.arg, " ")
	mech, rest = strings.ToUpper(mech), strings.TrimSpace(rest)
	switch {
	case !g.authPossible():
		g.fail(502, "5.5.1", "AUTH is not offered")
	case !g.authOffered():
		g.fail(538, "5.7.11", "Encryption is needed for AUTH: STARTTLS first") // RFC 4954 6
	case !g.greeted:
		g.fail(503, "5.5.1", "EHLO first")
	case g.user != "":
		g.fail(503, "5.5.1", "Already authenticated")
	case g.inMail:
		g.fail(503, "5.5.1", "AUTH is not allowed during a mail")
	case mech == "":
		g.fail(501, "5.5.4", "Syntax: AUTH mechanism")
	case mech != "PLAIN" && mech != "LOGIN":
		g.fail(504, "5.5.4", "Mechanism not offered")
	case g.srv.throttle.Blocked(g.peer.key, time.Now()):
		g.log.Warn(logAuthFail, "reason", "held_off")
		g.die(421, "4.7.0", "Too many failed logins, try again later")
	default:
		if hasIR && rest != "=" {
			if _, err := base64.StdEncoding.DecodeString(rest); err != nil {
				g.fail(501, "5.5.2", "Malformed base64")
				return
			}
		}
		g.saslBad = false
		g.pass(strings.TrimSpace("AUTH " + mech + " " + rest))
	}
}

func (g *gate) startTLS() {
	switch {
	case g.secure:
		g.fail(503, "5.5.1", "TLS is active already")
	case g.l.TLS != TLSStartTLS:
		g.fail(502, "5.5.1", "STARTTLS is not offered")
	case g.cur.arg != "":
		g.fail(501, "5.5.4", "STARTTLS takes no parameter")
	default:
		g.reply(220, "2.0.0", "Ready to start TLS")
		if n := g.br.Buffered(); n > 0 {
			// CVE-2011-0411: what came with STARTTLS must not run inside TLS.
			g.log.Warn(logInjection, "dropped_bytes", n)
			_, _ = g.br.Discard(n)
		}
		if err := g.bw.Flush(); err != nil {
			g.gone("starttls", err)
			return
		}
		g.upgrade = true
	}
}

// written takes go-smtp's replies, line by line, and turns them into ours.
func (g *gate) written(p []byte) {
	g.out = append(g.out, p...)
	for {
		i := bytes.Index(g.out, []byte("\r\n"))
		if i < 0 {
			return
		}
		line := string(g.out[:i])
		g.out = g.out[i+2:]
		if len(line) >= 4 && line[3] == ' ' { // further lines of ours are in more; EHLO's lines are replaced
			g.replied(line)
		}
	}
}

func (g *gate) replied(line string) {
	if len(g.lmtp) > 0 {
		line, g.lmtp = g.lmtp[0], g.lmtp[1:]
	}
	code, rest := line[:3], line[4:]
	switch verb := g.cur.verb; {
	case g.swallow:
		g.clearMail()
		return
	case code == "421":
		text := rest
		if strings.HasPrefix(rest, "4.0.0 ") { // go-smtp after a panic
			text = "4.3.0 Internal error, closing connection"
		}
		g.die(421, "", text)
		return
	case verb == "":
		if !g.quiet {
			proto := "ESMTP"
			if g.l.LMTP {
				proto = "LMTP"
			}
			g.reply(220, "", g.gen.cfg.Hostname+" "+proto+" smtpbridge")
		}
		g.quiet = false
		return
	case code == "250" && (verb == "HELO" || verb == "EHLO" || verb == "LHLO"):
		g.clearMail()
		g.greeted, g.esmtp, g.helo = true, verb != "HELO", g.cur.arg
		g.ehlo()
		return
	case verb == "MAIL" && code == "250":
		g.inMail, g.rcpts, g.rcptsBad = true, 0, 0
		rest = "2.1.0 Ok"
	case verb == "RCPT" && code == "250":
		g.rcpts++
		rest = "2.1.5 Ok"
	case verb == "RCPT":
		g.rcptsBad++
		if code == "452" && strings.HasPrefix(rest, "4.5.3 ") {
			g.log.Info(logReject, "reason", reasonRcptLimit)
			g.refused(reasonRcptLimit)
			rest = "4.5.3 Too many recipients for one mail, send the rest in another"
		}
	case verb == "RSET":
		g.clearMail()
		rest = "2.0.0 Ok"
	case verb == "DATA" && code == "354":
		rest = "End data with <CR><LF>.<CR><LF>"
		g.mode = modeMessage
		g.startMessage(false)
	case verb == "DATA":
		g.clearMail()
	case verb == "BDAT" && code == "354":
		g.mode = modeMessage
		g.startMessage(false)
		return
	case verb == "BDAT":
		g.clearMail()
	case verb == "AUTH" && code == "334":
		g.mode = modeSASL
	case verb == "AUTH" && code == "235":
		rest = "2.7.0 Authentication successful"
	case verb == "AUTH" && code == "501" && g.saslBad:
		rest = "5.5.2 Malformed base64"
	case verb == "AUTH" && code == "501" && strings.HasPrefix(rest, "5.0.0"):
		rest = "5.7.0 Authentication cancelled" // RFC 4954 4
	}
	if code == "500" || code == "504" {
		if (g.cur.verb == "MAIL" || g.cur.verb == "RCPT") && strings.HasPrefix(rest, "5.5.4") {
			code = map[string]string{"500": "501", "504": "555"}[code]
		}
	}
	if !g.dead {
		enh, _, _ := strings.Cut(rest, " ")
		for _, next := range g.more { // each line has the enhanced code (RFC 2034 4)
			g.bw.WriteString(code + "-" + rest + "\r\n")
			rest = enh + " " + next
		}
		g.bw.WriteString(code + " " + rest + "\r\n")
	}
	g.more = nil
	switch {
	case g.cur.verb == "AUTH" && code[0] == '5':
		if code == "535" && g.authFails >= authPerSession {
			g.die(421, "4.7.0", "Too many failed logins")
			return
		}
		g.countError()
	case code == "501" || code == "555", g.cur.verb == "MAIL" && code[0] == '5':
		g.countError()
	}
}

func (g *gate) countError() {
	if g.errs++; g.errs > g.l.MaxErrors {
		g.log.Warn(logTooMany, "errors", g.errs)
		g.die(421, "4.7.0", "Too many errors")
	}
}

// ehlo answers HELO, EHLO and LHLO: only what is true here and now is offered.
func (g *gate) ehlo() {
	host := g.gen.cfg.Hostname
	if !g.esmtp {
		g.reply(250, "", host)
		return
	}
	lines := []string{
		host, "PIPELINING", fmt.Sprintf("SIZE %d", g.l.MaxMessageSize),
		"8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES",
		fmt.Sprintf("LIMITS RCPTMAX=%d", g.l.MaxRecipients), // RFC 9422
	}
	if g.l.TLS == TLSStartTLS && !g.secure {
		lines = append(lines, "STARTTLS")
	}
	if g.authOffered() {
		lines = append(lines, "AUTH PLAIN LOGIN")
	}
	if g.l.DSN {
		lines = append(lines, "DSN")
	}
	for i, s := range lines {
		sep := '-'
		if i == len(lines)-1 {
			sep = ' '
		}
		fmt.Fprintf(g.bw, "250%c%s\r\n", sep, s)
	}
}

// startMessage sets the time limits of a message: DataTimeout without a byte, DataTotal in all,
// and the least rate. more: the chunk continues a message.
func (g *gate) startMessage(more bool) {
	now := time.Now()
	r := &messageClock{last: now, end: now.Add(g.l.DataTotal)}
	if more {
		r.end = g.msgEnd
	}
	g.msgEnd = r.end
	g.deadline = func() time.Time {
		r.last = time.Now()
		d := r.last.Add(g.l.DataTimeout)
		if r.slow || r.end.Before(d) {
			d = r.end
		}
		if r.slow {
			d = longAgo
		}
		return d
	}
	g.bytesIn = func(n int) { r.read(n, time.Since(r.last), g.l.MinRate) }
}

// messageFailed ends a session whose message cannot be read on: whatever follows is still
// message and must not run as commands (go-smtp would run it, its issue 196).
func (g *gate) messageFailed(err error, tail [3]byte) (reason string) {
	if g.dead {
		return reasonGone
	}
	switch {
	case g.stopping():
		g.die(421, "4.3.2", "Service shutting down")
		return reasonShutdown
	case timedOut(err):
		if tail == [3]byte{'\n', '.', '\n'} {
			g.log.Warn(logDataTimeout, "tail", "LF.LF")
			g.die(451, "4.4.2", "Message not ended: the last line must be a dot between CRLFs, not bare LFs")
			return reasonSlow
		}
		g.log.Warn(logDataTimeout)
		g.die(421, "4.4.2", "Message came too slowly, closing connection")
		return reasonSlow
	default:
		g.gone("data", err)
		return reasonGone
	}
}

// messageClock measures one message.
type messageClock struct {
	last   time.Time
	end    time.Time
	active time.Duration // spent reading in this window
	bytes  int64
	slow   bool
}

func (c *messageClock) read(n int, took time.Duration, minRate int64) {
	c.active += min(took, rateReadCap)
	c.bytes += int64(n)
	if c.active < rateWindow {
		return
	}
	if minRate > 0 && c.bytes < int64(c.active.Seconds())*minRate {
		c.slow = true
	}
	c.active, c.bytes = 0, 0
}

// shim is the net.Conn that one go-smtp connection gets. STARTTLS ends it and starts another
// one over the same gate, which resets go-smtp's state by construction.
type shim struct {
	g    *gate
	once sync.Once
	done chan struct{}
}

func (s *shim) Read(p []byte) (int, error) { return s.g.read(p) }

func (s *shim) Write(p []byte) (int, error) {
	s.g.written(p)
	return len(p), nil
}

func (s *shim) Close() error {
	s.once.Do(func() {
		if !s.g.upgrade {
			s.g.dead = true
		}
		close(s.done)
	})
	return nil
}

func (s *shim) LocalAddr() net.Addr              { return s.g.conn.LocalAddr() }
func (s *shim) RemoteAddr() net.Addr             { return s.g.conn.RemoteAddr() }
func (s *shim) SetDeadline(time.Time) error      { return nil } // time limits are the gate's
func (s *shim) SetReadDeadline(time.Time) error  { return nil }
func (s *shim) SetWriteDeadline(time.Time) error { return nil }

// single is a listener with one connection; its second Accept waits for that one's end.
type single struct {
	conn  *shim
	taken bool
}

func (l *single) Accept() (net.Conn, error) {
	if !l.taken {
		l.taken = true
		return l.conn, nil
	}
	<-l.conn.done
	return nil, net.ErrClosed
}

func (l *single) Close() error   { return nil }
func (l *single) Addr() net.Addr { return l.conn.LocalAddr() }

// serve runs the session to its end.
func (g *gate) serve() {
	defer g.close()
	if g.l.TLS == TLSImplicit && !g.handshake() {
		return
	}
	if !g.greetWait() {
		return
	}
	for {
		sess := newSession(g)
		srv := gosmtp.NewServer(gosmtp.BackendFunc(func(*gosmtp.Conn) (gosmtp.Session, error) { return sess, nil }))
		srv.Domain = g.gen.cfg.Hostname
		srv.LMTP = g.l.LMTP
		srv.MaxRecipients = g.l.MaxRecipients
		srv.MaxLineLength = 0
		srv.AllowInsecureAuth = true // the gate knows whether AUTH is allowed; go-smtp never sees TLS
		srv.EnableSMTPUTF8 = true
		srv.EnableDSN = g.l.DSN
		srv.ErrorLog = libLogger{g.log}
		_ = srv.Serve(&single{conn: &shim{g: g, done: make(chan struct{})}})
		_ = srv.Shutdown(context.Background()) // waits for go-smtp's goroutine
		if !g.upgrade || g.dead || !g.handshake() {
			return
		}
		g.restart()
	}
}

// greetWait refuses a client that talks before it was greeted; off by default.
func (g *gate) greetWait() bool {
	if g.l.GreetWait == 0 {
		return true
	}
	end := time.Now().Add(g.l.GreetWait)
	g.deadline = func() time.Time { return end }
	_, err := g.br.Peek(1)
	switch {
	case err == nil:
		g.log.Warn(logEarlyTalker)
		g.die(554, "5.5.0", "You talked before the greeting")
		return false
	case !timedOut(err):
		return false
	}
	return true
}

// watch tells when the client closes its side while nothing is read from it, during a Commit.
// A client with commands in the buffer is there. stop ends the watching and must be called.
func (g *gate) watch() (gone <-chan struct{}, stop func()) {
	ch := make(chan struct{})
	if g.br.Buffered() > 0 || g.dead {
		return ch, func() {}
	}
	g.bytesIn = nil
	stopped := make(chan struct{})
	g.deadline = func() time.Time { return time.Time{} }
	go func() {
		defer close(stopped)
		if _, err := g.br.Peek(1); err != nil && !timedOut(err) {
			g.log.Info(logClientGone, "phase", "reply")
			close(ch)
		}
	}()
	return ch, func() {
		g.setUnwatch(true)
		<-stopped
		g.setUnwatch(false)
	}
}

// setUnwatch(true) makes the watcher's read, running or yet to come, return at once.
func (g *gate) setUnwatch(on bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.unwatch = on
	if on {
		_ = g.conn.SetReadDeadline(longAgo)
	}
}
