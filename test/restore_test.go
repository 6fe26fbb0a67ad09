package test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"smtpbridge/admin"
)

// TestRestoredStoreIsHeld takes a backup of a running bridge with mail in its queue, loses the machine and starts another
// bridge on the copy: it takes and sends new mail, and of what was queued nothing leaves, also over a restart, until it is
// released; then each mail arrives once.
func TestRestoredStoreIsHeld(t *testing.T) {
	dir, home := shortDir(t), filepath.Join(shortDir(t), "copy")
	b, esp, addr := caseBridge(t, dir, "")
	esp.fail(http.StatusServiceUnavailable)
	c := dialCase(t, addr)
	for subject, size := range map[string]int{"queued-1": 1, "queued-2": 20, "queued-large": 10_000} { // the last is a file of its own
		c.accept(t, subject, strings.Repeat("A line of the body.\r\n", size))
	}
	b.run("store", "backup", home)
	b.kill()
	esp.set(nil)

	text, err := os.ReadFile(b.config)
	if err != nil {
		t.Fatal(err)
	}
	b = newBridge(t, home, strings.ReplaceAll(string(text), dir, home))
	for _, subject := range []string{"new-1", "new-2"} {
		b.start()
		dialCase(t, addr).accept(t, subject, "x\r\n")
		until(t, 20*time.Second, subject+" arrives", func() bool { return esp.subjects()[subject] == 1 })
		b.stop()
	}
	for subject, n := range esp.subjects() {
		if !strings.HasPrefix(subject, "new-") || n != 1 {
			t.Errorf("%q was sent %d times although nobody released it", subject, n)
		}
	}
	b.start()
	var held []admin.Mail
	if err := json.Unmarshal([]byte(b.run("queue", "list", "--state", "held", "--json")), &held); err != nil || len(held) != 3 {
		t.Errorf("%d mails are held, %v", len(held), err)
	}
	b.run("queue", "release", "--all")
	until(t, 20*time.Second, "what was queued arrives", func() bool {
		n := esp.subjects()
		return n["queued-1"] > 0 && n["queued-2"] > 0 && n["queued-large"] > 0
	})
	b.stop()
	for subject, n := range esp.subjects() {
		if n != 1 {
			t.Errorf("%q arrived %d times", subject, n)
		}
	}
}
