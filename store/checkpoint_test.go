package store

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// TestCheckpointBesideTheWriter: the database itself grows long before the writer's own checkpoint would come, the log does
// not grow for ever, and all is there after a restart.
func TestCheckpointBesideTheWriter(t *testing.T) {
	t.Parallel()
	f := newFixture(t, sqliteEngine)
	body := random(t, 128<<10) // 32 pages and those beside it
	accept := func(n int64) {
		var wg sync.WaitGroup
		var left atomic.Int64
		left.Store(n)
		for range 16 {
			wg.Go(func() {
				for left.Add(-1) >= 0 {
					m := testMail(f.clock.now(), "u@example.org")
					r, err := f.Begin(t.Context())
					if err == nil {
						if _, err = r.Write(body); err == nil {
							err = r.Commit(t.Context(), m, []NewJob{{Accounts: []string{"a"}, Rcpts: []int{0}, NextAt: f.clock.now()}})
						}
					}
					if err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	size := func(name string) int64 {
		fi, err := os.Stat(filepath.Join(f.o.Dir, name))
		f.must(err)
		return fi.Size()
	}
	accept(checkpointPages * 5 / 4 / 36)
	if log := size(fileName + "-wal"); log > writerPages*4096/2 {
		t.Fatalf("the log has %d bytes: the writer's own checkpoint may have come", log)
	}
	waitFor(t, func() bool { return size(fileName) > checkpointPages*4096/2 })
	accept(writerPages * 5 / 4 / 36)
	if log := size(fileName + "-wal"); log > writerPages*4096*3/2 {
		t.Errorf("the log grew to %d bytes", log)
	}
	f.reopen()
	if st, err := f.Stats(t.Context()); err != nil || st.ByAccount["a"] != checkpointPages*5/4/36+writerPages*5/4/36 {
		t.Errorf("got %+v, %v", st, err)
	}
}
