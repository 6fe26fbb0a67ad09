// Command smtpbridge accepts mail by SMTP, sends it through the HTTPS API of an email service
// provider and turns the provider's webhooks into one normalised event log.
//
// The exit codes of each command are in its --help.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
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

const defaultConfig = "/etc/smtpbridge/bridge.toml"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	args := os.Args[1:]
	if isSendmail(os.Args[0]) {
		args = append([]string{"sendmail"}, sendmailName(os.Args[0], args)...)
	}
	os.Exit(execute(ctx, newRoot(), args))
}

// execute runs one command line and returns the exit code.
func execute(ctx context.Context, root *cobra.Command, args []string) int {
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	if msg := err.Error(); msg != "" {
		fmt.Fprintln(root.ErrOrStderr(), msg)
	}
	return exitCode(err)
}

// setUpCobra sets what cobra keeps for the whole program.
var setUpCobra = sync.OnceFunc(func() {
	cobra.AddTemplateFunc("exitCodes", documentedExit)
	cobra.EnableCommandSorting = false // the order below is the order of use
})

func newRoot() *cobra.Command {
	setUpCobra()
	root := &cobra.Command{
		Use:   "smtpbridge",
		Short: "SMTP in, ESP API out, webhooks back as one event log",
		Long: `smtpbridge accepts mail by SMTP, sends it through the HTTPS API of an email service
provider (ESP) and turns the ESP's webhooks into one normalised event log.

Start with "smtpbridge demo" to see a few mails live through their whole life, then copy
bridge.toml.example, run "smtpbridge check" and "smtpbridge serve".`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Version:       buildVersion(),
		Args:          cobra.ArbitraryArgs,
		RunE:          helpOrUnknown,
	}
	root.SetFlagErrorFunc(flagError)
	root.SetHelpTemplate(helpTemplate)
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	root.AddGroup(groups...)
	root.SetHelpCommandGroupID(groupOther)
	root.SetCompletionCommandGroupID(groupOther)
	root.AddCommand(
		demoCommand(), checkCommand(), serveCommand(), hashPasswordCommand(), webhookCommand(),
		sendCommand(), sendmailCommand(), explainCommand(), parseCommand(),
		queueCommand(), traceCommand(), eventsCommand(), accountCommand(), nodeCommand(), suppressionCommand(),
		storeCommand(), eraseCommand(),
		versionCommand(),
	)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, c := range root.Commands() { // in the manner of ours
		switch c.Name() {
		case "help":
			c.Short, c.Example = "print the help of a command", "  smtpbridge help queue list"
		case "completion":
			c.Short, c.Args, c.RunE = "make a completion script for a shell", cobra.ArbitraryArgs, helpOrUnknown
			for _, shell := range c.Commands() {
				shell.Short, shell.Example = "for "+shell.Name(), "  smtpbridge completion "+shell.Name()
			}
		}
	}
	return root
}

func versionCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "version", GroupID: groupOther, Short: "print the version", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge version --json",
	}
	asJSON := jsonFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *asJSON {
			return printJSON(c.OutOrStdout(), map[string]string{"version": buildVersion(), "go": runtime.Version(), "os": runtime.GOOS, "arch": runtime.GOARCH})
		}
		_, err := fmt.Fprintln(c.OutOrStdout(), "smtpbridge", buildVersion())
		return err
	}
	return c
}
