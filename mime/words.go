package mime

import (
	"encoding/base64"
	"strings"
)

// wordInfo says what was odd about the encoded words of a value.
type wordInfo struct {
	charset bool // one could not be read in its charset
	control bool // one holds control characters
}

// decodeHeader decodes the encoded words of a value (RFC 2047), wherever they stand: real mailers
// put them into quoted strings, file names and right behind other text. White space between two of
// them goes away, and the octets of neighbours in one charset are decoded together, because
// mailers cut multi-byte characters apart.
func decodeHeader(s string) (string, wordInfo) {
	var info wordInfo
	if !strings.Contains(s, "=?") {
		return s, info
	}
	var out strings.Builder
	var octets []byte // decoded octets of the words read so far
	var charset string
	flush := func() {
		if len(octets) > 0 {
			text, ok := decodeCharset(charset, octets)
			if !ok {
				info.charset = true
			}
			if _, control := clean(text); control {
				info.control = true
			}
			out.WriteString(text)
		}
		octets = octets[:0]
	}
	inWords := false
	for len(s) > 0 {
		i := strings.Index(s, "=?")
		if i < 0 {
			break
		}
		w, ok := parseWord(s[i:])
		if !ok {
			flush()
			inWords = false
			out.WriteString(s[:i+2])
			s = s[i+2:]
			continue
		}
		if gap := s[:i]; !inWords || strings.Trim(gap, " \t\r\n") != "" {
			flush()
			out.WriteString(gap)
		}
		if !strings.EqualFold(charset, w.charset) {
			flush()
			charset = w.charset
		}
		octets = w.appendOctets(octets)
		inWords = true
		s = s[i+w.size:]
	}
	flush()
	out.WriteString(s)
	return out.String(), info
}

// word is one encoded word.
type word struct {
	charset  string
	encoding byte // 'b' or 'q'
	text     string
	size     int
}

// parseWord reads the encoded word at the start of s. The language tag of RFC 2231 5 is dropped.
func parseWord(s string) (word, bool) {
	const maxCharset = 80
	if !strings.HasPrefix(s, "=?") {
		return word{}, false
	}
	head := s[2:min(len(s), maxCharset)]
	cs, rest, ok := strings.Cut(head, "?")
	if !ok || cs == "" || strings.ContainsAny(cs, " \t\r\n\"=<>,;") || len(rest) < 2 || rest[1] != '?' {
		return word{}, false
	}
	w := word{encoding: rest[0] | 0x20}
	if w.encoding != 'b' && w.encoding != 'q' {
		return word{}, false
	}
	w.charset, _, _ = strings.Cut(cs, "*")
	start := 2 + len(cs) + 3
	// The end must come before the next word starts; looking no further keeps this linear.
	rest = s[start:]
	if next := strings.Index(rest, "=?"); next >= 0 {
		rest = rest[:min(len(rest), next+3)] // with the end of "=?="
	}
	n := strings.Index(rest, "?=")
	if n < 0 {
		return word{}, false
	}
	w.text = rest[:n]
	w.size = start + n + 2
	return w, true
}

func (w word) appendOctets(dst []byte) []byte {
	if w.encoding == 'b' {
		return appendBase64(dst, w.text)
	}
	for i := 0; i < len(w.text); i++ {
		switch c := w.text[i]; c {
		case '_':
			dst = append(dst, ' ')
		case '=':
			if i+2 < len(w.text) {
				if v, ok := unhex(w.text[i+1], w.text[i+2]); ok {
					dst = append(dst, v)
					i += 2
					continue
				}
			}
			dst = append(dst, c)
		default:
			dst = append(dst, c)
		}
	}
	return dst
}

// appendBase64 decodes what can be decoded of s.
func appendBase64(dst []byte, s string) []byte {
	if out, err := base64.StdEncoding.AppendDecode(dst, []byte(s)); err == nil {
		return out
	}
	var d base64State
	dst = d.append(dst, []byte(s))
	return d.finish(dst)
}

func unhex(a, b byte) (byte, bool) {
	x, ok1 := hexDigit(a)
	y, ok2 := hexDigit(b)
	return x<<4 | y, ok1 && ok2
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10, true
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10, true
	}
	return 0, false
}
