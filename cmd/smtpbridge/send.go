package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	stdsmtp "net/smtp"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/config"
	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/providers/all"
)

func sendCommand() *cobra.Command {
	var from, subject, listener, user, passwordFile string
	var to, attach []string
	c := &cobra.Command{
		Use: "send --from A --to B[,C] [FILE]", GroupID: groupMail, Short: "send a test mail through the running bridge",
		Long: `Speaks SMTP to a listener of the running bridge, as an application would. FILE is a
complete mail (RFC 5322); without it a short text is made from --subject and --attach.`,
		Example:     "  smtpbridge send --from me@example.com --to ada@example.net\n  smtpbridge send --from me@example.com --to ada@example.net --user crm --password-file crm.pw order.eml",
		Annotations: map[string]string{annotationExit: exitCodes + ", 75 the bridge cannot be reached or says \"try again later\""},
		Args:        usageArgs(cobra.MaximumNArgs(1)),
	}
	file := configFlag(c)
	f := c.Flags()
	f.StringVar(&from, "from", "", "sender")
	f.StringSliceVar(&to, "to", nil, "recipients, separated by commas")
	f.StringVar(&subject, "subject", "Test mail from smtpbridge", "subject of the made mail")
	f.StringArrayVar(&attach, "attach", nil, "file to attach to the made mail; may be repeated")
	f.StringVar(&listener, "listener", "", "name of the listener to speak to (default: the first)")
	f.StringVar(&user, "user", "", "log in as this user")
	f.StringVar(&passwordFile, "password-file", "", "file with the user's password")
	c.RunE = func(c *cobra.Command, args []string) error {
		if from == "" || len(to) == 0 {
			return usageError(c, "give --from and --to")
		}
		for _, a := range append([]string{from}, to...) {
			if err := envelope.ValidateAddr(a); err != nil {
				return usageError(c, "%q: %w", a, err)
			}
		}
		cfg, err := config.Load(*file, all.Registry().Names())
		if err != nil {
			return err
		}
		l, err := findListener(cfg, listener)
		if err != nil {
			return err
		}
		data, err := mailToSend(c.InOrStdin(), args, from, to, subject, attach)
		if err != nil {
			return err
		}
		var auth stdsmtp.Auth
		if user != "" {
			pw, err := os.ReadFile(passwordFile)
			if err != nil {
				return fmt.Errorf("--password-file: %w", err)
			}
			auth = stdsmtp.PlainAuth("", user, strings.TrimRight(string(pw), "\r\n"), "127.0.0.1")
		}
		reply, err := submit(c.Context(), l, auth, from, to, data)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(c.OutOrStdout(), reply)
		return err
	}
	return c
}

func findListener(cfg *config.Config, name string) (*config.Listener, error) {
	for i := range cfg.Listeners {
		l := &cfg.Listeners[i]
		switch {
		case name == "" && l.Protocol == "lmtp": // the next one may speak SMTP
		case name == l.Name && l.Protocol == "lmtp":
			return nil, fmt.Errorf("listener %q speaks LMTP, not SMTP: use --listener with another one", name)
		case name == "" || l.Name == name:
			return l, nil
		}
	}
	if name == "" {
		return nil, fmt.Errorf("no listener in %s speaks SMTP", cfg.File)
	}
	return nil, fmt.Errorf("there is no listener %q in %s", name, cfg.File)
}

func mailToSend(stdin io.Reader, args []string, from string, to []string, subject string, attach []string) ([]byte, error) {
	if len(args) == 1 {
		r, size, err := openMail(stdin, args)
		if err != nil {
			return nil, err
		}
		defer r.Close()
		return io.ReadAll(io.NewSectionReader(r, 0, size))
	}
	d := draft{From: []mime.Address{{Addr: from}}, Subject: subject, Text: "This is a test mail, sent by `smtpbridge send`.\n"}
	for _, a := range to {
		d.To = append(d.To, mime.Address{Addr: a})
	}
	for _, path := range attach {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		d.Files = append(d.Files, draftFile{Name: filepath.Base(path), Data: b})
	}
	return d.bytes(time.Now())
}

// submit sends one mail to a listener on this machine and returns its reply to the message.
func submit(ctx context.Context, l *config.Listener, auth stdsmtp.Auth, from string, to []string, data []byte) (string, error) {
	network, addr := "tcp", l.Address
	switch {
	case strings.HasPrefix(addr, "unix:"):
		network, addr = "unix", strings.TrimPrefix(addr, "unix:")
	case strings.HasPrefix(addr, "systemd:"):
		return "", fmt.Errorf("listener %s is a socket of systemd: its address is not known here; use --listener with another one", l.Name)
	}
	if host, port, err := net.SplitHostPort(addr); err == nil {
		if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
			addr = net.JoinHostPort("127.0.0.1", port)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return "", &exitError{exTempFail, fmt.Errorf("no bridge answers at listener %s: %w", l.Name, err)}
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(deadline); err != nil {
			return "", err
		}
	}
	// The listener is ours and on this machine; its certificate is made out to its public name.
	own := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // loopback only
	if l.TLS == "implicit" {
		conn = tls.Client(conn, own)
	}
	reply, err := dialogue(conn, own, auth, from, to, data)
	var perr *textproto.Error
	switch {
	case err == nil:
		return reply, nil
	case errors.As(err, &perr):
		err = fmt.Errorf("the bridge answered: %d %s", perr.Code, perr.Msg)
		if perr.Code < 500 {
			return "", &exitError{exTempFail, err}
		}
		return "", err
	}
	return "", &exitError{exTempFail, err}
}

func dialogue(conn net.Conn, own *tls.Config, auth stdsmtp.Auth, from string, to []string, data []byte) (string, error) {
	c, err := stdsmtp.NewClient(conn, "127.0.0.1")
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.Hello("localhost"); err != nil {
		return "", err
	}
	if ok, _ := c.Extension("STARTTLS"); ok && own != nil {
		if err := c.StartTLS(own); err != nil {
			return "", err
		}
	}
	if auth != nil {
		if err := c.Auth(auth); err != nil {
			return "", err
		}
	}
	if err := c.Mail(from); err != nil {
		return "", err
	}
	for _, a := range to {
		if err := c.Rcpt(a); err != nil {
			return "", err
		}
	}
	id, err := c.Text.Cmd("DATA")
	if err != nil {
		return "", err
	}
	c.Text.StartResponse(id)
	_, _, err = c.Text.ReadResponse(354)
	c.Text.EndResponse(id)
	if err != nil {
		return "", err
	}
	w := c.Text.DotWriter()
	if _, err := w.Write(data); err != nil {
		return "", err
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	_, msg, err := c.Text.ReadResponse(250)
	if err != nil {
		return "", err
	}
	_ = c.Quit() // the mail is accepted: how the session ends does not matter
	return msg, nil
}
