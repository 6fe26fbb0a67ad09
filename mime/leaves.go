package mime

import (
	"bytes"
	"io"
	"strings"
	"sync"
	"unicode/utf8"

	"golang.org/x/text/transform"
)

// leaf is what the place of a leaf in the tree says about it.
type leaf struct {
	ent         *Entity
	first       bool // the first leaf of the mail
	aside       bool // inside a multipart/related, but not in its root
	alternative bool // directly inside a multipart/alternative
}

// textLeaf is a leaf that is read as text.
type textLeaf struct {
	open func() io.Reader
	size int64
}

// leaves sorts the leaves into body and attachments, and measures what they decode to.
func (p *parser) leaves() error {
	m := p.msg
	var leaves []leaf
	p.collect(m.Root, leaf{}, &leaves)
	var text, html []textLeaf
	for i, l := range leaves {
		l.first = i == 0
		a := p.attachment(l.ent)
		disposition := a.disposition
		named := a.Filename != ""
		switch t := l.ent.Type; {
		case (t == "text/plain" || t == "text/html") && disposition != "attachment" && (!named || l.first) && !l.aside:
			part, err := p.text(l.ent)
			if err != nil {
				return err
			}
			list, joined := &text, &m.Text
			if t == "text/html" {
				list, joined = &html, &m.HTML
			}
			if *list = append(*list, part); *joined == nil {
				*joined = &Part{Charset: strings.ToLower(l.ent.Params["charset"])}
			}
			continue
		case t == "text/x-amp-html" && l.alternative && disposition != "attachment" && m.AMP == nil:
			part, err := p.single(l.ent)
			if err != nil {
				return err
			}
			m.AMP = part
			if err := p.measure(&a.Attachment); err != nil {
				return err
			}
			m.amp, m.ampAt = &a.Attachment, len(m.Attachments)
			continue
		case t == "text/calendar" && l.alternative && disposition != "attachment" && m.Calendar == nil:
			part, err := p.single(l.ent)
			if err != nil {
				return err
			}
			m.Calendar = part
		}
		if err := p.measure(&a.Attachment); err != nil {
			return err
		}
		m.Attachments = append(m.Attachments, a.Attachment)
	}
	join(m.Text, text)
	join(m.HTML, html)
	if t := m.Root; t.Type == "application/pkcs7-mime" || t.Type == "application/x-pkcs7-mime" {
		// RFC 8551 3.2.2; without the parameter it is mostly enveloped data.
		switch strings.ToLower(t.Params["smime-type"]) {
		case "signed-data", "certs-only":
			m.Signed = true
		default:
			m.Encrypted = true
		}
	}
	return nil
}

// collect lists the leaves below e in order. The depth of the tree is limited.
func (p *parser) collect(e *Entity, l leaf, leaves *[]leaf) {
	if len(e.Children) == 0 {
		l.ent = e
		*leaves = append(*leaves, l)
		return
	}
	switch e.Type {
	case "multipart/signed":
		p.msg.Signed = true
	case "multipart/encrypted":
		p.msg.Encrypted = true
	}
	root := -1
	if e.Type == "multipart/related" {
		root = relatedRoot(e)
	}
	for i, c := range e.Children {
		down := leaf{aside: l.aside || root >= 0 && i != root, alternative: e.Type == "multipart/alternative"}
		p.collect(c, down, leaves)
	}
}

// relatedRoot gives the index of the root of a multipart/related (RFC 2387 3.2).
func relatedRoot(e *Entity) int {
	if start := strings.Trim(e.Params["start"], "<> "); start != "" {
		for i, c := range e.Children {
			if contentID(c.Header) == start {
				return i
			}
		}
	}
	return 0
}

func contentID(h Header) string {
	f := h.first("Content-ID")
	if f == nil {
		return ""
	}
	s := cleanString(f.raw())
	if _, rest, ok := strings.Cut(s, "<"); ok {
		s, _, _ = strings.Cut(rest, ">")
	}
	return strings.TrimSpace(s)
}

type dispositioned struct {
	Attachment
	disposition string
}

// attachment describes a leaf by its header.
func (p *parser) attachment(e *Entity) dispositioned {
	a := dispositioned{Attachment: Attachment{
		Type: e.Type, ContentID: contentID(e.Header), Encoding: e.Encoding, Entity: e, Params: map[string]string{},
	}}
	for name, value := range e.Params {
		if name != "name" && name != "boundary" {
			a.Params[name] = value
		}
	}
	name := ""
	if f := e.Header.first("Content-Disposition"); f != nil {
		v := p.parameters(f.raw(), "Content-Disposition")
		a.disposition = strings.ToLower(v.value)
		name = v.params["filename"]
	}
	if name == "" {
		name = e.Params["name"]
	}
	a.Filename = fileName(name)
	a.Inline = a.disposition == "inline" || a.ContentID != "" && a.disposition != "attachment"
	return a
}

// fileName makes a decoded name safe: its last path element, without marks that change the direction of
// writing (they hide the real ending), at most 255 bytes with the ending kept.
func fileName(s string) string {
	s = cleanString(s)
	s = strings.TrimRight(s, "/\\")
	if i := strings.LastIndexAny(s, "/\\"); i >= 0 {
		s = s[i+1:]
	}
	s = strings.Map(func(r rune) rune {
		switch {
		case r >= 0x202A && r <= 0x202E, r >= 0x2066 && r <= 0x2069, r == 0x200E, r == 0x200F, r == 0x061C:
			return -1
		}
		return r
	}, s)
	s = strings.TrimSpace(s)
	if s == "." || s == ".." || len(s) == 2 && s[1] == ':' {
		return ""
	}
	const limit = 255
	if len(s) > limit {
		ext := ""
		if i := strings.LastIndexByte(s, '.'); i > 0 && len(s)-i <= 16 {
			ext = s[i:]
		}
		s = cut(s, limit-len(ext)) + ext
	}
	return s
}

// octets gives the body of a leaf as in the source.
func (p *parser) octets(e *Entity) io.Reader {
	return io.NewSectionReader(p.msg.src, e.BodyStart, e.End-e.BodyStart)
}

// encoding gives the transfer encoding to decode, "" for none, and notes what it cannot decode.
func (p *parser) encoding(e *Entity) string {
	switch e.Encoding {
	case "base64":
		if strings.HasPrefix(e.Type, "text/") && p.looksPlain(e) {
			p.defect("cte", "a %s that says base64 and is not", e.Type)
			return ""
		}
		return e.Encoding
	case "quoted-printable":
		return e.Encoding
	case "7bit", "8bit", "binary":
		return ""
	case "x-uuencode", "uuencode", "uue", "x-uue":
		d := newDecoder(e.Encoding, p.octets(e), e.End-e.BodyStart)
		if _, err := io.Copy(io.Discard, d); err == nil && d.uu == 0 {
			p.defect("cte", "no uuencoded data in a %s", e.Type)
			return ""
		}
		return e.Encoding
	}
	p.defect("cte", "unknown transfer encoding %q, taken as octets", cut(e.Encoding, 64))
	return ""
}

// looksPlain reports whether a text that is said to be base64 is none: it has spaces between its words.
func (p *parser) looksPlain(e *Entity) bool {
	const sample, least = 4096, 100
	b := make([]byte, min(e.End-e.BodyStart, sample))
	n, _ := p.msg.src.ReadAt(b, e.BodyStart) // a read error shows when the body is read
	blanks, all := 0, 0
	for _, line := range bytes.Split(b[:n], []byte{'\n'}) {
		line = bytes.TrimSpace(line)
		blanks += bytes.Count(line, []byte{' '})
		all += len(line)
	}
	return all >= least && blanks*12 > all
}

// decoded opens the content of a leaf without its transfer encoding. With crlf its lines end in
// CRLF, as they arrive by SMTP, also when the source has LF.
func (p *parser) decoded(e *Entity, encoding string, crlf bool) (io.Reader, *decoder) {
	src := p.octets(e)
	if crlf && e.bareLF && encoding != "base64" {
		src = transform.NewReader(src, &toCRLF{})
	}
	if d := newDecoder(encoding, src, e.End-e.BodyStart); d != nil {
		return d, d
	}
	return src, nil
}

// measure sets the size of an attachment, and how to open it.
func (p *parser) measure(a *Attachment) error {
	e := a.Entity
	enc := p.encoding(e)
	a.open = func() io.ReadCloser {
		r, _ := p.decoded(e, enc, true)
		return io.NopCloser(r)
	}
	if enc == "" && !e.bareLF {
		a.Size = e.End - e.BodyStart
		return nil
	}
	r, d := p.decoded(e, enc, true)
	n, err := io.Copy(io.Discard, r)
	if err != nil {
		return err
	}
	a.Size = n
	p.decodeDefect(d, e)
	return nil
}

func (p *parser) decodeDefect(d *decoder, e *Entity) {
	if d != nil && d.defect != "" {
		p.defect("cte", "%s in a %s", d.defect, e.Type)
	}
}

// single reads one leaf as a Part of its own.
func (p *parser) single(e *Entity) (*Part, error) {
	t, err := p.text(e)
	if err != nil {
		return nil, err
	}
	part := &Part{Charset: strings.ToLower(e.Params["charset"])}
	join(part, []textLeaf{t})
	return part, nil
}

// text reads a leaf as text. Octets whose charset is unknown are UTF-8 if all of them are; octets
// without a charset, or in US-ASCII, else are Windows-1252.
func (p *parser) text(e *Entity) (textLeaf, error) {
	enc := p.encoding(e)
	name := charsetName(e.Params["charset"])
	_, known := charsetReader(name, bytes.NewReader(nil))
	g := guessUTF8
	if !known {
		has8, valid := e.Has8Bit, e.ValidUTF8
		if enc != "" {
			r, _ := p.decoded(e, enc, false)
			var stats utf8Stats
			if _, err := copyThrough(&statsWriter{&stats}, r); err != nil {
				return textLeaf{}, err
			}
			has8, valid = stats.result()
		}
		switch {
		case name != "" && name != "us-ascii":
			p.defect("charset", "unknown charset %q in a %s", cut(name, 64), e.Type)
		case has8:
			p.defect("charset", "8-bit text without a charset for it in a %s", e.Type)
			if !valid {
				g = guessWindows
			}
		}
	}
	if enc == "" && e.crlf >= 0 && (!e.Has8Bit && !escapes(name) || e.ValidUTF8 && (name == "utf-8" || !known && g == guessUTF8)) {
		// The octets are the text, but for the ends of its lines.
		return textLeaf{open: func() io.Reader { return transform.NewReader(p.octets(e), toLF{}) }, size: e.End - e.BodyStart - e.crlf}, nil
	}
	open := func() (io.Reader, *decoder) {
		r, d := p.decoded(e, enc, false)
		if known {
			r, _ = charsetReader(name, r)
		} else {
			r = guessReader(g, r)
		}
		return transform.NewReader(r, toLF{}), d
	}
	r, d := open()
	var check replacementCheck
	n, err := copyThrough(&check, r)
	if err != nil {
		return textLeaf{}, err
	}
	p.decodeDefect(d, e)
	if check.found && known {
		p.defect("charset", "text that is not valid %s in a %s", cut(name, 64), e.Type)
	}
	return textLeaf{open: func() io.Reader { r, _ := open(); return r }, size: n}, nil
}

var copyBuffers = sync.Pool{New: func() any { return new([16 << 10]byte) }}

// copyThrough is io.Copy with a buffer that is used again.
func copyThrough(w io.Writer, r io.Reader) (int64, error) {
	buf := copyBuffers.Get().(*[16 << 10]byte)
	defer copyBuffers.Put(buf)
	return io.CopyBuffer(w, r, buf[:])
}

type statsWriter struct{ s *utf8Stats }

func (w *statsWriter) Write(b []byte) (int, error) {
	w.s.write(b)
	return len(b), nil
}

// replacementCheck looks for U+FFFD in what is written to it.
type replacementCheck struct {
	found bool
	tail  [2]byte
}

func (c *replacementCheck) Write(b []byte) (int, error) {
	const mark = string(utf8.RuneError)
	if !c.found {
		head := append(c.tail[:2:2], b[:min(len(b), 2)]...)
		c.found = bytes.Contains(b, []byte(mark)) || bytes.Contains(head, []byte(mark))
		if len(b) >= 2 {
			copy(c.tail[:], b[len(b)-2:])
		} else if len(b) == 1 {
			c.tail = [2]byte{c.tail[1], b[0]}
		}
	}
	return len(b), nil
}

// join makes p the text of the leaves, joined by a newline.
func join(p *Part, leaves []textLeaf) {
	if p == nil {
		return
	}
	for i, l := range leaves {
		if i > 0 {
			p.Size++
		}
		p.Size += l.size
	}
	p.open = func() io.ReadCloser { return io.NopCloser(&joinReader{leaves: leaves}) }
}

// joinReader opens one leaf at a time.
type joinReader struct {
	leaves []textLeaf
	cur    io.Reader
}

func (j *joinReader) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for {
		if j.cur == nil {
			if len(j.leaves) == 0 {
				return 0, io.EOF
			}
			j.cur = j.leaves[0].open()
			j.leaves = j.leaves[1:]
		}
		n, err := j.cur.Read(b)
		if err == io.EOF {
			j.cur = nil
			err = nil
			if n == 0 && len(j.leaves) > 0 {
				j.cur = j.leaves[0].open()
				j.leaves = j.leaves[1:]
				b[0] = '\n'
				return 1, nil
			}
			if n > 0 && len(j.leaves) > 0 {
				j.cur = strings.NewReader("") // the newline comes next
			}
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}
