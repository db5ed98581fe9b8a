package activate_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"cairn/services/activate"
	"cairn/services/system"
	"cairn/store"
)

// manager stands in for systemd: units run when asked to, unless they are broken.
type manager struct {
	running map[string]bool
	broken  map[string]bool
	asked   []string
}

func newManager() *manager {
	return &manager{running: map[string]bool{}, broken: map[string]bool{}}
}

func (m *manager) Status(_ context.Context, units ...string) (map[string]activate.UnitStatus, error) {
	out := map[string]activate.UnitStatus{}
	for _, u := range units {
		out[u] = activate.UnitStatus{LoadState: "loaded", ActiveState: map[bool]string{true: "active", false: "inactive"}[m.running[u]]}
	}
	return out, nil
}

func (m *manager) Loaded(context.Context, string) ([]string, error) { return nil, nil }

func (m *manager) Enqueue(_ context.Context, verb, unit string) (func(context.Context) (string, error), error) {
	m.asked = append(m.asked, verb+" "+unit)
	result := "done"
	switch {
	case verb == "stop":
		m.running[unit] = false
	case m.broken[unit]:
		m.running[unit] = false
		result = "failed"
	default:
		m.running[unit] = true
	}
	return func(context.Context) (string, error) { return result, nil }, nil
}

func (m *manager) Reload(context.Context) error              { return nil }
func (m *manager) ResetFailed(context.Context, string) error { return nil }
func (m *manager) Close() error                              { return nil }

// rig is a host in a directory.
type rig struct {
	t    *testing.T
	root string
	m    *manager
	kill int // the journal record at which the engine dies
}

type killed struct{}

func newRig(t *testing.T) *rig {
	r := &rig{t: t, root: t.TempDir(), m: newManager()}
	for _, d := range []string{"etc/systemd/system", "run", "cairn/store", "cairn/var/profiles", "usr/share/zoneinfo/Etc", "bin"} {
		if err := os.MkdirAll(filepath.Join(r.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.write("usr/share/zoneinfo/Etc/UTC", "")
	r.write("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
	r.write("etc/group", "root:x:0:\n")
	r.write("bin/web", "")
	os.Chmod(filepath.Join(r.root, "bin/web"), 0o755)
	return r
}

func (r *rig) write(path, text string) {
	r.t.Helper()
	p := filepath.Join(r.root, path)
	os.MkdirAll(filepath.Dir(p), 0o755)
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) engine() *activate.Engine {
	seen := 0
	return activate.New(&activate.Options{
		Root: r.root, Systemd: r.m, Settle: time.Millisecond, MinFreeBytes: 1, MinFreeFiles: 1, Program: []string{"/bin/recover"},
		Session: activate.Session{User: "nobody"},
		Journaled: func(*activate.Record) {
			if seen++; seen == r.kill {
				panic(killed{})
			}
		},
	})
}

func (r *rig) object(name, text string) string {
	p, err := store.DefaultDir.TextPath(name, store.SHA256.Sum([]byte(text)), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	r.write(p.String(), text)
	return p.String()
}

func (r *rig) system(spec system.Spec) store.Path {
	tree, err := spec.Tree("")
	if err != nil {
		r.t.Fatal(err)
	}
	p, err := store.DefaultDir.TextPath("test-system", store.SHA256.Sum([]byte(*tree["services.json"].Text)), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for name, e := range tree {
		if e.Text != nil {
			r.write(p.String()+"/"+name, *e.Text)
			continue
		}
		link := filepath.Join(r.root, p.String(), name)
		os.MkdirAll(filepath.Dir(link), 0o755)
		if err := os.Symlink(e.Symlink, link); err != nil && !errors.Is(err, fs.ErrExist) {
			r.t.Fatal(err)
		}
	}
	return p
}

// tree lists the host's /etc, its links of the running system, and its running units.
func (r *rig) tree() string {
	var lines []string
	for _, top := range []string{"etc", "run"} {
		filepath.WalkDir(filepath.Join(r.root, top), func(path string, d fs.DirEntry, err error) error {
			rel, _ := filepath.Rel(r.root, path)
			if strings.Contains(rel, "cairn-recover") || strings.HasSuffix(rel, "basic.target.wants") {
				return nil
			}
			switch d.Type() {
			case fs.ModeSymlink:
				target, _ := os.Readlink(path)
				lines = append(lines, rel+" -> "+target)
			case 0:
				data, _ := os.ReadFile(path)
				fi, _ := d.Info()
				lines = append(lines, fmt.Sprintf("%s %v %q", rel, fi.Mode(), data))
			default:
				lines = append(lines, rel+"/")
			}
			return nil
		})
	}
	current, _ := os.Readlink(filepath.Join(r.root, "cairn/var/profiles/system"))
	lines = append(lines, "profile "+current)
	for _, u := range slices.Sorted(func(yield func(string) bool) {
		for u, on := range r.m.running {
			if on && !yield(u) {
				return
			}
		}
	}) {
		lines = append(lines, "running "+u)
	}
	return strings.Join(lines, "\n")
}

func web(r *rig, said string) system.Spec {
	return system.Spec{
		Timezone: "Etc/UTC",
		Etc: []system.EtcFile{
			{Path: "web/conf", Source: r.object("conf", said)},
			{Path: "web/deep/secret", Source: r.object("secret", said+said), Mode: "600"},
			{Path: "motd", Source: r.object("motd", said), Replace: true},
		},
		Units: []system.Unit{{Name: "web.service", Text: "[Service]\nExecStart=/bin/web " + said + "\n", WantedBy: []string{"multi-user.target"}, Start: true}},
		Users: []system.User{{Name: "root", AuthorizedKeys: []string{r.object("a.pub", "key a"), r.object("b.pub", "key b\n")}}},
	}
}

func TestSwitchAndBack(t *testing.T) {
	r := newRig(t)
	r.write("etc/motd", "of the host")
	original := r.tree()
	ctx := t.Context()
	one, two := r.system(web(r, "one")), r.system(web(r, "two"))

	res, err := r.engine().Switch(ctx, one, nil)
	if err != nil || res.Outcome != "switched" || res.Generation != 1 {
		t.Fatalf("%+v %v", res, err)
	}
	r.holds("etc/motd", "one")
	r.holds("etc/web/deep/secret", "oneone")
	r.holds("etc/ssh/authorized_keys.d/root", "key a\nkey b\n")
	if fi, _ := os.Lstat(filepath.Join(r.root, "etc/web/deep/secret")); fi.Mode() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	first := r.tree()

	if res, err = r.engine().Switch(ctx, two, nil); err != nil || res.Generation != 2 {
		t.Fatalf("%+v %v", res, err)
	}
	r.holds("etc/motd", "two")
	r.holds("etc/web/deep/secret", "twotwo")
	if got := strings.Join(r.m.asked, ","); got != "start web.service,restart web.service" {
		t.Errorf("jobs: %s", got)
	}
	if res, err = r.engine().Switch(ctx, two, nil); err != nil || res.Outcome != "unchanged" || res.Generation != 2 {
		t.Fatalf("%+v %v", res, err)
	}
	if res, err = r.engine().RollBack(ctx, nil); err != nil || res.Generation != 1 {
		t.Fatalf("%+v %v", res, err)
	}
	if got := r.tree(); got != first {
		t.Errorf("after roll-back:\n%s\nwant:\n%s", got, first)
	}
	if _, err := r.engine().RollBack(ctx, nil); err == nil || !strings.Contains(err.Error(), "generation 0") {
		t.Errorf("roll-back of the first: %v", err)
	}
	if res, err = r.engine().SwitchGeneration(ctx, 0, nil); err != nil || res.Generation != 0 {
		t.Fatalf("%+v %v", res, err)
	}
	if got := r.tree(); got != original {
		t.Errorf("given back:\n%s\nwant:\n%s", got, original)
	}
	if list, err := r.engine().Generations(ctx); err != nil || len(list) != 2 || list[1].Units[0] != "web.service" {
		t.Errorf("%+v %v", list, err)
	}
	if res, err = r.engine().Switch(ctx, two, nil); err != nil || res.Generation != 3 {
		t.Errorf("numbers must grow: %+v %v", res, err)
	}
	if left, _ := filepath.Glob(filepath.Join(r.root, "cairn/var/journal/backup/*")); len(left) != 1 {
		t.Errorf("backups %v, want only that of motd", left)
	}
}

// TestEqualFileStaysTheHosts: what the host had, and happened to be as wanted, is there when the system goes.
func TestEqualFileStaysTheHosts(t *testing.T) {
	r := newRig(t)
	r.write("etc/timezone", "Etc/UTC\n")
	r.write("usr/share/zoneinfo/Europe/Paris", "")
	original := r.tree()
	for _, zone := range []string{"Etc/UTC", "Europe/Paris"} {
		if _, err := r.engine().Switch(t.Context(), r.system(system.Spec{Timezone: zone}), nil); err != nil {
			t.Fatal(err)
		}
		r.holds("etc/timezone", zone+"\n")
		if zone == "Etc/UTC" {
			continue
		}
		if _, err := r.engine().SwitchGeneration(t.Context(), 0, nil); err != nil {
			t.Fatal(err)
		}
		if got := r.tree(); got != original {
			t.Errorf("got:\n%s\nwant:\n%s", got, original)
		}
	}
	if _, err := r.engine().SwitchGeneration(t.Context(), 1, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine().SwitchGeneration(t.Context(), 0, nil); err != nil {
		t.Fatal(err)
	}
	if got := r.tree(); got != original {
		t.Errorf("got:\n%s\nwant:\n%s", got, original)
	}
}

// TestCurrentSystemIsLost: a damaged store must not stop people from going on.
func TestCurrentSystemIsLost(t *testing.T) {
	r := newRig(t)
	spec := web(r, "one")
	spec.Units = append(spec.Units, system.Unit{Name: "old.service", Text: "[Service]\nExecStart=/bin/web old\n", Start: true})
	one, two := r.system(spec), r.system(web(r, "two"))
	if _, err := r.engine().Switch(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(r.root, one.String())); err != nil {
		t.Fatal(err)
	}
	if res, err := r.engine().Switch(t.Context(), two, nil); err != nil || res.Outcome != "switched" {
		t.Fatalf("%+v %v", res, err)
	}
	if r.m.running["old.service"] || !r.m.running["web.service"] {
		t.Errorf("running: %v", r.m.running)
	}
	if _, err := os.Lstat(filepath.Join(r.root, "etc/systemd/system/old.service")); err == nil {
		t.Error("the old unit is still there")
	}
	r.holds("etc/motd", "two")
}

func TestOwnerOfACopy(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root; run as root: make root")
	}
	r := newRig(t)
	r.write("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
	file := system.EtcFile{Path: "x", Source: r.object("x", "x"), Mode: "640"}
	for _, owner := range []string{"", "nobody", ""} {
		file.User = owner
		sys := r.system(system.Spec{Etc: []system.EtcFile{file}})
		for _, outcome := range []string{"switched", "unchanged"} {
			res, err := r.engine().Switch(t.Context(), sys, nil)
			if err != nil || res.Outcome != outcome {
				t.Fatalf("owner %q: %+v %v", owner, res, err)
			}
		}
		fi, _ := os.Stat(filepath.Join(r.root, "etc/x"))
		if uid := fi.Sys().(*syscall.Stat_t).Uid; (owner == "nobody") != (uid == 65534) {
			t.Errorf("owner %q: uid %d", owner, uid)
		}
	}
}

func (r *rig) holds(path, want string) {
	r.t.Helper()
	// links through the profile are absolute names of the host
	p := filepath.Join(r.root, path)
	for range 10 {
		target, err := os.Readlink(p)
		if err != nil {
			break
		}
		for rest, tail := target, ""; ; rest, tail = filepath.Dir(rest), filepath.Join(filepath.Base(rest), tail) {
			if rest == "/cairn/var/profiles/system" {
				link, _ := os.Readlink(filepath.Join(r.root, rest))
				object, _ := os.Readlink(filepath.Join(r.root, filepath.Dir(rest), link))
				target = filepath.Join(object, tail)
				break
			}
			if rest == "/" || rest == "." {
				break
			}
		}
		p = filepath.Join(r.root, target)
	}
	if data, err := os.ReadFile(p); err != nil || string(data) != want {
		r.t.Errorf("%s: %q %v, want %q", path, data, err, want)
	}
}

func TestFailureIsUndone(t *testing.T) {
	r := newRig(t)
	r.write("etc/motd", "of the host")
	r.write("etc/localtime", "a copy of a zone")
	original := r.tree()
	r.m.broken["web.service"] = true
	res, err := r.engine().Switch(t.Context(), r.system(web(r, "one")), nil)
	var undone *activate.Undone
	if !errors.As(err, &undone) || len(undone.Left) > 0 || res.Outcome != "undone" {
		t.Fatalf("%+v %v", res, err)
	}
	if got := r.tree(); got != original {
		t.Errorf("got:\n%s\nwant:\n%s", got, original)
	}
	if list, _ := r.engine().Generations(t.Context()); len(list) != 0 {
		t.Errorf("a generation is left: %+v", list)
	}
	j, err := r.engine().Journal(res.ID)
	if err != nil || !j.Closed || j.Outcome != "undone" {
		t.Errorf("%+v %v", j, err)
	}
}

func TestRefusalChangesNothing(t *testing.T) {
	r := newRig(t)
	r.write("etc/web/conf", "of the host")
	r.write("etc/systemd/system/web.service", "of the host")
	original := r.tree()
	res, err := r.engine().Switch(t.Context(), r.system(web(r, "one")), nil)
	if c := activate.Conflicts(err); len(c) != 2 || res.Outcome != "refused" {
		t.Errorf("want both conflicts: %v", err)
	}
	if got := r.tree(); got != original {
		t.Errorf("got:\n%s\nwant:\n%s", got, original)
	}
}

// TestKilled kills a switch at each record of its journal: the first one, and one over an older system.
func TestKilled(t *testing.T) {
	r := newRig(t)
	r.write("etc/motd", "of the host")
	ctx := t.Context()
	one, two := r.system(web(r, "one")), r.system(web(r, "two"))
	home := 0
	for _, to := range []store.Path{one, two} {
		before := r.tree()
		for n := 1; ; n++ {
			r.kill = n
			died := r.die(ctx, to)
			r.kill = 0
			if !died {
				t.Logf("%d places", n-1)
				break
			}
			res, err := r.engine().Recover(ctx, nil)
			if err != nil {
				t.Fatalf("recover after a kill at %d: %v", n, err)
			}
			if res != nil && res.Outcome == "switched" {
				if _, err := r.engine().SwitchGeneration(ctx, home, nil); err != nil {
					t.Fatal(err)
				}
			}
			if got := r.tree(); got != before {
				t.Fatalf("killed at %d:\n%s\nwant:\n%s", n, got, before)
			}
		}
		if g, err := r.engine().Describe(ctx); err != nil {
			t.Fatal(err)
		} else {
			home = g.Number
		}
	}
}

func (r *rig) die(ctx context.Context, to store.Path) (died bool) {
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(killed); !ok {
				panic(p)
			}
			died = true
		}
	}()
	if _, err := r.engine().Switch(ctx, to, nil); err != nil {
		r.t.Fatal(err)
	}
	return false
}

// TestKilledInUndo kills an undo, too.
func TestKilledInUndo(t *testing.T) {
	r := newRig(t)
	r.write("etc/motd", "of the host")
	before := r.tree()
	one := r.system(web(r, "one"))
	r.m.broken["web.service"] = true
	r.kill = 1 << 30
	for n := 3; n < 40; n++ {
		r.kill = n
		died := func() (died bool) {
			defer func() { died = recover() != nil }()
			r.engine().Switch(t.Context(), one, nil)
			return
		}()
		r.kill = 0
		if _, err := r.engine().Recover(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if got := r.tree(); got != before {
			t.Fatalf("killed at %d:\n%s\nwant:\n%s", n, got, before)
		}
		if !died {
			return
		}
	}
	t.Error("never came to the end")
}

func TestBusy(t *testing.T) {
	r := newRig(t)
	one := r.system(web(r, "one"))
	e := r.engine()
	inner := make(chan error, 1)
	outer := activate.New(&activate.Options{
		Root: r.root, Systemd: r.m, Settle: time.Millisecond, MinFreeBytes: 1, MinFreeFiles: 1, Program: []string{"/bin/recover"},
		Journaled: func(rec *activate.Record) {
			if rec.Event == "open" {
				_, err := e.Switch(t.Context(), one, nil)
				inner <- err
			}
		},
	})
	if _, err := outer.Switch(t.Context(), one, nil); err != nil {
		t.Fatal(err)
	}
	if err := <-inner; !errors.Is(err, activate.ErrBusy) || !strings.Contains(err.Error(), "process") {
		t.Errorf("a second switch: %v", err)
	}
}

func TestDirectoryLinkIsNotFollowed(t *testing.T) {
	r := newRig(t)
	elsewhere := t.TempDir()
	if err := os.Symlink(elsewhere, filepath.Join(r.root, "etc/web")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.engine().Switch(t.Context(), r.system(web(r, "one")), nil); len(activate.Conflicts(err)) == 0 {
		t.Errorf("a link as a directory: %v", err)
	}
	if entries, _ := os.ReadDir(elsewhere); len(entries) > 0 {
		t.Errorf("wrote through a link: %v", entries)
	}
}
