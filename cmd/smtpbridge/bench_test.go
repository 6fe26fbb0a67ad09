package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// BenchmarkBridge is the whole way of a mail: SMTP in, fsync, API call out, over 50 sessions.
func BenchmarkBridge(b *testing.B) {
	for _, tt := range []struct {
		name, provider string
		lines          int // of 72 bytes
	}{{"JSON-10KiB", "mailpace", 142}, {"raw-10KiB", "smtpeter", 142}, {"raw-1MiB", "smtpeter", 14563}} {
		b.Run(tt.name, func(b *testing.B) { benchmarkBridge(b, tt.provider, tt.lines) })
	}
}

func benchmarkBridge(b *testing.B, provider string, lines int) {
	var delivered atomic.Int64
	done := make(chan struct{}, 1)
	esp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		n := delivered.Add(1)
		if provider == "mailpace" {
			fmt.Fprintf(w, `{"id":%d,"status":"pending"}`, n)
		} else {
			fmt.Fprintf(w, `{"id%d":"b@example.net"}`, n)
		}
		select {
		case done <- struct{}{}:
		default:
		}
	}))
	defer esp.Close()
	dir := b.TempDir()
	file := filepath.Join(dir, "bridge.toml")
	text := fmt.Sprintf("data_dir = %q\n[[listener]]\nname = \"l\"\naddress = \"127.0.0.1:0\"\nmax_connections_per_ip = 1000\n[[account]]\nname = \"a\"\nprovider = %q\napi_key = \"bench\"\nbase_url = %q\nmax_concurrent = 100\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n[webhook]\naddress = \"\"\n[admin]\nsocket = %q\n", dir, provider, esp.URL, filepath.Join(dir, "s"))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	br, err := NewBridge(b.Context(), file, quiet())
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- br.Run(ctx, func() { close(ready) }) }()
	<-ready
	mail := "From: a@example.com\r\nTo: b@example.net\r\nSubject: bench\r\n\r\n" + strings.Repeat(strings.Repeat("x", 70)+"\r\n", lines) + ".\r\n"
	var next atomic.Int64
	var wg sync.WaitGroup
	b.SetBytes(int64(len(mail)))
	b.ResetTimer()
	for range 50 {
		wg.Go(func() {
			conn, err := net.Dial("tcp", br.SMTPAddr("l").String())
			if err != nil {
				b.Error(err)
				return
			}
			defer conn.Close()
			r := bufio.NewReader(conn)
			say := func(s string, replies int) bool {
				if _, err := io.WriteString(conn, s); err != nil {
					b.Error(err)
					return false
				}
				for replies > 0 {
					line, err := r.ReadString('\n')
					if err != nil || line[0] >= '4' {
						b.Errorf("%q %v", line, err)
						return false
					}
					if line[3] == ' ' {
						replies--
					}
				}
				return true
			}
			if !say("", 1) || !say("EHLO bench\r\n", 1) {
				return
			}
			for next.Add(1) <= int64(b.N) {
				if !say("MAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n", 3) || !say(mail, 1) {
					return
				}
			}
		})
	}
	wg.Wait()
	for delivered.Load() < int64(b.N) {
		<-done
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "delivered/s")
	stop()
	if err := <-ran; err != nil {
		b.Error(err)
	}
}
