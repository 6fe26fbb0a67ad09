package deliver

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

type bulker struct {
	*fake
	resolve func(id string, rcpts []envelope.Rcpt) (*providers.Outcome, error)
}

func (b bulker) ResolveBulk(_ context.Context, id string, rcpts []envelope.Rcpt) (*providers.Outcome, error) {
	return b.resolve(id, rcpts)
}

// TestBulkIsResolved: what the ESP says of a batch later becomes the recipients' ids and events, once.
func TestBulkIsResolved(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked atomic.Int32
		p := bulker{fake: &fake{caps: jsonCaps()}}
		p.set(func(m *translate.Mail) (*providers.Outcome, error) { return providers.AllAccepted(m, "bulk:7"), nil })
		p.resolve = func(id string, rcpts []envelope.Rcpt) (*providers.Outcome, error) {
			n := asked.Add(1)
			if id != "bulk:7" || len(rcpts) != 3 {
				t.Errorf("asked for %s, %v", id, rcpts)
			}
			switch n {
			case 1:
				return nil, nil // not done yet
			case 2:
				return nil, &providers.Error{Provider: "fake", Op: "bulk status", Kind: providers.Transient, HTTPStatus: 503}
			}
			return &providers.Outcome{MessageID: id, Rcpts: []providers.RcptOutcome{
				{Addr: rcpts[0].Addr, Verdict: providers.Accepted, MessageID: "id-a"},
				{Addr: rcpts[1].Addr, Verdict: providers.Rejected, Status: "5.6.0", Detail: "bad subject"},
				{Addr: rcpts[2].Addr}, // nothing is known
			}}, nil
		}
		b := newBench(t, p)
		defer b.close()
		b.start()
		id := b.submit("a@x.example", "b@x.example", "c@x.example")
		b.after(time.Second)
		b.wantStates(id, "a=sent b=sent c=sent")
		b.after(3 * time.Hour)
		if n := asked.Load(); n != 3 {
			t.Errorf("asked %d times", n)
		}
		b.wantStates(id, "a=sent b=sent c=sent")
		d := b.detail(id)
		if d.Rcpts[0].ProviderMessageID != "id-a" || d.Rcpts[1].ProviderMessageID != "bulk:7" || d.Rcpts[2].ProviderMessageID != "bulk:7" {
			t.Errorf("recipients %+v", d.Rcpts)
		}
		evs := b.events(id, event.Rejected)
		if len(evs) != 1 || evs[0].Recipient != "b@x.example" || evs[0].Status != "5.6.0" || evs[0].Diagnostic != "bad subject" || evs[0].RejectReason != event.ReasonOther || evs[0].Account != "a" {
			t.Errorf("events %+v", evs)
		}
		if sent := b.events(id, event.Sent); len(sent) != 3 || !slices.ContainsFunc(sent, func(e event.Event) bool { return e.ProviderMessageID == "bulk:7" }) {
			t.Errorf("events %+v", sent)
		}
	})
}

// TestBulkAsksLessAndLess: an ESP that never says is asked for a day.
func TestBulkAsksLessAndLess(t *testing.T) {
	bubble(t, func(t *testing.T) {
		var asked atomic.Int32
		p := bulker{fake: &fake{caps: jsonCaps()}}
		p.set(func(m *translate.Mail) (*providers.Outcome, error) { return providers.AllAccepted(m, "bulk:8"), nil })
		p.resolve = func(string, []envelope.Rcpt) (*providers.Outcome, error) { asked.Add(1); return nil, nil }
		b := newBench(t, p)
		defer b.close()
		b.start()
		b.submit("a@x.example")
		b.after(9 * time.Minute)
		if n := asked.Load(); n < 15 || n > 19 {
			t.Errorf("asked %d times in the first minutes", n)
		}
		b.after(24 * time.Hour)
		n := asked.Load()
		if n > 200 {
			t.Errorf("asked %d times in a day", n)
		}
		b.after(24 * time.Hour)
		if more := asked.Load() - n; more != 0 {
			t.Errorf("asked %d times more", more)
		}
	})
}
