-- +goose Up
-- Received mails that the ESP keeps until they were fetched, and those that it is still to forget.
CREATE TABLE inbound_posts (
	id       TEXT COLLATE "C" PRIMARY KEY NOT NULL,
	account  TEXT COLLATE "C" NOT NULL,
	state    TEXT COLLATE "C" NOT NULL,
	data     TEXT COLLATE "C" NOT NULL,
	received BIGINT NOT NULL,
	next_at  BIGINT NOT NULL,
	attempts BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX inbound_posts_due ON inbound_posts (next_at);
