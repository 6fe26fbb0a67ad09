package mime

import (
	"bytes"
	"io"
	"sync"
	"unicode/utf8"
)

const lineBuffer = 64 << 10

// line is a line of the source with its end, or a piece of one that is longer than the buffer.
type line struct {
	b       []byte // valid until the next call
	eol     int    // bytes of the line end: LF, CRLF, or a lone CR; 0 at the end of the source and in pieces
	partial bool   // the line does not end here
	cont    bool   // a further piece of the line before
}

// lineReader splits a source into lines. Every byte is looked at a fixed number of times,
// whatever the lines are like.
type lineReader struct {
	r        io.Reader
	whole    *[lineBuffer]byte
	buf      []byte // the part of whole that is used
	pos, end int
	lf       int // index of the next LF in buf; -1 = none before end, -2 = not looked for
	eof      bool
	cont     bool
}

// lineBuffers are for the lineReaders of all mails; pieces of them are never kept.
var lineBuffers = sync.Pool{New: func() any { return new([lineBuffer]byte) }}

// newLineReader reads a source of size bytes. free ends it.
func newLineReader(r io.Reader, size int64) *lineReader {
	n := min(max(size, 0)+1, lineBuffer) // one more than the source, so that its end is seen
	whole := lineBuffers.Get().(*[lineBuffer]byte)
	return &lineReader{r: r, whole: whole, buf: whole[:n:n], lf: -2}
}

// free gives the buffer back, and with it the lines that were read.
func (l *lineReader) free() {
	lineBuffers.Put(l.whole)
	l.whole, l.buf = nil, nil
}

func (l *lineReader) next() (line, error) {
	for {
		if l.lf == -2 || l.lf >= 0 && l.lf < l.pos {
			if i := bytes.IndexByte(l.buf[l.pos:l.end], '\n'); i >= 0 {
				l.lf = l.pos + i
			} else {
				l.lf = -1
			}
		}
		stop := l.end
		if l.lf >= 0 {
			stop = l.lf + 1
		}
		seg := l.buf[l.pos:stop]
		if c := bytes.IndexByte(seg, '\r'); c >= 0 {
			switch {
			case c+1 < len(seg) && seg[c+1] == '\n':
				return l.take(c+2, 2), nil
			case c+1 < len(seg) || l.eof:
				return l.take(c+1, 1), nil
			}
		} else if l.lf >= 0 {
			return l.take(len(seg), 1), nil
		}
		if l.eof {
			if len(seg) == 0 {
				return line{}, io.EOF
			}
			return l.take(len(seg), 0), nil
		}
		if len(seg) == len(l.buf) {
			n := len(seg)
			if seg[n-1] == '\r' {
				n-- // its LF may follow
			}
			ln := line{b: seg[:n], partial: true, cont: l.cont}
			l.cont = true
			l.pos += n
			return ln, nil
		}
		if err := l.fill(); err != nil {
			return line{}, err
		}
	}
}

func (l *lineReader) take(n, eol int) line {
	ln := line{b: l.buf[l.pos : l.pos+n], eol: eol, cont: l.cont}
	l.pos += n
	l.cont = false
	return ln
}

func (l *lineReader) fill() error {
	copy(l.buf, l.buf[l.pos:l.end])
	l.end -= l.pos
	l.pos, l.lf = 0, -2
	n, err := io.ReadFull(l.r, l.buf[l.end:])
	l.end += n
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		l.eof, err = true, nil
	}
	return err
}

// utf8Stats tells whether octets that come in pieces are 7-bit, and whether they are valid UTF-8.
type utf8Stats struct {
	has8    bool
	invalid bool
	carry   [utf8.UTFMax]byte
	n       int
}

func (s *utf8Stats) write(b []byte) {
	if !s.has8 {
		if isASCII(b) {
			return
		}
		s.has8 = true
	}
	if s.invalid {
		return
	}
	for s.n > 0 && len(b) > 0 {
		s.carry[s.n] = b[0]
		s.n++
		b = b[1:]
		if utf8.FullRune(s.carry[:s.n]) {
			s.invalid = s.invalid || !utf8.Valid(s.carry[:s.n])
			s.n = 0
		}
	}
	if s.invalid {
		return
	}
	// What is cut off at the end waits for the next piece.
	for i := 1; i < utf8.UTFMax && i <= len(b); i++ {
		if c := b[len(b)-i]; utf8.RuneStart(c) {
			if !utf8.FullRune(b[len(b)-i:]) {
				s.n = copy(s.carry[:], b[len(b)-i:])
				b = b[:len(b)-i]
			}
			break
		}
	}
	s.invalid = !utf8.Valid(b)
}

func (s *utf8Stats) result() (has8, valid bool) { return s.has8, !s.invalid && s.n == 0 }

func isASCII(b []byte) bool {
	for len(b) >= 8 {
		if (b[0]|b[1]|b[2]|b[3]|b[4]|b[5]|b[6]|b[7])&0x80 != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
