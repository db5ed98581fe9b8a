package settings_test

import (
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"strings"
	"testing"
	"time"

	"cairn/daemon/settings"
)

// files is a file system for Load.
func files(m map[string]string) func(string) ([]byte, error) {
	return func(name string) ([]byte, error) {
		text, ok := m[name]
		if !ok {
			return nil, fmt.Errorf("open %s: %w", name, fs.ErrNotExist)
		}
		return []byte(text), nil
	}
}

func TestLoad(t *testing.T) {
	fsys := files(map[string]string{
		"/etc/nix/nix.conf": "# all\nmax-jobs = 3 # three\ntimeout=5\ninclude more.conf\n!include none.conf\nsubstituters = a b\nextra-substituters = b c\nsandbox = false\nnonsense = 1\n",
	})
	if _, err := settings.Load("/etc/nix", func(string) string { return "" }, fsys, func(string) {}); !errors.Is(err, settings.ErrSyntax) || !strings.Contains(err.Error(), "/etc/nix/nix.conf:3") {
		t.Errorf("line without blanks: %v", err)
	}
	env := map[string]string{"HOME": "/root", "NIX_CONFIG": "cores = 7\n"}
	fsys = files(map[string]string{
		"/etc/nix/nix.conf":          "# all\nmax-jobs = 3 # three\ninclude more.conf\n!include none.conf\nsubstituters = a b\nextra-substituters = b c\nsandbox = false\nnonsense = 1\n",
		"/etc/nix/more.conf":         "build-timeout = 60\nmax-build-log-size = 2K\n",
		"/root/.config/nix/nix.conf": "cores = 2\nkeep-going = yes\n",
	})
	var warned []string
	s, err := settings.Load("/etc/nix", func(n string) string { return env[n] }, fsys, func(w string) { warned = append(warned, w) })
	if err != nil {
		t.Fatal(err)
	}
	if s.MaxJobs != 3 || s.Timeout != time.Minute || s.MaxLog != 2048 || s.Cores != 7 || !s.KeepGoing || !reflect.DeepEqual(s.Substituters, []string{"a", "b", "c"}) {
		t.Errorf("%+v", s)
	}
	if len(warned) != 1 || !strings.Contains(warned[0], "nix.conf:8: unknown setting 'nonsense'") {
		t.Errorf("warnings: %q", warned)
	}
}

// TestExplain says where values come from, also those of files that others include.
func TestExplain(t *testing.T) {
	fsys := files(map[string]string{
		"/etc/nix/nix.conf":  "max-jobs = 3\n\n!include more.conf\nextra-substituters = b\nnonsense = 1\nsandbox = true\n",
		"/etc/nix/more.conf": "build-timeout = 60\nmax-jobs = 4\nsubstituters = a\n",
	})
	env := map[string]string{"NIX_CONFIG": "\ncores = 7"}
	s, from, err := settings.Explain("/etc/nix", func(n string) string { return env[n] }, fsys, func(string) {})
	want := settings.Origins{"max-jobs": "/etc/nix/more.conf:2", "timeout": "/etc/nix/more.conf:1", "substituters": "/etc/nix/nix.conf:4", "cores": "NIX_CONFIG:2"}
	if err != nil || !reflect.DeepEqual(from, want) {
		t.Errorf("%v, %v\nwant %v", from, err, want)
	}
	plain, err := settings.Load("/etc/nix", func(n string) string { return env[n] }, fsys, func(string) {})
	if err != nil || !reflect.DeepEqual(s, plain) {
		t.Errorf("explained %+v\nloaded %+v, %v", s, plain, err)
	}
}

func TestBadFiles(t *testing.T) {
	for text, want := range map[string]string{
		"max-jobs\n":              "conf:1: illegal configuration line",
		"\nmax-jobs = many\n":     `conf:2: setting 'max-jobs': "many" is no number`,
		"keep-going = perhaps\n":  "neither true nor false",
		"include\n":               "takes one file",
		"include gone\n":          "include: open gone",
		"max-jobs = -1\n":         "is no number",
		"max-build-log-size = K":  "is no size",
		"impure-env = a\n":        "name=value",
		"include conf\n":          "more than 20 deep",
		"connect-timeout = 1.5\n": "is no number",
	} {
		err := settings.Defaults().Apply("conf", text, files(map[string]string{"conf": text}), func(string) {})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestOverride(t *testing.T) {
	for _, c := range []struct {
		name, text string
		trusted    bool
		warning    string
	}{
		{"timeout", "3", false, ""},
		{"post-build-hook", "/bin/x", false, "not a trusted user"},
		{"post-build-hook", "/bin/x", true, ""},
		{"trusted-users", "me", true, "daemon's own"},
		{"builders", "", false, ""},
		{"builders", "ssh://x", false, "not a trusted user"},
		{"substituters", "https://good/ https://also", false, ""},
		{"substituters", "https://bad", false, "untrusted substituter 'https://bad'"},
		{"show-trace", "true", false, ""},
		{"trusted-users", "me", false, "not a trusted user"},
		{"sandbox", "false", false, "not a trusted user"},
		{"sandbox", "false", true, "always in a sandbox"},
		{"sandbox", "true", true, ""},
		{"repeat", "1", false, ""},
		{"min-free", "1", true, "is the daemon's own"},
		{"min-free", "0", true, ""}, // as the daemon has it
		{"min-free", "1", false, "not a trusted user"},
		{"no-such", "1", false, "not a trusted user"},
		{"no-such", "1", true, "does not know"},
		{"cores", "x", false, "is no number"},
	} {
		s := settings.Defaults()
		s.Substituters, s.TrustedSubstituters = []string{"https://good"}, []string{"https://also"}
		w := s.Override(c.name, c.text, c.trusted)
		if (w == "") != (c.warning == "") || !strings.Contains(w, c.warning) {
			t.Errorf("%s = %q, trusted %v: %q, want %q", c.name, c.text, c.trusted, w, c.warning)
		}
	}
}

// TestTable checks that names are unique and that each setting has its own field.
func TestTable(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range settings.All() {
		for _, n := range append([]string{s.Name}, s.Aliases...) {
			if seen[n] {
				t.Errorf("%s is there twice", n)
			}
			seen[n] = true
		}
		if s.Doc == "" {
			t.Errorf("%s has no doc", s.Name)
		}
		changed := settings.Defaults()
		other := "3"
		switch s.Text(changed) {
		case "true":
			other = "false"
		case "false":
			other = "true"
		}
		if s.Name == "impure-env" {
			other = "a=b"
		}
		if err := changed.Set(s.Name, other); err != nil {
			t.Errorf("%s: %v", s.Name, err)
			continue
		}
		for _, o := range settings.All() {
			if same := o.Text(changed) == o.Text(settings.Defaults()); same == (o == s) {
				t.Errorf("setting %s to %s: %s is %q", s.Name, other, o.Name, o.Text(changed))
			}
		}
	}
}

func FuzzApply(f *testing.F) {
	f.Add("max-jobs = 3\ninclude x\nextra-substituters = a # b\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := settings.Defaults()
		if err := s.Apply("x", text, files(nil), func(string) {}); err != nil {
			return
		}
		again := settings.Defaults()
		for _, one := range settings.All() {
			if err := again.Set(one.Name, one.Text(s)); err != nil {
				t.Fatalf("%s = %q: %v", one.Name, one.Text(s), err)
			}
		}
		if !reflect.DeepEqual(s.Clone(), again.Clone()) && fmt.Sprint(s) != fmt.Sprint(again) {
			t.Fatalf("%+v\n%+v", s, again)
		}
	})
}

func TestAmount(t *testing.T) {
	for _, c := range []struct {
		text          string
		bytes, inodes int64 // of 1000 and 200; negative: an error
	}{
		{"0", 0, 0},
		{"500", 500, 0},
		{"2K", 2048, 0},
		{"10%", 100, 20},
		{"0.5%", 5, 1},
		{"100%", 1000, 200},
		{"101%", -1, 0},
		{"-1%", -1, 0},
		{"NaN%", -1, 0},
		{"%", -1, 0},
		{"-5", -1, 0},
		{"", -1, 0},
	} {
		a, err := settings.ParseAmount(c.text)
		if (err != nil) != (c.bytes < 0) {
			t.Errorf("%q: error %v", c.text, err)
		}
		if err != nil {
			continue
		}
		if b, i := a.Of(1000, 200); b != c.bytes || i != c.inodes {
			t.Errorf("%q of 1000 bytes and 200 inodes: %d, %d", c.text, b, i)
		}
		if again, err := settings.ParseAmount(a.String()); err != nil || again != a {
			t.Errorf("%q is written as %q", c.text, a)
		}
	}
}
