package admin

import (
	"fmt"
	"html/template"
	"strings"
	"time"
)

// chart is a small bar chart, drawn here so that a page needs no script for it.
type chart struct {
	Name, Tone string
	From, To   string
	Total, Max int64
	SVG        template.HTML
}

const (
	barWide   = 4
	chartHigh = 40
)

// makeChart draws the sum of some series. Everything in the SVG is a number or a word of ours.
func makeChart(name, tone string, a *Activity, kinds []string) chart {
	c := chart{Name: name, Tone: tone, To: "now"}
	n := 1
	for _, s := range a.Series {
		n = max(n, len(s))
	}
	sums := make([]int64, n)
	for _, k := range kinds {
		for i, v := range a.Series[k] {
			sums[i] += v
		}
	}
	for _, v := range sums {
		c.Total += v
		c.Max = max(c.Max, v)
	}
	layout := "15:04"
	if time.Duration(n)*a.Step > 24*time.Hour {
		layout = "2 Jan"
	}
	c.From = a.Start.Local().Format(layout)
	if time.Duration(n)*a.Step == 24*time.Hour {
		c.From = a.Start.Local().Format("2 Jan 15:04")
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg viewBox="0 0 %d %d" preserveAspectRatio="none" role="img" aria-label="%s: %d in all, at most %d in %s">`,
		n*barWide, chartHigh+1, template.HTMLEscapeString(name), c.Total, c.Max, duration(a.Step))
	for i, v := range sums {
		if v == 0 {
			continue
		}
		high := max(1.5, float64(v)/float64(c.Max)*chartHigh)
		at := a.Start.Add(time.Duration(i) * a.Step).Local().Format("2 Jan 15:04")
		fmt.Fprintf(&b, `<rect x="%.1f" y="%.2f" width="%.1f" height="%.2f" rx=".6"><title>%s: %d</title></rect>`, float64(i*barWide)+.4, chartHigh-high, barWide-.8, high, at, v)
	}
	fmt.Fprintf(&b, `<path class="base" d="M0 %d.5H%d"/></svg>`, chartHigh, n*barWide)
	c.SVG = template.HTML(b.String()) //nolint:gosec // numbers and words of ours only
	return c
}
