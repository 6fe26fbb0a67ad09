package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/envelope"
)

// key is one member of a JSON object in a header.
type key struct {
	name     string
	means    string // neutral concept, for the documentation
	permit   string // permission that it needs, for the documentation
	parse    func(w *wish, raw json.RawMessage) error
	sub      []key // an object; in place of parse. Without both the member is kept for an account of the same vendor.
	switched bool  // an object that says nothing when its member enable is off
}

// object reads a JSON object by a table of its members.
func object(keys []key) parser {
	return func(w *wish, _, value string) error {
		o, err := decodeObject(value)
		if err != nil {
			return err
		}
		return w.members(keys, "", o)
	}
}

// members goes by the table's order, as that of a JSON object means nothing.
func (w *wish) members(keys []key, path string, o map[string]json.RawMessage) error {
	known := 0
	for i := range keys {
		k := &keys[i]
		raw, ok := o[k.name]
		if !ok {
			continue
		}
		known++
		var err error
		switch {
		case k.sub != nil:
			var sub map[string]json.RawMessage
			if sub, err = decodeObject(string(raw)); err == nil && !(k.switched && isOff(sub["enable"])) {
				err = w.members(k.sub, path+k.name+".", sub)
			}
		case k.parse != nil:
			err = k.parse(w, raw)
		default:
			s, _ := text(raw)
			w.keepRaw(path+k.name, k.means, clean(s), false)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", path+k.name, err)
		}
	}
	if known == len(o) {
		return nil
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if !slices.ContainsFunc(keys, func(k key) bool { return k.name == name }) {
			s, _ := text(o[name])
			w.keepRaw(path+cut(clean(name), 80), "an unknown option", clean(s), false)
		}
	}
	return nil
}

// decodeObject reads a JSON object from a header value.
func decodeObject(value string) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(strings.NewReader(value))
	var o map[string]json.RawMessage
	if err := d.Decode(&o); err != nil || o == nil {
		return nil, errors.New("not a JSON object")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("not one JSON object")
	}
	return o, nil
}

// decodeValue reads a JSON value for merge data: numbers stay as written, control characters go.
func decodeValue(raw json.RawMessage) (any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return nil, errors.New("not JSON")
	}
	return cleanValue(v), nil
}

func cleanValue(v any) any {
	switch v := v.(type) {
	case string:
		return cleanBlock(v)
	case []any:
		for i := range v {
			v[i] = cleanValue(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out[clean(k)] = cleanValue(v[k])
		}
		return out
	}
	return v
}

// scalarText gives a merge value as the text that stands in a mail.
func scalarText(v any) string {
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return v
	}
	b, err := json.Marshal(v)
	if err != nil {
		return "" // what was decoded marshals
	}
	return string(b)
}

// text gives a JSON scalar as text, anything else as compact JSON; null and nothing give ok=false.
func text(raw json.RawMessage) (s string, ok bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 || string(raw) == "null" {
		return "", false
	}
	if raw[0] == '"' {
		if json.Unmarshal(raw, &s) != nil {
			return "", false
		}
		return s, true
	}
	var b bytes.Buffer
	if json.Compact(&b, raw) != nil {
		return "", false
	}
	return b.String(), true
}

func addMetaObject(w *wish, o map[string]json.RawMessage) {
	for _, k := range slices.Sorted(maps.Keys(o)) {
		if s, ok := text(o[k]); ok {
			w.addMeta(k, s)
		}
	}
}

func metaJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	addMetaObject(w, o)
	return nil
}

// addMerge merges global data; the first value of a name counts.
func (w *wish) addMerge(data map[string]any) {
	for k, v := range data {
		if w.Merge.Global == nil {
			w.Merge.Global = map[string]any{}
		}
		if _, ok := w.Merge.Global[k]; !ok {
			w.Merge.Global[k] = v
		}
	}
	w.mergeFrom()
}

// addRcptMerge merges one recipient's data.
func (w *wish) addRcptMerge(addr string, data map[string]any) error {
	addr, err := bareAddress(addr)
	if err != nil {
		return err
	}
	k := envelope.Fold(addr)
	if w.Merge.Rcpt == nil {
		w.Merge.Rcpt = map[string]map[string]any{}
	}
	if w.Merge.Rcpt[k] == nil {
		w.Merge.Rcpt[k] = map[string]any{}
	}
	for name, v := range data {
		if _, ok := w.Merge.Rcpt[k][name]; !ok {
			w.Merge.Rcpt[k][name] = v
		}
	}
	w.mergeFrom()
	return nil
}

// mergeFrom remembers whose placeholders the body is written with. Our own headers are about the account's.
func (w *wish) mergeFrom() {
	if w.Merge.Dialect == "" && w.cur.dialect != ownDialect {
		w.Merge.Dialect = w.cur.dialect
	}
}

func mergeObject(raw string) (map[string]any, error) {
	if _, err := decodeObject(raw); err != nil {
		return nil, err
	}
	v, err := decodeValue(json.RawMessage(raw))
	if err != nil {
		return nil, err
	}
	return v.(map[string]any), nil
}

func mergeJSON(w *wish, _, value string) error {
	o, err := mergeObject(value)
	if err != nil {
		return err
	}
	w.addMerge(o)
	return nil
}

// mergeRcptJSON reads {address: {name: value}}.
func mergeRcptJSON(w *wish, _, value string) error {
	o, err := mergeObject(value)
	if err != nil {
		return err
	}
	for _, addr := range slices.Sorted(maps.Keys(o)) {
		data, ok := o[addr].(map[string]any)
		if !ok {
			return errors.New("the value of an address is not a JSON object")
		}
		if err := w.addRcptMerge(addr, data); err != nil {
			return err
		}
	}
	once(w, "expose_rcpts", &w.ExposeRcpts, Off)
	return nil
}

// mandrillMergeVars are of one recipient if they say so, else of all.
func mandrillMergeVars(w *wish, _, value string) error {
	o, err := mergeObject(value)
	if err != nil {
		return err
	}
	rcpt, ok := o["_rcpt"]
	if !ok {
		w.addMerge(o)
		return nil
	}
	delete(o, "_rcpt")
	addr, ok := rcpt.(string)
	if !ok {
		return errors.New("_rcpt is not an address")
	}
	return w.addRcptMerge(addr, o)
}

// mailgunTemplateVariables are for the template alone.
func mailgunTemplateVariables(w *wish, _, value string) error {
	o, err := mergeObject(value)
	if err != nil {
		return err
	}
	w.forTemplate = o
	return nil
}

// mailgunVariables are metadata, and merge data where there is a template.
func mailgunVariables(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	addMetaObject(w, o)
	data, err := mergeObject(value)
	if err != nil {
		return err
	}
	if w.templateVar == nil {
		w.templateVar = map[string]any{}
	}
	for k, v := range data {
		if _, ok := w.templateVar[k]; !ok {
			w.templateVar[k] = v
		}
	}
	return nil
}

// stringOrList reads "a" or ["a", "b"].
func stringOrList(raw json.RawMessage) ([]string, error) {
	var one string
	if json.Unmarshal(raw, &one) == nil {
		return []string{one}, nil
	}
	var many []string
	if err := json.Unmarshal(raw, &many); err != nil {
		return nil, errors.New("not a text or a list of texts")
	}
	return many, nil
}

// Members that several dialects share.

func tagsMember(w *wish, raw json.RawMessage) error {
	list, err := stringOrList(raw)
	for _, t := range list {
		w.addTag(t)
	}
	return err
}

func metaMember(w *wish, raw json.RawMessage) error { return metaJSON(w, "", string(raw)) }

func mergeMember(w *wish, raw json.RawMessage) error { return mergeJSON(w, "", string(raw)) }

// scalar reads a JSON scalar as the value of a header would be read; null says nothing.
func scalar(parse parser) func(*wish, json.RawMessage) error {
	return func(w *wish, raw json.RawMessage) error {
		s, ok := text(raw)
		if !ok {
			return nil
		}
		if raw = bytes.TrimSpace(raw); raw[0] == '{' || raw[0] == '[' {
			return errors.New("not a text or number")
		}
		return parse(w, "", clean(s))
	}
}

// settings is a filter of SendGrid: {"settings": {...}}.
func settings(keys ...key) []key { return []key{{name: "settings", sub: keys}} }

// switched is one that counts only when it is enabled.
func switched(keys ...key) []key {
	keys = append([]key{{name: "enable", means: "whether the filter counts", parse: scalar(isYesOrNo)}}, keys...)
	return []key{{name: "settings", sub: keys, switched: true}}
}

func isYesOrNo(_ *wish, _, value string) error {
	_, err := parseBool(value)
	return err
}

func isOff(raw json.RawMessage) bool {
	s, _ := text(raw)
	v, err := parseBool(s)
	return err == nil && v == Off
}

func unixSendAt(w *wish, _, value string) error {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n <= 0 || n > 1<<36 {
		return errors.New("not a Unix time")
	}
	w.setSendAt(time.Unix(n, 0))
	return nil
}

// clickText is the part of SendGrid's click tracking that is about the text.
func clickText(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err == nil && s == Off && w.TrackClicks == On {
		w.ClicksIn = HTMLBody
	}
	return err
}

// sendgridTo are recipients, each with a copy of his own.
func sendgridTo(w *wish, raw json.RawMessage) error {
	list, err := stringOrList(raw)
	if err != nil {
		return err
	}
	for _, a := range list {
		if err := w.addRcpt("to", a); err != nil {
			return err
		}
	}
	w.inPlace = w.inPlace || len(list) > 0
	once(w, "expose_rcpts", &w.ExposeRcpts, Off)
	return nil
}

// sendgridBcc is one address; the filter is retired.
func sendgridBcc(w *wish, _, value string) error { return w.addRcpt("bcc", value) }

// sendgridJSON reads X-SMTPAPI: the substitutions need the whole object, the other members are of the table.
func sendgridJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	if err := w.members(sendgridKeys, "", o); err != nil {
		return err
	}
	return w.sendgridSub(o)
}

// sendgridSub reads sub: {literal: [value for each entry of to]}, whose values may name sections.
func (w *wish) sendgridSub(o map[string]json.RawMessage) error {
	if o["sub"] == nil {
		return nil
	}
	var sub map[string][]any
	if json.Unmarshal(o["sub"], &sub) != nil {
		return errors.New("sub: not an object of lists")
	}
	var section map[string]string
	if o["section"] != nil && json.Unmarshal(o["section"], &section) != nil {
		return errors.New("section: not an object of texts")
	}
	var to []string
	if o["to"] != nil {
		var err error
		if to, err = stringOrList(o["to"]); err != nil {
			return fmt.Errorf("to: %w", err)
		}
	}
	expand := newReplacer(&Merge{Subst: section}, "")
	for _, literal := range slices.Sorted(maps.Keys(sub)) {
		values := sub[literal]
		if want := max(len(to), 1); len(values) != want {
			return fmt.Errorf("sub: %d values for %d recipients", len(values), want)
		}
		for i, v := range values {
			value := cleanBlock(expand.Replace(scalarText(v)))
			if to == nil {
				w.addSubst(&w.Merge.Subst, literal, value)
				continue
			}
			addr, err := bareAddress(to[i])
			if err != nil {
				return fmt.Errorf("to: %w", err)
			}
			k := envelope.Fold(addr)
			if w.Merge.RcptSubst == nil {
				w.Merge.RcptSubst = map[string]map[string]string{}
			}
			data := w.Merge.RcptSubst[k]
			w.addSubst(&data, literal, value)
			w.Merge.RcptSubst[k] = data
		}
	}
	return nil
}

func (w *wish) addSubst(into *map[string]string, literal, value string) {
	if *into == nil {
		*into = map[string]string{}
	}
	if _, ok := (*into)[literal]; !ok && literal != "" {
		(*into)[literal] = value
	}
}

// sparkpostRcpts is a list of addresses or {email, name}.
func sparkpostRcpts(kind string) func(*wish, json.RawMessage) error {
	return func(w *wish, raw json.RawMessage) error {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) != nil {
			return errors.New("not a list of addresses")
		}
		for _, x := range list {
			var one struct {
				Email string `json:"email"`
			}
			if json.Unmarshal(x, &one.Email) != nil && json.Unmarshal(x, &one) != nil {
				return errors.New("not a list of addresses")
			}
			if err := w.addRcpt(kind, one.Email); err != nil {
				return err
			}
		}
		return nil
	}
}

// mailjetPayload is free text or a JSON object.
func mailjetPayload(w *wish, _, value string) error {
	if o, err := decodeObject(value); err == nil {
		addMetaObject(w, o)
		return nil
	}
	w.addMeta("payload", value)
	return nil
}

// wooxyTags is a JSON array whose quotes may be escaped by backslashes.
func wooxyTags(w *wish, _, value string) error {
	var list []string
	if json.Unmarshal([]byte(value), &list) != nil &&
		json.Unmarshal([]byte(strings.ReplaceAll(value, `\"`, `"`)), &list) != nil {
		return errors.New("not a JSON array of texts")
	}
	for _, t := range list {
		w.addTag(t)
	}
	return nil
}
