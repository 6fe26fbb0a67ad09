package test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"smtpbridge/internal/pgtest"
)

// joinNetwork joins a network namespace to this one: a pair of interfaces, .1 here and .2 there.
func joinNetwork(t *testing.T, ns, name, net string) {
	t.Helper()
	for _, args := range []string{
		"link add " + name + "h type veth peer name " + name + "n netns " + ns,
		"addr add " + net + ".1/30 dev " + name + "h", "link set " + name + "h up",
		"-n " + ns + " addr add " + net + ".2/30 dev " + name + "n", "-n " + ns + " link set " + name + "n up",
	} {
		ip(t, args)
	}
}

func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

// A node loses its way to the database, but not to the ESPs: it begins no call any more, the others take its mail over, and when the network is
// back it works again. Nothing is lost, and a mail arrives twice only if the node was sending it when the network was cut.
func TestCutOff(t *testing.T) {
	if testing.Short() {
		t.Skip("runs three nodes")
	}
	ns := fmt.Sprintf("sb%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Skipf("network namespaces are not permitted here (ip netns add: %v, %s)", err, strings.TrimSpace(string(out)))
	}
	t.Cleanup(func() { ip(t, "netns del "+ns) })
	third := os.Getpid() % 200
	db, esp := fmt.Sprintf("10.213.%d", third), fmt.Sprintf("10.214.%d", third)
	joinNetwork(t, ns, "sbd", db)
	joinNetwork(t, ns, "sbe", esp)
	ip(t, "-n "+ns+" link set lo up")

	f := newFarm(t, esp+".1", pgtest.Options{Listen: db + ".1"})
	f.add("")
	f.add("")
	cut := f.addAt(esp+".2", fmt.Sprintf("postgres://bridge@%s.1:%d/bridge", db, f.pg.Port), []string{"ip", "netns", "exec", ns}, "")
	l := &load{t: t, want: int64(*nodeMails), from: []string{"mp.example.com", "sp.example.com"}}
	l.start(9, f.smtp...)
	until(t, time.Minute, "the node sends", func() bool { return f.callsFrom(esp+".2") > 5 })
	ip(t, "link set sbdh down")
	// Calls that had begun end; no other one can begin, because a call is written to the database first.
	until(t, time.Minute, "a call is over", func() bool {
		before := f.callsFrom(esp + ".2")
		time.Sleep(5 * callTime)
		return f.callsFrom(esp+".2") == before
	})
	silent := f.callsFrom(esp + ".2")
	until(t, 2*time.Minute, "the others go on", func() bool { return l.count.Load() >= l.want*3/4 })
	if n := f.callsFrom(esp + ".2"); n != silent {
		t.Errorf("the node that was cut off began %d calls", n-silent)
	}
	ip(t, "link set sbdh up")
	until(t, time.Minute, "the node sends again", func() bool { return f.callsFrom(esp+".2") > silent || l.count.Load() >= l.want })
	l.wait()
	f.check(l, f.nodes[0], inFlight)
	again := &load{t: t, want: 20, from: []string{"mp.example.com"}, first: 900000}
	again.start(2, f.smtp[2])
	again.wait()
	f.check(again, cut, inFlight)
}
