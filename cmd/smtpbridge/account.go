package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
)

func accountCommand() *cobra.Command {
	c := &cobra.Command{Use: "account", Short: "see, pause and resume the accounts at ESPs"}
	c.AddCommand(accountList(), accountSet("pause NAME", "stop sending through an account; its mail waits", true), accountSet("resume NAME", "send through an account again", false))
	return c
}

func accountList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{Use: "list", Short: "list accounts with their state and queue", Args: usageArgs(cobra.NoArgs)}
	file := configFlag(c)
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
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
		if asJSON {
			return printJSON(c.OutOrStdout(), accounts)
		}
		w := tabwriter.NewWriter(c.OutOrStdout(), 0, 4, 2, ' ', 0)
		fmt.Fprintln(w, "ACCOUNT\tPROVIDER\tSTATE\tQUEUED\tWHY")
		for _, a := range accounts {
			why := a.Reason
			if a.Domain != "" {
				why = "mail from " + a.Domain + ": " + why
			}
			if a.Until != nil {
				why += " (until " + a.Until.Local().Format(time.DateTime) + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\n", a.Name, a.Provider, a.State, a.Queued, why)
		}
		return w.Flush()
	}
	return c
}

func accountSet(use, short string, pause bool) *cobra.Command {
	var reason string
	c := &cobra.Command{Use: use, Short: short, Args: usageArgs(cobra.ExactArgs(1))}
	file := configFlag(c)
	if pause {
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
		state := "active"
		if pause {
			state = "stopped"
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s is %s\n", args[0], state)
		return err
	}
	return c
}
