// Package safehttp is the base of every HTTP client of the bridge: time limits on each phase that
// has a natural one, no redirects, certificates always checked, and, where the address comes from
// outside, a dialer that refuses to connect to the inside of the network.
//
// Contract: a client never follows a redirect (the 3xx answer is handed to the caller), so
// credentials never reach another host. There is no limit on the whole exchange: the caller knows whether
// it uploads 25 MiB or asks for one line. With Public set, every address is checked after it was
// resolved, at connect time, so a name that resolves differently the second time gains nothing.
package safehttp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Time limits of the phases before the request is written.
const (
	DialTimeout = 15 * time.Second
	TLSTimeout  = 15 * time.Second
	// IdleTimeout is below the usual 60 s of load balancers: the side that closes an idle connection
	// first should be ours, since a request on a connection that is being closed has an unknown fate.
	IdleTimeout = 50 * time.Second
)

// ErrBlocked says that an address is not to be connected to.
var ErrBlocked = errors.New("address is not allowed")

// Config describes a client. The zero value is right for calls to a configured API.
type Config struct {
	// Version is the bridge's version, for the User-Agent; "" = that of the build.
	Version string
	// Concurrency is how many requests run at once: so many idle connections are kept. 0 = 4.
	Concurrency int
	// Proxy is the URL of an HTTP proxy; "" = the environment's (HTTPS_PROXY, NO_PROXY), "none" = no proxy.
	Proxy string
	// RootCAs replaces the system's certificate authorities; see LoadRoots.
	RootCAs *x509.CertPool
	// Public refuses connections to loopback, private, link-local and other special addresses.
	Public bool
	// Allow lists networks that Public does not refuse.
	Allow []netip.Prefix
	// DialTimeout replaces the constant of the same name.
	DialTimeout time.Duration
}

// LoadRoots gives the system's certificate authorities and those of a PEM file.
func LoadRoots(caFile string) (*x509.CertPool, error) {
	b, err := os.ReadFile(caFile)
	if err != nil {
		return nil, err
	}
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", caFile)
	}
	return pool, nil
}

// New makes a client. The error is about the proxy setting.
func New(c Config) (*http.Client, error) {
	proxy, proxies, err := proxyFunc(c.Proxy)
	if err != nil {
		return nil, err
	}
	n := c.Concurrency
	if n <= 0 {
		n = 4
	}
	timeout := c.DialTimeout
	if timeout <= 0 {
		timeout = DialTimeout
	}
	plain := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second}
	dial := plain.DialContext
	if c.Public {
		guarded := &net.Dialer{Timeout: timeout, KeepAlive: 30 * time.Second, Control: func(_, address string, _ syscall.RawConn) error {
			return checkAddress(address, c.Allow)
		}}
		dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
			// The operator's own proxy usually has a private address; what it connects to is its policy.
			if proxies.has(addr) {
				return plain.DialContext(ctx, network, addr)
			}
			return guarded.DialContext(ctx, network, addr)
		}
	}
	t := &http.Transport{
		Proxy:       proxy,
		DialContext: dial,
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12,
			RootCAs:    c.RootCAs,
		},
		TLSHandshakeTimeout:    TLSTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConns:           4 * n,
		MaxIdleConnsPerHost:    n,
		IdleConnTimeout:        IdleTimeout,
		ExpectContinueTimeout:  time.Second,
		MaxResponseHeaderBytes: 256 << 10,
	}
	return &http.Client{
		Transport:     &transport{base: t, agent: "smtpbridge/" + version(c.Version), public: c.Public, allow: c.Allow},
		CheckRedirect: NoRedirect,
	}, nil
}

// NoRedirect is a CheckRedirect that hands the 3xx answer to the caller.
func NoRedirect(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

func version(v string) string {
	if v != "" {
		return v
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" && bi.Main.Version != "(devel)" {
		return bi.Main.Version
	}
	return "devel"
}

// transport adds the User-Agent and, for public clients, refuses an address written in the URL
// even when a proxy would be the one to connect.
type transport struct {
	base   *http.Transport
	agent  string
	public bool
	allow  []netip.Prefix
}

func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if t.public {
		if err := checkHost(r.URL.Hostname(), t.allow); err != nil {
			if r.Body != nil {
				r.Body.Close()
			}
			return nil, err
		}
	}
	if r.Header.Get("User-Agent") == "" {
		r = r.Clone(r.Context())
		r.Header.Set("User-Agent", t.agent)
	}
	return t.base.RoundTrip(r)
}

// CloseIdleConnections serves http.Client.CloseIdleConnections.
func (t *transport) CloseIdleConnections() { t.base.CloseIdleConnections() }

// proxySet remembers the addresses of proxies in use.
type proxySet struct{ m sync.Map }

func (p *proxySet) has(addr string) bool {
	_, ok := p.m.Load(addr)
	return ok
}

func (p *proxySet) add(u *url.URL) {
	port := u.Port()
	if port == "" {
		switch u.Scheme {
		case "https":
			port = "443"
		case "socks5", "socks5h":
			port = "1080"
		default:
			port = "80"
		}
	}
	p.m.Store(net.JoinHostPort(u.Hostname(), port), true)
}

func proxyFunc(setting string) (func(*http.Request) (*url.URL, error), *proxySet, error) {
	set := &proxySet{}
	var inner func(*http.Request) (*url.URL, error)
	switch setting {
	case "none":
		return nil, set, nil
	case "":
		inner = http.ProxyFromEnvironment
	default:
		u, err := url.Parse(setting)
		if err != nil || u.Host == "" {
			return nil, nil, errors.New("proxy is not a URL of the form http://host:port")
		}
		switch u.Scheme {
		case "http", "https", "socks5", "socks5h":
		default:
			return nil, nil, fmt.Errorf("proxy has the scheme %q: use http, https or socks5", u.Scheme)
		}
		inner = http.ProxyURL(u)
	}
	return func(r *http.Request) (*url.URL, error) {
		u, err := inner(r)
		if u != nil {
			set.add(u)
		}
		return u, err
	}, set, nil
}

// special lists networks that are not the public Internet and that netip has no predicate for.
// https://www.iana.org/assignments/iana-ipv4-special-registry and .../iana-ipv6-special-registry
var special = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // CGNAT, RFC 6598
	netip.MustParsePrefix("192.0.0.0/24"),
	netip.MustParsePrefix("192.0.2.0/24"),
	netip.MustParsePrefix("192.88.99.0/24"),
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("198.51.100.0/24"),
	netip.MustParsePrefix("203.0.113.0/24"),
	netip.MustParsePrefix("240.0.0.0/4"), // with 255.255.255.255
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"), // NAT64: an IPv4 address in disguise
	netip.MustParsePrefix("100::/64"),
	netip.MustParsePrefix("2001::/23"), // Teredo and other protocol assignments
	netip.MustParsePrefix("2001:db8::/32"),
	netip.MustParsePrefix("2002::/16"), // 6to4
	netip.MustParsePrefix("fec0::/10"),
	netip.MustParsePrefix("::/96"), // IPv4-compatible
}

// IsPublic reports whether ip is an address of the public Internet. An IPv4 address mapped into
// IPv6 is judged as the IPv4 address that it is.
func IsPublic(ip netip.Addr) bool {
	ip = ip.WithZone("").Unmap()
	if !ip.IsValid() || ip.IsUnspecified() || ip.IsLoopback() || ip.IsPrivate() ||
		ip.IsLinkLocalUnicast() || ip.IsMulticast() || ip.IsInterfaceLocalMulticast() {
		return false
	}
	for _, p := range special {
		if p.Contains(ip) {
			return false
		}
	}
	return true
}

func checkIP(ip netip.Addr, allow []netip.Prefix) error {
	if IsPublic(ip) {
		return nil
	}
	bare := ip.WithZone("").Unmap()
	for _, p := range allow {
		if p.Contains(bare) {
			return nil
		}
	}
	return fmt.Errorf("%w: %s is not a public address", ErrBlocked, bare)
}

// checkAddress judges the host:port that a socket is about to be connected to.
func checkAddress(address string, allow []netip.Prefix) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("%w: not an IP address and port", ErrBlocked)
	}
	return checkIP(ap.Addr(), allow)
}

// checkHost judges a host as written in a URL, as far as that can be done before it is resolved.
func checkHost(host string, allow []netip.Prefix) error {
	if ip, err := netip.ParseAddr(host); err == nil {
		return checkIP(ip, allow)
	}
	return nil
}

// CheckURL judges a URL that came from outside before anything is fetched: https only, no user
// or password, the default port, and a host that is one of hosts ("*.example.com" stands for its subdomains, not
// for itself). With no hosts any host is allowed; the client's Public rule still holds at connect time.
func CheckURL(raw string, hosts ...string) (*url.URL, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("%w: not a complete URL", ErrBlocked)
	}
	switch {
	case u.Scheme != "https":
		return nil, fmt.Errorf("%w: only https is fetched", ErrBlocked)
	case u.User != nil:
		return nil, fmt.Errorf("%w: user and password in a URL", ErrBlocked)
	case u.Port() != "" && u.Port() != "443":
		return nil, fmt.Errorf("%w: only port 443 is fetched", ErrBlocked)
	}
	if err := checkHost(u.Hostname(), nil); err != nil {
		return nil, err
	}
	if len(hosts) == 0 {
		return u, nil
	}
	host := strings.ToLower(strings.TrimSuffix(u.Hostname(), "."))
	for _, h := range hosts {
		h = strings.ToLower(h)
		if sub, ok := strings.CutPrefix(h, "*"); ok && strings.HasSuffix(host, sub) && len(host) > len(sub) || host == h {
			return u, nil
		}
	}
	return nil, fmt.Errorf("%w: host is not one of the expected ones", ErrBlocked)
}
