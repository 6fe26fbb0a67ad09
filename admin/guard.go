package admin

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/throttle"
)

const (
	sessionIdle    = 8 * time.Hour  // without a request
	sessionLife    = 24 * time.Hour // from the login on
	sessionsMax    = 100            // the longest unused goes first
	passwordChecks = 2              // at once: each needs 19 MiB
	passwordLong   = 1024           // bytes of a password that is looked at
	basicRemember  = 10 * time.Minute
	secureCookie   = "__Host-smtpbridge"
	plainCookie    = "smtpbridge-local" // over plain HTTP a browser takes no __Host- cookie
)

// Access says who may use the HTTP side of the admin API.
type Access struct {
	// Verify checks the password; nil: there is none, and only health and metrics are served.
	Verify func(password string) (bool, error)
	// PasswordID changes when the password does; sessions end with it.
	PasswordID string
	Hosts      []string // names and addresses this server is called by, without ports
	Local      bool     // it listens on loopback: health and metrics may be read without a password
}

// Guard lets only the operator pass: it checks the Host header, sessions, CSRF tokens and passwords, and
// sets the headers that keep a browser from doing what the pages do not want.
type Guard struct {
	Log *slog.Logger
	Now func() time.Time

	cross    http.CrossOriginProtection
	throttle throttle.Throttle
	checks   chan struct{}
	key      []byte

	mu       sync.Mutex
	access   Access
	sessions map[[32]byte]*session
	basic    map[[32]byte]time.Time // passwords that were right, under key
}

// session is one login. Its id is known to the browser only; we keep its hash.
type session struct {
	csrf    string
	name    string // names it in the log without giving it away
	created time.Time
	used    time.Time
	flash   string
}

// NewGuard makes a guard.
func NewGuard(a Access, log *slog.Logger, now func() time.Time) *Guard {
	g := &Guard{
		Log: log, Now: now, checks: make(chan struct{}, passwordChecks), key: make([]byte, 32),
		sessions: map[[32]byte]*session{}, basic: map[[32]byte]time.Time{},
	}
	_, _ = rand.Read(g.key) // never fails
	g.Reload(a)
	return g
}

// Reload puts new rules into force. A changed password ends every session.
func (g *Guard) Reload(a Access) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if a.PasswordID != g.access.PasswordID {
		clear(g.sessions)
		clear(g.basic)
	}
	a.Hosts = slices.Clone(a.Hosts)
	for i, h := range a.Hosts {
		a.Hosts[i] = strings.ToLower(strings.TrimSuffix(h, "."))
	}
	g.access = a
}

func (g *Guard) rules() Access {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.access
}

type sessionKey struct{}

func sessionOf(ctx context.Context) *session {
	s, _ := ctx.Value(sessionKey{}).(*session)
	return s
}

// contentPolicy lets pages use nothing but what this server sends. Frames are for the preview.
const contentPolicy = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; frame-src 'self'; base-uri 'none'; frame-ancestors 'none'"

func secureHeaders(h http.Header) {
	h.Set("Content-Security-Policy", contentPolicy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "same-origin")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), geolocation=(), microphone=()")
	h.Set("Cache-Control", "no-store")
}

// Wrap guards the parts of the HTTP listener: health (with /metrics), the JSON API and the pages.
func (g *Guard) Wrap(health, api, pages http.Handler) http.Handler {
	open := http.NewServeMux()
	open.HandleFunc("POST /login", g.login)
	open.HandleFunc("GET /login", func(w http.ResponseWriter, r *http.Request) { renderLogin(w, r, http.StatusOK, "") })
	open.Handle("GET /static/", static)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		secureHeaders(w.Header())
		a := g.rules()
		if r.URL.Path == "/livez" {
			health.ServeHTTP(w, r)
			return
		}
		if !hostAllowed(r.Host, a.Hosts) {
			g.Log.Warn("request for a foreign host", "event", "admin.host", "host", event.Clean(r.Host, 100), "peer", peer(r))
			http.Error(w, "this server is not called "+event.Clean(r.Host, 100)+": add the name to [admin] hosts", http.StatusForbidden)
			return
		}
		s := g.session(r)
		if r.URL.Path == "/readyz" || r.URL.Path == "/metrics" {
			if a.Local || s != nil || g.basicAuth(w, r, a) {
				health.ServeHTTP(w, r)
			}
			return
		}
		if a.Verify == nil {
			renderClosed(w, r)
			return
		}
		if err := g.cross.Check(r); err != nil {
			g.refuse(w, r, "cross_origin")
			return
		}
		if strings.HasPrefix(r.URL.Path, "/api/") {
			g.serveAPI(w, r, a, s, api)
			return
		}
		if r.URL.Path == "/login" || strings.HasPrefix(r.URL.Path, "/static/") {
			open.ServeHTTP(w, r)
			return
		}
		if s == nil {
			askLogin(w, r)
			return
		}
		if !safe(r.Method) {
			r.Body = http.MaxBytesReader(w, r.Body, maxForm)
			if !sameToken(r.PostFormValue("csrf"), s.csrf) {
				g.refuse(w, r, "token")
				return
			}
		}
		if r.Method == http.MethodPost && r.URL.Path == "/logout" {
			g.logout(w, r)
			return
		}
		pages.ServeHTTP(w, r.WithContext(g.acting(r, s)))
	})
}

// maxForm is the size of a form; the longest is a list of suppressions.
const maxForm = 1 << 20

func safe(method string) bool { return method == http.MethodGet || method == http.MethodHead }

func sameToken(got, want string) bool {
	return subtle.ConstantTimeCompare([]byte(got), []byte(want)) == 1
}

func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, why string) {
	g.Log.Warn("request from another site refused", "event", "admin.csrf", "why", why, "method", r.Method, "path", event.Clean(r.URL.Path, 100), "origin", event.Clean(r.Header.Get("Origin"), 100), "peer", peer(r))
	http.Error(w, "this request did not come from a page of this server: reload the page and try again", http.StatusForbidden)
}

func (g *Guard) acting(r *http.Request, s *session) context.Context {
	who := "api " + peer(r)
	if s != nil {
		who = "dashboard " + peer(r) + " session " + s.name
	}
	return context.WithValue(WithActor(r.Context(), who), sessionKey{}, s)
}

// serveAPI takes a session with its token, or the password by Basic authentication.
func (g *Guard) serveAPI(w http.ResponseWriter, r *http.Request, a Access, s *session, api http.Handler) {
	switch {
	case s != nil && !safe(r.Method) && !sameToken(r.Header.Get("X-CSRF-Token"), s.csrf):
		g.refuse(w, r, "token")
		return
	case s == nil && !g.basicAuth(w, r, a):
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, maxForm)
	api.ServeHTTP(w, r.WithContext(g.acting(r, s)))
}

// hostAllowed keeps pages of other names out that resolve to this address (DNS rebinding).
func hostAllowed(host string, hosts []string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	return slices.Contains(hosts, host)
}

func peer(r *http.Request) string {
	if host, _, err := net.SplitHostPort(r.RemoteAddr); err == nil {
		return host
	}
	return r.RemoteAddr
}

// session finds the session of a request. Over TLS only the cookie counts that a browser takes over TLS alone.
func (g *Guard) session(r *http.Request) *session {
	c, err := r.Cookie(secureCookie)
	if err != nil && r.TLS == nil {
		c, err = r.Cookie(plainCookie)
	}
	if err != nil {
		return nil
	}
	key := sha256.Sum256([]byte(c.Value))
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sessions[key]
	if s == nil {
		return nil
	}
	if now.Sub(s.created) > sessionLife || now.Sub(s.used) > sessionIdle {
		delete(g.sessions, key)
		return nil
	}
	s.used = now
	return s
}

// password checks a password; each check costs an argon2 computation, of which few run at once.
func (g *Guard) password(ctx context.Context, a Access, pw string) (ok bool) {
	if len(pw) > passwordLong {
		pw = pw[:passwordLong]
	}
	select {
	case g.checks <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	defer func() { <-g.checks }()
	ok, err := a.Verify(pw)
	if err != nil {
		g.Log.Error("the configured password hash cannot be read", "event", "admin.login_failed", "err", err)
	}
	return ok && err == nil
}

// try is one attempt to log in; it counts failures of a peer and holds it off.
func (g *Guard) try(r *http.Request, a Access, pw string) (ok, heldOff bool) {
	if g.throttle.Blocked(peer(r), g.Now()) {
		g.Log.Warn("login refused", "event", "admin.login_failed", "peer", peer(r), "reason", "held_off")
		return false, true
	}
	if !g.password(r.Context(), a, pw) {
		g.throttle.Fail(peer(r), g.Now())
		g.Log.Warn("login failed", "event", "admin.login_failed", "peer", peer(r), "reason", "password")
		return false, false
	}
	g.throttle.Forget(peer(r))
	return true, false
}

func (g *Guard) basicAuth(w http.ResponseWriter, r *http.Request, a Access) bool {
	_, pw, ok := r.BasicAuth()
	if !ok || a.Verify == nil {
		answerError(w, http.StatusUnauthorized, "log in, or send the password by Basic authentication")
		return false
	}
	mac := hmac.New(sha256.New, g.key)
	mac.Write([]byte(pw))
	key := [32]byte(mac.Sum(nil))
	now := g.Now()
	g.mu.Lock()
	until, known := g.basic[key]
	g.mu.Unlock()
	if known && now.Before(until) {
		return true
	}
	ok, heldOff := g.try(r, a, pw)
	switch {
	case heldOff:
		answerError(w, http.StatusTooManyRequests, "too many failed logins, try again later")
	case !ok:
		answerError(w, http.StatusUnauthorized, "wrong password")
	default:
		g.mu.Lock()
		defer g.mu.Unlock()
		clear(g.basic) // there is one password
		g.basic[key] = now.Add(basicRemember)
	}
	return ok
}

func (g *Guard) login(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<16)
	ok, heldOff := g.try(r, g.rules(), r.PostFormValue("password"))
	if heldOff {
		renderLogin(w, r, http.StatusTooManyRequests, "Too many failed logins from this address. Try again in ten minutes.")
		return
	}
	if !ok {
		renderLogin(w, r, http.StatusUnauthorized, "That is not the password.")
		return
	}
	now := g.Now()
	id := rand.Text() + rand.Text()
	sum := sha256.Sum256([]byte(id))
	s := &session{csrf: rand.Text(), name: hex.EncodeToString(sum[:3]), created: now, used: now}
	g.mu.Lock()
	if old, err := r.Cookie(secureCookie); err == nil { // the session this one replaces
		delete(g.sessions, sha256.Sum256([]byte(old.Value)))
	}
	if old, err := r.Cookie(plainCookie); err == nil {
		delete(g.sessions, sha256.Sum256([]byte(old.Value)))
	}
	if len(g.sessions) >= sessionsMax {
		var oldest [32]byte
		at := now.Add(time.Hour)
		for k, o := range g.sessions {
			if o.used.Before(at) {
				oldest, at = k, o.used
			}
		}
		delete(g.sessions, oldest)
	}
	g.sessions[sum] = s
	g.mu.Unlock()
	g.Log.Info("logged in", "event", "admin.login", "peer", peer(r), "session", s.name)
	http.SetCookie(w, cookie(r, id))
	http.Redirect(w, r, localPath(r.PostFormValue("next")), http.StatusSeeOther)
}

// cookie makes the session's cookie. Behind a proxy that ends TLS the browser's Origin tells of it.
func cookie(r *http.Request, value string) *http.Cookie {
	c := &http.Cookie{Name: plainCookie, Value: value, Path: "/", HttpOnly: true, SameSite: http.SameSiteStrictMode}
	if r.TLS != nil || strings.HasPrefix(r.Header.Get("Origin"), "https://") {
		c.Name, c.Secure = secureCookie, true
	}
	return c
}

// localPath keeps a redirect on this server.
func localPath(p string) string {
	if !strings.HasPrefix(p, "/") || strings.HasPrefix(p, "//") || strings.ContainsAny(p, "\\\r\n\t") || strings.HasPrefix(p, "/login") {
		return "/"
	}
	return p
}

func (g *Guard) logout(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	for _, name := range []string{secureCookie, plainCookie} {
		if c, err := r.Cookie(name); err == nil {
			delete(g.sessions, sha256.Sum256([]byte(c.Value)))
		}
	}
	g.mu.Unlock()
	c := cookie(r, "")
	c.MaxAge = -1
	http.SetCookie(w, c)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}

// alive reports whether a session still is one, for answers that take long.
func (g *Guard) alive(s *session) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, have := range g.sessions {
		if have == s {
			return g.Now().Sub(s.created) <= sessionLife
		}
	}
	return false
}

// flash keeps a message for the next page of a session.
func (g *Guard) flash(s *session, text string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s.flash = text
}

func (g *Guard) takeFlash(s *session) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	text := s.flash
	s.flash = ""
	return text
}
