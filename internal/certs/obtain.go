package certs

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/crypto/acme"
)

// obtain gets one certificate with a new key, as PEM too. Each attempt finds directory and account anew: what a CA forgot, such as
// the account, then mends itself.
func (k *Keeper) obtain(ctx context.Context, ca Authority, st store, name string) (*tls.Certificate, []byte, error) {
	accountKey, err := st.accountKey()
	if err != nil {
		return nil, nil, fmt.Errorf("the key of the ACME account: %w", err)
	}
	client := ca.client(accountKey)
	var contact []string
	if ca.Email != "" {
		contact = []string{"mailto:" + ca.Email}
	}
	if _, err := client.Register(ctx, &acme.Account{Contact: contact}, acme.AcceptTOS); err != nil && !errors.Is(err, acme.ErrAccountAlreadyExists) {
		return nil, nil, fmt.Errorf("the account at %s: %w", ca.Directory, err)
	}
	order, err := client.AuthorizeOrder(ctx, acme.DomainIDs(name))
	if err != nil {
		return nil, nil, fmt.Errorf("the order: %w", err)
	}
	for _, u := range order.AuthzURLs {
		if err := k.prove(ctx, client, u); err != nil {
			return nil, nil, err
		}
	}
	if order, err = client.WaitOrder(ctx, order.URI); err != nil {
		return nil, nil, fmt.Errorf("the order: %w", err)
	}
	key, err := newKey()
	if err != nil {
		return nil, nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{DNSNames: []string{name}}, key)
	if err != nil {
		return nil, nil, err
	}
	chain, _, err := client.CreateCertFromOrder(ctx, order, csr, true)
	if err != nil {
		return nil, nil, fmt.Errorf("the certificate: %w", err)
	}
	text, err := encodeKey(key)
	if err != nil {
		return nil, nil, err
	}
	for _, der := range chain {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	cert, err := parseCert(text, name)
	return cert, text, err
}

// Check asks for the CA's directory, and gives where its terms of service are, "none" when it has none.
func (ca Authority) Check(ctx context.Context) (terms string, err error) {
	dir, err := ca.client(nil).Discover(ctx)
	if err != nil {
		return "", fmt.Errorf("the directory %s: %w", ca.Directory, err)
	}
	return cmp.Or(dir.Terms, "none"), nil
}

func (ca Authority) client(account crypto.Signer) *acme.Client {
	return &acme.Client{Key: account, DirectoryURL: ca.Directory, HTTPClient: ca.Client, UserAgent: "smtpbridge", RetryBackoff: backoff}
}

// prove shows the CA that a name leads here.
func (k *Keeper) prove(ctx context.Context, client *acme.Client, authz string) error {
	z, err := client.GetAuthorization(ctx, authz)
	if err != nil {
		return fmt.Errorf("the authorization: %w", err)
	}
	if z.Status == acme.StatusValid {
		return nil
	}
	var offered []string
	var chal *acme.Challenge
	for _, c := range z.Challenges {
		offered = append(offered, c.Type)
		if c.Type == "http-01" {
			chal = c
		}
	}
	if chal == nil {
		return fmt.Errorf("the CA offers no http-01 challenge for %s, only %s", z.Identifier.Value, strings.Join(offered, ", "))
	}
	proof, err := client.HTTP01ChallengeResponse(chal.Token)
	if err != nil {
		return err
	}
	path := client.HTTP01ChallengePath(chal.Token)
	k.mu.Lock()
	k.proofs[path] = proof
	k.mu.Unlock()
	defer func() {
		k.mu.Lock()
		delete(k.proofs, path)
		k.mu.Unlock()
	}()
	if _, err := client.Accept(ctx, chal); err != nil {
		return fmt.Errorf("the challenge: %w", err)
	}
	_, err = client.WaitAuthorization(ctx, authz)
	return err
}

// backoff repeats a single call of an attempt: a worn-out nonce at once, a CA in trouble twice. Rate limits are the next attempt's matter.
func backoff(n int, _ *http.Request, resp *http.Response) time.Duration {
	switch {
	case n > 3 || resp.StatusCode == http.StatusTooManyRequests:
		return 0
	case resp.StatusCode == http.StatusBadRequest:
		return time.Millisecond
	}
	return time.Duration(n) * time.Second
}

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func encodeKey(key *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseCert reads a key and its chain, and makes sure that they are for the name.
func parseCert(text []byte, name string) (*tls.Certificate, error) {
	cert, err := tls.X509KeyPair(text, text)
	if err != nil {
		return nil, err
	}
	return &cert, cert.Leaf.VerifyHostname(name)
}
