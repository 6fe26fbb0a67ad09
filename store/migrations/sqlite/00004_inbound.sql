-- +goose Up
-- Received mails that the ESP keeps until they were fetched, and those that it is still to forget.
CREATE TABLE inbound_posts (
	id       TEXT PRIMARY KEY NOT NULL,
	account  TEXT NOT NULL,
	state    TEXT NOT NULL,
	data     TEXT NOT NULL,
	received INTEGER NOT NULL,
	next_at  INTEGER NOT NULL,
	attempts INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX inbound_posts_due ON inbound_posts (next_at);
