// Package storetest gives tests an empty SQLite store, which takes many transactions to make.
package storetest

import (
	"context"

	"smtpbridge/internal/dirtest"
	"smtpbridge/store"
)

// Dir gives a test a directory of its own with an empty store in it, which nobody has open.
var Dir = dirtest.Copies(func(dir string) error {
	st, err := store.Open(context.Background(), store.Options{Dir: dir, MinFree: -1})
	if err != nil {
		return err
	}
	return st.Close()
})
