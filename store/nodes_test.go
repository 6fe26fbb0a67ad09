package store

import (
	"context"
	"errors"
	"testing"
	"time"
)

// testLeaders: one of two nodes leads, the other follows when it dies, and what the dead one says late moves nothing.
func testLeaders(t *testing.T, c *cluster) {
	var opts Options
	f := newFixture(t, c.engine, func(o *Options) { o.Lease = 2 * time.Second; opts = *o })
	other := f.node(t, opts)
	ctx := t.Context()
	if f.Lead(ctx, "sink") {
		t.Error("a process that did not join leads")
	}
	f.must(f.Join(ctx, Membership{Version: "1", Roles: []string{"deliver"}, Delivers: true}))
	f.must(other.Join(ctx, Membership{Version: "2", Roles: []string{"sink"}}))
	if !f.Lead(ctx, "sink") || other.Lead(ctx, "sink") || !f.Lead(ctx, "sink") {
		t.Error("not exactly the first leads")
	}
	if got, err := other.Led(ctx, "sink"); err != nil || got != f.Node() || got == other.Node() {
		t.Errorf("led by %q, %v", got, err)
	}
	f.must(f.SetCursor(ctx, "sink", "1"))
	if err := other.SetCursor(ctx, "sink", "2"); !errors.Is(err, ErrStale) {
		t.Errorf("a node that does not lead moved the place: %v", err)
	}
	if f.Delivering() != 1 {
		t.Errorf("%d nodes deliver, want 1", f.Delivering())
	}
	third := f.node(t, opts)
	f.must(third.Join(ctx, Membership{Delivers: true}))
	waitFor(t, func() bool { return f.Delivering() == 2 && third.Delivering() == 2 && other.Delivering() == 3 })
	nodes, err := other.Nodes(ctx)
	if err != nil || len(nodes) != 3 {
		t.Fatalf("got %+v, %v", nodes, err)
	}
	for _, n := range nodes {
		if n.Self != (n.Name == other.Node()) || (n.Name == f.Node()) != (len(n.Leads) == 1) {
			t.Errorf("got %+v", n)
		}
	}
	f.must(third.Close())
	waitFor(t, func() bool { return f.Delivering() == 1 })

	f.stopBack() // it hangs
	waitFor(t, func() bool { return other.Lead(ctx, "sink") })
	if err := f.SetCursor(ctx, "sink", "3"); !errors.Is(err, ErrStale) {
		t.Errorf("a node that was cut off moved the place: %v", err)
	}
	if f.Lead(ctx, "sink") {
		t.Error("two lead")
	}
	f.must(other.Close())
	waitFor(t, func() bool { return f.Lead(ctx, "sink") })
}

// within fails the test when f takes longer than anything may that heeds its time.
func within(t *testing.T, what string, f func() error) error {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Errorf("%s does not end", what)
		return nil
	}
}

// testSignsOfLife: they do not wait for work that has all other connections, or the node would be taken for gone.
func testSignsOfLife(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine)
	f.must(f.Join(t.Context(), Membership{Delivers: true}))
	for range f.db.Stats().MaxOpenConnections {
		conn, err := f.db.Conn(t.Context())
		f.must(err)
		defer conn.Close()
	}
	f.must(within(t, "a sign of life", func() error { return f.beatOnce(t.Context()) }))
}

// testManyNotifications: mail whose lease ran out is looked for once a second, whatever else is told meanwhile.
func testManyNotifications(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine)
	queue, end := f.Subscribe(TopicQueue)
	defer end()
	events, end := f.Subscribe(TopicEvents)
	defer end()
	limit := time.After(10 * time.Second)
	for n, woken := 0, false; !woken; n++ {
		_, err := f.db.ExecContext(t.Context(), "SELECT pg_notify('smtpbridge', 'e')")
		f.must(err)
		select {
		case <-events:
		case <-limit:
			t.Fatal("not woken once in ten seconds")
		}
		select {
		case <-queue:
			woken = n > 50 // the listener may have come late
		default:
		}
	}
}

// testLocked: what is asked for with little time does not wait for a lock that somebody keeps.
func testLocked(t *testing.T, c *cluster) {
	f := newFixture(t, c.engine)
	f.must(f.Join(t.Context(), Membership{Delivers: true}))
	tx, err := f.db.BeginTx(t.Context(), nil)
	f.must(err)
	defer func() { _ = tx.Rollback() }()
	_, err = tx.ExecContext(t.Context(), "LOCK TABLE nodes, settings")
	f.must(err)
	soon, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := within(t, "Ping", func() error { return f.Ping(soon) }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ping: %v", err)
	}
	_ = within(t, "leave", func() error { f.leave(); return nil })
}

// TestTakesOver: a lease is taken over when the database has been there for a lease, and at last also when it is slow all the
// time; never while it is away, or when it has just come back.
func TestTakesOver(t *testing.T) {
	const lease, beat = 100 * time.Second, 5 * time.Second
	now := time.Now()
	m := &membership{joined: true}
	beats := func(every time.Duration, n int) {
		for range n {
			now = now.Add(every)
			m.noteBeat(now, lease)
		}
	}
	for _, c := range []struct {
		name string
		run  func()
		want bool
	}{
		{"just joined", func() {}, false},
		{"steady", func() { beats(beat, 25) }, true},
		{"slow", func() { beats(lease*3/5, 4) }, false},
		{"slow all the time", func() { beats(lease*3/5, 8) }, true},
		{"away", func() { beats(beat, 100); m.there = time.Time{}; now = now.Add(lease * 3 / 5) }, false},
		{"just back", func() { beats(beat, 100); m.there = time.Time{}; beats(10*lease, 1); beats(beat, 10) }, false},
		{"back after a time nobody saw", func() { beats(beat, 100); beats(2*lease, 1); beats(beat, 10) }, false},
	} {
		m = &membership{joined: true}
		m.noteBeat(now, lease)
		c.run()
		if got := m.takesOver(now, lease); got != c.want {
			t.Errorf("%s: takes over: %t, want %t", c.name, got, c.want)
		}
	}
}
