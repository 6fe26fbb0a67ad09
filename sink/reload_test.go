package sink_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"smtpbridge/event"
	"smtpbridge/sink"
)

// Other sinks while events come: each file has every event once, in order.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.jsonl"), filepath.Join(dir, "b.jsonl")
	o := newOutbox(10)
	first := file(t, a)
	r, end := start(t, sink.Config{Source: o, Sinks: []sink.Sink{first}, Batch: 3})
	until(t, o.noted(first, 10))

	// The same file while events come.
	for range 20 {
		o.add(5)
		if err := r.Reload([]sink.Sink{file(t, a)}); err != nil {
			t.Fatal(err)
		}
		o.add(5)
	}
	until(t, o.noted(first, 210))

	// Another file as well, then instead.
	second := file(t, b)
	if err := r.Reload([]sink.Sink{file(t, a), second}); err != nil {
		t.Fatal(err)
	}
	o.add(10)
	until(t, o.noted(second, 220))
	until(t, o.noted(first, 220))
	if err := r.Reload([]sink.Sink{second, second}); err == nil {
		t.Error("two sinks of one place were taken")
	}
	if err := r.Reload([]sink.Sink{second}); err != nil {
		t.Fatal(err)
	}
	o.add(10)
	until(t, o.noted(second, 230))

	// Back: it goes on where it was.
	if err := r.Reload([]sink.Sink{second, file(t, a)}); err != nil {
		t.Fatal(err)
	}
	until(t, o.noted(first, 230))
	// Out and in again at once, as the same value.
	if err := r.Reload(nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Reload([]sink.Sink{second}); err != nil {
		t.Fatal(err)
	}
	o.add(10)
	until(t, o.noted(second, 240))
	end()
	if err := r.Reload([]sink.Sink{file(t, a)}); err != nil {
		t.Errorf("a reload after the end: %v", err)
	}
	wantIDs(t, ids(t, a), 230)
	wantIDs(t, ids(t, b), 240)
}

// A reload amid a batch that the application takes only in part: nothing is posted again that it took.
func TestReloadAmidABatch(t *testing.T) {
	up := make(chan struct{})
	stuck := make(chan struct{}, 100)
	a := &app{t: t, answer: func(e event.Event, _ int) int {
		if e.ID != "e20" {
			return 200
		}
		select {
		case <-up:
			return 200
		default:
			stuck <- struct{}{}
			return 503
		}
	}}
	o := newOutbox(40)
	old := forward(t, a, nil)
	r, end := start(t, sink.Config{Source: o, Sinks: []sink.Sink{old}})
	<-stuck
	<-stuck // the rest of the first round was taken
	heir, err := sink.NewForward(old.ForwardConfig)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Reload([]sink.Sink{heir}); err != nil {
		t.Fatal(err)
	}
	o.add(5)
	close(up)
	until(t, o.noted(heir, 45))
	end()
	times := map[string]int{}
	for _, e := range a.got {
		times[e.ID]++
	}
	for i := range 45 {
		if id := fmt.Sprint("e", i); times[id] != 1 {
			t.Errorf("%s came %d times", id, times[id])
		}
	}
}
