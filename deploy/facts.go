package deploy

import (
	"context"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/store/profile"
)

// Facts are what the coordinator learns of a machine before it changes anything.
type Facts struct {
	HostName    string `json:"hostName"`
	Arch        string `json:"arch"` // as uname has it
	Kernel      string `json:"kernel"`
	OS          string `json:"os,omitempty"` // PRETTY_NAME of os-release
	StoreDir    string `json:"storeDir"`
	System      string `json:"system,omitempty"` // the current one
	Generation  int    `json:"generation,omitempty"`
	FreeBytes   int64  `json:"freeBytes"` // where the store is
	Daemon      string `json:"daemon,omitempty"`
	DaemonError string `json:"daemonError,omitempty"`
}

func (a *agent) facts(ctx context.Context) (*Facts, error) {
	f := &Facts{StoreDir: a.Layout.Dir.String(), OS: osName("/etc/os-release")}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return nil, err
	}
	f.HostName, f.Arch, f.Kernel = unix.ByteSliceToString(u.Nodename[:]), unix.ByteSliceToString(u.Machine[:]), unix.ByteSliceToString(u.Release[:])
	var fs unix.Statfs_t
	if unix.Statfs(a.Layout.RealDir, &fs) == nil {
		f.FreeBytes = int64(fs.Bavail) * fs.Bsize
	}
	if g, err := profile.Open(a.Layout.StateDir + "/profiles/system").Current(); err == nil {
		f.System, f.Generation = g.Path, g.Number
	}
	d, err := a.dial(ctx)
	if err != nil {
		f.DaemonError = err.Error()
		return f, nil
	}
	f.Daemon = d.Server().Name
	return f, nil
}

// osName reads the name of the distribution.
func osName(file string) string {
	b, _ := os.ReadFile(file)
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
			return strings.Trim(v, `"'`)
		}
	}
	return ""
}
