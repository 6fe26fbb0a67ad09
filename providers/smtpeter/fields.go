package smtpeter

import (
	"maps"
	netmail "net/mail"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// variable is what a name of merge data must look like: https://www.smtpeter.com/en/documentation/personalization
var variable = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)

// reserved variables are always defined by SMTPeter.
var reserved = []string{"envelope", "recipient"}

// structured makes a mail of fields, for what a MIME message cannot do: a stored template, and merge data.
func structured(m *translate.Mail, j *httpapi.JSON) (*content, []translate.Loss) {
	f := &content{From: shown(m.From), To: shownAll(m.To), Cc: shownAll(m.Cc), Subject: m.Subject}
	var lost []translate.Loss
	lose := func(s translate.Severity, field, had string) {
		lost = append(lost, translate.Loss{Field: field, Had: event.Clean(had, 100), Severity: s})
	}
	for _, k := range slices.Sorted(maps.Keys(m.Options.Merge.Global)) {
		if !variable.MatchString(k) || slices.Contains(reserved, k) {
			lose(translate.Minor, "merge variable", k)
			continue
		}
		if f.Data == nil {
			f.Data = map[string]any{}
		}
		f.Data[k] = m.Options.Merge.Global[k]
	}
	for _, a := range m.Attach {
		f.Attachments = append(f.Attachments, attachment{Data: j.Base64(a.Size, a.Open), Name: a.Name, Type: a.Type})
	}
	if id := m.Options.Template.ID; id != "" {
		// The template is the mail; only these fields go before its own.
		f.Template, f.TemplateTo = id, shownAll(m.ReplyTo)
		if n, err := strconv.ParseUint(id, 10, 63); err == nil {
			f.Template = n
		}
		if m.ListUnsubscribe != "" {
			lose(translate.Major, "header list-unsubscribe", m.ListUnsubscribe)
		}
		for _, h := range m.Headers {
			if !isUnsubscribe(h.Name) {
				lose(translate.Minor, "header "+strings.ToLower(h.Name), "")
			}
		}
		return f, lost
	}
	f.ReplyTo = shownAll(m.ReplyTo)
	if m.Msg.Text != nil {
		f.Text = j.Text(m.Msg.Text.Open)
	}
	if m.Msg.HTML != nil {
		f.HTML = j.Text(m.Msg.HTML.Open)
	}
	for _, h := range m.Headers {
		if isUnsubscribe(h.Name) {
			continue
		}
		if f.Extra == nil {
			f.Extra = map[string]string{}
		}
		f.Extra[h.Name] = h.Value
	}
	f.Unsubscribe = unsubscribeOf(m.ListUnsubscribe, m.ListUnsubPost)
	return f, lost
}

func isUnsubscribe(name string) bool {
	return strings.EqualFold(name, "List-Unsubscribe") || strings.EqualFold(name, "List-Unsubscribe-Post")
}

// unsubscribeOf takes the first address and the first web page of a List-Unsubscribe value.
func unsubscribeOf(value, post string) *unsubscribe {
	var u unsubscribe
	for rest := value; ; {
		_, after, ok := strings.Cut(rest, "<")
		uri, next, closed := strings.Cut(after, ">")
		if !ok || !closed {
			break
		}
		uri = strings.Join(strings.Fields(uri), "")
		switch low := strings.ToLower(uri); {
		case strings.HasPrefix(low, "mailto:") && u.Email == "":
			u.Email = uri[len("mailto:"):]
		case strings.HasPrefix(low, "http") && u.URL == "":
			u.URL = uri
		}
		rest = next
	}
	if u == (unsubscribe{}) {
		return nil
	}
	u.OneClick = u.URL != "" && post != ""
	return &u
}

// said is a yes or no of the mail, where it has one.
func said(value string, otherwise bool) bool {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "true", "yes", "on", "1":
		return true
	case "false", "no", "off", "0":
		return false
	}
	return otherwise
}

func shown(a mime.Address) string {
	if a.Name == "" {
		return a.Addr
	}
	return (&netmail.Address{Name: a.Name, Address: a.Addr}).String()
}

func shownAll(list []mime.Address) []string {
	var out []string
	for _, a := range list {
		out = append(out, shown(a))
	}
	return out
}
