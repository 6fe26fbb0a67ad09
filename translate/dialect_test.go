package translate

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"smtpbridge/mime"
)

func show(o Options) string {
	var b strings.Builder
	put := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s=%s ", name, value)
		}
	}
	object := func(name string, v any, n int) {
		if n > 0 {
			j, err := json.Marshal(v)
			if err != nil {
				panic(err)
			}
			put(name, string(j))
		}
	}
	put("tags", strings.Join(o.Tags, "|"))
	for _, k := range slices.Sorted(maps.Keys(o.Metadata)) {
		fmt.Fprintf(&b, "%s=%s ", k, o.Metadata[k])
	}
	if o.TrackOpens != Default || o.TrackClicks != Default {
		fmt.Fprintf(&b, "opens=%s clicks=%s ", o.TrackOpens, o.TrackClicks)
	}
	if o.ClicksIn != AnyBody {
		put("in", o.ClicksIn.String())
	}
	if !o.SendAt.IsZero() {
		put("at", o.SendAt.Format(time.RFC3339))
	}
	put("ref", o.ClientRef)
	put("campaign", o.Campaign)
	put("template", o.Template.ID)
	put("version", o.Template.Version)
	put("block", o.Template.Block)
	put("language", o.Template.Language)
	object("merge", o.Merge.Global, len(o.Merge.Global))
	object("merge-rcpt", o.Merge.Rcpt, len(o.Merge.Rcpt))
	object("subst", o.Merge.Subst, len(o.Merge.Subst))
	object("subst-rcpt", o.Merge.RcptSubst, len(o.Merge.RcptSubst))
	if o.Merge.InBody {
		put("body", "template")
	}
	for i := range features {
		put(strings.ReplaceAll(features[i].name, " ", "-"), features[i].had(&o))
	}
	for _, k := range slices.Sorted(maps.Keys(o.Analytics)) {
		put("analytics."+k, o.Analytics[k])
	}
	put("sender", o.EnvelopeFrom)
	if o.Sandbox {
		put("sandbox", "yes")
	}
	for _, x := range o.ExtraRcpts {
		put("+"+x.Kind, x.Addr)
	}
	if o.ExposeRcpts != Default {
		put("expose", o.ExposeRcpts.String())
	}
	for _, d := range slices.Sorted(maps.Keys(o.Raw)) {
		for _, k := range slices.Sorted(maps.Keys(o.Raw[d])) {
			put("raw:"+k, o.Raw[d][k])
		}
	}
	return strings.TrimSpace(b.String())
}

type dialectCase struct {
	name   string
	fields []string
	want   string
	lost   int // what does not count: malformed, repeated, said already
}

// dialectCases have every row of the tables, with everything permitted. TestDialectCasesComplete keeps it so.
var dialectCases = []dialectCase{
	{"own", []string{"X-Smtpbridge-Tag", "a, b", "x-smtpbridge-tag", `"b,c"`, "X-Smtpbridge-Metadata-orderID", "7", "X-Smtpbridge-Track", "opens", "X-Smtpbridge-Send-At", "2027-01-02T03:04:05+01:00"}, "tags=a|b|c orderID=7 opens=on clicks=off at=2027-01-02T02:04:05Z", 0},
	{"own, bad values", []string{"X-Smtpbridge-Track", "perhaps", "X-Smtpbridge-Send-At", "tomorrow", "X-Smtpbridge-Metadata-", "v", "X-Smtpbridge-Nonsense", "1", "X-Smtpbridge-Priority", "7", "X-Smtpbridge-Bcc", "nobody", "X-Smtpbridge-Merge", "[]"}, "raw:x-smtpbridge-nonsense=1", 6},
	{"own track off", []string{"X-Smtpbridge-Track", "off"}, "opens=off clicks=off", 0},
	{"own template", []string{"X-Smtpbridge-Template", "welcome", "X-Smtpbridge-Template-Version", "2", "X-Smtpbridge-Template-Block", "main", "X-Smtpbridge-Template-Language", "handlebars", "X-Smtpbridge-Merge", `{"a":1,"b":[true,null]}`, "X-Smtpbridge-Merge-Recipients", `{"A@Example.COM":{"n":"x"}}`}, `template=welcome version=2 block=main language=handlebars merge={"a":1,"b":[true,null]} merge-rcpt={"A@example.com":{"n":"x"}} expose=off`, 0},
	{"own account options", []string{"X-Smtpbridge-Client-Ref", "r1", "X-Smtpbridge-Campaign", "c", "X-Smtpbridge-Expires-At", "2027-01-02T03:04:05Z", "X-Smtpbridge-Ip-Pool", "p", "X-Smtpbridge-Subaccount", "s", "X-Smtpbridge-Stream", "st", "X-Smtpbridge-Tenant", "t", "X-Smtpbridge-Return-Path-Domain", "bounce.example.com"}, "ref=r1 campaign=c ip-pool=p subaccount=s stream=st tenant=t return-path-domain=bounce.example.com expiry=2027-01-02T03:04:05Z", 0},
	{"own, the rest", []string{"X-Smtpbridge-Bcc", "Archive <x@example.com>", "X-Smtpbridge-Batch", "yes", "X-Smtpbridge-Envelope-Sender", "b@example.com", "X-Smtpbridge-Skip-Suppression", "yes", "X-Smtpbridge-Unsubscribe-Group", "7", "X-Smtpbridge-Sandbox", "yes", "X-Smtpbridge-Idempotency-Key", "k", "X-Smtpbridge-Priority", "High", "X-Smtpbridge-Auto-Text", "no", "X-Smtpbridge-Inline-Css", "yes"}, "unsubscribe-group=7 application's-idempotency-key=k generated-text-part=off inlined-style-sheets=on suppression-lists-not-asked=yes priority=high sender=b@example.com sandbox=yes +bcc=x@example.com expose=off", 0},
	{"mandrill", []string{"X-MC-Tags", "a,b", "X-MC-Tags", "c", "X-MC-Track", "opens", "X-MC-Metadata", `{"n":1,"s":"x","b":true}`, "X-MC-SendAt", "2027-01-02 03:04:05"}, "tags=a|b|c b=true n=1 s=x opens=on clicks=off at=2027-01-02T03:04:05Z", 0},
	{"own, members of a request", []string{"X-Smtpbridge-Extra-MailerSend", `{"settings":{"track_content":false},"n":1}`, "X-Smtpbridge-Extra-mailersend", `{"n":2}`, "X-Smtpbridge-Extra-", "{}", "X-Smtpbridge-Extra-mandrill", "[]"}, "", 3},
	{"mandrill none", []string{"X-MC-Track", "none"}, "opens=off clicks=off", 0},
	{"mandrill kinds of clicks", []string{"X-MC-Track", "opens,clicks_htmlonly"}, "opens=on clicks=on in=html only", 0},
	{"mandrill template", []string{"X-MC-Template", "welcome|body", "X-MC-MergeVars", `{"NAME":"x"}`, "X-MC-MergeVars", `{"_rcpt":"a@example.com","NAME":"y","N":10000000000000000001}`, "X-MC-MergeLanguage", "handlebars"}, `template=welcome block=body language=handlebars merge={"NAME":"x"} merge-rcpt={"a@example.com":{"N":10000000000000000001,"NAME":"y"}}`, 0},
	{"mandrill template, block by default", []string{"X-MC-Template", "welcome", "X-MC-MergeLanguage", "latin"}, "template=welcome block=main", 1},
	{"mandrill bodies", []string{"X-MC-Autotext", "y", "X-MC-AutoHtml", "n", "X-MC-InlineCSS", "on", "X-MC-ViewContentLink", "false", "X-MC-Important", "true", "X-MC-URLStripQS", "yes", "X-MC-Unheard-Of", "x"}, "generated-text-part=on generated-HTML-part=off inlined-style-sheets=on view-link=off priority=high raw:x-mc-unheard-of=x raw:x-mc-urlstripqs=yes", 0},
	{"mandrill account", []string{"X-MC-GoogleAnalytics", "example.com, example.org", "X-MC-GoogleAnalyticsCampaign", "c", "X-MC-TrackingDomain", "t.example.com", "X-MC-SigningDomain", "example.com", "X-MC-Subaccount", "s", "X-MC-BccAddress", "x@example.com", "X-MC-IpPool", "p", "X-MC-ReturnPathDomain", "r.example.com", "X-MC-PreserveRecipients", "false"}, "ip-pool=p subaccount=s return-path-domain=r.example.com dkim-domain=example.com tracking-domain=t.example.com link-analytics=2 values analytics.campaign=c analytics.domains=example.com, example.org +bcc=x@example.com expose=off", 0},
	{"mandrill, a domain that is none", []string{"X-MC-TrackingDomain", "http://x/", "X-MC-SigningDomain", "a b"}, "", 2},
	{"postmark", []string{"X-PM-Tag", "a", "X-PM-Tag", "b", "X-PM-Metadata-OrderId", "7", "X-PM-TrackOpens", "true", "X-PM-TrackLinks", "HtmlOnly"}, "tags=a OrderId=7 opens=on clicks=on in=html only", 1},
	{"postmark aliases", []string{"X-PM-Track-Links", "None", "X-PM-Track-Opens", "false"}, "opens=off clicks=off", 0},
	{"postmark text only, stream", []string{"X-PM-TrackLinks", "TextOnly", "X-PM-Message-Stream", "broadcast", "X-PM-KeepID", "true"}, "opens=default clicks=on in=text only stream=broadcast raw:x-pm-keepid=true", 0},
	{"sendgrid", []string{"X-SMTPAPI", `{"category":["a","b"],"unique_args":{"k":"v"},"send_at":1800000000,"filters":{"opentrack":{"settings":{"enable":1,"replace":"%o%"}},"clicktrack":{"settings":{"enable":0}}}}`}, "tags=a|b k=v opens=on clicks=off at=2027-01-15T08:00:00Z raw:x-smtpapi.filters.opentrack.settings.replace=%o%", 0},
	{"sendgrid, the first counts", []string{"X-SMTPAPI", `{"category":"a"}`, "X-SMTPAPI", `{"category":"b"}`}, "tags=a", 1},
	{"sendgrid to and sub", []string{"X-SMTPAPI", `{"to":["a@example.com","B <b@example.com>"],"sub":{"-name-":["A","B"],"-s-":["-sec-","x"]},"section":{"-sec-":"Section"}}`}, `subst-rcpt={"a@example.com":{"-name-":"A","-s-":"Section"},"b@example.com":{"-name-":"B","-s-":"x"}} +to=a@example.com +to=b@example.com expose=off`, 0},
	{"sendgrid sub without to", []string{"X-SMTPAPI", `{"sub":{"-n-":["N"]}}`}, `subst={"-n-":"N"}`, 0},
	{"sendgrid to and sub of different lengths", []string{"X-SMTPAPI", `{"category":"a","to":["a@example.com","b@example.com"],"sub":{"-name-":["A"]}}`}, "", 1},
	{"sendgrid filters", []string{"X-SMTPAPI", `{"filters":{"clicktrack":{"settings":{"enable":1,"enable_text":false}},"ganalytics":{"settings":{"enable":1,"utm_source":"s","utm_medium":"m","utm_term":"t","utm_content":"c","utm_campaign":"k"}},"dkim":{"settings":{"domain":"example.com","use_from":false}},"bypass_list_management":{"settings":{"enable":1}},"bcc":{"settings":{"enable":1,"email":"x@example.com"}},"templates":{"settings":{"enable":1,"template_id":"u-1"}},"subscriptiontrack":{},"footer":{},"template":{},"spamcheck":{}}}`}, "opens=default clicks=on in=html only template=u-1 dkim-domain=example.com suppression-lists-not-asked=yes link-analytics=5 values analytics.utm_campaign=k analytics.utm_content=c analytics.utm_medium=m analytics.utm_source=s analytics.utm_term=t +bcc=x@example.com raw:x-smtpapi.filters.dkim.settings.use_from=false raw:x-smtpapi.filters.footer={} raw:x-smtpapi.filters.spamcheck={} raw:x-smtpapi.filters.subscriptiontrack={} raw:x-smtpapi.filters.template={}", 0},
	{"sendgrid filters that are off", []string{"X-SMTPAPI", `{"filters":{"ganalytics":{"settings":{"enable":0,"utm_source":"s"}},"bcc":{"settings":{"enable":0,"email":"x@example.com"}},"bypass_list_management":{"settings":{"enable":0}}}}`}, "", 0},
	{"sendgrid groups", []string{"X-SMTPAPI", `{"asm_group_id":5,"asm_groups_to_display":[5,6],"ip_pool":"p","batch_id":"b","send_each_at":[1]}`}, "ip-pool=p unsubscribe-group=5 raw:x-smtpapi.asm_groups_to_display=[5,6] raw:x-smtpapi.batch_id=b raw:x-smtpapi.send_each_at=[1]", 0},
	{"sendgrid groups, nested", []string{"X-SMTPAPI", `{"asm":{"group_id":5,"groups_to_display":[]}}`}, "unsubscribe-group=5 raw:x-smtpapi.asm.groups_to_display=[]", 0},
	{"sendgrid, Symfony's own header", []string{"X-Sendgrid-SuppressionGroup", `{"group_id":1,"groups_to_display":[]}`}, "unsubscribe-group=1 raw:x-sendgrid-suppressiongroup.groups_to_display=[]", 0},
	{"sendgrid, bad JSON", []string{"X-SMTPAPI", `{"category":`}, "", 1},
	{"sendgrid, one bad member takes all", []string{"X-SMTPAPI", `{"category":"a","send_at":"soon"}`}, "", 1},
	{"mailgun", []string{"X-Mailgun-Tag", "a,b", "X-Mailgun-Tag", "c", "X-Mailgun-Variables", `{"k":"v"}`, "X-Mailgun-Variables", `{"k":"w","l":null}`, "X-Mailgun-Track-Clicks", "htmlonly", "X-Mailgun-Track-Opens", "no", "X-Mailgun-Deliver-By", "Sat, 02 Jan 2027 03:04:05 +0000"}, "tags=a,b|c k=v opens=off clicks=on in=html only at=2027-01-02T03:04:05Z", 0},
	{"mailgun track, and one of its own", []string{"X-Mailgun-Track", "no", "X-Mailgun-Track-Opens", "yes", "X-Mailgun-Track-Pixel-Location-Top", "yes"}, "opens=on clicks=off raw:x-mailgun-track-pixel-location-top=yes", 0},
	{"mailgun recipients", []string{"X-Mailgun-Recipient-Variables", `{"a@example.com":{"first":"A"}}`}, `merge-rcpt={"a@example.com":{"first":"A"}} expose=off`, 0},
	{"mailgun template", []string{"X-Mailgun-Template-Name", "t", "X-Mailgun-Template-Version", "v2", "X-Mailgun-Template-Variables", `{"a":1}`, "X-Mailgun-Variables", `{"a":2,"b":3}`}, `a=2 b=3 template=t version=v2 merge={"a":1,"b":3}`, 0},
	{"mailgun delivery", []string{"X-Mailgun-Drop-Message", "yes", "X-Mailgun-Deliver-Within", "1h30m", "X-Mailgun-Require-TLS", "yes", "X-Mailgun-Skip-Verification", "no", "X-Mailgun-Sending-Ip", "192.0.2.1", "X-Mailgun-Sending-Ip-Pool", "p", "X-Mailgun-Campaign-Id", "c", "X-Mailgun-Delivery-Time-Optimize-Period", "24h", "X-Mailgun-Dkim", "yes"}, "campaign=c send-window=24h ip-pool=p ip=192.0.2.1 required-TLS=on sandbox=yes raw:x-mailgun-dkim=yes raw:x-mailgun-skip-verification=no", 0},
	{"mailgun localised, DKIM", []string{"X-Mailgun-Time-Zone-Localize", "09:00", "X-Mailgun-Secondary-DKIM", "example.com,s1", "X-Mailgun-Secondary-DKIM-Public", "example.com/s1", "X-Mailgun-Deliver-Within", "3s"}, "send-window=09:00 dkim-domain=example.com", 1},
	{"sparkpost", []string{"X-MSYS-API", `{"campaign_id":"c","tags":["a"],"metadata":{"k":{"x":[1, 2]}},"options":{"open_tracking":true,"click_tracking":false}}`}, `tags=a k={"x":[1,2]} opens=on clicks=off campaign=c`, 0},
	{"sparkpost recipients", []string{"X-MSYS-API", `{"cc":["a@example.com"],"bcc":[{"email":"b@example.com","name":"B"}],"archive":["c@example.com"]}`}, "+cc=a@example.com +bcc=b@example.com +archive=c@example.com", 0},
	{"sparkpost options", []string{"X-MSYS-API", `{"options":{"transactional":true,"skip_suppression":true,"ip_pool":"p","inline_css":true,"dkim_key":"k"},"substitution_data":{"a":1}}`, "X-MSYS-Subaccount", "123", "X-MSYS-Else", "x"}, "ip-pool=p subaccount=123 transactional=on inlined-style-sheets=on suppression-lists-not-asked=yes raw:x-msys-api.options.dkim_key=k raw:x-msys-else=x", 1},
	{"sparkpost, bad type", []string{"X-MSYS-API", `{"tags":{"a":1}}`}, "", 1},
	{"mailjet", []string{"X-Mailjet-Campaign", "c", "X-MJ-CustomID", "id", "X-MJ-EventPayload", "free text", "X-Mailjet-TrackOpen", "0", "X-Mailjet-TrackClick", "1", "X-Mailjet-Prio", "3"}, "payload=free text opens=off clicks=on ref=id campaign=c priority=high", 0},
	{"mailjet payload of JSON", []string{"X-MJ-EventPayload", `{"a":1}`}, "a=1", 0},
	{"mailjet, 2 is of another API", []string{"X-Mailjet-TrackOpen", "2"}, "", 1},
	{"mailjet template", []string{"X-MJ-TemplateID", "123", "X-MJ-TemplateLanguage", "1", "X-MJ-Vars", `{"a":"b"}`, "X-MJ-TemplateErrorReporting", "x@example.com", "X-MJ-TemplateErrorDeliver", "0", "X-MJ-MonitoringCategory", "m", "X-Mailjet-DeduplicateCampaign", "y", "X-Mailjet-Else", "1", "X-MJ-Else", "2"}, `template=123 merge={"a":"b"} body=template raw:x-mailjet-deduplicatecampaign=y raw:x-mailjet-else=1 raw:x-mj-else=2 raw:x-mj-monitoringcategory=m raw:x-mj-templateerrordeliver=0 raw:x-mj-templateerrorreporting=x@example.com`, 0},
	{"brevo", []string{"X-Mailin-Tag", "a", "X-Mailin-custom", "k1:v1|k2:v2", "X-Mailin-Key", "v", "X-SIB-API", `{"tags":["b"],"templateId":7,"params":{"p":1}}`}, `tags=a|b Key=v k1=v1 k2=v2 template=7 merge={"p":1}`, 0},
	{"brevo, API entries as headers", []string{"templateId", "7", "params", `{"p":1}`, "idempotencyKey", "k", "X-Sib-Sandbox", "drop", "X-Mailin-custom", "plain"}, `custom=plain template=7 merge={"p":1} application's-idempotency-key=k sandbox=yes`, 0},
	{"amazonses", []string{"X-SES-MESSAGE-TAGS", "k=v, k2=v2", "X-SES-CONFIGURATION-SET", "s", "X-SES-LIST-MANAGEMENT-OPTIONS", "list; topic=news", "X-SES-TENANT", "t"}, "k=v k2=v2 configuration-set=s tenant=t unsubscribe-group=list; topic=news", 0},
	{"amazonses resources", []string{"X-SES-TENANT-NAME", "t", "X-SES-SOURCE-ARN", "arn:1", "X-SES-FROM-ARN", "arn:2", "X-SES-RETURN-PATH-ARN", "arn:3", "X-SES-Else", "x", "X-SES-MESSAGE-TAGS", "nonsense"}, "tenant=t raw:x-ses-else=x raw:x-ses-from-arn=arn:2 raw:x-ses-return-path-arn=arn:3 raw:x-ses-source-arn=arn:1", 1},
	{"smtpeter", []string{"X-SMTPeter-Tags", "a,b", "x-smtpeter-trackopens", "true", "x-smtpeter-trackclicks", "false", "X-SMTPeter-InlineCSS", "true", "X-SMTPeter-TrackBounces", "true", "X-SMTPeter-PreventScam", "true", "X-SMTPeter-Images", "hosted"}, "tags=a|b opens=on clicks=off inlined-style-sheets=on raw:x-smtpeter-images=hosted raw:x-smtpeter-preventscam=true raw:x-smtpeter-trackbounces=true", 0},
	{"maileroo", []string{"X-Tag-Order", "7", "X-Maileroo-Track", "yes", "X-Maileroo-Tags", `{"a":1}`, "X-Maileroo-Ref-ID", "0123456789abcdef01234567"}, "Order=7 a=1 opens=on clicks=on ref=0123456789abcdef01234567", 0},
	{"mailersend", []string{"X-MailerSend-Tags", `"tag 1, tag 2"`}, "tags=tag 1|tag 2", 0},
	{"mailersend, without quotes", []string{"X-MailerSend-Tags", "tag1,tag2,,tag1"}, "tags=tag1|tag2", 0},
	{"mailpace", []string{"X-MailPace-Tags", "a, b", "X-OhMySMTP-Tags", "c", "X-OMS-Tags", "d", "X-List-Unsubscribe", "<https://example.com/u>"}, "tags=a|b|c|d", 0},
	{"mailtrap", []string{"X-MT-Category", "a", "X-MT-Custom-Variables", `{"k":"v","l":["x","y"]}`}, "tags=a k=v l=x", 0},
	{"mailtrap, oversize", []string{"X-MT-Custom-Variables", `{"k":"` + strings.Repeat("v", 1000) + `"}`}, "", 1},
	{"postal, last wins", []string{"X-Postal-Tag", "a", "X-Postal-Tag", "b", "X-AMP", "skip", "X-Postal-MsgID", "1"}, "tags=b opens=off clicks=off raw:x-postal-msgid=1", 1},
	{"resend", []string{"Resend-Idempotency-Key", "k"}, "application's-idempotency-key=k", 0},
	{"unisendergo", []string{"X-UNISENDER-GO", `{"track_links":0,"track_read":1,"template_id":"t","global_substitutions":{"a":"b"},"tags":["x"],"metadata":{"m":"n"},"global_language":"de","skip_unsubscribe":1}`, "X-UNISENDER-GO-Template-Engine", "velocity", "X-UNISENDER-GO-Global-Language", "de"}, `tags=x m=n opens=on clicks=off template=t language=velocity merge={"a":"b"} raw:x-unisender-go-global-language=de raw:x-unisender-go.global_language=de raw:x-unisender-go.skip_unsubscribe=1`, 0},
	{"unione", []string{"X-UNIONE", `{"track_links":1}`, "X-UNIONE-Template-Engine", "simple", "X-UNIONE-Global-Language", "de"}, "opens=default clicks=on language=simple raw:x-unione-global-language=de", 0},
	{"socketlabs", []string{"X-xsMessageId", "m", "X-xsMailingId", "c"}, "ref=m campaign=c", 0},
	{"elasticemail", []string{"trackclicks", "false", "trackopens", "true", "X-PostBack", "p", "channel", "c", "isTransactional", "true", "poolname", "pool"}, "postback=p opens=on clicks=off campaign=c ip-pool=pool transactional=on", 0},
	{"elasticemail, the other spelling", []string{"postback", "p"}, "postback=p", 0},
	{"infobip", []string{"X-Infobip-Track", "false", "X-Infobip-TrackOpens", "true", "X-Infobip-TrackClicks", "true", "X-Infobip-MessageId", "m", "X-Infobip-IntermediateReport", "true", "X-Infobip-NotifyUrl", "https://example.com", "X-Infobip-NotifyContentType", "application/json", "X-Infobip-TrackingUrl", "https://example.com/t"}, "opens=on clicks=on ref=m raw:x-infobip-intermediatereport=true raw:x-infobip-notifycontenttype=application/json raw:x-infobip-notifyurl=https://example.com raw:x-infobip-trackingurl=https://example.com/t", 0},
	{"reachmail", []string{"x-rm-campaign", "c", "x-rm-profile", "p", "X-Tracking", "1"}, "opens=default clicks=on campaign=c stream=p", 0},
	{"sendmachine", []string{"X-SM-Campaign", "c", "X-SM-Tag", "a", "X-SM-Tag", "b"}, "tags=a|b campaign=c", 0},
	{"wooxy", []string{"X-Tags", `[\"a\",\"b\"]`, "X-Message-Priority", "1", "X-Ignore-Hard", "true"}, "tags=a|b suppression-lists-not-asked=yes raw:x-message-priority=1", 0},
	{"wooxy, the other lists", []string{"X-Ignore-Complaint", "true", "X-Ignore-Unsubscribe", "true", "X-Ignore-Blacklist", "true"}, "suppression-lists-not-asked=yes", 0},
	{"contactlab", []string{"X-Clab-SmartRelay-DeliveryLabel", "a", "X-Clab-SmartRelay-ExternalDesc", "b", "X-Clab-SmartRelay-NewDeliveryType", "c", "X-Clab-SmartRelay-TrackingDomain", "d", "X-Clab-SmartRelay-TrackingDomainLink", "e"}, "raw:x-clab-smartrelay-deliverylabel=a raw:x-clab-smartrelay-externaldesc=b raw:x-clab-smartrelay-newdeliverytype=c raw:x-clab-smartrelay-trackingdomain=d raw:x-clab-smartrelay-trackingdomainlink=e", 0},
	{"unosend", []string{"X-Unosend-Track-Opens", "1"}, "opens=on clicks=default", 0},
	{"symfony", []string{"X-Tag", "a, b", "X-Metadata-Key", "v", "X-Track", "opens=true; clicks=default; x=y"}, "tags=a, b Key=v opens=on clicks=default", 0},
	{"X-Tag, X-Tag-Name and X-Tags are three things", []string{"X-Tag", "a", "X-Tag-n", "v", "X-Tags", `["b"]`}, "tags=b|a n=v", 0},
	{"a vendor's tracking goes before the framework's", []string{"X-Track", "opens=true", "X-MC-Track", "none"}, "opens=off clicks=off", 1},
	{"what a vendor agrees on is no conflict", []string{"X-Track", "opens=false; clicks=default", "X-MC-Track", "none"}, "opens=off clicks=off", 0},
	{"our own goes before all", []string{"X-PM-TrackOpens", "true", "X-Smtpbridge-Track", "off"}, "opens=off clicks=off", 1},
	{"ordinary headers are none", []string{"X-Entity-Ref-ID", "1", "X-Mailer", "m", "X-Priority", "1", "Importance", "high", "Feedback-ID", "a:b"}, "", 0},
}

func TestDialects(t *testing.T) {
	for _, c := range dialectCases {
		t.Run(c.name, func(t *testing.T) {
			o, losses := ReadOptions(message(c.fields...).Header, Settings{Permissions: []string{"all"}})
			if got := show(o); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if len(losses) != c.lost {
				t.Errorf("%d losses, want %d: %v", len(losses), c.lost, losses)
			}
		})
	}
}

// TestDialectCasesComplete finds rows without a case.
func TestDialectCasesComplete(t *testing.T) {
	used := map[string]string{}
	for _, c := range dialectCases {
		for i := 0; i+1 < len(c.fields); i += 2 {
			used[strings.ToLower(c.fields[i])] += c.fields[i+1]
		}
	}
	var members func(header, text string, keys []key)
	members = func(header, text string, keys []key) {
		for _, k := range keys {
			if !strings.Contains(text, `"`+k.name+`"`) {
				t.Errorf("no case for %s of %s", k.name, header)
			}
			members(header, text, k.sub)
		}
	}
	for _, d := range dialects {
		for _, r := range d.rules {
			if r.parse == nil && strings.HasSuffix(r.header, "*") {
				continue // unknown options
			}
			text, ok := used[r.header]
			if p, prefix := strings.CutSuffix(r.header, "*"); prefix {
				for name := range used {
					ok = ok || strings.HasPrefix(name, p)
				}
			}
			if !ok {
				t.Errorf("no case for %s", r.header)
			}
			if r.header == "x-smtpapi" {
				members(r.header, text, sendgridKeys)
			} else if r.header != "x-unione" {
				members(r.header, text, r.keys)
			}
		}
	}
}

func TestDialectOrderAndPermission(t *testing.T) {
	h := message("X-PM-TrackOpens", "false", "X-MC-Track", "opens", "X-Smtpbridge-Tag", "t").Header
	for _, c := range []struct {
		name string
		set  Settings
		want string
	}{
		{"by the tables", Settings{}, "tags=t opens=on clicks=off"},
		{"the account's provider first", Settings{Provider: "postmark"}, "tags=t opens=off clicks=off"},
		{"only one permitted", Settings{Dialects: []string{"postmark"}}, "opens=off clicks=default"},
		{"none permitted", Settings{Dialects: []string{}}, ""},
		{"all permitted", Settings{Dialects: []string{"all"}}, "tags=t opens=on clicks=off"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if o, _ := ReadOptions(h, c.set); show(o) != c.want {
				t.Errorf("got %s, want %s", show(o), c.want)
			}
		})
	}
}

func TestDialectTables(t *testing.T) {
	seen := map[string]string{}
	for _, d := range dialects {
		for _, r := range d.rules {
			if r.header != strings.ToLower(r.header) || r.means == "" {
				t.Errorf("%s: bad row %+v", d.name, r)
			}
			if other, ok := seen[r.header]; ok {
				t.Errorf("%s: %s is in %s too", d.name, r.header, other)
			}
			seen[r.header] = d.name
			name := strings.Replace(r.header, "*", "anything", 1)
			if !IsOptionHeader(strings.ToUpper(name) + " ") {
				t.Errorf("%s is not stripped", name)
			}
		}
	}
	if got := len(Dialects()); got != len(dialects) {
		t.Errorf("%d names", got)
	}
}

func TestTrackingTogether(t *testing.T) {
	caps := Capabilities{TrackOpens: true, TrackClicks: true, TrackTogether: true}
	m := one(t, request(message("X-Smtpbridge-Track", "clicks"), caps))
	if m.Options.TrackOpens != On || m.Options.TrackClicks != On || !has(m.Losses, Minor, "tracking") {
		t.Errorf("got %v %v %v", m.Options.TrackOpens, m.Options.TrackClicks, m.Losses)
	}
	r := request(message(), Capabilities{TrackOpens: true})
	r.Settings.TrackOpens, r.Settings.TrackClicks = Off, Off
	m = one(t, r)
	if m.Options.TrackOpens != Off || m.Options.TrackClicks != Default || !has(m.Losses, Info, "tracking of clicks") {
		t.Errorf("account's setting: %v %v %v", m.Options.TrackOpens, m.Options.TrackClicks, m.Losses)
	}
}

func FuzzOptions(f *testing.F) {
	for _, d := range dialects {
		for _, r := range d.rules {
			f.Add(strings.Replace(r.header, "*", "Key", 1), `{"category":["a"],"tags":"x","metadata":{"k":[1,{}]},"filters":{}}`)
			f.Add(strings.Replace(r.header, "*", "", 1), "a=b; c:d|e, \"f\"\r\nBcc: x\x00\xff")
		}
	}
	f.Fuzz(func(t *testing.T, name, value string) {
		h := mime.Header{{Name: name, Value: value}, {Name: name, Value: value}}
		o, losses := ReadOptions(h, Settings{})
		check := func(s string) {
			if !utf8.ValidString(s) || strings.IndexFunc(s, unicode.IsControl) >= 0 {
				t.Errorf("control characters or no UTF-8 in %q", s)
			}
		}
		for _, s := range o.Tags {
			check(s)
			if strings.TrimSpace(s) == "" {
				t.Error("an empty tag")
			}
		}
		for k, v := range o.Metadata {
			check(k)
			check(v)
		}
		for _, l := range losses {
			check(l.Field + l.Had)
		}
		if again, _ := ReadOptions(h, Settings{}); show(again) != show(o) {
			t.Error("not deterministic")
		}
		if len(o.Tags)+len(o.Metadata)+len(losses) > 0 && !IsOptionHeader(name) {
			t.Errorf("%q is read, but not stripped", name)
		}
	})
}
