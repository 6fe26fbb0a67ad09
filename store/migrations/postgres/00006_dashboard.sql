-- +goose Up
-- Lists of what waits are read by state in the order of ids, a page at a time; counts need the index alone.
DROP INDEX mails_waiting;
CREATE INDEX mails_waiting ON mails (state, id, received, finished) WHERE finished = 0;
CREATE INDEX mails_failed ON mails (id) WHERE failed > 0;

-- How much happened, in steps of five minutes.
CREATE TABLE activity (
	at      bigint NOT NULL,
	account TEXT NOT NULL,
	kind    TEXT NOT NULL,
	n       bigint NOT NULL,
	PRIMARY KEY (at, account, kind)
);
