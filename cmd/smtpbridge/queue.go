package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/dsn"
	"smtpbridge/event"
	"smtpbridge/providers/all"
	"smtpbridge/store"
)

// console is the admin API for one command: the running bridge, or its store read-only when none runs.
type console struct {
	admin.API
	cfg   *config.Config
	close func()
}

func operator(ctx context.Context, configFile string) (*console, error) {
	cfg, err := config.Load(configFile, all.Registry().Names())
	if err != nil {
		return nil, err
	}
	client, dialErr := admin.Dial(ctx, cfg.Admin.Socket)
	if dialErr == nil {
		return &console{client, cfg, func() {}}, nil
	}
	if errors.Is(dialErr, os.ErrPermission) {
		return nil, fmt.Errorf("the admin socket %s may not be opened by this user: %w", cfg.Admin.Socket, dialErr)
	}
	st, err := store.Open(ctx, store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL, Lease: cfg.Store.Lease.D(), ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("no bridge answers at %s, and its store cannot be opened: %w", cfg.Admin.Socket, err)
	}
	fmt.Fprintf(os.Stderr, "note: no bridge answers at %s; this is what the store says\n", cfg.Admin.Socket)
	return &console{&admin.Service{Store: st, Version: buildVersion(), Now: time.Now}, cfg, func() { st.Close() }}, nil
}

func queueCommand() *cobra.Command {
	return family("queue", groupOperate, "see and handle queued mail",
		queueList(), queueShow(), queueExport(),
		queueAct(admin.Retry, "retry ID... | --all", "try mails again now", "is due now"),
		queueAct(admin.Hold, "hold ID...", "keep mails in the queue without sending them", "is held"),
		queueAct(admin.Release, "release ID... | --all", "end a hold", "is released"),
		queueAct(admin.Delete, "delete ID...", "remove mails; their remaining recipients do not receive them", "is deleted"))
}

func queueList() *cobra.Command {
	var q admin.Query
	c := &cobra.Command{
		Use: "list", Short: "list mails, newest first", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge queue list\n  smtpbridge queue list --state held --json\n  smtpbridge queue list --state all --address ada@example.net",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.Flags().StringVar(&q.State, "state", "", "queued, held, finished, deleted or all (default: queued and held)")
	c.Flags().StringVar(&q.Address, "address", "", "only mails from or to this address")
	c.Flags().StringVar(&q.Account, "account", "", "only mails of this account")
	c.Flags().IntVar(&q.Limit, "limit", 100, "at most so many")
	choiceFlag(c, "state", mailStates...)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if q.State != "" && !slices.Contains(mailStates, q.State) {
			return usageError(c, "--state %q is not one of %s", q.State, strings.Join(mailStates, ", "))
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		mails, err := api.Queue(c.Context(), q)
		if err != nil {
			return err
		}
		head := []string{"ID", "STATE", "RECEIVED", "SIZE", "FROM", "TO"}
		return printList(c.OutOrStdout(), *asJSON, mails, "no mails", head, func(m admin.Mail) []any {
			return []any{m.ID, mailState(m), m.Received, m.Size, sender(m.From), shortList(m.Rcpts, 2)}
		})
	}
	return c
}

// mailStates are the values of --state.
var mailStates = []string{string(store.MailQueued), string(store.MailHeld), string(store.MailFinished), string(store.MailDeleted), "all"}

// mailState is the state of a mail with the reason why it is held.
func mailState(m admin.Mail) cell {
	c := state(m.State)
	if m.HoldReason != "" {
		c.text += " (" + m.HoldReason + ")"
	}
	return c
}

func queueShow() *cobra.Command {
	c := &cobra.Command{
		Use: "show ID", Short: "show one mail: recipients, jobs, attempts, events", Args: usageArgs(cobra.ExactArgs(1)),
		Example: "  smtpbridge queue show 01HF3Q2M7T9V5Z8K1XW4RB6C0D",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		d, err := api.Mail(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), d)
		}
		return printDetail(c.OutOrStdout(), d)
	}
	return c
}

func queueAct(action admin.Action, use, short, done string) *cobra.Command {
	var reason string
	var everything bool
	c := &cobra.Command{Use: use, Short: short, Example: actExamples[action]}
	file := configFlag(c)
	if action == admin.Hold || action == admin.Delete {
		c.Flags().StringVar(&reason, "reason", "", "kept with the mail and in the log")
	}
	if action == admin.Release || action == admin.Retry {
		c.Flags().BoolVar(&everything, "all", false, "every mail this applies to")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if (len(args) == 0) != everything {
			return usageError(c, "give the ids of mails, or --all where there is one")
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		if everything {
			q := admin.Query{State: string(store.MailHeld)}
			if action == admin.Retry {
				q.State = string(store.MailQueued)
			}
			if args, err = list(c.Context(), api, q); err != nil {
				return err
			}
		}
		var failed error
		n := 0
		bar := newProgress(c.ErrOrStderr(), string(action), len(args))
		defer bar.end()
		for _, id := range args {
			err := api.Act(c.Context(), id, action, reason)
			if c.Context().Err() != nil {
				return fmt.Errorf("stopped after %d of %s", bar.done, plural(len(args), "mail"))
			}
			bar.step(1)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			n++
			if !everything {
				fmt.Fprintln(c.OutOrStdout(), id, done)
			}
		}
		if everything {
			fmt.Fprintf(c.OutOrStdout(), "%s: each %s\n", plural(n, "mail"), done)
		}
		return failed
	}
	return c
}

var actExamples = map[admin.Action]string{
	admin.Retry:   "  smtpbridge queue retry 01HF3Q2M7T9V5Z8K1XW4RB6C0D\n  smtpbridge queue retry --all",
	admin.Hold:    "  smtpbridge queue hold 01HF3Q2M7T9V5Z8K1XW4RB6C0D --reason 'wrong price list'",
	admin.Release: "  smtpbridge queue release 01HF3Q2M7T9V5Z8K1XW4RB6C0D\n  smtpbridge queue release --all",
	admin.Delete:  "  smtpbridge queue delete 01HF3Q2M7T9V5Z8K1XW4RB6C0D --reason 'sent twice by the shop'",
}

// list gives the ids of all mails that a query is about, page by page.
func list(ctx context.Context, api admin.API, q admin.Query) (ids []string, err error) {
	q.Limit = 1000
	for {
		mails, err := api.Queue(ctx, q)
		if err != nil {
			return nil, err
		}
		for _, m := range mails {
			ids = append(ids, m.ID)
		}
		if len(mails) < q.Limit {
			return ids, nil
		}
		q.After = mails[len(mails)-1].ID
	}
}

func traceCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "trace ID-or-address", Short: "the whole life of a mail on one screen", GroupID: groupOperate, Args: usageArgs(cobra.ExactArgs(1)),
		Long:    "Finds mails by queue id, Message-ID (yours, or the one the ESP set), the ESP's id, our reference or an address, and prints\nwhat happened to each: recipients, attempts with the ESP's answers, and events.",
		Example: "  smtpbridge trace ada@example.net\n  smtpbridge trace --json '<order-17@shop.example.com>'",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		mails, err := api.Trace(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), mails)
		}
		for i, d := range mails {
			if i > 0 {
				fmt.Fprintln(c.OutOrStdout())
			}
			if err := printDetail(c.OutOrStdout(), d); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

func printDetail(out io.Writer, d *admin.Detail) error {
	t := newTable(out)
	line := func(name string, format string, args ...any) { t.row(cell{name, bold}, fmt.Sprintf(format, args...)) }
	what := d.State
	if d.HoldReason != "" {
		what += ", " + d.HoldReason
	}
	t.row(cell{"Mail", bold}, cell{fmt.Sprintf("%s (%s)", d.ID, what), tones[d.State]})
	from := sender(d.From)
	if d.FromHeader != "" && d.FromHeader != d.From {
		from += ", From: " + d.FromHeader
	}
	line("From", "%s", from)
	if d.MessageID != "" {
		line("Message-ID", "<%s>", d.MessageID)
	}
	if d.Subject != "" {
		line("Subject", "%s", d.Subject)
	}
	by := "the bridge itself"
	if d.Listener != "" {
		by = "listener " + d.Listener
	}
	if d.Peer != "" {
		by += " from " + d.Peer
	}
	if d.User != "" {
		by += " as " + d.User
	}
	line("Received", "%s, %d bytes, by %s", stamp(d.Received), d.Size, by)
	for _, r := range d.Recipients {
		t.row(cell{"To", bold}, cell{r.Addr + ": " + rcptLine(r), cmp.Or(tones[string(r.Last)], tones[r.State])})
	}
	for _, j := range d.Jobs {
		when := fmt.Sprintf("at %s, %s so far, gives up %s", stamp(j.NextAt), plural(j.Attempts, "attempt"), stamp(j.Expires))
		if j.Waits != "" {
			when = fmt.Sprintf("as soon as it sends again, %s so far; %s", plural(j.Attempts, "attempt"), j.Waits)
		}
		text := fmt.Sprintf("%s by %s %s", shortList(j.Rcpts, 3), j.Account, when)
		if j.LastError != "" {
			text += "; " + j.LastError
		}
		line("Next", "%s", text)
	}
	for _, a := range d.Attempts {
		t.row(cell{"Call", bold}, cell{attemptLine(a), tones[a.State]})
	}
	for _, e := range d.Events {
		t.row(cell{"Event", bold}, cell{eventLine(e), tones[string(e.Kind)]})
	}
	for _, n := range d.Notices {
		line("DSN", "%s", noticeLine(d.From, n))
	}
	return t.flush()
}

// rcptLine is what became of a recipient.
func rcptLine(r admin.Rcpt) string {
	text := r.State
	if r.Account != "" {
		text += " by " + r.Account
	}
	if r.ProviderMessageID != "" {
		text += " as " + r.ProviderMessageID
	}
	if r.WireMessageID != "" {
		text += ", on the wire <" + r.WireMessageID + ">"
	}
	if r.Last != "" && string(r.Last) != r.State {
		text += ", then " + string(r.Last)
	}
	if r.Status != "" {
		text += ", " + r.Status
	}
	if r.Detail != "" {
		text += " " + r.Detail
	}
	return text
}

// attemptLine is one API call and the ESP's answer.
func attemptLine(a admin.Attempt) string {
	text := fmt.Sprintf("%s  %s attempt %d: %s", stamp(a.Started), a.Account, a.Attempt, a.State)
	if a.HTTPStatus != 0 {
		text += fmt.Sprintf(", HTTP %d", a.HTTPStatus)
	}
	if a.Kind != "" {
		text += ", " + a.Kind
	}
	if a.Elapsed > 0 {
		text += ", " + a.Elapsed.Round(time.Millisecond).String()
	}
	if a.Detail != "" {
		text += ": " + a.Detail
	}
	return text
}

// eventLine is an event of a mail that stands above it, in local time as everything on that screen.
func eventLine(e event.Event) string {
	text := stamp(e.Time) + "  " + string(e.Kind)
	for _, s := range []string{e.Recipient, e.Status, dsn.Said(e)} {
		if s != "" {
			text += "  " + s
		}
	}
	return text
}

func sender(from string) string {
	if from == "" {
		return "<>"
	}
	return from
}

func shortList(list []string, n int) string {
	if len(list) <= n {
		return strings.Join(list, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(list[:n], ", "), len(list)-n)
}
