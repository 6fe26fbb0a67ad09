package translate

import (
	"errors"
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
	rules []rule
}

// rule is one row: a header name or prefix and what it means.
type rule struct {
	header string // lower case; a prefix when it ends in "*"
	means  string // neutral concept, for the documentation
	repeat repeat
	parse  parser // nil: known and stripped, but no call can carry it (said as a loss)
	quiet  bool   // with a nil parser: bookkeeping of the vendor's own, nobody asked for anything
}

// repeat says which of several fields with the same name counts.
type repeat uint8

const (
	first repeat = iota
	last
	merge
)

// parser reads one field. suffix is what follows the prefix of a prefix rule, in the case of the raw field;
// value is unfolded and decoded. On an error nothing of the field is used.
type parser func(w *wish, suffix, value string) error

// wish is what a mail asks for beside its content.
type wish struct {
	Options
	listUnsubscribe string
	losses          []Loss

	hasTag map[string]bool
	used   map[string]bool // scalars that are settled: the first one wins
}

// ReadOptions gives all that a mail asks for, whether or not an account can carry it, and what
// was not understood. Dialects that the settings do not name are not read.
func ReadOptions(h mime.Header, s Settings) (Options, []Loss) {
	w := readWish(h, s)
	return w.Options, w.losses
}

// readWish reads the dialects in the order of their right: our own, that of the account's provider, the other
// vendors', the frameworks'. Lists and maps merge; of scalars the first wins.
func readWish(h mime.Header, s Settings) *wish {
	w := &wish{hasTag: map[string]bool{}, used: map[string]bool{}}
	found := map[string][]hit{}
	for i := range h {
		name := strings.ToLower(strings.TrimRight(h[i].Name, " \t"))
		for _, x := range lookup(name) {
			found[x.dialect] = append(found[x.dialect], hit{x.rule, &h[i], name})
		}
	}
	if len(found) == 0 {
		return w
	}
	for _, d := range order(s.Provider) {
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
		for i, x := range hits {
			if x.rule.repeat != merge && counts[x.name] != i {
				w.lose(Minor, x, "repeated")
				continue
			}
			w.read(x)
		}
	}
	return w
}

type hit struct {
	rule  *rule
	field *mime.Field
	name  string // lower case
}

func (w *wish) read(x hit) {
	if x.rule.parse == nil {
		if !x.rule.quiet {
			w.lose(Minor, x, x.rule.means)
		}
		return
	}
	var suffix string
	if p, ok := strings.CutSuffix(x.rule.header, "*"); ok {
		// Names are canonicalised by many libraries on the way; the raw field is the best there is.
		suffix = strings.TrimRight(x.field.Name, " \t")[len(p):]
	}
	if err := x.rule.parse(w, suffix, clean(x.field.Value)); err != nil {
		w.lose(Minor, x, err.Error())
	}
}

func (w *wish) lose(s Severity, x hit, why string) {
	w.losses = append(w.losses, Loss{Field: "option " + headerTitle(x.name), Had: cut(clean(why), 100), Severity: s})
}

func understood(allowed []string, name string) bool {
	return allowed == nil || slices.Contains(allowed, "all") || slices.Contains(allowed, name)
}

// order lists the dialects by their right.
func order(provider string) []string {
	out := []string{ownDialect}
	if provider != ownDialect && provider != frameworkDialect {
		out = append(out, provider)
	}
	for i := range dialects {
		if n := dialects[i].name; n != ownDialect && n != provider && n != frameworkDialect {
			out = append(out, n)
		}
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

// lookup finds the rows for a lower-case name.
func lookup(name string) []ref {
	if r, ok := exactRules[name]; ok {
		return r
	}
	for i := range prefixRules {
		if p := strings.TrimSuffix(prefixRules[i].rule.header, "*"); strings.HasPrefix(name, p) {
			return prefixRules[i : i+1]
		}
	}
	return nil
}

// isDialect reports whether a lower-case name is a known dialect field, or an unknown one under a known prefix.
func isDialect(name string) bool { return lookup(name) != nil }

// IsOptionHeader reports whether a header field drives a mail service rather than informs its readers. Such
// fields never leave the bridge.
func IsOptionHeader(name string) bool {
	return isDialect(strings.ToLower(strings.TrimRight(name, " \t")))
}

// settle reports whether a scalar is still open, and closes it.
func (w *wish) settle(what string) bool {
	if w.used[what] {
		return false
	}
	w.used[what] = true
	return true
}

var errTaken = errors.New("another header has said it already")

func (w *wish) addTag(t string) {
	if t = strings.TrimSpace(clean(t)); t != "" && !w.hasTag[t] {
		w.hasTag[t] = true
		w.Tags = append(w.Tags, t)
	}
}

func (w *wish) addMeta(key, value string) {
	if key = strings.TrimSpace(clean(key)); key == "" {
		return
	}
	if w.Metadata == nil {
		w.Metadata = map[string]string{}
	}
	if _, ok := w.Metadata[key]; !ok {
		w.Metadata[key] = clean(value)
	}
}

// setTrack settles one kind of tracking; Default says nothing and leaves it open.
func (w *wish) setTrack(clicks bool, s Switch) error {
	if s == Default {
		return nil
	}
	into, name := &w.TrackOpens, "opens"
	if clicks {
		into, name = &w.TrackClicks, "clicks"
	}
	if !w.settle("track " + name) {
		if *into == s {
			return nil
		}
		return errTaken
	}
	*into = s
	return nil
}

func (w *wish) setSendAt(t time.Time) error {
	if !w.settle("send at") {
		if w.SendAt.Equal(t) {
			return nil
		}
		return errTaken
	}
	w.SendAt = t.UTC()
	return nil
}

// parseBool reads the spellings that vendors document.
func parseBool(v string) (Switch, error) {
	switch strings.ToLower(strings.TrimSpace(unquote(v))) {
	case "true", "yes", "y", "on", "1", "enabled":
		return On, nil
	case "false", "no", "n", "off", "0", "none", "disabled":
		return Off, nil
	}
	return Default, errors.New("not a yes or no")
}

// unquote strips one pair of outer quotes.
func unquote(v string) string {
	v = strings.TrimSpace(v)
	if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
		return v[1 : len(v)-1]
	}
	return v
}

// Parsers of values that several dialects share.

func tagList(w *wish, _, value string) error {
	for _, t := range strings.Split(unquote(value), ",") {
		w.addTag(t)
	}
	return nil
}

func oneTag(w *wish, _, value string) error {
	w.addTag(value)
	return nil
}

func metaSuffix(w *wish, suffix, value string) error {
	if strings.TrimSpace(suffix) == "" {
		return errors.New("no key after the prefix")
	}
	w.addMeta(suffix, value)
	return nil
}

// metaKey puts the value under a fixed key.
func metaKey(key string) parser {
	return func(w *wish, _, value string) error {
		w.addMeta(key, value)
		return nil
	}
}

func trackOpens(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	return w.setTrack(false, s)
}

func trackClicks(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	return w.setTrack(true, s)
}

// trackClicksKind also takes the restriction to one kind of body, which counts as on.
func trackClicksKind(w *wish, suffix, value string) error {
	switch strings.ToLower(strings.TrimSpace(value)) {
	case "htmlonly", "textonly", "htmlandtext", "html", "text":
		return w.setTrack(true, On)
	}
	return trackClicks(w, suffix, value)
}

func trackBoth(w *wish, suffix, value string) error {
	return errors.Join(trackOpens(w, suffix, value), trackClicks(w, suffix, value))
}

// sendAtLayout reads an instant in one of several layouts; without a zone it is UTC.
func sendAtLayout(layouts ...string) parser {
	return func(w *wish, _, value string) error {
		for _, l := range layouts {
			if t, err := time.Parse(l, strings.TrimSpace(unquote(value))); err == nil && t.Year() > 1970 {
				return w.setSendAt(t)
			}
		}
		return fmt.Errorf("not a time of the form %s", layouts[0])
	}
}
