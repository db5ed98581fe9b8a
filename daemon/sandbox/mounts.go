package sandbox

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// While the root is being made it is the working directory: paths inside are used without their slash.

// atCWD is unix.AT_FDCWD as an argument.
const atCWD = ^uintptr(-unix.AT_FDCWD - 1)

// mountRoot puts a small file system of our own where the root will be, in mounts that do not reach the host.
func (p *program) mountRoot(spec *Spec) {
	p.begin(stageFirst, "separate the mounts")
	p.mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	p.begin(stageFirst, "mount a root")
	p.add("", unix.SYS_UMASK, 0)
	p.mount("root", spec.Root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=16m,nr_inodes=100k")
	p.add("enter it", unix.SYS_CHDIR, p.text(spec.Root))
}

func (p *program) mount(source, target, kind string, flags uintptr, data string) {
	p.add("", unix.SYS_MOUNT, p.text(source), p.text(target), p.text(kind), flags, p.text(data))
}

func (p *program) mountProc() {
	p.begin(stageFirst, stepProc)
	p.makeDir("/proc", 0o555)
	p.mount("proc", "proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "")
}

// mountDevices makes a /dev with the devices that are safe for anybody.
func (p *program) mountDevices() {
	p.begin(stageFirst, "mount /dev")
	for _, dir := range []string{"/dev", "/dev/pts", "/dev/shm"} {
		p.makeDir(dir, 0o755)
	}
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		p.makeFile("/dev/" + name)
		p.attach("/dev/"+name, "/dev/"+name, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	}
	p.mount("shm", "dev/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,size=50%")
	p.mount("devpts", "dev/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,mode=0620,ptmxmode=0666")
	for name, target := range map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		p.symlink(target, "/dev/"+name)
	}
}

// mountInputs shows what Spec lists.
// A source is looked at now and mounted later, by somebody who finds another error should it be something else by then.
func (p *program) mountInputs(spec *Spec) error {
	p.begin(stageFirst, "mount inputs")
	for _, m := range spec.Mounts {
		var st unix.Stat_t
		err := unix.Lstat(m.Source, &st)
		if m.Optional && errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return &SetupError{Step: "mount inputs", Text: m.Source + ": " + err.Error(), Hint: hint(err)}
		}
		p.makeParents(m.Target)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK: // is made again rather than followed
			target, err := os.Readlink(m.Source)
			if err != nil {
				return &SetupError{Step: "mount inputs", Text: err.Error()}
			}
			p.symlink(target, m.Target)
			continue
		case unix.S_IFDIR:
			p.makeDir(m.Target, 0o755)
		default:
			p.makeFile(m.Target)
		}
		p.attach(m.Source, m.Target, m.attributes())
	}
	return nil
}

// attributes are those that a mount and all below it must have.
func (m *Mount) attributes() uint64 {
	if m.Writable {
		return unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	}
	return unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_RDONLY
}

// How a mount is copied, and attached elsewhere.
const (
	cloneFlags   = unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_RECURSIVE | unix.AT_SYMLINK_NOFOLLOW
	setattrFlags = unix.AT_EMPTY_PATH | unix.AT_RECURSIVE
)

// attach binds source, with everything mounted below it, on target.
func (p *program) attach(source, target string, attr uint64) {
	set := unix.MountAttr{Attr_set: attr}
	empty := p.text("")
	p.add(source, unix.SYS_OPEN_TREE, atCWD, p.text(source), cloneFlags).keep = true
	p.with(source, unix.SYS_MOUNT_SETATTR, empty, setattrFlags, put(p, set), unsafe.Sizeof(set))
	p.with(target, unix.SYS_MOVE_MOUNT, empty, atCWD, p.text(target[1:]), unix.MOVE_MOUNT_F_EMPTY_PATH)
	p.with("", unix.SYS_CLOSE)
}

// cloneMount is what attach begins with, for a mount that this process makes.
func cloneMount(m *Mount) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, m.Source, cloneFlags)
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", m.Source, err)
	}
	if err := unix.MountSetattr(fd, "", setattrFlags, &unix.MountAttr{Attr_set: m.attributes()}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("restrict mount of %s: %w", m.Source, err)
	}
	return fd, nil
}

// makeParents makes the directories above a path that no call has made yet. They may be there, in something that is mounted.
func (p *program) makeParents(file string) {
	dir := path.Dir(file)
	if p.made[dir] {
		return
	}
	p.makeParents(dir)
	p.makeDir(dir, 0o755)
}

func (p *program) makeDir(dir string, mode uintptr) {
	p.add(dir, unix.SYS_MKDIRAT, atCWD, p.inside(dir), mode).ignore = uintptr(unix.EEXIST)
	p.made[dir] = true
}

// makeFile makes an empty file as a mount point.
func (p *program) makeFile(file string) {
	p.add(file, unix.SYS_MKNODAT, atCWD, p.inside(file), unix.S_IFREG|0o444, 0).ignore = uintptr(unix.EEXIST)
}

func (p *program) symlink(target, name string) {
	p.add(name, unix.SYS_SYMLINKAT, p.text(target), atCWD, p.inside(name))
}

// inside is the address of a path below the root that is being made.
func (p *program) inside(file string) uintptr { return p.text(file[1:]) }

func (p *program) writeFiles(spec *Spec) {
	p.begin(stageFirst, "write files")
	for _, file := range slices.Sorted(maps.Keys(spec.Files)) {
		text := spec.Files[file]
		p.makeParents(file)
		p.add(file, unix.SYS_OPENAT, atCWD, p.inside(file), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC, 0o444).keep = true
		p.write(file, text)
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Symlinks)) {
		p.makeParents(name)
		p.symlink(spec.Symlinks[name], name)
	}
}

// changeRoot makes the new root the only one and seals it.
func (p *program) changeRoot() {
	p.begin(stageFirst, "change root")
	here := p.text(".")
	p.add("", unix.SYS_PIVOT_ROOT, here, here)
	p.add("detach the old root", unix.SYS_UMOUNT2, here, unix.MNT_DETACH)
	set := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	p.add("seal", unix.SYS_MOUNT_SETATTR, atCWD, p.text("/"), 0, put(p, set), unsafe.Sizeof(set))
	p.add("", unix.SYS_CHDIR, p.text("/"))
}
