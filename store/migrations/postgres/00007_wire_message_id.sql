-- +goose Up
-- The Message-ID that recipients see, where the ESP sets its own: written when an event tells it.
ALTER TABLE recipients ADD COLUMN wire_message_id TEXT NOT NULL DEFAULT '';
ALTER TABLE withheld ADD COLUMN wire_message_id TEXT NOT NULL DEFAULT '';
CREATE INDEX recipients_wire ON recipients (wire_message_id) WHERE wire_message_id <> '';
