package main

import (
	"strings"
	"testing"
	"time"
)

// TestAsReceived: explain plans the mail as the queue would have it, with what the SMTP side adds.
func TestAsReceived(t *testing.T) {
	now := time.Date(2026, 11, 23, 10, 0, 0, 0, time.UTC)
	const date, id = "Date: Mon, 23 Nov 2026 10:00:00 +0000\r\n", "Message-ID: <id@bridge.example>\r\n"
	for in, want := range map[string]string{
		"From: a@b\nDate: x\nMessage-ID: <y@z>\n\nhello\n": "From: a@b\r\nDate: x\r\nMessage-ID: <y@z>\r\n\r\nhello\r\n",
		"From: a@b\r\nDate: x\r\n\r\nhello\r\n":            id + "From: a@b\r\nDate: x\r\n\r\nhello\r\n",
		"From: a@b\n\n":                                    date + id + "From: a@b\r\n\r\n",
		"all body\n":                                       date + id + "\r\nall body\r\n",
	} {
		got, err := asReceived(strings.NewReader(in), "id", "bridge.example", now)
		if err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v, want %q", in, got, err, want)
		}
	}
}
