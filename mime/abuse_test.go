package mime

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// nested gives a mail of n multiparts inside one another.
func nested(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n", i, i)
	}
	b.WriteString("\r\ntext\r\n")
	for i := n - 1; i >= 0; i-- {
		fmt.Fprintf(&b, "--b%d--\r\n", i)
	}
	return b.String()
}

func manyParts(n int) string {
	return "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n\r\nx\r\n", n) + "--b--\r\n"
}

func TestCase039_040_041_042_Limits(t *testing.T) {
	tests := []struct {
		name, mail, kind string
	}{
		{"case 39 50 multiparts", nested(50), ""},
		{"case 39 51 multiparts", nested(51), "depth"},
		{"case 39 5000 multiparts", nested(5000), "depth"},
		{"case 39 150000 multiparts", nested(150_000), "depth"},
		{"case 40 1000 parts", manyParts(1000), ""},
		{"case 40 1001 parts", manyParts(1001), "parts"},
		{"case 40 200000 parts", manyParts(200_000), "parts"},
		{"case 40 200000 delimiters", "Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\n", 200_000), ""},
		{"case 41 2 MiB of header", strings.Repeat("X: "+strings.Repeat("y", 2045)+"\r\n", 1024) + "\r\n", "header"},
		{"case 41 50000 fields", strings.Repeat("X: y\r\n", 50_000) + "\r\n", "header"},
		{"case 41 one field of 1 MiB", "X: " + strings.Repeat("y", 1<<20) + "\r\n\r\n", "header"},
		{"case 41 one folded field of 1 MiB", "X: y" + strings.Repeat("\r\n y", 1<<18) + "\r\n\r\n", "header"},
		{"case 41 header of a part", "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nX: " + strings.Repeat("y", 1<<20) + "\r\n\r\n", "header"},
		{
			"case 41 many parts with large headers",
			"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + strings.Repeat("--b\r\nX: "+strings.Repeat("y", 100_000)+"\r\n\r\nz\r\n", 50), "header",
		},
		{"case 42 2000 addresses", "To: a@b" + strings.Repeat(", a@b", 1999) + "\r\n\r\n", ""},
		{"case 42 2001 addresses", "To: a@b" + strings.Repeat(", a@b", 2000) + "\r\n\r\n", "addresses"},
		{"case 42 50000 addresses", "To: a@b" + strings.Repeat(",\r\n a@b", 50_000) + "\r\n\r\n", "addresses"},
		{"case 42 over several fields", strings.Repeat("To: a@b"+strings.Repeat(", a@b", 1000)+"\r\n", 2) + "\r\n", "addresses"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse(strings.NewReader(tt.mail), int64(len(tt.mail)), Limits{})
			var limit *LimitError
			switch {
			case tt.kind == "" && err != nil:
				t.Errorf("got %v", err)
			case tt.kind != "" && (!errors.As(err, &limit) || limit.Kind != tt.kind):
				t.Errorf("got %v, want a limit of %s", err, tt.kind)
			}
		})
	}
	small := Limits{Depth: 1, Parts: 1, HeaderBytes: 100, HeaderFields: 3, Addresses: 1}
	if _, err := Parse(strings.NewReader(nested(1)), int64(len(nested(1))), small); err != nil {
		t.Errorf("within small limits: %v", err)
	}
	if _, err := Parse(strings.NewReader(nested(2)), int64(len(nested(2))), small); err == nil {
		t.Error("a configured limit has no effect")
	}
}

// TestCase039_Early checks that the depth is found while reading: little is read, and next to nothing held.
func TestCase039_Early(t *testing.T) {
	src := &countingReader{r: strings.NewReader(nested(150_000))}
	before := allocated()
	_, err := Parse(src, src.r.Size(), Limits{})
	if err == nil {
		t.Fatal("no error")
	}
	if src.n > 128<<10 {
		t.Errorf("%d bytes read", src.n)
	}
	if got := allocated() - before; got > 1<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}

type countingReader struct {
	r *strings.Reader
	n int
}

func (c *countingReader) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.r.ReadAt(p, off)
	c.n += n
	return n, err
}

func allocated() uint64 {
	var s runtime.MemStats
	runtime.ReadMemStats(&s)
	return s.TotalAlloc
}

// TestCase043_Linear feeds shapes that invite quadratic work. What is linear takes milliseconds; what was quadratic took
// seconds to minutes. The bound on memory is for all that is ever allocated, not for what is held.
func TestCase043_Linear(t *testing.T) {
	const bodySize = 512 << 10
	fill := func(unit string, n int) string { return strings.Repeat(unit, n/len(unit)) }
	header := 200 << 10 // within the limit of a header block
	tests := map[string]string{
		"case 43 encoded words":           "Subject: " + fill("=?utf-8?q?a?= ", header) + "\r\n\r\n",
		"case 43 one encoded word":        "Subject: =?utf-8?b?" + fill("YWFh", header) + "?=\r\n\r\n",
		"case 43 starts of words":         "Subject: " + fill("=?", header) + "\r\n\r\n",
		"case 43 words without an end":    "Subject: " + fill("=?utf-8?q?", header) + "\r\n\r\n",
		"case 43 words and no end":        "Subject: " + fill("=?a?q?x ", header) + "\r\n\r\n",
		"case 43 words and one end":       "To: " + fill("=?a?q?x ", header) + "?=\r\n\r\n",
		"addresses: escaped quotes":       "To: " + fill("\"\\\"\\", header) + "\r\n\r\n",
		"case 43 many names":              "Content-Type: image/x; " + names(20_000) + "\r\n\r\n",
		"case 43 alternating charsets":    "Subject: " + fill("=?utf-8?q?a?= =?koi8-r?q?b?= ", header) + "\r\n\r\n",
		"case 43 20000 continuations":     "Content-Type: image/x; " + numbered(20_000) + "\r\n\r\n",
		"case 43 many parameters":         "Content-Type: image/x; " + fill("a=b;", header) + "\r\n\r\n",
		"case 43 open comments":           "Content-Type: image/x; " + fill("(", header) + "\r\n\r\n",
		"case 43 open comments per value": "Content-Type: image/x; " + fill("a=(;", header) + "\r\n\r\n",
		"case 43 quotes":                  "Content-Type: image/x; " + fill(`a="b;`, header) + "\r\n\r\n",
		"case 43 quotes that close not":   "Content-Type: image/x; a=" + fill(`"b`, header) + "\r\n\r\n",
		"addresses: comments":             "To: " + fill("(", header) + "\r\n\r\n",
		"addresses: quotes":               "To: " + fill(`"`, header) + "a\r\n\r\n",
		"addresses: brackets":             "To: " + fill("<", header) + "\r\n\r\n",
		"addresses: open quotes":          "To: " + fill(`<"`, header) + "\r\n\r\n",
		"addresses: words":                "To: " + fill("a ", header) + "\r\n\r\n",
		"addresses: dots":                 "To: a@" + fill(" .", header) + "\r\n\r\n",
		"addresses: parts":                "To: a" + fill(" @ .", header) + "\r\n\r\n",
		"addresses: colons":               "To: " + fill("a:", header) + "\r\n\r\n",
		"addresses: commas":               "To: " + fill("a b,", header) + "\r\n\r\n",
		"addresses: domain literals":      "To: a@" + fill("[", header) + "\r\n\r\n",
		"addresses: spaced brackets":      "To: " + fill("a < ", header) + "\r\n\r\n",
		"message ids":                     "References: " + fill("<", header) + "\r\n\r\n",
		"encoding comments":               "Content-Transfer-Encoding: " + fill("(", header) + "\r\n\r\n",
		"folds":                           "X: " + fill("\r\n\t", header) + "y\r\n\r\n",
		"lost folds":                      "X: a;\r\n" + fill("a=;\r\n", header) + "\r\n\r\n",
		"date":                            "Date: " + fill("1 ", header) + "\r\n\r\n",
		"body of LF":                      "\n" + fill("\n", bodySize),
		"body of CR":                      "\n" + fill("\r", bodySize),
		"body of CR CR LF":                "\n" + fill("\r\r\n", bodySize),
		"body of dashes":                  "Content-Type: multipart/mixed; boundary=b\n\n" + fill("--\n", bodySize),
		"one line":                        "\n" + fill("x", bodySize),
		"one line of dashes":              "Content-Type: multipart/mixed; boundary=b\n\n" + fill("-", bodySize),
		"base64 of padding":               "Content-Transfer-Encoding: base64\n\n" + fill("QQ==", bodySize),
		"base64 of short lines":           "Content-Transfer-Encoding: base64\n\n" + fill("QUJD\n", bodySize),
		"quoted-printable of =":           "Content-Transfer-Encoding: quoted-printable\n\n" + fill("=", bodySize),
		"quoted-printable of blanks":      "Content-Transfer-Encoding: quoted-printable\n\n=" + fill(" ", bodySize),
		"invalid UTF-8":                   "Content-Type: text/plain; charset=utf-8\n\n" + fill("\xe2", bodySize),
		"UTF-7":                           "Content-Type: text/plain; charset=utf-7\n\n" + fill("+AOk-", bodySize),
	}
	for name, mail := range tests {
		t.Run(name, func(t *testing.T) {
			start, before := time.Now(), allocated()
			m, err := Parse(strings.NewReader(mail), int64(len(mail)), Limits{})
			var limit *LimitError
			if err != nil && !errors.As(err, &limit) {
				t.Fatal(err)
			}
			if m != nil {
				if err := m.WriteJSON(io.Discard); err != nil {
					t.Fatal(err)
				}
			}
			if got := time.Since(start); got > 5*time.Second { // room for the race detector on a busy machine
				t.Errorf("took %v", got)
			}
			if got := allocated() - before; got > 64*uint64(len(mail)) {
				t.Errorf("allocated %d bytes for %d", got, len(mail))
			}
		})
	}
}

func numbered(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "name*%d*=%%41;", n-1-i)
	}
	return b.String()
}

func names(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "a%d=b;", i)
	}
	return b.String()
}

// TestReadError checks that a failing source is an error and not a short mail.
func TestReadError(t *testing.T) {
	boom := errors.New("disk on fire")
	_, err := Parse(failingReader{boom}, 1000, Limits{})
	if !errors.Is(err, boom) {
		t.Errorf("got %v", err)
	}
	if _, err := Parse(strings.NewReader("Subject: x\n\nshort"), 1000, Limits{}); err == nil {
		t.Error("a source shorter than its size is taken for a mail")
	}
}

type failingReader struct{ err error }

func (f failingReader) ReadAt([]byte, int64) (int, error) { return 0, f.err }

// TestBufferEdges moves a mail across the edge of the line buffer, byte by byte.
func TestBufferEdges(t *testing.T) {
	tail := "\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>é</p>\r\n--b--\r\n"
	for shift := range len(tail) + 4 {
		pad := strings.Repeat("x", lineBuffer-len(tail)+shift-60)
		mail := "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n" + pad + tail
		m, err := Parse(strings.NewReader(mail), int64(len(mail)), Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if got := textOf(t, m.HTML); got != "<p>é</p>" {
			t.Fatalf("shift %d: html %q", shift, got)
		}
		if m.Text.Size != int64(len(pad)) {
			t.Fatalf("shift %d: text of %d bytes, want %d", shift, m.Text.Size, len(pad))
		}
		if e := m.Root.Children[1]; !e.Has8Bit || !e.ValidUTF8 {
			t.Fatalf("shift %d: 8-bit %v, UTF-8 %v", shift, e.Has8Bit, e.ValidUTF8)
		}
	}
}

func FuzzParse(f *testing.F) {
	for i, path := range corpus(f) {
		if b, err := os.ReadFile(path); err == nil && len(b) < 8<<10 && i%3 == 0 {
			f.Add(b)
		}
	}
	f.Add([]byte(nested(3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Parse(bytes.NewReader(b), int64(len(b)), Limits{Parts: 50})
		var limit *LimitError
		if errors.As(err, &limit) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		checkInvariants(t, m)
	})
}

func BenchmarkParse(b *testing.B) {
	line := strings.Repeat("QUJD", 19) + "\r\n"
	body := "Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" +
		strings.Repeat("A line of text as people write it, with one é.\r\n", 200) +
		"--b\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(line, 1<<20/len(line)*8) + "--b--\r\n"
	small := "From: a@b\r\nTo: c@d\r\nSubject: x\r\n\r\nhello\r\n"
	for name, mail := range map[string]string{"8MB": body, "small": small} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(mail)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(strings.NewReader(mail), int64(len(mail)), Limits{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
