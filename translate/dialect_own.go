package translate

import (
	"errors"
	"strings"
	"time"

	"smtpbridge/envelope"
)

// Names of the dialects with a fixed place in the order.
const (
	ownDialect       = "smtpbridge"
	frameworkDialect = "symfony"
)

var own = dialect{ownDialect, "", []rule{
	{header: "x-smtpbridge-tag", value: "comma list", means: "tags", repeat: merge, parse: tagList},
	{header: "x-smtpbridge-metadata-*", value: "text; the key is the rest of the name", means: "metadata", repeat: merge, parse: metaSuffix},
	{header: "x-smtpbridge-client-ref", value: "text", means: "client_ref", parse: clientRef},
	{header: "x-smtpbridge-campaign", value: "text", means: "campaign", parse: campaign},
	{header: "x-smtpbridge-track", value: "comma list of opens, clicks, both, off; what is not named is off", means: "track.*", parse: ownTrack},
	{header: "x-smtpbridge-send-at", value: "RFC 3339", means: "send_at", parse: sendAtLayout(time.RFC3339)},
	{header: "x-smtpbridge-expires-at", value: "RFC 3339", means: "expires_at", parse: expiresAtLayout(time.RFC3339)},
	{header: "x-smtpbridge-template", value: "id", means: "template.id", permit: PermitTemplate, parse: templateID},
	{header: "x-smtpbridge-template-version", value: "text", means: "template.version", parse: version},
	{header: "x-smtpbridge-template-block", value: "text", means: "template.block", parse: oneText("template.block", func(o *Options) *string { return &o.Template.Block })},
	{header: "x-smtpbridge-template-language", value: "text", means: "template.language", parse: language},
	{header: "x-smtpbridge-merge", value: "JSON object", means: "merge.global", repeat: merge, parse: mergeJSON},
	{header: "x-smtpbridge-merge-recipients", value: "JSON object {address: {name: value}}", means: "merge.rcpt", repeat: merge, parse: mergeRcptJSON},
	{header: "x-smtpbridge-bcc", value: "address", means: "extra_rcpt bcc", permit: PermitRecipients, repeat: merge, parse: extraBcc},
	{header: "x-smtpbridge-batch", value: "yes or no; yes: each recipient has a copy of his own", means: "expose_rcpts", parse: ownBatch},
	{header: "x-smtpbridge-ip-pool", value: "text", means: "ip_pool", parse: ipPool},
	{header: "x-smtpbridge-subaccount", value: "text", means: "subaccount", permit: PermitSubaccount, parse: subaccount},
	{header: "x-smtpbridge-stream", value: "text", means: "stream", permit: PermitSubaccount, parse: stream},
	{header: "x-smtpbridge-tenant", value: "text", means: "tenant", permit: PermitSubaccount, parse: tenant},
	{header: "x-smtpbridge-envelope-sender", value: "address", means: "envelope_sender", permit: PermitSender, parse: ownSender},
	{header: "x-smtpbridge-return-path-domain", value: "domain", means: "return_path_domain", permit: PermitSender, parse: returnDomain},
	{header: "x-smtpbridge-skip-suppression", value: "yes or no", means: "skip_suppression", permit: PermitSuppression, parse: skipSuppression},
	{header: "x-smtpbridge-unsubscribe-group", value: "text", means: "unsub_group", parse: unsubGroup},
	{header: "x-smtpbridge-sandbox", value: "yes or no", means: "sandbox", parse: sandboxBool},
	{header: "x-smtpbridge-idempotency-key", value: "text", means: "idempotency_key", parse: idempotency},
	{header: "x-smtpbridge-priority", value: "low, normal or high", means: "priority", parse: ownPriority},
	{header: "x-smtpbridge-auto-text", value: "yes or no", means: "autotext", parse: autoText},
	{header: "x-smtpbridge-inline-css", value: "yes or no", means: "inline_css", parse: inlineCSS},
	{header: "x-smtpbridge-extra-*", value: "JSON object; the rest of the name is the provider", means: "members of the request to that provider, merged into ours", permit: PermitExtra, repeat: merge, parse: extraJSON},
	{header: "x-smtpbridge-*", means: "an unknown option"},
}}

// ownTrack says both kinds at once: what is not named is off.
func ownTrack(w *wish, _, value string) error {
	opens, clicks := Off, Off
	for _, v := range strings.Split(unquote(value), ",") {
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "opens":
			opens = On
		case "clicks":
			clicks = On
		case "both":
			opens, clicks = On, On
		case "off", "none":
		default:
			return errors.New("not opens, clicks, both or off")
		}
	}
	w.setTrack(false, opens)
	w.setClicks(clicks, AnyBody)
	return nil
}

func ownBatch(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	once(w, "expose_rcpts", &w.ExposeRcpts, [...]Switch{On: Off, Off: On}[s])
	return nil
}

func ownSender(w *wish, _, value string) error {
	addr, err := bareAddress(value)
	if err != nil {
		return err
	}
	if w.allowed(PermitSender) {
		once(w, "envelope_sender", &w.EnvelopeFrom, addr)
	}
	return nil
}

func ownPriority(w *wish, _, value string) error {
	for l := Low; l <= High; l++ {
		if strings.EqualFold(strings.TrimSpace(value), l.String()) {
			once(w, "priority", &w.Priority, l)
			return nil
		}
	}
	return errors.New("not low, normal or high")
}

func expiresAtLayout(layouts ...string) parser {
	read := timeLayouts(layouts...)
	return func(w *wish, _, value string) error {
		t, err := read(value)
		if err != nil {
			return err
		}
		once(w, "expires_at", &w.ExpiresAt, t.UTC())
		return nil
	}
}

// validDomainName keeps what goes into a host name field of an API to that.
func validDomainName(value string) error { return envelope.ValidateAddr("x@" + value) }

// symfony is what Symfony and Laravel write on any transport.
var symfony = dialect{frameworkDialect, "https://github.com/symfony/symfony/tree/7.4/src/Symfony/Component/Mailer/Header", []rule{
	{header: "x-tag", value: "one tag", means: "tags", repeat: merge, parse: oneTag},
	{header: "x-metadata-*", value: "text; the key is the rest of the name", means: "metadata", repeat: merge, parse: metaSuffix},
	{header: "x-track", value: "`opens=true; clicks=default`", means: "track.*", parse: symfonyTrack},
}}

// symfonyTrack reads "opens=true; clicks=default". Parts it does not know are ignored, as the framework does.
func symfonyTrack(w *wish, _, value string) error {
	for _, part := range strings.Split(value, ";") {
		key, v, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		key, v = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(v)
		if strings.EqualFold(v, "default") {
			continue
		}
		var err error
		switch key {
		case "opens":
			err = trackOpens(w, "", v)
		case "clicks":
			err = trackClicks(w, "", v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
