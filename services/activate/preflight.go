package activate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cairn/services/system"
)

// preflight adds to a plan every conflict that can be found without changing the host.
// All of them are found, not just the first.
func (e *Engine) preflight(ctx context.Context, p *Plan, current, wanted *system.Manifest, f *Facts) {
	e.checkTimezone(p, wanted)
	e.checkHostPaths(p, wanted)
	e.checkPrograms(p, wanted)
	e.checkHostUnits(p, current, wanted, f)
	e.checkOwners(p, wanted, f)
	e.checkSpace(p)
	e.checkPorts(p, wanted, f)
	e.protect(ctx, p, current, wanted, f)
	e.runChecks(ctx, p, wanted)
}

func (e *Engine) checkTimezone(p *Plan, wanted *system.Manifest) {
	if wanted.Timezone == "" {
		return
	}
	if _, err := os.Stat(e.host("/usr/share/zoneinfo/" + wanted.Timezone)); err == nil {
		return
	}
	if wanted.Timezone == "UTC" || wanted.Timezone == "Etc/UTC" {
		p.Notes = append(p.Notes, "the host has no time zone data; without it the time zone is UTC, as wanted")
		return
	}
	p.conflict("host", "time zone "+wanted.Timezone, "is not in /usr/share/zoneinfo; install tzdata")
}

func (e *Engine) checkHostPaths(p *Plan, wanted *system.Manifest) {
	for _, h := range wanted.HostPaths {
		if _, err := os.Stat(e.host(h)); err != nil {
			p.conflict("host path", h, "is not on the host; install what has it")
		}
	}
}

// checkPrograms finds units whose program is not there.
func (e *Engine) checkPrograms(p *Plan, wanted *system.Manifest) {
	for i := range wanted.Units {
		u := &wanted.Units[i]
		for _, line := range settings(u.Text, "ExecStart", "ExecStartPre", "ExecReload", "ExecCondition") {
			program, optional := execProgram(line)
			if program == "" || optional {
				continue
			}
			fi, err := os.Stat(e.real(program))
			if err != nil || fi.IsDir() || fi.Mode()&0o111 == 0 {
				p.conflict("unit", u.Name, "its program %s is not there or cannot be executed", program)
			}
		}
	}
}

// execProgram returns the absolute program of an Exec line, empty when systemd has to expand it first.
func execProgram(line string) (program string, optional bool) {
	for line != "" && strings.ContainsRune("-@:+!|", rune(line[0])) {
		optional = optional || line[0] == '-'
		line = line[1:]
	}
	fields := splitCommand(line)
	if len(fields) == 0 || !filepath.IsAbs(fields[0]) || strings.ContainsAny(fields[0], "%$") {
		return "", optional
	}
	return filepath.Clean(fields[0]), optional
}

// splitCommand splits a command line of a unit at spaces, minding quotes.
func splitCommand(line string) []string {
	var out []string
	var word strings.Builder
	var quote rune
	in := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(r)
		case r == '"' || r == '\'':
			quote, in = r, true
		case r == ' ' || r == '\t':
			if in {
				out = append(out, word.String())
				word.Reset()
			}
			in = false
		default:
			in = true
			word.WriteRune(r)
		}
	}
	if in {
		out = append(out, word.String())
	}
	return out
}

// hostUnitDirs are where the host's own unit files are, besides /etc/systemd/system.
var hostUnitDirs = []string{"/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}

// checkHostUnits finds units of the host that a new unit would hide.
func (e *Engine) checkHostUnits(p *Plan, current, wanted *system.Manifest, f *Facts) {
	for i := range wanted.Units {
		u := &wanted.Units[i]
		if u.Replace || current.Unit(u.Name) != nil {
			continue
		}
		for _, dir := range hostUnitDirs {
			if fi, err := os.Lstat(e.host(dir)); err != nil || fi.Mode().Type() == fs.ModeSymlink {
				continue
			}
			if _, err := os.Lstat(e.host(dir + "/" + u.Name)); err == nil {
				p.conflict("unit", u.Name, "the host has a unit of this name in %s; give yours another name, or set replace", dir)
				break
			}
		}
	}
}

// checkOwners finds copies whose owner neither exists nor will be made.
func (e *Engine) checkOwners(p *Plan, wanted *system.Manifest, f *Facts) {
	for _, file := range wanted.Etc {
		if _, ok := f.Accounts.Users[file.User]; file.User != "" && !ok && wanted.User(file.User) == nil {
			p.conflict("account", file.User, "owns /etc/%s and does not exist", file.Path)
		}
		made := slices.ContainsFunc(wanted.Groups, func(g system.Group) bool { return g.Name == file.Group })
		if _, ok := f.Accounts.Groups[file.Group]; file.Group != "" && !ok && !made && wanted.User(file.Group) == nil {
			p.conflict("account", file.Group, "is the group of /etc/%s and does not exist", file.Path)
		}
	}
	for _, u := range wanted.Users {
		for _, g := range append(slices.Clone(u.Groups), u.Group) {
			made := slices.ContainsFunc(wanted.Groups, func(h system.Group) bool { return h.Name == g })
			if _, ok := f.Accounts.Groups[g]; g != "" && !ok && !made && wanted.User(g) == nil {
				p.conflict("account", u.Name, "its group %s does not exist; declare it", g)
			}
		}
	}
}

// checkSpace wants room for copies, backups and the journal.
func (e *Engine) checkSpace(p *Plan) {
	var copied int64
	for _, c := range p.Files {
		copied += c.From.Size + c.To.Size
	}
	for _, dir := range []string{"/etc", e.opts.StateDir, "/run"} {
		var st unix.Statfs_t
		if err := unix.Statfs(e.host(dir), &st); err != nil {
			continue
		}
		if free := int64(st.Bavail) * st.Bsize; free < e.opts.MinFreeBytes+copied {
			p.conflict("space", dir, "%d MiB are free, %d MiB are needed", free>>20, (e.opts.MinFreeBytes+copied)>>20)
		}
		if st.Files > 0 && int64(st.Ffree) < e.opts.MinFreeFiles {
			p.conflict("space", dir, "%d inodes are free, %d are needed", st.Ffree, e.opts.MinFreeFiles)
		}
	}
}

const checkTime = 30 * time.Second

// runChecks runs the programs' own checkers on the configuration to be.
func (e *Engine) runChecks(ctx context.Context, p *Plan, wanted *system.Manifest) {
	said := make([]string, len(wanted.Checks))
	failed := make([]error, len(wanted.Checks))
	var all sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i, c := range wanted.Checks {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			ctx, cancel := context.WithTimeout(ctx, checkTime)
			defer cancel()
			said[i], failed[i] = e.run(ctx, append([]string{e.real(c.Argv[0])}, c.Argv[1:]...)...)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				failed[i] = fmt.Errorf("run %s: no end after %s", c.Argv[0], checkTime)
			}
		})
	}
	all.Wait()
	for i, err := range failed {
		if err != nil {
			p.conflict("check", wanted.Checks[i].Name, "%v", err)
		}
	}
}
