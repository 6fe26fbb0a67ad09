package mime

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"io"
)

// base64Value maps the alphabet of RFC 2045 6.8; 0xFF is everything else.
var base64Value = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xFF
	}
	for i, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		t[c] = byte(i)
	}
	return t
}()

// base64State decodes what can be decoded: octets outside the alphabet are skipped, missing padding is added, what follows
// padding is a new group.
type base64State struct {
	bits   uint32
	n      int  // characters in bits
	pads   int  // padding characters since the last character
	padded bool // a group was ended by padding
	defect string
}

func (d *base64State) append(dst, src []byte) []byte {
	for _, c := range src {
		v := base64Value[c]
		switch {
		case v <= 63:
			d.bits = d.bits<<6 | uint32(v)
			d.pads = 0
			if d.n++; d.n == 4 {
				dst = append(dst, byte(d.bits>>16), byte(d.bits>>8), byte(d.bits))
				d.bits, d.n = 0, 0
			}
		case c == '=':
			// Padding that does not fill its group is junk, as other readers have it.
			if d.n < 2 {
				continue
			}
			if d.pads++; d.n+d.pads == 4 {
				dst = d.flush(dst)
				d.padded = true
			}
		case c != '\r' && c != '\n' && c != ' ' && c != '\t':
			d.defect = "octets outside the base64 alphabet"
		}
	}
	return dst
}

// flush ends a group early.
func (d *base64State) flush(dst []byte) []byte {
	switch d.n {
	case 1:
		d.defect = "a single base64 character is left over"
	case 2:
		dst = append(dst, byte(d.bits>>4))
	case 3:
		dst = append(dst, byte(d.bits>>10), byte(d.bits>>2))
	}
	d.bits, d.n, d.pads = 0, 0, 0
	return dst
}

func (d *base64State) finish(dst []byte) []byte {
	if d.n > 0 {
		d.defect = "base64 without its padding"
		dst = d.flush(dst)
	}
	return dst
}

// decoder decodes a transfer encoding. After io.EOF, defect says what was wrong, "" for nothing.
type decoder struct {
	src    *bufio.Reader
	step   func(d *decoder, chunk []byte, last bool) // appends to out
	out    []byte
	off    int
	eof    bool
	err    error
	defect string

	b64   base64State
	carry []byte // of quoted-printable: an escape that is cut off
	uu    uint8  // of uuencode: 0 before begin, 1 inside, 2 after end
}

// newDecoder gives the decoder for an encoding, nil for those that leave octets as they are.
func newDecoder(encoding string, r io.Reader, size int64) *decoder {
	d := &decoder{}
	switch encoding {
	case "base64":
		d.step = (*decoder).stepBase64
	case "quoted-printable":
		d.step = (*decoder).stepQP
	case "x-uuencode", "uuencode", "uue", "x-uue":
		d.step = (*decoder).stepUU
	default:
		return nil
	}
	d.src = bufio.NewReaderSize(r, int(min(max(size, 512), 32<<10)))
	return d
}

func (d *decoder) Read(p []byte) (int, error) {
	for d.off == len(d.out) {
		if d.eof {
			return 0, d.err
		}
		d.out, d.off = d.out[:0], 0
		// Several lines per call: one line of base64 is only 57 octets.
		for len(d.out) < 4096 && !d.eof {
			chunk, err := d.src.ReadSlice('\n')
			if err == bufio.ErrBufferFull {
				err = nil
			}
			if err != nil {
				d.eof, d.err = true, err
			}
			d.step(d, chunk, d.eof)
		}
	}
	n := copy(p, d.out[d.off:])
	d.off += n
	return n, nil
}

func (d *decoder) stepBase64(chunk []byte, last bool) {
	line := bytes.TrimRight(chunk, "\r\n")
	switch {
	case d.b64.padded && d.b64.n == 0 && len(line) > 0:
		// Some mailers encode block by block, each padded; mailing lists append plain text.
		for _, c := range line {
			if base64Value[c] > 63 && c != '=' && c != ' ' && c != '\t' || len(line)%4 != 0 && len(line) < 1024 {
				d.defect = "text after the end of base64"
				line = nil
				break
			}
		}
		d.out = d.b64.append(d.out, line)
	case d.b64.n == 0 && len(line)%4 == 0 && len(line) > 0 && line[len(line)-1] != '=':
		n := len(d.out)
		out, err := base64.StdEncoding.AppendDecode(d.out, line)
		if err == nil {
			d.out = out
		} else {
			d.out = d.b64.append(out[:n], line)
		}
	default:
		d.out = d.b64.append(d.out, line)
	}
	if last {
		d.out = d.b64.finish(d.out)
		if d.b64.defect != "" {
			d.defect = d.b64.defect
		}
	}
}

func (d *decoder) stepQP(chunk []byte, last bool) {
	if len(d.carry) > 0 {
		chunk = append(d.carry, chunk...)
		d.carry = nil
	}
	if !last && len(chunk) > 0 && chunk[len(chunk)-1] != '\n' {
		// A piece of a long line: an escape may go on in the next piece.
		const maxBlank = 256
		if i := bytes.LastIndexByte(chunk, '='); i >= 0 && len(chunk)-i < maxBlank &&
			(len(chunk)-i < 3 || len(bytes.Trim(chunk[i+1:], " \t\r")) == 0) {
			d.carry = bytes.Clone(chunk[i:])
			chunk = chunk[:i]
		}
	}
	for len(chunk) > 0 {
		i := bytes.IndexByte(chunk, '=')
		if i < 0 {
			d.out = append(d.out, chunk...)
			return
		}
		d.out = append(d.out, chunk[:i]...)
		chunk = chunk[i+1:]
		if len(chunk) >= 2 {
			if v, ok := unhex(chunk[0], chunk[1]); ok {
				d.out = append(d.out, v)
				chunk = chunk[2:]
				continue
			}
		}
		switch rest := bytes.TrimLeft(chunk, " \t"); {
		case len(rest) == 0:
			chunk = nil
		case rest[0] == '\n':
			chunk = rest[1:]
		case rest[0] == '\r' && len(rest) > 1 && rest[1] == '\n':
			chunk = rest[2:]
		case rest[0] == '\r':
			chunk = rest[1:]
		default:
			d.defect = "an equals sign without its two hexadecimal digits"
			d.out = append(d.out, '=')
		}
	}
}

func (d *decoder) stepUU(chunk []byte, last bool) {
	line := bytes.TrimRight(chunk, "\r\n")
	switch d.uu {
	case 0:
		if f := bytes.Fields(line); len(f) >= 2 && string(f[0]) == "begin" && len(f[1]) >= 3 && len(bytes.Trim(f[1], "01234567")) == 0 {
			d.uu = 1
		} else if last {
			d.defect = "no uuencoded data"
		}
	case 1:
		if string(bytes.TrimSpace(line)) == "end" {
			d.uu = 2
			return
		}
		d.uuLine(line)
		if last {
			d.defect = "uuencoded data without an end"
		}
	}
}

func (d *decoder) uuLine(line []byte) {
	if len(line) == 0 {
		return
	}
	if line[0] < ' ' || line[0] > '`' {
		d.defect = "a broken line of uuencoded data"
		return
	}
	n := int(line[0]-' ') & 0x3F
	at := func(i int) byte { // missing characters are spaces that were cut off
		if i >= len(line) {
			return 0
		}
		return (line[i] - ' ') & 0x3F
	}
	for i := 1; n > 0; i += 4 {
		a, b, c, e := at(i), at(i+1), at(i+2), at(i+3)
		for _, v := range [3]byte{a<<2 | b>>4, b<<4 | c>>2, c<<6 | e} {
			if n > 0 {
				d.out = append(d.out, v)
				n--
			}
		}
	}
}
