package sink

import (
	"testing"

	"smtpbridge/internal/secret"
)

// Sign gives the webhook-signature header.
func Sign(t *testing.T, key, id, ts, body string) string {
	t.Helper()
	f, err := NewForward(ForwardConfig{URL: "https://app.example.com/", Secrets: []secret.String{secret.New(key)}})
	if err != nil {
		t.Fatal(err)
	}
	return f.sign(id, ts, []byte(body))
}
