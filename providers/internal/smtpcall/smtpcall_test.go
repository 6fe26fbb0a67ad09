package smtpcall_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/smtpcall"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

// server is a scripted SMTP or LMTP server: reply gives the answer to a line, "" is the usual one, and
// what names an act: CLOSE, STALL, TLS.
type server struct {
	reply func(line string) string
	dot   []string // answers to the final dot
	tls   *tls.Config
	ext   []string

	mu    sync.Mutex
	lines []string
	body  string
}

func (s *server) start(t *testing.T, network string) string {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = t.TempDir() + "/s"
	}
	l, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); s.talk(t.Context(), c) }()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func (s *server) talk(ctx context.Context, c net.Conn) {
	r := bufio.NewReader(c)
	say := func(text string) { fmt.Fprintf(c, "%s\r\n", strings.ReplaceAll(text, "\n", "\r\n")) }
	act := func(text string) bool {
		switch text {
		case "CLOSE":
			return true
		case "STALL":
			<-ctx.Done()
			return true
		}
		say(text)
		return false
	}
	answer := func(line, usual string) bool {
		if s.reply != nil {
			if a := s.reply(line); a != "" {
				return act(a)
			}
		}
		return act(usual)
	}
	if answer("GREETING", "220 test ESMTP") {
		return
	}
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		s.mu.Lock()
		s.lines = append(s.lines, line)
		s.mu.Unlock()
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO", "LHLO":
			text := "250-test"
			for _, e := range s.ext {
				text += "\n250-" + e
			}
			if answer(line, text+"\n250 ENHANCEDSTATUSCODES") {
				return
			}
		case "STARTTLS":
			say("220 go")
			tc := tls.Server(c, s.tls)
			if tc.Handshake() != nil {
				return
			}
			c, r = tc, bufio.NewReader(tc)
			s.mu.Lock()
			s.ext = slices.DeleteFunc(slices.Clone(s.ext), func(e string) bool { return e == "STARTTLS" })
			s.mu.Unlock()
		case "AUTH":
			if answer(line, "235 2.7.0 welcome") {
				return
			}
		case "DATA":
			if s.reply != nil {
				if a := s.reply(line); a != "" {
					if act(a) {
						return
					}
					continue
				}
			}
			say("354 go")
			var b strings.Builder
			for {
				l, err := r.ReadString('\n')
				if err != nil {
					return
				}
				if l == ".\r\n" {
					break
				}
				b.WriteString(l)
			}
			s.mu.Lock()
			s.body = b.String()
			s.mu.Unlock()
			for _, a := range s.dot {
				if act(a) {
					return
				}
			}
		case "QUIT":
			say("221 bye")
			return
		default:
			if answer(line, "250 2.1.0 ok") {
				return
			}
		}
	}
}

func (s *server) said() (lines []string, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.lines), s.body
}

func plan(t *testing.T, from string, rcpts ...string) *translate.Mail {
	t.Helper()
	return providertest.Message{Name: "m", From: from, Rcpts: rcpts, EML: "From: a@example.com\r\nTo: x@example.org\r\nBcc: hidden@example.org\r\nSubject: s\r\n\r\n.dot\r\nline\r\n"}.Plan(t, smtpcall.Capabilities())[0]
}

func target(addr string) *smtpcall.Server {
	return &smtpcall.Server{
		Provider: "smtp", Network: "tcp", Addr: addr, Host: "example.com", Hello: "bridge.example.com", Local: true,
		Timeout: 2 * time.Second, AnswerTimeout: 300 * time.Millisecond,
	}
}

func on(prefix, answer string) func(string) string {
	return func(line string) string {
		if strings.HasPrefix(line, prefix) {
			return answer
		}
		return ""
	}
}

// TestWholeCall is about what ends a call for all of its recipients.
func TestWholeCall(t *testing.T) {
	for _, tt := range []struct {
		name   string
		server *server
		user   string
		kind   providers.Kind
		scope  providers.Scope
		status string
	}{
		{"greeting 554", &server{reply: on("GREETING", "554 5.7.1 go away")}, "", providers.Operator, 0, "5.7.1"},
		{"greeting 421", &server{reply: on("GREETING", "421 4.3.2 busy")}, "", providers.Transient, 0, "4.3.2"},
		{"closed at once", &server{reply: on("GREETING", "CLOSE")}, "", providers.Transient, 0, ""},
		{"not SMTP", &server{reply: on("GREETING", "HTTP/1.1 400 Bad Request")}, "", providers.Transient, 0, ""},
		{"AUTH refused", &server{ext: []string{"AUTH PLAIN"}, reply: on("AUTH", "535 5.7.8 no")}, "me", providers.Operator, 0, "5.7.8"},
		{"AUTH not now", &server{ext: []string{"AUTH PLAIN"}, reply: on("AUTH", "454 4.7.0 later")}, "me", providers.Transient, 0, "4.7.0"},
		{"AUTH needed", &server{reply: on("MAIL", "530 5.7.0 log in")}, "", providers.Operator, 0, "5.7.0"},
		{"sender domain", &server{reply: on("MAIL", "550 5.7.1 not your domain")}, "", providers.Operator, providers.ScopeDomain, "5.7.1"},
		{"sender refused", &server{reply: on("MAIL", "550 5.1.8 bad sender")}, "", providers.Permanent, 0, "5.1.8"},
		{"too big", &server{reply: on("MAIL", "552 5.3.4 too big")}, "", providers.Permanent, 0, "5.3.4"},
		{"disk full there", &server{reply: on("MAIL", "452 4.3.1 disk")}, "", providers.Transient, 0, "4.3.1"},
		{"dialogue", &server{reply: on("MAIL", "503 5.5.1 order")}, "", providers.Transient, 0, "5.5.1"},
		{"closing at RCPT", &server{reply: on("RCPT", "421 4.3.2 bye")}, "", providers.Transient, 0, "4.3.2"},
		{"lost at RCPT", &server{reply: on("RCPT", "CLOSE")}, "", providers.Transient, 0, ""},
		{"lost at DATA", &server{reply: on("DATA", "CLOSE")}, "", providers.Transient, 0, ""},
		{"lost after the dot", &server{dot: []string{"CLOSE"}}, "", providers.Ambiguous, 0, ""},
		{"no answer to the dot", &server{dot: []string{"STALL"}}, "", providers.Ambiguous, 0, ""},
		{"endless reply", &server{reply: on("MAIL", strings.Repeat("250-x\n", 300_000)+"250 x")}, "", providers.Transient, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := target(tt.server.start(t, "tcp"))
			s.User, s.Password = tt.user, secret.New("canary-password")
			_, err := s.Deliver(t.Context(), plan(t, "a@example.com", "x@example.org", "y@example.org"))
			var e *providers.Error
			if !errors.As(err, &e) {
				t.Fatalf("got %v", err)
			}
			if e.Kind != tt.kind || e.Scope != tt.scope || e.Status != tt.status {
				t.Errorf("got %v (scope %v, status %q), want %v (%v, %q)", e, e.Scope, e.Status, tt.kind, tt.scope, tt.status)
			}
			if strings.Contains(err.Error(), "canary") {
				t.Errorf("the password is in %v", err)
			}
		})
	}
}

// TestPerRecipient is about replies to single recipients.
func TestPerRecipient(t *testing.T) {
	byRcpt := func(line string) string {
		switch {
		case strings.Contains(line, "no@"):
			return "550 5.1.1 <no@example.org> unknown"
		case strings.Contains(line, "later@"):
			return "451 4.7.1 greylisted"
		}
		return ""
	}
	for _, tt := range []struct {
		name    string
		server  *server
		verdict []providers.Verdict // of ok, no, later
		kind    providers.Kind      // of ok
	}{
		{"taken", &server{reply: byRcpt, dot: []string{"250 2.0.0 Ok: queued as 4F2A1B"}}, []providers.Verdict{providers.Accepted, providers.Rejected, providers.Deferred}, 0},
		{"refused at the dot", &server{reply: byRcpt, dot: []string{"554 5.7.1 spam"}}, []providers.Verdict{providers.Rejected, providers.Rejected, providers.Deferred}, 0},
		{"not now at the dot", &server{reply: byRcpt, dot: []string{"451 4.3.0 later"}}, []providers.Verdict{providers.Deferred, providers.Rejected, providers.Deferred}, providers.Transient},
		{"lost after the dot", &server{reply: byRcpt, dot: []string{"CLOSE"}}, []providers.Verdict{providers.Deferred, providers.Rejected, providers.Deferred}, providers.Ambiguous},
		{"refused at DATA", &server{reply: func(l string) string {
			if l == "DATA" {
				return "554 5.5.1 no"
			}
			return byRcpt(l)
		}}, []providers.Verdict{providers.Rejected, providers.Rejected, providers.Deferred}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := target(tt.server.start(t, "tcp")).Deliver(t.Context(), plan(t, "a@example.com", "ok@example.org", "no@example.org", "later@example.org"))
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range out.Rcpts {
				if r.Verdict != tt.verdict[i] {
					t.Errorf("%s: got %d (%s), want %d", r.Addr, r.Verdict, r.Detail, tt.verdict[i])
				}
			}
			if out.Rcpts[0].Verdict == providers.Deferred && out.Rcpts[0].Kind != tt.kind {
				t.Errorf("got kind %v, want %v", out.Rcpts[0].Kind, tt.kind)
			}
			if no := out.Rcpts[1]; no.Status != "5.1.1" || no.Reason != event.ReasonInvalid || !strings.Contains(no.Detail, "550 5.1.1") {
				t.Errorf("got %+v", no)
			}
			if tt.name == "taken" && out.MessageID != "4F2A1B" {
				t.Errorf("got MessageID %q", out.MessageID)
			}
		})
	}
}

// TestWhatIsSent checks the dialogue: envelope, DSN parameters, dots, nothing hidden.
func TestWhatIsSent(t *testing.T) {
	srv := &server{ext: []string{"8BITMIME", "SIZE 1000000", "DSN", "SMTPUTF8"}, dot: []string{"250 ok"}}
	s := target(srv.start(t, "tcp"))
	m := plan(t, "", "x@example.org", "jürgen@exämple.org")
	m.Env.EnvID, m.Env.Ret = "id+1", "HDRS"
	m.Rcpts[0].Notify, m.Rcpts[0].ORCPT = []string{"FAILURE", "DELAY"}, "rfc822;old@example.org"
	if _, err := s.Deliver(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	lines, body := srv.said()
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		"EHLO bridge.example.com", "MAIL FROM:<> BODY=8BITMIME SIZE=", " SMTPUTF8", "RET=HDRS ENVID=id+2B1",
		"RCPT TO:<x@example.org> NOTIFY=FAILURE,DELAY ORCPT=RFC822;old@example.org", "RCPT TO:<jürgen@exämple.org>",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	if strings.Contains(body, "hidden@") || !strings.Contains(body, "\r\n\r\n..dot\r\nline\r\n") {
		t.Errorf("got body %q", body)
	}
}

// TestNoSMTPUTF8 rejects only whom the server cannot name.
func TestNoSMTPUTF8(t *testing.T) {
	srv := &server{dot: []string{"250 ok"}}
	out, err := target(srv.start(t, "tcp")).Deliver(t.Context(), plan(t, "a@exämple.com", "jürgen@example.org", "plain@exämple.org"))
	if err != nil {
		t.Fatal(err)
	}
	if out.Rcpts[0].Verdict != providers.Rejected || out.Rcpts[0].Status != "5.6.7" || out.Rcpts[1].Verdict != providers.Accepted {
		t.Errorf("got %+v", out.Rcpts)
	}
	lines, _ := srv.said()
	if all := strings.Join(lines, "\n"); !strings.Contains(all, "RCPT TO:<plain@xn--exmple-cua.org>") || !strings.Contains(all, "a@xn--exmple-cua.com") {
		t.Errorf("got\n%s", all)
	}
}

// TestTLS keeps mail and password in the dark, with a certificate that is checked.
func TestTLS(t *testing.T) {
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	cert, pool := web.TLS.Certificates[0], x509.NewCertPool()
	pool.AddCert(web.Certificate())
	web.Close()
	trusted := &tls.Config{RootCAs: pool}
	for _, tt := range []struct {
		name   string
		mode   smtpcall.TLS
		offer  bool
		config *tls.Config
		user   string
		remote bool
		kind   providers.Kind // Unknown = delivered
		secure bool
	}{
		{"required and offered", smtpcall.StartTLS, true, trusted, "", true, 0, true},
		{"required, not offered", smtpcall.StartTLS, false, trusted, "", true, providers.Transient, false},
		{"unknown authority", smtpcall.StartTLS, true, &tls.Config{}, "", true, providers.Transient, false},
		{"if offered, offered", smtpcall.IfOffered, true, trusted, "me", true, 0, true},
		{"if offered, not offered", smtpcall.IfOffered, false, trusted, "", true, 0, false},
		{"password without TLS", smtpcall.IfOffered, false, trusted, "me", true, providers.Operator, false},
		{"password to this machine", smtpcall.Off, false, trusted, "me", false, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &server{dot: []string{"250 ok"}, tls: &tls.Config{Certificates: []tls.Certificate{cert}}, ext: []string{"AUTH PLAIN"}}
			if tt.offer {
				srv.ext = append(srv.ext, "STARTTLS")
			}
			s := target(srv.start(t, "tcp"))
			s.TLS, s.Config, s.User, s.Local, s.Password = tt.mode, tt.config, tt.user, !tt.remote, secret.New("pass-word")
			_, err := s.Deliver(t.Context(), plan(t, "a@example.com", "x@example.org"))
			if tt.kind == providers.Unknown && err != nil || tt.kind != providers.Unknown && providers.KindOf(err) != tt.kind {
				t.Fatalf("got %v, want %v", err, tt.kind)
			}
			lines, _ := srv.said()
			if got := slices.Contains(lines, "STARTTLS"); err == nil && got != tt.secure {
				t.Errorf("STARTTLS: %v in %q", got, lines)
			}
			if err != nil && strings.Contains(strings.Join(lines, "\n"), "AUTH") {
				t.Errorf("the password was sent: %q", lines)
			}
		})
	}
}

// TestLMTP gives each recipient his own answer.
func TestLMTP(t *testing.T) {
	for _, tt := range []struct {
		name string
		dot  []string
		want []providers.Verdict
		kind providers.Kind
	}{
		{"all", []string{"250 2.0.0 ok", "250 2.0.0 ok"}, []providers.Verdict{providers.Accepted, providers.Accepted}, 0},
		{"one each", []string{"250 2.0.0 ok", "552 5.2.2 full"}, []providers.Verdict{providers.Accepted, providers.Rejected}, 0},
		{"one not now", []string{"452 4.2.2 full", "250 2.0.0 ok"}, []providers.Verdict{providers.Deferred, providers.Accepted}, providers.Transient},
		{"lost between", []string{"250 2.0.0 ok", "CLOSE"}, []providers.Verdict{providers.Accepted, providers.Deferred}, providers.Ambiguous},
		{"refused, then lost", []string{"550 5.1.1 no", "CLOSE"}, []providers.Verdict{providers.Rejected, providers.Deferred}, providers.Ambiguous},
	} {
		t.Run(tt.name, func(t *testing.T) {
			srv := &server{dot: tt.dot}
			s := target(srv.start(t, "unix"))
			s.Network, s.LMTP = "unix", true
			out, err := s.Deliver(t.Context(), plan(t, "a@example.com", "one@example.org", "two@example.org"))
			if err != nil {
				t.Fatal(err)
			}
			for i, r := range out.Rcpts {
				if r.Verdict != tt.want[i] || r.Verdict == providers.Deferred && r.Kind != tt.kind {
					t.Errorf("%s: got %d, %v (%s)", r.Addr, r.Verdict, r.Kind, r.Detail)
				}
			}
		})
	}
	srv := &server{dot: []string{"CLOSE"}}
	s := target(srv.start(t, "unix"))
	s.Network, s.LMTP = "unix", true
	if _, err := s.Deliver(t.Context(), plan(t, "a@example.com", "one@example.org", "two@example.org")); providers.KindOf(err) != providers.Ambiguous {
		t.Errorf("all lost: got %v", err)
	}
}

func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	srv := &server{reply: func(line string) string {
		if strings.HasPrefix(line, "RCPT") {
			cancel()
			return "STALL"
		}
		return ""
	}}
	_, err := target(srv.start(t, "tcp")).Deliver(ctx, plan(t, "a@example.com", "x@example.org"))
	if providers.KindOf(err) != providers.Transient || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if err := target(srv.start(t, "tcp")).Check(t.Context()); err != nil {
		t.Errorf("Check: %v", err)
	}
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	addr := l.Addr().String()
	l.Close()
	if _, err := target(addr).Deliver(t.Context(), plan(t, "a@example.com", "x@example.org")); providers.KindOf(err) != providers.Transient {
		t.Errorf("refused: got %v", err)
	}
}
