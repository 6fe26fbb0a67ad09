// Package bigpost reads the posts by which ESPs hand over received mail: JSON, or a form with JSON in it, of up to a hundred
// megabytes, nearly all of which is the mail. The mail is never held as a whole: the document is read without its long
// strings, and the string with the mail is decoded while it is copied to where it goes.
package bigpost

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Limits of what is left of a document without its long strings.
const (
	maxString   = 64 << 10 // longer strings are left out, unless they are wanted
	maxSkeleton = 4 << 20
	maxDepth    = 100
	maxWanted   = 1000
)

// ErrMalformed says that a post is not what it should be, or is beyond every measure.
var ErrMalformed = errors.New("the post cannot be read")

// Text is a piece of a post, decoded as it is read.
type Text struct {
	data []byte
	form bool // percent-encoded
	json bool // within a JSON string
}

// Plain is a body as it is.
func Plain(body []byte) Text { return Text{data: body} }

// Open reads the text from its beginning.
func (t Text) Open() io.Reader { return &reader{c: cursor{data: t.data, form: t.form}, json: t.json} }

// Field is one field of a form.
type Field struct {
	Name  string
	Value Text
}

// Form splits an application/x-www-form-urlencoded body, in its order. (url.ParseQuery holds all of it, refuses a bare
// semicolon, and keeps no order.)
func Form(body []byte) ([]Field, error) {
	var out []Field
	for len(body) > 0 {
		pair := body
		if i := bytes.IndexByte(body, '&'); i >= 0 {
			pair, body = body[:i], body[i+1:]
		} else {
			body = nil
		}
		if len(pair) == 0 {
			continue
		}
		k, v, _ := bytes.Cut(pair, []byte{'='})
		if len(k) > maxString || len(out) >= maxWanted {
			return nil, fmt.Errorf("%w: a form of too many fields", ErrMalformed)
		}
		name, err := url.QueryUnescape(string(k))
		if err != nil || !escaped(v) {
			return nil, fmt.Errorf("%w: a broken percent encoding", ErrMalformed)
		}
		out = append(out, Field{name, Text{data: v, form: true}})
	}
	return out, nil
}

// escaped reports whether each percent sign begins an octet.
func escaped(b []byte) bool {
	for {
		i := bytes.IndexByte(b, '%')
		if i < 0 {
			return true
		}
		if len(b) < i+3 || hexDigit(b[i+1]) < 0 || hexDigit(b[i+2]) < 0 {
			return false
		}
		b = b[i+3:]
	}
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// cursor gives the octets of a text and knows where in the post they are.
type cursor struct {
	data []byte
	pos  int
	form bool
}

// next gives one octet; false at the end.
func (c *cursor) next() (byte, bool) {
	if c.pos >= len(c.data) {
		return 0, false
	}
	b := c.data[c.pos]
	c.pos++
	if c.form {
		switch {
		case b == '+':
			b = ' '
		case b == '%' && c.pos+1 < len(c.data):
			b = byte(hexDigit(c.data[c.pos])<<4 | hexDigit(c.data[c.pos+1]))
			c.pos += 2
		}
	}
	return b, true
}

// Skim reads a JSON document. It returns it with long strings emptied, and the strings at a path: keys separated by
// dots, "*" for the place in a list. Each of those is replaced by its number, as a string: "0", "1" ...
func Skim(doc Text, path ...string) (skeleton []byte, wanted []Text, err error) {
	s := &skimmer{c: cursor{data: doc.data, form: doc.form}, path: path}
	if err := s.value(0, 0); err != nil {
		return nil, nil, err
	}
	for {
		b, ok := s.peek()
		if !ok {
			return s.out.Bytes(), s.wanted, nil
		}
		if !space(b) {
			return nil, nil, fmt.Errorf("%w: something follows the JSON document", ErrMalformed)
		}
		s.take()
	}
}

type skimmer struct {
	c      cursor
	path   []string
	out    bytes.Buffer
	wanted []Text
}

func (s *skimmer) peek() (byte, bool) {
	at := s.c.pos
	b, ok := s.c.next()
	s.c.pos = at
	return b, ok
}

func (s *skimmer) take() (byte, bool) { return s.c.next() }

func space(b byte) bool { return b == ' ' || b == '\t' || b == '\r' || b == '\n' }

// token gives the next octet that is no space, without taking it.
func (s *skimmer) token() (byte, error) {
	for {
		b, ok := s.peek()
		switch {
		case !ok:
			return 0, fmt.Errorf("%w: the JSON document ends too early", ErrMalformed)
		case !space(b):
			return b, nil
		}
		s.take()
	}
}

// value copies a value. at is how many steps of the path lead to it, -1 when none do.
func (s *skimmer) value(at, depth int) error {
	if depth > maxDepth || s.out.Len() > maxSkeleton {
		return fmt.Errorf("%w: a JSON document too deep or too long", ErrMalformed)
	}
	b, err := s.token()
	if err != nil {
		return err
	}
	switch b {
	case '{', '[':
		return s.container(b, at, depth)
	case '"':
		s.take()
		start := s.c.pos
		end, err := s.skipString()
		if err != nil {
			return err
		}
		return s.stringValue(Text{data: s.c.data[start:end], form: s.c.form, json: true}, at)
	}
	for { // a number, true, false, null; what else it may be is found when the skeleton is read
		b, ok := s.peek()
		if !ok || space(b) || b == ',' || b == '}' || b == ']' {
			return nil
		}
		s.take()
		if s.out.WriteByte(b); s.out.Len() > maxSkeleton {
			return fmt.Errorf("%w: a JSON document too long", ErrMalformed)
		}
	}
}

func (s *skimmer) stringValue(t Text, at int) error {
	switch {
	case at == len(s.path):
		if len(s.wanted) >= maxWanted {
			return fmt.Errorf("%w: more than %d mails", ErrMalformed, maxWanted)
		}
		s.out.WriteString(`"` + strconv.Itoa(len(s.wanted)) + `"`)
		s.wanted = append(s.wanted, t)
	case len(t.data) > maxString:
		s.out.WriteString(`""`)
	default:
		s.out.Write(s.source(t))
	}
	return nil
}

// source is a string as it stands in the document.
func (s *skimmer) source(t Text) []byte {
	b := []byte{'"'}
	for c := (cursor{data: t.data, form: t.form}); ; {
		o, ok := c.next()
		if !ok {
			return append(b, '"')
		}
		b = append(b, o)
	}
}

// skipString goes behind a string's closing quote and returns where that begins in the post.
func (s *skimmer) skipString() (end int, err error) {
	for {
		at := s.c.pos
		b, ok := s.take()
		switch {
		case !ok:
			return 0, fmt.Errorf("%w: a string does not end", ErrMalformed)
		case b == '"':
			return at, nil
		case b == '\\':
			s.take()
		}
	}
}

func (s *skimmer) container(open byte, at, depth int) error {
	s.take()
	s.out.WriteByte(open)
	shut := byte('}')
	if open == '[' {
		shut = ']'
	}
	for first := true; ; first = false {
		b, err := s.token()
		if err != nil {
			return err
		}
		if b == shut && first {
			s.take()
			s.out.WriteByte(shut)
			return nil
		}
		key := "*"
		if open == '{' {
			if key, err = s.key(); err != nil {
				return err
			}
		}
		next := -1
		if at >= 0 && at < len(s.path) && s.path[at] == key {
			next = at + 1
		}
		if err := s.value(next, depth+1); err != nil {
			return err
		}
		if b, err = s.token(); err != nil {
			return err
		}
		s.take()
		s.out.WriteByte(b)
		switch b {
		case shut:
			return nil
		case ',':
		default:
			return fmt.Errorf("%w: not JSON", ErrMalformed)
		}
	}
}

// key copies a key and its colon.
func (s *skimmer) key() (string, error) {
	b, _ := s.take()
	if b != '"' {
		return "", fmt.Errorf("%w: not JSON", ErrMalformed)
	}
	start := s.c.pos
	end, err := s.skipString()
	if err != nil {
		return "", err
	}
	t := Text{data: s.c.data[start:end], form: s.c.form, json: true}
	if len(t.data) > maxString {
		return "", fmt.Errorf("%w: a key too long", ErrMalformed)
	}
	s.out.Write(s.source(t))
	b, err = s.token()
	if err != nil || b != ':' {
		return "", fmt.Errorf("%w: not JSON", ErrMalformed)
	}
	s.take()
	s.out.WriteByte(':')
	key, err := io.ReadAll(t.Open())
	return string(key), err
}

// reader decodes a text.
type reader struct {
	c    cursor
	json bool
	rest []byte // decoded and not given out
	err  error
}

func (r *reader) Read(p []byte) (int, error) {
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	for n < len(p) && r.err == nil {
		b, ok := r.c.next()
		if !ok {
			r.err = io.EOF
			break
		}
		if r.json && b == '\\' {
			var dec []byte
			if dec, r.err = r.escape(); r.err == nil {
				k := copy(p[n:], dec)
				n, r.rest = n+k, dec[k:]
			}
			continue
		}
		p[n] = b
		n++
	}
	if n > 0 || len(p) == 0 {
		return n, nil
	}
	return 0, r.err
}

var simple = map[byte]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// escape decodes what follows a backslash (RFC 8259 7). Half of a surrogate pair is U+FFFD.
func (r *reader) escape() ([]byte, error) {
	b, _ := r.c.next()
	if v, ok := simple[b]; ok {
		return []byte{v}, nil
	}
	if b != 'u' {
		return nil, fmt.Errorf("%w: an unknown escape in a string", ErrMalformed)
	}
	u, ok := r.unit()
	if !ok {
		return nil, fmt.Errorf("%w: a broken escape in a string", ErrMalformed)
	}
	if utf16.IsSurrogate(u) {
		back := r.c
		low := rune(0)
		if b1, _ := r.c.next(); b1 == '\\' {
			if b2, _ := r.c.next(); b2 == 'u' {
				low, _ = r.unit()
			}
		}
		if u = utf16.DecodeRune(u, low); u == utf8.RuneError {
			r.c = back
		}
	}
	return utf8.AppendRune(nil, u), nil
}

func (r *reader) unit() (u rune, ok bool) {
	for range 4 {
		b, _ := r.c.next()
		d := hexDigit(b)
		if d < 0 {
			return 0, false
		}
		u = u<<4 | rune(d)
	}
	return u, true
}

// Empty reports whether the text has no octets.
func (t Text) Empty() bool { return len(t.data) == 0 }

// Digest is a name for a text and some facts about it, the same whenever they come again.
func Digest(t Text, facts ...string) (string, error) {
	h := sha256.New()
	for _, f := range facts {
		fmt.Fprintf(h, "%d:%s", len(f), f)
	}
	if _, err := io.Copy(h, t.Open()); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)[:16]), nil
}

// At gives the wanted string that a skeleton's value stands for.
func At(wanted []Text, value string) (Text, bool) {
	i, err := strconv.Atoi(value)
	if err != nil || i < 0 || i >= len(wanted) || wanted[i].Empty() {
		return Text{}, false
	}
	return wanted[i], true
}
