-- +goose Up
-- What senders were told, or are to be told, by DSN mail.
CREATE TABLE notices (
	mail_id    TEXT COLLATE "C" NOT NULL REFERENCES mails (id) ON DELETE CASCADE,
	n          BIGINT NOT NULL,
	action     TEXT COLLATE "C" NOT NULL,
	event_id   TEXT COLLATE "C" NOT NULL DEFAULT '',
	sender_key TEXT COLLATE "C" NOT NULL,
	due        BIGINT NOT NULL DEFAULT 0,
	dsn        TEXT COLLATE "C" NOT NULL DEFAULT '',
	reason     TEXT COLLATE "C" NOT NULL DEFAULT '',
	updated    BIGINT NOT NULL,
	PRIMARY KEY (mail_id, n, action)
);
CREATE INDEX notices_due ON notices (due) WHERE due > 0;
CREATE INDEX notices_sender ON notices (sender_key, updated) WHERE dsn <> '';
