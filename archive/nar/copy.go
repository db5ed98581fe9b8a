package nar

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"sync"
)

// bulk is the size of the buffers that data passes through.
const bulk = 256 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bulk); return &b }}

// direntSize is how much of a directory is read at once.
const direntSize = 32 << 10

var direntBuffers = sync.Pool{New: func() any { return new([direntSize]byte) }}

// Copy passes exactly one archive through from r to w and checks it.
// It returns the archive's size; an archive that is not canonical gives an error after part of it was written.
func Copy(w io.Writer, r io.Reader) (int64, error) {
	var n *Reader
	err := buffered(w, func(out *bufio.Writer) error {
		n = NewReader(io.TeeReader(r, out))
		return n.drain()
	})
	return n.offset, err
}

var writers = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, 64<<10) }}

// buffered has write write to w in large pieces; when it fails, the last of them is not written.
func buffered(w io.Writer, write func(*bufio.Writer) error) error {
	out := writers.Get().(*bufio.Writer)
	out.Reset(w)
	defer func() {
		out.Reset(nil)
		writers.Put(out)
	}()
	if err := write(out); err != nil {
		return err
	}
	return out.Flush()
}

// drain reads the whole archive.
func (r *Reader) drain() error {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if h.Type != Regular {
			continue
		}
		for err == nil {
			_, err = r.Read(*buf)
		}
		if err != io.EOF {
			return err
		}
	}
}

// ReadFile returns the data of an archive of a single regular file of at most max bytes.
func ReadFile(r io.Reader, max int64) (data []byte, executable bool, err error) {
	n := NewReader(r)
	h, err := n.Next()
	if err != nil {
		return nil, false, err
	}
	if h.Type != Regular {
		return nil, false, fmt.Errorf("archive of a %s, want one of a regular file", h.Type)
	}
	if h.Size > max {
		return nil, false, fmt.Errorf("archived file of %d bytes, the limit is %d", h.Size, max)
	}
	if data, err = io.ReadAll(n); err != nil {
		return nil, false, err
	}
	if _, err := n.Next(); err != io.EOF {
		return nil, false, err
	}
	return data, h.Executable, nil
}

// Node is a tree in the form of the ".ls" file beside an archive in a binary cache.
type Node struct {
	Type       string           `json:"type"`
	Entries    map[string]*Node `json:"entries,omitzero"`
	Size       *int64           `json:"size,omitempty"`
	Executable bool             `json:"executable,omitempty"`
	Offset     int64            `json:"narOffset,omitempty"`
	Target     string           `json:"target,omitempty"`
}

// Listing is a ".ls" file.
type Listing struct {
	Version int   `json:"version"`
	Root    *Node `json:"root"`
}

// JSON returns the file's text.
func (l *Listing) JSON() ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(l)
	return []byte(strings.TrimSuffix(b.String(), "\n")), err
}

// List reads an archive and returns what is in it.
func List(r io.Reader) (*Listing, error) {
	n := NewReader(r)
	var path []*Node // the directories that are open
	var root *Node
	for {
		h, err := n.step()
		if err == io.EOF {
			return &Listing{Version: 1, Root: root}, nil
		}
		if err != nil {
			return nil, err
		}
		if h == nil {
			path = path[:len(path)-1]
			continue
		}
		node := newNode(h)
		if root == nil {
			root = node
		} else {
			path[len(path)-1].Entries[h.Path[strings.LastIndexByte(h.Path, '/')+1:]] = node
		}
		if h.Type == Directory {
			path = append(path, node)
		}
	}
}

func newNode(h *Header) *Node {
	node := &Node{Type: h.Type.String(), Target: h.Target}
	switch h.Type {
	case Regular:
		node.Size, node.Executable, node.Offset = &h.Size, h.Executable, h.Offset
	case Directory:
		node.Entries = map[string]*Node{}
	}
	return node
}
