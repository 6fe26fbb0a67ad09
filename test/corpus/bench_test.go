package corpus

import (
	"bytes"
	"context"
	"encoding/base64"
	"io"
	"net/http"
	"strings"
	"testing"

	"smtpbridge/deliver"
	"smtpbridge/envelope"
)

// takes answers every request at once, without a network, after it has read the body.
type takes string

func (t takes) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		r.Body.Close()
	}
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: io.NopCloser(strings.NewReader(string(t))), Request: r}, nil
}

// BenchmarkTranslate parses a mail, plans it, and makes the ESP's request of it.
func BenchmarkTranslate(b *testing.B) {
	text := strings.Repeat("A line of text as people write it, with one é in it.\r\n", 180)
	line := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7, 57, 107}, 19)) + "\r\n"
	head := "From: App <app@example.com>\r\nTo: ada@example.net\r\nSubject: Report\r\nMIME-Version: 1.0\r\n"
	mails := []struct{ name, mail string }{
		{"10KiB", head + "Content-Type: text/plain; charset=utf-8\r\n\r\n" + text},
		{"1MiB", head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + text +
			"--b\r\nContent-Type: application/pdf; name=a.pdf\r\nContent-Disposition: attachment\r\nContent-Transfer-Encoding: base64\r\n\r\n" + strings.Repeat(line, 1<<20/len(line)) + "--b--\r\n"},
	}
	for _, provider := range []string{"mailpace", "smtpeter"} {
		for _, m := range mails {
			b.Run(m.name+"/"+provider, func(b *testing.B) {
				p, a := planner(b, provider, "", "https://esp.example", &http.Client{Transport: takes(answers[provider])})
				b.SetBytes(int64(len(m.mail)))
				b.ReportAllocs()
				for b.Loop() {
					plan, err := p.Plan(deliver.PlanRequest{
						Envelope: envelope.Envelope{ID: "id", From: "app@example.com", Rcpts: []envelope.Rcpt{{Addr: "ada@example.net"}}},
						Body:     strings.NewReader(m.mail), Size: int64(len(m.mail)),
					})
					if err != nil {
						b.Fatal(err)
					}
					c := plan.Groups[0].Verdicts[0].Calls[0]
					c.Ref, c.IdempotencyKey = "ref", "key"
					if _, err := a.Provider.Send(context.Background(), c); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
