package build

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// makeTree is "builtin:tree": the variable "tree" is a JSON object of what stands where.
//
//	{"<relative path>": {"symlink": "<target>"}
//	                  | {"text": "<contents>", "executable": bool}
//	                  | {"file": "<path in the store>", "executable": bool}    a copy; executable as the source unless said
//	                  | {"tree": "<directory in the store>"}                    every leaf below it becomes a link to it
//	                  | {"trees": ["<directory in the store>", …]}}             the same of several
//
// Trees may overlap with each other and with other entries as long as no two different leaves meet.
// The path "" is the output itself: a union, or a file or a link that then is the only entry.
func (a *attempt) makeTree(ctx context.Context, out string) error {
	var spec map[string]treeEntry
	dec := json.NewDecoder(strings.NewReader(a.drv.Env["tree"]))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&spec); err != nil {
		return fmt.Errorf("variable \"tree\": %w", err)
	}
	t := &tree{a: a, leaves: map[string]treeEntry{}, dirs: map[string]string{}}
	for _, key := range slices.Sorted(maps.Keys(spec)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.add(key, spec[key]); err != nil {
			return err
		}
	}
	return t.write(ctx, out)
}

// treeEntry is one entry of the specification.
type treeEntry struct {
	Symlink    *string  `json:"symlink"`
	Text       *string  `json:"text"`
	File       *string  `json:"file"`
	Tree       *string  `json:"tree"`
	Trees      []string `json:"trees"`
	Executable *bool    `json:"executable"`
}

func (e treeEntry) String() string {
	switch {
	case e.Symlink != nil:
		return *e.Symlink
	case e.File != nil:
		return *e.File
	}
	return "a text"
}

func (e treeEntry) same(f treeEntry) bool {
	return e.Symlink != nil && f.Symlink != nil && *e.Symlink == *f.Symlink
}

// tree is what is to be written: leaves and directories by path, the latter with who wants them.
type tree struct {
	a      *attempt
	leaves map[string]treeEntry
	dirs   map[string]string
}

// kinds counts what the entry says it is.
func (e treeEntry) kinds() int {
	n := 0
	for _, is := range []bool{e.Symlink != nil, e.Text != nil, e.File != nil, e.Tree != nil, e.Trees != nil} {
		if is {
			n++
		}
	}
	return n
}

func (t *tree) add(key string, e treeEntry) error {
	if kinds := e.kinds(); kinds != 1 {
		return fmt.Errorf("entry %q has %d of symlink, text, file, tree, trees; it needs one", key, kinds)
	}
	if key == "" {
		key = "."
	} else if err := checkKey(key); err != nil {
		return err
	}
	if e.Tree != nil {
		e.Trees = []string{*e.Tree}
	}
	if e.Trees == nil {
		return t.leaf(key, e)
	}
	for _, logical := range e.Trees {
		real, err := t.a.locate(logical)
		if err != nil {
			return fmt.Errorf("entry %q: %w", key, err)
		}
		if err := t.union(key, logical, real); err != nil {
			return err
		}
	}
	return t.dir(key, "a union of nothing")
}

func checkKey(key string) error {
	if key == "" || path.IsAbs(key) || path.Clean(key) != key || key == "." || key == ".." || strings.HasPrefix(key, "../") || strings.ContainsRune(key, 0) {
		return fmt.Errorf("entry %q is not a clean relative path", key)
	}
	return nil
}

func (t *tree) leaf(key string, e treeEntry) error {
	if old, ok := t.leaves[key]; ok {
		if old.same(e) {
			return nil
		}
		return fmt.Errorf("entry %q is wanted by %s and by %s", key, old, e)
	}
	if who, ok := t.dirs[key]; ok {
		return fmt.Errorf("entry %q is a directory for %s and a file for %s", key, who, e)
	}
	t.leaves[key] = e
	return t.parents(key, e.String())
}

// parents notes the directories above a path.
func (t *tree) parents(key, who string) error {
	for dir := key; dir != "."; {
		dir = path.Dir(dir)
		if err := t.dir(dir, who); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) dir(key, who string) error {
	if old, ok := t.leaves[key]; ok {
		return fmt.Errorf("entry %q is a file for %s and a directory for %s", key, old, who)
	}
	if _, ok := t.dirs[key]; !ok {
		t.dirs[key] = who
	}
	return nil
}

// union adds links to all leaves below a directory of the store.
func (t *tree) union(key, logical, real string) error {
	entries, err := os.ReadDir(real)
	if err != nil {
		return fmt.Errorf("entry %q: %s is no directory: %w", key, logical, err)
	}
	if err := t.dir(key, logical); err != nil {
		return err
	}
	if err := t.parents(key, logical); err != nil {
		return err
	}
	for _, e := range entries {
		sub, target := path.Join(key, e.Name()), path.Join(logical, e.Name())
		if e.IsDir() {
			if err := t.union(sub, target, path.Join(real, e.Name())); err != nil {
				return err
			}
			continue
		}
		if err := t.leaf(sub, treeEntry{Symlink: &target}); err != nil {
			return err
		}
	}
	return nil
}

func (t *tree) write(ctx context.Context, out string) error {
	root, err := os.OpenRoot(path.Dir(out))
	if err != nil {
		return err
	}
	defer root.Close()
	if len(t.leaves) == 0 {
		t.dir(".", "nothing")
	}
	for _, dir := range slices.Sorted(maps.Keys(t.dirs)) {
		if err := root.MkdirAll(path.Join(path.Base(out), dir), 0o755); err != nil {
			return err
		}
	}
	for _, key := range slices.Sorted(maps.Keys(t.leaves)) {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := t.writeLeaf(root, path.Join(path.Base(out), key), t.leaves[key]); err != nil {
			return fmt.Errorf("entry %q: %w", key, err)
		}
	}
	return nil
}

func (t *tree) writeLeaf(root *os.Root, key string, e treeEntry) error {
	mode := os.FileMode(0o644)
	if e.Executable != nil && *e.Executable {
		mode = 0o755
	}
	switch {
	case e.Symlink != nil:
		return root.Symlink(*e.Symlink, key)
	case e.Text != nil:
		return root.WriteFile(key, []byte(*e.Text), mode)
	}
	real, err := t.a.locate(*e.File)
	if err != nil {
		return err
	}
	in, err := os.Open(real)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", *e.File)
	}
	if e.Executable == nil && fi.Mode()&0o100 != 0 {
		mode = 0o755
	}
	f, err := root.OpenFile(key, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	if _, err := io.Copy(f, in); err != nil {
		f.Close()
		return err
	}
	return f.Close()
}
