package client

import (
	"fmt"
	"os"
	"path/filepath"
)

// maxSocketPath is what the kernel takes as the name of a unix socket.
const maxSocketPath = 107

// SocketName returns a name for a socket that the kernel takes, however long its path is: a long one is
// reached through its open directory. The name is good until release is called.
func SocketName(path string) (name string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}
