package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/store"
)

const (
	maxText     = 1 << 20   // of a text shown
	maxPicture  = 512 << 10 // of one inline picture
	maxPictures = 4 << 20   // of all of a mail
)

// Content implements API.
func (s *Service) Content(ctx context.Context, id string) (*Content, error) {
	if s.Preview == nil || !s.Preview() {
		return nil, ErrPreview
	}
	body, err := s.Store.Body(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("body of mail %q: %w", event.Clean(id, 80), ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	defer body.Close()
	m, err := mime.Parse(body, body.Size(), mime.Limits{})
	if err != nil {
		return nil, err
	}
	return contentOf(m)
}

// contentOf reads what is shown of a mail; nothing longer than its limits is ever held.
func contentOf(m *mime.Message) (*Content, error) {
	c := &Content{}
	for _, p := range []struct {
		part *mime.Part
		into *string
	}{{m.Text, &c.Text}, {m.HTML, &c.HTML}} {
		if p.part == nil {
			continue
		}
		text, cut, err := readSome(p.part.Open(), maxText)
		if err != nil {
			return nil, err
		}
		*p.into, c.Cut = string(text), c.Cut || cut
	}
	for i := range m.Attachments {
		a := &m.Attachments[i]
		f := File{Name: a.Filename, Type: a.Type, Size: a.Size, ID: a.ContentID, Inline: a.Inline}
		var data []byte
		if c.pictured(f) {
			var err error
			if data, _, err = readSome(a.Open(), maxPicture); err != nil {
				return nil, err
			}
		}
		c.Add(f, data)
	}
	return c, nil
}

// pictured: the HTML may show the file, and there is room for it.
func (c *Content) pictured(f File) bool {
	return f.ID != "" && pictureTypes[f.Type] && f.Size <= maxPicture && c.pictures+f.Size <= maxPictures
}

// Add adds a file. data is kept if it is a picture that the HTML may show.
func (c *Content) Add(f File, data []byte) {
	if c.pictured(f) {
		f.data = data
		c.pictures += f.Size
	}
	c.Files = append(c.Files, f)
}

// pictureTypes are shown inline. SVG is not: it is a document.
var pictureTypes = map[string]bool{"image/png": true, "image/jpeg": true, "image/gif": true, "image/webp": true}

// readSome reads at most n bytes, in whole characters if it is text.
func readSome(r io.ReadCloser, n int) (b []byte, cut bool, err error) {
	defer r.Close()
	if b, err = io.ReadAll(io.LimitReader(r, int64(n)+1)); err != nil {
		return nil, false, err
	}
	if len(b) > n {
		for n > 0 && !utf8.RuneStart(b[n]) {
			n--
		}
		return b[:n], true, nil
	}
	return b, false, nil
}

// MIMEContent is the content of the bytes of a mail, and its header.
func MIMEContent(raw []byte) (*mime.Message, *Content, error) {
	m, err := mime.Parse(bytes.NewReader(raw), int64(len(raw)), mime.Limits{})
	if err != nil {
		return nil, nil, err
	}
	c, err := contentOf(m)
	return m, c, err
}

// Inbox implements API.
func (s *Service) Inbox(context.Context) ([]InboxMail, error) {
	out := []InboxMail{}
	if s.Accts == nil {
		return out, nil
	}
	for _, c := range s.Accts.Configured() {
		if c.Inbox != nil {
			out = append(out, c.Inbox()...)
		}
	}
	sortInbox(out)
	if len(out) > maxInbox {
		out = out[:maxInbox]
	}
	for i := range out {
		if m := &out[i]; m.From == "" && m.Open != nil { // only the raw mail has it
			full := *m
			if err := m.Open(&full); err == nil {
				m.From, m.To, m.Cc, m.Subject = full.From, full.To, full.Cc, full.Subject
			}
		}
	}
	return out, nil
}

// InboxMail implements API.
func (s *Service) InboxMail(ctx context.Context, account, id string) (*InboxMail, error) {
	list, err := s.Inbox(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		if m.Account != account || m.ID != id {
			continue
		}
		if err := m.Open(&m); err != nil {
			return nil, err
		}
		if s.Preview == nil || !s.Preview() {
			m.Content = nil
		}
		return &m, nil
	}
	return nil, fmt.Errorf("sandbox mail %q: %w", event.Clean(id, 80), ErrNotFound)
}

// maxInbox is how many mails of the sandbox are listed.
const maxInbox = 200

// Discreet is an API that gives out the bytes of mails only where contents may be shown.
func Discreet(api API, preview func() bool) API { return discreet{api, preview} }

type discreet struct {
	API
	preview func() bool
}

func (d discreet) Body(ctx context.Context, id string) (io.ReadCloser, error) {
	if !d.preview() {
		return nil, ErrPreview
	}
	return d.API.Body(ctx, id)
}
