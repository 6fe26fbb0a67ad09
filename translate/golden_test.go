package translate

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// caseRequest is request.json of a folder below testdata/cases.
type caseRequest struct {
	From     string
	Rcpts    []string
	Caps     Capabilities
	Settings Settings
	Add      []HeaderField // fields the provider adds to raw MIME
}

// caseWant is want.json: the plan in readable form. Raw calls have want-N.eml beside it.
type caseWant struct {
	Error  string     `json:"error,omitempty"`
	Status string     `json:"status,omitempty"`
	Losses []Loss     `json:"losses,omitempty"`
	Calls  []caseCall `json:"calls,omitempty"`
}

type caseCall struct {
	Raw     bool              `json:"raw,omitempty"`
	Rcpts   []string          `json:"rcpts"`
	From    string            `json:"from"`
	Sender  string            `json:"envelope_sender"`
	To      []string          `json:"to,omitempty"`
	Cc      []string          `json:"cc,omitempty"`
	Bcc     []string          `json:"bcc,omitempty"`
	ReplyTo []string          `json:"reply_to,omitempty"`
	Subject string            `json:"subject,omitempty"`
	Headers []string          `json:"headers,omitempty"`
	Attach  []string          `json:"attach,omitempty"`
	Tags    []string          `json:"tags,omitempty"`
	Meta    map[string]string `json:"metadata,omitempty"`
	Losses  []string          `json:"losses,omitempty"`
}

func parse(t testing.TB, src []byte) *mime.Message {
	t.Helper()
	m, err := mime.Parse(bytes.NewReader(src), int64(len(src)), mime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func readBody(t testing.TB, b *Body) []byte {
	t.Helper()
	r := b.Open()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if int64(len(out)) != b.Size {
		t.Errorf("Size says %d, %d bytes came", b.Size, len(out))
	}
	return out
}

func TestCases(t *testing.T) {
	dirs, err := filepath.Glob("testdata/cases/*/request.json")
	if err != nil || len(dirs) == 0 {
		t.Fatal("no cases", err)
	}
	for _, f := range dirs {
		dir := filepath.Dir(f)
		t.Run(filepath.Base(dir), func(t *testing.T) { runCase(t, dir) })
	}
}

func runCase(t *testing.T, dir string) {
	var req caseRequest
	readJSON(t, filepath.Join(dir, "request.json"), &req)
	src, err := os.ReadFile(filepath.Join(dir, "in.eml"))
	if err != nil {
		t.Fatal(err)
	}
	r := Request{Message: parse(t, src), Caps: req.Caps, Settings: req.Settings, Rcpts: rcpts(req.Rcpts...)}
	r.Envelope = envelope.Envelope{ID: "q", From: req.From, Rcpts: r.Rcpts}

	mails, losses, err := Apply(r)
	got := caseWant{Losses: losses}
	if err != nil {
		var refused *RefusalError
		if !errors.As(err, &refused) {
			t.Fatalf("not a refusal: %v", err)
		}
		got.Error, got.Status = refused.Text, refused.Status
	}
	for i, m := range mails {
		c := caseCall{Raw: m.UseRaw, From: formatAddress(m.From), Sender: m.Options.EnvelopeFrom, Subject: m.Subject, Tags: m.Options.Tags, Meta: m.Options.Metadata}
		for _, x := range m.Rcpts {
			c.Rcpts = append(c.Rcpts, x.Addr)
		}
		for _, l := range []struct {
			from []mime.Address
			into *[]string
		}{{m.To, &c.To}, {m.Cc, &c.Cc}, {m.Bcc, &c.Bcc}, {m.ReplyTo, &c.ReplyTo}} {
			for _, a := range l.from {
				*l.into = append(*l.into, formatAddress(a))
			}
		}
		for _, h := range m.Headers {
			c.Headers = append(c.Headers, h.Name+": "+h.Value)
		}
		for _, a := range m.Attach {
			s := a.Name + " " + a.Type
			if a.Inline {
				s += " inline " + a.ContentID
			}
			c.Attach = append(c.Attach, s)
		}
		for _, l := range m.Losses {
			c.Losses = append(c.Losses, l.Severity.String()+" "+l.Field)
		}
		got.Calls = append(got.Calls, c)
		if !m.UseRaw {
			continue
		}
		body, err := m.RawWith(req.Add...)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, filepath.Join(dir, "want-"+string(rune('1'+i))+".eml"), readBody(t, body))
	}
	b, err := json.MarshalIndent(got, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, filepath.Join(dir, "want.json"), append(b, '\n'))
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s (-want +got):\n%s", name, cmp.Diff(string(want), string(got)))
	}
}

func readJSON(t *testing.T, name string, into any) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d := json.NewDecoder(f)
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
}
