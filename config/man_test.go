package config

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var manDir = flag.String("man", "", "write bridge.toml.5 to this directory (see packaging/man.sh)")

// The man page of bridge.toml is the configuration reference in another form.
func TestManPage(t *testing.T) {
	reference, err := os.ReadFile(referenceFile)
	if err != nil {
		t.Fatal(err)
	}
	date := time.Unix(0, 0).UTC()
	if s := os.Getenv("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		date = time.Unix(n, 0).UTC()
	}
	page := manPage(string(reference), date)
	dir := *manDir
	if dir == "" {
		dir = t.TempDir()
	}
	file := filepath.Join(dir, "bridge.toml.5")
	if err := os.WriteFile(file, []byte(page), 0o644); err != nil {
		t.Fatal(err)
	}

	rows := strings.Count(string(reference), "\n| `")
	if n := strings.Count(page, "\n.TP\n"); n != rows || n < 100 {
		t.Errorf("the page has %d settings, the reference %d", n, rows)
	}
	for _, want := range []string{"\n.SH [[listener]]\n", "\n.B redirect_all_to\n", "default: \"127.0.0.1:8025\"", "smtpbridge\\-check"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	for _, lint := range [][]string{{"groff", "-man", "-Tutf8", "-ww", "-b"}, {"lexgrog"}} {
		if _, err := exec.LookPath(lint[0]); err != nil {
			t.Logf("%s is not installed", lint[0])
			continue
		}
		cmd := exec.Command(lint[0], append(lint[1:], file)...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		if err := cmd.Run(); err != nil || stderr.Len() > 0 || !strings.Contains(stdout.String(), "configuration of smtpbridge") {
			t.Errorf("%s: %v\n%.2000s", lint[0], err, stderr.String())
		}
	}
}

var (
	markdownRow  = regexp.MustCompile("^\\| `([^`]+)` \\| (.*?) \\| (.*?) \\| (.*) \\|$")
	markdownLink = regexp.MustCompile(`\[([^\]]+)\]\(([^)]*)\)`)
)

// manPage writes the reference, which is Markdown of a few forms, as a man page.
func manPage(reference string, date time.Time) string {
	var b strings.Builder
	fmt.Fprintf(&b, ".TH BRIDGE.TOML 5 \"%s\" smtpbridge \"File formats\"\n.SH NAME\nbridge.toml \\- configuration of smtpbridge\n.SH DESCRIPTION\n", date.Format("2006-01-02"))
	for line := range strings.Lines(reference) {
		line = strings.TrimSuffix(line, "\n")
		if m := markdownRow.FindStringSubmatch(line); m != nil {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n.br\n%s, default: %s\n", roff(m[1]), roff(m[4]), roff(m[2]), roff(m[3]))
			continue
		}
		switch section, is := strings.CutPrefix(line, "## "); {
		case is:
			fmt.Fprintf(&b, ".SH %s\n", roff(section))
		case line == "", strings.HasPrefix(line, "# "), strings.HasPrefix(line, "| "):
		default:
			fmt.Fprintf(&b, "%s\n", roff(line))
		}
	}
	b.WriteString(".SH FILES\n.I /etc/smtpbridge/bridge.toml\n.br\n.I /usr/share/doc/smtpbridge/bridge.toml.example\n.SH SEE ALSO\n.BR smtpbridge (1),\n.BR smtpbridge\\-check (1)\n")
	return b.String()
}

// roff is a line of Markdown as text of a man page.
func roff(s string) string {
	s = markdownLink.ReplaceAllString(s, "$1")
	s = strings.NewReplacer("\\|", "|", "`", "", `\`, `\e`, "-", `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
