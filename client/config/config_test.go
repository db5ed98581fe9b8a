package config_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"cairn/client/config"
	"cairn/derivation/eval"
	"cairn/store"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestMain(m *testing.M) {
	config.Init()
	os.Exit(m.Run())
}

// folder makes a configuration of the files of a txtar archive, and a program that stands for cairn.
func folder(t testing.TB, a *txtar.Archive) (file string, opts *config.Options) {
	t.Helper()
	dir := t.TempDir()
	for _, f := range a.Files {
		p := filepath.Join(dir, f.Name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	program := filepath.Join(dir, "cairn")
	if err := os.WriteFile(program, []byte("program\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "main.star"), &config.Options{Platform: "x86_64-linux", Cairn: program}
}

func load(t testing.TB, text string, args map[string]string) (*config.Config, error) {
	t.Helper()
	file, opts := folder(t, &txtar.Archive{Files: []txtar.File{{Name: "main.star", Data: []byte(text)}}})
	opts.Args = args
	c, err := config.Load(t.Context(), file, opts)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

// TestSystems folds the system of each testdata/*.txtar and compares the spec.
func TestSystems(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) { golden(t, name) })
	}
}

func golden(t *testing.T, name string) {
	a, err := txtar.ParseFile(name)
	if err != nil {
		t.Fatal(err)
	}
	file, opts := folder(t, a)
	c, err := config.Load(t.Context(), file, opts)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s, err := c.System("")
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(s.Spec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	texts, err := c.Additions(s.Drv)
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range texts {
		if x.File == "" && !x.Path.IsDerivation() {
			got = fmt.Appendf(got, "\n==== %s\n%s", x.Name, x.Text)
		}
	}
	for i := range a.Files {
		if a.Files[i].Name != "want" {
			continue
		}
		if *update {
			a.Files[i].Data = got
			if err := os.WriteFile(name, txtar.Format(a), 0o644); err != nil {
				t.Fatal(err)
			}
		} else if string(got) != string(a.Files[i].Data) {
			t.Errorf("system is\n%s\nwant\n%s", got, a.Files[i].Data)
		}
	}
}

const head = `load("@cairn//base.star", "base_services", "etc", "etc_file", "timer", "timers", "unit", "units", "accounts", "system_root")
load("@cairn//networking.star", "openssh", "ntp", "nginx", "nginx_server", "rsync", "rsync_module", "static_networking", "networkd")
`

func TestErrors(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"field of a service", `x = system(host_name = "a", services = [openssh(prot_number = 22)])`,
			`main.star:3:49: openssh: field prot_number: unknown \(did you mean port_number\?\)`},
		{"type", `x = system(host_name = "a", services = [openssh(port_number = "22")])`,
			`main.star:3:49: openssh: field port_number: want int from 1 to 65535, got string "22"`},
		{"enum", `x = system(host_name = "a", services = [openssh(permit_root_login = "prohibit_password")])`,
			`main.star:3:49: openssh: field permit_root_login: .*did you mean "prohibit-password"\?`},
		{"not a service", `x = system(host_name = "a", services = [openssh])`,
			`main.star:3:41: system: field services: element 0: want service, got service type`},
		{"user", `x = system(host_name = "a", users = [user("Alice")])`, `main.star:3:43: user: argument 1: name: want account name, got string "Alice"`},
		{"name of the language", `system = system(host_name = "a")`, `main.star:3:10: .*system referenced before assignment \(system is a name of the language`},
		{"missing host name", `x = system()`, `main.star:3:5: system: missing field host_name`},
		{"attribute", `x = openssh()` + "\n" + `y = x.port_numbr`, `main.star:4:6: .*has no .port_numbr field or method \(did you mean .port_number\?\)`},
		{"two services", `x = system(host_name = "a", services = [openssh(), openssh(port_number = 23)])`,
			`main.star:3:59: service units: unit "ssh.service" is declared twice, first at .*main.star:3:48`},
		{"two files", `x = system(host_name = "a", services = [simple_service("a", etc, [etc_file("motd", plain_file("a", "a"))])] + [simple_service("a", etc, [etc_file("motd", plain_file("a", "a"))])])`,
			`main.star:3:146: .*file /etc "motd" is declared twice`},
		{"two users", `x = system(host_name = "a", users = [user("a"), user("a")])`, `main.star:3:53: .*user "a" is declared twice, first at .*:3:42`},
		{"port in use", `x = system(host_name = "a", services = [openssh(port_number = 80), nginx(servers = [nginx_server()])])`,
			`main.star:3:11: system a: port 80: wanted by ssh.service and by nginx.service`},
		{"ambiguous", `x = system(host_name = "a", services = [units(), openssh(), units()])`, `main.star:3:66: service units is written again, first at .*:3:46`},
		{"rsync port", `x = rsync(user = "nobody")`, `main.star:3:5: rsync: field port_number: ports up to 1024 need user root`},
		{"rsync chroot", `x = rsync(user = "nobody", port_number = 8730)`, `rsync: field use_chroot: changing the root needs user root`},
		{"rsync uid", `x = rsync(user = "nobody", port_number = 8730, use_chroot = False)`, `rsync: field uid: changing the user`},
		{"rsync gid", `x = rsync(user = "nobody", port_number = 8730, use_chroot = False, uid = None)`, `rsync: field gid: changing the group`},
		{"timer", `x = timer("a", command = ["/bin/true"])`, `main.star:3:5: timer: give schedule or every, one of them`},
		{"address", `x = static_networking("eth0", address = "10.0.0.1")`, `main.star:3:31: static_networking: field address: want address with prefix length`},
		{"extension of a type without extend", `t = service_type("t", config = {"a": field(int, default = 1)})` + "\n" + `u = service_type("u", extends = {t: lambda c: []})`,
			`main.star:4:23: service_type: field extends: t cannot be extended`},
		{"no default", `t = service_type("t", config = {"a": field(int)}, extend = lambda c, m: c, extends = {system_root: lambda c: {}})` + "\n" +
			`x = system(host_name = "a", services = [simple_service("s", t, [])])`, `main.star:4:55: service s extends t, which has no service and no default`},
		{"extension function", `x = system(host_name = "a", services = [simple_service("s", units, [3])])`, `main.star:3:55: .*units: element 0|field units: element 0: want unit, got int 3`},
		{"extension that fails", `t = service_type("t", config = {"a": field(int)}, extends = {units: lambda c: c.b})` + "\n" + `x = system(host_name = "a", services = [t(a = 1)])`,
			`main.star:3:80: service t: t has no .b field or method`},
	} {
		t.Run(c.name, func(t *testing.T) {
			c2, err := load(t, head+c.text, nil)
			if err == nil {
				_, err = c2.System("")
			}
			if err == nil || !regexp.MustCompile(c.want).MatchString(err.Error()) {
				t.Errorf("error is\n\t%v\nwant\n\t%s", err, c.want)
			}
		})
	}
}

func TestMachines(t *testing.T) {
	c, err := load(t, head+`
web = system(host_name = "web", services = base_services + [openssh()])
machines = [
    machine("web-%d" % n, system = web.with_(host_name = "web-%d" % n), environment = managed_host(host = "10.0.0.%d" % n, user = "deploy", identity = "keys/id", port = 2200 + n))
    for n in range(1, 4)
] + [machine("spare", system = web, environment = managed_host(host = "spare", identity = "~/.ssh/id"))]
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	ms, err := c.Machines()
	if err != nil {
		t.Fatal(err)
	}
	if len(ms) != 4 || ms[1].Name != "web-2" || ms[1].System.Name != "web-2" || ms[3].System.Name != "web" {
		t.Fatalf("machines are %+v", ms)
	}
	e := ms[1].Environment
	if e.Type != "managed_host" || e.Host != "10.0.0.2" || e.Port != 2202 || e.User != "deploy" || !filepath.IsAbs(e.Identity) || !strings.HasSuffix(e.Identity, "/keys/id") {
		t.Errorf("environment is %+v", e)
	}
	if e := ms[3].Environment; e.Port != 0 || e.Identity != "~/.ssh/id" {
		t.Errorf("environment is %+v", e)
	}
	if ms[0].System.Drv == ms[1].System.Drv {
		t.Error("two systems have one derivation")
	}
}

func TestTargetsAndValues(t *testing.T) {
	c, err := load(t, head+`
a = plain_file("a", "a")
b = derivation("b", "/bin/sh", outputs = ["out", "dev"])
both = {"x": [a, b.dev]}
sys = system(host_name = "h")
def f():
    return 1
n = {"x": 1}
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	names, err := c.Names()
	if err != nil || fmt.Sprint(names) != "[a b both sys f n]" {
		t.Errorf("names are %v, %v", names, err)
	}
	ts, err := c.Targets("both")
	if err != nil || len(ts) != 2 || ts[0].Path.Name() != "a" || !ts[0].Drv.IsZero() || ts[1].Output != "dev" || ts[1].Drv.Name() != "b.drv" || !ts[1].Path.IsZero() {
		t.Errorf("targets are %+v, %v", ts, err)
	}
	if ts, err = c.Targets("sys"); err != nil || ts[0].Drv.Name() != "h-system.drv" {
		t.Errorf("targets are %+v, %v", ts, err)
	}
	if _, err = c.Targets("n"); err == nil || !strings.Contains(err.Error(), `n["x"] is int`) {
		t.Errorf("error is %v", err)
	}
	if v, err := c.Value("n"); err != nil || string(v) != `{"x":1}` {
		t.Errorf("value is %s, %v", v, err)
	}
	if _, err := c.Value("nn"); err == nil || !strings.Contains(err.Error(), "did you mean n?") {
		t.Errorf("error is %v", err)
	}
	if v, err := c.Value(""); err != nil || !json.Valid(v) {
		t.Errorf("values are %s, %v", v, err)
	}
	if _, err := c.Value("f"); err == nil || !strings.Contains(err.Error(), "function has no JSON form") {
		t.Errorf("error is %v", err)
	}
}

// TestSystemIsDeterministic evaluates the same in several children.
func TestSystemIsDeterministic(t *testing.T) {
	text := head + `x = system(host_name = "a", services = base_services + [openssh(), ntp(), rsync(), nginx(servers = [nginx_server()])])`
	var drv store.Path
	for range 3 {
		c, err := load(t, text, nil)
		if err != nil {
			t.Fatal(err)
		}
		s, err := c.System("")
		if err != nil {
			t.Fatal(err)
		}
		if !drv.IsZero() && s.Drv != drv {
			t.Fatalf("derivation is %s, was %s", s.Drv, drv)
		}
		drv = s.Drv
	}
}

func TestServiceTypes(t *testing.T) {
	types, err := config.ServiceTypes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]config.TypeDoc{}
	for _, d := range types {
		found[d.Name] = d
		if d.Doc == "" || d.Kind == "service" && d.Module == "" {
			t.Errorf("type %s has no doc or module", d.Name)
		}
		for _, f := range d.Fields {
			if f.Doc == "" || f.Type == "" {
				t.Errorf("field %s.%s has no doc or type", d.Name, f.Name)
			}
		}
	}
	for _, n := range []string{"etc", "hosts", "accounts", "tmpfiles", "packages", "units", "timers", "openssh", "ntp", "rsync", "nginx", "networkd", "user", "machine", "nginx_server", "unit", "timer"} {
		if _, ok := found[n]; !ok {
			t.Errorf("service type %s is missing", n)
		}
	}
	if f := found["openssh"].Fields[0]; f.Name != "port_number" || f.Default != "22" || f.Required {
		t.Errorf("first field of openssh is %+v", f)
	}
}

// TestMemoryBomb: one operation that asks for far more memory than there is ends the child, not this process.
func TestMemoryBomb(t *testing.T) {
	for name, text := range map[string]string{
		"slow":        "l = ['x' * 1000]\nfor i in range(40):\n    l[0] = l[0] + l[0]\n",
		"one range":   "l = list(range(1 << 40))\n",
		"one replace": "s = 'x' * (1 << 22)\nt = s.replace('x', s)\n",
		"one join":    "s = 'x' * (1 << 29)\nt = s.join(['y'] * 1000)\n",
	} {
		t.Run(name, func(t *testing.T) {
			file, opts := folder(t, &txtar.Archive{Files: []txtar.File{{Name: "main.star", Data: []byte(text)}}})
			opts.MaxHeap = 64 << 20
			_, err := config.Load(t.Context(), file, opts)
			if !errors.Is(err, eval.ErrLimit) || !strings.Contains(err.Error(), "main.star") {
				t.Errorf("error is %v", err)
			}
		})
	}
}

func TestEndlessLoop(t *testing.T) {
	file, opts := folder(t, &txtar.Archive{Files: []txtar.File{{Name: "main.star", Data: []byte("for i in range(1 << 60):\n    pass\n")}}})
	opts.MaxSteps = 1_000_000
	if _, err := config.Load(t.Context(), file, opts); !errors.Is(err, eval.ErrLimit) || !strings.Contains(err.Error(), "main.star:1:") {
		t.Errorf("error is %v", err)
	}
	opts.MaxSteps = 1 << 62
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := config.Load(ctx, file, opts); err == nil || !strings.Contains(err.Error(), "deadline") {
		t.Errorf("error is %v", err)
	}
}

func TestPrint(t *testing.T) {
	file, opts := folder(t, &txtar.Archive{Files: []txtar.File{{Name: "main.star", Data: []byte("print('a', 1)\n")}}})
	var got string
	opts.Print = func(place, message string) { got = place + " " + message }
	c, err := config.Load(t.Context(), file, opts)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if !strings.HasSuffix(got, "main.star:1:6 a 1") {
		t.Errorf("printed %q", got)
	}
}

func TestExamples(t *testing.T) {
	_, opts := folder(t, &txtar.Archive{})
	for _, file := range []string{"../../examples/minimal/system.star", "../../examples/fleet/fleet.star"} {
		c, err := config.Load(t.Context(), file, opts)
		if err != nil {
			t.Errorf("%s: %v", file, err)
			continue
		}
		defer c.Close()
		if strings.Contains(file, "minimal") {
			_, err = c.System("")
		} else {
			_, err = c.Machines()
		}
		if err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func BenchmarkThousandMachines(b *testing.B) {
	text := head + `
web = system(host_name = "web", users = [user("alice", authorized_keys = ["ssh-ed25519 AAAA alice"])], services = base_services + [
    openssh(), ntp(), rsync(), nginx(servers = [nginx_server(root = tree("site", {"index.html": "hi"}))]),
    simple_service("backup", timers, [timer("backup", command = ["/bin/true"], schedule = "daily")]),
])
machines = [
    machine("web-%d" % n, system = web.with_(host_name = "web-%d" % n), environment = managed_host(host = "10.0.0.%d" % n))
    for n in range(1000)
]
`
	file, opts := folder(b, &txtar.Archive{Files: []txtar.File{{Name: "main.star", Data: []byte(text)}}})
	for b.Loop() {
		c, err := config.Load(b.Context(), file, opts)
		if err != nil {
			b.Fatal(err)
		}
		ms, err := c.Machines()
		if err != nil || len(ms) != 1000 {
			b.Fatal(err)
		}
		c.Close()
	}
}
