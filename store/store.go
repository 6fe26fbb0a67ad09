// Package store is the bridge's durable state: queue, bodies, per-recipient ledger, planned
// calls and attempts, events, suppressions, account states, cursors. One implementation over
// database/sql with two dialects: SQLite (the embedded default) and PostgreSQL.
//
// Contract:
//   - Commit returns nil only after message, envelope, jobs and events are fsynced. After an
//     error nothing of the mail exists.
//   - Recipient state and the events that tell of it change in one transaction, or not at all.
//   - A call is written before its first byte may be sent (Start). A call that was started and
//     not settled when a process died comes back from Claim as Open, never as merely due.
//   - A body is given out only if its checksum matches; a mail that fails it is quarantined
//     (held with reason "corrupt", an event says so), never sent, never skipped in silence.
//   - The same event recorded twice is one event.
//   - Every error means "not done": callers answer 4xx or 503 and try again.
package store

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"smtpbridge/envelope"
	"smtpbridge/event"
)

// Errors that callers decide on.
var (
	ErrNotFound = errors.New("not found")
	ErrNoSpace  = errors.New("no space left for the queue") // for SMTP: 452 4.3.1
	ErrLocked   = errors.New("the store is in use by another process")
	ErrCorrupt  = errors.New("stored data fails its checksum")
	ErrStale    = errors.New("the claim is no longer ours") // lease lost, or an operator acted meanwhile
)

// Options of Open.
type Options struct {
	Dir        string // data_dir: the SQLite file, blobs, the spool of mails being received
	URL        string // "" = SQLite in Dir; "postgres://..." = PostgreSQL
	Now        func() time.Time
	InlineBody int64                       // bodies up to this many bytes are in the row, default 128 KiB
	ReadOnly   bool                        // for CLI commands while no bridge runs: no lock, no migration, no write
	Log        *slog.Logger                // nil = silent
	KeepBodies time.Duration               // how long the body of a mail that was sent stays; 0 = gone with the transaction that finishes it
	MinFree    int64                       // Begin answers ErrNoSpace below so many free bytes in Dir, default 64 MiB; negative = no check
	Lease      time.Duration               // PostgreSQL: life of an unrenewed claim, default 2 min; living nodes renew theirs
	Fresh      int64                       // SQLite: bytes of memory for mails just committed, so that their first delivery need not read them back; 0 = none
	Provider   func(account string) string // names the provider of an account for the events the store writes itself; may be nil
}

// Mail is one accepted mail.
type Mail struct {
	Envelope   envelope.Envelope
	Generation int64  // of the configuration its jobs were planned with
	FromHeader string // address used for routing
	MessageID  string // header, no angle brackets
	Subject    string // only if the configuration keeps it
	Header     []byte // top header block, kept with the ledger after the body is purged
	SHA256     string // hex, of the stored bytes
	State      MailState
	HoldReason string    // of a mail that is not held: the mark of Unanswered
	Finished   time.Time // zero while queued
	BodyPurged bool
}

// MailState is the state of a mail as a whole.
type MailState string

// States of a mail.
const (
	MailQueued   MailState = "queued"
	MailHeld     MailState = "held"
	MailFinished MailState = "finished"
	MailDeleted  MailState = "deleted" // by an operator, or dropped by accept = "wait"
)

// RcptState is the state of one recipient in the queue.
type RcptState string

// States of a recipient. Sent, RcptRejected, RcptFailed and RcptDeleted are final for the queue.
const (
	RcptQueued   RcptState = "queued"
	RcptInFlight RcptState = "in_flight" // in a started, unsettled call
	RcptSent     RcptState = "sent"
	RcptRejected RcptState = "rejected"
	RcptFailed   RcptState = "failed"
	RcptDeleted  RcptState = "deleted"
)

// Final reports whether the queue is done with the recipient.
func (s RcptState) Final() bool { return s != RcptQueued && s != RcptInFlight }

// Rcpt is the ledger line of one recipient.
type Rcpt struct {
	N int // index in the envelope
	envelope.Rcpt
	State             RcptState
	Account           string // that took or refused it last
	ProviderMessageID string
	WireMessageID     string // Message-ID the recipient sees, where the ESP set its own and told it
	Status, Detail    string
	Attempts          int
	Last              event.Kind // newest fact known of it, webhook events included
	LastTime          time.Time  // when that happened; state follows event time
	Updated           time.Time
	Job               int64 // the job that carries it, 0 when final
}

// Job is the unit of scheduling: some recipients of one mail, for one account.
type Job struct {
	ID         int64
	MailID     string
	Route      string
	Account    string   // the account it is due for
	Accounts   []string // the route's accounts in failover order
	Rcpts      []int    // indexes of its recipients that are not final
	NextAt     time.Time
	Attempts   int       // finished attempts that count for the retry schedule
	Created    time.Time // start of its life (send-at, or acceptance)
	Expires    time.Time
	Trouble    time.Time // since when its account has been failing transiently, zero if not
	Split      bool      // plan one call per recipient
	Generation int64
	LastError  string
}

// NewJob is a job to be written with its mail.
type NewJob struct {
	Route    string
	Accounts []string
	Rcpts    []int
	NextAt   time.Time
	Expires  time.Time
}

// Call is one planned API call. It is frozen once started: recipients, reference and key never change.
type Call struct {
	ID                string
	MailID            string
	JobID             int64
	Account           string
	Rcpts             []int
	Ref               string
	IdempotencyKey    string
	KeyExpires        time.Time // after that the key counts as none
	State             CallState
	Attempt           int         // how often it was started
	Started           time.Time   // last start
	Looked            []time.Time // look-ups that answered "not found"
	ProviderMessageID string
	HTTPStatus        int
	Detail            string
}

// CallState is the state of a call.
type CallState string

// States of a call.
const (
	CallOpen      CallState = "open"      // started, no result yet; after a restart: Ambiguous
	CallAmbiguous CallState = "ambiguous" // the answer was lost
	CallRetry     CallState = "retry"     // surely not accepted; may be repeated unchanged, or voided
	CallAccepted  CallState = "accepted"  // settled
	CallRefused   CallState = "refused"   // settled, surely not accepted
)

// Receipt is a mail being received. It is an io.Writer for the bytes of the message.
type Receipt interface {
	io.Writer
	// Body reads back what was written so far, before Commit, for the preflight.
	Body() (Body, error)
	// Commit makes the mail durable with its jobs and first events, in one transaction.
	Commit(ctx context.Context, m Mail, jobs []NewJob, evs ...event.Event) error
	// Abort throws everything away. After Commit it does nothing.
	Abort()
}

// Body is the stored bytes of a mail.
type Body interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// Claim is a due job under a lease.
type Claim struct {
	Job    Job
	Mail   Mail
	Rcpts  []Rcpt // of the job, not final and in no open call: free to be planned
	Open   []Call // unsettled calls of this job: repeat unchanged, look up, or wait
	token  int64
	leased time.Time // when, by our own steady clock
	body   []byte    // nil: to be read, see ClaimBody

	proven []string // calls among Open that an event has proved accepted
}

// CallResult is what one call of a claim came to.
type CallResult struct {
	Call    Call // as Start returned it, with State, ProviderMessageID, HTTPStatus, Detail set
	Elapsed time.Duration
	Kind    string // kind of failure, "" on success; kept with the attempt
}

// RcptResult is the new state of one recipient.
type RcptResult struct {
	N                 int
	State             RcptState
	Account           string
	ProviderMessageID string
	Status, Detail    string
}

// Settlement ends a claim. Everything in it is one transaction.
type Settlement struct {
	Claim  *Claim
	Calls  []CallResult
	Rcpts  []RcptResult
	Events []event.Event
	// What becomes of the job when recipients are left that are not final:
	NextAt    time.Time // when it is due again
	Account   string    // for which account; "" = unchanged
	Counted   bool      // an attempt that counts for the retry schedule
	Trouble   time.Time // new value of Job.Trouble
	Split     bool
	Hold      string // not "": the mail is held with this reason
	LastError string
}

// AccountState is the state of an account.
type AccountState struct {
	Account string
	State   string    // active, throttled, paused, probing, stopped
	Until   time.Time // end of throttling, or next probe
	Reason  string
	Domain  string // not "": only mail from this From domain is concerned
	Since   time.Time
	Alarmed bool
}

// RawRequest is a webhook or inbound request, kept once, compressed.
type RawRequest struct {
	ID       string
	Account  string
	Kind     string // webhook, inbound, poll
	Method   string
	URL      string
	Header   map[string][]string // without credentials
	Body     []byte
	Received time.Time
}

// Filter selects mails or events. Zero fields select everything.
type Filter struct {
	ID        string
	State     MailState
	Address   string // sender or recipient, folded
	Account   string
	Since     time.Time
	Until     time.Time
	Kind      event.Kind
	Recipient string
	Limit     int    // default 100
	After     string // id of the last one seen, for paging
	Oldest    bool   // oldest first; default is newest first
	Window    int    // of events: look through so many of the newest at most; 0 = all
}

// Retention says how long what is finished stays. A zero Bodies or Failed purges at once; a zero
// Ledger, Events or Webhooks keeps for ever.
type Retention struct {
	Bodies   time.Duration // bodies of mails whose recipients were all sent
	Failed   time.Duration // bodies of mails with a recipient rejected, failed or deleted
	Ledger   time.Duration // everything else of a finished mail: recipients, calls, attempts
	Events   time.Duration
	Webhooks time.Duration // stored requests
}

// Topic is something Subscribe wakes for.
type Topic int

// Topics.
const (
	TopicQueue    Topic = iota // a commit may have made work due
	TopicEvents                // events were released to the followers
	TopicAccounts              // the state of an account changed
)

// Attempt is one line of a mail's history.
type Attempt struct {
	CallID     string
	Account    string
	Attempt    int
	Started    time.Time
	Elapsed    time.Duration
	State      CallState
	Kind       string
	HTTPStatus int
	Detail     string
	Rcpts      []int
}

// Detail is everything known of one mail.
type Detail struct {
	Mail     Mail
	Rcpts    []Rcpt
	Jobs     []Job
	Calls    []Call
	Attempts []Attempt
	Events   []event.Event
	Notices  []Notice
}

// Stats are the numbers an operator asks first.
type Stats struct {
	Queued, Held, InFlight int
	Oldest                 time.Time // since when the first of the queued mails waits: its Job.Created; zero when none does
	ByAccount              map[string]int
}
