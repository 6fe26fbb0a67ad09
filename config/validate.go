package config

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/internal/secret"
)

const (
	second = time.Second
	minute = time.Minute
	hour   = time.Hour
)

func days(n int) Duration { return Duration(time.Duration(n) * 24 * time.Hour) }

func (c *Config) validate(root map[string]any, providers []string) {
	p := c.problems
	if c.Hostname == "" || strings.ContainsAny(c.Hostname, " \t@/:") {
		p.add("hostname", "%q is not a host name; it is the name this bridge gives in EHLO and Received, such as \"bridge.example.com\"", c.Hostname)
	}
	if c.DataDir == "" {
		p.add("data_dir", "must name a directory for the queue")
	} else {
		c.DataDir = c.Path(c.DataDir)
	}
	if u := c.Store.URL; u != "" && !strings.HasPrefix(u, "postgres://") && !strings.HasPrefix(u, "postgresql://") {
		p.add("store.url", "must be empty (SQLite in data_dir) or start with postgres://")
	} else if _, err := url.Parse(u); err != nil { // the error repeats the password
		p.add("store.url", "cannot be read: write postgres://USER:PASSWORD@HOST:PORT/DATABASE, with %%XX in place of special characters of the password")
	}
	switch l := c.Store.Lease.D(); {
	case l < second:
		p.add("store.lease", "must be at least 1s")
	case l < 90*second && c.Store.URL != "":
		p.warn("store.lease", "is shorter than a call may take: mail that a node was about to send when it was cut off from the database may be sent twice")
	}
	c.validateListeners()
	c.validateUsers()
	c.validateAccounts(providers)
	c.validateRoutes()
	c.validateRest(root)
}

func (c *Config) validateListeners() {
	p := c.problems
	if len(c.Listeners) == 0 {
		p.add("listener", "no [[listener]]: give at least one with an address, such as \"127.0.0.1:2525\"")
	}
	seen, addrs := map[string]bool{}, map[string]string{}
	for i := range c.Listeners {
		l := &c.Listeners[i]
		key := func(k string) string { return fmt.Sprintf("listener[%d].%s", i, k) }
		if l.Name == "" {
			l.Name = fmt.Sprintf("listener%d", i+1)
		}
		if seen[l.Name] {
			p.add(key("name"), "two listeners are called %q", l.Name)
		}
		seen[l.Name] = true
		public := false
		switch {
		case l.Address == "":
			p.add(key("address"), "missing: write \"127.0.0.1:2525\", \"unix:/run/smtpbridge/smtp.sock\" or \"systemd:NAME\"")
		case strings.HasPrefix(l.Address, "unix:"):
			if !filepath.IsAbs(strings.TrimPrefix(l.Address, "unix:")) {
				p.add(key("address"), "the path after unix: must be absolute")
			}
			c.socketPath(key("address"), strings.TrimPrefix(l.Address, "unix:"))
		case strings.HasPrefix(l.Address, "systemd:"):
			public = true // what systemd holds is not known here
		default:
			public = c.hostPort(key("address"), l.Address)
		}
		if other, ok := addrs[l.Address]; ok && l.Address != "" && !strings.HasSuffix(l.Address, ":0") {
			p.add(key("address"), "%s is already used by listener %q", l.Address, other)
		}
		addrs[l.Address] = l.Name
		c.oneOf(key("protocol"), l.Protocol, "smtp", "lmtp")
		c.oneOf(key("tls"), l.TLS, "off", "starttls", "implicit")
		c.oneOf(key("min_tls"), l.MinTLS, "1.0", "1.1", "1.2", "1.3")
		c.oneOf(key("auth"), l.Auth, "off", "optional", "required")
		c.oneOf(key("accept"), l.Accept, "queue", "wait")
		c.oneOf(key("bare_newlines"), l.BareNewlines, "normalize", "reject")
		if l.TLS == "off" && (l.CertFile != "" || l.KeyFile != "" || len(l.ACME) > 0) {
			p.add(key("tls"), "is \"off\" but a certificate is given: write \"starttls\" or \"implicit\", or remove cert_file, key_file and acme")
		}
		if l.TLS == "starttls" || l.TLS == "implicit" {
			c.certificate(fmt.Sprintf("listener[%d]", i), &l.CertFile, &l.KeyFile, l.ACME)
		}
		c.socketMode(key("socket_mode"), l.SocketMode)
		c.validateWait(i, l)
		c.validateLMTP(i, l)
		explicitAllow := l.Allow != nil
		if l.Allow == nil {
			l.Allow = []string{"127.0.0.0/8", "::1"}
		}
		c.prefixes(key("allow"), l.Allow)
		if l.Auth != "required" {
			for _, a := range l.Allow {
				if pre, err := ParsePrefix(a); err == nil && pre.Bits() == 0 {
					p.add(key("allow"), "%s lets the whole internet send through this bridge: name your networks, or set auth = \"required\"", a)
				}
			}
		}
		withPassword := l.TLS != "off" && l.Auth != "off" && len(c.Users) > 0
		if public && !strings.HasPrefix(l.Address, "systemd:") && !explicitAllow && !withPassword {
			p.add(key("address"), "%s is reachable from other machines: give tls with a certificate and a [[user]], or allow = [...] with the networks that may send", l.Address)
		}
		if l.Auth == "required" && len(c.Users) == 0 {
			p.add(key("auth"), "is \"required\" but there is no [[user]]")
		}
		c.oneOf(key("bad_options"), l.BadOptions, "warn", "reject")
		if l.AppendDomain != "" && strings.ContainsAny(l.AppendDomain, "@ ") {
			p.add(key("append_domain"), "%q is not a domain", l.AppendDomain)
		}
		for _, n := range []struct {
			k string
			v int64
		}{
			{"max_message_size", int64(l.MaxMessageSize)},
			{"max_recipients", int64(l.MaxRecipients)},
			{"max_connections", int64(l.MaxConnections)},
			{"max_connections_per_ip", int64(l.MaxConnectionsPerIP)},
			{"max_line", int64(l.MaxLine)},
			{"max_messages_per_hour", int64(l.MaxMessagesPerHour)},
		} {
			if n.v < 0 {
				p.add(key(n.k), "must not be negative")
			}
		}
		if 0 < l.MaxLine && l.MaxLine < 1000 {
			p.add(key("max_line"), "must be at least 1000 bytes (RFC 5321 4.5.3.1.6)")
		}
		if 0 < l.MaxMessageSize && l.MaxMessageSize < 1024 {
			p.add(key("max_message_size"), "%d bytes is too small for any mail; sizes are written \"25MiB\"", l.MaxMessageSize)
		}
	}
	for name, targets := range c.Aliases {
		if len(targets) == 0 {
			p.add("aliases."+name, "names no address")
		}
		for _, t := range targets {
			if !strings.Contains(t, "@") {
				p.add("aliases."+name, "%q is not a full address", t)
			}
		}
	}
}

func (c *Config) validateUsers() {
	p := c.problems
	seen := map[string]bool{}
	for i := range c.Users {
		u := &c.Users[i]
		key := func(k string) string { return fmt.Sprintf("user[%d].%s", i, k) }
		if u.Name == "" {
			p.add(key("name"), "missing")
		}
		if seen[u.Name] {
			p.add(key("name"), "two users are called %q", u.Name)
		}
		seen[u.Name] = true
		if u.PasswordHash != "" {
			if u.Password+u.PasswordFile+u.PasswordEnv != "" {
				p.add(key("password_hash"), "given together with another form of the password: %v", errOneSecret)
			}
			c.passwordHash(key("password_hash"), u.PasswordHash)
		} else {
			u.Secret = c.secret(key("password"), true, u.Password, u.PasswordFile, u.PasswordEnv)
		}
		if len(u.Senders) == 0 {
			p.add(key("senders"), "missing: which domains or addresses may %q send from? \"*\" for all", u.Name)
		}
		c.patterns(key("senders"), u.Senders)
		if u.MaxMessagesPerHour < 0 {
			p.add(key("max_messages_per_hour"), "must not be negative")
		}
	}
}

func (c *Config) validateAccounts(providers []string) {
	p := c.problems
	known := map[string]bool{}
	for _, n := range providers {
		known[n] = true
	}
	seen := map[string]bool{}
	for i := range c.Accounts {
		a := &c.Accounts[i]
		a.index, a.cfg = i, c
		key := func(k string) string { return fmt.Sprintf("account[%d].%s", i, k) }
		switch {
		case a.Name == "":
			p.add(key("name"), "missing")
		case strings.ContainsAny(a.Name, "/?#% \t") || a.Name == "." || a.Name == "..":
			p.add(key("name"), "%q cannot stand in a webhook path: use letters, digits, - and _", a.Name)
		case seen[a.Name]:
			p.add(key("name"), "two accounts are called %q", a.Name)
		}
		seen[a.Name] = true
		switch {
		case a.Provider == "":
			p.add(key("provider"), "missing; known: %s", strings.Join(providers, ", "))
		case !known[a.Provider]:
			p.add(key("provider"), "unknown provider %q%s", a.Provider, nearest(a.Provider, known))
		}
		a.Key = c.secret(key("api_key"), false, a.APIKey, a.APIKeyFile, a.APIKeyEnv)
		a.WebhookSecrets = c.secrets(key("webhook_secret"), a.WebhookSecret, a.WebhookSecretFile, a.WebhookSecretEnv)
		a.InboundSecrets = c.secrets(key("inbound_secret"), a.InboundSecret, a.InboundSecretFile, a.InboundSecretEnv)
		a.BasicAuth = c.secrets(key("webhook_basic_auth"), a.WebhookBasicAuth, a.WebhookBasicAuthFile, a.WebhookBasicAuthEnv)
		for _, s := range a.BasicAuth {
			if !strings.Contains(s.Reveal(), ":") {
				p.add(key("webhook_basic_auth"), "must have the form user:password")
			}
		}
		if a.BaseURL != "" {
			u, err := url.Parse(a.BaseURL)
			if err != nil || u.Scheme == "" || (u.Host == "" && u.Path == "") {
				p.add(key("base_url"), "%q is not a URL with a scheme, such as \"https://api.example.com\" or \"smtp://mail.example.com:25\"", a.BaseURL)
			} else if u.User != nil {
				p.add(key("base_url"), "must not hold a password: use api_key_file")
			}
		}
		if a.WebhookURL != "" {
			c.webURL(key("webhook_url"), a.WebhookURL)
		}
		def(&a.Tracking, "account")
		c.oneOf(key("tracking"), a.Tracking, "account", "off", "opens", "clicks", "both")
		def(&a.SplitRecipients, "never")
		c.oneOf(key("split_recipients"), a.SplitRecipients, "never", "always")
		if a.MaxConcurrent < 0 {
			p.add(key("max_concurrent"), "must not be negative")
		}
		if a.MaxPerSecond < 0 {
			p.add(key("max_per_second"), "must not be negative")
		}
		if a.ReturnPath != "" && !strings.Contains(a.ReturnPath, "@") {
			p.add(key("return_path"), "%q is not an address", a.ReturnPath)
		}
	}
}

func (c *Config) validateRoutes() {
	p := c.problems
	accounts, listeners, users := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, a := range c.Accounts {
		accounts[a.Name] = true
	}
	for _, l := range c.Listeners {
		listeners[l.Name] = true
	}
	for _, u := range c.Users {
		users[u.Name] = true
	}
	if len(c.Routes) == 0 && len(c.Inbound) == 0 {
		p.add("route", "no [[route]]: without one no mail can be sent; a default route is senders = [\"*\"]")
	}
	plain := map[string]string{} // sender pattern of an unconditional route -> its name
	for i := range c.Routes {
		r := &c.Routes[i]
		key := func(k string) string { return fmt.Sprintf("route[%d].%s", i, k) }
		if r.Name == "" {
			r.Name = fmt.Sprintf("route%d", i+1)
		}
		if len(r.Senders) == 0 {
			p.add(key("senders"), "missing: which sender domains take this route? [\"*\"] for all")
		}
		c.patterns(key("senders"), r.Senders)
		c.patterns(key("recipients"), r.Recipients)
		c.patterns(key("allow_recipients"), r.AllowRecipients)
		if len(r.Accounts) == 0 {
			p.add(key("accounts"), "missing: which [[account]] sends this mail?")
		}
		for j, a := range r.Accounts {
			if !accounts[a] {
				p.add(key("accounts"), "there is no account %q%s", a, nearest(a, accounts))
			}
			if slices.Contains(r.Accounts[:j], a) {
				p.add(key("accounts"), "%q stands there twice", a)
			}
		}
		for _, n := range r.Listeners {
			if !listeners[n] {
				p.add(key("listeners"), "there is no listener %q%s", n, nearest(n, listeners))
			}
		}
		for _, n := range r.Users {
			if !users[n] {
				p.add(key("users"), "there is no user %q%s", n, nearest(n, users))
			}
		}
		def(&r.OnLoss, "send")
		c.oneOf(key("on_loss"), r.OnLoss, "send", "refuse")
		if r.ForceFrom != "" && !strings.Contains(r.ForceFrom, "@") {
			p.add(key("force_from"), "%q is not an address", r.ForceFrom)
		}
		for _, t := range r.RedirectAllTo {
			if !strings.Contains(t, "@") {
				p.add(key("redirect_all_to"), "%q is not an address", t)
			}
		}
		if r.unconditional() {
			for _, s := range r.Senders {
				s = strings.ToLower(s)
				if first, ok := plain[s]; ok {
					p.add(key("senders"), "%q already takes route %q: this one would never be used for it", s, first)
				} else {
					plain[s] = r.Name
				}
			}
		}
	}
}

func (c *Config) validateRest(root map[string]any) {
	p := c.problems
	c.oneOf("delivery.on_unknown", c.Delivery.OnUnknown, "retry", "hold")
	if c.Delivery.Expire == 0 {
		p.add("delivery.expire", "must not be 0: every mail would fail at once")
	}
	if _, ok := root["webhook"]; ok && c.Webhook.Address != "" && !strings.HasPrefix(c.Webhook.Address, "systemd:") {
		c.hostPort("webhook.address", c.Webhook.Address)
	}
	if c.Webhook.PublicURL != "" {
		c.webURL("webhook.public_url", c.Webhook.PublicURL)
	}
	c.prefixes("webhook.trusted_proxies", c.Webhook.TrustedProxies)
	if c.DNS.Server != "" {
		if _, _, err := net.SplitHostPort(c.DNS.Server); err != nil {
			p.add("dns.server", "%q is not host:port, such as \"127.0.0.1:53\"", c.DNS.Server)
		}
	}
	if c.Events.File != "" && c.Events.File != "stdout" {
		c.Events.File = c.Path(c.Events.File)
	}
	for i := range c.Events.Forward {
		f := &c.Events.Forward[i]
		key := fmt.Sprintf("events.forward[%d]", i)
		if f.URL == "" {
			p.add(key+".url", "missing")
		} else {
			c.webURL(key+".url", f.URL)
		}
		f.Key = c.secret(key+".secret", true, f.Secret, f.SecretFile, f.SecretEnv)
	}
	if c.HTTP.Proxy != "" {
		c.webURL("http.proxy", c.HTTP.Proxy)
	}
	if c.HTTP.CAFile != "" {
		c.HTTP.CAFile = c.Path(c.HTTP.CAFile)
		if _, err := os.Stat(c.HTTP.CAFile); err != nil {
			p.add("http.ca_file", "%s", unusable(c.HTTP.CAFile, err))
		}
	}
	c.Admin.Socket = c.Path(c.Admin.Socket)
	c.socketPath("admin.socket", c.Admin.Socket)
	c.socketMode("admin.socket_mode", c.Admin.SocketMode)
	if c.Admin.PasswordHash != "" {
		c.passwordHash("admin.password_hash", c.Admin.PasswordHash)
	}
	if c.Admin.Address != "" && c.hostPort("admin.address", c.Admin.Address) {
		if c.Admin.PasswordHash == "" || c.Admin.CertFile == "" && len(c.Admin.ACME) == 0 {
			p.add("admin.address", "%s is reachable from other machines: it needs cert_file and key_file, or acme, and password_hash", c.Admin.Address)
		}
	}
	if c.Admin.CertFile != "" || c.Admin.KeyFile != "" || len(c.Admin.ACME) > 0 {
		c.certificate("admin", &c.Admin.CertFile, &c.Admin.KeyFile, c.Admin.ACME)
	}
	_, given := root["acme"]
	c.validateACME(given)
	c.oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	c.oneOf("log.format", c.Log.Format, "text", "json")
	c.validateDSN(root)
	for key, d := range map[string]Duration{"catch_up.after": c.CatchUp.After, "catch_up.silence": c.CatchUp.Silence} {
		if d.D() <= 0 {
			p.add(key, "must be longer than nothing")
		}
	}
	if c.Suppression.AtRcpt && !c.Suppression.Enabled {
		p.add("suppression.at_rcpt", "needs enabled = true")
	}
	c.validateInbound()
	if len(p.wrong) == 0 { // else the file does not say all it was meant to
		c.warnUnused()
	}
}

// maxWait leaves a client that waits for its reply to the end of the message the 10 minutes of
// RFC 5321 4.5.3.2.6.
const maxWait = 9 * minute

func (c *Config) validateWait(i int, l *Listener) {
	if l.Accept != "wait" {
		return
	}
	if d := l.WaitTimeout.D(); d < second || d > maxWait {
		c.problems.add(fmt.Sprintf("listener[%d].wait_timeout", i), "must be between 1s and 9m: clients give up after 10 minutes (RFC 5321 4.5.3.2.6)")
	}
	if c.DSN.Account == "" {
		c.problems.warn(fmt.Sprintf("listener[%d].accept", i), "is \"wait\" without [dsn] account: what fails after the reply, or for some of several recipients, is told by events only, not by mail")
	}
}

// validateLMTP: RFC 2033 5 keeps LMTP off the SMTP port, where it would be taken for SMTP.
func (c *Config) validateLMTP(i int, l *Listener) {
	if _, port, err := net.SplitHostPort(l.Address); l.Protocol == "lmtp" && err == nil && !strings.HasPrefix(l.Address, "unix:") && (port == "25" || port == "smtp") {
		c.problems.add(fmt.Sprintf("listener[%d].address", i), "LMTP must not use port 25 (RFC 2033 5): take another port or a unix socket")
	}
}

func (c *Config) oneOf(key, got string, want ...string) {
	if slices.Contains(want, got) {
		return
	}
	c.problems.add(key, "%q is not one of %s", got, strings.Join(want, ", "))
}

// hostPort checks an address and reports whether other machines may reach it.
func (c *Config) hostPort(key, addr string) (public bool) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port == "" {
		c.problems.add(key, "%q is not host:port, such as \"127.0.0.1:2525\"", addr)
		return false
	}
	if n, err := net.LookupPort("tcp", port); err != nil || n < 0 {
		c.problems.add(key, "%q is not a port", port)
	}
	if host == "localhost" {
		return false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		if host != "" {
			c.problems.add(key, "%q is not an IP address", host)
		}
		return true
	}
	return !ip.IsLoopback()
}

func (c *Config) passwordHash(key, hash string) {
	if !strings.HasPrefix(hash, "$argon2id$") {
		c.problems.add(key, "is not an argon2id hash: make one with `smtpbridge hash-password`")
	}
}

// maxSocketPath is what the kernel takes: 108 bytes with the one that ends it (unix(7)).
const maxSocketPath = 107

func (c *Config) socketPath(key, path string) {
	if len(path) > maxSocketPath {
		c.problems.add(key, "the path of a socket has at most %d bytes, this one has %d: name a shorter one", maxSocketPath, len(path))
	}
}

func (c *Config) socketMode(key, s string) {
	if _, err := ParseMode(s); s != "" && err != nil {
		c.problems.add(key, "%v", err)
	}
}

// ParseMode reads the mode of a socket's file.
func ParseMode(s string) (os.FileMode, error) {
	n, err := strconv.ParseUint(s, 8, 32)
	if err != nil || n > 0o777 {
		return 0, fmt.Errorf("%q is not an octal file mode such as \"0660\"", s)
	}
	return os.FileMode(n), nil
}

func (c *Config) webURL(key, s string) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		c.problems.add(key, "%q is not an http or https URL", s)
	}
}

func (c *Config) keyPair(certKey, keyKey string, cert, key *string) {
	readable := true
	for _, f := range []struct {
		key  string
		path *string
	}{{certKey, cert}, {keyKey, key}} {
		if *f.path == "" {
			c.problems.add(f.key, "missing: TLS needs a certificate and its key (PEM files), or acme = [\"mail.example.com\"]")
			readable = false
			continue
		}
		*f.path = c.Path(*f.path)
		if _, err := os.ReadFile(*f.path); err != nil {
			c.problems.add(f.key, "%s", unusable(*f.path, err))
			readable = false
		}
	}
	if !readable {
		return
	}
	pair, err := tls.LoadX509KeyPair(*cert, *key)
	switch {
	case err != nil && strings.Contains(err.Error(), "does not match"):
		c.problems.add(certKey, "%s and %s do not belong together: the key is that of another certificate", *cert, *key)
	case err != nil:
		c.problems.add(certKey, "%s", strings.TrimPrefix(err.Error(), "tls: "))
	case time.Now().After(pair.Leaf.NotAfter):
		c.problems.warn(certKey, "%s expired on %s: clients that check it will not send", *cert, pair.Leaf.NotAfter.UTC().Format(time.DateOnly))
	}
}

// ParsePrefix reads a network ("10.0.0.0/8") or a single address.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func (c *Config) prefixes(key string, list []string) {
	for _, s := range list {
		if _, err := ParsePrefix(s); err != nil {
			c.problems.add(key, "%q is not a network, such as \"10.0.0.0/8\" or \"192.168.1.5\"", s)
		}
	}
}

func (c *Config) patterns(key string, list []string) {
	for _, s := range list {
		_, domain, at := strings.Cut(s, "@")
		if !at {
			domain = s
		}
		domain = strings.TrimPrefix(domain, "*.")
		if s != "*" && (domain == "" || strings.ContainsAny(domain, "*@ /")) {
			c.problems.add(key, "%q is not a pattern: write \"example.com\", \"*.example.com\", \"user@example.com\" or \"*\"", s)
		}
	}
}

// secret reads one secret given in one of three forms.
func (c *Config) secret(key string, required bool, value, file, env string) secret.String {
	list := c.secrets(key, one(value), one(file), one(env))
	switch {
	case len(list) == 1:
		return list[0]
	case len(list) > 1:
		c.problems.add(key, "given in more than one form (%s, %s_file, %s_env): %v", last(key), last(key), last(key), errOneSecret)
	case required && value+file+env == "":
		c.problems.add(key, "missing: give %s, %s_file or %s_env", last(key), last(key), last(key))
	}
	return secret.String{}
}

func (c *Config) secrets(key string, values, files, envs []string) []secret.String {
	var out []secret.String
	for _, v := range values {
		if v == "" {
			c.problems.add(key, "is empty")
			continue
		}
		out = append(out, secret.New(v))
		c.warnOpen(key)
	}
	for _, f := range files {
		s, err := c.secretFile(key+"_file", f)
		if err != nil {
			c.problems.add(key+"_file", "%s", unusable(c.Path(f), err))
			continue
		}
		out = append(out, s)
	}
	for _, e := range envs {
		s, err := secret.FromEnv(e)
		if err != nil {
			c.problems.add(key+"_env", "%v", err)
			continue
		}
		out = append(out, s)
	}
	return out
}

// secretFile reads a secret from a file: a bare name is looked up among systemd's credentials first,
// a relative path starts beside the configuration file.
func (c *Config) secretFile(key, name string) (secret.String, error) {
	if dir := os.Getenv("CREDENTIALS_DIRECTORY"); dir != "" && !strings.ContainsRune(name, '/') {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return secret.ReadFile(filepath.Join(dir, name))
		}
	}
	path := c.Path(name)
	s, err := secret.ReadFile(path)
	if err == nil {
		if fi, err := os.Stat(path); err == nil && fi.Mode().Perm()&0o004 != 0 {
			c.problems.warn(key, "%s can be read by every user of this machine: chmod 0640 it", path)
		}
	}
	return s, err
}

// warnOpen tells, once, that a secret stands in a configuration file that everybody can read.
func (c *Config) warnOpen(key string) {
	fi, err := os.Stat(c.File)
	if err != nil || fi.Mode().Perm()&0o004 == 0 || c.saidOpen {
		return
	}
	c.saidOpen = true
	c.problems.warn(key, "%s can be read by every user of this machine: chmod 0640 it, or put the secret into a file of its own (%s_file)", c.File, last(key))
}

func one(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func last(key string) string { return key[strings.LastIndexByte(key, '.')+1:] }
