package activate

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cairn/services/system"
)

// listener is a socket of the host that others can reach.
type listener struct {
	port  system.Port
	inode string
}

// checkPorts finds wanted ports that somebody holds who will not let go of them.
func (e *Engine) checkPorts(p *Plan, wanted *system.Manifest, f *Facts) {
	if len(wanted.Ports) == 0 || e.opts.Root != "/" {
		return
	}
	held := listeners()
	var owners map[string]holder
	for _, want := range wanted.Ports {
		for _, l := range held {
			if !l.port.Overlaps(want) {
				continue
			}
			if owners == nil {
				owners = holders()
			}
			h, known := owners[l.inode]
			if known && p.letsGo(h, want) {
				continue
			}
			p.conflict("port", fmt.Sprintf("%d/%s", want.Number, protocol(want)), "wanted by %s, is held by %s; stop it, or take another port", want.Unit, h)
			break
		}
	}
}

// letsGo reports whether a holder is the unit that wants the port, or one that the plan stops or restarts.
func (p *Plan) letsGo(h holder, want system.Port) bool {
	if h.pid == 1 {
		return strings.HasSuffix(want.Unit, ".socket") || p.stopsSocket()
	}
	if h.unit == want.Unit {
		return true
	}
	for _, u := range p.Units {
		if u.Name == h.unit {
			return u.Action == "stop" || u.Action == "restart"
		}
	}
	return false
}

func (p *Plan) stopsSocket() bool {
	for _, u := range p.Units {
		if strings.HasSuffix(u.Name, ".socket") && u.Active && (u.Action == "stop" || u.Action == "restart") {
			return true
		}
	}
	return false
}

func protocol(p system.Port) string {
	if p.Protocol == "" {
		return "tcp"
	}
	return p.Protocol
}

// listeners reads what listens in this network namespace.
func listeners() []listener {
	var out []listener
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open("/proc/net/" + name)
		if err != nil {
			continue
		}
		out = append(out, parseListeners(f, strings.TrimSuffix(name, "6"))...)
		f.Close()
	}
	return out
}

// parseListeners parses a table of /proc/net. Lines it does not understand are left out.
func parseListeners(r io.Reader, protocol string) []listener {
	want := map[string]string{"tcp": "0A", "udp": "07"}[protocol]
	var out []listener
	s := bufio.NewScanner(r)
	for s.Scan() {
		f := strings.Fields(s.Text())
		if len(f) < 10 || f[3] != want {
			continue
		}
		host, port, ok := strings.Cut(f[1], ":")
		n, err := strconv.ParseUint(port, 16, 16)
		addr, ok2 := parseAddress(host)
		if !ok || err != nil || !ok2 {
			continue
		}
		out = append(out, listener{port: system.Port{Number: int(n), Protocol: protocol, Address: addr}, inode: f[9]})
	}
	return out
}

// parseAddress parses the kernel's form: words of four bytes, each in the machine's order (little-endian here).
func parseAddress(s string) (string, bool) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b)%4 != 0 {
		return "", false
	}
	for i := 0; i < len(b); i += 4 {
		b[i], b[i+1], b[i+2], b[i+3] = b[i+3], b[i+2], b[i+1], b[i]
	}
	a, ok := netip.AddrFromSlice(b)
	return a.Unmap().String(), ok
}

// holder is a process that has a socket.
type holder struct {
	pid        int
	name, unit string
}

func (h holder) String() string {
	switch {
	case h.pid == 0:
		return "a process that cannot be seen from here"
	case h.pid == 1:
		return "systemd, for a socket unit"
	case h.unit != "":
		return fmt.Sprintf("%s (process %d of %s)", h.name, h.pid, h.unit)
	}
	return fmt.Sprintf("%s (process %d)", h.name, h.pid)
}

// holders maps the inodes of sockets to processes. Of several, the one with the lowest number counts,
// but systemd only when there is no other: it keeps the sockets that it passed on.
func holders() map[string]holder {
	out := map[string]holder{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil {
			continue
		}
		fds, _ := os.ReadDir(dir + "/fd")
		for _, fd := range fds {
			target, err := os.Readlink(dir + "/fd/" + fd.Name())
			inode, ok := strings.CutPrefix(target, "socket:[")
			if err != nil || !ok {
				continue
			}
			inode = strings.TrimSuffix(inode, "]")
			if have, taken := out[inode]; !taken || have.pid == 1 || pid != 1 && pid < have.pid {
				out[inode] = holder{pid: pid, name: processName(dir), unit: processUnit(dir)}
			}
		}
	}
	return out
}

func processName(dir string) string {
	b, _ := os.ReadFile(dir + "/comm")
	return strings.TrimSpace(string(b))
}

// processUnit reads the unit from the process's control group.
func processUnit(dir string) string {
	b, _ := os.ReadFile(dir + "/cgroup")
	for line := range strings.Lines(string(b)) {
		path, ok := strings.CutPrefix(strings.TrimSpace(line), "0::")
		if !ok {
			continue
		}
		parts := strings.Split(path, "/")
		for i := len(parts) - 1; i >= 0; i-- {
			if strings.HasSuffix(parts[i], ".service") || strings.HasSuffix(parts[i], ".socket") || strings.HasSuffix(parts[i], ".scope") {
				return parts[i]
			}
		}
	}
	return ""
}
