package smtpeter

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/providertest"
	"smtpbridge/providers/smtpeter/twin"
)

const hook = "https://hooks.example.com/webhook/acct/events?x=1"

// hooked makes a provider whose registered URL is hook, with a clock of its own.
func hooked(t testing.TB, r providers.Resolver, now func() time.Time, url string) *provider {
	t.Helper()
	p, err := New(providers.Options{
		Account: "acct", APIKey: secret.New("tok"), Resolver: r, Now: now, WebhookURL: url,
		Decode: providertest.Decode(`environment = "1234"`),
	})
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider)
}

var mail = twin.Mail{Recipients: []string{"rcpt@example.net"}, IDs: []string{"abc"}, Tags: []string{"invoice", refPrefix + providertest.Ref + "-0"}}

func signed(t testing.TB, tw *twin.Twin, url string, form twin.Form, typ string, more map[string]string) (*http.Request, []byte) {
	t.Helper()
	r, body, err := tw.Webhook(t.Context(), url, form, typ, mail, 0, more)
	if err != nil {
		t.Fatal(err)
	}
	in := httptest.NewRequest(http.MethodPost, url, nil)
	in.Header, in.Host = r.Header, r.URL.Host
	return in, body
}

// TestForms: the three ways to write the variables give one event.
func TestForms(t *testing.T) {
	tw, _ := newTwin(t, twin.Options{})
	p := hooked(t, tw, func() time.Time { return clock }, hook)
	id := ""
	for _, form := range []twin.Form{twin.JSON, twin.URLEncoded, twin.Multipart} {
		r, body := signed(t, tw, hook, form, "failure", map[string]string{"code": "550", "extended": "5.1.1", "state": "rcptto", "description": "no such user"})
		evs, err := providertest.Receive(p, r, body)
		if err != nil || len(evs) != 1 {
			t.Fatalf("form %d: %v, %v", form, evs, err)
		}
		e := evs[0]
		if e.Kind != event.Bounced || e.Status != "5.1.1" || e.Recipient != "rcpt@example.net" || e.Ref != providertest.Ref+"-0" || !slices.Equal(e.Tags, []string{"invoice"}) || e.SMTPReply != "550 no such user" {
			t.Errorf("form %d: got %+v", form, e)
		}
		if id == "" {
			id = e.ID
		}
		if e.ID != id {
			t.Errorf("form %d: another id", form)
		}
	}
}

// TestMapping covers the event table.
func TestMapping(t *testing.T) {
	p := &provider{now: func() time.Time { return clock }}
	const dsn = "From: a@example.org\r\nContent-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nx\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
	for _, tt := range []struct {
		name string
		f    fields
		want event.Event
	}{
		{"delivery", fields{"type": {"delivery"}}, event.Event{Kind: event.Delivered, Action: "delivered", Status: "2.0.0"}},
		{"delivery with code", fields{"type": {"delivery"}, "extended": {"2.1.5"}}, event.Event{Kind: event.Delivered, Action: "delivered", Status: "2.1.5"}},
		{"delivery with a wrong code", fields{"type": {"delivery"}, "extended": {"5.1.1"}}, event.Event{Kind: event.Delivered, Action: "delivered", Status: "2.0.0"}},
		{"failure alone", fields{"type": {"failure"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "5.0.0", RejectReason: "bounced"}},
		{"failure, code in the text", fields{"type": {"failure"}, "code": {"550"}, "description": {"550 5.7.26 spam"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "5.7.26", RejectReason: "spam"}},
		{"failure, 4xx", fields{"type": {"failure"}, "code": {"451"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "4.4.7", RejectReason: "timed_out"}},
		{"failure, 4xx with code", fields{"type": {"failure"}, "code": {"452"}, "extended": {"4.2.2"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "4.2.2", RejectReason: "timed_out"}},
		{"process", fields{"type": {"failure"}, "state": {"process"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "4.4.7", RejectReason: "timed_out"}},
		{"dns", fields{"type": {"failure"}, "state": {"DNS"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "5.1.2", RejectReason: "bounced"}},
		{"connect", fields{"type": {"failure"}, "state": {"connect"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "4.4.1", RejectReason: "bounced"}},
		{"suppression", fields{"type": {"failure"}, "state": {"suppression"}}, event.Event{Kind: event.Rejected, Action: "failed", Status: "5.7.1", RejectReason: "blocked"}},
		{"blacklist", fields{"type": {"failure"}, "code": {"554"}, "description": {"listed on a Blacklist"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "5.0.0", RejectReason: "blocked"}},
		{"unknown type", fields{"type": {"response"}}, event.Event{Kind: event.Unknown}},
		{"bounce without mail", fields{"type": {"bounce"}}, event.Event{Kind: event.Unknown, RejectReason: "other"}},
		{"bounce of no kind", fields{"type": {"bounce"}, "mime": {"Subject: hm\r\n\r\nhm"}}, event.Event{Kind: event.Unknown, RejectReason: "other"}},
		{"bounce, vacation", fields{"type": {"bounce"}, "mime": {"X-Autoreply: yes\n\nhm"}}, event.Event{Kind: event.Autoresponded}},
		{"report, two recipients", fields{"type": {"bounce"}, "recipient": {"b@example.org"}, "mime": {dsn + "Reporting-MTA: dns; x\r\n\r\nFinal-Recipient: rfc822; a@example.org\r\nAction: failed\r\nStatus: 5.1.1\r\n\r\nFinal-Recipient: rfc822;b@example.org\r\nAction: Delayed\r\nStatus: 4.2.2 (full)\r\nWill-Retry-Until: Tue, 24 Nov 2026 12:00:00 +0000\r\n\r\n--b--\r\n"}}, event.Event{Kind: event.Deferred, Action: "delayed", Status: "4.2.2"}},
		{"report, whose is unclear", fields{"type": {"bounce"}, "recipient": {"c@example.org"}, "mime": {dsn + "X: y\r\n\r\nFinal-Recipient: rfc822; a@example.org\r\nAction: failed\r\n\r\nFinal-Recipient: rfc822;b@example.org\r\nAction: failed\r\n\r\n--b--"}}, event.Event{Kind: event.Unknown, RejectReason: "other"}},
		{"report, folded and cut, without a status", fields{"type": {"bounce"}, "mime": {dsn + "junk\nFinal-Recipient: rfc822;\n a@example.org\nAction: failed\nDiagnostic-Code: smtp; 550\n  blocked as spam"}}, event.Event{Kind: event.Bounced, Action: "failed", Status: "5.0.0", RejectReason: "spam"}},
		{"report, status against the action", fields{"type": {"bounce"}, "mime": {dsn + "Final-Recipient: rfc822; a@example.org\nAction: relayed\nStatus: 5.0.0\n"}}, event.Event{Kind: event.Delivered, Action: "relayed", Status: "2.0.0"}},
		{"abuse, not spam", fields{"type": {"abuse"}, "mime": {strings.ReplaceAll(dsn, "delivery-status", "feedback-report") + "Feedback-Type: not-spam\n"}}, event.Event{Kind: event.Unknown}},
		{"abuse, opt-out", fields{"type": {"abuse"}, "mime": {strings.ReplaceAll(dsn, "delivery-status", "feedback-report") + "Feedback-Type: opt-out\n"}}, event.Event{Kind: event.Unsubscribed}},
		{"abuse alone", fields{"type": {"abuse"}}, event.Event{Kind: event.Complained, RejectReason: "spam"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := p.parseEvent(tt.f, clock)
			if e.Kind != tt.want.Kind || e.Action != tt.want.Action || e.Status != tt.want.Status || e.RejectReason != tt.want.RejectReason || !e.Time.Equal(clock) {
				t.Errorf("got %s %s %s %s at %v", e.Kind, e.Action, e.Status, e.RejectReason, e.Time)
			}
			if (e.WillRetryAt != nil) != (tt.want.Kind == event.Deferred) {
				t.Errorf("got WillRetryAt %v", e.WillRetryAt)
			}
		})
	}
}

// TestReports finds our reference in a report when the tags are missing, and the recipient of a complaint.
func TestReports(t *testing.T) {
	p := &provider{now: func() time.Time { return clock }}
	e := p.parseEvent(fields{"type": {"bounce"}, "mime": {"Content-Type: multipart/report; boundary=b\n\n--b\nContent-Type: message/delivery-status\n\nOriginal-Envelope-Id: sb-" + providertest.Ref +
		"\nReporting-MTA: dns; x\n\nOriginal-Recipient: rfc822;a@example.org\nFinal-Recipient: rfc822;z@example.org\nAction: failed\nRemote-MTA: dns; mx.example.org\n--b--\n"}}, clock)
	if e.Ref != providertest.Ref || e.Recipient != "a@example.org" || e.RemoteMTA != "mx.example.org" {
		t.Errorf("got %+v", e)
	}
	for _, f := range providertest.Fixtures(t, "testdata/webhook") {
		if f.Name != "abuse-json" {
			continue
		}
		list := parseJSON(f.Body)
		if e := p.parseEvent(list[0], clock); e.Recipient != "rcpt@example.net" {
			t.Errorf("complaint: got recipient %q", e.Recipient)
		}
	}
}

// TestCase079_Signature changes one thing at a time in a call that verifies.
func TestCase079_Signature(t *testing.T) {
	tw, _ := newTwin(t, twin.Options{})
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	const keyID = "one._domainkey.copernica.com"
	resign := func(r *http.Request, body []byte, key *rsa.PrivateKey, keyID, alg string, covered ...string) {
		if err := twin.SignHeaders(r, len(body), key, keyID, alg, covered); err != nil {
			t.Fatal(err)
		}
	}
	lower := []string{"(request-target)", "host", "date", "x-copernica-id", "digest"}
	good := func(*http.Request, []byte) {}
	for _, tt := range []struct {
		name   string
		url    string // as registered; "" = hook
		at     time.Duration
		change func(*http.Request, []byte)
		want   error
	}{
		{"right", "", 0, good, nil},
		{"the five required, in lower case", "", 0, func(r *http.Request, b []byte) { resign(r, b, testKey(), keyID, "rsa-sha256", lower...) }, nil},
		{"path changed by a proxy", "", 0, func(r *http.Request, _ []byte) { r.URL.Path, r.URL.RawQuery = "/webhook/acct", "" }, nil},
		{"host changed by a proxy", "", 0, func(r *http.Request, _ []byte) { r.Host = "10.0.0.1:8025" }, nil},
		{"no registered URL", "none", 0, good, nil},
		{"no registered URL, foreign host", "none", 0, func(r *http.Request, _ []byte) { r.Host = "evil.example.com" }, providers.ErrSignature},
		{"digest SHA-512", "", 0, func(r *http.Request, b []byte) {
			r.Header.Set("Digest", "sha-512=z4PhNX7vuL3xVChQ1m2AB9Yg5AULVxXcg/SpIdNs6c5H0NE8XYXysP+DGNKHfuwvY7kxvUdBeoGlODJ6+SfaPg==") // of nothing
			resign(r, b, testKey(), keyID, "rsa-sha256", lower...)
		}, providers.ErrSignature},
		{"signed for another host", "", 0, func(r *http.Request, b []byte) {
			r.Host = "evil.example.com"
			resign(r, b, testKey(), keyID, "rsa-sha256", lower...)
		}, providers.ErrSignature},
		{"299 s old", "", 299 * time.Second, good, nil},
		{"301 s old", "", 301 * time.Second, good, providers.ErrSignature},
		{"299 s ahead", "", -299 * time.Second, good, nil},
		{"301 s ahead", "", -301 * time.Second, good, providers.ErrSignature},
		{"no date", "", 0, func(r *http.Request, _ []byte) { r.Header.Del("Date") }, providers.ErrSignature},
		{"another date", "", 0, func(r *http.Request, _ []byte) {
			r.Header.Set("Date", clock.Add(time.Second).Format(http.TimeFormat))
		}, providers.ErrSignature},
		{"another environment", "", 0, func(r *http.Request, b []byte) {
			r.Header.Set("X-Copernica-ID", "environment-99")
			resign(r, b, testKey(), keyID, "rsa-sha256", lower...)
		}, providers.ErrSignature},
		{"host not covered", "", 0, func(r *http.Request, b []byte) {
			resign(r, b, testKey(), keyID, "rsa-sha256", "(request-target)", "date", "x-copernica-id", "digest")
		}, providers.ErrSignature},
		{"target not covered", "", 0, func(r *http.Request, b []byte) {
			resign(r, b, testKey(), keyID, "rsa-sha256", "host", "date", "x-copernica-id", "digest")
		}, providers.ErrSignature},
		{"listed header absent", "", 0, func(r *http.Request, b []byte) {
			resign(r, b, testKey(), keyID, "rsa-sha256", append(slices.Clone(lower), "x-absent")...)
		}, providers.ErrSignature},
		{"hmac", "", 0, func(r *http.Request, b []byte) { resign(r, b, testKey(), keyID, "hmac-sha256", lower...) }, providers.ErrSignature},
		{"another key", "", 0, func(r *http.Request, b []byte) { resign(r, b, other, keyID, "rsa-sha256", lower...) }, providers.ErrSignature},
		{"key of another domain", "", 0, func(r *http.Request, b []byte) {
			resign(r, b, testKey(), "one.evilcopernica.com", "rsa-sha256", lower...)
		}, providers.ErrSignature},
		{"name without a key", "", 0, func(r *http.Request, b []byte) {
			resign(r, b, testKey(), "two._domainkey.copernica.com", "rsa-sha256", lower...)
		}, providers.ErrSignature},
		{"no headers parameter", "", 0, func(r *http.Request, _ []byte) {
			r.Header.Set("Signature", `keyId="`+keyID+`",algorithm="rsa-sha256",signature="QQ=="`)
		}, providers.ErrSignature},
		{"two signatures", "", 0, func(r *http.Request, _ []byte) { r.Header.Add("Signature", r.Header.Get("Signature")) }, providers.ErrSignature},
		{"a parameter twice", "", 0, func(r *http.Request, _ []byte) { r.Header.Set("Signature", r.Header.Get("Signature")+`,keyId="x"`) }, providers.ErrSignature},
		{"folded, a comma missing", "", 0, func(r *http.Request, _ []byte) {
			r.Header.Set("Signature", strings.Replace(r.Header.Get("Signature"), `",algorithm`, `" algorithm`, 1))
		}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := hook
			if tt.url == "none" {
				url = ""
			}
			p := hooked(t, tw, func() time.Time { return clock.Add(tt.at) }, url)
			r, body := signed(t, tw, hook, twin.JSON, "delivery", nil)
			tt.change(r, body)
			evs, err := providertest.Receive(p, r, body)
			if !errors.Is(err, tt.want) || (tt.want == nil) != (len(evs) == 1) {
				t.Errorf("got %d events, %v, want %v", len(evs), err, tt.want)
			}
		})
	}
	t.Run("no environment", func(t *testing.T) {
		p, err := New(providers.Options{APIKey: secret.New("tok"), Resolver: tw, Now: func() time.Time { return clock }, WebhookURL: hook})
		if err != nil {
			t.Fatal(err)
		}
		r, body := signed(t, tw, hook, twin.JSON, "delivery", nil)
		if _, err := providertest.Receive(p.(providers.WebhookParser), r, body); !errors.Is(err, providers.ErrSignature) {
			t.Errorf("got %v", err)
		}
	})
}

// counting counts look-ups.
type counting struct {
	*twin.Twin
	n int
}

func (c *counting) LookupTXT(ctx context.Context, name string) ([]string, error) {
	c.n++
	return c.Twin.LookupTXT(ctx, name)
}

// TestKeys: what DNS says is kept, asked for anew when it does not fit, and missed only for a while.
func TestKeys(t *testing.T) {
	tw, _ := newTwin(t, twin.Options{})
	now := clock
	res := &counting{Twin: tw}
	p := hooked(t, res, func() time.Time { return now }, hook)
	step := func(name string, signer *twin.Twin, want error, lookups int) {
		t.Helper()
		r, body := signed(t, signer, hook, twin.JSON, "delivery", nil)
		r.Header.Set("Date", now.Format(http.TimeFormat))
		if err := twin.SignHeaders(r, len(body), keyOf[signer], "one._domainkey.copernica.com", "rsa-sha256", twin.Covered); err != nil {
			t.Fatal(err)
		}
		res.n = 0
		if _, err := providertest.Receive(p, r, body); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
		if res.n != lookups {
			t.Errorf("%s: %d look-ups, want %d", name, res.n, lookups)
		}
	}
	second, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rotated, _ := newTwin(t, twin.Options{Key: second})
	keyOf[tw], keyOf[rotated] = testKey(), second

	tw.BreakDNS(true)
	step("DNS down at first", tw, providers.ErrUnavailable, 1)
	tw.BreakDNS(false)
	step("first", tw, nil, 1)
	step("cached", tw, nil, 0)
	now = now.Add(2 * time.Hour)
	tw.BreakDNS(true)
	step("DNS down, the key is old", tw, nil, 1)
	now = now.Add(23 * time.Hour)
	step("DNS down, the key is too old", tw, providers.ErrUnavailable, 1)
	tw.BreakDNS(false)
	step("back", tw, nil, 1)
	step("a wrong key is not asked for at once", rotated, providers.ErrSignature, 0)
	now = now.Add(2 * time.Minute)
	res.Twin = rotated
	step("rotated", rotated, nil, 1)
	step("the old one is gone", tw, providers.ErrSignature, 0)
}

var keyOf = map[*twin.Twin]*rsa.PrivateKey{}

func TestParseKey(t *testing.T) {
	record := twin.New(twin.Options{Key: testKey()}).KeyRecord()
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, txt string
		ok        bool
	}{
		{"as published", record, true},
		{"spaces", strings.NewReplacer("; ", " ;  ", "=", " = ").Replace(record[:20]) + record[20:], true},
		{"split", record[:100] + " " + record[100:], true},
		{"no version", strings.TrimPrefix(record, "v=DKIM1; "), true},
		{"1024 bits", twin.New(twin.Options{Key: small}).KeyRecord(), true},
		{"revoked", "v=DKIM1; k=rsa; p=", false},
		{"other kind", strings.Replace(record, "k=rsa", "k=ed25519", 1), false},
		{"other version", strings.Replace(record, "DKIM1", "DKIM2", 1), false},
		{"garbage", "v=spf1 -all", false},
		{"cut", record[:len(record)-40], false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := parseKey(tt.txt) != nil; got != tt.ok {
				t.Errorf("got %v, want %v", got, tt.ok)
			}
		})
	}
}

// TestServeDNS: the twin's name server works with the standard resolver.
func TestServeDNS(t *testing.T) {
	tw, _ := newTwin(t, twin.Options{})
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tw.ServeDNS(c) }()
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", c.LocalAddr().String())
	}}
	p := hooked(t, r, func() time.Time { return clock }, hook)
	req, body := signed(t, tw, hook, twin.JSON, "delivery", nil)
	if _, err := providertest.Receive(p, req, body); err != nil {
		t.Errorf("got %v", err)
	}
	if _, err := p.keys.get(t.Context(), "none.copernica.com", false); !errors.Is(err, providers.ErrSignature) {
		t.Errorf("a name that is not there: got %v", err)
	}
	c.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMalformed(t *testing.T) {
	p := &provider{now: time.Now}
	for name, body := range map[string]string{
		"empty": "", "null": "null", "list of nulls": "[null]", "deep": strings.Repeat(`{"a":`, 20000), "text": "hello", "other form": "a=b&c=d", "bad form": "%zz",
		"nothing in it": `{"foo":1}`,
	} {
		if evs, err := p.parseBody("application/json", []byte(body), clock); !errors.Is(err, providers.ErrMalformed) || len(evs) > 0 {
			t.Errorf("%s: got %d events, %v", name, len(evs), err)
		}
	}
	evs, err := p.parseBody("application/json", []byte(`[{"type":"open","id":"1","tags":["a",{"b":1},7],"ip":[[]]},17,{"type":"x\u0000\u001b","id":{}}]`), clock)
	if err != nil || len(evs) != 2 || !slices.Equal(evs[0].Tags, []string{"a", "7"}) || evs[1].ProviderEvent != "x" {
		t.Errorf("one bad item: got %+v, %v", evs, err)
	}
}

func TestWebhookGet(t *testing.T) {
	dir := t.TempDir()
	for file, text := range map[string]string{"smtpeter-abc.txt": "from the folder", "smtpeter-both.txt": "folder", "secret.key": "canary"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "smtpeter-link.txt")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "smtpeter-dir.txt"), 0o700); err != nil {
		t.Fatal(err)
	}
	tw, base := newTwin(t, twin.Options{})
	p := account(t, tw, base, "verification_folder = '"+dir+"'\n[verification_files]\n\"smtpeter-both.txt\" = \"setting\"\n")
	for _, tt := range []struct{ path, want string }{
		{"smtpeter-abc.txt", "from the folder"},
		{"events/smtpeter-abc.txt", "from the folder"},
		{"smtpeter-both.txt", "setting"},
		{"", ""},
		{"secret.key", ""},
		{"smtpeter-none.txt", ""},
		{"smtpeter-link.txt", ""},
		{"smtpeter-dir.txt", ""},
		{"smtpeter-../secret.key", ""},
		{"../smtpeter-x.txt/", ""},
	} {
		_, content, ok := p.WebhookGet(tt.path)
		if ok != (tt.want != "") || string(content) != tt.want {
			t.Errorf("%q: got %q, %v", tt.path, content, ok)
		}
	}
}
