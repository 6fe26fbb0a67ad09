package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/dsn"
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
	st, err := store.Open(ctx, store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL, ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("no bridge answers at %s, and its store cannot be opened: %w", cfg.Admin.Socket, err)
	}
	fmt.Fprintln(os.Stderr, "note: no bridge is running; this is what its store says")
	return &console{&admin.Service{Store: st, Version: buildVersion(), Now: time.Now}, cfg, func() { st.Close() }}, nil
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func queueCommand() *cobra.Command {
	c := &cobra.Command{Use: "queue", Short: "see and handle queued mail"}
	c.AddCommand(queueList(), queueShow(),
		queueAct(admin.Retry, "retry ID...", "try mails again now", "is due now"),
		queueAct(admin.Hold, "hold ID...", "keep mails in the queue without sending them", "is held"),
		queueAct(admin.Release, "release ID... | --all", "end a hold", "is released"),
		queueAct(admin.Delete, "delete ID...", "remove mails; their remaining recipients do not receive them", "is deleted"))
	return c
}

func queueList() *cobra.Command {
	var q admin.Query
	var asJSON bool
	c := &cobra.Command{
		Use: "list", Short: "list mails, newest first", Args: usageArgs(cobra.NoArgs),
	}
	file := configFlag(c)
	c.Flags().StringVar(&q.State, "state", "", "queued, held, finished, deleted or all (default: queued and held)")
	c.Flags().StringVar(&q.Address, "address", "", "only mails from or to this address")
	c.Flags().StringVar(&q.Account, "account", "", "only mails of this account")
	c.Flags().IntVar(&q.Limit, "limit", 100, "at most so many")
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	c.RunE = func(c *cobra.Command, _ []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		mails, err := api.Queue(c.Context(), q)
		if err != nil {
			return err
		}
		if asJSON {
			return printJSON(c.OutOrStdout(), mails)
		}
		if len(mails) == 0 {
			_, err := fmt.Fprintln(c.OutOrStdout(), "no mails")
			return err
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tSTATE\tRECEIVED\tSIZE\tFROM\tTO")
		for _, m := range mails {
			state := m.State
			if m.HoldReason != "" {
				state += " (" + m.HoldReason + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", m.ID, state, m.Received.Local().Format(time.DateTime), m.Size, sender(m.From), shortList(m.Rcpts, 2))
		}
		return w.Flush()
	}
	return c
}

func queueShow() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "show ID", Short: "show one mail: recipients, jobs, attempts, events", Args: usageArgs(cobra.ExactArgs(1))}
	file := configFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
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
		if asJSON {
			return printJSON(c.OutOrStdout(), d)
		}
		return printDetail(c.OutOrStdout(), d)
	}
	return c
}

func queueAct(action admin.Action, use, short, done string) *cobra.Command {
	var reason string
	var everything bool
	c := &cobra.Command{Use: use, Short: short}
	file := configFlag(c)
	if action == admin.Hold || action == admin.Delete {
		c.Flags().StringVar(&reason, "reason", "", "kept with the mail and in the log")
	}
	if action == admin.Release || action == admin.Retry {
		c.Flags().BoolVar(&everything, "all", false, "every mail this applies to")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		if (len(args) == 0) != everything {
			return &exitError{2, fmt.Errorf("give the ids of mails, or --all where there is one\nsee: %s --help", c.CommandPath())}
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		if everything {
			if args, err = allOf(c.Context(), api, action); err != nil {
				return err
			}
		}
		var failed error
		for _, id := range args {
			if err := api.Act(c.Context(), id, action, reason); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			fmt.Fprintln(c.OutOrStdout(), id, done)
		}
		return failed
	}
	return c
}

// allOf lists every mail an action with --all is about.
func allOf(ctx context.Context, api admin.API, action admin.Action) ([]string, error) {
	q := admin.Query{State: string(store.MailHeld), Limit: 1000}
	if action == admin.Retry {
		q.State = string(store.MailQueued)
	}
	var ids []string
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
	var asJSON bool
	c := &cobra.Command{
		Use: "trace ID-or-address", Short: "the whole life of a mail on one screen", Args: usageArgs(cobra.ExactArgs(1)),
		Long: "Finds mails by queue id, Message-ID, the ESP's id, our reference or an address, and prints\nwhat happened to each: recipients, attempts with the ESP's answers, and events.",
	}
	file := configFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
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
		if asJSON {
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
	w := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	stamp := func(t time.Time) string { return t.Local().Format(time.DateTime) }
	state := d.State
	if d.HoldReason != "" {
		state += ", " + d.HoldReason
	}
	fmt.Fprintf(w, "Mail\t%s (%s)\n", d.ID, state)
	from := sender(d.From)
	if d.FromHeader != "" && d.FromHeader != d.From {
		from += ", From: " + d.FromHeader
	}
	fmt.Fprintf(w, "From\t%s\n", from)
	if d.MessageID != "" {
		fmt.Fprintf(w, "Message-ID\t<%s>\n", d.MessageID)
	}
	if d.Subject != "" {
		fmt.Fprintf(w, "Subject\t%s\n", d.Subject)
	}
	by := d.Listener
	if d.Peer != "" {
		by += " from " + d.Peer
	}
	if d.User != "" {
		by += " as " + d.User
	}
	fmt.Fprintf(w, "Received\t%s, %d bytes, by listener %s\n", stamp(d.Received), d.Size, by)
	for _, r := range d.Recipients {
		line := r.State
		if r.Account != "" {
			line += " by " + r.Account
		}
		if r.ProviderMessageID != "" {
			line += " as " + r.ProviderMessageID
		}
		if r.Last != "" && string(r.Last) != r.State {
			line += ", then " + string(r.Last)
		}
		if r.Status != "" {
			line += ", " + r.Status
		}
		if r.Detail != "" {
			line += " " + r.Detail
		}
		fmt.Fprintf(w, "To\t%s: %s\n", r.Addr, line)
	}
	for _, j := range d.Jobs {
		line := fmt.Sprintf("%s by %s at %s, %d attempts so far, gives up %s", shortList(j.Rcpts, 3), j.Account, stamp(j.NextAt), j.Attempts, stamp(j.Expires))
		if j.LastError != "" {
			line += "; " + j.LastError
		}
		fmt.Fprintf(w, "Next\t%s\n", line)
	}
	for _, a := range d.Attempts {
		line := fmt.Sprintf("%s  %s attempt %d: %s", stamp(a.Started), a.Account, a.Attempt, a.State)
		if a.HTTPStatus != 0 {
			line += fmt.Sprintf(", HTTP %d", a.HTTPStatus)
		}
		if a.Kind != "" {
			line += ", " + a.Kind
		}
		if a.Elapsed > 0 {
			line += ", " + a.Elapsed.Round(time.Millisecond).String()
		}
		if a.Detail != "" {
			line += ": " + a.Detail
		}
		fmt.Fprintf(w, "Call\t%s\n", line)
	}
	for _, e := range d.Events {
		fmt.Fprintf(w, "Event\t%s", dsn.AppendText(nil, e))
	}
	return w.Flush()
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
