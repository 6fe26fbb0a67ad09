// Package maildir delivers mail into a Maildir (https://cr.yp.to/proto/maildir.html).
//
// Contract: Accepted means that the file is complete in new/, that it was fsynced and that its folder was. The
// name is made from our reference of the call and the recipient, so a repeated call finds what it delivered and does not
// do it again, whether a reader has moved it to cur/ or not. Each recipient has a file of his own, since Delivered-To
// would show him the others.
package maildir

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"smtpbridge/event"
	"smtpbridge/providers"
	"smtpbridge/providers/internal/smtpcall"
	"smtpbridge/translate"
)

const name = "maildir"

// Info describes the provider.
var Info = providers.Info{
	Name: name, Title: "Maildir", DocURL: "https://cr.yp.to/proto/maildir.html", Local: true, Concurrent: 2,
	New: func(o providers.Options) (providers.Provider, error) { return New(o) },
}

type provider struct {
	dir  string
	host string
}

var (
	_ providers.Provider = (*provider)(nil)
	_ providers.Checker  = (*provider)(nil)
	_ providers.Finder   = (*provider)(nil)
)

// New makes the provider of an account with a base_url of the form maildir:///path. The folder is made at the first
// delivery when it is missing.
func New(o providers.Options) (providers.Provider, error) {
	var none struct{}
	if err := o.DecodeOptions(&none); err != nil {
		return nil, err
	}
	u, err := url.Parse(o.BaseURL)
	if err != nil || u.Scheme != "maildir" || u.Host != "" || u.RawQuery != "" || len(u.Path) < 2 {
		return nil, errors.New("base_url must be of the form maildir:///var/mail/name, with an absolute path")
	}
	host := o.Hostname
	if host == "" {
		host = "localhost"
	}
	return &provider{filepath.Clean(u.Path), strings.NewReplacer("/", `\057`, ":", `\072`).Replace(host)}, nil
}

// repeatable is how long a call may be repeated: its files have the same names again, and one that is there is not written
// again. It is bounded because a reader may remove what he has read.
const repeatable = 24 * time.Hour

// Capabilities: everything is kept.
func (p *provider) Capabilities() translate.Capabilities {
	c := smtpcall.Capabilities()
	c.IdempotencyTTL = repeatable
	return c
}

// Send writes one file for each recipient.
func (p *provider) Send(ctx context.Context, m *translate.Mail) (*providers.Outcome, error) {
	if err := p.prepare(); err != nil {
		return nil, p.fail("send", err)
	}
	out := &providers.Outcome{MessageID: p.stem(m), Rcpts: make([]providers.RcptOutcome, len(m.Rcpts))}
	done := 0
	for i, r := range m.Rcpts {
		o := providers.RcptOutcome{Addr: r.Addr, MessageID: p.file(m, r.Addr)}
		switch err := p.deliver(ctx, m, r.Addr); {
		case err == nil:
			o.Verdict, done = providers.Accepted, done+1
		case done == 0 && len(m.Rcpts) == 1:
			return nil, p.fail("send", err)
		default:
			e := p.fail("send", err)
			o.Verdict, o.Kind, o.Detail, o.MessageID = providers.Deferred, e.Kind, e.Msg, ""
		}
		out.Rcpts[i] = o
	}
	return out, nil
}

// Check makes sure that the folder can be written to.
func (p *provider) Check(context.Context) error {
	if err := p.prepare(); err != nil {
		return p.fail("check", err)
	}
	f, err := os.CreateTemp(filepath.Join(p.dir, "tmp"), "check.*")
	if err != nil {
		return p.fail("check", err)
	}
	f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return p.fail("check", err)
	}
	return nil
}

// Find looks for the files of a call.
func (p *provider) Find(_ context.Context, m *translate.Mail, _ time.Time) (*providers.Outcome, providers.Found, error) {
	out := &providers.Outcome{MessageID: p.stem(m)}
	found := 0
	for _, r := range m.Rcpts {
		o := providers.RcptOutcome{Addr: r.Addr, Kind: providers.Transient}
		there, err := p.delivered(p.file(m, r.Addr))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, providers.CannotTell, p.fail("find", err)
		}
		if there {
			o.Verdict, o.Kind, o.MessageID, found = providers.Accepted, providers.Unknown, p.file(m, r.Addr), found+1
		}
		out.Rcpts = append(out.Rcpts, o)
	}
	if found == 0 {
		return nil, providers.Absent, nil
	}
	return out, providers.Present, nil
}

// fail classifies: what the operator has to mend is Operator; a full disk passes by itself; after the rename
// the mail is in place, so a failed sync of the folder is Ambiguous.
func (p *provider) fail(op string, err error) *providers.Error {
	e := &providers.Error{Provider: name, Op: op, Kind: providers.Transient, Msg: event.Clean(err.Error(), event.MaxText)}
	switch {
	case errors.Is(err, errUnsynced):
		e.Kind = providers.Ambiguous
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EROFS), errors.Is(err, syscall.ENOTDIR):
		e.Kind = providers.Operator
	}
	for _, c := range []error{context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, c) {
			e.Err = c
		}
	}
	return e
}

var errUnsynced = errors.New("the folder could not be synced")

// prepare makes the folders.
func (p *provider) prepare() error {
	for _, d := range []string{"tmp", "new", "cur"} {
		path := filepath.Join(p.dir, d)
		if fi, err := os.Stat(path); err == nil && fi.IsDir() {
			continue
		}
		if err := os.MkdirAll(path, 0o700); err != nil {
			return err
		}
		if err := errors.Join(syncDir(p.dir), syncDir(filepath.Dir(p.dir))); err != nil {
			return err
		}
	}
	return nil
}

// stem is the part of the name that a call's files share: the same at each attempt.
func (p *provider) stem(m *translate.Mail) string {
	ref := m.Ref
	if ref == "" {
		ref = m.Env.ID
	}
	safe := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '_' {
			return r
		}
		return '_'
	}, ref)
	if len(safe) > 100 {
		safe = safe[:100]
	}
	return safe
}

// file is the unique name: seconds, reference and recipient, host.
func (p *provider) file(m *translate.Mail, rcpt string) string {
	sum := sha256.Sum256([]byte(m.Ref + "\x00" + m.Env.ID + "\x00" + rcpt))
	return fmt.Sprintf("%d.%s_%s.%s", m.Env.Received.Unix(), p.stem(m), hex.EncodeToString(sum[:6]), p.host)
}

// delivered looks for a name in new/, and in cur/ where readers append flags to it. Another bridge that shares the queue and the
// folder may have written the file under its own host name.
func (p *provider) delivered(file string) (bool, error) {
	anyHost := strings.TrimSuffix(file, p.host)
	for _, sub := range []string{"new", "cur"} {
		if _, err := os.Lstat(filepath.Join(p.dir, sub, file)); err == nil {
			return true, nil
		}
		d, err := os.Open(filepath.Join(p.dir, sub))
		if err != nil {
			return false, err
		}
		for {
			names, err := d.Readdirnames(4096)
			for _, n := range names {
				if strings.HasPrefix(n, anyHost) {
					d.Close()
					return true, nil
				}
			}
			if err == io.EOF {
				break
			}
			if err != nil {
				d.Close()
				return false, err
			}
		}
		d.Close()
	}
	return false, nil
}

func (p *provider) deliver(ctx context.Context, m *translate.Mail, rcpt string) error {
	file := p.file(m, rcpt)
	if there, err := p.delivered(file); err != nil || there {
		return err
	}
	raw, err := m.Raw()
	if err != nil {
		return err
	}
	tmp, final := filepath.Join(p.dir, "tmp", file), filepath.Join(p.dir, "new", file)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) { // of an attempt that was cut off
		return err
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = write(ctx, f, m.Options.EnvelopeFrom, rcpt, raw)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = os.Rename(tmp, final)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(tmp)))
	}
	if err := syncDir(filepath.Join(p.dir, "new")); err != nil {
		return fmt.Errorf("%w: %w", errUnsynced, err)
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// write puts the fields of final delivery (RFC 5321 4.4) before the message and gives lines the ending of the system.
func write(ctx context.Context, f io.Writer, from, rcpt string, raw *translate.Body) error {
	w := bufio.NewWriterSize(f, 64<<10)
	fmt.Fprintf(w, "Return-Path: <%s>\nDelivered-To: %s\n", from, rcpt)
	body := raw.Open()
	defer body.Close()
	r := bufio.NewReaderSize(body, 64<<10)
	var n int64
	for {
		line, err := r.ReadSlice('\n')
		n += int64(len(line))
		if l := len(line); l >= 2 && line[l-2] == '\r' && line[l-1] == '\n' {
			line = append(line[:l-2], '\n')
		} else if err == bufio.ErrBufferFull && line[l-1] == '\r' {
			// A CR at the edge of the buffer may belong to the next octet.
			if uerr := r.UnreadByte(); uerr != nil {
				return uerr
			}
			n--
			line = line[:l-1]
		}
		if _, werr := w.Write(line); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil && err != bufio.ErrBufferFull {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if n != raw.Size {
		return fmt.Errorf("stored content has %d bytes instead of %d", n, raw.Size)
	}
	return w.Flush()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
