package store

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"
)

// BenchmarkAccept measures durable accepts: each iteration has been fsynced when it ends.
func BenchmarkAccept(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, producers := range []int{1, 64} {
			b.Run(fmt.Sprintf("size=%dKiB/producers=%d", size>>10, producers), func(b *testing.B) {
				s, err := Open(b.Context(), Options{Dir: b.TempDir()})
				if err != nil {
					b.Fatal(err)
				}
				defer s.Close()
				body := bytes.Repeat([]byte("x"), size)
				b.SetBytes(int64(size))
				b.ResetTimer()
				left := atomic.Int64{}
				left.Store(int64(b.N))
				done := make(chan error, producers)
				for range producers {
					go func() {
						for left.Add(-1) >= 0 {
							m := testMail(time.Now(), "u@example.org")
							r, err := s.Begin(context.Background())
							if err == nil {
								if _, err = r.Write(body); err == nil {
									err = r.Commit(context.Background(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}})
								}
							}
							if err != nil {
								done <- err
								return
							}
						}
						done <- nil
					}()
				}
				for range producers {
					if err := <-done; err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "accepts/s")
			})
		}
	}
}

// BenchmarkDeliver measures claim, start and settle of one mail with a large queue behind it.
func BenchmarkDeliver(b *testing.B) {
	s, err := Open(b.Context(), Options{Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	ctx := context.Background()
	fillQueue(b, s, max(b.N, 50_000))
	b.ResetTimer()
	for i := 0; i < b.N; {
		cs, err := s.Claim(ctx, "a", 20)
		if err != nil || len(cs) == 0 {
			b.Fatal(len(cs), err)
		}
		done := make(chan error, len(cs))
		for _, c := range cs {
			go func() {
				calls, err := s.Start(ctx, c, []Call{{Rcpts: []int{0}}})
				if err == nil {
					err = s.Settle(ctx, Settlement{Claim: c, Calls: []CallResult{accepted(calls[0], "pm"+c.Job.MailID)}})
				}
				done <- err
			}()
		}
		for range cs {
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			i++
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}

// fillQueue queues n mails of one account, in large transactions.
func fillQueue(b *testing.B, s *Store, n int) {
	b.Helper()
	now := time.Now()
	for n > 0 {
		k := min(n, 50)
		err := s.do(context.Background(), 0, func(ctx context.Context, t *tx) error {
			for range k {
				m := testMail(now, "u@example.org")
				nm, err := s.newMail(m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}, nil)
				if err != nil {
					return err
				}
				nm.body = bodyRows
				if err := t.insertMail(ctx, nm); err != nil {
					return err
				}
				if err := t.insertJobs(ctx, nm); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
		n -= k
	}
}
