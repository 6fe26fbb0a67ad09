package deliver

import (
	"context"
	"strings"
	"testing"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/providers"
	"smtpbridge/route"
	"smtpbridge/store"
	"smtpbridge/translate"
)

// BenchmarkDeliver drains a queue through an ESP that answers at once: what is left is our own cost.
func BenchmarkDeliver(b *testing.B) {
	st, err := store.Open(b.Context(), store.Options{Dir: b.TempDir(), MinFree: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer st.Close()
	routes, err := route.New([]route.Route{{Name: "main", Senders: []string{"*"}, Accounts: []string{"a"}}})
	if err != nil {
		b.Fatal(err)
	}
	got := make(chan struct{}, b.N)
	esp := &fake{caps: jsonCaps()}
	esp.set(func(m *translate.Mail) (*providers.Outcome, error) {
		got <- struct{}{}
		return providers.AllAccepted(m, m.Ref), nil
	})
	p := NewPlanner(PlannerConfig{
		Routes: routes, Generation: 1, Accounts: map[string]*Account{"a": {Name: "a", Provider: esp, MaxConcurrent: 64}},
	})
	mail := "From: a@example.com\r\nTo: r@r.example\r\nSubject: s\r\n\r\n" + strings.Repeat("some text of a usual mail\r\n", 150)
	done := make(chan error, 64)
	for w := range 64 {
		go func() {
			for i := w; i < b.N; i += 64 {
				if err := accept(st, p, mail); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 64 {
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(b.Context())
	r := NewRunner(RunnerConfig{Queue: st, Planner: p})
	b.ResetTimer()
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	for range b.N {
		<-got
	}
	cancel()
	if err := <-ended; err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "mails/s")
}

func accept(st *store.Store, p *Planner, mail string) error {
	now := time.Now()
	env := envelope.Envelope{ID: envelope.NewID(now), From: "a@example.com", Rcpts: []envelope.Rcpt{{Addr: "r@r.example"}}, Received: now}
	plan, err := p.Plan(PlanRequest{Envelope: env, Body: strings.NewReader(mail), Size: int64(len(mail))})
	if err != nil {
		return err
	}
	rc, err := st.Begin(context.Background())
	if err != nil {
		return err
	}
	if _, err := rc.Write([]byte(mail)); err != nil {
		return err
	}
	return rc.Commit(context.Background(), plan.Mail, plan.Jobs)
}
