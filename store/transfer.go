package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"smtpbridge/envelope"
)

// ErrMoved says that what the store held was moved to another one: a bridge started here would send it a second time.
var ErrMoved = errors.New("this store was moved")

// Names of the settings that tie the two ends of a move together.
const (
	movedTo   = "moved"      // in the source: a moved
	movedFrom = "moved_from" // in the target: the ID of the moved
)

// moved is the mark in a source.
type moved struct {
	ID string    `json:"id"`
	To string    `json:"to"` // without a password
	At time.Time `json:"at"`
}

// Transferred says what Transfer moved.
type Transferred struct {
	Tables  []TransferredTable `json:"tables"`
	Large   int                `json:"large_bodies"` // that were files
	Damaged []string           `json:"damaged"`      // mails whose body does not fit its checksum: they will be held when it is their turn
	Before  bool               `json:"before"`       // everything had been moved before, only the mark was missing
}

// TransferredTable is one table. Digest is over all values, whatever the order of rows; it was compared with what the target gives out.
type TransferredTable struct {
	Name   string `json:"name"`
	Rows   int    `json:"rows"`
	Digest string `json:"digest"`
}

// TransferOptions are those of Transfer.
type TransferOptions struct {
	Dir string // data directory of the SQLite store
	URL string // of the empty PostgreSQL database
	// Cursor gives the name and value of a follower's cursor in the target. node is the name this data directory has among nodes, place
	// turns a place in the source's outbox into that in the target's. nil = all stay as they are.
	Cursor   func(name, value, node string, place func(string) string) (newName, newValue string)
	Progress func(table string, rows, total int) // may be nil
	Now      func() time.Time
}

// Transfer moves everything from a SQLite store to an empty PostgreSQL database, in one transaction there, in bounded memory. What arrived is
// read again and compared before it is committed. No bridge may run on either. The source is marked in the moment before the
// commit: no bridge starts on it any more (ErrMoved). A Transfer that was cut off is run again; should only its last step be
// missing, nothing is moved twice.
func Transfer(ctx context.Context, o TransferOptions) (_ *Transferred, err error) {
	if o.Progress == nil {
		o.Progress = func(string, int, int) {}
	}
	if _, err := os.Stat(filepath.Join(o.Dir, fileName)); err != nil {
		return nil, fmt.Errorf("move: %w", err)
	}
	src, err := newStore(Options{Dir: o.Dir, Now: o.Now, MinFree: -1}, nil)
	if err != nil {
		return nil, err
	}
	src.moving = true
	defer func() { err = errors.Join(err, src.Close()) }()
	if err := src.start(ctx); err != nil {
		return nil, fmt.Errorf("move from %s: %w", o.Dir, mapError(err))
	}
	if err := src.nameNode(); err != nil {
		return nil, fmt.Errorf("move from %s: %w", o.Dir, err)
	}
	spare, err := os.MkdirTemp("", "smtpbridge-move-*") // the target as a store needs a directory for a moment
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(spare)
	dst, err := Open(ctx, Options{Dir: spare, URL: o.URL, MinFree: -1})
	if err != nil {
		return nil, fmt.Errorf("move to the new store: %w", err)
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	v := &transfer{o: o, src: src, report: &Transferred{Damaged: []string{}}}
	if err := v.run(ctx, dst); err != nil {
		return nil, fmt.Errorf("move: %w", mapError(err))
	}
	return v.report, nil
}

// transfer is one run.
type transfer struct {
	o      TransferOptions
	src    *Store
	tx     pgx.Tx
	xid    int64
	report *Transferred
}

func (v *transfer) run(ctx context.Context, dst *Store) error {
	conn, err := dst.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(dc any) error {
		c, ok := dc.(*stdlib.Conn)
		if !ok {
			return errors.New("the driver is not pgx")
		}
		return v.move(ctx, c.Conn())
	})
}

func (v *transfer) move(ctx context.Context, c *pgx.Conn) (err error) {
	if v.tx, err = c.Begin(ctx); err != nil {
		return err
	}
	defer func() { _ = v.tx.Rollback(context.WithoutCancel(ctx)) }() // after a commit it does nothing
	// Nobody else begins to move into it, or to work with it, while it is filled.
	if _, err := v.tx.Exec(ctx, "LOCK TABLE mails, settings, nodes IN EXCLUSIVE MODE"); err != nil {
		return err
	}
	mark, err := v.mark(ctx)
	if err != nil {
		return err
	}
	if v.report.Before, err = v.arrived(ctx, mark); err != nil || v.report.Before {
		return err
	}
	tables, err := v.tables(ctx)
	if err != nil {
		return err
	}
	if err := v.wantEmpty(ctx, tables); err != nil {
		return err
	}
	if err := v.tx.QueryRow(ctx, "SELECT pg_current_xact_id()::text::bigint").Scan(&v.xid); err != nil {
		return err
	}
	for _, t := range tables {
		if err := v.copy(ctx, t); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	if err := v.largeBodies(ctx); err != nil {
		return fmt.Errorf("large bodies: %w", err)
	}
	for _, q := range []string{
		"SELECT setval(pg_get_serial_sequence('jobs', 'id'), greatest((SELECT max(id) FROM jobs), 1))",
		"SELECT setval(pg_get_serial_sequence('events', 'seq'), greatest((SELECT max(seq) FROM events), 1))",
	} {
		if _, err := v.tx.Exec(ctx, q); err != nil {
			return err
		}
	}
	if _, err := v.tx.Exec(ctx, "INSERT INTO settings (name, value) VALUES ($1, $2)", movedFrom, mark.ID); err != nil {
		return err
	}
	if err := v.setMark(ctx, &mark); err != nil {
		return err
	}
	if err := v.tx.Commit(ctx); err != nil {
		// It may have been committed, if only the answer was lost: the mark stays, and the next run sees.
		return fmt.Errorf("commit: %w (the old store stays marked as moved: run the command again)", err)
	}
	return nil
}

// mark reads the source's mark, or makes a new one.
func (v *transfer) mark(ctx context.Context) (moved, error) {
	m, err := v.src.movedMark(ctx)
	if err == nil && m.ID == "" {
		m.ID = envelope.NewID(v.src.now())
	}
	m.To = publicURL(v.o.URL)
	return m, err
}

func (v *transfer) setMark(ctx context.Context, m *moved) error {
	m.At = v.src.now().UTC()
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return v.src.do(ctx, 0, func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "INSERT INTO settings (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", movedTo, string(text))
		return err
	})
}

// arrived reports whether an earlier run got everything across.
func (v *transfer) arrived(ctx context.Context, m moved) (bool, error) {
	var id string
	err := v.tx.QueryRow(ctx, "SELECT value FROM settings WHERE name = $1", movedFrom).Scan(&id)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err == nil && id != m.ID {
		err = errors.New("another store was moved into this database before: a second one cannot be")
	}
	return err == nil, err
}

// movedMark reads the mark of a store that was moved; its ID is empty when it was not.
func (s *Store) movedMark(ctx context.Context) (m moved, err error) {
	var text string
	err = s.read().get(ctx, []any{&text}, "SELECT value FROM settings WHERE name = ?", movedTo)
	if errors.Is(err, ErrNotFound) {
		return m, nil
	}
	if err == nil {
		err = json.Unmarshal([]byte(text), &m)
	}
	return m, err
}

// refuseMoved keeps a bridge from sending what was moved.
func (s *Store) refuseMoved(ctx context.Context) error {
	m, err := s.movedMark(ctx)
	if err != nil || m.ID == "" || s.moving {
		return err
	}
	return fmt.Errorf("%w to %s on %s: set [store] url to it; what is here would be sent a second time", ErrMoved, m.To, m.At.Format("2006-01-02 15:04"))
}

// publicURL is a database's URL without its password.
func publicURL(u string) string {
	p, err := url.Parse(u)
	if err != nil {
		return "PostgreSQL"
	}
	if p.User != nil {
		p.User = url.User(p.User.Username())
	}
	q := p.Query()
	q.Del("password")
	q.Del("sslpassword")
	p.RawQuery = q.Encode()
	return p.String()
}

// notMoved are tables of one store alone.
var notMoved = []string{"schema_version", "nodes", "leaders", "dead_blobs"}

// moveFirst are tables that others refer to.
var moveFirst = []string{"mails", "calls"}

type movedTable struct {
	name    string
	columns []string
	count   int
}

func (t *movedTable) selectFrom() string {
	return "SELECT " + strings.Join(t.columns, ", ") + " FROM " + t.name
}

// tables lists what is to be moved, what others refer to first.
func (v *transfer) tables(ctx context.Context) ([]*movedTable, error) {
	var out []*movedTable
	byName := map[string]*movedTable{}
	err := v.src.read().each(ctx, `SELECT m.name, c.name FROM sqlite_master m JOIN pragma_table_info(m.name) c
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite_%' ORDER BY m.name, c.cid`, nil, func(scan func(...any) error) error {
		var table, column string
		if err := scan(&table, &column); err != nil || slices.Contains(notMoved, table) {
			return err
		}
		t := byName[table]
		if t == nil {
			t = &movedTable{name: table}
			byName[table] = t
			out = append(out, t)
		}
		t.columns = append(t.columns, column)
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, t := range out {
		if err := v.src.read().get(ctx, []any{&t.count}, "SELECT count(*) FROM "+t.name); err != nil {
			return nil, err
		}
	}
	rank := func(t *movedTable) int {
		if i := slices.Index(moveFirst, t.name); i >= 0 {
			return i
		}
		return len(moveFirst)
	}
	slices.SortStableFunc(out, func(a, b *movedTable) int { return rank(a) - rank(b) })
	return out, nil
}

// wantEmpty refuses a database that is in use.
func (v *transfer) wantEmpty(ctx context.Context, tables []*movedTable) error {
	var n int
	if err := v.tx.QueryRow(ctx, "SELECT count(*) FROM nodes WHERE seen > "+pgNow+" - $1", maxGone.Microseconds()).Scan(&n); err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("%d bridges run on the new database: stop them first", n)
	}
	for _, t := range tables {
		if t.name == "settings" || t.name == "cursors" { // what a bridge that was started and stopped leaves
			if _, err := v.tx.Exec(ctx, "DELETE FROM "+t.name); err != nil {
				return err
			}
			continue
		}
		var full bool
		if err := v.tx.QueryRow(ctx, "SELECT EXISTS (SELECT 1 FROM "+t.name+")").Scan(&full); err != nil {
			return err
		}
		if full {
			return fmt.Errorf("the new database is not empty (table %s): a store is moved into an empty one", t.name)
		}
	}
	return nil
}

// copy moves a table, reads it again from the target and compares.
func (v *transfer) copy(ctx context.Context, t *movedTable) error {
	rows, err := v.src.db.QueryContext(ctx, t.selectFrom())
	if err != nil {
		return err
	}
	defer rows.Close()
	var sent digest
	n := 0
	source := pgx.CopyFromFunc(func() ([]any, error) {
		for rows.Next() {
			row, err := scanRow(rows, len(t.columns))
			if err != nil {
				return nil, err
			}
			n++
			v.o.Progress(t.name, n, t.count)
			if v.change(t, row) {
				sent.add(row)
				return row, nil
			}
		}
		return nil, rows.Err()
	})
	if _, err := v.tx.CopyFrom(ctx, pgx.Identifier{t.name}, t.columns, source); err != nil {
		return err
	}
	if n != t.count {
		return fmt.Errorf("%d rows were read, %d were counted before", n, t.count)
	}
	var got digest
	back, err := v.tx.Query(ctx, t.selectFrom())
	if err != nil {
		return err
	}
	defer back.Close()
	for back.Next() {
		row, err := back.Values()
		if err != nil {
			return err
		}
		got.add(row)
	}
	if err := back.Err(); err != nil {
		return err
	}
	if sent != got {
		return fmt.Errorf("what arrived is not what was sent: %d rows of %d", got.rows, sent.rows)
	}
	v.report.Tables = append(v.report.Tables, TransferredTable{Name: t.name, Rows: sent.rows, Digest: got.String()})
	return nil
}

// change makes of a row what it is in the target; false leaves it out.
func (v *transfer) change(t *movedTable, row []any) bool {
	at := func(column string) *any { return &row[slices.Index(t.columns, column)] }
	for i, x := range row {
		if s, ok := x.(string); ok {
			row[i] = text(s)
		}
	}
	switch t.name {
	case "mails":
		if *at("body") == bodyFile {
			*at("body"), *at("blob") = bodyRows, ""
		}
	case "jobs":
		*at("lease"), *at("lease_until") = int64(0), int64(0)
	case "settings":
		name, _ := (*at("name")).(string)
		return name != "ping" && name != movedTo && name != movedFrom
	case "cursors":
		name, _ := (*at("name")).(string)
		value, _ := (*at("value")).(string)
		if name == activityCursor {
			value = v.place(value)
		} else if v.o.Cursor != nil {
			name, value = v.o.Cursor(name, value, v.src.member.node, v.place)
		}
		*at("name"), *at("value") = name, value
	}
	return true
}

// place is a position of the source's outbox in the target's, where all events are of this one transaction.
func (v *transfer) place(cursor string) string {
	if cursor == "" {
		return ""
	}
	_, seq, err := parseCursor(cursor)
	if err != nil {
		return cursor
	}
	return postgresCursor(v.xid, seq)
}

// largeBodies moves bodies that are files, in pieces.
func (v *transfer) largeBodies(ctx context.Context) error {
	type large struct{ id, blob, sum string }
	var all []large
	err := v.src.read().each(ctx, "SELECT id, blob, sha256 FROM mails WHERE body = ?", []any{bodyFile}, func(scan func(...any) error) error {
		var l large
		err := scan(&l.id, &l.blob, &l.sum)
		all = append(all, l)
		return err
	})
	if err != nil {
		return err
	}
	for i, l := range all {
		v.o.Progress("large bodies", i+1, len(all))
		sum, err := v.largeBody(ctx, l.id, l.blob)
		if err != nil {
			return err
		}
		if sum != l.sum {
			v.report.Damaged = append(v.report.Damaged, l.id)
			continue
		}
		got := sha256.New()
		rows, err := v.tx.Query(ctx, "SELECT data FROM bodies WHERE mail_id = $1 ORDER BY n", l.id)
		if err != nil {
			return err
		}
		for rows.Next() {
			var chunk []byte
			if err := rows.Scan(&chunk); err != nil {
				rows.Close()
				return err
			}
			got.Write(chunk)
		}
		if err := rows.Err(); err != nil {
			return err
		}
		if hex.EncodeToString(got.Sum(nil)) != l.sum {
			return fmt.Errorf("the body of %s did not arrive as it was sent", l.id)
		}
		v.report.Large++
	}
	return nil
}

// largeBody moves one and gives the checksum of what was read; that of a missing file fits nothing.
func (v *transfer) largeBody(ctx context.Context, id, blob string) (string, error) {
	f, err := os.Open(v.src.blobPath(blob))
	if errors.Is(err, os.ErrNotExist) || strings.Contains(blob, "..") {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum, chunk := sha256.New(), make([]byte, postgresDialect.chunk)
	for n := 0; ; n++ {
		k, err := io.ReadFull(f, chunk)
		if k > 0 {
			sum.Write(chunk[:k])
			if _, err := v.tx.Exec(ctx, "INSERT INTO bodies (mail_id, n, data) VALUES ($1, $2, $3)", id, n, chunk[:k]); err != nil {
				return "", err
			}
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return hex.EncodeToString(sum.Sum(nil)), nil
		default:
			return "", err
		}
	}
}

func scanRow(rows *sql.Rows, n int) ([]any, error) {
	row, dest := make([]any, n), make([]any, n)
	for i := range row {
		dest[i] = &row[i]
	}
	return row, rows.Scan(dest...)
}

// digest adds up the hashes of rows, so that their order does not count.
type digest struct {
	rows int
	sum  [4]uint64
}

func (d *digest) add(row []any) {
	h := sha256.New()
	for _, x := range row {
		switch x := x.(type) {
		case nil:
			fmt.Fprint(h, "n;")
		case string:
			fmt.Fprintf(h, "t%d;%s", len(x), x)
		case []byte:
			fmt.Fprintf(h, "b%d;", len(x))
			h.Write(x)
		default:
			fmt.Fprintf(h, "i%v;", x)
		}
	}
	s := h.Sum(nil)
	for i := range d.sum {
		d.sum[i] += binary.LittleEndian.Uint64(s[8*i:])
	}
	d.rows++
}

func (d digest) String() string { return fmt.Sprintf("%016x%016x", d.sum[0], d.sum[1]) }
