package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Duration is written "90s", "5m", "12h", "7d" or a sum of such.
type Duration time.Duration

// D returns the standard type.
func (d Duration) D() time.Duration { return time.Duration(d) }

// UnmarshalText parses the written form. It refuses negative values.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := ParseDuration(string(b))
	if err == nil {
		*d = Duration(v)
	}
	return err
}

// MarshalText gives a form UnmarshalText reads.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// ParseDuration parses Go durations and days ("5d", "1d12h").
func ParseDuration(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is not a duration: write a number and a unit, such as \"30s\", \"5m\", \"12h\" or \"7d\"", s)
	rest, total := strings.TrimSpace(s), time.Duration(0)
	if i := strings.IndexByte(rest, 'd'); i >= 0 {
		days, err := strconv.ParseFloat(rest[:i], 64)
		if err != nil || days < 0 || days > 36500 {
			return 0, bad
		}
		total, rest = time.Duration(days*24*float64(time.Hour)), rest[i+1:]
	}
	if rest == "0" {
		return total, nil
	}
	if rest != "" {
		v, err := time.ParseDuration(rest)
		if err != nil || v < 0 {
			return 0, bad
		}
		total += v
	} else if total == 0 && !strings.HasSuffix(s, "d") {
		return 0, bad
	}
	return total, nil
}

// Size is a number of bytes, written "512KiB", "25MiB", "1GiB", "10MB" or plain.
type Size int64

// UnmarshalText parses the written form.
func (s *Size) UnmarshalText(b []byte) error {
	text := strings.TrimSpace(string(b))
	num := strings.TrimRight(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
	units := map[string]int64{"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
	unit, ok := units[strings.ToLower(strings.TrimSpace(text[len(num):]))]
	n, err := strconv.ParseFloat(num, 64)
	if !ok || err != nil || n < 0 || n*float64(unit) > 1<<50 {
		return fmt.Errorf("%q is not a size: write a number and a unit, such as \"25MiB\"", text)
	}
	*s = Size(n * float64(unit))
	return nil
}

// OneOrMore is a list that may be written as a single text.
type OneOrMore []string

// Table is a table whose keys belong to a provider, not to this package.
type Table map[string]any

// errOneSecret names the forms of a secret.
var errOneSecret = errors.New("give exactly one of them")
