package smtp

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"sync"
	"time"

	gosmtp "github.com/emersion/go-smtp"
)

const (
	authPerSession  = 3                // failures before 421
	authRemember    = 10 * time.Minute // a success is believed without argon2
	authConcurrency = 2                // argon2 needs 19 MiB each
	authWait        = 20 * time.Second // for one of those
	authDelay       = time.Second      // every failure takes at least so long, whatever its cause
	maxAuthLine     = 12288            // RFC 4954 4
)

var (
	errAuthFailed = &gosmtp.SMTPError{Code: 535, EnhancedCode: gosmtp.EnhancedCode{5, 7, 8}, Message: "Authentication credentials invalid"}
	errAuthBusy   = &gosmtp.SMTPError{Code: 454, EnhancedCode: gosmtp.EnhancedCode{4, 7, 0}, Message: "Too many logins at the moment, try again later"}
	errAuthSyntax = &gosmtp.SMTPError{Code: 501, EnhancedCode: gosmtp.EnhancedCode{5, 5, 2}, Message: "Malformed authentication data"}
	errBusy       = errors.New("no free password check in time")
)

// users checks passwords under one configuration. Its key and what it remembers end with it.
type users struct {
	byName map[string]userKey
	dummy  phc // checked for unknown users, so that they take as long
	key    []byte
	sem    chan struct{} // shared by all configurations of the process

	mu    sync.Mutex
	known map[string]remembered
}

type userKey struct {
	hash  phc
	plain []byte // HMAC of a plain password; nil with a hash
}

type remembered struct {
	mac   []byte
	until time.Time
}

func newUsers(list []User, sem chan struct{}) (*users, error) {
	u := &users{byName: map[string]userKey{}, key: make([]byte, 32), sem: sem, known: map[string]remembered{}}
	u.dummy = phc{memory: hashMemory, time: hashTime, lanes: hashLanes, salt: make([]byte, saltLen), key: make([]byte, keyLen)}
	for _, b := range [][]byte{u.key, u.dummy.salt, u.dummy.key} {
		if _, err := rand.Read(b); err != nil {
			return nil, err
		}
	}
	for _, x := range list {
		if x.Hash == "" {
			u.byName[x.Name] = userKey{plain: u.mac(x.Name, x.Password.Reveal())}
			continue
		}
		h, err := parseHash(x.Hash)
		if err != nil {
			return nil, err
		}
		u.byName[x.Name] = userKey{hash: h}
		u.dummy.memory, u.dummy.time, u.dummy.lanes = h.memory, h.time, h.lanes
	}
	return u, nil
}

func (u *users) mac(name, pw string) []byte {
	m := hmac.New(sha256.New, u.key)
	var n [8]byte
	binary.BigEndian.PutUint64(n[:], uint64(len(name)))
	m.Write(n[:])
	m.Write([]byte(name))
	m.Write([]byte(pw))
	return m.Sum(nil)
}

// verify reports whether pw is right for name. A wrong answer always costs one argon2
// computation, for unknown users too.
func (u *users) verify(ctx context.Context, name, pw string, now time.Time) (bool, error) {
	mac := u.mac(name, pw)
	user, exists := u.byName[name]
	if user.plain != nil && subtle.ConstantTimeCompare(mac, user.plain) == 1 {
		return true, nil
	}
	u.mu.Lock()
	r, ok := u.known[name]
	u.mu.Unlock()
	if ok && now.Before(r.until) && subtle.ConstantTimeCompare(mac, r.mac) == 1 {
		return true, nil
	}
	hash := user.hash
	if !exists || user.plain != nil {
		hash = u.dummy
	}
	ctx, cancel := context.WithTimeout(ctx, authWait)
	defer cancel()
	select {
	case u.sem <- struct{}{}:
	case <-ctx.Done():
		return false, errBusy
	}
	same := subtle.ConstantTimeCompare(hash.derive(pw), hash.key) == 1
	<-u.sem
	if !same || !exists || user.plain != nil {
		return false, nil
	}
	u.mu.Lock()
	u.known[name] = remembered{mac: mac, until: now.Add(authRemember)} // one entry per configured user: bounded
	u.mu.Unlock()
	return true, nil
}

// loginServer is the LOGIN mechanism (draft-murchison-sasl-login), which go-sasl has for clients only.
type loginServer struct {
	step         int
	name         string
	authenticate func(name, pw string) error
}

func (l *loginServer) Next(response []byte) (challenge []byte, done bool, err error) {
	if response == nil && l.step > 0 {
		response = []byte{}
	}
	switch l.step {
	case 0:
		l.step = 1
		if response == nil {
			return []byte("Username:"), false, nil
		}
		fallthrough
	case 1:
		l.step, l.name = 2, string(response)
		return []byte("Password:"), false, nil
	default:
		return nil, true, l.authenticate(l.name, string(response))
	}
}
