package providertest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// SDK finds node and the folder with a vendor's own client, for tests in which that client judges a
// twin. Without them the test is skipped, or fails where SMTPBRIDGE_REQUIRE_CLIENTS is set (CI).
func SDK(t *testing.T, module string) (node, modules string) {
	t.Helper()
	missing := t.Skipf
	if os.Getenv("SMTPBRIDGE_REQUIRE_CLIENTS") != "" {
		missing = t.Fatalf
	}
	modules = os.Getenv("SMTPBRIDGE_NODE_MODULES")
	if _, err := os.Stat(filepath.Join(modules, filepath.FromSlash(module))); modules == "" || err != nil {
		missing("SMTPBRIDGE_NODE_MODULES names no folder with %s", module)
	}
	node, err := exec.LookPath("node")
	if err != nil {
		missing("node is not installed")
	}
	return node, modules
}
