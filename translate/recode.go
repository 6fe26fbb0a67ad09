package translate

import (
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/transform"

	"smtpbridge/mime"
)

// A JSON string holds Unicode, so raw MIME inside one must be valid UTF-8. Parts that are not are
// re-encoded; all other bytes stay.

// isBad reports whether the body of a leaf cannot stand in a JSON string.
func isBad(e *mime.Entity) bool { return e.Children == nil && e.Has8Bit && !e.ValidUTF8 }

// newEncoding gives the transfer encoding a leaf is re-encoded with, "" when its header can stay.
func newEncoding(e *mime.Entity) string {
	if !isBad(e) {
		return ""
	}
	switch e.Encoding {
	case "7bit", "8bit", "binary", "":
	default:
		return "" // the stray octets are dealt with inside the encoding it has
	}
	charset := strings.ToLower(e.Params["charset"])
	if strings.HasPrefix(e.Type, "text/") && !strings.HasPrefix(charset, "utf-16") &&
		!strings.HasPrefix(charset, "utf-32") && !strings.Contains(charset, "ucs") {
		return "quoted-printable"
	}
	return "base64"
}

// change gives the transformation of a bad leaf's body.
func change(e *mime.Entity, root bool) func(io.Reader) io.Reader {
	var t func() transform.Transformer
	switch newEncoding(e) {
	case "quoted-printable":
		t = func() transform.Transformer { return &qpEncoder{} }
	case "base64":
		t = func() transform.Transformer { return &base64Encoder{final: root} }
	default:
		switch e.Encoding {
		case "quoted-printable":
			// RFC 2045 6.7: octets above 126 must be encoded; readers that take them as they are see no change.
			t = func() transform.Transformer { return octets{escape} }
		case "base64":
			// RFC 2045 6.8: characters outside the alphabet are ignored.
			t = func() transform.Transformer { return octets{drop} }
		default:
			t = func() transform.Transformer { return octets{mark} }
		}
	}
	return func(r io.Reader) io.Reader { return transform.NewReader(r, t()) }
}

// recodingLosses says beforehand what recode and the header will do.
func (p *planner) recodingLosses() {
	m := p.Message
	if m.Root == nil {
		return
	}
	for i := range m.Root.Header {
		f := &m.Root.Header[i]
		if name := strings.ToLower(f.Name); !isASCII(f.Raw) && fateOf(name) != traceRow && !isDialect(name) &&
			!(p.Caps.UTF8Local && utf8.Valid(f.Raw)) {
			p.lose(Info, "header "+headerTitle(name), "8-bit", "as encoded words")
		}
	}
	n := 0
	var walk func(e *mime.Entity, signed bool)
	walk = func(e *mime.Entity, signed bool) {
		if e != m.Root && signed {
			for i := range e.Header {
				if !utf8.Valid(e.Header[i].Raw) {
					p.lose(Fatal, "signature", "8-bit header of a signed part", "re-encoded")
				}
			}
		}
		if e.Children == nil {
			n++
			if !isBad(e) {
				return
			}
			enc := newEncoding(e)
			switch part := fmt.Sprintf("part %d", n); {
			case signed:
				p.lose(Fatal, "signature", "8-bit part "+fmt.Sprint(n), "re-encoded")
			case strings.HasPrefix(e.Type, "message/") && enc != "":
				p.lose(Major, part, "8-bit "+cut(e.Type, 80), "as "+enc)
			case enc != "":
				p.lose(Info, part, "8-bit "+cut(e.Type, 80), "as "+enc)
			case e.Encoding == "quoted-printable" || e.Encoding == "base64":
				p.lose(Info, part, "stray octets in "+e.Encoding, "repaired")
			default:
				p.lose(Major, part, "octets in encoding "+cut(headerTitle(e.Encoding), 40), "replaced by ?")
			}
			return
		}
		for i, c := range e.Children {
			walk(c, signed || e.Type == "multipart/signed" && i == 0)
		}
	}
	walk(m.Root, false)
}

// recode goes on after the top header and brings the rest into valid UTF-8. The bodies of good leaves are copied;
// bad ones are transformed; the rest (part headers, preambles, boundary lines) is only touched where its octets are wrong.
func (e *editor) recode() error {
	root := e.mail.Msg.Root
	if root == nil {
		return nil
	}
	if root.Children == nil {
		return e.leaf(root, true)
	}
	var walk func(x *mime.Entity) error
	walk = func(x *mime.Entity) error {
		if x != root {
			if err := e.gapUpTo(x.Start); err != nil {
				return err
			}
			if err := e.partHeader(x); err != nil {
				return err
			}
		}
		if x.Children == nil {
			return e.leaf(x, false)
		}
		for _, c := range x.Children {
			if err := walk(c); err != nil {
				return err
			}
		}
		return nil
	}
	if err := walk(root); err != nil {
		return err
	}
	return e.gapUpTo(e.size)
}

func (e *editor) leaf(x *mime.Entity, root bool) error {
	if err := e.gapUpTo(x.BodyStart); err != nil {
		return err
	}
	if !isBad(x) {
		e.copyUpTo(x.End)
		return nil
	}
	e.changeUpTo(x.End, change(x, root))
	return nil
}

// partHeader writes the header of a part, with another transfer encoding when its body gets one.
func (e *editor) partHeader(x *mime.Entity) error {
	enc := newEncoding(x)
	if enc == "" {
		return e.gapUpTo(x.BodyStart)
	}
	b, err := e.readBlock(x.Start, x.BodyStart)
	if err != nil {
		return err
	}
	eol, done := "\r\n", false
	for i := range b.fields {
		f := &b.fields[i]
		if i == 0 {
			eol = f.lineEnd()
		}
		if f.name != "content-transfer-encoding" {
			continue
		}
		if err := e.gapUpTo(f.off); err != nil {
			return err
		}
		if !done {
			e.write([]byte("Content-Transfer-Encoding: " + enc + eol))
			done = true
		}
		e.skipTo(f.end)
	}
	if err := e.gapUpTo(b.end); err != nil {
		return err
	}
	if !done {
		e.write([]byte("Content-Transfer-Encoding: " + enc + eol))
		if !b.empty {
			e.write([]byte(eol))
		}
	}
	return e.gapUpTo(x.BodyStart)
}

// gapUpTo takes bytes outside leaf bodies, and repairs them when they are not UTF-8.
func (e *editor) gapUpTo(off int64) error {
	off = min(off, e.size)
	if off <= e.at {
		return nil
	}
	switch err := e.checkUTF8(e.at, off); err {
	case nil:
		e.copyUpTo(off)
	case errNotUTF8:
		e.changeUpTo(off, func(r io.Reader) io.Reader { return transform.NewReader(r, octets{latin1}) })
	default:
		return err
	}
	return nil
}

// gaps are buffers for what checkUTF8 reads: mostly a header.
var gaps = sync.Pool{New: func() any { return new([8192]byte) }}

// checkUTF8 returns errNotUTF8 when a part of the mail is not UTF-8.
func (e *editor) checkUTF8(from, to int64) error {
	buf := gaps.Get().(*[8192]byte)
	defer gaps.Put(buf)
	if to-from > int64(len(buf)) {
		_, err := io.Copy(io.Discard, transform.NewReader(io.NewSectionReader(e.src, from, to-from), utf8Check{}))
		return err
	}
	b := buf[:to-from]
	if n, err := e.src.ReadAt(b, from); n < len(b) {
		return err
	}
	if !utf8.Valid(b) {
		return errNotUTF8
	}
	return nil
}

// utf8Check stops at the first octet that is wrong.
type utf8Check struct{ transform.NopResetter }

var errNotUTF8 = fmt.Errorf("not valid UTF-8")

func (utf8Check) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		if src[nSrc] < utf8.RuneSelf {
			nSrc++
			continue
		}
		if !atEOF && !utf8.FullRune(src[nSrc:]) {
			return 0, nSrc, transform.ErrShortSrc
		}
		r, n := utf8.DecodeRune(src[nSrc:])
		if r == utf8.RuneError && n == 1 {
			return 0, nSrc, errNotUTF8
		}
		nSrc += n
	}
	return 0, nSrc, nil
}

// octets replaces octets that are not valid UTF-8.
type octets struct{ how func(byte) string }

func escape(c byte) string { return fmt.Sprintf("=%02X", c) }
func drop(byte) string     { return "" }
func mark(byte) string     { return "?" }
func latin1(c byte) string { return string(charmap.Windows1252.DecodeByte(c)) }

func (octets) Reset() {}

func (o octets) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		var out string
		n := 1
		if c := src[nSrc]; c >= utf8.RuneSelf {
			if !atEOF && !utf8.FullRune(src[nSrc:]) {
				return nDst, nSrc, transform.ErrShortSrc
			}
			var r rune
			if r, n = utf8.DecodeRune(src[nSrc:]); r == utf8.RuneError && n == 1 {
				out = o.how(c)
			} else {
				out = string(src[nSrc : nSrc+n])
			}
		} else {
			if nDst >= len(dst) {
				return nDst, nSrc, transform.ErrShortDst
			}
			dst[nDst] = c
			nDst++
			nSrc++
			continue
		}
		if nDst+len(out) > len(dst) {
			return nDst, nSrc, transform.ErrShortDst
		}
		nDst += copy(dst[nDst:], out)
		nSrc += n
	}
	return nDst, nSrc, nil
}

// base64Encoder writes lines of 76 characters (RFC 2045 6.8).
type base64Encoder struct {
	final   bool // end with a line end: nothing follows
	started bool
	ended   bool
}

func (b *base64Encoder) Reset() { b.started, b.ended = false, false }

func (b *base64Encoder) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	const in = 57 // octets of a line
	for {
		n := min(in, len(src)-nSrc)
		if n < in && !atEOF {
			return nDst, nSrc, transform.ErrShortSrc
		}
		if n == 0 {
			break
		}
		need := base64.StdEncoding.EncodedLen(n)
		if b.started {
			need += 2
		}
		if len(dst)-nDst < need {
			return nDst, nSrc, transform.ErrShortDst
		}
		if b.started {
			nDst += copy(dst[nDst:], "\r\n")
		}
		base64.StdEncoding.Encode(dst[nDst:], src[nSrc:nSrc+n])
		nDst += base64.StdEncoding.EncodedLen(n)
		nSrc += n
		b.started = true
	}
	if b.final && b.started && !b.ended {
		if len(dst)-nDst < 2 {
			return nDst, nSrc, transform.ErrShortDst
		}
		nDst += copy(dst[nDst:], "\r\n")
		b.ended = true
	}
	return nDst, nSrc, nil
}

// qpEncoder writes text as quoted-printable (RFC 2045 6.7); line ends stay line ends.
type qpEncoder struct{ col int }

func (q *qpEncoder) Reset() { q.col = 0 }

func (q *qpEncoder) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		c, n := src[nSrc], 1
		var out string
		next := byte('\n') // what follows the octet; the end counts as a line end
		if nSrc+1 < len(src) {
			next = src[nSrc+1]
		} else if !atEOF && (c == ' ' || c == '\t' || c == '\r') {
			return nDst, nSrc, transform.ErrShortSrc
		}
		newline := false
		switch {
		case c == '\r' && next == '\n' && nSrc+1 < len(src):
			out, n, newline = "\r\n", 2, true
		case c == '\n':
			out, newline = "\r\n", true
		case (c == ' ' || c == '\t') && next != '\r' && next != '\n',
			c > ' ' && c < 0x7f && c != '=':
			out = string(rune(c))
		default:
			out = escape(c)
		}
		soft := !newline && q.col+len(out) > 75
		need := len(out)
		if soft {
			need += 3
		}
		if len(dst)-nDst < need {
			return nDst, nSrc, transform.ErrShortDst
		}
		if soft {
			nDst += copy(dst[nDst:], "=\r\n")
			q.col = 0
		}
		nDst += copy(dst[nDst:], out)
		nSrc += n
		if q.col += len(out); newline {
			q.col = 0
		}
	}
	return nDst, nSrc, nil
}
