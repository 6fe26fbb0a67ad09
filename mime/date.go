package mime

import (
	"strconv"
	"strings"
	"time"
)

var months = map[string]time.Month{
	"jan": 1, "feb": 2, "mar": 3, "apr": 4, "may": 5, "jun": 6, "jul": 7, "aug": 8, "sep": 9, "oct": 10, "nov": 11, "dec": 12,
}

// zones are the names of RFC 5322 4.3 and a few that are seen, in minutes.
var zones = map[string]int{
	"ut": 0, "utc": 0, "gmt": 0, "z": 0, "est": -300, "edt": -240, "cst": -360, "cdt": -300, "mst": -420, "mdt": -360, "pst": -480, "pdt": -420,
	"ast": -240, "adt": -180, "cet": 60, "cest": 120, "met": 60, "mest": 120, "bst": 60, "eet": 120, "eest": 180, "msk": 180, "jst": 540,
}

// parseDate reads a date (RFC 5322 3.3 and 4.3) with the liberties that mailers take: the day of the week is not looked
// at, month and day in either order, two-digit years, no seconds, no zone (taken as UTC). RFC 3339 dates are read too.
func parseDate(s string) (time.Time, bool) {
	const longest = 200
	if len(s) > longest {
		return time.Time{}, false
	}
	s = strings.TrimSpace(stripComments(s))
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t.UTC(), true
	}
	var day, year, month, clock, zone string
	for _, w := range strings.FieldsFunc(s, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		w = strings.ToLower(w)
		if i := strings.IndexByte(w, '-'); i > 0 && strings.Count(w, "-") == 2 && clock == "" { // 1-Jan-2026
			f := strings.Split(w, "-")
			if len(f[0]) == 4 { // 2026-01-31
				f[0], f[2] = f[2], f[0]
			}
			if n, err := strconv.Atoi(f[1]); err == nil && n >= 1 && n <= 12 {
				f[1] = strings.ToLower(time.Month(n).String()[:3])
			}
			day, month, year = f[0], f[1], f[2]
			continue
		}
		switch {
		case clock == "" && (strings.Contains(w, ":") || strings.Count(w, ".") == 2):
			// "12:30:00+0200" without a space
			if i := strings.IndexAny(w, "+-"); i > 0 {
				w, zone = w[:i], w[i:]
			}
			clock = strings.ReplaceAll(w, ".", ":")
		case isMonth(w):
			month = w[:3]
		case clock != "" && zone == "" && (w[0] == '+' || w[0] == '-'):
			zone = w
		case isDigits(w):
			switch {
			case day == "" && len(w) <= 2:
				day = w
			case year == "":
				year = w
			case zone == "" && len(w) == 4:
				zone = "+" + w
			}
		case clock != "" && zone == "":
			zone = w
		}
	}
	d, err1 := strconv.Atoi(day)
	y, err2 := strconv.Atoi(year)
	if err1 != nil || err2 != nil || len(month) < 3 || months[month[:3]] == 0 || clock == "" {
		return time.Time{}, false
	}
	switch { // RFC 5322 4.3
	case len(year) == 2 && y < 50:
		y += 2000
	case len(year) <= 3:
		y += 1900
	}
	hms := [3]int{}
	parts := strings.Split(clock, ":")
	if len(parts) < 2 || len(parts) > 3 {
		return time.Time{}, false
	}
	for i, f := range parts {
		n, err := strconv.Atoi(f)
		if err != nil {
			return time.Time{}, false
		}
		hms[i] = n
	}
	if d < 1 || d > 31 || y > 9999 || hms[0] < 0 || hms[0] > 24 || hms[1] < 0 || hms[1] > 59 || hms[2] < 0 || hms[2] > 60 {
		return time.Time{}, false
	}
	offset := zones[zone] // unknown names count as UTC, RFC 5322 4.3
	if len(zone) > 1 && (zone[0] == '+' || zone[0] == '-') {
		digits := strings.ReplaceAll(zone[1:], ":", "")
		if n, err := strconv.Atoi(digits); err == nil && n >= 0 && n < 2400 {
			if len(digits) <= 2 {
				n *= 100
			}
			offset = n/100*60 + n%100
			if zone[0] == '-' {
				offset = -offset
			}
		}
	}
	t := time.Date(y, months[month[:3]], d, hms[0], hms[1], hms[2], 0, time.UTC)
	if t.Day() != d && hms[0] < 24 {
		return time.Time{}, false // 31 February
	}
	t = t.Add(-time.Duration(offset) * time.Minute)
	if t.Year() < 0 || t.Year() > 9999 {
		return time.Time{}, false // has no RFC 3339 form
	}
	return t, true
}

func isMonth(w string) bool { return len(w) >= 3 && months[w[:3]] != 0 }

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }
