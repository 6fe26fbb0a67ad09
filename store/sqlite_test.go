package store

import "testing"

func sqliteEngine(t *testing.T) (Options, opener) {
	return Options{Dir: t.TempDir()}, func(t *testing.T, o Options) *Store {
		t.Helper()
		s, err := Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
}

func TestSQLite(t *testing.T) { runSuite(t, sqliteEngine) }
