package test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// inboundBridge is a bridge that takes received mail from MailerSend and puts it into a Maildir. Its account at the ESP is never called.
func inboundBridge(t *testing.T, maildir string, more string) (br *bridge, url string) {
	t.Helper()
	esp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		t.Errorf("the ESP was called: %s", r.URL)
	}))
	t.Cleanup(esp.Close)
	tmp := shortDir(t)
	port := freePort(t)
	br = newBridge(t, tmp, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "plain"
address = "127.0.0.1:%d"
[[account]]
name = "ms"
provider = "mailersend"
api_key = "0123456789abcdef"
base_url = %q
inbound_secret = "inbound-route-secret"
[[account]]
name = "local"
provider = "maildir"
base_url = "maildir://%s"
[[inbound]]
recipients = ["*@support.example.com"]
account = "local"
[webhook]
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
[delivery]
retry = "1s*"
%s`, tmp, freePort(t), esp.URL, maildir, port, more))
	return br, fmt.Sprintf("http://127.0.0.1:%d/inbound/ms", port)
}

// receivedPost is what MailerSend posts of a received mail.
func receivedPost(t *testing.T, id, raw string, rcpts ...string) []byte {
	t.Helper()
	var to []map[string]string
	for _, a := range rcpts {
		to = append(to, map[string]string{"email": a})
	}
	b, err := json.Marshal(map[string]any{"type": "inbound.message", "created_at": "2026-03-04T05:06:07.000000Z", "data": map[string]any{
		"object": "message", "id": id, "recipients": map[string]any{"rcptTo": to}, "sender": map[string]string{"email": "writer@example.net"}, "raw": raw, "text": "cut me",
	}})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func postInbound(t *testing.T, url, key string, body []byte) int {
	t.Helper()
	m := hmac.New(sha256.New, []byte(key))
	m.Write(body)
	r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Signature", hex.EncodeToString(m.Sum(nil)))
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func delivered(t *testing.T, maildir string) (out []string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(maildir, "new", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

const receivedMail = "Received: from mx by esp; Mon, 2 Mar 2026 05:06:07 +0000\r\nFrom: Wr\u00efter <writer@example.net>\r\nTo: help@support.example.com\r\nSubject: help\r\nX-MC-Tags: not-an-option\r\nMessage-ID: <q@example.net>\r\n\r\nDear you,\r\n\r\n\"quoted\" \\ \u20ac\r\n"

// A mail that an ESP received ends as a file in a Maildir, once however often it is posted; what was answered 200 survives kill -9.
func TestInboundStory(t *testing.T) {
	t.Parallel()
	maildir := filepath.Join(t.TempDir(), "mail")
	br, url := inboundBridge(t, maildir, "")
	br.start()
	body := receivedPost(t, "in-1", receivedMail, "help@support.example.com", "other@elsewhere.example")
	if got := postInbound(t, url, "another-key", body); got != 401 {
		t.Errorf("a forged post: %d", got)
	}
	for range 2 {
		if got := postInbound(t, url, "inbound-route-secret", body); got != 200 {
			t.Fatalf("got %d", got)
		}
	}
	evs := br.waitEvents("the mail is delivered", func(evs []event.Event) bool {
		return len(evs) == 2
	})
	in, sent := evs[0], evs[1]
	if in.Kind != event.Inbound || in.Account != "ms" || in.Recipient != "help@support.example.com" || in.Sender != "writer@example.net" || in.ProviderEventID != "in-1" ||
		!in.Time.Equal(time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)) || in.QueueID == "" || in.MessageID != "q@example.net" {
		t.Errorf("got %+v", in)
	}
	if sent.Kind != event.Sent || sent.Account != "local" || sent.QueueID != in.QueueID {
		t.Errorf("got %+v", sent)
	}
	files := delivered(t, maildir)
	if len(files) != 1 {
		t.Fatalf("%d files", len(files))
	}
	head, rest, _ := strings.Cut(files[0], "Received: from mx by esp")
	if !strings.Contains(head, "Return-Path: <writer@example.net>\nDelivered-To: help@support.example.com\nReceived: from mailersend (account ms)\n\tby bridge.example.com with HTTP id "+in.QueueID) ||
		"Received: from mx by esp"+rest != strings.ReplaceAll(receivedMail, "\r\n", "\n") {
		t.Errorf("got %q", files[0])
	}
	if out := br.run("trace", in.QueueID); !strings.Contains(out, "inbound") || !strings.Contains(out, "sent") {
		t.Errorf("trace: %s", out)
	}

	// Killed right after the answer, again and again: nothing is missing, nothing is there twice.
	const posts = 8
	for i := range posts {
		if got := postInbound(t, url, "inbound-route-secret", receivedPost(t, fmt.Sprint("kill-", i), receivedMail+strings.Repeat("line\r\n", i*20000), "help@support.example.com")); got != 200 {
			t.Fatalf("got %d", got)
		}
		if i%3 == 2 {
			br.kill()
			br.start()
		}
	}
	br.waitEvents("all are delivered", func(evs []event.Event) bool {
		n := 0
		for _, e := range evs {
			if e.Kind == event.Sent {
				n++
			}
		}
		return n == 1+posts
	})
	if files := delivered(t, maildir); len(files) != 1+posts {
		t.Errorf("%d files, want %d", len(files), 1+posts)
	}
	br.stop()
}

// What cannot be delivered waits for an operator, with an event; nobody gets a bounce.
func TestInboundHeld(t *testing.T) {
	t.Parallel()
	maildir := filepath.Join(t.TempDir(), "mail")
	br, url := inboundBridge(t, maildir, "[dsn]\naccount = \"local\"\n")
	br.start()
	loop := strings.Repeat("Received: from a\r\n\tby bridge.example.com with HTTP id x; now\r\n", 3)
	for id, p := range map[string]struct{ raw, rcpt string }{
		"no rule": {receivedMail, "who@elsewhere.example"},
		"loop":    {loop + receivedMail, "help@support.example.com"},
		"hops":    {strings.Repeat("Received: x\r\n", 50) + receivedMail, "help@support.example.com"},
	} {
		if got := postInbound(t, url, "inbound-route-secret", receivedPost(t, id, p.raw, p.rcpt)); got != 200 {
			t.Errorf("%s: got %d", id, got)
		}
	}
	evs := br.waitEvents("all are told", func(evs []event.Event) bool { return len(evs) == 6 })
	texts := ""
	for _, e := range evs {
		if e.Kind != event.Inbound && e.Kind != event.InboundFailed {
			t.Errorf("got %+v", e)
		}
		texts += e.Diagnostic + "\n"
	}
	for _, want := range []string{"no [[inbound]] has recipients that fit who@elsewhere.example", "it came in here 3 times before", "52 Received fields"} {
		if !strings.Contains(texts, want) {
			t.Errorf("%q is not told:\n%s", want, texts)
		}
	}
	if out := br.run("queue", "list", "--state", "held"); strings.Count(out, "held") < 3 {
		t.Errorf("held: %s", out)
	}
	if files := delivered(t, maildir); len(files) != 0 {
		t.Errorf("delivered: %q", files)
	}
	br.stop()
}
