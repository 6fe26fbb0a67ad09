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
	// Queue lists what Mails finds, without pages: all of it up to q.Limit.
	Queue(ctx context.Context, q Query) ([]Mail, error)
	// Mails is one page of the mails a query finds, newest first, at a bounded cost.
	Mails(ctx context.Context, q Query) (*Page, error)
	Mail(ctx context.Context, id string) (*Detail, error)
	// Body opens the bytes of a mail as they were received, for as long as they are kept.
	Body(ctx context.Context, id string) (io.ReadCloser, error)
	// Content is what a mail says, while its body is kept.
	Content(ctx context.Context, id string) (*Content, error)
	// Trace finds mails by queue id, Message-ID (sent or on the wire), ESP id, reference or address, newest first.
	Trace(ctx context.Context, key string) ([]*Detail, error)
	Act(ctx context.Context, id string, a Action, reason string) error
	// Events hands out events in order; with q.Follow it goes on until ctx ends.
	Events(ctx context.Context, q EventQuery, each func(event.Event) error) error
	// Recent is the newest events a query finds, newest first; it looks through a bounded number of them.
	Recent(ctx context.Context, q EventQuery, limit int) ([]event.Event, error)
	// Activity counts what happened within the last span of time, in steps.
	Activity(ctx context.Context, span time.Duration) (*Activity, error)
	Accounts(ctx context.Context) ([]Account, error)
	// Nodes lists the living bridges that share a PostgreSQL store; with SQLite none.
	Nodes(ctx context.Context) ([]store.Node, error)
	// Inbox lists the newest mails that accounts of provider sandbox have taken, newest first, without their contents.
	Inbox(ctx context.Context) ([]InboxMail, error)
	InboxMail(ctx context.Context, account, id string) (*InboxMail, error)
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

// ErrDone says that a mail is finished, so that there is nothing to do with it.
var ErrDone = errors.New("there is nothing left to do")

// ErrPreview says that contents may not be shown.
var ErrPreview = errors.New("contents are not shown: [admin] preview is false")

// Query selects mails.
type Query struct {
	State   string // queued, held, finished, deleted, failed (a recipient was not reached), all; "" = queued and held
	Text    string // a queue id, Message-ID, ESP id, event id or reference, else an address, else a part of the subject
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
	New       bool // only what comes from now on
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
	Alarms    []Alarm        `json:"alarms"`
}

// Page is one page of mails.
type Page struct {
	Mails []Mail `json:"mails"`
	Next  string `json:"next,omitempty"` // the after of the next page; a page may be short, or empty, though more follow
}

// Content is what a mail says. Texts are cut at a mebibyte.
type Content struct {
	Text  string `json:"text,omitempty"`
	HTML  string `json:"html,omitempty"`
	Cut   bool   `json:"cut,omitempty"`
	Files []File `json:"files,omitempty"`

	pictures int64 // bytes
}

// File is an attachment of a mail.
type File struct {
	Name   string `json:"name"`
	Type   string `json:"type"`
	Size   int64  `json:"size"`
	ID     string `json:"content_id,omitempty"`
	Inline bool   `json:"inline,omitempty"`

	data []byte // of a small picture the HTML shows
}

// Field is a header field.
type Field struct {
	Name  string `json:"name"`
	Value string `json:"value"` // decoded
}

// Activity is what happened in steps of time.
type Activity struct {
	Start    time.Time                   `json:"start"` // of the first step
	Step     time.Duration               `json:"step_ns"`
	Series   map[string][]int64          `json:"series"`   // by kind of event (of recipients), and "accepted" (mails taken by SMTP)
	Accounts map[string]map[string]int64 `json:"accounts"` // sums of each account, by kind
}

// InboxMail is a mail as the sandbox ESP has taken it.
type InboxMail struct {
	Account string    `json:"account"`
	ID      string    `json:"id"`
	Ref     string    `json:"ref,omitempty"` // our reference; trace and the message list find the mail by it
	Time    time.Time `json:"time"`
	Size    int64     `json:"size"`
	From    string    `json:"from"`
	To      []string  `json:"to"`
	Cc      []string  `json:"cc,omitempty"`
	Rcpts   []string  `json:"recipients"`
	Subject string    `json:"subject"`
	Headers []Field   `json:"headers,omitempty"`
	Content *Content  `json:"content,omitempty"`

	// Open reads headers and content into the mail; From, To, Cc and Subject too where only the raw mail has them.
	Open func(*InboxMail) error `json:"-"`
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
	// Outcome counts recipients by the newest fact known of them: queued, sent, delivered, bounced ...
	Outcome  map[string]int `json:"outcome,omitempty"`
	Listener string         `json:"listener,omitempty"`
	Peer     string         `json:"peer,omitempty"`
	User     string         `json:"user,omitempty"`
}

// Detail is the whole life of a mail.
type Detail struct {
	Mail
	Recipients []Rcpt        `json:"recipient_states"`
	Headers    []Field       `json:"headers,omitempty"`
	BodyKept   bool          `json:"body_kept"`
	Jobs       []Job         `json:"jobs,omitempty"`
	Attempts   []Attempt     `json:"attempts,omitempty"`
	Events     []event.Event `json:"events,omitempty"`
	Notices    []Notice      `json:"notices,omitempty"`
}

// Notice is what the sender was told by DSN mail, or will be, or not.
type Notice struct {
	Rcpt   string     `json:"recipient"`
	Action string     `json:"action"`
	At     time.Time  `json:"at"`
	Due    *time.Time `json:"due,omitempty"`
	DSN    string     `json:"dsn,omitempty"` // queue id of the mail
	Reason string     `json:"reason,omitempty"`
}

// Rcpt is the state of one recipient.
type Rcpt struct {
	Addr              string     `json:"address"`
	State             string     `json:"state"`
	Account           string     `json:"account,omitempty"`
	ProviderMessageID string     `json:"provider_message_id,omitempty"`
	WireMessageID     string     `json:"wire_message_id,omitempty"` // Message-ID the recipient sees, where the ESP set its own
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
	Waits     string    `json:"waits,omitempty"` // why it is not done when it is due: its account is paused or stopped
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
	Webhook  *Webhook   `json:"webhook,omitempty"` // nil: its ESP calls nobody
}

// Webhook says how the events of an account come.
type Webhook struct {
	Served bool       `json:"served"`
	Reason string     `json:"reason,omitempty"` // why it is not served
	Last   *time.Time `json:"last,omitempty"`   // of the last event within a week, within five minutes
}
