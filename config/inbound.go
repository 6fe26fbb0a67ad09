package config

import (
	"fmt"
	"strings"
)

// validateInbound checks [[inbound]] as far as that can be done without knowing providers.
func (c *Config) validateInbound() {
	known := map[string]bool{}
	for _, a := range c.Accounts {
		known[a.Name] = true
	}
	for i, in := range c.Inbound {
		key := func(k string) string { return fmt.Sprintf("inbound[%d].%s", i, k) }
		if len(in.Recipients) == 0 {
			c.problems.add(key("recipients"), "missing: name the addresses or domains whose mail is taken, such as \"*@support.example.com\"")
		}
		for _, r := range in.Recipients {
			if r == "" || strings.ContainsAny(r, " <>") || strings.Contains(strings.TrimPrefix(r, "*"), "*") && !strings.HasPrefix(r, "*@") {
				c.problems.add(key("recipients"), "%q is no address, domain or pattern such as \"*@example.com\"", r)
			}
		}
		switch {
		case in.Account == "":
			c.problems.add(key("account"), "missing: name an [[account]] of provider smtp, lmtp or maildir")
		case !known[in.Account]:
			c.problems.add(key("account"), "there is no account %q%s", in.Account, nearest(in.Account, known))
		}
	}
	if len(c.Inbound) > 0 && c.Webhook.Address == "" {
		c.problems.add("webhook.address", "is empty: received mail comes by the webhook listener")
	}
}
