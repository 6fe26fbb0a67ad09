package main

import (
	"sync"
	"time"
)

const (
	rateSlots = 60
	rateSlot  = time.Minute
)

// rates counts mails by sender over the last hour, for max_messages_per_hour. It is in memory: a
// restart begins anew. The hour slides by minutes.
type rates struct {
	mu   sync.Mutex
	keys map[string]*hour
}

// hour is the count of each minute of one key; minutes that are over are cleared when it is looked at.
type hour struct {
	slots  [rateSlots]int
	newest int64 // minute, since 1970
	sum    int
	told   int64 // minute of the last line in the log
}

// quota is one limit a mail counts against.
type quota struct {
	key   string // of rates
	who   string // for people: `user "crm"`
	limit int    // 0: none, not counted
}

func (h *hour) turn(now time.Time) {
	m := minuteOf(now)
	switch {
	case m >= h.newest:
	case h.newest-m == 1:
		return // two sessions at the turn of a minute
	default: // the clock was set back: nothing is known of the last hour
		*h = hour{}
	}
	for i := max(h.newest+1, m-rateSlots+1); i <= m; i++ {
		h.sum -= h.slots[i%rateSlots]
		h.slots[i%rateSlots] = 0
	}
	h.newest = m
}

func minuteOf(t time.Time) int64 { return t.Unix() / int64(rateSlot/time.Second) }

// wait is how long it takes until fewer than limit are left in the hour, 0 when there are fewer now.
func (h *hour) wait(now time.Time, limit int) time.Duration {
	if h.sum < limit {
		return 0
	}
	left := h.sum
	for m := h.newest - rateSlots + 1; m <= h.newest; m++ {
		if left -= h.slots[m%rateSlots]; left < limit {
			return time.Unix((m+rateSlots)*int64(rateSlot/time.Second), 0).Sub(now)
		}
	}
	return rateSlot * rateSlots
}

func (r *rates) hour(key string, now time.Time) *hour {
	h := r.keys[key]
	if h == nil {
		if r.keys == nil {
			r.keys = map[string]*hour{}
		}
		h = &hour{}
		r.keys[key] = h
	}
	h.turn(now)
	return h
}

// full gives the quota that is used up for the longest, and for how long. first is set once a minute
// for each, for the log.
func (r *rates) full(now time.Time, qs []quota) (q quota, wait time.Duration, first bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q, wait = r.used(now, qs); wait > 0 {
		h := r.keys[q.key]
		first = h.told != h.newest
		h.told = h.newest
	}
	return q, wait, first
}

func (r *rates) used(now time.Time, qs []quota) (q quota, wait time.Duration) {
	for _, c := range qs {
		if c.limit == 0 {
			continue
		}
		if d := r.hour(c.key, now).wait(now, c.limit); d > wait {
			q, wait = c, d
		}
	}
	return q, wait
}

// take counts one mail against all quotas, or none when one is used up. undo takes it back.
func (r *rates) take(now time.Time, qs []quota) (q quota, wait time.Duration, undo func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if q, wait = r.used(now, qs); wait > 0 {
		return q, wait, nil
	}
	type count struct {
		h *hour
		m int64
	}
	var counted []count
	for _, c := range qs {
		if c.limit == 0 {
			continue
		}
		h := r.hour(c.key, now)
		h.slots[h.newest%rateSlots]++
		h.sum++
		counted = append(counted, count{h, h.newest})
	}
	return q, 0, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range counted {
			if h := c.h; h.newest-c.m < rateSlots && h.slots[c.m%rateSlots] > 0 {
				h.slots[c.m%rateSlots]--
				h.sum--
			}
		}
	}
}
