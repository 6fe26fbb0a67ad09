package lmtp

import (
	"testing"

	"smtpbridge/providers"
	"smtpbridge/providers/providertest"
)

func TestNew(t *testing.T) {
	for url, want := range map[string]string{
		"lmtp:///run/dovecot/lmtp": "unix /run/dovecot/lmtp", "lmtp://store.example.com": "tcp store.example.com:24", "lmtp://127.0.0.1:2424": "tcp 127.0.0.1:2424",
		"": "", "lmtp://": "", "lmtp:///": "", "smtp://x": "", "lmtp://host/path": "", "lmtp://u@host": "", "/run/lmtp": "",
	} {
		p, err := New(providers.Options{BaseURL: url})
		if (err == nil) != (want != "") {
			t.Errorf("%q: got %v", url, err)
			continue
		}
		if err == nil {
			if s := p.(*provider).server; s.Network+" "+s.Addr != want || !s.LMTP {
				t.Errorf("%q: got %+v", url, s)
			}
		}
	}
	if _, err := New(providers.Options{BaseURL: "lmtp://x", Decode: providertest.Decode("tls = 1")}); err == nil {
		t.Error("an unknown option was taken")
	}
}
