package deliver

import (
	"context"
	"errors"
	"testing"

	"smtpbridge/store"
)

// slowAccounts is a store that answers with the account states only when nobody waits any more.
type slowAccounts struct {
	Queue
	asked chan struct{}
	err   error // at once
}

func (q *slowAccounts) Accounts(ctx context.Context) ([]store.AccountState, error) {
	if q.err != nil {
		return nil, q.err
	}
	close(q.asked)
	<-ctx.Done()
	return nil, ctx.Err()
}

// A Runner that is told to end while it reads the account states has not failed; one that cannot read them has.
func TestEndWhileAccountsAreRead(t *testing.T) {
	for name, run := range map[string]func(*Runner, context.Context) error{"Run": (*Runner).Run, "Watch": (*Runner).Watch} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, &fake{caps: jsonCaps()})
			defer b.close()
			slow := &slowAccounts{Queue: b.st, asked: make(chan struct{})}
			ctx, stop := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- run(NewRunner(RunnerConfig{Queue: slow, Planner: NewPlanner(b.cfg)}), ctx) }()
			<-slow.asked
			stop()
			if err := <-done; err != nil {
				t.Errorf("ended by its context: %v", err)
			}
			broken := errors.New("disk")
			r := NewRunner(RunnerConfig{Queue: &slowAccounts{Queue: b.st, err: broken}, Planner: NewPlanner(b.cfg)})
			if err := run(r, t.Context()); !errors.Is(err, broken) {
				t.Errorf("account states that cannot be read: %v", err)
			}
		})
	}
}
