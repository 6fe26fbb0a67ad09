package main

import (
	"context"
	"time"

	"smtpbridge/admin"
)

// makeAlarms makes the alarms: about what nodes share, told by the one that leads, and about this node alone.
func (b *Bridge) makeAlarms() {
	b.alarms = &admin.Alarms{Store: b.store, Metrics: b.metrics, Log: b.log, Now: time.Now}
	own := b.alarms
	if node := b.store.Node(); node != "" {
		// One that delivers knows what was sent.
		b.alarms.Lead = func(ctx context.Context) bool { return b.roles.has(roleDeliver) && b.store.Lead(ctx, leadAlarms) }
		b.alarms.Webhooks = b.store.LastWebhooks
		own = &admin.Alarms{Store: b.store, Metrics: b.metrics, Log: b.log, Now: time.Now, Local: true, Node: node}
		b.ownAlarms = own
	}
	own.Disk, own.Certificates = b.diskLow, b.certTrouble
	own.Signatures = func() map[string]string {
		if b.hooks == nil {
			return nil
		}
		return b.hooks.Failing()
	}
}

// raised lists the alarms of this node and those the nodes share.
func (b *Bridge) raised() []admin.Alarm {
	out := b.alarms.Raised()
	if b.ownAlarms != nil {
		out = append(out, b.ownAlarms.Raised()...)
	}
	return out
}
