// Package mailpace sends by the MailPace API and reads its webhooks and inbound posts.
//
// Contract: one Send is one POST with an Idempotency-Key, so a call whose answer was lost can be
// repeated unchanged for a day without a second mail. MailPace takes or refuses a call as a whole; a refusal that one
// recipient of several may have caused says Split. Events name the call, and the recipient only
// when the call had one.
package mailpace

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
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
	Title:   "MailPace",
	DocURL:  "https://docs.mailpace.com/reference/send",
	BaseURL: baseURL,
	Webhook: providers.Webhook{
		Signed: true,
		// Events repeat the whole mail, bodies included: https://docs.mailpace.com/guide/webhooks
		MaxBody: 16 << 20,
		Events:  []string{"email.queued", "email.delivered", "email.deferred", "email.bounced", "email.spam"},
		Private: []string{"htmlbody", "textbody", "raw", "html", "text", "content"},
	},
	New: New,
}

// settings are [account.options].
type settings struct {
	// MaxRecipients bounds one call. 50 addresses in "to" are documented; whether they include cc and
	// bcc is not, so that is the default for all together.
	MaxRecipients int `toml:"max_recipients"`
	// AttachmentExtensions are those MailPace's support has unlocked for the account.
	AttachmentExtensions []string `toml:"attachment_extensions"`
	// ReferenceTag adds the bridge's reference as a tag, so that an event finds its mail when the answer was lost.
	ReferenceTag bool `toml:"reference_tag"`
	// CheckByEmptyRequest has `check --online` post an empty mail, whose error tells a good token from
	// a bad one. QUIRK: this is not documented by MailPace, hence off.
	CheckByEmptyRequest bool `toml:"check_by_empty_request"`
}

const (
	name           = "mailpace"
	baseURL        = "https://app.mailpace.com"
	maxTo          = 50             // https://docs.mailpace.com/reference/send
	maxBytes       = 50_000_000     // 50 MB for the whole message, same page
	maxKey         = 255            // https://docs.mailpace.com/guide/idempotent-requests
	idempotencyTTL = 24 * time.Hour // same page
	retryWindow    = 48 * time.Hour // of deferred mail: https://docs.mailpace.com/guide/lifecycle
)

// attachExts is the allow-list of https://docs.mailpace.com/reference/send.
var attachExts = []string{
	"jpeg", "jpg", "png", "gif", "txt", "pdf", "docx", "xlsx", "pptx", "csv", "att", "ics", "ical", "html", "zip", "auf",
}

type provider struct {
	opts     providers.Options
	set      settings
	client   *httpapi.Client
	base     string
	keys     []ed25519.PublicKey // of webhooks
	inbound  []ed25519.PublicKey
	attach   []string
	now      func() time.Time
	apiToken secret.String
}

// checked is a provider that can check its token, if the operator allows the trick.
type checked struct{ *provider }

var (
	_ providers.Provider      = (*provider)(nil)
	_ providers.Preparer      = (*provider)(nil)
	_ providers.WebhookParser = (*provider)(nil)
	_ providers.InboundParser = (*provider)(nil)
	_ providers.Checker       = checked{}
)

// New makes the provider of one account.
func New(o providers.Options) (providers.Provider, error) {
	p := &provider{
		opts: o, set: settings{MaxRecipients: maxTo, ReferenceTag: true},
		base: o.BaseURL, now: o.Now, apiToken: o.APIKey,
	}
	if err := o.DecodeOptions(&p.set); err != nil {
		return nil, fmt.Errorf("mailpace: %w", err)
	}
	if o.APIKey.Empty() {
		return nil, errors.New("mailpace: the API token is missing: set api_key_file to the token of the sending domain")
	}
	if p.set.MaxRecipients < 1 {
		return nil, errors.New("mailpace: max_recipients must be at least 1")
	}
	for _, e := range p.set.AttachmentExtensions {
		e = strings.ToLower(strings.TrimPrefix(e, "."))
		if e == "" || strings.Trim(e, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
			return nil, errors.New("mailpace: attachment_extensions has an entry that is no file name extension")
		}
		p.attach = append(p.attach, e)
	}
	p.attach = append(slices.Clone(attachExts), p.attach...)
	var err error
	if p.keys, err = publicKeys(o.WebhookSecrets); err != nil {
		return nil, fmt.Errorf("mailpace: webhook_secret: %w", err)
	}
	if p.inbound, err = publicKeys(o.InboundSecrets); err != nil {
		return nil, fmt.Errorf("mailpace: inbound_secret: %w", err)
	}
	if len(p.inbound) == 0 {
		p.inbound = p.keys // one key per domain signs both
	}
	if p.base == "" {
		p.base = baseURL
	}
	if p.now == nil {
		p.now = time.Now
	}
	p.client = httpapi.New(name, o)
	if p.set.CheckByEmptyRequest {
		return checked{p}, nil
	}
	return p, nil
}

// publicKeys decodes the domain's public keys: 32 bytes in base64, as the dashboard shows them.
func publicKeys(list []secret.String) ([]ed25519.PublicKey, error) {
	var out []ed25519.PublicKey
	for _, s := range list {
		if s.Empty() {
			return nil, errors.New("it is empty; it has to be the public key shown by the dashboard")
		}
		b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(s.Reveal()))
		if err != nil || len(b) != ed25519.PublicKeySize {
			return nil, errors.New("it is not a public key of 32 bytes in base64, as the dashboard shows it under Public Key Verification")
		}
		out = append(out, b)
	}
	return out, nil
}

// Capabilities says what https://docs.mailpace.com/reference/send can express.
func (p *provider) Capabilities() translate.Capabilities {
	return translate.Capabilities{
		Extra:          true,
		JSON:           true,
		Cc:             true,
		Bcc:            true,
		NeedsTo:        true,
		FillText:       "\n", // one of the bodies is required; whether an empty one counts is not documented
		ReplyTo:        -1,   // QUIRK: documented with one address; MailPace's own Rails gem sends a list since 0.4.2
		MaxRcpts:       p.set.MaxRecipients,
		MaxTo:          min(maxTo, p.set.MaxRecipients),
		MaxBytes:       maxBytes,
		Headers:        translate.HeadersNone,
		Threading:      true,
		ListUnsub:      true,
		Tags:           -1,
		Inline:         true,
		AttachName:     true,
		AttachType:     true,
		AttachExts:     p.attach,
		AttachOneDot:   true,
		AttachNeedName: true,
		RcptStatus:     false,
		IdempotencyTTL: idempotencyTTL,
	}
}
