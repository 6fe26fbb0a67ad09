-- +goose Up
-- Recipients whom an ESP took, and of whom it has told nothing final yet: when to ask it, and how often it was asked.
ALTER TABLE recipients ADD COLUMN look_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE recipients ADD COLUMN looks INTEGER NOT NULL DEFAULT 0;
CREATE INDEX recipients_silent ON recipients (account, updated) WHERE state = 'sent' AND last IN ('sent', 'queued', 'deferred');
