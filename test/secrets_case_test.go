package test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers/sandbox/twin"
)

// canaries must be seen nowhere outside of requests to the ESP and the store.
var canaries = map[string]string{
	"API key":             "canary-api-key-5e1f09",
	"password":            "canary-password-77ab21",
	"wrong password":      "canary-guess-90cd34",
	"webhook secret":      "canary-hook-secret-31fe56",
	"next webhook secret": "canary-next-secret-ab12cd",
	"forward secret":      "canary-forward-secret-99",
	"body text":           "canarybodyword",
	"body HTML":           "canaryhtmlword",
	"attachment":          "canaryattachmentword",
}

// forms are the ways in which a secret may show.
func forms(s string) []string {
	return []string{
		s, base64.StdEncoding.EncodeToString([]byte(s)), base64.RawStdEncoding.EncodeToString([]byte(s)), url.QueryEscape(s),
		base64.StdEncoding.EncodeToString([]byte("\x00crm\x00" + s)), fmt.Sprintf("%x", s), fmt.Sprint([]byte(s)),
	}
}

func wantNoCanary(t *testing.T, where, text string) {
	t.Helper()
	for what, s := range canaries {
		for _, form := range forms(s) {
			if i := strings.Index(text, form); i >= 0 {
				t.Errorf("the %s is in %s: ...%.300s", what, where, text[max(0, i-150):])
			}
		}
	}
}

const nasty = "a\tb\x1b[31mred\x07\"'<script>\\u0000"

// TestCase092_093_NothingLeaks is a full run at debug level with good, bad and hostile clients, ESP answers and webhooks. Then all
// that the bridge tells anybody is searched for secrets and mail text, and each line of log and events must be one
// record of bounded length without control characters. (Of what an ESP quotes of the mail itself, the first 512 bytes are kept; see docs/security.md.)
func TestCase092_093_NothingLeaks(t *testing.T) {
	dir := shortDir(t)
	esp := twin.New(twin.Config{APIKey: canaries["API key"]})
	t.Cleanup(func() { esp.Close() })
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		subject := ""
		var m twin.Message
		if json.Unmarshal(body, &m) == nil {
			subject = m.Subject
		}
		kind, _, _ := strings.Cut(subject, " ")
		switch kind {
		case "echo422", "echo500", "echo401", "echo200":
			// An ESP that tells the key back, with forged lines and much more.
			w.Header().Set("Content-Type", "application/json")
			var status int
			fmt.Sscanf(kind, "echo%d", &status)
			w.WriteHeader(status)
			text := r.Header.Get("Authorization") + " \r\nforged: line\x00\x1b[2J " + strings.Repeat("z", 1<<18)
			_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]string{"code": text, "message": text}})
		default:
			r.Body = io.NopCloser(bytes.NewReader(body))
			esp.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(func() { server.CloseClientConnections(); server.Close() })
	forward := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		http.Error(w, "no: "+fmt.Sprint(r.Header), http.StatusBadRequest)
	}))
	t.Cleanup(func() { forward.CloseClientConnections(); forward.Close() })
	port, hookPort, metricsPort := freePort(t), freePort(t), freePort(t)
	config := fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
address = "127.0.0.1:%d"
max_message_size = "2MiB"
[[user]]
name = "crm"
password = %q
senders = ["example.com"]
[[account]]
name = "esp"
provider = "sandbox"
api_key = %q
base_url = %q
webhook_secret = [%q, %q]
[[route]]
senders = ["example.com"]
accounts = ["esp"]
[delivery]
retry = "1s*"
[retention]
failed = "1s"
[webhook]
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
forward = [{ url = %q, secret = %q, allow_local = true }]
[admin]
address = "127.0.0.1:%d"
[log]
level = "debug"
format = "json"
`, dir, port, canaries["password"], canaries["API key"], server.URL, canaries["webhook secret"], canaries["next webhook secret"], hookPort,
		forward.URL, canaries["forward secret"], metricsPort)
	b := newBridge(t, dir, config)
	b.start()
	addr := fmt.Sprintf("127.0.0.1:%d", port)

	auth := func(pw string) string {
		return "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00crm\x00"+pw))
	}
	mail := func(subject string) string {
		return "From: \"" + strings.ReplaceAll(nasty, `"`, `\"`) + "\" <app@example.com>\r\nTo: ada@example.net\r\nSubject: " + subject + " " + nasty + "\r\n" +
			"Message-ID: <" + nasty + "@x>\r\nX-Mood: " + nasty + "\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n" +
			"--b\r\nContent-Type: text/plain\r\n\r\n" + canaries["body text"] + "\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>" + canaries["body HTML"] + "\r\n" +
			"--b\r\nContent-Type: text/csv\r\nContent-Disposition: attachment; filename=\"" + strings.ReplaceAll(nasty, `"`, "") + ".csv\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" +
			base64.StdEncoding.EncodeToString([]byte(canaries["attachment"])) + "\r\n--b--\r\n"
	}
	c := dialCase(t, addr)
	if err := c.cmd("250", "EHLO "+strings.ReplaceAll(nasty, "\t", "")); err != nil {
		if err := c.cmd("250", "EHLO client.example.com"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.cmd("535", auth(canaries["wrong password"])); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd("235", auth(canaries["password"])); err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"fine", "echo422"} {
		if _, err := c.send("app@example.com", []string{"ada@example.net", "bounce@example.net"}, mail(subject)); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
	}
	// Refusals, broken commands and a body that becomes commands.
	for _, line := range []string{
		"MAIL FROM:<" + nasty + "@example.com>", "RCPT TO:<" + nasty + ">", strings.Repeat("y", 3000), "MAIL FROM:<app@other.example>", nasty,
		"AUTH LOGIN " + base64.StdEncoding.EncodeToString([]byte(canaries["wrong password"])) + "!",
	} {
		if _, err := fmt.Fprintf(c, "%s\r\n", line); err != nil {
			break
		}
		if err := c.expect("5"); err != nil {
			break // closed after too many errors, or taken
		}
	}
	c.Close()
	c = dialCase(t, addr)
	for _, line := range []string{"MAIL FROM:<app@example.com>", "RCPT TO:<ada@example.net>"} {
		if err := c.cmd("250", line); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.cmd("354", "DATA"); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "Subject: cut\r\n\r\n%s\r\n", canaries["body text"])
	c.Close() // in the middle of the mail

	post := func(secret string, ev ...twin.Event) int {
		body, err := json.Marshal(map[string]any{"events": ev})
		if err != nil {
			t.Fatal(err)
		}
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/webhook/esp?token=%s", hookPort, canaries["webhook secret"]), bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		r.Header.Set(twin.TimestampHeader, fmt.Sprint(now))
		r.Header.Set(twin.SignatureHeader, twin.Sign(secret, now, body))
		r.Header.Set("User-Agent", nasty[:1])
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		said, _ := io.ReadAll(resp.Body)
		wantNoCanary(t, "a webhook's answer", string(said))
		return resp.StatusCode
	}
	hostile := nasty + "\r\nforged: 1\x00\u2028\u202e" + strings.Repeat("w", 20_000)
	ev := twin.Event{ID: "e1" + hostile, Time: time.Now(), Event: "bounced", MessageID: hostile, Recipient: "x" + hostile, Diagnostic: hostile, Reason: hostile, RemoteMTA: hostile, Tags: []string{hostile}, Metadata: map[string]string{hostile: hostile}, URL: hostile, UserAgent: hostile}
	if got := post(canaries["next webhook secret"], ev, twin.Event{ID: "e2", Time: time.Now(), Event: nasty, Recipient: "ada@example.net"}); got != http.StatusOK {
		t.Errorf("a signed webhook: %d", got)
	}
	if got := post("wrong"+canaries["webhook secret"], ev); got != http.StatusUnauthorized {
		t.Errorf("a forged webhook: %d", got)
	}
	b.waitEvents("the fates of all mails", func(evs []event.Event) bool {
		return count(evs, event.Sent) >= 2 && count(evs, event.Failed) >= 2 && count(evs, event.Bounced) >= 1
	})
	// Those that stay in the queue, the last of which pauses the account.
	c = dialCase(t, addr)
	for i, subject := range []string{"echo500", "echo200", "echo401"} {
		if _, err := c.send("app@example.com", []string{"ada@example.net"}, mail(subject)); err != nil {
			t.Fatal(err)
		}
		b.waitEvents(subject+" is deferred", func(evs []event.Event) bool { return i == 2 || count(evs, event.Deferred) > i })
	}
	until(t, 20*time.Second, "the account is paused", func() bool { return strings.Contains(b.run("account", "list"), "paused") })

	// A reload that fails, with the secrets in the file, and a check of it.
	good, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	for _, spoil := range []string{"\n[nonsense]\nx = 1\n", "\napi_key = 5\n", "\n[[user]]\nname = \"crm\"\npassword = \"" + canaries["password"] + "\"\npassword_hash = \"" + canaries["password"] + "\"\n", "\"" + canaries["API key"]} {
		if err := os.WriteFile(b.config, append(bytes.Clone(good), spoil...), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := b.try("check")
		if err == nil {
			t.Errorf("%q is taken for a good configuration", spoil)
		}
		wantNoCanary(t, "what check says", out+fmt.Sprint(err))
		before := strings.Count(b.log.String(), "config.reload_failed")
		if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until(t, 10*time.Second, "the reload fails", func() bool { return strings.Count(b.log.String(), "config.reload_failed") > before })
	}
	if err := os.WriteFile(b.config, good, 0o600); err != nil {
		t.Fatal(err)
	}

	// Everything the bridge tells.
	for _, args := range [][]string{
		{"queue", "list"},
		{"queue", "list", "--json"},
		{"account", "list"},
		{"account", "list", "--json"},
		{"events", "--format", "json"},
		{"events", "--format", "dsn"},
		{"events", "--format", "text"},
		{"trace", "ada@example.net"},
		{"trace", "--json", "ada@example.net"},
		{"check"},
	} {
		out, err := b.try(args...)
		if err != nil {
			t.Errorf("%v: %v", args, err)
		}
		wantNoCanary(t, strings.Join(args, " "), out)
		if strings.ContainsFunc(out, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			t.Errorf("%v prints control characters", args)
		}
	}
	mailFile := filepath.Join(dir, "explain.eml")
	if err := os.WriteFile(mailFile, []byte("From: app@example.com\r\nTo: ada@example.net\r\nSubject: x\r\n\r\nx\r\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantNoCanary(t, "explain", b.run("explain", "--from", "app@example.com", "--to", "ada@example.net", mailFile))
	client := b.adminClient()
	for _, path := range []string{"/livez", "/readyz", "/metrics", "/api/v1/status", "/api/v1/queue", "/api/v1/accounts", "/api/v1/trace?key=ada@example.net", "/api/v1/events", "/api/v1/queue/..%2f..%2fetc", "/debug/pprof/"} {
		resp, err := client.Get("http://bridge" + path)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		wantNoCanary(t, path, string(text)+fmt.Sprint(resp.Header))
	}
	if resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsPort)); err != nil {
		t.Error(err)
	} else {
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		wantNoCanary(t, "metrics", string(text))
		for _, who := range []string{"ada@", "bounce@", "127.0.0.1:"} {
			if bytes.Contains(text, []byte(who)) {
				t.Errorf("metrics name %s", who)
			}
		}
	}
	for _, name := range []string{"cmdline", "comm"} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", b.cmd.Process.Pid, name))
		if err != nil {
			t.Fatal(err)
		}
		wantNoCanary(t, "the process list", string(text))
	}
	// The runtime's dump of all goroutines, as a crash writes it.
	records := b.log.String()
	if err := b.cmd.Process.Signal(syscall.SIGQUIT); err != nil {
		t.Fatal(err)
	}
	<-b.exited
	b.cmd = nil
	wantNoCanary(t, "the log", b.log.String())
	if !strings.Contains(b.log.String(), "goroutine ") {
		t.Error("no dump")
	}
	for line := range strings.Lines(records) {
		wantRecord(t, "log", line, 8<<10)
	}
	text, err := os.ReadFile(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	wantNoCanary(t, "the event file", string(text))
	for line := range strings.Lines(string(text)) {
		wantRecord(t, "event", line, 64<<10)
	}
}

// wantRecord wants a line to be one JSON object of bounded length that is safe on a terminal.
func wantRecord(t *testing.T, what, line string, limit int) {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(line), &v); err != nil {
		t.Errorf("%s line is no record: %v: %.300q", what, err, line)
	}
	if len(line) > limit {
		t.Errorf("%s line of %d bytes: %.200q", what, len(line), line)
	}
	if strings.ContainsFunc(strings.TrimSuffix(line, "\n"), control) {
		t.Errorf("%s line has control characters: %.300q", what, line)
	}
	if what == "log" {
		return // the text of an operator's own file may be quoted in several lines
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, x := range v {
				walk(k)
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		case string:
			if strings.ContainsFunc(v, control) {
				t.Errorf("%s: a value with control characters: %.200q", what, v)
			}
		}
	}
	walk(v)
}
