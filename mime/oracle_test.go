package mime

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestOracle compares what "smtpbridge parse" prints with an independent reading of the same mails
// by Python's email package (testdata/oracle.py). Where the two differ for a reason, reviewed says why.
func TestOracle(t *testing.T) {
	b, err := os.ReadFile("testdata/oracle.json")
	if err != nil {
		t.Fatal(err)
	}
	var oracle map[string]map[string]any
	if err := json.Unmarshal(b, &oracle); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, path := range corpus(t) {
		name := strings.TrimPrefix(path, "testdata/corpus/")
		t.Run(name, func(t *testing.T) {
			want := oracle[name]
			if want == nil {
				t.Fatal("not in oracle.json")
			}
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := view(t, parseBytes(t, src))
			for field, w := range want {
				g := comparable(field, got[field])
				w = comparable(field, w)
				if field == "attachments" {
					g = withoutUnknown(g, w)
				}
				if reflect.DeepEqual(g, w) {
					continue
				}
				key := name + " " + field
				if _, ok := reviewed[key]; ok {
					used[key] = true
					continue
				}
				gj, _ := json.Marshal(g)
				wj, _ := json.Marshal(w)
				t.Errorf("%s:\n got %.1500s\nwant %.1500s", field, gj, wj)
			}
		})
	}
	for key := range reviewed {
		if !used[key] {
			t.Errorf("%s no longer differs", key)
		}
	}
}

// view gives the JSON of a message, decoded.
func view(t testing.TB, m *Message) map[string]any {
	t.Helper()
	var b bytes.Buffer
	if err := m.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, b.Bytes())
	}
	return v
}

// comparable brings a field to the form of oracle.json: bodies as size and digest, white space of a subject as single spaces.
func comparable(field string, v any) any {
	switch s := v.(type) {
	case string:
		switch field {
		case "text", "html":
			sum := sha256.Sum256([]byte(s))
			return map[string]any{"size": float64(len(s)), "sha256": hex.EncodeToString(sum[:])}
		case "subject":
			return strings.Join(strings.Fields(s), " ")
		}
	case []any:
		for _, a := range s {
			if m, ok := a.(map[string]any); ok {
				if n, ok := m["filename"].(string); ok {
					m["filename"] = strings.Join(strings.Fields(n), " ")
				}
			}
		}
	}
	return v
}

// withoutUnknown takes out of the attachments what the oracle does not know.
func withoutUnknown(got, want any) any {
	g, ok1 := got.([]any)
	w, ok2 := want.([]any)
	if !ok1 || !ok2 || len(g) != len(w) {
		return got
	}
	for i := range g {
		if w[i].(map[string]any)["size"] == nil {
			g[i].(map[string]any)["size"] = nil
			g[i].(map[string]any)["sha256"] = nil
		}
	}
	return g
}

// reviewed lists mail and field where this reader is meant to differ, and why.
var reviewed = map[string]string{}
