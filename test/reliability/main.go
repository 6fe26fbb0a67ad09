// Command reliability runs the tests of the numbered fault and attack cases and prints one line per
// case. A test proves a case by its name: TestCase036_..., or TestCase065_066_... for several. cases.json
// names the cases; those marked core have to pass before anything is released.
//
// It exits with 1 when a test of a case fails, or when a core case is proven by no test, be it that
// there is none or that all of them were skipped here.
package main

import (
	"bufio"
	_ "embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

//go:embed cases.json
var casesJSON []byte

// Case is one numbered case.
type Case struct {
	N     int    `json:"n"`
	Name  string `json:"name"`
	Core  bool   `json:"core"`
	Later string `json:"later"` // why no test proves it yet
	Log   string `json:"log"`   // the event of the line that tells an operator of it
}

func cases() ([]Case, error) {
	var cs []Case
	if err := json.Unmarshal(casesJSON, &cs); err != nil {
		return nil, fmt.Errorf("cases.json: %w", err)
	}
	return cs, nil
}

// Test is a test function that proves one case or more.
type Test struct {
	Pkg, Name string // Pkg is a directory below the module, such as "smtp"
	Cases     []int
}

var testName = regexp.MustCompile(`^TestCase(\d{3}(?:_\d{3})*)(?:_|$)`)

// numbers gives the cases a test's name claims to prove.
func numbers(name string) []int {
	m := testName.FindStringSubmatch(name)
	if m == nil {
		return nil
	}
	var ns []int
	for s := range strings.SplitSeq(m[1], "_") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return nil
		}
		ns = append(ns, n)
	}
	return ns
}

// scan finds the case tests in the sources below root. It only parses: what does not compile is found
// when it is run.
func scan(root string) ([]Test, error) {
	var tests []Test
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := d.Name(); d.IsDir() {
			if path != root && (name == "testdata" || name == "node_modules" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range f.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, "TestCase") {
				continue
			}
			if ns := numbers(fn.Name.Name); ns != nil {
				tests = append(tests, Test{Pkg: filepath.ToSlash(dir), Name: fn.Name.Name, Cases: ns})
			}
		}
		return nil
	})
	return tests, err
}

// moduleRoot is the directory with go.mod, and the module's path.
func moduleRoot() (dir, path string, err error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}\n{{.Path}}").Output()
	if err != nil {
		return "", "", fmt.Errorf("go list -m: %w", err)
	}
	dir, path, ok := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if !ok {
		return "", "", errors.New("not inside a module")
	}
	return dir, path, nil
}

// results gives pass, fail or skip of each top-level test, from the output of go test -json. What a
// failed test printed goes to w.
func results(r io.Reader, w io.Writer) (map[string]string, error) {
	out, printed := map[string]string{}, map[string][]string{}
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 16<<20)
	for sc.Scan() {
		var e struct{ Action, Package, Test, Output, ImportPath string }
		if json.Unmarshal(sc.Bytes(), &e) != nil {
			fmt.Fprintln(w, sc.Text()) // not an event: a message of the go command
			continue
		}
		top, _, _ := strings.Cut(e.Test, "/")
		key := e.Package + "." + top
		switch e.Action {
		case "build-output":
			fmt.Fprint(w, e.Output)
		case "output":
			printed[key] = append(printed[key], e.Output)
		case "pass", "fail", "skip":
			if top == e.Test {
				out[key] = e.Action
				if e.Action == "fail" {
					for _, line := range printed[key] {
						fmt.Fprint(w, line)
					}
				}
				delete(printed, key)
			}
		}
	}
	return out, sc.Err()
}

// Line is one line of the table.
type Line struct {
	Case
	Result string // pass, fail, skip, later, missing
	Tests  []string
}

// bad tells that the line must not be released.
func (l Line) bad() bool { return l.Result == "fail" || l.Core && l.Result != "pass" }

// judge puts the results of all tests of a case together: one failure is a failure, and a skipped test
// proves nothing. got is by "package.Test" with full import paths.
func judge(cs []Case, tests []Test, module string, got map[string]string) []Line {
	var lines []Line
	for _, c := range cs {
		l := Line{Case: c, Result: "missing"}
		if c.Later != "" || !c.Core {
			l.Result = "later"
		}
		ran := map[string]bool{}
		for _, t := range tests {
			if !slices.Contains(t.Cases, c.N) {
				continue
			}
			l.Tests = append(l.Tests, t.Pkg+"."+t.Name)
			result := got[module+"/"+t.Pkg+"."+t.Name]
			if result == "" {
				result = "fail" // it did not compile, or its package ended before
			}
			ran[result] = true
		}
		for _, result := range []string{"fail", "pass", "skip"} {
			if ran[result] {
				l.Result = result
				break
			}
		}
		lines = append(lines, l)
	}
	return lines
}

func table(w io.Writer, lines []Line, verbose bool) {
	count := map[string]int{}
	core, corePassed := 0, 0
	for _, l := range lines {
		mark := " "
		if l.Core {
			mark = "*"
			core++
			if l.Result == "pass" {
				corePassed++
			}
		}
		count[l.Result]++
		note := ""
		if l.Result == "later" {
			note = l.Later
		}
		fmt.Fprintf(w, "%3d%s %-7s  %-46s %s\n", l.N, mark, l.Result, l.Name, note)
		if verbose || l.bad() {
			for _, t := range l.Tests {
				fmt.Fprintf(w, "              %s\n", t)
			}
		}
	}
	fmt.Fprintf(w, "\n%d of %d core cases (*) pass; of all %d: %d pass, %d fail, %d skipped, %d missing, %d later\n",
		corePassed, core, len(lines), count["pass"], count["fail"], count["skip"], count["missing"], count["later"])
}

func run() (ok bool, err error) {
	race := flag.Bool("race", false, "run the tests under the race detector")
	verbose := flag.Bool("v", false, "name the tests of each case")
	flag.Parse()
	root, module, err := moduleRoot()
	if err != nil {
		return false, err
	}
	cs, err := cases()
	if err != nil {
		return false, err
	}
	tests, err := scan(root)
	if err != nil {
		return false, err
	}
	args := []string{"test", "-count=1", "-json", "-timeout=10m", "-run", "^TestCase"}
	if *race {
		args = append(args, "-race")
	}
	var pkgs []string
	for _, t := range tests {
		pkgs = append(pkgs, "./"+t.Pkg)
	}
	slices.Sort(pkgs)
	cmd := exec.Command("go", append(args, slices.Compact(pkgs)...)...)
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return false, err
	}
	got, err := results(out, os.Stdout)
	if werr := cmd.Wait(); err == nil && len(got) == 0 {
		err = werr // go test did not run at all; failed tests are in the results
	}
	if err != nil {
		return false, err
	}
	lines := judge(cs, tests, module, got)
	table(os.Stdout, lines, *verbose)
	return !slices.ContainsFunc(lines, Line.bad), nil
}

func main() {
	ok, err := run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "reliability:", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}
