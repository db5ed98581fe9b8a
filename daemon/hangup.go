package daemon

import (
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// watch calls gone when the peer hangs up before stop is called, which waits.
// It looks without reading, so the next request is safe. What cannot be watched is not: the next write fails.
func watch(c io.ReadWriteCloser, gone func()) (stop func()) {
	switch c := c.(type) {
	case *net.UnixConn:
		return watchSocket(c, gone)
	case stdio:
		return watchFile(c.in, gone)
	}
	return func() {}
}

// watchSocket waits in the network poller, which costs no thread.
func watchSocket(c *net.UnixConn, gone func()) func() {
	raw, err := c.SyscallConn()
	if err != nil {
		return func() {}
	}
	c.SetReadDeadline(time.Time{})
	var wg sync.WaitGroup
	wg.Go(func() {
		raw.Read(func(fd uintptr) bool {
			var b [1]byte
			n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			if err == unix.EAGAIN || err == unix.EINTR {
				return false
			}
			if n <= 0 {
				gone()
			}
			return true
		})
	})
	return func() {
		c.SetReadDeadline(time.Unix(1, 0))
		wg.Wait()
		c.SetReadDeadline(time.Time{})
	}
}

// watchFile waits in a thread; there is one such session per process.
func watchFile(f *os.File, gone func()) func() {
	raw, err := f.SyscallConn()
	if err != nil {
		return func() {}
	}
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return func() {}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		raw.Control(func(fd uintptr) {
			if pollHangup(int32(fd), int32(bell)) {
				gone()
			}
		})
	})
	return func() {
		unix.Write(bell, []byte{1, 0, 0, 0, 0, 0, 0, 0})
		wg.Wait()
		unix.Close(bell)
	}
}

// pollHangup waits until fd hangs up, which it reports, or the bell rings.
func pollHangup(fd, bell int32) bool {
	p := []unix.PollFd{{Fd: fd, Events: unix.POLLRDHUP}, {Fd: bell, Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, -1)
		if err == unix.EINTR {
			continue
		}
		return err == nil && p[1].Revents == 0
	}
}
