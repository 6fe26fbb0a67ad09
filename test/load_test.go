package test

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// smtpConn is a plain SMTP client that tells exactly how far a mail came.
type smtpConn struct {
	net.Conn
	r *bufio.Reader
}

// dialSMTP connects and greets; it waits as long as nobody listens, at most limit.
func dialSMTP(addr string, limit time.Duration) (*smtpConn, error) {
	deadline := time.Now().Add(limit)
	for {
		c, err := net.DialTimeout("tcp", addr, time.Second)
		if err == nil {
			s := &smtpConn{c, bufio.NewReader(c)}
			if err = s.expect("220"); err == nil {
				if err = s.cmd("250", "EHLO load.example.com"); err == nil {
					return s, nil
				}
			}
			c.Close()
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no SMTP server at %s: %w", addr, err)
		}
		time.Sleep(20 * time.Millisecond) // until the bridge listens again
	}
}

// expect reads one reply and wants its code.
func (s *smtpConn) expect(code string) error { return s.expectWithin(code, time.Minute) }

func (s *smtpConn) expectWithin(code string, limit time.Duration) error {
	if err := s.SetDeadline(time.Now().Add(limit)); err != nil {
		return err
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return err
		}
		if len(line) < 4 || !strings.HasPrefix(line, code) {
			return fmt.Errorf("reply %q, want %s", strings.TrimSpace(line), code)
		}
		if line[3] == ' ' {
			return nil
		}
	}
}

func (s *smtpConn) cmd(code, line string) error {
	if _, err := fmt.Fprintf(s, "%s\r\n", line); err != nil {
		return err
	}
	return s.expect(code)
}

// send gives one mail to the server. acked tells that the final 250 came.
func (s *smtpConn) send(from string, to []string, data string) (acked bool, err error) {
	if err := s.cmd("250", "MAIL FROM:<"+from+">"); err != nil {
		return false, err
	}
	for _, a := range to {
		if err := s.cmd("250", "RCPT TO:<"+a+">"); err != nil {
			return false, err
		}
	}
	if err := s.cmd("354", "DATA"); err != nil {
		return false, err
	}
	if _, err := s.Write([]byte(strings.ReplaceAll(data, "\r\n.", "\r\n..") + "\r\n.\r\n")); err != nil {
		return false, err
	}
	if err := s.expect("250"); err != nil {
		return false, err
	}
	return true, nil
}
