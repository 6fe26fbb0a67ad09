// Package smtpeter sends by the SMTPeter API and reads its signed webhooks.
//
// Contract: mail goes out as raw MIME with the recipients apart, so its headers stay the client's.
// A 2xx is an acceptance even when its body cannot be read, as there is no key that would make a repeat safe; a
// recipient that a readable answer leaves out was not accepted. A webhook counts only when its
// RSA signature verifies with a key from copernica.com's DNS and names the configured environment; while DNS is
// down the answer is "not now", never yes or no.
package smtpeter

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
	"smtpbridge/translate"
)

const (
	name    = "smtpeter"
	baseURL = "https://www.smtpeter.com"
)

// Info describes the provider.
var Info = providers.Info{
	Name:    name,
	Title:   "SMTPeter",
	DocURL:  "https://www.smtpeter.com/en/documentation/rest-send",
	BaseURL: baseURL,
	Webhook: providers.Webhook{
		Signed:  true,
		OwnKeys: true,
		// Bounces carry the returned message: https://www.smtpeter.com/en/documentation/webhook-bounces
		MaxBody: 16 << 20,
		Events:  []string{"failures", "bounces", "deliveries", "opens", "clicks"},
		Private: []string{"mime"},
		Keep:    essence,
	},
	New: New,
}

// How bounces travel.
const (
	bouncesReport  = "report"  // to SMTPeter, which tells us; nobody gets a mail
	bouncesForward = "forward" // to SMTPeter, which tells us and forwards them to the envelope sender
	bouncesSender  = "sender"  // to the envelope sender alone: his domain's SPF counts, late bounces are no events
)

// settings are [account.options]. What SMTPeter does not document can be set here.
type settings struct {
	// Environment is the account id in X-Copernica-ID. Without it no webhook verifies.
	Environment string `toml:"environment"`
	Bounces     string `toml:"bounces"`
	// MaxRecipients and MaxBytes: the API's limits are not documented. Smaller calls lose nothing.
	MaxRecipients int   `toml:"max_recipients"`
	MaxBytes      int64 `toml:"max_bytes"`
	InlineCSS     bool  `toml:"inline_css"`
	PreventScam   bool  `toml:"prevent_scam"`
	// HostImages moves embedded images to SMTPeter's hosting.
	HostImages   bool `toml:"host_images"`
	ReferenceTag bool `toml:"reference_tag"`
	// VerificationFiles are the texts that the dashboard looks for before it uses a webhook, by file name;
	// VerificationFolder is where such files lie.
	VerificationFiles  map[string]string `toml:"verification_files"`
	VerificationFolder string            `toml:"verification_folder"`
}

type provider struct {
	opts        providers.Options
	set         settings
	client      *httpapi.Client
	base        string
	now         func() time.Time
	tolerance   time.Duration
	environment string
	hook        *url.URL // the registered URL, nil when unknown
	keys        *keyring
}

var (
	_ providers.Provider      = (*provider)(nil)
	_ providers.Preparer      = (*provider)(nil)
	_ providers.WebhookParser = (*provider)(nil)
	_ providers.WebhookGetter = (*provider)(nil)
	_ providers.Checker       = (*provider)(nil)
	_ providers.Finder        = (*provider)(nil)
	_ providers.Tracker       = (*provider)(nil)
	_ providers.Poller        = (*provider)(nil)
)

// New makes the provider of one account.
func New(o providers.Options) (providers.Provider, error) {
	p := &provider{
		opts: o, base: o.BaseURL, now: o.Now, tolerance: o.Tolerance,
		set: settings{Bounces: bouncesReport, MaxRecipients: 50, PreventScam: true, ReferenceTag: true},
	}
	if err := o.DecodeOptions(&p.set); err != nil {
		return nil, fmt.Errorf("smtpeter: %w", err)
	}
	if o.APIKey.Empty() {
		return nil, errors.New("smtpeter: the access token is missing: set api_key_file to the account's REST API token")
	}
	switch p.set.Bounces {
	case bouncesReport, bouncesForward, bouncesSender:
	default:
		return nil, fmt.Errorf("smtpeter: bounces must be %q, %q or %q", bouncesReport, bouncesForward, bouncesSender)
	}
	if p.set.MaxRecipients < 1 {
		return nil, errors.New("smtpeter: max_recipients must be at least 1")
	}
	if p.set.MaxBytes < 0 {
		return nil, errors.New("smtpeter: max_bytes must not be negative")
	}
	p.environment = strings.TrimPrefix(p.set.Environment, environmentPrefix)
	if strings.Trim(p.environment, "0123456789") != "" {
		return nil, errors.New(`smtpeter: environment must be the number of the account, as in "1234"`)
	}
	for file := range p.set.VerificationFiles {
		if !verificationFile.MatchString(file) {
			return nil, fmt.Errorf("smtpeter: verification_files: %q is not of the form smtpeter-xxxxx.txt", file)
		}
	}
	if o.WebhookURL != "" {
		u, err := url.Parse(o.WebhookURL)
		if err != nil || u.Host == "" {
			return nil, errors.New("smtpeter: webhook_url is not a complete URL")
		}
		p.hook = u
	}
	if p.base == "" {
		p.base = baseURL
	}
	if p.now == nil {
		p.now = time.Now
	}
	if p.tolerance <= 0 {
		p.tolerance = 5 * time.Minute
	}
	r := o.Resolver
	if r == nil {
		r = net.DefaultResolver
	}
	p.keys = newKeyring(r, p.now)
	p.client = httpapi.New(name, o)
	return p, nil
}

// Capabilities says what raw MIME by https://www.smtpeter.com/en/documentation/rest-mime can express.
// Where the documentation says nothing (Message-ID, SMTPUTF8, null sender) the answer is no.
func (p *provider) Capabilities() translate.Capabilities {
	c := translate.Capabilities{
		Extra:         true,
		Raw:           translate.RawEnvelope,
		RawString:     true,
		RawFeatures:   true,
		ReplyTo:       -1,
		MaxRcpts:      p.set.MaxRecipients,
		MaxBytes:      p.set.MaxBytes,
		Headers:       translate.HeadersAny,
		Threading:     true,
		ListUnsub:     true,
		ListUnsubPost: true,
		Tags:          -1,
		Inline:        true,
		AttachName:    true,
		AttachType:    true,
		EnvelopeFrom:  p.set.Bounces != bouncesReport,
		RcptStatus:    true,
		AMP:           true,
		Calendar:      true,
		TrackOpens:    true,
		TrackClicks:   true,
		InlineCSS:     true,
		ExpiresAt:     true,
		OptionHeaders: []string{preventScam, images},
		// Templates and merge data go as fields: of a MIME message it is not said that its encoded parts are read as templates.
		JSON:     true,
		Template: true,
		Merge:    true,
	}
	f := c
	f.Raw, f.RawString, f.RawFeatures = translate.RawNone, false, false
	f.HeaderTo = true // "to" and "cc" are shown, "recipients" receive
	f.Cc = true
	f.Headers = translate.HeadersXOnly // https://www.smtpeter.com/en/documentation/rest-send-json
	f.HeaderOnce = true
	f.Threading = false
	f.Inline, f.AMP, f.Calendar = false, false, false
	c.Fields = &f
	return c
}

// Options of a mail that have no neutral concept.
const (
	preventScam = "x-smtpeter-preventscam"
	images      = "x-smtpeter-images"
)
