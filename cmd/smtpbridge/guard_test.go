package main

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/store"
)

// Case 58: too little room is told at MAIL, before a byte of the mail.
func TestCase058_lowSpaceAtMail(t *testing.T) {
	t.Parallel()
	type space struct {
		free, total int64
		err         error
	}
	var disk atomic.Pointer[space]
	set := func(free, total int64, err error) { disk.Store(&space{free, total, err}) }
	set(1<<40, 10<<40, nil)
	r := &rig{t: t, dir: shortTemp(t), esp: newHeldESP(t)}
	r.write("max_message_size = \"100MiB\"", "")
	r.before = func(b *Bridge) {
		b.intake.disk = func() (int64, int64, error) { d := disk.Load(); return d.free, d.total, d.err }
	}
	r.start()
	c := r.dial()
	c.cmd("EHLO x", "250")
	for _, tt := range []struct {
		name        string
		free, total int64
		reply       string
	}{
		{"enough", 1 << 30, 10 << 30, "250"},
		{"less than two of the largest mails", 199 << 20, 1 << 30, "452 4.3.1"},
		{"just those", 200 << 20, 1 << 30, "250"},
		{"less than five per cent", 49 << 30, 1000 << 30, "452 4.3.1"},
		{"a file system that does not say", 0, 0, "250"},
	} {
		set(tt.free, tt.total, nil)
		c.cmd("MAIL FROM:<app@example.com>", tt.reply)
		c.cmd("RSET", "250")
		if low, why := r.diskLow(); low != strings.HasPrefix(tt.reply, "4") {
			t.Errorf("%s: the alarm says %v, %s", tt.name, low, why)
		}
	}
	set(0, 0, errors.New("gone"))
	c.cmd("MAIL FROM:<app@example.com>", "421 4.3.0")
	if _, err := c.r.ReadByte(); err == nil {
		t.Error("the session goes on after 421")
	}
}

// Case 59: a store that takes no writes is told at MAIL.
func TestCase059_storeDownAtMail(t *testing.T) {
	r := &rig{t: t, dir: shortTemp(t), esp: newHeldESP(t)}
	r.write("", "")
	b, err := NewBridge(t.Context(), r.file, quiet())
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	if ref := b.intake.checkSender("l", "", "x@example.com"); ref != nil {
		t.Errorf("got %v", ref)
	}
	if err := b.store.Close(); err != nil {
		t.Fatal(err)
	}
	b.intake.pulse.next = time.Time{} // what was seen a moment ago is believed
	if ref := b.intake.checkSender("l", "", "x@example.com"); ref == nil || ref.Code != 421 || ref.Enhanced != [3]int{4, 3, 0} || strings.Contains(ref.Text, r.dir) {
		t.Errorf("got %v, want 421 4.3.0", ref)
	}
	b.store = nil
}

func TestListenerRate(t *testing.T) {
	t.Parallel()
	r := newRig(t, "max_messages_per_hour = 2", "")
	c := r.dial()
	c.cmd("EHLO x", "250")
	second := r.dial()
	second.cmd("EHLO x", "250")
	second.cmd("MAIL FROM:<app@example.com>", "250")
	second.cmd("RCPT TO:<x@a.example>", "250")
	c.send("x@c.example") // refused mails do not count
	c.want("550 5.7.1")
	for range 2 {
		c.send("x@a.example")
		c.want("250")
	}
	const want = `450 4.7.1 listener "l" has sent 2 mails within an hour, all it may (max_messages_per_hour): try again in `
	if got := c.cmd("MAIL FROM:<app@example.com>", want); !strings.HasSuffix(got, "60 minutes") && !strings.HasSuffix(got, "59 minutes") {
		t.Errorf("got %q", got)
	}
	// A mail that was begun before is counted where it ends.
	second.cmd("DATA", "354")
	second.say("From: app@example.com\r\n\r\nx\r\n.\r\n")
	second.want(want)
	if m, err := r.store.Mails(t.Context(), store.Filter{}); err != nil || len(m) != 2 {
		t.Errorf("%d mails, %v", len(m), err)
	}
	// A reload with a higher limit goes on counting.
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.file, []byte(strings.Replace(string(text), "per_hour = 2", "per_hour = 3", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload(); err != nil {
		t.Fatal(err)
	}
	c.send("x@a.example")
	c.want("250")
	c.cmd("MAIL FROM:<app@example.com>", `450 4.7.1 listener "l" has sent 3 mails`)
}

// A user is braked alone.
func TestUserRate(t *testing.T) {
	t.Parallel()
	r := newRig(t, "auth = \"optional\"", "[[user]]\nname = \"crm\"\npassword = \"secret\"\nsenders = [\"*\"]\nmax_messages_per_hour = 1\n[[user]]\nname = \"shop\"\npassword = \"secret\"\nsenders = [\"*\"]\n")
	login := func(user string) *talk {
		c := r.dial()
		c.cmd("EHLO x", "250")
		c.cmd("AUTH PLAIN "+base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00secret")), "235")
		return c
	}
	c := login("crm")
	c.send("x@a.example")
	c.want("250")
	c.cmd("MAIL FROM:<app@example.com>", `450 4.7.1 user "crm" has sent 1 mail within an hour`)
	for range 2 {
		shop := login("shop")
		shop.send("x@a.example")
		shop.want("250")
	}
}

func TestRates(t *testing.T) {
	start := time.Date(2026, 1, 1, 12, 0, 30, 0, time.UTC)
	at := func(d time.Duration) time.Time { return start.Add(d) }
	q := []quota{{key: "u", limit: 3}}
	var r rates
	take := func(d time.Duration) (time.Duration, func()) {
		t.Helper()
		_, wait, undo := r.take(at(d), q)
		return wait, undo
	}
	for _, d := range []time.Duration{0, 0, 10 * time.Minute} {
		if wait, _ := take(d); wait != 0 {
			t.Fatalf("refused at %v for %v", d, wait)
		}
	}
	for _, tt := range []struct{ at, wait time.Duration }{
		{10 * time.Minute, 49*time.Minute + 30*time.Second},
		{59 * time.Minute, 30 * time.Second},
	} {
		if wait, undo := take(tt.at); wait != tt.wait || undo != nil {
			t.Errorf("at %v: wait %v, want %v", tt.at, wait, tt.wait)
		}
	}
	// Both of the first minute are out of the hour; one taken back leaves its place.
	_, undo := take(60 * time.Minute)
	take(60 * time.Minute)
	if wait, _ := take(60 * time.Minute); wait == 0 {
		t.Error("a fourth mail within an hour")
	}
	undo()
	if wait, _ := take(60*time.Minute - 30*time.Second); wait != 0 { // another session, a moment behind at the turn of a minute
		t.Errorf("refused for %v after one was taken back", wait)
	}
	if wait, _ := take(60 * time.Minute); wait == 0 {
		t.Error("a fourth mail within an hour")
	}
	if wait, _ := take(5 * time.Hour); wait != 0 {
		t.Errorf("refused for %v after hours", wait)
	}
	if wait, _ := take(-100 * time.Hour); wait != 0 { // the clock was set back
		t.Errorf("refused for %v", wait)
	}
	// Of two quotas the longer wait counts, and a refused mail counts for none.
	two := []quota{{key: "a", limit: 1}, {key: "b", who: "b", limit: 2}, {key: "none"}}
	r.take(at(0), two)
	if _, wait, _ := r.take(at(0), two); wait == 0 || r.keys["b"].sum != 1 || r.keys["none"] != nil {
		t.Errorf("wait %v, b counts %d", wait, r.keys["b"].sum)
	}
	if _, _, first := r.full(at(0), two); !first {
		t.Error("the first refusal is not told")
	}
	if _, _, first := r.full(at(0), two); first {
		t.Error("each refusal is told")
	}
}

// An 8-bit local part is refused at RCPT when no account could ever send to it.
func TestEAIAtRcpt(t *testing.T) {
	t.Parallel()
	mailpace := func(condition string) string {
		return fmt.Sprintf("[[account]]\nname = \"m\"\nprovider = \"mailpace\"\napi_key = \"k\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"m\"]\n%s\n", condition)
	}
	for _, tt := range []struct{ name, more, rcpt, reply string }{
		{"an account that can", mailpace(""), "dürst@a.example", "250"},
		{"only one that cannot", mailpace(""), "dürst@c.example", "553 5.6.7"},
		{"8-bit domain alone", mailpace(""), "x@bücher.example", "250"},
		{"by another listener", mailpace("listeners = [\"other\"]\n[[listener]]\nname = \"other\"\naddress = \"127.0.0.1:0\""), "dürst@c.example", "250"},
		{"for a user", mailpace("users = [\"u\"]\n[[user]]\nname = \"u\"\npassword = \"p\"\nsenders = [\"*\"]"), "dürst@c.example", "250"},
		{"redirected", mailpace("redirect_all_to = \"staging@example.com\""), "dürst@c.example", "250"},
		{"soft_bounce", mailpace("") + "[delivery]\nsoft_bounce = true\n", "dürst@c.example", "250"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "", tt.more)
			c := r.dial()
			c.cmd("EHLO x", "250")
			c.cmd("MAIL FROM:<app@example.com> SMTPUTF8", "250")
			c.cmd("RCPT TO:<"+tt.rcpt+">", tt.reply)
		})
	}
}
