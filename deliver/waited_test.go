package deliver

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"smtpbridge/providers"
	"smtpbridge/translate"
)

// How long a mail waited is told once, at its first call, and counts from the time it asked for.
func TestWaited(t *testing.T) {
	bubble(t, func(t *testing.T) {
		esp := &fake{caps: jsonCaps()}
		fails := 1
		esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
			if fails--; fails >= 0 {
				return nil, &providers.Error{Provider: "fake", Op: "send", Kind: providers.Transient, Msg: "try later"}
			}
			return providers.AllAccepted(m, m.Ref), nil
		})
		b := newBench(t, esp)
		defer b.close()
		var mu sync.Mutex
		var waits []time.Duration
		b.config = func(c *RunnerConfig) {
			c.Waited = func(account string, wait time.Duration) {
				mu.Lock()
				defer mu.Unlock()
				if account != "a" {
					t.Errorf("account %q", account)
				}
				waits = append(waits, wait.Round(time.Second))
			}
		}
		b.start()
		first := b.submit("r@r.example") // refused at first, taken later
		b.after(10 * time.Minute)
		b.wantStates(first, "r=sent")

		if err := b.run.Pause(context.Background(), "a", ""); err != nil {
			t.Fatal(err)
		}
		paused := b.submit("r@r.example")
		at := time.Now().Add(30 * time.Minute).UTC().Format(time.RFC3339)
		timed := b.submitMail("From: x@example.com\r\nTo: r@r.example\r\nX-Smtpbridge-Send-At: "+at+"\r\n\r\nb\r\n", "r@r.example")
		b.after(20 * time.Minute)
		if err := b.run.Resume(context.Background(), "a"); err != nil {
			t.Fatal(err)
		}
		b.after(30 * time.Minute)
		b.wantStates(paused, "r=sent")
		b.wantStates(timed, "r=sent")

		mu.Lock()
		defer mu.Unlock()
		if want := []time.Duration{0, 20 * time.Minute, 0}; !slices.Equal(waits, want) {
			t.Errorf("the mails waited %v, want %v", waits, want)
		}
	})
}
