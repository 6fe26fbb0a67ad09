package test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestCase115_Unit wants the shipped unit to be well formed and hardened.
func TestCase115_Unit(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	unit, err := os.ReadFile("../systemd/smtpbridge.service")
	if err != nil {
		t.Fatal(err)
	}
	// verify wants the program to exist: it gets this one.
	dir := t.TempDir()
	text := strings.ReplaceAll(string(unit), "/usr/bin/smtpbridge", binary)
	if err := os.WriteFile(filepath.Join(dir, "smtpbridge.service"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"verify", filepath.Join(dir, "smtpbridge.service")}
	for _, s := range []string{"smtpbridge.socket", "smtpbridge-webhook.socket"} {
		b, err := os.ReadFile(filepath.Join("../systemd", s))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, s), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
		args = append(args, filepath.Join(dir, s))
	}
	if out, err := exec.Command("systemd-analyze", args...).CombinedOutput(); err != nil || strings.Contains(string(out), "smtpbridge") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	out, err := exec.Command("systemd-analyze", "security", "--offline=true", filepath.Join(dir, "smtpbridge.service")).CombinedOutput()
	m := regexp.MustCompile(`exposure level for \S+ (\d+\.\d)`).FindSubmatch(out)
	if m == nil {
		t.Fatalf("systemd-analyze security: %v\n%s", err, out)
	}
	if level, err := strconv.ParseFloat(string(m[1]), 64); err != nil || level > 1.6 {
		t.Errorf("exposure level %s, want at most 1.6", m[1])
	}
}

// TestServiceProtocol runs the binary as the unit would: it reports readiness, reloading and
// stopping, and takes its sockets from the service manager.
func TestServiceProtocol(t *testing.T) {
	dir := shortDir(t)
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer notify.Close()
	var files []*os.File
	var addrs []string
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files, addrs = append(files, f), append(addrs, ln.Addr().String())
	}
	config := filepath.Join(dir, "bridge.toml")
	text := fmt.Sprintf("data_dir = %q\n[[listener]]\naddress = \"systemd:smtp\"\n[[account]]\nname = \"esp\"\nprovider = \"sandbox\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"esp\"]\n[webhook]\naddress = \"systemd:webhook\"\n", dir)
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// The shell sets LISTEN_PID to the process that will be the bridge, as the service manager does.
	cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, binary, "serve", "-c", config)
	cmd.ExtraFiles = files
	log := &lockedBuffer{}
	cmd.Stderr = log
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"), "LISTEN_FDS=2", "LISTEN_FDNAMES=smtp:webhook", "WATCHDOG_USEC=300000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Kill()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	want := func(state string) {
		t.Helper()
		buf := make([]byte, 4096)
		deadline := time.Now().Add(20 * time.Second)
		for {
			if err := notify.SetReadDeadline(deadline); err != nil {
				t.Fatal(err)
			}
			n, err := notify.Read(buf)
			if err != nil {
				t.Fatalf("waiting for %s: %v", state, err)
			}
			if strings.Contains(string(buf[:n]), state) {
				return
			}
		}
	}
	want("READY=1")
	want("WATCHDOG=1")
	c, err := dialSMTP(addrs[0], 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.send("a@example.com", []string{"b@example.net"}, "From: a@example.com\r\nSubject: x\r\n\r\nx\r\n"); err != nil {
		t.Error(err)
	}
	hook, err := net.Dial("tcp", addrs[1])
	if err != nil {
		t.Error(err)
	} else {
		hook.Close()
	}
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	want("RELOADING=1")
	want("READY=1")
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	want("STOPPING=1")
	select {
	case err := <-exited:
		if err != nil {
			t.Errorf("exit: %v", err)
		}
	case <-time.After(60 * time.Second):
		t.Error("did not stop")
	}
}
