package event_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// schema is as much of JSON Schema 2020-12 as docs/event.schema.json uses. An unknown keyword fails
// its decoding, so that nothing in the file goes unchecked.
type schema struct {
	Schema      string             `json:"$schema"`
	ID          string             `json:"$id"`
	Title       string             `json:"title"`
	Description string             `json:"description"`
	Type        types              `json:"type"`
	Const       any                `json:"const"`
	Enum        []string           `json:"enum"`
	Required    []string           `json:"required"`
	Properties  map[string]*schema `json:"properties"`
	Additional  json.RawMessage    `json:"additionalProperties"`
	Items       *schema            `json:"items"`
	Format      string             `json:"format"`
	Pattern     string             `json:"pattern"`
	MinLength   int                `json:"minLength"`
	MaxLength   int                `json:"maxLength"`
	Minimum     *float64           `json:"minimum"`
}

type types []string

func (t *types) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*t = types{one}
		return nil
	}
	return json.Unmarshal(b, (*[]string)(t))
}

func loadSchema(t *testing.T) *schema {
	t.Helper()
	f, err := os.Open("../docs/event.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	var s schema
	if err := d.Decode(&s); err != nil {
		t.Fatal(err)
	}
	return &s
}

func (s *schema) check(path string, v any) (errs []string) {
	fail := func(format string, args ...any) { errs = append(errs, path+": "+fmt.Sprintf(format, args...)) }
	typ := map[bool]string{true: "null"}[v == nil]
	switch x := v.(type) {
	case string:
		typ = "string"
		if len(s.Enum) > 0 && !slices.Contains(s.Enum, x) {
			fail("%q is not in the enum", x)
		}
		if len(x) < s.MinLength || s.MaxLength > 0 && len(x) > s.MaxLength {
			fail("has length %d", len(x))
		}
		if s.Pattern != "" && !regexp.MustCompile(s.Pattern).MatchString(x) {
			fail("%q does not match %s", x, s.Pattern)
		}
		if s.Format == "date-time" {
			if _, err := time.Parse(time.RFC3339Nano, x); err != nil || !strings.HasSuffix(x, "Z") {
				fail("%q is no RFC 3339 time in UTC", x)
			}
		}
	case float64:
		typ = "number"
		if x == float64(int64(x)) {
			typ = "integer"
		}
		if s.Minimum != nil && x < *s.Minimum {
			fail("%v is too small", x)
		}
	case bool:
		typ = "boolean"
	case []any:
		typ = "array"
		for i, item := range x {
			errs = append(errs, s.Items.check(fmt.Sprintf("%s[%d]", path, i), item)...)
		}
	case map[string]any:
		typ = "object"
		for _, k := range s.Required {
			if _, ok := x[k]; !ok {
				fail("%s is missing", k)
			}
		}
		for k, val := range x {
			switch p := s.Properties[k]; {
			case p != nil:
				errs = append(errs, p.check(path+"."+k, val)...)
			case string(s.Additional) == "false":
				fail("%s is not allowed", k)
			case len(s.Additional) > 0:
				var more schema
				if err := json.Unmarshal(s.Additional, &more); err != nil {
					fail("additionalProperties: %v", err)
				} else {
					errs = append(errs, more.check(path+"."+k, val)...)
				}
			}
		}
	}
	if !slices.Contains(s.Type, typ) {
		fail("is %s, want %s", typ, s.Type)
	}
	if s.Const != nil && !reflect.DeepEqual(s.Const, v) {
		fail("is %v, want %v", v, s.Const)
	}
	return errs
}

// full is an event with every field of the public form set.
func full() event.Event {
	at := time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)
	retry := at.Add(time.Hour)
	return event.Event{
		V: event.Version, ID: "abc", Revision: 2, Time: at, Seen: at.Add(time.Second), Kind: event.Deferred,
		Recipient: "bob@example.net", Candidates: []string{"bob@example.net"}, QueueID: "01hx", Account: "mp", Provider: "mailpace",
		Sender: "alice@example.com", MessageID: "1@example.com", Subject: "hello", ProviderMessageID: "4711", ProviderEventID: "e1",
		ProviderEvent: "email.deferred", Action: event.ActionDelayed, Status: "4.2.2", Diagnostic: "452 4.2.2 <bob@example.net> mailbox full",
		RemoteMTA: "mx.example.net", RejectReason: event.ReasonOther, Attempt: 1, WillRetryAt: &retry, SMTPReply: "452 4.2.2 full",
		Losses: []event.Loss{{Field: "reply-to", Had: "2 addresses", Sent: "first only", Severity: "major"}},
		Tags:   []string{"invoice"}, Metadata: map[string]string{"order": "7"}, URL: "https://example.com/?a=1&b=2", UserAgent: "UA/1", IP: "192.0.2.1",
		EnvID: "QQ314159", ORCPT: "rfc822;bob@example.net", Outcome: event.OutcomeUnknown, Ref: "ref", RawID: "raw",
	}
}

func TestSchemaValidatesEvents(t *testing.T) {
	s := loadSchema(t)
	for _, c := range []struct {
		name string
		e    event.Event
	}{
		{"every field", full()},
		{"only the required fields", event.Event{
			V: event.Version, ID: "x", Time: time.Unix(1, 0).UTC(), Seen: time.Unix(2, 0).UTC(), Kind: event.Unknown, Account: "a", Provider: "p",
		}},
		{"each kind", event.Event{V: event.Version, ID: "x", Time: time.Unix(1, 0).UTC(), Seen: time.Unix(2, 0).UTC(), Account: "a", Provider: "p"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			kinds := []event.Kind{c.e.Kind}
			if c.e.Kind == "" {
				kinds = event.Kinds
			}
			for _, k := range kinds {
				c.e.Kind = k
				line, err := c.e.AppendJSON(nil)
				if err != nil {
					t.Fatal(err)
				}
				var v any
				if err := json.Unmarshal(line, &v); err != nil {
					t.Fatal(err)
				}
				for _, e := range s.check("event", v) {
					t.Errorf("%s: %s", k, e)
				}
			}
		})
	}
}

// The validator is worth something only if it refuses.
func TestSchemaRefuses(t *testing.T) {
	s := loadSchema(t)
	line, err := full().AppendJSON(nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(map[string]any){
		"unknown field":     func(m map[string]any) { m["bcc"] = "x" },
		"missing id":        func(m map[string]any) { delete(m, "id") },
		"missing recipient": func(m map[string]any) { delete(m, "recipient") },
		"wrong kind":        func(m map[string]any) { m["event"] = "exploded" },
		"null account":      func(m map[string]any) { m["account"] = nil },
		"text for a number": func(m map[string]any) { m["attempt"] = "1" },
		"local time":        func(m map[string]any) { m["time"] = "2026-03-04T05:06:07+02:00" },
		"bad status":        func(m map[string]any) { m["status"] = "550" },
		"other version":     func(m map[string]any) { m["v"] = 2.0 },
		"nested field":      func(m map[string]any) { m["losses"].([]any)[0].(map[string]any)["why"] = "x" },
		"metadata number":   func(m map[string]any) { m["metadata"].(map[string]any)["n"] = 1.0 },
		"tag that is null":  func(m map[string]any) { m["tags"] = []any{nil} },
	} {
		t.Run(name, func(t *testing.T) {
			var m map[string]any
			if err := json.Unmarshal(line, &m); err != nil {
				t.Fatal(err)
			}
			change(m)
			if errs := s.check("event", m); len(errs) == 0 {
				t.Error("accepted")
			}
		})
	}
}

// Every field of the Go type is in the schema and the other way round; each has a description.
func TestSchemaNamesEveryField(t *testing.T) {
	s := loadSchema(t)
	want := append(tags(reflect.TypeFor[event.Event]()), "recipient", "queue_id")
	same(t, "event", want, s.Properties)
	same(t, "loss", tags(reflect.TypeFor[event.Loss]()), s.Properties["losses"].Items.Properties)

	line, err := full().AppendJSON(nil)
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(line, &m); err != nil {
		t.Fatal(err)
	}
	for k := range s.Properties {
		if _, ok := m[k]; !ok {
			t.Errorf("%s is in the schema, but a full event does not write it", k)
		}
	}
	var enum []string
	for _, k := range event.Kinds {
		enum = append(enum, string(k))
	}
	if got := s.Properties["event"].Enum; !slices.Equal(got, enum) {
		t.Errorf("kinds in the schema: %q, want %q", got, enum)
	}
}

func tags(t reflect.Type) (out []string) {
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name != "-" {
			out = append(out, name)
		}
	}
	return out
}

func same(t *testing.T, what string, want []string, got map[string]*schema) {
	t.Helper()
	for _, k := range want {
		if got[k] == nil {
			t.Errorf("%s: field %q is not in the schema", what, k)
		}
	}
	for k, p := range got {
		if !slices.Contains(want, k) {
			t.Errorf("%s: the schema has %q, the Go type has not", what, k)
		}
		if p.Description == "" {
			t.Errorf("%s: %q has no description", what, k)
		}
	}
}
