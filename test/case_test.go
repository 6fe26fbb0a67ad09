package test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unicode"

	"smtpbridge/event"
	"smtpbridge/providers/sandbox/twin"
)

// The numbered cases of faults and attacks are run against the real binary by the files *_case_test.go.

// caseESP is a sandbox ESP that can be made to fail.
type caseESP struct {
	*twin.Server
	instead atomic.Pointer[http.HandlerFunc]
}

// set answers every call with h; nil: the sandbox answers again.
func (e *caseESP) set(h http.HandlerFunc) {
	if h == nil {
		e.instead.Store(nil)
		return
	}
	e.instead.Store(&h)
}

// fail answers every call with an error.
func (e *caseESP) fail(status int) {
	e.set(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"error":{"code":"case","message":"case"}}`, status)
	})
}

func (e *caseESP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if h := e.instead.Load(); h != nil {
		(*h)(w, r)
		return
	}
	e.Server.ServeHTTP(w, r)
}

// subjects counts the mails that arrived, by subject.
func (e *caseESP) subjects() map[string]int {
	n := map[string]int{}
	for _, m := range e.Inbox() {
		n[m.Subject]++
	}
	return n
}

// caseBridge starts a bridge in dir with one listener, whose address it returns, and one sandbox account that takes all
// mail from example.com; more is further configuration.
func caseBridge(t *testing.T, dir, more string) (*bridge, *caseESP, string) {
	t.Helper()
	const key = "case-key-0123456789"
	esp := &caseESP{Server: twin.New(twin.Config{APIKey: key})}
	server := httptest.NewServer(esp)
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
		esp.Close()
	})
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	b := newBridge(t, dir, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "case"
address = %q
[[account]]
name = "esp"
provider = "sandbox"
api_key = %q
base_url = %q
[[route]]
senders = ["example.com"]
accounts = ["esp"]
[delivery]
retry = "1s*"
[webhook]
address = ""
[events]
file = %q
`, dir, addr, key, server.URL, dir+"/events.jsonl")+more)
	b.start()
	return b, esp, addr
}

// dialCase connects to a listener and greets it.
func dialCase(t *testing.T, addr string) *smtpConn {
	t.Helper()
	c, err := dialSMTP(addr, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// accept sends a mail that must be taken.
func (s *smtpConn) accept(t *testing.T, subject, body string) {
	t.Helper()
	mail := "From: app@example.com\r\nTo: ada@example.net\r\nSubject: " + subject + "\r\n\r\n" + body
	if _, err := s.send("app@example.com", []string{"ada@example.net"}, mail); err != nil {
		t.Fatalf("mail %q: %v", subject, err)
	}
}

// wantNoStart wants serve to end by itself, unsuccessfully, and to say why.
func wantNoStart(t *testing.T, file, want string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, "serve", "-c", file)
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	select {
	case err := <-exited:
		if err == nil || !strings.Contains(out.String(), want) {
			t.Errorf("serve: %v, want %q in:\n%s", err, want, out.String())
		}
	case <-time.After(20 * time.Second):
		_ = cmd.Process.Kill()
		<-exited
		t.Errorf("serve runs, want %q in:\n%s", want, out.String())
	}
}

// count counts the events of one kind.
func count(evs []event.Event, k event.Kind) (n int) {
	for _, e := range evs {
		if e.Kind == k {
			n++
		}
	}
	return n
}

// control tells what a terminal could take for a command, or a reader for the end of a line.
func control(r rune) bool { return unicode.IsControl(r) || r == '\u2028' || r == '\u2029' }
