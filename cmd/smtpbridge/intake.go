package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/smtp"
	"smtpbridge/store"
)

// intake takes mails from the SMTP server: it spools the bytes, has the planner judge the mail
// before the 250, and makes mail and jobs durable in one transaction.
type intake struct {
	store *store.Store
	now   atomic.Pointer[parts] // the configuration in force
}

var _ smtp.Intake = (*intake)(nil)

func (in *intake) Begin(ctx context.Context) (smtp.Transaction, error) {
	r, err := in.store.Begin(ctx)
	if err != nil {
		return nil, noSpace(err)
	}
	return &transaction{Receipt: r, parts: in.now.Load()}, nil
}

// room refuses a mail at MAIL while the disk is too full for it, before its bytes travel in vain. Any other fault
// of the disk shows when the mail is received.
func (in *intake) room(_, _, _ string) *smtp.Refusal {
	if !errors.Is(in.store.Space(), store.ErrNoSpace) {
		return nil
	}
	return &smtp.Refusal{Code: 452, Enhanced: [3]int{4, 3, 1}, Text: "No space for the mail at the moment, try again later", Reason: "no_space"}
}

type transaction struct {
	store.Receipt
	parts *parts
}

// Write tells the SMTP server when the disk is full.
func (t *transaction) Write(p []byte) (int, error) {
	n, err := t.Receipt.Write(p)
	return n, noSpace(err)
}

// Commit implements smtp.Transaction.
func (t *transaction) Commit(ctx context.Context, e envelope.Envelope) error {
	body, err := t.Receipt.Body()
	if err != nil {
		return fmt.Errorf("read back the mail: %w", err)
	}
	defer body.Close()
	e.Size = body.Size()
	plan, err := t.parts.planner.Plan(deliver.PlanRequest{
		Envelope: e, Body: body, Size: body.Size(), AllowedFrom: allowedFrom(t.parts.cfg, e.AuthUser),
	})
	var refusal *deliver.Refusal
	if errors.As(err, &refusal) {
		return &smtp.Refusal{Code: refusal.Code, Enhanced: refusal.Enhanced, Text: refusal.Text}
	}
	if err != nil {
		return fmt.Errorf("preflight: %w", err)
	}
	return noSpace(t.Receipt.Commit(ctx, plan.Mail, plan.Jobs, plan.Events...))
}

// allowedFrom gives the From patterns of a user; nil = any (the routes decide).
func allowedFrom(cfg *config.Config, user string) []string {
	for _, u := range cfg.Users {
		if u.Name == user {
			return u.Senders
		}
	}
	return nil
}

// noSpaceError tells the SMTP server to answer 452 4.3.1.
type noSpaceError struct{ error }

func (noSpaceError) NoSpace() bool   { return true }
func (e noSpaceError) Unwrap() error { return e.error }

func noSpace(err error) error {
	if errors.Is(err, store.ErrNoSpace) {
		return noSpaceError{err}
	}
	return err
}
