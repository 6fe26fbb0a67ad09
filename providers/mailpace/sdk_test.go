package mailpace

import (
	"bytes"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
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
	if _, repeats := tw.Count(); len(mails) != 3 || repeats != 1 {
		t.Fatalf("%d mails were taken, %d repeats known", len(mails), repeats)
	}
	full, small, keyed := mails[0], mails[1], mails[2]
	if !slices.Equal(full.Rcpts(), []string{"one@example.org", "two@example.org", "cc@example.org", "bcc@example.org"}) || full.From != "Jürgen <sender@example.com>" ||
		full.Subject != "Grüße ✓" || full.Text != "Hello" || !strings.Contains(full.HTML, "cid:logo") || full.ReplyTo != "reply@example.com" || full.InReplyTo != "<a@example.com>" ||
		full.References != "<a@example.com> <b@example.com>" || full.ListUnsubscribe != "<https://example.com/u>" || !slices.Equal(full.Tags, []string{"welcome", "two"}) {
		t.Errorf("got %+v", full)
	}
	if len(full.Attachments) != 1 || full.Attachments[0].Cid != "<logo>" || full.Attachments[0].Type != "image/png" || !bytes.HasPrefix(full.Attachments[0].Content, []byte("\x89PNG")) {
		t.Errorf("got attachments %+v", full.Attachments)
	}
	if !slices.Equal(small.Tags, []string{"one"}) || small.HTML != "" || keyed.Key != "key-1" || keyed.Subject != full.Subject {
		t.Errorf("got %+v and %+v", small, keyed)
	}
}
