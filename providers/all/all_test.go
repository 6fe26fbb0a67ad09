package all

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRegistry lists every provider folder once, in order, each with its README's headings.
func TestRegistry(t *testing.T) {
	names := Registry().Names()
	if !slices.IsSorted(names) {
		t.Errorf("the names are not in order: %q", names)
	}
	headings := []string{"Settings", "Example", "Webhook setup", "What is supported and what is lost", "Event mapping", "Limits and quirks", "Sources"}
	for _, i := range Registry() {
		b, err := os.ReadFile(filepath.Join("..", i.Name, "README.md"))
		if err != nil {
			t.Error(err)
			continue
		}
		var got []string
		for line := range strings.Lines(string(b)) {
			if h, ok := strings.CutPrefix(strings.TrimSpace(line), "## "); ok {
				got = append(got, h)
			}
		}
		if !slices.Equal(got, headings) {
			t.Errorf("%s: README has the headings %q, want %q", i.Name, got, headings)
		}
		if i.New == nil || i.Title == "" {
			t.Errorf("%s: Title or New is missing", i.Name)
		}
	}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "all", "internal", "providertest", "providers.go":
			continue
		}
		if e.IsDir() && !slices.Contains(names, e.Name()) {
			t.Errorf("providers/%s is not in the registry", e.Name())
		}
	}
}
