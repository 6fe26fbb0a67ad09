package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"smtpbridge/admin"
)

// certEvery is how long a certificate is used before its files are looked at again.
const certEvery = time.Second

// keyPair is a certificate and its key in files that a renewal may replace at any time. Each handshake
// uses what is in the files; sessions that run are not touched. A pair that cannot be used, such as a new certificate
// with the old key, is logged once and the last good one stays in use.
type keyPair struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time

	mu     sync.Mutex
	cert   *tls.Certificate
	seen   [2]fileStamp // of what was loaded last, good or bad
	looked time.Time
}

// fileStamp tells whether a file is still the same.
type fileStamp struct {
	inode    uint64
	size     int64
	modified time.Time
	missing  bool
}

func newKeyPair(certFile, keyFile string, log *slog.Logger, now func() time.Time) (*keyPair, error) {
	k := &keyPair{certFile: certFile, keyFile: keyFile, log: log, now: now}
	k.looked, k.seen = now(), k.stamps()
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	k.cert = &cert
	return k, err
}

// getCertificate finds the certificate of a handshake; see tls.Config.
type getCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// certificate gives the newest certificate of a listener ("" = the admin address): by ACME, or from its files.
func (b *Bridge) certificate(listener string, names []string, certFile, keyFile string) (getCertificate, error) {
	get := b.certs.Get(names)
	if len(names) == 0 {
		pair, err := newKeyPair(certFile, keyFile, b.log.With("listener", cmp.Or(listener, "admin")), time.Now)
		if err != nil {
			return nil, err
		}
		get = pair.get
	}
	b.inUse.Store(listener, get)
	return get, nil
}

// servedCert is a certificate as a handshake gets it.
type servedCert struct {
	listener, name string
	*x509.Certificate
}

// servedCerts lists the certificates of every socket of this process; what is not there yet is left out.
func (b *Bridge) servedCerts() (out []servedCert) {
	cfg := b.intake.now.Load().cfg
	add := func(listener string, names []string) {
		get, ok := b.inUse.Load(listener)
		if !ok {
			return
		}
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			if cert, err := get.(getCertificate)(&tls.ClientHelloInfo{ServerName: name}); err == nil {
				out = append(out, servedCert{listener, name, cert.Leaf})
			}
		}
	}
	for _, l := range cfg.Listeners {
		if b.roles.has(roleSMTP) && l.TLS != "off" {
			add(l.Name, l.ACME)
		}
	}
	if b.adminTLS.Load() != nil {
		add("", cfg.Admin.ACME)
	}
	return out
}

// watchedCerts is servedCerts for the metrics.
func (b *Bridge) watchedCerts() (out []admin.Certificate) {
	for _, c := range b.servedCerts() {
		out = append(out, admin.Certificate{Listener: c.listener, Name: c.name, NotAfter: c.NotAfter})
	}
	return out
}

// certTrouble says what a person should look at: certificates that are missing, and those nobody renewed in good time.
func (b *Bridge) certTrouble() string {
	var out []string
	why := map[string]error{}
	for _, s := range b.certs.Status() {
		why[s.Name] = s.Err
		if !s.Has && s.Failures > 1 { // one failure may be a network that is not up yet
			out = append(out, fmt.Sprintf("there is no certificate for %s: %v", s.Name, s.Err))
		}
	}
	now := time.Now()
	for _, c := range b.servedCerts() {
		if !expiring(c.Certificate, now) {
			continue
		}
		text := fmt.Sprintf("the certificate of %s expires at %s", cmp.Or(c.name, c.listener, "[admin]"), c.NotAfter.UTC().Format(time.RFC3339))
		if err := why[c.name]; err != nil {
			text += ": " + err.Error()
		}
		out = append(out, text)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), "; ")
}

// expiring reports whether whoever renews a certificate is late: most do it when a third of its time is left.
func expiring(c *x509.Certificate, now time.Time) bool {
	return c.NotAfter.Sub(now) < min(14*24*time.Hour, c.NotAfter.Sub(c.NotBefore)/6)
}

func serverTLS(get getCertificate, min uint16) *tls.Config {
	return &tls.Config{GetCertificate: get, MinVersion: min, CipherSuites: cipherSuites(min)}
}

func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if d := now.Sub(k.looked); d >= 0 && d < certEvery {
		return k.cert, nil
	}
	k.looked = now
	stamps := k.stamps() // before loading: what changes after this is seen the next time
	if stamps == k.seen {
		return k.cert, nil
	}
	k.seen = stamps
	cert, err := tls.LoadX509KeyPair(k.certFile, k.keyFile)
	if err != nil {
		k.log.Error("the changed certificate cannot be used: the old one stays in use", "event", "tls.reload_failed", "cert_file", k.certFile, "err", err)
		return k.cert, nil
	}
	k.log.Info("certificate reloaded", "event", "tls.reloaded", "cert_file", k.certFile, "valid_until", cert.Leaf.NotAfter)
	k.cert = &cert
	return k.cert, nil
}

func (k *keyPair) stamps() (s [2]fileStamp) {
	for i, name := range []string{k.certFile, k.keyFile} {
		fi, err := os.Stat(name)
		if err != nil {
			s[i].missing = true
			continue
		}
		s[i] = fileStamp{inode: inode(fi), size: fi.Size(), modified: fi.ModTime()}
	}
	return s
}

func inode(fi fs.FileInfo) uint64 {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return st.Ino
	}
	return 0
}

// cipherSuites are Go's own for TLS 1.2 and later. Devices that need less than that often know no Diffie-Hellman over
// elliptic curves: they are offered AES with RSA key exchange, after all the better ones. RC4 and 3DES stay off.
func cipherSuites(min uint16) []uint16 {
	if min >= tls.VersionTLS12 {
		return nil
	}
	var ids []uint16
	for _, c := range tls.CipherSuites() {
		ids = append(ids, c.ID)
	}
	return append(ids, tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_AES_128_CBC_SHA)
}
