package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"smtpbridge/envelope"
)

// Salvaged says what Salvage could read of a damaged database and what not.
type Salvaged struct {
	Damaged string          `json:"damaged"` // directory that now holds the old database
	Tables  []SalvagedTable `json:"tables"`
	Lost    []LostMail      `json:"lost"`  // mails whose own record could not be read, as far as others name them
	Held    int             `json:"held"`  // waiting mails that are held now
	Blobs   int             `json:"blobs"` // files of large bodies that no record names any more, moved to Damaged
}

// SalvagedTable is one table.
type SalvagedTable struct {
	Name    string `json:"name"`
	Rows    int    `json:"rows"`              // in the new database
	Damaged bool   `json:"damaged"`           // parts of it could not be read
	Orphans int    `json:"orphans,omitempty"` // read, but left out because what they belong to is lost
}

// LostMail is a mail of which only its recipients are known.
type LostMail struct {
	ID    string   `json:"id"`
	Rcpts []string `json:"recipients"`
}

// Complete reports whether everything was read.
func (r *Salvaged) Complete() bool {
	return !slices.ContainsFunc(r.Tables, func(t SalvagedTable) bool { return t.Damaged || t.Orphans > 0 })
}

// ErrSound says that a database is not damaged, so that there is nothing to salvage.
var ErrSound = errors.New("the database is not damaged: nothing was done")

const holdSalvaged = "salvaged from a damaged database"

// Salvage reads what can be read of a damaged SQLite database into a new one and puts that in its place; the old one is
// kept beside it. Rows are read around the damaged pages, and when even the first page is gone with the one of a new
// database. Where anything was lost all waiting mails are held: what they say of themselves may be older than what was
// sent. Recipients and jobs of theirs that are lost are made anew from the envelope. No bridge may run on the store.
// progress, which may be nil, is told the rows read.
func Salvage(ctx context.Context, o Options, progress func(table string, rows int)) (_ *Salvaged, err error) {
	if o.URL != "" {
		return nil, errors.New("store: only a SQLite store can be salvaged; PostgreSQL has its own tools")
	}
	s, err := newStore(o, nil)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	if _, err := os.Stat(filepath.Join(s.o.Dir, fileName)); err != nil {
		return nil, fmt.Errorf("salvage: %w", err)
	}
	if err := s.prepareDir(); err != nil {
		return nil, fmt.Errorf("salvage: %w", err)
	}
	v := &salvage{s: s, work: filepath.Join(s.o.Dir, "salvage"), progress: progress, report: &Salvaged{Lost: []LostMail{}}}
	if v.progress == nil {
		v.progress = func(string, int) {}
	}
	defer v.close()
	if err := v.run(ctx); err != nil {
		return nil, fmt.Errorf("salvage: %w", err)
	}
	return v.report, nil
}

// salvage is one run.
type salvage struct {
	s        *Store
	work     string // directory for the new database while it is made
	old, new *sql.DB
	progress func(string, int)
	report   *Salvaged
}

func (v *salvage) close() {
	if v.old != nil {
		_ = v.old.Close() // read only
	}
	if v.new != nil {
		_ = v.new.Close() // unfinished: it goes with the directory
	}
	_ = os.RemoveAll(v.work) // whatever stays is removed by the next run
}

func openPlain(path, query string) (*sql.DB, error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: query}).String())
	if err == nil {
		db.SetMaxOpenConns(1)
	}
	return db, err
}

func (v *salvage) run(ctx context.Context) (err error) {
	if err := os.RemoveAll(v.work); err != nil {
		return err
	}
	// The new database is made as every new one is.
	fresh, err := Open(ctx, Options{Dir: v.work, Now: v.s.o.Now, MinFree: v.s.o.MinFree})
	if err != nil {
		return err
	}
	if err := fresh.Close(); err != nil {
		return err
	}
	if v.new, err = openPlain(filepath.Join(v.work, fileName), "_synchronous=FULL&_foreign_keys=0"); err != nil {
		return err
	}
	if err := v.openOld(ctx); err != nil {
		return err
	}
	tables, err := v.tables(ctx)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if err := v.copyTable(ctx, t); err != nil {
			return fmt.Errorf("table %s: %w", t.name, err)
		}
	}
	if err := v.mend(ctx, tables); err != nil {
		return err
	}
	var answer string
	if err := v.new.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&answer); err != nil || answer != "ok" {
		return errors.Join(fmt.Errorf("the new database is not sound (%s)", answer), err)
	}
	return v.swap(ctx)
}

// openOld opens the damaged database, without ever writing to it.
func (v *salvage) openOld(ctx context.Context) (err error) {
	path := filepath.Join(v.s.o.Dir, fileName)
	if v.old, err = openPlain(path, "mode=ro"); err != nil {
		return err
	}
	var answer string
	err = v.old.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&answer)
	if err == nil && answer == "ok" {
		return ErrSound
	}
	var n int
	if v.old.QueryRowContext(ctx, "SELECT count(*) FROM mails WHERE rowid < 0").Scan(&n) == nil {
		return nil
	}
	// The schema cannot be read. With incremental vacuum the tables' first pages are always at the file's start, in the order
	// of their creation, so the first page of a new database describes this one too.
	if err := v.old.Close(); err != nil {
		return err
	}
	graft := filepath.Join(v.work, "old.db")
	for _, ending := range []string{"", "-wal"} {
		if err := copyDurable(path+ending, graft+ending); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := graftPage(filepath.Join(v.work, fileName), graft); err != nil {
		return err
	}
	v.old, err = openPlain(graft, "mode=ro")
	return err
}

// graftPage writes the first page of one database over that of another.
func graftPage(from, to string) error {
	const pageSize = 4096
	page := make([]byte, pageSize)
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	if _, err := io.ReadFull(src, page); err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer dst.Close()
	fi, err := dst.Stat()
	if err != nil {
		return err
	}
	// SQLite's file format, 1.3: size in pages, then an empty list of free pages.
	n := uint32(fi.Size() / pageSize)
	for i, b := range []byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n), 0, 0, 0, 0, 0, 0, 0, 0} {
		page[28+i] = b
	}
	copy(page[92:96], page[24:28]) // the size is valid for this change counter
	_, err = dst.WriteAt(page, 0)
	return err
}

// salvageTable is a table of the new database.
type salvageTable struct {
	name      string
	columns   []string
	withRowid bool
}

// tables lists what is to be copied, parents before what refers to them.
func (v *salvage) tables(ctx context.Context) (tables []*salvageTable, err error) {
	err = query(ctx, v.new, "SELECT l.name, l.wr FROM pragma_table_list AS l JOIN sqlite_master AS m ON m.name = l.name WHERE l.schema = 'main' AND m.type = 'table' ORDER BY m.rowid", nil, func(scan func(...any) error) error {
		var t salvageTable
		var wr int
		if err := scan(&t.name, &wr); err != nil {
			return err
		}
		t.withRowid = wr == 0
		if t.name != "schema_version" && !strings.HasPrefix(t.name, "sqlite_") {
			tables = append(tables, &t)
		}
		return nil
	})
	for _, t := range tables {
		if err != nil {
			break
		}
		t.columns, err = v.columns(ctx, t.name)
	}
	return tables, err
}

// columns are those that the old table, which may be of an earlier version, has too.
func (v *salvage) columns(ctx context.Context, table string) ([]string, error) {
	names := func(db *sql.DB) (out []string, err error) {
		err = query(ctx, db, "SELECT name FROM pragma_table_info(?)", []any{table}, func(scan func(...any) error) error {
			var n string
			err := scan(&n)
			out = append(out, n)
			return err
		})
		return out, err
	}
	want, err := names(v.new)
	if err != nil {
		return nil, err
	}
	have, err := names(v.old)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(want, func(n string) bool { return !slices.Contains(have, n) }), nil
}

// query calls row for each row; the error of the database comes as it is.
func query(ctx context.Context, db interface {
	QueryContext(context.Context, string, ...any) (*sql.Rows, error)
}, text string, args []any, row func(scan func(...any) error) error,
) error {
	rows, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows.Scan); err != nil {
			return err
		}
	}
	return rows.Err()
}

// errKeep is an error of the new database, to be told from those of the damaged one.
type errKeep struct{ error }

func (v *salvage) copyTable(ctx context.Context, t *salvageTable) (err error) {
	result := SalvagedTable{Name: t.name}
	if len(t.columns) == 0 { // a table the old version did not have
		v.report.Tables = append(v.report.Tables, result)
		return nil
	}
	tx, err := v.new.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	list := `"` + strings.Join(t.columns, `", "`) + `"`
	insert, err := tx.PrepareContext(ctx, fmt.Sprintf(`INSERT OR IGNORE INTO "%s" (%s) VALUES (%s)`, t.name, list, strings.TrimSuffix(strings.Repeat("?,", len(t.columns)), ",")))
	if err != nil {
		return err
	}
	defer insert.Close()
	// read copies the rows of a condition and returns the last rowid that came before an error of the damaged file.
	read := func(where string, args ...any) (last int64, n int, bad error) {
		key := "0"
		if t.withRowid {
			key = "rowid"
		}
		values, dest := make([]any, len(t.columns)), make([]any, len(t.columns)+1)
		dest[0] = &last
		for i := range values {
			dest[i+1] = &values[i]
		}
		bad = query(ctx, v.old, fmt.Sprintf(`SELECT %s, %s FROM "%s" NOT INDEXED %s`, key, list, t.name, where), args, func(scan func(...any) error) error {
			if err := scan(dest...); err != nil {
				return err
			}
			res, err := insert.ExecContext(ctx, values...)
			if err != nil {
				return errKeep{err}
			}
			added, err := res.RowsAffected()
			if err != nil {
				return errKeep{err}
			}
			n++
			if result.Rows += int(added); result.Rows%1000 == 0 {
				v.progress(t.name, result.Rows)
			}
			return nil
		})
		return last, n, bad
	}
	if err := v.readAll(ctx, tx, t, &result, read); err != nil {
		return err
	}
	v.progress(t.name, result.Rows)
	v.report.Tables = append(v.report.Tables, result)
	return tx.Commit()
}

func ignoreDone(err error) error {
	if errors.Is(err, sql.ErrTxDone) {
		return nil
	}
	return err
}

// reader copies rows; see copyTable.
type reader func(where string, args ...any) (last int64, n int, bad error)

// probes bounds how often a damaged table is asked for what lies between its damaged pages: so often, and once more
// for every tenth row that came.
const probes = 500

func (v *salvage) readAll(ctx context.Context, tx *sql.Tx, t *salvageTable, result *SalvagedTable, read reader) error {
	stop := func(err error) error { // what ends the run, other than damage
		var keep errKeep
		if errors.As(err, &keep) {
			return keep.error
		}
		return ctx.Err()
	}
	if !t.withRowid {
		_, _, bad := read("")
		if bad == nil {
			return nil
		}
		if err := stop(bad); err != nil {
			return err
		}
		result.Damaged = true
		var ids []string
		err := query(ctx, tx, "SELECT id FROM mails", nil, func(scan func(...any) error) error {
			var id string
			err := scan(&id)
			ids = append(ids, id)
			return err
		})
		for _, id := range ids {
			if err != nil {
				break
			}
			_, _, bad := read("WHERE mail_id = ?", id)
			err = stop(bad)
		}
		return err
	}
	type gap struct{ lo, hi int64 }
	// upwards and downwards read a range from one end and return the part that is left, if any.
	upwards := func(g gap) (gap, error) {
		last, n, bad := read("WHERE rowid BETWEEN ? AND ? ORDER BY rowid", g.lo, g.hi)
		switch {
		case bad == nil:
			return gap{1, 0}, nil
		case n > 0:
			g.lo = last + 1
		}
		return g, stop(bad)
	}
	downwards := func(g gap) (gap, error) {
		last, n, bad := read("WHERE rowid BETWEEN ? AND ? ORDER BY rowid DESC", g.lo, g.hi)
		switch {
		case bad == nil:
			return gap{1, 0}, nil
		case n > 0:
			g.hi = last - 1
		}
		return g, stop(bad)
	}
	left, err := upwards(gap{math.MinInt64, math.MaxInt64})
	if err != nil || left.lo > left.hi {
		return err
	}
	result.Damaged = true
	if left, err = downwards(left); err != nil {
		return err
	}
	if left.lo == math.MinInt64 {
		left.lo = 0
	}
	if left.hi == math.MaxInt64 { // the end of the table is damaged
		left.hi = left.lo + int64(result.Rows) + 1000
	}
	// Halve what is left, breadth first, so that the probes are spent evenly.
	queue := []gap{left}
	for n := 0; n < probes+result.Rows/10 && len(queue) > 0; n++ {
		g := queue[0]
		queue = queue[1:]
		if g.lo > g.hi {
			continue
		}
		mid := g.lo + (g.hi-g.lo)/2
		upper, err := upwards(gap{mid, g.hi})
		if err != nil {
			return err
		}
		lower, err := downwards(gap{g.lo, mid - 1})
		if err != nil {
			return err
		}
		if upper.lo == mid { // nothing came: the row itself, or the way to it, is damaged
			upper.lo++
		}
		queue = append(queue, lower, upper)
	}
	return nil
}

// mend makes the new database consistent: what belongs to a lost record goes, and mails that wait get back what they need.
func (v *salvage) mend(ctx context.Context, tables []*salvageTable) (err error) {
	tx, err := v.new.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreDone(tx.Rollback())) }()
	err = query(ctx, tx, "SELECT mail_id, group_concat(address, char(10)) FROM recipients WHERE mail_id NOT IN (SELECT id FROM mails) GROUP BY mail_id", nil, func(scan func(...any) error) error {
		var m LostMail
		var rcpts string
		err := scan(&m.ID, &rcpts)
		m.Rcpts = strings.Split(rcpts, "\n")
		v.report.Lost = append(v.report.Lost, m)
		return err
	})
	if err != nil {
		return err
	}
	for i, t := range tables {
		type ref struct{ column, parent, key string }
		var refs []ref
		err := query(ctx, tx, `SELECT "from", "table", "to" FROM pragma_foreign_key_list(?)`, []any{t.name}, func(scan func(...any) error) error {
			var r ref
			err := scan(&r.column, &r.parent, &r.key)
			refs = append(refs, r)
			return err
		})
		if err != nil {
			return err
		}
		for _, r := range refs {
			n, err := execute(ctx, tx, fmt.Sprintf(`DELETE FROM "%s" WHERE "%s" NOT IN (SELECT "%s" FROM "%s")`, t.name, r.column, r.key, r.parent))
			if err != nil {
				return err
			}
			v.report.Tables[i].Orphans += int(n)
			v.report.Tables[i].Rows -= int(n)
		}
	}
	if !v.report.Complete() {
		if err := v.holdWaiting(ctx, tx); err != nil {
			return err
		}
		// Numbers that were given out before, and that cursors may stand at, are not given out again.
		if _, err := execute(ctx, tx, "UPDATE sqlite_sequence SET seq = seq + 1000000"); err != nil {
			return err
		}
	}
	return tx.Commit()
}

func execute(ctx context.Context, tx *sql.Tx, text string, args ...any) (int64, error) {
	res, err := tx.ExecContext(ctx, text, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// holdWaiting holds the mails that wait and gives each of their recipients a record and a job. The job is of no
// configuration's generation, so that it is planned before it is worked on.
func (v *salvage) holdWaiting(ctx context.Context, tx *sql.Tx) error {
	envelopes := map[string]envelope.Envelope{}
	err := query(ctx, tx, "SELECT id, envelope FROM mails WHERE finished = 0 AND state IN ('queued', 'held')", nil, func(scan func(...any) error) error {
		var id, text string
		if err := scan(&id, &text); err != nil {
			return err
		}
		var e envelope.Envelope
		if json.Unmarshal([]byte(text), &e) == nil { // else its checksum fails too, and it is never sent
			envelopes[id] = e
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, q := range []string{
		"UPDATE jobs SET held = 1",
		"UPDATE mails SET state = 'held', hold_reason = '" + holdSalvaged + "' WHERE finished = 0 AND state = 'queued'",
	} {
		if _, err := execute(ctx, tx, q); err != nil {
			return err
		}
	}
	now := v.s.now()
	for id, e := range envelopes {
		for n, r := range e.Rcpts {
			_, err := execute(ctx, tx, "INSERT OR IGNORE INTO recipients (mail_id, n, address, address_key, state, detail, updated) VALUES (?, ?, ?, ?, 'queued', 'its record was lost: it may have received the mail', ?)",
				id, n, r.Addr, envelope.Fold(r.Addr), us(now))
			if err != nil {
				return err
			}
		}
		const open = "mail_id = ? AND state IN ('queued', 'in_flight') AND job_id NOT IN (SELECT id FROM jobs)"
		var lost int
		if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM recipients WHERE "+open, id).Scan(&lost); err != nil {
			return err
		}
		if lost == 0 {
			continue
		}
		res, err := tx.ExecContext(ctx, "INSERT INTO jobs (mail_id, route, account, accounts, next_at, created, expires, generation, held) VALUES (?, '', '', '[\"\"]', ?, ?, ?, 0, 1)",
			id, us(now), us(e.Received), us(now.AddDate(0, 0, 5)))
		if err != nil {
			return err
		}
		job, err := res.LastInsertId()
		if err != nil {
			return err
		}
		if _, err := execute(ctx, tx, "UPDATE recipients SET state = 'queued', job_id = ? WHERE "+open, job, id); err != nil {
			return err
		}
	}
	return tx.QueryRowContext(ctx, "SELECT count(*) FROM mails WHERE state = 'held'").Scan(&v.report.Held)
}

// swap puts the new database into the place of the old one, which moves to a directory of its own. The old log of
// changes has to leave before the new database comes: SQLite would apply it.
func (v *salvage) swap(ctx context.Context) error {
	if _, err := v.new.ExecContext(ctx, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return err
	}
	named, err := v.namedBlobs(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(v.new.Close(), v.old.Close()); err != nil {
		return err
	}
	v.new, v.old = nil, nil
	dir := filepath.Join(v.s.o.Dir, "damaged-"+v.s.now().UTC().Format("20060102T150405"))
	if err := v.s.mkdir(dir); err != nil {
		return err
	}
	v.report.Damaged = dir
	path := filepath.Join(v.s.o.Dir, fileName)
	if err := os.Link(path, filepath.Join(dir, fileName)); err != nil {
		return err
	}
	for _, ending := range []string{"-wal", "-shm"} {
		if err := os.Rename(path+ending, filepath.Join(dir, fileName+ending)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := errors.Join(v.s.syncDir(dir), v.s.syncDir(v.s.o.Dir)); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(v.work, fileName), path); err != nil {
		return err
	}
	if err := v.moveBlobs(dir, named); err != nil {
		return err
	}
	return v.s.syncDir(v.s.o.Dir)
}

func (v *salvage) namedBlobs(ctx context.Context) (map[string]bool, error) {
	named := map[string]bool{}
	err := query(ctx, v.new, "SELECT blob FROM mails WHERE blob <> '' UNION SELECT blob FROM dead_blobs", nil, func(scan func(...any) error) error {
		var b string
		err := scan(&b)
		named[b] = true
		return err
	})
	return named, err
}

// moveBlobs saves the files of lost mails, which the next start would sweep away.
func (v *salvage) moveBlobs(dir string, named map[string]bool) error {
	blobs, err := v.s.listBlobs()
	if err != nil {
		return err
	}
	for _, b := range blobs {
		if named[b] {
			continue
		}
		to := filepath.Join(dir, blobsName, b)
		if err := v.s.mkdir(filepath.Dir(to)); err != nil {
			return err
		}
		if err := os.Rename(v.s.blobPath(b), to); err != nil {
			return err
		}
		v.report.Blobs++
	}
	return nil
}
