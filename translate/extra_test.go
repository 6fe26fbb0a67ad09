package translate

import (
	"fmt"
	"strings"
	"testing"
)

// TestExtra: members of a request are merged where that is permitted, for their own provider alone, and never any that says who
// sends, who receives or who is seen.
func TestExtra(t *testing.T) {
	for _, tt := range []struct {
		name, header, value string
		want                string
		loss, refused       string
	}{
		{name: "merged", value: `{"settings":{"track_content":false},"new_field":[1,"x"]}`, want: "map[new_field:[1 x] settings:map[track_content:false]]"},
		{name: "upper case", header: "X-SMTPBRIDGE-EXTRA-MAILERSEND", value: `{"a":1}`, want: "map[a:1]"},
		{name: "of another provider", header: "X-Smtpbridge-Extra-Mandrill", value: `{"to":[]}`, want: "map[]", loss: "option x-smtpbridge-extra-mandrill"},
		{name: "not JSON", value: `{"a":`, want: "map[]", loss: "option x-smtpbridge-extra-mailersend"},
		{name: "to", value: `{"to":[{"email":"x@example.net"}]}`, refused: `"to"`},
		{name: "bcc, deep", value: `{"message":{"opts":[{"Bcc":"x"}]}}`, refused: `"Bcc"`},
		{name: "another spelling", value: `{"Bcc-Address":"x"}`, refused: `"Bcc-Address"`},
		{name: "from", value: `{"from":{"email":"boss@example.com"}}`, refused: `"from"`},
		{name: "headers", value: `{"headers":[{"name":"Bcc","value":"x"}]}`, refused: `"headers"`},
		{name: "visible recipients", value: `{"message":{"preserve_recipients":true}}`, refused: `"preserve_recipients"`},
		{name: "an address somewhere", value: `{"copy_for":"Audit <x@example.net>"}`, refused: `"x@example.net"`},
		{name: "an address as a name", value: `{"x@example.net":1}`, refused: `"x@example.net"`},
		{name: "an address in a list", value: `{"a":[["x@[192.0.2.1]"]]}`, refused: "x@["},
		{name: "no address", value: `{"a":"user@","b":"@media print","c":"5 @ 3"}`, want: "map[a:user@ b:@media print c:5 @ 3]"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.header == "" {
				tt.header = "X-Smtpbridge-Extra-mailersend"
			}
			r := request(message(tt.header, tt.value), Capabilities{JSON: true, Extra: true})
			r.Settings.Provider, r.Settings.Permissions = "mailersend", []string{PermitExtra}
			if tt.refused != "" {
				if e := refusal(t, r); e.Status != "5.7.1" || !strings.Contains(e.Text, tt.refused) {
					t.Errorf("got %+v", e)
				}
				return
			}
			m := one(t, r)
			if got := fmt.Sprint(m.Options.Extra); got != tt.want || (tt.loss != "") != has(m.Losses, Minor, tt.loss) {
				t.Errorf("got %s, losses %v", got, m.Losses)
			}
			r.Settings.Permissions = []string{PermitTemplate, PermitRecipients}
			if m := one(t, r); m.Options.Extra != nil || !has(m.Losses, Minor, "option "+strings.ToLower(tt.header)) {
				t.Errorf("without permission: %v, %v", m.Options.Extra, m.Losses)
			}
			r.Settings.Permissions, r.Caps.Extra = []string{"all"}, false
			if m := one(t, r); m.Options.Extra != nil || !has(m.Losses, Minor, "option "+strings.ToLower(tt.header)) {
				t.Errorf("without the capability: %v, %v", m.Options.Extra, m.Losses)
			}
		})
	}
}
