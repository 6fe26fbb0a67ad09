package smtp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/envelope"
)

// fakeIntake keeps what was committed.
type fakeIntake struct {
	mu     sync.Mutex
	mails  []mail
	open   int // transactions begun and not ended
	begun  int
	begin  func() error
	write  func([]byte) error
	commit func(ctx context.Context, e envelope.Envelope) error
	each   map[string]*Refusal
}

type mail struct {
	env  envelope.Envelope
	body string
}

type fakeTx struct {
	in  *fakeIntake
	buf bytes.Buffer
}

func (f *fakeIntake) Begin(context.Context) (Transaction, error) {
	if f.begin != nil {
		if err := f.begin(); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open++
	f.begun++
	return &fakeTx{in: f}, nil
}

func (t *fakeTx) Write(p []byte) (int, error) {
	if t.in.write != nil {
		if err := t.in.write(p); err != nil {
			return 0, err
		}
	}
	return t.buf.Write(p)
}

func (t *fakeTx) Commit(ctx context.Context, e envelope.Envelope) error {
	t.end()
	if t.in.commit != nil {
		if err := t.in.commit(ctx, e); err != nil {
			return err
		}
	}
	t.in.mu.Lock()
	defer t.in.mu.Unlock()
	t.in.mails = append(t.in.mails, mail{e, t.buf.String()})
	return nil
}

func (t *fakeTx) Abort() { t.end() }

func (t *fakeTx) RcptRefusals() map[string]*Refusal { return t.in.each }

func (t *fakeTx) end() {
	t.in.mu.Lock()
	defer t.in.mu.Unlock()
	t.in.open--
}

func (f *fakeIntake) got() []mail {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]mail(nil), f.mails...)
}

// logBuffer is a log that tests can search.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// fixture is a running server with one listener called "in".
type fixture struct {
	t      testing.TB
	srv    *Server
	intake *fakeIntake
	log    *logBuffer
	done   chan error
}

func baseConfig(in *fakeIntake, log *logBuffer) Config {
	return Config{
		Hostname: "bridge.example.com",
		Intake:   in,
		Log:      slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Listeners: []Listener{{
			Name: "in", Address: "127.0.0.1:0", Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")},
		}},
	}
}

// start runs a server; edit changes its configuration before.
func start(t testing.TB, edit func(*Config, *Listener)) *fixture {
	t.Helper()
	f := &fixture{t: t, intake: &fakeIntake{}, log: &logBuffer{}, done: make(chan error, 1)}
	c := baseConfig(f.intake, f.log)
	if edit != nil {
		edit(&c, &c.Listeners[0])
	}
	srv, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	srv.authDelay = 20 * time.Millisecond
	f.srv = srv
	if err := srv.Listen(); err != nil {
		t.Fatal(err)
	}
	go func() { f.done <- srv.Serve(context.Background()) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = srv.Shutdown(ctx)
		<-f.done
		f.intake.mu.Lock()
		defer f.intake.mu.Unlock()
		if f.intake.open != 0 {
			t.Errorf("%d transactions were neither committed nor aborted", f.intake.open)
		}
	})
	return f
}

func (f *fixture) wantLog(parts ...string) {
	f.t.Helper()
	text := ""
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		text = f.log.String()
		for _, line := range strings.Split(text, "\n") {
			ok := true
			for _, p := range parts {
				ok = ok && strings.Contains(line, p)
			}
			if ok {
				return
			}
		}
		time.Sleep(2 * time.Millisecond)
	}
	f.t.Errorf("no log line with %q in:\n%s", parts, text)
}

func (f *fixture) wantMails(n int) []mail {
	f.t.Helper()
	got := f.intake.got()
	if len(got) != n {
		f.t.Fatalf("got %d mails, want %d: %+v", len(got), n, got)
	}
	return got
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

// client is a raw socket.
type client struct {
	t  testing.TB
	c  net.Conn
	br *bufio.Reader
}

func (f *fixture) dial() *client {
	f.t.Helper()
	a := f.srv.Addr("in")
	c, err := net.Dial(a.Network(), a.String())
	if err != nil {
		f.t.Fatal(err)
	}
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	f.t.Cleanup(func() { _ = c.Close() })
	return &client{t: f.t, c: c, br: bufio.NewReader(c)}
}

// hello dials, reads the greeting and says EHLO.
func (f *fixture) hello() *client {
	f.t.Helper()
	c := f.dial()
	c.want("220 ")
	c.cmd("EHLO client.example.org", "250")
	return c
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.c, s); err != nil {
		c.t.Fatalf("send: %v", err)
	}
}

// reply reads one reply, several lines joined by \n.
func (c *client) reply() string {
	c.t.Helper()
	var lines []string
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			c.t.Fatalf("read reply: %v, after %q", err, append(lines, line))
		}
		line = strings.TrimSuffix(line, "\r\n")
		lines = append(lines, line)
		if len(line) < 4 || line[3] == ' ' {
			return strings.Join(lines, "\n")
		}
	}
}

func (c *client) want(prefix string) string {
	c.t.Helper()
	got := c.reply()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("reply %q, want %q", got, prefix)
	}
	return got
}

func (c *client) cmd(line, prefix string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	got := c.reply()
	if !strings.HasPrefix(got, prefix) {
		c.t.Fatalf("%.80q: reply %q, want %q", line, got, prefix)
	}
	return got
}

// wantClosed expects the server to end the connection without another byte.
func (c *client) wantClosed() {
	c.t.Helper()
	b, err := io.ReadAll(c.br)
	if len(b) > 0 || err != nil && !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		c.t.Fatalf("want a closed connection, got %q, %v", b, err)
	}
}

func (c *client) envelope(rcpts ...string) {
	c.t.Helper()
	if len(rcpts) == 0 {
		rcpts = []string{"to@example.net"}
	}
	c.cmd("MAIL FROM:<from@example.com>", "250 2.1.0")
	for _, r := range rcpts {
		c.cmd("RCPT TO:<"+r+">", "250 2.1.5")
	}
}

// data sends a message that is dot-stuffed already, without the end mark.
func (c *client) data(msg, prefix string) string {
	c.t.Helper()
	c.cmd("DATA", "354")
	c.send(msg + "\r\n.\r\n")
	return c.want(prefix)
}

const plainMail = "From: from@example.com\r\nDate: Mon, 23 Nov 2026 00:00:00 +0000\r\nMessage-ID: <1@example.com>\r\nSubject: hi\r\n\r\nbody"

// afterReceived cuts the fields we added off the stored bytes.
func afterReceived(t testing.TB, stored string) string {
	t.Helper()
	if !strings.HasPrefix(stored, "Received: from ") {
		t.Fatalf("stored bytes do not begin with our Received field: %.200q", stored)
	}
	for {
		_, rest, ok := strings.Cut(stored, "\r\n")
		if !ok {
			return ""
		}
		stored = rest
		if !strings.HasPrefix(rest, "\t") {
			return rest
		}
	}
}

var certOnce = sync.OnceValues(func() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bridge.example.com"}, DNSNames: []string{"bridge.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
})

func serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	cert, err := certOnce()
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}

func clientTLS(t testing.TB) *tls.Config {
	t.Helper()
	cert, err := certOnce()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{RootCAs: pool, ServerName: "bridge.example.com"}
}

// secure makes the client's end TLS.
func (c *client) secure() {
	c.t.Helper()
	tc := tls.Client(c.c, clientTLS(c.t))
	if err := tc.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	c.c, c.br = tc, bufio.NewReader(tc)
}
