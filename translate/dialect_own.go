package translate

import (
	"errors"
	"strings"
	"time"
)

// Names of the dialects with a fixed place in the order.
const (
	ownDialect       = "smtpbridge"
	frameworkDialect = "symfony"
)

var own = dialect{name: ownDialect, rules: []rule{
	{header: "x-smtpbridge-tag", means: "tags", repeat: merge, parse: tagList},
	{header: "x-smtpbridge-metadata-*", means: "metadata", repeat: merge, parse: metaSuffix},
	{header: "x-smtpbridge-track", means: "tracking", parse: ownTrack},
	{header: "x-smtpbridge-send-at", means: "send at", parse: sendAtLayout(time.RFC3339)},
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
	return errors.Join(w.setTrack(false, opens), w.setTrack(true, clicks))
}

// symfony is what Symfony and Laravel write on any transport (symfony/mailer, Header/TagHeader.php, MetadataHeader.php,
// TrackingHeader.php).
var symfony = dialect{name: frameworkDialect, rules: []rule{
	{header: "x-tag", means: "tags", repeat: merge, parse: oneTag},
	{header: "x-metadata-*", means: "metadata", repeat: merge, parse: metaSuffix},
	{header: "x-track", means: "tracking", parse: symfonyTrack},
}}

// symfonyTrack reads "opens=true; clicks=default". Parts it does not know are ignored, as the framework does.
func symfonyTrack(w *wish, _, value string) error {
	var errs []error
	for _, part := range strings.Split(value, ";") {
		key, v, ok := strings.Cut(part, "=")
		if !ok {
			continue
		}
		key, v = strings.ToLower(strings.TrimSpace(key)), strings.TrimSpace(v)
		if strings.EqualFold(v, "default") {
			continue
		}
		switch key {
		case "opens":
			errs = append(errs, trackOpens(w, "", v))
		case "clicks":
			errs = append(errs, trackClicks(w, "", v))
		}
	}
	return errors.Join(errs...)
}
