package system_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"cairn/derivation"
	"cairn/services/system"
	"cairn/store"
)

func sample() *system.Spec {
	id := 77
	return &system.Spec{
		HostName: "web-1",
		Timezone: "Etc/UTC",
		Etc: []system.EtcFile{
			{Path: "motd", Source: "/cairn/store/00000000000000000000000000000000-motd"},
			{Path: "sudoers.d/wheel", Source: "/cairn/store/00000000000000000000000000000000-wheel", Mode: "440"},
		},
		Units: []system.Unit{
			{Name: "web.service", Text: "[Service]\nExecStart=/bin/true\n", WantedBy: []string{"multi-user.target"}, Start: true},
			{Name: "late.service", Text: "[Service]\nExecStart=/bin/true\n"},
		},
		Users: []system.User{
			{Name: "web", System: true, UID: &id, Group: "www", Groups: []string{"b", "a"}, Home: "/var/empty", Shell: "/usr/sbin/nologin", Comment: "100 % web"},
			{Name: "alice", AuthorizedKeys: []string{"/cairn/store/00000000000000000000000000000000-alice.pub"}},
		},
		Groups:   []system.Group{{Name: "www", GID: &id}, {Name: "a"}},
		Tmpfiles: []string{"d /var/lib/web 0755 web web -"},
		Packages: []string{"/cairn/store/00000000000000000000000000000000-p", "/cairn/store/00000000000000000000000000000000-q"},
		Health:   []system.Health{{Name: "web", Kind: "tcp", Port: 80}},
		Ports:    []system.Port{{Number: 80, Unit: "web.service"}},
	}
}

func TestTree(t *testing.T) {
	s := sample()
	tree, err := s.Tree("/cairn/store/00000000000000000000000000000000-cairn/bin/cairn")
	if err != nil {
		t.Fatal(err)
	}
	want := "g www 77\ng a -\nu web 77:www \"100 %% web\" /var/empty /usr/sbin/nologin\nm web a\nm web b\n"
	if got := *tree["sysusers"].Text; got != want {
		t.Errorf("sysusers:\n%s\nwant:\n%s", got, want)
	}
	if got := *tree["etc/hostname"].Text; got != "web-1\n" {
		t.Errorf("hostname %q", got)
	}
	for _, key := range []string{"etc/motd", "etc/sudoers.d/wheel", "units/web.service", "tmpfiles", "packages", "activate", "provenance.json"} {
		if _, ok := tree[key]; !ok {
			t.Errorf("tree lacks %s", key)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "services.json"), []byte(*tree["services.json"].Text), 0o444); err != nil {
		t.Fatal(err)
	}
	m, err := system.ReadManifest(dir)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, &m.Spec); diff != "" {
		t.Error(diff)
	}
}

func TestDerivation(t *testing.T) {
	src, err := store.ParsePath("/cairn/store/00000000000000000000000000000000-motd")
	if err != nil {
		t.Fatal(err)
	}
	d, err := sample().Derivation("x86_64-linux", "", func(text string) (map[store.Path][]string, []store.Path, error) {
		if !strings.Contains(text, src.String()) {
			t.Error("the text to scan lacks a source")
		}
		return nil, []store.Path{src}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if k, err := d.Kind(); err != nil || k != derivation.Floating || d.Name != "web-1-system" {
		t.Errorf("%s is %v, %v", d.Name, k, err)
	}
	var tree map[string]system.Entry
	if err := json.Unmarshal([]byte(d.Env["tree"]), &tree); err != nil || *tree["etc/hostname"].Text != "web-1\n" {
		t.Errorf("tree: %v %v", tree, err)
	}
}

func TestAbsentStartIsTrue(t *testing.T) {
	m, err := system.ParseManifest([]byte(`{"version":1,"units":[{"name":"a.service","text":"x"},{"name":"b.service","text":"x","start":false}]}`))
	if err != nil {
		t.Fatal(err)
	}
	if !m.Units[0].Start || m.Units[1].Start {
		t.Errorf("start: %v %v", m.Units[0].Start, m.Units[1].Start)
	}
}

func TestCheck(t *testing.T) {
	src := "/cairn/store/00000000000000000000000000000000-x"
	for name, c := range map[string]struct {
		spec system.Spec
		want string
	}{
		"host name":       {system.Spec{HostName: "a b"}, "host name"},
		"time zone":       {system.Spec{Timezone: "../../etc/passwd"}, "time zone"},
		"etc escapes":     {system.Spec{Etc: []system.EtcFile{{Path: "../x", Source: src}}}, "clean path"},
		"etc dot dot":     {system.Spec{Etc: []system.EtcFile{{Path: "a/../../x", Source: src}}}, "clean path"},
		"etc absolute":    {system.Spec{Etc: []system.EtcFile{{Path: "/x", Source: src}}}, "clean path"},
		"etc passwd":      {system.Spec{Etc: []system.EtcFile{{Path: "passwd", Source: src}}}, "belongs to the host"},
		"etc source":      {system.Spec{Etc: []system.EtcFile{{Path: "x", Source: "x"}}}, "absolute"},
		"etc mode":        {system.Spec{Etc: []system.EtcFile{{Path: "x", Source: src, Mode: "4755"}}}, "mode"},
		"etc owner":       {system.Spec{Etc: []system.EtcFile{{Path: "x", Source: src, User: "a"}}}, "no mode"},
		"etc twice":       {system.Spec{Etc: []system.EtcFile{{Path: "x", Source: src}, {Path: "x", Source: src}}}, "twice"},
		"etc nested":      {system.Spec{Etc: []system.EtcFile{{Path: "x", Source: src}, {Path: "x/y", Source: src}}}, "below"},
		"unit slash":      {system.Spec{Units: []system.Unit{{Name: "../x.service", Text: "x"}}}, "unit name"},
		"unit type":       {system.Spec{Units: []system.Unit{{Name: "x.conf", Text: "x"}}}, "unit name"},
		"unit empty":      {system.Spec{Units: []system.Unit{{Name: "x.service"}}}, "empty"},
		"unit twice":      {system.Spec{Units: []system.Unit{{Name: "x.service", Text: "x"}, {Name: "x.service", Text: "x"}}}, "twice"},
		"unit on change":  {system.Spec{Units: []system.Unit{{Name: "x.service", Text: "x", OnChange: "x"}}}, "on change"},
		"unit wanted by":  {system.Spec{Units: []system.Unit{{Name: "x.service", Text: "x", WantedBy: []string{"../a"}}}}, "not a unit"},
		"template wanted": {system.Spec{Units: []system.Unit{{Name: "x@.service", Text: "x", WantedBy: []string{"a.target"}}}}, "template"},
		"user name":       {system.Spec{Users: []system.User{{Name: "a:b"}}}, "account name"},
		"user comment":    {system.Spec{Users: []system.User{{Name: "a", Comment: "a\nroot"}}}, "comment"},
		"user shell":      {system.Spec{Users: []system.User{{Name: "a", Shell: "sh"}}}, "absolute"},
		"user twice":      {system.Spec{Users: []system.User{{Name: "a"}, {Name: "a"}}}, "twice"},
		"group name":      {system.Spec{Groups: []system.Group{{Name: ""}}}, "account name"},
		"tmpfiles":        {system.Spec{Tmpfiles: []string{"d /x\nd /y"}}, "line end"},
		"check":           {system.Spec{Checks: []system.Check{{Name: "c"}}}, "no command"},
		"check relative":  {system.Spec{Checks: []system.Check{{Name: "c", Argv: []string{"sh"}}}}, "absolute"},
		"health kind":     {system.Spec{Health: []system.Health{{Name: "h", Kind: "x"}}}, "kind"},
		"health port":     {system.Spec{Health: []system.Health{{Name: "h", Kind: "tcp"}}}, "port"},
		"port":            {system.Spec{Ports: []system.Port{{Number: 70000}}}, "range"},
		"port twice":      {system.Spec{Ports: []system.Port{{Number: 80, Unit: "a"}, {Number: 80, Unit: "b"}}}, "wanted by a and by b"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.spec.Check()
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestDigests(t *testing.T) {
	a := system.Unit{Text: "t", RestartTriggers: []string{"/x"}, ReloadTriggers: []string{"/r"}}
	b := a
	b.ReloadTriggers = []string{"/s"}
	if a.Definition() != b.Definition() || a.Reloads() == b.Reloads() {
		t.Error("a reload trigger must change only what reloads")
	}
	b.RestartTriggers = nil
	if a.Definition() == b.Definition() {
		t.Error("a restart trigger must change the definition")
	}
}

func FuzzParseManifest(f *testing.F) {
	f.Add((&system.Manifest{Version: 1, Spec: *sample()}).JSON())
	f.Add([]byte(`{"version":1,"units":[{"name":"a.service","text":"x"}]}`))
	f.Add([]byte(`{"version":1}x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := system.ParseManifest(data)
		if err != nil {
			return
		}
		again, err := system.ParseManifest(m.JSON())
		if err != nil {
			t.Fatalf("decode of own encoding: %v", err)
		}
		x, _ := json.Marshal(m)
		y, _ := json.Marshal(again)
		if string(x) != string(y) {
			t.Fatalf("not canonical:\n%s\n%s", x, y)
		}
	})
}
