-- +goose Up
-- The bridges that share this store, and which of them leads what only one may do. A row is alive while its time (seen, until;
-- database time) is renewed.
CREATE TABLE nodes (
	instance TEXT COLLATE "C" PRIMARY KEY NOT NULL,
	node     TEXT COLLATE "C" NOT NULL,
	version  TEXT COLLATE "C" NOT NULL,
	roles    TEXT COLLATE "C" NOT NULL,
	delivers BIGINT NOT NULL,
	started  BIGINT NOT NULL,
	seen     BIGINT NOT NULL
);
CREATE TABLE leaders (
	name     TEXT COLLATE "C" PRIMARY KEY NOT NULL,
	instance TEXT COLLATE "C" NOT NULL,
	node     TEXT COLLATE "C" NOT NULL,
	until    BIGINT NOT NULL
);
