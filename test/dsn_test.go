package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// TestDSNStory: mails that fail before the queue, at the ESP's API and hours later by webhook come back to their
// senders as DSN mail in a Maildir, which a mail reader (mutt) shows; those who asked not to be told, and null
// senders, get nothing; a kill -9 makes nobody hear twice.
func TestDSNStory(t *testing.T) {
	needs(t, "# needs: mutt script\n")
	dir := shortDir(t)
	addr := fmt.Sprintf("127.0.0.1:%d", freePort(t))
	b := newBridge(t, dir, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
address = %q
[[account]]
name = "esp"
provider = "sandbox"
[account.options]
delay = "20ms"
[[account]]
name = "local"
provider = "maildir"
base_url = "maildir://%s/mail"
[[route]]
senders = ["example.com"]
recipients = ["example.net"]
accounts = ["esp"]
[webhook]
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
[dsn]
account = "local"
`, dir, addr, dir, freePort(t)))
	b.start()
	c := dialCase(t, addr)
	send := func(from, subject string, rcpts ...string) {
		t.Helper()
		lines := []string{"MAIL FROM:" + from}
		for _, r := range rcpts {
			lines = append(lines, "RCPT TO:"+r)
		}
		for _, l := range lines {
			if err := c.cmd("250", l); err != nil {
				t.Fatalf("%s: %v", l, err)
			}
		}
		if err := c.cmd("354", "DATA"); err != nil {
			t.Fatal(err)
		}
		if err := c.cmd("250", "From: App <app@example.com>\r\nTo: somebody@example.net\r\nSubject: "+subject+"\r\n\r\nThe words of "+subject+".\r\n."); err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
	}
	if err := c.cmd("250", "MAIL FROM:<app@example.com>"); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd("501", "RCPT TO:<a@example.net> NOTIFY=NEVER,FAILURE"); err != nil {
		t.Error(err)
	}
	if err := c.cmd("250", "RSET"); err != nil {
		t.Fatal(err)
	}
	send("<app@example.com>", "late bounce", "<bounce@example.net>")
	send("<app@example.com> RET=FULL ENVID=env+2B1", "refused", "<550@example.net> ORCPT=rfc822;old@example.net", "<ok@example.net>")
	send("<app@example.com>", "no route for one", "<ok@example.net>", "<x@elsewhere.example>")
	send("<app@example.com>", "wanted", "<fine@example.net> NOTIFY=SUCCESS", "<defer@example.net> NOTIFY=NEVER")
	send("<app@example.com>", "unwanted", "<bounce@example.net> NOTIFY=NEVER", "<550@example.net> NOTIFY=SUCCESS,DELAY")
	send("<>", "from nobody", "<bounce@example.net>")
	send("<stranger@elsewhere.example>", "from a stranger", "<bounce@example.net>")
	// The event log is followed in its order: once this one is told, all before it are decided.
	b.waitEvents("four bounces", func(evs []event.Event) bool { return count(evs, event.Bounced) == 4 })
	send("<app@example.com>", "last", "<blocked@example.net>")

	want := []string{
		"failed 550@example.net / Undeliverable: refused", "failed blocked@example.net / Undeliverable: last", "failed bounce@example.net / Undeliverable: late bounce",
		"failed x@elsewhere.example / Undeliverable: no route for one", "delivered fine@example.net / Delivered: wanted",
	}
	slices.Sort(want)
	told := func() []string {
		var out []string
		for _, raw := range maildir(t, filepath.Join(dir, "mail")) {
			s := ""
			for _, m := range regexp.MustCompile(`Final-Recipient: rfc822; (\S+)\r?\nAction: (\S+)`).FindAllStringSubmatch(raw, -1) {
				s += m[2] + " " + m[1] + " "
			}
			out = append(out, s+"/ "+field(raw, "Subject"))
		}
		slices.Sort(out)
		return out
	}
	until(t, 30*time.Second, "the DSN of the last mail", func() bool {
		return slices.ContainsFunc(told(), func(s string) bool { return strings.HasSuffix(s, "last") })
	})
	until(t, 30*time.Second, "every DSN", func() bool { return len(told()) >= len(want) })
	if got := told(); !slices.Equal(got, want) {
		t.Errorf("told:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, raw := range maildir(t, filepath.Join(dir, "mail")) {
		if field(raw, "Return-Path") != "<>" || field(raw, "To") != "<app@example.com>" || field(raw, "Auto-Submitted") != "auto-replied" {
			t.Errorf("not a DSN to the sender:\n%s", raw)
		}
		whole := strings.Contains(raw, "The words of")
		if strings.Contains(raw, "Undeliverable: refused") {
			if !whole || !strings.Contains(raw, "Original-Envelope-Id: env+1") || !strings.Contains(raw, "Original-Recipient: rfc822;old@example.net") {
				t.Errorf("RET=FULL, ENVID or ORCPT is not honoured:\n%s", raw)
			}
		} else if whole {
			t.Errorf("body text in a DSN that nobody asked it for:\n%s", raw)
		}
	}

	b.kill()
	b.start()
	c = dialCase(t, addr)
	send("<app@example.com>", "after the kill", "<blocked@example.net>")
	until(t, 30*time.Second, "the DSN after the kill", func() bool {
		return slices.ContainsFunc(told(), func(s string) bool { return strings.HasSuffix(s, "after the kill") })
	})
	if got := told(); len(got) != len(want)+1 {
		t.Errorf("after a kill -9: %s", strings.Join(got, "\n"))
	}
	if out := b.run("queue", "list"); strings.Contains(out, "local") {
		t.Errorf("DSN mail is still in the queue:\n%s", out)
	}
	trace := b.run("trace", "bounce@example.net")
	if !strings.Contains(trace, "failed  bounce@example.net  told app@example.com by mail ") || !strings.Contains(trace, "no mail: the user or listener may not send from") {
		t.Errorf("the trace does not say what senders were told:\n%s", trace)
	}
	b.stop()
	mutt(t, dir, filepath.Join(dir, "mail"), []string{
		"Subject: Undeliverable: late bounce", "This address does not exist. Please check how it is spelt.", "Final-Recipient: rfc822; bounce@example.net",
		"Subject: Delivered: wanted", "The words of refused.", "Diagnostic-Code: smtp; 550 5.1.1 no such user here",
	})
}

// maildir reads the mails of a Maildir.
func maildir(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(dir + "/new/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, string(b))
	}
	return out
}

// field is a header field of a mail that is not folded.
func field(raw, name string) string {
	for line := range strings.Lines(raw) {
		if v, ok := strings.CutPrefix(line, name+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// mutt has the mail reader show all mails of a folder, and wants to see these texts.
func mutt(t *testing.T, tmp, folder string, want []string) {
	t.Helper()
	rc, shown := filepath.Join(tmp, "muttrc"), filepath.Join(tmp, "shown")
	keys := `push "<tag-pattern>.<enter><tag-prefix><pipe-message>cat >` + shown + `<enter><exit>"` + "\n"
	if err := os.WriteFile(rc, []byte("set mbox_type=Maildir\nset pipe_decode\nset charset=utf-8\nset folder="+tmp+"\n"+keys), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "script", "-qec", fmt.Sprintf("mutt -n -F %s -R -f %s", rc, folder), "/dev/null")
	cmd.Env = append(os.Environ(), "TERM=xterm", "LC_ALL=C.UTF-8", "HOME="+tmp)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mutt: %v\n%s", err, tail(string(out), 2000))
	}
	b, err := os.ReadFile(shown)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range want {
		if !strings.Contains(string(b), s) {
			t.Errorf("mutt does not show %q:\n%s", s, tail(string(b), 8000))
		}
	}
}
