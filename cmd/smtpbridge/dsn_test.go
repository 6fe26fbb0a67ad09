package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"smtpbridge/config"
	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers/all"
	"smtpbridge/sink"
	"smtpbridge/store"
)

// check tells whether the account of [dsn] can carry a DSN, and what is missing.
func TestCheckDSN(t *testing.T) {
	for _, tt := range []struct{ name, more, want string }{
		{"maildir", "[[account]]\nname = \"local\"\nprovider = \"maildir\"\nbase_url = \"maildir:///tmp/x\"\n[dsn]\naccount = \"local\"\n", "is good"},
		{"no raw MIME", "[dsn]\naccount = \"a\"\n", "dsn.account: account \"a\" (sandbox) takes no complete MIME message, as a DSN must stay one: name an account of provider smtp, lmtp or maildir"},
		{"an ESP with raw MIME", "[[account]]\nname = \"b\"\nprovider = \"mandrill\"\napi_key = \"k\"\n[dsn]\naccount = \"b\"\n", "is good"},
		{"no account", "[dsn]\non = [\"failed\"]\n", "warning: dsn: has no account: no DSN mail is written"},
		{"unknown account", "[dsn]\naccount = \"b\"\n", "there is no account \"b\""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := checkCommand()
			var out strings.Builder
			c.SetOut(&out)
			c.SetErr(&out)
			c.SetArgs([]string{"-c", writeConfig(t, t.TempDir(), "127.0.0.1:0", tt.more)})
			if err := c.Execute(); err != nil {
				out.WriteString(err.Error())
			}
			if !strings.Contains(out.String(), tt.want) {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}

// DSN mail goes only to domains that the user, or the listener, may send from.
func TestMayBeTold(t *testing.T) {
	cfg, err := config.Parse("b.toml", `
[[listener]]
name = "apps"
address = "127.0.0.1:1"
[[listener]]
name = "crm"
address = "127.0.0.1:2"
[[user]]
name = "ann"
password = "x"
senders = ["ann@one.example", "*.two.example"]
[[user]]
name = "all"
password = "x"
senders = ["*"]
[[account]]
name = "a"
provider = "sandbox"
[[route]]
senders = ["shop.example"]
listeners = ["apps"]
accounts = ["a"]
[[route]]
senders = ["news@crm.example"]
listeners = ["crm"]
recipients = ["customer.example"]
accounts = ["a"]
[[route]]
senders = ["*"]
users = ["all"]
accounts = ["a"]
`, all.Registry().Names())
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		listener, user, from string
		want                 bool
	}{
		{"apps", "", "x@shop.example", true},
		{"apps", "", "x@SHOP.example", true},
		{"apps", "", "x@sub.shop.example", false},
		{"apps", "", "x@crm.example", false},
		{"apps", "", "www-data@host", false},
		{"crm", "", "bounces@crm.example", true}, // an address stands for its domain
		{"crm", "", "x@shop.example", false},
		{"apps", "ann", "bounces@one.example", true},
		{"apps", "ann", "x@mail.two.example", true},
		{"apps", "ann", "x@shop.example", false},
		{"apps", "all", "x@anywhere.example", true},
		{"apps", "gone", "x@anywhere.example", false},
		{"", "", "x@shop.example", false}, // taken from an ESP, or made by the bridge
		{"renamed", "", "x@shop.example", false},
	} {
		if got := mayBeTold(cfg, &envelope.Envelope{Listener: tt.listener, AuthUser: tt.user, From: tt.from}); got != tt.want {
			t.Errorf("listener %q, user %q, %s: got %v", tt.listener, tt.user, tt.from, got)
		}
	}
}

// A reload switches DSN mail on and off: EHLO offers it exactly then, and the place in the event log is noted with it.
func TestReloadDSN(t *testing.T) {
	dir := shortTemp(t)
	local := fmt.Sprintf("[webhook]\naddress = \"\"\n[[account]]\nname = \"local\"\nprovider = \"maildir\"\nbase_url = \"maildir://%s/mail\"\n", dir)
	file := writeConfig(t, dir, "127.0.0.1:0", local)
	b, err := NewBridge(t.Context(), file, BridgeOptions{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	for i, on := range []bool{false, true, true, false, true} {
		text := local
		if on {
			text += "[dsn]\naccount = \"local\"\n"
		}
		writeConfig(t, dir, "127.0.0.1:0", text)
		if err := b.Reload(); err != nil {
			t.Fatal(err)
		}
		if got := b.lead(t.Context(), sink.DSNName); got != on || !b.lead(t.Context(), "file") {
			t.Errorf("step %d: the sink is served: %v", i, got)
		}
		if c, err := b.store.Cursor(t.Context(), sink.DSNName); err != nil || (c != "") != on {
			t.Errorf("step %d: cursor %q, %v", i, c, err)
		}
		if got := offered(t, b); got != on {
			t.Errorf("step %d: DSN is offered: %v", i, got)
		}
	}
	// A reload that fails leaves it as it was.
	if err := os.WriteFile(filepath.Join(dir, "bridge.toml"), []byte("[dsn]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := b.Reload(); err == nil || !b.lead(t.Context(), sink.DSNName) {
		t.Errorf("after a reload that failed: %v", err)
	}
}

// offered reports whether EHLO offers DSN; how, is a test of package smtp.
func offered(t *testing.T, b *Bridge) bool {
	t.Helper()
	sc, err := b.smtpConfig(b.parts.cfg, nil)
	if err != nil {
		t.Fatal(err)
	}
	return sc.Listeners[0].DSN
}

// With accept = "wait" a sender hears of each refusal once: in the reply, or by DSN where the reply was 250.
func TestWaitAndDSN(t *testing.T) {
	r := newRig(t, waiting, fmt.Sprintf("[[account]]\nname = \"local\"\nprovider = \"maildir\"\nbase_url = \"maildir://%s/mail\"\n[dsn]\naccount = \"local\"\n", shortTemp(t)))
	c := r.dial()
	c.cmd("EHLO app.example.com", "250")
	c.send("all@a.example")
	r.esp.next(t).answer <- "rejected"
	c.want("550 5.1.1")
	inReply := r.mail("refused", func(d *store.Detail) bool { return d.Mail.State == store.MailFinished }).Mail.Envelope.ID

	c.send("x@a.example", "y@b.example")
	for range 2 {
		call := r.esp.next(t)
		if call.rcpts[0] == "x@a.example" {
			call.answer <- "rejected"
		} else {
			call.answer <- "accepted"
		}
	}
	id := queueID(t, c.want("250 2.0.0"))
	var got *store.Notice
	r.mailID("told of x", id, func(*store.Detail) bool {
		l, err := r.store.Ledger(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		got = l.Notice(0, event.ActionFailed)
		return got != nil && got.DSN != ""
	})
	if l, err := r.store.Ledger(t.Context(), id); err != nil || len(l.Notices) != 1 {
		t.Errorf("of the other recipient: %+v, %v", l, err)
	}
	d := r.mailID("the DSN is delivered", got.DSN, func(d *store.Detail) bool { return d.Mail.State == store.MailFinished })
	if e := d.Mail.Envelope; e.From != "" || e.Rcpts[0].Addr != "app@example.com" || d.Rcpts[0].Account != "local" || d.Rcpts[0].State != store.RcptSent {
		t.Errorf("the DSN: %+v, %+v", e, d.Rcpts)
	}
	l, err := r.store.Ledger(t.Context(), inReply)
	if err != nil {
		t.Fatal(err)
	}
	if n := l.Notice(0, event.ActionFailed); n == nil || n.DSN != "" || n.Reason != "told in the reply" || !n.Due.IsZero() {
		t.Errorf("told in the reply: %+v", n)
	}
}

// queueID is what a reply of success names.
func queueID(t *testing.T, reply string) string {
	t.Helper()
	_, id, ok := strings.Cut(reply, "queued as ")
	if !ok {
		t.Fatalf("no queue id in %q", reply)
	}
	return strings.TrimSpace(id)
}
