package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"slices"
	"syscall"
	"time"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/providers"
	"smtpbridge/smtp"
	"smtpbridge/webhookd"
)

// adminSocket is one place where the operator is served.
type adminSocket struct {
	net.Listener
	handler http.Handler
}

// listenAdmin binds the admin socket and, where configured, the address of the dashboard.
func (b *Bridge) listenAdmin(cfg *config.Config, activated map[string][]net.Listener) error {
	now := func() *config.Config { return b.intake.now.Load().cfg }
	svc := &admin.Service{
		Store: b.store, Accts: bridgeAccounts{b}, Alarms: b.raised, Preview: func() bool { return now().Admin.Preview }, Replayer: b.replay,
		Version: buildVersion(), Started: b.started, Log: b.log, Now: time.Now,
	}
	b.guard = admin.NewGuard(access(cfg), b.log, time.Now)
	dash := &admin.Dashboard{
		API: svc, Guard: b.guard, Log: b.log, Now: time.Now, Host: cfg.Hostname, Version: buildVersion(),
		Subjects: func() bool { return now().Events.Subject }, Sandbox: b.hasInbox, Suppression: func() bool { return now().Suppression.Enabled },
	}
	health, api := admin.Health(b.store.Ping, b.raised, b.metrics), admin.Handler(svc)
	mux := http.NewServeMux()
	mux.Handle("/api/", api)
	mux.Handle("/", health)
	ln, err := listen("unix:"+cfg.Admin.Socket, cfg.Admin.SocketMode, activated)
	if err != nil {
		return atKey(cfg, "admin.socket", err)
	}
	b.adminLn = append(b.adminLn, adminSocket{ln, mux})
	if cfg.Admin.Address == "" || !b.roles.has(roleAdmin) {
		return nil
	}
	if ln, err = listen(cfg.Admin.Address, "", activated); err != nil {
		return atKey(cfg, "admin.address", err)
	}
	b.adminLn = append(b.adminLn, adminSocket{ln, b.guard.Wrap(health, admin.Handler(admin.Discreet(svc, svc.Preview)), dash.Handler())}) // closed with the bridge from here on
	tc, err := b.makeAdminTLS(cfg)
	if err != nil || tc == nil {
		return err
	}
	b.adminTLS.Store(tc)
	b.adminLn[1].Listener = tls.NewListener(ln, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return b.adminTLS.Load(), nil }, // a reload may change it
	})
	return nil
}

// makeAdminTLS makes what the admin address says in handshakes, nil where it has no TLS.
func (b *Bridge) makeAdminTLS(cfg *config.Config) (*tls.Config, error) {
	a := cfg.Admin
	if a.Address == "" || a.CertFile == "" && len(a.ACME) == 0 {
		return nil, nil
	}
	get, err := b.certificate("", a.ACME, a.CertFile, a.KeyFile)
	if err != nil {
		return nil, config.Problems{cfg.Problem("admin.cert_file", err)}
	}
	c := serverTLS(get, tls.VersionTLS12)
	c.NextProtos = []string{"http/1.1"}
	return c, nil
}

// AdminAddr is where the dashboard is served, nil when it is not.
func (b *Bridge) AdminAddr() net.Addr {
	if len(b.adminLn) < 2 {
		return nil
	}
	return b.adminLn[1].Addr()
}

// access makes the rules of the admin address.
func access(cfg *config.Config) admin.Access {
	a := admin.Access{Hosts: cfg.Admin.Hosts, PasswordID: cfg.Admin.PasswordHash}
	if hash := cfg.Admin.PasswordHash; hash != "" {
		a.Verify = func(pw string) (bool, error) { return smtp.VerifyPassword(hash, pw) }
	}
	host, _, err := net.SplitHostPort(cfg.Admin.Address)
	if err != nil {
		return a // validated before
	}
	a.Hosts = slices.Concat(a.Hosts, []string{host, cfg.Hostname}, cfg.Admin.ACME)
	ip := net.ParseIP(host)
	if a.Local = host == "localhost" || ip != nil && ip.IsLoopback(); a.Local {
		a.Hosts = append(a.Hosts, "localhost", "127.0.0.1", "::1")
	}
	return a
}

type peerKey struct{}

// serveAdmin serves until ctx ends. Who acts by the unix socket is known from its credentials.
func serveAdmin(ctx context.Context, a adminSocket) error {
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if who, ok := r.Context().Value(peerKey{}).(string); ok {
			r = r.WithContext(admin.WithActor(r.Context(), who))
		}
		a.handler.ServeHTTP(w, r)
	})
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if u, ok := c.(*net.UnixConn); ok {
				return context.WithValue(ctx, peerKey{}, socketPeer(u))
			}
			return ctx
		},
		ErrorLog: log.New(discard{}, "", 0), // port scanners and aborted handshakes
	}
	stop := context.AfterFunc(ctx, func() {
		c, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if srv.Shutdown(c) != nil {
			srv.Close()
		}
	})
	defer stop()
	if err := srv.Serve(a); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// socketPeer names the user at the other end of a unix socket.
func socketPeer(c *net.UnixConn) string {
	raw, err := c.SyscallConn()
	if err != nil {
		return "socket"
	}
	who := "socket"
	_ = raw.Control(func(fd uintptr) { // a connection that is gone has no user
		if u, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			who = fmt.Sprintf("socket uid %d pid %d", u.Uid, u.Pid)
		}
	})
	return who
}

// bridgeAccounts is the running bridge's side of admin.Accounts.
type bridgeAccounts struct{ b *Bridge }

func (a bridgeAccounts) Configured() map[string]admin.Configured {
	p := a.b.intake.now.Load()
	hooks, _ := hookAccounts(p)
	out := map[string]admin.Configured{}
	for name, acc := range p.accounts {
		c := admin.Configured{Provider: acc.Info.Name, Inbox: inboxOf(name, acc.Provider)}
		if _, ok := acc.Provider.(providers.WebhookParser); ok {
			c.Webhook = &admin.Webhook{}
			switch {
			case a.b.hooks == nil:
				c.Webhook.Reason = "[webhook] address is not set"
			case !slices.ContainsFunc(hooks.Accounts, func(h webhookd.Account) bool { return h.Name == name }):
				c.Webhook.Reason = "the account has no webhook secret"
			default:
				c.Webhook.Served = true
			}
		}
		out[name] = c
	}
	return out
}

func (a bridgeAccounts) Pause(ctx context.Context, account, reason string) error {
	return a.b.runner.Pause(ctx, account, reason)
}

func (a bridgeAccounts) Resume(ctx context.Context, account string) error {
	return a.b.runner.Resume(ctx, account)
}

func (b *Bridge) hasInbox() bool {
	for name, acc := range b.intake.now.Load().accounts {
		if inboxOf(name, acc.Provider) != nil {
			return true
		}
	}
	return false
}
