package store

import (
	"context"
	"sync"
	"time"
)

// freshMails keeps mails that were just committed for their first claim, mostly a moment later, so that
// what was written need not be read back. Whatever changes a waiting mail drops it from here. With
// PostgreSQL nothing is kept: another node may change the mail.
type freshMails struct {
	mu    sync.Mutex
	most  int64 // bytes
	bytes int64
	jobs  map[int64]*freshMail
	mails map[string]*freshMail
}

type freshMail struct {
	id     string
	body   []byte // nil: in a file
	size   int64
	claims map[int64]*Claim // by job, as the database would give them
}

// freshFor is how long a mail may wait for its first claim to be worth keeping.
const freshFor = time.Second

// freshOverhead is about what a mail takes beside its body and header, and a recipient of it.
const freshOverhead = 512

// put keeps the claims of a mail that are due, while there is room.
func (f *freshMails) put(mail Mail, body []byte, claims []*Claim, now time.Time) {
	m := &freshMail{id: mail.Envelope.ID, body: body, claims: map[int64]*Claim{}}
	for _, c := range claims {
		if !c.Job.NextAt.After(now.Add(freshFor)) {
			m.claims[c.Job.ID] = c
		}
	}
	if len(m.claims) == 0 {
		return
	}
	m.size = int64(cap(body) + len(mail.Header) + freshOverhead*(1+len(mail.Envelope.Rcpts)))
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.bytes+m.size > f.most {
		return // what is kept is claimed first
	}
	if f.jobs == nil {
		f.jobs, f.mails = map[int64]*freshMail{}, map[string]*freshMail{}
	}
	f.bytes += m.size
	f.mails[m.id] = m
	for job := range m.claims {
		f.jobs[job] = m
	}
}

// take gives the claim of a job once, nil when it is not kept.
func (f *freshMails) take(job, token int64) *Claim {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.jobs[job]
	if m == nil {
		return nil
	}
	c := m.claims[job]
	delete(m.claims, job)
	delete(f.jobs, job)
	if len(m.claims) == 0 {
		f.forget(m)
	}
	c.token, c.body = token, m.body
	return c
}

func (f *freshMails) drop(id string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if m := f.mails[id]; m != nil {
		for job := range m.claims {
			delete(f.jobs, job)
		}
		f.forget(m)
	}
}

func (f *freshMails) forget(m *freshMail) {
	delete(f.mails, m.id)
	f.bytes -= m.size
}

// ClaimBody is Body for a claimed mail: from memory when the mail was committed a moment ago.
func (s *Store) ClaimBody(ctx context.Context, c *Claim) (Body, error) {
	if c.body != nil {
		return newMemBody(c.body), nil
	}
	return s.Body(ctx, c.Job.MailID)
}
