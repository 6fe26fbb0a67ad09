package webhookd_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/store"
	"smtpbridge/translate"
	"smtpbridge/webhookd"
)

// espProvider is an ESP that signs timestamp.body with HMAC-SHA256, as many do. Without secrets
// it signs nothing. Each item of the body's list is one event.
type espProvider struct {
	secrets []secret.String
	signed  bool
	now     func() time.Time
	before  func(r *http.Request, body []byte) error // of parsing
	gate    chan struct{}                            // parsing waits until it is closed
	entered chan struct{}
	files   map[string]string
}

func (*espProvider) Capabilities() translate.Capabilities { return translate.Capabilities{} }

func (*espProvider) Send(context.Context, *translate.Mail) (*providers.Outcome, error) {
	return nil, errors.New("not sent here")
}

func (p *espProvider) WebhookGet(path string) (string, []byte, bool) {
	c, ok := p.files[path]
	return "text/plain", []byte(c), ok
}

func sign(key, ts string, body []byte) string {
	m := hmac.New(sha256.New, []byte(key))
	io.WriteString(m, ts+".")
	m.Write(body)
	return hex.EncodeToString(m.Sum(nil))
}

func (p *espProvider) VerifyWebhook(r *http.Request, body []byte) error {
	if p.entered != nil {
		p.entered <- struct{}{}
	}
	if p.gate != nil {
		<-p.gate
	}
	if p.before != nil {
		if err := p.before(r, body); err != nil {
			return err
		}
	}
	return p.verify(r, body)
}

func (p *espProvider) verify(r *http.Request, body []byte) error {
	if !p.signed {
		return nil
	}
	ts := r.Header.Get("X-Timestamp")
	at, err := strconv.ParseInt(ts, 10, 64)
	if err != nil {
		return fmt.Errorf("%w: timestamp", providers.ErrSignature)
	}
	got, err := hex.DecodeString(r.Header.Get("X-Signature"))
	if err != nil {
		return providers.ErrSignature
	}
	for _, s := range p.secrets {
		want, _ := hex.DecodeString(sign(s.Reveal(), ts, body))
		if hmac.Equal(got, want) {
			return providers.CheckAge(p.now(), time.Unix(at, 0), 5*time.Minute)
		}
	}
	return providers.ErrSignature
}

func (p *espProvider) ParseWebhook(_ *http.Request, body []byte) ([]event.Event, error) {
	var items []json.RawMessage
	if err := json.Unmarshal(body, &items); err != nil {
		return nil, fmt.Errorf("%w: %v", providers.ErrMalformed, err)
	}
	var evs []event.Event
	for _, it := range items {
		var x struct{ ID, Type, To string }
		e := event.Event{Kind: event.Unknown}
		if json.Unmarshal(it, &x) == nil && x.ID != "" {
			e.ID, e.ProviderEvent, e.Recipient = event.FactID("esp", x.ID), x.Type, x.To
			if x.Type == "opened" {
				e.Kind, e.IP, e.UserAgent = event.Opened, "192.0.2.1", "UA/1"
			}
			if x.Type == "delivered" {
				e.Kind, e.Action, e.Status = event.Delivered, event.ActionDelivered, "2.0.0"
			}
		}
		evs = append(evs, e)
	}
	return evs, nil
}

func (p *espProvider) VerifyInbound(r *http.Request, body []byte) error { return p.verify(r, body) }

func (p *espProvider) ParseInbound(_ *http.Request, body []byte) ([]providers.Inbound, error) {
	return []providers.Inbound{{ID: "1", Rcpts: []string{"x@example.com"}, Open: func() io.Reader { return bytes.NewReader(body) }}}, nil
}

// memory is a Recorder that drops events it has, as the store does.
type memory struct {
	mu   sync.Mutex
	fail error
	ids  map[string]bool
	evs  []event.Event
	raws []*store.RawRequest
}

func (m *memory) Record(_ context.Context, raw *store.RawRequest, evs ...event.Event) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		return 0, m.fail
	}
	if m.ids == nil {
		m.ids = map[string]bool{}
	}
	n := 0
	for _, e := range evs {
		if !m.ids[e.ID] {
			m.ids[e.ID] = true
			m.evs = append(m.evs, e)
			n++
		}
	}
	if n > 0 && raw != nil {
		m.raws = append(m.raws, raw)
	}
	return n, nil
}

func (m *memory) setFail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fail = err
}

func (m *memory) events() []event.Event {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.evs)
}

func (m *memory) requests() []*store.RawRequest {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.raws)
}

// logBuffer is a log that can be read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	key        = "whsec-0123456789abcdef"
	pathSecret = "p4th-s3cret-0123456789"
)

type rig struct {
	t       *testing.T
	cfg     webhookd.Config
	esp     *espProvider // account "esp": signed
	open    *espProvider // account "open": signs nothing, path secret
	basic   *espProvider // account "basic": signs nothing, Basic auth
	mem     *memory
	log     *logBuffer
	clock   time.Time
	clockMu sync.Mutex
	h       *webhookd.Handler
	url     string
	client  *http.Client
}

func newRig(t *testing.T, change func(*rig)) *rig {
	t.Helper()
	g := &rig{t: t, mem: &memory{}, log: &logBuffer{}, clock: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), client: &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{}}}
	g.esp = &espProvider{signed: true, secrets: []secret.String{secret.New(key)}, now: g.now, files: map[string]string{"": "hello", "check-1.txt": "proof"}}
	g.open, g.basic = &espProvider{}, &espProvider{}
	info := func(name string, signed bool) providers.Info {
		return providers.Info{Name: name, Title: name, Webhook: providers.Webhook{Signed: signed, Private: []string{"text"}}}
	}
	g.cfg = webhookd.Config{
		Recorder: g.mem, Now: g.now, BodyTimeout: 10 * time.Second,
		Log: slog.New(slog.NewTextHandler(g.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Accounts: []webhookd.Account{
			{Name: "esp", Info: info("fake", true), Provider: g.esp, Secrets: g.esp.secrets, URLPath: "/hooks/own"},
			{Name: "open", Info: info("fakeopen", false), Provider: g.open, PathSecrets: []secret.String{secret.New(pathSecret)}, URLPath: "/other/" + pathSecret},
			{Name: "basic", Info: info("fakebasic", false), Provider: g.basic, BasicAuth: []secret.String{secret.New("u:old"), secret.New("u:new")}},
		},
	}
	if change != nil {
		change(g)
	}
	h, err := webhookd.New(g.cfg)
	if err != nil {
		t.Fatal(err)
	}
	g.h = h
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, ln) }()
	t.Cleanup(func() {
		g.client.CloseIdleConnections() // a server that ends waits 5 s for connections that never were used
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	g.url = "http://" + ln.Addr().String()
	return g
}

func (g *rig) now() time.Time {
	g.clockMu.Lock()
	defer g.clockMu.Unlock()
	return g.clock
}

func (g *rig) advance(d time.Duration) {
	g.clockMu.Lock()
	defer g.clockMu.Unlock()
	g.clock = g.clock.Add(d)
}

// reload changes accounts and puts the configuration in force.
func (g *rig) reload(change func(*webhookd.Config)) {
	g.t.Helper()
	g.cfg.Accounts = slices.Clone(g.cfg.Accounts)
	change(&g.cfg)
	if err := g.h.Reload(g.cfg); err != nil {
		g.t.Fatal(err)
	}
}

type header map[string]string

func (g *rig) signed(body []byte) header {
	ts := strconv.FormatInt(g.now().Unix(), 10)
	return header{"X-Timestamp": ts, "X-Signature": sign(key, ts, body), "Content-Type": "application/json"}
}

func (g *rig) do(method, path string, h header, body io.Reader) (int, http.Header, string) {
	g.t.Helper()
	r, err := http.NewRequestWithContext(g.t.Context(), method, g.url+path, body)
	if err != nil {
		g.t.Fatal(err)
	}
	for k, v := range h {
		r.Header.Set(k, v)
	}
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	if resp.Close {
		resp.Header.Set("Connection", "close") // net/http takes the field out
	}
	return resp.StatusCode, resp.Header, string(b)
}

// post posts a body that is signed right.
func (g *rig) post(body string) int {
	g.t.Helper()
	status, _, _ := g.do("POST", "/webhook/esp", g.signed([]byte(body)), strings.NewReader(body))
	return status
}

func (g *rig) want(what string, got, want int) {
	g.t.Helper()
	if got != want {
		g.t.Errorf("%s: status %d, want %d", what, got, want)
	}
}

const good = `[{"ID":"1","Type":"delivered","To":"bob@example.net"}]`

func TestStatusCodes(t *testing.T) {
	g := newRig(t, nil)
	sig := g.signed([]byte(good))
	basic := func(s string) header {
		return header{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(s))}
	}
	for _, c := range []struct {
		name, method, path string
		h                  header
		want               int
	}{
		{"good", "POST", "/webhook/esp", sig, 200},
		{"again", "POST", "/webhook/esp", sig, 200},
		{"slash at the end", "POST", "/webhook/esp/", sig, 200},
		{"path of webhook_url", "POST", "/hooks/own", sig, 200},
		{"below it", "POST", "/hooks/own/more", sig, 404},
		{"query", "POST", "/webhook/esp?x=1", sig, 200},
		{"more path", "POST", "/webhook/esp/more", sig, 404},
		{"unknown account", "POST", "/webhook/nobody", sig, 404},
		{"no account", "POST", "/webhook/", sig, 404},
		{"root", "POST", "/", sig, 404},
		{"GET root", "GET", "/", nil, 404},
		{"inbound without an inbox", "POST", "/inbound/esp", sig, 404},
		{"GET served by the provider", "GET", "/webhook/esp", nil, 200},
		{"HEAD served by the provider", "HEAD", "/webhook/esp", nil, 200},
		{"verification file", "GET", "/webhook/esp/check-1.txt", nil, 200},
		{"verification file beside webhook_url", "GET", "/hooks/check-1.txt", nil, 200},
		{"verification file in the root", "GET", "/check-1.txt", nil, 200},
		{"verification file elsewhere", "GET", "/somewhere/check-1.txt", nil, 404},
		{"other file", "GET", "/webhook/esp/check-2.txt", nil, 404},
		{"GET not served by the provider", "GET", "/webhook/basic", nil, 405},
		{"HEAD not served by the provider", "HEAD", "/webhook/basic", nil, 405},
		{"basic auth", "POST", "/webhook/basic", basic("u:new"), 200},
		{"basic auth, the older one", "POST", "/webhook/basic", basic("u:old"), 200},
		{"basic auth, wrong", "POST", "/webhook/basic", basic("u:newer"), 401},
		{"basic auth, empty", "POST", "/webhook/basic", basic(":"), 401},
		{"basic auth, none", "POST", "/webhook/basic", nil, 401},
		{"path secret", "POST", "/webhook/open/" + pathSecret, nil, 200},
		{"path secret in webhook_url", "POST", "/other/" + pathSecret, nil, 200},
		{"path secret, wrong", "POST", "/webhook/open/" + pathSecret + "x", nil, 401},
		{"path secret, none", "POST", "/webhook/open", nil, 401},
		{"path secret and more", "POST", "/webhook/open/" + pathSecret + "/x", nil, 404},
		{"path secret of another account", "POST", "/webhook/esp/" + pathSecret, sig, 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, _, _ := g.do(c.method, c.path, c.h, strings.NewReader(good))
			if status != c.want {
				t.Errorf("status %d, want %d", status, c.want)
			}
		})
	}
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events are stored, want 1: all of these posts tell the same fact", n)
	}
	// The posts for accounts that are not there are told, once a minute, without what may be a secret.
	if log := g.log.String(); strings.Count(log, "msg=webhook.no_account") != 1 || !strings.Contains(log, "at=/webhook/***") || strings.Contains(log, "nobody") {
		t.Errorf("log: %s", log)
	}
}

func TestProviderErrorsAndStatuses(t *testing.T) {
	var fault error
	g := newRig(t, func(g *rig) {
		g.esp.before = func(*http.Request, []byte) error { return fault }
		g.cfg.Accounts[0].Info.Webhook.BadSignature = 410
		g.cfg.Accounts[0].Info.Webhook.StoreFailed = 500
	})
	for _, c := range []struct {
		name string
		err  error
		want int
	}{
		{"signature, as the ESP wants it", providers.ErrSignature, 410},
		{"key server down", fmt.Errorf("%w: dns", providers.ErrUnavailable), 503},
		{"malformed", providers.ErrMalformed, 400},
		{"any other error is ours", errors.New("what"), 503},
	} {
		fault = c.err
		g.want(c.name, g.post(good), c.want)
	}
	fault = nil
	g.mem.setFail(errors.New("disk full"))
	g.want("not stored, as the ESP wants it", g.post(good), 500)
	g.mem.setFail(nil)
	g.want("stored", g.post(good), 200)
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events are stored, want 1", n)
	}
}

// What a panic would say may quote the mail; and it is our fault, so the ESP is to send again.
func TestPanicIs503(t *testing.T) {
	g := newRig(t, func(g *rig) {
		g.esp.before = func(_ *http.Request, body []byte) error { panic(string(body)) }
	})
	g.want("panic", g.post(`[{"text":"SECRETMAILTEXT"}]`), 503)
	log := g.log.String()
	if strings.Contains(log, "SECRETMAILTEXT") || !strings.Contains(log, "webhook.panic") || !strings.Contains(log, "webhookd_test.go") {
		t.Errorf("log: %s", log)
	}
	g.esp.before = nil
	g.want("after it", g.post(good), 200)
}

func TestNewFailsClosed(t *testing.T) {
	signing := providers.Info{Name: "x", Title: "X", Webhook: providers.Webhook{Signed: true}}
	silent := providers.Info{Name: "x", Title: "X"}
	p := &espProvider{}
	some := []secret.String{secret.New(key)}
	for _, c := range []struct {
		name string
		a    webhookd.Account
		want string // in the error; "" = fine
	}{
		{"signed, secret", webhookd.Account{Info: signing, Provider: p, Secrets: some}, ""},
		{"signed, no secret", webhookd.Account{Info: signing, Provider: p}, "set webhook_secret"},
		{"signed, basic auth is not enough", webhookd.Account{Info: signing, Provider: p, BasicAuth: []secret.String{secret.New("u:p")}}, "set webhook_secret"},
		{"signed, empty secret", webhookd.Account{Info: signing, Provider: p, Secrets: []secret.String{{}}}, "is empty"},
		{"signed, good and empty secret", webhookd.Account{Info: signing, Provider: p, Secrets: append(some, secret.String{})}, "is empty"},
		{"signed with keys of its own", webhookd.Account{Info: providers.Info{Webhook: providers.Webhook{Signed: true, OwnKeys: true}}, Provider: p}, ""},
		{"signed, ping before the secret", webhookd.Account{Info: providers.Info{Webhook: providers.Webhook{Signed: true, FirstPing: true}}, Provider: p}, ""},
		{"unsigned, nothing", webhookd.Account{Info: silent, Provider: p}, "set webhook_basic_auth"},
		{"unsigned, basic auth", webhookd.Account{Info: silent, Provider: p, BasicAuth: []secret.String{secret.New("u:p")}}, ""},
		{"unsigned, basic auth without colon", webhookd.Account{Info: silent, Provider: p, BasicAuth: []secret.String{secret.New("up")}}, "user:password"},
		{"unsigned, empty user and password", webhookd.Account{Info: silent, Provider: p, BasicAuth: []secret.String{secret.New(":")}}, "user:password"},
		{"unsigned, path secret", webhookd.Account{Info: silent, Provider: p, PathSecrets: []secret.String{secret.New(pathSecret)}}, ""},
		{"unsigned, short path secret", webhookd.Account{Info: silent, Provider: p, PathSecrets: []secret.String{secret.New("short")}}, "16 characters"},
		{"unsigned, empty path secret", webhookd.Account{Info: silent, Provider: p, PathSecrets: []secret.String{{}}}, "is empty"},
		{"takes no webhooks", webhookd.Account{Info: silent, Provider: struct{ providers.Provider }{p}}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.a.Name = "acc"
			_, err := webhookd.New(webhookd.Config{Recorder: &memory{}, Accounts: []webhookd.Account{c.a}})
			switch {
			case c.want == "" && err != nil:
				t.Errorf("got %v", err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "acc")):
				t.Errorf("got %v, want %q", err, c.want)
			case strings.HasPrefix(c.want, "set") && !errors.Is(err, webhookd.ErrNoSecret):
				t.Errorf("%v is not ErrNoSecret", err)
			}
		})
	}
	two := webhookd.Config{Accounts: []webhookd.Account{
		{Name: "a", Info: signing, Provider: p, Secrets: some, URLPath: "/x"},
		{Name: "b", Info: signing, Provider: p, Secrets: some, URLPath: "/x/"},
		{Name: "a", Info: signing, Provider: p, Secrets: some},
		{Name: "c", Info: signing, Provider: p, Secrets: some, URLPath: "/webhook/b"},
	}}
	_, err := webhookd.New(two)
	for _, want := range []string{"same path", "used twice", "path of account b"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("all problems at once: %q is missing in %v", want, err)
		}
	}
}

func TestCase079_BadSignatures(t *testing.T) {
	g := newRig(t, nil)
	ts := strconv.FormatInt(g.now().Unix(), 10)
	right := sign(key, ts, []byte(good))
	for _, c := range []struct{ name, ts, sig string }{
		{"none", ts, ""},
		{"wrong", ts, sign("other", ts, []byte(good))},
		{"of another body", ts, sign(key, ts, []byte("[]"))},
		{"cut", ts, right[:62]},
		{"not hex", ts, "zz" + right[2:]},
		{"too long", ts, right + "00"},
		{"with the empty secret", ts, sign("", ts, []byte(good))},
		{"sender names the algorithm", ts, "none=" + right},
	} {
		status, _, body := g.do("POST", "/webhook/esp", header{"X-Timestamp": c.ts, "X-Signature": c.sig}, strings.NewReader(good))
		g.want(c.name, status, 401)
		if strings.Contains(body, right) {
			t.Errorf("%s: the answer tells the signature", c.name)
		}
	}
	if evs := g.mem.events(); len(evs) > 0 {
		t.Errorf("an unverified request left an event: %+v", evs)
	}
	if log := g.log.String(); strings.Contains(log, right[:20]) || strings.Contains(log, key) || !strings.Contains(log, "webhook.bad_signature") {
		t.Errorf("log: %s", log)
	}
}

func TestAlarmWhenSignaturesKeepFailing(t *testing.T) {
	g := newRig(t, nil)
	bad := func(n int) {
		for range n {
			g.do("POST", "/webhook/esp", nil, strings.NewReader(good))
		}
	}
	alarm := func() string { return g.h.Failing()["esp"] }
	bad(4)
	g.want("good one", g.post(good), 200)
	bad(4)
	if alarm() != "" {
		t.Fatal("alarm although no five in a row failed")
	}
	bad(10)
	if !strings.Contains(alarm(), "did not verify") || len(g.h.Failing()) != 1 {
		t.Fatalf("alarms: %v", g.h.Failing())
	}
	if got := strings.Count(g.log.String(), "level=WARN msg=webhook.bad_signature"); got > 10 {
		t.Errorf("%d warnings: whoever guesses fills the log", got)
	}
	g.want("good one", g.post(good), 200)
	if alarm() != "" || !strings.Contains(g.log.String(), "webhook.signatures_verify_again") {
		t.Errorf("the end of the trouble is not told: %q", alarm())
	}
	bad(5)
	if alarm() != "" {
		t.Error("a second alarm within the hour: whoever guesses raises it again and again")
	}
	g.advance(2 * time.Hour)
	bad(1)
	if alarm() == "" {
		t.Error("no second alarm after the hour")
	}
}

// TestCase113_WrongClock: under a wrong clock here requests are refused, and when many are off by the same time it is said
// that the clock may be wrong. An old request that is sent again and again says nothing of the kind.
func TestCase113_WrongClock(t *testing.T) {
	g := newRig(t, nil)
	at := func(signed time.Time) {
		t.Helper()
		ts := strconv.FormatInt(signed.Unix(), 10)
		status, _, _ := g.do("POST", "/webhook/esp", header{"X-Timestamp": ts, "X-Signature": sign(key, ts, []byte(good))}, strings.NewReader(good))
		g.want(ts, status, 401)
	}
	replayed := g.now().Add(-time.Hour)
	for range 6 {
		at(replayed)
	}
	if strings.Contains(g.log.String(), "webhook.clock_skew") {
		t.Fatal("replays are taken for a wrong clock")
	}
	if n := strings.Count(g.log.String(), "msg=webhook.stale"); n != 6 {
		t.Errorf("%d lines tell of old requests, want 6", n)
	}
	for range 4 {
		g.advance(10 * time.Second)
		at(g.now().Add(2 * time.Hour)) // our clock is two hours late
	}
	if !strings.Contains(g.log.String(), "msg=webhook.clock_skew account=esp off=-2h0m0s") {
		t.Errorf("no word of the clock: %s", g.log)
	}
	if text := g.h.Failing()["esp"]; !strings.Contains(text, "-2h0m0s off") {
		t.Errorf("the alarm says %q", text)
	}
	g.want("right clock", g.post(good), 200)
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func TestCase080_RawBytesAreVerified(t *testing.T) {
	g := newRig(t, nil)
	sig := g.signed([]byte(good))
	respelt := strings.Replace(good, ":", ": ", 1)
	status, _, _ := g.do("POST", "/webhook/esp", sig, strings.NewReader(respelt))
	g.want("re-serialised", status, 401)
	status, _, _ = g.do("POST", "/webhook/esp", sig, strings.NewReader(good+"\n"))
	g.want("one byte more", status, 401)

	status, _, _ = g.do("POST", "/webhook/esp", sig, struct{ io.Reader }{strings.NewReader(good)}) // chunked
	g.want("chunked", status, 200)
	sig["Content-Type"] = "application/json; charset=iso-8859-1"
	status, _, _ = g.do("POST", "/webhook/esp", sig, strings.NewReader(good))
	g.want("with a charset", status, 200)

	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	io.WriteString(w, good)
	w.Close()
	sig["Content-Encoding"] = "gzip"
	status, _, _ = g.do("POST", "/webhook/esp", sig, bytes.NewReader(z.Bytes()))
	g.want("compressed on the way: not what was signed", status, 401)
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func TestCase081_Timestamps(t *testing.T) {
	g := newRig(t, nil)
	for _, c := range []struct {
		name string
		ts   string
		want int
	}{
		{"301 s old", strconv.FormatInt(g.now().Unix()-301, 10), 401},
		{"301 s ahead", strconv.FormatInt(g.now().Unix()+301, 10), 401},
		{"missing", "", 401},
		{"not a number", "yesterday", 401},
		{"299 s old", strconv.FormatInt(g.now().Unix()-299, 10), 200},
	} {
		status, _, _ := g.do("POST", "/webhook/esp", header{"X-Timestamp": c.ts, "X-Signature": sign(key, c.ts, []byte(good))}, strings.NewReader(good))
		g.want(c.name, status, c.want)
	}
}

func TestCase082_ReplaysAreOneEvent(t *testing.T) {
	g := newRig(t, nil)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { g.want("one of several at once", g.post(good), 200) })
	}
	wg.Wait()
	g.want("later", g.post(good), 200)
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

// A provider that gives no ids gets stable ones, over restarts too.
func TestEventsWithoutIDs(t *testing.T) {
	g := newRig(t, nil)
	body := `[{"n":1},{"n":2}]`
	g.want("first", g.post(body), 200)
	g.reload(func(*webhookd.Config) {})
	g.advance(time.Minute)
	g.want("again", g.post(body), 200)
	evs := g.mem.events()
	if len(evs) != 2 || evs[0].ID == evs[1].ID {
		t.Fatalf("got %+v", evs)
	}
	for _, e := range evs {
		if e.V != 1 || e.Account != "esp" || e.Provider != "fake" || e.Seen.IsZero() || e.Time.IsZero() || e.RawID != g.mem.requests()[0].ID {
			t.Errorf("incomplete: %+v", e)
		}
	}
}

// Who opened a mail from where is kept only on purpose.
func TestReadersAreNotKept(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := newRig(t, func(g *rig) { g.cfg.KeepReaders = keep })
		g.want("opened", g.post(`[{"ID":"o","Type":"opened"}]`), 200)
		e := g.mem.events()[0]
		if (e.IP != "") != keep || (e.UserAgent != "") != keep {
			t.Errorf("keep %v: ip %q, user agent %q", keep, e.IP, e.UserAgent)
		}
	}
}

func TestCase083_Rotation(t *testing.T) {
	g := newRig(t, nil)
	old := g.signed([]byte(good))
	two := []secret.String{secret.New("new-secret-0123456789"), secret.New(key)}
	replace := func(secrets []secret.String) {
		p := &espProvider{signed: true, secrets: secrets, now: g.now}
		g.reload(func(c *webhookd.Config) { c.Accounts[0].Provider, c.Accounts[0].Secrets = p, secrets })
	}
	replace(two)
	ts := old["X-Timestamp"]
	fresh := header{"X-Timestamp": ts, "X-Signature": sign("new-secret-0123456789", ts, []byte(good))}
	for name, h := range map[string]header{"old": old, "new": fresh} {
		status, _, _ := g.do("POST", "/webhook/esp", h, strings.NewReader(good))
		g.want(name+" secret while both are valid", status, 200)
	}
	replace(two[:1])
	status, _, _ := g.do("POST", "/webhook/esp", old, strings.NewReader(good))
	g.want("old secret after its end", status, 401)
	status, _, _ = g.do("POST", "/webhook/esp", fresh, strings.NewReader(good))
	g.want("new secret after it", status, 200)

	bad := g.cfg
	bad.Accounts = slices.Clone(g.cfg.Accounts)
	bad.Accounts[0].Secrets = nil
	if err := g.h.Reload(bad); err == nil {
		t.Fatal("a reload without the secret is accepted")
	}
	status, _, _ = g.do("POST", "/webhook/esp", fresh, strings.NewReader(good))
	g.want("after a refused reload", status, 200)
}

func TestCase084_SecretsInPathAndHeaderAreNotKept(t *testing.T) {
	g := newRig(t, nil)
	status, _, _ := g.do("POST", "/webhook/open/"+pathSecret+"?token=CANARY1&a=b", header{"Cookie": "CANARY2", "Authorization": "Bearer CANARY3", "X-Echo": pathSecret}, strings.NewReader(good))
	g.want("path secret", status, 200)
	g.do("POST", "/webhook/open/wrong-CANARY4-0123456789", nil, strings.NewReader(good))
	raws := g.mem.requests()
	if len(raws) != 1 {
		t.Fatalf("%d requests are kept", len(raws))
	}
	if got, want := raws[0].URL, "/webhook/open/***?token=***&a=b"; got != want {
		t.Errorf("URL %q, want %q", got, want)
	}
	kept := fmt.Sprintf("%+v", *raws[0]) + g.log.String()
	for _, canary := range []string{pathSecret, "CANARY"} {
		if strings.Contains(kept, canary) {
			t.Errorf("%s is kept or logged: %s", canary, kept)
		}
	}
	if raws[0].Header["Host"] == nil || raws[0].Method != "POST" || raws[0].Kind != "webhook" {
		t.Errorf("incomplete: %+v", raws[0])
	}
}

func TestMailTextIsNotKept(t *testing.T) {
	g := newRig(t, nil)
	inner := `{"ID":"1","TEXT":"CANARY","a":{"htmlbody":["CANARY",{"x":1}],"text":null,"b":[1.50,{"textbody":{"c":"CANARY"}}]},"keep":"é\u00e9"}`
	for _, c := range []struct{ name, typ, body, want string }{
		{"JSON", "application/json", inner, `{"ID":"1","TEXT":"<cut>","a":{"htmlbody":"<cut>","text":null,"b":[1.50,{"textbody":"<cut>"}]},"keep":"é\u00e9"}`},
		{"JSON list", "text/plain", `[` + inner + `]`, `[{"ID":"1","TEXT":"<cut>","a":{"htmlbody":"<cut>","text":null,"b":[1.50,{"textbody":"<cut>"}]},"keep":"é\u00e9"}]`},
		{"broken JSON", "application/json", `{"a":1,"text":"CANARY`, `{"a":1,"text"`},
		{"form", "application/x-www-form-urlencoded", "a=1&mime=CANARY&j=%7B%22text%22%3A%22CANARY%22%7D&text=", "a=1&mime=%3Ccut%3E&j=%7B%22text%22%3A%22%3Ccut%3E%22%7D&text="},
		{
			"multipart", "multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\nCANARY\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--\r\n",
			"--b\r\nContent-Disposition: form-data; name=\"text\"\r\n\r\n<cut>\r\n--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b--\r\n",
		},
		{"deep", "application/json", strings.Repeat(`{"a":`, 20000) + `1`, strings.Repeat(`{"a":`, 20000) + `1`},
		{"deep private", "application/json", `{"text":` + strings.Repeat(`[`, 20000), `{"text"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(webhookd.CutBody(c.typ, []byte(c.body), "text")); got != c.want {
				t.Errorf("got  %.300s\nwant %.300s", got, c.want)
			}
		})
	}
	body := `[` + inner + `]`
	g.want("stored", g.post(body), 200)
	if kept := string(g.mem.requests()[0].Body); strings.Contains(kept, "CANARY") || !strings.Contains(kept, `"ID":"1"`) {
		t.Errorf("kept: %s", kept)
	}
}

func TestCase085_SizeAndTime(t *testing.T) {
	g := newRig(t, func(g *rig) {
		g.cfg.BodyTimeout = 2 * time.Second
		g.cfg.Accounts[2].Info.Webhook.MaxBody = 5 << 20
	})
	big := `["` + strings.Repeat("x", 1<<20) + `"]`
	g.want("announced too large", g.post(big), 413)
	status, _, _ := g.do("POST", "/webhook/esp", g.signed([]byte(big)), struct{ io.Reader }{strings.NewReader(big)})
	g.want("chunked too large", status, 413)
	status, _, _ = g.do("POST", "/webhook/basic", header{"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte("u:new"))}, strings.NewReader(big))
	g.want("the same where the ESP needs more", status, 200)

	pr, pw := io.Pipe()
	go func() { pw.Write([]byte("[")) }() // and nothing more
	status, hd, _ := g.do("POST", "/webhook/esp", g.signed([]byte(good)), pr)
	pw.Close()
	g.want("slow body", status, 408)
	if hd.Get("Connection") != "close" {
		t.Error("the connection with the rest of a slow body stays open")
	}
	for _, m := range []string{"PUT", "DELETE", "OPTIONS", "PATCH", "TRACE"} {
		status, hd, _ := g.do(m, "/webhook/esp", nil, nil)
		g.want(m, status, 405)
		if hd.Get("Allow") != "POST" {
			t.Errorf("%s: Allow %q", m, hd.Get("Allow"))
		}
	}
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events, want the one of the large body", n)
	}
}

// The deadline of the body must not end what comes after it.
func TestStoringMayTakeLongerThanTheBody(t *testing.T) {
	slow := &slowRecorder{start: make(chan struct{}), gate: make(chan struct{})}
	g := newRig(t, func(g *rig) {
		g.cfg.BodyTimeout = 50 * time.Millisecond
		g.cfg.Recorder = slow
	})
	got := make(chan int)
	go func() { got <- g.post(good) }()
	<-slow.start
	timer := time.NewTimer(4 * g.cfg.BodyTimeout) // the time limit itself is what is waited for
	defer timer.Stop()
	<-timer.C
	close(slow.gate)
	g.want("slow store", <-got, 200)
	if slow.err != nil {
		t.Errorf("the recorder's context ended: %v", slow.err)
	}
}

type slowRecorder struct {
	start, gate chan struct{}
	err         error
}

func (s *slowRecorder) Record(ctx context.Context, _ *store.RawRequest, evs ...event.Event) (int, error) {
	close(s.start)
	<-s.gate
	s.err = ctx.Err()
	return len(evs), s.err
}

func TestCase085_ThousandAtOnce(t *testing.T) {
	g := newRig(t, func(g *rig) {
		g.esp.gate, g.esp.entered = make(chan struct{}), make(chan struct{}, 2000)
		g.cfg.MaxConcurrent = 10
	})
	g.client.Transport.(*http.Transport).MaxIdleConnsPerHost = 1000
	statuses := make(chan int, 1000)
	for range 1000 {
		go func() { statuses <- g.post(good) }()
	}
	count := map[int]int{}
	for range 990 { // all but those at work are answered while these are stuck
		count[<-statuses]++
	}
	if count[503] != 990 {
		t.Errorf("while ten are at work: %v", count)
	}
	close(g.esp.gate)
	for range 10 {
		count[<-statuses]++
	}
	if count[200] != 10 || len(g.esp.entered) != 10 {
		t.Errorf("in the end: %v, %d were parsed", count, len(g.esp.entered))
	}
	g.want("afterwards", g.post(good), 200)
	if n := strings.Count(g.log.String(), "msg=webhook.limit"); n != 1 {
		t.Errorf("%d lines in the log for one kind of trouble in one minute", n)
	}
}

func TestLargeBodiesShareABudget(t *testing.T) {
	g := newRig(t, func(g *rig) {
		g.esp.gate, g.esp.entered = make(chan struct{}), make(chan struct{}, 10)
		g.cfg.Accounts[0].Info.Webhook.MaxBody = 4 << 20
		g.cfg.MaxLargeBodies = 4 << 20
	})
	big := `["` + strings.Repeat("x", 3<<20) + `"]`
	first := make(chan int, 2)
	go func() { first <- g.post(big) }()
	<-g.esp.entered
	g.want("a second large one", g.post(big), 503)
	go func() { first <- g.post(good) }()
	<-g.esp.entered // a small one gets through
	close(g.esp.gate)
	g.want("at work", <-first, 200)
	g.want("at work", <-first, 200)
	g.want("large one afterwards", g.post(big), 200)
}

func TestCase086_OddBodies(t *testing.T) {
	g := newRig(t, nil)
	var many []string
	for i := range 10000 {
		many = append(many, fmt.Sprintf(`{"ID":"%d","Type":"delivered"}`, i))
	}
	for _, c := range []struct {
		name, body string
		want       int
	}{
		{"10,000 events", "[" + strings.Join(many, ",") + "]", 200},
		{"depth 100,000", strings.Repeat("[", 100000) + strings.Repeat("]", 100000), 400},
		{"depth 10,001 in an object", `[{"a":` + strings.Repeat("[", 10001) + strings.Repeat("]", 10001) + "}]", 400},
		{"duplicate keys", `[{"ID":"d1","ID":"d2","Type":"delivered"}]`, 200},
		{"huge number", `[{"ID":"h","n":1e999999999,"m":` + strings.Repeat("9", 100000) + `}]`, 200},
		{"NUL and invalid UTF-8", "[{\"ID\":\"n\\u0000\xff\",\"To\":\"a\\u0000b\\u001b@example.net\"}]", 200},
		{"unknown type", `[{"ID":"u","Type":"exploded"}]`, 200},
		{"one bad item among good ones", `[{"ID":"g1","Type":"delivered"},17,{"ID":"g2","Type":"delivered"}]`, 200},
		{"not a list", `{"a":1}`, 400},
		{"empty", "", 400},
		{"no events", "[]", 200},
		{"not JSON", "<xml/>", 400},
	} {
		g.want(c.name, g.post(c.body), c.want)
	}
	byName := map[string]event.Event{}
	for _, e := range g.mem.events() {
		byName[e.ID] = e
		if strings.ContainsAny(e.Recipient, "\x00\x1b") {
			t.Errorf("control characters in %q", e.Recipient)
		}
	}
	for _, id := range []string{"0", "9999", "d2", "h", "g1", "g2"} {
		if _, ok := byName[event.FactID("esp", id)]; !ok {
			t.Errorf("event %s is missing", id)
		}
	}
	if e := byName[event.FactID("esp", "u")]; e.Kind != event.Unknown || e.ProviderEvent != "exploded" || e.RawID == "" {
		t.Errorf("unknown type: %+v", e)
	}
}

func TestCase087_NotStoredIs503(t *testing.T) {
	g := newRig(t, nil)
	g.mem.setFail(store.ErrNoSpace)
	status, hd, _ := g.do("POST", "/webhook/esp", g.signed([]byte(good)), strings.NewReader(good))
	g.want("disk full", status, 503)
	if hd.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	if !strings.Contains(g.log.String(), "webhook.store_failed") {
		t.Error("not logged")
	}
	g.mem.setFail(nil)
	g.want("the ESP's next attempt", g.post(good), 200)
	if n := len(g.mem.events()); n != 1 {
		t.Errorf("%d events", n)
	}
	var none webhookd.Recorder
	g.reload(func(c *webhookd.Config) { c.Recorder = none })
	g.want("no store at all", g.post(good), 503)
}

// The process died after storing and before 200: the ESP sends again to the next one, on the real store.
func TestCase088_RepeatedToARestartedBridge(t *testing.T) {
	dir := t.TempDir()
	for i := range 2 {
		st, err := store.Open(t.Context(), store.Options{Dir: dir})
		if err != nil {
			t.Fatal(err)
		}
		g := newRig(t, func(g *rig) { g.cfg.Recorder = st })
		g.want("post", g.post(good), 200)
		evs, _, err := st.Follow(t.Context(), "", 10)
		if err != nil || len(evs) != 1 || evs[0].Recipient != "bob@example.net" || evs[0].RawID == "" {
			t.Errorf("start %d: %+v, %v", i+1, evs, err)
		}
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCase091_ForwardedFor(t *testing.T) {
	for _, c := range []struct {
		name, xff, want string
		proxies         []string
	}{
		{"no trusted proxy", "203.0.113.9", "127.0.0.1", nil},
		{"another trusted proxy", "203.0.113.9", "127.0.0.1", []string{"10.0.0.0/8"}},
		{"trusted", "203.0.113.9", "203.0.113.9", []string{"127.0.0.0/8"}},
		{"forged first entry", "198.51.100.1, 203.0.113.9", "203.0.113.9", []string{"127.0.0.0/8"}},
		{"two proxies", "198.51.100.1, 203.0.113.9, 10.1.2.3", "203.0.113.9", []string{"127.0.0.0/8", "10.0.0.0/8"}},
		{"junk", "what\tever", "127.0.0.1", []string{"127.0.0.0/8"}},
		{"mapped", "::ffff:203.0.113.9", "203.0.113.9", []string{"127.0.0.0/8"}},
		{"missing", "", "127.0.0.1", []string{"127.0.0.0/8"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, func(g *rig) {
				for _, p := range c.proxies {
					g.cfg.TrustedProxies = append(g.cfg.TrustedProxies, netip.MustParsePrefix(p))
				}
			})
			h := header{}
			if c.xff != "" {
				h["X-Forwarded-For"] = c.xff
			}
			g.do("POST", "/webhook/esp", h, strings.NewReader(good))
			if want := "peer=" + c.want + " "; !strings.Contains(g.log.String(), want) {
				t.Errorf("%q is missing in %s", want, g.log)
			}
		})
	}
}

func TestInbound(t *testing.T) {
	var got []string
	var fault error
	g := newRig(t, func(g *rig) {
		g.cfg.MaxInboundBody = 100
		g.cfg.Inbox.Take = func(_ context.Context, m webhookd.Received, raw io.Reader) error {
			if m.Account != "esp" || m.Provider != "fake" || m.ID == "" || m.Time.IsZero() {
				t.Errorf("got %+v", m)
			}
			b, err := io.ReadAll(raw)
			if err != nil {
				return err
			}
			got = append(got, string(b))
			return fault
		}
	})
	post := func(path string, h header, body string) int {
		status, _, _ := g.do("POST", path, h, strings.NewReader(body))
		return status
	}
	g.want("good", post("/inbound/esp", g.signed([]byte("mail")), "mail"), 200)
	g.want("bad signature", post("/inbound/esp", g.signed([]byte("mail")), "liam"), 401)
	long := strings.Repeat("x", 101)
	g.want("too large", post("/inbound/esp", g.signed([]byte(long)), long), 413)
	g.want("no credentials", post("/inbound/basic", nil, "mail"), 401)
	if status, _, _ := g.do("GET", "/inbound/esp", nil, nil); status != 405 {
		t.Errorf("GET: %d", status)
	}
	fault = store.ErrNoSpace
	g.want("not stored", post("/inbound/esp", g.signed([]byte("mail")), "mail"), 503)
	if len(got) != 2 || got[0] != "mail" {
		t.Errorf("got %q", got)
	}
}

func TestMetrics(t *testing.T) {
	var mu sync.Mutex
	count := map[string]int{}
	add := func(s string) {
		mu.Lock()
		defer mu.Unlock()
		count[s]++
	}
	g := newRig(t, func(g *rig) {
		g.cfg.Metrics = webhookd.Metrics{
			Request:      func(a string, s int, _ time.Duration) { add(fmt.Sprint(a, " ", s)) },
			Event:        func(a string, k event.Kind) { add(a + " " + string(k)) },
			BadSignature: func(a string) { add(a + " bad") },
		}
	})
	h := httptest.NewRecorder()
	g.h.ServeHTTP(h, httptest.NewRequest("POST", "/webhook/random-name", nil))
	g.h.ServeHTTP(h, httptest.NewRequest("POST", "/webhook/esp", nil))
	r := httptest.NewRequest("POST", "/webhook/esp", strings.NewReader(good))
	for k, v := range g.signed([]byte(good)) {
		r.Header.Set(k, v)
	}
	g.h.ServeHTTP(h, r)
	for _, want := range []string{" 404", "esp 401", "esp bad", "esp 200", "esp delivered"} {
		if count[want] != 1 {
			t.Errorf("%q was counted %d times: %v", want, count[want], count)
		}
	}
}
