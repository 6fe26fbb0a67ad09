package smtp

import (
	"context"
	"net"
)

// Server is the set of listeners and their sessions.
type Server struct{ cfg Config }

// New checks the configuration; it opens nothing.
func New(c Config) (*Server, error) {
	if err := c.normalise(); err != nil {
		return nil, err
	}
	return &Server{cfg: c}, nil
}

// Listen opens all sockets, or none.
func (s *Server) Listen() error { panic("not built yet") }

// Addr is where a listener listens, nil before Listen or for an unknown name.
func (s *Server) Addr(name string) net.Addr { panic("not built yet") }

// Serve takes connections until ctx is done or Shutdown is called, and returns when all sessions have ended.
func (s *Server) Serve(ctx context.Context) error { panic("not built yet") }

// Shutdown stops accepting, answers idle sessions with 421, lets those in a message finish
// until ctx is done, and cuts the rest with 421.
func (s *Server) Shutdown(ctx context.Context) error { panic("not built yet") }

// Reload puts a new configuration in force for new sessions; running ones end under the old.
// On error the old one stays in force.
func (s *Server) Reload(c Config) error { panic("not built yet") }
