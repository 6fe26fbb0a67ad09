-- +goose Up
-- As with PostgreSQL, so that both have the same tables: one bridge alone needs neither.
CREATE TABLE nodes (
	instance TEXT PRIMARY KEY NOT NULL,
	node     TEXT NOT NULL,
	version  TEXT NOT NULL,
	roles    TEXT NOT NULL,
	delivers INTEGER NOT NULL,
	started  INTEGER NOT NULL,
	seen     INTEGER NOT NULL
);
CREATE TABLE leaders (
	name     TEXT PRIMARY KEY NOT NULL,
	instance TEXT NOT NULL,
	node     TEXT NOT NULL,
	until    INTEGER NOT NULL
);
