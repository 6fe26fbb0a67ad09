package event

import (
	"maps"
	"slices"
	"time"
)

// Limits of the lists and texts of an event, in entries and bytes.
const (
	MaxList = 1000
	MaxID   = 128
	maxAddr = 512
	maxURL  = 2048
	maxTag  = 256
)

// Sanitize makes an event read from outside fit to be kept: every text is cut and stripped of
// control characters (see Clean), lists are bounded, and an id that is too long or holds odd
// characters is replaced by its FactID. Sanitizing twice changes nothing.
func (e *Event) Sanitize() {
	// JSON knows only the years of four digits; one event that cannot be written would stop the log.
	if !writable(e.Time) {
		e.Time = e.Seen
	}
	if e.WillRetryAt != nil && !writable(*e.WillRetryAt) {
		e.WillRetryAt = nil
	}
	if Clean(e.ID, MaxID+4) != e.ID || len(e.ID) > MaxID {
		e.ID = FactID(e.Account, "id", e.ID)
	}
	for _, f := range []struct {
		p   *string
		max int
	}{
		{&e.Recipient, maxAddr},
		{&e.Sender, maxAddr},
		{&e.MessageID, 998}, // RFC 5322 2.1.1: no line is longer
		{&e.Wire, 998},
		{&e.Subject, 998},
		{&e.ProviderMessageID, MaxText},
		{&e.ProviderEventID, MaxText},
		{&e.ProviderEvent, maxTag},
		{&e.Action, 32},
		{&e.Status, 32},
		{&e.Diagnostic, MaxText},
		{&e.RemoteMTA, maxAddr},
		{&e.RejectReason, 32},
		{&e.SMTPReply, MaxText},
		{&e.URL, maxURL},
		{&e.UserAgent, MaxText},
		{&e.IP, 64},
		{&e.EnvID, maxAddr},
		{&e.ORCPT, maxAddr},
		{&e.Outcome, 32},
		{&e.Ref, MaxText},
	} {
		*f.p = Clean(*f.p, f.max)
	}
	e.Candidates = cleanList(e.Candidates, maxAddr)
	e.Tags = cleanList(e.Tags, maxTag)
	if len(e.Metadata) > 0 {
		m := make(map[string]string, min(len(e.Metadata), MaxList))
		for _, k := range slices.Sorted(maps.Keys(e.Metadata)) {
			if len(m) == MaxList {
				break
			}
			m[Clean(k, maxTag)] = Clean(e.Metadata[k], MaxText)
		}
		e.Metadata = m
	}
}

func writable(t time.Time) bool { return t.Year() >= 1 && t.Year() <= 9999 }

func cleanList(in []string, max int) []string {
	if len(in) == 0 {
		return in
	}
	out := make([]string, 0, min(len(in), MaxList))
	for _, s := range in {
		if len(out) == MaxList {
			break
		}
		out = append(out, Clean(s, max))
	}
	return out
}
