package activate

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"cairn/services/system"
)

// This file refuses plans that take the way into the host. What is protected:
//
//   - a server that lets people in (a unit whose program is sshd, or that the system calls protected):
//     when one runs, or the session came over ssh, one must run afterwards;
//     its configuration must pass its own test; and its unit must leave
//     connections alone when it stops (KillMode=process)
//   - sudoers: every new file must pass visudo, and belong to root
//   - PAM: every module that a new file names must be there
//
// AllowLockout switches the first one off.

func (e *Engine) protect(ctx context.Context, p *Plan, current, wanted *system.Manifest, f *Facts) {
	if e.opts.Root != "/" {
		return
	}
	for i := range wanted.Units {
		if u := &wanted.Units[i]; entrance(u) {
			e.checkEntrance(ctx, p, wanted, u)
		}
	}
	if !e.opts.AllowLockout {
		e.checkWayIn(ctx, p, wanted, f)
	}
	for _, file := range wanted.Etc {
		switch {
		case file.Path == "sudoers" || strings.HasPrefix(file.Path, "sudoers.d/"):
			e.checkSudoers(ctx, p, file)
		case file.Path == "pam.conf" || strings.HasPrefix(file.Path, "pam.d/"):
			e.checkPAM(p, wanted, file)
		}
	}
}

// entrance reports whether a unit lets people in.
func entrance(u *system.Unit) bool {
	return u.Protected || sshServer(u) != nil
}

// sshServer returns the command line of a unit whose program is an ssh server.
func sshServer(u *system.Unit) []string {
	for _, line := range settings(u.Text, "ExecStart") {
		program, _ := execProgram(line)
		if filepath.Base(program) == "sshd" {
			return splitCommand(strings.TrimLeft(line, "-@:+!|"))
		}
	}
	return nil
}

func (e *Engine) checkEntrance(ctx context.Context, p *Plan, wanted *system.Manifest, u *system.Unit) {
	if u.Type() == "service" && !u.Template() && !slices.Contains(settings(u.Text, "KillMode"), "process") {
		p.conflict("way in", u.Name, "a restart would cut connections; its unit needs KillMode=process")
	}
	argv := sshServer(u)
	if argv == nil {
		return
	}
	os.Mkdir("/run/sshd", 0o755) // Debian's sshd refuses to test without it
	if said, err := e.run(ctx, testCommand(argv, wanted, e.real)...); err != nil {
		p.conflict("way in", u.Name, "its configuration does not pass: %v", err)
	} else if said != "" {
		p.Notes = append(p.Notes, u.Name+": "+said)
	}
}

// testCommand turns the command line of an sshd into one that only tests, with the configuration that will be there.
func testCommand(argv []string, wanted *system.Manifest, real func(string) string) []string {
	out := []string{real(argv[0]), "-t"}
	for i := 1; i < len(argv); i++ {
		a := argv[i]
		if a == "-D" || a == "-e" || a == "-i" || a == "-q" || strings.HasPrefix(a, "$") {
			continue
		}
		for _, f := range wanted.Etc {
			if a == "/etc/"+f.Path {
				a = f.Source
			}
		}
		if strings.HasPrefix(a, "/") {
			a = real(a)
		}
		out = append(out, a)
	}
	return out
}

// checkWayIn wants an ssh server to run afterwards when one runs now.
func (e *Engine) checkWayIn(ctx context.Context, p *Plan, wanted *system.Manifest, f *Facts) {
	running := e.runningServers(ctx)
	if len(running) == 0 && !f.Session.SSH {
		return
	}
	for i := range wanted.Units {
		if u := &wanted.Units[i]; entrance(u) && (u.Start || f.Units[u.Name].running()) {
			p.Connection = "an ssh server runs afterwards: " + u.Name
			return
		}
	}
	for _, name := range running {
		stops := func(u UnitChange) bool { return u.Name == name && u.Action == "stop" }
		if wanted.Unit(name) == nil && !slices.ContainsFunc(p.Units, stops) {
			p.Connection = "an ssh server keeps running: " + name
			return
		}
	}
	p.conflict("way in", "ssh", "no ssh server would run afterwards (now: %s); add one to the system", strings.Join(running, ", "))
}

// runningServers lists active units of the host that are ssh servers, by program or by socket.
func (e *Engine) runningServers(ctx context.Context) []string {
	units, err := e.systemd.Loaded(ctx, "*ssh*")
	if err != nil {
		return nil
	}
	held := map[string]bool{}
	for _, h := range holders() {
		if h.name == "sshd" {
			held[h.unit] = true
		}
	}
	status, err := e.systemd.Status(ctx, units...)
	if err != nil {
		return nil
	}
	for name, st := range status {
		if strings.HasSuffix(name, ".socket") && st.ActiveState == "active" && !strings.HasPrefix(name, "sshd-unix-local") && !strings.HasPrefix(name, "sshd-vsock") {
			held[name] = true
		}
	}
	return slices.DeleteFunc(sortedKeys(held), func(n string) bool { return n == "" || strings.HasSuffix(n, ".scope") })
}

func (e *Engine) checkSudoers(ctx context.Context, p *Plan, file system.EtcFile) {
	if file.User != "" && file.User != "root" {
		p.conflict("way in", "/etc/"+file.Path, "belongs to %s; sudo wants root", file.User)
	}
	visudo := lookProgram("visudo")
	if !filepath.IsAbs(visudo) {
		p.Notes = append(p.Notes, "/etc/"+file.Path+" is not checked: the host has no sudo")
		return
	}
	if _, err := e.run(ctx, visudo, "-c", "-f", e.real(file.Source)); err != nil {
		p.conflict("way in", "/etc/"+file.Path, "sudo would refuse it: %v", err)
	}
}

var pamModule = regexp.MustCompile(`(?m)^[^#\n-][^#\n]*?([A-Za-z0-9_./-]+\.so)\b`) // a leading hyphen makes a module optional

func (e *Engine) checkPAM(p *Plan, wanted *system.Manifest, file system.EtcFile) {
	data, err := os.ReadFile(e.real(file.Source))
	if err != nil {
		p.conflict("way in", "/etc/"+file.Path, "%v", err)
		return
	}
	for _, m := range pamModule.FindAllStringSubmatch(string(data), -1) {
		if !pamModuleExists(m[1]) {
			p.conflict("way in", "/etc/"+file.Path, "names the module %s, which is not on the host", m[1])
		}
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if len(f) != 2 || f[0] != "@include" {
			continue
		}
		declared := slices.ContainsFunc(wanted.Etc, func(o system.EtcFile) bool { return o.Path == "pam.d/"+f[1] })
		if _, err := os.Stat("/etc/pam.d/" + f[1]); err != nil && !declared {
			p.conflict("way in", "/etc/"+file.Path, "includes %s, which is not there", f[1])
		}
	}
}

func pamModuleExists(name string) bool {
	if filepath.IsAbs(name) {
		_, err := os.Stat(name)
		return err == nil
	}
	for _, dir := range []string{"/lib/security/", "/usr/lib/security/", "/lib/*/security/", "/usr/lib/*/security/"} {
		if found, _ := filepath.Glob(dir + name); len(found) > 0 {
			return true
		}
	}
	return false
}
