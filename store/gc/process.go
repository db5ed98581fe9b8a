package gc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"cairn/store"
	"cairn/store/base32"
)

// processes adds the objects that running processes use. Processes that end meanwhile, or
// that we may not look at, are passed over.
func (f *finder) processes() error {
	proc, err := os.Open("/proc")
	if err != nil {
		return fmt.Errorf("look at running processes: %w", err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("look at running processes: %w", err)
	}
	p := &processScan{f: f, found: map[string]string{}, buf: make([]byte, 64<<10)}
	for _, dir := range dirs(string(f.layout.Dir), f.layout.RealDir) {
		p.prefixes = append(p.prefixes, []byte(dir+"/"))
	}
	for _, name := range names {
		if _, err := strconv.Atoi(name); err != nil {
			continue
		}
		if err := context.Cause(f.ctx); err != nil {
			return err
		}
		p.process("/proc/" + name)
	}
	for _, name := range []string{"modprobe", "poweroff_cmd"} {
		p.file("/proc/sys/kernel/" + name)
	}
	for digits, link := range p.found {
		if path, ok := f.s.PathFromDigest(digits); ok {
			f.add(KindProcess, link, path)
		}
	}
	return nil
}

func dirs(logical, real string) []string {
	if logical == real {
		return []string{logical}
	}
	return []string{logical, real}
}

// processScan collects digests that follow the name of the store directory.
type processScan struct {
	f        *finder
	prefixes [][]byte
	found    map[string]string // digits → where they were seen first
	buf      []byte
}

// process looks at one process. What has no executable is of the kernel, or ending, and uses no file.
func (p *processScan) process(dir string) {
	if !p.link(dir + "/exe") {
		return
	}
	p.link(dir + "/cwd")
	p.link(dir + "/root")
	p.file(dir + "/maps")
	p.file(dir + "/environ")
	fds, err := os.Open(dir + "/fd")
	if err != nil {
		return
	}
	defer fds.Close()
	names, _ := fds.Readdirnames(-1)
	for _, n := range names {
		p.link(dir + "/fd/" + n)
	}
}

// link scans the target of a link, and reports whether there is one, if only one that we may not see.
func (p *processScan) link(link string) bool {
	n, err := unix.Readlink(link, p.buf)
	if err == nil {
		p.scan(link, p.buf[:n])
	}
	return !errors.Is(err, unix.ENOENT)
}

// file scans a file piece by piece. What may lie across a border is looked at twice.
func (p *processScan) file(name string) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	kept := 0
	for {
		n, err := f.Read(p.buf[kept:])
		p.scan(name, p.buf[:kept+n])
		if err != nil {
			return
		}
		tail := min(kept+n, p.longest())
		copy(p.buf, p.buf[kept+n-tail:kept+n])
		kept = tail
	}
}

// longest returns the length of what must be seen in one piece.
func (p *processScan) longest() int {
	n := 0
	for _, prefix := range p.prefixes {
		n = max(n, len(prefix)+store.DigestLen)
	}
	return n
}

// scan notes every digest in text that stands behind a store directory.
func (p *processScan) scan(where string, text []byte) {
	for _, prefix := range p.prefixes {
		rest := text
		for {
			i := bytes.Index(rest, prefix)
			if i < 0 {
				break
			}
			rest = rest[i+len(prefix):]
			if len(rest) < store.DigestLen || !base32.Valid(string(rest[:store.DigestLen])) {
				continue
			}
			digits := string(rest[:store.DigestLen])
			if _, ok := p.found[digits]; !ok {
				p.found[digits] = where
			}
		}
	}
}
