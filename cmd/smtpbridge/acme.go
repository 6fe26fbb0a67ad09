package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"time"

	"smtpbridge/config"
	"smtpbridge/internal/certs"
	"smtpbridge/internal/safehttp"
)

// listenACME makes what keeps certificates that come by ACME and, where any is asked for, binds the socket that the CA looks at.
func (b *Bridge) listenACME(cfg *config.Config, activated map[string][]net.Listener) error {
	b.certs = certs.New(filepath.Join(cfg.DataDir, "acme"), b.log, time.Now)
	names := b.acmeNames(cfg)
	if len(names) == 0 {
		return nil
	}
	authority, err := makeAuthority(cfg)
	if err != nil {
		return err
	}
	if b.acmeLn, err = listen(cfg.ACME.Address, "", activated); err != nil {
		return fmt.Errorf("acme.address: %w", err)
	}
	b.certs.Use(authority, names)
	return nil
}

// acmeNames lists the names of the sockets that this process serves.
func (b *Bridge) acmeNames(cfg *config.Config) (names []string) {
	if b.roles.has(roleSMTP) {
		for _, l := range cfg.Listeners {
			names = append(names, l.ACME...)
		}
	}
	if b.roles.has(roleAdmin) && cfg.Admin.Address != "" {
		names = append(names, cfg.Admin.ACME...)
	}
	return names
}

// sameACMESocket says whether a reload can put [acme] into force, and gives its CA.
func (b *Bridge) sameACMESocket(cfg *config.Config) (certs.Authority, error) {
	if len(b.acmeNames(cfg)) > 0 && (b.acmeLn == nil || cfg.ACME.Address != b.parts.cfg.ACME.Address) {
		return certs.Authority{}, config.Problems{cfg.Problem("acme.address", errors.New("this socket is opened at the start only: restart the bridge"))}
	}
	return makeAuthority(cfg)
}

func makeAuthority(cfg *config.Config) (certs.Authority, error) {
	hc, err := httpConfig(cfg, 1)
	if err != nil {
		return certs.Authority{}, err
	}
	if cfg.ACME.CAFile != "" {
		if hc.RootCAs, err = safehttp.LoadRoots(cfg.ACME.CAFile); err != nil {
			return certs.Authority{}, config.Problems{cfg.Problem("acme.ca_file", err)}
		}
	}
	client, err := safehttp.New(hc)
	if err != nil {
		return certs.Authority{}, config.Problems{cfg.Problem("http.proxy", err)}
	}
	return certs.Authority{Directory: cfg.ACME.Directory, Email: cfg.ACME.Email, Client: client}, nil
}

// checkACME asks whether the CA is there.
func checkACME(ctx context.Context, cfg *config.Config, out io.Writer) error {
	if !cfg.UsesACME() {
		return nil
	}
	authority, err := makeAuthority(cfg)
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	terms, err := authority.Check(call)
	if err != nil {
		return fmt.Errorf("acme: %w", err)
	}
	fmt.Fprintf(out, "acme: %s answers; its terms of service: %s\n", cfg.ACME.Directory, terms)
	return nil
}
