package deliver

import (
	"context"
	"errors"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

const (
	// bulkEvery is how often a batch is asked for that was handed over less than bulkFresh ago; an older one is asked for
	// every bulkSlow, for bulkGiveUp at most.
	bulkEvery  = 30 * time.Second
	bulkFresh  = 10 * time.Minute
	bulkSlow   = 10 * time.Minute
	bulkGiveUp = 24 * time.Hour
	// bulkAtOnce is how many batches of an account are asked for in one round.
	bulkAtOnce = 10
)

// resolveLoop asks ESPs what became of the mails in batches they have taken: ids of their own, or a refusal.
func (r *Runner) resolveLoop(ctx context.Context) {
	asked := map[string]time.Duration{} // by call, when it is to be asked for again; by the steady clock
	for r.pause(ctx, bulkEvery) {
		now := r.clock.Mono()
		for _, l := range r.allLanes() {
			if res, ok := l.account().Provider.(providers.BulkResolver); ok {
				r.resolveAccount(ctx, l, res, asked, now)
			}
		}
		for id, at := range asked {
			if now > at+2*bulkGiveUp {
				delete(asked, id)
			}
		}
	}
}

func (r *Runner) resolveAccount(ctx context.Context, l *lane, res providers.BulkResolver, asked map[string]time.Duration, now time.Duration) {
	calls, err := r.q.Unresolved(ctx, l.name, r.clock.Now().Add(-bulkGiveUp), 100*bulkAtOnce)
	if err != nil {
		if ctx.Err() == nil {
			r.log.storeFailed("unresolved", l.name, err)
		}
		return
	}
	n := 0
	for _, b := range calls {
		if now < asked[b.Call.ID] || n == bulkAtOnce {
			continue
		}
		n++
		wait := bulkEvery / 2
		if r.clock.Now().Sub(b.Call.Started) > bulkFresh {
			wait = bulkSlow
		}
		asked[b.Call.ID] = now + wait
		callCtx, cancel := context.WithTimeout(ctx, checkTimeout)
		out, err := res.ResolveBulk(callCtx, b.Call.ProviderMessageID, b.Rcpts)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			r.log.callFailed(l.name, b.Call.MailID, "bulk status", 0, b.Call.Attempt, err)
			var e *providers.Error
			if errors.As(err, &e) && (e.Kind == providers.RateLimited || e.Kind == providers.Operator) {
				return // asking for the others would come to the same
			}
		case out != nil:
			asked[b.Call.ID] = now + bulkGiveUp // all is known that will be
			if err := r.saveResolved(ctx, l, b, out); err != nil {
				r.log.storeFailed("resolve", l.name, err)
				delete(asked, b.Call.ID)
			}
		}
	}
}

func (r *Runner) saveResolved(ctx context.Context, l *lane, b store.BulkCall, out *providers.Outcome) error {
	ids := map[int]string{}
	var evs []event.Event
	now := r.clock.Now()
	for i, ro := range out.Rcpts {
		if i >= len(b.Rcpts) {
			break
		}
		if ro.Verdict == providers.Accepted && ro.MessageID != "" {
			ids[i] = ro.MessageID
		}
		if ro.Verdict != providers.Rejected {
			continue
		}
		ev := event.Event{
			V: event.Version, ID: event.FactID(l.name, "bulk", b.Call.ProviderMessageID, ro.Addr), Time: now, Seen: now,
			Kind: event.Rejected, Account: l.name, Provider: l.account().Info.Name, ProviderMessageID: b.Call.ProviderMessageID,
			Recipient: ro.Addr, Ref: b.Call.Ref, Action: event.ActionFailed, Status: classStatus(ro.Status, 5, "5.0.0"),
			Diagnostic: event.Clean(ro.Detail, event.MaxText), RejectReason: ro.Reason,
		}
		if ev.RejectReason == "" {
			ev.RejectReason = event.ReasonOther
		}
		evs = append(evs, ev)
		r.log.refused(string(event.Rejected), l.name, b.Call.MailID, ro.Addr, ev.Status, ev.Diagnostic, b.Call.Attempt)
	}
	return r.q.Resolve(ctx, b.Call, ids, evs...)
}
