package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// makePair makes a certificate for 127.0.0.1 with the serial number n, as PEM texts.
func makePair(t *testing.T, n int64, useRSA bool) (cert, key []byte) {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(n), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	var priv any
	var der []byte
	var err error
	if useRSA { // old devices know no other
		var k *rsa.PrivateKey
		if k, err = rsa.GenerateKey(rand.Reader, 2048); err == nil {
			priv = k
			der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
		}
	} else {
		var k *ecdsa.PrivateKey
		if k, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err == nil {
			priv = k
			der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	b, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: b})
}

// put replaces a file as a renewal does: whole, by renaming.
func put(t *testing.T, file string, data []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// A renewed certificate is used by the next handshake, sessions go on, and a pair that does not fit changes nothing.
func TestCertificateReload(t *testing.T) {
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(cert, key []byte) {
		put(t, certFile, cert)
		put(t, keyFile, key)
	}
	cert1, key1 := makePair(t, 1, false)
	cert2, key2 := makePair(t, 2, false)
	write(cert1, key1)
	now := time.Unix(1e9, 0)
	var log bytes.Buffer
	pair, err := newKeyPair(certFile, keyFile, slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	if err != nil {
		t.Fatal(err)
	}
	// session makes a handshake and returns the client's end; the server echoes.
	session := func() *tls.Conn {
		a, b := net.Pipe()
		server := tls.Server(a, serverTLS(pair.get, tls.VersionTLS12))
		go func() {
			defer server.Close()
			buf := make([]byte, 10)
			for {
				n, err := server.Read(buf)
				if err != nil {
					return
				}
				if _, err := server.Write(buf[:n]); err != nil {
					return
				}
			}
		}()
		client := tls.Client(b, &tls.Config{InsecureSkipVerify: true})
		if err := client.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return client
	}
	serial := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
	first, before := session(), int64(1)
	for _, step := range []struct {
		name   string
		change func()
		want   int64
		errors int // logged so far
	}{
		{"nothing changed", func() {}, 1, 0},
		{"new certificate, old key", func() { put(t, certFile, cert2) }, 1, 1},
		{"still", func() {}, 1, 1},
		{"new key", func() { put(t, keyFile, key2) }, 2, 1},
		{"no certificate", func() { put(t, certFile, []byte("garbage")) }, 2, 2},
		{"no file", func() { os.Remove(certFile) }, 2, 3},
		{"old pair again", func() { write(cert1, key1) }, 1, 3},
	} {
		step.change()
		if got := serial(session()); got != before {
			t.Errorf("%s: within a second of the last look the certificate changed to %d", step.name, got)
		}
		now = now.Add(certEvery)
		if got := serial(session()); got != step.want {
			t.Errorf("%s: certificate %d, want %d", step.name, got, step.want)
		}
		if got := strings.Count(log.String(), "event=tls.reload_failed"); got != step.errors {
			t.Errorf("%s: %d errors logged, want %d:\n%s", step.name, got, step.errors, log.String())
		}
		before = step.want
	}
	if strings.Contains(log.String(), "PRIVATE") {
		t.Errorf("the log holds a key: %s", log.String())
	}
	if _, err := first.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4)
	if _, err := first.Read(buf); err != nil || string(buf) != "ping" {
		t.Errorf("the session from before the changes: %q, %v", buf, err)
	}
}

// min_tls is a floor for each listener of its own, and an old device gets through where it is lowered.
func TestTLSFloors(t *testing.T) {
	dir := shortTemp(t)
	cert, key := makePair(t, 1, true)
	put(t, filepath.Join(dir, "cert.pem"), cert)
	put(t, filepath.Join(dir, "key.pem"), key)
	more := ""
	for _, v := range []string{"1.0", "1.1", "1.2", "1.3"} {
		more += fmt.Sprintf("[[listener]]\nname = %q\naddress = \"127.0.0.1:0\"\ntls = \"starttls\"\nmin_tls = %q\ncert_file = \"cert.pem\"\nkey_file = \"key.pem\"\n", v, v)
	}
	b, err := NewBridge(t.Context(), writeConfig(t, dir, "127.0.0.1:0", more+"[webhook]\naddress = \"\"\n"), quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	defer func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	clients := []struct {
		name    string
		version uint16
		suites  []uint16
	}{
		{"a printer of 2008 with RSA key exchange", tls.VersionTLS10, []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}},
		{"TLS 1.0", tls.VersionTLS10, []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA}},
		{"TLS 1.1", tls.VersionTLS11, []uint16{tls.TLS_RSA_WITH_AES_256_CBC_SHA}},
		{"TLS 1.2", tls.VersionTLS12, nil},
		{"TLS 1.3", tls.VersionTLS13, nil},
	}
	for _, floor := range []string{"1.0", "1.1", "1.2", "1.3"} {
		for _, cl := range clients {
			err := startTLS(b.SMTPAddr(floor).String(), &tls.Config{
				InsecureSkipVerify: true, MinVersion: cl.version, MaxVersion: cl.version, CipherSuites: cl.suites,
			})
			if want := cl.version >= tlsVersions[floor]; (err == nil) != want {
				t.Errorf("min_tls %s, %s: %v, want success %v", floor, cl.name, err, want)
			}
		}
	}
	// A modern listener does not offer a device's weak suites.
	err = startTLS(b.SMTPAddr("1.2").String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_RSA_WITH_AES_128_CBC_SHA}})
	if err == nil {
		t.Error("min_tls 1.2 accepts RSA key exchange")
	}
}

// startTLS makes a STARTTLS handshake and says EHLO over it.
func startTLS(addr string, config *tls.Config) error {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := textproto.NewConn(conn)
	say := func(line string, code int) error {
		if line != "" {
			if err := c.PrintfLine("%s", line); err != nil {
				return err
			}
		}
		_, _, err := c.ReadResponse(code)
		return err
	}
	for _, step := range []struct {
		line string
		code int
	}{{"", 220}, {"EHLO printer", 250}, {"STARTTLS", 220}} {
		if err := say(step.line, step.code); err != nil {
			return err
		}
	}
	secure := tls.Client(conn, config)
	if err := secure.Handshake(); err != nil {
		return err
	}
	c = textproto.NewConn(secure)
	return say("EHLO printer", 250)
}

// A person should look when whoever renews a certificate is late: with a sixth of its time left, two weeks at most.
func TestExpiring(t *testing.T) {
	day := 24 * time.Hour
	for _, tt := range []struct {
		life, left time.Duration
		want       bool
	}{
		{90 * day, 31 * day, false},
		{90 * day, 15 * day, false},
		{90 * day, 13 * day, true},
		{90 * day, -day, true},
		{6 * day, 2 * day, false},
		{6 * day, 20 * time.Hour, true},
		{3650 * day, 20 * day, false},
		{3650 * day, 13 * day, true},
	} {
		now := time.Unix(1e9, 0)
		c := &x509.Certificate{NotBefore: now.Add(tt.left - tt.life), NotAfter: now.Add(tt.left)}
		if got := expiring(c, now); got != tt.want {
			t.Errorf("%v left of %v: %v, want %v", tt.left, tt.life, got, tt.want)
		}
	}
}
