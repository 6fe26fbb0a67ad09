package safehttp

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestIsPublic(t *testing.T) {
	for addr, want := range map[string]bool{
		"8.8.8.8": true, "2606:4700::1111": true, "::ffff:8.8.8.8": true,
		"127.0.0.1": false, "127.9.9.9": false, "::1": false, "0.0.0.0": false, "::": false,
		"10.1.2.3": false, "172.16.0.1": false, "172.31.255.255": false, "192.168.1.1": false,
		"172.32.0.1": true, "169.254.169.254": false, "fe80::1": false, "fe80::1%eth0": false, "fd00:ec2::254": false,
		"100.64.0.1": false, "100.127.255.255": false, "100.128.0.1": true,
		"224.0.0.1": false, "ff02::1": false, "255.255.255.255": false, "240.0.0.1": false,
		"::ffff:127.0.0.1": false, "::ffff:169.254.169.254": false, "::127.0.0.1": false,
		"64:ff9b::a9fe:a9fe": false, "2002:7f00:1::": false, "198.18.0.1": false, "192.0.2.1": false,
	} {
		if got := IsPublic(netip.MustParseAddr(addr)); got != want {
			t.Errorf("IsPublic(%s) = %v, want %v", addr, got, want)
		}
	}
}

func TestCheckURL(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		hosts     []string
		ok        bool
	}{
		{"exact host", "https://inbound.example.com/x?y=1", []string{"inbound.example.com"}, true},
		{"case and final dot", "https://Inbound.Example.com./x", []string{"inbound.example.com"}, true},
		{"subdomain", "https://a.b.example.com/", []string{"*.example.com"}, true},
		{"pattern is not the domain itself", "https://example.com/", []string{"*.example.com"}, false},
		{"suffix without a dot", "https://evilexample.com/", []string{"*.example.com"}, false},
		{"other host", "https://evil.test/", []string{"example.com"}, false},
		{"host in the user part", "https://example.com@evil.test/", []string{"example.com"}, false},
		{"user", "https://u:p@example.com/", []string{"example.com"}, false},
		{"http", "http://example.com/", []string{"example.com"}, false},
		{"file", "file:///etc/passwd", nil, false},
		{"port", "https://example.com:8443/", []string{"example.com"}, false},
		{"default port", "https://example.com:443/", []string{"example.com"}, true},
		{"any host", "https://example.net/", nil, true},
		{"metadata address", "https://169.254.169.254/latest", nil, false},
		{"IPv6 loopback", "https://[::1]/", nil, false},
		{"no host", "https:///x", nil, false},
		{"garbage", "https://%zz", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := CheckURL(tt.url, tt.hosts...)
			if (err == nil) != tt.ok {
				t.Fatalf("got %v", err)
			}
			if err != nil && !errors.Is(err, ErrBlocked) {
				t.Errorf("%v is not ErrBlocked", err)
			}
		})
	}
}

// TestCase089_PublicClient connects to no inside address, by number or by name.
func TestCase089_PublicClient(t *testing.T) {
	hits := 0
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits++ }))
	defer srv.Close()
	u, _ := url.Parse(srv.URL)
	c, err := New(Config{Public: true, Proxy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	for _, target := range []string{srv.URL, "http://localhost:" + u.Port(), "http://[::ffff:127.0.0.1]:" + u.Port()} {
		if _, err := c.Get(target); !errors.Is(err, ErrBlocked) {
			t.Errorf("%s: got %v, want ErrBlocked", target, err)
		}
	}
	if hits != 0 {
		t.Errorf("%d requests arrived", hits)
	}
	c, _ = New(Config{Public: true, Proxy: "none", Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if hits != 1 {
		t.Errorf("allowed network: %d requests arrived", hits)
	}
}

// TestPublicClientWithProxy reaches a private proxy, but has it fetch no inside address.
func TestPublicClientWithProxy(t *testing.T) {
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked = append(asked, r.URL.String()) }))
	defer proxy.Close()
	c, err := New(Config{Public: true, Proxy: proxy.URL})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Get("http://example.test/a")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if _, err := c.Get("http://169.254.169.254/b"); !errors.Is(err, ErrBlocked) {
		t.Errorf("got %v, want ErrBlocked", err)
	}
	if got := strings.Join(asked, " "); got != "http://example.test/a" {
		t.Errorf("the proxy was asked for %s", got)
	}
}

func TestNoRedirectAndUserAgent(t *testing.T) {
	var agents []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		agents = append(agents, r.UserAgent())
		http.Redirect(w, r, "/again", http.StatusTemporaryRedirect)
	}))
	defer srv.Close()
	c, _ := New(Config{Version: "1.2.3"})
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 307 || len(agents) != 1 || agents[0] != "smtpbridge/1.2.3" {
		t.Errorf("got status %d, agents %q", resp.StatusCode, agents)
	}
}

// TestTLS trusts a private root only when told to.
func TestTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	srv.Config.ErrorLog = nil
	c, _ := New(Config{})
	if _, err := c.Get(srv.URL); err == nil {
		t.Fatal("an unknown authority was trusted")
	}
	file := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(file, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRoots(file); err == nil {
		t.Error("a file without a certificate was taken")
	}
	roots := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	c, _ = New(Config{RootCAs: roots})
	resp, err := c.Get(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
}

func TestProxySetting(t *testing.T) {
	for setting, ok := range map[string]bool{"": true, "none": true, "http://proxy:3128": true, "socks5://proxy": true, "ftp://proxy": false, "proxy:3128": false, "::": false} {
		if _, err := New(Config{Proxy: setting}); (err == nil) != ok {
			t.Errorf("proxy %q: got %v", setting, err)
		}
	}
}
