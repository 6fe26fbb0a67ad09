-- +goose Up
-- Each index is written for each mail: a job's calls are found by its mail, a call's attempts by the call, and a
-- reference mostly is the id of its call.
DROP INDEX calls_unsettled;
DROP INDEX attempts_mail;
DROP INDEX calls_ref;
CREATE INDEX calls_ref ON calls (ref) WHERE ref <> id;
