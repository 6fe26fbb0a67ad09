package route

import (
	"strings"
	"testing"
	"time"
)

func mustNew(t *testing.T, routes ...Route) *Table {
	t.Helper()
	tab, err := New(routes)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

func TestLookup(t *testing.T) {
	tab := mustNew(t,
		Route{Name: "bulk", Senders: []string{"example.com"}, Headers: map[string]string{"List-Id": "*news*", "X-Kind": "b?lk"}, Accounts: []string{"bulk"}},
		Route{Name: "crm", Senders: []string{"*.example.com", "example.com"}, Users: []string{"crm"}, Accounts: []string{"crm"}},
		Route{Name: "any-user", Senders: []string{"auth.example"}, Users: []string{"*"}, Accounts: []string{"auth"}},
		Route{Name: "printer", Senders: []string{"*"}, Listeners: []string{"lan"}, Recipients: []string{"*@example.com", "boss@example.org"}, Accounts: []string{"lan"}},
		Route{Name: "main", Senders: []string{"example.com", "*.example.com", "vip@example.net"}, Accounts: []string{"a", "b"}},
		Route{Name: "idn", Senders: []string{"bücher.example"}, Accounts: []string{"idn"}},
	)
	header := func(m map[string]string) func(string) string {
		return func(n string) string { return m[strings.ToLower(n)] }
	}
	for _, c := range []struct {
		name string
		q    Query
		want string
	}{
		{"domain", Query{From: "x@example.com", Rcpt: "r@r.example"}, "main"},
		{"domain in another case", Query{From: "x@EXAMPLE.com."}, "main"},
		{"subdomain", Query{From: "x@a.b.example.com"}, "main"},
		{"address", Query{From: "vip@example.net"}, "main"},
		{"other address of that domain", Query{From: "other@example.net"}, ""},
		{"header From wins over the envelope", Query{From: "x@foreign.example", EnvelopeFrom: "x@example.com"}, ""},
		{"envelope when there is no From", Query{EnvelopeFrom: "x@example.com"}, "main"},
		{"null sender and no From", Query{}, ""},
		{"null sender and no From at a default route", Query{Listener: "lan", Rcpt: "a@example.com"}, "printer"},
		{"user", Query{From: "x@example.com", User: "crm"}, "crm"},
		{"other user", Query{From: "x@example.com", User: "CRM"}, "main"},
		{"any user", Query{From: "x@auth.example", User: "z"}, "any-user"},
		{"any user, but none", Query{From: "x@auth.example"}, ""},
		{"listener and recipient", Query{From: "x@z.example", Listener: "lan", Rcpt: "boss@example.org"}, "printer"},
		{"listener without the recipient", Query{From: "x@z.example", Listener: "lan", Rcpt: "clerk@example.org"}, ""},
		{"both headers", Query{From: "x@example.com", Header: header(map[string]string{"list-id": "the NEWS <n>", "x-kind": "Bulk"})}, "bulk"},
		{"one header of two", Query{From: "x@example.com", Header: header(map[string]string{"list-id": "news"})}, "main"},
		{"U-label pattern, A-label address", Query{From: "x@xn--bcher-kva.example"}, "idn"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, ok := tab.Lookup(c.q)
			got := ""
			if ok {
				got = r.Name
			}
			if got != c.want || ok != (c.want != "") {
				t.Errorf("got route %q %v, want %q", got, ok, c.want)
			}
		})
	}
}

func TestCouldSend(t *testing.T) {
	tab := mustNew(t, Route{Senders: []string{"example.com"}, Users: []string{"u"}, Accounts: []string{"a"}})
	if !tab.CouldSend("x@example.com") || tab.CouldSend("x@example.org") || tab.CouldSend("") {
		t.Error("CouldSend does not follow the sender patterns")
	}
	if mustNew(t).CouldSend("x@example.com") {
		t.Error("an empty table sends")
	}
}

func TestNewChecks(t *testing.T) {
	ok := Route{Senders: []string{"*"}, Accounts: []string{"a"}}
	for _, c := range []struct {
		name string
		edit func(*Route)
		want string
	}{
		{"fine", func(r *Route) {}, ""},
		{"no sender", func(r *Route) { r.Senders = nil }, "senders is empty"},
		{"no account", func(r *Route) { r.Accounts = nil }, "accounts is empty"},
		{"account twice", func(r *Route) { r.Accounts = []string{"a", "b", "a"} }, "named twice"},
		{"bad pattern", func(r *Route) { r.Senders = []string{"*example.com"} }, "senders"},
		{"empty pattern", func(r *Route) { r.Recipients = []string{""} }, "recipients"},
		{"bad on_loss", func(r *Route) { r.OnLoss = "maybe" }, "on_loss"},
		{"bad force_from", func(r *Route) { r.ForceFrom = "nobody" }, "force_from"},
		{"bad redirect", func(r *Route) { r.RedirectAllTo = []string{"a b@c"} }, "redirect_all_to"},
		{"bad header name", func(r *Route) { r.Headers = map[string]string{"A: b": "*"} }, "headers"},
		{"negative expire", func(r *Route) { r.Expire = -time.Second }, "expire"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := ok
			c.edit(&r)
			_, err := New([]Route{r})
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
		})
	}
	if _, err := New([]Route{{Name: "x"}, {Name: "y", Senders: []string{"*"}}}); err == nil ||
		strings.Count(err.Error(), "accounts is empty") != 2 {
		t.Errorf("not all faults are named: %v", err)
	}
}

func TestNewKeepsNoCallersMemory(t *testing.T) {
	r := Route{Senders: []string{"example.com"}, Accounts: []string{"a"}}
	tab := mustNew(t, r)
	r.Senders[0] = "evil.example"
	if tab.CouldSend("x@evil.example") {
		t.Error("the table changed with the caller's slice")
	}
	if got, _ := tab.Lookup(Query{From: "x@example.com"}); got == nil || got.OnLoss != LossSend || got.Name != "1" {
		t.Errorf("defaults missing: %+v", got)
	}
}

func TestGlob(t *testing.T) {
	for _, c := range []struct {
		glob, value string
		want        bool
	}{
		{"", "", true},
		{"", "x", false},
		{"*", "", true},
		{"*", "anything / at all", true},
		{"a*b*c", "aXbYbZc", true},
		{"a*b*c", "aXbYbZ", false},
		{"?", "é", true},
		{"?", "", false},
		{"NEWS-*", "news-letter", true},
		{"*a*a*a*a*a*b", strings.Repeat("a", 5000), false},
	} {
		if got := Glob(c.glob, c.value); got != c.want {
			t.Errorf("Glob(%q, %.20q) = %v, want %v", c.glob, c.value, got, c.want)
		}
	}
}
