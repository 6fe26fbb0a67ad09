package mandrill

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/mandrill/twin"
	"smtpbridge/providers/providertest"
	"smtpbridge/translate"
)

// planAs plans a mail with text and HTML, with all options permitted.
func planAs(t testing.TB, p providers.Provider, header string, rcpts ...string) []*translate.Mail {
	t.Helper()
	e := envelope.Envelope{ID: "q", From: "sender@example.com"}
	for _, r := range rcpts {
		e.Rcpts = append(e.Rcpts, envelope.Rcpt{Addr: r})
	}
	m := providertest.Parse(t, header+"From: sender@example.com\r\nTo: "+strings.Join(rcpts, ", ")+"\r\nSubject: Hello\r\nMIME-Version: 1.0\r\n"+
		"Content-Type: multipart/alternative; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nText *|NAME|*\r\n--b\r\nContent-Type: text/html\r\n\r\n<p>HTML</p>\r\n--b--\r\n")
	mails, _, err := translate.Apply(translate.Request{
		Envelope: e, Rcpts: e.Rcpts, Message: m, Caps: p.Capabilities(), Settings: translate.Settings{Permissions: []string{"all"}, Provider: name},
	})
	if err != nil {
		t.Fatal(err)
	}
	return mails
}

func TestTemplates(t *testing.T) {
	const merge = "X-MC-MergeVars: {\"NAME\":\"all\",\"n\":1}\r\nX-MC-MergeVars: {\"_rcpt\":\"one@example.org\",\"NAME\":\"One\"}\r\nX-MC-MergeLanguage: handlebars\r\n"
	for _, form := range forms {
		for _, tt := range []struct {
			name, header string
			call         string
			blocks       string
			merged       bool
		}{
			{"template", "X-MC-Template: welcome|body\r\n" + merge, "messages/send-template", "map[body:<p>HTML</p>]", true},
			{"template, default block", "X-MC-Template: welcome\r\n", "messages/send-template", "map[main:<p>HTML</p>]", true},
			{"template without a block", "X-Smtpbridge-Template: welcome\r\n" + merge, "messages/send-template", "map[]", true},
			{"merge tags in the body", merge, "messages/send", "map[]", true},
			{"neither", "", "", "map[]", false},
		} {
			t.Run(form+" "+tt.name, func(t *testing.T) {
				tw, url := serve(t, twin.Options{Templates: []string{"welcome"}, OneByOne: false, Now: clock})
				p := account(t, url, "form = \""+form+"\"")
				mails := planAs(t, p, tt.header, "one@example.org", "two@example.org")
				if len(mails) != 1 {
					t.Fatalf("%d calls", len(mails))
				}
				out, err := p.Send(t.Context(), mails[0])
				if err != nil {
					t.Fatal(err)
				}
				if len(out.Rcpts) != 2 || len(out.Lost) != 0 {
					t.Errorf("outcome %+v", out)
				}
				m := tw.Mails()[0]
				if tt.call == "" {
					tt.call = map[string]string{"raw": "messages/send-raw", "json": "messages/send"}[form]
				}
				if m.Call != tt.call || fmt.Sprint(m.Blocks) != tt.blocks {
					t.Errorf("call %s, blocks %v", m.Call, m.Blocks)
				}
				if m.Template != "" && m.Text+m.HTML != "" {
					t.Errorf("text beside the template: %q %q", m.Text, m.HTML)
				}
				personal := strings.Contains(tt.header, "MergeVars")
				if m.Preserve == personal {
					t.Errorf("preserve %v", m.Preserve)
				}
				if personal && (m.Vars["NAME"] != "all" || fmt.Sprint(m.Vars["n"]) != "1" || m.RcptVars["one@example.org"]["NAME"] != "One" || m.Language != "handlebars") {
					t.Errorf("merge data %v, %v, %s", m.Vars, m.RcptVars, m.Language)
				}
				for _, r := range m.Rcpts {
					if personal && !slices.Equal(r.Visible, []string{r.Email}) {
						t.Errorf("%s sees %v", r.Email, r.Visible)
					}
				}
			})
		}
	}
}

// TestMailsOwnMistake: a template or subaccount of the mail's own choice that does not exist is no reason to stop the account.
func TestMailsOwnMistake(t *testing.T) {
	for _, form := range forms {
		for header, want := range map[string]providers.Kind{"X-MC-Template: nosuch\r\n": providers.Permanent, "X-MC-Subaccount: nosuch\r\n": providers.Permanent} {
			_, url := serve(t, twin.Options{Now: clock})
			p := account(t, url, "form = \""+form+"\"")
			_, err := p.Send(t.Context(), planAs(t, p, header, "one@example.org")[0])
			var e *providers.Error
			if !errors.As(err, &e) || e.Kind != want {
				t.Errorf("%s %q: %v", form, header, err)
			}
		}
		_, url := serve(t, twin.Options{Now: clock})
		p := account(t, url, "form = \""+form+"\"\nsubaccount = \"nosuch\"")
		_, err := p.Send(t.Context(), planAs(t, p, "", "one@example.org")[0])
		var e *providers.Error
		if !errors.As(err, &e) || e.Kind != providers.Operator {
			t.Errorf("%s, the account's subaccount: %v", form, err)
		}
	}
}

func TestOptionsOfTheMail(t *testing.T) {
	const header = "X-MC-Subaccount: crm\r\nX-MC-IpPool: pool\r\nX-MC-ReturnPathDomain: r.example.com\r\nX-MC-Important: yes\r\nX-MC-ViewContentLink: yes\r\n" +
		"X-MC-InlineCSS: true\r\nX-MC-GoogleAnalytics: example.com, example.org\r\nX-MC-GoogleAnalyticsCampaign: c\r\nX-MC-Track: opens,clicks_htmlonly\r\n" +
		"X-MJ-CustomID: id-1\r\nX-Mailjet-Campaign: spring\r\nX-MC-URLStripQS: true\r\n"
	for _, form := range forms {
		tw, url := serve(t, twin.Options{Subaccounts: []string{"crm", "default"}, Now: clock})
		p := account(t, url, "form = \""+form+"\"\nsubaccount = \"default\"\nip_pool = \"other\"")
		mail := planAs(t, p, header, "one@example.org")[0]
		out, err := p.Send(t.Context(), mail)
		if err != nil {
			t.Fatal(err)
		}
		m := tw.Mails()[0]
		got := fmt.Sprint(m.Subaccount, " ", m.IPPool, " ", m.ReturnPath, " ", m.Important, " ", m.ViewLink, " ", m.Rewritten, " ", m.Domains, " ", m.Campaign, " ", m.Opens, " ", m.Clicks, " ", m.Tags, " ", m.Metadata["client_ref"])
		if want := "crm pool r.example.com true true true [example.com example.org] c true true [spring] id-1"; got != want {
			t.Errorf("%s: got  %s\nwant %s", form, got, want)
		}
		if form == "raw" && m.Links != "opens,clicks_htmlonly" {
			t.Errorf("X-MC-Track: %s", m.Links)
		}
		lost := slices.ContainsFunc(mail.Losses, func(l translate.Loss) bool { return l.Field == "tracking of clicks" })
		if lost != (form == "json") || len(out.Lost) > 0 {
			t.Errorf("%s: losses %v, %v", form, mail.Losses, out.Lost)
		}
	}
}
