package translate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/mail"
	"slices"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// world makes random envelopes, headers and capabilities.
type world struct{ *rand.Rand }

func (w world) flag() bool { return w.IntN(2) == 0 }

func (w world) limit() int {
	if w.flag() {
		return 0
	}
	return 1 + w.IntN(4)
}

// spell gives one of the spellings of mailbox n that Fold takes for the same.
func (w world) spell(n int) string {
	domains := []string{"example.com", "EXAMPLE.com", "Example.COM."}
	if n%3 == 0 {
		domains = []string{"bücher.example", "xn--bcher-kva.example", "XN--BCHER-KVA.example"}
	}
	return fmt.Sprintf("u%d@%s", n, domains[w.IntN(len(domains))])
}

func (w world) list(universe int) []mime.Address {
	var out []mime.Address
	for range w.IntN(6) {
		out = append(out, mime.Address{Name: fmt.Sprintf("N%d", w.IntN(9)), Addr: w.spell(w.IntN(universe))})
	}
	return out
}

func (w world) request() Request {
	const universe = 12
	m := &mime.Message{From: []mime.Address{{Addr: "from@example.org"}}, To: w.list(universe), Cc: w.list(universe), ReplyTo: w.list(4)}
	m.Header = mime.Header{
		{Name: "From", Value: "from@example.org"},
		{Name: "X-PM-Tag", Value: "t"},
		{Name: "X-Foo", Value: "1"},
		{Name: "X-Foo", Value: "2"},
		{Name: "In-Reply-To", Value: "<a@b>"},
		{Name: "Bcc", Value: "secret@example.org"},
		{Name: "DKIM-Signature", Value: "v=1"},
		{Name: "List-Unsubscribe", Value: "<mailto:u@example.org>"},
	}
	r := Request{Message: m, Envelope: envelope.Envelope{ID: "q", From: "bounce@example.org"}}
	if w.IntN(4) == 0 {
		r.Envelope.From = ""
	}
	for _, n := range w.Perm(universe)[:1+w.IntN(9)] {
		r.Rcpts = append(r.Rcpts, envelope.Rcpt{Addr: w.spell(n)})
	}
	r.Envelope.Rcpts = r.Rcpts
	r.Caps = Capabilities{
		Raw: RawKind(w.IntN(3)), JSON: w.flag(), RawFeatures: w.flag(), HeaderTo: w.IntN(4) == 0, Cc: w.flag(), Bcc: w.flag(), NeedsTo: w.flag(),
		ReplyTo: w.IntN(4) - 1, MaxRcpts: w.limit(), MaxTo: w.limit(), MaxCc: w.limit(), MaxBcc: w.limit(),
		Headers: HeaderPolicy(w.IntN(4)), HeaderList: []string{"x-foo", "references"}, HeaderOnce: w.flag(),
		Threading: w.flag(), ListUnsub: w.flag(), EnvelopeFrom: w.flag(), NullSender: w.flag(), Tags: w.IntN(3) - 1,
	}
	r.Settings.Split = w.IntN(4) == 0
	r.Caps.Batch = w.flag()
	if w.IntN(5) == 0 {
		m.Header = append(m.Header, mime.Field{Name: "X-MC-PreserveRecipients", Value: "no"})
	}
	return r
}

func TestApplyProperties(t *testing.T) {
	const rounds = 12000
	for seed := range uint64(rounds) {
		w := world{rand.New(rand.NewPCG(seed, 7))}
		r := w.request()
		mails, losses, err := Apply(r)
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if msg := checkPlan(r, mails, losses); msg != "" {
			req, _ := json.MarshalIndent(r, "", " ")
			t.Fatalf("seed %d: %s\n%s", seed, msg, req)
		}
		if seed%10 == 0 {
			again, _, _ := Apply(r)
			if a, b := fmt.Sprint(plain(mails)), fmt.Sprint(plain(again)); a != b {
				t.Fatalf("seed %d: two plans for one request:\n%s\n%s", seed, a, b)
			}
		}
	}
}

// plain takes the pointers out, for comparison.
func plain(mails []*Mail) (out []Mail) {
	for _, m := range mails {
		c := *m
		c.Msg = nil
		out = append(out, c)
	}
	return out
}

func checkPlan(r Request, mails []*Mail, losses []Loss) string {
	c := &r.Caps
	fold := func(list []mime.Address) (out []string) {
		for _, a := range list {
			out = append(out, envelope.Fold(a.Addr))
		}
		return out
	}
	inTo, inCc := map[string]bool{}, map[string]bool{}
	for _, k := range fold(r.Message.To) {
		inTo[k] = true
	}
	for _, k := range fold(r.Message.Cc) {
		inCc[k] = true
	}
	spelling := map[string]bool{}
	for _, x := range r.Rcpts {
		spelling[x.Addr] = true
	}
	got := map[string]int{}
	for i, m := range mails {
		var here []string
		for _, x := range m.Rcpts {
			got[x.Addr]++
			here = append(here, envelope.Fold(x.Addr))
		}
		if len(m.Rcpts) == 0 {
			return fmt.Sprintf("call %d has no recipient", i)
		}
		if c.MaxRcpts > 0 && len(m.Rcpts) > c.MaxRcpts {
			return fmt.Sprintf("call %d has %d recipients", i, len(m.Rcpts))
		}
		if r.Settings.Split && len(m.Rcpts) != 1 {
			return "not split"
		}
		if m.UseRaw != (c.Raw != RawNone) && !(c.JSON && !c.RawFeatures) {
			return "wrong form"
		}
		if m.Options.ExposeRcpts == Off {
			// Each has a copy of his own: alone in his call, or in to of a call whose provider makes copies.
			if len(m.To) != len(m.Rcpts) || len(m.Cc)+len(m.Bcc) > 0 || len(m.Rcpts) > 1 && (m.UseRaw || !c.Batch) {
				return fmt.Sprintf("call %d gives nobody a copy of his own: %v sees %v %v %v", i, m.Rcpts, m.To, m.Cc, m.Bcc)
			}
			continue
		}
		display := !m.UseRaw && c.HeaderTo
		if display {
			if c.NeedsTo && len(m.To) == 0 {
				return fmt.Sprintf("call %d shows no to", i)
			}
			if alone := len(m.To) == 1 && len(m.Rcpts) == 1 && m.To[0].Addr == m.Rcpts[0].Addr; !alone {
				for _, a := range slices.Concat(m.To, m.Cc) {
					if k := envelope.Fold(a.Addr); !inTo[k] && !inCc[k] {
						return fmt.Sprintf("call %d shows the blind recipient %s to others", i, a.Addr)
					}
				}
			}
			if len(m.Bcc) > 0 {
				return "bcc beside separate recipients"
			}
			continue
		}
		all := slices.Concat(m.To, m.Cc, m.Bcc)
		if len(all) != len(m.Rcpts) {
			return fmt.Sprintf("call %d: %d addresses for %d recipients", i, len(all), len(m.Rcpts))
		}
		for _, a := range all {
			if !slices.Contains(here, envelope.Fold(a.Addr)) {
				return fmt.Sprintf("call %d names %s, who is none of its recipients", i, a.Addr)
			}
			if !spelling[a.Addr] {
				return fmt.Sprintf("call %d: %s is not the spelling of RCPT", i, a.Addr)
			}
		}
		for _, a := range slices.Concat(m.To, m.Cc) {
			if k := envelope.Fold(a.Addr); !inTo[k] && !inCc[k] && len(m.Rcpts) > 1 {
				return fmt.Sprintf("call %d shows the blind recipient %s to others", i, a.Addr)
			}
		}
		if m.UseRaw && c.Raw == RawEnvelope {
			continue
		}
		if c.NeedsTo && len(m.To) == 0 {
			return fmt.Sprintf("call %d has no to", i)
		}
		if !m.UseRaw && (!c.Cc && len(m.Cc) > 0 || !c.Bcc && len(m.Bcc) > 0) {
			return fmt.Sprintf("call %d uses cc or bcc, which the API has not", i)
		}
		for _, l := range []struct{ n, max int }{{len(m.To), c.MaxTo}, {len(m.Cc), c.MaxCc}, {len(m.Bcc), c.MaxBcc}} {
			if l.max > 0 && l.n > l.max {
				return fmt.Sprintf("call %d has %d in a list limited to %d", i, l.n, l.max)
			}
		}
		// Whoever reads the copy and misses somebody in it: a major loss says so.
		shown := fold(slices.Concat(m.To, m.Cc))
		missing := false
		for k := range inTo {
			missing = missing || !slices.Contains(shown, k)
		}
		for k := range inCc {
			missing = missing || !slices.Contains(shown, k)
		}
		said := slices.ContainsFunc(m.Losses, func(l Loss) bool { return (l.Field == "to" || l.Field == "cc") && l.Severity == Major })
		if missing != said {
			return fmt.Sprintf("call %d: visible recipients missing %v, said %v", i, missing, said)
		}
		for _, h := range m.Headers {
			if h.Name == "Bcc" || h.Name == "DKIM-Signature" || h.Name == "X-PM-Tag" {
				return "header " + h.Name + " leaked"
			}
		}
	}
	for _, x := range r.Rcpts {
		if got[x.Addr] != 1 {
			return fmt.Sprintf("%s is in %d calls", x.Addr, got[x.Addr])
		}
	}
	if len(got) != len(r.Rcpts) {
		return "a stranger receives"
	}
	union := map[Loss]bool{}
	for _, m := range mails {
		for _, l := range m.Losses {
			union[l] = true
		}
	}
	if len(union) != len(losses) {
		return "the returned losses are not the union"
	}
	return ""
}

// TestWrittenRecipients reads the header an ESP would deliver by, as an ESP would.
func TestWrittenRecipients(t *testing.T) {
	names := []string{"", "Ann", `"Doe, J <x@evil.example>"`, "=?utf-8?q?=C3=A4_=3Cy=40evil=2Eexample=3E?=", "(z@evil.example)"}
	for seed := range uint64(3000) {
		w := world{rand.New(rand.NewPCG(seed, 8))}
		r := w.request()
		var b strings.Builder
		b.WriteString("From: from@example.org\r\nSubject: s\r\nBCC : hidden@evil.example\r\n")
		for _, l := range []struct {
			name string
			list []mime.Address
		}{{"To", r.Message.To}, {"Cc", r.Message.Cc}, {"To", w.list(12)}} {
			if len(l.list) == 0 || l.name == "To" && strings.Contains(b.String(), "\nTo") && w.IntN(8) > 0 {
				continue
			}
			var parts []string
			for _, a := range l.list {
				parts = append(parts, names[w.IntN(len(names))]+" <"+a.Addr+">")
			}
			fmt.Fprintf(&b, "%s: %s\r\n", l.name, strings.Join(parts, ",\r\n "))
		}
		b.WriteString("Resent-To: resent@evil.example\r\n\r\nbody\r\n")
		r.Message = parse(t, []byte(b.String()))
		r.Caps.Raw, r.Caps.JSON, r.Caps.RawString = RawBccHeader, false, w.flag()
		mails, losses, err := Apply(r)
		if err != nil {
			t.Fatal(err)
		}
		if msg := checkPlan(r, mails, losses); msg != "" {
			t.Fatalf("seed %d: %s\n%s", seed, msg, b.String())
		}
		for i, m := range mails {
			body, err := m.Raw()
			if err != nil {
				t.Fatal(err)
			}
			out := readBody(t, body)
			parsed, err := mail.ReadMessage(bytes.NewReader(out))
			if err != nil {
				t.Fatalf("seed %d: %v\n%s", seed, err, out)
			}
			var got, want []string
			for _, h := range []string{"To", "Cc", "Bcc", "Resent-To"} {
				if len(parsed.Header[h]) > 1 {
					t.Fatalf("seed %d: several %s fields\n%s", seed, h, out)
				}
				if parsed.Header.Get(h) == "" {
					continue
				}
				list, err := parsed.Header.AddressList(h)
				if err != nil {
					t.Fatalf("seed %d: %s: %v\n%s", seed, h, err, out)
				}
				for _, a := range list {
					got = append(got, strings.TrimSuffix(envelope.Fold(a.Address), "."))
				}
			}
			for _, x := range m.Rcpts {
				want = append(want, envelope.Fold(x.Addr))
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d call %d: an ESP would deliver to %q, want %q\n%s", seed, i, got, want, out)
			}
		}
	}
}
