package maileroo

import (
	"errors"
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/maileroo/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

// optionsNow is the clock of providertest.
var optionsNow = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

func planWith(t *testing.T, p providers.Provider, set translate.Settings, header string, rcpts ...string) ([]*translate.Mail, error) {
	t.Helper()
	e := envelope.Envelope{ID: "q", From: "sender@example.com"}
	for _, r := range rcpts {
		e.Rcpts = append(e.Rcpts, envelope.Rcpt{Addr: r})
	}
	m := providertest.Parse(t, header+"From: sender@example.com\r\nTo: one@example.org, two@example.org\r\nSubject: Hello {{name}}\r\n\r\nDear {{name}}\r\n")
	set.Permissions, set.Provider = []string{"all"}, name
	mails, _, err := translate.Apply(translate.Request{Envelope: e, Rcpts: e.Rcpts, Message: m, Caps: p.Capabilities(), Settings: set})
	return mails, err
}

func TestTemplatesAndBulk(t *testing.T) {
	const global = "X-Smtpbridge-Merge: {\"name\":\"all\",\"n\":[1]}\r\n"
	const own = global + "X-Smtpbridge-Merge-Recipients: {\"one@example.org\":{\"name\":\"One\"},\"blind@example.org\":{\"name\":\"Blind\"}}\r\n"
	const template = "X-Smtpbridge-Template: 2549\r\n"
	for _, tt := range []struct {
		name, header string
		rcpts        string
		split        bool
		calls        int
		want         []string // of each mail: kind, recipients, data
		text         bool
	}{
		{"template", template, "one two", false, 1, []string{"template one two map[]"}, false},
		{"template with data", template + global, "one two", false, 1, []string{"template one two map[n:[1] name:all]"}, false},
		{"template, data of their own", template + own, "one two blind", false, 1, []string{
			"bulk one map[n:[1] name:One]", "bulk two map[n:[1] name:all]", "bulk blind map[n:[1] name:Blind]",
		}, false},
		{"template, data of its own", template + own, "one", false, 1, []string{"template one map[n:[1] name:One]"}, false},
		{"template, data of their own, a call each", template + own, "one two", true, 2, []string{"template one map[n:[1] name:One]", "template two map[n:[1] name:all]"}, false},
		{"data in the text", global, "one two", false, 1, []string{"bulk one two map[n:[1] name:all]"}, true},
		{"data of their own in the text", own, "one two", false, 1, []string{"bulk one map[n:[1] name:One]", "bulk two map[n:[1] name:all]"}, true},
		{"data of its own in the text", own, "one", false, 1, []string{"bulk one map[n:[1] name:One]"}, true},
		{"copies of their own, no data", "X-MC-PreserveRecipients: no\r\n", "one two", false, 2, []string{"mail one map[]", "mail two map[]"}, true},
		{"neither", "", "one two", false, 1, []string{"mail one two map[]"}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tw := twin.New(twin.Options{Key: providertest.Key, Now: func() time.Time { return optionsNow }})
			srv := httptest.NewServer(tw)
			defer srv.Close()
			p := suite(t).New(t, srv.URL, nil)
			var rcpts []string
			for _, r := range strings.Fields(tt.rcpts) {
				rcpts = append(rcpts, r+"@example.org")
			}
			mails, err := planWith(t, p, translate.Settings{Split: tt.split}, tt.header, rcpts...)
			if err != nil {
				t.Fatal(err)
			}
			if len(mails) != tt.calls {
				t.Errorf("%d calls", len(mails))
			}
			ids := map[string]string{}
			for i, m := range mails {
				m.Ref = fmt.Sprint("ref-", i)
				out, err := p.Send(t.Context(), m)
				if err != nil {
					t.Fatal(err)
				}
				providertest.CheckOutcome(t, m, out)
				for _, r := range out.Rcpts {
					if ids[r.Addr] = r.MessageID; r.MessageID == "" {
						ids[r.Addr] = out.MessageID
					}
				}
			}
			var got []string
			for _, m := range tw.Mails() {
				kind := "mail"
				switch {
				case m.Bulk:
					kind = "bulk"
				case m.TemplateID != 0:
					kind = "template"
				}
				if (m.HTML != nil || m.Plain != nil) != tt.text || (m.TemplateID == 2549) == tt.text {
					t.Errorf("template %d, text %v", m.TemplateID, m.Plain)
				}
				line := []string{kind}
				for _, a := range slices.Concat(m.To, m.Cc, m.Bcc) {
					line = append(line, strings.TrimSuffix(a.Address, "@example.org"))
					if ids[a.Address] != m.ReferenceID {
						t.Errorf("%s: id %s, want %s", a.Address, ids[a.Address], m.ReferenceID)
					}
				}
				got = append(got, strings.Join(append(line, fmt.Sprint(m.Data)), " "))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestTemplateByName(t *testing.T) {
	p := suite(t).New(t, "http://127.0.0.1:1", nil)
	for _, id := range []string{"welcome", "0", "-1", "1.5", "99999999999999999999"} {
		_, err := planWith(t, p, translate.Settings{}, "X-MC-Template: "+id+"\r\n", "one@example.org")
		var refused *translate.RefusalError
		if !errors.As(err, &refused) || refused.Status != "5.6.3" || !strings.Contains(refused.Text, "number") {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// TestBulkIsNotScheduled: Maileroo schedules single mails only, so the bridge keeps a batch until its time.
func TestBulkIsNotScheduled(t *testing.T) {
	p := suite(t).New(t, "http://127.0.0.1:1", nil)
	const at = "X-Smtpbridge-Send-At: 2026-11-24T12:00:00Z\r\n"
	for header, held := range map[string]bool{"": false, "X-Smtpbridge-Merge: {\"name\":\"x\"}\r\n": true, "X-Smtpbridge-Template: 1\r\n": false} {
		mails, err := planWith(t, p, translate.Settings{}, at+header, "one@example.org", "two@example.org")
		if err != nil {
			t.Fatal(err)
		}
		if got := mails[0].HoldUntil().After(optionsNow); got != held {
			t.Errorf("%q: held %v", header, got)
		}
	}
}

// TestBulkIDs: an answer without the ids leaves those that we gave.
func TestBulkIDs(t *testing.T) {
	for _, data := range []string{`{"reference_ids":[]}`, `null`, `{"reference_ids":["x"]}`} {
		p := suite(t).New(t, "http://api.invalid", providertest.Canned(200, `{"success":true,"message":"m","data":`+data+`}`))
		mails, err := planWith(t, p, translate.Settings{}, "X-Smtpbridge-Merge: {\"name\":\"x\"}\r\nX-Smtpbridge-Batch: yes\r\n", "one@example.org", "two@example.org")
		if err != nil {
			t.Fatal(err)
		}
		mails[0].Ref = "r"
		out, err := p.Send(t.Context(), mails[0])
		if err != nil {
			t.Fatal(err)
		}
		for i, r := range out.Rcpts {
			if r.Verdict != providers.Accepted || r.MessageID != memberID("r", i) {
				t.Errorf("%s: %+v", data, r)
			}
		}
	}
}
