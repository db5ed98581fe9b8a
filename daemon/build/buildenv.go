package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"cairn/daemon/protocol"
)

// buildenv is "builtin:buildenv": a tree of links to what packages have in it, as nix-env makes it.
//
//	derivations = { ("true" | "false") PRIORITY COUNT PATH… }
//	manifest    = PATH, which becomes manifest.nix
//
// Where only one package has a directory, there is a link to that. Two files of the same name are a collision unless the priorities
// differ; the lower number wins. What a package names in nix-support/propagated-user-env-packages is added behind all
// others, with priorities from 1000 on.
func (a *attempt) buildenv(ctx context.Context, out string) error {
	packages, err := a.packages()
	if err != nil {
		return err
	}
	manifest, err := a.variable("manifest")
	if err != nil {
		return err
	}
	e := &userEnv{a: a, ctx: ctx, out: a.outputs[0].path.String(), entries: map[string]*envEntry{"": {dir: true}}, done: map[string]bool{}}
	if err := e.addAll(packages); err != nil {
		return err
	}
	if e.entries["manifest.nix"] != nil {
		return errors.New("a package has a manifest.nix")
	}
	e.entries["manifest.nix"] = &envEntry{target: manifest}
	return e.write(out)
}

type envPackage struct {
	active   bool
	priority int
	path     string
}

// packages reads the variable "derivations", in the order in which they are added.
func (a *attempt) packages() ([]envPackage, error) {
	text, err := a.variable("derivations")
	if err != nil {
		return nil, err
	}
	bad := failure(protocol.InputRejected, "derivation '%s': variable \"derivations\" is no list of packages", a.key.drv)
	var list []envPackage
	for words := strings.Fields(text); len(words) > 0; {
		if len(words) < 3 {
			return nil, bad
		}
		priority, err1 := strconv.Atoi(words[1])
		count, err2 := strconv.Atoi(words[2])
		if err1 != nil || err2 != nil || count < 0 || count > len(words)-3 {
			return nil, bad
		}
		for _, p := range words[3 : 3+count] {
			list = append(list, envPackage{words[0] != "false", priority, p})
		}
		words = words[3+count:]
	}
	slices.SortStableFunc(list, func(x, y envPackage) int {
		if x.priority != y.priority {
			return x.priority - y.priority
		}
		return strings.Compare(x.path, y.path)
	})
	return list, nil
}

// envEntry is a directory of the environment, or a link.
type envEntry struct {
	dir      bool
	target   string
	priority int
}

// userEnv is an environment in the making: entries by relative path.
type userEnv struct {
	a         *attempt
	ctx       context.Context
	out       string
	entries   map[string]*envEntry
	done      map[string]bool
	postponed map[string]bool
}

func (e *userEnv) addAll(packages []envPackage) error {
	e.postponed = map[string]bool{}
	for _, p := range packages {
		if p.active {
			if err := e.add(p.path, p.priority); err != nil {
				return err
			}
		}
	}
	for priority := 1000; len(e.postponed) > 0; {
		round := slices.Sorted(maps.Keys(e.postponed))
		e.postponed = map[string]bool{}
		for _, p := range round {
			if err := e.add(p, priority); err != nil {
				return err
			}
			priority++
		}
	}
	return nil
}

// add adds a package and notes what it propagates.
func (e *userEnv) add(pkg string, priority int) error {
	if e.done[pkg] {
		return nil
	}
	e.done[pkg] = true
	if err := e.merge(pkg, "", priority); err != nil {
		return err
	}
	real, err := e.a.locate(pkg + "/nix-support/propagated-user-env-packages")
	if err != nil {
		return nil
	}
	data, err := os.ReadFile(real)
	if err != nil {
		return err
	}
	for _, p := range strings.FieldsFunc(string(data), func(r rune) bool { return r == ' ' || r == '\n' }) {
		if !e.done[p] {
			e.postponed[p] = true
		}
	}
	return nil
}

// leftOut are the names that no environment has.
var leftOut = []string{"/propagated-build-inputs", "/nix-support", "/perllocal.pod", "/info/dir", "/log", "/manifest.nix", "/manifest.json"}

// merge adds what the directory src has to the directory dst.
func (e *userEnv) merge(src, dst string, priority int) error {
	real, err := e.a.locate(src)
	if err != nil {
		return err
	}
	fi, err := os.Stat(real)
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		e.a.log.note(fmt.Sprintf("warning: not including '%s' in the user environment because it's not a directory", src))
		return nil
	}
	entries, err := os.ReadDir(real)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := e.ctx.Err(); err != nil {
			return context.Cause(e.ctx)
		}
		from := src + "/" + entry.Name()
		if strings.HasPrefix(entry.Name(), ".") || slices.ContainsFunc(leftOut, func(s string) bool { return strings.HasSuffix(from, s) }) {
			continue
		}
		if err := e.place(from, path.Join(dst, entry.Name()), priority); err != nil {
			return err
		}
	}
	return nil
}

// place adds one entry of a package.
func (e *userEnv) place(src, dst string, priority int) error {
	real, err := e.a.locate(src)
	if err != nil {
		e.a.log.note(fmt.Sprintf("warning: skipping dangling symlink '%s/%s'", e.out, dst))
		return nil
	}
	fi, err := os.Lstat(real)
	if err != nil {
		return err
	}
	old := e.entries[dst]
	switch {
	case old == nil:
	case fi.IsDir() && old.dir:
		return e.merge(src, dst, priority)
	case fi.IsDir():
		return e.spread(src, dst, old, priority)
	case old.dir:
		return fmt.Errorf("collision between non-directory '%s' and directory '%s/%s'", src, e.out, dst)
	case old.priority == priority:
		return fmt.Errorf("packages '%s' and '%s' have the same priority %d; use 'nix-env --set-flag priority NUMBER INSTALLED_PKGNAME' to change the priority of one of the conflicting packages (0 being the highest priority)", src, old.target, priority)
	case old.priority < priority:
		return nil
	}
	e.entries[dst] = &envEntry{target: src, priority: priority}
	return nil
}

// spread makes a directory of a link to one, because a second package has it, too.
func (e *userEnv) spread(src, dst string, old *envEntry, priority int) error {
	real, target, err := e.a.follow(old.target)
	if err != nil {
		return err
	}
	if fi, err := os.Lstat(real); err != nil || !fi.IsDir() {
		return fmt.Errorf("collision between '%s' and non-directory '%s'", src, target)
	}
	e.entries[dst] = &envEntry{dir: true}
	if err := e.merge(target, dst, old.priority); err != nil {
		return err
	}
	return e.merge(src, dst, priority)
}

func (e *userEnv) write(out string) error {
	if err := os.Mkdir(out, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(out)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range slices.Sorted(maps.Keys(e.entries)) {
		switch entry := e.entries[name]; {
		case name == "":
		case entry.dir:
			err = root.MkdirAll(name, 0o755)
		default:
			if err = root.MkdirAll(path.Dir(name), 0o755); err == nil {
				err = root.Symlink(entry.target, name)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
