package translate

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// Members of a request that the bridge does not know are said by X-Smtpbridge-Extra-PROVIDER and merged into ours: objects member by
// member, lists by appending, of anything else theirs counts. Who sends, who receives and who is seen is never among them.

// locked are members, in any object of the request and in any spelling, that would change that.
var locked = strings.Fields(`key apikey token accesstoken from fromemail fromname sender replyto to cc bcc rcpt rcptto recipient
	recipients email emails address addresses bccaddress envelope envelopefrom mailfrom returnpath personalization personalizations mergevars
	recipientmetadata messages mime raw rawmessage preserverecipients headers extra dsn`)

var addressIn = regexp.MustCompile(`[^\s<>"',;:@]+@[^\s<>"',;:@]+`)

// extraJSON keeps an object for the provider that the name of the field ends in.
func extraJSON(w *wish, suffix, value string) error {
	provider := strings.ToLower(strings.TrimSpace(suffix))
	if provider == "" {
		return errors.New("no provider after the prefix")
	}
	o, err := mergeObject(value)
	if err != nil || !w.allowed(PermitExtra) {
		return err
	}
	if w.extra == nil {
		w.extra = map[string]map[string]any{}
	}
	if w.extra[provider] != nil {
		w.note("repeated")
		return nil
	}
	w.extra[provider] = o
	return nil
}

// extra settles what is merged into the request of this account.
func (p *planner) extra(w *wish) error {
	for _, provider := range slices.Sorted(maps.Keys(w.extra)) {
		title := headerTitle("x-smtpbridge-extra-" + provider)
		if provider != p.Settings.Provider || !p.Caps.Extra {
			p.lose(Minor, "option "+title, "members of the request", "")
			continue
		}
		o := w.extra[provider]
		if what := forbidden(o); what != "" {
			return &RefusalError{Status: "5.7.1", Text: fmt.Sprintf("the header %s has %s: who sends, who receives and who is seen is said by the envelope and the mail alone; leave it out", title, what)}
		}
		p.base.Options.Extra = o
	}
	return nil
}

// forbidden names the first thing that must not be merged, "" when there is none.
func forbidden(v any) string {
	switch v := v.(type) {
	case string:
		if a := addressIn.FindString(v); a != "" {
			return fmt.Sprintf("the address %q", cut(a, 80))
		}
	case []any:
		for _, x := range v {
			if what := forbidden(x); what != "" {
				return what
			}
		}
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			if slices.Contains(locked, strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(k))) {
				return fmt.Sprintf("the member %q", cut(k, 80))
			}
			if what := forbidden(k); what != "" {
				return what
			}
			if what := forbidden(v[k]); what != "" {
				return what
			}
		}
	}
	return ""
}
