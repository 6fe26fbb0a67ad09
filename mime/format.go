package mime

import (
	"encoding/base64"
	"strings"
	"unicode/utf8"
)

// FormatAddress writes an address as RFC 5322 wants it, the name quoted where it must be. Other than ASCII stays UTF-8, for
// APIs that take it; header fields are written with FormatAddressHeader.
func FormatAddress(a Address) string {
	name := cleanString(a.Name)
	if name == "" {
		return cleanString(a.Addr)
	}
	if !isPhrase(name) {
		name = quote(name)
	}
	return name + " <" + cleanString(a.Addr) + ">"
}

// isPhrase reports whether a name needs no quotes: atoms with single spaces, and nothing that reads as an encoded word.
func isPhrase(s string) bool {
	if strings.Contains(s, "=?") || strings.Contains(s, "  ") {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c >= utf8.RuneSelf:
		case strings.IndexByte(" !#$%&'*+-/=?^_`{|}~", c) >= 0:
		default:
			return false
		}
	}
	return s != ""
}

const (
	foldAt    = 76 // RFC 5322 2.1.1 asks for 78 at most, RFC 2047 2 for 76 in lines with encoded words
	nameSpace = 24 // left free in the first line for the field name
)

// FormatAddressHeader writes an address list as the value of a header field: names outside ASCII as encoded words (RFC
// 2047), folded. Addresses outside ASCII stay UTF-8 (RFC 6532).
func FormatAddressHeader(list []Address) string {
	f := folder{col: nameSpace}
	for i, a := range list {
		end := ""
		if i < len(list)-1 {
			end = ","
		}
		name, addr := cleanString(a.Name), cleanString(a.Addr)
		if name == "" {
			f.word(addr + end)
			continue
		}
		switch {
		case isASCII([]byte(name)) && len(name) < foldAt-2 && !strings.Contains(name, "=?"):
			if !isPhrase(name) {
				name = quote(name)
			}
			f.word(name)
		default:
			for _, w := range encodeWords(name) {
				f.word(w)
			}
		}
		f.word("<" + addr + ">" + end)
	}
	return f.b.String()
}

// EncodeHeaderValue writes text as the value of an unstructured header field: encoded words (RFC 2047)
// if it holds more than printable ASCII, folded. Control characters become spaces.
func EncodeHeaderValue(s string) string {
	s = cleanString(s)
	f := folder{col: nameSpace}
	plain := isASCII([]byte(s)) && !strings.Contains(s, "=?")
	for _, w := range strings.Fields(s) {
		plain = plain && len(w) < 900 // RFC 5322 2.1.1: 998 octets in a line
	}
	if !plain {
		for _, w := range encodeWords(s) {
			f.word(w)
		}
		return f.b.String()
	}
	// Runs of spaces stay: a line is only broken where there is one space.
	for i, w := range strings.Split(s, " ") {
		if i > 0 && (w == "" || strings.HasSuffix(f.b.String(), " ")) {
			f.b.WriteByte(' ')
			f.col++
			f.glue = w != ""
			if w == "" {
				continue
			}
		}
		f.word(w)
	}
	return f.b.String()
}

// folder joins words by spaces, and by CRLF SPACE where a line gets too long.
type folder struct {
	b    strings.Builder
	col  int
	glue bool // no space before the next word
}

func (f *folder) word(w string) {
	switch {
	case f.b.Len() == 0 || f.glue:
	case f.col+1+len(w) > foldAt:
		f.b.WriteString("\r\n ")
		f.col = 1
	default:
		f.b.WriteByte(' ')
		f.col++
	}
	f.glue = false
	f.b.WriteString(w)
	f.col += len(w)
}

// encodeWords writes s as encoded words of at most 75 characters, cut between characters only.
func encodeWords(s string) []string {
	const (
		start = "=?utf-8?b?"
		first = 30 // octets: 52 characters with the frame, beside the field name
		limit = 45 // octets: 72 characters with the frame
	)
	s = strings.ToValidUTF8(s, "\uFFFD")
	var words []string
	for len(s) > 0 {
		n := limit
		if len(words) == 0 {
			n = first
		}
		n = len(cut(s, n))
		words = append(words, start+base64.StdEncoding.EncodeToString([]byte(s[:n]))+"?=")
		s = s[n:]
	}
	return words
}
