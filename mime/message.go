// Package mime reads the bytes of a mail into a neutral, vendor-free Message.
//
// Contract: a readable mail never fails to parse. Whatever is wrong with it becomes a
// Defect, content is never lost, and the same bytes always give the same Message. Only
// the configured Limits make Parse fail, with a *LimitError, and they are checked while
// scanning, in one pass and in linear time, before any tree is walked. Bodies are never held: every
// Part opens a stream over the source, decodes it and says beforehand how long it is.
package mime

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// Message is the neutral form of one mail.
type Message struct {
	Header      Header // all fields of the top header, in order
	From        []Address
	Sender      []Address
	ReplyTo     []Address
	To          []Address
	Cc          []Address
	Subject     string // decoded; HasSubject tells absent from empty
	HasSubject  bool
	MessageID   string   // without angle brackets, "" when absent
	InReplyTo   []string // without angle brackets
	References  []string
	Date        time.Time // zero when absent or unreadable
	Text        *Part     // joined inline text/plain leaves; nil = absent
	HTML        *Part     // joined inline text/html leaves; nil = absent
	AMP         *Part     // text/x-amp-html alternative
	Calendar    *Part     // text/calendar alternative (also listed in Attachments)
	Attachments []Attachment
	Root        *Entity // the MIME tree with byte offsets, for the raw path
	Signed      bool    // multipart/signed or S/MIME signed: rebuilding would break it
	Encrypted   bool    // multipart/encrypted or S/MIME enveloped
	Defects     []Defect
	Size        int64 // bytes of the source

	src      io.ReaderAt
	comments map[Address]bool // addresses whose Name is a comment, which WriteJSON leaves out
	amp      *Attachment      // the AMP part as a leaf, for WriteJSON, in front of Attachments[ampAt]
	ampAt    int
}

// Source gives the exact bytes the message was parsed from.
func (m *Message) Source() *io.SectionReader { return io.NewSectionReader(m.src, 0, m.Size) }

// Reopen gives the message another source, which must hold the same bytes: what was parsed from one copy of a mail is read
// from another.
func (m *Message) Reopen(r io.ReaderAt) { m.src = r }

// Address is one mailbox of an address list. Groups are flattened.
type Address struct {
	Name string `json:"name"`    // decoded display name, no control characters
	Addr string `json:"address"` // as written; never taken from a display name or an encoded word
}

// Field is one header field.
type Field struct {
	Name  string // as written
	Raw   []byte // the whole field as received: name, colon, folded value, line end
	Value string // unfolded and decoded (RFC 2047, raw 8-bit as UTF-8 or Latin-1), control characters replaced by spaces
}

// Header is a header block in its original order.
type Header []Field

// Part is readable text of the mail, as UTF-8.
type Part struct {
	Size    int64  // exact length in bytes of what Open gives (UTF-8, line ends LF)
	Charset string // as declared, lower case, "" when not
	open    func() io.ReadCloser
}

// Open streams the text: decoded, converted to UTF-8 (U+FFFD where that is impossible), LF line
// ends. It can be called any number of times and gives the same bytes each time.
func (p *Part) Open() io.ReadCloser { return p.open() }

// NewPart is a Part of a text made anew: valid UTF-8 with LF line ends.
func NewPart(text string) *Part {
	return &Part{Size: int64(len(text)), Charset: "utf-8", open: func() io.ReadCloser { return io.NopCloser(strings.NewReader(text)) }}
}

// Attachment is any leaf that is not body text, byte for byte.
type Attachment struct {
	Filename  string            // decoded base name, at most 255 bytes, no control characters; "" when it has none
	Type      string            // media type, lower case, "text/plain" when absent (RFC 2045 5.2)
	Params    map[string]string // further Content-Type parameters (charset, method ...)
	ContentID string            // without angle brackets, "" when absent
	Inline    bool              // disposition inline, or a Content-ID without disposition attachment
	Size      int64             // exact decoded length
	Encoding  string            // transfer encoding in the source, lower case
	open      func() io.ReadCloser
	// When the source already is clean base64 its encoded form can be passed through; see Entity.
	Entity *Entity
}

// Open streams the decoded bytes (text in CRLF form, as in the mail). It can be called any
// number of times and gives the same bytes each time.
func (a *Attachment) Open() io.ReadCloser { return a.open() }

// Entity is a node of the MIME tree (RFC 2045 2.4), as byte offsets into the source.
type Entity struct {
	Header    Header
	Type      string            // lower-case media type after defaulting (text/plain, message/rfc822 in a digest)
	Params    map[string]string // decoded Content-Type parameters (RFC 2231), keys lower case
	Encoding  string            // lower-case Content-Transfer-Encoding, "7bit" when absent
	Start     int64             // first byte of the header
	BodyStart int64             // first byte after the empty line
	End       int64             // end of the body, before the line end that belongs to the next boundary
	Children  []*Entity         // parts of a multipart; nil for leaves (message/rfc822 is a leaf: never opened)
	Has8Bit   bool              // the body (of a leaf) has octets above 0x7F
	ValidUTF8 bool              // the body (of a leaf) is valid UTF-8 as it stands

	bareLF bool  // the body may have lines that end in LF alone
	crlf   int64 // lines of the body (of a leaf) that end in CRLF, -1 when not known
}

// Defect is something the parser had to guess.
type Defect struct {
	Kind   string `json:"kind"`   // charset, cte, control, dup_header, header, boundary, address, date, rfc2231, truncated ...
	Detail string `json:"detail"` // what and where, without body text
}

func (d Defect) String() string { return d.Kind + ": " + d.Detail }

// Limits bound what Parse takes. The zero value of a field means its default.
type Limits struct {
	Depth        int   // nesting of multiparts, default 50
	Parts        int   // leaves and containers together, default 1000
	HeaderBytes  int64 // one header block, default 1 MiB
	HeaderFields int   // fields in one header block, default 2000
	Addresses    int   // addresses in one header, default 2000
}

// LimitError says that a mail is beyond a limit. For SMTP: depth, parts and addresses are
// 554 5.6.0, header is 552 5.3.4.
type LimitError struct {
	Kind string // depth, parts, header, addresses
	Max  int64
}

func (e *LimitError) Error() string {
	return fmt.Sprintf("mail exceeds the limit of %d for %s", e.Max, e.Kind)
}
