package eval_test

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"go.starlark.net/starlark"

	"cairn/derivation/eval"
	"cairn/store"
)

var update = flag.Bool("update", false, "rewrite golden files")

var library = fstest.MapFS{
	"library.star": {Data: []byte(`
make = record("thing", {"name": field(any)})
_number = record("thing", {"name": field(int)})
def wrapped(name):
    return _number(name = name)
_private = 1
`)},
}

// folder makes a configuration of files.
func folder(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// run evaluates main.star of a folder.
func run(t testing.TB, dir string, opts *eval.Options) (*eval.Evaluation, *eval.Module, error) {
	t.Helper()
	o := eval.Options{Library: library, System: "x86_64-linux"}
	if opts != nil {
		o = *opts
	}
	e, err := eval.New(&o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	m, err := e.Run(t.Context(), filepath.Join(dir, "main.star"))
	return e, m, err
}

func TestErrors(t *testing.T) {
	data, err := os.ReadFile("testdata/errors.star")
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t, map[string]string{
		"good.star": "good = 1", "cycle/a.star": `load("b.star", "b")` + "\na = 1", "cycle/b.star": `load("//cycle/a.star", "a")` + "\nb = 1",
		"plain.txt": "text", "binary": "\xff\xfe",
	})
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "escape")); err != nil {
		t.Fatal(err)
	}
	line := 1
	for _, chunk := range strings.Split(string(data), "---\n") {
		t.Run(fmt.Sprintf("line %d", line), func(t *testing.T) { expectError(t, dir, chunk) })
		line += strings.Count(chunk, "\n") + 1
	}
}

var expectation = regexp.MustCompile(`### (".*")`)

// expectError evaluates a chunk, which must fail with what its ### line says.
func expectError(t *testing.T, dir, chunk string) {
	m := expectation.FindStringSubmatch(chunk)
	if m == nil {
		t.Fatal("chunk expects no error")
	}
	want, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.ReplaceAll(m[1][1:len(m[1])-1], `\`, `\\`), `\\"`, `\"`) + `"`)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "main.star"), []byte(strings.TrimPrefix(chunk, "\n")), 0o644); err != nil {
		t.Fatal(err)
	}
	_, _, err = run(t, dir, &eval.Options{Library: library, MaxSteps: 1_000_000})
	if err == nil {
		t.Fatal("no error")
	}
	if !regexp.MustCompile(want).MatchString(err.Error()) {
		t.Errorf("error is\n\t%v\nwant\n\t%s", err, want)
	}
	var placed *eval.Error
	if !errors.As(err, &placed) || placed.Line == 0 {
		t.Errorf("error %v has no place", err)
	}
}

// TestValues evaluates each main.star of testdata/*.txtar and compares the JSON of what it exports.
func TestValues(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { golden(t, file) })
	}
}

func golden(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	in, want := map[string]string{}, ""
	for _, f := range a.Files {
		if f.Name == "want.json" {
			want = string(f.Data)
			continue
		}
		in[f.Name] = string(f.Data)
	}
	e, m, err := run(t, folder(t, in), nil)
	if err != nil {
		t.Fatal(err)
	}
	got := values(t, e, m)
	if *update {
		for i := range a.Files {
			if a.Files[i].Name == "want.json" {
				a.Files[i].Data = []byte(got)
			}
		}
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if got != want {
		t.Errorf("values are\n%s\nwant\n%s", got, want)
	}
}

func values(t *testing.T, e *eval.Evaluation, m *eval.Module) string {
	t.Helper()
	var b strings.Builder
	for _, n := range m.Names() {
		switch m.Globals[n].(type) {
		case *starlark.Function, *eval.RecordType:
			continue
		}
		j, err := eval.JSON(m.Globals[n])
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		fmt.Fprintf(&b, "%s = %s\n", n, j)
	}
	return b.String()
}

func TestAdditionsAreComplete(t *testing.T) {
	dir := folder(t, map[string]string{"data/a.txt": "a", "main.star": `
src = local_file("data/a.txt")
txt = plain_file("conf", "include %s\n" % src)
lib = derivation("lib", "/bin/sh", args = ["-c", "echo > $out"], env = {"src": src})
app = derivation("app", "/bin/sh", args = ["-c", "cat " + txt + " {}/x".format(lib)], input_addressed = True, outputs = ["out", "dev"])
late = plain_file("late.conf", "lib=" + lib)
all = tree("all", {"bin/app": app, "etc/late": late, "doc": union([app.dev])})
`})
	e, m, err := run(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	drv, _, err := m.Globals["all"].(*eval.Object).Output()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[store.Path]bool{}
	var names []string
	for _, a := range e.Additions(drv) {
		for _, r := range a.References {
			if !seen[r] {
				t.Errorf("%s comes before its reference %s", a.Path, r)
			}
		}
		seen[a.Path] = true
		names = append(names, a.Name)
		checkAddition(t, &a)
	}
	if want := "[a.txt conf lib.drv app.drv late.conf.drv all.drv]"; fmt.Sprint(sorted(names)) != fmt.Sprint(sorted(strings.Fields(strings.Trim(want, "[]")))) {
		t.Errorf("additions are %v, want %v", names, want)
	}
	app, _, _ := m.Globals["app"].(*eval.Object).Output()
	if d := e.Derivation(app); len(d.InputDrvs) != 1 || len(d.InputSrcs) != 1 {
		t.Errorf("app has inputs %v and %v, want lib and conf", d.InputDrvs, d.InputSrcs)
	}
}

func sorted(s []string) map[string]bool {
	m := map[string]bool{}
	for _, x := range s {
		m[x] = true
	}
	return m
}

// checkAddition computes the path as a store does.
func checkAddition(t *testing.T, a *eval.Addition) {
	t.Helper()
	h := a.Algo.New()
	if err := a.Write(h); err != nil {
		t.Fatal(err)
	}
	ca := store.ContentAddress{Method: a.Method, Hash: store.NewHash(a.Algo, h.Sum(nil))}
	p, err := store.DefaultDir.ContentPath(a.Name, ca, store.References{Others: a.References})
	if err != nil || p != a.Path {
		t.Errorf("addition %s hashes to %s (%v)", a.Path, p, err)
	}
}

func TestLocalFilesAreReadWhenWanted(t *testing.T) {
	dir := folder(t, map[string]string{"a.txt": "a", "b.txt": "b", "main.star": `
a = local_file("a.txt")
b = local_file("b.txt")
c = derivation("c", "/bin/sh", env = {"b": b})
`})
	e, m, err := run(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	os.Remove(filepath.Join(dir, "b.txt"))
	if _, err := m.Globals["a"].(*eval.Object).Path(); err != nil {
		t.Errorf("a: %v", err)
	}
	err = e.Do(t.Context(), func(*starlark.Thread) error { _, err := eval.JSON(m.Globals["c"]); return err })
	if err == nil || !strings.Contains(err.Error(), "main.star:3:15") {
		t.Errorf("error about the missing file is %v", err)
	}
}

func TestErrorInsideStringIsReported(t *testing.T) {
	dir := folder(t, map[string]string{"d/a.txt": "a", "main.star": `
x = local_tree("d")
y = "%s" % x
`})
	if err := os.Symlink("loop", filepath.Join(dir, "d", "loop")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := run(t, dir, nil); err != nil {
		t.Errorf("a symlink in a tree: %v", err)
	}
	os.Remove(filepath.Join(dir, "d", "loop"))
	pipe(t, filepath.Join(dir, "d", "pipe"))
	_, _, err := run(t, dir, nil)
	if err == nil || !strings.Contains(err.Error(), "local_tree d") {
		t.Errorf("error about the pipe is %v", err)
	}
}

func TestUnusedArgument(t *testing.T) {
	dir := folder(t, map[string]string{"main.star": `x = args.get("colour", "red")`})
	_, _, err := run(t, dir, &eval.Options{Args: map[string]string{"color": "blue"}})
	if err == nil || !strings.Contains(err.Error(), "did you mean colour?") {
		t.Errorf("error is %v", err)
	}
	_, m, err := run(t, dir, &eval.Options{Args: map[string]string{"colour": "blue"}})
	if err != nil || m.Globals["x"] != starlark.String("blue") {
		t.Errorf("x is %v, %v", m.Globals["x"], err)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	for name, text := range map[string]string{
		"text":  "l = ['x' * 1000]\nfor i in range(40):\n    l[0] = l[0] + l[0]\n",
		"lists": "l = []\nfor i in range(1000000000):\n    l.append('x%d' % i)\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := run(t, folder(t, map[string]string{"main.star": text}), &eval.Options{MaxHeap: 64 << 20})
			if !errors.Is(err, eval.ErrLimit) || !strings.Contains(err.Error(), "main.star:3:") {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestCancel(t *testing.T) {
	ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, errors.New("asked to stop"))
	defer cancel()
	dir := folder(t, map[string]string{"main.star": "for i in range(1000000000000):\n    pass\n"})
	e, err := eval.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := e.Run(ctx, filepath.Join(dir, "main.star")); err == nil || !strings.Contains(err.Error(), "asked to stop") {
		t.Errorf("error is %v", err)
	}
}

func TestDecode(t *testing.T) {
	dir := folder(t, map[string]string{"main.star": `
port = record("port", {"number": field(int), "open_at": field(optional(int), default = None)})
host = record("host", {"host_name": field(str), "ports": field(list_of(port)), "tags": field(dict_of(str, str)), "up": field(bool), "file": field(path)})
h = host(host_name = "a", ports = [port(number = 1), port(number = 2, open_at = 0)], tags = {"x": "y"}, up = True, file = host_path("/bin/sh"))
`})
	_, m, err := run(t, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	var h struct {
		HostName string
		Ports    []struct {
			Number int
			OpenAt *int
		}
		Tags map[string]string
		Up   bool
		File string
	}
	if err := eval.Decode(m.Globals["h"], &h); err != nil {
		t.Fatal(err)
	}
	if h.HostName != "a" || len(h.Ports) != 2 || h.Ports[0].OpenAt != nil || *h.Ports[1].OpenAt != 0 || h.Tags["x"] != "y" || !h.Up || h.File != "/bin/sh" {
		t.Errorf("decoded %+v", h)
	}
	var lacks struct{ HostName string }
	if err := eval.Decode(m.Globals["h"], &lacks); err == nil || !strings.Contains(err.Error(), "ports") {
		t.Errorf("error is %v", err)
	}
}

// FuzzRun feeds any text to the evaluator: it must end with a value or an error.
func FuzzRun(f *testing.F) {
	data, err := os.ReadFile("testdata/errors.star")
	if err != nil {
		f.Fatal(err)
	}
	for _, chunk := range strings.Split(string(data), "---\n") {
		f.Add(chunk)
	}
	f.Add(`x = derivation("a", "/bin/sh", outputs = ["out", "dev"])` + "\ny = x.dev + '/b'\nz = plain_file('z', y)\njson.encode(str(z))")
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "main.star"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		e, err := eval.New(&eval.Options{Library: library, MaxSteps: 100_000, MaxHeap: 256 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		m, err := e.Run(t.Context(), filepath.Join(dir, "main.star"))
		if err != nil {
			return
		}
		for _, n := range m.Names() {
			eval.JSON(m.Globals[n]) //nolint:errcheck // only must not crash
		}
	})
}

func pipe(t *testing.T, name string) {
	t.Helper()
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
}
