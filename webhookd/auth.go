package webhookd

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/http"
	"sync"
	"time"

	"smtpbridge/internal/secret"
)

// oneOf compares in constant time with every secret. The digests have one length, so that not
// even the secret's length shows in the time taken. Empty texts and secrets never match.
func oneOf(got string, secrets []secret.String) bool {
	sum := sha256.Sum256([]byte(got))
	ok := 0
	for _, s := range secrets {
		want := sha256.Sum256([]byte(s.Reveal()))
		if s.Empty() {
			continue
		}
		ok |= subtle.ConstantTimeCompare(sum[:], want[:])
	}
	return ok == 1 && got != ""
}

// basicAuth tells whether the request carries one of the account's user:password pairs, or needs none.
func (a *account) basicAuth(r *http.Request) bool {
	if len(a.BasicAuth) == 0 {
		return true
	}
	user, pass, ok := r.BasicAuth()
	return oneOf(user+":"+pass, a.BasicAuth) && ok
}

// pathSecrets are those a path of this kind has to end in.
func (a *account) pathSecrets(kind string) []secret.String {
	if kind == kindInbound && a.Info.Webhook.InboundCallback {
		return a.InboundSecrets
	}
	return a.PathSecrets
}

// takeSecret takes the secret off the front of what follows the account's path. ok tells whether it
// was right, or is not needed; without a secret configured everything is left as it is.
func takeSecret(rest string, secrets []secret.String) (after string, ok bool) {
	if len(secrets) == 0 {
		return rest, true
	}
	first, after := cutSegment(rest)
	if !oneOf(first, secrets) {
		return rest, false
	}
	return after, true
}

// health counts an account's requests that did not verify.
type health struct {
	mu      sync.Mutex
	bad     int // in a row
	alarmed bool
	last    time.Time // begin of the last alarm

	signed time.Time     // of the last request whose only fault was its time
	off    time.Duration // how far that was from ours
	skewed int           // such requests in a row, all as far off
}

// failed counts one more.
func (h *health) failed(now time.Time) (inARow int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.bad++
	if h.bad >= alarmAfter && !h.alarmed && (h.last.IsZero() || now.Sub(h.last) >= alarmEvery) {
		h.alarmed, h.last = true, now
	}
	return h.bad
}

// stale notes a request signed at a time too far from now. It tells whether that looks like a wrong clock: different
// requests, all as far off. One that is sent again and again gets older each time, and is one.
func (h *health) stale(now time.Time, age time.Duration) (skewed bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	signed := now.Add(-age)
	switch {
	case signed.Equal(h.signed):
	case (age - h.off).Abs() > skewSpread:
		h.skewed = 1
	default:
		h.skewed++
	}
	h.signed, h.off = signed, age
	return h.skewed >= skewAfter
}

// verified ends a row of failures. It tells whether there had been an alarm.
func (h *health) verified() (recovered bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	recovered = h.alarmed
	h.bad, h.alarmed, h.skewed = 0, false, 0
	return recovered
}

// alarm is what an operator should know, "" for nothing.
func (h *health) alarm() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case !h.alarmed:
		return ""
	case h.skewed >= skewAfter:
		return fmt.Sprintf("webhook requests are signed at a time %s off ours: is this machine's clock right?", h.off.Round(time.Second))
	}
	return fmt.Sprintf("%d or more webhook requests in a row did not verify: has the secret been changed at the ESP?", alarmAfter)
}
