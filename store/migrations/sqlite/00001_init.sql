-- +goose Up
-- All times are microseconds since 1970-01-01 UTC, 0 = not set. Lists are JSON.
CREATE TABLE mails (
	id          TEXT PRIMARY KEY NOT NULL,
	state       TEXT NOT NULL,
	hold_reason TEXT NOT NULL DEFAULT '',
	sender      TEXT NOT NULL,
	sender_key  TEXT NOT NULL,
	envelope    TEXT NOT NULL,
	checksum    TEXT NOT NULL,
	generation  INTEGER NOT NULL,
	from_header TEXT NOT NULL,
	message_id  TEXT NOT NULL,
	subject     TEXT NOT NULL,
	header      BLOB,
	sha256      TEXT NOT NULL,
	size        INTEGER NOT NULL,
	body        TEXT NOT NULL,
	blob        TEXT NOT NULL DEFAULT '',
	received    INTEGER NOT NULL,
	finished    INTEGER NOT NULL DEFAULT 0,
	failed      INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX mails_waiting ON mails (state, received) WHERE finished = 0;
CREATE INDEX mails_message_id ON mails (message_id) WHERE message_id <> '';
CREATE INDEX mails_sender ON mails (sender_key, id) WHERE sender_key <> '';
CREATE INDEX mails_bodies ON mails (failed, finished) WHERE finished > 0 AND body <> 'purged';
CREATE INDEX mails_finished ON mails (finished) WHERE finished > 0;
CREATE UNIQUE INDEX mails_blob ON mails (blob) WHERE blob <> '';

CREATE TABLE bodies (
	mail_id TEXT NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	n       INTEGER NOT NULL,
	data    BLOB NOT NULL,
	PRIMARY KEY (mail_id, n)
);

CREATE TABLE dead_blobs (
	blob  TEXT PRIMARY KEY NOT NULL,
	since INTEGER NOT NULL
);

CREATE TABLE jobs (
	id         INTEGER PRIMARY KEY AUTOINCREMENT,
	mail_id    TEXT NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	route      TEXT NOT NULL,
	account    TEXT NOT NULL,
	accounts   TEXT NOT NULL,
	next_at    INTEGER NOT NULL,
	attempts   INTEGER NOT NULL DEFAULT 0,
	created    INTEGER NOT NULL,
	expires    INTEGER NOT NULL,
	trouble    INTEGER NOT NULL DEFAULT 0,
	split      INTEGER NOT NULL DEFAULT 0,
	generation INTEGER NOT NULL,
	last_error TEXT NOT NULL DEFAULT '',
	held       INTEGER NOT NULL DEFAULT 0,
	lease      INTEGER NOT NULL DEFAULT 0,
	lease_until INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX jobs_due ON jobs (account, next_at, id) WHERE held = 0;
CREATE INDEX jobs_mail ON jobs (mail_id);
CREATE INDEX jobs_generation ON jobs (generation, id);

CREATE TABLE recipients (
	mail_id             TEXT NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	n                   INTEGER NOT NULL,
	address             TEXT NOT NULL,
	address_key         TEXT NOT NULL,
	state               TEXT NOT NULL,
	account             TEXT NOT NULL DEFAULT '',
	provider_message_id TEXT NOT NULL DEFAULT '',
	status              TEXT NOT NULL DEFAULT '',
	detail              TEXT NOT NULL DEFAULT '',
	attempts            INTEGER NOT NULL DEFAULT 0,
	last                TEXT NOT NULL DEFAULT '',
	last_time           INTEGER NOT NULL DEFAULT 0,
	updated             INTEGER NOT NULL,
	job_id              INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (mail_id, n)
) WITHOUT ROWID;
CREATE INDEX recipients_address ON recipients (address_key, mail_id);
CREATE INDEX recipients_job ON recipients (job_id) WHERE job_id <> 0;
CREATE INDEX recipients_provider ON recipients (provider_message_id) WHERE provider_message_id <> '';

CREATE TABLE calls (
	id                  TEXT PRIMARY KEY NOT NULL,
	mail_id             TEXT NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	job_id              INTEGER NOT NULL,
	account             TEXT NOT NULL,
	recipients          TEXT NOT NULL,
	ref                 TEXT NOT NULL,
	idempotency_key     TEXT NOT NULL DEFAULT '',
	key_expires         INTEGER NOT NULL DEFAULT 0,
	state               TEXT NOT NULL,
	proven              INTEGER NOT NULL DEFAULT 0,
	attempt             INTEGER NOT NULL,
	started             INTEGER NOT NULL,
	looked              TEXT NOT NULL DEFAULT '[]',
	provider_message_id TEXT NOT NULL DEFAULT '',
	http_status         INTEGER NOT NULL DEFAULT 0,
	detail              TEXT NOT NULL DEFAULT ''
);
CREATE INDEX calls_mail ON calls (mail_id);
CREATE INDEX calls_ref ON calls (ref);
CREATE INDEX calls_provider ON calls (provider_message_id) WHERE provider_message_id <> '';
CREATE INDEX calls_flying ON calls (account, state) WHERE state IN ('open', 'ambiguous');
CREATE INDEX calls_unsettled ON calls (job_id) WHERE state IN ('open', 'ambiguous', 'retry');

CREATE TABLE attempts (
	call_id     TEXT NOT NULL REFERENCES calls (id) ON DELETE CASCADE,
	attempt     INTEGER NOT NULL,
	mail_id     TEXT NOT NULL,
	account     TEXT NOT NULL,
	started     INTEGER NOT NULL,
	elapsed     INTEGER NOT NULL DEFAULT 0,
	state       TEXT NOT NULL,
	kind        TEXT NOT NULL DEFAULT '',
	http_status INTEGER NOT NULL DEFAULT 0,
	detail      TEXT NOT NULL DEFAULT '',
	recipients  TEXT NOT NULL,
	PRIMARY KEY (call_id, attempt)
);
CREATE INDEX attempts_mail ON attempts (mail_id);

CREATE TABLE events (
	seq                 INTEGER PRIMARY KEY AUTOINCREMENT,
	id                  TEXT NOT NULL,
	revision            INTEGER NOT NULL DEFAULT 0,
	fact                TEXT,
	kind                TEXT NOT NULL,
	time                INTEGER NOT NULL,
	seen                INTEGER NOT NULL,
	account             TEXT NOT NULL,
	mail_id             TEXT NOT NULL,
	recipient           TEXT NOT NULL,
	provider_message_id TEXT NOT NULL,
	ref                 TEXT NOT NULL,
	raw_id              TEXT NOT NULL,
	data                TEXT NOT NULL
);
CREATE UNIQUE INDEX events_id ON events (id, revision);
CREATE UNIQUE INDEX events_fact ON events (fact) WHERE fact IS NOT NULL;
CREATE INDEX events_mail ON events (mail_id) WHERE mail_id <> '';
CREATE INDEX events_recipient ON events (recipient, seq) WHERE recipient <> '';
CREATE INDEX events_raw ON events (raw_id) WHERE raw_id <> '';

CREATE TABLE withheld (
	id                  TEXT NOT NULL,
	revision            INTEGER NOT NULL DEFAULT 0,
	account             TEXT NOT NULL,
	provider_message_id TEXT NOT NULL,
	ref                 TEXT NOT NULL,
	raw_id              TEXT NOT NULL,
	received            INTEGER NOT NULL,
	data                TEXT NOT NULL,
	PRIMARY KEY (id, revision)
);
CREATE INDEX withheld_provider ON withheld (provider_message_id);
CREATE INDEX withheld_ref ON withheld (ref);
CREATE INDEX withheld_received ON withheld (received);

CREATE TABLE requests (
	id       TEXT PRIMARY KEY NOT NULL,
	account  TEXT NOT NULL,
	kind     TEXT NOT NULL,
	method   TEXT NOT NULL,
	url      TEXT NOT NULL,
	header   TEXT NOT NULL,
	body     BLOB,
	received INTEGER NOT NULL
);
CREATE INDEX requests_received ON requests (received, id);

CREATE TABLE accounts (
	account TEXT NOT NULL,
	domain  TEXT NOT NULL DEFAULT '',
	state   TEXT NOT NULL,
	until   INTEGER NOT NULL DEFAULT 0,
	reason  TEXT NOT NULL DEFAULT '',
	since   INTEGER NOT NULL DEFAULT 0,
	alarmed INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (account, domain)
);

CREATE TABLE suppressions (
	address_key TEXT NOT NULL,
	domain      TEXT NOT NULL DEFAULT '',
	stream      TEXT NOT NULL DEFAULT '',
	address     TEXT NOT NULL DEFAULT '',
	reason      TEXT NOT NULL,
	source      TEXT NOT NULL DEFAULT '',
	created     INTEGER NOT NULL,
	expires     INTEGER NOT NULL DEFAULT 0,
	PRIMARY KEY (address_key, domain, stream)
);

CREATE TABLE cursors (
	name    TEXT PRIMARY KEY NOT NULL,
	value   TEXT NOT NULL,
	updated INTEGER NOT NULL
);

CREATE TABLE settings (
	name  TEXT PRIMARY KEY NOT NULL,
	value TEXT NOT NULL
);
