package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// Options are what the mail asks for beside its content, in neutral terms: read from
// X-Smtpbridge-* and dialect headers, and from the account's settings. In a Mail they hold only what that
// call is to carry: what the account has no capability for has become a Loss or a refusal.
type Options struct {
	Tags         []string
	Metadata     map[string]string
	TrackOpens   Switch
	TrackClicks  Switch
	ClicksIn     BodyKind // with TrackClicks on: in which body
	SendAt       time.Time
	EnvelopeFrom string // sender to use where the ESP takes one; "" = null sender

	ClientRef  string // the application's own id of the message; as metadata "client_ref" where the ESP has no place for it
	Campaign   string // as a tag where the ESP has no campaigns
	ExpiresAt  time.Time
	SendWindow string // the vendor's send-time optimisation, as written
	Template   Template
	Merge      Merge

	IPPool, IP                            string
	Subaccount, Stream, ConfigSet, Tenant string
	ReturnPathDomain                      string
	Sandbox                               bool // accept, deliver to nobody
	UnsubGroup                            string
	SkipSuppression                       bool
	Transactional                         Switch
	IdempotencyKey                        string // the application's own; Mail.IdempotencyKey is ours
	ExtraRcpts                            []ExtraRcpt
	ExposeRcpts                           Switch // Off: each recipient has a copy of his own and sees himself alone

	AutoText, AutoHTML, InlineCSS, ViewLink Switch
	Priority                                Level
	DKIMDomain, TrackingDomain              string
	RequireTLS                              Switch
	Analytics                               map[string]string            // link tagging: "domains", "campaign", "utm_source" ...
	Extra                                   map[string]any               // members to be merged into the request, see extra.go
	Raw                                     map[string]map[string]string // by dialect and lower-case header: what has no neutral concept
}

// BodyKind says in which body links are tracked.
type BodyKind uint8

// Kinds of body.
const (
	AnyBody BodyKind = iota
	HTMLBody
	TextBody
)

func (b BodyKind) String() string { return [...]string{"all", "html only", "text only"}[b] }

// Level is a priority.
type Level uint8

// Levels; the zero value says nothing.
const (
	NoLevel Level = iota
	Low
	Normal
	High
)

func (l Level) String() string { return [...]string{"default", "low", "normal", "high"}[l] }

// Template names a mail that is stored at the ESP.
type Template struct{ ID, Version, Block, Language string }

// Merge is data for placeholders. Values are JSON values; keys of Rcpt are folded addresses (envelope.Fold).
//
// In a Mail, Rcpt holds this call's recipients only. Where the ESP cannot give each recipient of a call a copy of
// his own (Capabilities.Batch), every call has one recipient, whose data is merged into Global and Rcpt is nil.
// Subst and RcptSubst never reach a provider: Apply replaces the literals itself, in the subject, text and HTML.
type Merge struct {
	Global    map[string]any
	Rcpt      map[string]map[string]any
	Subst     map[string]string            // literal -> value
	RcptSubst map[string]map[string]string // by folded address
	Dialect   string                       // whose placeholders the body is written with, where a template does not make that plain
	InBody    bool                         // the body itself is to be rendered as a template
}

func (m *Merge) empty() bool {
	return len(m.Global)+len(m.Rcpt)+len(m.Subst)+len(m.RcptSubst) == 0 && !m.InBody
}

// ExtraRcpt is a recipient that a header adds.
type ExtraRcpt struct {
	Kind string // to, cc, bcc, archive
	Addr string
}

// Permissions are the classes of options that need a permission, since headers can come from form
// input or with forwarded mail.
const (
	PermitRecipients  = "recipients"  // adds recipients
	PermitSubaccount  = "subaccount"  // another slice of the account: subaccount, stream, tenant, resource
	PermitSender      = "sender"      // envelope sender, return path domain
	PermitSuppression = "suppression" // suppression lists are not asked
	PermitTemplate    = "template"    // a stored template in place of the mail
	PermitNotify      = "notify"      // events are sent to an address of the mail's choice
	PermitExtra       = "esp-extra"   // members of the request itself
	// PermitReplace lets recipients that a header names stand in place of those of RCPT TO (SendGrid's to), where
	// PermitRecipients is given too. It is no part of "all": who gives that does not expect that a recipient is left out.
	PermitReplace = "replace-recipients"
)

// Permissions lists the classes, for the configuration. "all" stands for all of them but PermitReplace.
func Permissions() []string {
	return []string{PermitRecipients, PermitSubaccount, PermitSender, PermitSuppression, PermitTemplate, PermitNotify, PermitExtra, PermitReplace}
}

// Values of Settings.BadOptions.
const (
	BadOptionsWarn   = "warn"   // the header is ignored, and said as a loss
	BadOptionsReject = "reject" // the mail is refused with 5.6.0
)

// ExtraRcpts gives the recipients that permitted headers add. The caller makes them part of the envelope
// before the mail is answered for; Apply itself never adds anybody. Addresses that are not valid are left out and
// are a loss of the plan. Whether one of them is visible is decided like for every recipient: by
// To and Cc alone, so nobody is shown by an option. inPlace: they are meant in place of those of RCPT TO.
func ExtraRcpts(m *mime.Message, s Settings) (out []envelope.Rcpt, inPlace bool) {
	w := readWish(m.Header, s)
	seen := map[string]bool{}
	for _, x := range w.ExtraRcpts {
		if k := envelope.Fold(x.Addr); !seen[k] {
			seen[k] = true
			out = append(out, envelope.Rcpt{Addr: x.Addr})
		}
	}
	return out, w.inPlace
}

// feature is an option of one value: a capability or a loss. The table drives the planner, its tests and the documentation.
type feature struct {
	name string
	had  func(*Options) string // "" = not asked for
	drop func(*Options)
	can  func(*Capabilities) bool
}

func textFeature(name string, field func(*Options) *string, can func(*Capabilities) bool) feature {
	return feature{name, func(o *Options) string { return *field(o) }, func(o *Options) { *field(o) = "" }, can}
}

func switchFeature(name string, field func(*Options) *Switch, can func(*Capabilities) bool) feature {
	return feature{name, func(o *Options) string {
		if s := *field(o); s != Default {
			return s.String()
		}
		return ""
	}, func(o *Options) { *field(o) = Default }, can}
}

var features = []feature{
	textFeature("send window", func(o *Options) *string { return &o.SendWindow }, func(c *Capabilities) bool { return c.SendWindow }),
	textFeature("ip pool", func(o *Options) *string { return &o.IPPool }, func(c *Capabilities) bool { return c.IPPool }),
	textFeature("ip", func(o *Options) *string { return &o.IP }, func(c *Capabilities) bool { return c.IP }),
	textFeature("subaccount", func(o *Options) *string { return &o.Subaccount }, func(c *Capabilities) bool { return c.Subaccount }),
	textFeature("stream", func(o *Options) *string { return &o.Stream }, func(c *Capabilities) bool { return c.Stream }),
	textFeature("configuration set", func(o *Options) *string { return &o.ConfigSet }, func(c *Capabilities) bool { return c.ConfigSet }),
	textFeature("tenant", func(o *Options) *string { return &o.Tenant }, func(c *Capabilities) bool { return c.Tenant }),
	textFeature("return path domain", func(o *Options) *string { return &o.ReturnPathDomain }, func(c *Capabilities) bool { return c.ReturnPathDomain }),
	textFeature("unsubscribe group", func(o *Options) *string { return &o.UnsubGroup }, func(c *Capabilities) bool { return c.UnsubGroup }),
	textFeature("application's idempotency key", func(o *Options) *string { return &o.IdempotencyKey }, func(c *Capabilities) bool { return c.ClientKey }),
	textFeature("dkim domain", func(o *Options) *string { return &o.DKIMDomain }, func(c *Capabilities) bool { return c.DKIMDomain }),
	textFeature("tracking domain", func(o *Options) *string { return &o.TrackingDomain }, func(c *Capabilities) bool { return c.TrackingDomain }),
	switchFeature("transactional", func(o *Options) *Switch { return &o.Transactional }, func(c *Capabilities) bool { return c.Transactional }),
	switchFeature("generated text part", func(o *Options) *Switch { return &o.AutoText }, func(c *Capabilities) bool { return c.AutoText }),
	switchFeature("generated HTML part", func(o *Options) *Switch { return &o.AutoHTML }, func(c *Capabilities) bool { return c.AutoHTML }),
	switchFeature("inlined style sheets", func(o *Options) *Switch { return &o.InlineCSS }, func(c *Capabilities) bool { return c.InlineCSS }),
	switchFeature("view link", func(o *Options) *Switch { return &o.ViewLink }, func(c *Capabilities) bool { return c.ViewLink }),
	switchFeature("required TLS", func(o *Options) *Switch { return &o.RequireTLS }, func(c *Capabilities) bool { return c.RequireTLS }),
	{"expiry", func(o *Options) string {
		if o.ExpiresAt.IsZero() {
			return ""
		}
		return o.ExpiresAt.Format(time.RFC3339)
	}, func(o *Options) { o.ExpiresAt = time.Time{} }, func(c *Capabilities) bool { return c.ExpiresAt }},
	{"suppression lists not asked", func(o *Options) string {
		if o.SkipSuppression {
			return "yes"
		}
		return ""
	}, func(o *Options) { o.SkipSuppression = false }, func(c *Capabilities) bool { return c.SkipSuppression }},
	{"priority", func(o *Options) string {
		if o.Priority == NoLevel {
			return ""
		}
		return o.Priority.String()
	}, func(o *Options) { o.Priority = NoLevel }, func(c *Capabilities) bool { return c.Priority }},
	{"link analytics", func(o *Options) string {
		if len(o.Analytics) == 0 {
			return ""
		}
		return plural(len(o.Analytics), "value")
	}, func(o *Options) { o.Analytics = nil }, func(c *Capabilities) bool { return c.Analytics }},
}

// silentWhenOff are features that an ESP without them does not do anyway: asked to be off, nothing is lost.
func silentWhenOff(name, had string) bool {
	switch name {
	case "generated text part", "generated HTML part", "inlined style sheets", "view link", "required TLS":
		return had == Off.String()
	}
	return false
}

// asksStructured reports whether a mail asks for something that the structured form of this account can do, and
// its raw form cannot.
func (p *planner) asksStructured(w *wish) bool {
	c := &p.Caps
	if len(w.Tags) > 0 && c.Tags != 0 ||
		len(w.Metadata) > 0 && (c.Metadata || c.MetadataTags) ||
		w.ClientRef != "" && (c.ClientRef || c.Metadata || c.MetadataTags) ||
		w.Campaign != "" && (c.Campaign || c.Tags != 0) ||
		!w.SendAt.IsZero() && c.SendAt > 0 ||
		w.TrackOpens != Default && c.TrackOpens ||
		w.TrackClicks != Default && c.TrackClicks ||
		w.Sandbox && c.Sandbox {
		return true
	}
	for i := range features {
		if f := &features[i]; f.can(c) && f.had(&w.Options) != "" {
			return true
		}
	}
	return false
}

// options turns wishes into what this call carries.
func (p *planner) options(w *wish) error {
	c, o := &p.Caps, &p.base.Options
	p.common.add(w.losses...)
	can := p.features()

	tags, limit := w.Tags, c.Tags
	if w.Campaign != "" {
		if c.Campaign && can {
			o.Campaign = w.Campaign
		} else if !slices.Contains(tags, w.Campaign) {
			tags = append([]string{w.Campaign}, tags...)
		}
	}
	o.Tags = tags
	if !can {
		limit = 0
	}
	if limit >= 0 && len(tags) > limit {
		sent := ""
		if o.Tags = nil; limit > 0 {
			o.Tags = tags[:limit:limit]
			sent = fmt.Sprintf("first %d", limit)
		}
		p.lose(Minor, "tags", plural(len(tags), "tag"), sent)
	}
	meta := w.Metadata
	if w.ClientRef != "" {
		if c.ClientRef && can {
			o.ClientRef = w.ClientRef
		} else if _, taken := meta["client_ref"]; !taken {
			meta = map[string]string{"client_ref": w.ClientRef}
			for k, v := range w.Metadata {
				meta[k] = v
			}
		}
	}
	if len(meta) > 0 {
		if can && (c.Metadata || c.MetadataTags) {
			o.Metadata = meta
		} else {
			p.lose(Minor, "metadata", plural(len(meta), "entry"), "")
		}
	}
	p.tagLimits(o)
	o.SendAt = w.SendAt
	if can && !w.SendAt.IsZero() {
		p.base.schedule = c.SendAt
	}
	o.ExposeRcpts = w.ExposeRcpts
	p.tracking(w, can)
	if !w.any {
		return nil
	}
	return p.special(w, can)
}

// tagLimits cuts tags and metadata to what the API takes.
func (p *planner) tagLimits(o *Options) {
	fit := func(field, value string) string {
		if limit := p.Caps.TagMax; limit > 0 && len(value) > limit {
			short := trim(value, limit)
			p.lose(Minor, field, plural(len(value), "byte"), fmt.Sprintf("first %d", len(short)))
			return short
		}
		return value
	}
	for i, tag := range o.Tags {
		if short := fit("tag "+cut(tag, 80), tag); short != tag {
			o.Tags = slices.Clone(o.Tags)
			o.Tags[i] = short
		}
	}
	if len(o.Metadata) == 0 {
		return
	}
	meta := make(map[string]string, len(o.Metadata))
	for _, key := range slices.Sorted(maps.Keys(o.Metadata)) {
		field := "metadata " + cut(key, 80)
		if limit := p.Caps.MetadataKeyMax; limit > 0 && len(key) > limit {
			p.lose(Minor, field, "a key of "+plural(len(key), "byte"), "")
			continue
		}
		meta[key] = fit(field, o.Metadata[key])
	}
	o.Metadata = meta
}

// special is all that few mails ask for.
func (p *planner) special(w *wish, can bool) error {
	c, o := &p.Caps, &p.base.Options
	if w.ExpiresAt.IsZero() && w.expiresIn > 0 && !p.Envelope.Received.IsZero() {
		w.ExpiresAt = p.Envelope.Received.Add(w.expiresIn).UTC()
	}
	wanted := w.Options
	for i := range features {
		f := &features[i]
		had := f.had(&wanted)
		if had == "" {
			continue
		}
		if !can || !f.can(c) {
			if !silentWhenOff(f.name, had) {
				p.lose(Minor, f.name, cut(had, 80), "")
			}
			f.drop(&wanted)
		}
	}
	o.SendWindow, o.IPPool, o.IP, o.Subaccount, o.Stream = wanted.SendWindow, wanted.IPPool, wanted.IP, wanted.Subaccount, wanted.Stream
	o.ConfigSet, o.Tenant, o.ReturnPathDomain, o.UnsubGroup = wanted.ConfigSet, wanted.Tenant, wanted.ReturnPathDomain, wanted.UnsubGroup
	o.IdempotencyKey, o.DKIMDomain, o.TrackingDomain = wanted.IdempotencyKey, wanted.DKIMDomain, wanted.TrackingDomain
	o.Transactional, o.AutoText, o.AutoHTML, o.InlineCSS = wanted.Transactional, wanted.AutoText, wanted.AutoHTML, wanted.InlineCSS
	o.ViewLink, o.RequireTLS, o.ExpiresAt = wanted.ViewLink, wanted.RequireTLS, wanted.ExpiresAt
	o.SkipSuppression, o.Priority, o.Analytics = wanted.SkipSuppression, wanted.Priority, wanted.Analytics
	o.ExtraRcpts = w.ExtraRcpts

	for _, x := range w.ExtraRcpts {
		in := func(r envelope.Rcpt) bool { return envelope.Equal(r.Addr, x.Addr) }
		if !slices.ContainsFunc(p.Envelope.Rcpts, in) && !slices.ContainsFunc(p.Rcpts, in) {
			p.lose(Minor, "added recipient", cut(clean(x.Addr), 100), "")
		}
	}
	for _, r := range w.raws {
		if can && r.dialect == p.Settings.Provider && slices.Contains(c.OptionHeaders, r.key) {
			if o.Raw == nil {
				o.Raw = map[string]map[string]string{}
			}
			if o.Raw[r.dialect] == nil {
				o.Raw[r.dialect] = map[string]string{}
			}
			o.Raw[r.dialect][r.key] = r.value
			continue
		}
		if !r.quiet {
			p.lose(Minor, "option "+headerTitle(r.key), r.means, "")
		}
	}
	if w.Sandbox {
		if !c.Sandbox || !can {
			// Never a loss: a test mail would reach people.
			return &RefusalError{Status: "5.7.0", Text: "the mail asks for a sandbox, which the provider has not got; it is not sent, as it would reach its recipients. Send it without that header, or route it to an account with a sandbox"}
		}
		o.Sandbox = true
	}
	if err := p.extra(w); err != nil {
		return err
	}
	return p.merge(w)
}

// Permits reports whether the settings grant a class.
func (s Settings) Permits(class string) bool {
	return slices.Contains(s.Permissions, class) || class != PermitReplace && slices.Contains(s.Permissions, "all")
}

// cleanBlock is clean for a text that may have several lines.
func cleanBlock(s string) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	bad := func(r rune) bool { return isControl(r) && r != '\n' && r != '\t' }
	if strings.IndexFunc(s, bad) < 0 {
		return s
	}
	return strings.Map(func(r rune) rune {
		if bad(r) {
			return ' '
		}
		return r
	}, strings.ReplaceAll(s, "\r\n", "\n"))
}
