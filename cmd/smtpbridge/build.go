package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/internal/safehttp"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	"smtpbridge/route"
	"smtpbridge/sink"
	"smtpbridge/translate"
)

// parts is what one generation of the configuration is made into, without starting anything.
type parts struct {
	cfg      *config.Config
	accounts map[string]*deliver.Account
	planner  *deliver.Planner
	fetch    *http.Client      // of received mail that the ESP keeps
	dsn      *sink.DSNSettings // nil: no DSN mail
}

// loadParts reads a configuration and makes everything it names. All problems come at once: those
// of the file and those the providers find in their own settings.
func loadParts(file string, generation int64, log *slog.Logger) (*parts, error) {
	cfg, err := config.Load(file, all.Registry().Names())
	if err != nil {
		return nil, err
	}
	return makeParts(cfg, all.Registry(), generation, log)
}

func makeParts(cfg *config.Config, reg providers.Registry, generation int64, log *slog.Logger) (*parts, error) {
	p := &parts{cfg: cfg, accounts: map[string]*deliver.Account{}}
	var problems config.Problems
	for i := range cfg.Accounts {
		a := &cfg.Accounts[i]
		acc, err := makeAccount(cfg, a, reg, log)
		if err == nil {
			p.accounts[a.Name] = acc
			continue
		}
		var ps config.Problems
		if !errors.As(err, &ps) {
			ps = config.Problems{a.Problem("", err)}
		}
		problems = append(problems, ps...)
	}
	schedule, err := deliver.ParseSchedule(cfg.Delivery.Retry)
	if err != nil {
		problems = append(problems, cfg.Problem("delivery.retry", err))
	}
	table, err := route.New(makeRoutes(cfg))
	if err != nil {
		problems = append(problems, cfg.Problem("route", err))
	}
	problems = append(problems, checkHeaderRules(cfg)...)
	var ps config.Problems
	for i := range cfg.Events.Forward {
		if _, err := makeForward(cfg, i, log); errors.As(err, &ps) {
			problems = append(problems, ps...)
		}
	}
	inbound, err := p.inboundRules()
	ps = nil
	if errors.As(err, &ps) {
		problems = append(problems, ps...)
	}
	if len(problems) > 0 {
		return nil, problems
	}
	if p.fetch, err = fetchClient(cfg); err != nil {
		return nil, err
	}
	p.planner = deliver.NewPlanner(deliver.PlannerConfig{
		Routes: table, Accounts: p.accounts, Inbound: inbound, Limits: mime.Limits{}, Generation: generation,
		Retry: schedule, Expire: cfg.Delivery.Expire.D(), FailoverAfter: cfg.Delivery.FailoverAfter.D(),
		Listeners: listenerRules(cfg), Users: userRules(cfg), OnUnknown: cfg.Delivery.OnUnknown, SoftBounce: cfg.Delivery.SoftBounce, KeepSubject: cfg.Events.Subject,
		Suppression: cfg.Suppression.Enabled,
	})
	if p.dsn, err = p.dsnSettings(); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func makeRoutes(cfg *config.Config) []route.Route {
	out := make([]route.Route, len(cfg.Routes))
	for i, r := range cfg.Routes {
		out[i] = route.Route{
			Name: r.Name, Senders: r.Senders, Recipients: r.Recipients, Listeners: r.Listeners, Users: r.Users,
			Headers: r.Headers, Accounts: r.Accounts, OnLoss: r.OnLoss, ForceFrom: r.ForceFrom,
			RedirectAllTo: r.RedirectAllTo, AllowRecipients: r.AllowRecipients, Permissions: r.Permissions, Expire: r.Expire.D(),
		}
	}
	return out
}

// close ends what providers run of their own, such as the sandbox's ESP.
func (p *parts) close() {
	for _, a := range p.accounts {
		if c, ok := a.Provider.(io.Closer); ok {
			_ = c.Close() // there is nothing left to save
		}
	}
}

// httpConfig is how calls leave, as [http] says.
func httpConfig(cfg *config.Config, concurrent int) (safehttp.Config, error) {
	hc := safehttp.Config{Version: buildVersion(), Concurrency: concurrent, Proxy: cfg.HTTP.Proxy}
	if cfg.HTTP.CAFile == "" {
		return hc, nil
	}
	roots, err := safehttp.LoadRoots(cfg.HTTP.CAFile)
	if err != nil {
		return hc, config.Problems{cfg.Problem("http.ca_file", err)}
	}
	hc.RootCAs = roots
	return hc, nil
}

func makeAccount(cfg *config.Config, a *config.Account, reg providers.Registry, log *slog.Logger) (*deliver.Account, error) {
	info, ok := reg.Lookup(a.Provider)
	if !ok {
		return nil, fmt.Errorf("unknown provider %q", a.Provider)
	}
	if a.Key.Empty() && !info.Local {
		return nil, config.Problems{a.Problem("api_key", errors.New("missing: "+info.Title+" needs api_key_file, api_key or api_key_env"))}
	}
	if u, err := url.Parse(a.BaseURL); a.BaseURL != "" && !info.Local && (err != nil || u.Scheme != "https" && u.Scheme != "http") {
		return nil, config.Problems{a.Problem("base_url", fmt.Errorf("%q is not the http or https URL of an API", a.BaseURL))}
	}
	concurrent := a.MaxConcurrent
	if concurrent == 0 {
		concurrent = info.Concurrent
	}
	if concurrent == 0 {
		concurrent = deliver.DefaultConcurrent
	}
	hc, err := httpConfig(cfg, concurrent)
	if err != nil {
		return nil, err
	}
	client, err := safehttp.New(hc)
	if err != nil {
		return nil, err
	}
	tracking := trackingOf(a.Tracking)
	prov, err := info.New(providers.Options{
		Account: a.Name, Hostname: cfg.Hostname, APIKey: a.Key, BaseURL: a.BaseURL,
		WebhookSecrets: a.WebhookSecrets, InboundSecrets: a.InboundSecrets,
		WebhookURL: webhookURL(cfg, a), InboundURL: publicURL(cfg, "inbound", a.Name),
		Tolerance: cfg.Webhook.Tolerance.D(), Tracking: tracking, ReturnPath: a.ReturnPath,
		Decode: a.DecodeOptions, Client: client, Resolver: makeResolver(cfg.DNS.Server), Now: time.Now,
		Log: log.With("account", a.Name),
	})
	if err != nil {
		return nil, err
	}
	return &deliver.Account{
		Name: a.Name, Info: info, Provider: prov, MaxConcurrent: a.MaxConcurrent, MaxPerSecond: a.MaxPerSecond,
		SplitAlways: a.SplitRecipients == "always",
		Settings: translate.Settings{
			ReturnPath: a.ReturnPath, TrackOpens: tracking.Opens, TrackClicks: tracking.Clicks, KeepReceived: a.KeepReceived,
		},
	}, nil
}

func trackingOf(s string) providers.Tracking {
	switch s {
	case "off":
		return providers.Tracking{Opens: translate.Off, Clicks: translate.Off}
	case "opens":
		return providers.Tracking{Opens: translate.On, Clicks: translate.Off}
	case "clicks":
		return providers.Tracking{Opens: translate.Off, Clicks: translate.On}
	case "both":
		return providers.Tracking{Opens: translate.On, Clicks: translate.On}
	}
	return providers.Tracking{}
}

// webhookURL is the exact URL that is registered at the ESP.
func webhookURL(cfg *config.Config, a *config.Account) string {
	if a.WebhookURL != "" {
		return a.WebhookURL
	}
	return publicURL(cfg, "webhook", a.Name)
}

func publicURL(cfg *config.Config, kind, account string) string {
	base := cfg.Webhook.PublicURL
	if base == "" {
		if cfg.Webhook.Address == "" || strings.HasPrefix(cfg.Webhook.Address, "systemd:") {
			return ""
		}
		base = "http://" + cfg.Webhook.Address
	}
	return strings.TrimSuffix(base, "/") + "/" + kind + "/" + account
}

func makeResolver(server string) providers.Resolver {
	if server == "" {
		return net.DefaultResolver
	}
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
}

// makeLogger makes the program's log on w, which may stand still or fail: up to lines of it wait.
func makeLogger(c config.Log, to io.Writer, lines int) (*slog.Logger, *logWriter) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.Level)); err != nil {
		level = slog.LevelInfo
	}
	o := &slog.HandlerOptions{Level: level}
	if os.Getenv("JOURNAL_STREAM") != "" {
		// journald has its own time stamps.
		o.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	on := func(w io.Writer) *slog.Logger {
		if c.Format == "json" {
			return slog.New(slog.NewJSONHandler(w, o))
		}
		return slog.New(slog.NewTextHandler(w, o))
	}
	w := newLogWriter(to, lines, func(to io.Writer, dropped int64) { on(to).Warn("log.dropped", "n", dropped) })
	return on(w), w
}
