package failpoint_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"cairn/store/failpoint"
)

// TestNames compares the table with the source: every place is in it, and the other way round; and only tests arm.
func TestNames(t *testing.T) {
	var used []string
	for _, call := range calls(t) {
		switch call.function {
		case "Hit", "Err":
			used = append(used, call.name)
		default:
			t.Errorf("%s: failpoint.%s is for tests only", call.position, call.function)
		}
	}
	slices.Sort(used)
	used = slices.Compact(used)
	if !slices.Equal(used, failpoint.Names) {
		t.Errorf("in the source:\n%s\nin the table:\n%s", strings.Join(used, "\n"), strings.Join(failpoint.Names, "\n"))
	}
	if len(used) == 0 {
		t.Error("no failpoint found")
	}
}

// call is a call of this package, with its first argument if that is a literal.
type call struct{ position, function, name string }

func calls(t *testing.T) []call {
	t.Helper()
	var all []call
	fset := token.NewFileSet()
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || filepath.Dir(path) == "../../store/failpoint" {
			return err
		}
		f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "failpoint" && s.Sel.Name != "Hit" && s.Sel.Name != "Err" {
					all = append(all, call{fset.Position(s.Pos()).String(), s.Sel.Name, ""})
				}
			}
			if c, ok := n.(*ast.CallExpr); ok {
				if s, ok := c.Fun.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && x.Name == "failpoint" && (s.Sel.Name == "Hit" || s.Sel.Name == "Err") {
						name := ""
						if lit, ok := c.Args[0].(*ast.BasicLit); ok {
							name, _ = strconv.Unquote(lit.Value)
						}
						all = append(all, call{fset.Position(s.Pos()).String(), s.Sel.Name, name})
					}
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestArm(t *testing.T) {
	defer failpoint.Arm(nil)
	if err := failpoint.Err("disk/add/flushed"); err != nil {
		t.Errorf("disarmed: %v", err)
	}
	failpoint.Arm(func(name string) error { return errors.New(name) })
	if err := failpoint.Err("disk/add/flushed"); err == nil || err.Error() != "disk/add/flushed" {
		t.Errorf("armed: %v", err)
	}
	failpoint.Hit("disk/add/flushed")
	failpoint.Arm(nil)
	if err := failpoint.Err("disk/add/flushed"); err != nil {
		t.Errorf("disarmed again: %v", err)
	}
}
