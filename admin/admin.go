// Package admin is what an operator can see and do: the queue, the ledger, the accounts and the
// events. Service does it on the store of this process; Handler serves a Service as JSON over
// HTTP (the admin socket); Client speaks to a Handler. Service and Client are the same API, so
// a command works alike with the running bridge and, read-only, with its store when it is down.
//
// Whoever may open the socket is the operator: the file mode is the access control.
package admin

import (
	"context"
	"errors"
	"io"
	"time"

	"smtpbridge/event"
	"smtpbridge/store"
)

// API is what an operator can ask for.
type API interface {
	Status(ctx context.Context) (*Status, error)
	Queue(ctx context.Context, q Query) ([]Mail, error)
	Mail(ctx context.Context, id string) (*Detail, error)
	// Body opens the bytes of a mail as they were received, for as long as they are kept.
	Body(ctx context.Context, id string) (io.ReadCloser, error)
	// Trace finds mails by queue id, Message-ID, ESP id, reference or address, newest first.
	Trace(ctx context.Context, key string) ([]*Detail, error)
	Act(ctx context.Context, id string, a Action, reason string) error
	// Events hands out events in order; with q.Follow it goes on until ctx ends.
	Events(ctx context.Context, q EventQuery, each func(event.Event) error) error
	Accounts(ctx context.Context) ([]Account, error)
	SetAccount(ctx context.Context, name string, pause bool, reason string) error
	// Replay reads stored webhook requests anew; each gets the counts so far, and at last those of the whole.
	Replay(ctx context.Context, since time.Time, each func(store.Replayed) error) error
	// Erase removes an address from everything that is finished.
	Erase(ctx context.Context, addr string) (*Erased, error)
	// Backup copies the store to an empty or new directory, an absolute path on the bridge's machine.
	Backup(ctx context.Context, dir string) error
	SuppressionAPI
}

// ErrReadOnly says that the bridge is not running, so that nothing can be changed.
var ErrReadOnly = errors.New("the bridge is not running: nothing can be changed now")

// ErrNotFound says that there is no such mail or account.
var ErrNotFound = errors.New("not found")

// Action is what an operator does to a queued mail.
type Action string

// Actions.
const (
	Retry   Action = "retry"   // due now
	Hold    Action = "hold"    // stays in the queue, is not sent
	Release Action = "release" // ends a hold
	Delete  Action = "delete"  // remaining recipients do not receive it
)

// Erased says what an erasure took away.
type Erased struct {
	Mails   int `json:"mails"`   // finished mails the address was taken out of
	Events  int `json:"events"`  // events deleted
	Waiting int `json:"waiting"` // mails still in the queue, left alone
}

// Query selects mails.
type Query struct {
	State   string // queued, held, finished, deleted; "" = queued and held
	Address string
	Account string
	Limit   int
	After   string
}

// EventQuery selects events.
type EventQuery struct {
	Since     time.Time
	Recipient string
	Kind      event.Kind
	Follow    bool
}

// Status is the bridge at a glance.
type Status struct {
	Version   string         `json:"version"`
	Started   time.Time      `json:"started"`
	Queued    int            `json:"queued"`
	Held      int            `json:"held"`
	InFlight  int            `json:"in_flight"`
	Oldest    *time.Time     `json:"oldest,omitempty"`
	ByAccount map[string]int `json:"by_account"`
}

// Mail is one line of the queue.
type Mail struct {
	ID         string     `json:"id"`
	State      string     `json:"state"`
	HoldReason string     `json:"hold_reason,omitempty"`
	Received   time.Time  `json:"received"`
	Finished   *time.Time `json:"finished,omitempty"`
	From       string     `json:"from"`
	FromHeader string     `json:"from_header,omitempty"`
	Rcpts      []string   `json:"recipients"`
	Size       int64      `json:"size"`
	MessageID  string     `json:"message_id,omitempty"`
	Subject    string     `json:"subject,omitempty"`
	Listener   string     `json:"listener,omitempty"`
	Peer       string     `json:"peer,omitempty"`
	User       string     `json:"user,omitempty"`
}

// Detail is the whole life of a mail.
type Detail struct {
	Mail
	Recipients []Rcpt        `json:"recipient_states"`
	Jobs       []Job         `json:"jobs,omitempty"`
	Attempts   []Attempt     `json:"attempts,omitempty"`
	Events     []event.Event `json:"events,omitempty"`
}

// Rcpt is the state of one recipient.
type Rcpt struct {
	Addr              string     `json:"address"`
	State             string     `json:"state"`
	Account           string     `json:"account,omitempty"`
	ProviderMessageID string     `json:"provider_message_id,omitempty"`
	Status            string     `json:"status,omitempty"`
	Detail            string     `json:"detail,omitempty"`
	Last              event.Kind `json:"last,omitempty"`
	LastTime          *time.Time `json:"last_time,omitempty"`
}

// Job is what is still to be done.
type Job struct {
	Route     string    `json:"route"`
	Account   string    `json:"account"`
	Accounts  []string  `json:"accounts"`
	Rcpts     []string  `json:"recipients"`
	NextAt    time.Time `json:"next_at"`
	Attempts  int       `json:"attempts"`
	Expires   time.Time `json:"expires"`
	LastError string    `json:"last_error,omitempty"`
}

// Attempt is one API call that was made.
type Attempt struct {
	Account    string        `json:"account"`
	Attempt    int           `json:"attempt"`
	Started    time.Time     `json:"started"`
	Elapsed    time.Duration `json:"elapsed_ns"`
	State      string        `json:"state"`
	Kind       string        `json:"kind,omitempty"`
	HTTPStatus int           `json:"http_status,omitempty"`
	Detail     string        `json:"detail,omitempty"`
	Rcpts      []string      `json:"recipients"`
}

// Account is the state of a configured account.
type Account struct {
	Name     string     `json:"name"`
	Provider string     `json:"provider"`
	State    string     `json:"state"`
	Reason   string     `json:"reason,omitempty"`
	Domain   string     `json:"domain,omitempty"`
	Until    *time.Time `json:"until,omitempty"`
	Since    *time.Time `json:"since,omitempty"`
	Queued   int        `json:"queued"`
}
