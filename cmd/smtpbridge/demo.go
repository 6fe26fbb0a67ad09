package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"smtpbridge/admin"
	"smtpbridge/dsn"
	"smtpbridge/event"
	"smtpbridge/mime"
	"smtpbridge/smtp"
)

func demoCommand() *cobra.Command {
	var once bool
	var address, provider string
	c := &cobra.Command{
		Use: "demo", GroupID: groupStart, Short: "see a few mails live through their whole life", Args: usageArgs(cobra.NoArgs),
		Long: `Starts the bridge in a temporary directory with the built-in sandbox ESP, sends sample mails
through real SMTP, and shows the events as the sandbox posts them to the webhook listener.
Nothing leaves this machine. Without --once it goes on until Ctrl-C, for mails of your own:
recipients called bounce@, defer@, complaint@ or reject@ provoke what they say.

With --provider a built-in twin of that ESP's API takes the place of the sandbox: the same requests, the
same keys and signed webhooks, in the ESP's own words.`,
		Example: "  smtpbridge demo\n  smtpbridge demo --once\n  smtpbridge demo --provider mailersend",
	}
	c.Flags().BoolVar(&once, "once", false, "exit when the sample mails have been through")
	c.Flags().StringVar(&address, "address", "127.0.0.1:2525", "SMTP address; another port is taken when it is in use")
	c.Flags().StringVar(&provider, "provider", "sandbox", "the ESP: "+strings.Join(demoProviders, ", "))
	choiceFlag(c, "provider", demoProviders...)
	c.RunE = func(c *cobra.Command, _ []string) error {
		esp, err := newDemoESP(provider)
		if err != nil {
			return usageError(c, "%w", err)
		}
		return demo(c.Context(), c.OutOrStdout(), address, provider, esp, once)
	}
	return c
}

// demoTimeout is how long the sample mails may take; they need about two seconds.
const demoTimeout = 60 * time.Second

// demoPassword opens the dashboard of a demo, which holds nothing but its own mails.
const demoPassword = "demo"

// freeAddress is the address, or one with another port when it is in use.
func freeAddress(address string) string {
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return "127.0.0.1:0"
	}
	ln.Close()
	return address
}

func demo(ctx context.Context, out io.Writer, address, provider string, esp *demoESP, once bool) (err error) {
	lines, tables, end, err := esp.serve()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	dir, err := os.MkdirTemp("", "smtpbridge-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	smtpLn, err := net.Listen("tcp", address)
	if err != nil {
		if smtpLn, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return err
		}
	}
	hookLn, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, smtpLn.Close())
	}
	hash, err := smtp.HashPassword(demoPassword)
	if err != nil {
		return errors.Join(err, smtpLn.Close(), hookLn.Close())
	}
	dashboard := "127.0.0.1:0"
	if !once { // for a person: an address to remember
		dashboard = freeAddress("127.0.0.1:8026")
	}
	file := filepath.Join(dir, "bridge.toml")
	text := fmt.Sprintf(`hostname = "demo.example.com"
data_dir = %[1]q
[[listener]]
name = "demo"
address = "systemd:smtp"
[[account]]
name = %[2]q
%[3]s%[4]s
[[route]]
name = "demo"
senders = ["*"]
accounts = [%[2]q]
[webhook]
address = "systemd:webhook"
public_url = "http://%[5]s"
[events]
subject = true
[retention]
bodies = "1d"
[admin]
address = %[7]q
password_hash = %[8]q
%[6]s`, dir, provider, lines, esp.account, hookLn.Addr(), tables, dashboard, hash)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	b, err := NewBridge(ctx, file, BridgeOptions{
		Activated: map[string][]net.Listener{"smtp": {smtpLn}, "webhook": {hookLn}},
		Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return errors.Join(err, smtpLn.Close(), hookLn.Close())
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ran := make(chan error, 1)
	ready := make(chan struct{})
	go func() { ran <- b.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ran:
		return err
	}
	reported := make(chan error, 1)
	if esp.mails != nil {
		go func() {
			err := esp.report(ctx, fmt.Sprintf("http://%s/webhook/%s", hookLn.Addr(), provider))
			if err != nil {
				stop() // or the events would be waited for in vain
			}
			reported <- err
		}()
	} else {
		reported <- nil
	}
	shown := showDemo(ctx, b, out, smtpLn.Addr().String(), once, esp)
	if shown == nil && !once {
		<-ctx.Done()
	}
	stop()
	return errors.Join(shown, <-ran, <-reported)
}

func showDemo(ctx context.Context, b *Bridge, out io.Writer, addr string, once bool, esp *demoESP) error {
	fmt.Fprintf(out, "The bridge takes mail by SMTP at %s; %s. Nothing leaves this machine.\n", addr, esp.words)
	fmt.Fprintf(out, "Dashboard: http://%s/ (password: %s)\n\n", b.AdminAddr(), demoPassword)
	mails, err := demoMails(time.Now())
	if err != nil {
		return err
	}
	for _, m := range mails {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		reply, err := dialogue(conn, nil, nil, m.from, m.to, m.data)
		if err != nil {
			return fmt.Errorf("send %q: %w", m.what, err)
		}
		fmt.Fprintf(out, "SMTP  %-48s -> 250 %s\n", m.what, reply)
	}
	fmt.Fprintln(out, "\nEvents, as `smtpbridge events --follow` shows them:")
	limit, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	if !once {
		limit = ctx
	}
	// What the sample mails are known to end in.
	open := maps.Clone(esp.native)
	var words []string
	for _, kind := range slices.Sorted(maps.Keys(open)) {
		words = append(words, string(kind))
	}
	untold := map[string]bool{} // recipients that the ESP has told nothing of
	for _, m := range mails {
		for _, a := range m.to {
			untold[a] = true
		}
	}
	svc := &admin.Service{Store: b.store, Now: time.Now}
	enough := errors.New("enough")
	said := false
	err = svc.Events(limit, admin.EventQuery{Follow: true}, func(e event.Event) error {
		if _, err := out.Write(dsn.AppendText(nil, e)); err != nil {
			return err
		}
		delete(open, e.Kind)
		if e.ProviderEvent != "" {
			delete(untold, e.Recipient)
		}
		if len(open)+len(untold) > 0 || said {
			return nil
		}
		said = true
		if once {
			return enough
		}
		fmt.Fprintf(out, "\nYour turn: point a mail client at %s, for example\n  swaks --server %s --from me@example.com --to bounce@example.net\nCtrl-C ends the demo.\n\n", addr, addr)
		return nil
	})
	switch {
	case errors.Is(err, enough):
		_, err = fmt.Fprintf(out, "\nSeen: %s. Every sample mail had its life.\n", strings.Join(words, ", "))
		return err
	case err != nil:
		return err
	case len(open)+len(untold) > 0 && ctx.Err() == nil:
		return fmt.Errorf("after %v there is still no event %v, and none about %v", demoTimeout, slices.Sorted(maps.Keys(open)), slices.Sorted(maps.Keys(untold)))
	}
	return nil
}

type demoMail struct {
	what string
	from string
	to   []string
	data []byte
}

func demoMails(now time.Time) ([]demoMail, error) {
	sender := []mime.Address{{Name: "Demo Shop", Addr: "shop@example.com"}}
	logo, err := demoLogo()
	if err != nil {
		return nil, err
	}
	list := []struct {
		what string
		to   []mime.Address
		d    draft
	}{
		{"a plain text mail", []mime.Address{{Name: "Ada", Addr: "ada@example.net"}}, draft{
			Subject: "Your order is on its way", Text: "Dear Ada,\n\nyour parcel left us today.\n",
		}},
		{"HTML with an inline image and an attachment", []mime.Address{{Name: "Jörg Müller", Addr: "joerg@example.net"}}, draft{
			Subject: "Rechnung für März ✓", Text: "Guten Tag,\n\nIhre Rechnung liegt bei.\n",
			HTML:   `<p>Guten Tag,</p><p>Ihre Rechnung liegt bei.</p><img src="cid:logo@example.com" alt="logo">`,
			Header: [][2]string{{"List-Unsubscribe", "<https://example.com/u/42>"}, {"X-Smtpbridge-Tag", "invoice"}},
			Files: []draftFile{
				{Name: "logo.png", Type: "image/png", ID: "logo@example.com", Data: logo},
				{Name: "Rechnung März.csv", Type: "text/csv", Data: []byte("pos;price\r\n1;9.90\r\n")},
			},
		}},
		{"a mail to an address that does not exist", []mime.Address{{Addr: "bounce@example.net"}}, draft{Subject: "Welcome", Text: "Nobody will read this.\n"}},
		{"a mail to a mailbox that is full for now", []mime.Address{{Addr: "defer@example.net"}}, draft{Subject: "Reminder", Text: "Try again later.\n"}},
		{"a mail whose reader calls it spam", []mime.Address{{Addr: "complaint@example.net"}}, draft{Subject: "Newsletter", Text: "You asked for it.\n"}},
	}
	var out []demoMail
	for _, l := range list {
		l.d.From, l.d.To = sender, l.to
		data, err := l.d.bytes(now)
		if err != nil {
			return nil, err
		}
		m := demoMail{what: l.what, from: sender[0].Addr, data: data}
		for _, a := range l.to {
			m.to = append(m.to, a.Addr)
		}
		out = append(out, m)
	}
	return out, nil
}

// demoLogo draws a small picture.
func demoLogo() ([]byte, error) {
	img := image.NewRGBA(image.Rect(0, 0, 32, 32))
	for x := range 32 {
		for y := range 32 {
			img.Set(x, y, color.RGBA{uint8(8 * x), uint8(8 * y), 160, 255})
		}
	}
	var b bytes.Buffer
	err := png.Encode(&b, img)
	return b.Bytes(), err
}
