package test

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
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

	mailpacetwin "smtpbridge/providers/mailpace/twin"
	smtpetertwin "smtpbridge/providers/smtpeter/twin"
)

var (
	soakFor  = flag.Duration("soak", 0, "how long TestSoak loads the bridge; 0 = not at all")
	soakRate = flag.Int("soak-rate", 20, "mails per second of TestSoak")
	soakSVG  = flag.String("soak-svg", "", "file that TestSoak draws its curves into")
)

// soakPoint is one look at the bridge.
type soakPoint struct {
	at                                   time.Duration
	rss, heap, database, goroutines, fds float64 // MiB, MiB, MiB, and numbers
	waiting                              float64 // mails
}

// TestSoak gives the bridge a constant load for a long time, from ESPs that fail now and then, and wants
// nothing to grow: memory, goroutines, file descriptors, and the database once retention has set in.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("runs for -soak; see make soak")
	}
	const keep = 3 * time.Minute // of the ledger: what is older must go as fast as new comes in
	mp := mailpacetwin.New(mailpacetwin.Options{Token: "mp-token-0123456789"})
	sp := smtpetertwin.New(smtpetertwin.Options{Token: "sp-token-0123456789"})
	mpArrived, spArrived := &soakESP{Handler: mp}, &soakESP{Handler: sp}
	mpServer, spServer := httptest.NewServer(mpArrived), httptest.NewServer(spArrived)
	defer mpServer.Close()
	defer spServer.Close()
	dir, port, hook := t.TempDir(), freePort(t), freePort(t)
	b := newBridge(t, dir, twoESPs(dir, port, mpServer.URL, spServer.URL, fmt.Sprintf("webhook_secret = %q", mp.PublicKey()))+fmt.Sprintf(`[delivery]
retry = "2s*"
[webhook]
address = "127.0.0.1:%d"
[retention]
ledger = "%s"
failed = "%s"
webhooks = "%s"
[log]
level = "warn"
`, hook, keep, keep, keep))
	b.start()
	pid := b.cmd.Process.Pid

	ctx, cancel := context.WithTimeout(t.Context(), *soakFor)
	defer cancel()
	var (
		wg    sync.WaitGroup
		acked atomic.Int64
	)
	const senders = 4
	for w := range senders {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(w), 2))
			tick := time.NewTicker(time.Second * senders / time.Duration(*soakRate))
			defer tick.Stop()
			var c *smtpConn
			for n := 0; ctx.Err() == nil; n++ {
				if c == nil || n%50 == 0 { // now and then a connection of its own
					if c != nil {
						c.Close()
					}
					var err error
					if c, err = dialSMTP(fmt.Sprintf("127.0.0.1:%d", port), time.Minute); err != nil {
						t.Error(err)
						return
					}
				}
				domain := []string{"mp", "sp"}[rnd.IntN(2)]
				size := 1 + rnd.IntN(100)
				if rnd.IntN(100) == 0 {
					size = 20000 // 1 MiB, in a file
				}
				mail := fmt.Sprintf("From: <app@%s.example.com>\r\nTo: <r%d@example.net>\r\nSubject: soak\r\nMessage-ID: <%d.%d@soak>\r\nDate: Mon, 02 Nov 2026 10:00:00 +0000\r\n\r\n%s",
					domain, rnd.IntN(1000), w, n, strings.Repeat("A line of a mail, some fifty bytes of text in it.\r\n", size))
				ok, err := c.send("app@"+domain+".example.com", []string{fmt.Sprintf("r%d@example.net", rnd.IntN(1000))}, mail)
				if ok {
					acked.Add(1)
				}
				if err != nil {
					c.Close()
					c = nil
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
			if c != nil {
				c.Close()
			}
		})
	}
	// One call in twenty fails or is slow, each time in another way, and MailPace reports what became of its mails.
	wg.Go(func() {
		rnd := rand.New(rand.NewPCG(3, 3))
		told := 0
		tick := time.NewTicker(2 * time.Second)
		defer tick.Stop()
		for ctx.Err() == nil {
			retry := http.Header{"Retry-After": {"1"}}
			switch rnd.IntN(4) {
			case 0:
				mp.Inject(mailpacetwin.Fault{Status: 503})
				sp.Inject(smtpetertwin.Fault{Status: 500})
			case 1:
				mp.Inject(mailpacetwin.Fault{Status: 429, Header: retry})
				sp.Inject(smtpetertwin.Fault{Status: 429, Header: retry})
			case 2:
				mp.Inject(mailpacetwin.Fault{Lose: true})
				sp.Inject(smtpetertwin.Fault{Drop: true})
			case 3:
				mp.Inject(mailpacetwin.Fault{Delay: time.Second})
				sp.Inject(smtpetertwin.Fault{Delay: time.Second})
			}
			mails := mp.Mails()
			taken, _ := mp.Count()
			for _, m := range mails[max(0, len(mails)-(taken-told)):] {
				kind := "delivered"
				if rnd.IntN(20) == 0 {
					kind = "bounced"
				}
				if code, err := mp.Post(ctx, fmt.Sprintf("http://127.0.0.1:%d/webhook/mp", hook), kind, m); ctx.Err() == nil && (err != nil || code != http.StatusOK) {
					t.Errorf("webhook: %d %v", code, err)
				}
			}
			told = taken
			select {
			case <-tick.C:
			case <-ctx.Done():
			}
		}
	})
	var points []soakPoint
	begin := time.Now()
	every := max(time.Second, min(10*time.Second, *soakFor/60))
	for tick := time.NewTicker(every); ctx.Err() == nil; {
		select {
		case <-tick.C:
			points = append(points, soakLook(t, b, pid, dir, time.Since(begin)))
		case <-ctx.Done():
			tick.Stop()
		}
	}
	wg.Wait()
	arrived := func() int64 { return mpArrived.n.Load() + spArrived.n.Load() }
	until(t, 5*time.Minute, "every accepted mail is delivered", func() bool { return soakLook(t, b, pid, dir, 0).waiting == 0 })
	taken, _ := mp.Count()
	if n := taken + sp.Count(); int64(n) < acked.Load() {
		t.Errorf("%d mails accepted, %d arrived", acked.Load(), n)
	}
	t.Logf("%d mails accepted in %v, %d API calls, %d at MailPace, %d at SMTPeter", acked.Load(), *soakFor, arrived(), taken, sp.Count())
	b.stop()
	for _, m := range soakCurves {
		early, late := m.median(points, 1), m.median(points, 2)
		t.Logf("%-18s %10.1f in the second third, %10.1f in the last", m.name, early, late)
		if late > early*m.grow+m.more {
			t.Errorf("%s grows: %.1f in the second third of the time, %.1f in the last", m.name, early, late)
		}
	}
	if *soakSVG != "" {
		if err := os.WriteFile(*soakSVG, []byte(soakPlot(points, *soakFor, *soakRate)), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// soakESP counts the calls.
type soakESP struct {
	http.Handler
	n atomic.Int64
}

func (e *soakESP) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.n.Add(1)
	e.Handler.ServeHTTP(w, r)
}

func soakLook(t *testing.T, b *bridge, pid int, dir string, at time.Duration) soakPoint {
	t.Helper()
	p := soakPoint{at: at}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kb, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	rss, _ := strconv.ParseFloat(kb, 64)
	p.rss = rss / 1024
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	p.fds = float64(len(fds))
	if fi, err := os.Stat(filepath.Join(dir, "smtpbridge.db")); err == nil {
		p.database = float64(fi.Size()) / (1 << 20)
	}
	for line := range strings.Lines(b.metrics()) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		v, _ := strconv.ParseFloat(value, 64)
		switch {
		case name == "go_goroutines":
			p.goroutines = v
		case name == "go_memstats_heap_inuse_bytes":
			p.heap = v / (1 << 20)
		case strings.HasPrefix(name, "smtpbridge_queue_mails"):
			p.waiting += v
		}
	}
	return p
}

// soakCurve is one thing that must not grow: the last third of the time may have grow times as much as the
// second, and a little more.
type soakCurve struct {
	name, unit string
	of         func(soakPoint) float64
	grow, more float64
}

var soakCurves = []soakCurve{
	{"resident memory", "MiB", func(p soakPoint) float64 { return p.rss }, 1.15, 5},
	{"database", "MiB", func(p soakPoint) float64 { return p.database }, 1.15, 5},
	{"goroutines", "", func(p soakPoint) float64 { return p.goroutines }, 1.15, 10},
	{"file descriptors", "", func(p soakPoint) float64 { return p.fds }, 1.15, 10},
	{"mails waiting", "", func(p soakPoint) float64 { return p.waiting }, 1.5, 50},
}

func (c soakCurve) median(points []soakPoint, third int) float64 {
	n := len(points) / 3
	if n == 0 {
		return 0
	}
	part := slices.Clone(points[third*n : (third+1)*n])
	slices.SortFunc(part, func(a, b soakPoint) int { return cmp.Compare(c.of(a), c.of(b)) })
	return c.of(part[len(part)/2])
}

// soakPlot draws the curves, one below the other.
func soakPlot(points []soakPoint, total time.Duration, rate int) string {
	const width, height, left, gap = 640.0, 90.0, 70.0, 34.0
	var s strings.Builder
	all := gap + float64(len(soakCurves))*(height+gap)
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12" role="img" aria-label="Curves of a soak test">`+"\n", left+width+20, all)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="#fff"/><text x="%.0f" y="18">%d mails per second for %v, one API call in twenty fails or is slow, the ledger is kept for three minutes</text>`+"\n", left, rate, total)
	for i, c := range soakCurves {
		top := gap + float64(i)*(height+gap)
		most := 1.0
		for _, p := range points {
			most = max(most, c.of(p))
		}
		fmt.Fprintf(&s, `<text x="%.0f" y="%.0f" fill="#333">%s</text>`+"\n", left, top+10, strings.TrimSpace(c.name+" "+c.unit))
		fmt.Fprintf(&s, `<rect x="%.0f" y="%.0f" width="%.0f" height="%.0f" fill="#f6f6f6" stroke="#ccc"/>`+"\n", left, top+16, width, height-16)
		fmt.Fprintf(&s, `<text x="%.0f" y="%.0f" text-anchor="end" fill="#333">%.0f</text><text x="%.0f" y="%.0f" text-anchor="end" fill="#333">0</text>`+"\n", left-6, top+26, most, left-6, top+height)
		s.WriteString(`<polyline fill="none" stroke="#0b62a4" stroke-width="1.5" points="`)
		for _, p := range points {
			fmt.Fprintf(&s, "%.1f,%.1f ", left+width*min(1, p.at.Seconds()/total.Seconds()), top+height-(height-16)*c.of(p)/most)
		}
		s.WriteString("\"/>\n")
	}
	s.WriteString("</svg>\n")
	return s.String()
}
