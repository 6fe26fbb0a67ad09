// Package translate turns one accepted mail into the API calls that deliver it:
// (envelope, message, capabilities, options) -> calls and losses. It is pure: no network,
// no clock, no state, and the same input always gives the same calls.
//
// Contract: the envelope is the truth. The union of the recipients of all calls equals the
// envelope recipients it was given, nobody is in two calls, an address that is only in a header is never
// handed to an ESP that would deliver to it, and a blind recipient is visible to nobody.
// What the API cannot express is a Loss, never silence.
package translate

import (
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// RawKind says how an API takes a complete MIME message.
type RawKind uint8

// Kinds of raw sending.
const (
	RawNone      RawKind = iota // no raw MIME
	RawEnvelope                 // raw MIME with the recipients given apart
	RawBccHeader                // raw MIME whose headers name the recipients; blind ones in a Bcc header
)

// HeaderPolicy says which header fields beyond the named ones a JSON call can carry.
type HeaderPolicy uint8

// Header policies.
const (
	HeadersNone   HeaderPolicy = iota // none
	HeadersXOnly                      // names that start with X-
	HeadersListed                     // those in Capabilities.HeaderList, and X-* when listed as "x-*"
	HeadersAny                        // any, except those that describe the MIME structure or the transport
)

// Capabilities is what one provider's API can express, as data. It is printed in docs/providers.md,
// read by Apply, and each flag is proved by providertest. The zero value can send one
// plain mail from one address to one recipient.
type Capabilities struct {
	Raw            RawKind
	RawString      bool     // raw MIME travels inside a JSON string: it must be valid UTF-8
	RawOptions     []string // header names that carry options inside raw MIME and are therefore added, not lost (lower case)
	RawFeatures    bool     // tags, metadata and so on also work beside raw MIME (else the JSON form is used when one is asked for)
	JSON           bool     // has a structured form (from, to, subject, text, html ...)
	HeaderTo       bool     // the structured form takes To/Cc for display apart from the recipients it delivers to
	Cc             bool     // structured form has cc
	Bcc            bool     // structured form has bcc
	NeedsTo        bool     // a call without a "to" is refused
	ReplyTo        int      // how many Reply-To addresses; -1 = any number
	MaxRcpts       int      // recipients per call in all, 0 = no known limit
	MaxTo          int      // of which in to; 0 = no limit of its own
	MaxCc          int
	MaxBcc         int
	MaxBytes       int64  // greatest message in bytes as the API counts it, 0 = unknown
	MaxText        int64  // bytes of the text, and of the HTML; 0 = unknown
	MaxAttachment  int64  // bytes of one attachment, decoded; 0 = unknown
	MaxSubject     int    // characters, 0 = unknown
	NameWithout    string // characters that the display name of a recipient cannot have: they become spaces
	Headers        HeaderPolicy
	HeaderList     []string // lower case, with HeadersListed
	HeaderOnce     bool     // one value per header name: repeated fields are lost
	HeaderMax      int      // bytes of one header value, 0 = unknown
	HeaderAlnum    bool     // header names of letters, digits and hyphens only
	Threading      bool     // In-Reply-To and References survive (by field or header)
	ListUnsub      bool     // List-Unsubscribe survives
	ListUnsubOne   bool     // of List-Unsubscribe one https URI only, in a field of its own
	ListUnsubPost  bool     // List-Unsubscribe-Post survives
	Tags           int      // how many tags; -1 = any number
	TagMax         int      // bytes of one tag or metadata value: a longer one is cut; 0 = unknown
	Metadata       bool
	MetadataKeyMax int           // bytes of a metadata key: an entry with a longer one is lost; 0 = unknown
	MetadataTags   bool          // metadata is carried as tags of the form key=value or a tag map
	SendAt         time.Duration // how far ahead the ESP schedules; 0 = it cannot
	Inline         bool          // inline parts with Content-ID
	InlineImages   bool          // inline parts only of type image/*
	AttachName     bool          // attachment names survive (else: Rename is applied by the provider, said as a loss)
	AttachASCII    bool          // names that are not ASCII arrive garbled
	AttachType     bool          // the declared media type survives
	AttachExts     []string      // allow-list of file name extensions, lower case without dot; nil = any
	AttachOneDot   bool          // a name may hold one full stop only
	AttachNeedName bool          // a name is required: one is made from the type
	AttachContent  bool          // content is required: an empty attachment is lost
	EnvelopeFrom   bool          // our envelope sender is used
	NullSender     bool          // the null sender <> can be expressed
	RcptStatus     bool          // events name the recipient; false: one stream of events per call
	Template       bool          // a stored template can stand in for the mail
	TemplateParts  []string      // of version, block, language: what can be said of a template beside its id
	Merge          bool          // merge data (Options.Merge.Global), in the structured form, or in both with RawFeatures
	Batch          bool          // one call can give each recipient a copy of his own (Options.ExposeRcpts off), with merge data of his own
	BatchMax       int           // with Batch: copies in one call; 0 = MaxTo or MaxRcpts
	BatchBytes     int64         // with Batch, where each copy repeats the mail: bytes of one call; 0 = unknown
	BatchMerge     bool          // with Batch: only for mail with merge data, as the form of such calls reads the text as a template
	BatchHold      bool          // calls with merge data cannot be scheduled: such mail waits here
	TemplateNumber bool          // templates are known by number
	TemplateOwn    bool          // a template has a subject of its own
	MergeVisible   bool          // merge data of each recipient fits a call whose recipients see each other, and goes that way
	AMP            bool
	Calendar       bool          // text/calendar alternative survives as such
	UTF8Local      bool          // 8-bit local parts (RFC 6531)
	ASCIIAddrs     bool          // addresses must be ASCII: internationalised domains go out as A-labels (RFC 5891)
	MessageID      bool          // our Message-ID survives on the wire
	IdempotencyTTL time.Duration // how long the ESP remembers an idempotency key; 0 = it has none
	TrackOpens     bool          // open tracking can be switched per mail
	TrackClicks    bool          // click tracking can be switched per mail
	TrackTogether  bool          // only both together
	AnyFrom        bool          // takes a mail whose From is missing or names several addresses, as it is (smtp, lmtp, maildir)
	NeedSubject    bool          // a call without a subject is refused: "(no subject)" stands in
	FillText       string        // a call without text and HTML is refused: this stands in as the one
	FillHTML       string        // or as the other

	// Options of one call, not settings of the account; see Options.
	ClickBodies      bool // click tracking can be limited to one kind of body
	ClientRef        bool // takes the application's own id of a message
	Campaign         bool // has campaigns apart from tags
	ExpiresAt        bool // takes a time after which it gives up
	SendWindow       bool // send-time optimisation
	IPPool           bool // these are options of one call, not settings of the account
	IP               bool
	Subaccount       bool
	Stream           bool
	ConfigSet        bool
	Tenant           bool
	ReturnPathDomain bool
	Sandbox          bool // accepts without delivering
	UnsubGroup       bool
	SkipSuppression  bool
	Transactional    bool
	ClientKey        bool // takes the application's idempotency key beside or in place of ours
	AutoText         bool
	AutoHTML         bool
	InlineCSS        bool
	ViewLink         bool
	Priority         bool
	DKIMDomain       bool
	TrackingDomain   bool
	RequireTLS       bool
	Analytics        bool
	// Fields is what the structured form can do, where it serves templates, merge data and replaced placeholders alone and does less
	// than the raw one; nil: the same.
	Fields        *Capabilities
	Extra         bool     // members of Options.Extra are merged into the request
	OptionHeaders []string // lower-case headers of the vendor's own dialect, and "header.member" of JSON ones, that are rendered from Options.Raw
}

// Severity of a Loss.
type Severity uint8

// Severities, least first.
const (
	Info  Severity = iota // nobody misses it: Message-ID, Date, Received
	Minor                 // another header dropped
	Major                 // visible recipients, reply-to, attachment name or type, List-Unsubscribe, threading, Auto-Submitted, replaced null sender
	Fatal                 // signed or encrypted mail would break
)

func (s Severity) String() string { return [...]string{"info", "minor", "major", "fatal"}[s] }

// MarshalText gives the name, for JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Loss is one thing that the call does not carry as the mail had it.
type Loss struct {
	Field    string   `json:"field"`          // "reply-to", "header X-Foo", "attachment report.exe"
	Had      string   `json:"had,omitempty"`  // "3 addresses"
	Sent     string   `json:"sent,omitempty"` // "first only"; "" = nothing
	Severity Severity `json:"severity"`
}

// Switch is a setting with an unset state.
type Switch uint8

// States of a Switch.
const (
	Default Switch = iota // say nothing: the ESP's account setting
	On
	Off
)

// Mail is exactly one API call.
//
// Headers holds the fields that the header policy lets pass, In-Reply-To, References and List-Unsubscribe
// among them: an API with a field of its own for one of these takes it from there and leaves it out
// of its custom headers. From, To, Cc, Bcc, Reply-To, Subject, Date and Message-ID are never in it.
type Mail struct {
	Env     envelope.Envelope
	Msg     *mime.Message
	Rcpts   []envelope.Rcpt // who receives by this call; outcomes are given in this order
	From    mime.Address    // the one sender (header From, after force_from)
	To      []mime.Address  // structured form: who stands in to, cc, bcc. Every address here is in Rcpts unless HeaderTo.
	Cc      []mime.Address
	Bcc     []mime.Address
	ReplyTo []mime.Address
	Subject string        // as sent (cut to MaxSubject)
	Headers []HeaderField // further fields the structured form carries, decoded
	// ListUnsubscribe and ListUnsubPost are the values to send in a field of its own, from the header or a
	// dialect's; "" when there is none or the API has no place for it.
	ListUnsubscribe string
	ListUnsubPost   string
	Attach          []Attachment
	Options         Options // what this call carries of the wishes; see ReadOptions for all of them
	UseRaw          bool    // raw form chosen: send Raw(); else the structured form
	Losses          []Loss

	Ref            string // our reference for this call: stable over its attempts, stored before the first byte leaves
	IdempotencyKey string

	raw      rawPlan
	schedule time.Duration // how far ahead the ESP schedules in this form
}

// HoldUntil says when the call may be handed to the ESP at the earliest: the zero time for at
// once, else send-at, less what the ESP schedules by itself in the form chosen.
func (m *Mail) HoldUntil() time.Time {
	if m.Options.SendAt.IsZero() {
		return time.Time{}
	}
	return m.Options.SendAt.Add(-m.schedule)
}

// HeaderField is a decoded header field for a structured call.
type HeaderField struct{ Name, Value string }

// Attachment is an attachment as it goes out: the name may be changed for the ESP.
type Attachment struct {
	*mime.Attachment
	Name   string // as sent
	Inline bool   // as sent: it has a Content-ID and the API can carry it inline
}

// Request is what Apply works on.
type Request struct {
	Envelope envelope.Envelope
	Rcpts    []envelope.Rcpt // the recipients to plan for, a subset of Envelope.Rcpts
	Message  *mime.Message
	Caps     Capabilities
	Settings Settings
}

// Settings are the account's and route's wishes.
type Settings struct {
	Split        bool // one call per recipient (split_recipients = "always", or after a refusal that says Split)
	ForceFrom    string
	AppendDomain string // completes addresses of the header that have none (cron's "From: root")
	ReturnPath   string // stands in for the null sender where the ESP needs one
	TrackOpens   Switch
	TrackClicks  Switch
	KeepReceived bool
	Foreign      bool     // received mail: its header fields are no options of ours, and the way it took stays in it
	Dialects     []string // header dialects that are understood, those of more right first; nil or "all": all of them. The others are stripped unread.
	Provider     string   // the account's provider: its own dialect goes before those of other vendors
	Permissions  []string // classes of options that count, see Permissions; nil: none of them
	BadOptions   string   // BadOptionsWarn ("" too) or BadOptionsReject
}

// RefusalError says that this mail can never be expressed for this account. Its text is for the
// application's owner: what, and what to do.
type RefusalError struct {
	Status string // RFC 3463, "5.6.3"
	Text   string
	Rcpts  []envelope.Rcpt // whom it is about; nil: all. Planned again without them, the mail can be sent.
}

func (e *RefusalError) Error() string { return e.Text }
