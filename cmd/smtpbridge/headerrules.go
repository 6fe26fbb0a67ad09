package main

import (
	"fmt"
	"slices"
	"strings"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/translate"
)

// listenerRules say which option headers each listener understands and permits.
func listenerRules(cfg *config.Config) map[string]deliver.HeaderRules {
	out := map[string]deliver.HeaderRules{}
	for _, l := range cfg.Listeners {
		out[l.Name] = deliver.HeaderRules{Dialects: l.Dialects, Permissions: l.Permissions, BadOptions: l.BadOptions, AppendDomain: l.AppendDomain}
	}
	return out
}

func userRules(cfg *config.Config) map[string]deliver.HeaderRules {
	out := map[string]deliver.HeaderRules{}
	for _, u := range cfg.Users {
		out[u.Name] = deliver.HeaderRules{Dialects: u.Dialects, Permissions: u.Permissions}
	}
	return out
}

// checkHeaderRules finds names that are no dialect or no permission.
func checkHeaderRules(cfg *config.Config) (ps config.Problems) {
	check := func(what, key string, names, known []string) {
		for _, n := range names {
			if n != "all" && !slices.Contains(known, n) {
				ps = append(ps, cfg.Problem(key, fmt.Errorf("unknown %s %q; known: all, %s", what, n, strings.Join(known, ", "))))
			}
		}
	}
	dialects, permissions := translate.Dialects(), translate.Permissions()
	for i, l := range cfg.Listeners {
		check("dialect", fmt.Sprintf("listener[%d].dialects", i), l.Dialects, dialects)
		check("permission", fmt.Sprintf("listener[%d].permissions", i), l.Permissions, permissions)
	}
	for i, u := range cfg.Users {
		check("dialect", fmt.Sprintf("user[%d].dialects", i), u.Dialects, dialects)
		check("permission", fmt.Sprintf("user[%d].permissions", i), u.Permissions, permissions)
	}
	for i, r := range cfg.Routes {
		check("permission", fmt.Sprintf("route[%d].permissions", i), r.Permissions, permissions)
	}
	return ps
}
