// Package all lists the providers the bridge is built with: one line each.
package all

import (
	"smtpbridge/providers"
	"smtpbridge/providers/lmtp"
	"smtpbridge/providers/maildir"
	"smtpbridge/providers/maileroo"
	"smtpbridge/providers/mailersend"
	"smtpbridge/providers/mailpace"
	"smtpbridge/providers/mandrill"
	"smtpbridge/providers/sandbox"
	"smtpbridge/providers/smtp"
	"smtpbridge/providers/smtpeter"
)

// Registry gives all providers, by name.
func Registry() providers.Registry {
	return providers.Registry{
		lmtp.Info,
		maildir.Info,
		maileroo.Info,
		mailersend.Info,
		mailpace.Info,
		mandrill.Info,
		sandbox.Info,
		smtp.Info,
		smtpeter.Info,
	}
}
