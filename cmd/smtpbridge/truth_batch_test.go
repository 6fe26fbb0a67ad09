package main

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	mailersend "smtpbridge/providers/mailersend/twin"
)

// batchRounds is how many random mails with merge data each account gets.
const batchRounds = 100

// batchPlace is, by account, where a bulk request has its list of mails, each of which is seen by its own recipients alone. ".": it
// is the list.
var batchPlace = map[string]string{"maileroo": "messages", "mailersend-bulk": "."}

// mails takes the mails of a bulk request apart.
func (r recorded) mails(batch string) []recorded {
	if batch == "" {
		return []recorded{r}
	}
	var list []json.RawMessage
	if batch == "." {
		_ = json.Unmarshal(r.body, &list)
	} else {
		var o map[string]json.RawMessage
		if json.Unmarshal(r.body, &o) == nil {
			_ = json.Unmarshal(o[batch], &list)
		}
	}
	if len(list) == 0 {
		return []recorded{r} // one mail, by another call of the API
	}
	var out []recorded
	for _, one := range list {
		out = append(out, recorded{r.where, one})
	}
	return out
}

// TestEnvelopeIsTheTruthOfBatches is TestEnvelopeIsTheTruth for mails with merge data, templates, copies of their own and times to
// be sent at: in every form of every API each recipient gets one mail, his own, and sees nobody else.
func TestEnvelopeIsTheTruthOfBatches(t *testing.T) {
	ends := truthEnds(200)
	for i := range ends {
		e := &ends[i]
		switch e.provider {
		case "mandrill":
			e.blind = append(e.blind, "message.merge_vars")
		case "mailersend":
			e.blind = append(e.blind, "personalization")
		case "smtpeter":
			e.blind = append(e.blind, "data")
		}
	}
	bulk := mailersend.New(mailersend.Options{Token: truthKey, PerMinute: 1 << 30, PerDay: 1 << 30, Keep: 200})
	ends = append(ends, truthEnd{
		"mailersend-bulk", "mailersend", "[account.options]\nplan = \"professional\"\nbatch_send_mode = \"use-bulk-email\"", bulk,
		each(bulk.Mails, mailersend.Mail.Rcpts),
		[]string{"bcc", "personalization"},
	})
	for _, e := range ends {
		t.Run(e.name, func(t *testing.T) {
			t.Parallel()
			newTruth(t, []truthEnd{e}).mails(t, batchRounds, randomBatch)
		})
	}
}

// randomBatch is a random mail that asks for a copy for each recipient, in one of the ways that applications have.
func randomBatch(r *rand.Rand) randomised {
	m := randomMail(r)
	seen := map[string]bool{}
	var addrs []string
	for _, rc := range m.env.Rcpts {
		if !seen[rc.Addr] {
			seen[rc.Addr] = true
			addrs = append(addrs, rc.Addr)
		}
		m.blind[rc.Addr] = true // to all others
	}
	own := map[string]map[string]string{} // some have data of their own
	var values []string
	for i, a := range addrs {
		values = append(values, fmt.Sprint("value", i))
		if r.IntN(4) > 0 {
			own[a] = map[string]string{"name": values[i]}
		}
	}
	js := func(v any) string {
		b, err := json.Marshal(v)
		if err != nil {
			panic(err)
		}
		return strings.ReplaceAll(string(b), ",", ",\r\n ") // short lines
	}
	var head, hole string
	switch r.IntN(5) {
	case 0:
		hole = "*|NAME|*"
		head = "X-MC-MergeVars: " + js(map[string]string{"name": "everybody"}) + "\r\nX-MC-PreserveRecipients: no\r\n"
		for a, data := range own {
			head += "X-MC-MergeVars: " + js(map[string]string{"_rcpt": a, "name": data["name"]}) + "\r\n"
		}
	case 1:
		hole = "%recipient.name%"
		for i, a := range addrs { // nothing common stands in for what is missing
			own[a] = map[string]string{"name": values[i]}
		}
		head = "X-Mailgun-Recipient-Variables: " + js(own) + "\r\n"
	case 2:
		m.template = true
		head = "X-Smtpbridge-Template: 17\r\nX-Smtpbridge-Batch: yes\r\nX-Smtpbridge-Merge-Recipients: " + js(own) + "\r\n"
	case 3:
		head = "X-Smtpbridge-Batch: yes\r\n"
	case 4:
		hole = "-name-"
		head = "X-SMTPAPI: " + js(map[string]any{"to": addrs, "sub": map[string]any{hole: values}}) + "\r\n"
	}
	if r.IntN(3) == 0 {
		head += "X-Smtpbridge-Send-At: " + time.Now().Add(time.Hour).UTC().Format(time.RFC3339) + "\r\n"
	}
	m.text = head + strings.Replace(m.text, "hello", "hello "+hole, 1)
	m.env.Received, m.env.Size = time.Now().UTC(), int64(len(m.text))
	return m
}
