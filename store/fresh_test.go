package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"testing"
	"time"

	"smtpbridge/event"
)

// TestFresh compares each claim given from memory with the one that the database gives later.
func TestFresh(t *testing.T) {
	t.Parallel()
	f := newFixture(t, sqliteEngine, func(o *Options) { o.Fresh, o.InlineBody = 1<<20, 4096 })
	now := f.clock.now()
	for _, tt := range []struct {
		rcpts int
		body  int
		jobs  []NewJob
		evs   []event.Event
	}{
		{rcpts: 1, body: 100, jobs: []NewJob{{Route: "r", Accounts: []string{"a"}, Rcpts: []int{0}}}},
		{rcpts: 1, body: 0, jobs: []NewJob{{Route: "bad \xff", Accounts: []string{"a", "b"}, Rcpts: []int{0}, NextAt: now, Expires: now.Add(time.Hour)}}},
		{rcpts: 3, body: 10000, jobs: []NewJob{{Accounts: []string{"a"}, Rcpts: []int{2, 0}}, {Accounts: []string{"b", "a"}, Rcpts: []int{1}}}},
		{rcpts: 2, body: 10, jobs: []NewJob{{Accounts: []string{"a"}, Rcpts: []int{1}}}, evs: []event.Event{{Kind: event.Rejected, Recipient: "u0@example.org", Status: "5.1.1"}}},
	} {
		var addrs []string
		for i := range tt.rcpts {
			addrs = append(addrs, fmt.Sprintf("u%d@example.org", i))
		}
		m := testMail(now, addrs...)
		body := random(t, tt.body)
		f.must(f.commit(m, body, tt.jobs, tt.evs...))
		f.clock.add(time.Microsecond)
		for _, account := range []string{"a", "b"} {
			fresh, err := f.Claim(t.Context(), account, 10)
			f.must(err)
			for _, c := range fresh {
				if c.body == nil && tt.body > 0 && tt.body <= 4096 {
					t.Errorf("the claim of %d bytes came from the database", tt.body)
				}
				b, err := f.ClaimBody(t.Context(), c)
				f.must(err)
				if got, err := io.ReadAll(io.NewSectionReader(b, 0, b.Size())); err != nil || string(got) != string(body) {
					t.Errorf("body differs: %v", err)
				}
				b.Close()
				f.must(f.Release(t.Context(), c))
			}
			stored, err := f.Claim(t.Context(), account, 10)
			f.must(err)
			for i, c := range stored {
				fresh[i].token, fresh[i].body = c.token, nil
				if c.body != nil || !reflect.DeepEqual(fresh[i], c) {
					t.Errorf("from memory %+v\nstored      %+v", fresh[i], c)
				}
				f.settleSent(c)
			}
			if len(stored) != len(fresh) {
				t.Errorf("%d claims from memory, %d stored", len(fresh), len(stored))
			}
		}
	}
	if f.fresh.bytes != 0 || len(f.fresh.jobs) != 0 || len(f.fresh.mails) != 0 {
		t.Errorf("left in memory: %d bytes, %d jobs, %d mails", f.fresh.bytes, len(f.fresh.jobs), len(f.fresh.mails))
	}
}

// TestFreshChanged changes mails between their commit and their first claim: the claim must know.
func TestFreshChanged(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	job := []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}}}
	for name, tt := range map[string]struct {
		change func(f *fixture, id string) error
		check  func(f *fixture, cs []*Claim) error
	}{
		"held": {
			func(f *fixture, id string) error { return f.Hold(ctx, id, "") },
			func(f *fixture, cs []*Claim) error { return wantClaims(cs, 0) },
		},
		"held and released": {
			func(f *fixture, id string) error {
				f.clock.add(48 * time.Hour)
				return errors.Join(f.Hold(ctx, id, ""), f.ReleaseHold(ctx, id))
			},
			func(f *fixture, cs []*Claim) error {
				if err := wantClaims(cs, 1); err != nil {
					return err
				}
				if !cs[0].Job.Expires.After(f.clock.now()) {
					return fmt.Errorf("it expired at %s", cs[0].Job.Expires)
				}
				return nil
			},
		},
		"deleted": {
			func(f *fixture, id string) error { return f.Delete(ctx, id) },
			func(f *fixture, cs []*Claim) error { return wantClaims(cs, 0) },
		},
		"planned anew": {
			func(f *fixture, id string) error {
				return f.Replan(ctx, id, 7, []NewJob{{Route: "new", Accounts: []string{"a"}, Rcpts: []int{0}}})
			},
			func(f *fixture, cs []*Claim) error {
				if err := wantClaims(cs, 1); err != nil {
					return err
				}
				if cs[0].Job.Generation != 7 || cs[0].Job.Route != "new" {
					return fmt.Errorf("the old plan: %+v", cs[0].Job)
				}
				return nil
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, sqliteEngine, func(o *Options) { o.Fresh = 1 << 20 })
			m := testMail(f.clock.now(), "u@example.org")
			m.MessageID = name
			f.must(f.commit(m, []byte("body"), job))
			if len(f.fresh.mails) != 1 {
				t.Fatal("nothing is kept in memory")
			}
			f.must(tt.change(f, m.Envelope.ID))
			cs, err := f.Claim(ctx, "a", 10)
			f.must(err)
			if err := tt.check(f, cs); err != nil {
				t.Error(err)
			}
			if f.fresh.bytes != 0 || len(f.fresh.jobs) != 0 {
				t.Errorf("left in memory: %d bytes, %d jobs", f.fresh.bytes, len(f.fresh.jobs))
			}
		})
	}
}

func wantClaims(cs []*Claim, n int) error {
	if len(cs) != n {
		return fmt.Errorf("%d claims, want %d", len(cs), n)
	}
	return nil
}

// TestFreshBounded takes more mails than may be kept, and a mail that is to be sent later.
func TestFreshBounded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, sqliteEngine, func(o *Options) { o.Fresh = 64 << 10 })
	for i := range 100 {
		m := testMail(f.clock.now(), "u@example.org")
		j := NewJob{Accounts: []string{"a"}, Rcpts: []int{0}}
		if i%2 == 1 {
			j.NextAt = f.clock.now().Add(time.Hour)
		}
		f.must(f.commit(m, random(t, 2000), []NewJob{j}))
	}
	if n := len(f.fresh.mails); n < 10 || n >= 50 || f.fresh.bytes > 64<<10 {
		t.Errorf("%d mails, %d bytes", n, f.fresh.bytes)
	}
	n := 0
	for {
		cs, err := f.Claim(t.Context(), "a", 7)
		f.must(err)
		if len(cs) == 0 {
			break
		}
		for _, c := range cs {
			f.settleSent(c)
			n++
		}
	}
	if n != 50 || f.fresh.bytes != 0 {
		t.Errorf("%d claimed, %d bytes left", n, f.fresh.bytes)
	}
}

// settleSent sends all that a claim covers.
func (f *fixture) settleSent(c *Claim) {
	f.t.Helper()
	var ns []int
	for _, r := range c.Rcpts {
		ns = append(ns, r.N)
	}
	call := f.start(c, ns...)
	call.State = CallAccepted
	f.must(f.Settle(f.t.Context(), Settlement{Claim: c, Calls: []CallResult{{Call: call}}}))
}

// TestOneConnection reads with a single connection: what holds one must not wait for another, or as many readers as there are
// connections would wait for each other.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	f := newFixture(t, sqliteEngine)
	id := f.accept("a", "u@example.org")
	f.reopen() // with no statement prepared
	f.db.SetMaxOpenConns(1)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for range 2 {
		_, err := f.Detail(ctx, id)
		f.must(err)
		cs, err := f.Claim(ctx, "a", 1)
		f.must(err)
		f.must(wantClaims(cs, 1))
		f.must(f.Release(ctx, cs[0]))
	}
}

// TestFreshTooLate: a claim can be read from the database in the moment between a commit and what it keeps in memory. What is
// kept then is as old as the mail and must not outlive the claim, nor take its room for good.
func TestFreshTooLate(t *testing.T) {
	f := newFixture(t, sqliteEngine, func(o *Options) { o.Fresh = 1 << 20 })
	f.accept("a", "u@example.org")
	c := f.claim("a")
	late := *c
	f.fresh.put(c.Mail, []byte("body"), []*Claim{&late}, f.clock.now())
	call := f.start(c, 0)
	f.must(f.Settle(t.Context(), Settlement{Claim: c, Calls: []CallResult{result(call, CallRetry)}}))
	if c = f.claim("a"); len(c.Open) != 1 || c.Open[0].ID != call.ID {
		t.Errorf("the claim does not know of the call before: %+v", c.Open)
	}
	if f.fresh.bytes != 0 {
		t.Errorf("%d bytes are kept", f.fresh.bytes)
	}
}
