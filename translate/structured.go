package translate

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// fate says what becomes of a top header field in the structured form.
type fate uint8

const (
	passes   fate = iota // by the header policy
	carried              // the call says it in a field of its own, or it is structure: nothing is lost
	traceRow             // transport trace: nobody misses it
	dropped              // has no place in a structured call: a minor loss
)

// fates are the fields with a rule of their own. Everything else passes by policy.
var fates = map[string]fate{
	"from": carried, "to": carried, "cc": carried, "bcc": carried, "resent-bcc": carried, "subject": carried, "reply-to": carried,
	"mime-version": carried, "content-type": carried, "content-transfer-encoding": carried,
	"content-disposition": carried, "content-id": carried, "content-length": carried, "return-path": carried,
	"date": traceRow, "message-id": traceRow, "received": traceRow, "delivered-to": traceRow, "x-original-to": traceRow,
	// A signature or verdict over bytes that no longer exist would only harm.
	"dkim-signature": traceRow, "domainkey-signature": traceRow, "authentication-results": traceRow,
	"arc-seal": traceRow, "arc-message-signature": traceRow, "arc-authentication-results": traceRow, "received-spf": traceRow,
}

func fateOf(name string) fate {
	if f, ok := fates[name]; ok {
		return f
	}
	switch {
	case strings.HasPrefix(name, "arc-"):
		return traceRow
	case strings.HasPrefix(name, "content-"), strings.HasPrefix(name, "resent-"):
		return dropped
	}
	return passes
}

// majorHeaders are missed by people or break automatic handling when they go.
var majorHeaders = map[string]bool{
	"list-unsubscribe": true, "list-unsubscribe-post": true, "auto-submitted": true,
	"in-reply-to": true, "references": true, "reply-to": true,
}

func severityOf(name string) Severity {
	if majorHeaders[name] {
		return Major
	}
	return Minor
}

// structured plans what the structured form carries of the content.
func (p *planner) structured(w *wish) error {
	m, c, b := p.Message, &p.Caps, &p.base
	if m.Signed {
		p.lose(Fatal, "signature", "signed message", "unsigned, rebuilt")
	}
	if m.Encrypted {
		p.lose(Fatal, "encryption", "encrypted message", "attachments, rebuilt")
	}
	p.subject()
	if err := p.body(); err != nil {
		return err
	}
	if limit := c.ReplyTo; limit >= 0 && len(b.ReplyTo) > limit {
		sent := ""
		switch {
		case limit == 1:
			sent = "first only"
		case limit > 1:
			sent = fmt.Sprintf("first %d", limit)
		}
		p.lose(Major, "reply-to", plural(len(b.ReplyTo), "address"), sent)
		b.ReplyTo = b.ReplyTo[:limit:limit]
	}
	p.recipientNames()
	p.headers()
	p.listUnsubscribe(w)
	if m.Text != nil && flowed(m.Root) {
		p.lose(Info, "text", "format=flowed", "with its line ends as they are")
	}
	if m.AMP != nil && !c.AMP {
		p.lose(Minor, "amp alternative", "text/x-amp-html", "")
	}
	if m.Calendar != nil && !c.Calendar {
		p.lose(Major, "calendar alternative", "text/calendar", "as attachment")
	}
	err := p.attachments()
	if err != nil && (m.Signed || m.Encrypted) {
		// The attachment that the API does not take is the signature, or what is encrypted.
		return &RefusalError{Status: "5.6.3", Text: "the message is signed or encrypted, and the provider would take it apart; send it without, or route it to an account that sends messages whole"}
	}
	return err
}

func (p *planner) subject() {
	b := &p.base
	if blank := strings.TrimSpace(b.Subject) == ""; blank && b.Options.Template.ID != "" && p.Caps.TemplateOwn {
		b.Subject = "" // the template has one
	} else if blank && p.Caps.NeedSubject {
		b.Subject = "(no subject)"
		p.lose(Minor, "subject", "", b.Subject)
	}
	if limit := p.Caps.MaxSubject; limit > 0 && utf8.RuneCountInString(b.Subject) > limit {
		n := utf8.RuneCountInString(b.Subject)
		b.Subject = string([]rune(b.Subject)[:limit])
		p.lose(Major, "subject", plural(n, "character"), fmt.Sprintf("first %d", limit))
	}
}

// body lets what the API needs stand in for texts that are absent or blank.
func (p *planner) body() error {
	c, m := &p.Caps, p.base.Msg
	if c.FillText == "" && c.FillHTML == "" {
		return nil
	}
	for _, part := range []*mime.Part{m.Text, m.HTML} {
		switch is, err := blank(part); {
		case err != nil:
			return fmt.Errorf("read text: %w", err)
		case !is:
			return nil
		}
	}
	filled := *m
	filled.Text, filled.HTML = nil, nil
	if c.FillText != "" {
		filled.Text = mime.NewPart(c.FillText)
	} else {
		filled.HTML = mime.NewPart(c.FillHTML)
	}
	p.base.Msg = &filled
	p.lose(Info, "text", "none", "an empty line")
	return nil
}

// flowed reports a text part whose line ends are to be redone by the reader (RFC 3676), which no API can say.
func flowed(e *mime.Entity) bool {
	switch {
	case e == nil:
		return false
	case len(e.Children) > 0:
		return slices.ContainsFunc(e.Children, flowed)
	}
	return e.Type == "text/plain" && strings.EqualFold(e.Params["format"], "flowed")
}

// blank reports a part that is absent, empty or a little white space.
func blank(part *mime.Part) (bool, error) {
	const little = 1 << 10
	switch {
	case part == nil || part.Size == 0:
		return true, nil
	case part.Size > little:
		return false, nil
	}
	r := part.Open()
	defer r.Close()
	b, err := io.ReadAll(r)
	return len(bytes.TrimSpace(b)) == 0, err
}

// headers applies the policy to every top field, in order.
func (p *planner) headers() {
	c, b := &p.Caps, &p.base
	first := map[string]bool{}
	repeats := map[string]int{}
	var order []string
	for i := range p.Message.Header {
		f := &p.Message.Header[i]
		name := strings.ToLower(strings.TrimRight(f.Name, " \t"))
		if isDialect(name) {
			continue // read as an option, never sent on
		}
		switch fateOf(name) {
		case carried:
			continue
		case traceRow:
			if name == "message-id" && c.MessageID || name == "dkim-signature" && p.Message.Signed {
				continue
			}
			p.lose(Info, "header "+headerTitle(name), "", "")
			continue
		case dropped:
			p.lose(Minor, "header "+headerTitle(name), "", "")
			continue
		}
		if name == "sender" {
			// The ESP's own sender takes its place where it matters; the same address as From says nothing.
			if len(p.Message.Sender) == 1 && envelope.Equal(p.Message.Sender[0].Addr, b.From.Addr) {
				continue
			}
			if !slices.Contains(c.HeaderList, "sender") {
				p.lose(Minor, "header sender", "", "")
				continue
			}
		}
		if name == "list-unsubscribe" && c.ListUnsub && c.ListUnsubOne {
			continue // see listUnsubscribe
		}
		allowed := c.allows(name)
		if survives, special := c.special(name); special {
			switch {
			case !survives:
				allowed = false
			case !allowed:
				continue // by a field of the API's own
			}
		}
		value := clean(f.Value)
		switch {
		case !validName(f.Name) || !allowed:
			p.lose(severityOf(name), "header "+headerTitle(name), "", "")
			continue
		case c.HeaderMax > 0 && len(value) > c.HeaderMax:
			p.lose(severityOf(name), "header "+headerTitle(name), plural(len(value), "byte"), "")
			continue
		case c.HeaderOnce && first[name]:
			if repeats[name] == 0 {
				order = append(order, name)
			}
			repeats[name]++
			continue
		}
		first[name] = true
		b.Headers = append(b.Headers, HeaderField{Name: f.Name, Value: value})
	}
	for _, name := range order {
		p.lose(severityOf(name), "header "+headerTitle(name), plural(repeats[name]+1, "field"), "first only")
	}
}

// special tells whether a field with a capability flag of its own survives.
func (c *Capabilities) special(name string) (survives, special bool) {
	switch name {
	case "in-reply-to", "references":
		return c.Threading, true
	case "list-unsubscribe":
		return c.ListUnsub, true
	case "list-unsubscribe-post":
		return c.ListUnsubPost, true
	}
	return false, false
}

// allows reports whether the header policy lets a lower-case name pass.
func (c *Capabilities) allows(name string) bool {
	if c.HeaderAlnum && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		return false
	}
	switch c.Headers {
	case HeadersAny:
		return true
	case HeadersXOnly:
		return strings.HasPrefix(name, "x-")
	case HeadersListed:
		return slices.Contains(c.HeaderList, name) ||
			strings.HasPrefix(name, "x-") && slices.Contains(c.HeaderList, "x-*")
	}
	return false
}

// listUnsubscribe gives the values for an API field, from the header or from a dialect's.
func (p *planner) listUnsubscribe(w *wish) {
	c, b, h := &p.Caps, &p.base, p.Message.Header
	value := fieldValue(h, "list-unsubscribe")
	if value == "" && w.listUnsubscribe != "" {
		value = w.listUnsubscribe
		switch {
		case !c.ListUnsub:
			p.lose(Major, "header "+headerTitle("list-unsubscribe"), "", "")
		case c.allows("list-unsubscribe") && !c.ListUnsubOne:
			b.Headers = append(b.Headers, HeaderField{Name: "List-Unsubscribe", Value: value})
		}
	}
	switch {
	case c.ListUnsub && c.ListUnsubOne && value != "":
		b.ListUnsubscribe = p.oneURI(value)
	case c.ListUnsub:
		b.ListUnsubscribe = value
	}
	if c.ListUnsubPost {
		b.ListUnsubPost = fieldValue(h, "list-unsubscribe-post")
	}
}

// oneURI keeps the first https URI of a List-Unsubscribe value (RFC 2369 2), the one that RFC 8058 is about.
func (p *planner) oneURI(value string) string {
	if !strings.Contains(value, "<") {
		value = "<" + value + ">" // as some write it
	}
	uris, kept := 0, ""
	for rest := value; ; {
		_, after, ok := strings.Cut(rest, "<")
		if !ok {
			break
		}
		uri, next, ok := strings.Cut(after, ">")
		if !ok {
			break
		}
		uris++
		if uri = strings.Join(strings.Fields(uri), ""); kept == "" && len(uri) > len("https://") && strings.EqualFold(uri[:len("https://")], "https://") {
			kept = "<" + uri + ">"
		}
		rest = next
	}
	had, title := plural(uris, "URI"), "header "+headerTitle("list-unsubscribe")
	switch {
	case kept == "":
		p.lose(Major, title, had, "")
	case uris > 1:
		p.lose(Minor, title, had, "the https one")
	}
	return kept
}

// recipientNames takes the characters that the API does not allow out of the names of those who receive.
func (p *planner) recipientNames() {
	bad := p.Caps.NameWithout
	if bad == "" {
		return
	}
	for _, l := range []struct {
		field string
		list  []person
	}{{"to", p.people.to}, {"cc", p.people.cc}} {
		for i := range l.list {
			a := &l.list[i].addr
			if !strings.ContainsAny(a.Name, bad) {
				continue
			}
			name := strings.Join(strings.Fields(strings.Map(func(r rune) rune {
				if strings.ContainsRune(bad, r) {
					return ' '
				}
				return r
			}, a.Name)), " ")
			p.lose(Minor, l.field+" name", cut(a.Name, 80), cut(name, 80))
			a.Name = name
		}
	}
}

// rawLosses says what raw MIME loses: little, as the bytes are the client's.
func (p *planner) rawLosses(w *wish) {
	m, c := p.Message, &p.Caps
	p.base.ListUnsubscribe = fieldValue(m.Header, "list-unsubscribe")
	p.base.ListUnsubPost = fieldValue(m.Header, "list-unsubscribe-post")
	if p.base.ListUnsubscribe == "" && w.listUnsubscribe != "" {
		p.base.ListUnsubscribe = w.listUnsubscribe
		p.rewrite.listUnsubscribe = w.listUnsubscribe
	}
	for i := range m.Attachments {
		a := &m.Attachments[i]
		p.base.Attach = append(p.base.Attach, Attachment{Attachment: a, Name: a.Filename, Inline: a.Inline})
	}
	for i := range m.Header {
		switch name := strings.ToLower(strings.TrimRight(m.Header[i].Name, " \t")); name {
		case "received":
			if !p.Settings.KeepReceived {
				p.lose(Info, "header received", "", "")
			}
		case "message-id":
			if !c.MessageID {
				p.lose(Info, "header message-id", "", "")
			}
		case "resent-to", "resent-cc":
			if c.Raw == RawBccHeader {
				p.lose(Minor, "header "+headerTitle(name), "", "")
			}
		}
	}
	if c.RawString {
		p.recodingLosses()
	}
}

// fieldValue is the cleaned value of the first field with that lower-case name.
func fieldValue(h mime.Header, name string) string {
	for i := range h {
		if strings.EqualFold(h[i].Name, name) {
			return clean(h[i].Value)
		}
	}
	return ""
}

// headerTitle names a field in a loss: outside text, so it is cut and printable.
func headerTitle(name string) string {
	return cut(strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f {
			return '?'
		}
		return r
	}, name), 80)
}

// validName reports whether name is an RFC 5322 field name.
func validName(name string) bool {
	for i := 0; i < len(name); i++ {
		if name[i] <= ' ' || name[i] >= 0x7f || name[i] == ':' {
			return false
		}
	}
	return name != ""
}

// clean takes control characters out of a value, so that no field can carry another one (RFC 5322 2.2), and
// makes it valid UTF-8.
func clean(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	if strings.IndexFunc(s, isControl) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if isControl(r) {
			return ' '
		}
		return r
	}, s)
}

func isControl(r rune) bool {
	return r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029'
}
