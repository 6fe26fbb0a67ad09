package admin

import (
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"time"

	"smtpbridge/event"
)

// OpenAPI describes the JSON API (OpenAPI 3.1), made from its routes and the types they answer with.
func OpenAPI() map[string]any {
	g := generator{schemas: map[string]any{
		"Error": object(map[string]any{"error": map[string]any{"type": "string"}}, "error"),
	}}
	paths := map[string]any{}
	for _, rt := range append(jsonRoutes(), bodyRoute, replayRoute, eventsRoute) {
		path := "/api/v1/" + rt.path
		if paths[path] == nil {
			paths[path] = map[string]any{}
		}
		paths[path].(map[string]any)[strings.ToLower(rt.method)] = g.operation(rt)
	}
	return map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "smtpbridge admin API", "version": "1",
			"description": "Served on the admin socket, where the file's mode is the access control, and on [admin] address, where it takes the password by Basic authentication (any user name).",
			"license":     map[string]any{"name": "see LICENSE"},
		},
		"paths": paths,
		"components": map[string]any{
			"schemas":         g.schemas,
			"securitySchemes": map[string]any{"password": map[string]any{"type": "http", "scheme": "basic"}},
		},
		"security": []any{map[string]any{"password": []any{}}, map[string]any{}},
	}
}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

func (g *generator) operation(rt route) map[string]any {
	op := map[string]any{"summary": rt.doc, "operationId": operationID(rt)}
	str := map[string]any{"type": "string"}
	var params []any
	for _, m := range pathParam.FindAllStringSubmatch(rt.path, -1) {
		params = append(params, map[string]any{"name": m[1], "in": "path", "required": true, "schema": str})
	}
	form := map[string]any{}
	for _, p := range rt.params {
		if rt.method == "POST" {
			form[p.name] = map[string]any{"type": "string", "description": p.doc}
			continue
		}
		params = append(params, map[string]any{"name": p.name, "in": "query", "description": p.doc, "schema": str})
	}
	if len(params) > 0 {
		op["parameters"] = params
	}
	if len(form) > 0 {
		op["requestBody"] = map[string]any{"content": map[string]any{"application/x-www-form-urlencoded": map[string]any{"schema": object(form)}}}
	}
	result, media := object(map[string]any{}), "application/json"
	if rt.result != nil {
		result = g.schema(reflect.TypeOf(rt.result))
	}
	switch rt.path {
	case eventsRoute.path, replayRoute.path:
		media = "application/x-ndjson"
	case bodyRoute.path:
		result, media = map[string]any{"type": "string"}, "message/rfc822"
	}
	op["responses"] = map[string]any{
		"200":     map[string]any{"description": "done", "content": map[string]any{media: map[string]any{"schema": result}}},
		"default": map[string]any{"description": "not done: 401 or 403 not allowed, 404 not found, 409 nothing to do or no bridge runs, 500 a fault of ours", "content": map[string]any{"application/json": map[string]any{"schema": ref("Error")}}},
	}
	return op
}

func operationID(rt route) string {
	return strings.ToLower(rt.method) + "_" + strings.Trim(regexp.MustCompile(`\W+`).ReplaceAllString(rt.path, "_"), "_")
}

// generator makes schemas of types; named structs become components.
type generator struct{ schemas map[string]any }

func object(properties map[string]any, required ...string) map[string]any {
	o := map[string]any{"type": "object", "properties": properties}
	if len(required) > 0 {
		o["required"] = required
	}
	return o
}

func ref(name string) map[string]any { return map[string]any{"$ref": "#/components/schemas/" + name} }

func (g *generator) schema(t reflect.Type) map[string]any {
	switch t {
	case reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case reflect.TypeFor[event.Event]():
		return map[string]any{"$ref": "event.schema.json"}
	case reflect.TypeFor[json.RawMessage]():
		return map[string]any{}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.schema(t.Elem())
	case reflect.Slice:
		return map[string]any{"type": "array", "items": g.schema(t.Elem())}
	case reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": g.schema(t.Elem())}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Struct:
		if _, ok := g.schemas[t.Name()]; !ok {
			properties := map[string]any{}
			g.schemas[t.Name()] = nil // a type may hold itself
			required := g.fields(t, properties)
			g.schemas[t.Name()] = object(properties, required...)
		}
		return ref(t.Name())
	}
	return map[string]any{"type": "string"}
}

func (g *generator) fields(t reflect.Type, properties map[string]any) (required []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			required = append(required, g.fields(f.Type, properties)...)
			continue
		}
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() || name == "" || name == "-" {
			continue
		}
		properties[name] = g.schema(f.Type)
		if !strings.Contains(opts, "omitempty") {
			required = append(required, name)
		}
	}
	return required
}
