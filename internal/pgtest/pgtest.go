// Package pgtest runs a private PostgreSQL server for tests.
package pgtest

import (
	"database/sql"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
)

// Server is a PostgreSQL server on a socket in a temporary directory.
type Server struct {
	Dir  string
	Port int // of Listen

	bin  string
	attr *syscall.SysProcAttr
	opts string
}

// Options of Start.
type Options struct {
	Listen string // address to listen on by TCP, "" = the socket alone
	Sync   bool   // fsync as in production; tests that survive no power cut need none
}

// Start starts a server as user postgres (it refuses to run as root), or skips the test where there is none.
func Start(t testing.TB, o Options) *Server {
	t.Helper()
	s := &Server{}
	for _, p := range []string{"17", "16", "15"} {
		d := "/usr/lib/postgresql/" + p + "/bin"
		if _, err := os.Stat(d + "/initdb"); err == nil {
			s.bin = d
			break
		}
	}
	if s.bin == "" {
		t.Skip("no PostgreSQL server in /usr/lib/postgresql: install the package postgresql to run these tests")
	}
	var err error
	if s.Dir, err = os.MkdirTemp("", "pg"); err != nil { // t.TempDir's path may be too long for a socket, and is closed to other users
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			os.RemoveAll(s.Dir)
			t.Skip("no user postgres to run the server as")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(s.Dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		s.attr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	t.Cleanup(func() {
		_ = s.ctl("-m", "immediate", "stop")
		os.RemoveAll(s.Dir)
	})
	if err := s.run("initdb", "-D", s.data(), "-A", "trust", "-U", "bridge", "-E", "UTF8", "--locale=C.UTF-8", "-N"); err != nil {
		t.Fatal(err)
	}
	s.opts = "-c unix_socket_directories=" + s.Dir + " -c listen_addresses=" + o.Listen
	if !o.Sync {
		s.opts += " -c fsync=off -c full_page_writes=off -c autovacuum=off"
	}
	if o.Listen != "" {
		ln, err := net.Listen("tcp", net.JoinHostPort(o.Listen, "0"))
		if err != nil {
			t.Fatal(err)
		}
		s.Port = ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		s.opts += " -p " + strconv.Itoa(s.Port)
		hba, err := os.OpenFile(filepath.Join(s.data(), "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
		if err == nil {
			_, err = hba.WriteString("host all all samenet trust\n")
			hba.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.ctl("start"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

func (s *Server) run(name string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = s.Dir, s.attr
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, out)
	}
	return nil
}

func (s *Server) ctl(args ...string) error {
	return s.run("pg_ctl", append([]string{"-D", s.data(), "-w", "-o", s.opts, "-l", filepath.Join(s.Dir, "log")}, args...)...)
}

// Stop ends the server; mode is smart, fast or immediate (no checkpoint, as after a crash).
func (s *Server) Stop(mode string) error { return s.ctl("-m", mode, "stop") }

// Again starts a stopped server.
func (s *Server) Again() error { return s.ctl("start") }

// URL is that of a database, by the socket.
func (s *Server) URL(db string) string {
	q := url.Values{"host": {s.Dir}, "user": {"bridge"}}
	if s.Port != 0 {
		q.Set("port", strconv.Itoa(s.Port))
	}
	return "postgres:///" + db + "?" + q.Encode()
}

// Create makes a database, as a copy of template unless that is "", and returns its URL.
func (s *Server) Create(t testing.TB, name, template string) string {
	t.Helper()
	db, err := sql.Open("pgx", s.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	create := "CREATE DATABASE " + name
	if template != "" {
		create += " TEMPLATE " + template
	}
	if _, err := db.ExecContext(t.Context(), create); err != nil {
		t.Fatal(err)
	}
	return s.URL(name)
}

// Log is what the server has logged.
func (s *Server) Log() string {
	b, err := os.ReadFile(filepath.Join(s.Dir, "log"))
	if err != nil {
		return err.Error()
	}
	return strings.TrimSpace(string(b))
}
