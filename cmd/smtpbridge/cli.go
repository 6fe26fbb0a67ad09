package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"smtpbridge/config"
)

// Exit codes of all commands but sendmail, which uses more of sysexits.h.
const (
	exitFailure = 1
	exitUsage   = 2
	exTempFail  = 75 // EX_TEMPFAIL of sysexits.h: try again later
)

// exitCodes is what the help of a command without codes of its own says.
const exitCodes = `0 success, 1 failure, 2 the command line cannot be understood`

// exitError carries the exit code of a failure.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// usageError is a command line that cannot be understood: exit code 2, and where the help is.
func usageError(c *cobra.Command, format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf("%w\nsee: %s --help", fmt.Errorf(format, args...), c.CommandPath())}
}

// exitCode is the code that an error of a command ends the program with.
func exitCode(err error) int {
	var ee *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ee):
		return ee.code
	}
	return exitFailure
}

// The groups of `smtpbridge --help`, in its order. A command names its group in GroupID.
const (
	groupStart   = "start"
	groupMail    = "mail"
	groupOperate = "operate"
	groupStore   = "store"
	groupOther   = "other"
)

var groups = []*cobra.Group{
	{ID: groupStart, Title: "Set up and run:"},
	{ID: groupMail, Title: "Send and look into mail:"},
	{ID: groupOperate, Title: "Operate a running bridge:"},
	{ID: groupStore, Title: "Look after stored data:"},
	{ID: groupOther, Title: "Other:"},
}

// annotationExit is where a command documents exit codes other than exitCodes.
const annotationExit = "exit codes"

const helpTemplate = `{{with or .Long .Short}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}{{if not .HasSubCommands}}
Exit codes: {{exitCodes .}}
{{end}}`

// documentedExit is the line of the help, and of the man page, about the exit codes of a command.
func documentedExit(c *cobra.Command) string {
	if s := c.Annotations[annotationExit]; s != "" {
		return s
	}
	return exitCodes
}

// family makes a command that only holds others: alone it prints its help, a word it does not know is a usage error.
func family(use, group, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, GroupID: group, Short: short, Args: cobra.ArbitraryArgs, RunE: helpOrUnknown}
	c.AddCommand(commands...)
	return c
}

func helpOrUnknown(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return usageError(c, "there is no command %q; did you mean %q?", args[0], strings.Join(near, `" or "`))
	}
	return usageError(c, "there is no command %q", args[0])
}

// usageArgs makes a wrong number of arguments a usage error that says what is missing or too much.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		_, takes, _ := strings.Cut(c.Use, " ")
		switch err := check(c, args); {
		case err == nil:
			return nil
		case len(args) == 0:
			return usageError(c, "%s is missing", takes)
		case takes == "":
			return usageError(c, "%q is too much: %s takes no arguments", args[0], c.CommandPath())
		}
		return usageError(c, "%q is too much: %s takes %s", args[len(args)-1], c.CommandPath(), takes)
	}
}

// flagError is a flag that cannot be understood, without the words of the library that read it.
func flagError(c *cobra.Command, err error) error {
	text, _, _ := strings.Cut(err.Error(), ": strconv.")
	name, ok := strings.CutPrefix(text, "unknown flag: --")
	if !ok {
		return usageError(c, "%s", text)
	}
	known := map[string]bool{}
	c.Flags().VisitAll(func(f *pflag.Flag) { known[f.Name] = true })
	if near := config.Closest(name, known); near != "" {
		return usageError(c, "%s; did you mean --%s?", text, near)
	}
	return usageError(c, "%s", text)
}

// noAccount says which accounts there are.
func noAccount(name string, cfg *config.Config) error {
	known := make([]string, len(cfg.Accounts))
	for i, a := range cfg.Accounts {
		known[i] = a.Name
	}
	return fmt.Errorf("there is no account %q; there are: %s", name, strings.Join(known, ", "))
}

func configFlag(c *cobra.Command) *string {
	file := c.Flags().StringP("config", "c", defaultConfig, "configuration file")
	_ = c.MarkFlagFilename("config", "toml") // for completion only; fails for an unknown flag alone
	return file
}

// jsonFlag is for every command that lists or shows something: the same data as the table, for scripts.
func jsonFlag(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "as JSON, for scripts")
}

// choiceFlag completes a flag's value with a fixed set of words.
func choiceFlag(c *cobra.Command, flag string, words ...string) {
	_ = c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails for an unknown flag alone
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
