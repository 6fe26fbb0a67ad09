package admin

import (
	"context"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"smtpbridge/store"
)

type withNodes struct {
	API
	nodes []store.Node
}

func (w withNodes) Nodes(context.Context) ([]store.Node, error) { return w.nodes, nil }

// The overview shows the bridges that share the store, and nothing of nodes where there is one alone.
func TestOverviewNodes(t *testing.T) {
	s := newSite(t)
	page := func(nodes ...store.Node) string {
		d := &Dashboard{API: withNodes{s.svc, nodes}, Guard: s.guard, Log: slog.New(slog.DiscardHandler), Now: time.Now, Host: "h", Subjects: func() bool { return true }, Sandbox: func() bool { return true }}
		w := httptest.NewRecorder()
		d.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
		if w.Code != 200 {
			t.Fatalf("status %d: %s", w.Code, w.Body)
		}
		return w.Body.String()
	}
	if strings.Contains(page(), "Nodes") {
		t.Error("one bridge alone shows nodes")
	}
	got := page(store.Node{Name: "web-1", Version: evil, Roles: []string{"smtp", "sink"}, Leads: []string{"dsn", "probes"}, Self: true}, store.Node{Name: "web-2", Roles: []string{"deliver"}})
	for _, want := range []string{"web-1 <small>this one</small>", ">smtp, sink<", ">dsn, probes<", ">web-2<", ">nothing<"} {
		if !strings.Contains(got, want) {
			t.Errorf("the overview lacks %q", want)
		}
	}
	if strings.Contains(got, evil) {
		t.Error("a version is not escaped")
	}
}
