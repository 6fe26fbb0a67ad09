package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sort"
	"strings"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

// Accounts is what a running bridge adds to the store: the configured accounts and the power to pause them.
type Accounts interface {
	// Configured lists accounts by name.
	Configured() map[string]Configured
	Pause(ctx context.Context, account, reason string) error
	Resume(ctx context.Context, account string) error
}

// Configured is what the configuration says of an account.
type Configured struct {
	Provider string
	Webhook  *Webhook           // without Last; nil: its ESP calls nobody
	Inbox    func() []InboxMail // of the sandbox, oldest first; else nil
}

// Service is the API on a store of this process.
type Service struct {
	Store   *store.Store
	Accts   Accounts       // nil: read-only, no bridge runs
	Alarms  func() []Alarm // may be nil
	Preview func() bool    // whether contents may be shown; nil: no
	// Replayer reads stored requests anew, with the parsers of the configured accounts.
	Replayer func(ctx context.Context, since time.Time, progress func(store.Replayed) error) (store.Replayed, error)
	Version  string
	Started  time.Time
	Log      *slog.Logger
	Now      func() time.Time

	stats statsCache
}

var _ API = (*Service)(nil)

// Status implements API.
func (s *Service) Status(ctx context.Context) (*Status, error) {
	st, err := s.stats.read(ctx, s.Store, s.Now())
	if err != nil {
		return nil, err
	}
	out := &Status{Alarms: []Alarm{}, Version: s.Version, Started: s.Started, Queued: st.Queued, Held: st.Held, InFlight: st.InFlight, ByAccount: st.ByAccount}
	out.Oldest = timePtr(st.Oldest)
	if s.Alarms != nil {
		out.Alarms = append(out.Alarms, s.Alarms()...)
	}
	return out, nil
}

// Queue implements API.
func (s *Service) Queue(ctx context.Context, q Query) ([]Mail, error) {
	out := []Mail{}
	want := q.Limit
	for {
		p, err := s.Mails(ctx, q)
		if err != nil {
			return nil, err
		}
		out = append(out, p.Mails...)
		if q.After = p.Next; p.Next == "" || want > 0 && len(out) >= want {
			break
		}
	}
	if want > 0 && len(out) > want {
		out = out[:want]
	}
	return out, nil
}

// Mails implements API.
func (s *Service) Mails(ctx context.Context, q Query) (*Page, error) {
	f := store.Search{Address: q.Address, Account: q.Account, Limit: q.Limit, After: q.After}
	switch q.State {
	case "":
		f.States = []store.MailState{store.MailQueued, store.MailHeld}
	case "all":
	case "failed":
		f.Failed = true
	default:
		f.States = []store.MailState{store.MailState(q.State)}
	}
	if q.Text != "" {
		ids, err := s.Store.FindExact(ctx, q.Text)
		if err != nil {
			return nil, err
		}
		switch {
		case len(ids) > 0:
			f.IDs = ids
		case strings.Contains(q.Text, "@"):
			f.Address = q.Text
		default:
			f.Subject = q.Text
		}
	}
	lines, next, err := s.Store.Page(ctx, f)
	if err != nil {
		return nil, err
	}
	out := &Page{Mails: make([]Mail, len(lines)), Next: next}
	for i := range lines {
		out.Mails[i] = mailView(&lines[i].Mail)
		out.Mails[i].Outcome = lines[i].Outcome
	}
	return out, nil
}

// Mail implements API.
func (s *Service) Mail(ctx context.Context, id string) (*Detail, error) {
	d, err := s.Store.Detail(ctx, id)
	if err != nil {
		return nil, notFound(err, "mail", id)
	}
	out := detailView(d)
	if len(out.Jobs) == 0 {
		return out, nil
	}
	states, err := s.Store.Accounts(ctx)
	if err != nil {
		return nil, err
	}
	for i := range out.Jobs {
		out.Jobs[i].Waits = waits(out.Jobs[i].Account, envelope.Domain(cmp.Or(out.FromHeader, out.From)), states)
	}
	return out, nil
}

// waits says why mail from a domain does not leave through an account, "" when it does.
func waits(account, domain string, states []store.AccountState) string {
	for _, a := range states {
		if a.Account != account || a.Domain != "" && a.Domain != domain || !slices.Contains([]string{"paused", "probing", "stopped"}, a.State) {
			continue
		}
		why := "the account is " + a.State
		if a.Reason != "" {
			why += ": " + a.Reason
		}
		return why
	}
	return ""
}

// Trace implements API.
func (s *Service) Trace(ctx context.Context, key string) ([]*Detail, error) {
	ids, err := s.Store.Find(ctx, key)
	if err != nil {
		return nil, err
	}
	out := []*Detail{}
	for _, id := range ids {
		d, err := s.Mail(ctx, id)
		if errors.Is(err, ErrNotFound) {
			continue // purged between the two looks
		}
		if err != nil {
			return nil, err
		}
		out = append(out, d)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no mail with queue id, Message-ID, ESP id, reference or address %q: %w", event.Clean(key, 200), ErrNotFound)
	}
	return out, nil
}

// Act implements API.
func (s *Service) Act(ctx context.Context, id string, a Action, reason string) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	d, err := s.Store.Detail(ctx, id)
	if err != nil {
		return notFound(err, "mail", id)
	}
	if st := d.Mail.State; st == store.MailFinished || st == store.MailDeleted {
		return &doneError{fmt.Sprintf("mail %s is %s: there is nothing left to %s", d.Mail.Envelope.ID, st, event.Clean(string(a), 40))}
	}
	if a != Retry && a != Hold && a != Release && a != Delete {
		return fmt.Errorf("action %q: %w", event.Clean(string(a), 40), ErrNotFound)
	}
	if err := s.audit(ctx, change{what: string(a), id: d.Mail.Envelope.ID, reason: reason}); err != nil {
		return err
	}
	switch a {
	case Retry:
		err = s.Store.Retry(ctx, id)
	case Hold:
		if reason == "" {
			reason = "operator"
		}
		err = s.Store.Hold(ctx, id, event.Clean(reason, 200))
	case Release:
		err = s.Store.ReleaseHold(ctx, id)
	case Delete:
		err = s.Store.Delete(ctx, id, s.deleted(d)...)
	}
	return notFound(err, "mail", id)
}

// deleted makes the final event of each recipient that an operator's deletion leaves without the mail.
func (s *Service) deleted(d *store.Detail) []event.Event {
	now := s.Now().UTC()
	var out []event.Event
	for _, r := range d.Rcpts {
		if r.State.Final() {
			continue
		}
		out = append(out, event.Event{
			V: event.Version, ID: event.FactID("", "deleted", d.Mail.Envelope.ID, r.Addr), Time: now, Seen: now, Kind: event.Failed,
			Recipient: r.Addr, QueueID: d.Mail.Envelope.ID, Sender: d.Mail.Envelope.From, MessageID: d.Mail.MessageID,
			Action: event.ActionFailed, Status: "5.7.0", Diagnostic: "deleted by the operator", RejectReason: event.ReasonOther,
			EnvID: d.Mail.Envelope.EnvID, ORCPT: r.ORCPT,
		})
	}
	return out
}

// Replay implements API.
func (s *Service) Replay(ctx context.Context, since time.Time, each func(store.Replayed) error) error {
	if s.Replayer == nil {
		return ErrReadOnly
	}
	if err := s.audit(ctx, change{what: "replay", reason: "since " + since.UTC().Format(time.RFC3339)}); err != nil {
		return err
	}
	sum, err := s.Replayer(ctx, since, each)
	if err != nil {
		return err
	}
	return each(sum)
}

// Events implements API.
func (s *Service) Events(ctx context.Context, q EventQuery, each func(event.Event) error) error {
	wake, stop := s.Store.Subscribe(store.TopicEvents)
	defer stop()
	cursor, err := s.start(ctx, q)
	if err != nil {
		return err
	}
	for {
		evs, next, err := s.Store.Follow(ctx, cursor, 500)
		if err != nil {
			return err
		}
		for _, e := range evs {
			if q.match(e) {
				if err := each(e); err != nil {
					return err
				}
			}
		}
		if next != "" {
			cursor = next
		}
		if len(evs) > 0 {
			continue
		}
		if !q.Follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		case <-time.After(time.Second): // another node's events come without a signal
		}
	}
}

// start is where in the log to begin: near the first event asked for.
func (s *Service) start(ctx context.Context, q EventQuery) (string, error) {
	switch {
	case q.New:
		return s.Store.LastCursor(ctx)
	case q.Since.IsZero():
		return "", nil
	}
	return s.Store.CursorBefore(ctx, q.Since)
}

func (q EventQuery) match(e event.Event) bool {
	return !e.Seen.Before(q.Since) && (q.Kind == "" || q.Kind == e.Kind) &&
		(q.Recipient == "" || envelope.Equal(q.Recipient, e.Recipient))
}

// Accounts implements API.
func (s *Service) Accounts(ctx context.Context) ([]Account, error) {
	st, err := s.stats.read(ctx, s.Store, s.Now())
	if err != nil {
		return nil, err
	}
	states, err := s.Store.Accounts(ctx)
	if err != nil {
		return nil, err
	}
	var names map[string]Configured
	if s.Accts != nil {
		names = s.Accts.Configured()
	}
	hooks, err := s.Store.LastWebhooks(ctx)
	if err != nil {
		return nil, err
	}
	webhook := func(name string) *Webhook {
		if names[name].Webhook == nil {
			return nil
		}
		w := *names[name].Webhook
		w.Last = timePtr(hooks[name])
		return &w
	}
	out, seen := []Account{}, map[string]bool{}
	for _, a := range states {
		seen[a.Account] = seen[a.Account] || a.Domain == ""
		out = append(out, Account{
			Name: a.Account, Provider: names[a.Account].Provider, State: a.State, Reason: a.Reason, Domain: a.Domain,
			Until: timePtr(a.Until), Since: timePtr(a.Since), Queued: st.ByAccount[a.Account],
			Webhook: webhook(a.Account),
		})
	}
	for n, p := range names {
		if !seen[n] {
			out = append(out, Account{Name: n, Provider: p.Provider, State: "active", Queued: st.ByAccount[n], Webhook: webhook(n)})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Name < out[j].Name || out[i].Name == out[j].Name && out[i].Domain < out[j].Domain
	})
	return out, nil
}

// Nodes implements API.
func (s *Service) Nodes(ctx context.Context) ([]store.Node, error) {
	nodes, err := s.Store.Nodes(ctx)
	if nodes == nil {
		nodes = []store.Node{}
	}
	return nodes, err
}

// SetAccount implements API.
func (s *Service) SetAccount(ctx context.Context, name string, pause bool, reason string) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	if _, ok := s.Accts.Configured()[name]; !ok {
		return fmt.Errorf("account %q: %w", event.Clean(name, 80), ErrNotFound)
	}
	if err := s.audit(ctx, change{what: map[bool]string{true: "pause", false: "resume"}[pause], account: name, reason: reason}); err != nil {
		return err
	}
	if pause {
		if reason == "" {
			reason = "operator"
		}
		return s.Accts.Pause(ctx, name, event.Clean(reason, 200))
	}
	return s.Accts.Resume(ctx, name)
}

// Erase implements API.
func (s *Service) Erase(ctx context.Context, addr string) (*Erased, error) {
	if s.Accts == nil {
		return nil, ErrReadOnly
	}
	if err := s.audit(ctx, change{what: "erase"}); err != nil { // the address is what shall be forgotten
		return nil, err
	}
	e, err := s.Store.Erase(ctx, addr)
	return &Erased{Mails: e.Mails, Events: e.Events, Waiting: e.Waiting}, err
}

// Backup implements API.
func (s *Service) Backup(ctx context.Context, dir string) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	if err := s.audit(ctx, change{what: "backup", reason: dir}); err != nil {
		return err
	}
	return s.Store.Backup(ctx, dir)
}

// doneError is an ErrDone in its own words.
type doneError struct{ text string }

func (e *doneError) Error() string { return e.text }
func (e *doneError) Unwrap() error { return ErrDone }

func notFound(err error, what, id string) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%s %q: %w", what, event.Clean(id, 80), ErrNotFound)
	}
	return err
}
