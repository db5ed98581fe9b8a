package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"cairn/archive"
	"cairn/daemon/protocol"
	"cairn/store"
)

// Of a peer on this machine the daemon can take a file descriptor instead of contents (protocol.OpAddOpen), and reads them itself.
// What a descriptor of a regular file gives its sender can read as well. Below a directory the daemon may read more than
// its sender can, so that only a peer who may do everything hands one over. Nor may a peer's own file system,
// which never answers, keep a thread of the daemon: others than those that are known to be the kernel's own are not read.

// descriptors receives the descriptors that come with a session's bytes.
type descriptors struct {
	wanted bool     // FeatureDescriptor was agreed on
	one    *os.File // that came last and nobody has taken; nil: none
}

// read reads from a socket and keeps the descriptor that comes along. Of several the last stays.
func (d *descriptors) read(c *net.UnixConn, b []byte) (int, error) {
	var oob [64]byte // for one; the kernel closes what has no room
	n, used, _, _, err := c.ReadMsgUnix(b, oob[:unix.CmsgSpace(4)])
	n = max(n, 0) // ReadMsgUnix says -1
	if used == 0 {
		return eof(n, err)
	}
	list, parseErr := unix.ParseSocketControlMessage(oob[:used])
	if parseErr != nil {
		return n, errors.Join(err, parseErr)
	}
	for i := range list {
		fds, _ := unix.ParseUnixRights(&list[i])
		for _, fd := range fds {
			d.drop()
			d.one = os.NewFile(uintptr(fd), "a file that was handed over")
		}
	}
	return eof(n, err)
}

// eof makes the end of a stream what a Reader says.
func eof(n int, err error) (int, error) {
	if n == 0 && err == nil {
		return 0, io.EOF
	}
	return n, err
}

// drop closes the descriptor that nobody has taken.
func (d *descriptors) drop() {
	if d.one != nil {
		d.one.Close()
		d.one = nil
	}
}

// opened is the request of OpAddOpen.
type opened struct {
	addition
}

func readOpen(d *protocol.Decoder) opened {
	o := opened{addition{name: d.Text(protocol.MaxPath)}}
	o.method, o.algo = d.Method()
	o.refs = d.Paths()
	return o
}

// addOpen adds what the descriptor is of, or answers that it wants the contents.
func (x *session) addOpen(ctx context.Context, o opened) (reply, error) {
	if err := x.checkAddition(o.addition); err != nil {
		return nil, err
	}
	f := x.passed.one
	if f == nil || strings.HasSuffix(o.name, ".drv") || !x.readable(f, o.method) {
		return func(e *protocol.Encoder) error {
			e.Bool(false)
			return nil
		}, nil
	}
	info, err := x.server.store.AddOpen(ctx, o.name, o.method, o.algo, o.refs, f)
	if err != nil {
		return nil, err
	}
	return func(e *protocol.Encoder) error {
		e.Bool(true)
		e.KeyedInfo(info)
		return nil
	}, nil
}

// readable reports whether the daemon reads what the peer has opened.
func (x *session) readable(f *os.File, method store.Method) bool {
	fi, err := f.Stat()
	if err != nil {
		return false
	}
	if x.rights == archive.All && fi.IsDir() {
		return method == store.Recursive
	}
	return fi.Mode().IsRegular() && (x.rights == archive.All || onKernelsOwn(f))
}

// onKernelsOwn reports whether a file is on a file system on which reading ends.
func onKernelsOwn(f *os.File) bool {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return false
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC, unix.F2FS_SUPER_MAGIC, zfsMagic:
		return true
	}
	return false
}

// zfsMagic is of a file system outside the kernel's tree.
const zfsMagic = 0x2fc12fc1
