package twin

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/mail"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// strict decodes a body and refuses fields that the specification does not have, so that a test finds them; what Mandrill
// does with them is not documented.
func strict(body []byte, v any) *refusal {
	if !utf8.Valid(body) {
		return invalid("Validation error: not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return invalid("Validation error: " + err.Error())
	}
	if d.More() {
		return invalid("Validation error: more than one value")
	}
	return nil
}

type file struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Content string `json:"content"`
}

type variable struct {
	Name    string `json:"name"`
	Content any    `json:"content"`
}

type sendCall struct {
	TemplateName    *string    `json:"template_name"`
	TemplateContent []variable `json:"template_content"`

	Key     string `json:"key"`
	Async   bool   `json:"async"`
	IPPool  string `json:"ip_pool"`
	SendAt  string `json:"send_at"`
	Message *struct {
		FromEmail string `json:"from_email"`
		FromName  string `json:"from_name"`
		To        []struct {
			Email string `json:"email"`
			Name  string `json:"name"`
			Type  string `json:"type"`
		} `json:"to"`
		Subject            string          `json:"subject"`
		Text               string          `json:"text"`
		HTML               string          `json:"html"`
		Headers            json.RawMessage `json:"headers"`
		Attachments        []file          `json:"attachments"`
		Images             []file          `json:"images"`
		Important          bool            `json:"important"`
		TrackOpens         *bool           `json:"track_opens"`
		TrackClicks        *bool           `json:"track_clicks"`
		AutoText           *bool           `json:"auto_text"`
		AutoHTML           *bool           `json:"auto_html"`
		InlineCSS          *bool           `json:"inline_css"`
		URLStripQS         *bool           `json:"url_strip_qs"`
		PreserveRecipients *bool           `json:"preserve_recipients"`
		ViewContentLink    *bool           `json:"view_content_link"`
		BccAddress         string          `json:"bcc_address"`
		TrackingDomain     string          `json:"tracking_domain"`
		SigningDomain      string          `json:"signing_domain"`
		ReturnPathDomain   string          `json:"return_path_domain"`
		Merge              *bool           `json:"merge"`
		MergeLanguage      string          `json:"merge_language"`
		GlobalMergeVars    []variable      `json:"global_merge_vars"`
		MergeVars          []struct {
			Rcpt string     `json:"rcpt"`
			Vars []variable `json:"vars"`
		} `json:"merge_vars"`
		Tags              []string       `json:"tags"`
		Subaccount        string         `json:"subaccount"`
		GoogleDomains     []string       `json:"google_analytics_domains"`
		GoogleCampaign    string         `json:"google_analytics_campaign"`
		Metadata          map[string]any `json:"metadata"`
		RecipientMetadata []struct {
			Rcpt   string         `json:"rcpt"`
			Values map[string]any `json:"values"`
		} `json:"recipient_metadata"`
	} `json:"message"`
}

// send is /messages/send and /messages/send-template, which has two fields more and needs both.
func (t *Twin) send(body []byte, template bool) (any, *refusal) {
	var q sendCall
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	g := q.Message
	switch {
	case !template && (q.TemplateName != nil || q.TemplateContent != nil):
		return nil, invalidField("Not a field of this call", "template_name") // what Mandrill does is not documented
	case template && (q.TemplateName == nil || q.TemplateContent == nil):
		return nil, invalidField("Please enter a value", "template_name")
	case template && !slices.Contains(t.o.Templates, *q.TemplateName):
		return nil, errTemplate
	case g == nil:
		return nil, invalidField("Please enter a value", "message")
	case len(g.To) == 0:
		return nil, invalidField("Please enter an array", "message", "to")
	case utf8.RuneCountInString(g.Subject) > 998:
		return nil, invalidField("The subject is longer than 998 characters", "message", "subject")
	}
	is := func(asked *bool, standard bool) bool {
		if asked != nil {
			return *asked
		}
		return standard
	}
	m := Mail{
		Call: "messages/send", From: g.FromEmail, FromName: g.FromName, Subject: g.Subject, Text: g.Text, HTML: g.HTML, Tags: g.Tags,
		Preserve: is(g.PreserveRecipients, !t.o.OneByOne), Opens: is(g.TrackOpens, t.o.TrackOpens), Clicks: is(g.TrackClicks, t.o.TrackClicks),
		Rewritten: is(g.AutoText, t.o.Rewrites) || is(g.AutoHTML, t.o.Rewrites) || is(g.InlineCSS, t.o.Rewrites) || is(g.URLStripQS, t.o.Rewrites),
		Merged:    is(g.Merge, t.o.Rewrites) || len(g.GlobalMergeVars)+len(g.MergeVars) > 0,
		Metadata:  scalars(g.Metadata), Subaccount: g.Subaccount, ReturnPath: g.ReturnPathDomain, IPPool: q.IPPool, Async: q.Async, Headers: map[string][]string{},
	}
	if template {
		m.Call, m.Template, m.Blocks = "messages/send-template", *q.TemplateName, map[string]string{}
		for _, b := range q.TemplateContent {
			m.Blocks[b.Name] = fmt.Sprint(b.Content)
		}
	}
	m.Language, m.Important, m.ViewLink, m.Domains, m.Campaign = g.MergeLanguage, g.Important, is(g.ViewContentLink, false), g.GoogleDomains, g.GoogleCampaign
	if g.MergeLanguage != "" && g.MergeLanguage != "mailchimp" && g.MergeLanguage != "handlebars" {
		return nil, invalidField("Please choose mailchimp or handlebars", "message", "merge_language")
	}
	var ref *refusal
	if m.Vars, ref = variables(g.GlobalMergeVars); ref != nil {
		return nil, ref
	}
	for _, r := range g.MergeVars {
		if m.RcptVars == nil {
			m.RcptVars = map[string]map[string]any{}
		}
		if m.RcptVars[r.Rcpt], ref = variables(r.Vars); ref != nil {
			return nil, ref
		}
	}
	// A list in place of the map is ignored in silence.
	var headers map[string]string
	if err := json.Unmarshal(g.Headers, &headers); err != nil && len(g.Headers) > 0 && g.Headers[0] == '{' {
		return nil, invalidField("Please enter a string", "message", "headers")
	}
	for k, v := range headers {
		m.Headers[k] = []string{v}
	}
	var shown []string
	for _, r := range g.To {
		kind := r.Type
		if kind == "" {
			kind = "to"
		}
		if kind != "to" && kind != "cc" && kind != "bcc" {
			return nil, invalidField("Please choose to, cc or bcc", "message", "to")
		}
		m.Rcpts = append(m.Rcpts, Rcpt{Email: r.Email, Type: kind})
		if kind != "bcc" {
			shown = append(shown, r.Email)
		}
	}
	for _, list := range []struct {
		name string
		in   []file
		out  *[]File
	}{{"attachments", g.Attachments, &m.Attachments}, {"images", g.Images, &m.Images}} {
		for _, f := range list.in {
			content, err := base64.StdEncoding.Strict().DecodeString(f.Content)
			if err != nil {
				return nil, invalidField("Please enter base64", "message", list.name)
			}
			if list.name == "images" && (!strings.HasPrefix(f.Type, "image/") || f.Name == "") {
				return nil, invalidField("The type of an image starts with image/", "message", list.name)
			}
			*list.out = append(*list.out, File{f.Type, f.Name, content})
		}
	}
	return t.take(m, shown, q.SendAt)
}

// variables: names have no leading underscore.
func variables(list []variable) (map[string]any, *refusal) {
	var out map[string]any
	for _, v := range list {
		if v.Name == "" || v.Name[0] == '_' {
			return nil, invalidField("Names of merge variables do not start with an underscore", "message", "global_merge_vars")
		}
		if out == nil {
			out = map[string]any{}
		}
		out[v.Name] = v.Content
	}
	return out, nil
}

type rawCall struct {
	Key              string   `json:"key"`
	RawMessage       *string  `json:"raw_message"`
	FromEmail        string   `json:"from_email"`
	FromName         string   `json:"from_name"`
	To               []string `json:"to"`
	Async            bool     `json:"async"`
	IPPool           string   `json:"ip_pool"`
	SendAt           string   `json:"send_at"`
	ReturnPathDomain string   `json:"return_path_domain"`
}

func (t *Twin) sendRaw(body []byte) (any, *refusal) {
	var q rawCall
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	if q.RawMessage == nil || *q.RawMessage == "" {
		return nil, invalidField("Please enter a value", "raw_message")
	}
	m := Mail{
		Call: "messages/send-raw", From: q.FromEmail, FromName: q.FromName, Async: q.Async, IPPool: q.IPPool, ReturnPath: q.ReturnPathDomain,
		Preserve: !t.o.OneByOne, Opens: t.o.TrackOpens, Clicks: t.o.TrackClicks,
	}
	msg, err := mail.ReadMessage(strings.NewReader(*q.RawMessage))
	if err != nil {
		return nil, invalidField("The document cannot be read", "raw_message")
	}
	if len(msg.Header["Bcc"]) > 0 {
		return nil, invalidField("The document names blind recipients", "raw_message") // not refused in earnest: here, so that a test finds it
	}
	doc, ref := t.readOptions(&m, msg.Header, []byte(*q.RawMessage))
	if ref != nil {
		return nil, ref
	}
	m.Raw, m.Headers = doc, map[string][]string(msg.Header)
	words := mime.WordDecoder{}
	if m.Subject, err = words.DecodeHeader(msg.Header.Get("Subject")); err != nil {
		m.Subject = msg.Header.Get("Subject")
	}
	if m.From == "" {
		from, err := addresses(msg.Header.Get("From"))
		if err != nil || len(from) == 0 {
			return nil, invalidField("An email address must contain a single @", "from_email")
		}
		m.From, m.FromName = from[0].Address, from[0].Name
	}
	var shown []string
	for _, name := range []string{"To", "Cc"} {
		list, err := addresses(msg.Header.Get(name))
		if err != nil {
			continue // undisclosed-recipients:; and the like
		}
		for _, a := range list {
			shown = append(shown, a.Address)
		}
	}
	to := q.To
	if to == nil {
		// Without "to" the headers name the recipients; a Bcc header alone was reported as not delivered.
		to = shown
	}
	if len(to) == 0 {
		return nil, invalidField("Please enter an array", "to")
	}
	for _, a := range to {
		kind := "bcc"
		if slices.ContainsFunc(shown, func(s string) bool { return strings.EqualFold(s, a) }) {
			kind = "to"
		}
		m.Rcpts = append(m.Rcpts, Rcpt{Email: a, Type: kind})
	}
	return t.take(m, shown, q.SendAt)
}

// addresses passes over names in charsets that Go does not know.
func addresses(list string) ([]*mail.Address, error) {
	names := &mime.WordDecoder{CharsetReader: func(_ string, r io.Reader) (io.Reader, error) { return r, nil }}
	return (&mail.AddressParser{WordDecoder: names}).ParseList(list)
}

// readOptions takes the X-MC-* fields out of a document. Names the article does not have are refused, so that a test
// finds them.
func (t *Twin) readOptions(m *Mail, h mail.Header, doc []byte) ([]byte, *refusal) {
	rewrites := map[string]bool{"autotext": t.o.Rewrites, "autohtml": t.o.Rewrites, "inlinecss": t.o.Rewrites, "urlstripqs": t.o.Rewrites}
	for name, values := range h {
		option, ok := strings.CutPrefix(strings.ToLower(name), "x-mc-")
		if !ok {
			continue
		}
		value := values[0]
		on, isBool := map[string]bool{"true": true, "on": true, "yes": true, "y": true, "false": false, "off": false, "no": false, "n": false}[strings.ToLower(value)]
		delete(h, name)
		switch option {
		case "autotext", "autohtml", "inlinecss", "urlstripqs", "viewcontentlink", "important", "preserverecipients":
			if !isBool {
				return nil, invalid("Validation error: " + name + " is not yes or no") // wording not documented, here and below
			}
			if option == "preserverecipients" {
				m.Preserve = on
			} else if option == "important" {
				m.Important = on
			} else if option == "viewcontentlink" {
				m.ViewLink = on
			} else if _, ok := rewrites[option]; ok {
				rewrites[option] = on
			}
		case "track":
			m.Opens, m.Clicks, m.Links = false, false, value
			for _, v := range strings.Split(value, ",") {
				switch strings.TrimSpace(v) {
				case "opens":
					m.Opens = true
				case "clicks", "clicks_all", "clicks_htmlonly", "clicks_textonly":
					m.Clicks = true
				case "none":
				default:
					return nil, invalid("Validation error: X-MC-Track")
				}
			}
		case "tags":
			decoded, err := (&mime.WordDecoder{}).DecodeHeader(value)
			if err != nil {
				return nil, invalid("Validation error: X-MC-Tags")
			}
			for _, tag := range strings.Split(decoded, ",") {
				m.Tags = append(m.Tags, strings.TrimSpace(tag))
			}
		case "metadata":
			var v map[string]any
			if err := json.Unmarshal([]byte(value), &v); err != nil {
				return nil, invalid("Validation error: X-MC-Metadata is not JSON")
			}
			m.Metadata = scalars(v)
		case "subaccount":
			m.Subaccount = value
		case "ippool":
			m.IPPool = value
		case "returnpathdomain":
			m.ReturnPath = value
		case "googleanalytics":
			for _, d := range strings.Split(value, ",") {
				m.Domains = append(m.Domains, strings.TrimSpace(d))
			}
		case "googleanalyticscampaign":
			m.Campaign = value
		case "trackingdomain", "signingdomain", "template", "mergevars", "mergelanguage", "bccaddress", "sendat":
		default:
			return nil, invalid("Validation error: " + name + " is not known")
		}
	}
	for _, on := range rewrites {
		m.Rewritten = m.Rewritten || on
	}
	return withoutOptions(doc), nil
}

// withoutOptions is the document as its reader gets it.
func withoutOptions(doc []byte) []byte {
	var out []byte
	skip := false
	for len(doc) > 0 {
		n := bytes.IndexByte(doc, '\n') + 1
		if n == 0 {
			n = len(doc)
		}
		line := doc[:n]
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			return append(out, doc...)
		}
		if line[0] != ' ' && line[0] != '\t' {
			skip = len(line) > 5 && strings.EqualFold(string(line[:5]), "x-mc-")
		}
		if !skip {
			out = append(out, line...)
		}
		doc = doc[n:]
	}
	return out
}

func scalars(in map[string]any) map[string]string {
	out := map[string]string{}
	for k, v := range in {
		out[k] = fmt.Sprint(v)
	}
	return out
}

const year = 366 * 24 * time.Hour

// take checks what both forms have in common, and takes the call.
func (t *Twin) take(m Mail, shown []string, sendAt string) (any, *refusal) {
	now := t.o.Now().UTC()
	if !strings.Contains(m.From, "@") {
		return nil, invalidField("An email address must contain a single @", "message", "from_email")
	}
	for _, tag := range m.Tags {
		if strings.HasPrefix(tag, "_") || utf8.RuneCountInString(tag) > 50 || tag == "" {
			return nil, invalidField("Tags have at most 50 characters and no leading underscore", "message", "tags")
		}
	}
	if m.Subaccount != "" && !slices.Contains(t.o.Subaccounts, m.Subaccount) {
		return nil, errSubaccount
	}
	size := len(m.Raw) + len(m.Text) + len(m.HTML)
	for _, f := range slices.Concat(m.Attachments, m.Images) {
		size += base64.StdEncoding.EncodedLen(len(f.Content))
	}
	if size > maxMessage {
		return nil, invalid("The message is too large") // not documented
	}
	scheduled := false
	if sendAt != "" {
		at, err := time.Parse(time.DateTime, sendAt)
		if err != nil {
			return nil, invalidField("Please enter a time of the form YYYY-MM-DD HH:MM:SS", "send_at")
		}
		if at.Sub(now) > year {
			return nil, invalidField("At most one year ahead", "send_at")
		}
		if scheduled = at.After(now); scheduled && t.o.Unpaid {
			return nil, errPayment
		}
		m.SendAt = at
	}
	m.At = now
	m.Async = m.Async || len(m.Rcpts) > maxSync
	_, domain, _ := strings.Cut(m.From, "@")
	var out []map[string]any
	for i := range m.Rcpts {
		r := &m.Rcpts[i]
		r.ID, r.Status = token(), "sent"
		r.Visible = []string{r.Email}
		if m.Preserve {
			r.Visible = shown
		}
		addr := strings.ToLower(r.Email)
		reason := t.o.Rejects[addr]
		switch {
		case !validAddr(r.Email):
			r.Status, r.Reason = "invalid", "invalid"
		case t.o.Domains != nil && !slices.Contains(t.o.Domains, strings.ToLower(domain)):
			r.Status, r.Reason = "rejected", "unsigned"
		case reason != "":
			r.Status, r.Reason = "rejected", reason
		case addr == "reject@test.mandrillapp.com":
			r.Status, r.Reason = "rejected", "hard-bounce" // which reason the test address gives is not documented
		case scheduled:
			r.Status = "scheduled"
		}
		entry := map[string]any{"email": r.Email, "status": r.Status, "_id": r.ID, "reject_reason": nil, "queued_reason": nil}
		if m.Async && r.Status != "scheduled" {
			entry["status"] = "queued"
			if len(m.Rcpts) > maxSync {
				entry["queued_reason"] = "multiple-recipients"
			}
		} else if r.Reason != "" {
			entry["reject_reason"] = r.Reason
		} else if t.o.QueuedFor != "" {
			entry["status"], entry["queued_reason"] = "queued", t.o.QueuedFor
		}
		r.Answered, _ = entry["status"].(string)
		out = append(out, entry)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total++
	t.mails = append(t.mails, m)
	if n := len(t.mails) - t.o.Keep; n > 0 {
		t.mails = slices.Delete(t.mails, 0, n)
	}
	return out, nil
}

// validAddr is one @ with something around it.
func validAddr(a string) bool {
	local, domain, ok := strings.Cut(a, "@")
	return ok && local != "" && strings.Contains(domain, ".") && !strings.ContainsAny(domain, "@ ") && !strings.ContainsAny(a, "<>\r\n")
}

// info is /messages/info.
func (t *Twin) info(body []byte) (any, *refusal) {
	var q struct {
		Key string `json:"key"`
		ID  string `json:"id"`
	}
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range t.mails {
		for _, r := range m.Rcpts {
			if r.ID == q.ID {
				out := t.row(m, r)
				events := []any{}
				for _, h := range t.happened[r.ID] {
					events = append(events, map[string]any{"ts": h.At.Unix(), "type": h.Type, "diag": h.Diag})
					if h.Type == "bounced" {
						out["diag"], out["bounce_description"] = h.Diag, "bad_mailbox"
					}
				}
				out["smtp_events"] = events
				return out, nil
			}
		}
	}
	return nil, errMessage
}

// Happening is an entry of a message's smtp_events: sent, delivered, deferred, bounced.
type Happening struct {
	Type, Diag string
	At         time.Time
}

// Happen notes what became of a message, by its id, for messages/info and messages/search.
func (t *Twin) Happen(id string, h Happening) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.happened == nil {
		t.happened = map[string][]Happening{}
	}
	t.happened[id] = append(t.happened[id], h)
}

// row is a message as the searches show it.
func (t *Twin) row(m Mail, r Rcpt) map[string]any {
	state := r.Status
	if state == "invalid" {
		state = "rejected"
	}
	for _, h := range t.happened[r.ID] {
		if h.Type == "bounced" {
			state = "bounced"
		}
	}
	return map[string]any{
		"ts": m.At.Unix(), "_id": r.ID, "sender": m.From, "subject": m.Subject, "email": r.Email, "tags": m.Tags,
		"state": state, "metadata": m.Metadata, "opens": 0, "clicks": 0,
	}
}

// search is messages/search without its query language: by day, sender and number.
func (t *Twin) search(body []byte) (any, *refusal) {
	var q struct {
		Key     string   `json:"key"`
		Query   string   `json:"query"`
		From    string   `json:"date_from"`
		To      string   `json:"date_to"`
		Tags    []string `json:"tags"`
		Senders []string `json:"senders"`
		Limit   int      `json:"limit"`
	}
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	from, err := time.Parse(time.DateOnly, q.From)
	if q.From != "" && err != nil || q.Limit > 1000 {
		return nil, invalidField("Please enter a valid date and limit", "date_from")
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	out := []any{}
	for _, m := range slices.Backward(t.mails) {
		if m.At.Before(from) || len(q.Senders) > 0 && !slices.Contains(q.Senders, m.From) {
			continue
		}
		for _, r := range m.Rcpts {
			if len(out) < max(q.Limit, 1) {
				out = append(out, t.row(m, r))
			}
		}
	}
	return out, nil
}

// listRejects is the deny list: https://mailchimp.com/developer/transactional/api/rejects/list-rejects/
func (t *Twin) listRejects(body []byte) (any, *refusal) {
	var q struct {
		Key            string `json:"key"`
		Email          string `json:"email"`
		IncludeExpired bool   `json:"include_expired"`
		Subaccount     string `json:"subaccount"`
	}
	if err := strict(body, &q); err != nil {
		return nil, err
	}
	out := []any{}
	for _, addr := range slices.Sorted(maps.Keys(t.o.Rejects)) {
		if q.Email == "" || q.Email == addr {
			out = append(out, map[string]any{
				"email": addr, "reason": t.o.Rejects[addr], "detail": "", "created_at": "2026-01-02 03:04:05", "last_event_at": "2026-01-02 03:04:05",
				"expires_at": nil, "expired": false, "sender": nil, "subaccount": nil,
			})
		}
	}
	return out, nil
}

// Body is what a raw document's reader gets below the header.
func (m Mail) Body() (string, error) {
	msg, err := mail.ReadMessage(bytes.NewReader(m.Raw))
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(msg.Body)
	return string(b), err
}
