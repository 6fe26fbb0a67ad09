package httpapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	stdmime "mime"
	"mime/multipart"
	"net/url"
	"strings"
	"testing"
	"testing/iotest"
)

func opener(s string) func() io.ReadCloser {
	return func() io.ReadCloser { return io.NopCloser(strings.NewReader(s)) }
}

func readBody(t *testing.T, b *Body) string {
	t.Helper()
	var got [2]string
	for i := range got {
		r := b.Open()
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		got[i] = string(data)
	}
	if got[0] != got[1] {
		t.Fatal("the second opening gives other bytes")
	}
	if int64(len(got[0])) != b.Size() {
		t.Fatalf("Size() = %d, got %d bytes", b.Size(), len(got[0]))
	}
	return got[0]
}

func TestJSONBody(t *testing.T) {
	text := "a \"q\" \\ \x00\x01\x1f\x7f\r\n\t<b>&amp; é 😀 \u2028\u2029 bad:\xff\xc3( end\xe2\x82"
	for _, tt := range []struct {
		name   string
		repeat int
	}{{"in memory", 1}, {"streamed", 1200}} {
		t.Run(tt.name, func(t *testing.T) {
			long := strings.Repeat("x"+text[:len(text)-5], tt.repeat) + text[len(text)-5:]
			data := strings.Repeat("\x00\xff\x10z", 7000+200*tt.repeat)[1:]
			j := NewJSON()
			w := struct {
				HTML  Value  `json:"html"`
				File  Value  `json:"file"`
				Empty Value  `json:"empty"`
				Raw   Value  `json:"raw"`
				None  Value  `json:"none,omitzero"`
				Null  Value  `json:"null"`
				Plain string `json:"plain"`
			}{
				HTML: j.Text(opener(long)), File: j.Base64(int64(len(data)), opener(data)),
				Empty: j.Base64(0, opener("")), Raw: j.Raw(7, opener(`{"a":1}`)), Plain: `<a href="x&y">segment:`,
			}
			b, err := j.Body(w)
			if err != nil {
				t.Fatal(err)
			}
			s := readBody(t, b)
			if !strings.Contains(s, `<a href=`) {
				t.Error("HTML was escaped")
			}
			var got struct {
				HTML, File, Empty, Plain string
				Raw                      map[string]int
				Null                     *string
			}
			if err := json.Unmarshal([]byte(s), &got); err != nil {
				t.Fatalf("%v in %.200q", err, s)
			}
			// What encoding/json makes of the same text.
			enc, _ := json.Marshal(long)
			var ref string
			_ = json.Unmarshal(enc, &ref)
			if got.HTML != ref {
				t.Errorf("text differs: got %.80q, want %.80q", got.HTML, ref)
			}
			if got.File != base64.StdEncoding.EncodeToString([]byte(data)) {
				t.Error("base64 differs")
			}
			if got.Empty != "" || got.Raw["a"] != 1 || got.Null != nil || strings.Contains(s, "none") {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// TestEscapeAtEveryBoundary reads text through a reader that gives one byte at a time.
func TestEscapeAtEveryBoundary(t *testing.T) {
	text := "a😀é\u2028\xf0\x9f\x98 \xc3\"\\\n"
	want, _ := json.Marshal(text)
	got, err := io.ReadAll(newEscapeReader(io.NopCloser(iotest.OneByteReader(strings.NewReader(text)))))
	if err != nil {
		t.Fatal(err)
	}
	var a, b string
	if err := json.Unmarshal(append(append([]byte{'"'}, got...), '"'), &a); err != nil {
		t.Fatal(err)
	}
	_ = json.Unmarshal(want, &b)
	if a != b {
		t.Errorf("got %q, want %q", a, b)
	}
}

func TestBodyLength(t *testing.T) {
	for _, tt := range []struct {
		name string
		size int64
		data string
		ok   bool
	}{
		{"exact", 5, "12345", true},
		{"empty", 0, "", true},
		{"short", 6, "12345", false},
		{"long", 4, "12345", false},
		{"not empty", 0, "1", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, one := range []bool{false, true} {
				b := Stream("x", tt.size, func() io.ReadCloser {
					if one {
						return io.NopCloser(iotest.OneByteReader(strings.NewReader(tt.data)))
					}
					return io.NopCloser(strings.NewReader(tt.data))
				})
				got, err := io.ReadAll(b.Open())
				if tt.ok != (err == nil) {
					t.Fatalf("got %v", err)
				}
				if !tt.ok && (!errors.Is(err, ErrLength) || int64(len(got)) >= max(tt.size, 1)) {
					t.Errorf("got %d bytes of %d, %v: a wrong body must not be complete", len(got), tt.size, err)
				}
			}
		})
	}
}

func TestTextError(t *testing.T) {
	j := NewJSON()
	broken := errors.New("disk broke")
	v := j.Text(func() io.ReadCloser { return io.NopCloser(iotest.ErrReader(broken)) })
	if _, err := j.Body(v); !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
}

func TestFormAndMultipart(t *testing.T) {
	f := Form(url.Values{"a": {"1 &", "2"}})
	if got := readBody(t, f); got != "a=1+%26&a=2" {
		t.Errorf("got %s", got)
	}
	m := NewMultipart()
	m.Field(`na"me`+"\r\nX: y", "value")
	m.StreamField("mime", 3, opener("abc"))
	m.File("file", "r\"ä\r\n.txt", "text/plain; charset=utf-8", 4, opener("data"))
	m.File("file", "x", "nonsense\r\nX-Evil: 1", 1, opener("d"))
	b := m.Body()
	_, params, err := stdmime.ParseMediaType(b.ContentType)
	if err != nil {
		t.Fatal(err)
	}
	form, err := multipart.NewReader(strings.NewReader(readBody(t, b)), params["boundary"]).ReadForm(1 << 20)
	if err != nil {
		t.Fatal(err)
	}
	if got := form.Value["mime"]; len(got) != 1 || got[0] != "abc" {
		t.Errorf("got %q", form.Value)
	}
	files := form.File["file"]
	if len(files) != 2 || files[0].Filename != `r%22ä%0D%0A.txt` || files[0].Header.Get("Content-Type") != "text/plain; charset=utf-8" {
		t.Errorf("got %+v", files[0])
	}
	if files[1].Header.Get("Content-Type") != "application/octet-stream" || files[1].Header.Get("X-Evil") != "" {
		t.Errorf("got %+v", files[1].Header)
	}
}

// TestExtra: members are merged into the body, or into each of its items, and streams stay where they are.
func TestExtra(t *testing.T) {
	text := func() io.ReadCloser { return io.NopCloser(strings.NewReader(`say "hi"`)) }
	for _, tt := range []struct {
		name, want string
		wire       func(v Value) any
	}{
		{"object", `{"html":"say \"hi\"","n":12345678901234567890,"new":true,"settings":{"a":1,"b":2},"tags":["x","y"]}`, func(v Value) any {
			return map[string]any{"html": v, "n": json.Number("12345678901234567890"), "settings": map[string]any{"a": 1, "b": 1}, "tags": []string{"x"}}
		}},
		{"list", `[{"html":"say \"hi\"","new":true,"settings":{"b":2},"tags":["y"]},{"new":true,"settings":{"b":2},"tags":["y"]}]`, func(v Value) any {
			return []any{map[string]any{"html": v}, map[string]any{"tags": "not a list"}}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			j := NewJSON()
			j.Extra = map[string]any{"settings": map[string]any{"b": 2}, "tags": []any{"y"}, "new": true}
			body, err := j.Body(tt.wire(j.Text(text)))
			if err != nil {
				t.Fatal(err)
			}
			r := body.Open()
			defer r.Close()
			b, err := io.ReadAll(r)
			if err != nil || string(b) != tt.want || body.Size() != int64(len(b)) {
				t.Errorf("got  %s, %v, size %d\nwant %s", b, err, body.Size(), tt.want)
			}
		})
	}
}
