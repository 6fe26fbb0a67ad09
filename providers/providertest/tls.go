package providertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"smtpbridge/internal/safehttp"
	"smtpbridge/providers"
)

// authority is a certificate authority of the suite.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) authority {
	t.Helper()
	a := authority{cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "suite"}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}}
	a.cert, a.key = a.sign(t, a.cert)
	return a
}

// sign makes a certificate; the authority's own when it has no key yet.
func (a authority) sign(t testing.TB, c *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer := a.key
	if signer == nil {
		signer = key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	made, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return made, key
}

// tls offers servers that must not be given a key or a mail, and one that may have both.
func (s Suite) tls(t *testing.T) {
	ours, other := newAuthority(t), newAuthority(t)
	roots := x509.NewCertPool()
	roots.AddCert(ours.cert)
	const day = 24 * time.Hour
	for _, tt := range []struct {
		name        string
		ca          authority
		host        string
		begin, end  time.Duration // of the certificate, from now
		max         uint16        // TLS version
		clear, good bool
	}{
		{name: "good", ca: ours, host: "127.0.0.1", begin: -day, end: day, good: true},
		{name: "unknown authority", ca: other, host: "127.0.0.1", begin: -day, end: day},
		{name: "expired", ca: ours, host: "127.0.0.1", begin: -2 * day, end: -day},
		{name: "not valid yet", ca: ours, host: "127.0.0.1", begin: day, end: 2 * day},
		{name: "another name", ca: ours, host: "127.0.0.2", begin: -day, end: day},
		{name: "old version", ca: ours, host: "127.0.0.1", begin: -day, end: day, max: tls.VersionTLS11},
		{name: "clear text", clear: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := &recorder{reply: func(*Call) Answer { return s.Success[0] }}
			srv := httptest.NewUnstartedServer(rec)
			srv.Config.ErrorLog = log.New(io.Discard, "", 0)
			if tt.clear {
				srv.Start()
			} else {
				cert, key := tt.ca.sign(t, &x509.Certificate{
					SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(tt.begin), NotAfter: time.Now().Add(tt.end), IPAddresses: []net.IP{net.ParseIP(tt.host)},
				})
				srv.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{cert.Raw}, PrivateKey: key}}, MinVersion: tls.VersionTLS10, MaxVersion: tt.max}
				srv.StartTLS()
			}
			defer srv.Close()
			client, err := safehttp.New(safehttp.Config{Proxy: "none", RootCAs: roots})
			if err != nil {
				t.Fatal(err)
			}
			defer client.CloseIdleConnections()
			o := s.options(t, strings.Replace(srv.URL, "http://", "https://", 1), http.DefaultTransport)
			o.Client = client
			p, err := s.Info.New(o)
			if err != nil {
				t.Fatal(err)
			}
			_, err = p.Send(t.Context(), Plain(t, p.Capabilities(), 1))
			n := len(rec.taken())
			if tt.good {
				if err != nil || n != 1 {
					t.Fatalf("%d requests, %v", n, err)
				}
				return
			}
			if e := asError(t, tt.name, err); e.Kind != providers.Transient || n != 0 {
				t.Errorf("got %v and %d requests, want Transient and none", e, n)
			}
		})
	}
}
