package deliver

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/route"
	"smtpbridge/translate"
)

// TestHeaderRules: a sensitive header counts where a listener, a user or the route permits it, and only there.
func TestHeaderRules(t *testing.T) {
	recipients, all := []string{"recipients"}, []string{"all"}
	for _, tt := range []struct {
		name           string
		listener, user HeaderRules
		authUser       string
		route          []string
		staging        []string // allow_recipients
		limit          int
		direct         bool
		header         string // beside X-MC-BccAddress
		added, refused bool
		reply          string // of a mail that is refused
		loss           string
	}{
		{name: "nobody permits it", loss: "permission recipients is not given"},
		{name: "another permission", listener: HeaderRules{Permissions: []string{"template", "subaccount", "sender", "suppression", "notify", "esp-extra"}}, loss: "permission recipients"},
		{name: "the listener", listener: HeaderRules{Permissions: recipients}, added: true},
		{name: "all of the listener", listener: HeaderRules{Permissions: all}, added: true},
		{name: "the user", user: HeaderRules{Permissions: recipients}, authUser: "crm", added: true},
		{name: "another user", user: HeaderRules{Permissions: recipients}, authUser: "cron", loss: "permission recipients"},
		{name: "nobody logged in", user: HeaderRules{Permissions: recipients}, loss: "permission recipients"},
		{name: "the route", route: recipients, added: true},
		{name: "another dialect", listener: HeaderRules{Permissions: all, Dialects: []string{"postmark"}}, loss: "dialect mandrill is not permitted"},
		{name: "no dialect", listener: HeaderRules{Permissions: all, Dialects: []string{}}, loss: "dialect mandrill is not permitted"},
		{name: "the user's dialects", listener: HeaderRules{Permissions: all, Dialects: []string{}}, user: HeaderRules{Dialects: []string{"mandrill"}}, authUser: "crm", added: true},
		{name: "the user has none", listener: HeaderRules{Permissions: all}, user: HeaderRules{Dialects: []string{}}, authUser: "crm", loss: "dialect mandrill is not permitted"},
		{name: "staging", listener: HeaderRules{Permissions: all}, staging: []string{"r.example"}, added: true, refused: true},
		{name: "one too many", listener: HeaderRules{Permissions: all}, limit: 1, reply: "552 5.5.3"},
		{name: "just enough", listener: HeaderRules{Permissions: all}, limit: 2, added: true},
		{name: "taken from an ESP", listener: HeaderRules{Permissions: all}, direct: true, loss: "dialect mandrill is not permitted"},
		{name: "malformed", header: "X-PM-TrackOpens: perhaps\r\n", loss: "not a yes or no"},
		{name: "malformed, strict", header: "X-PM-TrackOpens: perhaps\r\n", listener: HeaderRules{BadOptions: translate.BadOptionsReject}, reply: "554 5.6.0"},
		{name: "malformed, not read", header: "X-PM-TrackOpens: perhaps\r\n", listener: HeaderRules{BadOptions: translate.BadOptionsReject, Dialects: []string{"mandrill"}}, loss: "permission recipients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			rt := route.Route{Senders: []string{"example.com"}, Accounts: []string{"full"}, Permissions: tt.route, AllowRecipients: tt.staging}
			p := NewPlanner(PlannerConfig{
				Accounts: planAccounts(), Routes: table(t, rt),
				Listeners: map[string]HeaderRules{"apps": tt.listener}, Users: map[string]HeaderRules{"crm": tt.user},
			})
			req := planRequest(tt.header+"X-MC-BccAddress: audit@a.example\r\n"+plainMail, "app@example.com", "r@r.example")
			req.Envelope.AuthUser, req.MaxRcpts = tt.authUser, tt.limit
			if tt.direct {
				req.Accounts = []string{"full"}
			}
			plan, err := p.Plan(req)
			var refusal *Refusal
			if errors.As(err, &refusal) != (tt.reply != "") || refusal != nil && !strings.HasPrefix(refusal.Error(), tt.reply) {
				t.Fatalf("got %v, want %q", err, tt.reply)
			}
			if tt.reply != "" {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			added := slices.ContainsFunc(plan.Mail.Envelope.Rcpts, func(r envelope.Rcpt) bool { return r.Addr == "audit@a.example" })
			if added != tt.added || (len(plan.Refused) > 0) != tt.refused || len(plan.Mail.Envelope.Rcpts) > 2 {
				t.Errorf("recipients %v, refused %v", plan.Mail.Envelope.Rcpts, plan.Refused)
			}
			v := plan.Groups[0].Verdicts[0]
			said := slices.ContainsFunc(v.Losses, func(l translate.Loss) bool { return tt.loss != "" && strings.Contains(l.Had, tt.loss) })
			if said != (tt.loss != "") {
				t.Errorf("losses %+v, want %q", v.Losses, tt.loss)
			}
			for _, m := range v.Calls {
				if len(m.To) != 1 || len(m.Cc) != 0 || m.To[0].Addr != "r@r.example" {
					t.Errorf("shows %v %v", m.To, m.Cc)
				}
				for _, h := range m.Headers {
					if translate.IsOptionHeader(h.Name) {
						t.Errorf("%s leaves", h.Name)
					}
				}
			}
		})
	}
}

// TestBareFrom: a sender without a domain is routed by the listener's append_domain.
func TestBareFrom(t *testing.T) {
	const mail = "From: root (Cron Daemon)\r\nTo: root\r\nSubject: cron\r\n\r\nx\r\n"
	for domain, want := range map[string]string{"": "", "example.com": "root@example.com", "other.example": ""} {
		p := NewPlanner(PlannerConfig{
			Accounts: planAccounts(), Routes: table(t, route.Route{Senders: []string{"example.com"}, Accounts: []string{"full"}}),
			Listeners: map[string]HeaderRules{"apps": {AppendDomain: domain}},
		})
		plan, err := p.Plan(planRequest(mail, "root@"+domain, "root@"+domain))
		var refusal *Refusal
		if errors.As(err, &refusal) != (want == "") {
			t.Errorf("%q: %v", domain, err)
		}
		if want != "" && (plan.Mail.FromHeader != want || plan.Groups[0].Verdicts[0].Calls[0].From.Addr != want) {
			t.Errorf("%q: %s", domain, plan.Mail.FromHeader)
		}
	}
}
