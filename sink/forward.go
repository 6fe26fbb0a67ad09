package sink

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"smtpbridge/event"
	"smtpbridge/internal/safehttp"
	"smtpbridge/internal/secret"
)

// ForwardConfig describes one application that takes events over HTTP.
type ForwardConfig struct {
	URL string
	// Secrets sign each request; several during a rotation. "whsec_" and base64, as Standard Webhooks
	// writes them, or any text, whose bytes are the key then.
	Secrets []secret.String
	// AllowLocal permits plain http and targets on loopback and private addresses.
	AllowLocal bool
	Client     *http.Client  // nil = one of safehttp
	Lanes      int           // requests at once, default 8
	Timeout    time.Duration // of one request, default 30 s
	Log        *slog.Logger
	Now        func() time.Time
}

// Forward posts each event, as it stands in the event log, to an application, signed after
// https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md.
//
// Events of one mail are sent in their order, those of different mails at the same time. An event
// counts as taken after any 2xx. Everything else is tried again until it is taken, and holds up the
// events behind it; only an event that the application itself keeps calling wrong (400, 413, 415, 422)
// is left out after five attempts, with an error in the log. An application that is down thus gets
// everything later, some of it perhaps twice, with the same webhook-id.
type Forward struct {
	ForwardConfig
	name    string
	keys    [][]byte
	done    map[fact]bool // of the present batch, already taken
	refused map[fact]int  // refusals by event
}

// refusals is how often an application may call an event wrong before it is left out.
const refusals = 5

// maxRetryAfter bounds what the application may ask for.
const maxRetryAfter = 15 * time.Minute

// NewForward makes a sink. The error tells what is wrong with the settings.
func NewForward(c ForwardConfig) (*Forward, error) {
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Host == "":
		return nil, errors.New("url is not a complete URL")
	case u.User != nil:
		return nil, errors.New("url must not hold a user or password")
	case u.Scheme != "https" && !(u.Scheme == "http" && c.AllowLocal):
		return nil, errors.New("url must begin with https:// (http:// needs allow_local)")
	}
	f := &Forward{ForwardConfig: c, done: map[fact]bool{}, refused: map[fact]int{}}
	for _, s := range c.Secrets {
		key := []byte(s.Reveal())
		if b64, ok := strings.CutPrefix(s.Reveal(), "whsec_"); ok {
			if key, err = base64.StdEncoding.DecodeString(b64); err != nil {
				return nil, errors.New("secret begins with whsec_ but no base64 follows")
			}
		}
		if len(key) < 16 {
			return nil, errors.New("secret is empty or too short: at least 16 bytes, better 32")
		}
		f.keys = append(f.keys, key)
	}
	if len(f.keys) == 0 {
		return nil, errors.New("secret is missing: the application could not tell our events from forged ones")
	}
	// The URL may hold a token: the name shows the host, and a digest tells URLs of one host apart.
	sum := sha256.Sum256([]byte(c.URL))
	f.name = "forward:" + u.Host + ":" + hex.EncodeToString(sum[:6])
	if f.Client == nil {
		if f.Client, err = safehttp.New(safehttp.Config{Public: !c.AllowLocal, Concurrency: c.Lanes}); err != nil {
			return nil, err
		}
	}
	if f.Lanes <= 0 {
		f.Lanes = 8
	}
	if f.Timeout <= 0 {
		f.Timeout = 30 * time.Second
	}
	if f.Log == nil {
		f.Log = slog.New(slog.DiscardHandler)
	}
	if f.Now == nil {
		f.Now = time.Now
	}
	return f, nil
}

// Name is the key of its cursor.
func (f *Forward) Name() string { return f.name }

// Open returns the stored cursor, which is the store's own.
func (f *Forward) Open(_ context.Context, cursor string) (string, error) { return cursor, nil }

// Inherit goes on with the batch that the other one left.
func (f *Forward) Inherit(old Sink) {
	if o, ok := old.(*Forward); ok {
		f.done, f.refused = o.done, o.refused
	}
}

// Close drops idle connections.
func (f *Forward) Close() error {
	f.Client.CloseIdleConnections()
	return nil
}

// Write posts the events that were not taken before. The error is the first one met.
func (f *Forward) Write(ctx context.Context, evs []event.Event, next string) (string, error) {
	lanes := make([][]event.Event, f.Lanes)
	for _, e := range evs {
		if !f.done[fact{e.ID, e.Revision}] {
			n := lane(e, f.Lanes)
			lanes[n] = append(lanes[n], e)
		}
	}
	var (
		wg    sync.WaitGroup
		mu    sync.Mutex
		first error
	)
	for _, list := range lanes {
		if len(list) == 0 {
			continue
		}
		wg.Go(func() {
			for _, e := range list {
				err := f.post(ctx, e)
				k := fact{e.ID, e.Revision}
				mu.Lock()
				var refused *refusedError
				if errors.As(err, &refused) {
					if f.refused[k]++; f.refused[k] >= refusals {
						f.Log.Error("forward.refused", "sink", f.name, "event", e.ID, "kind", e.Kind, "status", refused.status)
						err = nil
					}
				}
				if err == nil {
					f.done[k] = true
				} else if first == nil {
					first = err
				}
				stop := first != nil
				mu.Unlock()
				if stop {
					return // the target has trouble: one failure per lane is enough
				}
			}
		})
	}
	wg.Wait()
	if first != nil {
		return "", first
	}
	clear(f.done)
	clear(f.refused)
	return next, nil
}

// lane keeps the events of one mail in order.
func lane(e event.Event, n int) int {
	key := e.QueueID
	if key == "" {
		key = e.Account + e.ProviderMessageID
	}
	h := fnv.New32a()
	io.WriteString(h, key) // never fails
	return int(h.Sum32() % uint32(n))
}

// statusError is an answer other than 2xx.
type statusError struct {
	status int
	after  time.Duration
}

func (e *statusError) Error() string {
	return fmt.Sprintf("the application answered HTTP %d", e.status)
}

// RetryAfter is what the application asked for.
func (e *statusError) RetryAfter() time.Duration { return e.after }

// refusedError is an answer that is about this event.
type refusedError struct{ statusError }

func (f *Forward) post(ctx context.Context, e event.Event) error {
	body, err := e.AppendJSON(nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, f.Timeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL, bytes.NewReader(body))
	if err != nil {
		return errors.New("url cannot be used") // without the URL, which may hold a token
	}
	id := e.ID
	if e.Revision > 0 {
		id += "." + strconv.Itoa(e.Revision)
	}
	ts := strconv.FormatInt(f.Now().Unix(), 10)
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("webhook-id", id)
	r.Header.Set("webhook-timestamp", ts)
	r.Header.Set("webhook-signature", f.sign(id, ts, body))
	resp, err := f.Client.Do(r)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err // url.Error quotes the URL
		}
		if errors.Is(err, safehttp.ErrBlocked) {
			return fmt.Errorf("webhook.ssrf_blocked: %w", err)
		}
		return fmt.Errorf("forward.error: %w", err)
	}
	defer resp.Body.Close()
	io.CopyN(io.Discard, resp.Body, 64<<10) // so that the connection can be used again; more is not worth reading
	if resp.StatusCode/100 == 2 {
		return nil
	}
	se := statusError{resp.StatusCode, f.retryAfter(resp.Header.Get("Retry-After"))}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return &refusedError{se}
	}
	return &se
}

// sign makes the header's value: one signature per key.
func (f *Forward) sign(id, ts string, body []byte) string {
	sigs := make([]string, len(f.keys))
	for i, k := range f.keys {
		m := hmac.New(sha256.New, k)
		fmt.Fprintf(m, "%s.%s.", id, ts)
		m.Write(body)
		sigs[i] = "v1," + base64.StdEncoding.EncodeToString(m.Sum(nil))
	}
	return strings.Join(sigs, " ")
}

// retryAfter reads seconds or a date (RFC 9110 10.2.3).
func (f *Forward) retryAfter(v string) time.Duration {
	if n, err := strconv.Atoi(v); err == nil {
		return min(max(0, time.Duration(min(n, 1<<20))*time.Second), maxRetryAfter)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(0, t.Sub(f.Now())), maxRetryAfter)
	}
	return 0
}
