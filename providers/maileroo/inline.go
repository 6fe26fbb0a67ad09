package maileroo

import (
	"fmt"
	"html"
	"io"
	"net/url"
	"path"
	"strings"

	"smtpbridge/translate"
)

// file is an attachment under the name it is sent with.
type file struct {
	translate.Attachment
	name string
}

// files names the attachments. Maileroo makes an inline image's Content-ID of its file name
// (https://maileroo.com/docs/email-api/appendix shows it), so those names are unique and fit for a URL.
func (p *provider) files(list []translate.Attachment) ([]file, []translate.Loss) {
	var lost []translate.Loss
	taken := map[string]bool{}
	for _, a := range list {
		if !a.Inline {
			taken[strings.ToLower(a.Name)] = true
		}
	}
	out := make([]file, 0, len(list))
	for _, a := range list {
		f := file{Attachment: a, name: a.Name}
		if a.Inline {
			switch p.set.InlineImages {
			case inlineRewrite:
				f.name = unique(urlName(a.Name), taken)
			case inlineContentID:
				f.name = a.ContentID
			}
			if f.name != a.Name {
				lost = append(lost, translate.Loss{Field: "attachment " + cut(a.Name, 80), Had: "name", Sent: cut(f.name, 80), Severity: translate.Info})
			}
		}
		out = append(out, f)
	}
	return out, lost
}

// urlName leaves of a file name what needs no escaping in a Content-ID, a URL and HTML.
func urlName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("._-", r):
			return r
		}
		return '_'
	}, s)
	if s = strings.TrimLeft(s, "."); s == "" {
		s = "inline"
	}
	return s
}

// unique takes the name, or the next free one that is like it. Letters' case does not make a difference.
func unique(s string, taken map[string]bool) string {
	ext := path.Ext(s)
	stem := strings.TrimSuffix(s, ext)
	for n := 2; taken[strings.ToLower(s)]; n++ {
		s = fmt.Sprintf("%s-%d%s", stem, n, ext)
	}
	taken[strings.ToLower(s)] = true
	return s
}

// maxCID bounds how far a cid: URL is read, escapes included.
const maxCID = 1024

// cidReader points the cid: URLs (RFC 2392) of an HTML text to the names of their parts. It looks at each byte a
// bounded number of times, holds a few kilobytes and leaves everything else as it is.
type cidReader struct {
	src   io.ReadCloser
	names map[string]string
	buf   []byte // read and not yet looked at
	out   []byte // looked at and not yet handed on, a part of done
	done  []byte
	last  byte  // the byte before buf
	err   error // of src
}

func newCIDReader(src io.ReadCloser, names map[string]string) *cidReader {
	return &cidReader{src: src, names: names}
}

func (r *cidReader) Close() error { return r.src.Close() }

func (r *cidReader) Read(p []byte) (int, error) {
	for len(r.out) == 0 {
		if r.err != nil && len(r.buf) == 0 {
			return 0, r.err
		}
		if r.err == nil {
			const chunk = 8192
			at := len(r.buf)
			r.buf = append(r.buf, make([]byte, chunk)...)
			n, err := r.src.Read(r.buf[at:])
			r.buf, r.err = r.buf[:at+n], err
			if err != nil && err != io.EOF {
				return 0, err
			}
		}
		r.scan()
	}
	n := copy(p, r.out)
	r.out = r.out[n:]
	return n, nil
}

const scheme = "cid:"

// scan moves what is settled from buf to out. Only a URL that may go on in the next read stays.
func (r *cidReader) scan() {
	out := r.done[:0]
	b := r.buf
	i := 0
	for i < len(b) {
		if b[i]|0x20 != 'c' || wordByte(r.last) {
			r.last = b[i]
			out = append(out, b[i])
			i++
			continue
		}
		rest := b[i:]
		if len(rest) < len(scheme) {
			if r.err == nil && strings.EqualFold(string(rest), scheme[:len(rest)]) {
				break
			}
		} else if strings.EqualFold(string(rest[:len(scheme)]), scheme) {
			token := rest[len(scheme):]
			end := 0
			for end < len(token) && end < maxCID && !hardEnd(token[end]) {
				end++
			}
			if end == len(token) && end < maxCID && r.err == nil {
				break
			}
			if n, name := r.lookup(token[:end]); n > 0 {
				out = append(append(out, rest[:len(scheme)]...), name...)
				i += len(scheme) + n
				r.last = token[n-1]
				continue
			}
			out = append(out, rest[:len(scheme)]...)
			i += len(scheme)
			r.last = ':'
			continue
		}
		r.last = b[i]
		out = append(out, b[i])
		i++
	}
	r.buf = append(r.buf[:0], b[i:]...)
	r.out, r.done = out, out
}

// lookup finds the part that a URL's text names, and how much of the text is the URL. Characters that may
// belong to a Content-ID may also end a URL, as in url(cid:x): the longest reading is tried first.
func (r *cidReader) lookup(token []byte) (n int, name string) {
	whole := string(token)
	for _, t := range []string{whole, before(whole, "'", "(", ")", ","), before(whole, "&quot;", "&#34;", "&#39;", "&apos;")} {
		if t == "" {
			continue
		}
		id := html.UnescapeString(t)
		if u, err := url.PathUnescape(id); err == nil {
			id = u
		}
		if name, ok := r.names[id]; ok {
			return len(t), name
		}
	}
	return 0, ""
}

// before is s up to the first of the ends.
func before(s string, ends ...string) string {
	for _, e := range ends {
		s, _, _ = strings.Cut(s, e)
	}
	return s
}

// hardEnd ends every URL. The colon, which no Content-ID has (RFC 5322 3.6.4), keeps "cid:cid:cid:" from being read over and over.
func hardEnd(c byte) bool {
	return c <= ' ' || c == '"' || c == '<' || c == '>' || c == '`' || c == ':'
}

// wordByte tells a byte that makes "cid" the end of another word.
func wordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '-'
}
