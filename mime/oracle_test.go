package mime

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
)

// TestOracle compares what "smtpbridge parse" prints with an independent reading of the same mails
// by Python's email package (testdata/oracle.py). Where the two differ for a reason, reviewed says why.
func TestOracle(t *testing.T) {
	b, err := os.ReadFile("testdata/oracle.json")
	if err != nil {
		t.Fatal(err)
	}
	var oracle map[string]map[string]any
	if err := json.Unmarshal(b, &oracle); err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for _, path := range corpus(t) {
		name := strings.TrimPrefix(path, "testdata/corpus/")
		t.Run(name, func(t *testing.T) {
			want := oracle[name]
			if want == nil {
				t.Fatal("not in oracle.json")
			}
			src, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := view(t, parseBytes(t, src))
			for field, w := range want {
				g := comparable(field, got[field])
				w = comparable(field, w)
				if field == "attachments" {
					g = withoutUnknown(g, w)
				}
				if reflect.DeepEqual(g, w) {
					continue
				}
				key := name + " " + field
				if _, ok := reviewed[key]; ok {
					used[key] = true
					continue
				}
				gj, _ := json.Marshal(g)
				wj, _ := json.Marshal(w)
				t.Errorf("%s:\n got %.1500s\nwant %.1500s", field, gj, wj)
			}
		})
	}
	for key := range reviewed {
		if !used[key] {
			t.Errorf("%s no longer differs", key)
		}
	}
}

// view gives the JSON of a message, decoded.
func view(t testing.TB, m *Message) map[string]any {
	t.Helper()
	var b bytes.Buffer
	if err := m.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var v map[string]any
	if err := json.Unmarshal(b.Bytes(), &v); err != nil {
		t.Fatalf("%v in %s", err, b.Bytes())
	}
	return v
}

// comparable brings a field to the form of oracle.json: bodies as size and digest, white space of a subject as single spaces.
func comparable(field string, v any) any {
	switch s := v.(type) {
	case string:
		switch field {
		case "text", "html":
			sum := sha256.Sum256([]byte(s))
			return map[string]any{"size": float64(len(s)), "sha256": hex.EncodeToString(sum[:])}
		case "subject":
			return strings.Join(strings.Fields(s), " ")
		}
	case []any:
		for _, a := range s {
			if m, ok := a.(map[string]any); ok {
				if n, ok := m["filename"].(string); ok {
					m["filename"] = strings.Join(strings.Fields(n), " ")
				}
			}
		}
	}
	return v
}

// withoutUnknown takes out of the attachments what the oracle does not know.
func withoutUnknown(got, want any) any {
	g, ok1 := got.([]any)
	w, ok2 := want.([]any)
	if !ok1 || !ok2 || len(g) != len(w) {
		return got
	}
	for i := range g {
		if w[i].(map[string]any)["size"] == nil {
			g[i].(map[string]any)["size"] = nil
			g[i].(map[string]any)["sha256"] = nil
		}
	}
	return g
}

// reviewed lists mail and field where this reader is meant to differ, and why.
var reviewed = map[string]string{
	"cpython/msg_15.eml text":                                                    "RFC 2046 5.1.1: the last line end belongs to the outer delimiter, also of a multipart that is read as text",
	"james-mime4j/testmsgs__missing-inner-boundary.eml text":                     "RFC 2046 5.1.1: the last line end belongs to the outer delimiter, also of a multipart that is read as text",
	"rspamd/alternative-empty-related.eml text":                                  "RFC 2046 5.1.1: the last line end belongs to the outer delimiter, also of a multipart that is read as text",
	"james-mime4j/testmsgs__ending-boundaries.eml text":                          "the oracle loses what follows a closing delimiter without an opening one; content is kept",
	"james-mime4j/testmsgs__missing-inner-start-boundary.eml text":               "the oracle loses what follows a closing delimiter without an opening one; content is kept",
	"james-mime4j/testmsgs__multipartnopart.eml text":                            "the oracle loses what follows a closing delimiter without an opening one; content is kept",
	"james-mime4j/testmsgs__multipartemptypart.eml text":                         "the oracle takes a closing delimiter right after an opening one for a part",
	"enmime/low-quality__bad-header-wrap.eml attachments":                        "a fold without its white space: the file name belongs to the field before",
	"enmime/low-quality__incorrect-charset.eml text":                             "UTF-8 in text declared US-ASCII is read as UTF-8",
	"enmime/parts__chardet-success-big-5.eml text":                               "8-bit text without a charset that is not UTF-8 is read as Windows-1252",
	"mime-tools/infinite.eml text":                                               "8-bit text without a charset that is not UTF-8 is read as Windows-1252",
	"enmime/mail__non-mime-missing-charset.eml html":                             "UTF-8 in text without a charset is read as UTF-8",
	"enmime/mail__malformed-multiple-address-header-values.eml from":             "two addresses without a comma: both are seen, so the mail is not taken for one with a single sender",
	"enmime/mail__mime-bad-content-transfer-encoding.eml text":                   "text that says base64 and is not: the oracle drops its line ends",
	"enmime/mail__mime-bad-content-type.eml attachments":                         "a media type without a semicolon behind it, or with a stray character: the type is read as far as it goes",
	"enmime/mail__mime-blank-media-name.eml attachments":                         "a media type without a semicolon behind it, or with a stray character: the type is read as far as it goes",
	"enmime/parts__ctype-invalid-characters.eml text":                            "a media type that is no token counts as text/plain, RFC 2045 5.2",
	"enmime/parts__ctype-invalid-characters.eml attachments":                     "a media type that is no token counts as text/plain, RFC 2045 5.2",
	"enmime/mail__qp-utf8-header-recursed.eml from":                              "the oracle fails on control characters in a name",
	"enmime/parts__extra-base64-character.eml text":                              "base64 with one character too many: what decodes is kept, the oracle gives it back undecoded",
	"enmime/parts__extra-base64-character.eml html":                              "base64 with one character too many: what decodes is kept, the oracle gives it back undecoded",
	"mime-tools/twopart.eml attachments":                                         "base64 with one character too many: what decodes is kept, the oracle gives it back undecoded; file names are base names",
	"rspamd/fname.eml attachments":                                               "base64 with one character too many: what decodes is kept, the oracle gives it back undecoded; an encoded word that is not quoted is a file name all the same",
	"james-mime4j/testmsgs__obsolete.eml subject":                                "RFC 5322 4.5.8 allows white space before the colon",
	"james-mime4j/testmsgs__obsolete.eml text":                                   "RFC 5322 4.5.8 allows white space before the colon",
	"james-mime4j/testmsgs__russian-headers.eml attachments":                     "an encoded word that is not quoted is a file name all the same",
	"mime-tools/russian.eml attachments":                                         "an encoded word that is not quoted is a file name all the same",
	"letters/test_english_no_text_content.eml attachments":                       "base64 goes on after padding when the next line is base64 again",
	"letters/test_japanese_plaintext_euc-jp_over_base64.eml text":                "base64 goes on after padding when the next line is base64 again",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml subject":  "the oracle does not know Windows-874",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml from":     "the oracle does not know Windows-874",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml to":       "the oracle does not know Windows-874",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml cc":       "the oracle does not know Windows-874",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml reply_to": "the oracle does not know Windows-874",
	"letters/test_thai_plaintext_windows-874_over_quoted-printable.eml text":     "the oracle does not know Windows-874",
	"mime-tools/multi-2evil.eml attachments":                                     "file names are base names",
	"mime-tools/multi-nested.eml attachments":                                    "file names are base names",
}
