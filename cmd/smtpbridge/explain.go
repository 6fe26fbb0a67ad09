package main

import (
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/mime"
)

func explainCommand() *cobra.Command {
	var from, user, listener string
	var to []string
	c := &cobra.Command{
		Use:     "explain --from A --to B[,C] [MAIL.eml]",
		GroupID: groupMail,
		Example: "  smtpbridge explain --from me@example.com --to ada@example.net mail.eml",
		Short:   "show what would be sent for a mail, without sending it",
		Long: `Prints as JSON how a mail would be read, which route and accounts it takes, what each
account's API cannot express, and the requests that would be made. Secrets are shown as
<secret>. Nothing is sent.`,
		Args: usageArgs(cobra.MaximumNArgs(1)),
	}
	file := configFlag(c)
	c.Flags().StringVar(&from, "from", "", "envelope sender; empty is the null sender")
	c.Flags().StringSliceVar(&to, "to", nil, "envelope recipients, separated by commas")
	c.Flags().StringVar(&user, "user", "", "as if this user had logged in")
	c.Flags().StringVar(&listener, "listener", "", "as if it came in by this listener (default: the first)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(to) == 0 {
			return usageError(c, "give the recipients with --to")
		}
		p, err := loadParts(*file, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		if listener == "" {
			listener = p.cfg.Listeners[0].Name
		}
		body, size, err := openMail(c.InOrStdin(), args)
		if err != nil {
			return err
		}
		defer body.Close()
		now := time.Now().UTC()
		id := envelope.NewID(now)
		mail, err := asReceived(io.NewSectionReader(body, 0, size), id, p.cfg.Hostname, now)
		if err != nil {
			return err
		}
		size = int64(len(mail))
		env := envelope.Envelope{ID: id, From: strings.Trim(from, "<>"), AuthUser: user, Listener: listener, Received: now, Size: size}
		for _, a := range to {
			a = strings.Trim(strings.TrimSpace(a), "<>")
			if err := envelope.ValidateAddr(a); err != nil {
				return usageError(c, "--to %q: %w", a, err)
			}
			env.Rcpts = append(env.Rcpts, envelope.Rcpt{Addr: a})
		}
		ex, err := p.planner.Explain(deliver.PlanRequest{Envelope: env, Body: bytes.NewReader(mail), Size: size, AllowedFrom: allowedFrom(p.cfg, user)})
		if err != nil {
			return err
		}
		return printJSON(c.OutOrStdout(), ex)
	}
	return c
}

// asReceived gives a mail the form that it would have in the queue: CRLF line ends, Date and Message-ID.
func asReceived(r io.Reader, id, host string, now time.Time) ([]byte, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, fmt.Errorf("read mail: %w", err)
	}
	b = bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n"))
	b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
	m, err := mime.Parse(bytes.NewReader(b), int64(len(b)), mime.Limits{})
	if err != nil {
		return b, nil // the explanation says what is wrong
	}
	var head []byte
	if !m.Header.Has("Date") {
		head = fmt.Appendf(head, "Date: %s\r\n", now.Format("Mon, 02 Jan 2006 15:04:05 -0700"))
	}
	if !m.Header.Has("Message-ID") {
		head = fmt.Appendf(head, "Message-ID: <%s@%s>\r\n", id, host)
	}
	if m.Root.BodyStart == 0 {
		head = append(head, "\r\n"...) // it is all body
	}
	return append(head, b...), nil
}
