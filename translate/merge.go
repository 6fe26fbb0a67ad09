package translate

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// maxSubst is the largest body in which literals are replaced: it is held while that is done.
const maxSubst = 1 << 20

// placeholders are the vendors' placeholders that are plain literals, so that they can be replaced here for an account
// of another vendor. https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/batch-sending and
// https://mailchimp.com/developer/transactional/docs/templates-dynamic-content/
var placeholders = map[string]func(key string) string{
	"mailgun":  func(key string) string { return "%recipient." + key + "%" },
	"mandrill": func(key string) string { return "*|" + strings.ToUpper(key) + "|*" },
}

// merge settles template and merge data. A mail whose placeholders nobody replaces must not be sent, so what cannot
// be carried is a refusal and no loss: another account of the route may do it.
func (p *planner) merge(w *wish) error {
	c, o := &p.Caps, &p.base.Options
	if w.Template.ID == "" && w.Merge.empty() {
		if w.Template.Language != "" {
			p.lose(Minor, "template language", cut(w.Template.Language, 80), "")
		}
		return nil
	}
	if w.Template.ID != "" {
		if !c.Template || !p.rawMerges() {
			return &RefusalError{Status: "5.6.3", Text: fmt.Sprintf("the mail names the stored template %q, which this account cannot use; send the finished text, or route this mail to an account that has the template", cut(w.Template.ID, 80))}
		}
		if n, err := strconv.ParseUint(w.Template.ID, 10, 63); c.TemplateNumber && (err != nil || n == 0) {
			return &RefusalError{Status: "5.6.3", Text: fmt.Sprintf("the mail names the stored template %q, and the templates of this account are known by number; give its number, or route this mail to an account that has the template", cut(w.Template.ID, 80))}
		}
		o.Template = w.Template
		for _, part := range []struct {
			name  string
			value *string
		}{{"version", &o.Template.Version}, {"block", &o.Template.Block}, {"language", &o.Template.Language}} {
			if *part.value != "" && !slices.Contains(c.TemplateParts, part.name) {
				p.lose(Minor, "template "+part.name, cut(*part.value, 80), "")
				*part.value = ""
			}
		}
	}
	if w.Template.ID != "" && o.Template.Block == "" {
		p.lose(Info, "text", "", "the template "+cut(w.Template.ID, 80))
	}
	m := w.Merge
	local := m
	local.Global, local.Rcpt = nil, nil
	carry := len(m.Global)+len(m.Rcpt) > 0 || m.InBody
	foreign := w.Template.ID == "" && m.Dialect != "" && m.Dialect != p.Settings.Provider
	switch {
	case !carry:
	case foreign && m.InBody, foreign && placeholders[m.Dialect] == nil, foreign && w.Template.Language == "handlebars":
		return &RefusalError{Status: "5.6.3", Text: fmt.Sprintf("the placeholders of this mail are written for %s, which this account is not; send the finished text, or route this mail to such an account", m.Dialect)}
	case foreign:
		local = localSubst(m)
		m.Global, m.Rcpt = nil, nil
	case !c.Merge || !p.rawMerges():
		return &RefusalError{Status: "5.6.3", Text: "the mail has merge data, which this account cannot fill in; send the finished text, or route this mail to an account that can"}
	}
	o.Merge = Merge{Global: m.Global, Rcpt: m.Rcpt, Dialect: m.Dialect, InBody: m.InBody}
	if c.BatchHold && len(m.Global)+len(m.Rcpt) > 0 {
		p.base.schedule = 0
	}
	if p.mergeVisible() && len(p.Rcpts) > 1 {
		// The operator's wish (and with it the whole visible To list) goes before that of the mail.
		p.lose(Major, "copies of their own", plural(len(p.Rcpts), "recipient"), "the recipients in to and cc see each other")
		o.ExposeRcpts = Default
	}
	if carry && !foreign && w.Template.ID == "" {
		o.Template.Language = w.Template.Language
		if o.Template.Language != "" && !slices.Contains(c.TemplateParts, "language") {
			p.lose(Minor, "template language", cut(o.Template.Language, 80), "")
			o.Template.Language = ""
		}
	}
	if len(local.Subst)+len(local.RcptSubst) > 0 {
		return p.substitutions(local)
	}
	return nil
}

// localSubst gives merge data as literals.
func localSubst(m Merge) Merge {
	form := placeholders[m.Dialect]
	literals := func(data map[string]any) map[string]string {
		out := make(map[string]string, len(data))
		for k, v := range data {
			out[form(k)] = scalarText(v)
		}
		return out
	}
	out := Merge{Subst: literals(m.Global)}
	maps.Copy(out.Subst, m.Subst)
	for a, data := range m.Rcpt {
		if out.RcptSubst == nil {
			out.RcptSubst = map[string]map[string]string{}
		}
		out.RcptSubst[a] = literals(data)
	}
	return out
}

// substitutions prepares replacing literals by ourselves.
func (p *planner) substitutions(m Merge) error {
	switch {
	case p.useRaw && p.bodySize() <= maxSubst && !p.mentions(m):
		return nil
	case p.useRaw:
		return &RefusalError{Status: "5.6.3", Text: "the mail has placeholders to be replaced, which is only possible for an account with a structured form, and never in signed or encrypted mail; send the finished text"}
	case p.bodySize() > maxSubst:
		return &RefusalError{Status: "5.6.3", Text: fmt.Sprintf("the mail has placeholders to be replaced in a text of more than %d bytes; send the finished text", maxSubst)}
	}
	// What others have values of their own for, and nobody common ones, each recipient has to have.
	var wanted []string
	stands := p.stands()
	for _, data := range m.RcptSubst {
		for l := range data {
			if _, common := m.Subst[l]; !common && stands(l) {
				wanted = append(wanted, l)
			}
		}
	}
	var bad []envelope.Rcpt
	for _, r := range p.Rcpts {
		own := m.RcptSubst[envelope.Fold(r.Addr)]
		if slices.ContainsFunc(wanted, func(l string) bool { _, ok := own[l]; return !ok }) {
			bad = append(bad, r)
		}
	}
	if bad != nil {
		return &RefusalError{Status: "5.6.0", Rcpts: bad, Text: fmt.Sprintf("the substitutions of the mail name no values for %q; its placeholders would stay as they are", cut(bad[0].Addr, 100))}
	}
	p.subst = &m
	return nil
}

// mentions reports whether a placeholder stands in the mail at all: many applications send data that they use nowhere.
func (p *planner) mentions(m Merge) bool {
	stands := p.stands()
	for _, literals := range append(slices.Collect(maps.Values(m.RcptSubst)), m.Subst) {
		if slices.ContainsFunc(slices.Collect(maps.Keys(literals)), stands) {
			return true
		}
	}
	return false
}

// stands gives the search for a literal in the subject and the texts.
func (p *planner) stands() func(literal string) bool {
	texts := []string{p.base.Subject}
	for _, part := range []*mime.Part{p.Message.Text, p.Message.HTML} {
		if part == nil {
			continue
		}
		text, err := readAll(part)
		if err != nil {
			return func(string) bool { return true } // the error comes again where the text is read to be sent
		}
		texts = append(texts, text)
	}
	return func(l string) bool {
		return l != "" && slices.ContainsFunc(texts, func(t string) bool { return strings.Contains(t, l) })
	}
}

func (p *planner) bodySize() (n int64) {
	for _, t := range []*mime.Part{p.Message.Text, p.Message.HTML} {
		if t != nil {
			n += t.Size
		}
	}
	return n
}

// apart says that every recipient gets a copy of his own.
func (p *planner) apart() bool {
	o := &p.base.Options
	return p.subst != nil && len(p.subst.RcptSubst) > 0 || !p.mergeVisible() && (o.ExposeRcpts == Off || len(o.Merge.Rcpt) > 0)
}

// mergeVisible says that the account shows recipients with merge data of their own to each other.
func (p *planner) mergeVisible() bool {
	return p.Caps.MergeVisible && !p.useRaw && len(p.base.Options.Merge.Rcpt) > 0
}

// personal gives the call the merge data of its recipients.
func (p *planner) personal(m *Mail) error {
	o := &m.Options
	if p.apart() {
		o.ExposeRcpts = Off
	}
	if data := o.Merge.Rcpt; len(data) > 0 {
		o.Merge.Rcpt = nil
		if p.batch() || p.mergeVisible() && !p.apart() {
			o.Merge.Rcpt = map[string]map[string]any{}
			for _, r := range m.Rcpts {
				k := envelope.Fold(r.Addr)
				if d := data[k]; d != nil {
					o.Merge.Rcpt[k] = d
				}
			}
		} else if d := data[envelope.Fold(m.Rcpts[0].Addr)]; d != nil {
			all := maps.Clone(o.Merge.Global)
			if all == nil {
				all = map[string]any{}
			}
			maps.Copy(all, d)
			o.Merge.Global = all
		}
	}
	if p.subst == nil {
		return nil
	}
	r := newReplacer(p.subst, m.Rcpts[0].Addr)
	m.Subject = clean(r.Replace(m.Subject))
	if len(o.Metadata) > 0 {
		meta := make(map[string]string, len(o.Metadata))
		for k, v := range o.Metadata {
			meta[k] = clean(r.Replace(v))
		}
		o.Metadata = meta
	}
	msg := *m.Msg
	for _, part := range []**mime.Part{&msg.Text, &msg.HTML} {
		if *part == nil {
			continue
		}
		text, err := readAll(*part)
		if err != nil {
			return fmt.Errorf("read text: %w", err)
		}
		*part = mime.NewPart(r.Replace(text))
	}
	m.Msg = &msg
	return nil
}

func readAll(p *mime.Part) (string, error) {
	r := p.Open()
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, maxSubst+1))
	return string(b), err
}

// newReplacer replaces a recipient's literals before the common ones, a longer one before a shorter.
func newReplacer(m *Merge, addr string) *strings.Replacer {
	all := map[string]string{}
	maps.Copy(all, m.Subst)
	maps.Copy(all, m.RcptSubst[envelope.Fold(addr)])
	keys := slices.SortedFunc(maps.Keys(all), func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	pairs := make([]string, 0, 2*len(keys))
	for _, k := range keys {
		if k != "" {
			pairs = append(pairs, k, all[k])
		}
	}
	return strings.NewReplacer(pairs...)
}

// rawMerges reports whether the form chosen takes templates and merge data. Where there is a structured form, it is the one.
func (p *planner) rawMerges() bool { return !p.useRaw || p.Caps.RawFeatures && !p.Caps.JSON }

// batch reports whether one call gives each of its recipients a copy of his own. With literals to be replaced
// it cannot: they make another mail of it.
func (p *planner) batch() bool {
	m := &p.base.Options.Merge
	return p.Caps.Batch && !p.useRaw && (p.subst == nil || len(p.subst.RcptSubst) == 0) &&
		(!p.Caps.BatchMerge || len(m.Global)+len(m.Rcpt) > 0)
}
