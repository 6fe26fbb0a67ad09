package sink

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

// DSNStore is what DSN needs of a store; *store.Store is one.
type DSNStore interface {
	Mail(ctx context.Context, id string) (store.Mail, error)
	Ledger(ctx context.Context, id string) (*store.Ledger, error)
	Event(ctx context.Context, id string) (event.Event, error)
	Body(ctx context.Context, id string) (store.Body, error)
	Begin(ctx context.Context) (store.Receipt, error)
	Enqueue(ctx context.Context, r store.Receipt, m store.Mail, jobs []store.NewJob, told []store.Notice, name, cursor string) error
	PutNotices(ctx context.Context, ns ...store.Notice) error
	DueNotices(ctx context.Context, n int) ([]store.Notice, error)
	NoticesSince(ctx context.Context, sender string, since time.Time) (int, error)
	Cursor(ctx context.Context, name string) (string, error)
	LastCursor(ctx context.Context) (string, error)
	SetCursor(ctx context.Context, name, cursor string) error
}

// DSNSettings are what the configuration in force says about DSN mail.
type DSNSettings struct {
	On         []string      // failed, delayed, delivered: what is told where NOTIFY does not say
	DelayAfter time.Duration // age of a mail before its sender hears of a delay
	MaxPerHour int           // DSN mails to one sender, 0 = no limit
	Hostname   string
	Addresses  bool // may stand in the log
	// Permit reports whether DSN mail may go to the sender of a mail.
	Permit func(e *envelope.Envelope) bool
	// Delivers reports whether an account's provider reports deliveries: then success is told when it does,
	// else when the provider has accepted the mail.
	Delivers func(account string) bool
	// Plan makes a mail out of a report. The error is a *Refused where it can never be delivered.
	Plan func(e envelope.Envelope, body store.Body) (store.Mail, []store.NewJob, error)
}

// Refused says that the account for DSN mail can never take a report.
type Refused struct{ Text string }

func (e *Refused) Error() string { return e.Text }

// DSNConfig is what a DSN is made from.
type DSNConfig struct {
	Store    DSNStore
	Settings func() *DSNSettings // in force now; nil: DSN mail is off
	Log      *slog.Logger
	Now      func() time.Time
}

// DSN writes delivery status notifications to the senders of mails (RFC 3461, RFC 3464).
//
// Contract:
//   - For each recipient and action a sender is told at most once, whatever events come in whatever order, however
//     often, and whenever the process dies: a DSN, its notices and, with the last one of a batch, the place in
//     the event log are one transaction.
//   - It tells only what NOTIFY asks for, or the settings where NOTIFY is absent; never of a mail from the null
//     sender, never of one that is itself an automatic reply, only to senders that Permit lets through, and not more
//     often than MaxPerHour.
//   - Only events that name a recipient of ours for certain count; a replay never does.
//   - What happened while it was off is not told later.
type DSN struct {
	DSNConfig
	next time.Time // of the look at what is due
}

// DSNName is the key of its cursor.
const DSNName = "dsn"

const (
	// ledgersHeld bounds the mails held in memory at once, dueBatch the notices looked at in one turn.
	ledgersHeld = 32
	dueBatch    = 100
	// dueEvery is the time between two turns.
	dueEvery = time.Second
	// unheardAgain is when a mail is looked at again whose client waits for its answer.
	unheardAgain = 2 * time.Second
)

// NewDSN makes the sink.
func NewDSN(c DSNConfig) *DSN {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &DSN{DSNConfig: c}
}

// Arm notes the place to begin at when DSN mail is switched on, before the first mail may ask for it, and forgets it
// when it is switched off: only what happens from now on is told.
func (d *DSN) Arm(ctx context.Context, on bool) error {
	cursor, err := d.Store.Cursor(ctx, DSNName)
	if err != nil || (cursor != "") == on {
		return err
	}
	place := ""
	if on {
		if place, err = d.Store.LastCursor(ctx); err != nil {
			return err
		}
		place = cmp.Or(place, "0") // before the first event there will be
	}
	return d.Store.SetCursor(ctx, DSNName, place)
}

// Name implements Sink.
func (d *DSN) Name() string { return DSNName }

// Open implements Sink. There is no place only in the moment in which it is switched off.
func (d *DSN) Open(ctx context.Context, cursor string) (string, error) {
	if cursor == "" {
		return d.Store.LastCursor(ctx)
	}
	return cursor, nil
}

// Close implements Sink.
func (d *DSN) Close() error { return nil }

// Write tells what the events give rise to. The last DSN moves the cursor in its own transaction.
func (d *DSN) Write(ctx context.Context, evs []event.Event, next string) (string, error) {
	set := d.Settings()
	if set == nil {
		return next, nil
	}
	b := newDSNBatch(d, set)
	for _, e := range evs {
		if err := b.add(ctx, e, nil); err != nil {
			return "", err
		}
	}
	return next, b.send(ctx, next)
}

// Tick tells what was put off.
func (d *DSN) Tick(ctx context.Context) error {
	set, now := d.Settings(), d.Now()
	if set == nil || now.Before(d.next) && d.next.Sub(now) <= dueEvery {
		return nil
	}
	d.next = now.Add(dueEvery)
	due, err := d.Store.DueNotices(ctx, dueBatch)
	if err != nil || len(due) == 0 {
		return err
	}
	b := newDSNBatch(d, set)
	for i := range due {
		e, err := d.Store.Event(ctx, due[i].EventID)
		switch {
		case errors.Is(err, store.ErrNotFound):
			b.settle(due[i], "its event is no longer kept")
		case err != nil:
			return err
		default:
			if err := b.add(ctx, e, &due[i]); err != nil {
				return err
			}
		}
	}
	return b.send(ctx, "")
}
