// Package certs keeps TLS certificates that a certificate authority issues by ACME (RFC 8555): it asks for them, proves by http-01 that their
// names lead here, stores them, and renews them while the old ones are in use.
//
// Contract: only names given to Use are ever asked for. A handshake takes what is there, or fails at once: it never calls the CA,
// so that clients cannot use up its rate limits. A certificate is used until a newer one is complete. What failed is tried again,
// at intervals that stay below Let's Encrypt's limit of failed validations, and said with the CA's own reason.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
)

// attemptTime is how long one attempt may take, with all its calls and the CA's own.
const attemptTime = 5 * time.Minute

// lookEvery is how often certificates are looked at when nothing is due: a clock may jump.
const lookEvery = time.Hour

// waits are the times between attempts; the last one repeats. Let's Encrypt allows five failed validations of a name in an hour.
var waits = []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour}

// Authority is a CA and our account there.
type Authority struct {
	Directory string       // URL of its directory
	Email     string       // contact of the account, "" = none
	Client    *http.Client // for calls to it
}

// Keeper keeps certificates, one for each name.
type Keeper struct {
	dir     string
	log     *slog.Logger
	now     func() time.Time
	changed chan struct{}

	mu     sync.Mutex
	ca     Authority
	store  store
	states map[string]*state
	proofs map[string]string // key authorisations of open challenges, by URL path
}

// state is what is known of one name.
type state struct {
	cert     *tls.Certificate // nil: none yet
	failures int              // attempts since the last success
	err      error            // of the last attempt
	next     time.Time        // of the next attempt
}

// Status tells how it stands with one name.
type Status struct {
	Name     string
	Has      bool      // there is a certificate
	Failures int       // attempts since the last success
	Err      error     // why the last of them failed
	Next     time.Time // when the next one is made
}

// New makes a keeper with files below dir. It does nothing before Use and Run.
func New(dir string, log *slog.Logger, now func() time.Time) *Keeper {
	return &Keeper{dir: dir, log: log, now: now, changed: make(chan struct{}, 1), states: map[string]*state{}, proofs: map[string]string{}}
}

// Use says which names are kept from now on, and where their certificates come from. Stored certificates are in use when it
// returns; what failed before is tried at once.
func (k *Keeper) Use(ca Authority, names []string) {
	st := newStore(k.dir, ca.Directory)
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	before, moved := k.states, st != k.store
	k.ca, k.store, k.states = ca, st, map[string]*state{}
	for _, name := range names {
		s := before[name]
		if s == nil || moved {
			s = &state{cert: k.load(st, name)}
		}
		s.next = now
		switch old := before[name]; {
		case s.cert != nil:
			s.next = renewAt(s.cert)
		case moved && old != nil:
			s.cert = old.cert // until the new CA has given one
		}
		k.states[name] = s
	}
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// load takes a certificate up that was stored before; one that cannot be used is asked for anew.
func (k *Keeper) load(st store, name string) *tls.Certificate {
	cert, err := st.cert(name)
	switch {
	case errors.Is(err, errNone):
		return nil
	case err != nil:
		k.log.Warn("a stored certificate is not used: another one is asked for", "event", "tls.stored_unusable", "name", name, "err", err)
		return nil
	}
	return cert
}

// Get gives the certificate of the name a client asks for. Without a name, or with one that is not listed, it is that of the first.
func (k *Keeper) Get(names []string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	return func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
		if !slices.Contains(names, name) {
			name = names[0]
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		s := k.states[name]
		switch {
		case s == nil:
			return nil, fmt.Errorf("no certificate is kept for %s", name)
		case s.cert != nil:
			return s.cert, nil
		case s.err != nil:
			return nil, fmt.Errorf("no certificate for %s yet: the CA is asked again at %s", name, s.next.UTC().Format(time.RFC3339))
		}
		return nil, fmt.Errorf("no certificate for %s yet: the CA is being asked", name)
	}
}

// Status tells how it stands with each name.
func (k *Keeper) Status() []Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := make([]Status, 0, len(k.states))
	for name, s := range k.states {
		out = append(out, Status{Name: name, Has: s.cert != nil, Failures: s.failures, Err: s.err, Next: s.next})
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Run asks for certificates and renews them until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		name, wait := k.due()
		if wait <= 0 {
			k.attempt(ctx, name)
			continue
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-k.changed:
		case <-t.C:
		}
		t.Stop()
	}
	return nil
}

// due gives the name whose attempt comes next, and how long that is away.
func (k *Keeper) due() (name string, wait time.Duration) {
	now := k.now()
	k.mu.Lock()
	defer k.mu.Unlock()
	wait = lookEvery
	for n, s := range k.states {
		if d := s.next.Sub(now); d < wait {
			name, wait = n, d
		}
	}
	return name, wait
}

// attempt asks once for the certificate of a name.
func (k *Keeper) attempt(ctx context.Context, name string) {
	k.mu.Lock()
	s, ca, st := k.states[name], k.ca, k.store
	k.mu.Unlock()
	if s == nil {
		return // a reload came in between
	}
	call, cancel := context.WithTimeout(ctx, attemptTime)
	defer cancel()
	cert, text, err := k.obtain(call, ca, st, name)
	if err != nil {
		if ctx.Err() != nil {
			return // we stop
		}
		k.failed(name, s, err)
		return
	}
	if err := st.putCert(name, text); err != nil {
		k.log.Error("the certificate is used, but could not be stored: a restart asks for another", "event", "tls.store_failed", "name", name, "err", err)
	}
	k.mu.Lock()
	if k.states[name] != s { // a reload came in between
		k.mu.Unlock()
		return
	}
	renewal := s.cert != nil
	s.cert, s.err, s.failures, s.next = cert, nil, 0, renewAt(cert)
	k.mu.Unlock()
	k.log.Info("certificate obtained", "event", "tls.obtained", "name", name, "renewal", renewal, "issuer", cert.Leaf.Issuer.CommonName,
		"valid_until", cert.Leaf.NotAfter, "renew_at", renewAt(cert).UTC().Truncate(time.Second))
}

func (k *Keeper) failed(name string, s *state, err error) {
	k.mu.Lock()
	if k.states[name] != s { // a reload came in between
		k.mu.Unlock()
		return
	}
	wait := waits[min(s.failures, len(waits)-1)]
	wait += rand.N(wait / 10)
	var ae *acme.Error
	if errors.As(err, &ae) {
		if d, ok := acme.RateLimit(ae); ok {
			wait = max(wait, d)
		}
	}
	s.failures++
	s.err, s.next = err, k.now().Add(wait)
	attrs := []any{"event", "tls.obtain_failed", "name", name, "attempt", s.failures, "next_try", s.next.UTC().Truncate(time.Second), "err", err}
	cert := s.cert
	k.mu.Unlock()
	if cert == nil {
		k.log.Error("no certificate could be obtained: TLS handshakes fail until there is one", attrs...)
		return
	}
	k.log.Error("the certificate could not be renewed: the old one stays in use", append(attrs, "valid_until", cert.Leaf.NotAfter)...)
}

// ServeHTTP answers http-01 challenges (RFC 8555 8.3), and nothing else.
func (k *Keeper) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	proof, ok := k.proofs[r.URL.Path]
	k.mu.Unlock()
	if !ok || r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	_, _ = w.Write([]byte(proof)) // the CA sees when it did not come
}

// renewAt leaves a third of the lifetime for attempts: 30 days of 90, two of six.
func renewAt(c *tls.Certificate) time.Time {
	return c.Leaf.NotAfter.Add(-c.Leaf.NotAfter.Sub(c.Leaf.NotBefore) / 3)
}
