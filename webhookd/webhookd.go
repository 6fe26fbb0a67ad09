// Package webhookd receives what ESPs post: delivery events and inbound mail. It bounds the
// request, has the account's provider verify and parse it, stores the events and only then answers.
//
// Contract:
//   - The answer is 200 only after the events are durable; a repetition of known events is 200 too.
//     What could not be stored is answered 503 (or as the ESP's documentation advises), so that the ESP sends it again.
//   - A request that does not verify changes nothing but the count of such requests.
//     After several in a row one alarm is raised, since a rotated secret looks like that.
//   - An account is served only when its requests can be verified: by a signature, by Basic auth
//     or by a secret in the path. Secrets are compared in constant time and never logged.
//   - A request costs bounded memory and time, and their number at once is bounded.
//   - Stored requests hold no credentials and no mail text.
package webhookd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// Recorder stores events durably and without doubles; *store.Store is one.
type Recorder interface {
	Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (fresh int, err error)
}

// Account is an account whose ESP may call us.
type Account struct {
	Name     string
	Info     providers.Info
	Provider providers.Provider
	// Secrets and InboundSecrets are those the provider was made with. Here they only tell that there
	// are some, and are cut from what is stored.
	Secrets        []secret.String
	InboundSecrets []secret.String
	// BasicAuth holds accepted "user:password" pairs, PathSecrets accepted last segments of the path
	// (/webhook/ACCOUNT/SECRET). Each kind that is set is required, beside a signature too.
	BasicAuth   []secret.String
	PathSecrets []secret.String
	// InboundOnly: there is nothing to verify webhooks with, but received mail is taken.
	InboundOnly bool
	// URLPath is the path of webhook_url, which is served as well; "" = none. It may end in a path secret.
	URLPath string
}

// Metrics are called if set. account is "" for requests to no known account.
type Metrics struct {
	Request      func(account string, status int, elapsed time.Duration)
	Event        func(account string, kind event.Kind)
	BadSignature func(account string)
}

// Config is what a Handler is made from. Zero limits are replaced by defaults.
type Config struct {
	Accounts []Account
	Recorder Recorder // nil: nothing can be stored, every event is answered 503
	// Inbox takes received mail. Without it inbound posts are answered 404.
	Inbox Inbox
	// TrustedProxies are the networks whose X-Forwarded-For is believed.
	TrustedProxies []netip.Prefix
	// KeepReaders leaves ip and user_agent in events about what readers did. They are personal data, so
	// it takes a decision to keep them.
	KeepReaders    bool
	MaxConcurrent  int           // requests at once, default 128
	MaxLargeBodies int64         // bytes of all bodies above 1 MiB at once, default 128 MiB
	MaxInboundBody int64         // bytes of an inbound post, default 100 MiB
	MaxInbound     int           // inbound posts at once, default 4
	BodyTimeout    time.Duration // for the whole body of a webhook, and for each piece of an inbound post, default 30 s
	StoreTimeout   time.Duration // for verifying and storing, default 30 s
	Log            *slog.Logger
	Now            func() time.Time
	Metrics        Metrics
}

// Defaults and fixed numbers.
const (
	defaultBody        = 1 << 20
	defaultInboundBody = 100 << 20
	alarmAfter         = 5                // bad signatures in a row are an alarm
	alarmEvery         = time.Hour        // at most one alarm per account begins in this time
	skewAfter          = 3                // requests in a row that are off by the same time are a wrong clock
	skewSpread         = 30 * time.Second // how far the same time may differ
)

// ErrNoSecret says that an account's webhooks could not be told from forged ones.
var ErrNoSecret = errors.New("webhooks cannot be verified")

// Check tells whether the account's hook can be served. The error is ErrNoSecret when the account
// has nothing to verify requests with, another one when what it has is wrong. A caller may leave
// out accounts with ErrNoSecret: their paths are then answered 404.
func Check(a Account) error {
	for _, s := range []struct {
		key  string
		list []secret.String
	}{
		{"webhook_secret", a.Secrets},
		{"inbound_secret", a.InboundSecrets},
		{"webhook_basic_auth", a.BasicAuth},
		{"webhook_secret (in the path)", a.PathSecrets},
	} {
		for _, v := range s.list {
			if v.Empty() {
				return fmt.Errorf("account %s: %s: is empty", a.Name, s.key)
			}
		}
	}
	for _, v := range a.BasicAuth {
		if user, pass, ok := strings.Cut(v.Reveal(), ":"); !ok || user == "" && pass == "" {
			return fmt.Errorf("account %s: webhook_basic_auth: must be user:password", a.Name)
		}
	}
	for _, v := range a.PathSecrets {
		if len(v.Reveal()) < 16 || strings.ContainsAny(v.Reveal(), "/?#%") {
			return fmt.Errorf("account %s: a secret in the path needs at least 16 characters and none of / ? # %%", a.Name)
		}
	}
	if _, ok := a.Provider.(providers.WebhookParser); !ok || a.InboundOnly {
		return nil
	}
	w := a.Info.Webhook
	switch {
	case w.Signed && (w.OwnKeys || w.FirstPing || len(a.Secrets) > 0):
		return nil
	case w.Signed:
		return fmt.Errorf("account %s: %w: %s signs them, set webhook_secret", a.Name, ErrNoSecret, a.Info.Title)
	case len(a.BasicAuth) == 0 && len(a.PathSecrets) == 0:
		return fmt.Errorf("account %s: %w: %s signs nothing, set webhook_basic_auth or a secret for the path", a.Name, ErrNoSecret, a.Info.Title)
	}
	return nil
}

// account is an Account with what is derived from it.
type account struct {
	Account
	webhook providers.WebhookParser // nil: takes no webhooks
	inbound providers.InboundParser // nil: takes no inbound mail
	getter  providers.WebhookGetter // nil: serves nothing by GET
	cutter  cutter
	health  *health
}

// state is one configuration in force.
type state struct {
	Config
	byName map[string]*account
	byPath map[string]*account // of webhook_url
	slots  chan struct{}
	inSlot chan struct{}
}

// Handler serves the webhook paths of all accounts.
type Handler struct {
	state atomic.Pointer[state]

	large atomic.Int64 // bytes of bodies above defaultBody in work

	mu       sync.Mutex
	health   map[string]*health // by account, outlives a reload
	fetching map[string]bool    // entries of Inbox.Posts in work
	logged   map[string]logTime // see seldom
}

// New makes a Handler. It reports everything that is wrong with the accounts at once.
func New(c Config) (*Handler, error) {
	h := &Handler{health: map[string]*health{}, fetching: map[string]bool{}, logged: map[string]logTime{}}
	if err := h.Reload(c); err != nil {
		return nil, err
	}
	return h, nil
}

// Reload puts a new configuration in force for the requests that come from now on. After an
// error the old one stays.
func (h *Handler) Reload(c Config) error {
	if c.Recorder == nil {
		c.Recorder = noRecorder{}
	}
	def(&c.MaxConcurrent, 128)
	def(&c.MaxInbound, 4)
	def(&c.MaxInboundBody, defaultInboundBody)
	def(&c.MaxLargeBodies, 128<<20)
	def(&c.BodyTimeout, 30*time.Second)
	def(&c.StoreTimeout, 30*time.Second)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	s := &state{
		Config: c,
		byName: map[string]*account{},
		byPath: map[string]*account{},
		slots:  make(chan struct{}, c.MaxConcurrent),
		inSlot: make(chan struct{}, c.MaxInbound),
	}
	var errs []error
	for _, a := range c.Accounts {
		if err := Check(a); err != nil {
			errs = append(errs, err)
			continue
		}
		if a.Name == "" || s.byName[a.Name] != nil {
			errs = append(errs, fmt.Errorf("account %q: the name is empty or used twice", a.Name))
			continue
		}
		acc := &account{Account: a, cutter: newCutter(a.Info.Webhook), health: h.healthOf(a.Name)}
		acc.webhook, _ = a.Provider.(providers.WebhookParser)
		if a.InboundOnly {
			acc.webhook = nil
		}
		acc.inbound, _ = a.Provider.(providers.InboundParser)
		acc.getter, _ = a.Provider.(providers.WebhookGetter)
		s.byName[a.Name] = acc
		path, ok, err := ownPath(a)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !ok:
		case s.byPath[path] != nil:
			errs = append(errs, fmt.Errorf("accounts %s and %s: webhook_url has the same path", s.byPath[path].Name, a.Name))
		default:
			s.byPath[path] = acc
		}
	}
	for path, a := range s.byPath {
		// A webhook_url may name the path of its own account, not that of another one.
		if kind, name, _ := splitPath(path); kind != "" && s.byName[name] != nil && name != a.Name {
			errs = append(errs, fmt.Errorf("account %s: webhook_url has the path of account %s", a.Name, name))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	h.state.Store(s)
	return nil
}

func (h *Handler) healthOf(name string) *health {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.health[name] == nil {
		h.health[name] = &health{}
	}
	return h.health[name]
}

// Failing gives the accounts whose requests keep failing to verify, and what may be wrong.
func (h *Handler) Failing() map[string]string {
	h.mu.Lock()
	defer h.mu.Unlock()
	out := map[string]string{}
	for name, acc := range h.health {
		if text := acc.alarm(); text != "" {
			out[name] = text
		}
	}
	return out
}

// ownPath is the path of webhook_url without the path secret it may end in, "" for the root; ok
// tells whether there is one.
func ownPath(a Account) (p string, ok bool, err error) {
	if a.URLPath == "" {
		return "", false, nil
	}
	p, err = url.PathUnescape(a.URLPath)
	if err != nil || !strings.HasPrefix(p, "/") {
		return "", false, fmt.Errorf("account %s: webhook_url: its path is not valid", a.Name)
	}
	p = strings.TrimSuffix(p, "/")
	if i := strings.LastIndexByte(p, '/'); i >= 0 && oneOf(p[i+1:], a.PathSecrets) {
		p = p[:i]
	}
	return p, true, nil
}

func def[T int | int64 | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

type noRecorder struct{}

func (noRecorder) Record(context.Context, *store.RawRequest, ...event.Event) (int, error) {
	return 0, errors.New("there is no store")
}
