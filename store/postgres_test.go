package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"smtpbridge/event"
	"smtpbridge/internal/pgtest"
)

// cluster is a server and a counter for the names of databases.
type cluster struct {
	*pgtest.Server
	next     atomic.Int64
	template string // a database with the schema in it, copied for each test
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{Server: pgtest.Start(t, pgtest.Options{})}
	o, opener := c.engine(t)
	if err := opener(t, o).Close(); err != nil {
		t.Fatal(err)
	}
	c.template = "t1"
	return c
}

// engine gives each fixture a database of its own.
func (c *cluster) engine(t *testing.T) (Options, opener) {
	t.Helper()
	url := c.Create(t, fmt.Sprintf("t%d", c.next.Add(1)), c.template)
	return Options{Dir: t.TempDir(), URL: url}, openPostgresStore
}

func openPostgresStore(t *testing.T, o Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestPostgres(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	runSuite(t, c.engine)
	t.Run("two nodes", func(t *testing.T) { testTwoNodes(t, c) })
	t.Run("lost lease", func(t *testing.T) { testLostLease(t, c) })
	t.Run("lost release", func(t *testing.T) { testLostRelease(t, c) })
	t.Run("signs of life", func(t *testing.T) { testSignsOfLife(t, c) })
	t.Run("many notifications", func(t *testing.T) { testManyNotifications(t, c) })
	t.Run("run again", func(t *testing.T) { testRunAgain(t, c) })
	t.Run("locked", func(t *testing.T) { testLocked(t, c) })
	t.Run("order of the outbox", func(t *testing.T) { testOutboxOrder(t, c) })
	t.Run("leaders", func(t *testing.T) { testLeaders(t, c) })
	t.Run("move", func(t *testing.T) { testTransfer(t, c) })
	t.Run("move cut off", func(t *testing.T) { testTransferCutOff(t, c) })
	t.Run("faults", func(t *testing.T) { testPostgresFaults(t, c) })
	t.Run("unreachable", func(t *testing.T) {
		_, err := Open(t.Context(), Options{Dir: t.TempDir(), URL: "postgres://bridge:hunter2@127.0.0.1:1/x?connect_timeout=2"})
		if err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Fatalf("got %v", err)
		}
	})
}

// node opens another bridge's store on the same database.
func (f *fixture) node(t *testing.T, o Options) *Store {
	t.Helper()
	o.Dir, o.Now, o.KeepBodies = t.TempDir(), f.clock.now, time.Hour
	s, err := Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func testTwoNodes(t *testing.T, c *cluster) {
	var opts Options
	f := newFixture(t, c.engine, func(o *Options) { opts = *o })
	other := f.node(t, opts)
	wake, stop := other.Subscribe(TopicQueue)
	defer stop()
	evs, stopEvs := other.Subscribe(TopicEvents)
	defer stopEvs()
	const n = 60
	for i := range n {
		f.accept("a", fmt.Sprintf("u%d@example.org", i))
	}
	select {
	case <-wake:
	case <-time.After(10 * time.Second):
		t.Fatal("the other node was not woken")
	}
	var mu sync.Mutex
	seen := map[int64]int{}
	var wg sync.WaitGroup
	for _, s := range []*Store{f.Store, other, f.Store, other} {
		wg.Go(func() {
			for {
				cs, err := s.Claim(context.Background(), "a", 4)
				if err != nil {
					t.Error(err)
					return
				}
				if len(cs) == 0 {
					return
				}
				for _, c := range cs {
					calls, err := s.Start(context.Background(), c, []Call{{Rcpts: []int{0}}})
					if err != nil {
						t.Error(err)
						return
					}
					if err := s.Settle(context.Background(), Settlement{Claim: c, Calls: []CallResult{accepted(calls[0], "pm-"+c.Job.MailID)}}); err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					seen[c.Job.ID]++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	if len(seen) != n {
		t.Fatalf("got %d jobs, want %d", len(seen), n)
	}
	for id, k := range seen {
		if k != 1 {
			t.Errorf("job %d was done %d times", id, k)
		}
	}
	select {
	case <-evs:
	case <-time.After(10 * time.Second):
		t.Fatal("the other node was not woken for events")
	}
	if got := len(f.follow()); got != n {
		t.Fatalf("got %d events", got)
	}
}

func testLostLease(t *testing.T, c *cluster) {
	var opts Options
	f := newFixture(t, c.engine, func(o *Options) { o.Lease = time.Second; opts = *o })
	other := f.node(t, opts)
	id := f.accept("a", "one@example.org", "two@example.org")
	cl := f.claim("a")
	call := f.start(cl, 0)
	// While the node lives its lease is renewed.
	end := time.Now().Add(2 * time.Second)
	waitFor(t, func() bool {
		if cs, err := other.Claim(t.Context(), "a", 1); err != nil || len(cs) != 0 {
			t.Fatalf("a living node's job was claimed: %v %v", cs, err)
		}
		return time.Now().After(end)
	})
	f.stopBack() // the node hangs: no renewal
	var cs []*Claim
	waitFor(t, func() bool {
		var err error
		if cs, err = other.Claim(t.Context(), "a", 1); err != nil {
			t.Fatal(err)
		}
		return len(cs) == 1
	})
	if len(cs[0].Open) != 1 || cs[0].Open[0].State != CallAmbiguous || len(cs[0].Rcpts) != 1 {
		t.Fatalf("got %+v", cs[0])
	}
	if _, err := f.Start(t.Context(), cl, []Call{{Rcpts: []int{1}}}); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	// The hanging node's call was accepted after all: that is never lost, and nothing else is touched.
	r, ev := sent(cl, 0, "pm")
	if err := f.Settle(t.Context(), Settlement{Claim: cl, Calls: []CallResult{accepted(call, "pm")}, Rcpts: []RcptResult{r, {N: 1, State: RcptQueued}}, Events: []event.Event{ev}, NextAt: f.clock.now().Add(time.Hour)}); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	f.wantRcpt(id, 0, RcptSent, event.Sent)
	if d := f.detail(id); len(d.Jobs) != 1 || len(d.Jobs[0].Rcpts) != 1 || d.Jobs[0].NextAt.After(f.clock.now()) || d.Calls[0].State != CallAccepted {
		t.Fatalf("got %+v", d)
	}
	// The other node's repeat of the call finds it settled.
	if _, err := other.Start(t.Context(), cs[0], []Call{cs[0].Open[0]}); !errors.Is(err, ErrStale) {
		t.Fatalf("got %v", err)
	}
	f.wantEvents("sent(one@example.org) ")
}

// testLostRelease: a claim whose release the database did not take is nobody's once its lease has run out. Were it
// renewed for ever, the mail would wait as long as the node lives.
func testLostRelease(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine, func(o *Options) { o.Lease = time.Second })
	f.accept("a", "u@example.org")
	cl := f.claim("a")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if err := f.Release(gone, cl); !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	waitFor(t, func() bool {
		cs, err := f.Store.Claim(t.Context(), "a", 1)
		if err != nil {
			t.Fatal(err)
		}
		return len(cs) == 1 && cs[0].token != cl.token
	})
}

// testRunAgain: a transaction that lost against another one runs again, and counts nothing twice.
func testRunAgain(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine)
	now := f.clock.now()
	n, err := f.Record(t.Context(), nil, event.Event{ID: "stray", Kind: event.Delivered, Time: now, Seen: now, Recipient: "u@example.org"})
	f.must(err)
	if n != 1 {
		t.Fatalf("%d events are new", n)
	}
	fail := &failNth{at: 1, err: &pgconn.PgError{Code: "40001"}, point: "commit"}
	f.fault = fail.hook
	got, err := f.Erase(t.Context(), "u@example.org")
	f.must(err)
	if got.Events != 1 || fail.n != 2 {
		t.Errorf("%d events erased in %d runs, want 1 in 2", got.Events, fail.n)
	}
}

// testOutboxOrder: a transaction that began earlier commits later; a follower must not pass it by.
func testOutboxOrder(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine)
	inside, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	wg.Go(func() {
		err := f.do(context.Background(), 0, func(ctx context.Context, t *tx) error {
			e := event.Event{ID: "slow", Kind: event.Unknown, Account: "a"}
			if _, err := t.insertEvent(ctx, &e, ""); err != nil {
				return err
			}
			once.Do(func() { close(inside) })
			<-goOn
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-inside
	f.record(1, event.Event{ID: "quick", Kind: event.Unknown})
	evs, cursor, err := f.Follow(t.Context(), "", 10)
	if err != nil || len(evs) != 0 {
		t.Fatalf("got %v %v", evs, err)
	}
	close(goOn)
	wg.Wait()
	if evs, _, err = f.Follow(t.Context(), cursor, 10); err != nil || len(evs) != 2 {
		t.Fatalf("got %v %v", evs, err)
	}
}

// testPostgresFaults fails each statement and commit of accept, start and settle in turn.
func testPostgresFaults(t *testing.T, c *cluster) {
	o, _ := c.engine(t)
	o.InlineBody, o.KeepBodies = 1024, time.Hour
	var current atomic.Pointer[failNth]
	s, err := open(t.Context(), o, func(point string) error {
		if f := current.Load(); f != nil {
			return f.hook(point)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for n := int64(1); ; n++ {
		fail := &failNth{at: n, err: errInjected}
		current.Store(fail)
		m := testMail(time.Now(), "u@example.org")
		id, account := m.Envelope.ID, fmt.Sprint("a", n)
		body := random(t, 300_000)
		acked := false
		if r, err := s.Begin(t.Context()); err == nil {
			if _, err = r.Write(body); err == nil {
				acked = r.Commit(t.Context(), m, []NewJob{{Accounts: []string{account}, Rcpts: []int{0}}}) == nil
			}
			r.Abort()
		}
		settled := false
		if cs, err := s.Claim(t.Context(), account, 1); err == nil && len(cs) == 1 {
			if calls, err := s.Start(t.Context(), cs[0], []Call{{Rcpts: []int{0}}}); err == nil {
				settled = s.Settle(t.Context(), Settlement{Claim: cs[0], Calls: []CallResult{accepted(calls[0], id)}}) == nil
			}
		}
		fail.off.Store(true)
		d, err := s.Detail(t.Context(), id)
		if (err == nil) != acked {
			t.Fatalf("call %d: acknowledged %v, but %v", n, acked, err)
		}
		if acked {
			b, err := s.Body(t.Context(), id)
			if err != nil {
				t.Fatalf("call %d: %v", n, err)
			}
			readBody(t, b, body)
			if len(d.Events) > 1 || (len(d.Events) == 1) != d.Rcpts[0].State.Final() || settled && len(d.Events) != 1 {
				t.Fatalf("call %d: settled %v, %s with %d events", n, settled, d.Rcpts[0].State, len(d.Events))
			}
		}
		if fail.n < n {
			if n < 15 {
				t.Fatalf("only %d calls", n)
			}
			break
		}
	}
}
