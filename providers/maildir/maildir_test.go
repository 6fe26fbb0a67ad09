package maildir

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpbridge/providers"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

func account(t *testing.T) (*provider, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "mail", "x")
	p, err := New(providers.Options{BaseURL: "maildir://" + dir, Hostname: "b/1:2"})
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider), dir
}

func plan(t *testing.T, p *provider, body string, rcpts ...string) *translate.Mail {
	t.Helper()
	return providertest.Message{Name: "m", From: "a@example.com", Rcpts: rcpts, EML: "From: a@example.com\r\nTo: x@example.org\r\nSubject: s\r\n\r\n" + body}.Plan(t, p.Capabilities())[0]
}

func files(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestDeliver(t *testing.T) {
	p, dir := account(t)
	// A CR at the edge of the read buffer, bare ones, and a last line without an end.
	body := strings.Repeat("x", 64<<10) + "\r\n" + strings.Repeat("y", 64<<10-1) + "\r\nbare\rcr\r\n\r\r\nend"
	out, err := p.Send(t.Context(), plan(t, p, body, "one@example.org", "two@example.org"))
	if err != nil {
		t.Fatal(err)
	}
	if len(out.Rcpts) != 2 || out.Rcpts[0].Verdict != providers.Accepted || out.Rcpts[1].Verdict != providers.Accepted {
		t.Fatalf("got %+v", out)
	}
	if left := files(t, filepath.Join(dir, "tmp")); len(left) != 0 {
		t.Errorf("left in tmp: %q", left)
	}
	names := files(t, filepath.Join(dir, "new"))
	if len(names) != 2 {
		t.Fatalf("got %q", names)
	}
	for i, r := range out.Rcpts {
		name := filepath.Join(dir, "new", r.MessageID)
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		s := string(b)
		if !strings.HasPrefix(s, "Return-Path: <a@example.com>\nDelivered-To: "+r.Addr+"\n") {
			t.Errorf("got %.200q", s)
		}
		if strings.Contains(s, out.Rcpts[1-i].Addr) {
			t.Errorf("%s sees the other recipient", r.Addr)
		}
		if !strings.HasSuffix(s, "\n\n"+strings.ReplaceAll(body, "\r\n", "\n")) {
			t.Error("the body was changed")
		}
		if fi, _ := os.Stat(name); fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v", fi.Mode())
		}
		if strings.ContainsAny(r.MessageID, ":/") {
			t.Errorf("file name %q", r.MessageID)
		}
	}
}

// TestOnce repeats a call after the reader has moved and flagged the mail.
func TestOnce(t *testing.T) {
	p, dir := account(t)
	m := plan(t, p, "b\r\n", "one@example.org")
	if _, found, err := p.Find(t.Context(), m, time.Time{}); found != providers.CannotTell && found != providers.Absent || found == providers.CannotTell && err == nil {
		t.Errorf("before: got %v, %v", found, err)
	}
	out, err := p.Send(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	file := out.Rcpts[0].MessageID
	if err := os.Rename(filepath.Join(dir, "new", file), filepath.Join(dir, "cur", file+":2,FS")); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if again := files(t, filepath.Join(dir, "new")); len(again) != 0 {
		t.Errorf("delivered twice: %q", again)
	}
	if o, found, err := p.Find(t.Context(), m, time.Time{}); found != providers.Present || err != nil || o.Rcpts[0].Verdict != providers.Accepted {
		t.Errorf("got %+v, %v, %v", o, found, err)
	}
	// So is it by another bridge, with its own host name.
	other := *p
	other.host = "other"
	if _, err := other.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if again := files(t, filepath.Join(dir, "new")); len(again) != 0 {
		t.Errorf("delivered twice: %q", again)
	}
	if _, found, err := other.Find(t.Context(), m, time.Time{}); found != providers.Present || err != nil {
		t.Errorf("another bridge found %v, %v", found, err)
	}
	// Another call about the same mail is another delivery; what a crash left in tmp is no obstacle.
	m.Ref = "other"
	if err := os.WriteFile(filepath.Join(dir, "tmp", p.file(m, "one@example.org")), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Send(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if again := files(t, filepath.Join(dir, "new")); len(again) != 1 {
		t.Errorf("got %q", again)
	}
}

func TestFailures(t *testing.T) {
	t.Run("path is a file", func(t *testing.T) {
		p, dir := account(t)
		if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := p.Send(t.Context(), plan(t, p, "b", "one@example.org"))
		if providers.KindOf(err) != providers.Operator {
			t.Errorf("got %v", err)
		}
		if err := p.Check(t.Context()); providers.KindOf(err) != providers.Operator {
			t.Errorf("Check: got %v", err)
		}
	})
	t.Run("ended", func(t *testing.T) {
		p, dir := account(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.Send(ctx, plan(t, p, "b\r\n", "one@example.org"))
		if providers.KindOf(err) != providers.Transient || !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if n := len(files(t, filepath.Join(dir, "new"))) + len(files(t, filepath.Join(dir, "tmp"))); n != 0 {
			t.Errorf("%d files", n)
		}
	})
	p, _ := account(t)
	for err, want := range map[error]providers.Kind{
		syscall.ENOSPC: providers.Transient, syscall.EDQUOT: providers.Transient, syscall.EIO: providers.Transient,
		syscall.EACCES: providers.Operator, syscall.EROFS: providers.Operator, errors.Join(errUnsynced, syscall.EIO): providers.Ambiguous,
	} {
		if e := p.fail("send", err); e.Kind != want {
			t.Errorf("%v: got %v, want %v", err, e.Kind, want)
		}
	}
	if err := p.Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
}

func TestNew(t *testing.T) {
	for url, ok := range map[string]bool{"maildir:///var/mail/x": true, "": false, "maildir://var/mail": false, "maildir:///": false, "/var/mail/x": false, "maildir:///x?y=1": false} {
		if _, err := New(providers.Options{BaseURL: url}); (err == nil) != ok {
			t.Errorf("%q: got %v", url, err)
		}
	}
}
