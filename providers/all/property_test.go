package all

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/mail"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"smtpbridge/envelope"
	"smtpbridge/internal/secret"
	"smtpbridge/mime"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

// wire reads one vendor's request as its documentation describes it, not as our code writes it: who
// receives, and the text that recipients can see (headers or the whole MIME message).
type wire struct {
	name, options string
	read          func(t *testing.T, body []byte) (rcpts []string, visible string)
	answer        func(rcpts []string) string
}

func list(t *testing.T, s string) (out []string) {
	t.Helper()
	if s == "" {
		return nil
	}
	addrs, err := mail.ParseAddressList(s)
	if err != nil {
		t.Errorf("address list %q: %v", s, err)
	}
	for _, a := range addrs {
		out = append(out, a.Address)
	}
	return out
}

func decode(t *testing.T, body []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(body, v); err != nil {
		t.Errorf("request is not JSON: %v\n%.300s", err, body)
	}
}

type box struct {
	Email   string `json:"email"`
	Address string `json:"address"`
	Type    string `json:"type"`
}

func boxes(l []box) (out []string) {
	for _, b := range l {
		out = append(out, b.Email+b.Address)
	}
	return out
}

var wires = []wire{
	{
		name: "mailpace",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct{ To, Cc, Bcc, ReplyTo, From, Subject string }
			decode(t, body, &m)
			return slices.Concat(list(t, m.To), list(t, m.Cc), list(t, m.Bcc)), strings.Join([]string{m.To, m.Cc, m.ReplyTo, m.From, m.Subject}, "\n")
		},
		answer: func([]string) string { return `{"id": 1, "status": "pending"}` },
	},
	{
		name: "smtpeter",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct {
				Recipient  string
				Recipients []string
				MIME       string
			}
			decode(t, body, &m)
			if m.Recipient != "" {
				m.Recipients = append(m.Recipients, m.Recipient)
			}
			return m.Recipients, m.MIME
		},
		answer: func(rcpts []string) string {
			out := map[string]string{}
			for i, a := range rcpts {
				out[fmt.Sprint("id", i)] = a
			}
			b, _ := json.Marshal(out)
			return string(b)
		},
	},
	{
		name: "mandrill",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct {
				Raw string   `json:"raw_message"`
				To  []string `json:"to"`
			}
			decode(t, body, &m)
			return m.To, m.Raw
		},
		answer: mandrillAnswer,
	},
	{
		name: "mandrill", options: "form = \"json\"",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct {
				Message struct {
					To      []box             `json:"to"`
					Headers map[string]string `json:"headers"`
				}
			}
			decode(t, body, &m)
			visible := fmt.Sprint(m.Message.Headers)
			for _, b := range m.Message.To {
				if b.Type != "bcc" {
					visible += "\n" + b.Email
				}
			}
			return boxes(m.Message.To), visible
		},
		answer: mandrillAnswer,
	},
	{
		name: "mailersend",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct {
				To, Cc, Bcc []box
				Headers     []struct{ Name, Value string }
			}
			decode(t, body, &m)
			if len(m.To) == 0 {
				t.Error("a call without to")
			}
			return slices.Concat(boxes(m.To), boxes(m.Cc), boxes(m.Bcc)), fmt.Sprint(m.To, m.Cc, m.Headers)
		},
		answer: func([]string) string { return "" },
	},
	{
		name: "maileroo",
		read: func(t *testing.T, body []byte) ([]string, string) {
			var m struct {
				To, Cc, Bcc []box
				ReplyTo     []box `json:"reply_to"`
				Headers     map[string]string
				Tags        map[string]string
			}
			decode(t, body, &m)
			if len(m.To) == 0 {
				t.Error("a call without to")
			}
			return slices.Concat(boxes(m.To), boxes(m.Cc), boxes(m.Bcc)), fmt.Sprint(m.To, m.Cc, m.ReplyTo, m.Headers, m.Tags)
		},
		answer: func([]string) string {
			return `{"success": true, "message": "ok", "data": {"reference_id": "000000000000000000000000"}}`
		},
	},
}

func mandrillAnswer(rcpts []string) string {
	out := []map[string]string{}
	for i, a := range rcpts {
		out = append(out, map[string]string{"email": a, "status": "sent", "_id": fmt.Sprint("id", i)})
	}
	b, _ := json.Marshal(out)
	return string(b)
}

// TestEnvelopeIsTheTruth sends random envelopes with random headers through every ESP: all calls together
// reach exactly the envelope, each recipient once, and no blind address is in anything a recipient sees.
func TestEnvelopeIsTheTruth(t *testing.T) {
	const rounds = 250
	for _, w := range wires {
		t.Run(strings.TrimSpace(w.name+" "+w.options), func(t *testing.T) {
			t.Parallel()
			var bodies [][]byte
			server := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
				body, err := io.ReadAll(r.Body)
				if err != nil {
					return
				}
				bodies = append(bodies, body)
				rcpts, _ := w.read(t, body)
				if w.name == "mailersend" {
					rw.Header().Set("X-Message-Id", "0123456789abcdef01234567")
					rw.WriteHeader(http.StatusAccepted)
					return
				}
				rw.Header().Set("Content-Type", "application/json")
				io.WriteString(rw, w.answer(rcpts))
			}))
			defer server.Close()
			info, ok := Registry().Lookup(w.name)
			if !ok {
				t.Fatal("not in the registry")
			}
			p, err := info.New(providers.Options{
				Account: "x", Hostname: "bridge.example.com", APIKey: secret.New("0123456789abcdef0123456789abcdef"), BaseURL: server.URL,
				Client: server.Client(), Now: time.Now, WebhookURL: "https://hooks.example.com/webhook/x",
				Decode: func(v any) error { _, err := toml.Decode(w.options, v); return err },
			})
			if err != nil {
				t.Fatal(err)
			}
			for seed := range uint64(rounds) {
				bodies = nil
				env, text := randomMail(rand.New(rand.NewPCG(seed, 7)))
				if !oneMail(t, w, p, env, text, &bodies) {
					t.Fatalf("seed %d: envelope %+v\n%s", seed, env, text)
				}
			}
		})
	}
}

// oneMail plans and sends one mail and compares what the server got with the envelope.
func oneMail(t *testing.T, w wire, p providers.Provider, env envelope.Envelope, text string, bodies *[][]byte) bool {
	t.Helper()
	msg, err := mime.Parse(bytes.NewReader([]byte(text)), int64(len(text)), mime.Limits{})
	if err != nil {
		t.Error(err)
		return false
	}
	calls, _, err := translate.Apply(translate.Request{Envelope: env, Rcpts: env.Rcpts, Message: msg, Caps: p.Capabilities()})
	if err != nil {
		t.Error(err)
		return false
	}
	for i, m := range calls {
		m.Ref, m.IdempotencyKey = fmt.Sprint("ref", i), fmt.Sprint("key", i)
		out, err := p.Send(t.Context(), m)
		if err != nil {
			t.Error(err)
			return false
		}
		for j, r := range out.Rcpts {
			if r.Addr != m.Rcpts[j].Addr || r.Verdict != providers.Accepted {
				t.Errorf("outcome %d is %+v, want %s accepted", j, r, m.Rcpts[j].Addr)
			}
		}
	}
	named := map[string]bool{} // in a header of the mail
	for _, a := range slices.Concat(msg.To, msg.Cc, msg.ReplyTo, msg.From) {
		named[envelope.Fold(a.Addr)] = true
	}
	var got []string
	for _, body := range *bodies {
		rcpts, visible := w.read(t, body)
		got = append(got, rcpts...)
		for _, r := range env.Rcpts {
			// A call with one recipient may show it to itself.
			if !named[envelope.Fold(r.Addr)] && len(rcpts) > 1 && strings.Contains(strings.ToLower(visible), strings.ToLower(r.Addr)) {
				t.Errorf("the blind recipient %s is visible", r.Addr)
			}
		}
	}
	var want []string
	for _, r := range env.Rcpts {
		want = append(want, envelope.Fold(r.Addr))
	}
	for i := range got {
		got[i] = envelope.Fold(got[i])
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("received by %v, want %v", got, want)
	}
	return !t.Failed()
}

// randomMail makes an envelope and a mail whose To, Cc and Bcc overlap it in every way.
func randomMail(r *rand.Rand) (envelope.Envelope, string) {
	pool := make([]string, 2+r.IntN(30))
	for i := range pool {
		domain := []string{"example.net", "Example.NET", "example.org", "xn--exmple-cua.example"}[r.IntN(4)]
		pool[i] = fmt.Sprintf("r%02d.%c@%s", i, 'a'+rune(r.IntN(26)), domain)
	}
	env := envelope.Envelope{ID: "id", From: "app@example.com"}
	for i, a := range pool {
		if i == 0 || r.IntN(3) > 0 {
			env.Rcpts = append(env.Rcpts, envelope.Rcpt{Addr: a})
		}
	}
	names := []string{"", "Ada", "Müller, Jörg", `O"Neil`, "x@y.example", "<evil@example.com>", "日本語", "a,b;c"}
	field := func(name string, share int) string {
		var l []mime.Address
		for _, a := range pool {
			if r.IntN(share) == 0 {
				l = append(l, mime.Address{Name: names[r.IntN(len(names))], Addr: a})
			}
		}
		for range r.IntN(2) {
			l = append(l, mime.Address{Name: "Header Only", Addr: fmt.Sprintf("only%d@example.com", r.IntN(100))})
		}
		if len(l) == 0 {
			return ""
		}
		return name + ": " + mime.FormatAddressHeader(l) + "\r\n"
	}
	var b strings.Builder
	b.WriteString("From: Shop <app@example.com>\r\n" + field("To", 2) + field("Cc", 4) + field("Bcc", 3))
	if r.IntN(2) == 0 {
		b.WriteString("Reply-To: reply@example.com\r\n")
	}
	b.WriteString("Subject: Grüße\r\nMessage-ID: <x@example.com>\r\nX-Mailer: test\r\n")
	if r.IntN(2) == 0 {
		b.WriteString("Content-Type: text/html; charset=utf-8\r\n\r\n<p>hello</p>\r\n")
	} else {
		b.WriteString("\r\nhello\r\n")
	}
	return env, b.String()
}
