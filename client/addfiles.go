package client

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/archive/nar"
	"cairn/daemon/protocol"
	"cairn/store"
)

// SmallFile is up to which size in bytes AddFiles adds a regular file together with others.
const SmallFile = 64 << 10

// Limits of what AddFiles keeps in memory.
const (
	filesBytes = 1 << 20
	filesCount = 1024
)

// File is a file or tree that is to be added.
type File struct {
	Name   string
	Method store.Method // store.Recursive or store.Flat
	Path   string       // where it is
}

// AddFiles is AddFile for several, without references and with SHA-256. Small regular files are read and hashed here; a request for
// many of them asks which are there, and one sends the others. It returns the paths of those that were added, in the order of
// files: all of them, or those before the first that failed.
func (c *Conn) AddFiles(ctx context.Context, files []File) ([]store.Path, error) {
	b := &filesBatch{c: c, archives: map[store.Path][]byte{}}
	var done []store.Path
	flush := func() error {
		paths, err := b.send(ctx)
		done = append(done, paths...)
		return err
	}
	for _, f := range files {
		info, archive, err := c.readSmall(f)
		if archive == nil || b.full(archive) {
			if err := flush(); err != nil { // of the files before this one
				return done, err
			}
		}
		if err == nil && archive == nil {
			info, err = c.AddFile(ctx, f.Name, f.Method, store.SHA256, nil, f.Path)
		}
		switch {
		case err != nil:
			return done, err
		case archive == nil:
			done = append(done, info.Path)
		default:
			b.add(info, archive)
		}
	}
	return done, flush()
}

// readSmall returns what a small regular file becomes, and its archive. The archive is nil for others.
func (c *Conn) readSmall(f File) (*store.Info, []byte, error) {
	if c.answer.Version < protocol.Minor(32) || strings.HasSuffix(f.Name, ".drv") { // a derivation may be refused, which must not concern others
		return nil, nil, nil
	}
	file, err := os.OpenFile(f.Path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, nil // AddFile knows what that means
	}
	defer file.Close()
	fi, err := file.Stat()
	if err != nil || !fi.Mode().IsRegular() || fi.Size() > SmallFile {
		return nil, nil, nil
	}
	data := make([]byte, fi.Size())
	if _, err := io.ReadFull(file, data); err != nil {
		return nil, nil, fmt.Errorf("add %s: read %s: %w", f.Name, f.Path, err)
	}
	var archive bytes.Buffer
	archive.Grow(len(data) + 256)
	if err := nar.DumpString(&archive, data, fi.Mode()&0o100 != 0 && f.Method == store.Recursive); err != nil {
		return nil, nil, fmt.Errorf("add %s: %w", f.Name, err)
	}
	narHash := store.SHA256.Sum(archive.Bytes())
	ca := store.ContentAddress{Method: f.Method, Hash: narHash}
	if f.Method != store.Recursive {
		ca.Hash = store.SHA256.Sum(data)
	}
	p, err := c.dir.ContentPath(f.Name, ca, store.References{})
	if err != nil {
		return nil, nil, fmt.Errorf("add %s: %w", f.Name, err)
	}
	return &store.Info{Path: p, NarHash: narHash, NarSize: int64(archive.Len()), CA: ca}, archive.Bytes(), nil
}

// filesBatch is small files that are added together, and a store.Reader of them.
type filesBatch struct {
	c        *Conn
	infos    []*store.Info
	archives map[store.Path][]byte
	size     int
}

// full reports whether there is no room for one more archive.
func (b *filesBatch) full(archive []byte) bool {
	return b.size+len(archive) > filesBytes || len(b.infos) == filesCount
}

func (b *filesBatch) add(info *store.Info, archive []byte) {
	b.infos = append(b.infos, info)
	b.archives[info.Path] = archive
	b.size += len(archive)
}

// send adds what the daemon lacks, empties the batch, and returns its paths. When something fails it returns none.
func (b *filesBatch) send(ctx context.Context) ([]store.Path, error) {
	if len(b.infos) == 0 {
		return nil, nil
	}
	defer func() { *b = filesBatch{c: b.c, archives: map[store.Path][]byte{}} }()
	paths := store.PathsOf(b.infos)
	there, err := b.c.keepValid(ctx, paths)
	if err != nil {
		return nil, err
	}
	missing := slices.DeleteFunc(slices.Clone(b.infos), func(info *store.Info) bool { return there[info.Path] })
	if len(missing) > 0 {
		err = b.c.AddFrom(ctx, missing, b)
	}
	if err != nil {
		return nil, err
	}
	return paths, nil
}

// keepValid finds out which paths are valid, and keeps these until the session ends.
func (c *Conn) keepValid(ctx context.Context, paths []store.Path) (map[store.Path]bool, error) {
	valid, err := c.ValidPaths(ctx, paths)
	if err != nil || len(valid) == 0 {
		return nil, err
	}
	if err := c.AddTempRoots(ctx, valid); err != nil {
		return nil, err
	}
	return Present(ctx, c, valid, false) // one may have been collected before it was kept
}

// Info is part of store.Reader.
func (b *filesBatch) Info(_ context.Context, p store.Path) (*store.Info, error) {
	for _, info := range b.infos {
		if info.Path == p {
			return info, nil
		}
	}
	return nil, fmt.Errorf("path %s: %w", p, store.ErrNotValid)
}

// NAR writes the archive of a file.
func (b *filesBatch) NAR(_ context.Context, p store.Path, w io.Writer) error {
	_, err := w.Write(b.archives[p])
	return err
}
