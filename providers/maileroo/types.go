package maileroo

import (
	"encoding/json"
	"strings"

	"smtpbridge/providers/internal/httpapi"
)

// message is the body of POST /emails, /emails/template and /emails/bulk: https://maileroo.com/docs/email-api/introduction.
type message struct {
	single
	Subject     string            `json:"subject"`
	HTML        httpapi.Value     `json:"html,omitzero"`
	Plain       httpapi.Value     `json:"plain,omitzero"`
	Tracking    *bool             `json:"tracking,omitempty"`
	Tags        map[string]string `json:"tags,omitempty"`
	Headers     map[string]string `json:"headers,omitempty"`
	Attachments []attachment      `json:"attachments,omitempty"`
	ScheduledAt string            `json:"scheduled_at,omitempty"`
	TemplateID  json.Number       `json:"template_id,omitempty"`
	Messages    []*single         `json:"messages,omitempty"` // of a bulk call, in place of the fields of single
}

// single is what each message of a bulk call has of its own, and one mail of another call too.
type single struct {
	From         *address       `json:"from,omitempty"`
	To           []address      `json:"to,omitempty"`
	Cc           []address      `json:"cc,omitempty"`
	Bcc          []address      `json:"bcc,omitempty"`
	ReplyTo      []address      `json:"reply_to,omitempty"`
	ReferenceID  string         `json:"reference_id,omitempty"`
	TemplateData map[string]any `json:"template_data,omitempty"` // for the placeholders of a template, or of a bulk call's text
}

type address struct {
	Address     string `json:"address"`
	DisplayName string `json:"display_name,omitempty"` // never empty: Maileroo's own libraries refuse that
}

type attachment struct {
	FileName    string        `json:"file_name"`
	ContentType string        `json:"content_type"`
	Content     httpapi.Value `json:"content"`
	Inline      bool          `json:"inline"`
}

// answer is what every call of the Email API gets.
type answer struct {
	Success yesNo           `json:"success"`
	Message text            `json:"message"`
	Data    json.RawMessage `json:"data"`
}

// yesNo is a JSON boolean, or said by nothing else.
type yesNo struct{ said, yes bool }

func (f *yesNo) UnmarshalJSON(b []byte) error {
	var v bool
	if string(b) != "null" && json.Unmarshal(b, &v) == nil {
		*f = yesNo{said: true, yes: v}
	}
	return nil
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

// labels is one string or a list of them: "to" of an event is the one or the other, by the event's type.
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

// number is a JSON number or one in a string.
type number string

func (n *number) UnmarshalJSON(b []byte) error {
	*n = number(strings.Trim(string(b), `"`))
	return nil
}

// tagMap is the tags of an event: an object of scalars. Anything else is none.
type tagMap map[string]string

func (m *tagMap) UnmarshalJSON(b []byte) error {
	var raw map[string]json.RawMessage
	if json.Unmarshal(b, &raw) != nil {
		return nil
	}
	for k, v := range raw {
		s := string(v)
		if s == "null" || json.Unmarshal(v, &s) != nil && (s[0] == '{' || s[0] == '[') {
			continue
		}
		if *m == nil {
			*m = tagMap{}
		}
		(*m)[k] = s
	}
	return nil
}

// webhook is one event: https://maileroo.com/help/use-webhooks
type webhook struct {
	EventID    text   `json:"event_id"`
	EventType  text   `json:"event_type"`
	EventTime  number `json:"event_time"`
	InsertedAt text   `json:"inserted_at"`
	MessageID  text   `json:"message_id"`
	Reference  text   `json:"message_reference_id"`
	Tags       tagMap `json:"tags"`
	Data       facts  `json:"event_data"`
}

// facts is event_data.
type facts struct {
	To           labels `json:"to"`
	Reason       text   `json:"reason"`
	RejectReason text   `json:"reject_reason"`
	IP           text   `json:"ip"`
	UserAgent    text   `json:"user_agent"`
	URL          text   `json:"original_url"`
}

// UnmarshalJSON leaves facts of an odd form empty.
func (f *facts) UnmarshalJSON(b []byte) error {
	type plain facts
	var p plain
	if json.Unmarshal(b, &p) == nil {
		*f = facts(p)
	}
	return nil
}

// inboundPost is a received mail: https://maileroo.com/docs/inbound-routing/webhooks. The bodies and the attachments'
// list are left unread: the raw message has all of them.
type inboundPost struct {
	ID             text   `json:"_id"`
	MessageID      text   `json:"message_id"`
	EnvelopeSender text   `json:"envelope_sender"`
	Recipients     labels `json:"recipients"`
	Body           struct {
		Raw struct {
			URL text `json:"url"`
		} `json:"raw_mime"`
	} `json:"body"`
	ProcessedAt   number `json:"processed_at"`
	DeletionURL   text   `json:"deletion_url"`
	ValidationURL text   `json:"validation_url"`
}
