// Package envelope holds what an SMTP client said about one mail: reverse path,
// recipients and their RFC 3461 parameters, and who said it. An Envelope is
// written once, at the end of a transaction, and never edited afterwards; it is
// the only truth about who receives the mail.
package envelope

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// Envelope is one accepted SMTP transaction.
type Envelope struct {
	ID       string    `json:"id"`                  // sortable by time of acceptance; the one key through logs, events and provider references
	From     string    `json:"from"`                // reverse path (RFC 5321 4.1.1.2); "" for the null sender <>
	Rcpts    []Rcpt    `json:"rcpts"`               // in the order of the RCPT commands, without duplicates
	EnvID    string    `json:"envid,omitempty"`     // ENVID, decoded (RFC 3461 4.4)
	Ret      string    `json:"ret,omitempty"`       // "FULL", "HDRS" or "" (RFC 3461 4.3)
	UTF8     bool      `json:"utf8,omitempty"`      // SMTPUTF8 was given (RFC 6531)
	EightBit bool      `json:"eight_bit,omitempty"` // BODY=8BITMIME was given (RFC 6152)
	Size     int64     `json:"size"`                // bytes of the message as stored
	Listener string    `json:"listener,omitempty"`  // name of the listener that took it
	Peer     string    `json:"peer,omitempty"`      // address of the client, without port; "" for a unix socket
	Helo     string    `json:"helo,omitempty"`      // what the client called itself
	Inbound  string    `json:"inbound,omitempty"`   // account of the ESP that handed over a received mail, "" for mail that came by SMTP
	AuthUser string    `json:"auth_user,omitempty"` // name of the authenticated user, "" without AUTH
	Received time.Time `json:"received"`            // end of DATA, UTC
}

// Rcpt is one envelope recipient. A blind recipient exists only here.
type Rcpt struct {
	Addr   string   `json:"addr"`             // forward path as the client spelt it, without angle brackets
	Notify []string `json:"notify,omitempty"` // NEVER, or some of SUCCESS, FAILURE, DELAY (RFC 3461 4.1); empty: not given
	ORCPT  string   `json:"orcpt,omitempty"`  // "addr-type;address", decoded (RFC 3461 4.2)
}

// crockford is Crockford's base32 in lower case: no i, l, o, u, and in ASCII order.
const crockford = "0123456789abcdefghjkmnpqrstvwxyz"

// NewID returns a 26-character identifier: 48 bits of milliseconds and 80 random bits
// in base32, so that identifiers sort by time and need no coordination between machines.
func NewID(now time.Time) string {
	var b [16]byte
	ms := uint64(now.UnixMilli())
	binary.BigEndian.PutUint64(b[:8], ms<<16)
	if _, err := rand.Read(b[6:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	var out [26]byte
	// 128 bits as 26 digits of 5 bits, most significant first.
	hi, lo := binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])
	for i := 25; i >= 0; i-- {
		out[i] = crockford[lo&31]
		lo = lo>>5 | hi<<59
		hi >>= 5
	}
	return string(out[:])
}

// ErrAddress says that a text is not an address we route or deliver to.
var ErrAddress = errors.New("not a valid address")

// Split cuts addr at its last @. Both parts are empty when there is none.
func Split(addr string) (local, domain string) {
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return "", ""
	}
	return addr[:i], addr[i+1:]
}

// Domain returns the folded domain of addr (see FoldDomain), "" when it has none.
func Domain(addr string) string {
	_, d := Split(addr)
	return FoldDomain(d)
}

// FoldDomain returns the form of a domain that two spellings share: A-labels
// (RFC 5891) in lower case, without a final dot. A domain that is not valid IDNA
// (an underscore, an address literal) is only lower-cased.
func FoldDomain(domain string) string {
	domain = strings.ToLower(strings.TrimSuffix(domain, "."))
	for i := 0; i < len(domain); i++ {
		if domain[i] >= 0x80 {
			if a, err := idna.Lookup.ToASCII(domain); err == nil {
				return a
			}
			return domain
		}
	}
	return domain
}

// Fold returns the key under which two spellings of one mailbox are the same:
// the local part as it is (RFC 5321 2.4: case may matter), the domain folded.
func Fold(addr string) string {
	local, domain := Split(addr)
	if domain == "" {
		return addr
	}
	return local + "@" + FoldDomain(domain)
}

// Equal reports whether a and b name the same mailbox by Fold.
func Equal(a, b string) bool { return Fold(a) == Fold(b) }

// ValidateAddr checks addr as a mailbox for RCPT or a header: one unquoted or quoted
// local part of at most 64 octets, an at sign, a domain or address literal, at most
// 254 octets in all (RFC 5321 4.5.3.1), no control characters or white space outside quotes.
// Octets above 0x7F are allowed; whether SMTPUTF8 was offered is the caller's question.
func ValidateAddr(addr string) error {
	if len(addr) > 254 {
		return fmt.Errorf("%w: longer than 254 octets", ErrAddress)
	}
	for i := 0; i < len(addr); i++ {
		if addr[i] < 0x20 || addr[i] == 0x7f {
			return fmt.Errorf("%w: it has a control character", ErrAddress)
		}
	}
	local, domain := Split(addr)
	switch {
	case local == "" || domain == "":
		return fmt.Errorf("%w: it needs the form local@domain", ErrAddress)
	case len(local) > 64:
		return fmt.Errorf("%w: local part longer than 64 octets", ErrAddress)
	case !validLocal(local):
		return fmt.Errorf("%w: bad local part", ErrAddress)
	case !validDomain(domain):
		return fmt.Errorf("%w: bad domain", ErrAddress)
	}
	return nil
}

func validLocal(s string) bool {
	if s[0] == '"' {
		if len(s) < 2 || s[len(s)-1] != '"' {
			return false
		}
		for i := 1; i < len(s)-1; i++ {
			switch s[i] {
			case '\\':
				if i++; i >= len(s)-1 {
					return false
				}
			case '"':
				return false
			}
		}
		return true
	}
	// Dots at the ends or doubled are not RFC 5321, but carriers and old systems use them.
	return !strings.ContainsAny(s, " \t\"(),:;<>@[]\\")
}

func validDomain(s string) bool {
	if strings.HasPrefix(s, "[") {
		return strings.HasSuffix(s, "]") && len(s) > 2 && !strings.ContainsAny(s[1:len(s)-1], "[]\\ ")
	}
	if len(FoldDomain(s)) > 253 {
		return false
	}
	for _, label := range strings.Split(strings.TrimSuffix(s, "."), ".") {
		if label == "" || len(label) > 63 && isASCII(label) || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, r := range label {
			if r < 0x80 && !(r == '-' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z') {
				return false
			}
		}
	}
	return true
}

func isASCII(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// IsASCII reports whether addr needs no SMTPUTF8 (RFC 6531) to be transported.
func IsASCII(addr string) bool { return isASCII(addr) }

// MatchPattern reports whether addr fits a configured pattern: "*" (everything),
// "example.com" (that domain), "*.example.com" (its subdomains, not itself),
// "user@example.com" (that address) or "*@example.com" (as the domain).
func MatchPattern(pattern, addr string) bool {
	if pattern == "*" {
		return true
	}
	domain := Domain(addr)
	if local, pd := Split(pattern); pd != "" {
		if local != "*" {
			return Equal(pattern, addr)
		}
		pattern = pd
	}
	if sub, ok := strings.CutPrefix(pattern, "*."); ok {
		return strings.HasSuffix(domain, "."+FoldDomain(sub))
	}
	return domain != "" && FoldDomain(pattern) == domain
}

// MatchAny reports whether any pattern matches addr.
func MatchAny(patterns []string, addr string) bool {
	for _, p := range patterns {
		if MatchPattern(p, addr) {
			return true
		}
	}
	return false
}
