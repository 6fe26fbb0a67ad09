package smtpeter

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/httpapi"
)

// maxLog bounds a day's log file.
const maxLog = 16 << 20

// logs are the files that say what became of mail, and the webhook's word for their records.
var logs = []struct{ prefix, typ string }{{"failures", "failure"}, {"deliveries", "delivery"}}

// place is the cursor of Poll: the day (UTC) to read again.
type place struct {
	Day string `json:"day"`
}

// Poll reads the log files of each day since the last poll: https://www.smtpeter.com/en/documentation/rest-logfiles
func (p *provider) Poll(ctx context.Context, cursor []byte, record func([]event.Event) error) ([]byte, error) {
	today := p.now().UTC().Truncate(24 * time.Hour)
	day := today
	var at place
	if json.Unmarshal(cursor, &at) == nil {
		if d, err := time.Parse(time.DateOnly, at.Day); err == nil && !d.After(today) {
			day = d
		}
	} else if oldest := p.now().UTC().Add(-time.Hour).Truncate(24 * time.Hour); oldest.Before(day) {
		day = oldest
	}
	if oldest := today.AddDate(0, 0, -28); day.Before(oldest) {
		day = oldest // the events call spans a month; how long files are kept is not documented
	}
	for ; !day.After(today); day = day.AddDate(0, 0, 1) {
		for _, l := range logs {
			evs, err := p.readLog(ctx, fmt.Sprintf("%s.%s.log", l.prefix, day.Format(time.DateOnly)), l.typ)
			if err == nil && len(evs) > 0 {
				err = record(evs)
			}
			if err != nil {
				return fmt.Appendf(nil, `{"day":%q}`, day.Format(time.DateOnly)), err
			}
		}
	}
	return fmt.Appendf(nil, `{"day":%q}`, today.Format(time.DateOnly)), nil
}

// readLog reads a file's records about mail with our reference. A file that is not there has none.
func (p *provider) readLog(ctx context.Context, file, typ string) ([]event.Event, error) {
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "poll", Method: http.MethodGet, Header: http.Header{"Accept": {"application/json"}}, URL: p.url("logfiles/"+file+"/json", nil), MaxResponse: maxLog,
	})
	if err != nil {
		return nil, asLookup(err)
	}
	if resp.Status == http.StatusNotFound {
		return nil, nil
	}
	if !resp.OK() {
		e := p.classify(resp)
		e.Op = "poll"
		return nil, asLookup(e)
	}
	var rows []map[string]json.RawMessage
	if err := resp.JSON(&rows); err != nil {
		return nil, &providers.Error{Provider: name, Op: "poll", Kind: providers.Transient, HTTPStatus: resp.Status, Msg: file, Err: err}
	}
	var out []event.Event
	for _, row := range rows {
		if e := p.logged(typ, row); e.Ref != "" {
			out = append(out, e)
		}
	}
	return out, nil
}

// logged makes the event of a log's record. Its columns are those of the webhook but for two names.
func (p *provider) logged(typ string, row map[string]json.RawMessage) event.Event {
	f := fields{}
	for k, v := range row {
		if s := scalar(v); s != "" {
			f[k] = []string{s}
		}
	}
	if s := f.get("status"); s != "" && f.get("extended") == "" {
		f["extended"] = []string{s}
	}
	f["type"] = []string{typ} // the record's own "type" is MailerQ's result
	return p.parseEvent(f, p.now())
}

// Track asks for the events of one message: https://www.smtpeter.com/en/documentation/rest-events
func (p *provider) Track(ctx context.Context, t providers.Tracked) ([]event.Event, error) {
	path := "events/messageid/" + url.PathEscape(t.MessageID)
	if t.MessageID == "" {
		if t.Ref == "" || !p.set.ReferenceTag {
			return nil, nil
		}
		path = "events/tags/" + url.PathEscape(refPrefix+t.Ref)
	}
	start := t.Sent.UTC().AddDate(0, 0, -1)
	resp, err := p.client.Do(ctx, httpapi.Request{
		Op: "track", Method: http.MethodGet, Header: http.Header{"Accept": {"application/json"}},
		URL: p.url(path, url.Values{"start": {start.Format(time.DateOnly)}, "end": {start.AddDate(0, 0, 29).Format(time.DateOnly)}}),
	})
	if err != nil {
		return nil, asLookup(err)
	}
	if !resp.OK() {
		e := p.classify(resp)
		e.Op = "track"
		return nil, asLookup(e)
	}
	var list []tracked
	if err := resp.JSON(&list); err != nil {
		return nil, &providers.Error{Provider: name, Op: "track", Kind: providers.Transient, HTTPStatus: resp.Status, Err: err}
	}
	var out []event.Event
	for _, row := range list {
		// The documentation has called the field "type" and "event".
		typ := strings.ToLower(row.Event)
		if typ == "" {
			typ = strings.ToLower(row.Type)
		}
		switch typ {
		case "delivery", "failure", "bounce":
			e := p.logged(typ, row.Data)
			if e.Recipient == "" || loose(e.Recipient) == loose(t.Rcpt) {
				if t.MessageID != "" {
					e.ProviderMessageID = event.Clean(t.MessageID, 256)
				}
				out = append(out, e)
			}
		}
	}
	return out, nil
}
