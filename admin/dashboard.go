package admin

import (
	"bytes"
	"context"
	"embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io/fs"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

//go:embed templates static
var files embed.FS

var static = func() http.Handler {
	sub, err := fs.Sub(files, "static")
	if err != nil {
		panic(err) // part of the program
	}
	h := http.StripPrefix("/static/", http.FileServerFS(sub))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/") {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Cache-Control", "max-age=3600")
		h.ServeHTTP(w, r)
	})
}()

// pages are the templates, each with the frame around it. html/template escapes what they show.
var pages = func() map[string]*template.Template {
	base := template.Must(template.New("").Funcs(viewFuncs).ParseFS(files, "templates/base.html"))
	out := map[string]*template.Template{}
	list, err := fs.Glob(files, "templates/*.html")
	if err != nil {
		panic(err) // a constant pattern
	}
	for _, f := range list {
		name := strings.TrimSuffix(strings.TrimPrefix(f, "templates/"), ".html")
		if name != "base" {
			out[name] = template.Must(template.Must(base.Clone()).ParseFS(files, f))
		}
	}
	return out
}()

// Dashboard is the pages for people. Whatever they do goes through API; Guard stands before it.
type Dashboard struct {
	API     API
	Guard   *Guard
	Log     *slog.Logger
	Now     func() time.Time
	Host    string // what the bridge is called
	Version string
	// Subjects tells whether subjects of new mails are kept, Sandbox whether an account has an inbox.
	Subjects func() bool
	Sandbox  func() bool
	// Suppression tells whether the suppression list is used.
	Suppression func() bool
}

// frame is what every page has.
type frame struct {
	Title, CSRF, Flash, Host, Version, Zone string
	Nav                                     []link
}

type link struct {
	Name, Href, Value string
	Here              bool
}

func (d *Dashboard) frame(r *http.Request, title, here string) frame {
	f := frame{Title: title, Host: d.Host, Version: d.Version, Zone: d.Now().Local().Format("MST")}
	if s := sessionOf(r.Context()); s != nil {
		f.CSRF, f.Flash = s.csrf, d.Guard.takeFlash(s)
	}
	f.Nav = []link{{Name: "Overview", Href: "/"}, {Name: "Messages", Href: "/mails"}, {Name: "Events", Href: "/events"}, {Name: "Suppressions", Href: "/suppressions"}}
	if d.Sandbox != nil && d.Sandbox() {
		f.Nav = append(f.Nav, link{Name: "Sandbox inbox", Href: "/inbox"})
	}
	for i := range f.Nav {
		f.Nav[i].Here = f.Nav[i].Href == here
	}
	return f
}

// Handler serves the pages.
func (d *Dashboard) Handler() http.Handler {
	mux := http.NewServeMux()
	page := func(pattern string, f func(w http.ResponseWriter, r *http.Request) error) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := f(w, r); err != nil {
				d.fail(w, r, err)
			}
		})
	}
	page("GET /{$}", d.overview)
	page("GET /mails", d.mails)
	page("GET /mail/{id}", d.mail)
	page("GET /mail/{id}/preview", d.preview)
	page("POST /mail/{id}/{action}", func(w http.ResponseWriter, r *http.Request) error {
		id, action := r.PathValue("id"), Action(r.PathValue("action"))
		return d.done(w, r, "/mail/"+url.PathEscape(id), doneTexts[action], d.API.Act(r.Context(), id, action, r.PostFormValue("reason")))
	})
	page("POST /accounts/{name}/{action}", func(w http.ResponseWriter, r *http.Request) error {
		name, action := r.PathValue("name"), r.PathValue("action")
		if action != "pause" && action != "resume" {
			return ErrNotFound
		}
		text := map[string]string{"pause": "Account " + name + " is stopped; its mail waits.", "resume": "Account " + name + " sends again."}[action]
		return d.done(w, r, localPath(r.PostFormValue("back")), text, d.API.SetAccount(r.Context(), name, action == "pause", r.PostFormValue("reason")))
	})
	page("GET /events", d.events)
	page("GET /events/stream", d.stream)
	page("GET /suppressions", d.suppressions)
	page("POST /suppressions", d.suppress)
	page("POST /suppressions/remove", d.unsuppress)
	page("GET /inbox", d.inbox)
	page("GET /inbox/{account}/{id}", d.inboxMail)
	page("GET /inbox/{account}/{id}/preview", d.inboxPreview)
	page("/", func(http.ResponseWriter, *http.Request) error { return ErrNotFound })
	return mux
}

var doneTexts = map[Action]string{
	Retry: "The message is due now.", Hold: "The message is held.", Release: "The message is released.", Delete: "The message is deleted.",
}

// done goes back to a page after a change and says there what came of it.
func (d *Dashboard) done(w http.ResponseWriter, r *http.Request, back, text string, err error) error {
	if err != nil {
		return err
	}
	if s := sessionOf(r.Context()); s != nil {
		d.Guard.flash(s, text)
	}
	http.Redirect(w, r, back, http.StatusSeeOther)
	return nil
}

func render(w http.ResponseWriter, name string, status int, data any) error {
	var b bytes.Buffer
	if err := pages[name].ExecuteTemplate(&b, "base", data); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write(b.Bytes()) // a browser that went away is not our error
	return nil
}

type messagePage struct {
	frame
	Text, Command string
}

func (d *Dashboard) fail(w http.ResponseWriter, r *http.Request, err error) {
	status, title, text := statusOf(err), "Not possible", err.Error()
	switch status {
	case http.StatusNotFound:
		title, text = "Not found", "There is no such page, message or account here. Finished messages are forgotten when [retention] says so."
	case http.StatusInternalServerError:
		if r.Context().Err() != nil {
			return
		}
		d.Log.Error("a page could not be shown", "path", event.Clean(r.URL.Path, 100), "err", err)
		title, text = "Something went wrong", "The bridge could not do that now; its log says why."
	}
	if err := render(w, "message", status, messagePage{frame: d.frame(r, title, ""), Text: text}); err != nil {
		d.Log.Error("a page could not be shown", "err", err)
	}
}

type loginPage struct {
	frame
	Error, Next string
}

func renderLogin(w http.ResponseWriter, r *http.Request, status int, text string) {
	next := r.PostFormValue("next")
	if next == "" {
		next = r.URL.Query().Get("next")
	}
	if err := render(w, "login", status, loginPage{frame: frame{Title: "Log in"}, Error: text, Next: localPath(next)}); err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
	}
}

// askLogin sends a browser to the login page, and others away. A link from another site brings no
// SameSite=Strict cookie with it, so the page is asked for once more, from here.
func askLogin(w http.ResponseWriter, r *http.Request) {
	switch {
	case !safe(r.Method) || r.Header.Get("HX-Request") != "" || strings.HasSuffix(r.URL.Path, "/stream"):
		http.Error(w, "log in first", http.StatusUnauthorized)
	case r.Header.Get("Sec-Fetch-Site") == "cross-site":
		w.Header().Set("Refresh", "0")
		http.Error(w, "one moment", http.StatusOK)
	default:
		http.Redirect(w, r, "/login?next="+url.QueryEscape(r.URL.RequestURI()), http.StatusSeeOther)
	}
}

// renderClosed tells how to open the dashboard.
func renderClosed(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/" {
		http.NotFound(w, r)
		return
	}
	err := render(w, "message", http.StatusForbidden, messagePage{
		frame:   frame{Title: "The dashboard needs a password"},
		Text:    "Only /livez, /readyz and /metrics are served until [admin] password_hash is set. This makes one:",
		Command: "smtpbridge hash-password",
	})
	if err != nil {
		http.Error(w, "the page cannot be shown", http.StatusInternalServerError)
	}
}

type accountRow struct {
	Account
	Sent, Bounced, Failed int64
	Action                string
}

type overviewPage struct {
	frame
	Span     string
	Spans    []link
	Status   *Status
	Charts   []chart
	Accounts []accountRow
	Nodes    []store.Node // none where one bridge has the store for itself
}

var spans = []struct{ value, name string }{{"1h", "Hour"}, {"24h", "Day"}, {"168h", "Week"}, {"744h", "Month"}}

// charted are the series of the overview.
var charted = []struct {
	name, tone string
	kinds      []string
}{
	{"Accepted by SMTP", "", []string{store.Accepted}},
	{"Sent to the ESP", "", []string{string(event.Sent)}},
	{"Delivered", "good", []string{string(event.Delivered)}},
	{"Failed or rejected", "bad", []string{string(event.Failed), string(event.Rejected)}},
	{"Bounced or complained", "bad", []string{string(event.Bounced), string(event.Complained)}},
}

func (d *Dashboard) overview(w http.ResponseWriter, r *http.Request) error {
	p := overviewPage{frame: d.frame(r, "Overview", "/"), Span: "24h"}
	for _, s := range spans {
		if r.URL.Query().Get("span") == s.value {
			p.Span = s.value
		}
	}
	for _, s := range spans {
		p.Spans = append(p.Spans, link{Name: s.name, Value: s.value, Here: s.value == p.Span})
	}
	long, err := time.ParseDuration(p.Span)
	if err != nil {
		return err
	}
	if p.Status, err = d.API.Status(r.Context()); err != nil {
		return err
	}
	act, err := d.API.Activity(r.Context(), long)
	if err != nil {
		return err
	}
	for _, c := range charted {
		p.Charts = append(p.Charts, makeChart(c.name, c.tone, act, c.kinds))
	}
	list, err := d.API.Accounts(r.Context())
	if err != nil {
		return err
	}
	for _, a := range list {
		n := act.Accounts[a.Name]
		row := accountRow{Account: a, Sent: n["sent"], Bounced: n["bounced"], Failed: n["failed"] + n["rejected"], Action: "pause"}
		if a.State != "active" {
			row.Action = "resume"
		}
		p.Accounts = append(p.Accounts, row)
	}
	if p.Nodes, err = d.API.Nodes(r.Context()); err != nil {
		return err
	}
	return render(w, "overview", http.StatusOK, p)
}

type mailsPage struct {
	frame
	Query                        Query
	Page                         *Page
	States                       []link
	AccountNames                 []string
	Subjects                     bool
	FirstHref, NextHref, AllHref string
}

var states = []link{
	{Name: "waiting", Value: ""},
	{Name: "queued", Value: "queued"},
	{Name: "held", Value: "held"},
	{Name: "finished", Value: "finished"},
	{Name: "not reached somebody", Value: "failed"},
	{Name: "deleted", Value: "deleted"},
	{Name: "any", Value: "all"},
}

const mailsPerPage = 50

func (d *Dashboard) mails(w http.ResponseWriter, r *http.Request) error {
	p := mailsPage{frame: d.frame(r, "Messages", "/mails"), Query: mailQuery(r), Subjects: d.Subjects != nil && d.Subjects()}
	p.Query.Text = strings.TrimSpace(p.Query.Text)
	p.Query.Limit = mailsPerPage
	if len(r.URL.Query()) == 0 { // the page itself, without a question
		p.Query.State = "all"
	}
	for _, s := range states {
		s.Here = s.Value == p.Query.State
		p.States = append(p.States, s)
	}
	var err error
	if p.Page, err = d.API.Mails(r.Context(), p.Query); err != nil {
		return err
	}
	accounts, err := d.API.Accounts(r.Context())
	if err != nil {
		return err
	}
	for _, a := range accounts {
		if a.Domain == "" {
			p.AccountNames = append(p.AccountNames, a.Name)
		}
	}
	href := func(state, after string) string {
		v := url.Values{"state": {state}}
		for k, s := range map[string]string{"q": p.Query.Text, "account": p.Query.Account, "address": p.Query.Address, "after": after} {
			if s != "" {
				v.Set(k, s)
			}
		}
		return "/mails?" + v.Encode()
	}
	p.FirstHref, p.AllHref = href(p.Query.State, ""), href("all", "")
	if p.Page.Next != "" {
		p.NextHref = href(p.Query.State, p.Page.Next)
	}
	return render(w, "mails", http.StatusOK, p)
}

type rcptView struct {
	Rcpt
	Word   string
	Events []event.Event
}

type mailAction struct{ Name, Label, Class, Title, Confirm string }

type contentView struct {
	Base      string
	Content   *Content
	NoContent string
}

type mailPage struct {
	frame
	contentView
	Mail       *Detail
	Actions    []mailAction
	Recipients []rcptView
	More       int
	Losses     []event.Loss
	Own        []event.Event
}

// rcptsShown bounds the page of a mail to many.
const rcptsShown = 100

func (d *Dashboard) mail(w http.ResponseWriter, r *http.Request) error {
	id := r.PathValue("id")
	m, err := d.API.Mail(r.Context(), id)
	if err != nil {
		return err
	}
	p := mailPage{frame: d.frame(r, "Message", "/mails"), Mail: m, Actions: actionsFor(m.State)}
	if m.Subject != "" {
		p.Title = m.Subject
	}
	of := map[string][]event.Event{}
	for _, e := range m.Events {
		for _, l := range e.Losses {
			if !slices.Contains(p.Losses, l) {
				p.Losses = append(p.Losses, l)
			}
		}
		if !slices.Contains(m.Rcpts, e.Recipient) { // of the mail as a whole, or of somebody who was redirected
			p.Own = append(p.Own, e)
			continue
		}
		of[e.Recipient] = append(of[e.Recipient], e)
	}
	for i, rc := range m.Recipients {
		if i == rcptsShown {
			p.More = len(m.Recipients) - i
			break
		}
		v := rcptView{Rcpt: rc, Word: rc.State, Events: of[rc.Addr]}
		if rc.Last != "" && rc.State != string(store.RcptQueued) && rc.State != string(store.RcptInFlight) && rc.State != string(store.RcptDeleted) {
			v.Word = string(rc.Last)
		}
		p.Recipients = append(p.Recipients, v)
	}
	p.Base = "/mail/" + url.PathEscape(m.ID)
	p.Content, err = d.API.Content(r.Context(), m.ID)
	switch {
	case !m.BodyKept:
		p.Content, p.NoContent = nil, "The content was removed when the message was finished. [retention] bodies keeps it longer."
	case err != nil && statusOf(err) == http.StatusInternalServerError:
		d.Log.Error("content cannot be shown", "id", m.ID, "err", err)
		p.Content, p.NoContent = nil, "The content cannot be read; the log says why."
	case err != nil:
		p.Content, p.NoContent = nil, "The content is not shown: "+err.Error()+"."
	}
	return render(w, "mail", http.StatusOK, p)
}

func actionsFor(state string) (out []mailAction) {
	switch store.MailState(state) {
	case store.MailQueued:
		out = []mailAction{{"retry", "Retry now", "primary", "Make it due at once", ""}, {"hold", "Hold", "", "Keep it in the queue without sending it", ""}}
	case store.MailHeld:
		out = []mailAction{{"release", "Release", "primary", "Let it be sent", ""}}
	default:
		return nil
	}
	return append(out, mailAction{"delete", "Delete", "danger", "Take it out of the queue", "Delete this message? Recipients that have not got it will not get it."})
}

func (d *Dashboard) preview(w http.ResponseWriter, r *http.Request) error {
	c, err := d.API.Content(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	showHTML(w, c)
	return nil
}

// previewPolicy gives foreign HTML nothing: no script, no form, no network; only its own styles and the pictures it carries.
const previewPolicy = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"

func showHTML(w http.ResponseWriter, c *Content) {
	h := w.Header()
	h.Set("Content-Security-Policy", previewPolicy)
	h.Set("X-Frame-Options", "SAMEORIGIN")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("X-DNS-Prefetch-Control", "off")
	h.Set("Content-Type", "text/html; charset=utf-8")
	var pairs []string
	for _, f := range c.Files {
		if f.data != nil {
			data := "data:" + f.Type + ";base64," + base64.StdEncoding.EncodeToString(f.data)
			pairs = append(pairs, "cid:"+f.ID, data, "cid:"+url.PathEscape(f.ID), data)
		}
	}
	// Links have nowhere to go: the sandbox opens no window.
	_, _ = fmt.Fprint(w, `<base target="_blank">`)
	_, _ = strings.NewReplacer(pairs...).WriteString(w, c.HTML) // a browser that went away is not our error
}

type eventsPage struct {
	frame
	Query  EventQuery
	Kinds  []event.Kind
	Events []event.Event
	Stream string
}

func eventQuery(r *http.Request) EventQuery {
	q := r.URL.Query()
	return EventQuery{Recipient: strings.TrimSpace(q.Get("recipient")), Kind: event.Kind(q.Get("event"))}
}

func (d *Dashboard) events(w http.ResponseWriter, r *http.Request) error {
	p := eventsPage{frame: d.frame(r, "Events", "/events"), Query: eventQuery(r), Kinds: event.Kinds}
	var err error
	if p.Events, err = d.API.Recent(r.Context(), p.Query, 50); err != nil {
		return err
	}
	v := url.Values{"recipient": {p.Query.Recipient}, "event": {string(p.Query.Kind)}}
	p.Stream = "/events/stream?" + v.Encode()
	return render(w, "events", http.StatusOK, p)
}

// streamPause is how often a quiet stream is written to, so that proxies keep it and its end is noticed.
const streamPause = 15 * time.Second

// stream sends new events as server-sent events, each the HTML of a row.
func (d *Dashboard) stream(w http.ResponseWriter, r *http.Request) error {
	ctx, stop := context.WithCancel(r.Context())
	defer stop()
	rc := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no")
	q := eventQuery(r)
	q.Follow, q.New = true, true
	rows := make(chan string)
	failed := make(chan error, 1)
	go func() {
		failed <- d.API.Events(ctx, q, func(e event.Event) error {
			var b bytes.Buffer
			if err := pages["events"].ExecuteTemplate(&b, "event", e); err != nil {
				return err
			}
			select {
			case rows <- strings.ReplaceAll(b.String(), "\n", " "):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	beat := time.NewTicker(streamPause)
	defer beat.Stop()
	line := ": hello\n\n"
	for d.streamable(r) {
		if _, err := w.Write([]byte(line)); err != nil {
			break
		}
		if err := rc.Flush(); err != nil {
			break
		}
		select {
		case row := <-rows:
			line = "data: " + row + "\n\n"
		case <-beat.C:
			line = ": still here\n\n"
		case err := <-failed:
			if err != nil && ctx.Err() == nil {
				d.Log.Error("the live view of events ended", "err", err)
			}
			return nil
		}
	}
	stop()
	<-failed
	return nil
}

// streamable: the session that opened the stream is still one.
func (d *Dashboard) streamable(r *http.Request) bool {
	s := sessionOf(r.Context())
	return s != nil && d.Guard.alive(s)
}

type inboxPage struct {
	frame
	Inbox []InboxMail
}

func (d *Dashboard) inbox(w http.ResponseWriter, r *http.Request) error {
	p := inboxPage{frame: d.frame(r, "Sandbox inbox", "/inbox")}
	var err error
	if p.Inbox, err = d.API.Inbox(r.Context()); err != nil {
		return err
	}
	return render(w, "inbox", http.StatusOK, p)
}

type inboxMailPage struct {
	frame
	contentView
	Mail *InboxMail
}

func (d *Dashboard) inboxMail(w http.ResponseWriter, r *http.Request) error {
	m, err := d.API.InboxMail(r.Context(), r.PathValue("account"), r.PathValue("id"))
	if err != nil {
		return err
	}
	p := inboxMailPage{frame: d.frame(r, "Sandbox mail", "/inbox"), Mail: m}
	p.Base = "/inbox/" + url.PathEscape(m.Account) + "/" + url.PathEscape(m.ID)
	p.Content, p.NoContent = m.Content, "The content is not shown: "+ErrPreview.Error()+"."
	return render(w, "inboxmail", http.StatusOK, p)
}

func (d *Dashboard) inboxPreview(w http.ResponseWriter, r *http.Request) error {
	m, err := d.API.InboxMail(r.Context(), r.PathValue("account"), r.PathValue("id"))
	if err != nil {
		return err
	}
	if m.Content == nil {
		return ErrPreview
	}
	showHTML(w, m.Content)
	return nil
}

// viewFuncs are what templates can say about values.
var viewFuncs = template.FuncMap{
	"tone": tone, "ago": ago, "age": age, "due": due, "stamp": stamp, "rfc": func(t any) string { return moment(t).UTC().Format(time.RFC3339) },
	"num": num, "bytes": sizeText, "took": took,
	"sender": func(m Mail) string {
		if m.From == "" {
			return "<>"
		}
		return m.From
	},
	"short": func(list []string) string {
		if len(list) <= 2 {
			return strings.Join(list, ", ")
		}
		return fmt.Sprintf("%s and %d more", list[0], len(list)-1)
	},
	"str":   func(k event.Kind) string { return string(k) },
	"alarm": func(name string) string { return strings.ToUpper(name[:1]) + strings.ReplaceAll(name[1:], "_", " ") },
}

var tones = map[string]string{
	"sent": "good", "delivered": "good", "active": "good", "accepted": "good", "opened": "good", "clicked": "good", "subscribed": "good",
	"queued": "wait", "in_flight": "wait", "deferred": "wait", "throttled": "wait", "probing": "wait", "held": "wait", "open": "wait", "ambiguous": "wait", "retry": "wait", "minor": "wait",
	"failed": "bad", "rejected": "bad", "bounced": "bad", "complained": "bad", "paused": "bad", "stopped": "bad", "refused": "bad", "major": "bad", "fatal": "bad", "inbound_failed": "bad",
}

func tone(word string) string { return tones[word] }

func moment(t any) time.Time {
	switch t := t.(type) {
	case time.Time:
		return t
	case *time.Time:
		if t != nil {
			return *t
		}
	}
	return time.Time{}
}

func stamp(t any) string { return moment(t).Local().Format("2006-01-02 15:04:05") }

func ago(t any) string { return duration(time.Since(moment(t))) + " ago" }

func age(t any) string { return duration(time.Since(moment(t))) }

func due(t time.Time) string {
	if d := time.Until(t); d > 0 {
		return "in " + duration(d)
	}
	return "now"
}

// duration says a duration in the two units that matter.
func duration(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// num groups the digits of a number.
func num(v any) string {
	s := fmt.Sprint(v)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "\u202f" + s[i:]
	}
	return s
}

func took(d time.Duration) string {
	if d < time.Millisecond {
		return "under 1ms"
	}
	return d.Round(time.Millisecond).String()
}

func sizeText(n int64) string {
	switch {
	case n < 1000:
		return strconv.FormatInt(n, 10) + " B"
	case n < 1_000_000:
		return strconv.FormatFloat(float64(n)/1e3, 'f', 1, 64) + " kB"
	}
	return strconv.FormatFloat(float64(n)/1e6, 'f', 1, 64) + " MB"
}
