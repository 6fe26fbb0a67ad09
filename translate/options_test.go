package translate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

func refusal(t *testing.T, r Request) *RefusalError {
	t.Helper()
	_, _, err := Apply(r)
	if err == nil {
		return &RefusalError{}
	}
	var refused *RefusalError
	if !errors.As(err, &refused) {
		t.Fatal(err)
	}
	return refused
}

func TestPermissions(t *testing.T) {
	for _, c := range []struct {
		class  string
		fields []string
		want   string
	}{
		{PermitTemplate, []string{"X-MC-Template", "t", "X-MC-MergeVars", `{"a":1}`}, `template=t block=main merge={"a":1}`},
		{PermitSubaccount, []string{"X-MC-Subaccount", "s"}, "subaccount=s"},
		{PermitSubaccount, []string{"X-PM-Message-Stream", "s"}, "stream=s"},
		{PermitSubaccount, []string{"X-SES-TENANT", "s"}, "tenant=s"},
		{PermitRecipients, []string{"X-MC-BccAddress", "x@example.com"}, "+bcc=x@example.com"},
		{PermitRecipients, []string{"X-MSYS-API", `{"cc":["x@example.com"]}`}, "+cc=x@example.com"},
		{PermitSender, []string{"X-Smtpbridge-Envelope-Sender", "b@example.com"}, "sender=b@example.com"},
		{PermitSender, []string{"X-MC-ReturnPathDomain", "r.example.com"}, "return-path-domain=r.example.com"},
		{PermitSuppression, []string{"X-MSYS-API", `{"options":{"skip_suppression":true}}`}, "suppression-lists-not-asked=yes"},
		{PermitNotify, []string{"X-Infobip-NotifyUrl", "https://example.com"}, "raw:x-infobip-notifyurl=https://example.com"},
	} {
		h := message(c.fields...).Header
		for _, tt := range []struct {
			name  string
			given []string
			want  string
		}{
			{"without", nil, ""},
			{"with others", slices.DeleteFunc(Permissions(), func(s string) bool { return s == c.class }), ""},
			{"with it", []string{c.class}, c.want},
			{"with all", []string{"all"}, c.want},
		} {
			o, losses := ReadOptions(h, Settings{Permissions: tt.given})
			if got := show(o); got != tt.want {
				t.Errorf("%v, %s: got %q, want %q", c.fields, tt.name, got, tt.want)
			}
			said := slices.ContainsFunc(losses, func(l Loss) bool {
				return l.Severity == Minor && strings.Contains(l.Had, "permission "+c.class)
			})
			if said != (tt.want == "") {
				t.Errorf("%v, %s: losses %v", c.fields, tt.name, losses)
			}
		}
	}
}

func TestBadOptions(t *testing.T) {
	r := request(message("X-Mailer", "m", "X-MC-Track", "perhaps", "X-PM-Tag", "t"), Capabilities{JSON: true, Tags: -1})
	m := one(t, r)
	if !has(m.Losses, Minor, "option x-mc-track") || !slices.Equal(m.Options.Tags, []string{"t"}) {
		t.Errorf("warn: %v %v", m.Losses, m.Options.Tags)
	}
	r.Settings.BadOptions = BadOptionsReject
	if e := refusal(t, r); e.Status != "5.6.0" || !strings.Contains(e.Text, "x-mc-track") {
		t.Errorf("reject: %+v", e)
	}
	r.Settings.Dialects = []string{"postmark"}
	if e := refusal(t, r); e.Status != "" {
		t.Errorf("a dialect that is not read refused the mail: %+v", e)
	}
	r = request(message("X-PM-Tag", "a", "X-PM-Tag", "b", "X-MC-Unheard-Of", "1", "X-MC-Subaccount", "s"), Capabilities{JSON: true})
	r.Settings.BadOptions = BadOptionsReject
	if e := refusal(t, r); e.Status != "" {
		t.Errorf("repeated, unknown and not permitted are not malformed: %+v", e)
	}
}

// TestExtraRcpts is P9: only a permitted header changes the set, and nobody is shown by it.
func TestExtraRcpts(t *testing.T) {
	m := message("X-MC-BccAddress", "audit@example.net", "X-MSYS-API", `{"archive":["audit@EXAMPLE.net","a@example.com"],"cc":["c@example.com"]}`)
	m.To = addrs("a@example.com")
	if got, _ := ExtraRcpts(m, Settings{}); got != nil {
		t.Errorf("without permission: %v", got)
	}
	set := Settings{Permissions: []string{PermitRecipients}}
	extra, inPlace := ExtraRcpts(m, set)
	want := rcpts("audit@example.net", "c@example.com", "a@example.com")
	if fmt.Sprint(extra) != fmt.Sprint(want) || inPlace {
		t.Fatalf("got %v, in place of RCPT TO: %t; want %v, false", extra, inPlace, want)
	}
	for name, caps := range map[string]Capabilities{
		"json":       {JSON: true, Cc: true, Bcc: true},
		"no bcc":     {JSON: true, NeedsTo: true},
		"raw":        {Raw: RawEnvelope},
		"bcc header": {Raw: RawBccHeader},
	} {
		r := request(m, caps, "a@example.com", "audit@example.net", "c@example.com")
		r.Settings = set
		mails, losses, err := Apply(r)
		if err != nil {
			t.Fatal(err)
		}
		if msg := checkPlan(r, mails, losses); msg != "" {
			t.Errorf("%s: %s", name, msg)
		}
		for _, x := range mails {
			for _, a := range slices.Concat(x.To, x.Cc) {
				if a.Addr != "a@example.com" && len(x.Rcpts) > 1 {
					t.Errorf("%s: %s is visible to others", name, a.Addr)
				}
			}
		}
		if has(losses, Minor, "added recipient") {
			t.Errorf("%s: %v", name, losses)
		}
		// A planner that has not asked ExtraRcpts adds nobody, and the plan says so.
		r.Rcpts, r.Envelope.Rcpts = rcpts("a@example.com"), rcpts("a@example.com")
		if _, losses, _ = Apply(r); !has(losses, Minor, "added recipient") {
			t.Errorf("%s: nobody was added, and nothing said: %v", name, losses)
		}
	}
	o, losses := ReadOptions(message("X-MC-BccAddress", "nobody").Header, set)
	if len(o.ExtraRcpts) > 0 || !has(losses, Minor, "option x-mc-bccaddress") {
		t.Errorf("an address that is none: %v %v", o.ExtraRcpts, losses)
	}
}

func TestSandboxIsNeverSent(t *testing.T) {
	m := message("X-Mailgun-Drop-Message", "yes")
	if e := refusal(t, request(m, Capabilities{JSON: true})); e.Status != "5.7.0" {
		t.Errorf("without a sandbox: %+v", e)
	}
	if e := refusal(t, request(m, Capabilities{Raw: RawEnvelope, JSON: false, Sandbox: true})); e.Status != "5.7.0" {
		t.Errorf("raw form without features: %+v", e)
	}
	if x := one(t, request(m, Capabilities{JSON: true, Raw: RawEnvelope, Sandbox: true})); !x.Options.Sandbox || x.UseRaw {
		t.Errorf("with a sandbox: %+v", x.Options)
	}
}

func TestTemplateAndMerge(t *testing.T) {
	all := []string{"all"}
	full := Capabilities{JSON: true, Raw: RawEnvelope, Cc: true, Bcc: true, Template: true, TemplateParts: []string{"block", "language"}, Merge: true, Batch: true}
	own := full
	own.Batch = false
	template := []string{"X-MC-Template", "t|b", "X-MC-MergeVars", `{"k":"all","g":1}`, "X-MC-MergeVars", `{"_rcpt":"a@example.com","k":"A"}`, "X-Smtpbridge-Template-Version", "2"}
	for _, c := range []struct {
		name     string
		fields   []string
		caps     Capabilities
		provider string
		refused  string
		want     []string // of each call
		losses   int
	}{
		{"no templates", template, Capabilities{JSON: true, Merge: true}, "", "5.6.3", nil, 0},
		{"no merge", template, Capabilities{JSON: true, Template: true}, "", "5.6.3", nil, 0},
		{"raw only", template, Capabilities{Raw: RawEnvelope, Template: true, Merge: true}, "", "5.6.3", nil, 0},
		{"one call for all", template, full, "", "", []string{`template=t block=b merge={"g":1,"k":"all"} merge-rcpt={"a@example.com":{"k":"A"}} expose=off`}, 1},
		{"one call each", template, own, "", "", []string{`template=t block=b merge={"g":1,"k":"A"} expose=off`, `template=t block=b merge={"g":1,"k":"all"} expose=off`}, 1},
		{"merge of the account's vendor in the body", template[2:6], full, "mandrill", "", []string{`merge={"g":1,"k":"all"} merge-rcpt={"a@example.com":{"k":"A"}} expose=off`}, 0},
		{"merge in a body for another vendor", []string{"X-MJ-Vars", `{"k":"v"}`}, full, "mandrill", "5.6.3", nil, 0},
		{"a body as template for another vendor", []string{"X-MJ-TemplateLanguage", "1"}, full, "mandrill", "5.6.3", nil, 0},
		{"our own merge data", []string{"X-Smtpbridge-Merge", `{"k":"v"}`}, full, "mandrill", "", []string{`merge={"k":"v"}`}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(message(c.fields...), c.caps, "a@example.com", "b@example.com")
			r.Settings.Permissions, r.Settings.Provider = all, c.provider
			mails, losses, err := Apply(r)
			if c.refused != "" {
				if e := refusal(t, r); e.Status != c.refused {
					t.Errorf("got %+v", e)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(mails) != len(c.want) {
				t.Fatalf("%d calls", len(mails))
			}
			for i, m := range mails {
				m.Options.EnvelopeFrom = ""
				if got := show(m.Options); got != c.want[i] {
					t.Errorf("call %d: got  %s\nwant %s", i, got, c.want[i])
				}
				if m.UseRaw || m.Options.ExposeRcpts == Off && (len(m.To) != len(m.Rcpts) || len(m.Bcc) > 0) {
					t.Errorf("call %d: raw %v, to %v, bcc %v", i, m.UseRaw, m.To, m.Bcc)
				}
			}
			n := 0
			for _, l := range losses {
				if l.Severity > Info {
					n++
				}
			}
			if n != c.losses {
				t.Errorf("losses %v", losses)
			}
		})
	}
}

// mailWith is a mail with a text, an HTML part and these fields.
func mailWith(t testing.TB, fields string) *mime.Message {
	t.Helper()
	return parse(t, []byte(strings.ReplaceAll(fields+`From: from@example.org
To: A <a@example.com>, b@example.com
Cc: c@example.com
Subject: Hello -name-, %recipient.first% *|FIRST|*
MIME-Version: 1.0
Content-Type: multipart/alternative; boundary=b

--b
Content-Type: text/plain

Dear -name-, %recipient.first% *|FIRST|* -s-.
--b
Content-Type: text/html

<p>Dear -name-, %recipient.first% *|FIRST|*</p>
--b--
`, "\n", "\r\n")))
}

func bodyText(t testing.TB, p *mime.Part) string {
	t.Helper()
	r := p.Open()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(b)) != p.Size {
		t.Errorf("size %d, read %d", p.Size, len(b))
	}
	return strings.TrimSpace(string(b))
}

func TestSubstitution(t *testing.T) {
	caps := Capabilities{JSON: true, Raw: RawEnvelope, Cc: true, Bcc: true, Metadata: true}
	for _, c := range []struct {
		name, fields string
		subject      []string
		text         []string
	}{
		{
			"sendgrid", `X-SMTPAPI: {"to":["a@example.com","b@example.com"],"sub":{"-name-":["Anna","Bo"],"-s-":["-sec-","plain"]},"section":{"-sec-":"Section"},"unique_args":{"who":"-name-"}}` + "\n",
			[]string{"Hello Anna, %recipient.first% *|FIRST|*", "Hello Bo, %recipient.first% *|FIRST|*"},
			[]string{"Dear Anna, %recipient.first% *|FIRST|* Section.", "Dear Bo, %recipient.first% *|FIRST|* plain."},
		},
		{
			"mailgun", `X-Mailgun-Recipient-Variables: {"a@example.com":{"first":"Anna"},"b@example.com":{"first":"Bo\r\nX: y"}}` + "\n",
			[]string{"Hello -name-, Anna *|FIRST|*", "Hello -name-, Bo X: y *|FIRST|*"},
			[]string{"Dear -name-, Anna *|FIRST|* -s-.", "Dear -name-, Bo\nX: y *|FIRST|* -s-."},
		},
		{
			"mandrill", "X-MC-MergeVars: {\"first\":\"all\"}\nX-MC-MergeVars: {\"_rcpt\":\"a@example.com\",\"first\":\"Anna\"}\nX-MC-MergeVars: {\"_rcpt\":\"b@example.com\",\"x\":1}\n",
			[]string{"Hello -name-, %recipient.first% Anna", "Hello -name-, %recipient.first% all"},
			[]string{"Dear -name-, %recipient.first% Anna -s-.", "Dear -name-, %recipient.first% all -s-."},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(mailWith(t, c.fields), caps, "a@example.com", "b@example.com")
			r.Settings.Provider, r.Settings.Permissions = "maileroo", []string{"all"}
			mails, _, err := Apply(r)
			if err != nil {
				t.Fatal(err)
			}
			if len(mails) != 2 {
				t.Fatalf("%d calls", len(mails))
			}
			for i, m := range mails {
				if m.UseRaw || m.Subject != c.subject[i] || bodyText(t, m.Msg.Text) != c.text[i] {
					t.Errorf("call %d: %q, %q", i, m.Subject, bodyText(t, m.Msg.Text))
				}
				if len(m.To) != 1 || len(m.Cc) != 0 || m.To[0].Addr != m.Rcpts[0].Addr {
					t.Errorf("call %d shows %v %v", i, m.To, m.Cc)
				}
				if h := bodyText(t, m.Msg.HTML); h != "<p>"+strings.TrimSuffix(c.text[i], c.text[i][strings.LastIndex(c.text[i], " "):])+"</p>" {
					t.Errorf("call %d: html %q", i, h)
				}
			}
			if c.name == "sendgrid" && mails[1].Options.Metadata["who"] != "Bo" {
				t.Errorf("metadata %v", mails[1].Options.Metadata)
			}
			r.Caps.JSON = false
			if e := refusal(t, r); e.Status != "5.6.3" {
				t.Errorf("raw only: %+v", e)
			}
			unused := *r.Message
			unused.Subject, unused.Text, unused.HTML = "Hello", mime.NewPart("nothing to replace"), nil
			original := r.Message
			r.Message = &unused
			if e := refusal(t, r); e.Status != "" {
				t.Errorf("raw only, data that stands nowhere: %+v", e)
			}
			r.Message = original
			r.Caps.JSON = true
			r.Rcpts = rcpts("a@example.com", "dummy@example.com")
			if e := refusal(t, r); c.name == "sendgrid" && (e.Status != "5.6.0" || len(e.Rcpts) != 1 || e.Rcpts[0].Addr != "dummy@example.com") {
				t.Errorf("a recipient without values: %+v", e)
			}
		})
	}
}

// TestOwnCopies is expose_rcpts = off: whatever the form, each recipient sees himself alone.
func TestOwnCopies(t *testing.T) {
	for name, caps := range map[string]Capabilities{
		"raw":        {Raw: RawEnvelope},
		"bcc header": {Raw: RawBccHeader},
		"json":       {JSON: true, Cc: true, Bcc: true},
		"header to":  {JSON: true, HeaderTo: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := request(mailWith(t, "X-MC-PreserveRecipients: false\n"), caps, "a@example.com", "c@example.com", "blind@example.com")
			mails, losses, err := Apply(r)
			if err != nil {
				t.Fatal(err)
			}
			if len(mails) != 3 {
				t.Fatalf("%d calls", len(mails))
			}
			for _, l := range losses {
				if l.Severity > Info {
					t.Errorf("loss %v", l)
				}
			}
			for i, m := range mails {
				if len(m.Rcpts) != 1 || len(m.To) != 1 || len(m.Cc)+len(m.Bcc) != 0 || m.To[0].Addr != m.Rcpts[0].Addr {
					t.Errorf("call %d: %v sees %v %v", i, m.Rcpts, m.To, m.Cc)
				}
				if !m.UseRaw {
					continue
				}
				b, err := m.Raw()
				if err != nil {
					t.Fatal(err)
				}
				raw := readBody(t, b)
				for _, a := range []string{"a@example.com", "b@example.com", "c@example.com", "blind@example.com"} {
					if bytes.Contains(raw, []byte(a)) != (a == m.Rcpts[0].Addr) {
						t.Errorf("call for %s: %s in\n%s", m.Rcpts[0].Addr, a, raw)
					}
				}
			}
		})
	}
}

// able has every option.
func able() Capabilities {
	return Capabilities{
		JSON: true, Cc: true, Bcc: true, ReplyTo: -1, Headers: HeadersAny, Tags: -1, Metadata: true, SendAt: 1000 * time.Hour, ListUnsub: true,
		EnvelopeFrom: true, Template: true, TemplateParts: []string{"version", "block", "language"}, Merge: true, Batch: true,
		TrackOpens: true, TrackClicks: true, ClickBodies: true, ClientRef: true, Campaign: true, ExpiresAt: true, SendWindow: true, IPPool: true, IP: true,
		Subaccount: true, Stream: true, ConfigSet: true, Tenant: true, ReturnPathDomain: true, Sandbox: true, UnsubGroup: true, SkipSuppression: true,
		Transactional: true, ClientKey: true, AutoText: true, AutoHTML: true, InlineCSS: true, ViewLink: true, Priority: true, DKIMDomain: true,
		TrackingDomain: true, RequireTLS: true, Analytics: true,
	}
}

// TestMatrix sends every case of every dialect to accounts that can do all, some and nothing: each wish is carried, or a
// loss, or a refusal, and no option header leaves in either form.
func TestMatrix(t *testing.T) {
	accounts := map[string]Capabilities{
		"all": able(), "nothing": {JSON: true}, "raw": {Raw: RawEnvelope}, "raw or all": func() Capabilities { c := able(); c.Raw = RawEnvelope; return c }(),
		"raw with features": func() Capabilities { c := able(); c.Raw, c.JSON, c.RawFeatures = RawEnvelope, false, true; return c }(),
		"tags":              {JSON: true, Tags: 5}, "metadata": {JSON: true, Metadata: true, TrackOpens: true, TrackClicks: true, TrackTogether: true},
	}
	for _, c := range dialectCases {
		msg := mailWith(t, func() string {
			var b strings.Builder
			for i := 0; i+1 < len(c.fields); i += 2 {
				fmt.Fprintf(&b, "%s: %s\n", c.fields[i], c.fields[i+1])
			}
			return b.String()
		}())
		for name, caps := range accounts {
			for _, provider := range []string{"", "mandrill", "mailjet"} {
				set := Settings{Permissions: []string{"all"}, Provider: provider}
				r := request(msg, caps, "a@example.com", "b@example.com")
				r.Settings, r.Envelope.Received = set, time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
				extra, _ := ExtraRcpts(msg, set)
				for _, x := range extra {
					if !slices.ContainsFunc(r.Rcpts, func(o envelope.Rcpt) bool { return envelope.Equal(o.Addr, x.Addr) }) {
						r.Rcpts = append(r.Rcpts, x)
					}
				}
				r.Envelope.Rcpts = r.Rcpts
				where := c.name + " to " + name + " of " + provider
				wanted, _ := ReadOptions(msg.Header, set)
				mails, losses, err := Apply(r)
				if err != nil {
					var refused *RefusalError
					if !errors.As(err, &refused) {
						t.Fatalf("%s: %v", where, err)
					}
					if wanted.Template.ID == "" && wanted.Merge.empty() && !wanted.Sandbox {
						t.Errorf("%s: refused: %s", where, err)
					}
					continue
				}
				for _, m := range mails {
					got := m.Options
					if wanted.ClientRef != "" && got.ClientRef == "" && got.Metadata["client_ref"] == "" && !has(losses, Minor, "metadata") {
						t.Errorf("%s: client_ref has gone: %v", where, losses)
					}
					if wanted.Campaign != "" && got.Campaign == "" && !slices.Contains(got.Tags, wanted.Campaign) && !has(losses, Minor, "tags") {
						t.Errorf("%s: campaign has gone: %v", where, losses)
					}
					for i := range features {
						f := &features[i]
						if had := f.had(&wanted); had != "" && f.had(&got) != had && !has(losses, Minor, f.name) && !silentWhenOff(f.name, had) {
							t.Errorf("%s: %s has gone: %v", where, f.name, losses)
						} else if f.had(&got) != "" && !f.can(&caps) {
							t.Errorf("%s: %s was not to be carried", where, f.name)
						}
					}
					for _, raw := range wanted.Raw {
						for key := range raw {
							if !strings.HasSuffix(key, "-keepid") && !strings.HasSuffix(key, "-msgid") && !has(losses, Minor, "option "+key) {
								t.Errorf("%s: %s has gone: %v", where, key, losses)
							}
						}
					}
					if wanted.ClicksIn != AnyBody && got.TrackClicks == On && got.ClicksIn == AnyBody && !has(losses, Minor, "tracking of clicks") {
						t.Errorf("%s: the kind of clicks has gone: %v", where, losses)
					}
					if !got.SendAt.Equal(wanted.SendAt) {
						t.Errorf("%s: send at %v", where, got.SendAt)
					}
					for _, h := range m.Headers {
						if IsOptionHeader(h.Name) {
							t.Errorf("%s: %s leaves", where, h.Name)
						}
					}
					if !m.UseRaw {
						continue
					}
					b, err := m.Raw()
					if err != nil {
						t.Fatal(err)
					}
					head, _, _ := bytes.Cut(readBody(t, b), []byte("\r\n\r\n"))
					for _, line := range strings.Split(string(head), "\r\n") {
						if n, _, _ := strings.Cut(line, ":"); IsOptionHeader(n) {
							t.Errorf("%s: %s leaves raw", where, n)
						}
					}
				}
			}
		}
	}
}

func TestRawOptionsOfTheVendor(t *testing.T) {
	caps := Capabilities{JSON: true, OptionHeaders: []string{"x-mc-urlstripqs", "x-smtpapi.batch_id"}}
	r := request(message("X-MC-URLStripQS", "yes", "X-SMTPAPI", `{"batch_id":"b"}`), caps)
	r.Settings.Provider = "mandrill"
	m := one(t, r)
	if m.Options.Raw["mandrill"]["x-mc-urlstripqs"] != "yes" || len(m.Options.Raw) != 1 || !has(m.Losses, Minor, "option x-smtpapi.batch_id") {
		t.Errorf("got %v, losses %v", m.Options.Raw, m.Losses)
	}
}

func TestRelativeExpiry(t *testing.T) {
	r := request(message("X-Mailgun-Deliver-Within", "2h"), Capabilities{JSON: true, ExpiresAt: true})
	r.Envelope.Received = time.Date(2026, 11, 1, 10, 0, 0, 0, time.UTC)
	if m := one(t, r); !m.Options.ExpiresAt.Equal(r.Envelope.Received.Add(2 * time.Hour)) {
		t.Errorf("got %v", m.Options.ExpiresAt)
	}
}

func TestHotPathMakesNoGarbage(t *testing.T) {
	h := message("Received", "x", "X-Mailer", "m", "X-Priority", "1", "DKIM-Signature", "v", "List-Unsubscribe", "x", "X-A-Name-That-Is-Longer-Than-Any-Name-Of-The-Tables-And-The-Buffer", "1").Header
	if n := testing.AllocsPerRun(100, func() {
		for i := range h {
			if lookup(h[i].Name) != nil {
				t.Fatal("an ordinary header")
			}
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestDialectsDoc keeps docs/dialects.md the same as the tables.
func TestDialectsDoc(t *testing.T) {
	var b bytes.Buffer
	b.WriteString(`# Option headers

Generated from the tables the bridge works with; ` + "`go test ./translate -update`" + ` rewrites it. What becomes of each header at each
ESP is in [dialect-matrix.md](dialect-matrix.md). Applications written for one vendor's SMTP
service drive it by these header fields. The bridge understands all of them, whatever the vendor of the account is, and none of
them leaves it. What an account cannot express is a loss, in the ` + "`sent`" + ` event and in ` + "`smtpbridge explain`" + `, with these exceptions:

* A stored template, merge data or placeholders that the account cannot fill in: the mail is refused (5.6.3), as it would go
  out with its placeholders. Literal placeholders (SendGrid's substitutions, Mailgun's ` + "`%recipient.key%`" + `, Mandrill's ` + "`*|KEY|*`" + `) are
  replaced by the bridge itself, one call for each recipient, in a text of at most 1 MiB.
* A sandbox that the account has not got: refused (5.7.0), as people would get a test mail.
* Client references become metadata (` + "`client_ref`" + `), campaigns a tag, where there is nothing better. Times to send at are kept by the bridge.

Order of right: ` + "`X-Smtpbridge-*`" + `, the dialect of the account's provider, the others as configured, the framework's (symfony) last.
Lists and maps merge; of single values the first wins. A malformed value takes its whole header out of account; with
` + "`bad_options = \"reject\"`" + ` it refuses the mail (5.6.0). "Kept for this vendor" means: no neutral concept; used when the account is of that vendor and its
provider can, else a loss.

What an API has and no header names can be said by ` + "`X-Smtpbridge-Extra-PROVIDER: {JSON}`" + `, for example
` + "`X-Smtpbridge-Extra-mailersend: {\"settings\": {\"track_content\": false}}`" + `: merged into the request (objects member by member, lists by
appending, else the mail's value counts), in each mail of a batch. Members that say who sends, who receives or who is seen (from, to, bcc, headers,
personalization and their like, in any spelling and at any depth) and texts with an address in them are refused (5.7.1). At
another provider it is a loss.

Header fields can come from form input or with forwarded mail. Rows with a permission count only where ` + "`permissions = [...]`" + ` of the
listener, of the user or of the route names it ("all": every one); otherwise they are a loss. An added recipient is one like those of RCPT
TO: routes, staging rules and ` + "`max_recipients`" + ` hold for it, it is in the queue before the 250, and nobody sees it.

At SendGrid the ` + "`to`" + ` of X-SMTPAPI stands in place of the recipients of RCPT TO: applications give a dummy there. Here everybody
named in either gets the mail, once, unless the permission ` + "`replace-recipients`" + ` is given beside ` + "`recipients`" + ` (it is no part of "all").
Then a recipient of RCPT TO that ` + "`to`" + ` does not name is left out: a ` + "`rejected`" + ` event says so, and no DSN mail is written about it.

` + "`dialects = [...]`" + ` of a listener, or of a user in place of his listener's, says which tables are read at all. In mail that is
taken from an ESP, and in the bridge's own, none is.
`)
	link := func(d *dialect) {
		fmt.Fprintf(&b, "\n## %s\n\n", d.name)
		if d.doc != "" {
			fmt.Fprintf(&b, "%s\n\n", d.doc)
		}
		b.WriteString("| Header | Value | Repeated | Means | Permission |\n|---|---|---|---|---|\n")
	}
	row := func(name, value, repeat, means, permit string, kept bool) {
		if kept {
			means += " (kept for this vendor)"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", name, value, repeat, means, permit)
	}
	var members func(path string, keys []key)
	members = func(path string, keys []key) {
		for _, k := range keys {
			if k.sub != nil {
				members(path+k.name+".", k.sub)
				continue
			}
			row(path+k.name, "", "", k.means, k.permit, k.parse == nil)
		}
	}
	for i := range dialects {
		d := &dialects[i]
		link(d)
		for _, r := range d.rules {
			name := strings.Replace(r.header, "*", "NAME", 1)
			keys := r.keys
			if r.header == "x-smtpapi" {
				keys = sendgridKeys
			}
			row(name, r.value, r.repeat.String(), r.means, r.permit, r.parse == nil && keys == nil && !r.quiet)
			members(name+": ", keys)
		}
	}
	name := filepath.Join("..", "docs", "dialects.md")
	if *update {
		if err := os.WriteFile(name, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b.Bytes()) {
		t.Errorf("docs/dialects.md is not what the tables say; go test ./translate -run DialectsDoc -update")
	}
}
