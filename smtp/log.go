package smtp

import (
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	gosmtp "github.com/emersion/go-smtp"
)

// What operators see: one constant per event. Outside text in attributes is cut by clip and
// escaped by the slog handler. Passwords, AUTH data and message text are never attributes.
const (
	logListening   = "smtp.listening"
	logAccepted    = "smtp.accepted"
	logReject      = "smtp.reject" // reason=
	logIntake      = "smtp.intake_failed"
	logBareNewline = "smtp.bare_newline" // action=normalized|rejected count=
	logNUL         = "smtp.nul_replaced"
	logInjection   = "smtp.starttls_injection" // dropped_bytes=
	logTLSFailed   = "smtp.tls_failed"
	logDataTimeout = "smtp.data_timeout" // tail=
	logTimeout     = "smtp.timeout"      // phase=
	logEarlyTalker = "smtp.early_talker"
	logLineTooLong = "smtp.line_too_long"
	logProxyDenied = "smtp.proxy_denied"
	logAbuse       = "smtp.protocol_abuse" // kind=
	logConnLimit   = "smtp.conn_limit"
	logAcceptError = "smtp.accept_error"
	logClientGone  = "smtp.client_gone" // phase=
	logTooMany     = "smtp.too_many_errors"
	logAuthFail    = "auth.fail"
	logAuthOK      = "auth.ok"
	logPanic       = "panic"
	logShutdown    = "shutdown" // drained= cut=
	logReloaded    = "smtp.reloaded"
	logLibrary     = "smtp.library" // what go-smtp itself reports
)

// Reasons of a refusal, for logs and metrics: a small fixed set.
const (
	reasonAddress   = "bad_address"
	reasonRelay     = "relay_denied"
	reasonSize      = "size"
	reasonHeader    = "header"
	reasonLine      = "line"
	reasonLoop      = "loop"
	reasonNewline   = "bare_newline"
	reasonRcptLimit = "rcpt_limit"
	reasonRefused   = "refused"
	reasonNoSpace   = "no_space"
	reasonIntake    = "intake_failed"
	reasonPanic     = "panic"
	reasonSlow      = "data_timeout"
	reasonGone      = "client_gone"
	reasonShutdown  = "shutdown"
)

// clip bounds outside text for a log line.
func clip(s string) string {
	if len(s) <= 256 {
		return s
	}
	s = s[:256]
	for !utf8.ValidString(s) && len(s) > 252 {
		s = s[:len(s)-1]
	}
	return s + "..."
}

// addrAttr is an address in a line above debug.
func (c *Config) addrAttr(key, addr string) slog.Attr {
	if c.HideAddresses && addr != "" {
		return slog.String(key, "<hidden>")
	}
	return slog.String(key, clip(addr))
}

// userAttr is a login name, which may be a mail address.
func (c *Config) userAttr(name string) slog.Attr {
	if strings.Contains(name, "@") {
		return c.addrAttr("user", name)
	}
	return slog.String("user", clip(name))
}

// replyText makes a text fit for a reply line: printable ASCII, at most 400 bytes
// (RFC 5321 4.5.3.1.5 allows 512 octets with code and line end).
func replyText(s string) string {
	var b strings.Builder
	for _, r := range s {
		if b.Len() >= 400 {
			break
		}
		switch {
		case r == '\n' || r == '\r' || r == '\t':
			b.WriteByte(' ')
		case r < 0x20 || r >= 0x7f:
			b.WriteByte('?')
		default:
			b.WriteByte(byte(r))
		}
	}
	return strings.TrimSpace(b.String())
}

// maxReplyLines bounds a reply: who reads it reads no more, and some clients keep no more.
const maxReplyLines = 10

// replyLines are the lines of a reply, each fit for one.
func replyLines(lines []string) (out []string) {
	for i, s := range lines {
		if i == maxReplyLines-1 && len(lines) > maxReplyLines {
			return append(out, fmt.Sprintf("and %d more", len(lines)-i))
		}
		if s = replyText(s); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// smtpError is the only place where a refusal becomes go-smtp's error.
func (r *Refusal) smtpError() *gosmtp.SMTPError {
	code, enh := r.Code, r.Enhanced
	if code < 400 || code > 599 {
		code, enh = 451, [3]int{4, 3, 0}
	}
	if enh == ([3]int{}) || enh[0] != code/100 {
		enh = [3]int{code / 100, 0, 0}
	}
	text := replyText(r.Text)
	if text == "" {
		text = "Refused"
	}
	return &gosmtp.SMTPError{Code: code, EnhancedCode: gosmtp.EnhancedCode(enh), Message: text}
}

// lmtpLine is the reply for one recipient, without its line end: it names the address, as go-smtp
// does, within the 512 octets of RFC 5321 4.5.3.1.5.
func lmtpLine(path string, e *gosmtp.SMTPError) string {
	s := fmt.Sprintf("%d %d.%d.%d <%s> ", e.Code, e.EnhancedCode[0], e.EnhancedCode[1], e.EnhancedCode[2], path)
	return s + e.Message[:max(0, min(len(e.Message), 510-len(s)))]
}

// libLogger takes go-smtp's own messages.
type libLogger struct{ log *slog.Logger }

func (l libLogger) Printf(format string, v ...any) { l.say(fmt.Sprintf(format, v...)) }
func (l libLogger) Println(v ...any)               { l.say(fmt.Sprintln(v...)) }

func (l libLogger) say(s string) {
	if strings.HasPrefix(s, "panic ") {
		l.log.Error(logPanic, "stack", s)
		return
	}
	l.log.Debug(logLibrary, "msg", clip(s))
}

// seldom lets one line per interval through and counts the rest.
type seldom struct {
	mu      sync.Mutex
	last    time.Time
	skipped int
}

func (s *seldom) allow(now time.Time) (skipped int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Sub(s.last) < time.Second && !s.last.IsZero() {
		s.skipped++
		return 0, false
	}
	skipped, s.skipped, s.last = s.skipped, 0, now
	return skipped, true
}
