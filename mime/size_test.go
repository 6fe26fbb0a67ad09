package mime

import (
	"bytes"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
)

// The size of a text that needs no decoding is counted while the structure is read: it must be what a reader gets.
func TestTextSizes(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	pieces := []string{"\r\n", "\r\n", "\n", "\r", "\r\r\n", "a", "ü", "\xff", "line", "--b", "--b--", "\r\n--b\r\n\r\n", "\r\n--b--\r\n", "From x\r\n", "X: y\r\n", " ", "\x00", strings.Repeat("long", 20_000)}
	heads := []string{
		"", "\r\n", "Subject: x\r\n\r\n", "Content-Type: text/html; charset=utf-8\r\n\r\n", "Content-Type: text/plain; charset=iso-8859-1\r\n\r\n",
		"Content-Type: text/plain; charset=no-such\n\n", "From y\r\n", "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n",
		"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/html; charset=us-ascii\r\n\r\n",
	}
	plain := 0
	for range 20_000 {
		var b strings.Builder
		b.WriteString(heads[r.IntN(len(heads))])
		for range r.IntN(8) {
			i := r.IntN(len(pieces) - 1)
			if r.IntN(500) == 0 {
				i = len(pieces) - 1
			}
			b.WriteString(pieces[i])
		}
		source := b.String()
		m, err := Parse(strings.NewReader(source), int64(len(source)), Limits{})
		if err != nil {
			t.Fatalf("%q: %v", source, err)
		}
		for _, p := range []*Part{m.Text, m.HTML} {
			if p == nil {
				continue
			}
			plain++
			got, err := io.ReadAll(p.Open())
			if err != nil || int64(len(got)) != p.Size {
				t.Fatalf("%.2000q: %v; size %d, read %d: %.2000q", source, err, p.Size, len(got), got)
			}
			if bytes.IndexByte(got, '\r') >= 0 {
				t.Fatalf("%.2000q: a CR in %.2000q", source, got)
			}
		}
	}
	if plain < 10_000 {
		t.Errorf("only %d texts", plain)
	}
}
