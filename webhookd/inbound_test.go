package webhookd_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/secret"
	"smtpbridge/internal/storetest"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo"
	"smtpbridge/providers/mailersend"
	"smtpbridge/providers/mandrill"
	"smtpbridge/providers/providertest"
	"smtpbridge/store"
	"smtpbridge/webhookd"
)

// inbox collects received mail, each once.
type inbox struct {
	mu    sync.Mutex
	mails []webhookd.Received
	raws  []string
	fail  error
}

func (b *inbox) take(_ context.Context, m webhookd.Received, raw io.Reader) error {
	text, err := io.ReadAll(raw)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fail != nil {
		return b.fail
	}
	for _, have := range b.mails {
		if have.ID == m.ID {
			return nil
		}
	}
	b.mails, b.raws = append(b.mails, m), append(b.raws, string(text))
	return nil
}

func (b *inbox) known(_ context.Context, id string) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, m := range b.mails {
		if m.ID == id {
			return true, nil
		}
	}
	return false, nil
}

// isInbound tells received mails from events about them, which are webhooks.
func isInbound(f providertest.Fixture) bool {
	return strings.Contains(f.Name, "inbound") && (len(f.Expect) == 0 || f.Expect[0]["event_type"] != "inbound_failed")
}

// Every received mail among the fixtures, over real HTTP: posted twice it is one mail.
func TestInboundFixturesOverHTTP(t *testing.T) {
	n := 0
	for _, info := range []providers.Info{mailersend.Info, mandrill.Info} {
		for _, f := range providertest.Fixtures(t, "../providers/"+info.Name+"/testdata/webhook") {
			if !isInbound(f) {
				continue
			}
			n++
			t.Run(info.Name+"/"+f.Name, func(t *testing.T) {
				inURL := f.URL
				_, acc := espAccount(t, info, f, func(o *providers.Options, f providertest.Fixture) {
					o.InboundURL = inURL
					if f.Secret != nil {
						o.InboundSecrets = []secret.String{secret.New(f.Secret.Value)}
					}
				})
				acc.InboundOnly, acc.URLPath = true, ""
				acc.InboundSecrets = []secret.String{secret.New("there is one")}
				box := &inbox{}
				g := newRig(t, func(g *rig) {
					g.cfg.Accounts = []webhookd.Account{acc}
					g.cfg.Inbox.Take = box.take
				})
				f.URL = "http://x/inbound/acc"
				want := 200
				if f.ExpectHTTP >= 400 || f.Signature == "invalid" || f.Signature == "missing" {
					want = 401
				}
				for range 2 {
					g.want("posted", g.send(f), want)
				}
				if want != 200 {
					if len(box.mails) > 0 {
						t.Errorf("a forged post left %+v", box.mails)
					}
					return
				}
				if len(box.mails) == 0 || len(box.mails) != len(f.Expect) && len(f.Expect) > 0 {
					t.Fatalf("%d mails, want %d", len(box.mails), len(f.Expect))
				}
				for i, m := range box.mails {
					if raw := box.raws[i]; raw != "..." && (!strings.Contains(raw, "ubject:") || !strings.Contains(strings.ReplaceAll(raw, "\r", ""), "\n\n")) {
						t.Errorf("mail %d: %.200q", i, box.raws[i])
					}
					if len(f.Expect) == 0 {
						continue
					}
					e := f.Expect[i]
					if id, ok := e["event_id"].(string); ok && m.ProviderID != id {
						t.Errorf("id %q, want %q", m.ProviderID, id)
					}
					if at, ok := e["timestamp"].(string); ok {
						if want, err := time.Parse(time.RFC3339Nano, at); err != nil || !m.Time.Equal(want) {
							t.Errorf("time %v, want %v", m.Time, at)
						}
					}
					if rcpt, ok := e["recipient"].(string); ok && (len(m.Rcpts) != 1 || m.Rcpts[0] != rcpt) {
						t.Errorf("recipients %q, want %q", m.Rcpts, rcpt)
					}
				}
			})
		}
	}
	if n == 0 {
		t.Error("no fixtures")
	}
}

// A large post goes through a file, and comes out whole.
func TestLargeInboundPost(t *testing.T) {
	box := &inbox{}
	spools := 0
	g := newRig(t, func(g *rig) {
		g.cfg.MaxInboundBody = 8 << 20
		g.cfg.Inbox.Take = box.take
		g.cfg.Inbox.Spool = func() (*os.File, error) {
			spools++
			if spools == 2 {
				return nil, errors.New("disk full")
			}
			return os.CreateTemp(t.TempDir(), "")
		}
	})
	body := strings.Repeat("0123456789abcde\n", 3<<16)
	status, _, _ := g.do("POST", "/inbound/esp", g.signed([]byte(body)), strings.NewReader(body))
	g.want("large", status, 200)
	if len(box.raws) != 1 || box.raws[0] != body {
		t.Errorf("%d mails", len(box.raws))
	}
	status, _, _ = g.do("POST", "/inbound/esp", g.signed([]byte(body)), strings.NewReader(body))
	g.want("no place for the post", status, 503)
	long := strings.Repeat("x", 8<<20+1)
	status, _, _ = g.do("POST", "/inbound/esp", g.signed([]byte(long)), io.MultiReader(strings.NewReader(long))) // chunked
	g.want("too large", status, 413)
}

// fakeRoo is the side of Maileroo that keeps received mail.
type fakeRoo struct {
	mu       sync.Mutex
	asked    []string
	valid    map[string]bool // validation paths that are still good
	lose     int             // answers to validations that get lost
	mail     string
	down     bool
	noDelete bool
	client   *http.Client
}

func newFakeRoo(t *testing.T) *fakeRoo {
	f := &fakeRoo{valid: map[string]bool{}, mail: "Subject: hi\r\n\r\nhello\r\n"}
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	f.client = &http.Client{Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "https" || r.URL.Host != "inbound-api.maileroo.net" {
			t.Errorf("called %s", r.URL)
		}
		r = r.Clone(r.Context())
		r.URL.Scheme, r.URL.Host = "http", u.Host
		resp, err := http.DefaultTransport.RoundTrip(r)
		f.mu.Lock()
		defer f.mu.Unlock()
		if err == nil && strings.HasPrefix(r.URL.Path, "/validate") && f.lose > 0 {
			f.lose--
			resp.Body.Close()
			return nil, errors.New("connection reset")
		}
		return resp, err
	})}
	return f
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func (f *fakeRoo) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, r.Method+" "+r.URL.Path)
	switch {
	case strings.HasPrefix(r.URL.Path, "/validate/"):
		ok := f.valid[r.URL.Path]
		delete(f.valid, r.URL.Path)
		fmt.Fprintf(w, `{"success": %v}`, ok)
	case f.down:
		w.WriteHeader(500)
	case strings.HasPrefix(r.URL.Path, "/raw/"):
		io.WriteString(w, f.mail)
	case strings.HasPrefix(r.URL.Path, "/delete/") && f.noDelete && r.Method == http.MethodDelete:
		w.WriteHeader(http.StatusMethodNotAllowed)
	}
}

func (f *fakeRoo) calls() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := strings.Join(f.asked, ", ")
	f.asked = nil
	return s
}

func rooPost(t *testing.T, id string) string {
	t.Helper()
	const host = "https://inbound-api.maileroo.net/"
	b, err := json.Marshal(map[string]any{
		"_id": id, "envelope_sender": "writer@example.net", "recipients": []string{"help@in.example.com"}, "processed_at": 1790000000,
		"body": map[string]any{"raw_mime": map[string]any{"url": host + "raw/" + id}}, "deletion_url": host + "delete/" + id, "validation_url": host + "validate/" + id,
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Mail that Maileroo keeps: pending, validated once, fetched, stored, answered, deleted; whatever fails in between.
func TestInboundByCallback(t *testing.T) {
	roo, box := newFakeRoo(t), &inbox{}
	st, err := store.Open(t.Context(), store.Options{Dir: storetest.Dir(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	prov, err := maileroo.Info.New(providers.Options{Account: "roo", APIKey: secret.New("0123456789abcdef"), Now: time.Now, Client: &http.Client{Transport: noNetwork{}}})
	if err != nil {
		t.Fatal(err)
	}
	path := secret.New("inbound-path-secret")
	g := newRig(t, func(g *rig) {
		g.clock = time.Now()
		g.cfg.Accounts = []webhookd.Account{{Name: "roo", Info: maileroo.Info, Provider: prov, InboundOnly: true, InboundSecrets: []secret.String{path}}}
		g.cfg.Inbox = webhookd.Inbox{Take: box.take, Known: box.known, Posts: st, Client: roo.client}
	})
	post := func(id string) int {
		status, _, _ := g.do("POST", "/inbound/roo/inbound-path-secret", header{"Content-Type": "application/json"}, strings.NewReader(rooPost(t, id)))
		return status
	}
	work := func(after time.Duration) {
		g.advance(after)
		for i := range pending(t, st) {
			p := pending(t, st)[i]
			p.NextAt = time.Time{}
			if err := st.SaveInbound(t.Context(), p); err != nil {
				t.Fatal(err)
			}
		}
		g.h.WorkOnce(t.Context())
	}
	roo.valid["/validate/one"] = true
	status, _, _ := g.do("POST", "/inbound/roo", nil, strings.NewReader(rooPost(t, "one")))
	g.want("without the path's secret", status, 401)
	if got := roo.calls(); got != "" {
		t.Errorf("called: %s", got)
	}
	g.want("good", post("one"), 200)
	if got := roo.calls(); got != "GET /validate/one, GET /raw/one" || len(box.raws) != 1 || box.raws[0] != roo.mail {
		t.Errorf("calls %s, mails %q", got, box.raws)
	}
	if m := box.mails[0]; m.From != "writer@example.net" || m.Rcpts[0] != "help@in.example.com" || m.Doubt != "" || m.Time.Unix() != 1790000000 || m.ID != event.FactID("roo", "inbound", "one") {
		t.Errorf("got %+v", m)
	}
	roo.noDelete = true
	work(0)
	g.want("again, after all is done", post("one"), 200)
	if got := roo.calls(); got != "DELETE /delete/one, GET /delete/one" || len(pending(t, st)) != 0 || len(box.mails) != 1 {
		t.Errorf("calls %s, pending %d", got, len(pending(t, st)))
	}

	// Forged: nothing is fetched, nothing is left.
	g.want("forged", post("forged"), 401)
	if got := roo.calls(); got != "GET /validate/forged" || len(pending(t, st)) != 0 {
		t.Errorf("calls %s, pending %d", got, len(pending(t, st)))
	}

	// The mail cannot be fetched now: the ESP is asked to send again, and we try ourselves as well. It is validated once.
	roo.valid["/validate/two"], roo.down = true, true
	g.want("not fetched", post("two"), 503)
	g.want("not fetched, again", post("two"), 503)
	roo.down = false
	work(time.Hour)
	if got := roo.calls(); got != "GET /validate/two, GET /raw/two, GET /raw/two, GET /raw/two, DELETE /delete/two, GET /delete/two" || len(box.mails) != 2 || box.mails[1].Doubt != "" {
		t.Errorf("calls %s, %d mails", got, len(box.mails))
	}

	// Not stored: it is fetched again.
	roo.valid["/validate/three"], box.fail = true, store.ErrNoSpace
	g.want("not stored", post("three"), 503)
	box.fail = nil
	g.want("stored", post("three"), 200)

	// The ESP's word was lost: the mail is taken, and waits for an operator.
	roo.valid["/validate/four"], roo.lose = true, 1
	g.want("not validated", post("four"), 503)
	g.want("in doubt", post("four"), 200)
	if n := len(box.mails); n != 4 || box.mails[2].Doubt != "" || box.mails[3].Doubt == "" {
		t.Errorf("%d mails, the last: %+v", n, box.mails[n-1])
	}
}

func pending(t *testing.T, st *store.Store) []store.InboundPost {
	t.Helper()
	var out []store.InboundPost
	for _, id := range []string{"one", "two", "three", "four", "forged"} {
		p, err := st.InboundPost(t.Context(), event.FactID("roo", "inbound", id))
		if err == nil {
			out = append(out, p)
		} else if !errors.Is(err, store.ErrNotFound) {
			t.Fatal(err)
		}
	}
	return out
}
