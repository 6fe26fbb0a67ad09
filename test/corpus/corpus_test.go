package corpus

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	maileroo "smtpbridge/providers/maileroo/twin"
	mailersend "smtpbridge/providers/mailersend/twin"
	mailpace "smtpbridge/providers/mailpace/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
	smtpeter "smtpbridge/providers/smtpeter/twin"
	"smtpbridge/route"
	"smtpbridge/translate"
)

// taken is one mail as an ESP has it, in neutral terms.
type taken struct {
	rcpts, visible []string // who receives; what of the addresses every recipient sees
	raw            []byte   // the whole document, for raw forms
	subject        string
	text, html     string
	files          []content
}

type content struct {
	name string
	sum  [sha256.Size]byte
}

func contentOf(name string, b []byte) content { return content{name, sha256.Sum256(b)} }

// form is one ESP's API in one of its forms, in this process.
type form struct {
	title, provider, options string
	esp                      http.Handler
	take                     func() []taken // what came since the last call
}

// since gives what a twin took after the last call.
func since[M any](mails func() []M, show func(M) taken) func() []taken {
	seen := 0
	return func() (out []taken) {
		all := mails()
		for _, m := range all[seen:] {
			out = append(out, show(m))
		}
		seen = len(all)
		return out
	}
}

var (
	// badFrom are the refusals that are about From alone.
	badFrom = regexp.MustCompile(`no From address|From header names|From address "[^"]*" has no domain`)
	// mayRefuse is what only the ESP can tell: whether content fits its name, and whether a domain exists.
	mayRefuse = []string{"#MS42202", "The from.email must be a valid email address"}
	ofTheMail = regexp.MustCompile(`\([^)]*\)|\.\w+`) // names and types of files
	cid       = regexp.MustCompile(`(?i)cid:[^"'> )]+`)
)

// withFrom gives a mail one ordinary From field.
func withFrom(src []byte, m *mime.Message) []byte {
	for _, f := range m.Header {
		if strings.EqualFold(f.Name, "From") {
			src = bytes.Replace(src, f.Raw, nil, 1)
		}
	}
	return append([]byte("From: App <app@example.com>\r\n"), src...)
}

const corpusKey = "key-of-the-corpus"

func forms() []form {
	const keep = 5000
	people := func(lists ...[]mailersend.Person) (out []string) {
		for _, l := range lists {
			for _, p := range l {
				out = append(out, p.Email, p.Name)
			}
		}
		return out
	}
	sender := func(plan string) form {
		t := mailersend.New(mailersend.Options{Token: corpusKey, PerMinute: 1e9, PerDay: 1e9, Plan: plan, Keep: keep})
		return form{title: "mailersend, " + plan, provider: "mailersend", options: fmt.Sprintf("plan = %q", plan), esp: t, take: since(t.Mails, func(m mailersend.Mail) taken {
			out := taken{rcpts: m.Rcpts(), visible: people(m.To, m.Cc), subject: m.Subject, text: m.Text, html: m.HTML}
			for _, a := range m.Attachments {
				out.files = append(out.files, contentOf(a.Name, a.Content))
			}
			return out
		})}
	}
	mp := mailpace.New(mailpace.Options{Token: corpusKey, Keep: keep})
	mr := maileroo.New(maileroo.Options{Key: corpusKey, Keep: keep})
	sp := smtpeter.New(smtpeter.Options{Token: corpusKey, Keep: keep})
	chimp := func(kind string) form {
		t := mandrill.New(mandrill.Options{Key: corpusKey, Keep: keep})
		return form{title: "mandrill, " + kind, provider: "mandrill", options: fmt.Sprintf("form = %q", kind), esp: t, take: since(t.Mails, func(m mandrill.Mail) taken {
			out := taken{raw: m.Raw, subject: m.Subject, text: m.Text, html: m.HTML}
			for _, r := range m.Rcpts {
				out.rcpts = append(out.rcpts, r.Email)
				out.visible = append(out.visible, r.Visible...)
			}
			for _, a := range slices.Concat(m.Images, m.Attachments) {
				out.files = append(out.files, contentOf(a.Name, a.Content))
			}
			return out
		})}
	}
	or := func(s *string) string {
		if s == nil {
			return ""
		}
		return *s
	}
	return []form{
		sender("starter"), sender("professional"),
		{title: "mailpace", provider: "mailpace", esp: mp, take: since(mp.Mails, func(m mailpace.Mail) taken {
			out := taken{rcpts: m.Rcpts(), visible: slices.Concat(m.To, m.Cc, []string{m.ReplyTo, m.From}), subject: m.Subject, text: m.Text, html: m.HTML}
			for _, a := range m.Attachments {
				out.files = append(out.files, contentOf(a.Name, a.Content))
			}
			return out
		})},
		{title: "maileroo", provider: "maileroo", esp: mr, take: since(mr.Mails, func(m maileroo.Mail) taken {
			out := taken{rcpts: m.Rcpts(), visible: m.Visible(), subject: m.Subject, text: or(m.Plain), html: or(m.HTML)}
			for _, a := range m.Attachments {
				out.files = append(out.files, contentOf(a.Name, a.Content))
			}
			return out
		})},
		chimp("raw"), chimp("json"),
		{title: "smtpeter", provider: "smtpeter", esp: sp, take: since(sp.Mails, func(m smtpeter.Mail) taken {
			return taken{rcpts: m.Recipients, raw: m.MIME}
		})},
	}
}

// inProcess hands requests to a handler without a socket.
type inProcess struct{ h http.Handler }

func (p inProcess) RoundTrip(r *http.Request) (*http.Response, error) {
	w := httptest.NewRecorder()
	p.h.ServeHTTP(w, r)
	return w.Result(), nil
}

// planner has one account, at the ESP at base, and a route to it for every sender. A nil client is one over the network.
func planner(tb testing.TB, provider, options, base string, client *http.Client) (*deliver.Planner, *deliver.Account) {
	tb.Helper()
	info, ok := all.Registry().Lookup(provider)
	if !ok {
		tb.Fatalf("no provider %s", provider)
	}
	p, err := info.New(providers.Options{
		Account: "esp", Hostname: "bridge.example.com", APIKey: secret.New(corpusKey), BaseURL: base, Now: time.Now, Client: client,
		Decode: func(v any) error { _, err := toml.Decode(options, v); return err },
	})
	if err != nil {
		tb.Fatal(err)
	}
	a := &deliver.Account{Name: "esp", Info: info, Provider: p}
	table, err := route.New([]route.Route{{Name: "all", Senders: []string{"*"}, Accounts: []string{"esp"}}})
	if err != nil {
		tb.Fatal(err)
	}
	return deliver.NewPlanner(deliver.PlannerConfig{Routes: table, Accounts: map[string]*deliver.Account{"esp": a}}), a
}

// corpusMails are the mails of mime/testdata/corpus as they come by SMTP: CRLF line ends and our own Received field.
func corpusMails(t *testing.T) map[string][]byte {
	t.Helper()
	const base = "../../mime/testdata/corpus"
	out := map[string][]byte{}
	err := filepath.WalkDir(base, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".eml") {
			return err
		}
		b, err := os.ReadFile(path)
		b = bytes.ReplaceAll(bytes.ReplaceAll(b, []byte("\r\n"), []byte("\n")), []byte("\r"), []byte("\n"))
		b = bytes.ReplaceAll(b, []byte("\n"), []byte("\r\n"))
		out[strings.TrimPrefix(path, base+"/")] = append([]byte("Received: from app by bridge.example.com; Mon, 23 Nov 2026 10:00:00 +0000\r\n"), b...)
		return err
	})
	if err != nil || len(out) < 250 {
		t.Fatalf("%d mails: %v", len(out), err)
	}
	return out
}

// envelopesOf gives an envelope that fits the header, as an application's would, and one that has nothing to do with it.
func envelopesOf(m *mime.Message) map[string]envelope.Envelope {
	own := envelope.Envelope{ID: "01own"}
	if len(m.From) > 0 {
		own.From = m.From[0].Addr
	}
	seen := map[string]bool{}
	lists := [][]mime.Address{m.To, m.Cc}
	for _, v := range m.Header.Values("Bcc") {
		lists = append(lists, mime.ParseAddressList(v))
	}
	for _, a := range slices.Concat(lists...) {
		if k := envelope.Fold(a.Addr); envelope.ValidateAddr(a.Addr) == nil && !seen[k] {
			seen[k] = true
			own.Rcpts = append(own.Rcpts, envelope.Rcpt{Addr: a.Addr})
		}
	}
	if len(own.Rcpts) == 0 {
		own.Rcpts = []envelope.Rcpt{{Addr: "blind@recipient.example"}}
	}
	foreign := envelope.Envelope{ID: "02foreign", Rcpts: []envelope.Rcpt{{Addr: "hidden.one@recipient.example"}, {Addr: "hidden.two@recipient.example"}}}
	return map[string]envelope.Envelope{"own": own, "foreign": foreign}
}

// TestCorpus gives every mail of the corpus, under two envelopes, to every ESP in every form it has: the ESP takes
// it, exactly the envelope receives it and sees no blind address, and what it has is what the mail
// had, or the mail is refused beforehand with a text that helps its sender.
func TestCorpus(t *testing.T) {
	mails := corpusMails(t)
	names := make([]string, 0, len(mails))
	for n := range mails {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, f := range forms() {
		t.Run(f.title, func(t *testing.T) {
			t.Parallel()
			p, a := planner(t, f.provider, f.options, "https://esp.example.com", &http.Client{Transport: inProcess{f.esp}})
			outcomes := map[string]int{}
			for _, n := range names {
				m, err := mime.Parse(bytes.NewReader(mails[n]), int64(len(mails[n])), mime.Limits{})
				if err != nil {
					t.Fatalf("%s: %v", n, err)
				}
				for kind, env := range envelopesOf(m) {
					title := n + ", " + kind + " envelope"
					why := oneOfCorpus(t, f, p, a, env, mails[n], title)
					outcomes[why]++
					if why == "" || !badFrom.MatchString(why) {
						continue
					}
					// Its content is of interest all the same.
					why = oneOfCorpus(t, f, p, a, env, withFrom(mails[n], m), title+", with a From")
					outcomes[why]++
				}
			}
			for _, why := range slices.Sorted(maps.Keys(outcomes)) {
				t.Logf("%4d %s", outcomes[why], cmp.Or(why, "accepted"))
			}
			if outcomes[""] < len(names) {
				t.Errorf("only %d of %d mails were accepted under two envelopes", outcomes[""], len(names))
			}
		})
	}
}

// oneOfCorpus gives the text of a refusal.
func oneOfCorpus(t *testing.T, f form, p *deliver.Planner, a *deliver.Account, env envelope.Envelope, src []byte, title string) string {
	t.Helper()
	plan, err := p.Plan(deliver.PlanRequest{Envelope: env, Body: bytes.NewReader(src), Size: int64(len(src))})
	var r *deliver.Refusal
	switch {
	case errors.As(err, &r):
		checkReason(t, title, r)
		return r.Error()
	case err != nil:
		t.Errorf("%s: %v", title, err)
		return ""
	}
	for _, x := range plan.Refused {
		checkReason(t, title, x.Refusal)
	}
	var got, want []string
	for _, g := range plan.Groups {
		if len(g.Accounts) == 0 {
			continue
		}
		for _, n := range g.Rcpts {
			want = append(want, envelope.Fold(env.Rcpts[n].Addr))
		}
		for i, m := range g.Verdicts[0].Calls {
			m.Ref = fmt.Sprintf("ref-%d", i)
			m.IdempotencyKey = fmt.Sprintf("%s-%s-%d", title, m.Ref, len(got))
			out, err := a.Provider.Send(context.Background(), m)
			var e *providers.Error
			if errors.As(err, &e) && e.Kind == providers.Permanent && slices.ContainsFunc(mayRefuse, func(s string) bool { return strings.Contains(e.Msg, s) }) {
				return "refused by the ESP: " + e.Msg
			}
			if err != nil {
				t.Errorf("%s: %v", title, err)
				return ""
			}
			for j, o := range out.Rcpts {
				if o.Verdict != providers.Accepted && (strings.Contains(envelope.Domain(o.Addr), ".") || o.Detail == "") {
					t.Errorf("%s: %s: %+v", title, m.Rcpts[j].Addr, o)
				}
			}
			have := f.take()
			if len(have) == 0 && !slices.ContainsFunc(out.Rcpts, func(o providers.RcptOutcome) bool { return o.Verdict == providers.Accepted }) {
				return "refused by the ESP: " + out.Rcpts[0].Detail
			}
			if len(have) != 1 {
				t.Errorf("%s: the ESP has %d mails of one call", title, len(have))
				return ""
			}
			got = append(got, have[0].rcpts...)
			checkBlind(t, title, m, have[0])
			checkContent(t, f, title, m, have[0], append(g.Verdicts[0].Losses, out.Lost...))
		}
	}
	for i := range got {
		got[i] = envelope.Fold(got[i])
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s: received by %v, want %v", title, got, want)
	}
	return ""
}

// checkBlind wants no recipient visible who stands in no header; one alone in a call may see himself.
func checkBlind(t *testing.T, title string, m *translate.Mail, have taken) {
	t.Helper()
	if len(m.Rcpts) < 2 {
		return
	}
	seen := strings.ToLower(strings.Join(have.visible, "\n"))
	if have.raw != nil {
		head, _, _ := bytes.Cut(have.raw, []byte("\r\n\r\n"))
		seen += "\n" + strings.ToLower(string(head))
	}
	named := map[string]bool{}
	for _, x := range slices.Concat(m.Msg.To, m.Msg.Cc, m.Msg.From, m.Msg.ReplyTo, m.Msg.Sender) {
		named[envelope.Fold(x.Addr)] = true
	}
	for _, r := range m.Rcpts {
		if !named[envelope.Fold(r.Addr)] && strings.Contains(seen, strings.ToLower(r.Addr)) {
			t.Errorf("%s: the blind recipient %s is visible", title, r.Addr)
		}
	}
}

func opened(t *testing.T, open func() io.ReadCloser) []byte {
	t.Helper()
	r := open()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkContent compares what the ESP has with the mail: texts, and attachments by their digests.
func checkContent(t *testing.T, f form, title string, m *translate.Mail, have taken, losses []translate.Loss) {
	t.Helper()
	lost := func(field string) bool {
		return slices.ContainsFunc(losses, func(l translate.Loss) bool { return strings.HasPrefix(l.Field, field) })
	}
	if m.UseRaw {
		checkRaw(t, title, opened(t, func() io.ReadCloser { return io.NopCloser(m.Msg.Source()) }), have.raw, lost)
		return
	}
	if have.subject != m.Msg.Subject && !lost("subject") {
		t.Errorf("%s: subject %q, want %q", title, have.subject, m.Msg.Subject)
	}
	for _, x := range []struct {
		what, got string
		part      *mime.Part
	}{{"text", have.text, m.Msg.Text}, {"html", have.html, m.Msg.HTML}} {
		want := ""
		if x.part != nil {
			want = string(opened(t, x.part.Open))
		}
		if f.provider == "maileroo" { // whose inline parts go by their names, which is said as a loss
			x.got, want = cid.ReplaceAllString(x.got, "cid:"), cid.ReplaceAllString(want, "cid:")
		}
		if x.got != want && !lost(x.what) && strings.TrimSpace(x.got+want) != "" {
			t.Errorf("%s: %s %.300q, want %.300q", title, x.what, x.got, want)
		}
	}
	sums := map[[sha256.Size]byte]int{}
	for _, g := range have.files {
		sums[g.sum]++
	}
	for i := range m.Msg.Attachments {
		x := &m.Msg.Attachments[i]
		sum := sha256.Sum256(opened(t, x.Open))
		sums[sum]--
		if sums[sum] < 0 && !lost("attachment") {
			t.Errorf("%s: attachment %q of type %s is not there, or changed", title, x.Filename, x.Type)
		}
	}
	if len(have.files) > len(m.Msg.Attachments) {
		t.Errorf("%s: %d attachments, the mail has %d", title, len(have.files), len(m.Msg.Attachments))
	}
}

// checkRaw compares what an ESP got byte for byte with what the client sent, but for the fields that are to go
// and for octets that no JSON string can hold: those parts decode to the same octets, and a loss says so.
func checkRaw(t *testing.T, title string, sent, got []byte, lost func(field string) bool) {
	t.Helper()
	parse := func(b []byte) *mime.Message {
		m, err := mime.Parse(bytes.NewReader(b), int64(len(b)), mime.Limits{})
		if err != nil {
			t.Fatalf("%s: %v", title, err)
		}
		return m
	}
	a, b := parse(sent), parse(got)
	if utf8.Valid(sent[a.Root.BodyStart:]) && !bytes.Equal(got[b.Root.BodyStart:], sent[a.Root.BodyStart:]) {
		t.Errorf("%s: the body differs from the client's", title)
	}
	left := b.Header
	for _, f := range a.Header {
		name := strings.ToLower(f.Name)
		switch {
		case slices.Contains([]string{"received", "bcc", "resent-bcc", "return-path"}, name) || translate.IsOptionHeader(name):
		case len(left) == 0:
			t.Errorf("%s: field %s is missing", title, f.Name)
			return
		case bytes.Equal(left[0].Raw, f.Raw):
			left = left[1:]
		case strings.EqualFold(left[0].Name, f.Name) && (lost("header "+name) || name == "content-transfer-encoding" && lost("part ")):
			if name != "content-transfer-encoding" && left[0].Value != f.Value && !slices.Equal(mime.ParseAddressList(left[0].Value), mime.ParseAddressList(f.Value)) {
				t.Errorf("%s: field %q reads %q after it was encoded", title, f.Raw, left[0].Value)
			}
			left = left[1:]
		default:
			t.Errorf("%s: field %q became %q", title, f.Raw, left[0].Raw)
			return
		}
	}
	for _, f := range left {
		switch name := strings.ToLower(f.Name); {
		case name == "content-transfer-encoding" && lost("part "): // there was none
		case name == "list-unsubscribe" && a.Header.Has("X-List-Unsubscribe"): // a dialect's name for it
		default:
			t.Errorf("%s: field %q was added", title, f.Raw)
		}
	}
	n := 0
	var walk func(x, y *mime.Entity)
	walk = func(x, y *mime.Entity) {
		if len(x.Children) != len(y.Children) || x.Type != y.Type {
			t.Errorf("%s: %s of %d parts became %s of %d", title, x.Type, len(x.Children), y.Type, len(y.Children))
			return
		}
		for i := range x.Children {
			walk(x.Children[i], y.Children[i])
		}
		if len(x.Children) > 0 {
			return
		}
		n++
		before, after := sent[x.BodyStart:x.End], got[y.BodyStart:y.End]
		switch {
		case sha256.Sum256(before) == sha256.Sum256(after):
		case !lost(fmt.Sprintf("part %d", n)):
			t.Errorf("%s: part %d changed, and no loss says so", title, n)
		case utf8.Valid(before):
			t.Errorf("%s: part %d changed without need", title, n)
		}
	}
	walk(a.Root, b.Root)
	for i := range a.Attachments {
		x, y := opened(t, a.Attachments[i].Open), opened(t, b.Attachments[i].Open)
		if sha256.Sum256(x) != sha256.Sum256(y) {
			t.Errorf("%s: attachment %d decodes to other octets", title, i+1)
		}
	}
	for _, p := range [][2]*mime.Part{{a.Text, b.Text}, {a.HTML, b.HTML}} {
		if p[0] != nil && !bytes.Equal(opened(t, p[0].Open), opened(t, p[1].Open)) {
			t.Errorf("%s: a text reads otherwise", title)
		}
	}
}

// checkReason wants a reply that says what is wrong and what to do, in words of mail and not of a vendor's API.
func checkReason(t *testing.T, title string, r *deliver.Refusal) {
	t.Helper()
	if r.Code < 500 || r.Code > 599 || r.Enhanced[0] != 5 {
		t.Errorf("%s: refused with %s", title, r)
	}
	text := strings.ToLower(ofTheMail.ReplaceAllString(r.Text, ""))
	for _, jargon := range []string{"json", "%!", "nil", "mailersend", "mailpace", "mandrill", "maileroo", "smtpeter", "api", "translate"} {
		if strings.Contains(text, jargon) {
			t.Errorf("%s: %q is no word for the application's owner: %s", title, jargon, r)
		}
	}
	if !slices.ContainsFunc([]string{"send ", "use ", "set ", "add ", "correct ", "route "}, func(s string) bool { return strings.Contains(text, s) }) {
		t.Errorf("%s: the text does not say what to do: %s", title, r)
	}
}
