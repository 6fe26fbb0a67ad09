package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/internal/storetest"
	"smtpbridge/store"
)

// evil is what outside text may hold.
const evil = `<script>alert(1)</script>"'><img src=x onerror=alert(2)>`

// site is the admin listener of a bridge with one of everything, and a browser's view of it.
type site struct {
	*httptest.Server
	t      *testing.T
	store  *store.Store
	svc    *Service
	guard  *Guard
	log    *syncBuffer
	accts  *fakeAccounts
	queued string // a mail that waits, full of evil
	sent   string
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

type fakeAccounts struct {
	mu      sync.Mutex
	changes []string
}

func (f *fakeAccounts) Configured() map[string]Configured {
	return map[string]Configured{
		"box": {Provider: "sandbox", Webhook: &Webhook{Served: true}, Inbox: func() []InboxMail {
			return []InboxMail{{Account: "box", ID: "sb-1", Time: time.Now(), From: evil, To: []string{evil}, Rcpts: []string{"ada@example.net"}, Subject: evil, Open: func(m *InboxMail) error {
				m.Content = &Content{HTML: evil, Text: evil}
				m.Content.Add(File{Name: evil, Type: "image/png", ID: "logo", Size: 3}, []byte("png"))
				return nil
			}}}
		}},
	}
}

func (f *fakeAccounts) note(s string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.changes = append(f.changes, s)
	return nil
}

func (f *fakeAccounts) Pause(_ context.Context, a, reason string) error { return f.note("pause " + a) }

func (f *fakeAccounts) Resume(_ context.Context, a string) error { return f.note("resume " + a) }

const password = "correct horse"

func newSite(t *testing.T, change ...func(*Access)) *site {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t), MinFree: -1, KeepBodies: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { st.Close() })
	s := &site{t: t, store: st, log: &syncBuffer{}, accts: &fakeAccounts{}}
	log := slog.New(slog.NewTextHandler(s.log, nil))
	s.svc = &Service{Store: st, Accts: s.accts, Alarms: func() []Alarm { return []Alarm{{Name: "backlog", Account: "box", Text: evil, Since: time.Now()}} }, Preview: func() bool { return true }, Log: log, Now: time.Now}
	a := Access{Verify: func(pw string) (bool, error) { return pw == password, nil }, PasswordID: "1", Hosts: []string{"127.0.0.1"}, Local: true}
	for _, f := range change {
		f(&a)
	}
	s.guard = NewGuard(a, log, time.Now)
	d := &Dashboard{API: s.svc, Guard: s.guard, Log: log, Now: time.Now, Host: "bridge.example.com", Subjects: func() bool { return true }, Sandbox: func() bool { return true }}
	metrics := NewMetrics("test", st)
	health := Health(st.Ping, s.svc.Alarms, metrics)
	s.Server = httptest.NewUnstartedServer(s.guard.Wrap(health, Handler(Discreet(s.svc, s.svc.Preview)), d.Handler()))
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	t.Cleanup(s.Server.Close)
	s.fill()
	return s
}

// fill puts mails into the store: one that waits after an ESP's answer, one that was sent and has events of the ESP.
func (s *site) fill() {
	t := s.t
	now := time.Now()
	put := func(account, body string) string {
		m := store.Mail{
			Envelope:   envelope.Envelope{ID: envelope.NewID(now), From: "shop@example.com", Received: now, Listener: "apps", Peer: evil, Helo: evil, Rcpts: []envelope.Rcpt{{Addr: `"<b>ada</b>"@example.net`}}},
			FromHeader: "shop@example.com", MessageID: "1" + evil, Subject: evil, Header: []byte("Subject: " + evil + "\r\nX-Evil: " + evil + "\r\n\r\n"), Generation: 1,
		}
		r, err := s.store.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer r.Abort()
		if _, err := io.WriteString(r, body); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(t.Context(), m, []store.NewJob{{Route: "r", Accounts: []string{account}, Rcpts: []int{0}, NextAt: now, Expires: now.Add(time.Hour)}}); err != nil {
			t.Fatal(err)
		}
		return m.Envelope.ID
	}
	html := "MIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>Hi</p>" + evil + "<img src=\"cid:x\"><img src=\"https://tracker.example.com/p.gif\">\r\n--b\r\nContent-Type: application/pdf; name=\"" + strings.ReplaceAll(evil, `"`, "") + "\"\r\nContent-Disposition: attachment\r\n\r\nx\r\n--b--\r\n"
	settle := func(account string, st store.RcptState, result store.CallState, kind event.Kind) {
		cs, err := s.store.Claim(t.Context(), account, 1)
		if err != nil || len(cs) != 1 {
			t.Fatalf("claim: %d, %v", len(cs), err)
		}
		c := cs[0]
		calls, err := s.store.Start(t.Context(), c, []store.Call{{Account: account, Rcpts: []int{0}}})
		if err != nil {
			t.Fatal(err)
		}
		calls[0].State, calls[0].Detail, calls[0].HTTPStatus, calls[0].ProviderMessageID = result, evil, 500, "esp-1"
		err = s.store.Settle(t.Context(), store.Settlement{
			Claim: c, Calls: []store.CallResult{{Call: calls[0], Kind: "transient"}}, NextAt: now.Add(time.Hour), LastError: evil, Counted: true,
			Rcpts: []store.RcptResult{{N: 0, State: st, Account: account, Detail: evil, Status: "4.0.0"}},
			Events: []event.Event{{
				Kind: kind, QueueID: c.Mail.Envelope.ID, Recipient: c.Mail.Envelope.Rcpts[0].Addr, Account: account, Provider: "sandbox", Diagnostic: evil, ProviderEvent: evil,
				Losses: []event.Loss{{Field: evil, Had: evil, Sent: evil, Severity: "major"}},
			}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s.sent = put("box", html)
	settle("box", store.RcptSent, store.CallAccepted, event.Sent)
	s.queued = put("other", html)
	settle("other", store.RcptQueued, store.CallRetry, event.Deferred)
	if err := s.store.SetAccount(t.Context(), store.AccountState{Account: "box", State: "paused", Reason: evil, Since: now}); err != nil {
		t.Fatal(err)
	}
	if err := s.store.Suppress(t.Context(), store.Suppression{Address: "gone@example.net", Reason: evil, Source: evil}); err != nil {
		t.Fatal(err)
	}
	if err := (&Counter{Store: s.store, Now: time.Now}).Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// browser keeps cookies and does not follow redirects.
type browser struct {
	s      *site
	cookie *http.Cookie
}

// send makes a request as a page of the site would; change alters it.
func (b *browser) send(method, path string, form url.Values, change ...func(*http.Request)) (*http.Response, string) {
	b.s.t.Helper()
	req, err := http.NewRequestWithContext(b.s.t.Context(), method, b.s.URL+path, strings.NewReader(form.Encode()))
	if err != nil {
		b.s.t.Fatal(err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", b.s.URL)
		req.Header.Set("Sec-Fetch-Site", "same-origin")
	}
	if b.cookie != nil {
		req.AddCookie(b.cookie)
	}
	for _, f := range change {
		f(req)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	resp, err := client.Do(req)
	if err != nil {
		b.s.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		b.s.t.Fatal(err)
	}
	return resp, string(body)
}

func (s *site) login() *browser {
	s.t.Helper()
	b := &browser{s: s}
	resp, body := b.send("POST", "/login", url.Values{"password": {password}})
	if resp.StatusCode != http.StatusSeeOther || len(resp.Cookies()) != 1 {
		s.t.Fatalf("login: %d %s", resp.StatusCode, body)
	}
	b.cookie = resp.Cookies()[0]
	return b
}

var csrfField = regexp.MustCompile(`name="csrf" value="([^"]+)"`)

func (b *browser) token() string {
	b.s.t.Helper()
	_, body := b.send("GET", "/", nil)
	m := csrfField.FindStringSubmatch(body)
	if m == nil {
		b.s.t.Fatalf("no token in %.300s", body)
	}
	return m[1]
}

func (s *site) start() *site { s.Server.Start(); return s }

func TestCase096_Login(t *testing.T) {
	s := newSite(t).start()
	anonymous := &browser{s: s}
	for _, path := range []string{"/", "/mails", "/mail/" + s.sent, "/events", "/inbox", "/suppressions", "/mail/" + s.sent + "/preview"} {
		if resp, body := anonymous.send("GET", path, nil); resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(resp.Header.Get("Location"), "/login?next=") || strings.Contains(body, s.sent) && path != "/mail/"+s.sent && path != "/mail/"+s.sent+"/preview" {
			t.Errorf("%s without a login: %d to %q", path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	for _, path := range []string{"/api/v1/status", "/api/v1/queue", "/api/v1/queue/" + s.sent + "/body", "/events/stream"} {
		if resp, _ := anonymous.send("GET", path, nil); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s without a login: %d", path, resp.StatusCode)
		}
	}

	// A session id that an attacker has set is not taken over, and every login makes a new one.
	fixed := &browser{s: s, cookie: &http.Cookie{Name: plainCookie, Value: "attacker"}}
	resp, _ := fixed.send("POST", "/login", url.Values{"password": {password}, "next": {"//evil.example.com"}})
	first := resp.Cookies()[0]
	if first.Value == "attacker" || len(first.Value) < 40 || resp.Header.Get("Location") != "/" {
		t.Errorf("cookie %q, to %q", first.Value, resp.Header.Get("Location"))
	}
	if resp, _ := fixed.send("GET", "/", nil); resp.StatusCode != http.StatusSeeOther {
		t.Error("the attacker's id is a session")
	}
	again := &browser{s: s, cookie: first}
	resp, _ = again.send("POST", "/login", url.Values{"password": {password}})
	second := resp.Cookies()[0]
	if second.Value == first.Value {
		t.Error("the same id after another login")
	}
	if resp, _ := again.send("GET", "/", nil); resp.StatusCode != http.StatusSeeOther {
		t.Error("the id before the login is still a session")
	}
	if second.Name != plainCookie || !second.HttpOnly || second.SameSite != http.SameSiteStrictMode || second.Path != "/" || second.Domain != "" {
		t.Errorf("cookie over plain HTTP: %+v", second)
	}

	b := &browser{s: s, cookie: second}
	if resp, _ := b.send("POST", "/logout", url.Values{"csrf": {b.token()}}); resp.StatusCode != http.StatusSeeOther || resp.Cookies()[0].MaxAge >= 0 {
		t.Errorf("logout: %d %v", resp.StatusCode, resp.Cookies())
	}
	if resp, _ := b.send("GET", "/", nil); resp.StatusCode != http.StatusSeeOther {
		t.Error("a session after its logout")
	}

	// A changed password ends all sessions.
	b = s.login()
	a := s.guard.rules()
	a.PasswordID = "2"
	s.guard.Reload(a)
	if resp, _ := b.send("GET", "/", nil); resp.StatusCode != http.StatusSeeOther {
		t.Error("a session outlives the password")
	}

	// Brute force ends after a few attempts, by form and by Basic authentication; then the right password does not help either.
	for i := range 10 {
		if resp, _ := anonymous.send("POST", "/login", url.Values{"password": {fmt.Sprint("guess", i)}}); resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies()) > 0 {
			t.Errorf("guess %d: %d", i, resp.StatusCode)
		}
	}
	if resp, _ := anonymous.send("POST", "/login", url.Values{"password": {password}}); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("after ten failures: %d", resp.StatusCode)
	}
	if resp, _ := anonymous.send("GET", "/api/v1/status", nil, func(r *http.Request) { r.SetBasicAuth("", password) }); resp.StatusCode != http.StatusTooManyRequests {
		t.Errorf("Basic after ten failures: %d", resp.StatusCode)
	}
	for _, want := range []string{"event=admin.login_failed", "event=admin.login ", "reason=held_off"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("%s is not in the log", want)
		}
	}
	if strings.Contains(s.log.String(), "guess") || strings.Contains(s.log.String(), password) {
		t.Error("a password is in the log")
	}
}

func TestCase096_CookieOverTLS(t *testing.T) {
	s := newSite(t)
	s.StartTLS()
	b := s.login()
	if c := b.cookie; c.Name != "__Host-smtpbridge" || !c.Secure || !c.HttpOnly || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" {
		t.Errorf("cookie over TLS: %+v", c)
	}
	if resp, _ := b.send("GET", "/", nil); resp.StatusCode != http.StatusOK {
		t.Errorf("with the cookie: %d", resp.StatusCode)
	}
	plain := &browser{s: s, cookie: &http.Cookie{Name: plainCookie, Value: b.cookie.Value}}
	if resp, _ := plain.send("GET", "/", nil); resp.StatusCode != http.StatusSeeOther {
		t.Error("over TLS a cookie without Secure is taken")
	}
}

func TestCase097_OtherSites(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	token := b.token()
	header := func(k, v string) func(*http.Request) { return func(r *http.Request) { r.Header.Set(k, v) } }
	before := s.state()
	for _, target := range []string{"/mail/" + s.queued + "/delete", "/mail/" + s.queued + "/hold", "/accounts/box/pause", "/suppressions", "/suppressions/remove", "/logout", "/api/v1/queue/" + s.queued + "/delete", "/api/v1/accounts/box/pause", "/api/v1/erase"} {
		for name, c := range map[string]struct {
			form   url.Values
			change func(*http.Request)
		}{
			"no token":    {url.Values{}, header("X", "")},
			"wrong token": {url.Values{"csrf": {token[1:] + "A"}}, header("X-CSRF-Token", "x")},
			"other origin": {url.Values{"csrf": {token}}, func(r *http.Request) {
				r.Header.Set("Origin", "https://evil.example.com")
				r.Header.Del("Sec-Fetch-Site")
				r.Header.Set("X-CSRF-Token", token)
			}},
			"other site": {url.Values{"csrf": {token}}, func(r *http.Request) {
				r.Header.Set("Sec-Fetch-Site", "cross-site")
				r.Header.Set("X-CSRF-Token", token)
			}},
			"other host":     {url.Values{"csrf": {token}}, func(r *http.Request) { r.Host = "evil.example.com"; r.Header.Set("X-CSRF-Token", token) }},
			"password, evil": {url.Values{}, func(r *http.Request) { r.SetBasicAuth("", password); r.Header.Set("Sec-Fetch-Site", "cross-site") }},
		} {
			if resp, body := b.send("POST", target, c.form, c.change); resp.StatusCode != http.StatusForbidden {
				t.Errorf("%s with %s: %d %.80s", target, name, resp.StatusCode, body)
			}
		}
	}
	if after := s.state(); after != before {
		t.Errorf("something changed:\n%s\n%s", before, after)
	}
	for _, host := range []string{"evil.example.com", "127.0.0.1.evil.example.com", "", "[::1]:80"} {
		if host == "" {
			continue // the client fills it in
		}
		for _, path := range []string{"/", "/login", "/metrics", "/readyz", "/api/v1/status", "/static/app.js"} {
			if resp, _ := b.send("GET", path, nil, func(r *http.Request) { r.Host = host }); resp.StatusCode != http.StatusForbidden {
				t.Errorf("GET %s of host %s: %d", path, host, resp.StatusCode)
			}
		}
	}
	for _, want := range []string{"event=admin.csrf", "event=admin.host"} {
		if !strings.Contains(s.log.String(), want) {
			t.Errorf("%s is not in the log", want)
		}
	}
	// The same with what the pages send works.
	if resp, body := b.send("POST", "/mail/"+s.queued+"/hold", url.Values{"csrf": {token}}); resp.StatusCode != http.StatusSeeOther {
		t.Errorf("hold: %d %s", resp.StatusCode, body)
	}
	if resp, body := b.send("POST", "/api/v1/queue/"+s.queued+"/release", nil, header("X-CSRF-Token", token)); resp.StatusCode != http.StatusOK {
		t.Errorf("release: %d %s", resp.StatusCode, body)
	}
	// A link on another site brings no Strict cookie along: the page asks for itself again, then it does.
	stranger := &browser{s: s}
	if resp, _ := stranger.send("GET", "/mails", nil, header("Sec-Fetch-Site", "cross-site")); resp.StatusCode != http.StatusForbidden && resp.Header.Get("Refresh") != "0" {
		t.Errorf("a link from another site: %d, Refresh %q", resp.StatusCode, resp.Header.Get("Refresh"))
	}
}

// state is everything a change would touch.
func (s *site) state() string {
	s.t.Helper()
	d, err := s.store.Detail(s.t.Context(), s.queued)
	if err != nil {
		s.t.Fatal(err)
	}
	sup, err := s.store.Suppressions(s.t.Context(), nil, 10)
	if err != nil {
		s.t.Fatal(err)
	}
	s.accts.mu.Lock()
	defer s.accts.mu.Unlock()
	return fmt.Sprintf("%s %d events, %d suppressions, accounts %v", d.Mail.State, len(d.Events), len(sup), s.accts.changes)
}

func TestCase098_Script(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	for _, path := range []string{"/", "/mails", "/mails?state=all&q=" + url.QueryEscape(evil), "/mail/" + s.queued, "/mail/" + s.sent, "/events", "/events?recipient=" + url.QueryEscape(evil), "/suppressions", "/suppressions?address=" + url.QueryEscape(evil), "/inbox", "/inbox/box/sb-1", "/login?next=" + url.QueryEscape("/"+evil)} {
		resp, body := b.send("GET", path, nil)
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
		if strings.Contains(body, "<script>alert") || strings.Contains(body, "<img src=x") || strings.Contains(body, "<b>ada") {
			t.Errorf("%s has markup from outside", path)
		}
		if csp := resp.Header.Get("Content-Security-Policy"); csp != contentPolicy || resp.Header.Get("X-Content-Type-Options") != "nosniff" || resp.Header.Get("X-Frame-Options") != "DENY" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s: headers %v", path, resp.Header)
		}
		if strings.Contains(body, " style=") || strings.Contains(body, "<style") || regexp.MustCompile(`<script(?: defer)?>| on[a-z]+=["']`).MatchString(strings.ReplaceAll(body, "onerror=alert(2)&gt;", "")) {
			t.Errorf("%s has inline style or script", path)
		}
		for _, m := range regexp.MustCompile(`(?:src|href|action)="([^"]*)"`).FindAllStringSubmatch(body, -1) {
			if u := m[1]; u != "#main" && (!strings.HasPrefix(u, "/") || strings.HasPrefix(u, "//")) {
				t.Errorf("%s refers to %q", path, u)
			}
		}
	}
	// The mail's HTML comes as it is, but where it can do nothing.
	for _, path := range []string{"/mail/" + s.sent + "/preview", "/inbox/box/sb-1/preview"} {
		resp, body := b.send("GET", path, nil)
		csp := resp.Header.Get("Content-Security-Policy")
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, evil) {
			t.Errorf("%s: %d %.100s", path, resp.StatusCode, body)
		}
		if !strings.HasPrefix(csp, "sandbox; default-src 'none';") || strings.Contains(csp, "script-src") || strings.Contains(csp, "allow-") || !strings.Contains(csp, "img-src data:;") || resp.Header.Get("Referrer-Policy") != "no-referrer" {
			t.Errorf("%s: %s", path, csp)
		}
	}
	if _, body := b.send("GET", "/mail/"+s.sent, nil); !strings.Contains(body, `sandbox src="/mail/`+s.sent+`/preview"`) {
		t.Error("the preview is not in a sandboxed frame")
	}
	s.svc.Preview = func() bool { return false }
	if resp, _ := b.send("GET", "/mail/"+s.sent+"/preview", nil); resp.StatusCode != http.StatusForbidden {
		t.Errorf("preview that is switched off: %d", resp.StatusCode)
	}
	if resp, _ := b.send("GET", "/inbox/box/sb-1/preview", nil); resp.StatusCode != http.StatusForbidden {
		t.Errorf("preview of the sandbox that is switched off: %d", resp.StatusCode)
	}
}

func TestCase099_Traversal(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	for _, path := range []string{
		"/mail/../../etc/passwd", "/mail/%2e%2e%2fetc%2fpasswd", "/mail/..%2f..%2f", "/mail/nope", "/mail/nope/preview", "/mail/%00", "/mail/" + strings.Repeat("a", 32<<10), "/mail/" + s.sent + "%20", "/mail/" + s.sent + "/../x/preview",
		"/static/../guard.go", "/static/%2e%2e/dashboard.go", "/static/", "/static/..%2ftemplates%2fmail.html", "/static/templates/mail.html", "/inbox/nope/sb-1",
		"/api/v1/queue/../../x", "/api/v1/queue/nope", "/api/v1/queue/%2e%2e", "/api/v1/queue/nope/body", "/api/v1/inbox/box/nope", "/api/v2/status", "/.git/config", "/debug/pprof/", "/debug/vars", "/templates/mail.html",
	} {
		resp, body := b.send("GET", path, nil)
		if resp.StatusCode == http.StatusTemporaryRedirect || resp.StatusCode == http.StatusMovedPermanently {
			resp, body = b.send("GET", resp.Header.Get("Location"), nil) // a path made clean
		}
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%.60s: %d %.100s", path, resp.StatusCode, body)
		}
	}
	if resp, _ := b.send("GET", "/mail/"+strings.Repeat("a", 1<<20), nil); resp.StatusCode < 400 {
		t.Errorf("a queue id of 1 MiB: %d", resp.StatusCode)
	}
}

func TestCase100_Audit(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	token := b.token()
	form := func(kv ...string) url.Values {
		v := url.Values{"csrf": {token}}
		for i := 0; i < len(kv); i += 2 {
			v.Set(kv[i], kv[i+1])
		}
		return v
	}
	for _, c := range []struct {
		path, what string
		form       url.Values
	}{
		{"/mail/" + s.queued + "/hold", "hold", form("reason", "looks odd")},
		{"/mail/" + s.queued + "/release", "release", form()},
		{"/mail/" + s.queued + "/retry", "retry", form()},
		{"/mail/" + s.queued + "/delete", "delete", form()},
		{"/accounts/box/pause", "pause", form()},
		{"/accounts/box/resume", "resume", form("back", "/?span=1h")},
		{"/suppressions", "suppress", form("address", "bob@example.net")},
		{"/suppressions/remove", "unsuppress", form("address", "bob@example.net")},
	} {
		if resp, body := b.send("POST", c.path, c.form); resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(resp.Header.Get("Location"), "/") {
			t.Errorf("%s: %d %s", c.path, resp.StatusCode, body)
		}
		evs, err := s.store.Events(t.Context(), store.Filter{Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(evs, func(e event.Event) bool { return e.ProviderEvent == "admin."+c.what })
		if i < 0 {
			t.Errorf("%s left no event, newest %+v", c.path, evs[0])
			continue
		}
		if i == 0 && c.what == "delete" {
			t.Error("the deletion was recorded after its effect")
		}
		if e := evs[i]; !strings.HasPrefix(e.Diagnostic, "by dashboard 127.0.0.1 session ") || strings.Contains(c.path, s.queued) && e.QueueID != s.queued || strings.Contains(c.path, "box") && e.Account != "box" {
			t.Errorf("%s: %+v", c.path, e)
		}
		if !regexp.MustCompile(`event=admin\.action who="dashboard 127\.0\.0\.1 session [0-9a-f]+" action=` + c.what + " ").MatchString(s.log.String()) {
			t.Errorf("%s is not in the log", c.what)
		}
		if strings.Contains(s.log.String(), b.cookie.Value) {
			t.Error("the session id is in the log")
		}
	}
	for _, path := range []string{"/api/v1/erase", "/api/v1/backup"} {
		resp, body := b.send("POST", path, url.Values{"address": {"bob@example.net"}, "dir": {t.TempDir() + "/copy"}}, func(r *http.Request) { r.SetBasicAuth("", password); r.Header.Del("Cookie") })
		if resp.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	evs, err := s.store.Events(t.Context(), store.Filter{Limit: 2})
	if err != nil || evs[0].ProviderEvent != "admin.backup" || evs[1].ProviderEvent != "admin.erase" || strings.Contains(evs[1].Diagnostic, "bob") {
		t.Errorf("got %+v, %v", evs, err)
	}
	if !slices.Equal(s.accts.changes, []string{"pause box", "resume box"}) {
		t.Errorf("changes %v", s.accts.changes)
	}
	// What cannot be recorded is not done.
	s.store.Close()
	if err := s.svc.SetAccount(t.Context(), "box", true, ""); err == nil || !strings.Contains(err.Error(), "pause is not done") || len(s.accts.changes) != 2 {
		t.Errorf("got %v, changes %v", err, s.accts.changes)
	}
}

// The pages do what they offer, and say so on the next page.
func TestPages(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	token := b.token()
	resp, _ := b.send("POST", "/mail/"+s.queued+"/hold", url.Values{"csrf": {token}})
	if _, body := b.send("GET", resp.Header.Get("Location"), nil); !strings.Contains(body, "The message is held.") || !strings.Contains(body, "/release") {
		t.Errorf("after hold: %s", body)
	}
	if _, body := b.send("GET", "/mail/"+s.queued, nil); strings.Contains(body, "The message is held.") {
		t.Error("said twice")
	}
	if resp, body := b.send("POST", "/mail/"+s.sent+"/retry", url.Values{"csrf": {token}}); resp.StatusCode != http.StatusConflict || !strings.Contains(body, "nothing left to retry") {
		t.Errorf("retry of a finished mail: %d %s", resp.StatusCode, body)
	}
	for q, want := range map[string]string{s.sent: s.sent, "esp-1": s.sent, "alert(1)": s.queued, "shop@example.com": s.sent, "nobody@example.net": ""} {
		_, body := b.send("GET", "/mails?state=all&q="+url.QueryEscape(q), nil)
		if want != "" && !strings.Contains(body, "/mail/"+want) || want == "" && !strings.Contains(body, "Nothing found") {
			t.Errorf("search %q: %s", q, body)
		}
	}
	if resp, _ := b.send("GET", "/mails", nil, func(r *http.Request) { r.Header.Set("HX-Request", "true") }); resp.StatusCode != http.StatusOK {
		t.Errorf("mails by htmx: %d", resp.StatusCode)
	}
}

// A new event appears in the live view by itself, and the view ends with the session.
func TestStream(t *testing.T) {
	s := newSite(t).start()
	b := s.login()
	req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL+"/events/stream", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.AddCookie(b.cookie)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Errorf("type %q", resp.Header.Get("Content-Type"))
	}
	buf := make([]byte, 64<<10)
	if _, err := resp.Body.Read(buf); err != nil { // the greeting: it follows from here on
		t.Fatal(err)
	}
	send := func(what string) {
		t.Helper()
		if err := s.store.Note(t.Context(), event.Event{Kind: event.Unknown, ProviderEvent: what, Diagnostic: evil + "\nsecond line"}); err != nil {
			t.Fatal(err)
		}
	}
	send("test.first")
	got := ""
	for !strings.Contains(got, "\n\n") || !strings.Contains(got, "test.first") {
		n, err := resp.Body.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q", err, got)
		}
		got += string(buf[:n])
	}
	if strings.Contains(got, "<script") || strings.Count(strings.TrimSpace(got), "\n") != 0 {
		t.Errorf("got %q", got)
	}
	b.send("POST", "/logout", url.Values{"csrf": {b.token()}})
	send("test.second")
	rest, err := io.ReadAll(resp.Body)
	if err != nil || strings.Count(string(rest), "test.second") > 1 {
		t.Errorf("after the logout: %q, %v", rest, err)
	}
}

// Without a password there is nothing but health and metrics.
func TestNoPassword(t *testing.T) {
	s := newSite(t, func(a *Access) { a.Verify = nil }).start()
	b := &browser{s: s}
	for path, want := range map[string]int{
		"/": 403, "/login": 404, "/mails": 404, "/api/v1/status": 404, "/static/app.css": 404, "/livez": 200, "/readyz": 200, "/metrics": 200,
	} {
		if resp, body := b.send("GET", path, nil); resp.StatusCode != want || path == "/" && !strings.Contains(body, "smtpbridge hash-password") {
			t.Errorf("%s: %d", path, resp.StatusCode)
		}
	}
	if resp, _ := b.send("POST", "/login", url.Values{"password": {""}}); resp.StatusCode != http.StatusNotFound {
		t.Errorf("login without a password: %d", resp.StatusCode)
	}
}

// Off loopback what tells of accounts needs the password.
func TestMetricsNeedPassword(t *testing.T) {
	s := newSite(t, func(a *Access) { a.Local = false }).start()
	b := &browser{s: s}
	for path, want := range map[string]int{"/livez": 200, "/readyz": 401, "/metrics": 401} {
		if resp, _ := b.send("GET", path, nil); resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	for range 3 { // the password is checked once, then remembered
		if resp, body := b.send("GET", "/metrics", nil, func(r *http.Request) { r.SetBasicAuth("prometheus", password) }); resp.StatusCode != 200 || !strings.Contains(body, "smtpbridge_queue_mails") {
			t.Errorf("with the password: %d", resp.StatusCode)
		}
	}
}

func decode(t *testing.T, body string) (v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		t.Fatalf("%v in %.200s", err, body)
	}
	return v
}
