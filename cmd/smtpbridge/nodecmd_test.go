package main

import (
	"strings"
	"testing"
)

// With SQLite there are no nodes, which is said in words, and to scripts by an empty list.
func TestNodeListSQLite(t *testing.T) {
	file, _, _ := running(t)
	if code, out := cli(t, "node", "list", "-c", file); code != 0 || !strings.Contains(out, "SQLite, which belongs to one bridge alone") {
		t.Errorf("code %d: %q", code, out)
	}
	if code, out := cli(t, "node", "list", "--json", "-c", file); code != 0 || out != "[]\n" {
		t.Errorf("code %d: %q", code, out)
	}
}
