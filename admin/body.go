package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"smtpbridge/event"
	"smtpbridge/store"
)

// Body implements API.
func (s *Service) Body(ctx context.Context, id string) (io.ReadCloser, error) {
	b, err := s.Store.Body(ctx, id)
	if errors.Is(err, store.ErrNotFound) {
		if _, derr := s.Store.Detail(ctx, id); derr == nil {
			return nil, fmt.Errorf("mail %s is finished and its body removed ([retention] bodies): %w", event.Clean(id, 40), ErrNotFound)
		}
	}
	if err != nil {
		return nil, notFound(err, "mail", id)
	}
	if s.Log != nil {
		s.Log.Info("operator action", "event", "admin.action", "action", "export", "id", event.Clean(id, 40))
	}
	return struct {
		io.Reader
		io.Closer
	}{io.NewSectionReader(b, 0, b.Size()), b}, nil
}

// serveBody streams a mail. What breaks off in the middle reaches the client as an unexpected end.
func serveBody(api API, w http.ResponseWriter, r *http.Request) {
	b, err := api.Body(r.Context(), r.PathValue("id"))
	if err != nil {
		answer(w, nil, err)
		return
	}
	defer b.Close()
	w.Header().Set("Content-Type", "message/rfc822")
	w.Header().Set("Content-Disposition", "attachment") // never shown by a browser as a page of ours
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cache-Control", "no-store")
	if _, err := io.Copy(w, b); err != nil {
		panic(http.ErrAbortHandler)
	}
}

// Body implements API.
func (c *Client) Body(ctx context.Context, id string) (io.ReadCloser, error) {
	resp, err := c.send(ctx, http.MethodGet, "queue/"+url.PathEscape(id)+"/body", http.NoBody)
	if err != nil {
		return nil, err
	}
	return resp.Body, nil
}
