package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"os/user"
	"path/filepath"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/spf13/cobra"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// Further exit codes of sysexits.h, which callers of sendmail know.
const (
	exUsage       = 64 // the command line
	exDataErr     = 65 // the mail
	exUnavailable = 69 // the server refused it for good
	exConfig      = 78
)

const sendmailConfig = "/etc/smtpbridge/sendmail.toml"

// sendmailSettings is /etc/smtpbridge/sendmail.toml: readable by every user, so it holds no secrets.
type sendmailSettings struct {
	Server string `toml:"server"` // "host:port" or "unix:/path"
	Domain string `toml:"domain"` // qualifies bare addresses; "" = this host's name
	TLS    string `toml:"tls"`    // auto (STARTTLS where offered) | off
}

// sendmailArgs is a command line of /usr/sbin/sendmail.
type sendmailArgs struct {
	from, fullName string
	haveFrom       bool
	readRcpts      bool // -t
	ignoreDots     bool // -i, -oi
	mode           byte // -bX; 'm' = deliver
	config         string
	rcpts          []string
}

// isSendmail reports whether the program was called by one of sendmail's names.
func isSendmail(argv0 string) bool {
	switch filepath.Base(argv0) {
	case "sendmail", "newaliases", "mailq":
		return true
	}
	return false
}

// sendmailName adds the mode that the other names of sendmail stand for.
func sendmailName(argv0 string, args []string) []string {
	switch filepath.Base(argv0) {
	case "newaliases":
		return append([]string{"-bi"}, args...)
	case "mailq":
		return append([]string{"-bp"}, args...)
	}
	return args
}

func sendmailCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sendmail [-t] [-i] [-f ADDRESS] [-F NAME] [-bs] [RECIPIENT...]", GroupID: groupMail, Short: "take a mail as /usr/sbin/sendmail does",
		Long: `Compatible with /usr/sbin/sendmail as PHP, cron and git use it; also works when the program is
called by that name (ln -s smtpbridge /usr/sbin/sendmail). It reads a mail from standard input and
hands it to the bridge by SMTP. Settings: ` + sendmailConfig + ` (server, domain, tls), never
bridge.toml.`,
		Example: "  printf 'Subject: hello\\n\\ntext\\n' | smtpbridge sendmail -t -i -f me@example.com ada@example.net",
		Annotations: map[string]string{annotationExit: `those of sysexits.h: 0 accepted, 64 command line, 65 mail or recipient, 69 refused for good,
  75 the bridge cannot be reached or says "try again later", 78 settings`},
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 && args[0] == "--help" {
				return c.Help()
			}
			return sendmail(c.Context(), args, c.InOrStdin(), c.OutOrStdout())
		},
	}
}

func sendmail(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	a, err := parseSendmailArgs(args)
	if err != nil {
		return &exitError{exUsage, err}
	}
	set, err := loadSendmail(a.config)
	if err != nil {
		return &exitError{exConfig, err}
	}
	switch a.mode {
	case 'i': // newaliases: aliases are in bridge.toml
		return nil
	case 'p':
		return &exitError{exUnavailable, errors.New("the queue is shown by `smtpbridge queue list`")}
	case 's':
		return relaySMTP(ctx, set, in, out)
	case 'm':
	default:
		return &exitError{exUsage, fmt.Errorf("mode -b%c is not supported", a.mode)}
	}
	data, err := readSendmail(in, a.ignoreDots)
	if err != nil {
		return &exitError{exTempFail, err}
	}
	return deliverSendmail(ctx, a, set, data)
}

// parseSendmailArgs reads sendmail's options. Those about sendmail's own queue and debugging mean nothing here and are
// taken silently, since programs pass them by habit.
func parseSendmailArgs(args []string) (*sendmailArgs, error) {
	a := &sendmailArgs{mode: 'm'}
	for i := 0; i < len(args); i++ {
		s := args[i]
		if s == "--" {
			a.rcpts = append(a.rcpts, args[i+1:]...)
			break
		}
		if len(s) < 2 || s[0] != '-' {
			a.rcpts = append(a.rcpts, s)
			continue
		}
		// value gives what stands behind the letter, or the next argument.
		value := func() (string, error) {
			if len(s) > 2 {
				return s[2:], nil
			}
			if i++; i >= len(args) {
				return "", fmt.Errorf("option %s needs a value", s)
			}
			return args[i], nil
		}
		var err error
	option:
		switch s[1] {
		case 't', 'i', 'n', 'v', 'U', 'm', 'G', 's': // single letters, which may stand together: -ti
			a.readRcpts = a.readRcpts || s[1] == 't'
			a.ignoreDots = a.ignoreDots || s[1] == 'i'
			if len(s) > 2 {
				s = "-" + s[2:]
				goto option
			}
		case 'f', 'r':
			a.from, err = value()
			a.haveFrom = true
		case 'F':
			a.fullName, err = value()
		case 'b':
			if len(s) != 3 {
				return nil, fmt.Errorf("option %s is not known", s)
			}
			a.mode = s[2]
		case 'C':
			a.config, err = value()
		case 'o':
			if s == "-oi" {
				a.ignoreDots = true
			} else if s == "-o" {
				_, err = value()
			}
		case 'O', 'N', 'R', 'V', 'B', 'L', 'p', 'X', 'h':
			_, err = value()
		case 'q', 'e', 'd', 'A': // what belongs to them stands right behind
		case 'I':
			a.mode = 'i'
		default:
			return nil, fmt.Errorf("option %s is not known", s)
		}
		if err != nil {
			return nil, err
		}
	}
	return a, nil
}

func loadSendmail(file string) (*sendmailSettings, error) {
	set := &sendmailSettings{Server: "127.0.0.1:25", TLS: "auto"}
	explicit := file != ""
	if !explicit {
		file = sendmailConfig
	}
	md, err := toml.DecodeFile(file, set)
	if errors.Is(err, os.ErrNotExist) && !explicit {
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if un := md.Undecoded(); len(un) > 0 {
		return nil, fmt.Errorf("%s: unknown key %q; known: server, domain, tls", file, un[0])
	}
	if set.TLS != "auto" && set.TLS != "off" {
		return nil, fmt.Errorf("%s: tls: %q is not one of auto, off", file, set.TLS)
	}
	if set.Domain == "" {
		if set.Domain, err = os.Hostname(); err != nil {
			return nil, err
		}
	}
	return set, nil
}

// maxSendmail bounds what is read from standard input; the bridge's own limit decides below it.
const maxSendmail = 256 << 20

// readSendmail reads the mail; without -i a line with a single dot ends it.
func readSendmail(in io.Reader, ignoreDots bool) ([]byte, error) {
	var b bytes.Buffer
	r := bufio.NewReader(io.LimitReader(in, maxSendmail+1))
	for {
		line, err := r.ReadBytes('\n')
		if !ignoreDots && (string(line) == ".\n" || string(line) == ".\r\n") {
			break
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) > 0 || err == nil {
			b.Write(line)
			b.WriteString("\r\n")
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the mail: %w", err)
		}
	}
	if b.Len() > maxSendmail {
		return nil, fmt.Errorf("the mail is larger than %d bytes", maxSendmail)
	}
	return b.Bytes(), nil
}

func deliverSendmail(ctx context.Context, a *sendmailArgs, set *sendmailSettings, data []byte) error {
	m, err := mime.Parse(bytes.NewReader(data), int64(len(data)), mime.Limits{})
	if err != nil {
		return &exitError{exDataErr, err}
	}
	qualify := func(addr string) string {
		if addr != "" && !strings.Contains(addr, "@") {
			return addr + "@" + set.Domain
		}
		return addr
	}
	login := "nobody"
	if u, err := user.Current(); err == nil {
		login = u.Username
	}
	from := qualify(strings.Trim(a.from, "<>"))
	if !a.haveFrom {
		from = qualify(login)
	}
	var rcpts []string
	add := func(addr string) {
		if addr = qualify(strings.Trim(strings.TrimSpace(addr), "<>")); addr != "" {
			rcpts = append(rcpts, addr)
		}
	}
	for _, arg := range a.rcpts {
		for _, p := range strings.Split(arg, ",") {
			add(p)
		}
	}
	if a.readRcpts {
		for _, name := range []string{"To", "Cc", "Bcc"} {
			for _, v := range m.Header.Values(name) {
				for _, p := range mime.ParseAddressList(v) {
					add(p.Addr)
				}
			}
		}
	}
	if len(rcpts) == 0 {
		return &exitError{exUsage, errors.New("no recipients: give them as arguments, or -t to take them from the header")}
	}
	for _, r := range rcpts {
		if err := envelope.ValidateAddr(r); err != nil {
			return &exitError{exDataErr, fmt.Errorf("recipient %q: %w", r, err)}
		}
	}
	data = withoutBcc(m, data)
	if len(m.From) == 0 && !m.Header.Has("From") {
		addr := from
		if addr == "" {
			addr = qualify(login)
		}
		data = append([]byte("From: "+mime.FormatAddressHeader([]mime.Address{{Name: a.fullName, Addr: addr}})+"\r\n"), data...)
	}
	conn, err := dialSendmail(ctx, set)
	if err != nil {
		return &exitError{exTempFail, err}
	}
	defer conn.Close()
	var own *tls.Config
	if set.TLS == "auto" {
		host, _, _ := net.SplitHostPort(set.Server)
		own = &tls.Config{ServerName: host}
		if ip := net.ParseIP(host); host == "localhost" || strings.HasPrefix(set.Server, "unix:") || ip != nil && ip.IsLoopback() {
			own.InsecureSkipVerify = true // this machine: the certificate is made out to its public name
		}
	}
	_, err = dialogue(conn, own, nil, from, rcpts, data)
	var perr *textproto.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &perr) && perr.Code >= 500:
		return &exitError{exUnavailable, err}
	}
	return &exitError{exTempFail, err}
}

// withoutBcc removes Bcc fields and a leading mbox line from the header.
func withoutBcc(m *mime.Message, data []byte) []byte {
	for _, f := range m.Header {
		if strings.EqualFold(f.Name, "Bcc") {
			data = bytes.Replace(data, f.Raw, nil, 1)
		}
	}
	return data
}

func dialSendmail(ctx context.Context, set *sendmailSettings) (net.Conn, error) {
	network, addr := "tcp", set.Server
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", path
	}
	d := net.Dialer{Timeout: 10 * time.Second}
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, fmt.Errorf("the bridge cannot be reached: %w", err)
	}
	if err := conn.SetDeadline(time.Now().Add(5 * time.Minute)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// relaySMTP is -bs: the caller speaks SMTP on standard input and output.
func relaySMTP(ctx context.Context, set *sendmailSettings, in io.Reader, out io.Writer) error {
	conn, err := dialSendmail(ctx, set)
	if err != nil {
		fmt.Fprint(out, "421 4.3.2 the bridge cannot be reached\r\n")
		return &exitError{exTempFail, err}
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(conn, in) // the server answers what was sent; then it closes
		if c, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = c.CloseWrite()
		}
	}()
	if _, err := io.Copy(out, conn); err != nil {
		return &exitError{exTempFail, err}
	}
	return nil
}
