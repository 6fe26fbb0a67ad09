package store

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestMailFirst hands in mails behind much other work: they come before it, and with them only a quarter as much of it.
func TestMailFirst(t *testing.T) {
	t.Parallel()
	f := newFixture(t, sqliteEngine)
	entered, hold := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		f.must(f.do(t.Context(), 0, func(context.Context, *tx) error {
			close(entered)
			<-hold
			return nil
		}))
	})
	<-entered // the writer is busy: all that follows waits
	const mails, others = 6, 40
	var order []string // as the writer runs them
	for range others {
		wg.Go(func() {
			f.must(f.do(t.Context(), 0, func(context.Context, *tx) error { order = append(order, "other"); return nil }))
		})
	}
	for range mails {
		wg.Go(func() {
			f.must(f.Store.accept(t.Context(), 0, func(_ context.Context, t *tx) error {
				order = append(order, "mail")
				t.onCommit(func() { order = append(order, "250") })
				return nil
			}))
		})
	}
	waitFor(t, func() bool { return len(f.ops) == others && len(f.mails) == mails })
	close(hold)
	wg.Wait()
	const beside = (mails + 3) / 4
	want := slices.Concat(slices.Repeat([]string{"mail"}, mails), slices.Repeat([]string{"other"}, beside), slices.Repeat([]string{"250"}, mails), slices.Repeat([]string{"other"}, others-beside))
	if !slices.Equal(order, want) {
		t.Errorf("order: %q", order)
	}
}

// TestSmallPiecesInABurst: while mails come, a transaction of other work is short, for the next mail waits for its end.
func TestSmallPiecesInABurst(t *testing.T) {
	s := &Store{mails: make(chan *op, batchOps), ops: make(chan *op, batchOps)}
	for range batchOps {
		s.ops <- &op{}
	}
	s.mailed = time.Now().Add(time.Hour) // no lull, however slow the test is
	if n := len(s.collect(nil)); n != besideMails {
		t.Errorf("%d operations in a burst, want %d", n, besideMails)
	}
	s.mailed = time.Now().Add(-lull)
	if n := len(s.collect(nil)); n != batchOps-besideMails {
		t.Errorf("%d operations after it, want all %d", n, batchOps-besideMails)
	}
}
