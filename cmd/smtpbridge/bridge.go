package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smtpbridge/admin"
	"smtpbridge/catchup"
	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/internal/certs"
	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	"smtpbridge/sink"
	"smtpbridge/smtp"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

// Bridge is the whole program as a value: New makes and binds everything, Run works until its
// context ends and then drains. Nothing is started by New, and a New that fails leaves nothing behind.
type Bridge struct {
	file     string
	registry providers.Registry
	log      *slog.Logger
	logOut   *logWriter // of log, nil when it was given
	started  time.Time

	mu        sync.Mutex // one reload at a time
	parts     *parts
	store     *store.Store
	intake    *intake
	smtp      *smtp.Server
	runner    *deliver.Runner
	hooks     *webhookd.Handler
	hookLn    net.Listener
	sinks     *sink.Runner
	dsn       *sink.DSN
	metrics   *admin.Metrics
	alarms    *admin.Alarms
	ownAlarms *admin.Alarms // of this node alone, where several share the store
	roles     roles
	counter   *admin.Counter
	guard     *admin.Guard
	catchUp   *catchup.Runner // nil: switched off
	adminLn   []adminSocket
	adminTLS  atomic.Pointer[tls.Config] // of the admin address
	inUse     sync.Map                   // listener -> getCertificate
	certs     *certs.Keeper
	acmeLn    net.Listener // for the CA; nil: nothing is asked for
}

// BridgeOptions are what a Bridge needs beside its configuration.
type BridgeOptions struct {
	Registry  providers.Registry // default: all providers
	Log       *slog.Logger       // default: as [log] says
	Activated map[string][]net.Listener
	Roles     roles // default: all
}

// forwardLanes is how many events are forwarded at once to one application.
const forwardLanes = 8

// freshBytes is the memory for mails that were just accepted, so that their first delivery need not read them back.
const freshBytes = 2 << 20

// shutdownGrace is how long a session in DATA may go on after a SIGTERM.
const shutdownGrace = 30 * time.Second

// NewBridge reads the configuration, opens the store and binds every socket.
func NewBridge(ctx context.Context, file string, o BridgeOptions) (_ *Bridge, err error) {
	if o.Registry == nil {
		o.Registry = all.Registry()
	}
	b := &Bridge{file: file, registry: o.Registry, log: o.Log, started: time.Now(), roles: o.Roles}
	cfg, gen, err := b.load()
	if err == nil {
		err = checkRoles(cfg, b.roles)
	}
	if err != nil {
		return nil, err
	}
	if b.log == nil {
		b.log, b.logOut = makeLogger(cfg.Log, os.Stderr, logLines)
	}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.parts, err = makeParts(cfg, b.registry, gen, b.log); err != nil {
		return nil, err
	}
	b.store, err = store.Open(ctx, store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL, MinFree: minFree(cfg), Fresh: freshBytes, Log: b.log, KeepBodies: cfg.Retention.Bodies.D(), Lease: cfg.Store.Lease.D()})
	if err != nil {
		return nil, atKey(cfg, storeKey(cfg, err), err)
	}
	if err = b.join(ctx); err != nil {
		return nil, err
	}
	b.intake = &intake{store: b.store, log: b.log, disk: b.store.Disk}
	b.intake.now.Store(b.parts)
	b.dsn = sink.NewDSN(sink.DSNConfig{Store: b.store, Settings: func() *sink.DSNSettings { return b.intake.now.Load().dsn }, Log: b.log})
	if err = b.armDSN(ctx, b.parts.dsn != nil); err != nil {
		return nil, err
	}
	b.metrics = admin.NewMetrics(buildVersion(), b.store)
	if b.logOut != nil {
		b.metrics.WatchLog(b.logOut.Dropped)
	}
	if shared(cfg) {
		b.metrics.WatchNodes(b.store.Nodes)
	}
	b.metrics.WatchCertificates(b.watchedCerts)
	b.makeAlarms()
	b.counter = &admin.Counter{Store: b.store, Log: b.log, Now: time.Now}
	b.makeCatchUp(cfg)
	b.runner = deliver.NewRunner(deliver.RunnerConfig{
		Queue: b.store, Planner: b.parts.planner, Log: b.log, LogAddresses: cfg.Log.Addresses, Observe: b.observe, Waited: b.metrics.Waited,
		Nodes: b.store.Delivering, Probes: b.probes,
	})
	b.intake.runner = b.runner
	// Clients that waited for an answer when the last process ended will send again. Where several
	// bridges share the store, some of them are still there: their time tells.
	var overdue time.Time
	if cfg.Store.URL != "" {
		overdue = time.Now()
	}
	if _, err = b.store.AbandonOverdue(ctx, overdue); err != nil {
		return nil, err
	}

	if err = b.listenACME(cfg, o.Activated); err != nil {
		return nil, err
	}
	sc, err := b.smtpConfig(cfg, o.Activated)
	if err != nil {
		return nil, err
	}
	if b.smtp, err = smtp.New(sc); err != nil {
		return nil, err
	}
	if b.roles.has(roleSMTP) {
		if err = b.smtp.Listen(); err != nil {
			return nil, atKey(cfg, listenerKey(cfg, err), err)
		}
	}
	if hc := b.webhookConfig(b.parts); b.roles.has(roleWebhook) && cfg.Webhook.Address != "" && len(hc.Accounts) > 0 {
		if b.hooks, err = webhookd.New(hc); err != nil {
			return nil, err
		}
		if b.hookLn, err = listen(cfg.Webhook.Address, "", o.Activated); err != nil {
			return nil, atKey(cfg, "webhook.address", err)
		}
	}
	if b.roles.has(roleSink) {
		sinks, err := b.makeSinks(cfg)
		if err != nil {
			return nil, err
		}
		if b.sinks, err = sink.New(sink.Config{Source: b.store, Sinks: sinks, Lead: b.lead, Log: b.log, Written: b.metrics.SinkWritten}); err != nil {
			return nil, err
		}
	}
	if err = b.listenAdmin(cfg, o.Activated); err != nil {
		return nil, err
	}
	return b, nil
}

// load reads the file.
func (b *Bridge) load() (*config.Config, int64, error) {
	text, err := os.ReadFile(b.file)
	if err != nil {
		_, err := config.Load(b.file, nil) // says what to do
		return nil, 0, err
	}
	cfg, err := config.Parse(b.file, string(text), b.registry.Names())
	if err != nil {
		return nil, 0, err
	}
	return cfg, generation(string(text)), nil
}

// sayLoaded tells what was in the queue at the start.
func (b *Bridge) sayLoaded(ctx context.Context) {
	st, err := b.store.Stats(ctx)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		b.log.Error("queue.loaded", "err", err)
	default:
		b.log.Info("queue.loaded", "queued", st.Queued, "held", st.Held, "in_flight", st.InFlight)
	}
}

// close releases what New had taken.
func (b *Bridge) close() {
	for _, a := range b.adminLn {
		a.Close()
	}
	for _, ln := range []net.Listener{b.hookLn, b.acmeLn} {
		if ln != nil {
			ln.Close()
		}
	}
	if b.smtp != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = b.smtp.Shutdown(ctx)
	}
	if b.parts != nil {
		b.parts.close()
	}
	if b.store != nil {
		if err := b.store.Close(); err != nil {
			b.log.Error("close the store", "err", err)
		}
	}
	if b.logOut != nil {
		b.logOut.Close()
	}
}

// SMTPAddr is where a listener really listens.
func (b *Bridge) SMTPAddr(name string) net.Addr { return b.smtp.Addr(name) }

// WebhookAddr is where webhooks are taken, nil when they are not.
func (b *Bridge) WebhookAddr() net.Addr {
	if b.hookLn == nil {
		return nil
	}
	return b.hookLn.Addr()
}

// Run works until ctx ends, then drains: no new sessions, sessions in DATA and calls in flight
// end, sinks catch up, the store closes. ready is called once everything runs.
func (b *Bridge) Run(ctx context.Context, ready func()) error {
	defer b.close()
	// What accepts mail and webhooks stops first, what works on them after it, what follows their events last.
	var edge, work, follow group
	if b.roles.has(roleSMTP) {
		edge.start(b.log, "smtp", func(ctx context.Context) error { return b.smtp.Serve(ctx) })
	}
	if b.hooks != nil {
		edge.start(b.log, "webhook", func(ctx context.Context) error { return b.hooks.Serve(ctx, b.hookLn) })
		edge.start(b.log, "inbound", b.hooks.Work)
	}
	if b.acmeLn != nil {
		edge.start(b.log, "acme", func(ctx context.Context) error { return serveAdmin(ctx, adminSocket{b.acmeLn, b.certs}) })
		edge.start(b.log, "certificates", b.certs.Run)
	}
	for _, a := range b.adminLn {
		follow.start(b.log, "admin", func(ctx context.Context) error { return serveAdmin(ctx, a) })
	}
	if b.roles.has(roleDeliver) {
		work.start(b.log, "deliver", b.runner.Run)
	} else {
		work.start(b.log, "accounts", b.runner.Watch)
	}
	work.start(b.log, "housekeeping", b.housekeeping)
	work.start(b.log, "alarms", b.alarms.Run)
	if b.ownAlarms != nil {
		work.start(b.log, "alarms of this node", b.ownAlarms.Run)
	}
	work.start(b.log, "activity", b.counter.Run)
	if b.catchUp != nil {
		work.start(b.log, "catch-up", b.catchUp.Run)
	}
	if b.sinks != nil {
		follow.start(b.log, "sinks", b.sinks.Run)
	}
	p := b.intake.now.Load() // a reload may be on
	b.log.Info("bridge runs", "event", "started", "version", buildVersion(), "listeners", len(p.cfg.Listeners), "accounts", len(p.accounts))
	if ready != nil {
		ready()
	}

	var err error
	select {
	case <-ctx.Done():
	case err = <-edge.failed():
	case err = <-work.failed():
	case err = <-follow.failed():
	}
	b.log.Info("bridge stops: sessions and calls in flight end first", "event", "stopping")
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if serr := b.smtp.Shutdown(grace); serr != nil {
		b.log.Warn("sessions were cut off", "err", serr)
	}
	edge.stop()
	work.stop()
	follow.stop()
	b.log.Info("bridge stopped", "event", "stopped")
	return err
}

// Reload puts the configuration file into force, except sockets. When it has errors the old
// configuration stays.
func (b *Bridge) Reload() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	cfg, gen, err := b.load()
	if err != nil {
		return err
	}
	authority, err := b.sameACMESocket(cfg)
	if err != nil {
		return err
	}
	adminTLS, err := b.makeAdminTLS(cfg)
	if err != nil {
		return err
	}
	p, err := makeParts(cfg, b.registry, gen, b.log)
	if err != nil {
		return err
	}
	var sinks []sink.Sink
	if b.sinks != nil {
		sinks, err = b.makeSinks(cfg)
	}
	if err == nil {
		err = b.armDSN(context.Background(), p.dsn != nil)
	}
	if err == nil {
		err = b.reloadEdge(cfg, p)
	}
	if err != nil {
		p.close()
		return err
	}
	old := b.parts
	b.intake.now.Store(p)
	b.parts = p
	b.certs.Use(authority, b.acmeNames(cfg))
	if adminTLS != nil {
		b.adminTLS.Store(adminTLS)
	}
	b.guard.Reload(access(cfg))
	b.runner.Reload(p.planner)
	old.close()
	if b.sinks == nil {
		return nil
	}
	return b.sinks.Reload(sinks)
}

// reloadEdge puts a configuration into force where mail and webhooks come in: in both places or in none.
func (b *Bridge) reloadEdge(cfg *config.Config, p *parts) error {
	sc, err := b.smtpConfig(cfg, nil)
	if err != nil {
		return err
	}
	if b.hooks != nil {
		if err := b.hooks.Reload(b.webhookConfig(p)); err != nil {
			return err
		}
	}
	err = b.smtp.Reload(sc)
	if err != nil && b.hooks != nil {
		return errors.Join(err, b.hooks.Reload(b.webhookConfig(b.parts)))
	}
	return err
}

// housekeeping purges what retention allows and gives out events that waited for their mail.
func (b *Bridge) housekeeping(ctx context.Context) error {
	b.sayLoaded(ctx)
	release, purge := time.NewTicker(5*time.Second), time.NewTicker(time.Minute)
	defer release.Stop()
	defer purge.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-release.C:
			if _, err := b.store.ReleaseWithheld(ctx); err != nil && ctx.Err() == nil {
				b.log.Error("release withheld events", "err", err)
			}
		case <-purge.C:
			if _, err := b.store.AbandonOverdue(ctx, time.Now()); err != nil && ctx.Err() == nil {
				b.log.Error("drop mails whose clients left", "err", err)
			}
			var failed error
			for n := 1; n > 0 && ctx.Err() == nil; { // what fails keeps the rest from nothing
				var err error
				if n, err = b.store.Purge(ctx, b.retention()); err != nil {
					failed = err
				}
			}
			if failed != nil && ctx.Err() == nil {
				b.log.Error("purge", "err", failed)
			}
		}
	}
}

func (b *Bridge) retention() store.Retention {
	r := b.intake.now.Load().cfg.Retention
	return store.Retention{Bodies: r.Bodies.D(), Failed: r.Failed.D(), Ledger: r.Ledger.D(), Events: r.Ledger.D(), Webhooks: r.Webhooks.D()}
}

func (b *Bridge) smtpConfig(cfg *config.Config, activated map[string][]net.Listener) (smtp.Config, error) {
	c := smtp.Config{
		Hostname: cfg.Hostname, Intake: b.intake, Log: b.log, HideAddresses: !cfg.Log.Addresses, Activated: activated,
		CheckSender: b.intake.checkSender, CheckRcpt: b.intake.checkRcpt,
		Metrics: smtp.Metrics{Accepted: b.accepted, Refused: b.metrics.Refused, Sessions: b.metrics.Sessions, AuthFail: b.metrics.AuthFail},
	}
	for i, l := range cfg.Listeners {
		sl := smtp.Listener{
			Name: l.Name, Address: l.Address, TLS: smtp.TLSMode(l.TLS), Auth: smtp.AuthMode(l.Auth),
			MaxMessageSize: int64(l.MaxMessageSize), MaxRecipients: l.MaxRecipients, MaxConnections: l.MaxConnections,
			MaxConnectionsPerIP: l.MaxConnectionsPerIP, MaxLine: int64(l.MaxLine), IdleTimeout: l.IdleTimeout.D(),
			DataTimeout: l.DataTimeout.D(), DataTotal: l.DataTotal.D(), WriteTimeout: l.WriteTimeout.D(),
			BareNewlines: l.BareNewlines, AppendDomain: l.AppendDomain, Aliases: cfg.Aliases, LMTP: l.Protocol == "lmtp",
			DSN: cfg.DSN.Account != "",
		}
		for _, a := range l.Allow {
			p, err := config.ParsePrefix(a)
			if err != nil {
				return c, err // validated before
			}
			sl.Allow = append(sl.Allow, p)
		}
		if l.TLS != "off" {
			get, err := b.certificate(l.Name, l.ACME, l.CertFile, l.KeyFile)
			if err != nil {
				return c, config.Problems{cfg.Problem(fmt.Sprintf("listener[%d].cert_file", i), err)}
			}
			sl.TLSConfig = serverTLS(get, tlsVersions[l.MinTLS])
		}
		mode, err := config.ParseMode(l.SocketMode)
		if err != nil {
			return c, config.Problems{cfg.Problem(fmt.Sprintf("listener[%d].socket_mode", i), err)}
		}
		sl.SocketMode = mode
		c.Listeners = append(c.Listeners, sl)
	}
	for _, u := range cfg.Users {
		c.Users = append(c.Users, smtp.User{Name: u.Name, Hash: u.PasswordHash, Password: u.Secret, Senders: u.Senders})
	}
	return c, nil
}

var tlsVersions = map[string]uint16{"1.0": tls.VersionTLS10, "1.1": tls.VersionTLS11, "1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}

// webhookConfig leaves out accounts whose requests could not be told from forged ones: their paths answer 404.
func (b *Bridge) webhookConfig(p *parts) webhookd.Config {
	c, skipped := hookAccounts(p)
	c.Recorder, c.Log, c.KeepReaders, c.Inbox = b.store, b.log, p.cfg.Events.Readers, b.intake.inbox(p)
	c.Metrics = webhookd.Metrics{
		Request: func(account string, status int, elapsed time.Duration) {
			b.metrics.Webhook(account, status, elapsed)
			if account != "" && status == http.StatusOK {
				b.heard(account)
			}
		},
		Event: b.metrics.WebhookEvent, BadSignature: b.metrics.BadSignature,
	}
	for _, why := range skipped {
		b.log.Warn("webhooks are not served", "err", why.String())
	}
	return c
}

// accepted is told of every mail that got its 250.
func (b *Bridge) accepted(listener string, size int64) {
	b.metrics.Accepted(listener, size)
	b.counter.Accepted()
}

// observe is told of every finished call.
func (b *Bridge) observe(account, outcome string, elapsed time.Duration) {
	b.metrics.Call(account, outcome, elapsed)
	if outcome == "accepted" {
		b.sent(account)
	}
}

// hookAccounts gives the accounts whose webhooks are served, and why the others are not.
func hookAccounts(p *parts) (c webhookd.Config, skipped config.Problems) {
	for _, s := range p.cfg.Webhook.TrustedProxies {
		if pre, err := config.ParsePrefix(s); err == nil {
			c.TrustedProxies = append(c.TrustedProxies, pre)
		}
	}
	for i := range p.cfg.Accounts {
		a := &p.cfg.Accounts[i]
		acc := p.accounts[a.Name]
		if _, ok := acc.Provider.(providers.WebhookParser); !ok {
			continue // nobody calls back
		}
		wa := webhookd.Account{
			Name: a.Name, Info: acc.Info, Provider: acc.Provider, Secrets: a.WebhookSecrets, InboundSecrets: a.InboundSecrets,
			BasicAuth: a.BasicAuth, URLPath: urlPath(a.WebhookURL),
		}
		if !acc.Info.Webhook.Signed {
			wa.PathSecrets = a.WebhookSecrets
		}
		if err := webhookd.Check(wa); errors.Is(err, webhookd.ErrNoSecret) {
			skipped = append(skipped, a.Problem("", err))
			if len(p.cfg.Inbound) == 0 || len(a.InboundSecrets) == 0 && !acc.Info.Webhook.InboundCallback {
				continue
			}
			wa.InboundOnly = true
		}
		c.Accounts = append(c.Accounts, wa)
	}
	return c, skipped
}

func urlPath(u string) string {
	if _, rest, ok := strings.Cut(u, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			path, _, _ := strings.Cut(rest[i:], "?")
			return path
		}
	}
	return ""
}

// makeSinks makes what a configuration sends events to.
func (b *Bridge) makeSinks(cfg *config.Config) ([]sink.Sink, error) {
	list := []sink.Sink{b.dsn}
	own, err := b.eventSinks(cfg)
	if err != nil {
		return nil, err
	}
	list = append(list, own...)
	for i := range cfg.Events.Forward {
		s, err := makeForward(cfg, i, b.log)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	if cfg.Suppression.Enabled {
		list = append(list, b.suppressSink(cfg.Suppression))
	}
	return list, sink.Distinct(list)
}

// makeForward makes what tells an application the events.
func makeForward(cfg *config.Config, i int, log *slog.Logger) (*sink.Forward, error) {
	f := cfg.Events.Forward[i]
	hc, err := httpConfig(cfg, forwardLanes)
	if err != nil {
		return nil, err
	}
	hc.Public = !f.AllowLocal
	client, err := safehttp.New(hc)
	if err != nil {
		return nil, err
	}
	s, err := sink.NewForward(sink.ForwardConfig{
		URL: f.URL, Secrets: []secret.String{f.Key}, AllowLocal: f.AllowLocal, Client: client, Lanes: forwardLanes, Log: log,
	})
	if err != nil {
		key, _, _ := strings.Cut(err.Error(), " ") // "url must ...", "secret is ..."
		return nil, config.Problems{cfg.Problem(fmt.Sprintf("events.forward[%d].%s", i, key), err)}
	}
	return s, nil
}

// listen opens a socket: host:port, unix:/path or systemd:NAME. A left-over unix socket that nobody answers is replaced.
func listen(address, mode string, activated map[string][]net.Listener) (net.Listener, error) {
	if name, ok := strings.CutPrefix(address, "systemd:"); ok {
		if len(activated[name]) == 0 {
			return nil, fmt.Errorf("systemd passed no socket called %q (FileDescriptorName=)", name)
		}
		return activated[name][0], nil
	}
	path, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return net.Listen("tcp", address)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("%s is in use by another process", path)
	}
	if fi, err := os.Lstat(path); err == nil && fi.Mode()&fs.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	m, err := config.ParseMode(mode)
	if err == nil {
		err = os.Chmod(path, m)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// group is goroutines that are stopped together.
type group struct {
	once   sync.Once
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	errs   chan error
}

func (g *group) init() {
	g.once.Do(func() {
		g.ctx, g.cancel = context.WithCancel(context.Background())
		g.errs = make(chan error, 1)
	})
}

func (g *group) start(log *slog.Logger, name string, f func(context.Context) error) {
	g.init()
	g.wg.Go(func() {
		if err := f(g.ctx); err != nil && g.ctx.Err() == nil {
			log.Error("a part of the bridge failed", "part", name, "err", err)
			select {
			case g.errs <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	})
}

func (g *group) failed() <-chan error { g.init(); return g.errs }

func (g *group) stop() {
	g.init()
	g.cancel()
	g.wg.Wait()
}
