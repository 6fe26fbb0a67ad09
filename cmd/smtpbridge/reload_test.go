package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
)

// told counts by application which mails it was told to be sent.
type told struct {
	mu   sync.Mutex
	sent map[string]map[string]int
}

func (a *told) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var e event.Event
	if err := json.NewDecoder(r.Body).Decode(&e); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.sent[r.URL.Path] == nil {
		a.sent[r.URL.Path] = map[string]int{}
	}
	if e.Kind == event.Sent {
		a.sent[r.URL.Path][e.Recipient]++
	}
}

func (a *told) number(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.sent[path])
}

// A reload changes where events go: what was and is told to be has each event once, written before, during or after it.
func TestReloadEvents(t *testing.T) {
	t.Parallel()
	dir := shortTemp(t)
	apps := &told{sent: map[string]map[string]int{}}
	srv := httptest.NewServer(apps)
	defer srv.Close()
	one, two := filepath.Join(dir, "one.jsonl"), filepath.Join(dir, "two.jsonl")
	events := func(file, key string, paths ...string) string {
		var list []string
		for _, p := range paths {
			list = append(list, fmt.Sprintf("{ url = %q, secret = %q, allow_local = true }", srv.URL+p, key+"-0123456789abcdef"))
		}
		return fmt.Sprintf("[webhook]\naddress = \"\"\n[events]\nfile = %q\nforward = [%s]\n", file, strings.Join(list, ", "))
	}
	file := writeConfig(t, dir, "127.0.0.1:0", events(one, "first", "/a"))
	b, err := NewBridge(t.Context(), file, quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- b.Run(ctx, nil) }()
	addr := b.SMTPAddr("l").String()
	mails := 0
	send := func(n int) {
		t.Helper()
		for range n {
			if err := smtp.SendMail(addr, nil, "x@example.com", []string{fmt.Sprintf("r%d@r.example", mails)}, []byte("From: x@example.com\r\n\r\nx\r\n")); err != nil {
				t.Fatal(err)
			}
			mails++
		}
	}
	reload := func(more string) {
		t.Helper()
		writeConfig(t, dir, "127.0.0.1:0", more)
		if err := b.Reload(); err != nil {
			t.Fatal(err)
		}
	}
	in := func(path string) map[string]int {
		sent := map[string]int{}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var e event.Event
			if json.Unmarshal([]byte(line), &e) == nil && e.Kind == event.Sent { // the last line may be in the making
				sent[e.Recipient]++
			}
		}
		return sent
	}
	wait := func(what string, done func() bool) {
		t.Helper()
		for limit := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
			if time.Now().After(limit) {
				t.Fatalf("%s: %d mails; files %d; applications %v", what, mails, len(in(one)), apps.sent)
			}
		}
	}

	send(5)
	reload(events(one, "other", "/a", "/b")) // another secret, one application more
	send(5)
	wait("the same file", func() bool { return len(in(one)) == mails && apps.number("/a") == mails && apps.number("/b") == mails })
	send(3)
	reload(events(two, "other", "/b")) // another file, an application less
	left := mails
	send(5)
	wait("another file", func() bool { return len(in(two)) == mails && apps.number("/b") == mails })
	if n := len(in(one)); n > left || apps.number("/a") > left {
		t.Errorf("of %d mails %d and %d were told where nothing is to be told any more", left, n, apps.number("/a"))
	}
	reload(events(one, "other", "/a", "/b")) // back: what was missed meanwhile is made up
	send(2)
	wait("back", func() bool { return len(in(one)) == mails && apps.number("/a") == mails && apps.number("/b") == mails })

	writeConfig(t, dir, "127.0.0.1:0", events(filepath.Join(dir, "none", "x.jsonl"), "other"))
	if err := b.Reload(); err == nil || !strings.Contains(err.Error(), "events.file") {
		t.Errorf("a file that cannot be written: %v", err)
	}
	send(1)
	wait("after a reload that failed", func() bool { return len(in(one)) == mails && apps.number("/b") == mails })
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	for name, sent := range map[string]map[string]int{"one": in(one), "two": in(two), "/a": apps.sent["/a"], "/b": apps.sent["/b"]} {
		for rcpt, n := range sent {
			if n != 1 {
				t.Errorf("%s was told %d times of %s", name, n, rcpt)
			}
		}
	}
}
