package mandrill

import (
	"encoding/json"
	"math"
	"strings"
	"time"

	"smtpbridge/providers/internal/httpapi"
)

// rawCall is the body of /messages/send-raw: https://mailchimp.com/developer/transactional/api/messages/send-mime-document/
// from_email and from_name are left out: they would replace the header From.
type rawCall struct {
	Key              string        `json:"key"`
	To               []string      `json:"to"` // the envelope: without it Mandrill would read recipients from the headers
	Async            bool          `json:"async"`
	IPPool           string        `json:"ip_pool,omitempty"`
	SendAt           string        `json:"send_at,omitempty"`
	ReturnPathDomain string        `json:"return_path_domain,omitempty"`
	RawMessage       httpapi.Value `json:"raw_message"`
}

// sendCall is the body of /messages/send: https://mailchimp.com/developer/transactional/api/messages/send-new-message/
type sendCall struct {
	Key     string  `json:"key"`
	Async   bool    `json:"async"`
	IPPool  string  `json:"ip_pool,omitempty"`
	SendAt  string  `json:"send_at,omitempty"`
	Message message `json:"message"`
	// Of /messages/send-template alone: https://mailchimp.com/developer/transactional/api/messages/send-using-message-template/
	TemplateName    string     `json:"template_name,omitempty"`
	TemplateContent []variable `json:"template_content,omitzero"` // required, may be empty
}

type message struct {
	FromEmail          string            `json:"from_email"`
	FromName           string            `json:"from_name,omitempty"`
	To                 []recipient       `json:"to"`
	Subject            string            `json:"subject"`
	Text               httpapi.Value     `json:"text,omitzero"`
	HTML               httpapi.Value     `json:"html,omitzero"`
	Headers            map[string]string `json:"headers,omitempty"` // QUIRK: a list in its place is ignored in silence
	Attachments        []file            `json:"attachments,omitempty"`
	Images             []file            `json:"images,omitempty"`
	PreserveRecipients bool              `json:"preserve_recipients"`
	TrackOpens         *bool             `json:"track_opens,omitempty"`
	TrackClicks        *bool             `json:"track_clicks,omitempty"`
	AutoText           *bool             `json:"auto_text,omitempty"`
	AutoHTML           *bool             `json:"auto_html,omitempty"`
	InlineCSS          *bool             `json:"inline_css,omitempty"`
	URLStripQS         *bool             `json:"url_strip_qs,omitempty"`
	Merge              *bool             `json:"merge,omitempty"`
	TrackingDomain     string            `json:"tracking_domain,omitempty"`
	SigningDomain      string            `json:"signing_domain,omitempty"`
	ReturnPathDomain   string            `json:"return_path_domain,omitempty"`
	Tags               []string          `json:"tags,omitempty"`
	Subaccount         string            `json:"subaccount,omitempty"`
	Metadata           map[string]string `json:"metadata,omitempty"`
	Important          *bool             `json:"important,omitempty"`
	ViewContentLink    *bool             `json:"view_content_link,omitempty"`
	GoogleDomains      []string          `json:"google_analytics_domains,omitempty"`
	GoogleCampaign     string            `json:"google_analytics_campaign,omitempty"`
	MergeLanguage      string            `json:"merge_language,omitempty"`
	GlobalMergeVars    []variable        `json:"global_merge_vars,omitempty"`
	MergeVars          []rcptVariables   `json:"merge_vars,omitempty"`
}

// variable is a merge variable, or a block of a template.
type variable struct {
	Name    string `json:"name"`
	Content any    `json:"content"`
}

type rcptVariables struct {
	Rcpt string     `json:"rcpt"`
	Vars []variable `json:"vars"`
}

type recipient struct {
	Email string `json:"email"`
	Name  string `json:"name,omitempty"`
	Type  string `json:"type"`
}

// file is an attachment, or an image, whose name is its Content-ID.
type file struct {
	Type    string        `json:"type"`
	Name    string        `json:"name"`
	Content httpapi.Value `json:"content"`
}

// result is the answer for one recipient.
type result struct {
	Email        text `json:"email"`
	Status       text `json:"status"`
	RejectReason text `json:"reject_reason"`
	QueuedReason text `json:"queued_reason"`
	ID           text `json:"_id"`
}

// apiError is the body of a refusal.
type apiError struct {
	Status  text `json:"status"`
	Code    text `json:"code"`
	Name    text `json:"name"`
	Message text `json:"message"`
}

// native is one item of mandrill_events: https://mailchimp.com/developer/transactional/docs/webhooks/
type native struct {
	Event     text                 `json:"event"`
	ID        text                 `json:"_id"`
	TS        stamp                `json:"ts"`
	URL       text                 `json:"url"`
	IP        text                 `json:"ip"`
	UserAgent text                 `json:"user_agent"`
	Channel   text                 `json:"channel"`
	Msg       lenient[nativeMsg]   `json:"msg"`
	Type      text                 `json:"type"` // of a sync event, which has no "event"
	Action    text                 `json:"action"`
	Reject    lenient[nativeEntry] `json:"reject"`
	Entry     lenient[nativeEntry] `json:"entry"`
}

type nativeMsg struct {
	ID                text                                `json:"_id"`
	Email             text                                `json:"email"`
	Channel           text                                `json:"channel"`
	Tags              labels                              `json:"tags"`
	Metadata          lenient[map[string]json.RawMessage] `json:"metadata"` // QUIRK: [] when empty
	SMTPEvents        lenient[[]lenient[smtpEvent]]       `json:"smtp_events"`
	Diag              text                                `json:"diag"`
	BounceDescription text                                `json:"bounce_description"`
	Reject            nativeReject                        `json:"reject"`
	RejectReason      text                                `json:"reject_reason"`
	RawMsg            verbatim                            `json:"raw_msg"`
}

type smtpEvent struct {
	Diag          text `json:"diag"`
	DestinationIP text `json:"destination_ip"`
}

type nativeEntry struct {
	Email  text `json:"email"`
	Reason text `json:"reason"`
	Detail text `json:"detail"`
}

// nativeReject is an object with a reason, a bare reason, or null.
type nativeReject struct{ Reason string }

func (r *nativeReject) UnmarshalJSON(b []byte) error {
	var o struct {
		Reason text `json:"reason"`
	}
	var s text
	if json.Unmarshal(b, &o) == nil {
		r.Reason = string(o.Reason)
	} else if json.Unmarshal(b, &s) == nil {
		r.Reason = string(s)
	}
	return nil
}

// lenient reads a T, and is empty when there is anything else in its place: one odd field does not cost the event.
type lenient[T any] struct {
	V  T
	OK bool
}

func (l *lenient[T]) UnmarshalJSON(b []byte) error {
	var v T
	if json.Unmarshal(b, &v) == nil && string(b) != "null" {
		l.V, l.OK = v, true
	}
	return nil
}

// text is a string or a number as text, and empty for anything else.
type text string

func (t *text) UnmarshalJSON(b []byte) error {
	var s string
	var n json.Number
	if json.Unmarshal(b, &s) == nil {
		*t = text(strings.TrimSpace(s))
	} else if json.Unmarshal(b, &n) == nil {
		*t = text(n.String())
	}
	return nil
}

// verbatim is a string with its outer white space.
type verbatim string

func (t *verbatim) UnmarshalJSON(b []byte) error {
	var s string
	if json.Unmarshal(b, &s) == nil {
		*t = verbatim(s)
	}
	return nil
}

// labels is a list of strings or one string.
type labels []string

func (l *labels) UnmarshalJSON(b []byte) error {
	var list []text
	var one text
	if json.Unmarshal(b, &list) != nil && json.Unmarshal(b, &one) == nil {
		list = []text{one}
	}
	*l = nil
	for _, s := range list {
		if s != "" {
			*l = append(*l, string(s))
		}
	}
	return nil
}

// stamp is a time in seconds since 1970, a number or text.
type stamp struct{ time.Time }

func (s *stamp) UnmarshalJSON(b []byte) error {
	var t text
	if t.UnmarshalJSON(b) != nil || t == "" {
		return nil
	}
	f, err := json.Number(t).Float64()
	if err != nil || !(f > 0 && f < 253402300800) { // the year 10000
		return nil
	}
	whole, part := math.Modf(f)
	s.Time = time.Unix(int64(whole), int64(part*1e9)).UTC()
	return nil
}
