package admin

import (
	"context"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"smtpbridge/event"
	"smtpbridge/store"
)

// Metrics are the bridge's Prometheus metrics. Labels are names from the configuration and fixed
// vocabularies only: no address, id or text from outside ever becomes a label.
type Metrics struct {
	reg *prometheus.Registry

	accepted      *prometheus.CounterVec
	acceptedBytes *prometheus.CounterVec
	refused       *prometheus.CounterVec
	sessions      *prometheus.GaugeVec
	authFailures  *prometheus.CounterVec
	commits       prometheus.Histogram
	calls         *prometheus.HistogramVec
	waits         *prometheus.HistogramVec
	webhooks      *prometheus.HistogramVec
	webhookEvents *prometheus.CounterVec
	badSignatures *prometheus.CounterVec
	sinkEvents    *prometheus.CounterVec
	alarms        *prometheus.GaugeVec
}

// NewMetrics makes the metrics of one bridge; queue numbers are read from st when somebody asks.
func NewMetrics(version string, st *store.Store) *Metrics {
	m := &Metrics{reg: prometheus.NewRegistry()}
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "smtpbridge", Name: name, Help: help}, labels)
		m.reg.MustRegister(c)
		return c
	}
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		g := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "smtpbridge", Name: name, Help: help}, labels)
		m.reg.MustRegister(g)
		return g
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "smtpbridge", Name: name, Help: help, Buckets: buckets}, labels)
		m.reg.MustRegister(h)
		return h
	}
	fast := []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	slow := append(fast[3:len(fast):len(fast)], 30, 60)
	m.accepted = counter("mails_accepted_total", "Mails answered with 250.", "listener")
	m.acceptedBytes = counter("mails_accepted_bytes_total", "Bytes of mails answered with 250.", "listener")
	m.refused = counter("smtp_refused_total", "Commands and mails refused, by reason.", "listener", "reason")
	m.sessions = gauge("smtp_sessions", "Open SMTP sessions.", "listener")
	m.authFailures = counter("smtp_auth_failures_total", "Failed logins.", "listener")
	commits := prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: "smtpbridge", Name: "accept_seconds", Help: "Time from the end of DATA to the durable commit.", Buckets: fast})
	m.reg.MustRegister(commits)
	m.commits = commits
	m.calls = histogram("api_call_seconds", "API calls, by what they came to.", slow, "account", "result")
	m.waits = histogram("queue_wait_seconds", "Time from acceptance, or from the time a mail asked for, to its first API call.",
		[]float64{.01, .05, .25, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 24 * 3600}, "account")
	m.webhooks = histogram("webhook_seconds", "Webhook requests, by HTTP status.", fast, "account", "status")
	m.webhookEvents = counter("webhook_events_total", "Events received, by kind.", "account", "kind")
	m.badSignatures = counter("webhook_bad_signatures_total", "Webhook requests that did not verify.", "account")
	m.sinkEvents = counter("sink_events_total", "Events a sink has taken.", "sink")
	m.alarms = gauge("alarm", "1 while the alarm is raised.", "alarm", "account")
	info := gauge("build_info", "The running version.", "version")
	info.WithLabelValues(version).Set(1)
	m.reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &queueCollector{store: st})
	return m
}

// WatchLog shows how many lines of the log were lost.
func (m *Metrics) WatchLog(dropped func() int64) {
	m.reg.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Namespace: "smtpbridge", Name: "log_dropped_total", Help: "Lines of the log that could not be written.",
	}, func() float64 { return float64(dropped()) }))
}

// WatchNodes shows the nodes that share the store, and what this one leads.
func (m *Metrics) WatchNodes(nodes func(context.Context) ([]store.Node, error)) {
	m.reg.MustRegister(nodeCollector(nodes))
}

// Certificate is one that handshakes get.
type Certificate struct {
	Listener string // "" = the admin address
	Name     string // that it was asked for by ACME; "" = from files
	NotAfter time.Time
}

// certCollector lists the certificates when somebody asks.
type certCollector func() []Certificate

var certDesc = prometheus.NewDesc("smtpbridge_certificate_not_after_seconds", "When a certificate in use expires, in Unix time.", []string{"listener", "name"}, nil)

// WatchCertificates shows when certificates expire.
func (m *Metrics) WatchCertificates(list func() []Certificate) {
	m.reg.MustRegister(certCollector(list))
}

func (c certCollector) Describe(ch chan<- *prometheus.Desc) { ch <- certDesc }

func (c certCollector) Collect(ch chan<- prometheus.Metric) {
	for _, cert := range c() {
		ch <- prometheus.MustNewConstMetric(certDesc, prometheus.GaugeValue, float64(cert.NotAfter.Unix()), cert.Listener, cert.Name)
	}
}

// Handler serves /metrics.
func (m *Metrics) Handler() http.Handler {
	return promhttp.HandlerFor(m.reg, promhttp.HandlerOpts{MaxRequestsInFlight: 2})
}

// Accepted counts a mail that got its 250.
func (m *Metrics) Accepted(listener string, size int64) {
	m.accepted.WithLabelValues(listener).Inc()
	m.acceptedBytes.WithLabelValues(listener).Add(float64(size))
}

// Refused counts a refusal.
func (m *Metrics) Refused(listener, reason string) { m.refused.WithLabelValues(listener, reason).Inc() }

// Sessions sets how many sessions are open.
func (m *Metrics) Sessions(listener string, open int) {
	m.sessions.WithLabelValues(listener).Set(float64(open))
}

// AuthFail counts a failed login.
func (m *Metrics) AuthFail(listener string) { m.authFailures.WithLabelValues(listener).Inc() }

// Commit tells how long a mail took from the end of DATA to its commit.
func (m *Metrics) Commit(elapsed time.Duration) { m.commits.Observe(elapsed.Seconds()) }

// Call tells of a finished API call.
func (m *Metrics) Call(account, result string, elapsed time.Duration) {
	m.calls.WithLabelValues(account, result).Observe(elapsed.Seconds())
}

// Waited tells how long a mail waited for its first call.
func (m *Metrics) Waited(account string, wait time.Duration) {
	m.waits.WithLabelValues(account).Observe(wait.Seconds())
}

// Webhook tells of an answered webhook request; account is "" for requests to no account.
func (m *Metrics) Webhook(account string, status int, elapsed time.Duration) {
	m.webhooks.WithLabelValues(account, strconv.Itoa(status)).Observe(elapsed.Seconds())
}

// WebhookEvent counts a received event.
func (m *Metrics) WebhookEvent(account string, kind event.Kind) {
	m.webhookEvents.WithLabelValues(account, string(kind)).Inc()
}

// BadSignature counts a request that did not verify.
func (m *Metrics) BadSignature(account string) { m.badSignatures.WithLabelValues(account).Inc() }

// SinkWritten counts what a sink has taken.
func (m *Metrics) SinkWritten(sink string, n int) {
	m.sinkEvents.WithLabelValues(sink).Add(float64(n))
}

func (m *Metrics) alarm(name, account string, raised bool) {
	v := 0.0
	if raised {
		v = 1
	}
	m.alarms.WithLabelValues(name, account).Set(v)
}

// queueCollector reads the queue's numbers when they are asked for, at most every few seconds.
type queueCollector struct {
	store *store.Store
	stats statsCache
}

// statsFor is how long counts of the queue are good enough for people and scrapes.
const statsFor = 3 * time.Second

// statsCache keeps counting from being done for everybody who looks.
type statsCache struct {
	mu   sync.Mutex
	at   time.Time
	last store.Stats
}

func (c *statsCache) read(ctx context.Context, st *store.Store, now time.Time) (store.Stats, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if age := now.Sub(c.at); age >= 0 && age < statsFor {
		return c.last, nil
	}
	last, err := st.Stats(ctx)
	if err == nil {
		c.at, c.last = now, last
	}
	return last, err
}

var (
	queuedDesc   = prometheus.NewDesc("smtpbridge_queue_mails", "Mails in the queue, by state.", []string{"state"}, nil)
	inFlightDesc = prometheus.NewDesc("smtpbridge_calls_in_flight", "API calls started and not settled.", nil, nil)
	oldestDesc   = prometheus.NewDesc("smtpbridge_queue_oldest_seconds", "How long the first of the queued mails has been waiting since it was received or, if it was to be sent later, due.", nil, nil)
	accountDesc  = prometheus.NewDesc("smtpbridge_queue_account_jobs", "Jobs that wait, by account.", []string{"account"}, nil)
)

func (q *queueCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{queuedDesc, inFlightDesc, oldestDesc, accountDesc} {
		ch <- d
	}
}

func (q *queueCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	st, err := q.stats.read(ctx, q.store, time.Now())
	if err != nil {
		ch <- prometheus.NewInvalidMetric(queuedDesc, err)
		return
	}
	send := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	send(queuedDesc, float64(st.Queued), "queued")
	send(queuedDesc, float64(st.Held), "held")
	send(inFlightDesc, float64(st.InFlight))
	age := 0.0
	if !st.Oldest.IsZero() {
		age = time.Since(st.Oldest).Seconds()
	}
	send(oldestDesc, age)
	for a, n := range st.ByAccount {
		send(accountDesc, float64(n), a)
	}
}

// forget makes the next look count anew: something is about to change.
func (c *statsCache) forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = time.Time{}
}

// nodeCollector lists the nodes when somebody asks.
type nodeCollector func(context.Context) ([]store.Node, error)

var (
	livingDesc     = prometheus.NewDesc("smtpbridge_nodes_living", "Bridges that live and share the store, this one included.", nil, nil)
	deliveringDesc = prometheus.NewDesc("smtpbridge_nodes_delivering", "Those of them that deliver: each takes its part of an account's rate.", nil, nil)
	leadsDesc      = prometheus.NewDesc("smtpbridge_node_leads", "1 for each work of one node at a time that this node does.", []string{"work"}, nil)
)

func (nodeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{livingDesc, deliveringDesc, leadsDesc} {
		ch <- d
	}
}

func (list nodeCollector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	nodes, err := list(ctx)
	if err != nil {
		ch <- prometheus.NewInvalidMetric(livingDesc, err)
		return
	}
	delivering := 0
	for _, n := range nodes {
		if n.Delivers {
			delivering++
		}
		if !n.Self {
			continue
		}
		for _, work := range n.Leads {
			ch <- prometheus.MustNewConstMetric(leadsDesc, prometheus.GaugeValue, 1, work)
		}
	}
	ch <- prometheus.MustNewConstMetric(livingDesc, prometheus.GaugeValue, float64(len(nodes)))
	ch <- prometheus.MustNewConstMetric(deliveringDesc, prometheus.GaugeValue, float64(delivering))
}
