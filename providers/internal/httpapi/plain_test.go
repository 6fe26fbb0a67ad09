package httpapi

import (
	"bytes"
	"encoding/json"
	"math/rand/v2"
	"testing"
)

// plain finds the first byte that needs an escape wherever it stands, whatever stands beside it.
func TestPlain(t *testing.T) {
	special := func(c byte) bool { return c < 0x20 || c >= 0x80 || c == '"' || c == '\\' }
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 20000 {
		b := make([]byte, rnd.IntN(40))
		for i := range b {
			switch rnd.IntN(12) {
			case 0:
				b[i] = byte(rnd.IntN(256))
			case 1:
				b[i] = []byte{0x1f, 0x20, 0x21, '"', '#', '[', '\\', ']', 0x7f, 0x80, 0xff, 0}[rnd.IntN(12)]
			default:
				b[i] = byte(0x20 + rnd.IntN(0x5f))
			}
		}
		want := bytes.IndexFunc([]byte(latin(b)), func(r rune) bool { return special(byte(r)) })
		if want < 0 {
			want = len(b)
		} else {
			want = len([]rune(latin(b)[:want]))
		}
		if got := plain(b); got != want {
			t.Fatalf("%q: got %d, want %d", b, got, want)
		}
	}
}

// latin makes one rune of each byte.
func latin(b []byte) string {
	r := make([]rune, len(b))
	for i, c := range b {
		r[i] = rune(c)
	}
	return string(r)
}

func BenchmarkEscape(b *testing.B) {
	line := append(bytes.Repeat([]byte("x"), 70), '\r', '\n')
	in := bytes.Repeat(line, 1000)
	out, used := appendEscaped(nil, in, true)
	if used != len(in) || !json.Valid(append(append([]byte{'"'}, out...), '"')) {
		b.Fatal("not JSON")
	}
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		out, _ = appendEscaped(out[:0], in, true)
	}
}
