package smtpeter

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/providertest"
	"smtpbridge/providers/smtpeter/twin"
	"smtpbridge/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// records is a resolver: TXT records by name.
type records map[string]string

func (r records) LookupTXT(_ context.Context, name string) ([]string, error) {
	if txt, ok := r[name]; ok {
		return []string{txt}, nil
	}
	return nil, errors.New("unexpected look-up")
}

func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "errors", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// keyed answers as documented: an id for each recipient of the request.
func keyed(c *providertest.Call) string {
	var q struct{ Recipients []string }
	if err := json.Unmarshal(c.Body, &q); err != nil {
		return "{}"
	}
	out := map[string]string{}
	for i, r := range q.Recipients {
		out[fmt.Sprintf("id%d", i)] = r
	}
	b, err := json.Marshal(out)
	if err != nil {
		return "{}"
	}
	return string(b)
}

func suite(t testing.TB) providertest.Suite {
	e := func(file string, a providertest.Answer) providertest.Answer {
		a.Name, a.Body = file, fixture(t, file)
		return a
	}
	ok, no := providers.Accepted, providers.Deferred
	three := []providers.Verdict{ok, ok, ok}
	return providertest.Suite{
		Info: Info,
		Success: []providertest.Answer{
			{Name: "ids", Reply: keyed, Verdicts: three},
			{Name: "one", Body: `{"id1":"r0@example.org"}`, MessageID: "id1"},
			{Name: "202", Status: 202, Reply: keyed},
			{Name: "domain in capitals", Body: `{"id1":"r0@EXAMPLE.org"}`, MessageID: "id1"},
			{Name: "one missing", Body: `{"id1":"r0@example.org","id2":"r2@example.org"}`, Verdicts: []providers.Verdict{ok, no, ok}},
			{Name: "other spelling", Body: `{"id1":"r0@example.org","id2":"x@example.org","id3":"y@example.org"}`, Verdicts: three},
			{Name: "address in an object", Body: `{"id1":{"recipient":"r0@example.org"}}`, MessageID: "id1"},
			{Name: "address in a list", Body: `{"id1":["r0@example.org"]}`, MessageID: "id1"},
			{Name: "the other way round", Body: `{"r0@example.org":"id1"}`, MessageID: "id1"},
			{Name: "list of objects", Body: `[{"id":17,"recipient":"r0@example.org"}]`, MessageID: "17"},
			{Name: "empty object", Body: `{}`},
		},
		Errors: []providertest.Answer{
			e("400-address.json", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-address.txt", providertest.Answer{Status: 400, Kind: providers.Permanent}),
			e("400-sender-domain.json", providertest.Answer{Status: 400, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("400-sender-domain.txt", providertest.Answer{Status: 403, Kind: providers.Operator, Scope: providers.ScopeDomain}),
			e("400-balance.json", providertest.Answer{Status: 400, Kind: providers.Operator}),
			e("400-https.txt", providertest.Answer{Status: 400, Kind: providers.Operator}),
			e("401-token.json", providertest.Answer{Status: 401, Kind: providers.Operator}),
			e("401-token.json", providertest.Answer{Status: 400, Kind: providers.Operator}),
			{Name: "403 empty", Status: 403, Kind: providers.Operator},
			{Name: "400 of a proxy", Status: 400, Body: "<html>Bad Request</html>", Kind: providers.Transient, Unlisted: true},
			{Name: "418", Status: 418, Body: "teapot", Kind: providers.Transient, Unlisted: true},
			{Name: "429", Status: 429, Body: "slow down", Kind: providers.RateLimited},
			{Name: "500", Status: 500, Body: `{"error":"Invalid access token"}`, Kind: providers.Transient},
			{Name: "200 with an error", Body: `{"error":"something"}`, Kind: providers.Ambiguous},
		},
		UnreadableAccepted: true,
		Read:               read,
		Twin: func(testing.TB) http.Handler {
			return twin.New(twin.Options{Token: providertest.Key, Key: testKey()}).Handler()
		},
		Webhooks: "testdata/webhook",
		Configure: func(_ testing.TB, o *providers.Options, s providertest.FixtureSecret) {
			o.Decode = providertest.Decode(`environment = "1234"`)
			o.Resolver = records{s.KeyID: "v=DKIM1; k=rsa; p=" + s.Value}
		},
	}
}

// sent is a request, decoded on its own.
type sent struct {
	Recipients                                                    []string
	Envelope, MIME, Images                                        string
	TrackBounces, TrackClicks, TrackOpens, PreventScam, InlineCSS *bool
	Tags                                                          []string
	DSN                                                           map[string]string
}

func read(t testing.TB, c *providertest.Call) providertest.Sent {
	var q sent
	c.JSON(t, &q)
	if c.URL.Path != "/v1/send" || c.URL.Query().Get("access_token") != providertest.Key || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("path, token or type: %s %v", c.URL.Path, c.Header)
	}
	for name, b := range map[string]*bool{"trackbounces": q.TrackBounces, "trackclicks": q.TrackClicks, "trackopens": q.TrackOpens, "preventscam": q.PreventScam, "inlinecss": q.InlineCSS} {
		if b == nil {
			t.Errorf("%s is left to the account's setting", name)
		}
	}
	if q.Images != "default" || q.DSN["notify"] != "FAILURE" {
		t.Errorf("images %q, dsn %q", q.Images, q.DSN)
	}
	return providertest.Sent{Rcpts: q.Recipients, EnvelopeFrom: q.Envelope, Tags: q.Tags, Raw: []byte(q.MIME)}
}

func TestProvider(t *testing.T) { providertest.Run(t, suite(t)) }

// account makes a provider for a twin with further settings.
func account(t testing.TB, tw *twin.Twin, base, settings string) *provider {
	t.Helper()
	o := providers.Options{
		Account: "acct", APIKey: secret.New(providertest.Key), BaseURL: base, Resolver: tw, Tolerance: 5 * time.Minute,
		Now: func() time.Time { return clock }, Decode: providertest.Decode("environment = \"1234\"\n" + settings),
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider)
}

var clock = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// testKey is one key for all tests: making one takes long.
var testKey = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func newTwin(t testing.TB, o twin.Options) (*twin.Twin, string) {
	t.Helper()
	if o.Key == nil {
		o.Key = testKey()
	}
	o.Token, o.Now = providertest.Key, func() time.Time { return clock }
	tw := twin.New(o)
	srv := httptest.NewServer(tw.Handler())
	t.Cleanup(srv.Close)
	return tw, srv.URL
}

func plan(t testing.TB, p *provider, header string, rcpts ...envelope.Rcpt) *translate.Mail {
	t.Helper()
	var addrs []string
	for _, r := range rcpts {
		addrs = append(addrs, r.Addr)
	}
	m := providertest.Message{Name: "plain", From: "bounce@example.com", Rcpts: addrs, EML: header +
		"From: sender@example.com\r\nTo: one@example.org\r\nSubject: Hi\r\n\r\nBraces {$x} {if}.\r\n"}.Plan(t, p.Capabilities())[0]
	m.Rcpts, m.Ref = rcpts, providertest.Ref+"-0"
	m.Env.EnvID, m.Env.Ret = "client-id", "FULL"
	return m
}

// TestBounces: who gets bounce mail, by the setting.
func TestBounces(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	ref := refPrefix + providertest.Ref + "-0"
	one := envelope.Rcpt{Addr: "one@example.org", Notify: []string{"NEVER"}, ORCPT: "rfc822;orig@example.org"}
	for _, tt := range []struct {
		name, settings string
		rcpts          []envelope.Rcpt
		want           twin.Mail
	}{
		{"report", "", []envelope.Rcpt{one}, twin.Mail{TrackBounces: true, Notify: "FAILURE", Ret: "HDRS", EnvID: ref}},
		{"forward", `bounces = "forward"`, []envelope.Rcpt{one}, twin.Mail{Envelope: "bounce@example.com", TrackBounces: true, Notify: "FAILURE", Ret: "HDRS", EnvID: ref}},
		{"sender, one", `bounces = "sender"`, []envelope.Rcpt{one}, twin.Mail{Envelope: "bounce@example.com", Notify: "NEVER", Ret: "FULL", EnvID: "client-id", ORCPT: "rfc822;orig@example.org"}},
		{
			"sender, several", `bounces = "sender"`,
			[]envelope.Rcpt{one, {Addr: "two@example.org", Notify: []string{"SUCCESS", "DELAY"}}},
			twin.Mail{Envelope: "bounce@example.com", Notify: "SUCCESS,DELAY", Ret: "FULL", EnvID: "client-id"},
		},
		{"sender, nothing said", `bounces = "sender"`, []envelope.Rcpt{{Addr: "two@example.org"}}, twin.Mail{Envelope: "bounce@example.com", Notify: "FAILURE", Ret: "FULL", EnvID: "client-id"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := account(t, tw, base, tt.settings)
			if _, err := p.Send(t.Context(), plan(t, p, "", tt.rcpts...)); err != nil {
				t.Fatal(err)
			}
			mails := tw.Mails()
			got := mails[len(mails)-1]
			if got.Envelope != tt.want.Envelope || got.TrackBounces != tt.want.TrackBounces || got.Notify != tt.want.Notify || got.Ret != tt.want.Ret || got.EnvID != tt.want.EnvID || got.ORCPT != tt.want.ORCPT {
				t.Errorf("got %+v", got)
			}
			if got.Personalised || !strings.Contains(string(got.MIME), "Braces {$x} {if}.") {
				t.Error("the template language would run")
			}
		})
	}
}

func TestTagsAndTracking(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	m := plan(t, p, "X-SMTPeter-Tags: fine\r\nX-Smtpbridge-Tag: order;4 711\r\nX-Smtpbridge-Track: clicks\r\nX-SMTPeter-InlineCSS: true\r\n", envelope.Rcpt{Addr: "one@example.org"})
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	got := tw.Mails()[0]
	for _, tag := range got.Tags {
		if strings.ContainsAny(tag, "; ") {
			t.Errorf("tag %q", tag)
		}
	}
	if !slices.Contains(got.Tags, "fine") || !slices.Contains(got.Tags, refPrefix+m.Ref) || len(out.Lost) == 0 {
		t.Errorf("tags %q, lost %v", got.Tags, out.Lost)
	}
	if !got.TrackClicks || got.TrackOpens || !*got.InlineCSS || !*got.PreventScam {
		t.Errorf("got %+v", got)
	}
}

// TestTwoSpellings: one mailbox gets one copy, both entries its answer.
func TestTwoSpellings(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	m := plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}, envelope.Rcpt{Addr: "one@EXAMPLE.org"})
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	providertest.CheckOutcome(t, m, out)
	if got := tw.Mails()[0].Recipients; len(got) != 1 || out.Rcpts[0].MessageID == "" || out.Rcpts[0].MessageID != out.Rcpts[1].MessageID {
		t.Errorf("sent to %q, outcome %+v", got, out)
	}
}

// TestCase075_Omitted: a recipient the answer leaves out is tried again, the others are not.
func TestCase075_Omitted(t *testing.T) {
	tw, base := newTwin(t, twin.Options{Status: 202})
	p := account(t, tw, base, "")
	tw.Inject(twin.Fault{Omit: 1})
	out, err := p.Send(t.Context(), plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}, envelope.Rcpt{Addr: "two@example.org"}))
	if err != nil || out.Rcpts[0].Verdict != providers.Accepted || out.Rcpts[1].Verdict != providers.Deferred || out.Rcpts[1].Kind != providers.Transient {
		t.Errorf("got %+v, %v", out, err)
	}
}

// TestCase067_Unreadable: accepted without ids, and the operator is told.
func TestCase067_Unreadable(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	tw.Inject(twin.Fault{Answer: `{"id`})
	out, err := p.Send(t.Context(), plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}))
	if err != nil || out.Rcpts[0].Verdict != providers.Accepted || out.Rcpts[0].MessageID != "" || out.Warning == "" {
		t.Errorf("got %+v, %v", out, err)
	}
}

// TestFind looks up a call whose answer was lost.
func TestFind(t *testing.T) {
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "")
	m := plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}, envelope.Rcpt{Addr: "two@example.org"})
	if _, found, err := p.Find(t.Context(), m, clock); found != providers.Absent || err != nil {
		t.Errorf("before: got %v, %v", found, err)
	}
	tw.Inject(twin.Fault{Lose: true})
	if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
		t.Fatalf("got %v", err)
	}
	out, found, err := p.Find(t.Context(), m, clock)
	if found != providers.Present || err != nil {
		t.Fatalf("after: got %v, %v", found, err)
	}
	providertest.CheckOutcome(t, m, out)
	if ids := tw.Mails()[0].IDs; out.Rcpts[0].MessageID != ids[0] || out.Rcpts[1].MessageID != ids[1] {
		t.Errorf("got %+v, want %q", out, ids)
	}
	other := *m
	other.Ref = providertest.Ref + "-9"
	for _, tt := range []struct {
		name  string
		m     *translate.Mail
		since time.Time
		fault twin.Fault
		want  providers.Found
		fails bool
	}{
		{"another call", &other, clock, twin.Fault{}, providers.Absent, false},
		{"beyond a month", &other, clock.AddDate(0, -2, 0), twin.Fault{}, providers.CannotTell, false},
		{"no reference", plan(t, p, "", envelope.Rcpt{Addr: "one@example.org"}), clock, twin.Fault{}, providers.Absent, false},
		{"error", m, clock, twin.Fault{Status: 400, Body: `{"error":"no"}`}, providers.CannotTell, true},
		{"unreadable", m, clock, twin.Fault{Status: 200, Body: "<html>"}, providers.CannotTell, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "no reference" {
				tt.m.Ref, tt.want = "", providers.CannotTell
			} else {
				tw.Inject(tt.fault)
			}
			_, found, err := p.Find(t.Context(), tt.m, tt.since)
			if found != tt.want || (err != nil) != tt.fails || tt.fails && providers.KindOf(err) != providers.Transient {
				t.Errorf("got %v, %v", found, err)
			}
		})
	}
}

// TestTwinRefuses provokes what the documentation forbids.
func TestTwinRefuses(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok", Key: testKey(), Domains: []string{"example.com"}})
	const mime = `"mime":"From: a@example.com\r\nSubject: x\r\n\r\nbody\r\n"`
	for _, tt := range []struct {
		name, target, body string
		status             int
		want               string
	}{
		{"taken", "/v1/send?access_token=tok", `{"recipient":"b@example.org",` + mime + `}`, 200, "b@example.org"},
		{"token", "/v1/send?access_token=no", `{}`, 401, "token"},
		{"no token", "/v1/send", `{}`, 401, "token"},
		{"no recipient", "/v1/send?access_token=tok", `{` + mime + `}`, 400, "No recipient"},
		{"address", "/v1/send?access_token=tok", `{"recipients":["b"],` + mime + `}`, 400, "Invalid address"},
		{"tag", "/v1/send?access_token=tok", `{"recipient":"b@example.org","tags":["a b"],` + mime + `}`, 400, "tag"},
		{"dsn", "/v1/send?access_token=tok", `{"recipient":"b@example.org","dsn":{"notify":"ALWAYS"},` + mime + `}`, 400, "notify"},
		{"field", "/v1/send?access_token=tok", `{"recipient":"b@example.org","bcc":"x",` + mime + `}`, 400, "bcc"},
		{"domain", "/v1/send?access_token=tok", `{"recipient":"b@example.org","mime":"From: a@example.net\r\n\r\nx"}`, 400, "You cannot send mailings from example.net without configuring it as sender domain"},
		{"option header", "/v1/send?access_token=tok", `{"recipient":"b@example.org","mime":"From: a@example.com\r\nX-SMTPeter-Tags: x\r\n\r\nx"}`, 400, "x-smtpeter-tags"},
		{"path", "/v1/resend?access_token=tok", `{}`, 404, "error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", tt.target, strings.NewReader(tt.body))
			r.Header.Set("Content-Type", "application/json")
			w := httptest.NewRecorder()
			tw.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct{ name, settings, hook, want string }{
		{"none", "", "", ""},
		{"environment", `environment = "1234"`, "", ""},
		{"as in the header", `environment = "environment-1234"`, "https://hooks.example.com/x", ""},
		{"not a number", `environment = "acme"`, "", "environment"},
		{"bounces", `bounces = "maybe"`, "", "bounces"},
		{"recipients", `max_recipients = 0`, "", "max_recipients"},
		{"bytes", `max_bytes = -1`, "", "max_bytes"},
		{"file", `verification_files = { "index.html" = "x" }`, "", "verification_files"},
		{"hook", "", "/path", "webhook_url"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := New(providers.Options{APIKey: secret.New("tok"), Decode: providertest.Decode(tt.settings), WebhookURL: tt.hook})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v", err)
			}
		})
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
	p := suite(t).New(t, srv.URL, nil)
	msg := providertest.Message{EML: string(read("in.eml")), From: env.From, Rcpts: env.Rcpts}
	for i, m := range msg.Plan(t, p.Capabilities()) {
		m.Ref = fmt.Sprintf("%s-%d", providertest.Ref, i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		outcomes = append(outcomes, map[string]any{"rcpts": out.Rcpts, "losses": m.Losses, "lost": out.Lost})
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

func FuzzParseWebhook(f *testing.F) {
	for _, fx := range providertest.Fixtures(f, "testdata/webhook") {
		f.Add(fx.ContentType, fx.Body)
	}
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=id\r\n\r\n1\r\n--x--\r\n"))
	p := &provider{now: time.Now}
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		evs, err := p.parseBody(contentType, body, clock)
		if (err == nil) != (len(evs) > 0) {
			t.Errorf("%d events, %v", len(evs), err)
		}
		for _, e := range evs {
			if e.ID == "" || e.Time.IsZero() || e.Kind == "" || e.Kind.Engagement() && e.Action != "" {
				t.Errorf("got %+v", e)
			}
			if _, err := json.Marshal(e); err != nil {
				t.Error(err)
			}
		}
	})
}

func FuzzParseSignature(f *testing.F) {
	f.Add(`keyId="one._domainkey.copernica.com",algorithm="rsa-sha256",headers="(request-target) Host",signature="QQ=="`)
	f.Fuzz(func(t *testing.T, s string) {
		if sig, err := parseSignature([]string{s}); err == nil && (len(sig.headers) == 0 || !strings.HasSuffix(sig.keyID, keyDomain)) {
			t.Errorf("got %+v", sig)
		}
	})
}
