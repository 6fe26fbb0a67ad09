package webhookd

// CutBody is cutBody for an account with these private fields.
func CutBody(contentType string, body []byte, private ...string) []byte {
	return (&account{private: privateFields(private)}).cutBody(contentType, body)
}
