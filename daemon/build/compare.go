package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cairn/daemon/protocol"
	"cairn/store"
)

// Bounds of what an error says about two results that differ.
const (
	maxDifferences = 20
	shownBytes     = 16 // of each side, from the first difference on
)

// checkSuffix is behind the name of a second result that is kept.
const checkSuffix = ".check"

// compare checks that a second build gave what is there. What differs is part of the error.
// With keep-failed, or for the diff hook, the second result of an output is kept beside the first.
func (a *attempt) compare(ctx context.Context) error {
	var first string
	var all []string
	for _, o := range a.outputs {
		known, same, err := a.known(ctx, o)
		if err != nil {
			return err
		}
		if same {
			continue
		}
		list, err := differences(a.b.store.RealPath(known), a.tempOutput(o), known.String())
		if err != nil {
			return fmt.Errorf("compare outputs of '%s': %w", a.key.drv, err)
		}
		all = append(all, list...)
		text := fmt.Sprintf("derivation '%s' may not be deterministic: output '%s' differs", a.key.drv, known)
		if kept := a.keepResult(ctx, o, known); kept != "" {
			text += fmt.Sprintf(" from '%s'", kept)
		}
		if first == "" {
			first = text
		}
	}
	if first == "" {
		return nil
	}
	return failure(protocol.NotDeterministic, "%s", first+summary(all))
}

// tempOutput is where the copy of an output is before it is registered.
func (a *attempt) tempOutput(o *output) string { return filepath.Join(a.dir("out"), o.name) }

// known returns the output that the first build made, and whether o is the same.
func (a *attempt) known(ctx context.Context, o *output) (store.Path, bool, error) {
	path, err := outputPath(a.facts, a.job.drv, o.name)
	if err != nil {
		return store.Path{}, false, err
	}
	info, err := a.b.store.Info(ctx, path)
	if err != nil {
		return store.Path{}, false, fmt.Errorf("compare outputs of '%s': %w", a.key.drv, err)
	}
	return path, path == o.final && info.NarHash == o.info.NarHash, nil
}

// keepResult puts a second result where the user finds it, if somebody wants it, and has the diff hook look at it.
func (a *attempt) keepResult(ctx context.Context, o *output, known store.Path) string {
	hook := a.b.settings.RunDiffHook && a.b.settings.DiffHook != ""
	if !a.b.settings.KeepFailed && !hook {
		return ""
	}
	kept := a.b.store.RealPath(known) + checkSuffix
	removeLeft(kept)
	if err := os.Rename(a.tempOutput(o), kept); err != nil {
		a.log.note(fmt.Sprintf("warning: the other result is not kept: %v", err))
		return ""
	}
	if hook {
		a.diffHook(ctx, a.b.store.RealPath(known), kept)
	}
	return known.String() + checkSuffix
}

func summary(list []string) string {
	var b strings.Builder
	for i, d := range list {
		if i == maxDifferences {
			fmt.Fprintf(&b, "\n  … and %d more", len(list)-i)
			break
		}
		b.WriteString("\n  " + d)
	}
	return b.String()
}

// differences says in words how tree b differs from tree a; name stands for the trees' root.
// Both trees are copies of ours, which nobody changes meanwhile. Contents are compared only as far as they are
// shown; of more differences than that only the number counts.
func differences(a, b, name string) ([]string, error) {
	x, err := treeEntries(a)
	if err != nil {
		return nil, err
	}
	y, err := treeEntries(b)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(x)
	maps.Copy(all, y)
	var list []string
	for _, rel := range slices.Sorted(maps.Keys(all)) {
		shown := name
		if rel != "." {
			shown += "/" + rel
		}
		d, err := difference(x[rel], y[rel], filepath.Join(a, rel), filepath.Join(b, rel), len(list) < maxDifferences)
		if err != nil {
			return nil, err
		}
		if d != "" {
			list = append(list, shown+": "+d)
		}
	}
	return list, nil
}

func treeEntries(root string) (map[string]fs.FileInfo, error) {
	entries := map[string]fs.FileInfo{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		entries[rel], err = e.Info()
		return err
	})
	return entries, err
}

// difference compares two entries, of which one may be missing.
func difference(x, y fs.FileInfo, a, b string, detail bool) (string, error) {
	switch {
	case x == nil:
		return "only the second build has this " + typeName(y), nil
	case y == nil:
		return "only the first build has this " + typeName(x), nil
	case x.Mode().Type() != y.Mode().Type():
		return fmt.Sprintf("a %s, then a %s", typeName(x), typeName(y)), nil
	case x.Mode()&fs.ModeSymlink != 0:
		return linkDifference(a, b)
	case x.IsDir():
		return "", nil
	}
	var list []string
	if p, q := x.Mode()&0o100 != 0, y.Mode()&0o100 != 0; p != q {
		list = append(list, fmt.Sprintf("%s, then %s", executableName(p), executableName(q)))
	}
	if x.Size() != y.Size() {
		list = append(list, fmt.Sprintf("%d bytes, then %d", x.Size(), y.Size()))
	}
	content, err := contentDifference(a, b, detail)
	if err != nil {
		return "", err
	}
	if content != "" {
		list = append(list, content)
	}
	return strings.Join(list, "; "), nil
}

func typeName(fi fs.FileInfo) string {
	switch {
	case fi.IsDir():
		return "directory"
	case fi.Mode()&fs.ModeSymlink != 0:
		return "symlink"
	}
	return "file"
}

func executableName(x bool) string {
	if x {
		return "executable"
	}
	return "not executable"
}

func linkDifference(a, b string) (string, error) {
	x, err := os.Readlink(a)
	if err != nil {
		return "", err
	}
	y, err := os.Readlink(b)
	if err != nil || x == y {
		return "", err
	}
	return fmt.Sprintf("points to %q, then to %q", x, y), nil
}

// contentDifference finds the first byte in which two files differ.
func contentDifference(a, b string, detail bool) (string, error) {
	f, err := os.Open(a)
	if err != nil {
		return "", err
	}
	defer f.Close()
	g, err := os.Open(b)
	if err != nil {
		return "", err
	}
	defer g.Close()
	x, y := make([]byte, ioSize), make([]byte, ioSize)
	for offset := int64(0); ; {
		n, errX := io.ReadFull(f, x)
		m, errY := io.ReadFull(g, y)
		if i := mismatch(x[:n], y[:m]); i >= 0 {
			if !detail {
				return "contents", nil
			}
			return fmt.Sprintf("from byte %d on %q, then %q", offset+int64(i), clipped(x[i:n]), clipped(y[i:m])), nil
		}
		if ended(errX) || ended(errY) {
			return "", nil
		}
		if err := firstError(errX, errY); err != nil {
			return "", err
		}
		offset += int64(n)
	}
}

func ended(err error) bool { return err == io.EOF || err == io.ErrUnexpectedEOF }

func firstError(list ...error) error {
	for _, err := range list {
		if err != nil {
			return err
		}
	}
	return nil
}

// mismatch returns where two pieces begin to differ, or -1.
func mismatch(x, y []byte) int {
	if bytes.Equal(x, y) {
		return -1
	}
	i := 0
	for i < len(x) && i < len(y) && x[i] == y[i] {
		i++
	}
	return i
}

func clipped(b []byte) []byte { return b[:min(len(b), shownBytes)] }
