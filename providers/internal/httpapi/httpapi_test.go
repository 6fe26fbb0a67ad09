package httpapi

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	neturl "net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
)

const key = "key-canary/+ 77"

func client(t *testing.T) *Client {
	t.Helper()
	h, err := safehttp.New(safehttp.Config{Proxy: "none"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.CloseIdleConnections)
	return &Client{Provider: "test", HTTP: h, Secrets: []secret.String{secret.New(key)}, AnswerTimeout: 5 * time.Second, StallTimeout: 5 * time.Second}
}

func post(url, body string) Request {
	return Request{Op: "send", Method: "POST", URL: url, Header: http.Header{"X-Api-Key": {key}}, Body: Stream("application/json", int64(len(body)), opener(body))}
}

// rawServer answers each connection with f.
func rawServer(t *testing.T, f func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return "http://" + l.Addr().String()
}

// readRequest reads one request with its body.
func readRequest(c net.Conn) {
	r, err := http.ReadRequest(bufio.NewReader(c))
	if err == nil {
		io.Copy(io.Discard, r.Body)
	}
}

func reset(c net.Conn) { c.(*net.TCPConn).SetLinger(0) }

func TestDoSendsExactly(t *testing.T) {
	body := strings.Repeat("0123456789", 100_000)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got, _ := io.ReadAll(r.Body)
		if r.ContentLength != int64(len(body)) || string(got) != body || len(r.TransferEncoding) != 0 {
			t.Errorf("got Content-Length %d, %d bytes, %v", r.ContentLength, len(got), r.TransferEncoding)
		}
		if r.Header.Get("Idempotency-Key") != "k1" || r.Header.Get("X-Api-Key") != key || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("got header %v", r.Header)
		}
		w.Header().Set("X-Test", "1")
		w.WriteHeader(202)
		io.WriteString(w, `{"id":"a"}`)
	}))
	defer srv.Close()
	r := post(srv.URL+"/v1", body)
	r.Header.Set("Idempotency-Key", "k1")
	resp, err := client(t).Do(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	var v struct{ ID string }
	if err := resp.JSON(&v); err != nil || v.ID != "a" || !resp.OK() || resp.Header.Get("X-Test") != "1" {
		t.Errorf("got %+v, %v", resp, err)
	}
}

// TestCase065_066_Connections tells what surely did not arrive from what may have.
func TestCase065_066_Connections(t *testing.T) {
	small, big := `{"a":1}`, strings.Repeat("x", 9<<20)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + closed.Addr().String()
	closed.Close()
	for _, tt := range []struct {
		name, body string
		url        string
		serve      func(net.Conn)
		want       providers.Kind
	}{
		{name: "refused", body: small, url: refused, want: providers.Transient},
		{name: "no such host", body: small, url: "http://nowhere.invalid", want: providers.Transient},
		{name: "bad URL", body: small, url: "nonsense", want: providers.Transient},
		{name: "reset before the body was read", body: big, serve: reset, want: providers.Transient},
		{name: "reset within the body", body: big, serve: func(c net.Conn) { io.CopyN(io.Discard, c, 1<<20); reset(c) }, want: providers.Transient},
		{name: "stalled upload", body: big, serve: func(c net.Conn) { io.CopyN(io.Discard, c, 1<<16); <-t.Context().Done() }, want: providers.Transient},
		{name: "reset after the body", body: big, serve: func(c net.Conn) { readRequest(c); reset(c) }, want: providers.Ambiguous},
		{name: "reset after a small body", body: small, serve: func(c net.Conn) { readRequest(c); reset(c) }, want: providers.Ambiguous},
		{name: "closed after the body", body: small, serve: readRequest, want: providers.Ambiguous},
		{name: "no answer", body: small, serve: func(c net.Conn) { readRequest(c); <-t.Context().Done() }, want: providers.Ambiguous},
		{name: "half a status line", body: small, serve: func(c net.Conn) { readRequest(c); io.WriteString(c, "HTTP/1.1 20") }, want: providers.Ambiguous},
		{name: "not HTTP", body: small, serve: func(c net.Conn) { readRequest(c); io.WriteString(c, "220 smtp ready\r\n\r\n") }, want: providers.Ambiguous},
		{name: "endless header", body: small, serve: func(c net.Conn) {
			readRequest(c)
			io.WriteString(c, "HTTP/1.1 200 OK\r\n")
			for {
				if _, err := io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n"); err != nil {
					return
				}
			}
		}, want: providers.Ambiguous},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			url := tt.url
			if tt.serve != nil {
				url = rawServer(t, tt.serve)
			}
			c := client(t)
			c.AnswerTimeout, c.StallTimeout = 500*time.Millisecond, 500*time.Millisecond
			_, err := c.Do(t.Context(), post(url+"/?token="+neturl.QueryEscape(key), tt.body))
			var e *providers.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Kind != tt.want {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the key is in %v", err)
			}
		})
	}
}

// TestCase067_BrokenAnswer keeps the status of an answer whose body breaks off.
func TestCase067_BrokenAnswer(t *testing.T) {
	for _, tt := range []struct{ name, answer string }{
		{"end of file", "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"id\":"},
		{"broken chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\nzz"},
		{"broken gzip", "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 5\r\n\r\nabcde"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			url := rawServer(t, func(c net.Conn) { readRequest(c); io.WriteString(c, tt.answer) })
			c := client(t)
			resp, err := c.Do(t.Context(), post(url, "{}"))
			if err != nil {
				t.Fatal(err)
			}
			if resp.Status != 200 || !resp.Truncated || resp.Err == nil || resp.JSON(&struct{}{}) == nil {
				t.Errorf("got %+v", resp)
			}
			if e := c.Classify("send", resp, "", ""); e.Kind != providers.Ambiguous {
				t.Errorf("got %v", e)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	for _, tt := range []struct {
		name string
		body string
		read int64 // cancel when so much has arrived
		want providers.Kind
	}{
		{"within the upload", strings.Repeat("x", 9<<20), 1 << 16, providers.Transient},
		{"after it", "{}", 0, providers.Ambiguous},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			url := rawServer(t, func(c net.Conn) {
				if tt.read > 0 {
					io.CopyN(io.Discard, c, tt.read)
				} else {
					readRequest(c)
				}
				cancel()
				<-t.Context().Done()
			})
			_, err := client(t).Do(ctx, post(url, tt.body))
			if providers.KindOf(err) != tt.want || !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := client(t).Do(ctx, post("http://127.0.0.1:9", "{}")); providers.KindOf(err) != providers.Transient {
		t.Errorf("ended before: got %v", err)
	}
}

// TestCase073_Redirects are answers, never followed.
func TestCase073_Redirects(t *testing.T) {
	var other atomic.Int32
	second := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { other.Add(1) }))
	defer second.Close()
	for _, status := range []int{300, 301, 302, 303, 304, 307, 308} {
		for _, location := range []string{second.URL, "/loop", "http://%zz", ""} {
			var hits atomic.Int32
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				hits.Add(1)
				if location != "" {
					w.Header().Set("Location", location)
				}
				w.WriteHeader(status)
			}))
			c := client(t)
			resp, err := c.Do(t.Context(), post(srv.URL, "{}"))
			srv.Close()
			if err != nil {
				t.Fatalf("%d to %q: %v", status, location, err)
			}
			if e := c.Classify("send", resp, "", ""); e.Kind != providers.Transient || hits.Load() != 1 || other.Load() != 0 {
				t.Errorf("%d to %q: %v, %d requests, %d elsewhere", status, location, e, hits.Load(), other.Load())
			}
		}
	}
}

// TestCase074_Bombs bounds what is read of an answer, and how long.
func TestCase074_Bombs(t *testing.T) {
	var bomb bytes.Buffer
	z := gzip.NewWriter(&bomb)
	for range 16 {
		z.Write(make([]byte, 1<<20))
	}
	z.Close()
	for _, tt := range []struct {
		name  string
		serve http.HandlerFunc
	}{
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		}},
		{"gzip bomb", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			w.Write(bomb.Bytes())
		}},
		{"slow body", func(w http.ResponseWriter, r *http.Request) {
			for {
				io.WriteString(w, "x")
				w.(http.Flusher).Flush()
				select {
				case <-r.Context().Done():
					return
				case <-time.After(50 * time.Millisecond):
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(tt.serve)
			defer srv.Close()
			c := client(t)
			c.AnswerTimeout = time.Second
			start := time.Now()
			resp, err := c.Do(t.Context(), post(srv.URL, "{}"))
			if err != nil {
				t.Fatal(err)
			}
			if resp.Status != 200 || !resp.Truncated || len(resp.Body) > MaxResponse || time.Since(start) > 4*time.Second {
				t.Errorf("got status %d, %d bytes, %v after %v", resp.Status, len(resp.Body), resp.Err, time.Since(start))
			}
		})
	}
}

// TestClassifyEveryStatus holds the table against its documentation.
func TestClassifyEveryStatus(t *testing.T) {
	special := map[int]providers.Kind{429: providers.RateLimited}
	for _, s := range []int{401, 402, 403, 404, 407} {
		special[s] = providers.Operator
	}
	for _, s := range []int{400, 406, 409, 410, 411, 413, 414, 415, 422, 451} {
		special[s] = providers.Permanent
	}
	listed := map[int]bool{408: true, 421: true, 425: true}
	c := client(t)
	for status := 100; status < 600; status++ {
		want, ok := special[status]
		if !ok {
			want = providers.Transient
			if status >= 200 && status < 300 {
				want = providers.Ambiguous
			}
		}
		e := c.Classify("send", &Response{Status: status, Header: http.Header{}}, "", "")
		if e.Kind != want {
			t.Errorf("%d: got %v, want %v", status, e.Kind, want)
		}
		if unlisted := status >= 400 && status < 500 && !ok && !listed[status]; e.Unlisted != unlisted {
			t.Errorf("%d: Unlisted = %v, want %v", status, e.Unlisted, unlisted)
		}
	}
	e := c.Classify("send", &Response{Status: 503, Header: http.Header{"Retry-After": {"7"}}}, "c\n1", "slow "+key+"\r\ndown"+strings.Repeat("z", 2000))
	if e.Kind != providers.RateLimited || e.RetryAfter != 7*time.Second || strings.Contains(e.Error(), "canary") || strings.ContainsAny(e.Error(), "\r\n") || len(e.Msg) > 512 {
		t.Errorf("got %v", e)
	}
}

func TestCase068_RetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for v, want := range map[string]time.Duration{
		"": 9 * time.Second, "5": 5 * time.Second, " 5 ": 5 * time.Second, "1.5": 1500 * time.Millisecond, "0": 9 * time.Second, "-1": 9 * time.Second,
		"0.2": 9 * time.Second, "3600": time.Hour, "315360000": time.Hour, "1e300": time.Hour, "NaN": 9 * time.Second, "+Inf": time.Hour, "junk": 9 * time.Second,
		"Sun, 01 Nov 2026 12:00:30 GMT": 30 * time.Second, "Sun, 01 Nov 2026 11:00:00 GMT": 9 * time.Second, "Sun, 01 Nov 2036 12:00:00 GMT": time.Hour,
	} {
		if got := RetryAfter(http.Header{"Retry-After": {v}}, now, 9*time.Second); got != want {
			t.Errorf("%q: got %v, want %v", v, got, want)
		}
	}
}

// TestCase114_WrongClock: the pause is right by the ESP's clock however wrong ours is, and never above the cap.
func TestCase114_WrongClock(t *testing.T) {
	esp := time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC)
	for name, ours := range map[string]time.Time{
		"right": esp, "a year behind": esp.AddDate(-1, 0, 0), "a year ahead": esp.AddDate(1, 0, 0), "never set": time.Unix(0, 0),
	} {
		t.Run(name, func(t *testing.T) {
			h := http.Header{"Retry-After": {esp.Add(30 * time.Second).Format(http.TimeFormat)}}
			if got := RetryAfter(h, ours, 9*time.Second); got < 9*time.Second || got > MaxRetryAfter {
				t.Errorf("without a Date: got %v", got)
			}
			h.Set("Date", esp.Format(http.TimeFormat))
			if got := RetryAfter(h, ours, 9*time.Second); got != 30*time.Second {
				t.Errorf("with a Date: got %v", got)
			}
		})
	}
}

func TestPrepareMasks(t *testing.T) {
	c := client(t)
	c.Secrets = append(c.Secrets, secret.New("other-secret"))
	j := NewJSON()
	body, err := j.Body(map[string]any{"key": key, "text": j.Text(opener("hello"))})
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Prepare(Request{
		Op: "send", Method: "POST", URL: "https://api.example.com/v1/other-secret/send?access_token=key-canary%2F%2B+77&x=1",
		Header: http.Header{"Authorization": {"Bearer unknown"}, "X-Key": {key}, "Idempotency-Key": {"i"}}, Body: body,
	})
	if err != nil {
		t.Fatal(err)
	}
	got, _ := io.ReadAll(r.Body)
	all := fmt.Sprint(r.URL.RawQuery, r.URL.Path, r.Header, string(got))
	for _, bad := range []string{"canary", "other-secret", "unknown"} {
		if strings.Contains(all, bad) {
			t.Errorf("%s is in %s", bad, all)
		}
	}
	if string(got) != `{"key":"<secret>","text":"hello"}` || r.ContentLength != int64(len(got)) || r.URL.RawQuery != "access_token=<secret>&x=1" {
		t.Errorf("got %s, length %d, query %s", got, r.ContentLength, r.URL.RawQuery)
	}
	if r.Header.Get("Idempotency-Key") != "i" {
		t.Errorf("got header %v", r.Header)
	}
}

// TestOneRequest proves that a broken reused connection does not make the transport send twice.
func TestOneRequest(t *testing.T) {
	var requests atomic.Int32
	url := rawServer(t, func(c net.Conn) {
		b := bufio.NewReader(c)
		for i := 0; ; i++ {
			r, err := http.ReadRequest(b)
			if err != nil {
				return
			}
			io.Copy(io.Discard, r.Body)
			requests.Add(1)
			if i == 1 {
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
		}
	})
	c := client(t)
	r := post(url, "{}")
	r.Header.Set("Idempotency-Key", "same")
	if _, err := c.Do(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	_, err := c.Do(t.Context(), r)
	if providers.KindOf(err) != providers.Ambiguous || requests.Load() != 2 {
		t.Errorf("got %v after %d requests", err, requests.Load())
	}
}

// TestWrongLength abandons a request whose stored content is not what was recorded.
func TestWrongLength(t *testing.T) {
	for _, size := range []int64{3, 300} {
		var whole atomic.Int32
		srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			if _, err := io.ReadAll(r.Body); err == nil {
				whole.Add(1)
			}
		}))
		r := post(srv.URL, "")
		r.Body = Stream("x", size, opener("12345"))
		_, err := client(t).Do(t.Context(), r)
		srv.Close()
		if providers.KindOf(err) != providers.Transient || !errors.Is(err, ErrLength) || whole.Load() != 0 {
			t.Errorf("size %d: got %v, %d whole requests", size, err, whole.Load())
		}
	}
}

// TestEarlyAnswer takes the answer of a server that does not want the rest of the body.
func TestEarlyAnswer(t *testing.T) {
	for _, status := range []int{401, 413} {
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		c := client(t)
		resp, err := c.Do(t.Context(), post(srv.URL, strings.Repeat("x", 9<<20)))
		srv.Close()
		// Whether the answer or the reset of the connection is seen first is a matter of luck; neither may be taken for Ambiguous.
		if err != nil && providers.KindOf(err) != providers.Transient || err == nil && resp.Status != status {
			t.Errorf("%d: got %+v, %v", status, resp, err)
		}
	}
}

// TestHTTP2 makes calls over one multiplexed connection: exact length, and the answer lost after the body is Ambiguous.
func TestHTTP2(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.ProtoMajor != 2 || r.ContentLength != int64(len(b)) || r.Header.Get("Idempotency-Key") != "k" {
			t.Errorf("got HTTP/%d, length %d for %d bytes, %v", r.ProtoMajor, r.ContentLength, len(b), r.Header)
		}
		if r.URL.Path == "/lost" {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, "{}")
	}))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	h, err := safehttp.New(safehttp.Config{Proxy: "none", RootCAs: srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs})
	if err != nil {
		t.Fatal(err)
	}
	defer h.CloseIdleConnections()
	c := client(t)
	c.HTTP = h
	r := post(srv.URL+"/ok", strings.Repeat("x", 1<<20))
	r.Header.Set("Idempotency-Key", "k")
	if resp, err := c.Do(t.Context(), r); err != nil || resp.Status != 200 {
		t.Errorf("got %+v, %v", resp, err)
	}
	r.URL = srv.URL + "/lost"
	if _, err := c.Do(t.Context(), r); providers.KindOf(err) != providers.Ambiguous {
		t.Errorf("got %v, want Ambiguous", err)
	}
}
