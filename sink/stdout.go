package sink

import (
	"context"
	"io"

	"smtpbridge/event"
)

// Writer is a sink for a stream that cannot be read back. A process that dies between writing and
// noting writes these events once more, with the same ids.
type Writer struct {
	name string
	w    io.Writer
	buf  []byte
}

// Stdout makes the sink "stdout" of a stream.
func Stdout(w io.Writer) *Writer { return &Writer{name: "stdout", w: w} }

// NodeStdout is Stdout for bridges that share a store: each writes all events, and node tells their cursors apart.
func NodeStdout(w io.Writer, node string) *Writer {
	s := Stdout(w)
	if node != "" {
		s.name += "@" + node
	}
	return s
}

// Name is the key of its cursor.
func (s *Writer) Name() string { return s.name }

// Open returns the stored cursor, which is the store's own.
func (s *Writer) Open(_ context.Context, cursor string) (string, error) { return cursor, nil }

// Write writes one line per event, in one call.
func (s *Writer) Write(_ context.Context, evs []event.Event, next string) (string, error) {
	var err error
	if s.buf, err = appendLines(s.buf[:0], evs); err != nil {
		return "", err
	}
	if _, err := s.w.Write(s.buf); err != nil {
		return "", err
	}
	return next, nil
}

// Close leaves the stream open: it is not ours.
func (s *Writer) Close() error { return nil }

func appendLines(b []byte, evs []event.Event) ([]byte, error) {
	var err error
	for i := range evs {
		if b, err = evs[i].AppendJSON(b); err != nil {
			return b, err
		}
		b = append(b, '\n')
	}
	return b, nil
}
