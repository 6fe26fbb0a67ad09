package main

import (
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

var manDir = flag.String("man", "", "write the man pages to this directory (see packaging/man.sh)")

// The man pages are made from the same texts as --help. They are made by a test so that the generator is no part of the program.
func TestManPages(t *testing.T) {
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	}
	date := time.Unix(0, 0).UTC()
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		date = time.Unix(n, 0).UTC()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	root := newRoot()
	pages := 0
	everyCommand(root, func(c *cobra.Command) {
		c.DisableAutoGenTag = true
		if c.IsAvailableCommand() || c == root {
			pages++
		}
		if !c.HasSubCommands() {
			c.Long = longHelp(c) + "\n\nExit codes: " + documentedExit(c)
		}
	})
	if err := doc.GenManTree(root, &doc.GenManHeader{Title: "SMTPBRIDGE", Section: "1", Date: &date, Source: "smtpbridge"}, dir); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil || len(files) != pages {
		t.Errorf("%d pages for %d commands: %v", len(files), pages, err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "smtpbridge-queue-list.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`.TH "SMTPBRIDGE" "1"`, "list mails, newest first", "--account", "Exit codes: 0 success"} {
		if !strings.Contains(strings.ReplaceAll(string(b), `\-`, "-"), want) {
			t.Errorf("the page of queue list lacks %q:\n%s", want, b)
		}
	}
}

func longHelp(c *cobra.Command) string {
	if c.Long != "" {
		return c.Long
	}
	return c.Short + "."
}
