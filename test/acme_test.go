package test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	stdbinary "encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"smtpbridge/providers/sandbox/twin"
)

// TestACME lets Pebble, Let's Encrypt's own server for tests, give certificates to the real binary, and real clients use them.
func TestACME(t *testing.T) {
	t.Parallel()
	needs(t, "# needs: openssl swaks")
	dir := shortDir(t)
	certificate(t, dir) // of Pebble itself
	pebble := &pebble{t: t, dir: dir, port: freePort(t), roots: freePort(t), challenges: freePort(t), dns: answerDNS(t), validity: 3600}
	pebble.build()
	esp := twin.New(twin.Config{APIKey: "acme-key"})
	server := httptest.NewServer(esp)
	t.Cleanup(func() { server.Close(); esp.Close() })
	smtpPort, adminPort := freePort(t), freePort(t)
	br := newBridge(t, dir, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
address = "127.0.0.1:%d"
acme = ["mail.example.com", "smtp.example.com"]
[[account]]
name = "esp"
provider = "sandbox"
api_key = "acme-key"
base_url = %q
[[route]]
senders = ["*"]
accounts = ["esp"]
[webhook]
address = ""
[admin]
address = "127.0.0.1:%d"
acme = ["smtp.example.com"]
[acme]
directory = "https://127.0.0.1:%d/dir"
ca_file = "cert.pem"
email = "ops@example.com"
accept_terms = true
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
[log]
level = "debug"
`, dir, smtpPort, server.URL, adminPort, pebble.port, pebble.challenges))
	at := fmt.Sprintf("127.0.0.1:%d", smtpPort)
	logged := func(parts ...string) func() bool {
		return func() bool {
			for line := range strings.Lines(br.log.String()) {
				all := true
				for _, p := range parts {
					all = all && strings.Contains(line, p)
				}
				if all {
					return true
				}
			}
			return false
		}
	}

	// The CA is away: the bridge runs and takes mail; TLS fails for now.
	br.start()
	until(t, 20*time.Second, "a failure that says what comes next", logged("event=tls.obtain_failed", "name=mail.example.com", "next_try=", "connection refused"))
	if out, err := openssl(at, "mail.example.com"); err == nil {
		t.Errorf("a handshake without a certificate succeeds:\n%s", out)
	}
	swaks(t, at, "without@example.com")

	// The CA is back: a reload asks at once.
	pebble.start()
	br.signal(t, syscall.SIGHUP, "event=config.reloaded")
	for _, name := range []string{"mail.example.com", "smtp.example.com"} {
		until(t, 30*time.Second, "a certificate for "+name, logged("event=tls.obtained", "name="+name, "renewal=false"))
	}
	if out := br.run("check", "--online"); !strings.Contains(out, "/dir answers; its terms of service: data:text/plain") {
		t.Errorf("check --online says %s", out)
	}
	roots := pebble.rootsFile()
	if out, err := openssl(at, "smtp.example.com", "-CAfile", roots, "-verify_return_error", "-verify_hostname", "smtp.example.com"); err != nil {
		t.Errorf("openssl does not accept the certificate: %v\n%s", err, out)
	}
	swaks(t, at, "with@example.com", "--tls", "--tls-verify", "--tls-ca-path", roots, "--tls-sni", "mail.example.com")
	until(t, 20*time.Second, "both mails at the ESP", func() bool { return len(esp.Inbox()) == 2 })
	for _, c := range []struct{ asked, want string }{{"smtp.example.com", "smtp.example.com"}, {"", "mail.example.com"}, {"elsewhere.example.net", "mail.example.com"}} {
		if got := leaf(t, at, c.asked, true); got.VerifyHostname(c.want) != nil {
			t.Errorf("a client that asks for %q gets the certificate of %v, want %s", c.asked, got.DNSNames, c.want)
		}
	}
	panel := fmt.Sprintf("127.0.0.1:%d", adminPort)
	if got := leaf(t, panel, "", false); got.VerifyHostname("smtp.example.com") != nil {
		t.Errorf("the admin address has the certificate of %v", got.DNSNames)
	}

	// A CA that forgot the account, and whose certificates are soon to be renewed: a reload changes the names, and what the CA refuses is
	// said with its reason.
	pebble.stop()
	pebble.validity = 3
	pebble.start()
	br.edit(t, `acme = ["mail.example.com", "smtp.example.com"]`, `acme = ["new.example.com", "mail.example.com", "blocked.example.com"]`)
	br.edit(t, `acme = ["smtp.example.com"]`, `acme = ["new.example.com"]`)
	br.signal(t, syscall.SIGHUP, "event=config.reloaded")
	until(t, 30*time.Second, "a certificate for the new name", logged("event=tls.obtained", "name=new.example.com"))
	until(t, 30*time.Second, "the CA's refusal", logged("event=tls.obtain_failed", "name=blocked.example.com", "rejectedIdentifier"))
	if got := leaf(t, panel, "", false); got.VerifyHostname("new.example.com") != nil {
		t.Errorf("after the reload the admin address has the certificate of %v", got.DNSNames)
	}
	if n := strings.Count(br.log.String(), "name=mail.example.com renewal="); n != 1 {
		t.Errorf("mail.example.com was asked for %d times: a reload asks for what is new", n)
	}

	metrics := br.metrics()
	for _, want := range []string{
		`smtpbridge_certificate_not_after_seconds{listener="listener1",name="new.example.com"} `,
		`smtpbridge_certificate_not_after_seconds{listener="listener1",name="mail.example.com"} `,
		`smtpbridge_certificate_not_after_seconds{listener="",name="new.example.com"} `,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("the metrics lack %s", want)
		}
	}
	if strings.Contains(metrics, "blocked.example.com") {
		t.Error("the metrics show a certificate that is not there")
	}

	// It is renewed while the bridge runs.
	first := leaf(t, at, "", true).SerialNumber
	until(t, 30*time.Second, "a renewed certificate in handshakes", func() bool { return leaf(t, at, "", true).SerialNumber.Cmp(first) != 0 })
	if !logged("event=tls.obtained", "name=new.example.com", "renewal=true")() {
		t.Error("the log does not tell the renewal")
	}

	// After a crash, and without the CA, the stored certificate is in use at once.
	pebble.stop()
	before := leaf(t, at, "", true).SerialNumber
	br.kill()
	br.start()
	if after := leaf(t, at, "", true).SerialNumber; after.Cmp(before) != 0 {
		t.Errorf("certificate %x after the crash, %x before", after, before)
	}
	checkSecrecy(t, filepath.Join(dir, "acme"), br.log.String())
}

// checkSecrecy wants keys to be readable by the bridge alone, and in no line of the log.
func checkSecrecy(t *testing.T, dir, log string) {
	t.Helper()
	keys := 0
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		want := os.FileMode(0o600)
		if fi.IsDir() {
			want = 0o700
		}
		if fi.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", path, fi.Mode().Perm(), want)
		}
		if fi.IsDir() {
			return nil
		}
		b, err := os.ReadFile(path)
		_, rest, ok := strings.Cut(string(b), "-----BEGIN PRIVATE KEY-----\n")
		if ok {
			keys++
			if line, _, _ := strings.Cut(rest, "\n"); strings.Contains(log, line[10:]) {
				t.Errorf("the key in %s is in the log", path)
			}
		}
		return err
	})
	if err != nil || keys < 2 {
		t.Errorf("%d keys below %s: %v", keys, dir, err)
	}
}

// openssl makes a handshake after STARTTLS.
func openssl(addr, name string, args ...string) ([]byte, error) {
	cmd := exec.Command("openssl", append([]string{"s_client", "-starttls", "smtp", "-connect", addr, "-servername", name, "-brief"}, args...)...)
	cmd.Stdin = strings.NewReader("QUIT\r\n")
	return cmd.CombinedOutput()
}

func swaks(t *testing.T, addr, to string, args ...string) {
	t.Helper()
	out, err := exec.Command("swaks", append([]string{"--server", addr, "--from", "app@example.com", "--to", to, "--helo", "client.example.com"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("swaks: %v\n%s", err, out)
	}
}

// leaf gives the certificate that a client gets who asks for a name.
func leaf(t *testing.T, addr, name string, starttls bool) *x509.Certificate {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if starttls {
		buf := make([]byte, 4096)
		for _, line := range []string{"", "EHLO client.example.com\r\n", "STARTTLS\r\n"} {
			_, err := conn.Write([]byte(line))
			if err == nil {
				_, err = conn.Read(buf)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	c := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true}) // who it is for is looked at by the caller
	if err := c.HandshakeContext(t.Context()); err != nil {
		t.Fatalf("handshake with %s for %q: %v", addr, name, err)
	}
	return c.ConnectionState().PeerCertificates[0]
}

// answerDNS says 127.0.0.1 to whoever asks for any name, over TCP as Pebble does.
func answerDNS(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
				for answerOne(conn) == nil {
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func answerOne(conn net.Conn) error {
	var size uint16
	if err := stdbinary.Read(conn, stdbinary.BigEndian, &size); err != nil {
		return err
	}
	buf := make([]byte, size)
	if _, err := io.ReadFull(conn, buf); err != nil {
		return err
	}
	var m dnsmessage.Message
	if err := m.Unpack(buf); err != nil {
		return err
	}
	m.Response, m.Additionals = true, nil
	for _, q := range m.Questions {
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			})
		}
	}
	b, err := m.Pack()
	if err == nil {
		_, err = conn.Write(append(stdbinary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
	}
	return err
}

// pebble is a CA on this machine.
type pebble struct {
	t                       *testing.T
	dir, dns                string
	port, roots, challenges int
	validity                int // of certificates, seconds
	cmd                     *exec.Cmd
}

// build makes the program of the module in pebble.mod: the bridge's own modules know nothing of it.
func (p *pebble) build() {
	p.t.Helper()
	out, err := exec.Command("go", "build", "-modfile=pebble.mod", "-o", filepath.Join(p.dir, "pebble"), "github.com/letsencrypt/pebble/v2/cmd/pebble").CombinedOutput()
	switch {
	case err == nil:
	case os.Getenv("SMTPBRIDGE_REQUIRE_CLIENTS") != "":
		p.t.Fatalf("build Pebble: %v\n%s", err, out)
	default:
		p.t.Skipf("Pebble cannot be built here: %v\n%s", err, out)
	}
}

func (p *pebble) start() {
	p.t.Helper()
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", p.port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", p.roots),
		"certificate": filepath.Join(p.dir, "cert.pem"), "privateKey": filepath.Join(p.dir, "key.pem"), "httpPort": p.challenges, "tlsPort": 1,
		"domainBlocklist": []string{"blocked.example.com"}, "keyAlgorithm": "ecdsa", "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"default": map[string]any{"description": "short", "validityPeriod": p.validity}},
	}})
	if err == nil {
		err = os.WriteFile(filepath.Join(p.dir, "pebble.json"), config, 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	var out lockedBuffer
	p.cmd = exec.Command(filepath.Join(p.dir, "pebble"), "-config", filepath.Join(p.dir, "pebble.json"), "-dnsserver", p.dns)
	p.cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=20")
	p.cmd.Stdout, p.cmd.Stderr = &out, &out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		p.stop()
		if p.t.Failed() {
			p.t.Logf("log of Pebble:\n%s", tail(out.String(), 8000))
		}
	})
	until(p.t, 20*time.Second, "Pebble answers", func() bool { return p.root() != nil })
}

func (p *pebble) stop() {
	if p.cmd != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait() // killed
		p.cmd = nil
	}
}

// root gives the CA's own certificate, nil when it does not answer.
func (p *pebble) root() []byte {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/roots/0", p.roots))
	if err != nil {
		return nil
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || !bytes.Contains(b, []byte("BEGIN CERTIFICATE")) {
		return nil
	}
	return b
}

func (p *pebble) rootsFile() string {
	p.t.Helper()
	file := filepath.Join(p.dir, "roots.pem")
	if err := os.WriteFile(file, p.root(), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return file
}
