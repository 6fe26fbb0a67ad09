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
		Use: "events", GroupID: groupOperate, Short: "print what became of mails, and follow it live", Args: usageArgs(cobra.NoArgs),
		Example: "  smtpbridge events --follow\n  smtpbridge events --since 24h --event bounced --json\n  smtpbridge events --recipient ada@example.net --format dsn",
		Long: `Prints events in the order they became known. Formats: text (a line for people), json (the
public form, one object a line), dsn (the fields of RFC 3464).`,
	}
	c.AddCommand(replayCommand())
	file := configFlag(c)
	f := c.Flags()
	f.BoolVarP(&q.Follow, "follow", "f", false, "go on as new events come")
	f.StringVar(&since, "since", "", "only events that became known since: a duration (\"2h\", \"7d\") or a time (RFC 3339)")
	f.StringVar(&q.Recipient, "recipient", "", "only events of this recipient")
	f.StringVar(&kind, "event", "", "only events of this kind (delivered, bounced ...)")
	f.StringVar(&format, "format", "text", "text, json or dsn")
	asJSON := f.Bool("json", false, "the same as --format json")
	choiceFlag(c, "format", dsn.Formats...)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *asJSON {
			format = "json"
		}
		var err error
		if q.Since, err = parseSince(since, time.Now()); err != nil {
			return usageError(c, "%w", err)
		}
		q.Kind = event.Kind(kind)
		if kind != "" && !q.Kind.Known() {
			return usageError(c, "--event %q is not one of %s", kind, strings.Trim(fmt.Sprint(event.Kinds), "[]"))
		}
		if !slices.Contains(dsn.Formats, format) {
			return usageError(c, "--format %q is not one of %s", format, strings.Join(dsn.Formats, ", "))
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
		out := c.OutOrStdout()
		colour := format == "text" && hasColour(out)
		err = api.Events(c.Context(), q, func(e event.Event) error {
			line := render(nil, e)
			if colour {
				line = []byte(paint(true, tones[string(e.Kind)], strings.TrimSuffix(string(line), "\n")) + "\n")
			}
			_, err := out.Write(line)
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
