package lab

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// diskSize is that of the disk of a host with a kernel of its own; the file has holes.
const diskSize = "2G"

// umlInit is PID 1 of a host with a kernel of its own, until systemd is. It names the card as nspawn would,
// and on a new disk puts what makes it this host in its place.
const umlInit = `#!/bin/sh
PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -n -t proc proc /proc
ip link set vec0 name host0
if [ ! -e /var/lib/lab-seeded ]; then
	mount -n -t hostfs none /mnt && tar -C /mnt -cf - . | tar -C / --no-overwrite-dir -xpf - && umount -n /mnt && : > /var/lib/lab-seeded && sync
fi
exec /sbin/init
`

// umlPrograms are what a host with a kernel of its own takes beside what a lab takes anyway.
var umlPrograms = []program{{"mke2fs", "e2fsprogs"}, {"debugfs", "e2fsprogs"}, {"xz", "xz-utils"}}

// image returns the disk image of a base system, making it if it is not cached: some seconds.
// Hosts never write to it: each has a copy-on-write file of its own.
func image(ctx context.Context, base string) (string, error) {
	key := sha256.Sum256([]byte(base + "\n" + diskSize + "\n" + umlInit))
	img := filepath.Join(CacheDir(), fmt.Sprintf("%s-%x.ext4", filepath.Base(base), key[:6]))
	if exists(img) {
		return img, nil
	}
	lock, err := lockFile(img+".lock", unix.LOCK_EX)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if exists(img) {
		return img, nil
	}
	err = replace(img, 0o444, func(tmp *os.File) error { return fillImage(ctx, tmp.Name(), base) })
	if err != nil {
		return "", fmt.Errorf("make disk image %s: %w", img, err)
	}
	return img, nil
}

func fillImage(ctx context.Context, img, base string) error {
	if err := run(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", base, img, diskSize); err != nil {
		return err
	}
	script := img + ".init"
	if err := os.WriteFile(script, []byte(umlInit), 0o755); err != nil {
		return err
	}
	defer os.Remove(script)
	cmd := exec.CommandContext(ctx, "debugfs", "-w", "-f", "-", img)
	cmd.Stdin = strings.NewReader("write " + script + " lab-init\nsif lab-init mode 0100755\nsif lab-init uid 0\nsif lab-init gid 0\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("write init: %w: %s", err, out)
	}
	return nil
}

// port is the end of the host's link that its kernel holds.
func (h *Host) port() string { return "vk-" + h.machine() }

// uml is the command line of the host's kernel, and of the systemd that it starts.
// A rename does not bring the data to disk by itself, as the default would have it: programs must ask for it.
func (h *Host) uml() []string {
	return []string{
		h.lab.kernel, "mem=512M", "umid=" + h.Name, "uml_dir=" + h.dir() + "/", "seccomp=on",
		"con0=null,fd:1", "con=null", "ssl=null", "hostfs=" + h.root(),
		"ubd0=" + filepath.Join(h.dir(), "disk") + "," + h.lab.image, "root=/dev/ubda", "rootfstype=ext4", "rootflags=noauto_da_alloc", "rw", "init=/lab-init",
		fmt.Sprintf("vec0:transport=raw,ifname=%s,depth=64,gro=1,mac=02:ca:fe:42:00:%02x", h.port(), h.number),
		"quiet", "systemd.show_status=0",
	}
}

// plug makes the host's link, whose one end its kernel opens.
func (h *Host) plug(ctx context.Context) error {
	if h.hasLink() {
		return nil
	}
	for _, args := range [][]string{
		{"link", "add", h.link(), "type", "veth", "peer", "name", h.port()},
		{"link", "set", h.link(), "master", "br0", "up"},
		{"link", "set", h.port(), "up"},
	} {
		if err := h.lab.ip(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}
