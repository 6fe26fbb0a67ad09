package translate

import "io"

// Body is a message body with an exact length that can be opened again for a repeated attempt.
type Body struct {
	Size int64
	Open func() io.ReadCloser
}

// Raw gives the complete MIME message as it is to be sent: the source without Bcc, Return-Path,
// dialect and Received fields, with the added ones, and with parts re-encoded where the API's JSON string demands it.
// Nothing else changes: kept header fields and bodies are the client's bytes.
func (m *Mail) Raw() (*Body, error) { panic("not built yet") }
