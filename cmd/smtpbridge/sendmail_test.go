package main

import (
	"fmt"
	"slices"
	"testing"
)

// The command lines that programs call sendmail with.
func TestSendmailOptions(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		want string // from, full name, -t, -i, mode, recipients
		fail bool
	}{
		{"PHP, php.ini-production", []string{"-t", "-i"}, `"" "" t i m []`, false},
		{"PHP, both in one", []string{"-ti", "-fwww@example.com"}, `"www@example.com" "" t i m []`, false},
		{"PHPMailer, fifth parameter", []string{"-oi", "-fbounce@example.com", "-t"}, `"bounce@example.com" "" t i m []`, false},
		{"Symfony Mailer", []string{"-bs"}, `"" "" - - s []`, false},
		{"Vixie cron, Debian", []string{"-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"}, `"" "CronDaemon" - i m [root]`, false},
		{"cronie", []string{"-FCronDaemon", "-i", "-odi", "-oem", "-oi", "-t", "-f", "root"}, `"root" "CronDaemon" t i m []`, false},
		{"git send-email", []string{"-f", "dev@example.com", "-i", "a@example.net", "b@example.net"}, `"dev@example.com" "" - i m [a@example.net b@example.net]`, false},
		{"mailx", []string{"-i", "-m", "ada@example.net"}, `"" "" - i m [ada@example.net]`, false},
		{"mutt", []string{"-oem", "-oi", "-f", "me@example.com", "--", "ada@example.net", "-bob@example.net"}, `"me@example.com" "" - i m [ada@example.net -bob@example.net]`, false},
		{"Mailman, DSN", []string{"-N", "never", "-R", "hdrs", "-V", "envid", "-oi", "-f", "", "ada@example.net"}, `"" "" - i m [ada@example.net]`, false},
		{"smartd", []string{"-bm", "-t"}, `"" "" t - m []`, false},
		{"sendmail's long options", []string{"-O", "DeliveryMode=b", "-OErrorMode=m", "-C", "/x", "-v", "-q15m", "-d0.1", "-h", "3", "-p", "local", "-X/tmp/log", "-L", "tag", "-Am", "-G", "-U", "-n", "-em", "-t"}, `"" "" t - m []`, false},
		{"Postfix", []string{"-r", "me@example.com", "-itv"}, `"me@example.com" "" t i m []`, false},
		{"full name apart", []string{"-F", "Ada Lovelace", "ada@example.net"}, `"" "Ada Lovelace" - - m [ada@example.net]`, false},
		{"newaliases", []string{"-I"}, `"" "" - - i []`, false},
		{"mailq", []string{"-bp"}, `"" "" - - p []`, false},
		{"a lone dash is an address", []string{"-t", "-"}, `"" "" t - m [-]`, false},
		{"value missing", []string{"-t", "-f"}, "", true},
		{"unknown letter", []string{"-y"}, "", true},
		{"unknown letter behind a known one", []string{"-ty"}, "", true},
		{"mode missing", []string{"-b"}, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, err := parseSendmailArgs(tt.args)
			if tt.fail || err != nil {
				if (err != nil) != tt.fail {
					t.Errorf("got %v", err)
				}
				return
			}
			flag := func(on bool, letter string) string {
				if on {
					return letter
				}
				return "-"
			}
			got := fmt.Sprintf("%q %q %s %s %c %v", a.from, a.fullName, flag(a.readRcpts, "t"), flag(a.ignoreDots, "i"), a.mode, a.rcpts)
			if got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if a.haveFrom != slices.ContainsFunc(tt.args, func(s string) bool { return len(s) > 1 && (s[:2] == "-f" || s[:2] == "-r") }) {
				t.Errorf("haveFrom is %v", a.haveFrom)
			}
		})
	}
}
