package test

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/mime"
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
	taken    func() []string // subject and attachment of each mail it took
}

const (
	publicHost      = "hooks.example.com"
	mailsPerAccount = 20
)

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
		}, tell(mp.Mails, func(m mailpace.Mail) []string { return []string{m.Subject, m.Attachments[0].Name} })},
		{"smtpeter", sp, "[account.options]\nenvironment = \"1234\"", func(ctx context.Context, hook string) error {
			for _, m := range sp.Mails() {
				for i := range m.Recipients {
					if err := status(sp.Post(ctx, hook, smtpeter.JSON, "delivery", m, i, nil)); err != nil {
						return err
					}
				}
			}
			return nil
		}, tell(sp.Mails, func(m smtpeter.Mail) []string { return ofMIME(t, m.MIME) })},
		{"mandrill", md, fmt.Sprintf("webhook_secret = %q", md.WebhookKey()), func(ctx context.Context, hook string) error {
			var batch []map[string]any
			for _, m := range md.Mails() {
				for _, r := range m.Rcpts {
					batch = append(batch, mandrill.Event("delivered", m, r, m.At.Add(time.Second), false))
				}
			}
			return status(md.Post(ctx, hook, batch...))
		}, tell(md.Mails, func(m mandrill.Mail) []string { return ofMIME(t, m.Raw) })},
		{"mailersend", ms, "webhook_secret = \"secret-mailersend-1\"\nmax_per_second = 1000", func(ctx context.Context, hook string) error {
			for _, m := range ms.Mails() {
				for _, rcpt := range m.Rcpts() {
					r, err := ms.Webhook(ctx, hook, "delivered", m, rcpt, nil, m.At.Add(time.Second))
					if err != nil {
						return err
					}
					if err := status(ms.Post(r)); err != nil {
						return err
					}
				}
			}
			return nil
		}, tell(ms.Mails, func(m mailersend.Mail) []string { return []string{m.Subject, m.Attachments[0].Name} })},
		{"maileroo", mr, "webhook_secret = \"secret-maileroo-1\"", func(ctx context.Context, hook string) error {
			for _, m := range mr.Mails() {
				for _, rcpt := range m.Rcpts() {
					if err := status(mr.Post(ctx, hook, "delivered", m, rcpt)); err != nil {
						return err
					}
				}
			}
			return nil
		}, tell(mr.Mails, func(m maileroo.Mail) []string { return []string{m.Subject, m.Attachments[0].Name} })},
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

	report, err := os.ReadFile("data/report.pdf")
	if err != nil {
		t.Fatal(err)
	}
	// One recipient where events do not say which one they are about.
	rcpts := func(e farEnd) []string {
		if e.provider == "mailpace" {
			return []string{"ada@example.net"}
		}
		return []string{"ada@example.net", "hidden@example.org"}
	}
	var wg sync.WaitGroup
	for _, e := range ends {
		wg.Go(func() {
			from := "app@" + e.provider + ".example.com"
			out, err := exec.Command("swaks", "--server", fmt.Sprintf("127.0.0.1:%d", port), "--from", from, "--to", strings.Join(rcpts(e), ","),
				"--header", "To: ada@example.net", "--header", "Subject: mail 0", "--body", "hello", "--attach", "@data/report.pdf").CombinedOutput()
			if err != nil {
				t.Errorf("swaks: %v\n%s", err, out)
				return
			}
			c, err := dialSMTP(fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for i := 1; i < mailsPerAccount; i++ {
				mail := fmt.Sprintf("From: App <%s>\r\nTo: ada@example.net\r\nSubject: mail %d\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\n"+
					"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename=report.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n%s\r\n--b--\r\n",
					from, i, base64.StdEncoding.EncodeToString(report))
				if ok, err := c.send(from, rcpts(e), mail); !ok {
					t.Errorf("%s, mail %d: %v", e.provider, i, err)
					return
				}
			}
		})
	}
	if wg.Wait(); t.Failed() {
		return
	}
	// what the event file says of each recipient of each mail, by account
	life := func(evs []event.Event) map[string]map[string][]event.Kind {
		out := map[string]map[string][]event.Kind{}
		for _, e := range evs {
			if out[e.Account] == nil {
				out[e.Account] = map[string][]event.Kind{}
			}
			key := e.QueueID + " " + e.Recipient
			out[e.Account][key] = append(out[e.Account][key], e.Kind)
		}
		return out
	}
	every := func(k event.Kind) func([]event.Event) bool {
		return func(evs []event.Event) bool {
			all := life(evs)
			for _, e := range ends {
				n := 0
				for _, kinds := range all[e.provider] {
					if slices.Contains(kinds, k) {
						n++
					}
				}
				if n < mailsPerAccount*len(rcpts(e)) {
					return false
				}
			}
			return true
		}
	}
	defer func() {
		if t.Failed() {
			for account, lives := range life(b.events()) {
				t.Logf("%s: %v", account, lives)
			}
		}
	}()
	b.waitEvents("every mail was sent", every(event.Sent))
	for range 2 { // each ESP repeats itself
		for _, e := range ends {
			if err := e.report(t.Context(), "https://"+publicHost+"/webhook/"+e.provider); err != nil {
				t.Errorf("%s: %v", e.provider, err)
			}
		}
	}
	b.waitEvents("every delivery was reported", every(event.Delivered))
	tracesWireIDs(t, b, map[string]string{
		"mailpace":   fmt.Sprintf("%08x-0000-4000-8000-000000000000@mailer.mailpace.com", mp.Mails()[0].ID),
		"mailersend": "e" + ms.Mails()[0].ID[1:] + "@mailersend.net",
		"maileroo":   strings.Trim(mr.Mails()[0].MessageID, "<>"),
	})
	b.stop()
	all := life(b.events())
	if len(all) != len(ends) {
		t.Errorf("events of %d accounts, want %d", len(all), len(ends))
	}
	for _, e := range ends {
		if n := len(all[e.provider]); n != mailsPerAccount*len(rcpts(e)) {
			t.Errorf("%s: events of %d recipients, want %d", e.provider, n, mailsPerAccount*len(rcpts(e)))
		}
		for key, kinds := range all[e.provider] {
			if queueID, rcpt, _ := strings.Cut(key, " "); queueID == "" || !slices.Contains(rcpts(e), rcpt) || !slices.Equal(kinds, []event.Kind{event.Sent, event.Delivered}) {
				t.Errorf("%s: %q has the events %v, want sent and delivered", e.provider, key, kinds)
			}
		}
		got := e.taken()
		slices.Sort(got)
		if want := subjects(); !slices.Equal(got, want) {
			t.Errorf("%s took %q, want %q", e.provider, got, want)
		}
	}
}

// tracesWireIDs looks for a mail of each account by the Message-ID that its ESP set, with and without angle brackets.
func tracesWireIDs(t *testing.T, b *bridge, ids map[string]string) {
	for account, id := range ids {
		for _, key := range []string{id, "<" + id + ">"} {
			if out, err := b.try("trace", key); err != nil || strings.Count(out, "Mail ") != 1 || !strings.Contains(out, "sent by "+account) || !strings.Contains(out, "on the wire <"+id+">") {
				t.Errorf("trace %q: %v\n%s", key, err, out)
			}
		}
	}
}

// tell says of each mail of a twin what of makes of it.
func tell[M any](mails func() []M, of func(M) []string) func() []string {
	return func() (out []string) {
		for _, m := range mails() {
			out = append(out, strings.Join(of(m), " "))
		}
		return out
	}
}

// ofMIME gives the subject and the file names of a raw mail.
func ofMIME(t *testing.T, raw []byte) []string {
	m, err := mime.Parse(bytes.NewReader(raw), int64(len(raw)), mime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	out := []string{m.Subject}
	for _, a := range m.Attachments {
		out = append(out, a.Filename)
	}
	return out
}

// subjects are those of the mails of one account, each with its attachment, in order.
func subjects() (out []string) {
	for i := range mailsPerAccount {
		out = append(out, fmt.Sprintf("mail %d report.pdf", i))
	}
	slices.Sort(out)
	return out
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
