package main

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"smtpbridge/config"
	"smtpbridge/providers/all"
)

// block is a fenced block of a page.
type block struct {
	line       int
	info, text string
}

var fence = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")

func blocks(page string) (out []block) {
	for _, m := range fence.FindAllStringSubmatchIndex(page, -1) {
		out = append(out, block{1 + strings.Count(page[:m[0]], "\n"), page[m[2]:m[3]], page[m[4]:m[5]]})
	}
	return out
}

// docPages are the pages for users, with their text.
func docPages(t *testing.T) map[string]string {
	t.Helper()
	pages := map[string]string{}
	for _, pattern := range []string{"../../README.md", "../../docs/*.md", "../../docs/recipes/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			pages[f] = string(b)
		}
	}
	return pages
}

// Every command in the docs is run, or marked "norun". The blocks of a page run one after the other in one directory, beside a
// bridge with the page's address; a page that starts a bridge of its own gets none.
func TestDocsCommands(t *testing.T) {
	ran := 0
	for page, text := range docPages(t) {
		var script strings.Builder
		for _, b := range blocks(text) {
			switch b.info {
			case "sh run":
				ran++
				script.WriteString(b.text)
			case "sh", "bash", "shell", "console":
				t.Errorf("%s:%d: say whether it is run: ```sh run or ```sh norun", page, b.line)
			}
		}
		if script.Len() > 0 {
			t.Run(filepath.Base(page), func(t *testing.T) {
				t.Parallel()
				runDocs(t, script.String())
			})
		}
	}
	if ran < 4 {
		t.Errorf("only %d blocks of the docs are run", ran)
	}
}

func runDocs(t *testing.T, script string) {
	dir := shortTemp(t)
	address := "127.0.0.1:0"
	if strings.Contains(script, "smtpbridge serve") {
		ln, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		address = ln.Addr().String()
		ln.Close()
	} else {
		_, _, b := running(t)
		address = b.SMTPAddr("l").String()
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(dir, "smtpbridge")); err != nil {
		t.Fatal(err)
	}
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	script = strings.NewReplacer("127.0.0.1:2525", address, `"127.0.0.1", 2525`, `"127.0.0.1", `+port).Replace(script)
	cmd := exec.Command("timeout", "60", "bash", "-euo", "pipefail", "-c", "trap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"+script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), asProgram+"=1", "PATH="+dir+":"+os.Getenv("PATH"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// asProgram in the environment makes the test binary the program.
const asProgram = "SMTPBRIDGE_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
	}
	os.Exit(m.Run())
}

// Whole configurations in the docs are good ones, once their files exist.
func TestDocsConfigurations(t *testing.T) {
	files := regexp.MustCompile(`(?m)_file = "([^"]+)"`)
	cert, key := makePair(t, 1, false)
	checked := 0
	for page, text := range docPages(t) {
		for _, b := range blocks(text) {
			if b.info != "toml" || !strings.Contains(b.text, "[[listener]]") || !strings.Contains(b.text, "[[route]]") {
				continue
			}
			checked++
			dir := t.TempDir()
			put(t, filepath.Join(dir, "cert.pem"), cert)
			put(t, filepath.Join(dir, "key.pem"), key)
			toml := strings.ReplaceAll(b.text, "/etc/smtpbridge/", "")
			for _, m := range files.FindAllStringSubmatch(toml, -1) {
				switch {
				case strings.Contains(m[1], "cert"):
					toml = strings.ReplaceAll(toml, m[1], "cert.pem")
				case strings.HasSuffix(m[1], "key.pem"):
					toml = strings.ReplaceAll(toml, m[1], "key.pem")
				default:
					if err := os.WriteFile(filepath.Join(dir, filepath.Base(m[1])), []byte("A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=\n"), 0o600); err != nil {
						t.Fatal(err)
					}
				}
			}
			cfg, err := config.Parse(filepath.Join(dir, "bridge.toml"), toml, all.Registry().Names())
			if err != nil {
				t.Errorf("%s:%d: %v", page, b.line, err)
				continue
			}
			for _, l := range cfg.Listeners {
				if _, _, err := net.SplitHostPort(l.Address); err != nil {
					t.Errorf("%s:%d: %v", page, b.line, err)
				}
			}
		}
	}
	if checked < 3 {
		t.Errorf("only %d configurations of the docs are checked", checked)
	}
}

// Links from page to page lead somewhere.
func TestDocsLinks(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^)#:]+)(?:#[^)]*)?\)`)
	for page, text := range docPages(t) {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, m[1])
			}
		}
	}
}
