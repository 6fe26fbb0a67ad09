package webhookd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/store"
)

// Names of what is logged of received mail.
const (
	logInbound     = "inbound.taken"
	logInboundLeft = "inbound.left" // at the ESP, since it could not be fetched
)

// Inbox is where received mail goes.
type Inbox struct {
	// Take makes a mail durable; one that was taken before is taken again in silence. raw is the message. doubt is not
	// empty when nobody can tell any more whether the post was genuine: then the mail waits for an operator.
	Take func(ctx context.Context, m Received, raw io.Reader) error
	// Known tells whether a mail was taken, by the id of its inbound event.
	Known func(ctx context.Context, id string) (bool, error)
	// Posts keeps what is to be fetched, and to be deleted, at the ESP. Without it such posts are answered 503.
	Posts Posts
	// Spool makes a file without a name for a large post; default: one in the folder for temporary files.
	Spool func() (*os.File, error)
	// Client fetches from ESPs. It must refuse inner addresses; see safehttp.
	Client *http.Client
}

// Received is a received mail, without the message.
type Received struct {
	Account  string
	Provider string
	ID       string // of its inbound event
	// ProviderID is the vendor's id, Time when the ESP received the mail, Received when we did.
	ProviderID     string
	From           string
	Rcpts          []string
	Time, Received time.Time
	Doubt          string
}

// Posts is the store's side of fetched mail; *store.Store is one.
type Posts interface {
	InboundPost(ctx context.Context, id string) (store.InboundPost, error)
	SaveInbound(ctx context.Context, p store.InboundPost) error
	DropInbound(ctx context.Context, id string) error
	ClaimInbound(ctx context.Context, n int, lease time.Duration) ([]store.InboundPost, error)
}

// errPost marks errors of the post itself, as opposed to those of the store.
type errPost struct{ error }

func (e errPost) Unwrap() error { return e.error }

// postReader tells errors of reading the post from those of storing it.
type postReader struct{ r io.Reader }

func (p postReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = errPost{err}
	}
	return n, err
}

// inboundTime is how long a post may be worked on: verified, fetched, stored.
const inboundTime = 5 * time.Minute

// maxInboundTime bounds the upload of a post.
const maxInboundTime = 10 * time.Minute

// postInbound takes one post with received mail.
func (h *Handler) postInbound(s *state, w http.ResponseWriter, r *http.Request, a *account) answer {
	// A mapped file whose disk fails raises a fault: it ends this request (with 503), not the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(maxInboundTime + inboundTime)) // not every test's writer has deadlines
	body, done, ans, ok := h.spoolBody(s, w, r, a)
	if !ok {
		return ans
	}
	defer done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), inboundTime)
	defer cancel()
	r = r.WithContext(ctx)
	r.Body = http.NoBody
	var mails []providers.Inbound
	err := a.inbound.VerifyInbound(r, body)
	if err == nil {
		mails, err = a.inbound.ParseInbound(r, body)
	}
	if ans, ok := h.judge(s, r, a, err, len(body), !a.Info.Webhook.InboundCallback); !ok {
		return ans
	}
	for i := range mails {
		if err := h.take(ctx, s, a, &mails[i]); err != nil {
			return h.notTaken(s, r, a, err, len(body))
		}
	}
	return plain(http.StatusOK)
}

func (h *Handler) take(ctx context.Context, s *state, a *account, in *providers.Inbound) error {
	if in.ValidateURL != "" {
		return h.fetch(ctx, s, a, in)
	}
	m := a.received(in, s.Now())
	if err := s.Inbox.Take(ctx, m, postReader{in.Open()}); err != nil {
		return err
	}
	s.Log.Info(logInbound, "account", a.Name, "event", m.ID, "recipients", len(m.Rcpts))
	return nil
}

func (a *account) received(in *providers.Inbound, now time.Time) Received {
	now = now.UTC().Truncate(time.Microsecond)
	m := Received{
		Account: a.Name, Provider: a.Info.Name, ID: event.FactID(a.Name, kindInbound, in.ID), ProviderID: in.ID,
		From: in.From, Rcpts: in.Rcpts, Time: in.Time.UTC(), Received: now,
	}
	if in.Time.IsZero() {
		m.Time = now
	}
	return m
}

// notTaken answers a post whose mail is not stored: unless the post is at fault the ESP is asked to send it again.
func (h *Handler) notTaken(s *state, r *http.Request, a *account, err error, size int) answer {
	var post errPost
	switch {
	case errors.Is(err, providers.ErrSignature):
		return h.refused(s, r, a, err)
	case errors.As(err, &post):
		h.seldom(s, a, slog.LevelWarn, logMalformed, "err", clean(err, a), "size", size, "peer", s.peer(r))
		return plain(http.StatusBadRequest)
	}
	h.seldom(s, a, slog.LevelError, logStoreFailed, "kind", kindInbound, "err", clean(err, a))
	return plain(http.StatusServiceUnavailable).with("Retry-After", "60")
}

// spoolBody reads the exact bytes of an inbound post: a small one into memory, a large one into a file, which is mapped.
// The post may take its time as long as something comes.
func (h *Handler) spoolBody(s *state, w http.ResponseWriter, r *http.Request, a *account) (body []byte, done func(), ans answer, ok bool) {
	tooLarge := func() (answer, bool) {
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "body", "max", s.MaxInboundBody, "size", r.ContentLength)
		return plain(http.StatusRequestEntityTooLarge), false
	}
	if r.ContentLength > s.MaxInboundBody {
		ans, ok = tooLarge()
		return nil, nil, ans, ok
	}
	rc := http.NewResponseController(w)
	// The server watches the idle connection from here on; an old deadline would end the request's context.
	defer rc.SetReadDeadline(time.Time{}) // not every test's writer has deadlines
	src := &pacedReader{r: http.MaxBytesReader(w, r.Body, s.MaxInboundBody), rc: rc, each: s.BodyTimeout, end: time.Now().Add(maxInboundTime)}
	buf := newBuffer(64 << 10)
	_, err := io.CopyN(buf, src, defaultBody)
	if errors.Is(err, io.EOF) {
		return buf.Bytes(), func() {}, answer{}, true
	}
	var f *os.File
	if err == nil {
		if f, err = s.Inbox.spool(); err == nil {
			defer f.Close() // the mapping stays
			if _, err = f.Write(buf.Bytes()); err == nil {
				buf = nil
				_, err = io.Copy(f, src)
			}
		}
	}
	if err == nil {
		if body, err = mapFile(f); err == nil {
			return body, func() { _ = syscall.Munmap(body) }, answer{}, true // fails for what is not mapped alone
		}
	}
	var limit *http.MaxBytesError
	switch {
	case errors.As(err, &limit):
		ans, ok = tooLarge()
	case errors.Is(err, os.ErrDeadlineExceeded):
		h.seldom(s, a, slog.LevelWarn, logLimit, "limit", "time for the body", "max", s.BodyTimeout, "peer", s.peer(r))
		ans = plain(http.StatusRequestTimeout)
	case src.err != nil:
		ans = plain(http.StatusBadRequest)
	default:
		h.seldom(s, a, slog.LevelError, logStoreFailed, "kind", kindInbound, "err", clean(err, a))
		ans = plain(http.StatusServiceUnavailable).with("Retry-After", "60")
	}
	return nil, nil, ans, false
}

// pacedReader gives each read its own time.
type pacedReader struct {
	r    io.Reader
	rc   *http.ResponseController
	each time.Duration
	end  time.Time
	err  error // of reading, but for the end
}

func (p *pacedReader) Read(b []byte) (int, error) {
	at := time.Now().Add(p.each)
	if at.After(p.end) {
		at = p.end
	}
	p.rc.SetReadDeadline(at) // not every test's writer has deadlines
	n, err := p.r.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		p.err = err
	}
	return n, err
}

func (i Inbox) spool() (*os.File, error) {
	if i.Spool != nil {
		return i.Spool()
	}
	f, err := os.CreateTemp("", "smtpbridge-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

// mapFile makes the content of a file readable as memory, without taking any.
func mapFile(f *os.File) ([]byte, error) {
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return syscall.Mmap(int(f.Fd()), 0, int(fi.Size()), syscall.PROT_READ, syscall.MAP_SHARED)
}
