// Package throttle counts failed logins per peer and holds a peer off that fails too often. What it
// remembers is bounded.
package throttle

import (
	"sync"
	"time"
)

const (
	perPeer  = 10               // failures within window before the peer is held off
	window   = 10 * time.Minute // of counting, and of holding off
	maxPeers = 10000            // remembered
)

// Throttle is ready for use as it is.
type Throttle struct {
	mu    sync.Mutex
	peers map[string]*failures
}

type failures struct {
	n           int
	since, held time.Time // first of the count; held off until
}

// Blocked reports whether a peer is held off.
func (t *Throttle) Blocked(peer string, now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.peers[peer]
	return f != nil && now.Before(f.held)
}

// Fail counts a failure.
func (t *Throttle) Fail(peer string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.peers[peer]
	if f == nil || now.Sub(f.since) > window {
		if t.peers == nil {
			t.peers = map[string]*failures{}
		}
		if len(t.peers) >= maxPeers {
			t.sweep(now)
		}
		f = &failures{since: now}
		t.peers[peer] = f
	}
	if f.n++; f.n >= perPeer {
		f.held = now.Add(window)
	}
}

// sweep forgets what is over, or a tenth of all when nothing is.
func (t *Throttle) sweep(now time.Time) {
	for k, f := range t.peers {
		if now.Sub(f.since) > window && !now.Before(f.held) {
			delete(t.peers, k)
		}
	}
	drop := 0
	if len(t.peers) >= maxPeers {
		drop = maxPeers / 10
	}
	for k := range t.peers {
		if drop--; drop < 0 {
			return
		}
		delete(t.peers, k)
	}
}

// Forget lets a peer begin anew.
func (t *Throttle) Forget(peer string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.peers, peer)
}
