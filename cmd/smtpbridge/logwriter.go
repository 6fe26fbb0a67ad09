package main

import (
	"io"
	"sync"
	"time"
)

const (
	logLines = 4096            // that wait for whoever reads the log
	logFlush = 2 * time.Second // for what is left of them at the end
)

// logWriter keeps a log that nobody reads, or that cannot be written, from holding up mail: lines wait in memory, up to a
// number. What comes beyond is dropped and counted, and the log says so as soon as it can be written again.
type logWriter struct {
	to     io.Writer
	lines  chan []byte
	report func(to io.Writer, dropped int64)
	done   chan struct{}

	mu      sync.Mutex
	closed  bool
	dropped int64 // not reported yet
	total   int64
}

func newLogWriter(to io.Writer, lines int, report func(to io.Writer, dropped int64)) *logWriter {
	w := &logWriter{to: to, lines: make(chan []byte, lines), report: report, done: make(chan struct{})}
	go w.run()
	return w
}

// Write takes one line. It never waits and never fails.
func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.closed {
		select {
		case w.lines <- append([]byte(nil), p...):
			return len(p), nil
		default:
		}
	}
	w.drop()
	return len(p), nil
}

func (w *logWriter) drop() {
	w.dropped++
	w.total++
}

// Dropped is how many lines were lost.
func (w *logWriter) Dropped() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.total
}

func (w *logWriter) run() {
	defer close(w.done)
	for line := range w.lines {
		if _, err := w.to.Write(line); err != nil {
			w.mu.Lock()
			w.drop()
			w.mu.Unlock()
			continue
		}
		w.mu.Lock()
		n := w.dropped
		w.dropped = 0
		w.mu.Unlock()
		if n > 0 {
			w.report(w.to, n)
		}
	}
}

// Close writes what waits, as far as that is possible soon. Nothing is taken afterwards.
func (w *logWriter) Close() {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		close(w.lines)
	}
	w.mu.Unlock()
	t := time.NewTimer(logFlush)
	defer t.Stop()
	select {
	case <-w.done:
	case <-t.C:
	}
}
