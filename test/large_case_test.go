package test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

var (
	queued    = flag.Int("queued", 2000, "TestCase063: how many mails wait at the restart")
	largeRuns = flag.Int("large-sessions", 8, "TestCase117: sessions at once")
	largeSize = flag.Int("large-size", 8, "TestCase117: MiB of each mail")
)

// memoryLimit is what the bridge may use with a million mails queued, and with a hundred large ones being received.
const memoryLimit = 256 << 20

// peakMemory is the most memory a process has had at once.
func peakMemory(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Skipf("no /proc: %v", err)
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// TestCase063_RestartWithAQueue starts a bridge on a queue (make million: of 1,000,000 mails): it accepts mail soon, in
// little memory, and sends the oldest first.
func TestCase063_RestartWithAQueue(t *testing.T) {
	dir := shortDir(t)
	b, esp, addr := caseBridge(t, dir, "[[account]]\nname = \"other\"\nprovider = \"sandbox\"\napi_key = \"other-key\"\n")
	b.run("account", "pause", "esp")
	dialCase(t, addr).accept(t, "queued 0", "x\r\n")
	b.stop()
	var mu sync.Mutex
	var order []string // of arrival
	esp.set(func(w http.ResponseWriter, r *http.Request) {
		var m struct {
			Subject string `json:"subject"`
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			return // cut off by the end of the bridge
		}
		mu.Lock()
		order = append(order, m.Subject)
		mu.Unlock()
		http.Error(w, `{"error":{"code":"case","message":"later"}}`, http.StatusInternalServerError)
	})
	seedQueue(t, b, *queued-1)
	began := time.Now()
	b.start()
	c := dialCase(t, addr)
	c.accept(t, "new", "x\r\n")
	took := time.Since(began)
	peak := peakMemory(t, b.cmd.Process.Pid)
	t.Logf("%d mails queued: the first 250 came %s after the start, with at most %d MiB", *queued, took.Round(time.Millisecond), peak>>20)
	if *queued >= 1_000_000 && took > 10*time.Second {
		t.Error("that is more than 10 s")
	}
	until(t, time.Minute, "what is queued is told", func() bool { return strings.Contains(b.log.String(), fmt.Sprintf("queue.loaded queued=%d", *queued)) })
	b.run("account", "resume", "esp")
	const look = 200
	until(t, time.Minute, "mail is sent", func() bool { mu.Lock(); defer mu.Unlock(); return len(order) >= look })
	b.kill() // the rest may stay
	mu.Lock()
	defer mu.Unlock()
	var got []int
	for _, subject := range order[:look] {
		n, err := strconv.Atoi(strings.TrimPrefix(subject, "queued "))
		if err != nil {
			t.Fatalf("%q came before mail that waited longer", subject)
		}
		got = append(got, n)
	}
	// Calls run side by side and mail is read ahead: the order holds up to that.
	if oldest := slices.Max(got); oldest > look+200 {
		t.Errorf("mail %d was among the first %d", oldest, look)
	}
	if peak > memoryLimit {
		t.Errorf("%d MiB of memory", peak>>20)
	}
}

// seedQueue fills the store of a stopped bridge as if it had accepted n mails more than one, with the configuration that one was
// planned with.
func seedQueue(t *testing.T, b *bridge, n int) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Options{Dir: b.dir})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	have, err := st.Mails(t.Context(), store.Filter{})
	if err != nil || len(have) != 1 {
		t.Fatalf("%d mails in the queue, %v", len(have), err)
	}
	generation := have[0].Generation
	first := time.Now().Add(-time.Duration(n) * time.Millisecond)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for {
				i := int(next.Add(1))
				if i > n {
					return
				}
				at := first.Add(time.Duration(i) * time.Millisecond)
				m := store.Mail{Generation: generation, FromHeader: "app@example.com", Envelope: envelope.Envelope{
					ID: envelope.NewID(at), From: "app@example.com", Received: at, Listener: "case", Rcpts: []envelope.Rcpt{{Addr: fmt.Sprintf("u%d@example.net", i)}},
				}}
				err := seedMail(t.Context(), st, m, fmt.Sprintf("From: app@example.com\r\nTo: u%d@example.net\r\nSubject: queued %d\r\n\r\n%s", i, i, strings.Repeat("A line of a body.\r\n", 20)), generation)
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

func seedMail(ctx context.Context, st *store.Store, m store.Mail, text string, generation int64) error {
	r, err := st.Begin(ctx)
	if err != nil {
		return err
	}
	defer r.Abort()
	if _, err := r.Write([]byte(text)); err != nil {
		return err
	}
	at := m.Envelope.Received
	return r.Commit(ctx, m, []store.NewJob{{Route: "route1", Accounts: []string{"esp"}, Rcpts: []int{0}, Expires: at.Add(240 * time.Hour)}},
		event.Event{V: event.Version, ID: "q" + m.Envelope.ID, Kind: event.Queued, Time: at, Seen: at, Recipient: m.Envelope.Rcpts[0].Addr})
}

// TestCase117_MemoryLimit receives and sends many large mails at once (make memory: 100 of 25 MiB) in less memory than they
// have together; where this machine lets us, the kernel enforces the limit.
func TestCase117_MemoryLimit(t *testing.T) {
	dir := shortDir(t)
	limit := int64(memoryLimit)
	b, esp, addr := caseBridge(t, dir, "")
	b.edit(t, "[[account]]", fmt.Sprintf("max_connections_per_ip = 1000\nmax_message_size = \"%dMiB\"\n[[account]]", *largeSize+1))
	var sent, received atomic.Int64
	esp.set(func(w http.ResponseWriter, r *http.Request) { // keeps nothing, as it is no part of what is measured
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			return
		}
		sent.Add(1)
		received.Add(n)
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"id":"x","recipients":[{"email":"ada@example.net","result":"accepted","id":"x"}]}`)
	})
	b.stop()
	group := memoryGroup(t, limit)
	b.start()
	if group != "" {
		if err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(b.cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	before := peakMemory(t, b.cmd.Process.Pid)
	line := strings.Repeat("0123456789abcdef", 4) + "\r\n"
	chunk := strings.Repeat(line, 1<<20/len(line))
	var wg sync.WaitGroup
	began := time.Now()
	for i := range *largeRuns {
		wg.Go(func() {
			c, err := dialSMTP(addr, 10*time.Second)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			err = c.cmd("250", "MAIL FROM:<app@example.com>")
			if err == nil {
				err = c.cmd("250", "RCPT TO:<ada@example.net>")
			}
			if err == nil {
				err = c.cmd("354", "DATA")
			}
			if err == nil {
				_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
				_, err = fmt.Fprintf(c, "From: app@example.com\r\nSubject: large %d\r\nMIME-Version: 1.0\r\nContent-Type: application/octet-stream; name=a.bin\r\n\r\n", i)
			}
			for range *largeSize {
				if err == nil {
					_ = c.SetDeadline(time.Now().Add(10 * time.Minute))
					_, err = c.Write([]byte(chunk))
				}
			}
			if err == nil {
				_, err = fmt.Fprint(c, ".\r\n")
			}
			if err == nil {
				err = c.expectWithin("250", 10*time.Minute)
			}
			if err != nil {
				t.Errorf("session %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	accepted := time.Since(began)
	until(t, 20*time.Minute, "all mails are sent", func() bool {
		select {
		case err := <-b.exited:
			b.cmd = nil
			t.Fatalf("the bridge ended: %v", err)
		default:
		}
		return count(b.events(), event.Sent) >= *largeRuns
	})
	peak := peakMemory(t, b.cmd.Process.Pid)
	t.Logf("%d sessions with %d MiB each, limit %d MiB (by the kernel: %v): accepted in %s, sent after %s, at most %d MiB (%d at rest)",
		*largeRuns, *largeSize, limit>>20, group != "", accepted.Round(time.Millisecond), time.Since(began).Round(time.Millisecond), peak>>20, before>>20)
	if n := sent.Load(); n != int64(*largeRuns) || received.Load() < n*int64(*largeSize)<<20 {
		t.Errorf("the ESP has %d mails with %d MiB", n, received.Load()>>20)
	}
	if peak > limit {
		t.Errorf("%d MiB of memory, want at most %d", peak>>20, limit>>20)
	}
	// However small the run: what is being received is not in memory.
	if all := int64(*largeRuns) * int64(*largeSize) << 20; peak-before > max(all/2, 32<<20) && all < limit {
		t.Errorf("memory grew by %d MiB for %d MiB of mail", (peak-before)>>20, all>>20)
	}
	b.stop()
}

// memoryGroup makes a control group with a memory limit, "" where that is not possible.
func memoryGroup(t *testing.T, limit int64) string {
	for root, file := range map[string]string{"/sys/fs/cgroup/memory": "memory.limit_in_bytes", "/sys/fs/cgroup": "memory.max"} {
		dir := filepath.Join(root, fmt.Sprint("smtpbridge-test-", os.Getpid()))
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() { _ = os.Remove(dir) })
		if os.WriteFile(filepath.Join(dir, file), []byte(strconv.FormatInt(limit, 10)), 0) == nil {
			return dir
		}
		_ = os.Remove(dir)
	}
	return ""
}
