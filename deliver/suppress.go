package deliver

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// suppress rejects the recipients of the claim that are on the suppression list and in no call yet. Mail that the bridge makes
// itself, or takes from an ESP, has no route and is not concerned. False: the list could not be asked, and the mail waits.
func (w *work) suppress() bool {
	if !w.p.c.Suppression || w.rt == nil {
		return true
	}
	domain, stream, skip := audience(&w.c.Mail, w.msg.Header, w.p.settings(w.c.Mail.Envelope, w.rt, w.a, false))
	if skip {
		return true
	}
	free := w.c.Rcpts[:0:0]
	for _, r := range w.c.Rcpts {
		s, err := w.r.q.Suppressed(w.ctx(), r.Addr, domain, stream)
		switch {
		case err != nil:
			w.r.log.ownFault("suppression list", w.id(), err)
			w.putOff(w.now.Add(ownFaultWait), "the suppression list could not be read")
			return false
		case s == nil:
			free = append(free, r)
		default:
			w.final(r.N, store.RcptRejected, fact{
				kind: event.Rejected, n: r.N, account: w.l.name, attempt: w.attempt(r.N),
				status: "5.7.1", text: SuppressedText(s), reason: suppressedReason(s.Reason),
			})
		}
	}
	w.c.Rcpts = free
	return true
}

// audience is what a mail's suppression entries are kept by: the domain it is from and the stream it belongs to,
// and whether it asks, with permission, that the list be left alone.
func audience(m *store.Mail, h mime.Header, s translate.Settings) (domain, stream string, skip bool) {
	o, _ := translate.ReadOptions(h, s)
	return envelope.FoldDomain(envelope.Domain(cmp.Or(m.FromHeader, m.Envelope.From))), cmp.Or(o.Stream, o.UnsubGroup, listID(h.Get("List-Id"))), o.SkipSuppression
}

// listID is the identifier of a List-Id field: RFC 2919 3.
func listID(field string) string {
	if i := strings.LastIndexByte(field, '<'); i >= 0 {
		field, _, _ = strings.Cut(field[i+1:], ">")
	}
	return strings.ToLower(event.Clean(field, 255))
}

// Audience is the From domain and the stream of a mail of the ledger, for the follower that keeps the suppression list.
func (p *Planner) Audience(m *store.Mail, account string) (domain, stream string) {
	h := p.header(m)
	var s translate.Settings
	if a, ok := p.Account(account); ok {
		// As when it was sent: what its route permits counts.
		q := query(m, h)
		if len(m.Envelope.Rcpts) > 0 {
			q.Rcpt = m.Envelope.Rcpts[0].Addr
		}
		rt, ok := p.c.Routes.Lookup(q)
		if !ok {
			rt = &route.Route{}
		}
		s = p.settings(m.Envelope, rt, a, false)
	}
	domain, stream, _ = audience(m, h, s)
	return domain, stream
}

// header is that of a mail in the ledger, which outlives its body.
func (p *Planner) header(m *store.Mail) mime.Header {
	head := slices.Concat(m.Header, []byte("\r\n"))
	msg, err := mime.Parse(bytes.NewReader(head), int64(len(head)), p.c.Limits)
	if err != nil {
		return nil
	}
	return msg.Header
}

func suppressedReason(reason string) string {
	switch reason {
	case store.ReasonBounced:
		return event.ReasonBounced
	case store.ReasonComplained:
		return event.ReasonSpam
	case store.ReasonUnsubscribed:
		return event.ReasonUnsubscribed
	}
	return event.ReasonBlocked
}

// SuppressedText says why an address receives nothing.
func SuppressedText(s *store.Suppression) string {
	text := "the address is on the suppression list (" + s.Reason
	if !s.Created.IsZero() {
		text += " " + s.Created.UTC().Format(time.DateOnly)
	}
	for _, x := range []struct{ what, value string }{{"mail from", s.Domain}, {"stream", s.Stream}} {
		if x.value != "" {
			text += fmt.Sprintf(", for %s %s", x.what, x.value)
		}
	}
	return text + "); smtpbridge suppression remove takes it off"
}
