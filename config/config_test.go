package config

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

var known = []string{"sandbox", "smtpeter", "mailpace"}

// Each file of testdata/bad says in its first lines what the message must match.
func TestCase102_BadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.toml")
	if err != nil || len(files) < 40 {
		t.Fatalf("found %d files, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			_, err = Load(file, known)
			var got Problems
			if !errors.As(err, &got) {
				t.Fatalf("got error %v, want Problems", err)
			}
			for _, line := range strings.Split(string(b), "\n") {
				want, ok := strings.CutPrefix(line, "# want: ")
				if !ok {
					break
				}
				if !regexp.MustCompile(want).MatchString(got.Error()) {
					t.Errorf("no message matches %s; got:\n%v", want, got)
				}
			}
			for _, p := range got {
				if p.File != file {
					t.Errorf("problem names file %q", p.File)
				}
			}
		})
	}
}

// A problem points at the line it is about.
func TestProblemLines(t *testing.T) {
	text := "[[listener]]\naddress = \"127.0.0.1:1\"\n[[listener]]\naddress = \"127.0.0.1:2\"\n# comment\ntls = \"ssl\"\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\n[account.options]\nfoo = 1\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n"
	_, err := Parse("b.toml", text, known)
	want := "b.toml:6: listener[1].tls: \"ssl\" is not one of off, starttls, implicit"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	c, err := Parse("b.toml", strings.Replace(text, "tls = \"ssl\"", "", 1), known)
	if err != nil {
		t.Fatal(err)
	}
	var o struct {
		Fo string `toml:"fo"`
	}
	err = c.Accounts[0].DecodeOptions(&o)
	want = "b.toml:11: account[0].options.foo: unknown key: did you mean \"fo\"?"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// A secret in a file that everybody can read is told once.
func TestOpenFile(t *testing.T) {
	text := "[[listener]]\naddress = \"127.0.0.1:0\"\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\napi_key = \"one\"\nwebhook_secret = \"two\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n"
	for mode, want := range map[os.FileMode]int{0o600: 0, 0o640: 0, 0o644: 1} {
		file := filepath.Join(t.TempDir(), "bridge.toml")
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		c, err := Load(file, known)
		if err != nil {
			t.Fatal(err)
		}
		if len(c.Warnings) != want || want > 0 && !strings.Contains(c.Warnings[0].String(), "bridge.toml:6: warning: account[0].api_key: ") {
			t.Errorf("mode %o: %v", mode, c.Warnings)
		}
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "no.toml"), known)
	if err == nil || !strings.Contains(err.Error(), "does not exist: copy bridge.toml.example") {
		t.Errorf("got %v", err)
	}
}

func TestSecretForms(t *testing.T) {
	dir, creds := t.TempDir(), t.TempDir()
	for path, mode := range map[string]os.FileMode{filepath.Join(dir, "a.key"): 0o600, filepath.Join(dir, "open.key"): 0o644, filepath.Join(creds, "c.key"): 0o600} {
		if err := os.WriteFile(path, []byte("from-"+filepath.Base(path)+"\n"), mode); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("CREDENTIALS_DIRECTORY", creds)
	t.Setenv("BRIDGE_TEST_KEY", "from-env")
	for _, tt := range []struct{ name, line, want, warning string }{
		{"value", `api_key = "plain"`, "plain", ""},
		{"file beside the configuration", `api_key_file = "a.key"`, "from-a.key", ""},
		{"systemd credential", `api_key_file = "c.key"`, "from-c.key", ""},
		{"environment", `api_key_env = "BRIDGE_TEST_KEY"`, "from-env", ""},
		{"readable by all", `api_key_file = "open.key"`, "from-open.key", "can be read by every user"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := "[[listener]]\naddress = \"127.0.0.1:0\"\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\n" + tt.line + "\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n"
			c, err := Parse(filepath.Join(dir, "bridge.toml"), text, known)
			if err != nil {
				t.Fatal(err)
			}
			if got := c.Accounts[0].Key.Reveal(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			if tt.warning == "" && len(c.Warnings) > 0 || tt.warning != "" && (len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].String(), tt.warning)) {
				t.Errorf("warnings %v", c.Warnings)
			}
		})
	}
}

// What does nothing is told, and stops nothing.
func TestUnused(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"an account no route names", `[[account]]
name = "other"
provider = "sandbox"
`, []string{`b.toml:10: warning: account[1].name: no [[route]], [[inbound]] or [dsn] names "other"`}},
		{"an account for DSN mail", `[[account]]
name = "local"
provider = "sandbox"
[dsn]
account = "local"
`, nil},
		{"a route behind one for its domain", `[[route]]
senders = ["ada@example.com", "*@example.com"]
accounts = ["main"]
[[route]]
senders = ["*"]
accounts = ["main"]
[[route]]
senders = ["example.net"]
recipients = ["example.org"]
accounts = ["main"]
`, []string{`b.toml:10: warning: route[1].senders: route "route1" above takes all of this mail`, `b.toml:16: warning: route[3].senders: route "route3" above takes all of this mail`}},
		{"routes that differ", `[[route]]
senders = ["*.example.com", "example.com.example.org", "ada@example.net"]
accounts = ["main"]
[[route]]
senders = ["example.net"]
listeners = ["listener1"]
accounts = ["main"]
[[route]]
senders = ["*"]
accounts = ["main"]
`, nil},
		{"subdomains of subdomains", `[[route]]
senders = ["*.example.net"]
accounts = ["main"]
[[route]]
senders = ["*.b.example.net", "ada@c.example.net"]
accounts = ["main"]
`, []string{`b.toml:13: warning: route[2].senders: route "route2" above`}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("b.toml", "[[listener]]\naddress = \"127.0.0.1:0\"\n[[account]]\nname = \"main\"\nprovider = \"sandbox\"\n[[route]]\nsenders = [\"example.com\"]\naccounts = [\"main\"]\n"+tt.text, known)
			if err != nil {
				t.Fatal(err)
			}
			if len(c.Warnings) != len(tt.want) {
				t.Fatalf("got %v, want %d", c.Warnings, len(tt.want))
			}
			for i, w := range tt.want {
				if !strings.HasPrefix(c.Warnings[i].String(), w) {
					t.Errorf("got %v, want %s", c.Warnings[i], w)
				}
			}
		})
	}
}

// What a provider says of its settings points at the setting.
func TestProviderProblem(t *testing.T) {
	c, err := Parse("b.toml", "[[listener]]\naddress = \"127.0.0.1:0\"\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\nwebhook_secret_env = \"HOME\"\noptions = { plan = \"x\" }\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n", known)
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"esp: plan must be one of a, b":        "b.toml:7: account[0].options.plan: esp: plan must",
		"esp: webhook_secret: it is no key":    "b.toml:6: account[0].webhook_secret_env: esp: webhook",
		"base_url must be of the form smtp://": "b.toml:3: account[0]: base_url must",
	} {
		if got := c.Accounts[0].Problem("", errors.New(text)).String(); !strings.HasPrefix(got, want) {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

func TestWebhookSecretsRotate(t *testing.T) {
	text := "[[listener]]\naddress = \"127.0.0.1:0\"\n[[account]]\nname = \"a\"\nprovider = \"sandbox\"\nwebhook_secret = [\"new\", \"old\"]\n[[route]]\nsenders = [\"*\"]\naccounts = [\"a\"]\n"
	c, err := Parse("b.toml", text, known)
	if err != nil {
		t.Fatal(err)
	}
	if s := c.Accounts[0].WebhookSecrets; len(s) != 2 || s[0].Reveal() != "new" || s[1].Reveal() != "old" {
		t.Errorf("got %d secrets", len(s))
	}
}

func TestParseDuration(t *testing.T) {
	for in, want := range map[string]time.Duration{"0s": 0, "90s": 90 * time.Second, "5d": 120 * time.Hour, "1d12h": 36 * time.Hour, "1.5d": 36 * time.Hour, "0d": 0} {
		if got, err := ParseDuration(in); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", in, got, err, want)
		}
	}
	for _, in := range []string{"", "5", "-1s", "d", "5 days", "1dd", "99999d"} {
		if got, err := ParseDuration(in); err == nil {
			t.Errorf("%q: got %v, want an error", in, got)
		}
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/bad/*.toml")
	for _, file := range append(files, "../bridge.toml.example") {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := Parse("fuzz.toml", text, known)
		if (c == nil) == (err == nil) {
			t.Fatalf("got config %v and error %v", c, err)
		}
	})
}
