package deliver

import (
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// Received mail goes by its rules, and what cannot be delivered is held: no recipient of it ever fails.
func TestReceivedMail(t *testing.T) {
	for _, c := range []struct {
		name  string
		send  func(*translate.Mail) (*providers.Outcome, error)
		after time.Duration
		text  string
	}{
		{"refused", fail(providers.Permanent, func(e *providers.Error) { e.Msg = "no such mailbox" }), time.Second, "no such mailbox"},
		{"recipient refused", func(m *translate.Mail) (*providers.Outcome, error) {
			o := providers.AllAccepted(m, "id")
			o.Rcpts[0].Verdict, o.Rcpts[0].Detail = providers.Rejected, "mailbox is gone"
			return o, nil
		}, time.Second, "mailbox is gone"},
		{"not in time", fail(providers.Transient), 3 * time.Hour, "not delivered in time"},
	} {
		t.Run(c.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				raw := jsonCaps()
				raw.Raw, raw.AnyFrom = translate.RawEnvelope, true
				other, local := &fake{caps: jsonCaps()}, &fake{caps: raw}
				b := newBench(t, other, local)
				defer b.close()
				b.cfg.Inbound = []InboundRule{{Recipients: []string{"*@in.example"}, Account: "b"}}
				b.inbound = "esp"
				local.set(c.send)
				b.start()
				id := b.submitMail("From: a@foreign.example, b@foreign.example\r\nX-MC-Tags: x\r\n\r\nhello\r\n", "r@in.example")
				b.after(c.after)
				b.wantStates(id, "r=queued")
				d := b.detail(id)
				if d.Mail.State != store.MailHeld || !strings.Contains(d.Mail.HoldReason, c.text) {
					t.Errorf("state %s, %q", d.Mail.State, d.Mail.HoldReason)
				}
				failed := b.events(id, event.InboundFailed)
				if len(failed) != 1 || failed[0].Recipient != "r@in.example" || !strings.Contains(failed[0].Diagnostic, c.text) || len(b.finals(id)) != 0 {
					t.Errorf("inbound_failed: %+v, finals %+v", failed, b.finals(id))
				}
				local.set(nil)
				if err := b.st.ReleaseHold(t.Context(), id); err != nil {
					t.Fatal(err)
				}
				b.after(time.Minute)
				b.wantStates(id, "r=sent")
				if len(other.seen()) != 0 {
					t.Errorf("it went by a route: %+v", other.seen())
				}
			})
		})
	}
}
