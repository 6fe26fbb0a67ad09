package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sort"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/config"
	"smtpbridge/providers"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

func checkCommand() *cobra.Command {
	var online bool
	c := &cobra.Command{
		Use: "check", GroupID: groupStart, Short: "check the configuration: all errors at once", Args: usageArgs(cobra.NoArgs),
		Long: `Reads the configuration as serve does and reports every error with file, line and key.
Nothing is started and nothing leaves the machine, except with --online, which asks each ESP
whether the key and the sender domains are good, and the CA of [acme] whether it is there.`,
		Example:     "  smtpbridge check -c bridge.toml\n  smtpbridge check --online",
		Annotations: map[string]string{annotationExit: "0 the configuration is good, 1 it has errors, 2 the command line cannot be understood"},
	}
	file := configFlag(c)
	c.Flags().BoolVar(&online, "online", false, "ask the ESPs and the CA too")
	c.RunE = func(c *cobra.Command, _ []string) error {
		p, err := loadParts(*file, 0, slog.New(slog.DiscardHandler))
		if err == nil {
			err = checkWebhooks(p)
		}
		var problems config.Problems
		if errors.As(err, &problems) {
			fmt.Fprintln(c.ErrOrStderr(), problems.Error())
			return fmt.Errorf("%s: %s", *file, plural(problems.Errors(), "error"))
		}
		if err != nil {
			return err
		}
		for _, w := range p.cfg.Warnings {
			fmt.Fprintln(c.ErrOrStderr(), w)
		}
		if p.cfg.Webhook.Address != "" {
			_, skipped := hookAccounts(p)
			for _, why := range skipped {
				why.Warning, why.Text = true, "its webhooks are not served: "+why.Text
				fmt.Fprintln(c.ErrOrStderr(), why)
			}
		}
		out := c.OutOrStdout()
		fmt.Fprintf(out, "%s is good: %s, %s, %s\n", *file, plural(len(p.cfg.Listeners), "listener"), plural(len(p.cfg.Accounts), "account"), plural(len(p.cfg.Routes), "route"))
		if online {
			return checkOnline(c.Context(), p, out)
		}
		return nil
	}
	return c
}

// checkWebhooks finds out what would keep the webhook listener from starting.
func checkWebhooks(p *parts) error {
	if p.cfg.Webhook.Address == "" {
		return nil
	}
	c, _ := hookAccounts(p)
	c.Recorder = (*store.Store)(nil) // nothing is recorded by a check
	if _, err := webhookd.New(c); err != nil {
		return config.Problems{p.cfg.Problem("account", err)}
	}
	return nil
}

func checkOnline(ctx context.Context, p *parts, out io.Writer) error {
	names := make([]string, 0, len(p.accounts))
	for n := range p.accounts {
		names = append(names, n)
	}
	sort.Strings(names)
	failed := checkACME(ctx, p.cfg, out)
	for _, n := range names {
		checker, ok := p.accounts[n].Provider.(providers.Checker)
		if !ok {
			fmt.Fprintf(out, "account %s: its API has no call to check a key without sending\n", n)
			continue
		}
		call, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := checker.Check(call)
		cancel()
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("account %s: %w", n, err))
			continue
		}
		fmt.Fprintf(out, "account %s: good\n", n)
		if wrong := checkRegistration(ctx, p, p.accounts[n]); wrong != "" {
			fmt.Fprintf(out, "account %s: warning: its webhook: %s (smtpbridge webhook setup %s)\n", n, wrong, n)
		}
	}
	return failed
}
