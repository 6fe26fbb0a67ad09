package main

import (
	"crypto/tls"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"syscall"
	"time"
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

// certificate gives the newest certificate of one place: by ACME, or from its files.
func (b *Bridge) certificate(names []string, certFile, keyFile string, log *slog.Logger) (getCertificate, error) {
	if len(names) > 0 {
		return b.certs.Get(names), nil
	}
	pair, err := newKeyPair(certFile, keyFile, log, time.Now)
	return pair.get, err
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
