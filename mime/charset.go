package mime

import (
	"bufio"
	"bytes"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/emersion/go-message/charset"
	"golang.org/x/text/encoding/charmap"
	"golang.org/x/text/encoding/korean"
	"golang.org/x/text/encoding/simplifiedchinese"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/encoding/unicode/utf32"
	"golang.org/x/text/transform"
)

// charsetAlias names charsets as mailers spell them.
var charsetAlias = map[string]string{
	"utf8": "utf-8", "utf_8": "utf-8", "x-utf-8": "utf-8", "unicode-1-1-utf-8": "utf-8", "utf-8n": "utf-8", "cp65001": "utf-8", "utf8mb4": "utf-8", "utf-8-sig": "utf-8",
	"ascii": "us-ascii", "us ascii": "us-ascii", "ansi_x3.4-1968": "us-ascii", "646": "us-ascii", "iso646-us": "us-ascii",
	"7bit": "", "8bit": "", "binary": "", "unknown-8bit": "", "x-unknown": "", "default": "", "none": "", "unknown": "",
	"utf7": "utf-7", "unicode-1-1-utf-7": "utf-7", "x-unicode-2-0-utf-7": "utf-7",
	"utf16": "utf-16", "ucs-2": "utf-16", "iso-10646-ucs-2": "utf-16", "utf16le": "utf-16le", "utf16be": "utf-16be",
	"latin1": "iso-8859-1", "latin-1": "iso-8859-1", "iso8859-1": "iso-8859-1", "iso_8859-1": "iso-8859-1", "iso8859_1": "iso-8859-1", "8859-1": "iso-8859-1",
	"ansi": "windows-1252", "cp-1252": "windows-1252", "win-1251": "windows-1251", "x-mac-roman": "macintosh",
	"ks_c_5601": "euc-kr", "ks_c_5601-1987": "euc-kr", "ks_c-5601-1987": "euc-kr", "ksc5601": "euc-kr", "cp949": "euc-kr", "windows-949": "euc-kr", "uhc": "euc-kr",
	"cp932": "shift_jis", "ms932": "shift_jis", "windows-31j": "shift_jis", "sjis": "shift_jis", "x-sjis": "shift_jis", "shift-jis": "shift_jis", "eucjp": "euc-jp",
	"cp936": "gbk", "ms936": "gbk", "x-gbk": "gbk", "gb2312": "gbk", "gb_2312-80": "gbk", "gb18030": "gb18030", "cp950": "big5", "big5-hkscs": "big5",
	"cp874": "windows-874", "tis-620": "windows-874", "tis620": "windows-874", "iso-8859-8-i": "iso-8859-8", "iso-8859-6-i": "iso-8859-6",
	"hz": "hz-gb-2312", "csiso2022kr": "iso-2022-kr",
	"iso-2022-jp-ms": "iso-2022-jp", "iso-2022-jp-1": "iso-2022-jp", "iso-2022-jp-2": "iso-2022-jp", "cp50220": "iso-2022-jp", "cp50221": "iso-2022-jp",
}

// charsetName gives the canonical name; "" stands for none declared.
func charsetName(name string) string {
	name, _, _ = strings.Cut(strings.ToLower(strings.Trim(name, " \t\"'")), "*")
	if alias, ok := charsetAlias[name]; ok {
		return alias
	}
	if cp, ok := strings.CutPrefix(name, "cp125"); ok && len(cp) == 1 {
		return "windows-125" + cp
	}
	return name
}

// charsetReader converts r to UTF-8. It reports false for a charset that it does not know; then, and
// for undeclared text and US-ASCII, the octets are to be judged (see guessReader).
func charsetReader(name string, r io.Reader) (io.Reader, bool) {
	var t transform.Transformer
	switch name {
	case "", "us-ascii":
		return nil, false
	case "utf-8":
		t = utf8Fix{}
	case "utf-7":
		t = &utf7{}
	case "utf-16":
		return utf16Reader(r), true
	case "utf-32":
		t = utf32.UTF32(utf32.BigEndian, utf32.UseBOM).NewDecoder()
	case "utf-32le":
		t = utf32.UTF32(utf32.LittleEndian, utf32.UseBOM).NewDecoder()
	case "utf-32be":
		t = utf32.UTF32(utf32.BigEndian, utf32.UseBOM).NewDecoder()
	case "hz-gb-2312":
		t = simplifiedchinese.HZGB2312.NewDecoder()
	case "iso-2022-kr":
		t = transform.Chain(&iso2022kr{}, korean.EUCKR.NewDecoder())
	case "iso-2022-cn", "iso-2022-cn-ext", "replacement":
		return nil, false // the WHATWG index turns the whole text into one U+FFFD
	default:
		cr, err := charset.Reader(name, r)
		return cr, err == nil
	}
	return transform.NewReader(r, t), true
}

// guess says how undeclared octets are read.
type guess uint8

const (
	guessUTF8    guess = iota // as UTF-8; what is not is U+FFFD
	guessWindows              // as Windows-1252, as browsers read "us-ascii"
)

func guessReader(g guess, r io.Reader) io.Reader {
	if g == guessWindows {
		return transform.NewReader(r, charmap.Windows1252.NewDecoder())
	}
	return transform.NewReader(r, utf8Fix{})
}

// decodeCharset converts a short text. ok is false when it is not all valid in its charset.
func decodeCharset(name string, b []byte) (text string, ok bool) {
	name = charsetName(name)
	if isASCII(b) && !escapes(name) {
		return string(b), true
	}
	r, known := charsetReader(name, bytes.NewReader(b))
	if !known {
		return toUTF8(b), isASCII(b)
	}
	if name == "utf-8" && utf8.Valid(b) {
		return string(b), true
	}
	out, err := io.ReadAll(r)
	if err != nil {
		return toUTF8(b), false
	}
	return string(out), !bytes.Contains(out, []byte("\uFFFD"))
}

// escapes reports whether 7-bit octets are not simply ASCII in a charset.
func escapes(name string) bool {
	return strings.HasPrefix(name, "utf-") && name != "utf-8" || strings.HasPrefix(name, "iso-2022") || strings.HasPrefix(name, "hz") ||
		strings.HasPrefix(name, "ibm") || strings.HasPrefix(name, "cp") || strings.HasPrefix(name, "shift")
}

// utf8Fix replaces each maximal ill-formed sequence by U+FFFD (Unicode 3.9, as browsers do).
type utf8Fix struct{ transform.NopResetter }

func (utf8Fix) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		// Whole runs of good text first.
		run := src[nSrc:min(len(src), nSrc+len(dst)-nDst)]
		if n := validPrefix(run); n > 0 {
			nDst += copy(dst[nDst:], run[:n])
			nSrc += n
			continue
		}
		rest := src[nSrc:]
		if !atEOF && !utf8.FullRune(rest) {
			return nDst, nSrc, transform.ErrShortSrc
		}
		if r, size := utf8.DecodeRune(rest); r != utf8.RuneError || size > 1 {
			return nDst, nSrc, transform.ErrShortDst // valid, but no room
		}
		if len(dst)-nDst < 3 {
			return nDst, nSrc, transform.ErrShortDst
		}
		nDst += copy(dst[nDst:], "\uFFFD")
		nSrc += illFormedLen(rest)
	}
	return nDst, nSrc, nil
}

// validPrefix gives the length of the longest prefix of b that is valid UTF-8.
func validPrefix(b []byte) int {
	if utf8.Valid(b) {
		return len(b)
	}
	n := 0
	for n < len(b) {
		if b[n] < utf8.RuneSelf {
			n++
			continue
		}
		r, size := utf8.DecodeRune(b[n:])
		if r == utf8.RuneError && size <= 1 {
			break
		}
		n += size
	}
	return n
}

// illFormedLen gives the length of the maximal subpart at the start of b, which is not well-formed (Unicode table 3-7).
func illFormedLen(b []byte) int {
	lo, hi, want := byte(0x80), byte(0xBF), 0
	switch c := b[0]; {
	case 0xC2 <= c && c <= 0xDF:
		want = 1
	case 0xE0 <= c && c <= 0xEF:
		want = 2
		switch c {
		case 0xE0:
			lo = 0xA0
		case 0xED:
			hi = 0x9F
		}
	case 0xF0 <= c && c <= 0xF4:
		want = 3
		switch c {
		case 0xF0:
			lo = 0x90
		case 0xF4:
			hi = 0x8F
		}
	}
	n := 1
	for n <= want && n < len(b) && lo <= b[n] && b[n] <= hi {
		n++
		lo, hi = 0x80, 0xBF
	}
	return n
}

// utf16Reader reads UTF-16 by its byte order mark, or else by where its zero octets are:
// RFC 2781 4.3 says big-endian, Windows software writes little-endian.
func utf16Reader(r io.Reader) io.Reader {
	br := bufio.NewReaderSize(r, 512)
	head, _ := br.Peek(512)
	var even, odd int
	for i, c := range head {
		if c == 0 {
			if i%2 == 0 {
				even++
			} else {
				odd++
			}
		}
	}
	order := unicode.BigEndian
	if odd > even {
		order = unicode.LittleEndian
	}
	return transform.NewReader(br, unicode.UTF16(order, unicode.UseBOM).NewDecoder())
}

// utf7 decodes RFC 2152.
type utf7 struct {
	shifted bool
	fresh   bool // nothing since the "+"
	bits    uint32
	n       uint
	high    rune // a high surrogate that waits for its partner
}

func (u *utf7) Reset() { *u = utf7{} }

func (u *utf7) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	put := func(r rune) { nDst += utf8.EncodeRune(dst[nDst:], r) }
	lone := func() {
		if u.high != 0 {
			put(utf8.RuneError)
			u.high = 0
		}
	}
	for ; nSrc < len(src); nSrc++ {
		if len(dst)-nDst < 2*utf8.UTFMax {
			return nDst, nSrc, transform.ErrShortDst
		}
		c := src[nSrc]
		if !u.shifted {
			switch {
			case c == '+':
				*u = utf7{shifted: true, fresh: true}
			case c >= utf8.RuneSelf:
				put(utf8.RuneError)
			default:
				put(rune(c))
			}
			continue
		}
		v := base64Value[c]
		if v > 63 {
			lone()
			u.shifted = false
			switch {
			case c == '-' && u.fresh:
				put('+')
			case c == '-':
			case c >= utf8.RuneSelf:
				put(utf8.RuneError)
			default:
				put(rune(c))
			}
			continue
		}
		u.fresh = false
		u.bits = u.bits<<6 | uint32(v)
		u.n += 6
		if u.n < 16 {
			continue
		}
		u.n -= 16
		r := rune(u.bits >> u.n & 0xFFFF)
		switch {
		case u.high != 0 && 0xDC00 <= r && r <= 0xDFFF:
			put(utf16.DecodeRune(u.high, r))
			u.high = 0
		case 0xD800 <= r && r <= 0xDBFF:
			lone()
			u.high = r
		default:
			lone()
			put(r) // a lone low surrogate becomes U+FFFD
		}
	}
	if atEOF && u.high != 0 {
		if len(dst)-nDst < utf8.UTFMax {
			return nDst, nSrc, transform.ErrShortDst
		}
		lone()
	}
	return nDst, nSrc, nil
}

// iso2022kr turns RFC 1557 into EUC-KR: shifted octets get their high bit.
type iso2022kr struct {
	shifted bool
	esc     int // octets of ESC $ ) C seen
}

func (k *iso2022kr) Reset() { *k = iso2022kr{} }

func (k *iso2022kr) Transform(dst, src []byte, _ bool) (nDst, nSrc int, err error) {
	const designator = "\x1b$)C"
	for ; nSrc < len(src); nSrc++ {
		c := src[nSrc]
		switch {
		case c == designator[k.esc]:
			k.esc = (k.esc + 1) % len(designator)
			continue
		case c == 0x0E || c == 0x0F:
			k.shifted = c == 0x0E
			k.esc = 0
			continue
		}
		k.esc = 0
		if nDst == len(dst) {
			return nDst, nSrc, transform.ErrShortDst
		}
		if c == '\n' {
			k.shifted = false // each line starts in ASCII
		}
		if k.shifted && c > ' ' {
			c |= 0x80
		}
		dst[nDst] = c
		nDst++
	}
	return nDst, nSrc, nil
}

// toLF turns CRLF and lone CR into LF.
type toLF struct{ transform.NopResetter }

func (toLF) Transform(dst, src []byte, atEOF bool) (nDst, nSrc int, err error) {
	for nSrc < len(src) {
		if nDst == len(dst) {
			return nDst, nSrc, transform.ErrShortDst
		}
		run := src[nSrc:min(len(src), nSrc+len(dst)-nDst)]
		i := bytes.IndexByte(run, '\r')
		if i < 0 {
			i = len(run)
		}
		if i > 0 {
			nDst += copy(dst[nDst:], run[:i])
			nSrc += i
			continue
		}
		if nSrc+1 == len(src) && !atEOF {
			return nDst, nSrc, transform.ErrShortSrc
		}
		dst[nDst] = '\n'
		nDst++
		nSrc++
		if nSrc < len(src) && src[nSrc] == '\n' {
			nSrc++
		}
	}
	return nDst, nSrc, nil
}

// toCRLF turns a lone LF into CRLF.
type toCRLF struct {
	cr bool // the octet before was CR
}

func (t *toCRLF) Reset() { t.cr = false }

func (t *toCRLF) Transform(dst, src []byte, _ bool) (nDst, nSrc int, err error) {
	for ; nSrc < len(src); nSrc++ {
		c := src[nSrc]
		if len(dst)-nDst < 2 {
			return nDst, nSrc, transform.ErrShortDst
		}
		if c == '\n' && !t.cr {
			dst[nDst] = '\r'
			nDst++
		}
		dst[nDst] = c
		nDst++
		t.cr = c == '\r'
	}
	return nDst, nSrc, nil
}
