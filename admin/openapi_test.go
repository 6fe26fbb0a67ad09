package admin

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/store"
)

var update = flag.Bool("update", false, "rewrite docs/openapi.json")

// docs/openapi.json is what the routes and types say.
func TestOpenAPIFile(t *testing.T) {
	want, err := json.MarshalIndent(OpenAPI(), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join("..", "docs", "openapi.json")
	if *update {
		if err := os.WriteFile(file, append(want, '\n'), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(decode(t, string(got)), decode(t, string(want))) {
		t.Error("docs/openapi.json is not what the API is: go test ./admin -run OpenAPI -update")
	}
}

// checkSchema compares a value with a schema of docs/openapi.json: types, required and unknown properties.
func checkSchema(doc, schema map[string]any, path string, v any) (errs []string) {
	if ref, ok := schema["$ref"].(string); ok {
		name, ok := strings.CutPrefix(ref, "#/components/schemas/")
		if !ok {
			return nil // the event, which has a schema and a test of its own
		}
		return checkSchema(doc, doc["components"].(map[string]any)["schemas"].(map[string]any)[name].(map[string]any), path, v)
	}
	fail := func(format string, args ...any) { errs = append(errs, path+": "+fmt.Sprintf(format, args...)) }
	switch want := schema["type"]; want {
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			fail("is %T, want an object", v)
			return errs
		}
		required, _ := schema["required"].([]any)
		for _, k := range required {
			if _, ok := m[k.(string)]; !ok {
				fail("%s is missing", k)
			}
		}
		properties, _ := schema["properties"].(map[string]any)
		for k, val := range m {
			p, ok := properties[k].(map[string]any)
			if !ok {
				p, ok = schema["additionalProperties"].(map[string]any)
			}
			if !ok {
				fail("%s is not described", k)
				continue
			}
			errs = append(errs, checkSchema(doc, p, path+"."+k, val)...)
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			fail("is %T, want an array", v)
		}
		for i, item := range list {
			errs = append(errs, checkSchema(doc, schema["items"].(map[string]any), fmt.Sprintf("%s[%d]", path, i), item)...)
		}
	case "string":
		s, ok := v.(string)
		if _, err := time.Parse(time.RFC3339Nano, s); !ok || schema["format"] == "date-time" && err != nil {
			fail("is %v, want %v", v, schema)
		}
	case "integer":
		if n, ok := v.(float64); !ok || n != float64(int64(n)) {
			fail("is %v, want an integer", v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			fail("is %v, want a boolean", v)
		}
	default:
		fail("the schema has type %v", want)
	}
	return errs
}

// Every path of the file answers, with what the file says, and no other path does.
func TestOpenAPIAnswers(t *testing.T) {
	s := newSite(t).start()
	b := &browser{s: s}
	text, err := os.ReadFile(filepath.Join("..", "docs", "openapi.json"))
	if err != nil {
		t.Fatal(err)
	}
	doc := decode(t, string(text)).(map[string]any)
	since := time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)
	s.svc.Replayer = func(ctx context.Context, since time.Time, progress func(store.Replayed) error) (store.Replayed, error) {
		return store.Replayed{}, nil
	}
	fill := strings.NewReplacer("{id}", s.queued, "{name}", "box", "{account}", "box")
	values := map[string]url.Values{
		"/api/v1/trace": {"key": {s.sent}}, "/api/v1/erase": {"address": {"x@example.net"}}, "/api/v1/backup": {"dir": {filepath.Join(t.TempDir(), "copy")}},
		"/api/v1/suppressions": {"limit": {"10"}}, "/api/v1/replay": {"since": {since}},
	}
	entries := url.Values{"entries": {`[{"address":"y@example.net","reason":"manual"}]`}}
	tried := 0
	for path, item := range doc["paths"].(map[string]any) {
		for method, op := range item.(map[string]any) {
			form, paths := values[path], []string{fill.Replace(path)}
			switch {
			case strings.HasSuffix(path, "/queue/{id}/{action}"):
				paths = nil
				for _, a := range []string{"retry", "hold", "release"} {
					paths = append(paths, "/api/v1/queue/"+s.queued+"/"+a)
				}
			case strings.HasSuffix(path, "/accounts/{name}/{action}"):
				paths = []string{"/api/v1/accounts/box/pause", "/api/v1/accounts/box/resume"}
			case strings.HasPrefix(path, "/api/v1/inbox/"):
				paths = []string{"/api/v1/inbox/box/sb-1"}
			case method == "post" && strings.HasPrefix(path, "/api/v1/suppressions"):
				form = entries
			}
			for _, p := range paths {
				if method == "get" && len(form) > 0 {
					p += "?" + form.Encode()
				}
				resp, body := b.send(strings.ToUpper(method), p, form, func(r *http.Request) { r.SetBasicAuth("", password) })
				if resp.StatusCode != http.StatusOK {
					t.Errorf("%s %s: %d %.200s", method, p, resp.StatusCode, body)
					continue
				}
				tried++
				for media, m := range op.(map[string]any)["responses"].(map[string]any)["200"].(map[string]any)["content"].(map[string]any) {
					if got := resp.Header.Get("Content-Type"); got != media {
						t.Errorf("%s %s: type %q, want %q", method, p, got, media)
					}
					if !strings.HasSuffix(media, "json") {
						continue
					}
					lines := []string{body}
					if media == "application/x-ndjson" {
						lines = strings.Split(strings.TrimSpace(body), "\n")
					}
					for _, line := range lines {
						for _, e := range checkSchema(doc, m.(map[string]any)["schema"].(map[string]any), path, decode(t, line)) {
							t.Error(e)
						}
					}
				}
			}
		}
	}
	if tried < 20 {
		t.Errorf("only %d calls were tried", tried)
	}
	for _, path := range []string{"/api/v1/nothing", "/api/v1/queue/" + s.queued + "/sell", "/api/v1/accounts/nope/pause"} {
		method := map[bool]string{true: "GET", false: "POST"}[path == "/api/v1/nothing"]
		resp, body := b.send(method, path, nil, func(r *http.Request) { r.SetBasicAuth("", password) })
		if _, ok := decode(t, body).(map[string]any)["error"]; resp.StatusCode != http.StatusNotFound || !ok {
			t.Errorf("%s: %d %s", path, resp.StatusCode, body)
		}
	}
	if resp, _ := b.send("GET", "/api/v1/events?since=yesterday", nil, func(r *http.Request) { r.SetBasicAuth("", password) }); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("since=yesterday: %d", resp.StatusCode)
	}
}

// What docs/ tells Prometheus and Grafana to look at exists.
func TestMetricsInDocs(t *testing.T) {
	s := newSite(t)
	m := NewMetrics("test", s.store)
	m.Accepted("l", 1)
	m.Refused("l", "x")
	m.Sessions("l", 1)
	m.AuthFail("l")
	m.Commit(time.Second)
	m.Call("a", "accepted", time.Second)
	m.Webhook("a", 200, time.Second)
	m.WebhookEvent("a", "sent")
	m.BadSignature("a")
	m.SinkWritten("file", 1)
	m.Waited("a", 90*time.Second)
	m.WatchLog(func() int64 { return 0 })
	m.WatchCertificates(func() []Certificate {
		return []Certificate{{Listener: "l", Name: "mail.example.com", NotAfter: time.Unix(1e9, 0)}}
	})
	m.alarm("backlog", "", true)
	m.WatchNodes(func(context.Context) ([]store.Node, error) {
		return []store.Node{{Self: true, Delivers: true, Leads: []string{"dsn"}}, {Leads: []string{"probes"}}}, nil
	})
	families, err := m.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if want, ok := map[string]float64{"smtpbridge_nodes_living": 2, "smtpbridge_nodes_delivering": 1, "smtpbridge_node_leads": 1}[f.GetName()]; ok {
			if got := f.GetMetric(); len(got) != 1 || got[0].GetGauge().GetValue() != want {
				t.Errorf("%s is %v, want %v", f.GetName(), got, want)
			}
		}
	}
	known, labels := map[string]bool{}, map[string]bool{"le": true, "job": true, "instance": true, "severity": true}
	for _, f := range families {
		known[f.GetName()] = true
		if f.GetType().String() == "HISTOGRAM" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				known[f.GetName()+suffix] = true
			}
		}
		for _, mm := range f.GetMetric() {
			for _, l := range mm.GetLabel() {
				labels[l.GetName()] = true
			}
		}
	}
	for _, file := range []string{"grafana.json", "alerts.yml"} {
		text, err := os.ReadFile(filepath.Join("..", "docs", file))
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(file, ".json") {
			decode(t, string(text))
		}
		names := regexp.MustCompile(`smtpbridge_[a-z_]+|process_[a-z_]+`).FindAllString(string(text), -1)
		for _, n := range names {
			if !known[n] {
				t.Errorf("%s: there is no metric %s", file, n)
			}
		}
		for _, by := range regexp.MustCompile(`by \(([a-z_, ]+)\)`).FindAllStringSubmatch(string(text), -1) {
			for l := range strings.SplitSeq(by[1], ",") {
				if !labels[strings.TrimSpace(l)] {
					t.Errorf("%s: there is no label %q", file, l)
				}
			}
		}
		if len(slices.Compact(names)) < 5 {
			t.Errorf("%s names %v", file, names)
		}
	}
	// The page of operations has every metric of ours with its labels, and no other.
	page, err := os.ReadFile(filepath.Join("..", "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| (`smtpbridge_[^|]+) \\|([^|]*)\\|").FindAllStringSubmatch(string(page), -1) {
		for _, n := range regexp.MustCompile(`smtpbridge_[a-z_]+`).FindAllString(row[1], -1) {
			documented[n] = strings.NewReplacer("`", "", " ", "").Replace(row[2])
		}
	}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "smtpbridge_") {
			continue
		}
		var has []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			has = append(has, l.GetName())
		}
		want, ok := documented[f.GetName()]
		given := slices.DeleteFunc(strings.Split(want, ","), func(l string) bool { return l == "" })
		slices.Sort(given)
		if !ok || !slices.Equal(given, has) {
			t.Errorf("operations.md has %s with labels %q, it has %q", f.GetName(), want, has)
		}
		delete(documented, f.GetName())
	}
	for n := range documented {
		t.Errorf("operations.md: there is no metric %s", n)
	}
	// Labels are few: names from the configuration and our own words.
	for l := range labels {
		if !slices.Contains([]string{"le", "job", "instance", "severity", "listener", "reason", "account", "result", "status", "kind", "sink", "alarm", "version", "state", "work", "quantile", "name"}, l) {
			t.Errorf("label %q", l)
		}
	}
}
