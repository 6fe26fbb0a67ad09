package mailersend

import (
	"fmt"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/mailersend/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

const mergeHeaders = "X-Smtpbridge-Merge: {\"shop\":\"S\",\"name\":\"all\"}\r\n" +
	"X-Smtpbridge-Merge-Recipients: {\"one@example.org\":{\"name\":\"One\"},\"two@example.org\":{\"name\":\"Two\"},\"blind@example.org\":{\"name\":\"Blind\"}}\r\n"

// batch plans and sends a mail to one and two in To, three in Cc and a blind one.
func batch(t *testing.T, p providers.Provider, header string) (mails []*translate.Mail, outs []*providers.Outcome) {
	t.Helper()
	e := envelope.Envelope{ID: "q", From: "sender@example.com"}
	for _, r := range []string{"one@example.org", "two@example.org", "three@example.org", "blind@example.org", "one@EXAMPLE.org"} {
		e.Rcpts = append(e.Rcpts, envelope.Rcpt{Addr: r})
	}
	m := providertest.Parse(t, header+"From: sender@example.com\r\nTo: one@example.org, two@example.org\r\nCc: three@example.org\r\nSubject: Hello {{name}}\r\n\r\nDear {{name}} of {{shop}}\r\n")
	mails, _, err := translate.Apply(translate.Request{
		Envelope: e, Rcpts: e.Rcpts, Message: m, Caps: p.Capabilities(), Settings: translate.Settings{Permissions: []string{"all"}, Provider: name},
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range mails {
		c.Ref = fmt.Sprint("ref-", i)
		out, err := p.Send(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		providertest.CheckOutcome(t, c, out)
		outs = append(outs, out)
	}
	return mails, outs
}

// sees lists of each mail its recipients, what its readers see, and the name it is written to.
func sees(mails []twin.Mail) (out []string) {
	for _, m := range mails {
		var visible, names []string
		for _, p := range slices.Concat(m.To, m.Cc) {
			visible = append(visible, p.Email)
		}
		for _, r := range m.Rcpts() {
			names = append(names, fmt.Sprint(m.Data[r]["name"]))
			if m.Data[r] != nil && m.Data[r]["shop"] != "S" {
				names = append(names, "no common data")
			}
		}
		out = append(out, strings.Join(m.Rcpts(), " ")+" | "+strings.Join(visible, " ")+" | "+strings.Join(names, " "))
	}
	return out
}

func TestBatch(t *testing.T) {
	own := []string{
		"one@example.org | one@example.org | One", "two@example.org | two@example.org | Two",
		"three@example.org | three@example.org | all", "blind@example.org | blind@example.org | Blind",
	}
	for _, tt := range []struct {
		mode, header string
		calls        int
		want         []string
		exposed      bool
	}{
		{"", mergeHeaders, 4, own, false},
		{"separate", mergeHeaders, 4, own, false},
		{"use-bulk-email", mergeHeaders, 1, own, false},
		{"use-bulk-email", "X-MC-PreserveRecipients: no\r\n", 1, []string{
			"one@example.org | one@example.org | <nil>", "two@example.org | two@example.org | <nil>",
			"three@example.org | three@example.org | <nil>", "blind@example.org | blind@example.org | <nil>",
		}, false},
		{"use-bulk-email", "", 1, []string{"one@example.org two@example.org three@example.org blind@example.org | one@example.org two@example.org three@example.org | <nil> <nil> <nil> <nil>"}, false},
		{"expose-to-list", mergeHeaders, 1, []string{"one@example.org two@example.org three@example.org blind@example.org | one@example.org two@example.org three@example.org | One Two all Blind"}, true},
		{"expose-to-list", "X-MC-PreserveRecipients: no\r\n", 4, []string{
			"one@example.org | one@example.org | <nil>", "two@example.org | two@example.org | <nil>",
			"three@example.org | three@example.org | <nil>", "blind@example.org | blind@example.org | <nil>",
		}, false},
	} {
		t.Run(tt.mode+" "+cutHeader(tt.header), func(t *testing.T) {
			tw := twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }})
			srv := httptest.NewServer(tw)
			defer srv.Close()
			options := ""
			if tt.mode != "" {
				options = fmt.Sprintf("batch_send_mode = %q", tt.mode)
			}
			p := suite(t, options).New(t, srv.URL, nil)
			mails, outs := batch(t, p, tt.header)
			if len(mails) != tt.calls {
				t.Errorf("%d calls", len(mails))
			}
			if got := sees(tw.Mails()); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			said := slices.ContainsFunc(mails[0].Losses, func(l translate.Loss) bool { return l.Field == "copies of their own" && l.Severity == translate.Major })
			if said != tt.exposed {
				t.Errorf("losses %+v", mails[0].Losses)
			}
			bulk := tt.mode == "use-bulk-email" && tt.header != ""
			if strings.HasPrefix(outs[0].MessageID, providers.BulkID) != bulk {
				t.Errorf("id %q", outs[0].MessageID)
			}
		})
	}
}

func cutHeader(s string) string {
	s, _, _ = strings.Cut(s, ":")
	return s
}

// TestBulkStatus: the batch's status becomes ids, refusals and suppressions of the recipients.
func TestBulkStatus(t *testing.T) {
	tw := twin.New(twin.Options{
		Token: providertest.Key, Now: func() time.Time { return suiteNow }, BulkPolls: 1,
		Suppressed: map[string]string{"two@example.org": "hard_bounced"},
	})
	srv := httptest.NewServer(tw)
	defer srv.Close()
	p := suite(t, "batch_send_mode = \"use-bulk-email\"").New(t, srv.URL, nil)
	mails, outs := batch(t, p, mergeHeaders)
	r := p.(providers.BulkResolver)
	if out, err := r.ResolveBulk(t.Context(), outs[0].MessageID, mails[0].Rcpts); out != nil || err != nil {
		t.Fatalf("still processing: %+v, %v", out, err)
	}
	out, err := r.ResolveBulk(t.Context(), outs[0].MessageID, mails[0].Rcpts)
	if err != nil {
		t.Fatal(err)
	}
	providertest.CheckOutcome(t, mails[0], out)
	ids := map[string]string{}
	for _, m := range tw.Mails() {
		ids[m.To[0].Email] = m.ID
	}
	for _, o := range out.Rcpts {
		addr := strings.Replace(o.Addr, "EXAMPLE", "example", 1)
		if addr == "two@example.org" {
			if o.Verdict != providers.Rejected || o.Reason != "bounced" || o.Status != "5.7.1" {
				t.Errorf("suppressed: %+v", o)
			}
		} else if o.Verdict != providers.Accepted || o.MessageID != ids[addr] || o.MessageID == "" {
			t.Errorf("%+v, want id %s", o, ids[addr])
		}
	}
	if out, err := r.ResolveBulk(t.Context(), "bulk:nosuch", mails[0].Rcpts); out != nil || err != nil {
		t.Errorf("unknown batch: %+v, %v", out, err)
	}
}

// TestBulkStatusForms: what the documentation leaves open is read in every form it may have, and never guessed.
func TestBulkStatusForms(t *testing.T) {
	rcpts := []envelope.Rcpt{{Addr: "a@example.org"}, {Addr: "b@example.org"}}
	for _, tt := range []struct{ name, data, want string }{
		{"list", `"state":"completed","messages_id":["i1","i2"]`, "1i1 1i2"},
		{"text that looks like a list", `"state":"completed","messages_id":"[\"i1\",\"i2\"]"`, "1i1 1i2"},
		{"text with single quotes", `"state":"completed","messages_id":"['i1', 'i2']"`, "1i1 1i2"},
		{"a mail is refused", `"state":"completed","messages_id":["i2"],"validation_errors":{"message.0":{"to.0.email":["bad #MS42208"]}}`, "2bad 1i2"},
		{"all are refused", `"state":"failed","messages_id":null,"validation_errors":{"message.0":["x"],"message.1":"y"}`, "2x 2y"},
		{"too few ids", `"state":"completed","messages_id":["i1"]`, "0 0"},
		{"too many ids", `"state":"completed","messages_id":["i1","i2","i3"]`, "0 0"},
		{"empty lists of PHP", `"state":"completed","messages_id":["i1","i2"],"validation_errors":[],"suppressed_recipients":[]`, "1i1 1i2"},
		{"queued", `"state":"queued"`, ""},
		{"no state", `"x":1`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rec := providertest.Canned(200, `{"data":{`+tt.data+`}}`)
			p := suite(t, "").New(t, "http://api.invalid", rec)
			out, err := p.(providers.BulkResolver).ResolveBulk(t.Context(), "bulk:1", rcpts)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			if out != nil {
				for _, o := range out.Rcpts {
					got = append(got, fmt.Sprint(uint8(o.Verdict))+o.MessageID+strings.TrimSuffix(strings.TrimPrefix(o.Detail, "MailerSend: "), " #MS42208"))
				}
			}
			if s := strings.Join(got, " "); s != tt.want {
				t.Errorf("got %q, want %q", s, tt.want)
			}
		})
	}
	p := suite(t, "").New(t, "http://api.invalid", providertest.Canned(200, "<html>"))
	if _, err := p.(providers.BulkResolver).ResolveBulk(t.Context(), "bulk:1", rcpts); err == nil {
		t.Error("a page was read as a status")
	}
}

func TestTemplate(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }})
	srv := httptest.NewServer(tw)
	defer srv.Close()
	p := suite(t, "").New(t, srv.URL, nil)
	for _, tt := range []struct{ name, subject, header, want string }{
		{"template", "Hello", "X-MC-Template: welcome\r\nX-MC-MergeVars: {\"n\":1}\r\n", "welcome|Hello||map[n:1]"},
		{"the template's subject", "", "X-Smtpbridge-Template: welcome\r\n", "welcome|||map[]"},
	} {
		e := envelope.Envelope{ID: "q", From: "sender@example.com", Rcpts: []envelope.Rcpt{{Addr: "one@example.org"}}}
		m := providertest.Parse(t, tt.header+"From: sender@example.com\r\nTo: one@example.org\r\nSubject: "+tt.subject+"\r\n\r\nbody\r\n")
		mails, losses, err := translate.Apply(translate.Request{Envelope: e, Rcpts: e.Rcpts, Message: m, Caps: p.Capabilities(), Settings: translate.Settings{Permissions: []string{"all"}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Send(t.Context(), mails[0]); err != nil {
			t.Fatal(err)
		}
		got := tw.Mails()[len(tw.Mails())-1]
		if s := fmt.Sprint(got.Template, "|", got.Subject, "|", got.Text+got.HTML, "|", got.Data["one@example.org"]); s != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, s, tt.want)
		}
		if !slices.ContainsFunc(losses, func(l translate.Loss) bool { return l.Field == "text" && strings.Contains(l.Sent, "welcome") }) {
			t.Errorf("%s: losses %+v", tt.name, losses)
		}
	}
}

// TestExtraMembers: members of the mail's own are in each mail of a batch; a wrong one is MailerSend's to refuse.
func TestExtraMembers(t *testing.T) {
	tw := twin.New(twin.Options{Token: providertest.Key, Now: func() time.Time { return suiteNow }})
	srv := httptest.NewServer(tw)
	defer srv.Close()
	p := suite(t, "batch_send_mode = \"use-bulk-email\"").New(t, srv.URL, nil)
	batch(t, p, mergeHeaders+"X-Smtpbridge-Extra-MailerSend: {\"settings\":{\"track_content\":false},\"tags\":[\"extra\"]}\r\n")
	mails := tw.Mails()
	if len(mails) != 4 {
		t.Fatalf("%d mails", len(mails))
	}
	for _, m := range mails {
		if on, said := m.Settings["track_content"]; on || !said || !slices.Equal(m.Tags, []string{"sb-ref-0", "extra"}) || m.Text == "" {
			t.Errorf("settings %v, tags %q", m.Settings, m.Tags)
		}
	}
}
