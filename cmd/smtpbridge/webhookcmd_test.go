package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	mailersend "smtpbridge/providers/mailersend/twin"
	mandrill "smtpbridge/providers/mandrill/twin"
)

// yes answers whatever an ESP calls to see whether the URL is there.
type yes struct{}

func (yes) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: http.StatusOK, Body: http.NoBody, Header: http.Header{}, Request: r}, nil
}

func TestWebhookSetup(t *testing.T) {
	reach := &http.Client{Transport: yes{}}
	md := mandrill.New(mandrill.Options{Key: "token-md", Client: reach})
	ms := mailersend.New(mailersend.Options{Token: "token-ms", Domain: "example.com", Client: reach})
	dir := shortTemp(t)
	file := filepath.Join(dir, "bridge.toml")
	text := fmt.Sprintf("data_dir = %q\n[[listener]]\naddress = \"127.0.0.1:0\"\n[webhook]\naddress = \"127.0.0.1:8025\"\npublic_url = \"https://hooks.example.com\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"md\"]\n", dir)
	for _, a := range []struct {
		name, provider string
		h              http.Handler
	}{{"md", "mandrill", md}, {"ms", "mailersend", ms}, {"mp", "mailpace", md}} {
		srv := httptest.NewServer(a.h)
		defer srv.Close()
		text += fmt.Sprintf("[[account]]\nname = %q\nprovider = %q\napi_key = \"token-%s\"\nbase_url = %q\n", a.name, a.provider, a.name, srv.URL)
	}
	text += "[[account]]\nname = \"sb\"\nprovider = \"sandbox\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		args []string
		want []string
		err  string
	}{
		{"what to register", []string{"webhook", "setup", "md"}, []string{"URL      https://hooks.example.com/webhook/md\n", "hard_bounce", "Secret   missing", "it is not registered", "or with --apply"}, ""},
		{"before, check says so", []string{"check", "--online"}, []string{"account md: warning: its webhook: it is not registered (smtpbridge webhook setup md)", "account ms: warning"}, ""},
		{"created at Mandrill, with its key", []string{"webhook", "setup", "md", "--apply"}, []string{"Created.", "Its key, for webhook_secret_file of the account: " + md.WebhookKey()}, ""},
		{"created at MailerSend", []string{"webhook", "setup", "ms", "--apply"}, []string{"Created.", "Its secret is in the dashboard"}, ""},
		{"there already", []string{"webhook", "setup", "ms", "--apply"}, []string{"It is registered."}, ""},
		{"no API", []string{"webhook", "setup", "mp", "--apply"}, []string{"MailPace has no documented API for this", "providers/mailpace/README.md"}, "nothing was created"},
		{"the sandbox", []string{"webhook", "setup", "sb"}, []string{"nothing to register"}, ""},
		{"no such account", []string{"webhook", "setup", "x"}, nil, `there is no account "x"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			out, err := command(t, "", append(tt.args, "-c", file)...)
			if tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("error %v, want %q", err, tt.err)
			}
			for _, w := range tt.want {
				if !strings.Contains(out, w) {
					t.Errorf("lacks %q:\n%s", w, out)
				}
			}
		})
	}
	if out, err := command(t, "", "check", "--online", "-c", file); err != nil || strings.Contains(out, "warning: its webhook") {
		t.Errorf("check after the setup: %v\n%s", err, out)
	}
}

// An account whose requests could not be verified is named with its line.
func TestCheckNamesUnservedWebhooks(t *testing.T) {
	file := filepath.Join(t.TempDir(), "bridge.toml")
	text := "[[listener]]\naddress = \"127.0.0.1:0\"\n[webhook]\naddress = \"127.0.0.1:8025\"\n[[route]]\nsenders = [\"*\"]\naccounts = [\"mp\"]\n[[account]]\nname = \"mp\"\nprovider = \"mailpace\"\napi_key = \"x\"\n"
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out := cli(t, "check", "-c", file)
	if want := file + ":8: warning: account[0]: its webhooks are not served: account mp: "; code != 0 || !strings.Contains(out, want) {
		t.Errorf("exit code %d, lacks %q:\n%s", code, want, out)
	}
}
