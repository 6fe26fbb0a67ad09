package store

import (
	"context"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// testTransfer moves mails in every state from SQLite to PostgreSQL: all answers are as before, and nothing can be sent twice.
func testTransfer(t *testing.T, c *cluster) {
	f := newFixture(t, sqliteEngine, func(o *Options) { o.InlineBody = 1024 })
	ctx := t.Context()
	dir := f.o.Dir
	var ids []string
	note := func(id string) string { ids = append(ids, id); return id }

	settled := note(f.accept("a", "sent@example.org"))
	cl := f.claim("a")
	call := f.start(cl, 0)
	r, ev := sent(cl, 0, "pm-1")
	f.must(f.Settle(ctx, Settlement{Claim: cl, Calls: []CallResult{accepted(call, "pm-1")}, Rcpts: []RcptResult{r}, Events: []event.Event{ev}}))

	note(f.accept("a", "refused@example.org"))
	cl = f.claim("a")
	f.must(f.Settle(ctx, Settlement{Claim: cl, Rcpts: []RcptResult{{N: 0, State: RcptRejected, Status: "5.1.1", Detail: "no such user"}}}))

	later := note(f.accept("a", "later@example.org"))
	cl = f.claim("a")
	call = f.start(cl, 0)
	f.must(f.Settle(ctx, Settlement{Claim: cl, Calls: []CallResult{result(call, CallRetry)}, NextAt: f.clock.now().Add(time.Hour), Counted: true, LastError: "try later"}))

	held := note(f.accept("a", "held@example.org"))
	f.must(f.Hold(ctx, held, "by hand"))

	m := testMail(f.clock.now(), "large@example.org")
	large := random(t, 700_000)
	f.must(f.commit(m, large, []NewJob{{Accounts: []string{"a"}, Rcpts: all(m), NextAt: f.clock.now(), Expires: f.clock.now().Add(time.Hour)}}))
	note(m.Envelope.ID)

	flying := note(f.accept("b", "one@example.org", "two@example.org"))
	cl = f.claim("b")
	f.start(cl, 0) // its answer never comes

	f.must(f.Suppress(ctx, Suppression{Address: "gone@example.org", Domain: "example.com", Reason: "bounce", Created: f.clock.now()}))
	f.must(f.SetAccount(ctx, AccountState{Account: "a", State: "paused", Reason: "key", Since: f.clock.now(), Until: f.clock.now().Add(time.Hour)}))
	f.record(1, event.Event{ID: "foreign", Kind: event.Unknown, Account: "a", Diagnostic: "ünï"})
	_, place, err := f.Follow(ctx, "", 2)
	f.must(err)
	f.must(f.SetCursor(ctx, "follower", place))
	f.must(f.SetCursor(ctx, "poll:a", "12345"))

	before := map[string]*Detail{}
	f.reopen() // calls in flight are Ambiguous now, as Transfer will find them
	for _, id := range ids {
		before[id] = f.detail(id)
	}
	evs := f.follow()
	f.must(f.Close())

	o, _ := c.engine(t)
	move := TransferOptions{Dir: dir, URL: o.URL, Now: f.clock.now, Cursor: func(name, value, node string, place func(string) string) (string, string) {
		if name == "follower" {
			return "follower@" + node, place(value)
		}
		return name, value
	}}
	rep, err := Transfer(ctx, move)
	if err != nil {
		t.Fatal(err)
	}
	if rep.Before || rep.Large != 1 || len(rep.Damaged) != 0 {
		t.Errorf("got %+v", rep)
	}

	// No bridge starts here any more; looking is allowed.
	if _, err := Open(ctx, Options{Dir: dir}); !errors.Is(err, ErrMoved) {
		t.Fatalf("the old store opens: %v", err)
	}
	old, err := Open(ctx, Options{Dir: dir, ReadOnly: true})
	f.must(err)
	f.must(old.Close())
	if rep, err := Transfer(ctx, move); err != nil || !rep.Before {
		t.Errorf("a second run: %+v, %v", rep, err)
	}
	other, _ := c.engine(t)
	g := newFixture(t, func(*testing.T) (Options, opener) {
		other.Dir = t.TempDir()
		return other, openPostgresStore
	})
	g.accept("a", "x@example.org")
	g.must(g.Close())
	g2 := newFixture(t, sqliteEngine)
	g2.accept("a", "y@example.org")
	g2.must(g2.Close())
	if _, err := Transfer(ctx, TransferOptions{Dir: g2.o.Dir, URL: other.URL}); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("a database in use was filled: %v", err)
	}
	if s, err := Open(ctx, Options{Dir: g2.o.Dir}); err != nil { // and nothing happened to the source
		t.Errorf("a move that failed: %v", err)
	} else {
		f.must(s.Close())
	}

	o.Dir, o.Now, o.KeepBodies = dir, f.clock.now, time.Hour // the same data directory
	f.Store = openPostgresStore(t, o)
	for _, id := range ids {
		got := f.detail(id)
		for i := range got.Jobs { // a number of its own order
			got.Jobs[i].ID = before[id].Jobs[i].ID
		}
		if !reflect.DeepEqual(got, before[id]) {
			t.Errorf("mail %s:\n got %+v\nwant %+v", id, got, before[id])
		}
	}
	if got := f.follow(); !reflect.DeepEqual(got, evs) {
		t.Errorf("events:\n got %s\nwant %s", kinds(got), kinds(evs))
	}
	place, err = f.Cursor(ctx, "follower@"+f.Node())
	f.must(err)
	if got, _, err := f.Follow(ctx, place, 100); err != nil || len(got) != len(evs)-2 {
		t.Errorf("the follower goes on with %d events of %d: %v", len(got), len(evs), err)
	}
	if got, err := f.Cursor(ctx, "poll:a"); err != nil || got != "12345" {
		t.Errorf("got %q, %v", got, err)
	}
	if s, err := f.Suppressed(ctx, "gone@example.org", "example.com", ""); err != nil || s == nil {
		t.Errorf("got %v, %v", s, err)
	}
	if a, err := f.Accounts(ctx); err != nil || len(a) != 1 || a[0].State != "paused" {
		t.Errorf("got %+v, %v", a, err)
	}

	// The large mail is sent once, the call in flight is Ambiguous, nothing else is due, and new mail gets numbers of its own.
	b, err := f.Body(ctx, m.Envelope.ID)
	f.must(err)
	readBody(t, b, large)
	cl = f.claim("a")
	if cl.Mail.Envelope.ID != m.Envelope.ID {
		t.Errorf("got %s", cl.Mail.Envelope.ID)
	}
	r, ev = sent(cl, 0, "pm-2")
	f.must(f.Settle(ctx, Settlement{Claim: cl, Calls: []CallResult{accepted(f.start(cl, 0), "pm-2")}, Rcpts: []RcptResult{r}, Events: []event.Event{ev}}))
	f.noClaim("a")
	cl = f.claim("b")
	if cl.Mail.Envelope.ID != flying || len(cl.Open) != 1 || cl.Open[0].State != CallAmbiguous || len(cl.Rcpts) != 1 {
		t.Errorf("got %+v", cl)
	}
	f.accept("c", "new@example.org")
	f.claim("c")
	f.wantRcpt(settled, 0, RcptSent, event.Sent)
	if d := f.detail(later); d.Jobs[0].Attempts != 1 || d.Jobs[0].LastError != "try later" {
		t.Errorf("got %+v", d.Jobs[0])
	}
}

// testTransferCutOff fails each statement against the source in turn, the mark among them: whatever happened, the next run gets
// everything across, once.
func testTransferCutOff(t *testing.T, c *cluster) {
	f := newFixture(t, sqliteEngine)
	id := f.accept("a", "one@example.org")
	dir := f.o.Dir
	f.must(f.Close())
	o, _ := c.engine(t)
	ctx, cancel := context.WithCancel(t.Context())
	_, err := Transfer(ctx, TransferOptions{Dir: dir, URL: o.URL, Progress: func(table string, _, _ int) {
		if table == "recipients" {
			cancel()
		}
	}})
	if err == nil {
		t.Fatal("a move that was cut off succeeded")
	}
	s, err := Open(t.Context(), Options{Dir: dir}) // as if nothing had happened
	f.must(err)
	// The process died between the mark and the commit.
	v := &transfer{src: s, o: TransferOptions{URL: o.URL}}
	f.must(v.setMark(t.Context(), &moved{ID: "mark", To: "x"}))
	f.must(s.Close())
	if _, err := Open(t.Context(), Options{Dir: dir}); !errors.Is(err, ErrMoved) {
		t.Fatalf("got %v", err)
	}
	rep, err := Transfer(t.Context(), TransferOptions{Dir: dir, URL: o.URL})
	if err != nil || rep.Before {
		t.Fatalf("got %+v, %v", rep, err)
	}
	o.Dir = t.TempDir()
	f.Store = openPostgresStore(t, o)
	if cl := f.claim("a"); cl.Mail.Envelope.ID != id {
		t.Errorf("got %s", cl.Mail.Envelope.ID)
	}
}
