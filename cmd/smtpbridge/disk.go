package main

import (
	"fmt"
	"syscall"
)

// diskLow tells whether the free space of data_dir is below the watermark: twice the largest message a listener
// takes, and five per cent.
func (b *Bridge) diskLow() (bool, string) {
	cfg := b.intake.now.Load().cfg
	var fs syscall.Statfs_t
	if err := syscall.Statfs(cfg.DataDir, &fs); err != nil {
		return true, "the free space of data_dir cannot be read"
	}
	free, total := fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
	var largest int64
	for _, l := range cfg.Listeners {
		largest = max(largest, int64(l.MaxMessageSize))
	}
	if free < uint64(2*largest) || free < total/20 {
		return true, fmt.Sprintf("%d MiB are free where the queue is", free>>20)
	}
	return false, ""
}
