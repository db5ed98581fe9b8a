package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// body is a file that is being downloaded. When the connection breaks or stands still, it asks for the rest.
//
// Attempts are counted since the last one that brought something worth while, so that a long download
// over a bad line ends well and one that brings a byte at a time ends.
type body struct {
	web  *web
	ctx  context.Context
	url  *url.URL
	size int64 // of the whole file, 0 when not known

	head      http.Header // of the first answer
	validator string      // strong ETag, or date
	whole     int64       // size that the first answer told, -1 when none
	answer    *answer
	offset    int64         // how much was read
	fresh     int64         // bytes since attempts were counted anew
	failed    int           // attempts since then
	waited    time.Duration // in Read since the last piece of progress
	progress  int64         // bytes since then
	err       error         // final
}

const (
	// worthWhile is how much an attempt must bring for the next failure to be the first again.
	worthWhile = 64 << 10
	// pieceOfProgress is how much must come within StalledTimeout.
	pieceOfProgress = 16 << 10
)

var errStalled = errors.New("no progress")

// jitter spreads what many wait for at the same time.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

// open asks for the file from offset on, as often as is worth it.
func (b *body) open() error {
	for {
		p := b.try()
		if p == nil {
			return nil
		}
		if b.offset == 0 && p.dial {
			return p.err
		}
		b.failed++
		if !b.web.wait(b.ctx, b.failed, p) {
			return p.err
		}
	}
}

func (b *body) try() *problem {
	head := http.Header{}
	if b.offset > 0 {
		head.Set("Range", fmt.Sprintf("bytes=%d-", b.offset))
		if b.validator != "" {
			head.Set("If-Range", b.validator)
		}
	}
	a, p := b.web.ask(b.ctx, http.MethodGet, b.url, head, nil, 0)
	if p != nil {
		return p
	}
	if b.head == nil {
		b.first(a)
		return nil
	}
	if err := b.next(a); err != nil {
		a.close()
		return &problem{err: fmt.Errorf("%s: %w", hideURL(b.url), err), again: errors.Is(err, ErrUnavailable)}
	}
	return nil
}

// first remembers what tells whether the rest belongs to the same file.
func (b *body) first(a *answer) {
	b.head, b.answer, b.whole = a.Header, a, a.ContentLength
	if tag := a.Header.Get("ETag"); strings.HasPrefix(tag, `"`) {
		b.validator = tag
	} else {
		b.validator = a.Header.Get("Last-Modified")
	}
}

// next makes an answer continue what was read.
func (b *body) next(a *answer) error {
	if a.StatusCode == http.StatusPartialContent {
		start, whole, err := contentRange(a.Header.Get("Content-Range"))
		if err != nil || start != b.offset || b.whole >= 0 && whole >= 0 && whole != b.whole {
			return fmt.Errorf("the rest of the file is not what was asked for: %w", ErrFormat)
		}
		b.answer = a
		return nil
	}
	if a.ContentLength >= 0 && b.whole >= 0 && a.ContentLength != b.whole {
		return fmt.Errorf("the file changed while it was read: %w", ErrFormat)
	}
	b.answer = a
	return b.skip(b.offset)
}

// skip reads over what was read before, for a server that does not know ranges.
func (b *body) skip(n int64) error {
	buf := make([]byte, 32<<10)
	for n > 0 {
		got, err := b.watched(buf[:min(n, int64(len(buf)))])
		n -= int64(got)
		if err != nil && n > 0 {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return nil
}

// contentRange parses "bytes 5-9/10"; whole is -1 for "*".
func contentRange(s string) (start, whole int64, err error) {
	rest, ok := strings.CutPrefix(s, "bytes ")
	span, size, ok2 := strings.Cut(rest, "/")
	first, _, ok3 := strings.Cut(span, "-")
	if !ok || !ok2 || !ok3 {
		return 0, 0, fmt.Errorf("range %q: %w", clip(s), ErrFormat)
	}
	start, err = strconv.ParseInt(first, 10, 64)
	if whole = -1; err == nil && size != "*" {
		whole, err = strconv.ParseInt(size, 10, 64)
	}
	return start, whole, err
}

// Read reads the file, over as many requests as it takes.
func (b *body) Read(p []byte) (int, error) {
	if b.err != nil || len(p) == 0 {
		return 0, b.err
	}
	for {
		n, err := b.watched(p)
		b.count(n)
		if err == io.EOF && b.size > 0 && b.offset < b.size {
			err = io.ErrUnexpectedEOF // cut off by a server that told no length
		}
		switch {
		case n > 0:
			if err == io.EOF {
				b.err = io.EOF
			}
			return n, b.err // an error will come again
		case err == io.EOF:
			b.err = io.EOF
			return 0, io.EOF
		case err == nil:
			continue
		}
		if b.err = b.resume(err); b.err != nil {
			return 0, b.err
		}
	}
}

func (b *body) count(n int) {
	b.offset += int64(n)
	b.fresh += int64(n)
	if b.fresh >= worthWhile {
		b.fresh, b.failed = 0, 0
	}
}

// resume asks for the rest after an error.
func (b *body) resume(err error) error {
	b.answer.close()
	if b.ctx.Err() != nil {
		return fmt.Errorf("%s: %w", hideURL(b.url), context.Cause(b.ctx))
	}
	b.failed++
	p := &problem{err: fmt.Errorf("%s: %w after %d bytes: %w", hideURL(b.url), ErrUnavailable, b.offset, err), again: true}
	if !b.web.wait(b.ctx, b.failed, p) {
		return p.err
	}
	b.waited, b.progress = 0, 0
	return b.open()
}

// watched reads once and ends the request when it makes too little progress. Only time spent waiting
// for the server counts.
func (b *body) watched(p []byte) (int, error) {
	answer, start := b.answer, time.Now()
	timer := time.AfterFunc(b.web.opts.StalledTimeout-b.waited, func() { answer.cancel(errStalled) })
	n, err := answer.Body.Read(p)
	if !timer.Stop() && err != nil && err != io.EOF {
		err = fmt.Errorf("%w in %s", errStalled, b.web.opts.StalledTimeout)
	}
	b.waited += time.Since(start)
	b.progress += int64(n)
	if b.progress >= pieceOfProgress {
		b.progress, b.waited = 0, 0
	}
	return n, err
}

// Close ends the download.
func (b *body) Close() error {
	if b.err == nil {
		b.err = errors.New("download was closed")
	}
	b.answer.close()
	return nil
}
