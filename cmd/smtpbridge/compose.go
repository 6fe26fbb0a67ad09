package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	stdmime "mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/textproto"
	"path/filepath"
	"strings"
	"time"

	"smtpbridge/mime"
)

// draft is a mail made by this program: by `send` and by the demo.
type draft struct {
	From, To []mime.Address
	Subject  string
	Header   [][2]string // further fields
	Text     string
	HTML     string
	Files    []draftFile
}

type draftFile struct {
	Name string
	Type string // "" = by the name
	ID   string // Content-ID: an inline part of the HTML
	Data []byte
}

// bytes gives the mail with CRLF line ends (RFC 5322).
func (d *draft) bytes(now time.Time) ([]byte, error) {
	var b bytes.Buffer
	field := func(name, value string) { fmt.Fprintf(&b, "%s: %s\r\n", name, value) }
	field("From", mime.FormatAddressHeader(d.From))
	field("To", mime.FormatAddressHeader(d.To))
	field("Subject", mime.EncodeHeaderValue(d.Subject))
	field("Date", now.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	for _, h := range d.Header {
		field(h[0], h[1])
	}
	field("MIME-Version", "1.0")
	var inline, attached []draftFile
	for _, f := range d.Files {
		if f.ID != "" {
			inline = append(inline, f)
		} else {
			attached = append(attached, f)
		}
	}
	p, err := d.body(inline)
	if err != nil {
		return nil, err
	}
	if len(attached) > 0 {
		parts := []part{p}
		for _, f := range attached {
			parts = append(parts, f.part())
		}
		if p, err = multi("mixed", parts); err != nil {
			return nil, err
		}
	}
	for _, k := range []string{"Content-Type", "Content-Transfer-Encoding"} {
		if v := p.header.Get(k); v != "" {
			field(k, v)
		}
	}
	b.WriteString("\r\n")
	b.Write(p.body)
	return b.Bytes(), nil
}

// body is the text, the HTML, or both, with the inline parts around the HTML.
func (d *draft) body(inline []draftFile) (part, error) {
	text, err := textPart("text/plain", d.Text)
	if err != nil || d.HTML == "" {
		return text, err
	}
	html, err := textPart("text/html", d.HTML)
	if err != nil {
		return html, err
	}
	if len(inline) > 0 {
		parts := []part{html}
		for _, f := range inline {
			parts = append(parts, f.part())
		}
		if html, err = multi("related", parts); err != nil {
			return html, err
		}
	}
	if d.Text == "" {
		return html, nil
	}
	return multi("alternative", []part{text, html})
}

type part struct {
	header textproto.MIMEHeader
	body   []byte
}

func textPart(mediaType, text string) (part, error) {
	var b bytes.Buffer
	w := quotedprintable.NewWriter(&b)
	if _, err := w.Write([]byte(strings.ReplaceAll(text, "\n", "\r\n"))); err != nil {
		return part{}, err
	}
	err := w.Close()
	return part{textproto.MIMEHeader{"Content-Type": {mediaType + "; charset=utf-8"}, "Content-Transfer-Encoding": {"quoted-printable"}}, b.Bytes()}, err
}

func (f draftFile) part() part {
	t := f.Type
	if t == "" {
		t = stdmime.TypeByExtension(filepath.Ext(f.Name))
	}
	if t == "" {
		t = "application/octet-stream"
	}
	base, params, err := stdmime.ParseMediaType(t)
	if err != nil {
		base, params = "application/octet-stream", map[string]string{}
	}
	params["name"] = f.Name
	disposition := "attachment"
	h := textproto.MIMEHeader{"Content-Transfer-Encoding": {"base64"}, "Content-Type": {stdmime.FormatMediaType(base, params)}}
	if f.ID != "" {
		disposition = "inline"
		h.Set("Content-Id", "<"+f.ID+">")
	}
	h.Set("Content-Disposition", stdmime.FormatMediaType(disposition, map[string]string{"filename": f.Name}))
	enc := base64.StdEncoding.EncodeToString(f.Data)
	var b bytes.Buffer
	for len(enc) > 76 {
		b.WriteString(enc[:76] + "\r\n")
		enc = enc[76:]
	}
	b.WriteString(enc + "\r\n")
	return part{h, b.Bytes()}
}

func multi(subtype string, parts []part) (part, error) {
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		pw, err := w.CreatePart(p.header)
		if err == nil {
			_, err = pw.Write(p.body)
		}
		if err != nil {
			return part{}, err
		}
	}
	err := w.Close()
	return part{textproto.MIMEHeader{"Content-Type": {fmt.Sprintf("multipart/%s; boundary=%q", subtype, w.Boundary())}}, b.Bytes()}, err
}
