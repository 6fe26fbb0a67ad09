package maileroo

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// clock is the suite's.
func clock() time.Time { return time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC) }

const accepted = `{"success": true, "message": "ok", "data": {"reference_id": "c843204e3af03193bd14f339"}}`

// fixture reads one answer of the vendor.
func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "errors", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func suite(t testing.TB) providertest.Suite {
	e := func(file string, a providertest.Answer) providertest.Answer {
		a.Name, a.Body = file, fixture(t, file)
		return a
	}
	return providertest.Suite{
		Info: Info,
		Success: []providertest.Answer{
			{Name: "taken", Body: accepted, MessageID: "c843204e3af03193bd14f339"},
			{Name: "upper case", Body: strings.Replace(accepted, "c843204e3af03193bd14f339", "C843204E3AF03193BD14F339", 1), MessageID: "c843204e3af03193bd14f339"},
			{Name: "without an id", Body: `{"success": true, "message": "ok", "data": null}`},
			{Name: "data of another form", Body: `{"success": true, "data": [7]}`},
			{Name: "202", Status: 202, Body: accepted},
			// It must be unique and is ours alone: an earlier attempt was taken.
			e("400-reference-taken.json", providertest.Answer{Status: 400}),
		},
		Errors: []providertest.Answer{
			e("400-missing.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-recipient.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-linked-domain.json", providertest.Answer{Status: 400, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("400-unverified-domain.json", providertest.Answer{Status: 400, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("400-quota.json", providertest.Answer{Status: 400, Kind: providers.Operator}),
			e("400-reference-form.json", providertest.Answer{Status: 400, Kind: providers.Operator}),
			e("401-key.json", providertest.Answer{Status: 401, Kind: providers.Operator}),
			e("403-scope.json", providertest.Answer{Status: 403, Kind: providers.Operator}),
			e("404-path.json", providertest.Answer{Status: 404, Kind: providers.Operator}),
			e("413-large.json", providertest.Answer{Status: 413, Kind: providers.Permanent}),
			e("429-limit.json", providertest.Answer{Status: 429, Kind: providers.RateLimited}),
			e("429-limit.json", providertest.Answer{Status: 429, Header: map[string]string{"Retry-After": "90"}, Kind: providers.RateLimited, RetryAfter: 90 * time.Second}),
			e("500-internal.json", providertest.Answer{Status: 500, Kind: providers.Transient}),
			// The same texts inside a 200, which Maileroo's own libraries read as refusals.
			{Name: "200 refused", Body: fixture(t, "400-missing.json"), Kind: providers.Permanent},
			{Name: "200 refused, key", Body: fixture(t, "401-key.json"), Kind: providers.Operator},
			{Name: "200 without success", Body: `{"message": "ok", "data": {"reference_id": "c843204e3af03193bd14f339"}}`, Kind: providers.Ambiguous},
			{Name: "200 with success as text", Body: `{"success": "true"}`, Kind: providers.Ambiguous},
			{Name: "200 with success null", Body: `{"success": null}`, Kind: providers.Ambiguous},
			{Name: "500 that says success", Status: 500, Body: accepted, Kind: providers.Ambiguous},
			{Name: "400 of a proxy", Status: 400, Body: "<html>Bad Request</html>", Kind: providers.Transient, Unlisted: true},
			{Name: "409", Status: 409, Body: `{"success": false, "message": "conflict"}`, Kind: providers.Transient, Unlisted: true},
		},
		Read: read,
		Twin: func(testing.TB) http.Handler {
			return twin.New(twin.Options{Key: providertest.Key, Now: clock}).Handler()
		},
		Webhooks: "testdata/webhook",
		Sign: func(_ testing.TB, r *http.Request, body []byte, s providertest.FixtureSecret, _ time.Time) {
			twin.New(twin.Options{Secret: s.Value}).Sign(r, body)
		},
		Ignore: map[string]string{"esp_ids": "an object here; TestEventIDs compares it"},
	}
}

type wireAddress struct {
	Address     string `json:"address"`
	DisplayName string `json:"display_name"`
}

// wire is the documented request.
type wire struct {
	From        wireAddress
	To, Cc, Bcc []wireAddress
	ReplyTo     []wireAddress `json:"reply_to"`
	Subject     string
	HTML, Plain *string
	Tracking    *bool
	Tags        map[string]string
	Headers     map[string]string
	Attachments []struct {
		FileName    string `json:"file_name"`
		ContentType string `json:"content_type"`
		Content     string
		Inline      bool
	}
	ScheduledAt string `json:"scheduled_at"`
	ReferenceID string `json:"reference_id"`
}

// read decodes a request as Maileroo documents it.
func read(t testing.TB, c *providertest.Call) providertest.Sent {
	var q wire
	c.JSON(t, &q)
	if c.URL.Path != "/api/v2/emails" || c.Header.Get("X-Api-Key") != providertest.Key || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("path or headers of the request: %s %v", c.URL.Path, c.Header)
	}
	list := func(in []wireAddress) (out []string) {
		for _, a := range in {
			out = append(out, a.Address)
		}
		return out
	}
	out := providertest.Sent{
		From: q.From.Address, FromName: q.From.DisplayName, To: list(q.To), Cc: list(q.Cc), Bcc: list(q.Bcc), ReplyTo: list(q.ReplyTo),
		Subject: q.Subject, Metadata: map[string]string{}, Headers: map[string][]string{},
	}
	if len(q.ReferenceID) != 24 || strings.Trim(q.ReferenceID, "0123456789abcdef") != "" {
		t.Errorf("reference_id %q", q.ReferenceID)
	}
	if !strings.HasPrefix(q.Tags[refTag], providertest.Ref) {
		t.Errorf("our reference is not among the tags %q", q.Tags)
	}
	for n := 0; ; n++ {
		v, ok := q.Tags[tagKey(n)]
		if !ok {
			break
		}
		out.Tags = append(out.Tags, v)
		delete(q.Tags, tagKey(n))
	}
	for k, v := range q.Tags {
		if k != refTag {
			out.Metadata[k] = v
		}
	}
	for k, v := range q.Headers {
		out.Headers[k] = []string{v}
	}
	if q.Plain == nil {
		t.Error("plain is missing: Maileroo would make a text part")
	} else {
		out.Text = *q.Plain
	}
	if q.HTML != nil {
		out.HTML = *q.HTML
	}
	if q.ScheduledAt != "" {
		at, err := time.Parse(time.RFC3339, q.ScheduledAt)
		if err != nil {
			t.Error(err)
		}
		out.SendAt = at
	}
	for _, a := range q.Attachments {
		content, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			t.Errorf("attachment %q: %v", a.FileName, err)
		}
		s := providertest.SentAttachment{Name: a.FileName, Type: a.ContentType, Content: content}
		if a.Inline {
			// The name has become the Content-ID. The suite wants to see the mail's own: it has one image.
			if !strings.Contains(out.HTML, "cid:"+a.FileName) {
				t.Errorf("nothing refers to %q in %q", a.FileName, out.HTML)
			}
			s.ContentID = "logo@example.com"
			out.HTML = strings.ReplaceAll(out.HTML, "cid:"+a.FileName, "cid:"+s.ContentID)
		}
		out.Attachments = append(out.Attachments, s)
	}
	return out
}

func TestProvider(t *testing.T) { providertest.Run(t, suite(t)) }

// make makes the provider with settings.
func with(t testing.TB, url, settings string) providers.Provider {
	t.Helper()
	s := suite(t)
	s.Options = func(_ testing.TB, o *providers.Options) { o.Decode = providertest.Decode(settings) }
	return s.New(t, url, nil)
}

func serve(t testing.TB, o twin.Options) (*twin.Twin, string) {
	t.Helper()
	if o.Key == "" {
		o.Key = providertest.Key
	}
	if o.Now == nil {
		o.Now = clock
	}
	tw := twin.New(o)
	srv := httptest.NewServer(tw.Handler())
	t.Cleanup(srv.Close)
	return tw, srv.URL
}

// plan plans one call of a mail with the given top fields and body.
func plan(t testing.TB, p providers.Provider, header, body string, rcpts ...string) *translate.Mail {
	t.Helper()
	if rcpts == nil {
		rcpts = []string{"one@example.org"}
	}
	eml := header + "From: Sender <sender@example.com>\r\nTo: " + strings.Join(rcpts, ", ") + "\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n" + body
	if !strings.Contains(body, "\r\n\r\n") {
		eml += "\r\nHello.\r\n"
	}
	return providertest.Message{Name: "m", From: "sender@example.com", Rcpts: rcpts, EML: eml}.Plan(t, p.Capabilities())[0]
}

// TestSplit: with several recipients a refusal that one of them may have caused plans each again.
func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		split      bool
	}{
		{"field", "The email address in 'to' is invalid.", true},
		{"word", "A recipient is invalid", true},
		{"address", "r1@example.org cannot be used", true},
		{"index", `"cc[0]" has no address`, true},
		{"subject", "The subject is required", false},
		{"from", "The from field is required", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw, url := serve(t, twin.Options{})
			body, err := json.Marshal(map[string]any{"success": false, "message": tt.text})
			if err != nil {
				t.Fatal(err)
			}
			p := with(t, url, "")
			for n, split := range map[int]bool{1: false, 3: tt.split} {
				tw.Inject(twin.Fault{Status: 400, Body: string(body)})
				_, err = p.Send(t.Context(), providertest.Plain(t, p.Capabilities(), n))
				var e *providers.Error
				if !errors.As(err, &e) || e.Kind != providers.Permanent || e.Split != split {
					t.Errorf("%d recipients: got %v, split %v", n, err, e != nil && e.Split)
				}
			}
		})
	}
}

// TestScheduling: at the API's horizon, in the past, and refused by the account's share of scheduled mail.
func TestScheduling(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	p := with(t, url, "")
	at := func(d time.Duration) string {
		return "X-Smtpbridge-Send-At: " + clock().Add(d).Format(time.RFC3339) + "\r\n"
	}
	for _, tt := range []struct {
		name      string
		in        time.Duration
		scheduled bool
	}{{"tomorrow", 24 * time.Hour, true}, {"horizon", maxSchedule, true}, {"now", 0, false}, {"past", -time.Hour, false}} {
		t.Run(tt.name, func(t *testing.T) {
			m := plan(t, p, at(tt.in), "")
			if m.HoldUntil().After(clock()) {
				t.Errorf("held until %v", m.HoldUntil())
			}
			if _, err := p.Send(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			got := tw.Mails()[tw.Count()-1].Scheduled
			if tt.scheduled != got.Equal(clock().Add(tt.in)) || !tt.scheduled && !got.IsZero() {
				t.Errorf("scheduled for %v", got)
			}
		})
	}
	if m := plan(t, p, at(22*24*time.Hour), ""); !m.HoldUntil().After(clock()) {
		t.Error("beyond the horizon, and not held")
	}
	refusal := twin.Fault{Status: 400, Body: `{"success":false,"message":"Too many scheduled emails."}`}
	for _, tt := range []struct {
		name, header string
		want         providers.Kind
		feature      string
	}{{"refused", at(time.Hour), providers.Operator, "send-at"}, {"not scheduled", "", providers.Permanent, ""}} {
		t.Run(tt.name, func(t *testing.T) {
			tw.Inject(refusal)
			_, err := p.Send(t.Context(), plan(t, p, tt.header, ""))
			var e *providers.Error
			if !errors.As(err, &e) || e.Kind != tt.want || e.Feature != tt.feature || (e.Scope == providers.ScopeFeature) != (tt.feature != "") {
				t.Errorf("got %+v", e)
			}
		})
	}
}

func TestTracking(t *testing.T) {
	on, off := true, false
	for _, tt := range []struct {
		name, header string
		want         *bool
		lost         bool
	}{
		{"account", "", nil, false},
		{"off", "X-Smtpbridge-Track: off\r\n", &off, false},
		{"both", "X-Smtpbridge-Track: both\r\n", &on, false},
		{"opens", "X-Smtpbridge-Track: opens\r\n", &on, true},
		{"clicks", "X-Smtpbridge-Track: clicks\r\n", &on, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw, url := serve(t, twin.Options{})
			p := with(t, url, "")
			m := plan(t, p, tt.header, "")
			if _, err := p.Send(t.Context(), m); err != nil {
				t.Fatal(err)
			}
			if got := tw.Mails()[0].Tracking; !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %v, want %v", got, tt.want)
			}
			if got := slices.ContainsFunc(m.Losses, func(l translate.Loss) bool { return l.Field == "tracking" }); got != tt.lost {
				t.Errorf("loss said: %v", got)
			}
		})
	}
}

// TestLimits: what the map's limits cut off is said.
func TestLimits(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	p := with(t, url, "")
	long := strings.Repeat("ü", 500)
	m := plan(t, p, "X-Smtpbridge-Metadata-"+strings.Repeat("k", 129)+": x\r\nX-Smtpbridge-Metadata-note: "+long+"\r\nX-Smtpbridge-Metadata-tag: mine\r\nX-Smtpbridge-Metadata-"+refTag+
		": forged\r\nX-Smtpbridge-Tag: first\r\nX-Smtpbridge-Tag: second\r\nX-"+strings.Repeat("h", 130)+": long name\r\n", "")
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"note": long[:768], "tag": "mine", "tag2": "first", "tag3": "second", refTag: m.Ref}
	if got := tw.Mails()[0].Tags; !reflect.DeepEqual(got, want) {
		t.Errorf("got tags %q", got)
	}
	lost := slices.DeleteFunc(slices.Concat(m.Losses, out.Lost), func(l translate.Loss) bool { return l.Severity == translate.Info })
	if len(tw.Mails()[0].Headers) != 0 || len(lost) != 4 {
		t.Errorf("got headers %q, losses %+v", tw.Mails()[0].Headers, lost)
	}
}

// TestSubject: a call without a subject is refused, and so is a long one.
func TestSubject(t *testing.T) {
	for _, tt := range []struct{ name, subject, want string }{
		{"none", "", "(no subject)"}, {"blank", "Subject:   \r\n", "(no subject)"}, {"long", "Subject: " + strings.Repeat("s", 300) + "\r\n", strings.Repeat("s", 255)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw, url := serve(t, twin.Options{})
			p := with(t, url, "")
			msg := providertest.Message{Name: "s", From: "a@example.com", Rcpts: []string{"b@example.org"}, EML: "From: a@example.com\r\nTo: b@example.org\r\n" + tt.subject + "\r\nx\r\n"}
			if _, err := p.Send(t.Context(), msg.Plan(t, p.Capabilities())[0]); err != nil {
				t.Fatal(err)
			}
			if got := tw.Mails()[0].Subject; got != tt.want {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestReference: the same call has the same id at Maileroo, another call another one.
func TestReference(t *testing.T) {
	a, b := referenceID("01kq-1"), referenceID("01kq-2")
	if a == b || a != referenceID("01kq-1") || !hexReference.MatchString(a) || referenceID("") != "" {
		t.Errorf("got %q and %q", a, b)
	}
}

// TestInline looks at how an image and the HTML find each other, by setting.
func TestInline(t *testing.T) {
	image := func(cid, file string) string {
		return "--r\r\nContent-Type: image/png\r\nContent-ID: <" + cid + ">\r\nContent-Disposition: inline; filename=\"" + file + "\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			base64.StdEncoding.EncodeToString(providertest.PNG) + "\r\n"
	}
	body := "Content-Type: multipart/related; boundary=r\r\n\r\n--r\r\nContent-Type: text/html\r\n\r\n<img src=\"cid:a@x\"><img src='cid:b@x'>\r\n" +
		image("a@x", "Bild ä.png") + image("b@x", "bild_.png") + "--r\r\nContent-Type: image/png\r\nContent-Disposition: attachment; filename=\"BILD__.png\"\r\n\r\nx\r\n--r--\r\n"
	for _, tt := range []struct {
		mode, html string
		names      []string
	}{
		{inlineRewrite, `<img src="cid:Bild__-2.png"><img src='cid:bild_.png'>`, []string{"Bild__-2.png", "bild_.png", "BILD__.png"}},
		{inlineContentID, `<img src="cid:a@x"><img src='cid:b@x'>`, []string{"a@x", "b@x", "BILD__.png"}},
		{inlineKeep, `<img src="cid:a@x"><img src='cid:b@x'>`, []string{"Bild ä.png", "bild_.png", "BILD__.png"}},
	} {
		t.Run(tt.mode, func(t *testing.T) {
			tw, url := serve(t, twin.Options{})
			p := with(t, url, fmt.Sprintf("inline_images = %q", tt.mode))
			if _, err := p.Send(t.Context(), plan(t, p, "", body)); err != nil {
				t.Fatal(err)
			}
			m := tw.Mails()[0]
			var names []string
			for i, a := range m.Attachments {
				names = append(names, a.Name)
				if a.Inline != (i < 2) || a.Type != "image/png" {
					t.Errorf("got %+v", a)
				}
			}
			if strings.TrimSpace(*m.HTML) != tt.html || !slices.Equal(names, tt.names) || *m.Plain != "" {
				t.Errorf("got %q, %q, plain %q", *m.HTML, names, *m.Plain)
			}
		})
	}
}

func TestCIDReader(t *testing.T) {
	names := map[string]string{"a@x": "one.png", "it's@x": "two.png", "p(1)@x": "three.png", "sp ace&@x": "four.png"}
	for _, tt := range []struct{ name, in, want string }{
		{"double quotes", `<img src="cid:a@x">`, `<img src="cid:one.png">`},
		{"single quotes", `<img src='cid:a@x'>`, `<img src='cid:one.png'>`},
		{"none", `<img src=cid:a@x alt=x>`, `<img src=cid:one.png alt=x>`},
		{"at the end", `cid:a@x`, `cid:one.png`},
		{"case of the scheme", `"CiD:a@x"`, `"CiD:one.png"`},
		{"percent", `"cid:a%40x"`, `"cid:one.png"`},
		{"entity", `"cid:a&#64;x"`, `"cid:one.png"`},
		{"entity and percent", `"cid:sp%20ace&amp;@x"`, `"cid:four.png"`},
		{"css", `url(cid:a@x); b:url('cid:a@x') c:url(&quot;cid:a@x&quot;)`, `url(cid:one.png); b:url('cid:one.png') c:url(&quot;cid:one.png&quot;)`},
		{"srcset", `srcset="cid:a@x 1x,cid:a@x,cid:a@x 2x"`, `srcset="cid:one.png 1x,cid:one.png,cid:one.png 2x"`},
		{"apostrophe", `"cid:it's@x"`, `"cid:two.png"`},
		{"brackets", `"cid:p(1)@x"`, `"cid:three.png"`},
		{"other id", `"cid:b@x" cid:`, `"cid:b@x" cid:`},
		{"longer id", `"cid:a@xy"`, `"cid:a@xy"`},
		{"other word", `acid:a@x x-cid:a@x 0cid:a@x`, `acid:a@x x-cid:a@x 0cid:a@x`},
		{"after itself", `cid:cid:a@x`, `cid:cid:one.png`},
		{"cut scheme", `ci`, `ci`},
		{"bad escape", `"cid:a%4"`, `"cid:a%4"`},
		{"too long", `"cid:` + strings.Repeat("a", 2000) + `" "cid:a@x"`, `"cid:` + strings.Repeat("a", 2000) + `" "cid:one.png"`},
		{"empty", ``, ``},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for how, wrap := range map[string]func(io.Reader) io.Reader{"whole": func(r io.Reader) io.Reader { return r }, "bytes": iotest.OneByteReader, "data and error": iotest.DataErrReader} {
				for _, pad := range []int{0, 8190} { // across the end of a buffer
					space := strings.Repeat(" ", pad)
					got, err := io.ReadAll(newCIDReader(io.NopCloser(wrap(strings.NewReader(space+tt.in))), names))
					if err != nil || string(got) != space+tt.want {
						t.Errorf("%s, %d: got %q, %v", how, pad, strings.TrimSpace(string(got)), err)
					}
				}
			}
		})
	}
	broken := errors.New("broken")
	if _, err := io.ReadAll(newCIDReader(io.NopCloser(iotest.ErrReader(broken)), names)); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

// FuzzCIDReader: texts without a known Content-ID stay as they are, and how a text arrives does not matter.
func FuzzCIDReader(f *testing.F) {
	for _, s := range []string{`<img src="cid:a@x">`, "cid:cid:cid:a@x", "url(cid:b)", "CID:a%40x;"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		run := func(names map[string]string, wrap func(io.Reader) io.Reader) string {
			b, err := io.ReadAll(newCIDReader(io.NopCloser(wrap(strings.NewReader(s))), names))
			if err != nil {
				t.Fatal(err)
			}
			return string(b)
		}
		whole := func(r io.Reader) io.Reader { return r }
		if got := run(map[string]string{}, whole); got != s {
			t.Errorf("got %q", got)
		}
		names := map[string]string{"a@x": "n.png"}
		if a, b := run(names, whole), run(names, iotest.OneByteReader); a != b {
			t.Errorf("got %q whole, %q by bytes", a, b)
		}
	})
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name  string
		o     twin.Options
		fault *twin.Fault
		want  providers.Kind // Unknown: good
	}{
		{"good", twin.Options{}, nil, providers.Unknown},
		{"key of several domains", twin.Options{Application: true}, nil, providers.Unknown},
		{"bad key", twin.Options{Key: "another"}, nil, providers.Operator},
		{"refused in a 200", twin.Options{}, &twin.Fault{Status: 200, Body: `{"success":false,"message":"Invalid API key"}`}, providers.Operator},
		{"other 400", twin.Options{}, &twin.Fault{Status: 400, Body: `{"success":false,"message":"page is invalid"}`}, providers.Transient},
		{"no JSON", twin.Options{}, &twin.Fault{Status: 200, Body: `<html>`}, providers.Transient},
		{"no answer", twin.Options{}, &twin.Fault{Drop: true}, providers.Transient},
		{"limit", twin.Options{}, &twin.Fault{Status: 429}, providers.RateLimited},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw, url := serve(t, tt.o)
			if tt.fault != nil {
				tw.Inject(*tt.fault)
			}
			err := with(t, url, "").(providers.Checker).Check(t.Context())
			if tt.want == providers.Unknown && err != nil || tt.want != providers.Unknown && (err == nil || providers.KindOf(err) != tt.want) {
				t.Errorf("got %v", err)
			}
			if tw.Count() != 0 {
				t.Error("a check sent mail")
			}
		})
	}
}

const accountTestKey = "roo_canary_account_key_42"

// TestFind settles calls whose answer was lost, by the log.
func TestFind(t *testing.T) {
	items := func(list string) *twin.Fault {
		return &twin.Fault{Status: 200, Body: `{"data":{"items":` + list + `,"page":1,"has_more":false}}`}
	}
	refused := &twin.Fault{Status: 503}
	for _, tt := range []struct {
		name   string
		header string
		send   *twin.Fault   // of the send; nil: not sent
		finds  []*twin.Fault // of the look-up's requests, nil: the twin answers
		want   providers.Found
		fails  bool
	}{
		{name: "taken", send: &twin.Fault{Lose: true}, want: providers.Present},
		{name: "not taken", send: &twin.Fault{Drop: true}, want: providers.Absent},
		{name: "scheduled", header: "X-Smtpbridge-Send-At: 2026-11-25T00:00:00Z\r\n", send: &twin.Fault{Lose: true}, want: providers.Present},
		{name: "scheduled, not taken", header: "X-Smtpbridge-Send-At: 2026-11-25T00:00:00Z\r\n", send: &twin.Fault{Drop: true}, want: providers.Absent},
		{name: "scheduled list refused", header: "X-Smtpbridge-Send-At: 2026-11-25T00:00:00Z\r\n", finds: []*twin.Fault{refused}, want: providers.CannotTell, fails: true},
		{name: "scheduled list unreadable", header: "X-Smtpbridge-Send-At: 2026-11-25T00:00:00Z\r\n", finds: []*twin.Fault{{Status: 200, Body: `{"success":true,"data":7}`}}, want: providers.CannotTell},
		{name: "entry with our reference", finds: []*twin.Fault{items(`[{"reference_id":"` + strings.ToUpper(referenceID(ref)) + `"}]`)}, want: providers.Present},
		{name: "entry with our tag", finds: []*twin.Fault{items(`[{"tags":{"x":"` + ref + `"}}]`)}, want: providers.Present},
		{name: "filter that does not filter", finds: []*twin.Fault{items(`[{"id":1}]`), items(`[{"id":1}]`)}, want: providers.CannotTell},
		{name: "control fails", finds: []*twin.Fault{items(`[{"id":1}]`), refused}, want: providers.CannotTell, fails: true},
		{name: "list at the top", finds: []*twin.Fault{{Status: 200, Body: `{"items":[],"page":1}`}}, want: providers.Absent},
		{name: "no list", finds: []*twin.Fault{{Status: 200, Body: `{"data":{}}`}}, want: providers.CannotTell},
		{name: "null list", finds: []*twin.Fault{items("null")}, want: providers.CannotTell},
		{name: "limit", finds: []*twin.Fault{{Status: 429, Header: http.Header{"Retry-After": {"60"}}}}, want: providers.CannotTell, fails: true},
		{name: "bad key", finds: []*twin.Fault{{Status: 401, Body: `{"error":{"message":"bad ` + accountTestKey + `"}}`}}, want: providers.CannotTell, fails: true},
		{name: "no answer", finds: []*twin.Fault{{Drop: true}}, want: providers.CannotTell, fails: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("MAILEROO_TEST_ACCOUNT_KEY", accountTestKey)
			tw, url := serve(t, twin.Options{AccountKey: accountTestKey})
			p := with(t, url, "account_key_env = \"MAILEROO_TEST_ACCOUNT_KEY\"\naccount_url = \""+url+"/v1\"")
			// Another mail in the log, which must not be taken for ours.
			if _, err := p.Send(t.Context(), providertest.Plain(t, p.Capabilities(), 1)); err != nil {
				t.Fatal(err)
			}
			m := plan(t, p, tt.header, "")
			m.Ref = ref
			if tt.send != nil {
				tw.Inject(*tt.send)
				if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
					t.Fatalf("got %v, want Ambiguous", err)
				}
			}
			for _, f := range tt.finds {
				tw.Inject(*f)
			}
			out, found, err := p.(providers.Finder).Find(t.Context(), m, clock())
			if found != tt.want || (err != nil) != tt.fails {
				t.Errorf("got %v, %v, want %v", found, err, tt.want)
			}
			if err != nil && (providers.KindOf(err) != providers.Transient || strings.Contains(err.Error(), "canary")) {
				t.Errorf("got %v", err)
			}
			if found == providers.Present {
				providertest.CheckOutcome(t, m, out)
				if out.MessageID != referenceID(ref) {
					t.Errorf("got id %q", out.MessageID)
				}
			}
		})
	}
	if _, ok := with(t, "http://127.0.0.1:1", "").(providers.Finder); ok {
		t.Error("without an account key nothing can be found")
	}
}

const ref = "01kq0000000000000000000000-find"

// TestSettings checks each setting and that no value of a key is in an error.
func TestSettings(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	t.Setenv("MAILEROO_TEST_ACCOUNT_KEY", accountTestKey)
	if err := os.WriteFile(filepath.Join(dir, "roo"), []byte(accountTestKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, toml, hook, want string
		finds                  bool
	}{
		{"none", "", "", "", false},
		{"all", "max_recipients = 10\nmax_message_bytes = 1000\ninline_images = \"keep\"\nthreading_headers = false\ninbound_hosts = [\"*.example.com\", \"a.example.org\"]", "s", "", false},
		{"account key", "account_key_env = \"MAILEROO_TEST_ACCOUNT_KEY\"", "", "", true},
		{"account key file", fmt.Sprintf("account_key_file = %q", filepath.Join(dir, "roo")), "", "", true},
		{"credential", `account_key_file = "roo"`, "", "", true},
		{"relative file", `account_key_file = "keys/roo"`, "", "absolute", false},
		{"no such file", `account_key_file = "/nonexistent/roo"`, "", "account key", false},
		{"both", "account_key_env = \"A\"\naccount_key_file = \"/b\"", "", "not both", false},
		{"no such variable", `account_key_env = "MAILEROO_TEST_NO_SUCH"`, "", "MAILEROO_TEST_NO_SUCH", false},
		{"account url", `account_url = "api"`, "", "account_url", false},
		{"recipients", "max_recipients = 0", "", "max_recipients", false},
		{"inline", `inline_images = "x"`, "", "inline_images", false},
		{"host", `inbound_hosts = ["https://x.example.com/"]`, "", "inbound_hosts", false},
		{"all hosts", `inbound_hosts = ["*"]`, "", "inbound_hosts", false},
		{"empty secret", "", "empty", "webhook secret", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := providers.Options{Account: "a", APIKey: secret.New("key"), Decode: providertest.Decode(tt.toml)}
			switch tt.hook {
			case "":
			case "empty":
				o.WebhookSecrets = []secret.String{{}}
			default:
				o.WebhookSecrets = []secret.String{secret.New(tt.hook)}
			}
			p, err := New(o)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "canary")) {
				t.Fatalf("got %v", err)
			}
			if err != nil {
				return
			}
			if _, ok := p.(providers.Finder); ok != tt.finds {
				t.Errorf("Finder: %v", ok)
			}
			if c := p.Capabilities(); tt.name == "all" && (c.MaxRcpts != 10 || c.MaxBytes != 1000 || c.Threading) {
				t.Errorf("got %+v", c)
			}
		})
	}
}

// TestBaseURL: with and without the API's path.
func TestBaseURL(t *testing.T) {
	for _, base := range []string{"http://127.0.0.1:1", "http://127.0.0.1:1/", "http://127.0.0.1:1/api/v2", "http://127.0.0.1:1/api/v2/"} {
		p := with(t, base, "")
		r, err := p.(providers.Preparer).Prepare(providertest.Plain(t, p.Capabilities(), 1))
		if err != nil || r.URL.String() != "http://127.0.0.1:1/api/v2/emails" {
			t.Errorf("%s: got %v, %v", base, r.URL, err)
		}
	}
}

// TestTwinRefuses provokes each documented error.
func TestTwinRefuses(t *testing.T) {
	const from, to = `"from":{"address":"a@example.com"},`, `"to":{"address":"b@example.org"},`
	tw := twin.New(twin.Options{Key: "key", Application: true, Domains: []string{"example.com"}, Now: clock})
	for _, tt := range []struct {
		name, method, path, key, body string
		status                        int
		want                          string
	}{
		{"taken", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","reference_id":"C843204E3AF03193BD14F339"}`, 200, `"reference_id":"c843204e3af03193bd14f339"`},
		{"no key", "POST", "emails", "", `{}`, 401, "X-API-KEY"},
		{"bad key", "POST", "emails", "x", `{}`, 401, "X-API-KEY"},
		{"not JSON", "POST", "emails", "key", `x`, 400, "invalid"},
		{"no from", "POST", "emails", "key", `{}`, 400, "from"},
		{"no to", "POST", "emails", "key", `{` + from + `"subject":"s"}`, 400, "to field"},
		{"address", "POST", "emails", "key", `{` + from + `"to":[{"address":"b"}],"subject":"s","plain":"x"}`, 400, "invalid"},
		{"empty name", "POST", "emails", "key", `{"from":{"address":"a@example.com","display_name":""},` + to + `"subject":"s","plain":"x"}`, 400, "display_name"},
		{"domain", "POST", "emails", "key", `{"from":{"address":"a@example.net"},` + to + `"subject":"s","plain":"x"}`, 400, "linked domain"},
		{"empty subject", "POST", "emails", "key", `{` + from + to + `"subject":" ","plain":"x"}`, 400, "subject"},
		{"long subject", "POST", "emails", "key", `{` + from + to + `"subject":"` + strings.Repeat("s", 256) + `","plain":"x"}`, 400, "subject"},
		{"no body", "POST", "emails", "key", `{` + from + to + `"subject":"s","html":null,"plain":""}`, 400, "html or plain"},
		{"tag value", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","tags":{"a":"` + strings.Repeat("v", 769) + `"}}`, 400, "768"},
		{"tag list", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","tags":["a"]}`, 400, "invalid"},
		{"header list", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","headers":{"a":["b"]}}`, 400, "scalars"},
		{"empty file", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","attachments":[{"file_name":"a","content":""}]}`, 400, "attachment"},
		{"nameless file", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","attachments":[{"content":"QQ=="}]}`, 400, "attachment"},
		{"schedule", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","scheduled_at":"2027-01-01T00:00:00Z"}`, 400, "21 days"},
		{"reference", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","reference_id":"abc"}`, 400, "24-character"},
		{"unknown field", "POST", "emails", "key", `{` + from + to + `"subject":"s","plain":"x","text":"y"}`, 400, "text"},
		{"two values", "POST", "emails", "key", `{} {}`, 400, "invalid"},
		{"template id", "POST", "emails/template", "key", `{` + from + to + `"subject":"s"}`, 400, "fit"},
		{"bulk", "POST", "emails/bulk", "key", `{"subject":"s","plain":"x","messages":[]}`, 400, "1 to 500"},
		{"scheduled without domain", "GET", "emails/scheduled", "key", ``, 400, "linked domain"},
		{"scheduled page", "GET", "emails/scheduled?domain=example.com&per_page=101", "key", ``, 400, "per_page"},
		{"scheduled", "GET", "emails/scheduled?domain=example.com", "key", ``, 200, `"results":[]`},
		{"cancel", "DELETE", "emails/scheduled/c843204e3af03193bd14f339", "key", ``, 404, "not found"},
		{"path", "POST", "email", "key", `{}`, 404, "success"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest(tt.method, "/api/v2/"+tt.path, strings.NewReader(tt.body))
			if tt.key != "" {
				r.Header.Set("X-API-Key", tt.key)
			}
			w := httptest.NewRecorder()
			tw.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
	if tw.Count() != 1 {
		t.Errorf("%d mails", tw.Count())
	}
}

// TestVisible: a hidden recipient receives and is not seen.
func TestVisible(t *testing.T) {
	tw, url := serve(t, twin.Options{})
	p := with(t, url, "")
	m := providertest.Message{
		Name: "v", From: "a@example.com", Rcpts: []string{"b@example.org", "c@example.org", "hidden@example.net"},
		EML: "From: a@example.com\r\nTo: b@example.org, absent@example.org\r\nCc: c@example.org\r\nBcc: hidden@example.net\r\nSubject: s\r\n\r\nx\r\n",
	}.Plan(t, p.Capabilities())[0]
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	got := tw.Mails()[0]
	if !slices.Equal(got.Rcpts(), []string{"b@example.org", "c@example.org", "hidden@example.net"}) || !slices.Equal(got.Visible(), []string{"b@example.org", "c@example.org"}) || got.Headers != nil {
		t.Errorf("got %q, visible %q, headers %q", got.Rcpts(), got.Visible(), got.Headers)
	}
}

// TestSDK has Maileroo's own library judge the twin: all it can say in a mail, templates, bulk, scheduling, and documented errors.
func TestSDK(t *testing.T) {
	node, modules := providertest.SDK(t, "maileroo-sdk")
	tw, url := serve(t, twin.Options{Key: "sdk-key", Now: time.Now, Domains: []string{"example.com"}})
	cmd := exec.CommandContext(t.Context(), node, filepath.Join("..", "..", "test", "sdk", "maileroo.test.mjs"), modules, url, "sdk-key")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	mails := tw.Mails()
	if len(mails) != 6 {
		t.Fatalf("%d mails", len(mails))
	}
	m := mails[0]
	if !slices.Equal(m.Rcpts(), []string{"one@example.org", "two@example.org", "cc@example.org", "hidden@example.net"}) || slices.Contains(m.Visible(), "hidden@example.net") ||
		m.Subject != "Grüße" || *m.Plain != "plain" || m.Tracking == nil || *m.Tracking || m.Tags["order"] != float64(7) || m.Headers["X-Campaign"] != "autumn" ||
		len(m.Attachments) != 2 || !m.Attachments[1].Inline || string(m.Attachments[0].Content) != "hello" || m.ReferenceID != "c843204e3af03193bd14f339" || m.Scheduled.IsZero() || !m.Cancelled {
		t.Errorf("got %+v", m)
	}
}

// TestGolden sends each testdata/send/CASE/in.eml and compares the request with want.json and the outcome with outcome.json.
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
		From  string
		Rcpts []string
	}
	if err := json.Unmarshal(read("envelope.json"), &env); err != nil {
		t.Fatal(err)
	}
	resp := read("resp.json")
	var requests, outcomes []any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v any
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		requests = append(requests, v)
		w.Write(resp)
	}))
	defer srv.Close()
	p := with(t, srv.URL, "")
	msg := providertest.Message{EML: string(read("in.eml")), From: env.From, Rcpts: env.Rcpts}
	for i, m := range msg.Plan(t, p.Capabilities()) {
		m.Ref = fmt.Sprintf("%s-%d", providertest.Ref, i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, map[string]any{"id": out.MessageID, "rcpts": len(out.Rcpts), "losses": m.Losses, "lost": out.Lost})
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
