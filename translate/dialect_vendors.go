package translate

import (
	"errors"
	"strings"
	"time"
)

// dialects are all tables. A concept that no call can carry yet has no parser: it is stripped and said as a loss.
var dialects = []dialect{
	own,
	{"mandrill", []rule{ // https://mailchimp.com/developer/transactional/docs/smtp-integration/
		{header: "x-mc-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-mc-track", means: "tracking", parse: mandrillTrack},
		{header: "x-mc-metadata", means: "metadata", parse: metaJSON},
		{header: "x-mc-sendat", means: "send at", parse: sendAtLayout(time.DateTime)},
		{header: "x-mc-autotext", means: "generated text part"},
		{header: "x-mc-autohtml", means: "generated HTML part"},
		{header: "x-mc-template", means: "template"},
		{header: "x-mc-mergevars", means: "merge data", repeat: merge},
		{header: "x-mc-mergelanguage", means: "template language"},
		{header: "x-mc-googleanalytics", means: "link analytics"},
		{header: "x-mc-googleanalyticscampaign", means: "link analytics"},
		{header: "x-mc-urlstripqs", means: "stripped query strings"},
		{header: "x-mc-preserverecipients", means: "visible recipients"},
		{header: "x-mc-inlinecss", means: "inlined style sheets"},
		{header: "x-mc-trackingdomain", means: "tracking domain"},
		{header: "x-mc-signingdomain", means: "signing domain"},
		{header: "x-mc-subaccount", means: "subaccount"},
		{header: "x-mc-viewcontentlink", means: "view link"},
		{header: "x-mc-bccaddress", means: "added recipient"},
		{header: "x-mc-important", means: "priority"},
		{header: "x-mc-ippool", means: "ip pool"},
		{header: "x-mc-returnpathdomain", means: "return path domain"},
		{header: "x-mc-*", means: "an unknown option"},
	}},
	{"postmark", []rule{ // https://postmarkapp.com/developer/user-guide/send-email-with-smtp
		{header: "x-pm-tag", means: "tags", parse: oneTag},
		{header: "x-pm-metadata-*", means: "metadata", parse: metaSuffix},
		{header: "x-pm-trackopens", means: "tracking of opens", parse: trackOpens},
		{header: "x-pm-track-opens", means: "tracking of opens", parse: trackOpens},
		{header: "x-pm-tracklinks", means: "tracking of clicks", parse: trackClicksKind},
		{header: "x-pm-track-links", means: "tracking of clicks", parse: trackClicksKind},
		{header: "x-pm-message-stream", means: "message stream"},
		{header: "x-pm-keepid", means: "kept Message-ID", quiet: true},
		{header: "x-pm-*", means: "an unknown option"},
	}},
	{"sendgrid", []rule{ // https://www.twilio.com/docs/sendgrid/for-developers/sending-email/building-an-x-smtpapi-header
		{header: "x-smtpapi", means: "options", parse: sendgridJSON},
		{header: "x-sendgrid-suppressiongroup", means: "unsubscribe group"},
	}},
	{"mailgun", []rule{ // https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/pass-sending-options
		{header: "x-mailgun-tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-mailgun-variables", means: "metadata", repeat: merge, parse: metaJSON},
		{header: "x-mailgun-track-opens", means: "tracking of opens", parse: trackOpens},
		{header: "x-mailgun-track-clicks", means: "tracking of clicks", parse: trackClicksKind},
		{header: "x-mailgun-track", means: "tracking", parse: trackBoth},
		{header: "x-mailgun-deliver-by", means: "send at", parse: sendAtLayout(time.RFC1123Z, time.RFC1123, "Mon, 2 Jan 2006 15:04:05 -0700", "2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 MST")},
		{header: "x-mailgun-campaign-id", means: "campaign", parse: oneTag},
		{header: "x-mailgun-recipient-variables", means: "merge data"},
		{header: "x-mailgun-template-*", means: "template"},
		{header: "x-mailgun-drop-message", means: "sandbox"},
		{header: "x-mailgun-*", means: "an unknown option"},
	}},
	{"sparkpost", []rule{ // https://developers.sparkpost.com/api/smtp/
		{header: "x-msys-api", means: "options", parse: sparkpostJSON},
		{header: "x-msys-*", means: "an unknown option"},
	}},
	{"mailjet", []rule{ // https://dev.mailjet.com/smtp-relay/custom-headers/
		{header: "x-mailjet-campaign", means: "campaign", parse: oneTag},
		{header: "x-mj-customid", means: "client reference", parse: metaKey("custom_id")},
		{header: "x-mj-eventpayload", means: "metadata", parse: mailjetPayload},
		// QUIRK: the v3 API page gives 0, 1, 2 as default, off, on; over SMTP 0 is off and 1 is on.
		{header: "x-mailjet-trackopen", means: "tracking of opens", parse: trackOpens},
		{header: "x-mailjet-trackclick", means: "tracking of clicks", parse: trackClicks},
		{header: "x-mailjet-*", means: "an unknown option"},
		{header: "x-mj-*", means: "an unknown option"},
	}},
	{"brevo", []rule{ // https://developers.brevo.com/docs/smtp-integration
		{header: "x-mailin-tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-mailin-custom", means: "metadata", parse: brevoCustom},
		{header: "x-mailin-*", means: "metadata", repeat: merge, parse: metaSuffix},
		{header: "x-sib-api", means: "options", parse: brevoJSON},
		{header: "x-sib-sandbox", means: "sandbox"},
		{header: "idempotencykey", means: "idempotency key", quiet: true},
		{header: "templateid", means: "template"},
		{header: "params", means: "merge data"},
	}},
	{"amazonses", []rule{ // https://docs.aws.amazon.com/ses/latest/dg/header-fields.html
		{header: "x-ses-message-tags", means: "metadata", repeat: merge, parse: sesTags},
		{header: "x-ses-configuration-set", means: "configuration set"},
		{header: "x-ses-list-management-options", means: "unsubscribe group"},
		{header: "x-ses-tenant", means: "tenant"},
		{header: "x-ses-tenant-name", means: "tenant"},
		{header: "x-ses-*", means: "an unknown option"},
	}},
	{"smtpeter", []rule{ // https://www.smtpeter.com/en/documentation/smtp-api
		{header: "x-smtpeter-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-smtpeter-trackopens", means: "tracking of opens", parse: trackOpens},
		{header: "x-smtpeter-trackclicks", means: "tracking of clicks", parse: trackClicks},
		{header: "x-smtpeter-*", means: "an unknown option"},
	}},
	{"maileroo", []rule{ // https://maileroo.com/docs
		{header: "x-maileroo-track", means: "tracking", parse: trackBoth},
		{header: "x-tag-*", means: "metadata", repeat: merge, parse: metaSuffix},
		{header: "x-maileroo-tags", means: "metadata", parse: metaJSON},
		{header: "x-maileroo-ref-id", means: "client reference", parse: metaKey("reference_id")},
		{header: "x-maileroo-*", means: "an unknown option"},
	}},
	{"mailersend", []rule{ // https://developers.mailersend.com/smtp-relay.html
		{header: "x-mailersend-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-mailersend-*", means: "an unknown option"},
	}},
	{"mailpace", []rule{ // https://docs.mailpace.com/integrations/smtp
		{header: "x-mailpace-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-ohmysmtp-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-oms-tags", means: "tags", repeat: merge, parse: tagList},
		{header: "x-list-unsubscribe", means: "list-unsubscribe", parse: listUnsub},
		{header: "x-mailpace-*", means: "an unknown option"},
		{header: "x-ohmysmtp-*", means: "an unknown option"},
	}},
	{"mailtrap", []rule{ // https://docs.mailtrap.io/email-api-smtp/setup/smtp-integration
		{header: "x-mt-category", means: "tags", parse: oneTag},
		{header: "x-mt-custom-variables", means: "metadata", parse: metaJSON},
		{header: "x-mt-*", means: "an unknown option"},
	}},
	{"postal", []rule{ // https://docs.postalserver.io/
		{header: "x-postal-tag", means: "tags", repeat: last, parse: oneTag},
		{header: "x-amp", means: "tracking", parse: postalAMP},
		{header: "x-postal-msgid", means: "the server's own id", quiet: true},
		{header: "x-postal-*", means: "an unknown option"},
	}},
	{"resend", []rule{ // https://resend.com/docs/dashboard/emails/idempotency-keys
		{header: "resend-idempotency-key", means: "idempotency key", quiet: true},
	}},
	{"unisendergo", []rule{ // https://godocs.unisender.ru/smtp-api
		{header: "x-unisender-go", means: "options", parse: unisenderJSON},
		{header: "x-unisender-go-*", means: "an unknown option"},
		{header: "x-unione", means: "options", parse: unisenderJSON},
		{header: "x-unione-*", means: "an unknown option"},
	}},
	{"socketlabs", []rule{ // https://help.socketlabs.com/
		{header: "x-xsmessageid", means: "client reference", parse: metaKey("message_id")},
		{header: "x-xsmailingid", means: "campaign", parse: oneTag},
	}},
	{"elasticemail", []rule{ // https://elasticemail.com/resources/api/custom-headers
		{header: "trackclicks", means: "tracking of clicks", parse: trackClicks},
		{header: "trackopens", means: "tracking of opens", parse: trackOpens},
		{header: "x-postback", means: "metadata", parse: metaKey("postback")},
		{header: "postback", means: "metadata"},
		{header: "channel", means: "campaign"},
		{header: "istransactional", means: "transactional"},
		{header: "poolname", means: "ip pool"},
	}},
	{"infobip", []rule{ // symfony/infobip-mailer
		{header: "x-infobip-track", means: "tracking", parse: trackBoth},
		{header: "x-infobip-trackopens", means: "tracking of opens", parse: trackOpens},
		{header: "x-infobip-trackclicks", means: "tracking of clicks", parse: trackClicks},
		{header: "x-infobip-messageid", means: "client reference", parse: metaKey("message_id")},
		{header: "x-infobip-*", means: "an unknown option"},
	}},
	{"reachmail", []rule{
		{header: "x-rm-campaign", means: "campaign", parse: oneTag},
		{header: "x-rm-profile", means: "message stream"},
		{header: "x-tracking", means: "tracking of clicks", parse: trackClicks},
	}},
	{"sendmachine", []rule{
		{header: "x-sm-campaign", means: "campaign", parse: oneTag},
		{header: "x-sm-tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-sm-*", means: "an unknown option"},
	}},
	{"wooxy", []rule{
		{header: "x-tags", means: "tags", parse: wooxyTags},
		{header: "x-message-priority", means: "priority"},
		{header: "x-ignore-hard", means: "suppression lists not asked"},
		{header: "x-ignore-complaint", means: "suppression lists not asked"},
		{header: "x-ignore-unsubscribe", means: "suppression lists not asked"},
		{header: "x-ignore-blacklist", means: "suppression lists not asked"},
	}},
	{"contactlab", []rule{{header: "x-clab-smartrelay-*", means: "an unknown option"}}},
	{"unosend", []rule{
		{header: "x-unosend-track-opens", means: "tracking of opens", parse: trackOpens},
		{header: "x-unosend-*", means: "an unknown option"},
	}},
	{"emailit", []rule{{header: "x-emailit-*", means: "the service's own mark", quiet: true}}},
	{"smtp2go", []rule{{header: "x-smtp2go-*", means: "an unknown option"}}},
	symfony,
}

// mandrillTrack is an allow-list: what is not named is off.
func mandrillTrack(w *wish, _, value string) error {
	opens, clicks := Off, Off
	for _, v := range strings.Split(unquote(value), ",") {
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "opens":
			opens = On
		case "clicks", "clicks_all", "clicks_htmlonly", "clicks_textonly":
			clicks = On
		case "none", "":
		default:
			return errors.New("not opens, clicks, clicks_all, clicks_htmlonly, clicks_textonly or none")
		}
	}
	return errors.Join(w.setTrack(false, opens), w.setTrack(true, clicks))
}

func postalAMP(w *wish, _, value string) error {
	if !strings.EqualFold(strings.TrimSpace(value), "skip") {
		return errors.New("not skip")
	}
	return errors.Join(w.setTrack(false, Off), w.setTrack(true, Off))
}

func listUnsub(w *wish, _, value string) error {
	if !w.settle("list-unsubscribe") {
		return errTaken
	}
	w.listUnsubscribe = strings.TrimSpace(value)
	return nil
}

// sesTags reads "k=v, k2=v2".
func sesTags(w *wish, _, value string) error {
	for _, part := range strings.Split(unquote(value), ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		k, v, ok := strings.Cut(part, "=")
		if !ok {
			return errors.New("not of the form name=value, name=value")
		}
		w.addMeta(k, strings.TrimSpace(v))
	}
	return nil
}

// brevoCustom splits "k1:v1|k2:v2" when all of it has that form, else keeps the text whole.
func brevoCustom(w *wish, _, value string) error {
	parts := strings.Split(value, "|")
	for _, p := range parts {
		if k, _, ok := strings.Cut(p, ":"); !ok || strings.TrimSpace(k) == "" {
			w.addMeta("custom", value)
			return nil
		}
	}
	for _, p := range parts {
		k, v, _ := strings.Cut(p, ":")
		w.addMeta(k, strings.TrimSpace(v))
	}
	return nil
}
