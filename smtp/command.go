package smtp

import (
	"errors"
	"strconv"
	"strings"
	"unicode/utf8"

	"smtpbridge/envelope"
)

// command is one line from the client, cut into its parts.
type command struct {
	verb string // upper case
	arg  string // without white space around it
}

// parseCommand cuts a line that has no line end any more.
func parseCommand(line string) command {
	line = strings.TrimRight(line, " \t")
	verb, arg, _ := strings.Cut(strings.ReplaceAll(line, "\t", " "), " ")
	return command{verb: strings.ToUpper(verb), arg: strings.TrimSpace(arg)}
}

// hasControl reports bytes that no command may have; a tab counts as white space.
func hasControl(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 && s[i] != '\t' || s[i] == 0x7f {
			return true
		}
	}
	return false
}

// isHTTP reports whether a line is from an HTTP client: browsers can be made to post to any
// port, with SMTP commands in the body.
func isHTTP(line string) bool {
	verb, rest, ok := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "CONNECT", "PATCH", "TRACE", "PRI":
		return ok && rest != ""
	case "HOST:", "USER-AGENT:", "REFERER:", "CONTENT-LENGTH:", "COOKIE:":
		return true
	}
	return false
}

var (
	errPath  = errors.New("not a path")
	errParam = errors.New("bad parameter")
)

// cutPath takes the address out of the argument of MAIL or RCPT behind the colon: with or
// without angle brackets and with white space before it, as old clients write it. The path is
// returned as spelt, quotes included, without a source route: RFC 5321 C says to ignore it, so
// only the last domain counts. null is the path <>.
func cutPath(arg string) (addr, params string, null bool, err error) {
	arg = strings.TrimLeft(arg, " ")
	open := strings.HasPrefix(arg, "<")
	if open {
		arg = arg[1:]
	}
	end, quoted := -1, false
scan:
	for i := 0; i < len(arg); i++ {
		switch c := arg[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case open && c == '>', !open && c == ' ':
			end = i
			break scan
		}
	}
	if quoted {
		return "", "", false, errPath
	}
	switch {
	case end >= 0:
		addr, params = arg[:end], arg[end+1:]
	case open:
		return "", "", false, errPath
	default:
		addr = arg
	}
	if addr == "" {
		if !open {
			return "", "", false, errPath
		}
		return "", params, true, nil
	}
	if addr[0] == '@' {
		_, last, ok := strings.Cut(addr, ":")
		if !ok || last == "" {
			return "", "", false, errPath
		}
		addr = last
	}
	return addr, params, false, nil
}

// esmtpParams cuts "KEY=value KEY" and refuses a key that is given twice, which go-smtp takes.
func esmtpParams(s string) (map[string]string, error) {
	m := map[string]string{}
	for _, f := range strings.Fields(s) {
		k, v, _ := strings.Cut(f, "=")
		k = strings.ToUpper(k)
		if _, dup := m[k]; dup || k == "" {
			return nil, errParam
		}
		m[k] = v
	}
	return m, nil
}

// isBare reports whether addr is a local part alone ("root"), to be qualified.
func isBare(addr string) bool { return !strings.Contains(addr, "@") }

// checkPath validates a full address; utf8OK says that SMTPUTF8 was given. It returns nil or
// the reply, with syntax as the enhanced code of a malformed one.
func checkPath(addr string, utf8OK bool, syntax [3]int) *Refusal {
	if !utf8.ValidString(addr) {
		return &Refusal{Code: 501, Enhanced: syntax, Text: "The address is not valid UTF-8", Reason: reasonAddress}
	}
	if !utf8OK && !envelope.IsASCII(addr) {
		// RFC 6531 3.5: 553 where the address needs SMTPUTF8.
		return &Refusal{Code: 553, Enhanced: [3]int{5, 6, 7}, Text: "This address needs SMTPUTF8", Reason: reasonAddress}
	}
	if err := envelope.ValidateAddr(addr); err != nil {
		return &Refusal{Code: 501, Enhanced: syntax, Text: "Bad address: " + strings.TrimPrefix(err.Error(), envelope.ErrAddress.Error()+": "), Reason: reasonAddress}
	}
	return nil
}

// parseBDAT reads "SIZE [LAST]" (RFC 3030 2).
func parseBDAT(arg string) (size int64, last bool, err error) {
	f := strings.Fields(arg)
	if len(f) == 0 || len(f) > 2 || len(f) == 2 && !strings.EqualFold(f[1], "LAST") {
		return 0, false, errParam
	}
	n, err := strconv.ParseUint(f[0], 10, 32)
	if err != nil {
		return 0, false, errParam
	}
	return int64(n), len(f) == 2, nil
}
