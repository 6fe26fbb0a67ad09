package test

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"smtpbridge/event"
)

// capture is a server that answers in a vendor's way and keeps what it was sent.
type capture struct {
	mu       sync.Mutex
	requests []captured
	answer   func(r *http.Request, body []byte) (int, string)
}

type captured struct {
	method, path, query string
	header              http.Header
	body                []byte
}

func (c *capture) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	c.mu.Lock()
	c.requests = append(c.requests, captured{r.Method, r.URL.Path, r.URL.RawQuery, r.Header.Clone(), body})
	c.mu.Unlock()
	status, text := c.answer(r, body)
	if status == http.StatusAccepted {
		w.Header().Set("X-Message-Id", "0123456789abcdef01234567") // MailerSend's only answer
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	io.WriteString(w, text)
}

func (c *capture) all() []captured {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// vendor is what this test knows of one API from its documentation, and not from our code.
type vendor struct {
	name   string
	title  string // of the test, where a provider has two forms
	config string // further lines of the account
	answer func(r *http.Request, body []byte) (int, string)
	// check compares one request with the vendor's documented shape.
	check func(t *testing.T, r captured, m map[string]any)
}

var vendors = []vendor{
	{
		name: "mailpace", config: "api_key = \"shape-key-mailpace\"",
		answer: func(*http.Request, []byte) (int, string) { return 200, `{"id": 4711, "status": "pending"}` },
		check: func(t *testing.T, r captured, m map[string]any) {
			// https://docs.mailpace.com/reference/send
			equal(t, "path", r.path, "/api/v1/send")
			equal(t, "token", r.header.Get("MailPace-Server-Token"), "shape-key-mailpace")
			equal(t, "Content-Type", r.header.Get("Content-Type"), "application/json")
			if len(r.header.Get("Idempotency-Key")) == 0 {
				t.Error("no Idempotency-Key")
			}
			equal(t, "from", m["from"], `"Jörg Müller" <app@example.com>`)
			equal(t, "to", m["to"], `"Ada" <ada@example.net>, bob@example.net`)
			equal(t, "cc", m["cc"], "cc@example.net")
			equal(t, "bcc", m["bcc"], "hidden@example.net")
			equal(t, "subject", m["subject"], "Grüße aus Köln ✓")
			equal(t, "replyto", m["replyto"], "a@example.com, b@example.com")
			equal(t, "list_unsubscribe", m["list_unsubscribe"], "<https://example.com/u/1>")
			equal(t, "textbody", m["textbody"], "Schöne Grüße\n")
			equal(t, "htmlbody", m["htmlbody"], "<p>Schöne Grüße <img src=\"cid:logo@example.com\"></p>\n")
			equal(t, "attachments", attachmentsOf(m["attachments"], "name", "content_type", "cid"), "logo.png image/png <logo@example.com>; Übersicht März.pdf application/pdf ")
			equal(t, "attachments' content", contentsOf(m["attachments"]), "\x89PNG %PDF")
		},
	},
	{
		name: "smtpeter", config: "api_key = \"shape-key-smtpeter\"",
		answer: func(_ *http.Request, body []byte) (int, string) {
			var m struct{ Recipients []string }
			if json.Unmarshal(body, &m) != nil {
				return 400, `{"error": "not JSON"}`
			}
			out := map[string]string{}
			for i, a := range m.Recipients {
				out[fmt.Sprintf("id%d", i)] = a
			}
			b, _ := json.Marshal(out)
			return 200, string(b)
		},
		check: func(t *testing.T, r captured, m map[string]any) {
			// https://www.smtpeter.com/en/documentation/rest-mime
			equal(t, "path", r.path, "/v1/send")
			equal(t, "query", r.query, "access_token=shape-key-smtpeter")
			equal(t, "recipients", fmt.Sprint(m["recipients"]), "[ada@example.net bob@example.net cc@example.net hidden@example.net]")
			equal(t, "trackclicks", m["trackclicks"], false)
			equal(t, "trackopens", m["trackopens"], false)
			if _, ok := m["data"]; ok {
				t.Error("data is there: the template language would run")
			}
			raw, _ := m["mime"].(string)
			for _, line := range []string{"\r\nReply-To: a@example.com, b@example.com\r\n", "\r\nList-Unsubscribe: <https://example.com/u/1>\r\n", "Content-ID: <logo@example.com>", "filename*=utf-8''%C3%9Cbersicht%20M%C3%A4rz.pdf"} {
				if !strings.Contains(raw, line) {
					t.Errorf("the MIME message lacks %q", line)
				}
			}
			for _, never := range []string{"hidden@example.net", "\r\nBcc:", "\r\nReceived:"} {
				if strings.Contains(raw, never) {
					t.Errorf("the MIME message holds %q", never)
				}
			}
		},
	},
	{
		name: "mandrill", config: "api_key = \"shape-key-mandrill\"", answer: mandrillAnswer,
		check: func(t *testing.T, r captured, m map[string]any) {
			// https://mailchimp.com/developer/transactional/api/messages/send-mime-document/
			equal(t, "path", strings.TrimSuffix(r.path, ".json"), "/api/1.0/messages/send-raw")
			equal(t, "key", m["key"], "shape-key-mandrill")
			equal(t, "to", fmt.Sprint(m["to"]), "[ada@example.net bob@example.net cc@example.net hidden@example.net]")
			raw, _ := m["raw_message"].(string)
			for _, line := range []string{"\r\nReply-To: a@example.com, b@example.com\r\n", "\r\nTo: Ada <ada@example.net>, bob@example.net\r\n", "X-MC-PreserveRecipients: true\r\n", "Content-ID: <logo@example.com>", "filename*=utf-8''%C3%9Cbersicht%20M%C3%A4rz.pdf"} {
				if !strings.Contains(raw, line) {
					t.Errorf("the MIME message lacks %q", line)
				}
			}
			for _, never := range []string{"hidden@example.net", "\r\nBcc:", "\r\nReceived:"} {
				if strings.Contains(raw, never) {
					t.Errorf("the MIME message holds %q", never)
				}
			}
		},
	},
	{
		name: "mandrill", title: "mandrill JSON", config: "api_key = \"shape-key-mandrill\"\n[account.options]\nform = \"json\"", answer: mandrillAnswer,
		check: func(t *testing.T, r captured, body map[string]any) {
			// https://mailchimp.com/developer/transactional/api/messages/send-new-message/
			equal(t, "path", strings.TrimSuffix(r.path, ".json"), "/api/1.0/messages/send")
			equal(t, "key", body["key"], "shape-key-mandrill")
			m, _ := body["message"].(map[string]any)
			equal(t, "from_email", m["from_email"], "app@example.com")
			equal(t, "from_name", m["from_name"], "Jörg Müller")
			equal(t, "to", attachmentsOf(m["to"], "email", "name", "type"), "ada@example.net Ada to; bob@example.net  to; cc@example.net  cc; hidden@example.net  bcc")
			equal(t, "preserve_recipients", m["preserve_recipients"], true)
			equal(t, "subject", m["subject"], "Grüße aus Köln ✓")
			equal(t, "text", m["text"], "Schöne Grüße\n")
			headers, _ := m["headers"].(map[string]any)
			replyTo, _ := headers["Reply-To"].(string)
			equal(t, "Reply-To", strings.NewReplacer("<", "", ">", "").Replace(replyTo), "a@example.com, b@example.com")
			equal(t, "List-Unsubscribe", headers["List-Unsubscribe"], "<https://example.com/u/1>")
			equal(t, "images", attachmentsOf(m["images"], "type", "name"), "image/png logo@example.com")
			equal(t, "attachments", attachmentsOf(m["attachments"], "type", "name"), "application/pdf Übersicht März.pdf")
			equal(t, "images' content", contentsOf(m["images"]), "\x89PNG")
			equal(t, "attachments' content", contentsOf(m["attachments"]), "%PDF")
			for _, rewriting := range []string{"merge", "auto_text", "auto_html", "inline_css", "url_strip_qs"} {
				equal(t, rewriting, m[rewriting], false)
			}
		},
	},
	{
		name: "mailersend", config: "api_key = \"shape-key-mailersend\"",
		answer: func(*http.Request, []byte) (int, string) { return 202, "" },
		check: func(t *testing.T, r captured, m map[string]any) {
			// https://developers.mailersend.com/api/v1/email.html
			equal(t, "path", r.path, "/v1/email")
			equal(t, "Authorization", r.header.Get("Authorization"), "Bearer shape-key-mailersend")
			equal(t, "from", attachmentsOf([]any{m["from"]}, "email", "name"), "app@example.com Jörg Müller")
			equal(t, "to", attachmentsOf(m["to"], "email", "name"), "ada@example.net Ada; bob@example.net ")
			equal(t, "cc", attachmentsOf(m["cc"], "email"), "cc@example.net")
			equal(t, "bcc", attachmentsOf(m["bcc"], "email"), "hidden@example.net")
			equal(t, "reply_to", attachmentsOf([]any{m["reply_to"]}, "email"), "a@example.com")
			equal(t, "subject", m["subject"], "Grüße aus Köln ✓")
			equal(t, "text", m["text"], "Schöne Grüße\n")
			equal(t, "attachments", attachmentsOf(m["attachments"], "filename", "disposition", "id"), "logo.png inline logo@example.com; Übersicht März.pdf attachment ")
			equal(t, "attachments' content", contentsOf(m["attachments"]), "\x89PNG %PDF")
			for _, gated := range []string{"headers", "list_unsubscribe"} {
				if _, ok := m[gated]; ok {
					t.Errorf("%s without the plan for it", gated)
				}
			}
		},
	},
	{
		name: "maileroo", config: "api_key = \"shape-key-maileroo\"",
		answer: func(*http.Request, []byte) (int, string) {
			return 200, `{"success": true, "message": "queued", "data": {"reference_id": "0123456789abcdef01234567"}}`
		},
		check: func(t *testing.T, r captured, m map[string]any) {
			// https://maileroo.com/docs/email-api/send-basic-email
			equal(t, "path", r.path, "/api/v2/emails")
			if r.header.Get("X-Api-Key") != "shape-key-maileroo" && r.header.Get("Authorization") != "Bearer shape-key-maileroo" {
				t.Error("no key")
			}
			equal(t, "from", attachmentsOf([]any{m["from"]}, "address", "display_name"), "app@example.com Jörg Müller")
			equal(t, "to", attachmentsOf(m["to"], "address", "display_name"), "ada@example.net Ada; bob@example.net ")
			equal(t, "cc", attachmentsOf(m["cc"], "address"), "cc@example.net")
			equal(t, "bcc", attachmentsOf(m["bcc"], "address"), "hidden@example.net")
			equal(t, "reply_to", attachmentsOf(m["reply_to"], "address"), "a@example.com; b@example.com")
			equal(t, "subject", m["subject"], "Grüße aus Köln ✓")
			equal(t, "plain", m["plain"], "Schöne Grüße\n")
			headers, _ := m["headers"].(map[string]any)
			equal(t, "List-Unsubscribe", headers["List-Unsubscribe"], "<https://example.com/u/1>")
			if id, _ := m["reference_id"].(string); len(id) != 24 || strings.Trim(id, "0123456789abcdef") != "" {
				t.Errorf("reference_id %q is not 24 hex digits", id)
			}
			list, _ := m["attachments"].([]any)
			if len(list) != 2 {
				t.Fatalf("%d attachments", len(list))
			}
			equal(t, "attachments' content", contentsOf(list), "\x89PNG %PDF")
			image, _ := list[0].(map[string]any)
			name, _ := image["file_name"].(string)
			html, _ := m["html"].(string)
			if image["inline"] != true || name == "" || !strings.Contains(html, "cid:"+name) {
				t.Errorf("the HTML %q does not name the inline image %q", html, name)
			}
		},
	},
}

var mandrillAnswer = func(r *http.Request, body []byte) (int, string) {
	var m struct {
		To      []string
		Message struct{ To []struct{ Email string } }
	}
	if json.Unmarshal(body, &m) != nil {
		return 500, `{"status":"error","code":-2,"name":"ValidationError","message":"not JSON"}`
	}
	for _, b := range m.Message.To {
		m.To = append(m.To, b.Email)
	}
	var out []string
	for i, a := range m.To {
		out = append(out, fmt.Sprintf(`{"email":%q,"status":"queued","_id":"id%d"}`, a, i))
	}
	return 200, "[" + strings.Join(out, ",") + "]"
}

// attachmentsOf prints fields of a JSON list of attachments.
func attachmentsOf(v any, fields ...string) string {
	list, _ := v.([]any)
	var out []string
	for _, e := range list {
		m, _ := e.(map[string]any)
		var parts []string
		for _, f := range fields {
			s, _ := m[f].(string)
			parts = append(parts, s)
		}
		out = append(out, strings.Join(parts, " "))
	}
	return strings.Join(out, "; ")
}

// contentsOf gives the first four bytes of each attachment's content.
func contentsOf(v any) string {
	list, _ := v.([]any)
	var out []string
	for _, e := range list {
		m, _ := e.(map[string]any)
		s, _ := m["content"].(string)
		b, err := base64.StdEncoding.Strict().DecodeString(s)
		if err != nil {
			return err.Error()
		}
		out = append(out, string(b[:min(4, len(b))]))
	}
	return strings.Join(out, " ")
}

func equal(t *testing.T, what string, got, want any) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, fmt.Sprint(got), fmt.Sprint(want))
	}
}

// TestShapes sends the mail of data/full.eml to an account of each provider, whose base_url is a
// capture server, and compares the request with the vendor's documentation, the delivered recipients
// with the envelope, and the losses of the sent event with those of explain.
func TestShapes(t *testing.T) {
	mail, err := os.ReadFile("data/full.eml")
	if err != nil {
		t.Fatal(err)
	}
	rcpts := []string{"ada@example.net", "bob@example.net", "cc@example.net", "hidden@example.net"}
	for _, v := range vendors {
		t.Run(cmp.Or(v.title, v.name), func(t *testing.T) {
			t.Parallel()
			esp := &capture{answer: v.answer}
			server := httptest.NewServer(esp)
			defer server.Close()
			dir, port := shortDir(t), freePort(t)
			b := newBridge(t, dir, fmt.Sprintf("data_dir = %q\n[[listener]]\naddress = \"127.0.0.1:%d\"\n[[account]]\nname = \"esp\"\nprovider = %q\nbase_url = %q\n%s\n[[route]]\nsenders = [\"example.com\"]\naccounts = [\"esp\"]\n[webhook]\naddress = \"\"\n[events]\nfile = \"events.jsonl\"\n",
				dir, port, v.name, server.URL, v.config))
			b.start()
			c, err := dialSMTP(fmt.Sprintf("127.0.0.1:%d", port), 10*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if _, err := c.send("app@example.com", rcpts, string(mail)); err != nil {
				t.Fatal(err)
			}
			evs := b.waitEvents("a sent event for each recipient", func(evs []event.Event) bool { return len(evs) == len(rcpts) })
			b.stop()

			var got []string
			for _, e := range evs {
				equal(t, "event", e.Kind, event.Sent)
				got = append(got, e.Recipient)
			}
			slices.Sort(got)
			if !slices.Equal(got, rcpts) {
				t.Errorf("sent to %v, want %v", got, rcpts)
			}
			requests := esp.all()
			if len(requests) != 1 {
				t.Fatalf("%d requests, want 1", len(requests))
			}
			var m map[string]any
			if err := json.Unmarshal(requests[0].body, &m); err != nil {
				t.Fatal(err)
			}
			v.check(t, requests[0], m)
			checkExplain(t, b, evs[0], string(requests[0].body))
		})
	}
}

// checkExplain wants explain to show the same losses and the same request, without the key.
func checkExplain(t *testing.T, b *bridge, sent event.Event, body string) {
	t.Helper()
	out := b.run("explain", "--from", "app@example.com", "--to", "ada@example.net,bob@example.net,cc@example.net,hidden@example.net", filepath.Join("data", "full.eml"))
	if strings.Contains(out, "shape-key") {
		t.Error("explain shows the key")
	}
	var ex struct {
		Route    string       `json:"route"`
		Account  string       `json:"account"`
		Losses   []event.Loss `json:"losses"`
		Requests []struct {
			Method, URL string
			Body        any
		} `json:"requests"`
	}
	dec := json.NewDecoder(bytes.NewReader([]byte(out)))
	if err := dec.Decode(&ex); err != nil {
		t.Fatalf("explain: %v\n%s", err, out)
	}
	if ex.Route == "" || ex.Account != "esp" || len(ex.Requests) != 1 || ex.Requests[0].Method != http.MethodPost {
		t.Errorf("explain: %s", out)
	}
	names := func(ls []event.Loss) []string {
		var out []string
		for _, l := range ls {
			if l.Field == "header received" {
				continue // ours, added on the way in: explain reads the mail before that
			}
			out = append(out, l.Field+" "+l.Severity)
		}
		slices.Sort(out)
		return out
	}
	if got, want := names(sent.Losses), names(ex.Losses); !slices.Equal(got, want) {
		t.Errorf("losses of the sent event %v, of explain %v", got, want)
	}
	t.Logf("losses: %v", names(sent.Losses))
}
