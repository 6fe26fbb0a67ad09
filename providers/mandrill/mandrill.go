// Package mandrill sends by Mandrill (Mailchimp Transactional Email) and reads its webhooks and inbound posts.
//
// Contract: one Send is one POST, of the whole MIME document (/messages/send-raw) or, when the account asks for it, of its
// parts (/messages/send). Mandrill answers for each recipient; above 10 recipients it takes all and rejects later, by
// event. It has no idempotency key: a call whose answer was lost is searched for by our reference,
// which travels in the metadata; an event with it proves the call earlier.
package mandrill

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

// Info describes the provider.
var Info = providers.Info{
	Name:    name,
	Title:   "Mandrill (Mailchimp Transactional)",
	DocURL:  "https://mailchimp.com/developer/transactional/api/messages/",
	BaseURL: baseURL,
	Webhook: providers.Webhook{
		Signed: true,
		// The URL is checked by HEAD and by an empty batch under a public key before the webhook's own key exists.
		FirstPing: true,
		// Up to 1000 events in one post: https://mailchimp.com/developer/transactional/docs/webhooks/
		MaxBody: 5 << 20,
		Events: []string{
			"send", "deferral", "hard_bounce", "soft_bounce", "delivered", "open", "click", "spam", "unsub", "reject", "blacklist", "whitelist",
		},
		Private: []string{"raw_msg", "text", "text_flowed", "html", "headers", "attachments", "images", "subject"},
	},
	New: New,
}

// settings are [account.options].
type settings struct {
	// Form is "raw" (the mail as it is) or "json" (taken apart).
	Form string `toml:"form"`
	// APIVersion is part of the path. QUIRK: 1.0 is documented longest, the specification of 2026 says 1.4 and
	// Mailchimp's own Node client 1.4.1 calls 1.3; what differs between them is not said.
	APIVersion string `toml:"api_version"`
	// Async has Mandrill answer "queued" to every call; above 10 recipients it does so anyway.
	Async bool `toml:"async"`
	// MaxRecipients bounds one call. Mailchimp documents no number.
	MaxRecipients int `toml:"max_recipients"`
	// MaxMessageBytes bounds one mail, attachments in base64. "25 MB" is all that is documented.
	MaxMessageBytes int64 `toml:"max_message_bytes"`
	// Rewriting is "off", which switches off what Mandrill would make of the text (auto text, inlined CSS ...), or
	// "account", which leaves that to the settings of the Mandrill account.
	Rewriting        string `toml:"rewriting"`
	Subaccount       string `toml:"subaccount"`
	IPPool           string `toml:"ip_pool"`
	ReturnPathDomain string `toml:"return_path_domain"`
	TrackingDomain   string `toml:"tracking_domain"`
	SigningDomain    string `toml:"signing_domain"`
}

const (
	name    = "mandrill"
	baseURL = "https://mandrillapp.com"
	// https://mailchimp.com/developer/transactional/api/messages/send-new-message/: at most one year ahead. A day less, as
	// the bridge's clock and Mandrill's differ.
	maxSendAt  = 364 * 24 * time.Hour
	maxSubject = 998 // same page
	maxTag     = 50  // characters, same page
	maxBytes   = 25 << 20
	maxRcpts   = 1000
)

type provider struct {
	opts   providers.Options
	set    settings
	client *httpapi.Client
	base   string // up to the API's version, without a final slash
	now    func() time.Time
}

var (
	_ providers.Provider          = (*provider)(nil)
	_ providers.Preparer          = (*provider)(nil)
	_ providers.Checker           = (*provider)(nil)
	_ providers.WebhookParser     = (*provider)(nil)
	_ providers.WebhookGetter     = (*provider)(nil)
	_ providers.InboundParser     = (*provider)(nil)
	_ providers.SuppressionLister = (*provider)(nil)
	_ providers.Finder            = (*provider)(nil)
	_ providers.Tracker           = (*provider)(nil)
	_ providers.Poller            = (*provider)(nil)
	_ providers.Registrar         = (*provider)(nil)
)

// New makes the provider of one account.
func New(o providers.Options) (providers.Provider, error) {
	p := &provider{
		opts: o, now: o.Now,
		set: settings{Form: "raw", APIVersion: "1.0", MaxRecipients: maxRcpts, MaxMessageBytes: maxBytes, Rewriting: "off"},
	}
	if err := o.DecodeOptions(&p.set); err != nil {
		return nil, fmt.Errorf("mandrill: %w", err)
	}
	s := &p.set
	var errs []error
	wrong := func(text string) { errs = append(errs, errors.New("mandrill: "+text)) }
	if o.APIKey.Empty() {
		wrong("the API key is missing: set api_key_file")
	}
	if s.Form != "raw" && s.Form != "json" {
		wrong(`form must be "raw" or "json"`)
	}
	if s.Rewriting != "off" && s.Rewriting != "account" {
		wrong(`rewriting must be "off" or "account"`)
	}
	if s.APIVersion == "" || strings.Trim(s.APIVersion, "0123456789.") != "" {
		wrong(`api_version must be of the form "1.0"`)
	}
	if s.MaxRecipients < 1 || s.MaxMessageBytes < 1 {
		wrong("max_recipients and max_message_bytes must be at least 1")
	}
	for key, v := range map[string]string{
		"subaccount": s.Subaccount, "ip_pool": s.IPPool, "return_path_domain": s.ReturnPathDomain,
		"tracking_domain": s.TrackingDomain, "signing_domain": s.SigningDomain,
	} {
		if strings.ContainsFunc(v, func(r rune) bool { return r <= 0x20 && r != ' ' || r >= 0x7f }) || strings.TrimSpace(v) != v {
			wrong(key + " must be printable ASCII without outer spaces")
		}
	}
	if slices.ContainsFunc(slices.Concat(o.WebhookSecrets, o.InboundSecrets), secret.String.Empty) {
		wrong("a webhook or inbound secret is empty; it has to be the key that Mandrill shows for the webhook")
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	p.base = apiBase(o.BaseURL, s.APIVersion)
	if p.now == nil {
		p.now = time.Now
	}
	p.client = httpapi.New(name, o)
	return p, nil
}

// apiBase accepts a base URL with or without the path /api/VERSION.
func apiBase(base, version string) string {
	if base == "" {
		base = baseURL
	}
	base = strings.TrimRight(base, "/")
	if u, err := url.Parse(base); err == nil && strings.Contains(u.Path+"/", "/api/") {
		return base
	}
	return base + "/api/" + version
}

// url is the address of a call. QUIRK: the specification writes /messages/send, the libraries that have used
// version 1.0 for years write /messages/send.json.
func (p *provider) url(call string) string { return p.base + "/" + call + ".json" }

// optionHeaders are those that send-raw reads from the document and takes out of it:
// https://mailchimp.com/developer/transactional/docs/smtp-integration/
var optionHeaders = []string{
	"x-mc-preserverecipients", "x-mc-autotext", "x-mc-autohtml", "x-mc-inlinecss", "x-mc-urlstripqs",
	"x-mc-track", "x-mc-tags", "x-mc-metadata", "x-mc-subaccount", "x-mc-trackingdomain", "x-mc-signingdomain",
	"x-mc-important", "x-mc-viewcontentlink", "x-mc-googleanalytics", "x-mc-googleanalyticscampaign",
}

// stripQS is the option that has no neutral concept.
const stripQS = "x-mc-urlstripqs"

// Capabilities says what the chosen form can express. What both have in common: tags, metadata,
// schedule and tracking per mail, an answer and events per recipient, no envelope sender (only its domain), Mandrill's own Message-ID.
func (p *provider) Capabilities() translate.Capabilities {
	c := translate.Capabilities{
		Extra:       true,
		MaxRcpts:    p.set.MaxRecipients,
		MaxBytes:    p.set.MaxMessageBytes,
		Tags:        -1,
		Metadata:    true,
		SendAt:      maxSendAt,
		RcptStatus:  true,
		TrackOpens:  true,
		TrackClicks: true,
		// The document is kept, or the header map and the attachment list have a place for it.
		ReplyTo:       -1,
		Threading:     true,
		ListUnsub:     true,
		ListUnsubPost: true,
		Headers:       translate.HeadersAny,
		Inline:        true,
		AttachName:    true,
		AttachType:    true,
		// Templates and merge data are what only the structured form does: it is chosen for such a mail in raw form, too.
		JSON: true, Cc: true, Bcc: true,
		Template: true, TemplateOwn: true, TemplateParts: []string{"block", "language"}, Merge: true, Batch: true,
		IPPool: true, Subaccount: true, ReturnPathDomain: true, AutoText: true, AutoHTML: true, InlineCSS: true, ViewLink: true,
		Priority: true, DKIMDomain: true, TrackingDomain: true, Analytics: true, OptionHeaders: []string{stripQS},
	}
	if p.set.Form == "raw" {
		c.Raw, c.RawString, c.RawOptions, c.RawFeatures = translate.RawEnvelope, true, optionHeaders, true
		c.AMP, c.Calendar, c.ClickBodies = true, true, true
	}
	c.MaxSubject = maxSubject
	c.HeaderOnce = true   // a map: one value for each name
	c.AttachASCII = true  // QUIRK: names that are not ASCII are garbled, reported in 2022 and still documented by Anymail 15.1
	c.InlineImages = true // images[].type has to start with image/
	return c
}
