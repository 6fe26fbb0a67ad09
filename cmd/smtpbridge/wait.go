package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/smtp"
	"smtpbridge/store"
)

// accept = "wait": the mail is committed as any other, with a mark in the store that its client is
// not answered yet. Then the reply waits for the first attempt at every recipient, or for
// wait_timeout:
//
//   - all refused: 550 with the ESP's reason, the body goes at once;
//   - anything else, and when the time is over: 250, after the mark is off. What is left goes on
//     in the queue; after a call was started there is no temporary refusal.
//   - The client leaves first: it will send the mail again, so recipients that no call was started
//     for are dropped, with an event. A restart does the same with marks it finds.
const (
	// answerGrace is how long a store that fails is asked to take the mark off. Until then, and
	// not a moment longer, nobody else gives the client up.
	answerGrace = time.Minute
	answerAgain = 200 * time.Millisecond
	// storeWait bounds one operation for a client that waits, or has left.
	storeWait = 10 * time.Second
	// pollShared is how often the ledger is read where another bridge may deliver the mail.
	pollShared = 500 * time.Millisecond
)

var (
	errClientGone = errors.New("the client left before the answer")
	refuseGone    = &smtp.Refusal{Code: 421, Enhanced: [3]int{4, 4, 2}, Text: "Connection lost before the answer", Reason: "client_gone"}
)

// commitAndWait makes the mail durable and waits for what its reply will be. undo is for a mail
// that was not taken.
func (t *transaction) commitAndWait(ctx context.Context, plan *deliver.Plan, l *config.Listener, undo func()) error {
	id := plan.Mail.Envelope.ID
	deadline := time.Now().Add(l.WaitTimeout.D())
	rcpts := 0
	for _, j := range plan.Jobs {
		if !j.NextAt.After(deadline) {
			rcpts += len(j.Rcpts)
		}
	}
	if rcpts == 0 { // all of it is to be sent later
		err := t.commit(ctx, plan)
		if err != nil {
			undo()
		}
		return err
	}
	plan.Mail.HoldReason = store.Unanswered(deadline.Add(2 * answerGrace))
	first := t.in.runner.Expect(id, rcpts)
	defer first.Close()
	if err := t.commit(ctx, plan); err != nil {
		undo()
		return err
	}

	waitCtx, stopWaiting := context.WithDeadline(ctx, deadline)
	defer stopWaiting()
	cause, leave := context.WithCancelCause(waitCtx)
	var watch sync.WaitGroup
	watch.Go(func() {
		select {
		case <-smtp.ClientGone(ctx):
			leave(errClientGone)
		case <-cause.Done():
		}
	})
	t.in.firstAttempts(cause, first, id, t.parts.cfg.Store.URL != "")
	select {
	case <-smtp.ClientGone(ctx):
		leave(errClientGone)
	default:
		leave(nil)
	}
	watch.Wait()
	if errors.Is(context.Cause(cause), errClientGone) {
		return t.in.abandon(ctx, id)
	}
	return t.reply(ctx, id)
}

// firstAttempts returns when every recipient was tried, or ctx has ended.
func (in *intake) firstAttempts(ctx context.Context, first *deliver.Expectation, id string, shared bool) {
	if !shared {
		first.Wait(ctx)
		return
	}
	for ctx.Err() == nil {
		step, cancel := context.WithTimeout(ctx, pollShared)
		_, complete := first.Wait(step)
		cancel()
		if complete {
			return
		}
		if d, err := in.detail(ctx, id); err == nil && d.Mail.State == store.MailFinished {
			return
		}
	}
}

func (in *intake) detail(ctx context.Context, id string) (*store.Detail, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeWait)
	defer cancel()
	return in.store.Detail(ctx, id)
}

// abandon is for a client that left: it hears nothing, or at most that it must try again.
func (in *intake) abandon(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeWait)
	defer cancel()
	if err := in.store.Abandon(ctx, id); err != nil {
		in.log.Error("the rest of a mail could not be dropped now: it will be", "event", "smtp.abandon_failed", "id", id, "err", err)
	}
	return refuseGone
}

// reply decides by the ledger.
func (t *transaction) reply(ctx context.Context, id string) error {
	d, err := t.in.detail(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		return nil // finished, and already gone from the ledger
	}
	if err != nil {
		return t.in.answer(ctx, id, nil)
	}
	var refused []int
	for i := range d.Rcpts {
		r := &d.Rcpts[i]
		if r.State != store.RcptRejected && r.State != store.RcptFailed {
			continue
		}
		refused = append(refused, r.N)
		if t.refused[r.Addr] == nil {
			t.refuseRcpt(r.Addr, rcptRefusal(r)) // said over LMTP only
		}
	}
	if len(refused) < len(d.Rcpts) {
		switch l := findConfigListener(t.parts.cfg, d.Mail.Envelope.Listener); {
		case d.Mail.State == store.MailFinished && len(refused) == 0:
			return nil
		case l == nil || l.Protocol != "lmtp":
			refused = nil // the one reply does not name them
		}
		return t.in.answer(ctx, id, refused)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeWait)
	defer cancel()
	if err := t.in.store.Answer(ctx, id, refused...); err != nil {
		t.in.log.Error("the sender of a refused mail may be told a second time", "event", "smtp.answer_failed", "id", id, "err", err)
	}
	if err := t.in.store.PurgeBody(ctx, id); err != nil {
		t.in.log.Error("the body of a refused mail stays until its retention is over", "event", "smtp.purge_failed", "id", id, "err", err)
	}
	return allRefused(d.Rcpts)
}

// answer takes the mark off, after which the mail is as good as any with a 250. A store that fails
// is asked again for a while: the only other answer is a temporary refusal, and the client would
// send again what may be delivered.
// told are the recipients whose refusal is said in the reply.
func (in *intake) answer(ctx context.Context, id string, told []int) error {
	gone := smtp.ClientGone(ctx)
	ctx = context.WithoutCancel(ctx)
	giveUp := time.NewTimer(answerGrace)
	defer giveUp.Stop()
	for {
		once, cancel := context.WithTimeout(ctx, storeWait)
		err := in.store.Answer(once, id, told...)
		cancel()
		switch {
		case err == nil || errors.Is(err, store.ErrNotFound):
			return nil
		case errors.Is(err, store.ErrStale):
			return refuseGone
		}
		in.say("smtp.answer_failed", "id", id, "err", err)
		again := time.NewTimer(answerAgain)
		select {
		case <-again.C:
		case <-gone:
			again.Stop()
			return in.abandon(ctx, id)
		case <-giveUp.C:
			again.Stop()
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// rcptRefusal is the ESP's verdict on a recipient as a reply.
func rcptRefusal(r *store.Rcpt) *smtp.Refusal {
	out := &smtp.Refusal{Code: 550, Text: r.Detail, Reason: "esp_refused"}
	if n, err := fmt.Sscanf(r.Status, "%d.%d.%d", &out.Enhanced[0], &out.Enhanced[1], &out.Enhanced[2]); n != 3 || err != nil || out.Enhanced[0] != 5 {
		out.Enhanced = [3]int{5, 0, 0}
	}
	if out.Text == "" {
		out.Text = "Refused by " + r.Account
	}
	return out
}

// allRefused is the one reply for a mail that nobody gets: the first reason, and whose it is when
// there are others.
func allRefused(rcpts []store.Rcpt) *smtp.Refusal {
	out := rcptRefusal(&rcpts[0])
	for i := range rcpts[1:] {
		if rcpts[1+i].Detail != rcpts[0].Detail {
			out.Text = fmt.Sprintf("<%s>: %s (%d other recipients are refused too)", rcpts[0].Addr, out.Text, len(rcpts)-1)
			break
		}
	}
	return out
}
