package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/config"
	"smtpbridge/dsn"
	"smtpbridge/event"
)

func eventsCommand() *cobra.Command {
	var q admin.EventQuery
	var since, format, kind string
	c := &cobra.Command{
		Use: "events", Short: "print what became of mails, and follow it live", Args: usageArgs(cobra.NoArgs),
		Long: `Prints events in the order they became known. Formats: text (a line for people), json (the
public form, one object a line), dsn (the fields of RFC 3464).`,
	}
	file := configFlag(c)
	f := c.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on as new events come")
	f.StringVar(&since, "since", "", "only events that became known since: a duration (\"2h\", \"7d\") or a time (RFC 3339)")
	f.StringVar(&q.Recipient, "recipient", "", "only events of this recipient")
	f.StringVar(&kind, "event", "", "only events of this kind (delivered, bounced ...)")
	f.StringVar(&format, "format", "text", "text, json or dsn")
	asJSON := f.Bool("json", false, "the same as --format json")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *asJSON {
			format = "json"
		}
		var err error
		if q.Since, err = parseSince(since, time.Now()); err != nil {
			return &exitError{2, err}
		}
		q.Kind = event.Kind(kind)
		if kind != "" && !q.Kind.Known() {
			return &exitError{2, fmt.Errorf("--event %q is no kind of event", kind)}
		}
		if !slices.Contains(dsn.Formats, format) {
			return &exitError{2, fmt.Errorf("--format %q is not one of %s", format, strings.Join(dsn.Formats, ", "))}
		}
		api, err := operator(c.Context(), *file)
		if err != nil {
			return err
		}
		defer api.close()
		render, err := dsn.Formatter(format, api.cfg.Hostname)
		if err != nil {
			return err
		}
		err = api.Events(c.Context(), q, func(e event.Event) error {
			_, err := c.OutOrStdout().Write(render(nil, e))
			return err
		})
		if c.Context().Err() != nil && q.Follow {
			return nil
		}
		return err
	}
	return c
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := config.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, strings.TrimSpace(s), time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since %q is neither a duration such as \"2h\" nor a time such as 2026-01-31T12:00:00Z", s)
}
