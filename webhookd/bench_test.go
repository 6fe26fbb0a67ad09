package webhookd_test

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/mailersend"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

const benchSecret = "benchmark-signing-secret"

// benchServer is the whole intake: HTTP server, a real provider, and the store on disk.
func benchServer(b *testing.B) (url string, client *http.Client) {
	b.Helper()
	st, err := store.Open(b.Context(), store.Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	secrets := []secret.String{secret.New(benchSecret)}
	p, err := mailersend.Info.New(providers.Options{Account: "ms", APIKey: secret.New("0123456789abcdef"), WebhookSecrets: secrets, Now: time.Now, Client: &http.Client{Transport: noNetwork{}}})
	if err != nil {
		b.Fatal(err)
	}
	h, err := webhookd.New(webhookd.Config{Recorder: st, Accounts: []webhookd.Account{{Name: "ms", Info: mailersend.Info, Provider: p, Secrets: secrets}}})
	if err != nil {
		b.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, ln) }()
	client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 256}}
	b.Cleanup(func() {
		client.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		if err := st.Close(); err != nil {
			b.Error(err)
		}
	})
	return "http://" + ln.Addr().String() + "/webhook/ms", client
}

// benchPost makes the n-th signed event, as MailerSend's webhooks version 2 post it.
func benchPost(url string, n int64) (*http.Request, error) {
	body := fmt.Appendf(nil, `{"type":"activity.delivered","domain_id":"d1","created_at":"2026-11-20T10:11:12.000000Z","webhook_id":"w1","url":"https://hooks.example.com/webhook/ms","version":2,`+
		`"data":{"object":"activity","id":"act%020d","type":"delivered","created_at":"2026-11-20T10:11:12.000000Z","message_id":"msg%020d","email_id":"em%020d","subject":"Your order","recipient":"rcpt%d@example.net","tags":["order"],"meta":{}}}`, n, n, n, n)
	m := hmac.New(sha256.New, []byte(benchSecret))
	m.Write(body)
	r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Signature", hex.EncodeToString(m.Sum(nil)))
	return r, nil
}

func send(client *http.Client, url string, n int64) error {
	r, err := benchPost(url, n)
	if err != nil {
		return err
	}
	resp, err := client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("HTTP %d", resp.StatusCode)
	}
	return nil
}

func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkIntake posts signed events over 64 connections; each is durable before its 200. The load generator runs in the
// same process, and its CPU time is in cpu-us/event.
func BenchmarkIntake(b *testing.B) {
	url, client := benchServer(b)
	var n atomic.Int64
	b.SetParallelism(32) // times GOMAXPROCS
	used := cpu(b)
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := send(client, url, n.Add(1)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64((cpu(b)-used).Microseconds())/float64(b.N), "cpu-us/event")
}

// BenchmarkIntakeLatency posts 200 events a second, whether the ones before are answered or not.
func BenchmarkIntakeLatency(b *testing.B) {
	url, client := benchServer(b)
	var mu sync.Mutex
	var took []time.Duration
	var wg sync.WaitGroup
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	b.ResetTimer()
	for i := range b.N {
		due := <-tick.C
		wg.Go(func() {
			if err := send(client, url, int64(i)); err != nil {
				b.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			took = append(took, time.Since(due))
		})
	}
	wg.Wait()
	b.StopTimer()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
}
