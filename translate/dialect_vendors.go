package translate

import (
	"encoding/json"
	"errors"
	"strings"
	"time"
)

const (
	yesNo = "yes or no"
	bools = "true or false"
)

// dialects are all tables. What has no neutral concept has no parser: it is stripped, and kept for an account
// of the same vendor.
var dialects = []dialect{
	own,
	{"mandrill", "https://mailchimp.com/developer/transactional/docs/smtp-integration/", []rule{
		{header: "x-mc-tags", value: "comma list", means: "tags", repeat: merge, parse: tagList},
		{header: "x-mc-track", value: "comma list of opens, clicks (clicks_all), clicks_htmlonly, clicks_textonly, none; what is not named is off", means: "track.*", parse: mandrillTrack},
		{header: "x-mc-metadata", value: "JSON object of scalars", means: "metadata", parse: metaJSON},
		{header: "x-mc-sendat", value: "YYYY-MM-DD HH:MM:SS, UTC", means: "send_at", parse: sendAtLayout(time.DateTime)},
		{header: "x-mc-autotext", value: yesNo, means: "autotext", parse: autoText},
		{header: "x-mc-autohtml", value: yesNo, means: "autohtml", parse: autoHTML},
		{header: "x-mc-template", value: "`name` or `name\\|block`", means: "template.id, template.block", permit: PermitTemplate, parse: mandrillTemplate},
		{header: "x-mc-mergevars", value: "JSON object; with `_rcpt` for that recipient", means: "merge.global, merge.rcpt", repeat: merge, parse: mandrillMergeVars},
		{header: "x-mc-mergelanguage", value: "mailchimp or handlebars", means: "template.language", parse: mandrillLanguage},
		{header: "x-mc-googleanalytics", value: "comma list of domains", means: "analytics", parse: analytics("domains")},
		{header: "x-mc-googleanalyticscampaign", value: "text", means: "analytics", parse: analytics("campaign")},
		{header: "x-mc-urlstripqs", value: yesNo, means: "stripped query strings"},
		{header: "x-mc-preserverecipients", value: yesNo, means: "expose_rcpts", parse: exposeRcpts},
		{header: "x-mc-inlinecss", value: yesNo, means: "inline_css", parse: inlineCSS},
		{header: "x-mc-trackingdomain", value: "domain", means: "tracking_domain", parse: domainOnly(trackDomain)},
		{header: "x-mc-signingdomain", value: "domain", means: "dkim_domain", parse: domainOnly(dkimDomain)},
		{header: "x-mc-subaccount", value: "id", means: "subaccount", permit: PermitSubaccount, parse: subaccount},
		{header: "x-mc-viewcontentlink", value: yesNo, means: "view_link", parse: viewLink},
		{header: "x-mc-bccaddress", value: "one address", means: "extra_rcpt bcc", permit: PermitRecipients, parse: extraBcc},
		{header: "x-mc-important", value: yesNo, means: "priority", parse: priorityBool},
		{header: "x-mc-ippool", value: "text", means: "ip_pool", parse: ipPool},
		{header: "x-mc-returnpathdomain", value: "domain", means: "return_path_domain", permit: PermitSender, parse: domainOnly(returnDomain)},
		{header: "x-mc-*", means: "an unknown option"},
	}},
	{"postmark", "https://postmarkapp.com/developer/user-guide/send-email-with-smtp", []rule{
		{header: "x-pm-tag", value: "one tag", means: "tags", parse: oneTag},
		{header: "x-pm-metadata-*", value: "text; the key is the rest of the name", means: "metadata", parse: metaSuffix},
		{header: "x-pm-trackopens", value: bools, means: "track.opens", parse: trackOpens},
		{header: "x-pm-track-opens", value: bools, means: "track.opens", parse: trackOpens},
		{header: "x-pm-tracklinks", value: "None, HtmlAndText, HtmlOnly or TextOnly", means: "track.clicks", parse: trackClicks},
		{header: "x-pm-track-links", value: "None, HtmlAndText, HtmlOnly or TextOnly", means: "track.clicks", parse: trackClicks},
		{header: "x-pm-message-stream", value: "stream id", means: "stream", permit: PermitSubaccount, parse: stream},
		{header: "x-pm-keepid", value: "true", means: "kept Message-ID", quiet: true},
		{header: "x-pm-*", means: "an unknown option"},
	}},
	{"sendgrid", "https://www.twilio.com/docs/sendgrid/for-developers/sending-email/building-an-x-smtpapi-header", []rule{
		{header: "x-smtpapi", value: "JSON object", means: "see below", parse: sendgridJSON},
		{header: "x-sendgrid-suppressiongroup", value: "JSON object", means: "see below", keys: []key{
			{name: "group_id", means: "unsub_group", parse: scalar(unsubGroup)},
			{name: "groups_to_display", means: "shown unsubscribe groups"},
		}},
	}},
	{"mailgun", "https://documentation.mailgun.com/docs/mailgun/user-manual/sending-messages/pass-sending-options", []rule{
		{header: "x-mailgun-tag", value: "one tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-mailgun-variables", value: "JSON object", means: "metadata; with a template also merge.global", repeat: merge, parse: mailgunVariables},
		{header: "x-mailgun-recipient-variables", value: "JSON object {address: {name: value}}", means: "merge.rcpt, expose_rcpts off", parse: mergeRcptJSON},
		{header: "x-mailgun-template-name", value: "text", means: "template.id", permit: PermitTemplate, parse: templateID},
		{header: "x-mailgun-template-version", value: "text", means: "template.version", parse: version},
		{header: "x-mailgun-template-variables", value: "JSON object", means: "merge.global of the template", parse: mailgunTemplateVariables},
		{header: "x-mailgun-track", value: yesNo, means: "track.*", parse: trackBoth, late: true},
		{header: "x-mailgun-track-opens", value: yesNo, means: "track.opens", parse: trackOpens},
		{header: "x-mailgun-track-clicks", value: "yes, no or htmlonly", means: "track.clicks", parse: trackClicks},
		{header: "x-mailgun-track-pixel-location-top", value: yesNo, means: "place of the tracking pixel"},
		{header: "x-mailgun-drop-message", value: "yes", means: "sandbox", parse: sandboxBool},
		{header: "x-mailgun-dkim", value: yesNo, means: "DKIM signature"},
		{header: "x-mailgun-secondary-dkim", value: "`domain,selector`", means: "dkim_domain", parse: mailgunDKIM(",")},
		{header: "x-mailgun-secondary-dkim-public", value: "`domain/selector`", means: "dkim_domain", parse: mailgunDKIM("/")},
		{header: "x-mailgun-deliver-by", value: "RFC 2822 date", means: "send_at", parse: sendAtLayout("Mon, 2 Jan 2006 15:04:05 -0700", "Mon, 2 Jan 2006 15:04:05 MST", "2 Jan 2006 15:04:05 -0700", "2 Jan 2006 15:04:05 MST")},
		{header: "x-mailgun-deliver-within", value: "`1h30m`, 5m to 24h", means: "expires_at", parse: expiresWithin(5*time.Minute, 24*time.Hour)},
		{header: "x-mailgun-delivery-time-optimize-period", value: "24h to 72h", means: "send_window", parse: sendWindow},
		{header: "x-mailgun-time-zone-localize", value: "HH:mm or hh:mmaa", means: "send_window", parse: sendWindow},
		{header: "x-mailgun-require-tls", value: yesNo, means: "require_tls", parse: requireTLS},
		{header: "x-mailgun-skip-verification", value: yesNo, means: "certificate not verified"},
		{header: "x-mailgun-sending-ip", value: "address", means: "ip", parse: ip},
		{header: "x-mailgun-sending-ip-pool", value: "id", means: "ip_pool", parse: ipPool},
		{header: "x-mailgun-campaign-id", value: "text", means: "campaign", parse: campaign},
		{header: "x-mailgun-*", means: "an unknown option"},
	}},
	{"sparkpost", "https://developers.sparkpost.com/api/smtp/", []rule{
		{header: "x-msys-api", value: "JSON object", means: "see below", keys: []key{
			{name: "campaign_id", means: "campaign", parse: scalar(campaign)},
			{name: "metadata", means: "metadata", parse: metaMember},
			{name: "tags", means: "tags", parse: tagsMember},
			{name: "cc", means: "extra_rcpt cc", permit: PermitRecipients, parse: sparkpostRcpts("cc")},
			{name: "bcc", means: "extra_rcpt bcc", permit: PermitRecipients, parse: sparkpostRcpts("bcc")},
			{name: "archive", means: "extra_rcpt archive", permit: PermitRecipients, parse: sparkpostRcpts("archive")},
			{name: "options", sub: []key{
				{name: "open_tracking", means: "track.opens", parse: scalar(trackOpens)},
				{name: "click_tracking", means: "track.clicks", parse: scalar(trackClicks)},
				{name: "transactional", means: "transactional", parse: scalar(transactional)},
				{name: "skip_suppression", means: "skip_suppression", permit: PermitSuppression, parse: scalar(skipSuppression)},
				{name: "ip_pool", means: "ip_pool", parse: scalar(ipPool)},
				{name: "inline_css", means: "inline_css", parse: scalar(inlineCSS)},
				{name: "dkim_key", means: "DKIM key"},
			}},
			{name: "substitution_data", means: "merge data, which the vendor ignores over SMTP", parse: ignoredMember},
		}},
		{header: "x-msys-subaccount", value: "id", means: "subaccount", permit: PermitSubaccount, parse: subaccount},
		{header: "x-msys-*", means: "an unknown option"},
	}},
	{"mailjet", "https://dev.mailjet.com/smtp-relay/custom-headers/", []rule{
		{header: "x-mailjet-campaign", value: "text", means: "campaign", parse: campaign},
		{header: "x-mailjet-deduplicatecampaign", value: yesNo, means: "de-duplicated campaign"},
		{header: "x-mj-customid", value: "text", means: "client_ref", parse: clientRef},
		{header: "x-mj-eventpayload", value: "text or JSON object", means: "metadata", parse: mailjetPayload},
		// QUIRK: the v3 API page gives 0, 1, 2 as default, off, on; over SMTP 0 is off and 1 is on.
		{header: "x-mailjet-trackopen", value: "0 off, 1 on", means: "track.opens", parse: trackOpens},
		{header: "x-mailjet-trackclick", value: "0 off, 1 on", means: "track.clicks", parse: trackClicks},
		{header: "x-mailjet-prio", value: "0 to 3, 2 is the default", means: "priority", parse: mailjetPrio},
		{header: "x-mj-templateid", value: "number", means: "template.id", permit: PermitTemplate, parse: templateID},
		{header: "x-mj-templatelanguage", value: "1", means: "merge enabled", parse: mailjetLanguage},
		{header: "x-mj-vars", value: "JSON object", means: "merge.global", parse: mergeJSON},
		{header: "x-mj-templateerrorreporting", value: "address", means: "reports of template errors"},
		{header: "x-mj-templateerrordeliver", value: "deliver or 0", means: "delivery despite template errors"},
		{header: "x-mj-monitoringcategory", value: "text", means: "monitoring category"},
		{header: "x-mailjet-*", means: "an unknown option"},
		{header: "x-mj-*", means: "an unknown option"},
	}},
	{"brevo", "https://developers.brevo.com/docs/smtp-integration", []rule{
		{header: "x-mailin-tag", value: "one tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-mailin-custom", value: "`k1:v1\\|k2:v2` or text", means: "metadata", parse: brevoCustom},
		{header: "x-mailin-*", value: "text; the key is the rest of the name", means: "metadata", repeat: merge, parse: metaSuffix},
		{header: "x-sib-api", value: "JSON object", means: "see below", keys: []key{
			{name: "templateId", means: "template.id", permit: PermitTemplate, parse: scalar(templateID)},
			{name: "params", means: "merge.global", parse: mergeMember},
			{name: "tags", means: "tags", parse: tagsMember},
		}},
		{header: "x-sib-sandbox", value: "drop", means: "sandbox", parse: brevoSandbox},
		{header: "idempotencykey", value: "text", means: "idempotency_key", parse: idempotency},
		{header: "templateid", value: "number", means: "template.id", permit: PermitTemplate, parse: templateID},
		{header: "params", value: "JSON object", means: "merge.global", parse: mergeJSON},
	}},
	{"amazonses", "https://docs.aws.amazon.com/ses/latest/dg/header-fields.html", []rule{
		{header: "x-ses-message-tags", value: "`k=v, k2=v2`", means: "metadata", repeat: merge, parse: sesTags},
		{header: "x-ses-configuration-set", value: "name", means: "config_set", parse: configSet},
		{header: "x-ses-list-management-options", value: "`list; topic=name`", means: "unsub_group", parse: unsubGroup},
		{header: "x-ses-tenant", value: "name", means: "tenant", permit: PermitSubaccount, parse: tenant},
		{header: "x-ses-tenant-name", value: "name", means: "tenant", permit: PermitSubaccount, parse: tenant},
		{header: "x-ses-source-arn", value: "ARN", means: "authorised source", permit: PermitSubaccount, parse: guardedRaw(PermitSubaccount)},
		{header: "x-ses-from-arn", value: "ARN", means: "authorised From", permit: PermitSubaccount, parse: guardedRaw(PermitSubaccount)},
		{header: "x-ses-return-path-arn", value: "ARN", means: "authorised return path", permit: PermitSender, parse: guardedRaw(PermitSender)},
		{header: "x-ses-*", means: "an unknown option"},
	}},
	{"smtpeter", "https://www.smtpeter.com/en/documentation/smtp-api", []rule{
		{header: "x-smtpeter-tags", value: "comma list", means: "tags", repeat: merge, parse: tagList},
		{header: "x-smtpeter-trackopens", value: bools, means: "track.opens", parse: trackOpens},
		{header: "x-smtpeter-trackclicks", value: bools, means: "track.clicks", parse: trackClicks},
		{header: "x-smtpeter-trackbounces", value: bools, means: "bounces handled by the service"},
		{header: "x-smtpeter-preventscam", value: bools, means: "scam prevention"},
		{header: "x-smtpeter-inlinecss", value: bools, means: "inline_css", parse: inlineCSS},
		{header: "x-smtpeter-images", value: "hosted", means: "hosted images"},
		{header: "x-smtpeter-*", means: "an unknown option"},
	}},
	{"maileroo", "https://maileroo.com/docs/smtp-relay", []rule{
		{header: "x-maileroo-track", value: yesNo, means: "track.*", parse: trackBoth, late: true},
		{header: "x-tag-*", value: "text; the key is the rest of the name", means: "metadata", repeat: merge, parse: metaSuffix},
		{header: "x-maileroo-tags", value: "JSON object", means: "metadata", parse: metaJSON},
		{header: "x-maileroo-ref-id", value: "24 hexadecimal digits", means: "client_ref", parse: clientRef},
		{header: "x-maileroo-*", means: "an unknown option"},
	}},
	{"mailersend", "https://developers.mailersend.com/smtp-relay.html", []rule{
		{header: "x-mailersend-tags", value: "comma list, also in quotes", means: "tags", repeat: merge, parse: tagList},
		{header: "x-mailersend-*", means: "an unknown option"},
	}},
	{"mailpace", "https://docs.mailpace.com/integrations/smtp", []rule{
		{header: "x-mailpace-tags", value: "comma list", means: "tags", repeat: merge, parse: tagList},
		{header: "x-ohmysmtp-tags", value: "comma list", means: "tags", repeat: merge, parse: tagList},
		{header: "x-oms-tags", value: "comma list", means: "tags", repeat: merge, parse: tagList},
		{header: "x-list-unsubscribe", value: "`<uri>, <mailto:>`", means: "list_unsubscribe", parse: listUnsub},
		{header: "x-mailpace-*", means: "an unknown option"},
		{header: "x-ohmysmtp-*", means: "an unknown option"},
	}},
	{"mailtrap", "https://docs.mailtrap.io/email-api-smtp/setup/smtp-integration", []rule{
		{header: "x-mt-category", value: "one tag", means: "tags", parse: oneTag},
		{header: "x-mt-custom-variables", value: "JSON object of at most 1000 bytes", means: "metadata", parse: mailtrapVariables},
		{header: "x-mt-*", means: "an unknown option"},
	}},
	{"postal", "https://docs.postalserver.io/", []rule{
		{header: "x-postal-tag", value: "one tag", means: "tags", repeat: last, parse: oneTag},
		{header: "x-amp", value: "skip", means: "track.* off", parse: postalAMP},
		{header: "x-postal-msgid", value: "text", means: "the server's own id", quiet: true},
		{header: "x-postal-*", means: "an unknown option"},
	}},
	{"resend", "https://resend.com/docs/dashboard/emails/idempotency-keys", []rule{
		{header: "resend-idempotency-key", value: "text", means: "idempotency_key", parse: idempotency},
	}},
	{"unisendergo", "https://godocs.unisender.ru/smtp-api", []rule{
		{header: "x-unisender-go", value: "JSON object", means: "see below", keys: unisenderKeys},
		{header: "x-unisender-go-global-language", value: "text", means: "language of the unsubscribe text"},
		{header: "x-unisender-go-template-engine", value: "text", means: "template.language", parse: language},
		{header: "x-unisender-go-*", means: "an unknown option"},
		{header: "x-unione", value: "JSON object", means: "see below", keys: unisenderKeys},
		{header: "x-unione-global-language", value: "text", means: "language of the unsubscribe text"},
		{header: "x-unione-template-engine", value: "text", means: "template.language", parse: language},
		{header: "x-unione-*", means: "an unknown option"},
	}},
	{"socketlabs", "https://help.socketlabs.com/", []rule{
		{header: "x-xsmessageid", value: "text", means: "client_ref", parse: clientRef},
		{header: "x-xsmailingid", value: "text", means: "campaign", parse: campaign},
	}},
	{"elasticemail", "https://elasticemail.com/resources/api/custom-headers", []rule{
		{header: "trackclicks", value: bools, means: "track.clicks", parse: trackClicks},
		{header: "trackopens", value: bools, means: "track.opens", parse: trackOpens},
		{header: "x-postback", value: "text", means: "metadata", parse: metaKey("postback")},
		{header: "postback", value: "text", means: "metadata", parse: metaKey("postback")},
		{header: "channel", value: "text", means: "campaign", parse: campaign},
		{header: "istransactional", value: bools, means: "transactional", parse: transactional},
		{header: "poolname", value: "text", means: "ip_pool", parse: ipPool},
	}},
	{"infobip", "https://github.com/symfony/infobip-mailer", []rule{
		{header: "x-infobip-track", value: bools, means: "track.*", parse: trackBoth, late: true},
		{header: "x-infobip-trackopens", value: bools, means: "track.opens", parse: trackOpens},
		{header: "x-infobip-trackclicks", value: bools, means: "track.clicks", parse: trackClicks},
		{header: "x-infobip-messageid", value: "text", means: "client_ref", parse: clientRef},
		{header: "x-infobip-intermediatereport", value: bools, means: "intermediate reports"},
		{header: "x-infobip-notifyurl", value: "URL", means: "where events go", permit: PermitNotify, parse: guardedRaw(PermitNotify)},
		{header: "x-infobip-notifycontenttype", value: "text", means: "format of events"},
		{header: "x-infobip-trackingurl", value: "URL", means: "where tracking goes", permit: PermitNotify, parse: guardedRaw(PermitNotify)},
		{header: "x-infobip-*", means: "an unknown option"},
	}},
	{"reachmail", "", []rule{
		{header: "x-rm-campaign", value: "text", means: "campaign", parse: campaign},
		{header: "x-rm-profile", value: "text", means: "stream", permit: PermitSubaccount, parse: stream},
		{header: "x-tracking", value: "1", means: "track.clicks", parse: trackClicks},
	}},
	{"sendmachine", "", []rule{
		{header: "x-sm-campaign", value: "text", means: "campaign", parse: campaign},
		{header: "x-sm-tag", value: "one tag", means: "tags", repeat: merge, parse: oneTag},
		{header: "x-sm-*", means: "an unknown option"},
	}},
	{"wooxy", "", []rule{
		{header: "x-tags", value: "JSON array, quotes also escaped", means: "tags", parse: wooxyTags},
		{header: "x-message-priority", value: "1 to 5", means: "the vendor's own priority"},
		{header: "x-ignore-hard", value: "true", means: "skip_suppression", permit: PermitSuppression, parse: skipSuppression},
		{header: "x-ignore-complaint", value: "true", means: "skip_suppression", permit: PermitSuppression, parse: skipSuppression},
		{header: "x-ignore-unsubscribe", value: "true", means: "skip_suppression", permit: PermitSuppression, parse: skipSuppression},
		{header: "x-ignore-blacklist", value: "true", means: "skip_suppression", permit: PermitSuppression, parse: skipSuppression},
	}},
	{"contactlab", "", []rule{
		{header: "x-clab-smartrelay-deliverylabel", value: "text", means: "the vendor's own label"},
		{header: "x-clab-smartrelay-externaldesc", value: "text", means: "the vendor's own description"},
		{header: "x-clab-smartrelay-newdeliverytype", value: "text", means: "the vendor's own delivery type"},
		{header: "x-clab-smartrelay-trackingdomain", value: "domain", means: "the vendor's own tracking domain"},
		{header: "x-clab-smartrelay-trackingdomainlink", value: "domain", means: "the vendor's own tracking domain"},
		{header: "x-clab-smartrelay-*", means: "an unknown option"},
	}},
	{"unosend", "", []rule{
		{header: "x-unosend-track-opens", value: "true or 1", means: "track.opens", parse: trackOpens},
		{header: "x-unosend-*", means: "an unknown option"},
	}},
	{"emailit", "", []rule{{header: "x-emailit-*", means: "the service's own mark", quiet: true}}},
	{"smtp2go", "https://support.smtp2go.com/", []rule{{header: "x-smtp2go-*", means: "an unknown option"}}},
	symfony,
}

// sendgridKeys are the members of X-SMTPAPI. sub and section are read together with to, after the others.
var sendgridKeys = []key{
	{name: "to", means: "extra_rcpt to, expose_rcpts off; in place of RCPT TO with the permission replace-recipients", permit: PermitRecipients, parse: sendgridTo},
	{name: "sub", means: "merge.subst per recipient", parse: ignoredHere},
	{name: "section", means: "merge.subst, expanded in sub", parse: ignoredHere},
	{name: "category", means: "tags", parse: tagsMember},
	{name: "unique_args", means: "metadata", parse: metaMember},
	{name: "send_at", means: "send_at", parse: scalar(unixSendAt)},
	{name: "send_each_at", means: "a time for each recipient"},
	{name: "batch_id", means: "an id for cancelling"},
	{name: "asm_group_id", means: "unsub_group", parse: scalar(unsubGroup)},
	{name: "asm_groups_to_display", means: "shown unsubscribe groups"},
	{name: "asm", sub: []key{
		{name: "group_id", means: "unsub_group", parse: scalar(unsubGroup)},
		{name: "groups_to_display", means: "shown unsubscribe groups"},
	}},
	{name: "ip_pool", means: "ip_pool", parse: scalar(ipPool)},
	{name: "filters", sub: []key{
		{name: "opentrack", sub: settings(
			key{name: "enable", means: "track.opens", parse: scalar(trackOpens)},
			key{name: "replace", means: "place of the tracking pixel"},
		)},
		{name: "clicktrack", sub: settings(
			key{name: "enable", means: "track.clicks", parse: scalar(trackClicks)},
			key{name: "enable_text", means: "track.clicks (html when off)", parse: scalar(clickText)},
		)},
		{name: "ganalytics", sub: switched(
			key{name: "utm_source", means: "analytics", parse: scalar(analytics("utm_source"))},
			key{name: "utm_medium", means: "analytics", parse: scalar(analytics("utm_medium"))},
			key{name: "utm_term", means: "analytics", parse: scalar(analytics("utm_term"))},
			key{name: "utm_content", means: "analytics", parse: scalar(analytics("utm_content"))},
			key{name: "utm_campaign", means: "analytics", parse: scalar(analytics("utm_campaign"))},
		)},
		{name: "dkim", sub: settings(
			key{name: "domain", means: "dkim_domain", parse: scalar(domainOnly(dkimDomain))},
			key{name: "use_from", means: "DKIM by From"},
		)},
		{name: "bypass_list_management", sub: settings(
			key{name: "enable", means: "skip_suppression", permit: PermitSuppression, parse: scalar(skipSuppression)},
		)},
		{name: "bcc", sub: switched(
			key{name: "email", means: "extra_rcpt bcc", permit: PermitRecipients, parse: scalar(sendgridBcc)},
		)},
		{name: "templates", sub: switched(
			key{name: "template_id", means: "template.id", permit: PermitTemplate, parse: scalar(templateID)},
		)},
		{name: "subscriptiontrack", means: "added unsubscribe links"},
		{name: "footer", means: "footer"},
		{name: "template", means: "wrapper"},
		{name: "spamcheck", means: "spam check"},
	}},
}

var unisenderKeys = []key{
	{name: "template_id", means: "template.id", permit: PermitTemplate, parse: scalar(templateID)},
	{name: "global_substitutions", means: "merge.global", parse: mergeMember},
	{name: "track_links", means: "track.clicks", parse: scalar(trackClicks)},
	{name: "track_read", means: "track.opens", parse: scalar(trackOpens)},
	{name: "tags", means: "tags", parse: tagsMember},
	{name: "metadata", means: "metadata", parse: metaMember},
	{name: "global_language", means: "language of the unsubscribe text"},
	{name: "skip_unsubscribe", means: "no unsubscribe link"},
}

// ignoredHere is a member that another one reads.
func ignoredHere(*wish, json.RawMessage) error { return nil }

// ignoredMember is a member without effect at its own vendor.
func ignoredMember(w *wish, _ json.RawMessage) error {
	w.note("substitution_data has no effect over SMTP")
	return nil
}

// guardedRaw keeps a value without neutral concept, if that is permitted.
func guardedRaw(class string) parser {
	return func(w *wish, _, value string) error {
		if w.allowed(class) {
			w.keepRaw("", w.cur.rule.means, value, false)
		}
		return nil
	}
}

// domainOnly lets nothing but a domain through.
func domainOnly(next parser) parser {
	return func(w *wish, suffix, value string) error {
		if value = strings.TrimSpace(value); validDomainName(value) != nil {
			return errors.New("not a domain")
		}
		return next(w, suffix, value)
	}
}

func analytics(name string) parser {
	return func(w *wish, _, value string) error {
		w.addAnalytics(name, value)
		return nil
	}
}

// mandrillTrack is an allow-list: what is not named is off.
func mandrillTrack(w *wish, _, value string) error {
	opens, clicks, in := Off, Off, AnyBody
	for _, v := range strings.Split(unquote(value), ",") {
		switch strings.ToLower(strings.TrimSpace(v)) {
		case "opens":
			opens = On
		case "clicks", "clicks_all":
			clicks = On
		case "clicks_htmlonly":
			clicks, in = On, HTMLBody
		case "clicks_textonly":
			clicks, in = On, TextBody
		case "none", "":
		default:
			return errors.New("not opens, clicks, clicks_all, clicks_htmlonly, clicks_textonly or none")
		}
	}
	w.setTrack(false, opens)
	w.setClicks(clicks, in)
	return nil
}

// mandrillTemplate reads "name" or "name|block"; the block is "main" when none is named.
func mandrillTemplate(w *wish, _, value string) error {
	id, block, _ := strings.Cut(value, "|")
	if strings.TrimSpace(id) == "" {
		return errors.New("no template name")
	}
	if block = strings.TrimSpace(block); block == "" {
		block = "main"
	}
	open := !w.used["template"]
	if w.setTemplate(id); open && w.Template.ID != "" {
		w.Template.Block = block
	}
	return nil
}

func mandrillLanguage(w *wish, suffix, value string) error {
	value = strings.ToLower(strings.TrimSpace(value))
	if value != "mailchimp" && value != "handlebars" {
		return errors.New("not mailchimp or handlebars")
	}
	return language(w, suffix, value)
}

// mailgunDKIM takes the domain of a domain and a selector; the selector is the vendor's own matter.
func mailgunDKIM(sep string) parser {
	return func(w *wish, suffix, value string) error {
		domain, _, ok := strings.Cut(value, sep)
		if !ok {
			return errors.New("not a domain and a selector")
		}
		return domainOnly(dkimDomain)(w, suffix, domain)
	}
}

// mailjetPrio has 2 as default.
func mailjetPrio(w *wish, _, value string) error {
	switch strings.TrimSpace(value) {
	case "0", "1":
		once(w, "priority", &w.Priority, Low)
	case "2":
		once(w, "priority", &w.Priority, Normal)
	case "3":
		once(w, "priority", &w.Priority, High)
	default:
		return errors.New("not 0 to 3")
	}
	return nil
}

// mailjetLanguage makes the body a template.
func mailjetLanguage(w *wish, _, value string) error {
	s, err := parseBool(value)
	if err != nil {
		return err
	}
	if s == On {
		w.Merge.InBody = true
		w.mergeFrom()
	}
	return nil
}

func brevoSandbox(w *wish, _, value string) error {
	if !strings.EqualFold(strings.TrimSpace(value), "drop") {
		return errors.New("not drop")
	}
	w.Sandbox = true
	return nil
}

// maxMailtrapVariables is the vendor's limit, above which it ignores the header.
const maxMailtrapVariables = 1000

// mailtrapVariables takes the first item of a list, as the vendor does.
func mailtrapVariables(w *wish, _, value string) error {
	if len(value) > maxMailtrapVariables {
		return errors.New("longer than 1000 bytes")
	}
	o, err := decodeObject(value)
	if err != nil {
		return err
	}
	for k, raw := range o {
		var list []json.RawMessage
		if json.Unmarshal(raw, &list) == nil && len(list) > 0 {
			o[k] = list[0]
		}
	}
	addMetaObject(w, o)
	return nil
}

func postalAMP(w *wish, _, value string) error {
	if !strings.EqualFold(strings.TrimSpace(value), "skip") {
		return errors.New("not skip")
	}
	w.setTrack(false, Off)
	w.setTrack(true, Off)
	return nil
}

func listUnsub(w *wish, _, value string) error {
	once(w, "list_unsubscribe", &w.listUnsubscribe, strings.TrimSpace(value))
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
