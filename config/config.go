// Package config reads bridge.toml into plain structs. It is strict: an unknown key is an error
// that names the nearest known one, and all problems are reported at once, with file, line and key.
//
// Load does not touch the network, start anything or know any provider: what [account.options]
// holds is decoded by the provider through Account.DecodeOptions, with the same strictness.
package config

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"smtpbridge/internal/secret"
)

// Config is a whole configuration file. The struct tags are the public names of the settings.
type Config struct {
	File        string              `toml:"-"`
	Hostname    string              `toml:"hostname"`
	DataDir     string              `toml:"data_dir"`
	Store       Store               `toml:"store"`
	Listeners   []Listener          `toml:"listener"`
	Aliases     map[string][]string `toml:"aliases"`
	Users       []User              `toml:"user"`
	Accounts    []Account           `toml:"account"`
	Routes      []Route             `toml:"route"`
	Delivery    Delivery            `toml:"delivery"`
	Retention   Retention           `toml:"retention"`
	Suppression Suppression         `toml:"suppression"`
	CatchUp     CatchUp             `toml:"catch_up"`
	Webhook     Webhook             `toml:"webhook"`
	DNS         DNS                 `toml:"dns"`
	Events      Events              `toml:"events"`
	DSN         DSN                 `toml:"dsn"`
	Inbound     []Inbound           `toml:"inbound"`
	HTTP        HTTP                `toml:"http"`
	Admin       Admin               `toml:"admin"`
	ACME        ACME                `toml:"acme"`
	Log         Log                 `toml:"log"`

	Warnings []Problem `toml:"-"`
	problems *problems
	saidOpen bool // that the file with secrets can be read by everybody
}

// Store is the [store] table.
type Store struct {
	URL   string   `toml:"url"`
	Lease Duration `toml:"lease"`
}

// Listener is one [[listener]].
type Listener struct {
	Name                string    `toml:"name"`
	Address             string    `toml:"address"`
	Protocol            string    `toml:"protocol"` // smtp | lmtp
	TLS                 string    `toml:"tls"`      // off | starttls | implicit
	MinTLS              string    `toml:"min_tls"`
	CertFile            string    `toml:"cert_file"`
	KeyFile             string    `toml:"key_file"`
	ACME                OneOrMore `toml:"acme"`
	Auth                string    `toml:"auth"` // off | optional | required
	Allow               []string  `toml:"allow"`
	Accept              string    `toml:"accept"` // queue | wait
	WaitTimeout         Duration  `toml:"wait_timeout"`
	AppendDomain        string    `toml:"append_domain"`
	MaxMessageSize      Size      `toml:"max_message_size"`
	MaxRecipients       int       `toml:"max_recipients"`
	MaxConnections      int       `toml:"max_connections"`
	MaxConnectionsPerIP int       `toml:"max_connections_per_ip"`
	MaxLine             Size      `toml:"max_line"`
	IdleTimeout         Duration  `toml:"idle_timeout"`
	DataTimeout         Duration  `toml:"data_timeout"`
	DataTotal           Duration  `toml:"data_total"`
	WriteTimeout        Duration  `toml:"write_timeout"`
	BareNewlines        string    `toml:"bare_newlines"` // normalize | reject
	Dialects            []string  `toml:"dialects"`
	Permissions         []string  `toml:"permissions"`
	BadOptions          string    `toml:"bad_options"`           // warn | reject
	SocketMode          string    `toml:"socket_mode"`           // of a unix socket, octal
	MaxMessagesPerHour  int       `toml:"max_messages_per_hour"` // 0 = no limit
}

// User is one [[user]].
type User struct {
	Name         string   `toml:"name"`
	PasswordHash string   `toml:"password_hash"`
	Password     string   `toml:"password"`
	PasswordFile string   `toml:"password_file"`
	PasswordEnv  string   `toml:"password_env"`
	Senders      []string `toml:"senders"`
	Dialects     []string `toml:"dialects"` // in place of the listener's
	Permissions  []string `toml:"permissions"`

	MaxMessagesPerHour int `toml:"max_messages_per_hour"` // 0 = no limit

	Secret secret.String `toml:"-"`
}

// Account is one [[account]]: a configured instance of a provider.
type Account struct {
	Name                 string    `toml:"name"`
	Provider             string    `toml:"provider"`
	APIKey               string    `toml:"api_key"`
	APIKeyFile           string    `toml:"api_key_file"`
	APIKeyEnv            string    `toml:"api_key_env"`
	BaseURL              string    `toml:"base_url"`
	WebhookSecret        OneOrMore `toml:"webhook_secret"`
	WebhookSecretFile    OneOrMore `toml:"webhook_secret_file"`
	WebhookSecretEnv     OneOrMore `toml:"webhook_secret_env"`
	InboundSecret        OneOrMore `toml:"inbound_secret"`
	InboundSecretFile    OneOrMore `toml:"inbound_secret_file"`
	InboundSecretEnv     OneOrMore `toml:"inbound_secret_env"`
	WebhookBasicAuth     OneOrMore `toml:"webhook_basic_auth"`
	WebhookBasicAuthFile OneOrMore `toml:"webhook_basic_auth_file"`
	WebhookBasicAuthEnv  OneOrMore `toml:"webhook_basic_auth_env"`
	WebhookURL           string    `toml:"webhook_url"`
	MaxConcurrent        int       `toml:"max_concurrent"`
	MaxPerSecond         float64   `toml:"max_per_second"`
	ReturnPath           string    `toml:"return_path"`
	Tracking             string    `toml:"tracking"`         // account | off | opens | clicks | both
	SplitRecipients      string    `toml:"split_recipients"` // never | always
	KeepReceived         bool      `toml:"keep_received"`
	Options              Table     `toml:"options"`

	Key            secret.String   `toml:"-"`
	WebhookSecrets []secret.String `toml:"-"`
	InboundSecrets []secret.String `toml:"-"`
	BasicAuth      []secret.String `toml:"-"`

	index int
	cfg   *Config
}

// Route is one [[route]].
type Route struct {
	Name            string            `toml:"name"`
	Senders         []string          `toml:"senders"`
	Recipients      []string          `toml:"recipients"`
	Listeners       []string          `toml:"listeners"`
	Users           []string          `toml:"users"`
	Headers         map[string]string `toml:"headers"`
	Accounts        []string          `toml:"accounts"`
	OnLoss          string            `toml:"on_loss"` // send | refuse
	ForceFrom       string            `toml:"force_from"`
	RedirectAllTo   OneOrMore         `toml:"redirect_all_to"`
	AllowRecipients []string          `toml:"allow_recipients"`
	Permissions     []string          `toml:"permissions"`
	Expire          Duration          `toml:"expire"`
}

// Delivery is the [delivery] table.
type Delivery struct {
	Retry         string   `toml:"retry"`
	Expire        Duration `toml:"expire"`
	FailoverAfter Duration `toml:"failover_after"`
	SoftBounce    bool     `toml:"soft_bounce"`
	OnUnknown     string   `toml:"on_unknown"` // retry | hold
}

// Retention is the [retention] table: how long things are kept after a mail is finished.
type Retention struct {
	Bodies   Duration `toml:"bodies"`
	Failed   Duration `toml:"failed"`
	Ledger   Duration `toml:"ledger"`
	Webhooks Duration `toml:"webhooks"`
}

// Suppression is the [suppression] table.
type Suppression struct {
	Enabled          bool     `toml:"enabled"`
	AtRcpt           bool     `toml:"at_rcpt"`           // refuse at RCPT TO what every From domain is kept from
	KeepBounces      Duration `toml:"keep_bounces"`      // how long an entry lasts; 0 = until it is removed
	KeepComplaints   Duration `toml:"keep_complaints"`   // likewise
	KeepUnsubscribes Duration `toml:"keep_unsubscribes"` // likewise
}

// CatchUp is the [catch_up] table.
type CatchUp struct {
	Enabled bool     `toml:"enabled"`
	After   Duration `toml:"after"`   // how long a mail may be without a final event before the ESP is asked
	Silence Duration `toml:"silence"` // how long the webhooks of an account that sends may be silent
}

// Webhook is the [webhook] table.
type Webhook struct {
	Address        string   `toml:"address"`
	PublicURL      string   `toml:"public_url"`
	TrustedProxies []string `toml:"trusted_proxies"`
	Tolerance      Duration `toml:"tolerance"`
}

// DNS is the [dns] table.
type DNS struct {
	Server string `toml:"server"`
}

// Events is the [events] table.
type Events struct {
	File    string    `toml:"file"`
	Forward []Forward `toml:"forward"`
	Subject bool      `toml:"subject"` // put the Subject into events and the ledger
	Readers bool      `toml:"readers"` // keep the address and browser of who opened or clicked
}

// Forward is one target of events.forward.
type Forward struct {
	URL        string `toml:"url"`
	Secret     string `toml:"secret"`
	SecretFile string `toml:"secret_file"`
	SecretEnv  string `toml:"secret_env"`
	AllowLocal bool   `toml:"allow_local"` // allow a target on a private or loopback address

	Key secret.String `toml:"-"`
}

// DSN is the [dsn] table.
type DSN struct {
	On         []string `toml:"on"`      // failed, delayed, delivered: where the mail's NOTIFY does not say
	Account    string   `toml:"account"` // "" = no DSN mail
	DelayAfter Duration `toml:"delay_after"`
	MaxPerHour int      `toml:"max_per_hour"` // to one sender, 0 = no limit
}

// Inbound is one [[inbound]].
type Inbound struct {
	Recipients []string `toml:"recipients"`
	Account    string   `toml:"account"`
}

// HTTP is the [http] table: how API calls leave.
type HTTP struct {
	Proxy  string `toml:"proxy"`
	CAFile string `toml:"ca_file"`
}

// Admin is the [admin] table.
type Admin struct {
	Socket       string    `toml:"socket"`
	SocketMode   string    `toml:"socket_mode"`
	Address      string    `toml:"address"`
	PasswordHash string    `toml:"password_hash"`
	CertFile     string    `toml:"cert_file"`
	KeyFile      string    `toml:"key_file"`
	ACME         OneOrMore `toml:"acme"`
	Hosts        []string  `toml:"hosts"`
	Preview      bool      `toml:"preview"`
}

// Log is the [log] table.
type Log struct {
	Level     string `toml:"level"`  // debug | info | warn | error
	Format    string `toml:"format"` // text | json
	Addresses bool   `toml:"addresses"`
}

// defaults are in force where the file says nothing.
func defaults() *Config {
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	return &Config{
		Hostname: host,
		DataDir:  "/var/lib/smtpbridge",
		Store:    Store{Lease: Duration(2 * minute)},
		Delivery: Delivery{Retry: "1m, 5m*2, 15m*2, 1h*3, 4h*", Expire: days(5), FailoverAfter: Duration(10 * minute), OnUnknown: "retry"},
		Retention: Retention{
			Failed: days(7), Ledger: days(30), Webhooks: days(30),
		},
		Webhook:     Webhook{Address: "127.0.0.1:8025", Tolerance: Duration(5 * minute)},
		DSN:         DSN{On: []string{"failed"}, DelayAfter: Duration(4 * hour), MaxPerHour: 1000},
		Admin:       Admin{SocketMode: "0660", Preview: true},
		ACME:        ACME{Directory: LetsEncrypt},
		Log:         Log{Level: "info", Format: "text", Addresses: true},
		Suppression: Suppression{KeepBounces: days(180)},
		CatchUp:     CatchUp{Enabled: true, After: days(1), Silence: Duration(hour)},
	}
}

func (l *Listener) setDefaults() {
	def(&l.Protocol, "smtp")
	if l.CertFile != "" || len(l.ACME) > 0 {
		def(&l.TLS, "starttls")
	}
	def(&l.TLS, "off")
	def(&l.MinTLS, "1.2")
	def(&l.Auth, "optional")
	def(&l.Accept, "queue")
	def(&l.WaitTimeout, Duration(20*second))
	def(&l.MaxMessageSize, 25<<20)
	def(&l.MaxRecipients, 1000)
	def(&l.MaxConnections, 500)
	def(&l.MaxConnectionsPerIP, 50)
	def(&l.MaxLine, l.MaxMessageSize)
	def(&l.IdleTimeout, Duration(300*second))
	def(&l.DataTimeout, Duration(60*second))
	def(&l.DataTotal, Duration(30*minute))
	def(&l.WriteTimeout, Duration(60*second))
	def(&l.BareNewlines, "normalize")
	def(&l.SocketMode, "0660")
	def(&l.BadOptions, "warn")
	if l.Dialects == nil {
		l.Dialects = []string{"all"}
	}
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Load reads and checks a file. providers are the names an account may use. The error is
// Problems (every mistake at once) or a failure to read the file. Warnings alone are no error.
func Load(file string, providers []string) (*Config, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%s does not exist: copy bridge.toml.example there, or name another file with -c", file)
		}
		return nil, Problems{{File: file, Text: strings.TrimPrefix(unusable(file, err), file+" ")}}
	}
	return Parse(file, string(b), providers)
}

// Parse is Load for a text; file is its name in messages, and relative paths in it start beside it.
func Parse(file, text string, providers []string) (*Config, error) {
	p := &problems{file: file, lines: indexLines(text)}
	c := defaults()
	c.File, c.problems = file, p
	var root map[string]any
	if _, err := toml.Decode(text, &root); err != nil {
		var perr toml.ParseError
		if errors.As(err, &perr) {
			return nil, Problems{{File: file, Line: perr.Position.Line, Text: "not valid TOML: " + perr.Message + tomlHint(perr.Message)}}
		}
		return nil, Problems{{File: file, Text: "not valid TOML: " + err.Error()}}
	}
	d := &decoder{problems: p}
	d.table("", root, reflect.ValueOf(c).Elem())
	for i := range c.Listeners {
		c.Listeners[i].setDefaults()
	}
	if c.Admin.Socket == "" {
		c.Admin.Socket = filepath.Join(c.DataDir, "admin.sock")
	}
	c.validate(root, providers)
	slices.SortStableFunc(p.list, func(a, b Problem) int { return a.Line - b.Line })
	var errs Problems
	for _, pr := range p.list {
		if pr.Warning {
			c.Warnings = append(c.Warnings, pr)
		} else {
			errs = append(errs, pr)
		}
	}
	p.list = nil
	if len(errs) > 0 {
		return nil, append(errs, c.Warnings...)
	}
	return c, nil
}

// Path resolves a path of the file: relative ones start beside the file.
func (c *Config) Path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(c.File), p)
}

// DecodeOptions decodes the provider's own settings into v, a pointer to a struct with toml tags.
// The error is Problems.
func (a *Account) DecodeOptions(v any) error {
	if len(a.Options) == 0 {
		return nil
	}
	p := &problems{file: a.cfg.File, lines: a.cfg.problems.lines}
	d := &decoder{problems: p}
	d.table(fmt.Sprintf("account[%d].options", a.index), map[string]any(a.Options), reflect.ValueOf(v).Elem())
	if len(p.list) > 0 {
		return Problems(p.list)
	}
	return nil
}

// Problem makes a Problem of the account's block, for errors found when its provider is made.
func (a *Account) Problem(key string, err error) Problem {
	path := fmt.Sprintf("account[%d]", a.index)
	if key != "" {
		return a.cfg.Problem(join(path, key), err)
	}
	// A provider says what is wrong with its settings in words: the one that is written in the file is meant.
	for _, word := range strings.FieldsFunc(err.Error(), func(r rune) bool { return r != '_' && (r < 'a' || r > 'z') }) {
		if _, ok := a.Options[word]; ok {
			return a.cfg.Problem(join(path, "options."+word), err)
		}
		for _, form := range []string{word, word + "_file", word + "_env"} {
			if _, ok := a.cfg.problems.lines[join(path, form)]; ok {
				return a.cfg.Problem(join(path, form), err)
			}
		}
	}
	return a.cfg.Problem(path, err)
}

// Problem makes a Problem of a key, for errors found when its value is used.
func (c *Config) Problem(key string, err error) Problem {
	return Problem{File: c.File, Line: c.problems.line(key), Key: key, Text: err.Error()}
}
