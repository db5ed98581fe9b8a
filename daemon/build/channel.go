package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"cairn/archive"
	"cairn/daemon/protocol"
)

// Bounds of an archive that is unpacked.
const (
	maxTarEntries = 1 << 21
	maxTarBytes   = 64 << 30
)

// unpackChannel is "builtin:unpack-channel": the variable "src" names a tar archive, packed or not, with a single
// file or directory at its top, which becomes "channelName" in the output.
func (a *attempt) unpackChannel(ctx context.Context, out string) error {
	src, err := a.variable("src")
	if err != nil {
		return err
	}
	name, err := a.variable("channelName")
	if err != nil {
		return err
	}
	if name == "" || checkFileName(name) != nil || strings.ContainsRune(name, 0) {
		return failure(protocol.InputRejected, "derivation '%s': channelName is not allowed to be %q, which is no file name", a.key.drv, name)
	}
	real, err := a.locate(src)
	if err != nil {
		return err
	}
	f, err := os.Open(real)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(out)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := untar(ctx, root, f); err != nil {
		return fmt.Errorf("unpack '%s': %w", src, err)
	}
	entries, err := os.ReadDir(out)
	if err != nil {
		return err
	}
	if len(entries) != 1 {
		return fmt.Errorf("channel tarball '%s' contains more than one file", src)
	}
	return root.Rename(entries[0].Name(), name)
}

// magics are how packed archives begin.
var magics = []struct{ start, compression string }{
	{"\x1f\x8b", "gzip"}, {"BZh", "bzip2"}, {"\xfd7zXZ\x00", "xz"}, {"\x28\xb5\x2f\xfd", "zstd"}, {"LZIP", "lzip"}, {"\x04\x22\x4d\x18", "lz4"},
}

// unpacked undoes the packing that the first bytes tell of.
func unpacked(r *bufio.Reader) (io.ReadCloser, error) {
	start, _ := r.Peek(6)
	for _, m := range magics {
		if !bytes.HasPrefix(start, []byte(m.start)) {
			continue
		}
		c, err := archive.ParseCompression(m.compression)
		if err != nil {
			return nil, err
		}
		return archive.NewDecompressor(r, c)
	}
	return io.NopCloser(r), nil
}

// untar writes an archive's entries below root, which nothing leaves: names are made relative, links are not followed
// out of it. Modes shrink to what a store object keeps; devices and the like are left out.
func untar(ctx context.Context, root *os.Root, r io.Reader) error {
	plain, err := unpacked(bufio.NewReaderSize(r, ioSize))
	if err != nil {
		return err
	}
	defer plain.Close()
	t := tar.NewReader(&bounded{r: plain, left: maxTarBytes, alive: func() {}})
	for range maxTarEntries {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = untarEntry(root, h, t)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("it has more than %d entries", maxTarEntries)
}

func untarEntry(root *os.Root, h *tar.Header, r io.Reader) error {
	name := tarName(h.Name)
	if name == "." {
		return nil
	}
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return err
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return nil
	case tar.TypeSymlink:
		root.Remove(name)
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		root.Remove(name)
		return root.Link(tarName(h.Linkname), name)
	case tar.TypeReg, tar.TypeGNUSparse:
		return untarFile(root, name, h, r)
	}
	return nil
}

func untarFile(root *os.Root, name string, h *tar.Header, r io.Reader) error {
	mode := os.FileMode(0o644)
	if h.Mode&0o100 != 0 {
		mode = 0o755
	}
	root.Remove(name)
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, r); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.Close()
}

// tarName makes a name relative to the archive's top, which is ".".
func tarName(name string) string {
	clean := strings.TrimPrefix(path.Clean("/"+name), "/")
	if clean == "" {
		return "."
	}
	return clean
}
