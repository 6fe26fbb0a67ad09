package mime

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// TestParseContract has a mail for each clause of what "smtpbridge parse" promises; want is JSON of the named fields.
func TestParseContract(t *testing.T) {
	mixed := func(parts ...string) string {
		return "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=b\n\n--b\n" + strings.Join(parts, "\n--b\n") + "\n--b--\n"
	}
	related := func(params string, parts ...string) string {
		return "Content-Type: multipart/related; boundary=r" + params + "\n\n--r\n" + strings.Join(parts, "\n--r\n") + "\n--r--"
	}
	file := func(name, ctype, data, cid string, inline bool) string {
		quote := func(s string) string {
			if s == "" {
				return "null"
			}
			return `"` + s + `"`
		}
		return fmt.Sprintf(`{"content_id":%s,"content_type":"%s","filename":%s,"inline":%v,"sha256":"%x","size":%d}`,
			quote(cid), ctype, quote(name), inline, sha256.Sum256([]byte(data)), len(data))
	}
	for _, tt := range []struct {
		clause, mail string
		want         map[string]string
	}{
		{"what is absent is null or an empty list", "X: y\n\n", map[string]string{
			"subject": "null", "from": "[]", "to": "[]", "cc": "[]", "reply_to": "[]", "date": "null", "message_id": "null", "html": "null", "attachments": "[]", "defects": "[]",
			"headers": `[{"name":"X","value":"y"}]`,
		}},
		{"an empty subject is not an absent one", "Subject:\n\n", map[string]string{"subject": `""`}},
		{"a mail of one leaf has a text, if an empty one", "Subject: s\n\n", map[string]string{"text": `""`}},
		{"no text leaf: null", "Content-Type: text/html\n\n<p>\n", map[string]string{"text": "null", "html": `"<p>\n"`}},
		{"neither: both are null", "Content-Type: image/png\n\nx", map[string]string{"text": "null", "html": "null"}},
		{"groups are flattened", "To: Team: a@example.com, \"B\" <b@example.com>;, c@example.com\nCc: undisclosed-recipients:;\n\n", map[string]string{
			"to": `[{"address":"a@example.com","name":""},{"address":"b@example.com","name":"B"},{"address":"c@example.com","name":""}]`, "cc": "[]",
		}},
		{"several headers are joined", "To: a@example.com\nTo: b@example.com\nReply-To: c@example.com\nreply-to: d@example.com\n\n", map[string]string{
			"to":       `[{"address":"a@example.com","name":""},{"address":"b@example.com","name":""}]`,
			"reply_to": `[{"address":"c@example.com","name":""},{"address":"d@example.com","name":""}]`,
		}},
		{"names are decoded", "From: =?utf-8?q?J=C3=B6rg?= <j@example.com>\n\n", map[string]string{"from": `[{"address":"j@example.com","name":"Jörg"}]`}},
		{"the date is in UTC", "Date: Mon, 23 Nov 2026 23:30:05 -0230\n\n", map[string]string{"date": `"2026-11-24T02:00:05Z"`}},
		{"a date that is none is null", "Date: yesterday\n\n", map[string]string{"date": "null"}},
		{"the message id has no brackets", "Message-ID: <a.b@example.com>\n\n", map[string]string{"message_id": `"a.b@example.com"`}},
		{"headers are in order, with their spelling, unfolded and decoded", "x-B: =?utf-8?q?=C3=A4?=\n =?utf-8?q?=C3=B6?= u\nX-a: 1\nx-B: 2\n\n", map[string]string{
			"headers": `[{"name":"x-B","value":"äö u"},{"name":"X-a","value":"1"},{"name":"x-B","value":"2"}]`,
		}},
		{"text is UTF-8 with LF", "Content-Type: text/plain; charset=iso-8859-1\nContent-Transfer-Encoding: base64\n\n5A0KYg1j\n", map[string]string{"text": `"ä\nb\nc"`}},
		{"leaves are joined by a newline", mixed("\na\n", "Content-Type: text/plain\n\nb", "Content-Type: text/html\n\n<p>", "Content-Type: text/html\n\n<b>"), map[string]string{
			"text": `"a\n\nb"`, "html": `"<p>\n<b>"`, "attachments": "[]",
		}},
		{"a leaf with disposition attachment is none", mixed("Content-Disposition: attachment\n\na", "\nb"), map[string]string{
			"text": `"b"`, "attachments": "[" + file("", "text/plain", "a", "", false) + "]",
		}},
		{"nor one with a name, by disposition or type", mixed("\na", "Content-Disposition: inline; filename=b.txt\n\nb", "Content-Type: text/html; name=c.html\n\nc"), map[string]string{
			"text": `"a"`, "html": "null", "attachments": "[" + file("b.txt", "text/plain", "b", "", true) + "," + file("c.html", "text/html", "c", "", false) + "]",
		}},
		{"but for the very first leaf", mixed("Content-Type: text/plain; name=a.txt\n\na", "Content-Type: text/html; name=b.html\n\nb"), map[string]string{
			"text": `"a"`, "attachments": "[" + file("b.html", "text/html", "b", "", false) + "]",
		}},
		{"which is no body when it is an attachment", mixed("Content-Disposition: attachment; filename=a.txt\n\na", "\nb"), map[string]string{"text": `"b"`}},
		{"in multipart/related the root alone is body", mixed(related("", "Content-Type: text/html\n\n<p>", "Content-Type: text/plain\n\nnote", "Content-Type: text/html\n\n<frame>")), map[string]string{
			"text": "null", "html": `"<p>"`, "attachments": "[" + file("", "text/plain", "note", "", false) + "," + file("", "text/html", "<frame>", "", false) + "]",
		}},
		{"the root is the one that start names", mixed(related("; start=\"<r@x>\"", "Content-Type: text/html\nContent-ID: <a@x>\n\n<a>", "Content-Type: text/html\nContent-ID: <r@x>\n\n<r>")), map[string]string{
			"html": `"<r>"`, "attachments": "[" + file("", "text/html", "<a>", "a@x", true) + "]",
		}},
		{"a root that is a multipart has its leaves in the body", mixed(related("", "Content-Type: multipart/alternative; boundary=a\n\n--a\n\nt\n--a\nContent-Type: text/html\n\n<h>\n--a--", "Content-Type: image/png\nContent-ID: <i@x>\n\nx")), map[string]string{
			"text": `"t"`, "html": `"<h>"`, "attachments": "[" + file("", "image/png", "x", "i@x", true) + "]",
		}},
		{"message/rfc822 is an attachment, not opened", mixed("\na", "Content-Type: message/rfc822\n\nSubject: in\n\nb\n"), map[string]string{
			"text": `"a"`, "attachments": "[" + file("", "message/rfc822", "Subject: in\r\n\r\nb\r\n", "", false) + "]",
		}},
		{"so are calendars, signatures and reports", mixed("\na", "Content-Type: text/calendar; method=REQUEST\n\nBEGIN", "Content-Type: application/pgp-signature\n\nsig", "Content-Type: message/delivery-status\n\nAction: failed\n"), map[string]string{
			"text":        `"a"`,
			"attachments": "[" + file("", "text/calendar", "BEGIN", "", false) + "," + file("", "application/pgp-signature", "sig", "", false) + "," + file("", "message/delivery-status", "Action: failed\r\n", "", false) + "]",
		}},
		{"and an AMP alternative", "Content-Type: multipart/alternative; boundary=b\n\n--b\n\nt\n--b\nContent-Type: text/x-amp-html\n\n<html amp4email>\n--b\nContent-Type: text/html\n\n<p>\n--b--\n", map[string]string{
			"text": `"t"`, "html": `"<p>"`, "attachments": "[" + file("", "text/x-amp-html", "<html amp4email>", "", false) + "]",
		}},
		{"inline: by disposition, or by a Content-ID that is no attachment", mixed("\na", "Content-Type: image/png\nContent-Disposition: inline\n\n1", "Content-Type: image/png\nContent-ID: <2@x>\n\n2",
			"Content-Type: image/png\nContent-ID: <3@x>\nContent-Disposition: attachment\n\n3", "Content-Type: image/png\n\n4"), map[string]string{
			"attachments": "[" + file("", "image/png", "1", "", true) + "," + file("", "image/png", "2", "2@x", true) + "," + file("", "image/png", "3", "3@x", false) + "," + file("", "image/png", "4", "", false) + "]",
		}},
		{"text attachments have CRLF, as in the mail", mixed("\na", "Content-Type: text/csv; name=b.csv\nContent-Transfer-Encoding: quoted-printable\n\n1;=C3=A4\n2\n"), map[string]string{
			"attachments": "[" + file("b.csv", "text/csv", "1;ä\r\n2\r\n", "", false) + "]",
		}},
		{"what was in base64 has the line ends that it had", mixed("\na", "Content-Type: text/csv; name=b.csv\nContent-Transfer-Encoding: base64\n\nMQoyCg=="), map[string]string{
			"attachments": "[" + file("b.csv", "text/csv", "1\n2\n", "", false) + "]",
		}},
		{"file names are decoded, by RFC 2231 first", mixed("\na", "Content-Type: a/b; name=\"=?utf-8?q?=C3=A4?=.x\"\n\n1", "Content-Type: a/b\nContent-Disposition: attachment; filename=p.x; filename*=utf-8''%C3%A4.x\n\n2"), map[string]string{
			"attachments": "[" + file("ä.x", "a/b", "1", "", false) + "," + file("ä.x", "a/b", "2", "", false) + "]",
		}},
	} {
		t.Run(tt.clause, func(t *testing.T) {
			// With either line end: it arrives by SMTP as CRLF, and a saved mail has LF.
			for _, src := range []string{tt.mail, strings.ReplaceAll(tt.mail, "\n", "\r\n")} {
				got := view(t, parseBytes(t, []byte(src)))
				for field, want := range tt.want {
					if g := string(compact(t, got[field])); g != want {
						t.Errorf("%s: got %s, want %s", field, g, want)
					}
				}
				var names []string
				for _, f := range []string{"subject", "from", "to", "cc", "reply_to", "date", "message_id", "text", "html", "headers", "attachments", "defects"} {
					if _, ok := got[f]; ok {
						names = append(names, f)
					}
				}
				if len(names) != 12 || len(got) != 12 {
					t.Errorf("fields %v of %d", names, len(got))
				}
			}
		})
	}
}
