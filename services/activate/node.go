package activate

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Node is what is, or shall be, at a path of the host.
// It is plain data, so that a journal can hold it and another process can put it back.
type Node struct {
	Kind    string   `json:"kind"`              // "absent", "link", "file", "directory", "other"
	Target  string   `json:"target,omitempty"`  // of a link
	Sum     string   `json:"sum,omitempty"`     // SHA-256 of a file
	Size    int64    `json:"size,omitempty"`    // of a file
	Mode    uint32   `json:"mode,omitempty"`    // of a file or directory
	UID     int      `json:"uid,omitempty"`     // of a file that is there
	GID     int      `json:"gid,omitempty"`     //
	User    string   `json:"user,omitempty"`    // of a file to be; wins over UID
	Group   string   `json:"group,omitempty"`   //
	Modtime int64    `json:"modtime,omitempty"` // of a file that is there, in seconds
	Sources []string `json:"sources,omitempty"` // files whose bytes make the file, in order
	Text    string   `json:"text,omitempty"`    // or its bytes themselves
}

var absent = Node{Kind: "absent"}

func linkNode(target string) Node { return Node{Kind: "link", Target: target} }

func textNode(text string, mode uint32) Node {
	sum := sha256.Sum256([]byte(text))
	return Node{Kind: "file", Text: text, Sum: hex.EncodeToString(sum[:]), Size: int64(len(text)), Mode: mode}
}

// Same reports whether two nodes look alike on the host: kind, target, bytes and mode.
func (n Node) Same(m Node) bool {
	return n.Kind == m.Kind && n.Target == m.Target && n.Sum == m.Sum && (n.Kind != "file" || n.Mode == m.Mode)
}

func (n Node) String() string {
	switch n.Kind {
	case "link":
		return "a link to " + n.Target
	case "file":
		return fmt.Sprintf("a file of %d bytes", n.Size)
	case "absent":
		return "nothing"
	}
	return "a " + n.Kind
}

// observe looks at a path without following it.
func observe(path string) (Node, error) {
	fi, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return absent, nil
	}
	if err != nil {
		return Node{}, fmt.Errorf("look at %s: %w", path, err)
	}
	switch fi.Mode().Type() {
	case fs.ModeSymlink:
		target, err := os.Readlink(path)
		return linkNode(target), err
	case fs.ModeDir:
		return Node{Kind: "directory", Mode: uint32(fi.Mode().Perm())}, nil
	case 0:
		return observeFile(path, fi)
	}
	return Node{Kind: "other"}, nil
}

func observeFile(path string, fi fs.FileInfo) (Node, error) {
	sum, size, err := sumFiles([]string{path})
	if err != nil {
		return Node{}, fmt.Errorf("read %s: %w", path, err)
	}
	st := fi.Sys().(*syscall.Stat_t)
	return Node{Kind: "file", Sum: sum, Size: size, Mode: st.Mode & 0o7777, UID: int(st.Uid), GID: int(st.Gid), Modtime: st.Mtim.Sec}, nil
}

// maxCopy bounds what is copied to or from /etc.
const maxCopy = 64 << 20

func sumFiles(paths []string) (string, int64, error) {
	h := sha256.New()
	size, err := concat(h, paths)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// concat writes the bytes of files one after the other. A file of several
// that lacks its last line end gets one.
func concat(w io.Writer, paths []string) (int64, error) {
	var size int64
	for _, p := range paths {
		f, err := os.OpenFile(p, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			return 0, err
		}
		tail := &lastByte{w: w}
		n, err := io.Copy(tail, io.LimitReader(f, maxCopy+1))
		f.Close()
		if err != nil {
			return 0, err
		}
		if n > maxCopy {
			return 0, fmt.Errorf("%s is larger than %d bytes", p, maxCopy)
		}
		size += n
		if len(paths) > 1 && n > 0 && tail.last != '\n' {
			if _, err := w.Write([]byte("\n")); err != nil {
				return 0, err
			}
			size++
		}
	}
	return size, nil
}

type lastByte struct {
	w    io.Writer
	last byte
}

func (l *lastByte) Write(p []byte) (int, error) {
	if len(p) > 0 {
		l.last = p[len(p)-1]
	}
	return l.w.Write(p)
}

// put makes path be n, by one rename, and makes that durable.
// It is idempotent. A directory in the way is never removed unless n is a directory or nothing and it is empty.
func put(path string, n Node) error {
	switch n.Kind {
	case "absent":
		if err := removeLeaf(path); err != nil {
			return err
		}
	case "directory":
		if err := os.Mkdir(path, fs.FileMode(n.Mode)); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case "link":
		if err := viaTemporary(path, func(tmp string) error { return os.Symlink(n.Target, tmp) }); err != nil {
			return err
		}
	case "file":
		if err := viaTemporary(path, func(tmp string) error { return writeNode(tmp, n) }); err != nil {
			return err
		}
	default:
		return fmt.Errorf("put %s: cannot make a node of kind %q", path, n.Kind)
	}
	return syncDir(filepath.Dir(path))
}

func removeLeaf(path string) error {
	err := os.Remove(path) // empty directories too
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ENOTEMPTY) {
		return nil
	}
	return err
}

func viaTemporary(path string, make func(tmp string) error) error {
	tmp := filepath.Join(filepath.Dir(path), ".cairn-"+filepath.Base(path)+".tmp")
	if err := removeLeaf(tmp); err != nil {
		return err
	}
	if err := make(tmp); err != nil {
		return fmt.Errorf("put %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("put %s: %w", path, err)
	}
	return nil
}

func writeNode(tmp string, n Node) error {
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if len(n.Sources) > 0 {
		_, err = concat(f, n.Sources)
	} else {
		_, err = f.WriteString(n.Text)
	}
	if err != nil {
		return err
	}
	uid, gid, err := n.owner()
	if err != nil {
		return err
	}
	if err := f.Chown(uid, gid); err != nil && os.Geteuid() == 0 {
		return err
	}
	if err := unix.Fchmod(int(f.Fd()), n.Mode); err != nil {
		return err
	}
	if n.Modtime != 0 {
		t := time.Unix(n.Modtime, 0)
		if err := os.Chtimes(tmp, t, t); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func (n Node) owner() (uid, gid int, err error) {
	uid, gid = n.UID, n.GID
	if n.User != "" {
		u, err := user.Lookup(n.User)
		if err != nil {
			return 0, 0, err
		}
		uid, _ = strconv.Atoi(u.Uid)
	}
	if n.Group != "" {
		g, err := user.LookupGroup(n.Group)
		if err != nil {
			return 0, 0, err
		}
		gid, _ = strconv.Atoi(g.Gid)
	}
	return uid, gid, nil
}

// writeDurable replaces a file of ours.
func writeDurable(path string, data []byte, mode uint32) error {
	return put(path, Node{Kind: "file", Text: string(data), Mode: mode})
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		return err
	}
	defer d.Close()
	return d.Sync()
}

// backUp copies a file so that its bytes survive it.
func backUp(path, backup string) error {
	var b bytes.Buffer
	if _, err := concat(&b, []string{path}); err != nil {
		return fmt.Errorf("back up %s: %w", path, err)
	}
	if err := writeDurable(backup, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("back up %s: %w", path, err)
	}
	return nil
}
