package test

import (
	"flag"
	"testing"
	"time"

	"smtpbridge/internal/pgtest"
)

var benchNodes = flag.Int("bench-nodes", 0, "mails of TestBenchNodes; 0 = it does not run")

// TestBenchNodes measures one node and three on one PostgreSQL that syncs: accepted and delivered mails per second, clients, ESPs,
// nodes and database all on this machine. It prints, and asserts only that nothing is lost.
func TestBenchNodes(t *testing.T) {
	if *benchNodes == 0 {
		t.Skip("no -bench-nodes")
	}
	for _, n := range []int{1, 3} {
		f := newFarm(t, "", pgtest.Options{Sync: true})
		for range n {
			f.add("")
		}
		l := &load{t: t, want: int64(*benchNodes), from: []string{"mp.example.com", "sp.example.com"}}
		began := time.Now()
		l.start(24, f.smtp...)
		l.wait()
		accepted := time.Since(began)
		f.check(l, f.nodes[0], 0)
		delivered := time.Since(began)
		t.Logf("%d nodes: %.0f accepted/s, %.0f delivered/s", n, float64(len(l.acked))/accepted.Seconds(), float64(len(l.acked))/delivered.Seconds())
		for _, b := range f.nodes {
			b.stop()
		}
	}
}
