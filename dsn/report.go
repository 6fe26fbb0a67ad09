package dsn

import (
	"bufio"
	"bytes"
	"cmp"
	"fmt"
	"io"
	stdmime "mime"
	"mime/quotedprintable"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/encoding/htmlindex"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// Report is one DSN mail: what became of some recipients of a mail, for its sender (RFC 3464).
type Report struct {
	Hostname   string // the reporting MTA, and the domain MAILER-DAEMON is at
	ID         string // queue id of this mail
	Date       time.Time
	To         string // the envelope sender of the original
	Action     string // RFC 3464 2.3.3, one for all recipients
	EnvID      string // as in the envelope of the original
	QueueID    string
	MessageID  string // its Message-ID, without angle brackets
	Arrival    time.Time
	Recipients []Recipient
	Header     []byte      // its header block, as stored; empty: nothing is returned
	Original   io.ReaderAt // the whole of it, to be returned; nil: only the header block is
	Size       int64       // of Original
	Withheld   string      // why the whole of it is not returned although the sender wants it back
}

// Recipient is one recipient of a report.
type Recipient struct {
	Event event.Event // what happened
	Until time.Time   // of a delayed mail: when we shall give up, zero when others do
}

// Transport is what an SMTP envelope must say to carry a report.
type Transport struct {
	EightBit bool // RFC 6152
	UTF8     bool // RFC 6531
}

// LoopHeader is in every report; a mail that has it with our own address as its value never causes one.
const LoopHeader = "X-Loop"

// Daemon is the address reports come from, and what stands in LoopHeader.
func Daemon(hostname string) string { return "MAILER-DAEMON@" + cmp.Or(hostname, "localhost") }

// Write writes the mail: a text for people, the fields for programs (RFC 3464), and the original or its
// header block. The original is copied through, never held. Addresses, and header fields, in UTF-8 make the
// parts those of RFC 6533. An error is one of w or of reading the original.
func (r *Report) Write(w io.Writer) (Transport, error) {
	status := r.status()
	returned, err := r.returned()
	if err != nil {
		return Transport{}, fmt.Errorf("read the original: %w", err)
	}
	tr := Transport{
		EightBit: status.eightBit || returned.eightBit,
		UTF8:     !envelope.IsASCII(r.To),
	}
	out := bufio.NewWriterSize(w, 32<<10)
	boundary := "report-" + r.ID
	r.writeHeader(out, boundary)
	for _, p := range []part{r.text(), status, returned} {
		if p.write == nil {
			continue
		}
		fmt.Fprintf(out, "\r\n--%s\r\nContent-Type: %s\r\nContent-Description: %s\r\nContent-Transfer-Encoding: %s\r\n\r\n", boundary, p.mediaType, p.title, p.encoding)
		if err := p.write(out); err != nil {
			return tr, fmt.Errorf("write the report: %w", err)
		}
	}
	fmt.Fprintf(out, "\r\n--%s--\r\n", boundary)
	if err := out.Flush(); err != nil {
		return tr, fmt.Errorf("write the report: %w", err)
	}
	return tr, nil
}

func (r *Report) writeHeader(w io.Writer, boundary string) {
	line := func(name, value string) { fmt.Fprintf(w, "%s: %s\r\n", name, value) }
	line("Date", date(r.Date))
	line("From", "Mail Delivery System <"+Daemon(r.Hostname)+">")
	line("To", "<"+oneLine(r.To)+">")
	line("Subject", encodeWords(r.subject()))
	line("Message-ID", "<"+r.ID+"@"+cmp.Or(r.Hostname, "localhost")+">")
	if id := oneLine(r.MessageID); id != "" && ascii(id) && !strings.ContainsAny(id, " <>") {
		line("In-Reply-To", "<"+id+">")
		line("References", "<"+id+">")
	}
	line("Auto-Submitted", "auto-replied") // RFC 3834 5
	line(LoopHeader, Daemon(r.Hostname))
	line("MIME-Version", "1.0")
	line("Content-Type", "multipart/report; report-type=delivery-status;\r\n\tboundary=\""+boundary+"\"")
	io.WriteString(w, "\r\nThis is a delivery report in MIME format.\r\n") // errors come with Flush
}

// part is one body part; write nil: there is none.
type part struct {
	mediaType, title, encoding string
	eightBit                   bool
	write                      func(w io.Writer) error
}

// status is the part for programs.
func (r *Report) status() part {
	b := appendField(nil, "Reporting-MTA", typed("dns", cmp.Or(r.Hostname, "localhost")))
	b = appendField(b, "Original-Envelope-Id", r.EnvID)
	b = appendField(b, "Arrival-Date", date(r.Arrival))
	p := part{mediaType: "message/delivery-status", title: "Delivery report", encoding: "7bit"}
	for _, rc := range r.Recipients {
		e := rc.Event
		e.Action, e.WillRetryAt = r.Action, nil
		e.Status = cmp.Or(e.Status, defaultStatus[r.Action])
		if !rc.Until.IsZero() {
			e.WillRetryAt = &rc.Until
		}
		p.eightBit = p.eightBit || !ascii(e.Recipient) || !ascii(e.ORCPT)
		b = AppendRecipient(append(b, '\n'), e)
	}
	if p.eightBit { // RFC 6533 4
		p.mediaType, p.encoding = "message/global-delivery-status", "8bit"
	} else {
		b = toASCII(b)
	}
	p.write = func(w io.Writer) error { return writeLines(w, b) }
	return p
}

var defaultStatus = map[string]string{
	event.ActionFailed: "5.0.0", event.ActionDelayed: "4.0.0", event.ActionRelayed: "2.0.0", event.ActionDelivered: "2.0.0",
}

// returned is the part with the original, or its header block (RFC 6522 3 and 4, RFC 6533 6).
func (r *Report) returned() (part, error) {
	utf8Header := !asciiBytes(r.Header) && utf8.Valid(r.Header)
	if r.Original != nil {
		eight, err := hasEightBit(io.NewSectionReader(r.Original, 0, r.Size))
		if err != nil {
			return part{}, err
		}
		p := part{mediaType: "message/rfc822", title: "Your message", encoding: "7bit", eightBit: eight}
		if eight {
			p.encoding = "8bit"
		}
		if utf8Header {
			p.mediaType = "message/global"
		}
		p.write = func(w io.Writer) error {
			_, err := io.Copy(w, io.NewSectionReader(r.Original, 0, r.Size))
			return err
		}
		return p, nil
	}
	header := bytes.TrimRight(r.Header, "\r\n")
	p := part{mediaType: "text/rfc822-headers", title: "Header of your message", encoding: "7bit"}
	plain := func(w io.Writer) error { return writeLines(w, append(header[:len(header):len(header)], '\n')) }
	switch {
	case len(header) == 0:
	case utf8Header:
		p.mediaType, p.encoding, p.eightBit, p.write = "message/global-headers", "8bit", true, plain
	case !asciiBytes(header) || longLine(header): // RFC 6522 4
		p.encoding, p.write = "quoted-printable", func(w io.Writer) error {
			q := quotedprintable.NewWriter(w)
			if err := plain(q); err != nil {
				return err
			}
			return q.Close()
		}
	default:
		p.write = plain
	}
	return p, nil
}

// maxLine is the longest line of a mail, RFC 5322 2.1.1.
const maxLine = 998

func longLine(b []byte) bool {
	for line := range bytes.Lines(b) {
		if len(bytes.TrimRight(line, "\r\n")) > maxLine {
			return true
		}
	}
	return false
}

// writeLines writes text with CRLF line ends, whatever they were.
func writeLines(w io.Writer, b []byte) error {
	for line := range bytes.Lines(b) {
		if _, err := w.Write(bytes.TrimRight(line, "\r\n")); err != nil {
			return err
		}
		if _, err := io.WriteString(w, "\r\n"); err != nil {
			return err
		}
	}
	return nil
}

func hasEightBit(r io.Reader) (bool, error) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if !asciiBytes(buf[:n]) {
			return true, nil
		}
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func asciiBytes(b []byte) bool {
	for _, c := range b {
		if c >= 0x80 {
			return false
		}
	}
	return true
}

func toASCII(b []byte) []byte {
	return bytes.Map(func(c rune) rune {
		if c >= 0x80 {
			return '?'
		}
		return c
	}, b)
}

// encodeWords gives the value of a header field (RFC 2047), folded where it is long.
func encodeWords(s string) string {
	return strings.ReplaceAll(stdmime.QEncoding.Encode("utf-8", s), "?= =?", "?=\r\n =?")
}

// originalSubject is the Subject of the original, "" when there is none or it cannot be read.
func (r *Report) originalSubject() string {
	var value string
	found := false
	for line := range strings.Lines(string(r.Header)) {
		if found && line[0] != ' ' && line[0] != '\t' {
			break
		}
		if found {
			value += strings.TrimRight(line, "\r\n")
			continue
		}
		if name, rest, ok := strings.Cut(line, ":"); ok && strings.EqualFold(strings.TrimSpace(name), "subject") {
			value, found = strings.TrimRight(rest, "\r\n"), true
		}
	}
	dec := stdmime.WordDecoder{CharsetReader: func(charset string, in io.Reader) (io.Reader, error) {
		enc, err := htmlindex.Get(charset)
		if err != nil {
			return nil, err
		}
		return enc.NewDecoder().Reader(in), nil
	}}
	s, err := dec.DecodeHeader(value)
	if err != nil {
		return ""
	}
	return event.Clean(s, maxSubject)
}

// maxSubject is the length in bytes to which the original's subject is cut.
const maxSubject = 200
