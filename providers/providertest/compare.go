package providertest

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/mime"
	"smtpbridge/translate"
)

func bare(list []mime.Address) []string {
	var out []string
	for _, a := range list {
		out = append(out, a.Addr)
	}
	return out
}

// sameAddrs compares two lists without regard to order and to the spelling of domains.
func sameAddrs(a, b []string) bool {
	fold := func(in []string) []string {
		out := make([]string, len(in))
		for i, s := range in {
			out[i] = envelope.Fold(s)
		}
		slices.Sort(out)
		return out
	}
	return slices.Equal(fold(a), fold(b))
}

func readAll(t testing.TB, open func() io.ReadCloser) []byte {
	t.Helper()
	r := open()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compare holds a captured request against the mail it was made from.
func (s Suite) compare(t *testing.T, caps translate.Capabilities, m *translate.Mail, c *Call) {
	t.Helper()
	if s.Read == nil {
		return
	}
	got := s.Read(t, c)
	rcpts := make([]string, len(m.Rcpts))
	for i, r := range m.Rcpts {
		rcpts[i] = r.Addr
	}
	delivered := got.Rcpts
	if delivered == nil {
		delivered = slices.Concat(got.To, got.Cc, got.Bcc)
	}
	if !sameAddrs(delivered, rcpts) {
		t.Errorf("the request delivers to %q, the call has %q", delivered, rcpts)
	}
	if caps.EnvelopeFrom && got.EnvelopeFrom != m.Options.EnvelopeFrom {
		t.Errorf("got envelope sender %q, want %q: EnvelopeFrom is set", got.EnvelopeFrom, m.Options.EnvelopeFrom)
	}
	if want := caps.IdempotencyTTL > 0; want != (got.IdempotencyKey != "") {
		t.Errorf("got idempotency key %q, the capability says %v", got.IdempotencyKey, want)
	}
	if caps.IdempotencyTTL > 0 && got.IdempotencyKey != m.IdempotencyKey {
		t.Errorf("got idempotency key %q, want %q", got.IdempotencyKey, m.IdempotencyKey)
	}
	s.compareOptions(t, caps, m, got)
	if m.UseRaw {
		b, err := m.Raw()
		if err != nil {
			t.Fatal(err)
		}
		want := readAll(t, b.Open)
		if len(caps.RawOptions) == 0 && !bytes.Equal(got.Raw, want) {
			t.Errorf("the raw message is not the planned one: %d bytes, want %d", len(got.Raw), len(want))
		}
		if _, body, _ := bytes.Cut(want, []byte("\r\n\r\n")); !bytes.HasSuffix(got.Raw, body) {
			t.Error("the body of the raw message was changed")
		}
		return
	}
	if got.Raw != nil {
		t.Error("a raw message was sent for a structured call")
	}
	s.compareContent(t, caps, m, got)
}

func (s Suite) compareContent(t *testing.T, caps translate.Capabilities, m *translate.Mail, got Sent) {
	t.Helper()
	if !envelope.Equal(got.From, m.From.Addr) || got.FromName != m.From.Name {
		t.Errorf("got From %q <%s>, want %q <%s>", got.FromName, got.From, m.From.Name, m.From.Addr)
	}
	for _, l := range []struct {
		name      string
		got, want []string
	}{{"to", got.To, bare(m.To)}, {"cc", got.Cc, bare(m.Cc)}, {"bcc", got.Bcc, bare(m.Bcc)}, {"reply-to", got.ReplyTo, bare(m.ReplyTo)}} {
		if !sameAddrs(l.got, l.want) {
			t.Errorf("got %s %q, want %q", l.name, l.got, l.want)
		}
	}
	if caps.NeedsTo && len(got.To) == 0 {
		t.Error("NeedsTo is set, but there is no to")
	}
	if got.Subject != m.Subject {
		t.Errorf("got subject %q, want %q", got.Subject, m.Subject)
	}
	for _, p := range []struct {
		name string
		got  string
		part *mime.Part
	}{{"text", got.Text, m.Msg.Text}, {"html", got.HTML, m.Msg.HTML}} {
		want := ""
		if p.part != nil {
			want = strings.ToValidUTF8(string(readAll(t, p.part.Open)), "\uFFFD")
		}
		if strings.TrimRight(strings.ReplaceAll(p.got, "\r\n", "\n"), "\n") != strings.TrimRight(want, "\n") {
			t.Errorf("got %s %q, want %q", p.name, p.got, want)
		}
	}
	for _, h := range m.Headers {
		found := false
		for name, values := range got.Headers {
			if strings.EqualFold(name, h.Name) && slices.ContainsFunc(values, func(v string) bool { return sameValue(v, h.Value) }) {
				found = true
			}
		}
		if !found {
			t.Errorf("header %s: %q was planned, the request has %q", h.Name, h.Value, got.Headers)
		}
	}
	if m.ListUnsubscribe != "" && !hasHeader(got.Headers, "List-Unsubscribe") {
		t.Error("List-Unsubscribe was planned and is missing; Sent.Headers counts a field of its own too")
	}
	if len(got.Attachments) != len(m.Attach) {
		t.Errorf("got %d attachments, want %d", len(got.Attachments), len(m.Attach))
		return
	}
	left := slices.Clone(got.Attachments)
	for _, a := range m.Attach {
		content := readAll(t, a.Open)
		i := slices.IndexFunc(left, func(g SentAttachment) bool { return bytes.Equal(g.Content, content) })
		if i < 0 {
			t.Errorf("attachment %q: its %d bytes are not in the request", a.Name, len(content))
			continue
		}
		g := left[i]
		left = slices.Delete(left, i, i+1)
		// An API may know an inline image by its Content-ID alone.
		if g.Name != a.Name && !(a.Inline && caps.InlineImages && g.Name == "") {
			t.Errorf("got attachment name %q, want %q", g.Name, a.Name)
		}
		if caps.AttachType && mediaType(g.Type) != a.Type {
			t.Errorf("attachment %q: got type %q, want %q: AttachType is set", a.Name, g.Type, a.Type)
		}
		switch {
		case a.Inline && strings.Trim(strings.TrimPrefix(g.ContentID, "cid:"), "<>") != a.ContentID:
			t.Errorf("attachment %q: got Content-ID %q, want %q", a.Name, g.ContentID, a.ContentID)
		case !caps.Inline && g.ContentID != "":
			t.Errorf("attachment %q: Content-ID %q is sent, but Inline is not set", a.Name, g.ContentID)
		}
	}
}

func mediaType(s string) string {
	s, _, _ = strings.Cut(s, ";")
	return strings.ToLower(strings.TrimSpace(s))
}

// sameValue compares two values of a field: runs of white space count as one space.
func sameValue(a, b string) bool {
	return strings.Join(strings.Fields(a), " ") == strings.Join(strings.Fields(b), " ")
}

func hasHeader(h map[string][]string, name string) bool {
	for k := range h {
		if strings.EqualFold(k, name) {
			return true
		}
	}
	return false
}

// compareOptions holds tags, metadata and send-at against the options the plan kept.
func (s Suite) compareOptions(t *testing.T, caps translate.Capabilities, m *translate.Mail, got Sent) {
	t.Helper()
	if m.UseRaw && !caps.RawFeatures {
		return
	}
	for _, tag := range m.Options.Tags {
		if !slices.Contains(got.Tags, tag) {
			t.Errorf("tag %q was planned, the request has %q", tag, got.Tags)
		}
	}
	if caps.Tags >= 0 && len(got.Tags) > caps.Tags && !caps.MetadataTags {
		t.Errorf("%d tags are sent, the capability says %d", len(got.Tags), caps.Tags)
	}
	if !caps.Metadata && len(got.Metadata) > 0 {
		t.Errorf("metadata %q is sent, but the flag is not set", slices.Sorted(maps.Keys(got.Metadata)))
	}
	for k, v := range m.Options.Metadata {
		if got.Metadata[k] != v {
			t.Errorf("metadata %s=%s was planned, the request has %q", k, v, got.Metadata)
		}
	}
	if !m.Options.SendAt.IsZero() && caps.SendAt > 0 && !got.SendAt.Truncate(time.Second).Equal(m.Options.SendAt.Truncate(time.Second)) {
		t.Errorf("got send-at %v, want %v", got.SendAt, m.Options.SendAt)
	}
}

// features asks for each optional feature: a flag that is set has to show in the request, and a
// plan that drops a feature has to say so.
func (s Suite) features(t *testing.T) {
	rec := &recorder{reply: func(*Call) Answer { return s.Success[0] }}
	srv := httptest.NewServer(rec)
	defer srv.Close()
	p := s.New(t, srv.URL, nil)
	caps := p.Capabilities()
	for _, f := range []struct {
		name, header string
		has          bool
		planned      func(translate.Options) bool
	}{
		{"tags", "X-Smtpbridge-Tag: welcome", caps.Tags != 0, func(o translate.Options) bool { return len(o.Tags) > 0 }},
		{"metadata", "X-Smtpbridge-Metadata-order: 4711", caps.Metadata, func(o translate.Options) bool { return o.Metadata["order"] == "4711" }},
		{"send-at", "X-Smtpbridge-Send-At: 2026-11-23T18:00:00Z", caps.SendAt > 0, func(o translate.Options) bool { return !o.SendAt.IsZero() }},
		{"tracking off", "X-Smtpbridge-Track: off", caps.TrackOpens && caps.TrackClicks, func(o translate.Options) bool {
			return o.TrackOpens == translate.Off && o.TrackClicks == translate.Off
		}},
		{"tracking on", "X-Smtpbridge-Track: both", caps.TrackOpens && caps.TrackClicks, func(o translate.Options) bool {
			return o.TrackOpens == translate.On && o.TrackClicks == translate.On
		}},
	} {
		t.Run(f.name, func(t *testing.T) {
			msg := Message{Name: f.name, From: "sender@example.com", Rcpts: []string{"one@example.org"}, EML: f.header + "\r\n" + fold(fmt.Sprintf(head, "Feature")+"\nBody.\n")}
			for _, m := range msg.Plan(t, caps) {
				if f.has && !f.planned(m.Options) {
					t.Errorf("the flag is set, but the plan has %+v", m.Options)
				}
				c := s.one(t, p, rec, m)
				if bytes.Contains(bytes.ToLower(c.Body), []byte("x-smtpbridge-")) {
					t.Error("an option header of the bridge is in the request")
				}
				s.compare(t, caps, m, c)
			}
		})
	}
}
