package smtp

import (
	"strings"
	"testing"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/smtpcall"
	"smtpbridge/providers/providertest"
)

func TestNew(t *testing.T) {
	for _, tt := range []struct {
		name, url, options, key string
		addr                    string // "" = refused
		mode                    smtpcall.TLS
		user                    string
	}{
		{"smarthost", "smtp://mail.example.com", "", "", "mail.example.com:25", smtpcall.StartTLS, ""},
		{"port", "smtp://mail.example.com:587", "user = \"me\"", "k-e-y", "mail.example.com:587", smtpcall.StartTLS, "me"},
		{"implicit", "smtps://mail.example.com", "", "", "mail.example.com:465", smtpcall.Implicit, ""},
		{"implicit by option", "smtp://mail.example.com", "tls = \"implicit\"", "", "mail.example.com:465", smtpcall.Implicit, ""},
		{"this machine", "smtp://127.0.0.1:2500", "", "", "127.0.0.1:2500", smtpcall.IfOffered, ""},
		{"IPv6", "smtp://[::1]:2500/", "", "", "[::1]:2500", smtpcall.IfOffered, ""},
		{"query", "smtp://relay:25?tls=off", "", "", "relay:25", smtpcall.Off, ""},
		{"user in the URL", "smtp://me@relay", "", "k-e-y", "relay:25", smtpcall.StartTLS, "me"},
		{"no URL", "", "", "", "", 0, ""},
		{"other scheme", "https://relay", "", "", "", 0, ""},
		{"path", "smtp://relay/x", "", "", "", 0, ""},
		{"password in the URL", "smtp://me:canary@relay", "", "", "", 0, ""},
		{"unknown parameter", "smtp://relay?starttls=1", "", "", "", 0, ""},
		{"unknown mode", "smtp://relay", "tls = \"maybe\"", "", "", 0, ""},
		{"unknown option", "smtp://relay", "tsl = \"off\"", "", "", 0, ""},
		{"user without password", "smtp://relay", "user = \"me\"", "", "", 0, ""},
		{"password in clear", "smtp://relay?tls=off", "user = \"me\"", "k-e-y", "", 0, ""},
		{"missing roots", "smtp://relay", "ca_file = \"/nonexistent/ca.pem\"", "", "", 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New(providers.Options{BaseURL: tt.url, Decode: providertest.Decode(tt.options), APIKey: secret.New(tt.key), Hostname: "b.example.com"})
			if tt.addr == "" {
				if err == nil {
					t.Fatal("taken")
				}
				if strings.Contains(err.Error(), "canary") {
					t.Errorf("the password is in %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			s := p.(*provider).server
			if s.Addr != tt.addr || s.TLS != tt.mode || s.User != tt.user || s.Hello != "b.example.com" {
				t.Errorf("got %+v", s)
			}
		})
	}
}
