package mailersend

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
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/mailersend/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// suiteNow is the clock of providertest.
var suiteNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

const id = "63fd1c1d5f010335ed07066b"

var idHeader = map[string]string{"X-Message-Id": id}

func fixture(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "errors", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func suite(t testing.TB, options string) providertest.Suite {
	taken := func(name, body string, header map[string]string) providertest.Answer {
		return providertest.Answer{Name: name, Status: 202, Header: header, Body: body, MessageID: header["X-Message-Id"]}
	}
	e := func(status int, file string, a providertest.Answer) providertest.Answer {
		a.Name, a.Status, a.Body = file, status, fixture(t, file)
		return a
	}
	some := taken("some suppressed", fixture(t, "202-some-suppressed.json"), idHeader)
	some.Verdicts = []providers.Verdict{providers.Accepted, providers.Rejected, providers.Rejected}
	some.Reasons = []string{"", event.ReasonBounced, event.ReasonUnsubscribed}
	all := taken("all suppressed", fixture(t, "202-all-suppressed.json"), nil)
	all.Verdicts = []providers.Verdict{providers.Rejected, providers.Rejected}
	all.Reasons = []string{event.ReasonSpam, event.ReasonBlocked}
	noNames := taken("all suppressed, nobody named", `{"message":"m","warnings":[{"type":"ALL_SUPPRESSED","message":"none left"}]}`, nil)
	noNames.Verdicts, noNames.Reasons = []providers.Verdict{providers.Rejected}, []string{event.ReasonBlocked}
	oneBad := e(422, "422-recipient.json", providertest.Answer{Verdicts: []providers.Verdict{providers.Rejected}, Reasons: []string{event.ReasonInvalid}})
	quota := e(429, "429-MS42901.json", providertest.Answer{Kind: providers.RateLimited, Code: "MS42901", RetryAfter: 12 * time.Hour})
	quota.Header = map[string]string{"X-Apiquota-Remaining": "0", "X-Apiquota-Reset": "2026-11-24T00:00:00Z"}
	minute := e(429, "429-MS42903.json", providertest.Answer{Kind: providers.RateLimited, Code: "MS42903", RetryAfter: 20 * time.Second})
	minute.Header = map[string]string{"Retry-After": "20", "X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": "1"}
	noRetryAfter := e(429, "429-MS42903.json", providertest.Answer{Kind: providers.RateLimited, RetryAfter: 30 * time.Second})
	noRetryAfter.Name += " by the reset time"
	noRetryAfter.Header = map[string]string{"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": fmt.Sprint(suiteNow.Add(30 * time.Second).Unix())}
	permanent := func(status int, file, code string) providertest.Answer {
		return e(status, file, providertest.Answer{Kind: providers.Permanent, Code: code})
	}
	operator := func(status int, file, code string) providertest.Answer {
		return e(status, file, providertest.Answer{Kind: providers.Operator, Code: code})
	}
	domain := func(status int, file, code string) providertest.Answer {
		return e(status, file, providertest.Answer{Kind: providers.Operator, Scope: providers.ScopeDomain, Code: code})
	}
	transient := func(status int, file, code string) providertest.Answer {
		return e(status, file, providertest.Answer{Kind: providers.Transient, Code: code})
	}
	return providertest.Suite{
		Info: Info,
		Options: func(_ testing.TB, o *providers.Options) {
			if o.Decode == nil {
				o.Decode = providertest.Decode(options)
			}
		},
		Success: []providertest.Answer{
			taken("queued", "", idHeader),
			taken("paused domain", "", map[string]string{"X-Message-Id": id, "X-Send-Paused": "true"}),
			taken("a page under an id", "<html>", idHeader),
			some, all, noNames, oneBad,
		},
		Errors: []providertest.Answer{
			operator(401, "401-token.json", ""),
			operator(403, "403-no-code.json", ""),
			operator(403, "403-MS40301.json", "MS40301"),
			operator(403, "403-MS40303.json", "MS40303"),
			operator(403, "403-MS40305.json", "MS40305"),
			operator(422, "422-MS42204.json", "MS42204"),
			operator(422, "422-MS42222.json", "MS42222"),
			operator(422, "422-MS42225.json", "MS42225"),
			domain(422, "422-MS42207.json", "MS42207"),
			domain(422, "422-MS42226.json", "MS42226"),
			operator(422, "422-MS42216-unknown.json", "MS42216"),
			operator(422, "422-two-codes.json", "MS42204"),
			operator(400, "400-MS40001.json", "MS40001"),
			permanent(422, "422-MS42202.json", "MS42202"),
			permanent(422, "422-MS42206.json", "MS42206"),
			permanent(422, "422-MS42210.json", "MS42210"),
			permanent(422, "422-MS42215.json", "MS42215"),
			permanent(422, "422-MS42208.json", "MS42208"),
			permanent(422, "422-MS42214.json", "MS42214"),
			permanent(422, "422-subject.json", ""),
			permanent(413, "413-empty.txt", ""),
			transient(422, "422-MS42205.json", "MS42205"),
			transient(422, "422-MS42201.json", "MS42201"),
			transient(422, "422-MS42218.json", "MS42218"),
			transient(421, "421-maintenance.json", ""),
			transient(500, "500-MS5001.json", "MS5001"),
			quota, minute, noRetryAfter,
			{Name: "422 of a proxy", Status: 422, Body: "<html>", Kind: providers.Transient, Unlisted: true},
			{Name: "202 without id", Status: 202, Kind: providers.Ambiguous},
			{Name: "202 without id, some suppressed", Status: 202, Body: `{"warnings":[{"type":"SOME_SUPPRESSED"}]}`, Kind: providers.Ambiguous},
		},
		Read: readCall,
		Twin: func(testing.TB) http.Handler {
			return twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }}).Handler()
		},
		Webhooks: "testdata/webhook",
		Sign: func(_ testing.TB, r *http.Request, body []byte, s providertest.FixtureSecret, _ time.Time) {
			twin.Sign(r, s.Value, body)
		},
		Ignore: map[string]string{
			"anymail-inbound-inbound/":                    "a received mail: TestInboundFixtures",
			"anymail-inbound-verifies-bad-signature/":     "a received mail: TestInboundFixtures",
			"anymail-inbound-verifies-correct-signature/": "a received mail: TestInboundFixtures",
			"anymail-inbound-verifies-missing-signature/": "a received mail: TestInboundFixtures",
			"hookdeck-v2-sender-identity-verified/":       "kept as unknown: TestNotAboutAMail",
		},
	}
}

// readCall decodes a request with the twin's eyes: the documented JSON. The reference tag is checked and left out.
func readCall(t testing.TB, c *providertest.Call) providertest.Sent {
	type person struct{ Email, Name string }
	var q struct {
		From                struct{ Email, Name string }
		To, Cc, Bcc         []person
		RcptTo              []person `json:"rcpt_to"`
		ReplyTo             *person  `json:"reply_to"`
		Subject, Text, HTML string
		Tags                []string
		SendAt              int64    `json:"send_at"`
		InReplyTo           string   `json:"in_reply_to"`
		References          []string `json:"references"`
		ListUnsubscribe     string   `json:"list_unsubscribe"`
		Headers             []struct{ Name, Value string }
		Attachments         []struct {
			Content, Filename, Disposition string
			ID                             string `json:"id"`
		}
	}
	c.JSON(t, &q)
	if c.Method != http.MethodPost || c.URL.Path != "/v1/email" || !strings.HasPrefix(c.Header.Get("Authorization"), "Bearer ") ||
		c.Header.Get("Accept") != "application/json" || c.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%s %s %v", c.Method, c.URL.Path, c.Header)
	}
	addrs := func(list []person) (out []string) {
		for _, p := range list {
			out = append(out, p.Email)
		}
		return out
	}
	out := providertest.Sent{
		From: q.From.Email, FromName: q.From.Name, To: addrs(q.To), Cc: addrs(q.Cc), Bcc: append(addrs(q.Bcc), addrs(q.RcptTo)...),
		Subject: q.Subject, Text: q.Text, HTML: q.HTML, Headers: map[string][]string{},
	}
	if q.ReplyTo != nil {
		out.ReplyTo = []string{q.ReplyTo.Email}
	}
	if q.SendAt != 0 {
		out.SendAt = time.Unix(q.SendAt, 0)
	}
	refs := 0
	for _, tag := range q.Tags {
		if strings.HasPrefix(tag, "sb-"+providertest.Ref) {
			refs++
			continue
		}
		out.Tags = append(out.Tags, tag)
	}
	if refs != 1 {
		t.Errorf("%d reference tags in %q", refs, q.Tags)
	}
	if len(q.Tags) > 5 {
		t.Errorf("%d tags", len(q.Tags))
	}
	if q.InReplyTo != "" {
		out.Headers["In-Reply-To"] = []string{"<" + q.InReplyTo + ">"}
	}
	if len(q.References) > 0 {
		out.Headers["References"] = []string{strings.Join(q.References, " ")}
	}
	if q.ListUnsubscribe != "" {
		out.Headers["List-Unsubscribe"] = []string{"<" + q.ListUnsubscribe + ">"}
	}
	for _, h := range q.Headers {
		out.Headers[h.Name] = append(out.Headers[h.Name], h.Value)
	}
	for _, a := range q.Attachments {
		content, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil || (a.Disposition == "inline") != (a.ID != "") || a.Disposition == "" {
			t.Errorf("attachment %q: disposition %q, id %q, %v", a.Filename, a.Disposition, a.ID, err)
		}
		out.Attachments = append(out.Attachments, providertest.SentAttachment{Name: a.Filename, ContentID: a.ID, Content: content})
	}
	return out
}

func TestProvider(t *testing.T) { providertest.Run(t, suite(t, "")) }

// TestProviderProfessional: a plan with custom headers, and the undocumented rcpt_to.
func TestProviderProfessional(t *testing.T) {
	s := suite(t, "plan = \"Professional\"\nrcpt_to = true\ndomain_id = \"7z3m5jgrogdpyo6n\"")
	s.Webhooks, s.Errors = "", nil
	s.Info.New = func(o providers.Options) (providers.Provider, error) {
		p, err := New(o)
		if err != nil {
			return nil, err
		}
		return sendOnly{p, p.(providers.Preparer), p.(providers.Checker)}, nil
	}
	providertest.Run(t, s)
}

// sendOnly hides the webhooks, which the other suite has tried.
type sendOnly struct {
	providers.Provider
	providers.Preparer
	providers.Checker
}

// call sends one mail to n recipients against a canned answer.
func call(t *testing.T, options string, m *translate.Mail, status int, header map[string]string, body string) (*providers.Outcome, *providers.Error) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		for k, v := range header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(status)
		io.WriteString(w, body)
	}))
	defer srv.Close()
	out, err := suite(t, options).New(t, srv.URL, nil).Send(t.Context(), m)
	var e *providers.Error
	if err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
	return out, e
}

func caps(t testing.TB, options string) translate.Capabilities {
	return suite(t, options).New(t, "http://127.0.0.1:1", nil).Capabilities()
}

// TestSplit: with several recipients a refusal that one of them, or their number, caused plans each again.
func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		file  string
		kind  providers.Kind
		split bool
	}{
		{"422-recipient.json", providers.Permanent, true},
		{"422-MS42205.json", providers.Permanent, true},
		{"422-MS42201.json", providers.Permanent, true},
		{"422-subject.json", providers.Permanent, false},
		{"422-recipient-and-subject.json", providers.Permanent, false},
		{"422-MS42207.json", providers.Operator, false},
	} {
		t.Run(tt.file, func(t *testing.T) {
			_, e := call(t, "", providertest.Plain(t, caps(t, ""), 3), 422, nil, fixture(t, tt.file))
			if e == nil || e.Kind != tt.kind || e.Split != tt.split {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// TestPlan: what the plan lacks is named, so that mail goes without it.
func TestPlan(t *testing.T) {
	const professional = `plan = "professional"`
	head := "From: a@example.com\r\nTo: b@example.org\r\nSubject: s\r\n"
	for _, tt := range []struct{ name, fields, body, feature string }{
		{"named field", "X-A: 1\r\nList-Unsubscribe: <https://example.com/u>\r\n", fixture(t, "422-MS42216-headers.json"), "headers"},
		{"named in the text", "X-A: 1\r\nReferences: <a@example.com>\r\n", `{"message":"The references parameter needs a paid plan. #MS42216"}`, "threading"},
		{"unnamed, one candidate", "X-A: 1\r\n", fixture(t, "422-MS42216-unknown.json"), "headers"},
		{"unnamed, several", "X-A: 1\r\nList-Unsubscribe: <https://example.com/u>\r\n", fixture(t, "422-MS42216-unknown.json"), "list-unsubscribe"},
		{"named, but not in the call", "X-A: 1\r\n", `{"message":"x","errors":{"list_unsubscribe":["Not in your plan. #MS42216"]}}`, "headers"},
		{"tracking", "X-Smtpbridge-Track: off\r\n", `{"message":"settings.track_clicks: not in your plan #MS42216"}`, "tracking"},
		{"nothing of that kind", "", fixture(t, "422-MS42216-unknown.json"), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			msg := providertest.Message{Name: tt.name, From: "a@example.com", Rcpts: []string{"b@example.org"}, EML: head + tt.fields + "\r\nHello\r\n"}
			_, e := call(t, professional, msg.Plan(t, caps(t, professional))[0], 422, nil, tt.body)
			scope := providers.ScopeFeature
			if tt.feature == "" {
				scope = providers.ScopeAccount
			}
			if e == nil || e.Kind != providers.Operator || e.Scope != scope || e.Feature != tt.feature || e.Code != "MS42216" {
				t.Errorf("got %+v", e)
			}
		})
	}
}

// TestHeadersOfAnAnswer: pauses and warnings of an accepted call.
func TestHeadersOfAnAnswer(t *testing.T) {
	date := suiteNow.Add(time.Hour).Format(http.TimeFormat) // the vendor's clock is another
	for _, tt := range []struct {
		name     string
		header   map[string]string
		body     string
		throttle time.Duration
		warning  string
	}{
		{"plenty", map[string]string{"X-Ratelimit-Remaining": "7", "X-Ratelimit-Reset": "4000000000", "X-Apiquota-Remaining": "70"}, "", 0, ""},
		{"minute used", map[string]string{"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": fmt.Sprint(suiteNow.Add(time.Hour + 42*time.Second).Unix())}, "", 42 * time.Second, ""},
		{"absurd reset", map[string]string{"X-Ratelimit-Remaining": "0", "X-Ratelimit-Reset": "4000000000"}, "", 0, ""},
		{"day used", map[string]string{"X-Apiquota-Remaining": "0", "X-Apiquota-Reset": "2026-11-23T15:00:00.000000Z"}, "", 2 * time.Hour, "daily API quota"},
		{"paused", map[string]string{"X-Send-Paused": "true"}, "", 0, "paused"},
		{"other warning", nil, `{"warnings":[{"type":"NOVEL","message":"something"}]}`, 0, "NOVEL: something"},
		{"some, nobody named", nil, `{"warnings":[{"type":"SOME_SUPPRESSED","warning":"hm"}]}`, 0, "hm"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := map[string]string{"X-Message-Id": id, "Date": date}
			for k, v := range tt.header {
				h[k] = v
			}
			out, e := call(t, "", providertest.Plain(t, caps(t, ""), 2), 202, h, tt.body)
			if e != nil || out.Throttle != tt.throttle || !strings.Contains(out.Warning, tt.warning) || tt.warning == "" && out.Warning != "" || out.Rcpts[1].Verdict != providers.Accepted {
				t.Errorf("got %+v, %v", out, e)
			}
		})
	}
}

// TestTwinFaults walks through the twin's own refusals with the provider's eyes.
func TestTwinFaults(t *testing.T) {
	newTwin := func(o twin.Options) (*twin.Twin, providers.Provider) {
		o.Token, o.Now = providertest.Key, func() time.Time { return suiteNow }
		tw := twin.New(o)
		srv := httptest.NewServer(tw.Handler())
		t.Cleanup(srv.Close)
		return tw, suite(t, "").New(t, srv.URL, nil)
	}
	kind := func(err error) (providers.Kind, string, time.Duration) {
		var e *providers.Error
		if !errors.As(err, &e) {
			return providers.Unknown, "", 0
		}
		return e.Kind, e.Code, e.RetryAfter
	}
	one := providertest.Plain(t, caps(t, ""), 1)

	t.Run("by the minute", func(t *testing.T) {
		_, p := newTwin(twin.Options{PerMinute: 1})
		out, err := p.Send(t.Context(), one)
		if err != nil || out.Throttle != time.Minute {
			t.Fatalf("got %+v, %v", out, err)
		}
		_, err = p.Send(t.Context(), one)
		if k, code, wait := kind(err); k != providers.RateLimited || code != "MS42903" || wait != time.Minute {
			t.Errorf("got %v", err)
		}
	})
	t.Run("by the day", func(t *testing.T) {
		_, p := newTwin(twin.Options{PerDay: 1})
		out, err := p.Send(t.Context(), one)
		if err != nil || out.Throttle != 12*time.Hour || out.Warning == "" {
			t.Fatalf("got %+v, %v", out, err)
		}
		_, err = p.Send(t.Context(), one)
		if k, code, wait := kind(err); k != providers.RateLimited || code != "MS42901" || wait != 12*time.Hour {
			t.Errorf("got %v", err)
		}
		if err := p.(providers.Checker).Check(t.Context()); providers.KindOf(err) != providers.RateLimited {
			t.Errorf("Check: got %v", err)
		}
	})
	t.Run("foreign domain", func(t *testing.T) {
		_, p := newTwin(twin.Options{Domain: "other.example"})
		_, err := p.Send(t.Context(), one)
		if k, code, _ := kind(err); k != providers.Operator || code != "MS42207" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("under review", func(t *testing.T) {
		_, p := newTwin(twin.Options{Review: true})
		_, err := p.Send(t.Context(), providertest.Plain(t, caps(t, ""), 11))
		var e *providers.Error
		if !errors.As(err, &e) || e.Code != "MS42205" || !e.Split {
			t.Errorf("got %v", err)
		}
	})
	t.Run("suppressed", func(t *testing.T) {
		tw, p := newTwin(twin.Options{Suppressed: map[string]string{"R0@example.org": "unsubscribed"}})
		out, err := p.Send(t.Context(), providertest.Plain(t, caps(t, ""), 2))
		if err != nil || out.Rcpts[0].Verdict != providers.Rejected || out.Rcpts[0].Reason != event.ReasonUnsubscribed || out.Rcpts[0].Status != "5.7.1" || out.Rcpts[1].Verdict != providers.Accepted {
			t.Errorf("got %+v, %v", out, err)
		}
		out, err = p.Send(t.Context(), one)
		if err != nil || out.Rcpts[0].Verdict != providers.Rejected || out.MessageID != "" || tw.Count() != 1 {
			t.Errorf("got %+v, %v", out, err)
		}
	})
	t.Run("maintenance", func(t *testing.T) {
		tw, p := newTwin(twin.Options{})
		tw.Inject(twin.Fault{Status: 421, Body: `{"message":"Maintenance"}`})
		if _, err := p.Send(t.Context(), one); providers.KindOf(err) != providers.Transient {
			t.Errorf("got %v", err)
		}
	})
}

// TestFind looks calls up whose answer was lost.
func TestFind(t *testing.T) {
	var ahead atomic.Int64 // of suiteNow
	clock := func() time.Time { return suiteNow.Add(time.Duration(ahead.Load())) }
	serve := func(o twin.Options, options string) (*twin.Twin, providers.Provider) {
		o.Token, o.Now = providertest.Key, clock
		tw := twin.New(o)
		srv := httptest.NewServer(tw.Handler())
		t.Cleanup(srv.Close)
		s := suite(t, options)
		adapt := s.Options
		s.Options = func(t testing.TB, po *providers.Options) {
			adapt(t, po)
			po.Now = clock
		}
		return tw, s.New(t, srv.URL, nil)
	}
	find := func(p providers.Provider, m *translate.Mail) (*providers.Outcome, providers.Found, error) {
		return p.(providers.Finder).Find(t.Context(), m, suiteNow)
	}
	tw, p := serve(twin.Options{}, "")
	m := providertest.Plain(t, caps(t, ""), 2)
	tw.Inject(twin.Fault{Lose: true})
	if _, err := p.Send(t.Context(), m); providers.KindOf(err) != providers.Ambiguous {
		t.Fatalf("got %v, want Ambiguous", err)
	}
	ahead.Store(int64(2 * time.Minute))
	out, found, err := find(p, m)
	if err != nil || found != providers.Present || out.MessageID != tw.Mails()[0].ID || len(out.Rcpts) != 2 {
		t.Errorf("taken: got %+v, %v, %v", out, found, err)
	}
	other := providertest.Plain(t, caps(t, ""), 1)
	other.Ref += "other"
	if _, found, err := find(p, other); err != nil || found != providers.Absent {
		t.Errorf("not taken: got %v, %v", found, err)
	}
	later := *other
	later.Options.SendAt = clock().Add(time.Hour)
	if _, found, err := find(p, &later); err != nil || found != providers.CannotTell {
		t.Errorf("scheduled: got %v, %v", found, err)
	}
	if _, found, err := p.(providers.Finder).Find(t.Context(), m, suiteNow.Add(-48*time.Hour)); err != nil || found != providers.CannotTell {
		t.Errorf("too old: got %v, %v", found, err)
	}

	for _, tt := range []struct {
		name, options string
		o             twin.Options
		faults        []twin.Fault
		never         bool // no later look-up will tell
	}{
		{"no scope", "", twin.Options{NoScopes: true}, nil, true},
		{"domain of another account", "", twin.Options{Domain: "other.example"}, nil, true},
		{"another domain_id", `domain_id = "abc"`, twin.Options{}, nil, true},
		{"no tag", "reference_tag = false", twin.Options{}, nil, true},
		{"key", "", twin.Options{}, []twin.Fault{{Status: 401, Body: "{}"}}, false},
		{"too fast", "", twin.Options{}, []twin.Fault{{Status: 429, Body: `{"message":"#MS42903"}`}}, false},
		{"trouble", `domain_id = "` + twin.DomainID + `"`, twin.Options{}, []twin.Fault{{Status: 502}}, false},
		{"not JSON", `domain_id = "` + twin.DomainID + `"`, twin.Options{}, []twin.Fault{{Status: 200, Body: "<html>"}}, false},
		{"no data", `domain_id = "` + twin.DomainID + `"`, twin.Options{}, []twin.Fault{{Status: 200, Body: "{}"}}, true},
		{"filter ignored", `domain_id = "` + twin.DomainID + `"`, twin.Options{}, []twin.Fault{{Status: 200, Body: `{"data":[{"message_id":"x","tags":["sb-other"]},{"tags":null}]}`}}, true},
		{"dropped", "", twin.Options{}, []twin.Fault{{Drop: true}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw, p := serve(tt.o, tt.options)
			tw.Inject(tt.faults...)
			out, found, err := find(p, m)
			if out != nil || found != providers.CannotTell || (err == nil) != tt.never {
				t.Errorf("got %+v, %v, %v", out, found, err)
			}
			if err != nil && providers.KindOf(err) != providers.Transient {
				t.Errorf("a look-up blames the account: %v", err)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	for _, tt := range []struct {
		name, key, options string
		o                  twin.Options
		faults             []twin.Fault
		want               providers.Kind // Unknown: all is well
	}{
		{"good", "tok", "", twin.Options{}, nil, providers.Unknown},
		{"good id", "tok", `domain_id = "` + twin.DomainID + `"`, twin.Options{}, nil, providers.Unknown},
		{"bad key", "other", "", twin.Options{}, nil, providers.Operator},
		{"no scope for domains", "tok", "", twin.Options{NoScopes: true}, nil, providers.Unknown},
		{"paused", "tok", "", twin.Options{Paused: true}, nil, providers.Operator},
		{"foreign id", "tok", `domain_id = "abc"`, twin.Options{}, nil, providers.Operator},
		{"unverified", "tok", "", twin.Options{}, []twin.Fault{{Status: 200, Body: `{"remaining":5}`}, {Status: 200, Body: `{"data":[{"id":"a","name":"a.example","is_verified":false}]}`}}, providers.Operator},
		{"suspended", "tok", "", twin.Options{}, []twin.Fault{{Status: 403, Body: fixture(t, "403-MS40303.json")}}, providers.Operator},
		{"too fast", "tok", "", twin.Options{}, []twin.Fault{{Status: 429, Body: `{"message":"#MS42903"}`}}, providers.RateLimited},
		{"nonsense", "tok", "", twin.Options{}, []twin.Fault{{Status: 200, Body: "OK"}}, providers.Transient},
		{"422", "tok", "", twin.Options{}, []twin.Fault{{Status: 422, Body: `{"message":"x"}`}}, providers.Transient},
		{"down", "tok", "", twin.Options{}, []twin.Fault{{Drop: true}}, providers.Transient},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Token = "tok"
			tw := twin.New(tt.o)
			srv := httptest.NewServer(tw.Handler())
			defer srv.Close()
			tw.Inject(tt.faults...)
			s := suite(t, "")
			s.Options = func(_ testing.TB, o *providers.Options) {
				o.APIKey, o.Decode = secret.New(tt.key), providertest.Decode(tt.options)
			}
			err := s.New(t, srv.URL, nil).(providers.Checker).Check(t.Context())
			if (err == nil) != (tt.want == providers.Unknown) || err != nil && providers.KindOf(err) != tt.want {
				t.Errorf("got %v", err)
			}
			if tw.Count() != 0 {
				t.Error("a check sent mail")
			}
		})
	}
}

// TestTwinRefuses provokes each documented error, and takes what is right.
func TestTwinRefuses(t *testing.T) {
	tw := twin.New(twin.Options{Token: "tok", Domain: "example.com", Plan: "starter", Now: func() time.Time { return suiteNow }})
	free := twin.New(twin.Options{Token: "tok", Plan: "trial"})
	base := `"from":{"email":"a@sub.example.com","name":"A, B"},"to":[{"email":"b@example.org"}],"subject":"s","text":"x"`
	many := strings.TrimSuffix(strings.Repeat(`{"email":"%d@example.org"},`, 51), ",")
	for i := range 51 {
		many = strings.Replace(many, "%d", fmt.Sprint("u", i), 1)
	}
	for _, tt := range []struct {
		name   string
		tw     *twin.Twin
		token  string
		body   string
		status int
		want   string
	}{
		{"taken", tw, "tok", `{` + base + `,"tags":["a"],"in_reply_to":"x@example.com","references":["<x@example.com>"],"settings":{"track_opens":false}}`, 202, ""},
		{"token", tw, "x", `{` + base + `}`, 401, "Unauthenticated"},
		{"not JSON", tw, "tok", `{`, 400, "JSON"},
		{"unknown field", tw, "tok", `{` + base + `,"metadata":{}}`, 400, "metadata"},
		{"domain", tw, "tok", `{"from":{"email":"a@notexample.com"},"to":[{"email":"b@example.org"}],"subject":"s","text":"x"}`, 422, "#MS42207"},
		{"empty", tw, "tok", `{}`, 422, "required"},
		{"name", tw, "tok", `{"from":{"email":"a@example.com"},"to":[{"email":"b@example.org","name":"B, C"}],"subject":"s","text":"x"}`, 422, "to.0.name"},
		{"twice", tw, "tok", `{` + base + `,"cc":[{"email":"B@example.org"}]}`, 422, "#MS42201"},
		{"too many", tw, "tok", `{"from":{"email":"a@example.com"},"to":[` + many + `],"subject":"s","text":"x"}`, 422, "#MS42205"},
		{"address", tw, "tok", `{"from":{"email":"a@example.com"},"to":[{"email":"b@"}],"subject":"s","text":"x"}`, 422, "to.0.email"},
		{"blank text", tw, "tok", `{"from":{"email":"a@example.com"},"to":[{"email":"b@example.org"}],"subject":"s","text":" \n"}`, 422, "text"},
		{"tags", tw, "tok", `{` + base + `,"tags":["1","2","3","4","5","6"]}`, 422, "5 items"},
		{"headers", tw, "tok", `{` + base + `,"headers":[{"name":"X-A","value":"1"}]}`, 422, "#MS42216"},
		{"references", free, "tok", `{` + base + `,"references":["<a@example.com>"]}`, 422, "#MS42216"},
		{"past", tw, "tok", `{` + base + `,"send_at":1000}`, 422, "#MS42218"},
		{"far", tw, "tok", `{` + base + `,"send_at":4000000000}`, 422, "#MS42219"},
		{"personalization", tw, "tok", `{` + base + `,"personalization":[{"email":"z@example.org","data":{}}]}`, 422, "#MS42217"},
		{"in_reply_to", tw, "tok", `{` + base + `,"in_reply_to":"no address"}`, 422, "in_reply_to"},
		{"extension", tw, "tok", `{` + base + `,"attachments":[{"filename":"a.exe","content":"QQ==","disposition":"attachment"}]}`, 422, "#MS42210"},
		{"base64", tw, "tok", `{` + base + `,"attachments":[{"filename":"a.txt","content":"?","disposition":"attachment"}]}`, 422, "#MS42215"},
		{"mismatch", tw, "tok", `{` + base + `,"attachments":[{"filename":"a.pdf","content":"QQ==","disposition":"attachment"}]}`, 422, "#MS42202"},
		{"disposition", tw, "tok", `{` + base + `,"attachments":[{"filename":"a.txt","content":"QQ=="}]}`, 422, "disposition"},
		{"inline without id", tw, "tok", `{` + base + `,"attachments":[{"filename":"a.txt","content":"QQ==","disposition":"inline"}]}`, 422, "without brackets"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := httptest.NewRequest("POST", "/v1/email", strings.NewReader(tt.body))
			r.Header.Set("Authorization", "Bearer "+tt.token)
			w := httptest.NewRecorder()
			tt.tw.ServeHTTP(w, r)
			if w.Code != tt.status || !strings.Contains(w.Body.String(), tt.want) || tt.status == 202 && (w.Header().Get("X-Message-Id") == "" || w.Body.Len() > 0) {
				t.Errorf("got %d %s", w.Code, w.Body)
			}
		})
	}
}

// TestSDK has MailerSend's own client use the twin: all it can say in a mail, and the errors it documents.
func TestSDK(t *testing.T) {
	node, modules := providertest.SDK(t, "mailersend")
	tw := twin.New(twin.Options{Token: "mlsn.token", Domain: "example.com", Suppressed: map[string]string{"gone@example.net": "hard_bounced"}, Secret: hookSecret})
	srv := httptest.NewServer(tw.Handler())
	defer srv.Close()
	p := parser(t) // the ping comes before there is a secret
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err == nil && strings.HasSuffix(r.URL.Path, "/acct") {
			_, err = providertest.Receive(p, r, body)
		} else {
			err = providers.ErrSignature
		}
		if err != nil {
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer hook.Close()
	cmd := exec.CommandContext(t.Context(), node, filepath.Join("..", "..", "test", "sdk", "mailersend.test.mjs"), modules, srv.URL, "mlsn.token", hook.URL+"/webhook/acct")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	mails := tw.Mails()
	if len(mails) != 3 {
		t.Fatalf("%d calls were taken", len(mails))
	}
	full, some, hidden := mails[0], mails[1], mails[2]
	if full.From.Name != "Jürgen, Jr." || len(full.To) != 2 || len(full.Cc) != 1 || len(full.Bcc) != 1 || full.ReplyTo == nil || full.Subject != "Grüße" ||
		len(full.Tags) != 5 || full.SendAt.IsZero() || full.InReplyTo == "" || len(full.References) != 2 || full.ListUnsubscribe == "" ||
		full.PrecedenceBulk == nil || !*full.PrecedenceBulk || !slices.Equal(full.Headers["X-Campaign"], []string{"first"}) || full.Settings["track_opens"] {
		t.Errorf("got %+v", full)
	}
	if len(full.Attachments) != 2 || full.Attachments[1].Disposition != "inline" || full.Attachments[1].ID != "logo" || string(full.Attachments[0].Content) != "%PDF-1.4" {
		t.Errorf("got attachments %+v", full.Attachments)
	}
	if !slices.Equal(some.Rcpts(), []string{"one@example.org"}) || !slices.Equal(hidden.Rcpts(), []string{"hidden@example.org"}) || len(hidden.To) != 0 {
		t.Errorf("got %+v and %+v", some, hidden)
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct{ name, toml, secret, want string }{
		{"none", "", "", ""},
		{"all", "plan = \"starter\"\napproved = false\nrcpt_to = true\nreference_tag = false\ndomain_id = \"7z3m5jgrogdpyo6n\"\nprecedence = \"domain\"\ntrack_content = false", "s", ""},
		{"plan", `plan = "gold"`, "", "plan"},
		{"precedence", `precedence = "list"`, "", "precedence"},
		{"domain", `domain_id = "../x"`, "", "domain_id"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := providers.Options{Account: "a", APIKey: secret.New("tok"), Decode: providertest.Decode(tt.toml)}
			if tt.secret != "" {
				o.WebhookSecrets = []secret.String{secret.New(tt.secret)}
			}
			p, err := New(o)
			switch {
			case tt.want == "" && err != nil, tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v", err)
			case tt.name == "all":
				c := p.Capabilities()
				if c.MaxTo != 10 || c.MaxCc != 1 || c.MaxBcc != 1 || c.Tags != 5 || c.NeedsTo || c.Headers != translate.HeadersNone {
					t.Errorf("got %+v", c)
				}
			}
		})
	}
	for _, o := range []providers.Options{
		{APIKey: secret.New("tok"), WebhookSecrets: []secret.String{secret.New("")}},
		{APIKey: secret.New("tok"), InboundSecrets: []secret.String{secret.New("")}},
	} {
		if _, err := New(o); err == nil {
			t.Error("an empty secret was taken")
		}
	}
}

// TestGolden sends each testdata/send/CASE/in.eml and compares the requests with want.json and the outcomes with outcome.json.
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
	var resp struct {
		Status int
		Header map[string]string
		Body   json.RawMessage
	}
	if err := errors.Join(json.Unmarshal(read("envelope.json"), &env), json.Unmarshal(read("resp.json"), &resp)); err != nil {
		t.Fatal(err)
	}
	var requests, outcomes []any
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var v any
		if err := json.NewDecoder(r.Body).Decode(&v); err != nil {
			t.Error(err)
		}
		requests = append(requests, v)
		for k, v := range resp.Header {
			w.Header().Set(k, v)
		}
		w.WriteHeader(resp.Status)
		w.Write(resp.Body)
	}))
	defer srv.Close()
	p := suite(t, env.Options).New(t, srv.URL, nil)
	msg := providertest.Message{EML: string(read("in.eml")), From: env.From, Rcpts: env.Rcpts}
	for i, m := range msg.Plan(t, p.Capabilities()) {
		m.Ref = fmt.Sprintf("%s-%d", providertest.Ref, i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		var rcpts []string
		for _, r := range out.Rcpts {
			rcpts = append(rcpts, strings.TrimSpace(fmt.Sprintf("%s %d %s %s %s", r.Addr, r.Verdict, r.Status, r.Reason, r.Detail)))
		}
		outcomes = append(outcomes, map[string]any{"id": out.MessageID, "rcpts": rcpts, "warning": out.Warning, "losses": m.Losses, "lost": out.Lost})
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

// TestLongCc: with rcpt_to a plan may leave a call with a cc alone, which MailerSend would refuse.
func TestLongCc(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key})
	srv := httptest.NewServer(tw.Handler())
	defer srv.Close()
	msg := providertest.Message{Name: "cc", From: "sender@example.com", Rcpts: []string{"to@example.org"}}
	var cc []string
	for i := range 12 {
		cc = append(cc, fmt.Sprintf("cc%d@example.org", i))
	}
	msg.Rcpts = append(msg.Rcpts, cc...)
	msg.EML = "From: sender@example.com\r\nTo: to@example.org\r\nCc: " + strings.Join(cc, ", ") + "\r\nSubject: s\r\n\r\nHello\r\n"
	p := suite(t, "rcpt_to = true").New(t, srv.URL, nil)
	lost := 0
	for _, m := range msg.Plan(t, p.Capabilities()) {
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		lost += len(out.Lost)
	}
	mails := tw.Mails()
	if len(mails) != 2 || len(mails[0].Cc) != 10 || len(mails[1].To) != 2 || lost != 1 {
		t.Errorf("got %+v, %d losses", mails, lost)
	}
}

// TestTags: MailerSend takes five, of which ours is one.
func TestTags(t *testing.T) {
	for options, want := range map[string]int{"": 4, "reference_tag = false": 5} {
		tw := twin.New(twin.Options{Token: providertest.Key})
		srv := httptest.NewServer(tw.Handler())
		p := suite(t, options).New(t, srv.URL+"/v1/", nil)
		m := providertest.Message{Name: "tags", From: "a@example.com", Rcpts: []string{"b@example.org"}, EML: strings.Repeat("X-Smtpbridge-Tag: %\r\n", 6) +
			"From: a@example.com\r\nTo: b@example.org\r\nSubject: s\r\n\r\nHello\r\n"}
		for i := range 6 {
			m.EML = strings.Replace(m.EML, "%", fmt.Sprint("tag", i), 1)
		}
		mail := m.Plan(t, p.Capabilities())[0]
		_, err := p.Send(t.Context(), mail)
		srv.Close()
		if err != nil || len(mail.Options.Tags) != want || len(tw.Mails()[0].Tags) != 5 {
			t.Errorf("%q: %q, %v", options, mail.Options.Tags, err)
		}
	}
}

// TestScheduled: send_at is asked for only while it lies ahead.
func TestScheduled(t *testing.T) {
	for _, tt := range []struct {
		at   time.Time
		sent bool
	}{{suiteNow.Add(time.Hour), true}, {suiteNow, false}, {suiteNow.Add(-time.Hour), false}} {
		tw := twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }})
		srv := httptest.NewServer(tw.Handler())
		m := providertest.Plain(t, caps(t, ""), 1)
		m.Options.SendAt = tt.at
		_, err := suite(t, "").New(t, srv.URL, nil).Send(t.Context(), m)
		srv.Close()
		if err != nil || tw.Mails()[0].SendAt.IsZero() == tt.sent {
			t.Errorf("%v: %v", tt.at, err)
		}
	}
	if c := caps(t, ""); c.SendAt >= 72*time.Hour || !slices.Contains(c.AttachExts, "p7s") {
		t.Errorf("got %+v", c)
	}
}
