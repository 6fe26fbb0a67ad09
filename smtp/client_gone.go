package smtp

import "context"

type clientGoneKey struct{}

// ClientGone returns a channel that is closed when the client of a running Commit has closed
// its connection; nil for a context that is not from a Commit.
func ClientGone(ctx context.Context) <-chan struct{} {
	ch, _ := ctx.Value(clientGoneKey{}).(<-chan struct{})
	return ch
}
