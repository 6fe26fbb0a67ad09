package store

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// pgNow is the database's clock in microseconds: leases must not depend on the clocks of the nodes.
const pgNow = `(extract(epoch FROM clock_timestamp()) * 1000000)::bigint`

func (s *Store) openPostgres(context.Context) error {
	return errors.New("this build has no PostgreSQL driver")
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
	return b.String()
}

// retryable reports whether a transaction certainly did not commit and may be tried again at once.
func retryable(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01")
}
