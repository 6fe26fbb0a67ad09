package smtpeter

import (
	"encoding/json"

	"smtpbridge/providers/internal/httpapi"
)

// message is the body of POST /v1/send with a complete MIME message:
// https://www.smtpeter.com/en/documentation/rest-mime. Options that default to rewriting are always said.
// There is never a "data" field: with it the message would be run through the template language.
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
	MIME         httpapi.Value `json:"mime"`
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
