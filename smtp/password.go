package smtp

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/crypto/argon2"
)

// Cost of new hashes: OWASP's minimum for argon2id, 19 MiB, two passes, one lane.
// https://cheatsheetseries.owasp.org/cheatsheets/Password_Storage_Cheat_Sheet.html
const (
	hashMemory = 19 << 10 // KiB
	hashTime   = 2
	hashLanes  = 1
	saltLen    = 16
	keyLen     = 32
)

// Greatest cost of a configured hash, so that a login cannot eat the machine.
const (
	maxHashMemory = 256 << 10 // KiB
	maxHashTime   = 16
	maxHashLanes  = 16
)

var errHash = errors.New("password hash is not argon2id in PHC form ($argon2id$v=19$m=...,t=...,p=...$salt$hash)")

type phc struct {
	memory, time uint32
	lanes        uint8
	salt, key    []byte
}

func (h phc) derive(pw string) []byte {
	return argon2.IDKey([]byte(pw), h.salt, h.time, h.memory, h.lanes, uint32(len(h.key)))
}

func (h phc) String() string {
	b64 := base64.RawStdEncoding.EncodeToString
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version, h.memory, h.time, h.lanes, b64(h.salt), b64(h.key))
}

// parseHash reads a PHC string (https://github.com/P-H-C/phc-string-format). Its errors never hold the hash.
func parseHash(s string) (phc, error) {
	var h phc
	f := strings.Split(s, "$")
	if len(f) != 6 || f[0] != "" || f[1] != "argon2id" || f[2] != fmt.Sprintf("v=%d", argon2.Version) {
		return h, errHash
	}
	if _, err := fmt.Sscanf(f[3], "m=%d,t=%d,p=%d", &h.memory, &h.time, &h.lanes); err != nil {
		return h, errHash
	}
	var err1, err2 error
	h.salt, err1 = base64.RawStdEncoding.DecodeString(f[4])
	h.key, err2 = base64.RawStdEncoding.DecodeString(f[5])
	if err1 != nil || err2 != nil || len(h.salt) < 8 || len(h.key) < 16 || len(h.key) > 64 {
		return h, errHash
	}
	if h.time < 1 || h.lanes < 1 || h.memory < 8*uint32(h.lanes) {
		return h, errHash
	}
	if h.memory > maxHashMemory || h.time > maxHashTime || h.lanes > maxHashLanes {
		return h, fmt.Errorf("password hash costs more than m=%d,t=%d,p=%d", maxHashMemory, maxHashTime, maxHashLanes)
	}
	return h, nil
}

// HashPassword returns pw as argon2id in PHC form, with a new salt.
func HashPassword(pw string) (string, error) {
	h := phc{memory: hashMemory, time: hashTime, lanes: hashLanes, salt: make([]byte, saltLen), key: make([]byte, keyLen)}
	if _, err := rand.Read(h.salt); err != nil {
		return "", fmt.Errorf("salt: %w", err)
	}
	h.key = h.derive(pw)
	return h.String(), nil
}

// VerifyPassword reports whether pw is the password of hash; an error means that hash cannot be read.
func VerifyPassword(hash, pw string) (bool, error) {
	h, err := parseHash(hash)
	if err != nil {
		return false, err
	}
	return subtle.ConstantTimeCompare(h.derive(pw), h.key) == 1, nil
}
