package mailpace

import (
	"encoding/json"
	"strings"

	"smtpbridge/providers/internal/httpapi"
)

// message is the body of POST /api/v1/send: https://docs.mailpace.com/reference/send.
type message struct {
	From            string        `json:"from"`
	To              string        `json:"to"`
	Cc              string        `json:"cc,omitempty"`
	Bcc             string        `json:"bcc,omitempty"`
	ReplyTo         string        `json:"replyto,omitempty"`
	Subject         string        `json:"subject,omitempty"`
	HTMLBody        httpapi.Value `json:"htmlbody,omitzero"`
	TextBody        httpapi.Value `json:"textbody,omitzero"`
	InReplyTo       string        `json:"inreplyto,omitempty"`
	References      string        `json:"references,omitempty"`
	ListUnsubscribe string        `json:"list_unsubscribe,omitempty"`
	Tags            []string      `json:"tags,omitempty"`
	Attachments     []attachment  `json:"attachments,omitempty"`
}

type attachment struct {
	Name        string        `json:"name"`
	Content     httpapi.Value `json:"content"`
	ContentType string        `json:"content_type"`
	Cid         string        `json:"cid,omitempty"`
}

// accepted is the answer to a call that was taken.
type accepted struct {
	ID id `json:"id"`
}

// id is documented as an integer. QUIRK: MailPace's own SMTP proxy (mailpace/vibe-smtp) types it as a string.
type id string

func (i *id) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil { // null leaves it empty
		*i = id(strings.TrimSpace(s))
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(b, &n); err != nil {
		return err
	}
	*i = id(n.String())
	return nil
}

// refusal is an error body: https://docs.mailpace.com/reference/responses. Each part may be missing.
type refusal struct {
	Error  json.RawMessage `json:"error"`
	Errors json.RawMessage `json:"errors"`
}

// webhook is the envelope of an event: https://docs.mailpace.com/guide/webhooks. The payload's bodies,
// subject and reply-to are left unread.
type webhook struct {
	Event   string `json:"event"`
	Payload struct {
		ID        id     `json:"id"`
		CreatedAt text   `json:"created_at"`
		UpdatedAt text   `json:"updated_at"`
		To        text   `json:"to"`
		Cc        text   `json:"cc"`
		Bcc       text   `json:"bcc"`
		MessageID text   `json:"message_id"`
		Tags      labels `json:"tags"`
	} `json:"payload"`
}

// text is a string, or empty for anything else: one odd field does not cost the event.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = text(s)
	}
	return nil
}

// labels is a list of strings or one string.
type labels []string

func (l *labels) UnmarshalJSON(b []byte) error {
	var list []text
	if json.Unmarshal(b, &list) == nil {
		for _, s := range list {
			if s != "" {
				*l = append(*l, string(s))
			}
		}
		return nil
	}
	var one string
	if json.Unmarshal(b, &one) == nil && one != "" {
		*l = labels{one}
	}
	return nil
}

// inboundPost is a received mail: https://docs.mailpace.com/guide/inbound.
type inboundPost struct {
	Headers   labels `json:"headers"`
	MessageID text   `json:"messageId"`
	Raw       text   `json:"raw"`
	To        text   `json:"to"`
	Cc        text   `json:"cc"`
	Bcc       text   `json:"bcc"`
}
