package main

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
)

// TestEveryCaseHasATest keeps names and numbers together: a core case without a test, a case test
// of no case and a gap in the numbers are mistakes.
func TestEveryCaseHasATest(t *testing.T) {
	root, _, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	cs, err := cases()
	if err != nil {
		t.Fatal(err)
	}
	tests, err := scan(root)
	if err != nil {
		t.Fatal(err)
	}
	proven := map[int]bool{}
	for _, test := range tests {
		for _, n := range test.Cases {
			if n < 1 || n > len(cs) {
				t.Errorf("%s.%s: there is no case %d", test.Pkg, test.Name, n)
			}
			proven[n] = true
		}
	}
	names := map[string]bool{}
	for i, c := range cs {
		if c.N != i+1 {
			t.Fatalf("case %d stands at place %d", c.N, i+1)
		}
		if c.Name == "" || names[c.Name] {
			t.Errorf("case %d: the name %q is empty or taken", c.N, c.Name)
		}
		names[c.Name] = true
		if !proven[c.N] && c.Later == "" {
			t.Errorf("case %d (%s) has no TestCase%03d_... and cases.json gives no reason in \"later\"", c.N, c.Name, c.N)
		}
	}
}

// TestEveryLogNameExists: what a case is to log is in the program under that name.
func TestEveryLogNameExists(t *testing.T) {
	root, _, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	cs, err := cases()
	if err != nil {
		t.Fatal(err)
	}
	var source strings.Builder
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "test" || strings.HasPrefix(d.Name(), ".") && path != root):
			return fs.SkipDir
		case d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go"):
			return nil
		}
		text, err := os.ReadFile(path)
		source.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for _, c := range cs {
		if c.Log == "" {
			continue
		}
		named++
		if !strings.Contains(source.String(), strconv.Quote(c.Log)) {
			t.Errorf("case %d (%s) is to log %q, which nothing does", c.N, c.Name, c.Log)
		}
	}
	if named == 0 {
		t.Error("no case names what it logs")
	}
}

func TestNumbers(t *testing.T) {
	for name, want := range map[string][]int{
		"TestCase036_DataTimeout": {36}, "TestCase065_066_Connections": {65, 66}, "TestCase117": {117},
		"TestCase36_x": nil, "TestCases": nil, "TestCaseInsensitive": nil, "TestCase0365_x": nil,
	} {
		if got := numbers(name); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

// TestJudge makes sure that the table can say no.
func TestJudge(t *testing.T) {
	cs := []Case{
		{1, "pass", true, "", ""},
		{2, "one of two fails", true, "", ""},
		{3, "skipped only", true, "", ""},
		{4, "no test", true, "", ""},
		{5, "no test", false, "reason", ""},
		{6, "not core, fails", false, "", ""},
		{7, "did not compile", true, "", ""},
		{8, "one of two skipped", true, "", ""},
	}
	tests := []Test{
		{"a", "TestCase001_x", []int{1}},
		{"a", "TestCase002_x", []int{2}},
		{"b", "TestCase001_002_x", []int{1, 2, 8}},
		{"a", "TestCase003_008_x", []int{3, 8}},
		{"a", "TestCase006_x", []int{6}},
		{"c", "TestCase007_x", []int{7}},
	}
	const stream = `not json
{"Action":"run","Package":"m/a","Test":"TestCase001_x"}
{"Action":"pass","Package":"m/a","Test":"TestCase001_x"}
{"Action":"output","Package":"m/a","Test":"TestCase002_x/sub","Output":"why\n"}
{"Action":"fail","Package":"m/a","Test":"TestCase002_x/sub"}
{"Action":"fail","Package":"m/a","Test":"TestCase002_x"}
{"Action":"pass","Package":"m/b","Test":"TestCase001_002_x"}
{"Action":"skip","Package":"m/a","Test":"TestCase003_008_x"}
{"Action":"fail","Package":"m/a","Test":"TestCase006_x"}
{"Action":"fail","Package":"m/a"}
`
	var said strings.Builder
	got, err := results(strings.NewReader(stream), &said)
	if err != nil {
		t.Fatal(err)
	}
	if said.String() != "not json\nwhy\n" {
		t.Errorf("said %q", said.String())
	}
	var have []string
	bad := map[int]bool{}
	lines := judge(cs, tests, "m", got)
	for _, l := range lines {
		have = append(have, l.Result)
		bad[l.N] = l.bad()
	}
	want := []string{"pass", "fail", "skip", "missing", "later", "fail", "fail", "pass"}
	if !reflect.DeepEqual(have, want) {
		t.Errorf("got %v, want %v", have, want)
	}
	if !reflect.DeepEqual(bad, map[int]bool{1: false, 2: true, 3: true, 4: true, 5: false, 6: true, 7: true, 8: false}) {
		t.Errorf("bad: %v", bad)
	}
	table(io.Discard, lines, true)
}
