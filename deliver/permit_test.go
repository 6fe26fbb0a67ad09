package deliver

import (
	"cmp"
	"errors"
	"slices"
	"strings"
	"testing"

	"smtpbridge/envelope"
	"smtpbridge/event"
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

// TestReplaceRecipients: X-SMTPAPI's to adds recipients, and leaves out others with a permission of its own alone. Each of RCPT TO
// has a final event or the mail.
func TestReplaceRecipients(t *testing.T) {
	both := []string{"recipients", "replace-recipients"}
	for _, tt := range []struct {
		name    string
		perms   []string
		header  string
		soft    bool
		staging []string
		sent    string // who gets the mail
		reply   string
	}{
		{name: "both", perms: both, sent: "b@r.example real@r.example"},
		{name: "recipients alone", perms: []string{"recipients"}, sent: "dummy@r.example b@r.example real@r.example"},
		{name: "all is not enough", perms: []string{"all"}, sent: "dummy@r.example b@r.example real@r.example"},
		{name: "all and it", perms: []string{"all", "replace-recipients"}, sent: "b@r.example real@r.example"},
		{name: "alone it drops nobody", perms: []string{"replace-recipients"}, sent: "dummy@r.example b@r.example"},
		{name: "no permission", sent: "dummy@r.example b@r.example"},
		{name: "to is empty", perms: both, header: `X-SMTPAPI: {"to": []}`, sent: "dummy@r.example b@r.example"},
		{name: "no to", perms: both, header: `X-SMTPAPI: {"category": "x"}`, sent: "dummy@r.example b@r.example"},
		{name: "another vendor's adds", perms: both, header: `X-MC-BccAddress: real@r.example`, sent: "dummy@r.example b@r.example real@r.example"},
		{name: "soft bounce", perms: both, soft: true, sent: "b@r.example real@r.example"},
		{name: "nobody is left", perms: both, header: `X-SMTPAPI: {"to": ["real@elsewhere.example"]}`, staging: []string{"r.example"}, reply: "550 5.7.1 <real@elsewhere.example> is not among allow_recipients"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := NewPlanner(PlannerConfig{
				Accounts: planAccounts(), SoftBounce: tt.soft,
				Routes:    table(t, route.Route{Senders: []string{"example.com"}, Accounts: []string{"full"}, AllowRecipients: tt.staging}),
				Listeners: map[string]HeaderRules{"apps": {Permissions: tt.perms}},
			})
			header := cmp.Or(tt.header, `X-SMTPAPI: {"to": ["Real <real@r.example>", "b@R.example"]}`)
			plan, err := p.Plan(planRequest(header+"\r\n"+plainMail, "app@example.com", "dummy@r.example", "b@r.example"))
			if tt.reply != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.reply) {
					t.Errorf("got %v, want %s", err, tt.reply)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var sent []string
			rcpts := plan.Mail.Envelope.Rcpts
			for _, j := range plan.Jobs {
				for _, n := range j.Rcpts {
					sent = append(sent, rcpts[n].Addr)
				}
			}
			if got := strings.Join(sent, " "); got != tt.sent {
				t.Errorf("sent to %s, want %s", got, tt.sent)
			}
			if len(plan.Events) != len(plan.Refused) || len(sent)+len(plan.Refused) != len(rcpts) {
				t.Errorf("%d recipients, %d sent, %d refused, %d events", len(rcpts), len(sent), len(plan.Refused), len(plan.Events))
			}
			for _, e := range plan.Events {
				if e.Kind != event.Rejected || e.Recipient != "dummy@r.example" || !strings.Contains(e.Diagnostic, "in place of those of RCPT TO") || !slices.Equal(rcpts[0].Notify, []string{"NEVER"}) {
					t.Errorf("event %+v, notify %v", e, rcpts[0].Notify)
				}
			}
		})
	}
}
