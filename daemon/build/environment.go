package build

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"cairn/daemon/protocol"
	"cairn/derivation"
	"cairn/store"
)

// environment returns the builder's variables, as name=value in the order of names, and the files
// that it finds in its directory.
//
// Later ones win:
//
//	PATH HOME NIX_STORE NIX_BUILD_CORES          defaults
//	the derivation's own                         or, with structured attributes, NIX_ATTRS_JSON_FILE NIX_ATTRS_SH_FILE
//	NIX_BUILD_TOP TMPDIR TEMPDIR TMP TEMP PWD    where it is
//	NIX_OUTPUT_CHECKED                           fixed outputs only
//	impureEnvVars                                fixed and impure ones: the setting impure-env, or the daemon's own
//	NIX_REMOTE                                   if "recursive-nix" is required: the way to the build's daemon
//	NIX_LOG_FD TERM
func (a *attempt) environment() ([]string, map[string][]byte, error) {
	env := map[string]string{
		"PATH":            "/path-not-set",
		"HOME":            "/homeless-shelter",
		"NIX_STORE":       a.b.store.Dir().String(),
		"NIX_BUILD_CORES": strconv.Itoa(a.b.settings.Cores),
	}
	files := map[string][]byte{}
	attrs, err := a.structured()
	if err != nil {
		return nil, nil, err
	}
	if attrs != nil {
		if err := a.attributeFiles(attrs, files); err != nil {
			return nil, nil, err
		}
		env["NIX_ATTRS_JSON_FILE"] = buildDir + "/.attrs.json"
		env["NIX_ATTRS_SH_FILE"] = buildDir + "/.attrs.sh"
	} else if err := a.plainVariables(env, files); err != nil {
		return nil, nil, err
	}
	for _, name := range []string{"NIX_BUILD_TOP", "TMPDIR", "TEMPDIR", "TMP", "TEMP", "PWD"} {
		env[name] = buildDir
	}
	if a.kind == derivation.Fixed {
		env["NIX_OUTPUT_CHECKED"] = "1"
	}
	if a.network {
		for _, name := range attrs.words(a.drv.Env, "impureEnvVars") {
			value, ok := a.b.settings.ImpureEnv[name]
			if !ok {
				value = os.Getenv(name)
			}
			env[name] = value
		}
	}
	if a.requires(featureRecursive) {
		env["NIX_REMOTE"] = "unix://" + buildDir + "/" + socketName
	}
	env["NIX_LOG_FD"], env["TERM"] = "2", "xterm-256color"
	list := make([]string, 0, len(env))
	for _, name := range slices.Sorted(maps.Keys(env)) {
		list = append(list, name+"="+env[name])
	}
	return list, files, nil
}

// plainVariables adds the derivation's variables, and makes files of those that passAsFile names
// and of the graphs that exportReferencesGraph names.
func (a *attempt) plainVariables(env map[string]string, files map[string][]byte) error {
	inFile := map[string]bool{}
	for _, name := range strings.Fields(a.drv.Env["passAsFile"]) {
		inFile[name] = true
	}
	for name, value := range a.drv.Env {
		if !inFile[name] {
			env[name] = value
			continue
		}
		file := ".attr-" + store.SHA256.Sum([]byte(name)).Nix32()
		files[file] = []byte(value)
		env[name+"Path"] = buildDir + "/" + file
	}
	words := strings.Fields(a.drv.Env["exportReferencesGraph"])
	if len(words)%2 != 0 {
		return failure(protocol.InputRejected, "odd number of tokens in 'exportReferencesGraph': '%s'", a.drv.Env["exportReferencesGraph"])
	}
	for ; len(words) > 0; words = words[2:] {
		name := words[0]
		if err := checkFileName(name); err != nil {
			return failure(protocol.InputRejected, "invalid file name '%s' in 'exportReferencesGraph'", name)
		}
		infos, err := a.graph([]string{words[1]})
		if err != nil {
			return err
		}
		files[name] = graphText(infos)
	}
	return nil
}

func checkFileName(name string) error {
	if name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return fmt.Errorf("%q is no file name", name)
	}
	return nil
}

// graph returns the closure of paths, which must be among the inputs, sorted by path.
// A derivation in it brings its outputs.
func (a *attempt) graph(paths []string) ([]*store.Info, error) {
	var roots []store.Path
	for _, s := range paths {
		p, _, err := a.b.store.Dir().Within(s)
		if err != nil {
			return nil, failure(protocol.InputRejected, "'exportReferencesGraph' contains a non-store path '%s'", s)
		}
		if !slices.Contains(a.inputs, p) {
			return nil, failure(protocol.InputRejected, "cannot export references of path '%s' because it is not in the input closure of the derivation", p)
		}
		roots = append(roots, p)
	}
	closure, err := a.b.store.Closure(roots...)
	if err != nil {
		return nil, err
	}
	for _, p := range closure {
		if !p.IsDerivation() {
			continue
		}
		outputs, err := a.b.store.Outputs(p)
		if err != nil {
			return nil, err
		}
		for _, o := range outputs {
			if a.b.store.IsValid(o) {
				roots = append(roots, o)
			}
		}
	}
	if closure, err = a.b.store.Closure(roots...); err != nil {
		return nil, err
	}
	var infos []*store.Info
	for _, p := range store.SortPaths(closure) {
		info, err := a.b.store.Info(context.Background(), p)
		if err != nil {
			return nil, err
		}
		infos = append(infos, info)
	}
	return infos, nil
}

// graphText is the old form of a graph: path, empty deriver, number of references, references.
func graphText(infos []*store.Info) []byte {
	var b strings.Builder
	for _, i := range infos {
		fmt.Fprintf(&b, "%s\n\n%d\n", i.Path, len(i.References))
		for _, r := range store.SortPaths(slices.Clone(i.References)) {
			fmt.Fprintln(&b, r)
		}
	}
	return []byte(b.String())
}
