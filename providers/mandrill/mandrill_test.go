package mandrill

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/mandrill/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var forms = []string{"raw", "json"}

// fixture reads one answer of the vendor.
func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "errors", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// asked are the recipients of a request.
func asked(c *providertest.Call) []string {
	var q struct {
		To      []string
		Message struct{ To []struct{ Email string } }
	}
	if json.Unmarshal(c.Body, &q) != nil {
		return nil
	}
	for _, r := range q.Message.To {
		q.To = append(q.To, r.Email)
	}
	return q.To
}

// answers is a 200 with one entry per recipient asked for, in the opposite order and in capitals.
func answers(entry func(i int) string) func(c *providertest.Call) string {
	return func(c *providertest.Call) string {
		var list []string
		for i, a := range asked(c) {
			list = append(list, fmt.Sprintf(`{"email":%q,"_id":"id%d",%s}`, strings.ToUpper(a), i, entry(i)))
		}
		slices.Reverse(list)
		return "[" + strings.Join(list, ",") + "]"
	}
}

func status(s string) func(int) string {
	return func(int) string { return `"status":"` + s + `","reject_reason":null,"queued_reason":null` }
}

func suite(t testing.TB, form string) providertest.Suite {
	e := func(file string, kind providers.Kind) providertest.Answer {
		a := providertest.Answer{Name: file, Body: fixture(t, file), Kind: kind}
		if _, err := fmt.Sscanf(file, "%d-", &a.Status); err != nil {
			t.Fatal(err)
		}
		return a
	}
	unlisted := func(status int, body string) providertest.Answer {
		return providertest.Answer{Name: fmt.Sprintf("%d unlisted", status), Status: status, Body: body, Kind: providers.Transient, Unlisted: true}
	}
	refused := func(reason, want string) providertest.Answer {
		return providertest.Answer{
			Name: reason, Verdicts: []providers.Verdict{providers.Rejected}, Reasons: []string{want},
			Reply: answers(func(int) string { return `"status":"rejected","reject_reason":"` + reason + `"` }),
		}
	}
	ours := func(reason string, scope providers.Scope) providertest.Answer {
		a := refused(reason, "")
		a.Verdicts, a.Reasons, a.Kind, a.Scope, a.Code = nil, nil, providers.Operator, scope, reason
		return a
	}
	domain := providers.ScopeDomain
	return providertest.Suite{
		Info: Info,
		Options: func(_ testing.TB, o *providers.Options) {
			if o.Decode == nil {
				o.Decode = providertest.Decode(`form = "` + form + `"`)
			}
		},
		Success: []providertest.Answer{
			{Name: "sent", Reply: answers(status("sent")), MessageID: "id0"},
			{Name: "queued", Reply: answers(status("queued"))},
			{Name: "scheduled", Reply: answers(status("scheduled"))},
			{Name: "status of times to come", Reply: answers(status("novel"))},
			refused("hard-bounce", event.ReasonBounced),
			refused("soft-bounce", event.ReasonBounced),
			refused("soft_bounce", event.ReasonBounced),
			refused("spam", event.ReasonSpam),
			refused("unsub", event.ReasonUnsubscribed),
			refused("custom", event.ReasonBlocked),
			refused("rule", event.ReasonBlocked),
			refused("invalid", event.ReasonInvalid),
			refused("novel", event.ReasonOther),
			{Name: "invalid, no id", Verdicts: []providers.Verdict{providers.Rejected}, Reasons: []string{event.ReasonInvalid}, Body: `[{"email":"r0@example.org","status":"invalid"}]`},
			{
				Name: "one of each", Verdicts: []providers.Verdict{providers.Accepted, providers.Rejected, providers.Deferred, providers.Deferred},
				Body: `[{"email":"r2@example.org","status":"rejected","reject_reason":"unsigned"},{"email":"R1@Example.org","status":"rejected","reject_reason":"spam","_id":"b"},{"email":"r0@example.org","status":"sent","_id":"a"}]`,
			},
		},
		Errors: []providertest.Answer{
			ours("unsigned", domain), ours("invalid-sender", domain), ours("test-mode-limit", providers.ScopeAccount),
			e("401-invalid-key.json", providers.Operator),
			e("500-invalid-key-old.json", providers.Operator),
			e("402-payment.json", providers.Operator),
			e("404-subaccount.json", providers.Operator),
			e("404-template.json", providers.Operator),
			e("422-validation.json", providers.Permanent),
			e("500-validation.json", providers.Permanent),
			e("500-validation-to.json", providers.Permanent),
			e("500-validation-no-key.json", providers.Operator),
			e("500-validation-setting.json", providers.Operator),
			e("429-limit.json", providers.RateLimited),
			e("503-unavailable.json", providers.Transient),
			e("500-reputation.json", providers.Operator),
			e("500-general.json", providers.Transient),
			unlisted(400, "<html>Bad Request</html>"),
			unlisted(422, `{"status":"error","code":-99,"name":"NovelError","message":"x"}`),
			{Name: "500 of times to come", Status: 500, Body: `{"status":"error","code":-99,"name":"NovelError","message":"x"}`, Kind: providers.Transient},
			{Name: "200 for nobody", Body: "[]", Kind: providers.Ambiguous},
			{Name: "200 without a status", Body: `[{"email":"r0@example.org","_id":"a"}]`, Kind: providers.Ambiguous},
			{Name: "200 with an error", Body: fixture(t, "500-general.json"), Kind: providers.Ambiguous},
		},
		Read:     read,
		Twin:     func(testing.TB) http.Handler { return twin.New(twin.Options{Key: providertest.Key}).Handler() },
		Webhooks: "testdata/webhook",
		Sign: func(_ testing.TB, r *http.Request, body []byte, s providertest.FixtureSecret, _ time.Time) {
			r.Header.Set("X-Mandrill-Signature", twin.Signature(s.Value, r.URL.String(), body))
		},
		Ignore: map[string]string{
			"anymail-head-request/": "HEAD goes to WebhookGet: TestURLCheck",
		},
	}
}

func TestConformance(t *testing.T) {
	for _, form := range forms {
		t.Run(form, func(t *testing.T) { providertest.Run(t, suite(t, form)) })
	}
}

// read decodes a request of either form.
func read(t testing.TB, c *providertest.Call) providertest.Sent {
	t.Helper()
	var q struct {
		Key        string
		To         []string
		SendAt     string  `json:"send_at"`
		RawMessage *string `json:"raw_message"`
		FromEmail  string  `json:"from_email"`
		Message    *struct {
			FromEmail          string `json:"from_email"`
			FromName           string `json:"from_name"`
			To                 []struct{ Email, Name, Type string }
			Subject, Text      string
			HTML               string
			Headers            map[string]string
			Attachments        []struct{ Type, Name, Content string }
			Images             []struct{ Type, Name, Content string }
			PreserveRecipients bool `json:"preserve_recipients"`
			Merge, AutoText    *bool
			Tags               []string
			Metadata           map[string]string
		}
	}
	c.JSON(t, &q)
	if q.Key != providertest.Key || c.Header.Get("Authorization") != "" || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("key or headers of the request: %v", c.Header)
	}
	var out providertest.Sent
	var err error
	if q.SendAt != "" {
		if out.SendAt, err = time.Parse(time.DateTime, q.SendAt); err != nil {
			t.Error(err)
		}
	}
	if q.RawMessage != nil {
		if c.URL.Path != "/api/1.0/messages/send-raw.json" || q.FromEmail != "" || q.Message != nil {
			t.Errorf("path %s, from_email %q", c.URL.Path, q.FromEmail)
		}
		out.Rcpts, out.Raw = q.To, []byte(*q.RawMessage)
		msg, err := mail.ReadMessage(strings.NewReader(*q.RawMessage))
		if err != nil {
			t.Fatal(err)
		}
		if msg.Header.Get("X-MC-PreserveRecipients") != "true" || msg.Header.Get("X-MC-Autotext") != "false" || msg.Header.Get("Bcc") != "" {
			t.Errorf("header of the document: %v", msg.Header)
		}
		if tags := msg.Header.Get("X-MC-Tags"); tags != "" {
			out.Tags = strings.Split(tags, ",")
		}
		if err := json.Unmarshal([]byte(msg.Header.Get("X-MC-Metadata")), &out.Metadata); err != nil {
			t.Errorf("X-MC-Metadata: %v", err)
		}
		return out
	}
	g := q.Message
	if g == nil || c.URL.Path != "/api/1.0/messages/send.json" || !g.PreserveRecipients {
		t.Fatalf("path %s, message %+v", c.URL.Path, g)
	}
	out.From, out.FromName, out.Subject, out.Text, out.HTML = g.FromEmail, g.FromName, g.Subject, g.Text, g.HTML
	out.Tags, out.Metadata, out.Headers = g.Tags, g.Metadata, map[string][]string{}
	for _, r := range g.To {
		list := map[string]*[]string{"to": &out.To, "cc": &out.Cc, "bcc": &out.Bcc}[r.Type]
		*list = append(*list, r.Email)
	}
	for k, v := range g.Headers {
		if k != "Reply-To" {
			out.Headers[k] = []string{v}
			continue
		}
		list, err := mail.ParseAddressList(v)
		if err != nil {
			t.Errorf("Reply-To %q: %v", v, err)
		}
		for _, a := range list {
			out.ReplyTo = append(out.ReplyTo, a.Address)
		}
	}
	for i, f := range append(g.Attachments, g.Images...) {
		content, err := base64.StdEncoding.DecodeString(f.Content)
		if err != nil {
			t.Error(err)
		}
		a := providertest.SentAttachment{Type: f.Type, Content: content}
		if i < len(g.Attachments) {
			a.Name = f.Name
		} else {
			a.ContentID = f.Name
		}
		out.Attachments = append(out.Attachments, a)
	}
	return out
}

// plan is one call of a mail with further header fields.
func plan(t testing.TB, p providers.Provider, header string, rcpts ...string) *translate.Mail {
	t.Helper()
	return providertest.Message{Name: "x", From: "sender@example.com", Rcpts: rcpts, EML: header + "From: sender@example.com\r\nTo: " + strings.Join(rcpts, ", ") +
		"\r\nSubject: Hello\r\nMessage-ID: <p@example.com>\r\n\r\nHello.\r\n"}.Plan(t, p.Capabilities())[0]
}

func serve(t testing.TB, o twin.Options) (*twin.Twin, string) {
	t.Helper()
	o.Key = providertest.Key
	tw := twin.New(o)
	srv := httptest.NewServer(tw.Handler())
	t.Cleanup(srv.Close)
	return tw, srv.URL
}

// account makes a provider with options.
func account(t testing.TB, base, options string) providers.Provider {
	t.Helper()
	p, err := New(providers.Options{
		Account: providertest.Account, APIKey: secret.New(providertest.Key), BaseURL: base, Decode: providertest.Decode(options),
		Now: func() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) },
	})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestSwitches: what Mandrill would do by the account's defaults is off unless asked for, and nobody is shown alone.
func TestSwitches(t *testing.T) {
	for _, form := range forms {
		for _, tt := range []struct {
			name, options, header  string
			opens, clicks, rewrite bool
			lost                   int
		}{
			{"nothing asked", "", "", true, true, false, 0},
			{"off", "", "X-Smtpbridge-Track: off\r\n", false, false, false, 0},
			{"opens", "", "X-Smtpbridge-Track: opens\r\n", true, false, false, 0},
			{"clicks", "", "X-Smtpbridge-Track: clicks\r\n", false, true, false, 0},
			{"both", "", "X-Smtpbridge-Track: both\r\n", true, true, false, 0},
			{"account's rewriting", `rewriting = "account"`, "", true, true, true, 0},
			{"signed", "", "Content-Type: application/pkcs7-mime; smime-type=signed-data\r\nX-Smtpbridge-Track: both\r\n", false, false, false, 1},
		} {
			t.Run(form+" "+tt.name, func(t *testing.T) {
				if form == "json" && tt.name == "signed" {
					t.Skip("a signed mail is not taken apart")
				}
				tw, url := serve(t, twin.Options{TrackOpens: true, TrackClicks: true, Rewrites: true, OneByOne: true, Now: clock})
				p := account(t, url, "form = \""+form+"\"\n"+tt.options)
				out, err := p.Send(t.Context(), plan(t, p, tt.header, "one@example.org", "two@example.org"))
				if err != nil {
					t.Fatal(err)
				}
				m := tw.Mails()[0]
				if m.Opens != tt.opens || m.Clicks != tt.clicks || m.Rewritten != tt.rewrite || len(out.Lost) != tt.lost {
					t.Errorf("opens %v, clicks %v, rewritten %v, lost %v", m.Opens, m.Clicks, m.Rewritten, out.Lost)
				}
				if form == "json" && m.Merged != tt.rewrite {
					t.Errorf("merged %v", m.Merged)
				}
				for _, r := range m.Rcpts {
					if !slices.Equal(r.Visible, []string{"one@example.org", "two@example.org"}) {
						t.Errorf("%s sees %q", r.Email, r.Visible)
					}
				}
			})
		}
	}
}

func clock() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

// TestHalfTracking: X-MC-Track cannot leave one kind to the account, and says so.
func TestHalfTracking(t *testing.T) {
	for _, form := range forms {
		tw, url := serve(t, twin.Options{TrackOpens: true, TrackClicks: true})
		p := account(t, url, `form = "`+form+`"`)
		out, err := p.Send(t.Context(), plan(t, p, "X-PM-Track-Opens: true\r\n", "one@example.org"))
		if err != nil {
			t.Fatal(err)
		}
		m := tw.Mails()[0]
		if !m.Opens || m.Clicks != (form == "json") || (len(out.Lost) == 1) != (form == "raw") {
			t.Errorf("%s: opens %v, clicks %v, lost %v", form, m.Opens, m.Clicks, out.Lost)
		}
	}
}

// TestOptions: tags, metadata, schedule and settings reach Mandrill in both forms, in any script.
func TestOptions(t *testing.T) {
	long := strings.Repeat("ä", 60)
	header := "X-Smtpbridge-Tag: welcome\r\nX-Smtpbridge-Tag: _private\r\nX-Smtpbridge-Tag: =?utf-8?q?" + strings.Repeat("=C3=A4", 60) + "?=\r\n" +
		"X-Smtpbridge-Metadata-note: =?utf-8?q?=22J=C3=BCrgen=22_=5C_=F0=9F=98=80?= " + strings.Repeat("and so on ", 30) + "\r\n" +
		"X-Smtpbridge-Send-At: 2026-11-24T08:00:00+02:00\r\n"
	for _, form := range forms {
		t.Run(form, func(t *testing.T) {
			tw, url := serve(t, twin.Options{Subaccounts: []string{"customer 1"}, Now: clock})
			p := account(t, url, `form = "`+form+`"
				subaccount = "customer 1"
				ip_pool = "Main Pool"
				return_path_domain = "bounces.example.com"
				tracking_domain = "click.example.com"
				signing_domain = "example.com"`)
			m := plan(t, p, header, "one@example.org")
			out, err := p.Send(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			got := tw.Mails()[0]
			if want := []string{"welcome", "private", strings.Repeat("ä", 50)}; !slices.Equal(got.Tags, want) {
				t.Errorf("got tags %q", got.Tags)
			}
			want := map[string]string{
				"note": strings.TrimSpace("\"Jürgen\" \\ 😀 " + strings.Repeat("and so on ", 30)), refKey: m.Ref, messageIDKey: "p@example.com",
			}
			if !reflect.DeepEqual(got.Metadata, want) {
				t.Errorf("got metadata %q", got.Metadata)
			}
			if len(out.Lost) != 2 || out.Lost[1].Had == long {
				t.Errorf("got losses %+v", out.Lost)
			}
			if !got.SendAt.Equal(time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)) || got.Rcpts[0].Answered != "scheduled" || out.Rcpts[0].Verdict != providers.Accepted {
				t.Errorf("got send_at %v, %q", got.SendAt, got.Rcpts[0].Answered)
			}
			if got.Subaccount != "customer 1" || got.IPPool != "Main Pool" || got.ReturnPath != "bounces.example.com" {
				t.Errorf("got %+v", got)
			}
			if !m.HoldUntil().Before(clock()) {
				t.Errorf("the bridge holds it until %v, Mandrill can", m.HoldUntil())
			}
		})
	}
}

// TestRaw: the document is the client's, 8-bit text of another charset is re-encoded, and no option header of the client's gets through.
func TestRaw(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	p := account(t, url, "")
	eml := "X-MC-Subaccount: stolen\r\nX-MC-BccAddress: spy@example.net\r\nX-MC-Tags: a,b\r\nReceived: from x\r\nFrom: sender@example.com\r\nTo: one@example.org\r\nBcc: hidden@example.net\r\n" +
		"X-Twice: 1\r\nX-Twice: 2\r\nSubject: Gr\xfc\xdfe\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=iso-8859-1\r\nContent-Transfer-Encoding: 8bit\r\n\r\nGr\xfc\xdfe\r\n"
	m := providertest.Message{Name: "x", From: "sender@example.com", Rcpts: []string{"one@example.org", "hidden@example.net"}, EML: eml}.Plan(t, p.Capabilities())[0]
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	got := tw.Mails()[0]
	if got.Subject != "Grüße" || !slices.Equal(got.Tags, []string{"a", "b"}) || got.Subaccount != "" || !slices.Equal(got.Headers["X-Twice"], []string{"1", "2"}) {
		t.Errorf("got %+v", got)
	}
	for _, gone := range []string{"hidden@", "stolen", "spy@", "Received", "X-MC-", "\uFFFD"} {
		if bytes.Contains(got.Raw, []byte(gone)) {
			t.Errorf("%s is in the document:\n%s", gone, got.Raw)
		}
	}
	body, err := got.Body()
	if enc := got.Headers["Content-Transfer-Encoding"]; err != nil || len(enc) != 1 || enc[0] == "8bit" || strings.Contains(body, "ü") {
		t.Errorf("got %q in %q, %v", body, enc, err)
	}
	if len(got.Rcpts) != 2 || got.Rcpts[1].Email != "hidden@example.net" || !slices.Equal(got.Rcpts[1].Visible, []string{"one@example.org"}) {
		t.Errorf("got %+v", got.Rcpts)
	}
}

// TestInlineDocument: an inline part that is no image has no place in the structured form.
func TestInlineDocument(t *testing.T) {
	p := account(t, "https://api.invalid", `form = "json"`)
	m := plan(t, p, "MIME-Version: 1.0\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Disposition: inline; filename=a.pdf\r\nContent-ID: <a@example.com>\r\n", "one@example.org")
	if len(m.Attach) != 1 || m.Attach[0].Inline || !slices.ContainsFunc(m.Losses, func(l translate.Loss) bool { return l.Had == "inline" && l.Severity == translate.Major }) {
		t.Errorf("got %+v, losses %+v", m.Attach, m.Losses)
	}
}

// TestSplit: an address that fails the call of several is found by calls of their own.
func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		file  string
		n     int
		split bool
	}{{"500-validation-to.json", 1, false}, {"500-validation-to.json", 3, true}, {"422-validation.json", 3, false}} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(500)
			io.WriteString(w, fixture(t, tt.file))
		}))
		p := account(t, srv.URL, "")
		_, err := p.Send(t.Context(), providertest.Plain(t, p.Capabilities(), tt.n))
		srv.Close()
		var e *providers.Error
		if !errors.As(err, &e) || e.Kind != providers.Permanent || e.Split != tt.split {
			t.Errorf("%s with %d: got %v", tt.file, tt.n, err)
		}
	}
}

// TestPayment: without a balance only the schedule is refused, which the bridge can keep by itself.
func TestPayment(t *testing.T) {
	_, url := serve(t, twin.Options{Unpaid: true, Now: clock})
	p := account(t, url, "")
	_, err := p.Send(t.Context(), plan(t, p, "X-Smtpbridge-Send-At: 2026-11-24T08:00:00Z\r\n", "one@example.org"))
	var e *providers.Error
	if !errors.As(err, &e) || e.Kind != providers.Operator || e.Scope != providers.ScopeFeature || e.Feature != "send-at" {
		t.Errorf("got %v", err)
	}
}

// TestWarning: a mail that Mandrill takes and holds is accepted, and the operator hears why, unless it is the usual.
func TestWarning(t *testing.T) {
	for reason, warns := range map[string]bool{
		"": false, "attachments": false, "multiple-recipients": false, "hourly-quota-exhausted": true, "monthly-limit-reached": true, "sending-paused": true,
		"sending-suspended": true, "account-suspended": true, "free-trial-sends-exhausted": true, "sending-backlogged": true, "novel": true,
	} {
		_, url := serve(t, twin.Options{QueuedFor: reason})
		p := account(t, url, "")
		out, err := p.Send(t.Context(), plan(t, p, "", "one@example.org"))
		if err != nil || out.Rcpts[0].Verdict != providers.Accepted || strings.Contains(out.Warning, reason) != (warns || reason == "") || (out.Warning != "") != warns {
			t.Errorf("%s: got %+v, %v", reason, out, err)
		}
	}
}

// TestManyRecipients: above 10 Mandrill says "queued" to all, and rejects by event.
func TestManyRecipients(t *testing.T) {
	tw, url := serve(t, twin.Options{Rejects: map[string]string{"r3@example.org": "hard-bounce"}})
	p := account(t, url, "")
	m := providertest.Plain(t, p.Capabilities(), 11)
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{}
	for _, r := range out.Rcpts {
		ids[r.MessageID] = true
		if r.Verdict != providers.Accepted || r.MessageID == "" {
			t.Errorf("got %+v", r)
		}
	}
	if len(ids) != 11 || out.MessageID != "" || out.Warning != "" {
		t.Errorf("%d ids, %+v", len(ids), out)
	}
	late := tw.Mails()[0].Rcpts[3]
	evs := parse(t, tw, twin.Event("reject", tw.Mails()[0], late, clock(), false))
	if len(evs) != 1 || evs[0].Kind != event.Rejected || evs[0].Status != "5.1.1" || evs[0].ProviderMessageID != out.Rcpts[3].MessageID || evs[0].Ref != m.Ref {
		t.Errorf("got %+v", evs)
	}
	p = account(t, url, "max_recipients = 10")
	if n := len(providertest.Plain(t, p.Capabilities(), 11).Rcpts); n != 10 {
		t.Errorf("%d recipients with max_recipients = 10", n)
	}
}

func TestAssign(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rcpts string
		list  string
		want  []int
	}{
		{"order", "a@x.org b@x.org", "b@x.org a@x.org", []int{1, 0}},
		{"case", "Ab@X.org c@x.org", "C@X.ORG AB@x.org", []int{1, 0}},
		{"two by case", "Ab@x.org ab@x.org", "ab@x.org Ab@x.org", []int{1, 0}},
		{"one mailbox twice, one entry", "a@x.org a@X.ORG", "a@x.org", []int{0, 0}},
		{"idn", "a@bücher.example", "a@xn--bcher-kva.example", []int{0}},
		{"last left over", "a@x.org weird@x.org", "a@x.org other@x.org", []int{0, 1}},
		{"two left over", "a@x.org b@x.org", "c@x.org d@x.org", []int{-1, -1}},
		{"missing", "a@x.org b@x.org", "a@x.org", []int{0, -1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var rcpts []envelope.Rcpt
			var list []result
			for _, a := range strings.Fields(tt.rcpts) {
				rcpts = append(rcpts, envelope.Rcpt{Addr: a})
			}
			for _, a := range strings.Fields(tt.list) {
				list = append(list, result{Email: text(a)})
			}
			if got := assign(rcpts, list); !slices.Equal(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	if err := account(t, url, "").(providers.Checker).Check(t.Context()); err != nil {
		t.Error(err)
	}
	tw.Inject(twin.Fault{Status: 500, Body: fixture(t, "500-general.json")}, twin.Fault{Status: 500, Body: fixture(t, "500-invalid-key-old.json")},
		twin.Fault{Status: 200, Body: "<html>a portal</html>"}, twin.Fault{Status: 404, Body: "not found"})
	for _, want := range []providers.Kind{providers.Transient, providers.Operator, providers.Operator, providers.Operator} {
		err := account(t, url, "").(providers.Checker).Check(t.Context())
		if err == nil || providers.KindOf(err) != want {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	if tw.Count() != 0 {
		t.Error("a check sent mail")
	}
}

func TestURLs(t *testing.T) {
	for _, tt := range []struct{ base, options, want string }{
		{"", "", "https://mandrillapp.com/api/1.0/messages/send-raw.json"},
		{"", `api_version = "1.4"`, "https://mandrillapp.com/api/1.4/messages/send-raw.json"},
		{"https://mandrillapp.com/api/1.3/", "", "https://mandrillapp.com/api/1.3/messages/send-raw.json"},
		{"http://127.0.0.1:9/", `form = "json"`, "http://127.0.0.1:9/api/1.0/messages/send.json"},
	} {
		p := account(t, tt.base, tt.options)
		r, err := p.(providers.Preparer).Prepare(plan(t, p, "", "one@example.org"))
		if err != nil || r.URL.String() != tt.want {
			t.Errorf("got %v, %v, want %s", r.URL, err, tt.want)
		}
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct{ name, toml, secret, want string }{
		{"all", "form = \"json\"\napi_version = \"1.4\"\nasync = true\nmax_recipients = 10\nmax_message_bytes = 1000\nrewriting = \"account\"\nsubaccount = \"a b\"", "k", ""},
		{"form", `form = "smtp"`, "k", "form"},
		{"rewriting", `rewriting = "on"`, "k", "rewriting"},
		{"version", `api_version = "../1"`, "k", "api_version"},
		{"recipients", "max_recipients = 0", "k", "max_recipients"},
		{"size", "max_message_bytes = -1", "k", "max_message_bytes"},
		{"header injection", `subaccount = "a\r\nBcc: x@example.org"`, "k", "subaccount"},
		{"not ASCII", `tracking_domain = "ü.example"`, "k", "tracking_domain"},
		{"unknown", "merge = true", "k", "merge"},
		{"empty secret", "", "", "secret is empty"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(providers.Options{APIKey: secret.New("key"), Decode: providertest.Decode(tt.toml), WebhookSecrets: []secret.String{secret.New(tt.secret)}})
			if (err != nil) != (tt.want != "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

const hookURL = "https://user:pass@hooks.example.com:8443/webhook/acct?secret=x"

func parser(t testing.TB, keys ...string) *provider {
	t.Helper()
	o := providers.Options{Account: providertest.Account, APIKey: secret.New("key"), WebhookURL: hookURL, InboundURL: hookURL, Now: clock}
	for _, k := range keys {
		o.WebhookSecrets = append(o.WebhookSecrets, secret.New(k))
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider)
}

// signed is a post of the form body under key, as it reaches the bridge.
func signed(key string, body []byte) *http.Request {
	r := httptest.NewRequest("POST", "/webhook/acct", nil)
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("X-Mandrill-Signature", twin.Signature(key, hookURL, body))
	return r
}

// parse posts events of the twin.
func parse(t testing.TB, tw *twin.Twin, events ...map[string]any) []event.Event {
	t.Helper()
	body := twin.Batch(events...)
	evs, err := providertest.Receive(parser(t, "old-key", tw.WebhookKey()), signed(tw.WebhookKey(), body), body)
	if err != nil {
		t.Fatal(err)
	}
	return evs
}

// TestVector is computed by hand from the documented scheme: the public test key over an empty batch.
func TestVector(t *testing.T) {
	p := parser(t, "a-key")
	p.opts.WebhookURL = "https://bridge.example.com/hooks/mandrill"
	body := []byte("mandrill_events=%5B%5D")
	r := httptest.NewRequest("POST", "/", nil)
	r.Header.Set("X-Mandrill-Signature", "WaKwa7+oTu0fDhZsWC8L4XDbhrQ=")
	if evs, err := providertest.Receive(p, r, body); err != nil || evs != nil {
		t.Errorf("got %v, %v", evs, err)
	}
}

// TestTestKey: the public key opens nothing but an empty batch, with or without a key of our own, even when it is configured.
func TestTestKey(t *testing.T) {
	tw := twin.New(twin.Options{})
	m := twin.Mail{At: clock()}
	event := twin.Event("hard_bounce", m, twin.Rcpt{Email: "one@example.org", ID: "abc"}, clock(), false)
	for _, keys := range [][]string{nil, {tw.WebhookKey()}, {testKey}} {
		p := parser(t, keys...)
		for _, tt := range []struct {
			name string
			body []byte
			ok   bool
		}{
			{"empty batch", twin.Batch(), true},
			{"a batch", twin.Batch(event), false},
			{"no field", []byte("a=b"), false},
			{"nothing", nil, false},
			{"two fields", []byte("mandrill_events=%5B%5D&mandrill_events=%5B%5D"), false},
			{"an object", []byte("mandrill_events=%7B%7D"), false},
		} {
			evs, err := providertest.Receive(p, signed(testKey, tt.body), tt.body)
			if tt.ok && err != nil || !tt.ok && !errors.Is(err, providers.ErrSignature) || len(evs) > 0 {
				t.Errorf("keys %q, %s: got %v, %v", keys, tt.name, evs, err)
			}
			if in, err := providertest.ReceiveInbound(p, signed(testKey, tt.body), tt.body); tt.ok && err != nil || !tt.ok && !errors.Is(err, providers.ErrSignature) || len(in) > 0 {
				t.Errorf("inbound, keys %q, %s: got %v, %v", keys, tt.name, in, err)
			}
		}
	}
}

// TestURLCheck: a HEAD without signature, then the test batch, both as the twin makes them for /webhooks/add.
func TestURLCheck(t *testing.T) {
	tw := twin.New(twin.Options{Client: http.DefaultClient})
	p := parser(t)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodHead {
			if _, _, ok := p.WebhookGet(""); !ok {
				w.WriteHeader(405)
			}
			return
		}
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, err = providertest.Receive(p, r, body)
		}
		if err != nil {
			w.WriteHeader(401)
		}
	}))
	defer srv.Close()
	p.opts.WebhookURL = srv.URL + "/webhook/acct"
	if head, post, err := tw.Test(t.Context(), srv.URL+"/webhook/acct"); err != nil || head != 200 || post != 200 {
		t.Errorf("got %d, %d, %v", head, post, err)
	}
	if status, err := tw.Post(t.Context(), srv.URL+"/webhook/acct", twin.Sync("blacklist", "add", "a@example.org", clock())); err != nil || status != 401 {
		t.Errorf("events before the key is configured: got %d, %v", status, err)
	}
	if _, _, ok := p.WebhookGet("x"); ok {
		t.Error("another path is served")
	}
	p.opts.WebhookURL = ""
	if _, err := providertest.Receive(p, signed(testKey, twin.Batch()), twin.Batch()); !errors.Is(err, providers.ErrSignature) {
		t.Errorf("without a registered URL: got %v", err)
	}
}

// TestTwinWebhooks sends a mail, and reads each event about it, with and without the fields that samples miss.
func TestTwinWebhooks(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	p := account(t, url, "")
	m := plan(t, p, "X-Smtpbridge-Tag: welcome\r\nX-Smtpbridge-Metadata-order: 4711\r\n", "one@example.org")
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	sent := tw.Mails()[0]
	rcpt := sent.Rcpts[0]
	rcpt.Reason = "spam"
	at := clock().Add(time.Minute)
	for _, tt := range []struct {
		native                             string
		kind                               event.Kind
		action, status, reason, diag, host string
	}{
		{"send", event.Sent, "relayed", "2.0.0", "", "", ""},
		{"delivered", event.Delivered, "delivered", "2.0.0", "", "250 2.0.0 OK 1365109999 queued", "192.0.2.25"},
		{"deferral", event.Deferred, "delayed", "4.3.5", "", "451 4.3.5 Temporarily unavailable, try again later.", "192.0.2.25"},
		{"hard_bounce", event.Bounced, "failed", "5.1.1", "bounced", "550 5.1.1 The email account that you tried to reach does not exist.", ""},
		{"soft_bounce", event.Bounced, "failed", "4.2.2", "bounced", "552 The mailbox is full", ""},
		{"reject", event.Rejected, "failed", "5.7.1", "spam", "spam", ""},
		{"spam", event.Complained, "", "", "spam", "", ""},
		{"unsub", event.Unsubscribed, "", "", "unsubscribed", "", ""},
		{"open", event.Opened, "", "", "", "", ""},
		{"click", event.Clicked, "", "", "", "", ""},
		{"novel", event.Unknown, "", "", "", "", ""},
	} {
		for _, bare := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s bare=%v", tt.native, bare), func(t *testing.T) {
				evs := parse(t, tw, twin.Event(tt.native, sent, rcpt, at, bare))
				if len(evs) != 1 {
					t.Fatalf("got %+v", evs)
				}
				e := evs[0]
				ref, reason, diag := m.Ref, tt.reason, tt.diag
				if bare && tt.native == "reject" {
					// No reason: it may have been the sender's domain, and then nothing was taken.
					ref, reason, diag = "", "", ""
				}
				if e.Kind != tt.kind || e.Action != tt.action || e.Status != tt.status || e.RejectReason != reason || e.Diagnostic != diag || e.RemoteMTA != tt.host {
					t.Errorf("got %+v", e)
				}
				if e.Ref != ref || e.ProviderMessageID != out.Rcpts[0].MessageID || e.Recipient != "one@example.org" || e.MessageID != "p@example.com" ||
					!e.Time.Equal(at) || e.ProviderEvent != tt.native || !slices.Equal(e.Tags, []string{"welcome"}) || !reflect.DeepEqual(e.Metadata, map[string]string{"order": "4711"}) {
					t.Errorf("got %+v", e)
				}
				if engaged := tt.native == "open" || tt.native == "click"; engaged != (e.IP != "") || engaged != (e.UserAgent != "") || (tt.native == "click") != (e.URL == "https://www.example.com/a?b=c") {
					t.Errorf("got %+v", e)
				}
				// The same facts whether or not the top-level id is there.
				if other := parse(t, tw, twin.Event(tt.native, sent, rcpt, at, !bare)); other[0].ID != e.ID {
					t.Error("the id changes with an optional field")
				}
			})
		}
	}
}

// TestOwnFaultsAreNotProof: a mail rejected for its sender waits for the operator; its event must not settle the call.
func TestOwnFaultsAreNotProof(t *testing.T) {
	tw := twin.New(twin.Options{})
	m := twin.Mail{At: clock(), Metadata: map[string]string{refKey: providertest.Ref}}
	for reason, ref := range map[string]string{"unsigned": "", "invalid-sender": "", "test-mode-limit": "", "novel": "", "hard-bounce": providertest.Ref, "rule": providertest.Ref} {
		e := parse(t, tw, twin.Event("reject", m, twin.Rcpt{Email: "one@example.org", ID: "abc", Reason: reason}, clock(), false))[0]
		if e.Ref != ref || e.Kind != event.Rejected || e.ProviderMessageID != "abc" {
			t.Errorf("%s: got %+v", reason, e)
		}
	}
}

// TestDiagnostics reads texts of bounces.
func TestDiagnostics(t *testing.T) {
	p := parser(t)
	for _, tt := range []struct{ native, diag, description, status, text string }{
		{"hard_bounce", "smtp;550 5.1.1 no such user", "", "5.1.1", "550 5.1.1 no such user"},
		{"hard_bounce", "X-Postfix; host mx.example.org[192.0.2.5] said: 554 5.4.14 Hop count exceeded", "", "5.4.14", "host mx.example.org[192.0.2.5] said: 554 5.4.14 Hop count exceeded"},
		{"hard_bounce", "5.1.2", "", "5.1.2", "5.1.2"},
		{"hard_bounce", "smtp;550 blocked, 5.9.120.44 is listed", "", "5.0.0", "550 blocked, 5.9.120.44 is listed"},
		{"hard_bounce", "smtp;550 unknown; see https://example.com", "invalid_domain", "5.1.2", "550 unknown; see https://example.com"},
		{"hard_bounce", "no reply; just words", "", "5.0.0", "no reply; just words"},
		{"soft_bounce", "smtp;552 5.2.2 full", "mailbox_full", "5.2.2", "552 5.2.2 full"},
		{"soft_bounce", "", "mailbox_full", "4.2.2", ""},
		{"soft_bounce", "550 no", "novel", "5.0.0", "550 no"},
		{"soft_bounce", "", "", "4.0.0", ""},
		{"deferral", "smtp;550 5.7.1 odd", "", "4.0.0", "550 5.7.1 odd"},
		{"deferral", "421 busy", "", "4.0.0", "421 busy"},
		{"delivered", "250 2.1.5 ok.", "", "2.1.5", "250 2.1.5 ok."},
		{"hard_bounce", "smtp;550 5.1.1\r\n\x1b[2Jx", "", "5.1.1", "550 5.1.1   [2Jx"},
	} {
		raw, err := json.Marshal(map[string]any{"event": tt.native, "_id": "a", "ts": 1, "msg": map[string]any{"diag": tt.diag, "bounce_description": tt.description}})
		if err != nil {
			t.Fatal(err)
		}
		if e, _, _ := p.event(raw); e.Status != tt.status || e.Diagnostic != tt.text {
			t.Errorf("%s %q %s: got %s %q", tt.native, tt.diag, tt.description, e.Status, e.Diagnostic)
		}
	}
}

// TestBatch: one bad item does not drop the others, and repeats within a batch are told apart where they are acts of a reader.
func TestBatch(t *testing.T) {
	tw := twin.New(twin.Options{})
	p := parser(t, tw.WebhookKey())
	list := `[7, null, "x", {}, [], {"event":"hard_bounce","_id":"a","ts":"1400000000"}, {"event":"hard_bounce","_id":"a","ts":1400000000,"msg":[]},
		{"event":"open","_id":"a","ts":1},{"event":"open","_id":"a","ts":1},{"event":"send","channel":"sms","_id":"s"},{"event":"send","msg":{"channel":"sms"}},
		{"event":{"a":1},"msg":{"email":["x"],"tags":{"a":1},"metadata":[],"smtp_events":[null,7,{"diag":{}}],"diag":[]}},
		{"event":"deferral","ts":1e300,"_id":12345678901234567890,"msg":{"email":"no address","tags":"one","metadata":{"a":{"b":[1]},"c":true,"d":null,"e":7,"smtpbridge_ref":"BAD REF"}}},
		{"type":"denylist","action":"add","reject":"x"}, {"type":"allowlist","action":"add","entry":{"email":"a@example.org","detail":"d"},"ts":5}]`
	body := twinForm(list)
	evs, err := providertest.Receive(p, signed(tw.WebhookKey(), body), body)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	count := map[event.Kind]int{}
	for _, e := range evs {
		if seen[e.ID] || e.ID == "" {
			t.Errorf("got %+v", e)
		}
		seen[e.ID] = true
		count[e.Kind]++
		if e.Kind == event.Deferred {
			want := map[string]string{"a": `{"b":[1]}`, "c": "true", "d": "", "e": "7"}
			if e.Recipient != "" || e.ProviderMessageID != "12345678901234567890" || !reflect.DeepEqual(e.Metadata, want) || e.Ref != "" || !slices.Equal(e.Tags, []string{"one"}) || !e.Time.IsZero() {
				t.Errorf("got %+v", e)
			}
		}
	}
	if count[event.Bounced] != 1 || count[event.Opened] != 2 || count[event.Sent] != 0 || count[event.Unknown] != 8 {
		t.Errorf("got %v", count)
	}
	for name, list := range map[string]string{"object": "{}", "garbage": "GARBAGE", "cut": `[{"event":`, "deep": strings.Repeat("[", 20000)} {
		body := twinForm(list)
		if evs, err := providertest.Receive(p, signed(tw.WebhookKey(), body), body); !errors.Is(err, providers.ErrMalformed) || len(evs) > 0 {
			t.Errorf("%s: got %v, %v", name, evs, err)
		}
	}
	// A field beside the events is part of the signature; a second list of events is not believed.
	body = append(twinForm("[]"), "&a=1&z=2"...)
	if _, err := providertest.Receive(p, signed(tw.WebhookKey(), body), body); err != nil {
		t.Errorf("further fields: %v", err)
	}
	body = append(twinForm("[]"), "&mandrill_events=%5B%5D"...)
	if _, err := providertest.Receive(p, signed(tw.WebhookKey(), body), body); !errors.Is(err, providers.ErrMalformed) {
		t.Errorf("two lists: %v", err)
	}
}

func twinForm(list string) []byte {
	return []byte("mandrill_events=" + strings.NewReplacer("%", "%25", "&", "%26", "+", "%2B").Replace(list))
}

// TestThousandEvents is the largest batch that is documented.
func TestThousandEvents(t *testing.T) {
	tw := twin.New(twin.Options{})
	var events []map[string]any
	for i := range 1000 {
		events = append(events, twin.Event("hard_bounce", twin.Mail{At: clock()}, twin.Rcpt{Email: "one@example.org", ID: fmt.Sprintf("%032d", i)}, clock(), false))
	}
	if size := len(twin.Batch(events...)); int64(size) > Info.Webhook.MaxBody {
		t.Errorf("%d bytes", size)
	}
	if evs := parse(t, tw, events...); len(evs) != 1000 {
		t.Errorf("%d events", len(evs))
	}
}

func TestParseInbound(t *testing.T) {
	tw := twin.New(twin.Options{})
	p := parser(t, tw.WebhookKey())
	raw := " From: a@example.org\nTo: help@in.example.com\n\nHello\n"
	body := twin.Batch(twin.Received("help@in.example.com", raw, clock()), map[string]any{"event": "inbound", "ts": 1}, twin.Received("list@in.example.com", raw, clock()),
		twin.Event("send", twin.Mail{}, twin.Rcpt{}, clock(), false))
	if _, err := providertest.ReceiveInbound(p, httptest.NewRequest("POST", "/", nil), body); !errors.Is(err, providers.ErrSignature) {
		t.Errorf("unsigned: %v", err)
	}
	in, err := providertest.ReceiveInbound(p, signed(tw.WebhookKey(), body), body)
	if err != nil || len(in) != 2 || providertest.Raw(t, in[0]) != raw || in[0].From != "" || !slices.Equal(in[0].Rcpts, []string{"help@in.example.com"}) ||
		!slices.Equal(in[1].Rcpts, []string{"list@in.example.com"}) || in[0].ID == in[1].ID || in[0].ID == "" {
		t.Errorf("got %+v, %v", in, err)
	}
	again, err := providertest.ReceiveInbound(p, signed(tw.WebhookKey(), body), body)
	if err != nil || again[0].ID != in[0].ID {
		t.Errorf("posted twice: %+v, %v", again, err)
	}
	p.opts.InboundSecrets = []secret.String{secret.New("route-key")}
	if _, err := providertest.ReceiveInbound(p, signed(tw.WebhookKey(), body), body); !errors.Is(err, providers.ErrSignature) {
		t.Errorf("the webhook's key for a route with its own: %v", err)
	}
	// Fixtures that are received mails parse as such, too.
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if !strings.Contains(f.Name, "inbound") {
			continue
		}
		p := parser(t, f.Secret.Value)
		p.opts.InboundURL = f.URL
		in, err := providertest.ReceiveInbound(p, f.Request(f.Body), f.Body)
		if err != nil || len(in) == 0 {
			t.Errorf("%s: got %d, %v", f.Name, len(in), err)
		}
		for _, m := range in {
			if len(m.Rcpts) != 1 || !strings.Contains(providertest.Raw(t, m), "Subject:") {
				t.Errorf("%s: got %q, %.80q", f.Name, m.Rcpts, providertest.Raw(t, m))
			}
		}
	}
}

// TestTwinRefuses provokes each documented error.
func TestTwinRefuses(t *testing.T) {
	tw := twin.New(twin.Options{Key: "tok", Domains: []string{"example.com"}, Rejects: map[string]string{"spam@example.net": "spam"}, Unpaid: true, Now: clock})
	send := func(more string) string {
		return `{"key":"tok","message":{"from_email":"a@example.com","to":[{"email":"b@example.org"}],"text":"x"` + more + `}}`
	}
	raw := func(header string) string {
		return `{"key":"tok","to":["b@example.org"],"raw_message":"` + header + `From: a@example.com\r\n\r\nx"}`
	}
	for _, tt := range []struct {
		name, path, body string
		status           int
		want             string
	}{
		{"taken", "/api/1.0/messages/send.json", send(""), 200, `"status":"sent"`},
		{"version 1.3 without .json", "/api/1.3/messages/send", send(""), 200, `"status":"sent"`},
		{"raw", "/api/1.4/messages/send-raw", raw(""), 200, `"status":"sent"`},
		{"version", "/api/2.0/messages/send", send(""), 404, "error"},
		{"no key", "/api/1.0/messages/send", `{}`, 500, "You must specify a key value"},
		{"bad key", "/api/1.0/messages/send", `{"key":"x"}`, 401, "Invalid_Key"},
		{"not JSON", "/api/1.0/messages/send", `key=tok`, 500, "ValidationError"},
		{"no recipient", "/api/1.0/messages/send", `{"key":"tok","message":{"from_email":"a@example.com","to":[]}}`, 500, "ValidationError"},
		{"type", "/api/1.0/messages/send", `{"key":"tok","message":{"from_email":"a@example.com","to":[{"email":"b@example.org","type":"blind"}]}}`, 500, "ValidationError"},
		{"unknown field", "/api/1.0/messages/send", send(`,"reply_to":"x"`), 500, "ValidationError"},
		{"tag", "/api/1.0/messages/send", send(`,"tags":["_x"]`), 500, "ValidationError"},
		{"image", "/api/1.0/messages/send", send(`,"images":[{"type":"application/pdf","name":"x","content":"QQ=="}]`), 500, "ValidationError"},
		{"subaccount", "/api/1.0/messages/send", send(`,"subaccount":"x"`), 404, "Unknown_Subaccount"},
		{"unsigned", "/api/1.0/messages/send", strings.Replace(send(""), "@example.com", "@example.net", 1), 200, `"reject_reason":"unsigned"`},
		{"rejected", "/api/1.0/messages/send", strings.Replace(send(""), "b@example.org", "spam@example.net", 1), 200, `"reject_reason":"spam"`},
		{"invalid", "/api/1.0/messages/send", strings.Replace(send(""), "b@example.org", "nobody", 1), 200, `"status":"invalid"`},
		{"payment", "/api/1.0/messages/send-raw", strings.Replace(raw(""), `{`, `{"send_at":"2026-12-24 08:00:00",`, 1), 402, "PaymentRequired"},
		{"raw option", "/api/1.0/messages/send-raw", raw(`X-MC-Unheard-Of: x\r\n`), 500, "ValidationError"},
		{"raw bool", "/api/1.0/messages/send-raw", raw(`X-MC-Autotext: maybe\r\n`), 500, "ValidationError"},
		{"raw metadata", "/api/1.0/messages/send-raw", raw(`X-MC-Metadata: x\r\n`), 500, "ValidationError"},
		{"info", "/api/1.0/messages/info", `{"key":"tok","id":"x"}`, 404, "Unknown_Message"},
		{"ping", "/api/1.0/users/ping2.json", `{"key":"tok"}`, 200, `{"PING":"PONG!"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", tt.path, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			tw.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
}

// TestSDK has Mailchimp's own client use the twin: all it can say in a mail, and the errors it documents.
func TestSDK(t *testing.T) {
	node, modules := providertest.SDK(t, "@mailchimp/mailchimp_transactional")
	tw, url := serve(t, twin.Options{Domains: []string{"example.com"}, Rejects: map[string]string{"spam@example.net": "spam"}, Subaccounts: []string{"customer"}, Now: clock})
	p := parser(t)
	hook := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && r.Method != http.MethodHead {
			_, err = providertest.Receive(p, r, body)
		}
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer hook.Close()
	p.opts.WebhookURL = "http://" + hook.Listener.Addr().String() + "/webhook/acct" // before anybody can read it
	hook.Start()
	cmd := exec.CommandContext(t.Context(), node, filepath.Join("..", "..", "test", "sdk", "mandrill.test.mjs"), modules, url, providertest.Key, p.opts.WebhookURL)
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	mails := tw.Mails()
	if len(mails) != 4 {
		t.Fatalf("%d calls were taken", len(mails))
	}
	full, raw := mails[0], mails[1]
	if full.FromName != "Jürgen" || len(full.Attachments) != 1 || len(full.Images) != 1 || full.Images[0].Name != "logo" || !full.Opens || full.Clicks || full.Rewritten ||
		full.Metadata["order"] != "4711" || !slices.Equal(full.Tags, []string{"welcome"}) || full.Subaccount != "customer" || full.IPPool != "Main Pool" {
		t.Errorf("got %+v", full)
	}
	for _, r := range full.Rcpts {
		if !slices.Equal(r.Visible, []string{"one@example.org", "cc@example.org", "spam@example.net"}) {
			t.Errorf("%s sees %q", r.Email, r.Visible)
		}
	}
	if !slices.Equal(raw.Tags, []string{"raw", "two"}) || raw.Metadata["order"] != "4712" || !slices.Equal(raw.Rcpts[1].Visible, []string{"one@example.org"}) || bytes.Contains(raw.Raw, []byte("X-MC-")) {
		t.Errorf("got %+v", raw)
	}
}

// TestGolden sends each testdata/send/CASE/in.eml and compares the requests with want.json and what came of them with outcome.json.
func TestGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/send/*/in.eml")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, in := range cases {
		dir := filepath.Dir(in)
		t.Run(filepath.Base(dir), func(t *testing.T) { golden(t, dir) })
	}
}

func golden(t *testing.T, dir string) {
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil && !*update {
			t.Fatal(err)
		}
		return b
	}
	var env struct {
		From    string
		Rcpts   []string
		Options string
	}
	if err := json.Unmarshal(read("envelope.json"), &env); err != nil {
		t.Fatal(err)
	}
	resp := read("resp.json")
	var requests, outcomes []any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v := map[string]any{}
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		if raw, ok := v["raw_message"].(string); ok {
			v["raw_message"] = strings.Split(raw, "\r\n") // for people who read the diff
		}
		requests = append(requests, map[string]any{"path": r.URL.Path, "body": v})
		w.Write(resp)
	}))
	defer srv.Close()
	p := account(t, srv.URL, env.Options)
	msg := providertest.Message{EML: string(read("in.eml")), From: env.From, Rcpts: env.Rcpts}
	for _, m := range msg.Plan(t, p.Capabilities()) {
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, map[string]any{"outcome": out, "losses": m.Losses})
	}
	for name, got := range map[string]any{"want.json": requests, "outcome.json": outcomes} {
		b, err := json.MarshalIndent(got, "", "\t")
		if err != nil {
			t.Fatal(err)
		}
		if *update {
			if err := os.WriteFile(filepath.Join(dir, name), append(b, '\n'), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		var a, w any
		if err := errors.Join(json.Unmarshal(b, &a), json.Unmarshal(read(name), &w)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(a, w) {
			t.Errorf("%s: got\n%s", name, b)
		}
	}
}

// TestHeaderJSON: one line of ASCII that is JSON, whatever it carries.
func TestHeaderJSON(t *testing.T) {
	in := map[string]string{"ü": "😀 \x7f\u2028", `"`: `\ "quoted" <b>&amp;`, "": "", "long": strings.Repeat("x y ", 500)}
	s := headerJSON(in)
	if strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		t.Errorf("not plain: %q", s)
	}
	var out map[string]string
	if err := json.Unmarshal([]byte(s), &out); err != nil || !reflect.DeepEqual(in, out) {
		t.Errorf("got %q, %v", out, err)
	}
	if _, err := (&mime.WordDecoder{}).DecodeHeader(s); err != nil {
		t.Error(err)
	}
}

func FuzzParseWebhook(f *testing.F) {
	for _, fx := range providertest.Fixtures(f, "testdata/webhook") {
		f.Add(fx.Body)
	}
	p := parser(f, "fuzz-key")
	f.Fuzz(func(t *testing.T, body []byte) {
		evs, err := providertest.Receive(p, signed("fuzz-key", body), body)
		if err != nil {
			return
		}
		seen := map[string]bool{}
		for _, e := range evs {
			if e.ID == "" || seen[e.ID] || e.Kind.Engagement() && e.Status != "" {
				t.Errorf("got %+v", e)
			}
			seen[e.ID] = true
		}
	})
}
