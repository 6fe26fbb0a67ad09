package main

import (
	"fmt"
	"sync"
	"syscall"
	"time"

	"smtpbridge/config"
)

// minFree is the free space below which no mail is taken: room for two of the largest, and for the database to work.
func minFree(cfg *config.Config) int64 {
	var largest int64
	for _, l := range cfg.Listeners {
		largest = max(largest, int64(l.MaxMessageSize))
	}
	return max(64<<20, 2*largest)
}

// disk tells how much space is left where the queue is. Sessions ask it for every mail: what the
// file system said is remembered for a second.
type disk struct {
	dir  string
	stat func(dir string) (free, total int64, err error) // default: statfs

	mu          sync.Mutex
	at          time.Time
	free, total int64
	err         error
}

func newDisk(dir string) *disk { return &disk{dir: dir, stat: statfs} }

func statfs(dir string) (free, total int64, err error) {
	var fs syscall.Statfs_t
	err = syscall.Statfs(dir, &fs)
	return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, err
}

// low compares the free space with the watermark: what minFree wants, and five per cent. A file
// system that tells no size has no watermark.
func (d *disk) low(cfg *config.Config) (low bool, free int64, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if now := time.Now(); now.Sub(d.at) > time.Second || now.Before(d.at) {
		d.free, d.total, d.err = d.stat(d.dir)
		d.at = now
	}
	return d.err == nil && d.total > 0 && d.free < max(minFree(cfg), d.total/20), d.free, d.err
}

// diskLow is the alarm for an operator; sessions are refused by the same watermark.
func (b *Bridge) diskLow() (bool, string) {
	low, free, err := b.intake.disk.low(b.intake.now.Load().cfg)
	switch {
	case err != nil:
		return true, "the free space of data_dir cannot be read"
	case low:
		return true, fmt.Sprintf("%d MiB are free where the queue is", free>>20)
	}
	return false, ""
}
