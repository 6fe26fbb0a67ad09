package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/envelope"
	"smtpbridge/smtp"
	"smtpbridge/store"
)

// intake takes mails from the SMTP server: it spools the bytes, has the planner judge the mail
// before the 250, and makes mail and jobs durable in one transaction. A listener with
// accept = "wait" is answered after the first attempt, see wait.go.
type intake struct {
	store  *store.Store
	runner *deliver.Runner
	log    *slog.Logger
	now    atomic.Pointer[parts] // the configuration in force

	disk  func() (free, total int64, err error)
	pulse pulse
	rates rates

	sayMu sync.Mutex
	said  map[string]time.Time
}

var (
	_ smtp.Intake      = (*intake)(nil)
	_ smtp.RcptRefuser = (*transaction)(nil)
)

func (in *intake) Begin(ctx context.Context) (smtp.Transaction, error) {
	r, err := in.store.Begin(ctx)
	if err != nil {
		return nil, noSpace(err)
	}
	return &transaction{Receipt: r, in: in, parts: in.now.Load()}, nil
}

type transaction struct {
	store.Receipt
	in      *intake
	parts   *parts
	refused map[string]*smtp.Refusal // by recipient, for LMTP
}

// Write tells the SMTP server when the disk is full.
func (t *transaction) Write(p []byte) (int, error) {
	n, err := t.Receipt.Write(p)
	return n, noSpace(err)
}

// RcptRefusals implements smtp.RcptRefuser.
func (t *transaction) RcptRefusals() map[string]*smtp.Refusal { return t.refused }

// Commit implements smtp.Transaction.
func (t *transaction) Commit(ctx context.Context, e envelope.Envelope) error {
	l := findConfigListener(t.parts.cfg, e.Listener)
	if l == nil {
		l = &config.Listener{}
	}
	q, wait, undo := t.in.rates.take(time.Now(), quotas(t.parts.cfg, e.Listener, e.AuthUser))
	if wait > 0 { // used up by other sessions since MAIL
		return refuseRate(q, wait)
	}
	plan, err := t.plan(e, l)
	if err == nil {
		if l.Accept == "wait" {
			return t.commitAndWait(ctx, plan, l, undo)
		}
		err = t.commit(ctx, plan)
	}
	if err != nil {
		undo()
	}
	return err
}

func (t *transaction) commit(ctx context.Context, plan *deliver.Plan) error {
	t.in.runner.Taken(plan)
	err := t.Receipt.Commit(ctx, plan.Mail, plan.Jobs, plan.Events...)
	if err != nil {
		t.in.runner.Dropped(plan)
	}
	return noSpace(err)
}

// plan is the preflight.
func (t *transaction) plan(e envelope.Envelope, l *config.Listener) (*deliver.Plan, error) {
	body, err := t.Receipt.Body()
	if err != nil {
		return nil, fmt.Errorf("read back the mail: %w", err)
	}
	defer body.Close()
	e.Size = body.Size()
	plan, err := t.parts.planner.Plan(deliver.PlanRequest{
		Envelope: e, Body: body, Size: body.Size(), AllowedFrom: allowedFrom(t.parts.cfg, e.AuthUser), MaxRcpts: l.MaxRecipients,
	})
	var refusal *deliver.Refusal
	if errors.As(err, &refusal) {
		t.refuse(refusal.Each)
		return nil, smtpRefusal(refusal)
	}
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	if l.Protocol == "lmtp" {
		t.refuse(plan.Refused)
		for _, r := range plan.Refused {
			// The reply is the notice: the client reports it (RFC 2033 4.2), a DSN would be a second one.
			// One that a header added has no reply.
			if slices.ContainsFunc(e.Rcpts, func(c envelope.Rcpt) bool { return envelope.Equal(c.Addr, r.Rcpt.Addr) }) {
				plan.Mail.Envelope.Rcpts[r.N].Notify = []string{"NEVER"}
			}
		}
	}
	return plan, nil
}

// refuse notes what single recipients are answered.
func (t *transaction) refuse(rs []deliver.RcptRefusal) {
	for _, r := range rs {
		t.refuseRcpt(r.Rcpt.Addr, smtpRefusal(r.Refusal))
	}
}

func (t *transaction) refuseRcpt(addr string, r *smtp.Refusal) {
	if t.refused == nil {
		t.refused = map[string]*smtp.Refusal{}
	}
	t.refused[addr] = r
}

func smtpRefusal(r *deliver.Refusal) *smtp.Refusal {
	return &smtp.Refusal{Code: r.Code, Enhanced: r.Enhanced, Text: r.Text, Lines: r.Lines}
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
