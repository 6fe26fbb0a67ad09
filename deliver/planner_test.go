package deliver

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

var planTime = time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC)

func planRequest(mail, from string, rcpts ...string) PlanRequest {
	env := envelope.Envelope{ID: "01jd0000000000000000000000", From: from, Received: planTime, Listener: "apps"}
	for _, r := range rcpts {
		env.Rcpts = append(env.Rcpts, envelope.Rcpt{Addr: r})
	}
	return PlanRequest{Envelope: env, Body: strings.NewReader(mail), Size: int64(len(mail))}
}

// planAccounts: full can do most, ascii refuses 8-bit local parts, poor drops headers, raw keeps everything.
func planAccounts() map[string]*Account {
	ascii, poor, raw := jsonCaps(), jsonCaps(), jsonCaps()
	ascii.UTF8Local = false
	poor.Headers, poor.ListUnsub, poor.ListUnsubPost = translate.HeadersNone, false, false
	raw.Raw = translate.RawEnvelope
	small := jsonCaps()
	small.MaxBytes = 200
	out := map[string]*Account{}
	for name, caps := range map[string]translate.Capabilities{"full": jsonCaps(), "ascii": ascii, "poor": poor, "raw": raw, "small": small} {
		out[name] = &Account{Name: name, Info: providers.Info{Name: "fake"}, Provider: &fake{caps: caps}}
	}
	return out
}

const plainMail = "From: App <app@example.com>\r\nTo: r@r.example\r\nSubject: hi\r\nMessage-ID: <1@example.com>\r\n\r\nbody\r\n"

const signedMail = "From: app@example.com\r\nTo: r@r.example\r\nMIME-Version: 1.0\r\nContent-Type: multipart/signed; boundary=b; protocol=\"application/pgp-signature\"; micalg=pgp-sha256\r\n\r\n" +
	"--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n--b\r\nContent-Type: application/pgp-signature\r\n\r\nsig\r\n--b--\r\n"

func TestPlanRefusals(t *testing.T) {
	deep := "From: app@example.com\r\nContent-Type: multipart/mixed; boundary=b0\r\n\r\n"
	for i := range 60 {
		deep += fmt.Sprintf("--b%d\r\nContent-Type: multipart/mixed; boundary=b%d\r\n\r\n", i, i+1)
	}
	routes := []route.Route{
		{Name: "refuse", Senders: []string{"strict.example"}, Accounts: []string{"poor"}, OnLoss: route.LossRefuse},
		{Name: "signed", Senders: []string{"json.example"}, Accounts: []string{"full", "poor"}},
		{Name: "small", Senders: []string{"small.example"}, Accounts: []string{"small"}},
		{Name: "stage", Senders: []string{"stage.example"}, Accounts: []string{"full"}, AllowRecipients: []string{"ours.example"}},
		{Name: "ascii", Senders: []string{"ascii.example"}, Accounts: []string{"ascii"}},
		{Name: "in", Senders: []string{"cond.example"}, Accounts: []string{"full"}, Listeners: []string{"lan"}},
		{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"full"}},
	}
	for _, c := range []struct {
		name    string
		mail    string
		from    string
		rcpt    string
		allowed []string
		want    string // reply up to the text
		text    string // part of it
	}{
		{"no route", strings.ReplaceAll(plainMail, "example.com", "nowhere.example"), "", "r@r.example", nil, "550 5.7.1", `senders = ["nowhere.example"]`},
		{"conditions do not match", strings.ReplaceAll(plainMail, "example.com", "cond.example"), "", "r@r.example", nil, "550 5.7.1", "other conditions"},
		{"no From at all", "Subject: x\r\n\r\nb\r\n", "", "r@r.example", nil, "550 5.7.1", "no From address"},
		{"several From", "From: a@example.com, b@example.com\r\n\r\nb\r\n", "", "r@r.example", nil, "554 5.6.0", "2 addresses"},
		{"doubled From", "From: a@example.com\r\nFrom: a@example.com\r\n\r\nb\r\n", "", "r@r.example", nil, "554 5.6.0", "2 From header fields"},
		{"sender not allowed", plainMail, "", "r@r.example", []string{"other.example"}, "550 5.7.1", "may not send as <app@example.com>"},
		{"nobody is allowed", plainMail, "", "r@r.example", []string{}, "550 5.7.1", "may not send"},
		{"too deep", deep, "", "r@r.example", nil, "554 5.6.0", "depth"},
		{"header too large", "From: app@example.com\r\nX-A: " + strings.Repeat("y", 2<<20) + "\r\n\r\nb", "", "r@r.example", nil, "552 5.3.4", "header"},
		{"on_loss refuse", "From: a@strict.example\r\nTo: r@r.example\r\nX-Keep: me\r\n\r\nb\r\n", "", "r@r.example", nil, "554 5.6.3", "x-keep"},
		{"signed, and no account keeps it", strings.ReplaceAll(signedMail, "example.com", "json.example"), "", "r@r.example", nil, "554 5.6.3", "full"},
		{"too large for the account", strings.ReplaceAll(plainMail, "example.com", "small.example") + strings.Repeat("long line\r\n", 100), "", "r@r.example", nil, "552 5.3.4", ""},
		{"recipient outside allow_recipients", strings.ReplaceAll(plainMail, "example.com", "stage.example"), "", "r@r.example", nil, "550 5.7.1", "allow_recipients"},
		{"8-bit local part", strings.ReplaceAll(plainMail, "example.com", "ascii.example"), "", "jürgen@r.example", nil, "553 5.6.7", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cfg := PlannerConfig{Routes: table(t, routes...), Accounts: planAccounts()}
			req := planRequest(c.mail, c.from, c.rcpt)
			req.AllowedFrom = c.allowed
			plan, err := NewPlanner(cfg).Plan(req)
			var r *Refusal
			if !errors.As(err, &r) {
				t.Fatalf("got %+v, %v", plan, err)
			}
			if !strings.HasPrefix(r.Error(), c.want+" ") || !strings.Contains(r.Text, c.text) {
				t.Errorf("got %q, want %s ... %s", r, c.want, c.text)
			}
			if len(r.Text) > event.MaxText {
				t.Errorf("text of %d bytes", len(r.Text))
			}
			cfg.SoftBounce = true
			_, err = NewPlanner(cfg).Plan(req)
			if !errors.As(err, &r) || r.Code/100 != 4 || r.Enhanced[0] != 4 {
				t.Errorf("with soft_bounce: %v", err)
			}
		})
	}
}

// Where accounts refuse for different reasons the reply has a line for each; the same reason is said once.
func TestEachAccountSaysWhy(t *testing.T) {
	long := strings.ReplaceAll(signedMail, "hello", strings.Repeat("hello\r\n", 100))
	for _, c := range []struct {
		name     string
		accounts []string
		mail     string
		code     string
		lines    []string // beginnings, nil: one line
	}{
		{"one account", []string{"full"}, signedMail, "554 5.6.3 account full cannot send", nil},
		{"the same reason", []string{"full", "ascii"}, signedMail, "554 5.6.3 accounts full, ascii: cannot send", []string{"accounts full, ascii: cannot send this mail unchanged: signature"}},
		{"different ones", []string{"full", "small", "ascii"}, long, "554 5.6.3 accounts full, ascii: cannot send", []string{"accounts full, ascii: cannot send this mail unchanged", "account small: the message"}},
		{"the first one's code", []string{"small", "full"}, long, "552 5.3.4 account small: the message", []string{"account small: the message", "account full: cannot"}},
		{"not configured", []string{"gone", "full"}, signedMail, "550 5.7.1 account gone: is not configured", []string{"account gone: is not configured", "account full: cannot"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := NewPlanner(PlannerConfig{Routes: table(t, route.Route{Senders: []string{"*"}, Accounts: c.accounts}), Accounts: planAccounts()})
			_, err := p.Plan(planRequest(c.mail, "", "r@r.example"))
			var r *Refusal
			if !errors.As(err, &r) || !strings.HasPrefix(r.Error(), c.code) || len(r.Lines) != len(c.lines) || len(r.Text) > event.MaxText {
				t.Fatalf("got %v, lines %q", err, r.Lines)
			}
			for i, want := range c.lines {
				if !strings.HasPrefix(r.Lines[i], want) {
					t.Errorf("line %d: %q, want %q", i, r.Lines[i], want)
				}
			}
		})
	}
}

type badDisk struct{}

func (badDisk) ReadAt([]byte, int64) (int, error) { return 0, errDisk }

func TestPlanOwnFaultIsTemporary(t *testing.T) {
	req := planRequest(plainMail, "", "r@r.example")
	req.Body = badDisk{}
	_, err := NewPlanner(PlannerConfig{Routes: table(t, route.Route{Senders: []string{"*"}, Accounts: []string{"full"}}), Accounts: planAccounts()}).Plan(req)
	var r *Refusal
	if err == nil || errors.As(err, &r) {
		t.Errorf("got %v", err)
	}
}

func TestPlanChoosesAccountsByCapability(t *testing.T) {
	for _, c := range []struct {
		name     string
		mail     string
		rcpts    []string
		accounts []string
		onLoss   string
		want     string // groups as "rcpts:accounts"
	}{
		{"all can", plainMail, []string{"r@r.example"}, []string{"full", "raw"}, "", "0:full,raw"},
		{"signed needs raw", signedMail, []string{"r@r.example"}, []string{"full", "raw"}, "", "0:raw"},
		{"losses are taken by default", "From: a@example.com\r\nTo: r@r.example\r\nX-Keep: me\r\n\r\nb\r\n", []string{"r@r.example"}, []string{"poor", "full"}, "", "0:poor,full"},
		{"on_loss refuse takes the one that keeps it", "From: a@example.com\r\nTo: r@r.example\r\nX-Keep: me\r\n\r\nb\r\n", []string{"r@r.example"}, []string{"poor", "full"}, route.LossRefuse, "0:full"},
		{"one recipient needs another account", plainMail, []string{"r@r.example", "jürgen@r.example"}, []string{"ascii", "full"}, "", "0:ascii,full 1:full"},
		{"together where the first can", plainMail, []string{"r@r.example", "jürgen@r.example"}, []string{"full", "ascii"}, "", "0,1:full"},
		{"one recipient cannot be served", plainMail, []string{"r@r.example", "jürgen@r.example"}, []string{"ascii"}, "", "0:ascii 1:!"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := NewPlanner(PlannerConfig{
				Routes: table(t, route.Route{Name: "main", Senders: []string{"*"}, Accounts: c.accounts, OnLoss: c.onLoss}), Accounts: planAccounts(),
			})
			plan, err := p.Plan(planRequest(c.mail, "", c.rcpts...))
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, g := range plan.Groups {
				accounts := strings.Join(g.Accounts, ",")
				if accounts == "" {
					accounts = "!"
				}
				got = append(got, strings.Trim(strings.ReplaceAll(fmt.Sprint(g.Rcpts), " ", ","), "[]")+":"+accounts)
			}
			if s := strings.Join(got, " "); s != c.want {
				t.Errorf("got %q, want %q", s, c.want)
			}
			if refused := strings.Contains(c.want, "!"); refused {
				if len(plan.Refused) != 1 || len(plan.Events) != 1 || plan.Events[0].Kind != event.Failed || plan.Events[0].Status != "5.6.7" ||
					plan.Events[0].Recipient != "jürgen@r.example" || plan.Events[0].QueueID != plan.Mail.Envelope.ID {
					t.Errorf("refused %+v, events %+v", plan.Refused, plan.Events)
				}
			}
		})
	}
}

func TestPlanRoutesPerRecipient(t *testing.T) {
	p := NewPlanner(PlannerConfig{
		Routes: table(t,
			route.Route{Name: "staging", Senders: []string{"*"}, Recipients: []string{"redirect.example"}, Accounts: []string{"full"}, RedirectAllTo: []string{"qa@ours.example"}},
			route.Route{Name: "listed", Senders: []string{"*"}, Recipients: []string{"listed.example"}, Accounts: []string{"full"}, AllowRecipients: []string{"ok@listed.example"}},
			route.Route{Name: "main", Senders: []string{"*"}, Recipients: []string{"r.example"}, Accounts: []string{"full", "raw"}, Expire: time.Hour}),
		Accounts: planAccounts(), Generation: 7, KeepSubject: true,
	})
	plan, err := p.Plan(planRequest(plainMail, "bounce@example.com", "r@r.example", "one@redirect.example", "two@redirect.example", "no@listed.example", "ok@listed.example", "x@nowhere.example"))
	if err != nil {
		t.Fatal(err)
	}
	var rcpts []string
	for _, r := range plan.Mail.Envelope.Rcpts {
		rcpts = append(rcpts, r.Addr)
	}
	if want := []string{"r@r.example", "qa@ours.example", "no@listed.example", "ok@listed.example", "x@nowhere.example"}; !slices.Equal(rcpts, want) {
		t.Fatalf("recipients %q, want %q", rcpts, want)
	}
	type job struct {
		route string
		rcpts string
	}
	var jobs []job
	for _, j := range plan.Jobs {
		jobs = append(jobs, job{j.Route, fmt.Sprint(j.Rcpts)})
	}
	if want := []job{{"main", "[0]"}, {"staging", "[1]"}, {"listed", "[3]"}}; !slices.Equal(jobs, want) {
		t.Errorf("jobs %v, want %v", jobs, want)
	}
	if plan.Jobs[0].Expires != planTime.Add(time.Hour) || plan.Jobs[1].Expires != planTime.Add(DefaultExpire) || plan.Jobs[0].NextAt != planTime {
		t.Errorf("times: %+v", plan.Jobs)
	}
	if n := len(plan.Events); n != 4 || plan.Events[2].Recipient != "one@redirect.example" || plan.Events[3].Recipient != "two@redirect.example" ||
		plan.Events[2].Kind != event.Unknown || plan.Events[2].ProviderEvent != "redirected" || !strings.Contains(plan.Events[2].Diagnostic, `route "staging": the mail goes to qa@ours.example instead`) {
		t.Errorf("events %+v", plan.Events)
	}
	if plan.Events[0].Recipient != "no@listed.example" || plan.Events[1].Recipient != "x@nowhere.example" ||
		plan.Events[0].Kind != event.Rejected || plan.Events[0].RejectReason != event.ReasonBlocked || plan.Events[0].Status != "5.7.1" {
		t.Errorf("events %+v", plan.Events)
	}
	m := plan.Mail
	if m.Generation != 7 || m.FromHeader != "app@example.com" || m.MessageID != "1@example.com" || m.Subject != "hi" || !strings.HasPrefix(string(m.Header), "From: App") || m.State != store.MailQueued {
		t.Errorf("mail %+v", m)
	}
}

func TestPlanFallsBackToTheEnvelopeSender(t *testing.T) {
	p := NewPlanner(PlannerConfig{
		Routes: table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"full"}, ForceFrom: "noreply@example.com"}), Accounts: planAccounts(),
	})
	plan, err := p.Plan(planRequest("Subject: x\r\n\r\nb\r\n", "cron@example.com", "r@r.example"))
	if err != nil {
		t.Fatal(err)
	}
	if from := plan.Groups[0].Verdicts[0].Calls[0].From.Addr; from != "noreply@example.com" {
		t.Errorf("From is %s", from)
	}
}

func TestPlanDirect(t *testing.T) {
	p := NewPlanner(PlannerConfig{Accounts: planAccounts()})
	req := planRequest("From: <>\r\nSubject: bounce\r\n\r\nb\r\n", "", "r@r.example")
	req.Accounts = []string{"raw"}
	req.Body = strings.NewReader("From: mailer-daemon@bridge.example\r\nSubject: bounce\r\n\r\nb\r\n")
	req.Size = int64(len("From: mailer-daemon@bridge.example\r\nSubject: bounce\r\n\r\nb\r\n"))
	plan, err := p.Plan(req)
	if err != nil || len(plan.Jobs) != 1 || plan.Jobs[0].Route != "" || !slices.Equal(plan.Jobs[0].Accounts, []string{"raw"}) {
		t.Errorf("plan %+v, %v", plan, err)
	}
}

func TestExplain(t *testing.T) {
	p := NewPlanner(PlannerConfig{
		Routes: table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"poor", "full"}}), Accounts: planAccounts(),
	})
	mail := "From: app@example.com\r\nTo: r@r.example\r\nSubject: hi\r\nX-Keep: me\r\n\r\nb\r\n"
	ex, err := p.Explain(planRequest(mail, "", "r@r.example"))
	if err != nil {
		t.Fatal(err)
	}
	js, err := json.Marshal(ex)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(js), "canary") {
		t.Error("the key is shown")
	}
	var got map[string]any
	if err := json.Unmarshal(js, &got); err != nil {
		t.Fatal(err)
	}
	if m, _ := got["message"].(map[string]any); m["subject"] != "hi" {
		t.Errorf("message %v", got["message"])
	}
	if ex.Route != "main" || ex.Account != "poor" || len(ex.Losses) == 0 || len(ex.Requests) != 1 {
		t.Fatalf("explanation %s", js)
	}
	r := got["requests"].([]any)[0].(map[string]any)
	if r["method"] != "POST" || r["url"] != "https://api.esp.example/v1/send" || r["headers"].(map[string]any)["Authorization"] != "Bearer <secret>" ||
		r["body"].(map[string]any)["to"] != "r@r.example" {
		t.Errorf("request %v", r)
	}
	if a := ex.Groups[0].Accounts; len(a) != 2 || a[0].Verdict != "first" || a[0].Worst != "minor" || a[1].Verdict != "failover" || !a[1].Used || a[1].Worst != "" {
		t.Errorf("groups %+v", ex.Groups)
	}
}

// TestExplainChoice: a signed mail goes to the account that keeps it, whatever its place in the route.
func TestExplainChoice(t *testing.T) {
	p := NewPlanner(PlannerConfig{
		Routes: table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"full", "raw", "poor"}}), Accounts: planAccounts(),
	})
	ex, err := p.Explain(planRequest(signedMail, "", "r@r.example"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range ex.Groups[0].Accounts {
		got = append(got, a.Account+" "+a.Verdict+" "+a.Worst+" "+strings.SplitN(a.Refusal, " account", 2)[0])
	}
	if want := "full refused fatal 554 5.6.3,raw first  ,poor refused fatal 554 5.6.3"; ex.Account != "raw" || ex.Refusal != "" || strings.Join(got, ",") != want {
		t.Errorf("%s: got %q, want %q", ex.Account, strings.Join(got, ","), want)
	}
}

func TestExplainRefusal(t *testing.T) {
	p := NewPlanner(PlannerConfig{
		Routes: table(t, route.Route{Name: "main", Senders: []string{"example.com"}, Accounts: []string{"full"}}), Accounts: planAccounts(),
	})
	ex, err := p.Explain(planRequest(signedMail, "", "r@r.example"))
	if err != nil || !strings.HasPrefix(ex.Refusal, "554 5.6.3") || len(ex.Groups) != 1 || len(ex.Groups[0].Accounts) != 1 || ex.Groups[0].Accounts[0].Used || ex.Message == nil {
		t.Errorf("got %+v, %v", ex, err)
	}
}
