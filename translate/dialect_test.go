package translate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"smtpbridge/mime"
)

func show(o Options) string {
	var b strings.Builder
	if len(o.Tags) > 0 {
		fmt.Fprintf(&b, "tags=%s ", strings.Join(o.Tags, "|"))
	}
	for _, k := range slices.Sorted(maps.Keys(o.Metadata)) {
		fmt.Fprintf(&b, "%s=%s ", k, o.Metadata[k])
	}
	if o.TrackOpens != Default || o.TrackClicks != Default {
		fmt.Fprintf(&b, "opens=%s clicks=%s ", o.TrackOpens, o.TrackClicks)
	}
	if !o.SendAt.IsZero() {
		fmt.Fprintf(&b, "at=%s ", o.SendAt.Format(time.RFC3339))
	}
	return strings.TrimSpace(b.String())
}

func TestDialects(t *testing.T) {
	for _, c := range []struct {
		name   string
		fields []string
		want   string
		lost   int // losses above info
	}{
		{"own", []string{"X-Smtpbridge-Tag", "a, b", "x-smtpbridge-tag", `"b,c"`, "X-Smtpbridge-Metadata-orderID", "7", "X-Smtpbridge-Track", "opens", "X-Smtpbridge-Send-At", "2027-01-02T03:04:05+01:00"}, "tags=a|b|c orderID=7 opens=on clicks=off at=2027-01-02T02:04:05Z", 0},
		{"own, bad values", []string{"X-Smtpbridge-Track", "perhaps", "X-Smtpbridge-Send-At", "tomorrow", "X-Smtpbridge-Metadata-", "v", "X-Smtpbridge-Nonsense", "1"}, "", 4},
		{"own track off", []string{"X-Smtpbridge-Track", "off"}, "opens=off clicks=off", 0},
		{"mandrill", []string{"X-MC-Tags", "a,b", "X-MC-Tags", "c", "X-MC-Track", "opens", "X-MC-Metadata", `{"n":1,"s":"x","b":true}`, "X-MC-SendAt", "2027-01-02 03:04:05"}, "tags=a|b|c b=true n=1 s=x opens=on clicks=off at=2027-01-02T03:04:05Z", 0},
		{"mandrill none", []string{"X-MC-Track", "none"}, "opens=off clicks=off", 0},
		{"mandrill, what no call carries", []string{"X-MC-Template", "t", "X-MC-Subaccount", "s", "X-MC-Unheard-Of", "x"}, "", 3},
		{"postmark", []string{"X-PM-Tag", "a", "X-PM-Tag", "b", "X-PM-Metadata-OrderId", "7", "X-PM-TrackOpens", "true", "X-PM-TrackLinks", "HtmlOnly"}, "tags=a OrderId=7 opens=on clicks=on", 1},
		{"postmark links none", []string{"X-PM-Track-Links", "None"}, "opens=default clicks=off", 0},
		{"sendgrid", []string{"X-SMTPAPI", `{"category":["a","b"],"unique_args":{"k":"v"},"send_at":1800000000,"filters":{"opentrack":{"settings":{"enable":1}},"clicktrack":{"settings":{"enable":0}}}}`}, "tags=a|b k=v opens=on clicks=off at=2027-01-15T08:00:00Z", 0},
		{"sendgrid, one category and what no call carries", []string{"X-SMTPAPI", `{"category":"a","to":["x@example.com"]}`}, "tags=a", 1},
		{"sendgrid, bad JSON", []string{"X-SMTPAPI", `{"category":`}, "", 1},
		{"mailgun", []string{"X-Mailgun-Tag", "a,b", "X-Mailgun-Tag", "c", "X-Mailgun-Variables", `{"k":"v"}`, "X-Mailgun-Variables", `{"k":"w","l":null}`, "X-Mailgun-Track-Clicks", "htmlonly", "X-Mailgun-Track-Opens", "no", "X-Mailgun-Deliver-By", "Sat, 02 Jan 2027 03:04:05 +0000"}, "tags=a,b|c k=v opens=off clicks=on at=2027-01-02T03:04:05Z", 0},
		{"sparkpost", []string{"X-MSYS-API", `{"campaign_id":"c","tags":["a"],"metadata":{"k":{"x":[1, 2]}},"options":{"open_tracking":true,"click_tracking":false}}`}, `tags=c|a k={"x":[1,2]} opens=on clicks=off`, 0},
		{"mailjet", []string{"X-Mailjet-Campaign", "c", "X-MJ-CustomID", "id", "X-MJ-EventPayload", "free text", "X-Mailjet-TrackOpen", "0", "X-Mailjet-TrackClick", "1"}, "tags=c custom_id=id payload=free text opens=off clicks=on", 0},
		{"mailjet, 2 is of another API", []string{"X-Mailjet-TrackOpen", "2"}, "", 1},
		{"brevo", []string{"X-Mailin-Tag", "a", "X-Mailin-custom", "k1:v1|k2:v2", "X-Mailin-Key", "v", "X-SIB-API", `{"tags":["b"]}`}, "tags=a|b Key=v k1=v1 k2=v2", 0},
		{"amazonses", []string{"X-SES-MESSAGE-TAGS", "k=v, k2=v2", "X-SES-CONFIGURATION-SET", "s"}, "k=v k2=v2", 1},
		{"smtpeter", []string{"X-SMTPeter-Tags", "a,b", "x-smtpeter-trackopens", "true", "x-smtpeter-trackclicks", "false"}, "tags=a|b opens=on clicks=off", 0},
		{"maileroo", []string{"X-Tag-Order", "7", "X-Maileroo-Track", "yes", "X-Maileroo-Tags", `{"a":1}`}, "Order=7 a=1 opens=on clicks=on", 0},
		{"mailersend", []string{"X-MailerSend-Tags", `"tag 1, tag 2"`}, "tags=tag 1|tag 2", 0},
		{"mailpace", []string{"X-MailPace-Tags", "a, b", "X-OhMySMTP-Tags", "c"}, "tags=a|b|c", 0},
		{"mailtrap", []string{"X-MT-Category", "a", "X-MT-Custom-Variables", `{"k":"v"}`}, "tags=a k=v", 0},
		{"postal, last wins", []string{"X-Postal-Tag", "a", "X-Postal-Tag", "b", "X-AMP", "skip"}, "tags=b opens=off clicks=off", 1},
		{"unisendergo", []string{"X-UNISENDER-GO", `{"track_links":0,"track_read":1}`}, "opens=on clicks=off", 0},
		{"wooxy", []string{"X-Tags", `[\"a\",\"b\"]`}, "tags=a|b", 0},
		{"symfony", []string{"X-Tag", "a, b", "X-Metadata-Key", "v", "X-Track", "opens=true; clicks=default; x=y"}, "tags=a, b Key=v opens=on clicks=default", 0},
		{"X-Tag, X-Tag-Name and X-Tags are three things", []string{"X-Tag", "a", "X-Tag-n", "v", "X-Tags", `["b"]`}, "tags=b|a n=v", 0},
		{"a vendor's tracking goes before the framework's", []string{"X-Track", "opens=true", "X-MC-Track", "none"}, "opens=off clicks=off", 1},
		{"our own goes before all", []string{"X-PM-TrackOpens", "true", "X-Smtpbridge-Track", "off"}, "opens=off clicks=off", 1},
		{"ordinary headers are none", []string{"X-Entity-Ref-ID", "1", "X-Mailer", "m", "X-Priority", "1"}, "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o, losses := ReadOptions(message(c.fields...).Header, Settings{})
			if got := show(o); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if len(losses) != c.lost {
				t.Errorf("%d losses, want %d: %v", len(losses), c.lost, losses)
			}
		})
	}
}

func TestDialectOrderAndPermission(t *testing.T) {
	h := message("X-PM-TrackOpens", "false", "X-MC-Track", "opens", "X-Smtpbridge-Tag", "t").Header
	for _, c := range []struct {
		name string
		set  Settings
		want string
	}{
		{"by the tables", Settings{}, "tags=t opens=on clicks=off"},
		{"the account's provider first", Settings{Provider: "postmark"}, "tags=t opens=off clicks=off"},
		{"only one permitted", Settings{Dialects: []string{"postmark"}}, "opens=off clicks=default"},
		{"none permitted", Settings{Dialects: []string{}}, ""},
		{"all permitted", Settings{Dialects: []string{"all"}}, "tags=t opens=on clicks=off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if o, _ := ReadOptions(h, c.set); show(o) != c.want {
				t.Errorf("got %s, want %s", show(o), c.want)
			}
		})
	}
}

func TestDialectTables(t *testing.T) {
	seen := map[string]string{}
	for _, d := range dialects {
		for _, r := range d.rules {
			if r.header != strings.ToLower(r.header) || r.means == "" {
				t.Errorf("%s: bad row %+v", d.name, r)
			}
			if other, ok := seen[r.header]; ok {
				t.Errorf("%s: %s is in %s too", d.name, r.header, other)
			}
			seen[r.header] = d.name
			name := strings.Replace(r.header, "*", "anything", 1)
			if !IsOptionHeader(strings.ToUpper(name) + " ") {
				t.Errorf("%s is not stripped", name)
			}
		}
	}
	if got := len(Dialects()); got != len(dialects) {
		t.Errorf("%d names", got)
	}
}

func TestTrackingTogether(t *testing.T) {
	caps := Capabilities{TrackOpens: true, TrackClicks: true, TrackTogether: true}
	m := one(t, request(message("X-Smtpbridge-Track", "clicks"), caps))
	if m.Options.TrackOpens != On || m.Options.TrackClicks != On || !has(m.Losses, Minor, "tracking") {
		t.Errorf("got %v %v %v", m.Options.TrackOpens, m.Options.TrackClicks, m.Losses)
	}
	r := request(message(), Capabilities{TrackOpens: true})
	r.Settings.TrackOpens, r.Settings.TrackClicks = Off, Off
	m = one(t, r)
	if m.Options.TrackOpens != Off || m.Options.TrackClicks != Default || !has(m.Losses, Info, "tracking of clicks") {
		t.Errorf("account's setting: %v %v %v", m.Options.TrackOpens, m.Options.TrackClicks, m.Losses)
	}
}

func FuzzOptions(f *testing.F) {
	for _, d := range dialects {
		for _, r := range d.rules {
			f.Add(strings.Replace(r.header, "*", "Key", 1), `{"category":["a"],"tags":"x","metadata":{"k":[1,{}]},"filters":{}}`)
			f.Add(strings.Replace(r.header, "*", "", 1), "a=b; c:d|e, \"f\"\r\nBcc: x\x00\xff")
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		h := mime.Header{{Name: name, Value: value}, {Name: name, Value: value}}
		o, losses := ReadOptions(h, Settings{})
		check := func(s string) {
			if !utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0 {
				t.Errorf("control characters or no UTF-8 in %q", s)
			}
		}
		for _, s := range o.Tags {
			check(s)
			if strings.TrimSpace(s) == "" {
				t.Error("an empty tag")
			}
		}
		for k, v := range o.Metadata {
			check(k)
			check(v)
		}
		for _, l := range losses {
			check(l.Field + l.Had)
		}
		if again, _ := ReadOptions(h, Settings{}); show(again) != show(o) {
			t.Error("not deterministic")
		}
		if len(o.Tags)+len(o.Metadata)+len(losses) > 0 && !IsOptionHeader(name) {
			t.Errorf("%q is read, but not stripped", name)
		}
	})
}
