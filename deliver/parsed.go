package deliver

import (
	"io"
	"maps"
	"sync"
	"time"

	"smtpbridge/mime"
)

// Limits of what is kept of mails that were just taken: at most some MiB.
const (
	parsedMost   = 250
	parsedFor    = time.Minute
	parsedSweep  = time.Second
	parsedHeader = 8 << 10 // of header blocks in one mail; others are parsed again
)

// parsedMails hands what the preflight has read of a mail to its first delivery, mostly a moment
// later, so that it is not parsed twice. Only the structure is kept: the bytes come from the store,
// which compares their checksum.
type parsedMails struct {
	mu    sync.Mutex
	mails map[string]parsedMail
	swept time.Duration
}

type parsedMail struct {
	msg *mime.Message
	at  time.Duration // of the monotonic clock
}

// put keeps a mail until it is taken, while there is room. The message must not be used any more.
func (p *parsedMails) put(id string, msg *mime.Message, now time.Duration) {
	if headerBytes(msg.Root) > parsedHeader {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mails) >= parsedMost && now-p.swept >= parsedSweep {
		p.swept = now
		maps.DeleteFunc(p.mails, func(_ string, m parsedMail) bool { return now-m.at >= parsedFor })
	}
	if len(p.mails) >= parsedMost {
		return // the older ones are delivered first
	}
	if p.mails == nil {
		p.mails = map[string]parsedMail{}
	}
	msg.Reopen(nil)
	p.mails[id] = parsedMail{msg, now}
}

// take gives a mail once, over its stored bytes; nil when it is not kept.
func (p *parsedMails) take(id string, body io.ReaderAt) *mime.Message {
	p.mu.Lock()
	m, ok := p.mails[id]
	delete(p.mails, id)
	p.mu.Unlock()
	if !ok {
		return nil
	}
	m.msg.Reopen(body)
	return m.msg
}

// headerBytes adds up the header blocks of a tree, and something for each part.
func headerBytes(e *mime.Entity) int {
	n := 256
	for _, f := range e.Header {
		n += len(f.Raw)
	}
	for _, c := range e.Children {
		n += headerBytes(c)
	}
	return n
}
