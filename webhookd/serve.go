package webhookd

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// Names of what is logged.
const (
	logBadSignature = "webhook.bad_signature"
	logStale        = "webhook.stale"      // age=
	logSkew         = "webhook.clock_skew" // off=
	logRecovered    = "webhook.signatures_verify_again"
	logUnavailable  = "webhook.signature_unchecked"
	logMalformed    = "webhook.malformed"
	logLimit        = "webhook.limit"
	logStoreFailed  = "webhook.store_failed"
	logPanic        = "webhook.panic"
	logNobody       = "webhook.no_account"
	logStored       = "webhook.stored"
)

const (
	kindWebhook = "webhook"
	kindInbound = "inbound"
)

// splitPath reads /webhook/ACCOUNT/REST and /inbound/ACCOUNT/REST; kind is "" for any other path.
func splitPath(p string) (kind, name, rest string) {
	kind, p = cutSegment(strings.TrimPrefix(p, "/"))
	if kind != kindWebhook && kind != kindInbound {
		return "", "", ""
	}
	name, rest = cutSegment(p)
	return kind, name, rest
}

func cutSegment(p string) (first, rest string) {
	first, rest, _ = strings.Cut(p, "/")
	return first, rest
}

// route finds the account a path belongs to, and what follows the account's path.
func (s *state) route(p string) (kind string, a *account, rest string) {
	kind, name, rest := splitPath(p)
	if a := s.byName[name]; kind != "" && a != nil {
		return kind, a, rest
	}
	p, rest = strings.TrimSuffix(p, "/"), ""
	for {
		if a := s.byPath[p]; a != nil {
			return kindWebhook, a, rest
		}
		i := strings.LastIndexByte(p, '/')
		if i < 0 {
			return "", nil, ""
		}
		if rest == "" {
			rest = p[i+1:]
		} else {
			rest = p[i+1:] + "/" + rest
		}
		p = p[:i]
	}
}

// answer is what a request comes to.
type answer struct {
	status int
	text   string
	typ    string // of the content, default text/plain
	header [2]string
}

func plain(status int) answer {
	return answer{status: status, text: strings.ToLower(http.StatusText(status)) + "\n"}
}

func (a answer) with(key, value string) answer {
	a.header = [2]string{key, value}
	return a
}

// ServeHTTP answers one request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	s := h.state.Load()
	kind, a, rest := s.route(r.URL.Path)
	var ans answer
	func() {
		// Nothing an ESP sends may look like a refusal when the fault is ours: 503 makes it send again.
		defer func() {
			if v := recover(); v != nil {
				s.panicked(a, v)
				ans = plain(http.StatusServiceUnavailable)
			}
		}()
		ans = h.dispatch(s, w, r, kind, a, rest)
	}()
	hd := w.Header()
	if ans.typ == "" {
		ans.typ = "text/plain; charset=utf-8"
	}
	hd.Set("Content-Type", ans.typ)
	hd.Set("Content-Length", strconv.Itoa(len(ans.text)))
	hd.Set("X-Content-Type-Options", "nosniff")
	hd.Set("Cache-Control", "no-store")
	if ans.header[0] != "" {
		hd.Set(ans.header[0], ans.header[1])
	}
	if ans.status == http.StatusRequestTimeout || ans.status == http.StatusRequestEntityTooLarge {
		hd.Set("Connection", "close")
	}
	w.WriteHeader(ans.status)
	io.WriteString(w, ans.text) // the ESP went away; what was stored is stored
	if s.Metrics.Request != nil {
		name := ""
		if a != nil {
			name = a.Name
		}
		s.Metrics.Request(name, ans.status, time.Since(began))
	}
}

func (h *Handler) dispatch(s *state, w http.ResponseWriter, r *http.Request, kind string, a *account, rest string) answer {
	// Time for everything after the body: without it a client that does not read its answer keeps a goroutine.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(s.BodyTimeout + s.StoreTimeout + 10*time.Second)) // not every test's writer has deadlines
	get := r.Method == http.MethodGet || r.Method == http.MethodHead
	switch {
	case a == nil && get:
		return s.strayFile(r.URL.Path)
	case a == nil:
		// The path may hold a secret in the wrong place, so it is not told. Posts elsewhere are those of scanners.
		if wanted, _, _ := splitPath(r.URL.Path); wanted != "" {
			h.seldom(s, &account{}, slog.LevelWarn, logNobody, "at", "/"+wanted+"/***", "peer", s.peer(r),
				"hint", "no account of this name has its webhooks served: is the URL right that is registered at the ESP?")
		}
		return plain(http.StatusNotFound)
	case kind == kindInbound && (a.inbound == nil || s.Inbox.Take == nil || !a.inboundVerifies()),
		kind == kindWebhook && a.webhook == nil && !(get && a.getter != nil):
		return plain(http.StatusNotFound)
	case get && kind == kindWebhook:
		return a.file(rest)
	case r.Method != http.MethodPost:
		return plain(http.StatusMethodNotAllowed).with("Allow", http.MethodPost)
	}
	return h.post(s, w, r, kind, a, rest)
}

// inboundVerifies tells whether inbound posts can be told from forged ones.
func (a *account) inboundVerifies() bool {
	if a.Info.Webhook.InboundCallback {
		return true
	}
	if a.Info.Webhook.Signed {
		return a.Info.Webhook.OwnKeys || len(a.Secrets)+len(a.InboundSecrets) > 0
	}
	return len(a.BasicAuth)+len(a.PathSecrets) > 0
}

// file answers GET and HEAD below an account's path.
func (a *account) file(rest string) answer {
	if after, ok := takeSecret(rest, a.PathSecrets); ok {
		rest = after
	}
	rest = strings.TrimSuffix(rest, "/")
	if a.getter != nil {
		if typ, content, ok := a.getter.WebhookGet(rest); ok {
			return answer{status: http.StatusOK, typ: typ, text: string(content)}
		}
	}
	if rest == "" && a.webhook != nil {
		return plain(http.StatusMethodNotAllowed).with("Allow", http.MethodPost)
	}
	return plain(http.StatusNotFound)
}

// strayFile serves verification files where ESPs look for them besides: in the web root, and in the
// folder that holds the webhook's path (SMTPeter accepts either place).
func (s *state) strayFile(p string) answer {
	dir, name := path.Split(p)
	if name == "" {
		return plain(http.StatusNotFound)
	}
	for _, a := range s.byName {
		if a.getter == nil {
			continue
		}
		own, ok, _ := ownPath(a.Account)
		if dir != "/" && dir != "/"+kindWebhook+"/" && !(ok && dir == own[:strings.LastIndexByte(own, '/')+1]) {
			continue
		}
		if typ, content, ok := a.getter.WebhookGet(name); ok {
			return answer{status: http.StatusOK, typ: typ, text: string(content)}
		}
	}
	return plain(http.StatusNotFound)
}

// post takes one webhook or inbound post.
func (h *Handler) post(s *state, w http.ResponseWriter, r *http.Request, kind string, a *account, rest string) answer {
	rest, pathOK := takeSecret(rest, a.pathSecrets(kind))
	if basicOK := a.basicAuth(r); !pathOK || !basicOK {
		ans := h.refused(s, r, a, errCredentials)
		if !basicOK && ans.status == http.StatusUnauthorized {
			ans = ans.with("WWW-Authenticate", `Basic realm="webhook", charset="UTF-8"`)
		}
		return ans
	}
	if strings.Trim(rest, "/") != "" {
		return plain(http.StatusNotFound)
	}
	slots := s.slots
	if kind == kindInbound {
		slots = s.inSlot
	}
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	default:
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "requests at once", "max", cap(slots))
		return plain(http.StatusServiceUnavailable).with("Retry-After", "5")
	}
	if kind == kindInbound {
		return h.postInbound(s, w, r, a)
	}
	limit := a.Info.Webhook.MaxBody
	def(&limit, defaultBody)
	// Bodies of the usual size are bounded by the number of requests; those who announce a large one share a
	// budget of their own, so that they cannot keep the others out.
	if need := r.ContentLength; limit > defaultBody && (need < 0 || need > defaultBody) && need <= limit {
		if need < 0 {
			need = limit
		}
		defer h.large.Add(-need)
		if h.large.Add(need) > max(s.MaxLargeBodies, limit) {
			h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "large bodies at once", "max", s.MaxLargeBodies)
			return plain(http.StatusServiceUnavailable).with("Retry-After", "5")
		}
	}
	body, ans, ok := h.readBody(s, w, r, a, limit)
	if !ok {
		return ans
	}

	// The work goes on when the ESP hangs up meanwhile: it will send again, and then it is a repetition.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), s.StoreTimeout)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.NoBody
	now := s.Now().UTC().Truncate(time.Microsecond) // as it is stored
	var evs []event.Event
	var raw *store.RawRequest
	err := a.webhook.VerifyWebhook(r, body)
	if err == nil {
		raw = a.rawRequest(kind, r, body, now)
		evs, err = a.events(raw, s.KeepReaders, now)
	}
	// A ping signed with a published secret proves nothing about ours.
	if ans, ok := h.judge(s, r, a, err, len(body), len(evs) > 0 || err != nil || !a.Info.Webhook.FirstPing); !ok || len(evs) == 0 {
		return ans
	}
	fresh, err := s.Recorder.Record(ctx, raw, evs...)
	if err != nil {
		h.seldom(s, a, slog.LevelError, logStoreFailed, "kind", kind, "err", clean(err, a))
		status := a.Info.Webhook.StoreFailed
		def(&status, http.StatusServiceUnavailable)
		return plain(status).with("Retry-After", "60")
	}
	s.Log.Debug(logStored, "account", a.Name, "raw", raw.ID, "events", len(evs), "fresh", fresh)
	if s.Metrics.Event != nil {
		for i := range evs {
			s.Metrics.Event(a.Name, evs[i].Kind)
		}
	}
	return plain(http.StatusOK)
}

// judge answers what could not be verified or read; ok is true for what could, and the answer is 200 then. proof tells that the
// request shows the account's secret to be right.
func (h *Handler) judge(s *state, r *http.Request, a *account, err error, size int, proof bool) (ans answer, ok bool) {
	switch {
	case errors.Is(err, providers.ErrSignature):
		return h.refused(s, r, a, err), false
	case errors.Is(err, providers.ErrUnavailable):
		h.seldom(s, a, slog.LevelWarn, logUnavailable, "err", clean(err, a))
		return plain(http.StatusServiceUnavailable).with("Retry-After", "60"), false
	case err != nil && !errors.Is(err, providers.ErrMalformed):
		// Not one of the contract's errors: nothing is proven, so it is our fault until shown otherwise.
		h.seldom(s, a, slog.LevelError, logUnavailable, "err", clean(err, a))
		return plain(http.StatusServiceUnavailable).with("Retry-After", "60"), false
	}
	if proof && a.health.verified() {
		s.Log.Info(logRecovered, "account", a.Name)
	}
	if err != nil {
		h.seldom(s, a, slog.LevelWarn, logMalformed, "err", clean(err, a), "size", size, "peer", s.peer(r))
		return plain(http.StatusBadRequest), false
	}
	return plain(http.StatusOK), true
}

// readBody reads the exact bytes of the body, within limits of size and time.
func (h *Handler) readBody(s *state, w http.ResponseWriter, r *http.Request, a *account, limit int64) (body []byte, ans answer, ok bool) {
	if r.ContentLength > limit {
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "body", "max", limit, "size", r.ContentLength)
		return nil, plain(http.StatusRequestEntityTooLarge), false
	}
	rc := http.NewResponseController(w)
	rc.SetReadDeadline(time.Now().Add(s.BodyTimeout)) // not every test's writer has deadlines
	size := r.ContentLength
	if size < 0 {
		size = 4 << 10
	}
	// The announced length is only believed as far as bytes arrive: memory follows what was sent.
	buf := newBuffer(min(size, 64<<10))
	_, err := buf.ReadFrom(http.MaxBytesReader(w, r.Body, limit))
	// The server watches the idle connection from here on; an old deadline would end the request's context.
	rc.SetReadDeadline(time.Time{}) // as above
	var tooLarge *http.MaxBytesError
	switch {
	case err == nil:
		return buf.Bytes(), answer{}, true
	case errors.As(err, &tooLarge):
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "body", "max", limit)
		return nil, plain(http.StatusRequestEntityTooLarge), false
	case errors.Is(err, os.ErrDeadlineExceeded):
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "time for the body", "max", s.BodyTimeout, "peer", s.peer(r))
		return nil, plain(http.StatusRequestTimeout), false
	}
	return nil, plain(http.StatusBadRequest), false
}

var errCredentials = errors.New("no valid credentials")

// refused answers a request that did not verify. Whether they are an alarm is asked of Failing.
func (h *Handler) refused(s *state, r *http.Request, a *account, reason error) answer {
	if s.Metrics.BadSignature != nil {
		s.Metrics.BadSignature(a.Name)
	}
	now := s.Now().UTC()
	n := a.health.failed(now)
	level := slog.LevelWarn
	if n > alarmAfter {
		level = slog.LevelDebug // whoever guesses shall not fill the log
	}
	what, args := logBadSignature, []any{"account", a.Name, "peer", s.peer(r), "reason", clean(reason, a), "in_a_row", n}
	var stale *providers.StaleError
	if errors.As(reason, &stale) {
		what, args = logStale, append(args, "age", stale.Age.Round(time.Second).String())
	}
	s.Log.Log(r.Context(), level, what, args...)
	if stale != nil && a.health.stale(now, stale.Age) {
		h.seldom(s, a, slog.LevelWarn, logSkew, "off", stale.Age.Round(time.Second).String(),
			"hint", "the requests differ from our time by the same amount: is this machine's clock right?")
	}
	status := a.Info.Webhook.BadSignature
	def(&status, http.StatusUnauthorized)
	return plain(status)
}

// panicked logs a panic without its text, which may quote the mail, unless the runtime wrote it.
func (s *state) panicked(a *account, v any) {
	what := fmt.Sprintf("%T", v)
	if e, ok := v.(runtime.Error); ok {
		what = e.Error()
	}
	name := ""
	if a != nil {
		name = a.Name
	}
	s.Log.Error(logPanic, "account", name, "panic", event.Clean(what, event.MaxText), "stack", string(debug.Stack()))
}

// seldom logs one kind of trouble of one account at most once a minute, with the number left out meanwhile.
func (h *Handler) seldom(s *state, a *account, level slog.Level, msg string, args ...any) {
	now := s.Now()
	h.mu.Lock()
	key := a.Name + " " + msg
	l := h.logged[key]
	if !l.at.IsZero() && now.Sub(l.at).Abs() < time.Minute {
		l.left++
		h.logged[key] = l
		h.mu.Unlock()
		return
	}
	h.logged[key] = logTime{at: now}
	h.mu.Unlock()
	args = append([]any{"account", a.Name}, args...)
	if l.left > 0 {
		args = append(args, "not_logged", l.left)
	}
	s.Log.Log(context.Background(), level, msg, args...)
}

type logTime struct {
	at   time.Time
	left int
}

// events reads a webhook request as it is stored, fills in what a provider leaves to us and bounds every
// text. What a request says does not depend on when it is read, but for Seen.
func (a *account) events(raw *store.RawRequest, keepReaders bool, now time.Time) ([]event.Event, error) {
	r := &http.Request{Method: raw.Method, Header: http.Header(raw.Header), Body: http.NoBody}
	evs, err := a.webhook.ParseWebhook(r, raw.Body)
	if err != nil {
		return nil, err
	}
	for i := range evs {
		e := &evs[i]
		e.V, e.Account, e.Provider, e.Seen, e.RawID = event.Version, a.Name, a.Info.Name, now, raw.ID
		if e.Kind == "" {
			e.Kind = event.Unknown
		}
		if e.Time.IsZero() {
			e.Time = raw.Received
		}
		e.Time = e.Time.UTC()
		if e.Kind.Engagement() && !keepReaders {
			e.IP, e.UserAgent = "", ""
		}
		if e.ID == "" {
			sum := sha256.Sum256(raw.Body)
			e.ID = event.FactID(a.Name, "item", hex.EncodeToString(sum[:]), strconv.Itoa(i))
		}
		e.Sanitize()
	}
	return evs, nil
}

// clean makes an error fit for the log: our secrets out, cut, one line.
func clean(err error, a *account) string {
	return event.Clean(a.redact(err.Error()), event.MaxText)
}
