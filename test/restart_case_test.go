package test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpbridge/event"
)

// TestCase094_LogTarget: a log that nobody reads, or that cannot be written, holds up nothing, and no event is lost; the
// event file may be rotated meanwhile.
func TestCase094_LogTarget(t *testing.T) {
	for name, open := range map[string]func(t *testing.T) *os.File{
		"blocked": func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { r.Close(); w.Close() })
			if _, _, e := syscall.Syscall(syscall.SYS_FCNTL, w.Fd(), syscall.F_SETPIPE_SZ, 4096); e != 0 {
				t.Fatal(e)
			}
			return w
		},
		"full": func(t *testing.T) *os.File {
			f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
			if err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := shortDir(t)
			b, esp, addr := caseBridge(t, dir, "[log]\nlevel = \"debug\"\n")
			b.stop()
			b.stderr = open(t)
			b.start()
			c := dialCase(t, addr)
			const mails = 40 // several pipes full of debug lines
			for i := range mails {
				c.accept(t, fmt.Sprint("mail ", i), "x\r\n")
				if i == mails/2 {
					b.waitEvents("half of the mails are sent", func(evs []event.Event) bool { return count(evs, event.Sent) >= mails/4 })
					if err := os.Rename(filepath.Join(dir, "events.jsonl"), filepath.Join(dir, "events.old")); err != nil {
						t.Fatal(err)
					}
					if err := b.cmd.Process.Signal(syscall.SIGHUP); err != nil {
						t.Fatal(err)
					}
				}
			}
			until(t, 30*time.Second, "all mails arrive", func() bool { return len(esp.Inbox()) == mails })
			all := func() (evs []event.Event) {
				for _, name := range []string{"events.old", "events.jsonl"} {
					evs = append(evs, readEvents(t, filepath.Join(dir, name))...)
				}
				return evs
			}
			until(t, 30*time.Second, "all events are written", func() bool { return count(all(), event.Sent) == mails })
			b.stop()
		})
	}
}

// TestCase105_KeyRotated: mail that waits because the key is wrong goes out with the next one, without waiting for a probe.
func TestCase105_KeyRotated(t *testing.T) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "")
	var old, fresh atomic.Int64
	esp.set(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer rotated-key-0123456789" {
			old.Add(1)
			http.Error(w, `{"error":{"code":"unauthorized","message":"the key was revoked"}}`, http.StatusUnauthorized)
			return
		}
		fresh.Add(1)
		r.Header.Set("Authorization", "Bearer case-key-0123456789")
		esp.Server.ServeHTTP(w, r)
	})
	c := dialCase(t, addr)
	for i := range 3 {
		c.accept(t, fmt.Sprint("mail ", i), "x\r\n")
	}
	until(t, 20*time.Second, "the account is paused", func() bool { return strings.Contains(b.run("account", "list"), "paused") })
	b.edit(t, `api_key = "case-key-0123456789"`, `api_key = "rotated-key-0123456789"`)
	b.signal(t, syscall.SIGHUP, "config.reloaded")
	before := old.Load()
	until(t, 20*time.Second, "the mails are sent", func() bool { return len(esp.Inbox()) == 3 })
	if old.Load() != before || fresh.Load() == 0 {
		t.Errorf("%d calls with the old key after the reload", old.Load()-before)
	}
	for subject, n := range esp.subjects() {
		if n != 1 {
			t.Errorf("%q arrived %d times", subject, n)
		}
	}
	b.stop()
}

// TestCase110_RestartUnderLoad stops, starts and reloads the bridge while clients send, with its socket held by the service
// manager: nobody is refused a connection, what got its 250 arrives once, and no refusal is for good.
func TestCase110_RestartUnderLoad(t *testing.T) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "")
	b.stop()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if b.socket, err = ln.(*net.TCPListener).File(); err != nil {
		t.Fatal(err)
	}
	defer b.socket.Close()
	b.edit(t, fmt.Sprintf("address = %q", addr), `address = "systemd:smtp"`)
	b.start()
	var (
		mu    sync.Mutex
		acked = map[string]bool{}
		n     atomic.Int64
		wg    sync.WaitGroup
		stop  = make(chan struct{})
	)
	for range 4 {
		wg.Go(func() {
			var c *smtpConn
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c == nil {
					conn, err := net.Dial("tcp", addr)
					if err != nil {
						t.Errorf("a connection was refused: %v", err)
						return
					}
					c = &smtpConn{conn, bufio.NewReader(conn)}
					if err = c.expect("220"); err == nil {
						err = c.cmd("250", "EHLO load.example.com")
					}
					if err != nil {
						c = c.over(t, err)
						continue
					}
				}
				key := fmt.Sprint("load ", n.Add(1))
				ok, err := c.send("app@example.com", []string{"ada@example.net"}, "From: app@example.com\r\nSubject: "+key+"\r\n\r\nx\r\n")
				if ok {
					mu.Lock()
					acked[key] = true
					mu.Unlock()
				}
				if err != nil {
					c = c.over(t, err)
				}
			}
		})
	}
	more := func() {
		t.Helper()
		mu.Lock()
		want := len(acked) + 30
		mu.Unlock()
		until(t, 30*time.Second, "mail is taken", func() bool { mu.Lock(); defer mu.Unlock(); return len(acked) >= want })
	}
	for range 3 {
		more()
		b.signal(t, syscall.SIGHUP, "config.reloaded")
		more()
		b.stop()
		b.start()
	}
	more()
	close(stop)
	wg.Wait()
	until(t, 60*time.Second, "what was accepted arrives", func() bool {
		got := esp.subjects()
		for key := range acked {
			if got[key] == 0 {
				return false
			}
		}
		return true
	})
	b.stop()
	for key, n := range esp.subjects() {
		if n != 1 {
			t.Errorf("%q arrived %d times", key, n)
		}
	}
	t.Logf("%d mails accepted over 3 reloads and 3 restarts", len(acked))
}

// over ends a connection that failed, which may be by a temporary refusal or by the end of the process only.
func (s *smtpConn) over(t *testing.T, err error) *smtpConn {
	var ne net.Error
	if strings.Contains(err.Error(), `reply "5`) || errors.As(err, &ne) && ne.Timeout() {
		t.Errorf("under a restart: %v", err)
	} else if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !strings.Contains(err.Error(), `reply "4`) {
		t.Errorf("under a restart: %v", err)
	}
	s.Close()
	return nil
}

// TestCase116_SIGTERMInFlight: a call that the ESP is about to answer may end, nothing new is taken, and what was decided is
// saved: after the next start nothing is sent again.
func TestCase116_SIGTERMInFlight(t *testing.T) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "")
	asked, answer := make(chan struct{}), make(chan struct{})
	var once sync.Once
	esp.set(func(w http.ResponseWriter, r *http.Request) {
		once.Do(func() { close(asked) })
		<-answer
		esp.Server.ServeHTTP(w, r)
	})
	idle := dialCase(t, addr)
	dialCase(t, addr).accept(t, "in flight", "x\r\n")
	<-asked
	if err := b.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := idle.expect("421"); err != nil {
		t.Errorf("an idle session: %v", err)
	}
	until(t, 10*time.Second, "no more connections are taken", func() bool {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case err := <-b.exited:
		t.Fatalf("it did not wait for the call: %v", err)
	default:
	}
	close(answer)
	if err := <-b.exited; err != nil {
		t.Errorf("exit: %v", err)
	}
	b.cmd = nil
	for _, want := range []string{"msg=shutdown", "event=stopping", "event=stopped"} {
		if !strings.Contains(b.log.String(), want) {
			t.Errorf("%s is not in the log", want)
		}
	}
	if n := count(b.events(), event.Sent); n != 1 {
		t.Errorf("%d events tell that it was sent", n)
	}
	b.start()
	dialCase(t, addr).accept(t, "after", "x\r\n")
	until(t, 20*time.Second, "the next mail arrives", func() bool { return esp.subjects()["after"] > 0 })
	if n := esp.subjects()["in flight"]; n != 1 {
		t.Errorf("the mail in flight arrived %d times", n)
	}
	b.stop()
}
