package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"smtpbridge/config"
	"smtpbridge/smtp"
)

// startError is what keeps the bridge from starting though its configuration can be understood: it names the setting to look at.
type startError struct {
	at  config.Problem
	err error
}

func (e *startError) Error() string { return e.at.String() }
func (e *startError) Unwrap() error { return e.err }

// atKey says in one line which setting an error of the start is about, and what to do. It leaves problems as they are.
func atKey(cfg *config.Config, key string, err error) error {
	var known config.Problems
	if err == nil || errors.As(err, &known) {
		return err
	}
	said := err
	var le *smtp.ListenError
	if errors.As(err, &le) {
		said = le.Err // the key names the listener
	}
	return &startError{cfg.Problem(key, errors.New(oneLine(said)+startHint(err))), err}
}

// storeKey is the setting that an error of opening the store is about.
func storeKey(cfg *config.Config, err error) string {
	var local *fs.PathError
	if cfg.Store.URL != "" && !errors.As(err, &local) {
		return "store.url"
	}
	return "data_dir"
}

// listenerKey is the setting of the listener that could not be opened.
func listenerKey(cfg *config.Config, err error) string {
	var le *smtp.ListenError
	if errors.As(err, &le) {
		for i, l := range cfg.Listeners {
			if l.Name == le.Listener {
				return fmt.Sprintf("listener[%d].address", i)
			}
		}
	}
	return "listener"
}

// oneLine is the text of an error without line breaks, and each line of it once.
func oneLine(err error) string {
	var lines []string
	for l := range strings.Lines(err.Error()) {
		if l = strings.TrimSpace(l); l != "" && !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	text := strings.TrimPrefix(strings.Join(lines, "; "), "store: ")
	return strings.ReplaceAll(text, ":; ", ": ")
}

func startHint(err error) string {
	var list *smtp.ListenError
	var op *os.SyscallError
	socket := errors.As(err, &list) || errors.As(err, &op)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return ": another process has it (ss -ltnp shows which); stop that one, or take another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return ": no interface of this machine has this address"
	case errors.Is(err, fs.ErrPermission) && socket:
		return ": ports below 1024 need CAP_NET_BIND_SERVICE, as systemd/smtpbridge.service gives it"
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf(": the bridge's user (uid %d) must be able to write there", os.Geteuid())
	}
	return ""
}
