package webhookd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// Server serves a handler on listeners it is given (opened by the caller, held by systemd, or
// wrapped in TLS). Idle and slow connections are bounded in number and time.
type Server struct {
	http     *http.Server
	maxConns int
}

// NewServer makes a Server. maxConns bounds the connections of each listener, further ones wait in
// the kernel's queue; 0 = 2048.
func NewServer(h http.Handler, maxConns int, log *slog.Logger) *Server {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	def(&maxConns, 2048)
	return &Server{maxConns: maxConns, http: &http.Server{
		Handler: h,
		// No ReadTimeout: its deadline would outlast the body and end the request's context while the event
		// is being stored. The handler sets one for the body.
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       75 * time.Second, // longer than the usual 60 s of a proxy, which then closes first
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
}

// Serve serves l until Shutdown and closes it. It returns nil after a Shutdown.
func (s *Server) Serve(l net.Listener) error {
	err := s.http.Serve(netutil.LimitListener(l, s.maxConns))
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// Shutdown takes no more connections and lets the requests under way be answered until ctx ends;
// then it closes what is left. An ESP that got no answer sends again.
func (s *Server) Shutdown(ctx context.Context) error {
	err := s.http.Shutdown(ctx)
	if err != nil {
		s.http.Close()
	}
	return err
}

// drainTime is what requests under way get to be answered when serving ends.
const drainTime = 10 * time.Second

// Serve serves l with a Server of its own until ctx ends, then drains it and closes l.
func (h *Handler) Serve(ctx context.Context, l net.Listener) error {
	s := NewServer(h, 0, h.state.Load().Log)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	s.Shutdown(drain) // what it cuts off is sent again by the ESP
	return <-done
}
