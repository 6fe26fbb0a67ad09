package test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestCase102_WrongConfiguration: check and serve refuse what cannot work, and say which file, line and key it is.
func TestCase102_WrongConfiguration(t *testing.T) {
	dir := shortDir(t)
	certificate(t, dir)
	other := shortDir(t)
	certificate(t, other)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(dir, "bridge.toml")
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("key", "a-key\n")
	write("empty", "\n")
	write("junk.pem", "junk\n")
	const account = "[[account]]\nname = \"esp\"\nprovider = \"sandbox\"\n"
	const route = "[[route]]\nsenders = [\"example.com\"]\naccounts = [\"esp\"]\n"
	listener := fmt.Sprintf("[[listener]]\naddress = \"127.0.0.1:%d\"\n", freePort(t))
	base := fmt.Sprintf("data_dir = %q\n", dir) + "[webhook]\naddress = \"\"\n"
	for _, tt := range []struct {
		name, text, want string
		onlyServe        bool // what only the running machine can tell
	}{
		{"bad TOML", base + "hostname = = 1\n", "bridge.toml:4: not valid TOML", false},
		{"unknown key", base + listener + "adress = 1\n" + account + route, "bridge.toml:6: listener[0].adress: unknown key", false},
		{"wrong type", base + listener + "max_recipients = \"many\"\n" + account + route, "bridge.toml:6: listener[0].max_recipients", false},
		{"unknown provider", base + listener + "[[account]]\nname = \"esp\"\nprovider = \"sendgroud\"\n" + route, "bridge.toml:8: account[0].provider: unknown provider", false},
		{"doubled route", base + listener + account + route + route, "route[1].senders: \"example.com\" already takes route", false},
		{"no route", base + listener + account, "no [[route]]", false},
		{"empty key", base + listener + account + "api_key_file = \"empty\"\n" + route, "bridge.toml:9: account[0].api_key_file", false},
		{"missing key file", base + listener + account + "api_key_file = \"nowhere\"\n" + route, "bridge.toml:9: account[0].api_key_file", false},
		{"negative limit", base + listener + "max_connections = -1\n" + account + route, "bridge.toml:6: listener[0].max_connections: must not be negative", false},
		{"open to the world", base + "[[listener]]\naddress = \"0.0.0.0:2525\"\n" + account + route, "bridge.toml:5: listener[0].address: 0.0.0.0:2525 is reachable", false},
		{"no certificate in the file", base + listener + "tls = \"starttls\"\ncert_file = \"junk.pem\"\nkey_file = \"key.pem\"\n" + account + route, "bridge.toml:7: listener[0].cert_file", false},
		{"key of another certificate", base + listener + "tls = \"starttls\"\ncert_file = \"cert.pem\"\nkey_file = " + fmt.Sprintf("%q", filepath.Join(other, "key.pem")) + "\n" + account + route, "the key is that of another certificate", false},
		{"port taken", base + fmt.Sprintf("[[listener]]\naddress = %q\n", taken.Addr()) + account + route, "address already in use", true},
		{"data_dir is a file", fmt.Sprintf("data_dir = %q\n", filepath.Join(dir, "key")) + listener + account + route, "not a directory", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write("bridge.toml", tt.text)
			if !tt.onlyServe {
				out, err := exec.Command(binary, "check", "-c", file).CombinedOutput()
				if err == nil || !strings.Contains(string(out), tt.want) {
					t.Errorf("check: %v, want %q in:\n%s", err, tt.want, out)
				}
			}
			wantNoStart(t, file, tt.want)
		})
	}
	t.Run("no file", func(t *testing.T) { wantNoStart(t, filepath.Join(dir, "nothing.toml"), "nothing.toml does not exist") })
	t.Run("key readable by all", func(t *testing.T) {
		if err := os.Chmod(filepath.Join(dir, "key"), 0o644); err != nil {
			t.Fatal(err)
		}
		write("bridge.toml", base+listener+account+"api_key_file = \"key\"\n"+route)
		out, err := exec.Command(binary, "check", "-c", file).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "can be read by every user") {
			t.Errorf("check: %v\n%s", err, out)
		}
	})
}

// TestCase103_ReloadRefused: a wrong configuration changes nothing while the bridge runs: sessions go on, mail is taken and
// sent as before, and the next right one takes effect.
func TestCase103_ReloadRefused(t *testing.T) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "")
	good, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	reload := func(text []byte, event string) {
		t.Helper()
		if err := os.WriteFile(b.config, text, 0o600); err != nil {
			t.Fatal(err)
		}
		before := strings.Count(b.log.String(), event)
		if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		until(t, 10*time.Second, event, func() bool { return strings.Count(b.log.String(), event) > before })
	}
	// A mail waits for a route that no wrong configuration may take away.
	esp.fail(503)
	session := dialCase(t, addr)
	session.accept(t, "queued before", "x\r\n")
	for _, line := range []string{"MAIL FROM:<app@example.com>", "RCPT TO:<ada@example.net>"} {
		if err := session.cmd("250", line); err != nil {
			t.Fatal(err)
		}
	}
	if err := session.cmd("354", "DATA"); err != nil {
		t.Fatal(err)
	}
	wrong := map[string][]byte{
		"empty":            nil,
		"bad TOML":         append(bytes.Clone(good), "[[route]\n"...),
		"unknown key":      append(bytes.Clone(good), "\n[delivery2]\nx = 1\n"...),
		"unknown account":  bytes.Replace(good, []byte(`accounts = ["esp"]`), []byte(`accounts = ["nobody"]`), 1),
		"unknown provider": bytes.Replace(good, []byte(`"sandbox"`), []byte(`"sandcastle"`), 1),
		"missing key file": bytes.Replace(good, []byte(`api_key = "case-key-0123456789"`), []byte(`api_key_file = "nowhere"`), 1),
		"bad retry":        bytes.Replace(good, []byte(`"1s*"`), []byte(`"soon"`), 1),
		"taken port":       append(bytes.Clone(good), fmt.Sprintf("\n[[listener]]\nname = \"new\"\naddress = %q\n", taken.Addr())...),
	}
	for name, text := range wrong {
		reload(text, "config.reload_failed")
		c := dialCase(t, addr)
		c.accept(t, name, "x\r\n")
		c.Close()
	}
	if _, err := session.Write([]byte("From: app@example.com\r\nSubject: half way\r\n\r\nx\r\n.\r\n")); err != nil {
		t.Fatal(err)
	}
	if err := session.expect("250"); err != nil {
		t.Fatal(err)
	}
	esp.set(nil)
	until(t, 30*time.Second, "all mails arrive", func() bool { return len(esp.Inbox()) == len(wrong)+2 })

	reload(bytes.Replace(good, []byte(`senders = ["example.com"]`), []byte(`senders = ["example.org"]`), 1), "config.reloaded")
	c := dialCase(t, addr)
	if _, err := c.send("app@example.com", []string{"ada@example.net"}, "From: app@example.com\r\nSubject: x\r\n\r\nx\r\n"); err == nil || !strings.Contains(err.Error(), `"550 5.7.1`) {
		t.Errorf("with the new routes: %v", err)
	}
	b.stop()
}
