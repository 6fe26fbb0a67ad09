package main

import (
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"

	"smtpbridge/config"
)

// acmeConfig asks for a certificate of [admin] at a CA that is not there.
func acmeConfig(challenges string) string {
	return fmt.Sprintf(`[webhook]
address = ""
[admin]
address = "127.0.0.1:0"
acme = ["panel.example.com"]
[acme]
directory = "https://127.0.0.1:1/dir"
accept_terms = true
address = %q
`, challenges)
}

// Sockets are opened at the start: a reload that needs another one for the CA is refused and says so.
func TestACMEReload(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, before, after, want string }{
		{"begins", "[webhook]\naddress = \"\"\n", acmeConfig("127.0.0.1:0"), ":19: acme.address: this socket is opened at the start only: restart the bridge"},
		{"another address", acmeConfig("127.0.0.1:0"), acmeConfig("127.0.0.1:1"), ":19: acme.address: this socket is opened at the start only: restart the bridge"},
		{"another name", acmeConfig("127.0.0.1:0"), strings.ReplaceAll(acmeConfig("127.0.0.1:0"), "panel.", "desk."), ""},
		{"ends", acmeConfig("127.0.0.1:0"), "[webhook]\naddress = \"\"\n", ""},
	} {
		dir := shortTemp(t)
		b, err := NewBridge(t.Context(), writeConfig(t, dir, "127.0.0.1:0", tt.before), quiet())
		if err != nil {
			t.Fatal(err)
		}
		writeConfig(t, dir, "127.0.0.1:0", tt.after)
		err = b.Reload()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.HasSuffix(err.Error(), tt.want)) {
			t.Errorf("%s: got %v, want %s", tt.name, err, tt.want)
		}
		b.close()
	}
}

// The CA's socket answers challenges alone, and browsers may call the admin address by the certificate's name.
func TestACMESockets(t *testing.T) {
	t.Parallel()
	b, _ := runBridge(t, shortTemp(t), acmeConfig("127.0.0.1:0"))
	for _, path := range []string{"/", "/metrics", "/.well-known/acme-challenge/x"} {
		resp, err := http.Get("http://" + b.acmeLn.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s is answered with %s", path, resp.Status)
		}
	}
	if hosts := access(b.parts.cfg).Hosts; !slices.Contains(hosts, "panel.example.com") {
		t.Errorf("the dashboard is not served as panel.example.com, only as %q", hosts)
	}
	if got := b.servedCerts(); len(got) != 0 {
		t.Errorf("certificates that are not there are shown: %v", got)
	}
}

// A process asks for the certificates of its own sockets alone.
func TestACMENamesOfRoles(t *testing.T) {
	cfg := &config.Config{Listeners: []config.Listener{{ACME: []string{"mail.example.com"}}}, Admin: config.Admin{Address: "127.0.0.1:0", ACME: []string{"panel.example.com"}}}
	for _, tt := range []struct {
		roles roles
		want  []string
	}{
		{nil, []string{"mail.example.com", "panel.example.com"}},
		{roles{roleSMTP}, []string{"mail.example.com"}},
		{roles{roleAdmin, roleDeliver}, []string{"panel.example.com"}},
		{roles{roleDeliver}, nil},
	} {
		b := &Bridge{roles: tt.roles}
		if got := b.acmeNames(cfg); !slices.Equal(got, tt.want) {
			t.Errorf("roles %v ask for %q, want %q", tt.roles, got, tt.want)
		}
		if err := b.listenACME(&config.Config{DataDir: t.TempDir()}, map[string][]net.Listener{}); err != nil || b.acmeLn != nil {
			t.Errorf("without names a socket is opened: %v, %v", b.acmeLn, err)
		}
	}
}
