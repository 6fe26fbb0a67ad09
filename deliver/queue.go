package deliver

import (
	"context"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// Queue is what the Runner needs of the store; *store.Store is one.
type Queue interface {
	Claim(ctx context.Context, account string, n int) ([]*store.Claim, error)
	NextDue(ctx context.Context, account string) (time.Time, bool, error)
	Subscribe(topic store.Topic) (<-chan struct{}, func())
	Body(ctx context.Context, id string) (store.Body, error)
	ClaimBody(ctx context.Context, c *store.Claim) (store.Body, error)
	Start(ctx context.Context, c *store.Claim, calls []store.Call) ([]store.Call, error)
	Settle(ctx context.Context, st store.Settlement) error
	Release(ctx context.Context, c *store.Claim) error
	Replan(ctx context.Context, mailID string, generation int64, jobs []store.NewJob) error
	Stale(ctx context.Context, generation int64, n int) ([]string, error)
	Record(ctx context.Context, raw *store.RawRequest, evs ...event.Event) (int, error)
	Suppressed(ctx context.Context, address, domain, stream string) (*store.Suppression, error)
	Accounts(ctx context.Context) ([]store.AccountState, error)
	SetAccount(ctx context.Context, a store.AccountState, evs ...event.Event) error
	Mails(ctx context.Context, f store.Filter) ([]store.Mail, error)
	Detail(ctx context.Context, id string) (*store.Detail, error)
	Hold(ctx context.Context, id, reason string) error
	Ahead(ctx context.Context, next time.Time, n int) ([]string, error)
	Retry(ctx context.Context, id string) error
	Stats(ctx context.Context) (store.Stats, error)
	Ping(ctx context.Context) error
	Unresolved(ctx context.Context, account string, since time.Time, n int) ([]store.BulkCall, error)
	Resolve(ctx context.Context, c store.Call, ids map[int]string, evs ...event.Event) error
}

var _ Queue = (*store.Store)(nil)
