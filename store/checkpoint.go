package store

import (
	"context"
	"database/sql"
	"log/slog"
	"sync/atomic"
)

// SQLite's write-ahead log is copied back into the database from time to time, which takes an fsync of each. Were that the
// writer's work, as by default, all clients would wait for it. So another connection does it beside the writer whenever
// checkpointPages have been written; the writer itself does what is left when the log has writerPages, after which it begins anew.
const (
	checkpointPages = 2000
	writerPages     = 8000
)

// opPages is about how many pages an operation writes beside the content it brings.
const opPages = 4

// walMeter tells the checkpointer that enough was written. It counts roughly: only the pace depends on it.
type walMeter struct {
	pages atomic.Int64
	kick  chan struct{}
}

func (m *walMeter) wrote(ops []*op) {
	n := int64(0)
	for _, o := range ops {
		n += opPages + int64(o.size)/4096
	}
	if m.pages.Add(n) >= checkpointPages {
		select {
		case m.kick <- struct{}{}:
		default:
		}
	}
}

// checkpoint copies the log back until the store is closed. What fails here the writer's own checkpoint does later.
func (s *Store) checkpoint(conn *sql.Conn) {
	for {
		select {
		case <-s.stopped:
			return
		case <-s.wal.kick:
		}
		s.wal.pages.Store(0)
		if _, err := conn.ExecContext(context.Background(), "PRAGMA wal_checkpoint(PASSIVE)"); err != nil {
			s.log(slog.LevelDebug, logCheckpoint, "err", mapError(err))
		}
	}
}
