package main

import (
	"strings"

	"github.com/spf13/cobra"

	"smtpbridge/store"
)

func nodeCommand() *cobra.Command {
	return family("node", groupOperate, "see the bridges that share a PostgreSQL store", nodeList())
}

func nodeList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "list living nodes with their roles and what each leads", Args: usageArgs(cobra.NoArgs),
		Long: `Lists the bridges that live and share a PostgreSQL store. LEADS names what one node does at a time: each forward, dsn,
suppression, alarms, probes of paused accounts, catch-up. A node that died, or was cut off, is listed for up to 20 seconds, then
another one leads. With SQLite there is one bridge alone, and the list is empty.`,
		Example: "  smtpbridge node list\n  smtpbridge node list --json",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		nodes, err := api.Nodes(c.Context())
		if err != nil {
			return err
		}
		none := "no node lives"
		if !shared(api.cfg) {
			none = "the store is SQLite, which belongs to one bridge alone: nodes share a PostgreSQL store ([store] url)"
		}
		head := []string{"NODE", "SINCE", "VERSION", "ROLES", "LEADS"}
		return printList(c.OutOrStdout(), *asJSON, nodes, none, head, func(n store.Node) []any {
			name := n.Name
			if n.Self {
				name += " (this one)"
			}
			return []any{name, n.Since, n.Version, strings.Join(n.Roles, ","), strings.Join(n.Leads, ", ")}
		})
	}
	return c
}
