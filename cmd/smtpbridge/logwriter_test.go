package main

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"

	"smtpbridge/config"
)

// slowTarget takes a line for each token, and fails when told so.
type slowTarget struct {
	tokens chan error
	mu     sync.Mutex
	got    bytes.Buffer
}

func (s *slowTarget) Write(p []byte) (int, error) {
	if err := <-s.tokens; err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.got.Write(p)
}

// TestCase094_LogBlockedOrFull: a log that is not read takes no time of whoever writes it; what is lost is counted, and told
// once the log moves again.
func TestCase094_LogBlockedOrFull(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		t.Run(format, func(t *testing.T) {
			to := &slowTarget{tokens: make(chan error)}
			log, w := makeLogger(config.Log{Level: "info", Format: format}, to, 8)
			for i := range 100 { // nobody reads: none of these waits
				log.Info("line", "n", i)
			}
			lost := w.Dropped()
			if lost < 91 || lost > 92 { // 8 wait, one may be at the target
				t.Errorf("%d lines dropped of 100", lost)
			}
			to.tokens <- syscall.ENOSPC // the first line that waited
			go func() {
				for range 100 {
					to.tokens <- nil
				}
			}()
			w.Close()
			if got := w.Dropped(); got != lost+1 {
				t.Errorf("%d lines dropped, want %d", got, lost+1)
			}
			text := to.got.String()
			want := fmt.Sprintf("msg=log.dropped n=%d", lost+1)
			if format == "json" {
				want = fmt.Sprintf(`"msg":"log.dropped","n":%d`, lost+1)
			}
			if strings.Count(text, want) != 1 || strings.Count(text, "log.dropped") != 1 {
				t.Errorf("want %q once in:\n%s", want, text)
			}
			if n := strings.Count(text, "line"); n != 100-int(lost)-1 {
				t.Errorf("%d lines arrived", n)
			}
			log.Log(t.Context(), slog.LevelInfo, "too late") // is taken, and dropped
		})
	}
}
