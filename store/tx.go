package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"
)

// Limits of one SQLite commit: enough to share an fsync between all sessions, little enough
// that nobody waits long.
const (
	batchOps   = 256
	batchBytes = 8 << 20

	// besideMails is how many other operations go into a transaction while clients are sending, which is until no mail
	// has come for a lull.
	besideMails = 24
	lull        = 100 * time.Millisecond
)

type queryer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

// tx is one transaction, or one operation inside a shared one. Rows must be drained before the
// next statement: a PostgreSQL connection does one thing at a time.
type tx struct {
	s     *Store
	q     queryer
	stmts map[string]*sql.Stmt // of the SQLite writer's connection
	conn  *sql.Conn
	write bool
	after []func() // run once the transaction is durable
	// Whom to wake once it is durable.
	queue, events, accounts bool
	nodes                   bool // a node came or went
}

func (t *tx) onCommit(f func()) { t.after = append(t.after, f) }

func (t *tx) prepared(ctx context.Context, query string) (*sql.Stmt, error) {
	if st, ok := t.stmts[query]; ok {
		return st, nil
	}
	st, err := t.conn.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	if len(t.stmts) < 500 {
		t.stmts[query] = st
	}
	return st, nil
}

// exec runs a statement and returns the number of rows it changed.
func (t *tx) exec(ctx context.Context, query string, args ...any) (int64, error) {
	res, err := t.result(ctx, query, args)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// insertID inserts a row whose id the engine makes, and returns it.
func (t *tx) insertID(ctx context.Context, query string, args ...any) (id int64, err error) {
	if t.s.d.shared {
		err = t.get(ctx, []any{&id}, query+" RETURNING id", args...)
		return id, err
	}
	res, err := t.result(ctx, query, args)
	if err != nil {
		return 0, err
	}
	return res.LastInsertId()
}

func (t *tx) result(ctx context.Context, query string, args []any) (sql.Result, error) {
	if t.write {
		if err := t.s.inject("exec"); err != nil {
			return nil, err
		}
	}
	query = t.s.d.bind(query)
	var res sql.Result
	var err error
	if t.conn != nil {
		var st *sql.Stmt
		if st, err = t.prepared(ctx, query); err == nil {
			res, err = st.ExecContext(ctx, args...)
		}
	} else {
		res, err = t.q.ExecContext(ctx, query, args...)
	}
	return res, mapError(err)
}

// each calls row for every row of the answer; row may only scan.
func (t *tx) each(ctx context.Context, query string, args []any, row func(scan func(...any) error) error) error {
	if t.write {
		if err := t.s.inject("query"); err != nil {
			return err
		}
	}
	query = t.s.d.bind(query)
	var rows *sql.Rows
	var err error
	if t.conn != nil {
		var st *sql.Stmt
		if st, err = t.prepared(ctx, query); err == nil {
			rows, err = st.QueryContext(ctx, args...)
		}
	} else if st := t.readStmt(ctx, query); st != nil {
		if sqltx, ok := t.q.(*sql.Tx); ok {
			st = sqltx.StmtContext(ctx, st)
			defer st.Close()
		}
		rows, err = st.QueryContext(ctx, args...)
	} else {
		rows, err = t.q.QueryContext(ctx, query, args...)
	}
	if err != nil {
		return mapError(err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return mapError(err)
		}
	}
	return mapError(rows.Err())
}

// get scans the first row of the answer into dest, or returns ErrNotFound.
func (t *tx) get(ctx context.Context, dest []any, query string, args ...any) error {
	found := false
	err := t.each(ctx, query, args, func(scan func(...any) error) error {
		if found {
			return nil
		}
		found = true
		return scan(dest...)
	})
	if err == nil && !found {
		return ErrNotFound
	}
	return err
}

// op is one operation on its way through the writer.
type op struct {
	ctx   context.Context
	size  int
	mail  bool // a client waits: it comes first
	run   func(ctx context.Context, t *tx) error
	raw   func(ctx context.Context, conn *sql.Conn) error // outside of any transaction, instead of run
	state atomic.Int32                                    // 0 waiting, 1 taken, 2 given up
	done  chan error
	t     *tx
	err   error
}

// do runs f in a write transaction and returns once it is durable. With SQLite f shares the
// transaction and its fsync with other callers; it runs in the writer's goroutine and must
// not call do. Once f has begun, the end of ctx no longer stops it: the answer is certain.
func (s *Store) do(ctx context.Context, size int, f func(ctx context.Context, t *tx) error) error {
	if s.o.ReadOnly {
		return errReadOnly
	}
	if s.d.shared {
		return s.doAlone(ctx, f)
	}
	return s.submit(s.ops, &op{ctx: ctx, size: size, run: f, done: make(chan error, 1)})
}

// accept is do for a mail whose client waits: it comes before other work, see writer.
func (s *Store) accept(ctx context.Context, size int, f func(ctx context.Context, t *tx) error) error {
	if s.o.ReadOnly || s.d.shared {
		return s.do(ctx, size, f)
	}
	return s.submit(s.mails, &op{ctx: ctx, size: size, run: f, mail: true, done: make(chan error, 1)})
}

var (
	errReadOnly = errors.New("the store was opened for reading only")
	errClosed   = errors.New("the store is closed")
)

func (s *Store) submit(to chan<- *op, o *op) error {
	select {
	case <-s.stopped:
		return errClosed
	default:
	}
	select {
	case to <- o:
	case <-s.stopped:
		return errClosed
	case <-o.ctx.Done():
		return o.ctx.Err()
	}
	select {
	case err := <-o.done:
		return err
	case <-s.writerGone:
		select {
		case err := <-o.done:
			return err
		default:
			return errClosed
		}
	case <-o.ctx.Done():
		if o.state.CompareAndSwap(0, 2) {
			return o.ctx.Err()
		}
		select {
		case err := <-o.done:
			return err
		case <-s.writerGone:
			select {
			case err := <-o.done:
				return err
			default:
				return errClosed
			}
		}
	}
}

// writer is SQLite's one writing goroutine: it collects what is waiting into one transaction. Mails come first, and as long as
// some come other work goes with them in small pieces: under a burst the clients wait less and the queue grows.
func (s *Store) writer(conn *sql.Conn) {
	defer close(s.writerGone)
	stmts := map[string]*sql.Stmt{}
	for {
		ops := s.collect(make([]*op, 0, 16))
		if len(ops) == 0 {
			select {
			case o := <-s.mails:
				ops = s.collect(append(ops, o))
			case o := <-s.ops:
				ops = s.collect(append(ops, o))
			case <-s.stopped:
				if ops = s.collect(ops); len(ops) == 0 { // what was handed in before the stop is still done
					for _, st := range stmts {
						st.Close()
					}
					return
				}
			}
		}
		s.batch(conn, stmts, ops)
	}
}

// collect adds what is waiting to a batch. What is to run outside of a transaction ends it.
func (s *Store) collect(ops []*op) []*op {
	size := 0
	for _, o := range ops {
		size += o.size
	}
	take := func(from <-chan *op, most int) {
		for len(ops) < most && size < batchBytes && (len(ops) == 0 || ops[len(ops)-1].raw == nil) {
			select {
			case o := <-from:
				ops = append(ops, o)
				size += o.size
			default:
				return
			}
		}
	}
	take(s.mails, batchOps)
	mails := 0
	for _, o := range ops {
		if o.mail {
			mails++
		}
	}
	switch {
	case mails > 0:
		s.mailed = time.Now()
		take(s.ops, min(batchOps, len(ops)+(mails+3)/4))
	case time.Since(s.mailed) < lull:
		take(s.ops, besideMails)
	default:
		take(s.ops, batchOps)
	}
	return ops
}

// batch runs ops in one transaction. A failed COMMIT fails all of them.
func (s *Store) batch(conn *sql.Conn, stmts map[string]*sql.Stmt, ops []*op) {
	ctx := context.Background()
	base := &tx{s: s, q: conn, conn: conn, stmts: stmts}
	var last *op
	if n := len(ops); ops[n-1].raw != nil {
		last, ops = ops[n-1], ops[:n-1]
	}
	if len(ops) > 0 {
		s.transact(ctx, base, ops)
	}
	if last != nil && last.state.CompareAndSwap(0, 1) {
		last.done <- mapError(last.raw(context.WithoutCancel(last.ctx), conn))
	}
}

func (s *Store) transact(ctx context.Context, base *tx, ops []*op) {
	var run []*op
	for _, o := range ops {
		if !o.state.CompareAndSwap(0, 1) {
			continue // given up
		}
		if err := o.ctx.Err(); err != nil {
			o.done <- err
			continue
		}
		run = append(run, o)
	}
	if len(run) == 0 {
		return
	}
	// Mostly all go well, and none needs a savepoint of its own; if one fails, all begin anew with savepoints.
	err := s.together(ctx, base, run, false)
	if errors.Is(err, errOneFailed) && len(run) > 1 {
		err = s.together(ctx, base, run, true)
	}
	s.wal.wrote(run)
	for _, o := range run {
		if o.err == nil {
			o.err = err
		}
		if o.err == nil {
			s.committed(o.t)
		}
		o.done <- o.err
	}
}

// errOneFailed says that an operation failed and took the others of its transaction with it.
var errOneFailed = errors.New("an operation of the batch failed")

// together runs operations in one transaction. Its error is that of the whole; an operation that failed
// by itself has its own.
func (s *Store) together(ctx context.Context, base *tx, ops []*op, savepoints bool) (err error) {
	if _, err := base.exec(ctx, "BEGIN IMMEDIATE"); err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() {
		if err != nil { // the engine may have rolled everything back already
			_, _ = base.exec(ctx, "ROLLBACK")
		}
	}()
	for _, o := range ops {
		o.t = &tx{s: s, q: base.q, conn: base.conn, stmts: base.stmts, write: true}
		if savepoints {
			o.err = s.step(ctx, base, o)
		} else {
			o.err = guard(context.WithoutCancel(o.ctx), o.t, o.run)
		}
		switch {
		case o.err == nil:
		case spoilsBatch(o.err):
			err, o.err = o.err, nil
			return fmt.Errorf("transaction lost: %w", err)
		case !savepoints:
			return errOneFailed
		}
	}
	if err := s.inject("commit"); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if _, err := base.exec(ctx, "COMMIT"); err != nil {
		return fmt.Errorf("commit: %w", mapError(err))
	}
	return nil
}

// step runs one operation in a savepoint.
func (s *Store) step(ctx context.Context, base *tx, o *op) (err error) {
	if _, err := base.exec(ctx, "SAVEPOINT op"); err != nil {
		return err
	}
	if err = guard(context.WithoutCancel(o.ctx), o.t, o.run); err == nil {
		_, err = base.exec(ctx, "RELEASE op")
		return err
	}
	if spoilsBatch(err) {
		return err
	}
	if _, rerr := base.exec(ctx, "ROLLBACK TO op"); rerr != nil {
		return errors.Join(err, rerr)
	}
	if _, rerr := base.exec(ctx, "RELEASE op"); rerr != nil {
		return errors.Join(err, rerr)
	}
	return err
}

// guard turns a panic into an error: it ends one operation, not the process.
func guard(ctx context.Context, t *tx, f func(ctx context.Context, t *tx) error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			t.s.log(slog.LevelError, logPanic, "panic", p, "stack", string(debug.Stack()))
			err = errors.New("internal error in the store")
		}
	}()
	return f(ctx, t)
}

// doAlone is do for PostgreSQL: one short transaction of its own. A transaction that lost
// against another one (serialization, deadlock) is tried again.
func (s *Store) doAlone(ctx context.Context, f func(ctx context.Context, t *tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return s.alone(ctx, s.db, f)
}

// alone is doAlone that ends with ctx: whether it was done is then not certain.
func (s *Store) alone(ctx context.Context, db *sql.DB, f func(ctx context.Context, t *tx) error) error {
	for try := 1; ; try++ {
		err := s.aloneOnce(ctx, db, f)
		if err == nil || try == 5 || !retryable(err) {
			return err
		}
	}
}

func (s *Store) aloneOnce(ctx context.Context, db *sql.DB, f func(ctx context.Context, t *tx) error) error {
	sqltx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin: %w", mapError(err))
	}
	t := &tx{s: s, q: sqltx, write: true}
	if err = guard(ctx, t, f); err != nil {
		_ = sqltx.Rollback()
		return err
	}
	if n := notice(t); n != "" {
		if _, err = t.exec(ctx, "SELECT pg_notify('smtpbridge', ?)", n); err != nil {
			_ = sqltx.Rollback()
			return err
		}
	}
	if err = s.inject("commit"); err != nil {
		_ = sqltx.Rollback()
		return fmt.Errorf("commit: %w", err)
	}
	if err = sqltx.Commit(); err != nil {
		return fmt.Errorf("commit: %w", mapError(err))
	}
	s.committed(t)
	return nil
}

func (s *Store) committed(t *tx) {
	for _, f := range t.after {
		f()
	}
	if t.queue {
		s.wake(TopicQueue)
	}
	if t.events {
		s.wake(TopicEvents)
	}
	if t.accounts {
		s.wake(TopicAccounts)
	}
}

// view runs f in a read transaction: everything it sees is of one moment.
func (s *Store) view(ctx context.Context, f func(ctx context.Context, t *tx) error) error {
	s.prepareMissed(ctx)
	sqltx, err := s.db.BeginTx(ctx, s.readTx)
	if err != nil {
		return mapError(err)
	}
	defer func() { _ = sqltx.Rollback() }()
	return f(ctx, &tx{s: s, q: sqltx})
}

// readStmt returns a prepared statement of SQLite's readers, nil when it is not worth one: pgx keeps its own, and filters
// make many different statements. A transaction holds a connection already and must not wait for another one: what it
// misses is prepared before the next.
func (t *tx) readStmt(ctx context.Context, query string) *sql.Stmt {
	s := t.s
	if s.d.shared || t.write {
		return nil
	}
	s.stmtsMu.Lock()
	st, ok := s.stmts[query]
	full := len(s.stmts) >= 100
	_, inTx := t.q.(*sql.Tx)
	if !ok && !full && inTx {
		s.missed[query] = true
	}
	s.stmtsMu.Unlock()
	if ok || full || inTx {
		return st
	}
	return s.prepareRead(ctx, query)
}

func (s *Store) prepareRead(ctx context.Context, query string) *sql.Stmt {
	st, err := s.db.PrepareContext(ctx, query)
	if err != nil {
		return nil // the plain way will say what is wrong
	}
	s.stmtsMu.Lock()
	defer s.stmtsMu.Unlock()
	delete(s.missed, query)
	if other, ok := s.stmts[query]; ok {
		st.Close()
		return other
	}
	s.stmts[query] = st
	return st
}

// prepareMissed prepares what earlier transactions missed.
func (s *Store) prepareMissed(ctx context.Context) {
	s.stmtsMu.Lock()
	var queries []string
	for q := range s.missed {
		queries = append(queries, q)
	}
	s.stmtsMu.Unlock()
	for _, q := range queries {
		s.prepareRead(ctx, q)
	}
}

// read is for a single statement.
func (s *Store) read() *tx { return &tx{s: s, q: s.db} }

// inject is the seam of the fault tests.
func (s *Store) inject(point string) error {
	if s.fault == nil {
		return nil
	}
	return mapError(s.fault(point))
}
