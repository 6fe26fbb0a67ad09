package twin

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Event is one event of a webhook.
type Event struct {
	ID         string            `json:"id"`
	Time       time.Time         `json:"time"`
	Event      string            `json:"event"`
	MessageID  string            `json:"message_id"` // of the call
	Recipient  string            `json:"recipient"`
	RcptID     string            `json:"recipient_id,omitempty"`
	Ref        string            `json:"ref,omitempty"`
	Action     string            `json:"action,omitempty"`
	Status     string            `json:"status,omitempty"`
	Diagnostic string            `json:"diagnostic,omitempty"`
	Reason     string            `json:"reason,omitempty"`
	RemoteMTA  string            `json:"remote_mta,omitempty"`
	Tags       []string          `json:"tags,omitempty"`
	Metadata   map[string]string `json:"metadata,omitempty"`
	URL        string            `json:"url,omitempty"`
	UserAgent  string            `json:"user_agent,omitempty"`
}

// Names of the signature's headers.
const (
	TimestampHeader = "Sandbox-Timestamp" // Unix seconds
	SignatureHeader = "Sandbox-Signature" // v1=HEX, several separated by commas
)

// Sign gives the signature of a body: HMAC-SHA256 over the timestamp, a full stop and the body.
func Sign(secret string, timestamp int64, body []byte) string {
	h := hmac.New(sha256.New, []byte(secret))
	fmt.Fprintf(h, "%d.", timestamp)
	h.Write(body)
	return "v1=" + hex.EncodeToString(h.Sum(nil))
}

// attempts is how often a webhook is posted until it is answered with 2xx.
const attempts = 6

// schedule starts the life of an accepted mail: one post per event, with the delay before each.
func (s *Server) schedule(mail *Mail, m *Message) {
	for i, r := range mail.Results {
		if r.Result != "accepted" {
			continue
		}
		var evs []Event
		for n, st := range life(r.Email) {
			e := Event{
				ID: fmt.Sprintf("ev-%s-%d-%d", mail.ID, i, n), Event: st.event, MessageID: mail.ID, Recipient: r.Email, RcptID: r.ID,
				Ref: m.Ref, Action: st.action, Status: st.status, Diagnostic: st.diagnostic, Reason: st.reason, Tags: m.Tags, Metadata: m.Metadata,
			}
			if st.action != "" {
				e.RemoteMTA = "mx.sandbox.invalid"
			}
			switch st.event {
			case "clicked":
				e.URL = "https://example.com/clicked"
				fallthrough
			case "opened":
				e.UserAgent = "Sandbox/1.0"
			}
			evs = append(evs, e)
		}
		if len(evs) > 0 {
			s.later(evs, s.conf.Delay, 1)
		}
	}
}

// maxPending bounds the mails whose events are still to come; beyond it events are dropped.
const maxPending = 10_000

// later posts the first of evs after a pause, then the others.
func (s *Server) later(evs []Event, pause time.Duration, attempt int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.closed:
		return
	default:
	}
	if s.conf.WebhookURL == "" || s.conf.WebhookSecret == "" {
		return
	}
	if s.pending >= maxPending {
		if s.conf.Failed != nil {
			s.conf.Failed(errors.New("too many webhooks are waiting"))
		}
		return
	}
	s.pending++
	s.posting.Add(1)
	fired := make(chan struct{})
	t := time.AfterFunc(pause, func() { close(fired) })
	go func() {
		defer s.posting.Done()
		defer func() {
			s.mu.Lock()
			s.pending--
			s.mu.Unlock()
		}()
		select {
		case <-s.closed:
			t.Stop()
			return
		case <-fired:
		}
		if attempt == 1 {
			evs[0].Time = s.conf.Now().UTC()
		}
		if err := s.post(evs[0]); err != nil {
			if attempt < attempts {
				s.later(evs, max(s.conf.Delay, 50*time.Millisecond)<<attempt, attempt+1)
				return
			}
			if s.conf.Failed != nil {
				s.conf.Failed(err)
			}
		}
		if len(evs) > 1 {
			s.later(evs[1:], s.conf.Delay, 1)
		}
	}()
}

func (s *Server) post(e Event) error {
	body, err := json.Marshal(map[string]any{"events": []Event{e}})
	if err != nil {
		return err
	}
	s.mu.Lock()
	url, secret := s.conf.WebhookURL, s.conf.WebhookSecret
	s.mu.Unlock()
	r, err := http.NewRequest(http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	at := s.conf.Now().Unix()
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("User-Agent", "sandbox-webhook/1")
	r.Header.Set(TimestampHeader, strconv.FormatInt(at, 10))
	r.Header.Set(SignatureHeader, Sign(secret, at, body))
	resp, err := s.conf.Client.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("webhook answered with status %d", resp.StatusCode)
	}
	return nil
}
