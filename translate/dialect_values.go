package translate

import (
	"errors"
	"fmt"
	"net/mail"
	"strings"
	"time"

	"smtpbridge/envelope"
)

// settle reports whether a scalar is still open, and closes it.
func (w *wish) settle(what string) bool {
	if w.used[what] {
		return false
	}
	if w.used == nil {
		w.used = map[string]bool{}
	}
	w.used[what] = true
	return true
}

const taken = "another header has said it already"

// once gives a scalar its value, unless another header of more right has given it one.
func once[T comparable](w *wish, what string, into *T, v T) {
	switch {
	case w.settle(what):
		*into = v
	case *into != v:
		w.note(what + ": " + taken)
	}
}

func (w *wish) addTag(t string) {
	if t = strings.TrimSpace(clean(t)); t != "" && !w.hasTag[t] {
		if w.hasTag == nil {
			w.hasTag = map[string]bool{}
		}
		w.hasTag[t] = true
		w.Tags = append(w.Tags, t)
	}
}

func (w *wish) addMeta(key, value string) {
	if key = strings.TrimSpace(clean(key)); key == "" {
		return
	}
	if w.Metadata == nil {
		w.Metadata = map[string]string{}
	}
	if _, ok := w.Metadata[key]; !ok {
		w.Metadata[key] = clean(value)
	}
}

func (w *wish) addAnalytics(key, value string) {
	if value = strings.TrimSpace(value); value == "" {
		return
	}
	if w.Analytics == nil {
		w.Analytics = map[string]string{}
	}
	if _, ok := w.Analytics[key]; !ok {
		w.Analytics[key] = value
	}
}

// addRcpt adds a recipient, if that is permitted. An address that is none is malformed.
func (w *wish) addRcpt(kind, addr string) error {
	addr, err := bareAddress(addr)
	if err != nil {
		return err
	}
	if w.allowed(PermitRecipients) {
		w.ExtraRcpts = append(w.ExtraRcpts, ExtraRcpt{kind, addr})
	}
	return nil
}

// bareAddress takes the address out of "Name <address>".
func bareAddress(s string) (string, error) {
	s = strings.TrimSpace(s)
	if strings.HasSuffix(s, ">") {
		a, err := mail.ParseAddress(s)
		if err != nil {
			return "", errors.New("not an address")
		}
		s = a.Address
	}
	if err := envelope.ValidateAddr(s); err != nil {
		return "", err
	}
	return s, nil
}

// setTrack settles one kind of tracking; Default says nothing and leaves it open.
func (w *wish) setTrack(clicks bool, s Switch) {
	switch {
	case s == Default:
	case clicks:
		once(w, "track.clicks", &w.TrackClicks, s)
	default:
		once(w, "track.opens", &w.TrackOpens, s)
	}
}

// setClicks also says in which body.
func (w *wish) setClicks(s Switch, in BodyKind) {
	open := !w.used["track.clicks"]
	w.setTrack(true, s)
	if open && s == On {
		w.ClicksIn = in
	}
}

func (w *wish) setSendAt(t time.Time) { once(w, "send_at", &w.SendAt, t.UTC()) }

func (w *wish) setTemplate(id string) {
	if id = strings.TrimSpace(id); id == "" {
		return
	}
	if !w.allowed(PermitTemplate) {
		w.noTemplate = true
		return
	}
	once(w, "template", &w.Template.ID, id)
}

// parseBool reads the spellings that vendors document.
func parseBool(v string) (Switch, error) {
	switch strings.ToLower(strings.TrimSpace(unquote(v))) {
	case "true", "yes", "y", "on", "1", "enabled":
		return On, nil
	case "false", "no", "n", "off", "0", "none", "disabled":
		return Off, nil
	}
	return Default, errors.New("not a yes or no")
}

// unquote strips one pair of outer quotes.
func unquote(v string) string {
	v = strings.TrimSpace(v)
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		return v[1 : len(v)-1]
	}
	return v
}

// Parsers of values that several dialects share.

func tagList(w *wish, _, value string) error {
	for _, t := range strings.Split(unquote(value), ",") {
		w.addTag(t)
	}
	return nil
}

func oneTag(w *wish, _, value string) error {
	w.addTag(value)
	return nil
}

func metaSuffix(w *wish, suffix, value string) error {
	if strings.TrimSpace(suffix) == "" {
		return errors.New("no key after the prefix")
	}
	w.addMeta(suffix, value)
	return nil
}

// metaKey puts the value under a fixed key.
func metaKey(key string) parser {
	return func(w *wish, _, value string) error {
		w.addMeta(key, value)
		return nil
	}
}

// oneText settles a text.
func oneText(what string, field func(*Options) *string) parser {
	return guarded("", what, field)
}

// guarded settles a text that needs a permission.
func guarded(class, what string, field func(*Options) *string) parser {
	return func(w *wish, _, value string) error {
		value = strings.TrimSpace(value)
		if value == "" || class != "" && !w.allowed(class) {
			return nil
		}
		once(w, what, field(&w.Options), value)
		return nil
	}
}

// toggle settles a yes or no.
func toggle(what string, field func(*Options) *Switch) parser {
	return func(w *wish, _, value string) error {
		s, err := parseBool(value)
		if err != nil {
			return err
		}
		once(w, what, field(&w.Options), s)
		return nil
	}
}

var (
	campaign      = oneText("campaign", func(o *Options) *string { return &o.Campaign })
	clientRef     = oneText("client_ref", func(o *Options) *string { return &o.ClientRef })
	ipPool        = oneText("ip_pool", func(o *Options) *string { return &o.IPPool })
	ip            = oneText("ip", func(o *Options) *string { return &o.IP })
	configSet     = oneText("config_set", func(o *Options) *string { return &o.ConfigSet })
	unsubGroup    = oneText("unsub_group", func(o *Options) *string { return &o.UnsubGroup })
	idempotency   = oneText("idempotency_key", func(o *Options) *string { return &o.IdempotencyKey })
	sendWindow    = oneText("send_window", func(o *Options) *string { return &o.SendWindow })
	dkimDomain    = oneText("dkim_domain", func(o *Options) *string { return &o.DKIMDomain })
	trackDomain   = oneText("tracking_domain", func(o *Options) *string { return &o.TrackingDomain })
	language      = oneText("template.language", func(o *Options) *string { return &o.Template.Language })
	version       = oneText("template.version", func(o *Options) *string { return &o.Template.Version })
	subaccount    = guarded(PermitSubaccount, "subaccount", func(o *Options) *string { return &o.Subaccount })
	stream        = guarded(PermitSubaccount, "stream", func(o *Options) *string { return &o.Stream })
	tenant        = guarded(PermitSubaccount, "tenant", func(o *Options) *string { return &o.Tenant })
	returnDomain  = guarded(PermitSender, "return_path_domain", func(o *Options) *string { return &o.ReturnPathDomain })
	autoText      = toggle("autotext", func(o *Options) *Switch { return &o.AutoText })
	autoHTML      = toggle("autohtml", func(o *Options) *Switch { return &o.AutoHTML })
	inlineCSS     = toggle("inline_css", func(o *Options) *Switch { return &o.InlineCSS })
	viewLink      = toggle("view_link", func(o *Options) *Switch { return &o.ViewLink })
	requireTLS    = toggle("require_tls", func(o *Options) *Switch { return &o.RequireTLS })
	transactional = toggle("transactional", func(o *Options) *Switch { return &o.Transactional })
	exposeRcpts   = toggle("expose_rcpts", func(o *Options) *Switch { return &o.ExposeRcpts })
)

func templateID(w *wish, _, value string) error {
	w.setTemplate(value)
	return nil
}

func trackOpens(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	w.setTrack(false, s)
	return nil
}

// trackClicks also takes the restriction to one kind of body.
func trackClicks(w *wish, _, value string) error {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "htmlonly", "html":
		w.setClicks(On, HTMLBody)
		return nil
	case "textonly", "text":
		w.setClicks(On, TextBody)
		return nil
	case "htmlandtext":
		w.setClicks(On, AnyBody)
		return nil
	}
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	w.setClicks(s, AnyBody)
	return nil
}

// trackBoth is one switch for both kinds. Where a specific header has spoken, it is silent.
func trackBoth(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	if !w.used["track.opens"] {
		w.setTrack(false, s)
	}
	if !w.used["track.clicks"] {
		w.setClicks(s, AnyBody)
	}
	return nil
}

func sandboxBool(w *wish, _, value string) error {
	s, err := parseBool(value)
	w.Sandbox = w.Sandbox || s == On
	return err
}

func priorityBool(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	if s == On {
		once(w, "priority", &w.Priority, High)
	}
	return nil
}

func skipSuppression(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	if s == On && w.allowed(PermitSuppression) {
		w.SkipSuppression = true
	}
	return nil
}

func extraBcc(w *wish, _, value string) error { return w.addRcpt("bcc", value) }

// timeLayouts reads an instant in one of several layouts; without a zone it is UTC.
func timeLayouts(layouts ...string) func(string) (time.Time, error) {
	return func(value string) (time.Time, error) {
		for _, l := range layouts {
			if t, err := time.Parse(l, strings.TrimSpace(unquote(value))); err == nil && t.Year() > 1970 {
				return t, nil
			}
		}
		return time.Time{}, fmt.Errorf("not a time of the form %s", layouts[0])
	}
}

func sendAtLayout(layouts ...string) parser {
	read := timeLayouts(layouts...)
	return func(w *wish, _, value string) error {
		t, err := read(value)
		if err != nil {
			return err
		}
		w.setSendAt(t)
		return nil
	}
}

// expiresWithin reads a duration, counted from the acceptance of the mail.
func expiresWithin(least, most time.Duration) parser {
	return func(w *wish, _, value string) error {
		d, err := time.ParseDuration(strings.TrimSpace(value))
		if err != nil || d < least || d > most {
			return fmt.Errorf("not a duration from %s to %s", least, most)
		}
		once(w, "expires_at", &w.expiresIn, d)
		return nil
	}
}
