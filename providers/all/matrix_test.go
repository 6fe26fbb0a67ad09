package all

import (
	"bytes"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/BurntSushi/toml"

	"smtpbridge/internal/secret"
	"smtpbridge/providers"
	"smtpbridge/translate"
)

var update = flag.Bool("update", false, "rewrite docs/providers.md")

// column is one provider in one of its forms.
type column struct {
	title string
	info  providers.Info
	p     providers.Provider
	caps  translate.Capabilities
}

// keyEnv holds a key for variants that need a second one.
const keyEnv = "SMTPBRIDGE_MATRIX_KEY"

// variants are settings that change what an account can do.
var variants = map[string][]struct{ title, options string }{
	"maileroo":   {{"maileroo (account_key_env set)", "account_key_env = \"" + keyEnv + "\""}},
	"mandrill":   {{"mandrill (form = json)", "form = \"json\""}},
	"mailersend": {{"mailersend (plan = professional, use-bulk-email)", "plan = \"professional\"\nbatch_send_mode = \"use-bulk-email\""}},
}

func columns(t *testing.T) []column {
	t.Helper()
	t.Setenv(keyEnv, "0123456789abcdef0123456789abcdef")
	var out []column
	add := func(title string, info providers.Info, options string) {
		o := providers.Options{
			Account: "x", Hostname: "bridge.example.com", APIKey: secret.New("0123456789abcdef0123456789abcdef"), Client: http.DefaultClient,
			WebhookURL: "https://hooks.example.com/webhook/x", Now: time.Now,
			Decode: func(v any) error {
				md, err := toml.Decode(options, v)
				if err == nil && len(md.Undecoded()) > 0 {
					err = fmt.Errorf("unknown setting %s", md.Undecoded()[0])
				}
				return err
			},
		}
		switch info.Name {
		case "smtp", "lmtp":
			o.BaseURL = info.Name + "://127.0.0.1:25"
		case "maildir":
			o.BaseURL = "maildir://" + t.TempDir()
		}
		p, err := info.New(o)
		if err != nil {
			t.Fatalf("%s: %v", title, err)
		}
		out = append(out, column{title, info, p, p.Capabilities()})
	}
	for _, info := range Registry() {
		add(info.Name, info, "")
		for _, v := range variants[info.Name] {
			add(v.title, info, v.options)
		}
	}
	return out
}

// whole: the mail leaves as it is, in its MIME form only.
func (c column) whole() bool { return c.caps.Raw != translate.RawNone && !c.caps.JSON }

type row struct {
	name string
	cell func(column) string
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "-"
}

func count(n int, none string) string {
	switch {
	case n < 0:
		return "any"
	case n == 0:
		return none
	}
	return fmt.Sprint(n)
}

func duration(d time.Duration) string {
	switch {
	case d == 0:
		return "-"
	case d%(24*time.Hour) == 0:
		return fmt.Sprintf("%d d", d/(24*time.Hour))
	case d%time.Hour == 0:
		return fmt.Sprintf("%d h", d/time.Hour)
	}
	return d.String()
}

func implements[T any](c column) string {
	_, ok := c.p.(T)
	return yes(ok)
}

var tables = []struct {
	title string
	rows  []row
}{
	{"Sending", []row{
		{"the mail goes out as", func(c column) string {
			raw, fields := c.caps.Raw != translate.RawNone, c.caps.JSON
			switch {
			case raw && fields:
				return "MIME or fields"
			case raw:
				return "MIME, whole"
			}
			return "fields"
		}},
		{"Reply-To addresses", func(c column) string { return count(c.caps.ReplyTo, "none") }},
		{"other headers", func(c column) string {
			if c.whole() {
				return "all"
			}
			return [...]string{"none", "X-* only", "some", "any"}[c.caps.Headers]
		}},
		{"In-Reply-To, References", func(c column) string { return yes(c.caps.Threading) }},
		{"List-Unsubscribe", func(c column) string { return yes(c.caps.ListUnsub) }},
		{"List-Unsubscribe-Post", func(c column) string { return yes(c.caps.ListUnsubPost) }},
		{"inline parts", func(c column) string {
			if c.caps.InlineImages {
				return "images"
			}
			return yes(c.caps.Inline)
		}},
		{"attachments allowed", func(c column) string {
			if c.caps.AttachExts != nil {
				return fmt.Sprintf("%d extensions", len(c.caps.AttachExts))
			}
			return "all"
		}},
		{"attachment names as given", func(c column) string {
			if c.caps.AttachOneDot {
				return "one full stop"
			}
			return yes(c.caps.AttachName || c.whole())
		}},
		{"attachment types as declared", func(c column) string { return yes(c.caps.AttachType || c.whole()) }},
		{"tags", func(c column) string { return count(c.caps.Tags, "-") }},
		{"metadata", func(c column) string {
			if c.caps.MetadataTags && c.caps.Metadata {
				return "as tags"
			}
			return yes(c.caps.Metadata)
		}},
		{"the ESP's templates", func(c column) string { return yes(c.caps.Template) }},
		{"merge data per recipient", func(c column) string {
			switch {
			case !c.caps.Merge:
				return "-"
			case c.caps.Batch:
				return "one call"
			case c.caps.MergeVisible:
				return "one call, To list visible"
			}
			return "a call each"
		}},
		{"scheduled sending", func(c column) string { return duration(c.caps.SendAt) }},
		{"our envelope sender", func(c column) string { return yes(c.caps.EnvelopeFrom) }},
		{"null sender", func(c column) string { return yes(c.caps.NullSender) }},
		{"our Message-ID on the wire", func(c column) string { return yes(c.caps.MessageID) }},
		{"8-bit local parts (SMTPUTF8)", func(c column) string { return yes(c.caps.UTF8Local) }},
		{"AMP part", func(c column) string { return yes(c.caps.AMP) }},
		{"calendar alternative", func(c column) string { return yes(c.caps.Calendar) }},
		{"tracking per mail", func(c column) string {
			switch {
			case c.caps.TrackTogether:
				return "one switch"
			case c.caps.TrackOpens && c.caps.TrackClicks:
				return "yes"
			case c.caps.TrackOpens:
				return "opens"
			case c.caps.TrackClicks:
				return "clicks"
			}
			return "-"
		}},
	}},
	{"Limits and safety", []row{
		{"recipients per call", func(c column) string { return count(c.caps.MaxRcpts, "unknown") }},
		{"of which to, cc, bcc", func(c column) string {
			if c.caps.MaxTo+c.caps.MaxCc+c.caps.MaxBcc == 0 {
				return "-"
			}
			return count(c.caps.MaxTo, "-") + ", " + count(c.caps.MaxCc, "-") + ", " + count(c.caps.MaxBcc, "-")
		}},
		{"message size", func(c column) string {
			if c.caps.MaxBytes == 0 {
				return "unknown"
			}
			return fmt.Sprintf("%.4g MiB", float64(c.caps.MaxBytes)/(1<<20))
		}},
		{"bytes of a text", func(c column) string { return count(int(c.caps.MaxText), "unknown") }},
		{"bytes of an attachment", func(c column) string { return count(int(c.caps.MaxAttachment), "unknown") }},
		{"characters of a subject", func(c column) string { return count(c.caps.MaxSubject, "unknown") }},
		{"bytes of another header's value", func(c column) string { return count(c.caps.HeaderMax, "unknown") }},
		{"calls per second (default)", func(c column) string {
			if c.info.Rate == 0 {
				return "none known"
			}
			return fmt.Sprintf("%g", c.info.Rate)
		}},
		{"calls at once (default)", func(c column) string { return count(c.info.Concurrent, "20") }},
		{"a repeated call is known for", func(c column) string { return duration(c.caps.IdempotencyTTL) }},
		{"a lost answer can be looked up", implements[providers.Finder]},
		{"check --online", implements[providers.Checker]},
	}},
	{"Events", []row{
		{"webhooks", implements[providers.WebhookParser]},
		{"signed", func(c column) string {
			if c.info.Webhook.Signed && c.info.Webhook.OwnKeys && !c.info.Local {
				return "yes, key in DNS"
			}
			return yes(c.info.Webhook.Signed)
		}},
		{"events name the recipient", func(c column) string { return yes(c.caps.RcptStatus) }},
		{"missed events are fetched", implements[providers.Poller]},
		{"inbound mail", implements[providers.InboundParser]},
	}},
}

// TestMatrix keeps docs/providers.md the same as what the providers say of themselves.
func TestMatrix(t *testing.T) {
	cols := columns(t)
	var b bytes.Buffer
	b.WriteString("# What each provider can express\n\nGenerated from the capabilities the bridge works with; `go test ./providers/all -update` rewrites it. What a mail has\nand its provider cannot express is a loss: in the `sent` event, and in `smtpbridge explain` before anything is sent.\nWhere an API leaves a choice, both forms stand side by side: the setting is in [account.options]. \"-\" is no; \"unknown\" and\n\"none known\": the vendor publishes none, and its answer decides. Details, with sources: `providers/NAME/README.md`.\n")
	for _, table := range tables {
		fmt.Fprintf(&b, "\n## %s\n\n|", table.title)
		for _, c := range cols {
			fmt.Fprintf(&b, " | %s", c.title)
		}
		b.WriteString(" |\n|" + strings.Repeat(" --- |", len(cols)+1) + "\n")
		for _, r := range table.rows {
			fmt.Fprintf(&b, "| %s", r.name)
			for _, c := range cols {
				fmt.Fprintf(&b, " | %s", r.cell(c))
			}
			b.WriteString(" |\n")
		}
	}
	const file = "../../docs/providers.md"
	if *update {
		if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, b.Bytes()) {
		t.Errorf("%s is not what the providers say: run go test ./providers/all -update", file)
	}
}
