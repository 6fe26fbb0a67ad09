package deliver

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/route"
	"smtpbridge/store"
)

// blindQueue cannot read the suppression list.
type blindQueue struct {
	Queue
	fail func() bool
}

func (q blindQueue) Suppressed(ctx context.Context, a, d, s string) (*store.Suppression, error) {
	if q.fail() {
		return nil, errors.New("no list")
	}
	return q.Queue.Suppressed(ctx, a, d, s)
}

func TestSuppression(t *testing.T) {
	const from = "From: app@example.com\r\nTo: x@example.net\r\nSubject: s\r\n"
	list := []store.Suppression{
		{Address: "bounced@example.net", Domain: "example.com", Reason: store.ReasonBounced},
		{Address: "angry@example.net", Domain: "example.com", Reason: store.ReasonComplained},
		{Address: "other@example.net", Domain: "other.example", Reason: store.ReasonBounced},
		{Address: "reader@example.net", Domain: "example.com", Stream: "news.example.com", Reason: store.ReasonUnsubscribed},
		{Address: "banned@example.net", Reason: store.ReasonManual},
	}
	for _, tt := range []struct {
		name, mail string
		off        bool
		rcpt       string
		want       string // reject reason, "" = sent
	}{
		{"a bounced address", from, false, "Bounced@example.net", event.ReasonBounced},
		{"a complaint", from, false, "angry@example.net", event.ReasonSpam},
		{"an operator's entry", from, false, "banned@example.net", event.ReasonBlocked},
		{"another From domain's entry", from, false, "other@example.net", ""},
		{"another stream", from, false, "reader@example.net", ""},
		{"the stream", from + "List-Id: News <News.example.com>\r\n", false, "reader@example.net", event.ReasonUnsubscribed},
		{"switched off", from, true, "bounced@example.net", ""},
		{"a bypass without permission", from + "X-Smtpbridge-Skip-Suppression: yes\r\n", false, "bounced@example.net", event.ReasonBounced},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T) {
				f := &fake{caps: jsonCaps()}
				b := newBench(t, f)
				defer b.close()
				b.cfg.Suppression = !tt.off
				if err := b.st.Suppress(t.Context(), list...); err != nil {
					t.Fatal(err)
				}
				b.start()
				id := b.submitMail(tt.mail+"\r\nbody\r\n", "fine@example.net", tt.rcpt)
				b.after(time.Minute)
				ev := b.finals(id)[tt.rcpt]
				if b.finals(id)["fine@example.net"].Kind != event.Sent {
					t.Errorf("the other recipient: %+v", b.finals(id))
				}
				if tt.want == "" {
					if ev.Kind != event.Sent {
						t.Errorf("got %+v, want sent", ev)
					}
					return
				}
				if ev.Kind != event.Rejected || ev.RejectReason != tt.want || ev.Status != "5.7.1" || ev.Action != event.ActionFailed || !strings.HasPrefix(ev.SMTPReply, "550 5.7.1 the address is on the suppression list (") {
					t.Errorf("got %+v, want rejected with %s", ev, tt.want)
				}
				for _, c := range f.seen() {
					for _, r := range c.rcpts {
						if r == tt.rcpt {
							t.Errorf("%s was handed to the provider", r)
						}
					}
				}
			})
		})
	}
}

// Nobody is sent to while the list cannot be read, and mail the bridge makes itself does not ask it.
func TestSuppressionUnreadableAndOwnMail(t *testing.T) {
	bubble(t, func(t *testing.T) {
		f := &fake{caps: jsonCaps()}
		b := newBench(t, f)
		defer b.close()
		b.cfg.Suppression = true
		var blind atomic.Bool
		blind.Store(true)
		b.queue = func(q Queue) Queue { return blindQueue{q, blind.Load} }
		b.start()
		id := b.submit("x@example.net")
		b.after(30 * time.Second)
		if n := len(f.seen()); n != 0 {
			t.Errorf("%d calls while the list could not be read", n)
		}
		blind.Store(false)
		b.after(2 * time.Minute)
		b.wantStates(id, "x=sent")
	})
}

func TestListID(t *testing.T) {
	for in, want := range map[string]string{
		"": "", "News <News.Example.com>": "news.example.com", "<a.b>": "a.b", "a.b": "a.b", "\"x<y\" <c.d> (comment)": "c.d",
	} {
		if got := listID(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}

func TestAudienceOfTheLedger(t *testing.T) {
	p := NewPlanner(PlannerConfig{Routes: &route.Table{}})
	domain, stream := p.Audience(&store.Mail{FromHeader: "app@Example.com", Header: []byte("From: app@Example.com\r\nList-Id: <n.example.com>\r\n")}, "gone")
	if domain != "example.com" || stream != "n.example.com" {
		t.Errorf("got %q %q", domain, stream)
	}
	if domain, stream = p.Audience(&store.Mail{FromHeader: "app@example.com"}, "gone"); domain != "example.com" || stream != "" {
		t.Errorf("an erased header: got %q %q", domain, stream)
	}
}
