package main

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"os"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"smtpbridge/config"
	"smtpbridge/sink"
	"smtpbridge/store"
)

// Names of what one node leads at a time, besides the sinks, which are led by their own names.
const (
	leadProbes  = "probes"   // of paused accounts
	leadAlarms  = "alarms"   // those about what the nodes share
	leadCatchUp = "catch-up" // questions to the ESPs
)

// role is a part of the work a process may do.
type role string

// The roles of serve --roles.
const (
	roleSMTP    role = "smtp"
	roleDeliver role = "deliver"
	roleWebhook role = "webhook"
	roleSink    role = "sink"
	roleAdmin   role = "admin"
)

var allRoles = []role{roleSMTP, roleDeliver, roleWebhook, roleSink, roleAdmin}

// roles is what a process does; nil is everything.
type roles []role

func (r roles) has(one role) bool { return len(r) == 0 || slices.Contains(r, one) }

func (r roles) all() bool {
	return !slices.ContainsFunc(allRoles, func(one role) bool { return !r.has(one) })
}

func (r roles) names() []string {
	var out []string
	for _, one := range allRoles {
		if r.has(one) {
			out = append(out, string(one))
		}
	}
	return out
}

// parseRoles reads a list such as "smtp,admin".
func parseRoles(list []string) (roles, error) {
	var out roles
	for _, s := range list {
		r := role(strings.TrimSpace(s))
		if !slices.Contains(allRoles, r) {
			return nil, fmt.Errorf("there is no role %q: roles are %s", s, strings.Join(roles(nil).names(), ", "))
		}
		out = append(out, r)
	}
	return out, nil
}

// shared reports whether several bridges may use the store.
func shared(cfg *config.Config) bool { return cfg.Store.URL != "" }

// checkRoles refuses a split that the store cannot bear.
func checkRoles(cfg *config.Config, r roles) error {
	if r.all() || shared(cfg) {
		return nil
	}
	return fmt.Errorf("roles %s alone need PostgreSQL ([store] url): a SQLite store belongs to one process, which does everything", strings.Join(r.names(), ","))
}

// join makes this process known to the other nodes.
func (b *Bridge) join(ctx context.Context) error {
	if !shared(b.parts.cfg) {
		return nil
	}
	if err := b.store.Join(ctx, store.Membership{Version: buildVersion(), Roles: b.roles.names(), Delivers: b.roles.has(roleDeliver)}); err != nil {
		return err
	}
	b.log.Info("node joined", "event", "node.joined", "node", b.store.Node(), "roles", strings.Join(b.roles.names(), ","), "delivering", b.store.Delivering())
	return nil
}

// leader gives the question whether this node leads something.
func (b *Bridge) leader(name string) func(context.Context) bool {
	return func(ctx context.Context) bool { return b.store.Lead(ctx, name) }
}

// probes reports whether this node probes paused accounts.
func (b *Bridge) probes() bool { return b.store.Lead(context.Background(), leadProbes) }

// ledElsewhere reports whether another node leads something now.
func (b *Bridge) ledElsewhere(ctx context.Context, name string) (bool, error) {
	node, err := b.store.Led(ctx, name)
	return node != "" && !b.store.Lead(ctx, name), err
}

// armDSN notes the place where DSN mail begins, or forgets it, unless another node is at work on it: its configuration counts then.
func (b *Bridge) armDSN(ctx context.Context, on bool) error {
	if elsewhere, err := b.ledElsewhere(ctx, sink.DSNName); err != nil || elsewhere {
		return err
	}
	return b.dsn.Arm(ctx, on)
}

// lead reports whether this node serves a sink now: that for DSN mail only while it is on, and what is not a file of its own only
// while no other node does.
func (b *Bridge) lead(ctx context.Context, name string) bool {
	if name != sink.DSNName {
		return ownSink(name) || b.store.Lead(ctx, name)
	}
	on := func() bool { return b.intake.now.Load().dsn != nil }
	if on() {
		return b.store.Lead(ctx, name)
	}
	if !b.mu.TryLock() {
		return false // it may be being switched on
	}
	defer b.mu.Unlock()
	if on() {
		return b.store.Lead(ctx, name)
	}
	if err := b.armDSN(ctx, false); err != nil && ctx.Err() == nil {
		b.log.Error("the place of DSN mail in the event log cannot be forgotten", "event", "dsn.error", "err", err)
	}
	return false
}

// ownSink reports whether each node has the sink for itself.
func ownSink(name string) bool {
	return strings.HasPrefix(name, "file") || strings.HasPrefix(name, "stdout")
}

// eventSinks makes the sinks that each node has for itself: every node that names a file writes all events.
func (b *Bridge) eventSinks(cfg *config.Config) ([]sink.Sink, error) {
	if cfg.Events.File == "" {
		return nil, nil
	}
	var s sink.Sink = sink.NodeStdout(os.Stdout, b.store.Node())
	if cfg.Events.File != "stdout" {
		f, err := sink.NewNodeFile(cfg.Events.File, b.store.Node())
		if err != nil {
			return nil, atKey(cfg, "events.file", err)
		}
		s = f
	}
	return []sink.Sink{s}, nil
}

// ownKeys are settings of one node that change nothing about how a mail is planned.
var ownKeys = map[string][]string{
	"":         {"data_dir", "hostname", "store", "admin", "log", "webhook", "http", "catch_up", "acme"},
	"events":   {"file"},
	"listener": {"address", "tls", "min_tls", "cert_file", "key_file", "acme", "socket_mode", "allow", "max_connections", "max_connections_per_ip"},
}

// generation is a fingerprint of the settings by which mail is planned: a restart that changes none of them, or another node
// with the same ones, plans nothing anew.
func generation(text string) int64 {
	var root map[string]any
	h := fnv.New64a()
	if _, err := toml.Decode(text, &root); err != nil { // was read before
		h.Write([]byte(text))
		return int64(h.Sum64() >> 1)
	}
	for table, keys := range ownKeys {
		for _, m := range tables(root, table) {
			for _, k := range keys {
				delete(m, k)
			}
		}
	}
	b, err := json.Marshal(root) // keys in order
	if err != nil {
		b = []byte(text)
	}
	h.Write(b)
	return int64(h.Sum64() >> 1)
}

func tables(root map[string]any, name string) []map[string]any {
	if name == "" {
		return []map[string]any{root}
	}
	switch t := root[name].(type) {
	case map[string]any:
		return []map[string]any{t}
	case []map[string]any:
		return t
	}
	return nil
}
