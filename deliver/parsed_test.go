package deliver

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"smtpbridge/mime"
)

func TestParsedMails(t *testing.T) {
	const source = "Subject: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\ntext\r\n--b\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC\r\n--b--\r\n"
	parse := func(s string) *mime.Message {
		m, err := mime.Parse(strings.NewReader(s), int64(len(s)), mime.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	var p parsedMails
	p.put("a", parse(source), 0)
	p.put("large", parse("X: "+strings.Repeat("x", parsedHeader)+"\r\n\r\n"), 0)
	m := p.take("a", strings.NewReader(source))
	if m == nil {
		t.Fatal("not kept")
	}
	text, err := io.ReadAll(m.Text.Open())
	if err != nil || string(text) != "text" {
		t.Errorf("text %q, %v", text, err)
	}
	data, err := io.ReadAll(m.Attachments[0].Open())
	if err != nil || string(data) != "\x00\x01\x02" {
		t.Errorf("attachment %q, %v", data, err)
	}
	for _, id := range []string{"a", "large", "unknown"} {
		if p.take(id, strings.NewReader(source)) != nil {
			t.Errorf("%s is given", id)
		}
	}

	for i := range parsedMost + 10 {
		p.put(fmt.Sprint(i), parse(source), time.Duration(i))
	}
	if n := len(p.mails); n != parsedMost {
		t.Errorf("%d kept, want %d", n, parsedMost)
	}
	p.put("later", parse(source), parsedFor+parsedSweep)
	if n := len(p.mails); n != 1 {
		t.Errorf("%d kept after their time, want 1", n)
	}
}
