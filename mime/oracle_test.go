package mime

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite what this reader says in testdata/differences.json")

// difference is a field of a mail that is read otherwise than by the oracle, on purpose. docs/mime.md has the reasons.
type difference struct {
	Mail  string `json:"mail"`
	Field string `json:"field"`
	Why   string `json:"why"`
	Ours  any    `json:"ours"`
}

// TestOracle compares what "smtpbridge parse" prints, field by field, with an independent reading of the same
// mails by Python's email package (testdata/oracle.py, testdata/golden). Where the two differ, testdata/differences.json
// says why and what this reader has instead.
func TestOracle(t *testing.T) {
	const file = "testdata/differences.json"
	var known []difference
	readJSON(t, file, &known)
	left := map[string]int{}
	for i, d := range known {
		left[d.Mail+" "+d.Field] = i
	}
	for _, path := range corpus(t) {
		name := strings.TrimPrefix(path, "testdata/corpus/")
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var want map[string]any
		readJSON(t, "testdata/golden/"+strings.TrimSuffix(name, ".eml")+".json", &want)
		got := view(t, parseBytes(t, src))
		for field := range got {
			// Each has words of its own for what is wrong; that something is, this reader has to see too.
			seen, _ := got[field].([]any)
			there, _ := want[field].([]any)
			if field == "defects" && (len(there) == 0 || len(seen) > 0) || reflect.DeepEqual(got[field], want[field]) {
				continue
			}
			i, ok := left[name+" "+field]
			if !ok {
				i = len(known)
				known = append(known, difference{Mail: name, Field: field})
			}
			delete(left, name+" "+field)
			if d := &known[i]; *update {
				d.Ours = got[field]
			} else if !ok {
				t.Errorf("%s: %s:\n got %.1500s\nwant %.1500s", name, field, compact(t, got[field]), compact(t, want[field]))
			} else if !reflect.DeepEqual(got[field], d.Ours) {
				t.Errorf("%s: %s:\n got %.1500s\nwant %.1500s", name, field, compact(t, got[field]), compact(t, d.Ours))
			}
		}
	}
	for key := range left {
		t.Errorf("%s no longer differs", key)
	}
	page, err := os.ReadFile("../docs/mime.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range known {
		if d.Why == "" || !bytes.Contains(page, []byte("| "+d.Why+" |")) {
			t.Errorf("%s %s: docs/mime.md does not explain %q", d.Mail, d.Field, d.Why)
		}
	}
	if *update {
		slices.SortFunc(known, func(a, b difference) int {
			return strings.Compare(a.Why+"\x00"+a.Mail+"\x00"+a.Field, b.Why+"\x00"+b.Mail+"\x00"+b.Field)
		})
		var b bytes.Buffer
		enc := json.NewEncoder(&b)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", " ")
		if err := enc.Encode(known); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func readJSON(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}

func compact(t *testing.T, v any) []byte {
	t.Helper()
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return bytes.TrimSpace(b.Bytes())
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
