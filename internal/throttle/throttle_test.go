package throttle

import (
	"fmt"
	"testing"
	"time"
)

func TestThrottle(t *testing.T) {
	var th Throttle
	now := time.Unix(1000, 0)
	for i := range 3 * maxPeers {
		th.Fail(fmt.Sprint(i), now)
	}
	if n := len(th.peers); n > maxPeers {
		t.Errorf("%d peers remembered", n)
	}
	for i := range perPeer {
		if th.Blocked("x", now) {
			t.Errorf("held off after %d failures", i)
		}
		th.Fail("x", now)
	}
	if !th.Blocked("x", now.Add(window-1)) || th.Blocked("x", now.Add(window)) {
		t.Error("held off for another time than the window")
	}
	if th.Blocked("y", now) {
		t.Error("another peer is held off")
	}
	th.Forget("x")
	if th.Blocked("x", now) {
		t.Error("held off after it was forgotten")
	}
}
