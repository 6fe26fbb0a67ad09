package smtp

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
)

// endVariants are the ends of data that some servers take besides CRLF.CRLF
// (https://github.com/hannob/smtpsmug).
var endVariants = map[string]string{
	"LF.LF": "\n.\n", "CR.CR": "\r.\r", "CR.LF": "\r.\n", "LF.CR": "\n.\r", "LF.CRLF": "\n.\r\n",
	"CRLF.LF": "\r\n.\n", "CR.CRLF": "\r.\r\n", "CRLF.CR": "\r\n.\r", "CRLF NUL.CRLF": "\r\n\x00.\r\n", "CRLF.NUL CRLF": "\r\n.\x00\r\n",
}

const smuggled = "MAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\nFrom: evil@example.com\r\n\r\nsmuggled"

func TestCase001_Smuggling(t *testing.T) {
	for name, end := range endVariants {
		for _, mode := range []string{Normalize, Reject} {
			t.Run(name+" "+mode, func(t *testing.T) {
				f := start(t, func(_ *Config, l *Listener) { l.BareNewlines = mode })
				c := f.hello()
				c.envelope()
				want := "250 2.0.0 Ok: queued as "
				if mode == Reject {
					want = "550 5.5.2"
				}
				c.data("Subject: x\r\n\r\nbefore"+end+smuggled, want)
				c.cmd("NOOP", "250")
				if mode == Reject {
					f.wantMails(0)
					f.wantLog(logReject, "reason=bare_newline")
					return
				}
				m := f.wantMails(1)[0]
				if !strings.Contains(m.body, "smuggled") || len(m.env.Rcpts) != 1 {
					t.Errorf("the text after the false end is not part of the one mail: %+v", m)
				}
				checkCRLF(t, m.body)
				if strings.Contains(m.body, "\x00") {
					t.Error("a NUL was kept")
				}
				if !strings.Contains(end, "\x00") {
					f.wantLog(logBareNewline, "action=normalized")
				}
			})
		}
	}
}

func checkCRLF(t *testing.T, s string) {
	t.Helper()
	if bare := strings.ReplaceAll(s, "\r\n", ""); strings.ContainsAny(bare, "\r\n") {
		t.Errorf("bare newlines in stored bytes: %q", s)
	}
}

func TestCase002_CRCRLF(t *testing.T) {
	for name, end := range map[string]string{"CRLF.CRCRLF": "\r\n.\r\r\n", "CRCRLF.CRCRLF": "\r\r\n.\r\r\n"} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			c := f.hello()
			c.envelope()
			c.data("Subject: x\r\n\r\nbefore"+end+smuggled, "250")
			c.cmd("NOOP", "250")
			m := f.wantMails(1)[0]
			checkCRLF(t, m.body)
			if !strings.Contains(m.body, "before\r\n.\r\nMAIL FROM") {
				t.Errorf("the line with a dot was lost: %q", m.body)
			}
		})
	}
}

func startTLSFixture(t *testing.T, edit func(*Config, *Listener)) *fixture {
	return start(t, func(c *Config, l *Listener) {
		l.TLS, l.TLSConfig = TLSStartTLS, serverTLS(t)
		if edit != nil {
			edit(c, l)
		}
	})
}

func TestCase003_StartTLSInjection(t *testing.T) {
	f := startTLSFixture(t, nil)
	c := f.hello()
	c.send("STARTTLS\r\nEHLO evil\r\nMAIL FROM:<evil@example.com>\r\nRCPT TO:<victim@example.net>\r\n")
	c.want("220 ")
	c.secure()
	c.cmd("NOOP", "250 2.0.0")
	c.cmd("RCPT TO:<victim@example.net>", "503 5.5.1")
	c.cmd("MAIL FROM:<a@example.com>", "503 5.5.1") // EHLO is needed again
	c.cmd("QUIT", "221 2.0.0")
	c.wantClosed()
	f.wantLog(logInjection, "dropped_bytes=71")
}

func TestCase004_StartTLSFailure(t *testing.T) {
	for name, send := range map[string]string{
		"clear text instead": "EHLO x\r\nMAIL FROM:<a@example.com>\r\nRCPT TO:<b@example.net>\r\n",
		"junk record":        "\x16\x03\x01\x00\x05junk!",
	} {
		t.Run(name, func(t *testing.T) {
			f := startTLSFixture(t, nil)
			c := f.hello()
			c.cmd("STARTTLS", "220")
			c.send(send)
			for { // an alert record may come, but never a reply
				line, err := c.br.ReadString('\n')
				if strings.HasPrefix(line, "2") || strings.HasPrefix(line, "5") {
					t.Fatalf("clear text went on with %q", line)
				}
				if err != nil {
					break
				}
			}
			f.wantLog(logTLSFailed)
		})
	}
}

func TestCase005_StartTLSTwiceAndState(t *testing.T) {
	f := startTLSFixture(t, func(c *Config, l *Listener) {
		c.Users = []User{{Name: "crm", Password: secret.New("s3cret")}}
		l.Auth, l.InsecureAuth = AuthOptional, true
		l.Allow = nil
	})
	c := f.hello()
	c.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "235 2.7.0")
	c.envelope()
	c.cmd("STARTTLS", "220")
	c.secure()
	c.cmd("RCPT TO:<b@example.net>", "503")
	ehlo := c.cmd("EHLO x", "250")
	if strings.Contains(ehlo, "STARTTLS") || !strings.Contains(ehlo, "AUTH PLAIN LOGIN") {
		t.Errorf("after STARTTLS: %q", ehlo)
	}
	c.cmd("STARTTLS", "503 5.5.1")
	c.cmd("MAIL FROM:<a@example.com>", "530 5.7.0") // the login is forgotten
	c.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "235")
	c.envelope()
	c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	if !strings.Contains(m.body, " with ESMTPSA id ") || m.env.AuthUser != "crm" {
		t.Errorf("not recorded as TLS with AUTH: %+v", m)
	}
}

func TestCase006_BareLFCommands(t *testing.T) {
	t.Run("normalize", func(t *testing.T) {
		f := start(t, nil)
		c := f.dial()
		c.want("220")
		c.send("EHLO x\nMAIL FROM:<a@example.com>\nRCPT TO:<b@example.net>\n")
		c.want("250")
		c.want("250 2.1.0")
		c.want("250 2.1.5")
		if n := strings.Count(f.log.String(), logBareNewline); n != 1 {
			t.Errorf("%d log lines, want one per session", n)
		}
	})
	t.Run("reject", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.BareNewlines = Reject })
		c := f.dial()
		c.want("220")
		c.send("EHLO x\n")
		c.want("500 5.5.2")
		c.cmd("EHLO x", "250")
	})
}

func TestCase007_BareCRInBody(t *testing.T) {
	for mode, want := range map[string]string{Normalize: "250", Reject: "550 5.5.2"} {
		t.Run(mode, func(t *testing.T) {
			f := start(t, func(_ *Config, l *Listener) { l.BareNewlines = mode })
			c := f.hello()
			c.envelope()
			c.data("Subject: x\r\n\r\none\rtwo\r", want)
			if mode == Normalize {
				if m := f.wantMails(1)[0]; !strings.HasSuffix(m.body, "\r\n\r\none\r\ntwo\r\n") {
					t.Errorf("stored %q", m.body)
				}
			}
		})
	}
}

func TestCase008_LFDotLFThenSilence(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.DataTimeout = 50 * time.Millisecond })
	c := f.hello()
	c.envelope()
	c.cmd("DATA", "354")
	c.send("Subject: x\n\nbody\n.\n")
	if got := c.want("451 4.4.2"); !strings.Contains(got, "CRLF") {
		t.Errorf("no hint in %q", got)
	}
	c.wantClosed()
	f.wantMails(0)
	f.wantLog(logDataTimeout, "tail=LF.LF")
}

func TestCase009_EarlyTalker(t *testing.T) {
	t.Run("default", func(t *testing.T) {
		f := start(t, nil)
		c := f.dial()
		c.send("EHLO x\r\n")
		c.want("220")
		c.want("250")
	})
	t.Run("greet_wait", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.GreetWait = 5 * time.Second })
		c := f.dial()
		c.send("EHLO x\r\n")
		c.want("554 5.5.0")
		c.wantClosed()
		f.wantLog(logEarlyTalker)
	})
	t.Run("greet_wait and a patient client", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.GreetWait = 20 * time.Millisecond })
		f.hello()
	})
}

func TestCase010_LongCommand(t *testing.T) {
	f := start(t, nil)
	t.Run("3000 bytes", func(t *testing.T) {
		c := f.hello()
		c.cmd("NOOP "+strings.Repeat("x", 3000), "250")
	})
	t.Run("100 kB", func(t *testing.T) {
		c := f.hello()
		c.send("NOOP " + strings.Repeat("x", 100<<10) + "\r\n")
		c.want("500 5.5.2")
		c.wantClosed()
	})
	t.Run("5000 bytes", func(t *testing.T) {
		c := f.hello()
		c.cmd("NOOP "+strings.Repeat("x", 5000), "500 5.5.2")
		c.wantClosed()
	})
	t.Run("endless", func(t *testing.T) {
		c := f.hello()
		go func() {
			junk := []byte(strings.Repeat("x", 64<<10))
			for {
				if _, err := c.c.Write(junk); err != nil {
					return
				}
			}
		}()
		var m1, m2 runtime.MemStats
		runtime.ReadMemStats(&m1)
		c.want("500 5.5.2")
		runtime.ReadMemStats(&m2)
		if grown := int64(m2.HeapAlloc) - int64(m1.HeapAlloc); grown > 8<<20 {
			t.Errorf("the heap grew by %d bytes", grown)
		}
		f.wantLog(logLineTooLong)
	})
}

func TestCase011_LongBodyLines(t *testing.T) {
	f := start(t, nil)
	for _, n := range []int{5000, 1 << 20} {
		c := f.hello()
		c.envelope()
		line := strings.Repeat("é", n/2)
		c.data("Subject: x\r\n\r\n"+line, "250")
		m := f.intake.got()
		if got := m[len(m)-1].body; !strings.HasSuffix(got, "\r\n\r\n"+line+"\r\n") {
			t.Errorf("a line of %d bytes was changed", n)
		}
	}
}

func TestCase012_SizeAtMail(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.MaxMessageSize = 2000; l.MaxLine = 1000 })
	c := f.hello()
	c.cmd("MAIL FROM:<a@example.com> SIZE=2001", "552 5.3.4")
	c.cmd("MAIL FROM:<a@example.com> SIZE=2000", "250")
	f.wantLog(logReject, "reason=size")
}

func TestCase013_SizeInData(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.MaxMessageSize = 100 << 10 })
	c := f.hello()
	c.envelope()
	line := strings.Repeat("x", 998) + "\r\n"
	c.data("Subject: x\r\n\r\n"+strings.Repeat(line, 150), "552 5.3.4")
	f.wantMails(0)
	f.wantLog(logReject, "reason=size")
	c.envelope()
	c.data(plainMail, "250") // the session is usable
	f.wantMails(1)
	t.Run("endless", func(t *testing.T) {
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.send("Subject: x\r\n\r\n" + strings.Repeat(line, 520))
		c.want("552 5.3.4")
		c.wantClosed()
	})
}

func TestCase014_Parameters(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.MaxErrors = 20 })
	c := f.hello()
	for _, tt := range []struct{ cmd, want string }{
		{"MAIL FROM:<a@example.com> SIZE=-1", "501 5.5.4"},
		{"MAIL FROM:<a@example.com> SIZE=", "501 5.5.4"},
		{"MAIL FROM:<a@example.com> SIZE=9999999999999999999999999", "552 5.3.4"},
		{"MAIL FROM:<a@example.com> SIZE=1 size=2", "501 5.5.4"},
		{"MAIL FROM:<a@example.com> AUTH=a\rb@c.example", "501 5.5.4"},
		{"MAIL FROM:<a@example.com> FOO=bar", "555 5.5.4"},
		{"MAIL FROM:<a@example.com> BODY=BINARYMIME", "555 5.5.4"},
		{"MAIL FROM:<a@example.com> RET=HDRS", "555 5.5.4"},
		{"MAIL FROM:<a@example.com> AUTH=x", "501 5.5.4"},
	} {
		c.cmd(tt.cmd, tt.want)
	}
	c.cmd("NOOP", "250")
	c.cmd("MAIL FROM:<a@example.com> BODY=8BITMIME SIZE=100 AUTH=<>", "250")
	c.cmd("RCPT TO:<b@example.net> FOO", "555 5.5.4")
}

func TestCase015_RcptLimit(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.MaxRecipients = 3 })
	c := f.hello()
	c.envelope("a@example.net", "b@example.net", "c@example.net")
	c.cmd("RCPT TO:<d@example.net>", "452 4.5.3")
	c.cmd("RCPT TO:<e@example.net>", "452 4.5.3")
	c.data(plainMail, "250")
	if m := f.wantMails(1)[0]; len(m.env.Rcpts) != 3 {
		t.Errorf("recipients: %+v", m.env.Rcpts)
	}
	f.wantLog(logReject, "reason=rcpt_limit")
}

func TestCase016_DuplicateRecipient(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	c.envelope("a@example.net", "a@EXAMPLE.net", "a@example.net", "A@example.net")
	c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	if len(m.env.Rcpts) != 2 || m.env.Rcpts[0].Addr != "a@example.net" || m.env.Rcpts[1].Addr != "A@example.net" {
		t.Errorf("recipients: %+v", m.env.Rcpts)
	}
}

func TestCase017_Order(t *testing.T) {
	f := start(t, func(c *Config, _ *Listener) {
		c.CheckRcpt = func(_, _, _, rcpt string) *Refusal {
			if strings.HasPrefix(rcpt, "bad") {
				return &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: "no"}
			}
			return nil
		}
	})
	c := f.dial()
	c.want("220")
	c.cmd("MAIL FROM:<a@example.com>", "503 5.5.1")
	c.cmd("EHLO x", "250")
	c.cmd("RCPT TO:<b@example.net>", "503 5.5.1")
	c.cmd("DATA", "503 5.5.1")
	c.cmd("MAIL FROM:<a@example.com>", "250")
	c.cmd("DATA", "503 5.5.1")
	c.cmd("MAIL FROM:<other@example.com>", "503 5.5.1")
	c.cmd("RCPT TO:<bad@example.net>", "550 5.7.1")
	c.cmd("DATA", "554 5.5.1")
	c.cmd("RCPT TO:<b@example.net>", "250")
	c.data(plainMail, "250")
	if m := f.wantMails(1)[0]; m.env.From != "a@example.com" || len(m.env.Rcpts) != 1 {
		t.Errorf("envelope %+v", m.env)
	}
	c.cmd("DATA", "503 5.5.1") // nothing is left of the first mail
}

func TestCase018_BadAddresses(t *testing.T) {
	long := strings.Repeat("d", 60) + "."
	for name, tt := range map[string]struct{ addr, rcpt, mail string }{
		"NUL":          {"b\x00b@e.net", "501 5.1.3", "501 5.1.7"},
		"CR":           {"b\rb@e.net", "501 5.1.3", "501 5.1.7"},
		"control":      {"b\x07b@e.net", "501 5.1.3", "501 5.1.7"},
		"two ats":      {"b@@e.net", "501 5.1.3", "501 5.1.7"},
		"no local":     {"@e.net", "501 5.1.3", "501 5.1.7"},
		"no domain":    {"b@", "501 5.1.3", "501 5.1.7"},
		"long":         {"b@" + strings.Repeat(long, 5) + "net", "501 5.1.3", "501 5.1.7"},
		"long local":   {strings.Repeat("x", 65) + "@e.net", "501 5.1.3", "501 5.1.7"},
		"open quote":   {`"b@e.net`, "501 5.1.3", "501 5.1.7"},
		"inner quote":  {`b"b@e.net`, "501 5.1.3", "501 5.1.7"},
		"space":        {"b b@e.net", "501 5.1.3", "501 5.1.7"},
		"8-bit":        {"jörg@e.net", "553 5.6.7", "553 5.6.7"},
		"bad UTF-8":    {"j\xf6rg@e.net", "501 5.1.3", "501 5.1.7"},
		"empty route":  {"@relay:", "501 5.1.3", "501 5.1.7"},
		"bare address": {"root", "501 5.1.3", "501 5.1.7"},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			c := f.hello()
			c.cmd("MAIL FROM:<"+tt.addr+">", tt.mail)
			c.cmd("MAIL FROM:<a@example.com>", "250")
			c.cmd("RCPT TO:<"+tt.addr+">", tt.rcpt)
			c.cmd("RCPT TO:<>", "501 5.1.3")
			c.cmd("RCPT TO:<b@e.net", "501 5.1.3")
			f.wantMails(0)
			if strings.ContainsAny(f.log.String(), "\x00\x07\r") {
				t.Error("control characters in the log")
			}
		})
	}
	t.Run("with SMTPUTF8", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.cmd("MAIL FROM:<jörg@exämple.com> SMTPUTF8", "250")
		c.cmd("RCPT TO:<用户@例え.jp>", "250")
		c.data(plainMail, "250")
		m := f.wantMails(1)[0]
		if m.env.From != "jörg@exämple.com" || m.env.Rcpts[0].Addr != "用户@例え.jp" || !m.env.UTF8 || !strings.Contains(m.body, " with UTF8SMTP id ") {
			t.Errorf("envelope %+v, %q", m.env, m.body)
		}
	})
}

func TestCase019_Routes(t *testing.T) {
	for name, tt := range map[string]struct{ path, want string }{
		"source route":  {"<@a.example,@b.example:c@d.example>", "c@d.example"},
		"percent":       {"<a%b@c.example>", "a%b@c.example"},
		"bang":          {"<a!b@c.example>", "a!b@c.example"},
		"quoted at":     {`<"a@b"@c.example>`, `"a@b"@c.example`},
		"quoted space":  {`<"john doe"@c.example>`, `"john doe"@c.example`},
		"quoted quote":  {`<"a\">b"@c.example>`, `"a\">b"@c.example`},
		"literal":       {"<a@[192.0.2.1]>", "a@[192.0.2.1]"},
		"no brackets":   {"a@c.example", "a@c.example"},
		"leading space": {" <a@c.example>", "a@c.example"},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Value
			f := start(t, func(c *Config, _ *Listener) {
				c.CheckRcpt = func(_, _, _, rcpt string) *Refusal { asked.Store(rcpt); return nil }
			})
			c := f.hello()
			c.cmd("MAIL FROM:"+tt.path, "250")
			c.cmd("RCPT TO:"+tt.path, "250")
			c.data(plainMail, "250")
			m := f.wantMails(1)[0]
			if m.env.From != tt.want || m.env.Rcpts[0].Addr != tt.want || asked.Load() != tt.want {
				t.Errorf("got %q, %q, checked %q, want %q", m.env.From, m.env.Rcpts[0].Addr, asked.Load(), tt.want)
			}
		})
	}
}

func TestCase020_OpenRelay(t *testing.T) {
	outside := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	t.Run("no AUTH", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.Allow = outside })
		c := f.hello()
		c.cmd("MAIL FROM:<a@example.com>", "550 5.7.1")
		c.cmd("RCPT TO:<b@example.net>", "503")
		f.wantLog(logReject, "reason=relay_denied")
	})
	t.Run("AUTH offered", func(t *testing.T) {
		f := start(t, func(c *Config, l *Listener) {
			l.Allow, l.Auth = outside, AuthOptional
			c.Users = []User{{Name: "u", Password: secret.New("p")}}
		})
		f.hello().cmd("MAIL FROM:<a@example.com>", "530 5.7.0")
	})
	t.Run("AUTH needs TLS", func(t *testing.T) {
		f := startTLSFixture(t, func(c *Config, l *Listener) {
			l.Allow, l.Auth = nil, AuthOptional
			c.Users = []User{{Name: "u", Password: secret.New("p")}}
		})
		f.hello().cmd("MAIL FROM:<a@example.com>", "530 5.7.0 Must issue a STARTTLS")
	})
	t.Run("AUTH required of an allowed network too", func(t *testing.T) {
		f := start(t, func(c *Config, l *Listener) {
			l.Auth = AuthRequired
			c.Users = []User{{Name: "u", Password: secret.New("p")}}
		})
		f.hello().cmd("MAIL FROM:<a@example.com>", "530 5.7.0")
	})
	t.Run("no route", func(t *testing.T) {
		f := start(t, nil)
		f.intake.commit = func(context.Context, envelope.Envelope) error {
			return fmt.Errorf("preflight: %w", &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: "No route for sender domain example.com", Reason: "no_route"})
		}
		c := f.hello()
		c.envelope()
		c.data(plainMail, "550 5.7.1 No route for sender domain")
		f.wantMails(0)
		f.wantLog(logReject, "reason=no_route")
	})
}

func TestCase021_ProxyClaims(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.Allow = nil })
	c := f.hello()
	c.cmd("XCLIENT ADDR=192.0.2.1", "550")
	c.cmd("EHLO allowed.example.com", "250")
	c.cmd("MAIL FROM:<a@example.com>", "550 5.7.1")
	p := f.dial()
	p.want("220")
	p.cmd("PROXY TCP4 192.0.2.1 192.0.2.2 1 25", "550")
	p.wantClosed()
	f.wantLog(logProxyDenied)
}

func TestCase022_SenderNotAllowed(t *testing.T) {
	f := start(t, func(c *Config, l *Listener) {
		l.Auth = AuthRequired
		c.Users = []User{{Name: "crm", Password: secret.New("s3cret"), Senders: []string{"example.com"}}}
		c.CheckSender = func(listener, user, from string) *Refusal {
			if listener == "in" && user == "crm" && envelope.Domain(from) != "example.com" {
				return &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: "crm may not send as " + from, Reason: "sender_not_allowed"}
			}
			return nil
		}
	})
	c := f.hello()
	c.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "235")
	c.cmd("MAIL FROM:<ceo@other.example>", "550 5.7.1")
	f.wantLog(logReject, "reason=sender_not_allowed", "user=crm")
	c.cmd("MAIL FROM:<a@example.com>", "250")
}

func TestCase023_ClearTextAuth(t *testing.T) {
	f := startTLSFixture(t, func(c *Config, l *Listener) {
		l.Auth = AuthOptional
		c.Users = []User{{Name: "hidden-user", Password: secret.New("s3cret")}}
	})
	c := f.dial()
	c.want("220")
	if ehlo := c.cmd("EHLO x", "250"); strings.Contains(ehlo, "AUTH") || !strings.Contains(ehlo, "STARTTLS") {
		t.Errorf("clear text EHLO: %q", ehlo)
	}
	c.cmd("AUTH PLAIN "+plain("hidden-user", "s3cret"), "538 5.7.11")
	c.cmd("AUTH LOGIN", "538 5.7.11")
	if l := f.log.String(); strings.Contains(l, "hidden-user") || strings.Contains(l, "s3cret") {
		t.Errorf("log has the user: %s", l)
	}
	c.cmd("STARTTLS", "220")
	c.secure()
	if ehlo := c.cmd("EHLO x", "250"); !strings.Contains(ehlo, "AUTH PLAIN LOGIN") {
		t.Errorf("EHLO in TLS: %q", ehlo)
	}
	c.cmd("AUTH PLAIN "+plain("hidden-user", "s3cret"), "235 2.7.0")
}

func plain(user, pw string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + pw))
}

func authFixture(t *testing.T) *fixture {
	t.Helper()
	hash, err := HashPassword("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	return start(t, func(c *Config, l *Listener) {
		l.Auth = AuthOptional
		c.Users = []User{{Name: "crm", Hash: hash}, {Name: "erp", Password: secret.New("pläin")}}
	})
}

func TestCase024_BruteForce(t *testing.T) {
	f := authFixture(t)
	fails := 0
	session := func() *client {
		c := f.hello()
		for range authPerSession {
			name := []string{"crm", "nobody", "erp"}[fails%3]
			c.cmd("AUTH PLAIN "+plain(name, "wrong-pw-canary"), "535 5.7.8")
			if fails++; fails == 10 {
				return c
			}
		}
		c.want("421 4.7.0")
		c.wantClosed()
		return nil
	}
	var last *client
	for fails < 10 {
		last = session()
	}
	last.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "421 4.7.0") // held off, right or wrong
	last.wantClosed()
	f.wantLog(logAuthFail, "user=nobody")
	f.wantLog(logAuthFail, "reason=held_off")
	if strings.Contains(f.log.String(), "canary") {
		t.Error("a password is in the log")
	}
	f.srv.throttle.Forget("127.0.0.1")
	f.hello().cmd("AUTH PLAIN "+plain("crm", "s3cret"), "235")
}

func TestCase024_EqualDelay(t *testing.T) {
	f := authFixture(t)
	f.srv.authDelay = 300 * time.Millisecond
	for _, name := range []string{"crm", "nobody", "erp"} {
		c := f.hello()
		begin := time.Now()
		c.cmd("AUTH PLAIN "+plain(name, "wrong"), "535")
		if d := time.Since(begin); d < f.srv.authDelay {
			t.Errorf("%s was answered after %s", name, d)
		}
	}
}

func TestCase025_AuthSyntax(t *testing.T) {
	f := authFixture(t)
	c := f.hello()
	b64 := base64.StdEncoding.EncodeToString
	for _, tt := range []struct{ name, first, second, want string }{
		{"broken initial", "AUTH PLAIN !!!", "", "501 5.5.2"},
		{"broken answer", "AUTH PLAIN", "!!!", "501 5.5.2"},
		{"NUL missing", "AUTH PLAIN " + b64([]byte("crm s3cret")), "", "501 5.5.2"},
		{"cancelled", "AUTH LOGIN", "*", "501 5.7.0"},
		{"unknown mechanism", "AUTH CRAM-MD5", "", "504 5.5.4"},
		{"no mechanism", "AUTH", "", "501 5.5.4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.second != "" {
				c.cmd(tt.first, "334")
				c.cmd(tt.second, tt.want)
				return
			}
			c.cmd(tt.first, tt.want)
		})
	}
	t.Run("100 kB", func(t *testing.T) {
		c := f.hello()
		c.cmd("AUTH PLAIN", "334")
		c.send(strings.Repeat("QUFB", 25<<10) + "\r\n")
		c.want("500 5.5.2")
		c.wantClosed()
	})
	t.Run("during a mail", func(t *testing.T) {
		c := f.hello()
		c.cmd("MAIL FROM:<a@example.com>", "250")
		c.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "503 5.5.1")
	})
	t.Run("twice, by LOGIN", func(t *testing.T) {
		c := f.hello()
		if got := c.cmd("AUTH LOGIN", "334 "); got != "334 "+b64([]byte("Username:")) {
			t.Errorf("challenge %q", got)
		}
		c.cmd(b64([]byte("erp")), "334 "+b64([]byte("Password:")))
		c.cmd(b64([]byte("pläin")), "235 2.7.0")
		c.cmd("AUTH PLAIN "+plain("crm", "s3cret"), "503 5.5.1")
	})
	t.Run("other identity", func(t *testing.T) {
		c := f.hello()
		c.cmd("AUTH PLAIN "+b64([]byte("erp\x00crm\x00s3cret")), "535 5.7.8")
		c.cmd("AUTH LOGIN "+b64([]byte("crm")), "334")
		c.cmd(b64([]byte("s3cret")), "235")
	})
	t.Run("not offered", func(t *testing.T) {
		f := start(t, nil)
		f.hello().cmd("AUTH PLAIN "+plain("crm", "s3cret"), "502 5.5.1")
	})
}

func TestCase026_NullSender(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	c.cmd("MAIL FROM:<>", "250")
	c.cmd("RCPT TO:<b@example.net>", "250")
	c.data(plainMail, "250")
	if m := f.wantMails(1)[0]; m.env.From != "" {
		t.Errorf("from %q", m.env.From)
	}
}

func TestCase027_Loop(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	c.envelope()
	c.data(strings.Repeat("Received: from a by b; now\r\n", 50)+plainMail, "554 5.4.6")
	f.wantLog(logReject, "reason=loop")
	c.envelope()
	c.data(strings.Repeat("Received: from a by b; now\r\n", 49)+plainMail, "250")
	f.wantMails(1)
}

func TestCase028_Slowloris(t *testing.T) {
	t.Run("silence", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.IdleTimeout = 50 * time.Millisecond })
		c := f.dial()
		c.want("220")
		c.want("421 4.4.2")
		c.wantClosed()
		f.wantLog(logTimeout, "phase=command")
	})
	t.Run("a byte now and then", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.IdleTimeout = 100 * time.Millisecond })
		c := f.dial()
		c.want("220")
		stop := make(chan struct{})
		go func() {
			tick := time.NewTicker(10 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					_, _ = c.c.Write([]byte("x"))
				}
			}
		}()
		c.want("421 4.4.2")
		close(stop)
	})
	t.Run("least rate", func(t *testing.T) {
		clock := messageClock{}
		for range 61 {
			clock.read(1, time.Second, 500)
		}
		if !clock.slow {
			t.Error("a byte a second is not slow")
		}
		clock = messageClock{}
		for range 100 {
			clock.read(600, time.Second, 500)
		}
		clock.read(60000, 5*time.Minute, 500) // a pause is not slowness
		if clock.slow {
			t.Error("600 B/s is slow")
		}
	})
	t.Run("never reads", func(t *testing.T) {
		f := start(t, func(c *Config, l *Listener) {
			l.WriteTimeout, l.MaxRecipients = 50*time.Millisecond, 1<<30
			c.Listen = func(network, address string) (net.Listener, error) {
				l, err := net.Listen(network, address)
				return smallBuffers{l}, err
			}
		})
		c := f.hello()
		_ = c.c.(*net.TCPConn).SetReadBuffer(4096)
		c.cmd("MAIL FROM:<a@example.com>", "250")
		go func() {
			lines := []byte(strings.Repeat("RCPT TO:<b@example.net>\r\n", 1000))
			for {
				if _, err := c.c.Write(lines); err != nil {
					return
				}
			}
		}()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
	})
	t.Run("total", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.DataTotal = 50 * time.Millisecond })
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.want("421 4.4.2")
		c.wantClosed()
	})
	t.Run("handshake", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) {
			l.TLS, l.TLSConfig, l.IdleTimeout = TLSImplicit, serverTLS(t), 50*time.Millisecond
		})
		f.dial().wantClosed()
	})
}

// open is the number of sessions of the listener.
func (f *fixture) open() int {
	f.srv.mu.Lock()
	defer f.srv.mu.Unlock()
	return len(f.srv.gates)
}

func TestCase029_ConnectionLimits(t *testing.T) {
	t.Run("per address", func(t *testing.T) {
		before := runtime.NumGoroutine()
		f := start(t, func(_ *Config, l *Listener) { l.MaxConnectionsPerIP = 5 })
		var held []*client
		for range 5 {
			held = append(held, f.hello())
		}
		for range 30 {
			c := f.dial()
			c.want("421 4.7.0")
			c.wantClosed()
		}
		held[0].cmd("NOOP", "250")
		if n := strings.Count(f.log.String(), logConnLimit); n < 1 || n > 3 {
			t.Errorf("%d log lines, want about one a second", n)
		}
		for _, c := range held {
			c.cmd("QUIT", "221")
		}
		eventually(t, "sessions end", func() bool { return f.open() == 0 })
		f.hello().cmd("QUIT", "221")
		eventually(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= before+4 })
	})
	t.Run("total", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.MaxConnections = 2 })
		f.hello()
		f.hello()
		f.dial().want("421 4.3.2")
	})
}

// smallBuffers makes a write block soon.
type smallBuffers struct{ net.Listener }

func (l smallBuffers) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		_ = c.(*net.TCPConn).SetWriteBuffer(4096)
	}
	return c, err
}

// sickListener fails a few times before it works.
type sickListener struct {
	net.Listener
	fails atomic.Int32
}

func (l *sickListener) Accept() (net.Conn, error) {
	if l.fails.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: syscall.EMFILE}
	}
	return l.Listener.Accept()
}

func TestCase030_AcceptErrors(t *testing.T) {
	f := start(t, func(c *Config, _ *Listener) {
		c.Listen = func(network, address string) (net.Listener, error) {
			l, err := net.Listen(network, address)
			sick := &sickListener{Listener: l}
			sick.fails.Store(4)
			return sick, err
		}
	})
	f.hello()
	f.wantLog(logAcceptError, "too many open files")
}

func TestCase031_ClientGone(t *testing.T) {
	t.Run("in DATA", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.send(plainMail)
		_ = c.c.Close()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
		f.wantMails(0)
		f.wantLog(logClientGone, "phase=data")
	})
	t.Run("reset in DATA", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.send(plainMail + "\r\n\r\nlong body")
		_ = c.c.(*net.TCPConn).SetLinger(0)
		_ = c.c.Close()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
		f.wantMails(0)
	})
	t.Run("after the dot", func(t *testing.T) {
		f := start(t, nil)
		inCommit, goOn := make(chan struct{}), make(chan struct{})
		var gone atomic.Bool
		f.intake.commit = func(ctx context.Context, _ envelope.Envelope) error {
			close(inCommit)
			select {
			case <-ClientGone(ctx):
				gone.Store(true)
			case <-goOn:
			}
			return ctx.Err()
		}
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.send(plainMail + "\r\n.\r\n")
		<-inCommit
		_ = c.c.Close()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
		close(goOn)
		f.wantMails(1)
		if !gone.Load() {
			t.Error("ClientGone said nothing")
		}
	})
	t.Run("in BDAT", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.send("BDAT 1000 LAST\r\n" + plainMail)
		_ = c.c.Close()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
		f.wantMails(0)
	})
	t.Run("between chunks", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.send(fmt.Sprintf("BDAT %d\r\n%s", len(plainMail), plainMail))
		c.want("250")
		_ = c.c.Close()
		eventually(t, "the session ends", func() bool { return f.open() == 0 })
		f.wantMails(0)
	})
}

func TestCase032_HTTP(t *testing.T) {
	for name, req := range map[string]string{
		"POST":    "POST / HTTP/1.1\r\nHost: x\r\n\r\nEHLO x\r\nMAIL FROM:<a@example.com>\r\n",
		"GET":     "GET /x HTTP/1.0\r\n\r\n",
		"CONNECT": "CONNECT a:25 HTTP/1.1\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			c := f.dial()
			c.want("220")
			c.send(req)
			c.want("554 5.5.0")
			c.wantClosed()
			f.wantLog(logAbuse, "kind=http")
		})
	}
	t.Run("TLS on a clear text port", func(t *testing.T) {
		f := start(t, nil)
		c := f.dial()
		c.want("220")
		c.send("\x16\x03\x01\x02\x00")
		c.wantClosed()
		f.wantLog(logAbuse, "kind=tls")
	})
}

func TestCase033_OtherCommands(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	c.cmd("VRFY root", "252 2.1.5")
	for _, verb := range []string{"EXPN list", "HELP", "TURN", "ETRN x"} {
		c.cmd(verb, "502 5.5.1")
	}
	c.cmd("FOO", "500 5.5.2")
	c = f.hello()
	c.send(strings.Repeat("NOOP\r\n", 99))
	for range 99 {
		c.want("250")
	}
	c.cmd("NOOP", "421 4.7.0")
	c.wantClosed()
	t.Run("unknown commands", func(t *testing.T) {
		c := f.hello()
		for range 10 {
			c.cmd("FOO", "500")
		}
		c.cmd("FOO", "500")
		c.want("421 4.7.0")
		c.wantClosed()
	})
	t.Run("a mail resets the count", func(t *testing.T) {
		c := f.hello()
		for range 3 {
			for range 60 {
				c.cmd("NOOP", "250")
			}
			c.envelope()
			c.data(plainMail, "250")
		}
	})
}

func TestCase034_Pipelining(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	one := func(n int) string {
		return fmt.Sprintf("MAIL FROM:<f%d@example.com>\r\nRCPT TO:<t%d@example.net>\r\nDATA\r\nSubject: %d\r\n\r\n..dot %d\r\n.\r\n", n, n, n, n)
	}
	c.send(one(1) + one(2) + "QUIT\r\n")
	for range 2 {
		for _, w := range []string{"250 2.1.0", "250 2.1.5", "354", "250 2.0.0"} {
			c.want(w)
		}
	}
	c.want("221")
	c.wantClosed()
	for i, m := range f.wantMails(2) {
		n := i + 1
		if m.env.From != fmt.Sprintf("f%d@example.com", n) || len(m.env.Rcpts) != 1 || m.env.Rcpts[0].Addr != fmt.Sprintf("t%d@example.net", n) ||
			!strings.HasSuffix(m.body, fmt.Sprintf("Subject: %d\r\n\r\n.dot %d\r\n", n, n)) {
			t.Errorf("mail %d: %+v", n, m)
		}
	}
	t.Run("blind before the banner", func(t *testing.T) {
		c := f.dial()
		c.send("EHLO x\r\n" + one(3) + "QUIT\r\n")
		for _, w := range []string{"220", "250", "250", "250", "354", "250", "221"} {
			c.want(w)
		}
	})
}

func TestCase035_Panic(t *testing.T) {
	boom := func() { panic("boom") }
	for name, set := range map[string]func(*fixture){
		"begin": func(f *fixture) { f.intake.begin = func() error { boom(); return nil } },
		"write": func(f *fixture) { f.intake.write = func([]byte) error { boom(); return nil } },
		"commit": func(f *fixture) {
			f.intake.commit = func(context.Context, envelope.Envelope) error { boom(); return nil }
		},
	} {
		for _, how := range []string{"DATA", "BDAT"} {
			t.Run(name+" "+how, func(t *testing.T) {
				f := start(t, nil)
				other := f.hello()
				set(f)
				c := f.hello()
				c.envelope()
				if how == "DATA" {
					c.cmd("DATA", "354")
					c.send("Subject: body-canary\r\n\r\nbody-canary\r\nMAIL FROM:<a@example.com>\r\n.\r\nNOOP\r\n")
				} else {
					c.send("BDAT 35 LAST\r\nSubject: body-canary\r\n\r\nbody-canary")
				}
				c.want("421 4.3.0")
				c.wantClosed()
				other.cmd("NOOP", "250")
				f.wantLog("msg="+logPanic, "session.go")
				if strings.Contains(f.log.String(), "body-canary") {
					t.Error("message text is in the log")
				}
				f.intake.mu.Lock()
				f.intake.begin, f.intake.write, f.intake.commit = nil, nil, nil
				f.intake.mu.Unlock()
				f.wantMails(0)
			})
		}
	}
	t.Run("check", func(t *testing.T) {
		f := start(t, func(c *Config, _ *Listener) {
			c.CheckSender = func(_, _, _ string) *Refusal { panic("boom") }
		})
		c := f.hello()
		c.cmd("MAIL FROM:<a@example.com>", "421 4.3.0")
		c.wantClosed()
		f.hello()
	})
}

func TestCase036_DataTimeoutRunsNothing(t *testing.T) {
	for _, how := range []string{"DATA", "BDAT 5000", "BDAT 5000 LAST"} {
		t.Run(how, func(t *testing.T) {
			f := start(t, func(_ *Config, l *Listener) { l.DataTimeout = 50 * time.Millisecond })
			c := f.hello()
			c.envelope()
			c.send(how + "\r\n")
			if how == "DATA" {
				c.want("354")
			}
			c.send("Subject: x\r\n\r\nfirst part\r\n")
			c.want("421 4.4.2")
			_, _ = c.c.Write([]byte("MAIL FROM:<desync@example.com>\r\nRCPT TO:<victim@example.net>\r\nDATA\r\n\r\nx\r\n.\r\n"))
			c.wantClosed()
			f.wantLog(logDataTimeout)
			f.wantMails(0)
			if strings.Contains(f.log.String(), "desync") {
				t.Error("a body line ran as a command")
			}
		})
	}
}

func TestCase037_Shutdown(t *testing.T) {
	t.Run("drains", func(t *testing.T) {
		f := start(t, nil)
		idle, busy := f.hello(), f.hello()
		busy.envelope()
		busy.cmd("DATA", "354")
		busy.send("Subject: x\r\n")
		eventually(t, "both sessions run", func() bool { return f.open() == 2 })
		down := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			down <- f.srv.Shutdown(ctx)
		}()
		idle.want("421 4.3.2")
		idle.wantClosed()
		if _, err := net.Dial("tcp", f.srv.Addr("in").String()); err == nil {
			t.Error("a new connection was taken")
		}
		busy.send("\r\nbody\r\n.\r\n")
		busy.want("250 2.0.0")
		busy.want("421 4.3.2")
		busy.wantClosed()
		if err := <-down; err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		f.wantMails(1)
		f.wantLog("msg="+logShutdown, "drained=2", "cut=0")
	})
	t.Run("cuts", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.send("Subject: x\r\n")
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		down := make(chan error, 1)
		go func() { down <- f.srv.Shutdown(ctx) }()
		c.want("421 4.3.2")
		c.wantClosed()
		_ = c.c.Close()
		if err := <-down; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Shutdown: %v", err)
		}
		f.wantMails(0)
		f.wantLog("msg="+logShutdown, "drained=0", "cut=1")
	})
}

func TestCase038_Reload(t *testing.T) {
	f := start(t, nil)
	c := f.hello()
	c.envelope()
	c.cmd("DATA", "354")
	next := baseConfig(f.intake, f.log)
	next.Hostname = "new.example.com"
	next.Listeners[0].MaxMessageSize = 1000
	next.Listeners[0].MaxLine = 1000
	second := next.Listeners[0]
	second.Name = "second"
	next.Listeners = append(next.Listeners, second)
	if err := f.srv.Reload(next); err != nil {
		t.Fatal(err)
	}
	c.send(plainMail + strings.Repeat("x", 2000) + "\r\n.\r\n")
	c.want("250")
	if m := f.wantMails(1)[0]; !strings.Contains(m.body, "by bridge.example.com") {
		t.Errorf("not under the old configuration: %q", m.body)
	}
	d := f.dial()
	d.want("220 new.example.com ")
	if ehlo := d.cmd("EHLO x", "250"); !slices.Contains(strings.Split(ehlo, "\n"), "250-SIZE 1000") {
		t.Errorf("EHLO: %q", ehlo)
	}
	f.wantLog(logReloaded)
	two, err := net.Dial("tcp", f.srv.Addr("second").String())
	if err != nil {
		t.Fatalf("the new listener: %v", err)
	}
	_ = two.Close()

	bad := next
	bad.Listeners = append(slices.Clone(next.Listeners), Listener{Name: "third", Address: f.srv.Addr("in").String()})
	if err := f.srv.Reload(bad); err == nil {
		t.Error("a taken port was accepted")
	}
	f.dial().want("220 new.example.com ")
	next.Listeners = next.Listeners[:1]
	if err := f.srv.Reload(next); err != nil {
		t.Fatal(err)
	}
	if a := f.srv.Addr("second"); a != nil {
		t.Errorf("a removed listener is still at %s", a)
	}
	d.cmd("NOOP", "250")
}
