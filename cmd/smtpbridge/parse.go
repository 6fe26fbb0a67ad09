package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"smtpbridge/mime"
)

func parseCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "parse [MAIL.eml]",
		GroupID: groupMail,
		Short:   "print a mail as the neutral message the bridge sees, as JSON",
		Example: "  smtpbridge parse mail.eml\n  smtpbridge parse < mail.eml",
		Long:    "Reads a mail from a file or standard input and prints the neutral message as JSON:\nsubject, addresses, text, html, headers, attachments and everything the parser had to guess.",
		Args:    usageArgs(cobra.MaximumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			r, size, err := openMail(c.InOrStdin(), args)
			if err != nil {
				return err
			}
			defer r.Close()
			m, err := mime.Parse(r, size, mime.Limits{})
			if err != nil {
				return fmt.Errorf("parse: %w", err)
			}
			return m.WriteJSON(c.OutOrStdout())
		},
	}
}

// mailFile is a mail that can be read at any place, as package mime wants it.
type mailFile interface {
	io.ReaderAt
	io.Closer
}

type memoryMail struct{ *bytes.Reader }

func (memoryMail) Close() error { return nil }

// openMail opens the mail named by the only argument, or reads it from stdin.
func openMail(stdin io.Reader, args []string) (mailFile, int64, error) {
	if len(args) == 0 || args[0] == "-" {
		b, err := io.ReadAll(stdin)
		if err != nil {
			return nil, 0, fmt.Errorf("read standard input: %w", err)
		}
		return memoryMail{bytes.NewReader(b)}, int64(len(b)), nil
	}
	f, err := os.Open(args[0])
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", args[0])
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}
