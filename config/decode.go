package config

import (
	"encoding"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"sort"
	"strings"
	"time"
)

// decoder fills structs from the tables of a parsed TOML file. Unlike a plain decode it does not
// stop at the first mistake: every unknown key and every wrong type becomes a Problem.
type decoder struct {
	problems *problems
}

var textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()

func (d *decoder) table(path string, v any, dst reflect.Value) {
	m, ok := v.(map[string]any)
	if !ok {
		d.problems.unreadable(path, "must be a table ([%s])", path)
		return
	}
	fields := map[string]reflect.Value{}
	collect(dst, fields)
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		f, ok := fields[k]
		if !ok {
			d.problems.unreadable(join(path, k), "unknown key%s", nearest(k, fields))
			if meant := Closest(k, fields); meant != "" {
				d.problems.wrong = append(d.problems.wrong, join(path, meant))
			}
			continue
		}
		d.value(join(path, k), m[k], f)
	}
}

func collect(dst reflect.Value, into map[string]reflect.Value) {
	t := dst.Type()
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			collect(dst.Field(i), into)
			continue
		}
		if tag := f.Tag.Get("toml"); tag != "" && tag != "-" {
			into[tag] = dst.Field(i)
		}
	}
}

func (d *decoder) value(path string, v any, dst reflect.Value) {
	if dst.Type() == reflect.TypeFor[Table]() {
		if m, ok := v.(map[string]any); ok {
			dst.Set(reflect.ValueOf(Table(m)))
		} else {
			d.problems.unreadable(path, "must be a table")
		}
		return
	}
	if dst.CanAddr() && dst.Addr().Type().Implements(textUnmarshaler) {
		s, ok := v.(string)
		if !ok {
			d.problems.unreadable(path, "must be a text in quotes, not %s", typeName(v))
			return
		}
		if err := dst.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil {
			d.problems.unreadable(path, "%v", err)
		}
		return
	}
	if dst.Type() == reflect.TypeFor[time.Duration]() {
		d.duration(path, v, dst)
		return
	}
	switch dst.Kind() {
	case reflect.Pointer:
		p := reflect.New(dst.Type().Elem())
		d.value(path, v, p.Elem())
		dst.Set(p)
	case reflect.String:
		if s, ok := v.(string); ok {
			dst.SetString(s)
		} else {
			d.problems.unreadable(path, "must be a text in quotes, not %s", typeName(v))
		}
	case reflect.Bool:
		if b, ok := v.(bool); ok {
			dst.SetBool(b)
		} else {
			d.problems.unreadable(path, "must be true or false, not %s", typeName(v))
		}
	case reflect.Int, reflect.Int64:
		if n, ok := v.(int64); ok {
			dst.SetInt(n)
		} else {
			d.problems.unreadable(path, "must be a whole number without quotes, not %s", typeName(v))
		}
	case reflect.Float64:
		switch n := v.(type) {
		case float64:
			dst.SetFloat(n)
		case int64:
			dst.SetFloat(float64(n))
		default:
			d.problems.unreadable(path, "must be a number without quotes, not %s", typeName(v))
		}
	case reflect.Struct:
		d.table(path, v, dst)
	case reflect.Slice:
		d.slice(path, v, dst)
	case reflect.Map:
		m, ok := v.(map[string]any)
		if !ok {
			d.problems.unreadable(path, "must be a table of key = value lines")
			return
		}
		out := reflect.MakeMap(dst.Type())
		for k, e := range m {
			el := reflect.New(dst.Type().Elem()).Elem()
			d.value(join(path, k), e, el)
			out.SetMapIndex(reflect.ValueOf(k), el)
		}
		dst.Set(out)
	default:
		panic("config: no decoding for " + dst.Type().String())
	}
}

// duration fills a time.Duration, which a provider's settings use: they know no Duration of ours.
func (d *decoder) duration(path string, v any, dst reflect.Value) {
	s, ok := v.(string)
	if !ok {
		d.problems.unreadable(path, "must be a duration in quotes, such as \"30s\", not %s", typeName(v))
		return
	}
	n, err := ParseDuration(s)
	if err != nil {
		d.problems.unreadable(path, "%v", err)
		return
	}
	dst.SetInt(int64(n))
}

func (d *decoder) slice(path string, v any, dst reflect.Value) {
	var items []any
	switch l := v.(type) {
	case []any:
		items = l
	case []map[string]any:
		for _, m := range l {
			items = append(items, m)
		}
	case string:
		if dst.Type() != reflect.TypeFor[OneOrMore]() {
			d.problems.unreadable(path, "must be a list: [%q]", l)
			return
		}
		items = []any{l}
	default:
		if dst.Type().Elem().Kind() == reflect.Struct {
			d.problems.unreadable(path, "must be a list of tables: write [[%s]] with two brackets", path)
		} else {
			d.problems.unreadable(path, "must be a list in brackets, not %s", typeName(v))
		}
		return
	}
	out := reflect.MakeSlice(dst.Type(), len(items), len(items))
	for i, e := range items {
		d.value(fmt.Sprintf("%s[%d]", path, i), e, out.Index(i))
	}
	dst.Set(out)
}

func typeName(v any) string {
	switch v.(type) {
	case string:
		return "a text in quotes"
	case int64:
		return "a whole number"
	case float64:
		return "a number with a fraction"
	case bool:
		return "true or false"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date"
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// nearest names the known key that a misspelt one most resembles.
func nearest[T any](key string, known map[string]T) string {
	if best := Closest(key, known); best != "" {
		return fmt.Sprintf(": did you mean %q?", best)
	}
	names := slices.Sorted(maps.Keys(known))
	if len(names) == 0 {
		return ": there is none at all"
	}
	if len(names) <= 12 {
		return "; known here: " + strings.Join(names, ", ")
	}
	return "; see bridge.toml.example for all settings"
}

// Closest is the known key that a misspelt one most resembles, "" when none does. Case does not count.
func Closest[T any](key string, known map[string]T) string {
	best, dist := "", len(key)/3+2
	for _, k := range slices.Sorted(maps.Keys(known)) {
		if n := distance(strings.ToLower(key), strings.ToLower(k)); n < dist {
			best, dist = k, n
		}
	}
	return best
}

// distance is the Levenshtein distance of two short keys.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		prev := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			next := min(row[j]+1, row[j-1]+1, prev+cost)
			prev, row[j] = row[j], next
		}
	}
	return row[len(b)]
}
