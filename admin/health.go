package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Health serves /livez (the process answers), /readyz (it can accept mail: a transaction commits; alarms are told as
// warnings, they do not make it unready) and /metrics. Alarm texts name accounts, never addresses.
func Health(ping func(context.Context) error, alarms func() []Alarm, m *Metrics) http.Handler {
	mux := http.NewServeMux()
	reply := func(w http.ResponseWriter, status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v) // the asker may have gone
	}
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
		defer cancel()
		type readiness struct {
			Status   string  `json:"status"`
			Reason   string  `json:"reason,omitempty"`
			Warnings []Alarm `json:"warnings"`
		}
		out := readiness{Status: "ok", Warnings: alarms()}
		if err := ping(ctx); err != nil {
			out.Status, out.Reason = "not ready", "the store cannot commit" // details are in the log
			reply(w, http.StatusServiceUnavailable, out)
			return
		}
		reply(w, http.StatusOK, out)
	})
	mux.Handle("GET /metrics", m.Handler())
	return mux
}
