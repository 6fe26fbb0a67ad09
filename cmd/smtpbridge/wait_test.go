package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers/sandbox/twin"
	"smtpbridge/store"
)

// heldESP speaks the sandbox's protocol and answers each call when and as the test says.
type heldESP struct {
	*httptest.Server
	calls chan *heldCall
	over  chan struct{} // no call is answered any more
}

type heldCall struct {
	rcpts  []string
	answer chan string // a result for every recipient, "break", or an HTTP status with an error code
}

func newHeldESP(t *testing.T) *heldESP {
	e := &heldESP{calls: make(chan *heldCall, 16), over: make(chan struct{})}
	e.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m twin.Message
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Errorf("call: %v", err)
		}
		c := &heldCall{rcpts: m.Recipients, answer: make(chan string, 1)}
		e.calls <- c
		var how string
		select {
		case how = <-c.answer:
		case <-e.over:
			panic(http.ErrAbortHandler)
		}
		switch result, code, isStatus := strings.Cut(how, " "); {
		case how == "break":
			panic(http.ErrAbortHandler)
		case isStatus:
			var status int
			fmt.Sscan(result, &status)
			w.WriteHeader(status)
			fmt.Fprintf(w, `{"error":{"code":%q,"message":"asked for by the test"}}`, code)
		default:
			var res []twin.Result
			for i, a := range m.Recipients {
				res = append(res, twin.Result{Email: a, Result: how, ID: fmt.Sprintf("x%d", i)})
				if how == "rejected" {
					res[i].Status, res[i].Reason, res[i].Message = "5.1.1", "invalid", "no such user here"
				}
			}
			b, _ := json.Marshal(map[string]any{"id": "sb-1", "recipients": res})
			_, _ = w.Write(b)
		}
	}))
	t.Cleanup(e.Close)
	return e
}

// next waits for a call.
func (e *heldESP) next(t *testing.T) *heldCall {
	t.Helper()
	select {
	case c := <-e.calls:
		return c
	case <-time.After(10 * time.Second):
		t.Fatal("no call came")
		return nil
	}
}

// rig is a running bridge of two accounts, a and b, for recipients at a.example and b.example.
type rig struct {
	*Bridge
	t    *testing.T
	dir  string
	file string
	esp  *heldESP
	stop func()

	before func(*Bridge) // changes the bridge before it runs
}

// newRig starts a bridge; listener and more are parts of its configuration.
func newRig(t *testing.T, listener, more string) *rig {
	t.Helper()
	r := &rig{t: t, dir: shortTemp(t), esp: newHeldESP(t)}
	r.write(listener, more)
	r.start()
	return r
}

func (r *rig) write(listener, more string) {
	r.t.Helper()
	r.file = filepath.Join(r.dir, "bridge.toml")
	text := fmt.Sprintf("hostname = \"bridge.example.com\"\ndata_dir = %q\n[webhook]\naddress = \"\"\n[[listener]]\nname = \"l\"\naddress = \"127.0.0.1:0\"\n%s\n", r.dir, listener)
	for _, a := range []string{"a", "b"} {
		text += fmt.Sprintf("[[account]]\nname = %q\nprovider = \"sandbox\"\nbase_url = %q\n[[route]]\nsenders = [\"example.com\"]\nrecipients = [\"%s.example\"]\naccounts = [%q]\n", a, r.esp.URL, a, a)
	}
	if err := os.WriteFile(r.file, []byte(text+more), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) start() {
	r.t.Helper()
	b, err := NewBridge(r.t.Context(), r.file, quiet())
	if err != nil {
		r.t.Fatal(err)
	}
	r.Bridge = b
	if r.before != nil {
		r.before(b)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	stopped := false
	r.stop = func() {
		if stopped {
			return
		}
		stopped = true
		close(r.esp.over)
		cancel()
		if err := <-ran; err != nil {
			r.t.Error(err)
		}
	}
	r.t.Cleanup(r.stop)
}

// talk is one SMTP session on a raw socket.
type talk struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func (r *rig) dial() *talk {
	r.t.Helper()
	conn, err := net.Dial("tcp", r.SMTPAddr("l").String())
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		r.t.Fatal(err)
	}
	c := &talk{conn, r.t, bufio.NewReader(conn)}
	c.want("220 ")
	return c
}

func (c *talk) say(s string) {
	c.t.Helper()
	if _, err := c.Write([]byte(s)); err != nil {
		c.t.Fatal(err)
	}
}

// want reads one reply and compares its beginning.
func (c *talk) want(prefix string) string {
	c.t.Helper()
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			c.t.Fatalf("want %q: %v", prefix, err)
		}
		if len(line) > 3 && line[3] == '-' {
			continue
		}
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, prefix) {
			c.t.Fatalf("got %q, want %q", line, prefix)
		}
		return line
	}
}

func (c *talk) cmd(line, prefix string) string {
	c.t.Helper()
	c.say(line + "\r\n")
	return c.want(prefix)
}

// send gives a whole mail and leaves the reply to be read.
func (c *talk) send(rcpts ...string) {
	c.t.Helper()
	c.cmd("MAIL FROM:<app@example.com>", "250")
	for _, a := range rcpts {
		c.cmd("RCPT TO:<"+a+">", "250")
	}
	c.cmd("DATA", "354")
	c.say("From: app@example.com\r\nTo: someone@a.example\r\nSubject: s\r\n\r\nbody\r\n.\r\n")
}

// mail waits until the newest mail in the store satisfies ok.
func (r *rig) mail(what string, ok func(*store.Detail) bool) *store.Detail {
	r.t.Helper()
	return r.mailID(what, "", ok)
}

// mailID is mail for a queue id.
func (r *rig) mailID(what, id string, ok func(*store.Detail) bool) *store.Detail {
	r.t.Helper()
	signal, stop := r.store.Subscribe(store.TopicQueue)
	defer stop()
	last := "not there"
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		mails, err := r.store.Mails(r.t.Context(), store.Filter{ID: id, Limit: 1})
		if err != nil {
			r.t.Fatal(err)
		}
		if len(mails) == 1 {
			d, err := r.store.Detail(r.t.Context(), mails[0].Envelope.ID)
			if err != nil {
				r.t.Fatal(err)
			}
			if ok(d) {
				return d
			}
			last = fmt.Sprintf("%s (%q) %s", d.Mail.State, d.Mail.HoldReason, rcptStates(d))
		}
		select {
		case <-signal:
		case <-time.After(50 * time.Millisecond):
		}
	}
	r.t.Fatalf("%s: the mail is %s", what, last)
	return nil
}

func rcptStates(d *store.Detail) string {
	var out []string
	for _, r := range d.Rcpts {
		local, _, _ := strings.Cut(r.Addr, "@")
		out = append(out, fmt.Sprintf("%s=%s", local, r.State))
	}
	return strings.Join(out, " ")
}

func anyMail(*store.Detail) bool { return true }

// finals gives the kinds of the queue-final events of one recipient.
func finals(d *store.Detail, addr string) (kinds []event.Kind) {
	for _, e := range d.Events {
		if e.Recipient == addr && (e.Kind == event.Sent || e.Kind == event.Rejected || e.Kind == event.Failed) {
			kinds = append(kinds, e.Kind)
		}
	}
	return kinds
}

const waiting = "accept = \"wait\"\nwait_timeout = \"8s\""

// What the client hears when all first attempts are over, and what stays behind.
func TestAcceptWait(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rcpts   []string
		answers []string // of the calls, in their order; of several accounts the same
		reply   string
		state   store.MailState
		rcpt    string
		purged  bool
	}{
		{"accepted", []string{"x@a.example"}, []string{"accepted"}, "250 2.0.0 Ok: queued as ", store.MailFinished, "x=sent", true},
		{"refused", []string{"x@a.example"}, []string{"rejected"}, "550 5.1.1 no such user here", store.MailFinished, "x=rejected", true},
		{"all of two refused", []string{"x@a.example", "y@b.example"}, []string{"rejected", "rejected"}, "550 5.1.1 no such user here", store.MailFinished, "x=rejected y=rejected", true},
		{"call refused", []string{"x@a.example"}, []string{"422 invalid"}, "550 5.", store.MailFinished, "x=failed", true},
		{"transient", []string{"x@a.example"}, []string{"500 internal"}, "250 2.0.0 ", store.MailQueued, "x=queued", false},
		{"answer lost", []string{"x@a.example"}, []string{"break"}, "250 2.0.0 ", store.MailQueued, "x=in_flight", false},
		{"not taken now, and refused", []string{"x@a.example", "y@b.example"}, []string{"rejected", "500 internal"}, "250 2.0.0 ", store.MailQueued, "", false},
		{"one bad address fails the call, then all are refused alone", []string{"x@a.example", "y@a.example"}, []string{"422 bad_recipient_in_call", "rejected", "rejected"}, "550 5.1.1 no such user here", store.MailFinished, "x=rejected y=rejected", true},
		{"one bad address fails the call, one is taken alone", []string{"x@a.example", "y@a.example"}, []string{"422 bad_recipient_in_call", "rejected", "accepted"}, "250 2.0.0 ", store.MailFinished, "", false},
		{"no route", []string{"x@c.example"}, nil, "550 5.7.1 no route for mail from example.com to <x@c.example>", "", "", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, waiting, "")
			c := r.dial()
			c.cmd("EHLO x", "250")
			c.send(tt.rcpts...)
			for _, a := range tt.answers {
				call := r.esp.next(t)
				if d := r.mail("waiting", anyMail); d.Mail.State == store.MailQueued && !strings.HasPrefix(d.Mail.HoldReason, "unanswered until ") {
					t.Errorf("the mail is not marked while its client waits: %q", d.Mail.HoldReason)
				}
				call.answer <- a
			}
			c.want(tt.reply)
			if tt.state == "" {
				if m, err := r.store.Mails(t.Context(), store.Filter{}); err != nil || len(m) != 0 {
					t.Errorf("a refused mail is stored: %v, %v", m, err)
				}
				return
			}
			d := r.mail("answered", anyMail) // at once: all of it is durable before the reply
			if d.Mail.State != tt.state || d.Mail.HoldReason != "" || tt.rcpt != "" && rcptStates(d) != tt.rcpt || d.Mail.BodyPurged != tt.purged {
				t.Errorf("%s %q %s, body purged %v; want %s %s, %v", d.Mail.State, d.Mail.HoldReason, rcptStates(d), d.Mail.BodyPurged, tt.state, tt.rcpt, tt.purged)
			}
			for _, rc := range d.Rcpts {
				if n := len(finals(d, rc.Addr)); rc.State.Final() != (n == 1) {
					t.Errorf("%s is %s and has %d final events", rc.Addr, rc.State, n)
				}
			}
			c.cmd("NOOP", "250") // the session is usable
		})
	}
}

// When the time is over the client hears 250, and the rest goes on.
func TestAcceptWaitTimeOver(t *testing.T) {
	t.Parallel()
	r := newRig(t, "accept = \"wait\"\nwait_timeout = \"1s\"", "")
	c := r.dial()
	c.cmd("EHLO x", "250")
	c.send("x@a.example")
	call := r.esp.next(t)
	c.want("250 2.0.0 Ok: queued as ")
	if d := r.mail("answered", anyMail); d.Mail.HoldReason != "" || rcptStates(d) != "x=in_flight" {
		t.Errorf("%q %s", d.Mail.HoldReason, rcptStates(d))
	}
	c.Close() // means nothing any more
	call.answer <- "rejected"
	r.mail("refused late", func(d *store.Detail) bool { return rcptStates(d) == "x=rejected" })
}

// A client that leaves will send again: what was not started is dropped, what was started ends as it ends, and is
// not tried again.
func TestAcceptWaitClientGone(t *testing.T) {
	for _, tt := range []struct{ name, answer, want string }{
		{"taken", "accepted", "x=sent y=deleted"},
		{"refused", "rejected", "x=rejected y=deleted"},
		{"not taken now", "500 internal", "x=deleted y=deleted"},
		{"answer lost", "break", "x=in_flight y=deleted"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, waiting, "")
			if err := r.runner.Pause(t.Context(), "b", "test"); err != nil {
				t.Fatal(err)
			}
			c := r.dial()
			c.cmd("EHLO x", "250")
			c.send("x@a.example", "y@b.example")
			call := r.esp.next(t)
			c.Close()
			d := r.mail("abandoned", func(d *store.Detail) bool { return rcptStates(d) == "x=in_flight y=deleted" })
			if got := finals(d, "y@b.example"); !slices.Equal(got, []event.Kind{event.Failed}) || d.Rcpts[1].Detail == "" {
				t.Errorf("events of the dropped recipient: %v, %q", got, d.Rcpts[1].Detail)
			}
			call.answer <- tt.answer
			d = r.mail("ended", func(d *store.Detail) bool {
				return rcptStates(d) == tt.want && (len(d.Attempts) == 1 && d.Attempts[0].State != store.CallOpen)
			})
			if tt.answer == "break" {
				if d.Mail.State != store.MailQueued || len(d.Jobs) != 1 {
					t.Errorf("a lost answer is not followed up: %s, %d jobs", d.Mail.State, len(d.Jobs))
				}
			} else if len(d.Jobs) != 0 || d.Mail.State != store.MailFinished || len(finals(d, "x@a.example")) != 1 {
				t.Errorf("%s, %d jobs, events %v", d.Mail.State, len(d.Jobs), finals(d, "x@a.example"))
			}
		})
	}
}

// Nothing was started: the mail is gone whole.
func TestAcceptWaitClientGoneEarly(t *testing.T) {
	t.Parallel()
	r := newRig(t, waiting, "")
	if err := r.runner.Pause(t.Context(), "a", "test"); err != nil {
		t.Fatal(err)
	}
	c := r.dial()
	c.cmd("EHLO x", "250")
	c.send("x@a.example")
	r.mail("waits", anyMail)
	c.Close()
	d := r.mail("dropped", func(d *store.Detail) bool { return d.Mail.State == store.MailDeleted })
	if !d.Mail.BodyPurged || len(d.Jobs) != 0 || rcptStates(d) != "x=deleted" || len(finals(d, "x@a.example")) != 1 {
		t.Errorf("body purged %v, %d jobs, %s", d.Mail.BodyPurged, len(d.Jobs), rcptStates(d))
	}
	// Answering it now would be a lie.
	if err := r.store.Answer(t.Context(), d.Mail.Envelope.ID); !errors.Is(err, store.ErrStale) {
		t.Errorf("answer: %v", err)
	}
}

// A crash before the reply: what was not started is dropped at the next start, what was started is Ambiguous, and is
// repeated with its key. Mail that was answered goes on.
func TestAcceptWaitCrash(t *testing.T) {
	t.Parallel()
	r := &rig{t: t, dir: shortTemp(t), esp: newHeldESP(t)}
	r.write(waiting, "")
	st, err := store.Open(t.Context(), store.Options{Dir: r.dir})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	commit := func(id, reason string) {
		t.Helper()
		rc, err := st.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := rc.Write([]byte("From: app@example.com\r\nSubject: s\r\n\r\nbody\r\n")); err != nil {
			t.Fatal(err)
		}
		m := store.Mail{HoldReason: reason, FromHeader: "app@example.com", Envelope: envelope.Envelope{
			ID: id, From: "app@example.com", Received: now, Listener: "l", Rcpts: []envelope.Rcpt{{Addr: "x@a.example"}, {Addr: "y@b.example"}},
		}}
		var jobs []store.NewJob
		for i, a := range []string{"a", "b"} {
			jobs = append(jobs, store.NewJob{Route: fmt.Sprintf("route%d", i+1), Accounts: []string{a}, Rcpts: []int{i}, NextAt: now, Expires: now.Add(time.Hour)})
		}
		if err := rc.Commit(t.Context(), m, jobs); err != nil {
			t.Fatal(err)
		}
	}
	unanswered := store.Unanswered(now.Add(time.Hour))
	commit("w1", unanswered)
	claims, err := st.Claim(t.Context(), "a", 1)
	if err != nil || len(claims) != 1 {
		t.Fatalf("claims %v, %v", claims, err)
	}
	if _, err := st.Start(t.Context(), claims[0], []store.Call{{ID: "w1-call", Rcpts: []int{0}, IdempotencyKey: "k1", KeyExpires: now.Add(time.Hour)}}); err != nil {
		t.Fatal(err)
	}
	commit("w2", unanswered)
	commit("w3", unanswered)
	if err := st.Answer(t.Context(), "w3"); err != nil {
		t.Fatal(err)
	}
	if err := st.Close(); err != nil { // changes nothing: what is in memory is lost as in a crash
		t.Fatal(err)
	}

	r.start()
	var got []string
	for range 3 {
		call := r.esp.next(t)
		got = append(got, call.rcpts...)
		call.answer <- "accepted"
	}
	slices.Sort(got)
	if want := []string{"x@a.example", "x@a.example", "y@b.example"}; !slices.Equal(got, want) {
		t.Errorf("sent to %v, want the started call and the answered mail: %v", got, want)
	}
	for id, want := range map[string]string{"w1": "x=sent y=deleted", "w2": "x=deleted y=deleted", "w3": "x=sent y=sent"} {
		d := r.mailID(id+" wants "+want, id, func(d *store.Detail) bool { return rcptStates(d) == want })
		for _, rc := range d.Rcpts {
			if n := len(finals(d, rc.Addr)); n != 1 {
				t.Errorf("%s: %s has %d final events", id, rc.Addr, n)
			}
		}
	}
}

// A shutdown that runs out of time answers with 250: the mail is kept.
func TestAcceptWaitShutdown(t *testing.T) {
	t.Parallel()
	r := newRig(t, waiting, "")
	if err := r.runner.Pause(t.Context(), "a", "test"); err != nil {
		t.Fatal(err)
	}
	tx, err := r.intake.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Write([]byte("From: app@example.com\r\n\r\nbody\r\n")); err != nil {
		t.Fatal(err)
	}
	late, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- tx.Commit(late, envelope.Envelope{ID: "s1", From: "app@example.com", Received: time.Now(), Listener: "l", Rcpts: []envelope.Rcpt{{Addr: "x@a.example"}}})
	}()
	r.mail("committed", anyMail)
	stop()
	if err := <-done; err != nil {
		t.Errorf("got %v", err)
	}
	if d, err := r.store.Detail(t.Context(), "s1"); err != nil || d.Mail.HoldReason != "" || d.Mail.State != store.MailQueued {
		t.Errorf("%+v, %v", d, err)
	}
}

// Over LMTP each recipient has its own reply, with the preflight's refusal or the ESP's.
func TestLMTP(t *testing.T) {
	t.Parallel()
	r := newRig(t, "protocol = \"lmtp\"", "")
	c := r.dial()
	c.cmd("EHLO x", "500")
	c.cmd("LHLO x", "250")
	c.send("x@a.example", "z@c.example", "X@a.example", "x@A.example", "w@d.example")
	c.want("250 2.0.0 <x@a.example> Ok: queued as ")
	c.want("550 5.7.1 <z@c.example> no route for mail from example.com to <z@c.example>")
	c.want("250 2.0.0 <X@a.example> Ok: queued as ")
	c.want("250 2.0.0 <x@A.example> Ok: queued as ")
	c.want("550 5.7.1 <w@d.example> no route for mail from example.com to <w@d.example>")
	call := r.esp.next(t)
	call.answer <- "accepted"
	d := r.mail("sent", func(d *store.Detail) bool { return d.Mail.State == store.MailFinished })
	if got := rcptStates(d); got != "x=sent z=rejected X=sent w=rejected" {
		t.Errorf("ledger %s", got)
	}
	// The client has been told in the reply: no mail about it.
	if n := d.Rcpts[1].Notify; !slices.Equal(n, []string{"NEVER"}) || d.Rcpts[0].Notify != nil {
		t.Errorf("notify %v, %v", n, d.Rcpts[0].Notify)
	}
	// Nobody can be served: each hears his own reason, and nothing is kept.
	c.send("z@c.example", "w@d.example")
	c.want("550 5.7.1 <z@c.example> no route for mail from example.com to <z@c.example>")
	c.want("550 5.7.1 <w@d.example> no route for mail from example.com to <w@d.example>")
	if m, err := r.store.Mails(t.Context(), store.Filter{}); err != nil || len(m) != 1 {
		t.Errorf("%d mails, %v", len(m), err)
	}
	c.cmd("NOOP", "250")
}

func TestLMTPWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, "protocol = \"lmtp\"\n"+waiting, "")
	c := r.dial()
	c.cmd("LHLO x", "250")
	c.send("x@a.example", "z@c.example", "y@b.example")
	for range 2 {
		call := r.esp.next(t)
		if call.rcpts[0] == "x@a.example" {
			call.answer <- "rejected"
		} else {
			call.answer <- "500 internal"
		}
	}
	c.want("550 5.1.1 <x@a.example> no such user here")
	c.want("550 5.7.1 <z@c.example> no route")
	c.want("250 2.0.0 <y@b.example> Ok: queued as ")
	c.send("x@a.example", "z@c.example")
	r.esp.next(t).answer <- "rejected"
	c.want("550 5.1.1 <x@a.example> no such user here")
	c.want("550 5.7.1 <z@c.example> no route")
	c.cmd("NOOP", "250")
}

// check says what a waiting client will not be told by mail.
func TestCheckWarnsWithoutDSN(t *testing.T) {
	r := &rig{t: t, dir: shortTemp(t), esp: newHeldESP(t)}
	r.write(waiting, "")
	c := checkCommand()
	var out, errs strings.Builder
	c.SetOut(&out)
	c.SetErr(&errs)
	c.SetArgs([]string{"-c", r.file})
	if err := c.Execute(); err != nil {
		t.Fatal(err)
	}
	if want := "warning: listener[0].accept: is \"wait\" without [dsn] account"; !strings.Contains(errs.String(), want) {
		t.Errorf("got %q, want %q", errs.String(), want)
	}
}
