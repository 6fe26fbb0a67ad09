package main

import (
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"smtpbridge/config"
	"smtpbridge/providers/all"
)

// The shipped example is a configuration that works.
func TestExampleConfig(t *testing.T) {
	p, err := loadParts("../../bridge.toml.example", 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.accounts) != 1 || len(p.cfg.Users) != 1 || len(p.cfg.Warnings) != 0 {
		t.Errorf("accounts %d, users %d, warnings %v", len(p.accounts), len(p.cfg.Users), p.cfg.Warnings)
	}
}

// Its commented provider blocks work too, once their comment signs are off and their key files exist.
func TestExampleAccounts(t *testing.T) {
	b, err := os.ReadFile("../../bridge.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	_, blocks, ok := strings.Cut(string(b), "# Further accounts")
	blocks, _, ok2 := strings.Cut(blocks, "# ---- Which mail takes which account")
	if !ok || !ok2 {
		t.Fatal("the example has no further accounts")
	}
	_, blocks, _ = strings.Cut(blocks, "\n")
	blocks = regexp.MustCompile(`(?m)^# ?`).ReplaceAllString(blocks, "")
	dir := t.TempDir()
	for _, m := range regexp.MustCompile(`_file = "([^"]+)"`).FindAllStringSubmatch(blocks, -1) {
		if err := os.WriteFile(filepath.Join(dir, m[1]), []byte("A6EHv/POEL4dcN0Y50vAmWfk1jCbpQ1fHdyGZBJVMbg=\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	accounts := regexp.MustCompile(`(?m)^name = ("[^"]+")`).FindAllStringSubmatch(blocks, -1)
	var names []string
	for _, m := range accounts {
		names = append(names, m[1])
	}
	text := "[[listener]]\naddress = \"127.0.0.1:0\"\n[[route]]\nsenders = [\"*\"]\naccounts = [" + strings.Join(names, ",") + "]\n" + blocks
	cfg, err := config.Parse(filepath.Join(dir, "bridge.toml"), text, all.Registry().Names())
	if err != nil {
		t.Fatal(err)
	}
	p, err := makeParts(cfg, all.Registry(), 0, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if len(p.accounts) != len(names) || len(names) < 3 {
		t.Errorf("%d accounts of %v", len(p.accounts), names)
	}
}
