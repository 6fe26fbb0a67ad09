package corpus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/deliver"
	"smtpbridge/envelope"
)

const attachmentSize = 25 << 20

// bigMail writes a mail with an attachment of 25 MiB.
func bigMail(tb testing.TB) (*os.File, int64) {
	tb.Helper()
	f, err := os.Create(filepath.Join(tb.TempDir(), "big.eml"))
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	// 57 octets make a line of 76 characters (RFC 2045 6.8); the last line is shorter.
	line := bytes.Repeat([]byte{7, 57, 107}, 19)
	fmt.Fprint(f, "From: App <app@example.com>\r\nTo: ada@example.net\r\nSubject: Big\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n"+
		"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b\r\nContent-Type: application/pdf; name=big.pdf\r\nContent-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n")
	w := bufio.NewWriter(f)
	for left := attachmentSize; left > 0; left -= len(line) {
		fmt.Fprintf(w, "%s\r\n", base64.StdEncoding.EncodeToString(line[:min(left, len(line))]))
	}
	if err := w.Flush(); err != nil {
		tb.Fatal(err)
	}
	fmt.Fprint(f, "--b--\r\n")
	fi, err := f.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	return f, fi.Size()
}

// answers of the ESPs to one recipient, with nothing kept.
var answers = map[string]string{
	"mailersend": "", "mailpace": `{"id": 1, "status": "pending"}`, "smtpeter": `{"0123456789": "ada@example.net"}`,
	"mandrill": `[{"email": "ada@example.net", "status": "sent", "_id": "0123456789"}]`,
	"maileroo": `{"success": true, "message": "ok", "data": {"reference_id": "0123456789abcdef01234567"}}`,
}

// highWater is the greatest heap seen while f runs, beyond what there was before.
func highWater(f func()) uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	before, peak := m.HeapAlloc, m.HeapAlloc
	var done atomic.Bool
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for !done.Load() {
			runtime.ReadMemStats(&m)
			peak = max(peak, m.HeapAlloc)
			time.Sleep(time.Millisecond)
		}
	}()
	f()
	done.Store(true)
	wg.Wait()
	return peak - before
}

// BenchmarkLargeAttachment plans and sends mails with an attachment of 25 MiB over a real connection, several at once,
// and reports how far the heap rises for each of them, garbage included. It fails above 8 MiB.
func BenchmarkLargeAttachment(b *testing.B) {
	const flights, limit = 4, 8 << 20
	mail, size := bigMail(b)
	for _, f := range []struct{ provider, options string }{
		{"mailersend", ""},
		{"mailpace", ""},
		{"maileroo", "max_message_bytes = 50000000"},
		{"mandrill", "max_message_bytes = 50000000"},
		{"mandrill", "form = \"json\"\nmax_message_bytes = 50000000"},
		{"smtpeter", ""},
	} {
		name := f.provider
		if bytes.Contains([]byte(f.options), []byte("json")) {
			name += "-json"
		}
		b.Run(name, func(b *testing.B) {
			var got atomic.Int64
			esp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n, err := io.Copy(io.Discard, r.Body)
				if err != nil {
					return
				}
				got.Add(n)
				if f.provider == "mailersend" {
					w.Header().Set("X-Message-Id", "0123456789abcdef01234567")
					w.WriteHeader(http.StatusAccepted)
				}
				io.WriteString(w, answers[f.provider])
			}))
			defer esp.Close()
			p, a := planner(b, f.provider, f.options, esp.URL, nil)
			one := func(i int) error {
				env := envelope.Envelope{ID: "id", From: "app@example.com", Rcpts: []envelope.Rcpt{{Addr: "ada@example.net"}}}
				plan, err := p.Plan(deliver.PlanRequest{Envelope: env, Body: mail, Size: size})
				if err != nil {
					return err
				}
				m := plan.Groups[0].Verdicts[0].Calls[0]
				m.Ref, m.IdempotencyKey = fmt.Sprint("ref", i), fmt.Sprint("key", i)
				_, err = a.Provider.Send(context.Background(), m)
				return err
			}
			if err := one(0); err != nil { // connections and pools are there afterwards
				b.Fatal(err)
			}
			b.SetBytes(size * flights)
			var peak uint64
			for b.Loop() {
				peak = max(peak, highWater(func() {
					var wg sync.WaitGroup
					for i := range flights {
						wg.Add(1)
						go func() {
							defer wg.Done()
							if err := one(i); err != nil {
								b.Error(err)
							}
						}()
					}
					wg.Wait()
				}))
			}
			if got.Load() < attachmentSize*flights {
				b.Errorf("the ESP got %d bytes", got.Load())
			}
			b.ReportMetric(float64(peak)/flights/(1<<20), "peak-MiB/mail")
			if peak/flights > limit {
				b.Errorf("each mail in flight takes %d bytes of heap, at most %d are allowed", peak/flights, limit)
			}
		})
	}
}
