package store

import (
	"context"
	"log/slog"
)

// What operators see of the store: one constant per event.
const (
	logCreated      = "queue.created"
	logMigrated     = "queue.migrated"     // from= to=
	logRecovered    = "queue.recovered"    // n= orphans=
	logCorrupt      = "queue.corrupt"      // id= reason=
	logForeign      = "queue.foreign"      // path=
	logAbandoned    = "queue.abandoned"    // id=
	logSweep        = "queue.sweep_failed" // blob=
	logCheckpoint   = "queue.checkpoint_failed"
	logLease        = "queue.lease_failed"
	logNodeUnseen   = "node.unseen"   // the database did not take this node's sign of life
	logNodeLeads    = "node.leads"    // this node does now what one does at a time
	logNodeUnsigned = "node.unsigned" // the others will notice that this node ended by its silence
	logListen       = "queue.listen_failed"
	logPanic        = "queue.panic"
)

func (s *Store) log(level slog.Level, msg string, args ...any) {
	if s.o.Log != nil {
		s.o.Log.Log(context.Background(), level, msg, args...)
	}
}
