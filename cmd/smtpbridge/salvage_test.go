package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A damaged database: the bridge names the command, the command repairs, the bridge starts.
func TestStoreSalvageCommand(t *testing.T) {
	dir := shortTemp(t)
	file := writeConfig(t, dir, "127.0.0.1:0", "[webhook]\naddress = \"\"\n")
	start := func() error {
		b, err := NewBridge(t.Context(), file, quiet())
		if err == nil {
			b.close()
		}
		return err
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	if code, out := cli(t, "store", "salvage", "-c", file); code != 0 || !strings.Contains(out, "is not damaged") {
		t.Errorf("a sound database: exit code %d: %s", code, out)
	}
	path := filepath.Join(dir, "smtpbridge.db")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	clear(b[:4096])
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := start(); err == nil || !strings.Contains(err.Error(), "smtpbridge store salvage") {
		t.Fatalf("the bridge on a damaged database: %v", err)
	}
	code, out := cli(t, "store", "salvage", "-c", file)
	if code != 0 || !strings.Contains(out, "mails") || !strings.Contains(out, "the old database is in "+filepath.Join(dir, "damaged-")) {
		t.Errorf("exit code %d: %s", code, out)
	}
	if err := start(); err != nil {
		t.Error(err)
	}
	if code, out := cli(t, "store", "migrate", "-c", file); code != 0 {
		t.Errorf("migrate: exit code %d: %s", code, out)
	}
}
