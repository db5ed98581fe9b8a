package sandbox

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

const serverName = "cairn-sandbox"

// maxImage bounds an image. It takes addresses, no memory.
const maxImage = 1 << 30

// hello is what a fork server's maker sends to the daemon.
type hello struct {
	pid  uint64
	base uint64 // where it maps images
}

// span is a part of the memory.
type span struct{ from, to uintptr }

// Init must be the first thing main does: it returns at once unless this process was started to make a fork server, which it then does.
func Init() {
	if len(os.Args) != 1 || os.Args[0] != serverName {
		return
	}
	runtime.LockOSThread()
	if err := makeServer(); err != nil {
		fmt.Fprintf(os.Stderr, "sandbox: make the fork server: %v\n", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// makeServer forks the server, as another child of this process's parent.
func makeServer() error {
	d, err := newDesk()
	if err != nil {
		return err
	}
	memory, err := private(uintptr(unsafe.Pointer(d)))
	if err != nil {
		return err
	}
	unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(unsafe.StringData(serverName+"\x00"))), 0, 0, 0) // for those who list processes
	// A handler would run in the server; it is not missed here.
	all := ^uint64(0)
	if _, errno := raw(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), 0, unsafe.Sizeof(all), 0, 0); errno != 0 {
		return fmt.Errorf("block signals: %w", errno)
	}
	pid, errno := d.fork(memory)
	if errno != 0 {
		return fmt.Errorf("fork: %w", errno)
	}
	_, err = unix.Write(serverFD, bytesOf([]hello{{uint64(pid), uint64(uintptr(unsafe.Pointer(d.image)))}}))
	return err
}

func newDesk() (*desk, error) {
	at, err := unix.MmapPtr(-1, 0, nil, unsafe.Sizeof(desk{}), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("get memory: %w", err)
	}
	d := (*desk)(at)
	d.prepare()
	at, err = unix.MmapPtr(-1, 0, nil, maxImage, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve addresses: %w", err)
	}
	d.image = (*header)(at)
	return d, nil
}

// private lists what the server does without: all memory of this process but the program's text and constants, and the desk.
// A program with shared libraries (tests under the race detector) has memory that the kernel writes to: it keeps all.
func private(desk uintptr) ([]span, error) {
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var list []span
	own, _ := os.Readlink("/proc/self/exe")
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var s span
		var rights, offset, device, inode, file string
		fmt.Sscanf(lines.Text(), "%x-%x %s %s %s %s %s", &s.from, &s.to, &rights, &offset, &device, &inode, &file)
		switch {
		case s.to == 0:
			return nil, errors.New("/proc/self/maps is not readable")
		case strings.HasPrefix(file, "/") && file != own && !strings.HasPrefix(own, file):
			return nil, nil
		case strings.HasPrefix(file, "[v") || s.from <= desk && desk < s.to:
		case strings.HasPrefix(file, "/") && !strings.Contains(rights, "w"):
		default:
			list = append(list, s)
		}
	}
	return list, nil
}
