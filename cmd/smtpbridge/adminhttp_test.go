package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"smtpbridge/smtp"
)

// The dashboard is off unless configured, and nothing but loopback starts without TLS and a password.
func TestCase095_LocalByDefault(t *testing.T) {
	b, err := NewBridge(t.Context(), writeConfig(t, shortTemp(t), "127.0.0.1:0", "[webhook]\naddress = \"\"\n"), quiet())
	if err != nil {
		t.Fatal(err)
	}
	if b.AdminAddr() != nil {
		t.Errorf("without configuration it listens on %s", b.AdminAddr())
	}
	b.close()
	hash, err := smtp.HashPassword("s3cret")
	if err != nil {
		t.Fatal(err)
	}
	for _, address := range []string{"0.0.0.0:0", "[::]:0", ":0", "192.0.2.1:8026"} {
		for _, more := range []string{"", fmt.Sprintf("password_hash = %q\n", hash)} {
			_, err := NewBridge(t.Context(), writeConfig(t, shortTemp(t), "127.0.0.1:0", fmt.Sprintf("[webhook]\naddress = \"\"\n[admin]\naddress = %q\n%s", address, more)), quiet())
			if err == nil || !strings.Contains(err.Error(), "admin.address: "+address+" is reachable from other machines") {
				t.Errorf("%s: %v", address, err)
			}
		}
	}
}

// What shows the inside of the process is served nowhere, and metrics only where the operator is.
func TestCase101_NoDebugPages(t *testing.T) {
	dir := shortTemp(t)
	b, err := NewBridge(t.Context(), writeConfig(t, dir, "127.0.0.1:0", "[webhook]\naddress = \"127.0.0.1:0\"\npublic_url = \"http://127.0.0.1:1\"\n[admin]\naddress = \"127.0.0.1:0\"\n"), quiet())
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ran, ready := make(chan error, 1), make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	<-ready
	defer func() {
		stop()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	}()
	get := func(url string) (int, string) {
		t.Helper()
		resp, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	public, admin := "http://"+b.WebhookAddr().String(), "http://"+b.AdminAddr().String()
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/debug", "/metrics", "/readyz", "/api/v1/status", "/", "/static/app.js"} {
		if status, _ := get(public + path); status != http.StatusNotFound {
			t.Errorf("the webhook listener answers %d to %s", status, path)
		}
	}
	for _, path := range []string{"/debug/pprof/", "/debug/vars", "/debug"} {
		if status, _ := get(admin + path); status != http.StatusNotFound {
			t.Errorf("the admin listener answers %d to %s", status, path)
		}
	}
	status, body := get(admin + "/metrics")
	if status != http.StatusOK || !strings.Contains(body, "smtpbridge_queue_mails") {
		t.Errorf("metrics: %d", status)
	}
	if strings.Contains(body, "@") {
		t.Error("an address is in the metrics")
	}
}
