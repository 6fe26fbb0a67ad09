package webhookd

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// Replayer is the store's side of Replay; *store.Store is one.
type Replayer interface {
	CountRequests(ctx context.Context, since time.Time) (int, error)
	Requests(ctx context.Context, since time.Time, after string, n int) ([]store.RawRequest, error)
	Replay(ctx context.Context, request string, evs ...event.Event) (store.Replayed, error)
}

const replayBatch = 100

// Replay reads the stored webhook requests received since a time anew, with the parsers of the given accounts, and
// records what differs. Nothing is verified again: what is stored had verified. It calls progress after each batch.
func Replay(ctx context.Context, c Config, src Replayer, since time.Time, progress func(store.Replayed) error) (sum store.Replayed, err error) {
	accounts := map[string]*account{}
	for _, a := range c.Accounts {
		if p, ok := a.Provider.(providers.WebhookParser); ok {
			accounts[a.Name] = &account{Account: a, webhook: p}
		}
	}
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	if sum.Total, err = src.CountRequests(ctx, since); err != nil {
		return sum, err
	}
	for after := ""; ; {
		batch, err := src.Requests(ctx, since, after, replayBatch)
		if err != nil || len(batch) == 0 {
			return sum, err
		}
		for i := range batch {
			raw := &batch[i]
			after = raw.ID
			sum.Requests++
			a := accounts[raw.Account]
			if a == nil || raw.Kind != kindWebhook {
				sum.Unread++
				continue
			}
			evs, err := a.readAgain(raw, c.KeepReaders, now().UTC())
			if err != nil {
				sum.Unread++
				continue
			}
			one, err := src.Replay(ctx, raw.ID, evs...)
			if err != nil {
				return sum, err
			}
			sum.Add(one)
		}
		if err := progress(sum); err != nil {
			return sum, err
		}
	}
}

// readAgain is events for a request of any age: a parser that fails on one must not end the replay.
func (a *account) readAgain(raw *store.RawRequest, keepReaders bool, now time.Time) (evs []event.Event, err error) {
	defer func() {
		if v := recover(); v != nil {
			evs, err = nil, fmt.Errorf("%w: the parser failed", providers.ErrMalformed)
		}
	}()
	if raw.Header == nil {
		raw.Header = http.Header{}
	}
	return a.events(raw, keepReaders, now)
}
