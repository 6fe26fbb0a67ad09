package mailpace

import (
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"smtpbridge/providers/mailpace/twin"
	"smtpbridge/providers/providertest"
)

// TestSDK has MailPace's own client use the twin: all it can say in a mail, and errors it documents.
func TestSDK(t *testing.T) {
	node, modules := providertest.SDK(t, "@mailpace/mailpace.js")
	tw := twin.New(twin.Options{Token: "tok", Domain: "example.com", Blocked: []string{"blocked@example.org"}})
	server := httptest.NewServer(tw.Handler())
	defer server.Close()
	cmd := exec.CommandContext(t.Context(), node, filepath.Join("..", "..", "test", "sdk", "mailpace.test.mjs"), modules, server.URL, "tok")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "ok\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	mails := tw.Mails()
	if len(mails) != 1 {
		t.Fatalf("%d mails were taken", len(mails))
	}
	if got := mails[0].Rcpts(); !slices.Equal(got, []string{"one@example.org", "two@example.org", "cc@example.org", "bcc@example.org"}) {
		t.Errorf("recipients %q", got)
	}
}
