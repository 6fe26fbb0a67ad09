package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sort"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
	"smtpbridge/store"
)

// Accounts is what a running bridge adds to the store: the configured accounts and the power to pause them.
type Accounts interface {
	// Configured lists account names with their provider.
	Configured() map[string]string
	Pause(ctx context.Context, account, reason string) error
	Resume(ctx context.Context, account string) error
}

// Service is the API on a store of this process.
type Service struct {
	Store *store.Store
	Accts Accounts // nil: read-only, no bridge runs
	// Replayer reads stored requests anew, with the parsers of the configured accounts.
	Replayer func(ctx context.Context, since time.Time, progress func(store.Replayed) error) (store.Replayed, error)
	Version  string
	Started  time.Time
	Log      *slog.Logger
	Now      func() time.Time
}

var _ API = (*Service)(nil)

// Status implements API.
func (s *Service) Status(ctx context.Context) (*Status, error) {
	st, err := s.Store.Stats(ctx)
	if err != nil {
		return nil, err
	}
	out := &Status{Version: s.Version, Started: s.Started, Queued: st.Queued, Held: st.Held, InFlight: st.InFlight, ByAccount: st.ByAccount}
	out.Oldest = timePtr(st.Oldest)
	return out, nil
}

// Queue implements API.
func (s *Service) Queue(ctx context.Context, q Query) ([]Mail, error) {
	f := store.Filter{State: store.MailState(q.State), Address: q.Address, Account: q.Account, Limit: q.Limit, After: q.After}
	states := []store.MailState{f.State}
	switch f.State {
	case "":
		states = []store.MailState{store.MailQueued, store.MailHeld}
	case "all":
		states = []store.MailState{""}
	}
	out := []Mail{}
	for _, st := range states {
		f.State = st
		mails, err := s.Store.Mails(ctx, f)
		if err != nil {
			return nil, err
		}
		for i := range mails {
			out = append(out, mailView(&mails[i]))
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID > out[j].ID })
	if q.Limit > 0 && len(out) > q.Limit {
		out = out[:q.Limit]
	}
	return out, nil
}

// Mail implements API.
func (s *Service) Mail(ctx context.Context, id string) (*Detail, error) {
	d, err := s.Store.Detail(ctx, id)
	if err != nil {
		return nil, notFound(err, "mail", id)
	}
	return detailView(d), nil
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
		return fmt.Errorf("mail %s is %s: there is nothing left to %s", d.Mail.Envelope.ID, st, a)
	}
	s.Log.Info("operator action", "event", "admin.action", "action", string(a), "id", d.Mail.Envelope.ID, "reason", event.Clean(reason, 200))
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
	default:
		return fmt.Errorf("action %q: %w", event.Clean(string(a), 40), ErrNotFound)
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
	s.Log.Info("operator action", "event", "admin.action", "action", "replay", "since", since)
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
	cursor := ""
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

func (q EventQuery) match(e event.Event) bool {
	return !e.Seen.Before(q.Since) && (q.Kind == "" || q.Kind == e.Kind) &&
		(q.Recipient == "" || envelope.Equal(q.Recipient, e.Recipient))
}

// Accounts implements API.
func (s *Service) Accounts(ctx context.Context) ([]Account, error) {
	st, err := s.Store.Stats(ctx)
	if err != nil {
		return nil, err
	}
	states, err := s.Store.Accounts(ctx)
	if err != nil {
		return nil, err
	}
	var names map[string]string
	if s.Accts != nil {
		names = s.Accts.Configured()
	}
	out, seen := []Account{}, map[string]bool{}
	for _, a := range states {
		seen[a.Account] = seen[a.Account] || a.Domain == ""
		out = append(out, Account{
			Name: a.Account, Provider: names[a.Account], State: a.State, Reason: a.Reason, Domain: a.Domain,
			Until: timePtr(a.Until), Since: timePtr(a.Since), Queued: st.ByAccount[a.Account],
		})
	}
	for n, p := range names {
		if !seen[n] {
			out = append(out, Account{Name: n, Provider: p, State: "active", Queued: st.ByAccount[n]})
		}
	}
	sort.Slice(out, func(i, j int) bool {
		return out[i].Name < out[j].Name || out[i].Name == out[j].Name && out[i].Domain < out[j].Domain
	})
	return out, nil
}

// SetAccount implements API.
func (s *Service) SetAccount(ctx context.Context, name string, pause bool, reason string) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	if _, ok := s.Accts.Configured()[name]; !ok {
		return fmt.Errorf("account %q: %w", event.Clean(name, 80), ErrNotFound)
	}
	s.Log.Info("operator action", "event", "admin.action", "action", map[bool]string{true: "pause", false: "resume"}[pause], "account", name, "reason", event.Clean(reason, 200))
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
	s.Log.Info("operator action", "event", "admin.action", "action", "erase") // the address is what shall be forgotten
	e, err := s.Store.Erase(ctx, addr)
	return &Erased{Mails: e.Mails, Events: e.Events, Waiting: e.Waiting}, err
}

// Backup implements API.
func (s *Service) Backup(ctx context.Context, dir string) error {
	if s.Accts == nil {
		return ErrReadOnly
	}
	s.Log.Info("operator action", "event", "admin.action", "action", "backup", "dir", event.Clean(dir, 300))
	return s.Store.Backup(ctx, dir)
}

func notFound(err error, what, id string) error {
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("%s %q: %w", what, event.Clean(id, 80), ErrNotFound)
	}
	return err
}
