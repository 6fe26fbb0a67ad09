// Package secret keeps credentials out of logs, errors and dumps: a String prints
// as <secret> everywhere; only Reveal gives its text.
package secret

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
)

const mask = "<secret>"

// String is a credential. Its zero value is empty.
type String struct{ s string }

// New wraps a text.
func New(s string) String { return String{s} }

// Reveal returns the credential itself, for the one place that sends or compares it.
func (s String) Reveal() string { return s.s }

// Empty reports whether there is no credential.
func (s String) Empty() bool { return s.s == "" }

// String prints the mask, or nothing when empty.
func (s String) String() string {
	if s.s == "" {
		return ""
	}
	return mask
}

// GoString keeps %#v from printing the field.
func (s String) GoString() string { return s.String() }

// Format keeps every verb from printing the field.
func (s String) Format(f fmt.State, _ rune) { fmt.Fprint(f, s.String()) }

// MarshalText keeps JSON and TOML encoders from printing it.
func (s String) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue keeps slog from printing it.
func (s String) LogValue() slog.Value { return slog.StringValue(s.String()) }

// Redact replaces every occurrence of a secret in text by the mask.
// Secrets shorter than 4 bytes are not searched for: they would garble the text.
func Redact(text string, secrets ...String) string {
	for _, s := range secrets {
		if len(s.s) >= 4 {
			text = strings.ReplaceAll(text, s.s, mask)
		}
	}
	return text
}

// maxFile bounds a secret file: keys are short; a larger file is a mistake.
const maxFile = 64 << 10

// ReadFile reads a secret from a file and strips one trailing line end.
func ReadFile(path string) (String, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return String{}, err
	}
	if fi.IsDir() {
		return String{}, fmt.Errorf("%s is a directory, not a file with the secret", path)
	}
	if fi.Size() > maxFile {
		return String{}, fmt.Errorf("%s is larger than %d bytes, too large for a secret", path, maxFile)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return String{}, err
	}
	s := strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	if s == "" {
		return String{}, fmt.Errorf("%s is empty", path)
	}
	return String{s}, nil
}

// FromEnv reads a secret from an environment variable.
func FromEnv(name string) (String, error) {
	v, ok := os.LookupEnv(name)
	if !ok || v == "" {
		return String{}, fmt.Errorf("environment variable %s is not set", name)
	}
	return String{v}, nil
}
