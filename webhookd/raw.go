package webhookd

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// cut stands where mail text was.
const cut = "<cut>"

// alwaysPrivate are names that hold mail text wherever they occur; a provider's Info adds to them.
var alwaysPrivate = []string{"htmlbody", "textbody", "html_body", "text_body", "body_html", "body_plain", "mime", "raw_msg", "raw_mime"}

// cutter takes mail text out of a body.
type cutter struct {
	private map[string]bool // names of fields with mail text, lower case
	keep    func(field, text string) string
}

func newCutter(w providers.Webhook) cutter {
	c := cutter{private: make(map[string]bool, len(alwaysPrivate)+len(w.Private)), keep: w.Keep}
	for _, list := range [][]string{alwaysPrivate, w.Private} {
		for _, n := range list {
			c.private[strings.ToLower(n)] = true
		}
	}
	return c
}

// has reports whether the field holds mail text.
func (c cutter) has(field string) bool { return c.private[strings.ToLower(field)] }

// left is what stays of a private field.
func (c cutter) left(field, text string) string {
	if c.keep != nil {
		if s := c.keep(strings.ToLower(field), text); s != "" {
			return s
		}
	}
	return cut
}

func newBuffer(n int64) *bytes.Buffer { return bytes.NewBuffer(make([]byte, 0, n)) }

// rawRequest is the request as it is kept: without credentials and mail text. Its id is derived
// from its content, so that a request that comes twice is kept once.
func (a *account) rawRequest(kind string, r *http.Request, body []byte, now time.Time) *store.RawRequest {
	raw := &store.RawRequest{
		Account: a.Name, Kind: kind, Method: r.Method, URL: a.maskURL(r.URL),
		Header: a.maskHeader(r), Received: now,
		Body: a.cutter.body(r.Header.Get("Content-Type"), body),
	}
	raw.ID = event.FactID(a.Name, "request", kind, string(body))
	return raw
}

// credentialHeaders never enter the store.
var credentialHeaders = []string{"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "X-Api-Key", "X-Auth-Token"}

func (a *account) maskHeader(r *http.Request) map[string][]string {
	hd := r.Header.Clone()
	for _, k := range credentialHeaders {
		hd.Del(k)
	}
	for k, vs := range hd {
		for i, v := range vs {
			hd[k][i] = a.redact(v)
		}
	}
	if r.Host != "" {
		hd.Set("Host", r.Host) // some signatures cover it, and net/http keeps it apart
	}
	return hd
}

func (a *account) redact(s string) string {
	for _, l := range [][]secret.String{a.Secrets, a.InboundSecrets, a.BasicAuth, a.PathSecrets} {
		s = secret.Redact(s, l...)
	}
	return s
}

// maskURL is path and query with every secret replaced by ***.
func (a *account) maskURL(u *url.URL) string {
	segs := strings.Split(u.Path, "/")
	for i, seg := range segs {
		if oneOf(seg, a.PathSecrets) {
			segs[i] = "***"
		}
	}
	m := url.URL{Path: strings.Join(segs, "/")}
	s := strings.ReplaceAll(m.EscapedPath(), "%2A%2A%2A", "***")
	if u.RawQuery == "" {
		return s
	}
	pairs := strings.Split(u.RawQuery, "&")
	for i, p := range pairs {
		k, _, ok := strings.Cut(p, "=")
		if ok && credentialName(k) {
			pairs[i] = k + "=***"
		}
	}
	return s + "?" + a.redact(strings.Join(pairs, "&"))
}

// credentialName tells whether a query key looks like that of a credential.
func credentialName(k string) bool {
	k = strings.ToLower(k)
	for _, w := range []string{"secret", "token", "key", "auth", "pass", "pwd"} {
		if strings.Contains(k, w) {
			return true
		}
	}
	return false
}

// body replaces the values of private fields. Of a body that cannot be read to its end only the
// part that was read is kept.
func (c cutter) body(contentType string, body []byte) []byte {
	typ, params, _ := mime.ParseMediaType(contentType)
	switch first := bytes.TrimLeft(body, " \t\r\n"); {
	case typ == "application/x-www-form-urlencoded":
		return c.form(body)
	case typ == "multipart/form-data":
		return c.multipart(body, params["boundary"])
	case len(first) > 0 && (first[0] == '{' || first[0] == '['):
		return c.json(body)
	}
	return body
}

// json works on the text, so that all but the private values stays byte for byte as it came.
func (c cutter) json(body []byte) []byte {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var (
		out   bytes.Buffer
		done  int64  // body[:done] is in out
		stack []byte // '{' where a key is next, ':' where its value is, '['
	)
	value := func() { // a value has ended
		if n := len(stack); n > 0 && stack[n-1] == ':' {
			stack[n-1] = '{'
		}
	}
	for {
		tok, err := dec.Token()
		if err != nil {
			if errors.Is(err, io.EOF) && len(stack) == 0 {
				out.Write(body[done:])
			} else {
				out.Write(body[done:max(done, dec.InputOffset())])
			}
			return out.Bytes()
		}
		if d, ok := tok.(json.Delim); ok {
			switch d {
			case '{', '[':
				stack = append(stack, byte(d))
			default:
				stack = stack[:len(stack)-1]
				value()
			}
			continue
		}
		if n := len(stack); n == 0 || stack[n-1] != '{' {
			value()
			continue
		}
		key, _ := tok.(string)
		stack[len(stack)-1] = ':'
		if !c.has(key) {
			continue
		}
		keyEnd := dec.InputOffset()
		var v json.RawMessage
		if err := dec.Decode(&v); err != nil {
			out.Write(body[done:keyEnd])
			return out.Bytes()
		}
		value()
		if s := string(v); s == "null" || s == `""` {
			continue
		}
		end := dec.InputOffset()
		out.Write(body[done : end-int64(len(v))])
		left := cut
		var text string
		if v[0] == '"' && json.Unmarshal(v, &text) == nil {
			left = c.left(key, text)
		}
		out.Write(quote(left))
		done = end
	}
}

// quote writes a string as JSON; < and > stay as they are.
func quote(s string) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(s); err != nil {
		panic(err) // a string always marshals
	}
	return bytes.TrimSuffix(b.Bytes(), []byte{'\n'})
}

// form also looks into values that are JSON themselves (Mandrill posts them so).
func (c cutter) form(body []byte) []byte {
	pairs := strings.Split(string(body), "&")
	for i, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || v == "" {
			continue
		}
		name, err := url.QueryUnescape(k)
		text, terr := url.QueryUnescape(v)
		if err != nil || c.has(name) {
			pairs[i] = k + "=" + url.QueryEscape(c.left(name, text))
			continue
		}
		if terr == nil && len(text) > 0 && (text[0] == '{' || text[0] == '[') {
			if short := c.json([]byte(text)); string(short) != text {
				pairs[i] = k + "=" + url.QueryEscape(string(short))
			}
		}
	}
	return []byte(strings.Join(pairs, "&"))
}

func (c cutter) multipart(body []byte, boundary string) []byte {
	var out bytes.Buffer
	w := multipart.NewWriter(&out)
	if boundary == "" || w.SetBoundary(boundary) != nil {
		return []byte(cut)
	}
	for r := multipart.NewReader(bytes.NewReader(body), boundary); ; {
		p, err := r.NextRawPart()
		if err != nil {
			w.Close()
			return out.Bytes()
		}
		pw, err := w.CreatePart(p.Header)
		if err != nil {
			return out.Bytes()
		}
		text, err := io.ReadAll(p)
		if c.has(p.FormName()) || p.FileName() != "" {
			text = []byte(c.left(p.FormName(), string(text)))
		} else if first := bytes.TrimLeft(text, " \t\r\n"); len(first) > 0 && (first[0] == '{' || first[0] == '[') {
			text = c.json(text)
		}
		pw.Write(text) // a bytes.Buffer takes everything
		if err != nil {
			w.Close()
			return out.Bytes()
		}
	}
}
