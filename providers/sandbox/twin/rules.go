package twin

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// The local part of a recipient, up to a plus sign, decides:
//
//	bounce           accepted, then bounced 5.1.1
//	softbounce       accepted, deferred 4.2.2, then bounced 5.2.2
//	defer            accepted, deferred 4.4.1, then delivered
//	complaint        delivered, then complained
//	open, click      delivered, then opened (and clicked)
//	unsubscribe      delivered, then unsubscribed
//	autoreply        delivered, then autoresponded
//	silent           accepted, and never an event
//	reject           refused at submission: invalid; blocked: refused, on the suppression list
//	421 450 451 452  this recipient is not taken now; 550 551 552 553 554: refused for good
//	400 401 402 403 404 408 409 413 422 429 500 502 503 504   the whole call is answered with that HTTP status
//	temperror        as 503; permerror: as 400
//	split            a call with more recipients fails for all (422 bad_recipient_in_call); alone it is refused
//	timeout          no answer; the mail is not taken
//	ambiguous        the mail is taken, but the connection breaks before the answer
//	garbage          200 with HTML; the mail is not taken
//	slow             taken after two seconds
//	anything else    delivered
func name(rcpt string) string {
	local := rcpt
	if i := strings.LastIndexByte(rcpt, '@'); i >= 0 {
		local = rcpt[:i]
	}
	local, _, _ = strings.Cut(local, "+")
	return strings.ToLower(local)
}

// verdict is the answer for one recipient of a call that is taken.
func verdict(rcpt string) Result {
	switch n := name(rcpt); n {
	case "reject":
		return Result{Result: "rejected", Status: "5.1.1", Reason: "invalid", Message: "no such user"}
	case "blocked":
		return Result{Result: "rejected", Status: "5.7.1", Reason: "blocked", Message: "on the suppression list"}
	case "421", "450", "451", "452":
		return Result{Result: "deferred", Status: "4.3.0", Message: n + " 4.3.0 try again later"}
	case "550", "551", "552", "553", "554":
		return Result{Result: "rejected", Status: "5.1.0", Reason: "other", Message: n + " 5.1.0 refused"}
	}
	return Result{Result: "accepted"}
}

// httpStatus lists the local parts that answer the whole call.
var httpStatus = map[string]string{
	"400": "bad_request", "401": "bad_key", "402": "payment_required", "403": "sender_not_verified", "404": "not_found", "408": "timeout",
	"409": "conflict", "413": "too_large", "422": "invalid", "429": "rate_limited", "500": "internal", "502": "bad_gateway",
	"503": "unavailable", "504": "gateway_timeout",
}

// wholeCall answers the call because of rcpt, or reports false.
func (s *Server) wholeCall(w http.ResponseWriter, r *http.Request, m *Message, rcpt string) bool {
	n := name(rcpt)
	switch n {
	case "temperror":
		n = "503"
	case "permerror":
		n = "400"
	case "split":
		if len(m.Recipients) > 1 {
			fail(w, http.StatusUnprocessableEntity, "bad_recipient_in_call", "one of the recipients is refused")
		} else {
			fail(w, http.StatusUnprocessableEntity, "invalid", "the recipient is refused")
		}
		return true
	case "timeout":
		select {
		case <-r.Context().Done():
		case <-s.closed:
		}
		panic(http.ErrAbortHandler)
	case "garbage":
		w.Header().Set("Content-Type", "text/html")
		_, _ = w.Write([]byte("<html><body>It works!</body></html>"))
		return true
	case "slow":
		select {
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		case <-s.closed:
			panic(http.ErrAbortHandler)
		case <-time.After(2 * time.Second):
		}
		return false
	}
	code, ok := httpStatus[n]
	if !ok {
		return false
	}
	status, _ := strconv.Atoi(n)
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "5")
	}
	fail(w, status, code, "asked for by the recipient's name")
	return true
}

// step is one event in the life of a mail.
type step struct {
	event, action, status, diagnostic, reason string
}

var delivered = step{event: "delivered", action: "delivered", status: "2.0.0", diagnostic: "250 2.0.0 ok"}

// life lists the events that follow an accepted recipient.
func life(rcpt string) []step {
	switch name(rcpt) {
	case "bounce":
		return []step{{"bounced", "failed", "5.1.1", "550 5.1.1 no such user here", "bounced"}}
	case "softbounce":
		return []step{
			{"deferred", "delayed", "4.2.2", "452 4.2.2 mailbox full", ""},
			{"bounced", "failed", "5.2.2", "552 5.2.2 mailbox full", "bounced"},
		}
	case "defer":
		return []step{{"deferred", "delayed", "4.4.1", "421 4.4.1 connection timed out", ""}, delivered}
	case "complaint":
		return []step{delivered, {event: "complained"}}
	case "open":
		return []step{delivered, {event: "opened"}}
	case "click":
		return []step{delivered, {event: "opened"}, {event: "clicked"}}
	case "unsubscribe":
		return []step{delivered, {event: "unsubscribed"}}
	case "autoreply":
		return []step{delivered, {event: "autoresponded"}}
	case "silent":
		return nil
	}
	return []step{delivered}
}
