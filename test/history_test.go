package test

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/smtp"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"smtpbridge/event"
)

// Webhooks that come before the send call has returned, twice, out of order, and again after a kill -9 make one right history.
func TestOneHistory(t *testing.T) {
	t.Parallel()
	const secret = "history-signing-secret"
	sentAt := time.Now().UTC().Truncate(time.Second)
	var ref string // our tag, from the call
	activity := func(id, kind string, after time.Duration, more string) []byte {
		at := sentAt.Add(after).Format("2006-01-02T15:04:05.000000Z")
		return fmt.Appendf(nil, `{"type":"activity.%s","created_at":%q,"data":{"object":"activity","id":%q,"created_at":%q,"message_id":"msg-1","email_id":"em-1","recipient":"r@example.net","tags":[%q],"meta":{%s}}}`,
			kind, at, id, at, ref, more)
	}
	port, hookPort := freePort(t), freePort(t)
	hook := fmt.Sprintf("http://127.0.0.1:%d/webhook/ms", hookPort)
	post := func(bodies ...[]byte) {
		for _, b := range bodies {
			if got := postInbound(t, hook, secret, b); got != 200 {
				t.Errorf("a webhook was answered %d", got)
			}
		}
	}
	calls := 0
	esp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var m struct{ Tags []string }
		b, err := io.ReadAll(r.Body)
		if err != nil || json.Unmarshal(b, &m) != nil || len(m.Tags) != 1 {
			t.Errorf("%s %s: %s, %v", r.Method, r.URL, b, err)
			return
		}
		calls++
		ref = m.Tags[0]
		// The news is faster than the answer, and comes twice.
		post(activity("a3", "delivered", 3*time.Second, ""), activity("a3", "delivered", 3*time.Second, ""), activity("a1", "sent", time.Second, ""))
		w.Header().Set("X-Message-Id", "msg-1")
		w.WriteHeader(http.StatusAccepted)
	}))
	t.Cleanup(esp.Close)
	tmp := shortDir(t)
	br := newBridge(t, tmp, fmt.Sprintf(`hostname = "bridge.example.com"
data_dir = %q
[[listener]]
name = "plain"
address = "127.0.0.1:%d"
[[account]]
name = "ms"
provider = "mailersend"
api_key = "0123456789abcdef"
base_url = %q
webhook_secret = %q
[[route]]
senders = ["example.com"]
accounts = ["ms"]
[webhook]
address = "127.0.0.1:%d"
[events]
file = "events.jsonl"
`, tmp, port, esp.URL+"/v1/", secret, hookPort))
	br.start()
	if err := smtp.SendMail(fmt.Sprintf("127.0.0.1:%d", port), nil, "app@example.com", []string{"r@example.net"},
		[]byte("From: app@example.com\r\nTo: r@example.net\r\nSubject: hi\r\n\r\nhello\r\n")); err != nil {
		t.Fatal(err)
	}
	count := func(evs []event.Event) string {
		var out []string
		for _, e := range evs {
			out = append(out, strings.TrimSuffix(string(e.Kind)+":"+strings.TrimPrefix(e.ProviderEvent, "activity."), ":"))
		}
		sort.Strings(out)
		return strings.Join(out, " ")
	}
	first := "delivered:delivered sent sent:sent"
	br.waitEvents("what came before the answer", func(evs []event.Event) bool { return count(evs) == first })
	// Late, early and doubled; the deferral came before the delivery, the bounce after it.
	deferred, opened := activity("a2", "deferred", 2*time.Second, `"reason":"451 4.7.1 greylisted"`), activity("a5", "opened", 5*time.Second, "")
	bounced := activity("a6", "hard_bounced", time.Hour, `"bounce_code":"550","bounce_reason":"550 5.1.1 user unknown"`)
	post(opened, bounced, deferred, opened, deferred)
	all := "bounced:hard_bounced deferred:deferred delivered:delivered opened:opened sent sent:sent"
	br.waitEvents("what came late", func(evs []event.Event) bool { return count(evs) == all })
	br.kill()
	br.start()
	post(bounced, opened, deferred, activity("a3", "delivered", 3*time.Second, ""), activity("a1", "sent", time.Second, ""))
	post(activity("a7", "clicked", 7*time.Second, `"url":"https://example.com/"`)) // so that there is something to wait for
	evs := br.waitEvents("what came after the restart", func(evs []event.Event) bool {
		return slices.ContainsFunc(evs, func(e event.Event) bool { return e.Kind == event.Clicked })
	})
	if got := count(evs); got != strings.Replace(all, "deferred:", "clicked:clicked deferred:", 1) || calls != 1 {
		t.Errorf("got %s after %d calls", got, calls)
	}
	ids := map[string]bool{}
	for _, e := range evs {
		if ids[e.ID] || e.QueueID != evs[0].QueueID || e.QueueID == "" || e.Recipient != "r@example.net" || e.Revision != 0 {
			t.Errorf("got %+v", e)
		}
		ids[e.ID] = true
	}
	var detail struct {
		Recipients []struct {
			State, Last, Status string
		} `json:"recipient_states"`
	}
	out := br.run("queue", "show", "--json", evs[0].QueueID)
	if err := json.Unmarshal([]byte(out), &detail); err != nil || len(detail.Recipients) != 1 || detail.Recipients[0].State != "sent" || detail.Recipients[0].Last != "bounced" || detail.Recipients[0].Status != "5.1.1" {
		t.Errorf("%v: %s", err, out)
	}
	br.stop()
}
