// Package tests holds what no package can test alone.
package tests

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// order lists every package. A package imports only packages above it; tests are free.
// A new package is one line here and one in the README's table.
var order = []string{
	"store/failpoint",
	"archive/wire",
	"archive/nar",
	"store/base32",
	"store",
	"store/refscan",
	"store/readdress",
	"store/storetest",
	"derivation",
	"archive",
	"archive/cache",
	"archive/cache/serve",
	"daemon/protocol",
	"daemon/settings",
	"services",
	"store/meta",
	"store/profile",
	"store/disk",
	"store/gc",
	"daemon/sandbox",
	"client",
	"daemon/legacy",
	"client/legacy",
	"client/peer",
	"client/sources",
	"daemon/substitute",
	"daemon/build",
	"daemon/remote",
	"archive/ship",
	"derivation/eval",
	"services/system",
	"services/activate",
	"services/library",
	"deploy/ssh",
	"deploy",
	"daemon",
	"client/config",
	"client/cli",
	"tests/s3",
	"tests/lab",
	"tests/lab/labctl",
	"tests/demo",
	".",
}

// doors says which packages alone may import a replaceable module.
var doors = map[string][]string{
	"github.com/dgraph-io/badger": {"store/meta"},
	"github.com/klauspost":        {"archive"},
	"github.com/andybalholm":      {"archive"},
	"github.com/dsnet":            {"archive"},
	"github.com/mikelolasagasti":  {"archive"},
	"github.com/pierrec":          {"archive"},
	"github.com/zeebo":            {"store"},
	"go.starlark.net":             {"derivation/eval", "client/config"},
	"golang.org/x/crypto/ssh":     {"deploy/ssh"},
	"github.com/spf13":            {"client/cli"},
	"github.com/godbus":           {"services/activate"},
	"github.com/rogpeppe":         {},
	"github.com/google/go-cmp":    {},
}

const module = "cairn"

type source struct {
	pkg     string   // folder below the module, "." for the root
	file    string   // base name
	imports []string // full paths
	doc     bool     // has a package comment
}

func TestImportsPointUp(t *testing.T) {
	for _, s := range sources(t) {
		self := slices.Index(order, s.pkg)
		if self < 0 {
			t.Errorf("%s/%s: package is not in the list of tests/layout_test.go", s.pkg, s.file)
			continue
		}
		for _, path := range s.imports {
			imported, ours := strings.CutPrefix(path, module+"/")
			if !ours {
				continue
			}
			if at := slices.Index(order, imported); at < 0 || at >= self {
				t.Errorf("%s/%s imports %s, which is not above it in the list", s.pkg, s.file, imported)
			}
		}
	}
}

func TestModulesHaveOneDoor(t *testing.T) {
	for _, s := range sources(t) {
		for _, path := range s.imports {
			for prefix, allowed := range doors {
				if (path == prefix || strings.HasPrefix(path, prefix+"/")) && !slices.Contains(allowed, s.pkg) {
					t.Errorf("%s/%s imports %s, whose door is %v", s.pkg, s.file, path, allowed)
				}
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	docs := map[string][]string{}
	for _, s := range sources(t) {
		docs[s.pkg] = docs[s.pkg]
		if s.doc {
			docs[s.pkg] = append(docs[s.pkg], s.file)
		}
	}
	for _, pkg := range order {
		want := path.Base(pkg) + ".go"
		if pkg == "." || strings.HasPrefix(pkg, "tests/") && slices.Contains(docs[pkg], "main.go") {
			want = "main.go"
		}
		files, there := docs[pkg]
		if pkg == "client/cli" && slices.Equal(files, []string{"cli.go", "doc.go"}) {
			continue // doc.go is the generated command reference
		}
		switch {
		case !there:
			t.Errorf("package %s is in the list and not in the tree", pkg)
		case !slices.Equal(files, []string{want}):
			t.Errorf("package %s: package comment in %v, want it in %s alone", pkg, files, want)
		}
	}
}

func TestReadmeListsPackages(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(readme), "\n## Packages\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var got []string
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z0-9/.]+)` \\|").FindAllStringSubmatch(section, -1) {
		got = append(got, m[1])
	}
	if !slices.Equal(got, order) {
		t.Errorf("package table of README.md and the list differ\nREADME: %s\n  list: %s", got, order)
	}
}

// sources parses the import clauses and package comments of all files that are not tests.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	err := filepath.WalkDir("..", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != ".." && (d.Name() == "testdata" || d.Name() == "vendor" || strings.HasPrefix(d.Name(), ".")) {
			return fs.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		s, err := parse(name)
		all = append(all, s)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func parse(name string) (source, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly|parser.ParseComments)
	if err != nil {
		return source{}, err
	}
	s := source{file: filepath.Base(name), doc: f.Doc != nil && strings.HasPrefix(f.Doc.Text(), "Package ") || f.Name.Name == "main" && f.Doc != nil}
	rel, err := filepath.Rel("..", filepath.Dir(name))
	if err != nil {
		return source{}, err
	}
	s.pkg = filepath.ToSlash(rel)
	for _, imp := range f.Imports {
		path, err := strconv.Unquote(imp.Path.Value)
		if err != nil {
			return source{}, err
		}
		s.imports = append(s.imports, path)
	}
	return s, nil
}
