package store

import (
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

// pgNow is the database's clock in microseconds: leases must not depend on the clocks of the nodes.
const pgNow = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`

// channel carries wake-ups between the nodes.
const channel = "smtpbridge"

// migrationLock keeps two nodes that start at once from migrating together.
const migrationLock = 0x736d747062726467

func (s *Store) openPostgres(ctx context.Context) error {
	cfg, err := pgx.ParseConfig(s.o.URL)
	if err != nil {
		return errors.New("the postgres url cannot be parsed") // its text may hold a password
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	cfg.RuntimeParams["application_name"] = "smtpbridge"
	cfg.RuntimeParams["synchronous_commit"] = "on"
	cfg.RuntimeParams["timezone"] = "UTC"
	if s.o.ReadOnly {
		cfg.RuntimeParams["default_transaction_read_only"] = "on"
	}
	noticeCuts(cfg)
	s.db = stdlib.OpenDB(*cfg)
	s.db.SetMaxOpenConns(32)
	s.db.SetMaxIdleConns(16)
	s.readTx = &sql.TxOptions{ReadOnly: true, Isolation: sql.LevelRepeatableRead}
	s.wdb = stdlib.OpenDB(*cfg) // a sign of life must not wait for work
	s.wdb.SetMaxOpenConns(3)
	close(s.writerGone)
	if s.o.ReadOnly {
		return s.checkVersion(ctx, s.db)
	}
	if err := s.nameNode(); err != nil {
		return err
	}
	lock, err := s.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if _, err := lock.ExecContext(ctx, "SELECT pg_advisory_lock($1)", int64(migrationLock)); err != nil {
		return err
	}
	err = s.migrate(ctx, s.db)
	if _, uerr := lock.ExecContext(context.WithoutCancel(ctx), "SELECT pg_advisory_unlock($1)", int64(migrationLock)); err == nil {
		err = uerr
	}
	if err != nil {
		return err
	}
	back, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stopBack = stop
	s.background.Add(2)
	go func() {
		defer s.background.Done()
		s.listen(back, cfg)
	}()
	go func() {
		defer s.background.Done()
		s.renew(back)
	}()
	return nil
}

// cutAfter is how long either side waits for the other's TCP to answer, stallAfter how long the server lets a transaction stand
// still: a node that was cut off must not keep what it has locked.
const (
	cutAfter   = 15 * time.Second
	stallAfter = 30 * time.Second
)

// noticeCuts makes both ends of a connection notice that the network between them is cut, which nothing else tells.
func noticeCuts(cfg *pgx.ConnConfig) {
	ms := func(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }
	for name, value := range map[string]string{
		"tcp_user_timeout": ms(cutAfter), "tcp_keepalives_idle": "5", "tcp_keepalives_interval": "5", "tcp_keepalives_count": "2",
		"idle_in_transaction_session_timeout": ms(stallAfter),
	} {
		if _, given := cfg.RuntimeParams[name]; !given {
			cfg.RuntimeParams[name] = value
		}
	}
	d := &net.Dialer{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 5 * time.Second, Count: 2},
		Control: func(network, _ string, c syscall.RawConn) error {
			if !strings.HasPrefix(network, "tcp") {
				return nil
			}
			var err error
			cerr := c.Control(func(fd uintptr) {
				const tcpUserTimeout = 18 // TCP_USER_TIMEOUT, tcp(7)
				err = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, int(cutAfter.Milliseconds()))
			})
			return errors.Join(cerr, err)
		},
	}
	cfg.DialFunc = d.DialContext
}

// notice says in a notification whom a commit wakes.
func notice(t *tx) string {
	var b strings.Builder
	if t.queue {
		b.WriteByte('q')
	}
	if t.events {
		b.WriteByte('e')
	}
	if t.accounts {
		b.WriteByte('a')
	}
	if t.nodes {
		b.WriteByte('n')
	}
	return b.String()
}

// listen wakes the subscribers when another node committed, and once a second besides: a
// notification may be lost with its connection, and becoming due sends none.
func (s *Store) listen(ctx context.Context, cfg *pgx.ConnConfig) {
	var conn *pgx.Conn
	defer func() {
		if conn != nil {
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			_ = conn.Close(end)
			cancel()
		}
	}()
	wake := time.Now().Add(time.Second) // however many notifications come
	for ctx.Err() == nil {
		second, cancel := context.WithDeadline(ctx, wake)
		if conn == nil {
			c, err := pgx.ConnectConfig(second, cfg)
			if err == nil {
				if _, err = c.Exec(second, "LISTEN "+channel); err != nil {
					_ = c.Close(second)
				} else {
					conn = c
				}
			}
			if err != nil && ctx.Err() == nil {
				s.log(slog.LevelWarn, logListen, "err", err)
				<-second.Done()
			}
		}
		if conn != nil {
			n, err := conn.WaitForNotification(second)
			switch {
			case err == nil:
				if strings.Contains(n.Payload, "q") {
					s.wake(TopicQueue)
				}
				if strings.Contains(n.Payload, "e") {
					s.wake(TopicEvents)
				}
				if strings.Contains(n.Payload, "a") {
					s.wake(TopicAccounts)
				}
				if strings.Contains(n.Payload, "n") {
					select {
					case s.member.kick <- struct{}{}:
					default:
					}
				}
				cancel()
				continue
			case second.Err() == nil || conn.IsClosed():
				end, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
				_ = conn.Close(end)
				stop()
				conn = nil
			}
		}
		cancel()
		s.wake(TopicQueue)
		s.wake(TopicEvents)
		wake = time.Now().Add(time.Second)
	}
}

// renew lengthens the leases this node holds. One it could not renew in time may be claimed by
// another node: Start and Settle then find its token gone. As long as nobody has, it is still ours.
func (s *Store) renew(ctx context.Context) {
	tick := time.NewTicker(s.o.Lease / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var ids, tokens []int64
		s.leases.mu.Lock()
		for id, l := range s.leases.byJob {
			ids, tokens = append(ids, id), append(tokens, l.token)
		}
		s.leases.mu.Unlock()
		if len(ids) == 0 {
			continue
		}
		err := s.vital(ctx, func(ctx context.Context, t *tx) error {
			// A row that is locked is being worked on, and its turn comes at the next tick.
			_, err := t.exec(ctx, `UPDATE jobs SET lease_until = `+pgNow+` + ? WHERE id IN (SELECT jobs.id FROM jobs
				JOIN unnest(?::bigint[], ?::bigint[]) AS mine (id, token) ON jobs.id = mine.id AND jobs.lease = mine.token
				FOR UPDATE OF jobs SKIP LOCKED)`, s.o.Lease.Microseconds(), ids, tokens)
			return err
		})
		if err != nil && ctx.Err() == nil {
			s.log(slog.LevelWarn, logLease, "err", err)
		}
	}
}

// retryable reports whether a transaction certainly did not commit and may be tried again at once.
func retryable(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == "40001" || pg.Code == "40P01"
	}
	// A pooled connection the server closed while it was idle: nothing was sent.
	return pgconn.SafeToRetry(err) && !errors.Is(err, context.DeadlineExceeded) && !isDial(err)
}

func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}
