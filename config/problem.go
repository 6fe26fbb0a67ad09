package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Problem is one thing wrong with a configuration file.
type Problem struct {
	File    string
	Line    int    // 0 when not known
	Key     string // "listener[0].tls", as a path through the file
	Text    string // what is wrong and what to do
	Warning bool   // the bridge starts all the same
}

func (p Problem) String() string {
	s := p.File
	if p.Line > 0 {
		s += ":" + strconv.Itoa(p.Line)
	}
	s += ": "
	if p.Warning {
		s += "warning: "
	}
	if p.Key != "" {
		s += p.Key + ": "
	}
	return s + p.Text
}

// Problems is the error of a configuration: everything that is wrong with it, at once.
type Problems []Problem

func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// Errors counts the problems that keep the bridge from starting.
func (p Problems) Errors() int {
	n := 0
	for i := range p {
		if !p[i].Warning {
			n++
		}
	}
	return n
}

type problems struct {
	file  string
	lines map[string]int
	list  []Problem
	wrong []string // keys whose values could not be read, or that were misspelt: nothing more is said about them
}

// unreadable adds a problem that leaves a key without its value: that it is missing too is no news.
func (p *problems) unreadable(key, format string, args ...any) {
	p.add(key, format, args...)
	p.wrong = append(p.wrong, key)
}

func (p *problems) add(key, format string, args ...any) {
	for _, w := range p.wrong {
		if w == key || strings.HasPrefix(w, key+"[") {
			return
		}
	}
	p.list = append(p.list, Problem{File: p.file, Line: p.line(key), Key: key, Text: fmt.Sprintf(format, args...)})
}

func (p *problems) warn(key, format string, args ...any) {
	n := len(p.list)
	p.add(key, format, args...)
	for i := range p.list[n:] {
		p.list[n+i].Warning = true
	}
}

// line finds the line of a key, or of the nearest table around it.
func (p *problems) line(key string) int {
	for key != "" {
		if n, ok := p.lines[key]; ok {
			return n
		}
		if n, ok := p.lines[key+"[0]"]; ok {
			return n
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return 0
		}
		key = key[:i]
	}
	return 0
}

var (
	headerLine = regexp.MustCompile(`^\s*(\[\[?)\s*([A-Za-z0-9_."-]+)\s*\]\]?\s*(#.*)?$`)
	keyLine    = regexp.MustCompile(`^\s*([A-Za-z0-9_."-]+)\s*=`)
)

// indexLines maps key paths to line numbers, for messages only: the TOML library tells no
// positions of decoded keys. Lines inside multi-line texts may be taken for keys; such keys do not exist.
func indexLines(text string) map[string]int {
	out := map[string]int{}
	count := map[string]int{}
	prefix := ""
	for i, line := range strings.Split(text, "\n") {
		if m := headerLine.FindStringSubmatch(line); m != nil {
			name := strings.ReplaceAll(m[2], `"`, "")
			if m[1] == "[[" {
				prefix = fmt.Sprintf("%s[%d]", name, count[name])
				count[name]++
			} else {
				// [account.options] belongs to the newest [[account]].
				if first, rest, ok := strings.Cut(name, "."); ok && count[first] > 0 {
					name = fmt.Sprintf("%s[%d].%s", first, count[first]-1, rest)
				}
				prefix = name
			}
			out[prefix] = i + 1
		} else if m := keyLine.FindStringSubmatch(line); m != nil {
			key := join(prefix, strings.ReplaceAll(m[1], `"`, ""))
			if _, seen := out[key]; !seen {
				out[key] = i + 1
			}
		}
	}
	return out
}
