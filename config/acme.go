package config

import (
	"crypto/x509"
	"fmt"
	"net/mail"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"

	"golang.org/x/net/idna"
)

// LetsEncrypt is the directory of the CA that is asked where the file names no other.
const LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"

// ACME is the [acme] table: the certificate authority that `acme = [...]` of listeners and [admin] asks.
type ACME struct {
	Directory   string `toml:"directory"`
	Email       string `toml:"email"`
	AcceptTerms bool   `toml:"accept_terms"`
	Address     string `toml:"address"` // where http-01 challenges are answered
	CAFile      string `toml:"ca_file"`
}

// certificate checks where the certificate of one place comes from: two files, or the CA.
func (c *Config) certificate(at string, cert, key *string, names OneOrMore) {
	if len(names) == 0 {
		c.keyPair(at+".cert_file", at+".key_file", cert, key)
		return
	}
	if *cert != "" || *key != "" {
		c.problems.add(at+".acme", "is given together with cert_file or key_file: a certificate comes from the CA or from files, remove one of them")
	}
	for i, n := range names {
		names[i] = c.hostName(at+".acme", n)
		if slices.Contains(names[:i], names[i]) {
			c.problems.add(at+".acme", "%q stands there twice", n)
		}
	}
}

// hostName gives a name as it stands in certificates: in lower case, with letters outside ASCII in their A-label form.
func (c *Config) hostName(key, name string) string {
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(name, "."))
	_, ipErr := netip.ParseAddr(strings.Trim(name, "[]"))
	switch {
	case strings.HasPrefix(name, "*."):
		c.problems.add(key, "%q: the CA gives wildcard names only to those who change the DNS: list the names, or use cert_file and key_file", name)
	case ipErr == nil:
		c.problems.add(key, "%q is an IP address: certificates are for host names, such as \"mail.example.com\"", name)
	case err != nil || strings.Contains("."+ascii+".", ".."):
		c.problems.add(key, "%q is not a host name, such as \"mail.example.com\"", name)
	case c.ACME.Directory == LetsEncrypt && !strings.Contains(ascii, "."):
		c.problems.add(key, "%q is not a name of the public DNS, such as \"mail.example.com\": Let's Encrypt knows no other", name)
	}
	return ascii
}

func (c *Config) validateACME(given bool) {
	p, a := c.problems, &c.ACME
	asking := c.asking()
	switch {
	case given && asking == "":
		p.warn("acme", "nothing asks for a certificate: write acme = [\"mail.example.com\"] in a [[listener]] or in [admin]")
	case !given && asking != "":
		p.add(asking, "needs the table [acme] with address = \":80\", where the CA looks, and accept_terms = true, for its terms of service")
		return
	}
	if u, err := url.Parse(a.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		p.add("acme.directory", "%q is not an https URL, such as %q", a.Directory, LetsEncrypt)
	} else if u.User != nil {
		p.add("acme.directory", "must not hold a password")
	}
	if a.Email != "" {
		if addr, err := mail.ParseAddress(a.Email); err != nil || addr.Address != a.Email {
			p.add("acme.email", "%q is not a plain address, such as \"ops@example.com\"", a.Email)
		}
	}
	if a.CAFile != "" {
		a.CAFile = c.Path(a.CAFile)
		if b, err := os.ReadFile(a.CAFile); err != nil {
			p.add("acme.ca_file", "%v", err)
		} else if !x509.NewCertPool().AppendCertsFromPEM(b) {
			p.add("acme.ca_file", "%s holds no certificate in PEM form", a.CAFile)
		}
	}
	switch {
	case a.Address == "" && asking != "":
		p.add("acme.address", "missing: the CA looks at port 80 of each name: write \":80\", or the local address that your web server hands /.well-known/acme-challenge/ to")
	case a.Address != "" && !strings.HasPrefix(a.Address, "systemd:"):
		c.hostPort("acme.address", a.Address)
	}
	if asking != "" && !a.AcceptTerms {
		p.add("acme.accept_terms", "must be true: a CA gives certificates to those who accept its terms of service, %s", terms(a.Directory))
	}
}

// UsesACME reports whether any certificate is asked for.
func (c *Config) UsesACME() bool { return c.asking() != "" }

// asking is the first key that names a host for a certificate, "" = none does.
func (c *Config) asking() string {
	for i, l := range c.Listeners {
		if len(l.ACME) > 0 {
			return fmt.Sprintf("listener[%d].acme", i)
		}
	}
	if len(c.Admin.ACME) > 0 {
		return "admin.acme"
	}
	return ""
}

// terms says where they are.
func terms(directory string) string {
	if directory == LetsEncrypt {
		return "https://letsencrypt.org/repository/"
	}
	return "named in " + directory
}
