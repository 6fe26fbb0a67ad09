package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"smtpbridge/admin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
)

// command runs a command line and gives what it printed.
func command(t *testing.T, input string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&bytes.Buffer{})
	root.SetIn(strings.NewReader(input))
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

// runBridge starts a bridge and gives its configuration file.
func runBridge(t *testing.T, dir, more string) (*Bridge, string) {
	t.Helper()
	file := writeConfig(t, dir, "127.0.0.1:0", more)
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
	return b, file
}

// The list through the commands, on the running bridge and on its store; and what SMTP says at RCPT.
func TestSuppressionCommands(t *testing.T) {
	const more = "[webhook]\naddress = \"\"\n[suppression]\nenabled = true\nat_rcpt = true\n"
	dir := shortTemp(t)
	b, file := runBridge(t, dir, more)
	do := func(input string, args ...string) string {
		t.Helper()
		out, err := command(t, input, append(append([]string{"suppression"}, args...), "-c", file)...)
		if err != nil {
			t.Fatalf("%v: %v", args, err)
		}
		return out
	}
	if out := do("", "list"); out != "no entries\n" {
		t.Errorf("an empty list: %q", out)
	}
	do("", "add", "all@example.net")
	do("", "add", "some@example.net", "--domain", "example.com", "--reason", "bounced", "--expires", "24h")
	if out := do("email,reason,expires\nfile@example.net,complained,2040-01-02T03:04:05Z\nnot an address,x,\nlate@example.net,x,tomorrow\n", "import"); out != "1 entry imported, 2 left out (\"not an address\" is no address)\n" {
		t.Errorf("import: %q", out)
	}
	if out := do("one@example.net\ntwo@example.net\n", "import", "-", "--domain", "example.org"); out != "2 entries imported\n" {
		t.Errorf("import of plain lines: %q", out)
	}
	var list []admin.Suppression
	if err := json.Unmarshal([]byte(do("", "list", "--json")), &list); err != nil || len(list) != 5 {
		t.Fatalf("list %+v, %v", list, err)
	}
	if out := do("", "list", "SOME@example.net"); !strings.Contains(out, "some@example.net  example.com  any     bounced") {
		t.Errorf("one address: %s", out)
	}

	// What holds for every From domain is refused at RCPT, and nothing else.
	say := func(rcpt string) string {
		conn, err := net.Dial("tcp", b.SMTPAddr("l").String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, err = dialogue(conn, nil, nil, "me@example.com", []string{rcpt}, []byte("From: me@example.com\r\nSubject: x\r\n\r\nx\r\n"))
		return fmt.Sprint(err)
	}
	if got := say("all@example.net"); !strings.Contains(got, "5.7.1 the address is on the suppression list (manual") {
		t.Errorf("RCPT of a suppressed address: %s", got)
	}
	if got := say("some@example.net"); got != "<nil>" {
		t.Errorf("RCPT of an address suppressed for one domain: %s", got)
	}

	exported := do("", "export")
	if lines := strings.Split(exported, "\n"); lines[0] != "address,domain,stream,reason,source,created,expires,sha256" || len(lines) != 7 {
		t.Errorf("export: %s", exported)
	}
	if out := do("", "remove", "some@example.net"); out != "1 entry of some@example.net removed\n" {
		t.Errorf("remove: %q", out)
	}
	if _, err := command(t, "", "suppression", "remove", "some@example.net", "-c", file); err == nil || err.Error() != "some@example.net is not on the list" {
		t.Errorf("remove of what is not there: %v", err)
	}
	if _, err := command(t, "", "suppression", "add", "nobody", "-c", file); err == nil || !strings.Contains(err.Error(), `"nobody" is no address`) {
		t.Errorf("add of no address: %v", err)
	}
	// An erased address goes on working by its hash, and is exported by it.
	if _, err := command(t, "", "erase", "all@example.net", "-c", file); err != nil {
		t.Fatal(err)
	}
	if got := say("all@example.net"); !strings.Contains(got, "5.7.1 the address is") {
		t.Errorf("after the erasure: %s", got)
	}
	exported = do("", "export")
	if strings.Contains(exported, "all@example.net") {
		t.Errorf("the erased address is exported:\n%s", exported)
	}

	// Another bridge's store, which nobody runs on, takes what was exported.
	other := shortTemp(t)
	file = writeConfig(t, other, "127.0.0.1:0", more)
	if out := do(exported, "import"); out != "4 entries imported\n" {
		t.Errorf("import of an export: %q", out)
	}
	if again := do("", "export"); again != exported {
		t.Errorf("exported again:\n%s\nwant\n%s", again, exported)
	}
}

// An ESP's own list, where its API has one.
func TestSuppressionImportFromESP(t *testing.T) {
	ms := httptest.NewServer(mailersend.New(mailersend.Options{Token: "token-ms", Domain: "example.com", Suppressed: map[string]string{
		"gone@example.net": "hard_bounced", "angry@example.net": "spam_complaint", "reader@example.net": "unsubscribed", "blocked@example.net": "blocklisted", "*@example.org": "blocklisted", "held@example.net": "on_hold",
	}}))
	defer ms.Close()
	md := httptest.NewServer(mandrill.New(mandrill.Options{Key: "token-md", Rejects: map[string]string{
		"gone@example.net": "hard-bounce", "full@example.net": "soft-bounce", "reader@example.net": "unsub",
	}}))
	defer md.Close()
	for _, tt := range []struct {
		name, account string
		args          []string
		said          string
		want          string // address domain stream reason, sorted by address
	}{
		{"mailersend", "ms", nil, "3 entries imported, 1 left out (an unsubscription is imported with --stream only)\n", "angry@example.net example.com  complained; blocked@example.net example.com  manual; gone@example.net example.com  bounced"},
		{"mandrill with a stream", "md", []string{"--stream", "news"}, "2 entries imported\n", "gone@example.net   bounced; reader@example.net  news unsubscribed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := shortTemp(t)
			file := filepath.Join(dir, "bridge.toml")
			text := fmt.Sprintf("data_dir = %q\n[[listener]]\naddress = \"127.0.0.1:0\"\n[webhook]\naddress = \"\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"ms\"]\n", dir)
			for _, a := range []struct{ name, provider, url string }{{"ms", "mailersend", ms.URL}, {"md", "mandrill", md.URL}, {"mp", "mailpace", md.URL}} {
				text += fmt.Sprintf("[[account]]\nname = %q\nprovider = %q\napi_key = \"token-%s\"\nbase_url = %q\n", a.name, a.provider, a.name, a.url)
			}
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			out, err := command(t, "", append([]string{"suppression", "import", "--account", tt.account, "-c", file}, tt.args...)...)
			if err != nil || out != tt.said {
				t.Errorf("said %q, %v", out, err)
			}
			out, err = command(t, "", "suppression", "list", "--json", "-c", file)
			if err != nil {
				t.Fatal(err)
			}
			var list []admin.Suppression
			if err := json.Unmarshal([]byte(out), &list); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, s := range list {
				got = append(got, strings.Join([]string{s.Address, s.Domain, s.Stream, s.Reason}, " "))
			}
			if sorted(got) != tt.want {
				t.Errorf("got  %s\nwant %s", sorted(got), tt.want)
			}
			if _, err := command(t, "", "suppression", "import", "--account", "mp", "-c", file); err == nil || !strings.Contains(err.Error(), "MailPace has no documented API that lists suppressions") {
				t.Errorf("of an ESP without one: %v", err)
			}
		})
	}
}

func sorted(list []string) string {
	slices.Sort(list)
	return strings.Join(list, "; ")
}
