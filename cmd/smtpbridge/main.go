// Command smtpbridge accepts mail by SMTP, sends it through the HTTPS API of an email service
// provider and turns the provider's webhooks into one normalised event log.
//
// Exit codes: 0 success; 1 failure, or a configuration with errors; 2 a command line that
// cannot be understood; 75 (EX_TEMPFAIL) send could not hand the mail over now.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"
)

// version is set by the linker; see the Makefile.
var version = ""

func buildVersion() string {
	if version != "" {
		return version
	}
	if bi, ok := debug.ReadBuildInfo(); ok && bi.Main.Version != "" {
		return bi.Main.Version
	}
	return "dev"
}

// exitError carries the exit code of a failure.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

const defaultConfig = "/etc/smtpbridge/bridge.toml"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	args := os.Args[1:]
	if isSendmail(os.Args[0]) {
		args = append([]string{"sendmail"}, sendmailName(os.Args[0], args)...)
	}
	os.Exit(run(ctx, args))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	code := 1
	var ee *exitError
	if errors.As(err, &ee) {
		code = ee.code
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(root.ErrOrStderr(), msg)
	}
	return code
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "smtpbridge",
		Short: "SMTP in, ESP API out, webhooks back as one event log",
		Long: `smtpbridge accepts mail by SMTP, sends it through the HTTPS API of an email
service provider (ESP) and turns the ESP's webhooks into one normalised event log.

Start with "smtpbridge demo" to see a few mails live through their whole life, then copy
bridge.toml.example, run "smtpbridge check" and "smtpbridge serve".`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return &exitError{2, fmt.Errorf("%w\nsee: %s --help", err, c.CommandPath())}
	})
	root.AddCommand(
		serveCommand(), checkCommand(), demoCommand(), parseCommand(), explainCommand(), sendCommand(), sendmailCommand(),
		queueCommand(), eventsCommand(), traceCommand(), accountCommand(), storeCommand(), eraseCommand(), hashPasswordCommand(), versionCommand(),
	)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "print the version", Args: usageArgs(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(c.OutOrStdout(), "smtpbridge", buildVersion())
			return err
		},
	}
}

// usageArgs makes a wrong number of arguments a usage error (exit code 2).
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return &exitError{2, fmt.Errorf("%w\nsee: %s --help", err, c.CommandPath())}
		}
		return nil
	}
}

func configFlag(c *cobra.Command) *string {
	return c.Flags().StringP("config", "c", defaultConfig, "configuration file")
}
