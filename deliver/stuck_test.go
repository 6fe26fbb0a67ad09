package deliver

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
)

// pausedBench has an account that is paused for a minute and that another bridge probes. Mail of example.com can go to b
// instead, the mail of alone.example, n of them, cannot.
func pausedBench(t *testing.T, n int) (*bench, *faultyQueue) {
	t.Helper()
	b := newBench(t, &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()})
	b.cfg.Routes = table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"a", "b"}},
		route.Route{Name: "alone", Senders: []string{"alone.example"}, Accounts: []string{"a"}})
	fq := &faultyQueue{}
	b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
	b.config = func(c *RunnerConfig) { c.Probes = func() bool { return false } }
	now := b.now()
	if err := b.st.SetAccount(context.Background(), store.AccountState{Account: "a", State: Paused, Until: now.Add(time.Minute), Since: now, Alarmed: true}); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		b.submitMail(fmt.Sprintf("From: app@alone.example\r\nTo: r@r.example\r\nMessage-ID: <m%d@alone.example>\r\n\r\nbody\r\n", i), "r@r.example")
	}
	return b, fq
}

// TestEvacuationEnds: mail that cannot leave a paused account is put off once, not again and again when the time it was put
// off to has come while the account is still paused.
func TestEvacuationEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		const mails = evacuateBatch + 6
		b, fq := pausedBench(t, mails)
		defer b.close()
		var settled atomic.Int64
		fq.set(func(store.Settlement) error {
			if settled.Add(1) > 5*mails {
				return errDisk // else the test would never end
			}
			return nil
		})
		b.start()
		b.after(3 * time.Minute)
		if n := settled.Load(); n > 5*mails {
			t.Errorf("more than %d settlements of %d mails that can go nowhere", n-1, mails)
		}
		fq.set(nil)
	})
}

// TestStopWhileLeaving: the end does not wait for mail on its way out of a paused account that cannot be saved.
func TestStopWhileLeaving(t *testing.T) {
	bubble(t, func(t *testing.T) {
		b, fq := pausedBench(t, 1)
		defer b.close()
		fq.set(func(store.Settlement) error { return errDisk })
		b.start()
		b.after(time.Second)
		stopped := make(chan struct{})
		go func() { b.stop(); close(stopped) }()
		b.after(defaultGrace + time.Minute)
		select {
		case <-stopped:
		default:
			t.Error("Run still waits after its grace")
			fq.set(nil)
			<-stopped
		}
	})
}

// silentQueue does not answer pings while it is told so.
type silentQueue struct {
	*faultyQueue
	silent atomic.Bool
}

func (q *silentQueue) Ping(ctx context.Context) error {
	if q.silent.Load() {
		return errDisk
	}
	return q.faultyQueue.Ping(ctx)
}

// TestUnsavableResultAfterAnOutage: one result that can never be saved does not keep all other mail from being sent, also
// when it was met while nothing at all could be saved.
func TestUnsavableResultAfterAnOutage(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		fq := &silentQueue{faultyQueue: &faultyQueue{}}
		b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
		b.start()
		var poison atomic.Pointer[string]
		fq.set(func(st store.Settlement) error {
			if id := poison.Load(); id == nil || st.Claim.Mail.Envelope.ID == *id {
				return errDisk
			}
			return nil
		})
		fq.silent.Store(true)
		one := b.submit("r@r.example")
		b.after(10 * time.Minute)
		poison.Store(&one)
		fq.silent.Store(false)
		two := b.submit("r@r.example")
		b.after(time.Minute)
		b.wantStates(two, "r=sent")
		fq.set(nil)
	})
}

// TestLostAnswerOfARouteThatIsGone: a mail whose answer was lost goes on by the route that takes it now.
func TestLostAnswerOfARouteThatIsGone(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Ambiguous))
		b := newBench(t, esp)
		defer b.close()
		var replans atomic.Int64
		b.queue = func(q Queue) Queue { return &replanQueue{q, &replans} }
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Second)
		esp.set(nil)
		b.cfg.Generation++
		b.cfg.Routes = table(t, route.Route{Name: "renamed", Senders: []string{"example.com"}, Accounts: []string{"a"}})
		b.run.Reload(NewPlanner(b.cfg))
		b.after(10 * time.Minute)
		b.wantStates(id, "r=sent")
		if n := replans.Load(); n > 10 {
			t.Errorf("planned anew %d times", n)
		}
	})
}

type replanQueue struct {
	Queue
	n *atomic.Int64
}

func (q *replanQueue) Replan(ctx context.Context, id string, generation int64, jobs []store.NewJob) error {
	if q.n.Add(1) > 1000 {
		return errDisk // else the test would never end
	}
	return q.Queue.Replan(ctx, id, generation, jobs)
}

// TestPauseOfAWrongClock: a pause that was stored while the clock was wrong, or by a bridge whose clock is, does not last
// until that time.
func TestPauseOfAWrongClock(t *testing.T) {
	now := time.Now()
	for _, state := range []string{Paused, Throttled} {
		for _, domain := range []string{"", "example.com"} {
			g := newGate("a")
			g.load(store.AccountState{Account: "a", Domain: domain, State: state, Until: now.AddDate(1, 0, 0), Since: now}, now)
			for _, s := range g.snapshot() {
				if s.Until.After(now.Add(maxThrottle)) {
					t.Errorf("%s %q until %s", state, domain, s.Until)
				}
			}
		}
	}
}

// TestPutOffByAWrongClock: a mail that failed while the clock ran ahead is tried again when the clock is right, and not at the
// time of the wrong one; a mail that is to be sent later waits for its time.
func TestPutOffByAWrongClock(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart %t", restart), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				esp.set(fail(providers.Transient))
				b := newBench(t, esp)
				defer func() { b.close() }()
				again := func() {
					if err := b.st.Close(); err != nil {
						t.Fatal(err)
					}
					b.open()
				}
				clock := jumpClock{systemClock{time.Now()}, &atomic.Int64{}}
				b.clock = clock
				again()
				b.cfg.Expire = 24 * time.Hour
				b.start()
				id := b.submit("r@r.example")
				b.after(30 * time.Second)
				clock.off.Store(int64(365 * 24 * time.Hour))
				b.after(2 * time.Minute)
				esp.set(nil)
				before := len(esp.seen())
				if restart {
					b.stop()
				}
				clock.off.Store(0)
				at := b.now().Add(5 * time.Hour).UTC().Format(time.RFC3339)
				later := b.submitMail("From: x@example.com\r\nTo: r@r.example\r\nX-Smtpbridge-Send-At: "+at+"\r\n\r\nb\r\n", "r@r.example")
				if restart {
					again()
					b.start()
				}
				b.after(time.Minute)
				b.wantStates(id, "r=sent")
				b.wantStates(later, "r=queued")
				if n := len(esp.seen()); n != before+1 {
					t.Errorf("%d calls, want one", n-before)
				}
			})
		})
	}
}
