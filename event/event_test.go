package event_test

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"smtpbridge/event"
)

func TestJSONRoundTrip(t *testing.T) {
	want := full()
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got event.Event
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	want.Ref, want.RawID = "", "" // not part of the public form
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestAppendJSONKeepsAngleBrackets(t *testing.T) {
	b, err := full().AppendJSON([]byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<bob@example.net> mailbox", "?a=1&b=2"} {
		if !strings.Contains(string(b), want) {
			t.Errorf("%q is missing in %s", want, b)
		}
	}
	if b[0] != 'x' || b[len(b)-1] != '}' {
		t.Errorf("not appended, or with a line end: %q", b)
	}
}

// Case 92: outside text is one line, cut, and JSON stays valid.
func TestCase092_SanitizeBoundsEveryText(t *testing.T) {
	nasty := "a\r\nInjected: 1\x00\x1b[31m\u2028\"\\\xff" + strings.Repeat("é", 1<<19)
	e := full()
	v := reflect.ValueOf(&e).Elem()
	for i := range v.NumField() {
		f, name := v.Field(i), v.Type().Field(i).Name
		if f.Kind() == reflect.String && name != "Kind" && name != "Account" && name != "Provider" && name != "QueueID" && name != "RawID" {
			f.SetString(nasty)
		}
	}
	e.Candidates, e.Tags, e.Metadata = []string{nasty}, make([]string, 5000), map[string]string{nasty: nasty}
	bad := time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	e.Time, e.WillRetryAt = bad, &bad
	e.Sanitize()
	b, err := e.AppendJSON(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 64<<10 || !utf8.Valid(b) || !json.Valid(b) {
		t.Errorf("%d bytes, valid UTF-8 %v, valid JSON %v", len(b), utf8.Valid(b), json.Valid(b))
	}
	var back event.Event
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	for _, s := range append(back.Candidates, back.Diagnostic, back.Recipient, back.ID, back.URL, back.Metadata["x"]) {
		if strings.ContainsAny(s, "\r\n\x00\x1b\u2028") {
			t.Errorf("control characters are left in %q", s)
		}
	}
	if len(back.Tags) != event.MaxList {
		t.Errorf("%d tags", len(back.Tags))
	}
	if !back.Time.Equal(back.Seen) || back.WillRetryAt != nil {
		t.Errorf("times that JSON cannot write are left: %v, %v", back.Time, back.WillRetryAt)
	}
	again := e
	again.Sanitize()
	if !reflect.DeepEqual(again, e) {
		t.Errorf("sanitizing twice changes the event:\n%+v\n%+v", e, again)
	}
}

func TestSanitizeKeepsGoodValues(t *testing.T) {
	e := full()
	e.Sanitize()
	if want := full(); !reflect.DeepEqual(e, want) {
		t.Errorf("got  %+v\nwant %+v", e, want)
	}
	long := strings.Repeat("i", event.MaxID)
	e.ID = long
	if e.Sanitize(); e.ID != long {
		t.Errorf("an id of %d bytes became %q", len(long), e.ID)
	}
	e.ID = long + "j"
	if e.Sanitize(); e.ID != event.FactID("mp", "id", long+"j") {
		t.Errorf("a longer id became %q", e.ID)
	}
}

func TestFactID(t *testing.T) {
	a := event.FactID("ms", "x", "y")
	if a != event.FactID("ms", "x", "y") || len(a) != 26 {
		t.Errorf("not stable: %q", a)
	}
	for name, b := range map[string]string{
		"other account": event.FactID("mt", "x", "y"), "other split": event.FactID("ms", "xy"), "other order": event.FactID("ms", "y", "x"),
		"shifted": event.FactID("ms", "x", "y", ""),
	} {
		if a == b {
			t.Errorf("%s: same id", name)
		}
	}
}

func TestClean(t *testing.T) {
	for _, c := range []struct {
		name, in, want string
		max            int
	}{
		{"plain", "550 no such user", "550 no such user", 100},
		{"line ends", "a\r\nb", "a  b", 100},
		{"escape", "\x1b[31mred\x7f\u009b", "[31mred", 100},
		{"bad UTF-8", "a\xffb", "a\ufffdb", 100},
		{"cut", "abcdefghij", "abcde…", 8},
		{"cut in a rune", "ééééé", "ééé", 8},
		{"nothing allowed", "abc", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := event.Clean(c.in, c.max); got != c.want || len(got) > c.max {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func FuzzClean(f *testing.F) {
	f.Add("a\r\nb\xff", 10)
	f.Fuzz(func(t *testing.T, s string, max int) {
		max %= 1000
		got := event.Clean(s, max)
		if len(got) > max && max >= 0 || !utf8.ValidString(got) || strings.ContainsAny(got, "\r\n\x00") || event.Clean(got, max) != got {
			t.Errorf("Clean(%q, %d) = %q", s, max, got)
		}
	})
}
