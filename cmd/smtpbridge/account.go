package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
)

func accountCommand() *cobra.Command {
	return family("account", groupOperate, "see, pause and resume the accounts at ESPs",
		accountList(), accountSet("pause NAME", "stop sending through an account; its mail waits", true), accountSet("resume NAME", "send through an account again", false))
}

func accountList() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "list accounts with their state and queue", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge account list\n  smtpbridge account list --json",
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		accounts, err := api.Accounts(c.Context())
		if err != nil {
			return err
		}
		head := []string{"ACCOUNT", "PROVIDER", "STATE", "QUEUED", "WHY"}
		return printList(c.OutOrStdout(), *asJSON, accounts, "no accounts", head, func(a admin.Account) []any {
			why := a.Reason
			if a.Domain != "" {
				why = "mail from " + a.Domain + ": " + why
			}
			if a.Until != nil {
				why += " (until " + stamp(*a.Until) + ")"
			}
			return []any{a.Name, a.Provider, state(a.State), a.Queued, why}
		})
	}
	return c
}

func accountSet(use, short string, pause bool) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: use, Short: short, Args: usageArgs(cobra.ExactArgs(1)), Example: "  smtpbridge account resume mailersend"}
	file := configFlag(c)
	if pause {
		c.Example = "  smtpbridge account pause mailersend --reason 'key is being replaced'"
		c.Flags().StringVar(&reason, "reason", "", "shown with the account and in the log")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		if err := api.SetAccount(c.Context(), args[0], pause, reason); err != nil {
			return err
		}
		now := "active"
		if pause {
			now = "stopped"
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is %s\n", args[0], now)
		return err
	}
	return c
}
