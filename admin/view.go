package admin

import (
	"bytes"
	"time"

	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/store"
)

func mailView(m *store.Mail) Mail {
	e := &m.Envelope
	out := Mail{
		ID: e.ID, State: string(m.State), HoldReason: m.HoldReason, Received: e.Received, Finished: timePtr(m.Finished),
		From: e.From, FromHeader: m.FromHeader, Size: e.Size, MessageID: m.MessageID, Subject: m.Subject,
		Listener: e.Listener, Peer: e.Peer, User: e.AuthUser, Rcpts: make([]string, len(e.Rcpts)),
	}
	for i := range e.Rcpts {
		out.Rcpts[i] = e.Rcpts[i].Addr
	}
	return out
}

func detailView(d *store.Detail) *Detail {
	out := &Detail{Mail: mailView(&d.Mail), Events: d.Events, Headers: headers(d.Mail.Header), BodyKept: !d.Mail.BodyPurged}
	addrs := func(ns []int) []string {
		list := make([]string, 0, len(ns))
		for _, n := range ns {
			if n >= 0 && n < len(out.Rcpts) {
				list = append(list, out.Rcpts[n])
			}
		}
		return list
	}
	for i := range d.Rcpts {
		r := &d.Rcpts[i]
		out.Recipients = append(out.Recipients, Rcpt{
			Addr: r.Addr, State: string(r.State), Account: r.Account, ProviderMessageID: r.ProviderMessageID, WireMessageID: r.WireMessageID,
			Status: r.Status, Detail: r.Detail, Last: r.Last, LastTime: timePtr(r.LastTime),
		})
	}
	for i := range d.Jobs {
		j := &d.Jobs[i]
		out.Jobs = append(out.Jobs, Job{
			Route: j.Route, Account: j.Account, Accounts: j.Accounts, Rcpts: addrs(j.Rcpts),
			NextAt: j.NextAt, Attempts: j.Attempts, Expires: j.Expires, LastError: j.LastError,
		})
	}
	for i := range d.Attempts {
		a := &d.Attempts[i]
		out.Attempts = append(out.Attempts, Attempt{
			Account: a.Account, Attempt: a.Attempt, Started: a.Started, Elapsed: a.Elapsed, State: string(a.State),
			Kind: a.Kind, HTTPStatus: a.HTTPStatus, Detail: a.Detail, Rcpts: addrs(a.Rcpts),
		})
	}
	for _, n := range d.Notices {
		for _, a := range addrs([]int{n.N}) {
			out.Notices = append(out.Notices, Notice{Rcpt: a, Action: n.Action, At: n.Updated, Due: timePtr(n.Due), DSN: n.DSN, Reason: n.Reason})
		}
	}
	return out
}

// headers decodes the header block that the ledger keeps.
func headers(block []byte) []Field {
	m, err := mime.Parse(bytes.NewReader(block), int64(len(block)), mime.Limits{})
	if err != nil {
		return nil // it was within the limits when the mail came
	}
	out := make([]Field, len(m.Header))
	for i, f := range m.Header {
		out[i] = Field{Name: f.Name, Value: event.Clean(f.Value, maxHeaderValue)}
	}
	return out
}

const maxHeaderValue = 2000

func timePtr(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
