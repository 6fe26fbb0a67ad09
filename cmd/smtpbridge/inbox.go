package main

import (
	"encoding/base64"

	"smtpbridge/admin"
	"smtpbridge/mime"
	"smtpbridge/providers/sandbox"
	"smtpbridge/providers/sandbox/twin"
)

// inboxOf gives the inbox of a sandbox that runs in this process, else nil.
func inboxOf(account string, provider any) func() []admin.InboxMail {
	p, ok := provider.(*sandbox.Provider)
	if !ok || p.ESP() == nil {
		return nil
	}
	return func() []admin.InboxMail {
		mails := p.ESP().Inbox()
		out := make([]admin.InboxMail, len(mails))
		for i := range mails {
			out[i] = inboxMail(account, &mails[i])
		}
		return out
	}
}

// inboxMail is what the sandbox has taken, in the words of the dashboard. Its content is read when it is shown.
func inboxMail(account string, m *twin.Mail) admin.InboxMail {
	msg := m.Message
	out := admin.InboxMail{Account: account, ID: m.ID, Ref: m.Ref, Time: m.Time, Size: m.Size, Rcpts: msg.Recipients, Subject: m.Subject}
	if msg.MIME != "" {
		out.Open = func(o *admin.InboxMail) error { return openMIME(msg.MIME, o) }
		return out
	}
	out.From, out.To, out.Cc = formatAddress(msg.From), formatAddresses(msg.To), formatAddresses(msg.Cc)
	out.Open = func(o *admin.InboxMail) error {
		for _, h := range msg.Headers {
			o.Headers = append(o.Headers, admin.Field(h))
		}
		o.Content = openJSON(msg)
		return nil
	}
	return out
}

func openMIME(encoded string, o *admin.InboxMail) error {
	raw, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return err
	}
	m, c, err := admin.MIMEContent(raw)
	if err != nil {
		return err
	}
	o.Content, o.Subject = c, m.Subject
	for _, f := range m.Header {
		o.Headers = append(o.Headers, admin.Field{Name: f.Name, Value: f.Value})
	}
	list := func(addrs []mime.Address) (out []string) {
		for _, a := range addrs {
			out = append(out, mime.FormatAddress(a))
		}
		return out
	}
	o.To, o.Cc = list(m.To), list(m.Cc)
	if from := list(m.From); len(from) > 0 {
		o.From = from[0]
	}
	return nil
}

func openJSON(m *twin.Message) *admin.Content {
	c := &admin.Content{}
	for from, into := range map[*string]*string{m.Text: &c.Text, m.HTML: &c.HTML} {
		if from != nil {
			*into = *from
		}
	}
	for _, a := range m.Attachments {
		data, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			continue // the sandbox has taken it as it is: there is nothing to show
		}
		c.Add(admin.File{Name: a.Name, Type: a.Type, Size: int64(len(data)), ID: a.ContentID, Inline: a.Inline}, data)
	}
	return c
}

func formatAddress(a twin.Address) string {
	return mime.FormatAddress(mime.Address{Name: a.Name, Addr: a.Email})
}

func formatAddresses(list []twin.Address) (out []string) {
	for _, a := range list {
		out = append(out, formatAddress(a))
	}
	return out
}
