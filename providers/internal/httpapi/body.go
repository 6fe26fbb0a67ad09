package httpapi

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/bits"
	stdmime "mime"
	"net/textproto"
	"net/url"
	"slices"
	"sort"
	"strings"
	"sync"
	"unicode/utf8"
)

// Body is a request body: segments with a known length that can be opened again.
type Body struct {
	ContentType string
	segs        []segment
}

// segment is a piece of a body: bytes in memory, or a stream that is opened when it is due.
type segment struct {
	mem  []byte // when open is nil
	size int64
	open func() io.ReadCloser
}

func (s segment) len() int64 {
	if s.open == nil {
		return int64(len(s.mem))
	}
	return s.size
}

// ErrLength says that a stream did not have the length it was announced with. The request is
// abandoned before its last byte, so the ESP cannot take it for complete.
var ErrLength = errors.New("stored content does not have its recorded length")

// Bytes is a body held in memory.
func Bytes(contentType string, b []byte) *Body {
	return &Body{ContentType: contentType, segs: []segment{{mem: b}}}
}

// Stream is a body of exactly size bytes, opened when it is sent.
func Stream(contentType string, size int64, open func() io.ReadCloser) *Body {
	return &Body{ContentType: contentType, segs: []segment{{size: size, open: open}}}
}

// Form is an application/x-www-form-urlencoded body.
func Form(v url.Values) *Body {
	return Bytes("application/x-www-form-urlencoded", []byte(v.Encode()))
}

// Size is the exact number of bytes, for Content-Length.
func (b *Body) Size() int64 {
	var n int64
	for _, s := range b.segs {
		n += s.len()
	}
	return n
}

// Open streams the whole body; it can be called again for a repeated attempt or a signature.
// At most one segment is open at a time.
func (b *Body) Open() io.ReadCloser { return &bodyReader{segs: b.segs} }

// bodyReader reads segments one after the other and holds each to its length.
type bodyReader struct {
	segs []segment
	cur  io.ReadCloser
	left int64
	err  error
}

func (r *bodyReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	for {
		if r.cur == nil {
			if len(r.segs) == 0 {
				r.err = io.EOF
				return 0, io.EOF
			}
			s := r.segs[0]
			r.segs = r.segs[1:]
			if s.len() == 0 && s.open == nil {
				continue
			}
			if s.open == nil {
				r.cur = io.NopCloser(bytes.NewReader(s.mem))
			} else {
				r.cur = s.open()
			}
			r.left = s.len()
			if r.left == 0 {
				if err := r.finish(); err != nil {
					return 0, err
				}
				continue
			}
		}
		if len(p) == 0 {
			return 0, nil
		}
		if int64(len(p)) > r.left {
			p = p[:r.left]
		}
		n, err := r.cur.Read(p)
		r.left -= int64(n)
		if r.left == 0 {
			// The last bytes are handed on only when the stream really ends here.
			if err := r.finish(); err != nil {
				return 0, err
			}
			return n, nil
		}
		if err == io.EOF {
			err = ErrLength
		}
		if err != nil {
			r.fail(err)
			return n, err
		}
		if n > 0 {
			return n, nil
		}
	}
}

// finish checks that the current stream has nothing left, and closes it.
func (r *bodyReader) finish() error {
	var one [1]byte
	for {
		n, err := r.cur.Read(one[:])
		if n > 0 {
			r.fail(ErrLength)
			return r.err
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			r.fail(err)
			return r.err
		}
	}
	err := r.cur.Close()
	r.cur = nil
	if err != nil {
		r.fail(err)
		return r.err
	}
	return nil
}

func (r *bodyReader) fail(err error) {
	r.err = err
	if r.cur != nil {
		r.cur.Close()
		r.cur = nil
	}
	r.segs = nil
}

func (r *bodyReader) Close() error {
	if r.err == nil {
		r.err = errors.New("read on a closed request body")
	}
	if r.cur != nil {
		err := r.cur.Close()
		r.cur = nil
		return err
	}
	return nil
}

// memoryText is the size up to which a text is escaped at once and kept; beyond it, it is read
// once to count and again to send.
const memoryText = 64 << 10

// JSON builds a JSON body whose large values are streamed. Its methods return placeholders to put
// into plain wire structs:
//
//	j := httpapi.NewJSON()
//	w := message{HTML: j.Text(m.HTML.Open), Files: []file{{Content: j.Base64(a.Size, a.Open)}}}
//	body, err := j.Body(w)
type JSON struct {
	// Extra is merged into the body, or into each of its items when it is a list: objects member by member, lists by
	// appending, of anything else Extra counts.
	Extra map[string]any
	nonce string
	segs  []segment
	err   error
}

// NewJSON starts a body.
func NewJSON() *JSON {
	var b [16]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	return &JSON{nonce: "segment:" + hex.EncodeToString(b[:]) + ":"}
}

// Value stands for a streamed value in a wire struct. The zero value is null, and is left out
// with the tag option omitzero.
type Value struct{ token string }

// MarshalJSON writes the placeholder, which Body replaces.
func (v Value) MarshalJSON() ([]byte, error) {
	if v.token == "" {
		return []byte("null"), nil
	}
	return []byte(`"` + v.token + `"`), nil
}

// IsZero serves the tag option omitzero.
func (v Value) IsZero() bool { return v.token == "" }

func (j *JSON) add(s segment) Value {
	j.segs = append(j.segs, s)
	return Value{fmt.Sprintf("%s%d.", j.nonce, len(j.segs)-1)}
}

// Base64 is a string: size bytes of open in standard base64.
func (j *JSON) Base64(size int64, open func() io.ReadCloser) Value {
	return j.add(segment{size: base64Len(size) + 2, open: func() io.ReadCloser {
		return quote(newBase64Reader(open()))
	}})
}

// texts are the buffers that Text reads with: most texts are short enough for memory, and only they are kept. A reader that
// is handed out is never used again: a transport may close it while it still reads.
var texts = sync.Pool{New: func() any { return new(textBuffer) }}

type textBuffer struct {
	escapeReader
	head [memoryText + 1]byte
}

// Text is a string: the UTF-8 text of open, escaped. Octets that are not UTF-8 become U+FFFD. An
// error of open is reported by Body.
func (j *JSON) Text(open func() io.ReadCloser) Value {
	buf := texts.Get().(*textBuffer)
	defer texts.Put(buf)
	r := &buf.escapeReader
	r.reset(open())
	defer r.Close()
	head := buf.head[:]
	n, err := io.ReadFull(r, head)
	switch err {
	case io.EOF, io.ErrUnexpectedEOF:
		mem := make([]byte, 0, n+2)
		mem = append(append(append(mem, '"'), head[:n]...), '"')
		return j.add(segment{mem: mem})
	case nil:
		rest, err := io.Copy(io.Discard, r)
		if err != nil {
			break
		}
		return j.add(segment{size: int64(n) + rest + 2, open: func() io.ReadCloser {
			return quote(newEscapeReader(open()))
		}})
	}
	if j.err == nil {
		j.err = err
	}
	return Value{}
}

// Raw is size bytes of open, which are one JSON value already.
func (j *JSON) Raw(size int64, open func() io.ReadCloser) Value {
	return j.add(segment{size: size, open: open})
}

// Body marshals v, without HTML escaping, and puts the streams in their places.
func (j *JSON) Body(v any) (*Body, error) {
	if j.err != nil {
		return nil, fmt.Errorf("read message text: %w", j.err)
	}
	b, err := Marshal(v)
	if err == nil && len(j.Extra) > 0 {
		b, err = mergeExtra(b, j.Extra)
	}
	if err != nil {
		return nil, err
	}
	body := &Body{ContentType: "application/json"}
	mark := []byte(`"` + j.nonce)
	for {
		i := bytes.Index(b, mark)
		if i < 0 {
			break
		}
		rest := b[i+len(mark):]
		end := bytes.Index(rest, []byte(`."`))
		if end < 0 {
			return nil, errors.New("placeholder in the request is cut")
		}
		n := 0
		for _, c := range rest[:end] {
			if c < '0' || c > '9' || n > len(j.segs) {
				return nil, errors.New("placeholder in the request is garbled")
			}
			n = n*10 + int(c-'0')
		}
		if n >= len(j.segs) {
			return nil, errors.New("placeholder in the request is unknown")
		}
		body.segs = append(body.segs, segment{mem: b[:i:i]}, j.segs[n])
		b = rest[end+2:]
	}
	if len(b) > 0 {
		body.segs = append(body.segs, segment{mem: b})
	}
	return body, nil
}

// mergeExtra merges into marshalled JSON; the places of streams are texts in it.
func mergeExtra(b []byte, extra map[string]any) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, err
	}
	switch o := v.(type) {
	case map[string]any:
		v = merged(o, extra)
	case []any:
		for i, x := range o {
			if m, ok := x.(map[string]any); ok {
				o[i] = merged(m, extra)
			}
		}
	}
	return Marshal(v)
}

func merged(ours, theirs map[string]any) map[string]any {
	out := maps.Clone(ours)
	if out == nil {
		out = map[string]any{}
	}
	for k, v := range theirs {
		switch v := v.(type) {
		case map[string]any:
			have, _ := out[k].(map[string]any)
			out[k] = merged(have, v)
		case []any:
			have, _ := out[k].([]any)
			out[k] = slices.Concat(have, v)
		default:
			out[k] = v
		}
	}
	return out
}

// Marshal is json.Marshal without HTML escaping.
func Marshal(v any) ([]byte, error) {
	var buf bytes.Buffer
	e := json.NewEncoder(&buf)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// Multipart builds a multipart/form-data body (RFC 7578).
type Multipart struct {
	boundary string
	segs     []segment
}

// NewMultipart starts a body.
func NewMultipart() *Multipart {
	var b [20]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(err) // crypto/rand never fails on a supported system
	}
	return &Multipart{boundary: hex.EncodeToString(b[:])}
}

// fieldEscaper follows the HTML standard's multipart/form-data encoding of names.
var fieldEscaper = strings.NewReplacer("\r", "%0D", "\n", "%0A", `"`, "%22")

func (m *Multipart) part(h textproto.MIMEHeader, s segment) {
	var b bytes.Buffer
	fmt.Fprintf(&b, "--%s\r\n", m.boundary)
	keys := make([]string, 0, len(h))
	for k := range h {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, "%s: %s\r\n", k, h.Get(k))
	}
	b.WriteString("\r\n")
	m.segs = append(m.segs, segment{mem: b.Bytes()}, s, segment{mem: []byte("\r\n")})
}

// Field adds a value.
func (m *Multipart) Field(name, value string) {
	m.part(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + fieldEscaper.Replace(name) + `"`}}, segment{mem: []byte(value)})
}

// StreamField adds a value of exactly size bytes without a file name.
func (m *Multipart) StreamField(name string, size int64, open func() io.ReadCloser) {
	m.part(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="` + fieldEscaper.Replace(name) + `"`}}, segment{size: size, open: open})
}

// File adds a file of exactly size bytes.
func (m *Multipart) File(name, filename, contentType string, size int64, open func() io.ReadCloser) {
	if t, p, err := stdmime.ParseMediaType(contentType); err != nil || stdmime.FormatMediaType(t, p) == "" {
		contentType = "application/octet-stream"
	} else {
		contentType = stdmime.FormatMediaType(t, p)
	}
	m.part(textproto.MIMEHeader{
		"Content-Disposition": {`form-data; name="` + fieldEscaper.Replace(name) + `"; filename="` + fieldEscaper.Replace(filename) + `"`},
		"Content-Type":        {contentType},
	}, segment{size: size, open: open})
}

// Body ends the form.
func (m *Multipart) Body() *Body {
	segs := append(m.segs[:len(m.segs):len(m.segs)], segment{mem: []byte("--" + m.boundary + "--\r\n")})
	return &Body{ContentType: "multipart/form-data; boundary=" + m.boundary, segs: segs}
}

func base64Len(n int64) int64 { return (n + 2) / 3 * 4 }

// base64Reader encodes a stream.
type base64Reader struct {
	src io.ReadCloser
	in  [12288]byte // a multiple of 3
	out [16384]byte
	buf []byte
	err error
}

func newBase64Reader(src io.ReadCloser) *base64Reader { return &base64Reader{src: src} }

func (r *base64Reader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := io.ReadFull(r.src, r.in[:])
		if err == io.ErrUnexpectedEOF {
			err = io.EOF
		}
		r.err = err
		if err != nil && err != io.EOF {
			return 0, err
		}
		base64.StdEncoding.Encode(r.out[:], r.in[:n])
		r.buf = r.out[:base64.StdEncoding.EncodedLen(n)]
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *base64Reader) Close() error { return r.src.Close() }

// escapeReader turns UTF-8 text into the inside of a JSON string.
type escapeReader struct {
	src  io.ReadCloser
	in   [8192]byte
	have int // bytes of in not yet escaped: the beginning of a rune
	out  []byte
	buf  []byte
	err  error
}

func newEscapeReader(src io.ReadCloser) *escapeReader { return &escapeReader{src: src} }

func (r *escapeReader) reset(src io.ReadCloser) { r.src, r.have, r.buf, r.err = src, 0, nil, nil }

func (r *escapeReader) Read(p []byte) (int, error) {
	for len(r.buf) == 0 {
		if r.err != nil {
			return 0, r.err
		}
		n, err := r.src.Read(r.in[r.have:])
		b := r.in[:r.have+n]
		if err != nil && err != io.EOF {
			r.err = err
			return 0, err
		}
		var used int
		r.out, used = appendEscaped(r.out[:0], b, err == io.EOF)
		r.have = copy(r.in[:], b[used:])
		r.buf, r.err = r.out, err
	}
	n := copy(p, r.buf)
	r.buf = r.buf[n:]
	return n, nil
}

func (r *escapeReader) Close() error { return r.src.Close() }

const hexDigits = "0123456789abcdef"

// appendEscaped escapes b (RFC 8259 7) and tells how much of it was used: an incomplete rune at
// the end waits for more unless last is set.
func appendEscaped(dst, b []byte, last bool) ([]byte, int) {
	i, from := 0, 0
	for i < len(b) {
		if i += plain(b[i:]); i == len(b) {
			break
		}
		c := b[i]
		if c < utf8.RuneSelf {
			dst = append(dst, b[from:i]...)
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\r':
				dst = append(dst, '\\', 'r')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			from = i
			continue
		}
		if !last && !utf8.FullRune(b[i:]) {
			break
		}
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			dst = append(append(dst, b[from:i]...), "\uFFFD"...)
			i += n
			from = i
		case r == '\u2028' || r == '\u2029': // JavaScript before ES2019 takes them for line ends
			dst = append(append(dst, b[from:i]...), '\\', 'u', '2', '0', '2', hexDigits[r&15])
			i += n
			from = i
		default:
			i += n
		}
	}
	return append(dst, b[from:i]...), i
}

// plain counts the leading bytes of b that stand for themselves in a JSON string: ASCII without control characters, quotation
// marks and backslashes. It looks at eight bytes at once: long mails are nearly all of this kind.
func plain(b []byte) int {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(b); i += 8 {
		x := binary.LittleEndian.Uint64(b[i:])
		quote, slash := x^('"'*ones), x^('\\'*ones)
		// A byte's high bit is set where the byte is below 0x20, zero after the XOR, or not ASCII. A borrow can only
		// set wrong bits above a right one, and the lowest is what counts.
		special := ((x-0x20*ones)&^x | (quote-ones)&^quote | (slash-ones)&^slash | x) & highs
		if special != 0 {
			return i + bits.TrailingZeros64(special)/8
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < 0x20 || c >= utf8.RuneSelf || c == '"' || c == '\\' {
			break
		}
	}
	return i
}

// quoted puts quotation marks around a stream.
type quoted struct {
	io.Reader
	io.Closer
}

func quote(r io.ReadCloser) io.ReadCloser {
	return quoted{io.MultiReader(strings.NewReader(`"`), r, strings.NewReader(`"`)), r}
}
