package store

import (
	"database/sql"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// dialect holds what differs between the engines. All other SQL is common to both and is
// written with ? for its arguments.
type dialect struct {
	name       string
	migrations string // folder below migrations/
	goose      goose.Dialect
	shared     bool   // several processes use the database: leases are in rows, not in memory
	forUpdate  string // appended to a SELECT that precedes an UPDATE of the same row
	skipLocked string // appended to a SELECT of rows that any node may take
	numbered   bool   // arguments are $1, $2 ...
	chunk      int    // bytes of a body per row
	follow     string // columns (%s) of events after a cursor (two arguments: transaction, sequence), then the limit
	rebound    sync.Map
}

var sqliteDialect = &dialect{
	name:       "sqlite",
	migrations: "migrations/sqlite",
	goose:      goose.DialectSQLite3,
	chunk:      1 << 30,
	// One writer: the order of sequence numbers is the order of commits.
	follow: `SELECT 0, seq, %s FROM events WHERE seq > ? ORDER BY seq LIMIT ?`,
}

var postgresDialect = &dialect{
	name:       "postgres",
	migrations: "migrations/postgres",
	goose:      goose.DialectPostgres,
	shared:     true,
	forUpdate:  " FOR UPDATE",
	skipLocked: " FOR UPDATE SKIP LOCKED",
	numbered:   true,
	chunk:      256 << 10,
	// Sequence order is not commit order: only rows of transactions older than every running
	// one are read, in the order of their transaction ids.
	follow: `SELECT xid, seq, %s FROM events WHERE (xid, seq) > (?, ?)
		AND xid < pg_snapshot_xmin(pg_current_snapshot())::text::bigint ORDER BY xid, seq LIMIT ?`,
}

// bind turns ? into the dialect's argument marks. No statement of ours has a ? in a literal.
func (d *dialect) bind(query string) string {
	if !d.numbered {
		return query
	}
	if v, ok := d.rebound.Load(query); ok {
		return v.(string)
	}
	var b strings.Builder
	n := 0
	for i := 0; i < len(query); i++ {
		if query[i] != '?' {
			b.WriteByte(query[i])
			continue
		}
		n++
		b.WriteByte('$')
		b.WriteString(strconv.Itoa(n))
	}
	d.rebound.Store(query, b.String())
	return b.String()
}

// errMalformed says that the engine found its file damaged.
var errMalformed = errors.New("the database is damaged: stop the bridge and run: smtpbridge store salvage (\"A damaged database\" in docs/operations.md)")

// fault maps an error of the engine or the file system to the errors of this package. The
// engine's text stays: it names no secret, and operators search for it.
func mapError(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, sql.ErrNoRows) {
		return ErrNotFound
	}
	if errors.Is(err, ErrNoSpace) || errors.Is(err, errMalformed) {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) {
		switch lite.Code() & 0xff {
		case sqlite3.SQLITE_FULL:
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "53100": // disk_full
			return fmt.Errorf("%w: %w", ErrNoSpace, err)
		case "XX001", "XX002": // data_corrupted, index_corrupted
			return fmt.Errorf("%w: %w", errMalformed, err)
		}
	}
	return err
}

// spoilsBatch reports whether err may have ended SQLite's whole transaction and not only a
// statement of it (https://www.sqlite.org/lang_transaction.html, "Response To Errors Within A Transaction").
func spoilsBatch(err error) bool {
	if errors.Is(err, errInjectedFatal) {
		return true
	}
	var lite *sqlite.Error
	if !errors.As(err, &lite) {
		return false
	}
	switch lite.Code() & 0xff {
	case sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_BUSY,
		sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		return true
	}
	return false
}

// errInjectedFatal is what tests inject to spoil a whole transaction.
var errInjectedFatal = errors.New("injected fault that ends the transaction")
