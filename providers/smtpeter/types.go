package smtpeter

import (
	"encoding/json"

	"smtpbridge/providers/internal/httpapi"
)

// message is the body of POST /v1/send with a complete MIME message:
// https://www.smtpeter.com/en/documentation/rest-mime. Options that default to rewriting are always said.
// A MIME message never has a "data" field: with it the message would be run through the template language.
type message struct {
	Recipients   []string      `json:"recipients"`
	Envelope     string        `json:"envelope,omitempty"`
	TrackBounces bool          `json:"trackbounces"`
	DSN          dsn           `json:"dsn"`
	TrackClicks  bool          `json:"trackclicks"`
	TrackOpens   bool          `json:"trackopens"`
	PreventScam  bool          `json:"preventscam"`
	InlineCSS    bool          `json:"inlinecss"`
	Images       string        `json:"images"`
	Tags         []string      `json:"tags,omitempty"`
	MaxDelivery  string        `json:"maxdelivertime,omitempty"` // YYYY-MM-DD hh:mm:ss, UTC
	MIME         httpapi.Value `json:"mime,omitzero"`
	*content
}

// content is a mail as https://www.smtpeter.com/en/documentation/rest-send-json, in place of a MIME message, or what goes before a stored
// template's own. from, to and cc are headers only.
type content struct {
	From        string            `json:"from,omitempty"`
	To          []string          `json:"to,omitempty"`
	Cc          []string          `json:"cc,omitempty"`
	ReplyTo     []string          `json:"replyto,omitempty"`
	TemplateTo  []string          `json:"replyTo,omitempty"` // QUIRK: with a template the name is spelt so
	Subject     string            `json:"subject,omitempty"`
	Text        httpapi.Value     `json:"text,omitzero"`
	HTML        httpapi.Value     `json:"html,omitzero"`
	Unsubscribe *unsubscribe      `json:"unsubscribe,omitempty"`
	Extra       map[string]string `json:"extra,omitempty"` // names start with x-
	Attachments []attachment      `json:"attachments,omitempty"`
	Template    any               `json:"template,omitempty"` // a number or a name
	Data        map[string]any    `json:"data,omitempty"`
}

type unsubscribe struct {
	Email    string `json:"email,omitempty"`
	URL      string `json:"url,omitempty"`
	OneClick bool   `json:"oneclick"`
}

type attachment struct {
	Data httpapi.Value `json:"data"`
	Name string        `json:"name"`
	Type string        `json:"type"`
}

// dsn is https://www.smtpeter.com/en/documentation/rest-dsn: one set of RFC 3461 parameters per call.
type dsn struct {
	Notify string `json:"notify"`
	Ret    string `json:"ret"`
	EnvID  string `json:"envid,omitempty"`
	ORCPT  string `json:"orcpt,omitempty"`
}

// tracked is one entry of an events query: https://www.smtpeter.com/en/documentation/rest-events
type tracked struct {
	Event string                     `json:"event"`
	Type  string                     `json:"type"` // its name in older versions of the page
	Data  map[string]json.RawMessage `json:"data"`
}
