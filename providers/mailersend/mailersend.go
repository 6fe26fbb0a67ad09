// Package mailersend sends by the MailerSend API and reads its webhooks and inbound posts.
//
// Contract: one Send is one POST /v1/email. Its 202 counts as an acceptance by the id in its header; recipients that the
// body names as suppressed are rejected one by one. MailerSend has no idempotency key: a call whose answer was lost is
// looked up by the tag that carries our reference. Every event names its recipient.
package mailersend

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// Info describes the provider.
var Info = providers.Info{
	Name:    name,
	Title:   "MailerSend",
	DocURL:  "https://developers.mailersend.com/api/v1/email",
	BaseURL: baseURL,
	LookUps: 5, // of 10 a minute for /activity, same page
	Rate:    2, // 120 requests a minute: https://developers.mailersend.com/general
	Webhook: providers.Webhook{
		Signed: true,
		// Creating a webhook needs the answer to a ping, before its own secret is shown.
		FirstPing: true,
		// A 4xx is not sent again, a 5xx is: https://developers.mailersend.com/account/webhooks
		StoreFailed: 503,
		Events: []string{
			"activity.sent", "activity.delivered", "activity.soft_bounced", "activity.hard_bounced", "activity.deferred", "activity.suppressed",
			"activity.opened", "activity.clicked", "activity.unsubscribed", "activity.spam_complaint",
			"sender_identity.verified", "maintenance.start", "maintenance.end", "inbound_forward.failed", "inbound_message.rejected",
		},
		Private: []string{"text", "html", "raw", "content"},
	},
	New: New,
}

// settings are [account.options].
type settings struct {
	// Plan is the MailerSend plan. Custom headers and List-Unsubscribe need professional or enterprise.
	Plan string `toml:"plan"`
	// Approved is false for an account still under review, which takes fewer recipients in a call.
	Approved bool `toml:"approved"`
	// RcptTo sends mail without visible recipients in one call, by a field that only the vendor's Node SDK documents.
	RcptTo bool `toml:"rcpt_to"`
	// ReferenceTag spends one of the five tags on the bridge's reference.
	ReferenceTag bool `toml:"reference_tag"`
	// DomainID is the sending domain's id at MailerSend; "" = looked up by name.
	DomainID string `toml:"domain_id"`
	// Precedence is "mail" (as the mail says) or "domain" (as the domain is set at MailerSend).
	Precedence string `toml:"precedence"`
	// BatchSendMode says how recipients with a copy of their own are served: "" by a call each, see the constants.
	BatchSendMode string `toml:"batch_send_mode"`
	// TrackContent says whether MailerSend keeps the content for its dashboard; unset = as the domain is set.
	TrackContent *bool `toml:"track_content"`
}

// Values of Precedence.
const (
	precedenceMail   = "mail"
	precedenceDomain = "domain"
)

// Values of BatchSendMode.
const (
	batchSeparate = "separate"       // a call for each
	batchBulk     = "use-bulk-email" // one call of the bulk interface, whose outcome is asked for later
	batchExpose   = "expose-to-list" // one call for all, who see each other
)

// plans: true means with custom headers and List-Unsubscribe, by https://developers.mailersend.com/api/v1/email
var plans = map[string]bool{"": false, "trial": false, "hobby": false, "starter": false, "professional": true, "enterprise": true}

// Limits of https://developers.mailersend.com/api/v1/email
const (
	name       = "mailersend"
	baseURL    = "https://api.mailersend.com"
	maxTo      = 50
	maxCc      = 10 // and as many in bcc
	maxSubject = 998
	// "2 MB" and "25 MB", read as the greater of what they can mean: MailerSend has the last word.
	maxText       = 2 << 20
	maxAttachment = 25 << 20
	maxTags       = 5
	// One call of the bulk interface takes 500 mails (5 on trial) and 50 MB: https://developers.mailersend.com/api/v1/email
	maxBulk      = 500
	maxBulkTrial = 5
	maxBulkBytes = 48_000_000
	// MailerSend schedules up to 72 hours ahead. An hour less, as its clock and the bridge's differ.
	maxSendAt = 71 * time.Hour
)

// attachExts is the allow-list of https://developers.mailersend.com/api/v1/email (2025-12).
var attachExts = strings.Fields(`txt csv log css ics xml jpg jpe jpeg gif png bmp psd tif tiff svg indd ai eps
	doc docx rtf odt ott pdf pub pages mobi epub mp3 m4a m4v wma ogg flac wav aif aifc aiff mp4 mov avi mkv mpeg mpg wmv
	xls xlsx ods numbers odp ppt pptx pps key zip vcf eml p7c p7m p7s pgp asc sig`)

type provider struct {
	opts     providers.Options
	set      settings
	client   *httpapi.Client
	base     string
	now      func() time.Time
	apiToken secret.String
	keys     [][]byte // signing secrets of webhooks
	inbound  [][]byte // of inbound routes

	mu      sync.Mutex
	domains map[string]string // id by name, of the look-ups so far
}

var (
	_ providers.Provider          = (*provider)(nil)
	_ providers.Preparer          = (*provider)(nil)
	_ providers.WebhookParser     = (*provider)(nil)
	_ providers.InboundParser     = (*provider)(nil)
	_ providers.Checker           = (*provider)(nil)
	_ providers.Finder            = (*provider)(nil)
	_ providers.Poller            = (*provider)(nil)
	_ providers.Registrar         = (*provider)(nil)
	_ providers.SuppressionLister = (*provider)(nil)
	_ providers.BulkResolver      = (*provider)(nil)
)

// New makes the provider of one account.
func New(o providers.Options) (providers.Provider, error) {
	p := &provider{
		opts: o, base: o.BaseURL, now: o.Now, apiToken: o.APIKey, domains: map[string]string{},
		set: settings{Approved: true, ReferenceTag: true, Precedence: precedenceMail, BatchSendMode: batchSeparate},
	}
	if err := o.DecodeOptions(&p.set); err != nil {
		return nil, fmt.Errorf("mailersend: %w", err)
	}
	if o.APIKey.Empty() {
		return nil, errors.New("mailersend: the API token is missing: set api_key_file to a token of the sending domain")
	}
	p.set.Plan = strings.ToLower(p.set.Plan)
	if _, ok := plans[p.set.Plan]; !ok {
		return nil, errors.New("mailersend: plan must be one of trial, hobby, starter, professional, enterprise")
	}
	if p.set.Precedence != precedenceMail && p.set.Precedence != precedenceDomain {
		return nil, fmt.Errorf("mailersend: precedence must be %q or %q", precedenceMail, precedenceDomain)
	}
	switch p.set.BatchSendMode {
	case batchSeparate, batchBulk, batchExpose:
	default:
		return nil, fmt.Errorf("mailersend: batch_send_mode must be %q, %q or %q", batchSeparate, batchBulk, batchExpose)
	}
	if !isToken(p.set.DomainID) {
		return nil, errors.New("mailersend: domain_id must be the domain's id at MailerSend, letters and digits")
	}
	var err error
	if p.keys, err = keys(o.WebhookSecrets); err != nil {
		return nil, fmt.Errorf("mailersend: webhook_secret: %w", err)
	}
	if p.inbound, err = keys(o.InboundSecrets); err != nil {
		return nil, fmt.Errorf("mailersend: inbound_secret: %w", err)
	}
	if p.base == "" {
		p.base = baseURL
	}
	if p.now == nil {
		p.now = time.Now
	}
	p.client = httpapi.New(name, o)
	return p, nil
}

func keys(list []secret.String) ([][]byte, error) {
	var out [][]byte
	for _, s := range list {
		if s.Empty() {
			return nil, errors.New("it is empty; it has to be the signing secret that MailerSend shows")
		}
		out = append(out, []byte(s.Reveal()))
	}
	return out, nil
}

// isToken reports whether s may stand in a URL path as it is; "" may.
func isToken(s string) bool {
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// Capabilities says what https://developers.mailersend.com/api/v1/email can express.
func (p *provider) Capabilities() translate.Capabilities {
	c := translate.Capabilities{
		Extra:          true,
		JSON:           true,
		Cc:             true,
		Bcc:            true,
		NeedsTo:        !p.set.RcptTo,
		ReplyTo:        1,
		MaxTo:          maxTo,
		MaxCc:          maxCc,
		MaxBcc:         maxCc,
		MaxSubject:     maxSubject,
		MaxText:        maxText,
		MaxAttachment:  maxAttachment,
		NeedSubject:    true,
		FillHTML:       "<br>", // one of text and html is required; whether white space counts is not said
		NameWithout:    ",;",
		Headers:        translate.HeadersNone,
		Threading:      true,
		Tags:           maxTags,
		SendAt:         maxSendAt,
		Inline:         true,
		AttachName:     true,
		AttachExts:     slices.Clone(attachExts),
		AttachNeedName: true,
		RcptStatus:     true,
		TrackOpens:     true,
		TrackClicks:    true,
		Template:       true,
		TemplateOwn:    true,
		Merge:          true,
	}
	switch p.set.BatchSendMode {
	case batchBulk:
		c.Batch, c.BatchMax, c.BatchBytes = true, maxBulk, maxBulkBytes
		if p.set.Plan == "trial" {
			c.BatchMax = maxBulkTrial
		}
	case batchExpose:
		c.MergeVisible = true
	}
	if !p.set.Approved {
		c.MaxTo, c.MaxCc, c.MaxBcc = 10, 1, 1
	}
	c.MaxRcpts = c.MaxTo + c.MaxCc + c.MaxBcc
	if p.set.ReferenceTag {
		c.Tags--
	}
	switch {
	case plans[p.set.Plan]:
		c.Headers, c.HeaderAlnum = translate.HeadersAny, true
		c.ListUnsub, c.ListUnsubOne = true, true
	case p.set.Precedence == precedenceMail:
		c.Headers, c.HeaderList = translate.HeadersListed, []string{"precedence"}
	}
	return c
}
