package mime

import (
	"sort"
	"strings"
)

// valueParams is a structured field value with its parameters (RFC 2045 5.1, RFC 2183).
type valueParams struct {
	value  string
	params map[string]string // decoded, names lower case
}

// Bounds of what is kept of one field; a real one has a handful.
const (
	maxNames    = 1000
	maxSections = 50_000
)

// section is one piece of a parameter (RFC 2231 3).
type section struct {
	n        int
	extended bool
	text     string
}

// parameters reads a field value of the form "value; name=value ...". It takes what mailers write:
// missing semicolons and quotes, raw 8-bit text, encoded words in file names. Of repeated parameters
// the first wins; the form of RFC 2231 is preferred to the plain one.
func (p *parser) parameters(s, field string) valueParams {
	v := valueParams{params: map[string]string{}}
	s = skipCFWS(s)
	i := strings.IndexAny(s, "; \t(\"")
	if strings.HasPrefix(s, "\"") { // a quoted value: nobody means the quotes
		var word string
		word, s = quoted(s)
		v.value = strings.TrimSpace(word)
	} else if j := strings.IndexByte(s, '='); j >= 0 && (i < 0 || j < i) {
		v.value = "" // parameters only
	} else {
		if i < 0 {
			i = len(s)
		}
		v.value, s = s[:i], s[i:]
		// "text / plain" is legal in the grammar of RFC 822.
		if rest := skipCFWS(s); strings.HasPrefix(rest, "/") || strings.HasSuffix(v.value, "/") {
			rest = skipCFWS(strings.TrimPrefix(rest, "/"))
			if j := strings.IndexAny(rest, "; \t("); j >= 0 {
				v.value, s = strings.TrimSuffix(v.value, "/")+"/"+rest[:j], rest[j:]
			} else {
				v.value, s = strings.TrimSuffix(v.value, "/")+"/"+rest, ""
			}
		}
	}
	v.value = cleanString(v.value)

	sections := map[string][]section{}
	whole := map[string]int{} // how many that are no sections
	var order []string
	for {
		s = strings.TrimLeft(skipCFWS(s), "; \t,")
		s = skipCFWS(s)
		if s == "" {
			break
		}
		name, rest, ok := cutName(s)
		if !ok {
			if p != nil {
				p.defect("header", "something that is no parameter in %s", field)
			}
			if _, s, ok = strings.Cut(s, ";"); !ok {
				break
			}
			continue
		}
		base, sec := splitName(name)
		sec.text, s = paramValue(rest, base == "filename" || base == "name")
		known := sections[base]
		if len(known) == 0 {
			if len(order) == maxNames {
				continue
			}
			order = append(order, base)
		}
		if len(known) == maxSections {
			continue
		}
		if sec.n < 0 {
			if whole[base]++; whole[base] > 3 {
				continue
			}
		}
		sections[base] = append(known, sec)
	}
	for _, base := range order {
		text, odd := joinSections(sections[base])
		if base == "name" || base == "filename" {
			decoded, info := decodeHeader(text)
			if text = decoded; info.charset {
				odd = "charset"
			}
		}
		text, control := clean(text)
		if p != nil && control {
			p.defect("control", "control characters in %s", field)
		}
		if p != nil && odd != "" {
			p.defect(odd, "parameter %s of %s", cut(base, 64), field)
		}
		v.params[base] = text
	}
	return v
}

// cutName takes the name of a parameter and its equals sign off s.
func cutName(s string) (name, rest string, ok bool) {
	i := strings.IndexAny(s, "=;\" \t(")
	if i <= 0 {
		return "", s, false
	}
	rest = skipCFWS(s[i:])
	if !strings.HasPrefix(rest, "=") {
		return "", s, false
	}
	return strings.ToLower(s[:i]), strings.TrimLeft(rest[1:], " \t"), true
}

// splitName reads the asterisks of RFC 2231: name*, name*0, name*0*.
func splitName(name string) (base string, sec section) {
	sec.n = -1
	base, rest, ok := strings.Cut(name, "*")
	if !ok {
		return name, sec
	}
	if rest == "" {
		sec.extended = true
		return base, sec
	}
	digits, extended := strings.CutSuffix(rest, "*")
	n := 0
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' || n > 1e6 {
			return name, section{n: -1} // no section: a strange name
		}
		n = n*10 + int(c-'0')
	}
	if digits == "" {
		return name, section{n: -1}
	}
	return base, section{n: n, extended: extended}
}

// paramValue takes the value of a parameter off s. Unquoted, a file name goes to the next
// semicolon; another value ends at a comment too, or where a further parameter starts.
func paramValue(s string, isName bool) (value, rest string) {
	if strings.HasPrefix(s, "\"") {
		return quoted(s)
	}
	end := strings.IndexByte(s, ';')
	if end < 0 {
		end = len(s)
	}
	value, rest = s[:end], s[end:]
	if !isName {
		if i := strings.IndexByte(value, '('); i > 0 {
			value, rest = value[:i], s[i:]
		}
		if i := strings.IndexAny(value, " \t"); i > 0 {
			if _, _, ok := cutName(strings.TrimLeft(value[i:], " \t,")); ok {
				value, rest = value[:i], s[i:]
			}
		}
	}
	return strings.TrimRight(value, " \t"), rest
}

// quoted takes a quoted string off s. Only \" and \\ are escapes, because some mailers write Windows
// paths; a quote that is followed by a letter does not close; without a closing quote the value goes to the next semicolon.
func quoted(s string) (value, rest string) {
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s) && (s[i+1] == '"' || s[i+1] == '\\'):
			i++
			b.WriteByte(s[i])
		case c == '"' && (i+1 == len(s) || strings.IndexByte("; \t(,\r\n", s[i+1]) >= 0):
			return b.String(), s[i+1:]
		default:
			b.WriteByte(c)
		}
	}
	if i := strings.LastIndexByte(s[1:], '"'); i >= 0 {
		return s[1 : i+1], s[i+2:]
	}
	value, rest, _ = strings.Cut(s[1:], ";")
	return strings.TrimRight(value, " \t"), rest
}

// joinSections puts the sections of one parameter together (RFC 2231 3 and 4). odd names the defect, "" for none.
func joinSections(all []section) (value, odd string) {
	var plain, single *section // name=, name*=
	var numbered []section
	for i := range all {
		sec := &all[i]
		switch {
		case sec.n >= 0:
			numbered = append(numbered, *sec)
		case sec.extended && single == nil:
			single = sec
		case !sec.extended && plain == nil:
			plain = sec
		default:
			odd = "rfc2231"
		}
	}
	if single != nil {
		text, ok := joinExtended([]section{*single})
		if ok || plain == nil {
			if !ok {
				odd = "rfc2231"
			}
			return text, odd
		}
		return plain.text, "rfc2231"
	}
	if len(numbered) > 0 {
		sort.SliceStable(numbered, func(i, j int) bool { return numbered[i].n < numbered[j].n })
		run := numbered[:0]
		for _, sec := range numbered {
			switch {
			case sec.n == len(run):
				run = append(run, sec)
			default: // a gap or a repeated number
				odd = "rfc2231"
			}
		}
		if len(run) > 0 {
			text, ok := joinExtended(run)
			if ok || plain == nil {
				if !ok {
					odd = "rfc2231"
				}
				return text, odd
			}
			odd = "rfc2231"
		}
	}
	if plain != nil {
		return plain.text, odd
	}
	return "", "rfc2231"
}

// joinExtended decodes sections that follow one another. Octets of neighbours are decoded together, as a character may be cut apart.
func joinExtended(run []section) (text string, ok bool) {
	charset := ""
	if run[0].extended {
		if cs, rest, found := strings.Cut(run[0].text, "'"); found && len(cs) < 80 {
			if _, value, found := strings.Cut(rest, "'"); found {
				charset = cs
				run[0].text = value
			}
		}
	}
	var out strings.Builder
	var octets []byte
	ok = true
	flush := func() {
		if len(octets) == 0 {
			return
		}
		cs := charset
		if cs == "" {
			cs = "utf-8"
		}
		s, good := decodeCharset(cs, octets)
		ok = ok && good
		out.WriteString(s)
		octets = octets[:0]
	}
	for _, sec := range run {
		if !sec.extended {
			flush()
			out.WriteString(sec.text)
			continue
		}
		octets = appendPercent(octets, sec.text)
	}
	flush()
	return out.String(), ok
}

// appendPercent decodes %XX; other percent signs stay.
func appendPercent(dst []byte, s string) []byte {
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) {
			if v, ok := unhex(s[i+1], s[i+2]); ok {
				dst = append(dst, v)
				i += 2
				continue
			}
		}
		dst = append(dst, s[i])
	}
	return dst
}

// skipCFWS drops white space and comments from the start of s.
func skipCFWS(s string) string {
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if !strings.HasPrefix(s, "(") {
			return s
		}
		n := commentLen(s)
		if n == 0 {
			return s
		}
		s = s[n:]
	}
}

// commentLen gives the length of the comment at the start of s (RFC 5322 3.2.2), 0 when it does not end.
func commentLen(s string) int {
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return 0
}

// stripComments takes the comments out of s.
func stripComments(s string) string {
	var out strings.Builder
	for {
		i := strings.IndexByte(s, '(')
		if i < 0 {
			break
		}
		n := commentLen(s[i:])
		if n == 0 {
			break
		}
		out.WriteString(s[:i])
		s = s[i+n:]
	}
	out.WriteString(s)
	return out.String()
}

func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7F || strings.IndexByte("()<>@,;:\\\"/[]?=", c) >= 0 {
			return false
		}
	}
	return s != ""
}
