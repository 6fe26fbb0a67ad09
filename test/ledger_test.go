package test

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// load gives mails to one bridge or several, from many clients, and keeps the ledger of those that got their 250.
type load struct {
	t     testing.TB
	want  int64         // so many are to be accepted
	from  []string      // domains of the senders, at random
	first int64         // number of the first mail
	to    string        // "" = r@example.net
	pause time.Duration // of a client after each mail

	mu      sync.Mutex
	acked   map[string]bool // by the number in the subject
	count   atomic.Int64    // accepted
	refused atomic.Int64    // answered 4xx
	ended   atomic.Bool     // nothing more is sent
	next    atomic.Int64
	wg      sync.WaitGroup
}

// start runs clients. Each stays with an address as long as it answers.
func (l *load) start(clients int, addrs ...string) {
	l.acked = map[string]bool{}
	l.next.Store(l.first)
	for w := range clients {
		l.wg.Go(func() { l.client(w, addrs) })
	}
}

func (l *load) wait() { l.wg.Wait() }

// accepted is the ledger as it is now.
func (l *load) accepted() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]string, 0, len(l.acked))
	for k := range l.acked {
		out = append(out, k)
	}
	return out
}

func (l *load) client(w int, addrs []string) {
	rnd := rand.New(rand.NewPCG(uint64(w), 1))
	to := cmp.Or(l.to, "r@example.net")
	var c *smtpConn
	deadline := time.Now().Add(3 * time.Minute)
	for at := w; l.count.Load() < l.want && !l.ended.Load(); {
		if c == nil {
			limit := time.Minute
			if len(addrs) > 1 {
				limit = 0 // then the next one
			}
			var err error
			if c, err = dialSMTP(addrs[at%len(addrs)], limit); err != nil {
				if len(addrs) == 1 || time.Now().After(deadline) {
					l.t.Error(err)
					return
				}
				at++
				time.Sleep(5 * time.Millisecond) // nobody may be there just now
				continue
			}
		}
		key := fmt.Sprintf("n%06d", l.next.Add(1))
		domain := l.from[rnd.IntN(len(l.from))]
		body := strings.Repeat("A line of the body of a mail that is not very long.\r\n", 1+rnd.IntN(20))
		if rnd.IntN(50) == 0 {
			body = strings.Repeat(body, 200) // too large for one row
		}
		mail := fmt.Sprintf("From: <app@%s>\r\nTo: <%s>\r\nSubject: %s\r\nMessage-ID: <%s@load>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\n\r\n%s", domain, to, key, key, body)
		ok, err := c.send("app@"+domain, []string{to}, mail)
		if ok {
			l.mu.Lock()
			l.acked[key] = true
			l.mu.Unlock()
			l.count.Add(1)
			time.Sleep(l.pause) // the application's
		}
		if err != nil {
			if strings.HasPrefix(err.Error(), `reply "4`) {
				l.refused.Add(1)
			} else if strings.HasPrefix(err.Error(), `reply "5`) {
				l.t.Errorf("a mail was refused for good: %v", err)
			}
			c.Close()
			c = nil
		}
	}
	if c != nil {
		c.Close()
	}
}
