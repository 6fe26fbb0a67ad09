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
)

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

// jsonSwitch reads true, false, 0, 1 and their texts.
func jsonSwitch(raw json.RawMessage) (Switch, error) {
	s, ok := text(raw)
	if !ok {
		return Default, nil
	}
	return parseBool(s)
}

// members is an options object on its way through the parsers; what no parser takes is left over.
type members struct {
	w    *wish
	o    map[string]json.RawMessage
	errs []error
}

// take hands a member to f, if it is there.
func (m *members) take(key string, f func(json.RawMessage) error) {
	raw, ok := m.o[key]
	if !ok {
		return
	}
	delete(m.o, key)
	if err := f(raw); err != nil {
		m.errs = append(m.errs, fmt.Errorf("%s: %w", key, err))
	}
}

func (m *members) tags(raw json.RawMessage) error {
	list, err := stringOrList(raw)
	for _, t := range list {
		m.w.addTag(t)
	}
	return err
}

func (m *members) metadata(raw json.RawMessage) error {
	o, err := decodeObject(string(raw))
	if err != nil {
		return err
	}
	addMetaObject(m.w, o)
	return nil
}

func (m *members) track(clicks bool) func(json.RawMessage) error {
	return func(raw json.RawMessage) error {
		s, err := jsonSwitch(raw)
		if err != nil {
			return err
		}
		return m.w.setTrack(clicks, s)
	}
}

// rest gives the error for all that went wrong and all that no call can carry.
func (m *members) rest() error {
	if left := slices.Sorted(maps.Keys(m.o)); len(left) > 0 {
		m.errs = append(m.errs, fmt.Errorf("not carried: %s", strings.Join(left, ", ")))
	}
	if len(m.errs) == 0 {
		return nil
	}
	var s []string
	for _, e := range m.errs {
		s = append(s, e.Error())
	}
	return errors.New(strings.Join(s, "; "))
}

func sendgridJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	m := members{w: w, o: o}
	m.take("category", m.tags)
	m.take("unique_args", m.metadata)
	m.take("send_at", func(raw json.RawMessage) error {
		s, _ := text(raw)
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n <= 0 || n > 1<<36 {
			return errors.New("not a Unix time")
		}
		return w.setSendAt(time.Unix(n, 0))
	})
	m.take("filters", func(raw json.RawMessage) error {
		o, err := decodeObject(string(raw))
		if err != nil {
			return err
		}
		f := members{w: w, o: o}
		for _, clicks := range []bool{false, true} {
			name := "opentrack"
			if clicks {
				name = "clicktrack"
			}
			f.take(name, func(raw json.RawMessage) error {
				var v struct {
					Settings struct {
						Enable json.RawMessage `json:"enable"`
					} `json:"settings"`
				}
				if json.Unmarshal(raw, &v) != nil {
					return errors.New("not a filter")
				}
				return f.track(clicks)(v.Settings.Enable)
			})
		}
		return f.rest()
	})
	return m.rest()
}

func sparkpostJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	m := members{w: w, o: o}
	m.take("campaign_id", m.tags)
	m.take("tags", m.tags)
	m.take("metadata", m.metadata)
	m.take("options", func(raw json.RawMessage) error {
		o, err := decodeObject(string(raw))
		if err != nil {
			return err
		}
		f := members{w: w, o: o}
		f.take("open_tracking", f.track(false))
		f.take("click_tracking", f.track(true))
		return f.rest()
	})
	return m.rest()
}

func brevoJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	m := members{w: w, o: o}
	m.take("tags", m.tags)
	return m.rest()
}

func unisenderJSON(w *wish, _, value string) error {
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	m := members{w: w, o: o}
	m.take("track_read", m.track(false))
	m.take("track_links", m.track(true))
	m.take("tags", m.tags)
	m.take("metadata", m.metadata)
	return m.rest()
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
