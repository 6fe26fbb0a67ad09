package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"smtpbridge/smtp"
)

func hashPasswordCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hash-password", GroupID: groupStart, Short: "make an argon2id hash for [[user]] password_hash", Args: usageArgs(cobra.NoArgs),
		Long:    "Reads a password from the terminal, or one line from standard input, and prints its argon2id hash\nfor password_hash in the configuration.",
		Example: "  smtpbridge hash-password\n  smtpbridge hash-password < crm.pw",
		RunE: func(c *cobra.Command, _ []string) error {
			pw, err := readPassword(c.InOrStdin(), c.ErrOrStderr())
			if err != nil {
				return err
			}
			hash, err := smtp.HashPassword(pw)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), hash)
			return err
		},
	}
}

func readPassword(in io.Reader, prompt io.Writer) (string, error) {
	if f, ok := in.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		ask := func(text string) (string, error) {
			fmt.Fprint(prompt, text)
			b, err := term.ReadPassword(int(f.Fd()))
			fmt.Fprintln(prompt)
			return string(b), err
		}
		first, err := ask("Password: ")
		if err != nil {
			return "", err
		}
		second, err := ask("Again: ")
		if err != nil {
			return "", err
		}
		if first != second {
			return "", errors.New("the two passwords differ")
		}
		return notEmpty(first)
	}
	line, err := bufio.NewReader(io.LimitReader(in, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return notEmpty(strings.TrimRight(line, "\r\n"))
}

func notEmpty(pw string) (string, error) {
	if pw == "" {
		return "", errors.New("the password is empty")
	}
	return pw, nil
}
