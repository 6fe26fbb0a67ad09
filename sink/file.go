package sink

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"smtpbridge/event"
)

// File is the event log: one JSON object per line, appended.
//
// Its cursor holds the store's cursor and where the file ended then (device, inode, offset). A batch
// is written in one call, fsynced and then noted. Lines found after the noted offset at a start
// are events that were written and not noted any more: they are skipped when the store gives them
// out again. A line without its end is a torn write and cut off. So no line is missing and none doubled,
// wherever the process or the machine stopped.
//
// The file may be moved away at any time (logrotate): its name is looked at before each batch, and a
// reload closes it at once. Emptying it in place (copytruncate) is noticed, but a
// rotation tool that works so loses what is written meanwhile.
type File struct {
	path, name string

	f      *os.File
	offset int64 // end of what is known to be written
	torn   int64 // where a failed write began that could not be undone, -1: nowhere

	adopted map[fact]bool // written before the start, not noted
	buf     []byte
}

// fact tells one line from another: a replay keeps an event's id and raises its revision.
type fact struct {
	id       string
	revision int
}

type fileCursor struct {
	Store  string `json:"c"`
	Dev    uint64 `json:"d"`
	Inode  uint64 `json:"i"`
	Offset int64  `json:"o"`
}

// MoveFileCursor puts another place of the store into a File's cursor; one that is none stays as it is.
func MoveFileCursor(cursor string, place func(string) string) string {
	var c fileCursor
	if json.Unmarshal([]byte(cursor), &c) != nil {
		return cursor
	}
	c.Store = place(c.Store)
	b, err := json.Marshal(c)
	if err != nil {
		return cursor
	}
	return string(b)
}

// fileMode lets a log shipper read it by group, and nobody else: events hold addresses.
const fileMode = 0o640

// NewFile makes a sink for the file at path. It fails when the file cannot be opened for appending,
// so that a mistake shows at start.
func NewFile(path string) (*File, error) { return NewNodeFile(path, "") }

// NewNodeFile is NewFile for bridges that share a store: each writes all events to a file of its own,
// and node tells their cursors apart.
func NewNodeFile(path, node string) (*File, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if fi, err := f.Stat(); err != nil {
		return nil, err
	} else if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	name := "file:" + path
	if node != "" {
		name = "file@" + node + ":" + path
	}
	return &File{path: path, name: name, torn: -1}, nil
}

// Name is the key of its cursor.
func (s *File) Name() string { return s.name }

// Open finds what was written and not noted, and returns the store's cursor to follow from.
func (s *File) Open(_ context.Context, cursor string) (string, error) {
	s.Close()
	s.adopted = map[fact]bool{}
	var c fileCursor
	if cursor != "" {
		if err := json.Unmarshal([]byte(cursor), &c); err != nil {
			return "", fmt.Errorf("cursor of %s: %w", s.path, err)
		}
	}
	if err := s.open(); err != nil {
		return "", err
	}
	here, err := identify(s.f)
	if err != nil {
		return "", err
	}
	switch {
	case cursor == "":
		// Nothing was noted yet, but a first batch may have been written.
		err = s.adoptTail()
	case here.Dev == c.Dev && here.Inode == c.Inode:
		err = s.adopt(s.f, c.Offset)
	default:
		// Moved away while we were down, perhaps with lines that were not noted.
		if err = s.adoptMoved(c); err == nil {
			err = s.adoptTail()
		}
	}
	if err == nil {
		var fi fs.FileInfo
		if fi, err = s.f.Stat(); err == nil {
			s.offset = fi.Size()
		}
	}
	if err != nil {
		return "", fmt.Errorf("read the end of %s: %w", s.path, err)
	}
	return c.Store, nil
}

// maxAdopted bounds the memory a foreign file at our place can cost. Our own lines after a noted
// offset are never more than a batch.
const maxAdopted = 1 << 16

// tail is far more than one batch takes.
const tail = 8 << 20

// adoptTail is adopt for a file of which no offset is known.
func (s *File) adoptTail() error {
	fi, err := s.f.Stat()
	if err != nil {
		return err
	}
	return s.adopt(s.f, max(0, fi.Size()-tail))
}

// adopt reads the lines after offset and cuts a torn one at the end. It makes durable what it found:
// the process may have died before its fsync.
func (s *File) adopt(f *os.File, offset int64) error {
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	end := fi.Size()
	if end < offset {
		offset = 0 // emptied in place
	}
	r := bufio.NewReaderSize(io.NewSectionReader(f, offset, end-offset), 64<<10)
	whole := offset // end of the last complete line
	for {
		line, n, err := readLine(r)
		if errors.Is(err, io.EOF) {
			switch {
			case n == 0:
			case bytes.HasPrefix(line, []byte("{")):
				err = f.Truncate(whole)
			default: // not ours: it is given the line end it lacks
				_, err = f.Write([]byte{'\n'})
			}
			if err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if end == offset {
				return nil
			}
			return f.Sync()
		}
		if err != nil {
			return err
		}
		whole += n
		var e struct {
			ID       string `json:"id"`
			Revision int    `json:"revision"`
		}
		if json.Unmarshal(line, &e) == nil && e.ID != "" && len(s.adopted) < maxAdopted {
			s.adopted[fact{e.ID, e.Revision}] = true
		}
	}
}

// maxLine is far above any event; of a longer line only the length matters.
const maxLine = 1 << 20

// readLine reads one line and tells its length with the line end; io.EOF comes with the length of
// an incomplete last one.
func readLine(r *bufio.Reader) (line []byte, n int64, err error) {
	for {
		part, err := r.ReadSlice('\n')
		n += int64(len(part))
		if len(line)+len(part) <= maxLine {
			line = append(line, part...)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		return bytes.TrimSuffix(line, []byte{'\n'}), n, err
	}
}

// adoptMoved looks for the file the cursor is about beside the present one.
func (s *File) adoptMoved(c fileCursor) error {
	entries, err := os.ReadDir(filepath.Dir(s.path))
	if err != nil {
		return nil // then these lines may come twice
	}
	for _, d := range entries {
		fi, err := d.Info()
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || uint64(st.Dev) != c.Dev || st.Ino != c.Inode {
			continue
		}
		f, err := os.OpenFile(filepath.Join(filepath.Dir(s.path), d.Name()), os.O_RDWR|os.O_APPEND, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		return s.adopt(f, c.Offset)
	}
	return nil
}

// Write appends the events, fsyncs, and returns the place to be noted.
func (s *File) Write(_ context.Context, evs []event.Event, next string) (string, error) {
	if err := s.current(); err != nil {
		return "", err
	}
	s.buf = s.buf[:0]
	var taken []fact
	for i := range evs {
		k := fact{evs[i].ID, evs[i].Revision}
		if s.adopted[k] {
			taken = append(taken, k)
			continue
		}
		var err error
		if s.buf, err = evs[i].AppendJSON(s.buf); err != nil {
			return "", err
		}
		s.buf = append(s.buf, '\n')
	}
	if len(s.buf) > 0 {
		if err := s.append(); err != nil {
			return "", err
		}
	}
	for _, k := range taken {
		delete(s.adopted, k)
	}
	c, err := identify(s.f)
	if err != nil {
		return "", err
	}
	c.Store, c.Offset = next, s.offset
	b, err := json.Marshal(c)
	return string(b), err
}

// append writes the buffer as a whole or not at all.
func (s *File) append() error {
	_, err := s.f.Write(s.buf)
	if err == nil {
		err = s.f.Sync()
	}
	if err == nil {
		s.offset += int64(len(s.buf))
		return nil
	}
	// A full disk leaves part of a line, a failed fsync pages of unknown fate: both go, and the file is
	// opened and looked at anew before anything else is written.
	if terr := s.f.Truncate(s.offset); terr != nil {
		s.torn = s.offset
	}
	s.Close()
	return fmt.Errorf("write %s: %w", s.path, err)
}

// current makes sure that the open file is the one at the path and ends where we think it does.
func (s *File) current() error {
	if s.f != nil {
		at, err := os.Stat(s.path)
		if err == nil {
			var fi fs.FileInfo
			if fi, err = s.f.Stat(); err == nil && os.SameFile(at, fi) {
				if fi.Size() != s.offset {
					s.offset = fi.Size() // emptied in place, or somebody else's lines
				}
				return nil
			}
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.Close()
	}
	if err := s.open(); err != nil {
		return err
	}
	if s.torn >= 0 {
		if err := s.adopt(s.f, s.torn); err != nil {
			return err
		}
		fi, err := s.f.Stat()
		if err != nil {
			return err
		}
		s.offset, s.torn = fi.Size(), -1
	}
	return nil
}

func (s *File) open() error {
	_, statErr := os.Lstat(s.path)
	f, err := os.OpenFile(s.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, fileMode)
	if err != nil {
		return err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	if errors.Is(statErr, fs.ErrNotExist) {
		if err := syncDir(filepath.Dir(s.path)); err != nil {
			f.Close()
			return err
		}
	}
	s.f, s.offset = f, fi.Size()
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Close closes the file.
func (s *File) Close() error {
	if s.f == nil {
		return nil
	}
	err := s.f.Close()
	s.f = nil
	return err
}

func identify(f *os.File) (fileCursor, error) {
	fi, err := f.Stat()
	if err != nil {
		return fileCursor{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return fileCursor{}, errors.New("the file system tells no inodes")
	}
	return fileCursor{Dev: uint64(st.Dev), Inode: st.Ino}, nil
}
