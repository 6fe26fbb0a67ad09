package translate

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
)

func addrs(list ...string) (out []mime.Address) {
	for _, a := range list {
		out = append(out, mime.Address{Addr: a})
	}
	return out
}

func rcpts(list ...string) (out []envelope.Rcpt) {
	for _, a := range list {
		out = append(out, envelope.Rcpt{Addr: a})
	}
	return out
}

func message(fields ...string) *mime.Message {
	m := &mime.Message{From: []mime.Address{{Name: "Old", Addr: "from@example.org"}}}
	for i := 0; i+1 < len(fields); i += 2 {
		m.Header = append(m.Header, mime.Field{Name: fields[i], Value: fields[i+1]})
	}
	return m
}

func request(m *mime.Message, c Capabilities, to ...string) Request {
	if len(to) == 0 {
		to = []string{"a@example.com"}
	}
	return Request{Message: m, Caps: c, Rcpts: rcpts(to...), Envelope: envelope.Envelope{From: "from@example.org", Rcpts: rcpts(to...)}}
}

func one(t *testing.T, r Request) *Mail {
	t.Helper()
	mails, _, err := Apply(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(mails) != 1 {
		t.Fatalf("%d calls, want 1", len(mails))
	}
	return mails[0]
}

func has(losses []Loss, sev Severity, field string) bool {
	return slices.ContainsFunc(losses, func(l Loss) bool { return l.Severity == sev && l.Field == field })
}

func TestRefusals(t *testing.T) {
	json := Capabilities{JSON: true}
	att := func(name, typ string) *mime.Message {
		m := message()
		m.Attachments = []mime.Attachment{{Filename: name, Type: typ, Size: 900}}
		return m
	}
	for _, c := range []struct {
		name string
		req  Request
		want string
	}{
		{"no From", request(&mime.Message{}, json), "5.6.0"},
		{"two From addresses", request(&mime.Message{From: addrs("a@b.example", "c@d.example")}, json), "5.6.0"},
		{"two From fields", request(message("From", "from@example.org", "From ", "x@example.org"), json), "5.6.0"},
		{"From without a domain", request(&mime.Message{From: addrs("root")}, json), "5.6.0"},
		{"too big", request(att("a.pdf", "application/pdf"), Capabilities{JSON: true, MaxBytes: 1000}), "5.3.4"},
		{"fits", request(att("a.pdf", "application/pdf"), Capabilities{JSON: true, MaxBytes: 1200, AttachType: true}), ""},
		{"file type not taken", request(att("a.exe", "application/octet-stream"), Capabilities{JSON: true, AttachExts: []string{"pdf"}}), "5.6.1"},
		{"non-ASCII recipient", request(message(), json, "ok@example.com", "dürst@example.com"), "5.6.7"},
		{"non-ASCII recipient, able", request(message(), Capabilities{JSON: true, UTF8Local: true}, "dürst@example.com"), ""},
		{"non-ASCII domain", request(message(), json, "a@bücher.example"), ""},
		{"any From taken raw", request(&mime.Message{}, Capabilities{Raw: RawEnvelope, AnyFrom: true}), ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := Apply(c.req)
			var refused *RefusalError
			got := ""
			if errors.As(err, &refused) {
				got = refused.Status
			}
			if got != c.want || (err != nil) != (c.want != "") {
				t.Fatalf("got %q (%v), want %q", got, err, c.want)
			}
			if got == "5.6.7" && (len(refused.Rcpts) != 1 || refused.Rcpts[0].Addr != "dürst@example.com") {
				t.Errorf("refused recipients %v", refused.Rcpts)
			}
		})
	}
}

func TestForceFrom(t *testing.T) {
	r := request(message(), Capabilities{JSON: true, ReplyTo: 1})
	r.Settings.ForceFrom = "fixed@example.net"
	m := one(t, r)
	if m.From != (mime.Address{Name: "Old", Addr: "fixed@example.net"}) {
		t.Errorf("From %v", m.From)
	}
	if len(m.ReplyTo) != 1 || m.ReplyTo[0].Addr != "from@example.org" {
		t.Errorf("the old address is not in Reply-To: %v", m.ReplyTo)
	}
	r.Message.ReplyTo = addrs("r@example.org")
	if m = one(t, r); len(m.ReplyTo) != 1 || m.ReplyTo[0].Addr != "r@example.org" {
		t.Errorf("Reply-To of the mail did not stay: %v", m.ReplyTo)
	}
	r.Message.From = nil
	if m = one(t, r); m.From.Addr != "fixed@example.net" {
		t.Errorf("no From in the mail: %v", m.From)
	}
}

func TestEnvelopeSender(t *testing.T) {
	for _, c := range []struct {
		name       string
		from       string
		caps       Capabilities
		returnPath string
		want       string
		major      bool
	}{
		{"ours is used", "b@example.org", Capabilities{EnvelopeFrom: true}, "", "b@example.org", false},
		{"not used", "b@example.org", Capabilities{}, "", "from@example.org", false},
		{"null kept", "", Capabilities{EnvelopeFrom: true, NullSender: true}, "rp@example.org", "", false},
		{"null replaced by return_path", "", Capabilities{EnvelopeFrom: true}, "rp@example.org", "rp@example.org", true},
		{"null replaced by From", "", Capabilities{EnvelopeFrom: true}, "", "from@example.org", true},
		{"null replaced by the ESP", "", Capabilities{}, "", "from@example.org", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(message(), c.caps)
			r.Envelope.From, r.Settings.ReturnPath = c.from, c.returnPath
			m := one(t, r)
			if m.Options.EnvelopeFrom != c.want || has(m.Losses, Major, "null sender") != c.major {
				t.Errorf("got %q, losses %v", m.Options.EnvelopeFrom, m.Losses)
			}
		})
	}
}

func TestChooseForm(t *testing.T) {
	both := Capabilities{Raw: RawEnvelope, JSON: true, Tags: 5, SendAt: time.Hour}
	for _, c := range []struct {
		name string
		edit func(*Request)
		raw  bool
	}{
		{"raw by default", func(*Request) {}, true},
		{"tags need the structured form", func(r *Request) { r.Message.Header = message("X-Tag", "a").Header }, false},
		{"tags work beside raw", func(r *Request) { r.Message.Header = message("X-Tag", "a").Header; r.Caps.RawFeatures = true }, true},
		{"no structured form", func(r *Request) { r.Message.Header = message("X-Tag", "a").Header; r.Caps.JSON = false }, true},
		{"signed mail stays raw", func(r *Request) { r.Message.Header = message("X-Tag", "a").Header; r.Message.Signed = true }, true},
		{"what neither form can do changes nothing", func(r *Request) { r.Message.Header = message("X-Metadata-a", "b").Header }, true},
		{"no raw", func(r *Request) { r.Caps.Raw = RawNone }, false},
		{"zero capabilities", func(r *Request) { r.Caps = Capabilities{} }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := request(message(), both)
			c.edit(&r)
			if m := one(t, r); m.UseRaw != c.raw {
				t.Errorf("raw %v, want %v; losses %v", m.UseRaw, c.raw, m.Losses)
			}
		})
	}
}

func TestHoldUntil(t *testing.T) {
	at := time.Date(2027, 3, 1, 12, 0, 0, 0, time.UTC)
	msg := message("X-Smtpbridge-Send-At", "2027-03-01T13:00:00+01:00")
	for _, c := range []struct {
		name string
		caps Capabilities
		want time.Time
	}{
		{"the ESP schedules", Capabilities{JSON: true, SendAt: 72 * time.Hour}, at.Add(-72 * time.Hour)},
		{"the ESP does not", Capabilities{JSON: true}, at},
		{"only its structured form does", Capabilities{Raw: RawEnvelope, SendAt: time.Hour}, at},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := one(t, request(msg, c.caps))
			if !m.HoldUntil().Equal(c.want) || !m.Options.SendAt.Equal(at) {
				t.Errorf("hold until %v, send at %v", m.HoldUntil(), m.Options.SendAt)
			}
		})
	}
	if m := one(t, request(message(), Capabilities{})); !m.HoldUntil().IsZero() {
		t.Error("a mail without a wish is held")
	}
}

func TestAttachmentNames(t *testing.T) {
	few := []string{"pdf", "txt", "jpg", "jpeg", "zip"}
	for _, c := range []struct {
		name, file, typ string
		caps            Capabilities
		want            string
	}{
		{"as it is", "report.v2.pdf", "application/pdf", Capabilities{}, "report.v2.pdf"},
		{"one dot", "a.b.pdf", "application/pdf", Capabilities{AttachOneDot: true}, "a_b.pdf"},
		{"one dot, many", "a.b.c.d.pdf", "application/pdf", Capabilities{AttachOneDot: true, AttachExts: few}, "a_b_c_d.pdf"},
		{"upper case is in the list", "A.PDF", "application/pdf", Capabilities{AttachExts: few}, "A.PDF"},
		{"ending from the type", "report", "application/pdf", Capabilities{AttachExts: few}, "report.pdf"},
		{"synonym", "photo.jfif", "image/jpeg", Capabilities{AttachExts: few}, "photo.jpg"},
		{"ending does not fit the type", "virus.exe", "application/pdf", Capabilities{AttachExts: few}, "virus_exe.pdf"},
		{"no name, none needed", "", "application/pdf", Capabilities{}, ""},
		{"no name", "", "application/pdf", Capabilities{AttachNeedName: true}, "attachment.pdf"},
		{"no name, attached mail", "", "message/rfc822", Capabilities{AttachNeedName: true}, "message.eml"},
		{"no name, unknown type", "", "application/x-foo", Capabilities{AttachNeedName: true}, "attachment.bin"},
		{"only a full stop before", ".profile", "text/plain", Capabilities{AttachExts: few}, "_profile.txt"},
		{"full stop at the end", "a.", "text/plain", Capabilities{}, "a."},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.caps.AttachName, c.caps.AttachType = true, true
			msg := message()
			msg.Attachments = []mime.Attachment{{Filename: c.file, Type: c.typ}}
			m := one(t, request(msg, c.caps))
			if got := m.Attach[0].Name; got != c.want {
				t.Errorf("name %q, want %q", got, c.want)
			}
			if said := has(m.Losses, Major, "attachment "+c.file); said != (c.file != c.want && c.file != "") {
				t.Errorf("losses %v", m.Losses)
			}
		})
	}
	t.Run("renamed files stay apart", func(t *testing.T) {
		msg := message()
		msg.Attachments = []mime.Attachment{
			{Filename: "a.b.pdf", Type: "application/pdf"},
			{Filename: "a_b.pdf", Type: "application/pdf"},
			{Type: "application/pdf"},
			{Type: "application/pdf"},
		}
		m := one(t, request(msg, Capabilities{AttachName: true, AttachType: true, AttachOneDot: true, AttachNeedName: true}))
		var got []string
		for _, a := range m.Attach {
			got = append(got, a.Name)
		}
		if want := []string{"a_b-2.pdf", "a_b.pdf", "attachment.pdf", "attachment-2.pdf"}; !slices.Equal(got, want) {
			t.Errorf("names %q, want %q", got, want)
		}
	})
}

func TestStructuredHeaders(t *testing.T) {
	msg := message("Received", "x", "From", "from@example.org", "Message-ID", "<a@b>", "X-One", "1", "X-One", "2", "Feedback-ID", "f",
		"List-Unsubscribe", "<mailto:u@example.org>", "Auto-Submitted", "auto-generated", "References", "<r@b>", "Return-Path", "<>",
		"ARC-Seal", "i=1", "Authentication-Results", "x", "X-Mailgun-Foo", "x", "Bad Name", "x", "Content-Language", "de", "X-Ctl", "a\r\nBcc: e@e")
	for _, c := range []struct {
		name  string
		caps  Capabilities
		want  []string
		major []string
		minor []string
	}{
		{"none", Capabilities{}, nil, []string{"header list-unsubscribe", "header auto-submitted", "header references"}, []string{"header x-one", "header feedback-id"}},
		{"x only, with fields of its own", Capabilities{Headers: HeadersXOnly, Threading: true, ListUnsub: true}, []string{"X-One", "X-One", "X-Ctl"}, []string{"header auto-submitted"}, []string{"header feedback-id"}},
		{"listed", Capabilities{Headers: HeadersListed, HeaderList: []string{"feedback-id", "x-*"}, HeaderOnce: true}, []string{"X-One", "Feedback-ID", "X-Ctl"}, []string{"header references"}, []string{"header x-one"}},
		{"any", Capabilities{Headers: HeadersAny, Threading: true, ListUnsub: true}, []string{"X-One", "X-One", "Feedback-ID", "List-Unsubscribe", "Auto-Submitted", "References", "X-Ctl"}, nil, []string{"header bad name", "header content-language"}},
		{"any, but List-Unsubscribe does not survive", Capabilities{Headers: HeadersAny, Threading: true}, []string{"X-One", "X-One", "Feedback-ID", "Auto-Submitted", "References", "X-Ctl"}, []string{"header list-unsubscribe"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := one(t, request(msg, c.caps))
			var got []string
			for _, h := range m.Headers {
				got = append(got, h.Name)
				if h.Name == "X-Ctl" && h.Value != "a  Bcc: e@e" {
					t.Errorf("control characters in %q", h.Value)
				}
			}
			if !slices.Equal(got, c.want) {
				t.Errorf("headers %q, want %q", got, c.want)
			}
			for _, f := range c.major {
				if !has(m.Losses, Major, f) {
					t.Errorf("no major loss for %s in %v", f, m.Losses)
				}
			}
			for _, f := range c.minor {
				if !has(m.Losses, Minor, f) {
					t.Errorf("no minor loss for %s in %v", f, m.Losses)
				}
			}
			if c.major == nil {
				for _, l := range m.Losses {
					if l.Severity == Major {
						t.Errorf("unexpected %v", l)
					}
				}
			}
			if !has(m.Losses, Info, "header received") || !has(m.Losses, Info, "header message-id") {
				t.Errorf("trace losses missing: %v", m.Losses)
			}
		})
	}
}

func TestContentLosses(t *testing.T) {
	msg := message()
	msg.Subject = "äöü 4567"
	msg.AMP, msg.Calendar = &mime.Part{}, &mime.Part{}
	msg.ReplyTo = addrs("a@b.example", "c@d.example")
	msg.Attachments = []mime.Attachment{
		{Filename: "logo.png", Type: "image/png", Inline: true, ContentID: "logo"},
		{Filename: "x.svg", Type: "application/x-foo", Inline: true, ContentID: "x"},
		{Filename: "y.png", Type: "image/png", Inline: true},
	}
	m := one(t, request(msg, Capabilities{ReplyTo: 1, MaxSubject: 4, InlineImages: true, AttachName: true}))
	for _, w := range []Loss{
		{"subject", "8 characters", "first 4", Major},
		{"reply-to", "2 addresses", "first only", Major},
		{"amp alternative", "text/x-amp-html", "", Minor},
		{"calendar alternative", "text/calendar", "as attachment", Major},
		{"attachment x.svg", "inline", "as attachment", Major},
		{"attachment x.svg", "type application/x-foo", "", Major},
		{"attachment y.png", "inline", "as attachment", Info},
	} {
		if !slices.Contains(m.Losses, w) {
			t.Errorf("no loss %v in %v", w, m.Losses)
		}
	}
	if m.Subject != "äöü " || !m.Attach[0].Inline || m.Attach[1].Inline || m.Attach[2].Inline || len(m.ReplyTo) != 1 {
		t.Errorf("subject %q, inline %v %v %v, reply-to %v", m.Subject, m.Attach[0].Inline, m.Attach[1].Inline, m.Attach[2].Inline, m.ReplyTo)
	}
	msg.Signed, msg.Encrypted = true, true
	m = one(t, request(msg, Capabilities{}))
	if !has(m.Losses, Fatal, "signature") || !has(m.Losses, Fatal, "encryption") {
		t.Errorf("no fatal loss: %v", m.Losses)
	}
}

func TestTwinRecipientsShareACall(t *testing.T) {
	mails, _, err := Apply(request(message(), Capabilities{Bcc: true, MaxRcpts: 1}, "a@example.com", "b@example.com", "a@EXAMPLE.com"))
	if err != nil || len(mails) != 2 {
		t.Fatal(mails, err)
	}
	if len(mails[0].Rcpts) != 2 || len(mails[0].Bcc)+len(mails[0].To) != 1 {
		t.Errorf("got %+v", mails[0])
	}
}

func TestNoRecipients(t *testing.T) {
	r := request(message(), Capabilities{})
	r.Rcpts = nil
	if mails, _, err := Apply(r); len(mails) != 0 || err != nil {
		t.Error(mails, err)
	}
}

func TestRecipientNames(t *testing.T) {
	msg := message()
	msg.From = []mime.Address{{Name: "Sender, Name", Addr: "from@example.org"}}
	msg.To = []mime.Address{{Name: "Doe, Jane; CEO", Addr: "a@example.com"}, {Name: "Plain", Addr: "b@example.com"}}
	msg.Cc = []mime.Address{{Name: ",;", Addr: "c@example.com"}}
	for _, tt := range []struct {
		caps   Capabilities
		to, cc string
		losses []Loss
	}{
		{Capabilities{Cc: true}, "Doe, Jane; CEO", ",;", nil},
		{Capabilities{Cc: true, NameWithout: ",;"}, "Doe Jane CEO", "", []Loss{{"to name", "Doe, Jane; CEO", "Doe Jane CEO", Minor}, {"cc name", ",;", "", Minor}}},
	} {
		m := one(t, request(msg, tt.caps, "a@example.com", "b@example.com", "c@example.com"))
		if m.To[0].Name != tt.to || m.To[1].Name != "Plain" || m.Cc[0].Name != tt.cc || m.From.Name != "Sender, Name" {
			t.Errorf("got %v, %v, %v", m.From, m.To, m.Cc)
		}
		for _, l := range []string{"to name", "cc name"} {
			if has(m.Losses, Minor, l) != (tt.losses != nil) {
				t.Errorf("%s: losses %v", l, m.Losses)
			}
		}
		for _, l := range tt.losses {
			if !slices.Contains(m.Losses, l) {
				t.Errorf("no loss %v in %v", l, m.Losses)
			}
		}
	}
	if msg.To[0].Name != "Doe, Jane; CEO" {
		t.Error("the message itself was changed")
	}
}

func TestListUnsubscribeOneURI(t *testing.T) {
	caps := Capabilities{Headers: HeadersAny, HeaderAlnum: true, ListUnsub: true, ListUnsubOne: true}
	const field = "header list-unsubscribe"
	for _, tt := range []struct {
		value, want string
		loss        Loss
	}{
		{"<https://example.com/u?a=1,2>", "<https://example.com/u?a=1,2>", Loss{}},
		{"<mailto:u@example.com>, (comment) <HTTPS://example.com/u>", "<HTTPS://example.com/u>", Loss{field, "2 URIs", "the https one", Minor}},
		{"<mailto:u@example.com>", "", Loss{field, "1 URI", "", Major}},
		{"https://example.com/bare", "<https://example.com/bare>", Loss{}},
		{"<https://>, <http://example.com>", "", Loss{field, "2 URIs", "", Major}},
	} {
		t.Run(tt.value, func(t *testing.T) {
			m := one(t, request(message("List-Unsubscribe", tt.value, "X_Odd", "v", "X-Fine", "w"), caps))
			if m.ListUnsubscribe != tt.want {
				t.Errorf("got %q, want %q", m.ListUnsubscribe, tt.want)
			}
			if tt.loss.Field == "" {
				if has(m.Losses, Minor, field) || has(m.Losses, Major, field) {
					t.Errorf("losses %v", m.Losses)
				}
			} else if !slices.Contains(m.Losses, tt.loss) {
				t.Errorf("no loss %v in %v", tt.loss, m.Losses)
			}
			if len(m.Headers) != 1 || m.Headers[0].Name != "X-Fine" || !has(m.Losses, Minor, "header X_Odd") && !has(m.Losses, Minor, "header x_odd") {
				t.Errorf("headers %v, losses %v", m.Headers, m.Losses)
			}
		})
	}
}

func TestTagLimits(t *testing.T) {
	msg := message("X-Smtpbridge-Tag", "short", "X-Smtpbridge-Tag", "üüüü", "X-Smtpbridge-Metadata-key", "123456", "X-Smtpbridge-Metadata-longer", "v")
	for _, tt := range []struct {
		name   string
		caps   Capabilities
		tags   []string
		meta   map[string]string
		losses []Loss
	}{
		{"none", Capabilities{Tags: -1, Metadata: true}, []string{"short", "üüüü"}, map[string]string{"key": "123456", "longer": "v"}, nil},
		{
			"both",
			Capabilities{Tags: -1, Metadata: true, TagMax: 5, MetadataKeyMax: 5},
			[]string{"short", "üü"},
			map[string]string{"key": "12345"},
			[]Loss{{"tag üüüü", "8 bytes", "first 4", Minor}, {"metadata key", "6 bytes", "first 5", Minor}, {"metadata longer", "a key of 6 bytes", "", Minor}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := one(t, request(msg, tt.caps))
			if !slices.Equal(m.Options.Tags, tt.tags) || !maps.Equal(m.Options.Metadata, tt.meta) || len(m.Losses) != len(tt.losses) {
				t.Errorf("got %q, %q, losses %v", m.Options.Tags, m.Options.Metadata, m.Losses)
			}
			for _, l := range tt.losses {
				if !slices.Contains(m.Losses, l) {
					t.Errorf("no loss %v in %v", l, m.Losses)
				}
			}
		})
	}
}

func TestEmptyAttachment(t *testing.T) {
	msg := message()
	msg.Attachments = []mime.Attachment{{Filename: "empty.txt", Type: "text/plain"}, {Filename: "full.txt", Type: "text/plain", Size: 1}}
	for _, tt := range []struct {
		needs bool
		want  int
	}{{false, 2}, {true, 1}} {
		m := one(t, request(msg, Capabilities{JSON: true, AttachName: true, AttachType: true, AttachContent: tt.needs}))
		if len(m.Attach) != tt.want || has(m.Losses, Major, "attachment empty.txt") != tt.needs {
			t.Errorf("needs content: %v: got %d attachments, losses %v", tt.needs, len(m.Attach), m.Losses)
		}
	}
}
