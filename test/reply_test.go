package test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

// TestRefusalNamesEachAccount: the reply on the wire to a mail that no account of its route can keep.
func TestRefusalNamesEachAccount(t *testing.T) {
	dir, port := shortDir(t), freePort(t)
	b := newBridge(t, dir, fmt.Sprintf(`data_dir = %q
[[listener]]
address = "127.0.0.1:%d"
[webhook]
address = ""
[[route]]
senders = ["example.com"]
accounts = ["pace", "sender", "roo"]
[[account]]
name = "pace"
provider = "mailpace"
api_key = "k"
base_url = "http://127.0.0.1:1"
[[account]]
name = "sender"
provider = "mailersend"
api_key = "k"
base_url = "http://127.0.0.1:1"
[[account]]
name = "roo"
provider = "maileroo"
api_key = "k"
base_url = "http://127.0.0.1:1"
`, dir, port))
	b.start()
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(30 * time.Second))
	r := bufio.NewReader(c)
	say := func(text string) (lines []string) {
		t.Helper()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if lines = append(lines, strings.TrimSuffix(line, "\r\n")); len(line) < 4 || line[3] != '-' {
				return lines
			}
		}
	}
	say("")
	say("EHLO client.example.com\r\n")
	say("MAIL FROM:<app@example.com>\r\n")
	say("RCPT TO:<ada@example.net>\r\n")
	say("DATA\r\n")
	// Signed, with an attachment that two of the APIs do not take.
	lines := say("From: app@example.com\r\nTo: ada@example.net\r\nSubject: x\r\nMIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b; protocol=\"application/pgp-signature\"; micalg=pgp-sha256\r\n\r\n" +
		"--b\r\nContent-Type: application/octet-stream\r\nContent-Disposition: attachment; filename=setup.exe\r\n\r\nMZ\r\n--b\r\nContent-Type: application/pgp-signature\r\n\r\nsig\r\n--b--\r\n.\r\n")
	t.Logf("%s", strings.Join(lines, "\n"))
	if len(lines) < 2 {
		t.Errorf("one line for three accounts: %q", lines)
	}
	for i, line := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		if !strings.HasPrefix(line, "554"+sep+"5.6.3 account") || len(line) > 510 {
			t.Errorf("line %d is %q", i, line)
		}
	}
	for _, account := range []string{"pace", "sender", "roo"} {
		if !strings.Contains(strings.Join(lines, "\n"), account) {
			t.Errorf("nothing of %s in %q", account, lines)
		}
	}
	say("QUIT\r\n")
}
