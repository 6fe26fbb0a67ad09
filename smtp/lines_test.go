package smtp

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"smtpbridge/envelope"
)

// A refusal with several reasons has a line for each, within the limits of RFC 5321 and with the enhanced code in each (RFC 2034).
func TestRepliesOfSeveralLines(t *testing.T) {
	many := make([]string, 30)
	for i := range many {
		many[i] = fmt.Sprintf("account a%d: no", i)
	}
	for _, tt := range []struct {
		name  string
		lines []string
		want  []string
	}{
		{"two", []string{"account a: signed", "account b: too large"}, []string{"554-5.6.3 account a: signed", "554 5.6.3 account b: too large"}},
		{"one", []string{"account a: signed"}, []string{"554 5.6.3 the whole text"}},
		{"none", nil, []string{"554 5.6.3 the whole text"}},
		{"no line of its own", []string{"a\r\n250 ok", "b\nc"}, []string{"554-5.6.3 a  250 ok", "554 5.6.3 b c"}},
		{"long", []string{strings.Repeat("x", 2000), strings.Repeat("é", 2000)}, []string{"554-5.6.3 " + strings.Repeat("x", 400), "554 5.6.3 " + strings.Repeat("?", 400)}},
		{"many", many, append(prefixed("554-5.6.3 ", many[:9]), "554 5.6.3 and 21 more")},
	} {
		for _, bdat := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, BDAT %t", tt.name, bdat), func(t *testing.T) {
				f := start(t, nil)
				f.intake.commit = func(context.Context, envelope.Envelope) error {
					return &Refusal{Code: 554, Enhanced: [3]int{5, 6, 3}, Text: "the whole text", Lines: tt.lines}
				}
				c := f.hello()
				for range 2 { // nothing is left over for the next reply
					c.envelope()
					var got string
					if bdat {
						c.send(fmt.Sprintf("BDAT %d LAST\r\n%s", len(plainMail), plainMail))
						got = c.want("554")
					} else {
						got = c.data(plainMail, "554")
					}
					if want := strings.Join(tt.want, "\n"); got != want {
						t.Errorf("got %q, want %q", got, want)
					}
					for line := range strings.SplitSeq(got, "\n") {
						if len(line) > 510 {
							t.Errorf("a line of %d bytes", len(line))
						}
					}
					if got := c.cmd("NOOP", "250"); strings.Contains(got, "\n") {
						t.Errorf("NOOP: %q", got)
					}
				}
			})
		}
	}
}

func prefixed(with string, list []string) (out []string) {
	for _, s := range list {
		out = append(out, with+s)
	}
	return out
}

// Over LMTP each recipient has one reply, whatever it says.
func TestLMTPRepliesHaveOneLine(t *testing.T) {
	f := start(t, func(_ *Config, l *Listener) { l.LMTP = true })
	r := &Refusal{Code: 554, Enhanced: [3]int{5, 6, 3}, Text: "both", Lines: []string{"one", "two"}}
	f.intake.commit = func(context.Context, envelope.Envelope) error { return r }
	f.intake.each = map[string]*Refusal{"a@example.net": r, "b@example.net": r}
	c := f.dial()
	c.want("220")
	c.cmd("LHLO client.example.com", "250")
	c.envelope("a@example.net", "b@example.net")
	if got := c.data(plainMail, "554"); got != "554 5.6.3 <a@example.net> both" {
		t.Errorf("got %q", got)
	}
	if got := c.want("554"); got != "554 5.6.3 <b@example.net> both" {
		t.Errorf("got %q", got)
	}
	if got := c.cmd("NOOP", "250"); strings.Contains(got, "\n") {
		t.Errorf("NOOP: %q", got)
	}
}
