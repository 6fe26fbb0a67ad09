package main

import (
	"fmt"
	"syscall"

	"smtpbridge/config"
)

// minFree is the free space below which no mail is taken: room for two of the largest, and for the database to work.
func minFree(cfg *config.Config) int64 {
	return max(64<<20, 2*largestMessage(cfg))
}

func largestMessage(cfg *config.Config) (largest int64) {
	for _, l := range cfg.Listeners {
		largest = max(largest, int64(l.MaxMessageSize))
	}
	return largest
}

// diskLow tells whether the free space of data_dir is below the watermark: what minFree wants, and five per cent.
func (b *Bridge) diskLow() (bool, string) {
	cfg := b.intake.now.Load().cfg
	var fs syscall.Statfs_t
	if err := syscall.Statfs(cfg.DataDir, &fs); err != nil {
		return true, "the free space of data_dir cannot be read"
	}
	free, total := fs.Bavail*uint64(fs.Bsize), fs.Blocks*uint64(fs.Bsize)
	if free < uint64(minFree(cfg)) || free < total/20 {
		return true, fmt.Sprintf("%d MiB are free where the queue is", free>>20)
	}
	return false, ""
}
