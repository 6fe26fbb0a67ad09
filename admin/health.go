package admin

import (
	"context"
	"fmt"
	"net/http"
	"time"
)

// Health serves /livez (the process answers) and /readyz (it can accept mail: a transaction commits).
func Health(ping func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		if err := ping(ctx); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, "not ready: the store cannot commit") // details are in the log
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}
