package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/store"
	"smtpbridge/webhookd"
)

func replayCommand() *cobra.Command {
	var since string
	c := &cobra.Command{
		Use: "replay --since T", Short: "read stored webhooks anew, with the parsers of this version", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge events replay --since 7d",
		Long: `Reads the webhook requests that were received since T once more and records what is understood
differently now. An event keeps its id; where the result differs it is written again with a higher revision, and
only then. A replay never makes bounce mail and never suppresses an address. The bridge has to run.`,
	}
	file, asJSON := configFlag(c), jsonFlag(c)
	c.Flags().StringVar(&since, "since", "", "requests received since: a duration (\"2h\", \"7d\") or a time (RFC 3339)")
	c.RunE = func(c *cobra.Command, _ []string) error {
		from, err := parseSince(since, time.Now())
		if err == nil && from.IsZero() {
			err = errors.New("--since is missing")
		}
		if err != nil {
			return usageError(c, "%w", err)
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		var sum store.Replayed
		var p *progress
		err = api.Replay(c.Context(), from, func(r store.Replayed) error {
			if p == nil {
				p = newProgress(c.ErrOrStderr(), "replay", r.Total)
			}
			p.step(r.Requests - sum.Requests)
			sum = r
			return nil
		})
		if p != nil {
			p.end()
		}
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(c.OutOrStdout(), sum)
		}
		_, err = fmt.Fprintf(c.OutOrStdout(), "%s read: %s as before, %d revised, %d added\n", plural(sum.Requests, "request"), plural(sum.Same, "event"), sum.Revised, sum.Added)
		if err == nil && sum.Unread > 0 {
			_, err = fmt.Fprintf(c.OutOrStdout(), "%s left alone: no webhook of a configured account, or not readable\n", plural(sum.Unread, "request"))
		}
		return err
	}
	return c
}

// replay reads stored requests anew. What is older than the events that are kept is left out: it would come back as new.
func (b *Bridge) replay(ctx context.Context, since time.Time, progress func(store.Replayed) error) (store.Replayed, error) {
	p := b.intake.now.Load()
	if keep := p.cfg.Retention.Ledger.D(); keep > 0 {
		if oldest := time.Now().Add(-keep); since.Before(oldest) {
			since = oldest
		}
	}
	c := webhookd.Config{KeepReaders: p.cfg.Events.Readers}
	for name, acc := range p.accounts {
		c.Accounts = append(c.Accounts, webhookd.Account{Name: name, Info: acc.Info, Provider: acc.Provider})
	}
	return webhookd.Replay(ctx, c, b.store, since, progress)
}
