package mime

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"time"
)

// WriteJSON writes the message as "smtpbridge parse" prints it: one JSON object with subject,
// from, to, cc, reply_to, date, message_id, text, html, headers, attachments and defects.
// Bodies are streamed; attachments appear by their SHA-256.
func (m *Message) WriteJSON(w io.Writer) error {
	v := viewWriter{w: bufio.NewWriterSize(w, 32<<10)}
	v.field("subject", optional(m.Subject, m.HasSubject))
	v.field("from", m.viewAddresses(m.From))
	v.field("to", m.viewAddresses(m.To))
	v.field("cc", m.viewAddresses(m.Cc))
	v.field("reply_to", m.viewAddresses(m.ReplyTo))
	var date *string
	if !m.Date.IsZero() {
		date = optional(m.Date.UTC().Format(time.RFC3339), true)
	}
	v.field("date", date)
	v.field("message_id", optional(m.MessageID, m.MessageID != ""))
	v.text("text", m.Text)
	v.text("html", m.HTML)
	headers := make([]viewHeader, len(m.Header))
	for i, f := range m.Header {
		headers[i] = viewHeader{f.Name, f.Value}
	}
	v.field("headers", headers)
	list := []viewAttachment{}
	for i := 0; i <= len(m.Attachments); i++ {
		if m.amp != nil && i == m.ampAt {
			list = append(list, v.attachment(m.amp))
		}
		if i < len(m.Attachments) {
			list = append(list, v.attachment(&m.Attachments[i]))
		}
	}
	v.field("attachments", list)
	defects := m.Defects
	if defects == nil {
		defects = []Defect{}
	}
	v.field("defects", defects)
	v.raw("\n}\n")
	if v.err == nil {
		v.err = v.w.Flush()
	}
	return v.err
}

type viewHeader struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type viewAttachment struct {
	Filename  *string `json:"filename"`
	Type      string  `json:"content_type"`
	Size      int64   `json:"size"`
	SHA256    string  `json:"sha256"`
	ContentID *string `json:"content_id"`
	Inline    bool    `json:"inline"`
}

func optional(s string, present bool) *string {
	if !present {
		return nil
	}
	return &s
}

// viewAddresses shows the strict reading of RFC 5322 3.4, in which a comment is not a name.
func (m *Message) viewAddresses(list []Address) []Address {
	out := make([]Address, len(list))
	for i, a := range list {
		if m.comments[a] {
			a.Name = ""
		}
		out[i] = a
	}
	return out
}

// viewWriter writes the members of one JSON object and keeps the first error.
type viewWriter struct {
	w     *bufio.Writer
	err   error
	begun bool
}

func (v *viewWriter) raw(s string) {
	if v.err == nil {
		_, v.err = v.w.WriteString(s)
	}
}

func (v *viewWriter) name(name string) {
	if v.begun {
		v.raw(",")
	} else {
		v.raw("{")
	}
	v.begun = true
	v.raw("\n  \"" + name + "\": ")
}

func (v *viewWriter) field(name string, value any) {
	v.name(name)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("  ", "  ")
	if err := enc.Encode(value); err != nil && v.err == nil {
		v.err = err
	}
	v.raw(string(bytes.TrimRight(b.Bytes(), "\n")))
}

// text streams a part as a JSON string, or null.
func (v *viewWriter) text(name string, p *Part) {
	v.name(name)
	if p == nil {
		v.raw("null")
		return
	}
	v.raw("\"")
	r := p.Open()
	defer r.Close()
	buf := make([]byte, 16<<10)
	for v.err == nil {
		n, err := r.Read(buf)
		v.escape(buf[:n])
		if err == io.EOF {
			break
		}
		if err != nil {
			v.err = fmt.Errorf("read %s: %w", name, err)
		}
	}
	v.raw("\"")
}

// escape writes valid UTF-8, which may be cut anywhere, as the inside of a JSON string (RFC 8259 7).
func (v *viewWriter) escape(b []byte) {
	start := 0
	for i, c := range b {
		if c >= ' ' && c != '"' && c != '\\' && c != 0x7F {
			continue
		}
		v.raw(string(b[start:i]))
		start = i + 1
		switch c {
		case '"', '\\':
			v.raw("\\" + string(rune(c)))
		case '\n':
			v.raw("\\n")
		case '\t':
			v.raw("\\t")
		case '\r':
			v.raw("\\r")
		default:
			v.raw(fmt.Sprintf("\\u%04x", c))
		}
	}
	v.raw(string(b[start:]))
}

func (v *viewWriter) attachment(a *Attachment) viewAttachment {
	out := viewAttachment{
		Filename: optional(a.Filename, a.Filename != ""), Type: a.Type, Size: a.Size,
		ContentID: optional(a.ContentID, a.ContentID != ""), Inline: a.Inline,
	}
	r := a.Open()
	defer r.Close()
	sum := sha256.New()
	if n, err := io.Copy(sum, r); err != nil {
		v.fail(fmt.Errorf("read attachment: %w", err))
	} else if n != a.Size {
		v.fail(fmt.Errorf("attachment of %d bytes instead of %d: the source has changed", n, a.Size))
	}
	out.SHA256 = hex.EncodeToString(sum.Sum(nil))
	return out
}

func (v *viewWriter) fail(err error) {
	if v.err == nil {
		v.err = err
	}
}
