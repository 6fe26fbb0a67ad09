package store

import (
	"path/filepath"
	"strings"
	"testing"

	"smtpbridge/event"
)

func TestBackup(t *testing.T) {
	s, err := openDir(t, emptyStore(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	bodies := map[string][]byte{}
	for _, size := range []int{10, 9000, 20_000} {
		body := random(t, size)
		id, err := acceptOne(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		bodies[id] = body
	}
	dir := filepath.Join(t.TempDir(), "copy")
	if err := s.Backup(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Backup(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Fatalf("got %v", err)
	}
	if _, err := acceptOne(t, s, random(t, 5000)); err != nil {
		t.Fatal(err)
	}
	c, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if cs, err := c.Claim(t.Context(), "a", 10); len(cs) != 0 || err != nil {
		t.Fatalf("a restored store sends: %v %v", cs, err)
	}
	ms, err := c.Mails(t.Context(), Filter{State: MailHeld})
	if err != nil || len(ms) != 3 {
		t.Fatalf("got %d mails, %v", len(ms), err)
	}
	for id, want := range bodies {
		b, err := c.Body(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		readBody(t, b, want)
		if err := c.ReleaseHold(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if cs, err := c.Claim(t.Context(), "a", 10); len(cs) != 3 || err != nil {
		t.Fatalf("got %v %v", cs, err)
	}
	if cs, err := s.Claim(t.Context(), "a", 10); len(cs) != 4 || err != nil {
		t.Fatalf("the original: got %v %v", cs, err)
	}
}

func testErase(t *testing.T, e engine) {
	f := newFixture(t, e)
	both := f.deliver("pm-1", "one@example.org", "two@example.org")
	only := f.deliver("pm-2", "one@example.org")
	waiting := f.accept("q", "one@example.org")
	f.record(1, event.Event{ID: "c", Kind: event.Deferred, ProviderMessageID: "pm-1"})
	f.record(1, event.Event{ID: "u", Kind: event.Delivered, Account: "z", ProviderMessageID: "?", Recipient: "one@example.org"})
	f.must(f.Suppress(t.Context(), Suppression{Address: "one@example.org", Reason: "bounced"}))
	got, err := f.Erase(t.Context(), "one@EXAMPLE.org")
	if err != nil || got.Mails != 2 || got.Waiting != 1 || got.Events != 3 {
		t.Fatalf("got %+v %v", got, err)
	}
	d := f.detail(both)
	if d.Rcpts[0].Addr != erasedAddress || d.Rcpts[1].Addr != "two@example.org" || len(d.Mail.Header) != 0 || len(d.Events) != 2 {
		t.Fatalf("got %+v", d)
	}
	if d := f.detail(only); len(d.Events) != 0 || d.Rcpts[0].ORCPT != "" {
		t.Fatalf("got %+v", d)
	}
	for _, ev := range f.follow() {
		if strings.Contains(mustJSON(ev), "one@example.org") {
			t.Errorf("left: %+v", ev)
		}
	}
	if ids, err := f.Find(t.Context(), "one@example.org"); err != nil || len(ids) != 1 || ids[0] != waiting {
		t.Fatalf("got %v %v", ids, err)
	}
	if s, err := f.Suppressed(t.Context(), "one@example.org", "", ""); err != nil || s == nil || s.Address != "" {
		t.Fatalf("got %v %v", s, err)
	}
	f.claim("q")
}
