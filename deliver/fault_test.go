package deliver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

func TestCase066_UnknownOutcome(t *testing.T) {
	present := func(m *translate.Mail) (*providers.Outcome, providers.Found, error) {
		return providers.AllAccepted(m, "found"), providers.Present, nil
	}
	absent := func(*translate.Mail) (*providers.Outcome, providers.Found, error) { return nil, providers.Absent, nil }
	blind := func(*translate.Mail) (*providers.Outcome, providers.Found, error) {
		return nil, providers.CannotTell, nil
	}
	for _, c := range []struct {
		name   string
		ttl    time.Duration
		find   func(*translate.Mail) (*providers.Outcome, providers.Found, error)
		policy string
		after  time.Duration
		states string
		held   bool
		calls  int
		same   bool // all calls carry the first one's reference and key
	}{
		{"key", 24 * time.Hour, nil, UnknownHold, 5 * time.Minute, "r=sent", false, 2, true},
		{"key whose window is over", 4 * time.Minute, nil, UnknownHold, 10 * time.Minute, "r=in_flight", true, 2, true},
		{"found", 0, present, UnknownHold, 5 * time.Minute, "r=sent", false, 1, true},
		{"not found once", 0, absent, UnknownHold, 5 * time.Minute, "r=in_flight", false, 1, true},
		{"not found twice", 0, absent, UnknownHold, 15 * time.Minute, "r=sent", false, 2, false},
		{"look-up cannot tell, hold", 0, blind, UnknownHold, 90 * time.Minute, "r=in_flight", true, 1, true},
		{"look-up cannot tell, retry", 0, blind, UnknownRetry, 90 * time.Minute, "r=sent", false, 2, true},
		{"retry", 0, nil, UnknownRetry, 5 * time.Minute, "r=sent", false, 2, true},
		{"hold", 0, nil, UnknownHold, 5 * time.Minute, "r=in_flight", true, 1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				caps := jsonCaps()
				caps.IdempotencyTTL = c.ttl
				esp := &fake{caps: caps}
				esp.set(fail(providers.Ambiguous))
				var p providers.Provider = esp
				if c.find != nil {
					p = finder{esp, c.find}
				}
				b := newBench(t, p)
				defer b.close()
				b.cfg.OnUnknown = c.policy
				b.start()
				id := b.submit("r@r.example")
				b.after(10 * time.Second)
				evs := b.events(id, event.Deferred)
				if len(evs) != 1 || evs[0].Outcome != event.OutcomeUnknown {
					t.Errorf("the lost answer is not said: %+v", evs)
				}
				if c.name != "key whose window is over" {
					esp.set(nil)
				}
				b.after(c.after)
				b.wantStates(id, c.states)
				if held := b.detail(id).Mail.State == store.MailHeld; held != c.held {
					t.Errorf("held: %v", held)
				}
				calls := esp.seen()
				if len(calls) != c.calls {
					t.Errorf("%d calls, want %d", len(calls), c.calls)
				}
				for _, call := range calls {
					if (call.ref == calls[0].ref && call.key == calls[0].key) != c.same && call.at != calls[0].at {
						t.Errorf("call %+v after %+v", call, calls[0])
					}
				}
				b.finals(id)
				if c.name == "hold" {
					// An operator's release is his word that it may be sent again.
					if err := b.st.ReleaseHold(context.Background(), id); err != nil {
						t.Fatal(err)
					}
					b.after(time.Minute)
					b.wantStates(id, "r=sent")
					if n := len(esp.seen()); n != 2 {
						t.Errorf("%d calls after the release", n)
					}
				}
			})
		})
	}
}

// TestUnknownStaysUnknown: a repeat that surely failed says nothing of the first attempt, so the mail goes nowhere else.
func TestUnknownStaysUnknown(t *testing.T) {
	for _, k := range []providers.Kind{providers.Transient, providers.RateLimited, providers.Operator} {
		t.Run(k.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				caps := jsonCaps()
				caps.IdempotencyTTL = 24 * time.Hour
				first, second := &fake{caps: caps}, &fake{caps: caps}
				first.set(fail(providers.Ambiguous))
				b := newBench(t, first, second)
				defer b.close()
				b.start()
				id := b.submit("r@r.example")
				b.after(10 * time.Second)
				first.set(fail(k))
				b.after(40 * time.Minute)
				if n := len(second.seen()); n != 0 {
					t.Errorf("%d calls at the second account", n)
				}
				b.wantStates(id, "r=in_flight")
				if c := b.detail(id).Calls; len(c) != 1 || c[0].State != store.CallAmbiguous || c[0].Attempt < 2 {
					t.Errorf("calls: %+v", c)
				}
				first.set(nil)
				b.after(20 * time.Minute)
				b.wantStates(id, "r=sent")
				for _, c := range first.seen() {
					if c.ref != first.seen()[0].ref || c.key != first.seen()[0].key {
						t.Errorf("repeated under another reference: %+v", c)
					}
				}
				b.finals(id)
			})
		})
	}
}

func TestEventProvesAcceptance(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Ambiguous))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Second)
		now := time.Now()
		ev := event.Event{V: 1, ID: "hook-1", Time: now, Seen: now, Kind: event.Delivered, Recipient: "r@r.example", Account: "a", Provider: "fake", Ref: esp.seen()[0].ref, ProviderMessageID: "pm"}
		if _, err := b.st.Record(context.Background(), nil, ev); err != nil {
			t.Fatal(err)
		}
		b.after(30 * time.Minute)
		if n := len(esp.seen()); n != 1 {
			t.Errorf("%d calls although a webhook proved the first", n)
		}
		b.wantStates(id, "r=sent")
		b.finals(id)
	})
}

func TestCase061_StateCannotBeSaved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		fq := &faultyQueue{}
		b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
		fq.set(func(store.Settlement) error { return errDisk })
		b.start()
		one := b.submit("r@r.example")
		b.after(10 * time.Second)
		two := b.submit("r@r.example")
		b.after(20 * time.Second)
		if n := len(esp.seen()); n != 1 {
			t.Errorf("%d calls although the result of the first cannot be saved", n)
		}
		if s := b.run.Status(context.Background()); s.Unsaved != 1 {
			t.Errorf("%d unsaved", s.Unsaved)
		}
		fq.set(nil)
		b.after(time.Minute)
		b.wantStates(one, "r=sent")
		b.wantStates(two, "r=sent")
		if n := len(esp.seen()); n != 2 {
			t.Errorf("%d calls, want one per mail", n)
		}
		b.finals(one)
	})
}

// TestRepeatAfterACrashFails: the call found without a result and its failed repeat are two facts.
func TestRepeatAfterACrashFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer func() { b.close() }()
		fq := &faultyQueue{}
		b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
		fq.set(func(store.Settlement) error { return errDisk })
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Second)
		b.stop()
		if err := b.st.Close(); err != nil {
			t.Fatal(err)
		}
		fq.set(nil)
		esp.set(fail(providers.Transient))
		b.open()
		b.start()
		b.after(time.Minute)
		unknown, failed := 0, 0
		for _, e := range b.events(id, event.Deferred) {
			if e.Outcome == event.OutcomeUnknown {
				unknown++
			} else if strings.Contains(e.Diagnostic, "because transient") {
				failed++
			}
		}
		if unknown != 1 || failed != 1 {
			t.Errorf("%d unknown and %d failed events, want one each", unknown, failed)
		}
		b.finals(id)
	})
}

// TestCrashAfterTheCall loses the result of a call, as kill -9 between the answer and the commit would.
func TestCrashAfterTheCall(t *testing.T) {
	for _, ttl := range []time.Duration{0, 24 * time.Hour} {
		t.Run(ttl.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				caps := jsonCaps()
				caps.IdempotencyTTL = ttl
				esp := &fake{caps: caps}
				b := newBench(t, esp)
				defer func() { b.close() }()
				b.cfg.OnUnknown = UnknownHold
				fq := &faultyQueue{}
				b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
				fq.set(func(store.Settlement) error { return errDisk })
				b.start()
				id := b.submit("r@r.example")
				b.after(time.Second)
				b.stop()
				if !strings.Contains(b.log.String(), "queue.state_lost") {
					t.Error("the loss is not logged")
				}
				if err := b.st.Close(); err != nil {
					t.Fatal(err)
				}
				fq.set(nil)
				b.open()
				b.start()
				b.after(time.Minute)
				calls := esp.seen()
				if ttl == 0 {
					b.wantStates(id, "r=in_flight")
					if d := b.detail(id); d.Mail.State != store.MailHeld || len(calls) != 1 {
						t.Errorf("mail is %s after %d calls", d.Mail.State, len(calls))
					}
					return
				}
				b.wantStates(id, "r=sent")
				if len(calls) != 2 || calls[0].ref != calls[1].ref || calls[0].key != calls[1].key {
					t.Errorf("calls: %+v", calls)
				}
				b.finals(id)
			})
		})
	}
}

func TestCase078_Expiry(t *testing.T) {
	for _, soft := range []bool{false, true} {
		t.Run(fmt.Sprintf("soft_bounce=%v", soft), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				esp.set(fail(providers.Transient))
				b := newBench(t, esp)
				defer b.close()
				b.cfg.SoftBounce = soft
				b.start()
				id := b.submit("r@r.example", "s@s.example")
				b.after(115 * time.Minute)
				b.wantStates(id, "r=queued s=queued")
				b.after(10 * time.Minute)
				if soft {
					b.wantStates(id, "r=queued s=queued")
					if b.detail(id).Mail.State != store.MailHeld {
						t.Error("not held")
					}
					return
				}
				b.wantStates(id, "r=failed s=failed")
				for _, e := range b.finals(id) {
					if e.Kind != event.Failed || e.Status != "4.4.7" || e.RejectReason != event.ReasonTimedOut || e.Outcome != "" || !strings.Contains(e.Diagnostic, "because transient") {
						t.Errorf("event: %+v", e)
					}
				}
				if d := b.detail(id); d.Mail.State != store.MailFinished {
					t.Errorf("mail is %s", d.Mail.State)
				}
			})
		})
	}
}

func TestExpiryOfAnUnknownOutcomeSaysSo(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Ambiguous))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example")
		b.after(125 * time.Minute)
		b.wantStates(id, "r=failed")
		if e := b.finals(id)["r@r.example"]; e.Outcome != event.OutcomeUnknown {
			t.Errorf("event: %+v", e)
		}
	})
}

func TestNoExpiryUnderAPause(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		b.start()
		b.after(time.Second)
		if err := b.run.Pause(context.Background(), "a", ""); err != nil {
			t.Fatal(err)
		}
		id := b.submit("r@r.example")
		b.after(3 * time.Hour)
		d := b.detail(id)
		if d.Mail.State != store.MailHeld || !strings.Contains(d.Mail.HoldReason, "paused") {
			t.Errorf("mail is %s (%s), want held", d.Mail.State, d.Mail.HoldReason)
		}
		b.wantStates(id, "r=queued")
		found := false
		for _, e := range d.Events {
			found = found || e.ProviderEvent == noticeHeld
		}
		if !found {
			t.Error("no alarm for the held mail")
		}
		if err := b.run.Resume(context.Background(), "a"); err != nil {
			t.Fatal(err)
		}
		b.after(time.Minute)
		if n := len(esp.seen()); n != 0 {
			t.Errorf("%d calls for a held mail", n)
		}
	})
}

func TestPanicHoldsThatMailOnly(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if m.Rcpts[0].Addr == "bad@r.example" {
				panic("provider bug")
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		bad, good := b.submit("bad@r.example"), b.submit("good@r.example")
		b.after(10 * time.Minute)
		if d := b.detail(bad); d.Mail.State != store.MailHeld {
			t.Errorf("mail is %s", d.Mail.State)
		}
		b.wantStates(good, "good=sent")
		if n := len(esp.seen()); n != 2 {
			t.Errorf("%d calls", n)
		}
		if !strings.Contains(b.log.String(), "deliver.panic") {
			t.Error("not logged")
		}
	})
}

func TestCase106_SoftBounce(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		round := 0
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			switch round++; round {
			case 1:
				return fail(providers.Permanent)(m)
			case 2:
				return &providers.Outcome{Rcpts: []providers.RcptOutcome{{Verdict: providers.Rejected, Detail: "no"}}}, nil
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.cfg.SoftBounce = true
		b.start()
		id := b.submit("r@r.example")
		b.after(30 * time.Second)
		b.wantStates(id, "r=queued")
		b.after(2 * time.Minute)
		b.wantStates(id, "r=queued")
		b.after(10 * time.Minute)
		b.wantStates(id, "r=sent")
		b.finals(id)
	})
}

func TestCorruptMailDoesNotStopTheOthers(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		big := "From: x@example.com\r\nTo: r@r.example\r\n\r\n" + strings.Repeat("x", 70) + "\r\n" + strings.Repeat(strings.Repeat("y", 76)+"\r\n", 4000)
		bad := b.submitMail(big, "r@r.example")
		// Large bodies are files: flip a byte of the only one.
		flipped := 0
		err := filepath.WalkDir(b.dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil || len(data) < 200<<10 || !strings.Contains(string(data[:200]), "x@example.com") || strings.Contains(path, ".db") {
				return err
			}
			data[len(data)/2] ^= 1
			flipped++
			return os.WriteFile(path, data, 0o600)
		})
		if err != nil || flipped != 1 {
			t.Fatalf("flipped %d files: %v", flipped, err)
		}
		b.start()
		good := b.submit("r@r.example")
		b.after(time.Second)
		b.wantStates(good, "r=sent")
		if d := b.detail(bad); d.Mail.State != store.MailHeld {
			t.Errorf("the corrupt mail is %s", d.Mail.State)
		}
		if n := len(esp.seen()); n != 1 {
			t.Errorf("%d calls", n)
		}
	})
}

func TestCase104_RouteRemovedWhileQueued(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Transient))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Second)
		with := b.cfg.Routes
		b.cfg.Routes, b.cfg.Generation = table(t, route.Route{Name: "other", Senders: []string{"other.example"}, Accounts: []string{"a"}}), 2
		b.run.Reload(NewPlanner(b.cfg))
		esp.set(nil)
		b.after(30 * time.Minute)
		b.wantStates(id, "r=queued")
		if j := b.detail(id).Jobs; len(j) != 1 || j[0].Account != NoRoute {
			t.Errorf("jobs: %+v", j)
		}
		if n := len(esp.seen()); n != 1 {
			t.Errorf("%d calls", n)
		}
		b.cfg.Routes, b.cfg.Generation = with, 3
		b.run.Reload(NewPlanner(b.cfg))
		b.after(10 * time.Minute)
		b.wantStates(id, "r=sent")
		b.finals(id)
	})
}

func TestReloadMovesWaitingMailToTheNewAccount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		old, fresh := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
		old.set(fail(providers.Transient))
		b := newBench(t, old)
		defer b.close()
		b.start()
		free := b.submit("r@r.example")
		b.after(time.Second)
		old.set(fail(providers.Ambiguous))
		frozen := b.submit("r@r.example")
		b.after(time.Second)
		old.set(nil)
		b.cfg.Accounts = map[string]*Account{"a": b.cfg.Accounts["a"], "new": {Name: "new", Info: providers.Info{Name: "fake"}, Provider: fresh}}
		b.cfg.Routes, b.cfg.Generation = table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"new"}}), 2
		b.run.Reload(NewPlanner(b.cfg))
		b.after(10 * time.Minute)
		b.wantStates(free, "r=sent")
		b.wantStates(frozen, "r=sent")
		if e := b.finals(free)["r@r.example"]; e.Account != "new" {
			t.Errorf("the free mail went by %s", e.Account)
		}
		if e := b.finals(frozen)["r@r.example"]; e.Account != "a" {
			t.Errorf("the frozen call went by %s", e.Account)
		}
	})
}

// TestClaimPlansAnew: a claim that finds its job planned under another configuration has it planned anew before anything is
// sent, whichever of the two fingerprints is the greater number.
func TestClaimPlansAnew(t *testing.T) {
	for _, generation := range []int64{1, 3} {
		t.Run(fmt.Sprint("2 to ", generation), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				old, fresh := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
				b := newBench(t, old)
				defer b.close()
				b.cfg.Generation = 2
				id := b.submit("r@r.example")
				b.cfg.Accounts["new"] = &Account{Name: "new", Info: providers.Info{Name: "fake"}, Provider: fresh}
				b.cfg.Routes, b.cfg.Generation = table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"new"}}), generation
				b.queue = func(q Queue) Queue { return neverStale{q} }
				b.start()
				b.after(time.Minute)
				b.wantStates(id, "r=sent")
				if e := b.finals(id)["r@r.example"]; e.Account != "new" || len(old.seen()) > 0 {
					t.Errorf("sent by %s, %d calls of the old account", e.Account, len(old.seen()))
				}
			})
		})
	}
}

// neverStale hides mail planned under another configuration from the loop that looks for it.
type neverStale struct{ Queue }

func (neverStale) Stale(context.Context, int64, int) ([]string, error) { return nil, nil }

// TestReloadProbesPausedAccounts: whoever changes the configuration may have mended the account, so it is asked at once; an
// operator's stop stays.
func TestReloadProbesPausedAccounts(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Operator))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example")
		b.after(10 * time.Minute) // the next probe is minutes away
		esp.set(nil)
		before := len(esp.seen())
		b.after(time.Second)
		if n := len(esp.seen()); n != before {
			t.Fatalf("%d calls without a reload", n-before)
		}
		b.cfg.Generation++ // the mail is planned anew meanwhile
		b.run.Reload(NewPlanner(b.cfg))
		b.after(5 * time.Second)
		b.wantStates(id, "r=sent")
		if err := b.run.Pause(context.Background(), "a", ""); err != nil {
			t.Fatal(err)
		}
		id = b.submit("r@r.example")
		b.run.Reload(NewPlanner(b.cfg))
		b.after(time.Minute)
		b.wantStates(id, "r=queued")
	})
}

// jumpClock is the bubble's clock with a wall clock that can be set.
type jumpClock struct {
	systemClock
	off *atomic.Int64
}

func (c jumpClock) Now() time.Time { return time.Now().Add(time.Duration(c.off.Load())) }

func TestCase111_ClockJump(t *testing.T) {
	const year = 365 * 24 * time.Hour
	for _, jump := range []time.Duration{year, -year, 2 * time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				esp.set(fail(providers.Transient))
				b := newBench(t, esp)
				defer b.close()
				clock := jumpClock{systemClock{time.Now()}, &atomic.Int64{}}
				if err := b.st.Close(); err != nil {
					t.Fatal(err)
				}
				b.clock = clock
				b.open()
				b.cfg.Expire = 24 * time.Hour
				b.start()
				id := b.submit("r@r.example")
				b.after(30 * time.Second)
				before := len(esp.seen())
				clock.off.Store(int64(jump))
				b.after(2 * time.Minute)
				if n := len(esp.seen()); n <= before {
					t.Errorf("no attempt after the jump")
				}
				b.wantStates(id, "r=queued")
				if !strings.Contains(b.log.String(), "clock.jump") {
					t.Error("the jump is not logged")
				}
				esp.set(nil)
				b.after(20 * time.Minute)
				b.wantStates(id, "r=sent")
				b.finals(id)
			})
		})
	}
}

// TestCase112_ArrivalInTheFuture: what was accepted under a clock that ran ahead is not left lying until that time comes:
// after a restart under the right clock it is due at once, and lives no shorter than mail does.
func TestCase112_ArrivalInTheFuture(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Transient))
		b := newBench(t, esp)
		defer func() { b.close() }()
		if err := b.st.Close(); err != nil {
			t.Fatal(err)
		}
		ahead := jumpClock{systemClock{time.Now()}, &atomic.Int64{}}
		ahead.off.Store(int64(400 * 24 * time.Hour))
		b.clock = ahead
		b.open()
		b.start()
		id := b.submit("r@r.example")
		b.after(30 * time.Second)
		b.stop()
		if err := b.st.Close(); err != nil {
			t.Fatal(err)
		}
		before := len(esp.seen())
		ahead.off.Store(0)
		b.open()
		b.start()
		b.after(time.Second)
		if n := len(esp.seen()); n != before+1 {
			t.Errorf("%d attempts after the restart, want one at once", n-before)
		}
		if !strings.Contains(b.log.String(), "clock.future") {
			t.Error("the arrival in the future is not logged")
		}
		esp.set(nil)
		b.after(20 * time.Minute)
		b.wantStates(id, "r=sent")
		b.finals(id)
	})
}

func TestShutdown(t *testing.T) {
	for _, c := range []struct {
		name   string
		takes  time.Duration
		states string
	}{
		{"a call in flight may end", 40 * time.Second, "r=sent"},
		{"a call that does not end is unknown", 10 * time.Minute, "r=in_flight"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &stuck{fake: &fake{caps: jsonCaps()}, takes: c.takes}
				b := newBench(t, esp)
				defer b.close()
				b.cfg.Accounts["a"].MaxConcurrent = 1
				b.start()
				id := b.submit("r@r.example")
				b.after(time.Second)
				waiting := b.submit("r@r.example")
				b.after(time.Second)
				begin := time.Now()
				b.stop()
				if took := time.Since(begin); took > 70*time.Second {
					t.Errorf("shutdown took %s", took)
				}
				b.wantStates(id, c.states)
				b.wantStates(waiting, "r=queued")
				if d := b.detail(waiting); len(d.Calls) != 0 {
					t.Errorf("a call was started while stopping: %+v", d.Calls)
				}
			})
		})
	}
}

// stuck takes its time and heeds its context, as a real provider does.
type stuck struct {
	*fake
	takes time.Duration
}

func (s *stuck) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	select {
	case <-time.After(s.takes):
		return s.fake.Send(ctx, m)
	case <-ctx.Done():
		return nil, &providers.Error{Provider: "fake", Op: "send", Kind: providers.Ambiguous, Err: ctx.Err()}
	}
}

func TestExpect(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			return &providers.Outcome{Rcpts: []providers.RcptOutcome{
				{Verdict: providers.Accepted}, {Verdict: providers.Rejected, Status: "5.1.1", Detail: "no such user"}, {Kind: providers.Transient},
			}}, nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		// The SMTP side names the mail before it commits it; here its id is known only after.
		b.run.stopping.Store(true)
		id := b.submit("r@r.example", "s@s.example", "t@t.example")
		e := b.run.Expect(id, 3)
		defer e.Close()
		b.run.stopping.Store(false)
		b.run.lane("a").wake()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		got, complete := e.Wait(ctx)
		if want := (FirstResult{Sent: 1, Refused: 1, Waiting: 1, Reply: "550 5.1.1 no such user"}); got != want || !complete {
			t.Errorf("got %+v %v, want %+v", got, complete, want)
		}
	})
}

func TestSendAtIsHeldHere(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		b.start()
		at := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
		id := b.submitMail("From: x@example.com\r\nTo: r@r.example\r\nX-Smtpbridge-Send-At: "+at+"\r\n\r\nb\r\n", "r@r.example")
		b.after(59 * time.Minute)
		if n := len(esp.seen()); n != 0 {
			t.Errorf("%d calls before its time", n)
		}
		if j := b.detail(id).Jobs; len(j) == 1 && time.Until(j[0].Expires) < 2*time.Hour {
			t.Errorf("its life ends %s after its time", time.Until(j[0].Expires))
		}
		b.after(2 * time.Minute)
		b.wantStates(id, "r=sent")
	})
}

func TestThroughputKeepsOrderOfNothingLost(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			time.Sleep(100 * time.Millisecond)
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.cfg.Accounts["a"].MaxConcurrent = 10
		b.start()
		var ids []string
		for range 60 {
			ids = append(ids, b.submit("r@r.example"))
		}
		begin := time.Now()
		b.after(4 * time.Second)
		calls := esp.seen()
		if len(calls) != 60 {
			t.Fatalf("%d calls", len(calls))
		}
		if took := calls[len(calls)-1].at.Sub(begin); took > time.Second {
			t.Errorf("60 mails of 0.1 s at 10 at once took %s", took)
		}
		for _, id := range ids {
			b.wantStates(id, "r=sent")
		}
		refs := map[string]bool{}
		for _, c := range calls {
			refs[c.ref] = true
		}
		if len(refs) != 60 {
			t.Errorf("%d references", len(refs))
		}
	})
}

func TestRef(t *testing.T) {
	id := envelope.NewID(time.Now())
	seen := map[string]bool{}
	for range 2000 {
		ref := newRef(id)
		if len(ref) > 40 || strings.Trim(ref, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || !strings.HasPrefix(ref, id) {
			t.Fatalf("ref %q", ref)
		}
		seen[ref] = true
	}
	if len(seen) != 2000 {
		t.Errorf("%d different refs", len(seen))
	}
}

func TestFeatureNames(t *testing.T) {
	for name := range features {
		before := jsonCaps()
		before.Raw, before.Metadata, before.SendAt, before.TrackOpens, before.AMP, before.ReplyTo = translate.RawEnvelope, true, time.Hour, true, true, -1
		after := without(before, []string{name})
		if fmt.Sprint(before) == fmt.Sprint(after) {
			t.Errorf("%s changes nothing", name)
		}
	}
	if canDrop("nonsense") {
		t.Error("an unknown feature can be dropped")
	}
}
