package mime

import (
	"math"
	"strings"
)

// ParseAddressList reads an address list (RFC 5322 3.4) as leniently as Parse does: groups are
// flattened, comments are dropped, and what has no address is left out.
func ParseAddressList(s string) []Address {
	a := addressParser{s: toUTF8(unfold([]byte(s))), max: math.MaxInt}
	a.parse()
	return a.list
}

// addressParser reads one address list in linear time. Structure is found before anything is decoded, so
// a display name or an encoded word can hold whatever it likes and never becomes an address.
type addressParser struct {
	s   string
	max int

	list   []Address
	legacy []Address // those of list whose name is a comment behind the address
	over   bool      // more addresses than max
	defect string

	words      []addrWord // of the current mailbox, outside angle brackets
	comment    string     // the last comment of the current mailbox
	angle      string     // what stands in angle brackets
	hasAngle   bool
	after      []addrWord // what follows the brackets: nothing, or the name of a mailbox whose comma is missing
	held       []addrWord // an element without an address before the current one: half of an unquoted "Last, First"
	noComments bool       // no comment ends behind here
	noQuotes   bool       // nor a quoted string
}

type addrWord struct {
	text    string
	quoted  bool
	encoded bool // an encoded word (RFC 2047), not decoded yet
	space   bool // white space before it
}

// maxWords is how many words of one element are looked at.
const maxWords = 1000

func (a *addressParser) parse() {
	s := a.s
	i := 0
	space := false
	for i < len(s) && !a.over {
		c := s[i]
		switch c {
		case ' ', '\t', '\r', '\n':
			space = true
			i++
			continue
		case '(':
			if !a.noComments {
				if n := commentLen(s[i:]); n > 0 {
					a.comment = unescape(s[i+1 : i+n-1])
					i += n
					space = true
					continue
				}
				a.noComments = true
				a.note("a comment without an end")
			}
			a.word("(", false, space)
			i++
		case '"':
			text, n := a.quoted(s[i:])
			if n == 0 {
				a.note("a quote without an end")
				i++
				continue
			}
			a.word(text, true, space)
			i += n
		case '<':
			i = a.angleAddr(i)
		case ',', ';':
			a.flush(c == ',')
			i++
		case ':':
			if a.group() {
				a.words, a.comment, a.held = nil, "", nil
			} else {
				a.word(":", false, space)
			}
			i++
		case '[':
			// A domain literal may hold colons and commas (RFC 5322 3.4.1).
			if n := strings.IndexAny(s[i:min(len(s), i+256)], "]<>\" \t"); n > 0 && s[i+n] == ']' && len(a.words) > 0 && strings.HasSuffix(a.words[len(a.words)-1].text, "@") {
				a.word(s[i:i+n+1], false, space)
				i += n + 1
			} else {
				a.word("[", false, space)
				i++
			}
		default:
			// An encoded word may hold, against RFC 2047 5, what separates addresses.
			if w, ok := parseWord(s[i:]); ok {
				a.put(addrWord{text: s[i : i+w.size], encoded: true, space: space})
				i += w.size
				break
			}
			n := strings.IndexAny(s[i+1:], " \t\r\n(\"<,;:[")
			if n < 0 {
				n = len(s) - i - 1
			}
			a.word(s[i:i+1+n], false, space)
			i += 1 + n
		}
		space = false
	}
	a.flush(false)
	a.drop()
}

// quoted is quotedAddr, and remembers when no quoted string ends any more.
func (a *addressParser) quoted(s string) (text string, n int) {
	if a.noQuotes {
		return "", 0
	}
	text, n = quotedAddr(s)
	a.noQuotes = n == 0
	return text, n
}

func (a *addressParser) note(what string) {
	if a.defect == "" {
		a.defect = what
	}
}

func (a *addressParser) word(text string, quoted, space bool) {
	a.put(addrWord{text: text, quoted: quoted, space: space})
}

func (a *addressParser) put(w addrWord) {
	to := &a.words
	if a.hasAngle {
		to = &a.after
	}
	if len(*to) >= maxWords {
		a.note("too many words")
		return
	}
	*to = append(*to, w)
}

// group reports whether the words so far are the name of a group (RFC 5322 3.4).
func (a *addressParser) group() bool {
	if a.hasAngle {
		return false
	}
	for _, w := range a.words {
		if !w.quoted && !w.encoded && strings.Contains(w.text, "@") {
			return false
		}
	}
	return true
}

// angleAddr reads "<...>" at i and returns where it ends.
func (a *addressParser) angleAddr(i int) int {
	s := a.s
	if a.hasAngle { // a missing comma
		a.note("a missing comma")
		next := a.after
		a.after = nil
		a.flush(false)
		a.words = next
	}
	i++
	for i < len(s) && (s[i] == '<' || s[i] == ' ' || s[i] == '\t') {
		i++
	}
	start := i
	for i < len(s) && s[i] != '>' {
		switch s[i] {
		case '"':
			if _, n := a.quoted(s[i:]); n > 0 {
				i += n
				continue
			}
		case '<':
			// "<a <b@c>": the last one counts, as for a name in front of it.
			a.note("nested angle brackets")
			start = i + 1
		}
		i++
	}
	a.angle = s[start:i]
	if i == len(s) {
		a.note("an angle bracket without an end")
		a.angle, _, _ = strings.Cut(a.angle, ",")
		i = start + len(a.angle)
	}
	a.hasAngle = true
	for i < len(s) && s[i] == '>' {
		i++
	}
	return i
}

// flush ends the current mailbox.
func (a *addressParser) flush(comma bool) {
	words, comment, angle, hasAngle := a.words, a.comment, a.angle, a.hasAngle
	if len(a.after) > 0 {
		a.note("text after an address")
	}
	a.words, a.after, a.comment, a.angle, a.hasAngle = nil, nil, "", "", false
	if hasAngle {
		if len(a.held) > 0 && len(words) > 0 {
			a.note("an unquoted comma in a display name")
			last := &a.held[len(a.held)-1]
			last.text += ","
			words[0].space = true
			words = append(a.held, words...)
		} else {
			a.drop()
		}
		a.held = nil
		name := phrase(words)
		addr := addrSpec(angle)
		if addr == "" {
			if name != "" {
				a.note("a name without an address")
			}
			return
		}
		a.add(name, comment, addr)
		return
	}
	if len(words) == 0 {
		return
	}
	// Without brackets: "a@b", "a @ b", or, broken, "Name a@b" and "a@b c@d".
	at := false
	for _, w := range words {
		at = at || !w.quoted && !w.encoded && strings.Contains(w.text, "@")
	}
	if !at {
		if comma && len(words) < 8 {
			a.drop()
			a.held = words
			if comment != "" {
				a.held = nil
				a.bare(words, comment)
			}
			return
		}
		a.drop()
		a.bare(words, comment)
		return
	}
	a.drop()
	a.plain(words, comment)
}

// drop settles an element without an address that was held back.
func (a *addressParser) drop() {
	if held := a.held; len(held) > 0 {
		a.held = nil
		a.bare(held, "")
	}
}

// bare takes an element without "@": one word is a local address (root), more are only a name.
func (a *addressParser) bare(words []addrWord, comment string) {
	if len(words) == 1 && !words[0].quoted && !words[0].encoded {
		a.add("", comment, addrSpec(words[0].text))
		return
	}
	a.note("a name without an address")
}

// plain takes an element with "@" and no angle brackets.
func (a *addressParser) plain(words []addrWord, comment string) {
	// Put the tokens of an address together: around "@" and "." white space is allowed.
	var joined []addrWord
	for i := 0; i < len(words); {
		j := i + 1
		for j < len(words) && (!words[j].space || glued(words[j-1].text, words[j].text)) {
			j++
		}
		w := words[i]
		if j > i+1 {
			var b strings.Builder
			for _, part := range words[i:j] {
				b.WriteString(wordText(part))
			}
			w.text, w.quoted = b.String(), false
		}
		joined = append(joined, w)
		i = j
	}
	var name []addrWord
	found := false
	for _, w := range joined {
		if w.quoted || w.encoded || !strings.Contains(w.text, "@") {
			name = append(name, w)
			continue
		}
		if found {
			a.note("a missing comma")
		}
		found = true
		display := phrase(name)
		if len(name) > 0 {
			a.note("a display name without angle brackets")
		}
		name = nil
		a.add(display, comment, addrSpec(wordText(w)))
	}
	if len(name) > 0 {
		if found {
			a.note("text after an address")
		} else {
			a.note("a name without an address")
		}
	}
}

// glued reports whether white space between two tokens is inside an address.
func glued(before, after string) bool {
	return before == "." || strings.HasSuffix(before, "@") || strings.HasPrefix(after, ".") || strings.HasPrefix(after, "@")
}

// wordText gives a word as it stands in an address: a quoted local part keeps its quotes.
func wordText(w addrWord) string {
	if w.quoted {
		return quote(w.text)
	}
	return w.text
}

// add takes an address. Without a display name the comment is the name, as Unix tools write it: "root@host (Cron Daemon)".
func (a *addressParser) add(name, comment, addr string) {
	if addr == "" {
		return
	}
	legacy := name == "" && comment != ""
	if legacy {
		name = comment
	}
	if len(a.list) == a.max {
		a.over = true
		return
	}
	name, _ = decodeHeader(name)
	a.list = append(a.list, Address{Name: cleanString(name), Addr: cleanString(addr)})
	if legacy {
		a.legacy = append(a.legacy, a.list[len(a.list)-1])
	}
}

// phrase gives the words of a display name, before decoding.
func phrase(words []addrWord) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 && w.space {
			b.WriteByte(' ')
		}
		b.WriteString(w.text)
	}
	return strings.TrimSpace(b.String())
}

// addrSpec cleans what stands in angle brackets: comments, white space around dots and "@", and the source
// route of RFC 822 go; the rest is as written.
func addrSpec(s string) string {
	if strings.ContainsAny(s, "(") && !strings.Contains(s, "\"") {
		s = stripComments(s)
	}
	s = strings.TrimSpace(s)
	if strings.HasPrefix(s, "@") {
		if _, rest, ok := strings.Cut(s, ":"); ok {
			s = strings.TrimSpace(rest)
		}
	}
	if strings.ContainsAny(s, " \t\r\n") && !strings.Contains(s, "\"") {
		f := strings.Fields(s)
		s = f[0]
		for _, w := range f[1:] {
			if !strings.HasSuffix(s, ".") && !strings.HasSuffix(s, "@") && !strings.HasPrefix(w, ".") && !strings.HasPrefix(w, "@") {
				s += " "
			}
			s += w
		}
	}
	return s
}

// quotedAddr reads the quoted string at the start of s (RFC 5322 3.2.4) and its length, 0 when it does not end.
func quotedAddr(s string) (text string, n int) {
	escaped := false
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			escaped = true
			i++
		case '"':
			if text = s[1:i]; escaped {
				text = unescape(text)
			}
			return text, i + 1
		}
	}
	return "", 0
}

// unescape takes the backslashes of quoted pairs out.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func quote(s string) string {
	return "\"" + strings.NewReplacer("\\", "\\\\", "\"", "\\\"").Replace(s) + "\""
}
