package main

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpbridge/admin"
)

// cli runs a command line and returns its exit code and what it wrote.
func cli(t *testing.T, args ...string) (int, string) {
	t.Helper()
	var out bytes.Buffer
	root := newRoot()
	root.SetOut(&out)
	root.SetErr(&out)
	return execute(t.Context(), root, args), out.String()
}

// running starts a bridge whose account is stopped, so that mail waits, and returns its configuration file and directory.
func running(t *testing.T) (file, dir string, b *Bridge) {
	t.Helper()
	dir = shortTemp(t)
	file = writeConfig(t, dir, "127.0.0.1:0", "[webhook]\naddress = \"\"\n")
	b, err := NewBridge(t.Context(), file, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	t.Cleanup(func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	if code, out := cli(t, "account", "pause", "a", "-c", file); code != 0 {
		t.Fatalf("pause: %s", out)
	}
	return file, dir, b
}

// handIn sends a mail to the running bridge and returns what it sent.
func handIn(t *testing.T, b *Bridge, to, subject string) []byte {
	t.Helper()
	data := []byte("From: a@example.com\r\nTo: " + to + "\r\nSubject: " + subject + "\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\nMessage-ID: <" + subject + "@example.com>\r\n\r\nBody of " + subject + ".\r\n.\r\n")
	conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", b.SMTPAddr("l").String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dialogue(conn, nil, nil, "a@example.com", []string{to}, data); err != nil {
		t.Fatal(err)
	}
	return data
}

func TestQueueExport(t *testing.T) {
	file, dir, b := running(t)
	want := map[string][]byte{"one": handIn(t, b, "ada@example.net", "one"), "two": handIn(t, b, "bob@example.net", "two")}
	to := filepath.Join(dir, "export")
	if code, out := cli(t, "queue", "export", "--all", "--to", to, "-c", file); code != 0 || !strings.Contains(out, "2 mails written to "+to) {
		t.Fatalf("exit code %d: %s", code, out)
	}
	mails, err := filepath.Glob(filepath.Join(to, "*.eml"))
	if err != nil || len(mails) != 2 {
		t.Fatalf("%v, %v", mails, err)
	}
	for _, name := range mails {
		body, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(strings.TrimSuffix(name, ".eml") + ".json")
		if err != nil {
			t.Fatal(err)
		}
		var d admin.Detail
		if err := json.Unmarshal(text, &d); err != nil {
			t.Fatal(err)
		}
		subject := strings.TrimSuffix(d.MessageID, "@example.com")
		if d.From != "a@example.com" || len(d.Rcpts) != 1 || !bytes.HasSuffix(body, want[subject]) {
			t.Errorf("%s: from %q, to %v, body\n%s", subject, d.From, d.Rcpts, body)
		}
		code, out := cli(t, "queue", "export", d.ID, "-c", file)
		if code != 0 || out != string(body) {
			t.Errorf("to standard output, exit code %d:\n%s", code, out)
		}
	}
	for _, tt := range []struct {
		name string
		args []string
		code int
		says string
	}{
		{"files are not overwritten", []string{"--all", "--to", to}, 1, "file exists"},
		{"no such mail", []string{"01m8h6kbfv4dbnjqvptafrn278"}, 1, "not found"},
		{"two to standard output", []string{"a", "b"}, 2, "give a directory"},
		{"nothing", nil, 2, "give the ids"},
	} {
		if code, out := cli(t, append([]string{"queue", "export", "-c", file}, tt.args...)...); code != tt.code || !strings.Contains(out, tt.says) {
			t.Errorf("%s: exit code %d: %s", tt.name, code, out)
		}
	}
}

// --all acts on every mail and says how many, not each of them.
func TestQueueActOnAll(t *testing.T) {
	file, _, b := running(t)
	handIn(t, b, "ada@example.net", "one")
	handIn(t, b, "bob@example.net", "two")
	if code, out := cli(t, "queue", "retry", "--all", "-c", file); code != 0 || out != "2 mails: each is due now\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
	if code, out := cli(t, "queue", "release", "--all", "-c", file); code != 0 || out != "0 mails: each is released\n" {
		t.Errorf("exit code %d: %q", code, out)
	}
}
