package mime

import (
	"maps"
	"strings"
	"testing"
	"unicode/utf8"
)

// FuzzHeaders reads a text as an address list, as a parameter list with RFC 2231 sections, and as encoded words: always the
// same result, valid UTF-8, on one line, and not larger than what came in.
func FuzzHeaders(f *testing.F) {
	for _, s := range []string{
		`"Doe, John" <john@example.com>, =?utf-8?q?J=C3=B6rg?= <j@example.com> (comment (nested)), group: a@b.c, d@e.f;`,
		`a@good.com <b@evil.com>`, `=?utf-8?q?=3Cb=40evil=2Ecom=3E=2C?= <a@good.com>`, `<@route,@route:a@b.c>`, `"a\"b" <"x y"@z.example>`,
		`attachment; filename*0*=utf-8''%e2%82%ac; filename*1=" rates"; filename*2*=%20.pdf; filename=plain.pdf`,
		`attachment; filename*=us-ascii'en'%0D%0ABcc:%20x; name*99999999999999999999=x; name*-1=y; name*01*=z`,
		`text/plain; charset="=?utf-8?b?dXRmLTg=?="; format=flowed; x==; ;;`,
		`=?x-unknown?q?=ff?= =?utf-7?q?+AD4-?= =?utf-8?b?4pyTIMOg?= =?utf-8?q?=0D=0ABcc:_e@e?=`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		clean := func(what, v string) {
			if !utf8.ValidString(v) || strings.ContainsAny(v, "\r\n\x00") {
				t.Errorf("%s of %q is %q", what, s, v)
			}
		}
		size := 0
		list := ParseAddressList(s)
		for _, a := range list {
			clean("a name", a.Name)
			clean("an address", a.Addr)
			size += len(a.Name) + len(a.Addr)
		}
		if size > 8*len(s)+64 {
			t.Errorf("%q became %d bytes of addresses", s, size)
		}
		p := &parser{msg: &Message{}, limits: Limits{}.withDefaults()}
		v := p.parameters(s, "Content-Disposition")
		again := (&parser{msg: &Message{}, limits: Limits{}.withDefaults()}).parameters(s, "Content-Disposition")
		if v.value != again.value || !maps.Equal(v.params, again.params) {
			t.Errorf("%q is read in two ways: %v and %v", s, v, again)
		}
		size = len(v.value)
		for name, text := range v.params {
			if !utf8.ValidString(text) {
				t.Errorf("%s of %q is %q", name, s, text)
			}
			size += len(name) + len(text)
		}
		if size > 8*len(s)+64 {
			t.Errorf("%q became %d bytes of parameters", s, size)
		}
	})
}
