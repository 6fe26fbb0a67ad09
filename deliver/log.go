package deliver

import (
	"log/slog"
	"time"

	"smtpbridge/store"
)

// Native names of the bridge's own account events (event kind unknown).
const (
	noticePaused  = "account.paused"
	noticeResumed = "account.resumed"
	noticeHeld    = "mail.held"
)

// journal is the vocabulary of the delivery log: one method for each line an operator may see.
type journal struct {
	l         *slog.Logger
	addresses bool
}

func (j journal) rcpt(a string) string {
	if j.addresses {
		return a
	}
	return "(hidden)"
}

func (j journal) accountPaused(s store.AccountState, domain string) {
	j.l.Error("account.paused", "account", s.Account, "domain", domain, "reason", s.Reason, "probe_at", s.Until)
}

func (j journal) accountStopped(s store.AccountState) {
	j.l.Warn("account.stopped", "account", s.Account, "reason", s.Reason)
}

func (j journal) accountResumed(s store.AccountState, domain string) {
	j.l.Info("account.resumed", "account", s.Account, "domain", domain)
}

func (j journal) accountThrottled(s store.AccountState) {
	j.l.Warn("esp.throttled", "account", s.Account, "until", s.Until, "reason", s.Reason)
}

func (j journal) probeFailed(s store.AccountState) {
	j.l.Info("account.probe_failed", "account", s.Account, "reason", s.Reason, "probe_at", s.Until)
}

func (j journal) stateNotSaved(account string, err error) {
	j.l.Error("account.state_not_saved", "account", account, "err", err)
}

func (j journal) featureLost(account, feature, why string) {
	j.l.Warn("account.feature_lost", "account", account, "feature", feature, "reason", why)
}

func (j journal) warning(account, id, text string) {
	j.l.Warn("esp.warning", "account", account, "id", id, "warning", text)
}

func (j journal) callFailed(account, id, kind string, status, attempt int, err error) {
	j.l.Warn("esp.error", "account", account, "id", id, "kind", kind, "http_status", status, "attempt", attempt, "err", err)
}

func (j journal) callUnknown(account, id, ref string, err error) {
	j.l.Warn("esp.unknown", "account", account, "id", id, "ref", ref, "outcome", "unknown", "err", err)
}

func (j journal) sent(account, id, rcpt, providerID string, attempt int) {
	j.l.Info("sent", "account", account, "id", id, "rcpt", j.rcpt(rcpt), "provider_message_id", providerID, "attempt", attempt)
}

func (j journal) refused(event, account, id, rcpt, status, text string, attempt int) {
	j.l.Warn(event, "account", account, "id", id, "rcpt", j.rcpt(rcpt), "status", status, "diagnostic", text, "attempt", attempt)
}

func (j journal) expired(id, account string, attempts int) {
	j.l.Warn("queue.expired", "id", id, "account", account, "attempts", attempts)
}

func (j journal) held(id, account, reason string) {
	j.l.Error("queue.held", "id", id, "account", account, "reason", reason)
}

func (j journal) movedOn(id, from, to, why string) {
	j.l.Info("queue.failover", "id", id, "account", from, "to", to, "reason", why)
}

func (j journal) stateLost(id, ref string, err error) {
	j.l.Error("queue.state_lost", "id", id, "ref", ref, "outcome", "unknown", "err", err)
}

func (j journal) stateKept(id string, tries int, err error) {
	j.l.Error("queue.state_not_saved", "id", id, "tries", tries, "err", err)
}

func (j journal) stateSaved(id string, tries int) {
	j.l.Info("queue.state_saved", "id", id, "tries", tries)
}

func (j journal) claimLost(id string) {
	j.l.Warn("queue.claim_lost", "id", id)
}

func (j journal) noRoute(id string, rcpts int) {
	j.l.Warn("queue.no_route", "id", id, "rcpts", rcpts)
}

func (j journal) replanned(n int, generation int64) {
	j.l.Info("queue.replanned", "mails", n, "generation", generation)
}

func (j journal) storeFailed(op, account string, err error) {
	j.l.Error("queue.store_failed", "op", op, "account", account, "err", err)
}

func (j journal) ownFault(op, id string, err error) {
	j.l.Error("deliver.failed", "op", op, "id", id, "err", err)
}

func (j journal) panicked(id string, v any, stack []byte) {
	j.l.Error("deliver.panic", "id", id, "panic", v, "stack", string(stack))
}

func (j journal) clockJump(delta time.Duration) {
	j.l.Warn("clock.jump", "delta", delta.String())
}

func (j journal) clockFuture(id string, received time.Time) {
	j.l.Warn("clock.future", "id", id, "received", received)
}

func (j journal) clockAhead(id string) {
	j.l.Warn("clock.ahead", "id", id)
}

func (j journal) softBounce() {
	j.l.Warn("soft_bounce", "soft_bounce", true)
}

func (j journal) drained(inFlight int) {
	j.l.Info("deliver.stopped", "cut", inFlight)
}
