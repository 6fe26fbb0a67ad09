// Command bare is go-smtp with a backend that throws every mail away: the most that an SMTP server built on it
// can take. It listens on loopback only.
package main

import (
	"flag"
	"io"
	"log"
	"net"

	gosmtp "github.com/emersion/go-smtp"
)

type discard struct{}

func (discard) NewSession(*gosmtp.Conn) (gosmtp.Session, error) { return discard{}, nil }
func (discard) Mail(string, *gosmtp.MailOptions) error          { return nil }
func (discard) Rcpt(string, *gosmtp.RcptOptions) error          { return nil }
func (discard) Reset()                                          {}
func (discard) Logout() error                                   { return nil }

func (discard) Data(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

func main() {
	port := flag.String("port", "2625", "port on 127.0.0.1")
	flag.Parse()
	ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", *port))
	if err != nil {
		log.Fatal(err)
	}
	s := gosmtp.NewServer(discard{})
	s.Domain = "bare.example.com"
	log.Fatal(s.Serve(ln))
}
