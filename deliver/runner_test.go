package deliver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

func TestSent(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example", "s@s.example")
		b.after(time.Second)
		b.wantStates(id, "r=sent s=sent")
		calls := esp.seen()
		if len(calls) != 1 || !slices.Equal(calls[0].rcpts, []string{"r@r.example", "s@s.example"}) {
			t.Fatalf("calls: %+v", calls)
		}
		if !strings.HasPrefix(calls[0].ref, id+"-") || calls[0].key == "" {
			t.Errorf("ref %q, key %q", calls[0].ref, calls[0].key)
		}
		ev := b.finals(id)["r@r.example"]
		if ev.Kind != event.Sent || ev.Status != "2.0.0" || ev.Attempt != 1 || ev.ProviderMessageID != "id-"+calls[0].ref ||
			ev.Account != "a" || ev.Provider != "fake" || ev.MessageID != "m@example.com" || ev.Action != event.ActionRelayed {
			t.Errorf("event: %+v", ev)
		}
		if d := b.detail(id); d.Mail.State != store.MailFinished || len(d.Calls) != 1 || d.Calls[0].State != store.CallAccepted {
			t.Errorf("detail: %+v", d)
		}
	})
}

// TestKinds is the table of what each kind of failure does to the mail, and to the account.
func TestKinds(t *testing.T) {
	for _, c := range []struct {
		name     string
		err      error
		attempts int    // that count, after the first call
		states   string // half a minute after
		account  string
		calls    int // after two and a half minutes, if nothing changes
		want     event.Kind
		status   string
	}{
		{"transient", &providers.Error{Kind: providers.Transient, HTTPStatus: 503}, 1, "r=queued", Active, 2, event.Deferred, "4.4.0"},
		{"unclassified", &providers.Error{}, 1, "r=queued", Active, 2, event.Deferred, "4.4.0"},
		{"plain error", errors.New("boom"), 1, "r=queued", Active, 2, event.Deferred, "4.4.0"},
		{"permanent", &providers.Error{Kind: providers.Permanent, HTTPStatus: 422, Msg: "no such address", Status: "5.1.1"}, 0, "r=failed", Active, 1, event.Failed, "5.1.1"},
		{"permanent with a status that does not fit", &providers.Error{Kind: providers.Permanent, Status: "4.0.0"}, 0, "r=failed", Active, 1, event.Failed, "5.0.0"},
		{"unlisted", &providers.Error{Kind: providers.Permanent, HTTPStatus: 418, Unlisted: true}, 1, "r=queued", Active, 2, event.Deferred, "4.4.0"},
		{"rate limited", &providers.Error{Kind: providers.RateLimited, HTTPStatus: 429, RetryAfter: 2 * time.Minute}, 0, "r=queued", Throttled, 2, "", ""},
		{"operator", &providers.Error{Kind: providers.Operator, HTTPStatus: 401, Msg: "bad key"}, 0, "r=queued", Paused, 2, "", ""},
		{"ambiguous", &providers.Error{Kind: providers.Ambiguous}, 1, "r=in_flight", Active, 2, event.Deferred, "4.4.2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				esp.set(func(*translate.Mail) (*providers.Outcome, error) { return nil, c.err })
				b := newBench(t, esp)
				defer b.close()
				b.start()
				id := b.submit("r@r.example")
				b.after(30 * time.Second)
				b.wantStates(id, c.states)
				if got := b.account("a").State; got != c.account {
					t.Errorf("account is %s, want %s", got, c.account)
				}
				if jobs := b.detail(id).Jobs; len(jobs) > 0 && jobs[0].Attempts != c.attempts {
					t.Errorf("%d attempts count, want %d", jobs[0].Attempts, c.attempts)
				}
				b.after(2 * time.Minute)
				if got := len(esp.seen()); got != c.calls {
					t.Errorf("%d calls, want %d", got, c.calls)
				}
				b.finals(id)
				if c.want != "" {
					evs := b.events(id, c.want)
					if len(evs) == 0 {
						t.Fatalf("no %s event", c.want)
					}
					first := slices.MinFunc(evs, func(a, b event.Event) int { return a.Attempt - b.Attempt })
					if first.Status != c.status || first.Attempt != 1 {
						t.Errorf("status %q attempt %d, want %q 1", first.Status, first.Attempt, c.status)
					}
					if unknown := c.name == "ambiguous"; unknown != (first.Outcome == event.OutcomeUnknown) {
						t.Errorf("outcome %q", first.Outcome)
					}
				} else if evs := b.events(id, event.Deferred); len(evs) > 0 {
					t.Errorf("deferred events for what is no attempt: %+v", evs)
				}
			})
		})
	}
}

func TestRepeatIsUnchanged(t *testing.T) {
	for _, k := range []providers.Kind{providers.Transient, providers.Ambiguous, providers.RateLimited, providers.Operator} {
		t.Run(k.String(), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				caps := jsonCaps()
				caps.IdempotencyTTL = 24 * time.Hour
				esp := &fake{caps: caps}
				esp.set(fail(k))
				b := newBench(t, esp)
				defer b.close()
				b.start()
				id := b.submit("r@r.example", "s@s.example")
				b.after(30 * time.Second)
				esp.set(nil)
				b.after(10 * time.Minute)
				calls := esp.seen()
				if len(calls) < 2 {
					t.Fatalf("%d calls", len(calls))
				}
				for _, c := range calls[1:] {
					if c.ref != calls[0].ref || c.key != calls[0].key || !slices.Equal(c.rcpts, calls[0].rcpts) {
						t.Errorf("repeated as %+v, was %+v", c, calls[0])
					}
				}
				b.wantStates(id, "r=sent s=sent")
				b.finals(id)
			})
		})
	}
}

func TestCase075_PartialSuccess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		round := 0
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if round++; round > 1 {
				return providers.AllAccepted(m, "second"), nil
			}
			return &providers.Outcome{MessageID: "first", Rcpts: []providers.RcptOutcome{
				{Verdict: providers.Accepted, MessageID: "own-id"},
				{Verdict: providers.Rejected, Status: "5.1.1", Reason: event.ReasonInvalid, Detail: "no such user"},
				{Verdict: providers.Deferred, Kind: providers.Transient, Detail: "greylisted"},
				{Verdict: providers.Deferred, Kind: providers.Permanent, Detail: "never"},
			}}, nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("ok@r.example", "no@r.example", "later@r.example", "never@r.example")
		b.after(30 * time.Second)
		b.wantStates(id, "ok=sent no=rejected later=queued never=failed")
		b.after(5 * time.Minute)
		b.wantStates(id, "ok=sent no=rejected later=sent never=failed")
		f := b.finals(id)
		if e := f["ok@r.example"]; e.ProviderMessageID != "own-id" {
			t.Errorf("ok: %+v", e)
		}
		if e := f["no@r.example"]; e.Kind != event.Rejected || e.Status != "5.1.1" || e.RejectReason != event.ReasonInvalid || e.Diagnostic != "no such user" {
			t.Errorf("no: %+v", e)
		}
		if e := f["later@r.example"]; e.ProviderMessageID != "second" || e.Attempt != 2 {
			t.Errorf("later: %+v", e)
		}
		calls := esp.seen()
		if len(calls) != 2 || !slices.Equal(calls[1].rcpts, []string{"later@r.example"}) {
			t.Errorf("only the open one goes again: %+v", calls)
		}
	})
}

func TestPartialUnknown(t *testing.T) {
	for _, c := range []struct {
		policy, states, later string
		held                  bool
	}{
		{UnknownRetry, "ok=sent lost=queued", "ok=sent lost=sent", false},
		{UnknownHold, "ok=sent lost=in_flight", "ok=sent lost=in_flight", true},
	} {
		t.Run(c.policy, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				round := 0
				esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
					if round++; round > 1 {
						return providers.AllAccepted(m, "second"), nil
					}
					return &providers.Outcome{MessageID: "first", Rcpts: []providers.RcptOutcome{{Verdict: providers.Accepted}}}, nil
				})
				b := newBench(t, esp)
				defer b.close()
				b.cfg.OnUnknown = c.policy
				b.start()
				id := b.submit("ok@r.example", "lost@r.example")
				b.after(30 * time.Second)
				b.wantStates(id, c.states)
				b.after(5 * time.Minute)
				b.wantStates(id, c.later)
				if held := b.detail(id).Mail.State == store.MailHeld; held != c.held {
					t.Errorf("held: %v", held)
				}
				for _, call := range esp.seen()[1:] {
					if slices.Contains(call.rcpts, "ok@r.example") {
						t.Error("the accepted recipient was in a second call")
					}
				}
				b.finals(id)
			})
		})
	}
}

func TestSplit(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			for _, r := range m.Rcpts {
				if strings.HasPrefix(r.Addr, "bad") {
					return nil, &providers.Error{Kind: providers.Permanent, Split: true, Msg: "bad address"}
				}
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		var rcpts []string
		for i := range 24 {
			rcpts = append(rcpts, fmt.Sprintf("r%02d@r.example", i))
		}
		rcpts[7] = "bad@r.example"
		id := b.submit(rcpts...)
		b.after(time.Second)
		for _, r := range b.detail(id).Rcpts {
			if want := map[bool]store.RcptState{true: store.RcptFailed, false: store.RcptSent}[r.Addr == "bad@r.example"]; r.State != want {
				t.Errorf("%s is %s", r.Addr, r.State)
			}
		}
		if n := len(esp.seen()); n != 25 {
			t.Errorf("%d calls, want 25", n)
		}
		b.finals(id)
	})
}

func TestManyCallsOneStuck(t *testing.T) {
	bubble(t, func(t *testing.T) {
		caps := jsonCaps()
		caps.MaxRcpts = 1
		esp := &fake{caps: caps}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if m.Rcpts[0].Addr == "r00@r.example" {
				return fail(providers.Transient)(m)
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		var rcpts []string
		for i := range 40 {
			rcpts = append(rcpts, fmt.Sprintf("r%02d@r.example", i))
		}
		id := b.submit(rcpts...)
		b.after(40 * time.Second)
		sent := 0
		for _, r := range b.detail(id).Rcpts {
			if r.State == store.RcptSent {
				sent++
			}
		}
		if sent != 39 {
			t.Errorf("%d sent, want 39", sent)
		}
		if n := len(esp.seen()); n != 40 {
			t.Errorf("%d calls, want 40: the stuck one waits for its turn", n)
		}
		esp.set(nil)
		b.after(10 * time.Minute)
		if d := b.detail(id); d.Mail.State != store.MailFinished {
			t.Errorf("mail is %s", d.Mail.State)
		}
		b.finals(id)
	})
}

func TestCase071_OperatorPausesAndResumes(t *testing.T) {
	for _, check := range []bool{false, true} {
		t.Run(fmt.Sprintf("checker=%v", check), func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				esp := &fake{caps: jsonCaps()}
				var broken atomic.Bool
				broken.Store(true)
				var checks atomic.Int64
				var p providers.Provider = esp
				if check {
					p = checker{esp, func() error {
						checks.Add(1)
						if broken.Load() {
							return &providers.Error{Op: "check", Kind: providers.Operator, Msg: "still bad"}
						}
						return nil
					}}
				}
				esp.set(fail(providers.Operator))
				b := newBench(t, p)
				defer b.close()
				b.start()
				var ids []string
				for range 5 {
					ids = append(ids, b.submit("r@r.example"))
					b.after(time.Second)
				}
				b.after(40 * time.Minute)
				calls := len(esp.seen())
				if check && (calls != 1 || checks.Load() < 3 || checks.Load() > 7) || !check && (calls < 4 || calls > 8) {
					t.Errorf("%d calls and %d checks while paused", calls, checks.Load())
				}
				if n := b.notices(noticePaused); n != 1 {
					t.Errorf("%d alarms, want one", n)
				}
				states, err := b.st.Accounts(context.Background())
				if err != nil || len(states) != 1 || states[0].State != Paused || !strings.Contains(states[0].Reason, "bad") && !strings.Contains(states[0].Reason, "operator") {
					t.Errorf("stored: %+v, %v", states, err)
				}
				for _, id := range ids {
					if d := b.detail(id); d.Mail.State != store.MailQueued || d.Jobs[0].Attempts != 0 {
						t.Errorf("mail is %s with %d attempts", d.Mail.State, d.Jobs[0].Attempts)
					}
				}
				broken.Store(false)
				esp.set(nil)
				b.after(16 * time.Minute)
				for _, id := range ids {
					b.wantStates(id, "r=sent")
					b.finals(id)
				}
				if n := b.notices(noticeResumed); n != 1 || b.account("a").State != Active {
					t.Errorf("%d relief notices, account %s", n, b.account("a").State)
				}
				if states, _ := b.st.Accounts(context.Background()); len(states) != 0 {
					t.Errorf("stored after the end: %+v", states)
				}
			})
		})
	}
}

func TestPauseSurvivesRestart(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Operator))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Second)
		b.stop()
		esp.set(nil)
		b.start()
		b.after(time.Second)
		if got := b.account("a").State; got != Paused {
			t.Errorf("account is %s after the restart", got)
		}
		b.wantStates(id, "r=queued")
		b.after(2 * time.Minute)
		b.wantStates(id, "r=sent")
		if n := b.notices(noticePaused); n != 1 {
			t.Errorf("%d alarms", n)
		}
	})
}

func TestDomainScope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		var broken atomic.Bool
		broken.Store(true)
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if broken.Load() && strings.HasSuffix(m.From.Addr, "@bad.example") {
				return nil, &providers.Error{Kind: providers.Operator, Scope: providers.ScopeDomain, Msg: "domain not verified"}
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.cfg.Routes = table(t, route.Route{Name: "main", Senders: []string{"*"}, Accounts: []string{"a"}})
		b.start()
		bad := "From: x@bad.example\r\nTo: r@r.example\r\nSubject: s\r\n\r\nb\r\n"
		one, two := b.submitMail(bad, "r@r.example"), b.submitMail(bad, "r@r.example")
		good := b.submit("r@r.example")
		b.after(30 * time.Second)
		b.wantStates(one, "r=queued")
		b.wantStates(two, "r=queued")
		b.wantStates(good, "r=sent")
		if got := b.account("a").State; got != Active {
			t.Errorf("account is %s", got)
		}
		if n := b.notices(noticePaused); n != 1 {
			t.Errorf("%d alarms", n)
		}
		broken.Store(false)
		b.after(20 * time.Minute)
		b.wantStates(one, "r=sent")
		b.wantStates(two, "r=sent")
		if n := b.notices(noticeResumed); n != 1 {
			t.Errorf("%d relief notices", n)
		}
	})
}

func TestFeatureScope(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if len(m.Headers) > 0 {
				return nil, &providers.Error{Kind: providers.Operator, Scope: providers.ScopeFeature, Feature: "headers", Msg: "not in your plan"}
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		b.start()
		mail := "From: x@example.com\r\nTo: r@r.example\r\nSubject: s\r\nX-Foo: bar\r\n\r\nb\r\n"
		one := b.submitMail(mail, "r@r.example")
		b.after(time.Second)
		two := b.submitMail(mail, "r@r.example")
		b.after(time.Second)
		b.wantStates(one, "r=sent")
		b.wantStates(two, "r=sent")
		if n := len(esp.seen()); n != 3 {
			t.Errorf("%d calls, want 3: the feature is not tried again", n)
		}
		lost := false
		for _, l := range b.finals(one)["r@r.example"].Losses {
			lost = lost || strings.Contains(strings.ToLower(l.Field), "x-foo")
		}
		if !lost {
			t.Errorf("the loss is not said: %+v", b.finals(one)["r@r.example"].Losses)
		}
		if got := b.account("a").State; got != Active {
			t.Errorf("account is %s", got)
		}
		if s := b.run.Status(context.Background()); !slices.Equal(s.Accounts[0].LostFeatures, []string{"headers"}) {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestUnlistedPausesAtTheThirdMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Permanent, func(e *providers.Error) { e.Unlisted, e.HTTPStatus = true, 418 }))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		one := b.submit("r@r.example")
		b.after(5 * time.Minute) // the same mail again and again proves nothing
		if got := b.account("a").State; got != Active {
			t.Fatalf("account is %s after one mail", got)
		}
		two := b.submit("r@r.example")
		b.after(time.Second)
		if got := b.account("a").State; got != Active {
			t.Fatalf("account is %s after two mails", got)
		}
		three := b.submit("r@r.example")
		b.after(time.Second)
		if got := b.account("a").State; got != Paused {
			t.Errorf("account is %s after three mails", got)
		}
		for _, id := range []string{one, two, three} {
			b.wantStates(id, "r=queued")
		}
		esp.set(nil)
		b.after(40 * time.Minute)
		for _, id := range []string{one, two, three} {
			b.wantStates(id, "r=sent")
		}
	})
}

func TestCase068_RetryAfterPausesTheAccount(t *testing.T) {
	bubble(t, func(t *testing.T) {
		limited, other := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
		limited.set(fail(providers.RateLimited, func(e *providers.Error) { e.RetryAfter = 10 * time.Minute }))
		b := newBench(t, limited, other)
		defer b.close()
		b.cfg.Routes = table(t,
			route.Route{Name: "one", Senders: []string{"example.com"}, Accounts: []string{"a"}},
			route.Route{Name: "two", Senders: []string{"*"}, Accounts: []string{"b"}})
		b.start()
		first := b.submit("r@r.example")
		b.after(time.Second)
		limited.set(nil)
		second := b.submit("r@r.example")
		elsewhere := b.submitMail("From: x@other.example\r\nTo: r@r.example\r\n\r\nb\r\n", "r@r.example")
		b.after(9 * time.Minute)
		if n := len(limited.seen()); n != 1 {
			t.Errorf("%d calls under the throttle", n)
		}
		b.wantStates(elsewhere, "r=sent")
		b.after(2 * time.Minute)
		b.wantStates(first, "r=sent")
		b.wantStates(second, "r=sent")
		if e := b.finals(first)["r@r.example"]; e.Kind != event.Sent {
			t.Errorf("%+v", e)
		}
		if n := b.notices(noticePaused); n != 0 {
			t.Errorf("%d alarms for a throttle", n)
		}
	})
}

func TestFailover(t *testing.T) {
	for _, c := range []struct {
		name   string
		kind   providers.Kind
		within time.Duration // the second account has it by then
		before time.Duration // and not before
	}{
		{"operator at once", providers.Operator, time.Second, 0},
		{"transient after failover_after", providers.Transient, 40 * time.Minute, 10 * time.Minute},
		{"rate limit after failover_after", providers.RateLimited, 40 * time.Minute, 10 * time.Minute},
		{"ambiguous never", providers.Ambiguous, 0, 0},
		{"permanent never", providers.Permanent, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				first, second := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
				first.set(fail(c.kind))
				b := newBench(t, first, second)
				defer b.close()
				b.start()
				begin := time.Now()
				id := b.submit("r@r.example", "s@s.example")
				b.after(max(c.within, time.Second))
				if c.within == 0 {
					b.after(40 * time.Minute)
					if n := len(second.seen()); n != 0 {
						t.Errorf("%d calls at the second account", n)
					}
					b.finals(id)
					return
				}
				calls := second.seen()
				if len(calls) != 1 || len(calls[0].rcpts) != 2 {
					t.Fatalf("calls at the second account: %+v", calls)
				}
				if waited := calls[0].at.Sub(begin); waited < c.before {
					t.Errorf("moved after %s", waited)
				}
				if calls[0].ref == first.seen()[0].ref {
					t.Error("the second account got the first one's reference")
				}
				b.wantStates(id, "r=sent s=sent")
				if e := b.finals(id)["r@r.example"]; e.Account != "b" {
					t.Errorf("sent by %s", e.Account)
				}
			})
		})
	}
}

func TestEvacuation(t *testing.T) {
	bubble(t, func(t *testing.T) {
		first, second := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
		b := newBench(t, first, second)
		defer b.close()
		b.cfg.Routes = table(t,
			route.Route{Name: "both", Senders: []string{"example.com"}, Accounts: []string{"a", "b"}},
			route.Route{Name: "only", Senders: []string{"*"}, Accounts: []string{"a"}})
		b.start()
		b.after(time.Second)
		if err := b.run.Pause(context.Background(), "a", "maintenance"); err != nil {
			t.Fatal(err)
		}
		moves, stays := b.submit("r@r.example"), b.submitMail("From: x@other.example\r\nTo: r@r.example\r\n\r\nb\r\n", "r@r.example")
		b.after(3 * time.Minute)
		b.wantStates(moves, "r=sent")
		b.wantStates(stays, "r=queued")
		if s := b.run.Status(context.Background()); s.Accounts[0].State != Stopped || s.Accounts[0].Reason != "maintenance" || s.Accounts[0].Queued != 1 {
			t.Errorf("status: %+v", s.Accounts[0])
		}
		if err := b.run.Resume(context.Background(), "a"); err != nil {
			t.Fatal(err)
		}
		b.after(20 * time.Minute)
		b.wantStates(stays, "r=sent")
		if err := b.run.Pause(context.Background(), "nobody", ""); !errors.Is(err, ErrNoAccount) {
			t.Errorf("pause of an unknown account: %v", err)
		}
	})
}

func TestCase077_NoHeadOfLineBlocking(t *testing.T) {
	bubble(t, func(t *testing.T) {
		slow, quick := &fake{caps: jsonCaps()}, &fake{caps: jsonCaps()}
		slow.set(func(m *translate.Mail) (*providers.Outcome, error) {
			time.Sleep(50 * time.Second)
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, slow, quick)
		defer b.close()
		b.cfg.Routes = table(t,
			route.Route{Name: "slow", Senders: []string{"example.com"}, Accounts: []string{"a"}},
			route.Route{Name: "quick", Senders: []string{"*"}, Accounts: []string{"b"}})
		b.cfg.Accounts["a"].MaxConcurrent = 2
		b.start()
		for range 10 {
			b.submit("r@r.example")
		}
		b.after(time.Second)
		if n := len(slow.seen()); n != 2 {
			t.Errorf("%d calls at once, want 2", n)
		}
		id := b.submitMail("From: x@other.example\r\nTo: r@r.example\r\n\r\nb\r\n", "r@r.example")
		b.after(time.Second)
		b.wantStates(id, "r=sent")
	})
}

func TestRate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		b.cfg.Accounts["a"].MaxPerSecond = 2
		b.config = func(c *RunnerConfig) { c.Nodes = func() int { return 2 } }
		b.start()
		for range 20 {
			b.submit("r@r.example")
		}
		b.after(10 * time.Second)
		if n := len(esp.seen()); n < 9 || n > 12 {
			t.Errorf("%d calls in 10 s at half of 2 per second", n)
		}
		b.after(20 * time.Second)
		if n := len(esp.seen()); n != 20 {
			t.Errorf("%d calls in the end", n)
		}
	})
}

func TestMailGoesAtOnceWhenAPauseEnds(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		esp.set(fail(providers.Operator))
		b := newBench(t, esp)
		defer b.close()
		b.start()
		first := b.submit("r@r.example")
		b.after(time.Second)
		second := b.submit("r@r.example")
		b.after(20 * time.Minute)
		esp.set(nil)
		if err := b.run.Resume(context.Background(), "a"); err != nil {
			t.Fatal(err)
		}
		b.after(2 * time.Second)
		b.wantStates(first, "r=sent")
		b.wantStates(second, "r=sent")
	})
}

func TestStartFails(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		b := newBench(t, esp)
		defer b.close()
		fq := &faultyQueue{}
		tries := 0
		fq.start = func() error { tries++; return errDisk }
		b.queue = func(q Queue) Queue { fq.Queue = q; return fq }
		b.start()
		id := b.submit("r@r.example")
		b.after(time.Minute)
		if len(esp.seen()) != 0 {
			t.Error("a call was made that is not in the store")
		}
		if tries < 2 || tries > 10 {
			t.Errorf("%d tries in a minute", tries)
		}
		fq.mu.Lock()
		fq.start = nil
		fq.mu.Unlock()
		b.after(20 * time.Second)
		b.wantStates(id, "r=sent")
		b.finals(id)
	})
}
