package main

import (
	"fmt"

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

// low compares free space with the watermark: what minFree wants, and five per cent. A file system that tells no size
// has no watermark.
func low(cfg *config.Config, free, total int64) bool {
	return total > 0 && free < max(minFree(cfg), total/20)
}

// diskLow is the alarm for an operator; sessions are refused by the same watermark.
func (b *Bridge) diskLow() (bool, string) {
	free, total, err := b.intake.disk()
	switch {
	case err != nil:
		return true, "the free space of data_dir cannot be read"
	case low(b.intake.now.Load().cfg, free, total):
		return true, fmt.Sprintf("%d MiB are free where the queue is", free>>20)
	}
	return false, ""
}
