package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	sandbox "smtpbridge/providers/sandbox/twin"
	smtpeter "smtpbridge/providers/smtpeter/twin"
)

// truthRounds is how many random mails each account gets.
const truthRounds = 1000

// truthKey is the API key of all accounts.
const truthKey = "truth-key-0123456789"

// truthEnd is an account at a twin.
type truthEnd struct {
	name, provider string
	config         string // further lines of the account
	handler        http.Handler
	rcpts          func() [][]string // of the calls the twin took, oldest first; it forgets old ones
	// blind are the places of a request that name recipients without showing them to anybody: names of
	// JSON members joined by dots, lists are passed through. An object whose "type" is "bcc" is blind too.
	blind []string
}

// each takes the recipients out of a twin's mails.
func each[M any](mails func() []M, rcpts func(M) []string) func() [][]string {
	return func() [][]string {
		var out [][]string
		for _, m := range mails() {
			out = append(out, rcpts(m))
		}
		return out
	}
}

// truthEnds are all ESPs: a new one is one entry. keep must be more than the calls of one mail.
func truthEnds(keep int) []truthEnd {
	mp := mailpace.New(mailpace.Options{Token: truthKey, Keep: keep})
	sp := smtpeter.New(smtpeter.Options{Token: truthKey, Keep: keep})
	raw, fields := mandrill.New(mandrill.Options{Key: truthKey, Keep: keep, Templates: []string{"17"}}), mandrill.New(mandrill.Options{Key: truthKey, Keep: keep, Templates: []string{"17"}})
	hobby := mailersend.New(mailersend.Options{Token: truthKey, Plan: "hobby", PerMinute: 1 << 30, PerDay: 1 << 30, Keep: keep})
	pro := mailersend.New(mailersend.Options{Token: truthKey, PerMinute: 1 << 30, PerDay: 1 << 30, Keep: keep})
	mr := maileroo.New(maileroo.Options{Key: truthKey, Keep: keep})
	sb := sandbox.New(sandbox.Config{APIKey: truthKey, MaxMails: keep})
	ofMandrill := func(m mandrill.Mail) (out []string) {
		for _, r := range m.Rcpts {
			out = append(out, r.Email)
		}
		return out
	}
	return []truthEnd{
		{"mailpace", "mailpace", "", mp, each(mp.Mails, mailpace.Mail.Rcpts), []string{"bcc"}},
		{"smtpeter", "smtpeter", "", sp, each(sp.Mails, func(m smtpeter.Mail) []string { return m.Recipients }), []string{"recipients"}},
		{"mandrill", "mandrill", "", raw, each(raw.Mails, ofMandrill), []string{"to"}},
		{"mandrill-json", "mandrill", "[account.options]\nform = \"json\"", fields, each(fields.Mails, ofMandrill), nil},
		{"mailersend", "mailersend", "", hobby, each(hobby.Mails, mailersend.Mail.Rcpts), []string{"bcc", "rcpt_to"}},
		{"mailersend-pro", "mailersend", "[account.options]\nplan = \"professional\"\nrcpt_to = true", pro, each(pro.Mails, mailersend.Mail.Rcpts), []string{"bcc", "rcpt_to"}},
		{"maileroo", "maileroo", "", mr, each(mr.Mails, maileroo.Mail.Rcpts), []string{"bcc"}},
		{"sandbox", "sandbox", "", sb, each(sb.Inbox, func(m sandbox.Mail) (out []string) {
			for _, r := range m.Results {
				out = append(out, r.Email)
			}
			return out
		}), []string{"recipients"}},
	}
}

// recorder keeps the requests that a twin got.
type recorder struct {
	twin http.Handler

	mu       sync.Mutex
	requests []recorded
}

type recorded struct {
	where string // method, URL and header
	body  []byte
}

func (rec *recorder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	rec.mu.Lock()
	rec.requests = append(rec.requests, recorded{fmt.Sprint(r.Method, r.URL, r.Header), body})
	rec.mu.Unlock()
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	rec.twin.ServeHTTP(w, r)
}

// take gives the requests since the last call.
func (rec *recorder) take() []recorded {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	out := rec.requests
	rec.requests = nil
	return out
}

// TestEnvelopeIsTheTruth plans random mails with the accounts of a configuration and sends them to the APIs' twins. For each
// mail the recipients that all calls together reached are those of the envelope, each once and nobody else, whatever
// headers say; the outcomes stand in the order of the recipients; and a blind recipient is in
// no part of any request that somebody else could get to see. Of the account "mixed", recipients of one
// mail leave by different ESPs.
func TestEnvelopeIsTheTruth(t *testing.T) {
	ends := truthEnds(200)
	for _, info := range all.Registry() {
		if !info.Local && !slices.ContainsFunc(ends, func(e truthEnd) bool { return e.provider == info.Name }) {
			t.Errorf("provider %s is not in truthEnds", info.Name)
		}
	}
	sets := map[string][]truthEnd{"mixed": truthEnds(200)}
	for _, e := range ends {
		sets[e.name] = []truthEnd{e}
	}
	for name, ends := range sets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newTruth(t, ends).mails(t, truthRounds, randomMail)
		})
	}
}

// mails makes and compares so many random mails.
func (w *truth) mails(t *testing.T, rounds int, make func(*rand.Rand) randomised) {
	t.Helper()
	for seed := range uint64(rounds) {
		if m := make(rand.New(rand.NewPCG(seed, 9))); !w.mail(t, m) {
			t.Fatalf("seed %d: from <%s> to %q\n%s", seed, m.env.From, m.env.Rcpts, m.text)
		}
	}
	if w.calls < rounds/2 { // few are refused
		t.Errorf("only %d calls for %d mails", w.calls, rounds)
	}
}

// truth is the accounts of one configuration with the twins behind them.
type truth struct {
	parts *parts
	ends  map[string]truthEnd
	recs  map[string]*recorder
	calls int // made so far
}

func newTruth(t *testing.T, ends []truthEnd) *truth {
	w := &truth{ends: map[string]truthEnd{}, recs: map[string]*recorder{}}
	// Each account has a domain of recipients; what is left goes to the last one.
	domains := []string{"example.net", "example.org", "bücher.example", "mail.example.edu"}
	var accounts, routes strings.Builder
	for i, e := range ends {
		rec := &recorder{twin: e.handler}
		server := httptest.NewServer(rec)
		t.Cleanup(server.Close)
		w.ends[e.name], w.recs[e.name] = e, rec
		fmt.Fprintf(&accounts, "[[account]]\nname = %q\nprovider = %q\napi_key = %q\nbase_url = %q\n%s\n", e.name, e.provider, truthKey, server.URL, e.config)
		cond := ""
		if i+1 < len(ends) {
			// Two accounts share a domain: the first of them gets the one, the second the other part.
			cond = fmt.Sprintf("recipients = [%q]\n", domains[i%len(domains)])
			if i >= len(domains) {
				cond = fmt.Sprintf("recipients = [\"r%d@%s\"]\n", i, domains[i%len(domains)])
			}
		}
		routes.WriteString("[[route]]\nsenders = [\"example.com\"]\naccounts = [\"" + e.name + "\"]\n" + cond)
	}
	dir := t.TempDir()
	text := fmt.Sprintf("hostname = \"bridge.example.com\"\ndata_dir = %q\n[[listener]]\nname = \"apps\"\naddress = \"127.0.0.1:0\"\npermissions = [\"template\"]\n[webhook]\naddress = \"\"\n", dir) + accounts.String() + routes.String()
	cfg, err := config.Parse(filepath.Join(dir, "bridge.toml"), text, all.Registry().Names())
	if err != nil {
		t.Fatal(err)
	}
	if w.parts, err = makeParts(cfg, all.Registry(), 1, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.parts.close)
	return w
}

// mail plans one mail, makes its calls and compares; false: something is wrong.
func (w *truth) mail(t *testing.T, m randomised) bool {
	t.Helper()
	plan, err := w.parts.planner.Plan(deliver.PlanRequest{Envelope: m.env, Body: strings.NewReader(m.text), Size: int64(len(m.text))})
	var refusal *deliver.Refusal
	if errors.As(err, &refusal) && !slices.ContainsFunc(m.env.Rcpts, func(r envelope.Rcpt) bool { return !m.mayRefuse(r.Addr, refusal) }) {
		return true // nobody whom the API can serve
	}
	if err != nil {
		t.Errorf("plan: %v", err)
		return false
	}
	ok := true
	fail := func(format string, args ...any) {
		t.Helper()
		t.Errorf(format, args...)
		ok = false
	}
	want, got := map[string]int{}, map[string]int{}
	for _, r := range m.env.Rcpts {
		want[envelope.Fold(r.Addr)] = 1 // twice in the envelope is once
	}
	for _, r := range plan.Refused {
		if !m.mayRefuse(r.Rcpt.Addr, r.Refusal) {
			fail("%s is refused: %v", r.Rcpt.Addr, r.Refusal)
		}
		delete(want, envelope.Fold(r.Rcpt.Addr))
	}
	n := 0
	for _, g := range plan.Groups {
		if len(g.Accounts) == 0 {
			continue
		}
		account, _ := w.parts.planner.Account(g.Accounts[0])
		i := slices.IndexFunc(g.Verdicts, func(v deliver.Verdict) bool { return v.Account == account.Name })
		for _, call := range g.Verdicts[i].Calls {
			n++
			call.Ref = fmt.Sprintf("%s-%08d", m.env.ID, n)
			call.IdempotencyKey = call.Ref
			if call.HoldUntil().After(m.env.Received) {
				call.Options.SendAt = m.env.Received // it waits in the queue, and leaves when its time has come
			}
			out, err := account.Provider.Send(t.Context(), call)
			if err != nil {
				fail("%v", err)
				continue
			}
			if len(out.Rcpts) != len(call.Rcpts) {
				fail("%d outcomes for %d recipients", len(out.Rcpts), len(call.Rcpts))
				continue
			}
			for j, r := range out.Rcpts {
				if r.Addr != call.Rcpts[j].Addr || r.Verdict != providers.Accepted {
					fail("outcome %d is %+v, want %s accepted", j, r, call.Rcpts[j].Addr)
				}
			}
		}
	}
	calls := 0
	for name, rec := range w.recs {
		requests := rec.take()
		calls += len(requests)
		taken := w.ends[name].rcpts()
		var parts []recorded
		for _, r := range requests {
			parts = append(parts, r.mails(batchPlace[name])...)
		}
		taken = taken[max(0, len(taken)-len(parts)):]
		if len(taken) != len(parts) {
			fail("%s took %d of %d mails", name, len(taken), len(parts))
			continue
		}
		for i, rcpts := range taken {
			for _, a := range rcpts {
				got[envelope.Fold(a)]++
			}
			w.searchBlind(parts[i], w.ends[name], m, rcpts, fail)
		}
	}
	w.calls += n
	if calls != n {
		fail("%d requests for %d calls", calls, n)
	}
	for a, n := range got {
		if want[a] != 1 || n != 1 {
			fail("%s received %d times, want %d", a, n, want[a])
		}
	}
	for a := range want {
		if got[a] == 0 {
			fail("%s received nothing", a)
		}
	}
	return ok
}

// searchBlind looks for blind recipients in all that a request says, except where the API takes them unseen. A call for one
// recipient may show it to itself, where an API needs somebody in "to".
func (w *truth) searchBlind(r recorded, e truthEnd, m randomised, rcpts []string, fail func(string, ...any)) {
	texts := []string{r.where}
	var body any
	if err := json.Unmarshal(r.body, &body); err != nil {
		fail("the request is not JSON: %v", err)
		return
	}
	walk(body, "", e.blind, &texts)
	all := strings.ToLower(strings.Join(texts, "\n"))
	for addr := range m.blind {
		if len(rcpts) == 1 && envelope.Equal(rcpts[0], addr) {
			continue
		}
		local, _ := envelope.Split(addr)
		if strings.Contains(all, strings.ToLower(local)+"@") {
			fail("the blind recipient %s is visible: %.3000s", addr, r.body)
		}
	}
}

// walk collects all texts below v, in base64 too, except those at blind places.
func walk(v any, at string, blind []string, texts *[]string) {
	if slices.Contains(blind, at) {
		return
	}
	switch v := v.(type) {
	case string:
		*texts = append(*texts, v)
		if b, err := base64.StdEncoding.DecodeString(v); err == nil {
			*texts = append(*texts, string(b))
		}
	case []any:
		for _, e := range v {
			walk(e, at, blind, texts)
		}
	case map[string]any:
		if v["type"] == "bcc" {
			return
		}
		for k, e := range v {
			if k == "to" && v["preserve_recipients"] == false {
				continue // Mandrill makes a copy for each, which shows nobody else
			}
			*texts = append(*texts, k)
			walk(e, strings.TrimPrefix(at+"."+k, "."), blind, texts)
		}
	}
}

// randomised is a random mail with what is known of its recipients.
type randomised struct {
	env   envelope.Envelope
	text  string
	blind map[string]bool // recipients that no To or Cc field names
	eai   map[string]bool // with 8-bit local parts
	// template: the mail needs a stored template, which not every ESP has.
	template bool
}

// mayRefuse: 8-bit local parts and templates may be more than an API has, and are refused beforehand then.
func (m *randomised) mayRefuse(addr string, r *deliver.Refusal) bool {
	return m.eai[addr] || m.template && r.Status() == "5.6.3"
}

// randomMail makes an envelope and a header that overlap in every way: recipients in To, Cc, both, several times,
// in groups, in other spellings, in Bcc fields of all kinds, in none; and addresses of headers that are no recipients.
func randomMail(r *rand.Rand) randomised {
	one := func(n int) bool { return r.IntN(n) == 0 }
	pick := func(l ...string) string { return l[r.IntN(len(l))] }
	m := randomised{blind: map[string]bool{}, eai: map[string]bool{}}
	size := 1 + r.IntN(8)
	switch r.IntN(150) {
	case 0:
		size = 40 + r.IntN(40) // about the limits of a call
	case 1:
		size = 120 + r.IntN(60)
	}
	names := []string{"", "", "Ada", "Müller, Jörg", `O"Neil \ Sons`, "x@y.example", "<evil@example.com>", "日本語 テスト", "a,b;c:d", "=?utf-8?q?x?="}
	named := func(addr string) string {
		return strings.TrimSuffix(strings.TrimPrefix(mime.FormatAddressHeader([]mime.Address{{Name: names[r.IntN(len(names))], Addr: addr}}), " "), "\r\n")
	}
	fields := map[string][]string{}
	add := func(field, addr string) { fields[field] = append(fields[field], named(addr)) }
	allBlind := one(15) // To: undisclosed-recipients
	for i := range size {
		local := pick("r%d", "r%d.first", "r%d+tag", "o'r%d", "UPPER.r%d")
		if size < 10 && one(40) {
			local = "jürgen.r%d"
		}
		// Two spellings of one domain: what the client says in RCPT and what the header says.
		domain := [][2]string{{"example.net", "Example.NET"}, {"example.org", "example.org"}, {"xn--bcher-kva.example", "bücher.example"}, {"mail.example.edu", "MAIL.example.edu"}}[r.IntN(4)]
		local = fmt.Sprintf(local, i)
		rcpt, header := local+"@"+domain[0], local+"@"+domain[r.IntN(2)]
		if strings.Contains(local, "ü") {
			m.eai[rcpt] = true
		}
		e := envelope.Rcpt{Addr: rcpt}
		if one(10) && !m.eai[rcpt] {
			e.ORCPT = "rfc822;" + rcpt
		}
		m.env.Rcpts = append(m.env.Rcpts, e)
		if one(30) {
			m.env.Rcpts = append(m.env.Rcpts, envelope.Rcpt{Addr: rcpt})
		}
		place := r.IntN(8)
		if allBlind {
			place = 7
		}
		switch place {
		case 0, 1, 2:
			add("To", header)
		case 3:
			add("Cc", header)
		case 4:
			add("To", header)
			add(pick("To", "Cc"), rcpt)
		case 5:
			add("Cc", header)
			add("Bcc", header)
		case 6:
			m.blind[rcpt] = true
			add(pick("Bcc", "Bcc", "bcc", "BCC", "Resent-Bcc"), header)
		case 7:
			m.blind[rcpt] = true
		}
	}
	for i := range r.IntN(3) {
		add(pick("To", "Cc", "Bcc", "Reply-To", "Sender", "Resent-To", "X-Original-To", "X-MC-BccAddress"), fmt.Sprintf("only%d@example.net", i))
	}
	r.Shuffle(len(m.env.Rcpts), func(i, j int) { m.env.Rcpts[i], m.env.Rcpts[j] = m.env.Rcpts[j], m.env.Rcpts[i] })

	var b strings.Builder
	for a := range m.blind {
		if one(4) {
			b.WriteString("Received: from app by mail.example.com with SMTP for <" + a + ">; Mon, 02 Nov 2026 10:00:00 +0000\r\n")
		}
		break
	}
	b.WriteString("From: Shop <app@example.com>\r\n")
	for _, name := range []string{"To", "Cc", "Bcc", "bcc", "BCC", "Resent-Bcc", "Reply-To", "Sender", "Resent-To", "X-Original-To", "X-MC-BccAddress"} {
		l := fields[name]
		switch {
		case len(l) == 0:
			if name == "To" && (allBlind || one(2)) {
				b.WriteString(pick("To: undisclosed-recipients:;\r\n", "To:\r\n", ""))
			}
			continue
		case name == "Sender" || name == "X-MC-BccAddress" || name == "X-Original-To":
			l = l[:1]
		case len(l) > 1 && one(8): // the field twice
			b.WriteString(name + ": " + strings.Join(l[:1], "") + "\r\n")
			l = l[1:]
		case one(8) && name != "Reply-To":
			l = []string{"The team: " + strings.Join(l, ", ") + ";"}
		}
		b.WriteString(name + ": " + strings.Join(l, ",\r\n ") + "\r\n")
	}
	if one(10) {
		b.WriteString("X-SMTPAPI: {\"to\": [\"only9@example.net\"], \"category\": \"news\"}\r\n")
	}
	if one(3) {
		b.WriteString("X-Campaign: autumn\r\nReferences: <a@example.com>\r\n")
	}
	b.WriteString("Subject: Grüße\r\nMessage-ID: <x@example.com>\r\nMIME-Version: 1.0\r\n")
	switch r.IntN(4) {
	case 0:
		b.WriteString("Content-Type: text/html; charset=utf-8\r\n\r\n<p>hello</p>\r\n")
	case 1:
		b.WriteString("Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nhello\r\n--b\r\nContent-Type: application/pdf\r\n" +
			"Content-Disposition: attachment; filename=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\nJVBERi0xLjQK\r\n--b--\r\n")
	default:
		b.WriteString("\r\nhello\r\n")
	}
	m.text = b.String()
	m.env.ID, m.env.From = fmt.Sprintf("01jd%022d", r.Uint64()%1e18), pick("app@example.com", "bounce+1@example.com", "")
	m.env.Received, m.env.Size, m.env.Listener = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), int64(len(m.text)), "apps"
	m.env.UTF8 = len(m.eai) > 0
	return m
}
