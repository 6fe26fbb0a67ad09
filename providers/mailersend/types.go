package mailersend

import (
	"bytes"
	"encoding/json"
	"strings"

	"smtpbridge/providers/internal/httpapi"
)

// message is the body of POST /v1/email: https://developers.mailersend.com/api/v1/email. What is unset is left out, so
// that the domain's settings hold.
type message struct {
	From            mailbox       `json:"from"`
	To              []mailbox     `json:"to,omitempty"`
	Cc              []mailbox     `json:"cc,omitempty"`
	Bcc             []mailbox     `json:"bcc,omitempty"`
	RcptTo          []mailbox     `json:"rcpt_to,omitempty"`
	ReplyTo         *mailbox      `json:"reply_to,omitempty"`
	Subject         string        `json:"subject,omitempty"`
	Text            httpapi.Value `json:"text,omitzero"`
	HTML            httpapi.Value `json:"html,omitzero"`
	Attachments     []attachment  `json:"attachments,omitempty"`
	Tags            []string      `json:"tags,omitempty"`
	SendAt          int64         `json:"send_at,omitempty"`
	InReplyTo       string        `json:"in_reply_to,omitempty"`
	References      []string      `json:"references,omitempty"`
	PrecedenceBulk  *bool         `json:"precedence_bulk,omitempty"`
	ListUnsubscribe string        `json:"list_unsubscribe,omitempty"`
	Headers         []header      `json:"headers,omitempty"`
	Settings        *tracking     `json:"settings,omitempty"`
	TemplateID      string        `json:"template_id,omitempty"`
	Personalization []personal    `json:"personalization,omitempty"`
}

// personal is the data of one recipient's {{variables}}.
type personal struct {
	Email string         `json:"email"`
	Data  map[string]any `json:"data"`
}

type mailbox struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
}

type attachment struct {
	Content     httpapi.Value `json:"content"`
	Filename    string        `json:"filename"`
	Disposition string        `json:"disposition"`
	ID          string        `json:"id,omitempty"`
}

type header struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

type tracking struct {
	TrackClicks  *bool `json:"track_clicks,omitempty"`
	TrackOpens   *bool `json:"track_opens,omitempty"`
	TrackContent *bool `json:"track_content,omitempty"`
}

// accepted is the body that a 202 may have: https://developers.mailersend.com/api/v1/email. The text of a warning is in
// "warning" there and in "message" on https://www.mailersend.com/help/rest-api-response-codes.
type accepted struct {
	Message  text             `json:"message"`
	Warnings list[suppressed] `json:"warnings"`
}

type suppressed struct {
	Type       text `json:"type"`
	Warning    text `json:"warning"`
	Message    text `json:"message"`
	Recipients list[struct {
		Email   text   `json:"email"`
		Reasons labels `json:"reasons"`
	}] `json:"recipients"`
}

// refusal is an error body. Texts end with a code, "#MS42207".
type refusal struct {
	Message text            `json:"message"`
	Errors  json.RawMessage `json:"errors"`
}

// bulkTaken answers POST /v1/bulk-email.
type bulkTaken struct {
	ID scalar `json:"bulk_email_id"`
}

// bulkStatus is GET /v1/bulk-email/{id}. validation_errors is keyed "message.INDEX", suppressed_recipients by message id.
type bulkStatus struct {
	Data *struct {
		State            text            `json:"state"`
		ValidationErrors json.RawMessage `json:"validation_errors"`
		Suppressed       json.RawMessage `json:"suppressed_recipients"`
		MessagesID       idList          `json:"messages_id"`
	} `json:"data"`
}

// idList is a list of ids. QUIRK: the documentation shows it as a text that looks like a list, the vendor's Go SDK has a list.
type idList []string

func (l *idList) UnmarshalJSON(b []byte) error {
	var many labels
	var one string
	if json.Unmarshal(b, &one) == nil {
		b = []byte(one)
		if json.Unmarshal(b, &many) != nil || many == nil {
			many = strings.FieldsFunc(one, func(r rune) bool { return strings.ContainsRune("[]\"', \t\n", r) })
		}
	} else if json.Unmarshal(b, &many) != nil {
		return nil
	}
	*l = idList(many)
	return nil
}

// quota is GET /v1/api-quota.
type quota struct {
	Remaining *float64 `json:"remaining"`
	Reset     text     `json:"reset"`
}

// domainList is GET /v1/domains.
type domainList struct {
	Data list[struct {
		ID         text  `json:"id"`
		Name       text  `json:"name"`
		IsVerified *bool `json:"is_verified"`
		Settings   struct {
			SendPaused bool `json:"send_paused"`
		} `json:"domain_settings"`
	}] `json:"data"`
}

// emailList is GET /v1/emails, as the README of the vendor's Node SDK 3.4.0 describes it.
type emailList struct {
	Data *list[struct {
		MessageID text   `json:"message_id"`
		Tags      labels `json:"tags"`
	}] `json:"data"`
}

// hook is a webhook of either version: https://developers.mailersend.com/account/webhooks. Data stays raw, as what it
// holds depends on the type.
type hook struct {
	Type      text            `json:"type"`
	CreatedAt text            `json:"created_at"`
	Data      json.RawMessage `json:"data"`
}

// activity is the data of an activity event. Version 2 is flat; in version 1 the mail is below "email" and the detail
// below "morph".
type activity struct {
	ID        text      `json:"id"`
	Type      text      `json:"type"`
	CreatedAt text      `json:"created_at"`
	MessageID text      `json:"message_id"`
	EmailID   text      `json:"email_id"`
	Subject   text      `json:"subject"`
	Recipient text      `json:"recipient"`
	Tags      labels    `json:"tags"`
	Meta      detail    `json:"meta"`
	Morph     detail    `json:"morph"`
	Email     emailOrID `json:"email"`
	Reason    text      `json:"reason"`
}

// emailOrID is the nested mail of version 1, or an address: QUIRK: the API reference shows the recipient of version 2 there.
type emailOrID struct {
	Address string
	ID      text   `json:"id"`
	Tags    labels `json:"tags"`
	Subject text   `json:"subject"`
	Message struct {
		ID text `json:"id"`
	} `json:"message"`
	Recipient struct {
		Email text `json:"email"`
	} `json:"recipient"`
}

func (e *emailOrID) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		e.Address = s
		return nil
	}
	type plain emailOrID
	var w plain
	if json.Unmarshal(b, &w) == nil {
		*e = emailOrID(w)
	}
	return nil
}

// detail is meta or morph. QUIRK: meta is [] when it is empty.
type detail struct {
	Reason            text   `json:"reason"`
	ReadableReason    text   `json:"readable_reason"`
	BounceReason      text   `json:"bounce_reason"`
	BounceCode        scalar `json:"bounce_code"`
	UnsubscribeReason text   `json:"unsubscribe_reason"`
	SuppressionReason text   `json:"suppression_reason"`
	DeferredReason    text   `json:"deferred_reason"`
	IP                text   `json:"ip"`
	URL               text   `json:"url"`
	UserAgent         text   `json:"user_agent"`
}

func (d *detail) UnmarshalJSON(b []byte) error {
	type plain detail
	var w plain
	if json.Unmarshal(b, &w) == nil {
		*d = detail(w)
	}
	return nil
}

// inboundPost is the data of a received mail.
type inboundPost struct {
	ID         text `json:"id"`
	Raw        text `json:"raw"`
	CreatedAt  text `json:"created_at"`
	Recipients struct {
		RcptTo list[struct {
			Email text `json:"email"`
		}] `json:"rcptTo"`
	} `json:"recipients"`
	Sender struct {
		Email text `json:"email"`
	} `json:"sender"`
}

// text is a string, or empty for anything else: one odd field does not cost the rest.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = text(s)
	}
	return nil
}

// scalar is a string or a number, as text.
type scalar string

func (v *scalar) UnmarshalJSON(b []byte) error {
	var s string
	var n json.Number
	switch {
	case json.Unmarshal(b, &s) == nil:
		*v = scalar(s)
	case json.Unmarshal(b, &n) == nil:
		*v = scalar(n)
	}
	return nil
}

// labels is a list of strings or one string.
type labels []string

func (l *labels) UnmarshalJSON(b []byte) error {
	var many list[text]
	if json.Unmarshal(b, &many) == nil && many != nil {
		for _, s := range many {
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

// list is an array whose odd items are left out; anything else is empty.
type list[T any] []T

func (l *list[T]) UnmarshalJSON(b []byte) error {
	var raw []json.RawMessage
	if json.Unmarshal(b, &raw) != nil {
		return nil
	}
	*l = make(list[T], 0, len(raw))
	for _, r := range raw {
		if bytes.Equal(bytes.TrimSpace(r), []byte("null")) {
			continue
		}
		var v T
		if json.Unmarshal(r, &v) == nil {
			*l = append(*l, v)
		}
	}
	return nil
}
