package twin

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime/multipart"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// Form is how a webhook's variables are written; which one SMTPeter uses is not documented.
type Form uint8

// Forms of a webhook.
const (
	JSON Form = iota
	URLEncoded
	Multipart
)

// Webhook is a signed call of a type (failure, bounce, delivery, open, click, abuse) about recipient i of m, with further variables.
func (t *Twin) Webhook(ctx context.Context, target string, form Form, typ string, m Mail, i int, more map[string]string) (*http.Request, []byte, error) {
	now := t.o.Now()
	vars := map[string]string{"type": typ, "id": m.IDs[i]}
	if typ != "abuse" {
		maps.Copy(vars, map[string]string{
			"recipient": m.Recipients[i], "tags": strings.Join(m.Tags, ";"),
			"time": strconv.FormatInt(now.Unix(), 10), "timestamp": now.UTC().Format(time.DateTime),
		})
	}
	maps.Copy(vars, more)
	var body []byte
	contentType := "application/json"
	switch form {
	case URLEncoded:
		v := url.Values{}
		for k, s := range vars {
			v.Set(k, s)
		}
		body, contentType = []byte(v.Encode()), "application/x-www-form-urlencoded"
	case Multipart:
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		for _, k := range slices.Sorted(maps.Keys(vars)) {
			w.WriteField(k, vars[k]) // a bytes.Buffer takes everything
		}
		w.Close()
		body, contentType = b.Bytes(), w.FormDataContentType()
	default:
		var err error
		if body, err = json.Marshal(vars); err != nil {
			return nil, nil, err
		}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, target, bytes.NewReader(body))
	if err != nil {
		return nil, nil, err
	}
	r.Header.Set("Content-Type", contentType)
	return r, body, t.Sign(r, body)
}

// Covered are the fields a call's signature covers, as in the documentation's example.
var Covered = []string{"(request-target)", "Host", "Date", "Content-length", "Content-type", "X-Copernica-ID", "Digest", "X-nonce"}

// Sign signs a request as Copernica does.
func (t *Twin) Sign(r *http.Request, body []byte) error {
	t.mu.Lock()
	t.nonce++
	nonce := t.nonce
	t.mu.Unlock()
	sum := sha256.Sum256(body)
	r.Header.Set("Digest", "SHA-256="+base64.StdEncoding.EncodeToString(sum[:]))
	r.Header.Set("Date", t.o.Now().UTC().Format(http.TimeFormat))
	r.Header.Set("X-Copernica-ID", "environment-"+t.o.Environment)
	r.Header.Set("X-Nonce", fmt.Sprintf("n%x", nonce))
	return SignHeaders(r, len(body), t.o.Key, t.o.KeyID, "rsa-sha256", Covered)
}

// SignHeaders writes the Signature header (draft-cavage-http-signatures) over the fields given, as they stand.
func SignHeaders(r *http.Request, length int, key *rsa.PrivateKey, keyID, algorithm string, covered []string) error {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	lines := make([]string, len(covered))
	for i, name := range covered {
		value := r.Header.Get(name)
		switch strings.ToLower(name) {
		case "(request-target)":
			value = strings.ToLower(r.Method) + " " + r.URL.RequestURI()
		case "host":
			value = host
		case "content-length":
			value = strconv.Itoa(length)
		}
		lines[i] = strings.ToLower(name) + ": " + strings.TrimSpace(value)
	}
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
	sig, err := rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
	if err != nil {
		return err
	}
	r.Header.Set("Signature", fmt.Sprintf(`keyId="%s",algorithm="%s",headers="%s",signature="%s"`,
		keyID, algorithm, strings.Join(covered, " "), base64.StdEncoding.EncodeToString(sig)))
	return nil
}

// Post sends a webhook and gives the status of its answer.
func (t *Twin) Post(ctx context.Context, target string, form Form, typ string, m Mail, i int, more map[string]string) (int, error) {
	r, _, err := t.Webhook(ctx, target, form, typ, m, i, more)
	if err != nil {
		return 0, err
	}
	resp, err := t.o.Client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	return resp.StatusCode, err
}

// KeyRecord is the public key as a DNS TXT record in DKIM's form.
func (t *Twin) KeyRecord() string {
	der, err := x509.MarshalPKIXPublicKey(&t.o.Key.PublicKey)
	if err != nil {
		panic(err) // an RSA key can be written
	}
	return "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(der)
}

// BreakDNS makes look-ups fail, or work again.
func (t *Twin) BreakDNS(broken bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.noDNS = broken
}

func (t *Twin) lookup(name string) (string, error) {
	t.mu.Lock()
	broken := t.noDNS
	t.mu.Unlock()
	if broken {
		return "", errors.New("server misbehaving")
	}
	if !strings.EqualFold(strings.TrimSuffix(name, "."), t.o.KeyID) {
		return "", &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return t.KeyRecord(), nil
}

// LookupTXT answers for the twin's key, and for nothing else.
func (t *Twin) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	txt, err := t.lookup(name)
	if err != nil {
		return nil, err
	}
	return []string{txt}, nil
}

// ServeDNS answers TXT queries for the twin's key over UDP until c is closed, for a bridge whose [dns] server points here.
func (t *Twin) ServeDNS(c net.PacketConn) error {
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		var q dnsmessage.Message
		if q.Unpack(buf[:n]) != nil || len(q.Questions) != 1 {
			continue
		}
		if out, err := t.reply(q); err == nil {
			if _, err := c.WriteTo(out, from); err != nil && errors.Is(err, net.ErrClosed) {
				return nil
			}
		}
	}
}

func (t *Twin) reply(q dnsmessage.Message) ([]byte, error) {
	a := dnsmessage.Message{Header: dnsmessage.Header{ID: q.ID, Response: true, Authoritative: true, RecursionDesired: q.RecursionDesired, RecursionAvailable: true}, Questions: q.Questions}
	txt, err := t.lookup(q.Questions[0].Name.String())
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		a.RCode = dnsmessage.RCodeNameError
	case err != nil:
		a.RCode = dnsmessage.RCodeServerFailure
	case q.Questions[0].Type == dnsmessage.TypeTXT:
		var parts []string // of 255 octets at most: RFC 1035 3.3
		for ; len(txt) > 255; txt = txt[255:] {
			parts = append(parts, txt[:255])
		}
		a.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Questions[0].Name, Type: dnsmessage.TypeTXT, Class: dnsmessage.ClassINET, TTL: 60},
			Body:   &dnsmessage.TXTResource{TXT: append(parts, txt)},
		}}
	}
	return a.Pack()
}
