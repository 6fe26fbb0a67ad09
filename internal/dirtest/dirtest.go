// Package dirtest gives tests copies of a directory that takes long to make.
package dirtest

import (
	"io/fs"
	"os"
	"sync"
	"testing"
	"testing/fstest"
)

// Copies returns a function that gives a test a directory of its own, as create would fill it. It is filled once for
// the process, when the first is asked for, and kept in memory.
func Copies(create func(dir string) error) func(testing.TB) string {
	filled := sync.OnceValues(func() (fs.FS, error) {
		dir, err := os.MkdirTemp("", "dirtest-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		if err := create(dir); err != nil {
			return nil, err
		}
		kept, from := fstest.MapFS{}, os.DirFS(dir)
		err = fs.WalkDir(from, ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == "." {
				return err
			}
			f := &fstest.MapFile{Mode: d.Type() | 0o700}
			if d.Type().IsRegular() {
				f.Data, err = fs.ReadFile(from, path)
			}
			kept[path] = f
			return err
		})
		return kept, err
	})
	return func(t testing.TB) string {
		t.Helper()
		dir := t.TempDir()
		from, err := filled()
		if err == nil {
			err = os.CopyFS(dir, from)
		}
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
}
