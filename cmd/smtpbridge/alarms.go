package main

import (
	"os"
	"time"

	"smtpbridge/admin"
	"smtpbridge/config"
)

func (b *Bridge) newAlarms(cfg *config.Config) *admin.Alarms {
	a := &admin.Alarms{Store: b.store, Metrics: b.metrics, Log: b.log, Now: time.Now, Disk: b.diskLow}
	if cfg.Store.URL != "" { // several bridges may share it
		if name, err := os.Hostname(); err == nil {
			a.Node = name
		}
	}
	a.Signatures = func() map[string]string {
		if b.hooks == nil {
			return nil
		}
		return b.hooks.Failing()
	}
	return a
}
