package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

// everyCommand calls f for each command of the program, the program itself included.
func everyCommand(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		everyCommand(sub, f)
	}
}

// Every command has a help with a summary, an example that is really of it, and its exit codes; every list has --json.
func TestHelpOfEveryCommand(t *testing.T) {
	root := newRoot()
	lists := []string{"list", "show", "trace", "events", "erase", "version"}
	everyCommand(root, func(c *cobra.Command) {
		var out bytes.Buffer
		c.SetOut(&out)
		if err := c.Help(); err != nil {
			t.Errorf("%s: %v", c.CommandPath(), err)
		}
		switch {
		case c.Short == "":
			t.Errorf("%s has no summary", c.CommandPath())
		case c.Parent() == root && c.GroupID == "":
			t.Errorf("%s belongs to no group of the help", c.CommandPath())
		}
		if c.HasSubCommands() {
			return
		}
		for _, line := range strings.Split(c.Example, "\n") {
			if !strings.Contains(line, c.CommandPath()) {
				t.Errorf("%s: example %q is not of it", c.CommandPath(), line)
			}
		}
		if !strings.Contains(out.String(), "Exit codes: ") {
			t.Errorf("%s: the help does not tell the exit codes", c.CommandPath())
		}
		if slices.Contains(lists, c.Name()) && c.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", c.CommandPath())
		}
	})
}

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		args string
		want int
		says string
	}{
		{"", 0, "Set up and run:"},
		{"--version", 0, "smtpbridge version"},
		{"version --json", 0, `"version"`},
		{"queue", 0, "Available Commands"},
		{"quue list", 2, `did you mean "queue"`},
		{"queue lst", 2, `did you mean "list"`},
		{"queue list extra", 2, "see: smtpbridge queue list --help"},
		{"queue list --sate held", 2, "unknown flag: --sate; did you mean --state?"},
		{"queue list --limit x", 2, "invalid argument \"x\" for \"--limit\" flag\nsee"},
		{"queue show", 2, "ID is missing\nsee: smtpbridge queue show --help"},
		{"queue show a b", 2, `"b" is too much: smtpbridge queue show takes ID`},
		{"suppression add", 2, "ADDRESS... is missing"},
		{"serve now", 2, `"now" is too much: smtpbridge serve takes no arguments`},
		{"events --event bouncd", 2, `--event "bouncd" is not one of queued sent`},
		{"completion tcsh", 2, `there is no command "tcsh"`},
		{"queue list --state hold", 2, `--state "hold" is not one of queued, held`},
		{"queue retry", 2, "give the ids of mails"},
		{"events --since tomorrow", 2, "neither a duration"},
		{"check -c /nowhere.toml", 1, "does not exist"},
		{"sendmail -y", exUsage, "option -y is not known"},
	} {
		t.Run(tt.args, func(t *testing.T) {
			var out bytes.Buffer
			root := newRoot()
			root.SetOut(&out)
			root.SetErr(&out)
			if got := execute(t.Context(), root, strings.Fields(tt.args)); got != tt.want {
				t.Errorf("exit code %d, want %d", got, tt.want)
			}
			if !strings.Contains(out.String(), tt.says) {
				t.Errorf("the output lacks %q:\n%s", tt.says, out.String())
			}
		})
	}
}

func TestTable(t *testing.T) {
	var out bytes.Buffer
	tab := newTable(&out, "ID", "STATE", "WHY")
	tab.row("a1", state("paused"), "key")
	tab.row("längere", state("active"), "")
	tab.row(3, "x\x1b[31m\ny", "")
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	want := "ID       STATE     WHY\na1       paused    key\nlängere  active\n3        x [31m y\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	tab.colour = true
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "\x1b[31mpaused\x1b[0m    key") {
		t.Errorf("with colours: %q", out.String())
	}
}

// A list is an array in JSON also when there is nothing, and a sentence for people.
func TestPrintList(t *testing.T) {
	row := func(s string) []any { return []any{s} }
	for _, tt := range []struct {
		items  []string
		asJSON bool
		want   string
	}{
		{nil, true, "[]\n"},
		{nil, false, "no words\n"},
		{[]string{"a"}, false, "WORD\na\n"},
		{[]string{"<a>"}, true, "[\n  \"<a>\"\n]\n"},
	} {
		var out bytes.Buffer
		if err := printList(&out, tt.asJSON, tt.items, "no words", []string{"WORD"}, row); err != nil || out.String() != tt.want {
			t.Errorf("%v json=%v: %q, %v; want %q", tt.items, tt.asJSON, out.String(), err, tt.want)
		}
		if tt.asJSON && !json.Valid(out.Bytes()) {
			t.Errorf("%q is no JSON", out.String())
		}
	}
}

func TestProgress(t *testing.T) {
	var out bytes.Buffer
	now := time.Unix(0, 0)
	p := newProgress(&out, "retry", 4)
	p.step(1)
	if out.Len() > 0 {
		t.Errorf("drawn although nobody looks: %q", out.String())
	}
	p = &progress{w: &out, what: "retry", total: 4, now: func() time.Time { return now }}
	for range 4 {
		now = now.Add(progressEvery / 2)
		p.step(1)
	}
	p.end()
	lines := strings.Split(out.String(), "\r\x1b[K")
	want := []string{"", "retry [#######.......................] 1 of 4 (25 %)", "retry [######################........] 3 of 4 (75 %)", ""}
	if !slices.Equal(lines, want) {
		t.Errorf("got %q\nwant %q", lines, want)
	}
	if got := (&progress{what: "export", done: 7}).line(); got != "export: 7" {
		t.Errorf("without a total: %q", got)
	}
}

func TestExitCodeOfWrappedError(t *testing.T) {
	err := fmt.Errorf("outer: %w", &exitError{exTempFail, errors.New("later")})
	if got := exitCode(err); got != exTempFail {
		t.Errorf("got %d", got)
	}
	if got := exitCode(context.Canceled); got != exitFailure {
		t.Errorf("got %d", got)
	}
}
