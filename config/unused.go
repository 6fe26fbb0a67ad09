package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// warnUnused tells what is written down and does nothing: accounts that send nothing, routes that no mail reaches.
func (c *Config) warnUnused() {
	used := map[string]bool{c.DSN.Account: true}
	for _, in := range c.Inbound {
		used[in.Account] = true
	}
	var before []*Route // those that take all mail of their senders
	for i := range c.Routes {
		r := &c.Routes[i]
		for _, a := range r.Accounts {
			used[a] = true
		}
		if first := coveredBy(r, before); first != "" {
			c.problems.warn(fmt.Sprintf("route[%d].senders", i), "route %q above takes all of this mail: put this route before it", first)
		}
		if r.unconditional() {
			before = append(before, r)
		}
	}
	for i, a := range c.Accounts {
		if a.Name != "" && !used[a.Name] {
			c.problems.warn(fmt.Sprintf("account[%d].name", i), "no [[route]], [[inbound]] or [dsn] names %q: it sends nothing, and only its webhooks are taken", a.Name)
		}
	}
}

// unconditional: its senders alone decide.
func (r *Route) unconditional() bool {
	return len(r.Recipients)+len(r.Listeners)+len(r.Users)+len(r.Headers) == 0
}

// coveredBy names an earlier route when earlier ones take the mail of all senders of r.
func coveredBy(r *Route, earlier []*Route) string {
	name := ""
	for _, s := range r.Senders {
		name = ""
		for _, e := range earlier {
			for _, p := range e.Senders {
				if !strings.EqualFold(p, s) && covers(strings.ToLower(p), strings.ToLower(s)) {
					name = e.Name
				}
			}
		}
		if name == "" {
			return ""
		}
	}
	return name
}

// covers reports whether a sender pattern fits all that another one fits.
func covers(p, other string) bool {
	_, domain, at := strings.Cut(other, "@")
	if !at {
		domain = other
	}
	parent, wild := strings.CutPrefix(p, "*")
	switch {
	case p == "*":
		return true
	case wild:
		return strings.HasSuffix(domain, parent) && strings.TrimPrefix(domain, "*") != parent
	}
	return at && domain == p
}

// unusable says why a file cannot be used, and what to do.
func unusable(path string, err error) string {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return path + " does not exist: make it, or name another one"
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("%s may not be read by this user (uid %d): chgrp it to the bridge's group and chmod 0640 it", path, os.Geteuid())
	}
	return err.Error()
}

// tomlHint tells what people mostly mean by what the TOML parser did not expect.
func tomlHint(message string) string {
	switch {
	case strings.Contains(message, "expected value but found"):
		return `; a text stands between straight quotes: "..."`
	case strings.Contains(message, "has already been defined"):
		return "; each key and each [table] may stand there once"
	}
	return ""
}
