package smtp

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
)

func TestEHLOTellsTheTruth(t *testing.T) {
	always := []string{"bridge.example.com", "PIPELINING", "SIZE 26214400", "8BITMIME", "SMTPUTF8", "CHUNKING", "ENHANCEDSTATUSCODES", "LIMITS RCPTMAX=1000"}
	user := []User{{Name: "u", Password: secret.New("p")}}
	for _, tt := range []struct {
		name string
		edit func(*Config, *Listener)
		want []string
	}{
		{"plain", func(*Config, *Listener) {}, nil},
		{"AUTH on loopback without TLS", func(c *Config, l *Listener) { c.Users, l.Auth = user, AuthOptional }, []string{"AUTH PLAIN LOGIN"}},
		{"AUTH without users", func(_ *Config, l *Listener) { l.Auth = AuthOptional }, nil},
		{"users without AUTH", func(c *Config, _ *Listener) { c.Users = user }, nil},
		{"AUTH waits for STARTTLS", func(c *Config, l *Listener) {
			c.Users, l.Auth, l.TLS, l.TLSConfig = user, AuthOptional, TLSStartTLS, serverTLS(t)
		}, []string{"STARTTLS"}},
		{"DSN", func(_ *Config, l *Listener) { l.DSN = true }, []string{"DSN"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, tt.edit)
			c := f.dial()
			c.want("220 bridge.example.com ESMTP")
			var got []string
			for _, line := range strings.Split(c.cmd("EHLO x", "250"), "\n") {
				got = append(got, line[4:])
			}
			if want := append(slices.Clone(always), tt.want...); !slices.Equal(got, want) {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestHELOOnly(t *testing.T) {
	f := start(t, nil)
	c := f.dial()
	c.want("220")
	if got := c.cmd("HELO printer", "250"); got != "250 bridge.example.com" {
		t.Errorf("HELO: %q", got)
	}
	c.envelope()
	c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	if !strings.HasPrefix(m.body, "Received: from printer ([127.0.0.1])\r\n\tby bridge.example.com with SMTP id "+m.env.ID+"\r\n\tfor <to@example.net>;\r\n\t") {
		t.Errorf("stored %q", m.body)
	}
	if got := afterReceived(t, m.body); got != plainMail+"\r\n" {
		t.Errorf("message %q", got)
	}
}

func TestEnvelope(t *testing.T) {
	f := start(t, func(c *Config, l *Listener) {
		l.DSN = true
		c.Now = func() time.Time { return time.Date(2026, 11, 24, 1, 2, 3, 0, time.FixedZone("", 3600)) }
	})
	c := f.hello()
	c.cmd("MAIL FROM:<a@example.com> RET=HDRS ENVID=QQ+2B1 BODY=8BITMIME", "250")
	c.cmd("RCPT TO:<b@example.net> NOTIFY=SUCCESS,delay ORCPT=rfc822;b+2B1@example.net", "250")
	c.cmd("RCPT TO:<c@example.net>", "250")
	reply := c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	want := envelope.Envelope{
		ID: m.env.ID, From: "a@example.com", EnvID: "QQ+1", Ret: "HDRS", EightBit: true, Size: int64(len(m.body)),
		Rcpts: []envelope.Rcpt{
			{Addr: "b@example.net", Notify: []string{"SUCCESS", "DELAY"}, ORCPT: "rfc822;b+1@example.net"},
			{Addr: "c@example.net"},
		},
		Listener: "in", Peer: "127.0.0.1", Helo: "client.example.org", Received: time.Date(2026, 11, 24, 0, 2, 3, 0, time.UTC),
	}
	if fmt.Sprint(m.env) != fmt.Sprint(want) {
		t.Errorf("got  %+v\nwant %+v", m.env, want)
	}
	if reply != "250 2.0.0 Ok: queued as "+m.env.ID || len(m.env.ID) != 26 {
		t.Errorf("reply %q, id %q", reply, m.env.ID)
	}
	if strings.Contains(m.body, "for <") {
		t.Errorf("a recipient of several is in the Received field: %q", m.body)
	}
	if !strings.Contains(m.body, ";\r\n\tTue, 24 Nov 2026 01:02:03 +0100\r\n") {
		t.Errorf("date of the Received field: %q", m.body)
	}
}

func TestHeloThatIsNotUTF8(t *testing.T) {
	f := start(t, nil)
	c := f.dial()
	c.want("220")
	c.cmd("HELO b\xfcro PC(x)", "250")
	c.envelope()
	c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	if m.env.Helo != "b?ro" || !strings.HasPrefix(m.body, "Received: from b?ro (") {
		t.Errorf("helo %q, stored %q", m.env.Helo, m.body)
	}
}

func TestDSNParameters(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.DSN, l.MaxErrors = true, 100 })
	c := f.hello()
	for _, p := range []string{"RET=ALL", "ENVID=", "ENVID=a+ZZ", "ENVID=a+07b", "ENVID=" + strings.Repeat("x", 101), "RET=FULL RET=FULL"} {
		c.cmd("MAIL FROM:<a@example.com> "+p, "501 5.5.4")
	}
	c.cmd("MAIL FROM:<a@example.com> SMTPUTF8", "250")
	for _, p := range []string{
		"NOTIFY=NEVER,SUCCESS", "NOTIFY=", "NOTIFY=SOMETIMES", "NOTIFY=DELAY,DELAY", "ORCPT=b@example.net", "ORCPT=rfc822;", "ORCPT=rfc822;a+0Ab",
		`ORCPT=utf-8;a\x{09}b`, "ORCPT=utf-8;a\xffb", "ORCPT=rfc822;a ORCPT=rfc822;b",
	} {
		c.cmd("RCPT TO:<b@example.net> "+p, "501 5.5.4")
	}
	c.cmd(`RCPT TO:<b@example.net> NOTIFY=NEVER ORCPT=utf-8;j\x{F6}rg@example.net`, "250")
	c.data(plainMail, "250")
	if r := f.wantMails(1)[0].env.Rcpts[0]; r.ORCPT != "utf-8;jörg@example.net" || !slices.Equal(r.Notify, []string{"NEVER"}) {
		t.Errorf("recipient %+v", r)
	}
}

func TestBDAT(t *testing.T) {
	chunk := func(s, last string) string { return fmt.Sprintf("BDAT %d%s\r\n%s", len(s), last, s) }
	t.Run("chunks", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		body := "Subject: x\r\n\r\n.dot\r\n.\r\nMAIL FROM:<x@y.example>\r\nlast"
		c.send(chunk(body[:15], "") + chunk(body[15:30], "") + chunk(body[30:], " LAST") + "NOOP\r\n")
		c.want("250 2.0.0")
		c.want("250 2.0.0")
		c.want("250 2.0.0 Ok: queued as ")
		c.want("250")
		m := f.wantMails(1)[0]
		if !strings.HasSuffix(m.body, body) {
			t.Errorf("stored %q", m.body)
		}
	})
	t.Run("empty last chunk", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.send(chunk(plainMail, ""))
		c.want("250")
		c.cmd("MAIL FROM:<a@example.com>", "503")
		c.cmd("RCPT TO:<a@example.com>", "503")
		c.cmd("DATA", "503")
		c.cmd("BDAT 0 LAST", "250 2.0.0 Ok: queued")
		f.wantMails(1)
	})
	t.Run("reset", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.send(chunk(plainMail, ""))
		c.want("250")
		c.cmd("RSET", "250")
		c.cmd("BDAT 0 LAST", "503")
		c.envelope()
		c.send(chunk(plainMail, " LAST"))
		c.want("250 2.0.0 Ok: queued")
		f.wantMails(1)
	})
	t.Run("given up", func(t *testing.T) {
		for _, tt := range []struct{ verb, want string }{{"EHLO x", "250"}, {"HELO x", "250"}, {"QUIT", "221"}} {
			f := start(t, nil)
			c := f.hello()
			c.envelope()
			c.send(chunk(plainMail, ""))
			c.want("250 2.0.0 Chunk taken")
			c.cmd("NOOP", "250")
			c.cmd("FOO", "500")
			c.cmd(tt.verb, tt.want)
			if tt.verb == "QUIT" {
				c.wantClosed()
			} else {
				c.cmd("DATA", "503")
				c.envelope("other@example.net")
				c.data(plainMail, "250")
				if m := f.wantMails(1)[0]; m.env.Rcpts[0].Addr != "other@example.net" {
					t.Errorf("envelope %+v", m.env)
				}
				continue
			}
			f.wantMails(0)
		}
	})
	t.Run("STARTTLS between chunks", func(t *testing.T) {
		f := startTLSFixture(t, nil)
		c := f.hello()
		c.envelope()
		c.send(chunk(plainMail, ""))
		c.want("250")
		c.cmd("STARTTLS", "220")
		c.secure()
		c.cmd("BDAT 0 LAST", "503")
		c.cmd("EHLO x", "250")
		c.envelope()
		c.send(chunk(plainMail, " LAST"))
		c.want("250 2.0.0 Ok: queued")
		f.wantMails(1)
	})
	t.Run("refused for its text", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.send(chunk(strings.Repeat("Received: x\r\n", 60), "") + chunk("\r\nRSET\r\n", " LAST"))
		c.want("554 5.4.6")
		c.want("503")
		c.cmd("NOOP", "250 2.0.0 Ok")
	})
	t.Run("refused chunks are consumed", func(t *testing.T) {
		f := start(t, func(_ *Config, l *Listener) { l.MaxMessageSize, l.MaxLine = 2000, 1000 })
		c := f.hello()
		c.send(chunk("MAIL FROM:<evil@example.com>\r\n", " LAST"))
		c.want("503")
		c.envelope()
		evil := strings.Repeat("RSET\r\n", 1000)
		c.send(chunk(evil, "") + chunk(evil, " LAST") + "NOOP\r\n")
		c.want("552 5.3.4")
		c.want("503")
		c.want("250 2.0.0 Ok")
		f.wantMails(0)
	})
	t.Run("bad length closes", func(t *testing.T) {
		for _, arg := range []string{"", "x", "-1", "5 FIRST", "99999999999999", "1 2 3"} {
			f := start(t, nil)
			c := f.hello()
			c.envelope()
			c.cmd("BDAT "+arg, "501 5.5.4")
			c.wantClosed()
		}
	})
}

func TestHeaderRepair(t *testing.T) {
	const all = "Date: d\r\nMessage-ID: <m@x>\r\n"
	for _, tt := range []struct {
		name, msg string
		want      string // D and M stand for the fields we add
	}{
		{"complete", all + "\r\nbody", all + "\r\nbody\r\n"},
		{"odd case and space", "DATE : d\r\nmessage-id:<m@x>\r\n\r\n", "DATE : d\r\nmessage-id:<m@x>\r\n\r\n\r\n"},
		{"no date", "Message-ID: <m@x>\r\n\r\nb", "D" + "Message-ID: <m@x>\r\n\r\nb\r\n"},
		{"no message id", "Date: d\r\n\r\nb", "MDate: d\r\n\r\nb\r\n"},
		{"only in the body", "Subject: x\r\n\r\nDate: d\r\nMessage-ID: <m@x>", "DMSubject: x\r\n\r\nDate: d\r\nMessage-ID: <m@x>\r\n"},
		{"folded", "Subject: x\r\n Date: d\r\n" + all + "\r\nb", "Subject: x\r\n Date: d\r\n" + all + "\r\nb\r\n"},
		{"no header", "just text\r\nmore: text", "DM\r\njust text\r\nmore: text\r\n"},
		{"begins with a continuation", " text\r\nDate: d", "DM\r\n text\r\nDate: d\r\n"},
		{"empty line first", "\r\nbody", "DM\r\nbody\r\n"},
		{"header only", "Subject: x", "DMSubject: x\r\n"},
		{"text in the header", all + "oops\r\n\r\nb", all + "oops\r\n\r\nb\r\n"},
		{"mbox line", "From joe Mon Nov 23 00:00:00 2026\r\n" + all + "\r\nb", all + "\r\nb\r\n"},
		{"only LF", "Date: d\nMessage-ID: <m@x>\n\n.b", all + "\r\n.b\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, func(c *Config, _ *Listener) { c.Now = func() time.Time { return time.Unix(0, 0).UTC() } })
			c := f.hello()
			c.envelope()
			c.data(tt.msg, "250")
			m := f.wantMails(1)[0]
			got := afterReceived(t, m.body)
			got = strings.Replace(got, "Date: Thu, 01 Jan 1970 00:00:00 +0000\r\n", "D", 1)
			got = strings.Replace(got, "Message-ID: <"+m.env.ID+"@bridge.example.com>\r\n", "M", 1)
			if got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
	t.Run("empty message", func(t *testing.T) {
		f := start(t, nil)
		c := f.hello()
		c.envelope()
		c.cmd("DATA", "354")
		c.cmd(".", "250")
		if got := afterReceived(t, f.wantMails(1)[0].body); !strings.HasSuffix(got, ">\r\n\r\n") {
			t.Errorf("stored %q", got)
		}
	})
}

func TestHeaderLimits(t *testing.T) {
	for name, msg := range map[string]string{
		"2 MiB":       strings.Repeat("X-A: "+strings.Repeat("x", 900)+"\r\n", 2300) + "\r\nb",
		"1 long line": "X-A: " + strings.Repeat("x", 1<<20+1) + "\r\n\r\nb",
		"2001 fields": strings.Repeat("X-A: b\r\n", 2001) + "\r\nb",
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			c := f.hello()
			c.envelope()
			c.data(msg, "552 5.3.4")
			f.wantMails(0)
			if f.intake.begun != 0 {
				t.Error("the intake was bothered")
			}
			f.wantLog(logReject, "reason=header")
		})
	}
}

func TestLineLimit(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.MaxLine = 1000 })
	c := f.hello()
	c.envelope()
	c.data("Subject: x\r\n\r\n"+strings.Repeat("x", 1000), "250")
	c.envelope()
	c.data("Subject: x\r\n\r\n"+strings.Repeat("x", 1001), "554 5.6.0")
	f.wantMails(1)
}

type fullDisk struct{}

func (fullDisk) Error() string { return "write /var/lib/secret-path: no space left" }
func (fullDisk) NoSpace() bool { return true }

func TestIntakeErrors(t *testing.T) {
	long := strings.Repeat("é\r\nx", 500)
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"any error", errors.New("open /var/lib/secret-path: permission denied"), "451 4.3.0 Cannot take the mail at the moment"},
		{"no space", fmt.Errorf("store: %w", fullDisk{}), "452 4.3.1 No space"},
		{"refusal", &Refusal{Code: 554, Enhanced: [3]int{5, 6, 3}, Text: "signed mail would break"}, "554 5.6.3 signed mail would break"},
		{"wrapped refusal", fmt.Errorf("secret-path: %w", &Refusal{Code: 550, Text: "no"}), "550 5.0.0 no"},
		{"text with line ends", &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: "a\r\n250 b\x00"}, "550 5.7.1 a  250 b?"},
		{"long text", &Refusal{Code: 550, Enhanced: [3]int{5, 7, 1}, Text: long}, "550 5.7.1 ?  x"},
		{"impossible code", &Refusal{Code: 250, Text: "taken"}, "451 4.3.0 taken"},
		{"wrong class", &Refusal{Code: 450, Enhanced: [3]int{5, 1, 1}, Text: "later"}, "450 4.0.0 later"},
	} {
		for _, at := range []string{"begin", "write", "commit"} {
			t.Run(tt.name+" at "+at, func(t *testing.T) {
				f := start(t, nil)
				switch at {
				case "begin":
					f.intake.begin = func() error { return tt.err }
				case "write":
					f.intake.write = func([]byte) error { return tt.err }
				default:
					f.intake.commit = func(context.Context, envelope.Envelope) error { return tt.err }
				}
				c := f.hello()
				c.envelope()
				got := c.data(plainMail, tt.want)
				if strings.Contains(got, "secret-path") || len(got) > 500 || strings.Contains(got, "\n") {
					t.Errorf("reply %q", got)
				}
				c.cmd("NOOP", "250")
				f.wantMails(0)
			})
		}
	}
}

func TestAppendDomainAndAliases(t *testing.T) {
	aliases := map[string][]string{
		"root":              {"ops@example.com", "oncall@example.org"},
		"cron":              {"root", "cron@example.com"},
		"loop":              {"loop"},
		"sales@example.net": {"crm@example.com"},
	}
	for _, tt := range []struct {
		name, domain, rcpt string
		want               []string
		orcpt              string
	}{
		{"bare alias", "", "root", []string{"ops@example.com", "oncall@example.org"}, "rfc822;root@bridge.example.com"},
		{"alias in other case", "", "ROOT", []string{"ops@example.com", "oncall@example.org"}, "rfc822;ROOT@bridge.example.com"},
		{"alias of an alias", "corp.example", "cron", []string{"ops@example.com", "oncall@example.org", "cron@example.com"}, "rfc822;cron@corp.example"},
		{"qualified with our domain", "corp.example", "root@CORP.example", []string{"ops@example.com", "oncall@example.org"}, "rfc822;root@CORP.example"},
		{"another domain's root", "corp.example", "root@other.example", []string{"root@other.example"}, ""},
		{"whole address", "", "sales@example.net", []string{"crm@example.com"}, "rfc822;sales@example.net"},
		{"no alias", "corp.example", "joe", []string{"joe@corp.example"}, ""},
		{"loop", "corp.example", "loop", []string{"loop@corp.example"}, "rfc822;loop@corp.example"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, func(_ *Config, l *Listener) { l.AppendDomain, l.Aliases = tt.domain, aliases })
			c := f.hello()
			if tt.domain == "" {
				c.cmd("MAIL FROM:<www-data>", "501 5.1.7")
				c.cmd("MAIL FROM:<www-data@example.com>", "250")
			} else {
				c.cmd("MAIL FROM:<www-data>", "250")
			}
			c.cmd("RCPT TO:<"+tt.rcpt+">", "250")
			c.data(plainMail, "250")
			m := f.wantMails(1)[0]
			var got []string
			for _, r := range m.env.Rcpts {
				got = append(got, r.Addr)
				if r.ORCPT != tt.orcpt {
					t.Errorf("ORCPT %q, want %q", r.ORCPT, tt.orcpt)
				}
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.domain != "" && m.env.From != "www-data@corp.example" {
				t.Errorf("from %q", m.env.From)
			}
		})
	}
}

func TestLMTP(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.LMTP = true })
	c := f.dial()
	c.want("220 bridge.example.com LMTP")
	c.cmd("EHLO x", "500 5.5.1")
	c.cmd("LHLO x", "250")
	for range 2 {
		c.envelope("a@example.net", "b@example.net")
		c.data(plainMail, "250 2.0.0 <a@example.net> Ok: queued as ")
		c.want("250 2.0.0 <b@example.net> Ok: queued as ")
	}
	f.intake.commit = func(context.Context, envelope.Envelope) error { return &Refusal{Code: 550, Text: "no"} }
	c.envelope("a@example.net", "b@example.net")
	c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(plainMail), plainMail))
	c.want("550 5.0.0 <a@example.net> no")
	c.want("550 5.0.0 <b@example.net> no")
	if m := f.wantMails(2)[0]; !strings.Contains(m.body, " with LMTP id ") {
		t.Errorf("stored %q", m.body)
	}
}

// RFC 2033 4.2: a reply for each RCPT that was taken, in their order.
func TestLMTPRepliesPerRecipient(t *testing.T) {
	no := func(text string) *Refusal { return &Refusal{Code: 550, Enhanced: [3]int{5, 1, 1}, Text: text} }
	long := strings.Repeat("l", 60) + "@" + strings.Repeat(strings.Repeat("d", 60)+".", 3) + "example"
	for _, tt := range []struct {
		name   string
		rcpts  []string
		each   map[string]*Refusal
		commit error
		want   []string
		kept   int
	}{
		{
			"one of three",
			[]string{"a@example.net", "b@example.net", "c@example.net"},
			map[string]*Refusal{"b@example.net": no("no b")},
			nil,
			[]string{"250 2.0.0 <a@example.net> Ok: queued as ", "550 5.1.1 <b@example.net> no b", "250 2.0.0 <c@example.net> Ok: queued as "},
			1,
		},
		{
			"given twice, and spelt differently",
			[]string{"b@example.net", "a@example.net", "b@EXAMPLE.net"},
			map[string]*Refusal{"b@example.net": no("no b")},
			nil,
			[]string{"550 5.1.1 <b@example.net> no b", "250 ", "550 5.1.1 <b@EXAMPLE.net> no b"},
			1,
		},
		{
			"all, with reasons of their own",
			[]string{"a@example.net", "b@example.net"},
			map[string]*Refusal{"a@example.net": no("no a"), "b@example.net": no("no b")},
			no("no a"),
			[]string{"550 5.1.1 <a@example.net> no a", "550 5.1.1 <b@example.net> no b"},
			0,
		},
		{
			"all, after they were taken",
			[]string{"a@example.net", "b@example.net"},
			map[string]*Refusal{"a@example.net": no("no a"), "b@example.net": no("no b")},
			nil,
			[]string{"550 5.1.1 <a@example.net> no a", "550 5.1.1 <b@example.net> no b"},
			1,
		},
		{
			"a fault of ours for the others",
			[]string{"a@example.net", "b@example.net"},
			map[string]*Refusal{"a@example.net": no("no a")},
			errors.New("disk on fire"),
			[]string{"550 5.1.1 <a@example.net> no a", "451 4.3.0 <b@example.net> Cannot take the mail"},
			0,
		},
		{
			"an alias, one of its addresses refused",
			[]string{"team@example.com", "a@example.net"},
			map[string]*Refusal{"b@example.net": no("no b")},
			nil,
			[]string{"250 2.0.0 <team@example.com> Ok", "250 2.0.0 <a@example.net> Ok"},
			1,
		},
		{
			"an alias, all of them refused",
			[]string{"team@example.com", "a@example.net"},
			map[string]*Refusal{"b@example.net": no("no b"), "c@example.net": no("no c")},
			nil,
			[]string{"550 5.1.1 <team@example.com> no b", "250 2.0.0 <a@example.net> Ok"},
			1,
		},
		{
			"quoted and long",
			[]string{`"a b"@example.net`, long},
			map[string]*Refusal{`"a b"@example.net`: no("no"), long: no(strings.Repeat("x", 600))},
			nil,
			[]string{`550 5.1.1 <"a b"@example.net> no`, "550 5.1.1 <" + long + "> xxx"},
			1,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := start(t, func(_ *Config, l *Listener) {
				l.LMTP, l.AppendDomain = true, "example.com"
				l.Aliases = map[string][]string{"team": {"b@example.net", "c@example.net"}}
			})
			f.intake.each = tt.each
			f.intake.commit = func(context.Context, envelope.Envelope) error { return tt.commit }
			c := f.dial()
			c.want("220")
			c.cmd("LHLO x", "250")
			for range 2 { // the second mail of the session fares alike
				for _, how := range []string{"DATA", "BDAT"} {
					c.envelope(tt.rcpts...)
					if how == "DATA" {
						c.cmd("DATA", "354")
						c.send(plainMail + "\r\n.\r\n")
					} else {
						c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(plainMail), plainMail))
					}
					for _, w := range tt.want {
						if got := c.want(w); len(got) > 512 {
							t.Errorf("a reply of %d bytes", len(got))
						}
					}
				}
			}
			c.cmd("NOOP", "250 2.0.0")
			if got := len(f.intake.got()); got != 4*tt.kept {
				t.Errorf("%d mails, want %d", got, 4*tt.kept)
			}
		})
	}
}

// Over SMTP there is one reply.
func TestRcptRefusalsAreForLMTP(t *testing.T) {
	f := start(t, nil)
	f.intake.each = map[string]*Refusal{"b@example.net": {Code: 550, Text: "no"}}
	c := f.hello()
	c.envelope("a@example.net", "b@example.net")
	c.data(plainMail, "250 2.0.0 Ok: queued as ")
	c.cmd("NOOP", "250")
}

func TestImplicitTLS(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) {
		l.TLS, l.TLSConfig, l.MinTLS = TLSImplicit, serverTLS(t), tls.VersionTLS13
	})
	c := f.dial()
	c.secure()
	c.want("220")
	if ehlo := c.cmd("EHLO x", "250"); strings.Contains(ehlo, "STARTTLS") {
		t.Errorf("EHLO: %q", ehlo)
	}
	c.cmd("STARTTLS", "503")
	c.envelope()
	c.data(plainMail, "250")
	if m := f.wantMails(1)[0]; !strings.Contains(m.body, " with ESMTPS id ") {
		t.Errorf("stored %q", m.body)
	}
	old := clientTLS(t)
	old.MaxVersion = tls.VersionTLS12
	if err := tls.Client(f.dial().c, old).Handshake(); err == nil {
		t.Error("TLS 1.2 was taken")
	}
	f.wantLog(logTLSFailed)
}

func TestUnixSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s.sock")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()
	f := start(t, func(_ *Config, l *Listener) { l.Address, l.SocketMode, l.Allow = "unix:"+path, 0o666, nil })
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o666 {
		t.Errorf("socket: %v, %v", fi, err)
	}
	c := f.hello()
	c.envelope()
	c.data(plainMail, "250")
	m := f.wantMails(1)[0]
	if m.env.Peer != "" || !strings.HasPrefix(m.body, "Received: from client.example.org\r\n") {
		t.Errorf("stored %+v", m)
	}
	other := baseConfig(f.intake, f.log)
	other.Listeners[0].Address = "unix:" + path
	srv, err := New(other)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Listen(); err == nil {
		t.Error("a live socket was taken over")
	}
}

func TestSystemdSocket(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, func(c *Config, in *Listener) {
		in.Address = "systemd:smtp"
		c.Activated = map[string][]net.Listener{"smtp": {l}}
	})
	if f.srv.Addr("in").String() != l.Addr().String() {
		t.Errorf("listens at %s", f.srv.Addr("in"))
	}
	f.hello()
	c := baseConfig(f.intake, f.log)
	c.Listeners[0].Address = "systemd:other"
	srv, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := srv.Listen(); err == nil || !strings.Contains(err.Error(), `"other"`) {
		t.Errorf("Listen: %v", err)
	}
}

func TestPasswords(t *testing.T) {
	hash, err := HashPassword("correct horse")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(hash, "$argon2id$v=19$m=19456,t=2,p=1$") {
		t.Errorf("hash %q", hash)
	}
	for pw, want := range map[string]bool{"correct horse": true, "correct horsf": false, "": false} {
		if got, err := VerifyPassword(hash, pw); got != want || err != nil {
			t.Errorf("VerifyPassword(%q) = %t, %v", pw, got, err)
		}
	}
	for _, bad := range []string{
		"", "$2y$10$abc", "$argon2i$v=19$m=19456,t=2,p=1$c2FsdHNhbHQ$aGFzaA", "$argon2id$v=19$m=99999999,t=2,p=1$c2FsdHNhbHRzYWx0$" + strings.Repeat("A", 43),
		"$argon2id$v=19$m=19456,t=0,p=1$c2FsdHNhbHRzYWx0$" + strings.Repeat("A", 43), hash[:len(hash)-30],
	} {
		if _, err := VerifyPassword(bad, "x"); err == nil {
			t.Errorf("%q was read", bad)
		} else if len(bad) > 20 && strings.Contains(err.Error(), bad[len(bad)-10:]) {
			t.Errorf("the error shows the hash: %v", err)
		}
	}
}

func TestVerifyRemembers(t *testing.T) {
	hash, err := HashPassword("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	sem := make(chan struct{}, 1)
	u, err := newUsers([]User{{Name: "a", Hash: hash}, {Name: "b", Hash: hash}}, sem)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	ok, err := u.verify(t.Context(), "a", "s3cret", now)
	if !ok || err != nil {
		t.Fatalf("verify = %t, %v", ok, err)
	}
	sem <- struct{}{} // from here on argon2 is not to be had
	busy, cancel := context.WithCancel(t.Context())
	cancel()
	for _, tt := range []struct {
		name, user, pw string
		at             time.Time
		want           bool
	}{
		{"again", "a", "s3cret", now.Add(9 * time.Minute), true},
		{"wrong", "a", "other", now, false},
		{"another user with the same password", "b", "s3cret", now, false},
		{"too late", "a", "s3cret", now.Add(11 * time.Minute), false},
		{"unknown", "x", "s3cret", now, false},
	} {
		ok, err := u.verify(busy, tt.user, tt.pw, tt.at)
		if ok != tt.want || ok == (err != nil) {
			t.Errorf("%s: verify = %t, %v", tt.name, ok, err)
		}
	}
}

func TestHideAddresses(t *testing.T) {
	f := start(t, func(c *Config, l *Listener) {
		c.HideAddresses, l.Auth = true, AuthOptional
		c.Users = []User{{Name: "login@example.com", Password: secret.New("p")}}
		c.CheckSender = func(_, _, from string) *Refusal {
			if from == "boss@example.com" {
				return &Refusal{Code: 550, Text: "not as " + from}
			}
			return nil
		}
	})
	c := f.hello()
	c.cmd("AUTH PLAIN "+plain("login@example.com", "x"), "535")
	c.cmd("AUTH PLAIN "+plain("login@example.com", "p"), "235")
	c.cmd("MAIL FROM:<boss@example.com>", "550 5.0.0 not as boss@example.com")
	c.envelope("someone@example.net")
	c.data(plainMail, "250")
	c.cmd("MAIL FROM:<b@@x>", "501")
	f.wantLog(logAccepted)
	if l := f.log.String(); strings.Contains(l, "from@example.com") || strings.Contains(l, "someone@") || strings.Contains(l, "login@") || strings.Contains(l, "boss@") || strings.Contains(l, "b@@x") {
		t.Errorf("addresses in the log: %s", l)
	}
}

func TestMetrics(t *testing.T) {
	got := make(chan string, 20)
	f := start(t, func(c *Config, l *Listener) {
		c.Metrics = Metrics{
			Accepted: func(l string, _ int64) { got <- "accepted " + l },
			Refused:  func(l, reason string) { got <- "refused " + l + " " + reason },
			Sessions: func(l string, n int) { got <- fmt.Sprint("sessions ", l, " ", n) },
			AuthFail: func(l string) { got <- "auth " + l },
		}
		l.Auth, c.Users = AuthOptional, []User{{Name: "u", Password: secret.New("p")}}
	})
	c := f.hello()
	c.cmd("AUTH PLAIN "+plain("u", "x"), "535")
	c.envelope()
	c.data(plainMail, "250")
	c.cmd("MAIL FROM:<b@@x>", "501")
	c.cmd("QUIT", "221")
	for _, want := range []string{"sessions in 1", "auth in", "accepted in", "refused in bad_address", "sessions in 0"} {
		if g := <-got; g != want {
			t.Errorf("got %q, want %q", g, want)
		}
	}
}

func TestBadConfig(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		edit       func(*Config, *Listener)
	}{
		{"hostname", "hostname", func(c *Config, _ *Listener) { c.Hostname = "a b" }},
		{"intake", "no intake", func(c *Config, _ *Listener) { c.Intake = nil }},
		{"TLS without certificate", "certificate", func(_ *Config, l *Listener) { l.TLS = TLSStartTLS }},
		{"TLS mode", "tls mode", func(_ *Config, l *Listener) { l.TLS = "ssl" }},
		{"AUTH without users", "no user", func(_ *Config, l *Listener) { l.Auth = AuthRequired }},
		{"AUTH mode", "auth mode", func(_ *Config, l *Listener) { l.Auth = "yes" }},
		{"newlines", "bare_newlines", func(_ *Config, l *Listener) { l.BareNewlines = "keep" }},
		{"size", "message size", func(_ *Config, l *Listener) { l.MaxMessageSize = 3 << 30 }},
		{"negative", "negative", func(_ *Config, l *Listener) { l.MaxRecipients = -1 }},
		{"command line", "command line", func(_ *Config, l *Listener) { l.MaxCommand = 100 }},
		{"domain", "append_domain", func(_ *Config, l *Listener) { l.AppendDomain = "a b" }},
		{"alias", "alias", func(_ *Config, l *Listener) { l.Aliases = map[string][]string{"root": {"nowhere"}} }},
		{"two names", "used twice", func(c *Config, l *Listener) { c.Listeners = append(c.Listeners, *l) }},
		{"user", "exactly one", func(c *Config, _ *Listener) { c.Users = []User{{Name: "u"}} }},
		{"hash", "argon2id", func(c *Config, _ *Listener) { c.Users = []User{{Name: "u", Hash: "md5"}} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := baseConfig(&fakeIntake{}, &logBuffer{})
			tt.edit(&c, &c.Listeners[0])
			if _, err := New(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("New: %v, want %q", err, tt.want)
			}
		})
	}
}

// decodeAll runs the decoder over pieces of n bytes.
func decodeAll(in []byte, n int) (d decoder, used int) {
	d.dots = true
	for used < len(in) && !d.done {
		used += d.feed(in[used:min(used+n, len(in))])
	}
	return d, used
}

func FuzzDecoder(f *testing.F) {
	for _, end := range endVariants {
		f.Add([]byte("a" + end + "b\r\n.\r\nMAIL"))
	}
	f.Add([]byte("..\r\n...\r\r\r\n\x00\n.\r.\r\n.\r\n"))
	f.Add([]byte(strings.Repeat("\r", 30) + "\n.\r\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, used := decodeAll(in, len(in)+1)
		end := len(in)
		if bytes.HasPrefix(in, []byte(".\r\n")) {
			end = 3
		} else if i := bytes.Index(in, []byte("\r\n.\r\n")); i >= 0 {
			end = i + 5
		}
		if d.done != (end < len(in) || bytes.HasSuffix(in, []byte("\r\n.\r\n")) || string(in) == ".\r\n") || used != end {
			t.Fatalf("%q: done %t after %d bytes, the end mark is at %d", in, d.done, used, end)
		}
		if out := bytes.ReplaceAll(d.out, []byte("\r\n"), nil); bytes.ContainsAny(out, "\r\n\x00") {
			t.Fatalf("%q: bare newlines in %q", in, d.out)
		}
		if len(d.out) > 2*len(in) {
			t.Fatalf("%q grew to %d bytes", in, len(d.out))
		}
		for _, n := range []int{1, 2, 3} {
			p, pUsed := decodeAll(in, n)
			if !bytes.Equal(p.out, d.out) || pUsed != used || p.lf != d.lf || p.cr != d.cr || p.nul != d.nul || p.longest != d.longest {
				t.Fatalf("%q in pieces of %d: %q, %d, not %q, %d", in, n, p.out, pUsed, d.out, used)
			}
		}
	})
}

func BenchmarkData(b *testing.B) {
	msg := "Subject: x\r\n\r\n" + strings.Repeat(strings.Repeat("x", 74)+"\r\n", 1<<20/76) + ".\r\n"
	f := start(b, func(c *Config, _ *Listener) { c.Log = nil })
	f.intake.commit = func(context.Context, envelope.Envelope) error { return &Refusal{Code: 450, Text: "not kept"} }
	c := f.hello()
	_ = c.c.SetDeadline(time.Time{})
	b.SetBytes(int64(len(msg)))
	for b.Loop() {
		c.envelope()
		c.cmd("DATA", "354")
		c.send(msg)
		c.want("450")
	}
}

// FuzzSession lets a client say anything: the session must end, without a panic and without
// a transaction left open, and what is committed must be well-formed.
func FuzzSession(f *testing.F) {
	f.Add([]byte("EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: x\r\n\r\nb\r\n.\r\nQUIT\r\n"))
	f.Add([]byte("EHLO x\r\nMAIL FROM:<> SIZE=5 BODY=8BITMIME\r\nRCPT TO:<\"q@\"@d.example> NOTIFY=NEVER\r\nBDAT 5\r\nabcdeBDAT 3 LAST\r\nxyzRSET\r\n"))
	f.Add([]byte("EHLO x\nAUTH PLAIN\n*\nAUTH LOGIN AAAA\nAAAA\nVRFY x\nSTARTTLS\n"))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	f.Add([]byte("HELO x\r\nMAIL FROM:root\r\nRCPT TO:root\r\nDATA\r\n.\n.\r.\r\n.\r\n"))
	srv := start(f, func(c *Config, l *Listener) {
		l.DSN, l.Auth, l.AppendDomain = true, AuthOptional, "corp.example"
		l.IdleTimeout, l.DataTimeout = 300*time.Millisecond, 300*time.Millisecond
		c.Users = []User{{Name: "u", Password: secret.New("p")}}
		c.Log = nil
	})
	srv.srv.authDelay = 0
	f.Fuzz(func(t *testing.T, in []byte) {
		srv.t = t
		c := srv.dial()
		_, _ = c.c.Write(in)
		if tc, ok := c.c.(*net.TCPConn); ok {
			_ = tc.CloseWrite()
		}
		out, _ := io.ReadAll(c.br)
		_ = c.c.Close()
		for _, line := range bytes.Split(bytes.TrimSuffix(out, []byte("\r\n")), []byte("\r\n")) {
			if len(out) > 0 && (len(line) < 4 || line[0] < '2' || line[0] > '5' || line[3] != ' ' && line[3] != '-' || bytes.ContainsAny(line, "\r\n\x00")) {
				t.Fatalf("reply line %q", line)
			}
			if bytes.HasPrefix(line, []byte("421 4.3.0")) {
				t.Fatalf("%q panics", in)
			}
		}
		srv.intake.mu.Lock()
		defer srv.intake.mu.Unlock()
		for _, m := range srv.intake.mails {
			checkCRLF(t, m.body)
			for _, r := range m.env.Rcpts {
				if err := envelope.ValidateAddr(r.Addr); err != nil {
					t.Fatalf("%q was taken: %v", r.Addr, err)
				}
			}
		}
		srv.intake.mails = nil
	})
}
