package admin

import (
	"net/http"
	"net/url"
	"strings"
	"time"
)

type suppressionsPage struct {
	frame
	Address string
	List    []Suppression
	Next    string
	First   bool
	On      bool
}

const suppressionsPerPage = 50

func (d *Dashboard) suppressions(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	p := suppressionsPage{frame: d.frame(r, "Suppressions", "/suppressions"), Address: strings.TrimSpace(q.Get("address")), First: !q.Has("key"), On: d.Suppression != nil && d.Suppression()}
	var after *Suppression
	if !p.First {
		after = &Suppression{Key: q.Get("key"), Domain: q.Get("domain"), Stream: q.Get("stream")}
	}
	var err error
	if p.List, err = d.API.Suppressions(r.Context(), p.Address, after, suppressionsPerPage+1); err != nil {
		return err
	}
	if p.Address == "" && len(p.List) > suppressionsPerPage {
		p.List = p.List[:suppressionsPerPage]
		last := p.List[suppressionsPerPage-1]
		p.Next = "/suppressions?" + url.Values{"key": {last.Key}, "domain": {last.Domain}, "stream": {last.Stream}}.Encode()
	}
	return render(w, "suppressions", http.StatusOK, p)
}

// entry is what the form names.
func entry(r *http.Request) Suppression {
	return Suppression{
		Address: strings.TrimSpace(r.PostFormValue("address")), Key: r.PostFormValue("key"), Domain: strings.TrimSpace(r.PostFormValue("domain")), Stream: r.PostFormValue("stream"),
		Reason: "manual", Source: actor(r.Context()),
	}
}

func (d *Dashboard) suppress(w http.ResponseWriter, r *http.Request) error {
	e := entry(r)
	e.Key, e.Created = "", d.Now().UTC()
	if days, err := time.ParseDuration(r.PostFormValue("for")); err == nil {
		until := e.Created.Add(days)
		e.Expires = &until
	}
	return d.done(w, r, "/suppressions?address="+url.QueryEscape(e.Address), "The address receives no more mail.", d.API.Suppress(r.Context(), []Suppression{e}))
}

func (d *Dashboard) unsuppress(w http.ResponseWriter, r *http.Request) error {
	e := entry(r)
	if e.Address != "" {
		e.Key = ""
	}
	return d.done(w, r, "/suppressions", "The entry is removed.", d.API.Unsuppress(r.Context(), e))
}
