package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/config"
	"smtpbridge/deliver"
	"smtpbridge/providers"
)

func webhookCommand() *cobra.Command {
	return family("webhook", groupStart, "register webhooks at the ESPs", webhookSetup())
}

func webhookSetup() *cobra.Command {
	c := &cobra.Command{
		Use: "setup ACCOUNT", Short: "print what to register at an ESP, and with --apply register it", Args: usageArgs(cobra.ExactArgs(1)),
		Long: `Prints the URL and the events to register in the ESP's dashboard, and where its secret goes. MailerSend
and Mandrill let themselves be asked: what is registered is compared, and --apply creates what is missing. They
call the URL before they take it, so the bridge has to be running and reachable there.`,
		Example: "  smtpbridge webhook setup mailersend\n  smtpbridge webhook setup mandrill --apply",
	}
	file := configFlag(c)
	apply := c.Flags().Bool("apply", false, "create the registration where the ESP's API can")
	c.RunE = func(c *cobra.Command, args []string) error {
		p, err := loadParts(*file, 0, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		defer p.close()
		a := p.accounts[args[0]]
		if a == nil {
			return noAccount(args[0], p.cfg)
		}
		return setupWebhook(c.Context(), c.OutOrStdout(), p, a, *apply)
	}
	return c
}

// hookConfig is the block of an account.
func hookConfig(cfg *config.Config, name string) *config.Account {
	for i := range cfg.Accounts {
		if cfg.Accounts[i].Name == name {
			return &cfg.Accounts[i]
		}
	}
	return nil
}

func setupWebhook(ctx context.Context, out io.Writer, p *parts, a *deliver.Account, apply bool) error {
	if _, ok := a.Provider.(providers.WebhookParser); !ok {
		return fmt.Errorf("%s has no webhooks", a.Info.Title)
	}
	if a.Info.Local {
		_, err := fmt.Fprintf(out, "Account  %s (%s)\n\nIt posts its events to the bridge by itself: there is nothing to register.\n", a.Name, a.Info.Title)
		return err
	}
	ac := hookConfig(p.cfg, a.Name)
	url := webhookURL(p.cfg, ac)
	if url == "" {
		return errors.New("the URL is not known: set [webhook] public_url, or webhook_url of the account")
	}
	shown := url
	if !a.Info.Webhook.Signed {
		shown += "/SECRET   (SECRET: the value of webhook_secret)"
	}
	fmt.Fprintf(out, "Account  %s (%s)\nURL      %s\nEvents   %s\n", a.Name, a.Info.Title, shown, strings.Join(a.Info.Webhook.Events, ", "))
	switch {
	case a.Info.Webhook.OwnKeys:
		fmt.Fprintln(out, "Secret   none: the ESP's keys are public")
	case len(ac.WebhookSecrets) > 0:
		fmt.Fprintln(out, "Secret   is set")
	default:
		fmt.Fprintln(out, "Secret   missing: put what the ESP shows for the webhook into webhook_secret_file of the account, then reload")
	}
	if !strings.HasPrefix(url, "https://") {
		fmt.Fprintln(out, "Warning  ESPs call https only: set [webhook] public_url to the address of your HTTPS proxy")
	}
	reg, ok := a.Provider.(providers.Registrar)
	if !ok {
		fmt.Fprintf(out, "\n%s has no documented API for this: register it in the dashboard, see providers/%s/README.md, \"Webhook setup\".\n", a.Info.Title, a.Info.Name)
		if apply {
			return errors.New("nothing was created")
		}
		return nil
	}
	list, err := reg.Webhooks(ctx)
	if err != nil {
		return fmt.Errorf("ask %s what is registered: %w", a.Info.Title, err)
	}
	if wrong := registered(list, url, a.Info.Webhook.Events); wrong == "" {
		fmt.Fprintln(out, "\nIt is registered.")
		return nil
	} else if fmt.Fprintf(out, "\nNow: %s.\n", wrong); !apply {
		fmt.Fprintln(out, "Create it in the dashboard, or with --apply.")
		return nil
	} else if wrong != notRegistered {
		return errors.New("the registration that is there has to be corrected or removed in the dashboard first")
	}
	secret, err := reg.AddWebhook(ctx, url, a.Info.Webhook.Events)
	if err != nil {
		return fmt.Errorf("create the webhook at %s: %w", a.Info.Title, err)
	}
	fmt.Fprintln(out, "Created.")
	if secret != "" {
		fmt.Fprintf(out, "Its key, for webhook_secret_file of the account: %s\n", secret)
	} else {
		fmt.Fprintln(out, "Its secret is in the dashboard; put it into webhook_secret_file of the account.")
	}
	return nil
}

const notRegistered = "it is not registered"

// registered says what is wrong with the registration of a URL, "" when it is fine.
func registered(list []providers.Registration, url string, events []string) string {
	i := slices.IndexFunc(list, func(r providers.Registration) bool { return r.URL == url })
	if i < 0 {
		return notRegistered
	}
	r := list[i]
	var missing []string
	for _, e := range events {
		if !slices.Contains(r.Events, e) {
			missing = append(missing, e)
		}
	}
	switch {
	case !r.Enabled:
		return "it is registered and switched off"
	case len(missing) > 0:
		return "it is registered without the events " + strings.Join(missing, ", ")
	case r.Trouble != "":
		return "it is registered, and its last call failed: " + r.Trouble
	}
	return ""
}

// checkRegistration tells, for check --online, what is wrong with an account's webhook; "" when nothing is, or nobody can be asked.
func checkRegistration(ctx context.Context, p *parts, a *deliver.Account) string {
	reg, ok := a.Provider.(providers.Registrar)
	url := webhookURL(p.cfg, hookConfig(p.cfg, a.Name))
	if !ok || !strings.HasPrefix(url, "https://") || p.cfg.Webhook.Address == "" {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	list, err := reg.Webhooks(ctx)
	if err != nil {
		return "not known: " + err.Error()
	}
	return registered(list, url, a.Info.Webhook.Events)
}
