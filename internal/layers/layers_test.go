// Package layers holds no code: its test checks that packages import each other only in the
// directions of the architecture. A new edge is a deliberate change of the table below, a new package a new row.
package layers

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "smtpbridge"

// row allows a package to import others of ours. A pattern ends with /* for the packages directly below
// a folder, with /... for a folder and everything below it.
type row struct {
	pkg     string
	imports []string
	tests   []string // what its tests may import besides
}

// table: the first row that fits a package counts. The standard library and the modules of go.mod are free.
var table = []row{
	{pkg: "internal/secret"},
	{pkg: "internal/safehttp"},
	{pkg: "internal/throttle"},
	{pkg: "internal/certs"},
	{pkg: "internal/layers"},
	{pkg: "internal/pgtest"},
	{pkg: "internal/dirtest"},
	{pkg: "internal/storetest", imports: []string{"store", "internal/dirtest"}},
	{pkg: "envelope"},
	{pkg: "event"},
	{pkg: "mime"},
	{pkg: "route", imports: []string{"envelope"}},

	{pkg: "config", imports: []string{"internal/secret"}, tests: []string{"providers/all", "providers", "route", "envelope"}},
	{pkg: "store", imports: []string{"envelope", "event", "store/..."}, tests: []string{"internal/pgtest", "internal/dirtest"}},
	{pkg: "store/...", imports: []string{"envelope", "event", "store/..."}},
	{pkg: "translate", imports: []string{"envelope", "mime"}},

	{pkg: "dsn", imports: []string{"envelope", "event"}, tests: []string{"mime"}},
	{pkg: "providers", imports: []string{"envelope", "event", "mime", "translate", "internal/secret"}},
	{pkg: "smtp", imports: []string{"envelope", "route", "internal/secret", "internal/throttle"}},

	{pkg: "providers/internal/httpapi", imports: []string{"providers", "event", "internal/safehttp", "internal/secret"}},
	{pkg: "providers/internal/smtpcall", imports: []string{"providers", "envelope", "event", "translate", "internal/safehttp", "internal/secret"}, tests: []string{"providers/providertest"}},
	{pkg: "providers/internal/bigpost"},
	{pkg: "webhookd", imports: []string{"providers", "envelope", "event", "store", "internal/safehttp", "internal/secret"}, tests: []string{"mime", "translate", "providers/...", "internal/storetest"}},
	{pkg: "sink", imports: []string{"envelope", "event", "store", "dsn", "internal/safehttp", "internal/secret"}, tests: []string{"mime", "internal/storetest"}},

	{pkg: "providers/all", imports: []string{"providers", "providers/*"}, tests: []string{"envelope", "mime", "translate", "internal/secret", "providers/providertest", "providers/*/twin"}},
	{pkg: "providers/providertest", imports: []string{"envelope", "event", "mime", "translate", "providers", "internal/secret", "internal/safehttp"}},
	// A twin stands on the other side of the wire and knows nothing of the bridge.
	{pkg: "providers/*/twin", tests: []string{"..."}},
	// The sandbox is the one provider that runs its own twin.
	{pkg: "providers/sandbox", imports: append([]string{"providers/sandbox/twin"}, provider...), tests: providerTests},
	{pkg: "providers/*", imports: provider, tests: providerTests},

	{pkg: "deliver", imports: []string{"envelope", "store", "mime", "route", "translate", "providers", "event", "internal/secret"}, tests: []string{"providers/...", "internal/storetest"}},
	{pkg: "catchup", imports: []string{"store", "event", "providers"}, tests: []string{"envelope", "translate", "internal/storetest"}},
	{pkg: "admin", imports: []string{"store", "event", "deliver", "mime", "envelope", "internal/secret", "internal/throttle"}, tests: []string{"..."}},
	{pkg: "cmd/smtpbridge", imports: []string{"..."}},
	{pkg: "test/...", imports: []string{"..."}},
	{pkg: "bench/...", imports: []string{"..."}},
}

var (
	provider      = []string{"envelope", "event", "mime", "translate", "providers", "providers/internal/*", "internal/secret"}
	providerTests = []string{"providers/providertest", "providers/*/twin", "internal/safehttp"}
)

// match fits a path into a pattern; a star stands for one folder.
func match(pattern, path string) bool {
	if pattern == "..." {
		return true
	}
	if base, ok := strings.CutSuffix(pattern, "/..."); ok {
		return path == base || strings.HasPrefix(path, base+"/")
	}
	p, s := strings.Split(pattern, "/"), strings.Split(path, "/")
	if len(p) != len(s) {
		return false
	}
	for i := range p {
		if p[i] != "*" && p[i] != s[i] || p[i] == "*" && (s[i] == "internal" || s[i] == "all" || s[i] == "providertest") && i == 1 {
			return false
		}
	}
	return true
}

func allowed(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, path) })
}

// problem judges one package; "" is fine.
func problem(pkg string, imports, testImports []string) string {
	i := slices.IndexFunc(table, func(r row) bool { return match(r.pkg, pkg) })
	if i < 0 {
		return pkg + " is not in the table of internal/layers: add a row that says what it may import"
	}
	r := table[i]
	for _, imp := range imports {
		if !allowed(r.imports, imp) {
			return pkg + " imports " + imp + ", which its layer may not: it may import [" + strings.Join(r.imports, " ") +
				"]. Hand in a value or declare the interface needed, or change the table of internal/layers on purpose"
		}
	}
	for _, imp := range testImports {
		if imp != pkg && !allowed(r.imports, imp) && !allowed(r.tests, imp) {
			return "the tests of " + pkg + " import " + imp + ", which its row in internal/layers does not list"
		}
	}
	return ""
}

func ours(imports ...[]string) []string {
	var out []string
	for _, list := range imports {
		for _, i := range list {
			if rel, ok := strings.CutPrefix(i, module+"/"); ok {
				out = append(out, rel)
			}
		}
	}
	return out
}

func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	seen := 0
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		if msg := problem(strings.TrimPrefix(p.ImportPath, module+"/"), ours(p.Imports), ours(p.TestImports, p.XTestImports)); msg != "" {
			t.Error(msg)
		}
	}
	if seen < 10 {
		t.Errorf("go list named only %d packages", seen)
	}
}

// TestTable makes sure that the test can fail.
func TestTable(t *testing.T) {
	for _, tt := range []struct {
		name, pkg string
		imports   []string
		ok        bool
	}{
		{"leaf", "envelope", nil, true},
		{"leaf imports ours", "envelope", []string{"event"}, false},
		{"route folds addresses", "route", []string{"envelope"}, true},
		{"translate knows no provider", "translate", []string{"providers"}, false},
		{"provider", "providers/mailersend", []string{"providers", "providers/internal/httpapi", "internal/secret"}, true},
		{"provider reaches the store", "providers/mailersend", []string{"store"}, false},
		{"provider imports another", "providers/mailersend", []string{"providers/mandrill"}, false},
		{"provider imports its twin", "providers/mailersend", []string{"providers/mailersend/twin"}, false},
		{"sandbox runs its twin", "providers/sandbox", []string{"providers/sandbox/twin"}, true},
		{"twin knows nothing", "providers/mailersend/twin", []string{"providers/mailersend"}, false},
		{"list of providers", "providers/all", []string{"providers", "providers/mandrill"}, true},
		{"contract does not know the list", "providers", []string{"providers/all"}, false},
		{"smtp does not store", "smtp", []string{"store"}, false},
		{"wiring", "cmd/smtpbridge", []string{"smtp", "providers/all", "admin"}, true},
		{"unknown package", "util", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if msg := problem(tt.pkg, tt.imports, nil); (msg == "") != tt.ok {
				t.Errorf("got %q", msg)
			}
		})
	}
}
