package build

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"path/filepath"
	"time"

	"cairn/archive/nar"
	"cairn/store"
	"cairn/store/failpoint"
	"cairn/store/refscan"
)

// ioSize is the buffer between stages of a copy.
const ioSize = 256 << 10

// dumpFile writes the archive of an output that is a regular file, in large pieces, and the file's bytes to contents.
func dumpFile(w io.Writer, path string, contents io.Writer) error {
	f, size, err := openOutput(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := bufio.NewWriterSize(w, int(min(size, ioSize)))
	if _, err := io.Copy(b, nar.NewFileReader(io.TeeReader(f, contents), size, false)); err != nil {
		return err
	}
	return b.Flush()
}

// copying is how an output is copied.
type copying struct {
	digests  map[string]string // to be replaced in the copy
	also     []io.Writer       // get the archive, as it was before
	contents io.Writer         // gets the bytes of an output that is a file; nil: nobody wants them
}

// copyOut writes an output's copy, and its hash and size to o.info.
func (a *attempt) copyOut(ctx context.Context, o *output, c copying) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	sum, size := sha256.New(), new(counter)
	copied := &restoration{path: filepath.Join(a.dir("out"), o.name), opts: nar.RestoreOptions{Sums: []io.Writer{sum}}}
	if a.key.mode == Normal {
		copied.opts.Files = a.b.store.Files()
	}
	after, done := io.MultiWriter(size, copied), func() error { return nil }
	if len(c.digests) > 0 {
		rewriter := refscan.NewRewriter(after, c.digests)
		after, done = rewriter, rewriter.Close
	}
	w := io.MultiWriter(append(c.also, after)...)
	var err error
	if c.contents != nil {
		err = dumpFile(w, o.tree, c.contents)
	} else {
		err = nar.Dump(w, o.tree)
	}
	if err == nil {
		err = done()
	}
	err = copied.close(err)
	failpoint.Hit("build/output/copied")
	if err != nil {
		return a.unreadable(o, err)
	}
	o.info = &store.Info{NarHash: store.NewHash(store.SHA256, sum.Sum(nil)), NarSize: int64(*size), RegisteredAt: time.Now().Unix(), Ultimate: true}
	if a.b.store.IsValid(a.key.drv) {
		o.info.Deriver = a.key.drv
	}
	return nil
}

type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// A restoration makes the tree of the archive that is written to it, from memory if that is small, and else by a goroutine that
// lives until close.
type restoration struct {
	path string
	opts nar.RestoreOptions
	head []byte // what was written, while there is no goroutine
	pipe *io.PipeWriter
	done chan error
}

// smallArchive is the largest archive that is kept in memory.
const smallArchive = 32 << 10

func (r *restoration) Write(p []byte) (int, error) {
	if r.pipe == nil {
		if len(r.head)+len(p) <= smallArchive {
			r.head = append(r.head, p...)
			return len(p), nil
		}
		if err := r.begin(); err != nil {
			return 0, err
		}
	}
	return r.pipe.Write(p)
}

// begin starts the goroutine.
func (r *restoration) begin() error {
	pr, pw := io.Pipe()
	r.pipe, r.done = pw, make(chan error, 1)
	go func() {
		err := nar.Restore(pr, r.path, &r.opts)
		pr.CloseWithError(errors.Join(err, io.ErrClosedPipe))
		r.done <- err
	}()
	_, err := pw.Write(r.head)
	return err
}

// close ends the tree, which is not complete when the writer has failed, and returns what failed first.
func (r *restoration) close(err error) error {
	switch {
	case r.pipe != nil:
		r.pipe.CloseWithError(err)
		if restored := <-r.done; err == nil || errors.Is(err, io.ErrClosedPipe) {
			err = restored
		}
	case err == nil:
		err = nar.Restore(bytes.NewReader(r.head), r.path, &r.opts)
	}
	return err
}

// copyTree copies what an archive holds of a tree.
func copyTree(from, to string) error {
	r := &restoration{path: to}
	return r.close(nar.Dump(r, from))
}
