package deliver

import (
	"fmt"
	"testing"
	"time"
)

func TestSchedule(t *testing.T) {
	for _, c := range []struct {
		text string
		want []time.Duration
	}{
		{DefaultRetry, []time.Duration{
			time.Minute, 5 * time.Minute, 5 * time.Minute, 15 * time.Minute, 15 * time.Minute,
			time.Hour, time.Hour, time.Hour, 4 * time.Hour, 4 * time.Hour, 4 * time.Hour,
		}},
		{"10s", []time.Duration{10 * time.Second, 10 * time.Second, 10 * time.Second}},
		{"1s,2s * 2 , 3s", []time.Duration{time.Second, 2 * time.Second, 2 * time.Second, 3 * time.Second, 3 * time.Second}},
		{"1h30m*", []time.Duration{90 * time.Minute, 90 * time.Minute}},
	} {
		t.Run(c.text, func(t *testing.T) {
			s, err := ParseSchedule(c.text)
			if err != nil {
				t.Fatal(err)
			}
			for i, want := range c.want {
				if got := s.Base(i + 1); got != want {
					t.Errorf("after %d failures: got %s, want %s", i+1, got, want)
				}
			}
			back, err := ParseSchedule(s.String())
			if err != nil || back.String() != s.String() {
				t.Errorf("%q does not parse to itself: %q, %v", s.String(), back.String(), err)
			}
		})
	}
	if got := (Schedule{}).String(); got != DefaultRetry {
		t.Errorf("zero schedule is %q, want %q", got, DefaultRetry)
	}
	if got := (Schedule{}).Base(0); got != time.Minute {
		t.Errorf("before any failure: %s", got)
	}
}

func TestScheduleErrors(t *testing.T) {
	for _, text := range []string{"", "x", "1m,,2m", "5m*, 1h", "5m*0", "5m*-1", "5m*x", "10ms", "-1m", "1m*2*3"} {
		if s, err := ParseSchedule(text); err == nil {
			t.Errorf("%q is taken as %q", text, s)
		}
	}
}

func TestScheduleJitter(t *testing.T) {
	s := DefaultSchedule
	seen := map[time.Duration]bool{}
	var sum time.Duration
	const n = 2000
	for i := range n {
		key := fmt.Sprintf("mail-%d", i)
		w := s.Wait(2, key)
		if w != s.Wait(2, key) {
			t.Fatal("the same mail and attempt waits differently")
		}
		if w < 5*time.Minute || w > 6*time.Minute {
			t.Fatalf("wait %s is outside 5m to 6m", w)
		}
		seen[w] = true
		sum += w
	}
	if len(seen) < n*9/10 {
		t.Errorf("only %d different waits of %d", len(seen), n)
	}
	if mean := sum / n; mean < 320*time.Second || mean > 340*time.Second {
		t.Errorf("mean wait %s, want about 330s", mean)
	}
}
