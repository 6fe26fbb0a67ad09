package certs

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// errNone says that nothing is stored.
var errNone = errors.New("none is stored")

// store is the folder of one CA: account.key, and NAME.pem with a key and its chain. Every CA has its own, so that certificates of a
// CA for tests never stand in for real ones.
type store string

func newStore(dir, directory string) store {
	_, rest, _ := strings.Cut(directory, "://")
	clean := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '_'
	}, rest)
	return store(filepath.Join(dir, clean))
}

func (s store) cert(name string) (*tls.Certificate, error) {
	text, err := s.read(name + ".pem")
	if err != nil {
		return nil, err
	}
	return parseCert(text, name)
}

func (s store) putCert(name string, text []byte) error { return s.write(name+".pem", text) }

// accountKey gives the key of the account; the first time it makes one.
func (s store) accountKey() (crypto.Signer, error) {
	const file = "account.key"
	text, err := s.read(file)
	if errors.Is(err, errNone) {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		if text, err = encodeKey(key); err != nil {
			return nil, err
		}
		return key, s.write(file, text)
	}
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no key in PEM form", filepath.Join(string(s), file))
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T cannot sign", key)
	}
	return signer, nil
}

func (s store) read(file string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(string(s), file))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNone
	}
	return b, err
}

// write replaces a file: after a crash there is the old one or the new one, whole.
func (s store) write(file string, data []byte) error {
	dir := string(s)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, file)); err != nil {
		return err
	}
	return errors.Join(syncDir(dir), syncDir(filepath.Dir(dir)), syncDir(filepath.Dir(filepath.Dir(dir))))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
