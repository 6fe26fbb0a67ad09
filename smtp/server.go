package smtp

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"smtpbridge/internal/throttle"
)

// Server is the set of listeners and their sessions.
type Server struct {
	ctx    context.Context // of Commit; done when a shutdown runs out of time
	cancel context.CancelFunc

	throttle  throttle.Throttle
	sem       chan struct{} // password checks
	authDelay time.Duration
	sids      atomic.Uint64

	reload sync.Mutex // one Reload at a time

	mu      sync.Mutex
	gen     *generation
	ports   map[string]*port
	gates   map[*gate]struct{}
	serving bool
	closing bool
	wg      sync.WaitGroup // accept loops and sessions
}

// generation is one configuration; a session keeps the one it began under.
type generation struct {
	cfg       *Config
	listeners map[string]*Listener
	users     *users
}

// port is the socket side of a listener, which outlives a Reload.
type port struct {
	name, address string
	socks         []net.Listener
	open          int
	byPeer        map[string]int
	limitLog      seldom
	acceptLog     seldom
}

func newGeneration(c *Config, sem chan struct{}) (*generation, error) {
	if err := c.normalise(); err != nil {
		return nil, err
	}
	u, err := newUsers(c.Users, sem)
	if err != nil {
		return nil, err
	}
	g := &generation{cfg: c, users: u, listeners: map[string]*Listener{}}
	for i := range c.Listeners {
		g.listeners[c.Listeners[i].Name] = &c.Listeners[i]
	}
	return g, nil
}

// New checks the configuration; it opens nothing.
func New(c Config) (*Server, error) {
	s := &Server{
		sem: make(chan struct{}, authConcurrency), authDelay: authDelay,
		ports: map[string]*port{}, gates: map[*gate]struct{}{},
	}
	gen, err := newGeneration(&c, s.sem)
	if err != nil {
		return nil, err
	}
	s.gen = gen
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Listen opens all sockets, or none.
func (s *Server) Listen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	opened, err := s.openMissing(s.gen)
	if err != nil {
		return err
	}
	for _, p := range opened {
		s.ports[p.name] = p
	}
	return nil
}

// ListenError is a listener that could not be opened.
type ListenError struct {
	Listener string
	Err      error
}

func (e *ListenError) Error() string { return "listener " + e.Listener + ": " + e.Err.Error() }
func (e *ListenError) Unwrap() error { return e.Err }

// openMissing opens what gen names and s does not have yet.
func (s *Server) openMissing(gen *generation) ([]*port, error) {
	var opened []*port
	for i := range gen.cfg.Listeners {
		l := &gen.cfg.Listeners[i]
		if p := s.ports[l.Name]; p != nil && p.address == l.Address {
			continue
		}
		p, err := openPort(gen.cfg, l)
		if err != nil {
			for _, p := range opened {
				p.close()
			}
			return nil, &ListenError{l.Name, err}
		}
		for _, sock := range p.socks {
			gen.cfg.Log.Info(logListening, "listener", l.Name, "address", sock.Addr().String())
		}
		opened = append(opened, p)
	}
	return opened, nil
}

func openPort(c *Config, l *Listener) (*port, error) {
	p := &port{name: l.Name, address: l.Address, byPeer: map[string]int{}}
	if name, ok := strings.CutPrefix(l.Address, "systemd:"); ok {
		p.socks = c.Activated[name]
		if len(p.socks) == 0 {
			return nil, fmt.Errorf("systemd passed no socket named %q (FileDescriptorName= of the .socket unit)", name)
		}
		return p, nil
	}
	network, address := "tcp", l.Address
	path, unix := strings.CutPrefix(l.Address, "unix:")
	if unix {
		network, address = "unix", path
		removeStale(path)
	}
	sock, err := c.Listen(network, address)
	if err != nil {
		return nil, err
	}
	if unix && l.SocketMode != 0 {
		if err := os.Chmod(path, l.SocketMode); err != nil {
			_ = sock.Close()
			return nil, err
		}
	}
	p.socks = []net.Listener{sock}
	return p, nil
}

// removeStale removes a socket that a dead process left behind. One that answers, and
// anything that is no socket, stays, and listening on it fails.
func removeStale(path string) {
	if fi, err := os.Lstat(path); err != nil || fi.Mode()&fs.ModeSocket == 0 {
		return
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return
	}
	_ = os.Remove(path)
}

func (p *port) close() {
	for _, sock := range p.socks {
		_ = sock.Close()
	}
}

// Addr is where a listener listens, nil before Listen or for an unknown name.
func (s *Server) Addr(name string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.ports[name]; p != nil {
		return p.socks[0].Addr()
	}
	return nil
}

// Serve takes connections until ctx is done or Shutdown is called, and returns when all
// sessions have ended. When ctx is done, sessions in a message are cut: call Shutdown first to
// let them finish.
func (s *Server) Serve(ctx context.Context) error {
	s.mu.Lock()
	if s.serving || s.closing {
		s.mu.Unlock()
		return errors.New("smtp: Serve was called before, or after Shutdown")
	}
	s.serving = true
	for _, p := range s.ports {
		s.acceptAll(p)
	}
	s.wg.Add(1) // so that Serve waits for Shutdown or ctx even without a listener
	s.mu.Unlock()
	stop := context.AfterFunc(ctx, func() {
		done, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(done)
	})
	defer stop()
	s.wg.Wait()
	return nil
}

func (s *Server) acceptAll(p *port) {
	for _, sock := range p.socks {
		s.wg.Add(1)
		go func() {
			defer s.wg.Done()
			s.accept(p, sock)
		}()
	}
}

// accept never ends but by a closed socket: a full descriptor table passes.
func (s *Server) accept(p *port, sock net.Listener) {
	wait := 5 * time.Millisecond
	for {
		c, err := sock.Accept()
		if err == nil {
			wait = 5 * time.Millisecond
			s.admit(p, c)
			continue
		}
		s.mu.Lock()
		over, log := s.closing || s.ports[p.name] != p, s.gen.cfg.Log
		s.mu.Unlock()
		if over {
			return
		}
		if skipped, ok := p.acceptLog.allow(time.Now()); ok {
			log.Error(logAcceptError, "listener", p.name, "err", clip(err.Error()), "skipped", skipped)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-s.ctx.Done():
			t.Stop()
			return
		}
		wait = min(2*wait, time.Second)
	}
}

// admit starts a session, or refuses it by the limits.
func (s *Server) admit(p *port, c net.Conn) {
	who := peerOf(c)
	s.mu.Lock()
	gen := s.gen
	l := gen.listeners[p.name]
	code, reason := "", ""
	switch {
	case s.closing || l == nil:
		code = "421 4.3.2 Service shutting down"
	case p.open >= l.MaxConnections:
		code, reason = "421 4.3.2 Too many connections, try again later", "total"
	case p.byPeer[who.key] >= l.MaxConnectionsPerIP && who.addr.IsValid():
		code, reason = "421 4.7.0 Too many connections from your address, try again later", "address"
	}
	if code != "" {
		s.mu.Unlock()
		if reason != "" {
			if skipped, ok := p.limitLog.allow(time.Now()); ok {
				gen.cfg.Log.Warn(logConnLimit, "listener", p.name, "peer", who.String(), "limit", reason, "skipped", skipped)
			}
		}
		if l == nil || l.TLS != TLSImplicit {
			_ = c.SetWriteDeadline(time.Now().Add(time.Second)) // a new connection has room for a line
			_, _ = c.Write([]byte(code + "\r\n"))
		}
		_ = c.Close()
		return
	}
	p.open++
	p.byPeer[who.key]++
	g := newGate(s, gen, l, c, strconv.FormatUint(s.sids.Add(1), 36))
	s.gates[g] = struct{}{}
	s.wg.Add(1)
	s.sessions(gen, p)
	s.mu.Unlock()
	go s.run(p, g)
}

// sessions reports the number of open ones; s.mu is held.
func (s *Server) sessions(gen *generation, p *port) {
	if f := gen.cfg.Metrics.Sessions; f != nil {
		f(p.name, p.open)
	}
}

func (s *Server) run(p *port, g *gate) {
	defer s.wg.Done()
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.gates, g)
		p.open--
		if p.byPeer[g.peer.key]--; p.byPeer[g.peer.key] == 0 {
			delete(p.byPeer, g.peer.key)
		}
		s.sessions(g.gen, p)
	}()
	defer func() {
		if v := recover(); v != nil {
			g.log.Error(logPanic, "err", clip(fmt.Sprint(v)), "stack", string(debug.Stack()))
		}
	}()
	g.serve()
}

func (s *Server) begin(g *gate) (Transaction, error) { return g.gen.cfg.Intake.Begin(s.ctx) }

// cutGrace is for the last replies after a shutdown ran out of time.
const cutGrace = 2 * time.Second

// Shutdown stops accepting, answers idle sessions with 421, lets those in a message finish
// until ctx is done, and cuts the rest with 421.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	serving := s.serving
	log := s.gen.cfg.Log
	if first {
		for _, p := range s.ports {
			p.close()
		}
		if serving {
			s.wg.Done() // Serve's own
		}
	}
	total := len(s.gates)
	for g := range s.gates {
		g.drain()
	}
	s.mu.Unlock()

	done := make(chan struct{})
	go func() {
		s.wg.Wait()
		close(done)
	}()
	cut := 0
	select {
	case <-done:
	case <-ctx.Done():
		s.mu.Lock()
		for g := range s.gates {
			if g.cutOff() {
				cut++
			}
		}
		s.mu.Unlock()
		s.cancel()
		t := time.NewTimer(cutGrace)
		defer t.Stop()
		select {
		case <-done:
		case <-t.C:
			s.mu.Lock()
			for g := range s.gates {
				g.kill()
			}
			s.mu.Unlock()
			<-done
		}
	}
	s.cancel()
	if first {
		log.Info(logShutdown, "drained", total-cut, "cut", cut)
	}
	if cut > 0 {
		return ctx.Err()
	}
	return nil
}

// Reload puts a new configuration in force for new sessions; running ones end under the old.
// Listeners that are new or have moved are opened, those that are gone are closed. On error the
// old configuration stays in force.
func (s *Server) Reload(c Config) error {
	s.reload.Lock()
	defer s.reload.Unlock()
	gen, err := newGeneration(&c, s.sem)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return errors.New("smtp: shutting down")
	}
	opened, err := s.openMissing(gen)
	if err != nil {
		return err
	}
	var old []*port
	for name, p := range s.ports {
		if l := gen.listeners[name]; l == nil || l.Address != p.address {
			old = append(old, p)
			delete(s.ports, name)
		}
	}
	for _, p := range opened {
		s.ports[p.name] = p
		if s.serving {
			s.acceptAll(p)
		}
	}
	s.gen = gen
	for _, p := range old {
		p.close()
	}
	gen.cfg.Log.Debug(logReloaded, "listeners", len(gen.listeners), "users", len(gen.users.byName))
	return nil
}
