package translate

import (
	"fmt"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

// people is who is who in one mail: the envelope's recipients as the headers show them.
type people struct {
	to, cc, bcc    []person // in header order; bcc in envelope order
	wantTo, wantCc []string // folded addresses in To and in Cc, without repeats
	twins          map[string][]envelope.Rcpt
}

// person is a recipient with the name the header gives him and the address RCPT gave.
type person struct {
	rcpt envelope.Rcpt
	key  string
	addr mime.Address
}

// newPeople applies the rule: to = To ∩ R, cc = Cc ∩ R (in both: to), bcc = the rest of R.
func newPeople(m *mime.Message, rcpts []envelope.Rcpt) people {
	var p people
	open := make(map[string]envelope.Rcpt, len(rcpts))
	order := make([]string, 0, len(rcpts))
	for _, r := range rcpts {
		k := envelope.Fold(r.Addr)
		if _, ok := open[k]; ok {
			// One mailbox in two spellings gets one copy; its second entry shares the first one's outcome.
			if p.twins == nil {
				p.twins = map[string][]envelope.Rcpt{}
			}
			p.twins[k] = append(p.twins[k], r)
			continue
		}
		open[k] = r
		order = append(order, k)
	}
	take := func(list []mime.Address) (found []person, want []string) {
		seen := make(map[string]bool, len(list))
		for _, a := range list {
			k := envelope.Fold(a.Addr)
			if seen[k] {
				continue
			}
			seen[k] = true
			want = append(want, k)
			if r, ok := open[k]; ok {
				delete(open, k)
				found = append(found, person{r, k, mime.Address{Name: a.Name, Addr: r.Addr}})
			}
		}
		return found, want
	}
	p.to, p.wantTo = take(m.To)
	p.cc, p.wantCc = take(m.Cc)
	for _, k := range order {
		if r, ok := open[k]; ok {
			p.bcc = append(p.bcc, person{r, k, mime.Address{Addr: r.Addr}})
		}
	}
	return p
}

func (p *people) all() []person {
	out := make([]person, 0, len(p.to)+len(p.cc)+len(p.bcc))
	return append(append(append(out, p.to...), p.cc...), p.bcc...)
}

// call is one call's share of the recipients.
type call struct {
	rcpts       []envelope.Rcpt
	to, cc, bcc []mime.Address
	losses      []Loss
}

// limits are a form's limits for one call; 0 = none.
type limits struct{ rcpts, to, cc, bcc int }

// split shares the recipients out over calls.
func (p *planner) split() []call {
	var calls []call
	switch {
	case p.apart() && p.batch() && !p.Settings.Split:
		calls = p.splitBatch()
	case p.apart():
		calls = p.splitOwn()
	case p.useRaw && p.Caps.Raw == RawEnvelope:
		calls = p.splitApart(false)
	case !p.useRaw && p.Caps.HeaderTo:
		calls = p.splitApart(true)
	default:
		calls = p.splitVisible()
	}
	if p.people.twins != nil {
		for i := range calls {
			for _, r := range calls[i].rcpts {
				calls[i].rcpts = append(calls[i].rcpts, p.people.twins[envelope.Fold(r.Addr)]...)
			}
		}
	}
	return calls
}

// splitOwn gives each recipient a call and a copy of his own, in which he sees himself alone. The mail asked
// for it, so nothing is lost.
func (p *planner) splitOwn() []call {
	var calls []call
	for _, x := range p.people.all() {
		calls = append(calls, call{rcpts: []envelope.Rcpt{x.rcpt}, to: []mime.Address{x.addr}})
	}
	return calls
}

// splitBatch is splitOwn where one call does it for many: all of them stand in to, and the provider
// says that each gets a copy of his own.
func (p *planner) splitBatch() []call {
	size := p.batchSize()
	var calls []call
	for all := p.people.all(); len(all) > 0; {
		n := len(all)
		if size > 0 {
			n = min(n, size)
		}
		var c call
		for _, x := range all[:n] {
			c.rcpts = append(c.rcpts, x.rcpt)
			c.to = append(c.to, x.addr)
		}
		calls = append(calls, c)
		all = all[n:]
	}
	return calls
}

// batchSize is how many copies fit one call, 0 for any number.
func (p *planner) batchSize() int {
	c := &p.Caps
	size := c.BatchMax
	if size <= 0 {
		size = c.MaxRcpts
		if n := c.MaxTo; n > 0 && (size <= 0 || n < size) {
			size = n
		}
	}
	if c.BatchBytes > 0 {
		// Each copy has the whole mail. A text may double when it is written as JSON, a file grows in base64.
		one := int64(4096) + 2*p.bodySize()
		for i := range p.base.Attach {
			one += (p.base.Attach[i].Size+2)/3*4 + 512
		}
		for _, h := range p.base.Headers {
			one += int64(2*len(h.Value)) + 64
		}
		largest := 0
		for _, data := range p.base.Options.Merge.Rcpt {
			largest = max(largest, len(scalarText(data)))
		}
		one += int64(largest + len(scalarText(p.base.Options.Merge.Global)))
		if n := int(max(1, c.BatchBytes/one)); size <= 0 || n < size {
			size = n
		}
	}
	return size
}

// splitApart is for calls whose recipients are given apart from what is shown: every copy shows the
// client's To and Cc, so a further call loses nothing.
func (p *planner) splitApart(display bool) []call {
	all := p.people.all()
	size := p.Caps.MaxRcpts
	if p.Settings.Split {
		size = 1
	}
	if size <= 0 {
		size = len(all)
	}
	alone := false
	if display && p.Caps.NeedsTo && len(p.Message.To) == 0 {
		// Nobody to show: Cc moves up, or each recipient sees himself.
		alone = len(p.Message.Cc) == 0
		if alone {
			size = 1
		}
	}
	var calls []call
	for len(all) > 0 {
		n := min(size, len(all))
		c := call{}
		for _, x := range all[:n] {
			c.rcpts = append(c.rcpts, x.rcpt)
		}
		switch {
		case alone:
			c.to = []mime.Address{all[0].addr}
		case display:
			c.to, c.cc = append(c.to, p.Message.To...), append(c.cc, p.Message.Cc...)
			if p.Caps.NeedsTo && len(c.to) == 0 {
				c.to, c.cc = c.cc, nil
				c.losses = append(c.losses, Loss{"cc", plural(len(c.to), "address"), "as to", Minor})
			}
		default:
			p.fill(&c, all[:n])
		}
		calls = append(calls, c)
		all = all[n:]
	}
	return calls
}

// fill says for the recipients of a raw call where each of them stands in the header.
func (p *planner) fill(c *call, share []person) {
	kind := make(map[string]*[]mime.Address, len(p.people.to)+len(p.people.cc))
	for _, x := range p.people.to {
		kind[x.key] = &c.to
	}
	for _, x := range p.people.cc {
		kind[x.key] = &c.cc
	}
	for _, x := range share {
		if l := kind[x.key]; l != nil {
			*l = append(*l, x.addr)
		} else {
			c.bcc = append(c.bcc, x.addr)
		}
	}
}

// splitVisible is for calls where being addressed and being shown are one thing. To and Cc of one call are
// never repeated in the next, as they would receive twice, and a blind recipient only ever
// stands in bcc, or alone in the to of a call that goes to nobody else.
func (p *planner) splitVisible() []call {
	c := &p.Caps
	lim := limits{rcpts: c.MaxRcpts, to: c.MaxTo, cc: c.MaxCc, bcc: c.MaxBcc}
	to, cc, bcc := p.people.to, p.people.cc, p.people.bcc
	raw := p.useRaw
	var moved *Loss
	switch {
	case !raw && !c.Cc && len(cc) > 0:
		moved = &Loss{"cc", plural(len(cc), "address"), "as to", Minor}
		to, cc = append(append([]person(nil), to...), cc...), nil
	case len(to) == 0 && len(cc) > 0 && (!raw || c.NeedsTo):
		moved = &Loss{"cc", plural(len(cc), "address"), "as to", Minor}
		to, cc = cc, nil
	}
	if p.Settings.Split {
		var calls []call
		for _, x := range p.people.all() {
			calls = append(calls, p.alone(x))
		}
		return calls
	}
	canBcc := raw || c.Bcc
	var calls []call
	for len(to)+len(cc)+len(bcc) > 0 {
		if len(to) == 0 && len(cc) == 0 && (!canBcc || c.NeedsTo) {
			for _, x := range bcc {
				calls = append(calls, p.alone(x))
			}
			break
		}
		room := lim.rcpts
		if room <= 0 {
			room = len(to) + len(cc) + len(bcc)
		}
		if len(to) == 0 && len(cc) > 0 && c.NeedsTo {
			// What is left of Cc after the To of an earlier call.
			moved = &Loss{"cc", plural(len(cc), "address"), "as to", Minor}
			to, cc = cc, nil
		}
		var one call
		var shown []string
		takeFrom := func(list []person, limit int, into *[]mime.Address, visible bool) []person {
			n := min(len(list), room)
			if limit > 0 {
				n = min(n, limit)
			}
			for _, x := range list[:n] {
				one.rcpts = append(one.rcpts, x.rcpt)
				*into = append(*into, x.addr)
				if visible {
					shown = append(shown, x.key)
				}
			}
			room -= n
			return list[n:]
		}
		to = takeFrom(to, lim.to, &one.to, true)
		cc = takeFrom(cc, lim.cc, &one.cc, true)
		if canBcc {
			bcc = takeFrom(bcc, lim.bcc, &one.bcc, false)
		}
		if moved != nil {
			one.losses = append(one.losses, *moved)
		}
		one.losses = append(one.losses, p.unseen(shown)...)
		calls = append(calls, one)
	}
	return calls
}

// alone is a call for one recipient, who sees himself as its only addressee.
func (p *planner) alone(x person) call {
	return call{
		rcpts:  []envelope.Rcpt{x.rcpt},
		to:     []mime.Address{x.addr},
		losses: p.unseen([]string{x.key}),
	}
}

// unseen says which addresses of To and Cc the call's readers do not see: it breaks reply-all.
func (p *planner) unseen(shown []string) []Loss {
	see := make(map[string]bool, len(shown))
	for _, k := range shown {
		see[k] = true
	}
	var out []Loss
	for _, h := range []struct {
		field string
		want  []string
	}{{"to", p.people.wantTo}, {"cc", p.people.wantCc}} {
		n := 0
		for _, k := range h.want {
			if see[k] {
				n++
			}
		}
		if n < len(h.want) {
			sent := ""
			if n > 0 {
				sent = fmt.Sprintf("%d of them", n)
			}
			out = append(out, Loss{h.field, plural(len(h.want), "address"), sent, Major})
		}
	}
	return out
}
