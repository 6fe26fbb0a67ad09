package deliver

import (
	"errors"
	"fmt"
	"hash/fnv"
	"strconv"
	"strings"
	"time"
)

// Schedule says how long to wait after each failed attempt. The zero value is DefaultSchedule.
type Schedule struct {
	steps []step
}

type step struct {
	wait  time.Duration
	times int // 0 = for ever; only the last step
}

// DefaultRetry is the text of DefaultSchedule.
const DefaultRetry = "1m, 5m*2, 15m*2, 1h*3, 4h*"

// DefaultSchedule waits a minute at first and four hours in the end.
var DefaultSchedule = Schedule{steps: []step{
	{time.Minute, 1}, {5 * time.Minute, 2}, {15 * time.Minute, 2}, {time.Hour, 3}, {4 * time.Hour, 0},
}}

// ParseSchedule reads a list of waits, "1m, 5m*2, 4h*": each a duration, taken once, n times
// ("*n") or for ever ("*", only at the end). A list without an end goes on with its last wait.
func ParseSchedule(s string) (Schedule, error) {
	var out Schedule
	for i, item := range strings.Split(s, ",") {
		item = strings.TrimSpace(item)
		if item == "" {
			return Schedule{}, fmt.Errorf("wait %d is empty", i+1)
		}
		if n := len(out.steps); n > 0 && out.steps[n-1].times == 0 {
			return Schedule{}, fmt.Errorf("%q comes after a wait that goes on for ever", item)
		}
		wait, count, repeated := strings.Cut(item, "*")
		d, err := time.ParseDuration(strings.TrimSpace(wait))
		if err != nil {
			return Schedule{}, fmt.Errorf("%q is not a duration such as 5m or 1h30m, with *3 or * behind it", item)
		}
		if d < time.Second {
			return Schedule{}, fmt.Errorf("%q is shorter than a second", item)
		}
		st := step{wait: d, times: 1}
		if repeated {
			st.times = 0
			if count = strings.TrimSpace(count); count != "" {
				if st.times, err = strconv.Atoi(count); err != nil || st.times < 1 {
					return Schedule{}, fmt.Errorf("%q: what stands behind * is a number of repeats, or nothing", item)
				}
			}
		}
		out.steps = append(out.steps, st)
	}
	if len(out.steps) == 0 {
		return Schedule{}, errors.New("the schedule is empty")
	}
	return out, nil
}

// Base is the wait after the given number of failed attempts (1 = after the first), without jitter.
func (s Schedule) Base(failed int) time.Duration {
	steps := s.steps
	if len(steps) == 0 {
		steps = DefaultSchedule.steps
	}
	failed = max(failed, 1)
	for _, st := range steps {
		if st.times == 0 || failed <= st.times {
			return st.wait
		}
		failed -= st.times
	}
	return steps[len(steps)-1].wait
}

// longest is the longest that Wait gives.
func (s Schedule) longest() time.Duration {
	steps := s.steps
	if len(steps) == 0 {
		steps = DefaultSchedule.steps
	}
	var most time.Duration
	for _, st := range steps {
		most = max(most, st.wait)
	}
	return most + most/5
}

// Wait is Base with jitter of up to a fifth added, so that mails that failed together do not
// come back together. The jitter depends on key alone: the same mail and attempt wait the same.
func (s Schedule) Wait(failed int, key string) time.Duration {
	base := s.Base(failed)
	h := fnv.New64a()
	h.Write([]byte(key))
	h.Write([]byte{byte(failed), byte(failed >> 8)})
	// The high bits of FNV-1a are poorly mixed for short keys; fold them in.
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return base + time.Duration(float64(base)/5*float64(x>>11)/float64(1<<53))
}

// String gives the schedule as ParseSchedule reads it.
func (s Schedule) String() string {
	steps := s.steps
	if len(steps) == 0 {
		steps = DefaultSchedule.steps
	}
	out := make([]string, len(steps))
	for i, st := range steps {
		out[i] = shortDuration(st.wait)
		switch {
		case st.times == 0:
			out[i] += "*"
		case st.times > 1:
			out[i] += "*" + strconv.Itoa(st.times)
		}
	}
	return strings.Join(out, ", ")
}

// shortDuration prints 5m for what time.Duration prints as 5m0s.
func shortDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}
