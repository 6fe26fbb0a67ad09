package store

import (
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/pressly/goose/v3"
	"modernc.org/sqlite"
)

//go:embed migrations
var migrations embed.FS

// Names in the data directory.
const (
	fileName  = "smtpbridge.db"
	lockName  = "lock"
	blobsName = "blobs"
	spoolName = "spool" // unnamed while in use: whatever has a name here was left by a crash
)

// blobGrace is how long the file of a purged body stays, so that a backup that copied the
// database first still finds it.
const blobGrace = time.Hour

// Store is the durable state. All methods may be called from any goroutine.
type Store struct {
	o      Options
	d      *dialect
	db     *sql.DB // SQLite: readers only
	wdb    *sql.DB // SQLite: the writer's connection and the checkpointer's; PostgreSQL: those of signs of life
	readTx *sql.TxOptions
	lock   *os.File

	mails, ops chan *op  // to the writer
	mailed     time.Time // the writer's: when it last had a mail
	stopped    chan struct{}
	writerGone chan struct{}
	closeOnce  sync.Once
	background sync.WaitGroup
	stopBack   context.CancelFunc

	leases leases
	fresh  freshMails
	member membership
	moving bool // Transfer reads it: the mark of a moved store does not count
	subsMu sync.Mutex
	subs   map[chan struct{}]Topic

	dirsMu sync.Mutex
	dirs   map[string]bool // blob directories whose entry is known to be durable

	stmtsMu sync.Mutex
	stmts   map[string]*sql.Stmt // of the readers; closed with db
	missed  map[string]bool      // statements that a reading transaction had to do without

	keepMu     sync.Mutex
	keepBodies time.Duration

	wal   walMeter
	space spaceCheck
	fault func(point string) error // tests make the n-th call fail
}

// Open opens the store, creating or migrating it as needed. A second process gets ErrLocked at
// once. A database written by a newer version is refused and left untouched.
func Open(ctx context.Context, o Options) (*Store, error) {
	return open(ctx, o, nil)
}

func open(ctx context.Context, o Options, fault func(string) error) (*Store, error) {
	s, err := newStore(o, fault)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		_ = s.Close()
		return nil, fmt.Errorf("store: %w", mapError(err))
	}
	return s, nil
}

// newStore makes a store that is not open yet.
func newStore(o Options, fault func(string) error) (*Store, error) {
	if o.Dir == "" {
		return nil, errors.New("store: no data directory given")
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.InlineBody <= 0 {
		o.InlineBody = 128 << 10
	}
	if o.MinFree == 0 {
		o.MinFree = 64 << 20
	}
	if o.Lease <= 0 {
		o.Lease = 2 * time.Minute
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("store: %w", err)
	}
	o.Dir = dir
	s := &Store{
		o: o, d: sqliteDialect, keepBodies: o.KeepBodies, fault: fault,
		mails: make(chan *op, batchOps), ops: make(chan *op, batchOps), stopped: make(chan struct{}), writerGone: make(chan struct{}),
		wal:  walMeter{kick: make(chan struct{}, 1)},
		subs: map[chan struct{}]Topic{}, dirs: map[string]bool{}, stmts: map[string]*sql.Stmt{}, missed: map[string]bool{},
	}
	s.leases.init()
	s.fresh.most = o.Fresh
	s.member.kick, s.member.leads, s.member.asked = make(chan struct{}, 1), map[string]time.Time{}, map[string]time.Time{}
	if o.URL != "" {
		if !strings.HasPrefix(o.URL, "postgres://") && !strings.HasPrefix(o.URL, "postgresql://") {
			return nil, errors.New("store: the url must begin with postgres://")
		}
		s.d = postgresDialect
	}
	return s, nil
}

func (s *Store) start(ctx context.Context) error {
	if !s.o.ReadOnly {
		if err := s.prepareDir(); err != nil {
			return err
		}
	}
	if s.d.shared {
		if err := s.openPostgres(ctx); err != nil {
			return err
		}
	} else if err := s.openSQLite(ctx); err != nil {
		return err
	}
	if s.o.ReadOnly {
		return nil
	}
	if err := s.refuseMoved(ctx); err != nil {
		return err
	}
	if err := s.recover(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}

// prepareDir makes the data directory and its parts durable and takes the lock.
func (s *Store) prepareDir() error {
	for _, d := range []string{s.o.Dir, filepath.Join(s.o.Dir, blobsName), filepath.Join(s.o.Dir, spoolName)} {
		if err := s.mkdir(d); err != nil {
			return err
		}
	}
	path := filepath.Join(s.o.Dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		b := make([]byte, 20)
		n, _ := f.Read(b)
		f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock %s: %w", path, err)
		}
		if pid, perr := strconv.Atoi(strings.TrimSpace(string(b[:n]))); perr == nil {
			return fmt.Errorf("%w: process %d has %s", ErrLocked, pid, s.o.Dir)
		}
		return fmt.Errorf("%w: %s", ErrLocked, s.o.Dir)
	}
	s.lock = f
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

// mkdir creates a directory, and its missing parents, so that they survive a power cut.
func (s *Store) mkdir(dir string) error {
	s.dirsMu.Lock()
	defer s.dirsMu.Unlock()
	return s.mkdirLocked(dir)
}

func (s *Store) mkdirLocked(dir string) error {
	if s.dirs[dir] {
		return nil
	}
	fi, err := os.Lstat(dir)
	switch {
	case err == nil:
		if !fi.IsDir() && dir != s.o.Dir { // data_dir itself may be a link an administrator made
			return fmt.Errorf("%s is not a directory", dir)
		}
	case errors.Is(err, fs.ErrNotExist):
		parent := filepath.Dir(dir)
		if parent == dir {
			return err
		}
		if err := s.mkdirLocked(parent); err != nil {
			return err
		}
		if err := s.inject("mkdir"); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := s.syncDir(parent); err != nil {
			_ = os.Remove(dir) // so that the next try syncs again
			return err
		}
	default:
		return err
	}
	s.dirs[dir] = true
	return nil
}

func (s *Store) syncDir(dir string) error {
	if err := s.inject("syncdir"); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (s *Store) dsn(writer, fresh bool) string {
	q := url.Values{}
	q.Set("_busy_timeout", "10000")
	q.Set("_foreign_keys", "1")
	q.Add("_pragma", "cell_size_check(1)")
	q.Add("_pragma", "temp_store(2)")
	switch {
	case s.o.ReadOnly:
		q.Set("mode", "ro")
	case writer:
		if fresh { // has an effect only before the first table, but would write to the file each time
			q.Set("_auto_vacuum", "INCREMENTAL")
		}
		q.Set("_journal_mode", "WAL")
		q.Set("_synchronous", "FULL")
		q.Add("_pragma", "secure_delete(1)")
		q.Add("_pragma", "journal_size_limit(67108864)")
		q.Add("_pragma", fmt.Sprintf("wal_autocheckpoint(%d)", writerPages))
		q.Add("_pragma", "cache_size(500)") // pages; each takes 8 KiB of memory
	default:
		q.Add("_pragma", "query_only(1)")
		q.Add("_pragma", "cache_size(24)") // another's commit empties it anyway
	}
	u := url.URL{Scheme: "file", Path: filepath.Join(s.o.Dir, fileName), RawQuery: q.Encode()}
	return u.String()
}

func (s *Store) openSQLite(ctx context.Context) error {
	// fdatasync is enough for SQLite and saves a journal write of the file system per commit.
	_, _ = sqlite.Fdatasync(true)
	path := filepath.Join(s.o.Dir, fileName)
	fi, err := os.Lstat(path)
	switch {
	case err == nil && !fi.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", path)
	case err == nil:
		if !s.o.ReadOnly && fi.Mode().Perm()&0o077 != 0 {
			if err := os.Chmod(path, 0o600); err != nil {
				return err
			}
		}
	case s.o.ReadOnly:
		return fmt.Errorf("%w: there is no database in %s", ErrNotFound, s.o.Dir)
	case errors.Is(err, fs.ErrNotExist):
		// SQLite gives -wal and -shm the mode of the database.
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
	default:
		return err
	}
	fresh := fi == nil || fi.Size() == 0
	if s.db, err = sql.Open("sqlite", s.dsn(false, false)); err != nil {
		return err
	}
	s.db.SetMaxOpenConns(8)
	s.db.SetMaxIdleConns(8)
	s.readTx = &sql.TxOptions{ReadOnly: true}
	if s.o.ReadOnly {
		close(s.writerGone)
		return s.checkVersion(ctx, s.db)
	}
	if !fresh { // by a reader: a database that is refused stays as it is
		if err := s.quickCheck(ctx, fi.Size()); err != nil {
			return err
		}
		if err := s.checkVersion(ctx, s.db); err != nil {
			return err
		}
	}
	if s.wdb, err = sql.Open("sqlite", s.dsn(true, fresh)); err != nil {
		return err
	}
	s.wdb.SetMaxOpenConns(2)
	if err := s.migrate(ctx, s.wdb); err != nil {
		return err
	}
	if err := s.syncDir(s.o.Dir); err != nil { // the database's own entry
		return err
	}
	conn, err := s.wdb.Conn(ctx)
	if err != nil {
		return err
	}
	beside, err := s.wdb.Conn(ctx)
	if err != nil {
		return err
	}
	s.background.Go(func() {
		defer conn.Close()
		s.writer(conn)
	})
	s.background.Go(func() {
		defer beside.Close()
		s.checkpoint(beside)
	})
	return nil
}

// quickCheck looks for damage, as far as that does not delay the start: a database too large
// for it is only asked for its schema.
func (s *Store) quickCheck(ctx context.Context, size int64) error {
	query := "PRAGMA quick_check(1)"
	if size > 64<<20 {
		query = "SELECT CASE WHEN count(*) >= 0 THEN 'ok' END FROM sqlite_master"
	}
	var answer string
	if err := s.db.QueryRowContext(ctx, query).Scan(&answer); err != nil {
		return mapError(err)
	}
	if answer != "ok" {
		return fmt.Errorf("%w (%s)", errMalformed, answer)
	}
	return nil
}

func (s *Store) provider(db *sql.DB) (*goose.Provider, error) {
	sub, err := fs.Sub(migrations, s.d.migrations)
	if err != nil {
		return nil, err
	}
	return goose.NewProvider(s.d.goose, db, sub, goose.WithDisableGlobalRegistry(true), goose.WithTableName("schema_version"))
}

// wanted is the newest schema this program knows.
func wanted(p *goose.Provider) int64 {
	var max int64
	for _, src := range p.ListSources() {
		max = maxOf(max, src.Version)
	}
	return max
}

func maxOf(a, b int64) int64 {
	if a > b {
		return a
	}
	return b
}

// version reads the schema version without touching the database; 0 for an empty one.
func (s *Store) version(ctx context.Context, db *sql.DB) (int64, error) {
	query := "SELECT count(*) FROM sqlite_master WHERE name = 'schema_version'"
	if s.d.shared {
		query = "SELECT count(*) FROM pg_tables WHERE tablename = 'schema_version' AND schemaname = current_schema()"
	}
	var n, v int64
	if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil || n == 0 {
		return 0, err
	}
	err := db.QueryRowContext(ctx, "SELECT coalesce(max(version_id), 0) FROM schema_version").Scan(&v)
	return v, err
}

func (s *Store) checkVersion(ctx context.Context, db *sql.DB) error {
	p, err := s.provider(db)
	if err != nil {
		return err
	}
	have, err := s.version(ctx, db)
	if err != nil {
		return fmt.Errorf("read schema version: %w", mapError(err))
	}
	want := wanted(p)
	switch {
	case have > want:
		return fmt.Errorf("the database has schema version %d, this program knows %d: use the newer program; nothing was changed", have, want)
	case have < want && s.o.ReadOnly:
		return fmt.Errorf("the database has schema version %d, this program needs %d: start the bridge once, or run: smtpbridge store migrate", have, want)
	}
	return nil
}

// migrate brings the schema up to date, each step in a transaction of its own; a step that is
// interrupted has not happened and runs again at the next start.
func (s *Store) migrate(ctx context.Context, db *sql.DB) error {
	if err := s.checkVersion(ctx, db); err != nil {
		return err
	}
	p, err := s.provider(db)
	if err != nil {
		return err
	}
	have, err := s.version(ctx, db)
	if err != nil {
		return err
	}
	want := wanted(p)
	if have == want {
		return nil
	}
	if err := s.inject("migrate"); err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return fmt.Errorf("migrate from schema version %d to %d: %w", have, want, mapError(err))
	}
	if have == 0 {
		s.log(slog.LevelInfo, logCreated)
	} else {
		s.log(slog.LevelInfo, logMigrated, "from", have, "to", want)
	}
	return nil
}

// Close ends everything. What Commit, Settle or Record have acknowledged is durable already.
func (s *Store) Close() error {
	var err error
	s.closeOnce.Do(func() {
		close(s.stopped)
		if s.stopBack != nil {
			s.stopBack()
		}
		s.background.Wait()
		s.leave()
		if s.wdb != nil {
			err = s.wdb.Close()
		}
		if s.db != nil {
			err = errors.Join(err, s.db.Close())
		}
		if s.lock != nil {
			_ = s.lock.Truncate(0)
			// A child that was forked and has not run exec yet has the descriptor too: closing ours would leave the lock.
			_ = syscall.Flock(int(s.lock.Fd()), syscall.LOCK_UN)
			err = errors.Join(err, s.lock.Close())
		}
	})
	return err
}

// Ping commits a transaction: it returns nil only if the store can accept a mail right now.
func (s *Store) Ping(ctx context.Context) error {
	if s.o.ReadOnly {
		var n int
		return s.read().get(ctx, []any{&n}, "SELECT 1")
	}
	if err := s.Space(); err != nil {
		return err
	}
	do := func(f func(ctx context.Context, t *tx) error) error { return s.do(ctx, 0, f) }
	if s.d.shared { // whoever asks does not wait beyond ctx, and need not be certain of the answer
		do = func(f func(ctx context.Context, t *tx) error) error { return s.alone(ctx, s.db, f) }
	}
	return do(func(ctx context.Context, t *tx) error {
		_, err := t.exec(ctx, "INSERT INTO settings (name, value) VALUES ('ping', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
			strconv.FormatInt(us(s.o.Now()), 10))
		return err
	})
}

// Subscribe returns a channel that gets a value after each commit the topic is about. Values
// coalesce: whoever wakes looks at everything. The function ends the subscription.
func (s *Store) Subscribe(topic Topic) (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	s.subsMu.Lock()
	s.subs[ch] = topic
	s.subsMu.Unlock()
	return ch, func() {
		s.subsMu.Lock()
		delete(s.subs, ch)
		s.subsMu.Unlock()
	}
}

// Wake is Subscribe(TopicQueue) for the life of the store.
func (s *Store) Wake() <-chan struct{} {
	ch, _ := s.Subscribe(TopicQueue)
	return ch
}

func (s *Store) wake(topic Topic) {
	s.subsMu.Lock()
	defer s.subsMu.Unlock()
	for ch, t := range s.subs {
		if t == topic {
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}
}

func (s *Store) now() time.Time { return s.o.Now() }

// us and at convert between times and the microseconds of the database.
func us(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func at(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}

// spaceCheck remembers for a second what the file system said.
type spaceCheck struct {
	mu          sync.Mutex
	at          time.Time
	free, total int64
	err         error
}

// Disk tells how much room the file system of the data directory has. It is cheap: the answer may be a second old.
func (s *Store) Disk() (free, total int64, err error) {
	c := &s.space
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.at) > time.Second || now.Before(c.at) {
		var st syscall.Statfs_t
		c.at, c.err = now, syscall.Statfs(s.o.Dir, &st)
		c.free, c.total = int64(st.Bavail)*st.Bsize, int64(st.Blocks)*st.Bsize
	}
	if c.err != nil {
		return 0, 0, fmt.Errorf("free space of %s: %w", s.o.Dir, c.err)
	}
	return c.free, c.total, nil
}

// Space returns ErrNoSpace while the disk is known to be too full to receive mail. It is cheap: asked for
// every mail before its first byte.
func (s *Store) Space() error {
	if s.o.MinFree < 0 {
		return nil
	}
	free, _, err := s.Disk()
	if err == nil && free < s.o.MinFree {
		err = fmt.Errorf("%w: %d bytes free, %d wanted", ErrNoSpace, free, s.o.MinFree)
	}
	return err
}
