package config

// validateDSN checks the [dsn] table. Whether the account can carry DSN mail is found when it is made.
func (c *Config) validateDSN(root map[string]any) {
	d, p := &c.DSN, c.problems
	for _, on := range d.On {
		c.oneOf("dsn.on", on, "failed", "delayed", "delivered")
	}
	if d.MaxPerHour < 0 {
		p.add("dsn.max_per_hour", "must not be negative; 0 is no limit")
	}
	if d.Account == "" {
		if table, ok := root["dsn"].(map[string]any); ok && len(table) > 0 {
			p.warn("dsn", "has no account: no DSN mail is written. Name an [[account]] of provider smtp, lmtp or maildir")
		}
		return
	}
	known := map[string]bool{}
	for _, a := range c.Accounts {
		known[a.Name] = true
	}
	if !known[d.Account] {
		p.add("dsn.account", "there is no account %q%s", d.Account, nearest(d.Account, known))
	}
}
