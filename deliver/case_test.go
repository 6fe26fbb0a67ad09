package deliver

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	"smtpbridge/providers/maileroo"
	mailerootwin "smtpbridge/providers/maileroo/twin"
	"smtpbridge/providers/mailersend"
	mailersendtwin "smtpbridge/providers/mailersend/twin"
	"smtpbridge/providers/mailpace"
	mailpacetwin "smtpbridge/providers/mailpace/twin"
	"smtpbridge/providers/mandrill"
	mandrilltwin "smtpbridge/providers/mandrill/twin"
	"smtpbridge/providers/sandbox"
	sandboxtwin "smtpbridge/providers/sandbox/twin"
	"smtpbridge/providers/smtpeter"
	smtpetertwin "smtpbridge/providers/smtpeter/twin"
	"smtpbridge/store"
)

// The cases of ESP faults, through the real providers, runner and store. The other side is the ESP's
// twin behind a transport that can be told to fail, so the time is synthetic.

const caseKey = "key-of-the-case-tests-0123456789"

// wire is the network between a provider and its ESP.
type wire struct {
	mu       sync.Mutex
	api      http.Handler
	fault    fault
	requests int
	hosts    map[string]int
}

// fault answers a request in the ESP's place. deliver has the ESP serve it.
type fault func(r *http.Request, deliver func() *http.Response) (*http.Response, error)

func (w *wire) set(f fault) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fault = f
}

func (w *wire) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.requests
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	w.requests++
	w.hosts[r.URL.Host]++
	f := w.fault
	w.mu.Unlock()
	if r.Body != nil {
		defer r.Body.Close()
	}
	deliver := func() *http.Response {
		var body io.Reader
		if r.Body != nil {
			b, err := io.ReadAll(r.Body)
			if err != nil {
				return nil
			}
			body = bytes.NewReader(b)
		}
		in := httptest.NewRequest(r.Method, r.URL.String(), body)
		in.Header = http.Header{}
		for k, vs := range r.Header {
			for _, v := range vs {
				in.Header.Add(k, v)
			}
		}
		out := httptest.NewRecorder()
		w.api.ServeHTTP(out, in)
		resp := out.Result()
		resp.Request = r
		return resp
	}
	if f == nil {
		return deliver(), nil
	}
	return f(r, deliver)
}

// esp is one provider with its ESP.
type esp struct {
	name  string
	wire  *wire
	prov  providers.Provider
	info  providers.Info
	taken func() int // mails the ESP has accepted
	once  bool       // an answer lost after the mail was taken leads to no second mail
}

// caseESPs lists the providers that speak HTTP: all but those that hand mail on themselves.
var caseESPs = slices.DeleteFunc(all.Registry().Names(), func(name string) bool {
	return slices.Contains([]string{"lmtp", "maildir", "smtp"}, name)
})

func newESP(t *testing.T, name string) *esp {
	t.Helper()
	e := &esp{name: name, wire: &wire{hosts: map[string]int{}}}
	o := providers.Options{
		Account: "a", Hostname: "bridge.example.com", APIKey: secret.New(caseKey), BaseURL: "https://api.example.test",
		Client: &http.Client{Transport: e.wire}, Now: time.Now,
	}
	var api http.Handler
	switch name {
	case "maileroo":
		tw := mailerootwin.New(mailerootwin.Options{Key: caseKey})
		e.info, api, e.taken = maileroo.Info, tw, tw.Count
	case "mailersend":
		tw := mailersendtwin.New(mailersendtwin.Options{Token: caseKey})
		e.info, api, e.taken = mailersend.Info, tw, tw.Count
	case "mailpace":
		tw := mailpacetwin.New(mailpacetwin.Options{Token: caseKey})
		e.info, api, e.once = mailpace.Info, tw, true
		e.taken = func() int { n, _ := tw.Count(); return n }
	case "mandrill":
		tw := mandrilltwin.New(mandrilltwin.Options{Key: caseKey, Rejects: map[string]string{"blocked@r.example": "hard-bounce"}})
		e.info, api, e.taken = mandrill.Info, tw, tw.Count
	case "sandbox":
		tw := sandboxtwin.New(sandboxtwin.Config{APIKey: caseKey})
		t.Cleanup(func() { tw.Close() })
		e.info, api, e.once = sandbox.Info, tw, true
		e.taken = func() int { return len(tw.Inbox()) }
	case "smtpeter":
		tw := smtpetertwin.New(smtpetertwin.Options{Token: caseKey})
		e.info, api, e.taken = smtpeter.Info, tw, tw.Count
	default:
		t.Fatalf("no ESP %q", name)
	}
	e.wire.api = api
	p, err := e.info.New(o)
	if err != nil {
		t.Fatal(err)
	}
	e.prov = p
	return e
}

// eachESP runs a test against every ESP, each with a bench in its own time.
func eachESP(t *testing.T, f func(t *testing.T, b *bench, e *esp)) {
	t.Helper()
	withESPs(t, caseESPs, f)
}

func withESPs(t *testing.T, names []string, f func(t *testing.T, b *bench, e *esp)) {
	t.Helper()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bubble(t, func(t *testing.T) {
				e := newESP(t, name)
				b := newBench(t, e.prov)
				defer b.close()
				b.cfg.Expire = 5 * 24 * time.Hour
				b.cfg.Accounts["a"].Info = e.info
				b.start()
				b.after(0) // it runs
				f(t, b, e)
				if n := len(e.wire.hosts); n > 1 {
					t.Errorf("requests to %v", e.wire.hosts)
				}
				if strings.Contains(b.log.String(), caseKey) {
					t.Error("the key is in the log")
				}
			})
		})
	}
}

// drain reads a request whole.
func drain(r *http.Request) {
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
}

// answer is a canned answer that reads the request first.
func answer(status int, body string, header ...string) fault {
	return func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
		drain(r)
		h := http.Header{"Content-Type": {"application/json"}}
		for i := 0; i+1 < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), ContentLength: int64(len(body)), Request: r}, nil
	}
}

// waitFor lets time pass until the mail is in the wanted state.
func (b *bench) waitFor(id, states string, limit time.Duration) {
	b.t.Helper()
	step := 10 * time.Second
	for end := b.now().Add(limit); b.now().Before(end); step = min(2*step, 10*time.Minute) {
		if b.states(id) == states {
			return
		}
		b.after(step)
	}
	b.wantStates(id, states)
}

// wantNoVerdict checks that nobody has been given up or told to be sent.
func (b *bench) wantNoVerdict(what, id string) {
	b.t.Helper()
	for _, k := range []event.Kind{event.Sent, event.Rejected, event.Failed} {
		if evs := b.events(id, k); len(evs) > 0 {
			b.t.Errorf("%s: event %+v", what, evs[0])
		}
	}
}

func (b *bench) unknownOutcomes(id string) int {
	n := 0
	for _, e := range b.events(id, event.Deferred) {
		if e.Outcome == event.OutcomeUnknown {
			n++
		}
	}
	return n
}

// TestCase053_Bcc: the envelope says who receives the mail, and nothing of a Bcc field leaves: neither the field, nor a name
// in it, nor an address that only it names.
func TestCase053_Bcc(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		var sent []string
		e.wire.set(func(r *http.Request, deliver func() *http.Response) (*http.Response, error) {
			text, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			r.Body = io.NopCloser(bytes.NewReader(text))
			sent = append(sent, string(text))
			return deliver(), nil
		})
		id := b.submitMail("From: App <app@example.com>\r\nTo: r@r.example\r\nBcc: Secret Person <hidden@r.example>,\r\n header-only@r.example\r\n"+
			"Subject: hello\r\nResent-Bcc: resent-only@r.example\r\n\r\nbody\r\n", "r@r.example", "hidden@r.example")
		b.waitFor(id, "r=sent hidden=sent", time.Hour)
		b.finals(id)
		if len(sent) == 0 {
			t.Fatal("no request")
		}
		for _, text := range sent {
			for _, form := range []string{text, unbase64(text)} {
				for _, leak := range []string{"Secret Person", "header-only", "resent-only", `Bcc: `, `\nBcc`} {
					if strings.Contains(form, leak) {
						t.Errorf("%q is in %s", leak, form)
					}
				}
			}
		}
		if all := strings.Join(sent, ""); !strings.Contains(all, "hidden@r.example") {
			t.Error("the hidden recipient is in no request")
		}
	})
}

// unbase64 decodes all that looks like base64 in a request.
func unbase64(s string) string {
	return regexp.MustCompile(`[A-Za-z0-9+/]{40,}={0,2}`).ReplaceAllStringFunc(s, func(s string) string {
		if text, err := base64.StdEncoding.DecodeString(s); err == nil {
			return string(text)
		}
		return s
	})
}

// TestCase065_NotReached: what surely did not arrive is repeated, and nothing is unclear about it.
func TestCase065_NotReached(t *testing.T) {
	dial := func(err error) fault {
		return func(*http.Request, func() *http.Response) (*http.Response, error) { return nil, err }
	}
	faults := map[string]fault{
		"refused":            dial(&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}),
		"unreachable":        dial(&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}),
		"connection timeout": dial(&net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded}),
		"no such host":       dial(&net.DNSError{Err: "no such host", Name: "api.example.test", IsNotFound: true}),
		"unknown authority":  dial(x509.UnknownAuthorityError{}),
		"expired":            dial(x509.CertificateInvalidError{Reason: x509.Expired}),
		"wrong name":         dial(x509.HostnameError{Certificate: &x509.Certificate{}, Host: "api.example.test"}),
		"reset within the body": func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
			_, err := io.CopyN(io.Discard, r.Body, 20)
			return nil, errors.Join(syscall.ECONNRESET, err)
		},
	}
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for name, f := range faults {
			e.wire.set(f)
			before := e.taken()
			id := b.submit("r@r.example")
			b.after(30 * time.Second)
			b.wantNoVerdict(name, id)
			if n := b.unknownOutcomes(id); n > 0 {
				t.Errorf("%s: the outcome is called unknown", name)
			}
			if len(b.events(id, event.Deferred)) == 0 {
				t.Errorf("%s: no word of the delay", name)
			}
			e.wire.set(nil)
			b.waitFor(id, "r=sent", time.Hour)
			if n := e.taken() - before; n != 1 {
				t.Errorf("%s: the ESP has the mail %d times", name, n)
			}
			b.finals(id)
		}
	})
}

// TestCase066_LostAnswers: a request that went out whole and was not answered is of unknown outcome until it is
// settled, and with keys no second mail comes of it.
func TestCase066_LostAnswers(t *testing.T) {
	reset := func(*http.Request) error { return syscall.ECONNRESET }
	silence := func(r *http.Request) error { <-r.Context().Done(); return context.Cause(r.Context()) }
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for _, tt := range []struct {
			name  string
			taken bool
			end   func(r *http.Request) error
		}{
			{"reset before acceptance", false, reset},
			{"reset after acceptance", true, reset},
			{"no answer before acceptance", false, silence},
			{"no answer after acceptance", true, silence},
		} {
			e.wire.set(func(r *http.Request, deliver func() *http.Response) (*http.Response, error) {
				if !tt.taken {
					drain(r)
				} else if resp := deliver(); resp.StatusCode > 299 {
					t.Errorf("the ESP answers %s", resp.Status)
				}
				return nil, tt.end(r)
			})
			before := e.taken()
			id := b.submit("r@r.example")
			b.after(2 * time.Minute)
			b.wantNoVerdict(tt.name, id)
			b.wantStates(id, "r=in_flight")
			if b.unknownOutcomes(id) == 0 {
				t.Errorf("%s: no event says that the outcome is unknown", tt.name)
			}
			e.wire.set(nil)
			b.waitFor(id, "r=sent", 6*time.Hour)
			n := e.taken() - before
			if n < 1 || n > 1 && (!tt.taken || e.once) {
				t.Errorf("%s: the ESP has the mail %d times", tt.name, n)
			}
			b.finals(id)
		}
	})
}

// TestCase067_CutAnswers: a 2xx whose body breaks off is no refusal, and with keys no second mail comes of it.
func TestCase067_CutAnswers(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		e.wire.set(func(_ *http.Request, deliver func() *http.Response) (*http.Response, error) {
			resp := deliver()
			resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, 3), broken{}))
			return resp, nil
		})
		id := b.submit("r@r.example")
		b.after(10 * time.Second)
		if got := b.states(id); got != "r=in_flight" && got != "r=sent" {
			t.Errorf("recipient is %s", got)
		}
		e.wire.set(nil)
		b.waitFor(id, "r=sent", 6*time.Hour)
		if n := e.taken(); n != 1 && (e.once || n != 2) {
			t.Errorf("the ESP has the mail %d times", n)
		}
		b.finals(id)
	})
}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// TestCase068_RetryAfterForms: the pause is what the ESP says, within reason, and costs the mail no attempt.
func TestCase068_RetryAfterForms(t *testing.T) {
	date := func(d time.Duration) func(time.Time) string {
		return func(now time.Time) string { return now.Add(d).UTC().Format(http.TimeFormat) }
	}
	text := func(s string) func(time.Time) string { return func(time.Time) string { return s } }
	type form struct {
		name       string
		header     func(now time.Time) string
		least, top time.Duration
	}
	forms := []form{
		{"seconds", text("120"), 2 * time.Minute, 2*time.Minute + 5*time.Second},
		{"date", date(2 * time.Minute), 119 * time.Second, 2*time.Minute + 5*time.Second},
		{"ten years", text("315360000"), time.Hour, time.Hour + 5*time.Second},
		{"date in ten years", date(87600 * time.Hour), time.Hour, time.Hour + 5*time.Second},
		{"past date", date(-time.Hour), time.Second, time.Hour},
		{"zero", text("0"), time.Second, time.Hour},
		{"negative", text("-5"), time.Second, time.Hour},
		{"junk", text("soon, thank you"), time.Second, time.Hour},
		{"not a number", text("NaN"), time.Second, time.Hour},
	}
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for status, forms := range map[int][]form{429: forms, 503: forms[:2]} {
			for _, f := range forms {
				name := fmt.Sprint(status, " ", f.name)
				var first, again time.Time
				e.wire.set(func(r *http.Request, deliver func() *http.Response) (*http.Response, error) {
					if first.IsZero() {
						first = time.Now()
						return answer(status, `{"message":"slow down"}`, "Retry-After", f.header(first))(r, deliver)
					}
					again = time.Now()
					e.wire.set(nil)
					return deliver(), nil
				})
				before := e.taken()
				id := b.submit("r@r.example")
				b.after(100 * time.Millisecond)
				if got := b.account("a").State; got != Throttled {
					t.Errorf("%s: account is %s", name, got)
				}
				if jobs := b.detail(id).Jobs; len(jobs) != 1 || jobs[0].Attempts != 0 {
					t.Errorf("%s: jobs %+v", name, jobs)
				}
				b.waitFor(id, "r=sent", 3*time.Hour)
				if d := again.Sub(first); d < f.least || d > f.top {
					t.Errorf("%s: waited %s, want %s to %s", name, d, f.least, f.top)
				}
				if n := e.taken() - before; n != 1 {
					t.Errorf("%s: the ESP has the mail %d times", name, n)
				}
			}
		}
	})
}

// TestCase069_ServerErrors: an ESP in trouble is asked again, later and later.
func TestCase069_ServerErrors(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for i, status := range []int{500, 502, 503, 504, 520, 521, 522, 523, 524, 525, 526, 527, 530, 599} {
			// Every status at one provider, some at all: the table of statuses is tested as such with each of them.
			for _, body := range []string{"", "<html><body><h1>Bad gateway</h1></body></html>"} {
				if status != 500 && status != 503 && caseESPs[i%len(caseESPs)] != e.name {
					continue
				}
				e.wire.set(answer(status, body))
				before, asked := e.taken(), e.wire.count()
				id := b.submit("r@r.example")
				b.after(20 * time.Minute)
				b.wantStates(id, "r=queued")
				b.wantNoVerdict(fmt.Sprint(status), id)
				if n := e.wire.count() - asked; n < 3 || n > 6 {
					t.Errorf("%d: %d requests in 20 minutes", status, n)
				}
				e.wire.set(nil)
				b.waitFor(id, "r=sent", time.Hour)
				if n := e.taken() - before; n != 1 {
					t.Errorf("%d: the ESP has the mail %d times", status, n)
				}
				b.finals(id)
			}
		}
	})
}

// TestCase070_Refusals: a documented refusal of the mail is final at once, told once, and says why, cut and on one line;
// it does not pause the account, as the next mail may be fine.
func TestCase070_Refusals(t *testing.T) {
	long := strings.Repeat("much too long ", 200) + "\r\nX-Forged: yes \x1b[31m"
	refusals := map[string]struct {
		status int
		body   string // a file below the provider's testdata/errors, or the body itself
	}{
		"maileroo":   {400, "400-recipient.json"},
		"mailersend": {422, "422-MS42208.json"},
		"mailpace":   {400, "400-attachment.json"},
		"mandrill":   {500, "500-validation.json"},
		"sandbox":    {422, fmt.Sprintf(`{"error":{"code":"invalid","message":%q}}`, long)},
		"smtpeter":   {400, "400-address.json"},
	}
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		r := refusals[e.name]
		body := r.body
		if strings.HasSuffix(body, ".json") {
			text, err := os.ReadFile("../providers/" + e.name + "/testdata/errors/" + body)
			if err != nil {
				t.Fatal(err)
			}
			body = string(text)
		}
		e.wire.set(answer(r.status, body))
		for range 4 {
			before := e.wire.count()
			id := b.submit("r@r.example")
			b.after(10 * time.Second)
			b.wantStates(id, "r=failed")
			ev := b.finals(id)["r@r.example"]
			if ev.Kind != event.Failed || !strings.HasPrefix(ev.Status, "5.") || ev.Diagnostic == "" {
				t.Errorf("event %+v", ev)
			}
			if len(ev.Diagnostic) > 600 || strings.ContainsFunc(ev.Diagnostic, func(r rune) bool { return r < ' ' }) {
				t.Errorf("diagnostic %q", ev.Diagnostic)
			}
			b.after(3 * time.Hour)
			if n := e.wire.count() - before; n != 1 {
				t.Errorf("%d requests for a mail that was refused for good", n)
			}
			b.finals(id)
		}
		if got := b.account("a").State; got != Active {
			t.Errorf("account is %s", got)
		}
		e.wire.set(nil)
		id := b.submit("r@r.example")
		b.after(10 * time.Second)
		b.wantStates(id, "r=sent")
	})
}

// TestCase071_KeysAndQuotas: what only the operator can mend pauses the account, keeps the mail beyond its life, alarms
// once, and goes on by itself.
func TestCase071_KeysAndQuotas(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for status, pause := range map[int]time.Duration{401: 20 * time.Minute, 402: time.Minute, 403: 4 * time.Hour} { // the last is longer than mail lives
			b.cfg.Expire = 3 * time.Hour
			e.wire.set(answer(status, ""))
			before, alarms := e.taken(), b.notices(noticePaused)
			var ids []string
			for range 3 {
				ids = append(ids, b.submit("r@r.example"))
				b.after(time.Second)
			}
			b.after(pause)
			if got := b.account("a").State; got != Paused && got != Probing {
				t.Errorf("%d: account is %s", status, got)
			}
			if n := b.notices(noticePaused) - alarms; n != 1 {
				t.Errorf("%d: %d alarms", status, n)
			}
			for _, id := range ids {
				b.wantNoVerdict(fmt.Sprint(status), id)
			}
			e.wire.set(nil)
			for _, id := range ids {
				for end := b.now().Add(3 * time.Hour); b.states(id) != "r=sent" && b.now().Before(end); b.after(10 * time.Minute) {
					if b.detail(id).Mail.State == store.MailHeld { // older than its life: an operator decides
						if status != 403 {
							t.Errorf("%d: held although its life is not over", status)
						}
						if err := b.st.ReleaseHold(context.Background(), id); err != nil {
							t.Fatal(err)
						}
					}
				}
				b.wantStates(id, "r=sent")
				b.finals(id)
			}
			if n := e.taken() - before; n != 3 {
				t.Errorf("%d: the ESP has %d mails, want 3", status, n)
			}
		}
	})
}

// TestCase072_OddAnswers: a 2xx that cannot be understood is neither a success that may be invented nor a refusal.
func TestCase072_OddAnswers(t *testing.T) {
	odd := map[string]string{
		"empty": "", "page": "<html><body>Please log in</body></html>", "cut": `{"id":"abc`, "array": `[1,2,3]`,
		"wrong types": `{"id":{"a":1},"status":7,"message_id":[],"recipients":"x"}`, "null": "null", "false": `{"success":false}`,
	}
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for name, body := range odd {
			e.wire.set(answer(200, body))
			id := b.submit("r@r.example")
			b.after(10 * time.Second)
			switch got := b.states(id); got {
			case "r=in_flight":
				if b.unknownOutcomes(id) != 1 {
					t.Errorf("%s: nobody is told that the outcome is unknown", name)
				}
				b.wantNoVerdict(name, id)
			case "r=sent":
				if e.name != "smtpeter" { // whose successes have no documented body
					t.Errorf("%s: taken as sent", name)
				}
			case "r=failed":
				if e.name != "maileroo" || name != "false" { // whose refusals look like this
					t.Errorf("%s: taken as a refusal", name)
				}
				b.finals(id)
				continue
			default:
				t.Errorf("%s: recipient is %s", name, got)
			}
			e.wire.set(nil)
			b.waitFor(id, "r=sent", 6*time.Hour)
			b.finals(id)
		}
		if e.name == "mandrill" { // a refusal inside a 200
			id := b.submit("blocked@r.example")
			b.after(10 * time.Second)
			b.wantStates(id, "blocked=rejected")
			b.finals(id)
		}
	})
}

// TestCase073_RedirectsAreNotFollowed: neither the mail nor the key goes anywhere else.
func TestCase073_RedirectsAreNotFollowed(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for _, status := range []int{301, 302, 303, 307, 308} {
			for i, to := range []string{"http://127.0.0.1/latest", "https://evil.example/", "/again", "//evil.example"} {
				if status%4 != i && status != 307 {
					continue
				}
				before := e.taken()
				e.wire.set(answer(status, "", "Location", to))
				id := b.submit("r@r.example")
				b.after(10 * time.Second)
				b.wantNoVerdict(fmt.Sprint(status), id)
				e.wire.set(nil)
				b.waitFor(id, "r=sent", 2*time.Hour)
				if n := e.taken() - before; n != 1 {
					t.Errorf("%d to %s: the ESP has the mail %d times", status, to, n)
				}
			}
		}
	})
}

// flood is a body without an end; each Read takes its time.
type flood struct {
	pause time.Duration
	ctx   context.Context
	read  atomic.Int64
}

func (f *flood) Read(p []byte) (int, error) {
	if f.pause > 0 {
		select {
		case <-time.After(f.pause):
			p = p[:1]
		case <-f.ctx.Done():
			return 0, f.ctx.Err()
		}
	}
	f.read.Add(int64(len(p)))
	return copy(p, bytes.Repeat([]byte("x"), len(p))), nil
}

// TestCase074_Floods: an answer without an end is neither read for ever nor kept.
func TestCase074_Floods(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		for _, status := range []int{200, 500} {
			for _, pause := range []time.Duration{0, time.Second} {
				var last atomic.Pointer[flood]
				e.wire.set(func(r *http.Request, _ func() *http.Response) (*http.Response, error) {
					drain(r)
					body := &flood{pause: pause, ctx: r.Context()}
					last.Store(body)
					return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(body), ContentLength: -1, Request: r}, nil
				})
				id := b.submit("r@r.example")
				b.after(2 * time.Minute)
				for _, k := range []event.Kind{event.Failed, event.Rejected} {
					if len(b.events(id, k)) > 0 {
						t.Errorf("%d: %s", status, k)
					}
				}
				if n := last.Load().read.Load(); n > 2<<20 || pause > 0 && n > 100 {
					t.Errorf("%d: %d bytes were read", status, n)
				}
				e.wire.set(nil)
				b.waitFor(id, "r=sent", 6*time.Hour)
				b.finals(id)
			}
		}
	})
}

// TestCase075_OneOfThree: what the ESP says of each recipient is kept for each, and only the open ones go again.
func TestCase075_OneOfThree(t *testing.T) {
	answers := map[string]string{
		"mandrill": `[{"email":"a@r.example","status":"sent","_id":"1"},{"email":"b@r.example","status":"rejected","reject_reason":"hard-bounce","_id":"2"},{"email":"c@r.example","status":"queued","_id":"3"}]`,
		"sandbox":  `{"id":"x","recipients":[{"email":"a@r.example","result":"accepted","id":"1"},{"email":"b@r.example","result":"rejected","reason":"invalid"},{"email":"c@r.example","result":"deferred","message":"450 later"}]}`,
	}
	// The other APIs say nothing of single recipients.
	withESPs(t, []string{"mandrill", "sandbox"}, func(t *testing.T, b *bench, e *esp) {
		e.wire.set(answer(200, answers[e.name]))
		id := b.submit("a@r.example", "b@r.example", "c@r.example")
		b.after(10 * time.Second)
		open := map[string]string{"mandrill": "a=sent b=rejected c=sent", "sandbox": "a=sent b=rejected c=queued"}[e.name]
		b.wantStates(id, open)
		var again [][]byte
		e.wire.set(func(r *http.Request, deliver func() *http.Response) (*http.Response, error) {
			text, err := io.ReadAll(r.Body)
			if err != nil {
				return nil, err
			}
			r.Body = io.NopCloser(bytes.NewReader(text))
			again = append(again, text)
			return deliver(), nil
		})
		b.waitFor(id, "a=sent b=rejected c=sent", time.Hour)
		if want := strings.Count(open, "queued"); len(again) != want {
			t.Errorf("%d more calls, want %d", len(again), want)
		}
		for _, text := range again {
			rcpts, _, _ := strings.Cut(string(text), "]")
			if strings.Contains(rcpts, "a@r.example") || strings.Contains(rcpts, "b@r.example") {
				t.Errorf("the repeat is for those who are done: %.300s", text)
			}
		}
		b.finals(id)
	})
}

// TestCase076_Limits: more recipients than a call takes become several calls; what no call can hold is refused before the 250.
func TestCase076_Limits(t *testing.T) {
	eachESP(t, func(t *testing.T, b *bench, e *esp) {
		caps := e.prov.Capabilities()
		if caps.MaxRcpts > 0 && caps.MaxRcpts <= 120 {
			var rcpts []string
			for i := range caps.MaxRcpts + 1 {
				rcpts = append(rcpts, fmt.Sprintf("r%d@r.example", i))
			}
			id := b.submitMail("From: app@example.com\r\nTo: list@example.com\r\nSubject: many\r\n\r\nbody\r\n", rcpts...)
			b.after(time.Hour)
			if got := len(b.finals(id)); got != len(rcpts) {
				t.Errorf("%d of %d recipients are done", got, len(rcpts))
			}
			var all []string
			d := b.detail(id)
			for _, c := range d.Calls {
				if len(c.Rcpts) > caps.MaxRcpts {
					t.Errorf("a call for %d recipients, the limit is %d", len(c.Rcpts), caps.MaxRcpts)
				}
				for _, n := range c.Rcpts {
					all = append(all, d.Rcpts[n].Addr)
				}
			}
			slices.Sort(all)
			slices.Sort(rcpts)
			if !slices.Equal(all, rcpts) {
				t.Errorf("the calls have %d recipients, want each of %d once", len(all), len(rcpts))
			}
		}
		if caps.MaxBytes > 0 {
			mail := "From: app@example.com\r\nTo: r@r.example\r\nSubject: big\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream; name=a.pdf\r\n\r\n" +
				strings.Repeat(strings.Repeat("x", 1022)+"\r\n", int(caps.MaxBytes>>10)+1)
			env := envelope.Envelope{ID: envelope.NewID(b.now()), From: "app@example.com", Received: b.now(), Rcpts: []envelope.Rcpt{{Addr: "r@r.example"}}}
			_, err := NewPlanner(b.cfg).Plan(PlanRequest{Envelope: env, Body: strings.NewReader(mail), Size: int64(len(mail))})
			var r *Refusal
			if !errors.As(err, &r) || r.Code != 552 || r.Status() != "5.3.4" {
				t.Errorf("a mail larger than the ESP takes: %v", err)
			}
		}
	})
}
