package mime

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"time"
)

// Default limits. Postfix: MIME depth 100, header 102,400 bytes, 10,240 address tokens.
const (
	defaultDepth        = 50
	defaultParts        = 1000
	defaultHeaderBytes  = 1 << 20
	defaultHeaderFields = 2000
	defaultAddresses    = 2000

	// All header blocks of a mail together, as multiples of the limits of one block: header
	// blocks are the only thing that is held in memory.
	totalHeaderBlocks = 4
	totalFieldBlocks  = 10

	maxBoundary = 16 << 10 // RFC 2046 5.1.1 allows 70 characters; a longer one than this counts as absent
	maxDefects  = 200
)

func (l Limits) withDefaults() Limits {
	set := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	set(&l.Depth, defaultDepth)
	set(&l.Parts, defaultParts)
	set(&l.HeaderFields, defaultHeaderFields)
	set(&l.Addresses, defaultAddresses)
	if l.HeaderBytes <= 0 {
		l.HeaderBytes = defaultHeaderBytes
	}
	return l
}

// Parse reads the structure of a mail of size bytes. It returns a *LimitError, an error of r, or a Message.
func Parse(r io.ReaderAt, size int64, l Limits) (*Message, error) {
	m := &Message{src: r, Size: size}
	p := &parser{msg: m, limits: l.withDefaults(), lines: newLineReader(io.NewSectionReader(r, 0, size), size)}
	defer p.lines.free()
	if err := p.scan(); err != nil {
		return nil, err
	}
	if err := p.leaves(); err != nil {
		return nil, err
	}
	m.Defects = p.defects
	return m, nil
}

// parser is the state of one Parse. The structure is found in one pass over the lines of the
// source; the stack of open entities is never deeper than the limit.
type parser struct {
	msg     *Message
	limits  Limits
	lines   *lineReader
	defects []Defect

	stack  []*open        // open multiparts, and on top of them the open leaf
	active map[string]int // boundary -> index in stack; with equal boundaries the outermost wins
	parts  int

	inHeader bool
	header   headerScan
	total    struct {
		bytes  int64
		fields int
	}
}

// open is an entity whose end has not been seen.
type open struct {
	ent      *Entity
	boundary string // "" = leaf
	closed   bool   // its closing delimiter was seen: what follows is epilogue
	stats    utf8Stats
	bareLF   bool
	crlf     int64 // lines that end in CRLF
}

func (p *parser) defect(kind, format string, args ...any) {
	switch n := len(p.defects); {
	case n < maxDefects:
		p.defects = append(p.defects, Defect{Kind: kind, Detail: fmt.Sprintf(format, args...)})
	case n == maxDefects:
		p.defects = append(p.defects, Defect{Kind: "truncated", Detail: "more defects than are listed"})
	}
}

// scan reads the source line by line and builds the tree.
func (p *parser) scan() error {
	p.active = make(map[string]int)
	p.msg.Root = &Entity{}
	p.stack = append(p.stack, &open{ent: p.msg.Root})
	p.startHeader(0)
	var off int64     // of the current line
	var eol int64     // length of the line end before it, which belongs to a delimiter (RFC 2046 5.1.1)
	afterDel := false // the line before was a delimiter
	for {
		ln, err := p.lines.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	again:
		if !ln.cont && len(p.active) > 0 && len(ln.b) > 2 && ln.b[0] == '-' && ln.b[1] == '-' {
			if i, end, ok := p.delimiter(ln); ok {
				// A run of equal delimiters opens one part only, as in other readers.
				if afterDel && !end && i == len(p.stack)-2 {
					off += int64(len(ln.b))
					p.stack[len(p.stack)-1].ent.Start = off
					p.startHeader(off)
					eol = int64(ln.eol)
					continue
				}
				if err := p.atDelimiter(i, end, off, eol); err != nil {
					return err
				}
				off += int64(len(ln.b))
				if !end {
					if err := p.startPart(off); err != nil {
						return err
					}
				}
				eol = int64(ln.eol)
				afterDel = !end
				continue
			}
		}
		afterDel = false
		done := false
		if p.inHeader {
			if done, err = p.headerLine(ln, off); err != nil {
				return err
			}
			if !p.inHeader && !done {
				goto again // the first line of the body: it can be a delimiter
			}
		}
		if !p.inHeader && !done {
			o := p.stack[len(p.stack)-1]
			o.feed(ln.b)
			switch ln.eol {
			case 1:
				o.bareLF = true
			case 2:
				o.crlf++
			}
		}
		off += int64(len(ln.b))
		eol = int64(ln.eol)
	}
	if off < p.msg.Size {
		return io.ErrUnexpectedEOF
	}
	if p.inHeader {
		if err := p.endBlock(off); err != nil {
			return err
		}
	}
	for i := len(p.stack) - 1; i >= 0; i-- {
		if o := p.stack[i]; o.boundary != "" && !o.closed && len(o.ent.Children) > 0 {
			p.defect("boundary", "no closing delimiter for a %s", o.ent.Type)
		}
	}
	if top := len(p.stack) - 1; top > 0 && p.stack[top].boundary == "" {
		p.closeFrom(top, off, eol) // as if the missing delimiter stood here
	}
	p.closeFrom(0, off, 0)
	return nil
}

// feed passes body octets on to the statistics of a leaf, or of a multipart that may turn out to be one.
func (o *open) feed(b []byte) {
	if len(o.ent.Children) == 0 {
		o.stats.write(b)
	}
}

// delimiter looks up which open multipart the line is a delimiter of (RFC 2046 5.1.1): the
// whole line up to white space, so that one boundary can be a prefix of another.
func (p *parser) delimiter(ln line) (index int, end, ok bool) {
	if ln.partial {
		return 0, false, false
	}
	b := bytes.TrimRight(ln.b[2:len(ln.b)-ln.eol], " \t")
	if len(b) > maxBoundary+2 {
		return 0, false, false
	}
	index, ok = p.active[string(b)]
	if n := len(b) - 2; n > 0 && b[n] == '-' && b[n+1] == '-' {
		if i, found := p.active[string(b[:n])]; found && (!ok || i < index) {
			return i, true, true
		}
	}
	return index, false, ok
}

// atDelimiter closes everything inside the multipart at index i.
func (p *parser) atDelimiter(i int, end bool, off, eol int64) error {
	if p.inHeader {
		if err := p.endBlock(off); err != nil {
			return err
		}
	}
	for j := len(p.stack) - 1; j > i; j-- {
		if o := p.stack[j]; o.boundary != "" && !o.closed && len(o.ent.Children) > 0 {
			p.defect("boundary", "no closing delimiter for a %s inside another multipart", o.ent.Type)
		}
	}
	p.closeFrom(i+1, off, eol)
	if end {
		p.stack[i].closed = true
		delete(p.active, p.stack[i].boundary)
	}
	return nil
}

// startPart opens a child of the innermost multipart.
func (p *parser) startPart(off int64) error {
	p.parts++
	if p.parts > p.limits.Parts {
		return &LimitError{Kind: "parts", Max: int64(p.limits.Parts)}
	}
	parent := p.stack[len(p.stack)-1].ent
	e := &Entity{}
	parent.Children = append(parent.Children, e)
	p.stack = append(p.stack, &open{ent: e})
	e.Start = off
	p.startHeader(off)
	return nil
}

// closeFrom ends the entities at i and above.
func (p *parser) closeFrom(i int, off, eol int64) {
	for j := len(p.stack) - 1; j >= i; j-- {
		o := p.stack[j]
		o.ent.End = max(o.ent.BodyStart, off-eol)
		if k, ok := p.active[o.boundary]; ok && k == j {
			delete(p.active, o.boundary)
		}
		if len(o.ent.Children) == 0 {
			o.ent.bareLF, o.ent.crlf = o.bareLF, o.crlf
			if eol == 2 && o.crlf > 0 { // the last one belongs to the delimiter
				o.ent.crlf--
			}
			o.ent.Has8Bit, o.ent.ValidUTF8 = o.stats.result()
			if o.boundary != "" {
				p.defect("boundary", "no delimiter found in a %s, read as text", o.ent.Type)
				o.ent.demote()
				o.ent.crlf = -1 // delimiters are among its lines
			}
		}
	}
	p.stack = p.stack[:i]
}

// demote makes a multipart that cannot be taken apart a text leaf, so that its content is not lost.
func (e *Entity) demote() {
	e.Type = "text/plain"
	e.Params = map[string]string{}
}

// endHeader reads the header block of the entity on top of the stack. Its body starts at bodyStart.
func (p *parser) endHeader(bodyStart int64) error {
	p.inHeader = false
	o := p.stack[len(p.stack)-1]
	e := o.ent
	e.BodyStart = bodyStart
	p.total.bytes += p.header.bytes
	p.total.fields += p.header.fields
	if p.total.bytes > totalHeaderBlocks*p.limits.HeaderBytes {
		return &LimitError{Kind: "header", Max: totalHeaderBlocks * p.limits.HeaderBytes}
	}
	if limit := totalFieldBlocks * p.limits.HeaderFields; p.total.fields > limit {
		return &LimitError{Kind: "header", Max: int64(limit)}
	}
	e.Header = p.fields(p.header.buf, e == p.msg.Root)
	if e == p.msg.Root {
		if err := p.topHeader(e.Header); err != nil {
			return err
		}
	}
	boundary := p.contentHeader(e)
	if !strings.HasPrefix(e.Type, "multipart/") {
		return nil
	}
	if boundary == "" || len(boundary) > maxBoundary {
		p.defect("boundary", "%s without a usable boundary, read as text", e.Type)
		e.demote()
		return nil
	}
	if len(p.stack) > p.limits.Depth {
		return &LimitError{Kind: "depth", Max: int64(p.limits.Depth)}
	}
	o.boundary = boundary
	if _, taken := p.active[boundary]; !taken {
		p.active[boundary] = len(p.stack) - 1
	}
	return nil
}

// contentHeader reads the MIME fields of an entity (RFC 2045) and returns the boundary.
func (p *parser) contentHeader(e *Entity) string {
	e.Type, e.Encoding = "text/plain", "7bit"
	if n := len(p.stack); n > 1 && p.stack[n-2].ent.Type == "multipart/digest" {
		e.Type = "message/rfc822" // RFC 2046 5.1.5
	}
	e.Params = map[string]string{}
	if f := e.Header.first("Content-Type"); f != nil {
		v := p.parameters(f.raw(), "Content-Type")
		switch main, sub, ok := strings.Cut(strings.ToLower(v.value), "/"); {
		case ok && isToken(main) && isToken(sub):
			e.Type = main + "/" + sub
		default:
			p.defect("header", "unreadable Content-Type, taken as %s", e.Type)
		}
		for name, value := range v.params {
			e.Params[name] = value
		}
	}
	if f := e.Header.first("Content-Transfer-Encoding"); f != nil {
		enc := strings.ToLower(strings.Trim(strings.TrimSpace(stripComments(f.raw())), "\"';"))
		if enc = cleanString(enc); enc != "" {
			e.Encoding = enc
		}
	}
	if strings.HasPrefix(e.Type, "multipart/") || e.Type == "message/rfc822" {
		switch e.Encoding {
		case "7bit", "8bit", "binary":
		default: // RFC 2045 6.4
			p.defect("cte", "%s with an encoding of its own", e.Type)
		}
	}
	return strings.TrimRight(e.Params["boundary"], " \t\r\n")
}

// topHeader fills the fields of Message that come from the top header.
func (p *parser) topHeader(h Header) error {
	m := p.msg
	m.Header = h
	for _, list := range []struct {
		name string
		to   *[]Address
	}{
		{"From", &m.From},
		{"Sender", &m.Sender},
		{"Reply-To", &m.ReplyTo},
		{"To", &m.To},
		{"Cc", &m.Cc},
		{"Bcc", nil},
	} {
		var all []Address
		for i := range h {
			if !strings.EqualFold(h[i].Name, list.name) {
				continue
			}
			a := addressParser{s: h[i].raw(), max: p.limits.Addresses - len(all)}
			a.parse()
			if a.over {
				return &LimitError{Kind: "addresses", Max: int64(p.limits.Addresses)}
			}
			if a.defect != "" {
				p.defect("address", "%s: %s", list.name, a.defect)
			}
			all = append(all, a.list...)
			for _, l := range a.legacy {
				if m.comments == nil {
					m.comments = make(map[Address]bool)
				}
				m.comments[l] = true
			}
		}
		if list.to != nil {
			*list.to = all
		}
	}
	if f := h.first("Subject"); f != nil {
		m.Subject, m.HasSubject = f.Value, true
	}
	if f := h.first("Date"); f != nil {
		if t, ok := parseDate(f.raw()); ok {
			m.Date = t
		} else {
			m.Date = time.Time{}
			p.defect("date", "unreadable Date")
		}
	}
	if ids := msgIDs(h, "Message-ID"); len(ids) > 0 {
		m.MessageID = ids[0]
	}
	m.InReplyTo = msgIDs(h, "In-Reply-To")
	m.References = msgIDs(h, "References")
	return nil
}

// msgIDs reads the message identifiers of the first field with that name (RFC 5322 3.6.4),
// or its words when there are no angle brackets.
func msgIDs(h Header, name string) []string {
	f := h.first(name)
	if f == nil {
		return nil
	}
	s := cleanString(f.raw())
	var ids []string
	if strings.Contains(s, "<") {
		for {
			_, rest, ok := strings.Cut(s, "<")
			if !ok {
				break
			}
			id, after, closed := strings.Cut(rest, ">")
			if !closed {
				after = ""
			}
			if id = strings.TrimSpace(id); id != "" {
				ids = append(ids, id)
			}
			s = after
		}
		return ids
	}
	return strings.Fields(s)
}
