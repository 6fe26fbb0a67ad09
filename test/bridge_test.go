// Package test drives the real binary with real clients: one folder t-NN-name per story.
package test

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpbridge/event"
)

// binary is the program under test, built once.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "smtpbridge-test")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "smtpbridge")
		out, err := exec.Command("go", "build", "-o", binary, "smtpbridge/cmd/smtpbridge").CombinedOutput()
		if err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// bridge is a running smtpbridge.
type bridge struct {
	t      testing.TB
	dir    string
	config string
	cmd    *exec.Cmd
	log    *lockedBuffer
	stderr *os.File // instead of log
	socket *os.File // the listener "systemd:smtp"
	wrap   []string // command that runs it, such as ip netns exec NAME
	args   []string // of serve
	other  string   // the program, if it is not the one under test
	exited chan error
}

// newBridge writes the configuration; start runs it.
func newBridge(t testing.TB, dir, config string) *bridge {
	t.Helper()
	b := &bridge{t: t, dir: dir, config: filepath.Join(dir, "bridge.toml"), log: &lockedBuffer{}}
	if err := os.WriteFile(b.config, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.kill()
		if t.Failed() {
			t.Logf("log of the bridge:\n%s", tail(b.log.String(), 8000))
		}
	})
	return b
}

func (b *bridge) program() string { return cmp.Or(b.other, binary) }

// start runs the bridge and returns when it is ready.
func (b *bridge) start() {
	b.t.Helper()
	line := append(append(slices.Clone(b.wrap), b.program(), "serve", "-c", b.config), b.args...)
	cmd := exec.Command(line[0], line[1:]...)
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=")
	if b.socket != nil {
		// The shell sets LISTEN_PID to the process that will be the bridge, as the service manager does.
		cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, binary, "serve", "-c", b.config)
		cmd.ExtraFiles = []*os.File{b.socket}
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET=", "LISTEN_FDS=1", "LISTEN_FDNAMES=smtp")
	}
	cmd.Stderr = b.log
	if b.stderr != nil {
		cmd.Stderr = b.stderr
	}
	if err := cmd.Start(); err != nil {
		b.t.Fatal(err)
	}
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	b.cmd, b.exited = cmd, exited
	client := b.adminClient()
	until(b.t, 30*time.Second, "the bridge is ready", func() bool {
		select {
		case err := <-exited:
			b.cmd = nil
			b.t.Fatalf("the bridge ended: %v", err)
		default:
		}
		resp, err := client.Get("http://bridge/readyz")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

func (b *bridge) adminClient() *http.Client {
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", filepath.Join(b.dir, "admin.sock"))
		},
	}}
}

// metrics is what Prometheus reads.
func (b *bridge) metrics() string {
	b.t.Helper()
	resp, err := b.adminClient().Get("http://bridge/metrics")
	if err != nil {
		b.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		b.t.Fatalf("metrics: status %d, %v", resp.StatusCode, err)
	}
	return string(text)
}

// kill ends the bridge as a power cut of the process would.
func (b *bridge) kill() {
	if b.cmd == nil {
		return
	}
	_ = b.cmd.Process.Kill()
	<-b.exited
	b.cmd = nil
}

// stop ends the bridge with SIGTERM and wants exit code 0.
func (b *bridge) stop() {
	b.t.Helper()
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		b.t.Fatal(err)
	}
	select {
	case err := <-b.exited:
		if err != nil {
			b.t.Errorf("exit after SIGTERM: %v", err)
		}
	case <-time.After(90 * time.Second):
		b.t.Fatal("still running 90 s after SIGTERM")
	}
	b.cmd = nil
}

// run executes a command of the binary and returns its standard output.
func (b *bridge) run(args ...string) string {
	b.t.Helper()
	out, err := b.try(args...)
	if err != nil {
		b.t.Fatalf("%s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (b *bridge) try(args ...string) (string, error) {
	cmd := exec.Command(b.program(), append(args, "-c", b.config)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errs.String())
	}
	return out.String(), err
}

// edit changes the configuration file.
func (b *bridge) edit(t testing.TB, old, text string) {
	t.Helper()
	have, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(have), old) {
		t.Fatalf("%q is not in the configuration", old)
	}
	if err := os.WriteFile(b.config, []byte(strings.Replace(string(have), old, text, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}

// signal sends a signal and waits for the line of the log that says what came of it.
func (b *bridge) signal(t testing.TB, s os.Signal, line string) {
	t.Helper()
	before := strings.Count(b.log.String(), line)
	if err := b.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
	until(t, 20*time.Second, line, func() bool { return strings.Count(b.log.String(), line) > before })
}

// events reads the event file.
func (b *bridge) events() []event.Event {
	b.t.Helper()
	return readEvents(b.t, filepath.Join(b.dir, "events.jsonl"))
}

func readEvents(t testing.TB, file string) []event.Event {
	t.Helper()
	f, err := os.Open(file)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var out []event.Event
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		var e event.Event
		if err := json.Unmarshal(sc.Bytes(), &e); err != nil {
			t.Fatalf("event line %q: %v", sc.Text(), err)
		}
		out = append(out, e)
	}
	return out
}

// waitEvents waits until the event file holds what want accepts.
func (b *bridge) waitEvents(what string, want func([]event.Event) bool) []event.Event {
	b.t.Helper()
	var evs []event.Event
	until(b.t, 30*time.Second, what, func() bool {
		evs = b.events()
		return want(evs)
	})
	return evs
}

// until waits for a condition.
func until(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for wait := time.Millisecond; !ok(); wait = min(2*wait, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after %v still not: %s", limit, what)
		}
		time.Sleep(wait) // between two looks at a condition
	}
}

// freePort gives a loopback port nobody uses now.
func freePort(t testing.TB) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}
