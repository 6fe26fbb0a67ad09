// Package sink carries the store's events outside: to the event file, to standard output, to
// other applications, to the senders of mails (DSN).
//
// Contract:
//   - Every event of the store reaches every sink at least once, in the store's order. A sink's place
//     is durable and moves only after the target has the events, so none is ever missing.
//   - In the event file none is doubled either: what was written but not yet noted when the process died
//     is recognised at the next start (see File).
//   - Sinks do not wait for each other. A target that is down costs nothing but its own delay: its
//     events wait in the store.
package sink

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// Source is the store's side; *store.Store is one.
type Source interface {
	Follow(ctx context.Context, cursor string, n int) (evs []event.Event, next string, err error)
	Cursor(ctx context.Context, name string) (string, error)
	SetCursor(ctx context.Context, name, cursor string) error
	Subscribe(topic store.Topic) (wake <-chan struct{}, end func())
}

// Sink is one target of events. Its methods but Name are called by one goroutine.
type Sink interface {
	// Name is the key of its cursor in the store.
	Name() string
	// Open prepares the target. cursor is what the last Write returned, "" at the first start. It returns
	// the store's cursor to follow from. It is called again after an error.
	Open(ctx context.Context, cursor string) (from string, err error)
	// Write makes the target have the events for good. next is the store's cursor after them; the
	// cursor it returns is stored as it is and given to Open at the next start. It is called again with the same events after an error.
	Write(ctx context.Context, evs []event.Event, next string) (cursor string, err error)
	// Close is called when following ends.
	Close() error
}

// Ticker is optional: Tick is called before each look for events, at least once every Config.Poll, for
// work that time gives rise to.
type Ticker interface {
	Tick(ctx context.Context) error
}

// Config is what a Runner is made from.
type Config struct {
	Source Source
	Sinks  []Sink
	Batch  int           // events written and noted at once, default 500
	Poll   time.Duration // how often the store is asked although it announced nothing, default 2 s
	// MinBackoff and MaxBackoff bound the pauses after errors, default 1 s and 1 min.
	MinBackoff, MaxBackoff time.Duration
	Log                    *slog.Logger
	// Lead, if set, tells whether this process is to serve the sink now. Where several bridges share a store,
	// only one of them may forward. A sink that is not served follows nothing.
	Lead func(ctx context.Context, sink string) bool
	// Written is called with the number of events a sink has taken.
	Written func(sink string, n int)
}

// Runner follows the store's events for a set of sinks.
type Runner struct {
	Config // Sinks are those of now

	mu     sync.Mutex
	ctx    context.Context // of Run, nil before it and at its end
	stints map[string]*stint
	wg     sync.WaitGroup
}

// New makes a Runner. Two sinks of one name would share a place, which is refused.
func New(c Config) (*Runner, error) {
	if c.Source == nil {
		return nil, errors.New("sink: no source of events")
	}
	if err := Distinct(c.Sinks); err != nil {
		return nil, err
	}
	if c.Batch <= 0 {
		c.Batch = 500
	}
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{{&c.Poll, 2 * time.Second}, {&c.MinBackoff, time.Second}, {&c.MaxBackoff, time.Minute}} {
		if *d.p <= 0 {
			*d.p = d.v
		}
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{Config: c, stints: map[string]*stint{}}, nil
}

// Run follows until ctx ends. It returns nil: no trouble of a target ends it.
func (r *Runner) Run(ctx context.Context) error {
	r.mu.Lock()
	r.ctx = ctx
	r.startAll()
	r.mu.Unlock()
	<-ctx.Done()
	r.mu.Lock()
	r.ctx = nil // no Reload starts anything from here on
	r.mu.Unlock()
	r.wg.Wait()
	return nil
}

// lastWords is the time a sink has to finish what it writes when following ends.
const lastWords = 5 * time.Second

// follow serves a sink until turn ends, which it does with ctx at the latest. A batch that is being written is
// finished under ctx.
func (r *Runner) follow(ctx, turn context.Context, s Sink) {
	name := s.Name()
	wake, end := r.Source.Subscribe(store.TopicEvents)
	defer end()
	defer func() {
		if err := s.Close(); err != nil {
			r.Log.Warn("sink.close_failed", "sink", name, "err", err)
		}
	}()
	t := trouble{r: r, sink: name}

	var from string
	open := false // the target is, and from is our place
	ticker, _ := s.(Ticker)
	for turn.Err() == nil {
		if r.Lead != nil && !r.Lead(ctx, name) {
			open = false // whoever leads moves the place
			pause(turn, nil, r.Poll)
			continue
		}
		if !open {
			cursor, err := r.Source.Cursor(ctx, name)
			if err == nil {
				from, err = s.Open(ctx, cursor)
			}
			if err != nil {
				t.wait(turn, err)
				continue
			}
			open = true
		}
		if ticker != nil {
			if err := ticker.Tick(ctx); err != nil {
				t.wait(turn, err)
				continue
			}
		}
		evs, next, err := r.Source.Follow(ctx, from, r.Batch)
		switch {
		case err != nil:
			t.wait(turn, err)
		case len(evs) == 0:
			t.over()
			if next != "" {
				from = next
			}
			pause(turn, wake, r.Poll)
		default:
			// Not carried: following has ended, or another process leads now.
			if open = r.carry(ctx, turn, s, &t, evs, next); open {
				from = next
			}
		}
	}
}

// pause ends after d, with ctx, or at a wake-up, whatever comes first.
func pause(ctx context.Context, wake <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-wake:
	case <-timer.C:
	}
}

// carry writes one batch and notes the place after it; false: it could not, or another process leads the sink now and moves its place. The place is noted before the next batch is
// written, so never more than one batch can be without a note.
func (r *Runner) carry(ctx, turn context.Context, s Sink, t *trouble, evs []event.Event, next string) bool {
	var cursor string
	for {
		var err error
		if cursor, err = s.Write(ctx, evs, next); err == nil {
			break
		}
		if errors.Is(err, store.ErrStale) || !t.wait(turn, err) {
			return false
		}
	}
	if r.Written != nil {
		r.Written(s.Name(), len(evs))
	}
	for {
		// Once written it shall be noted, even if the end has come meanwhile.
		note, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastWords)
		err := r.Source.SetCursor(note, s.Name(), cursor)
		cancel()
		if err == nil {
			t.over()
			return true
		}
		if errors.Is(err, store.ErrStale) || !t.wait(ctx, err) {
			return false
		}
	}
}

// trouble paces one sink's attempts and logs the first failure of a row, one line every ten
// minutes, and the end.
type trouble struct {
	r      *Runner
	sink   string
	since  time.Time
	logged time.Time
	pause  time.Duration
}

// wait pauses after an error; false: following is to end.
func (t *trouble) wait(ctx context.Context, err error) bool {
	if ctx.Err() != nil {
		return false
	}
	now := time.Now()
	if t.since.IsZero() {
		t.since, t.pause = now, t.r.MinBackoff
	} else {
		t.pause = min(2*t.pause, t.r.MaxBackoff)
	}
	if t.logged.IsZero() || now.Sub(t.logged) > 10*time.Minute {
		t.logged = now
		t.r.Log.Error("sink.error", "sink", t.sink, "err", err, "since", t.since.UTC().Format(time.RFC3339))
	}
	d := t.pause/2 + rand.N(t.pause/2+1)
	var asked interface{ RetryAfter() time.Duration }
	if errors.As(err, &asked) {
		d = max(d, asked.RetryAfter())
	}
	pause(ctx, nil, d)
	return ctx.Err() == nil
}

func (t *trouble) over() {
	if t.since.IsZero() {
		return
	}
	t.r.Log.Info("sink.recovered", "sink", t.sink, "after", time.Since(t.since).Round(time.Second))
	*t = trouble{r: t.r, sink: t.sink}
}
