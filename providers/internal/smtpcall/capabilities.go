package smtpcall

import "smtpbridge/translate"

// Capabilities are those of a target that takes the mail as it is.
func Capabilities() translate.Capabilities {
	return translate.Capabilities{
		Raw: translate.RawEnvelope, AnyFrom: true, ReplyTo: -1,
		MaxRcpts:  100, // what every server has to take in one transaction, RFC 5321 4.5.3.1.8
		Headers:   translate.HeadersAny,
		Threading: true, ListUnsub: true, ListUnsubPost: true, Inline: true, AttachName: true, AttachType: true,
		EnvelopeFrom: true, NullSender: true, RcptStatus: true, AMP: true, Calendar: true, UTF8Local: true, MessageID: true,
	}
}
