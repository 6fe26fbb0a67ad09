package store

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"smtpbridge/event"
)

// killEnv makes this test binary the victim of TestCase054_KilledAtEveryCall: "DIR N".
const killEnv = "SMTPBRIDGE_STORE_VICTIM"

// TestCase054_KilledAtEveryCall kills a process with SIGKILL at its first, second, third ... call of the engine or
// the file system, and opens what it left behind: what it had acknowledged is there, and what it did at the
// ESP is not forgotten.
func TestCase054_KilledAtEveryCall(t *testing.T) {
	if v := os.Getenv(killEnv); v != "" {
		victim(t, v)
		return
	}
	t.Parallel()
	template := t.TempDir()
	s, err := openDir(t, template, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	step := 2
	if raceEnabled {
		step = 11
	}
	for n := 1; ; n += step {
		dir := filepath.Join(t.TempDir(), "d")
		if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestCase054_KilledAtEveryCall$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", killEnv, dir, n))
		out, err := cmd.Output()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL) {
			t.Fatalf("call %d: the victim ended with %v:\n%s", n, err, out)
		}
		autopsy(t, n, dir, string(out))
		if err == nil {
			if n < 40 {
				t.Fatalf("the story has only %d calls: the seam is not where it should be", n)
			}
			t.Logf("survived %d calls", n)
			return
		}
	}
}

// victim does what a bridge does with a mail, says on its standard output what is done, and kills itself at the n-th call.
func victim(t *testing.T, args string) {
	dir, text, _ := strings.Cut(args, " ")
	at, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	s, err := openDir(t, dir, func(string) error {
		if n++; n == at { // called by one goroutine at a time: the story waits for each step
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	say := func(what, id string) { fmt.Printf("\n@ %s %s\n", what, id) }
	for _, size := range []int{100, 5000} {
		m := testMail(time.Now(), "u@example.org")
		r, err := s.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		say("begun", m.Envelope.ID)
		if _, err := r.Write(bytes.Repeat([]byte("x"), size)); err != nil {
			t.Fatal(err)
		}
		if err := r.Commit(t.Context(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}); err != nil {
			t.Fatal(err)
		}
		say("accepted", m.Envelope.ID)
	}
	for range 2 {
		cs, err := s.Claim(t.Context(), "a", 1)
		if err != nil || len(cs) != 1 {
			t.Fatal(cs, err)
		}
		id := cs[0].Job.MailID
		calls, err := s.Start(t.Context(), cs[0], []Call{{Rcpts: []int{0}}})
		if err != nil {
			t.Fatal(err)
		}
		say("sending", id) // here the request goes out
		r, ev := sent(cs[0], 0, "pm"+id)
		if err := s.Settle(t.Context(), Settlement{Claim: cs[0], Calls: []CallResult{accepted(calls[0], "pm"+id)}, Rcpts: []RcptResult{r}, Events: []event.Event{ev}}); err != nil {
			t.Fatal(err)
		}
		say("settled", id)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func autopsy(t *testing.T, n int, dir, said string) {
	t.Helper()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatalf("call %d: %v", n, err)
	}
	defer s.Close()
	done := map[string]map[string]bool{}
	sc := bufio.NewScanner(strings.NewReader(said))
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) == 3 && f[0] == "@" {
			if done[f[2]] == nil {
				done[f[2]] = map[string]bool{}
			}
			done[f[2]][f[1]] = true
		}
	}
	for id, did := range done {
		d, err := s.Detail(t.Context(), id)
		switch {
		case errors.Is(err, ErrNotFound) && !did["accepted"]:
			continue
		case err != nil:
			t.Fatalf("call %d: mail %s, which was %v: %v", n, id, did, err)
		case len(d.Jobs)+len(d.Calls) == 0:
			t.Fatalf("call %d: a mail without job or call: %+v", n, d)
		}
		if did["sending"] && len(d.Calls) != 1 {
			t.Fatalf("call %d: a request went out and is forgotten", n)
		}
		if did["settled"] && (d.Rcpts[0].State != RcptSent || d.Calls[0].State != CallAccepted) {
			t.Fatalf("call %d: an acceptance is forgotten: %+v", n, d)
		}
		if d.Rcpts[0].State == RcptSent {
			continue
		}
		// Whoever is not sent yet is claimed again, and a call that went out is seen as one that may have been accepted.
		cs, err := s.Claim(t.Context(), "a", 10)
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, c := range cs {
			if c.Job.MailID == id {
				found = true
				if did["sending"] && (len(c.Open) != 1 || c.Open[0].State != CallAmbiguous) {
					t.Fatalf("call %d: a call of unknown outcome is claimed as %+v", n, c.Open)
				}
			}
			if err := s.Release(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		if !found {
			t.Fatalf("call %d: mail %s is not due: %+v", n, id, d)
		}
		b, err := s.Body(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if size := b.Size(); size != 100 && size != 5000 {
			t.Fatalf("call %d: the body has %d bytes", n, size)
		}
		b.Close()
	}
}

// TestCase055_UnsyncedWrites models a disk that lost what was not synced: each mail that was acknowledged was synced,
// so whatever became of the bytes written after it (dropped, kept in part, zeroed, garbled, in the wrong order), it
// is there, and the mail that was being written is there wholly or not at all.
func TestCase055_UnsyncedWrites(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s, err := openDir(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	wal := filepath.Join(dir, fileName+"-wal")
	size := func() int {
		fi, err := os.Stat(wal)
		if err != nil {
			t.Fatal(err)
		}
		return int(fi.Size())
	}
	type accepted struct {
		id   string
		body []byte
		end  int // of the log, synced
	}
	mails := []accepted{{end: size()}}
	for i := range 8 {
		body := random(t, 300+3000*(i%2))
		id, err := acceptOne(t, s, body)
		if err != nil {
			t.Fatal(err)
		}
		mails = append(mails, accepted{id, body, size()})
	}
	frozen := t.TempDir() // nothing was moved from the log to the database yet: one moment of both
	if err := os.CopyFS(frozen, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	log, err := os.ReadFile(filepath.Join(frozen, fileName+"-wal"))
	if err != nil {
		t.Fatal(err)
	}
	if len(log) < mails[8].end || mails[1].end == mails[8].end {
		t.Fatalf("the log has %d bytes, the last mail ends at %d", len(log), mails[8].end)
	}
	damage := map[string]func(tail []byte) []byte{
		"dropped":     func([]byte) []byte { return nil },
		"half":        func(tail []byte) []byte { return tail[:len(tail)/2] },
		"all but one": func(tail []byte) []byte { return tail[:len(tail)-1] },
		"zeroed":      func(tail []byte) []byte { return make([]byte, len(tail)) },
		"garbled":     func(tail []byte) []byte { return random(t, len(tail)) },
		"first zeroed": func(tail []byte) []byte {
			return append(make([]byte, min(512, len(tail))), tail[min(512, len(tail)):]...)
		},
		"last zeroed": func(tail []byte) []byte {
			return append(bytes.Clone(tail[:max(0, len(tail)-512)]), make([]byte, min(512, len(tail)))...)
		},
		"swapped": func(tail []byte) []byte {
			half := len(tail) / 2
			return append(bytes.Clone(tail[half:]), tail[:half]...)
		},
		"bit flipped": func(tail []byte) []byte {
			out := bytes.Clone(tail)
			out[len(out)/3] ^= 0x10
			return out
		},
	}
	for name, spoil := range damage {
		t.Run(name, func(t *testing.T) {
			for i := 0; i+1 < len(mails); i += 2 - i%2 { // every size of body as the one being written
				cut := t.TempDir()
				if err := os.CopyFS(cut, os.DirFS(frozen)); err != nil {
					t.Fatal(err)
				}
				torn := append(bytes.Clone(log[:mails[i].end]), spoil(log[mails[i].end:mails[i+1].end])...)
				if err := os.WriteFile(filepath.Join(cut, fileName+"-wal"), torn, 0o600); err != nil {
					t.Fatal(err)
				}
				_ = os.Remove(filepath.Join(cut, fileName+"-shm"))
				s, err := openDir(t, cut, nil)
				if err != nil {
					t.Fatalf("after mail %d: %v", i, err)
				}
				for j, m := range mails[1:] {
					b, err := s.Body(t.Context(), m.id)
					switch {
					case j+1 <= i && err != nil:
						t.Fatalf("after mail %d: mail %d was acknowledged and is lost: %v", i, j+1, err)
					case j+1 > i && err == nil, j+1 > i && !errors.Is(err, ErrNotFound):
						t.Fatalf("after mail %d: mail %d is there in part: %v", i, j+1, err)
					case err == nil:
						readBody(t, b, m.body)
					}
				}
				if _, err := acceptOne(t, s, random(t, 3000)); err != nil {
					t.Fatalf("after mail %d: %v", i, err)
				}
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestCase059_060_OtherFaults: a file system that is read-only, forbids or fails is our fault and not a full disk;
// nothing is left of the mail, a second Commit does not make it good, and with the fault gone all is well.
func TestCase059_060_OtherFaults(t *testing.T) {
	for _, fault := range []error{syscall.EROFS, syscall.EACCES, syscall.EIO} {
		for _, point := range []string{"create", "write", "mkdir", "fsync", "syncdir", "exec", "commit"} {
			t.Run(fmt.Sprint(fault, " at ", point), func(t *testing.T) {
				f := &failNth{at: 1, err: fmt.Errorf("store: %w", fault), point: point}
				f.off.Store(true)
				s, err := openDir(t, emptyStore(t), f.hook)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				f.off.Store(false)
				m := testMail(time.Now(), "u@example.org")
				r, err := s.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				commit := func() error { return r.Commit(t.Context(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}) }
				_, err = io.Copy(r, bytes.NewReader(random(t, 5000)))
				if err == nil {
					err = commit()
				}
				if err == nil || errors.Is(err, ErrNoSpace) {
					t.Fatalf("got %v", err)
				}
				// The kernel may say that a second fsync went well although the data are gone.
				if point == "fsync" || point == "syncdir" {
					if err := commit(); err == nil {
						t.Error("a second Commit is taken for good")
					}
				}
				r.Abort()
				if _, err := s.Detail(t.Context(), m.Envelope.ID); !errors.Is(err, ErrNotFound) {
					t.Errorf("the mail is there: %v", err)
				}
				if left, err := s.listBlobs(); err != nil || len(left) != 0 {
					t.Errorf("left over: %v %v", left, err)
				}
				if _, err := acceptOne(t, s, random(t, 5000)); err != nil {
					t.Errorf("without the fault: %v", err)
				}
			})
		}
	}
	t.Run("not well", func(t *testing.T) {
		f := &failNth{err: syscall.EROFS, point: "exec"}
		f.off.Store(true)
		s, err := openDir(t, emptyStore(t), f.hook)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		f.at = f.n + 1
		f.off.Store(false)
		if err := s.Ping(t.Context()); err == nil {
			t.Error("a store that cannot write says that it is well")
		}
	})
}

// TestCase058_Space: little space left is known before the first byte of a mail.
func TestCase058_Space(t *testing.T) {
	for free, want := range map[int64]error{1 << 60: ErrNoSpace, 1: nil, -1: nil} {
		s, err := openDir(t, emptyStore(t), nil, func(o *Options) { o.MinFree = free })
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Space(); !errors.Is(err, want) {
			t.Errorf("with %d wanted: %v", free, err)
		}
		s.Close()
	}
}
