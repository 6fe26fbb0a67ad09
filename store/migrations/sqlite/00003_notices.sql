-- +goose Up
-- What senders were told, or are to be told, by DSN mail.
CREATE TABLE notices (
	mail_id    TEXT NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	n          INTEGER NOT NULL,
	action     TEXT NOT NULL,
	event_id   TEXT NOT NULL DEFAULT '',
	sender_key TEXT NOT NULL,
	due        INTEGER NOT NULL DEFAULT 0,
	dsn        TEXT NOT NULL DEFAULT '',
	reason     TEXT NOT NULL DEFAULT '',
	updated    INTEGER NOT NULL,
	PRIMARY KEY (mail_id, n, action)
);
CREATE INDEX notices_due ON notices (due) WHERE due > 0;
CREATE INDEX notices_sender ON notices (sender_key, updated) WHERE dsn <> '';
