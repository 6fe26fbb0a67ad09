package main

import (
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/providers/all"
	"smtpbridge/sink"
	"smtpbridge/smtp"
	"smtpbridge/store"
)

// suppressSink follows the events for the suppression list.
func (b *Bridge) suppressSink(c config.Suppression) sink.Sink {
	return sink.NewSuppress(sink.SuppressConfig{
		List: b.store,
		Audience: func(ctx context.Context, queueID, account string) (domain, stream string, ok bool, err error) {
			d, err := b.store.Detail(ctx, queueID)
			if errors.Is(err, store.ErrNotFound) {
				return "", "", false, nil
			}
			if err != nil {
				return "", "", false, err
			}
			domain, stream = b.intake.now.Load().planner.Audience(&d.Mail, account)
			return domain, stream, true, nil
		},
		Keep: map[string]time.Duration{
			store.ReasonBounced: c.KeepBounces.D(), store.ReasonComplained: c.KeepComplaints.D(), store.ReasonUnsubscribed: c.KeepUnsubscribes.D(),
		},
	})
}

// suppressed refuses at RCPT an address that no From domain may send to, where the configuration asks for that. What
// holds for one domain or stream is not known before the header, and is refused later.
func (in *intake) suppressed(rcpt string) *smtp.Refusal {
	cfg := in.now.Load().cfg
	if !cfg.Suppression.AtRcpt || cfg.Delivery.SoftBounce {
		return nil
	}
	for _, r := range cfg.Routes {
		if len(r.RedirectAllTo) > 0 && (len(r.Recipients) == 0 || envelope.MatchAny(r.Recipients, rcpt)) {
			return nil // somebody else may receive the mail
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), pingWait)
	defer cancel()
	s, err := in.store.Suppressed(ctx, rcpt, "", "")
	if err != nil {
		in.say("suppression.unreadable", "err", err)
		return nil // it is asked again before the mail is sent
	}
	if s == nil {
		return nil
	}
	return &smtp.Refusal{
		Code: 550, Enhanced: [3]int{5, 7, 1}, Reason: "suppressed", Text: deliver.SuppressedText(s),
	}
}

func suppressionCommand() *cobra.Command {
	c := family("suppression", groupOperate, "see and change the list of addresses that receive no mail",
		suppressionList(), suppressionAdd(), suppressionRemove(), suppressionImport(), suppressionExport())
	c.Long = `With [suppression] enabled = true, addresses that do not exist and people who complained are kept
from further mail of the same From domain; docs/suppression.md says when. These commands work
on the running bridge, or on its store when none runs.`
	return c
}

// suppressions opens the list: that of the running bridge, else the store itself.
func suppressions(ctx context.Context, file string) (admin.SuppressionAPI, *config.Config, func(), error) {
	cfg, err := config.Load(file, all.Registry().Names())
	if err != nil {
		return nil, nil, nil, err
	}
	client, err := admin.Dial(ctx, cfg.Admin.Socket)
	switch {
	case err == nil:
		return client, cfg, func() {}, nil
	case errors.Is(err, os.ErrPermission):
		return nil, nil, nil, fmt.Errorf("the admin socket %s may not be opened by this user: %w", cfg.Admin.Socket, err)
	}
	st, err := store.Open(ctx, store.Options{Dir: cfg.DataDir, URL: cfg.Store.URL})
	if err != nil {
		return nil, nil, nil, fmt.Errorf("no bridge answers at %s, and its store cannot be opened: %w", cfg.Admin.Socket, err)
	}
	return admin.Suppressions{Store: st}, cfg, func() { st.Close() }, nil
}

// onSuppressions gives a command its configuration flag and the list.
func onSuppressions(c *cobra.Command, run func(c *cobra.Command, api admin.SuppressionAPI, args []string) error) *string {
	file := configFlag(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		api, cfg, done, err := suppressions(c.Context(), *file)
		if err != nil {
			return err
		}
		defer done()
		if !cfg.Suppression.Enabled {
			fmt.Fprintln(c.ErrOrStderr(), "note: [suppression] enabled is false: the list is not asked when mail is sent")
		}
		return run(c, api, args)
	}
	return file
}

// everySuppression goes through the whole list, or the entries of one address.
func everySuppression(ctx context.Context, api admin.SuppressionAPI, address string, each func(admin.Suppression) error) error {
	const page = 500
	for after := (*admin.Suppression)(nil); ; {
		list, err := api.Suppressions(ctx, address, after, page)
		if err != nil {
			return err
		}
		for _, s := range list {
			if err := each(s); err != nil {
				return err
			}
		}
		if len(list) < page || address != "" {
			return nil
		}
		after = &list[len(list)-1]
	}
}

func suppressionList() *cobra.Command {
	c := &cobra.Command{
		Use: "list [ADDRESS]", Short: "list the entries, or those of one address", Args: usageArgs(cobra.MaximumNArgs(1)),
		Example: "  smtpbridge suppression list\n  smtpbridge suppression list ada@example.net --json",
	}
	asJSON := jsonFlag(c)
	onSuppressions(c, func(c *cobra.Command, api admin.SuppressionAPI, args []string) error {
		list := []admin.Suppression{}
		err := everySuppression(c.Context(), api, strings.Join(args, ""), func(s admin.Suppression) error {
			list = append(list, s)
			return nil
		})
		switch {
		case err != nil:
			return err
		case *asJSON:
			return printJSON(c.OutOrStdout(), list)
		case len(list) == 0:
			_, err := fmt.Fprintln(c.OutOrStdout(), "no entries")
			return err
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ADDRESS\tFROM DOMAIN\tSTREAM\tREASON\tSINCE\tUNTIL\tSOURCE")
		for _, s := range list {
			until := "removed"
			if s.Expires != nil {
				until = s.Expires.Local().Format(time.DateTime)
				if s.Expires.Before(time.Now()) {
					until += " (over)"
				}
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", shown(s), orAny(s.Domain), orAny(s.Stream), s.Reason, s.Created.Local().Format(time.DateTime), until, s.Source)
		}
		return w.Flush()
	})
	return c
}

func shown(s admin.Suppression) string {
	if s.Address == "" {
		return "erased, sha256 " + s.Key[:min(12, len(s.Key))]
	}
	return s.Address
}

func orAny(s string) string {
	if s == "" {
		return "any"
	}
	return s
}

// scopeFlags are what an entry holds for.
func scopeFlags(c *cobra.Command, s *admin.Suppression) {
	c.Flags().StringVar(&s.Domain, "domain", "", "only for mail from this From domain (default: any)")
	c.Flags().StringVar(&s.Stream, "stream", "", "only for this stream or list (default: any)")
}

func suppressionAdd() *cobra.Command {
	var s admin.Suppression
	var expires time.Duration
	c := &cobra.Command{
		Use: "add ADDRESS...", Short: "keep addresses from mail", Args: usageArgs(cobra.MinimumNArgs(1)),
		Example: "  smtpbridge suppression add ada@example.net\n  smtpbridge suppression add ada@example.net --domain shop.example.com --reason complained --expires 720h",
	}
	scopeFlags(c, &s)
	c.Flags().StringVar(&s.Reason, "reason", store.ReasonManual, "bounced, complained, unsubscribed, manual or any word")
	c.Flags().DurationVar(&expires, "expires", 0, "how long the entry lasts, such as 720h (default: until it is removed)")
	onSuppressions(c, func(c *cobra.Command, api admin.SuppressionAPI, args []string) error {
		now := time.Now().UTC()
		if expires > 0 {
			at := now.Add(expires)
			s.Expires = &at
		}
		s.Source, s.Created = "operator", now
		list := make([]admin.Suppression, len(args))
		for i, a := range args {
			list[i] = s
			list[i].Address = a
		}
		if err := api.Suppress(c.Context(), list); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.OutOrStdout(), "%s added\n", entries(len(args)))
		return err
	})
	return c
}

func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func suppressionRemove() *cobra.Command {
	var s admin.Suppression
	c := &cobra.Command{
		Use: "remove ADDRESS...", Short: "let addresses receive mail again", Args: usageArgs(cobra.MinimumNArgs(1)),
		Example: "  smtpbridge suppression remove ada@example.net\n  smtpbridge suppression remove ada@example.net --domain shop.example.com",
		Long:    "Removes every entry of the addresses, or with --domain or --stream only those.\nWhat the ESP itself keeps on its list stays there.",
	}
	scopeFlags(c, &s)
	onSuppressions(c, func(c *cobra.Command, api admin.SuppressionAPI, args []string) error {
		for _, a := range args {
			n := 0
			err := everySuppression(c.Context(), api, a, func(e admin.Suppression) error {
				if s.Domain != "" && s.Domain != e.Domain || s.Stream != "" && s.Stream != e.Stream {
					return nil
				}
				n++
				return api.Unsuppress(c.Context(), e)
			})
			if err != nil {
				return err
			}
			if n == 0 {
				return fmt.Errorf("%s is not on the list", a)
			}
			fmt.Fprintf(c.OutOrStdout(), "%s of %s removed\n", entries(n), a)
		}
		return nil
	})
	return c
}

// suppressionColumns are the columns of an exported list.
var suppressionColumns = []string{"address", "domain", "stream", "reason", "source", "created", "expires", "sha256"}

func suppressionExport() *cobra.Command {
	c := &cobra.Command{
		Use: "export", Short: "write the list as CSV to standard output", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge suppression export > list.csv",
		Long:    "Writes what import reads: " + strings.Join(suppressionColumns, ", ") + ". An erased address has its hash alone.",
	}
	asJSON := jsonFlag(c)
	onSuppressions(c, func(c *cobra.Command, api admin.SuppressionAPI, _ []string) error {
		out := csv.NewWriter(c.OutOrStdout())
		write := func(s admin.Suppression) error {
			expires := ""
			if s.Expires != nil {
				expires = s.Expires.UTC().Format(time.RFC3339)
			}
			return out.Write([]string{s.Address, s.Domain, s.Stream, s.Reason, s.Source, s.Created.UTC().Format(time.RFC3339), expires, s.Key})
		}
		if *asJSON {
			lines := json.NewEncoder(c.OutOrStdout())
			lines.SetEscapeHTML(false)
			write = func(s admin.Suppression) error { return lines.Encode(s) }
		} else if err := out.Write(suppressionColumns); err != nil {
			return err
		}
		if err := everySuppression(c.Context(), api, "", write); err != nil {
			return err
		}
		out.Flush()
		return out.Error()
	})
	return c
}

func suppressionImport() *cobra.Command {
	var s admin.Suppression
	var account string
	c := &cobra.Command{
		Use: "import [FILE]", Short: "add entries from a CSV file, or from an ESP's own list", Args: usageArgs(cobra.MaximumNArgs(1)),
		Example: "  smtpbridge suppression import list.csv\n  smtpbridge suppression import --account mailersend",
		Long: `Reads a CSV file (standard input without one, or "-"): with a first line that names the columns
(` + strings.Join(suppressionColumns, ", ") + `; "email" is understood as address), else one address a line.
With --account the list that the ESP of this account keeps is read instead (MailerSend and Mandrill have
an API for it): hard bounces, complaints and blocked addresses; unsubscriptions only with --stream.
Entries that are there already are replaced.`,
	}
	scopeFlags(c, &s)
	c.Flags().StringVar(&s.Reason, "reason", store.ReasonManual, "for entries that give none")
	c.Flags().StringVar(&account, "account", "", "read the list of this account's ESP")
	var file *string
	file = onSuppressions(c, func(c *cobra.Command, api admin.SuppressionAPI, args []string) error {
		in := &importer{ctx: c.Context(), api: api, base: s}
		in.base.Source, in.base.Created = "import", time.Now().UTC()
		var err error
		switch {
		case account != "" && len(args) > 0:
			return usageError(c, "give a file or --account, not both")
		case account != "":
			err = importFromESP(c.Context(), *file, account, in)
		case len(args) == 0 || args[0] == "-":
			err = importCSV(c.InOrStdin(), in)
		default:
			f, oerr := os.Open(args[0])
			if oerr != nil {
				return oerr
			}
			defer f.Close()
			err = importCSV(f, in)
		}
		if ferr := in.flush(); err == nil {
			err = ferr
		}
		fmt.Fprintf(c.OutOrStdout(), "%s imported", entries(in.done))
		if in.skipped > 0 {
			fmt.Fprintf(c.OutOrStdout(), ", %d left out (%s)", in.skipped, in.why)
		}
		fmt.Fprintln(c.OutOrStdout())
		return err
	})
	return c
}

// importer adds entries in batches.
type importer struct {
	ctx     context.Context
	api     admin.SuppressionAPI
	base    admin.Suppression // what entries that say nothing are
	batch   []admin.Suppression
	done    int
	skipped int
	why     string // the first left out
}

func (in *importer) skip(why string) {
	if in.skipped++; in.why == "" {
		in.why = why
	}
}

func (in *importer) add(s admin.Suppression) error {
	if s.Address != "" || len(s.Key) != 64 {
		if err := envelope.ValidateAddr(s.Address); err != nil {
			in.skip(fmt.Sprintf("%q is no address", s.Address))
			return nil
		}
	}
	if in.batch = append(in.batch, s); len(in.batch) < 500 {
		return nil
	}
	return in.flush()
}

func (in *importer) flush() error {
	if len(in.batch) == 0 {
		return nil
	}
	err := in.api.Suppress(in.ctx, in.batch)
	if err == nil {
		in.done += len(in.batch)
	}
	in.batch = in.batch[:0]
	return err
}

// importCSV reads rows. The first line names the columns when it has no address in it.
func importCSV(r io.Reader, in *importer) error {
	rows := csv.NewReader(r)
	rows.FieldsPerRecord, rows.TrimLeadingSpace, rows.LazyQuotes = -1, true, true
	columns := map[string]int{"address": 0}
	for line := 1; ; line++ {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("CSV: %w", err)
		}
		if line == 1 && !strings.Contains(strings.Join(row, ""), "@") {
			if columns, err = columnsOf(row); err != nil {
				return err
			}
			continue
		}
		s, err := rowOf(row, columns, in.base)
		if err != nil {
			in.skip(fmt.Sprintf("line %d: %v", line, err))
			continue
		}
		if err := in.add(s); err != nil {
			return err
		}
	}
}

func columnsOf(row []string) (map[string]int, error) {
	columns := map[string]int{}
	for i, name := range row {
		name = strings.ToLower(strings.Trim(name, " \ufeff"))
		if name == "email" {
			name = "address"
		}
		columns[name] = i
	}
	_, address := columns["address"]
	_, key := columns["sha256"]
	if !address && !key {
		return nil, errors.New("the first line names no column \"address\" or \"email\"")
	}
	return columns, nil
}

func rowOf(row []string, columns map[string]int, base admin.Suppression) (s admin.Suppression, err error) {
	s = base
	get := func(name string, into *string) {
		if i, ok := columns[name]; ok && i < len(row) && strings.TrimSpace(row[i]) != "" {
			*into = strings.TrimSpace(row[i])
		}
	}
	var created, expires string
	get("address", &s.Address)
	get("domain", &s.Domain)
	get("stream", &s.Stream)
	get("reason", &s.Reason)
	get("source", &s.Source)
	get("created", &created)
	get("expires", &expires)
	if s.Address == "" {
		get("sha256", &s.Key)
	}
	if created != "" {
		if s.Created, err = time.Parse(time.RFC3339, created); err != nil {
			return s, fmt.Errorf("created: %q is no time (RFC 3339)", created)
		}
	}
	if expires != "" {
		at, err := time.Parse(time.RFC3339, expires)
		if err != nil {
			return s, fmt.Errorf("expires: %q is no time (RFC 3339)", expires)
		}
		s.Expires = &at
	}
	return s, nil
}

// importFromESP reads the list that the account's ESP keeps.
func importFromESP(ctx context.Context, file, account string, in *importer) error {
	p, err := loadParts(file, 0, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer p.close()
	a := p.accounts[account]
	if a == nil {
		return noAccount(account, p.cfg)
	}
	lister, ok := a.Provider.(providers.SuppressionLister)
	if !ok {
		return fmt.Errorf("%s has no documented API that lists suppressions: export them from its dashboard and import the CSV file", a.Info.Title)
	}
	return lister.Suppressions(ctx, func(e providers.Suppressed) error {
		s := in.base
		s.Address, s.Reason, s.Source = e.Address, e.Reason, "import from "+account
		if s.Domain == "" {
			s.Domain = e.Domain
		}
		if !e.Created.IsZero() {
			s.Created = e.Created
		}
		if !e.Expires.IsZero() {
			s.Expires = &e.Expires
		}
		if s.Reason == store.ReasonUnsubscribed && s.Stream == "" {
			in.skip("an unsubscription is imported with --stream only")
			return nil
		}
		if s.Reason != store.ReasonUnsubscribed {
			s.Stream = ""
		}
		return in.add(s)
	})
}
