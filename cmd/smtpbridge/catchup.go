package main

import (
	"fmt"

	"smtpbridge/admin"
	"smtpbridge/catchup"
	"smtpbridge/config"
)

// makeCatchUp prepares to ask the ESPs for events that did not come.
func (b *Bridge) makeCatchUp(cfg *config.Config) {
	if !cfg.CatchUp.Enabled || !b.roles.has(roleWebhook) {
		return
	}
	b.catchUp = catchup.New(catchup.Config{
		Store: b.store, After: cfg.CatchUp.After.D(), Silence: cfg.CatchUp.Silence.D(), Log: b.log, Lead: b.leader(leadCatchUp), KeepReaders: cfg.Events.Readers,
		Accounts: func() []catchup.Account {
			var out []catchup.Account
			for name, a := range b.intake.now.Load().accounts {
				out = append(out, catchup.Account{Name: name, Info: a.Info, Provider: a.Provider})
			}
			return out
		},
	})
	alarms := b.alarms
	if b.ownAlarms != nil { // the node that asks need not be the one that tells what is shared
		alarms = b.ownAlarms
	}
	alarms.More = func() (out []admin.Alarm) {
		for account, n := range b.catchUp.Missing() {
			out = append(out, admin.Alarm{
				Name: "silent_mails", Account: account,
				Text: fmt.Sprintf("%s without a final event for longer than %s (smtpbridge events --since 7d shows them as %s)", plural(n, "recipient"), cfg.CatchUp.After.D(), catchup.EventSilent),
			})
		}
		return out
	}
}

// heard is told of every webhook that was taken.
func (b *Bridge) heard(account string) {
	b.alarms.Heard(account)
	if b.catchUp != nil {
		b.catchUp.Heard(account)
	}
}

// sent is told of every call that was accepted.
func (b *Bridge) sent(account string) {
	b.alarms.Sent(account)
	if b.catchUp != nil {
		b.catchUp.Sent(account)
	}
}
