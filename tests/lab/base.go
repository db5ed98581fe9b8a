package lab

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// basePackages are what a host has beyond debootstrap's minimal set: what a plain Debian server brings,
// and the programs that the service library drives.
var basePackages = []string{
	"systemd", "systemd-sysv", "dbus", "udev", "libpam-systemd", "systemd-resolved", "openssh-server", "sudo",
	"nftables", "iproute2", "procps", "ca-certificates", "curl", "nginx-light", "rsync", "chrony",
}

// idleUnits do not start by themselves: the services are there for ours to take over,
// the timers would only disturb a test.
var idleUnits = []string{
	"nginx.service", "rsync.service", "chrony.service", "systemd-networkd-wait-online.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "fstrim.timer", "e2scrub_all.timer", "e2scrub_reap.service",
}

// baseVersion changes whenever prepareBase does.
const baseVersion = "2"

// CacheDir is where base systems are kept.
func CacheDir() string {
	if dir := os.Getenv("CAIRN_LAB_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/cairn/lab"
}

// Base returns the base system of a Debian release, making it if it is not cached: about 80 seconds and 330 MB.
// The empty suite is the default one.
func Base(ctx context.Context, suite string, log io.Writer) (string, error) {
	if suite == "" {
		suite = os.Getenv("CAIRN_LAB_SUITE")
	}
	if suite == "" {
		suite = "trixie"
	}
	return cached(suite, baseVersion+"\n"+suite+"\n"+strings.Join(basePackages, "\n"), func(tmp string) error {
		if log != nil {
			fmt.Fprintf(log, "lab: making the base system of %s in %s, once; about 80 s\n", suite, CacheDir())
		}
		if err := debootstrap(ctx, suite, tmp, "--include="+strings.Join(basePackages, ",")); err != nil {
			return err
		}
		return prepareBase(ctx, tmp)
	})
}

// cached returns the tree name in the cache, making it if it is not there or was made from another recipe.
// It is made beside its place and renamed: a tree is there whole or not at all.
func cached(name, recipe string, produce func(tmp string) error) (string, error) {
	key := sha256.Sum256([]byte(recipe))
	dir := filepath.Join(CacheDir(), fmt.Sprintf("%s-%x", name, key[:6]))
	if exists(dir) {
		return dir, nil
	}
	if err := os.MkdirAll(CacheDir(), 0o755); err != nil {
		return "", err
	}
	lock, err := lockFile(dir+".lock", unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if exists(dir) {
		return dir, nil
	}
	tmp := dir + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	if err := produce(tmp); err != nil {
		return "", fmt.Errorf("make %s: %w", dir, err)
	}
	if err := unmountBelow(tmp); err != nil {
		return "", err
	}
	return dir, os.Rename(tmp, dir)
}

func prepareBase(ctx context.Context, root string) error {
	for _, pattern := range []string{"etc/ssh/ssh_host_*", "var/cache/apt/archives/*.deb", "var/lib/apt/lists/*_*"} {
		names, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return err
		}
		for _, n := range names {
			os.Remove(n)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/fstab"), nil, 0o644); err != nil {
		return err
	}
	systemctl := func(args ...string) error {
		return run(ctx, append([]string{"systemctl", "--root=" + root}, args...)...)
	}
	for _, u := range idleUnits {
		if !exists(filepath.Join(root, "lib/systemd/system", u)) {
			continue
		}
		if err := systemctl("disable", u); err != nil {
			return err
		}
	}
	return systemctl("enable", "systemd-networkd.service", "ssh.service")
}

// Mirror returns the address of the Debian archive that this machine's apt uses, as the files below etcApt say;
// not that of the security archive or of other people's.
func Mirror(etcApt string) (string, error) {
	files, _ := filepath.Glob(filepath.Join(etcApt, "sources.list.d", "*"))
	slices.Sort(files)
	fallback := "" // a mirror under another name
	for _, f := range append(files, filepath.Join(etcApt, "sources.list")) {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		var uris []string
		switch filepath.Ext(f) {
		case ".sources":
			uris = deb822URIs(string(b))
		case ".list":
			uris = lineURIs(string(b))
		}
		for _, u := range uris {
			u = strings.TrimSuffix(u, "/")
			if strings.HasSuffix(u, "/debian") {
				return u, nil
			}
			if fallback == "" && strings.Contains(u, "debian") && !strings.Contains(u, "security") {
				fallback = u
			}
		}
	}
	if fallback != "" {
		return fallback, nil
	}
	return "", errors.New("no Debian archive in " + etcApt + "/sources.list.d: add one as sources.list(5) says")
}

// deb822URIs reads the URIs of enabled binary stanzas.
func deb822URIs(text string) []string {
	var uris []string
	for stanza := range strings.SplitSeq(text, "\n\n") {
		fields := map[string]string{}
		last := ""
		for line := range strings.Lines(stanza) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			if strings.HasPrefix(line, " ") || strings.HasPrefix(line, "\t") {
				fields[last] += " " + strings.TrimSpace(line)
				continue
			}
			k, v, _ := strings.Cut(line, ":")
			last = strings.ToLower(strings.TrimSpace(k))
			fields[last] = strings.TrimSpace(v)
		}
		if strings.EqualFold(fields["enabled"], "no") || !slices.Contains(strings.Fields(fields["types"]), "deb") {
			continue
		}
		uris = append(uris, strings.Fields(fields["uris"])...)
	}
	return uris
}

// lineURIs reads the URIs of "deb [options] URI suite component…" lines.
func lineURIs(text string) []string {
	var uris []string
	lines := bufio.NewScanner(strings.NewReader(text))
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		rest, ok := strings.CutPrefix(line, "deb ")
		if !ok {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, rest, _ = strings.Cut(rest, "]")
		}
		if f := strings.Fields(rest); len(f) > 0 {
			uris = append(uris, f[0])
		}
	}
	return uris
}
