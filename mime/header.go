package mime

import (
	"bytes"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
)

// Get returns the decoded value of the first field with that name (case-insensitive), "" when absent.
func (h Header) Get(name string) string {
	if f := h.first(name); f != nil {
		return f.Value
	}
	return ""
}

// Values returns the decoded values of all fields with that name, in order.
func (h Header) Values(name string) []string {
	var values []string
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			values = append(values, h[i].Value)
		}
	}
	return values
}

// Has reports whether a field with that name exists.
func (h Header) Has(name string) bool { return h.first(name) != nil }

func (h Header) first(name string) *Field {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return &h[i]
		}
	}
	return nil
}

// raw gives the unfolded value before RFC 2047 decoding, as UTF-8.
func (f *Field) raw() string {
	_, v, _ := bytes.Cut(f.Raw, []byte{':'})
	return toUTF8(unfold(v))
}

// unfold takes the line ends out (RFC 5322 2.2.3); the white space after them stays.
func unfold(v []byte) []byte {
	v = bytes.Trim(v, " \t\r\n")
	if bytes.IndexByte(v, '\n') < 0 && bytes.IndexByte(v, '\r') < 0 {
		return v
	}
	out := make([]byte, 0, len(v))
	for _, c := range v {
		if c != '\r' && c != '\n' {
			out = append(out, c)
		}
	}
	return out
}

// toUTF8 reads raw 8-bit octets as UTF-8 (RFC 6532), and those that are none as Windows-1252, the superset
// of Latin-1 that old software means. Names in one field may come from several programs.
func toUTF8(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	var s strings.Builder
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			r = charmap.Windows1252.DecodeByte(b[0])
		}
		s.WriteRune(r)
		b = b[n:]
	}
	return s.String()
}

// cleanString replaces control characters by spaces and trims the result.
func cleanString(s string) string {
	s, _ = clean(s)
	return s
}

// clean is cleanString, and tells whether there was a control character other than a tab.
func clean(s string) (string, bool) {
	found := false
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == '\u2028' || r == '\u2029' {
			found = found || r != '\t'
			return ' '
		}
		return r
	}, s)
	return strings.Trim(s, " "), found
}

// headerScan collects the lines of one header block.
type headerScan struct {
	start  int64
	buf    []byte
	bytes  int64
	fields int
	lines  int
	last   int // where in buf the last line starts
}

func (p *parser) startHeader(off int64) {
	p.inHeader = true
	p.header = headerScan{start: off}
}

// headerLine takes one line of a header block, or ends the block. done says that the line is not body.
func (p *parser) headerLine(ln line, off int64) (done bool, err error) {
	h := &p.header
	if !ln.cont {
		if len(ln.b) == ln.eol {
			return true, p.endBlock(off + int64(len(ln.b)))
		}
		kind := headerLineKind(ln.b)
		if kind == lineOther && h.lines == 0 && bytes.HasPrefix(ln.b, []byte(">From ")) {
			kind = lineFrom // an mbox line quoted by a careless mailer
		}
		if kind == lineOther && h.lines > 0 && isLostFold(h.buf[h.last:], ln.b) {
			// The line end and the white space of a fold have lost the white space: "Content-Type: multipart/mixed;"
			// and then the boundary at the start of a line is what many PHP scripts write.
			p.defect("header", "a folded line without its white space")
			kind = lineContinuation
		}
		if kind == lineOther {
			if h.lines > 0 || h.start > 0 || len(p.stack) > 1 {
				p.defect("header", "no empty line between header and body")
			}
			return false, p.endBlock(off)
		}
		if kind != lineContinuation {
			h.fields++
			if h.fields > p.limits.HeaderFields {
				return false, &LimitError{Kind: "header", Max: int64(p.limits.HeaderFields)}
			}
		}
		h.lines++
		h.last = len(h.buf)
	}
	h.bytes += int64(len(ln.b))
	if h.bytes > p.limits.HeaderBytes {
		return false, &LimitError{Kind: "header", Max: p.limits.HeaderBytes}
	}
	h.buf = append(h.buf, ln.b...)
	return true, nil
}

// endBlock ends the header block, whose body would start at bodyStart. A block without any field, or a last line that
// only looks like an mbox line, is body after all.
func (p *parser) endBlock(bodyStart int64) error {
	h := &p.header
	all := h.buf
	empty := bodyStart - h.start - int64(len(all)) // length of the empty line behind the block
	switch {
	case h.lines > 0 && !hasField(all):
		bodyStart = h.start
		h.buf = nil
	case h.lines > 1 && bytes.HasPrefix(all[h.last:], []byte("From ")):
		bodyStart = h.start + int64(h.last)
		h.buf = all[:h.last:h.last]
	}
	if err := p.endHeader(bodyStart); err != nil {
		return err
	}
	// Lines that turned out to be body count for its statistics too.
	if lost := all[len(h.buf):]; len(lost) > 0 {
		o := p.stack[len(p.stack)-1]
		o.feed(lost)
		o.bareLF = true
		o.crlf += int64(bytes.Count(lost, []byte("\r\n")))
		if empty == 2 {
			o.crlf++
		}
	}
	return nil
}

type lineKind uint8

const (
	lineOther lineKind = iota
	lineField
	lineContinuation
	lineFrom
)

// headerLineKind tells what a line can be in a header block (RFC 5322 2.2; 4.5.8 allows white space before the colon).
func headerLineKind(b []byte) lineKind {
	if b[0] == ' ' || b[0] == '\t' {
		return lineContinuation
	}
	if bytes.HasPrefix(b, []byte("From ")) {
		return lineFrom
	}
	for i, c := range b {
		switch {
		case c == ':':
			return lineField
		case c > ' ' && c < 0x7F:
		case c == ' ' || c == '\t':
			if rest := bytes.TrimLeft(b[i:], " \t"); i > 0 && len(rest) > 0 && rest[0] == ':' {
				return lineField
			}
			return lineOther
		default:
			return lineOther
		}
	}
	return lineOther
}

// isLostFold reports whether a line that is no field goes on with the parameters of the one before.
func isLostFold(before, b []byte) bool {
	if !bytes.HasSuffix(bytes.TrimRight(before, " \t\r\n"), []byte{';'}) {
		return false
	}
	name, _, ok := bytes.Cut(b, []byte{'='})
	return ok && isToken(string(name))
}

// hasField reports whether a block has at least one line that starts a field.
func hasField(block []byte) bool {
	for len(block) > 0 {
		n := lineLen(block)
		if headerLineKind(block[:n]) == lineField {
			return true
		}
		block = block[n:]
	}
	return false
}

// lineLen gives the length of the first line of b with its end.
func lineLen(b []byte) int {
	for i, c := range b {
		switch {
		case c == '\n':
			return i + 1
		case c == '\r' && i+1 < len(b) && b[i+1] == '\n':
			return i + 2
		case c == '\r':
			return i + 1
		}
	}
	return len(b)
}

// onceFields are the fields that RFC 5322 3.6 and RFC 2045 allow once.
var onceFields = map[string]bool{
	"from": true, "sender": true, "reply-to": true, "to": true, "cc": true, "bcc": true, "subject": true, "date": true,
	"message-id": true, "in-reply-to": true, "references": true, "mime-version": true, "content-type": true,
	"content-transfer-encoding": true, "content-disposition": true, "content-id": true,
}

// fields splits a header block. The Raw of each field is a slice of block.
func (p *parser) fields(block []byte, top bool) Header {
	if len(block) == 0 {
		return nil
	}
	h := make(Header, 0, p.header.fields)
	seen := make(map[string]bool)
	for first := true; len(block) > 0; first = false {
		n := lineLen(block)
		kind := headerLineKind(block[:n])
		for last := 0; n < len(block); {
			next := block[n : n+lineLen(block[n:])]
			if next[0] != ' ' && next[0] != '\t' && (headerLineKind(next) != lineOther || !isLostFold(block[last:n], next)) {
				break
			}
			last, n = n, n+len(next)
		}
		raw := block[:n:n]
		block = block[n:]
		if kind != lineField {
			if !first || kind == lineContinuation {
				p.defect("header", "a line that belongs to no field")
			}
			continue
		}
		name, value, _ := bytes.Cut(raw, []byte{':'})
		name = bytes.TrimRight(name, " \t")
		if len(name) == 0 {
			p.defect("header", "a field without a name")
			continue
		}
		f := Field{Name: string(name), Raw: raw}
		text, info := decodeHeader(toUTF8(unfold(value)))
		var control bool
		f.Value, control = clean(text)
		if control || info.control {
			p.defect("control", "control characters in %s", cut(f.Name, 64))
		}
		if info.charset {
			p.defect("charset", "unreadable encoded word in %s", cut(f.Name, 64))
		}
		if !utf8.Valid(value) {
			p.defect("charset", "8-bit octets in %s that are not UTF-8", cut(f.Name, 64))
		}
		key := strings.ToLower(f.Name)
		if onceFields[key] && (top || strings.HasPrefix(key, "content-")) {
			if seen[key] {
				p.defect("dup_header", "%s occurs more than once", f.Name)
			}
			seen[key] = true
		}
		h = append(h, f)
	}
	return h
}

// cut shortens s to n bytes without breaking a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
