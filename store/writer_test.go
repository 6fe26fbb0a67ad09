package store

import (
	"context"
	"slices"
	"sync"
	"testing"
)

// TestMailFirst hands in mails behind much other work: they come before it, and with them only half as much of it.
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
	want := slices.Concat(slices.Repeat([]string{"mail"}, mails), slices.Repeat([]string{"other"}, mails/2), slices.Repeat([]string{"250"}, mails), slices.Repeat([]string{"other"}, others-mails/2))
	if !slices.Equal(order, want) {
		t.Errorf("order: %q", order)
	}
}
