package smtp

import (
	"bytes"
)

// decoder turns a message from the wire into the form that is stored: CRLF line ends only, no
// NUL, and for DATA without dot-stuffing. Only the octets CRLF.CRLF end a message.
type decoder struct {
	dots bool // DATA: dot-stuffed and ended by a mark; a BDAT chunk is neither (RFC 3030 2)

	out  []byte
	done bool
	tail [3]byte // last octets seen

	lf, cr, nul int   // what was repaired
	longest     int64 // line, in bytes
	line        int64

	state state
	crs   int // run of CRs not yet written
}

// state is where in a line the decoder is. A dot counts only after a real CRLF: behind a bare
// LF nothing is unstuffed, because clients that send bare LFs do not stuff (curl without
// --crlf), and nothing ends there.
type state uint8

const (
	atStart state = iota // behind CRLF, or first of all; the zero value
	inText
	inCR     // crs CRs are pending
	afterDot // a dot at the start is pending
	afterDotCR
)

// maxCRs bounds a run of CRs that could still end in LF and so be one line end (CR CR LF, made
// by text modes that translate twice).
const maxCRs = 8

// feed consumes in up to the end mark and appends to out.
func (d *decoder) feed(in []byte) (n int) {
	n = d.scan(in)
	for _, c := range in[max(0, n-3):n] {
		d.tail = [3]byte{d.tail[1], d.tail[2], c}
	}
	return n
}

func (d *decoder) scan(in []byte) int {
	for i := 0; i < len(in); {
		if d.state == inText || d.state == atStart && (!d.dots || in[i] != '.') {
			i += d.text(in[i:])
			continue
		}
		c := in[i]
		i++
		switch d.state {
		case atStart:
			d.state = afterDot
		case inCR:
			d.afterCR(c)
		case afterDot:
			switch c {
			case '\r':
				d.state = afterDotCR
			case '\n': // "." and a bare LF is a line with a dot, not an end
				d.put('.')
				d.put(c)
			default: // RFC 5321 4.5.2: the first dot goes when the line has more
				d.state = inText
				d.put(c)
			}
		case afterDotCR:
			if c == '\n' {
				d.done = true
				return i
			}
			d.put('.')
			d.state, d.crs = inCR, 1
			d.afterCR(c)
		}
	}
	return len(in)
}

// text consumes ordinary text up to and with the next CR, or all of in. It is the fast path.
func (d *decoder) text(in []byte) int {
	i := bytes.IndexByte(in, '\r')
	seg := in
	if i >= 0 {
		seg = in[:i]
	}
	d.state = inText
	if bytes.IndexByte(seg, '\n') < 0 && bytes.IndexByte(seg, 0) < 0 {
		d.out = append(d.out, seg...)
		d.grow(int64(len(seg)))
	} else {
		for _, c := range seg {
			d.put(c)
		}
	}
	if i < 0 {
		return len(in)
	}
	d.state, d.crs = inCR, 1
	return i + 1
}

func (d *decoder) afterCR(c byte) {
	switch {
	case c == '\n':
		d.cr += d.crs - 1
		d.newline()
		d.state = atStart
	case c == '\r' && d.crs < maxCRs:
		d.crs++
	case c == '\r':
		d.cr++
		d.newline()
	default:
		d.bareCRs()
		d.put(c)
	}
}

// put writes one octet other than CR.
func (d *decoder) put(c byte) {
	d.state = inText
	switch c {
	case '\n':
		d.lf++
		d.newline()
	case 0:
		d.nul++
		c = ' '
		fallthrough
	default:
		d.out = append(d.out, c)
		d.grow(1)
	}
}

func (d *decoder) bareCRs() {
	for ; d.crs > 0; d.crs-- {
		d.cr++
		d.newline()
	}
	d.state = inText
}

func (d *decoder) newline() {
	d.out = append(d.out, '\r', '\n')
	d.line = 0
}

func (d *decoder) grow(n int64) {
	d.line += n
	d.longest = max(d.longest, d.line)
}

// finish ends a message that has no mark, after its last chunk.
func (d *decoder) finish() {
	if d.state == inCR {
		d.bareCRs()
	}
	d.done = true
}

// repaired reports whether the message had anything but CRLF line ends.
func (d *decoder) repaired() bool { return d.lf+d.cr+d.nul > 0 }

// header follows the header block: where it ends, and what is in it.
type header struct {
	buf    []byte
	line   int // start of the first line not yet judged
	search int // up to where that line was searched for its end
	fields int
	ended  bool
	mbox   bool // a separator line was dropped

	received      int
	date, msgID   bool
	missingBorder bool // the message begins with text, without header and empty line
}

const (
	maxHeader   = 1 << 20
	maxFields   = 2000
	maxReceived = 50 // RFC 5321 6.3; Postfix: hopcount_limit
)

// feed appends to the block and returns whether it has ended within buf.
func (h *header) feed(p []byte) bool {
	h.buf = append(h.buf, p...)
	for !h.ended {
		i := bytes.IndexByte(h.buf[h.search:], '\n')
		if i < 0 {
			h.search = len(h.buf)
			return false
		}
		end := h.search + i + 1
		if line := h.buf[h.line:end]; h.isMbox(line) {
			h.mbox = true
			h.buf = h.buf[:copy(h.buf, h.buf[end:])]
			end = 0
		} else {
			h.judge(line)
		}
		h.line, h.search = end, end
	}
	return true
}

// isMbox finds the separator line of an mbox file, which scripts send along. It is not part of
// the mail.
func (h *header) isMbox(line []byte) bool {
	return h.line == 0 && !h.mbox && (bytes.HasPrefix(line, []byte("From ")) || bytes.HasPrefix(line, []byte(">From ")))
}

// finish judges a last line without an end.
func (h *header) finish() {
	if !h.ended && h.line < len(h.buf) {
		h.judge(h.buf[h.line:])
	}
	if h.fields == 0 && !h.ended {
		h.missingBorder = true
	}
	h.ended = true
}

func (h *header) judge(line []byte) {
	switch {
	case len(bytes.TrimRight(line, "\r\n")) == 0:
		h.ended = true
	case line[0] == ' ' || line[0] == '\t':
		// A continuation. In front of all fields it would continue ours.
		if h.fields == 0 {
			h.ended, h.missingBorder = true, true
		}
	default:
		if name, ok := fieldName(line); ok {
			h.field(name)
			return
		}
		h.ended, h.missingBorder = true, h.fields == 0 // text: the header ended without an empty line
	}
}

func (h *header) field(name string) {
	h.fields++
	switch name {
	case "received":
		h.received++
	case "date":
		h.date = true
	case "message-id":
		h.msgID = true
	}
}

// fieldName returns the lower-case name of a header field (RFC 5322 2.2; white space before the
// colon is the obsolete form of 4.5).
func fieldName(line []byte) (string, bool) {
	name, _, ok := bytes.Cut(line, []byte(":"))
	if !ok {
		return "", false
	}
	name = bytes.TrimRight(name, " \t")
	if len(name) == 0 || len(name) > 998 {
		return "", false
	}
	for _, c := range name {
		if c <= ' ' || c >= 0x7f {
			return "", false
		}
	}
	return string(bytes.ToLower(name)), true
}
