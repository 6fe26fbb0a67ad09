package mime

import "io"

// Parse reads the structure of a mail of size bytes. It returns a *LimitError, an error of r, or a Message.
func Parse(r io.ReaderAt, size int64, l Limits) (*Message, error) {
	panic("not built yet")
}

// Get returns the decoded value of the first field with that name (case-insensitive), "" when absent.
func (h Header) Get(name string) string { panic("not built yet") }

// Values returns the decoded values of all fields with that name, in order.
func (h Header) Values(name string) []string { panic("not built yet") }

// Has reports whether a field with that name exists.
func (h Header) Has(name string) bool { panic("not built yet") }
