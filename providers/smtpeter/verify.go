package smtpeter

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"smtpbridge/providers"
)

const (
	environmentPrefix = "environment-"
	// keyDomain is where Copernica publishes its keys: https://www.smtpeter.com/en/documentation/webhook-security
	keyDomain = ".copernica.com"

	keyFresh     = time.Hour       // a key is taken from the cache for so long; the resolver tells no TTL
	keyStale     = 24 * time.Hour  // and so long while DNS does not answer: keys rotate monthly
	keyRetry     = time.Minute     // a name without a key, or a key that did not fit, is not asked for again before
	keyTimeout   = 5 * time.Second // of one look-up
	keyCacheSize = 64              // names; only copernica.com's count
	minKeyBits   = 1024            // RFC 8301 3.2
	maxSignature = 16 << 10        // bytes of the Signature header
)

// required must be covered by the signature, as the documentation says. The reference verifiers ask for further
// fields, each for others, so these and no more.
var required = []string{"(request-target)", "host", "date", "x-copernica-id", "digest"}

func refuse(format string, args ...any) error {
	return fmt.Errorf("%w: %s", providers.ErrSignature, fmt.Sprintf(format, args...))
}

// VerifyWebhook checks a request by draft-cavage-http-signatures with RSA and SHA-256. All that needs no key is
// checked before DNS is asked. A request that comes twice within the window verifies twice: its event has the
// same id, which the store drops, over restarts too; an in-memory list of nonces could only do less, and would refuse
// the ESP's own repeat.
func (p *provider) VerifyWebhook(r *http.Request, body []byte) error {
	if p.environment == "" {
		return refuse("the account has no environment setting, so whose webhook it is cannot be told")
	}
	s, err := parseSignature(r.Header.Values("Signature"))
	if err != nil {
		return err
	}
	for _, h := range required {
		if !slices.ContainsFunc(s.headers, func(x string) bool { return strings.EqualFold(x, h) }) {
			return refuse("%s is not covered by the signature", h)
		}
	}
	if got := r.Header.Get("X-Copernica-ID"); got != environmentPrefix+p.environment {
		return refuse("X-Copernica-ID is not the configured environment")
	}
	if err := checkDigest(r.Header.Values("Digest"), body); err != nil {
		return err
	}
	at, err := http.ParseTime(r.Header.Get("Date"))
	if err != nil {
		return refuse("Date is missing or unreadable")
	}
	if err := providers.CheckAge(p.now(), at, p.tolerance); err != nil {
		return err // before the key is looked up: replays shall not cost DNS queries
	}
	var texts [][]byte
	for _, target := range p.targets(r) {
		for _, host := range p.hosts(r) {
			text, err := signingText(s.headers, r, target, host, len(body))
			if err != nil {
				return err
			}
			texts = append(texts, text)
		}
	}
	fits := func(keys []*rsa.PublicKey) bool {
		for _, k := range keys {
			for _, text := range texts {
				sum := sha256.Sum256(text)
				if rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], s.value) == nil {
					return true
				}
			}
		}
		return false
	}
	keys, err := p.keys.get(r.Context(), s.keyID, false)
	if err != nil {
		return err
	}
	if fits(keys) {
		return nil
	}
	// The record may have changed since it was cached.
	if keys, err = p.keys.get(r.Context(), s.keyID, true); err == nil && fits(keys) {
		return nil
	}
	if errors.Is(err, providers.ErrUnavailable) {
		return err
	}
	return refuse("the key at %s does not fit", s.keyID)
}

// targets are the paths with query that may have been signed: that of the registered URL, as a proxy may
// have changed what arrives here, and that of the request.
func (p *provider) targets(r *http.Request) []string {
	own := r.URL.RequestURI()
	if p.hook == nil || p.hook.RequestURI() == own {
		return []string{own}
	}
	return []string{p.hook.RequestURI(), own}
}

// hosts are the spellings of our own name. With a registered URL no other name verifies.
func (p *provider) hosts(r *http.Request) []string {
	if p.hook == nil {
		return []string{r.Host}
	}
	out := []string{p.hook.Host}
	add := func(h string) {
		if !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	if port := p.hook.Port(); port == "" && p.hook.Scheme == "https" {
		add(p.hook.Host + ":443")
	} else if port == "443" {
		add(p.hook.Hostname())
	}
	if strings.EqualFold(r.Host, p.hook.Host) {
		add(r.Host)
	}
	add(strings.ToLower(p.hook.Host))
	return out
}

// signature is a parsed Signature header.
type signature struct {
	keyID   string
	headers []string
	value   []byte
}

// parseSignature scans name="value" pairs. QUIRK: the documentation's example is folded and lacks a
// comma, so what stands between two pairs does not matter.
func parseSignature(values []string) (*signature, error) {
	if len(values) != 1 || len(values[0]) > maxSignature {
		return nil, refuse("there is not one Signature header")
	}
	params := map[string]string{}
	for rest := values[0]; ; {
		i := strings.Index(rest, `="`)
		if i < 0 {
			break
		}
		name := rest[:i]
		if j := strings.LastIndexAny(name, " \t\r\n,"); j >= 0 {
			name = name[j+1:]
		}
		value, after, ok := strings.Cut(rest[i+2:], `"`)
		if !ok {
			return nil, refuse("the Signature header is cut")
		}
		key := strings.ToLower(name)
		if _, twice := params[key]; twice {
			return nil, refuse("the Signature header has %q twice", cut(key))
		}
		params[key], rest = value, after
	}
	// Never what the sender names: with hmac the public key would be the secret.
	if !strings.EqualFold(params["algorithm"], "rsa-sha256") {
		return nil, refuse("the algorithm is not rsa-sha256")
	}
	s := &signature{keyID: strings.ToLower(strings.TrimSuffix(params["keyid"], ".")), headers: strings.Fields(params["headers"])}
	if !strings.HasSuffix(s.keyID, keyDomain) || len(s.keyID) > 253 || strings.Trim(s.keyID, "abcdefghijklmnopqrstuvwxyz0123456789-_.") != "" || strings.Contains(s.keyID, "..") || s.keyID[0] == '.' {
		return nil, refuse("keyId is not a name under copernica.com")
	}
	if len(s.headers) == 0 || len(s.headers) > 50 {
		return nil, refuse("the signature names no headers, or too many")
	}
	var err error
	if s.value, err = base64.StdEncoding.DecodeString(strings.Join(strings.Fields(params["signature"]), "")); err != nil || len(s.value) == 0 {
		return nil, refuse("the signature is not base64")
	}
	return s, nil
}

func cut(s string) string { return s[:min(len(s), 64)] }

// checkDigest compares the body with the Digest header (RFC 3230, RFC 5843). Each entry of a strong algorithm must
// fit, and there must be one.
func checkDigest(values []string, body []byte) error {
	found := false
	for _, entry := range strings.Split(strings.Join(values, ","), ",") {
		alg, value, _ := strings.Cut(strings.TrimSpace(entry), "=")
		var want []byte
		switch strings.ToLower(alg) {
		case "sha-256":
			sum := sha256.Sum256(body)
			want = sum[:]
		case "sha-512":
			sum := sha512.Sum512(body)
			want = sum[:]
		default:
			continue
		}
		got, err := base64.StdEncoding.DecodeString(value)
		if err != nil || subtle.ConstantTimeCompare(got, want) != 1 {
			return refuse("Digest does not fit the body")
		}
		found = true
	}
	if !found {
		return refuse("Digest has neither SHA-256 nor SHA-512")
	}
	return nil
}

// signingText is the draft's signing string: one line per covered header, in the order given.
func signingText(headers []string, r *http.Request, target, host string, length int) ([]byte, error) {
	lines := make([]string, len(headers))
	for i, h := range headers {
		h = strings.ToLower(h)
		var value string
		switch h {
		case "(request-target)":
			value = strings.ToLower(r.Method) + " " + target
		case "host":
			value = host
		case "content-length":
			value = strconv.Itoa(length)
		default:
			values := r.Header.Values(h)
			if len(values) == 0 {
				return nil, refuse("a header named by the signature is missing")
			}
			trimmed := make([]string, len(values))
			for k, v := range values {
				trimmed[k] = strings.TrimSpace(v)
			}
			value = strings.Join(trimmed, ", ")
		}
		lines[i] = h + ": " + value
	}
	return []byte(strings.Join(lines, "\n")), nil
}

// keyring fetches public keys from DNS and keeps them for a while.
type keyring struct {
	resolver providers.Resolver
	now      func() time.Time

	mu   sync.Mutex
	keys map[string]*cachedKey
}

type cachedKey struct {
	keys []*rsa.PublicKey // none: the name has no usable key
	at   time.Time        // of the look-up
}

func newKeyring(r providers.Resolver, now func() time.Time) *keyring {
	return &keyring{resolver: r, now: now, keys: map[string]*cachedKey{}}
}

// get returns the keys of a name. again asks DNS once more for a key that did not fit. The error is ErrUnavailable
// when DNS does not answer and nothing is cached, ErrSignature when there is no such key.
func (k *keyring) get(ctx context.Context, name string, again bool) ([]*rsa.PublicKey, error) {
	now := k.now()
	k.mu.Lock()
	c := k.keys[name]
	k.mu.Unlock()
	if c != nil {
		age, limit := now.Sub(c.at), keyFresh
		if again || len(c.keys) == 0 {
			limit = keyRetry
		}
		if age >= 0 && age < limit {
			return c.answer(name)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, keyTimeout)
	defer cancel()
	records, err := k.resolver.LookupTXT(ctx, name)
	var dns *net.DNSError
	switch {
	case err == nil, errors.As(err, &dns) && dns.IsNotFound:
	default:
		if c != nil && len(c.keys) > 0 && now.Sub(c.at) < keyStale && !again {
			return c.keys, nil
		}
		return nil, fmt.Errorf("%w: the key at %s cannot be looked up", providers.ErrUnavailable, name)
	}
	c = &cachedKey{at: now}
	for _, txt := range records {
		if key := parseKey(txt); key != nil {
			c.keys = append(c.keys, key)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.keys) >= keyCacheSize {
		for n := range k.keys { // any one makes room: there are two or three real names
			delete(k.keys, n)
			break
		}
	}
	k.keys[name] = c
	return c.answer(name)
}

func (c *cachedKey) answer(name string) ([]*rsa.PublicKey, error) {
	if len(c.keys) == 0 {
		return nil, refuse("there is no RSA key at %s", name)
	}
	return c.keys, nil
}

// parseKey reads a key record in DKIM's form (RFC 6376 3.6.1); nil when it is none.
func parseKey(txt string) *rsa.PublicKey {
	tags := map[string]string{}
	for _, part := range strings.Split(txt, ";") {
		if k, v, ok := strings.Cut(part, "="); ok {
			tags[strings.ToLower(strings.TrimSpace(k))] = strings.Join(strings.Fields(v), "")
		}
	}
	if v := tags["v"]; v != "" && v != "DKIM1" {
		return nil
	}
	if t := tags["k"]; t != "" && !strings.EqualFold(t, "rsa") {
		return nil
	}
	der, err := base64.StdEncoding.DecodeString(tags["p"])
	if err != nil || len(der) == 0 {
		return nil
	}
	var key *rsa.PublicKey
	if k, err := x509.ParsePKIXPublicKey(der); err == nil {
		key, _ = k.(*rsa.PublicKey)
	} else if key, err = x509.ParsePKCS1PublicKey(der); err != nil {
		return nil
	}
	if key == nil || key.N.BitLen() < minKeyBits {
		return nil
	}
	return key
}
