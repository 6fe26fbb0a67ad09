package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"smtpbridge/event"
)

// tone colours a text by its meaning, on a terminal only.
type tone string

const (
	plain tone = ""
	bold  tone = "1"
	faint tone = "2"
	bad   tone = "31"
	good  tone = "32"
	warn  tone = "33"
)

// cell is a coloured text of a table.
type cell struct {
	text string
	tone tone
}

// tones say how a state of a mail, a recipient, a call or an account, or a kind of event, looks.
var tones = map[string]tone{
	"active": good, "sent": good, "delivered": good, "accepted": good, "finished": good,
	"queued": plain, "in_flight": plain,
	"held": warn, "throttled": warn, "probing": warn, "deferred": warn, "unknown": warn, "deleted": faint,
	"paused": bad, "stopped": bad, "failed": bad, "rejected": bad, "bounced": bad, "complained": bad, "corrupt": bad,
}

// state is a word in the colour of its meaning.
func state(word string) cell { return cell{word, tones[word]} }

// maxCell cuts text from outside, such as an ESP's answer.
const maxCell = 400

// table prints lines in columns. Cells are texts, times (local), numbers or cell; whatever
// comes from outside is cut and freed of control characters.
type table struct {
	w      io.Writer
	colour bool
	rows   [][]cell
}

func newTable(w io.Writer, head ...string) *table {
	t := &table{w: w, colour: hasColour(w)}
	if len(head) > 0 {
		row := make([]cell, len(head))
		for i, h := range head {
			row[i] = cell{h, bold}
		}
		t.rows = append(t.rows, row)
	}
	return t
}

func (t *table) row(values ...any) {
	row := make([]cell, len(values))
	for i, v := range values {
		c, ok := v.(cell)
		if !ok {
			c.text = cellText(v)
		}
		c.text = event.Clean(c.text, maxCell)
		row[i] = c
	}
	t.rows = append(t.rows, row)
}

func cellText(v any) string {
	switch v := v.(type) {
	case time.Time:
		if v.IsZero() {
			return ""
		}
		return stamp(v)
	case *time.Time:
		if v == nil {
			return ""
		}
		return stamp(*v)
	}
	return fmt.Sprint(v)
}

// stamp is a time as people read it, in the zone of this machine.
func stamp(t time.Time) string { return t.Local().Format(time.DateTime) }

// flush writes the table.
func (t *table) flush() error {
	var width []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		gap := 0
		for i, c := range row {
			if c.text != "" { // no blanks at the end of a line
				b.WriteString(strings.Repeat(" ", gap))
				gap = 0
			}
			b.WriteString(paint(t.colour, c.tone, c.text))
			gap += width[i] - utf8.RuneCountInString(c.text) + 2
		}
		b.WriteByte('\n')
	}
	_, err := io.WriteString(t.w, b.String())
	return err
}

// printList prints items as JSON or as a table with a row for each; none is what people read when there is nothing.
func printList[T any](w io.Writer, asJSON bool, items []T, none string, head []string, row func(T) []any) error {
	if asJSON {
		if items == nil {
			items = []T{}
		}
		return printJSON(w, items)
	}
	if len(items) == 0 {
		_, err := fmt.Fprintln(w, none)
		return err
	}
	t := newTable(w, head...)
	for _, it := range items {
		t.row(row(it)...)
	}
	return t.flush()
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// isTerminal reports whether a person looks at what is written to w.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// hasColour follows https://no-color.org.
func hasColour(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

func paint(colour bool, t tone, text string) string {
	if !colour || t == plain || text == "" {
		return text
	}
	return "\x1b[" + string(t) + "m" + text + "\x1b[0m"
}

// progress shows a person how far long work is, on standard error; elsewhere it is silent.
type progress struct {
	w     io.Writer
	what  string
	total int // 0 = not known
	done  int
	shown time.Time
	now   func() time.Time
}

// progressEvery is how often the line is drawn anew.
const progressEvery = 100 * time.Millisecond

func newProgress(w io.Writer, what string, total int) *progress {
	p := &progress{w: w, what: what, total: total, now: time.Now}
	if !isTerminal(w) {
		p.w = nil
	}
	return p
}

// step counts n more.
func (p *progress) step(n int) {
	p.done += n
	if p.w == nil {
		return
	}
	if now := p.now(); now.Sub(p.shown) >= progressEvery {
		p.shown = now
		fmt.Fprint(p.w, "\r\x1b[K"+p.line())
	}
}

// end clears the line: what was done is told by the command itself.
func (p *progress) end() {
	if p.w != nil {
		fmt.Fprint(p.w, "\r\x1b[K")
	}
}

func (p *progress) line() string {
	if p.total <= 0 {
		return fmt.Sprintf("%s: %d", p.what, p.done)
	}
	const width = 30
	full := width * min(p.done, p.total) / p.total
	return fmt.Sprintf("%s [%s%s] %d of %d (%d %%)", p.what, strings.Repeat("#", full), strings.Repeat(".", width-full), p.done, p.total, 100*min(p.done, p.total)/p.total)
}
