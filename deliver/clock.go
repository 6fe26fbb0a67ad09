package deliver

import "time"

// Clock is the time the Runner lives by; tests hand in their own.
type Clock interface {
	Now() time.Time
	// Mono is the time since some fixed moment, whatever is done to the wall clock.
	Mono() time.Duration
	// Timer gives a channel that fires once after d, and a function that gives it up.
	Timer(d time.Duration) (<-chan time.Time, func())
}

// SystemClock is the machine's clock.
func SystemClock() Clock { return systemClock{start: time.Now()} }

type systemClock struct{ start time.Time }

func (systemClock) Now() time.Time { return time.Now().UTC() }

func (c systemClock) Mono() time.Duration { return time.Since(c.start) }

func (systemClock) Timer(d time.Duration) (<-chan time.Time, func()) {
	t := time.NewTimer(d)
	return t.C, func() { t.Stop() }
}
