package store

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// finishNext lets the next mail of an account end, with every recipient in a state.
func (f *fixture) finishNext(account string, st RcptState, kind event.Kind) string {
	f.t.Helper()
	c := f.claim(account)
	call := f.start(c, all(c.Mail)...)
	call.State, call.ProviderMessageID = CallAccepted, "p-"+call.ID
	if st != RcptSent {
		call.State = CallRefused
	}
	s := Settlement{Claim: c, Calls: []CallResult{{Call: call}}}
	for _, n := range call.Rcpts {
		s.Rcpts = append(s.Rcpts, RcptResult{N: n, State: st, Account: account, ProviderMessageID: call.ProviderMessageID})
		s.Events = append(s.Events, event.Event{Kind: kind, QueueID: c.Mail.Envelope.ID, Recipient: c.Mail.Envelope.Rcpts[n].Addr, Account: account})
	}
	f.must(f.Settle(f.t.Context(), s))
	return c.Mail.Envelope.ID
}

// Every search gives the mails it names, newest first, each exactly once however small the pages are.
func testPages(t *testing.T, e engine) {
	f := newFixture(t, e)
	accept := func(account, subject, from string, rcpts ...string) string {
		f.clock.add(time.Millisecond)
		m := testMail(f.clock.now(), rcpts...)
		m.Subject, m.Envelope.From = subject, from
		f.must(f.commit(m, []byte("Subject: x\r\n\r\nhello\r\n"), []NewJob{{Route: "r", Accounts: []string{account}, Rcpts: all(m), NextAt: f.clock.now(), Expires: f.clock.now().Add(time.Hour)}}))
		return m.Envelope.ID
	}
	sent := accept("a", "Rechnung für März", "shop@example.com", "ada@example.net", "bob@example.net")
	f.finishNext("a", RcptSent, event.Sent)
	failed := accept("b", "Welcome 100%", "shop@example.com", "ada@example.net")
	f.finishNext("b", RcptFailed, event.Failed)
	self := accept("a", "to myself", "ada@example.net", "ada@example.net", "ADA@example.net")
	held := accept("a", "later", "", "carl@example.net")
	f.must(f.Hold(t.Context(), held, "x"))
	gone := accept("a", "never", "shop@example.com", "carl@example.net")
	f.must(f.Delete(t.Context(), gone))
	queued := accept("b", "WELCOME again", "shop@example.com", "dora@example.net")

	waiting := []MailState{MailQueued, MailHeld}
	for name, c := range map[string]struct {
		search Search
		want   []string
	}{
		"all":                 {Search{}, []string{queued, gone, held, self, failed, sent}},
		"waiting":             {Search{States: waiting}, []string{queued, held, self}},
		"held":                {Search{States: []MailState{MailHeld}}, []string{held}},
		"finished":            {Search{States: []MailState{MailFinished}}, []string{failed, sent}},
		"deleted":             {Search{States: []MailState{MailDeleted}}, []string{gone}},
		"failed":              {Search{Failed: true}, []string{gone, failed}},
		"address":             {Search{Address: "ada@EXAMPLE.net"}, []string{self, failed, sent}},
		"sender":              {Search{Address: "shop@example.com"}, []string{queued, gone, failed, sent}},
		"address and waiting": {Search{Address: "ada@example.net", States: waiting}, []string{self}},
		"address and failed":  {Search{Address: "ada@example.net", Failed: true}, []string{failed}},
		"account":             {Search{Account: "b"}, []string{queued, failed}},
		"account and waiting": {Search{Account: "b", States: waiting}, []string{queued}},
		"subject":             {Search{Subject: "welcome"}, []string{queued, failed}},
		"subject beyond":      {Search{Subject: "FÜR märz"}, []string{sent}},
		"subject is literal":  {Search{Subject: "100%"}, []string{failed}},
		"ids":                 {Search{IDs: []string{sent, held}, States: waiting}, []string{held}},
		"nothing":             {Search{Address: "nobody@example.net"}, nil},
		"after":               {Search{After: held, Address: "ada@example.net"}, []string{self, failed, sent}},
	} {
		for _, limit := range []int{1, 2, 100} {
			s, got := c.search, []string(nil)
			s.Limit = limit
			for turns := 0; ; turns++ {
				lines, next, err := f.Page(t.Context(), s)
				if err != nil || len(lines) > limit || turns > 10 {
					t.Fatalf("%s: %d lines, turn %d, %v", name, len(lines), turns, err)
				}
				for _, l := range lines {
					got = append(got, l.Envelope.ID)
				}
				if next == "" {
					break
				}
				s.After = next
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("%s, pages of %d: got %v, want %v", name, limit, got, c.want)
			}
		}
	}
	lines, _, err := f.Page(t.Context(), Search{})
	f.must(err)
	var outcomes []string
	for _, l := range lines {
		outcomes = append(outcomes, fmt.Sprint(l.Outcome))
	}
	want := []string{"map[queued:1]", "map[deleted:1]", "map[queued:1]", "map[queued:2]", "map[failed:1]", "map[sent:2]"}
	if !slices.Equal(outcomes, want) {
		t.Errorf("outcomes: got %v, want %v", outcomes, want)
	}
}

// Every event is counted once, with what the caller counts, and old counts go.
func testActivity(t *testing.T, e engine) {
	f := newFixture(t, e)
	ctx := t.Context()
	start := f.clock.now()
	f.accept("a", "one@example.org", "two@example.org")
	f.finishNext("a", RcptSent, event.Sent)
	_, err := f.Record(ctx, &RawRequest{Account: "a", Kind: "webhook"}, event.Event{Kind: event.Delivered, Account: "a", Provider: "p", ProviderEventID: "1", Recipient: "one@example.org"})
	f.must(err)
	f.must(f.Note(ctx, event.Event{Kind: event.Unknown, ProviderEvent: "admin.hold", QueueID: "nobody"}))
	drain := func() {
		t.Helper()
		for {
			n, err := f.Tally(ctx)
			f.must(err)
			if n == 0 {
				return
			}
		}
	}
	drain()
	drain()
	f.must(f.Count(ctx, Activity{At: start, Kind: Accepted, N: 2}, Activity{At: start, Kind: Accepted, N: 1}))
	counts := func() map[string]int64 {
		t.Helper()
		list, err := f.Activity(ctx, start.Add(-ActivityStep))
		f.must(err)
		sum := map[string]int64{}
		for _, a := range list {
			if a.At.After(start) || a.At.Before(start.Add(-ActivityStep)) {
				t.Errorf("%+v is in no step of now", a)
			}
			sum[strings.Join([]string{a.Account, a.Kind}, " ")] += a.N
		}
		return sum
	}
	want := map[string]int64{"a sent": 2, "a delivered": 1, "a webhook": 1, " unknown": 1, " accepted": 3}
	if got := counts(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if hooks, err := f.LastWebhooks(ctx); err != nil || len(hooks) != 1 || !hooks["a"].Equal(start.Truncate(ActivityStep)) {
		t.Errorf("last webhooks %v, %v", hooks, err)
	}
	f.reopen()
	drain()
	if got := counts(); !reflect.DeepEqual(got, want) {
		t.Errorf("after a restart: got %v, want %v", got, want)
	}
	f.clock.add(activityKeep + time.Hour)
	for {
		n, err := f.Purge(ctx, Retention{Bodies: time.Hour, Failed: time.Hour})
		f.must(err)
		if n == 0 {
			break
		}
	}
	if got := counts(); len(got) != 0 {
		t.Errorf("old counts stay: %v", got)
	}
}
