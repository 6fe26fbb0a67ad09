package all

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
)

// FuzzWebhooks gives any body, under any content type, to the webhook parser of every provider: after a signature that
// fits, a body can still be anything. The providers' own targets go deeper into each.
func FuzzWebhooks(f *testing.F) {
	parsers := map[string]providers.WebhookParser{}
	for _, name := range Registry().Names() {
		info, _ := Registry().Lookup(name)
		p, err := info.New(providers.Options{
			Account: "x", Hostname: "bridge.example.com", APIKey: secret.New("0123456789abcdef0123456789abcdef"), BaseURL: "http://127.0.0.1:1",
			Client: &http.Client{}, Now: time.Now, WebhookURL: "https://hooks.example.com/webhook/x",
			Decode: func(v any) error { _, err := toml.Decode("", v); return err },
		})
		if err != nil {
			continue // local targets, which have no webhooks
		}
		if w, ok := p.(providers.WebhookParser); ok {
			parsers[name] = w
		}
		files, err := filepath.Glob(filepath.Join("..", name, "testdata", "webhook", "*.body"))
		if err != nil {
			f.Fatal(err)
		}
		for i, file := range files {
			body, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if i%4 == 0 {
				f.Add("application/json", body)
			}
		}
	}
	if len(parsers) < 6 {
		f.Fatalf("only %d providers have webhooks", len(parsers))
	}
	f.Add("application/x-www-form-urlencoded", []byte("mandrill_events=%5B%7B%22event%22%3A%22send%22%7D%5D&id=1"))
	f.Add("multipart/form-data; boundary=x", []byte("--x\r\nContent-Disposition: form-data; name=id\r\n\r\n1\r\n--x--\r\n"))
	f.Add("", []byte(`{"event":"delivered","a":1e999,"a":{"b":[[[[null]]]]}}`))
	f.Fuzz(func(t *testing.T, contentType string, body []byte) {
		for name, p := range parsers {
			r := httptest.NewRequest("POST", "/webhook/x", http.NoBody)
			r.Header["Content-Type"] = []string{contentType}
			evs, err := p.ParseWebhook(r, body)
			if err != nil && len(evs) > 0 {
				t.Errorf("%s: %d events and %v", name, len(evs), err)
			}
			for _, e := range evs {
				e.Sanitize()
				if line, err := json.Marshal(e); err != nil || len(line) > 1<<20 {
					t.Errorf("%s: an event of %d bytes, %v", name, len(line), err)
				}
			}
		}
	})
}
