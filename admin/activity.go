package admin

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

const (
	activitySteps = 60                  // about so many points in a chart
	activityMax   = 31 * 24 * time.Hour // as long as counts are kept
	recentMax     = 500
)

// Activity implements API.
func (s *Service) Activity(ctx context.Context, span time.Duration) (*Activity, error) {
	span = min(max(span, time.Hour), activityMax)
	step := max(store.ActivityStep, span/activitySteps).Truncate(store.ActivityStep)
	end := s.Now().UTC().Truncate(step).Add(step)
	n := int(span / step)
	start := end.Add(-time.Duration(n) * step)
	list, err := s.Store.Activity(ctx, start)
	if err != nil {
		return nil, err
	}
	out := &Activity{Start: start, Step: step, Series: map[string][]int64{}, Accounts: map[string]map[string]int64{}}
	for _, a := range list {
		i := int(a.At.Sub(start) / step)
		if i < 0 || i >= n {
			continue
		}
		if out.Series[a.Kind] == nil {
			out.Series[a.Kind] = make([]int64, n)
		}
		out.Series[a.Kind][i] += a.N
		if a.Account != "" {
			if out.Accounts[a.Account] == nil {
				out.Accounts[a.Account] = map[string]int64{}
			}
			out.Accounts[a.Account][a.Kind] += a.N
		}
	}
	return out, nil
}

// Recent implements API.
func (s *Service) Recent(ctx context.Context, q EventQuery, limit int) ([]event.Event, error) {
	f := store.Filter{Recipient: q.Recipient, Kind: q.Kind, Since: q.Since, Limit: min(max(limit, 1), recentMax)}
	if f.Recipient == "" { // which has an index
		f.Window = recentWindow
	}
	evs, err := s.Store.Events(ctx, f)
	if evs == nil {
		evs = []event.Event{}
	}
	return evs, err
}

// recentWindow is how many events one look at the newest goes through.
const recentWindow = 5000

func sortInbox(list []InboxMail) {
	slices.SortFunc(list, func(a, b InboxMail) int {
		return cmp.Or(b.Time.Compare(a.Time), cmp.Compare(b.ID, a.ID))
	})
}

// Counter feeds the counts that Activity shows: mails as they are accepted, events as the outbox has them.
type Counter struct {
	Store *store.Store
	Log   *slog.Logger
	Now   func() time.Time

	mu       sync.Mutex
	accepted map[time.Time]int64
}

// counterEvery is how far the counts may lag behind.
const counterEvery = 2 * time.Second

// Accepted counts a mail. A crash loses the counts of the last seconds, not the mail.
func (c *Counter) Accepted() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accepted == nil {
		c.accepted = map[time.Time]int64{}
	}
	c.accepted[c.Now().UTC().Truncate(store.ActivityStep)]++
}

// Run counts until ctx ends.
func (c *Counter) Run(ctx context.Context) error {
	t := time.NewTicker(counterEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return c.Flush(context.WithoutCancel(ctx))
		case <-t.C:
			if err := c.Flush(ctx); err != nil && ctx.Err() == nil {
				c.Log.Error("activity is not counted now", "err", err)
			}
		}
	}
}

// Flush brings the counts up to date.
func (c *Counter) Flush(ctx context.Context) error {
	c.mu.Lock()
	accepted := c.accepted
	c.accepted = nil
	c.mu.Unlock()
	var list []store.Activity
	for at, n := range accepted {
		list = append(list, store.Activity{At: at, Kind: store.Accepted, N: n})
	}
	if len(list) > 0 {
		if err := c.Store.Count(ctx, list...); err != nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			if c.accepted == nil {
				c.accepted = map[time.Time]int64{}
			}
			for at, n := range accepted {
				c.accepted[at] += n
			}
			return err
		}
	}
	for {
		n, err := c.Store.Tally(ctx)
		if err != nil || n == 0 {
			return err
		}
	}
}
