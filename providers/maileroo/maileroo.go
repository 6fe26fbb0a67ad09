// Package maileroo sends by the Maileroo Email API v2 and reads its webhooks and inbound posts.
//
// Contract: one Send is one POST. Maileroo takes or refuses a call as a whole and has no idempotency key, so a lost answer
// stays Ambiguous until a webhook with our reference proves it, or the log of the Account API, where a key for
// it is configured. Our reference travels twice: hashed as the reference_id that Maileroo echoes, and as a tag. Whether a call
// was taken is what "success" in the answer says, never the HTTP status alone.
package maileroo

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

const (
	name       = "maileroo"
	baseURL    = "https://smtp.maileroo.com/api/v2"
	accountURL = "https://api.maileroo.com/v1" // https://maileroo.com/docs/api-reference/account/introduction

	maxSubject  = 255        // https://maileroo.com/docs/email-api/send-basic-email
	maxMapKey   = 128        // of tags and headers, same page
	maxMapValue = 768        // likewise; characters there, counted in bytes here, so that it holds either way
	maxRcpts    = 500        // integrators' reading of the documentation; max_recipients changes it
	maxBulk     = 500        // messages of a bulk call: https://maileroo.com/docs/email-api/send-bulk-emails
	maxBytes    = 24_000_000 // documented for SMTP, https://maileroo.com/docs/smtp-relay/advanced-message-options; the API's is unknown
	// maxSchedule leaves a day of the 21 (https://maileroo.com/docs/email-api/appendix) for clocks that differ.
	maxSchedule = 20 * 24 * time.Hour
)

// Info describes the provider.
var Info = providers.Info{
	Name:    name,
	Title:   "Maileroo",
	DocURL:  "https://maileroo.com/docs/email-api/introduction",
	BaseURL: baseURL,
	LookUps: 30, // each is one or two calls, of 180 a minute: https://maileroo.com/docs/api-reference/account/introduction
	Webhook: providers.Webhook{
		Signed:          true,
		Events:          []string{"accepted", "delivered", "deferred", "failed", "rejected", "opened", "clicked", "complained"},
		InboundCallback: true,
		Private:         []string{"plaintext", "stripped_plaintext", "html", "stripped_html", "contents"},
	},
	New: New,
}

// How inline images are sent. The documentation's example refers to them by their file name.
const (
	inlineRewrite   = "rewrite"    // file names become unique, and cid: in the HTML is pointed at them
	inlineContentID = "content-id" // the Content-ID stands in for the file name, the HTML stays
	inlineKeep      = "keep"       // both stay
)

// settings are [account.options].
type settings struct {
	MaxRecipients   int    `toml:"max_recipients"`
	MaxMessageBytes int64  `toml:"max_message_bytes"`
	InlineImages    string `toml:"inline_images"`
	// ThreadingHeaders sends In-Reply-To and References in the header map, of which the documentation says nothing.
	ThreadingHeaders bool `toml:"threading_headers"`
	// The key of the Account API, for the look-up of lost answers. It is not the sending key.
	AccountKeyFile string `toml:"account_key_file"`
	AccountKeyEnv  string `toml:"account_key_env"`
	AccountURL     string `toml:"account_url"`
	// InboundHosts are the hosts whose URLs in an inbound post may be called. The one that keeps the
	// messages is not documented.
	InboundHosts []string `toml:"inbound_hosts"`
}

type provider struct {
	opts   providers.Options
	set    settings
	client *httpapi.Client
	base   string
	now    func() time.Time
}

// finding is a provider that can look calls up, with a key of the Account API.
type finding struct {
	*provider
	key secret.String
	api string // base URL
}

var (
	_ providers.Provider      = (*provider)(nil)
	_ providers.Preparer      = (*provider)(nil)
	_ providers.WebhookParser = (*provider)(nil)
	_ providers.InboundParser = (*provider)(nil)
	_ providers.Checker       = (*provider)(nil)
	_ providers.Finder        = finding{}
	_ providers.Tracker       = finding{}
)

// New makes the provider of one account. It is a providers.Finder only when a key of the Account API is configured: without
// one no look-up will ever tell.
func New(o providers.Options) (providers.Provider, error) {
	p := &provider{
		opts: o, base: o.BaseURL, now: o.Now,
		set: settings{
			MaxRecipients: maxRcpts, MaxMessageBytes: maxBytes, InlineImages: inlineRewrite, ThreadingHeaders: true,
			AccountURL: accountURL, InboundHosts: []string{"inbound-api.maileroo.net"},
		},
	}
	if err := o.DecodeOptions(&p.set); err != nil {
		return nil, fmt.Errorf("maileroo: %w", err)
	}
	s := &p.set
	var errs []error
	wrong := func(format string, args ...any) { errs = append(errs, fmt.Errorf("maileroo: "+format, args...)) }
	if o.APIKey.Empty() {
		wrong("the sending key is missing: set api_key_file to a key of Domains, Sending Keys")
	}
	if s.MaxRecipients < 1 || s.MaxMessageBytes < 1 {
		wrong("max_recipients and max_message_bytes must be at least 1")
	}
	switch s.InlineImages {
	case inlineRewrite, inlineContentID, inlineKeep:
	default:
		wrong("inline_images must be %q, %q or %q", inlineRewrite, inlineContentID, inlineKeep)
	}
	for _, h := range s.InboundHosts {
		if !hostPattern(h) {
			wrong(`inbound_hosts: %q is neither a host name nor of the form "*.example.com"`, h)
		}
	}
	if slices.ContainsFunc(o.WebhookSecrets, secret.String.Empty) {
		wrong("a webhook secret is empty; it has to be the shared secret that the dashboard shows")
	}
	key, err := accountKey(s)
	if err != nil {
		errs = append(errs, err)
	}
	if u, err := url.Parse(s.AccountURL); err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http" {
		wrong("account_url is not of the form https://host/v1")
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	if p.base == "" {
		p.base = baseURL
	}
	if p.now == nil {
		p.now = time.Now
	}
	p.client = httpapi.New(name, o, key)
	if !key.Empty() {
		return finding{provider: p, key: key, api: s.AccountURL}, nil
	}
	return p, nil
}

// accountKey reads the key of the Account API, if there is one.
func accountKey(s *settings) (secret.String, error) {
	var key secret.String
	var err error
	switch file := s.AccountKeyFile; {
	case file != "" && s.AccountKeyEnv != "":
		err = errors.New("set account_key_file or account_key_env, not both")
	case s.AccountKeyEnv != "":
		key, err = secret.FromEnv(s.AccountKeyEnv)
	case file != "":
		if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && !strings.ContainsRune(file, '/') {
			file = filepath.Join(dir, file)
		}
		if !filepath.IsAbs(file) {
			err = errors.New("account_key_file must be an absolute path, or the name of a systemd credential")
			break
		}
		key, err = secret.ReadFile(file)
	}
	if err != nil {
		return secret.String{}, fmt.Errorf("maileroo: account key: %w", err)
	}
	return key, nil
}

// Capabilities says what https://maileroo.com/docs/email-api/send-basic-email can express.
func (p *provider) Capabilities() translate.Capabilities {
	return translate.Capabilities{
		Extra:          true,
		JSON:           true,
		Cc:             true,
		Bcc:            true,
		NeedsTo:        true,
		NeedSubject:    true,
		FillText:       "\n", // one of the bodies is required; whether an empty one counts is not documented
		ReplyTo:        -1,
		MaxRcpts:       p.set.MaxRecipients,
		MaxBytes:       p.set.MaxMessageBytes,
		MaxSubject:     maxSubject,
		Headers:        translate.HeadersAny,
		HeaderOnce:     true, // a map
		HeaderMax:      maxMapValue,
		Threading:      p.set.ThreadingHeaders,
		ListUnsub:      true,
		ListUnsubPost:  true,
		Tags:           -1,
		TagMax:         maxMapValue,
		Metadata:       true,
		MetadataKeyMax: maxMapKey,
		MetadataTags:   true, // one map for both
		SendAt:         maxSchedule,
		Inline:         true,
		AttachName:     true,
		AttachType:     true,
		AttachNeedName: true,
		AttachContent:  true, // "mandatory"; Maileroo's own libraries refuse an empty one
		RcptStatus:     true, // of what becomes of the mail; opens and clicks name nobody
		TrackOpens:     true,
		TrackClicks:    true,
		TrackTogether:  true,
		Template:       true,
		TemplateNumber: true,
		// Only the bulk call fills in data for several recipients, and placeholders in the text at all. It takes no scheduled_at:
		// https://maileroo.com/docs/email-api/send-bulk-emails
		Merge:      true,
		Batch:      true,
		BatchMax:   maxBulk,
		BatchMerge: true,
		BatchHold:  true,
	}
}
