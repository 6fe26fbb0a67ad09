package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"smtpbridge/envelope"
)

// nodeName is the file of the data directory that holds the node's name.
const nodeName = "node"

// maxBeat and maxGone bound how often a node shows that it lives, and after what silence it counts as gone.
const (
	maxBeat = 5 * time.Second
	maxGone = 20 * time.Second
)

// Node is a bridge that shares a PostgreSQL store.
type Node struct {
	Name     string    `json:"name"`
	Version  string    `json:"version"`
	Roles    []string  `json:"roles"`
	Since    time.Time `json:"since"`
	Leads    []string  `json:"leads"` // what only one node does at a time
	Self     bool      `json:"self"`  // the one that was asked
	Delivers bool      `json:"-"`
	instance string
}

// Membership is what a node tells the others of itself.
type Membership struct {
	Version  string
	Roles    []string
	Delivers bool // it takes its part of each account's rate
}

// membership is this process among those that share the store.
type membership struct {
	node, instance string // the name stays over restarts, the instance does not
	started        time.Time
	kick           chan struct{} // another node came or went

	mu     sync.Mutex
	self   Membership
	joined bool
	others int                  // living nodes that deliver, this one not counted
	leads  map[string]time.Time // what we lead, and until when for certain by our own steady clock
	asked  map[string]time.Time // when we were last refused
	beaten time.Time            // last time the database took our sign of life
	steady time.Time            // since when that was never long ago
	there  time.Time            // since when it took every one, however slowly; zero: it failed
}

// beat is how often a node shows that it lives; gone is the silence after which it is not counted any more.
func (s *Store) beat() time.Duration { return min(maxBeat, s.o.Lease/5) }
func (s *Store) gone() time.Duration { return 4 * s.beat() }

// Node is this node's name: the host's, and letters that keep apart nodes on one host. It stays over restarts. With SQLite
// there is one bridge alone, and it has none.
func (s *Store) Node() string { return s.member.node }

// nameNode reads the name of this node, or makes it at the first start.
func (s *Store) nameNode() error {
	path := filepath.Join(s.o.Dir, nodeName)
	b, err := os.ReadFile(path)
	switch {
	case err == nil && len(strings.TrimSpace(string(b))) > 0:
		s.member.node = strings.TrimSpace(string(b))
	case err == nil || errors.Is(err, fs.ErrNotExist):
		host, err := os.Hostname()
		if err != nil || host == "" {
			host = "node"
		}
		id := envelope.NewID(time.Now())
		s.member.node = strings.ToLower(host + "-" + id[len(id)-4:])
		if err := os.WriteFile(path, []byte(s.member.node+"\n"), 0o600); err != nil {
			return err
		}
		if err := s.syncDir(s.o.Dir); err != nil {
			return err
		}
	default:
		return err
	}
	s.member.instance, s.member.started = s.member.node+" "+envelope.NewID(time.Now()), time.Now()
	return nil
}

// Join makes this process known to the others that share the store, from now until Close. What an earlier process of this node
// led is free at once. With SQLite it does nothing.
func (s *Store) Join(ctx context.Context, m Membership) error {
	if !s.d.shared || s.o.ReadOnly {
		return nil
	}
	mb := &s.member
	mb.mu.Lock()
	mb.self = m
	mb.mu.Unlock()
	err := s.vital(ctx, func(ctx context.Context, t *tx) error {
		t.nodes = true
		for _, q := range []string{"DELETE FROM leaders WHERE node = ?", "DELETE FROM nodes WHERE node = ?"} {
			if _, err := t.exec(ctx, q, mb.node); err != nil {
				return err
			}
		}
		return t.show(ctx, m)
	})
	if err == nil {
		err = s.countNodes(ctx)
	}
	if err != nil {
		return fmt.Errorf("join the nodes of the store: %w", err)
	}
	mb.mu.Lock()
	mb.joined = true
	mb.noteBeat(time.Now(), s.o.Lease)
	mb.mu.Unlock()
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	renew := s.stopBack
	s.stopBack = func() { stop(); renew() }
	s.background.Add(1)
	go func() {
		defer s.background.Done()
		s.live(back)
	}()
	return nil
}

// vital is do for what keeps a lease: it waits neither for work nor much longer than it is of use.
func (s *Store) vital(ctx context.Context, f func(ctx context.Context, t *tx) error) error {
	ctx, cancel := s.useful(ctx)
	defer cancel()
	return s.alone(ctx, s.wdb, f)
}

// useful bounds a sign of life.
func (s *Store) useful(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, max(s.o.Lease/2, 5*time.Second))
}

// show writes this node's row.
func (t *tx) show(ctx context.Context, m Membership) error {
	mb := &t.s.member
	_, err := t.exec(ctx, `INSERT INTO nodes (instance, node, version, roles, delivers, started, seen) VALUES (?, ?, ?, ?, ?, ?, `+pgNow+`)
		ON CONFLICT (instance) DO UPDATE SET seen = excluded.seen`, mb.instance, mb.node, m.Version, strings.Join(m.Roles, ","), num(m.Delivers), us(mb.started))
	return err
}

// live shows the others that this node lives and keeps what it leads, until ctx ends.
func (s *Store) live(ctx context.Context) {
	tick := time.NewTicker(s.beat())
	defer tick.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return
		case <-s.member.kick:
			err = s.countNodes(ctx)
		case <-tick.C:
			err = s.beatOnce(ctx)
		}
		if err != nil && ctx.Err() == nil {
			s.log(slog.LevelWarn, logNodeUnseen, "err", err)
		}
	}
}

func (s *Store) beatOnce(ctx context.Context) error {
	mb := &s.member
	mb.mu.Lock()
	self := mb.self
	mb.mu.Unlock()
	sure := time.Now().Add(s.gone()) // before the database's clock is read: we never believe longer than it does
	kept := map[string]bool{}
	err := s.vital(ctx, func(ctx context.Context, t *tx) error {
		clear(kept)
		if err := t.show(ctx, self); err != nil {
			return err
		}
		if _, err := t.exec(ctx, "DELETE FROM nodes WHERE seen < "+pgNow+" - ?", (24 * time.Hour).Microseconds()); err != nil {
			return err
		}
		return t.each(ctx, "UPDATE leaders SET until = "+pgNow+" + ? WHERE instance = ? AND until > "+pgNow+" RETURNING name",
			[]any{s.gone().Microseconds(), mb.instance}, func(scan func(...any) error) error {
				var name string
				err := scan(&name)
				kept[name] = true
				return err
			})
	})
	mb.mu.Lock()
	if err != nil {
		mb.there = time.Time{}
		mb.mu.Unlock()
		return err
	}
	mb.noteBeat(time.Now(), s.o.Lease)
	for name := range mb.leads {
		if kept[name] {
			mb.leads[name] = sure
		} else {
			delete(mb.leads, name)
		}
	}
	mb.mu.Unlock()
	return s.countNodes(ctx)
}

// noteBeat notes that the database took our sign of life.
func (m *membership) noteBeat(now time.Time, lease time.Duration) {
	gap := now.Sub(m.beaten)
	if gap > lease/2 {
		m.steady = now
	}
	if gap > lease || m.there.IsZero() {
		m.there = now
	}
	m.beaten = now
}

// slowLeases is for how many leases a database must have been there that is too slow to count as steady: were there no
// end to that, nobody would ever take over what a dead node left.
const slowLeases = 4

// takesOver reports whether leases that ran out may be taken over.
func (m *membership) takesOver(now time.Time, lease time.Duration) bool {
	silent := now.Sub(m.beaten)
	switch {
	case !m.joined:
		return true
	case silent <= lease/2 && now.Sub(m.steady) >= lease:
		return true
	}
	return silent <= lease && !m.there.IsZero() && now.Sub(m.there) >= slowLeases*lease
}

// unleased is the condition of jobs that may be claimed. A lease that ran out is taken over, but not before the database has
// been there for the time of a lease: after its failure living nodes come first, which could not renew theirs and may hold the
// answers of calls they could not save.
func (s *Store) unleased() string {
	m := &s.member
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.takesOver(time.Now(), s.o.Lease) {
		return "lease_until <= " + pgNow
	}
	return "lease = 0"
}

func (s *Store) countNodes(ctx context.Context) error {
	ctx, cancel := s.useful(ctx)
	defer cancel()
	var others int
	err := (&tx{s: s, q: s.wdb}).get(ctx, []any{&others}, "SELECT count(*) FROM nodes WHERE delivers = 1 AND instance <> ? AND seen > "+pgNow+" - ?",
		s.member.instance, s.gone().Microseconds())
	if err != nil {
		return err
	}
	s.member.mu.Lock()
	changed := s.member.others != others
	s.member.others = others
	s.member.mu.Unlock()
	if changed {
		s.wake(TopicQueue) // each node's part of the rates is another one
	}
	return nil
}

// Delivering is how many living nodes deliver from the store, this one included: each takes its part of an account's rate.
// While the database does not answer it is what it was.
func (s *Store) Delivering() int {
	s.member.mu.Lock()
	defer s.member.mu.Unlock()
	return 1 + s.member.others
}

// Lead reports whether this node is the one that does what is called name, and makes it so when no living node is. A node that
// cannot reach the database stops to lead before another one can begin. With SQLite the one bridge leads everything.
func (s *Store) Lead(ctx context.Context, name string) bool {
	if !s.d.shared {
		return true
	}
	mb := &s.member
	now := time.Now()
	mb.mu.Lock()
	until, asked := mb.leads[name], mb.asked[name]
	wait := !mb.joined || now.Before(asked.Add(s.beat()/2))
	mb.mu.Unlock()
	if now.Before(until) {
		return true
	}
	if wait {
		return false
	}
	won := int64(0)
	err := s.vital(ctx, func(ctx context.Context, t *tx) (err error) {
		won, err = t.exec(ctx, `INSERT INTO leaders (name, instance, node, until) VALUES (?, ?, ?, `+pgNow+` + ?)
			ON CONFLICT (name) DO UPDATE SET instance = excluded.instance, node = excluded.node, until = excluded.until
			WHERE leaders.until <= `+pgNow+` OR leaders.instance = excluded.instance`,
			name, mb.instance, mb.node, s.gone().Microseconds())
		return err
	})
	mb.mu.Lock()
	defer mb.mu.Unlock()
	if err != nil || won == 0 {
		delete(mb.leads, name)
		mb.asked[name] = now
		return false
	}
	if _, had := mb.leads[name]; !had {
		s.log(slog.LevelInfo, logNodeLeads, "what", name, "node", mb.node)
	}
	mb.leads[name] = now.Add(s.gone())
	return true
}

// Led names the living node that leads what is called name, "" when none does.
func (s *Store) Led(ctx context.Context, name string) (string, error) {
	if !s.d.shared {
		return "", nil
	}
	var node string
	err := s.read().get(ctx, []any{&node}, "SELECT node FROM leaders WHERE name = ? AND until > "+pgNow, name)
	if errors.Is(err, ErrNotFound) {
		return "", nil
	}
	return node, err
}

// fenced returns ErrStale when another node leads the follower that a cursor belongs to: one that was cut off, and does
// not know yet that it leads no more, moves nothing.
func (t *tx) fenced(ctx context.Context, name string) error {
	if !t.s.d.shared {
		return nil
	}
	var instance string
	err := t.get(ctx, []any{&instance}, "SELECT instance FROM leaders WHERE name = ? AND until > "+pgNow+" FOR SHARE", name)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case instance != t.s.member.instance:
		return fmt.Errorf("%w: another node leads %s", ErrStale, name)
	}
	return nil
}

// Nodes lists the living nodes that share the store; with SQLite nil.
func (s *Store) Nodes(ctx context.Context) ([]Node, error) {
	if !s.d.shared {
		return nil, nil
	}
	out := []Node{}
	at0 := map[string]int{}
	err := s.view(ctx, func(ctx context.Context, t *tx) error {
		err := t.each(ctx, "SELECT instance, node, version, roles, delivers, started FROM nodes WHERE seen > "+pgNow+" - ? ORDER BY node, instance",
			[]any{s.gone().Microseconds()}, func(scan func(...any) error) error {
				n := Node{Leads: []string{}}
				var roles string
				var delivers, started int64
				err := scan(&n.instance, &n.Name, &n.Version, &roles, &delivers, &started)
				n.Roles, n.Since, n.Delivers, n.Self = strings.Split(roles, ","), at(started), delivers == 1, n.instance == s.member.instance
				at0[n.instance] = len(out)
				out = append(out, n)
				return err
			})
		if err != nil {
			return err
		}
		return t.each(ctx, "SELECT instance, name FROM leaders WHERE until > "+pgNow+" ORDER BY name", nil, func(scan func(...any) error) error {
			var instance, name string
			err := scan(&instance, &name)
			if i, ok := at0[instance]; ok {
				out[i].Leads = append(out[i].Leads, name)
			}
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("nodes: %w", err)
	}
	return out, nil
}

// leave takes this node's rows away, so that others need not wait for its silence.
func (s *Store) leave() {
	s.member.mu.Lock()
	joined := s.member.joined
	s.member.mu.Unlock()
	if !joined {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	err := s.vital(ctx, func(ctx context.Context, t *tx) error { // do would not heed the time
		t.nodes = true
		for _, q := range []string{"DELETE FROM leaders WHERE instance = ?", "DELETE FROM nodes WHERE instance = ?"} {
			if _, err := t.exec(ctx, q, s.member.instance); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		s.log(slog.LevelWarn, logNodeUnsigned, "err", err)
	}
}

// prolong gives a call that is about to start a lease that outlasts it, should this node be cut off in the next moment. Mostly the
// renewal has done so already, and nothing is written.
func (t *tx) prolong(ctx context.Context, c *Claim) error {
	if !t.s.d.shared || time.Since(c.leased) < t.s.o.Lease/3 {
		return nil
	}
	_, err := t.exec(ctx, "UPDATE jobs SET lease_until = "+pgNow+" + ? WHERE id = ? AND lease_until < "+pgNow+" + ?",
		t.s.o.Lease.Microseconds(), c.Job.ID, (t.s.o.Lease * 2 / 3).Microseconds())
	return err
}
