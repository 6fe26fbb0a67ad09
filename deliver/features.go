package deliver

import "smtpbridge/translate"

// features are what an ESP's plan can exclude, by the names that providers use in Error.Feature. Each takes the
// feature away from the capabilities, so that the mail is planned without it and the loss is said.
var features = map[string]func(*translate.Capabilities){
	"headers": func(c *translate.Capabilities) {
		c.Headers, c.HeaderList = translate.HeadersNone, nil
	},
	"list-unsubscribe": func(c *translate.Capabilities) { c.ListUnsub, c.ListUnsubPost = false, false },
	"tags":             func(c *translate.Capabilities) { c.Tags, c.MetadataTags = 0, false },
	"metadata":         func(c *translate.Capabilities) { c.Metadata = false },
	"send-at":          func(c *translate.Capabilities) { c.SendAt = 0 },
	"tracking":         func(c *translate.Capabilities) { c.TrackOpens, c.TrackClicks = false, false },
	"threading":        func(c *translate.Capabilities) { c.Threading = false },
	"reply-to":         func(c *translate.Capabilities) { c.ReplyTo = min(max(c.ReplyTo, -c.ReplyTo), 1) },
	"amp":              func(c *translate.Capabilities) { c.AMP = false },
	"raw": func(c *translate.Capabilities) {
		if c.JSON {
			c.Raw = translate.RawNone
		}
	},
}

// canDrop reports whether mail can be sent without a feature.
func canDrop(feature string) bool { return features[feature] != nil }

// without gives the capabilities less the features the account has shown not to have.
func without(c translate.Capabilities, lost []string) translate.Capabilities {
	for _, f := range lost {
		features[f](&c)
	}
	if c.Fields != nil {
		fields := without(*c.Fields, lost)
		c.Fields = &fields
	}
	return c
}
