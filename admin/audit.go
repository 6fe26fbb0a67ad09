package admin

import (
	"context"
	"fmt"

	"smtpbridge/event"
)

type actorKey struct{}

// WithActor says who acts: "socket uid 0", "dashboard 192.0.2.7 session 3f2a". It is written with every change.
func WithActor(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, actorKey{}, who)
}

func actor(ctx context.Context) string {
	if who, ok := ctx.Value(actorKey{}).(string); ok {
		return who
	}
	return "this process"
}

// change is what an operator is about to do.
type change struct {
	what    string // retry, pause ...
	id      string // queue id
	account string
	reason  string
}

// audit writes who is about to change what, to the log and to the event log; what cannot be written is not done.
func (s *Service) audit(ctx context.Context, c change) error {
	who, reason := event.Clean(actor(ctx), 200), event.Clean(c.reason, 200)
	s.Log.Info("operator action", "event", "admin.action", "who", who, "action", c.what, "id", c.id, "account", c.account, "reason", reason)
	text := "by " + who
	if reason != "" {
		text += ": " + reason
	}
	now := s.Now().UTC()
	err := s.Store.Note(ctx, event.Event{
		Time: now, Seen: now, Kind: event.Unknown, ProviderEvent: "admin." + c.what, QueueID: c.id, Account: c.account, Diagnostic: text,
	})
	if err != nil {
		return fmt.Errorf("%s is not done, because it cannot be recorded: %w", c.what, err)
	}
	s.stats.forget()
	return nil
}
