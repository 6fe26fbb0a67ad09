package test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	smtpeter "smtpbridge/providers/smtpeter/twin"
)

// farEnd is one ESP: its API, its lines in the account block, and how it reports a delivery of every mail it took.
type farEnd struct {
	provider string
	handler  http.Handler
	config   string
	report   func(ctx context.Context, hook string) error
}

const publicHost = "hooks.example.com"

// TestFiveAccounts runs the real binary with an account at each ESP, sends to each by a real client, and has
// each ESP's twin report the deliveries by its own signed webhooks, twice, as a proxy would pass them on.
func TestFiveAccounts(t *testing.T) {
	needs(t, "# needs: swaks\n")
	dns, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dns.Close()
	hookPort, port := freePort(t), freePort(t)
	// The twins call the registered public URL; this client is the proxy in front of the bridge.
	proxy := &http.Client{Transport: toLocal(fmt.Sprintf("127.0.0.1:%d", hookPort))}

	mp := mailpace.New(mailpace.Options{Token: "token-mailpace-1", Client: proxy})
	sp := smtpeter.New(smtpeter.Options{Token: "token-smtpeter-1", Client: proxy})
	go sp.ServeDNS(dns)
	md := mandrill.New(mandrill.Options{Key: "token-mandrill-1", Client: proxy})
	ms := mailersend.New(mailersend.Options{Token: "token-mailersend-1", Secret: "secret-mailersend-1", PerMinute: 1e6, Client: proxy})
	mr := maileroo.New(maileroo.Options{Key: "token-maileroo-1", Secret: "secret-maileroo-1", Client: proxy})
	status := func(code int, err error) error {
		if err == nil && code != http.StatusOK {
			err = fmt.Errorf("webhook answered %d", code)
		}
		return err
	}
	ends := []farEnd{
		{"mailpace", mp, fmt.Sprintf("webhook_secret = %q", mp.PublicKey()), func(ctx context.Context, hook string) error {
			for _, m := range mp.Mails() {
				if err := status(mp.Post(ctx, hook, "delivered", m)); err != nil {
					return err
				}
			}
			return nil
		}},
		{"smtpeter", sp, "[account.options]\nenvironment = \"1234\"", func(ctx context.Context, hook string) error {
			for _, m := range sp.Mails() {
				for i := range m.Recipients {
					if err := status(sp.Post(ctx, hook, smtpeter.JSON, "delivery", m, i, nil)); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"mandrill", md, fmt.Sprintf("webhook_secret = %q", md.WebhookKey()), func(ctx context.Context, hook string) error {
			var batch []map[string]any
			for _, m := range md.Mails() {
				for _, r := range m.Rcpts {
					batch = append(batch, map[string]any{"event": "delivered", "_id": r.ID, "ts": 1790000000, "msg": map[string]any{"_id": r.ID, "email": r.Email, "state": "delivered"}})
				}
			}
			return status(md.Post(ctx, hook, batch...))
		}},
		{"mailersend", ms, "webhook_secret = \"secret-mailersend-1\"\nmax_per_second = 1000", func(ctx context.Context, hook string) error {
			for _, m := range ms.Mails() {
				for _, rcpt := range m.Rcpts() {
					r, err := ms.Webhook(ctx, hook, "delivered", m, rcpt, nil, time.Unix(1790000000, 0))
					if err != nil {
						return err
					}
					if err := status(ms.Post(r)); err != nil {
						return err
					}
				}
			}
			return nil
		}},
		{"maileroo", mr, "webhook_secret = \"secret-maileroo-1\"", func(ctx context.Context, hook string) error {
			for _, m := range mr.Mails() {
				for _, rcpt := range m.Rcpts() {
					if err := status(mr.Post(ctx, hook, "delivered", m, rcpt)); err != nil {
						return err
					}
				}
			}
			return nil
		}},
	}
	dir := shortDir(t)
	config := fmt.Sprintf("data_dir = %q\n[[listener]]\naddress = \"127.0.0.1:%d\"\n[webhook]\naddress = \"127.0.0.1:%d\"\npublic_url = \"https://%s\"\n[dns]\nserver = %q\n[events]\nfile = \"events.jsonl\"\n", dir, port, hookPort, publicHost, dns.LocalAddr())
	for _, e := range ends {
		server := httptest.NewServer(e.handler)
		defer server.Close()
		config += fmt.Sprintf("[[route]]\nsenders = [\"%s.example.com\"]\naccounts = [%q]\n", e.provider, e.provider)
		config += fmt.Sprintf("[[account]]\nname = %q\nprovider = %q\napi_key = \"token-%s-1\"\nbase_url = %q\n%s\n", e.provider, e.provider, e.provider, server.URL, e.config)
	}
	b := newBridge(t, dir, config)
	b.start()

	const perESP = 5
	rcpts := []string{"ada@example.net", "bob@example.net"}
	for _, e := range ends {
		for i := range perESP {
			// One recipient each, as MailPace's events do not say which one they are about.
			out, err := exec.Command("swaks", "--server", fmt.Sprintf("127.0.0.1:%d", port), "--from", "app@"+e.provider+".example.com", "--to", rcpts[i%2],
				"--header", fmt.Sprintf("Subject: mail %d", i), "--body", "hello", "--attach", "@data/report.pdf").CombinedOutput()
			if err != nil {
				t.Fatalf("swaks: %v\n%s", err, out)
			}
		}
	}
	count := func(evs []event.Event, account string, k event.Kind) (n int) {
		for _, e := range evs {
			if e.Account == account && e.Kind == k && e.QueueID != "" && e.Recipient != "" {
				n++
			}
		}
		return n
	}
	every := func(k event.Kind) func([]event.Event) bool {
		return func(evs []event.Event) bool {
			for _, e := range ends {
				if count(evs, e.provider, k) < perESP {
					return false
				}
			}
			return true
		}
	}
	b.waitEvents("every mail was sent", every(event.Sent))
	for range 2 {
		for _, e := range ends {
			if err := e.report(t.Context(), "https://"+publicHost+"/webhook/"+e.provider); err != nil {
				t.Errorf("%s: %v", e.provider, err)
			}
		}
	}
	defer func() {
		if t.Failed() {
			for _, e := range ends {
				t.Logf("%s: %d sent, %d delivered", e.provider, count(b.events(), e.provider, event.Sent), count(b.events(), e.provider, event.Delivered))
			}
		}
	}()
	evs := b.waitEvents("every delivery was reported", every(event.Delivered))
	b.stop()
	for _, e := range ends {
		for _, k := range []event.Kind{event.Sent, event.Delivered} {
			if n := count(evs, e.provider, k); n != perESP {
				t.Errorf("%s: %d %s events, want %d", e.provider, n, k, perESP)
			}
		}
	}
}

// toLocal sends every request to one address, as the proxy in front of the bridge does: path, query, Host and body stay.
type toLocal string

func (a toLocal) RoundTrip(r *http.Request) (*http.Response, error) {
	out := r.Clone(r.Context())
	out.Host = r.Host
	if out.Host == "" {
		out.Host = r.URL.Host
	}
	out.URL = &url.URL{Scheme: "http", Host: string(a), Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: r.URL.RawQuery}
	if !strings.HasPrefix(r.URL.Host, publicHost) {
		return nil, fmt.Errorf("a call to %s", r.URL.Host)
	}
	return http.DefaultTransport.RoundTrip(out)
}
