package certs

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const directory = "https://ca.example/dir"

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// makeCert makes a key and its certificate, as they are stored.
func makeCert(t *testing.T, name string, from time.Time, life time.Duration) []byte {
	t.Helper()
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotBefore: from, NotAfter: from.Add(life)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public().(*ecdsa.PublicKey), key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := encodeKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
}

// keeper makes one with stored certificates of 90 days for names, and a clock.
func keeper(t *testing.T, names ...string) (*Keeper, *time.Time, *bytes.Buffer) {
	t.Helper()
	now := start
	var log bytes.Buffer
	k := New(filepath.Join(t.TempDir(), "acme"), slog.New(slog.NewTextHandler(&log, nil)), func() time.Time { return now })
	for _, n := range names {
		if err := newStore(k.dir, directory).putCert(n, makeCert(t, n, start, 90*24*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	return k, &now, &log
}

func TestGet(t *testing.T) {
	k, _, _ := keeper(t, "a.example", "b.example")
	k.Use(Authority{Directory: directory}, []string{"a.example", "b.example", "new.example"})
	get := k.Get([]string{"a.example", "b.example", "new.example"})
	for _, tt := range []struct{ asked, want string }{
		{"a.example", "a.example"},
		{"b.example", "b.example"},
		{"B.Example", "b.example"},
		{"b.example.", "b.example"},
		{"", "a.example"},
		{"elsewhere.example", "a.example"},
		{"new.example", ""},
	} {
		cert, err := get(&tls.ClientHelloInfo{ServerName: tt.asked})
		switch {
		case tt.want == "" && err == nil:
			t.Errorf("%q gets a certificate of another name", tt.asked)
		case tt.want != "" && (err != nil || cert.Leaf.VerifyHostname(tt.want) != nil):
			t.Errorf("%q: %v, want the certificate of %s", tt.asked, err, tt.want)
		}
	}
	// Another place shows its own names only.
	if cert, err := k.Get([]string{"b.example"})(&tls.ClientHelloInfo{ServerName: "a.example"}); err != nil || cert.Leaf.VerifyHostname("b.example") != nil {
		t.Errorf("a place of b.example alone gives a client of a.example %v, %v", cert, err)
	}
}

// A certificate is renewed when a third of its time is left, and a stored one counts after a restart.
func TestDue(t *testing.T) {
	k, now, _ := keeper(t, "a.example")
	k.Use(Authority{Directory: directory}, []string{"a.example"})
	for _, tt := range []struct {
		day int
		due bool
	}{{0, false}, {59, false}, {60, true}, {89, true}, {95, true}} {
		*now = start.AddDate(0, 0, tt.day)
		if _, wait := k.due(); (wait <= 0) != tt.due {
			t.Errorf("day %d of 90: due in %v, want due %v", tt.day, wait, tt.due)
		}
	}
	if name, wait := k.due(); name != "a.example" || wait > 0 {
		t.Errorf("next is %q in %v", name, wait)
	}
	*now = start
	k.Use(Authority{Directory: directory}, []string{"a.example", "new.example"})
	if name, wait := k.due(); name != "new.example" || wait > 0 {
		t.Errorf("a new name is due in %v (%s)", wait, name)
	}
	// Another CA is asked at once; until it answers the certificate of the first is in use, but not after a restart.
	other := Authority{Directory: "https://ca.example/other"}
	k.Use(other, []string{"a.example"})
	if name, wait := k.due(); name != "a.example" || wait > 0 {
		t.Errorf("with another CA %q is due in %v", name, wait)
	}
	if _, err := k.Get([]string{"a.example"})(&tls.ClientHelloInfo{}); err != nil {
		t.Errorf("with another CA handshakes fail at once: %v", err)
	}
	again := New(k.dir, k.log, k.now)
	again.Use(other, []string{"a.example"})
	if _, err := again.Get([]string{"a.example"})(&tls.ClientHelloInfo{}); err == nil {
		t.Error("after a restart the certificate of another CA is used")
	}
}

// Let's Encrypt refuses a name for an hour after five failed validations within one.
func TestWaitsKeepBelowTheLimit(t *testing.T) {
	k, now, log := keeper(t)
	k.Use(Authority{Directory: directory}, []string{"a.example"})
	var tries []time.Time
	for range 30 {
		tries = append(tries, *now)
		k.failed("a.example", k.states["a.example"], errors.New("no"))
		next := k.Status()[0].Next
		if d := next.Sub(*now); d < time.Minute || d > 5*time.Hour {
			t.Fatalf("after failure %d the next try is %v away", len(tries), d)
		}
		*now = next
	}
	for i := 5; i < len(tries); i++ {
		if d := tries[i].Sub(tries[i-5]); d < time.Hour {
			t.Errorf("six tries within %v, from the %d. on", d, i-4)
		}
	}
	if !strings.Contains(log.String(), "event=tls.obtain_failed name=a.example attempt=30 next_try=") {
		t.Errorf("the log says %s", tail(log.String()))
	}
}

// A CA that says when to come again is heard.
func TestRetryAfter(t *testing.T) {
	calls := 0
	ca := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		calls++
		w.Header().Set("Retry-After", "86400")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusTooManyRequests)
		fmt.Fprint(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates already issued"}`)
	}))
	defer ca.Close()
	k, now, log := keeper(t)
	k.Use(Authority{Directory: ca.URL, Client: ca.Client()}, []string{"a.example"})
	k.attempt(t.Context(), "a.example")
	st := k.Status()[0]
	if d := st.Next.Sub(*now); d < 24*time.Hour {
		t.Errorf("the next try is %v away, the CA said a day", d)
	}
	if calls != 1 || !strings.Contains(log.String(), "too many certificates already issued") {
		t.Errorf("%d calls, log %s", calls, tail(log.String()))
	}
}

// A renewal that fails leaves the old certificate in use, even when it has expired.
func TestFailedRenewal(t *testing.T) {
	k, now, log := keeper(t, "a.example")
	k.Use(Authority{Directory: directory}, []string{"a.example"})
	*now = start.AddDate(0, 0, 91)
	k.failed("a.example", k.states["a.example"], errors.New("no"))
	if _, err := k.Get([]string{"a.example"})(&tls.ClientHelloInfo{}); err != nil {
		t.Errorf("the old certificate is no longer used: %v", err)
	}
	if st := k.Status()[0]; !st.Has || st.Failures != 1 || st.Err == nil {
		t.Errorf("the status is %+v", st)
	}
	if !strings.Contains(log.String(), "could not be renewed: the old one stays in use") {
		t.Errorf("the log says %s", tail(log.String()))
	}
}

// What is stored and cannot be used is asked for anew, and the reason is said.
func TestUnusableFiles(t *testing.T) {
	good := makeCert(t, "a.example", start, time.Hour)
	for _, tt := range []struct {
		name string
		text []byte
	}{
		{"empty", nil},
		{"cut off", good[:len(good)-100]},
		{"another name", makeCert(t, "b.example", start, time.Hour)},
		{"another key", append(makeCert(t, "a.example", start, time.Hour)[:200:200], good...)},
	} {
		k, _, log := keeper(t)
		if err := newStore(k.dir, directory).putCert("a.example", tt.text); err != nil {
			t.Fatal(err)
		}
		k.Use(Authority{Directory: directory}, []string{"a.example"})
		if _, wait := k.due(); wait > 0 || !strings.Contains(log.String(), "event=tls.stored_unusable name=a.example") {
			t.Errorf("%s: due in %v, log %s", tt.name, wait, log.String())
		}
	}
}

// The account's key is made once, and an account file that cannot be read is never replaced.
func TestAccountKey(t *testing.T) {
	dir := t.TempDir()
	st := newStore(dir, directory)
	first, err := st.accountKey()
	if err != nil {
		t.Fatal(err)
	}
	second, err := st.accountKey()
	if err != nil || !first.(*ecdsa.PrivateKey).Equal(second) {
		t.Errorf("the second key differs from the first: %v", err)
	}
	file := filepath.Join(string(st), "account.key")
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", fi.Mode(), err)
	}
	if err := os.WriteFile(file, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := st.accountKey(); err == nil {
		t.Error("a damaged account key is taken for none")
	}
	if left, err := filepath.Glob(filepath.Join(string(st), ".new-*")); err != nil || len(left) > 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// Only open challenges are answered.
func TestChallenges(t *testing.T) {
	k, _, _ := keeper(t)
	const path = "/.well-known/acme-challenge/token"
	k.proofs[path] = "token.thumbprint"
	for _, tt := range []struct {
		method, path string
		code         int
		body         string
	}{
		{http.MethodGet, path, 200, "token.thumbprint"},
		{http.MethodPost, path, 404, ""},
		{http.MethodGet, path + "2", 404, ""},
		{http.MethodGet, "/.well-known/acme-challenge/", 404, ""},
		{http.MethodGet, "/", 404, ""},
	} {
		w := httptest.NewRecorder()
		k.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if w.Code != tt.code || tt.body != "" && w.Body.String() != tt.body {
			t.Errorf("%s %s: %d %q", tt.method, tt.path, w.Code, w.Body)
		}
	}
}

func tail(s string) string { return s[max(0, len(s)-500):] }
