package disk

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"cairn/store/failpoint"
)

// fewEntries is how many files and directories are flushed one by one; a tree or a group of additions
// with more is flushed with its whole file system.
const fewEntries = 4

// epoch is the time of everything in the store: one second after the epoch.
var epoch = []unix.Timespec{{Sec: 1}, {Sec: 1}}

func retry(fn func() error) error {
	for {
		if err := fn(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readNames calls fn with the names in a directory, some thousand at a time.
func readNames(path string, fn func([]string) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return namesIn(f, fn)
}

// namesIn is readNames of an open directory.
func namesIn(f *os.File, fn func([]string) error) error {
	for {
		names, err := f.Readdirnames(4096)
		if len(names) > 0 {
			if err := fn(names); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// removeTree deletes what is at path and returns the bytes that this gave back.
// It never follows a link. Nothing there is no error.
func removeTree(path string) (int64, error) {
	at, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(at)
	freed, err := removeAt(at, filepath.Base(path))
	if err != nil {
		return freed, fmt.Errorf("remove %s: %w", path, err)
	}
	return freed, nil
}

func removeAt(at int, name string) (int64, error) {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		if err == unix.ENOENT {
			return 0, nil
		}
		return 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return unlinkAt(at, name, &st)
	}
	freed, err := emptyDir(at, name)
	if err != nil {
		return freed, err
	}
	if err := unix.Unlinkat(at, name, unix.AT_REMOVEDIR); err != nil && err != unix.ENOENT {
		return freed, err
	}
	return freed + st.Blocks*512, nil
}

// unlinkAt removes what is no directory, and returns the bytes that this gave back: none if it has other links.
func unlinkAt(at int, name string, st *unix.Stat_t) (int64, error) {
	if err := unix.Unlinkat(at, name, 0); err != nil && err != unix.ENOENT {
		return 0, err
	}
	if st.Nlink > 2 { // another file's; one link is the pool's, which goes with the next sweep
		return 0, nil
	}
	return st.Blocks * 512, nil
}

func emptyDir(at int, name string) (int64, error) {
	if os.Geteuid() != 0 {
		if err := unix.Fchmodat(at, name, 0o700, 0); err != nil {
			return 0, err
		}
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	var freed int64
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			f, err := removeAt(fd, n)
			failpoint.Hit("disk/remove/entry")
			freed += f
			if err != nil {
				return freed, fmt.Errorf("%s: %w", n, err)
			}
		}
		if err == io.EOF || len(names) == 0 && err == nil {
			return freed, nil
		}
		if err != nil {
			return freed, err
		}
	}
}

// canonicalise gives a tree the metadata of store objects: ours, read-only, mtime 1, no set-id, no attributes.
// It refuses sockets, pipes and devices, and does not follow links.
func canonicalise(path string) error {
	at, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: filepath.Dir(path), Err: err}
	}
	defer unix.Close(at)
	if err := canonicaliseAt(at, filepath.Base(path)); err != nil {
		return fmt.Errorf("canonicalise %s: %w", path, err)
	}
	return nil
}

func canonicaliseAt(at int, name string) error {
	var st unix.Stat_t
	if err := retry(func() error { return unix.Fstatat(at, name, &st, unix.AT_SYMLINK_NOFOLLOW) }); err != nil {
		return err
	}
	if uid, gid := os.Geteuid(), os.Getegid(); int(st.Uid) != uid || int(st.Gid) != gid {
		if err := unix.Fchownat(at, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("change owner of %s: %w", name, err)
		}
	}
	if err := dropAttributes(at, name); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
	case unix.S_IFREG:
		mode := uint32(0o444)
		if st.Mode&0o100 != 0 {
			mode = 0o555
		}
		if err := chmodAt(at, name, &st, mode); err != nil {
			return err
		}
	case unix.S_IFDIR:
		if err := canonicaliseEntries(at, name); err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			st.Mode = unix.S_IFDIR | 0o755 // canonicaliseEntries had to open it
		}
		if err := chmodAt(at, name, &st, 0o555); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s is neither file, directory nor symbolic link", name)
	}
	if st.Mtim.Sec == 1 && st.Mtim.Nsec == 0 {
		return nil
	}
	return unix.UtimesNanoAt(at, name, epoch, unix.AT_SYMLINK_NOFOLLOW)
}

// dropAttributes removes extended attributes, access lists and capabilities among them. Labels of the
// system's own policy stay.
func dropAttributes(at int, name string) error {
	path := fmt.Sprintf("/proc/self/fd/%d/%s", at, name)
	var buf [1024]byte
	n, err := unix.Llistxattr(path, buf[:])
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	list := buf[:max(n, 0)]
	if errors.Is(err, unix.ERANGE) {
		list = make([]byte, 64<<10) // the kernel's limit
		n, err = unix.Llistxattr(path, list)
		list = list[:max(n, 0)]
	}
	if err != nil {
		return fmt.Errorf("list attributes of %s: %w", name, err)
	}
	for attr := range strings.SplitSeq(string(list), "\x00") {
		if attr == "" || attr == "security.selinux" {
			continue
		}
		if err := unix.Lremovexattr(path, attr); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("remove attribute %s of %s: %w", attr, name, err)
		}
	}
	return nil
}

func chmodAt(at int, name string, st *unix.Stat_t, mode uint32) error {
	if st.Mode&0o7777 == mode {
		return nil
	}
	return unix.Fchmodat(at, name, mode, 0)
}

func canonicaliseEntries(at int, name string) error {
	if os.Geteuid() != 0 {
		if err := unix.Fchmodat(at, name, 0o755, 0); err != nil {
			return err
		}
	}
	fd, err := unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := canonicaliseAt(fd, n); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// entriesOf lists a tree's files and directories, at most max; more is false when there were more.
func entriesOf(path string, max int) (list []string, complete bool, err error) {
	stop := errors.New("enough")
	err = filepath.WalkDir(path, func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.Type()&os.ModeSymlink != 0 {
			return nil
		}
		if len(list) == max {
			return stop
		}
		list = append(list, p)
		return nil
	})
	if err == stop {
		return nil, false, nil
	}
	return list, err == nil, err
}

// syncFiles makes files and directories durable, several at a time, which file systems with a journal
// turn into few commits.
func syncFiles(paths []string) error {
	if len(paths) == 1 {
		return syncFile(paths[0])
	}
	var wg sync.WaitGroup
	errs := make([]error, len(paths))
	slots := make(chan struct{}, 16)
	for i, p := range paths {
		slots <- struct{}{}
		wg.Go(func() {
			errs[i] = syncFile(p)
			<-slots
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// within reports whether path is dir or below it.
func within(dir, path string) bool {
	return path == dir || strings.HasPrefix(path, strings.TrimSuffix(dir, "/")+"/")
}
