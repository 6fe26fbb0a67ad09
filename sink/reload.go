package sink

import (
	"context"
	"fmt"
)

// Heir is optional: a sink that takes the place of another of its name is given it before it is opened, to know what
// the other one has done of the batch it left.
type Heir interface{ Inherit(old Sink) }

// stint is the time in which a Runner follows for one sink.
type stint struct {
	sink Sink
	turn context.Context
	end  context.CancelFunc // ends turn: the stint ends between two batches
	done chan struct{}
}

// Distinct refuses two sinks of one name, which would share a place.
func Distinct(list []Sink) error {
	seen := map[string]bool{}
	for _, s := range list {
		if seen[s.Name()] {
			return fmt.Errorf("two event sinks are the same: %s", s.Name())
		}
		seen[s.Name()] = true
	}
	return nil
}

// Reload goes on with another set of sinks and returns at once. One that is in both sets goes on undisturbed. One that
// is not in the new set ends after its present batch, and its place is kept; a new one of its name goes on from there.
func (r *Runner) Reload(sinks []Sink) error {
	if err := Distinct(sinks); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Sinks = sinks
	if r.ctx == nil {
		return nil
	}
	wanted := map[Sink]bool{}
	for _, s := range sinks {
		wanted[s] = true
	}
	for _, st := range r.stints {
		if !wanted[st.sink] {
			st.end()
		}
	}
	r.startAll()
	return nil
}

// startAll starts a stint for each sink that has none. It waits there until the last one of its name has ended.
func (r *Runner) startAll() {
	for _, s := range r.Sinks {
		before := r.stints[s.Name()]
		if before != nil && before.sink == s && before.turn.Err() == nil {
			continue
		}
		turn, end := context.WithCancel(r.ctx)
		now := &stint{sink: s, turn: turn, end: end, done: make(chan struct{})}
		r.stints[s.Name()] = now
		ctx := r.ctx
		r.wg.Go(func() {
			defer close(now.done)
			defer end()
			if before != nil {
				<-before.done
				if h, ok := s.(Heir); ok {
					h.Inherit(before.sink)
				}
			}
			r.follow(ctx, turn, s)
		})
	}
}
