// Package deliver gets accepted mail to the accounts of its route: it plans (Planner) and it
// works (Runner).
//
// Contract:
//   - No recipient is in two calls that could both be accepted. A call is written to the store before its
//     first byte leaves. Once started it is frozen: until its outcome is known it is only ever
//     repeated unchanged, with its reference and key.
//   - What is not proven permanent keeps the mail. Only a permanent refusal, a rejected recipient and
//     expiry end in `failed` or `rejected`; each recipient gets exactly one queue-final event, in
//     the transaction that changes its state.
//   - An account's trouble (key, quota, rate) pauses the account, not the mail, and one account never
//     holds up another.
//   - A second account is tried only when the first has surely not taken the mail.
//   - A result that cannot be saved is kept and saved again until it is; meanwhile no new call starts.
//   - A panic ends one mail's attempt: that mail is held.
package deliver
