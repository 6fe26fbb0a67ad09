package test

import (
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/admin"
	"smtpbridge/event"
	"smtpbridge/internal/pgtest"
	mailpacetwin "smtpbridge/providers/mailpace/twin"
	smtpetertwin "smtpbridge/providers/smtpeter/twin"
	"smtpbridge/store"
)

var nodeMails = flag.Int("node-mails", 250, "how many mails the stories of several nodes that fail get accepted")

// nodeLease is short, so that the stories are; callTime is how long a call takes, so that some are always in flight.
const (
	nodeLease = 3 * time.Second
	callTime  = 20 * time.Millisecond
	inFlight  = 6 // calls of a node to an account at once
)

// farm is several nodes on one PostgreSQL, two ESPs and an application that is told the events.
type farm struct {
	t      *testing.T
	pg     *pgtest.Server
	url    string
	mp     *mailpacetwin.Twin  // has idempotency keys
	sp     *smtpetertwin.Twin  // has none
	esp    map[string]string   // base URLs
	app    string              // URL events are forwarded to
	told   map[string]int      // how often an event was forwarded
	calls  map[string][]string // times of calls, by the caller's address
	nodes  []*bridge
	smtp   []string
	listen string
	mpMore string // more settings of account mp

	referenceTag bool // without it there are no look-ups: they would settle a lost answer only after ten minutes

	mu sync.Mutex
}

// newFarm starts the database and, on an address, the ESPs.
func newFarm(t *testing.T, listen string, o pgtest.Options) *farm {
	t.Helper()
	f := &farm{t: t, listen: "127.0.0.1", told: map[string]int{}, calls: map[string][]string{}, esp: map[string]string{}}
	if listen != "" {
		f.listen = listen
	}
	f.pg = pgtest.Start(t, o)
	f.url = f.pg.Create(t, "bridge", "")
	f.mp = mailpacetwin.New(mailpacetwin.Options{Token: "mp-token-0123456789", Keep: 1 << 20})
	f.sp = smtpetertwin.New(smtpetertwin.Options{Token: "sp-token-0123456789", Keep: 1 << 20})
	f.esp["mp"], f.esp["sp"] = f.serve(f.listen, f.slow(f.mp)), f.serve(f.listen, f.slow(f.sp))
	f.app = f.serve("127.0.0.1", http.HandlerFunc(f.event))
	return f
}

// serve runs a handler on an address until the test ends.
func (f *farm) serve(host string, h http.Handler) string {
	f.t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		f.t.Fatal(err)
	}
	s := &httptest.Server{Listener: ln, Config: &http.Server{Handler: h}}
	s.Start()
	f.t.Cleanup(s.Close)
	return s.URL
}

// slow lets a call take its time, and notes when it began and who made it.
func (f *farm) slow(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		f.mu.Lock()
		f.calls[host] = append(f.calls[host], r.URL.Path)
		f.mu.Unlock()
		time.Sleep(callTime) // the ESP's, not the test's
		h.ServeHTTP(w, r)
	})
}

// event is the application that is told of events.
func (f *farm) event(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	var e event.Event
	if err == nil {
		err = json.Unmarshal(body, &e)
	}
	if err != nil {
		f.t.Errorf("forwarded event %q: %v", body, err)
	}
	f.mu.Lock()
	f.told[e.ID]++
	f.mu.Unlock()
}

// callsFrom counts the calls that came from an address.
func (f *farm) callsFrom(host string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls[host])
}

// add makes and starts a node. wrap runs it somewhere else, more is put into its configuration.
func (f *farm) add(more string, args ...string) *bridge {
	f.t.Helper()
	return f.addAt("127.0.0.1", f.url, nil, more, args...)
}

func (f *farm) addAt(host, url string, wrap []string, more string, args ...string) *bridge {
	f.t.Helper()
	dir, port := shortDir(f.t), freePort(f.t)
	b := newBridge(f.t, dir, fmt.Sprintf(`hostname = "node%d.example.com"
data_dir = %q
[store]
url = %q
lease = %q
[[listener]]
address = "%s:%d"
allow = ["127.0.0.0/8", "10.0.0.0/8"]
[[account]]
name = "mp"
%sprovider = "mailpace"
api_key = "mp-token-0123456789"
base_url = %q
max_concurrent = %d
[[account]]
name = "sp"
provider = "smtpeter"
api_key = "sp-token-0123456789"
base_url = %q
max_concurrent = %d
[account.options]
reference_tag = %v
[[route]]
senders = ["mp.example.com"]
accounts = ["mp"]
[[route]]
senders = ["sp.example.com"]
accounts = ["sp"]
[delivery]
retry = "1s*"
[webhook]
address = ""
[log]
level = "info"
[events]
file = "events.jsonl"
%s`, len(f.nodes)+1, dir, url, nodeLease, host, port, f.mpMore, f.esp["mp"], inFlight, f.esp["sp"], inFlight, f.referenceTag, more))
	b.wrap, b.args = wrap, args
	b.start()
	f.nodes = append(f.nodes, b)
	f.smtp = append(f.smtp, fmt.Sprintf("%s:%d", host, port))
	return b
}

// node is the bridge's name among those that share its store.
func (b *bridge) node() string {
	b.t.Helper()
	name, err := os.ReadFile(filepath.Join(b.dir, "node"))
	if err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(string(name))
}

func (f *farm) forward() string {
	return fmt.Sprintf("[[events.forward]]\nurl = %q\nsecret = \"forward-secret-0123456789-abcdef\"\nallow_local = true\n", f.app)
}

// arrived counts the mails at the ESPs by their subject.
func (f *farm) arrived() (mp, sp map[string]int) {
	mp, sp = map[string]int{}, map[string]int{}
	for _, m := range f.mp.Mails() {
		mp[m.Subject]++
	}
	for _, m := range f.sp.Mails() {
		sp[subjectOf(string(m.MIME))]++
	}
	return mp, sp
}

// check waits until every mail of the ledger has arrived, and looks at what arrived twice: nothing at the ESP with
// idempotency keys, elsewhere only mails of which an event says so, and no more than lost calls in flight.
func (f *farm) check(l *load, via *bridge, lost int) {
	f.t.Helper()
	var missing []string
	defer func() {
		for _, key := range missing[:min(len(missing), 3)] {
			out, err := via.try("trace", key+"@load")
			f.t.Errorf("mail %s got a 250 and did not arrive: %v\n%s\n%s", key, err, out, via.run("queue", "list"))
		}
	}()
	until(f.t, 2*time.Minute, "every accepted mail arrived", func() bool {
		mp, sp := f.arrived()
		missing = slices.DeleteFunc(l.accepted(), func(key string) bool { return mp[key]+sp[key] > 0 })
		return len(missing) == 0
	})
	until(f.t, time.Minute, "nothing waits any more", func() bool {
		out := via.run("queue", "list", "--json")
		return strings.TrimSpace(out) == "[]"
	})
	mp, sp := f.arrived()
	for key, n := range mp {
		if n > 1 {
			f.t.Errorf("mail %s arrived %d times at MailPace, which has idempotency keys", key, n)
		}
	}
	twice := 0
	for key, n := range sp {
		if n < 2 {
			continue
		}
		twice++
		var found []admin.Detail
		if err := json.Unmarshal([]byte(via.run("trace", "--json", key+"@load")), &found); err != nil || len(found) != 1 {
			f.t.Fatalf("trace %s: %d mails, %v", key, len(found), err)
		}
		if !explained(found[0].Events) {
			f.t.Errorf("mail %s arrived %d times without a lost answer: %+v", key, n, found[0].Attempts)
		}
	}
	if twice > lost {
		f.t.Errorf("%d mails arrived twice, but only %d calls can have been in flight", twice, lost)
	}
	f.t.Logf("%d mails accepted, %d answered 4xx, %d at MailPace, %d at SMTPeter, %d of them twice", l.count.Load(), l.refused.Load(), len(mp), len(sp), twice)
}

// living lists the nodes as an operator sees them.
func (f *farm) living() (nodes []store.Node) {
	f.t.Helper()
	if err := json.Unmarshal([]byte(f.nodes[0].run("node", "list", "--json")), &nodes); err != nil {
		f.t.Fatal(err)
	}
	return nodes
}

// leads finds the node that leads what begins with prefix.
func (f *farm) leads(prefix string) int {
	f.t.Helper()
	at := -1
	until(f.t, 20*time.Second, prefix+" is led by a node", func() bool {
		for _, n := range f.living() {
			if slices.ContainsFunc(n.Leads, func(name string) bool { return strings.HasPrefix(name, prefix) }) {
				at = slices.IndexFunc(f.nodes, func(b *bridge) bool { return b.node() == n.Name })
			}
		}
		return at >= 0
	})
	return at
}

// allTold waits until the application has been told every event there is.
func (f *farm) allTold(via *bridge) {
	f.t.Helper()
	until(f.t, 30*time.Second, "every event was forwarded", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		for _, e := range via.events() {
			if f.told[e.ID] == 0 {
				return false
			}
		}
		return true
	})
}

// One of three nodes dies under load, the one that forwards the events; then the database crashes and comes back, in the long form often. No mail and no event is
// lost, and a mail arrives twice only if the dead node was just sending it to an ESP without idempotency keys.
func TestNodes(t *testing.T) {
	if testing.Short() {
		t.Skip("runs three nodes")
	}
	f := newFarm(t, "", pgtest.Options{})
	for range 3 {
		f.add(f.forward())
	}
	l := &load{t: t, want: int64(*nodeMails), from: []string{"mp.example.com", "sp.example.com"}}
	victim := f.leads("forward:")
	l.start(9, f.smtp...)
	until(t, time.Minute, "a third is accepted", func() bool { return l.count.Load() >= l.want/3 })
	f.nodes[victim].kill()
	left := slices.Delete(slices.Clone(f.nodes), victim, victim+1)
	crashes := 1 + int64(*nodeMails)/1000
	for k := range crashes {
		enough := l.want*2/3 + l.want/3*k/crashes
		until(t, 2*time.Minute, "enough is accepted for the next crash", func() bool { return l.count.Load() >= enough })
		if err := f.pg.Stop("immediate"); err != nil {
			t.Fatal(err)
		}
		before := l.refused.Load()
		until(t, time.Minute, "clients are answered 4xx while the database is gone", func() bool { return l.refused.Load() > before+2 })
		if err := f.pg.Again(); err != nil {
			t.Fatal(err)
		}
	}
	l.wait()
	f.check(l, left[0], 2*inFlight)
	for _, b := range left {
		until(t, 30*time.Second, "the event file has an event of every mail", func() bool { return len(b.events()) >= len(l.acked) })
	}
	f.allTold(left[0])
	if n := len(f.living()); n != 2 {
		t.Errorf("%d nodes count as living, want 2", n)
	}
	if now := f.leads("forward:"); now == victim {
		t.Error("the dead node still leads")
	}
	for _, b := range left {
		b.stop()
	}
	if n := len(f.living()); n != 0 {
		t.Errorf("%d nodes count as living after all were stopped", n)
	}
}
