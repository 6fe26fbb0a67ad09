package main

import (
	"strings"
	"testing"
)

// The demo shows the whole life of its mails, with the sandbox and with the twin of each ESP.
func TestDemo(t *testing.T) {
	for _, provider := range demoProviders {
		t.Run(provider, func(t *testing.T) {
			t.Parallel()
			code, out := cli(t, "demo", "--once", "--provider", provider, "--address", "127.0.0.1:0")
			if code != 0 {
				t.Fatalf("exit code %d:\n%s", code, out)
			}
			for _, want := range []string{"SMTP  a plain text mail", "delivered       ada@example.net", "bounced         bounce@example.net", "Every sample mail had its life"} {
				if !strings.Contains(out, want) {
					t.Errorf("the demo lacks %q:\n%s", want, out)
				}
			}
		})
	}
	if code, out := cli(t, "demo", "--provider", "sendgridd"); code != exitUsage || !strings.Contains(out, "is not one of sandbox") {
		t.Errorf("exit code %d: %s", code, out)
	}
}
