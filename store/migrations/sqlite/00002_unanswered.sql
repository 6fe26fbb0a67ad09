-- +goose Up
-- Mails whose client still waits for an answer (accept = "wait").
CREATE INDEX mails_unanswered ON mails (id) WHERE state = 'queued' AND hold_reason <> '';
