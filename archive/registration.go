package archive

import (
	"bufio"
	"fmt"
	"io"
	"strconv"

	"cairn/store"
)

// A registration is Nix's line form of what is known of objects ("nix-store --dump-db"):
//
//	path \n narHash in base 16 \n narSize \n deriver or empty \n n \n n references, one per line
//
// Signatures and content addresses are not in it.

// WriteRegistration writes the descriptions of objects.
func WriteRegistration(w io.Writer, infos []*store.Info) error {
	out := bufio.NewWriter(w)
	for _, i := range infos {
		refs := store.SortPaths(append([]store.Path(nil), i.References...))
		fmt.Fprintf(out, "%s\n%s\n%d\n%s\n%d\n", i.Path, i.NarHash.Hex(), i.NarSize, i.Deriver, len(refs))
		for _, ref := range refs {
			fmt.Fprintln(out, ref)
		}
	}
	return out.Flush()
}

// ReadRegistration reads descriptions up to the end of r and calls fn for each.
func ReadRegistration(r io.Reader, dir store.Dir, fn func(*store.Info) error) error {
	in := &lines{scan: bufio.NewScanner(r), dir: dir}
	in.scan.Buffer(nil, maxPathLen)
	for {
		info, err := in.info()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = fn(info)
		}
		if err != nil {
			return fmt.Errorf("read registration: line %d: %w", in.count, err)
		}
	}
}

type lines struct {
	scan  *bufio.Scanner
	dir   store.Dir
	count int
}

func (l *lines) next() (string, error) {
	if l.scan.Scan() {
		l.count++
		return l.scan.Text(), nil
	}
	if err := l.scan.Err(); err != nil {
		return "", err
	}
	return "", io.EOF
}

func (l *lines) info() (*store.Info, error) {
	first, err := l.next()
	if err != nil {
		return nil, err
	}
	info := &store.Info{}
	if info.Path, err = l.dir.ParsePath(first); err != nil {
		return nil, err
	}
	if err := l.details(info); err != nil {
		return nil, unexpected(err)
	}
	return info, nil
}

func (l *lines) details(info *store.Info) error {
	var texts [4]string
	var err error
	for i := range texts {
		if texts[i], err = l.next(); err != nil {
			return err
		}
	}
	if info.NarHash, err = store.ParseHash(texts[0], store.SHA256); err != nil {
		return err
	}
	if info.NarSize, err = strconv.ParseInt(texts[1], 10, 64); err != nil || info.NarSize < 0 {
		return fmt.Errorf("size %q is not one: %w", clip(texts[1]), ErrCorrupt)
	}
	if texts[2] != "" {
		if info.Deriver, err = l.dir.ParsePath(texts[2]); err != nil {
			return err
		}
	}
	n, err := strconv.Atoi(texts[3])
	if err != nil || n < 0 || n > maxReferences {
		return fmt.Errorf("%q references: %w", clip(texts[3]), ErrCorrupt)
	}
	for range n {
		s, err := l.next()
		if err != nil {
			return err
		}
		ref, err := l.dir.ParsePath(s)
		if err != nil {
			return err
		}
		info.References = append(info.References, ref)
	}
	return nil
}
