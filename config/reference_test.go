package config

import (
	"flag"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

const referenceFile = "../docs/configuration.md"

// What the example does not show, because it shows one form of several.
var meanings = map[string]string{
	"aliases":                         "local names and who gets their mail, as in /etc/aliases",
	"user.password_hash":              "made by `smtpbridge hash-password`",
	"route.expire":                    "as delivery.expire, for mail of this route",
	"suppression.keep_complaints":     "how long a complaint suppresses",
	"suppression.keep_unsubscribes":   "how long an unsubscription suppresses its stream",
	"listener.address":                "\"host:port\", or \"unix:/run/smtpbridge/smtp.sock\", or \"systemd:NAME\" (socket activation)",
	"account.provider":                "name of the provider, as in docs/providers.md",
	"events.file":                     "file that every event is appended to, or \"stdout\"; \"\" = none (`smtpbridge events` reads the store)",
	"account.name":                    "name of the account: in routes, logs, events and webhook URLs",
	"account.api_key":                 "the ESP's key, here in the file; exactly one of the three forms",
	"account.api_key_file":            "file with the key; a bare name is looked up among systemd's credentials first, then beside this file",
	"account.api_key_env":             "environment variable with the key",
	"account.webhook_secret":          "what the account's webhooks are verified with; several for rotation",
	"account.webhook_secret_file":     "files with webhook secrets",
	"account.webhook_secret_env":      "environment variables with webhook secrets",
	"account.inbound_secret":          "what the account's inbound posts are verified with",
	"account.inbound_secret_file":     "files with inbound secrets",
	"account.inbound_secret_env":      "environment variables with inbound secrets",
	"account.webhook_basic_auth":      "\"user:password\" that webhooks have to bring, for ESPs that sign nothing, or beside the signature",
	"account.webhook_basic_auth_file": "files with such",
	"account.webhook_basic_auth_env":  "environment variables with such",
	"account.webhook_url":             "the exact URL registered at the ESP, where it is not public_url + /webhook/NAME",
	"account.options":                 "the provider's own settings: see the provider's page",
	"route.name":                      "name of the route, in logs and in explain",
	"route.recipients":                "only recipients with these domains or addresses",
	"route.listeners":                 "only mail that came in by these listeners",
	"route.users":                     "only mail of these users",
	"user.password":                   "the password, here in the file; exactly one of the four forms",
	"user.password_file":              "file with the password",
	"user.password_env":               "environment variable with the password",
	"user.name":                       "login name",
	"events.forward.url":              "where events are posted to, as JSON",
	"events.forward.secret":           "signs the posts",
	"events.forward.secret_file":      "file with the signing secret",
	"events.forward.secret_env":       "environment variable with the signing secret",
	"events.forward.allow_local":      "the target may be on a private or loopback address",
	"listener.name":                   "name of the listener, in logs and routes",
	"listener.cert_file":              "certificate chain, PEM; used a second after it changed",
	"listener.key_file":               "its private key",
	"listener.max_message_size":       "greatest message, 552 above it",
	"listener.max_recipients":         "recipients of one message, 452 above it",
	"listener.max_connections":        "connections in all, 421 above it",
	"listener.max_connections_per_ip": "connections of one address, 421 above it",
	"listener.write_timeout":          "a client that does not read its replies for so long is disconnected",
	"admin.socket":                    "socket of the commands; who may open it is an operator",
	"admin.socket_mode":               "file mode of the socket, octal",
	"admin.password_hash":             "password of the HTTP address (`smtpbridge hash-password`)",
	"admin.cert_file":                 "certificate of the HTTP address",
	"admin.key_file":                  "its private key",
	"admin.acme":                      "in place of cert_file and key_file: names whose certificates come from a CA, see [acme]",
	"acme.ca_file":                    "further root certificates for calls to the CA",
	"acme.directory":                  "URL of the CA's directory; the default is Let's Encrypt",
	"admin.hosts":                     "host names under which the HTTP address is called",
	"admin.preview":                   "whether bodies of mails may be looked at",
	"suppression.enabled":             "addresses that do not exist and people who complained receive no more mail",
	"inbound.recipients":              "whose inbound mail this is: addresses, or domains",
	"inbound.account":                 "the account that delivers it",
	"dsn.on":                          "which facts are told to the sender by mail: failed, delayed, delivered",
	"dsn.account":                     "account that sends these mails; \"\" = none are sent",
}

// defaultWords are defaults that are no constants.
var defaultWords = map[string]string{
	"hostname": "this host's name", "admin.socket": "`admin.sock` in data_dir", "listener.max_line": "max_message_size", "listener.tls": "off; starttls with a certificate",
	"listener.allow": `["127.0.0.0/8", "::1"]`, "account.max_concurrent": "the provider's", "account.max_per_second": "the provider's", "route.expire": "delivery.expire",
	"account.tracking": `"account"`, "account.split_recipients": `"never"`, "route.on_loss": `"send"`,
}

// The reference is made of the structs (keys, types, defaults) and of the comments of bridge.toml.example (meanings), so
// that neither can forget a setting.
func TestConfigurationReference(t *testing.T) {
	example, err := os.ReadFile("../bridge.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	comments := exampleComments(string(example))
	var b strings.Builder
	b.WriteString("# Configuration reference\n\nEvery setting of bridge.toml, made from the program by `go test ./config -run Reference -update`. An unknown key is an error that\nnames the nearest known one; `smtpbridge check` shows all errors at once. Sizes: `\"25MiB\"`. Durations: `\"30s\"`, `\"5m\"`, `\"12h\"`, `\"7d\"`.\nSIGHUP reloads everything except sockets. A file to start from: [bridge.toml.example](../bridge.toml.example).\n")
	root := defaults()
	root.Hostname = ""
	writeSection(t, &b, comments, "", "", reflect.ValueOf(root).Elem())
	want := b.String()
	if *update {
		if err := os.WriteFile(referenceFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(referenceFile)
	if err != nil || string(got) != want {
		t.Errorf("docs/configuration.md is not what the program says (%v): go test ./config -run Reference -update", err)
	}
}

func writeSection(t *testing.T, b *strings.Builder, comments map[string]string, path, title string, v reflect.Value) {
	t.Helper()
	if title == "" {
		title = "Top level"
	}
	fmt.Fprintf(b, "\n## %s\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |\n", title)
	type section struct {
		path, title string
		v           reflect.Value
	}
	var below []section
	for i := range v.NumField() {
		f, fv := v.Type().Field(i), v.Field(i)
		key := f.Tag.Get("toml")
		if key == "" || key == "-" {
			continue
		}
		full := join(path, key)
		switch {
		case f.Type.Kind() == reflect.Struct:
			below = append(below, section{full, "`[" + full + "]`", fv})
			continue
		case f.Type.Kind() == reflect.Slice && f.Type.Elem().Kind() == reflect.Struct:
			one := reflect.New(f.Type.Elem()).Elem()
			if l, ok := one.Addr().Interface().(*Listener); ok {
				l.setDefaults()
			}
			form := "`[[" + full + "]]`"
			if path != "" {
				form = "`" + full + "`, a list of tables"
			}
			below = append(below, section{full, form, one})
			continue
		}
		meaning := meanings[full]
		if meaning == "" {
			meaning = comments[full]
		}
		if meaning == "" {
			t.Errorf("%s has no meaning: give it a comment in bridge.toml.example", full)
		}
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", key, tomlType(f.Type), tomlDefault(full, fv), strings.ReplaceAll(meaning, "|", "\\|"))
	}
	for _, s := range below {
		writeSection(t, b, comments, s.path, s.title, s.v)
	}
}

func tomlType(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Duration]():
		return "duration"
	case reflect.TypeFor[Size]():
		return "size"
	case reflect.TypeFor[OneOrMore]():
		return "text or list"
	}
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "whole number"
	case reflect.Float64:
		return "number"
	case reflect.Slice:
		return "list"
	}
	return "table"
}

func tomlDefault(full string, v reflect.Value) string {
	if w, ok := defaultWords[full]; ok {
		if strings.HasPrefix(w, `"`) || strings.HasPrefix(w, "[") {
			return "`" + w + "`"
		}
		return w
	}
	switch x := v.Interface().(type) {
	case Duration:
		if x == 0 {
			return "`\"0s\"`"
		}
		s := x.D().String()
		for _, zero := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(s, zero) {
				s = strings.TrimSuffix(s, zero[1:])
			}
		}
		if h := x.D().Hours(); h >= 24 && h == float64(int(h)/24*24) {
			s = fmt.Sprintf("%dd", int(h)/24)
		}
		return "`\"" + s + "\"`"
	case Size:
		if x != 0 && x%(1<<20) == 0 {
			return fmt.Sprintf("`\"%dMiB\"`", x>>20)
		}
	}
	switch v.Kind() {
	case reflect.String:
		return fmt.Sprintf("`%q`", v.String())
	case reflect.Slice:
		items := []string{}
		for i := range v.Len() {
			items = append(items, fmt.Sprintf("%q", v.Index(i)))
		}
		return "`[" + strings.Join(items, ", ") + "]`"
	case reflect.Map:
		return "`{}`"
	}
	return fmt.Sprintf("`%v`", v.Interface())
}

var (
	exampleSection = regexp.MustCompile(`^(?:# )?\[+([a-z_.]+)\]+`)
	exampleKey     = regexp.MustCompile(`^(?:# )?([a-z_]+) = (.*)$`)
	exampleComment = regexp.MustCompile(`^(?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|[^"#\[{]*)\s*# (.*)$`)
)

// exampleComments gives the first comment behind each key of the example.
func exampleComments(text string) map[string]string {
	out := map[string]string{}
	section := ""
	for _, line := range strings.Split(text, "\n") {
		if m := exampleSection.FindStringSubmatch(line); m != nil {
			section = m[1]
			continue
		}
		m := exampleKey.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		c := exampleComment.FindStringSubmatch(m[2])
		if full := join(section, m[1]); c != nil && out[full] == "" {
			out[full] = c[1]
		}
	}
	return out
}
