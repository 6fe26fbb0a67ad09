package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"smtpbridge/admin"
)

// writeConfig writes a configuration with a sandbox account and returns its path.
func writeConfig(t *testing.T, dir, listener, more string) string {
	t.Helper()
	file := filepath.Join(dir, "bridge.toml")
	text := fmt.Sprintf("data_dir = %q\n[[listener]]\nname = \"l\"\naddress = %q\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\n[[route]]\nsenders = [\"example.com\"]\naccounts = [\"a\"]\n%s", dir, listener, more)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func quiet() BridgeOptions { return BridgeOptions{Log: slog.New(slog.DiscardHandler)} }

// A bridge that cannot start says why, and leaves neither sockets nor locks behind.
func TestStartFailures(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, tt := range []struct{ name, listener, more, want string }{
		{"smtp port taken", taken.Addr().String(), "[webhook]\naddress = \"\"\n", "listener[0].address: listen tcp " + taken.Addr().String() + ": bind: address already in use: another process has it"},
		{"webhook port taken", "127.0.0.1:0", fmt.Sprintf("[webhook]\naddress = %q\n", taken.Addr()), "webhook.address: listen tcp"},
		{"event file is a directory", "127.0.0.1:0", "[webhook]\naddress = \"\"\n[events]\nfile = \".\"\n", "events.file: "},
		{"no socket from systemd", "systemd:smtp", "[webhook]\naddress = \"\"\n", `listener[0].address: systemd passed no socket named "smtp"`},
		{"admin socket in no directory", "127.0.0.1:0", "[webhook]\naddress = \"\"\n[admin]\nsocket = \"nowhere/admin.sock\"\n", "admin.socket: listen unix"},
		{"no database server", "127.0.0.1:0", "[webhook]\naddress = \"\"\n[store]\nurl = \"postgres://bridge:hidden-word@127.0.0.1:1/db\"\n", "store.url: failed to connect"},
		{"forward to plain http", "127.0.0.1:0", "[[events.forward]]\nurl = \"http://app.example.com/\"\nsecret = \"0123456789abcdef\"\n", "events.forward[0].url: url must begin with https://"},
		{"forward with a short secret", "127.0.0.1:0", "[[events.forward]]\nurl = \"https://app.example.com/\"\nsecret = \"hidden-word\"\n", "events.forward[0].secret: secret is empty or too short"},
		{"bad retry", "127.0.0.1:0", "[delivery]\nretry = \"soon\"\n", "delivery.retry: "},
		{"empty retry", "127.0.0.1:0", "[delivery]\nretry = \"\"\n", "delivery.retry: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := shortTemp(t)
			_, err := NewBridge(t.Context(), writeConfig(t, dir, tt.listener, tt.more), quiet())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if !regexp.MustCompile(`^[^\n]*bridge\.toml:[0-9]+: [^\n]*$`).MatchString(err.Error()) || strings.Contains(err.Error(), "hidden-word") {
				t.Errorf("not one line with file and line number, or a secret in it: %v", err)
			}
			// The same directory works at once with a good configuration.
			b, err := NewBridge(t.Context(), writeConfig(t, dir, "127.0.0.1:0", "[webhook]\naddress = \"\"\n"), quiet())
			if err != nil {
				t.Fatal(err)
			}
			b.close()
		})
	}
}

func shortTemp(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// What an operator does through the admin socket, and what it answers when there is nothing to do.
func TestAdminSocket(t *testing.T) {
	dir := shortTemp(t)
	b, err := NewBridge(t.Context(), writeConfig(t, dir, "127.0.0.1:0", "[webhook]\naddress = \"\"\n"), quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	defer func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	c, err := admin.Dial(t.Context(), filepath.Join(dir, "admin.sock"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetAccount(t.Context(), "a", true, "test"); err != nil {
		t.Fatal(err)
	}
	accounts, err := c.Accounts(t.Context())
	if err != nil || len(accounts) != 1 || accounts[0].State != "stopped" || accounts[0].Reason != "test" {
		t.Errorf("accounts %+v, %v", accounts, err)
	}
	conn, err := net.Dial("tcp", b.SMTPAddr("l").String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := dialogue(conn, nil, nil, "me@example.com", []string{"you@example.net"}, []byte("From: me@example.com\r\nSubject: x\r\n\r\nx\r\n")); err != nil {
		t.Fatal(err)
	}
	mails, err := c.Queue(t.Context(), admin.Query{})
	if err != nil || len(mails) != 1 {
		t.Fatalf("queue %+v, %v", mails, err)
	}
	id := mails[0].ID
	if m, err := c.Mail(t.Context(), id); err != nil || len(m.Jobs) != 1 || m.Jobs[0].Waits != "the account is stopped: test" {
		t.Errorf("why it waits: %+v, %v", m, err)
	}
	for _, a := range []admin.Action{admin.Hold, admin.Release, admin.Retry, admin.Delete} {
		if err := c.Act(t.Context(), id, a, ""); err != nil {
			t.Errorf("%s: %v", a, err)
		}
	}
	if err := c.Act(t.Context(), id, admin.Retry, ""); err == nil || !strings.Contains(err.Error(), "is deleted: there is nothing left to retry") {
		t.Errorf("retry of a deleted mail: %v", err)
	}
	if err := c.Act(t.Context(), "nope", admin.Retry, ""); err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("retry of no mail: %v", err)
	}
	d, err := c.Mail(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	for _, e := range d.Events {
		said = append(said, e.ProviderEvent+string(e.Kind))
		if e.ProviderEvent != "" && !strings.HasPrefix(e.Diagnostic, "by socket uid ") {
			t.Errorf("%s does not say who: %q", e.ProviderEvent, e.Diagnostic)
		}
	}
	if got := strings.Join(said, " "); got != "admin.holdunknown admin.releaseunknown admin.retryunknown admin.deleteunknown failed" || d.Events[4].Diagnostic != "deleted by the operator" {
		t.Errorf("events %s", got)
	}
	if err := c.SetAccount(t.Context(), "nope", false, ""); err == nil {
		t.Error("an unknown account was resumed")
	}
	if s, err := c.Status(t.Context()); err != nil || s.Queued != 0 || time.Since(s.Started) > time.Minute {
		t.Errorf("status %+v, %v", s, err)
	}
}
