package test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers/sandbox/twin"
)

// story is what want.json of a story says. Keys that are absent are not asserted.
type story struct {
	Mails  []map[string]any    `json:"mails"`  // as the sandbox received them, ordered by subject
	Events []map[string]string `json:"events"` // each must be among those of the event file
	Output []string            `json:"output"` // texts that the client's output must hold
}

// TestStories runs every folder t-NN-name: client.sh against the real binary, whose ESP is a sandbox;
// then what arrived and what the event file says is compared with want.json. A new story is a new folder.
func TestStories(t *testing.T) {
	dirs, err := filepath.Glob("t-*")
	if err != nil || len(dirs) == 0 {
		t.Fatalf("no stories: %v", err)
	}
	for _, dir := range dirs {
		t.Run(dir, func(t *testing.T) {
			t.Parallel()
			runStory(t, dir)
		})
	}
}

func runStory(t *testing.T, dir string) {
	script, err := os.ReadFile(filepath.Join(dir, "client.sh"))
	if err != nil {
		t.Fatal(err)
	}
	needs(t, string(script))
	var want story
	b, err := os.ReadFile(filepath.Join(dir, "want.json"))
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		t.Fatal(err)
	}

	tmp := shortDir(t)
	hookPort, port, tlsPort := freePort(t), freePort(t), freePort(t)
	esp := twin.New(twin.Config{
		APIKey: "story-key", WebhookURL: fmt.Sprintf("http://127.0.0.1:%d/webhook/esp", hookPort),
		WebhookSecret: "story-webhook-secret", Delay: 10 * time.Millisecond,
	})
	server := httptest.NewServer(esp)
	t.Cleanup(func() {
		server.Close()
		esp.Close()
	})
	certificate(t, tmp)
	br := newBridge(t, tmp, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "plain"
address = "127.0.0.1:%d"
append_domain = "example.com"
[[listener]]
name = "tls"
address = "127.0.0.1:%d"
tls = "starttls"
cert_file = "cert.pem"
key_file = "key.pem"
auth = "required"
[[user]]
name = "crm"
password = "story-password"
senders = ["example.com"]
[[account]]
name = "esp"
provider = "sandbox"
api_key = "story-key"
base_url = %q
webhook_secret = "story-webhook-secret"
[[route]]
senders = ["example.com"]
accounts = ["esp"]
[[route]]
name = "staging"
senders = ["staging.example"]
accounts = ["esp"]
redirect_all_to = ["qa@example.com", "qa2@example.com"]
[[route]]
name = "fenced"
senders = ["fenced.example"]
accounts = ["esp"]
allow_recipients = ["example.com", "tester@example.net"]
[webhook]
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
`, tmp, port, tlsPort, server.URL, hookPort))
	br.start()

	cmd := exec.Command("bash", "-eu", "client.sh")
	cmd.Dir = dir
	data, err := filepath.Abs("data")
	if err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(os.Environ(), "HOST=127.0.0.1", fmt.Sprintf("PORT=%d", port), fmt.Sprintf("TLS_PORT=%d", tlsPort),
		"DATA="+data, "TMP="+tmp, "BRIDGE="+binary, "CONFIG="+br.config, "NODE_PATH="+os.Getenv("SMTPBRIDGE_NODE_MODULES"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("client: %v\n%s", err, out)
	}
	for _, text := range want.Output {
		if !bytes.Contains(out, []byte(text)) {
			t.Errorf("the client's output lacks %q:\n%s", text, out)
		}
	}
	until(t, 30*time.Second, fmt.Sprintf("%d mails at the ESP", len(want.Mails)), func() bool { return len(esp.Inbox()) >= len(want.Mails) })
	br.waitEvents("the wanted events", func(evs []event.Event) bool {
		for _, w := range want.Events {
			if !hasEvent(evs, w) {
				return false
			}
		}
		return true
	})
	br.stop()
	compareMails(t, esp.Inbox(), want.Mails)
}

func hasEvent(evs []event.Event, want map[string]string) bool {
	for _, e := range evs {
		b, err := json.Marshal(e)
		if err != nil {
			return false
		}
		var have map[string]any
		if json.Unmarshal(b, &have) != nil {
			return false
		}
		all := true
		for k, v := range want {
			all = all && have[k] == v
		}
		if all {
			return true
		}
	}
	return false
}

func compareMails(t *testing.T, inbox []twin.Mail, want []map[string]any) {
	t.Helper()
	if len(inbox) != len(want) {
		t.Errorf("%d mails arrived, want %d", len(inbox), len(want))
	}
	sort.Slice(inbox, func(i, j int) bool { return inbox[i].Subject < inbox[j].Subject })
	for i := range min(len(inbox), len(want)) {
		have := view(t, inbox[i].Message)
		for k, v := range want[i] {
			if !reflect.DeepEqual(have[k], v) {
				t.Errorf("mail %d (%s): %s is\n  %v\nwant\n  %v", i, inbox[i].Subject, k, have[k], v)
			}
		}
	}
}

// view is a mail as the sandbox's API received it, with attachments by name, type and size.
func view(t *testing.T, m *twin.Message) map[string]any {
	t.Helper()
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatal(err)
	}
	files := []any{}
	for _, a := range m.Attachments {
		data, err := base64.StdEncoding.DecodeString(a.Content)
		if err != nil {
			t.Errorf("attachment %s: %v", a.Name, err)
		}
		files = append(files, fmt.Sprintf("%s %s inline=%v %d", a.Name, a.Type, a.Inline, len(data)))
	}
	out["files"] = files
	return out
}

// needs skips a story whose client is not installed; where every client must be there (CI), it fails.
func needs(t *testing.T, script string) {
	t.Helper()
	first, _, _ := strings.Cut(script, "\n")
	list, ok := strings.CutPrefix(first, "# needs:")
	if !ok {
		t.Fatalf("client.sh must begin with a line \"# needs: PROGRAM...\"")
	}
	for _, p := range strings.Fields(list) {
		found := true
		if module, ok := strings.CutPrefix(p, "node:"); ok {
			dir := os.Getenv("SMTPBRIDGE_NODE_MODULES")
			_, err := os.Stat(filepath.Join(dir, module))
			found = dir != "" && err == nil
		} else {
			_, err := exec.LookPath(p)
			found = err == nil
		}
		switch {
		case found:
		case os.Getenv("SMTPBRIDGE_REQUIRE_CLIENTS") != "":
			t.Fatalf("%s is not installed", p)
		default:
			t.Skipf("%s is not installed", p)
		}
	}
}

// shortDir is a temporary directory whose path leaves room for a socket's name (108 bytes).
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// certificate writes cert.pem and key.pem for 127.0.0.1.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bridge.example.com"}, DNSNames: []string{"localhost", "bridge.example.com"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
