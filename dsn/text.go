package dsn

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"mime/quotedprintable"
	"slices"
	"strings"
	"time"

	"smtpbridge/event"
)

// words is how an action is told to people.
type words struct {
	subject string // before the subject of the original
	bare    string // the whole subject, where the original has none
	intro   string
	after   string
}

var wordsFor = map[string]words{
	event.ActionFailed: {
		"Undeliverable: ", "Your message was not delivered",
		"Your message could not be delivered to %s below. Nothing more will be tried.",
		"If it is important, check the address, or reach the person in another way.",
	},
	event.ActionDelayed: {
		"Delayed: ", "Your message is delayed",
		"Your message has not been delivered yet to %s below. This is only a warning: delivery goes on by itself.",
		"Please do not send the message again.",
	},
	event.ActionDelivered: {
		"Delivered: ", "Your message was delivered",
		"Your message was delivered to the mail server of %s below, as you wished to be told.",
		"This does not say that anybody has read it.",
	},
	event.ActionRelayed: {
		"Relayed: ", "Your message was relayed",
		"Your message was handed to the mail service that delivers it to %s below, as you wished to be told.",
		"That service may not report whether it is delivered, so this can be the last you hear of it.",
	},
}

// hints say in plain words what a status (RFC 3463) means, and what to do about it. The longest prefix counts.
var hints = map[string]string{
	"5.1":    "The address is not accepted. Please check it.",
	"5.1.1":  "This address does not exist. Please check how it is spelt.",
	"5.1.2":  "The part after the @ does not exist, or takes no mail. Please check how it is spelt.",
	"5.1.3":  "This is not a valid mail address. Please check how it is spelt.",
	"5.1.6":  "The person has moved: this address is no longer in use.",
	"5.1.10": "The part after the @ takes no mail at all.",
	"5.2":    "The mailbox does not take the message.",
	"5.2.1":  "The mailbox is switched off.",
	"5.2.2":  "The mailbox is full.",
	"5.2.3":  "The message is too large for this mailbox. Please send less, or share large files in another way.",
	"5.3":    "The recipient's mail system does not take the message.",
	"5.3.4":  "The message is too large. Please send less, or share large files in another way.",
	"5.4":    "The recipient's mail system cannot be reached.",
	"5.6":    "The recipient's mail system does not take this kind of message.",
	"5.6.7":  "The address has letters that the mail system on the way does not support.",
	"5.7":    "The message was refused, for example because it looks like spam or because its sender is not permitted.",
	"4.2.2":  "The mailbox is full.",
	"4.4":    "The recipient's mail system cannot be reached at the moment.",
	"4.4.7":  "It could not be delivered for a long time, so it was given up.",
	"4":      "The mail system on the way cannot take it at the moment.",
	"5":      "The mail system on the way refuses the message.",
}

// reasonHints come before those of the status, which often says less.
var reasonHints = map[string]string{
	event.ReasonTimedOut:     "It could not be delivered for a long time, so it was given up.",
	event.ReasonSpam:         "The message was refused because it is taken for spam, or the recipient has reported one as spam.",
	event.ReasonUnsubscribed: "The recipient has unsubscribed from messages of this sender.",
}

func hint(e event.Event) string {
	if h, ok := reasonHints[e.RejectReason]; ok {
		return h
	}
	for s := e.Status; s != ""; {
		if h, ok := hints[s]; ok {
			return h
		}
		i := strings.LastIndexByte(s, '.')
		s = s[:max(i, 0)]
	}
	return ""
}

func (r *Report) subject() string {
	w := wordsFor[r.Action]
	if s := r.originalSubject(); s != "" {
		return w.subject + s
	}
	return w.bare
}

// maxListed is how many recipients the text for people names; the fields for programs have them all.
const maxListed = 100

// text is the part for people.
func (r *Report) text() part {
	var b strings.Builder
	w := wordsFor[r.Action]
	who := "the recipient"
	if len(r.Recipients) > 1 {
		who = fmt.Sprintf("the %d recipients", len(r.Recipients))
	}
	host := cmp.Or(r.Hostname, "localhost")
	fmt.Fprintf(&b, "This is an automatic message from the mail system %s.\n\n", host)
	b.WriteString(wrap(fmt.Sprintf(w.intro, who)) + "\n")
	until := time.Time{}
	for i, rc := range r.Recipients {
		if i == maxListed {
			fmt.Fprintf(&b, "\n    ... and %d more\n", len(r.Recipients)-maxListed)
			break
		}
		r.textRecipient(&b, rc.Event)
		if rc.Until.After(until) {
			until = rc.Until
		}
	}
	b.WriteString("\n" + wrap(w.after) + "\n")
	if r.Action == event.ActionDelayed && !until.IsZero() {
		b.WriteString(wrap("If it cannot be delivered by "+day(until)+", it is given up, and you are told unless you asked not to be.") + "\n")
	}
	b.WriteString("\nYour message:\n")
	if s := r.originalSubject(); s != "" {
		fmt.Fprintf(&b, "    Subject:  %s\n", s)
	}
	fmt.Fprintf(&b, "    Received: %s\n", day(r.Arrival))
	if r.EnvID != "" {
		fmt.Fprintf(&b, "    Your id:  %s\n", oneLine(r.EnvID))
	}
	fmt.Fprintf(&b, "    Queue id: %s (please name it when you ask for help)\n", oneLine(r.QueueID))
	switch {
	case r.Original != nil:
		b.WriteString("\nThe message itself is attached.\n")
	case r.Withheld != "":
		b.WriteString("\n" + wrap("The whole message was to be returned, but "+r.Withheld+". Only the header of the message is attached.") + "\n")
	case len(r.Header) > 0:
		b.WriteString("\nThe header of the message is attached.\n")
	}
	return textPart(b.String())
}

func (r *Report) textRecipient(b *strings.Builder, e event.Event) {
	fmt.Fprintf(b, "\n    %s\n", oneLine(e.Recipient))
	if r.Action == event.ActionDelivered || r.Action == event.ActionRelayed {
		return
	}
	if h := hint(e); h != "" {
		b.WriteString(indent(h))
	}
	if said := oneLine(cmp.Or(e.Diagnostic, e.SMTPReply)); said != "" {
		b.WriteString(indent("Details: " + said))
	}
}

// day is a date as people write it, without the seconds.
func day(t time.Time) string { return t.UTC().Format("Monday, 2 January 2006, 15:04 UTC") }

const (
	width  = 72
	margin = "        "
)

func indent(s string) string {
	return margin + strings.ReplaceAll(wrapTo(s, width-len(margin)), "\n", "\n"+margin) + "\n"
}

func wrap(s string) string { return wrapTo(s, width) }

// wrapTo breaks text at spaces; a longer word stays whole.
func wrapTo(s string, n int) string {
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) > n:
			lines, line = append(lines, line), word
		default:
			line += " " + word
		}
	}
	return strings.Join(slices.Concat(lines, []string{line}), "\n")
}

func textPart(s string) part {
	p := part{mediaType: "text/plain; charset=utf-8", title: "Notification", encoding: "7bit"}
	p.write = func(w io.Writer) error { return writeLines(w, []byte(s)) }
	if ascii(s) && !longLine([]byte(s)) {
		return p
	}
	p.encoding = "quoted-printable"
	p.write = func(w io.Writer) error {
		var b bytes.Buffer
		if err := writeLines(&b, []byte(s)); err != nil {
			return err
		}
		q := quotedprintable.NewWriter(w)
		if _, err := q.Write(b.Bytes()); err != nil {
			return err
		}
		return q.Close()
	}
	return p
}
