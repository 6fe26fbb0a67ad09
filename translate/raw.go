package translate

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	stdmime "mime"
	"net/mail"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/text/encoding/charmap"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// Body is a message body with an exact length that can be opened again for a repeated attempt.
type Body struct {
	Size int64
	Open func() io.ReadCloser
}

// rawPlan is what Apply decided about the raw form.
type rawPlan struct {
	keepReceived    bool
	foreign         bool   // header options are text like any other
	asString        bool   // travels in a JSON string: valid UTF-8 only
	utf8            bool   // the ESP takes UTF-8 header fields (RFC 6532)
	bcc             bool   // recipients come from the header: To and Cc are guarded, Bcc is written
	from            bool   // From is rewritten
	replyTo         bool   // Reply-To is added, with the From that was replaced
	listUnsubscribe string // to be added
}

// Raw gives the complete MIME message as it is to be sent: the source without Bcc, Return-Path,
// dialect and Received fields, with the added ones, and with parts re-encoded where the API's JSON string demands it.
// Nothing else changes: kept header fields and bodies are the client's bytes.
func (m *Mail) Raw() (*Body, error) { return m.RawWith() }

// RawWith is Raw with further fields at the end of the header: the provider's option headers.
func (m *Mail) RawWith(add ...HeaderField) (*Body, error) {
	e := &editor{mail: m, src: m.Msg.Source(), size: m.Msg.Size}
	for _, f := range add {
		if !validName(f.Name) {
			return nil, fmt.Errorf("add header: %q is not a field name", cut(clean(f.Name), 80))
		}
	}
	if err := e.header(add); err != nil {
		return nil, fmt.Errorf("edit header: %w", err)
	}
	if m.raw.asString {
		if err := e.recode(); err != nil {
			return nil, fmt.Errorf("re-encode parts: %w", err)
		}
	}
	e.copyUpTo(e.size)
	body := &Body{}
	for i := range e.segments {
		s := &e.segments[i]
		if s.change != nil {
			n, err := io.Copy(io.Discard, s.reader(e.src))
			if err != nil {
				return nil, fmt.Errorf("measure re-encoded part: %w", err)
			}
			s.out = n
		}
		body.Size += s.out
	}
	segments, src := e.segments, e.src
	body.Open = func() io.ReadCloser {
		readers := make([]io.Reader, len(segments))
		for i := range segments {
			readers[i] = segments[i].reader(src)
		}
		return io.NopCloser(io.MultiReader(readers...))
	}
	return body, nil
}

// segment is a run of the output: a range of the source, as it is or changed, or bytes of our own.
type segment struct {
	off, n int64 // range of the source
	out    int64 // length in the output
	data   []byte
	change func(io.Reader) io.Reader
}

func (s *segment) reader(src io.ReaderAt) io.Reader {
	if s.data != nil {
		return bytes.NewReader(s.data)
	}
	r := io.NewSectionReader(src, s.off, s.n)
	if s.change != nil {
		return s.change(r)
	}
	return r
}

// editor builds the output from the source, front to back.
type editor struct {
	mail     *Mail
	src      *io.SectionReader
	size     int64
	at       int64 // how far the source is used up
	segments []segment
}

// copyUpTo takes the source as it is up to off.
func (e *editor) copyUpTo(off int64) {
	off = min(off, e.size)
	if off <= e.at {
		return
	}
	if n := len(e.segments); n > 0 {
		// One run with the one before.
		if l := &e.segments[n-1]; l.data == nil && l.change == nil && l.off+l.n == e.at {
			l.n += off - e.at
			l.out = l.n
			e.at = off
			return
		}
	}
	e.segments = append(e.segments, segment{off: e.at, n: off - e.at, out: off - e.at})
	e.at = off
}

// skipTo leaves the source out up to off.
func (e *editor) skipTo(off int64) { e.at = max(e.at, min(off, e.size)) }

func (e *editor) write(b []byte) {
	if len(b) > 0 {
		e.segments = append(e.segments, segment{data: b, out: int64(len(b))})
	}
}

// changeUpTo passes the source through change up to off.
func (e *editor) changeUpTo(off int64, change func(io.Reader) io.Reader) {
	if off = min(off, e.size); off > e.at {
		e.segments = append(e.segments, segment{off: e.at, n: off - e.at, change: change})
		e.at = off
	}
}

// rawField is a field of a header block as it stands in the source.
type rawField struct {
	name     string // lower case, "" for a line that is no field
	off, end int64  // in the source
	bytes    []byte
}

func (f *rawField) lineEnd() string {
	if bytes.HasSuffix(f.bytes, []byte("\n")) && !bytes.HasSuffix(f.bytes, []byte("\r\n")) {
		return "\n"
	}
	return "\r\n"
}

// body is what follows the colon, unfolded.
func (f *rawField) body() string {
	_, v, _ := strings.Cut(string(f.bytes), ":")
	return strings.TrimSpace(strings.NewReplacer("\r\n", "", "\n", "", "\r", "").Replace(v))
}

// block is a header block: its fields, and where its end is.
type block struct {
	fields []rawField
	end    int64 // offset of the empty line, or of the end of the block when it has none
	empty  bool  // there is an empty line
}

// readBlock cuts the header block from start to bodyStart into fields. It does so on its own, by the
// bytes, so that what is removed is what a receiver would see: a line ends at LF or at a bare CR, and white space before the
// colon (RFC 5322 4.5) does not hide a name.
func (e *editor) readBlock(start, bodyStart int64) (block, error) {
	buf := make([]byte, min(bodyStart, e.size)-start)
	if _, err := e.src.ReadAt(buf, start); err != nil && !errors.Is(err, io.EOF) {
		return block{}, err
	}
	b := block{end: start + int64(len(buf))}
	for pos := 0; pos < len(buf); {
		n := lineLen(buf[pos:])
		line := buf[pos : pos+n]
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			b.end, b.empty = start+int64(pos), true
			break
		}
		if k := len(b.fields) - 1; k >= 0 && (line[0] == ' ' || line[0] == '\t') {
			f := &b.fields[k]
			f.end += int64(n)
			f.bytes = buf[f.off-start : f.end-start]
		} else {
			f := rawField{off: start + int64(pos), end: start + int64(pos+n), bytes: line}
			if name, _, ok := bytes.Cut(line, []byte(":")); ok {
				if s := strings.Trim(string(name), " \t"); validName(s) {
					f.name = strings.ToLower(s)
				}
			}
			b.fields = append(b.fields, f)
		}
		pos += n
	}
	return b, nil
}

// lineLen is the length of the first line, with its end.
func lineLen(b []byte) int {
	for i, c := range b {
		if c == '\n' || c == '\r' && (i+1 >= len(b) || b[i+1] != '\n') {
			return i + 1
		}
	}
	return len(b)
}

// header writes the top header block.
func (e *editor) header(add []HeaderField) error {
	m, plan := e.mail, &e.mail.raw
	var bodyStart int64
	root := m.Msg.Root
	if root != nil {
		bodyStart = root.BodyStart
	}
	b, err := e.readBlock(0, bodyStart)
	if err != nil {
		return err
	}
	recodeRoot := ""
	if plan.asString && root != nil && root.Children == nil {
		if enc := newEncoding(root); enc != "" {
			recodeRoot = enc
		}
	}
	counts := map[string]int{}
	for i := range b.fields {
		counts[b.fields[i].name]++
	}
	var wroteFrom, wroteTo, wroteCc, wroteEncoding bool
	eol := "\r\n"
	for i := range b.fields {
		f := &b.fields[i]
		if i == 0 {
			eol = f.lineEnd()
		}
		e.copyUpTo(f.off)
		var instead []byte
		gone := false
		switch {
		case f.name == "" && bytes.HasPrefix(bytes.TrimPrefix(f.bytes, []byte(">")), []byte("From ")):
			gone = true // mbox line: no header field, and a strict reader would end the header here
		case f.name == "bcc" || f.name == "resent-bcc" || f.name == "return-path" || isDialect(f.name) && !plan.foreign:
			gone = true
		case f.name == "received":
			gone = !plan.keepReceived
		case f.name == "from" && plan.from:
			gone = true
			if !wroteFrom {
				wroteFrom = true
				instead = e.fromFields(eol)
			}
		case f.name == "to" && plan.bcc:
			gone, instead = e.guard(f, "To", m.To, counts["to"], &wroteTo)
		case f.name == "cc" && plan.bcc:
			gone, instead = e.guard(f, "Cc", m.Cc, counts["cc"], &wroteCc)
		case plan.bcc && (f.name == "resent-to" || f.name == "resent-cc" || f.name == "apparently-to"):
			gone = true // some senders of this kind read them as recipients
		case f.name == "content-transfer-encoding" && recodeRoot != "":
			gone = true
			if !wroteEncoding {
				wroteEncoding = true
				instead = []byte("Content-Transfer-Encoding: " + recodeRoot + eol)
			}
		case plan.asString && !isASCII(f.bytes):
			if instead = e.recodeField(f); instead != nil {
				gone = true
			}
		}
		if gone {
			e.write(instead)
			e.skipTo(f.end)
		}
	}
	e.copyUpTo(b.end)
	var extra []byte
	if plan.from && !wroteFrom {
		extra = append(extra, e.fromFields(eol)...)
	}
	if plan.bcc {
		if !wroteTo && len(m.To) > 0 {
			// The header shows none of them: a blind recipient alone in his call, or Cc moved up.
			extra = append(extra, addressField("To", m.To, eol)...)
		}
		if !wroteCc && len(m.Cc) > 0 {
			extra = append(extra, addressField("Cc", m.Cc, eol)...)
		}
		if len(m.Bcc) > 0 {
			extra = append(extra, addressField("Bcc", m.Bcc, eol)...)
		}
	}
	if recodeRoot != "" && !wroteEncoding {
		extra = append(extra, "Content-Transfer-Encoding: "+recodeRoot+eol...)
	}
	if plan.listUnsubscribe != "" {
		extra = append(extra, textField("List-Unsubscribe", plan.listUnsubscribe, eol)...)
	}
	for _, f := range add {
		extra = append(extra, textField(f.Name, f.Value, eol)...)
	}
	if n := len(b.fields); len(extra) > 0 && n > 0 && !endsLine(b.fields[n-1].bytes) {
		e.write([]byte(eol))
	}
	e.write(extra)
	if !b.empty && (len(extra) > 0 || bodyStart < e.size) {
		// The header ended at a line that is no field. A reader who skips such a line would go on and find
		// fields, a Bcc or further recipients, in what is the body for us.
		e.write([]byte(eol))
	}
	return nil
}

func endsLine(b []byte) bool { return len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') }

func (e *editor) fromFields(eol string) []byte {
	b := addressField("From", []mime.Address{e.mail.From}, eol)
	if e.mail.raw.replyTo {
		b = append(b, addressField("Reply-To", e.mail.ReplyTo, eol)...)
	}
	return b
}

// guard keeps a To or Cc field of a mail whose recipients the ESP reads from the header only when every reader
// would find exactly the call's recipients in it. Otherwise it is written anew.
func (e *editor) guard(f *rawField, name string, want []mime.Address, count int, wrote *bool) (gone bool, instead []byte) {
	if *wrote {
		return true, nil
	}
	*wrote = true
	if len(want) == 0 {
		return true, nil
	}
	if count == 1 && (!e.mail.raw.asString || isASCII(f.bytes)) && sameAddresses(f.body(), want) {
		return false, nil
	}
	return true, addressField(name, want, f.lineEnd())
}

// sameAddresses asks a second parser, a strict one, whether a field names exactly these addresses.
func sameAddresses(value string, want []mime.Address) bool {
	list, err := (&mail.AddressParser{WordDecoder: &stdmime.WordDecoder{CharsetReader: anyCharset}}).ParseList(value)
	if err != nil || len(list) != len(want) {
		return false
	}
	for i := range list {
		if !envelope.Equal(list[i].Address, want[i].Addr) {
			return false
		}
	}
	return true
}

// anyCharset lets the strict parser pass over names in charsets it does not know.
func anyCharset(_ string, r io.Reader) (io.Reader, error) { return r, nil }

// recodeField gives a field with 8-bit bytes in a form that a JSON string and an ESP without RFC 6532
// can carry; nil when it can stay.
func (e *editor) recodeField(f *rawField) []byte {
	valid := utf8.Valid(f.bytes)
	if valid && e.mail.raw.utf8 {
		return nil
	}
	eol := f.lineEnd()
	m := e.mail.Msg
	lists := map[string][]mime.Address{"from": m.From, "to": m.To, "cc": m.Cc, "reply-to": m.ReplyTo, "sender": m.Sender}
	switch list, ok := lists[f.name]; {
	case f.name == "" || strings.HasPrefix(f.name, "content-"):
		// Encoded words are not allowed in parameters (RFC 2047 5): the octets become UTF-8.
		if valid {
			return nil
		}
		return []byte(latin1ToUTF8(string(f.bytes)))
	case ok && len(list) > 0:
		return addressField(wireName(f), list, eol)
	case ok:
		return []byte(latin1ToUTF8(string(f.bytes)))
	}
	v := f.body()
	if !valid {
		v = latin1ToUTF8(v)
	}
	return textField(wireName(f), v, eol)
}

// wireName is the field's name in the client's spelling.
func wireName(f *rawField) string {
	name, _, _ := bytes.Cut(f.bytes, []byte(":"))
	return strings.TrimRight(string(name), " \t")
}

// textField writes an unstructured field: encoded words where needed (RFC 2047), folded.
func textField(name, value, eol string) []byte {
	value = clean(value)
	words := strings.Split(value, " ")
	for i := 0; i < len(words); i++ {
		if isASCII([]byte(words[i])) {
			continue
		}
		// Neighbouring words that need it are encoded together: the space between two encoded words vanishes (RFC 2047 6.2).
		j := i + 1
		for j < len(words) && !isASCII([]byte(words[j])) {
			j++
		}
		words[i] = encodedWords(strings.Join(words[i:j], " "))
		words = slices.Delete(words, i+1, j)
	}
	return fold(name+": "+strings.Join(words, " "), eol)
}

// addressField writes an address list.
func addressField(name string, list []mime.Address, eol string) []byte {
	parts := make([]string, len(list))
	for i, a := range list {
		parts[i] = formatAddress(a)
	}
	return fold(name+": "+strings.Join(parts, ", "), eol)
}

// formatAddress writes one mailbox (RFC 5322 3.4). A domain with non-ASCII characters goes as A-labels, and without the
// final dot that SMTP clients may write but a header may not have.
func formatAddress(a mime.Address) string {
	addr := strings.TrimSuffix(clean(a.Addr), ".")
	addr = ASCIIDomain(addr)
	name := clean(a.Name)
	switch {
	case name == "":
		return addr
	case !isASCII([]byte(name)):
		return encodedWords(name) + " <" + addr + ">"
	case strings.ContainsAny(name, `()<>[]:;@\,."`) || strings.Contains(name, "=?"):
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(name) + `" <` + addr + ">"
	}
	return name + " <" + addr + ">"
}

// encodedWords writes text as encoded words (RFC 2047) short enough to stand on one line with a field name. In
// base64, as it has no character that may not stand in a phrase (RFC 2047 5.3).
func encodedWords(text string) string {
	const most = 33 // octets of a word
	var words []string
	for len(text) > 0 {
		n := min(most, len(text))
		for n < len(text) && n > 1 && !utf8.RuneStart(text[n]) {
			n--
		}
		words = append(words, "=?utf-8?b?"+base64.StdEncoding.EncodeToString([]byte(text[:n]))+"?=")
		text = text[n:]
	}
	return strings.Join(words, " ")
}

// fold breaks a field at spaces, before column 77 where it can (RFC 5322 2.1.1).
func fold(line, eol string) []byte {
	var b []byte
	for len(line) > 76 {
		i := strings.LastIndexByte(line[:77], ' ')
		if colon := strings.IndexByte(line, ':'); len(b) == 0 && i <= colon+1 || i <= 0 {
			if i = strings.IndexByte(line[77:], ' '); i < 0 {
				break
			}
			i += 77
		}
		// A line of nothing but white space would end the header for some readers.
		if strings.TrimSpace(line[:i]) == "" || strings.TrimSpace(line[i:]) == "" {
			break
		}
		b = append(append(b, line[:i]...), eol...)
		line = line[i:]
	}
	return append(append(b, line...), eol...)
}

func isASCII(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

// latin1ToUTF8 keeps valid UTF-8 and reads every other octet as Windows-1252, as package mime does.
func latin1ToUTF8(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && n == 1 {
			r = charmap.Windows1252.DecodeByte(s[i])
		}
		b.WriteRune(r)
		i += n
	}
	return b.String()
}
