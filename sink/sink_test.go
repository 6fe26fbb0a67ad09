package sink_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/internal/storetest"
	"smtpbridge/sink"
	"smtpbridge/store"
)

// outbox is a Source whose cursors are indexes.
type outbox struct {
	mu      sync.Mutex
	evs     []event.Event
	cursors map[string]string
	subs    []chan struct{}
	fail    func(op string) error // may be set before Run
}

func newOutbox(n int) *outbox {
	o := &outbox{cursors: map[string]string{}}
	o.add(n)
	return o
}

func (o *outbox) add(n int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range n {
		i := len(o.evs)
		at := time.Unix(int64(i), 0).UTC()
		o.evs = append(o.evs, event.Event{V: 1, ID: fmt.Sprintf("e%d", i), Time: at, Seen: at, Kind: event.Delivered, Account: "a", Provider: "p", QueueID: fmt.Sprint("q", i%7)})
	}
	for _, c := range o.subs {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func (o *outbox) failing(op string) error {
	if o.fail == nil {
		return nil
	}
	return o.fail(op)
}

func (o *outbox) Follow(_ context.Context, cursor string, n int) ([]event.Event, string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.failing("follow"); err != nil {
		return nil, cursor, err
	}
	from, _ := strconv.Atoi(cursor)
	to := min(from+n, len(o.evs))
	if from == to {
		return nil, cursor, nil
	}
	return slices.Clone(o.evs[from:to]), strconv.Itoa(to), nil
}

func (o *outbox) Cursor(_ context.Context, name string) (string, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.cursors[name], o.failing("cursor")
}

func (o *outbox) SetCursor(_ context.Context, name, cursor string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.failing("setcursor"); err != nil {
		return err
	}
	o.cursors[name] = cursor
	return nil
}

func (o *outbox) Subscribe(store.Topic) (<-chan struct{}, func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	c := make(chan struct{}, 1)
	o.subs = append(o.subs, c)
	return c, func() {}
}

// run follows until done says so; it fails the test when that takes too long.
func run(t *testing.T, c sink.Config, done func() bool) {
	t.Helper()
	_, end := start(t, c)
	until(t, done)
	end()
}

// start follows until it is told to end.
func start(t *testing.T, c sink.Config) (_ *sink.Runner, end func()) {
	t.Helper()
	c.MinBackoff, c.MaxBackoff = time.Millisecond, 5*time.Millisecond
	if c.Poll == 0 {
		c.Poll = 5 * time.Millisecond
	}
	r, err := sink.New(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	return r, func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

func until(t *testing.T, done func() bool) {
	t.Helper()
	limit := time.Now().Add(10 * time.Second)
	for !done() {
		if time.Now().After(limit) {
			t.Fatal("waited too long")
		}
		time.Sleep(time.Millisecond)
	}
}

func ids(t *testing.T, paths ...string) (out []string) {
	t.Helper()
	for _, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		for line := range bytes.Lines(b) {
			var e event.Event
			if err := json.Unmarshal(line, &e); err != nil || line[len(line)-1] != '\n' {
				t.Errorf("%s: bad line %q: %v", p, line, err)
			}
			out = append(out, e.ID)
		}
	}
	return out
}

func wantIDs(t *testing.T, got []string, n int) {
	t.Helper()
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("e%d", i)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %d events, want e0 to e%d once each and in order: %.300q", len(got), n-1, got)
	}
}

func file(t *testing.T, path string) *sink.File {
	t.Helper()
	f, err := sink.NewFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// noted tells whether the sink's place is after n events.
func (o *outbox) noted(s sink.Sink, n int) func() bool {
	return func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		c := o.cursors[s.Name()]
		return c == strconv.Itoa(n) || strings.Contains(c, fmt.Sprintf(`"c":"%d"`, n))
	}
}

func TestFileOnceAndInOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(1234)
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Batch: 100}, o.noted(s, 1234))
	o.add(100)
	s = file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Batch: 100}, o.noted(s, 1334))
	wantIDs(t, ids(t, path), 1334)
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
}

func TestWakesWithoutPolling(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(1)
	s := file(t, path)
	added := false
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Poll: time.Hour}, func() bool {
		if !added && o.noted(s, 1)() {
			added = true
			o.add(1)
		}
		return o.noted(s, 2)()
	})
	wantIDs(t, ids(t, path), 2)
}

// The process dies after writing some bytes of a batch, and before noting it: every number of bytes
// around the line ends, and some between.
func TestFileAdoptsWholeLinesAndCutsTornOnes(t *testing.T) {
	for _, first := range []int{0, 2} {
		probe := filepath.Join(t.TempDir(), "probe.jsonl")
		o := newOutbox(first + 2)
		s := file(t, probe)
		run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, first+2))
		whole, err := os.ReadFile(probe)
		if err != nil {
			t.Fatal(err)
		}
		start := 0
		for range first {
			start += bytes.IndexByte(whole[start:], '\n') + 1
		}
		for cut := start; cut <= len(whole); cut++ {
			if cut > start+2 && cut < len(whole)-2 && cut%31 != 0 && !bytes.Contains(whole[cut-3:cut+3], []byte("\n")) {
				continue
			}
			path := filepath.Join(t.TempDir(), "events.jsonl")
			o := newOutbox(first)
			s := file(t, path)
			if first > 0 {
				run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, first))
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Write(whole[start:cut])
			f.Close()
			o.add(5)
			s = file(t, path)
			run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, first+5))
			wantIDs(t, ids(t, path), first+5)
			if t.Failed() {
				t.Fatalf("first batch %d, cut at byte %d", first, cut-start)
			}
		}
	}
}

// The place cannot be noted for a while: nothing is written twice meanwhile.
func TestFilePlaceNotNoted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(20)
	n := 0
	o.fail = func(op string) error {
		if n++; n%3 != 0 {
			return errors.New("database is busy")
		}
		return nil
	}
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Batch: 4}, o.noted(s, 20))
	wantIDs(t, ids(t, path), 20)
}

func TestFileRotation(t *testing.T) {
	for _, how := range []string{"noticed", "reload"} {
		t.Run(how, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "events.jsonl")
			o := newOutbox(5)
			s := file(t, path)
			r, end := start(t, sink.Config{Source: o, Sinks: []sink.Sink{s}})
			until(t, o.noted(s, 5))
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			if how == "reload" {
				if err := r.Reload([]sink.Sink{file(t, path)}); err != nil {
					t.Fatal(err)
				}
			}
			o.add(5)
			until(t, o.noted(s, 10))
			end()
			wantIDs(t, ids(t, path+".1", path), 10)
			wantIDs(t, ids(t, path+".1"), 5)
		})
	}
}

// Written, not noted, moved away, restarted: the moved file still tells what was written, and its
// torn end is cut.
func TestFileRotatedWhileDown(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(5)
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 5))
	old := o.cursors[s.Name()]
	o.add(3)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 8))
	o.cursors[s.Name()] = old
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(f, `{"v":1,"id":"e8"`)
	f.Close()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	o.add(2)
	s = file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 10))
	wantIDs(t, ids(t, path+".1", path), 10)
	wantIDs(t, ids(t, path+".1"), 8)
}

func TestFileEmptiedInPlace(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(5)
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 5))
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	o.add(5)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 10))
	if got := ids(t, path); !slices.Equal(got, []string{"e5", "e6", "e7", "e8", "e9"}) {
		t.Errorf("got %q", got)
	}
}

// A replay tells a fact anew under the same id: it is a line of its own.
func TestFileWritesRevisions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(1)
	again := o.evs[0]
	again.Revision = 1
	o.evs = append(o.evs, again)
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 2))
	if got := ids(t, path); !slices.Equal(got, []string{"e0", "e0"}) {
		t.Errorf("got %q", got)
	}
}

func TestFileKeepsForeignLines(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(path, []byte("hello\nno line end"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := newOutbox(1)
	s := file(t, path)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}}, o.noted(s, 1))
	b, err := os.ReadFile(path)
	if err != nil || !strings.HasPrefix(string(b), "hello\nno line end\n{\"v\":1,") {
		t.Errorf("got %q, %v", b, err)
	}
}

func TestNewFileRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, path := range map[string]string{"folder": dir, "missing folder": filepath.Join(dir, "no", "x"), "device": "/dev/null"} {
		if _, err := sink.NewFile(path); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	f := file(t, filepath.Join(dir, "x"))
	if _, err := sink.New(sink.Config{Source: newOutbox(0), Sinks: []sink.Sink{f, file(t, filepath.Join(dir, "x"))}}); err == nil {
		t.Error("two sinks for one file are accepted")
	}
}

// A sink that fails neither stops nor slows the others, and is logged once.
func TestSinksDoNotWaitForEachOther(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(300)
	bad := &brokenSink{}
	s := file(t, path)
	var log bytes.Buffer
	tries := func() bool {
		bad.mu.Lock()
		defer bad.mu.Unlock()
		return bad.tries > 20
	}
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{bad, s}, Log: slog.New(slog.NewTextHandler(&log, nil))}, func() bool { return o.noted(s, 300)() && tries() })
	wantIDs(t, ids(t, path), 300)
	if n := strings.Count(log.String(), "sink.error"); n != 1 || !strings.Contains(log.String(), "sink=broken") {
		t.Errorf("%d lines: %s", n, log.String())
	}
	if o.cursors["broken"] != "" {
		t.Error("the place of a failing sink moved")
	}
}

type brokenSink struct {
	mu    sync.Mutex
	tries int
}

func (*brokenSink) Name() string                                     { return "broken" }
func (*brokenSink) Open(_ context.Context, c string) (string, error) { return c, nil }
func (*brokenSink) Close() error                                     { return nil }

func (b *brokenSink) Write(context.Context, []event.Event, string) (string, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.tries++
	return "", errors.New("no")
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func TestStdout(t *testing.T) {
	var out lockedBuffer
	o := newOutbox(3)
	s := sink.Stdout(&out)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Batch: 2}, o.noted(s, 3))
	if n := strings.Count(out.b.String(), "\n"); n != 3 {
		t.Errorf("got %q", out.b.String())
	}
}

// Only the leader follows, and whoever takes over goes on where the other one was.
func TestLead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	o := newOutbox(10)
	s := file(t, path)
	n := 0
	lead := func(context.Context, string) bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		n++
		return n > 5
	}
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{s}, Lead: lead}, o.noted(s, 10))
	wantIDs(t, ids(t, path), 10)
}

const forwardKey = "0123456789abcdef0123456789abcdef"

// app is an application that checks signatures as Standard Webhooks says.
type app struct {
	t      *testing.T
	mu     sync.Mutex
	got    []event.Event
	hits   int
	answer func(e event.Event, hit int) int
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	m := hmac.New(sha256.New, []byte(forwardKey))
	fmt.Fprintf(m, "%s.%s.%s", r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp"), body)
	want := "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
	if !slices.Contains(strings.Fields(r.Header.Get("webhook-signature")), want) {
		a.t.Errorf("signature %q, want %q", r.Header.Get("webhook-signature"), want)
	}
	if ts, err := strconv.ParseInt(r.Header.Get("webhook-timestamp"), 10, 64); err != nil || time.Since(time.Unix(ts, 0)).Abs() > time.Minute {
		a.t.Errorf("timestamp %q", r.Header.Get("webhook-timestamp"))
	}
	var e event.Event
	if err := json.Unmarshal(body, &e); err != nil || r.Header.Get("Content-Type") != "application/json" {
		a.t.Errorf("body %q: %v", body, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hits++
	status := 200
	if a.answer != nil {
		status = a.answer(e, a.hits)
	}
	if status/100 == 2 {
		a.got = append(a.got, e)
	}
	w.WriteHeader(status)
}

func forward(t *testing.T, a *app, change func(*sink.ForwardConfig)) *sink.Forward {
	t.Helper()
	srv := httptest.NewServer(a)
	t.Cleanup(srv.Close)
	c := sink.ForwardConfig{URL: srv.URL + "/hook?token=CANARY", AllowLocal: true, Secrets: []secret.String{secret.New("another-key-0123456789"), secret.New("whsec_" + base64.StdEncoding.EncodeToString([]byte(forwardKey)))}}
	if change != nil {
		change(&c)
	}
	f, err := sink.NewForward(c)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(f.Name(), "CANARY") {
		t.Errorf("the name tells the token: %s", f.Name())
	}
	return f
}

// Case 90: a target that is down gets everything later, each event once, those of one mail in order.
func TestCase090_ForwardTargetDown(t *testing.T) {
	a := &app{t: t, answer: func(_ event.Event, hit int) int {
		return []int{503, 200, 500, 404, 200, 302}[hit%6]
	}}
	o := newOutbox(100)
	f := forward(t, a, nil)
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{f}, Batch: 30}, o.noted(f, 100))
	count := map[string]int{}
	last := map[string]time.Time{}
	for _, e := range a.got {
		count[e.ID]++
		if e.Time.Before(last[e.QueueID]) {
			t.Errorf("%s came after a later event of its mail", e.ID)
		}
		last[e.QueueID] = e.Time
	}
	if len(count) != 100 || len(a.got) != 100 {
		t.Errorf("%d events, %d posts taken", len(count), len(a.got))
	}
}

func TestForwardLeavesOutWhatIsRefusedForGood(t *testing.T) {
	a := &app{t: t, answer: func(e event.Event, _ int) int {
		if e.ID == "e3" {
			return 422
		}
		return 204
	}}
	o := newOutbox(10)
	var log lockedBuffer
	f := forward(t, a, func(c *sink.ForwardConfig) { c.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	run(t, sink.Config{Source: o, Sinks: []sink.Sink{f}}, o.noted(f, 10))
	if len(a.got) != 9 || a.hits != 9+5 {
		t.Errorf("%d taken, %d posts", len(a.got), a.hits)
	}
	if s := log.b.String(); !strings.Contains(s, "forward.refused") || !strings.Contains(s, "event=e3") {
		t.Errorf("log: %s", s)
	}
}

// Case 89: a target that is, or resolves to, an inner address is not called.
func TestCase089_ForwardToInnerAddresses(t *testing.T) {
	keys := []secret.String{secret.New(forwardKey)}
	for name, url := range map[string]string{
		"plain http": "http://app.example.com/", "file": "file:///etc/passwd", "user": "https://u:p@app.example.com/", "no host": "https:///x", "not a URL": "::",
	} {
		if _, err := sink.NewForward(sink.ForwardConfig{URL: url, Secrets: keys}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	for _, url := range []string{"https://127.0.0.1:1/", "https://[::1]:1/", "https://10.0.0.1:1/", "https://169.254.169.254/latest/meta-data?x=CANARY", "https://localhost:1/"} {
		f, err := sink.NewForward(sink.ForwardConfig{URL: url, Secrets: keys})
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Write(t.Context(), newOutbox(1).evs, "1")
		if err == nil || !strings.Contains(err.Error(), "webhook.ssrf_blocked") || strings.Contains(err.Error(), "CANARY") {
			t.Errorf("%s: %v", url, err)
		}
	}
}

func TestNewForwardWantsASecret(t *testing.T) {
	for name, s := range map[string][]secret.String{
		"none": nil, "empty": {secret.New("")}, "short": {secret.New("short")}, "bad base64": {secret.New("whsec_%%%")}, "one of two": {secret.New(forwardKey), {}},
	} {
		if _, err := sink.NewForward(sink.ForwardConfig{URL: "https://app.example.com/", Secrets: s}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// The vector of the specification's own libraries.
func TestForwardSignatureVector(t *testing.T) {
	// https://github.com/standard-webhooks/standard-webhooks: secret, id, timestamp, payload and signature of the libraries' tests.
	got := sink.Sign(t, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", `{"test": 2432232314}`)
	if want := "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The whole way on the real store.
func TestWithTheRealStore(t *testing.T) {
	st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	path := filepath.Join(t.TempDir(), "events.jsonl")
	var written atomic.Int64
	for range 2 {
		s := file(t, path)
		for _, e := range newOutbox(20).evs { // the second time all are known
			e.Kind = event.Opened // of an account nothing is known of: nothing to merge
			if _, err := st.Record(t.Context(), nil, e); err != nil {
				t.Fatal(err)
			}
		}
		run(t, sink.Config{Source: st, Sinks: []sink.Sink{s}, Batch: 7, Written: func(_ string, n int) { written.Add(int64(n)) }}, func() bool { return written.Load() >= 20 })
	}
	wantIDs(t, ids(t, path), 20)
}
