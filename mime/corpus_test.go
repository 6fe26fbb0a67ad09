package mime

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// corpus gives the paths of all mails below testdata/corpus.
func corpus(t testing.TB) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir("testdata/corpus", func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".eml") {
			paths = append(paths, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(paths) < 250 {
		t.Fatalf("got %d mails, want 250", len(paths))
	}
	return paths
}

func parseBytes(t testing.TB, b []byte) *Message {
	t.Helper()
	m, err := Parse(bytes.NewReader(b), int64(len(b)), Limits{})
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return m
}

// read reads a stream and checks that it is as long as promised.
func read(t testing.TB, r io.ReadCloser, size int64) []byte {
	t.Helper()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatalf("read: %v", err)
	}
	if int64(len(b)) != size {
		t.Fatalf("got %d bytes, promised %d", len(b), size)
	}
	return b
}

// checkInvariants holds for every message whatever its source.
func checkInvariants(t testing.TB, m *Message) {
	t.Helper()
	for _, p := range []*Part{m.Text, m.HTML, m.AMP, m.Calendar} {
		if p == nil {
			continue
		}
		b := read(t, p.Open(), p.Size)
		if !utf8.Valid(b) {
			t.Error("text is not valid UTF-8")
		}
		if bytes.IndexByte(b, '\r') >= 0 {
			t.Error("text holds CR")
		}
		if again := read(t, p.Open(), p.Size); !bytes.Equal(again, b) {
			t.Error("a second Open gives other text")
		}
	}
	for i := range m.Attachments {
		a := &m.Attachments[i]
		b := read(t, a.Open(), a.Size)
		if again := read(t, a.Open(), a.Size); !bytes.Equal(again, b) {
			t.Error("a second Open gives other octets")
		}
		if len(a.Filename) > 255 || strings.ContainsAny(a.Filename, "/\\\r\n\x00") {
			t.Errorf("unsafe file name %q", a.Filename)
		}
	}
	src, err := io.ReadAll(m.Source())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range m.Header {
		if !bytes.Contains(src, f.Raw) {
			t.Errorf("field %s is not in the source as it stands", f.Name)
		}
	}
	var walk func(e *Entity)
	walk = func(e *Entity) {
		if e.Start > e.BodyStart || e.BodyStart > e.End || e.End > m.Size {
			t.Errorf("offsets %d %d %d of %d", e.Start, e.BodyStart, e.End, m.Size)
		}
		for _, c := range e.Children {
			if c.Start < e.BodyStart || c.End > e.End {
				t.Errorf("child %d-%d outside %d-%d", c.Start, c.End, e.BodyStart, e.End)
			}
			walk(c)
		}
		if len(e.Children) > 0 {
			return
		}
		body := src[e.BodyStart:e.End]
		if got, want := e.Has8Bit, !isASCII(body); got != want && len(body) > 0 {
			t.Errorf("Has8Bit %v, want %v", got, want)
		}
		if got, want := e.ValidUTF8, utf8.Valid(body); got != want {
			t.Errorf("ValidUTF8 %v, want %v", got, want)
		}
	}
	walk(m.Root)
	clean := func(what, s string) {
		if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7F }) {
			t.Errorf("%s %q holds control characters or is not UTF-8", what, s)
		}
	}
	clean("subject", m.Subject)
	clean("message id", m.MessageID)
	for _, f := range m.Header {
		clean(f.Name, f.Value)
	}
	for _, list := range [][]Address{m.From, m.Sender, m.ReplyTo, m.To, m.Cc} {
		for _, a := range list {
			clean("name", a.Name)
			clean("address", a.Addr)
			if a.Addr == "" {
				t.Error("empty address")
			}
		}
	}
	if err := m.WriteJSON(io.Discard); err != nil {
		t.Errorf("WriteJSON: %v", err)
	}
}

func TestCorpus(t *testing.T) {
	for _, path := range corpus(t) {
		t.Run(strings.TrimPrefix(path, "testdata/corpus/"), func(t *testing.T) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			m := parseBytes(t, b)
			checkInvariants(t, m)
			opts := []cmp.Option{
				cmpopts.IgnoreUnexported(Message{}, Part{}, Attachment{}, Entity{}),
			}
			if diff := cmp.Diff(m, parseBytes(t, b), opts...); diff != "" {
				t.Errorf("a second Parse differs:\n%s", diff)
			}
		})
	}
}
