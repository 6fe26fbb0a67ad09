package bigpost

import (
	"encoding/json"
	"errors"
	"io"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

// document has a mail with everything a string may hold, and strings that are far too long to be kept.
func document(t *testing.T, mail string) string {
	t.Helper()
	b, err := json.Marshal([]any{
		map[string]any{"event": "inbound", "msg": map[string]any{"raw_msg": mail, "email": "a@b.example", "html": strings.Repeat("<p>\"\\", 40000), "raw": "not this"}},
		map[string]any{"event": "other", "raw_msg": "nor this", "n": []any{1.5, true, nil, map[string]any{}, []any{}}},
		map[string]any{"event": "inbound", "msg": map[string]any{"raw_msg": ""}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestSkim(t *testing.T) {
	mail := "A\r\n\t\"\\/\u20ac \u0000 \U0001f600 & + % \x7f" + strings.Repeat("long line ", 20000)
	doc := " " + document(t, mail) + "\r\n"
	form, err := Form([]byte("key=a%3Bb;c&mandrill_events=" + url.QueryEscape(doc) + "&&x"))
	if err != nil || len(form) != 3 || form[0].Name != "key" || form[2].Name != "x" {
		t.Fatalf("got %v, %v", form, err)
	}
	if b, err := io.ReadAll(form[0].Value.Open()); err != nil || string(b) != "a;b;c" {
		t.Errorf("got %q, %v", b, err)
	}
	for name, text := range map[string]Text{"plain": Plain([]byte(doc)), "form": form[1].Value} {
		skeleton, mails, err := Skim(text, "*", "msg", "raw_msg")
		if err != nil || len(mails) != 2 {
			t.Fatalf("%s: %d mails, %v", name, len(mails), err)
		}
		if len(skeleton) > 1000 {
			t.Errorf("%s: %d bytes are left", name, len(skeleton))
		}
		var items []struct {
			Event string
			Msg   struct {
				Raw   string `json:"raw_msg"`
				Other string `json:"raw"`
				HTML  string
			}
		}
		if err := json.Unmarshal(skeleton, &items); err != nil || len(items) != 3 || items[0].Msg.HTML != "" || items[0].Msg.Other != "not this" {
			t.Fatalf("%s: %s, %v", name, skeleton, err)
		}
		got, ok := At(mails, items[0].Msg.Raw)
		if !ok {
			t.Fatalf("%s: %q is not there", name, items[0].Msg.Raw)
		}
		for how, r := range map[string]io.Reader{"at once": got.Open(), "by bytes": iotest.OneByteReader(got.Open())} {
			if b, err := io.ReadAll(r); err != nil || string(b) != mail {
				t.Errorf("%s, %s: %.100q, %v", name, how, b, err)
			}
		}
		if _, ok := At(mails, items[2].Msg.Raw); ok {
			t.Errorf("%s: an empty mail is none", name)
		}
		one, err1 := Digest(got, "a")
		two, err2 := Digest(got, "b")
		if one == two || err1 != nil || err2 != nil {
			t.Errorf("%s: digests %s, %s", name, one, two)
		}
	}
}

func TestMalformed(t *testing.T) {
	for _, doc := range []string{
		"", "{", `{"a"`, `{"a":`, `{"a" 1}`, `{"a":1`, `{"a":1 "b":2}`, `{a:1}`, `["x]`, `["x\`, `[1] 2`, strings.Repeat("[", 1000),
		"[" + strings.Repeat(`"0123456789",`, 1<<19) + `""]`, `{"` + strings.Repeat("k", 1<<20) + `":1}`,
	} {
		if _, _, err := Skim(Plain([]byte(doc)), "raw"); !errors.Is(err, ErrMalformed) {
			t.Errorf("%.40q: %v", doc, err)
		}
	}
	for _, s := range []string{`\x`, `\u12`, `\u12g4`, `\`} {
		text := Text{data: []byte(s), json: true}
		if _, err := io.ReadAll(text.Open()); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, f := range []string{"a=%", "a=%1", "a=%zz", "%zz=1"} {
		if _, err := Form([]byte(f)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: %v", f, err)
		}
	}
}

// FuzzSkim: whatever comes, no crash; a document that JSON accepts is read like JSON.
func FuzzSkim(f *testing.F) {
	for _, s := range []string{`{"raw":"a\n\ud83d\ude00\ud83d"}`, `[1,{"raw":"x"}]`, `{"raw":1,"raw":"2"}`, "\"\xff\"", "{\"raw\":\"\xa0\xa0\"}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		skeleton, mails, err := Skim(Plain(doc), "raw")
		var want struct {
			Raw string `json:"raw"`
		}
		var top map[string]json.RawMessage
		if json.Unmarshal(doc, &top) != nil || json.Unmarshal(doc, &want) != nil {
			return
		}
		if err != nil {
			if len(doc) < 100 {
				t.Fatalf("%q: %v", doc, err)
			}
			return
		}
		var got struct {
			Raw string `json:"raw"`
		}
		if err := json.Unmarshal(skeleton, &got); err != nil {
			t.Fatalf("%q became %q", doc, skeleton)
		}
		raw, ok := At(mails, got.Raw)
		b, err := io.ReadAll(raw.Open())
		// JSON has U+FFFD for each byte that is no UTF-8, a mail keeps its bytes.
		if _, exact := top["raw"]; exact && ok && (err != nil || string([]rune(string(b))) != want.Raw) {
			t.Fatalf("%q: got %q, %v, want %q", doc, b, err, want.Raw)
		}
	})
}
