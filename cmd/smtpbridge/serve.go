package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"

	"smtpbridge/config"
)

func serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "serve", GroupID: groupStart, Short: "run the bridge", Args: usageArgs(cobra.NoArgs),
		Long: `Runs the bridge until SIGTERM or SIGINT. SIGHUP reads the configuration again (all but sockets)
and reopens the event file. Under systemd it reports readiness and feeds the watchdog.

--roles leaves parts of the work to other processes on the same PostgreSQL store:
  smtp     takes mail on the listeners
  deliver  hands it to the ESPs, and tells alarms
  webhook  takes webhooks and received mail, and asks the ESPs for events that did not come
  sink     event file, forwarding, DSN mail, suppression
  admin    the dashboard at [admin] address; the admin socket, health and metrics are there in any case
A SQLite store belongs to one process, which does everything.`,
		Example: "  smtpbridge serve -c bridge.toml\n  smtpbridge serve -c edge.toml --roles smtp,admin",
	}
	file := configFlag(c)
	list := c.Flags().StringSlice("roles", nil, "what this process does (default "+strings.Join(roles(nil).names(), ",")+")")
	c.RunE = func(c *cobra.Command, _ []string) error {
		r, err := parseRoles(*list)
		if err != nil {
			return usageError(c, "--roles: %w", err)
		}
		return serve(c.Context(), *file, r)
	}
	return c
}

func serve(ctx context.Context, file string, r roles) error {
	activated, err := activation.ListenersWithNames()
	if err != nil {
		return fmt.Errorf("sockets from systemd: %w", err)
	}
	b, err := NewBridge(ctx, file, BridgeOptions{Activated: activated, Roles: r})
	if err != nil && ctx.Err() != nil {
		// It was asked to end before it ran: there is nothing to drain, and nothing failed.
		fmt.Fprintf(os.Stderr, "the start was broken off: %v\n", err)
		return nil
	}
	if err != nil {
		var problems config.Problems
		if errors.As(err, &problems) {
			return fmt.Errorf("%w\n%s: %s: the bridge does not start", err, file, plural(problems.Errors(), "error"))
		}
		return err
	}
	for _, w := range b.parts.cfg.Warnings {
		b.log.Warn("configuration", "problem", w.String())
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)

	aside, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		for {
			select {
			case <-aside.Done():
				return
			case <-hup:
				notify(daemon.SdNotifyReloading + "\n" + daemon.SdNotifyMonotonicUsec())
				if err := b.Reload(); err != nil {
					b.log.Error("the configuration was not reloaded: the old one stays in force", "event", "config.reload_failed", "err", err)
				} else {
					b.log.Info("configuration reloaded", "event", "config.reloaded")
				}
				notify(daemon.SdNotifyReady)
			}
		}
	}()
	go b.watchdog(aside)
	context.AfterFunc(aside, func() { notify(daemon.SdNotifyStopping) })
	return b.Run(ctx, func() { notify(daemon.SdNotifyReady) })
}

func notify(state string) {
	// Without systemd there is nobody to notify, which is no error.
	_, _ = daemon.SdNotify(false, state)
}

// watchdog tells systemd that the bridge is alive for as long as its store answers.
func (b *Bridge) watchdog(ctx context.Context) {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return
	}
	t := time.NewTicker(every / 3)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			probe, cancel := context.WithTimeout(ctx, every/3)
			err := b.store.Ping(probe)
			cancel()
			// A full or read-only disk is not cured by a restart: only a store that does not answer at all is.
			if err == nil || !errors.Is(err, context.DeadlineExceeded) {
				notify(daemon.SdNotifyWatchdog)
			}
		}
	}
}
