package config

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const acmeRest = `
[[account]]
name = "main"
provider = "sandbox"
[[route]]
senders = ["*"]
accounts = ["main"]
`

// What is wrong with acme names file, line and key, and says what to do.
func TestACMEProblems(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "empty.pem"), []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	listener := "[[listener]]\naddress = \"127.0.0.1:2525\"\n" // 2 lines
	table := "\n[acme]\naddress = \":80\"\naccept_terms = true\n"
	for _, tt := range []struct{ name, text, want string }{
		{"a switch", listener + "acme = true" + table, ":3: listener[0].acme: must be a list"},
		{"both", listener + "cert_file = \"c.pem\"\nacme = [\"mail.example.com\"]" + table, ":4: listener[0].acme: is given together with cert_file or key_file"},
		{"tls off", listener + "tls = \"off\"\nacme = [\"mail.example.com\"]" + table, ":3: listener[0].tls: is \"off\" but a certificate is given"},
		{"no table", listener + "acme = [\"mail.example.com\"]", ":3: listener[0].acme: needs the table [acme] with address = \":80\""},
		{"no table, admin", listener + "[admin]\naddress = \"127.0.0.1:8026\"\nacme = \"mail.example.com\"", ":5: admin.acme: needs the table [acme]"},
		{"no address", listener + "acme = [\"mail.example.com\"]\n[acme]\naccept_terms = true", ":4: acme.address: missing: the CA looks at port 80"},
		{"bad address", listener + "acme = [\"mail.example.com\"]\n[acme]\naccept_terms = true\naddress = \"80\"", ":6: acme.address: \"80\" is not host:port"},
		{"terms", listener + "acme = [\"mail.example.com\"]\n[acme]\naddress = \":80\"", ":4: acme.accept_terms: must be true: a CA gives certificates to those who accept its terms of service, https://letsencrypt.org/"},
		{"wildcard", listener + "acme = [\"*.example.com\"]" + table, ":3: listener[0].acme: \"*.example.com\": the CA gives wildcard names only"},
		{"IP address", listener + "acme = [\"192.0.2.1\"]" + table, ":3: listener[0].acme: \"192.0.2.1\" is an IP address"},
		{"IPv6 address", listener + "acme = [\"[2001:db8::1]\"]" + table, ":3: listener[0].acme: \"[2001:db8::1]\" is an IP address"},
		{"a path", listener + "acme = [\"../../etc\"]" + table, ":3: listener[0].acme: \"../../etc\" is not a host name"},
		{"dots", listener + "acme = [\"a..b\"]" + table, ":3: listener[0].acme: \"a..b\" is not a host name"},
		{"empty", listener + "acme = [\"\"]" + table, ":3: listener[0].acme: \"\" is not a host name"},
		{"twice", listener + "acme = [\"a.example\", \"A.example\"]" + table, ":3: listener[0].acme: \"A.example\" stands there twice"},
		{"one label", listener + "acme = [\"localhost\"]" + table, ":3: listener[0].acme: \"localhost\" is not a name of the public DNS"},
		{"directory", listener + "acme = [\"a.example\"]" + table + "directory = \"http://ca.internal/dir\"", ":7: acme.directory: \"http://ca.internal/dir\" is not an https URL"},
		{"email", listener + "acme = [\"a.example\"]" + table + "email = \"Ops <ops@example.com>\"", ":7: acme.email: \"Ops <ops@example.com>\" is not a plain address"},
		{"no CA file", listener + "acme = [\"a.example\"]" + table + "ca_file = \"none.pem\"", ":7: acme.ca_file: open "},
		{"empty CA file", listener + "acme = [\"a.example\"]" + table + "ca_file = \"empty.pem\"", "holds no certificate in PEM form"},
		{"public admin", listener + "[admin]\naddress = \"0.0.0.0:8026\"\nacme = [\"a.example\"]" + table, ":4: admin.address: 0.0.0.0:8026 is reachable from other machines: it needs cert_file and key_file, or acme, and password_hash"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(filepath.Join(dir, "b.toml"), tt.text+acmeRest, known)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestACMENames(t *testing.T) {
	c, err := Parse("b.toml", `[[listener]]
address = "127.0.0.1:2525"
acme = ["Mail.Example.com.", "bücher.example"]
[acme]
directory = "https://ca.internal/dir"
accept_terms = true
address = "systemd:acme"
[admin]
address = "127.0.0.1:8026"
acme = "panel"
`+acmeRest, known)
	if err != nil {
		t.Fatal(err)
	}
	l := c.Listeners[0]
	if want := []string{"mail.example.com", "xn--bcher-kva.example"}; !slices.Equal(l.ACME, want) || l.TLS != "starttls" {
		t.Errorf("names %q with tls %q, want %q with starttls", l.ACME, l.TLS, want)
	}
	if want := []string{"panel"}; !slices.Equal(c.Admin.ACME, want) {
		t.Errorf("names of [admin] %q, want %q: a CA of one's own may know short names", c.Admin.ACME, want)
	}

	c, err = Parse("b.toml", "[[listener]]\naddress = \"127.0.0.1:2525\"\n[acme]\nemail = \"ops@example.com\"\n"+acmeRest, known)
	if err != nil || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0].String(), "b.toml:3: warning: acme: nothing asks for a certificate") {
		t.Errorf("a table that nothing uses: %v, %v", c.Warnings, err)
	}
}
