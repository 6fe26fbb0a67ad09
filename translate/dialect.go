package translate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"smtpbridge/mime"
)

// A dialect is the set of header fields by which applications drive one vendor's SMTP service. Whatever
// the vendor of the account is, every dialect is understood and none leaves the bridge: the fields leak internal
// ids, and some have effects at an ESP that was never meant.
type dialect struct {
	name  string // the provider's name where it has one here
	doc   string // where the vendor says so
	rules []rule
}

// rule is one row: a header name or prefix and what it means.
type rule struct {
	header string // lower case; a prefix when it ends in "*"
	value  string // syntax, for the documentation
	means  string // neutral concept, for the documentation
	permit string // permission that it needs, for the documentation; the parser asks for it
	repeat repeat
	parse  parser // nil: no neutral concept, kept for an account of the same vendor
	keys   []key  // a JSON object; in place of parse
	quiet  bool   // with a nil parser: bookkeeping of the vendor's own, nobody asked for anything
	late   bool   // general: the specific headers of the dialect go before it
}

// repeat says which of several fields with the same name counts.
type repeat uint8

const (
	first repeat = iota
	last
	merge
)

func (r repeat) String() string { return [...]string{"first", "last", "all"}[r] }

// parser reads one field. suffix is what follows the prefix of a prefix rule, in the case of the raw field;
// value is unfolded and decoded. An error says that the value is malformed: then nothing of the field is used. What
// is well formed and does not count (another header was first, no permission) is no error: the parser notes it.
type parser func(w *wish, suffix, value string) error

// wish is what a mail asks for beside its content.
type wish struct {
	Options
	listUnsubscribe string
	expiresIn       time.Duration
	losses          []Loss
	bad             *RefusalError // the first malformed header, for BadOptionsReject
	raws            []rawOption
	any             bool // a header was read
	inPlace         bool // its recipients are meant in place of those of RCPT TO

	set         *Settings
	cur         hit
	trial       bool // a dry run: does the value parse?
	hasTag      map[string]bool
	used        map[string]bool           // scalars that are settled: the first one wins
	templateVar map[string]any            // merge data only if there is a template
	forTemplate map[string]any            // likewise, and nothing else
	extra       map[string]map[string]any // by provider
	noTemplate  bool                      // a template was asked for without permission
}

// rawOption is a value without a neutral concept.
type rawOption struct {
	dialect, key, value, means string
	quiet                      bool
}

// ReadOptions gives all that a mail asks for, whether or not an account can carry it, and what
// was not understood or not permitted. Dialects that the settings do not name are not read.
func ReadOptions(h mime.Header, s Settings) (Options, []Loss) {
	w := readWish(h, s)
	for _, r := range w.raws {
		if w.Raw == nil {
			w.Raw = map[string]map[string]string{}
		}
		if w.Raw[r.dialect] == nil {
			w.Raw[r.dialect] = map[string]string{}
		}
		w.Raw[r.dialect][r.key] = r.value
	}
	return w.Options, w.losses
}

// readWish reads the dialects in the order of their right: our own, that of the account's provider, the other
// vendors' as configured, the frameworks'. Lists and maps merge; of scalars the first wins.
func readWish(h mime.Header, s Settings) *wish {
	w := &wish{set: &s}
	if s.Foreign {
		return w
	}
	var found map[string][]hit
	for i := range h {
		for _, x := range lookup(h[i].Name) {
			if found == nil {
				found = map[string][]hit{}
			}
			name := strings.ToLower(strings.TrimRight(h[i].Name, " \t"))
			found[x.dialect] = append(found[x.dialect], hit{x.dialect, x.rule, &h[i], name})
		}
	}
	if found == nil {
		return w
	}
	w.any = true
	for _, d := range order(&s) {
		hits := found[d]
		if len(hits) == 0 {
			continue
		}
		if !understood(s.Dialects, d) {
			for _, x := range hits {
				w.lose(Info, x, "dialect "+d+" is not permitted here")
			}
			continue
		}
		counts := map[string]int{} // index of the first field, or of the last where that counts
		for i, x := range hits {
			if _, ok := counts[x.name]; !ok || x.rule.repeat == last {
				counts[x.name] = i
			}
		}
		for _, late := range []bool{false, true} {
			for i, x := range hits {
				switch {
				case x.rule.late != late:
				case x.rule.repeat != merge && counts[x.name] != i:
					w.lose(Minor, x, "repeated")
				default:
					w.read(x)
				}
			}
		}
	}
	w.finish()
	return w
}

type hit struct {
	dialect string
	rule    *rule
	field   *mime.Field
	name    string // lower case
}

func (w *wish) read(x hit) {
	value := clean(x.field.Value)
	parse := x.rule.parse
	if x.rule.keys != nil {
		parse = object(x.rule.keys)
	}
	w.cur = x
	if parse == nil {
		w.keepRaw("", x.rule.means, value, x.rule.quiet)
		return
	}
	var suffix string
	if p, ok := strings.CutSuffix(x.rule.header, "*"); ok {
		// Names are canonicalised by many libraries on the way; the raw field is the best there is.
		suffix = strings.TrimRight(x.field.Name, " \t")[len(p):]
	}
	// A value that fails half way must leave nothing behind.
	trial := &wish{set: w.set, cur: x, trial: true}
	if err := parse(trial, suffix, value); err != nil {
		w.lose(Minor, x, err.Error())
		if w.bad == nil {
			w.bad = &RefusalError{Status: "5.6.0", Text: fmt.Sprintf("the header %s is malformed: %s; correct it, or leave it out", headerTitle(x.name), cut(clean(err.Error()), 200))}
		}
		return
	}
	if err := parse(w, suffix, value); err != nil {
		w.lose(Minor, x, err.Error()) // not reached: what the trial takes parses again
	}
}

func (w *wish) lose(s Severity, x hit, why string) {
	w.losses = append(w.losses, Loss{Field: "option " + headerTitle(x.name), Had: cut(clean(why), 100), Severity: s})
}

// note says that a part of the header that is being read does not count.
func (w *wish) note(why string) {
	if !w.trial {
		w.lose(Minor, w.cur, why)
	}
}

// allowed asks for a permission, and says what goes without it.
func (w *wish) allowed(class string) bool {
	if w.set.Permits(class) {
		return true
	}
	w.note("permission " + class + " is not given")
	return false
}

// keepRaw keeps a value for an account of the same vendor. part names a member of a JSON object.
func (w *wish) keepRaw(part, means, value string, quiet bool) {
	if w.trial {
		return
	}
	name := w.cur.name
	if part != "" {
		name += "." + part
	}
	w.raws = append(w.raws, rawOption{w.cur.dialect, name, value, means, quiet})
}

// finish settles what depends on several headers.
func (w *wish) finish() {
	if w.Template.ID != "" {
		w.addMerge(w.forTemplate)
		w.addMerge(w.templateVar)
		return
	}
	lose := func(field, had string) { w.losses = append(w.losses, Loss{Field: field, Had: had, Severity: Minor}) }
	switch {
	case w.noTemplate && len(w.Merge.Global)+len(w.Merge.Rcpt)+len(w.forTemplate) > 0:
		lose("merge data", "for a template that is not permitted")
		w.Merge.Global, w.Merge.Rcpt = nil, nil
	case len(w.forTemplate) > 0:
		lose("merge data", "for a template, of which there is none")
	}
	for _, part := range []struct {
		name  string
		value *string
	}{{"version", &w.Template.Version}, {"block", &w.Template.Block}} {
		if *part.value != "" {
			lose("template "+part.name, "of no template")
			*part.value = ""
		}
	}
}

func understood(allowed []string, name string) bool {
	return allowed == nil || slices.Contains(allowed, "all") || slices.Contains(allowed, name)
}

// order lists the dialects by their right.
func order(s *Settings) []string {
	out := make([]string, 0, len(dialects)+1)
	add := func(name string) {
		if name != frameworkDialect && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	add(ownDialect)
	if s.Provider != "" {
		add(s.Provider)
	}
	for _, d := range s.Dialects {
		add(d)
	}
	for i := range dialects {
		add(dialects[i].name)
	}
	return append(out, frameworkDialect)
}

// Dialects lists the names of the header dialects, for the configuration.
func Dialects() []string {
	out := make([]string, len(dialects))
	for i := range dialects {
		out[i] = dialects[i].name
	}
	return out
}

type ref struct {
	dialect string
	rule    *rule
}

// exactRules and prefixRules index the tables. An exact name wins over any prefix, a longer prefix over a shorter one.
var exactRules, prefixRules = index()

func index() (exact map[string][]ref, prefix []ref) {
	exact = map[string][]ref{}
	for i := range dialects {
		for j := range dialects[i].rules {
			r := ref{dialects[i].name, &dialects[i].rules[j]}
			if strings.HasSuffix(r.rule.header, "*") {
				prefix = append(prefix, r)
			} else {
				exact[r.rule.header] = append(exact[r.rule.header], r)
			}
		}
	}
	slices.SortStableFunc(prefix, func(a, b ref) int { return len(b.rule.header) - len(a.rule.header) })
	return exact, prefix
}

// lookup finds the rows for a field name. It is asked about every field of every mail, so it makes no garbage.
func lookup(name string) []ref {
	var buf [64]byte
	name = strings.TrimRight(name, " \t")
	n := min(len(name), len(buf))
	for i := range n {
		c := name[i]
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		buf[i] = c
	}
	low := buf[:n]
	if r, ok := exactRules[string(low)]; ok && n == len(name) {
		return r
	}
	if n < 2 || low[0] != 'x' || low[1] != '-' {
		return nil // every prefix of the tables starts so; a test keeps it so
	}
	for i := range prefixRules {
		h := prefixRules[i].rule.header
		if p := h[:len(h)-1]; len(p) <= n && string(low[:len(p)]) == p {
			return prefixRules[i : i+1]
		}
	}
	return nil
}

// isDialect reports whether a name is that of a known dialect field, or of an unknown one under a known prefix.
func isDialect(name string) bool { return lookup(name) != nil }

// IsOptionHeader reports whether a header field drives a mail service rather than informs its readers. Such
// fields never leave the bridge.
func IsOptionHeader(name string) bool { return isDialect(name) }
