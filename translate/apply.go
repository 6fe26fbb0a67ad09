package translate

import (
	"fmt"
	"slices"
	"strings"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// Apply plans the calls for the recipients of r. The error, if any, is a *RefusalError, or says that the message, whose
// placeholders are to be replaced, could not be read.
// The Losses of each Mail are complete; those returned are their union without repeats.
func Apply(r Request) ([]*Mail, []Loss, error) {
	if len(r.Rcpts) == 0 {
		return nil, nil, nil
	}
	p := planner{Request: r}
	if err := p.prepare(); err != nil {
		return nil, nil, err
	}
	calls := p.split()
	mails := make([]*Mail, len(calls))
	var union lossList
	for i, c := range calls {
		mails[i] = p.mail(c)
		if err := p.personal(mails[i]); err != nil {
			return nil, nil, err
		}
		union.add(mails[i].Losses...)
	}
	return mails, union.list, nil
}

// planner is the work on one Request. What is the same for all calls is found once, by prepare.
type planner struct {
	Request
	useRaw  bool
	base    Mail // all that the calls share
	common  lossList
	people  people
	rewrite rawPlan
	subst   *Merge // literals to be replaced in the calls
}

func (p *planner) prepare() error {
	p.qualify()
	m := p.Message
	p.base = Mail{Env: p.Envelope, Msg: m, Subject: m.Subject}
	w := readWish(m.Header, p.Settings)
	if w.bad != nil && p.Settings.BadOptions == BadOptionsReject {
		return w.bad
	}
	p.chooseForm(w)
	p.base.UseRaw = p.useRaw
	if err := p.from(); err != nil {
		return err
	}
	if err := p.utf8(); err != nil {
		return err
	}
	if err := p.options(w); err != nil {
		return err
	}
	p.sender(w)
	p.people = newPeople(m, p.Rcpts)
	if p.useRaw {
		p.rawLosses(w)
	} else {
		if err := p.structured(w); err != nil {
			return err
		}
	}
	return p.size()
}

// chooseForm takes raw MIME where the API has it, as that keeps the most, unless the mail asks
// for something that only the structured form can do. A signed or encrypted mail stays raw: losing a tag is
// better than breaking the signature.
func (p *planner) chooseForm(w *wish) {
	c := &p.Caps
	switch {
	case c.Raw == RawNone:
		p.useRaw = false
	case !c.JSON, !w.any, p.Message.Signed, p.Message.Encrypted:
		p.useRaw = true
	case w.Template.ID != "", !w.Merge.empty():
		p.useRaw = false
	default:
		p.useRaw = c.RawFeatures || !p.asksStructured(w)
	}
	if !p.useRaw && c.Raw != RawNone && c.Fields != nil {
		p.Caps = *c.Fields
	}
}

// features reports whether the form chosen carries tags, metadata, schedule and tracking at all.
func (p *planner) features() bool { return !p.useRaw || p.Caps.RawFeatures }

func (p *planner) lose(s Severity, field, had, sent string) {
	p.common.add(Loss{Field: field, Had: had, Sent: sent, Severity: s})
}

// qualify completes bare addresses of the header, as the SMTP side does with those of the envelope.
func (p *planner) qualify() {
	if p.Settings.AppendDomain == "" {
		return
	}
	m := *p.Message
	for _, l := range []*[]mime.Address{&m.From, &m.To, &m.Cc, &m.ReplyTo} {
		for i, a := range *l {
			q := Qualify(a.Addr, p.Settings.AppendDomain)
			if q == a.Addr {
				continue
			}
			*l = slices.Clone(*l)
			(*l)[i].Addr = q
			if l == &m.From {
				p.rewrite.from = true
				p.lose(Info, "from", a.Addr, q)
			}
		}
	}
	p.Message = &m
}

// Qualify gives an address that has no domain this one.
func Qualify(addr, domain string) string {
	if domain == "" || addr == "" || strings.Contains(addr, "@") {
		return addr
	}
	return addr + "@" + domain
}

// from finds the one sender. Which of several the ESP would take is a guess we do not make: routing and
// the ESP must see the same address.
func (p *planner) from() error {
	m, b := p.Message, &p.base
	force := p.Settings.ForceFrom
	fields := countFields(m.Header, "from")
	if len(m.From) > 0 {
		b.From = m.From[0]
	}
	if p.Caps.AnyFrom && p.useRaw && force == "" {
		b.ReplyTo = m.ReplyTo
		return nil
	}
	if len(m.From) > 1 || fields > 1 {
		return &RefusalError{Status: "5.6.0", Text: "the message has several From addresses; send it with exactly one"}
	}
	b.ReplyTo = m.ReplyTo
	if force != "" {
		if len(m.From) == 0 || m.From[0].Addr != force {
			p.rewrite.from = true
			b.From.Addr = force
			if len(m.From) > 0 && len(m.ReplyTo) == 0 {
				b.ReplyTo = []mime.Address{m.From[0]}
				p.rewrite.replyTo = true
			}
			had := ""
			if len(m.From) > 0 {
				had = m.From[0].Addr
			}
			p.lose(Info, "from", had, force)
		}
		return nil
	}
	if len(m.From) == 0 {
		return &RefusalError{Status: "5.6.0", Text: "the message has no From address; add a From header, or set force_from for its route"}
	}
	if _, domain := envelope.Split(b.From.Addr); domain == "" {
		return &RefusalError{Status: "5.6.0", Text: fmt.Sprintf("the From address %q has no domain; use a full address, or set force_from for its route", cut(b.From.Addr, 100))}
	}
	return nil
}

// utf8 refuses what needs RFC 6531 at an ESP that has not got it.
func (p *planner) utf8() error {
	if p.Caps.ASCIIAddrs {
		if err := p.asciiDomains(); err != nil {
			return err
		}
	}
	if p.Caps.UTF8Local {
		return nil
	}
	if !p.useRaw {
		// The mail can do without: a reply goes to From.
		kept := slices.DeleteFunc(slices.Clone(p.base.ReplyTo), func(a mime.Address) bool {
			local, _ := envelope.Split(a.Addr)
			return !envelope.IsASCII(local)
		})
		if had := len(p.base.ReplyTo); len(kept) < had {
			p.lose(Major, "reply-to", plural(had-len(kept), "address")+" with non-ASCII characters before the @", "")
			p.base.ReplyTo = kept
		}
	}
	if local, _ := envelope.Split(p.base.From.Addr); !envelope.IsASCII(local) {
		return &RefusalError{Status: "5.6.7", Text: "the From address has non-ASCII characters before the @, which the provider cannot send; use an ASCII address, or set force_from for its route"}
	}
	var bad []envelope.Rcpt
	for _, r := range p.Rcpts {
		if local, _ := envelope.Split(r.Addr); !envelope.IsASCII(local) {
			bad = append(bad, r)
		}
	}
	if bad != nil {
		return &RefusalError{Status: "5.6.7", Rcpts: bad, Text: fmt.Sprintf("the provider cannot send to addresses with non-ASCII characters before the @ (%q); route them to an account that can", cut(bad[0].Addr, 100))}
	}
	return nil
}

// asciiDomains refuses what has no ASCII form: IDNA 2008 in the reading of UTS 46, as in envelope.FoldDomain.
func (p *planner) asciiDomains() error {
	if !envelope.IsASCII(envelope.Domain(p.base.From.Addr)) {
		return &RefusalError{Status: "5.6.7", Text: fmt.Sprintf("the domain of the From address %q is not valid as an internationalised domain, and the provider takes ASCII alone; correct it", cut(clean(p.base.From.Addr), 100))}
	}
	var bad []envelope.Rcpt
	for _, r := range p.Rcpts {
		if !envelope.IsASCII(envelope.Domain(r.Addr)) {
			bad = append(bad, r)
		}
	}
	if bad != nil {
		return &RefusalError{Status: "5.6.7", Rcpts: bad, Text: fmt.Sprintf("the domain of %q is not valid as an internationalised domain, and the provider takes ASCII alone; correct it", cut(clean(bad[0].Addr), 100))}
	}
	return nil
}

// ASCIIDomain gives an address with its domain as A-labels (RFC 5891), for an API that takes ASCII alone. One that is ASCII
// already, or has no such form, stays as it is.
func ASCIIDomain(addr string) string {
	local, domain := envelope.Split(addr)
	if envelope.IsASCII(domain) {
		return addr
	}
	return local + "@" + envelope.FoldDomain(domain)
}

func asciiDomains(list []mime.Address) []mime.Address {
	out := slices.Clone(list)
	for i := range out {
		out[i].Addr = ASCIIDomain(out[i].Addr)
	}
	return out
}

// tracking follows the mail, then the account. What the mail asked for and does not get is a loss; an
// account's setting that its ESP has no switch for is said once per mail too, but nobody misses it.
func (p *planner) tracking(w *wish, can bool) {
	c, o := &p.Caps, &p.base.Options
	one := func(field string, asked, setting Switch, able bool) Switch {
		want, sev := asked, Minor
		if want == Default {
			want, sev = setting, Info
		}
		if want != Default && !(able && can) {
			p.lose(sev, field, want.String(), "")
			return Default
		}
		return want
	}
	o.TrackOpens = one("tracking of opens", w.TrackOpens, p.Settings.TrackOpens, c.TrackOpens)
	o.TrackClicks = one("tracking of clicks", w.TrackClicks, p.Settings.TrackClicks, c.TrackClicks)
	if o.TrackClicks == On && w.ClicksIn != AnyBody {
		if c.ClickBodies {
			o.ClicksIn = w.ClicksIn
		} else {
			p.lose(Minor, "tracking of clicks", w.ClicksIn.String(), AnyBody.String())
		}
	}
	if c.TrackTogether && o.TrackOpens != o.TrackClicks {
		both := Off
		if o.TrackOpens == On || o.TrackClicks == On {
			both = On
		}
		p.lose(Minor, "tracking", fmt.Sprintf("opens %s, clicks %s", o.TrackOpens, o.TrackClicks), "both "+both.String())
		o.TrackOpens, o.TrackClicks = both, both
	}
}

// sender settles the envelope sender. The ESP's own return path in place of an ordinary sender is
// how such services work; in place of the null sender it makes a bounce of a bounce possible (RFC 5321 4.5.5).
func (p *planner) sender(w *wish) {
	c, o, env := &p.Caps, &p.base.Options, p.Envelope.From
	if w.EnvelopeFrom != "" {
		if !c.EnvelopeFrom {
			p.lose(Minor, "asked envelope sender", cut(w.EnvelopeFrom, 100), "")
		} else {
			env = w.EnvelopeFrom
		}
	}
	switch {
	case env != "" && c.EnvelopeFrom:
		o.EnvelopeFrom = env
	case env != "":
		o.EnvelopeFrom = p.base.From.Addr
		if !envelope.Equal(env, p.base.From.Addr) {
			p.lose(Info, "envelope sender", env, "")
		}
	case c.NullSender:
		o.EnvelopeFrom = ""
	case c.EnvelopeFrom && p.Settings.ReturnPath != "":
		o.EnvelopeFrom = p.Settings.ReturnPath
		p.lose(Major, "null sender", "<>", o.EnvelopeFrom)
	case c.EnvelopeFrom:
		o.EnvelopeFrom = p.base.From.Addr
		p.lose(Major, "null sender", "<>", o.EnvelopeFrom)
	default:
		if o.EnvelopeFrom = p.Settings.ReturnPath; o.EnvelopeFrom == "" {
			o.EnvelopeFrom = p.base.From.Addr
		}
		p.lose(Major, "null sender", "<>", "the provider's own return path")
	}
}

// size compares the message as it will be counted: raw as it is, structured with attachments in base64.
func (p *planner) size() error {
	m, c := p.Message, &p.Caps
	over := func(what string, size, limit int64, advice string) error {
		if limit <= 0 || size <= limit {
			return nil
		}
		return &RefusalError{Status: "5.3.4", Text: fmt.Sprintf("%s has %d bytes, the provider takes %d; %s", what, size, limit, advice)}
	}
	if !p.useRaw {
		for i := range m.Attachments {
			a := &m.Attachments[i]
			if err := over(fmt.Sprintf("attachment %d (%q)", i+1, cut(clean(a.Filename), 80)), a.Size, c.MaxAttachment, "send a smaller one or a link to it"); err != nil {
				return err
			}
		}
		for i, t := range []*mime.Part{m.Text, m.HTML} {
			if t == nil {
				continue
			}
			if err := over([]string{"the text", "the HTML text"}[i], t.Size, c.MaxText, "send a shorter one, or send it as an attachment"); err != nil {
				return err
			}
		}
	}
	size := m.Size
	if !p.useRaw {
		size = 0
		for _, t := range []*mime.Part{m.Text, m.HTML} {
			if t != nil {
				size += t.Size
			}
		}
		for i := range m.Attachments {
			size += (m.Attachments[i].Size + 2) / 3 * 4
		}
	}
	return over("the message", size, c.MaxBytes, "send smaller attachments or a link to them")
}

// mail makes the call c from what is common and its own share of people.
func (p *planner) mail(c call) *Mail {
	m := p.base
	m.Rcpts, m.To, m.Cc, m.Bcc = c.rcpts, c.to, c.cc, c.bcc
	m.raw = p.rewrite
	m.raw.keepReceived, m.raw.foreign = p.Settings.KeepReceived || p.Settings.Foreign, p.Settings.Foreign
	m.raw.asString = p.Caps.RawString
	m.raw.utf8 = p.Caps.UTF8Local
	m.raw.bcc = p.Caps.Raw == RawBccHeader || p.apart()
	// Calls share nothing that a provider might change.
	m.ReplyTo = slices.Clone(m.ReplyTo)
	m.Headers = slices.Clone(m.Headers)
	m.Attach = slices.Clone(m.Attach)
	if p.Caps.ASCIIAddrs {
		m.From.Addr = ASCIIDomain(m.From.Addr)
		m.To, m.Cc, m.Bcc, m.ReplyTo = asciiDomains(m.To), asciiDomains(m.Cc), asciiDomains(m.Bcc), asciiDomains(m.ReplyTo)
		m.Options.EnvelopeFrom = ASCIIDomain(m.Options.EnvelopeFrom)
	}
	losses := lossList{}
	losses.add(p.common.list...)
	losses.add(c.losses...)
	m.Losses = losses.list
	return &m
}

func (s Switch) String() string { return [...]string{"default", "on", "off"}[s] }

// lossList is a list of losses without repeats, in order of discovery.
type lossList struct {
	list []Loss
	seen map[Loss]bool // of a list too long to be searched
}

func (l *lossList) add(losses ...Loss) {
	const short = 16
	for _, x := range losses {
		if l.seen[x] || l.seen == nil && slices.Contains(l.list, x) {
			continue
		}
		l.list = append(l.list, x)
		if l.seen != nil {
			l.seen[x] = true
		} else if len(l.list) > short {
			l.seen = make(map[Loss]bool, 2*short)
			for _, y := range l.list {
				l.seen[y] = true
			}
		}
	}
}

func countFields(h mime.Header, name string) int {
	n := 0
	for i := range h {
		if strings.EqualFold(strings.TrimRight(h[i].Name, " \t"), name) {
			n++
		}
	}
	return n
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	switch what {
	case "entry":
		what = "entries"
	case "address":
		what = "addresses"
	default:
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}

// cut shortens outside text for a loss or a reply, at a rune.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return trim(s, n) + "..."
}

// trim takes the first n bytes at most, at a rune.
func trim(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xC0 == 0x80 {
		n--
	}
	return s[:n]
}
