package store

import (
	"context"
	"log/slog"
)

// What operators see of the store: one constant per event.
const (
	logCreated   = "queue.created"
	logMigrated  = "queue.migrated"     // from= to=
	logRecovered = "queue.recovered"    // n= orphans=
	logCorrupt   = "queue.corrupt"      // id= reason=
	logForeign   = "queue.foreign"      // path=
	logAbandoned = "queue.abandoned"    // id=
	logSweep     = "queue.sweep_failed" // blob=
	logLease     = "queue.lease_failed"
	logListen    = "queue.listen_failed"
	logPanic     = "queue.panic"
)

func (s *Store) log(level slog.Level, msg string, args ...any) {
	if s.o.Log != nil {
		s.o.Log.Log(context.Background(), level, msg, args...)
	}
}
